"""Many processes that do one thing with a filesystem-registry at the same moment."""

import json
import os
import subprocess
import sys

PREPARE = """
import json, os, sys, tempfile
from datetime import UTC, datetime
from pathlib import Path
from ari_backends import _local
from ari_backends.filesystem_registry import FilesystemRegistry
from ari_core.conformance import make_bundle
from ari_core.contract import Locator, NewArtifact, Visibility
from ari_core.errors import AriError

root, count, job = Path(sys.argv[1]), int(sys.argv[2]), compile(sys.argv[3], "job", "eval")

def store():
    return FilesystemRegistry(FilesystemRegistry.Settings(root=root))

def put(seed, owner="ada", at=root):
    backend = FilesystemRegistry(FilesystemRegistry.Settings(root=at))
    return backend.put(make_bundle(seed=seed).source(), NewArtifact(datetime.now(UTC), owner=owner))

with tempfile.TemporaryDirectory() as folder:
    put(0, at=folder)  # imports all there is to import: a child may be another user

def result(number):
    try:
        return eval(job, {**globals(), "number": number})
    except AriError as error:
        return type(error).__name__

gate, key = os.pipe()
pids = []
for number in range(count):
    pids.append(os.fork())
    if not pids[-1]:
        os.close(key)
        os.read(gate, 1)  # until the parent lets everybody go at once
        try:
            os.write(1, (json.dumps(result(number)) + "\\n").encode())
        finally:
            os._exit(0)
os.close(key)
for pid in pids:
    os.waitpid(pid, 0)
"""


def at_once(root, count, job):
    """Evaluates `job`, an expression, in `count` processes at once; returns its values, and names of errors."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(root), str(count), job],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == count, found
    return found
