"""A bucket as a place for the stored layout.

Only ``meta.json`` needs conditions: it is created only where nothing is, and replaced only if it is still what was
read. A removal takes no condition in most stores, so it begins with a note in its place (`Bucket.remove`). Where a
store ignores conditions, a look just before the write does what it can; `OpenContext.turn` does the rest.
"""

# ruff: noqa: D102 - `ari_core.layout.Blobs` says what most methods take and do

from __future__ import annotations

import random
import secrets
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from ari_backends.s3.client import Body, Client, Head, Outcome
from ari_backends.s3.promises import TRIALS, Promises
from ari_core.contract import CHUNK, Leftover, ReadStream, Source
from ari_core.errors import (
    AriError,
    IntegrityError,
    NotFound,
    RangeError,
    RateLimited,
    Unavailable,
    from_os_error,
)
from ari_core.fs import write_all
from ari_core.layout import ARTIFACTS, META_MAX_BYTES, META_NAME, Blob, Blobs, is_id, key_of
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, quoted

NOTE_MOST: Final = 64
"""Bytes that a note has less of, and a ``meta.json`` more: so a listing tells them apart."""
NOTE_LASTS: Final = timedelta(minutes=5)
"""So long a note keeps others from storing; an older one was left by a crash."""
CLEARING_SECONDS: Final = 60.0
"""A deleter begins no request later than this behind its note: each then has minutes to end."""

_NOTE: Final = b'{"ari-note":"%s"}'
_WRITE: Final = "ari-write"
_TRIES: Final = 20
_PAUSE: Final = 0.05

_T = TypeVar("_T")
_PATIENCE_SECONDS: Final = 5.0

_PIECE: Final = 4 * CHUNK
_MOST_PARTS: Final = 10_000
_BUFFERS: Final = 64 * 1024 * 1024
_SPOOLED: Final = 2
"""Parts that one of many uploads sends at a time, out of files."""

_FIRST: Final = 16 * 1024 * 1024
_RANGE: Final = 8 * 1024 * 1024
_RANGES_AHEAD: Final = 4
_RESUMES: Final = 5
_LONGEST_PAUSE: Final = 8.0


Part = bytearray | FileIO
"""What is sent in one request: held in memory, or in a file without a name."""


class Bucket(Blobs):
    """A bucket and a prefix, for one operation: what this one deletes it remembers only here."""

    def __init__(
        self,
        client: Client,
        promises: Callable[[], Promises],
        turn: Callable[[str], AbstractContextManager[None]] | None = None,
        spool: Path | None = None,
    ) -> None:
        """Keeps how to reach it.

        Args:
            client: Of the bucket and prefix.
            promises: What the store is known to keep; asked for when something is to be changed.
            turn: See `ari_core.contract.OpenContext`.
            spool: See `ari_core.contract.OpenContext`.
        """
        self.client, self._promises, self._turn, self._spool = client, promises, turn, spool
        self._taken: dict[str, float] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, key: str, most: int = META_MAX_BYTES) -> Blob | None:
        found = self.client.read(self.client.key(key), most)
        if found is None or _is_note(found[0]):
            return None
        data, head = found
        return Blob(data, head.etag, head.modified)

    def size(self, key: str) -> int | None:
        head = self.client.head(self.client.key(key))
        return None if head is None else head.size

    @contextmanager
    def open(self, key: str, offset: int) -> Iterator[Download]:
        ahead = 0 if self._spool else _RANGES_AHEAD  # what is read ahead is held in memory
        with Download(self.client, self.client.key(key), offset, ahead=ahead) as download:
            yield download

    def ids(self, digits: str = "", after: str = "") -> Iterator[str]:
        above = self.client.key(ARTIFACTS, "")
        for folder in self.client.folders(above + digits, after=above + _behind(after) if after else ""):
            name = folder.removeprefix(above).removesuffix("/")
            if is_id(name) and name > after:
                yield name

    def listing(self, after: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields every id behind `after` with its objects by name, a thousand of them a request."""
        above = self.client.key(ARTIFACTS, "")
        last, objects = "", dict[str, Any]()
        for entry in self.client.keys(above, after=above + _behind(after) if after else ""):
            artifact, _, name = entry.key.removeprefix(above).partition("/")
            if artifact != last:
                if objects:
                    yield last, objects
                last, objects = artifact, {}
            if is_id(artifact) and "/" not in name:
                objects[name] = entry
        if objects:
            yield last, objects

    # -- changing ------------------------------------------------------------------------------------------------

    def guard(self, artifact: str, *, new: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002
        return self._turn(artifact) if self._turn else nullcontext()

    def write(self, key: str, data: bytes, *, replacing: Any) -> bool:
        whole = self.client.key(key)
        for _ in range(_TRIES):
            if self._swap(whole, data, replacing):
                return True
            if replacing is not None:
                return False
            head, is_note = self._look(whole)
            if head is not None:  # else it is gone since
                # An old note is overruled: whoever deleted here did not come to the end.
                return is_note and head.now - head.modified > NOTE_LASTS and self._swap(whole, data, head.etag)
        return False

    def remove(self, key: str, *, version: Any = None) -> bool:
        """Leaves a note in the object's place, which `clear` takes away when everything else is gone.

        Where there is nothing at all there is no note; where another deleter's is, the rest is left to that one.
        """
        artifact = key.split("/")[1]
        whole = self.client.key(key)
        for _ in range(_TRIES):
            head, is_note = self._look(whole)
            if version is not None and (head is None or head.etag != version):
                return False
            if head is None and not any(self.client.keys(self.client.key(ARTIFACTS, artifact, ""))):
                return True
            if head is not None and is_note and head.now - head.modified <= NOTE_LASTS:
                return True
            if self._take(artifact, None if head is None else head.etag):
                return True
        raise Unavailable(f"{self.client.where(whole)} is being changed all the time")

    def clear(self, artifact: str) -> None:
        since = self._taken.pop(artifact, None)
        if since is None:  # not ours to clear
            return
        for name in (BUNDLE_NAME, MANIFEST_NAME, META_NAME):
            if time.monotonic() - since > CLEARING_SECONDS:
                raise Unavailable(
                    f"deleting the artifact {artifact} took too long: it is absent, its bytes are not"
                )
            self.client.delete(self.client.key(key_of(artifact, name)))

    def _take(self, artifact: str, etag: str | None) -> bool:
        since = time.monotonic()
        note = _NOTE % secrets.token_hex(16).encode()
        if not self._swap(self.client.key(key_of(artifact, META_NAME)), note, etag):
            return False
        self._taken[artifact] = since
        return True

    def _look(self, whole: str) -> tuple[Head | None, bool]:
        head = self.client.head(whole)
        if head is None or head.size >= NOTE_MOST:
            return head, False
        found = self.client.read(whole, META_MAX_BYTES)
        return (None, False) if found is None else (found[1], _is_note(found[0]))

    def _swap(self, whole: str, data: bytes, etag: str | None) -> bool:
        """Writes if what is there has this ETag, or nothing is there; as surely as the store can."""
        promises = self._promises()
        if_absent = etag is None and promises.if_none_match
        if_match = None if etag is None else promises.spelled(etag)
        if not (if_absent or if_match):
            head = self.client.head(whole)
            if (head and head.etag) != etag:
                return False
        mine = secrets.token_hex(8)
        for _ in range(_TRIES):
            written = self.client.put(
                whole,
                data,
                if_absent=if_absent,
                if_match=if_match,
                metadata={_WRITE: mine},
                content_type="application/json",
            )
            if written.outcome is Outcome.DONE:
                return True
            if written.outcome is Outcome.FAILED:
                # The SDK tries again when an answer is lost: then our own first try is in the way.
                head = self.client.head(whole)
                return head is not None and head.metadata.get(_WRITE) == mine
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - nothing secret
        raise Unavailable(f"{self.client.where(whole)} is being changed all the time")

    @contextmanager
    def receive(self, artifact: str, source: Source) -> Iterator[Callable[[], None]]:
        key = self.client.key(key_of(artifact, BUNDLE_NAME))
        with _Sending(self.client, key, source, self._spool) as sending:
            with source.open() as stream:
                sending.read(stream)
            manifest = source.manifest

            def commit() -> None:
                sending.commit()
                self.client.put(self.client.key(key_of(artifact, MANIFEST_NAME)), manifest)

            yield commit

    # -- what is left over ---------------------------------------------------------------------------------------

    def sweep(self, older_than: timedelta, *, dry_run: bool) -> Iterator[Leftover]:
        """See `ari_core.contract.SupportsSweep`."""
        before = self._now() - older_than
        yield from self._sweep_uploads(before, dry_run=dry_run)
        yield from self._sweep_objects(before, dry_run=dry_run)
        for entry in self.client.keys(self.client.key(TRIALS)):
            if entry.modified < before:
                if not dry_run:
                    self.client.delete(entry.key)
                yield Leftover("object of a trial", entry.key, entry.size, entry.modified)

    def _sweep_uploads(self, before: datetime, *, dry_run: bool) -> Iterator[Leftover]:
        for upload in self.client.uploads(self.client.key(ARTIFACTS, "")):
            if upload.started < before:
                if not dry_run:
                    self.client.abort(upload.key, upload.id)
                yield Leftover("unfinished upload", upload.key, None, upload.started)

    def _sweep_objects(self, before: datetime, *, dry_run: bool) -> Iterator[Leftover]:
        for artifact, objects in self.listing():
            meta = objects.get(META_NAME)
            if meta and meta.size >= NOTE_MOST:
                continue
            since = max(entry.modified for entry in objects.values())
            if since < before and (dry_run or self._swept(artifact)):
                for name, entry in objects.items():
                    what = "note of a deletion" if name == META_NAME else "object without an artifact"
                    yield Leftover(what, entry.key, entry.size, since)

    def _swept(self, artifact: str) -> bool:
        """Deletes what belongs to no artifact, unless one is stored there meanwhile."""
        key = self.client.key(key_of(artifact, META_NAME))
        with self.guard(artifact):
            head, is_note = self._look(key)
            if head is not None and not is_note:
                return False
            if not self._take(artifact, None if head is None else head.etag):
                return False
            self.clear(artifact)
        return True

    def _now(self) -> datetime:
        """Returns the store's own time: those of what is in it are compared with it."""
        return self.client.now()


class _Sending:
    """A large object on its way: invisible until `commit`, gone if that is never reached."""

    def __init__(self, client: Client, key: str, source: Source, spool: Path | None) -> None:
        self._client, self._key, self._source, self._spool = client, key, source, spool
        self._part_size = max(int(client.settings.part_size), -(-source.size // _MOST_PARTS))
        most = _SPOOLED if spool else _BUFFERS // self._part_size - 1
        self._threads = max(1, min(client.settings.concurrency, most))
        self._metadata = {"sha256": source.archive_sha256}
        self._whole: Part | None = None  # of one part only
        self._upload: str | None = None
        self._parts: list[Future[str]] = []
        self._busy: dict[Future[str], Part] = {}
        self._free: list[Part] = []
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait(self._busy, timeout=_PATIENCE_SECONDS)  # a part that comes after the end of its upload may stay
        if self._upload:
            with suppress(AriError):  # `sweep` finds it
                self._client.abort(self._key, self._upload)
        self._files.close()

    def read(self, stream: ReadStream) -> None:
        """Sends parts while it reads on, to the stream's clean end."""
        while True:
            part = self._part()
            count = self._fill(part, stream)
            at_end = count < self._part_size
            if at_end and self._upload is None:
                self._whole = part
                return
            if count:
                self._send(part)
            if at_end:
                break
        for sent in self._parts:
            sent.result()

    def commit(self) -> None:
        """Lets it appear.

        Raises:
            Unavailable: It did not arrive whole.
        """
        if self._upload is None:
            self._client.put(
                self._key,
                b"" if self._whole is None else self._whole,
                metadata=self._metadata,
                content_type="application/gzip",
                sha256=self._source.archive_sha256,
                bulk=True,
            )
            return
        # Where the answer of a first try was lost, the upload is not known any more: the size tells.
        with suppress(NotFound):
            self._client.complete(self._key, self._upload, [part.result() for part in self._parts])
        head = self._client.head(self._key)
        if head is None or head.size != self._source.size:
            raise Unavailable(f"{self._client.where(self._key)} did not arrive whole")
        self._upload = None

    def _part(self) -> Part:
        if self._free:
            return self._free.pop()
        if self._spool is None:
            return bytearray(self._part_size)
        with self._spooling():
            return self._files.enter_context(tempfile.TemporaryFile(dir=self._spool, buffering=0))

    def _fill(self, part: Part, stream: ReadStream) -> int:
        """Reads until the part is full or the stream ends, and cuts the part there; returns how many bytes."""
        count = 0
        if isinstance(part, bytearray):
            with memoryview(part) as view:
                while count < self._part_size and (data := stream.read(min(_PIECE, self._part_size - count))):
                    view[count : count + len(data)] = data
                    count += len(data)
            del part[count:]
            return count
        part.seek(0)
        while count < self._part_size and (data := stream.read(min(_PIECE, self._part_size - count))):
            with self._spooling():
                write_all(part.fileno(), data)
            count += len(data)
        part.truncate(count)
        part.seek(0)
        return count

    @contextmanager
    def _spooling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise from_os_error(error, f"holding back an upload in {quoted(str(self._spool))}") from error

    def _send(self, data: Part) -> None:
        if self._upload is None:
            self._upload = self._client.create_upload(
                self._key, metadata=self._metadata, content_type="application/gzip"
            )
        while len(self._busy) >= self._threads:
            for part in wait(self._busy, return_when=FIRST_COMPLETED).done:
                self._free.append(self._busy.pop(part))
                part.result()
        part = _in_thread(self._client.upload_part, self._key, self._upload, len(self._parts) + 1, data)
        self._parts.append(part)
        self._busy[part] = data


class Download(AbstractContextManager["Download"]):
    """An object from an offset to its end, as it was at the first byte.

    Of a large one several ranges are fetched at once, ahead of the reader; each goes on where it was cut.

    Attributes:
        size: Bytes of the whole object.
    """

    def __init__(
        self, client: Client, key: str, offset: int, etag: str | None = None, *, ahead: int = _RANGES_AHEAD
    ) -> None:
        """Keeps what to read; entering it sends the first request.

        Args:
            client: Of the bucket.
            key: Of the object.
            offset: Where to begin.
            etag: What it must be; None: what it is now.
            ahead: How many ranges to fetch ahead, each held in memory.
        """
        self._client, self._key, self._offset = client, key, offset
        self._pinned, self._etag, self._most_ahead = etag is not None, etag, ahead
        self._lock, self._bodies, self._left = threading.Lock(), set[Body](), False
        self._ahead: deque[Future[memoryview]] = deque()
        self._buffers: deque[bytearray] = deque()  # used again and again: the system gives memory back too late
        self._pieces: Iterator[bytes | memoryview] = iter(())
        self._ready = memoryview(b"")

    def __enter__(self) -> Self:
        try:
            body = self._get(self._offset, _FIRST if self._most_ahead else None)
        except RangeError:
            head = self._client.head(self._key)
            if head is None or head.size != self._offset:
                raise
            self.size = head.size
            return self
        self.size, self._etag = body.head.size, body.head.etag
        first = body.length  # all the rest where the store knows no ranges
        self._next = self._offset + first
        self._pieces = self._read(body, first)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            bodies = list(self._bodies)
        for body in bodies:
            body.interrupt()
        wait(self._ahead, timeout=_PATIENCE_SECONDS)
        for body in bodies:
            body.close()

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, b"" only at the end."""
        if size and not self._ready:
            self._ready = memoryview(next(self._pieces, b""))
        data, self._ready = self._ready[:size], self._ready[size:]
        return bytes(data)

    def _read(self, body: Body, length: int) -> Iterator[bytes | memoryview]:
        self._fetch_ahead()
        yield from self._chunks(self._offset, length, body)
        while self._ahead:
            data = self._ahead.popleft().result()
            self._fetch_ahead()
            yield data
            self._buffers.append(cast("bytearray", data.obj))

    def _fetch_ahead(self) -> None:
        while self._next < self.size and len(self._ahead) < self._most_ahead:
            length = min(_RANGE, self.size - self._next)
            self._ahead.append(_in_thread(self._fetch, self._next, length))
            self._next += length

    def _fetch(self, start: int, length: int) -> memoryview:
        try:
            buffer = self._buffers.popleft()
        except IndexError:
            buffer = bytearray(_RANGE)
        data, count = memoryview(buffer)[:length], 0
        for chunk in self._chunks(start, length, self._get(start, length)):
            data[count : count + len(chunk)] = chunk
            count += len(chunk)
        return data

    def _chunks(self, start: int, length: int, body: Body) -> Iterator[bytes]:
        """Yields exactly `length` bytes from `start`; where the body breaks off, another one goes on."""
        end, tries = start + length, 0
        while True:
            try:
                while start < end and (chunk := body.read(min(_PIECE, end - start))):
                    start += len(chunk)
                    yield chunk
                if start >= end:
                    return
                cut: AriError = Unavailable(f"{self._client.where(self._key)}: the answer ended too early")
            except (Unavailable, RateLimited) as error:
                cut = error
            finally:
                self._done(body)
            tries += 1
            if tries > _RESUMES or self._left:
                raise cut
            time.sleep(min(2.0**tries / 8, _LONGEST_PAUSE))
            body = self._get(start, end - start)

    def _get(self, start: int, length: int | None) -> Body:
        try:
            body = self._client.get(self._key, offset=start, length=length, if_match=self._etag)
        except IntegrityError as error:
            what = f"{self._client.where(self._key)} was changed while it was read"
            if self._pinned:
                raise IntegrityError(what, hint="resolve the ref again") from error
            raise Unavailable(what) from error  # by the same bytes: a digest is its name
        with self._lock:
            self._bodies.add(body)
            if self._left:
                body.interrupt()
        return body

    def _done(self, body: Body) -> None:
        with self._lock:
            self._bodies.discard(body)
        body.close()


def _in_thread(call: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Calls in a thread that keeps nobody from ending, as a pool's would when a store does not answer."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="ari-s3", daemon=True).start()
    return future


def _is_note(data: bytes) -> bool:
    return len(data) < NOTE_MOST and data.startswith(_NOTE.partition(b"%")[0])


def _behind(artifact: str) -> str:
    """What sorts behind all keys of an artifact, and before those of the next id."""
    return f"{artifact}0"
