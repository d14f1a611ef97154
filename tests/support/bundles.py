"""Small honest bundles, unpacked and packed by the real writer."""

import hashlib
import os

from ari_core.bundle.writer import write_bundle
from ari_core.limits import Limits
from ari_core.manifest import FileEntry, parse_manifest, render_manifest

FILES = {"README.md": b"r\n", "code/run.py": b"print(1)\n", "data/empty": b""}


def make_tree(folder, files=FILES, publish=None):
    """Writes an unpacked bundle and returns its manifest."""
    entries = []
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        entries.append(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()))
    folder.mkdir(parents=True, exist_ok=True)
    raw = render_manifest(entries, publish or {}, 0)
    (folder / "manifest.lock").write_bytes(raw)
    return parse_manifest(raw, Limits())


def make_bundle(path, files=FILES, publish=None):
    """Writes an archive and returns its manifest."""
    tree = path.with_name(path.name + ".tree")
    manifest = make_tree(tree, files, publish)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    write_bundle(tree, manifest, fd)
    os.close(fd)
    return manifest


def contents(folder):
    """Returns all files below a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
