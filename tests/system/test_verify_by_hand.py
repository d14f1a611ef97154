"""What docs/verify-in-2046.md does by hand gives the digest of every honest bundle, and another one of any other.

The page itself is carried out by test_docs; here its commands meet harder bundles.
"""

import re
import subprocess
from pathlib import Path

import pytest
from support.bundles import make_bundle

PAGE = Path(__file__).parents[2] / "docs" / "verify-in-2046.md"
FILES = {
    "README.md": b"r\n",
    "code/run me.py": b"print(1)\n",
    "data/empty": b"",
    "data/manifest.lock": b"a file like any other",
    "data/noise": bytes(range(256)) * 999,
    "-n": b"looks like an option",
    "$(touch x) 'a' \"b\" *?": b"looks like a command",
    "a:b/~/é\u0301/日本語": b"",
    "\U0001f600": b"sorted as UTF-16 it would come first",
    "\uff5e": b"",
}

pytestmark = pytest.mark.needs("bash", "tar", "jq", "sha256sum")


def commands():
    """The console commands of the part of the page that is done by hand."""
    part = PAGE.read_text(encoding="utf-8").split("\n## By hand\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", part, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    text = "\n".join(line for line in lines if line.startswith(("$ ", ">  ", "> }")))
    return re.sub(r"^(\$|>) ?", "", text, flags=re.MULTILINE).split("canonical | sha256sum\n")[0] + "\n"


def bash(script, folder):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def by_hand(folder):
    """Unpacks the archive of a folder as the page says; returns the digest of what was unpacked."""
    return bash(f"{commands()}\ncanonical | sha256sum", folder)[-68:-4]


@pytest.mark.parametrize("files", [FILES, {}], ids=["files", "none"])
def test_an_honest_bundle_has_its_digest(tmp_path, files):
    made = make_bundle(tmp_path / "bundle.tar.gz", files)
    assert by_hand(tmp_path) == made.bundle_sha256
    listed = bash("jq -cjS '{files: .files | sort_by(.path), version}' copy/manifest.lock | sha256sum", tmp_path)
    assert listed == f"{made.bundle_sha256}  -\n"


def test_any_other_bundle_has_another(tmp_path):
    made = make_bundle(tmp_path / "bundle.tar.gz", FILES)
    assert by_hand(tmp_path) == made.bundle_sha256
    function = commands().partition("cd copy\n")[2]
    for damage in (
        "printf R >README.md",
        "rm ./-n",
        "touch .hidden",
        "mv README.md readme.md",
        "cp manifest.lock code",
        "rm README.md; ln -s code/run.py README.md",
    ):
        script = f"rm -rf other; cp -a copy other; cd other\n{damage}\n{function}\ncanonical | sha256sum"
        assert bash(script, tmp_path)[-68:-4] != made.bundle_sha256, damage


def test_what_the_digest_does_not_see_is_found(tmp_path):
    make_bundle(tmp_path / "bundle.tar.gz", FILES)
    by_hand(tmp_path)
    look = "\n".join(re.findall(r"^\$ (find .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert look.count("find") == 2
    assert bash(f"cd copy; {look}", tmp_path) == ""
    found = bash(f"cd copy; ln -s / link; mkfifo pipe; {look}", tmp_path)
    assert sorted(found.split()) == ["./link", "./pipe"]
    with pytest.raises(AssertionError, match="iconv"):
        bash(f"cd copy; rm link pipe; touch $'bad\\xff'; {look}", tmp_path)
