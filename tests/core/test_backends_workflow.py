"""Listing, showing and checking backends, and what one that misbehaves can do to it."""

import importlib.metadata
import json
import os
import signal
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest
from support.packages import Packages

from ari_core.cli import main
from ari_core.contract import Capabilities
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    BackendBug,
    ConfigurationError,
    IntegrityError,
    InvalidConfiguration,
    PluginLoadError,
    Unavailable,
    UnknownBackend,
    Unsupported,
)
from ari_core.workflows import backends as workflow
from ari_core.workflows.backends import (
    LACKS,
    ONLY_A_TRIAL_SHOWS,
    check_backend,
    list_backends,
    show_backend,
)

FOLDER_STORE = Path(__file__).parents[1] / "plugins" / "ari_folder_store"
SECRET = "hunter2-hunter2"  # noqa: S105 - what must never be shown

# Backends that are fine but for one thing.
ODD = """
import ctypes, os, subprocess, sys, threading, time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from ari_core.contract import Capabilities, Visibility
from ari_core.errors import AccessDenied, AlreadyExists, Unavailable
from ari_folder_store.store import FolderStore

class Odd(FolderStore):
    aliases = {"token": ("ODD_TOKEN",)}
    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        path: Path | None = None
        token: SecretStr = Field(SecretStr("none"), description="a bearer token")
        boards: int = 5
        wood: Literal["oak", "pine"] = "pine"
    def __init_subclass__(cls):
        cls.name = cls.__name__.lower()

class Hangs(Odd):
    def _probe(self):
        time.sleep(3600)

class Exits(Odd):
    def _probe(self):
        os._exit(7)

class Segfaults(Odd):
    def _probe(self):
        ctypes.string_at(0)

class Leaves(Odd):
    def _probe(self):
        sys.exit("bye")

class Prints(Odd):
    def _probe(self):
        print('{"result": 1}')
        os.write(1, b"raw")
        print("noise", file=sys.stderr)
        self.context.warn("look\\x1b[31m out")
        threading.Thread(target=time.sleep, args=(3600,)).start()
        return self.capabilities

class Forks(Odd):
    def _probe(self):
        if (pid := os.fork()) == 0:
            time.sleep(3600)
        Path(self.settings.path, "pid").write_text(str(pid))
        return self.capabilities

class Escapes(Odd):
    def _probe(self):
        mine, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            os.setsid()
            os.close(mine)
            os.close(theirs)
            time.sleep(3600)
        os.close(theirs)
        os.read(mine, 1)
        Path(self.settings.path, "pid").write_text(str(pid))
        return self.capabilities

class Refuses(Odd):
    def _probe(self):
        raise AccessDenied("no entry\\nfor you", hint="ask\\x07")

class Forgets(Odd):
    @contextmanager
    def _open(self, locator, offset):
        with super()._open(locator, offset) as stream:
            yield Flips(stream)

class Flips:
    def __init__(self, stream):
        self.stream = stream
    def read(self, size):
        return bytes(byte ^ 1 for byte in self.stream.read(size))

class Hoards(Odd):
    capabilities = Capabilities(put=True, ranges=True)
    _delete = FolderStore.__mro__[1]._delete
    def _probe(self):
        return self.capabilities

class Pretends(Odd):
    def _delete(self, locator):
        pass

class Denies(Odd):
    def _put(self, *args):
        artifact, _ = super()._put(*args)
        return artifact, False

class Breaks(Odd):
    def _put(self, source, new, resume, on_reserved):
        on_reserved(super()._put(source, new, resume, on_reserved)[0].locator)
        raise Unavailable("the line went dead")

class Readable(Odd):
    def _probe(self):
        return Capabilities(ranges=True)
    def _put(self, *args):
        raise PermissionError(13, "Permission denied", str(self.settings.path))

class Occupied(Odd):
    def _put(self, *args):
        raise AlreadyExists("another bundle is there", hint="let it be replaced with --replace")

class Full(Odd):
    class Settings(BaseModel):
        bucket: str = "b"
    def _probe(self):
        return self.capabilities
    _put = Occupied._put

class Racy(Odd):
    capabilities = replace(FolderStore.capabilities, atomic_updates=True)
    def _probe(self):
        kept = Path(self.settings.path, "promises")
        kept = kept.read_text().split() if kept.exists() else []
        both = ("exclusive_create", "atomic_updates")
        return replace(self.capabilities, **{promise: promise in kept for promise in both})
    def trial(self):
        Path(self.settings.path, "promises").write_text("exclusive_create")
        return self._probe()

class Unreachable(Odd):
    capabilities = Capabilities(visibility="enforced", levels=frozenset({Visibility.PUBLIC, Visibility.STAGED}))
    def __init__(self, settings, context=None):
        raise RuntimeError("show must not open me")

class Needy(Odd):
    class Settings(BaseModel):
        bucket: str
        limit: int = Field(3, gt=0)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Packages with odd backends, found by this process and by the children it starts."""
    packages = Packages(tmp_path / "site")
    packages.module("odd", ODD, head="")
    names = [line.split("class ")[1].split("(")[0] for line in ODD.splitlines() if line.endswith("(Odd):")]
    specs = ", ".join(f"spec({name.lower()!r}, 'odd:{name}')" for name in names)
    packages.package("odd-shelves", f"@hookimpl\ndef ari_backends():\n    return [{specs}]\n", entry="odd")
    (tmp_path / "store").mkdir()
    paths = [str(packages.folder), str(FOLDER_STORE), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    packages.store = tmp_path / "store"
    packages.options = {"path": str(packages.store)}
    return packages


def error_of(kind, call, *args, **options):
    with pytest.raises(AriError) as caught:
        call(*args, **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.message.isprintable()
    return caught.value


# -- list --------------------------------------------------------------------------------------------------------


def test_the_built_in_ones_are_listed():
    found = {info.name: info for info in list_backends()}
    assert found["https"].package == "ari-registry"
    assert found["https"].version == importlib.metadata.version("ari-registry")
    assert found["https"].help
    assert {info.status for info in found.values()} == {"ok"}


def test_every_state_is_listed_with_its_reason(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site.folder))
    site.package("heavy", "@hookimpl\ndef ari_backends():\n    return [spec('heavy', extra='heavy[sdk]')]\n",
                 entry="heavy", requires=["pluggy", "no-such-sdk>=2; extra == 'sdk'"])  # fmt: skip
    site.package("half-done", "raise RuntimeError('half finished')", entry="half")
    site.package("later", "@hookimpl\ndef ari_backends():\n    return [spec('a', api=9), spec('b', api=9)]\n")
    site.offering("unwanted", "unwanted")
    allowed = "heavy, half-done, later"
    found = {info.name: info for info in list_backends(site.load(ARI_PLUGINS=allowed))}
    assert {name: info.status for name, info in found.items() if info.package != "ari-registry"} == {
        "heavy": "not installed",
        "half": "failed",
        "a": "failed",
        "b": "failed",
        "odd": "blocked",
        "unwanted": "blocked",
    }
    assert found["heavy"].reason == "it needs 'no-such-sdk'"
    assert found["heavy"].install == "pip install 'heavy[sdk]'"
    assert "half finished" in found["half"].reason
    assert "API 9" in found["b"].reason
    assert "ARI_PLUGINS" in found["unwanted"].reason
    assert found["https"].status == "ok"


@pytest.mark.parametrize(
    ("requirement", "absent"),
    [
        ("heavy", None),
        ("heavy[sdk]", "no-such-sdk"),
        ("Heavy[SDK] >= 2", "no-such-sdk"),
        ("heavy[fine]", None),
        ("heavy[fine,all]", "no-such-sdk"),
        ("heavy[no-such-extra]", None),
        ("no-such-package", "no-such-package"),
        ("no-such-package[x]>=1", "no-such-package"),
        ("???", None),
    ],
)
def test_what_an_extra_lacks(site, monkeypatch, requirement, absent):
    monkeypatch.syspath_prepend(str(site.folder))
    site.package(
        "heavy",
        "",
        requires=[
            "pluggy",
            "no-such-plain-one; python_version < '3'",
            "no-such-sdk (>=2) ; extra == 'sdk'",
            "pluggy; extra == 'fine'",
            'heavy[all]; extra == "all"',
            'heavy[sdk]; extra == "all"',
            "no-such-thing; extra == 'fine' and sys_platform == 'plan9'",
        ],
    )
    assert workflow._missing(requirement) == absent


def test_listing_imports_no_backend(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site.folder))
    assert "hangs" in {info.name for info in list_backends(site.load())}
    assert "odd" not in sys.modules


# -- show --------------------------------------------------------------------------------------------------------


def test_show_tells_where_each_setting_comes_from(site, monkeypatch, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("backends:\n  lab:\n    type: hangs\n    boards: 7\n")
    config.chmod(0o600)
    monkeypatch.setenv("ARI_CONFIG", str(config))
    monkeypatch.setenv("ODD_TOKEN", SECRET)
    found = show_backend("lab", {"path": "/x\x1b"})
    assert (found.name, found.profile, found.problem) == ("hangs", "lab", None)
    settings = {setting.key: setting for setting in found.settings}
    assert list(settings) == ["path", "token", "boards", "wood"]
    assert (settings["path"].value, settings["path"].source) == ("/x\\x1b", "-o path=…")
    assert settings["boards"].value == "7"
    assert settings["boards"].source == f"profile 'lab' in {config}, line 4"
    assert (settings["boards"].default, settings["boards"].type) == ("5", "whole number")
    assert (settings["wood"].value, settings["wood"].source) == (None, None)
    assert settings["wood"].type == "'oak' or 'pine'"
    token = settings["token"]
    assert (token.type, token.help, token.secret) == ("secret", "a bearer token", True)
    assert (token.value, token.default, token.source) == ("***", None, "environment variable ODD_TOKEN")
    assert token.variables == ("ARI_HANGS_TOKEN", "ODD_TOKEN")
    assert found.capabilities["delete"] == "yes"
    assert SECRET not in repr(found)


def test_show_opens_nothing(site):
    found = show_backend("unreachable")
    assert found.capabilities["levels"] == ["staged", "public"]
    assert found.capabilities["visibility"] == "enforced"


def test_show_of_what_cannot_be_opened_says_why(site):
    found = show_backend("needy")
    assert found.problem == "the backend 'needy' needs the setting 'bucket'"
    assert [(s.key, s.required, s.type) for s in found.settings] == [
        ("bucket", True, "text"),
        ("limit", False, "whole number"),
    ]
    found = show_backend("needy", {"bucket": "b", "limit": "0"})
    assert found.problem == "-o limit=…: 'limit' must be greater than 0, found '0'"


def test_errors_of_the_child_are_its_own(site):
    assert "did you mean 'hangs'" in error_of(UnknownBackend, show_backend, "hang").message
    error = error_of(ConfigurationError, show_backend, "hangs", {"bords": SECRET})
    assert error.message == "-o bords=…: unknown key 'bords'; did you mean 'boards'?"


def test_the_current_folder_is_not_imported(site, monkeypatch, tmp_path):
    """A downloaded checkpoint may hold anything, also a folder called ari_core."""
    (tmp_path / "ari_core").mkdir()
    (tmp_path / "ari_core/__init__.py").write_text("open('canary', 'w')\n")
    monkeypatch.chdir(tmp_path)
    show_backend("https")
    assert not (tmp_path / "canary").exists()


# -- check -------------------------------------------------------------------------------------------------------


def test_check_writes_only_when_told_to(site):
    found = check_backend("pretends", site.options)
    assert (found.name, found.left_behind, found.warnings) == ("pretends", None, ())
    assert found.capabilities["put"] is True
    assert list(site.store.iterdir()) == []


def test_check_with_write_leaves_nothing(site, monkeypatch):
    site.package("ari-folder-store", entry_points="[ari_registry]\nfolder-store = ari_folder_store.plugin\n")
    found = check_backend("folder-store", site.options, write=True)
    assert [step.split(" ")[0] for step in found.steps] == ["opened", "stored", "read", "deleted"]
    assert found.left_behind is None
    assert list(site.store.iterdir()) == []


def test_what_cannot_be_deleted_is_named_and_marked(site):
    from ari_core.limits import Limits
    from ari_core.verification import check_archive
    from ari_core.workflows.refs import LocalFile

    found = check_backend("hoards", site.options, write=True)
    (stored,) = site.store.iterdir()
    assert found.left_behind == f"folder-store://{stored}"
    report = check_archive(LocalFile(stored), limits=Limits())
    assert not report.problems
    assert [entry.path for entry in report.manifest.files] == ["ari-backends-check.txt"]


def test_a_second_check_is_another_bundle(site):
    for _ in range(2):
        check_backend("hoards", site.options, write=True)
    assert len(list(site.store.iterdir())) == 2


def test_other_bytes_than_were_stored(site):
    error = error_of(IntegrityError, check_backend, "forgets", site.options, write=True)
    assert "other bytes" in error.message
    assert list(site.store.iterdir()) == []


def test_a_failed_put_is_cleaned_up(site):
    error = error_of(Unavailable, check_backend, "breaks", site.options, write=True)
    assert "the line went dead" in error.message
    assert list(site.store.iterdir()) == []


def test_deleting_that_deletes_nothing(site):
    error_of(BackendBug, check_backend, "pretends", site.options, write=True)


def test_claiming_that_a_new_bundle_was_there(site):
    error_of(BackendBug, check_backend, "denies", site.options, write=True)


def test_writing_where_nothing_can_be_written(site):
    error_of(Unsupported, check_backend, "https", write=True)
    # Without a path, or write access, it only reads here. Why is for the store to say, when it is tried.
    error = error_of(InvalidConfiguration, check_backend, "pretends", {}, write=True)
    assert error.message == "no folder is given"
    error = error_of(AccessDenied, check_backend, "readable", site.options, write=True)
    assert "no access to" in error.message
    assert list(site.store.iterdir()) == []


def test_a_place_in_use_is_no_place_for_a_check(site):
    """Its hint would name an option of `publish`."""
    error = error_of(AlreadyExists, check_backend, "occupied", site.options, write=True)
    assert error.message == "another bundle is there"
    assert error.hint == "give the check an empty place, for example -o path=NEW_FOLDER"
    error = error_of(AlreadyExists, check_backend, "full", write=True)
    assert error.hint == "give the check an empty place; `ari backends show full` lists the settings"


def test_a_stores_refusal_comes_through(site):
    error = error_of(AccessDenied, check_backend, "refuses", site.options)
    assert error.message == "no entry\\nfor you"
    assert error.hint == "ask\\x07"
    assert error.exit_code == 4


def test_what_only_a_trial_shows_is_called_untried_until_there_was_one(site, capsys):
    found = check_backend("racy", site.options)
    assert found.untried == ("exclusive_create", "atomic_updates")
    assert not found.lacks
    assert list(site.store.iterdir()) == []
    assert main(["backends", "check", "racy", "-o", f"path={site.store}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "keeps exclusive_create and atomic_updates; --trial" in last


def test_after_a_trial_it_says_what_the_store_does_and_what_that_means(site, capsys):
    assert main(["backends", "check", "racy", "-o", f"path={site.store}", "--trial", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == ["opened and probed the store", "let writers race"]
    assert found["capabilities"]["exclusive_create"] is True
    assert found["capabilities"]["atomic_updates"] is False
    assert (found["untried"], found["lacks"]) == ([], {"atomic_updates": LACKS["atomic_updates"]})
    assert main(["backends", "check", "racy", "-o", f"path={site.store}", "--trial"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("lacks atomic_updates: of two changes ")
    assert last.endswith(" a registry with PostgreSQL in front")


def test_what_was_found_is_still_known_the_next_time(site):
    check_backend("racy", site.options, trial=True, write=True)
    found = check_backend("racy", site.options)
    assert (found.capabilities["exclusive_create"], found.untried) == (True, ("atomic_updates",))


def test_a_store_without_promises_to_try_says_so(site):
    error_of(Unsupported, check_backend, "pretends", site.options, trial=True)


def test_what_this_store_lacks_is_told_without_a_trial(site):
    lacks = check_backend("readable", site.options).lacks
    assert set(lacks) == {"put", "delete", "list", "exclusive_create"}
    assert lacks["put"] == "nothing can be published here, only read"


def test_every_capability_is_put_into_words():
    assert list(LACKS) == [field.name for field in fields(Capabilities)]
    assert set(ONLY_A_TRIAL_SHOWS) <= LACKS.keys()


# -- what a backend can do to it ---------------------------------------------------------------------------------


def test_one_that_hangs_is_stopped(site):
    error = error_of(Unavailable, check_backend, "hangs", site.options, seconds=1)
    assert error.message == "the backend 'hangs' did not answer within 1 s and was stopped"


@pytest.mark.parametrize(("name", "says"), [("exits", "status 7"), ("segfaults", "signal SIGSEGV")])
def test_one_that_takes_its_process_down(site, name, says):
    error = error_of(BackendBug, check_backend, name, site.options)
    assert error.message == f"the backend '{name}' took its process down: {says}"


def test_one_that_leaves(site):
    assert "SystemExit: bye" in error_of(BackendBug, check_backend, "leaves", site.options).message


def test_one_that_prints_and_leaves_a_thread(site, capfd):
    found = check_backend("prints", site.options)
    assert found.warnings == ("look\\x1b[31m out",)
    assert capfd.readouterr() == ("", "")


def test_what_it_started_ends_with_it(site):
    """A process of its own keeps the pipe open: the answer still comes, at once, and the process does not stay."""
    assert check_backend("forks", site.options).name == "forks"
    pid = int((site.store / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not is_running(pid)


def test_what_escapes_cannot_hold_us_up(site):
    """A process in a session of its own keeps the pipe open for ever: that costs the time allowed, no more."""
    assert check_backend("escapes", site.options, seconds=3).name == "escapes"
    os.kill(int((site.store / "pid").read_text()), signal.SIGKILL)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_options_are_not_in_the_process_list(site, monkeypatch):
    seen = {}
    real = workflow.subprocess.Popen

    def spy(command, **options):
        seen.update(command=command, environment=options.get("env"))
        return real(command, **options)

    monkeypatch.setattr(workflow.subprocess, "Popen", spy)
    show_backend("hangs", {"token": SECRET})
    assert SECRET not in json.dumps(seen["command"])
    assert seen["environment"] is None
    assert SECRET not in json.dumps(dict(os.environ))


def test_a_plugin_that_hangs_when_its_backend_is_imported(site):
    site.module("sleeper", "import time\ntime.sleep(3600)\n", head="")
    site.package("sleepy", "@hookimpl\ndef ari_backends():\n    return [spec('sleepy', 'sleeper:Sleeper')]\n")
    error_of(Unavailable, show_backend, "sleepy", seconds=1)


def test_a_broken_plugin_gives_its_reason(site):
    site.package("half-done", "raise RuntimeError('half finished')", entry="half")
    assert "half finished" in error_of(PluginLoadError, show_backend, "half").message
