"""Putting one verified archive into a further store, and noting in the checkpoint's record that it is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from ari_core.contract import (
    Artifact,
    Backend,
    Capabilities,
    Locator,
    NewArtifact,
    OpenContext,
    Source,
    SupportsOwnRefs,
    SupportsProviderChecksum,
    SupportsRehearsal,
    Visibility,
)
from ari_core.errors import (
    AlreadyExists,
    AriError,
    IntegrityError,
    NotFound,
    PartlyDoneError,
    ReadOnly,
    Unsupported,
    UsageError,
)
from ari_core.limits import Limits
from ari_core.names import quoted
from ari_core.plugins import LoadedPlugins, load_plugins
from ari_core.record import Record, change_record, now, read_record
from ari_core.settings import is_secret, open_backend, reader_options
from ari_core.streams import Progress
from ari_core.verification import check_archive
from ari_core.verifying import VerifyingSource
from ari_core.wish import embargo_end
from ari_core.workflows.refs import BackendSource
from ari_core.workflows.spool import PackedFile
from ari_core.wrappers import patient

REHASHED: Final = "re-hashed"
CHECKSUM: Final = "provider-checksum"
SIZE: Final = "size"
PRESENT: Final = "present"
"""How well it is known what a store holds now, best first. Evidence is never upgraded."""

PUBLISHING: Final = ("published", "published again")
COPIED: Final = "copied"
"""Events of the history that tell of a place where the bundle was stored."""

_STORED: Final = (*PUBLISHING, COPIED)
_MOST_PLACES: Final = 8  # each costs a request


@dataclass(frozen=True, slots=True)
class Copy:
    """What became of one copy.

    Attributes:
        to: The backend or profile that was asked for.
        backend: The backend.
        ref: Where the copy is; "" if there is none.
        created: False when it was there already.
        archive_sha256: Digest of the archive that is there, as far as is known.
        visibility: Its level.
        enforced: Whether the store acts on levels.
        evidence: ``re-hashed``, ``provider-checksum``, ``size`` or ``present``; "" if there is no copy.
        recorded: Whether it stands in a checkpoint's record.
        error: Why it is not there, or not as it was asked for.
    """

    to: str
    backend: str
    ref: str = ""
    created: bool = False
    archive_sha256: str | None = None
    visibility: str = ""
    enforced: bool = False
    evidence: str = ""
    recorded: bool = False
    error: AriError | None = None


def partly_done(what: str, outcomes: Iterable[tuple[str, AriError | None]]) -> AriError | None:
    """Returns the error of several things of which some failed, or None.

    Args:
        what: Names them, after a number: ``"copies"``.
        outcomes: Name and error of each.
    """
    every = list(outcomes)
    failed = [(name, error) for name, error in every if error]
    if not failed:
        return None
    first = failed[0][1]
    if len(every) == 1:
        return first
    told = "; ".join(f"{name}: {error.message}" for name, error in failed)
    if len(failed) == len(every):
        first.message = f"none of {len(every)} {what}: {told}"
        first.args = (first.message,)
        return first
    return PartlyDoneError(f"{len(failed)} of {len(every)} {what} failed: {told}")


# -- targets -----------------------------------------------------------------------------------------------------


def split_options(
    options: Mapping[str, str], names: Sequence[str], default: str | None
) -> dict[str, dict[str, str]]:
    """Sorts settings by whom they are for: ``NAME.key`` is for NAME, ``key`` for the default.

    Raises:
        UsageError: It cannot be told, or there is no such name.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    if default is not None:
        found.setdefault(default, {})
    for key, value in options.items():
        owner = max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)
        if owner is not None:
            found[owner][key.removeprefix(f"{owner}.")] = value
        elif "." not in key and default is not None:
            found[default][key] = value
        else:
            known = ", ".join(f"{name}.{key.rpartition('.')[2]}" for name in names)
            raise UsageError(
                f"{quoted(key)}: for which of the stores is this setting?",
                hint=f"one of: {known}" if known else "leave out what is before the dot",
            )
    return found


def kept_settings(store: Backend, options: Mapping[str, str]) -> dict[str, str]:
    """Returns what of ``-o`` goes into the record: no secret, and paths that hold from any folder.

    Of what decides about trust only what readers need; who has credentials is asked again.
    """
    kept = {}
    left_out = set(store.trust_settings).difference(store.reader_settings)
    for key, value in options.items():
        if not is_secret(store.Settings, key) and key not in left_out:
            typed = getattr(store.settings, key, None)
            kept[key] = str(typed.absolute()) if isinstance(typed, Path) else value
    return kept


@dataclass(slots=True)
class Target:
    """A store that a copy goes to.

    Attributes:
        name: The backend or profile that was asked for.
        store: The store.
        options: What was given with ``-o``.
        able: What it can do; known once it is `ready`.
    """

    name: str
    store: Backend
    options: Mapping[str, str] = field(repr=False)
    able: Capabilities = field(default_factory=Capabilities)

    @property
    def profile(self) -> str | None:
        """The profile, if it is one."""
        return None if self.name == self.store.name else self.name

    def place(self, locator: Locator) -> dict[str, Any]:
        """Returns what a record holds of a place in which something was begun."""
        settings = kept_settings(self.store, self.options)
        return {"backend": self.store.name, "profile": self.profile, "settings": settings, "locator": locator}

    def ready(self, visibility: Visibility | None, warn: Callable[[str], None]) -> None:
        """Checks before anything is read that the store takes what will come.

        Raises:
            Unsupported: It stores nothing, or has no such level.
            AriError: It cannot be reached.
        """
        self.able = require_put(self.store, warn)
        require_level(self.able, visibility)

    def failed(self, error: AriError) -> Copy:
        """Returns the outcome of a copy that was not made."""
        return Copy(self.name, self.store.name, error=error)


def open_targets(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, str]],
    context: OpenContext,
    stack: ExitStack,
    plugins: LoadedPlugins | None = None,
) -> list[Target]:
    """Opens stores to copy to; they close with `stack`.

    Raises:
        UsageError: One is named twice.
        PluginError: There is no such backend.
        ConfigurationError: A setting is wrong.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"{quoted(twice[0])} is named twice", hint="name each place once; profiles tell them apart"
        )
    plugins = plugins or load_plugins()
    return [
        Target(name, stack.enter_context(patient(open_backend(name, given, context, plugins))), given)
        for name in names
        for given in [options.get(name, {})]
    ]


def require_put(store: Backend, warn: Callable[[str], None]) -> Capabilities:
    """Returns what a store can do, and warns if it keeps nobody from reading.

    Raises:
        Unsupported: It stores nothing.
        ReadOnly: It stores nothing in this place.
        AriError: It cannot be reached.
    """
    able = store.probe()
    if not store.capabilities.put:
        raise Unsupported(
            f"'{store.name}' stores nothing: it only reads",
            hint="choose a backend that stores, such as local-tarball",
        )
    if not able.put:
        raise ReadOnly(
            f"'{store.name}' can store nothing in this place: it is read-only",
            hint="check how it is mounted, who owns it and its mode; or name another place",
        )
    if able.visibility != "enforced":
        warn(f"'{store.name}' keeps nobody from reading: whoever reaches the place can read the bundle")
    return able


def has_level(able: Capabilities, level: Visibility) -> bool:
    """Says whether a store can bring an artifact to a level, if only by writing it down."""
    return able.visibility == "none" or level in {Visibility.STAGED, *able.levels}


def require_level(able: Capabilities, level: Visibility | None) -> None:
    """Checks before any change that a store has a level.

    Raises:
        Unsupported: It does not.
    """
    if level is not None and not has_level(able, level):
        known = ", ".join(known for known in Visibility if known in able.levels)
        raise Unsupported(f"this store has no level '{level}', only: {known}")


def require_no_embargo(wish: str | None, able: Capabilities, hint: str) -> None:
    """Checks that an embargo does not forbid to raise the level now.

    Raises:
        UsageError: It does.
    """
    end = _ahead(embargo_end(wish))
    if end and not able.embargo:
        raise UsageError(f"the bundle is under an embargo until {end.isoformat()}", hint=hint)


def require_embargo_kept(wish: str | None, store: Backend, locator: Locator, hint: str) -> date | None:
    """Checks that a store keeps people from reading until the day wished for, so that the level can be raised.

    If it does so for longer, that is told.

    Returns:
        The day until which it does, or None.

    Raises:
        UsageError: It does not.
    """
    kept, end = (_ahead(day) for day in (store.stat(locator).embargo, embargo_end(wish)))
    if end and (kept is None or kept < end):
        here = f"only until {kept}" if kept else "not at all"
        raise UsageError(
            f"the bundle is under an embargo until {end}, and '{store.name}' keeps it {here}", hint=hint
        )
    if kept and kept != end:
        store.context.warn(f"'{store.name}' lets nobody read it until {kept}, whatever its level")
    return kept


def _ahead(day: date | None) -> date | None:
    """Returns the day of an embargo that has not ended."""
    return day if day and day > datetime.now(UTC).date() else None


# -- what was stored before --------------------------------------------------------------------------------------


def previous_place(store: Backend, record: Record | None, *first: str) -> Artifact | None:
    """Returns what this checkpoint stored last in such a store, and is there still, by place and digest.

    The place may hold something else by now.

    Args:
        store: The store.
        record: Of the checkpoint.
        first: Events of the history that count more than later ones of another kind.
    """
    if record is None:
        return None
    # What is in `ref` comes last in the history, unless the record is older than histories.
    last = {**record.as_copy(), "event": "published", "bundle_sha256": record.bundle_sha256}
    told = [line for line in [last, *record.history] if line.get("event") in _STORED]
    here = [line for line in told if line.get("backend") == store.name and line.get("ref")]
    telling = store.optional(SupportsOwnRefs)  # a place that publishes no more is not waited for
    if telling is not None:
        here = [line for line in here if telling.is_own(str(line["ref"]))]
    newest: dict[str, Mapping[str, Any]] = {}
    for _, line in sorted(enumerate(here), key=lambda item: (item[1]["event"] in first, item[0]), reverse=True):
        newest.setdefault(str(line["ref"]), line)
    for ref, known in itertools.islice(newest.items(), _MOST_PLACES):
        # Gone, or of another installation of this kind of store: what was stored before that counts then.
        with suppress(NotFound, Unsupported):
            return Artifact(
                store.resolve(ref),
                archive_sha256=known.get("archive_sha256"),
                bundle_sha256=known.get("bundle_sha256"),
            )
    return None


# -- storing -----------------------------------------------------------------------------------------------------


def rehearse(target: Target, new: NewArtifact, bundle_sha256: str, size: int | None = None) -> None:
    """Asks a store whether it would take what is not packed yet, if the store can tell.

    Raises:
        AriError: It would not.
    """
    rehearsing = target.store.optional(SupportsRehearsal)
    if rehearsing is not None:
        rehearsing.rehearse(new, bundle_sha256, size)


def store_noting(
    target: Target, source: Source, new: NewArtifact, checkpoint: Path | None, *, is_copy: bool
) -> tuple[Artifact, bool]:
    """Stores an archive; the record tells meanwhile what was begun, so that a second run can go on with it.

    Args:
        target: Where.
        source: The archive.
        new: What goes with it.
        checkpoint: Whose record; None: nobody keeps in mind what was begun.
        is_copy: It is no publication.

    Returns:
        As `Backend.put`. Whoever notes in the record what is stored removes what was begun.
    """
    record = read_record(checkpoint) if checkpoint else None

    def note(locator: Locator) -> None:
        if checkpoint is None:
            return
        begun = {**target.place(locator), "bundle_sha256": source.bundle_sha256, "since": now()}

        def change(present: Record) -> Record:
            if others := _places_of(present, target) - _places_of(record, target) - {str(locator)}:
                raise AlreadyExists(
                    f"another `ari` began to store from this checkpoint in '{target.name}' meanwhile, at "
                    f"{quoted(min(others))}; what this one began is {quoted(locator)}",
                    hint="wait until that one has ended, then run this again",
                )
            return present.with_pending(begun, is_copy=is_copy)

        change_record(checkpoint, change)

    return target.store.put(source, new, resume=_resume(record, target), on_reserved=note)


def _places_of(record: Record | None, target: Target) -> set[str]:
    """Returns where in such a store something was stored or begun."""
    if record is None:
        return set()
    begun = [(line.get("backend"), line.get("profile"), line.get("locator")) for line in record.unfinished()]
    done = [(place.backend, place.profile, place.ref) for place in record.places()]
    own = (target.store.name, target.profile)
    return {str(where) for *whose, where in (*begun, *done) if tuple(whose) == own}


def _resume(record: Record | None, target: Target) -> Locator | None:
    own = target.place(Locator(""))
    here = [
        begun
        for begun in (record.unfinished() if record else [])
        if (begun.get("backend"), begun.get("profile")) == (own["backend"], own["profile"])
    ]
    best = max(here, key=lambda begun: begun.get("settings") == own["settings"], default=None)
    return Locator(str(best.get("locator"))) if best else None


# -- one copy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms copies are made.

    Attributes:
        limits: Bounds for what is read back.
        checkpoint: Whose record notes them; None: nowhere.
        visibility: Level to raise them to; None: they stay as they are.
        reread: Read them back.
        replace: Let them take the place of another bundle that is in the way.
        progress: Told how far it is.
    """

    limits: Limits
    checkpoint: Path | None = None
    visibility: Visibility | None = None
    reread: bool = False
    replace: bool = False
    progress: Progress | None = None


def make_copy(
    target: Target,
    source: Source | None,
    terms: Terms,
    *,
    bundle_sha256: str,
    wish: str | None,
    description: Mapping[str, Any],
    size: int | None = None,
) -> Copy:
    """Stores an archive in one more place and looks what arrived.

    Args:
        target: Where; `Target.ready` was called.
        source: The archive. What it raises passes through. None: only find out whether the store would take it.
        terms: How.
        bundle_sha256: Of the archive.
        wish: What the author wants in the end, if that is known. A level that this store does not have is not
            wished for there: the copy stays staged.
        description: For `NewArtifact`.
        size: Bytes of the archive without a source, if known.

    Returns:
        The outcome; an error in it is about what came after storing.

    Raises:
        AriError: It was not stored.
    """
    record = read_record(terms.checkpoint) if terms.checkpoint else None
    level = terms.visibility or wished_level(wish)
    new = NewArtifact(
        created=datetime.now(UTC),
        wish=level if level is None or has_level(target.able, level) else Visibility.STAGED,
        embargo=embargo_end(wish),
        description=description,
        previous=previous_place(target.store, record, COPIED),
        replace=terms.replace,
    )
    if source is not None:
        return _Copying(target, source, terms, wish, new).run(record)
    rehearse(target, new, bundle_sha256, size)
    return Copy(target.name, target.store.name)


class _Copying:
    """One copy on its way."""

    def __init__(self, target: Target, source: Source, terms: Terms, wish: str | None, new: NewArtifact) -> None:
        self._target, self._store, self._source, self._terms = target, target.store, source, terms
        self._wish, self._new = wish, new

    def run(self, record: Record | None) -> Copy:
        store, source = self._store, self._source
        artifact, created = store_noting(self._target, source, self._new, self._terms.checkpoint, is_copy=True)
        if isinstance(source, VerifyingSource):
            source.finish()
        ref = store.ref(artifact.locator)
        try:
            evidence = self._look(artifact, created=created)
        except AriError as error:
            error.enclose(before=f"{quoted(ref)} does not hold what was sent: ")
            raise
        copy = Copy(
            self._target.name,
            store.name,
            ref=ref,
            created=created,
            archive_sha256=artifact.archive_sha256 or (source.archive_sha256 if created else None),
            visibility=str(artifact.visibility or _known_level(record, ref)),
            enforced=self._target.able.visibility == "enforced",
            evidence=evidence,
        )
        copy = self._recorded(copy, artifact.locator)
        try:
            return self._raised(copy, artifact.locator)
        except AriError as error:
            return replace(copy, error=error)

    # -- what arrived --

    def _look(self, artifact: Artifact, *, created: bool) -> str:
        store, source = self._store, self._source
        found = store.stat(artifact.locator)
        same = (
            created or artifact.archive_sha256 == source.archive_sha256
        )  # else the same bundle, packed otherwise
        claims = [(found.bundle_sha256, source.bundle_sha256)]
        if same:
            claims += [(found.archive_sha256, source.archive_sha256)]
            _require_equal("bytes", found.size, source.size)
        for claim, truth in claims:
            _require_equal("as its SHA-256", claim, truth)
        if self._terms.reread:
            self._read_back(artifact, found.size, same=same)
            return REHASHED
        if same and self._has_checksum(artifact.locator):
            return CHECKSUM
        return SIZE if same and found.size is not None else PRESENT

    def _read_back(self, artifact: Artifact, size: int | None, *, same: bool) -> None:
        stored = BackendSource(self._store, artifact.locator, size)
        report = check_archive(stored, limits=self._terms.limits, progress=self._terms.progress)
        report.require_digest(self._source.bundle_sha256)
        if same:
            _require_equal("as its SHA-256", report.archive_sha256, self._source.archive_sha256)

    def _has_checksum(self, locator: Locator) -> bool:
        """Says whether the provider has a checksum to compare with, and compares it."""
        provider = self._store.optional(SupportsProviderChecksum)
        if provider is None:
            return False
        try:
            algorithm, digits = provider.provider_checksum(locator)
        except Unsupported:
            return False
        own = self._source.archive_sha256 if algorithm == "sha256" else None
        if own is None and isinstance(self._source, PackedFile):
            own = self._source.checksum(algorithm)
        _require_equal(f"as its {algorithm}", digits if own else None, own)
        return own is not None

    def _raised(self, copy: Copy, locator: Locator) -> Copy:
        level, checkpoint = self._terms.visibility, self._terms.checkpoint
        if level is None or level.rank <= Visibility(copy.visibility).rank:
            return copy
        if self._target.able.embargo:
            require_embargo_kept(self._wish, self._store, locator, hint="nothing was published; try again")
        if self._target.able.visibility != "none":
            level = self._store.raise_visibility(locator, level)
        if checkpoint:
            change_record(checkpoint, lambda record: record.with_level(copy.ref, str(level)))
        return replace(copy, visibility=str(level))

    # -- the record --

    def _recorded(self, copy: Copy, locator: Locator) -> Copy:
        if self._terms.checkpoint is None:
            return copy
        place = {
            "backend": copy.backend,
            "ref": copy.ref,
            "archive_sha256": copy.archive_sha256,
            "visibility": copy.visibility,
            "timestamp": now(),
            "options": reader_options(self._store),
            "settings": kept_settings(self._store, self._target.options),
            "profile": self._target.profile,
        }

        def change(record: Record) -> Record:
            record = record.without_pending(self._target.place(locator))
            if copy.ref == record.ref:  # where it was published to
                return record
            is_new = copy.ref not in {known.get("ref") for known in record.copies}
            return record.with_copy(place, COPIED if is_new else None)

        change_record(self._terms.checkpoint, change)
        return replace(copy, recorded=True)


def wished_level(wish: str | None) -> Visibility | None:
    """Returns the level that a wish amounts to in the end: of an embargo, public."""
    if wish is None:
        return None
    return Visibility(wish) if wish in set(Visibility) else Visibility.PUBLIC


def _known_level(record: Record | None, ref: str) -> str:
    """Returns the level that stands in the record for a place whose store remembers none."""
    known = {place.ref: place.visibility for place in record.places()} if record else {}
    return known.get(ref, Visibility.STAGED)


def _require_equal(what: str, claim: object, truth: object) -> None:
    if claim not in {None, truth}:
        raise IntegrityError(f"it has {claim} {what}, but {truth} was sent")
