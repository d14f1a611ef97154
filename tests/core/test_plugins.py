"""Finding plugins, and what a broken one costs: one line."""

import json
import subprocess
import sys

import pytest
from support.packages import Packages, forget_modules

from ari_core.contract import Backend, Claim
from ari_core.errors import (
    ApiMismatch,
    ConfigurationError,
    DuplicateBackend,
    PluginError,
    PluginLoadError,
    UnknownBackend,
)
from ari_core.plugins import load_plugins

BUILT_IN = {"local-tarball", "https"}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    before = set(sys.modules)
    folder = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(folder.folder))
    yield folder
    forget_modules(before)


def the_problem(loaded):
    """The one problem there is, checked to be one printable line."""
    (problem,) = loaded.problems
    assert isinstance(problem, PluginError)
    assert problem.message.isprintable()
    assert len(problem.message) < 400
    assert problem.hint
    return problem


# -- finding -----------------------------------------------------------------------------------------------------


def test_built_in_backends_arrive_through_the_entry_point():
    loaded = load_plugins()
    assert not loaded.problems
    assert set(loaded.backends) >= BUILT_IN
    assert [plugin.key for plugin in loaded.plugins] == ["ari-registry:builtin", "ari-registry:registry"]


def test_order_is_built_in_then_package_then_entry(packages):
    hooks = "@hookimpl\ndef ari_backends():\n    return [spec(__name__[-1] + '-shelf')]\n"
    packages.module("zzz_b", hooks)
    packages.module("zzz_a", hooks)
    packages.package("zzz", entry_points="[ari_registry]\nb = zzz_b\na = zzz_a\n")
    packages.offering("aaa", "first")
    loaded = packages.load()
    assert not loaded.problems
    ours = ["ari-registry:builtin", "ari-registry:registry"]
    assert [p.key for p in loaded.plugins] == [*ours, "aaa:first", "zzz:a", "zzz:b"]
    assert list(loaded.backends)[-3:] == ["first", "a-shelf", "b-shelf"]


def test_nobody_comes_before_the_built_in_ones(packages):
    packages.offering("aaa", "local-tarball")
    loaded = packages.load()
    assert loaded.backends["local-tarball"].backend.startswith("ari_backends.")
    assert "taken by ari-registry:builtin" in the_problem(loaded).message


def test_a_second_copy_of_a_package_further_down_the_path_is_not_loaded(packages, tmp_path):
    packages.offering("shelves", "shelf")
    older = Packages(tmp_path / "older")
    older.package("Shelves", "raise RuntimeError", version="0.5", entry="its-old-entry")
    from importlib import metadata

    loaded = load_plugins(metadata.distributions(path=[str(packages.folder), str(older.folder)]), {})
    assert not loaded.problems
    assert [plugin.version for plugin in loaded.plugins] == ["1.0"]


def test_another_packages_damaged_metadata_is_not_our_business(packages):
    packages.package("damaged", entry_points="[console_scripts]\nthis line has no equals sign\n")
    packages.offering("good", "good")
    loaded = packages.load()
    assert not loaded.problems
    assert "good" in loaded.backends


def test_damaged_metadata_of_a_plugin_is_one_problem(packages):
    packages.package("damaged", entry_points="[ari_registry]\nthis line has no equals sign\n")
    packages.offering("good", "good")
    loaded = packages.load()
    (problem,) = loaded.problems
    assert "damaged" in problem.message
    assert {"good", *BUILT_IN} <= set(loaded.backends)


def test_installed_plugins_are_loaded_once(monkeypatch):
    first = load_plugins()
    assert load_plugins() is first
    monkeypatch.setenv("ARI_PLUGINS", "none")
    assert load_plugins() is not first


def test_loading_and_listing_import_nothing_heavy():
    code = """
import sys, json
from ari_core.workflows.backends import list_backends
assert len(list_backends()) >= 2
print(json.dumps(sorted(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    for heavy in ("pydantic", "yaml", "httpx2", "typer", "ari_backends.local_tarball", "ari_backends.https"):
        assert heavy not in loaded


# -- what a broken one costs -------------------------------------------------------------------------------------

RETURNS = "@hookimpl\ndef ari_backends():\n    return {}\n"
BROKEN = {
    "raises": ("raise RuntimeError('one\\ntwo\\x1b[31m')", "RuntimeError: one two\\x1b[31m"),
    "raises without words": ("raise ValueError", "ValueError"),
    "raises at length": ("raise RuntimeError('long ' * 1000)", "long long"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "no python": ("def :", "SyntaxError"),
    "needs what is not there": ("import no_such_module_at_all", "no_such_module_at_all"),
    "other api": (RETURNS.format("[spec(api=7)]"), "written for API 7, this program has API 1"),
    "api is no number": (RETURNS.format("[spec(api='0')]"), "written for API '0'"),
    "misspelled hook": ("@hookimpl\ndef ari_backend():\n    return []", "did you mean 'ari_backends'?"),
    "unmarked hook": ("def ari_backends():\n    return []", "is @hookimpl missing?"),
    "no hook": ("", "implements no hook"),
    "hook takes arguments": ("@hookimpl\ndef ari_backends(path):\n    return []", "path"),
    "hook raises": ("@hookimpl\ndef ari_backends():\n    raise KeyError('x')", "KeyError: 'x'"),
    "hook exits": ("@hookimpl\ndef ari_backends():\n    raise SystemExit(0)", "SystemExit: 0"),
    "forgets to return": (RETURNS.format("None"), "returned NoneType, not a list of BackendSpec"),
    "returns one": (RETURNS.format("spec()"), "returned BackendSpec, not a list"),
    "returns text": (RETURNS.format("'shelf'"), "returned str"),
    "returns a generator": (RETURNS.format("(spec() for _ in [1])"), "returned generator"),
    "returns dicts": (RETURNS.format("[{'name': 'shelf'}]"), "a dict where BackendSpec belongs"),
    "group among backends": (RETURNS.format("[CommandGroupSpec('x', 'a:b', 'c')]"), "a CommandGroupSpec where"),
    "name is no text": (RETURNS.format("[spec(None)]"), "None is no name"),
    "name in capitals": (RETURNS.format("[spec('Shelf')]"), "'Shelf' is no name"),
    "name with a path": (RETURNS.format("[spec('../x')]"), "'../x' is no name"),
    "name with a line feed": (RETURNS.format("[spec('x\\n')]"), "is no name"),
    "two of a name": (RETURNS.format("[spec(), spec()]"), "taken by this very plugin"),
    "taken name": (RETURNS.format("[spec('https')]"), "'https' is taken by ari-registry:builtin"),
    "no import string": (RETURNS.format("[spec(backend='nowhere.Nothing')]"), "is no import string"),
    "a class for an import string": (RETURNS.format("[spec(backend=dict)]"), "is no import string"),
    "help of two lines": (RETURNS.format("[spec(help='a\\nb')]"), "help must be one line"),
    "no help": (RETURNS.format("[spec(help='')]"), "help must be one line"),
    "claims is no function": (RETURNS.format("[spec(claims=3)]"), "claims is not a function"),
    "extra with a quote": (RETURNS.format('[spec(extra="x\'; rm -rf ~")]'), "extra must be a requirement"),
    "group without import string": (
        "@hookimpl\ndef ari_command_groups():\n    return [CommandGroupSpec('x', 'y', 'z')]",
        "is no import string",
    ),
    "two groups of a name": (
        "@hookimpl\ndef ari_command_groups():\n    return [CommandGroupSpec('x', 'y:z', 'help')] * 2",
        "'x' is taken",
    ),
}


@pytest.mark.parametrize(("source", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_costs_one_line_and_the_rest_works(packages, source, says):
    packages.package("broken", source)
    packages.offering("good", "good")
    loaded = packages.load()
    problem = the_problem(loaded)
    assert says in problem.message
    assert "broken:shelf (1.0)" in problem.message
    assert {"good", *BUILT_IN} <= set(loaded.backends)
    assert "shelf" not in loaded.backends
    assert set(loaded.groups) == set(load_plugins().groups)
    with pytest.raises(PluginError) as caught:
        loaded.get("shelf")
    assert (caught.value.message, caught.value.hint) == (problem.message, problem.hint)
    assert type(caught.value) is type(problem)
    with pytest.raises(type(problem)):
        packages.load(ARI_PLUGINS_STRICT="1")


def test_one_fault_refuses_the_whole_plugin(packages):
    packages.package("broken", RETURNS.format("[spec('one'), spec('two', api=2)]"))
    loaded = packages.load()
    assert isinstance(the_problem(loaded), ApiMismatch)
    for name in ("one", "two"):
        assert name not in loaded.backends
        with pytest.raises(ApiMismatch, match="'two' is written for API 2"):
            loaded.get(name)


def test_an_entry_point_that_leads_nowhere(packages):
    packages.package("broken", "", entry_points="[ari_registry]\nshelf = broken:nothing\nother = !!\n")
    packages.offering("good", "good")
    loaded = packages.load()
    assert len(loaded.problems) == 2
    assert "good" in loaded.backends


def test_a_hook_of_a_later_version_may_be_marked_optional(packages):
    packages.package(
        "modern",
        RETURNS.format("[spec()]") + "\n@hookimpl(optionalhook=True)\ndef ari_themes():\n    return []\n",
    )
    loaded = packages.load()
    assert not loaded.problems
    assert "shelf" in loaded.backends


def test_a_plugin_cannot_wrap_anothers_hook(packages):
    packages.package(
        "aaa",
        """
        @hookimpl(wrapper=True, tryfirst=True)
        def ari_backends():
            theirs = yield
            return []
        """,
        entry="thief",
    )
    packages.offering("good", "good")
    assert {"good", *BUILT_IN} <= set(packages.load().backends)


def test_two_packages_with_one_entry_point_name_both_load(packages):
    packages.offering("one", "from-one", entry="plugin")
    packages.offering("two", "from-two", entry="plugin")
    loaded = packages.load()
    assert not loaded.problems
    assert {"from-one", "from-two"} <= set(loaded.backends)
    assert [p.key for p in loaded.plugins[2:]] == ["one:plugin", "two:plugin"]


def test_of_two_packages_that_want_one_name_the_first_has_it(packages):
    packages.offering("two", "shelf")
    packages.offering("one", "shelf")
    loaded = packages.load()
    problem = the_problem(loaded)
    assert isinstance(problem, DuplicateBackend)
    assert "two:shelf" in problem.message
    assert "taken by one:shelf" in problem.message
    assert [(p.key, p.status) for p in loaded.plugins[2:]] == [("one:shelf", "ok"), ("two:shelf", "failed")]
    assert loaded.get("shelf").name == "shelf"


def test_groups_are_described_without_being_imported(packages):
    packages.package(
        "grouped",
        """
        @hookimpl
        def ari_command_groups():
            return [CommandGroupSpec("shelves", "not_there:app", "look after shelves", "grouped[cli]")]
        """,
    )
    loaded = packages.load()
    assert not loaded.problems
    assert loaded.groups["shelves"].help == "look after shelves"
    with pytest.raises(PluginLoadError, match="`ari shelves` cannot be imported"):
        loaded.load_group(loaded.groups["shelves"])


# -- asking for one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shelf", "broken"], ids=["by entry point", "by package"])
def test_a_plugin_that_could_not_say_its_names_is_still_found(packages, name):
    packages.package("broken", "raise RuntimeError('half finished')")
    with pytest.raises(PluginLoadError, match="half finished") as caught:
        packages.load().get(name)
    assert "pip install --upgrade broken" in caught.value.hint


def test_an_unknown_name_gets_the_nearest_ones(packages):
    with pytest.raises(UnknownBackend, match="no backend 'local-tarbal'; did you mean 'local-tarball'") as caught:
        packages.load().get("local-tarbal")
    assert "ari backends list" in caught.value.hint
    assert caught.value.exit_code == 2


def test_an_unknown_name_mentions_plugins_that_cannot_be_used(packages):
    packages.package("broken", "raise RuntimeError")
    with pytest.raises(UnknownBackend) as caught:
        packages.load().get("something-else")
    assert "why 1 more cannot be used" in caught.value.hint


# -- which backend a ref belongs to ------------------------------------------------------------------------------


def claiming(packages, package, backend, expression):
    packages.package(
        package,
        f"@hookimpl\ndef ari_backends():\n    return [spec({backend!r}, claims=lambda ref: {expression})]\n",
    )


def test_the_most_specific_claim_wins(packages):
    claiming(packages, "one", "general", "Claim.SCHEME if ref.startswith('shelf:') else Claim.NO")
    claiming(packages, "two", "special", "Claim.EXACT if ref.startswith('shelf:top') else Claim.NO")
    loaded = packages.load()
    assert loaded.select("shelf:top/1").name == "special"
    assert loaded.select("shelf:bottom/1").name == "general"


def test_a_tie_names_both_and_shows_no_password(packages):
    claiming(packages, "one", "one", "Claim.EXACT")
    claiming(packages, "two", "two", "Claim.EXACT")
    with pytest.raises(DuplicateBackend, match="'one' and 'two'") as caught:
        packages.load().select("shelf://ada:hunter2@host/x")
    assert "hunter2" not in caught.value.message
    assert "ARI_PLUGINS" in caught.value.hint


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("htps://x/y", "'htps:'; did you mean 'https'?"),
        ("gopher://x/y", "'gopher:'; known: ari, doi, file, https, s3"),
        ("just-a-name", "no scheme"),
        (":", "no scheme"),
        ("", "no scheme"),
        ("\x1b[31m:x", "\\x1b"),
    ],
)
def test_nobody_claims_it(ref, says):
    with pytest.raises(UnknownBackend) as caught:
        load_plugins().select(ref)
    assert says in caught.value.message
    assert caught.value.message.isprintable()


def test_a_plugins_own_scheme_is_suggested(packages):
    claiming(packages, "one", "shelf", "Claim.EXACT if ref.startswith('shelf://') else Claim.NO")
    with pytest.raises(UnknownBackend, match="did you mean 'shelf'"):
        packages.load().select("shelff://x")


@pytest.mark.parametrize("expression", ["1 / 0", "exit(2)", "True", "2", "None", "'exact'"])
def test_a_failing_claim_counts_as_no_and_is_one_problem(packages, expression):
    claiming(packages, "one", "broken-claims", expression)
    loaded = packages.load()
    assert not loaded.problems
    for _ in range(2):
        assert loaded.select("https://x/y").name == "https"
    (problem,) = loaded.problems
    assert "'broken-claims'" in problem.message


# -- importing one -----------------------------------------------------------------------------------------------

BACKEND = """
from ari_core.contract import Backend, Capabilities
from pydantic import BaseModel

class Mine(Backend):
    name = "shelf"
    capabilities = Capabilities()
    Settings = BaseModel
    def _resolve(self, ref): ...
    def _ref(self, locator): ...
    def _stat(self, locator): ...
    def _open(self, locator, offset): ...
"""
FAULTS = {
    "not a backend": (BACKEND.replace("(Backend)", ""), "not a subclass"),
    "a function": ("def Mine(): ...", "not a subclass"),
    "other name": (BACKEND.replace('"shelf"', '"drawer"'), "calls itself 'drawer'"),
    "no name": (BACKEND.replace('name = "shelf"', ""), "calls itself None"),
    "no capabilities": (BACKEND.replace("Capabilities()", "None"), "has no Capabilities"),
    "no settings": (BACKEND.replace("Settings = BaseModel", "Settings = dict"), "no pydantic model"),
    "abstract": (BACKEND.replace("def _stat", "def stat_"), "lacks _stat"),
    "not there": ("", "has no attribute 'Mine'"),
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "final": (BACKEND + "    import no_such_thing_here\n", "no_such_thing_here"),
}


def load_mine(packages, source, **spec):
    packages.module("mine", source, head="")
    more = "".join(f", {key}={value!r}" for key, value in spec.items())
    packages.package("mine-plugin", RETURNS.format(f"[spec(backend='mine:Mine'{more})]"))
    loaded = packages.load()
    assert not loaded.problems
    return loaded.load_class(loaded.backends["shelf"])


def test_a_class_is_imported_when_it_is_asked_for(packages):
    cls = load_mine(packages, BACKEND)
    assert issubclass(cls, Backend)


@pytest.mark.parametrize(("source", "says"), FAULTS.values(), ids=FAULTS)
def test_a_class_that_is_not_what_its_spec_says(packages, source, says):
    with pytest.raises(PluginLoadError) as caught:
        load_mine(packages, source)
    assert "'shelf'" in caught.value.message
    assert says in caught.value.message


def test_what_is_not_installed_says_how_to_install_it(packages):
    with pytest.raises(PluginLoadError, match="'shelf' is not installed: there is no 'no_such_sdk'") as caught:
        load_mine(packages, "import no_such_sdk", extra="mine[sdk]")
    assert caught.value.hint == "pip install 'mine[sdk]'"


def test_a_missing_module_of_its_own_is_not_blamed_on_the_extra(packages):
    packages.package("mine-plugin", RETURNS.format("[spec(extra='mine[sdk]')]"))
    loaded = packages.load()
    with pytest.raises(PluginLoadError, match="cannot be imported: ModuleNotFoundError"):
        loaded.load_class(loaded.backends["shelf"])


# -- choosing which to load --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "present"),
    [("", True), (" ", True), ("none", False), ("other-one", False), ("NONE", False), ("The_Shelves, x", True)],
)
def test_ari_plugins(packages, value, present):
    packages.package("the.shelves", RETURNS.format("[spec()]") + "\nprint('imported')\n")
    packages.offering("x", "x")
    packages.offering("other-one", "other")
    loaded = packages.load(ARI_PLUGINS=value)
    assert not loaded.problems
    assert set(loaded.backends) >= BUILT_IN
    assert ("shelf" in loaded.backends) == present
    assert ("the_shelves" in sys.modules) == present


def test_a_blocked_plugin_says_so_when_it_is_asked_for(packages):
    packages.offering("shelves", "shelf")
    loaded = packages.load(ARI_PLUGINS="none")
    assert [plugin.status for plugin in loaded.plugins] == ["ok", "ok", "blocked"]
    with pytest.raises(PluginLoadError, match="blocked by ARI_PLUGINS"):
        loaded.get("shelf")


def test_naming_an_absent_package_is_a_problem(packages):
    (problem,) = packages.load(ARI_PLUGINS="shelfs").problems
    assert "'shelfs'" in problem.message


@pytest.mark.parametrize(("value", "strict"), [("0", False), ("", False), ("1", True)])
def test_strict(packages, value, strict):
    packages.package("broken", "raise RuntimeError('boom')")
    if strict:
        with pytest.raises(PluginLoadError, match="boom"):
            packages.load(ARI_PLUGINS_STRICT=value)
    else:
        assert packages.load(ARI_PLUGINS_STRICT=value).problems


def test_strict_has_two_values(packages):
    with pytest.raises(ConfigurationError, match="ARI_PLUGINS_STRICT must be 0 or 1"):
        packages.load(ARI_PLUGINS_STRICT="yes")


def test_ctrl_c_while_loading_is_the_users(packages):
    packages.package("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        packages.load()


def test_claims_of_the_built_in_ones():
    backends = load_plugins().backends
    assert backends["local-tarball"].claims("FILE:///x") is Claim.SCHEME
    assert backends["local-tarball"].claims("files:///x") is Claim.NO
    assert load_plugins().schemes(backends["https"]) == ("https",)
