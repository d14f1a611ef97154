"""The tables and numbers in the documentation are those of the code."""

import ast
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from support.registry import Registry
from support.tables import code, table

import ari_core
from ari_backends.ari_registry import cli
from ari_core import names, secrets_scan, verification
from ari_core.bundle import gunzip, untar, writer
from ari_core.cli import _BUG, main, output, reading
from ari_core.contract import Visibility
from ari_core.errors import TABLE
from ari_core.limits import ENVIRONMENT_PREFIX, Limits
from ari_core.plugins import BUILT_IN, load_plugins
from ari_core.policy import DENY, Policy
from ari_core.record import Record
from ari_core.settings import CONFIG_MAX_BYTES, fields_of, variables_of
from ari_core.workflows import backends, copies
from ari_server import cli as server
from ari_server.config import ServerConfig, variable_of

ROOT = Path(__file__).parents[2]
FORMAT, CONFIGURATION, PUBLICATION, PYTHON = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("format.md", "configuration.md", "publication.md", "python-api.md")
)


def section(document, heading):
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,3}} |\Z)", document, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[2]


# -- format.md ----------------------------------------------------------------------------------------------------


def test_forbidden_code_points():
    told = []
    for first, last, _ in table(FORMAT, "from", "to", "what"):
        if "*n*" in first:
            assert (first, last) == ("U+*n*FFFE", "U+*n*FFFF")
            told += [(plane << 16 | 0xFFFE, plane << 16 | 0xFFFF) for plane in range(0x11)]
        else:
            told.append((int(first.removeprefix("U+"), 16), int(last.removeprefix("U+"), 16)))
    assert told == list(names._FORBIDDEN_RANGES)


def test_limits():
    rows = table(FORMAT, "limit", "value", "variable", "what is counted")
    told = [(code(variable), int(value.replace(",", ""))) for _, value, variable, _ in rows]
    assert told == [([ENVIRONMENT_PREFIX + f.name.upper()], f.default) for f in fields(Limits)]


def test_deny_rules():
    assert {code(rule)[0]: why for rule, why in table(FORMAT, "rule", "why")} == DENY


def test_what_systems_leave():
    (_, files), (_, folders) = table(FORMAT, "kind", "names")
    assert set(code(files)) == verification.OS_FILES | {"._"}
    assert set(code(folders)) == verification.OS_FOLDERS


def test_pax_keys():
    assert {code(key)[0] for key, _ in table(FORMAT, "key", "value")} == {
        "path",
        "size",
        *(key.decode() for key in untar._PAX_IGNORED),
    }


def test_record_fields():
    assert [code(name)[0] for name, _, _ in table(FORMAT, "field", "type", "meaning")] == list(Record.model_fields)


def test_policy_keys():
    told = {code(key)[0]: rest for key, *rest in table(FORMAT, "key", "default", "allowed")}
    assert list(told) == list(Policy.model_fields)
    for key, (default, allowed) in told.items():
        assert allowed == Policy.model_fields[key].description
        value = getattr(Policy(), key)
        if isinstance(value, list):
            assert code(default) == value
        elif isinstance(value, bool) or value is None:
            assert default == {True: "true", False: "false", None: "none"}[value]
        else:
            assert default.strip("`") == (value if isinstance(value, str) else f"{value:g}")


def test_policy_keys_in_the_manifest():
    sentence = re.search(r"Into the manifest's `publish` go (.*?), with\s+defaults", FORMAT, re.DOTALL)
    assert set(code(sentence[1])) == set(Policy().publish_section())


def test_header_as_written():
    block = bytearray(512)
    free = {"name": b"b.txt", "prefix": b"a" * 101, "size": b"00000000005\0", "checksum": b" " * 8}
    for offset, length, field, value in table(FORMAT, "offset", "length", "field", "value"):
        text = "".join(
            {"NUL": "\0", "or": "|"}.get(word, word.strip("`")) for word in value.replace(",", "").split()
        )
        data = free.get(field) or text.partition("|")[0].encode()
        assert len(data) <= int(length)
        block[int(offset) : int(offset) + len(data)] = data
    block[148:156] = b"%06o\0 " % sum(block)
    assert writer.header("a" * 101 + "/b.txt", 5, executable=False) == bytes(block)


def test_types_that_are_read():
    text = " ".join(section(FORMAT, "Members").split())
    assert "is `0`, a regular file, or `5`, a folder" in text
    assert b"0" not in untar._TYPE_NAMES
    assert b"5" not in untar._TYPE_NAMES


@pytest.mark.parametrize(
    ("document", "phrase", "value"),
    [
        (FORMAT, r"at most 1 MiB \(([\d,]+)\) of them", untar._MAX_END_PADDING),
        (FORMAT, r"NUL within ([\d,]+) bytes", gunzip._LONGEST_FNAME),
        (FORMAT, r"cut into blocks of ([\d,]+) bytes", writer.CHUNK),
        (FORMAT, r"to ISA-L at level (\d+)", writer._LEVEL),
        (FORMAT, r"at most ([\d,]+) bytes stands in the name field", writer._NAME_FIELD),
        (FORMAT, r"at least 1 and at most (\d+) are left for the prefix", writer._PREFIX_FIELD),
        (FORMAT, r"in the first (\w+) of a text file", {1 << 20: "MiB"}[secrets_scan.SCANNED_BYTES]),
        (CONFIGURATION, r"stopped after (\d+) seconds \(`show`\)", int(backends.SHOW_SECONDS)),
        (CONFIGURATION, r"\(`show`\) or (\d+) \(`check`\)", int(backends.CHECK_SECONDS)),
        (CONFIGURATION, r"At most (\d+) KiB", CONFIG_MAX_BYTES // 1024),
    ],
)
def test_numbers(document, phrase, value):
    found = re.findall(phrase, " ".join(document.split()))
    assert [number.replace(",", "") for number in found] == [str(value)]


def test_unportable_names():
    text = section(FORMAT, "Names").partition("**Unportable names**")[2]
    devices = [name for name in code(text) if name.isupper() or name.endswith("$")]
    assert len(devices) >= 8
    for device in devices:
        number = "²" if device in {"COM", "LPT"} else ""
        for name in (device + number, f"x/{device.lower()}{number}.txt"):
            assert names.unportable([name]), name
    for bad in re.search(r"parts with one of `([^`]+)`", text)[1].split():
        assert names.unportable([f"a{bad}b"]), bad
    for good in ("COM", "LPTx", "a b", "a.b", "CONE", "é"):
        assert not names.unportable([good]), good


# -- configuration.md ---------------------------------------------------------------------------------------------


def test_exit_status():
    told = {
        int(status): set(code(kinds.strip("|")))
        for status, _, kinds in table(CONFIGURATION, "status", "when", "kinds")
    }
    expected = {0: set(), 2: {"aborted"}}
    for case in (*TABLE.values(), _BUG):
        expected.setdefault(case.exit_code, set()).add(case.kind)
    assert told == expected


def test_environment_variables():
    told = {name for variable, _ in table(CONFIGURATION, "variable", "what") for name in code(variable)}
    used = set()
    for file in (file for source in ("core", "backends", "server") for file in ROOT.glob(f"{source}/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= set(re.findall(r"^ARI_[A-Z_]+[A-Z]$", node.value))
    assert len(used) >= 6
    assert {name for name in told if re.fullmatch(r"ARI_[A-Z_]+", name)} == used


def test_settings_of_every_built_in_backend():
    plugins = load_plugins()
    built_in = [spec for plugin in plugins.plugins if plugin.package == BUILT_IN for spec in plugin.backends]
    told = CONFIGURATION.partition("\n## Built-in backends\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", told, re.MULTILINE) == [spec.name for spec in built_in]
    for spec in built_in:
        cls = plugins.load_class(spec)
        rows = table(section(CONFIGURATION, spec.name), "setting", "default", "variable", "what")
        told = [(code(key)[0], default, code(variable), what) for key, default, variable, what in rows]
        assert told == [
            (
                key,
                "none" if info.default is None else str(info.default),
                list(variables_of(cls, key)),
                info.description,
            )
            for key, info in fields_of(cls.Settings).items()
        ]


def test_settings_of_the_server():
    rows = table(CONFIGURATION, "option", "default", "variable", "what")
    expected = {}
    for option in server.serve.params:
        if option.name == "pairs" or option.name in ServerConfig.model_fields:
            field = "options" if option.name == "pairs" else option.name
            info = ServerConfig.model_fields[field]
            default = "none" if info.is_required() or not info.default else str(info.default)
            expected[option.opts[0]] = (default, variable_of(field), info.description)
        else:
            about = option.help.partition("  [env: ")[0].rstrip(".")
            expected[option.opts[0]] = (str(option.default), option.envvar, about[0].lower() + about[1:])
    expected["no option"] = ("none", variable_of("db"), ServerConfig.model_fields["db"].description)
    told = {option.strip("`"): (default, code(variable)[0], what) for option, default, variable, what in rows}
    assert told == expected
    assert {variable_of(field) for field in ServerConfig.model_fields} < {
        variable for _, variable, _ in told.values()
    }


def test_states_of_a_token():
    rows = table(CONFIGURATION, "token", "meaning")
    assert {code(state)[0] for state, _ in rows} == set(cli._TOKENS)


def test_evidence():
    rows = table(CONFIGURATION, "`evidence`", "what is known of the copy")
    assert [code(grade)[0] for grade, _ in rows] == list(output._EVIDENCE)


def test_anchors():
    rows = table(CONFIGURATION, "`anchored_by`", "meaning")
    assert {code(anchor)[0] for anchor, _ in rows} == set(reading.ANCHORS)


@pytest.fixture
def as_json(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def registry(tmp_path_factory, monkeypatch):
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        monkeypatch.setenv("ARI_REGISTRY_URL", server.url)
        monkeypatch.setenv("ARI_REGISTRY_TOKEN", server.token("alice"))
        yield server


def test_keys_of_json(as_json, tmp_path, registry, moto, monkeypatch):
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    code_folder = tmp_path / "run/ear/code"
    code_folder.mkdir(parents=True)
    (code_folder / "a.py").write_text("print(1)\n")
    data = ["--data-dir", str(registry.data)]
    issued = registry.token("bob")
    runs = {
        "ari ear curate": ["run"],
        "ari ear publish": ["run", "--also", "local-tarball", "-o", "local-tarball.out=also"],
        "ari ear promote": ["run", "--target", "public"],
        "ari ear share": ["run"],
        "ari ear status": ["run"],
        "ari mirror": ["run", "--to", "local-tarball", "-o", "out=usb"],
        "ari clone": ["run", "copy"],
        "ari verify": ["copy"],
        "ari show": ["copy"],
        "ari ear delete": ["run", "--yes"],
        "ari backends list": [],
        "ari backends show": ["local-tarball"],
        "ari backends check": ["local-tarball", "-o", "out=."],
        "ari backends gc": ["s3", "-o", f"bucket={moto.bucket}"],
        "ari config check": [],
        "ari registry token issue": ["carol", *data],
        "ari registry token list": data,
        "ari registry token revoke": [issued.id, *data],
        "ari registry reindex": data,
        "ari registry db upgrade": data,
        "ari registry db check": data,
    }
    told = {command: keys for cell, keys in table(CONFIGURATION, "command", "keys") for command in code(cell)}
    assert told.keys() == runs.keys()
    found = {}
    for command, words in runs.items():
        expected = set(code(re.sub(r"\[.*?\]\(.*?\)", "", told[command])))
        if told[command].startswith("the fields of the"):
            expected |= set(Record.model_fields)
        found[command] = as_json(*command.split()[1:], *words)
        assert set(found[command]) == expected, command
    lists = {code(name)[0]: set(code(keys)) for name, keys in table(CONFIGURATION, "list", "keys of each")}
    one = {**found["ari config check"], **found["ari registry token list"], **found["ari mirror"]}
    one.update(also=found["ari ear publish"]["also"], places=found["ari ear promote"]["places"])
    one.update(deleted=found["ari ear delete"]["deleted"])
    assert {name: set(one[name][0]) for name in lists} == lists


# -- publication.md, python-api.md --------------------------------------------------------------------------------


def test_levels():
    rows = table(PUBLICATION, "level", "who may read, if the store enforces it")
    assert [code(level)[0] for level, _ in rows] == list(Visibility)


def test_events():
    used = set()
    for file in ROOT.glob("core/**/*.py"):
        used |= set(re.findall(r'(?:\.with_event|\b_line)\(\s*"([^"]+)"', file.read_text(encoding="utf-8")))
    used.add(copies.COPIED)
    assert {code(event)[0] for event, _ in table(PUBLICATION, "event", "when")} == used


def test_python_names():
    rows = table(PYTHON, "name", "what")
    told = {name for cell, what in rows for name in (*code(cell), *code(what)) if hasattr(ari_core, name)}
    assert told == set(ari_core.__all__)
    functions = [code(cell)[0] for cell, _ in rows if inspect.isfunction(getattr(ari_core, code(cell)[0]))]
    without = [name for name in functions if "limits" not in inspect.signature(getattr(ari_core, name)).parameters]
    sentence = next(what for cell, what in rows if code(cell) == ["Limits"])
    assert code(sentence.partition("apart from")[2]) == without
