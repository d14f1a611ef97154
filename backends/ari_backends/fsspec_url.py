"""Reads one archive from any place that fsspec and its plug-ins know: ``gs://…``, ``sftp://…``. It writes nothing.

Credentials are the file system's own affair. All of it is foreign code: what it raises becomes ours here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import fsspec  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from ari_backends._claims import fsspec_claims
from ari_core.contract import Artifact, Backend, Capabilities, Claim, Locator, OpenContext, ReadStream
from ari_core.errors import (
    AccessDenied,
    AriError,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    RateLimited,
    Unavailable,
    Unsupported,
    escape,
)

# What file systems call that by which two versions of a file differ. (Their `ukey` may hold the time of access.)
_VERSION: Final = (
    *("etag", "ETag", "md5Hash", "checksum", "generation", "version_id", "blob_id", "mtime", "modificationTime"),
    *("last_modified", "LastModified", "modified", "modified_at", "last_write_time", "created"),
)
# What keeps a file system from using credentials that it finds by itself. No other one can be kept from it.
_ANONYMOUS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gcs": {"token": "anon"},
    "gs": {"token": "anon"},
    "memory": {},
}
_REFUSAL: Final = re.compile("Auth|Credential|Forbidden|Permission")  # in the names of SDKs' exceptions
_USER: Final = re.compile(r"(?<=://)[^/?#]*@")
_PASSWORD: Final = re.compile(r"[a-z]+://[^/?#@]*:[^/?#]*@")


class FsspecSettings(BaseModel):
    """Settings of `FsspecUrl`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    storage_options: SecretStr | None = Field(
        None, description="JSON object to open the file system with; its own documentation names the keys"
    )

    @field_validator("storage_options")
    @classmethod
    def _is_object(cls, options: SecretStr | None) -> SecretStr | None:
        with suppress(ValueError, RecursionError):
            if options is None or isinstance(json.loads(options.get_secret_value()), dict):
                return options
        raise ValueError("it is no JSON object")


class FsspecUrl(Backend):
    """Read-only backend for an archive behind a URL. A locator is that URL, ``#``, and digits of its version."""

    name = "fsspec"
    capabilities = Capabilities(ranges=True)
    Settings = FsspecSettings
    settings: FsspecSettings

    def __init__(self, settings: FsspecSettings, context: OpenContext | None = None) -> None:
        super().__init__(settings, context)
        given = settings.storage_options
        self._options: dict[str, Any] = json.loads(given.get_secret_value()) if given else {}
        self._last: tuple[str, Any, str] | None = None  # a URL, its file system, the path there

    def _resolve(self, ref: str) -> Locator:
        if fsspec_claims(ref) is Claim.NO or not (ref.isascii() and ref.isprintable()) or " " in ref:
            raise Unsupported("this is no URL that the backend 'fsspec' reads")
        scheme, _, rest = ref.partition("://")
        url = f"{scheme.lower()}://{rest}"
        return Locator(f"{url}#{_version(self._info(url))}")

    def _ref(self, locator: Locator) -> str:
        return locator.rpartition("#")[0]

    def _stat(self, locator: Locator) -> Artifact:
        url, _, version = locator.rpartition("#")
        info = self._info(url)
        if _version(info) != version:
            raise IntegrityError(f"{_shown(url)}: the file changed meanwhile", hint="run the same command again")
        return Artifact(locator, size=info.get("size"))

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        url = self._ref(locator)
        with self._calling(url):
            system, path = self._system(url)
            file = system.open(path, "rb")
        try:
            with self._calling(url):
                file.seek(offset)
            yield _Stream(self, url, file)
        finally:
            with suppress(Exception):  # all was read, or something worse was raised
                file.close()

    def _close(self) -> None:
        self._last = None

    def _info(self, url: str) -> Mapping[str, Any]:
        with self._calling(url):
            system, path = self._system(url)
            info: Mapping[str, Any] = system.info(path)
        if info.get("type") == "directory":
            raise NotFound(f"{_shown(url)}: this is a folder", hint="name the archive in it")
        return info

    @contextmanager
    def _calling(self, url: str) -> Iterator[None]:
        """Turns what a file system raises into our errors."""
        try:
            yield
        except AriError:
            raise
        except Exception as error:
            self._last = None  # a connection that broke is not used again
            raise self._meaning(_shown(url), error) from error

    def _system(self, url: str) -> tuple[Any, str]:
        """Returns the file system of a URL, and the path there."""
        last = self._last
        if last is None or last[0] != url:
            last = self._last = (url, *self._connect(url))
        return last[1:]

    def _connect(self, url: str) -> tuple[Any, str]:
        scheme, options = url.partition(":")[0], self._options
        if _PASSWORD.match(url):
            raise InvalidConfiguration(
                f"{_shown(url)}: the URL holds a password", hint="it belongs into -o storage_options='{…}'"
            )
        if self.context.anonymous:
            if scheme not in _ANONYMOUS:
                raise AccessDenied(
                    f"{_shown(url)}: '{scheme}:' is not read for a record: that may use your credentials",
                    hint="if you trust that place, give this ref itself",
                )
            options = {**_ANONYMOUS[scheme], **options}
        try:
            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise InvalidConfiguration(f"'{scheme}:' cannot be read yet", hint=escape(str(error))) from error
        system, path = fsspec.url_to_fs(
            url, **{**options, "protocol": scheme, "skip_instance_cache": True, "use_listings_cache": False}
        )
        return system, path

    def _meaning(self, where: str, error: Exception) -> BackendError:
        status = getattr(getattr(error, "response", error), "status_code", getattr(error, "code", None))
        if isinstance(error, FileNotFoundError | NotADirectoryError) or status == HTTPStatus.NOT_FOUND:
            return NotFound(f"{where}: there is no such file")
        says = f"{where}: {type(error).__name__}"
        if not self._options:  # or it might repeat what is secret in them
            says += f": {escape(str(error))}"
        if isinstance(error, PermissionError) or status in {401, 403} or _REFUSAL.search(type(error).__name__):
            return AccessDenied(says)
        if isinstance(error, ImportError | TypeError | ValueError):
            return InvalidConfiguration(says, hint="check the URL, -o storage_options=… and what is installed")
        return (RateLimited if status == HTTPStatus.TOO_MANY_REQUESTS else Unavailable)(says)


class _Stream:
    def __init__(self, backend: FsspecUrl, url: str, file: Any) -> None:
        self._backend, self._url, self._file = backend, url, file

    def read(self, size: int, /) -> bytes:
        with self._backend._calling(self._url):  # noqa: SLF001 - one unit
            return bytes(self._file.read(size))


def _version(info: Mapping[str, Any]) -> str:
    """Returns digits that change with the file, as far as its file system tells."""
    facts = [f"{key}={info[key]}" for key in ("size", *_VERSION) if info.get(key) is not None]
    return hashlib.sha256("\n".join(facts).encode(errors="backslashreplace")).hexdigest()[:16]


def _shown(url: str) -> str:
    """The URL for people: no user, no password, no query."""
    return escape(_USER.sub("", url).partition("?")[0])
