"""Take back what was published, as far as the store allows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ari_core.errors import NotFound
from ari_core.record import Record, change_record
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.promote import open_recorded, published_record, require_own
from ari_core.workflows.publish import is_dry_run


def delete(
    checkpoint: str | Path | None = None,
    *,
    options: Mapping[str, str] | None = None,
    dry_run: bool = False,
    warn: Callable[[str], None] = lambda _line: None,
) -> Record:
    """Deletes the published bundle from its store; copies elsewhere stay.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        options: Settings of the backend.
        dry_run: Check and change nothing; ``$ARI_PUBLISH_DRYRUN`` does the same.
        warn: Told at once what a backend has to say, one line each.

    Returns:
        The record as it stands now, without a ref; for a dry run, as it was.

    Raises:
        CheckpointNotFoundError: Nothing was published from it.
        Unsupported: The store deletes nothing, or not this.
        AlreadyExists: Another bundle is in that place by now; it was not touched.
        AriError: As the backend says.
    """
    folder = find_checkpoint(checkpoint)
    record = published_record(folder)
    with (
        open_recorded(folder, record, options, warn) as store,
        contextlib.suppress(NotFound),
    ):  # absent is what was asked for
        locator = store.resolve(record.ref)
        require_own(store, locator, record)
        if not (dry_run or is_dry_run()):
            store.delete(locator)
    if dry_run or is_dry_run():
        return record
    return change_record(folder, _without_place)


def _without_place(record: Record) -> Record:
    gone = record.with_event("deleted", backend=record.backend, ref=record.ref, bundle_sha256=record.bundle_sha256)
    return gone.model_copy(update={"ref": "", "archive_sha256": None, "pending": None})
