"""What a store is told that shows people what an artifact is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ari_core.citation import CITATION_FILES, MAX_CITATION_BYTES, describe
from ari_core.errors import ChangedSinceCurationError, CheckpointNotFoundError, from_os_error
from ari_core.fs import Staging, open_regular
from ari_core.manifest import Manifest
from ari_core.names import quoted
from ari_core.policy import load_policy
from ari_core.workflows.checkpoint import PUBLISHED, ear_of


def description(
    manifest: Manifest, files: Mapping[str, bytes], checkpoint: Path | None, *, full: bool
) -> dict[str, Any]:
    """Returns `NewArtifact.description` of a bundle.

    Args:
        manifest: Its manifest.
        files: Its citation files.
        checkpoint: Where it was curated, if that is known: its ``publish.yaml`` is asked, too.
        full: All that is known, for a store that shows it.

    Raises:
        ConfigurationError: Something in it cannot be right; names file and field.
    """
    named = manifest.publish.get("license")
    license_name = named if isinstance(named, str) else None
    if not full:
        return {"license": license_name} if license_name else {}
    section = None
    if checkpoint is not None:
        with contextlib.suppress(CheckpointNotFoundError):  # only ear_published/ was kept
            section = load_policy(ear_of(checkpoint)).zenodo
    return describe(files, section=section, license=license_name)


def published_files(checkpoint: Path, manifest: Manifest) -> dict[str, bytes]:
    """Returns the citation files in ``ear_published/``.

    Raises:
        ChangedSinceCurationError: One is not the one that its manifest lists.
        LocalPermissionError: One cannot be read.
    """
    found = {}
    for entry in manifest.files:
        if entry.path in CITATION_FILES:
            data = _read(checkpoint / PUBLISHED / entry.path)
            if entry.size <= MAX_CITATION_BYTES and hashlib.sha256(data).hexdigest() != entry.sha256:
                raise ChangedSinceCurationError(f"{PUBLISHED}/{entry.path} is not the file that was curated")
            found[entry.path] = data
    return found


class CitationFiles:
    """A `Sink` that keeps the citation files of an archive that is verified, and drops everything else."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._kept: list[str] = []

    def create(self, path: str, *, executable: bool) -> int:  # noqa: ARG002 - a sink's signature
        """Returns a descriptor to write the file `path` to."""
        try:
            if path not in CITATION_FILES:
                return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._staging.fd)
        except OSError as error:
            raise from_os_error(error, f"creating a file in {quoted(str(self._staging.folder))}") from error
        self._kept.append(path)
        return fd

    def read(self) -> dict[str, bytes]:
        """Returns the citation files by name, once the archive has verified."""
        return {name: _read(self._staging.path / name) for name in self._kept}


def _read(path: Path) -> bytes:
    """Reads as much of a citation file as `describe` needs to say that it is too large."""
    try:
        with os.fdopen(open_regular(path, follow=False), "rb") as file:
            return file.read(MAX_CITATION_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, f"reading {quoted(str(path))}") from error
