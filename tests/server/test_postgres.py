"""PostgreSQL behind tokens and index: one writes at a time, and what happens when it goes away or says no."""

import base64
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy
from pydantic import SecretStr
from sqlalchemy import text
from support.registry import PATIENCE, Registry, Sample, eventually, together
from support.stores import Postgres as Server

from ari_core.conformance import make_bundle
from ari_core.conformance.knobs import new
from ari_core.contract import Visibility
from ari_core.errors import (
    AccessDenied,
    ConfigurationError,
    ReadOnly,
    Unavailable,
    UsageError,
)
from ari_server import migrations, postgres
from ari_server.config import ServerConfig
from ari_server.index import Index
from ari_server.postgres import Postgres
from ari_server.rows import Row
from ari_server.serve import prepare
from ari_server.service import open_store
from ari_server.tokens import Tokens

ARCHIVE = "ab" * 32


@pytest.fixture
def url(postgres_db):
    return postgres_db.url


@pytest.fixture
def config(tmp_path, url):
    return ServerConfig(data=tmp_path / "data", db=url)


@pytest.fixture
def tokens(config):
    with closing(Tokens(config)) as opened:
        yield opened


def plus(url, **options):
    """The same database with other settings of the session."""
    settings = "%20".join(f"-c%20{name}%3D{value}" for name, value in options.items())
    return SecretStr(f"{url.get_secret_value()}?options={settings}")


def end_connections(database):
    """Ends all of them, as an administrator or a proxy may."""
    database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@contextmanager
def another_session(url):
    """A session of somebody else's, in a transaction."""
    engine = sqlalchemy.create_engine(url.get_secret_value(), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        yield connection


# -- one after the other -----------------------------------------------------------------------------------------

COUNT = """
import sys, threading
from ari_server.config import load_config
from ari_server.tokens import Tokens
from sqlalchemy import text

database = Tokens(load_config())._database

def count():
    for _ in range(10):
        with database.write() as connection:
            number = int(connection.execute(text("SELECT used_at FROM token_uses")).scalar())
            connection.execute(text("UPDATE token_uses SET used_at = :n"), {"n": str(number + 1)})

threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_of_all_that_write_one_writes_at_a_time_and_sees_what_was_written_before(config, postgres_db):
    postgres_db.run("INSERT INTO token_uses VALUES ('counter', '0')")
    env = {"ARI_REGISTRY_DATA": str(config.data), "ARI_REGISTRY_DB": config.db.get_secret_value()}
    processes = [subprocess.Popen([sys.executable, "-c", COUNT], env=env) for _ in range(3)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0, 0]
    assert postgres_db.run("SELECT used_at FROM token_uses") == [("90",)]


def test_a_reader_sees_one_state_whatever_is_written_meanwhile(tokens):
    tokens.issue("alice")
    count = text("SELECT count(*) FROM tokens")
    with tokens._database.read() as connection:
        before = connection.execute(count).scalar()
        tokens.issue("bob")
        assert connection.execute(count).scalar() == before == 1
    assert len(tokens.list()) == 2


def test_readers_wait_for_no_writer_however_many_wait_to_write(tokens, url, postgres_db):
    token = tokens.issue("alice").token
    with another_session(url) as other:
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": postgres.lock_key("write tokens")})
        writing = [threading.Thread(target=tokens.issue, args=(f"user{number}",)) for number in range(30)]
        for thread in writing:
            thread.start()
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        assert eventually(lambda: postgres_db.run(waiting))
        assert together(*[lambda: tokens.check(token).user] * 20) == ["alice"] * 20
        other.rollback()
        for thread in writing:
            thread.join(PATIENCE)
    assert len(tokens.list()) == 31


def test_what_is_text_everywhere_else_is_text_here(config, tokens):
    with closing(Index(config)) as index:
        for query in ("a\0b", "\udc80"):
            with pytest.raises(UsageError):
                index.page(user=None, query=query)
        with pytest.raises(UsageError):
            tokens.issue_fetch(ARCHIVE, "alice", expires=None, note="a\0b")
        assert index.page(user="a\\%_'\"", query="100%s %(x)s \\ 'quoted'") == ([], None)
        late = base64.urlsafe_b64encode(f"253402300799 {ARCHIVE}".encode()).decode()
        assert index.page(user=None, after=late) == ([], None)


# -- when it goes away -------------------------------------------------------------------------------------------


def test_connections_that_were_ended_between_two_requests_are_made_again(tokens, postgres_db):
    token = tokens.issue("alice").token
    for _ in range(2):
        end_connections(postgres_db)
        assert tokens.check(token).user == "alice"
        end_connections(postgres_db)
        tokens.issue("bob")
        end_connections(postgres_db)
        assert tokens.list()


def test_a_connection_that_ends_in_the_middle_of_writing_leaves_nothing(tokens, postgres_db):
    def write():
        with tokens._database.write() as connection:
            connection.execute(text("INSERT INTO token_uses VALUES ('half', 'done')"))
            end_connections(postgres_db)
            connection.execute(text("INSERT INTO token_uses VALUES ('other', 'half')"))

    with pytest.raises(Unavailable):
        write()
    assert postgres_db.run("SELECT * FROM token_uses") == []


def test_an_answer_that_is_lost_at_the_end_is_not_taken_for_either(tokens, postgres_db):
    def write():
        with tokens._database.write() as connection:
            connection.execute(text("INSERT INTO token_uses VALUES ('half', 'done')"))
            end_connections(postgres_db)

    with pytest.raises(Unavailable, match="not known: repeat"):
        write()


@pytest.fixture
def server(tmp_path):
    """A PostgreSQL server of the test's own."""
    with Server(tmp_path / "postgres") as started:
        url = SecretStr(started.store.url())
        for kind in ("tokens", "index"):
            postgres.upgrade(url, kind)
        yield started
        Postgres.of(url).close()


def test_beginning_to_write_waits_for_a_server_that_is_just_being_started_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "_AGAIN_SECONDS", (0.1,) * 300)
    config = ServerConfig(data=tmp_path, db=server.store.url())
    with closing(Tokens(config)) as tokens:
        token = tokens.issue("alice").token
        server.stop()
        with pytest.raises(Unavailable, match="does not answer"):
            tokens.check(token)
        late = Tokens(config)  # a worker that is started in the place of another
        with pytest.raises(Unavailable):
            late.check(token)
        writing = threading.Thread(target=tokens.issue, args=("bob",))
        writing.start()
        server.start()
        writing.join(PATIENCE)
        assert late.check(token).user == "alice"
        assert {info.user for info in tokens.list()} == {"alice", "bob"}


def test_a_server_without_its_database_says_so_and_recovers_by_itself(server, tmp_path):
    env = {"ARI_REGISTRY_DB": server.store.url()}
    with Registry(tmp_path / "registry", workers=2, env=env) as registry:
        alice = registry.token("alice")
        sample = registry.store(Sample.new(), alice, "public")
        server.kill()
        for answer in (
            registry.get(sample.path),
            registry.upload(Sample.new(), alice),
            registry.promote(sample, alice, "public"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "127.0.0.1" not in answer.text
        assert registry.get("/healthz").status_code == 200
        ready = registry.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["detail"] == "not ready: tokens, index"
        server.start()
        for worker in registry.worker_pids:
            with registry.only(worker):
                assert eventually(lambda: registry.get("/readyz").status_code == 200)
        assert registry.get(sample.path).content == sample.data
        registry.store(Sample.new(), alice)
    assert server.store.password not in registry.log.read_text()


# -- when it says no ---------------------------------------------------------------------------------------------


def test_a_lock_that_somebody_keeps_is_waited_for_and_no_longer(config, url):
    impatient = ServerConfig(data=config.data, db=plus(url, lock_timeout=200))
    with closing(Tokens(impatient)) as tokens, another_session(url) as other:
        token = tokens.issue("alice").token
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": postgres.lock_key("write tokens")})
        with pytest.raises(Unavailable, match="locked by another program"):
            tokens.issue("bob")
        assert tokens.check(token).user == "alice"
        other.rollback()
        tokens.issue("bob")
        other.execute(text("LOCK TABLE tokens"))
        with pytest.raises(Unavailable, match="locked by another program"):
            tokens.check(token)
        other.rollback()
        assert tokens.check(token).user == "alice"


def test_a_question_that_takes_too_long_is_given_up(config, url):
    hasty = ServerConfig(data=config.data, db=plus(url, statement_timeout=200))
    with closing(Tokens(hasty)) as tokens, another_session(url) as other:
        token = tokens.issue("alice").token
        other.execute(text("LOCK TABLE tokens"))
        with pytest.raises(Unavailable, match="took too long"):
            tokens.check(token)
        other.rollback()
        assert tokens.check(token).user == "alice"


def test_a_server_that_hangs_is_given_up_and_asked_anew(config, url, postgres_db, monkeypatch):
    monkeypatch.setattr(postgres, "_SILENT_SECONDS", 0.3)
    Postgres.of(url).close()
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    stopped = []

    def stop():
        stopped.extend(pid for (pid,) in postgres_db.run(others))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    def write(tokens):
        with tokens._database.write() as connection:
            stop()
            connection.execute(text("SELECT 1"))

    try:
        with closing(Tokens(config)) as tokens:
            token = tokens.issue("alice").token
            with pytest.raises(Unavailable, match="silent for"):
                write(tokens)
            assert tokens.check(token).user == "alice"
            stop()
            assert tokens.check(token).user == "alice"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    Postgres.of(url).close()


def test_a_follower_that_takes_no_writes_is_named_as_what_it_is(config, url):
    follower = ServerConfig(data=config.data, db=plus(url, default_transaction_read_only="on"))
    with closing(Tokens(follower)) as tokens, pytest.raises(ReadOnly) as caught:
        tokens.issue("alice")
    assert "primary" in caught.value.hint


@pytest.fixture
def stranger(postgres_db):
    """Somebody who may connect, once, and has no rights."""
    name, password = f"u{uuid.uuid4().hex}", uuid.uuid4().hex
    postgres_db.run(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' CONNECTION LIMIT 1")
    ours = postgres_db.url.get_secret_value()
    theirs = SecretStr(f"postgresql+psycopg://{name}:{password}@{ours.partition('@')[2]}")
    yield theirs
    Postgres.of(theirs).close()
    postgres_db.run(f"DROP OWNED BY {name}")
    postgres_db.run(f"DROP ROLE {name}")


def test_rights_and_connections_that_are_missing_are_named(config, stranger, postgres_db):
    theirs = ServerConfig(data=config.data, db=stranger)
    with pytest.raises(AccessDenied, match="permission denied"):
        Tokens(theirs)
    Postgres.of(theirs.db).close()
    with another_session(theirs.db) as other:
        other.execute(text("SELECT 1"))
        with pytest.raises(Unavailable, match="no connection left") as caught:
            Tokens(theirs).ping()
        assert "max_connections" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda url, _: url.replace("ari:", "nobody:"), AccessDenied, "user or password"),
        (lambda url, password: url.replace(password, f"{password}x"), AccessDenied, "user or password"),
        (lambda url, password: url.replace(f":{password}", ""), AccessDenied, "user or password"),
        (lambda url, _: url.rpartition("/")[0] + "/nothing", ConfigurationError, "'nothing'.* does not exist"),
        (lambda url, _: url.replace("127.0.0.1", "nowhere.invalid"), Unavailable, "nowhere.invalid"),
        (lambda url, _: url.replace("127.0.0.1:", "127.0.0.1:x"), ConfigurationError, "no URL of a PostgreSQL"),
        (lambda url, _: url + "?unheard=of", ConfigurationError, "unheard"),
        (lambda url, _: url + "?options=-c%20unheard.of", Unavailable, "unheard.of"),
        (lambda url, _: url + "?sslmode=require", ConfigurationError, "speaks no TLS"),
    ],
)
def test_a_wrong_url_is_one_line_without_the_password(config, url, change, error, says, caplog):
    caplog.set_level(logging.DEBUG)
    right = url.get_secret_value()
    password = right.partition("ari:")[2].partition("@")[0]
    wrong = ServerConfig(data=config.data, db=change(right, password))
    with pytest.raises(error, match=says) as caught:
        Tokens(wrong).ping()
    told = f"{caught.value.message}{caught.value.hint}{wrong!r}{wrong}{caplog.text}"
    assert "\n" not in caught.value.message
    assert password not in told


def test_without_psycopg_it_says_what_to_install(config, url, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    Postgres._all.clear()
    with pytest.raises(ConfigurationError) as caught:
        Tokens(config)
    assert caught.value.hint == "pip install 'ari-registry[postgres]'"


# -- what the connections are like -------------------------------------------------------------------------------


@pytest.fixture
def other_defaults(postgres_db):
    """A database whose administrator has set limits of his own, and no connections yet."""
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    for limit in limits:
        postgres_db.run(f"ALTER DATABASE {postgres_db.name} SET {limit} = 4321")
    Postgres.of(postgres_db.url).close()
    yield postgres_db.url
    for limit in limits:
        postgres_db.run(f"ALTER DATABASE {postgres_db.name} RESET {limit}")
    Postgres.of(postgres_db.url).close()


def shown(connection, setting):
    return connection.exec_driver_sql(f"SHOW {setting}").scalar()


def test_requests_end_before_their_clients_go_and_turns_take_as_long_as_the_store(other_defaults):
    server = Postgres.of(other_defaults)
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    for engine, told in (server.requests, ["1min", "30s", "0"]), (server.turns, ["0", "1min", "0"]):
        with engine.connect() as connection:
            assert [shown(connection, limit) for limit in limits] == told


def test_both_ends_notice_that_the_other_one_is_gone_without_a_word(url):
    server = Postgres.of(url)
    for engine in server.requests, server.turns:
        with engine.connect() as connection:
            theirs = {name: shown(connection, f"tcp_keepalives_{name}") for name in ("idle", "interval", "count")}
            ours = connection.connection.driver_connection.info.get_parameters()
        assert theirs == {"idle": "10", "interval": "5", "count": "3"}
        assert {f"keepalives_{name}": value for name, value in theirs.items()}.items() <= ours.items()
        assert ours["tcp_user_timeout"] == "20000"


def test_an_upgrade_may_take_its_time_and_what_follows_may_not(url, monkeypatch):
    told, upgrade = [], migrations.upgrade

    def upgrading(connection, kind):
        told.extend((shown(connection, "statement_timeout"), connection.connection.driver_connection.patience))
        upgrade(connection, kind)

    monkeypatch.setattr(migrations, "upgrade", upgrading)
    Postgres.of(url).close()
    postgres.upgrade(url, "index")
    assert told == ["0", math.inf]
    with Postgres.of(url).requests.connect() as connection:
        assert shown(connection, "statement_timeout") == "1min"


# -- several servers ---------------------------------------------------------------------------------------------


def test_a_process_that_lost_its_connection_is_seen_running_again_before_it_changes_anything(config, postgres_db):
    with closing(Index(config)) as one, closing(Index(config)) as two:
        me = one._database.me
        assert not two._database.is_running(me)
        one.intend(ARCHIVE)
        assert two._database.is_running(me)
        end_connections(postgres_db)
        assert not two._database.is_running(me)
        one.intend(ARCHIVE)
        assert two._database.is_running(me)
    with closing(Index(config)) as two:
        assert not two._database.is_running(me)


def test_who_has_lost_the_turn_writes_nothing_over_what_the_next_has_found(config, postgres_db):
    older = Row(ARCHIVE[:16], ARCHIVE, None, 1, Visibility.STAGED, datetime(2026, 1, 1, tzinfo=UTC), "/store/1")
    newer = replace(older, size=2)
    with closing(Index(config)) as index, closing(Index(config)) as another:

        def look():
            end_connections(postgres_db)
            another.agree(ARCHIVE, lambda: newer)
            return older

        with pytest.raises(Unavailable):
            index.agree(ARCHIVE, look)
        assert index.find(ARCHIVE) == newer


def test_servers_with_folders_of_their_own_share_one_index_that_is_complete(tmp_path, url):
    class Empty:
        name = "empty"

        def list(self):
            return iter(())

        def optional(self, _):
            return None

    def server(name, **more):
        return ServerConfig(data=tmp_path / name, backend="s3", options={"bucket": "lab"}, db=url, **more)

    with closing(Index(server("one"))) as one, closing(Index(server("two"))) as two:
        assert not two.complete
        one.reindex(Empty())
        assert two.complete
        assert one.identify() == two.identify()
        assert len(one.identify()) == 16
    elsewhere = server("one").model_copy(update={"options": {"bucket": "other"}})
    with closing(Index(elsewhere)) as other:
        assert not other.complete, "it is of another store"


def test_a_store_that_has_nothing_of_what_the_database_knows_is_refused(postgres_db, tmp_path):
    mine, others = (ServerConfig(data=tmp_path / name, db=postgres_db.url) for name in ("mine", "others"))
    for config in (mine, others):
        (config.data / "artifacts").mkdir(parents=True)
    with closing(Index(mine)) as index, open_store(mine) as store, open_store(others) as other:
        index.require_known(other)  # nothing is known yet
        for seed in (1, 2):
            store.put(make_bundle(seed=seed).source(), new())
        index.reindex(store)
        index.require_known(store)
        with pytest.raises(ConfigurationError, match="nothing of the 2 artifacts"):
            index.require_known(other)
        with pytest.raises(ConfigurationError, match="another"):
            prepare(others)
        assert index.count() == 2
        other.put(make_bundle(seed=2).source(), new())
        index.require_known(other)


def test_a_store_that_has_lost_what_was_being_deleted_is_not_taken_for_another(postgres_db, tmp_path):
    config = ServerConfig(data=tmp_path / "data", db=postgres_db.url)
    (config.data / "artifacts").mkdir(parents=True)
    with closing(Index(config)) as index, open_store(config) as store:
        artifact, _ = store.put(make_bundle(seed=1).source(), new())
        index.reindex(store)
        with closing(Index(config)) as killed:  # as by a server that did not get further
            killed.intend(artifact.archive_sha256, artifact.locator)
        store.delete(artifact.locator)
        assert index.count() == 1
        prepare(config)
        assert index.count() == 0
