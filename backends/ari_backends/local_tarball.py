"""One ``bundle.tar.gz`` in a folder: the checkpoint itself, or wherever ``-o out=DIR`` says.

``bundle.tar.gz`` is the commit point: it appears whole and durable, or not at all, and while one takes the place
of another there is no moment without it. ``manifest.lock`` beside it is a convenience, written afterwards and
mended by the next put. A bundle that the same checkpoint published before is kept as ``bundle-<id>.tar.gz``, where
the id is the leading 16 hex digits of its archive's SHA-256.

Everything slow (receiving, copying) happens in private staging. The look at what is there, the decision and the
renames happen under a lock, which the file system may not have: creating is exclusive without it too, only two
programs that replace a bundle at the same moment need it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field

from ari_backends._local import (
    STAGED,
    File,
    absolute,
    copy,
    is_same,
    is_writable,
    linked,
    locked,
    make_folder,
    no_folder,
    not_regular,
    stage,
    translated,
    unplugged,
)
from ari_core.contract import CHUNK, Artifact, Backend, Capabilities, Locator, NewArtifact, ReadStream, Source
from ari_core.errors import (
    AlreadyExists,
    AriError,
    BackendError,
    DestinationExistsError,
    InvalidConfiguration,
    NotFound,
    Unsupported,
    VerificationError,
)
from ari_core.filerefs import file_ref, path_of
from ari_core.fs import Staging, fsync_folder, write_durably
from ari_core.limits import Limits
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, quoted

if TYPE_CHECKING:
    from ari_core.verification import Report

_ID_DIGITS: Final = 16
_OURS: Final = re.compile(rf"bundle(-[0-9a-f]{{{_ID_DIGITS}}})?\.tar\.gz")
_KEPT: Final = "kept"
_ANOTHER: Final = "name another one with -o out=DIR"


class LocalTarballSettings(BaseModel):
    """Settings of `LocalTarball`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path | None = Field(None, description="folder to store in; default: the checkpoint")


class LocalTarball(Backend):
    """Stores one bundle in a folder, and reads any archive that a ``file:`` ref names.

    A locator is an absolute path.
    """

    name = "local-tarball"
    capabilities = Capabilities(put=True, delete="yes", list="immediate", ranges=True, exclusive_create=True)
    Settings = LocalTarballSettings
    settings: LocalTarballSettings

    def _resolve(self, ref: str) -> Locator:
        path = path_of(ref)
        if not _is_unplugged(path):
            if stat.S_ISDIR(path.stat().st_mode):
                path /= BUNDLE_NAME
            _regular(path)
        return Locator(str(path))

    def _ref(self, locator: Locator) -> str:
        return file_ref(locator)

    def _stat(self, locator: Locator) -> Artifact:
        return Artifact(locator, size=_regular(Path(locator)).st_size)

    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        return _File(Path(locator)).open(offset)

    def _probe(self) -> Capabilities:
        if is_writable(self._out(), _ANOTHER):
            return self.capabilities
        return replace(self.capabilities, put=False, delete="no", exclusive_create=False)

    def _put(
        self,
        source: Source,
        new: NewArtifact,
        resume: Locator | None,  # noqa: ARG002 - nothing is ever reserved
        on_reserved: Callable[[Locator], None],  # noqa: ARG002
    ) -> tuple[Artifact, bool]:
        target = self.workdir() / BUNDLE_NAME
        # A first look without the lock: what will be refused in the end is not received first.
        if (found := _Existing.at(target)) and not found.is_same(source):
            self._require_right_of_way(found, new)
        with Staging(target.parent) as staging:
            if not found or not found.is_same(source):
                stage(source, staging)
            with locked(target.parent):
                return self._commit(source, new, staging, target, found)

    def _commit(
        self, source: Source, new: NewArtifact, staging: Staging, target: Path, seen: _Existing | None
    ) -> tuple[Artifact, bool]:
        found = _Existing.at(target)
        if found and seen and found.identity == seen.identity:
            found = seen  # what was read of it is still true
        if found and found.is_same(source):
            self._write_manifest(target, found.manifest)
            return _artifact(target, found.size, found.archive_sha256, source), False
        if not os.path.lexists(staging.path / STAGED):
            stage(source, staging)  # the same one was there a moment ago
        manifest = source.manifest
        if found:
            self._require_right_of_way(found, new)
            if found.is_named_by(new.previous):
                kept = _keep(found, staging)
                self.context.warn(f"the bundle published before is kept as {quoted(str(kept))}")
        try:
            staging.commit_file(STAGED, target.name, replace=found is not None)
        except DestinationExistsError:  # no lock here, and somebody was faster
            return self._commit(source, new, staging, target, None)
        self._write_manifest(target, manifest)
        return _artifact(target, source.size, source.archive_sha256, source), True

    def _require_right_of_way(self, found: _Existing, new: NewArtifact) -> None:
        if found.is_named_by(new.previous) or new.replace:
            return
        what = "another bundle" if found.report else "something that does not verify as a bundle"
        raise AlreadyExists(
            f"{quoted(str(found.path))} holds {what}; it was not touched",
            hint="choose another folder with -o out=DIR, or let it be replaced with --replace",
        )

    def _write_manifest(self, target: Path, manifest: bytes | None) -> None:
        """The bundle is stored already, so that trouble here is only worth a warning."""
        path = target.with_name(MANIFEST_NAME)
        if manifest is None or _contents(path, len(manifest)) == manifest:
            return
        try:
            write_durably(path, manifest)
        except AriError as error:
            self.context.warn(f"the bundle is stored, but the copy of its {MANIFEST_NAME} is not: {error.message}")

    def _delete(self, locator: Locator) -> None:
        path, out = Path(locator), self._out()
        if not path.is_absolute() or not _OURS.fullmatch(path.name) or not is_same(path.parent, out):
            raise Unsupported(
                f"{quoted(locator)} is not a bundle in the folder {quoted(str(out))}; it was not touched",
                hint=f"to delete a bundle that was stored elsewhere, name its folder: -o out={shlex.quote('DIR')}",
            )
        if _is_unplugged(path):
            raise unplugged(path.parent)
        with locked(out):
            beside = path.with_name(MANIFEST_NAME)
            if path.name == BUNDLE_NAME and (found := _Existing.at(path)):
                manifest = found.manifest
                if manifest is not None and _contents(beside, len(manifest)) == manifest:
                    beside.unlink()
            path.unlink(missing_ok=True)
            fsync_folder(out)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        out = self._out()
        try:
            with os.scandir(out) as entries:
                names = sorted(entry.name for entry in entries if _OURS.fullmatch(entry.name) and entry.is_file())
        except FileNotFoundError:
            if not out.parent.is_dir():
                raise no_folder(out.parent) from None
            return
        for name in names:
            if after is None or name > after:
                with suppress(NotFound, FileNotFoundError):  # deleted since
                    yield self._stat(Locator(str(out / name))), name

    def _translate(self, error: Exception) -> BackendError | None:
        return translated(error)

    def _out(self) -> Path:
        out = self.settings.out or self.context.checkpoint
        if out is None:
            raise InvalidConfiguration(
                "there is no folder to store in", hint="give -o out=DIR, or set ARI_LOCAL_TARBALL_OUT"
            )
        return absolute(out)

    # -- optional protocols --------------------------------------------------------------------------------------

    def workdir(self) -> Path:
        """Returns the folder to store in, so that an archive built there only has to be renamed.

        Creates that folder, but none above it: a chain of missing folders is a misspelling, or a disk that is not
        plugged in.

        Raises:
            InvalidConfiguration: None is configured, or it is not a folder, or cannot become one.
            AriError: As the system says.
        """
        with self._errors():
            out = self._out()
            make_folder(out, _ANOTHER)
            return out

    def rehearse(self, new: NewArtifact, bundle_sha256: str, size: int | None) -> None:  # noqa: ARG002 - any size
        """Raises what a put would if something else is there, as far as the head of its archive tells.

        Raises:
            AlreadyExists: Something else is there, from elsewhere.
            AriError: As the system says.
        """
        with self._errors():
            out = self._out()
            found = _Existing.at(out / BUNDLE_NAME) if out.is_dir() else None  # else a put creates it
            if found is None or found.claims(bundle_sha256):
                return
            if new.previous is None or not is_same(Path(new.previous.locator), found.path):  # else a put reads it
                self._require_right_of_way(found, new)

    def local_path(self, locator: Locator) -> Path:
        """Returns where the archive is.

        Raises:
            NotFound: It is absent.
        """
        with self._errors():
            path = Path(locator)
            _regular(path)
            return path

    def manifest(self, locator: Locator) -> bytes:
        """Returns the manifest from the head of the archive, where ours have it; others are read to their end.

        Raises:
            NotFound: It is absent.
            VerificationError: It is damaged.
        """
        with self._errors():
            return _manifest_in(Path(locator))


# -- files -------------------------------------------------------------------------------------------------------


class _File(File):
    """A file in a folder that may be on a disk which is not plugged in."""

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[ReadStream]:
        _regular(self._path)
        with super().open(offset) as stream:
            yield stream


class _Existing:
    """What has the name of the bundle now. It is read only when something about it is asked, and once."""

    def __init__(self, path: Path, status: os.stat_result) -> None:
        self.path, self.size = path, status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @classmethod
    def at(cls, path: Path) -> _Existing | None:
        try:
            return cls(path, _regular(path))
        except FileNotFoundError:
            if not path.is_symlink():
                return None
        except Unsupported:
            pass
        raise AlreadyExists(
            f"{quoted(str(path))} is in the way, and no regular file; it was not touched",
            hint="move it away, or choose another folder with -o out=DIR",
        )

    @cached_property
    def archive_sha256(self) -> str:
        digest = hashlib.sha256()
        with _File(self.path).open() as stream:
            while data := stream.read(CHUNK):
                digest.update(data)
        return digest.hexdigest()

    @cached_property
    def report(self) -> Report | None:
        """What verification says, or None if it does not verify."""
        from ari_core.verification import check_archive  # noqa: PLC0415 - reading needs none of it

        try:
            return check_archive(_File(self.path), limits=Limits.from_environment())
        except VerificationError:
            return None

    @cached_property
    def manifest(self) -> bytes | None:
        """The manifest, or None if there is none to be found."""
        try:
            return _manifest_in(self.path)
        except VerificationError:
            return None

    def claims(self, bundle_sha256: str) -> bool:
        """Says whether this calls itself that bundle."""
        from ari_core.manifest import parse_manifest  # noqa: PLC0415 - reading needs none of it

        with suppress(VerificationError):
            manifest = parse_manifest(self.manifest, Limits.from_environment()) if self.manifest else None
            return manifest is not None and manifest.bundle_sha256 == bundle_sha256
        return False

    def is_same(self, source: Source) -> bool:
        """Says whether this is the archive, or a sound archive of the bundle, that `source` claims to be."""
        if self.archive_sha256 == source.archive_sha256:
            return True
        return self.report is not None and self.report.bundle_sha256 == source.bundle_sha256

    def is_named_by(self, previous: Artifact | None) -> bool:
        """Says whether this very bundle is `previous`: its place alone proves nothing."""
        if previous is None or not is_same(Path(previous.locator), self.path):
            return False
        if previous.archive_sha256 == self.archive_sha256:
            return True
        return self.report is not None and self.report.bundle_sha256 == previous.bundle_sha256


def _artifact(target: Path, size: int, archive_sha256: str, source: Source) -> Artifact:
    return Artifact(Locator(str(target)), size, archive_sha256, source.bundle_sha256)


def _regular(path: Path) -> os.stat_result:
    if not path.is_absolute() or "\0" in str(path):
        raise NotFound(f"{quoted(str(path)[:200])} is not the path of a file")
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if _is_unplugged(path):
            raise unplugged(path.parent) from None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise not_regular(path)
    return status


def _is_unplugged(path: Path) -> bool:
    """Says whether the folder of `path` is missing, so that nobody can tell what would be in it."""
    try:
        return not stat.S_ISDIR(path.parent.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _keep(found: _Existing, staging: Staging) -> Path:
    """Gives a bundle that is about to be replaced a second, lasting name."""
    kept = found.path.with_name(f"bundle-{found.archive_sha256[:_ID_DIGITS]}.tar.gz")
    if other := _Existing.at(kept):
        if other.archive_sha256 == found.archive_sha256:
            return kept
        raise AlreadyExists(
            f"{quoted(str(kept))} should be a copy of {quoted(str(found.path))} and is not; nothing was touched",
            hint="move it away",
        )
    if not linked(found.path, _KEPT, staging):
        with _File(found.path).open() as stream:
            copy(stream, _KEPT, staging)
    staging.commit_file(_KEPT, kept.name)
    return kept


def _contents(path: Path, size: int) -> bytes | None:
    """Returns up to one byte more than `size` of a small file; None if it cannot be read."""
    try:
        with _File(path).open() as stream:
            return stream.read(size + 1)
    except (OSError, BackendError):
        return None


def _manifest_in(path: Path) -> bytes:
    from ari_core.verification import read_manifest  # noqa: PLC0415 - storing and listing need none of it

    return read_manifest(_File(path), Limits.from_environment())
