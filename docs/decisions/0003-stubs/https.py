"""`https` on the contract: reads one archive from a URL, which is also its locator."""

# ruff: noqa: INP001, D102 - a folder of sketches; the contract says what methods do

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, ReadStream
from ari_core.errors import AccessDenied, BackendError, NotFound, Unavailable


class StatusError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Headers:
    """What is read of an answer."""

    length: int | None
    ari_sha256: str | None
    etag: str | None


class Http(Protocol):
    """What is used of HTTP: with time limits; redirects checked one by one, the token to its own origin only.

    It looks for credentials nowhere (no ``~/.netrc``): the settings have those that may be used, also when the
    context is `anonymous`.
    """

    def check(self, url: str) -> str: ...  # in its normal form, or Unsupported
    def head(self, url: str) -> Headers: ...  # GET where HEAD is not known
    def get(self, url: str, start: int) -> AbstractContextManager[ReadStream]: ...  # skips after a 200


class HttpsSettings(BaseModel):
    """As whom, and how much at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token: SecretStr | None = None
    max_download: int = 50 * 1024**3


class Https(Backend):
    """Takes nothing: `put`, `promote` and `delete` are refused by the base class."""

    name = "https"
    capabilities = Capabilities(ranges=True)  # the most: a server without them makes `get` skip
    Settings = HttpsSettings
    settings: HttpsSettings
    http: Http

    def _resolve(self, ref: str) -> Locator:
        # Pins the spelling, no more: what is behind a URL can change, and only a digest notices. No request.
        return Locator(self.http.check(ref))

    def _ref(self, locator: Locator) -> str:
        return locator

    def _stat(self, locator: Locator) -> Artifact:
        headers = self.http.head(locator)  # a registry tells the digest; an ETag is none
        return Artifact(locator, size=headers.length, archive_sha256=headers.ari_sha256)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        # A cut is resumed inside with If-Range. Leaving the block closes the connection: that is how one cancels.
        with self.http.get(locator, offset) as stream:
            yield stream

    def _translate(self, error: Exception) -> BackendError | None:
        match error:
            case StatusError(status=404 | 410):
                return NotFound("the server has no such page")
            case StatusError(status=401 | 403 | 407):
                return AccessDenied("the server refuses access")
            case StatusError() | OSError():  # also a timeout: it may well be there
                return Unavailable("the server does not answer as it should")
        return None
