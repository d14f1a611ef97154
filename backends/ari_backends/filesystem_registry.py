"""``ROOT/artifacts/ID/{bundle.tar.gz, manifest.lock, meta.json}``: core's stored layout on a local or shared disk.

An artifact is there exactly if its ``meta.json`` is. Everything slow happens in private staging in the root; what
appears in an artifact's folder is renamed there and forced to the disk, and ``meta.json`` comes last. Writers of
one artifact take turns by a lock in its folder. Without locks (some network file systems) creating is exclusive
all the same; only changes of levels and owners at one moment can then lose each other, and `probe` says so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ari_backends._local import (
    STAGED,
    File,
    FolderLock,
    absolute,
    has_locks,
    is_same,
    is_writable,
    make_folder,
    nearest,
    stage,
    translated,
    unplugged,
)
from ari_core.contract import (
    CHUNK,
    Artifact,
    Capabilities,
    Locator,
    NewArtifact,
    OpenContext,
    ReadStream,
    Source,
    Visibility,
)
from ari_core.errors import (
    BackendError,
    DestinationExistsError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    Unsupported,
)
from ari_core.filerefs import file_ref, path_of
from ari_core.fs import Staging, fsync_folder
from ari_core.layout import (
    ARTIFACTS,
    ID_DIGITS,
    META_MAX_BYTES,
    MOST_DIGITS,
    Blob,
    Blobs,
    StoredLayout,
    is_id,
    key_of,
)
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, META_NAME, quoted

_ANOTHER: Final = "name another one with -o root=DIR"
_SMALL: Final = "small"


class FilesystemRegistrySettings(BaseModel):
    """Settings of `FilesystemRegistry`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path | None = Field(None, description="folder to store in; a ref to read names its own")
    id_digits: int = Field(ID_DIGITS, ge=ID_DIGITS, le=MOST_DIGITS, description="digits of new ids, 16 to 64")


class FilesystemRegistry(StoredLayout):
    """Records levels and owners and enforces neither: whoever reaches the folder can read it.

    A locator is the absolute path of an artifact's folder.
    """

    name = "filesystem-registry"
    capabilities = Capabilities(
        put=True,
        delete="yes",
        list="immediate",
        ranges=True,
        exclusive_create=True,
        visibility="recorded",
        levels=frozenset(Visibility),
        stores_meta=True,
        atomic_updates=True,
    )
    Settings = FilesystemRegistrySettings
    settings: FilesystemRegistrySettings

    def __init__(
        self,
        settings: FilesystemRegistrySettings,
        context: OpenContext | None = None,
        *,
        id_digits: int | None = None,
    ) -> None:
        """Keeps the settings. Only tests give `id_digits`: fewer than 16, so that ids collide."""
        super().__init__(settings, context)
        self._made = False
        self.id_digits = id_digits or settings.id_digits

    # -- the contract, as far as the layout leaves it --

    def _resolve(self, ref: str) -> Locator:
        path = path_of(ref)
        if path.parent.name != ARTIFACTS or not is_id(path.name):
            raise Unsupported(f"{quoted(ref[:200])} is not a file:///ROOT/{ARTIFACTS}/ID/")
        place = _Folder(path.parent.parent)
        return Locator(str(place.artifacts / self._find(place, path.name)))

    def _ref(self, locator: Locator) -> str:
        return file_ref(locator) + "/"

    def _probe(self) -> Capabilities:
        root = self._root()
        artifacts = root / ARTIFACTS
        if not is_writable(root, _ANOTHER) or (artifacts.exists() and not is_writable(artifacts, _ANOTHER)):
            return replace(
                self.capabilities,
                put=False,
                delete="no",
                exclusive_create=False,
                levels=frozenset(),
                atomic_updates=False,
            )
        return replace(self.capabilities, atomic_updates=has_locks(nearest(artifacts)))

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with super()._open(locator, offset) as stream:
            found, told = (Path(locator) / BUNDLE_NAME).lstat().st_size, self._stat(locator).size
            if found != told:  # what is cut short on a disk will not be longer next time
                raise IntegrityError(f"{quoted(locator)}: {BUNDLE_NAME} has {found} bytes instead of {told}")
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        _Folder(self.workdir()).make()
        artifact, created = super()._put(source, new, resume, on_reserved)
        if not created:  # whoever created it may be about to force it to the disk, and we promise it now
            with suppress(FileNotFoundError):  # deleted since
                fsync_folder(Path(artifact.locator))
        return artifact, created

    def _translate(self, error: Exception) -> BackendError | None:
        return translated(error)

    def _here(self) -> Blobs:
        return _Folder(self._root())

    def _at(self, locator: Locator) -> tuple[Blobs, str]:
        path = Path(locator)
        if not path.is_absolute() or "\0" in locator or path.parent.name != ARTIFACTS or not is_id(path.name):
            raise NotFound(f"{quoted(locator[:200])} is not the folder of an artifact")
        return _Folder(path.parent.parent), path.name

    def _to_change(self, locator: Locator) -> tuple[Blobs, str]:
        place, artifact = self._at(locator)
        if not is_same(Path(locator).parent, self._root() / ARTIFACTS):  # a ref may come with a stranger's record
            raise Unsupported(
                f"{quoted(locator)} is not in the registry {quoted(str(self._root()))}; it was not touched",
                hint="name the registry that it is in: -o root=DIR",
            )
        return place, artifact

    def _locator(self, artifact: str) -> Locator:
        return Locator(str(self._root() / ARTIFACTS / artifact))

    def _root(self) -> Path:
        if self.settings.root is None:
            raise InvalidConfiguration(
                "there is no folder to store in", hint="give -o root=DIR, or set ARI_FILESYSTEM_REGISTRY_ROOT"
            )
        return absolute(self.settings.root)

    # -- optional protocols --

    def workdir(self) -> Path:
        """Returns the root, so that an archive built there only has to be linked.

        It is created, but none above it; and not a second time: a disk that went away would be hidden.

        Raises:
            InvalidConfiguration: None is configured, or it is not a folder, or cannot become one.
            AriError: As the system says.
        """
        with self._errors():
            root = self._root()
            if self._made and not root.is_dir():
                raise unplugged(root)
            make_folder(root, _ANOTHER)
            self._made = True
            return root

    def local_path(self, locator: Locator) -> Path:
        """Returns where the archive is.

        Raises:
            NotFound: There is no such artifact.
        """
        with self._errors():
            self._stat(locator)
            return Path(locator) / BUNDLE_NAME


class _Folder(Blobs):
    """A root, as a place for the stored layout. What is in it may be a stranger's: no link in it is followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.artifacts = root, root / ARTIFACTS

    def make(self) -> None:
        """Creates the folder of all artifacts in a root that is there."""
        if not self.artifacts.is_dir():
            make_folder(self.artifacts, _ANOTHER)
            _share(self.artifacts, self.root)

    # -- reading --

    def read(self, key: str, most: int = META_MAX_BYTES) -> Blob | None:
        try:
            with self._file(key) as (file, stream):
                data = bytearray()
                while len(data) <= most and (piece := stream.read(CHUNK)):
                    data += piece
        except NotFound:
            return None
        if len(data) > most:
            raise IntegrityError(f"{quoted(file.name)} is larger than it can be: over {most} bytes")
        return Blob(bytes(data), bytes(data), datetime.fromtimestamp(file.modified, UTC))

    def size(self, key: str) -> int | None:
        try:
            return (self.root / key).lstat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def open(self, key: str, offset: int) -> Iterator[ReadStream]:
        with self._file(key, offset) as (_, stream):
            yield stream

    @contextmanager
    def _file(self, key: str, offset: int = 0) -> Iterator[tuple[File, ReadStream]]:
        path = self.root / key
        self._require(path.parent)
        file = File(path, follow=False)
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(file.open(offset))
            except FileNotFoundError:
                raise NotFound(f"there is no {path.name} of the artifact {path.parent.name}") from None
            except Unsupported as error:
                raise IntegrityError(error.message) from None
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise IntegrityError(f"{quoted(str(path))} is a link, and was not followed") from None
            yield file, stream

    def _require(self, folder: Path) -> None:
        try:
            status = folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            if not self.artifacts.is_dir():
                raise unplugged(self.artifacts) from None
            raise NotFound(f"there is no artifact {folder.name}") from None
        if not stat.S_ISDIR(status.st_mode):
            raise IntegrityError(f"{quoted(str(folder))} is no folder; if it is a link, it was not followed")

    def ids(self, digits: str = "", after: str = "") -> Iterator[str]:
        try:
            with os.scandir(self.artifacts) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            if not self.root.is_dir():
                raise unplugged(self.root) from None
            return  # nothing was ever stored here
        yield from sorted(name for name in names if name.startswith(digits) and name > after and is_id(name))

    def held(self, sha256: str) -> Iterator[str]:
        # Far quicker than to list a hundred thousand names.
        ids = (sha256[:count] for count in range(ID_DIGITS, MOST_DIGITS + 1))
        return (artifact for artifact in ids if os.path.lexists(self.artifacts / artifact))

    # -- writing --

    def write(self, key: str, data: bytes, *, replacing: Any) -> bool:
        if replacing is not None and not self._is(key, replacing):
            return False
        with Staging(self.root) as staging:
            staging.write(_SMALL, data)
            _share(staging.path / _SMALL, self.artifacts)
            try:
                staging.commit_file(_SMALL, key, replace=replacing is not None)
            except DestinationExistsError:
                return False
        return True

    def remove(self, key: str, *, version: Any = None) -> bool:
        if version is not None and not self._is(key, version):
            return False
        path = self.root / key
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)
        return True

    def _is(self, key: str, version: Any) -> bool:
        now = self.read(key)
        return now is not None and now.version == version

    @contextmanager
    def receive(self, artifact: str, source: Source) -> Iterator[Callable[[], None]]:
        with Staging(self.root) as staging:
            stage(source, staging)
            staging.write(MANIFEST_NAME, source.manifest)

            def commit() -> None:
                for inner, name in ((STAGED, BUNDLE_NAME), (MANIFEST_NAME, MANIFEST_NAME)):
                    _share(staging.path / inner, self.artifacts)
                    staging.commit_file(inner, key_of(artifact, name), replace=True)
                fsync_folder(self.artifacts)

            yield commit

    def clear(self, artifact: str) -> None:
        for name in (BUNDLE_NAME, MANIFEST_NAME):
            (self.artifacts / artifact / name).unlink(missing_ok=True)

    @contextmanager
    def guard(self, artifact: str, *, new: bool = False) -> Iterator[None]:
        folder = self.artifacts / artifact
        lock = self._locked(folder, new=new)
        try:
            yield
        except BaseException:
            if new and not os.path.lexists(folder / META_NAME):
                with suppress(OSError):
                    self.clear(artifact)
            raise
        finally:
            lock.release()
            with suppress(OSError):  # not empty: as a rule
                folder.rmdir()

    def _locked(self, folder: Path, *, new: bool) -> FolderLock:
        while True:
            if new and not os.path.lexists(folder):
                with suppress(FileExistsError):
                    folder.mkdir()
                    _share(folder, self.artifacts)
            self._require(folder)
            try:
                return FolderLock(folder)
            except FileNotFoundError:  # deleted since
                continue


def _share(path: Path, above: Path) -> None:
    """Gives a group that shares the folder above (setgid) the same rights here, whatever the umask says."""
    shared = above.stat().st_mode
    if shared & stat.S_ISGID:
        mode = path.lstat().st_mode
        wanted = mode | shared & (stat.S_IRWXG if stat.S_ISDIR(mode) else stat.S_IRGRP | stat.S_IWGRP)
        if wanted != mode:
            with suppress(PermissionError):  # a file of another user's, or a file system without modes
                path.chmod(stat.S_IMODE(wanted))
