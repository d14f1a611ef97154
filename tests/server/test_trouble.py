"""What machines do to a server: full and read-only disks, damaged databases, kills, wrong clocks."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from support.registry import PATIENCE, Sample, bearer, eventually

from ari_server.config import load_config
from ari_server.index import Index

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def mounted():
    """Mounts a file system until the test ends, after its servers."""
    folders = []

    def make(folder, *options):
        folder.mkdir(exist_ok=True)
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        mount(*options, folder)
        folders.append(folder)
        return folder

    yield make
    for folder in reversed(folders):
        subprocess.run(["umount", "--lazy", folder], check=True)


def sentence(answer):
    """The detail of a refusal: one line for people."""
    assert answer.headers["content-type"].startswith("application/problem+json")
    detail = answer.json()["detail"]
    assert len(detail.split()) > 3
    assert detail.isprintable()
    return detail


# -- disks --------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_and_has_room_again(mounted, alone, tmp_path):
    disk = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    with alone(data=disk) as server:
        alice = server.token("alice")
        there = server.store(Sample.new(), alice, "public")
        before = server.files()
        large = Sample.noise(8_000_000)
        for _ in range(2):
            answer = server.upload(large, alice)
            assert answer.status_code == 507
            assert "room" in sentence(answer)
            assert eventually(lambda: server.files() == before)
            assert server.level(large) is None
            assert server.get(there.path).content == there.data
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        small = Sample.noise(100_000)
        answer = server.upload(small, alice)
        assert answer.status_code == 507
        sentence(answer)
        assert server.get(there.path).content == there.data
        assert server.head(there.path).status_code == 200
        filler.unlink()
        assert server.upload(small, alice).status_code == 200
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert server.upload(large, alice).status_code == 200
        assert server.get(large.path, alice).content == large.data
        assert server.restart().get(large.path, alice).content == large.data


def test_a_data_directory_that_becomes_read_only_and_writable_again(mounted, alone, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with alone(data=data) as server:
        alice = server.token("alice")
        there = server.store(Sample.new(), alice, "public")
        hidden = server.store(Sample.new(), alice)
        mounted(data, "--bind", data)
        subprocess.run(["mount", "-o", "remount,bind,ro", data], check=True)
        sample = Sample.new()
        answer = server.upload(sample, alice)
        assert answer.status_code in {503, 507}
        sentence(answer)
        answer = server.promote(hidden, alice, "public")
        assert answer.status_code in {503, 507}
        sentence(answer)
        answer = server.delete(hidden.path, alice)
        assert answer.status_code in {503, 507}
        assert server.get(there.path).content == there.data
        assert server.get(there.path + "/manifest.lock").content == there.manifest
        assert server.get(hidden.path, alice).content == hidden.data
        assert there.id in server.ids()
        subprocess.run(["mount", "-o", "remount,bind,rw", data], check=True)
        assert server.upload(sample, alice).status_code == 200
        assert server.promote(hidden, alice, "public").status_code == 200
        assert server.get(hidden.path).content == hidden.data


def test_a_data_directory_that_vanishes_is_named_in_the_log_and_nothing_is_made_or_forgotten(alone):
    with alone() as server:
        alice = server.token("alice")
        there, late = server.store(Sample.new(), alice, "public"), Sample.new()
        aside = server.data.rename(server.data.with_name("aside"))

        def asked():
            return (
                server.get(there.path),
                server.get("/artifacts"),
                server.promote(there, alice, "public"),
                server.upload(late, alice),
                server.get("/readyz"),
            )

        def assert_refused():
            answers = asked()
            assert [(answer.status_code, "Retry-After" in answer.headers) for answer in answers] == [
                (503, True)
            ] * len(answers), answers
            assert "disk" in sentence(answers[0])
            assert answers[-1].json()["detail"] == "not ready: spool"

        assert_refused()
        assert not server.data.exists()
        assert f"the data directory '{server.data}' is gone" in server.log.read_text()
        server.data.mkdir()  # what a disk that is not mounted leaves
        assert_refused()
        assert not list(server.data.iterdir())
        server.data.rmdir()
        aside.rename(server.data)
        assert [answer.status_code for answer in asked()] == [200] * 5


def test_a_store_elsewhere_that_vanishes_is_named_in_the_log_and_not_made_anew(alone, tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    with alone(options=["-o", f"root={root}"]) as server:
        alice = server.token("alice")
        there, late = server.store(Sample.new(), alice, "public"), Sample.new()
        aside = root.rename(tmp_path / "aside")

        def asked():
            return server.get(there.path), server.upload(late, alice), server.get("/readyz")

        answers = asked()
        assert [answer.status_code for answer in answers] == [503] * 3
        assert "the registry's store" in sentence(answers[0])
        assert f"'{root}" in server.log.read_text()
        assert not root.exists()
        aside.rename(root)
        assert [answer.status_code for answer in asked()] == [200] * 3


# -- databases ----------------------------------------------------------------------------------------------------


def overwrite(path, data):
    """Puts bytes in a file that others have open."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate(len(data))


@pytest.mark.in_ci
def test_no_server_starts_on_a_damaged_database(alone):
    server = alone()
    with server:
        server.store(Sample.new(), server.token("alice"))
    for path in server.data.glob("*.db-*"):
        path.unlink()
    for name in ("tokens.db", "registry.db"):
        good = (server.data / name).read_bytes()
        for damage in (b"this is no database, and never was one\n" * 500, os.urandom(20_000)):
            overwrite(server.data / name, damage)
            code, error = server.refused()
            assert code == 5
            assert name in error
        overwrite(server.data / name, good)


def test_a_damaged_token_database_denies_nobody_wrongly_and_recovers(alone):
    """A reader with a good token is not told that it is bad."""
    with alone() as server:
        alice = server.token("alice")
        public = server.store(Sample.new(), alice, "public")
        staged = server.store(Sample.new(), alice)
    tokens = server.data / "tokens.db"
    good = tokens.read_bytes()
    with server:
        overwrite(tokens, os.urandom(len(good)))
        answer = eventually(lambda: [a for a in [server.get(staged.path, alice)] if a.status_code != 200])[0]
        assert answer.status_code == 503
        sentence(answer)
        assert server.upload(Sample.new(), alice).status_code == 503
        assert server.get(public.path).content == public.data
        for path in server.data.glob("tokens.db-*"):
            path.unlink()
        overwrite(tokens, good)
        assert eventually(lambda: server.get(staged.path, alice).status_code == 200)


def test_a_lost_index_is_built_again_from_the_store(alone):
    with alone() as server:
        alice, bob = server.token("alice"), server.token("bob")
        samples = [server.store(Sample.new(), alice, level) for level in ("staged", "public")]
        server.store(samples[0], bob, "unlisted")
        before = [server.get(f"{sample.path}/meta", alice).json() for sample in samples]
    for path in server.data.glob("registry.db*"):
        path.unlink()
    with server:
        assert [server.get(f"{sample.path}/meta", alice).json() for sample in samples] == before
        assert server.ids(q=samples[1].id) == [samples[1].id]


def test_locked_databases_stop_no_reader(alone):
    with alone() as server:
        alice = server.token("alice")
        staged = server.store(Sample.new(), alice)
        for name in ("tokens.db", "registry.db"):
            lock = sqlite3.connect(server.data / name, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            assert server.get(staged.path, alice).content == staged.data
            assert server.head(staged.path).status_code == 200
            lock.execute("ROLLBACK")
            lock.close()


@pytest.mark.long
def test_a_database_locked_for_ever_is_a_clear_refusal_and_then_works_again(alone):
    with alone() as server:
        alice = server.token("alice")
        staged = server.store(Sample.new(), alice)
        lock = sqlite3.connect(server.data / "registry.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        answer = server.upload(Sample.new(), alice)
        assert answer.status_code == 503
        sentence(answer)
        lock.execute("ROLLBACK")
        lock.close()
        assert server.promote(staged, alice, "public").status_code == 200


# -- starting -----------------------------------------------------------------------------------------------------


def test_a_data_directory_that_cannot_be_is_one_clear_line(alone, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for data in (file, file / "below"):
        code, error = alone(data=data).refused()
        assert code not in {0, 70}
        assert str(file) in error


# -- ends ---------------------------------------------------------------------------------------------------------


def half_an_upload(server, token, sample):
    """Starts an upload and keeps it from ending."""
    wire = server.wire()
    headers = {**bearer(token), "Content-Type": "application/gzip", "Content-Length": len(sample.data)}
    wire.head("POST", "/artifact", headers).send(sample.data[: len(sample.data) // 2])
    return wire


@pytest.mark.in_ci
def test_a_server_told_to_end_lets_an_upload_end(alone):
    with alone(workers=2) as server:
        alice = server.token("alice")
        sample = Sample.noise(2_000_000)
        before = server.files()
        with half_an_upload(server, alice, sample) as wire:
            assert eventually(lambda: server.files() != before)  # some of it is on disk
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: "Shutting down" in server.log.read_text())
            wire.send(sample.data[len(sample.data) // 2 :])
            assert wire.answer().status == 200
            assert server.process.wait(PATIENCE) == 0
        server.kill()
        server.workers = 1
        server.start()
        assert server.get(sample.path, alice).content == sample.data


@pytest.mark.parametrize(
    "env", [{"ARI_REGISTRY_BODY_TIMEOUT": "1"}, pytest.param({}, marks=pytest.mark.long)], ids=["1s", "grace"]
)
@pytest.mark.in_ci
def test_a_server_told_to_end_does_not_wait_for_ever_and_leaves_nothing(alone, env):
    with alone(workers=2, env=env) as server:
        alice = server.token("alice")
        there = server.store(Sample.new(), alice, "public")
        before = server.files()
        sample = Sample.noise(2_000_000)
        with half_an_upload(server, alice, sample):
            assert eventually(lambda: server.files() != before)
            assert server.stop() == 0
        assert eventually(lambda: server.files() == before, 10)
        server.workers = 1
        server.start()
        assert server.level(sample) is None
        assert server.get(there.path).content == there.data
        assert server.upload(sample, alice).status_code == 200


def test_what_a_killed_server_had_half_received_is_swept(alone):
    with alone() as server:
        alice = server.token("alice")
        server.store(Sample.new(), alice)
        before = server.files()
        sample = Sample.noise(2_000_000)
        with half_an_upload(server, alice, sample):
            assert eventually(lambda: server.files() != before)
            server.kill()
        server.start()
        assert server.upload(sample, alice).status_code == 200  # the next one sweeps, if not the start
        assert server.delete(sample.path, alice).status_code == 200
        assert eventually(lambda: server.files() == before, 15), set(server.files()) ^ set(before)


def test_what_a_kill_cut_off_between_store_and_index_is_finished_by_the_next_start(alone):
    with alone() as server:
        alice = server.token("alice")
        deleted = server.store(Sample.new(), alice)
        added = server.store(Sample.new(), alice)
        folder = server.data / "artifacts" / added.id
        aside = folder.rename(server.folder / "aside")
        assert server.get(added.path, alice).status_code == 404  # which takes it out of the index
    aside.rename(folder)
    shutil.rmtree(server.data / "artifacts" / deleted.id)
    with closing(Index(load_config({}, data=server.data))) as index:
        for sample in (added, deleted):
            index.intend(sample.sha256)
    with server:
        assert server.ids(alice, mine="1") == [added.id]
        assert server.get(added.path, alice).content == added.data
        assert server.head(deleted.path).status_code == 404


def killed_under_writers(server, rounds, seed):
    """Kills the server at random moments; returns what it had acknowledged, by owner's token."""
    chance = random.Random(seed)
    tokens = [server.token(f"writer-{number}") for number in range(4)]
    stored, levels = {}, {}

    def write(token, stop):
        shared = Sample.new()
        with server.client(token) as http:
            while not stop.is_set():
                sample = shared if chance.random() < 0.1 else Sample.noise(chance.choice((100, 30_000)))
                try:
                    headers = {"Content-Type": "application/gzip"}
                    answer = http.post("/artifact", content=sample.data, headers=headers)
                    assert answer.status_code == 200, answer.text
                    stored[sample.sha256] = (sample, token)
                    answer = http.post(f"{sample.path}/promote", params={"target": "unlisted"})
                    assert answer.status_code == 200, answer.text
                    levels[sample.sha256] = "unlisted"
                except httpx2.TransportError:
                    return

    for _ in range(rounds):
        stop = threading.Event()
        writers = [threading.Thread(target=write, args=(token, stop)) for token in tokens]
        for writer in writers:
            writer.start()
        enough = len(stored) + chance.randint(1, 12)
        assert eventually(lambda: len(stored) >= enough)  # noqa: B023 - called at once
        time.sleep(chance.uniform(0, 0.02))  # the moment of the kill is what varies
        server.kill()
        stop.set()
        for writer in writers:
            writer.join(PATIENCE)
        server.start()
        for sha256, (sample, token) in stored.items():
            answer = server.get(sample.path, token)
            assert (answer.status_code, answer.content == sample.data) == (200, True), answer.text[:300]
            assert answer.headers["X-ARI-Visibility"] == levels.get(sha256) or sha256 not in levels
    listed = {one["archive_sha256"] for token in tokens for one in server.listed(token, mine="1", limit="100")}
    assert listed >= set(stored)
    for one in listed:
        owner = next(token for token in tokens if server.get(f"/artifact/{one}", token).status_code == 200)
        assert server.get(f"/artifact/{one}/manifest.lock", owner).status_code == 200


@pytest.mark.in_ci
def test_a_server_killed_under_writers_has_all_it_acknowledged(alone):
    with alone(workers=2) as server:
        killed_under_writers(server, 2, seed=1)


@pytest.mark.long
def test_a_server_killed_many_times_under_writers_has_all_it_acknowledged(alone):
    with alone(workers=2) as server:
        killed_under_writers(server, 60, seed=2)


def test_a_killed_worker_is_replaced(alone):
    with alone(workers=2) as server:
        sample = server.store(Sample.new(), server.token("alice"), "public")
        victim = server.worker_pids[0]
        os.kill(victim, signal.SIGKILL)
        assert eventually(lambda: len(set(server.worker_pids) - {victim}) == 2)

        def served():
            with contextlib.suppress(httpx2.TransportError):
                return server.once.get(sample.path).content == sample.data

        assert eventually(served)
        assert eventually(lambda: all(served() for _ in range(8)))


# -- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.in_ci
def test_a_clock_that_goes_backwards_ends_no_token_early(alone, tmp_path):
    if not FAKETIME.exists():
        if os.environ.get("ARI_TEST_REQUIRE") == "all":
            pytest.fail("libfaketime is missing and ARI_TEST_REQUIRE=all")
        pytest.skip("needs libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with alone(env=env) as server:
        alice, brief = server.token("alice"), server.token("alice", expires=timedelta(hours=1))
        sample = server.store(Sample.new(), alice, "private-token")
        made = server.post(f"{sample.path}/tokens", alice, json={"expires_in": 3600}).json()
        server.issued.append(made["token"])

        def statuses():
            return [server.get(sample.path, token).status_code for token in (alice, brief, made["token"])]

        assert statuses() == [200, 200, 200]
        for moment, expected in (
            ("-1d", [200, 200, 200]),
            ("+30m", [200, 200, 200]),
            ("+2h", [200, 401, 401]),
            ("-400d", [200, 200, 200]),
        ):
            clock.write_text(f"{moment}\n")
            assert statuses() == expected, moment
        new = server.store(Sample.new(), alice)
        clock.write_text("+0d\n")
        assert server.get(new.path, alice).content == new.data
        assert server.ids(alice, mine="1") == [sample.id, new.id]  # each by the time it had
