"""What the backends on local folders share: errors, reading, staging an archive, locks, the folder to store in."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ari_core.contract import CHUNK, ReadStream, Source
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    BackendError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    ReadOnly,
    Unavailable,
    Unsupported,
    from_os_error,
)
from ari_core.fs import NotRegularError, Staging, begin_write_out, fsync_folder, open_regular, write_all
from ari_core.names import BUNDLE_NAME, STAGING_PREFIX, quoted
from ari_core.streams import deadline

STAGED: Final = "bundle"
"""Name of an archive in staging."""

_WRITTEN_OUT: Final = 8 * 1024 * 1024
_LOCK: Final = STAGING_PREFIX + "lock"
_LOCK_POLL_SECONDS: Final = 0.02


def translated(error: Exception) -> BackendError | None:
    """Turns what the system says into the contract's words; None if it is not the system's."""
    if not isinstance(error, OSError):
        return None
    where = f"{quoted(str(error.filename))}: " if error.filename else ""
    message = f"{where}{error.strerror or error}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return NotFound(message, hint="check the spelling of the path")
        case errno.EACCES | errno.EPERM:
            return AccessDenied(message, hint="check who owns the file or folder and its mode")
        case errno.EROFS:
            return ReadOnly(message)
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return QuotaExceeded(message)
        case _:
            return Unavailable(message)


# -- the folder to store in --------------------------------------------------------------------------------------


def absolute(path: Path) -> Path:
    """Returns the path as the system sees it: what is behind a link has another parent."""
    path = path.absolute()
    return path.resolve() if ".." in path.parts else path


def make_folder(path: Path, another: str) -> None:
    """Creates a folder, durably, but none above it: a chain of missing ones is a misspelling, or an absent disk.

    Args:
        path: The folder.
        another: Hint how to name another one.

    Raises:
        InvalidConfiguration: It is not a folder, or cannot become one.
        AriError: As the system says.
    """
    if path.is_dir():
        return
    try:
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)
    except (FileExistsError, NotADirectoryError):
        raise not_a_folder(path, another) from None
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise no_folder(path.parent) from None
        raise InvalidConfiguration(  # some file systems, such as /proc, say so
            f"the folder {quoted(str(path))} cannot be created: {error.strerror}", hint=another
        ) from error
    except OSError as error:
        raise from_os_error(error, f"creating the folder {quoted(str(path))}") from error


def is_writable(path: Path, another: str) -> bool:
    """Says whether `make_folder`, and writing in that folder, has a chance; writes nothing.

    Raises:
        InvalidConfiguration: It is not a folder, or the one above is missing.
    """
    there = nearest(path)
    if not there.is_dir():
        raise not_a_folder(there, another)
    if there not in {path, path.parent}:
        raise no_folder(path.parent)
    return os.access(there, os.W_OK | os.X_OK)


def nearest(path: Path) -> Path:
    """Returns what is there of a path: it, or the nearest above it."""
    return next(each for each in (path, *path.parents) if each.exists())


def no_folder(path: Path) -> InvalidConfiguration:
    """Says that a folder is missing which nobody but the user should create."""
    return InvalidConfiguration(
        f"there is no folder {quoted(str(path))}", hint="create it first, if it is really meant"
    )


def not_a_folder(path: Path, another: str) -> InvalidConfiguration:
    """Says that something else is where the folder should be."""
    return InvalidConfiguration(f"{quoted(str(path))} is not a folder", hint=another)


def unplugged(folder: Path) -> InvalidConfiguration:
    """Says that a folder is missing, so that nobody can tell what would be in it."""
    return InvalidConfiguration(
        f"the folder {quoted(str(folder))} is not there",
        hint="is the disk plugged in? If the folder is gone for good, create it again, empty",
    )


def is_same(one: Path, other: Path) -> bool:
    """Says whether two paths lead to one thing, or would if it were there."""
    try:
        return one.samefile(other)
    except OSError:
        return one == other


# -- reading -----------------------------------------------------------------------------------------------------


class File:
    """A regular file to read, as often as one likes; nothing else is waited for.

    Attributes:
        name: For messages.
        size: Bytes, once it was opened.
        modified: When it was last changed, in seconds since the epoch, once it was opened.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        """Takes a path; without `follow` no link may lead to the file."""
        self.name = str(path)
        self.size: int | None = None
        self.modified = 0.0
        self._path, self._follow = path, follow

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[ReadStream]:
        """Starts reading at `offset`.

        Raises:
            Unsupported: It is not a regular file.
            OSError: As the system says.
        """
        try:
            fd = open_regular(self._path, follow=self._follow)
        except NotRegularError:
            raise not_regular(self._path) from None
        try:
            status = os.fstat(fd)
            self.size, self.modified = status.st_size, status.st_mtime
            os.lseek(fd, offset, os.SEEK_SET)
            yield _FileStream(fd, self.name)
        finally:
            os.close(fd)


class _FileStream:
    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name

    def read(self, size: int, /) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            error.filename = self._name
            raise


def not_regular(path: Path) -> Unsupported:
    """Says that something is no file."""
    return Unsupported(f"{quoted(str(path))} is not a regular file")


# -- staging -----------------------------------------------------------------------------------------------------


def stage(source: Source, staging: Staging) -> None:
    """Brings the archive into staging: as a second name of the file that core built, else by reading it."""
    if not linked(source.local_path, STAGED, staging):
        with source.open() as stream:
            copy(stream, STAGED, staging)
    size = os.stat(STAGED, dir_fd=staging.fd).st_size
    if size != source.size:
        raise IntegrityError(f"the archive to store has {size} bytes instead of {source.size}")


def linked(path: Path | None, name: str, staging: Staging) -> bool:
    """Gives a file a second name in staging, if that is possible."""
    if path is None:
        return False
    try:
        os.link(path, name, dst_dir_fd=staging.fd)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def copy(stream: ReadStream, name: str, staging: Staging) -> None:
    """Writes a stream to a new file in staging."""
    doing = f"writing {quoted(str(staging.folder / BUNDLE_NAME))}"
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=staging.fd)
    except OSError as error:
        raise from_os_error(error, doing) from error
    try:
        begun = count = 0
        while data := stream.read(CHUNK):
            try:
                write_all(fd, data)
            except OSError as error:
                raise from_os_error(error, doing) from error
            count += len(data)
            if count - begun >= _WRITTEN_OUT:
                begin_write_out(fd, begun, count - begun)
                begun = count
    finally:
        os.close(fd)


# -- locks -------------------------------------------------------------------------------------------------------


class FolderLock:
    """A lock on a folder, held until `release`. Its file goes away with it: whoever waited for it tries again.

    The file, not the folder, is locked: on network file systems a folder's lock ends at this machine.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            AlreadyExists: Somebody holds it for ever.
            OSError: As the system says; the folder may be gone.
        """
        self._path = folder / _LOCK
        until = time.monotonic() + deadline()
        while True:
            try:
                self._fd = _open_lock(self._path)
            except FileExistsError:  # it went away meanwhile
                continue
            except PermissionError:  # another user makes it just now, if that is all
                if not os.access(folder, os.W_OK | os.X_OK) or time.monotonic() > until:
                    raise
                time.sleep(_LOCK_POLL_SECONDS)
                continue
            try:
                _wait_for_lock(self._fd, folder, until)
                if _is_open_at(self._fd, self._path):
                    return
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)

    def release(self) -> None:
        """Lets the next one in."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._fd)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder that is there.

    Raises:
        AlreadyExists: Somebody holds it for ever.
        AriError: As the system says.
    """
    try:
        lock = FolderLock(folder)
    except OSError as error:
        raise from_os_error(error, f"locking the folder {quoted(str(folder))}") from error
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Says whether the file system of a folder knows locks; writes nothing.

    Raises:
        OSError: The folder cannot be opened.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    # Whoever may write in the folder may lock it, whatever the umask says.
    with suppress(OSError):  # a file system without modes
        os.fchmod(fd, path.parent.stat().st_mode & 0o666)
    return fd


def _wait_for_lock(fd: int, folder: Path, until: float) -> None:
    """Takes the lock, unless somebody holds it for ever: anyone who can open its file can do that."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise AlreadyExists(
                    f"another program holds the folder {quoted(str(folder))} locked",
                    hint="try again when it is done",
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError:
            return  # a file system without locks
        else:
            return


def _is_open_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
