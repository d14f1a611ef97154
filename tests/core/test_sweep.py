"""Sweeping: what interrupted runs left goes, is told of as it goes, and nothing young is touched."""

import json
import tracemalloc
from datetime import timedelta

import pytest
from support.memory import MemoryBackend, MemorySettings
from support.packages import Packages, forget_modules

from ari_core import settings
from ari_core.cli import main
from ari_core.errors import Unavailable, Unsupported, UsageError
from ari_core.workflows.sweep import SweepResult, sweep

STORE = """
from datetime import UTC, datetime
from support.memory import MemoryBackend, MemoryTroubleError
from ari_core.contract import Leftover

class Attic(MemoryBackend):
    name = "attic"
    there = [("unfinished upload", "one", 5_000_000), ("lost part", "t\\x1bwo", None), ("lost part", "three", 70)]
    asked, fails = [], False
    def sweep(self, older_than, *, dry_run):
        self.asked.append((older_than, dry_run))
        for what, name, size in list(self.there):
            if not dry_run:
                self.there.remove((what, name, size))
            self.asked.append(name)
            yield Leftover(what, name, size, datetime(2026, 11, 23, 12, 30, tzinfo=UTC))
        if self.fails:
            raise MemoryTroubleError("down")

class Hall(MemoryBackend):
    name = "hall"

class Cellar(MemoryBackend):
    name = "cellar"
    def sweep(self, older_than, *, dry_run):
        since = datetime(2026, 11, 23, tzinfo=UTC)
        return (Leftover("lost part", f"part {i} {'x' * 100}", 1, since) for i in range(20_000))
"""
DAY = timedelta(days=1)


@pytest.fixture
def attic(tmp_path, monkeypatch):
    """A store with leftovers, as a plugin has it."""
    before = set(__import__("sys").modules)
    packages = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(packages.folder))
    packages.module("rooms", STORE, head="")
    specs = "spec('attic', 'rooms:Attic'), spec('hall', 'rooms:Hall'), spec('cellar', 'rooms:Cellar')"
    packages.package("house", f"@hookimpl\ndef ari_backends():\n    return [{specs}]\n", entry="house")
    loaded = packages.load()
    monkeypatch.setattr(settings, "load_plugins", lambda: loaded)
    yield __import__("rooms").Attic
    forget_modules(before)


def test_what_is_left_over_goes_and_is_told(attic):
    told = []
    done = sweep("attic", tell=told.append)
    assert [leftover.name for leftover in told] == ["one", "t\x1bwo", "three"]
    assert attic.there == []
    assert attic.asked[0] == (DAY, False)
    kinds = {"unfinished upload": 1, "lost part": 2}
    assert done == SweepResult("attic", dry_run=False, count=3, size=5_000_070, kinds=kinds)


def test_each_is_told_before_the_next_one_is_looked_for(attic):
    sweep("attic", tell=lambda leftover: attic.asked.append(f"told {leftover.name}"))
    assert attic.asked[1:5] == ["one", "told one", "t\x1bwo", "told t\x1bwo"]


def test_ever_so_many_are_not_kept(attic):
    tracemalloc.start()
    try:
        assert sweep("cellar").count == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["asked for", "by variable"])
def test_a_dry_run_removes_nothing(attic, monkeypatch, how):
    if how == "by variable":
        monkeypatch.setenv("ARI_PUBLISH_DRYRUN", "1")
    done = sweep("attic", dry_run=how == "asked for", older_than=timedelta(days=7))
    assert (done.dry_run, done.count, len(attic.there)) == (True, 3, 3)
    assert attic.asked[0] == (timedelta(days=7), True)


def test_what_may_be_an_upload_under_way_is_never_swept(attic):
    with pytest.raises(UsageError, match="still under way"):
        sweep("attic", older_than=timedelta(minutes=59, seconds=59), dry_run=True)
    assert attic.asked == []
    assert sweep("attic", older_than=timedelta(hours=1), dry_run=True).count == 3


def test_a_store_that_fails_in_the_middle_says_so_in_our_words(attic):
    attic.fails = True
    with pytest.raises(Unavailable) as caught:
        sweep("attic")
    assert caught.value.message == "the store does not answer; 3 were removed before"
    with pytest.raises(Unavailable) as caught:
        sweep("attic", dry_run=True)
    assert caught.value.message == "the store does not answer"


def test_a_store_without_leftovers(attic, capsys):
    with pytest.raises(Unsupported):
        sweep("hall")
    assert main(["backends", "gc", "hall"]) == 2
    assert "the backend 'hall' has no leftovers that could be swept" in capsys.readouterr().err


def test_the_command_lists_what_goes_with_sizes_and_a_total(attic, capsys):
    assert main(["backends", "gc", "attic", "--dry-run", "--older-than", "2d"]) == 0
    lines = [
        "unfinished upload  one  5.0 MB  since 2026-11-23 12:30",
        "lost part  t\\x1bwo  size unknown  since 2026-11-23 12:30",
        "lost part  three  70 bytes  since 2026-11-23 12:30",
    ]
    assert capsys.readouterr().out.splitlines() == [*lines, "would remove 3 in all, 5.0 MB"]
    assert attic.asked[0] == (timedelta(days=2), True)
    assert main(["backends", "gc", "attic"]) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, "removed 3 in all, 5.0 MB"]
    assert main(["backends", "gc", "attic"]) == 0
    assert capsys.readouterr().out.splitlines() == ["removed 0 in all, 0 bytes"]


def test_as_json_it_is_one_object_with_numbers(attic, capsys):
    assert main(["backends", "gc", "attic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "backend": "attic",
        "dry_run": False,
        "count": 3,
        "size": 5_000_070,
        "kinds": {"unfinished upload": 1, "lost part": 2},
    }


@pytest.mark.parametrize("age", ["30m", "0h", "yesterday", "2026-01-01"])
def test_an_age_that_is_none_sweeps_nothing(attic, capsys, age):
    assert main(["backends", "gc", "attic", "--older-than", age]) == 2
    assert attic.asked == []


def test_through_wrappers_an_error_in_the_middle_is_still_ours(attic):
    from ari_core.contract import SupportsSweep
    from ari_core.wrappers import ReadOnlyBackend, patient

    attic.fails = True
    inner = attic(MemorySettings())
    with pytest.raises(Unavailable):
        list(patient(inner).optional(SupportsSweep).sweep(DAY, dry_run=True))
    assert ReadOnlyBackend(inner).optional(SupportsSweep) is None
    assert MemoryBackend().optional(SupportsSweep) is None
