"""The backend contract (API 0): what a store owes, and nothing more. Read this file to write a backend.

A backend stores and returns *artifacts*: one gzip archive each, with a few facts about it. Public methods here
are final: they check arguments and capabilities, translate errors (also while a stream is read) and count bytes.
Authors write the underscore methods. Nothing here retries, verifies or caches: core does, around any backend.

A backend is synchronous, may be called from several threads, and can never mark anything as verified: every
`Artifact` it returns is a claim that core checks by hashing what it reads.

It sets a time limit on each request it sends, and raises `Unavailable` when that has passed; how long a whole
operation may take is core's business. Three things can be cancelled: a put, by its source (or `on_reserved`)
raising, a read, by leaving its ``with`` block, and a listing, by dropping it. All else should be short: core may
stop waiting for it, and then it goes on unheard in its thread.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    Protocol,
    Self,
    TypeVar,
    cast,
    final,
    runtime_checkable,
)

from ari_core.errors import (
    AriError,
    BackendBug,
    BackendError,
    IntegrityError,
    RangeError,
    Unavailable,
    Unsupported,
    escape,
)
from ari_core.streams import CHUNK, ReadStream

if TYPE_CHECKING:
    from datetime import date, datetime
    from pathlib import Path
    from types import TracebackType

    from pydantic import BaseModel

__all__ = [
    "API",
    "CHUNK",
    "Artifact",
    "Backend",
    "BackendSpec",
    "Capabilities",
    "Claim",
    "CommandGroupSpec",
    "Locator",
    "NewArtifact",
    "OpenContext",
    "Owner",
    "ReadStream",
    "Source",
    "SupportsDirectUrl",
    "SupportsLocalPath",
    "SupportsManifest",
    "SupportsOwners",
    "SupportsProviderChecksum",
    "SupportsWorkdir",
    "Visibility",
    "WatchedSource",
]

API: Final = 0

_E = TypeVar("_E", bound=BackendError)
_P = TypeVar("_P")
_T = TypeVar("_T")

Locator = NewType("Locator", str)
"""Names one stored artifact inside one backend. Opaque: only the backend that made it reads it."""


class Claim(enum.IntEnum):
    """How surely a backend says that a ref is its own. The most specific wins; a tie is an error."""

    NO = 0
    SCHEME = 1
    EXACT = 2


class Visibility(enum.StrEnum):
    """Who may read an artifact. Only ever moves up, in this order."""

    STAGED = "staged"
    PRIVATE_TOKEN = "private-token"  # noqa: S105 - a level, not a password
    UNLISTED = "unlisted"
    PUBLIC = "public"

    @property
    def rank(self) -> int:
        """Position in the order, 0 for `STAGED`."""
        return list(Visibility).index(self)


_WEAKEST_FIRST: Final = ("no", "none", "unpublished", "eventual", "recorded", "yes", "immediate", "enforced")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do. Every default is the weakest promise.

    On the class these are the most the backend can ever do; `Backend.probe` returns what this very store does.
    Public methods refuse what the class does not declare. What only `probe` takes away, the backend's own methods
    refuse with `Unsupported`.

    Attributes:
        put: Takes new artifacts.
        delete: ``unpublished`` means only while it is staged.
        list: ``eventual`` may lag behind writes, ``immediate`` never does.
        ranges: `Backend.open` can start in the middle, as a rule without reading what is before.
        exclusive_create: Of several writers of one artifact exactly one gets ``created=True``.
        visibility: ``recorded`` keeps the level but stops nobody, ``enforced`` refuses readers.
        levels: Levels that `Backend.raise_visibility` can reach.
        stores_meta: Keeps owner, visibility and creation time with the artifact.
        atomic_updates: Racing changes of one artifact's levels and owners lose nothing. Without it, somebody else
            (a registry's database) must let one through at a time.
        embargo: Lets nobody read before the day in `NewArtifact.embargo`, though its level was raised before.
            Elsewhere core waits for that day with raising.
    """

    put: bool = False
    delete: Literal["no", "unpublished", "yes"] = "no"
    list: Literal["no", "eventual", "immediate"] = "no"
    ranges: bool = False
    exclusive_create: bool = False
    visibility: Literal["none", "recorded", "enforced"] = "none"
    levels: frozenset[Visibility] = frozenset()
    stores_meta: bool = False
    atomic_updates: bool = False
    embargo: bool = False

    def beyond(self, most: Capabilities) -> tuple[str, ...]:
        """Names what is promised here and not by `most`."""

        def stronger(here: Any, there: Any) -> bool:
            if isinstance(here, str):
                return _WEAKEST_FIRST.index(here) > _WEAKEST_FIRST.index(there)
            return not here <= there  # False and True, or sets of levels

        return tuple(f.name for f in fields(self) if stronger(getattr(self, f.name), getattr(most, f.name)))


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """What a plugin's `ari_backends` hook returns for each backend. Cheap: importing it loads no SDK.

    Attributes:
        name: As in ``--backend NAME``.
        backend: Import string of the class, ``"package.module:Class"``.
        help: One line.
        claims: Pure function of a ref; does no I/O and never raises.
        api: The contract's number this backend was written for: a literal, not the installed `API`.
        extra: Requirement that installs what the backend needs (``"ari-registry[s3]"``), if its import can fail.
    """

    name: str
    backend: str
    help: str
    claims: Callable[[str], Claim]
    api: int
    extra: str | None = None


@dataclass(frozen=True, slots=True)
class CommandGroupSpec:
    """A plugin's command group, described so that ``ari --help`` shows it without importing it.

    Attributes:
        name: ``ari NAME …``.
        app: Import string of a `click.Command`, ``"package.module:app"``.
        help: One line.
        extra: Requirement that installs what it needs, if its import can fail.
    """

    name: str
    app: str
    help: str
    extra: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """One of an artifact's owners, each with a level of their own; the effective level is the highest."""

    user: str
    visibility: Visibility = Visibility.STAGED
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a store says about one artifact. All are claims.

    None: not known without reading the archive, or in a listing: without another request. `visibility` is the
    effective level; `owners` of () says that it has none.
    """

    locator: Locator
    size: int | None = None
    archive_sha256: str | None = None
    bundle_sha256: str | None = None
    visibility: Visibility | None = None
    owners: tuple[Owner, ...] | None = None
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """What goes with a new artifact.

    Attributes:
        created: Time of publication, UTC.
        owner: Who it belongs to, for stores that serve a registry.
        wish: The visibility the author wants in the end; the artifact itself starts staged.
        embargo: Day before which nobody may read it, for stores with ``embargo``.
        description: Facts for stores that show them (title, license, creators, …), as JSON values.
        previous: The artifact this checkpoint published last, which this one supersedes, with its digests as far
            as they are known. Compare them: its place may hold something else by now, which does not give way. It
            can be of another store of this kind: ignore it then.
        replace: The author lets this take the place of whatever is in the way, which is lost.
    """

    created: datetime
    owner: str | None = None
    wish: Visibility | None = None
    embargo: date | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    previous: Artifact | None = None
    replace: bool = False


class Source(ABC):
    """Core's side of a put: a verified gzip archive to read.

    A backend opens it at most once in each put, since a download may be behind it; it is opened again by a second
    put, when core tries again. The stream raises before its end if anything disagrees with the claims below, so a
    backend that makes the artifact visible only after a clean end can never store a wrong one.

    Attributes:
        size: Bytes of the archive.
        archive_sha256: Digest of those bytes.
        bundle_sha256: Digest of the canonical file list.
    """

    size: int
    archive_sha256: str
    bundle_sha256: str

    @abstractmethod
    def open(self) -> AbstractContextManager[ReadStream]:
        """Starts reading from the beginning."""

    @property
    @abstractmethod
    def manifest(self) -> bytes:
        """The manifest's bytes.

        Raises:
            BackendBug: Asked for before a clean end of the stream, by a source that cannot know it earlier.
        """

    @property
    def local_path(self) -> Path | None:
        """A file with the whole archive, or None.

        A backend may link or clone it instead of reading; it must not move or change it, since a second attempt
        needs it again. To ask for it counts as having read the source.
        """
        return None


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What core tells a backend about the run it is opened for.

    Attributes:
        checkpoint: The checkpoint directory, when there is one.
        warn: Shows the user one line.
        anonymous: The ref comes from a file that may be a stranger's (a record in a downloaded folder). The only
            secrets in the settings are those given for this very run: use no others, so none that an SDK or an
            HTTP client finds by itself (in the environment, in ``~/.netrc``, as a role of the machine).
    """

    checkpoint: Path | None = None
    warn: Callable[[str], None] = lambda _line: None
    anonymous: bool = False


class Backend(ABC):
    """A store. Subclass it, set the class values, write the underscore methods your capabilities name.

    Attributes:
        name: Same as in the `BackendSpec`.
        capabilities: The most this backend can do.
        Settings: A pydantic model with ``extra="forbid"``; secrets as `pydantic.SecretStr`.
        aliases: Environment variables read for a setting besides ``ARI_<BACKEND>_<KEY>``, by setting.
        reader_settings: Settings, none of them secret, that a reader of our refs must repeat as ``-o key=value``.
            They stand in records, also in strangers': nothing that decides about trust (a proxy, a CA file)
            belongs here.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    Settings: ClassVar[type[BaseModel]]
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    reader_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, context: OpenContext | None = None) -> None:
        """Keeps the settings. Opening is not creating: make no folder and send no request here."""
        self.settings = settings
        self.context = context or OpenContext()

    # -- for authors ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _resolve(self, ref: str) -> Locator:
        """Turns a ref into a pinned locator (a version, a full id). May use the network.

        What is no ref of this backend is `Unsupported`.
        """

    @abstractmethod
    def _ref(self, locator: Locator) -> str:
        """Returns a portable ref without secrets; ``resolve(ref(locator)) == locator``."""

    @abstractmethod
    def _stat(self, locator: Locator) -> Artifact:
        """Describes an artifact; `NotFound` only when it is certainly absent."""

    @abstractmethod
    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        """Reads from `offset`, which is 0 unless the class declares ``ranges``; ``read(n)`` gives b"" at the end.

        `_stat` has just found the artifact. An `offset` equal to its size gives an empty stream. Where this very
        server ignores ranges, read and throw away what is before.
        """

    def _probe(self) -> Capabilities:
        """Returns what this very store does; checks reach and credentials, cheaply, and writes nothing.

        What only writing would show counts as absent until a put has shown it.
        """
        return self.capabilities

    def _close(self) -> None:  # noqa: B027 - nothing to let go of is the common case
        """Lets go of connections. May be called twice."""

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        """Stores an archive, staged; see `put`."""
        raise NotImplementedError

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        """Raises the level; see `raise_visibility`."""
        raise NotImplementedError

    def _delete(self, locator: Locator) -> None:
        """Removes metadata first, then bytes, also of a name only reserved; absent is fine."""
        raise NotImplementedError

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        """Yields artifacts with the cursor that continues behind each; see `list`."""
        raise NotImplementedError

    def _translate(self, error: Exception) -> BackendError | None:  # noqa: ARG002 - for authors to use
        """Turns a foreign exception (of an SDK, of the system) into ours; None if it is not known."""
        return None

    # -- for callers: final --------------------------------------------------------------------------------------

    @final
    def resolve(self, ref: str) -> Locator:
        """Turns a ref into a pinned locator.

        Raises:
            NotFound: There certainly is no such artifact.
            BackendError: Anything else.
        """
        with self._errors():
            return self._checked("resolve", self._resolve(ref), str)

    @final
    def ref(self, locator: Locator) -> str:
        """Returns the portable ref of a locator."""
        with self._errors():
            return self._checked("ref", self._ref(locator), str)

    @final
    def stat(self, locator: Locator) -> Artifact:
        """Describes an artifact without reading it.

        Raises:
            NotFound: It is certainly absent.
            BackendError: Anything else.
        """
        with self._errors():
            return self._checked("stat", self._stat(locator), Artifact)

    @final
    def open(self, locator: Locator, offset: int = 0) -> AbstractContextManager[ReadStream]:
        """Reads an archive from `offset` to its very end.

        The stream ends exactly at the artifact's size or raises; without ``ranges`` the bytes before `offset` are
        read and thrown away. Errors of the ``with`` block itself pass through untouched.

        Raises:
            NotFound: Certainly absent.
            RangeError: `offset` is past the end.
            BackendError: Anything else, also while reading.
        """
        return _Opened(self, locator, offset)

    @final
    def probe(self) -> Capabilities:
        """Returns the capabilities of this very store, after checking reach and credentials.

        Raises:
            BackendError: It cannot be reached or refuses us.
        """
        with self._errors():
            found = self._checked("probe", self._probe(), Capabilities)
        if beyond := found.beyond(self.capabilities):
            raise self._named(BackendBug(f"probe reports more than the class declares: {', '.join(beyond)}"))
        return found

    @final
    def close(self) -> None:
        """Lets go of connections; may be called twice."""
        with self._errors():
            self._close()

    @final
    def put(
        self,
        source: Source,
        new: NewArtifact,
        *,
        resume: Locator | None = None,
        on_reserved: Callable[[Locator], None] = lambda _locator: None,
    ) -> tuple[Artifact, bool]:
        """Stores an archive. It starts staged, and nothing is visible before the source ended cleanly.

        Every put begins with a look whether the archive is there already: to call it again is how core tries again
        when an answer was lost.

        Args:
            source: The archive; an exception while reading it means: abort, leave nothing. It passes through
                unchanged, whatever it is. Only a name that was reserved outlives a failure: it holds nothing, so
                `stat` and `open` do not find it; `delete` takes it, `resume` goes on with it.
            new: What goes with it.
            resume: What an interrupted put from this checkpoint reserved, perhaps for another bundle or in another
                store of this kind: the backend goes on with it, or starts afresh if it is of no use.
            on_reserved: Called as soon as a durable name exists, before any bytes are sent, so that the caller can
                note it and resume. If it raises: abort. Stores whose names follow from the content, or from the
                settings, have nothing to reserve.

        Returns:
            What is stored, and whether this call created it. The same archive again gives ``created=False`` and
            changes nothing; so does the same bundle in another packing, where a place is for one bundle. A store
            whose names do not tell finds it by `resume` and `new.previous`, else by a search, which may lag:
            without ``exclusive_create``, two writers at once may get two places.

        Raises:
            Unsupported: This store takes no artifacts.
            AlreadyExists: Something else is stored in this place, and `new` does not let it give way.
            BackendError: Anything else.
        """
        self._require(put=self.capabilities.put)
        reading = WatchedSource(source)
        with self._errors(reading):
            artifact, created = self._put(reading, new, resume, on_reserved)
        if created and not (reading.ended or reading.handed_over):
            raise self._named(BackendBug("put reports success without having read the archive to its end"))
        for claim, truth in ((artifact.size, source.size), (artifact.archive_sha256, source.archive_sha256)):
            if created and claim is not None and claim != truth:
                raise self._named(IntegrityError(f"the store holds {claim}, but {truth} was sent"))
        return artifact, created

    @final
    def raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        """Raises the artifact's own level to at least `target`.

        With ``atomic_updates``, racing calls end at the highest. Owners keep theirs: `SupportsOwners.raise_own`.

        Returns:
            The effective level now: the highest of the artifact's own and its owners'.

        Raises:
            Unsupported: `target` is not a level of this store; nothing was changed.
            BackendError: Anything else.
        """
        self._require(raise_visibility=self.capabilities.visibility != "none")
        if target not in self.capabilities.levels:
            known = ", ".join(level for level in Visibility if level in self.capabilities.levels)
            raise self._named(Unsupported(f"this store has no level '{target}', only: {known}"))
        with self._errors():
            return self._raise_visibility(locator, target)

    @final
    def delete(self, locator: Locator) -> None:
        """Deletes an artifact, or a name that was only reserved; absent is fine.

        Raises:
            Unsupported: This store deletes nothing, or not this.
            BackendError: Anything else.
        """
        self._require(delete=self.capabilities.delete != "no")
        with self._errors():
            self._delete(locator)

    @final
    def list(self, after: str | None = None) -> Iterator[tuple[Artifact, str]]:
        """Yields every artifact that these credentials may list, once, with the cursor that continues behind it.

        What is there all the time is listed; what comes or goes meanwhile may be. So a cursor is a place in an
        order that does not shift (a name, a key; not a page number), of use even if what was there is gone. Facts
        that would take a request for each artifact stay None.

        Raises:
            Unsupported: This store lists nothing.
            BackendError: Anything else, also in the middle; it never ends early.
        """
        self._require(list=self.capabilities.list != "no")
        with self._errors():
            yield from self._list(after)

    def optional(self, protocol: type[_P]) -> _P | None:
        """Returns this backend as one of the optional protocols below, or None if it does not have it.

        Calls through what is returned have their errors translated like all others. A method may raise
        `Unsupported` for one artifact: then core does without it.
        """
        return cast("_P", _Optional(self)) if isinstance(self, protocol) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require(self, **capability: bool) -> None:
        for name, present in capability.items():
            if not present:
                raise self._named(Unsupported(f"the backend '{self.name}' cannot {name.replace('_', ' ')}"))

    def _named(self, error: _E) -> _E:
        error.backend = error.backend or self.name
        return error

    def _checked(self, method: str, value: _T, kind: type) -> _T:
        if not isinstance(value, kind):
            raise BackendBug(f"{method} of the backend '{self.name}' returned {type(value).__name__}")
        return value

    @contextmanager
    def _errors(self, source: WatchedSource | None = None) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            if source is not None and source.failure is not None:
                raise source.failure from None  # whatever the store or its SDK made of it
            if isinstance(error, AriError):
                if isinstance(error, BackendError):
                    self._named(error)
                raise
            ours = self._translate(error) if isinstance(error, Exception) else None
            ours = ours or BackendBug(escape(f"the backend '{self.name}' failed: {type(error).__name__}: {error}"))
            raise self._named(ours) from error


# -- optional, one method each: `Backend.optional(SupportsX)` ----------------------------------------------------


@runtime_checkable
class SupportsManifest(Protocol):
    """Returns the manifest faster than core, which reads it from the bundle."""

    def manifest(self, locator: Locator) -> bytes:
        """Returns the manifest, byte for byte as in the bundle."""


@runtime_checkable
class SupportsDirectUrl(Protocol):
    """Gives a URL that anybody can read the archive from for `ttl` seconds."""

    def direct_url(self, locator: Locator, ttl: float) -> str:
        """Returns a URL valid for `ttl` seconds."""


@runtime_checkable
class SupportsLocalPath(Protocol):
    """The archive is a local file."""

    def local_path(self, locator: Locator) -> Path:
        """Returns where the archive is."""


@runtime_checkable
class SupportsProviderChecksum(Protocol):
    """The provider's own checksum as ``(algorithm, hex digits)``: weak evidence, never verification."""

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns algorithm and hex digits."""


@runtime_checkable
class SupportsWorkdir(Protocol):
    """Names a folder where core should build an archive, so that storing it is a link (`Source.local_path`)."""

    def workdir(self) -> Path:
        """Returns an existing folder; creates it if need be."""


@runtime_checkable
class SupportsOwners(Protocol):
    """Ownership, for stores that serve a registry. Each owner has a level of their own."""

    def claim(self, locator: Locator, user: str) -> None:
        """Makes `user` an owner too, staged; one who is one already stays as they are.

        Raises:
            NotFound: There is no such artifact.
        """

    def raise_own(self, locator: Locator, user: str, target: Visibility) -> Visibility:
        """Raises the level of one owner; returns the effective level of the artifact.

        Raises:
            NotFound: There is no such artifact, or `user` is no owner of it.
        """

    def disclaim(self, locator: Locator, user: str) -> None:
        """Removes `user` from the owners; one who is none changes nothing, and absent is fine.

        With the last one the artifact goes, in the same step.
        """


# -- what stands between a backend and its caller ----------------------------------------------------------------


class _Optional:
    """A backend whose optional methods translate errors, as its public ones do."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._backend._errors():  # noqa: SLF001 - one unit with Backend
                return method(*arguments, **keywords)

        return call


class _Opened(AbstractContextManager[ReadStream]):
    """`Backend.open` under way."""

    def __init__(self, backend: Backend, locator: Locator, offset: int) -> None:
        self._backend, self._locator, self._offset = backend, locator, offset

    def __enter__(self) -> ReadStream:
        backend, offset = self._backend, self._offset
        with backend._errors():  # noqa: SLF001 - one unit with Backend
            if offset < 0:
                raise RangeError(f"offset {offset} is before the beginning")
            size = backend._stat(self._locator).size  # noqa: SLF001
            if size is not None and offset > size:
                raise RangeError(f"offset {offset} is past the end at {size}")
            start = offset if backend.capabilities.ranges else 0
            self._inner = backend._open(self._locator, start)  # noqa: SLF001
            raw = self._inner.__enter__()
        stream = _CheckedStream(backend, raw, None if size is None else size - start)
        try:
            with backend._errors():  # noqa: SLF001
                stream.discard(offset - start)
        except BaseException as error:
            self._inner.__exit__(type(error), error, error.__traceback__)
            raise
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._backend._errors():  # noqa: SLF001
            self._inner.__exit__(kind, error, trace)


class _CheckedStream:
    """A backend's stream whose errors are translated and whose end is where it should be."""

    def __init__(self, backend: Backend, raw: ReadStream, left: int | None) -> None:
        self._backend, self._raw, self._left = backend, raw, left

    def read(self, size: int, /) -> bytes:
        backend = self._backend
        with backend._errors():  # noqa: SLF001
            data = backend._checked("read", self._raw.read(size), bytes)  # noqa: SLF001
            if len(data) > size:
                raise BackendBug(f"read({size}) returned {len(data)} bytes")
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    raise IntegrityError("the store sends more bytes than it announced")
                if not data and size and self._left:
                    raise Unavailable(f"the store's answer ended {self._left} bytes early")
        return data

    def discard(self, count: int) -> None:
        while count:
            data = self.read(min(count, CHUNK))
            if not data:
                raise RangeError("the offset is past the end")
            count -= len(data)


class WatchedSource(Source):
    """A source that knows how it was read.

    Attributes:
        ended: It was read to its end.
        handed_over: Its local file was given away.
        failure: What it raised last, to be told from what the store raised.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.size, self.archive_sha256, self.bundle_sha256 = inner.size, inner.archive_sha256, inner.bundle_sha256
        self.ended = False
        self.handed_over = False
        self.failure: Exception | None = None

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning."""
        self.failure = None
        with ExitStack() as stack:
            with self._noting():
                stream = stack.enter_context(self._inner.open())
            yield _WatchedStream(self, stream)

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._inner.manifest

    @property
    def local_path(self) -> Path | None:
        """A file to link, or None."""
        path = self._inner.local_path
        self.handed_over = path is not None
        return path

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


class _WatchedStream:
    def __init__(self, source: WatchedSource, inner: ReadStream) -> None:
        self._source, self._inner = source, inner

    def read(self, size: int, /) -> bytes:
        with self._source._noting():  # noqa: SLF001 - one unit
            data = self._inner.read(size)
        if not data and size:
            self._source.ended = True
        return data
