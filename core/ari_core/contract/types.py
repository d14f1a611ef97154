"""What goes into a backend and comes out of it."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, NewType

from ari_core.streams import ReadStream

if TYPE_CHECKING:
    from datetime import date, datetime
    from pathlib import Path

API: Final = 1

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
        return _RANKS[self]


_RANKS: Final = {level: rank for rank, level in enumerate(Visibility)}
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
        embargo: Lets nobody read before the day in `NewArtifact.embargo`, though its level was raised before, and
            says so in `Artifact.embargo`: core raises no level until that is the day wished for. In other stores
            core waits for the day with raising.
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
        configured: Given the checkpoint, says where the user has set this backend up (``"registries.yaml in …"``),
            or None. A publication that names no backend then goes there. Cheap, and never raises.
    """

    name: str
    backend: str
    help: str
    claims: Callable[[str], Claim]
    api: int
    extra: str | None = None
    configured: Callable[[Path | None], str | None] | None = None


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
    effective level; `owners` of () says that it has none; `description` is that of `NewArtifact`. `embargo`: the
    store lets nobody read it before that day, whatever its level, apart from its owners; None: there is none.
    `doi` is reserved or registered.
    """

    locator: Locator
    size: int | None = None
    archive_sha256: str | None = None
    bundle_sha256: str | None = None
    visibility: Visibility | None = None
    owners: tuple[Owner, ...] | None = None
    created: datetime | None = None
    description: Mapping[str, Any] | None = None
    embargo: date | None = None
    doi: str | None = None


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """What goes with a new artifact.

    Attributes:
        created: Time of publication, UTC.
        owner: Who it belongs to, for stores that serve a registry.
        wish: The visibility the author wants in the end; the artifact itself starts staged.
        embargo: Day before which nobody may read it, for stores with ``embargo``. Put again, what is staged gets
            the new day. None takes the old one away only if the `wish` is ``public``: else nothing is known of it.
        description: Facts for stores that show them, as JSON values (`ari_core.citation`): all that is known if
            the backend `describes`, else no more than ``license``.
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


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in a store that belongs to no artifact: what an interrupted run left.

    Attributes:
        what: Its kind, in words (``unfinished upload``).
        name: Where it is.
        size: Bytes, if known.
        since: When it was made.
    """

    what: str
    name: str
    size: int | None
    since: datetime


@dataclass(frozen=True, slots=True)
class Share:
    """What a reader without an account needs for one artifact.

    Attributes:
        url: A portable ref.
        token: The secret, shown once.
        id: Names the secret, for revoking it.
        expires: When it stops working, or None.
    """

    url: str
    token: str = field(repr=False)
    id: str = ""
    expires: datetime | None = None


class Source(ABC):
    """Core's side of a put: a verified gzip archive to read.

    A backend opens it at most once in each put, since a download may be behind it; it is opened again by a second
    put, when core tries again. The stream raises before its end if anything disagrees with the claims below, so a
    backend that makes the artifact visible only after a clean end can never store a wrong one.

    Attributes:
        size: Bytes of the archive.
        archive_sha256: Digest of those bytes.
        bundle_sha256: Digest of the canonical file list; like `manifest` it may be known after a clean end only.
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
        turn: Given the name of an artifact, keeps everybody else who changes this store from changing it: wrap
            each change in it where the store itself cannot let one through at a time. None: there is no such
            help. A registry's database gives it.
        patience: Seconds that the caller will wait for one answer; None: `streams.deadline`.
        spool: A folder for what a stream has to hold back. Given where many are open at once: then nothing large
            may be held in memory for any of them. None: a few tens of megabytes for the only one are fine.
    """

    checkpoint: Path | None = None
    warn: Callable[[str], None] = lambda _line: None
    anonymous: bool = False
    turn: Callable[[str], AbstractContextManager[None]] | None = None
    patience: float | None = None
    spool: Path | None = None
