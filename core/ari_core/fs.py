"""Local files: private staging beside a destination, atomic commit, durable writes, trees that cannot escape.

Everything half-done lives in a folder whose name starts with `names.STAGING_PREFIX`. Its maker holds a lock on it,
so the next run can tell what a killed one left behind, and removes that.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ari_core.errors import ArchiveRefusedError, DestinationExistsError, UsageError, from_os_error
from ari_core.names import STAGING_PREFIX, quoted

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PREVIOUS: Final = STAGING_PREFIX + "previous-"  # an old tree set aside: recovered, never swept
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2
_CACHED_FOLDERS: Final = 64
_CANNOT_HOLD: Final = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
_NO_SUCH_CALL: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


class Staging:
    """A private folder in which something is built before it appears, whole, in the same parent folder.

    Use it as a context manager; what was not committed by the end is removed. All work goes through descriptors
    opened once, so that renaming the parent or putting a link in its place cannot lead a write elsewhere.

    Attributes:
        path: Where it is; for messages and for programs that need a path.
        fd: Descriptor of the staging folder, for ``dir_fd=``.
    """

    def __init__(self, folder: Path) -> None:
        """Opens staging inside `folder`, which must exist, and removes what killed runs left there.

        Raises:
            UsageError: There is no such folder.
            LocalPermissionError: It cannot be written.
            DiskFullError: No space.
        """
        try:
            self._folder_fd = os.open(folder, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"there is no folder {quoted(str(folder))}", hint="create it first") from None
        except OSError as error:
            raise from_os_error(error, f"opening the folder {quoted(str(folder))}") from error
        self.folder = folder.absolute()
        try:
            _sweep(self._folder_fd)
            self._name, self.fd = _make_locked(self.folder, self._folder_fd)
        except OSError as error:
            os.close(self._folder_fd)
            raise from_os_error(error, f"creating a temporary folder in {quoted(str(folder))}") from error
        self.path = self.folder / self._name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Twice, for Ctrl-C can make the first time fail half-way. What fails again is swept by the next run,
            # and what was committed is there all the same.
            for _ in range(2):
                with contextlib.suppress(OSError):
                    _remove(self._name, self._folder_fd)
                    _live.pop(self.path, None)
                    break
        finally:  # also when Ctrl-C comes in the middle: the lock must go, so that the next run can sweep
            for fd in (self.fd, self._folder_fd):
                with contextlib.suppress(OSError):
                    os.close(fd)

    def write(self, inner: str, data: bytes) -> None:
        """Writes a new file in this staging folder; `commit_file` makes it durable.

        Raises:
            AriError: The system refused (permission, space).
        """
        try:
            fd = os.open(inner, _CREATE, 0o644, dir_fd=self.fd)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            raise from_os_error(error, f"writing to the folder {quoted(str(self.folder))}") from error

    def commit_tree(self, inner: str, name: str) -> None:
        """Moves the folder `inner` out of staging to `name`, which must be absent or an empty folder.

        It is not forced to the disk: what is moved here can be made again, and flushing the file system would make
        the caller wait for what other programs wrote, too.

        Raises:
            DestinationExistsError: Something is there; it was not touched.
        """
        try:
            # rename(2) of a folder replaces nothing but an empty folder, and follows no link.
            os.rename(inner, name, src_dir_fd=self.fd, dst_dir_fd=self._folder_fd)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise self._exists(name) from error
            raise from_os_error(error, f"moving the result to {quoted(str(self.folder / name))}") from error

    def commit_file(self, inner: str, name: str, *, replace: bool = False) -> None:
        """Makes the file `inner` durable and visible as `name`.

        Args:
            inner: A file in this staging folder.
            name: Its final name in the parent folder, or the path of one below that: ``folder/file``.
            replace: Takes the place of a file of that name; otherwise that is an error.

        Raises:
            DestinationExistsError: `name` exists and `replace` is not set; it was not touched.
        """
        try:
            fd = os.open(inner, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            if replace:
                os.rename(inner, name, src_dir_fd=self.fd, dst_dir_fd=self._folder_fd)
            else:
                _create_only(inner, self.fd, name, self._folder_fd)
            above = os.open(Path(name).parent, _DIRECTORY, dir_fd=self._folder_fd)
            try:
                os.fsync(above)
            finally:
                os.close(above)
        except FileExistsError as error:
            raise self._exists(name) from error
        except OSError as error:
            raise from_os_error(error, f"writing {quoted(str(self.folder / name))}") from error

    def replace_tree(self, inner: str, name: str) -> None:
        """Puts the folder `inner` in the place of the folder `name`, or there if there is none.

        Where the system can exchange two names in one step, there is no moment without `name`. Elsewhere the old
        one is set aside first and `recover_tree` mends an interruption.

        Raises:
            LocalPermissionError: The system refuses.
            DiskFullError: No space.
        """
        sync_file_system(self.fd)
        try:
            if not _exchange(inner, self.fd, name, self._folder_fd):
                aside = _PREVIOUS + name
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, aside, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
                os.rename(inner, name, src_dir_fd=self.fd, dst_dir_fd=self._folder_fd)
                _remove(aside, self._folder_fd)
            os.fsync(self._folder_fd)
        except OSError as error:
            raise from_os_error(error, f"replacing {quoted(str(self.folder / name))}") from error

    def _exists(self, name: str) -> DestinationExistsError:
        return DestinationExistsError(f"{quoted(str(self.folder / name))} already exists; it was not touched")


def was_interrupted(folder: Path, name: str) -> bool:
    """Says whether a `Staging.replace_tree` of `name` in `folder` was interrupted half-way."""
    try:
        return stat.S_ISDIR((folder / (_PREVIOUS + name)).lstat().st_mode)
    except OSError:
        return False


def recover_tree(folder: Path, name: str) -> None:
    """Completes or rolls back a `Staging.replace_tree` of `name` in `folder` that was interrupted.

    Raises:
        LocalPermissionError: It cannot be mended.
    """
    aside = folder / (_PREVIOUS + name)
    if not was_interrupted(folder, name):
        return
    try:
        if (folder / name).is_dir():
            shutil.rmtree(aside)
        else:
            aside.rename(folder / name)
            fsync_folder(folder)
    except OSError as error:
        raise from_os_error(
            error, f"mending the interrupted replacement of {quoted(str(folder / name))}"
        ) from error


class TreeWriter:
    """Creates files below one folder; every creation is exclusive and no link is ever followed."""

    def __init__(self, root_fd: int) -> None:
        self._folders: dict[str, int] = {"": os.dup(root_fd)}
        self._made: set[int] = set()  # hashes of paths: the paths themselves can be long and many

    def create(self, path: str, *, executable: bool) -> int:
        """Creates the file `path` and returns a descriptor to write it.

        Args:
            path: A safe POSIX path (`names.unsafe_reason` gave None).
            executable: Mode 0755 instead of 0644, less the umask.

        Raises:
            ArchiveRefusedError: The file system cannot hold this name, or holds it and another one as the same.
            DiskFullError: No space.
            LocalPermissionError: Not allowed.
        """
        folder, _, name = path.rpartition("/")
        fd = self._folders.get(folder)
        try:
            if fd is None:
                fd = self._folder(folder)
            return os.open(name, _CREATE, 0o755 if executable else 0o644, dir_fd=fd)
        except FileExistsError:
            raise ArchiveRefusedError(
                f"this file system holds {quoted(path)} and another name of the bundle as one"
            ) from None
        except OSError as error:
            if error.errno in _CANNOT_HOLD:
                raise ArchiveRefusedError(f"this file system cannot hold the name {quoted(path)}") from error
            raise from_os_error(error, f"creating {quoted(path)}") from error

    def _folder(self, path: str) -> int:
        if (fd := self._folders.get(path)) is not None:
            return fd
        above, _, name = path.rpartition("/")
        above_fd = self._folder(above)
        if hash(path) not in self._made:
            os.mkdir(name, 0o755, dir_fd=above_fd)  # FileExistsError: the file system folds two names into one
            self._made.add(hash(path))
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above_fd)
        if len(self._folders) >= _CACHED_FOLDERS:
            for old in [key for key in self._folders if key and not path.startswith(key + "/")]:
                os.close(self._folders.pop(old))
        self._folders[path] = fd
        return fd

    def close(self) -> None:
        """Closes all descriptors; may be called twice."""
        while self._folders:
            os.close(self._folders.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes all of `data`.

    Raises:
        OSError: As the system says.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def begin_write_out(fd: int, start: int, count: int) -> None:
    """Lets the system begin to write a part of a file to the disk, so that a later fsync has less to wait for.

    It waits for nothing and promises nothing: what goes wrong is for the fsync to report. See sync_file_range(2);
    other systems than Linux have no such call, and begin when they like.

    Args:
        fd: The file, open for writing.
        start: Where the part begins.
        count: Its bytes.
    """
    if sys.platform == "linux" and hasattr(_libc(), "sync_file_range"):
        _libc().sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)


def write_durably(path: Path, data: bytes) -> None:
    """Replaces the file `path` by `data`: atomically, and on the disk when this returns.

    Raises:
        AriError: The system refused (permission, space).
    """
    with Staging(path.parent) as staging:
        staging.write("file", data)
        staging.commit_file("file", path.name, replace=True)


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    fd = os.open(folder, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """Writes out the whole file system that `fd` is on: for many small files far cheaper than fsync of each.

    Raises:
        DiskFullError: No space.
        DiskError: The disk fails.
    """
    if sys.platform == "linux" and hasattr(_libc(), "syncfs"):
        if _libc().syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise from_os_error(OSError(code, os.strerror(code)), "writing to the disk")
    else:  # pragma: no cover - not Linux
        os.sync()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _renameat2(old: str, old_fd: int, new: str, new_fd: int, flags: int) -> None:
    if not hasattr(_libc(), "renameat2"):  # pragma: no cover - not Linux
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc().renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), new)


def _exchange(inner: str, inner_fd: int, name: str, folder_fd: int) -> bool:
    try:
        _renameat2(inner, inner_fd, name, folder_fd, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno == errno.ENOENT or error.errno in _NO_SUCH_CALL:
            return False
        raise
    return True


def _create_only(inner: str, inner_fd: int, name: str, folder_fd: int) -> None:
    try:
        os.link(inner, name, src_dir_fd=inner_fd, dst_dir_fd=folder_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}:
            raise
        _renameat2(inner, inner_fd, name, folder_fd, _RENAME_NOREPLACE)  # a file system without hard links


# Staging folders of this process: what Ctrl-C kept from being removed, in the few moments where it can, is removed
# when the program ends. The process id keeps a forked child from doing that to its parent.
_live: dict[Path, int] = {}


def remove_leftovers() -> None:
    """Removes staging of this process that an interruption kept from being removed; also done at its end."""
    for path, process in list(_live.items()):
        if process == os.getpid():
            shutil.rmtree(path, ignore_errors=True)


atexit.register(remove_leftovers)


def _make_locked(folder: Path, folder_fd: int) -> tuple[str, int]:
    while True:
        name = STAGING_PREFIX + secrets.token_hex(8)
        _live[folder / name] = os.getpid()
        try:
            os.mkdir(name, 0o700, dir_fd=folder_fd)
            fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder_fd)
        except FileNotFoundError:  # swept between the two calls
            del _live[folder / name]
            continue
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=folder_fd)
            del _live[folder / name]
            raise
        with contextlib.suppress(OSError):  # a file system without locks: then nobody sweeps there either
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # swept before it was locked
        del _live[folder / name]


def _sweep(folder_fd: int) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be listed is swept by whoever can
        for name in os.listdir(folder_fd):
            if name.startswith(STAGING_PREFIX) and not name.startswith(_PREVIOUS):
                with contextlib.suppress(OSError):
                    _sweep_one(name, folder_fd)


def _sweep_one(name: str, folder_fd: int) -> None:
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=folder_fd)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by its maker while that lives
            _remove(name, folder_fd)
    finally:
        os.close(fd)


def _remove(name: str, folder_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(name, dir_fd=folder_fd)


class NotRegularError(OSError):
    """What should be read is a folder, a FIFO, a device or the like."""


def open_regular(path: Path, *, follow: bool = True) -> int:
    """Opens a file for reading, without waiting for the other end of a FIFO.

    Args:
        path: The file.
        follow: Whether a link may lead to it.

    Raises:
        NotRegularError: It is not a regular file.
        OSError: As the system says.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError(errno.EINVAL, "not a regular file", str(path))
    return fd


def is_empty_folder(path: Path) -> bool:
    """Says whether `path` is a real folder (not a link to one) with nothing in it."""
    return stat.S_ISDIR(path.lstat().st_mode) and not any(path.iterdir())
