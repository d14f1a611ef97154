"""Reads one archive from a URL: ``https://…``, or ``http://…`` on this very machine. It writes nothing.

A cut connection is resumed inside one `open`, and only while the server proves that it still sends the same object
(RFC 9110, sections 8.8.1, 13.1.5 and 14.4: strong ETag, If-Range, Content-Range). Core hashes everything anyway.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpx2
from pydantic import ByteSize, Field

from ari_backends._http import Answer, Fetcher, HttpSettings, parse_url, shown
from ari_core.contract import Artifact, Backend, Capabilities, Locator, OpenContext, ReadStream, Visibility
from ari_core.digests import is_sha256
from ari_core.errors import BackendError, IntegrityError, RangeError, Unavailable

RESUMES: Final = 5
"""Reconnections in a row. The count starts again after `REFILL` bytes, so a long download survives many cuts."""
REFILL: Final = 16 * 1024 * 1024
LONGEST_PAUSE: Final = 8.0
"""Seconds before a reconnection, at most."""

FRESH: Final = 2.0
"""Seconds during which a stat is answered from memory: one command asks several times in a row."""

# Presigned URLs are signed for GET alone and answer HEAD with 400 or 403; some servers do not know HEAD at all.
_HEAD_UNWELCOME: Final = {400, 403, 405, 501}
_REMEMBERED: Final = 64


class HttpsSettings(HttpSettings):
    """Settings of `Https`."""

    max_download: ByteSize = Field(
        ByteSize(50 * 1024**3), gt=0, description="refuse more bytes than this ('500MB', '2GiB'; default 50 GiB)"
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a stat saw; a download has to find the same.

    Attributes:
        artifact: What was made of it.
        place: URL that answered, without query: validators of two places cannot be compared.
        etag: Strong ETag, if there was one.
        when: On the monotonic clock.
    """

    artifact: Artifact
    place: str
    etag: str | None
    when: float


class Https(Backend):
    """Read-only backend for a single archive behind a URL, which is also its locator."""

    name = "https"
    capabilities = Capabilities(ranges=True)
    Settings = HttpsSettings
    settings: HttpsSettings

    def __init__(self, settings: HttpsSettings, context: OpenContext | None = None) -> None:
        super().__init__(settings, context)
        self._fetcher = Fetcher(settings)
        self._lock = threading.Lock()
        self._seen: OrderedDict[Locator, _Seen] = OrderedDict()
        self._sleep: Callable[[float], None] = time.sleep
        self._clock: Callable[[], float] = time.monotonic

    def _resolve(self, ref: str) -> Locator:
        return Locator(str(parse_url(ref)))

    def _ref(self, locator: Locator) -> str:
        return locator

    def _probe(self) -> Capabilities:
        self._fetcher.client()
        return self.capabilities

    def _close(self) -> None:
        self._fetcher.close()

    def _translate(self, error: Exception) -> BackendError | None:
        return self._fetcher.translate(error)

    def _stat(self, locator: Locator) -> Artifact:
        seen = self._last_seen(locator)
        if seen and self._clock() - seen.when < FRESH:
            return seen.artifact
        url = parse_url(locator)
        with self._fetcher.answer("HEAD", url) as head:
            if head.status not in _HEAD_UNWELCOME:
                return self._note(locator, head)
        with self._fetcher.answer("GET", url) as got:
            return self._note(locator, got)

    def _note(self, locator: Locator, answer: Answer) -> Artifact:
        """Reads what an answer says about the artifact, and remembers it."""
        answer.require({HTTPStatus.OK})
        digest = answer.header("x-ari-sha256")
        level = answer.header("x-ari-visibility")
        artifact = Artifact(
            locator,
            size=answer.length or None,  # some servers say 0 to every HEAD; an archive never is that short
            archive_sha256=digest if is_sha256(digest) else None,
            visibility=Visibility(level) if level in set(Visibility) else None,
        )
        with self._lock:
            self._seen[locator] = _Seen(artifact, answer.place, answer.etag, self._clock())
            self._seen.move_to_end(locator)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return artifact

    def _last_seen(self, locator: Locator) -> _Seen | None:
        with self._lock:
            return self._seen.get(locator)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        download = _Download(
            self._fetcher,
            parse_url(locator),
            offset,
            self._last_seen(locator),
            int(self.settings.max_download),
            self._sleep,
        )
        with closing(download):
            download.start()
            yield download


class _Download:
    """The bytes of one archive from an offset to its end, across cut connections."""

    def __init__(
        self,
        fetcher: Fetcher,
        url: httpx2.URL,
        offset: int,
        seen: _Seen | None,
        limit: int,
        sleep: Callable[[float], None],
    ) -> None:
        self._fetcher, self._url, self._seen, self._limit, self._sleep = fetcher, url, seen, limit, sleep
        self._where = shown(url)
        self._offset = self._at = offset  # `_at`: position of the next wanted byte
        self._skip = 0  # bytes the server sends before that one
        self._end = seen.artifact.size if seen else None
        self._etag: str | None = None  # of the object the first answer bound us to
        self._takes_ranges = self._restarted = False
        self._resumes = self._since_cut = 0
        self._ready = memoryview(b"")
        self._chunks: Iterator[bytes] = iter(())
        self._connection = ExitStack()

    def start(self) -> None:
        """Sends the first request, unless there is nothing to read."""
        if self._at != self._end:
            self._connect()

    def close(self) -> None:
        """Lets go of the connection."""
        self._connection.close()

    def read(self, size: int, /) -> bytes:
        """Returns `size` bytes, fewer only before the end, b"" only at the end."""
        parts = []
        while size and (self._ready or self._receive()):
            part, self._ready = self._ready[:size], self._ready[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _receive(self) -> bool:
        """Waits for more bytes; False at the end."""
        while not self._ready:
            try:
                chunk = next(self._chunks, None)
            except httpx2.TransportError as error:
                if self._at == self._end and not self._skip:
                    return False  # only the protocol's own end was lost
                self._resume(error)
                continue
            if chunk is not None:
                self._ready = self._wanted(memoryview(chunk))
            elif not self._skip and self._end in {None, self._at}:
                return False
            elif self._end is None and self._at == self._offset:
                raise RangeError(f"{self._where}: the offset is past the end")
            else:
                self._resume(None)
        return True

    def _wanted(self, chunk: memoryview) -> memoryview:
        skipped = min(self._skip, len(chunk))
        self._skip -= skipped
        chunk = chunk[skipped:]
        self._at += len(chunk)
        self._since_cut += len(chunk)
        if self._since_cut >= REFILL:
            self._resumes = 0
        if self._end is not None and self._at > self._end:
            raise IntegrityError(f"{self._where}: the server sends more than the {self._end} bytes it announced")
        self._check_limit(self._at)
        return chunk

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise IntegrityError(
                f"{self._where}: refused: more than max_download ({self._limit} bytes)",
                hint="raise it with --max-download, -o max_download=… or ARI_HTTPS_MAX_DOWNLOAD",
            )

    def _connect(self) -> None:
        """Asks for everything from `_at` on."""
        self._connection.close()
        self._skip = 0
        answer = self._connection.enter_context(self._fetcher.answer("GET", self._url, self._conditions))
        self._where = answer.where
        if self._end is None and self._at and answer.unsatisfied_size == self._at:
            self._chunks, self._end = iter(()), self._at  # there is nothing behind what arrived
        else:
            self._accept(answer)
            self._chunks = answer.chunks

    def _conditions(self, place: str) -> Mapping[str, str]:
        if not self._at:
            return {}
        etag = self._etag or self._etag_seen(place)
        return {"Range": f"bytes={self._at}-"} | ({"If-Range": etag} if etag else {})

    def _etag_seen(self, place: str) -> str | None:
        return self._seen.etag if self._seen and self._seen.place == place else None

    def _accept(self, answer: Answer) -> None:
        """Checks that the answer continues the very object this download is bound to, or binds it to this one."""
        if self._etag and answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._changed()
        partial = answer.status == HTTPStatus.PARTIAL_CONTENT
        answer.require({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT} if self._at else {HTTPStatus.OK})
        total = answer.length
        if partial:
            total = answer.total_if_rest_from(self._at)
            if total is None:
                raise IntegrityError(
                    f"{self._where}: refused: the server sends another range than it was asked for"
                )
        changed = total is not None and self._end is not None and total != self._end
        if self._etag:
            changed |= answer.etag != self._etag
        elif answer.etag:
            changed |= (self._etag_seen(answer.place) or answer.etag) != answer.etag
        if changed:
            raise self._changed()
        if not partial:
            self._skip = self._at
            self._restarted = bool(self._at and self._etag)
        self._etag = answer.etag
        self._takes_ranges |= answer.takes_ranges
        if total is not None:
            self._end = total
            self._check_limit(total)

    def _changed(self) -> IntegrityError:
        return IntegrityError(
            f"{self._where}: the file changed on the server while it was being read",
            hint="run the same command again",
        )

    def _resume(self, why: Exception | None) -> None:
        """Connects again behind what arrived, a bounded number of times."""
        while True:
            if not (self._etag and self._takes_ranges) or self._restarted or self._resumes >= RESUMES:
                of = "" if self._end is None else f" of {self._end}"
                raise Unavailable(f"{self._where}: the connection was cut after {self._at}{of} bytes") from why
            self._sleep(min(2.0**self._resumes / 2, LONGEST_PAUSE))
            self._resumes += 1
            self._since_cut = 0
            try:
                self._connect()
            except (httpx2.TransportError, Unavailable) as error:
                ours = error if isinstance(error, BackendError) else self._fetcher.translate(error)
                if ours is None or not ours.retryable:
                    raise
                why = error
            else:
                return
