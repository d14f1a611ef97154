"""Get a copy, check everything, and only then let it appear."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ari_core.errors import DestinationExistsError, UsageError, from_os_error
from ari_core.fs import Staging, TreeWriter, is_empty_folder, write_all
from ari_core.limits import Limits
from ari_core.names import quoted
from ari_core.streams import ByteSource, Progress, ReadStream
from ari_core.verification import Report, check_archive, check_tree
from ari_core.workflows.refs import LocalFile, Opened, open_ref

_TREE: Final = "tree"
_SPOOL: Final = "archive"
_ENDINGS: Final = {"tar.gz": ".tar.gz", "tar": ".tar"}


@dataclass(frozen=True, slots=True)
class CloneResult:
    """A copy that verified and is now at its destination.

    Attributes:
        ref: Where it came from.
        dest: Where it is: a folder, or the archive when it was not unpacked.
        bundle_sha256: The bundle digest.
        archive_sha256: SHA-256 of the archive; None when it came from an unpacked folder.
        file_count: Files, the manifest not counted.
        total_size: Their bytes.
        extracted: Whether it was unpacked.
        anchored_by: What it was compared with: ``paper``, ``record``, ``archive-id`` or ``none``.
        beside: The folder that was named, when it is not what was read: its other files were not checked.
    """

    ref: str
    dest: Path
    bundle_sha256: str
    archive_sha256: str | None
    file_count: int
    total_size: int
    extracted: bool
    anchored_by: str
    beside: Path | None = None


def clone(
    ref: str,
    dest: str | os.PathLike[str] | None = None,
    *,
    expect_sha256: str | None = None,
    require_digest: bool = False,
    extract: bool = True,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> CloneResult:
    """Verifies a copy and unpacks it, or leaves nothing.

    Args:
        ref: A path, ``file:///``, ``https://`` or any ref that an installed backend knows.
        dest: Where to put it; absent or an empty folder. Default: a name derived from the ref, here.
        expect_sha256: The bundle digest printed in the paper.
        require_digest: Makes it an error when there is no digest to compare with.
        extract: False stores the verified archive itself.
        options: Settings of the backend.
        limits: Default: `Limits.from_environment`.
        progress: Told how far it is.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        DestinationExistsError: Something is at `dest`.
        VerificationError: It is not what it should be.
        AriError: Anything else; see `ari_core.errors`.
    """
    limits = limits or Limits.from_environment()
    target = None if dest is None else _free(Path(dest))
    with open_ref(
        ref, expect_sha256=expect_sha256, require_digest=require_digest, options=options, limits=limits, warn=warn
    ) as opened:
        if opened.source is None and not extract:
            raise UsageError(
                f"{quoted(ref)} is an unpacked folder: there is no archive to store",
                hint="leave out --no-extract",
            )
        if target is None:
            target = _free(Path(opened.name or "bundle")) if extract else None
        with Staging((target or Path(opened.name)).absolute().parent) as staging:
            if extract:
                assert target is not None  # noqa: S101 - for the type checker: set just above
                report = _unpack(opened, staging, limits, progress)
                with contextlib.suppress(OSError):  # an empty folder, whose mode is somebody's choice
                    os.chmod(_TREE, stat.S_IMODE(target.lstat().st_mode) & 0o777, dir_fd=staging.fd)
                staging.commit_tree(_TREE, target.name)
            else:
                report, target = _store(opened, staging, target, limits, progress)
    return CloneResult(
        ref=opened.ref,
        dest=target.absolute(),
        bundle_sha256=report.bundle_sha256,
        archive_sha256=report.archive_sha256,
        file_count=len(report.manifest.files),
        total_size=report.manifest.total_size,
        extracted=extract,
        anchored_by=opened.expected.anchored_by,
        beside=opened.beside,
    )


def _free(dest: Path) -> Path:
    """Returns `dest` if a clone may appear there.

    Raises:
        DestinationExistsError: It is anything but absent or an empty folder.
    """
    if dest.name in {"", ".."}:
        dest = dest.resolve()
    try:
        if os.path.lexists(dest) and not is_empty_folder(dest):
            raise DestinationExistsError(f"{quoted(str(dest))} already exists; it was not touched")
    except OSError as error:
        raise from_os_error(error, f"looking at {quoted(str(dest))}") from error
    return dest


def _unpack(opened: Opened, staging: Staging, limits: Limits, progress: Progress | None) -> Report:
    expected = opened.expected.bundle_sha256
    try:
        os.mkdir(_TREE, 0o755, dir_fd=staging.fd)
        fd = os.open(_TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, f"creating a folder in {quoted(str(staging.path))}") from error
    try:
        with TreeWriter(fd) as sink:
            if opened.source is None:
                assert opened.folder is not None  # noqa: S101 - one of the two is set
                report = check_tree(opened.folder, limits=limits, sink=sink, expected=expected, progress=progress)
            elif opened.is_local:
                report = check_archive(
                    opened.source, limits=limits, sink=sink, expected=expected, progress=progress
                )
            else:
                spool = _Spool(opened.source, staging)
                report = check_archive(
                    spool,
                    limits=limits,
                    sink=sink,
                    expected=expected,
                    on_manifest_first=spool.stop,
                    progress=progress,
                )
    finally:
        os.close(fd)
    opened.expected.check(report)
    return report


def _store(
    opened: Opened, staging: Staging, target: Path | None, limits: Limits, progress: Progress | None
) -> tuple[Report, Path]:
    """Checks an archive while copying it, and lets the copy appear."""
    assert opened.source is not None  # noqa: S101 - the caller refused folders
    report = check_archive(_Spool(opened.source, staging), limits=limits, progress=progress)
    opened.expected.check(report)
    target = target or _free(Path((opened.name or "bundle") + _ENDINGS[report.form]))
    if target.is_dir():  # an empty folder is good enough for a tree, not for a file
        raise DestinationExistsError(f"{quoted(str(target))} is a folder; it was not touched")
    staging.commit_file(_SPOOL, target.name)
    return report, target


class _Spool:
    """A source that costs something to read, copied to a file while it is read for the first time.

    A second reading is of that copy. It holds the compressed bytes only.
    """

    def __init__(self, source: ByteSource, staging: Staging) -> None:
        self._source, self._staging = source, staging
        self._keep = True
        self._complete = False
        self.name = source.name

    @property
    def size(self) -> int | None:
        return self._source.size

    def stop(self) -> None:
        """One reading is enough: stop copying."""
        self._keep = False

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        if self._complete:
            with LocalFile(self._staging.path / _SPOOL).open() as again:
                yield again
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(_SPOOL, flags, 0o644, dir_fd=self._staging.fd)
        except OSError as error:
            raise from_os_error(error, "creating a temporary file") from error
        try:
            with self._source.open() as stream:
                yield _SpoolStream(self, stream, fd)
        finally:
            os.close(fd)
        self._complete = True

    def copy(self, fd: int, data: bytes) -> None:
        if not self._keep:
            return
        try:
            write_all(fd, data)
        except OSError as error:
            raise from_os_error(error, f"writing in {quoted(str(self._staging.folder))}") from error


class _SpoolStream:
    def __init__(self, spool: _Spool, inner: ReadStream, fd: int) -> None:
        self._spool, self._inner, self._fd = spool, inner, fd

    def read(self, size: int, /) -> bytes:
        data = self._inner.read(size)
        self._spool.copy(self._fd, data)
        return data
