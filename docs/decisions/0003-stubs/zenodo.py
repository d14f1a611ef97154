"""`zenodo` on the contract: a draft while staged, a published version with a DOI when public.

A locator is ``HOST/RECORD``: the record id of one version, known as soon as its draft exists and never reused. The
draft's files can be replaced, a published version's cannot.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import (
    CHUNK,
    Artifact,
    Backend,
    Capabilities,
    Locator,
    NewArtifact,
    ReadStream,
    Source,
    Visibility,
)
from ari_core.errors import AlreadyExists, IntegrityError, NotFound, Unavailable, Unsupported
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME


@dataclass(frozen=True)
class Record:
    """What is read of a draft or a version; the two digests from its metadata, where a put wrote them."""

    id: str
    concept: str
    published: bool
    archive_sha256: str | None = None
    bundle_sha256: str | None = None
    size: int | None = None  # of the bundle's file, once it is completed
    md5: str | None = None


class Api(Protocol):
    """What is used of the HTTP API: one method is one request, with time limits, no cookies, rate limits obeyed."""

    def record(self, number: str) -> Record | None: ...  # a concept redirects to its latest version; None: 404, 410
    def draft(self, number: str) -> Record | None: ...
    def create(self, metadata: Mapping[str, object]) -> Record: ...
    def new_version(self, number: str) -> Record: ...  # the open draft again, if there is one
    def my_drafts(self, marker: str) -> list[Record]: ...  # a search, whose index lags
    def describe(self, number: str, metadata: Mapping[str, object]) -> list[str]: ...  # what publishing will refuse
    def send(self, number: str, name: str, size: int, content: Iterator[bytes]) -> None: ...
    def reserve_doi(self, number: str) -> None: ...
    def publish(self, number: str) -> None: ...
    def discard(self, number: str) -> None: ...  # absent is fine
    def get(self, number: str, *, draft: bool, start: int) -> AbstractContextManager[ReadStream]: ...


class ZenodoSettings(BaseModel):
    """Which repository, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base_url: str = "https://zenodo.org"
    token: SecretStr | None = None


class Zenodo(Backend):
    """Enforces what it records: a draft is its owner's alone. Two writers at once make two drafts."""

    name = "zenodo"
    capabilities = Capabilities(
        put=True, delete="unpublished", ranges=True, visibility="enforced",
        levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}), stores_meta=False,
    )  # fmt: skip
    Settings = ZenodoSettings
    settings: ZenodoSettings
    aliases = {"token": ("ZENODO_TOKEN",)}  # noqa: RUF012 - typed by the base
    api: Api

    def _resolve(self, ref: str) -> Locator:
        # A DOI, a concept's DOI, a record URL: the number at the end. Asking pins a concept to its latest version.
        number = ref.rstrip("/").rpartition("zenodo." if "zenodo." in ref else "/")[2]
        return Locator(f"{self.settings.base_url}/{self._record(number).id}")

    def _ref(self, locator: Locator) -> str:
        return f"doi:10.5281/zenodo.{_number(locator)}"  # the same before and after publishing

    def _record(self, number: str) -> Record:
        # Absent is what is neither published nor a draft: both answered 404 (or 410) with the API's own JSON.
        found = self.api.record(number) or self.api.draft(number)
        if found is None:
            raise NotFound(f"there is no record {number}", hint="a draft is visible with its owner's token only")
        return found

    def _stat(self, locator: Locator) -> Artifact:
        found = self._record(_number(locator))
        if found.size is None:  # a draft without a completed bundle: reserved, and nothing there yet
            raise NotFound("nothing is stored in this draft yet")
        level = Visibility.PUBLIC if found.published else Visibility.STAGED
        return Artifact(locator, found.size, found.archive_sha256, found.bundle_sha256, level)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        record = self._record(_number(locator))  # a published file has another address than a draft's
        with self.api.get(record.id, draft=not record.published, start=offset) as stream:
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        record = self._place(source, new, resume)
        locator = Locator(f"{self.settings.base_url}/{record.id}")
        on_reserved(locator)  # noted before any byte is sent; a crash before it leaves a draft that the marker finds
        if record.bundle_sha256 == source.bundle_sha256 and record.size is not None:
            return self._stat(locator), False  # unchanged: nothing is done
        if problems := self.api.describe(record.id, _metadata(source, new)):  # before the long upload
            raise Unsupported(f"the repository would refuse: {problems[0]}")
        self.api.reserve_doi(record.id)  # "there is one already" is fine
        digest = hashlib.md5(usedforsecurity=False)
        with source.open() as stream:
            self.api.send(record.id, BUNDLE_NAME, source.size, _hashed(stream, digest.update))
        self.api.send(record.id, MANIFEST_NAME, len(source.manifest), iter([source.manifest]))
        # Commit point: the completed file. When the source fails it is not completed, and stat finds nothing; the
        # draft stays for a resume, and `delete` takes it as a locator like any other.
        if self._record(record.id).md5 != digest.hexdigest():
            raise IntegrityError("the repository holds other bytes than were sent")
        return self._stat(locator), True

    def _place(self, source: Source, new: NewArtifact, resume: Locator | None) -> Record:
        # Looking costs a few requests, creating twice costs an orphan; so every way to an existing draft first.
        if resume and (found := self.api.record(_number(resume)) or self.api.draft(_number(resume))):
            return found
        if new.previous and (last := self.api.record(_number(new.previous)) or self.api.draft(_number(new.previous))):
            if last.bundle_sha256 == source.bundle_sha256:
                return last
            if last.published:
                return self.api.new_version(last.id)  # of the same concept
            raise AlreadyExists("the draft holds another bundle", hint="delete it, or let this one replace it")
        drafts = self.api.my_drafts(source.bundle_sha256)
        return drafts[0] if drafts else self.api.create(_metadata(source, new))

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        # One way only, and the repository lets one of several callers do it. Never repeated blindly: look first,
        # and after any failure look again.
        if target is Visibility.STAGED or self._record(_number(locator)).published:
            return self._stat(locator).visibility or target
        try:
            self.api.publish(_number(locator))
        except Unavailable:
            if not self._record(_number(locator)).published:
                raise
        return Visibility.PUBLIC

    def _delete(self, locator: Locator) -> None:
        if self.api.record(_number(locator)):
            raise Unsupported("a published version stays", hint="ask the repository's support")
        self.api.discard(_number(locator))

    def reader_options(self) -> Mapping[str, str]:
        """Names the repository, where a DOI does not."""
        return {} if self.settings.base_url == "https://zenodo.org" else {"base_url": self.settings.base_url}

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns the MD5 that the repository computed."""
        return "md5", self._record(_number(locator)).md5 or ""


def _number(locator: Locator) -> str:
    return locator.rpartition("/")[2]


def _hashed(stream: ReadStream, update: Callable[[bytes], None]) -> Iterator[bytes]:
    while data := stream.read(CHUNK):
        update(data)
        yield data


def _metadata(source: Source, new: NewArtifact) -> dict[str, object]:
    marker = {"archive_sha256": source.archive_sha256, "bundle_sha256": source.bundle_sha256}
    return {**new.description, "marker": marker}  # creators and related works need more than text
