"""PostgreSQL for tokens and index: one database behind any number of servers.

Of all servers' transactions that write, one is under way at a time, as in a SQLite file: each takes one advisory
lock first. They are short, and take as long as one commit.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import sqlalchemy
from pydantic import SecretStr
from sqlalchemy import BigInteger, Connection, Engine, Select, bindparam, func, select

from ari_core.errors import (
    AccessDenied,
    AriError,
    ConfigurationError,
    DiskError,
    DiskFullError,
    ReadOnly,
    Unavailable,
    UsageError,
    escape,
)
from ari_core.names import quoted
from ari_server import migrations
from ari_server.config import variable_of
from ari_server.database import WRITE_SECONDS, Database, DatabaseUnavailable
from ari_server.turns import TURN_SECONDS

MOST_CONNECTIONS: Final = 10 + 8 + 1
"""Of one process: for requests, for turns, and the one that shows that it runs."""

_STATEMENT_SECONDS: Final = 60
_SILENT_SECONDS: Final = 70
"""How long any answer is waited for: more than the server takes to give up a statement, or waiting for a lock."""
_BUSY_SECONDS: Final = 10
_AGAIN_SECONDS: Final = (0.1, 0.4, 1.0)
_VARIABLE: Final = variable_of("db")
_ENCODING: Final = "UTF8"

# Each end notices within half a minute that the other is gone without a word: locks end with their connection.
_KEEPALIVE: Final = {
    "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000",
}  # fmt: skip
_LOCKED: Final = ("55P03", "57014", "40001", "40P01")


class Postgres:
    """This process's connections to one database; `of` gives those that are there."""

    _all: Final[dict[tuple[str, int], Postgres]] = {}

    def __init__(self, url: str) -> None:
        try:
            self._url = sqlalchemy.make_url(url)
            # A user's name with a slash in it makes all that follows, the password too, the database's.
            database = "" if "@" in (self._url.database or "") else quoted(self._url.database or "") + " "
            self.name = f"the database {database}at {quoted(self._host())}"
            # Reading what every request asks takes one round trip then, not three.
            requests = self._engine(lock=int(WRITE_SECONDS), statement=_STATEMENT_SECONDS, size=5, more=5)
            turns = self._engine(lock=int(TURN_SECONDS), statement=0, size=2, more=6)
        except ModuleNotFoundError:
            raise ConfigurationError(
                f"{_VARIABLE} needs psycopg, which is not installed",
                hint="pip install 'ari-registry[postgres]'",
            ) from None
        except ImportError as error:
            raise ConfigurationError(
                f"{_VARIABLE} needs psycopg, which cannot be loaded: {_line(error)}",
                hint="pip install 'ari-registry[postgres]'",
            ) from None
        except (sqlalchemy.exc.ArgumentError, ValueError, TypeError):
            raise ConfigurationError(
                f"{_VARIABLE} is no URL of a PostgreSQL database",
                hint="as postgresql+psycopg://USER:PASSWORD@HOST:5432/NAME, other characters written as %40",
            ) from None
        self.requests: Final = requests
        self.turns: Final = turns
        """Apart: whoever has a turn needs another connection to end it."""

    @classmethod
    def of(cls, url: SecretStr) -> Postgres:
        """Returns this process's one; a child process makes its own.

        Raises:
            ConfigurationError: The URL is none, or psycopg is missing.
        """
        key = (url.get_secret_value(), os.getpid())
        if key not in cls._all:
            cls._all[key] = cls(key[0])
        return cls._all[key]

    def close(self) -> None:
        """Closes connections that nobody uses."""
        self.requests.dispose()
        self.turns.dispose()

    @contextmanager
    def holding(self, engine: Engine, key: int) -> Iterator[Connection]:
        """Gives a connection with a transaction that alone has this lock; commits.

        Raises:
            AriError: See `errors`; nothing was written, unless it says that this is not known.
        """
        with self.errors(), self._locked(engine, key) as connection:
            yield connection
            try:
                connection.commit()
            except sqlalchemy.exc.DBAPIError as error:
                translated = self._translated(error.orig)
                if isinstance(translated, Unavailable):
                    translated.enclose(behind="; whether it was stored is not known: repeat the request")
                raise translated from error

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what PostgreSQL says into our errors."""
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            raise self._translated(error.orig) from error
        except sqlalchemy.exc.TimeoutError as error:
            raise DatabaseUnavailable(f"all connections to {self.name} are in use") from error
        except sqlalchemy.exc.PendingRollbackError as error:  # somebody went on after the error that said so
            raise DatabaseUnavailable(f"the connection to {self.name} was lost") from error
        except UnicodeEncodeError as error:
            raise UsageError("this is not valid text") from error
        except Exception as error:
            if isinstance(error, self.requests.dialect.loaded_dbapi.Error):
                raise self._translated(error) from error
            raise

    # -- inside --------------------------------------------------------------------------------------------------

    def _host(self) -> str:
        host = self._url.host or self._url.query.get("host") or "this machine"
        return host if isinstance(host, str) else ", ".join(host)

    def _engine(self, *, lock: int, statement: int, size: int, more: int) -> Engine:
        timeouts = {
            "lock_timeout": lock * 1000,
            "statement_timeout": statement * 1000,
            "idle_in_transaction_session_timeout": 0,  # a turn takes as long as the store does
            **{f"tcp_{name}": value for name, value in _KEEPALIVE.items() if name.startswith("keepalives")},
        }
        ours = {
            "application_name": "ari-registry",
            "client_encoding": "utf8",
            "connect_timeout": "5",
            **_KEEPALIVE,
            **{name: value for name, value in self._url.query.items() if isinstance(value, str)},
        }
        settings = " ".join(f"-c {name}={value}" for name, value in timeouts.items())
        ours["options"] = f"{settings} {ours.get('options', '')}".strip()
        engine = sqlalchemy.create_engine(
            self._url,
            connect_args=ours,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            use_native_hstore=False,
            pool_pre_ping=True,
            pool_size=size,
            max_overflow=more,
            pool_timeout=_BUSY_SECONDS,
        )
        sqlalchemy.event.listen(engine, "do_connect", _connect)
        return engine

    def _locked(self, engine: Engine, key: int) -> Connection:
        """Begins, also on a server that was just started again: nothing was written yet, so it may be repeated."""
        for seconds in (*_AGAIN_SECONDS, None):
            connection = None
            try:
                connection = engine.connect().execution_options(isolation_level="READ COMMITTED")
                connection.execute(_LOCK, {"key": key})
            except sqlalchemy.exc.DBAPIError as error:
                if connection is not None:
                    connection.close()
                if seconds is None or not self._may_come_back(error.orig):
                    raise
                time.sleep(seconds)
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            else:
                return connection
        raise AssertionError

    def _may_come_back(self, error: BaseException | None) -> bool:
        state = getattr(error, "sqlstate", None) or ""
        return isinstance(self._translated(error), Unavailable) and state not in _LOCKED

    def _translated(self, error: BaseException | None) -> AriError:
        state: str = getattr(error, "sqlstate", None) or _state_of(str(error))
        text = _line(error)
        driver = self.requests.dialect.loaded_dbapi
        if state in _OUTDATED:
            return _outdated(self.name)
        if not state and isinstance(error, driver.ProgrammingError):
            return ConfigurationError(f"{_VARIABLE}: {text}")
        if state[:2] == "22" or (not state and isinstance(error, driver.DataError)):
            return UsageError("this is not valid text")  # NUL, say, which is text everywhere else
        found = _MEANINGS.get(state) or _MEANINGS.get(state[:2])
        if found is None:
            return AriError(f"{self.name} is not used as it should be: {text}")
        kind, what, hint = found
        return kind(f"{self.name} {what.format(text=text)}", hint=hint)


class PostgresDatabase(Database):
    """One of the two sets of tables in a PostgreSQL database."""

    def __init__(self, url: SecretStr, kind: migrations.Kind) -> None:
        """Looks whether the tables are those of this version, if it is to be reached just now.

        If not, whoever asks it something is told so: a worker that starts just then gets over it, as others do.

        Raises:
            ConfigurationError: The URL is none, psycopg is missing, or the tables are not those of this version.
            AriError: As `Postgres.errors` says, but for `Unavailable`.
        """
        self._url, self._kind = url, kind
        self.me = secrets.token_hex(8)
        self._key = lock_key(f"write {kind}")
        self._writing = threading.Lock()
        self._presence: Connection | None = None
        self._appearing = threading.Lock()
        with suppress(Unavailable):
            found = version(url, kind)
            if not migrations.is_newest(found, kind, self._server.name):
                raise _outdated(self._server.name)

    @contextmanager
    def read(self) -> Iterator[Connection]:  # noqa: D102 - as in the base class
        with self._errors(), self._connections().connect() as connection:
            # Not READ ONLY: behind it the driver would begin with READ WRITE, against what the server may want.
            yield connection.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def write(self) -> Iterator[Connection]:  # noqa: D102 - as in the base class
        # One connection waits for this process, not all that there are: others want to read.
        if not self._writing.acquire(timeout=WRITE_SECONDS):
            raise DatabaseUnavailable(f"{self._server.name} is kept locked by another program")
        try:
            server = self._server
            with server.holding(server.requests, self._key) as connection:
                yield connection
        finally:
            self._writing.release()

    def appear(self) -> None:
        """Holds a lock that ends with this process, wherever it runs."""
        with self._appearing, self._errors():
            if self._presence is not None:
                try:
                    self._presence.execute(select(1))
                except sqlalchemy.exc.DBAPIError:
                    self._presence.close()
                    self._presence = None
                else:
                    return
            connection = self._server.turns.connect()
            connection.detach()
            try:
                # Shared: the server may not have noticed yet that the one before is lost.
                connection.execute(_PRESENT, {"key": lock_key(f"process {self.me}")})
            except BaseException:
                connection.close()
                raise
            self._presence = connection

    def is_running(self, name: str) -> bool:  # noqa: D102 - as in the base class
        with self._errors(), self._connections().connect() as connection:
            return not connection.execute(_TRY, {"key": lock_key(f"process {name}")}).scalar()

    def close(self) -> None:  # noqa: D102 - as in the base class
        with self._appearing:
            presence, self._presence = self._presence, None
        if presence is not None:
            presence.close()
        self._server.close()

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _server(self) -> Postgres:
        return Postgres.of(self._url)

    def _connections(self) -> Engine:
        return self._server.requests

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._server.errors():
            yield


def _connect(_dialect: object, _record: object, arguments: Any, options: Any) -> Any:
    """Makes a connection that gives up a server which hangs: its own time limits are no use then."""
    import psycopg  # noqa: PLC0415 - most do without

    class Impatient(psycopg.Connection[Any]):
        patience: float = _SILENT_SECONDS

        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            return super().wait(self._until(gen), *arguments, **options)

        def _until(self, gen: Any) -> Generator[Any, Any, Any]:
            until, ready = time.monotonic() + self.patience, None
            while True:
                try:
                    wanted = gen.send(ready)
                except StopIteration as end:
                    return end.value
                if time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"silent for {self.patience:g} s")
                ready = yield wanted

    return Impatient.connect(*arguments, **options)


def upgrade(url: SecretStr, kind: migrations.Kind) -> None:
    """Brings the tables up to date; of several who do this at once, one does it.

    Raises:
        ConfigurationError: It was made by a newer version, or does not keep text as UTF-8.
        AriError: As `Postgres.errors` says; nothing was changed.
    """
    server = Postgres.of(url)
    with server.holding(server.requests, lock_key(f"write {kind}")) as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != _ENCODING:
            raise ConfigurationError(
                f"{server.name} has the encoding {encoding}, and names need {_ENCODING}",
                hint=f"createdb --encoding={_ENCODING} --template=template0 NAME",
            )
        migrations.is_newest(migrations.current(connection, kind), kind, server.name)
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # large tables take their time
        driver: Any = connection.connection.driver_connection
        driver.patience = math.inf
        migrations.upgrade(connection, kind)


def version(url: SecretStr, kind: migrations.Kind) -> str | None:
    """Returns how far the tables have come; None when there are none.

    Raises:
        AriError: As `Postgres.errors` says.
    """
    server = Postgres.of(url)
    with server.errors(), server.requests.connect() as connection:
        return migrations.current(connection, kind)


def lock_key(name: str) -> int:
    """Returns the number of an advisory lock. All programs that use the database share these numbers."""
    return int.from_bytes(hashlib.sha256(f"ari-registry {name}".encode()).digest()[:8], signed=True)


def _of(function: Any) -> Select[Any]:
    return select(function(bindparam("key", type_=BigInteger)))


_LOCK: Final = _of(func.pg_advisory_xact_lock)
_PRESENT: Final = _of(func.pg_advisory_lock_shared)
_TRY: Final = _of(func.pg_try_advisory_xact_lock)

_OUTDATED: Final = ("42P01", "42703")
# By SQLSTATE, or its class; the empty one is a connection that was not made, or broke.
_MEANINGS: Final[dict[str, tuple[type[AriError], str, str | None]]] = {
    "28": (AccessDenied, "refuses user or password", f"check {_VARIABLE}, and the server's pg_hba.conf"),
    "3D": (ConfigurationError, "does not exist", "create it with createdb, or correct its name"),
    "42501": (AccessDenied, "refuses this: {text}", "its owner, or GRANT, gives the user that right"),
    "25006": (ReadOnly, "takes no writes", "name the primary server, not one that follows it"),
    "53300": (
        DatabaseUnavailable,
        "has no connection left",
        f"raise its max_connections: each worker takes up to {MOST_CONNECTIONS}",
    ),
    "53100": (DiskFullError, "has no space left", None),
    "TLS": (
        ConfigurationError,
        "speaks no TLS",
        f"switch it on there (ssl = on), or take sslmode out of {_VARIABLE}",
    ),
    "certificate": (
        ConfigurationError,
        "shows a certificate that is not trusted: {text}",
        f"name its authority's file in {_VARIABLE} (sslrootcert=FILE.pem), and the host as the certificate does",
    ),
    "55P03": (DatabaseUnavailable, "is kept locked by another program", None),
    "57014": (DatabaseUnavailable, "took too long to answer", None),
    "58": (DiskError, "fails: {text}", "its own log says more"),
    "XX": (DiskError, "fails: {text}", "its own log says more"),
    **dict.fromkeys(
        ("", "08", "40", "53", "57"),
        (DatabaseUnavailable, "does not answer: {text}", "is PostgreSQL running there? then try again"),
    ),
}
# PostgreSQL says why it takes no connection in words only, in the language of its lc_messages.
_WORDS: Final = {
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "no pg_hba.conf entry": "28000",
    "too many clients": "53300",
    "remaining connection slots": "53300",
    "too many connections": "53300",
    "server does not support SSL": "TLS",
    "certificate verify failed": "certificate",
    "root certificate file": "certificate",
    "server certificate for": "certificate",
}
_UNKNOWN: Final = re.compile(r'(role|database) "[^"]*" does not exist')


def _state_of(text: str) -> str:
    if found := _UNKNOWN.search(text):
        return "28000" if found[1] == "role" else "3D000"
    return next((state for words, state in _WORDS.items() if words in text), "")


def _line(error: BaseException | None) -> str:
    return escape(" ".join(str(error).split()))


def _outdated(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} has not the tables of this version", hint="run `ari registry db upgrade` first"
    )
