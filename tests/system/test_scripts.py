"""The project's own scripts: what they say when they cannot work, and that no failure is swallowed."""

import contextlib
import importlib
import itertools
import json
import os
import shutil
import stat
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support.httpd import Server

ROOT = Path(__file__).parents[2]
SHELL_SCRIPTS = [
    "setup.sh",
    "scripts/demo",
    "scripts/test",
    "scripts/lint",
    "scripts/bench/run",
    "scripts/registry/start_local.sh",
    "scripts/registry/start_singularity.sh",
    ".ci/run",
]
SYSTEM_PATH = "/usr/bin:/bin"


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def run(*command, path=SYSTEM_PATH, **environment):
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        command,
        env={**kept, "PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def commands_naming(path: Path) -> list[bytes]:
    """Returns the command lines of running processes in which `path` occurs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(file.read_bytes())
    return [line for line in found if os.fsencode(path) in line]


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_script_parses_and_can_be_started(name):
    script = ROOT / name
    assert script.stat().st_mode & stat.S_IXUSR
    done = run("bash", "-n", script)
    assert (done.returncode, done.stderr) == (0, "")


class TestSetup:
    @pytest.fixture
    def project(self, tmp_path):
        folder = tmp_path / "a project"
        folder.mkdir()
        shutil.copy(ROOT / "setup.sh", folder)
        (folder / "pyproject.toml").write_text("first\n")
        return folder

    @pytest.fixture
    def python(self, tmp_path):
        """A Python that writes down what it is asked to do, and makes environments that hold itself."""

        as_if = 'import sys; sys.version_info = tuple(map(int, sys.argv[1].split("."))); exec(sys.argv[2])'

        def make(version="3.12.4", name="python3", *, ensurepip=True):
            return executable(
                tmp_path / "bin" / name,
                f"""
                log={tmp_path}/log
                case "$*" in
                -c*version_info*) exec {sys.executable} -c '{as_if}' {version} "$2" ;;
                -c*ensurepip*) {str(ensurepip).lower()} ;;
                -c*_base_executable*) echo {tmp_path}/bin/{name} ;;
                "-m venv "*)
                    echo "venv" >>$log
                    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
                "-m pip --version") ;;
                "-m pip install "*) echo "install ${{@: -1}}" >>$log ;;
                *) echo "unexpected: $*" >>$log; exit 9 ;;
                esac
                """,
            )

        make.log = lambda: (tmp_path / "log").read_text().split("\n")[:-1] if (tmp_path / "log").exists() else []
        return make

    def test_a_python_that_is_too_old_is_named_with_what_is_needed(self, project, python):
        old = python("3.9.2")
        done = run(project / "setup.sh", PYTHON=str(old))
        assert done.returncode == 1
        assert "3.9.2" in done.stderr
        assert "3.11 or newer" in done.stderr
        assert snapshot(project) == {"setup.sh", "pyproject.toml"}

    def test_without_any_suitable_python_debians_packages_are_named(self, project, python, tmp_path):
        python("3.10.1")
        for tool in ("dirname", "cat", "cksum", "bash"):
            (tmp_path / "bin" / tool).symlink_to(shutil.which(tool, path=SYSTEM_PATH))
        done = run(project / "setup.sh", path=str(tmp_path / "bin"))
        assert done.returncode == 1
        assert "python3 is 3.10.1" in done.stderr
        assert "apt-get install python3 python3-venv" in done.stderr

    def test_a_newer_python_further_down_the_path_is_found(self, project, python, tmp_path):
        python("3.10.1")
        python("3.13.0", name="python3.13")
        done = run(project / "setup.sh", path=f"{tmp_path / 'bin'}:{SYSTEM_PATH}")
        assert done.returncode == 0, done.stderr
        assert "making .venv with Python 3.13.0" in done.stderr

    @pytest.mark.parametrize(
        ("name", "package"),
        [("python3", "python3-venv"), ("python3.12", "python3.12-venv"), ("mine", "python3-venv")],
    )
    def test_missing_ensurepip_names_the_package(self, project, python, name, package):
        done = run(project / "setup.sh", PYTHON=str(python(name=name, ensurepip=False)))
        assert done.returncode == 1
        assert f"apt-get install {package}," in done.stderr
        assert not (project / ".venv").exists()

    def test_what_is_no_python_does_not_cost_the_environment(self, project, python):
        assert run(project / "setup.sh", PYTHON=str(python())).returncode == 0
        before = snapshot(project)
        for other in ("/bin/true", "/nowhere/python3"):
            done = run(project / "setup.sh", PYTHON=other)
            assert done.returncode == 1
            assert f"PYTHON={other} cannot be used" in done.stderr
        assert snapshot(project) == before

    def test_a_second_run_does_nothing_and_only_changes_install_again(self, project, python, tmp_path):
        good = python()

        def setup(*options):
            done = run(project / "setup.sh", *options, PYTHON=str(good))
            assert done.returncode == 0, done.stderr
            return done.stderr

        assert "installing" in setup()
        assert python.log() == ["venv", "install ."]
        assert setup() == ""
        assert python.log() == ["venv", "install ."]
        (project / "pyproject.toml").write_text("second\n")
        setup()
        assert python.log() == ["venv", "install .", "install ."]
        setup("--dev")
        setup()  # what was added stays
        (project / "pyproject.toml").write_text("third\n")
        setup()
        assert python.log() == ["venv", "install .", "install .", "install .[dev]", "install .[dev]"]

    def test_what_was_added_stays_and_the_larger_of_two_wins(self, project, python):
        good = python()
        wanted = ["venv"]
        for options, extra in [
            (["--with-registry"], "[server]"),
            ([], None),
            (["--with-registry"], None),
            (["--all"], "[all]"),
            (["--with-registry"], None),
            (["--with-registry", "--dev"], "[dev]"),
            (["--with-registry"], None),
            (["--all"], None),
            ([], None),
        ]:
            done = run(project / "setup.sh", *options, PYTHON=str(good))
            assert done.returncode == 0, done.stderr
            wanted += [f"install .{extra}"] if extra else []
            assert python.log() == wanted
        (project / "pyproject.toml").write_text("second\n")
        run(project / "setup.sh", PYTHON=str(good))
        assert python.log() == [*wanted, "install .[dev]"]

    def test_the_server_stays_when_the_project_changes(self, project, python):
        good = python()
        run(project / "setup.sh", "--with-registry", PYTHON=str(good))
        (project / "pyproject.toml").write_text("second\n")
        run(project / "setup.sh", PYTHON=str(good))
        assert python.log() == ["venv", "install .[server]", "install .[server]"]

    def test_a_moved_folder_or_another_python_makes_the_environment_anew(self, project, python):
        good = python()
        run(project / "setup.sh", "--dev", PYTHON=str(good))
        moved = project.rename(project.with_name("moved"))
        done = run(moved / "setup.sh", path=f"{good.parent}:{SYSTEM_PATH}")
        assert done.returncode == 0, done.stderr
        assert python.log()[2:] == ["venv", "install .[dev]"]
        other = python("3.13.1", name="other")
        run(moved / "setup.sh", PYTHON=str(other))
        assert python.log()[4:] == ["venv", "install .[dev]"]

    def test_a_failed_installation_is_tried_again(self, project, python, tmp_path):
        good = python()
        text = good.read_text()
        good.write_text(text.replace('"-m pip install "*)', '"-m pip install "*) exit 1;'))
        done = run(project / "setup.sh", PYTHON=str(good))
        assert done.returncode == 1
        assert "installing failed" in done.stderr
        (project / ".venv/bin/python").write_text(text)
        assert run(project / "setup.sh", PYTHON=str(good)).returncode == 0
        assert python.log() == ["venv", "install ."]

    def test_unknown_option_is_a_usage_error(self, project):
        done = run(project / "setup.sh", "--develop")
        assert done.returncode == 2
        assert "--develop" in done.stderr


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose tools only write down that they ran."""
    folder = tmp_path / "checkout"
    for name in ("scripts/test", "scripts/lint", ".ci/run"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    executable(folder / "setup.sh", 'echo "setup $*" >>log')
    run("git", "init", "-q", folder)
    return folder


def log_of(checkout):
    return (checkout / "log").read_text().splitlines()


class TestTest:
    SDISTS = ("pyyaml", "attrs", "packaging", "idna", "pluggy")

    def python(self, checkout, download="exit 1"):
        executable(
            checkout / ".venv/bin/python",
            f'echo "python $*" >>log\ncase "$2" in pip) {download} ;; pytest) exit 3 ;; esac',
        )

    def test_arguments_reach_pytest_and_its_status_comes_back(self, checkout):
        self.python(checkout)
        done = run(checkout / "scripts/test", "--long", "tests/core", "-k", "a or b")
        assert done.returncode == 3
        log = log_of(checkout)
        assert log[0] == "setup --dev"
        assert log[-1].startswith("python -m pytest")
        assert log[-1].endswith("--long tests/core -k a or b")
        assert all(f"{name} could not be fetched" in done.stderr for name in self.SDISTS)

    def test_a_source_distribution_is_fetched_once(self, checkout):
        cache = checkout / ".cache/sdists"
        cache.mkdir(parents=True)
        (cache / "PyYAML-6.0.tar.gz").touch()
        (cache / "attrs-extra.zip").touch()
        self.python(checkout, download='touch "$(printf %s/%s-1.0.tar.gz .cache/sdists "${@: -1}")"')
        run(checkout / "scripts/test")
        fetched = [line.split()[-1] for line in log_of(checkout) if "--no-binary" in line]
        assert fetched == ["attrs", "packaging", "idna", "pluggy"]
        run(checkout / "scripts/test")
        assert sum("--no-binary" in line for line in log_of(checkout)) == 4

    def test_wheels_of_an_extra_are_fetched_once(self, checkout):
        self.python(checkout, download='[ "${@: -1}" != boto3 ] || touch .cache/wheels-s3/boto3-1.0-py3.whl')
        for _ in range(2):
            assert run(checkout / "scripts/test").returncode == 3
        assert sum(line.endswith("--dest .cache/wheels-s3 boto3") for line in log_of(checkout)) == 1

    def test_swift_is_installed_once_and_only_where_nothing_may_be_missing(self, checkout):
        swift = ".cache/swift/bin"
        made = f"mkdir -p {swift}; cp .venv/bin/python {swift}"
        installed = f"[ ! -d {swift} ] || install -m 755 /dev/null {swift}/swift-proxy-server"
        executable(
            checkout / ".venv/bin/python",
            f'echo "python $*" >>log\ncase "$2" in venv) {made} ;; pip) {installed} ;; esac',
        )
        for environment in ({}, {"ARI_TEST_REQUIRE": "all"}, {"ARI_TEST_REQUIRE": "all"}):
            assert run(checkout / "scripts/test", **environment).returncode == 0
        about = [line.split()[2] for line in log_of(checkout) if "swift" in line or "pytest" in line]
        assert about == ["pytest", "venv", "pip", "pytest", "pytest"]

    def test_tests_run_where_swift_cannot_be_installed(self, checkout):
        self.python(checkout)
        done = run(checkout / "scripts/test", ARI_TEST_REQUIRE="all")
        assert done.returncode == 3
        assert "Swift could not be installed" in done.stderr


class TestLint:
    TOOLS = ("ruff", "mypy", "lint-imports", "shellcheck")

    @pytest.fixture
    def lint(self, checkout):
        def run_lint(*failing, missing=(), **environment):
            for tool in self.TOOLS:
                path = checkout / ".venv/bin" / tool
                path.unlink(missing_ok=True)
                if tool not in missing:
                    executable(path, f'echo "{tool} $1" >>log; exit {int(tool in failing)}')
            (checkout / ".gitignore").write_text(".venv/\nlog\n")
            return run(checkout / "scripts/lint", **environment)

        return run_lint

    def test_everything_is_checked(self, checkout, lint):
        done = lint()
        assert done.returncode == 0, done.stdout
        assert "FAILED" not in done.stdout
        assert log_of(checkout) == [
            "setup --dev",
            "ruff check",
            "ruff format",
            "mypy ",
            "lint-imports ",
            "shellcheck --exclude=SC2317",
        ]

    @pytest.mark.parametrize("tool", TOOLS)
    def test_one_failure_fails_the_whole_but_stops_nothing(self, checkout, lint, tool):
        done = lint(tool)
        assert done.returncode == 1
        assert "FAILED" in done.stdout
        assert len(log_of(checkout)) == 6

    # In two halves, so that the check does not find this file.
    @pytest.mark.parametrize(
        ("half", "other"),
        [
            ("# TO", "DO: later"),
            ("# FIX", "ME"),
            ("XX", "X"),
            ("pypi", ".org/simple"),
            ("files.PythonHosted", ".org"),
        ],
    )
    def test_forbidden_text_is_found(self, checkout, lint, half, other):
        (checkout / "notes.md").write_text(f"fine\n{half}{other}\n")
        done = lint()
        assert done.returncode == 1
        assert "notes.md:2:" in done.stdout

    def test_a_longer_word_is_no_finding(self, checkout, lint):
        (checkout / "notes.md").write_text("mktemp /tmp/ari." + "X" * 6 + "\n")
        assert lint().returncode == 0

    def test_shellcheck_may_only_be_missing_where_nothing_is_required(self, lint, tmp_path):
        bare = tmp_path / "bare"
        bare.mkdir()
        for tool in ("bash", "dirname", "git"):
            (bare / tool).symlink_to(shutil.which(tool))
        relaxed = lint(missing=["shellcheck"], path=str(bare))
        assert relaxed.returncode == 0
        assert "skipped shellcheck" in relaxed.stdout
        assert lint(missing=["shellcheck"], path=str(bare), ARI_TEST_REQUIRE="all").returncode == 1


class TestCi:
    @pytest.fixture
    def ci(self, checkout, tmp_path):
        def run_ci(lint=0, test=0, absent=None):
            for name, status in (("lint", lint), ("test", test)):
                executable(checkout / "scripts" / name, f'echo "{name} $ARI_TEST_REQUIRE" >>log; exit {status}')
            tools = tmp_path / "tools"
            programs = (
                "git",
                "pigz",
                "bsdtar",
                "7z",
                "strace",
                "mkfs.ext4",
                "nginx",
                "faketime",
                "docker-registry",
                "ceph",
                "ceph-mon",
                "ceph-osd",
                "radosgw",
                "curl",
                "jq",
                "hey",
                "shellcheck",
                "python3",
                "apt-get",
                "sudo",
            )
            for program in programs:
                does = {"apt-get": 'echo "apt-get $*" >>log', "sudo": 'shift; "$@"'}.get(program, "exit 0")
                if program != absent:
                    executable(tools / program, does)
            for program in ("bash", "dirname", "id"):
                (tools / program).symlink_to(shutil.which(program, path=SYSTEM_PATH))
            if absent:  # also nowhere else: the script adds the administrator's folders itself
                text = (checkout / ".ci/run").read_text()
                (checkout / ".ci/run").write_text(text.replace(":/usr/sbin:/sbin", ""))
            return run(checkout / ".ci/run", path=str(tools))

        return run_ci

    @pytest.mark.needs("/usr/bin/time", "initdb")
    @pytest.mark.parametrize(("lint", "test", "expected"), [(0, 0, 0), (1, 0, 1), (0, 2, 2), (1, 5, 5)])
    def test_both_run_with_nothing_skipped_and_no_status_is_lost(self, checkout, ci, lint, test, expected):
        assert ci(lint, test).returncode == expected
        assert log_of(checkout) == ["lint all", "test all"]

    @pytest.mark.needs("/usr/bin/time", "initdb")
    def test_what_is_missing_is_installed_first(self, checkout, ci):
        done = ci(absent="bsdtar")
        assert done.returncode == 0, done.stderr
        assert log_of(checkout)[:2] == [
            "apt-get update -q",
            "apt-get install -y -q --no-install-recommends libarchive-tools",
        ]


@pytest.mark.in_ci
class TestDemo:
    def test_the_main_job_works_and_shows_both_refusals(self, tmp_path):
        work = tmp_path / "work here"
        done = run(ROOT / "scripts/demo", work, path=os.environ["PATH"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("(exit status 1)") == 2
        digest = json.loads((work / "shelf/manifest.lock").read_text())["bundle_sha256"]
        assert f"--expect-sha256 {digest}" in done.stdout
        assert (work / "reader/results/bifurcation.png").read_bytes().startswith(b"\x89PNG")
        assert not (work / "from-rotten").exists()
        assert not (work / "reader/.env").exists()

    def test_a_refusal_that_does_not_come_fails_the_demo(self, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(ROOT / "scripts", copy / "scripts")
        executable(copy / "setup.sh", ":")
        executable(copy / ".venv/bin/ari", f'"{ROOT}/.venv/bin/ari" "$@" || exit 0')
        (copy / ".venv/bin/python").symlink_to(ROOT / ".venv/bin/python")
        done = run(copy / "scripts/demo", tmp_path / "work")
        assert done.returncode == 1
        assert "should have been refused" in done.stderr

    def test_a_folder_with_something_in_it_is_left_alone(self, tmp_path):
        (tmp_path / "mine").touch()
        done = run(ROOT / "scripts/demo", tmp_path)
        assert done.returncode == 2
        assert "not empty" in done.stderr
        assert snapshot(tmp_path) == {"mine"}


@pytest.mark.needs("pigz", "curl")
class TestBench:
    def bench(self, *arguments, path=SYSTEM_PATH):
        return run(ROOT / ".venv/bin/python", "-B", ROOT / "scripts/bench/bench.py", *arguments, path=path)

    def test_help_lists_what_can_be_measured(self):
        done = self.bench("--help")
        assert done.returncode == 0, done.stderr
        assert "publish-large-tarfile" in done.stdout.replace("\n", "").replace(" ", "")

    def test_report_follows_from_the_raw_times(self, tmp_path):
        out, page = tmp_path / "out.json", tmp_path / "page.md"
        arguments = (
            "--quick",
            "--runs",
            "1",
            "--only",
            "startup",
            "--out",
            out,
            "--markdown",
            page,
            "--scratch",
            tmp_path / "s",
        )
        done = self.bench(*arguments)
        assert done.returncode == 0, done.stderr
        report = json.loads(out.read_text())
        (row,) = report["comparisons"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(row["ours"], row["theirs"], strict=True)]
        assert len(ratios) == 3
        assert row["ratio"] == {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
        assert row["passed"] == (row["ratio"]["median"] <= row["target"] == 1.5)
        assert all(one["peak_kib"] > 5_000 for one in row["ours"] + row["theirs"])
        assert report["versions"]["python"]
        assert ("PASS" if row["passed"] else "MISS") in page.read_text()
        assert done.stdout == page.read_text()
        assert list((tmp_path / "s").iterdir()) == []

    def test_what_is_not_installed_is_named_and_nothing_is_made_up(self, tmp_path):
        (tmp_path / "tools").mkdir()
        for tool in ("tar", "gzip", "pigz", "sha256sum", "curl", "df", "git"):
            (tmp_path / "tools" / tool).symlink_to(shutil.which(tool))
        scratch = tmp_path / "s"
        done = self.bench(
            *("--quick", "--only", "registry-get", "--scratch", scratch), path=str(tmp_path / "tools")
        )
        assert done.returncode == 0, done.stderr
        (row,) = (line for line in done.stdout.splitlines() if "OCI" in line)
        assert "| 0 |  |  | not measured: without docker-registry |" in row
        assert "PASS" not in row

    @pytest.mark.needs("docker-registry", "hey", "nginx")
    @pytest.mark.in_ci
    def test_the_registry_is_measured_beside_the_others_and_every_server_stopped(self, tmp_path):
        names = ("registry-get-nginx", "registry-put", "registry-manifest")
        out, scratch = tmp_path / "out.json", tmp_path / "s"
        only = [argument for name in names for argument in ("--only", name)]
        done = self.bench("--quick", "--runs", "1", *only, "--out", out, "--scratch", scratch)
        assert done.returncode == 0, done.stderr
        report = json.loads(out.read_text())
        rows = {row["name"]: row for row in report["comparisons"]}
        assert list(rows) == list(names)
        for row in rows.values():
            assert len(row["ours"]) == len(row["theirs"]) > 0
        assert rows["registry-get-nginx"]["passed"] is None
        assert all(run["requests"] == 960 for run in rows["registry-manifest"]["ours"])
        assert list(scratch.iterdir()) == []
        assert commands_naming(scratch) == []

    @pytest.mark.needs("hey")
    def test_requests_that_are_not_all_answered_well_are_not_measured(self, measure):
        answers = itertools.count()

        def sometimes(_seen, wire):
            wire.answer(200 if next(answers) % 4 else 503)

        with Server(sometimes) as server, pytest.raises(measure.CommandFailedError, match="6 of 8 requests"):
            measure.Requests("GET", server.url("/"), connections=2, count=8).send(dict(os.environ))

    @pytest.fixture
    def measure(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "scripts/bench")
        yield importlib.import_module("measure")
        sys.modules.pop("measure")

    def test_a_command_that_fails_is_not_measured(self, measure):
        with pytest.raises(measure.CommandFailedError, match=r"(?s)exit status 4 of: bash.*what it said"):
            measure.run_once(["bash", "-c", "echo what it said; exit 4"], dict(os.environ))

    def test_peak_memory_is_that_of_the_command_and_not_of_who_started_it(self, measure):
        ballast = bytearray(os.urandom(1)) * 100_000_000
        assert measure.run_once(["true"], dict(os.environ)).peak_kib < 30_000
        del ballast
        hungry = [sys.executable, "-c", "bytearray(b'x') * 100_000_000"]
        assert measure.run_once(hungry, dict(os.environ)).peak_kib > 100_000
