"""HTTP the careful way, for backends that read from servers they have no reason to trust.

- Nothing is sent that was not asked for: no cookies, no compression, and a token only to the origin (scheme, host,
  port) a request starts at, never again once a redirect has led away from it.
- Redirects are followed by hand: at most three, https only, never in a circle.
- No message shows a query string (presigned URLs carry their key there), a token or a user name.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, ClassVar, Final

import httpx2
from pydantic import BaseModel, ByteSize, ConfigDict, Field, FilePath, SecretStr, field_validator

from ari_backends._claims import is_loopback
from ari_backends._tls import handshake_problem
from ari_core.contract import CHUNK, Artifact, Backend, Locator, OpenContext, ReadStream, Source, Visibility
from ari_core.digests import is_sha256
from ari_core.errors import (
    AccessDenied,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    RangeError,
    RateLimited,
    Unavailable,
    Unsupported,
    escape,
)
from ari_core.streams import deadline

MAX_REDIRECTS: Final = 3

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
_READING: Final = {"GET", "HEAD"}
_LONGEST_REASON: Final = 64 * 1024
_SLOWEST: Final = 10e3
"""Bytes a second of a short answer, beyond the deadline."""

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_LONGEST_SHOWN: Final = 200
_NOT_HTTPS: Final = "is not https"
_PLAIN: Final = "check the address and its port; http:// goes to this very machine only"
_HIGHEST_PORT: Final = 65535
_PROXY_FORM: Final = "http://HOST:PORT or https://HOST:PORT"
TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?")
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]*"')
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED: Final = re.compile(r"bytes \*/([0-9]{1,18})")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JSON: Final = re.compile(r"application/(problem\+)?json\s*(;|$)", re.IGNORECASE)
_ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")
_PORTS: Final = {"http": 80, "https": 443}


class HttpSettings(BaseModel):
    """Settings of every backend that speaks HTTP.

    Attributes:
        prefix: What the environment variables of these settings start with, for messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    prefix: ClassVar[str] = "ARI_HTTPS_"

    token: SecretStr | None = Field(None, description="bearer token, sent to the ref's own host only")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the authorities to trust instead of the system's"
    )
    connect_timeout: float = Field(15.0, gt=0, le=86400, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, le=86400, description="seconds to wait for the next bytes")
    proxy: SecretStr | None = Field(
        None, description="proxy URL for https, instead of the environment's HTTPS_PROXY, ALL_PROXY, NO_PROXY"
    )
    max_download: ByteSize = Field(
        ByteSize(50 * 1024**3), gt=0, description="refuse more bytes than this ('500MB', '2GiB'; default 50 GiB)"
    )

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not TOKEN.fullmatch(token.get_secret_value()):
            raise ValueError("a token is one word of printable ASCII characters")
        return token

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, proxy: SecretStr | None) -> SecretStr | None:
        if proxy is not None:
            try:
                url = httpx2.URL(proxy.get_secret_value())
            except httpx2.InvalidURL:
                raise ValueError(f"a proxy is {_PROXY_FORM}") from None
            if url.scheme not in {"http", "https"} or _nowhere(url):
                raise ValueError(f"a proxy is {_PROXY_FORM}")
        return proxy


@dataclass(frozen=True, slots=True)
class Credentials:
    """What goes with a request, and what to tell a user whom the server refuses.

    Attributes:
        token: Sent to the origin the request starts at.
        hint: Where to look, without the token.
    """

    token: SecretStr | None
    hint: str


class Fetcher:
    """Sends requests under the rules above. One client for all threads, made at first use."""

    def __init__(
        self,
        settings: HttpSettings,
        credentials: Callable[[httpx2.URL], Credentials],
        refusal: Callable[[Answer], BackendError],
    ) -> None:
        """Keeps the settings.

        Args:
            settings: Trust, time limits, proxy.
            credentials: Returns what goes to the origin that a request starts at.
            refusal: Says what an unwelcome answer means.
        """
        self._settings, self._credentials, self._refusal = settings, credentials, refusal
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None

    def client(self) -> httpx2.Client:
        """Returns the client.

        Raises:
            InvalidConfiguration: The authorities or the proxy cannot be used.
        """
        with self._lock:
            if self._client is None:
                self._client = _new_client(self._settings)
            return self._client

    def close(self) -> None:
        """Closes all connections; may be called twice."""
        with self._lock:
            client, self._client = self._client, None
        if client:
            client.close()

    @contextmanager
    def answer(
        self,
        method: str,
        start: httpx2.URL,
        extra: Callable[[str], Mapping[str, str]] = lambda _place: {},
        content: bytes | Iterable[bytes] | None = None,
        credentials: Credentials | None = None,
        wait: float = 0.0,
    ) -> Iterator[Answer]:
        """Sends a request, follows redirects, and closes the answer in the end. Any other status is returned.

        Args:
            method: As in HTTP; redirects are followed for GET and HEAD alone.
            start: Where to begin; the only origin that sees the token.
            extra: Header fields for one hop, by its `place`.
            content: The body. Of one whose size is not in `extra`, the server learns it at the end.
            credentials: Instead of those for `start`.
            wait: Seconds to wait for the answer, if that is longer than the settings say.

        Raises:
            IntegrityError: A redirect breaks the rules above.
            httpx2.TransportError: See `translate`.
        """
        client = self.client()
        credentials = credentials or self._credentials(start)
        url = start
        seen = [url]
        trusted = True
        while True:
            headers = dict(extra(place(url)))
            if trusted and credentials.token:
                headers["Authorization"] = f"Bearer {credentials.token.get_secret_value()}"
            # The query goes to the wire only: the library would put it into its log and its errors.
            request = client.build_request(
                method,
                url.copy_with(query=None),
                headers=headers,
                content=content,
                timeout=_timeout(self._settings, wait),
                extensions={"target": url.raw_path, "trace": _Peer()},
            )
            with closing(client.send(request, stream=True)) as response:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None or method not in _READING:
                    yield Answer(response, start, url, credentials, self._refusal)
                    return
            url = _next_hop(start, url, location)
            trusted = trusted and url.origin == start.origin
            if url in seen:
                raise IntegrityError(f"{shown(start)}: refused: the server redirects in a circle")
            if len(seen) > MAX_REDIRECTS:
                raise IntegrityError(f"{shown(start)}: refused: more than {MAX_REDIRECTS} redirects")
            seen.append(url)

    def translate(self, error: Exception) -> BackendError | None:
        """Turns the client library's exception into ours; None if it is not one."""
        if not isinstance(error, httpx2.TransportError):
            return None
        where, waited = "the server", self._settings.read_timeout
        with suppress(RuntimeError):  # it knows no request
            if isinstance(error, httpx2.ReadTimeout):
                waited = error.request.extensions["timeout"]["read"]
            where = _origin(error.request.url) + _proxy_of(error.request)
        trust = f"-o ca_file=FILE.pem or {self._settings.prefix}CA_FILE"
        if problem := handshake_problem(_causes(error), trust=trust, plain=_PLAIN):
            return InvalidConfiguration(f"{where}: {problem[0]}", hint=problem[1])
        if isinstance(error, httpx2.ConnectTimeout):
            return Unavailable(f"{where}: no connection within {self._settings.connect_timeout:g} s")
        if isinstance(error, httpx2.TimeoutException):
            return Unavailable(f"{where}: nothing received for {waited:g} s")
        if isinstance(error, httpx2.ProxyError):
            return Unavailable(f"{where}: the proxy refuses: {escape(str(error))}")
        what = escape(_ERRNO.sub("", str(error), count=1)) or type(error).__name__
        again = "check the address, and whether the server runs; else run the same command again later"
        return Unavailable(f"{where}: {what}", hint=again if isinstance(error, httpx2.ConnectError) else None)


class _Peer:
    """Notes where a connection really goes: only the library knows, and tells its ``trace`` extension."""

    def __init__(self) -> None:
        self.place: tuple[str, int] | None = None

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.place = info["host"], info["port"]


class Answer:
    """A response, as far as it matters here."""

    def __init__(
        self,
        response: httpx2.Response,
        start: httpx2.URL,
        url: httpx2.URL,
        credentials: Credentials,
        refusal: Callable[[Answer], BackendError],
    ) -> None:
        self._response, self._refusal = response, refusal
        self.start, self.credentials = start, credentials
        self.method, self.status = response.request.method, response.status_code
        self.place = place(url)
        self.where = shown(start)
        self.elsewhere = url.origin != start.origin
        if self.elsewhere:
            self.where += f" (redirected to {_origin(url)})"
        self.chunks = response.iter_raw()

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    @property
    def etag(self) -> str | None:
        etag = self.header("etag")
        return etag if etag and _STRONG_ETAG.fullmatch(etag) else None

    @property
    def length(self) -> int | None:
        length = self.header("content-length")
        return int(length) if length and _NUMBER.fullmatch(length) else None

    @property
    def takes_ranges(self) -> bool:
        return self.status == HTTPStatus.PARTIAL_CONTENT or self.header("accept-ranges") == "bytes"

    @property
    def unsatisfied_size(self) -> int | None:
        """Size of the object, if this is a 416 that names it."""
        if self.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        match = _UNSATISFIED.fullmatch(self.header("content-range") or "")
        return int(match[1]) if match else None

    def total_if_rest_from(self, first: int) -> int | None:
        """Size of the object, if this answer is exactly its bytes from `first` to the last one."""
        match = _CONTENT_RANGE.fullmatch(self.header("content-range") or "")
        if not match or int(match[1]) != first or int(match[2]) + 1 != int(match[3]):
            return None
        return int(match[3])

    def require(self, statuses: set[HTTPStatus]) -> None:
        """Raises what the status means, unless it is one of `statuses` and the body is unencoded."""
        if self.status not in statuses:
            raise self._refusal(self)
        encoding = self.header("content-encoding")
        if encoding not in {None, "", "identity"}:
            raise IntegrityError(
                f"{self.where}: refused: the server sends it in another encoding ('{escape(str(encoding))}')",
                hint="download it by other means and verify the file",
            )

    def body(self, most: int) -> bytes:
        """Returns the whole body.

        Raises:
            IntegrityError: It is longer than `most` bytes.
            Unavailable: It comes drop by drop: each in time, but never the last.
        """
        parts, size = [], 0
        until = time.monotonic() + deadline()
        for chunk in self.chunks:
            size += len(chunk)
            if time.monotonic() > until + size / _SLOWEST:
                raise Unavailable(f"{self.where}: the answer comes too slowly to wait for its end")
            if size > most:
                raise IntegrityError(f"{self.where}: refused: the answer is longer than {most} bytes")
            parts.append(chunk)
        return b"".join(parts)

    @property
    def is_json(self) -> bool:
        """Says whether a program wrote this for a program, and not a proxy a page for people."""
        return bool(_JSON.match(self.header("content-type") or ""))

    @property
    def request_id(self) -> str:
        """What the server's log calls this request, as `` (X-Request-ID …)``; empty if it does not tell."""
        told = self.header("x-request-id") or ""
        return f" (X-Request-ID {told})" if _REQUEST_ID.fullmatch(told) else ""

    def reason(self) -> str:
        """Returns the server's own sentence (RFC 9457), as `` : it …``; empty if there is none."""
        detail = None
        if self.is_json:
            with suppress(ValueError, IntegrityError, Unavailable, RecursionError, httpx2.TransportError):
                answer = json.loads(self.body(_LONGEST_REASON))
                detail = answer.get("detail") if isinstance(answer, dict) else None
        if not isinstance(detail, str) or not detail:
            return ""
        if self.credentials.token:
            detail = detail.replace(self.credentials.token.get_secret_value(), "***")
        return ": " + escape(detail[:_LONGEST_SHOWN])


def refusal(answer: Answer) -> BackendError:
    """Says what an unwelcome status of any web server means."""
    status, where = answer.status, answer.where
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown"
    says = f"{where}: the server answers {status} ({phrase})"
    match status:
        case HTTPStatus.NOT_FOUND:
            return NotFound(f"{where}: there is nothing at this URL")
        case HTTPStatus.GONE:
            return NotFound(f"{where}: it was deleted", hint="look for another copy of the same bundle")
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            if answer.elsewhere:  # which has seen no token: the address itself was to open it
                return AccessDenied(
                    says,
                    hint="the address that the first server gave is not taken there: run the same command again; "
                    "if that does not help, a clock is wrong, or its operator has to be told",
                )
            # HEAD brings no sentence.
            refused = status == HTTPStatus.UNAUTHORIZED and answer.credentials.token
            unsaid = ": the token is not accepted" if refused else ""
            return AccessDenied(says + (answer.reason() or unsaid), hint=answer.credentials.hint)
        case HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return AccessDenied(says, hint="check the credentials for the proxy")
        case HTTPStatus.TOO_MANY_REQUESTS:
            return RateLimited(says, retry_after=retry_after(answer.header("retry-after")))
        case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return RangeError(f"{where}: the offset is past the end")
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.TOO_EARLY:
            return Unavailable(says)
        case HTTPStatus.PARTIAL_CONTENT:
            return IntegrityError(f"{where}: refused: the server sends a part where it was asked for everything")
    kind = Unavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Unsupported
    return kind(says + answer.reason() + answer.request_id)


@dataclass(frozen=True, slots=True)
class Seen:
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


class HttpReader(Backend):
    """What backends share whose locators are URLs of one archive each: stat, and a download that survives cuts.

    A cut connection is resumed inside one `open`, and only while the server proves that it still sends the same
    object (RFC 9110, sections 8.8.1, 13.1.5 and 14.4: strong ETag, If-Range, Content-Range). Core hashes all of it
    anyway.

    Attributes:
        fresh: Seconds during which a stat is answered from memory.
    """

    fresh: ClassVar[float] = FRESH
    settings: HttpSettings

    def __init__(self, settings: HttpSettings, context: OpenContext | None = None) -> None:
        super().__init__(settings, context)
        self._fetcher = Fetcher(settings, self._credentials, self._refusal)
        self._lock = threading.Lock()
        self._seen: OrderedDict[Locator, Seen] = OrderedDict()
        self._sleep: Callable[[float], None] = time.sleep
        self._clock: Callable[[], float] = time.monotonic

    def _credentials(self, url: httpx2.URL) -> Credentials:  # noqa: ARG002 - for those who have several
        """Returns what goes to the origin of `url`."""
        return Credentials(
            self.settings.token, f"check the token: --token-file FILE or {self.settings.prefix}TOKEN"
        )

    def _refusal(self, answer: Answer) -> BackendError:
        """Says what an unwelcome answer means."""
        return refusal(answer)

    def _close(self) -> None:
        self._fetcher.close()

    def _translate(self, error: Exception) -> BackendError | None:
        return self._fetcher.translate(error)

    def _stat(self, locator: Locator) -> Artifact:
        seen = self._last_seen(locator)
        if seen and self._clock() - seen.when < self.fresh:
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
            self._seen[locator] = Seen(artifact, answer.place, answer.etag, self._clock())
            self._seen.move_to_end(locator)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return artifact

    def _last_seen(self, locator: Locator) -> Seen | None:
        with self._lock:
            return self._seen.get(locator)

    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        return self._download(parse_url(locator), offset, self._last_seen(locator))

    @contextmanager
    def _download(self, url: httpx2.URL, offset: int, seen: Seen | None) -> Iterator[ReadStream]:
        """Reads from `offset` what has to be what was `seen`."""
        download = _Download(self._fetcher, url, offset, seen, self.settings, self._sleep)
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
        seen: Seen | None,
        settings: HttpSettings,
        sleep: Callable[[float], None],
    ) -> None:
        self._fetcher, self._url, self._seen, self._sleep = fetcher, url, seen, sleep
        self._limit, self._prefix = int(settings.max_download), settings.prefix
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
                hint=f"raise it with --max-download, -o max_download=… or {self._prefix}MAX_DOWNLOAD",
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


def pieces(source: Source, before: bytes = b"", behind: bytes = b"") -> Generator[bytes]:
    """Yields an upload's body; its end only when the source has ended well, since with that the server commits."""
    if before:
        yield before
    left, held = source.size, b""
    with source.open() as stream:
        while data := stream.read(CHUNK):
            left -= len(data)
            if left >= 0:  # else the source is about to raise, and has to say why itself
                if held:
                    yield held
                held = data
    if left:
        raise IntegrityError(f"the archive to store has not the {source.size} bytes it should have")
    yield held + behind


def parse_url(text: str) -> httpx2.URL:
    """Parses a URL a user gave, without its fragment.

    Raises:
        InvalidConfiguration: It is none, or no request may go there.
    """
    try:
        url = httpx2.URL(text).copy_with(fragment=None)
    except (httpx2.InvalidURL, ValueError):  # the latter for what cannot be encoded
        raise InvalidConfiguration("this is not a valid URL") from None
    if reason := _unfit(url):
        hint = "write https://…; http:// goes to this very machine only" if reason == _NOT_HTTPS else None
        if url.userinfo:
            hint = "a token goes into --token-file, never into the URL"
        raise InvalidConfiguration(f"{shown(url)}: the URL {reason}", hint=hint)
    return url


def place(url: httpx2.URL) -> str:
    """The URL without what differs from one presigned URL to the next."""
    return str(url.copy_with(query=None))


def shown(url: httpx2.URL) -> str:
    """The URL for people: no user name, no query, no fragment, not endless."""
    text = escape(str(url.copy_with(userinfo=b"", query=None, fragment=None)))
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _new_client(settings: HttpSettings) -> httpx2.Client:
    try:
        trust = (
            ssl.create_default_context(cafile=settings.ca_file)
            if settings.ca_file
            else httpx2.create_ssl_context()
        )
    except OSError as error:  # an ssl.SSLError too: the file is no certificate
        raise InvalidConfiguration(
            f"the file of trusted authorities cannot be used: {error.strerror or type(error).__name__}",
            hint=f"check ca_file ({settings.prefix}CA_FILE), or the environment's SSL_CERT_FILE and SSL_CERT_DIR",
        ) from error
    try:
        return httpx2.Client(
            headers={
                "User-Agent": f"ari-registry/{version('ari-registry')}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            verify=trust,
            timeout=_timeout(settings),
            proxy=settings.proxy.get_secret_value() if settings.proxy else None,
            # Plain http is this very machine's: a token must not pass through somebody's proxy in the clear.
            mounts={"http://": None},
        )
    except (ValueError, ImportError, httpx2.InvalidURL):  # whose text would show the proxy's password
        raise InvalidConfiguration(
            f"the environment's proxy cannot be used: it is not {_PROXY_FORM}",
            hint=f"check HTTPS_PROXY and ALL_PROXY, or set {settings.prefix}PROXY instead",
        ) from None


def _timeout(settings: HttpSettings, wait: float = 0.0) -> httpx2.Timeout:
    read = max(wait, settings.read_timeout)
    return httpx2.Timeout(settings.read_timeout, connect=settings.connect_timeout, read=read)


def _unfit(url: httpx2.URL) -> str | None:
    """Says why no request may go to `url`, or None."""
    if url.userinfo:
        return "holds a user name or password"
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.host)):
        return _NOT_HTTPS
    return _nowhere(url)


def _nowhere(url: httpx2.URL) -> str | None:
    """Says why no connection to `url` can be tried, or None."""
    host = url.raw_host.decode("ascii")
    if not (_HOST.fullmatch(host) or _is_ipv6(host)):
        return "names no valid host"
    if url.port is not None and not 0 < url.port <= _HIGHEST_PORT:
        return "has a port that does not exist"
    return None


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _next_hop(start: httpx2.URL, url: httpx2.URL, location: str) -> httpx2.URL:
    """Returns where a redirect from `url` leads.

    Raises:
        IntegrityError: It leads where we do not go.
    """
    try:
        target = url.join(location).copy_with(fragment=None)
    except (httpx2.InvalidURL, ValueError):
        raise IntegrityError(f"{shown(start)}: refused: the server redirects to an invalid URL") from None
    reason = _unfit(target)
    if not reason and target.scheme == "http" and url.scheme != "http":
        reason = _NOT_HTTPS
    if reason:
        raise IntegrityError(f"{shown(start)}: refused: the server redirects to a URL that {reason}")
    return target


def _origin(url: httpx2.URL) -> str:
    """Scheme, host and port for people."""
    return escape(f"{url.scheme}://{url.netloc.decode('ascii')}")


def _proxy_of(request: httpx2.Request) -> str:
    """Names the proxy that a new connection for `request` went to, without user name; empty if there was none."""
    peer, url = request.extensions.get("trace"), request.url
    if not isinstance(peer, _Peer) or peer.place is None:
        return ""
    host, port = peer.place
    if peer.place == (url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]):
        return ""
    return f", through the proxy {escape(f'[{host}]' if ':' in host else host)}:{port}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def retry_after(text: str | None) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3)."""
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None
