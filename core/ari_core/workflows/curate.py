"""Makes ``ear_published/`` out of ``ear/``: what the policy lets through, and its manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Self

from ari_core.citation import CITATION_FILES
from ari_core.errors import ArchiveRefusedError, CurationError, LocalPermissionError, escape, from_os_error
from ari_core.fs import Staging, TreeWriter, recover_tree, write_all
from ari_core.limits import Limits, how_to_raise
from ari_core.manifest import FileEntry, bundle_digest, render_manifest
from ari_core.names import MANIFEST_NAME, quoted, unportable
from ari_core.policy import DEFAULT_INCLUDE, POLICY_NAME, Policy, Verdict, is_denied_place, load_policy
from ari_core.secrets_scan import SCANNED_BYTES, find_secrets
from ari_core.selection import Chosen, Selection, check_size, select, shown
from ari_core.streams import CHUNK, Progress
from ari_core.wish import why_over
from ari_core.workflows.checkpoint import EAR, PUBLISHED, ear_of, find_checkpoint

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: what became a named pipe since it was looked at must not be waited for.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIKE_POLICY: Final = {POLICY_NAME, "publish.yml"}  # in lower case
_REFUSED: Final = {errno.EACCES, errno.EPERM}
_ANOTHER: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}  # it is no longer what was looked at


@dataclass(frozen=True, slots=True)
class CurateResult:
    """What was curated.

    Attributes:
        ear_published_dir: The curated files and their manifest.
        manifest_path: ``manifest.lock`` in it.
        bundle_sha256: The bundle digest.
        files: By path.
        excluded_count: Files that the built-in deny rules left out, plus those asked for that ``exclude`` did.
        not_asked_for: Files that neither ``include`` nor a deny rule matches.
        skipped: Path and reason of what was asked for, or looks as if it was, and yet is not published.
        warnings: One line each: content that looks like a secret, unportable names, globs that match nothing.
    """

    ear_published_dir: Path
    manifest_path: Path
    bundle_sha256: str
    files: tuple[FileEntry, ...]
    excluded_count: int
    not_asked_for: int
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    @property
    def included_files(self) -> list[str]:
        """Paths of the published files."""
        return [entry.path for entry in self.files]


def curate(
    checkpoint: str | Path | None = None,
    *,
    scan_secrets: bool = True,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> CurateResult:
    """Copies what ``publish.yaml`` lets through from ``ear/`` to ``ear_published/``, and writes its manifest.

    The new ``ear_published/`` takes the place of the old one at the end and in one step; whatever fails, or kills
    the program, leaves the old one. Files are hashed as they are copied: what is published is what was seen now.

    Args:
        checkpoint: The folder with ``ear/``; default as in `find_checkpoint`.
        scan_secrets: Warn about content that looks like a secret, in the first MiB of each text file.
        limits: Default: `Limits.from_environment`.
        progress: Called with ``"curating"``, bytes done and bytes in all.

    Raises:
        CheckpointNotFoundError: No checkpoint, or no ``ear/`` in it.
        ConfigurationError: ``publish.yaml`` breaks its schema.
        CurationError: A file that is asked for cannot be published as it is, or changes while it is read; or
            ``ear_published`` is something that curation did not make.
        LocalPermissionError: Something cannot be read or written.
        DiskFullError: No space.
    """
    limits = limits or Limits.from_environment()
    folder = find_checkpoint(checkpoint)
    ear = ear_of(folder)
    if (folder / EAR).is_symlink() and is_denied_place(ear.as_posix()):
        raise CurationError(
            f"{EAR}/ is a link to {quoted(str(ear))}, which is never published", hint="copy what may be published"
        )
    policy = load_policy(ear)
    destination = folder / PUBLISHED
    _check_ours(destination)
    recover_tree(folder, PUBLISHED)
    selection = select(ear, policy, limits)
    meter = _Meter(progress, sum(chosen.size for chosen in selection.files))
    files: list[FileEntry] = []
    suspicions: list[str] = []
    with Staging(folder) as staging:
        with _new_tree(staging) as tree, _Ear(ear) as source:
            for chosen in selection.files:
                with source.open(chosen) as (fd, found):
                    check_size(chosen.path, found.st_size, policy)
                    entry, beginning = _copy(fd, found, chosen.path, tree, meter)
                files.append(entry)
                if scan_secrets:
                    suspicions += _suspicions(entry.path, beginning)
            manifest = render_manifest(files, policy.publish_section(), selection.excluded_count)
            if len(manifest) > limits.manifest_bytes:
                raise CurationError(
                    f"{MANIFEST_NAME} would have {len(manifest)} bytes, over the limit of {limits.manifest_bytes} "
                    f"({how_to_raise('manifest_bytes')})"
                )
            with _created(MANIFEST_NAME, tree, executable=False) as fd:
                write_all(fd, manifest)
        staging.replace_tree(PUBLISHED, PUBLISHED)
    return CurateResult(
        ear_published_dir=destination,
        manifest_path=destination / MANIFEST_NAME,
        bundle_sha256=bundle_digest(files),
        files=tuple(files),
        excluded_count=selection.excluded_count,
        not_asked_for=selection.not_asked_for,
        skipped=tuple(selection.skipped),
        warnings=(*_warnings(folder, policy, selection), *suspicions),
    )


def _check_ours(destination: Path) -> None:
    """Refuses to replace what curation did not make."""
    try:
        if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
            why = "is not a folder"
        elif (
            destination.is_dir()
            and (found := {path.name for path in destination.iterdir()})
            and MANIFEST_NAME not in found
        ):
            why = f"has no {MANIFEST_NAME}, so curation did not make it"
        else:
            return
    except OSError as error:
        raise from_os_error(error, f"looking into {quoted(str(destination))}") from error
    raise CurationError(f"{quoted(str(destination))} {why}; it was not touched", hint="move it away")


class _Meter:
    """Tells `Progress` how many bytes were copied."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress("curating", self._done, self._total)


class _Ear:
    """Opens files below ``ear/`` folder by folder, so that no link put there meanwhile leads elsewhere."""

    def __init__(self, ear: Path) -> None:
        self._root = os.open(ear, _FOLDER)
        self._folder, self._fd = "", os.dup(self._root)

    @contextmanager
    def open(self, chosen: Chosen) -> Iterator[tuple[int, os.stat_result]]:
        """Opens a file.

        Raises:
            CurationError: It is not the regular file that was chosen.
            LocalPermissionError: It cannot be read.
        """
        folder, _, name = chosen.real.rpartition("/")
        try:
            if folder != self._folder:
                self._enter(folder)
            fd = os.open(name, _FILE, dir_fd=self._fd)
        except OSError as error:
            _unreadable(chosen.path, error)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                _changed(chosen.path)
            yield fd, found
        finally:
            os.close(fd)

    def _enter(self, folder: str) -> None:
        fd = os.dup(self._root)
        for part in filter(None, folder.split("/")):
            try:
                below = os.open(part, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        os.close(self._fd)
        self._folder, self._fd = folder, fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        os.close(self._root)


@contextmanager
def _new_tree(staging: Staging) -> Iterator[TreeWriter]:
    try:
        os.mkdir(PUBLISHED, 0o755, dir_fd=staging.fd)
        fd = os.open(PUBLISHED, _FOLDER, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, f"creating a folder in {quoted(str(staging.path))}") from error
    try:
        with TreeWriter(fd) as tree:
            yield tree
    finally:
        os.close(fd)


@contextmanager
def _created(path: str, tree: TreeWriter, *, executable: bool) -> Iterator[int]:
    """Creates a file of the new tree; what the system says while it is written names it."""
    try:
        fd = tree.create(path, executable=executable)
    except ArchiveRefusedError as error:
        raise CurationError(error.message, hint=f"rename it, or exclude it in {POLICY_NAME}") from None
    try:
        yield fd
    except OSError as error:
        raise from_os_error(error, f"writing {quoted(f'{PUBLISHED}/{path}')}") from error
    finally:
        os.close(fd)


def _copy(fd: int, found: os.stat_result, path: str, tree: TreeWriter, meter: _Meter) -> tuple[FileEntry, bytes]:
    """Copies a file and hashes it on the way.

    Returns:
        Its entry, and as much of its beginning as a scan for secrets looks at.
    """
    digest = hashlib.sha256()
    beginning = bytearray()
    with _created(path, tree, executable=bool(found.st_mode & stat.S_IXUSR)) as out:
        for chunk in _read(fd, found, path):
            digest.update(chunk)
            write_all(out, chunk)
            meter.add(len(chunk))
            if (room := SCANNED_BYTES - len(beginning)) > 0:
                beginning += chunk[:room]
    return FileEntry(path, found.st_size, digest.hexdigest()), bytes(beginning)


def _read(fd: int, before: os.stat_result, path: str) -> Iterator[bytes]:
    """Yields a file in chunks and makes sure that it stays the same meanwhile."""
    left = before.st_size
    try:
        while chunk := os.read(fd, CHUNK):
            left -= len(chunk)
            if left < 0:
                _changed(path)
            yield chunk
        after = os.fstat(fd)
    except OSError as error:
        _unreadable(path, error)
    if left or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        _changed(path)


def _changed(path: str) -> NoReturn:
    raise CurationError(
        f"{shown(path)} changed while it was being read",
        hint="wait until nothing writes to ear/ any more, then curate again",
    )


def _unreadable(path: str, error: OSError) -> NoReturn:
    if error.errno in _ANOTHER:
        _changed(path)
    what = f"reading {shown(path)}: {error.strerror}"
    raise (LocalPermissionError if error.errno in _REFUSED else CurationError)(what) from error


def _suspicions(path: str, beginning: bytes) -> Iterator[str]:
    for line, kind in find_secrets(beginning):
        yield (
            f"{escape(path)}:{line}: looks like a secret ({kind}); it would be published: remove it, or say "
            "--no-scan-secrets"
        )


def _warnings(checkpoint: Path, policy: Policy, selection: Selection) -> Iterator[str]:
    if (checkpoint / EAR).is_symlink():
        yield f"{EAR}/ is a link: what is published is in {(checkpoint / EAR).resolve()}"
    paths = [chosen.path for chosen in selection.files]
    ear = checkpoint / EAR
    has_policy = (ear / POLICY_NAME).exists()
    if not paths:
        yield "nothing in ear/ is both asked for and allowed: the bundle is empty" + (
            f"; see include in {POLICY_NAME}" if has_policy else ""
        )
    for glob in policy.unmatched(paths):
        yield f"{POLICY_NAME}: include {quoted(glob)} matches nothing that is published{_if_folder(ear, glob)}"
    for glob in selection.idle_excludes:
        yield f"{POLICY_NAME}: exclude {quoted(glob)} matches nothing in {EAR}/{_if_folder(ear, glob)}"
    if not has_policy:
        yield from _without_policy(checkpoint, selection.not_asked_for)
    yield from _without_description(ear, policy, paths)
    if over := why_over(policy.visibility):
        yield f"{POLICY_NAME}: {over}"
    for path, reason in unportable([*paths, MANIFEST_NAME]):
        yield f"{escape(path)}: {escape(reason)}"


def _if_folder(ear: Path, glob: str) -> str:
    bare = glob.rstrip("/")
    if not os.path.isdir(f"{ear}/{bare}"):  # noqa: PTH112 - a glob need not be a possible path
        return ""
    return f"; for all that is in this folder write {quoted(f'{bare}/**')}"


def _without_policy(checkpoint: Path, not_asked_for: int) -> Iterator[str]:
    misplaced = [*_like_policies(checkpoint / EAR, f"{EAR}/"), *_like_policies(checkpoint, "")]
    for name in misplaced:
        yield f"{escape(name)} is not read: a policy goes into {EAR}/{POLICY_NAME}"
    if not_asked_for and not misplaced:
        left = "1 file is" if not_asked_for == 1 else f"{not_asked_for} files are"
        yield f"no {POLICY_NAME}: only {', '.join(DEFAULT_INCLUDE)} are published; {left} not asked for"


def _without_description(ear: Path, policy: Policy, paths: Collection[str]) -> Iterator[str]:
    if not set(CITATION_FILES).intersection(paths):
        for name in CITATION_FILES:
            if (ear / name).is_file() and policy.verdict(name) is Verdict.NOT_ASKED:
                yield f"{name} describes the bundle only as a part of it: add it to include in {POLICY_NAME}"


def _like_policies(folder: Path, prefix: str) -> Iterator[str]:
    with suppress(OSError):  # a folder may be of use without being listed
        for path in sorted(folder.iterdir()):
            if path.name.lower() in _LIKE_POLICY and path.is_file():
                yield prefix + path.name
