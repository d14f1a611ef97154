"""The class to subclass: underscore methods are for authors, public ones for callers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, final

from ari_core.contract.guards import Opened, TranslatingProxy, WatchedSource
from ari_core.contract.types import Artifact, Capabilities, Locator, NewArtifact, OpenContext, Source, Visibility
from ari_core.errors import AriError, BackendBug, BackendError, IntegrityError, Unsupported, escape
from ari_core.streams import ReadStream

if TYPE_CHECKING:
    from pydantic import BaseModel

_E = TypeVar("_E", bound=BackendError)
_P = TypeVar("_P")
_T = TypeVar("_T")


class Backend(ABC):
    """A store. Subclass it, set the class values, write the underscore methods your capabilities name.

    Attributes:
        name: Same as in the `BackendSpec`.
        capabilities: The most this backend can do.
        Settings: A pydantic model with ``extra="forbid"``; secrets as `pydantic.SecretStr`.
        aliases: Environment variables read for a setting besides ``ARI_<BACKEND>_<KEY>``, by setting.
        reader_settings: Settings, none of them secret, that a reader of our refs must repeat as ``-o key=value``.
            They stand in records, also in strangers', and are used from there for reading without credentials.
        trust_settings: Settings that decide where credentials go or whom to trust (a server's address, a proxy).
            No record decides about them, since records come with downloads. One that readers need, too, is kept in
            it for them; who promotes or deletes gives it again.
        describes: The store shows people what an artifact is: core fills `NewArtifact.description`.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    Settings: ClassVar[type[BaseModel]]
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    reader_settings: ClassVar[tuple[str, ...]] = ()
    trust_settings: ClassVar[tuple[str, ...]] = ()
    describes: ClassVar[bool] = False

    _looks_first: ClassVar[bool] = True

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
        return Opened(self, locator, offset)

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
            changes nothing but `NewArtifact.embargo` of what is staged, in stores that have ``embargo``; so does
            the same bundle in another packing, where a place is for one bundle. A store
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
        """Returns this backend as one of the protocols of `ari_core.contract.optional`, or None if it is not one.

        Calls through what is returned have their errors translated like all others. A method may raise
        `Unsupported` for one artifact: then core does without it.
        """
        return cast("_P", TranslatingProxy(self)) if isinstance(self, protocol) else None

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
