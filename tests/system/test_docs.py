"""Every example in the documentation is carried out, in the order of the document, by one shell.

How to write an example that is carried out:

- ``console``: a line that starts with ``$ `` is a command, lines with ``> `` continue it, what follows is all it
  prints. ``…`` stands for anything in a line, alone for any lines. A command must succeed, unless ``$ echo $?``
  comes next and shows its status.
- ``python``: a program of its own. If it prints, ``<!-- output -->`` and a block ``text`` follow.
- ``yaml``: starts with a comment that names its file; it is checked and saved there, for what follows.
- ``json``: a manifest, a record, or the canonical form of a file list.
- Anything else, or what cannot be carried out here, stands behind ``<!-- not run: reason -->``.

All of it happens in ``/home/ada``: that is how the documents spell the temporary home folder of the shell.
"""

import difflib
import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.httpd import Server, StaticFile

from ari_core.cli.app import app
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.policy import parse_policy
from ari_core.record import Record
from ari_core.settings import load_config
from ari_core.yamlfile import read_yaml

ROOT = Path(__file__).parents[2]
# plugins.md is about a package of its own, which tests of its own build and run.
DOCUMENTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))
LINKING = sorted({*DOCUMENTS, *(p.name for p in ROOT.glob("*.md"))})
HOME = "/home/ada"
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
    trial.write_text(block.text, encoding="utf-8")
    trial.chmod(0o644)
    if target.name == "publish.yaml":
        parse_policy(read_yaml(trial, 10_000))
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
    mark = secrets.token_hex(8)
    script = "cd\n" + "".join(
        # The status is handed on, so that `echo $?` shows it.
        f"{step.command.replace(HOME, str(home))}\n__status=$?; echo {mark} $__status; (exit $__status)\n"
        for step in steps
    )
    done = subprocess.run(
        ["bash", "-c", f"umask 022\n{script}"],
        env=environment(home),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where a terminal shows it
        text=True,
        timeout=300,
        check=False,
    )
    *results, rest = re.split(rf"{mark} (\d+)\n", done.stdout.replace(str(home), HOME))
    assert (len(results), rest) == (2 * len(steps), ""), f"the shell ended early: {rest}"
    problems = []
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


def environment(home):
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "COLUMNS": "100",
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",  # output and errors in the order of a terminal
    }


@pytest.fixture
def home(tmp_path):
    folder = tmp_path.resolve() / "home"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples(document, home):
    problems = carry_out((ROOT / document).read_text(encoding="utf-8"), home)
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
    """Yields the words of every command of ours, and the command."""
    for name, command in group.commands.items():
        words = (*above, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words, command


# `ari publish` is another name of `ari ear publish`: one of the two is enough.
COMMANDS = list({command: " ".join(words) for words, command in commands(app)}.values())
PLAIN_DIGEST = "3672addf4a1f5c50198d6777de49caa3433f7a11a77c5524b20fd38ecf256448"


@pytest.fixture
def workplace(home):
    """What the examples need: `work` with a published checkpoint and its bundle, an unpacked copy, a USB stick."""
    ear = home / "work/run_42/ear"
    (ear / "code").mkdir(parents=True)
    (ear / "publish.yaml").write_text("include: ['README.md', 'code/**']\nvisibility: unlisted\n")
    (ear / "README.md").write_text("# R\n")
    (ear / "code/run.py").write_text("print(1)\n")
    steps = [
        "mkdir usb",
        "ari ear curate work/run_42",
        "ari ear publish work/run_42",
        "cp work/run_42/bundle.tar.gz work",
        f"ari clone work/bundle.tar.gz study --expect-sha256 {PLAIN_DIGEST}",
    ]
    assert session([Step(number, step, ["…"]) for number, step in enumerate(steps)], home) == []
    return home


def test_examples_of_the_commands(workplace):
    pristine = workplace.with_name("pristine")
    workplace.rename(pristine)
    problems = []
    with Server(StaticFile((pristine / "work/bundle.tar.gz").read_bytes())) as server:
        for name in COMMANDS:
            shown = subprocess.run(
                [*name.split(), "--help"],
                env=environment(pristine),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
            examples = re.findall(r"^ +(ari .*)$", shown.partition("Examples:\n")[2], re.MULTILINE)
            if not examples:
                problems.append(f"`{name} --help` shows no examples, each on a line of its own")
            for example in examples:
                if not re.match(rf"{name}( |$)", example):
                    problems.append(f"`{name} --help` has an example of another command: {example}")
                problems += tried(example, workplace, pristine, server)
    assert not problems, "\n".join(problems)


def tried(example, home, pristine, server):
    """Runs one example in a fresh copy of the workplace."""
    command = (
        example.partition(" | ")[0]
        .replace("https://example.org/", server.url("/"))
        .replace("/media/usb", str(home / "usb"))
        .replace("3672addf…6448", PLAIN_DIGEST)
    )
    is_about_here = re.match(r"ari (ear|publish)\b", command) and "run_42" not in command
    where = home / "work/run_42" if is_about_here else home / "work"
    terminal, slave = os.openpty()  # `ari ear delete` asks
    os.write(terminal, b"y\n")
    try:
        done = subprocess.run(
            ["bash", "-c", f'rm -rf "$2" && cp -a "$1" "$2" && cd "$3" && {command}', "-", pristine, home, where],
            env=environment(home),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(slave)
    return [] if done.returncode == 0 else [f"{example}: exit status {done.returncode}: {done.stdout}"]
