"""Servers that several tests share, one of each kind per test process."""

import pytest
from support.registry import Registry


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
