"""What tokens and index are kept in: SQLite files, or one PostgreSQL database for several servers.

Both keep one promise, on which everything else relies: of all that write, one writes at a time, sees all that was
written before, and what it wrote is durable behind its ``with`` block.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData, NullPool, QueuePool, Table, Text
from sqlalchemy.dialects import postgresql, sqlite

from ari_core.errors import (
    AriError,
    ConfigurationError,
    DestinationExistsError,
    DiskError,
    DiskFullError,
    LocalPermissionError,
    Unavailable,
    UsageError,
    from_os_error,
)
from ari_core.fs import Staging
from ari_core.names import quoted
from ari_server import migrations
from ari_server.config import ServerConfig

WRITE_SECONDS: Final = 30.0
"""How long a writer waits for other writers."""
READ_SECONDS: Final = 5.0
"""How long a reader waits for a program that locks the whole file: a request is behind it, perhaps all of them."""

FILES: Final[Mapping[migrations.Kind, str]] = {"tokens": "tokens.db", "index": "registry.db"}

_KEPT_CONNECTIONS: Final = 16
_POLL_SECONDS: Final = 0.05

# Engines of a parent process: their connections must neither be used nor closed in a child.
_inherited: list[Engine] = []

Plain: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that is compared byte by byte in every database: pages and ranges of digests rely on that."""


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT compiled once: compiling, not reading, is what costs most of a short one."""

    sql: str
    names: Sequence[str] | None

    def arguments(self, values: Mapping[str, str | int]) -> Any:
        """Returns values as this database's driver takes them."""
        return values if self.names is None else [values[name] for name in self.names]


def open_database(config: ServerConfig, kind: migrations.Kind, tables: MetaData, *, restore: str) -> Database:
    """Opens the database that a server is configured for.

    Args:
        config: The configuration.
        kind: Which of the two.
        tables: What is in it.
        restore: What to do when a file is damaged, for messages.

    Raises:
        AriError: As the classes say.
    """
    if config.db is not None:
        from ari_server.postgres import PostgresDatabase  # noqa: PLC0415 - most do without

        return PostgresDatabase(config.db, kind)
    return SqliteDatabase(config.data / FILES[kind], kind, tables, restore=restore)


def create_data_directory(folder: Path) -> None:
    """Creates it, if that is not done yet.

    Raises:
        ConfigurationError: There is no folder to create it in.
        AriError: It cannot be created.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o700)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(
            f"the data directory {quoted(str(folder))} cannot be created in a folder that is not there",
            hint="create that folder first, or correct the path",
        ) from None
    except OSError as error:
        raise from_os_error(error, f"creating {quoted(str(folder))}") from error


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Begins an INSERT that may say what to do about a conflict."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


class DatabaseUnavailable(Unavailable):
    """The database, and not the store, cannot be asked now."""


class Database(ABC):
    """One set of tables that threads and processes share.

    Attributes:
        me: Name of this process, under which others find out whether it still runs.
    """

    me: str

    def compile(self, select: sqlalchemy.SelectBase) -> Query:
        """Prepares a statement for `fetch`. Its columns must be plain text and numbers."""
        compiled = select.compile(dialect=self._connections().dialect)
        return Query(str(compiled), compiled.positiontup)

    def fetch(self, query: Query, **values: str | int) -> list[Any]:
        """Returns the rows of a compiled query: the short way, for what every request asks.

        Raises:
            AriError: As the constructor says.
        """
        with self._errors():
            connection = self._connections().raw_connection()
            try:
                rows: list[Any] = connection.cursor().execute(query.sql, query.arguments(values)).fetchall()
            except BaseException:
                connection.invalidate()
                raise
            connection.close()
            return rows

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """Gives a connection that sees one state of the database.

        Raises:
            AriError: As the constructor says.
        """

    @abstractmethod
    def write(self) -> AbstractContextManager[Connection]:
        """Gives a connection that alone may write; what it wrote is durable behind the ``with`` block.

        Raises:
            AriError: As the constructor says; nothing was written, unless it says that this is not known.
        """

    @abstractmethod
    def appear(self) -> None:
        """Makes sure that others see this process running, under its name.

        Raises:
            AriError: As the constructor says.
        """

    @abstractmethod
    def is_running(self, name: str) -> bool:
        """Says whether the process of that name runs, as far as can be told; in doubt it does.

        Raises:
            AriError: As the constructor says.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes connections; may be called twice, and what is asked later opens new ones."""

    @abstractmethod
    def _connections(self) -> Engine:
        """Returns this process's engine."""

    @abstractmethod
    def _errors(self) -> AbstractContextManager[None]:
        """Turns the driver's errors into ours."""


class SqliteDatabase(Database):
    """One SQLite file.

    Write-ahead log, every commit on the disk before it counts, and every writing transaction takes the write lock
    first: one that begins as a reader and turns writer fails at once under load instead of waiting. Readers wait
    for nobody but a program that locks the whole file.

    Attributes:
        path: Where it is.
        restore: What to do when it is damaged, for messages.
    """

    def __init__(self, path: Path, kind: migrations.Kind, tables: MetaData, *, restore: str) -> None:
        """Opens the file and brings its tables up to date, or creates it, and its folder if that has a parent.

        Raises:
            ConfigurationError: There is no folder to create it in; or a newer version of this program made it.
            LocalPermissionError: It cannot be read, or has to be written first and cannot be.
            Unavailable: Another program keeps it locked.
            DiskError: It is damaged.
            DiskFullError: No space.
        """
        self.path, self.restore, self._kind = path, restore, kind
        self.me = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._read_only = not _is_writable(path)
        self._process = os.getpid()
        self._engine = self._make_engine()
        self._prepare(tables)

    @contextmanager
    def read(self) -> Iterator[Connection]:  # noqa: D102 - as in the base class
        with self._errors(), self._connections().connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:  # noqa: D102 - as in the base class
        with self._errors(), self._connections().connect() as connection:
            _patience(connection, WRITE_SECONDS)
            connection.execution_options(ari_begin="BEGIN IMMEDIATE")
            try:
                with connection.begin():
                    yield connection
            except sqlalchemy.exc.DBAPIError:
                connection.invalidate()
                raise
            finally:
                if not connection.invalidated:
                    _patience(connection, READ_SECONDS)

    def appear(self) -> None:
        """Has nothing to do: processes on one machine see each other."""

    def is_running(self, name: str) -> bool:  # noqa: D102 - as in the base class
        try:
            os.kill(int(name.partition("-")[0]), 0)
        except (ProcessLookupError, OverflowError):
            return False
        except (ValueError, OSError):  # somebody else's process
            return True
        return True

    def close(self) -> None:  # noqa: D102 - as in the base class
        if self._process == os.getpid():
            self._engine.dispose()

    # -- inside --------------------------------------------------------------------------------------------------

    def _make_engine(self) -> Engine:
        # On read-only media a connection is good for one look, see `_connect`.
        pooling: dict[str, Any] = (
            {"poolclass": NullPool}
            if self._read_only
            else {"poolclass": QueuePool, "pool_size": _KEPT_CONNECTIONS, "max_overflow": -1}
        )
        engine = sqlalchemy.create_engine("sqlite://", creator=self._connect, **pooling)
        sqlalchemy.event.listen(engine, "begin", _begin)
        return engine

    def _connections(self) -> Engine:
        if self._process != os.getpid():
            _inherited.append(self._engine)
            self._engine, self._process = self._make_engine(), os.getpid()
        return self._engine

    def _connect(self) -> sqlite3.Connection:
        where = f"file:{quote(str(self.path))}"
        if self._read_only:
            # A file in WAL mode cannot be read without its -shm file, which cannot be made here; SQLite does
            # without when it is told that nobody writes. A -wal file that is not empty says somebody does, or did.
            where += "?mode=ro" + ("" if _size(self.path, "-wal") else "&immutable=1")
        connection = sqlite3.connect(
            where, uri=True, timeout=READ_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:  # a damaged file
            connection.close()
            raise
        return connection

    def _prepare(self, tables: MetaData) -> None:
        if not self._read_only and not self.path.exists():
            self._create(tables)
        with self.read() as connection:
            missing = set(tables.tables) - set(sqlalchemy.inspect(connection).get_table_names())
            version = migrations.current(connection, self._kind)
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        is_newest = migrations.is_newest(version, self._kind, quoted(str(self.path)))
        if self._read_only:
            if missing:
                raise LocalPermissionError(
                    f"{quoted(str(self.path))} is read-only, but lacks {', '.join(sorted(missing))}",
                    hint="start this program once where it may write",
                )
            return
        if mode != "wal":
            self._use_write_ahead_log()
        if not is_newest:
            with self.write() as connection:
                migrations.upgrade(connection, self._kind)

    def _create(self, tables: MetaData) -> None:
        """Makes the file aside: it appears when all is in it, and of several processes one makes it."""
        folder = self.path.parent
        create_data_directory(folder)
        with Staging(folder) as staging:
            os.close(os.open(self.path.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=staging.fd))
            engine = sqlalchemy.create_engine(f"sqlite:///{staging.path / self.path.name}", poolclass=NullPool)
            with self._errors(), engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                tables.create_all(connection)
                migrations.stamp(connection, self._kind)
                connection.commit()
            with suppress(DestinationExistsError):
                staging.commit_file(self.path.name, self.path.name)

    def _use_write_ahead_log(self) -> None:
        """Waits by itself: SQLite does not, when several processes do this at once."""
        until = time.monotonic() + WRITE_SECONDS
        while True:
            try:
                with self._errors():
                    connection = self._connections().raw_connection()
                    try:
                        connection.cursor().execute("PRAGMA journal_mode=WAL")
                    finally:
                        connection.close()
                    return
            except Unavailable:
                if time.monotonic() > until:
                    raise
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error):
                raise
            raise self._translated(error.orig) from error
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except UnicodeEncodeError as error:
            raise UsageError("this is not valid text") from error

    def _translated(self, error: sqlite3.Error) -> AriError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        file = quoted(str(self.path))
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return DatabaseUnavailable(
                    f"{file} is kept locked by another program", hint="end that program; then try again"
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return DiskError(f"{file} is damaged: {error}", hint=self.restore)
            case sqlite3.SQLITE_FULL:
                return DiskFullError(f"writing {file}: no space left")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return LocalPermissionError(f"{file} or its folder cannot be written")
            case sqlite3.SQLITE_CANTOPEN:
                return self._cannot_open(file)
            case sqlite3.SQLITE_IOERR:
                return DiskError(f"the disk fails with {file}: {error}")
        return AriError(f"{file} is not used as it should be: {error}")

    def _cannot_open(self, file: str) -> AriError:
        if not self.path.exists():
            return ConfigurationError(f"there is no {file}", hint="check the path of the data directory")
        if self._read_only and _size(self.path, "-wal"):
            return LocalPermissionError(
                f"{file} was not closed cleanly and cannot be read in a read-only folder",
                hint="let one program that may write there open it, or copy the folder",
            )
        if not os.access(self.path, os.R_OK, effective_ids=True):
            return LocalPermissionError(f"{file} cannot be read")
        return DatabaseUnavailable(f"{file} cannot be opened: too many open files, perhaps")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("ari_begin", "BEGIN"))


def _patience(connection: Connection, seconds: float) -> None:
    connection.connection.cursor().execute(f"PRAGMA busy_timeout={seconds * 1000:.0f}")


def _is_writable(path: Path) -> bool:
    """Says whether SQLite could write there: it makes files beside the database, too."""
    if not path.parent.exists():
        return True  # to be created, or to fail with a better reason
    places = (path.parent, path) if path.exists() else (path.parent,)
    return all(os.access(place, os.W_OK, effective_ids=True) for place in places)


def _size(path: Path, suffix: str) -> int:
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except OSError:
        return 0
