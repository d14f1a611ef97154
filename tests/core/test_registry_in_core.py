"""What core does for a registry without knowing one: what is set up, sharing, warnings in time, records."""

import importlib
import shlex
from datetime import UTC, datetime, timedelta

import pytest
from support.memory import MemoryBackend
from support.packages import Packages, forget_modules

from ari_core import curate, promote, publish, share
from ari_core.cli import main
from ari_core.contract import OpenContext, Share
from ari_core.errors import ConfigurationError, PluginLoadError, UnknownBackend, Unsupported
from ari_core.plugins import load_plugins
from ari_core.record import read_record, write_record
from ari_core.settings import open_backend

copies_module = importlib.import_module("ari_core.workflows.copies")
publish_module = importlib.import_module("ari_core.workflows.publish")
promote_module = importlib.import_module("ari_core.workflows.promote")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "ear/code").mkdir(parents=True)
    (folder / "ear/code/run.py").write_text("print(1)\n")
    curate(folder)
    return folder


class Lending(MemoryBackend):
    """Knows fetch tokens, and has something to say before anything is sent."""

    lent = None

    def _put(self, source, new, resume, on_reserved):
        self.context.warn("the token goes to a new place")
        return super()._put(source, new, resume, on_reserved)

    def share(self, locator, expires):
        ends = datetime(2027, 1, 1, tzinfo=UTC) if expires else None
        Lending.lent = locator
        return Share("https://lab.example/artifact/0123456789abcdef", "arif_s e'cret", "id-1", ends)


@pytest.fixture
def store(monkeypatch):
    one = Lending()

    def open_it(_name, _options=None, context=None, _plugins=None, **_):
        one.context = context or OpenContext()
        return one

    for module in (copies_module, promote_module):
        monkeypatch.setattr(module, "open_backend", open_it)
    return one


# -- sharing -----------------------------------------------------------------------------------------------------


def test_sharing_gives_the_reader_a_command_with_digest_and_secret(checkpoint, store):
    record = publish(checkpoint, backend="memory").record
    done = share(checkpoint, expires=timedelta(days=1))
    assert store.lent == store.resolve(record.ref)
    variable, *words = shlex.split(done.clone_command)
    assert variable == "ARI_FETCH_TOKEN=arif_s e'cret"
    assert words == [
        "ari",
        "clone",
        "https://lab.example/artifact/0123456789abcdef",
        "--expect-sha256",
        record.bundle_sha256,
        "--token",
        "ARI_FETCH_TOKEN",
    ]
    assert done.share.expires == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_secret_for_what_is_staged_does_not_work_yet(checkpoint, store, capsys):
    publish(checkpoint, backend="memory")
    assert not share(checkpoint).works_now
    assert main(["ear", "share", str(checkpoint), "--expires", "1d"]) == 0
    out, err = capsys.readouterr()
    assert "promote --target private-token" in err
    assert "  expires  2027-01-01T00:00:00Z\n" in out
    promote(checkpoint, target="private-token")
    assert share(checkpoint).works_now


def test_the_secret_is_in_no_repr(checkpoint, store):
    publish(checkpoint, backend="memory")
    assert "arif_" not in repr(share(checkpoint).share)


def test_a_store_without_fetch_tokens_says_so(checkpoint):
    publish(checkpoint)
    with pytest.raises(Unsupported, match="no fetch tokens"):
        share(checkpoint)


# -- warnings ----------------------------------------------------------------------------------------------------


def test_what_a_store_says_is_told_before_it_goes_on(checkpoint, store, monkeypatch):
    seen = []
    real = MemoryBackend._put
    monkeypatch.setattr(MemoryBackend, "_put", lambda *a: (seen.append("put"), real(*a))[1])
    done = publish(checkpoint, backend="memory", warn=seen.append)
    assert seen[-2:] == ["the token goes to a new place", "put"]
    assert list(done.warnings) == seen[:-1]


def test_a_warning_is_printed_once(checkpoint, store, capsys):
    assert main(["ear", "publish", str(checkpoint), "--backend", "memory"]) == 0
    assert capsys.readouterr().err.count("a new place") == 1


def test_progress_tells_how_much_was_sent(checkpoint, store):
    told = []
    publish(checkpoint, backend="memory", progress=lambda what, done, total: told.append((what, done, total)))
    sent = [(done, total) for what, done, total in told if what == "sending"]
    assert sent
    assert sent[-1][0] == sent[-1][1] > 0


# -- the store that is set up ------------------------------------------------------------------------------------

STORE = """
from pydantic import BaseModel, SecretStr
from support.memory import MemoryBackend
from ari_core.contract import Capabilities
class Store(MemoryBackend):
    name = "shelf"
    trust_settings = ("url",)
    class Settings(BaseModel):
        space: str = "s"
        page: int = 10
        url: str = "https://mine.example"
        key: SecretStr | None = None
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    before = set(__import__("sys").modules)
    packages = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(packages.folder))
    packages.module("store", STORE, head="")
    yield packages
    forget_modules(before)


def use(packages, monkeypatch, configured, name="shelf"):
    packages.package(
        "shelves",
        f"@hookimpl\ndef ari_backends():\n"
        f"    return [spec({name!r}, backend='store:Store', configured={configured})]",
    )
    loaded = packages.load()
    for module in (publish_module, promote_module):
        monkeypatch.setattr(module, "load_plugins", lambda: loaded)
    return loaded


def test_a_publication_goes_to_the_store_that_is_set_up(checkpoint, packages, monkeypatch):
    use(packages, monkeypatch, "lambda checkpoint: f'set up in {checkpoint.name}'")
    done = publish(checkpoint)
    assert (done.record.backend, done.backend_reason) == ("shelf", "set up in run")


def test_flag_and_policy_come_before_what_is_set_up(checkpoint, packages, monkeypatch):
    use(packages, monkeypatch, "lambda _checkpoint: 'here'")
    assert publish(checkpoint, backend="local-tarball", dry_run=True).record.backend == "local-tarball"
    (checkpoint / "ear/publish.yaml").write_text("include: ['**']\nbackend: local-tarball\n")
    curate(checkpoint)
    assert publish(checkpoint, dry_run=True).record.backend == "local-tarball"


def test_what_is_not_set_up_is_not_used(checkpoint, packages, monkeypatch):
    use(packages, monkeypatch, "lambda _checkpoint: None")
    assert publish(checkpoint, dry_run=True).record.backend == "local-tarball"


def test_a_plugin_that_cannot_say_is_a_problem_and_not_used(checkpoint, packages, monkeypatch):
    loaded = use(packages, monkeypatch, "lambda _checkpoint: 1 / 0")
    assert publish(checkpoint, dry_run=True).record.backend == "local-tarball"
    assert any("whether it is set up: ZeroDivisionError" in problem.message for problem in loaded.problems)


def test_two_stores_that_are_set_up_are_not_guessed_between(checkpoint, packages, monkeypatch):
    packages.package(
        "others",
        "@hookimpl\ndef ari_backends():\n    return [spec('rack', configured=lambda _checkpoint: 'over there')]",
    )
    use(packages, monkeypatch, "lambda _checkpoint: 'here'")
    with pytest.raises(ConfigurationError, match=r"'rack' \(over there\) and 'shelf' \(here\)"):
        publish(checkpoint, dry_run=True)


def test_an_address_is_kept_in_no_record_and_taken_from_none(checkpoint, packages, monkeypatch):
    loaded = use(packages, monkeypatch, "None")
    done = publish(checkpoint, backend="shelf", options={"url": "https://once.example", "space": "t"})
    assert done.record.settings == {"space": "t"}
    forged = {"url": "https://evil.example", "space": "t", "key": "a stranger's"}
    write_record(checkpoint, read_record(checkpoint).model_copy(update={"settings": forged, "options": forged}))
    opened = []

    def watched(*arguments, **keywords):
        opened.append(open_backend(*arguments, **keywords))
        return opened[-1]

    monkeypatch.setattr(promote_module, "open_backend", watched)
    promote(checkpoint, target="public")
    assert opened[0].settings.url == "https://mine.example"
    assert opened[0].settings.space == "t"
    assert opened[0].settings.key is None
    given = open_backend("shelf", {"url": "https://asked.example"}, None, loaded, recorded=forged, environment={})
    assert given.settings.url == "https://asked.example"


@pytest.mark.parametrize("name", ["registry", "limit", "publish", "plugins"])
def test_a_backend_must_not_take_the_program_s_own_variables(packages, monkeypatch, name):
    loaded = use(packages, monkeypatch, "None", name=name)
    assert name not in loaded.backends
    with pytest.raises((PluginLoadError, UnknownBackend), match="program's own"):
        loaded.get(name)


def test_the_installed_ones_say_nothing_in_an_empty_place(tmp_path):
    assert load_plugins().configured(tmp_path) == []


def test_registry_is_short_for_backend_and_setting(checkpoint, monkeypatch):
    seen = {}

    def fake(_checkpoint, **keywords):
        seen.update(keywords)
        raise Unsupported("enough")

    monkeypatch.setattr(publish_module, "publish", fake)
    assert main(["ear", "publish", str(checkpoint), "--registry", "lab", "-o", "x=y"]) == 2
    assert seen["backend"] == "ari-registry"
    assert seen["options"] == {"x": "y", "registry": "lab"}
