"""What is in the store, for questions that must be quick: ``registry.db``, or tables in PostgreSQL.

The store has the truth, and `Index.reindex` makes all of this again from it, but for tombstones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    MetaData,
    Select,
    Table,
    bindparam,
    delete,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy import (
    Index as TableIndex,
)

from ari_core.contract import Artifact, Backend, Locator, Owner, Visibility
from ari_core.errors import (
    AlreadyExists,
    ConfigurationError,
    IntegrityError,
    NotFound,
    QuotaExceeded,
    UsageError,
)
from ari_core.layout import ID_DIGITS, MOST_DIGITS
from ari_core.names import quoted
from ari_core.streams import Progress
from ari_server.config import DEFAULT_BACKEND, ServerConfig
from ari_server.database import Plain, insert, open_database
from ari_server.rows import Intent, Row, SupportsFind, Tombstone
from ari_server.survey import SEARCH_CHARACTERS, Survey
from ari_server.turns import Turns

_log: Final = logging.getLogger(__name__)
MOST_ROWS: Final = 1000
"""Of one `Index.page`."""

_MOST_WORDS: Final = 16
_LONGEST_QUERY: Final = 200
_BATCH: Final = 500
_LOOKED_FOR: Final = 5
_CITED: Final = (Visibility.UNLISTED, Visibility.PUBLIC)
_CURSOR: Final = re.compile(r"(-?[0-9]{1,12}) ([0-9a-f]{64})")

_GENERATION: Final = "generation"
_COMPLETE: Final = "complete"
_IDENTITY: Final = "identity"

_tables: Final = MetaData()
# Everything is keyed by the archive digest: an id is its beginning, so one range finds both.
_artifacts: Final = Table(
    "artifacts",
    _tables,
    Column("archive_sha256", Plain, primary_key=True),
    Column("id", Plain, nullable=False, unique=True),
    Column("bundle_sha256", Plain),
    Column("size", BigInteger, nullable=False),
    Column("visibility", Plain, nullable=False),
    Column("created", BigInteger, nullable=False),  # seconds since 1970
    Column("locator", Plain, nullable=False),
    Column("file_count", BigInteger),
    Column("total_bytes", BigInteger),
    Column("license", Plain),
    Column("title", Plain),
    Column("manifest_sha256", Plain),
    Column("generation", BigInteger, nullable=False),
    TableIndex("artifacts_newest", "visibility", "created", "archive_sha256"),
    sqlite_with_rowid=False,
)
_owners: Final = Table(
    "owners",
    _tables,
    Column("archive_sha256", Plain, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("user", Plain, nullable=False),
    Column("visibility", Plain, nullable=False),
    Column("since", BigInteger),
    Column("created", BigInteger, nullable=False),  # of the artifact: for one's own, newest first
    TableIndex("owners_newest", "user", "created", "archive_sha256"),
    sqlite_with_rowid=False,
)
_words: Final = Table(  # apart, so that nothing else has to read past it
    "words", _tables, Column("archive_sha256", Plain, primary_key=True), Column("text", Plain, nullable=False)
)
_removals: Final = Table(
    "removals",
    _tables,
    Column("archive_sha256", Plain, primary_key=True),
    Column("id", Plain, nullable=False),
    Column("deleted", BigInteger, nullable=False),
    Column("shown", Boolean, nullable=False),  # as a tombstone
    Column("generation", BigInteger, nullable=False),
)
_intents: Final = Table(
    "intents",
    _tables,
    Column("archive_sha256", Plain, primary_key=True),
    Column("who", Plain, primary_key=True),  # so that ending one leaves another process's in place
    Column("locator", Plain, nullable=False),
    Column("begun", BigInteger, nullable=False),
)
_facts: Final = Table(
    "facts", _tables, Column("name", Plain, primary_key=True), Column("value", BigInteger, nullable=False)
)

_ROW_COLUMNS: Final = tuple(column for column in _artifacts.c if column.name != "generation")
_OWNER: Final = len(_ROW_COLUMNS)
_FIND: Final = (
    select(*_ROW_COLUMNS, _owners.c.user, _owners.c.visibility, _owners.c.since)
    .outerjoin(_owners, _owners.c.archive_sha256 == _artifacts.c.archive_sha256)
    .where(_artifacts.c.archive_sha256 >= bindparam("low"), _artifacts.c.archive_sha256 < bindparam("high"))
    .order_by(_artifacts.c.archive_sha256, _owners.c.position)
)
_FIND_TOMBSTONE: Final = select(_removals.c.archive_sha256, _removals.c.id, _removals.c.deleted).where(
    _removals.c.archive_sha256 >= bindparam("low"),
    _removals.c.archive_sha256 < bindparam("high"),
    _removals.c.shown,
)
_FIND_FACT: Final = select(_facts.c.value).where(_facts.c.name == bindparam("name"))

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What `Index.reindex` did."""

    indexed: int
    removed: int
    warnings: tuple[str, ...]


class Index:
    """The index of one registry. Threads and processes may use it at once."""

    def __init__(self, config: ServerConfig, *, least: int = ID_DIGITS) -> None:
        """Opens the database; a file is created.

        Args:
            config: Where it is, and how long new ids are.
            least: Digits of the shortest id that is looked up; fewer than 16 only for tests of collisions.

        Raises:
            AriError: As `Database` says.
        """
        restore = "move it away and run `ari registry reindex`, which makes it again (but for tombstones)"
        self._database = open_database(config, "index", _tables, restore=restore)
        self._turns = Turns(config)
        self._find = self._database.compile(_FIND)
        self._find_tombstone = self._database.compile(_FIND_TOMBSTONE)
        self._find_fact = self._database.compile(_FIND_FACT)
        self._digits = re.compile(rf"[0-9a-f]{{{least},{MOST_DIGITS}}}")
        self._id_digits = config.id_digits
        self._shared = config.db is not None
        self._place = _place(config)

    # -- every request -------------------------------------------------------------------------------------------

    def find(self, digits: str) -> Row | Tombstone | None:
        """Returns the artifact that has these digits as its id, or whose archive digest starts with them.

        Args:
            digits: 16 to 64 lower-case hex digits; of anything else there is nothing.

        Raises:
            AlreadyExists: There are several.
            AriError: The database cannot be asked.
        """
        if not self._digits.fullmatch(digits):
            return None
        span = {"low": digits, "high": digits + "g"}  # right behind all that starts so
        if rows := _one(self._database.fetch(self._find, **span), digits):
            return _row(rows[0], [row[_OWNER:] for row in rows if row[_OWNER] is not None])
        if rows := _one(self._database.fetch(self._find_tombstone, **span), digits):
            archive_sha256, artifact, deleted = rows[0]
            return Tombstone(archive_sha256, artifact, _moment(deleted))
        return None

    def page(
        self, *, user: str | None, after: str | None = None, limit: int = 50, query: str | None = None
    ) -> tuple[list[Row], str | None]:
        """Returns artifacts, newest first, and the cursor that continues behind them, or None at the end.

        Args:
            user: Everything that this user owns; None: what is public.
            after: A cursor.
            limit: At most so many, 1 to 1000.
            query: Words which must all occur in title, license, digests, file names or names of owners who have
                made it public themselves.

        Raises:
            UsageError: That is no cursor, no limit or no query.
            AriError: The database cannot be asked.
        """
        if not 1 <= limit <= MOST_ROWS:
            raise UsageError(f"the limit must be 1 to {MOST_ROWS}")
        statement = select(*_ROW_COLUMNS)
        place: tuple[Column[Any], Column[Any]]
        if user is None:
            statement = statement.where(_artifacts.c.visibility == Visibility.PUBLIC.value)
            place = (_artifacts.c.created, _artifacts.c.archive_sha256)
        else:
            mine = _owners.c.archive_sha256 == _artifacts.c.archive_sha256
            statement = statement.join(_owners, mine).where(_owners.c.user == user)
            place = (_owners.c.created, _owners.c.archive_sha256)
        if query is not None:
            statement = statement.join(_words, _words.c.archive_sha256 == _artifacts.c.archive_sha256)
            statement = statement.where(*(_words.c.text.contains(word, autoescape=True) for word in _split(query)))
        if after is not None:
            created, archive_sha256 = _read_cursor(after)
            behind = (literal(created, place[0].type), literal(archive_sha256, place[1].type))
            statement = statement.where(tuple_(*place) < tuple_(*behind))
        statement = statement.order_by(*(column.desc() for column in place)).limit(limit + 1)
        with self._database.read() as connection:
            found = connection.execute(statement).all()
            rows = _with_owners(connection, found[:limit])
        return rows, cursor_behind(rows[-1]) if len(found) > limit else None

    def used_bytes(self, user: str) -> int:
        """Returns the size of all archives that `user` owns."""
        return self._number(_used(user))

    def count(self) -> int:
        """Returns how many artifacts there are."""
        return self._number(select(func.count()).select_from(_artifacts))

    def ping(self) -> None:
        """Asks the database something.

        Raises:
            AriError: It does not answer.
        """
        self._database.fetch(self._find_tombstone, low="", high="")

    # -- what changes --------------------------------------------------------------------------------------------

    def put(self, row: Row, search: str = "", *, quota: tuple[str, int] | None = None) -> None:
        """Inserts or replaces a row with its owners; ends this process's intent, and its tombstone.

        Args:
            row: All of it.
            search: File names to be found by; "" keeps those that are there, which the content decides.
            quota: A user and how many bytes they may own, this included.

        Raises:
            AlreadyExists: Another archive has the id.
            QuotaExceeded: The user would own more.
            AriError: It could not be written.
        """
        with self._database.write() as connection:
            self._put(connection, row, search, quota)

    def agree(
        self,
        archive_sha256: str,
        look: Callable[[], Row | None],
        search: str = "",
        *,
        quota: tuple[str, int] | None = None,
        tombstone: bool = False,
    ) -> Row | None:
        """Writes what `look` finds in the store now; returns it.

        So that nothing older ever takes the place of what is newer:

        - Everybody who has changed the store comes here afterwards, and it is one's turn at a time. So the last
          who comes finds what all changes have led to, and writes after all who found something older.
        - Whoever has lost the turn writes nothing: that is asked while nobody else can write. The next in turn
          has still to write then.
        - What `reindex` read meanwhile may be newer, or older: it has a number, and what is written here carries
          the one it was looked up under. If another run began in between, it is looked up again. So a run knows
          that what carries its number was found after the run began, and leaves it alone; and what carries an
          older one was there before the run listed the store, which then found it or something newer.

        Args:
            archive_sha256: Which artifact.
            look: Asks the store; None if it is gone. May be called again; must not change the store.
            search: As for `put`.
            quota: As for `put`.
            tombstone: As for `remove`, if it is gone.

        Raises:
            AriError: As `look`, `put` and `remove` say; nothing was changed.
        """

        def write(connection: Connection, row: Row | None) -> None:
            if row is None:
                self._remove(connection, archive_sha256, tombstone=tombstone)
            else:
                self._put(connection, row, search, quota)

        return self._settle(archive_sha256, look, write)

    def remove(self, archive_sha256: str, *, tombstone: bool) -> None:
        """Removes a row and ends this process's intent; absent is fine.

        Args:
            archive_sha256: Which.
            tombstone: Say from now on that it was deleted. A tombstone that is there stays.

        Raises:
            AriError: It could not be written.
        """
        with self._database.write() as connection:
            self._remove(connection, archive_sha256, tombstone=tombstone)

    def intend(self, archive_sha256: str, locator: str = "") -> None:
        """Notes, durably, that the store is about to be changed; `put` or `remove` ends that.

        Args:
            archive_sha256: Of the artifact.
            locator: Where it is; "" when it is not known yet.

        Raises:
            AriError: It could not be written.
        """
        self._database.appear()
        with self._database.write() as connection:
            new = insert(connection, _intents).values(
                archive_sha256=archive_sha256, who=self._database.me, locator=locator, begun=int(time.time())
            )
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=["archive_sha256", "who"], set_={"locator": new.excluded.locator}
                )
            )

    def intents(self) -> list[Intent]:
        """Returns changes of the store that were begun and not ended, by this or any other process."""
        statement = select(_intents.c.archive_sha256, _intents.c.locator, _intents.c.begun, _intents.c.who)
        with self._database.read() as connection:
            found = connection.execute(statement.order_by(_intents.c.begun, _intents.c.archive_sha256)).all()
        return [Intent(archive, Locator(locator), _moment(begun), who) for archive, locator, begun, who in found]

    # -- agreeing with the store ---------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether a `reindex` was finished in this place: what was moved or copied brings another one's index."""
        with self._database.read() as connection:
            return _fact(connection, _COMPLETE) == self._place

    def require_known(self, backend: Backend) -> None:
        """Refuses a store that has nothing of what several servers know: it can only be another one.

        Raises:
            ConfigurationError: It is, and making an index of it would take away the one that others answer from.
            AriError: The store or the database fails.
        """
        finder = backend.optional(SupportsFind)
        if not self._shared or finder is None:
            return
        known = self._settled()
        for archive_sha256 in known:
            with suppress(NotFound):
                finder.find(archive_sha256)
                return
        if not known.isdisjoint(self._settled()):  # else they were being deleted
            raise ConfigurationError(
                f"the store has nothing of the {self.count()} artifacts that the database knows: it is another",
                hint="check backend and settings (ARI_REGISTRY_BACKEND, ARI_REGISTRY_OPTIONS); "
                "if the database is to serve this store from now on: `ari registry reindex --take-over`",
            )

    def _settled(self) -> set[str]:
        """Returns a few of the newest artifacts, none of which anybody has begun to change."""
        begun = select(_intents.c.archive_sha256)
        newest = select(_artifacts.c.archive_sha256).where(_artifacts.c.archive_sha256.not_in(begun))
        with self._database.read() as connection:
            found = connection.execute(newest.order_by(_artifacts.c.created.desc()).limit(_LOOKED_FOR))
            return set(found.scalars())

    def reindex(self, backend: Backend, *, progress: Progress | None = None) -> ReindexReport:
        """Makes the index agree with the store; servers may go on meanwhile.

        Each run has a number. What a server writes carries the latest one, so this neither overwrites it with what
        it read before, nor takes it for gone. What follows from the content alone is not read again. What
        was begun in another place is dropped with its index.

        Raises:
            AriError: The store or the database fails; what was done stays, and it can be run again.
        """
        total = self.count() or None
        with self._database.write() as connection:
            generation = _fact(connection, _GENERATION) + 1
            _set_fact(connection, _GENERATION, generation)
        survey = Survey(backend, self._id_digits)
        indexed = 0
        listing = (artifact for artifact, _ in backend.list())
        while batch := list(islice(listing, _BATCH)):
            with self._database.read() as connection:
                known = _known(connection, [artifact.archive_sha256 or "" for artifact in batch])
            described = survey.describe(batch, known)
            with self._database.write() as connection:
                described = _fresh(connection, described, generation, survey)
                _upsert(connection, described, generation)
            indexed += len(batch)
            if progress:
                progress("indexing", indexed, None if total is None else max(total, indexed))
        with self._database.write() as connection:
            removed = self._sweep(connection, generation)
            if _fact(connection, _COMPLETE) != self._place:
                if not self._shared:  # there, `repair` knows whose process is gone
                    connection.execute(delete(_intents))
                _set_fact(connection, _COMPLETE, self._place)
        return ReindexReport(self.count(), removed, tuple(survey.warnings))

    def repair(self, backend: Backend, *, among_others: bool = False) -> int:
        """Makes the index agree with the store where a crash cut a change off; returns how often.

        Args:
            backend: The store.
            among_others: Other processes may be changing things now: leaves alone what one of them has begun.

        Raises:
            AriError: The store or the database fails.
        """
        intents = self.intents()
        if among_others or self._shared:
            begun_by = {intent.who for intent in intents}
            gone = {who for who in begun_by if not self._database.is_running(who)}
            intents = [intent for intent in intents if intent.who in gone]
        survey = Survey(backend, self._id_digits)
        mended = 0
        for archive_sha256 in dict.fromkeys(intent.archive_sha256 for intent in intents):
            left = [intent for intent in intents if intent.archive_sha256 == archive_sha256]
            try:
                self._repair(archive_sha256, left, survey)
            except IntegrityError as error:  # no reason not to serve all others; tried again next time
                _log.warning("not repaired: %s", error.message)
            else:
                mended += 1
        return mended

    def identify(self) -> str:
        """Returns the name under which a store notes that it serves this index, and no other one.

        Raises:
            AriError: It could not be written.
        """
        with self._database.write() as connection:
            if not (number := _fact(connection, _IDENTITY)):
                number = secrets.randbits(62) | 1
                _set_fact(connection, _IDENTITY, number)
        return f"{number:016x}"

    def close(self) -> None:
        """Lets go of the database; may be called twice."""
        self._turns.close()
        self._database.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _number(self, statement: Select[Any]) -> int:
        with self._database.read() as connection:
            return int(connection.execute(statement).scalar() or 0)

    def _settle(
        self, archive_sha256: str, look: Callable[[], _Found], write: Callable[[Connection, _Found], None]
    ) -> _Found:
        """Writes what is found in the store; `agree` says why this is never older than what is there."""
        with self._turns.hold(archive_sha256) as check:
            while True:
                rows = self._database.fetch(self._find_fact, name=_GENERATION)
                found = look()
                with self._database.write() as connection:
                    check()
                    if _fact(connection, _GENERATION) == (rows[0][0] if rows else 0):
                        write(connection, found)
                        return found

    def _repair(self, archive_sha256: str, left: Sequence[Intent], survey: Survey) -> None:
        """Makes one artifact agree with the store, and ends what was left of it."""

        def look() -> tuple[dict[str, Row], Artifact | None, list[tuple[Row, str]]]:
            before = self.find(archive_sha256)
            known = {archive_sha256: before} if isinstance(before, Row) else {}
            places = [intent.locator for intent in left] + [row.locator for row in known.values()]
            artifact = survey.look(archive_sha256, places)
            return known, artifact, survey.describe([artifact] if artifact else [], known)

        def write(
            connection: Connection, found: tuple[dict[str, Row], Artifact | None, list[tuple[Row, str]]]
        ) -> None:
            known, artifact, described = found
            for row, search in described:
                with suppress(AlreadyExists):  # its id is another's: `reindex` reports it
                    self._put(connection, row, search, None)
            if artifact is None:
                cited = any(row.visibility in _CITED for row in known.values())
                self._remove(connection, archive_sha256, tombstone=cited)
            ended = (_intents.c.archive_sha256 == archive_sha256, _intents.c.who.in_([i.who for i in left]))
            connection.execute(delete(_intents).where(*ended))

        self._settle(archive_sha256, look, write)

    def _put(self, connection: Connection, row: Row, search: str, quota: tuple[str, int] | None) -> None:
        taken = select(_artifacts.c.archive_sha256).where(
            _artifacts.c.id == row.id, _artifacts.c.archive_sha256 != row.archive_sha256
        )
        if connection.execute(taken).first():
            raise AlreadyExists(f"another archive has the id {row.id} already; nothing was overwritten")
        _upsert(connection, [(row, search)], _fact(connection, _GENERATION))
        if quota is not None and (used := int(connection.execute(_used(quota[0])).scalar() or 0)) > quota[1]:
            raise QuotaExceeded(f"your quota is {quota[1]} bytes; with this you would own {used}")
        self._end(connection, row.archive_sha256)

    def _end(self, connection: Connection, archive_sha256: str) -> None:
        connection.execute(
            delete(_intents).where(
                _intents.c.archive_sha256 == archive_sha256, _intents.c.who == self._database.me
            )
        )

    def _remove(self, connection: Connection, archive_sha256: str, *, tombstone: bool) -> None:
        artifact = select(_artifacts.c.id).where(_artifacts.c.archive_sha256 == archive_sha256)
        new = insert(connection, _removals).values(
            archive_sha256=archive_sha256,
            id=connection.execute(artifact).scalar() or archive_sha256[: self._id_digits],
            deleted=int(time.time()),
            shown=tombstone,
            generation=_fact(connection, _GENERATION),
        )
        again = {"generation": new.excluded.generation}
        connection.execute(new.on_conflict_do_update(index_elements=["archive_sha256"], set_=again))
        if tombstone:
            hidden = (_removals.c.archive_sha256 == archive_sha256, ~_removals.c.shown)
            connection.execute(update(_removals).where(*hidden).values(shown=True, deleted=int(time.time())))
        for table in (_artifacts, _owners, _words):
            connection.execute(delete(table).where(table.c.archive_sha256 == archive_sha256))
        self._end(connection, archive_sha256)

    def _sweep(self, connection: Connection, generation: int) -> int:
        """Removes what the store no longer has."""
        gone = connection.execute(
            select(_artifacts.c.archive_sha256, _artifacts.c.visibility, _intents.c.who)
            .outerjoin(_intents, _intents.c.archive_sha256 == _artifacts.c.archive_sha256)
            .where(_artifacts.c.generation < generation)
        ).all()
        removed = {}
        for archive_sha256, level, who in gone:
            # Whoever deleted it may have been cut off before leaving its tombstone.
            removed[archive_sha256] = who is not None and Visibility(level) in _CITED
        for archive_sha256, tombstone in removed.items():
            self._remove(connection, archive_sha256, tombstone=tombstone)
        connection.execute(delete(_removals).where(~_removals.c.shown, _removals.c.generation < generation))
        return len(removed)


def _one(rows: Sequence[Any], digits: str) -> Sequence[Any]:
    """Returns the rows of one artifact, the only one or the one with this very id."""
    if not rows or rows[0][0] == rows[-1][0]:
        return rows
    if exact := [row for row in rows if row[1] == digits]:
        return exact
    raise AlreadyExists(f"{digits} are the first digits of several artifacts", hint="give more of them")


def _row(columns: Sequence[Any], owners: Iterable[Sequence[Any]]) -> Row:
    archive_sha256, artifact, bundle_sha256, size, level, created, locator, *facts = columns[:_OWNER]
    return Row(
        artifact,
        archive_sha256,
        bundle_sha256,
        size,
        Visibility(level),
        _moment(created),
        locator,
        tuple(
            Owner(user, Visibility(level), None if since is None else _moment(since))
            for user, level, since in owners
        ),
        *facts,
    )


def _with_owners(connection: Connection, found: Sequence[Any]) -> list[Row]:
    owners: dict[str, list[Sequence[Any]]] = {columns.archive_sha256: [] for columns in found}
    statement = (
        select(_owners.c.archive_sha256, _owners.c.user, _owners.c.visibility, _owners.c.since)
        .where(_owners.c.archive_sha256.in_(list(owners)))
        .order_by(_owners.c.archive_sha256, _owners.c.position)
    )
    for archive_sha256, *owner in connection.execute(statement):
        owners[archive_sha256].append(owner)
    return [_row(columns, owners[columns.archive_sha256]) for columns in found]


def _known(connection: Connection, archives: Sequence[str]) -> dict[str, Row]:
    found = connection.execute(select(*_ROW_COLUMNS).where(_artifacts.c.archive_sha256.in_(archives))).all()
    return {row.archive_sha256: row for row in _with_owners(connection, found)}


def _fresh(
    connection: Connection, described: Sequence[tuple[Row, str]], generation: int, survey: Survey
) -> list[tuple[Row, str]]:
    """Leaves out what a server wrote or removed since this run began: that is newer than what was listed."""
    archives = [row.archive_sha256 for row, _ in described]
    newer: set[str] = set()
    for table in (_artifacts, _removals):
        which = (table.c.archive_sha256.in_(archives), table.c.generation >= generation)
        newer.update(connection.execute(select(table.c.archive_sha256).where(*which)).scalars())
    ids = select(_artifacts.c.id, _artifacts.c.archive_sha256).where(
        _artifacts.c.id.in_([r.id for r, _ in described])
    )
    taken: dict[str, str] = {found.id: found.archive_sha256 for found in connection.execute(ids)}
    fresh = []
    for row, search in described:
        if row.archive_sha256 in newer:
            continue
        if taken.setdefault(row.id, row.archive_sha256) != row.archive_sha256:
            survey.warn(f"left out: {quoted(row.locator)} has the id {row.id} of another archive")
            continue
        fresh.append((row, search))
    return fresh


def _upsert(connection: Connection, described: Sequence[tuple[Row, str]], generation: int) -> None:
    if not described:
        return
    archives = [row.archive_sha256 for row, _ in described]
    new = insert(connection, _artifacts)
    columns = {column.name: new.excluded[column.name] for column in _artifacts.c if not column.primary_key}
    connection.execute(
        new.on_conflict_do_update(index_elements=["archive_sha256"], set_=columns),
        [
            {column.name: getattr(row, column.name) for column in _ROW_COLUMNS}
            | {"visibility": row.visibility.value, "created": _seconds(row.created), "generation": generation}
            for row, _ in described
        ],
    )
    connection.execute(delete(_owners).where(_owners.c.archive_sha256.in_(archives)))
    connection.execute(delete(_removals).where(_removals.c.archive_sha256.in_(archives)))
    owners = [
        {
            "archive_sha256": row.archive_sha256,
            "position": position,
            "user": owner.user,
            "visibility": owner.visibility.value,
            "since": owner.created and _seconds(owner.created),
            "created": _seconds(row.created),
        }
        for row, _ in described
        for position, owner in enumerate(row.owners)
    ]
    if owners:
        connection.execute(insert(connection, _owners), owners)
    _upsert_words(connection, described)


def _upsert_words(connection: Connection, described: Sequence[tuple[Row, str]]) -> None:
    """Writes what a search looks through: a line of facts, then the file names."""
    archives = [row.archive_sha256 for row, _ in described]
    before = {
        archive: text.partition("\n")[2]
        for archive, text in connection.execute(
            select(_words.c.archive_sha256, _words.c.text).where(_words.c.archive_sha256.in_(archives))
        )
    }
    texts = []
    for row, search in described:
        # Who has staged what somebody else published must not be found out by searching.
        public = (owner.user for owner in row.owners if owner.visibility is Visibility.PUBLIC)
        facts = (row.title, row.license, row.archive_sha256, row.bundle_sha256, *public)
        names = search[:SEARCH_CHARACTERS].casefold() or before.get(row.archive_sha256, "")
        line = " ".join(" ".join(fact.split()) for fact in facts if fact).casefold()
        texts.append({"archive_sha256": row.archive_sha256, "text": f"{line}\n{names}"})
    new = insert(connection, _words)
    changed = {"text": new.excluded.text}
    connection.execute(new.on_conflict_do_update(index_elements=["archive_sha256"], set_=changed), texts)


def _split(query: str) -> list[str]:
    words = query.casefold().split()
    if "\0" in query:  # SQLite would take what stands before it for the whole word, PostgreSQL takes none
        raise UsageError("a query is words, without the character NUL")
    if len(query) > _LONGEST_QUERY or len(words) > _MOST_WORDS:
        raise UsageError(f"a query has at most {_LONGEST_QUERY} characters and {_MOST_WORDS} words")
    return words


def _used(user: str) -> Select[Any]:
    mine = _owners.c.archive_sha256 == _artifacts.c.archive_sha256
    return select(func.sum(_artifacts.c.size)).join(_owners, mine).where(_owners.c.user == user)


def _place(config: ServerConfig) -> int:
    # With a database that several servers share, each has a data directory of its own, and it does not matter.
    inside = config.db is None or config.backend == DEFAULT_BACKEND
    store = [str(config.data.resolve()) if inside else "", config.backend, config.options]
    text = json.dumps(store, sort_keys=True).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7])


def _fact(connection: Connection, name: str) -> int:
    return connection.execute(select(_facts.c.value).where(_facts.c.name == name)).scalar() or 0


def _set_fact(connection: Connection, name: str, value: int) -> None:
    new = insert(connection, _facts).values(name=name, value=value)
    connection.execute(new.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


def cursor_behind(row: Row) -> str:
    """Returns the cursor that continues a listing behind `row`."""
    return base64.urlsafe_b64encode(f"{_seconds(row.created)} {row.archive_sha256}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except ValueError:
        text = ""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise UsageError("that is no cursor", hint="give the `next` of the answer before, as it is")
    return int(found[1]), found[2]


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
