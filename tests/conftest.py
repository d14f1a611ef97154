"""What all tests share: which external programs they need, and an environment that is nobody's own."""

import os
import shutil

import pytest


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long campaigns too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="a long campaign: run with --long")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if shutil.which(tool) is None:
                if os.environ.get("ARI_TEST_REQUIRE") == "all":
                    pytest.fail(f"'{tool}' is missing and ARI_TEST_REQUIRE=all")
                pytest.skip(f"needs '{tool}'")


@pytest.fixture(autouse=True)
def _nobodys_environment(monkeypatch, tmp_path_factory):
    """Keeps the developer's own settings, home and checkpoint out of every test."""
    for name in list(os.environ):
        if name.startswith(("ARI_", "AWS_", "ZENODO_")) and name != "ARI_TEST_REQUIRE":
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
