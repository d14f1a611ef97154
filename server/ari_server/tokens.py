"""Who may do what: tokens of users, and fetch tokens that open one artifact, in ``tokens.db`` or PostgreSQL.

Only SHA-256 digests are stored. The table ``tokens`` is the existing server's; what that server could not tell
from a token that may do everything (a scope, an expiry, a single artifact) stands in tables of our own, so that it
refuses those tokens instead of taking them for more than they are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    MetaData,
    Row,
    Table,
    and_,
    bindparam,
    func,
    literal,
    literal_column,
    null,
    select,
    union_all,
    update,
)

from ari_core.errors import AriError, UsageError
from ari_core.names import quoted
from ari_server.config import ServerConfig
from ari_server.database import Plain, insert, open_database

Scope = Literal["publish", "read", "fetch"]

_RANDOM_BYTES: Final = 32
_PREFIX: Final = "ari_"
_FETCH_PREFIX: Final = "arif_"
_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_LONGEST_NOTE: Final = 200
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"  # as text it sorts as it should
_FLUSH_SECONDS: Final = 60.0

_tables: Final = MetaData()
_full = Table(
    "tokens",
    _tables,
    Column("id", Plain, primary_key=True),
    Column("token_hash", Plain, nullable=False, unique=True),
    Column("user", Plain, nullable=False),
    Column("created_at", Plain, nullable=False),
    Column("revoked_at", Plain),
)
_limited = Table(
    "limited_tokens",
    _tables,
    Column("id", Plain, primary_key=True),
    Column("token_hash", Plain, nullable=False, unique=True),
    Column("user", Plain, nullable=False),
    Column("scope", Plain, nullable=False),
    Column("created_at", Plain, nullable=False),
    Column("expires_at", Plain),
    Column("revoked_at", Plain),
)
_fetch = Table(
    "fetch_tokens",
    _tables,
    Column("id", Plain, primary_key=True),
    Column("token_hash", Plain, nullable=False, unique=True),
    Column("archive_sha256", Plain, nullable=False, index=True),
    Column("user", Plain, nullable=False),
    Column("note", Plain, nullable=False),
    Column("created_at", Plain, nullable=False),
    Column("expires_at", Plain),
    Column("revoked_at", Plain),
)
_uses = Table(
    "token_uses", _tables, Column("id", Plain, primary_key=True), Column("used_at", Plain, nullable=False)
)

_SHARES: Final = select(
    _fetch.c.id, _fetch.c.user, literal("fetch").label("scope"), _fetch.c.created_at,
    _fetch.c.expires_at, _fetch.c.revoked_at, _fetch.c.note,
)  # fmt: skip
_HASH: Final[BindParameter[str]] = bindparam("hash")
_FIND: Final = union_all(
    select(
        _full.c.token_hash,
        _full.c.id,
        _full.c.user,
        literal_column("'publish'"),
        null(),
        null(),
        _full.c.revoked_at,
    ).where(_full.c.token_hash == _HASH),
    select(
        _limited.c.token_hash,
        _limited.c.id,
        _limited.c.user,
        _limited.c.scope,
        null(),
        _limited.c.expires_at,
        _limited.c.revoked_at,
    ).where(_limited.c.token_hash == _HASH),
)
_FIND_FETCH: Final = select(
    _fetch.c.token_hash,
    _fetch.c.id,
    _fetch.c.user,
    literal_column("'fetch'"),
    _fetch.c.archive_sha256,
    _fetch.c.expires_at,
    _fetch.c.revoked_at,
).where(_fetch.c.token_hash == _HASH)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a valid token belongs to.

    Attributes:
        user: Whose token it is; for a fetch token, of the owner who made it.
        scope: ``publish`` may do everything that `user` may, ``read`` only read, ``fetch`` only read one artifact.
        token_id: Names the token without being a secret.
        archive_sha256: The one artifact of a fetch token, else None.
    """

    user: str | None
    scope: Scope
    token_id: str
    archive_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token, the only time that its text is to be had."""

    id: str
    token: str = field(repr=False)
    user: str
    scope: Scope
    created: datetime
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What is known of a token; `created` is None where another program wrote something else there."""

    id: str
    user: str
    scope: Scope
    created: datetime | None
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    note: str = ""


_TokenInfos = list[TokenInfo]  # where a method is called `list`, that name means it


class Tokens:
    """The tokens of one registry. Threads and processes may use it at once."""

    def __init__(self, config: ServerConfig) -> None:
        """Opens the database; a file is created.

        Raises:
            AriError: As `Database` says.
        """
        restore = "restore it from a backup; tokens cannot be made again"
        self._database = open_database(config, "tokens", _tables, restore=restore)
        self._find = self._database.compile(_FIND)
        self._find_fetch = self._database.compile(_FIND_FETCH)
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._used: dict[str, str] = {}
        self._flush_at = time.monotonic() + _FLUSH_SECONDS

    # -- tokens of users -----------------------------------------------------------------------------------------

    def issue(
        self, user: str, *, scope: Literal["publish", "read"] = "publish", expires: timedelta | None = None
    ) -> IssuedToken:
        """Makes a token.

        Args:
            user: 1 to 64 letters, digits and ``._@+-``, a letter or digit first.
            scope: What it may do.
            expires: From now; None: never.

        Raises:
            UsageError: That is no user name or no time to come.
            AriError: It could not be stored.
        """
        if not _USER.fullmatch(user):
            raise UsageError(
                f"{quoted(user[:80])} is no user name",
                hint="1 to 64 letters (a-z), digits and . _ @ + -, a letter or digit first",
            )
        token = _new(_PREFIX, user, scope, expires)
        row = {"scope": scope, "expires_at": _text(token.expires)}
        with self._database.write() as connection:
            if scope == "publish" and expires is None:
                connection.execute(insert(connection, _full).values(_stored(token)))
            else:
                connection.execute(insert(connection, _limited).values(_stored(token) | row))
        return token

    def revoke(self, token_id: str) -> bool:
        """Revokes any token, from the next request on; says whether there is one of that id."""
        with self._database.write() as connection:
            return (
                sum(_revoke(connection, table, table.c.id == token_id) for table in (_full, _limited, _fetch)) > 0
            )

    def list(self, *, shares: bool = False) -> list[TokenInfo]:
        """Returns all tokens of users, oldest first; with `shares` also the fetch tokens that they made."""
        full = select(
            _full.c.id, _full.c.user, literal("publish").label("scope"), _full.c.created_at,
            null().label("expires_at"), _full.c.revoked_at, literal("").label("note"),
        )  # fmt: skip
        limited = select(
            _limited.c.id, _limited.c.user, _limited.c.scope, _limited.c.created_at,
            _limited.c.expires_at, _limited.c.revoked_at, literal(""),
        )  # fmt: skip
        return self._infos(union_all(full, limited, _SHARES) if shares else union_all(full, limited))

    def check(self, token: str) -> Caller | None:
        """Returns whose token it is; None for an unknown, revoked or expired one.

        Raises:
            AriError: The database cannot be asked.
        """
        digest = _digest(token)
        query = self._find_fetch if token.startswith(_FETCH_PREFIX) else self._find
        for stored, token_id, user, scope, archive, expires, revoked in self._database.fetch(query, hash=digest):
            if not (isinstance(user, str) and user and isinstance(token_id, str)):
                continue  # another program wrote that: a claim of nobody's could never be used or given up
            now = time.strftime(_TIME, time.gmtime())
            if hmac.compare_digest(stored, digest) and not revoked and not (expires and expires <= now):
                self._note_use(token_id, now)
                return Caller(user, scope, token_id, archive)
        return None

    # -- fetch tokens --------------------------------------------------------------------------------------------

    def issue_fetch(
        self, archive_sha256: str, user: str, *, expires: timedelta | None, note: str = ""
    ) -> IssuedToken:
        """Makes a token with which anybody can read one artifact.

        Args:
            archive_sha256: The artifact.
            user: The owner who makes it.
            expires: From now; None: never.
            note: What it is for, for the owner's own list.

        Raises:
            UsageError: The note is too long, or that is no time to come.
            AriError: It could not be stored.
        """
        if len(note) > _LONGEST_NOTE or "\0" in note:  # which not every database keeps
            raise UsageError(f"a note has at most {_LONGEST_NOTE} characters, and none is NUL")
        token = _new(_FETCH_PREFIX, user, "fetch", expires)
        row = {"archive_sha256": archive_sha256, "note": note, "expires_at": _text(token.expires)}
        with self._database.write() as connection:
            connection.execute(insert(connection, _fetch).values(_stored(token) | row))
        return token

    def list_fetch(self, archive_sha256: str, user: str) -> _TokenInfos:
        """Returns the fetch tokens that `user` made for an artifact, oldest first."""
        return self._infos(_SHARES.where(_fetch.c.archive_sha256 == archive_sha256, _fetch.c.user == user))

    def revoke_fetch(self, token_id: str, archive_sha256: str, user: str) -> bool:
        """Revokes a fetch token; False for one that is absent, of another artifact or somebody else's."""
        return self._revoke_fetch(
            and_(_fetch.c.id == token_id, _fetch.c.archive_sha256 == archive_sha256, _fetch.c.user == user)
        )

    def forget_artifact(self, archive_sha256: str, user: str | None = None) -> None:
        """Revokes the fetch tokens of an artifact: those of one owner, or all."""
        mine = _fetch.c.archive_sha256 == archive_sha256
        self._revoke_fetch(mine if user is None else and_(mine, _fetch.c.user == user))

    # -- the rest ------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Asks the database something.

        Raises:
            AriError: It does not answer.
        """
        self._database.fetch(self._find, hash="")

    def close(self) -> None:
        """Writes down when tokens were used and lets go of the database; may be called twice."""
        self._flush()
        self._database.close()

    def _revoke_fetch(self, which: Any) -> bool:
        with self._database.write() as connection:
            return _revoke(connection, _fetch, which) > 0

    def _infos(self, statement: Any) -> _TokenInfos:
        rows = statement.subquery()
        with self._database.read() as connection:
            found = connection.execute(
                select(rows, _uses.c.used_at)
                .outerjoin(_uses, _uses.c.id == rows.c.id)
                .order_by(rows.c.created_at, rows.c.id)
            ).all()
        return [_info(row) for row in found]

    def _note_use(self, token_id: str, now: str) -> None:
        """Remembers a use, and now and then lets a thread write them down: nobody's request waits for that."""
        with self._lock:
            self._used[token_id] = now
            due = time.monotonic() >= self._flush_at
            if due:
                self._flush_at = time.monotonic() + _FLUSH_SECONDS
        if due:
            with suppress(RuntimeError):  # no thread to be had: the next one is due in a minute
                threading.Thread(target=self._flush, name="ari-token-uses", daemon=True).start()

    def _flush(self) -> None:
        with self._flushing:  # whoever closes waits for a thread that is at it
            self._write_uses()

    def _write_uses(self) -> None:
        with self._lock:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            with self._database.write() as connection:
                new = insert(connection, _uses)
                later = new.on_conflict_do_update(
                    index_elements=["id"], set_={"used_at": new.excluded.used_at},
                    where=new.excluded.used_at > _uses.c.used_at,
                )  # fmt: skip
                connection.execute(later, [{"id": key, "used_at": when} for key, when in used.items()])
        except AriError:  # a read-only disk, say: what is noted here is a convenience
            with self._lock:
                self._used = used | self._used


def _new(prefix: str, user: str, scope: Scope, expires: timedelta | None) -> IssuedToken:
    now = _now()
    try:
        if expires is not None and expires <= timedelta():
            raise UsageError("a token must expire in the future")
        end = None if expires is None else (now + expires).replace(microsecond=0)
    except OverflowError:
        raise UsageError(
            "a token cannot expire that late", hint="leave the expiry out: then it never does"
        ) from None
    token = prefix + secrets.token_urlsafe(_RANDOM_BYTES)
    return IssuedToken(secrets.token_hex(8), token, user, scope, now, end)


def _stored(token: IssuedToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "token_hash": _digest(token.token),
        "user": token.user,
        "created_at": _text(token.created),
    }


def _revoke(connection: Connection, table: Table, which: Any) -> int:
    first = func.coalesce(table.c.revoked_at, _text(_now()))  # who revokes again does not change when it was
    return connection.execute(update(table).where(which).values(revoked_at=first)).rowcount


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime(_TIME)


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC) if text else None
    except ValueError:
        return None


def _info(row: Row[Any]) -> TokenInfo:
    return TokenInfo(
        row.id,
        row.user,
        row.scope,
        _moment(row.created_at),
        _moment(row.expires_at),
        _moment(row.revoked_at),
        _moment(row.used_at),
        row.note,
    )
