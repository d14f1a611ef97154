"""Tokens: who they belong to, when they stop working, and a database that others use, lock or damage."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import ari_server.database
import ari_server.tokens
from ari_core.errors import DiskError, LocalPermissionError, Unavailable, UsageError
from ari_server.config import ServerConfig
from ari_server.tokens import Caller, Tokens

EXISTING = Path(__file__).parents[1] / "data" / "existing"
ARCHIVE, OTHER = "ab" * 32, "cd" * 32
NOBODY = 65534


IN_FILES = pytest.mark.parametrize("config", ["sqlite"], indirect=True)


@pytest.fixture
def tokens(config):
    with closing(Tokens(config)) as opened:
        yield opened


@contextmanager
def clock(monkeypatch, moved):
    """Moves the clock by `moved`."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + moved

    with monkeypatch.context() as patch:
        now = ari_server.tokens.time.time
        gmtime = ari_server.tokens.time.gmtime
        patch.setattr(ari_server.tokens, "datetime", Moved)
        patch.setattr(ari_server.tokens.time, "gmtime", lambda: gmtime(now() + moved.total_seconds()))
        yield


# -- what a token says -------------------------------------------------------------------------------------------


def test_a_token_names_its_user_and_what_it_may_do(tokens):
    alice = tokens.issue("alice")
    robot = tokens.issue("robot", scope="read")
    assert tokens.check(alice.token) == Caller("alice", "publish", alice.id)
    assert tokens.check(robot.token) == Caller("robot", "read", robot.id)
    assert alice.token.startswith("ari_")
    assert len(alice.id) == 16


@pytest.mark.parametrize(
    "text", ["", "ari_", "ari_x", "arif_x", "Bearer x", "ari_\udc80", "ari_" + "x" * 100_000, "é"]
)
def test_what_is_no_token_is_nobody(tokens, text):
    tokens.issue("alice")
    assert tokens.check(text) is None


def test_a_token_in_other_spelling_is_nobody(tokens):
    token = tokens.issue("alice").token
    for other in (token.upper(), token + " ", token[:-1], " " + token, token + "\n"):
        assert tokens.check(other) is None


@IN_FILES
@pytest.mark.parametrize("user", ["a", "Ada.Lovelace+lab@example.org", "0" * 64])
def test_user_names_that_are_taken(tokens, user):
    assert tokens.check(tokens.issue(user).token).user == user


@IN_FILES
@pytest.mark.parametrize("user", ["", ".a", "-a", "a b", "a\n", "é", "0" * 65, "a/b", "a\0", "\x1b[31m"])
def test_user_names_that_are_refused(tokens, user):
    with pytest.raises(UsageError):
        tokens.issue(user)
    assert tokens.list() == []


@IN_FILES
def test_no_token_is_to_be_found_on_the_disk_or_in_a_representation(config, tokens):
    issued = [
        tokens.issue("alice"),
        tokens.issue("bob", scope="read"),
        tokens.issue_fetch(ARCHIVE, "a", expires=None),
    ]
    for token in issued:
        tokens.check(token.token)
    tokens.close()
    stored = b"".join(path.read_bytes() for path in config.data.iterdir())
    for token in issued:
        assert token.id.encode() in stored
        assert token.token.encode() not in stored
        assert token.token not in repr(token) + repr(tokens.check(token.token)) + repr(tokens.list())


# -- when it stops working ---------------------------------------------------------------------------------------


def test_a_revoked_token_is_refused_at_once_by_everybody(config, tokens):
    issued = [tokens.issue("alice"), tokens.issue("alice", expires=timedelta(days=1))]
    with closing(Tokens(config)) as another:
        for token in issued:
            assert another.check(token.token)
            assert tokens.revoke(token.id)
            assert another.check(token.token) is None
    assert not tokens.revoke("0" * 16)
    with pytest.raises(UsageError):
        tokens.revoke("\udc80")


def test_who_revokes_again_does_not_change_when_it_was_revoked(tokens, monkeypatch):
    token = tokens.issue("alice")
    tokens.revoke(token.id)
    (before,) = tokens.list()
    with clock(monkeypatch, timedelta(days=3)):
        assert tokens.revoke(token.id)
    assert tokens.list() == [before]
    assert before.revoked is not None


def test_a_token_works_until_it_expires_and_not_a_moment_longer(tokens, monkeypatch):
    issued = [
        tokens.issue("a", expires=timedelta(days=90)),
        tokens.issue_fetch(ARCHIVE, "a", expires=timedelta(days=90)),
    ]
    for token in issued:
        assert tokens.check(token.token)
        with clock(monkeypatch, timedelta(days=89, hours=23)):
            assert tokens.check(token.token)
        with clock(monkeypatch, timedelta(days=90, seconds=1)):
            assert tokens.check(token.token) is None


def test_a_clock_that_jumps_and_is_set_right_again_costs_nobody_a_token(tokens, monkeypatch):
    token = tokens.issue("alice", expires=timedelta(days=1))
    for moved in (timedelta(days=-3650), timedelta(days=2), timedelta(days=4000), timedelta(days=-1)):
        with clock(monkeypatch, moved):
            tokens.check(token.token)
            tokens.list()
            tokens.close()
        assert tokens.check(token.token), moved


@IN_FILES
@pytest.mark.parametrize("expires", [timedelta(), timedelta(days=-1), timedelta.max])
def test_an_expiry_that_cannot_be_is_refused(tokens, expires):
    with pytest.raises(UsageError):
        tokens.issue("alice", expires=expires)


# -- fetch tokens ------------------------------------------------------------------------------------------------


def test_a_fetch_token_opens_one_artifact(tokens):
    issued = tokens.issue_fetch(ARCHIVE, "alice", expires=None, note="for the referees")
    assert issued.token.startswith("arif_")
    assert tokens.check(issued.token) == Caller("alice", "fetch", issued.id, ARCHIVE)
    (info,) = tokens.list_fetch(ARCHIVE, "alice")
    assert (info.id, info.note) == (issued.id, "for the referees")
    assert tokens.list() == tokens.list_fetch(OTHER, "alice") == tokens.list_fetch(ARCHIVE, "bob") == []


def test_nobody_else_can_revoke_a_fetch_token(tokens):
    issued = tokens.issue_fetch(ARCHIVE, "alice", expires=None)
    assert not tokens.revoke_fetch(issued.id, ARCHIVE, "bob")
    assert not tokens.revoke_fetch(issued.id, OTHER, "alice")
    assert tokens.check(issued.token)
    assert tokens.revoke_fetch(issued.id, ARCHIVE, "alice")
    assert tokens.check(issued.token) is None


def test_an_artifact_that_goes_takes_its_fetch_tokens_along(tokens):
    alice, bob = (tokens.issue_fetch(ARCHIVE, user, expires=None).token for user in ("alice", "bob"))
    other = tokens.issue_fetch(OTHER, "alice", expires=None).token
    tokens.forget_artifact(ARCHIVE, "alice")
    assert [bool(tokens.check(token)) for token in (alice, bob, other)] == [False, True, True]
    tokens.forget_artifact(ARCHIVE)
    assert [bool(tokens.check(token)) for token in (alice, bob, other)] == [False, False, True]


# -- when it was used --------------------------------------------------------------------------------------------


def test_uses_are_noted_without_a_write_for_each(config, tokens, monkeypatch):
    token = tokens.issue("alice")
    written = []
    write = tokens._database.write
    monkeypatch.setattr(tokens._database, "write", lambda: written.append(1) or write())
    for _ in range(100):
        tokens.check(token.token)
    assert written == []
    monkeypatch.setattr(tokens, "_flush_at", 0.0)  # a minute has passed
    for _ in range(100):
        tokens.check(token.token)
    for thread in threading.enumerate():
        if thread.name == "ari-token-uses":
            thread.join()
    assert written == [1]
    assert tokens.list()[0].last_used is not None


def test_the_last_use_is_noted_when_the_server_stops(config, tokens):
    used, unused = tokens.issue("alice"), tokens.issue("bob")
    tokens.check(used.token)
    tokens.close()
    with closing(Tokens(config)) as again:
        last = {info.id: info.last_used for info in again.list()}
    assert last[unused.id] is None
    assert abs(last[used.id] - datetime.now(UTC)) < timedelta(minutes=1)


@IN_FILES
def test_a_request_succeeds_though_its_use_cannot_be_noted(config, tokens, monkeypatch):
    monkeypatch.setattr(ari_server.database, "WRITE_SECONDS", 0.1)
    token = tokens.issue("alice")
    with closing(sqlite3.connect(config.data / "tokens.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(tokens, "_flush_at", 0.0)
        assert tokens.check(token.token)
        tokens.close()
        other.execute("ROLLBACK")
    tokens.close()
    assert tokens.list()[0].last_used is not None, "kept for a better moment"


# -- the existing server -----------------------------------------------------------------------------------------


@pytest.fixture
def existing(tmp_path):
    with tarfile.open(EXISTING / "registry-data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return ServerConfig(data=tmp_path / "registry-data")


def existing_server_accepts(data, token):
    """What the existing server asks its database."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    with closing(sqlite3.connect(data / "tokens.db")) as database:
        found = database.execute("SELECT user, revoked_at FROM tokens WHERE token_hash = ?", (digest,)).fetchone()
    return found is not None and found[1] is None


def test_tokens_of_an_existing_server_keep_working_and_revoked_ones_stay_so(existing):
    texts = json.loads((EXISTING / "registry-data.json").read_text())
    with closing(Tokens(existing)) as tokens:
        assert tokens.check(texts["alice"]).user == "alice"
        assert tokens.check(texts["bob"]).scope == "publish"
        assert tokens.check(texts["alice-revoked"]) is None
        assert sorted((info.user, info.revoked is None) for info in tokens.list()) == [
            ("alice", False), ("alice", True), ("bob", True),
        ]  # fmt: skip


def test_the_existing_server_takes_our_full_tokens_and_no_lesser_ones(existing):
    texts = json.loads((EXISTING / "registry-data.json").read_text())
    with closing(Tokens(existing)) as tokens:
        full = tokens.issue("carol")
        lesser = [
            tokens.issue("carol", scope="read"),
            tokens.issue("carol", expires=timedelta(days=1)),
            tokens.issue_fetch(ARCHIVE, "carol", expires=None),
        ]
        for token in (full.token, texts["alice"], texts["bob"]):  # while we are running, too
            assert existing_server_accepts(existing.data, token)
        for token in (*(token.token for token in lesser), texts["alice-revoked"]):
            assert not existing_server_accepts(existing.data, token)
        tokens.revoke(full.id)
        assert not existing_server_accepts(existing.data, full.token)


def test_what_the_existing_server_writes_is_seen_at_once(existing):
    texts = json.loads((EXISTING / "registry-data.json").read_text())
    with closing(Tokens(existing)) as tokens, closing(sqlite3.connect(existing.data / "tokens.db")) as theirs:
        theirs.execute(
            "INSERT INTO tokens VALUES ('0123', ?, 'Erwin S.', 'yesterday', NULL)", (hash_of("ari_new"),)
        )
        theirs.execute("UPDATE tokens SET revoked_at = '2026-01-01T00:00:00Z' WHERE user = 'bob'")
        theirs.commit()
        assert tokens.check("ari_new").user == "Erwin S.", "existing rows are taken as they are"
        assert tokens.check(texts["bob"]) is None
        assert next(info for info in tokens.list() if info.id == "0123").created is None


def hash_of(token):
    return hashlib.sha256(token.encode()).hexdigest()


# -- many at once, and trouble -----------------------------------------------------------------------------------

AT_ONCE = """
import json, os, sys
from pathlib import Path
from ari_server.config import ServerConfig
from ari_server.tokens import Tokens

fresh, used = (ServerConfig(data=Path(folder)) for folder in sys.argv[1:])
tokens = Tokens(used)
assert tokens.check(tokens.issue("before").token)  # children inherit connections that are open
inherited = tokens._database._engine.pool
gate, key = os.pipe()
children = []
for number in range(16):
    children.append(os.fork())
    if not children[-1]:
        os.close(key)
        os.read(gate, 1)
        try:
            issued = [tokens.issue(f"user{number}").token for _ in range(10)]
            assert all(tokens.check(token) for token in issued)
            assert tokens._database._engine.pool is not inherited, "SQLite must not use these in a child"
            Tokens(fresh).issue(f"user{number}")
            os.write(1, (json.dumps(issued) + "\\n").encode())
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\\n".encode())
        finally:
            os._exit(0)
os.close(key)
for child in children:
    os.waitpid(child, 0)
assert len(tokens.list()) == 161
"""


@IN_FILES
def test_sixteen_processes_create_a_database_and_issue_tokens_at_once_and_none_is_lost(config, tmp_path):
    folders = [tmp_path / "fresh", config.data]
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    issued = [token for line in done.stdout.splitlines() for token in json.loads(line)]
    assert len(set(issued)) == 160
    with closing(Tokens(config)) as tokens:
        assert all(tokens.check(token) for token in issued)
    with closing(Tokens(ServerConfig(data=folders[0]))) as tokens:
        assert len(tokens.list()) == 16
    assert sorted(path.name for path in folders[0].iterdir()) == ["tokens.db"]


@IN_FILES
def test_a_new_data_directory_is_for_its_owner_only(config, tokens):
    assert config.data.stat().st_mode & 0o777 == 0o700
    assert (config.data / "tokens.db").stat().st_mode & 0o777 == 0o600


@IN_FILES
def test_a_database_that_somebody_keeps_locked_is_unavailable_in_bounded_time(config, tokens, monkeypatch):
    monkeypatch.setattr(ari_server.database, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(ari_server.database, "READ_SECONDS", 0.2)
    token = tokens.issue("alice").token
    with closing(sqlite3.connect(config.data / "tokens.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match=r"tokens\.db' is kept locked"):
            tokens.issue("bob")
        assert tokens.check(token), "readers do not wait for writers"
    tokens.close()
    with closing(sqlite3.connect(config.data / "tokens.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("CREATE TABLE theirs(x)")
        for ask in (lambda: tokens.check(token), tokens.ping, tokens.list, lambda: Tokens(config)):
            with pytest.raises(Unavailable, match=r"tokens\.db' is kept locked"):
                ask()
    assert tokens.check(token), "it recovers by itself"


@IN_FILES
@pytest.mark.parametrize("damage", ["text", "middle"])
def test_a_damaged_database_is_named_and_not_touched(config, damage):
    with closing(Tokens(config)) as tokens:
        issued = [tokens.issue("alice").token for _ in range(100)]
    file = config.data / "tokens.db"
    data = bytearray(b"this is no database, but long enough to be one" * 100)
    if damage == "middle":
        data = bytearray(file.read_bytes())
        for page in range(4096, len(data), 4096):
            data[page : page + 200] = b"\xff" * 200
    file.write_bytes(data)

    def use():
        with closing(Tokens(config)) as tokens:
            return [tokens.check(token) for token in issued]

    with pytest.raises(DiskError, match=r"tokens\.db' is damaged") as caught:
        use()
    assert "backup" in caught.value.hint
    assert file.read_bytes() == data


@pytest.fixture
def as_nobody():
    """A folder, and a way to be a user who may only look at it."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    datetime.strptime("2026", "%Y").replace(tzinfo=UTC)  # imports what nobody else may be able to read

    @contextmanager
    def being():
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    yield folder, being
    shutil.rmtree(folder)


def test_a_read_only_data_directory_can_be_read_and_says_so_when_it_should_be_written(as_nobody):
    folder, being = as_nobody
    config = ServerConfig(data=folder / "data")
    with closing(Tokens(config)) as tokens:
        issued = tokens.issue("alice")
    config.data.chmod(0o755)
    (config.data / "tokens.db").chmod(0o644)
    with being(), closing(Tokens(config)) as tokens:
        assert tokens.check(issued.token).user == "alice"
        assert len(tokens.list()) == 1
        for change in (lambda: tokens.issue("bob"), lambda: tokens.revoke(issued.id)):
            with pytest.raises(LocalPermissionError, match=r"tokens\.db' or its folder cannot be written"):
                change()
    assert sorted(path.name for path in config.data.iterdir()) == ["tokens.db"]


def test_a_reader_of_a_read_only_directory_sees_what_its_owner_revokes(as_nobody):
    folder, being = as_nobody
    config = ServerConfig(data=folder / "data")
    with closing(Tokens(config)) as tokens:
        issued = tokens.issue("alice")
    config.data.chmod(0o755)
    (config.data / "tokens.db").chmod(0o644)
    with being(), closing(Tokens(config)) as reader:
        assert reader.check(issued.token)
        os.seteuid(0)
        with closing(Tokens(config)) as tokens:
            tokens.revoke(issued.id)
            os.seteuid(NOBODY)
            assert reader.check(issued.token) is None, "while it is in the log only"
            os.seteuid(0)
        os.seteuid(NOBODY)
        assert reader.check(issued.token) is None


def test_a_database_of_an_older_version_that_may_not_be_written_says_what_to_do(as_nobody):
    folder, being = as_nobody
    with tarfile.open(EXISTING / "registry-data.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    with being(), pytest.raises(LocalPermissionError, match="limited_tokens") as caught:
        Tokens(ServerConfig(data=folder / "registry-data"))
    assert "once" in caught.value.hint
