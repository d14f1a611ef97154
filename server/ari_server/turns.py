"""Turns: of all who want to change one thing in the store, in whatever process or machine, one at a time.

A store that by itself lets one writer through at a time needs no such help; with it, any other store is safe, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final
from weakref import WeakValueDictionary

from sqlalchemy import select

from ari_core.errors import Unavailable, from_os_error
from ari_core.names import quoted
from ari_server.config import ServerConfig

TURN_SECONDS: Final = 60.0
"""How long somebody waits: as long as another's change of the store may take."""
LOCKS: Final = "locks"
"""Folder in the data directory."""

_DIGITS: Final = 3  # of a digest: at most 4096 files, however much is stored
_POLL_SECONDS: Final = 0.01

Check = Callable[[], None]


class Turns:
    """The turns of one registry: locks in its PostgreSQL database, else in files of its data directory.

    A turn ends with the process that has it. Whoever has one must not wait for another, not even for one of
    another thing: several things may share a lock.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Opens nothing yet."""
        self._url, self._folder = config.db, config.data / LOCKS
        self._here: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._looking = threading.Lock()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Keeps everybody else who asks for this turn waiting, until the end of the ``with`` block.

        Raises:
            Unavailable: It was not to be had in a minute; or it was lost meanwhile, so that others may have had
                their turn: what was done in it must not be acknowledged.
            AriError: The lock cannot be made.
        """
        with self.hold(name):
            yield

    @contextmanager
    def hold(self, name: str) -> Iterator[Check]:
        """Like `turn`; gives what says, by raising `Unavailable`, that the turn is lost.

        Raises:
            AriError: As `turn` says.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()
        lock = digest if self._url else digest[:_DIGITS]
        # One of this process's threads waits among processes: the others need no connection for it.
        with self._among_threads(lock), self._among_processes(lock) as check:
            yield check

    def close(self) -> None:
        """Lets go of connections that nobody uses."""
        if self._url is not None:
            from ari_server.postgres import Postgres  # noqa: PLC0415 - most do without

            Postgres.of(self._url).close()

    # -- inside --------------------------------------------------------------------------------------------------

    @contextmanager
    def _among_threads(self, name: str) -> Iterator[None]:
        with self._looking:
            lock = self._here.setdefault(name, threading.Lock())
        if not lock.acquire(timeout=TURN_SECONDS):
            raise _busy()
        try:
            yield
        finally:
            lock.release()

    def _among_processes(self, name: str) -> AbstractContextManager[Check]:
        return self._in_file(name) if self._url is None else self._in_database(name)

    @contextmanager
    def _in_database(self, name: str) -> Iterator[Check]:
        from ari_server.postgres import Postgres, lock_key  # noqa: PLC0415 - most do without

        assert self._url is not None  # noqa: S101
        server = Postgres.of(self._url)
        # What answers on this connection is the session that has the lock.
        with server.holding(server.turns, lock_key(f"turn {name}")) as connection:

            def check() -> None:
                with server.errors():
                    connection.execute(select(1))

            yield check

    @contextmanager
    def _in_file(self, name: str) -> Iterator[Check]:
        path = self._folder / name
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"opening {quoted(str(path))}") from error
        try:
            until = time.monotonic() + TURN_SECONDS
            while not _locked(fd):
                if time.monotonic() > until:
                    raise _busy()
                time.sleep(_POLL_SECONDS)
            yield lambda: None  # the kernel takes it from nobody
        finally:
            os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy() -> Unavailable:
    return Unavailable("others have been changing this for too long", hint="try again later")
