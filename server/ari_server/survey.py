"""What a store has, as rows of the index: its listing, and where that leaves something out, its manifests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from ari_core.contract import Artifact, Backend, Locator, SupportsManifest, Visibility
from ari_core.digests import is_sha256
from ari_core.errors import IntegrityError, NotFound, Unsupported, VerificationError
from ari_core.layout import ID_DIGITS
from ari_core.limits import Limits
from ari_core.manifest import MAX_SIZE, Manifest, parse_manifest
from ari_core.names import quoted
from ari_core.verification import read_manifest
from ari_core.workflows.refs import BackendSource
from ari_server.rows import Row, SupportsFind, shown_text

SEARCH_CHARACTERS: Final = 64 * 1024
"""Of file names, that a search looks through."""

_LONGEST_NAME: Final = 500  # PostgreSQL indexes 2,700 bytes
_AT_A_TIME: Final = 8  # questions to a store
_MOST_WARNINGS: Final = 100
_LAST_PART: Final = re.compile(r"([0-9a-f]{1,64})/?$")
_FROM_CONTENT: Final = ("bundle_sha256", "file_count", "total_bytes", "license", "title", "manifest_sha256")


class Survey:
    """Describes what a store has, as far as its listing and its manifests tell."""

    def __init__(self, backend: Backend, id_digits: int) -> None:
        self._backend, self._id_digits = backend, id_digits
        self._manifests = backend.optional(SupportsManifest)
        self._finder = backend.optional(SupportsFind)
        self._limits = Limits.from_environment()
        self.warnings: list[str] = []

    def describe(self, batch: Iterable[Artifact], known: Mapping[str, Row]) -> list[tuple[Row, str]]:
        """Returns rows and file names, each archive once."""
        artifacts = list(batch)
        found: dict[str, tuple[Row, str]] = {}
        for artifact, described in zip(artifacts, self._each(artifacts, known), strict=True):
            if described is None:
                continue
            if not _can_hold(described[0]):
                self.warn(f"left out: {quoted(artifact.locator)} has sizes or names that cannot be")
            elif described[0].archive_sha256 in found:
                self.warn(f"left out: {quoted(artifact.locator)} holds the same archive as another place")
            else:
                found[described[0].archive_sha256] = described
        return list(found.values())

    def look(self, archive_sha256: str, locators: Iterable[Locator]) -> Artifact | None:
        """Returns the artifact with this archive, which is at one of these places if they are not empty."""
        tried = [locator for locator in locators if locator]
        if not tried and self._finder is not None:
            with suppress(NotFound):
                tried = [self._finder.find(archive_sha256)]
        elif not tried:
            return self._search(archive_sha256)
        for locator in tried:
            with suppress(NotFound):
                artifact = self._backend.stat(locator)
                if artifact.archive_sha256 == archive_sha256:
                    return artifact
        return None

    def warn(self, line: str) -> None:
        """Keeps a warning, unless there are too many."""
        if len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(line)
        elif len(self.warnings) == _MOST_WARNINGS:
            self.warnings.append("and more")

    def _search(self, archive_sha256: str) -> Artifact | None:
        # Only for stores that cannot find by digest, and only after a crash.
        return next((a for a, _ in self._backend.list() if a.archive_sha256 == archive_sha256), None)

    def _each(self, batch: Sequence[Artifact], known: Mapping[str, Row]) -> Iterable[tuple[Row, str] | None]:
        if all(map(_is_told, batch)):
            return [self._tried(artifact, known) for artifact in batch]
        with ThreadPoolExecutor(_AT_A_TIME, "ari-survey") as pool:  # the store is asked for every single one
            return list(pool.map(lambda artifact: self._tried(artifact, known), batch))

    def _tried(self, artifact: Artifact, known: Mapping[str, Row]) -> tuple[Row, str] | None:
        try:
            return self._describe(artifact, known)
        except NotFound:
            return None  # deleted meanwhile

    def _describe(self, artifact: Artifact, known: Mapping[str, Row]) -> tuple[Row, str] | None:
        if not _is_told(artifact):
            artifact = self._backend.stat(artifact.locator)
        archive_sha256, size = artifact.archive_sha256, artifact.size
        if archive_sha256 is None or not is_sha256(archive_sha256) or size is None:
            self.warn(f"left out: the store does not say what {quoted(artifact.locator)} holds")
            return None
        before = known.get(archive_sha256)
        created = artifact.created or (before.created if before else datetime.now(UTC))
        row = Row(
            id=before.id if before else self._issued(artifact.locator, archive_sha256),
            archive_sha256=archive_sha256,
            bundle_sha256=artifact.bundle_sha256,
            size=size,
            visibility=artifact.visibility or Visibility.STAGED,
            created=created.replace(microsecond=0),
            locator=artifact.locator,
            owners=artifact.owners or (),
        )
        if before and before.file_count is not None:
            return replace(row, **{name: getattr(before, name) for name in _FROM_CONTENT}), ""
        manifest = self._manifest(artifact)
        if manifest is None:
            return row, ""
        told = artifact.description or {}
        described = replace(
            row,
            bundle_sha256=manifest.bundle_sha256,
            file_count=len(manifest.files),
            total_bytes=manifest.total_size,
            license=shown_text(manifest.publish.get("license")) or shown_text(told.get("license")),
            title=before.title if before else shown_text(told.get("title")),
            manifest_sha256=hashlib.sha256(manifest.raw).hexdigest(),
        )
        names = "\n".join(entry.path for entry in islice(manifest.files, SEARCH_CHARACTERS))
        return described, names[:SEARCH_CHARACTERS]

    def _issued(self, locator: Locator, archive_sha256: str) -> str:
        """Returns the id that is printed somewhere, if the store's ref ends with it."""
        last = _LAST_PART.search(self._backend.ref(locator))
        if last and len(last[1]) >= ID_DIGITS and archive_sha256.startswith(last[1]):
            return last[1]
        return archive_sha256[: self._id_digits]

    def _manifest(self, artifact: Artifact) -> Manifest | None:
        try:
            return parse_manifest(self._manifest_bytes(artifact), self._limits)
        except NotFound:
            raise
        except (VerificationError, IntegrityError) as error:
            self.warn(f"the manifest of {quoted(artifact.locator)} cannot be read: {error.message}")
            return None

    def _manifest_bytes(self, artifact: Artifact) -> bytes:
        if self._manifests is not None:
            with suppress(Unsupported):
                return self._manifests.manifest(artifact.locator)
        return read_manifest(BackendSource(self._backend, artifact.locator, artifact.size), self._limits)


def _is_told(artifact: Artifact) -> bool:
    """Says whether a listing left nothing out that an index needs."""
    return None not in (artifact.archive_sha256, artifact.size, artifact.visibility, artifact.owners)


def _can_hold(row: Row) -> bool:
    """Says whether every database takes it: a stranger may have written what is in the store."""
    names = [owner.user for owner in row.owners]
    text = "".join((row.locator, row.bundle_sha256 or "", *names))
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    may_be_text = "\0" not in text and all(len(name) <= _LONGEST_NAME for name in names)
    return may_be_text and max(row.size, row.total_bytes or 0) <= MAX_SIZE
