"""Stores an archive that is known to be sound, by the backend's own put: the writing half of a mirror.

Usage: put_alone.py ARCHIVE SHA256 BACKEND KEY=VALUE...; its manifest lies beside it.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from ari_core.bundle.writer import Written
from ari_core.contract import NewArtifact
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.settings import open_backend
from ari_core.workflows.spool import PackedFile

archive = Path(sys.argv[1])
manifest = parse_manifest(archive.with_name("manifest.lock").read_bytes(), Limits.from_environment())
source = PackedFile(archive, Written(archive.stat().st_size, sys.argv[2]), manifest, linkable=False)
with open_backend(sys.argv[3], dict(argument.split("=", 1) for argument in sys.argv[4:])) as store:
    artifact, created = store.put(source, NewArtifact(created=datetime.now(UTC)))
    if not created:
        sys.exit("it was there before")
    print(store.ref(artifact.locator))
