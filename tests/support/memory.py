"""A backend that keeps artifacts in memory: the smallest thing that does all the contract knows."""

import hashlib
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ari_core.contract import Artifact, Backend, Capabilities, Locator, Owner, Visibility
from ari_core.errors import AccessDenied, InvalidConfiguration, NotFound, RateLimited, Unavailable, Unsupported

PREFIX = "memory://"
DIGITS = 64


class MemoryTroubleError(Exception):
    """What the "system" below the backend raises: nothing that the contract knows."""


@dataclass(frozen=True)
class Stored:
    data: bytes
    manifest: bytes
    bundle_sha256: str
    created: object
    owners: tuple = ()
    visibility: Visibility = Visibility.STAGED
    embargo: object = None
    description: object = None


@dataclass
class Space:
    """What outlives a backend object. `trouble` says at which step it fails, and with what."""

    items: dict = field(default_factory=dict)
    lock: object = field(default_factory=threading.RLock)
    trouble: dict = field(default_factory=dict)

    def check(self, step):
        for reason in step, "denied":
            if reason in self.trouble:
                raise self.trouble[reason]


SPACES = {}


class MemorySettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    space: str = Field(default_factory=lambda: uuid.uuid4().hex)
    token: SecretStr = SecretStr("open-sesame-memory")
    page: int = 10


class MemoryBackend(Backend):
    name = "memory"
    capabilities = Capabilities(
        put=True,
        delete="yes",
        list="immediate",
        ranges=True,
        exclusive_create=True,
        visibility="recorded",
        levels=frozenset(Visibility),
        stores_meta=True,
        atomic_updates=True,
    )
    Settings = MemorySettings

    def __init__(self, settings=None, context=None):
        super().__init__(settings or MemorySettings(), context)
        self.space = SPACES.setdefault(self.settings.space, Space())

    def _resolve(self, ref):
        if not ref.startswith(PREFIX):
            raise Unsupported("not a ref of this store")
        locator = Locator(ref.removeprefix(PREFIX))
        self._stored(locator)
        return locator

    def _ref(self, locator):
        return PREFIX + locator

    def _stat(self, locator):
        self.space.check("stat")
        return self._artifact(locator, self._stored(locator))

    @contextmanager
    def _open(self, locator, offset):
        self.space.check("open")
        yield MemoryStream(self.space, self._stored(locator).data, offset)

    def _put(self, source, new, resume, on_reserved):
        self.space.check("put")
        locator = Locator(source.archive_sha256)
        if stored := self.space.items.get(locator):
            return self._artifact(locator, stored), False
        on_reserved(locator)
        stored = Stored(
            self._read(source),
            source.manifest,
            source.bundle_sha256,
            new.created,
            (Owner(new.owner, Visibility.STAGED, new.created),) if new.owner else (),
            embargo=new.embargo,
            description=dict(new.description),
        )
        return self._commit(locator, stored)

    def _read(self, source):
        with source.open() as stream:
            return b"".join(iter(lambda: stream.read(100_000), b""))

    def _commit(self, locator, stored):
        with self.space.lock:
            created = locator not in self.space.items
            stored = self.space.items.setdefault(locator, stored)
        return self._artifact(locator, stored), created

    def _raise_visibility(self, locator, target):
        with self.space.lock:
            stored = self._stored(locator)
            if target.rank > stored.visibility.rank:
                stored = self.space.items[locator] = replace(stored, visibility=target)
        return self._level(stored)

    def _level(self, stored):
        return max(
            [stored.visibility, *(owner.visibility for owner in stored.owners)], key=lambda level: level.rank
        )

    def _delete(self, locator):
        with self.space.lock:
            self.space.items.pop(locator, None)

    def _list(self, after):
        while page := self._page(after):
            for locator, stored in page:
                after = locator
                yield self._artifact(locator, stored), after

    def _page(self, after):
        if after:
            self.space.check("list")
        with self.space.lock:
            behind = sorted(item for item in self.space.items.items() if after is None or item[0] > after)
        return behind[: self.settings.page]

    def _stored(self, locator):
        self.space.check("denied")
        try:
            return self.space.items[locator]
        except KeyError:
            raise NotFound(f"there is no artifact '{locator[:DIGITS]}'") from None

    def _artifact(self, locator, stored):
        return Artifact(
            locator,
            size=len(stored.data),
            archive_sha256=locator,
            bundle_sha256=stored.bundle_sha256,
            visibility=self._level(stored),
            owners=stored.owners,
            created=stored.created,
        )

    def _translate(self, error):
        if isinstance(error, MemoryTroubleError):
            return {
                "denied": AccessDenied("the store refuses these credentials"),
                "busy": RateLimited("the store asks for patience"),
            }.get(str(error), Unavailable("the store does not answer"))
        return None

    # -- optional protocols

    def manifest(self, locator):
        return self._stored(locator).manifest

    def provider_checksum(self, locator):
        return "md5", hashlib.md5(self._stored(locator).data, usedforsecurity=False).hexdigest()

    def claim(self, locator, user):
        def with_user(owners):
            return owners if user in {owner.user for owner in owners} else (*owners, Owner(user))

        self._set_owners(locator, with_user)

    def raise_own(self, locator, user, target):
        def raised(owner):
            higher = owner.user == user and target.rank > owner.visibility.rank
            return replace(owner, visibility=target) if higher else owner

        if user not in {owner.user for owner in self._stored(locator).owners}:
            raise NotFound(f"'{user}' is no owner of this artifact")
        self._set_owners(locator, lambda owners: tuple(raised(owner) for owner in owners))
        return self._level(self._stored(locator))

    def disclaim(self, locator, user):
        with self.space.lock:
            stored = self.space.items.get(locator)
            if stored and user in {owner.user for owner in stored.owners}:
                self._set_owners(locator, lambda owners: tuple(owner for owner in owners if owner.user != user))
                if not self._stored(locator).owners:
                    self._delete(locator)

    def _set_owners(self, locator, change):
        with self.space.lock:
            stored = self._stored(locator)
            self.space.items[locator] = replace(stored, owners=change(stored.owners))

    def _probe(self):
        self.space.check("probe")
        return self.capabilities


class DirectMemoryBackend(MemoryBackend):
    """One whose archives somebody serves at `base`: its `direct_url` names them there, with a signature.

    Attributes:
        base: Where; None: this one cannot say.
        given: Every URL that was given, with its time to live.
    """

    base = None

    def __init__(self, settings=None, context=None):
        super().__init__(settings, context)
        self.given = []

    def direct_url(self, locator, ttl):
        self.space.check("direct_url")
        if self.base is None:
            raise Unsupported("no URL for this one")
        self.given.append((f"{self.base}/{locator}?signature=canary-{uuid.uuid4().hex}", ttl))
        return self.given[-1][0]


class ShowcaseBackend(MemoryBackend):
    """Shows people what it keeps, wants a title for that, and lets strangers read when the embargo has ended."""

    capabilities = replace(MemoryBackend.capabilities, embargo=True)
    describes = True

    def rehearse(self, new, bundle_sha256, size):
        if not new.description.get("title"):
            raise InvalidConfiguration("it has no title")

    def _put(self, source, new, resume, on_reserved):
        self.rehearse(new, "", source.size)
        artifact, created = super()._put(source, new, resume, on_reserved)
        if not created:
            artifact = self._closed(artifact.locator, new)
        return artifact, created

    def _closed(self, locator, new):
        with self.space.lock:
            stored = self._stored(locator)
            if stored.visibility is Visibility.STAGED and (new.embargo or new.wish is Visibility.PUBLIC):
                stored = self.space.items[locator] = replace(stored, embargo=new.embargo)
        return self._artifact(locator, stored)

    def _artifact(self, locator, stored):
        return replace(super()._artifact(locator, stored), embargo=stored.embargo, description=stored.description)

    def _open(self, locator, offset):
        embargo = self._stored(locator).embargo
        if self.context.anonymous and embargo and embargo > datetime.now(UTC).date():
            raise AccessDenied(f"closed until {embargo}")
        return super()._open(locator, offset)


class MemoryStream:
    """A stream that breaks where its space is told to."""

    def __init__(self, space, data, position):
        self.space, self.data, self.position = space, data, position

    def read(self, size):
        if self.position:
            self.space.check("read")
        piece = self.data[self.position : self.position + size]
        self.position += len(piece)
        return piece


class MemoryHooks:
    """What the conformance suite may do behind a memory backend's back."""

    def raw_corrupt(self, backend, locator):
        space = innermost(backend).space
        stored = space.items[locator]
        middle = len(stored.data) // 2
        damaged = stored.data[:middle] + bytes([stored.data[middle] ^ 1]) + stored.data[middle + 1 :]
        space.items[locator] = replace(stored, data=damaged)

    @contextmanager
    def break_store(self, backend, step):
        trouble = innermost(backend).space.trouble
        trouble[step] = MemoryTroubleError("denied" if step == "denied" else "down")
        try:
            yield
        finally:
            trouble.clear()


def innermost(backend):
    """Returns the backend inside all wrappers."""
    while hasattr(backend, "inner"):
        backend = backend.inner
    return backend
