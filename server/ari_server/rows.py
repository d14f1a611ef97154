"""What the index tells of one artifact, and what it asks a store for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, runtime_checkable

from ari_core.contract import Locator, Owner, Visibility

_LONGEST_TEXT: Final = 1000


@runtime_checkable
class SupportsFind(Protocol):
    """A store that knows the locator of an archive by its digest, as `ari_core.layout.StoredLayout` does."""

    def find(self, digits: str) -> Locator:
        """Returns the locator; `NotFound` when there is none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stored artifact.

    Attributes:
        id: The id it was given, the first digits of its archive digest.
        archive_sha256: Digest of the archive's bytes.
        bundle_sha256: Digest of the canonical file list; None: not known without reading the bundle.
        size: Bytes of the archive.
        visibility: The effective level, the highest of all owners' and its own.
        created: When it was stored, UTC, in whole seconds.
        locator: Where it is in the store.
        owners: Each with a level of their own.
        file_count: Files in the bundle, or None as above; so are the next three.
        total_bytes: Size of all of them.
        license: SPDX, as the manifest or else the uploader says.
        title: As the uploader says.
        manifest_sha256: Digest of the manifest's bytes.
    """

    id: str
    archive_sha256: str
    bundle_sha256: str | None
    size: int
    visibility: Visibility
    created: datetime
    locator: Locator
    owners: tuple[Owner, ...] = ()
    file_count: int | None = None
    total_bytes: int | None = None
    license: str | None = None
    title: str | None = None
    manifest_sha256: str | None = None

    def owner(self, user: str | None) -> Owner | None:
        """Returns `user` as one of the owners, or None."""
        return next((owner for owner in self.owners if owner.user == user), None)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of an artifact that a paper may cite and whose last owner deleted it."""

    archive_sha256: str
    id: str
    deleted: datetime


@dataclass(frozen=True, slots=True)
class Intent:
    """A change of the store that was begun; one that stays was cut off by a crash."""

    archive_sha256: str
    locator: Locator
    begun: datetime
    who: str = ""


def shown_text(value: object) -> str | None:
    """Returns a title or license as it is shown: every request reads it, so it cannot be as long as one likes."""
    if not isinstance(value, str):
        return None
    text = value[:_LONGEST_TEXT].replace("\0", "")  # which not every database keeps
    return text.encode(errors="ignore").decode() or None
