"""`s3` on the contract: the stored layout in a bucket, with all 64 digits in the key; reads any other key too.

A locator is ``BUCKET/PREFIX/artifacts/DIGEST/``, there exactly if its ``meta.json`` is; or ``BUCKET/KEY#ETAG``: an
object as it was when resolved. A key of the layout can only be overwritten by identical bytes. When the last owner
goes, ``meta.json`` becomes a note of that, and the artifact is absent: a conditional PUT can do this, and a DELETE
takes no condition in most stores.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source, Visibility
from ari_core.errors import BackendError, IntegrityError, NotFound, Unavailable


class NoSuchKeyError(Exception):
    """404 and NoSuchKey. NoSuchBucket is a wrong setting, 403 is AccessDenied: neither means "absent"."""


class ConditionError(Exception):
    """412 to ``If-None-Match`` or ``If-Match``."""


class Upload(Protocol):
    """A multipart upload: its ``with`` block aborts it unless it was completed."""

    def part(self, data: bytes) -> None: ...  # a few at once, bounded
    def complete(self) -> None: ...


class Client(Protocol):
    """What is used of the SDK (its own retries off, a time limit on each request) and of core's stored layout.

    When the context is `anonymous` and the settings hold no key it signs nothing: the SDK would find a key itself.
    """

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
    def artifact(self, meta: bytes, locator: str) -> Artifact | None: ...  # None: the last owner has gone
    def raised(self, meta: bytes, target: Visibility, user: str | None = None) -> bytes: ...  # or as it was
    def claimed(self, meta: bytes, user: str) -> bytes: ...
    def disclaimed(self, meta: bytes, user: str) -> bytes: ...


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
        visibility="recorded", levels=frozenset(Visibility), stores_meta=True, atomic_updates=True,
    )  # fmt: skip
    Settings = S3Settings
    reader_settings = ("endpoint_url",)  # from a stranger's record, too: hence `anonymous`
    settings: S3Settings
    client: Client

    def _probe(self) -> Capabilities:
        # Only racing writers show whether conditions hold, and a probe must not write: before the first put has
        # let them race, the least is promised.
        promises = self.client.promises(race=False)
        return replace(
            self.capabilities,
            exclusive_create="if-none-match" in promises,
            atomic_updates="if-match" in promises,  # levels are kept all the same: a server serialises them
        )

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
            return self._artifact(self.client.read(f"{key}meta.json")[0], locator)
        size, now = self.client.head(key)
        if now != etag:
            raise IntegrityError("the object is not the one that was resolved")
        return Artifact(locator, size=size)

    def _artifact(self, meta: bytes, locator: Locator) -> Artifact:
        if found := self.client.artifact(meta, locator):
            return found
        raise NotFound("the last owner deleted this artifact")

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
        gone = None
        with suppress(NoSuchKeyError):  # also answers a repeated put whose first answer was lost
            meta, gone = self.client.read(f"{base}meta.json")
            if found := self.client.artifact(meta, base):
                return found, False
        with self.client.upload(f"{base}bundle.tar.gz") as upload, source.open() as stream:
            while part := stream.read(self.settings.part_size):
                upload.part(part)
            upload.complete()  # only after a clean end; and still absent, for want of a meta.json
        self.client.write(f"{base}manifest.lock", source.manifest)
        try:
            meta = self.client.new_meta(source, new)
            self.client.write(f"{base}meta.json", meta, new=not gone, etag=gone)  # commit point
        except ConditionError:
            return self._stat(base), False  # another's, or ours whose answer was lost: nobody can tell
        if not any(key.endswith(".gz") for key, _ in self.client.keys(base)):
            # A delete, begun before, took the bytes. What is left of this race (bytes go after this look) shows as
            # missing bytes, never as wrong ones; a server's database serialises it.
            self.client.remove(f"{base}meta.json")
            raise Unavailable("the artifact was being deleted meanwhile")
        return self._stat(base), True

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self._level(self._change(locator, lambda meta: self.client.raised(meta, target)), locator)

    def _change(self, locator: Locator, change: Callable[[bytes], bytes]) -> bytes:
        # Compare and set. If a store ignores the condition the last writer wins: no ``atomic_updates`` there.
        while True:  # ends: who loses a round lost it to somebody's progress
            before, etag = self.client.read(f"{locator}meta.json")
            self._artifact(before, locator)
            after = change(before)
            if after == before:
                return after
            with suppress(ConditionError):
                self.client.write(f"{locator}meta.json", after, etag=etag)
                return after

    def _level(self, meta: bytes, locator: Locator) -> Visibility:
        return self._artifact(meta, locator).visibility or Visibility.STAGED

    def _delete(self, locator: Locator) -> None:
        self.client.remove(f"{locator}meta.json")  # absent from here on, whatever happens
        self.client.remove(f"{locator}bundle.tar.gz", f"{locator}manifest.lock")

    def claim(self, locator: Locator, user: str) -> None:
        """Adds an owner."""
        self._change(locator, lambda meta: self.client.claimed(meta, user))

    def raise_own(self, locator: Locator, user: str, target: Visibility) -> Visibility:
        """Raises one owner's level."""
        return self._level(self._change(locator, lambda meta: self.client.raised(meta, target, user)), locator)

    def disclaim(self, locator: Locator, user: str) -> None:
        """Removes an owner. Whoever claims meanwhile comes before the last one's going, or finds nothing."""
        with suppress(NoSuchKeyError, NotFound):
            after = self._change(locator, lambda meta: self.client.disclaimed(meta, user))
            if self.client.artifact(after, locator) is None:
                self.client.remove(f"{locator}bundle.tar.gz", f"{locator}manifest.lock")  # gc takes the note

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # Keys alone, three an artifact, so levels and owners stay None. The cursor is the locator.
        # A note of what the last owner deleted has no bundle beside it.
        sizes: dict[str, int] = {}
        for key, length in self.client.keys(f"{self.settings.root}/artifacts/", f"{after}~" if after else ""):
            base, _, name = key.rpartition("/")
            if name == "bundle.tar.gz":
                sizes = {base: length}
            if name == "meta.json" and base in sizes:
                digest = base.rpartition("/")[2]
                yield Artifact(Locator(f"{base}/"), sizes[base], archive_sha256=digest), f"{base}/"

    def _translate(self, error: Exception) -> BackendError | None:
        return NotFound("there is no such object") if isinstance(error, NoSuchKeyError) else None

    def direct_url(self, locator: Locator, ttl: float) -> str:
        """Presigns a download."""
        return self.client.presign(f"{locator}bundle.tar.gz", ttl)
