"""Every example in the documentation is carried out, in the order of the document, by one shell.

How to write an example that is carried out:

- ``console``: a line that starts with ``$ `` is a command, lines with ``> `` continue it, what follows is all it
  prints. ``…`` stands for anything in a line, alone for any lines. A command must succeed, unless ``$ echo $?``
  comes next and shows its status. In a command, ``ari_…`` and ``arif_…`` stand for the last such token that was
  printed, and ``…`` alone or behind a ``/`` for the last id of 16 digits.
- ``python``: a program of its own. If it prints, ``<!-- output -->`` and a block ``text`` follow.
- ``yaml``: starts with a comment that names its file; it is checked and saved there, for what follows.
- ``json``: a manifest, a record, or the canonical form of a file list.
- Anything else, or what cannot be carried out here, stands behind ``<!-- not run: reason -->``.

All of it happens in ``/home/ada``: that is how the documents spell the temporary home folder of the shell. In the
same way ``/src/ari-registry`` is a checkout of this repository; ``127.0.0.1:8290`` and 8291 are free ports.
``sandbox.zenodo.org``, zenodo.org and doi.org are simulated, by their real names.
``https://s3.example.org`` is a store with an empty bucket ``lab-artifacts``, and the database ``ari`` at
``db.example.org`` an empty one in PostgreSQL: they run while a document that names them is carried out.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import secrets
import shlex
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from support.httpd import Server, StaticFile
from support.internet import Internet
from support.programs import require
from support.registry import Registry, free_port

from ari_backends.ari_registry.registries import find_registries
from ari_core.cli.app import _PluginGroup, app
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.policy import parse_policy
from ari_core.record import Record
from ari_core.settings import load_config
from ari_core.yamlfile import read_yaml

ROOT = Path(__file__).parents[2]
# plugins.md is about a package of its own, which tests of its own build and run.
DOCUMENTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))
SLOW = {"docs/migration.md", "docs/publication.md", "docs/registry.md", "docs/scaling.md"}
"""Documents whose examples start one server after the other: not for every day."""
FOLDERS = [f"{name}/README.md" for name in ("core", "backends", "server", "scripts/registry")]
LINKING = sorted({*DOCUMENTS, *FOLDERS, *(p.name for p in ROOT.glob("*.md"))})
HOME = "/home/ada"
CHECKOUT = "/src/ari-registry"
ADDRESS = "127.0.0.1:8290"
SECOND = "127.0.0.1:8291"
STORE, BUCKET = "https://s3.example.org", "lab-artifacts"
DATABASE = "postgresql+psycopg://ari:secret@db.example.org/ari"
NOT_RUN = re.compile(r"<!-- not run: .{8,} -->")
OUTPUT = "<!-- output -->"


@dataclass
class Block:
    """A fenced block.

    Attributes:
        line: Line of its opening fence, from 1.
        mark: The comment right before it, or "".
    """

    language: str
    line: int
    mark: str
    text: str


@dataclass
class Step:
    """A command and what it should print."""

    line: int
    command: str
    expected: list[str] = field(default_factory=list)


def blocks_of(document):
    """Returns the fenced blocks of a Markdown text."""
    blocks, current, mark = [], None, ""
    for number, line in enumerate(document.splitlines(), 1):
        if current is None and line.startswith("```"):
            current = Block(line.removeprefix("```").strip(), number, mark, "")
        elif current is not None and line == "```":
            blocks.append(current)
            current, mark = None, ""
        elif current is not None:
            current.text += line + "\n"
        else:
            assert "```" not in line, f"line {number}: a fence must start its line"
            mark = line.strip() or mark
    assert current is None, f"the block of line {current and current.line} has no end"
    return blocks


def steps_of(block):
    """Returns the commands of a console block."""
    steps = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            steps.append(Step(number, line.removeprefix("$ ")))
        elif line.startswith(">") and steps and not steps[-1].expected:
            steps[-1].command += "\n" + line.removeprefix(">").removeprefix(" ")
        else:
            assert steps, f"line {number}: a console block starts with a command"
            steps[-1].expected.append(line)
    return steps


def matches(expected, printed):
    """Says whether lines are as expected, ``…`` standing for anything."""
    regex = "".join(
        r"(?:.*\n)*" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in expected
    )
    return re.fullmatch(regex, "".join(f"{line}\n" for line in printed)) is not None


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\nb", "a\nb", True),
        ("a\nb", "a\nc", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("a…c", "abbc", True),
        ("a…c", "ab\nc", False),
        ("a…c", "abbd", False),
        ("…\nb", "a\na\nb", True),
        ("…\nb", "b", True),
        ("…\nb", "a\nc", False),
        ("a.c", "abc", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_comparison_of_output(expected, printed, same):
    assert matches(expected.splitlines(), printed.splitlines()) is same


def test_a_wrong_document_fails(tmp_path):
    text = "```console\n$ echo one\ntwo\n$ false\n$ true\n```\n\n```sh\nls\n```\n"
    problems = carry_out(text, tmp_path)
    assert [problem.partition(":")[0] for problem in problems] == ["line 8", "line 2", "line 4"]


def test_a_right_document_passes(tmp_path):
    text = (
        "<!-- not run: it needs the network -->\n```sh\nls\n```\n"
        "```console\n$ cd; pwd; false\n/home/ada\n$ echo $?\n1\n$ cat <<END\n> x\n> END\nx\n```\n"
        "```python\nprint(6 * 7)\n```\n\nprints\n\n<!-- output -->\n\n```text\n42\n```\n"
    )
    assert carry_out(text, tmp_path) == []


def test_secrets_and_ids_are_those_printed_last(tmp_path):
    token, fetch, number = "ari_" + "a-" * 21 + "Z", "arif_" + "b" * 43, "0123456789abcdef"
    text = (
        f"```console\n$ echo {token[:-1]}A {token} {fetch}; echo {number[::-1]} {number}\n…\n"
        f'$ echo ari_… "x arif_…" …\n{token} x {fetch} {number}\n'
        "$ echo /src/ari-registry 127.0.0.1:8290\n/src/ari-registry 127.0.0.1:8290\n```\n"
    )
    assert carry_out(text, tmp_path) == []


def carry_out(text, home):
    """Carries out a document; returns what is wrong with it."""
    problems, steps = [], []
    blocks = blocks_of(text)
    for block, before in zip(blocks, [None, *blocks], strict=False):
        if NOT_RUN.fullmatch(block.mark):
            continue
        if block.language == "console":
            steps += steps_of(block)
        elif block.language == "python":
            program = home.with_name(f"example-of-{home.name}-line-{block.line}.py")
            program.write_text(block.text.replace(HOME, str(home)), encoding="utf-8")
            steps.append(Step(block.line, shlex.join([sys.executable, str(program)])))
        elif block.language == "text" and block.mark == OUTPUT and before and before.language == "python":
            steps[-1].expected = block.text.splitlines()
        elif block.language == "yaml":
            steps.append(Step(block.line, saving(block, home)))
        elif block.language == "json":
            check_json(block, text)
        else:
            problems.append(f"line {block.line}: this block is neither carried out nor marked as not run")
    return problems + session(steps, home)


def saving(block, home):
    """Checks a YAML example and returns the command that saves it where its first line says."""
    name = block.text.partition("\n")[0].removeprefix("# ")
    target = Path(home, name.removeprefix("~/"))
    trial = home.with_name(f"example-of-{home.name}-{target.name}")
    trial.write_text(block.text.replace(ADDRESS, real_names(home)[ADDRESS]), encoding="utf-8")
    trial.chmod(0o644)
    if target.name == "publish.yaml":
        parse_policy(read_yaml(trial, 10_000))
    elif target.name == "registries.yaml":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ARI_REGISTRIES_FILE", str(trial))
            assert find_registries(None).entries, f"line {block.line}: no registry"
    else:
        assert target.name == "config.yaml", f"line {block.line}: the first line must name the file"
        load_config({"ARI_CONFIG": str(trial)})
    place = shlex.quote(str(target))
    return f"mkdir -p $(dirname {place}) && cp {shlex.quote(str(trial))} {place}"


def check_json(block, document):
    data = json.loads(block.text)
    if "bundle_sha256" in data and "files" in data:
        parse_manifest(block.text.encode(), Limits())
    elif data.keys() == {"files", "version"}:
        digest = hashlib.sha256(block.text.rstrip("\n").encode()).hexdigest()
        assert digest in document, f"line {block.line}: the digest of this is {digest}"
    else:
        Record.model_validate_json(block.text)
        assert data.keys() <= Record.model_fields.keys(), f"line {block.line}: unknown fields in a record"


def session(steps, home):
    """Runs commands in one shell, in `home`; returns what went wrong."""
    if not steps:
        return []
    mark = secrets.token_hex(12)  # never the length of an id
    names, log = real_names(home), home.with_name(f"session-of-{home.name}")
    given = home.with_name(f"variables-of-{home.name}")
    variables = json.loads(given.read_text()) if given.exists() else {}
    script = "cd\n" + "".join(
        # The status is handed on, so that `echo $?` shows it.
        f"{real(step.command, names, log)}\n__status=$?; echo {mark} $__status; (exit $__status)\n"
        for step in steps
    )
    try:
        with log.open("wb") as printed:
            subprocess.run(
                ["bash", "-c", f"umask 022\n{script}"],
                env=environment(home) | variables | {"ARI_REGISTRY_PORT": names[ADDRESS].rpartition(":")[2]},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,  # where a terminal shows it
                timeout=300,
                check=False,
            )
    finally:
        left_running = end_servers(Path(names[CHECKOUT], ".ari_registry"), *home.iterdir())
    text = log.read_text(encoding="utf-8")
    for told, name in names.items():
        text = text.replace(name, told)
    *results, rest = re.split(rf"{mark} (\d+)\n", text)
    assert (len(results), rest) == (2 * len(steps), ""), f"the shell ended early: {rest}"
    problems = ["a server is left running"] if left_running else []
    following = [step.command for step in steps[1:]] + [""]
    for step, printed, status, after in zip(steps, results[::2], results[1::2], following, strict=True):
        if not matches(step.expected, printed.splitlines()):
            difference = difflib.ndiff(step.expected, printed.splitlines())
            problems.append(f"line {step.line}: {step.command}\n" + "\n".join(difference))
        elif status != "0" and after != "echo $?":
            problems.append(
                f"line {step.line}: {step.command}: exit status {status}, and the document does not show it"
            )
    return problems


def real_names(home):
    """Returns what the documents' names for places stand for, making the checkout and choosing the port once."""
    checkout, port = home.with_name("ari-registry"), home.with_name(f"port-of-{home.name}")
    if not checkout.exists():
        checkout.mkdir()
        for part in ("scripts", "tests"):
            (checkout / part).symlink_to(ROOT / part)
        (checkout / ".venv").symlink_to(sys.prefix)
    if not port.exists():
        port.write_text(f"{free_port()} {free_port()}")
    names = {HOME: str(home), CHECKOUT: str(checkout)}
    for told, number in zip((ADDRESS, SECOND), port.read_text().split(), strict=True):
        host, _, told_number = told.partition(":")
        names |= {told: f"{host}:{number}", f"_PORT={told_number}": f"_PORT={number}"}
    servers = home.with_name(f"servers-of-{home.name}")
    return names | (json.loads(servers.read_text()) if servers.exists() else {})


def run_servers(text, home, request):
    """Runs the store and the database that a document talks to."""
    names = {}
    if STORE in text:
        store = request.getfixturevalue("moto")
        names |= {STORE: store.endpoint_url, BUCKET: store.bucket}
    if DATABASE in text:
        names[DATABASE] = request.getfixturevalue("postgres_url")
    if "ZENODO_TOKEN=" in text:
        variables = request.getfixturevalue("internet").environment
        home.with_name(f"variables-of-{home.name}").write_text(json.dumps(variables))
    home.with_name(f"servers-of-{home.name}").write_text(json.dumps(names))


def real(command, names, log):
    """Puts real names, tokens and ids into a command."""
    for told, name in names.items():
        command = command.replace(told, name)
    last = f"$(grep -aoE '{{}}' {shlex.quote(str(log))} | tail -n 1)"
    command = re.sub(r"\b(arif?_)…", lambda found: last.format(rf"\b{found[1]}[A-Za-z0-9_-]{{43}}"), command)
    return re.sub(r"(?<=[ /])…(?= |$)", lambda _: last.format(r"\b[0-9a-f]{16}\b"), command)


def end_servers(*folders):
    """Ends the servers that start_local.sh left there, if it did; says whether."""
    found = False
    for folder in folders:
        with contextlib.suppress(OSError, IndexError):
            pid = int((folder / "server.pid").read_text().split()[0])
            os.killpg(pid, signal.SIGKILL)  # it is in a session of its own
            found = True
    return found


def environment(home):
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "COLUMNS": "100",
        "TERM": "dumb",
        "AWS_EC2_METADATA_DISABLED": "true",  # nobody asks the network for credentials
        "PYTHONUNBUFFERED": "1",  # output and errors in the order of a terminal
    }


@pytest.fixture
def internet(tmp_path):
    with Internet(tmp_path / "internet", token="token-of-ada") as running:  # noqa: S106 - as the documents have it
        yield running


@pytest.fixture
def home(tmp_path):
    folder = tmp_path.resolve() / "home"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=[pytest.mark.in_ci] if name in SLOW else []) for name in DOCUMENTS]
)
def test_examples(document, home, request):
    text = (ROOT / document).read_text(encoding="utf-8")
    if "\n$ jq " in text:
        require("jq")
    run_servers(text, home, request)
    problems = carry_out(text, home)
    assert not problems, f"{document}\n" + "\n\n".join(problems)


# -- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", LINKING)
def test_links_lead_somewhere(document):
    file = ROOT / document
    text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (file.parent / place) if place else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


def anchors(file):
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- what the commands themselves show ----------------------------------------------------------------------------


def commands(group, above=("ari",)):
    """Yields the words of every command and group of ours, and the command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, _PluginGroup):
            command = command._plugins.load_group(command._spec)
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


# `ari publish` is another name of `ari ear publish`: one of the two is enough.
_ALL = {command: " ".join(words) for words, command in commands(app)}
COMMANDS = {command: name for command, name in _ALL.items() if not isinstance(command, click.Group)}
GROUPS = {"ari": app} | {name: command for command, name in _ALL.items() if isinstance(command, click.Group)}
PLAIN_DIGEST = "3672addf4a1f5c50198d6777de49caa3433f7a11a77c5524b20fd38ecf256448"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def workplace(home, registry):
    """What the examples need: `work` with a published checkpoint and its bundle, an unpacked copy, a USB stick.

    And the data directory of a registry, where a token has the id of the examples.
    """
    ear = home / "work/run_42/ear"
    (ear / "code").mkdir(parents=True)
    (ear / "publish.yaml").write_text("include: ['README.md', 'code/**']\nvisibility: unlisted\n")
    (ear / "README.md").write_text("# R\n")
    (ear / "code/run.py").write_text("print(1)\n")
    (home / "registries.yaml").write_text(
        f"registries: [{{name: lab, url: '{registry.url}', token: {registry.token('alice')}}}]\n"
    )
    steps = [
        "mkdir usb",
        "ari registry token issue alice --data-dir srv",
        "ari ear curate work/run_42",
        "ari ear publish work/run_42",
        "cp work/run_42/bundle.tar.gz work",
        f"ari clone work/bundle.tar.gz study --expect-sha256 {PLAIN_DIGEST}",
    ]
    assert session([Step(number, step, ["…"]) for number, step in enumerate(steps)], home) == []
    with sqlite3.connect(home / "srv/tokens.db") as tokens:
        tokens.execute("UPDATE tokens SET id = '0123456789abcdef'")
    tokens.close()
    return home


@pytest.mark.parametrize("name", GROUPS)
def test_examples_of_a_group_are_those_of_its_commands(name):
    theirs = [example for command, inner in COMMANDS.items() for example in examples_of(command, inner)]
    examples = examples_of(GROUPS[name], name)
    assert examples
    for example in examples:
        assert re.match(rf"{name} ", example)
        assert any(other.startswith(example) for other in theirs), example


def examples_of(command, name):
    shown = command.get_help(click.Context(command, info_name=name))
    return re.findall(r"^ +(ari .*)$", shown.partition("Examples:\n")[2], re.MULTILINE)


@pytest.mark.in_ci
def test_examples_of_the_commands(workplace, moto):
    pristine = workplace.with_name("pristine")
    workplace.rename(pristine)
    problems = []
    with Server(StaticFile((pristine / "work/bundle.tar.gz").read_bytes())) as server:
        for command, name in COMMANDS.items():
            examples = examples_of(command, name)
            if not examples:
                problems.append(f"`{name} --help` shows no examples, each on a line of its own")
            for example in examples:
                if not re.match(rf"{name}( |$)", example):
                    problems.append(f"`{name} --help` has an example of another command: {example}")
                problems += tried(example, workplace, pristine, server, moto)
    assert not problems, "\n".join(problems)


def tried(example, home, pristine, server, moto):
    """Runs one example in a fresh copy of the workplace."""
    command = (
        example.partition(" | ")[0]
        .replace("https://example.org/", server.url("/"))
        .replace("/media/usb", str(home / "usb"))
        .replace("/srv/ari", str(home / "srv"))
        .replace("3672addf…6448", PLAIN_DIGEST)
        .replace("bucket=lab", f"bucket={moto.bucket}")
    )
    variables = {"ARI_REGISTRY_DATA": str(home / "srv"), **moto.env}
    if re.match(r"ari (config|ear share)\b", command) or "--registry" in command:
        variables["ARI_REGISTRIES_FILE"] = str(home / "registries.yaml")
    if command.startswith("ari ear share"):
        command = f"ari ear publish --registry lab --replace run_42 && {command}"
    if command.startswith("ari registry serve"):  # which would never end
        command = f"exec {command} --port 0".replace("--workers 4", "--workers 2")
    is_about_here = re.match(r"ari (ear|publish)\b", command) and "run_42" not in command
    where = home / "work/run_42" if is_about_here else home / "work"
    terminal, slave = os.openpty()  # `ari ear delete` asks
    os.write(terminal, b"y\n")
    try:
        process = subprocess.Popen(
            ["bash", "-c", f'rm -rf "$2" && cp -a "$1" "$2" && cd "$3" && {command}', "-", pristine, home, where],
            env=environment(home) | variables,
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = ""
        if command.startswith("exec "):
            said = process.stdout.readline()
            process.terminate()
        said += process.communicate(timeout=60)[0]
    finally:
        os.close(terminal)
        os.close(slave)
    return [] if process.returncode == 0 else [f"{example}: exit status {process.returncode}: {said}"]
