"""Uploads: from the event loop through a bounded pipe into one thread, which checks and stores.

The loop only hands chunks on, so that one worker serves others meanwhile. Nothing of a body is asked for before
the request was judged by its headers.

Where the store cannot link a file that is received next to it, and the archive's digest is declared, what comes
goes straight to the store while it is verified (`VerifyingSource`): no more than some 8 MiB of it are here at any
time, besides what the store's own client holds. All else is received in a spool, a temporary file no larger than
an upload may be, which the thread that made it removes, whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ari_core.bundle.writer import Written
from ari_core.contract import Visibility
from ari_core.errors import ArchiveRefusedError, ConfigurationError, Unavailable, from_os_error
from ari_core.fs import Staging, write_all
from ari_core.manifest import same_manifest
from ari_core.names import BUNDLE_NAME
from ari_core.streams import Interruptible, ReadStream
from ari_core.verification import Report, check_archive
from ari_core.verifying import VerifyingSource, require_storable
from ari_core.wish import check_wish, embargo_end
from ari_core.workflows.spool import PackedFile
from ari_server import metrics, multipart
from ari_server.config import ServerConfig
from ari_server.problems import Problem
from ari_server.schemas import METADATA_HEADER, WISH_HEADER
from ari_server.service import Offer, Registry, Stored

RAW_TYPES: Final = frozenset({"application/gzip", "application/x-gzip", "application/octet-stream"})
FORMS: Final = ("raw", "multipart")
"""How a bundle can be sent, for ``/version``."""
JSON_MAX: Final = 64 * 1024

_AHEAD: Final = 512 * 1024
_SLOWEST: Final = 4096
"""Bytes a second that an upload must keep up in the long run, so that a trickle cannot hold a slot for ever."""
_FIELDS: Final = {"visibility": 256, "metadata": JSON_MAX}
# Less, and nginx, which looks for an answer only when it cannot send, says 502 instead: of 60 answers 16 at 1 MiB.
_DRAIN_BYTES: Final = 64 * 1024 * 1024
_DRAIN_SECONDS: Final = 5.0
_DRAIN_IDLE_SECONDS: Final = 0.5
_REPR_SHA256: Final = re.compile(r"(?:^|,)[ \t]*sha-256=(?::([A-Za-z0-9+/=]*):)?", re.ASCII)
_SHA256_BYTES: Final = 32

_comparing = threading.Lock()  # a manifest of 100,000 files takes tens of megabytes: one at a time


# -- judging by the headers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Announced:
    """What the headers of an upload say.

    Attributes:
        boundary: Of the form; None when the body is the bundle itself.
        most: Bytes that the body may have.
        size: Bytes that it will have, if declared.
        sha256: Archive digest, if declared.
        offer: What the uploader says about the archive; a form says it in fields.
    """

    boundary: bytes | None
    most: int
    size: int | None
    sha256: str | None
    offer: Offer


def has_body(headers: Headers) -> bool:
    """Says whether a request with these headers has a body."""
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def content_type(headers: Headers) -> str:
    """Returns the media type of a body, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _announced(headers: Headers, registry: Registry, user: str) -> _Announced:
    """Judges an upload before anything of it was received."""
    limit = int(registry.config.max_upload)
    kind = content_type(headers)
    form = kind == multipart.CONTENT_TYPE
    most = limit + registry.limits.manifest_bytes + JSON_MAX * 4 if form else limit
    length = headers.get("content-length")
    size = int(length) if length and length.isascii() and length.isdigit() else None
    if size is not None and size > most:
        raise _too_large(limit)
    if form:
        boundary = multipart.boundary_of(headers["content-type"])
    elif kind in RAW_TYPES:
        boundary = None
    else:
        raise Problem(
            415,
            f"send the bundle as application/gzip, or in a form ({multipart.CONTENT_TYPE})",
            "wrong-content-type",
        )
    sha256 = _declared_digest(headers)
    if sha256 and size is not None and not form:
        registry.check_quota(registry.index.find(sha256), user, size)
    return _Announced(
        boundary,
        most,
        size,
        sha256,
        _offer(headers.get(WISH_HEADER), headers.get(METADATA_HEADER, "").encode("latin-1")),
    )


def _declared_digest(headers: Headers) -> str | None:
    """Returns the digest that ``Repr-Digest`` (RFC 9530) declares; other algorithms are ignored."""
    found = _REPR_SHA256.search(",".join(headers.getlist("repr-digest")))
    if found is None:
        return None
    try:
        digest = base64.b64decode(found[1] or "", validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != _SHA256_BYTES:
        raise Problem(400, "Repr-Digest must be sha-256=:BASE64:", "bad-digest")
    return digest.hex()


def _offer(wish: str | None, metadata: bytes) -> Offer:
    if not wish:
        return Offer(metadata=json_object(metadata, "the metadata"))
    try:
        check_wish(wish)
    except ConfigurationError as error:
        raise Problem(400, error.message, "bad-visibility") from None
    level = Visibility(wish) if wish in set(Visibility) else Visibility.PUBLIC
    return Offer(level, embargo_end(wish), json_object(metadata, "the metadata"))


def json_object(raw: bytes, what: str) -> dict[str, Any]:
    """Parses what should be a JSON object; nothing at all is an empty one.

    Raises:
        Problem: It is none, has a key twice, or text that UTF-8 cannot hold (400).
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(found)) != len(found):
            raise ValueError("a key twice")
        return result

    def constant(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        value = json.loads(raw or b"{}", object_pairs_hook=pairs, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode()  # what was escaped may be half a character
    except (ValueError, RecursionError):
        raise Problem(400, f"{what} must be strict JSON, in UTF-8", "bad-json") from None
    if not isinstance(value, dict):
        raise Problem(400, f"{what} must be a JSON object", "bad-json")
    return value


def _too_large(limit: int) -> Problem:
    return Problem(413, f"this registry takes bundles of at most {limit} bytes")


# -- the event loop's side ---------------------------------------------------------------------------------------


class Pipe:
    """Hands a body from the event loop to a thread, at most a few chunks ahead of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._changed = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._held = 0
        self._waiting = self._ended = False
        self._failure: BaseException | None = None

    async def send(self, data: bytes) -> None:
        """Adds a chunk, and waits while there are too many."""
        with self._changed:
            self._chunks.append(memoryview(data))
            self._held += len(data)
            self._waiting = self._held > _AHEAD
            if self._waiting:
                self._room.clear()
            self._changed.notify()
        if self._waiting:
            await self._room.wait()

    def end(self, failure: BaseException | None = None) -> None:
        """Ends the stream: well, or by raising `failure` in the thread that reads."""
        with self._changed:
            self._ended, self._failure = True, self._failure or failure
            self._changed.notify()

    def read(self, size: int, /) -> bytes:
        """Returns what is there, at most `size` bytes; waits for the first one; b"" at the end."""
        with self._changed:
            while not (self._chunks or self._ended):
                self._changed.wait()
            if self._failure:
                raise self._failure
            pieces = []
            while self._chunks and size:
                piece = self._chunks.popleft()
                if len(piece) > size:
                    self._chunks.appendleft(piece[size:])
                    piece = piece[:size]
                pieces.append(piece)
                size -= len(piece)
                self._held -= len(piece)
            if self._waiting and self._held <= _AHEAD // 2:
                self._waiting = False
                self._loop.call_soon_threadsafe(self._room.set)
        return b"".join(pieces)

    def interrupt(self) -> None:
        """Makes a `read` that waits end now: nobody needs it any more."""
        self.end(InterruptedError())

    def clear(self) -> None:
        """Lets go of everything, when nobody reads any more: an error knows where it passed, so here, too."""
        self._chunks.clear()
        self._failure = None


async def _feed(request: Request, pipe: Pipe, most: int, config: ServerConfig) -> None:
    seconds = config.body_timeout
    received, waited = 0, 0.0  # bytes, and seconds spent waiting for them
    end: Exception | None = _stopping()
    try:
        while received <= most:
            asked = anyio.current_time()
            with anyio.fail_after(min(seconds, seconds + received / _SLOWEST - waited)):
                message = await request.receive()
            waited += anyio.current_time() - asked
            if message["type"] != "http.request":
                end = ClientDisconnect()
                return
            if body := message.get("body", b""):
                received += len(body)
                await pipe.send(body)
            if not message.get("more_body"):
                end = None
                return
        end = _too_large(int(config.max_upload))
    except TimeoutError:
        end = Problem(408, f"nothing came for {seconds:g} seconds, or less than {_SLOWEST} bytes a second")
    finally:
        pipe.end(end)


def _stopping() -> Problem:
    return Problem(503, "this server is being stopped; send it again", "stopping")


async def receive(request: Request, registry: Registry, user: str) -> Stored:
    """Receives, checks and stores a bundle for `user`.

    Raises:
        Problem: The request is malformed, too large or too slow.
        VerificationError: The bundle does not verify, or is not what was declared.
        AriError: It cannot be stored.
    """
    announced = await registry.look_up(_announced, request.headers, registry, user)
    async with registry.receiving(user):
        with metrics.UPLOADS.track_inprogress():
            pipe = Pipe()
            job = partial(_store, pipe, announced, registry, user)
            try:
                return await _while_feeding(_feed(request, pipe, announced.most, registry.config), job)
            finally:
                pipe.clear()


async def _while_feeding(feed: Coroutine[Any, Any, None], job: Callable[[], Stored]) -> Stored:
    """Runs `job` in a thread of its own; when it has come to an end, so has the feeding."""
    feeding = asyncio.create_task(feed)
    try:
        return await anyio.to_thread.run_sync(job, limiter=anyio.CapacityLimiter(1))
    except asyncio.CancelledError:  # by uvicorn, when its patience ends; the thread learns of it from the feed
        if task := asyncio.current_task():
            task.uncancel()
        raise _stopping() from None
    finally:
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding


# -- the thread's side -------------------------------------------------------------------------------------------


def _store(pipe: Pipe, announced: _Announced, registry: Registry, user: str) -> Stored:
    size, sha256 = announced.size, announced.sha256
    with registry.uploading():
        if registry.takes_streams and announced.boundary is None and sha256 is not None and size is not None:
            source = VerifyingSource(_Passed(pipe), size=size, archive_sha256=sha256, limits=registry.limits)
            return registry.add(source, lambda: source.finish().manifest, user, announced.offer)
        return _store_from_spool(pipe, announced, registry, user)


def _store_from_spool(pipe: Pipe, announced: _Announced, registry: Registry, user: str) -> Stored:
    with Staging(registry.workdir()) as staging, ExitStack() as stack:
        form = None
        if announced.boundary is not None:
            fields = {**_FIELDS, "manifest": registry.limits.manifest_bytes}
            form = multipart.Form(pipe, announced.boundary, fields, staging.path)
            stack.callback(form.close)
        report = _received(form or pipe, staging, registry)
        require_storable(report, announced.sha256)
        offer = announced.offer if form is None else _from_fields(form, report, registry)
        written = Written(report.archive_size or 0, report.archive_sha256 or "")
        source = PackedFile(staging.path / BUNDLE_NAME, written, report.manifest)
        return registry.add(source, lambda: report.manifest, user, offer)


def _received(stream: ReadStream, staging: Staging, registry: Registry) -> Report:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(BUNDLE_NAME, flags, 0o644, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, "receiving an upload") from error
    try:
        return check_archive(_Spool(stream, fd, int(registry.config.max_upload)), limits=registry.limits)
    finally:
        os.close(fd)


def _from_fields(form: multipart.Form, report: Report, registry: Registry) -> Offer:
    form.finish()
    with _comparing:
        if (manifest := form.field("manifest")) is not None:
            try:
                same = same_manifest(manifest, report.manifest.raw, registry.limits)
            except ArchiveRefusedError as error:
                error.enclose("the field 'manifest': ")
                raise
            del manifest
            if not same:
                raise ArchiveRefusedError(
                    "the field 'manifest' is not the manifest inside the bundle", hint="curate and publish again"
                )
    wish = (form.field("visibility") or b"").decode("utf-8", "replace")
    return _offer(wish, form.field("metadata") or b"")


class _Passed:
    """A `ByteSource` that can be read once, since nothing of it is kept."""

    name = "upload"
    size = None

    def __init__(self, pipe: Pipe) -> None:
        self._pipe: Pipe | None = pipe

    @contextmanager
    def open(self) -> Iterator[Pipe]:
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            raise Unavailable("the store wants an upload once more, which was not kept", hint="send it again")
        yield pipe


class _Spool:
    """A `ByteSource` that keeps what is read from it, and can be read once."""

    name = "upload"
    size = None

    def __init__(self, stream: ReadStream, fd: int, most: int) -> None:
        self._stream, self._fd, self._most = stream, fd, most
        self._count = 0

    @contextmanager
    def open(self) -> Iterator[_Spool]:
        yield self

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        if self._count > self._most:
            raise _too_large(self._most)
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise from_os_error(error, "receiving an upload") from error
        return data

    def interrupt(self) -> None:
        if isinstance(self._stream, Interruptible):
            self._stream.interrupt()


# -- bodies that are not read ------------------------------------------------------------------------------------


class CloseUnread:
    """ASGI middleware: an answer to a request whose body was not read to its end closes the connection.

    The answer is sent first; then a little of the body is thrown away, so that a client that sends before it reads
    gets to see the answer instead of a broken connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or not has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        read = closing = False

        async def watched() -> Message:
            nonlocal read
            message = await receive()
            read = read or not message.get("more_body")  # the end, or the client's going away
            return message

        async def answer(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                closing = not read
                if closing:
                    headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                    message = {**message, "headers": [*headers, (b"connection", b"close")]}
            elif closing and not message.get("more_body"):
                await send({**message, "more_body": True})
                with suppress(asyncio.CancelledError):  # the server is ending, and the answer is out
                    await _drain(watched, lambda: read)
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, watched, answer)


async def _drain(receive: Receive, read: Callable[[], bool]) -> None:
    drained = 0
    with anyio.move_on_after(_DRAIN_SECONDS), suppress(TimeoutError):
        while not read() and drained < _DRAIN_BYTES:
            with anyio.fail_after(_DRAIN_IDLE_SECONDS):
                drained += len((await receive()).get("body", b""))


async def read_json(request: Request, seconds: float) -> dict[str, Any]:
    """Reads a small JSON body; no body is an empty object.

    Raises:
        Problem: It is not sent as JSON (415), is none (400), too large (413) or too slow (408).
    """
    if not has_body(request.headers):
        return {}
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > JSON_MAX:
        raise Problem(413, f"a JSON body has at most {JSON_MAX} bytes")
    if content_type(request.headers) != "application/json":
        raise Problem(415, "send the body as application/json")
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > JSON_MAX:
                    raise Problem(413, f"a JSON body has at most {JSON_MAX} bytes")
    except TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} seconds") from None
    return json_object(bytes(body), "the body")
