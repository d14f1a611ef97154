"""Packages nobody here maintains, built and installed beside our wheel in an environment of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.in_ci
ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
FOLDER_STORE = PLUGINS / "ari_folder_store"
BROKEN = sorted(path for path in (PLUGINS / "broken").iterdir() if path.is_dir())

# What each broken package costs: one line that names it and says this.
COSTS = {
    "ari-broken-api:from-the-future": "is written for API 99, this program has API 1",
    "ari-broken-hook:misspelled": "unknown hook 'ari_backend'; did you mean 'ari_backends'?",
    "ari-broken-name:taker": "the backend name 'local-tarball' is taken by ari-registry:builtin",
    "ari-broken-raises:raises": "RuntimeError: this package was left half finished",
    "ari-broken-twin-two:twin": "the backend name 'twin' is taken by ari-broken-twin-one:twin",
}


class Environment:
    """A fresh virtual environment. Its dependencies come from the running one, our code from the wheels."""

    def __init__(self, folder, wheels):
        self.folder = folder
        self.home = folder / "home"
        venv.create(folder / "venv", symlinks=True)
        self.bin = folder / "venv" / "bin"
        run([sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-qq", "--no-index",
             "--no-deps", "--no-compile", "--disable-pip-version-check", *wheels])  # fmt: skip
        # Only now: pip would take our own checkout, which is installed there, for an installed ari-registry. The
        # checkout itself stays out of reach: .pth files in a folder named by a .pth file are not read.
        (self.site,) = (folder / "venv").glob("lib/python*/site-packages")
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
        self.home.mkdir()

    def run(self, program, *arguments, status=0, **options):
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "COLUMNS": "200"}
        return run([self.bin / program, *arguments], status=status, cwd=self.folder, env=environment, **options)

    def json(self, *arguments):
        return json.loads(self.run("ari", *arguments, "--json").stdout)


def run(command, *, status=0, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Builds all packages, ours included, in one process; by the project's folder."""
    folder = tmp_path_factory.mktemp("wheels")
    projects = (ROOT, FOLDER_STORE, *BROKEN)
    build = (
        "import os, sys; from hatchling.build import build_wheel\n"
        "for project in sys.argv[2:]: os.chdir(project); print(build_wheel(sys.argv[1]))"
    )
    names = run([sys.executable, "-c", build, folder, *projects]).stdout.splitlines()
    return {project: folder / name for project, name in zip(projects, names, strict=True)}


@pytest.fixture(scope="module")
def good(wheels, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("good"), [wheels[ROOT], wheels[FOLDER_STORE]])


@pytest.fixture(scope="module")
def crowded(wheels, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("crowded"), wheels.values())


def test_our_wheel_is_what_is_imported(good):
    modules = ("ari_core", "ari_backends", "ari_folder_store")
    code = "".join(f"import {name}; print({name}.__file__); " for name in modules)
    files = good.run("python", "-c", code).stdout.split()
    assert len(files) == len(modules)
    assert all(Path(file).is_relative_to(good.site) for file in files)


def test_our_wheel_says_that_it_is_typed(wheels):
    """Without these files a type checker takes everything of ours for Any (PEP 561)."""
    with zipfile.ZipFile(wheels[ROOT]) as wheel:
        assert {f"ari_{part}/py.typed" for part in ("core", "backends", "server")} <= set(wheel.namelist())


def test_our_source_distribution_has_what_the_wheel_is_made_of_and_no_piece_of_the_tests(tmp_path):
    """Half of the tests, without what they stand on, would only fail for whoever packages this."""
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT])
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"core/ari_core/py.typed", "server/ari_server/app.py", "docs/registry.md", "LICENSE"} <= names
    assert [name for name in names if name.startswith("tests/")] == []


def test_our_version_satisfies_what_the_package_needs(good):
    """With the dependencies resolved, as in plugins.md: ours is there from a checkout, and from no index."""
    run([sys.executable, "-m", "pip", "--python", good.bin / "python", "install", "-qq", "--no-index", "--dry-run",
         "--no-build-isolation", "--disable-pip-version-check", FOLDER_STORE])  # fmt: skip


def test_it_is_listed_beside_the_built_in_ones(good):
    found = {info["name"]: info for info in good.json("backends", "list")["backends"]}
    assert found["folder-store"] == {
        "name": "folder-store",
        "package": "ari-folder-store",
        "version": "1.0",
        "status": "ok",
        "help": "keep bundles in a folder: -o path=DIR",
        "reason": None,
        "install": None,
    }
    assert found["local-tarball"]["package"] == "ari-registry"
    assert good.run("ari", "--help").stderr == ""


def test_it_passes_the_conformance_suite_from_its_own_tests(good, tmp_path):
    """In a copy, as if it were its own repository: nothing of ours is above it."""
    project = tmp_path / "ari_folder_store"
    shutil.copytree(FOLDER_STORE / "tests", project / "tests")
    shutil.copy(FOLDER_STORE / "pyproject.toml", project)
    done = good.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", project, project / "tests"
    )
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed > 75
    assert "failed" not in done.stdout


def test_it_is_shown_and_checked(good, tmp_path):
    found = good.json("backends", "show", "folder-store", "-o", f"path={tmp_path}")
    (setting,) = found["settings"]
    assert (setting["key"], setting["value"], setting["source"]) == ("path", str(tmp_path), "-o path=…")
    assert found["schemes"] == ["folder-store"]
    found = good.json("backends", "check", "folder-store", "-o", f"path={tmp_path}", "--write")
    assert len(found["steps"]) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_goes_there_and_back(good, tmp_path):
    (tmp_path / "ear/code").mkdir(parents=True)
    (tmp_path / "ear/code/run.py").write_text("print('hello')\n")
    (tmp_path / "store").mkdir()
    good.run("ari", "ear", "curate", tmp_path)
    record = good.json("publish", tmp_path, "--backend", "folder-store", "-o", f"path={tmp_path / 'store'}")
    assert record["ref"].startswith("folder-store:///")
    clone = good.json("clone", record["ref"], tmp_path / "copy", "--expect-sha256", record["bundle_sha256"])
    assert clone["anchored_by"] == "paper"
    assert (tmp_path / "copy/code/run.py").read_text() == "print('hello')\n"


def test_each_broken_package_costs_one_line(crowded):
    lines = crowded.run("ari", "--help").stderr.splitlines()
    assert len(lines) == len(COSTS)
    for (key, says), line in zip(COSTS.items(), lines, strict=True):
        assert f"the plugin {key} (1.0) is not used: " in line
        assert says in line


def test_beside_the_broken_ones_the_rest_works(crowded, tmp_path):
    found = crowded.json("backends", "list")["backends"]
    broken = {(info["package"], info["name"]) for info in found if info["status"] == "failed"}
    assert broken == {
        ("ari-broken-api", "from-the-future"),
        ("ari-broken-hook", "misspelled"),
        ("ari-broken-name", "local-tarball"),
        ("ari-broken-raises", "raises"),
        ("ari-broken-twin-two", "twin"),
    }
    working = {(info["package"], info["name"]) for info in found if info["status"] == "ok"}
    assert working >= {
        ("ari-registry", "local-tarball"),
        ("ari-registry", "https"),
        ("ari-folder-store", "folder-store"),
        ("ari-broken-twin-one", "twin"),
    }
    crowded.json("backends", "check", "folder-store", "-o", f"path={tmp_path}", "--write")


def test_asking_for_a_broken_one_gives_its_reason(crowded):
    done = crowded.run("ari", "backends", "show", "raises", status=2)
    assert "this package was left half finished" in done.stderr
    assert "pip install --upgrade ari-broken-raises" in done.stderr
    done = crowded.run("ari", "backends", "show", "from-the-future", status=2)
    assert "API 99" in done.stderr
