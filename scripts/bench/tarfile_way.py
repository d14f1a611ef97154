"""Packs with Python's own tarfile at its default level, then hashes: `python tarfile_way.py FOLDER ARCHIVE`."""

import hashlib
import sys
import tarfile
from pathlib import Path

folder, archive = map(Path, sys.argv[1:])
with tarfile.open(archive, "w:gz") as tar:
    tar.add(folder, arcname=".")
with archive.open("rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
