"""Raise the visibility of what was published, wherever it is; it never goes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ari_core.contract import Backend, Locator, OpenContext, SupportsManifest, Visibility
from ari_core.errors import (
    AlreadyExists,
    AriError,
    CheckpointNotFoundError,
    NoTargetError,
    NotFound,
    Unsupported,
    UsageError,
    VerificationError,
)
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.names import quoted
from ari_core.plugins import load_plugins
from ari_core.record import Record, change_record, read_record
from ari_core.settings import open_backend
from ari_core.verification import read_manifest
from ari_core.wish import check_wish, embargo_end, require_ahead
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.copies import (
    has_level,
    partly_done,
    require_embargo_kept,
    require_no_embargo,
    split_options,
)
from ari_core.workflows.publish import is_dry_run
from ari_core.workflows.refs import BackendSource
from ari_core.wrappers import patient


@dataclass(frozen=True, slots=True)
class Promoted:
    """What became of the promotion in one place.

    Attributes:
        ref: The place.
        backend: Its backend.
        visibility: The level it has now.
        changed: Whether that is another one than before.
        enforced: Whether the store acts on it.
        embargo: Day before which the store lets nobody read it all the same, or None.
        note: Why it stays as it is though nothing is wrong, or "".
        error: Why it could not be promoted, or None.
    """

    ref: str
    backend: str
    visibility: str
    changed: bool = False
    enforced: bool = False
    embargo: date | None = None
    note: str = ""
    error: AriError | None = None


@dataclass(frozen=True, slots=True)
class PromoteResult:
    """What became of a promotion.

    Attributes:
        record: The record as it stands now; for a dry run, as it would stand.
        changed: Whether the level in `Record.ref` is another one than before.
        enforced: Whether the store acts on it.
        dry_run: Nothing was changed.
        places: What became of each place, that of `Record.ref` first if there is one, then the copies.
        error: Why some of several places were not promoted, or None.
    """

    record: Record
    changed: bool
    enforced: bool
    dry_run: bool
    places: tuple[Promoted, ...] = ()
    error: AriError | None = None


def promote(
    checkpoint: str | Path | None = None,
    *,
    target: str | None = None,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    warn: Callable[[str], None] = lambda _line: None,
) -> PromoteResult:
    """Raises the visibility of the published bundle, and of its copies.

    A copy in a store that has no such level stays as it is, and so does one that is above it already. Under an
    embargo, only a store that says that it keeps this very one is asked to raise the level.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        target: The level; default: the wish that was recorded when publishing. Never silently ``public``.
        options: Settings: ``key`` for the backend, ``NAME.key`` for that of a copy.
        dry_run: Check and change nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        CheckpointNotFoundError: Nothing was published from it.
        UsageError: No target, an embargo that nobody would keep, or a level below the present one.
        AriError: As the backends say, if nothing was promoted; the failure is noted in the record.
    """
    folder = find_checkpoint(checkpoint)
    record = published_record(folder, with_copies=True)
    places = record.places()
    require_ahead(target)
    level = _target(record, target)
    if record.ref and level.rank < Visibility(check_wish(record.visibility)).rank:
        raise UsageError(
            f"visibility only moves up: this bundle is {record.visibility}, which is above {level}",
            hint="nothing was changed",
        )
    names = [place.profile or place.backend for place in places]
    given = split_options(options or {}, names, names[0])
    job = _Promotion(folder, record, target, level, warn, dry_run=dry_run or is_dry_run())
    done = [job.promote(place, given[name]) for name, place in zip(names, places, strict=True)]
    error = partly_done("places", [(place.ref, place.error) for place in done])
    if error and all(place.error for place in done):
        raise error
    if job.dry_run:
        record = record.model_copy(update={"visibility": done[0].visibility} if record.ref else {})
    else:
        record = published_record(folder, with_copies=True)
    return PromoteResult(
        record=record,
        changed=done[0].changed,
        enforced=done[0].enforced,
        dry_run=job.dry_run,
        places=tuple(done),
        error=error,
    )


class _Promotion:
    """One level, and the places it is for."""

    def __init__(
        self,
        checkpoint: Path,
        record: Record,
        asked: str | None,
        level: Visibility,
        warn: Callable[[str], None],
        *,
        dry_run: bool,
    ) -> None:
        self._checkpoint, self._record, self._level, self._warn = checkpoint, record, level, warn
        self._wish = asked if embargo_end(asked) else record.wish
        self.dry_run = dry_run

    def promote(self, place: Record, options: Mapping[str, str]) -> Promoted:
        """Promotes one place; a failure is noted and returned."""
        present = Visibility(check_wish(place.visibility))
        if self._is_copy(place) and present.rank >= self._level.rank:
            return Promoted(place.ref, place.backend, place.visibility, note=f"it is {present} already")
        try:
            with open_recorded(self._checkpoint, place, options, self._warn) as store:
                return self._promote(place, store)
        except NotFound as error:
            again = f"ari mirror … --to {place.backend}" if self._is_copy(place) else "ari ear publish"
            hint = f"if it is gone for good, store it again: `{again}`"
            gone = NotFound(error.message, hint=hint)
            return Promoted(place.ref, place.backend, place.visibility, error=gone)
        except AriError as error:
            return Promoted(place.ref, place.backend, place.visibility, error=error)

    def _is_copy(self, place: Record) -> bool:
        return place.ref != self._record.ref

    def _promote(self, place: Record, store: Backend) -> Promoted:
        able, level = store.probe(), self._level
        present = place.visibility
        enforced = able.visibility == "enforced"
        if self._is_copy(place) and not has_level(able, level):
            note = f"this store has no level '{level}', and it stays {present}"
            return Promoted(place.ref, place.backend, present, enforced=enforced, note=note)
        require_no_embargo(
            self._wish, able, hint="promote it on that day, or publish again with another --visibility"
        )
        kept = None
        try:
            locator = store.resolve(place.ref)
            # What is gone cannot be promoted, and what is another's must not.
            require_own(store, locator, place)
            if able.embargo and level.rank:
                kept = require_embargo_kept(self._wish, store, locator, hint=self._way(place))
            if able.visibility != "none" and not self.dry_run:
                level = store.raise_visibility(locator, level)
        except AriError:
            if not self.dry_run:
                change_record(self._checkpoint, lambda record: record.with_failure(place.ref))
            raise
        if not self.dry_run:
            change_record(self._checkpoint, lambda record: record.with_level(place.ref, str(level)))
        return Promoted(
            place.ref, place.backend, str(level), changed=level != present, enforced=enforced, embargo=kept
        )

    def _way(self, place: Record) -> str:
        """Says how a store is told of the embargo."""
        steps = []
        if self._wish != self._record.wish or not self._is_copy(place):
            name = self._record.profile or self._record.backend
            steps.append(f"`ari ear publish --backend {name} --visibility {self._wish}`")
        if self._is_copy(place):
            steps.append(f"`ari mirror {quoted(str(self._checkpoint))} --to {place.profile or place.backend}`")
        return f"run {', then '.join(steps)}, then promote"


def published_record(checkpoint: Path, *, with_copies: bool = False) -> Record:
    """Returns the record of a checkpoint from which something is published; with copies, if only copies are left.

    Raises:
        CheckpointNotFoundError: Nothing is.
    """
    record = read_record(checkpoint)
    if record is None or not (record.ref or (with_copies and record.copies)):
        left = " any more; only copies are left" if record and record.copies else ""
        raise CheckpointNotFoundError(
            f"nothing is published from {quoted(str(checkpoint))}{left}", hint="run `ari ear publish` first"
        )
    return record


def open_recorded(
    checkpoint: Path,
    record: Record,
    options: Mapping[str, str] | None,
    warn: Callable[[str], None] = lambda _line: None,
) -> Backend:
    """Opens the store that a record names, set as it was when publishing."""
    store = open_backend(
        record.profile or record.backend,
        options,
        OpenContext(checkpoint, warn),
        load_plugins(),
        recorded={**record.settings, **record.options},
    )
    if not store.capabilities.put:
        # Nothing can have been published there, so this record is not of our making: send that place nothing.
        raise Unsupported(f"nothing is ever published with '{store.name}'; the record cannot be right")
    return patient(store)


def require_own(store: Backend, locator: Locator, record: Record) -> None:
    """Checks that the place a record names still holds the bundle that was published from here.

    Raises:
        NotFound: It is gone.
        AlreadyExists: Another one is there by now; it was not touched.
    """
    artifact = store.stat(locator)
    if artifact.archive_sha256 and record.archive_sha256:
        own = artifact.archive_sha256 == record.archive_sha256
    elif artifact.bundle_sha256:
        own = artifact.bundle_sha256 == record.bundle_sha256
    else:
        own = _stored_digest(store, locator, artifact.size) == record.bundle_sha256
    if not own:
        raise AlreadyExists(
            f"{quoted(record.ref)} holds another bundle than the one published from here; it was not touched",
            hint="publish again, or look at `ari show` of that ref",
        )


def _stored_digest(store: Backend, locator: Locator, size: int | None) -> str | None:
    limits = Limits.from_environment()
    reader = store.optional(SupportsManifest)
    raw = None
    try:
        if reader is not None:
            with suppress(Unsupported):  # this one has to be read
                raw = reader.manifest(locator)
        raw = raw or read_manifest(BackendSource(store, locator, size), limits)
        return parse_manifest(raw, limits).bundle_sha256
    except VerificationError:
        return None


def _target(record: Record, target: str | None) -> Visibility:
    wish = target or record.wish
    if embargo_end(wish):
        return Visibility.PUBLIC
    if wish in {None, Visibility.STAGED} and target is None:
        raise NoTargetError(
            "promote to which level? publish.yaml asks for none above staged",
            hint=f"give --target, one of: {', '.join(level for level in Visibility if level.rank)}",
        )
    return Visibility(check_wish(str(wish)))
