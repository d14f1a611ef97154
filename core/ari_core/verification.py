"""The one verification path: clone, verify, mirror, a server's upload check and a scrubber all come through here.

A stream is read once with bounded memory: decompress, parse the tar strictly, hash each member (writing it, or
not), compare with the manifest both ways, recompute the bundle digest. Nothing is ever written before the manifest
is known: when it does not come first, the source is read a second time.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from ari_core.bundle.gunzip import tar_chunks
from ari_core.bundle.untar import Member, TarReader
from ari_core.errors import (
    ArchiveRefusedError,
    ContentMismatchError,
    DigestMismatchError,
    Problem,
    escape,
    from_os_error,
)
from ari_core.fs import open_regular, write_all
from ari_core.limits import Limits, how_to_raise
from ari_core.manifest import FileEntry, Manifest, parse_manifest
from ari_core.names import MANIFEST_NAME, quoted, unsafe_reason
from ari_core.streams import CHUNK, BackgroundSha256, ByteSource, Progress, ReadAhead

OS_FILES: Final = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", ".directory", ".localized"})
OS_FOLDERS: Final = frozenset({"__pycache__", ".ipynb_checkpoints", ".Spotlight-V100", ".Trashes", ".fseventsd"})
"""What operating systems and interpreters leave in folders (docs/format.md), ignored only on request."""


class Sink(Protocol):
    """Where verified files are written, `fs.TreeWriter` for one."""

    def create(self, path: str, *, executable: bool) -> int:
        """Creates a file exclusively and returns its descriptor."""


@dataclass(slots=True)
class Report:
    """What was found by reading everything.

    Attributes:
        form: ``tar.gz``, ``tar`` or ``directory``.
        manifest: The manifest, parsed, with its recomputed bundle digest.
        archive_sha256: SHA-256 of the bytes that were read; None for a directory.
        archive_size: Their number; None for a directory.
        problems: What differs from the manifest; empty when it verifies.
    """

    form: str
    manifest: Manifest
    archive_sha256: str | None
    archive_size: int | None
    problems: list[Problem] = field(default_factory=list)

    @property
    def bundle_sha256(self) -> str:
        """The bundle digest."""
        return self.manifest.bundle_sha256

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's own bytes, which people mistake for the bundle digest."""
        return hashlib.sha256(self.manifest.raw).hexdigest()

    def require_clean(self) -> None:
        """Raises the first problem.

        Raises:
            ContentMismatchError: Files differ from the manifest.
        """
        if self.problems:
            first, more = self.problems[0], len(self.problems) - 1
            rest = f" (and {more} more {'problem' if more == 1 else 'problems'})" if more else ""
            where = f"'{first.path}' " if first.path else ""
            raise ContentMismatchError(f"{where}{first.detail}{rest}")

    def require_digest(self, expected: str, *, hint: str | None = None) -> None:
        """Compares the bundle digest with the expected one.

        Args:
            expected: The bundle digest.
            hint: The next step, where it is not to check the paper.

        Raises:
            DigestMismatchError: It is another; the message shows both, and says so when `expected` is the digest
                of the archive or of the manifest.
        """
        if self.bundle_sha256 == expected:
            return
        if expected == self.archive_sha256:
            hint = "the digest given is the SHA-256 of the archive file; use the bundle digest from the paper"
        elif expected == self.manifest_sha256:
            hint = f"the digest given is the SHA-256 of {MANIFEST_NAME}; use the bundle digest from the paper"
        raise DigestMismatchError(
            f"this is another bundle: expected {expected}, got {self.bundle_sha256}",
            expected=expected,
            got=self.bundle_sha256,
            hint=hint,
        )


def check_archive(
    source: ByteSource,
    *,
    limits: Limits,
    sink: Sink | None = None,
    expected: str | None = None,
    collect: bool = False,
    on_manifest_first: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Report:
    """Reads an archive to its very end and checks everything in it.

    Args:
        source: The archive; opened twice when there is a sink and the manifest does not come first.
        limits: Upper bounds.
        sink: Gets every file; without one nothing is written.
        expected: Bundle digest that makes writing worth while: for another bundle nothing goes to the sink. The
            caller still compares it (`Report.require_digest`).
        collect: Goes on after files that differ, so that `Report.problems` lists all.
        on_manifest_first: Called as soon as it is known that one reading will do.
        progress: Told how many bytes of the archive were read.

    Returns:
        The report; with `collect` it may hold problems.

    Raises:
        ArchiveRefusedError: A rule of the format is broken.
        ContentMismatchError: A file differs from the manifest, is missing or extra, and `collect` is not set.
    """
    comparison = _Comparison(limits, collect=collect)
    reading = _Reading(source, limits, progress)
    with reading.open() as reader:
        members = iter(reader)
        scan = _Scan(reader, limits)
        manifest = scan.run(members)
        wanted = sink if expected in {None, manifest.bundle_sha256} else None
        comparison.start(manifest)
        if scan.reached_end:
            scan.compare(comparison)
        else:
            on_manifest_first()
            if wanted:
                _write(wanted, MANIFEST_NAME, [memoryview(manifest.raw)], executable=False)
            for member in members:
                if member.is_directory:
                    scan.folder(member.path)
                else:
                    comparison.contents(member, reader, wanted)
        comparison.finish(scan.folders)
    report = reading.report(manifest, comparison.problems)
    if wanted and not report.problems and scan.reached_end:
        # The manifest came too late to write anything. Now that it is known, a second reading can.
        _write_known(source, limits, report, scan.root, wanted, progress)
    return report


def check_tree(
    folder: Path,
    *,
    limits: Limits,
    sink: Sink | None = None,
    expected: str | None = None,
    collect: bool = False,
    ignore_os_files: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Checks an unpacked bundle: a folder with ``manifest.lock`` at its top.

    Args:
        folder: The folder.
        limits: Upper bounds.
        sink: Gets a copy of every file, written while it is hashed.
        expected: As for `check_archive`.
        collect: As for `check_archive`.
        ignore_os_files: Overlooks extra files named in `OS_FILES` and `OS_FOLDERS`.
        progress: Told how many files were read.

    Raises:
        ArchiveRefusedError: There is no valid manifest.
        ContentMismatchError: As for `check_archive`.
        LocalPermissionError: A file or folder cannot be read.
    """
    manifest = parse_manifest(read_tree_manifest(folder / MANIFEST_NAME, limits), limits)
    wanted = sink if expected in {None, manifest.bundle_sha256} else None
    comparison = _Comparison(limits, collect=collect)
    comparison.start(manifest)
    if wanted:
        _write(wanted, MANIFEST_NAME, [memoryview(manifest.raw)], executable=False)
    walk = _TreeWalk(folder, limits, comparison, ignore_os_files=ignore_os_files)
    for done, path in enumerate(walk.files(), 1):
        comparison.file(path, folder / path, wanted)
        if progress:
            progress("reading", done, len(manifest.files))
    comparison.finish(walk.folders)
    return Report("directory", manifest, None, None, comparison.problems)


def unlisted(folder: Path, manifest: Manifest, limits: Limits) -> list[Problem]:
    """Finds what lies in an unpacked bundle and is not in its manifest, without reading any contents."""
    comparison = _Comparison(limits, collect=True)
    comparison.start(manifest)
    walk = _TreeWalk(folder, limits, comparison, ignore_os_files=False)
    for path in walk.files():
        comparison.claim(path)
    comparison.finish(walk.folders)
    return [problem for problem in comparison.problems if problem.kind == "extra"]


def read_manifest(source: ByteSource, limits: Limits) -> bytes:
    """Reads the manifest's bytes: cheap where it comes first; where it does not, verifies the whole archive.

    Raises:
        VerificationError: There is none to be found.
    """
    with source.open() as stream:
        reader = TarReader(tar_chunks(stream, lambda _data: None, lambda _form: None), limits)
        first = next(iter(reader), None)
        if (
            first
            and first.path == MANIFEST_NAME
            and not first.is_directory
            and first.size <= limits.manifest_bytes
        ):
            return b"".join(bytes(piece) for piece in reader.contents())
    return check_archive(source, limits=limits).manifest.raw


class _Reading:
    """One reading of a source, counted and hashed."""

    def __init__(self, source: ByteSource, limits: Limits, progress: Progress | None) -> None:
        self._source, self._limits, self._progress = source, limits, progress
        self._digest = BackgroundSha256()
        self._count = 0
        self._form = ""

    @contextmanager
    def open(self) -> Iterator[TarReader]:
        with (
            self._digest,
            self._source.open() as stream,
            ReadAhead(tar_chunks(stream, self._on_read, self._on_form), stream) as chunks,
        ):
            yield TarReader(chunks, self._limits)

    def _on_form(self, form: str) -> None:
        self._form = form

    def _on_read(self, data: bytes) -> None:
        self._digest.update(data)
        self._count += len(data)
        if self._progress:
            self._progress("reading", self._count, self._source.size)

    def report(self, manifest: Manifest, problems: list[Problem]) -> Report:
        """Valid once the members were read to the end."""
        return Report(self._form, manifest, self._digest.hexdigest(), self._count, problems)


class _Seen(NamedTuple):
    """A member that was hashed before the manifest was known."""

    size: int
    sha256: str


class _Scan:
    """Reads members until the manifest is known: usually one; all of them when it does not come first.

    Attributes:
        reached_end: All members were read (and hashed, none written).
        root: Common top directory with its slash, or "".
        folders: Paths of directories, relative to the root once the manifest is known.
    """

    def __init__(self, reader: TarReader, limits: Limits) -> None:
        self._reader, self._limits = reader, limits
        self._files: dict[str, _Seen] = {}
        self._candidates: dict[str, bytes] = {}  # contents of what may turn out to be the manifest
        self._names = _Names(limits)
        self.reached_end = False
        self.root = ""
        self.folders: set[str] = set()

    def run(self, members: Iterator[Member]) -> Manifest:
        for member in members:
            if member.is_directory:
                self.folder(member.path)
            elif member.path == MANIFEST_NAME and not self._files:
                return parse_manifest(self._read_whole(member), self._limits)
            else:
                self._hash(member)
        self.reached_end = True
        return parse_manifest(self._find_manifest(), self._limits)

    def folder(self, path: str) -> None:
        if path:
            self._names.keep(path)
            self.folders.add(path)
        _bound(self.folders, self._limits, "directories")

    def compare(self, comparison: _Comparison) -> None:
        """Compares what was hashed with the manifest that came behind it."""
        for path, (size, sha256) in self._files.items():
            name = path[len(self.root) :]
            if name == MANIFEST_NAME:
                continue
            entry = comparison.claim(name)
            if entry and comparison.size(entry, size):
                comparison.digest(entry, sha256)

    def _hash(self, member: Member) -> None:
        if member.path in self._files:
            raise ArchiveRefusedError(f"{quoted(member.path)} is in the archive twice")
        if self._may_be_manifest(member.path):
            contents = self._candidates[member.path] = self._read_whole(member)
            digest = hashlib.sha256(contents)
        else:
            digest = hashlib.sha256()
            for piece in self._reader.contents():
                digest.update(piece)
        self._names.keep(member.path)
        self._files[member.path] = _Seen(member.size, digest.hexdigest())
        _bound(self._files, self._limits, "files", spare=1)  # the manifest itself does not count

    def _may_be_manifest(self, path: str) -> bool:
        """Only the root, or the top directory of the very first file, can hold the manifest."""
        top = next(iter(self._files), path).partition("/")[0]
        return path in {MANIFEST_NAME, f"{top}/{MANIFEST_NAME}"}

    def _read_whole(self, member: Member) -> bytes:
        if member.size > self._limits.manifest_bytes:
            raise ArchiveRefusedError(
                f"{MANIFEST_NAME} is {member.size} bytes, over the limit of {self._limits.manifest_bytes} "
                f"({how_to_raise('manifest_bytes')})"
            )
        return b"".join(bytes(piece) for piece in self._reader.contents())

    def _find_manifest(self) -> bytes:
        if MANIFEST_NAME in self._candidates:
            return self._candidates[MANIFEST_NAME]
        for path, raw in self._candidates.items():
            root = path.removesuffix(MANIFEST_NAME)
            if all(name.startswith(root) for name in (*self._files, *(f"{name}/" for name in self.folders))):
                self.root = root
                self.folders = {name.removeprefix(root) for name in self.folders if f"{name}/" != root}
                return raw
        raise ArchiveRefusedError(f"there is no {MANIFEST_NAME} at the top of the archive")


class _Comparison:
    """The manifest against what was found, both ways."""

    def __init__(self, limits: Limits, *, collect: bool) -> None:
        self._limits = limits
        self._collect = collect
        self._pending: dict[str, FileEntry | None] = {}  # None: already found
        self._extra: set[str] = set()
        self._names = _Names(limits)
        self.problems: list[Problem] = []

    def start(self, manifest: Manifest) -> None:
        self._pending = {entry.path: entry for entry in manifest.files}

    def lists(self, path: str) -> bool:
        """Says whether the manifest lists a path."""
        return path in self._pending

    def claim(self, path: str) -> FileEntry | None:
        """Returns the entry for a path that was found, once."""
        entry = self._pending.get(path)
        if path in self._extra or path == MANIFEST_NAME or (entry is None and path in self._pending):
            raise ArchiveRefusedError(f"{quoted(path)} is in the archive twice")
        if entry is None:
            self._names.keep(path)
            self._extra.add(path)
            _bound(self._extra, self._limits, "files that the manifest does not list")
            self._problem("extra", path, "is not in the manifest")
            return None
        self._pending[path] = None
        return entry

    def size(self, entry: FileEntry, size: int) -> bool:
        if entry.size == size:
            return True
        self._problem("differs", entry.path, f"has {size} bytes, the manifest says {entry.size}")
        return False

    def digest(self, entry: FileEntry, sha256: str) -> None:
        if entry.sha256 != sha256:
            self._problem("differs", entry.path, f"has the SHA-256 {sha256}, the manifest says {entry.sha256}")

    def contents(self, member: Member, reader: TarReader, sink: Sink | None) -> None:
        """Claims, hashes and writes the current member of an archive."""
        entry = self.claim(member.path)
        if entry and self.size(entry, member.size):
            digest = hashlib.sha256()
            if sink:
                _write(sink, member.path, reader.contents(), executable=member.executable, also=digest.update)
            else:
                for piece in reader.contents():
                    digest.update(piece)
            self.digest(entry, digest.hexdigest())

    def file(self, path: str, file: Path, sink: Sink | None) -> None:
        """Claims, hashes and copies a file of an unpacked bundle."""
        entry = self.claim(path)
        if entry is None:
            return
        fd = _open_regular(file)
        if fd is None:
            self._problem("differs", path, "is not a regular file")
            return
        try:
            status = os.fstat(fd)
            if not self.size(entry, status.st_size):
                return
            digest = hashlib.sha256()
            pieces = _read_file(fd, file)
            if sink:
                _write(sink, path, pieces, executable=bool(status.st_mode & 0o100), also=digest.update)
            else:
                for piece in pieces:
                    digest.update(piece)
        finally:
            os.close(fd)
        self.digest(entry, digest.hexdigest())

    def unexpected(self, path: str, detail: str) -> None:
        self._problem("extra", path, detail)

    def finish(self, folders: Iterable[str]) -> None:
        """Reports what the manifest lists and nobody found, and directories it has no use for."""
        for path, entry in self._pending.items():
            if entry is not None:
                self._problem("missing", path, "is missing")
        listed = sorted(self._pending)
        for folder in sorted(folders):
            place = bisect.bisect_left(listed, folder + "/")
            if place == len(listed) or not listed[place].startswith(folder + "/"):
                self._problem("extra", folder, "is a directory that holds no listed file")

    def _problem(self, kind: str, path: str, detail: str) -> None:
        problem = Problem(kind, escape(path), detail)
        if not self._collect:
            raise ContentMismatchError(f"{quoted(path)} {detail}")
        self.problems.append(problem)


def _write_known(
    source: ByteSource, limits: Limits, report: Report, root: str, sink: Sink, progress: Progress | None
) -> None:
    """Reads a verified archive again to write it, checking everything again: it may have changed in between."""
    reading = _Reading(source, limits, progress)
    comparison = _Comparison(limits, collect=False)
    comparison.start(report.manifest)
    _write(sink, MANIFEST_NAME, [memoryview(report.manifest.raw)], executable=False)
    with reading.open() as reader:
        for member in reader:
            path = member.path.removeprefix(root)
            if not member.is_directory and path != MANIFEST_NAME:
                comparison.contents(member._replace(path=path), reader, sink)
    comparison.finish(())
    if reading.report(report.manifest, []).archive_sha256 != report.archive_sha256:
        raise ArchiveRefusedError("the archive changed while it was being read")


class _Names:
    """Bounds the names that are kept before a manifest says which there may be: no manifest could list more."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._bytes = limits, 0

    def keep(self, name: str) -> None:
        self._bytes += len(name)
        if self._bytes > self._limits.manifest_bytes:
            raise ArchiveRefusedError(
                f"the names take more than {self._limits.manifest_bytes} bytes ({how_to_raise('manifest_bytes')})"
            )


def _bound(found: Sized, limits: Limits, what: str, spare: int = 0) -> None:
    if len(found) > limits.files + spare:
        raise ArchiveRefusedError(f"more than {limits.files} {what}, the limit ({how_to_raise('files')})")


def _write(
    sink: Sink,
    path: str,
    pieces: Iterable[memoryview],
    *,
    executable: bool,
    also: Callable[[memoryview], None] = lambda _piece: None,
) -> None:
    fd = sink.create(path, executable=executable)
    try:
        try:
            for piece in pieces:
                write_all(fd, piece)
                also(piece)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"writing {quoted(path)}") from error


# -- unpacked bundles --------------------------------------------------------------------------------------------


class _TreeWalk:
    """Finds what is in a folder without following links or opening anything that is not a regular file."""

    def __init__(self, top: Path, limits: Limits, comparison: _Comparison, *, ignore_os_files: bool) -> None:
        self._top, self._limits, self._comparison = top, limits, comparison
        self._ignore_os_files = ignore_os_files
        self.folders: set[str] = set()

    def files(self) -> Iterator[str]:
        todo = [""]
        while todo:
            prefix = todo.pop()
            try:
                with os.scandir(self._top / prefix) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                raise from_os_error(error, f"reading the folder {quoted(str(self._top / prefix))}") from error
            for entry in entries:
                path = f"{prefix}/{entry.name}" if prefix else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if path == MANIFEST_NAME:
                    continue
                if (
                    self._ignore_os_files
                    and not self._comparison.lists(path)
                    and _is_left_by_system(path, is_folder)
                ):
                    if is_folder:
                        todo.append(path)  # what is listed in it still counts
                elif reason := unsafe_reason(path, self._limits):
                    self._comparison.unexpected(path, reason)
                elif is_folder:
                    self.folders.add(path)
                    todo.append(path)
                else:
                    yield path


def _is_left_by_system(path: str, is_folder: bool) -> bool:  # noqa: FBT001 - private, and called once
    *above, name = path.split("/")
    if not OS_FOLDERS.isdisjoint(above):
        return True
    return name in OS_FOLDERS if is_folder else name in OS_FILES or name.startswith("._")


def _open_regular(file: Path) -> int | None:
    """Opens a file for reading unless it is a link, a FIFO or anything else that is not a plain file."""
    try:
        return open_regular(file, follow=False)
    except OSError as error:
        if file.is_symlink() or not file.is_file():
            return None
        raise from_os_error(error, f"reading {quoted(str(file))}") from error


def _read_file(fd: int, file: Path) -> Iterator[memoryview]:
    while True:
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            raise from_os_error(error, f"reading {quoted(str(file))}") from error
        if not data:
            return
        yield memoryview(data)


def read_tree_manifest(file: Path, limits: Limits) -> bytes:
    """Reads the manifest of an unpacked bundle.

    Raises:
        ArchiveRefusedError: It is missing, too large or not a regular file.
        LocalPermissionError: It cannot be read.
    """
    if not file.is_symlink() and not file.exists():
        raise ArchiveRefusedError(
            f"there is no {MANIFEST_NAME} in {quoted(str(file.parent))}",
            hint="give the folder that holds it: an unpacked bundle has it at its top",
        )
    fd = _open_regular(file)
    if fd is None:
        raise ArchiveRefusedError(f"{quoted(str(file))} is not a regular file")
    try:
        size = os.fstat(fd).st_size
        if size > limits.manifest_bytes:
            raise ArchiveRefusedError(
                f"{MANIFEST_NAME} is {size} bytes, over the limit of {limits.manifest_bytes} "
                f"({how_to_raise('manifest_bytes')})"
            )
        return b"".join(bytes(piece) for piece in _read_file(fd, file))
    finally:
        os.close(fd)
