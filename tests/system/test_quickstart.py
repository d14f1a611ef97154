"""The quick start of scripts/registry/README.md, word for word, in a fresh copy of the checkout."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support.environments import OFFLINE, make_environment
from support.registry import free_port

ROOT = Path(__file__).parents[2]
README = ROOT / "scripts" / "registry" / "README.md"
PARTS = ("pyproject.toml", "README.md", "LICENSE", "setup.sh", "core", "backends", "server", "scripts")


def commands():
    """The shell commands of the quick start."""
    section = README.read_text().split("\n## Quick start\n")[1].split("\n## ")[0]
    return "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


@pytest.fixture
def checkout(tmp_path):
    """A copy with a virtual environment in which nothing of ours is installed, and all that it needs is."""
    folder = tmp_path / "check out"
    folder.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    make_environment(folder / ".venv")
    yield folder
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, ProcessLookupError):
        os.killpg(int((folder / ".ari_registry" / "server.pid").read_text().split()[0]), signal.SIGKILL)


def test_the_quick_start_works_as_it_is_written(checkout, tmp_path):
    port, home = str(free_port()), tmp_path / "home"
    home.mkdir()
    text = commands()
    assert text.count("8290") == 1
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "ARI_REGISTRY_PORT": port,
        "PYTHON": str(checkout / ".venv/bin/python"),
        "TMPDIR": str(tmp_path),
        # What the first line installs comes from what is here.
        **OFFLINE,
    }
    session = subprocess.Popen(
        ["bash", "-euc", text.replace("8290", port) + 'printf "%s\\n" "$OLDPWD"'],
        cwd=checkout,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    patience = threading.Timer(240, os.killpg, (session.pid, signal.SIGKILL))
    patience.start()
    said, token = "", None
    try:
        for line in session.stdout:
            said += line
            if token is None and (token := re.search(r"\bari_[A-Za-z0-9_-]{43}\b", line)):
                session.stdin.write(token[0] + "\n")  # as one would paste it
                session.stdin.flush()
        assert session.wait() == 0, said
    finally:
        patience.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGKILL)
        session.stdin.close()
        session.stdout.close()
        session.wait()
    elsewhere = Path(said.splitlines()[-1])
    assert elsewhere.parent == tmp_path
    for copy in ("copy", "another"):
        assert (elsewhere / copy / "fit.py").read_bytes() == (checkout / "study/ear/fit.py").read_bytes()
    log = (checkout / ".ari_registry" / "server.log").read_text()
    assert token[0] not in log
    assert "Traceback" not in log
    assert (checkout / ".ari_registry" / "server.pid").read_text() == ""
    (stored,) = (checkout / ".ari_registry" / "artifacts").iterdir()
    assert f"/{stored.name}\n" in said
    assert said.count("compared with the digest you gave") == 2
    # Nothing of the developer's checkout took part.
    asked = "import ari_backends as b, ari_core as c, ari_server as s; print(b.__path__, c.__path__, s.__path__)"
    python = [checkout / ".venv/bin/python", "-c", asked]
    found = subprocess.run(python, capture_output=True, text=True, check=True, env=environment).stdout
    assert found.count(str(checkout)) == 3
    assert list(home.rglob("*registry-data*")) == []
