"""Installed packages made up for one test: real metadata and real modules in a folder on the path."""

import importlib.metadata
import sys
from pathlib import Path
from textwrap import dedent

from ari_core.plugins import load_plugins

HEAD = """
from ari_core.contract import BackendSpec, Claim, CommandGroupSpec
from ari_core.plugins import hookimpl

def spec(name="shelf", backend="nowhere:Nothing", help="a shelf", claims=lambda ref: Claim.NO, api=1, **more):
    return BackendSpec(name, backend, help, claims, api, **more)
"""


class Packages:
    """A folder with packages in it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def module(self, name, source, head=HEAD):
        (self.folder / f"{name}.py").write_text(head + dedent(source))

    def package(self, name, source=None, *, entry="shelf", version="1.0", entry_points=None, requires=()):
        """Makes a package whose module, named like it, is the plugin."""
        module = name.replace("-", "_").replace(".", "_")
        if source is not None:
            self.module(module, source)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {line}" for line in requires]
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        (info / "entry_points.txt").write_text(entry_points or f"[ari_registry]\n{entry} = {module}\n")

    def offering(self, name, backend, *, entry=None):
        """Makes a package with one backend."""
        self.package(
            name, f"@hookimpl\ndef ari_backends():\n    return [spec({backend!r})]\n", entry=entry or backend
        )

    def load(self, **environment):
        """Loads the plugins of these packages and the built-in ones."""
        here = importlib.metadata.distributions(path=[str(self.folder)])
        return load_plugins([*here, importlib.metadata.distribution("ari-registry")], environment)


def forget_modules(before):
    """Lets the next test import afresh what this one imported."""
    for name in set(sys.modules) - before:
        if not name.startswith(("ari_core", "ari_backends", "pydantic")):
            del sys.modules[name]
