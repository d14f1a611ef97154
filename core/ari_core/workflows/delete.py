"""Take back what was published, copied or begun, as far as the stores allow it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ari_core.contract import Backend, Locator, Visibility
from ari_core.errors import AriError, CheckpointNotFoundError, NotFound, Unsupported, UsageError
from ari_core.names import quoted
from ari_core.record import Record, change_record, read_record
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.copies import partly_done, split_options
from ari_core.workflows.promote import open_recorded, require_own
from ari_core.workflows.publish import is_dry_run


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of one place.

    Attributes:
        ref: The place; of what was only begun, its locator.
        backend: Its backend.
        visibility: The level it had.
        unfinished: It was begun and not finished.
        absent: It was gone already.
        error: Why it could not be deleted, or None.
    """

    ref: str
    backend: str
    visibility: str
    unfinished: bool
    absent: bool = False
    error: AriError | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What became of a deletion.

    Attributes:
        record: The record as it stands now; for a dry run, as it was.
        places: What became of each place.
        dry_run: Nothing was deleted.
        error: Why some of several places could not be deleted, or None.
    """

    record: Record
    places: tuple[Deleted, ...]
    dry_run: bool
    error: AriError | None = None


def delete(
    checkpoint: str | Path | None = None,
    *,
    copies: Sequence[str] = (),
    everything: bool = False,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    warn: Callable[[str], None] = lambda _line: None,
) -> DeleteResult:
    """Deletes the published bundle from its store, and a publication that was begun; copies elsewhere stay.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        copies: Delete these copies instead, finished or only begun; each by its ref, or by its backend or profile.
        everything: Delete all that the record names.
        options: Settings: ``key`` for the first place, ``NAME.key`` for that of a backend or profile.
        dry_run: Check and change nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        CheckpointNotFoundError: There is nothing of that kind.
        UsageError: No copy, or more than one, has such a name.
        Unsupported: The store deletes nothing, or not this.
        AlreadyExists: Another bundle is in that place by now; it was not touched.
        AriError: As the backends say, if nothing was deleted.
    """
    folder = find_checkpoint(checkpoint)
    dry_run = dry_run or is_dry_run()
    chosen = to_delete(folder, copies, everything=everything)
    names = [place.profile or place.backend for place, _ in chosen]
    given = split_options(options or {}, names, names[0])
    done = []
    for name, (place, is_begun) in zip(names, chosen, strict=True):
        outcome = Deleted(place.ref, place.backend, place.visibility, is_begun)
        try:
            was_there = _delete(folder, place, given[name], warn, is_begun=is_begun, dry_run=dry_run)
            outcome = replace(outcome, absent=not was_there)
        except AriError as error:
            outcome = replace(outcome, error=error)
        done.append(outcome)
    failed = partly_done("places", [(place.ref, place.error) for place in done])
    if failed and all(place.error for place in done):
        raise failed
    return DeleteResult(read_record(folder) or Record(), tuple(done), dry_run, failed)


def to_delete(
    checkpoint: Path, copies: Sequence[str] = (), *, everything: bool = False
) -> list[tuple[Record, bool]]:
    """Returns the record as it is seen from each place that `delete` is about, and whether that was only begun.

    Raises:
        CheckpointNotFoundError: There is nothing of that kind.
        UsageError: No copy, or more than one, has such a name.
    """
    record = read_record(checkpoint) or Record()
    published = [(record, False)] if record.ref else []
    begun = [(place, True) for place in record.reserved()]
    others = [(place, False) for place in record.places() if place.ref != record.ref]
    if everything:
        chosen = [*published, *others, *begun]
    elif copies:
        named = {
            (place.backend, place.ref): (place, is_begun)
            for place, is_begun in (_named(name, [*others, *begun]) for name in copies)
        }
        chosen = list(named.values())
    else:
        chosen = [*published, *(begun[:1] if record.pending else [])]
    if chosen:
        return chosen
    if left := [*others, *begun]:
        raise CheckpointNotFoundError(
            f"nothing is published from {quoted(str(checkpoint))} any more; only copies are left: {_listed(left)}",
            hint="delete them by name with --copy, or all of them with --all",
        )
    raise CheckpointNotFoundError(
        f"nothing is published from {quoted(str(checkpoint))}", hint="run `ari ear publish` first"
    )


def _named(name: str, copies: Sequence[tuple[Record, bool]]) -> tuple[Record, bool]:
    found = [copy for copy in copies if copy[0].ref == name]
    found = found or [copy for copy in copies if name in {copy[0].backend, copy[0].profile}]
    if len(found) == 1:
        return found[0]
    if not found:
        there = f"one of: {_listed(copies)}" if copies else "without --copy, the published bundle is deleted"
        raise UsageError(f"there is no copy {quoted(name)}", hint=there)
    raise UsageError(f"{quoted(name)} has {len(found)} copies", hint=f"name one: {_listed(found)}")


def _listed(copies: Sequence[tuple[Record, bool]]) -> str:
    return ", ".join(place.ref for place, _ in copies)


def _delete(
    checkpoint: Path,
    place: Record,
    options: Mapping[str, str],
    warn: Callable[[str], None],
    *,
    is_begun: bool,
    dry_run: bool,
) -> bool:
    """Returns whether it was there, as far as can be told."""
    was_there = is_begun
    with open_recorded(checkpoint, place, options, warn) as store:
        locator: Locator | None = Locator(place.ref) if is_begun else None
        with contextlib.suppress(NotFound):  # what is gone need not go, and what was only reserved holds nothing
            locator = locator or store.resolve(place.ref)
            require_own(store, locator, place)
            was_there = True
            if dry_run and not is_begun:
                _require_deletable(store, locator)
        if locator and not dry_run:
            store.delete(locator)
    if dry_run:
        return was_there
    if is_begun:
        gone = {"backend": place.backend, "profile": place.profile, "locator": place.ref}
        change_record(checkpoint, lambda record: record.without_pending(gone))
    else:
        change_record(checkpoint, lambda record: record.without_place(place.ref))
    return was_there


def _require_deletable(store: Backend, locator: Locator) -> None:
    """Checks what a rehearsal can: that a store deletes such an artifact at all.

    Raises:
        Unsupported: It does not.
    """
    able = store.probe().delete
    level = store.stat(locator).visibility
    if able == "no" or (able == "unpublished" and level is not Visibility.STAGED):
        raise Unsupported(
            f"'{store.name}' deletes {'nothing' if able == 'no' else 'only what is not published'}; it stays"
        )
