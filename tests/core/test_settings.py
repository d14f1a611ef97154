"""Settings: which source wins, what an error names, and that a secret is never in it."""

import importlib
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator, model_validator
from support.packages import Packages, forget_modules

from ari_core import clone, curate, promote, publish
from ari_core.cli import main
from ari_core.contract import Backend, Capabilities, OpenContext
from ari_core.errors import (
    AriError,
    BackendBug,
    ConfigurationError,
    LocalPermissionError,
    PluginLoadError,
    UnknownBackend,
)
from ari_core.record import read_record, write_record
from ari_core.settings import (
    collect_settings,
    find_backend,
    load_config,
    load_settings,
    open_backend,
    open_for_ref,
)
from ari_core.yamlfile import read_yaml, validate

SECRET = "hunter2-hunter2"  # noqa: S105 - what must never be shown


class Shelf(Backend):
    name = "book-shelf"
    capabilities = Capabilities()
    aliases = {"token": ("SHELF_TOKEN", "OLD_SHELF_TOKEN")}  # noqa: RUF012 - as the contract declares it

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        out: Path | None = None
        boards: int = Field(5, gt=0)
        wood: Literal["oak", "pine"] = "pine"
        closed: bool = False
        token: SecretStr | None = None
        pin: Annotated[SecretStr, Field(min_length=4, max_length=40)] = SecretStr("0000")

        @field_validator("pin")
        @classmethod
        def _digits(cls, pin):
            if not pin.get_secret_value().isdigit():
                raise ValueError(f"the pin {pin.get_secret_value()} has letters")
            return pin

        @model_validator(mode="after")
        def _fits(self):
            if self.wood == "oak" and self.token is not None:
                raise ValueError(f"oak needs no token such as {self.token.get_secret_value()}")
            return self

    def _resolve(self, ref): ...
    def _ref(self, locator): ...
    def _stat(self, locator): ...
    def _open(self, locator, offset): ...


@pytest.fixture
def config(tmp_path):
    """Writes a configuration file and returns an environment that names it."""

    def write(text, mode=0o600):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        path.chmod(mode)
        return {"ARI_CONFIG": str(path)}

    return write


def profile_of(environment, name="lab"):
    return load_config(environment).profiles[name]


def error_of(call, *args, **options):
    """The error of a call: one printable line without the secret."""
    with pytest.raises(AriError) as caught:
        call(*args, **options)
    error = caught.value
    assert error.message.isprintable()
    assert SECRET not in f"{error.message} {error.hint} {error!r}"
    return error


# -- which source wins -------------------------------------------------------------------------------------------


def test_each_source_beats_the_next(config):
    environment = config("backends:\n  lab:\n    type: book-shelf\n    boards: 1\n")
    profile = profile_of(environment)

    def boards(options=None, profile=None, **env):
        return load_settings(Shelf, options=options, profile=profile, environment=env).boards

    assert boards() == 5
    assert boards(profile=profile) == 1
    assert boards(profile=profile, ARI_BOOK_SHELF_BOARDS="2") == 2
    assert boards({"boards": "3"}, profile, ARI_BOOK_SHELF_BOARDS="2") == 3


def test_aliases_come_after_the_own_variable_and_in_order():
    environment = {"OLD_SHELF_TOKEN": "old", "SHELF_TOKEN": "new"}

    def token():
        return load_settings(Shelf, environment=environment).token.get_secret_value()

    assert token() == "new"
    environment |= {"ARI_BOOK_SHELF_TOKEN": "own"}
    assert token() == "own"


def test_an_empty_variable_counts_as_not_set():
    assert load_settings(Shelf, environment={"ARI_BOOK_SHELF_WOOD": ""}).wood == "pine"
    assert load_settings(Shelf, environment={"ARI_BOOK_SHELF_TOKEN": "", "SHELF_TOKEN": "x"}).token is not None


def test_text_becomes_what_the_setting_is_even_in_a_strict_model():
    settings = load_settings(
        Shelf, options={"boards": "3", "closed": "true", "out": "/x"}, environment={"ARI_BOOK_SHELF_WOOD": "oak"}
    )
    assert (settings.boards, settings.closed, settings.out, settings.wood) == (3, True, Path("/x"), "oak")


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("ARI_BOOK_SHELF_BOARDS", "9")
    assert load_settings(Shelf).boards == 9


def test_where_each_setting_came_from(config):
    environment = config("# mine\nbackends:\n  lab:\n    type: book-shelf\n    wood: oak\n    boards: 2\n")
    sourced = collect_settings(
        Shelf, {"boards": "3"}, profile_of(environment), {"ARI_BOOK_SHELF_CLOSED": "1", "SHELF_TOKEN": SECRET}
    )
    assert sourced.sources == {
        "wood": f"profile 'lab' in {environment['ARI_CONFIG']}, line 5",
        "boards": "-o boards=…",
        "closed": "environment variable ARI_BOOK_SHELF_CLOSED",
        "token": "environment variable SHELF_TOKEN",
    }
    assert SECRET not in repr(sourced)


# -- what an error names -----------------------------------------------------------------------------------------

BAD_VALUES = {
    "not a number": ("boards", "many", "'boards' must be a whole number, found 'many'"),
    "out of range": ("boards", "0", "'boards' must be greater than 0, found '0'"),
    "not one of them": ("wood", "ash", "'wood' must be 'oak' or 'pine', found 'ash'"),
    "neither true nor false": ("closed", "perhaps", "'closed' must be true or false, found 'perhaps'"),
    "escape sequence": ("boards", "\x1b[31m", "found '\\x1b[31m'"),
}


@pytest.mark.parametrize(("key", "value", "says"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_names_its_source(config, key, value, says):
    by_option = error_of(load_settings, Shelf, options={key: value})
    assert by_option.message.startswith(f"-o {key}=…: ")
    variable = f"ARI_BOOK_SHELF_{key.upper()}"
    by_environment = error_of(load_settings, Shelf, environment={variable: value})
    assert by_environment.message.startswith(f"environment variable {variable}: ")
    errors = [by_option, by_environment]
    if value.isprintable():
        environment = config(f"backends:\n  lab:\n    type: book-shelf\n    {key}: '{value}'\n")
        by_profile = error_of(load_settings, Shelf, profile=profile_of(environment))
        assert by_profile.message.startswith(f"profile 'lab' in {environment['ARI_CONFIG']}, line 4: ")
        errors.append(by_profile)
    for error in errors:
        assert says in error.message
        assert isinstance(error, ConfigurationError)
        assert error.exit_code == 2


def test_an_unknown_key_names_its_source_and_the_nearest(config):
    error = error_of(load_settings, Shelf, options={"bords": SECRET})
    assert error.message == "-o bords=…: unknown key 'bords'; did you mean 'boards'?"
    environment = config(f"backends:\n  lab:\n    type: book-shelf\n    tokn: {SECRET}\n")
    error = error_of(load_settings, Shelf, profile=profile_of(environment))
    assert error.message.endswith("line 4: unknown key 'tokn'; did you mean 'token'?")
    error = error_of(load_settings, Shelf, options={"zzz": "1"})
    assert "known: boards, closed, out, pin, token, wood" in error.message


def test_a_misspelt_variable_is_not_silently_ignored():
    error = error_of(load_settings, Shelf, environment={"ARI_BOOK_SHELF_TOKN": SECRET})
    assert error.message == ("environment variable ARI_BOOK_SHELF_TOKN: unknown key 'tokn'; did you mean 'token'?")


@pytest.mark.parametrize(
    ("key", "says"),
    [("OTU", "did you mean 'out'?"), ("COLOUR_SCHEME", "known: boards, closed, out, pin, token, wood")],
)
def test_an_unknown_variable_is_refused_however_unlike_it_is(key, says):
    error = error_of(load_settings, Shelf, environment={f"ARI_BOOK_SHELF_{key}": SECRET})
    assert error.message.startswith(f"environment variable ARI_BOOK_SHELF_{key}: unknown key '{key.lower()}'; ")
    assert says in error.message
    assert load_settings(Shelf, environment={f"ARI_BOOK_SHELF_{key}": ""}).out is None


def test_a_variable_of_something_else_is_ignored():
    # ARI_BOOK_SHELF_2_TOKEN looks like a misspelt key, but belongs to the backend 'book-shelf-2'.
    environment = {"ARI_BOOK_SHELF_2_TOKEN": "x", "ARI_BOOK_SHELVES": "x", "ARI_BOOK": "x"}
    assert load_settings(Shelf, environment=environment, others=["book-shelf-2", "book-shelf"]).token is None
    error_of(load_settings, Shelf, environment=environment)


def test_an_alias_below_the_own_prefix_is_no_unknown_variable():
    class Old(Shelf):
        aliases = {"token": ("ARI_BOOK_SHELF_PASSWORD",)}  # noqa: RUF012 - as the contract declares it

    environment = {"ARI_BOOK_SHELF_PASSWORD": SECRET}
    assert load_settings(Old, environment=environment).token.get_secret_value() == SECRET


def test_an_empty_path_is_an_error(config):
    """`-o out=$UNSET` would publish into the current folder."""
    error = error_of(load_settings, Shelf, options={"out": ""})
    assert error.message == "-o out=…: 'out' is empty, and must be a path"
    assert isinstance(error, ConfigurationError)
    environment = config("backends:\n  lab:\n    type: book-shelf\n    out: ''\n")
    error = error_of(load_settings, Shelf, profile=profile_of(environment))
    assert error.message.endswith("line 4: 'out' is empty, and must be a path")


def test_a_home_is_expanded_in_every_kind_of_path(monkeypatch, tmp_path):
    class Sealed(Shelf):
        class Settings(BaseModel):
            out: Path = Path("x")
            seal: FilePath | None = None

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "seal").touch()
    found = load_settings(Sealed, options={"out": "~/shelf", "seal": "~/seal"}, environment={})
    assert (found.out, found.seal) == (tmp_path / "shelf", tmp_path / "seal")


def test_a_missing_setting_says_how_to_give_it():
    class Needy(Shelf):
        class Settings(BaseModel):
            bucket: str

    error = error_of(load_settings, Needy, environment={})
    assert error.message == "the backend 'book-shelf' needs the setting 'bucket'"
    assert error.hint == "give -o bucket=… or set ARI_BOOK_SHELF_BUCKET"


def test_a_model_that_forgot_to_forbid_unknown_keys_still_does():
    class Lax(Shelf):
        class Settings(BaseModel):
            bucket: str = ""

    assert "did you mean 'bucket'" in error_of(load_settings, Lax, options={"buckets": "x"}).message


@pytest.mark.parametrize(
    "options",
    [
        {"pin": SECRET},  # the validator's own message holds it
        {"pin": SECRET[:3]},  # too short
        {"pin": SECRET * 10},  # too long to be shown whole
        {"wood": "oak", "token": SECRET},  # and that of the whole model
    ],
    ids=["validator", "too short", "too long", "model"],
)
def test_a_secret_is_never_in_an_error(options):
    error = error_of(load_settings, Shelf, options=options)
    assert SECRET[:3] not in error.message


def test_a_secret_of_the_wrong_type_in_a_profile_is_not_shown(config):
    environment = config("backends:\n  lab:\n    type: book-shelf\n    token: 20230517\n")
    error = error_of(load_settings, Shelf, profile=profile_of(environment))
    assert "'token' must be text" in error.message
    assert "20230517" not in error.message


# -- the configuration file --------------------------------------------------------------------------------------


def test_without_a_file_there_is_nothing(tmp_path):
    for environment in ({"HOME": str(tmp_path)}, {"XDG_CONFIG_HOME": str(tmp_path / "none")}):
        found = load_config(environment)
        assert (found.profiles, found.mirrors, found.file) == ({}, (), None)


@pytest.mark.parametrize("variable", ["XDG_CONFIG_HOME", "HOME"])
def test_where_the_file_is_looked_for(tmp_path, variable):
    folder = tmp_path / ("ari" if variable == "XDG_CONFIG_HOME" else ".config/ari")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("mirrors: [https://a.example/x]\n")
    found = load_config({variable: str(tmp_path), **({} if variable == "HOME" else {"HOME": "/nowhere"})})
    assert found.mirrors == ("https://a.example/x",)


def test_a_relative_xdg_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ari").mkdir()
    (tmp_path / "ari/config.yaml").write_text("mirrors: [https://evil.example]\n")
    assert load_config({"XDG_CONFIG_HOME": ".", "HOME": str(tmp_path / "home")}).mirrors == ()


def test_naming_a_missing_file_is_an_error(tmp_path):
    error = error_of(load_config, {"ARI_CONFIG": str(tmp_path / "absent.yaml")})
    assert error.message == f"ARI_CONFIG names '{tmp_path}/absent.yaml', which does not exist"
    assert isinstance(error, ConfigurationError)


BAD_FILES = {
    "a list": ("- a\n", "line 1: must be a mapping"),
    "text": ("hello\n", "line 1: must be a mapping, as in 'key: value', found 'hello'"),
    "unknown key": ("mirrors: []\nbakends: {}\n", "line 2: unknown key 'bakends'; did you mean 'backends'?"),
    "mirrors are text": ("mirrors: https://x\n", "line 1: 'mirrors' must be a list, found 'https://x'"),
    "a mirror is a number": (
        "mirrors:\n- a\n- 3\n",
        "line 3: 'mirrors[1]' must be text, found 3: put it in quotes",
    ),
    "profile without type": ("backends:\n  lab:\n    out: /x\n", "line 2: 'backends.lab.type' is missing"),
    "profile is text": ("backends:\n  lab: s3\n", "line 2: 'backends.lab' must be a mapping, found 's3'"),
    "profile is empty": ("backends:\n  lab:\n", "line 2: 'backends.lab' must be a mapping, found nothing"),
    "key twice": ("backends:\n  lab: {type: a}\n  lab: {type: b}\n", "line 3: the key 'lab' is there twice"),
    "alias": ("backends:\n  a: &x {type: y}\n  b: *x\n", "line 3: aliases"),
    "tag": ("mirrors: !!python/object/apply:os.system ['id']\n", "line 1: the tag"),
    "number as key": ("backends:\n  1: {type: a}\n", "line 2: keys must be text, found 1: put it in quotes"),
    "no yaml": ("backends: [\n", "not YAML: "),
    "tab": ("backends:\n\tlab: x\n", "line 2: not YAML: "),
    "two documents": ("--- {}\n--- {}\n", "line 2: not YAML: expected a single document"),
    "control character": ("mirrors:\n- a\x07b\n", "line 2: YAML does not allow the character U+0007"),
    "too deep": ("mirrors: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    "too large": ("# " + "x" * 300_000, "larger than the limit"),
}


@pytest.mark.parametrize(("text", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_line_with_its_place(config, text, says):
    environment = config(text)
    error = error_of(load_config, environment)
    assert isinstance(error, ConfigurationError)
    assert error.message.startswith(environment["ARI_CONFIG"])
    assert says in error.message


def test_a_misspelling_is_named_before_what_it_makes_missing(tmp_path):
    class Plank(BaseModel):
        model_config = ConfigDict(extra="forbid")
        length: int

    class Shop(BaseModel):
        shelf: dict[str, Plank]

    (tmp_path / "shop.yaml").write_text("shelf:\n  top:\n    lenght: 3\n")
    error = error_of(validate, Shop, read_yaml(tmp_path / "shop.yaml", 1000))
    assert error.message.endswith("line 3: unknown key 'lenght'; did you mean 'length'?")


def test_a_file_that_is_not_utf8(config, tmp_path):
    environment = config("")
    (tmp_path / "config.yaml").write_bytes(b"mirrors:\n- caf\xe9\n")
    assert "line 2: not UTF-8" in error_of(load_config, environment).message


def test_an_empty_file_is_an_empty_configuration(config):
    assert load_config(config("# nothing yet\n")).profiles == {}


def test_values_stay_what_the_author_wrote(config):
    environment = config(
        "backends:\n  lab: {type: x, a: 010, b: 12:30, c: 2025-01-01, d: 1_000, e: 1.5, f: no, g: 7, h: null}\n"
    )
    assert profile_of(environment).values == {
        "a": "010",
        "b": "12:30",
        "c": "2025-01-01",
        "d": "1_000",
        "e": 1.5,
        "f": False,
        "g": 7,
        "h": None,
    }


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(config, mode):
    environment = config("mirrors: []\n", mode)
    error = error_of(load_config, environment)
    assert error.message.endswith("can be written by other users")
    assert error.hint == f"chmod go-w '{environment['ARI_CONFIG']}'"
    Path(environment["ARI_CONFIG"]).chmod(mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    load_config(environment)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(config, monkeypatch):
    environment = config("mirrors: []\n")
    os.chown(environment["ARI_CONFIG"], 12345, -1)
    assert "belongs to another user" in error_of(load_config, environment).message
    os.chown(environment["ARI_CONFIG"], 0, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # root's own files are fine for everybody
    load_config(environment)


def test_a_pipe_for_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in error_of(load_config, {"ARI_CONFIG": str(tmp_path / "pipe")}).message


def test_a_folder_for_a_file(tmp_path):
    assert "not a regular file" in error_of(load_config, {"ARI_CONFIG": str(tmp_path)}).message


def test_a_file_that_cannot_be_read(config, monkeypatch):
    environment = config("")

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert isinstance(error_of(load_config, environment), LocalPermissionError)


# -- opening -----------------------------------------------------------------------------------------------------

STORE = """
from ari_core.contract import Backend, Capabilities
from pydantic import BaseModel, SecretStr

class Store(Backend):
    name = "shelf"
    capabilities = Capabilities()
    class Settings(BaseModel):
        out: str = "nowhere"
        token: SecretStr | None = None
    def __init__(self, settings, context=None):
        super().__init__(settings, context)
        if settings.out == "bad":
            raise ValueError(f"no {settings.token.get_secret_value()}\\nhere")
    def _resolve(self, ref): ...
    def _ref(self, locator): ...
    def _stat(self, locator): ...
    def _open(self, locator, offset): ...
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    before = set(__import__("sys").modules)
    packages = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(packages.folder))
    packages.module("store", STORE, head="")
    packages.package(
        "shelves",
        """
        @hookimpl
        def ari_backends():
            exact = lambda ref: Claim.EXACT if ref.startswith("shelf:") else Claim.NO
            return [spec(backend="store:Store", claims=exact)]
        """,
    )
    packages.package("broken", "raise RuntimeError('half finished')", entry="broken")
    yield packages.load()
    forget_modules(before)


def test_opening_by_name_profile_and_ref(plugins, config):
    environment = config("backends:\n  lab: {type: shelf, out: /lab}\n")
    context = OpenContext(Path("/checkpoint"))
    for backend, out in (
        (open_backend("shelf", {"out": "/x"}, context, plugins, environment=environment), "/x"),
        (open_backend("lab", {}, context, plugins, environment=environment), "/lab"),
        (open_backend("lab", {"out": "/y"}, context, plugins, environment=environment), "/y"),
        (open_for_ref("shelf:z", {"out": "/z"}, context, plugins, environment=environment), "/z"),
    ):
        assert backend.name == "shelf"
        assert backend.settings.out == out
        assert backend.context is context


def test_a_plugin_that_failed_keeps_its_variables(plugins, tmp_path):
    """One broken package must not take another backend with it."""
    packages = Packages(tmp_path / "site")
    packages.package("half-done", "raise RuntimeError('half finished')", entry="shelf-two")
    environment = {"ARI_SHELF_TWO_TOKEN": "x"}
    error_of(open_backend, "shelf", plugins=plugins, environment=environment)
    assert open_backend("shelf", plugins=packages.load(), environment=environment).settings.token is None


def test_a_ref_needs_no_configuration_file(plugins, config):
    """A reader with a broken profile can still check a copy."""
    assert open_for_ref("shelf:z", plugins=plugins, environment=config("[\n")).name == "shelf"


def test_a_profile_with_the_name_of_a_backend_is_an_error(plugins, config):
    environment = config("backends:\n  other: {type: shelf}\n  shelf: {type: https}\n")
    for name in ("shelf", "other"):
        error = error_of(find_backend, name, plugins, environment)
        assert error.message.startswith(f"{environment['ARI_CONFIG']}, line 3: ")
        assert "'shelf' has the name of a backend" in error.message


def test_a_profile_of_an_unknown_type(plugins, config):
    environment = config("backends:\n  lab:\n    out: x\n    type: shelv\n")
    error = error_of(find_backend, "lab", plugins, environment)
    assert isinstance(error, UnknownBackend)
    assert error.message == (
        f"{environment['ARI_CONFIG']}, line 4: there is no backend 'shelv'; did you mean 'shelf'?"
    )


def test_a_profile_of_a_broken_plugin(plugins, config):
    environment = config("backends:\n  lab: {type: broken}\n")
    assert isinstance(error_of(find_backend, "lab", plugins, environment), PluginLoadError)


def test_an_unknown_name_suggests_profiles_too(plugins, config):
    environment = config("backends:\n  laboratory: {type: shelf}\n")
    assert "did you mean 'laboratory'" in error_of(find_backend, "laboratry", plugins, environment).message


def test_a_backend_that_fails_to_open_is_its_own_bug(plugins):
    error = error_of(open_backend, "shelf", {"out": "bad", "token": SECRET}, None, plugins, environment={})
    assert isinstance(error, BackendBug)
    assert re.search(r"'shelf' failed to open: ValueError: no \*\*\*\\nhere", error.message)


# -- an address that readers need, and that decides where credentials go -----------------------------------------

PIER = """
from pydantic import BaseModel, SecretStr
from support.memory import PREFIX, MemoryBackend
from ari_core.contract import Claim, Locator
from ari_core.plugins import hookimpl
from ari_core.contract import BackendSpec

class Pier(MemoryBackend):
    name = "pier"
    reader_settings = ("endpoint",)
    trust_settings = ("endpoint", "ca_file")
    opened = []
    class Settings(BaseModel):
        endpoint: str = "https://default.example"
        ca_file: str | None = None
        token: SecretStr | None = None
        page: int = 10
        @property
        def space(self):
            return self.endpoint
    def __init__(self, settings, context):
        token = settings.token and settings.token.get_secret_value()
        self.opened.append((settings.endpoint, token, context.anonymous, settings.ca_file))
        super().__init__(settings, context)
    def _resolve(self, ref):
        return super()._resolve(ref.replace("pier://", PREFIX))
    def _ref(self, locator):
        return "pier://" + locator

def claims(ref):
    return Claim.SCHEME if ref.startswith("pier://") else Claim.NO

@hookimpl
def ari_backends():
    return [BackendSpec("pier", "pier:Pier", "a pier", claims, api=1)]
"""
MINE = "https://mine.example/x y"


@pytest.fixture
def pier(tmp_path, monkeypatch):
    """A backend whose readers need to know where it is; the user has a token for it in the environment."""
    before = set(sys.modules)
    packages = Packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(packages.folder))
    packages.package("pier", PIER, entry="pier")
    loaded = packages.load()
    for name in ("plugins", "settings", "workflows.publish", "workflows.promote"):
        monkeypatch.setattr(importlib.import_module(f"ari_core.{name}"), "load_plugins", lambda: loaded)
    monkeypatch.setenv("ARI_PIER_TOKEN", SECRET)
    yield importlib.import_module("pier").Pier
    forget_modules(before)


@pytest.fixture
def checkpoint(tmp_path, pier):
    """A checkpoint that was published to `MINE`."""
    folder = tmp_path / "run"
    (folder / "ear/code").mkdir(parents=True)
    (folder / "ear/code/run.py").write_text("print(1)\n")
    curate(folder)
    publish(folder, backend="pier", options={"endpoint": MINE, "ca_file": "ca.pem"})
    pier.opened.clear()
    return folder


def test_publishing_keeps_the_address_that_readers_need_and_nothing_else_of_trust(checkpoint):
    record = read_record(checkpoint)
    assert record.settings == record.options == {"endpoint": MINE}


def test_a_reader_of_the_folder_goes_there_without_credentials(checkpoint, pier, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "downloaded")
    clone(str(copy), tmp_path / "clone")
    assert (tmp_path / "clone/code/run.py").read_text() == "print(1)\n"
    assert pier.opened == [(MINE, None, True, None)]


@pytest.mark.parametrize("command", ["promote", "delete"])
def test_who_has_credentials_says_again_where_they_go(checkpoint, pier, capsys, command):
    words = ["ear", command, str(checkpoint), *(["--yes"] if command == "delete" else ["--target", "public"])]
    before = read_record(checkpoint)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert f"error: the record names endpoint={MINE}, which decides where your credentials go\n" in err
    assert f"hint: if that is right, give -o endpoint='{MINE}'\n" in err
    assert (pier.opened, read_record(checkpoint)) == ([], before)
    assert main([*words, "-o", f"endpoint={MINE}"]) == 0
    assert pier.opened == [(MINE, SECRET, False, None)]


def test_what_the_environment_or_the_profile_says_is_said(checkpoint, pier, config, monkeypatch):
    monkeypatch.setenv("ARI_PIER_ENDPOINT", MINE)
    promote(checkpoint, target="unlisted")
    monkeypatch.delenv("ARI_PIER_ENDPOINT")
    monkeypatch.setenv(
        "ARI_CONFIG", config(f"backends:\n  mine:\n    type: pier\n    endpoint: {MINE}\n")["ARI_CONFIG"]
    )
    write_record(checkpoint, read_record(checkpoint).model_copy(update={"profile": "mine"}))
    promote(checkpoint, target="public")
    assert pier.opened == [(MINE, SECRET, False, None)] * 2


def test_a_stranger_s_record_gets_nobody_s_credentials(checkpoint, pier, monkeypatch):
    forged = {"endpoint": "https://evil.example", "ca_file": "evil.pem", "token": "theirs"}
    record = read_record(checkpoint)
    write_record(checkpoint, record.model_copy(update={"settings": forged, "options": forged}))
    with pytest.raises(ConfigurationError, match=r"names endpoint=https://evil\.example, which decides"):
        promote(checkpoint, target="public")
    assert pier.opened == []
    # The user's own word counts, not the record's: their credentials go where they said.
    monkeypatch.setenv("ARI_PIER_ENDPOINT", MINE)
    promote(checkpoint, target="public")
    assert pier.opened == [(MINE, SECRET, False, None)]


def test_nor_does_one_that_is_only_read(checkpoint, pier, monkeypatch, tmp_path):
    forged = {"endpoint": "https://evil.example", "ca_file": "evil.pem", "token": "theirs"}
    write_record(checkpoint, read_record(checkpoint).model_copy(update={"options": forged}))
    with pytest.raises(AriError):
        clone(str(checkpoint), tmp_path / "clone")
    assert pier.opened == [("https://evil.example", None, True, None)]
