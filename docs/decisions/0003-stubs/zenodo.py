"""`zenodo` on the contract: a draft while staged, a version of a record, with its DOI, when public.

A locator is ``HOST/NUMBER``: the id of one version, known as soon as its draft exists, never used again.
"""

# ruff: noqa: INP001, D102 - a folder of sketches; the contract says what methods do

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source, Visibility
from ari_core.errors import AlreadyExists, BackendError, NotFound, Unavailable, Unsupported
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME
from ari_core.streams import CHUNK

PREFIXES = {"https://zenodo.org": "10.5281", "https://sandbox.zenodo.org": "10.5072"}


@dataclass(frozen=True)
class Record:
    """What is read of a draft or a version. The digests are metadata that a put writes last."""

    locator: Locator
    published: bool
    archive_sha256: str | None = None
    bundle_sha256: str | None = None
    size: int | None = None  # of the bundle's file, once that is completed
    md5: str | None = None


class Api(Protocol):
    """What is used of the HTTP API: time limits, no cookies, rate limits obeyed, the token to its host only.

    It looks for credentials nowhere (no ``~/.netrc``): the settings have those that may be used, also when the
    context is `anonymous`.
    """

    def record(self, locator: str) -> Record | None: ...  # a concept leads to its latest version; None: 404 or 410
    def draft(self, locator: str) -> Record | None: ...  # without the token: AccessDenied, never "absent"
    def create(self) -> Record: ...
    def new_version(self, locator: str) -> Record: ...  # the open draft again, if there is one
    def my_drafts(self, marker: str) -> list[Record]: ...  # a search: its index lags
    def describe(self, locator: str, metadata: Mapping[str, object]) -> list[str]: ...  # says what is not valid
    def reserve_doi(self, locator: str) -> None: ...  # "there is one already" is fine
    def send(self, locator: str, name: str, content: Iterator[bytes], size: int) -> str: ...  # the MD5 it has
    def publish(self, locator: str) -> None: ...
    def discard(self, locator: str) -> None: ...  # absent is fine
    def get(self, record: Record, start: int) -> AbstractContextManager[ReadStream]: ...


class ZenodoSettings(BaseModel):
    """Which repository, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base_url: str = "https://zenodo.org"
    token: SecretStr | None = None


class Zenodo(Backend):
    """A draft is its owner's alone, so levels are enforced. Two writers at once make two drafts."""

    name = "zenodo"
    capabilities = Capabilities(
        put=True, delete="unpublished", ranges=True,
        visibility="enforced", levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}),
        atomic_updates=True,  # there is one change, publishing, and it goes one way
        embargo=True,  # of a published record the files open on that day
    )  # fmt: skip
    Settings = ZenodoSettings
    settings: ZenodoSettings
    aliases = {"token": ("ZENODO_TOKEN",)}  # noqa: RUF012 - typed by the base
    reader_settings = ("base_url",)  # needed where no DOI names the repository
    api: Api

    def _resolve(self, ref: str) -> Locator:
        # A DOI or a record's URL, each with the number last. A concept's is pinned to its latest version here.
        host = next((host for host, prefix in PREFIXES.items() if f"{prefix}/" in ref), self.settings.base_url)
        return self._find(f"{host}/{ref.rstrip('/').replace('.', '/').rpartition('/')[2]}").locator

    def _ref(self, locator: Locator) -> str:
        host, _, number = locator.rpartition("/")  # the same before and after publishing: it stands in the paper
        return f"doi:{PREFIXES[host]}/zenodo.{number}" if host in PREFIXES else f"{host}/records/{number}"

    def _find(self, locator: str) -> Record:
        if found := self.api.record(locator) or self.api.draft(locator):
            return found
        raise NotFound(f"there is no record {locator}")  # certain: both said so, in the API's own words

    def _stat(self, locator: Locator) -> Artifact:
        found = self._find(locator)
        if found.size is None or not (found.published or found.bundle_sha256):
            raise NotFound("this draft holds no bundle yet")
        level = Visibility.PUBLIC if found.published else Visibility.STAGED
        return Artifact(locator, found.size, found.archive_sha256, found.bundle_sha256, level)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with self.api.get(self._find(locator), offset) as stream:  # 200 instead of 206: skips by itself
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        record = self._place(source, new, resume)
        locator = record.locator
        if record.bundle_sha256 == source.bundle_sha256:
            return self._stat(locator), False  # unchanged, perhaps packed by another encoder: nothing is done
        on_reserved(locator)  # before any byte; what a crash before this line leaves, the marker finds
        # No digests of content yet, and those of a bundle that gives way go with this: the draft is empty now.
        embargo = new.embargo and new.embargo.isoformat()
        intent = {**new.description, "embargo": embargo, "marker": source.bundle_sha256}
        if problems := self.api.describe(locator, intent):  # known before the long upload
            raise Unsupported(f"the repository would refuse to publish this: {problems[0]}")
        self.api.reserve_doi(locator)
        md5 = hashlib.md5(usedforsecurity=False)
        with source.open() as stream:  # a source that fails leaves an uncompleted file: stat finds nothing
            has = self.api.send(locator, BUNDLE_NAME, _hashing(stream, md5.update), source.size)
        if has != md5.hexdigest():
            raise Unavailable("the repository received other bytes than were sent")
        self.api.send(locator, MANIFEST_NAME, iter([source.manifest]), len(source.manifest))
        digests = {"archive_sha256": source.archive_sha256, "bundle_sha256": source.bundle_sha256}
        self.api.describe(locator, {**intent, **digests})  # commit point
        return self._stat(locator), True

    def _place(self, source: Source, new: NewArtifact, resume: Locator | None) -> Record:
        # What is known first, the search after, a new record last: creating blindly leaves orphans.
        for known in (resume, new.previous.locator if new.previous else None):
            if not known or not known.startswith(f"{self.settings.base_url}/"):
                continue  # of another repository, where this checkpoint published before
            found = self.api.record(known) or self.api.draft(known)
            if found and found.bundle_sha256 == source.bundle_sha256:
                return found
            if found and found.published:
                return self.api.new_version(known)
            if found and (found.bundle_sha256 is None or new.replace):
                return found  # reserved by an interrupted put, perhaps for another bundle; or it is to give way
            if found:
                raise AlreadyExists("the draft holds another bundle", hint="--replace lets it give way")
        drafts = self.api.my_drafts(source.bundle_sha256)
        return drafts[0] if drafts else self.api.create()

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        # Publishing goes one way, and of racing callers the repository lets one through. Look before, and after a
        # failure look again: the retry around this looks first, too, so nothing is published blindly twice.
        if target is Visibility.PUBLIC and not self._find(locator).published:
            try:
                self.api.publish(locator)
            except BackendError:  # the answer got lost, or another caller was faster
                if not self._find(locator).published:
                    raise
        return self._stat(locator).visibility or target

    def _delete(self, locator: Locator) -> None:
        if self.api.record(locator):
            raise Unsupported("a published version stays")
        self.api.discard(locator)  # also one that was only reserved

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns the repository's MD5."""
        return "md5", self._find(locator).md5 or ""


def _hashing(stream: ReadStream, update: Callable[[bytes], None]) -> Iterator[bytes]:
    while data := stream.read(CHUNK):
        update(data)
        yield data
