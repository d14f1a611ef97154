"""Tables of every age become those of this version, in files and in PostgreSQL."""

import json
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from support.registry import together

from ari_core.errors import ConfigurationError, LocalPermissionError
from ari_server import index, migrations, postgres, tokens
from ari_server.config import ServerConfig
from ari_server.index import Index
from ari_server.tokens import Tokens

EXISTING = Path(__file__).parents[1] / "data" / "existing"
KINDS = {"tokens": (Tokens, tokens._tables, "tokens.db"), "index": (Index, index._tables, "registry.db")}

# As files were made before their tables had versions.
BEFORE = {
    "tokens": """
        CREATE TABLE tokens (id TEXT NOT NULL, token_hash TEXT NOT NULL, user TEXT NOT NULL,
            created_at TEXT NOT NULL, revoked_at TEXT, PRIMARY KEY (id), UNIQUE (token_hash));
        CREATE TABLE limited_tokens (id TEXT NOT NULL, token_hash TEXT NOT NULL, user TEXT NOT NULL,
            scope TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT,
            PRIMARY KEY (id), UNIQUE (token_hash));
        CREATE TABLE fetch_tokens (id TEXT NOT NULL, token_hash TEXT NOT NULL, archive_sha256 TEXT NOT NULL,
            user TEXT NOT NULL, note TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT,
            PRIMARY KEY (id), UNIQUE (token_hash));
        CREATE INDEX ix_fetch_tokens_archive_sha256 ON fetch_tokens (archive_sha256);
        CREATE TABLE token_uses (id TEXT NOT NULL, used_at TEXT NOT NULL, PRIMARY KEY (id));
        INSERT INTO limited_tokens VALUES ('0123', 'hash', 'alice', 'read', '2026-01-01T00:00:00Z', NULL, NULL);
    """,
    "index": """
        CREATE TABLE artifacts (archive_sha256 TEXT NOT NULL, id TEXT NOT NULL, bundle_sha256 TEXT,
            size BIGINT NOT NULL, visibility TEXT NOT NULL, created BIGINT NOT NULL, locator TEXT NOT NULL,
            file_count BIGINT, total_bytes BIGINT, license TEXT, title TEXT, manifest_sha256 TEXT,
            generation BIGINT NOT NULL, PRIMARY KEY (archive_sha256), UNIQUE (id)) WITHOUT ROWID;
        CREATE INDEX artifacts_newest ON artifacts (visibility, created, archive_sha256);
        CREATE TABLE owners (archive_sha256 TEXT NOT NULL, position BIGINT NOT NULL, user TEXT NOT NULL,
            visibility TEXT NOT NULL, since BIGINT, created BIGINT NOT NULL,
            PRIMARY KEY (archive_sha256, position)) WITHOUT ROWID;
        CREATE INDEX owners_newest ON owners (user, created, archive_sha256);
        CREATE TABLE words (archive_sha256 TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (archive_sha256));
        CREATE TABLE removals (archive_sha256 TEXT NOT NULL, id TEXT NOT NULL, deleted BIGINT NOT NULL,
            shown BOOLEAN NOT NULL, generation BIGINT NOT NULL, PRIMARY KEY (archive_sha256));
        CREATE TABLE intents (archive_sha256 TEXT NOT NULL, who TEXT NOT NULL, locator TEXT NOT NULL,
            begun BIGINT NOT NULL, PRIMARY KEY (archive_sha256, who));
        CREATE TABLE facts (name TEXT NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (name));
        INSERT INTO facts VALUES ('generation', 7);
    """,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def file(tmp_path, kind):
    """A file as it was made before its tables had versions."""
    path = tmp_path / KINDS[kind][2]
    with closing(sqlite3.connect(path)) as database:
        database.executescript(BEFORE[kind])
    return path


def opened(kind, data):
    return closing(KINDS[kind][0](ServerConfig(data=data)))


def differences(connection, metadata, kind):
    """What Alembic would change to get from the tables that are there to those in code."""
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "version_table": f"alembic_version_{kind}",
        "include_name": lambda name, what, _: what != "table" or name in metadata.tables,
    }
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def engine_of(path):
    return sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_from_before_there_were_versions_is_brought_up_to_date_and_keeps_its_rows(tmp_path, kind, file):
    with opened(kind, tmp_path):
        pass
    with engine_of(file).connect() as connection:
        assert migrations.current(connection, kind) == migrations.NEWEST[kind]
        assert differences(connection, KINDS[kind][1], kind) == []
        table, row = ("limited_tokens", "0123") if kind == "tokens" else ("facts", "generation")
        assert connection.exec_driver_sql(f"SELECT * FROM {table}").one()[0] == row  # noqa: S608


def test_a_new_file_is_like_one_that_was_brought_up_to_date(tmp_path, kind, file):
    (tmp_path / "old").mkdir()
    file.rename(tmp_path / "old" / file.name)
    schemas = []
    for data in (tmp_path / "old", tmp_path / "new"):
        with opened(kind, data):
            pass
        with closing(sqlite3.connect(data / file.name)) as database:
            found = database.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            schemas.append({name: " ".join(sql.replace('"', "").split()) for name, sql in found})
    plain = [{name: sql.replace("( ", "(").replace(" )", ")") for name, sql in one.items()} for one in schemas]
    assert plain[0] == plain[1]


def test_of_several_who_open_an_old_file_at_once_one_brings_it_up_to_date(tmp_path, kind, file):
    for found in together(*[lambda: opened(kind, tmp_path)] * 4):
        found.__exit__(None, None, None)
    with engine_of(file).connect() as connection:
        assert differences(connection, KINDS[kind][1], kind) == []


def test_the_existing_servers_file_is_brought_up_to_date_and_its_own_table_stays_as_it_was(tmp_path):
    with tarfile.open(EXISTING / "registry-data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = tmp_path / "registry-data"

    def theirs():
        with closing(sqlite3.connect(data / "tokens.db")) as database:
            schema = database.execute("SELECT sql FROM sqlite_schema WHERE tbl_name = 'tokens'").fetchall()
            return schema, database.execute("SELECT * FROM tokens ORDER BY id").fetchall()

    before = theirs()
    with closing(Tokens(ServerConfig(data=data))) as ours:
        text = json.loads((EXISTING / "registry-data.json").read_text())["alice"]
        assert ours.check(text).user == "alice"
    assert theirs() == before
    with engine_of(data / "tokens.db").connect() as connection:
        assert migrations.current(connection, "tokens") == migrations.NEWEST["tokens"]


def test_a_file_of_a_newer_version_is_refused_and_not_touched(tmp_path, kind, file):
    with opened(kind, tmp_path):
        pass
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"UPDATE alembic_version_{kind} SET version_num = '9999'")  # noqa: S608
        database.commit()
    with pytest.raises(ConfigurationError, match=r"9999.*0001") as caught:
        opened(kind, tmp_path)
    assert "newer" in caught.value.hint


def test_opening_what_is_up_to_date_costs_no_alembic(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ari_server.config import ServerConfig;"
        "from ari_server.tokens import Tokens; from ari_server.index import Index;"
        "config = ServerConfig(data=Path(sys.argv[1])); Tokens(config).close(); Index(config).close();"
        "assert 'alembic' not in sys.modules"
    )
    for _ in ("new", "there already"):
        subprocess.run([sys.executable, "-c", code, tmp_path / "data"], check=True)


def test_the_last_step_is_the_one_that_is_named(kind):
    folder = Path(migrations.__file__).with_name(kind)
    config = Config()
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.NEWEST[kind]


# -- PostgreSQL --------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(postgres_url):
    url = SecretStr(postgres_url)
    yield url
    postgres.Postgres.of(url).close()


def test_tables_in_postgresql_are_those_in_code_and_compare_text_as_bytes(empty):
    for kind in KINDS:
        postgres.upgrade(empty, kind)
    with postgres.Postgres.of(empty).requests.connect() as connection:
        for kind, (_, metadata, _) in KINDS.items():
            assert differences(connection, metadata, kind) == []
        collations = connection.exec_driver_sql(
            "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND data_type = 'text'"
        ).scalars()
        assert list(collations) == ["C"]


def test_tables_in_postgresql_are_made_by_upgrade_only(tmp_path, empty, kind):
    config = ServerConfig(data=tmp_path, db=empty)
    with pytest.raises(ConfigurationError) as caught:
        KINDS[kind][0](config)
    assert "ari registry db upgrade" in caught.value.hint
    together(*[lambda: postgres.upgrade(empty, kind)] * 4)
    KINDS[kind][0](config).close()
    with postgres.Postgres.of(empty).requests.connect() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version_{kind} SET version_num = '9999'")  # noqa: S608
    for attempt in (lambda: KINDS[kind][0](config), lambda: postgres.upgrade(empty, kind)):
        with pytest.raises(ConfigurationError, match="9999"):
            attempt()


def test_a_step_that_fails_leaves_postgresql_as_it_was(empty, monkeypatch):
    def fail(connection, _):
        connection.exec_driver_sql("CREATE TABLE half_done (x INT)")
        raise LocalPermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "upgrade", fail)
        with pytest.raises(LocalPermissionError):
            postgres.upgrade(empty, "tokens")
    with postgres.Postgres.of(empty).requests.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []


def test_a_database_that_cannot_hold_all_names_is_refused(shared_server):
    cluster = shared_server("postgres")
    name = "ari_latin1"
    cluster.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    url = SecretStr(cluster.url(name))
    try:
        with pytest.raises(ConfigurationError, match="LATIN1") as caught:
            postgres.upgrade(url, "tokens")
        assert "createdb" in caught.value.hint
    finally:
        postgres.Postgres.of(url).close()
        cluster.run(f"DROP DATABASE {name} WITH (FORCE)")
