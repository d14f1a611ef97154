"""Stores an archive in S3 by the backend's own put, verified while it is sent; what `ari` commands do inside.

Usage: s3_put.py ARCHIVE SHA256 KEY=VALUE...
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from ari_core.contract import NewArtifact
from ari_core.limits import Limits
from ari_core.settings import open_backend
from ari_core.verifying import VerifyingSource
from ari_core.workflows.refs import LocalFile

archive = Path(sys.argv[1])
options = dict(argument.split("=", 1) for argument in sys.argv[3:])
source = VerifyingSource(
    LocalFile(archive),
    size=archive.stat().st_size,
    archive_sha256=sys.argv[2],
    limits=Limits.from_environment(),
)
with open_backend("s3", options) as store:
    artifact, created = store.put(source, NewArtifact(created=datetime.now(UTC)))
    if not created:
        sys.exit("it was there before")
    print(store.ref(artifact.locator))
