"""What `pip install 'ari-registry[s3]'` brings, and what is there without it, in environments of their own."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.environments import OFFLINE, make_environment

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".cache" / "wheels-s3"
BOTO = {"boto3", "botocore", "s3transfer", "jmespath"}
PLACES = {"fsspec"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class Environment:
    """A virtual environment with all that the base needs, into which our wheel is installed."""

    def __init__(self, folder):
        self.bin = make_environment(folder / "venv", without=BOTO | PLACES)
        self._environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(folder), **OFFLINE}

    def run(self, *command, status=0):
        done = subprocess.run(
            [*map(str, command)],
            env=self._environment,
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def install(self, *words):
        self.run(self.bin / "python", "-m", "pip", "install", "-qq", "--no-compile", *words)

    def version(self, package):
        done = self.run(
            self.bin / "python", "-c", f"import importlib.metadata as m; print(m.version({package!r}))"
        )
        return done.stdout.strip()

    def backends(self):
        done = self.run(self.bin / "ari", "backends", "list", "--json")
        return {info["name"]: info for info in json.loads(done.stdout)["backends"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    environment = {**os.environ, **OFFLINE}
    command = ["-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *command], env=environment, check=True, timeout=240)
    (made,) = folder.glob("ari_registry-*.whl")
    return made


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel):
    """An environment with the base installation."""
    environment = Environment(tmp_path_factory.mktemp("bare"))
    environment.install(wheel)
    return environment


def test_without_extras_a_backend_says_what_installs_it(bare):
    found = bare.backends()
    assert found["local-tarball"]["status"] == "ok"
    for name, missing in (("s3", "boto3"), ("fsspec", "fsspec")):
        assert found[name]["status"] == "not installed"
        assert found[name]["reason"] == f"it needs '{missing}'"
        assert found[name]["install"] == f"pip install 'ari-registry[{name}]'"
    done = bare.run(bare.bin / "ari", "verify", "s3://bucket/bundle.tar.gz", status=2)
    assert "the backend 's3' is not installed: there is no 'boto" in done.stderr
    assert "hint: pip install 'ari-registry[s3]'\n" in done.stderr
    done = bare.run(bare.bin / "ari", "verify", "gs://bucket/bundle.tar.gz", status=2)
    assert "hint: pip install 'ari-registry[fsspec]'\n" in done.stderr


def test_what_needs_no_extra_works_without_any(bare, tmp_path):
    (tmp_path / "run/ear/code").mkdir(parents=True)
    (tmp_path / "run/ear/code/a.py").write_text("print(1)\n")
    for command in ("ear curate", "publish", "verify"):
        bare.run(bare.bin / "ari", *command.split(), tmp_path / "run")


@pytest.mark.in_ci
def test_the_extra_brings_a_current_boto3_and_nothing_that_holds_it_back(tmp_path, wheel):
    if not list(WHEELS.glob("boto3-*.whl")):
        if os.environ.get("ARI_TEST_REQUIRE") == "all":
            pytest.fail(f"there is no boto3 in {WHEELS} and ARI_TEST_REQUIRE=all")
        pytest.skip("scripts/test fetches boto3, and did not")
    environment = Environment(tmp_path)
    environment.install("--find-links", WHEELS, f"{wheel}[s3]")
    info = environment.backends()["s3"]
    assert (info["status"], info["reason"]) == ("ok", None)
    (least,) = re.findall(r"^boto3>=([\d.]+)$", "\n".join(EXTRAS["s3"]), re.MULTILINE)
    newest = max(numbers(path.name.split("-")[1]) for path in WHEELS.glob("boto3-*.whl"))
    assert numbers(environment.version("boto3")) == newest >= numbers(least)


def test_no_extra_holds_boto3_back():
    """s3fs and aiobotocore pin it to a few releases (docs/decisions/0009)."""
    wanted = [line for lines in EXTRAS.values() for line in lines]
    names = {re.match(r"[\w.-]+", line)[0] for line in wanted}
    assert not names & {"s3fs", "aiobotocore", "botocore"}
    assert [line for line in wanted if line.startswith("boto3")] == EXTRAS["s3"][:1]


def test_all_is_every_extra_for_users():
    of_all = re.fullmatch(r"ari-registry\[(.*)\]", EXTRAS["all"][0])[1].split(",")
    assert sorted(of_all) == sorted(EXTRAS.keys() - {"all", "dev", "plugin-dev"})


def numbers(version):
    return tuple(map(int, version.split(".")))
