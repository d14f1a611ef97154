"""A clone that is killed, interrupted or failed by the system at any call: all or nothing, and it can be repeated.

strace makes one chosen system call of a run fail, or sends a signal as it begins. Every run takes a sample of the
calls; `pytest --long tests/core/test_crash.py` takes all of them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.archives import MANIFEST, bundle, bundle_digest, manifest
from support.places import Place, photograph, tree, umask
from support.strace import CHANGING, Zygote, calls_in, sample

from ari_core.workflows.clone import clone

pytestmark = pytest.mark.needs("strace")

FILES = {"a.txt": b"alpha\n", "code/run.sh": b"#!/bin/sh\n", "data/big.bin": bytes(300_000), "empty": b""}
EXPECTED = bundle_digest(FILES)
KEPT = {"canary.txt", "folder", "link"}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    work = tmp_path_factory.mktemp("zygote")
    warm = Place(work / "warm")
    path = warm.put(bundle(FILES, position=-1))
    started = Zygote(work, ["clone", path, warm.dest, "--expect-sha256", EXPECTED])
    yield started
    started.close()


@pytest.fixture
def place(tmp_path):
    with umask(0o022):
        yield Place(tmp_path)


class Shape:
    """One way to clone: its arguments, and whether what is at the destination is complete."""

    def __init__(self, place, how):
        self.place, self.how = place, how
        position = -1 if how == "manifest-last" else 0
        self.archive = place.put(bundle(FILES, position=position, executables=("code/run.sh",)))
        self.source = self.archive
        if how == "folder":
            self.source = place.archives / "unpacked"
            clone(str(self.archive), self.source)
        options = ["--no-extract"] if how == "no-extract" else []
        self.arguments = ["clone", self.source, place.dest, "--expect-sha256", EXPECTED, *options]
        self.before = self.beside()

    def beside(self):
        found = photograph(self.place.parent)
        return {path: what for path, what in found.items() if path.split("/")[0] in KEPT}

    def complete(self):
        dest = self.place.dest
        if self.how == "no-extract":
            return dest.read_bytes() == self.archive.read_bytes()
        wanted = {path: (data, path == "code/run.sh") for path, data in FILES.items()}
        return tree(dest) == {MANIFEST: (manifest(FILES), False), **wanted}

    def clear(self):
        """Removes the destination, if it is there."""
        if self.place.dest.is_dir():
            shutil.rmtree(self.place.dest)
        elif os.path.lexists(self.place.dest):
            self.place.dest.unlink()

    def assert_all_or_nothing(self, what):
        """The destination is absent or complete, and what lay beside it is as it was."""
        there = os.path.lexists(self.place.dest)
        assert not there or self.complete(), what
        assert self.beside() == self.before, what
        return there

    def assert_repeatable(self, what):
        """A second run succeeds and leaves nothing but its result, whatever the first one left."""
        self.clear()
        clone(str(self.source), self.place.dest, expect_sha256=EXPECTED, extract=self.how != "no-extract")
        assert self.complete(), what
        assert set(os.listdir(self.place.parent)) == KEPT | {"dest"}, what
        self.clear()


HOWS = ["manifest-first", "manifest-last", "folder", "no-extract"]


@pytest.fixture(params=HOWS)
def shape(request, place):
    return Shape(place, request.param)


def calls_of_a_clean_run(zygote, shape):
    """What the main thread calls: name, how manieth of that name, first argument; without gate and exit."""
    code, output, log = zygote.run(shape.arguments)
    if not log:
        pytest.skip("strace cannot attach to a process here")
    assert code == 0, output
    assert shape.complete()
    shape.clear()
    return calls_in(log)


def test_killed_at_any_system_call(zygote, shape, request):
    calls = calls_of_a_clean_run(zygote, shape)
    spots = sample(calls, request)
    survived = killed = 0
    for name, at, _ in spots:
        what = f"{name} number {at}"
        code, output, _ = zygote.run(shape.arguments, f"{name}:signal=KILL:when={at}")
        assert code in (-9, 0), (what, output)  # how often it waits for its other thread varies
        killed += code == -9
        survived += shape.assert_all_or_nothing(what)
        shape.assert_repeatable(what)
    assert killed > 0.8 * len(spots)
    assert survived < 0.8 * len(spots)


def test_interrupted_at_any_system_call(zygote, shape, request):
    calls = calls_of_a_clean_run(zygote, shape)
    for name, at, _ in sample(calls, request):
        what = f"{name} number {at}"
        code, output, _ = zygote.run(shape.arguments, f"{name}:signal=INT:when={at}")
        assert "Traceback" not in output, (what, output)
        there = shape.assert_all_or_nothing(what)
        if code == 0:
            assert there, what  # too late to matter
        else:
            assert code == 130, (what, output)
            assert "error: interrupted" in output.splitlines(), (what, output)
        assert set(os.listdir(shape.place.parent)) - KEPT <= {"dest"}, (what, output)
        shape.assert_repeatable(what)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS"])
def test_any_changing_system_call_fails(zygote, shape, error, request):
    calls = calls_of_a_clean_run(zygote, shape)
    spots = [spot for spot in calls if spot[0] in CHANGING and not (spot[0] == "write" and spot[2] in {"1", "2"})]
    # An archive that is only stored is written by the thread that reads it.
    assert {"write" if shape.how != "no-extract" else "fsync"} <= {name for name, _, _ in spots}
    failed = 0
    for name, at, _ in sample(spots, request):
        what = f"{name} number {at}: {error}"
        code, output, _ = zygote.run(shape.arguments, f"{name}:error={error}:when={at}")
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in output, (what, output)
        there = shape.assert_all_or_nothing(what)
        left = set(os.listdir(shape.place.parent)) - KEPT - {"dest"}
        assert not left or there, (what, output)  # what failed after the result appeared was the cleaning up
        if code:
            failed += 1
            assert code in {1, 2, 4, 5}, (what, code, output)
            assert len(lines) == 1, (what, output)
            assert error != "ENOSPC" or code == 5, (what, code, output)
        else:
            assert there, (what, output)
        shape.assert_repeatable(what)
    assert failed


def test_a_full_disk(tmp_path):
    """Not one failing call, but a file system that is full from some moment on."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        place = Place(small / "place")
        archive = tmp_path / "bundle.tar.gz"
        archive.write_bytes(bundle(FILES))
        before = place.photograph()
        ari = Path(sys.executable).with_name("ari")
        run = subprocess.run([ari, "clone", archive, place.dest], capture_output=True, text=True, check=False)
        assert run.returncode == 5, run.stderr
        assert run.stderr.startswith("error: ")
        assert "No space left" in run.stderr
        assert place.photograph() == before
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        subprocess.run([ari, "clone", archive, place.dest], capture_output=True, check=True)
        assert tree(place.dest).keys() == {MANIFEST, *FILES}
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        run = subprocess.run(
            [ari, "clone", archive, f"{place.dest}2"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 4, run.stderr
        assert not Path(f"{place.dest}2").exists()
    finally:
        subprocess.run(["umount", small], check=True)
