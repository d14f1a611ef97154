"""Archives in private folders: what is kept of a download for a second reading, and what is ready to be stored."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ari_core.bundle.writer import Written, write_bundle
from ari_core.contract import Source
from ari_core.errors import IntegrityError, from_os_error
from ari_core.fs import Staging, TreeWriter, write_all
from ari_core.manifest import Manifest
from ari_core.names import BUNDLE_NAME, quoted
from ari_core.streams import ByteSource, Interruptible, Progress, ReadStream
from ari_core.workflows.refs import LocalFile

SPOOL: Final = "archive"
"""Name of the file in staging that a `Spool` writes."""


class Spool:
    """A source that costs something to read, copied to a file while it is read for the first time.

    A second reading is of that copy. It holds the compressed bytes only.
    """

    def __init__(self, source: ByteSource, staging: Staging) -> None:
        self._source, self._staging = source, staging
        self._keep = True
        self._complete = False
        self._lock = threading.Lock()
        self.name = source.name

    @property
    def size(self) -> int | None:
        """Bytes of the source."""
        return self._source.size

    def stop(self) -> None:
        """One reading is enough: stop copying."""
        self._keep = False

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning.

        Raises:
            AriError: As the source says; or the disk is full.
        """
        if self._complete:
            with LocalFile(self._staging.path / SPOOL).open() as again:
                yield again
            return
        fd = _create(SPOOL, self._staging)
        try:
            with self._source.open() as stream:
                yield _SpoolStream(self, stream, fd)
        finally:
            with self._lock:  # a thread that hangs in `read` can wake up when the descriptor is another file's
                self._keep = False
                os.close(fd)
        self._complete = True

    def copy(self, fd: int, data: bytes) -> None:
        """Keeps what was read."""
        with self._lock:
            if not self._keep:
                return
            try:
                write_all(fd, data)
            except OSError as error:
                raise from_os_error(error, f"writing in {quoted(str(self._staging.folder))}") from error


class _SpoolStream:
    def __init__(self, spool: Spool, inner: ReadStream, fd: int) -> None:
        self._spool, self._inner, self._fd = spool, inner, fd

    def read(self, size: int, /) -> bytes:
        data = self._inner.read(size)
        self._spool.copy(self._fd, data)
        return data

    def interrupt(self) -> None:
        """Makes a `read` that waits end now."""
        if isinstance(self._inner, Interruptible):
            self._inner.interrupt()


@contextmanager
def new_tree(name: str, staging: Staging) -> Iterator[TreeWriter]:
    """Creates a folder in staging, to unpack a bundle to.

    Raises:
        AriError: The system refused.
    """
    try:
        os.mkdir(name, 0o755, dir_fd=staging.fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, f"creating a folder in {quoted(str(staging.folder))}") from error
    try:
        with TreeWriter(fd) as sink:
            yield sink
    finally:
        os.close(fd)


def pack(tree: Path, manifest: Manifest, staging: Staging, progress: Progress | None) -> PackedFile:
    """Packs an unpacked bundle into staging, in WRITE form.

    Raises:
        AriError: As `write_bundle` says.
    """
    fd = _create(BUNDLE_NAME, staging)
    try:
        written = write_bundle(tree, manifest, fd, progress=progress)
    finally:
        os.close(fd)
    return PackedFile(staging.path / BUNDLE_NAME, written, manifest, progress)


def _create(name: str, staging: Staging) -> int:
    try:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, f"creating a file in {quoted(str(staging.folder))}") from error


class PackedFile(Source):
    """An archive that was verified or just written, in a file."""

    def __init__(
        self,
        path: Path,
        written: Written,
        manifest: Manifest,
        progress: Progress | None = None,
        *,
        linkable: bool = True,
    ) -> None:
        """Keeps what is known of it.

        Args:
            path: The file.
            written: Its size and digest.
            manifest: What is in it.
            progress: Told how many bytes were passed on.
            linkable: It lies in a private folder, and no store has it yet: the next one may link it.
        """
        self._path, self._manifest, self._progress, self._linkable = path, manifest, progress, linkable
        self.size = written.size
        self.archive_sha256 = written.archive_sha256
        self.bundle_sha256 = manifest.bundle_sha256

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning; raises before its end if it changed."""
        with LocalFile(self._path).open() as file:
            yield _CheckedFile(file, self.archive_sha256, self.size, self._progress)

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._manifest.raw

    @property
    def local_path(self) -> Path | None:
        """The file itself."""
        return self._path if self._linkable else None

    def checksum(self, algorithm: str) -> str | None:
        """Returns another checksum of it as hex digits; None if Python has no such algorithm."""
        try:
            with self._path.open("rb", buffering=0) as file:
                return hashlib.file_digest(file, algorithm).hexdigest()
        except (ValueError, TypeError):  # unknown, or without a length of its own
            return None
        except OSError as error:
            raise from_os_error(error, f"reading {quoted(str(self._path))}") from error

    def to_be_read(self) -> PackedFile:
        """Returns it for one more store: two that link one file would be one copy, and be damaged together."""
        written = Written(self.size, self.archive_sha256)
        return PackedFile(self._path, written, self._manifest, self._progress, linkable=False)


class _CheckedFile:
    """Raises instead of ending when the bytes are not those that were written."""

    def __init__(self, file: ReadStream, sha256: str, size: int, progress: Progress | None) -> None:
        self._file, self._sha256, self._size, self._progress = file, sha256, size, progress
        self._digest = hashlib.sha256()
        self._count = 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self._count += len(data)
        if self._progress:
            self._progress("sending", self._count, self._size)
        if not data and size and self._digest.hexdigest() != self._sha256:
            raise IntegrityError("the archive changed on the disk while it was being read")
        return data
