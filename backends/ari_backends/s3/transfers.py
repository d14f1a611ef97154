"""Bundles on their way: to the store in parts that are sent side by side, from it in ranges fetched ahead.

What is held in memory is bounded, whatever the size: parts lie in buffers that are used again, in the source's own
file, or in a spool; ranges in a few buffers, or nowhere.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, cast

from ari_backends.s3.client import Body, Client
from ari_core.contract import CHUNK, ReadStream, Source
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
from ari_core.names import quoted
from ari_core.streams import in_thread

_PATIENCE_SECONDS: Final = 5.0

_PIECE: Final = CHUNK  # larger ones, in many threads, are memory that the system gets back late
_MOST_PARTS: Final = 10_000
_BUFFERS: Final = 64 * 1024 * 1024
_SPOOLED: Final = 4
"""Parts that one of many uploads sends at a time, out of files."""

_FIRST: Final = 16 * 1024 * 1024
_RANGE: Final = 8 * 1024 * 1024
RANGES_AHEAD: Final = 4
_RESUMES: Final = 5
_LONGEST_PAUSE: Final = 8.0

Part = bytearray | io.RawIOBase
"""What is sent in one request: held in memory, or in a file."""


class Sending:
    """A large object on its way: invisible until `commit`, gone if that is never reached."""

    def __init__(self, client: Client, key: str, source: Source, spool: Path | None) -> None:
        """Keeps what to send; `read` begins.

        Args:
            client: Of the bucket.
            key: Where it will be.
            source: The archive.
            spool: See `ari_core.contract.OpenContext`.
        """
        self._client, self._key, self._source, self._spool = client, key, source, spool
        self._metadata = {"sha256": source.archive_sha256}
        self._whole: Part | None = None  # of one part only
        self._upload: str | None = None
        self._parts: list[Future[str]] = []
        self._busy: dict[Future[str], Part] = {}
        self._free: list[Part] = []
        self._files = ExitStack()
        self._part_size = max(int(client.settings.part_size), -(-source.size // _MOST_PARTS))
        self._file = self._open_source()
        most = _SPOOLED if spool else max(1, _BUFFERS // self._part_size - 1)
        self._threads = client.settings.concurrency if self._file else min(client.settings.concurrency, most)
        self._count = 0

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

    def _open_source(self) -> int | None:
        """Opens the source's own file, if it has one: then nothing has to be held back."""
        path = self._source.local_path
        if path is None:
            return None
        with self._translated(f"reading {quoted(str(path))}"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files.callback(os.close, fd)
        return fd

    def _part(self) -> Part:
        if self._file is not None:
            return _Slice(self._file, self._count)
        if self._free:
            return self._free.pop()
        if self._spool is None:
            return bytearray(self._part_size)
        with self._holding_back():
            return self._files.enter_context(tempfile.TemporaryFile(dir=self._spool, buffering=0))

    def _fill(self, part: Part, stream: ReadStream) -> int:
        """Reads until the part is full or the stream ends, and cuts the part there; returns how many bytes."""
        count = 0
        while count < self._part_size and (data := stream.read(min(_PIECE, self._part_size - count))):
            if isinstance(part, bytearray):
                part[count : count + len(data)] = data
            elif not isinstance(part, _Slice):
                with self._holding_back():
                    part.seek(count)
                    write_all(part.fileno(), data)
            count += len(data)
        if isinstance(part, bytearray):
            del part[count:]
        else:
            part.truncate(count)
            part.seek(0)
        self._count += count
        return count

    def _holding_back(self) -> AbstractContextManager[None]:
        return self._translated(f"holding back an upload in {quoted(str(self._spool))}")

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise from_os_error(error, doing) from error

    def _send(self, data: Part) -> None:
        if self._upload is None:
            self._upload = self._client.create_upload(
                self._key, metadata=self._metadata, content_type="application/gzip"
            )
        upload, number = self._upload, len(self._parts) + 1
        while len(self._busy) >= self._threads:
            for sent in wait(self._busy, return_when=FIRST_COMPLETED).done:
                self._free.append(self._busy.pop(sent))
                sent.result()
        sending = in_thread("ari-s3", lambda: self._client.upload_part(self._key, upload, number, data))
        self._parts.append(sending)
        self._busy[sending] = data


class _Slice(io.RawIOBase):
    """A part of a file that others read elsewhere at the same time."""

    def __init__(self, fd: int, start: int) -> None:
        self._fd, self._start = fd, start
        self._length = self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Goes to a place in the part."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        return self._position

    def tell(self) -> int:
        """Returns the place in the part."""
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Says how long the part is; the file stays as it is."""
        self._length = self._position if size is None else size
        return self._length

    def readinto(self, buffer: Any, /) -> int:
        """Reads what is next."""
        left = max(0, self._length - self._position)
        with memoryview(buffer) as view:
            count = os.preadv(self._fd, [view[:left]], self._start + self._position) if left else 0
        self._position += count
        return count


class Download(AbstractContextManager["Download"]):
    """An object from an offset to its end, as it was at the first byte.

    Of a large one several ranges are fetched at once, ahead of the reader; each goes on where it was cut.

    Attributes:
        size: Bytes of the whole object.
    """

    def __init__(
        self, client: Client, key: str, offset: int, etag: str | None = None, *, ahead: int = RANGES_AHEAD
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
            self._ahead.append(in_thread("ari-s3", partial(self._fetch, self._next, length)))
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
