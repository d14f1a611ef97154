"""Downloads: an artifact's bundle and its manifest, with ranges and conditional requests (docs/http-api.md).

What an artifact is never changes, so all but the bytes themselves is known from the index: HEAD, 304 and 416 ask
the store nothing. Bytes go out in chunks, each read when the one before is on its way. While a slow reader is
waited for, it holds no thread, only a descriptor or connection and a chunk or two. A store that is slow itself
holds only threads that are there for that.

A store whose archives can be read by a URL may send them itself (``ARI_REGISTRY_REDIRECT``): readers are sent
there once it is clear that they may.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ari_core.contract import SupportsDirectUrl, SupportsLocalPath, SupportsManifest, Visibility
from ari_core.errors import AriError, IntegrityError, NotFound, Unsupported, VerificationError, from_os_error
from ari_core.fs import NotRegularError, open_regular
from ari_core.layout import ARTIFACTS
from ari_core.verification import read_manifest
from ari_core.workflows.refs import BackendSource
from ari_server.problems import Problem

if TYPE_CHECKING:
    from ari_server.rows import Row
    from ari_server.service import Registry

CHUNK: Final = 512 * 1024
"""Bytes sent at a time; measured: larger ones are no faster."""

_log: Final = logging.getLogger(__name__)
_LONGEST_HEADER: Final = 4096
_LONGEST_RANGE: Final = 64
_RANGE: Final = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)
_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')
_CACHED_MANIFESTS: Final = 8 * 1024 * 1024
_FEW: Final = 4
"""Downloads at a time that may each hold a second chunk, which is faster."""

_Read = Callable[[int], Awaitable[bytes]]


async def bundle(request: Request, row: Row, registry: Registry, *, head: bool = False) -> Response:
    """Answers GET and HEAD of a bundle; whether the caller may read it was checked before.

    Raises:
        Problem: The range is past the end (416).
        AriError: The store has no such bytes, or fails.
    """
    tag = f'"{row.archive_sha256}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": _caching(row),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(row.archive_sha256)).decode()}:",
        "Content-Disposition": f'attachment; filename="bundle-{row.id}.tar.gz"',
        "X-ARI-Sha256": row.archive_sha256,
        "X-ARI-Visibility": row.visibility.value,
    }
    if _has_it(request, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = "application/gzip"
    if head:
        return Response(headers={**headers, "Content-Length": str(row.size)})
    part = _part(request, tag, row.size)
    if registry.config.redirect and (url := await registry.in_thread(_direct_url, row, registry)):
        return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers=_elsewhere(headers, url))
    if registry.config.accel and _nginx_agrees(request, part) and (place := await _for_nginx(row, registry)):
        del headers["Accept-Ranges"]  # nginx says so itself
        return Response(
            headers={**headers, "X-Accel-Redirect": f"{registry.config.accel.rstrip('/')}/{quote(place)}"}
        )
    start, end = 0, row.size
    if part:
        start, end = part
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{row.size}"
    headers["Content-Length"] = str(end - start)
    status = HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK
    return _Bytes(row, registry, start, end, status, headers)


async def manifest(request: Request, row: Row, registry: Registry) -> Response:
    """Answers GET and HEAD of ``manifest.lock``; whether the caller may read it was checked before.

    Raises:
        AriError: The store has no such artifact, or fails.
    """
    sha256, found = row.manifest_sha256, None
    if sha256 is None or not _has_it(request, f'"{sha256}"'):
        found = await _manifests.get(row, registry)
        sha256 = sha256 or hashlib.sha256(found.data).hexdigest()
    headers = {"ETag": f'"{sha256}"', "Cache-Control": _caching(row)}
    if found is None or _has_it(request, f'"{sha256}"'):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return _Whole(found, headers)


# -- headers -----------------------------------------------------------------------------------------------------


def _caching(row: Row) -> str:
    return "public, max-age=31536000, immutable" if row.visibility is Visibility.PUBLIC else "private, no-store"


def _has_it(request: Request, tag: str) -> bool:
    """Says whether the client has what `tag` names: ``If-None-Match``, compared weakly (RFC 9110, 13.1.2)."""
    given = ",".join(request.headers.getlist("if-none-match"))[:_LONGEST_HEADER]
    return given.strip() == "*" or tag in _TAG.findall(given)


def _part(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """Returns where the part asked for begins and ends; None for everything.

    Several ranges, other units and what is malformed are ignored, as RFC 9110 (14.2) allows; so is a range of
    another version (``If-Range``, compared strongly; we give no dates, so none matches).

    Raises:
        Problem: 416, the part begins behind the end.
    """
    given = request.headers.getlist("range")
    match = _RANGE.fullmatch(given[0]) if len(given) == 1 and len(given[0]) <= _LONGEST_RANGE else None
    if match is None or request.headers.getlist("if-range") not in ([], [tag]):
        return None
    first, last = match.groups()
    if first and (not last or int(first) <= int(last)):
        start, end = int(first), min(int(last) + 1, size) if last else size
    elif last and not first:
        start, end = max(size - int(last), 0), size
    else:
        return None
    if start >= end:
        raise Problem(
            416, f"the range begins behind the end at {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


def _elsewhere(headers: dict[str, str], url: str) -> dict[str, str]:
    """Returns the headers of an answer that sends a reader to `url`: those that tell what will come from there.

    Whoever has the URL can read, so nobody may keep it, however public the artifact is.
    """
    about = {name: value for name, value in headers.items() if name.startswith(("X-ARI-", "Repr-"))}
    return {**about, "Location": url, "Cache-Control": "private, no-store"}


# -- bytes -------------------------------------------------------------------------------------------------------


class _Bytes(Response):
    """A bundle, or a part of it, on its way."""

    _running = 0

    def __init__(
        self, row: Row, registry: Registry, start: int, end: int, status: int, headers: dict[str, str]
    ) -> None:
        self.status_code, self.background = status, None
        self.init_headers(headers)
        self._row, self._registry, self._start, self._end = row, registry, start, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Serves one request."""
        left = self._end - self._start
        async with AsyncExitStack() as stack:
            async with _forgetting(self._row, self._registry):
                read = await stack.enter_async_context(_reader(self._row, self._registry, self._start))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            gone = asyncio.create_task(_disconnect(receive))
            _Bytes._running += 1
            try:
                while left and not gone.done():
                    if _Bytes._running > _FEW:  # waits until the chunk before is gone: slow readers then hold one
                        await send({"type": "http.response.body", "body": b"", "more_body": True})
                    try:
                        data = await read(min(CHUNK, left))
                        if not data:
                            raise IntegrityError(f"the store's answer ended {left} bytes early")
                    except AriError as error:
                        # Less than was announced: the server cuts the connection, and the part cannot look whole.
                        _log.error("cut off a download of %s: %s", self._row.id, error.message)
                        return
                    left -= len(data)
                    await send({"type": "http.response.body", "body": data, "more_body": left > 0})
                    await asyncio.sleep(0)  # a fast reader never makes us wait, and others want their turn
            finally:
                _Bytes._running -= 1
                gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _reader(row: Row, registry: Registry, start: int) -> AsyncIterator[_Read]:
    """Opens the archive at `start`: its file, if it is one, else the store's stream."""
    opened = await registry.in_thread(_open_file, row, registry)
    if opened:
        fd, _ = opened
        try:
            yield _File(fd, start, registry).read
        finally:
            os.close(fd)
        return
    reading = registry.store.open(row.locator, start)
    stream = await registry.reading(reading.__enter__)
    try:
        yield lambda count: registry.reading(stream.read, count)
    finally:
        await registry.reading(reading.__exit__, None, None, None)


class _File:
    """A local file: read at once where it is in the page cache, else in a thread."""

    def __init__(self, fd: int, position: int, registry: Registry) -> None:
        self._fd, self._position, self._registry = fd, position, registry

    async def read(self, count: int) -> bytes:
        try:
            if self._is_cached(count):
                data = os.pread(self._fd, count, self._position)
            else:
                data = await self._registry.in_thread(os.pread, self._fd, count, self._position)
        except OSError as error:
            raise from_os_error(error, "reading a bundle") from error
        self._position += len(data)
        return data

    def _is_cached(self, count: int) -> bool:
        """Says whether reading is only copying, by its last byte: as a rule, what is before it is there, too."""
        try:
            return os.preadv(self._fd, [_ONE], self._position + count - 1, os.RWF_NOWAIT) == 1
        except (OSError, AttributeError):  # not there, or a system or file system that cannot say
            return False


_ONE: Final = bytearray(1)


def _open_file(row: Row, registry: Registry) -> tuple[int, Path] | None:
    """Opens the archive, if the store keeps it in a local file.

    Raises:
        NotFound: It is certainly gone.
        IntegrityError: The file is not the one that was stored.
    """
    store = registry.store.optional(SupportsLocalPath)
    if store is None:
        return None
    try:
        path = store.local_path(row.locator)
        fd = open_regular(path, follow=False)
    except Unsupported:  # not for this one
        return None
    except (FileNotFoundError, NotRegularError) as error:
        registry.store.stat(row.locator)  # raises, if it was deleted at this very moment
        raise IntegrityError(f"the bundle of the artifact {row.id} is missing from the store") from error
    except OSError as error:
        raise from_os_error(error, f"opening the bundle of the artifact {row.id}") from error
    if (size := os.fstat(fd).st_size) != row.size:
        os.close(fd)
        raise IntegrityError(f"the bundle of the artifact {row.id} has {size} bytes, not {row.size}")
    return fd, path


def _direct_url(row: Row, registry: Registry) -> str | None:
    """Returns where anybody can read the archive for a while, if the store has such a place for this one."""
    store = registry.store.optional(SupportsDirectUrl)
    if store is not None and registry.config.redirect:
        with suppress(Unsupported):
            return store.direct_url(row.locator, registry.config.redirect)
    return None


def _nginx_agrees(request: Request, part: tuple[int, int] | None) -> bool:
    """Says whether nginx, which judges these headers anew, would come to the same answer."""
    return (part is not None or "range" not in request.headers) and not (
        {"if-match", "if-unmodified-since"} & set(request.headers)
    )


async def _for_nginx(row: Row, registry: Registry) -> str | None:
    """Returns where below the data directory's artifacts the archive lies, if nginx can send it from there."""

    def find() -> str | None:
        opened = _open_file(row, registry)
        if opened is None:
            return None
        fd, path = opened
        os.close(fd)
        with suppress(ValueError):  # kept elsewhere
            return path.resolve().relative_to((registry.config.data / ARTIFACTS).resolve()).as_posix()
        return None

    async with _forgetting(row, registry):
        return await registry.in_thread(find)


@asynccontextmanager
async def _forgetting(row: Row, registry: Registry) -> AsyncIterator[None]:
    """Takes out of the index what turns out to be gone from the store."""
    try:
        yield
    except NotFound:
        await registry.in_thread(registry.forget, row)
        raise


# -- manifests ---------------------------------------------------------------------------------------------------


class _Manifest:
    """A manifest's bytes, in one place for all who read them now: of 64 MiB, no two copies fit."""

    __slots__ = ("__weakref__", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Whole(Response):
    """A manifest on its way, in pieces: what a slow reader does not take is then not copied for them either."""

    media_type = "application/json"

    def __init__(self, manifest: _Manifest, headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, "Content-Length": str(len(manifest.data))})
        self._manifest = manifest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Serves one request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        data = self._manifest.data
        for start in range(0, len(data), CHUNK):  # there is at least a brace
            end = start + CHUNK
            await send({"type": "http.response.body", "body": data[start:end], "more_body": end < len(data)})


class _Manifests:
    """Manifests sent last. An archive's manifest never changes, so none is ever out of date."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Manifest] = OrderedDict()  # by archive digest, oldest first
        self._size = 0
        self._in_use: WeakValueDictionary[str, _Manifest] = WeakValueDictionary()
        self._reading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, row: Row, registry: Registry) -> _Manifest:
        key = row.archive_sha256
        found = self._kept.get(key)
        if found is None:
            lock = self._reading.setdefault(key, asyncio.Lock())
            async with lock:
                found = self._in_use.get(key)
                if found is None:
                    async with _forgetting(row, registry):
                        found = _Manifest(await registry.in_thread(_read_manifest, row, registry))
                    self._in_use[key] = found
            if len(found.data) > _CACHED_MANIFESTS:
                return found
            if key not in self._kept:
                self._kept[key] = found
                self._size += len(found.data)
        self._kept.move_to_end(key)
        while self._size > _CACHED_MANIFESTS:
            self._size -= len(self._kept.popitem(last=False)[1].data)
        return found


_manifests: Final = _Manifests()


def _read_manifest(row: Row, registry: Registry) -> bytes:
    """Asks the store, and where that has none or another one, looks into the bundle."""

    def is_right(data: bytes) -> bool:
        return row.manifest_sha256 in {None, hashlib.sha256(data).hexdigest()}

    if store := registry.store.optional(SupportsManifest):
        with suppress(Unsupported):
            if is_right(data := store.manifest(row.locator)):
                return data
    try:
        data = read_manifest(BackendSource(registry.store, row.locator, row.size), registry.limits)
    except VerificationError as error:
        raise IntegrityError(f"the bundle of the artifact {row.id}: {error.message}") from error
    if not is_right(data):
        raise IntegrityError(f"the manifest of the artifact {row.id} is not the one that was stored")
    return data
