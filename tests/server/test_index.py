"""The index: what it finds and lists, and that it comes to agree with the store whatever happens meanwhile."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydantic
import pytest

from ari_backends.filesystem_registry import FilesystemRegistry
from ari_core.conformance import make_bundle
from ari_core.conformance.knobs import new
from ari_core.contract import Artifact, Backend, Capabilities, Owner, Visibility
from ari_core.errors import (
    AlreadyExists,
    DiskError,
    IntegrityError,
    NotFound,
    QuotaExceeded,
    Unavailable,
    UsageError,
)
from ari_core.manifest import FileEntry, render_manifest
from ari_server.config import ServerConfig, create_config_environment
from ari_server.index import Index
from ari_server.rows import Row, Tombstone, shown_text

EXISTING = Path(__file__).parents[1] / "data" / "existing"
START = datetime(2026, 1, 1, tzinfo=UTC)
STAGED, PRIVATE, UNLISTED, PUBLIC = Visibility


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number, **changes):
    made = Row(
        id=sha(number)[:16],
        archive_sha256=sha(number),
        bundle_sha256=sha(f"bundle {number}"),
        size=1000 + number,
        visibility=PUBLIC,
        created=START + timedelta(seconds=number),
        locator=f"/store/{number}",
        owners=(Owner("alice", PUBLIC, START + timedelta(seconds=number)),),
        file_count=2,
        total_bytes=5000,
        license="MIT",
        title=f"Title of {number}",
        manifest_sha256=sha(f"manifest {number}"),
    )
    return replace(made, **changes)


def owned(number, *owners):
    """A row whose owners, `(user, level)`, decide its level."""
    return row(
        number,
        visibility=max((level for _, level in owners), key=lambda level: level.rank),
        owners=tuple(Owner(user, level, START) for user, level in owners),
    )


IN_FILES = pytest.mark.parametrize("config", ["sqlite"], indirect=True)


@pytest.fixture
def index(config):
    with closing(Index(config)) as opened:
        yield opened


@pytest.fixture
def short(config):
    with closing(Index(config, least=4)) as opened:
        yield opened


def colliding(digits):
    """Two numbers whose archives' digests begin alike."""
    seen = {}
    for number in range(100_000):
        other = seen.setdefault(sha(number)[:digits], number)
        if other != number:
            return other, number
    raise AssertionError


# -- finding -----------------------------------------------------------------------------------------------------


def test_all_of_a_row_comes_back(index):
    rows = [
        row(1, owners=(Owner("bob", PUBLIC, START), Owner("alice", STAGED, None))),
        row(2, bundle_sha256=None, file_count=None, license=None, title=None, manifest_sha256=None, owners=()),
    ]
    for one in rows:
        index.put(one)
        assert index.find(one.id) == one
    assert index.count() == 2


def test_any_sixteen_or_more_digits_of_the_archive_find_it(index):
    index.put(row(1))
    sorted_otherwise_in_danish = row(2, archive_sha256="0" * 15 + "a" * 49, id="0" * 15 + "a")
    index.put(sorted_otherwise_in_danish)
    for length in range(16, 65):
        assert index.find(sha(1)[:length]) == row(1)
        found = index.find(sorted_otherwise_in_danish.archive_sha256[:length])
        assert found == sorted_otherwise_in_danish, length


@IN_FILES
@pytest.mark.parametrize(
    "digits", ["", "abc", sha(1)[:15], sha(1)[:16].upper(), sha(1) + "0", "g" * 16, "../" * 8, "%" * 16]
)
def test_what_is_no_id_finds_nothing(index, digits):
    index.put(row(1))
    assert index.find(digits) is None


def test_an_ambiguous_prefix_is_refused_and_a_longer_one_is_not(short):
    one, two = colliding(4)
    for number in (one, two):
        short.put(row(number, id=sha(number)[:12]))
    with pytest.raises(AlreadyExists):
        short.find(sha(one)[:4])
    assert short.find(sha(two)[:8]).locator == f"/store/{two}"


def test_an_id_that_was_printed_stays_good_when_another_archive_begins_the_same(short):
    one, two = colliding(4)
    short.put(row(one, id=sha(one)[:4]))
    short.put(row(two, id=sha(two)[:12]))
    assert short.find(sha(one)[:4]).locator == f"/store/{one}"


def test_an_id_is_never_given_twice(short):
    one, two = colliding(4)
    short.put(row(one, id=sha(one)[:4]))
    with pytest.raises(AlreadyExists, match=r"nothing was overwritten"):
        short.put(row(two, id=sha(two)[:4]))
    assert (short.count(), short.find(sha(two)[:12])) == (1, None)


def test_putting_again_replaces_facts_and_owners(index):
    index.put(owned(1, ("alice", PUBLIC), ("bob", STAGED)))
    changed = owned(1, ("bob", UNLISTED))
    index.put(changed)
    assert index.find(sha(1)) == changed
    assert index.page(user="alice") == ([], None)


def test_what_a_deletion_leaves_behind(index):
    index.put(row(1))
    index.put(row(2))
    index.remove(sha(1), tombstone=True)
    index.remove(sha(2), tombstone=False)
    found = index.find(sha(1)[:20])
    assert isinstance(found, Tombstone)
    assert (found.id, found.archive_sha256) == (sha(1)[:16], sha(1))
    assert abs(found.deleted - datetime.now(UTC)) < timedelta(minutes=1)
    assert index.find(sha(2)) is None
    assert (index.count(), index.page(user="alice"), index.used_bytes("alice")) == (0, ([], None), 0)


def test_a_tombstone_stays_when_a_deletion_is_repeated_and_goes_when_the_bytes_come_back(index):
    index.put(row(1))
    index.remove(sha(1), tombstone=True)
    before = index.find(sha(1))
    index.remove(sha(1), tombstone=False)
    index.remove(sha(1), tombstone=True)
    assert index.find(sha(1)) == before
    index.put(row(1))
    assert index.find(sha(1)) == row(1)
    index.remove(sha(1), tombstone=False)
    assert index.find(sha(1)) is None


# -- listing -----------------------------------------------------------------------------------------------------


def pages(index, limit, *, between=lambda: None, **keywords):
    found, cursor = [], None
    while True:
        rows, cursor = index.page(after=cursor, limit=limit, **keywords)
        assert len(rows) <= limit
        found += rows
        assert len(found) <= 3000, "it goes round in circles"
        if cursor is None:
            return found
        between()


def test_everybody_sees_what_is_public_and_owners_all_that_is_theirs(index):
    levels = {1: STAGED, 2: PRIVATE, 3: UNLISTED, 4: PUBLIC}
    for number, level in levels.items():
        index.put(owned(number, ("alice", level)))
    index.put(owned(5, ("bob", PUBLIC), ("alice", STAGED)))
    assert [found.locator for found in pages(index, 50, user=None)] == ["/store/5", "/store/4"]
    assert [found.locator for found in pages(index, 50, user="alice")] == [f"/store/{n}" for n in (5, 4, 3, 2, 1)]
    assert [found.locator for found in pages(index, 50, user="bob")] == ["/store/5"]
    assert pages(index, 50, user="Alice") == pages(index, 50, user="") == []


def test_pages_have_everything_once_also_what_was_stored_in_the_same_second(index):
    rows = [row(number, created=START + timedelta(seconds=number // 4)) for number in range(10)]
    for one in rows:
        index.put(one)
    newest_first = sorted(rows, key=lambda one: (one.created, one.archive_sha256), reverse=True)
    for limit in (1, 3, 10, 11):
        assert pages(index, limit, user=None) == pages(index, limit, user="alice") == newest_first


def test_what_comes_and_goes_meanwhile_shifts_no_page(index):
    for number in range(10):
        index.put(row(number))
    new = iter(range(100, 200))

    def meanwhile():
        index.put(row(next(new)))
        index.remove(sha(9), tombstone=False)

    assert [found.size - 1000 for found in pages(index, 3, user=None, between=meanwhile)] == list(range(9, -1, -1))


@IN_FILES
@pytest.mark.parametrize("cursor", ["", "x", "e" * 10_000, "AAAA", "é", "MTIz", "../..", "\udc80", "' OR 1=1 --"])
def test_a_cursor_that_is_none_is_refused(index, cursor):
    with pytest.raises(UsageError, match="no cursor"):
        index.page(user=None, after=cursor)


@IN_FILES
@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_bounds(index, limit):
    with pytest.raises(UsageError):
        index.page(user=None, limit=limit)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("climate", {1}),
        ("CLIMATE Étude", {1}),
        ("climate code", set()),
        ("code/run", {2}),
        ("apache-2.0 Run", {2}),
        (sha(2)[:20], {2}),
        (sha("bundle 1"), {1}),
        ("alice", {1, 2}),
        ("", {1, 2}),
        ("100%", {2}),
        ("_limate", set()),
        ("%", {2}),
        ("'; DROP TABLE artifacts; --", set()),
        ("nothing-of-that-kind", set()),
    ],
)
def test_searching(index, query, found):
    index.put(row(1, title="Une étude\nof Climate"), "README.md\ndata/Été.csv")
    index.put(row(2, title="Growth by 100%", license="Apache-2.0"), "code/Run.py")
    assert {one.size - 1000 for one in pages(index, 50, user=None, query=query)} == found


@IN_FILES
@pytest.mark.parametrize("query", ["x" * 201, "a " * 17])
def test_a_query_has_bounds(index, query):
    with pytest.raises(UsageError):
        index.page(user=None, query=query)


def test_file_names_outlive_a_change_of_level_that_does_not_repeat_them(index):
    index.put(owned(1, ("alice", STAGED)), "data/measured.csv")
    assert pages(index, 50, user=None, query="measured") == []
    index.put(owned(1, ("alice", PUBLIC)))
    assert len(pages(index, 50, user=None, query="measured")) == 1


def test_nobody_finds_out_who_else_has_staged_what_is_public(index):
    index.put(owned(1, ("bob", PUBLIC), ("alice", STAGED)))
    assert pages(index, 50, user=None, query="alice") == pages(index, 50, user="bob", query="alice") == []
    assert len(pages(index, 50, user=None, query="bob")) == 1


def test_nothing_is_put_in_over_a_quota(index):
    one = owned(1, ("alice", STAGED))
    with pytest.raises(QuotaExceeded):
        index.put(one, quota=("alice", one.size - 1))
    assert index.find(one.archive_sha256) is None
    for _ in range(2):  # again: it counts once
        index.put(one, quota=("alice", one.size))
    assert index.used_bytes("alice") == one.size


def test_used_bytes_count_every_owner(index):
    index.put(owned(1, ("alice", STAGED)))
    index.put(owned(2, ("bob", PUBLIC), ("alice", STAGED)))
    assert [index.used_bytes(user) for user in ("alice", "bob", "carol")] == [1001 + 1002, 1002, 0]


@IN_FILES
@pytest.mark.parametrize("user", [None, "alice"])
def test_no_question_of_a_request_reads_more_than_it_answers(config, index, user, monkeypatch):
    for number in range(5):
        index.put(row(number))
    asked = []
    connect = sqlite3.connect

    def watched(*arguments, **keywords):
        connection = connect(*arguments, **keywords)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    with closing(Index(config)) as fresh:
        asked.clear()
        fresh.find(sha(1)[:16])
        fresh.find("0" * 16)
        fresh.page(user=user, after=fresh.page(user=user, limit=2)[1], limit=2)
    with closing(connect(config.data / "registry.db")) as plain:
        for statement in (text for text in asked if text.startswith("SELECT")):
            plan = " / ".join(step[3] for step in plain.execute("EXPLAIN QUERY PLAN " + statement))
            assert "SCAN" not in plan, statement
            assert "TEMP B-TREE" not in plan, statement


# -- what was begun ----------------------------------------------------------------------------------------------


def test_an_intent_stays_until_its_own_process_ends_it(config, index):
    index.intend(sha(1))
    index.intend(sha(2), "/store/2")
    with closing(Index(config)) as another:
        another.put(row(1))
        assert {(i.archive_sha256, i.locator) for i in another.intents()} == {(sha(1), ""), (sha(2), "/store/2")}
    index.put(row(1))
    index.remove(sha(2), tombstone=False)
    assert index.intents() == []


# -- agreeing with the store -------------------------------------------------------------------------------------


class Store(Backend):
    """A store in memory; `during` is called when so many were listed."""

    name = "memory"
    capabilities = Capabilities(list="immediate")
    Settings = pydantic.BaseModel

    def __init__(self, count=0):
        super().__init__(None)
        self.held = {}
        self.manifests_read = 0
        self.during = {}
        for number in range(count):
            self.add(number)

    def add(self, number, level=PUBLIC, **changes):
        owners = (Owner(f"user{number % 3}", level, START),)
        self.held[number] = replace(
            Artifact(
                f"{number}", 1000 + number, sha(number), None, level, owners, START + timedelta(seconds=number)
            ),
            **changes,
        )

    def _resolve(self, ref):
        raise NotImplementedError

    def _ref(self, locator):
        return f"memory:/artifacts/{sha(locator)[:16]}/"

    def _stat(self, locator):
        if int(locator) not in self.held:
            raise NotFound("gone")
        return self.held[int(locator)]

    def _open(self, locator, offset):
        raise IntegrityError("nobody should read all of it")

    def _list(self, after):
        for count, artifact in enumerate(list(self.held.values())):
            self.during.get(count, lambda: None)()
            yield artifact, artifact.locator

    def manifest(self, locator):
        self.manifests_read += 1
        files = [FileEntry(f"data/{locator}.csv", 7, "a" * 64), FileEntry("README.md", 3, "b" * 64)]
        policy = {"visibility": "staged", "license": "MIT", "max_file_mb": 1, "backend": "x"}
        return render_manifest(files, {**policy, "required": False, "auto_promote": False}, 0)


class Finding(Store):
    """One that finds by digest."""

    def find(self, digits):
        for artifact in self.held.values():
            if artifact.archive_sha256.startswith(digits):
                return artifact.locator
        raise NotFound("gone")


def everything(index):
    found = {
        one.archive_sha256: one for user in ("user0", "user1", "user2") for one in pages(index, 1000, user=user)
    }
    assert len(found) == index.count()
    return found


def test_two_thousand_artifacts_are_indexed_and_again_without_reading_them_again(index):
    store = Store(2000)
    seen = []
    assert not index.complete
    report = index.reindex(store, progress=lambda *what: seen.append(what))
    assert (report.indexed, report.removed, report.warnings) == (2000, 0, ())
    assert index.complete
    assert seen[-1][1] == 2000
    before = everything(index)
    one = before[sha(7)]
    assert (one.id, one.size, one.owners[0].user) == (sha(7)[:16], 1007, "user1")
    assert (one.file_count, one.total_bytes, one.license) == (2, 10, "MIT")
    assert one.manifest_sha256 == hashlib.sha256(store.manifest("7")).hexdigest()
    assert len(pages(index, 1000, user=None, query="data/1234.csv")) == 1
    store.manifests_read = 0
    assert index.reindex(store).removed == 0
    assert everything(index) == before
    assert store.manifests_read == 0
    assert len(pages(index, 1000, user=None, query="data/1234.csv")) == 1


def test_a_lost_index_gets_the_titles_back_from_the_store(index, tmp_path):
    store = FilesystemRegistry(FilesystemRegistry.Settings(root=tmp_path / "store"))
    bundle = make_bundle()
    told = {"title": "Growth of ice", "license": "CC0-1.0"}
    store.put(bundle.source(), new(owner="alice", description=told))
    index.reindex(store)
    found = index.find(bundle.archive_sha256)
    assert found.title == "Growth of ice"
    assert found.license == (bundle_license(bundle) or "CC0-1.0")


def bundle_license(bundle):
    return json.loads(bundle.manifest)["publish"].get("license")


def test_reindexing_takes_over_what_changed_in_the_store(index):
    store = Store(10)
    index.reindex(store)
    index.put(replace(index.find(sha(4)), title="A title", license="CC0"))
    index.remove(sha(5), tombstone=True)
    del store.held[3], store.held[5]
    store.add(4, UNLISTED)
    store.add(11)
    report = index.reindex(store)
    assert (report.indexed, report.removed) == (9, 1)
    assert index.find(sha(3)) is None
    changed = index.find(sha(4))
    assert (changed.visibility, changed.title, changed.license) == (UNLISTED, "A title", "CC0")
    assert isinstance(index.find(sha(5)), Tombstone)
    assert index.find(sha(11)).file_count == 2


@pytest.mark.parametrize("when", [0, 700, 1199])
def test_what_a_server_does_meanwhile_is_newer_than_what_was_listed(config, index, when):
    store = Store(1200)
    index.reindex(store)
    with closing(Index(config)) as server:

        def meanwhile():
            server.put(row(5000, owners=(Owner("user0", PUBLIC, START),)))  # uploaded behind the listing's back
            for number in (3, 650, 1198):
                server.remove(sha(number), tombstone=False)
            for number in (4, 651, 1197):
                server.put(replace(server.find(sha(number)), title="newer"))

        store.during = {when: meanwhile}
        index.reindex(store)
        for number in (3, 650, 1198):
            assert server.find(sha(number)) is None, number
        for number in (4, 651, 1197):
            assert server.find(sha(number)).title == "newer", number
        assert server.find(sha(5000)) is not None
        assert server.count() == 1198


class Terse(Store):
    """One whose listing tells no owners and levels."""

    def _list(self, after):
        for artifact, cursor in list(super()._list(after)):
            yield replace(artifact, owners=None, visibility=None), cursor
            self.held.pop(4, None)  # deleted by others as soon as it was listed


def test_what_a_listing_leaves_out_is_asked_for_one_by_one(index):
    store = Terse(5)
    store.add(3, UNLISTED)
    assert index.reindex(store).warnings == ()
    assert {one.size - 1000 for one in everything(index).values()} == {0, 1, 2, 3}
    assert index.find(sha(3)).visibility is UNLISTED
    assert index.find(sha(2)).owners == (Owner("user2", PUBLIC, START),)


def test_names_that_not_every_database_can_hold_are_left_out_or_cut(index):
    store = Store(4)
    store.add(1, owners=(Owner("a\0b", PUBLIC, START),))
    store.add(2, owners=(Owner("a" * 3000, PUBLIC, START),))
    assert len(index.reindex(store).warnings) == 2
    assert set(everything(index)) == {sha(0), sha(3)}
    assert (shown_text("a\0b"), shown_text("\0")) == ("ab", None)


def test_a_store_that_fails_in_the_middle_leaves_an_index_that_is_not_complete(index):
    store = Store(1200)

    def fail():
        raise Unavailable("the network is gone")

    store.during = {600: fail}
    with pytest.raises(Unavailable):
        index.reindex(store)
    assert not index.complete
    store.during = {}
    assert index.reindex(store).indexed == 1200
    assert index.complete


def test_damaged_and_doubtful_artifacts_are_named_and_hide_no_others(index, monkeypatch):
    store = Store(5)
    store.add(1, archive_sha256=None)
    store.add(2, archive_sha256=sha(0))
    read = store.manifest
    monkeypatch.setattr(store, "manifest", lambda locator: b"{}" if locator == "3" else read(locator))
    report = index.reindex(store)
    assert sorted(line.partition(":")[0] for line in report.warnings) == [
        "left out",
        "left out",
        "the manifest of '3' cannot be read",
    ]
    assert report.indexed == 3
    assert index.find(sha(3)).file_count is None
    assert index.find(sha(4)).file_count == 2


@pytest.mark.parametrize("store", [Store, Finding])
def test_what_a_crash_cut_off_is_completed_or_undone(config, index, store):
    store = store(4)
    index.reindex(store)
    with closing(Index(config)) as crashed:
        crashed.intend(sha(50))  # stored, but not in the index yet
        store.add(50)
        crashed.intend(sha(51))  # not even stored
        crashed.intend(sha(1), "1")  # deleted from the store only
        del store.held[1]
        crashed.intend(sha(2), "2")  # promoted in the store only
        store.add(2, UNLISTED)
        store.add(3, STAGED)
        index.put(replace(index.find(sha(3)), visibility=STAGED))
        crashed.intend(sha(3), "3")
        del store.held[3]
    assert index.repair(store) == 5
    assert index.find(sha(50)).file_count == 2
    assert index.find(sha(51)) is None
    assert isinstance(index.find(sha(1)), Tombstone), "it was public, and may be cited"
    assert index.find(sha(2)).visibility is UNLISTED
    assert index.find(sha(3)) is None, "it was staged: nobody need know"
    assert index.intents() == []
    assert index.repair(store) == 0


def test_among_others_only_what_the_dead_have_left_is_repaired(index, config):
    store = Store(2)
    index.reindex(store)
    index.intend(sha(1), "1")  # ours, and under way
    environment = os.environ | create_config_environment(config)
    command = [sys.executable, "-c", INTEND_AND_DIE, sha(50)]
    died = subprocess.run(command, env=environment, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    store.add(50)
    assert index.repair(store, among_others=True) == 1
    assert index.find(sha(50)).file_count == 2
    assert [intent.archive_sha256 for intent in index.intents()] == [sha(1)]


INTEND_AND_DIE = """
import os, signal, sys
from ari_server.config import load_config
from ari_server.index import Index

Index(load_config()).intend(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reindexing_leaves_the_tombstone_that_a_crash_withheld(index):
    store = Store(2)
    index.reindex(store)
    index.intend(sha(1), "1")
    del store.held[1]
    index.reindex(store)
    assert isinstance(index.find(sha(1)), Tombstone)


def test_the_data_of_an_existing_server(tmp_path):
    with tarfile.open(EXISTING / "registry-data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((EXISTING / "registry-data.json").read_text())["artifacts"]
    root = tmp_path / "registry-data"
    shutil.copytree(root / "artifacts", tmp_path / "before")
    with (
        closing(Index(ServerConfig(data=root))) as index,
        FilesystemRegistry(FilesystemRegistry.Settings(root=root)) as store,
    ):
        assert index.reindex(store).warnings == ()
        found = {artifact: index.find(artifact) for artifact in expected}
    assert {
        artifact: {"bundle_sha256": one.bundle_sha256, "visibility": one.visibility}
        for artifact, one in found.items()
    } == expected
    assert all(one.id == artifact and one.file_count for artifact, one in found.items())


# -- many at once, and trouble -----------------------------------------------------------------------------------

AT_ONCE = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_index
from ari_server.config import ServerConfig
from ari_server.index import Index

index = Index(ServerConfig(data=Path(sys.argv[1])))
index.put(test_index.row(0))
gate, key = os.pipe()
children = []
for number in range(16):
    children.append(os.fork())
    if not children[-1]:
        os.close(key)
        os.read(gate, 1)
        try:
            for step in range(3):
                index.put(test_index.row(1 + number * 3 + step))
                index.put(test_index.row(0, title=f"{number}"))
                assert index.find(test_index.sha(0)).owners
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\\n".encode())
        finally:
            os._exit(0)
os.close(key)
for child in children:
    os.waitpid(child, 0)
"""


@IN_FILES
def test_sixteen_processes_put_rows_at_once_and_none_is_lost(config):
    command = [sys.executable, "-c", AT_ONCE, str(config.data), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    with closing(Index(config)) as index:
        assert {one.size - 1000 for one in pages(index, 1000, user="alice")} == set(range(49))


AGREE = """
import json, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_index
from ari_server.config import load_config
from ari_server.index import Index

index, world = Index(load_config()), test_index.World(Path(sys.argv[1]))

def change():
    for step in range(8):
        index.intend(world.sha256)
        world.change()
        index.agree(world.sha256, world.row)

threads = [threading.Thread(target=change) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


class World(Backend):
    """A store with one artifact, whose level of change is a number in a file; asking it takes a moment."""

    name = "world"
    capabilities = Capabilities(list="immediate")
    Settings = pydantic.BaseModel
    sha256 = sha(1)

    def __init__(self, file):
        super().__init__(None)
        self.file = file

    def change(self):
        with self.file.open("a") as file:
            file.write("x")

    def row(self):
        size = self.file.stat().st_size
        time.sleep(0.002)
        return row(1, size=size)

    def _resolve(self, ref):
        raise NotImplementedError

    def _ref(self, locator):
        return "world:/"

    def _stat(self, locator):
        found = self.row()
        return Artifact("world", found.size, self.sha256, None, found.visibility, found.owners, START)

    def _open(self, locator, offset):
        raise IntegrityError("nobody should read all of it")

    def _list(self, after):
        yield self._stat("world"), "world"

    def manifest(self, locator):
        return Store().manifest("0")


def test_the_last_change_of_the_store_is_what_stays_in_the_index(config, tmp_path):
    """Whoever agrees, or makes the index anew, at the same time."""
    file = tmp_path / "world"
    file.touch()
    world = World(file)
    config.data.mkdir()
    with closing(Index(config)) as index:
        index.agree(world.sha256, world.row)
        command = [sys.executable, "-c", AGREE, str(file), str(Path(__file__).parent)]
        environment = os.environ | create_config_environment(config)
        processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
        while file.stat().st_size < 24 and all(process.poll() is None for process in processes):
            index.reindex(world)
        assert [process.wait(60) for process in processes] == [0, 0]
        assert file.stat().st_size == 48
        assert index.find(world.sha256).size == 48
        assert index.intents() == []


def test_who_looked_up_something_older_does_not_write_it_over_what_is_newer(config, index, tmp_path):
    world = World(tmp_path / "world")
    world.change()
    looked = threading.Event()
    others = []

    def change():
        looked.wait(60)
        world.change()
        with closing(Index(config)) as other:
            other.agree(world.sha256, world.row)

    def look():
        found = world.row()
        looked.set()
        others[0].join(0.5)  # as long as it waits for its turn
        return found

    others.append(threading.Thread(target=change))
    others[0].start()
    index.agree(world.sha256, look)
    others[0].join(60)
    assert index.find(world.sha256).size == 2


def test_what_was_looked_up_before_an_index_is_made_anew_is_looked_up_again(index, tmp_path):
    """Else somebody's change, which the new one has found, would be undone."""
    world = World(tmp_path / "world")
    world.change()
    found = []

    def look():
        found.append(world.row())
        if len(found) == 1:
            world.change()
            index.reindex(world)
        return found[-1]

    index.agree(world.sha256, look)
    assert [one.size for one in found] == [1, 2]
    assert index.find(world.sha256).size == 2


def test_a_store_that_fails_while_one_agrees_keeps_nobody_waiting(index):
    def fail():
        raise Unavailable("gone")

    index.intend(sha(1))
    with pytest.raises(Unavailable):
        index.agree(sha(1), fail)
    assert [intent.archive_sha256 for intent in index.intents()] == [sha(1)], "to be repaired"
    index.agree(sha(1), lambda: row(1))
    assert index.intents() == []


@IN_FILES
def test_a_damaged_index_is_named_with_the_way_to_a_new_one(config, index):
    index.put(row(1))
    index.close()
    (config.data / "registry.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DiskError, match=r"registry\.db' is damaged") as caught:
        Index(config)
    assert "ari registry reindex" in caught.value.hint


@IN_FILES
def test_what_was_acknowledged_survives_a_power_cut(index):
    with index._database.read() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    assert settings == ["wal", 2]
