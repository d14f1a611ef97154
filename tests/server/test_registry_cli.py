"""`ari registry …` as an operator uses it: tokens, the index, and a server that starts and stops."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner
from support.registry import free_port
from support.run import ARI, ari, ari_json, error_of

from ari_backends.filesystem_registry import FilesystemRegistry
from ari_core.errors import ConfigurationError, ReadOnly
from ari_core.wrappers import ReadOnlyBackend
from ari_server.cli import app
from ari_server.config import ServerConfig
from ari_server.index import Index
from ari_server.migrations import NEWEST
from ari_server.serve import _check_store, prepare
from ari_server.tokens import Tokens

EXISTING = Path(__file__).parents[1] / "data" / "existing"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def existing(tmp_path):
    with tarfile.open(EXISTING / "registry-data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "registry-data"


def hiding(tmp_path, code):
    """An environment in which Python runs `code` before anything else."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return os.environ | {"PYTHONPATH": str(folder)}


# -- tokens ------------------------------------------------------------------------------------------------------


def test_a_stolen_token_is_revoked_with_all_that_was_made_with_it(data):
    with closing(Tokens(ServerConfig(data=data))) as tokens:
        stolen, other = tokens.issue("alice"), tokens.issue("bob")
        mine = [tokens.issue_fetch("a" * 64, "alice", expires=None) for _ in range(2)]
        bobs = tokens.issue_fetch("a" * 64, "bob", expires=None)
    done = ari("registry", "token", "revoke", stolen.id, "--data-dir", data)
    assert "2 fetch tokens that alice made still work" in done.stderr
    listed = ari_json("registry", "token", "list", "--shares", "--data-dir", data)[1]["tokens"]
    assert {one["id"] for one in listed} == {stolen.id, other.id, bobs.id, *(one.id for one in mine)}
    again = ari_json("registry", "token", "revoke", stolen.id, "--shares", "--data-dir", data)[1]
    assert set(again["shares_revoked"]) == {one.id for one in mine}
    with closing(Tokens(ServerConfig(data=data))) as tokens:
        assert not any(tokens.check(one.token) for one in (stolen, *mine))
        assert tokens.check(bobs.token).user == "bob"
        assert tokens.check(other.token).user == "bob"


def test_a_token_from_issue_to_revocation(data):
    done = ari("registry", "token", "issue", "alice", "--data-dir", data)
    assert done.returncode == 0
    token = re.search(r"^  (ari_\S+)$", done.stdout, re.MULTILINE)[1]
    number = re.search(r"id is ([0-9a-f]{16})", done.stdout)[1]
    assert f"export ARI_REGISTRY_TOKEN={token}" in done.stdout, "what to do next"
    with closing(Tokens(ServerConfig(data=data))) as tokens:
        assert tokens.check(token).user == "alice"
        listed = ari("registry", "token", "list", "--data-dir", data).stdout
        assert number in listed
        assert token not in listed
        assert ari("registry", "token", "revoke", number, "--data-dir", data).returncode == 0
        assert tokens.check(token) is None
    assert "revoked" in ari("registry", "token", "list", "--data-dir", data).stdout


def test_a_token_as_json(data):
    code, issued = ari_json(
        *("registry", "token", "issue", "ci", "--scope", "read", "--expires", "90d", "--data-dir", data)
    )
    assert code == 0
    assert set(issued) == {"id", "token", "user", "scope", "created", "expires"}
    created, expires = (datetime.fromisoformat(issued[name]) for name in ("created", "expires"))
    assert expires - created == timedelta(days=90)
    code, listed = ari_json("registry", "token", "list", "--data-dir", data)
    assert listed == {
        "tokens": [
            {
                **{name: issued[name] for name in ("id", "user", "scope", "created", "expires")},
                "revoked": None,
                "last_used": None,
            }
        ]
    }


def test_the_environment_names_the_data_directory(data):
    env = os.environ | {"ARI_REGISTRY_DATA": str(data)}
    code, issued = ari_json("registry", "token", "issue", "alice", env=env)
    assert code == 0
    with closing(Tokens(ServerConfig(data=data))) as tokens:
        assert tokens.check(issued["token"])


@pytest.mark.parametrize("expires", ["90", "2020-01-01"])
def test_an_expiry_that_cannot_be_is_a_usage_error_and_makes_nothing(data, expires):
    done = ari("registry", "token", "issue", "alice", "--expires", expires, "--data-dir", data)
    assert done.returncode == 2
    error_of(done)
    assert not data.exists()


def test_a_wrong_id_is_not_found_and_a_token_in_its_place_is_not_repeated(data):
    _, issued = ari_json("registry", "token", "issue", "alice", "--data-dir", data)
    done = ari("registry", "token", "revoke", "0123456789abcdef", "--data-dir", data)
    assert (done.returncode, "0123456789abcdef" in done.stderr) == (3, True)
    done = ari("registry", "token", "revoke", issued["token"], "--data-dir", data)
    assert done.returncode == 2
    assert issued["token"] not in done.stdout + done.stderr


def test_looking_into_a_misspelt_data_directory_makes_none(tmp_path):
    for command in (("token", "list"), ("reindex",)):
        done = ari("registry", *command, "--data-dir", tmp_path / "dta")
        assert done.returncode == 3
        assert str(tmp_path / "dta") in error_of(done)[0]
    assert not (tmp_path / "dta").exists()


def test_a_data_directory_without_a_parent_is_a_usage_error(tmp_path):
    done = ari("registry", "token", "issue", "alice", "--data-dir", tmp_path / "a" / "b")
    assert done.returncode == 2
    assert not (tmp_path / "a").exists()


def test_the_deprecated_data_directory_is_used_with_a_warning_that_is_seen(existing, tmp_path):
    home = tmp_path / "home"
    (home / ".ari").mkdir(parents=True)
    existing.rename(home / ".ari" / "registry-data")
    done = ari("registry", "token", "list", env=os.environ | {"HOME": str(home)})
    assert done.returncode == 0
    assert re.search(r"^warning: .*ARI_REGISTRY_DATA.*1\.0", done.stderr)
    assert done.stdout.count("alice") == 2


def test_a_misspelt_variable_is_a_usage_error(data):
    done = ari("registry", "token", "list", env=os.environ | {"ARI_REGISTRY_DTA": str(data)})
    assert done.returncode == 2
    assert "'ARI_REGISTRY_DATA'" in error_of(done)[0]


# -- the rest of the group ---------------------------------------------------------------------------------------


def test_without_the_server_extra_it_says_what_to_install(tmp_path):
    env = hiding(tmp_path, "import sys; sys.modules['sqlalchemy'] = None")
    done = ari("registry", "token", "list", env=env)
    assert done.returncode == 2
    message, hint = error_of(done)
    assert "sqlalchemy" in message
    assert "pip install 'ari-registry[server]'" in hint
    assert ari("--help", env=env).returncode == 0


def test_every_command_explains_itself_without_loading_a_server(tmp_path):
    env = hiding(
        tmp_path,
        "import atexit, sys\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'sqlalchemy', 'prometheus_client'}\n"
        "atexit.register(lambda: print('LOADED', heavy & set(sys.modules)))\n",
    )
    for command in ((), ("serve",), ("token", "issue")):
        done = ari("registry", *command, "--help", env=env)
        assert done.returncode == 0
        assert "LOADED set()" in done.stdout


def test_the_index_of_an_existing_server_is_made_and_told_about(existing):
    code, done = ari_json("registry", "reindex", "--data-dir", existing)
    assert (code, done) == (0, {"indexed": 4, "removed": 0, "warnings": []})
    shutil.rmtree(existing / "artifacts" / "30cca09dcfb65408")
    assert ari_json("registry", "reindex", "--data-dir", existing)[1]["removed"] == 1


# -- databases ---------------------------------------------------------------------------------------------------


@pytest.fixture
def database(postgres_url):
    """An environment with a PostgreSQL database that has no tables yet, and no data directory."""
    return os.environ | {"ARI_REGISTRY_DB": postgres_url}


def test_files_are_up_to_date_as_soon_as_they_are_opened(existing, tmp_path):
    for command in ("check", "upgrade"):
        assert ari_json("registry", "db", command, "--data-dir", existing)[1] == {"versions": dict(NEWEST)}
        done = ari("registry", "db", command, "--data-dir", tmp_path / "misspelt")
        assert done.returncode == 3
    assert not (tmp_path / "misspelt").exists()


@pytest.mark.in_ci
def test_tables_in_postgresql_are_made_when_told_to_and_then_everything_works(database, tmp_path):
    for command in (("db", "check"), ("token", "issue", "alice"), ("serve", "--port", "0")):
        done = ari("registry", *command, "--data-dir", tmp_path / "data", env=database)
        assert done.returncode == 2
        assert "run `ari registry db upgrade`" in error_of(done)[1]
    for command in ("upgrade", "check"):
        assert ari_json("registry", "db", command, env=database) == (0, {"versions": dict(NEWEST)})
    issued = ari_json("registry", "token", "issue", "alice", "--scope", "read", env=database)[1]
    assert [one["id"] for one in ari_json("registry", "token", "list", env=database)[1]["tokens"]] == [
        issued["id"]
    ]
    assert ari("registry", "token", "revoke", issued["id"], env=database).returncode == 0
    assert list(tmp_path.iterdir()) == [], "none of it is in a data directory"
    with serving("--data-dir", tmp_path / "data", env=database) as (_, url):
        assert httpx2.get(f"{url}/readyz", timeout=60).status_code == 200
    assert not list((tmp_path / "data").glob("*.db"))
    done = ari("registry", "reindex", "--data-dir", tmp_path / "data", env=database)
    assert done.returncode == 0
    assert (
        "there is no data directory" in error_of(ari("registry", "reindex", "--data-dir", "/no", env=database))[0]
    )


@pytest.mark.in_ci
def test_a_database_that_does_not_answer_is_one_line_without_its_password(tmp_path):
    env = os.environ | {"ARI_REGISTRY_DB": f"postgresql+psycopg://ari:canary@127.0.0.1:{free_port()}/ari"}
    for command in (
        ("db", "check"),
        ("db", "upgrade"),
        ("token", "list"),
        ("serve", "--data-dir", tmp_path / "x"),
    ):
        done = ari("registry", *command, env=env)
        assert done.returncode == 5
        assert "does not answer" in error_of(done)[0]
        assert "canary" not in done.stdout + done.stderr


def test_the_database_is_no_option_since_anybody_may_read_a_command_line(data):
    assert "--db" not in ari("registry", "serve", "--help").stdout
    assert ari("registry", "serve", "--db", "postgresql://ari:canary@x/y", "--data-dir", data).returncode == 2


# -- serve -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(*options, env=None):
    """A running server and its URL."""
    process = subprocess.Popen(
        [ARI, "registry", "serve", "--port", "0", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving http://"), process.communicate(timeout=60)
        yield process, line.split()[1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(("workers", "signal_"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_server_starts_from_nothing_and_stops_when_told_to(data, tmp_path, workers, signal_):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with serving("--data-dir", data, "--workers", workers, env=env) as (process, url):
        assert httpx2.get(f"{url}/healthz", timeout=60).json() == {"ok": True}
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "nothing is left in the temporary folder"
    assert data.stat().st_mode & 0o777 == 0o700
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_a_server_stops_while_it_is_still_starting(data):
    with serving("--data-dir", data, "--workers", "2") as (process, _):
        process.send_signal(signal.SIGINT)  # workers are being imported
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_options_reach_workers_and_these_leave_with_a_parent_that_is_killed(data):
    options = ("--data-dir", data, "--workers", "2", "--metrics", "off")
    with serving(*options) as (process, url):
        assert httpx2.get(f"{url}/metrics", timeout=60).status_code == 404
        process.kill()
        process.communicate(timeout=60)  # ends when the last worker lets go of the pipe
    with pytest.raises(httpx2.ConnectError):  # so the next server gets the port
        httpx2.get(url)


def refused(*options, env=None):
    done = ari("registry", "serve", *options, env=env)
    message, _ = error_of(done)
    assert done.stdout == ""
    return done.returncode, message


def test_a_port_in_use_is_one_clear_line(data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for workers in (1, 2):
            code, message = refused("--data-dir", data, "--port", port, "--workers", workers)
            assert code == 2
            assert f"127.0.0.1 port {port}" in message
            assert "in use" in message


def test_an_address_that_is_not_ours_is_one_clear_line(data):
    assert refused("--data-dir", data, "--host", "192.0.2.1")[0] == 2


def test_a_store_that_lacks_what_serving_needs_is_refused_by_all_that_it_lacks(data):
    code, message = refused("--data-dir", data, "--backend", "https", "--port", "0")
    assert code == 2
    assert re.search(r"'https'.* lacks put, delete, list, visibility, stores_meta, owners", message)


class Served(FilesystemRegistry):
    """A store that remembers who serves it."""

    def serve_for(self, registry, *, take_over=False):
        note = self.settings.root / "served"
        if take_over or not note.exists():
            note.write_text(registry)
        return note.read_text()


def test_a_store_that_is_served_with_another_database_is_refused_until_taken_over(tmp_path, monkeypatch):
    root = tmp_path / "store"
    root.mkdir()
    monkeypatch.setattr("ari_server.service.open_store", lambda *_, **__: Served(Served.Settings(root=root)))
    ours, theirs = (ServerConfig(data=tmp_path / name) for name in ("ours", "theirs"))
    for _ in range(2):
        prepare(ours)
    with pytest.raises(ConfigurationError) as caught:
        prepare(theirs)
    assert "several servers of one store need one PostgreSQL database (ARI_REGISTRY_DB)" in caught.value.message
    assert (caught.value.exit_code, "reindex --take-over" in caught.value.hint) == (2, True)
    done = CliRunner().invoke(app, ["reindex", "--take-over", "--data-dir", str(theirs.data)])
    assert done.exit_code == 0, done.output
    prepare(theirs)
    with pytest.raises(ConfigurationError):
        prepare(ours)


def test_nothing_is_taken_over_where_nothing_is_noted(data):
    assert ari("registry", "token", "issue", "alice", "--data-dir", data).returncode == 0
    done = ari("registry", "reindex", "--take-over", "--data-dir", data)
    assert done.returncode == 2
    assert "filesystem-registry" in error_of(done)[0]


def locators(config):
    with closing(Index(config)) as index:
        assert index.intents() == []
        return {Path(row.locator) for row in index.page(user="alice", after=None, limit=50, query=None)[0]}


def test_a_directory_that_was_moved_or_copied_is_served_from_where_it_is(existing, tmp_path):
    before = ServerConfig(data=existing)
    prepare(before)
    known = locators(before)
    assert known
    with closing(Index(before)) as index:
        index.intend("0" * 64, str(existing / "artifacts" / ("0" * 16)))  # cut off by a crash
    for make, name in ((shutil.copytree, "copy"), (shutil.move, "moved")):
        make(existing, tmp_path / name)
        after = ServerConfig(data=tmp_path / name)
        prepare(after)
        assert locators(after) == {tmp_path / name / path.relative_to(existing) for path in known}


def test_an_index_is_not_made_again_where_it_was_made(existing, monkeypatch):
    prepare(ServerConfig(data=existing))
    monkeypatch.setattr(Index, "reindex", None)
    prepare(ServerConfig(data=existing))


def test_a_store_that_takes_no_writes_here_is_not_said_to_be_of_the_wrong_kind(tmp_path):
    store = ReadOnlyBackend(FilesystemRegistry(FilesystemRegistry.Settings(root=tmp_path)))
    with pytest.raises(ReadOnly, match="takes no writes here") as caught:
        _check_store(store)
    assert "mounted" in caught.value.hint


def test_an_unknown_store_is_refused(data):
    code, message = refused("--data-dir", data, "--backend", "filesystem-registri", "--port", "0")
    assert code == 2
    assert "'filesystem-registry'" in message


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_start_ends_the_server(data, tmp_path, workers):
    """Instead of being started again for ever."""
    env = hiding(
        tmp_path,
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ari_server.app': raise ImportError('planted')\n"
        "sys.meta_path.insert(0, Finder())\n",
    )
    done = ari("registry", "serve", "--data-dir", data, "--port", "0", "--workers", workers, env=env)
    assert done.returncode == 5
    assert "the server cannot start: ImportError: planted" in done.stderr
    assert "error: a worker could not start" in done.stderr
