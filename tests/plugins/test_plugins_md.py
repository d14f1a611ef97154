"""plugins.md against the files it shows and the code it describes."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from support.packages import Packages

from ari_core import contract, errors
from ari_core.contract import Backend, Capabilities
from ari_core.errors import TABLE, BackendError
from ari_core.layout import Blobs, StoredLayout
from ari_core.plugins import SELECT_VARIABLE, STRICT_VARIABLE, Hooks
from ari_core.settings import load_config

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "plugins.md").read_text()
EXAMPLE = HERE / "ari_folder_store"
SHOWN = dict(re.findall(r"^<!-- file: (\S+) -->\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def section(heading):
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text):
    return re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)


def test_every_file_of_the_example_is_shown():
    files = {str(file.relative_to(EXAMPLE)) for pattern in ("*.toml", "*.py") for file in EXAMPLE.rglob(pattern)}
    assert SHOWN.keys() == files


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_is_the_file(name):
    assert SHOWN[name] == (EXAMPLE / name).read_text()


def test_the_example_is_short():
    assert len((EXAMPLE / "ari_folder_store/store.py").read_text().splitlines()) < 120


def test_every_capability_is_described():
    assert [name for name, _ in rows(section("Capabilities"))] == [field.name for field in fields(Capabilities)]


def test_every_error_is_described_with_its_exit_status():
    described = {name: int(rest.rpartition("|")[2]) for name, rest in rows(section("Errors"))}
    assert described == {
        cls.__name__: case.exit_code
        for cls, case in TABLE.items()
        if issubclass(cls, BackendError) and cls is not BackendError
    }


def test_every_method_for_authors_is_described():
    part = inspect.getsource(Backend).split("# -- for authors")[1].split("# -- for callers")[0]
    for_authors = set(re.findall(r"def (_[a-z]\w*)", part))
    assert len(for_authors) > 8
    text = section("The contract in ten minutes")
    assert set(re.findall(r"`(_[a-z_]+)\(", text)) == for_authors


@pytest.mark.parametrize("cls", [Blobs, StoredLayout])
def test_every_method_of_the_stored_layout_is_described(cls):
    table = section("Stores of blobs").split(f"\n| `{cls.__name__}` | owes |\n")[1].split("\n\n")[0]
    calls = {line.split("|")[1] for line in table.splitlines()[1:]}
    told = {name: signature for call in calls for name, signature in re.findall(r"`(\w+)\((.*?)\)`", call)}
    assert told.keys() == cls.__abstractmethods__
    for name, arguments in told.items():
        owed = [arg for arg in inspect.signature(getattr(cls, name)).parameters if arg != "self"]
        assert arguments.split(", ") == (owed or [""])


def test_every_hook_and_variable_is_described():
    for name in (*[name for name in vars(Hooks) if name.startswith("ari_")], SELECT_VARIABLE, STRICT_VARIABLE):
        assert name in TEXT


def test_names_in_the_text_exist():
    for name in re.findall(r"`(Supports\w+)`", TEXT):
        assert hasattr(contract, name)
    for name, _ in rows(section("Errors")):
        assert hasattr(errors, name)


def test_the_profile_shown_is_a_right_one(tmp_path):
    shown = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]
    path = tmp_path / "config.yaml"
    path.write_text(shown)
    path.chmod(0o600)
    profile = load_config({"ARI_CONFIG": str(path)}).profiles["lab"]
    assert (profile.type, profile.values) == ("folder-store", {"path": "/srv/bundles"})


def test_the_command_group_shown_is_a_right_one(tmp_path, monkeypatch):
    packages = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(packages.folder))
    code = re.search(r"```python\n(.*?)```", section("Command groups"), re.DOTALL)[1]
    packages.module("shown_in_plugins_md", code, head="")
    packages.package("shown", entry_points="[ari_registry]\nshelf = shown_in_plugins_md\n")
    loaded = packages.load()
    assert not loaded.problems
    assert loaded.groups["shelf"].help == "look after shelves"
