"""Say where a checkpoint stands, from what lies in it; asks no store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ari_core.errors import ArchiveRefusedError
from ari_core.fs import was_interrupted
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.names import MANIFEST_NAME
from ari_core.record import Record, read_record
from ari_core.verification import read_tree_manifest
from ari_core.wish import embargo_end
from ari_core.workflows.checkpoint import EAR, PUBLISHED, find_checkpoint


@dataclass(frozen=True, slots=True)
class StatusResult:
    """Where a checkpoint stands.

    Attributes:
        checkpoint: The checkpoint.
        has_ear: Whether there is ``ear/``.
        curated_sha256: Bundle digest of ``ear_published/``, or None.
        record: The publish record, or None.
        copies: The record as it is seen from each further place.
        published_is_curated: Whether what is published is what is curated now.
        embargo_ends: Day on which an embargo ends, or None.
        curation_interrupted: A curation stopped half-way; the next one mends it.
    """

    checkpoint: Path
    has_ear: bool
    curated_sha256: str | None
    record: Record | None
    copies: tuple[Record, ...]
    published_is_curated: bool
    embargo_ends: date | None
    curation_interrupted: bool


def status(checkpoint: str | Path | None = None, *, limits: Limits | None = None) -> StatusResult:
    """Reads what a checkpoint says of itself.

    Raises:
        CheckpointNotFoundError: There is no checkpoint.
        ConfigurationError: Its record is not one.
    """
    folder = find_checkpoint(checkpoint)
    limits = limits or Limits.from_environment()
    try:
        curated = parse_manifest(
            read_tree_manifest(folder / PUBLISHED / MANIFEST_NAME, limits), limits
        ).bundle_sha256
    except ArchiveRefusedError:
        curated = None
    record = read_record(folder)
    return StatusResult(
        checkpoint=folder,
        has_ear=(folder / EAR).is_dir(),
        curated_sha256=curated,
        record=record,
        copies=tuple(place for place in record.places() if place.ref != record.ref) if record else (),
        published_is_curated=bool(record and record.ref and record.bundle_sha256 == curated),
        embargo_ends=embargo_end(record.wish) if record else None,
        curation_interrupted=was_interrupted(folder, PUBLISHED),
    )
