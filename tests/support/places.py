"""Places that are watched: folders with canaries, photographs of them, time limits, system calls that fail."""

import faulthandler
import hashlib
import os
import signal
import stat
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock


class TooSlowError(BaseException):
    """Not an `Exception`: what is under test must not be able to catch it."""


@contextmanager
def deadline(seconds):
    """Interrupts the block after `seconds`, and kills the process if even that does not help."""

    def stop(*_):
        raise TooSlowError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 60, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def photograph(folder):
    """All there is below a folder: kind, mode, owner and contents, links not followed. Works at any depth."""
    found = {}
    for path, _, names, fd in os.fwalk(folder):
        at = os.path.relpath(path, folder)
        status = os.fstat(fd)
        found[at] = ("folder", stat.S_IMODE(status.st_mode), status.st_uid)
        for name in os.listdir(fd):
            below = name if at == "." else f"{at}/{name}"
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                found[below] = ("link", mode, status.st_uid, os.readlink(name, dir_fd=fd))
            elif stat.S_ISREG(status.st_mode):
                assert name in names
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                with os.fdopen(file, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                found[below] = ("file", mode, status.st_uid, status.st_size, digest)
            elif not stat.S_ISDIR(status.st_mode):
                found[below] = ("special", status.st_mode)
    return found


def tree(folder):
    """The regular files below a folder, with their bytes and whether they are executable; anything else fails."""
    found = {}
    for path, folders, names, fd in os.fwalk(folder):
        at = os.path.relpath(path, folder)
        for name in (*folders, *names):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            assert stat.S_IMODE(status.st_mode) in ({0o755} if name in folders else {0o644, 0o755}), name
            assert status.st_uid == os.geteuid()
            if name in names:
                assert stat.S_ISREG(status.st_mode), name
                assert status.st_nlink == 1, name
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                with os.fdopen(file, "rb") as stream:
                    data = stream.read()
                found[name if at == "." else f"{at}/{name}"] = (data, bool(status.st_mode & 0o100))
    return found


class Place:
    """A folder to clone in, beside things that must not change.

    ::

        outer/canary, outer/canary.txt       what `../x` would hit
        outer/parent/canary.txt, link        beside the destination
        outer/parent/dest                    the destination, absent
        archives/                            what is cloned
    """

    def __init__(self, root):
        self.root = Path(root)
        self.outer = self.root / "outer"
        self.parent = self.outer / "parent"
        self.dest = self.parent / "dest"
        self.archives = self.root / "archives"
        self.parent.mkdir(parents=True)
        self.archives.mkdir()
        (self.outer / "canary").write_bytes(b"canary\n")
        (self.outer / "x").write_bytes(b"also a canary\n")
        (self.parent / "canary.txt").write_bytes(b"canary\n")
        (self.parent / "folder").mkdir()
        (self.parent / "folder" / "x").write_bytes(b"canary\n")
        (self.parent / "link").symlink_to("folder")

    def put(self, data, name="bundle.tar.gz"):
        path = self.archives / name
        path.write_bytes(data)
        return path

    def photograph(self):
        return photograph(self.outer)


@contextmanager
def failing_calls(root, faults, reads=1):
    """Makes system calls fail that are about something below `root`, or about no path.

    Args:
        root: The folder.
        faults: Each an owner, the name of its function, and the errno.
        reads: So many calls of a function named "read" work at first.
    """
    with ExitStack() as stack:
        for owner, name, code in faults:
            real = getattr(owner, name)
            calls = []

            def fail(*args, calls=calls, code=code, real=real, name=name, **options):
                calls.append(args)
                ours = not isinstance(args[0], str | Path) or str(args[0]).startswith(root)
                if not ours or (name == "read" and len(calls) <= reads):
                    return real(*args, **options)
                raise OSError(code, os.strerror(code), args[0] if isinstance(args[0], str) else None)

            stack.enter_context(mock.patch.object(owner, name, fail))
        yield
