"""Servers that several tests share, one of each kind per test process."""

import uuid
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from support.registry import Registry
from support.stores import Cluster

from ari_server import migrations, postgres
from ari_server.config import ServerConfig


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A server with one worker."""
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A server with two workers, for what must hold between them."""
    with Registry(tmp_path_factory.mktemp("pair"), workers=2) as server:
        yield server


@pytest.fixture
def alone(tmp_path):
    """Makes a server for one test; not started."""
    made = []

    def make(**options):
        made.append(Registry(tmp_path / f"server-{len(made)}", **options))
        return made[-1]

    yield make
    for server in made:
        server.__exit__()


@pytest.fixture(scope="session")
def _database(shared_server):
    """A database with all tables.

    It is a Danish one: there "aa" comes behind "z", and digests that are not compared as bytes are out of order.
    """
    cluster, name = shared_server("postgres"), f"ari_{uuid.uuid4().hex}"
    cluster.run(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'da-DK'"
    )
    url = SecretStr(cluster.url(name))
    for kind in migrations.NEWEST:
        postgres.upgrade(url, kind)
    yield Database(cluster, name, url)
    postgres.Postgres.of(url).close()
    cluster.run(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database; `url` is for `ServerConfig.db`."""

    cluster: Cluster
    name: str
    url: SecretStr

    def run(self, statement):
        """Runs a statement as its superuser."""
        return self.cluster.run(statement, self.name)


@pytest.fixture
def postgres_db(_database):
    """A database with all tables, which are empty."""
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'alembic%'"
    _database.run(f"TRUNCATE {', '.join(name for (name,) in _database.run(tables))}")
    return _database


@pytest.fixture(params=["sqlite", "postgres"])
def config(request, tmp_path):
    """A registry that keeps tokens and index in files, and one that keeps them in PostgreSQL."""
    db = request.getfixturevalue("postgres_db").url if request.param == "postgres" else None
    return ServerConfig(data=tmp_path / "data", db=db)
