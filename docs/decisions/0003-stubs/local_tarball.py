"""`local-tarball` on the contract: one ``bundle.tar.gz`` in a folder.

A locator is the absolute path of an archive: a place. Only here can another archive come to be in the place that a
locator names; no name tells the two apart, the digest in the paper does.
"""

# ruff: noqa: INP001, ARG002, D102 - a folder of sketches; the contract says what methods take and do

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from ari_core.contract import Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source
from ari_core.errors import AccessDenied, AlreadyExists, BackendError, InvalidConfiguration, NotFound, Unavailable
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME


class Disk(Protocol):
    """What is used of the disk. Every write is fsynced, its folder too; staged files are swept after a crash."""

    def lock(self, folder: Path) -> AbstractContextManager[None]: ...  # the system frees it when a process dies
    def digests(self, archive: Path) -> tuple[str, str] | None: ...  # of archive and bundle, by reading it through
    def stage(self, folder: Path, source: Source) -> Path: ...  # links local_path, or copies to a clean end
    def link(self, staged: Path, to: Path) -> bool: ...  # create-only; False if something is there
    def rename(self, staged: Path, to: Path) -> None: ...
    def write(self, path: Path, data: bytes) -> None: ...


class TarballSettings(BaseModel):
    """``out``: the folder, default the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    out: Path | None = None


class LocalTarball(Backend):
    """Keeps nobody out and no level: promoting is only noted in the record."""

    name = "local-tarball"
    capabilities = Capabilities(put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True)
    Settings = TarballSettings
    settings: TarballSettings
    disk: Disk

    def _resolve(self, ref: str) -> Locator:
        # Pins the place, no more: to pin the content would mean to read it, and whoever clones does that anyway.
        path = Path(unquote(urlsplit(ref).path))
        return Locator(str(path / BUNDLE_NAME if path.is_dir() else path))

    def _ref(self, locator: Locator) -> str:
        return "file://" + quote(locator)

    def _stat(self, locator: Locator) -> Artifact:
        return Artifact(locator, size=Path(locator).stat().st_size)  # a digest would mean to read everything

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with Path(locator).open("rb", buffering=0) as file:  # one inode: a rename over it disturbs no reader
            file.seek(offset)
            yield file

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        # Nothing to reserve or to resume: the settings are the name.
        place = self.workdir() / BUNDLE_NAME
        locator = Locator(str(place))
        with self.disk.lock(place.parent):
            found = self.disk.digests(place)
            if found and found[1] == source.bundle_sha256:
                # The same bundle, perhaps packed by another encoder. A place holds a bundle: nothing to do.
                return Artifact(locator, archive_sha256=found[0], bundle_sha256=found[1]), False
            # The place alone proves nothing: another checkpoint's bundle may have come to be there since.
            before = new.previous
            ours = found and before and (before.locator, before.bundle_sha256) == (locator, found[1])
            if found and not (ours or new.replace):
                raise AlreadyExists(f"another bundle is at {place}", hint="--replace lets it give way")
            staged = self.disk.stage(place.parent, source)  # raises before its end: nothing has appeared
            if found and ours:  # kept under a name of its own; what --replace takes the place of is lost
                self.disk.link(place, place.with_name(f"bundle-{found[0][:16]}.tar.gz"))
            # Commit point. Into an empty place it is create-only: `exclusive_create` holds where locks do nothing.
            if found:
                self.disk.rename(staged, place)
            elif not self.disk.link(staged, place):
                raise AlreadyExists(f"another bundle has just appeared at {place}")
            # A crash before leaves a staged file, which the next run sweeps; a crash here an old manifest.lock, a
            # convenience that is made again when it disagrees with the bundle.
            self.disk.write(place.with_name(MANIFEST_NAME), source.manifest)
        return Artifact(locator, source.size, source.archive_sha256, source.bundle_sha256), True

    def _delete(self, locator: Locator) -> None:
        Path(locator).with_name(MANIFEST_NAME).unlink(missing_ok=True)
        Path(locator).unlink(missing_ok=True)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        for path in sorted(self.workdir().glob("bundle*.tar.gz")):  # the cursor is the name, in order of names
            if path.name > (after or ""):
                yield self._stat(Locator(str(path))), path.name

    def _translate(self, error: Exception) -> BackendError | None:
        match error:
            case FileNotFoundError() | NotADirectoryError():
                return NotFound(f"there is no {error.filename}")
            case PermissionError():
                return AccessDenied(f"no access to {error.filename}")
            case OSError():  # an I/O error, a stale handle: it may well be there
                return Unavailable(f"the disk fails: {error.strerror}")
        return None

    def workdir(self) -> Path:
        """Lets core build the archive where it will stay, so that storing it is a link."""
        folder = self.settings.out or self.context.checkpoint
        if folder is None:
            raise InvalidConfiguration("there is no folder to store in", hint="give -o out=DIR")
        return folder.absolute()

    def local_path(self, locator: Locator) -> Path:
        """Returns the archive itself."""
        return Path(locator)
