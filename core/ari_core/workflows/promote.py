"""Raise the visibility of what was published; it never goes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from ari_core.contract import Backend, Locator, OpenContext, SupportsManifest, Visibility
from ari_core.errors import (
    AlreadyExists,
    AriError,
    CheckpointNotFoundError,
    NoTargetError,
    Unsupported,
    UsageError,
    VerificationError,
)
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.names import quoted
from ari_core.plugins import load_plugins
from ari_core.record import Record, now, read_record, write_record
from ari_core.settings import open_backend
from ari_core.verification import read_manifest
from ari_core.wish import check_wish, embargo_end
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.publish import is_dry_run
from ari_core.workflows.refs import BackendSource
from ari_core.wrappers import patient


@dataclass(frozen=True, slots=True)
class PromoteResult:
    """What became of a promotion.

    Attributes:
        record: The record as it stands now; for a dry run, as it would stand.
        changed: False when it had the level already.
        enforced: Whether the store keeps readers out; if not, the level is only written down.
        dry_run: Nothing was changed.
    """

    record: Record
    changed: bool
    enforced: bool
    dry_run: bool


def promote(
    checkpoint: str | Path | None = None,
    *,
    target: str | None = None,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    warn: Callable[[str], None] = lambda _line: None,
) -> PromoteResult:
    """Raises the visibility of the published bundle.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        target: The level; default: the wish that was recorded when publishing. Never silently ``public``.
        options: Settings of the backend.
        dry_run: Check and change nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        CheckpointNotFoundError: Nothing was published from it.
        UsageError: No target, an embargo that has not ended, or a level below the present one.
        AriError: As the backend says; the failure is noted in the record.
    """
    folder = find_checkpoint(checkpoint)
    record = published_record(folder)
    dry_run = dry_run or is_dry_run()
    with open_recorded(folder, record, options, warn) as store:
        able = store.probe()
        kind = able.visibility
        level = _target(record, target, keeps_embargo=able.embargo)
        present = Visibility(check_wish(record.visibility))
        if level.rank < present.rank:
            raise UsageError(
                f"visibility only moves up: this bundle is {present}, which is above {level}",
                hint="nothing was changed",
            )
        if dry_run:
            would = record.model_copy(update={"visibility": str(level)})
            return PromoteResult(would, changed=level != present, enforced=kind == "enforced", dry_run=True)
        try:
            locator = store.resolve(record.ref)
            require_own(store, locator, record)  # what is gone cannot be promoted, and what is another's must not
            if kind != "none":
                level = store.raise_visibility(locator, level)
        except AriError:
            write_record(folder, record.with_event("promotion failed", promote_failed_at=now()))
            raise
    changed = level != present
    done = record.with_event("promoted", visibility=str(level), promoted_at=now(), promote_failed_at=None)
    write_record(folder, done)
    return PromoteResult(done, changed=changed, enforced=kind == "enforced", dry_run=False)


def published_record(checkpoint: Path) -> Record:
    """Returns the record of a checkpoint from which something is published.

    Raises:
        CheckpointNotFoundError: Nothing is.
    """
    record = read_record(checkpoint)
    if record is None or not record.ref:
        raise CheckpointNotFoundError(
            f"nothing is published from {quoted(str(checkpoint))}", hint="run `ari ear publish` first"
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


def _target(record: Record, target: str | None, *, keeps_embargo: bool) -> Visibility:
    end = embargo_end(target) or embargo_end(record.wish)
    if end and end > datetime.now(UTC).date() and not keeps_embargo:
        raise UsageError(
            f"the bundle is under an embargo until {end.isoformat()}",
            hint="promote it on that day, or publish again with another --visibility",
        )
    wish = target or record.wish
    if isinstance(end, date) and embargo_end(wish):
        return Visibility.PUBLIC
    if wish in {None, Visibility.STAGED} and target is None:
        raise NoTargetError(
            "promote to which level? publish.yaml asks for none above staged",
            hint=f"give --target, one of: {', '.join(level for level in Visibility if level.rank)}",
        )
    return Visibility(check_wish(str(wish)))
