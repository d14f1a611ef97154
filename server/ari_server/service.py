"""What a registry does, without HTTP: store, promote, delete, share, each in an order that survives a crash.

The store has the truth. Before it is changed, the index notes what is intended (`Index.intend`); afterwards it is
made to agree. Whatever is cut off in between can be repeated by the client, and is repaired by the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from ari_core.contract import (
    Artifact,
    Backend,
    NewArtifact,
    OpenContext,
    Owner,
    ReadStream,
    Source,
    SupportsDirectUrl,
    SupportsLocalPath,
    SupportsOwners,
    SupportsWorkdir,
    Visibility,
    WatchedSource,
)
from ari_core.errors import (
    AlreadyExists,
    AriError,
    DiskError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    Unavailable,
    from_os_error,
)
from ari_core.fs import Staging
from ari_core.layout import ID_DIGITS
from ari_core.limits import Limits
from ari_core.manifest import Manifest
from ari_core.names import quoted
from ari_core.settings import open_backend
from ari_core.streams import DEADLINE_VARIABLE, deadline
from ari_core.wrappers import DeadlineBackend, RetryBackend, RetryPolicy
from ari_server.access import owner_of
from ari_server.config import DEFAULT_BACKEND, ServerConfig
from ari_server.index import Index
from ari_server.problems import Problem
from ari_server.rows import Row, Tombstone, shown_text
from ari_server.tokens import Caller, IssuedToken, Tokens
from ari_server.turns import Turns

_THREADS: Final = 40
"""Threads for short calls, of each worker; uploads have their own."""
_READERS: Final = 32
"""Threads that wait for bytes of a store, of each worker: one that is slow must keep short calls from nobody."""
_TRIES: Final = 100
_LISTINGS: Final = 2
"""Listings at a time: more of them only fight for the interpreter, and a search can take long."""
_END_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)
_A = TypeVarTuple("_A")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Offer:
    """What an uploader says about an archive.

    Attributes:
        wish: The level wished for in the end.
        embargo: Day before which nobody should read it.
        metadata: Facts to show, ``title`` and ``license`` among them.
    """

    wish: Visibility | None = None
    embargo: date | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an upload.

    Attributes:
        row: The artifact.
        own: The uploader as its owner.
        duplicate: The uploader owned it before.
    """

    row: Row
    own: Owner
    duplicate: bool


PATIENCE: Final = 8.0
"""Seconds that a server waits for one answer of its store, and for a second try, unless ``ARI_DEADLINE`` is set.

Its own clients wait, too, and can come again. A question to a store that hangs is given up after this time, and a
change when the store's own client gives up, which sends a request three times: they have their 503 in 30 seconds.
"""


def open_store(config: ServerConfig, turn: Callable[[str], AbstractContextManager[None]] | None = None) -> Backend:
    """Opens the store that a server is configured for; by default it is in the data directory.

    Args:
        config: Names it.
        turn: See `OpenContext`.

    Raises:
        AriError: There is no such backend, or its settings are wrong.
    """
    options = dict(config.options)
    if config.backend == DEFAULT_BACKEND:
        options = {"root": str(config.data), "id_digits": str(config.id_digits), **options}
    patience = deadline() if DEADLINE_VARIABLE in os.environ else PATIENCE
    context = OpenContext(warn=_log.warning, turn=turn, patience=patience, spool=config.data)
    store = open_backend(config.backend, options, context)
    if config.redirect and store.optional(SupportsDirectUrl) is None:
        raise InvalidConfiguration(
            f"the backend '{store.name}' cannot be read by a URL of its own, so downloads cannot be redirected",
            hint="unset ARI_REGISTRY_REDIRECT",
        )
    if config.accel and store.optional(SupportsLocalPath) is None:
        raise InvalidConfiguration(
            f"the backend '{store.name}' has no files here that nginx could send",
            hint="unset ARI_REGISTRY_ACCEL; ARI_REGISTRY_REDIRECT sends downloads to a store that can take them",
        )
    policy = RetryPolicy(tries=3, cap=2.0, deadline=patience, on_retry=_note_retry)
    return RetryBackend(DeadlineBackend(store, patience), policy)


def _note_retry(error: AriError) -> None:
    _log.warning("asking the store again: %s", error.message)


class Registry:
    """One process's view of a registry: its store, tokens and index.

    All methods but those that are awaited block; those that only look something up in a database are quick.

    Attributes:
        config: As it was started.
        store: The backend, asked again when it fails for a moment.
        takes_streams: Uploads go to the store as they come; else it wants to link a file from `workdir`.
        tokens: Who may do what.
        index: What is in the store.
        limits: Of bundles.
    """

    def __init__(self, config: ServerConfig, *, least: int = ID_DIGITS) -> None:
        """Opens everything.

        Args:
            config: The configuration.
            least: Digits of the shortest id that is accepted; fewer than 16, which then is also what new ids have,
                only for tests of collisions.

        Raises:
            AriError: The store or a database cannot be used.
        """
        self.config = config
        self._data = _HeldFolder(config.data)
        self.limits = Limits.from_environment()
        self.turns = Turns(config)
        self.store = open_store(config, self.turns.turn)
        self.takes_streams = self.store.optional(SupportsWorkdir) is None
        owners = self.store.optional(SupportsOwners)
        if owners is None:
            raise InvalidConfiguration(f"the backend '{self.store.name}' keeps no owners, which a registry needs")
        self._owners = owners
        self.tokens = Tokens(config)
        self.index = Index(config, least=least)
        self.least = least
        self._id_digits = config.id_digits if least >= ID_DIGITS else least
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._readers = anyio.CapacityLimiter(_READERS)
        self._listings = anyio.CapacityLimiter(_LISTINGS)
        self._receiving = anyio.CapacityLimiter(config.uploads)
        self._shares: dict[str, anyio.CapacityLimiter] = {}
        self._uploads = 0
        self._upload_ended = threading.Condition()
        self.workdir()  # now, for a store may make it, which it must not do again when it has vanished

    def close(self) -> None:
        """Lets go of everything; may be called twice."""
        for part in (self.tokens, self.index, self.store, self.turns, self._data):
            with suppress(AriError):
                part.close()

    def mend(self) -> None:
        """Repairs what a worker that was killed has left half-done, while others go on.

        A store or database that fails just now is no reason not to serve: the next start tries again.
        """
        try:
            if mended := self.index.repair(self.store, among_others=True):
                _log.warning("mended %d changes that a killed process had left", mended)
        except AriError as error:
            _log.warning("not mended: %s", error.message)

    async def in_thread(self, call: Callable[[*_A], _T], *arguments: *_A) -> _T:
        """Calls what blocks in one of a bounded number of threads."""
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._threads)

    async def look_up(self, call: Callable[[*_A], _T], *arguments: *_A) -> _T:
        """Calls what only asks a database: at once if that is a file here, which is quicker than any thread."""
        return await self.in_thread(call, *arguments) if self.config.db else call(*arguments)

    async def reading(self, call: Callable[[*_A], _T], *arguments: *_A) -> _T:
        """Calls what waits for bytes of the store, in one of a bounded number of threads of their own."""
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._readers)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Makes the end of the server wait for a thread that has a spool to remove."""
        with self._upload_ended:
            self._uploads += 1
        try:
            yield
        finally:
            with self._upload_ended:
                self._uploads -= 1
                self._upload_ended.notify_all()

    def wait_for_uploads(self) -> None:
        """Waits for threads that were told to give up; not for ever."""
        with self._upload_ended:
            self._upload_ended.wait_for(lambda: not self._uploads, _END_SECONDS)

    @asynccontextmanager
    async def receiving(self, user: str) -> AsyncIterator[None]:
        """Lets so many uploads at a time be received, and of each user no more than half as many."""
        share = self._shares.setdefault(user, anyio.CapacityLimiter(max(1, self.config.uploads // 2)))
        try:
            async with share, self._receiving:
                yield
        finally:
            if not (share.borrowed_tokens or share.statistics().tasks_waiting):
                self._shares.pop(user, None)

    async def listing(self, call: Callable[[], _T]) -> _T:
        """Calls what makes a list, a few at a time."""
        return await anyio.to_thread.run_sync(call, limiter=self._listings)

    def require_data(self) -> None:
        """Looks whether the data directory is there, and still the one that this process began with.

        What has it open would go on with it in vain, and what opens it anew would find nothing: believed, that
        would take all artifacts out of the index.

        Raises:
            DiskError: It is not.
        """
        self._data.require()

    def workdir(self) -> Path:
        """Returns the folder in which uploads are received: where the store can link from, if there is such."""
        self.require_data()
        store = self.store.optional(SupportsWorkdir)
        return store.workdir() if store else self.config.data

    # -- looking up --

    def find(self, digits: str) -> Row:
        """Returns the artifact with this id or first digits.

        Raises:
            NotFound: There is none.
            AlreadyExists: There are several.
            Problem: It was deleted, and may be cited (410).
        """
        found = self.index.find(digits)
        if found is None:
            raise NotFound(f"there is no artifact {digits}")
        if isinstance(found, Tombstone):
            raise Problem(410, f"the artifact {found.id} was deleted on {found.deleted:%Y-%m-%d}")
        return found

    def not_ready(self) -> list[str]:
        """Names the parts that do not work now."""
        parts: dict[str, Callable[[], object]] = {
            "tokens": self.tokens.ping,
            "index": self.index.ping,
            "store": self.store.probe,
            "spool": self._try_spool,
        }
        failing = []
        for name, check in parts.items():
            try:
                check()
            except AriError as error:
                _log.warning("not ready: %s: %s", name, error.message)
                failing.append(name)
        return failing

    def _try_spool(self) -> None:
        with Staging(self.workdir()):
            pass

    # -- storing --

    def check_quota(self, known: Row | Tombstone | None, user: str, size: int) -> bool:
        """Says whether an archive of `size` bytes would be a new one of `user`, who may own so many more.

        Raises:
            Problem: Not so many (507).
        """
        if isinstance(known, Row) and known.owner(user):
            return False
        quota = self.config.quota
        if quota is not None and (used := self.index.used_bytes(user)) + size > quota:
            raise Problem(507, f"your quota is {quota} bytes: {used} are used, and this takes {size}")
        return True

    def add(self, source: Source, verified: Callable[[], Manifest], user: str, offer: Offer) -> Stored:
        """Makes `user` an owner of an archive, storing it if it is not there.

        Args:
            source: The archive; its stream ends only when it has verified.
            verified: Returns the manifest of all that was sent, after verifying what the store did not read: to
                know the digest of somebody else's archive makes nobody its owner.
            user: Who sends it.
            offer: What they say about it.

        Raises:
            AlreadyExists: Another archive has the id that it would get; nothing was overwritten.
            Problem: The user owns too much already (507).
            VerificationError: It does not verify; nothing was stored.
            AriError: The store fails.
        """
        sha256 = source.archive_sha256
        known = self.index.find(sha256)
        claims = self.check_quota(known, user, source.size)
        issued = known.id if known else self._free_id(sha256)
        locator = known.locator if isinstance(known, Row) else ""
        source = _Announced(source, lambda: self.index.intend(sha256, locator))
        artifact, manifest, duplicate = self._put(source, verified, user, offer)
        row = _described(issued, artifact, source, manifest)
        try:
            names = "\n".join(entry.path for entry in manifest.files)
            after = self._agree(row, names, user=user if claims else None)
        except AlreadyExists:  # two archives raced for one id
            self._owners.disclaim(artifact.locator, user)
            self.index.remove(sha256, tombstone=False)
            raise
        except QuotaExceeded:  # several of one user's raced for what was left of the quota
            self._owners.disclaim(artifact.locator, user)
            self._agree(row, tombstone=False)
            raise
        # The same user may have deleted it meanwhile: then that came after this.
        now = after or row
        own = now.owner(user) or Owner(user)
        return Stored(now, own, duplicate)

    def _free_id(self, sha256: str) -> str:
        issued = sha256[: self._id_digits]
        found = self.index.find(issued)
        if found and found.archive_sha256 != sha256:  # the same one: stored by others at this very moment
            raise AlreadyExists(
                f"another archive has the id {found.id} already; nothing was overwritten",
                hint="ask whoever runs this registry to issue longer ids (ARI_REGISTRY_ID_DIGITS)",
            )
        return issued

    def _put(
        self, source: _Announced, verified: Callable[[], Manifest], user: str, offer: Offer
    ) -> tuple[Artifact, Manifest, bool]:
        """Stores it for `user`; says also what is in it, and whether it was theirs before."""
        new = NewArtifact(
            created=datetime.now(UTC),
            owner=user,
            wish=offer.wish,
            embargo=offer.embargo,
            description=offer.metadata or {},
        )
        for _ in range(_TRIES):
            with suppress(NotFound):  # its last owner deleted it at this very moment
                artifact, created = self.store.put(source, new)
                manifest = verified()
                if created:
                    return artifact, manifest, False
                source.announce()
                if user in {owner.user for owner in self.store.stat(artifact.locator).owners or ()}:
                    return artifact, manifest, True
                self._owners.claim(artifact.locator, user)
                return artifact, manifest, False
        raise Unavailable("it is being deleted again and again")

    # -- changing --

    def promote(self, row: Row, caller: Caller, target: Visibility) -> Visibility:
        """Raises the caller's own level; returns what it is now.

        Raises:
            Problem: `target` is lower (400), or the caller is no owner any more (403).
            NotFound: It is gone.
        """
        own, user = _own(row, caller)
        if target.rank < own.visibility.rank:
            raise Problem(400, f"your level is {own.visibility} and can only be raised, not changed to {target}")
        if target is own.visibility:
            return target
        self.index.intend(row.archive_sha256, row.locator)
        with suppress(NotFound):  # deleted at this very moment
            self._owners.raise_own(row.locator, user, target)
        after = self._agree(row)
        if after is None:
            raise NotFound(f"there is no artifact {row.id}")
        return _own(after, caller)[0].visibility

    def delete(self, row: Row, caller: Caller) -> None:
        """Removes the caller's claim, and with the last one the artifact."""
        _, user = _own(row, caller)
        # First, so that no crash leaves a key to what others may store here later.
        self.tokens.forget_artifact(row.archive_sha256, user)
        self.index.intend(row.archive_sha256, row.locator)
        self._owners.disclaim(row.locator, user)
        after = self._agree(row)
        self.tokens.forget_artifact(row.archive_sha256, user if after else None)

    def share(self, row: Row, caller: Caller, expires: timedelta | None, note: str) -> IssuedToken:
        """Makes a fetch token."""
        _, user = _own(row, caller)
        issued = self.tokens.issue_fetch(row.archive_sha256, user, expires=expires, note=note)
        now = self.index.find(row.archive_sha256)
        if not isinstance(now, Row) or owner_of(now, caller) is None:  # deleted meanwhile: no key is left behind
            self.tokens.revoke_fetch(issued.id, row.archive_sha256, user)
            raise NotFound(f"there is no artifact {row.id} of yours any more")
        return issued

    # -- keeping the index in step --

    def forget(self, row: Row) -> None:
        """Takes out of the index, without a tombstone, what the store has lost."""
        self._agree(row, tombstone=False)

    def _agree(self, row: Row, search: str = "", *, tombstone: bool = True, user: str | None = None) -> Row | None:
        """Makes the index say what the store says, also against others who do the same at the same time.

        Args:
            row: The artifact, as it was before.
            search: See `Index.put`.
            tombstone: Leave one, if it is gone and may be cited.
            user: Who is about to own it, if their quota allows.

        Returns:
            The artifact now, or None when it is gone.

        Raises:
            QuotaExceeded: It does not; the index is as it was.
        """
        self.require_data()
        quota = (user, int(self.config.quota)) if user and self.config.quota else None
        cited = row.visibility.rank >= Visibility.UNLISTED.rank
        return self.index.agree(
            row.archive_sha256,
            lambda: self._from_store(row),
            search,
            quota=quota,
            tombstone=tombstone and cited,
        )

    def _from_store(self, row: Row) -> Row | None:
        try:
            artifact = self.store.stat(row.locator)
        except NotFound:
            return None
        return replace(
            row,
            visibility=artifact.visibility or row.visibility,
            owners=artifact.owners or (),
            created=artifact.created or row.created,
        )


class _HeldFolder:
    """A folder that is held open, so that no other one can pass for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, f"opening {quoted(str(path))}") from error

    def require(self) -> None:
        """Raises `DiskError` unless it is still at its place."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._fd), self._path.stat()):
                return
        raise DiskError(
            f"the data directory {quoted(str(self._path))} is gone, or another one is in its place",
            hint="put it back; if the other one is meant, start the server again",
        )

    def close(self) -> None:
        """Lets go of it; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Announced(WatchedSource):
    """A source that announces the change of the store before its end, which is before anything is changed.

    Not sooner: what is refused or cut off on its way leaves no trace.
    """

    def __init__(self, inner: Source, announce: Callable[[], None]) -> None:
        super().__init__(inner)
        self._announce, self._announced = announce, False

    def announce(self) -> None:
        """Announces it, once."""
        if not self._announced:
            self._announce()
            self._announced = True

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        with super().open() as stream:
            yield _Announcing(self, stream)

    @property
    def local_path(self) -> Path | None:
        path = super().local_path
        if path is not None:
            self.announce()
        return path


class _Announcing:
    def __init__(self, source: _Announced, stream: ReadStream) -> None:
        self._source, self._stream = source, stream

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if not data and size:
            self._source.announce()
        return data


def _described(issued: str, artifact: Artifact, source: Source, manifest: Manifest) -> Row:
    told = artifact.description or {}  # by who stored it first: nobody words it anew for others
    return Row(
        id=issued,
        archive_sha256=source.archive_sha256,
        bundle_sha256=source.bundle_sha256,
        size=source.size,
        visibility=Visibility.STAGED,
        created=datetime.now(UTC).replace(microsecond=0),
        locator=artifact.locator,
        file_count=len(manifest.files),
        total_bytes=manifest.total_size,
        license=shown_text(manifest.publish.get("license")) or shown_text(told.get("license")),
        title=shown_text(told.get("title")),
        manifest_sha256=hashlib.sha256(manifest.raw).hexdigest(),
    )


def _own(row: Row, caller: Caller) -> tuple[Owner, str]:
    own = owner_of(row, caller)
    if own is None:
        raise Problem(403, f"the artifact {row.id} is not yours")
    return own, own.user
