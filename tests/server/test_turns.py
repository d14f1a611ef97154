"""Turns: whoever wants to change the same thing waits, and nobody waits for the dead."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.registry import PATIENCE, together

import ari_server.turns
from ari_core.errors import Unavailable
from ari_server.config import ServerConfig, create_config_environment
from ari_server.turns import LOCKS, Turns

IN_FILES = pytest.mark.parametrize("config", ["sqlite"], indirect=True)
IN_DATABASE = pytest.mark.parametrize("config", ["postgres"], indirect=True)

COUNT = """
import sys, threading, time
from pathlib import Path
from ari_server.config import load_config
from ari_server.turns import Turns

turns, file = Turns(load_config()), Path(sys.argv[1])

def count():
    for _ in range(int(sys.argv[2])):
        with turns.turn("counter"):
            number = int(file.read_text())
            time.sleep(0)
            file.write_text(str(number + 1))

threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
HOLD = """
import sys
from ari_server.config import load_config
from ari_server.turns import Turns

with Turns(load_config()).turn(sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def config(config):
    config.data.mkdir()
    return config


@pytest.fixture
def turns(config):
    with closing(Turns(config)) as opened:
        yield opened


def python(config, code, *arguments):
    """Starts a program that is told the configuration as a worker is."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | create_config_environment(config),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def held(config, name):
    """Starts a process that has a turn."""
    process = python(config, HOLD, name)
    assert process.stdout.readline() == "mine\n"
    return process


def test_threads_and_processes_change_a_thing_one_at_a_time(config, tmp_path):
    file = tmp_path / "counter"
    file.write_text("0")
    processes = [python(config, COUNT, file, 10) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert int(file.read_text()) == 3 * 4 * 10


def test_nobody_waits_for_the_dead(config, turns):
    process = held(config, "a")
    process.kill()
    process.communicate()
    with turns.turn("a"):
        pass


def test_who_waits_too_long_is_told_and_may_come_again(config, tmp_path, monkeypatch):
    monkeypatch.setattr(ari_server.turns, "TURN_SECONDS", 0.2)
    if config.db:
        impatient = f"{config.db.get_secret_value()}?options=-c%20lock_timeout%3D200"
        config = ServerConfig(data=config.data, db=impatient)
    with closing(Turns(config)) as turns, held(config, "a") as process:
        with pytest.raises(Unavailable), turns.turn("a"):
            pass
        process.communicate("")
        with turns.turn("a"):
            with pytest.raises(Unavailable):
                together(lambda: turns.turn("a").__enter__())  # another thread of this process
            with turns.turn("of another thing"):
                pass


def test_what_is_raised_in_a_turn_ends_it(turns):
    with pytest.raises(ZeroDivisionError), turns.turn("a"):
        raise ZeroDivisionError
    with turns.turn("a"):
        pass


@IN_DATABASE
def test_many_who_wait_for_one_thing_keep_nobody_from_another(config, turns):
    with ExitStack() as stack, held(config, "a") as process:
        entered, done = [], []

        def wait(at):
            entered.append(at)
            with turns.turn("a"):
                done.append(at)

        waiting = [threading.Thread(target=wait, args=(at,)) for at in range(30)]
        for thread in waiting:
            thread.start()
        for name in "bcdef":
            stack.enter_context(turns.turn(name))
        assert (len(entered), done) == (30, [])
        process.communicate("")
        for thread in waiting:
            thread.join(PATIENCE)
        assert sorted(done) == list(range(30))


@IN_DATABASE
def test_whoever_loses_a_turn_does_not_go_on_as_if_nothing_was(config, turns, postgres_db):
    others = []

    def another():
        with closing(Turns(config)) as theirs, theirs.turn("a"):
            others.append("had it, too")

    def lose():
        with turns.hold("a") as check:
            check()
            postgres_db.run(
                "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database "
                "WHERE locktype = 'advisory' AND datname = current_database()"
            )
            together(another)
            with pytest.raises(Unavailable):
                check()

    with pytest.raises(Unavailable):
        lose()
    assert others
    with turns.turn("a"):
        pass


@IN_FILES
def test_lock_files_are_few_and_for_their_owner_only(config, turns):
    for number in range(20):
        with turns.turn(f"{number}"):
            pass
    files = list((config.data / LOCKS).iterdir())
    assert all(len(file.name) == 3 for file in files), "4096 at most"
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (config.data / LOCKS).stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_before_the_first_turn(tmp_path):
    Turns(ServerConfig(data=tmp_path)).close()
    assert list(Path(tmp_path).iterdir()) == []
