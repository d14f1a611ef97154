"""The contract fits the built-in stores: a typed sketch of each stands beside the decision to freeze it."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ari_core import contract
from ari_core.conformance import BackendContract
from ari_core.contract import Backend, OpenContext

ROOT = Path(__file__).parents[2]
SKETCHES = sorted((ROOT / "docs/decisions/0003-stubs").glob("*.py"))
BUILT_IN = {"local-tarball", "filesystem-registry", "s3", "zenodo", "ari-registry", "https"}
FOR_AUTHORS = {
    name: method
    for name, method in vars(Backend).items()
    if inspect.isfunction(method) and not hasattr(method, "__final__") and not name.startswith("__")
}
PROTOCOLS = {
    protocol: {
        name: method
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    for protocol in vars(contract).values()
    if inspect.isclass(protocol) and protocol.__name__.startswith("Supports")
}
OPTIONAL = {name: method for methods in PROTOCOLS.values() for name, method in methods.items()}


def sketched(path):
    spec = importlib.util.spec_from_file_location(f"sketch_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pydantic look up annotations
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    (cls,) = [
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, Backend) and thing is not Backend
    ]
    return cls


@pytest.fixture(params=SKETCHES, ids=lambda path: path.stem)
def sketch(request):
    return sketched(request.param)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def test_each_built_in_store_has_a_sketch():
    assert {sketched(path).name for path in SKETCHES} == BUILT_IN


def test_a_sketch_is_a_whole_backend(sketch):
    backend = sketch(sketch.Settings(), OpenContext())  # refused while a method is missing
    owed = BackendContract()
    owed.test_declared_is_implemented(backend)
    owed.test_settings(backend)
    owed.test_name(backend)


def test_its_methods_are_those_of_the_contract(sketch):
    written = vars(sketch)
    compared = {name: method for name, method in (FOR_AUTHORS | OPTIONAL).items() if name in written}
    assert {name: parameters(written[name]) for name in compared} == {
        name: parameters(method) for name, method in compared.items()
    }
    assert compared.keys() >= {"_resolve", "_ref", "_stat", "_open"}


def test_an_optional_protocol_is_written_whole_or_not_at_all(sketch):
    for protocol, methods in PROTOCOLS.items():  # `Backend.optional` would take a part of it for nothing
        assert methods.keys() & vars(sketch).keys() in ({*methods}, set()), protocol.__name__


def test_the_sketches_are_typed(pytestconfig):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",  # the project's names its packages, and these are none
            "--python-version=3.11",
            "--follow-imports=silent",
            f"--cache-dir={pytestconfig.cache.mkdir('mypy')}",
            *(path.name for path in SKETCHES),
        ],
        cwd=SKETCHES[0].parent,
        env={**os.environ, "MYPYPATH": str(ROOT / "core")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
