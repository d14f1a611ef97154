"""`filesystem-registry` on the contract: ``ROOT/artifacts/ID/{bundle.tar.gz, manifest.lock, meta.json}``.

A locator is the absolute path of an artifact's folder, named by leading digits of the archive digest. It is there
exactly if its ``meta.json`` is: a folder without one is what a crash left, absent, and used by the next put.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source, Visibility
from ari_core.errors import AlreadyExists, NotFound
from ari_core.names import BUNDLE_NAME

META = "meta.json"


class Store(Protocol):
    """What is used of the disk, as in `local_tarball`, and of core's stored layout."""

    def locks(self, folder: Path) -> bool: ...  # some network file systems cannot, and say so
    def lock(self, folder: Path) -> AbstractContextManager[None]: ...  # of the system, never by a clock
    def stage(self, folder: Path, source: Source) -> Path: ...  # links local_path, or copies to a clean end
    def create(self, folder: Path, staged: Path, manifest: bytes) -> None: ...  # in place of what a crash left
    def write(self, path: Path, data: bytes, *, create_only: bool = False) -> bool: ...  # False: not created
    def remove(self, folder: Path) -> None: ...  # absent is fine
    def new_meta(self, source: Source, new: NewArtifact) -> bytes: ...  # staged, with its owner
    def artifact(self, meta: bytes, locator: Locator) -> Artifact: ...  # also one of the existing server

    # What follows keeps what it does not know. The artifact's own level and its owners' stand apart, and the
    # effective one, for the existing server, is written beside them: else it could not sink when an owner goes.
    def raised(self, meta: bytes, target: Visibility, user: str | None = None) -> bytes: ...  # or as it was
    def claimed(self, meta: bytes, user: str) -> bytes: ...
    def disclaimed(self, meta: bytes, user: str) -> bytes: ...  # b"" when the last owner has gone


class RegistrySettings(BaseModel):
    """``root``: the folder; a ref names its own. ``id_digits``: digits of an id."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    root: Path = Path()
    id_digits: int = Field(16, ge=16, le=64)


class FilesystemRegistry(Backend):
    """Records levels and owners and enforces neither: whoever reaches the folder can read it."""

    name = "filesystem-registry"
    capabilities = Capabilities(
        put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True,
        visibility="recorded", levels=frozenset(Visibility), stores_meta=True, atomic_updates=True,
    )  # fmt: skip
    Settings = RegistrySettings
    settings: RegistrySettings
    store: Store

    def _probe(self) -> Capabilities:
        # Levels are kept without a lock, too; a server's database then lets one change through at a time.
        return replace(self.capabilities, atomic_updates=self.store.locks(self.settings.root))

    def _resolve(self, ref: str) -> Locator:
        # Pins the folder. What a ref names may be a prefix of an id, if of one only.
        path = Path(unquote(urlsplit(ref).path))
        found = [path] if path.exists() else list(path.parent.glob(f"{path.name}*"))
        if len(found) != 1:
            raise NotFound(f"there is not exactly one artifact {path.name}")
        return Locator(str(found[0]))

    def _ref(self, locator: Locator) -> str:
        return f"file://{quote(locator)}/"

    def _stat(self, locator: Locator) -> Artifact:
        # ENOENT is certain only below a root that is there: one that is not mounted is Unavailable.
        return self.store.artifact((Path(locator) / META).read_bytes(), locator)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with (Path(locator) / BUNDLE_NAME).open("rb", buffering=0) as file:  # survives a delete meanwhile
            file.seek(offset)
            yield file

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        # Nothing to reserve: the digest is the name, and every put looks there first.
        folder = self.settings.root / "artifacts" / source.archive_sha256[: self.settings.id_digits]
        with suppress(FileNotFoundError):
            return self._same(folder, source), False  # owners stay as they are: a server calls claim() next
        staged = self.store.stage(self.workdir(), source)  # raises before its end: nothing has appeared
        with self.store.lock(folder):  # less against writers than against a delete that takes the bytes again
            if not (folder / META).exists():
                self.store.create(folder, staged, source.manifest)
            # Commit point, and create-only: one of several writers creates.
            created = self.store.write(folder / META, self.store.new_meta(source, new), create_only=True)
        return self._same(folder, source), created

    def _same(self, folder: Path, source: Source) -> Artifact:
        found = self._stat(Locator(str(folder)))
        if found.archive_sha256 != source.archive_sha256:
            raise AlreadyExists(f"another archive has the id {folder.name}", hint="use longer ids")
        return found

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self._change(locator, lambda meta: self.store.raised(meta, target)) or target

    def _change(self, locator: Locator, change: Callable[[bytes], bytes]) -> Visibility | None:
        # Read, compare and rename under one lock: racing calls end at the highest, and no owner gets lost.
        path = Path(locator) / META
        with self.store.lock(path.parent):
            before = path.read_bytes()
            after = change(before)
            if not after:  # under the same lock, so that nobody can become an owner of what is going
                self._remove(path.parent)
                return None
            if after != before:
                self.store.write(path, after)
        return self.store.artifact(after, locator).visibility

    def _delete(self, locator: Locator) -> None:
        with self.store.lock(Path(locator)):
            self._remove(Path(locator))

    def _remove(self, folder: Path) -> None:
        (folder / META).unlink(missing_ok=True)  # from here on it is absent, whatever happens
        self.store.remove(folder)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # The cursor is the id, in order of ids: what comes or goes meanwhile shifts nothing.
        for folder in sorted((self.settings.root / "artifacts").iterdir()):
            if folder.name > (after or "") and (folder / META).exists():
                yield self._stat(Locator(str(folder))), folder.name

    def workdir(self) -> Path:
        """Lets core build the archive on the same file system."""
        return self.settings.root

    def local_path(self, locator: Locator) -> Path:
        """Lets a web server send the file by itself."""
        return Path(locator) / BUNDLE_NAME

    def claim(self, locator: Locator, user: str) -> None:
        """Adds an owner."""
        self._change(locator, lambda meta: self.store.claimed(meta, user))

    def raise_own(self, locator: Locator, user: str, target: Visibility) -> Visibility:
        """Raises one owner's level."""
        return self._change(locator, lambda meta: self.store.raised(meta, target, user)) or target

    def disclaim(self, locator: Locator, user: str) -> None:
        """Removes an owner, and with the last one everything."""
        with suppress(FileNotFoundError):
            self._change(locator, lambda meta: self.store.disclaimed(meta, user))
