"""HTTP the careful way, for backends that read from servers they have no reason to trust.

- Nothing is sent that was not asked for: no cookies, no compression, and a token only to the origin (scheme, host,
  port) a request starts at, never again once a redirect has led away from it.
- Redirects are followed by hand: at most three, https only, never in a circle.
- No message shows a query string (presigned URLs carry their key there), a token or a user name.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, Final

import httpx2
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator

from ari_backends._claims import is_loopback
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

MAX_REDIRECTS: Final = 3

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_LONGEST_SHOWN: Final = 200
_HIGHEST_PORT: Final = 65535
_PROXY_FORM: Final = "http://HOST:PORT or https://HOST:PORT"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?")
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]*"')
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED: Final = re.compile(r"bytes \*/([0-9]{1,18})")
_ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")
_PORTS: Final = {"http": 80, "https": 443}


class HttpSettings(BaseModel):
    """Settings of every backend that speaks HTTP."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    token: SecretStr | None = Field(None, description="bearer token, sent to the ref's own host only")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the authorities to trust instead of the system's"
    )
    connect_timeout: float = Field(15.0, gt=0, le=86400, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, le=86400, description="seconds to wait for the next bytes")
    proxy: SecretStr | None = Field(
        None, description="proxy URL for https, instead of the environment's HTTPS_PROXY, ALL_PROXY, NO_PROXY"
    )

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not _TOKEN.fullmatch(token.get_secret_value()):
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


class Fetcher:
    """Sends requests under the rules above. One client for all threads, made at first use."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
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
        self, method: str, start: httpx2.URL, extra: Callable[[str], Mapping[str, str]] = lambda _place: {}
    ) -> Iterator[Answer]:
        """Sends a request, follows redirects, and closes the answer in the end. Any other status is returned.

        Args:
            method: GET or HEAD.
            start: Where to begin; the only origin that sees the token.
            extra: Header fields for one hop, by its `place`.

        Raises:
            IntegrityError: A redirect breaks the rules above.
            httpx2.TransportError: See `translate`.
        """
        client = self.client()
        url = start
        seen = [url]
        trusted = True
        while True:
            headers = dict(extra(place(url)))
            if trusted and self._settings.token:
                headers["Authorization"] = f"Bearer {self._settings.token.get_secret_value()}"
            # The query goes to the wire only: the library would put it into its log and its errors.
            request = client.build_request(
                method,
                url.copy_with(query=None),
                headers=headers,
                extensions={"target": url.raw_path, "trace": _Peer()},
            )
            with closing(client.send(request, stream=True)) as response:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    yield Answer(response, start, url)
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
        where = "the server"
        with suppress(RuntimeError):  # it knows no request
            where = _origin(error.request.url) + _proxy_of(error.request)
        if certificate := _certificate_problem(error):
            return InvalidConfiguration(
                f"{where}: its certificate is not trusted: {escape(certificate)}",
                hint="if its authority is your own, name it with -o ca_file=FILE.pem or ARI_HTTPS_CA_FILE",
            )
        if isinstance(error, httpx2.ConnectTimeout):
            return Unavailable(f"{where}: no connection within {self._settings.connect_timeout:g} s")
        if isinstance(error, httpx2.TimeoutException):
            return Unavailable(f"{where}: nothing received for {self._settings.read_timeout:g} s")
        if isinstance(error, httpx2.ProxyError):
            return Unavailable(f"{where}: the proxy refuses: {escape(str(error))}")
        return Unavailable(f"{where}: {escape(_ERRNO.sub('', str(error), count=1)) or type(error).__name__}")


class _Peer:
    """Notes where a connection really goes: only the library knows, and tells its ``trace`` extension."""

    def __init__(self) -> None:
        self.place: tuple[str, int] | None = None

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.place = info["host"], info["port"]


class Answer:
    """A response, as far as it matters here."""

    def __init__(self, response: httpx2.Response, start: httpx2.URL, url: httpx2.URL) -> None:
        self._response = response
        self.status = response.status_code
        self.place = place(url)
        self.where = shown(start)
        if url.origin != start.origin:
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
            raise self._refusal()
        encoding = self.header("content-encoding")
        if encoding not in {None, "", "identity"}:
            raise IntegrityError(
                f"{self.where}: refused: the server sends it in another encoding ('{escape(str(encoding))}')",
                hint="download it by other means and verify the file",
            )

    def _refusal(self) -> BackendError:
        status, where = self.status, self.where
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown"
        says = f"{where}: the server answers {status} ({phrase})"
        match status:
            case HTTPStatus.NOT_FOUND:
                return NotFound(f"{where}: there is nothing at this URL")
            case HTTPStatus.GONE:
                return NotFound(f"{where}: it was deleted", hint="look for another copy of the same bundle")
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return AccessDenied(says, hint="check the token: --token-file FILE or ARI_HTTPS_TOKEN")
            case HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                return AccessDenied(says, hint="check the credentials for the proxy")
            case HTTPStatus.TOO_MANY_REQUESTS:
                return RateLimited(says, retry_after=_retry_after(self.header("retry-after")))
            case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return RangeError(f"{where}: the offset is past the end")
            case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.TOO_EARLY:
                return Unavailable(says)
            case HTTPStatus.PARTIAL_CONTENT:
                return IntegrityError(
                    f"{where}: refused: the server sends a part where it was asked for everything"
                )
        return Unavailable(says) if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Unsupported(says)


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
        raise InvalidConfiguration(
            f"{shown(url)}: the URL {reason}",
            hint="a token goes into --token-file or ARI_HTTPS_TOKEN, never into the URL" if url.userinfo else None,
        )
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
            hint="check ca_file (ARI_HTTPS_CA_FILE), or the environment's SSL_CERT_FILE and SSL_CERT_DIR",
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
            timeout=httpx2.Timeout(settings.read_timeout, connect=settings.connect_timeout),
            proxy=settings.proxy.get_secret_value() if settings.proxy else None,
            # Plain http is this very machine's: a token must not pass through somebody's proxy in the clear.
            mounts={"http://": None},
        )
    except (ValueError, ImportError, httpx2.InvalidURL):  # whose text would show the proxy's password
        raise InvalidConfiguration(
            f"the environment's proxy cannot be used: it is not {_PROXY_FORM}",
            hint="check HTTPS_PROXY and ALL_PROXY, or set ARI_HTTPS_PROXY instead",
        ) from None


def _unfit(url: httpx2.URL) -> str | None:
    """Says why no request may go to `url`, or None."""
    if url.userinfo:
        return "holds a user name or password"
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.host)):
        return "is not https"
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
        reason = "is not https"
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


def _certificate_problem(error: BaseException) -> str | None:
    """What is wrong with the server's certificate, if that is what `error` is about."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None


def _retry_after(text: str | None) -> float | None:
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
