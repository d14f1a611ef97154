"""Take back what was published, as far as the store allows it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ari_core.errors import NotFound
from ari_core.record import Record, write_record
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.promote import open_recorded, published_record


def delete(checkpoint: str | Path | None = None, *, options: Mapping[str, str] | None = None) -> Record:
    """Deletes the published bundle from its store; copies elsewhere stay.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        options: Settings of the backend.

    Returns:
        The record as it stands now, without a ref.

    Raises:
        CheckpointNotFoundError: Nothing was published from it.
        Unsupported: The store deletes nothing, or not this.
        AriError: As the backend says.
    """
    folder = find_checkpoint(checkpoint)
    record = published_record(folder)
    with (
        open_recorded(folder, record, options) as store,
        contextlib.suppress(NotFound),
    ):  # absent is what was asked for
        store.delete(store.resolve(record.ref))
    gone = record.with_event("deleted", backend=record.backend, ref=record.ref, bundle_sha256=record.bundle_sha256)
    gone = gone.model_copy(update={"ref": "", "archive_sha256": None, "pending": None})
    write_record(folder, gone)
    return gone
