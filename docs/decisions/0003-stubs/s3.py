"""`s3` on the contract: the stored layout in a bucket, with all 64 digits in the key; reads any other key too.

A locator is ``BUCKET/PREFIX/artifacts/DIGEST/``, there exactly if its ``meta.json`` is; or ``BUCKET/KEY#ETAG``: an
object as it was when resolved. A key of the layout can only be overwritten by identical bytes.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source, Visibility
from ari_core.errors import BackendError, IntegrityError, NotFound, Unavailable, Unsupported


class NoSuchKeyError(Exception):
    """404 and NoSuchKey. NoSuchBucket is a wrong setting, 403 is AccessDenied: neither means "absent"."""


class ConditionError(Exception):
    """412 to ``If-None-Match`` or ``If-Match``."""


class Upload(Protocol):
    """A multipart upload: its ``with`` block aborts it unless it was completed."""

    def part(self, data: bytes) -> None: ...  # a few at once, bounded
    def complete(self) -> None: ...


class Client(Protocol):
    """What is used of the SDK (its own retries off, a time limit on each request) and of core's stored layout."""

    def get(self, key: str, start: int, etag: str | None) -> AbstractContextManager[ReadStream]: ...
    def head(self, key: str) -> tuple[int, str]: ...  # size and ETag
    def read(self, key: str) -> tuple[bytes, str]: ...  # a small object and its ETag
    def write(self, key: str, data: bytes, *, new: bool = False, etag: str | None = None) -> None: ...
    def remove(self, *keys: str) -> None: ...
    def keys(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]: ...  # sorted, 1000 a request
    def upload(self, key: str) -> AbstractContextManager[Upload]: ...
    def presign(self, key: str, ttl: float) -> str: ...
    def promises(self, *, race: bool) -> set[str]: ...  # kept in the store, once writers have raced
    def new_meta(self, source: Source, new: NewArtifact) -> bytes: ...
    def artifact(self, meta: bytes, locator: str) -> Artifact: ...
    def raised(self, meta: bytes, level: Visibility) -> bytes: ...


class S3Settings(BaseModel):
    """Where, and as whom; without keys the SDK's own chain."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: str = ""  # BUCKET/PREFIX
    endpoint_url: str | None = None
    secret_key: SecretStr | None = None
    part_size: int = 8 * 1024 * 1024


class S3(Backend):
    """Records levels; who can read is the bucket's business."""

    name = "s3"
    capabilities = Capabilities(
        put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True,
        visibility="recorded", levels=frozenset(Visibility), stores_meta=True,
    )  # fmt: skip
    Settings = S3Settings
    settings: S3Settings
    client: Client

    def _probe(self) -> Capabilities:
        # Only racing writers show whether conditions hold, and a probe must not write: before the first put has
        # let them race, the least is promised.
        promises = self.client.promises(race=False)
        can = replace(self.capabilities, exclusive_create="if-none-match" in promises)
        return can if "if-match" in promises else replace(can, visibility="none", levels=frozenset())

    def _resolve(self, ref: str) -> Locator:
        key = ref.removeprefix("s3://")
        if not key.endswith("/"):
            return Locator(f"{key}#{self.client.head(key)[1]}")
        found = {each.rpartition("/")[0] for each, _ in self.client.keys(key.removesuffix("/"))}  # ID is a prefix
        if len(found) != 1:
            raise NotFound(f"there is not exactly one artifact {ref}")
        return Locator(f"{found.pop()}/")

    def _ref(self, locator: Locator) -> str:
        return "s3://" + locator.partition("#")[0]

    def _stat(self, locator: Locator) -> Artifact:
        key, _, etag = locator.partition("#")
        if not etag:
            return self.client.artifact(self.client.read(f"{key}meta.json")[0], locator)
        size, now = self.client.head(key)
        if now != etag:
            raise IntegrityError("the object is not the one that was resolved")
        return Artifact(locator, size=size)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        key, _, etag = locator.partition("#")
        with self.client.get(key if etag else f"{key}bundle.tar.gz", offset, etag or None) as stream:
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        # The digest is the name: nothing to reserve. Parts that a crash left are not resumed but swept (gc).
        self.client.promises(race=True)
        base = Locator(f"{self.settings.root}/artifacts/{source.archive_sha256}/")
        with suppress(NoSuchKeyError):  # also answers a repeated put whose first answer was lost
            return self._stat(base), False
        with self.client.upload(f"{base}bundle.tar.gz") as upload, source.open() as stream:
            while part := stream.read(self.settings.part_size):
                upload.part(part)
            upload.complete()  # only after a clean end; and still absent, for want of a meta.json
        self.client.write(f"{base}manifest.lock", source.manifest)
        try:
            self.client.write(f"{base}meta.json", self.client.new_meta(source, new), new=True)  # commit point
        except ConditionError:
            return self._stat(base), False  # another's, or ours whose answer was lost: nobody can tell
        if not any(key.endswith(".gz") for key, _ in self.client.keys(base)):
            # A delete, begun before, took the bytes. What is left of this race (bytes go after this look) shows as
            # missing bytes, never as wrong ones; a server's database serialises it.
            self.client.remove(f"{base}meta.json")
            raise Unavailable("the artifact was being deleted meanwhile")
        return self._stat(base), True

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        if "if-match" not in self.client.promises(race=True):
            raise Unsupported("this store cannot compare and set, so a level could go down")
        while True:  # ends: who loses a round lost it to somebody's progress
            meta, etag = self.client.read(f"{locator}meta.json")
            now = self.client.artifact(meta, locator).visibility or Visibility.STAGED
            if now.rank >= target.rank:
                return now
            with suppress(ConditionError):
                self.client.write(f"{locator}meta.json", self.client.raised(meta, target), etag=etag)
                return target

    def _delete(self, locator: Locator) -> None:
        self.client.remove(f"{locator}meta.json")  # absent from here on, whatever happens
        self.client.remove(f"{locator}bundle.tar.gz", f"{locator}manifest.lock")

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # Keys alone, three an artifact, so levels and owners stay None. The cursor is the locator.
        size = None
        for key, length in self.client.keys(f"{self.settings.root}/artifacts/", f"{after}~" if after else ""):
            base, _, name = key.rpartition("/")
            size = length if name == "bundle.tar.gz" else size
            if name == "meta.json":
                yield Artifact(Locator(f"{base}/"), size, archive_sha256=base.rpartition("/")[2]), f"{base}/"

    def _translate(self, error: Exception) -> BackendError | None:
        return NotFound("there is no such object") if isinstance(error, NoSuchKeyError) else None

    def reader_options(self) -> Mapping[str, str]:
        """Names the endpoint, where it is not the SDK's default."""
        return {"endpoint_url": self.settings.endpoint_url} if self.settings.endpoint_url else {}

    def direct_url(self, locator: Locator, ttl: float) -> str:
        """Presigns a download."""
        return self.client.presign(f"{locator}bundle.tar.gz", ttl)
