"""What all tests share: which external programs they need, and an environment that is nobody's own."""

import contextlib
import functools
import os

import pytest
from support import stores
from support.programs import require


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long campaigns too")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Gives each process a stretch of the tests, so that what a module shares is mostly made once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(config, items):
    left_out = {}
    if not config.getoption("--long"):
        left_out["long"] = pytest.mark.skip(reason="a long campaign: run with --long")
        if os.environ.get("ARI_TEST_REQUIRE") != "all":
            left_out["in_ci"] = pytest.mark.skip(reason="not for every day: with ARI_TEST_REQUIRE=all, as in CI")
    for item in items:
        for marker, skip in left_out.items():
            if item.get_closest_marker(marker):
                item.add_marker(skip)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        require(*marker.args)


@pytest.fixture(autouse=True)
def _nobodys_environment(monkeypatch, tmp_path_factory):
    """Keeps the developer's own settings, home and checkpoint out of every test."""
    for name in list(os.environ):
        if name.startswith(("ARI_", "AWS_", "ZENODO_")) and name != "ARI_TEST_REQUIRE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # nobody asks the network for credentials
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """Gives a function that returns the server of a kind that all processes of this session share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with contextlib.ExitStack() as stack:

        @functools.cache
        def get(kind):
            require(*stores.PROGRAMS[kind])
            return stack.enter_context(stores.shared(kind, folder / "servers"))

        yield get


@pytest.fixture(params=stores.S3)
def s3_store(request, shared_server):
    """A `support.stores.Store` with a fresh bucket, on each S3 server in turn; a test may name some (indirect)."""
    return shared_server(request.param).with_bucket()


@pytest.fixture
def moto(shared_server):
    """A fresh bucket on the emulator."""
    return shared_server("moto").with_bucket()


@pytest.fixture
def rgw(shared_server):
    """A fresh bucket on Ceph."""
    return shared_server("rgw").with_bucket()


@pytest.fixture
def swift(shared_server):
    """A fresh bucket on OpenStack Swift."""
    return shared_server("swift").with_bucket()


@pytest.fixture
def postgres_url(shared_server):
    """SQLAlchemy's URL of a fresh database in PostgreSQL."""
    with shared_server("postgres").database() as url:
        yield url
