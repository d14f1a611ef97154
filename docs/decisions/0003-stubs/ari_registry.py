"""`ari-registry` on the contract: client of the HTTP server, for one registry.

A locator is ``URL/artifact/ID#DIGEST``: the id as that registry issued it, and the whole archive digest.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source, Visibility
from ari_core.errors import NotFound, Unsupported


@dataclass(frozen=True)
class Answer:
    """What HEAD, ``/meta`` or an upload say of one artifact."""

    id: str
    archive_sha256: str
    size: int
    visibility: Visibility
    mine: bool = False
    created: bool = False


class Http(Protocol):
    """What is used of HTTP: with time limits; the token to its own origin only, across no redirect.

    It looks for credentials nowhere (no ``~/.netrc``): the settings have those that may be used, also when the
    context is `anonymous`.
    """

    def head(self, url: str) -> Answer | None: ...  # None: 404 or 410 as problem+json; any other 404 is a proxy's
    def meta(self, url: str) -> Answer | None: ...  # None: an existing server, which has no such route
    def get(self, url: str, start: int, digest: str) -> AbstractContextManager[ReadStream]: ...  # If-Range
    def upload(self, url: str, source: Source, new: NewArtifact) -> Answer: ...  # raw, else multipart
    def promote(self, url: str, target: Visibility) -> Visibility | None: ...  # None: 400, it would go down
    def delete(self, url: str) -> None: ...  # one's own claim; 404 is fine
    def page(self, url: str, cursor: str | None) -> list[tuple[Answer, str]]: ...  # the caller's own


class RegistrySettings(BaseModel):
    """Which registry; default: the ones in registries.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = ""
    token: SecretStr | None = None


class AriRegistry(Backend):
    """Everything is the server's doing: levels are enforced, ids unique, owners kept."""

    name = "ari-registry"
    capabilities = Capabilities(
        put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True,
        visibility="enforced", levels=frozenset(Visibility), atomic_updates=True,
        stores_meta=False,  # the owner is whose token it is
    )  # fmt: skip
    Settings = RegistrySettings
    settings: RegistrySettings
    http: Http

    def _resolve(self, ref: str) -> Locator:
        # Pins the digest: HEAD tells it for any prefix, and needs no token. An ambiguous one is the server's 409.
        number = ref.rstrip("/").rpartition("/")[2]
        url = f"{self.settings.url}/artifact/{number}" if ref.startswith("ari:") else ref
        return self._locator(self._found(url))

    def _locator(self, answer: Answer) -> Locator:
        return Locator(f"{self.settings.url}/artifact/{answer.id}#{answer.archive_sha256}")

    def _ref(self, locator: Locator) -> str:
        return locator.partition("#")[0]  # https://HOST/artifact/ID works everywhere; ari://ID where configured

    def _found(self, locator: str) -> Answer:
        url, _, digest = locator.partition("#")
        answer = self.http.head(url)
        if answer is None or (digest and answer.archive_sha256 != digest):
            raise NotFound(f"there is no artifact {url}")
        return answer

    def _stat(self, locator: Locator) -> Artifact:
        answer = self._found(locator)
        return Artifact(locator, answer.size, answer.archive_sha256, visibility=answer.visibility)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        url, _, digest = locator.partition("#")
        with self.http.get(url, offset, digest) as stream:
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        # Nothing to reserve: the digest is the name. The look that a repeated put begins with: is it mine already?
        url = f"{self.settings.url}/artifact/{source.archive_sha256}"
        if (known := self.http.meta(url)) and known.mine:
            return self._stat(self._locator(known)), False
        # All bytes go, also of what another user stored: sending them is what makes one an owner. The commit point
        # is the server's; it verifies while it receives, so a source that fails ends the request and stores
        # nothing. Its `created` means: this user's claim is new.
        answer = self.http.upload(f"{self.settings.url}/artifact", source, new)
        return self._stat(self._locator(answer)), answer.created

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        # The server serialises; downwards is its 400, which here is no error but the level that is stored.
        level = self.http.promote(f"{locator.partition('#')[0]}/promote", target)
        return level or self._found(locator).visibility

    def _delete(self, locator: Locator) -> None:
        self.http.delete(locator.partition("#")[0])

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # "Every artifact" is every one of mine. Each has its cursor in the page, so no page is read twice.
        if self.settings.token is None:
            raise Unsupported("without a token there is nothing of one's own to list")
        while page := self.http.page(f"{self.settings.url}/artifacts?mine=1", after):
            for answer, cursor in page:
                after = cursor
                yield (
                    Artifact(
                        self._locator(answer), answer.size, answer.archive_sha256, visibility=answer.visibility
                    ),
                    cursor,
                )
