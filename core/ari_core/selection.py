"""Walks ``ear/`` and chooses what a policy publishes. Reads no file's contents and writes nothing.

Links are the hard part. One that leads to something inside ``ear/`` stands for it; both its own path and the one
it leads to must pass the rules, so that no link publishes what its target's name forbids. One that leads outside,
or nowhere, or round in circles, is refused by name if the policy asks for it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from ari_core.errors import CurationError, LocalPermissionError, escape
from ari_core.limits import Limits, how_to_raise
from ari_core.names import MANIFEST_NAME, quoted, unsafe_reason
from ari_core.policy import ANYTHING, POLICY_NAME, PRUNED, Policy, Verdict

_RENAME_OR_EXCLUDE: Final = f"rename it, or exclude it in {POLICY_NAME}"
_COPY_OR_EXCLUDE: Final = f"put a copy in its place, or exclude it in {POLICY_NAME}"
_OUT_OF_REACH: Final = {errno.EACCES, errno.EPERM}


class Chosen(NamedTuple):
    """A file to publish.

    Attributes:
        path: POSIX path under which it is published.
        real: POSIX path of the file itself, relative to ``ear/`` and free of links.
        size: Bytes, when it was looked at.
    """

    path: str
    real: str
    size: int


@dataclass(slots=True)
class Selection:
    """What a policy makes of ``ear/``.

    Attributes:
        files: To be published, by path.
        excluded_count: Files left out by the deny rules, plus files asked for but left out by ``exclude``.
        not_asked_for: Files that neither ``include`` nor a deny rule matches.
        skipped: Path and reason of what was asked for, or looks as if it was, and yet is not published.
        idle_excludes: ``exclude`` globs that match nothing in ``ear/``.
    """

    files: list[Chosen] = field(default_factory=list)
    excluded_count: int = 0
    not_asked_for: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    idle_excludes: list[str] = field(default_factory=list)


def select(ear: Path, policy: Policy, limits: Limits) -> Selection:
    """Chooses the files of `ear`.

    Args:
        ear: The folder, free of links.
        policy: What to publish.
        limits: Of names, and of the number of files.

    Raises:
        CurationError: A file that is asked for cannot be published: its name, its size, or where its link leads.
        LocalPermissionError: A folder in which something may be asked for cannot be read.
    """
    walk = _Walk(ear, policy, limits)
    walk.run()
    walk.selection.files.sort()
    walk.selection.skipped.sort()
    return walk.selection


def shown(path: str) -> str:
    """Returns a path relative to ``ear/`` for a message."""
    return quoted(f"ear/{path}")


def check_size(path: str, size: int, policy: Policy) -> None:
    """Refuses a file over the policy's cap.

    Raises:
        CurationError: Naming file, size and cap.
    """
    if size > policy.max_file_bytes:
        raise CurationError(
            f"{shown(path)} has {size} bytes, over the cap of {policy.max_file_bytes} "
            f"(max_file_mb: {policy.max_file_mb:g})",
            hint=f"raise max_file_mb or exclude the file in {POLICY_NAME}",
        )


class _Folder(NamedTuple):
    """A folder to look into: its path, its real path, and the real folders of the links followed on the way."""

    path: str
    real: str
    links_in: tuple[str, ...] = ()


class _Walk:
    def __init__(self, ear: Path, policy: Policy, limits: Limits) -> None:
        self._root = str(ear)
        self._policy = policy
        self._limits = limits
        self._todo = [_Folder("", "")]
        self._linked_folders = 0
        self._excludes = policy.excludes()
        self.selection = Selection()

    def run(self) -> None:
        while self._todo:
            self._look_into(self._todo.pop())
        self.selection.idle_excludes = self._excludes.idle

    def _look_into(self, folder: _Folder) -> None:
        try:
            with os.scandir(os.path.join(self._root, folder.real)) as listing:  # noqa: PTH118 - ten times faster
                entries = list(listing)
        except OSError as error:
            self._unreadable_folder(folder, error)
            return
        if folder.links_in:
            self._linked_folders += 1
            if self._linked_folders > self._limits.files:
                raise CurationError(
                    f"the links in ear/ lead to more than {self._limits.files} folders, {shown(folder.path)} "
                    f"among them ({how_to_raise('files')})"
                )
        if not entries and folder.path and self._policy.wants_all_below(folder.path):
            self._skip(folder.path, "an empty folder; a bundle holds files only")
        for entry in entries:
            path = f"{folder.path}/{entry.name}" if folder.path else entry.name
            real = f"{folder.real}/{entry.name}" if folder.real else entry.name
            if entry.name.lower() == PRUNED:
                self.selection.excluded_count += 1
            elif entry.is_symlink():
                self._link(folder, path, real)
            elif entry.is_dir(follow_symlinks=False):
                self._enter(_Folder(path, real, folder.links_in))
            else:
                self._file(path, real)

    def _enter(self, folder: _Folder) -> None:
        self._excludes.see(f"{folder.path}/{ANYTHING}")
        self._todo.append(folder)

    def _unreadable_folder(self, folder: _Folder, error: OSError) -> None:
        if error.errno not in _OUT_OF_REACH:
            raise CurationError(f"{shown(folder.path)} cannot be read: {error.strerror}") from error
        if folder.path:
            verdict = self._policy.verdict_below(folder.path, folder.real)
            if verdict is not Verdict.WANTED:
                self._count(verdict)
                self._skip(folder.path, "a folder that cannot be read; nothing in it would be published")
                return
        raise LocalPermissionError(f"reading the folder {shown(folder.path)}: {error.strerror}") from error

    def _file(self, path: str, real: str) -> None:
        self._excludes.see(path, real)
        if real.lower() == POLICY_NAME:
            if path != POLICY_NAME:
                self._skip(path, f"{POLICY_NAME}, which is never published")
            return
        verdict = self._policy.verdict(path, real)
        if verdict is not Verdict.WANTED:
            self._count(verdict)
            self.selection.not_asked_for += verdict is Verdict.NOT_ASKED
            if verdict is not Verdict.NOT_ASKED and self._policy.verdict(path) is Verdict.WANTED:
                self._skip(path, f"a link to {shown(real)}, which is {verdict.value}")
            return
        try:
            found = os.lstat(os.path.join(self._root, real))  # noqa: PTH118 - ten times faster
        except OSError as error:
            raise CurationError(f"{shown(path)} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            self._skip(path, f"{_kind(found.st_mode)}; a bundle holds regular files only")
            return
        self._check_name(path)
        check_size(path, found.st_size, self._policy)
        self.selection.files.append(Chosen(path, real, found.st_size))
        if len(self.selection.files) > self._limits.files:
            raise CurationError(
                f"what is asked for is more than {self._limits.files} files ({how_to_raise('files')})"
            )

    def _check_name(self, path: str) -> None:
        if path == MANIFEST_NAME or path.startswith(MANIFEST_NAME + "/"):
            raise CurationError(
                f"{shown(path)} cannot be published: {MANIFEST_NAME} is the bundle's own list of files",
                hint=_RENAME_OR_EXCLUDE,
            )
        if any("\ud800" <= character <= "\udfff" for character in path):
            raise CurationError(
                f"{shown(path)} cannot be published: the name is not UTF-8", hint=_RENAME_OR_EXCLUDE
            )
        if reason := unsafe_reason(path, self._limits):
            raise CurationError(f"{shown(path)} cannot be published: the name {reason}", hint=_RENAME_OR_EXCLUDE)

    def _link(self, folder: _Folder, path: str, real: str) -> None:
        if self._policy.verdict(path) is Verdict.DENIED:
            self.selection.excluded_count += 1
            return
        try:
            target = os.path.realpath(os.path.join(self._root, real), strict=True)  # noqa: PTH118 - as above
            is_folder = os.path.isdir(target)  # noqa: PTH112 - as above
        except OSError as error:
            self._broken_link(path, error)
            return
        if target != self._root and not target.startswith(self._root.rstrip("/") + "/"):
            self._refuse_link(path, f"leads outside ear/, to {quoted(target)}", is_folder=is_folder)
            return
        target = target[len(self._root) :].lstrip("/")
        if not is_folder:
            self._file(path, target)
        elif PRUNED in target.lower().split("/"):
            self._count(Verdict.DENIED)
            self._skip(path, f"a link to {shown(target)}, which is {Verdict.DENIED.value}")
        elif any(_contains(target, site) for site in (*folder.links_in, folder.real)):
            self._refuse_link(path, "leads back to a folder that it is in", is_folder=True)
        else:
            self._enter(_Folder(path, target, (*folder.links_in, folder.real)))

    def _broken_link(self, path: str, error: OSError) -> None:
        if error.errno in _OUT_OF_REACH:
            self._refuse_link(path, "leads to where you may not look", is_folder=False)
        elif error.errno == errno.ELOOP:
            self._refuse_link(path, "leads back to itself", is_folder=False)
        else:
            self._refuse_link(path, "leads nowhere", is_folder=False)

    def _refuse_link(self, path: str, why: str, *, is_folder: bool) -> None:
        """Refuses a link that cannot be followed, unless nobody asks for it or for what may be behind it."""
        self._excludes.see(path, f"{path}/{ANYTHING}")
        verdict, below = self._policy.verdict(path), self._policy.verdict_below(path)
        if verdict is Verdict.NOT_ASKED and is_folder:
            verdict = below
        elif verdict is Verdict.WANTED and below is not Verdict.NOT_ASKED:
            verdict = below  # `exclude: [venv/**]` is meant for a link `venv` too
        if verdict is Verdict.WANTED:
            raise CurationError(f"{shown(path)} is a link that {why}", hint=_COPY_OR_EXCLUDE)
        self._count(verdict)

    def _count(self, verdict: Verdict) -> None:
        self.selection.excluded_count += verdict in {Verdict.DENIED, Verdict.EXCLUDED}

    def _skip(self, path: str, reason: str) -> None:
        self.selection.skipped.append((escape(path), reason))


def _contains(folder: str, other: str) -> bool:
    """Says whether the real folder `other` is `folder` or in it."""
    return not folder or other == folder or other.startswith(folder + "/")


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
