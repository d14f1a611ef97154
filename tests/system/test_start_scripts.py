"""Starting and stopping a registry in the background, with a stand-in for the server: what may go wrong there."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "scripts" / "registry"

SERVER = """
    import http.server, os, signal, socket, subprocess, sys, time
    assert sys.argv[1:3] == ["registry", "serve"], sys.argv
    given = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=False))
    mode = given.get("--mode", "good")
    print("starting in", os.environ["ARI_REGISTRY_DATA"], "with", given, flush=True)
    if mode == "refuses":
        sys.exit("error: no such backend 'nowhere'")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "deaf":
        time.sleep(1000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(503 if mode == "unready" else 200 if self.path == "/readyz" else 404)
            self.end_headers()

    # Nobody outside may reach what a test starts.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given["--host"], given["--host"])

    class Server(http.server.HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = Server((host, int(given["--port"])), Handler)
    if mode == "workers":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=2)
    server.serve_forever()
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Local:
    """start_local.sh with a folder and a port of its own."""

    def __init__(self, folder):
        self.data = folder / "a data folder"
        self.log, self.pid_file = self.data / "server.log", self.data / "server.pid"
        program = folder / "server.py"
        program.write_text(dedent(SERVER))
        self.ari = folder / "the ari"
        self.ari.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {shlex.quote(str(program))} "$@"\n')
        self.ari.chmod(0o755)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": os.environ["HOME"],
            "ARI": str(self.ari),
            "ARI_REGISTRY_DATA": str(self.data),
            "ARI_REGISTRY_PORT": str(free_port()),
            "WAIT": "20",
        }

    def __call__(self, *arguments, script="start_local.sh", status=0, **environment):
        done = subprocess.run(
            [REGISTRY / script, *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def pid(self):
        return int(self.pid_file.read_text().split()[0])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.environment['ARI_REGISTRY_PORT']}"


@pytest.fixture
def local(tmp_path):
    made = Local(tmp_path)
    yield made
    if made.pid_file.exists() and made.pid_file.read_text():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.pid, signal.SIGKILL)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_second_start_changes_nothing_and_a_second_stop_neither(local):
    said = local()
    pid = local.pid
    assert f"running at {local.url} (pid {pid}, data {local.data}, log {local.log})" in said
    assert f"already running at {local.url} (pid {pid}," in local("start")
    assert f"ready at {local.url} (pid {pid}," in local("status")
    assert f"stopped (pid {pid}," in local("stop")
    assert gone(pid)
    assert "not running" in local("stop")
    assert "not running" in local("status", status=3)


def test_two_starts_at_once_make_one_server(local):
    local.data.mkdir()
    starts = [
        subprocess.Popen(
            [REGISTRY / "start_local.sh"],
            env=local.environment,
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    said = [start.communicate(timeout=120)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert sum("already running" in text for text in said) == 2
    assert local.log.read_text().count("starting in") == 1


def test_options_reach_the_server_and_restart_brings_new_ones(local):
    local("--color", "red")
    first = local.pid
    local("restart", "--color", "blue")
    assert gone(first)
    assert ["red" in line for line in local.log.read_text().splitlines() if "starting" in line] == [True, False]


def test_a_start_with_other_settings_says_that_the_running_one_has_not_got_them(local):
    local("--color", "red", ARI_REGISTRY_QUOTA="a b\nc")
    same = {"ARI_REGISTRY_QUOTA": "a b\nc", "ARI_REGISTRY_TOKEN": "of a client", "WAIT": "19"}
    assert "other settings" not in local("--color", "red", **same)
    for options, environment in ((["--color", "blue"], same), ([], same), (["--color", "red"], {})):
        said = local("start", *options, **environment)
        assert "already running" in said
        assert "with other settings than those given now: 'start_local.sh restart' applies them" in said


def test_nobody_else_can_read_the_log_or_the_folder(local):
    local()
    assert [path.stat().st_mode & 0o077 for path in (local.data, local.log, local.pid_file)] == [0, 0, 0]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost"])  # noqa: S104
def test_every_kind_of_address_is_waited_for_where_it_can_be_reached(local, host):
    said = local(ARI_REGISTRY_HOST=host)
    assert f"'--host': '{host}'" in local.log.read_text()
    assert {"0.0.0.0": "//127.0.0.1:", "localhost": "//localhost:"}.get(host, "//[::1]:") in said  # noqa: S104
    local("status", ARI_REGISTRY_HOST=host)


def test_a_server_that_refuses_is_quoted_and_leaves_no_pid(local):
    local.data.mkdir()
    local.log.write_text("an older run\n")
    said = local("--mode", "refuses", status=1)
    assert "the server did not start" in said
    assert "no such backend 'nowhere'" in said
    assert "an older run" not in said
    assert "not running" in local("status", status=3)


@pytest.mark.parametrize("mode", ["deaf", "unready"])
def test_a_server_that_does_not_get_ready_is_reported_and_can_be_ended(local, mode):
    said = local("start", "--mode", mode, status=1, WAIT="1")
    assert "not ready after 1 s, and still starting" in said
    assert "starting in" in said
    pid = local.pid
    assert "not ready" in local("status", status=1)
    assert "stopped" in local("stop")
    assert gone(pid)


def test_a_server_that_does_not_end_is_killed(local):
    local("--mode", "stubborn")
    pid = local.pid
    assert "still busy after 1 s: killing it" in local("stop", WAIT="1")
    assert gone(pid)


def test_after_a_kill_it_starts_again(local):
    local()
    killed = local.pid
    os.kill(killed, signal.SIGKILL)
    assert "not running" in local("status", status=3)
    assert "already" not in local()
    assert local.pid != killed


def test_workers_of_a_killed_server_are_ended(local):
    local("--mode", "workers")
    killed = local.pid
    (worker,) = map(int, Path(f"/proc/{killed}/task/{killed}/children").read_text().split())
    os.kill(killed, signal.SIGKILL)
    assert "ending what a killed server left" in local("--mode", "good")
    assert gone(worker)
    assert local.pid != killed


@pytest.mark.parametrize("when", ["12345", ""])
def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(local, when):
    with subprocess.Popen(["sleep", "1000"]) as other, contextlib.ExitStack() as stack:
        stack.callback(other.kill)
        local.data.mkdir()
        local.pid_file.write_text(f"{other.pid} {when} {local.url}\n")
        assert "not running" in local("status", status=3)
        assert "not running" in local("stop")
        local.pid_file.write_text(f"{other.pid} {when} {local.url}\n")
        local()
        local("stop")
        assert other.poll() is None


@pytest.mark.parametrize("content", ["", "\n", "garbage", "1", "-1 5 x", "/ 0 y", "0 1 z"])
def test_a_damaged_pid_file_means_not_running(local, content):
    local.data.mkdir()
    local.pid_file.write_text(content)
    assert "not running" in local("status", status=3)
    local()


def test_a_port_of_somebody_else_is_named(local):
    with socket.create_server(("127.0.0.1", int(local.environment["ARI_REGISTRY_PORT"]))):
        said = local(status=1)
    assert f"something else listens on 127.0.0.1 port {local.environment['ARI_REGISTRY_PORT']}" in said
    assert "ARI_REGISTRY_PORT" in said
    assert local.pid_file.read_text() == ""


def test_a_running_one_does_not_move_by_itself(local):
    local()
    pid, other = local.pid, str(free_port())
    assert f"it runs already, at {local.url} instead of" in local(status=1, ARI_REGISTRY_PORT=other)
    assert f"ready at {local.url}" in local("status", ARI_REGISTRY_PORT=other)
    local("restart", ARI_REGISTRY_PORT=other)
    assert gone(pid)
    assert f"ready at http://127.0.0.1:{other}" in local("status")


@pytest.mark.parametrize("script", ["start_local.sh", "start_singularity.sh"])
class TestUsage:
    def test_without_a_folder_none_is_chosen(self, local, script, tmp_path):
        for name in ("apptainer", "image"):
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        more = {"ENGINE": str(tmp_path / "apptainer"), "SIF": str(tmp_path / "image")}
        home = Path(local.environment["HOME"])
        (home / ".ari" / "registry-data").mkdir(parents=True)
        said = local(script=script, status=2, ARI_REGISTRY_DATA="", **more)
        assert 'export ARI_REGISTRY_DATA="$PWD/.ari_registry"' in said
        assert list((home / ".ari" / "registry-data").iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "environment", "expected"),
        [
            (["stopp"], {}, "unknown action 'stopp'"),
            (["stop", "now"], {}, "'stop' takes no options"),
            (["status"], {"ARI_REGISTRY_PORT": "80a"}, "ARI_REGISTRY_PORT='80a' is no port"),
            (["status"], {"ARI_REGISTRY_PORT": "0"}, "ARI_REGISTRY_PORT='0' is no port"),
            (["status"], {"WAIT": "1m"}, "WAIT='1m' is no number of seconds"),
        ],
    )
    def test_what_is_meant_otherwise_is_refused(self, local, script, arguments, environment, expected):
        assert expected in local(*arguments, script=script, status=2, **environment)
        assert not local.data.exists()

    def test_help_names_the_variables(self, local, script):
        assert "ARI_REGISTRY_DATA" in local("--help")
        assert "start_local.sh" in local("--help", script=script)


class TestSingularity:
    """With a stand-in for the engine: it writes down what it is asked, and runs commands without a container."""

    @pytest.fixture
    def engine(self, local, tmp_path):
        program = tmp_path / "apptainer"
        program.write_text(
            dedent(f"""\
            #!/bin/bash
            printf '%s\\n' "$*" >>{shlex.quote(str(tmp_path / "asked"))}
            case "$1" in
            build) echo image >"$3" ;;
            exec)
                while [ "$1" != ari ]; do shift; done
                shift
                exec {shlex.quote(str(local.ari))} "$@" ;;
            esac
            """)
        )
        program.chmod(0o755)
        del local.environment["ARI"]
        local.environment |= {"ENGINE": str(program), "SIF": str(tmp_path / "made" / "it.sif")}
        return lambda: (tmp_path / "asked").read_text().splitlines()

    def test_the_image_is_made_once_and_the_server_runs_in_it(self, local, engine):
        sif = local.environment["SIF"]
        for _ in range(2):
            assert f"running at {local.url}" in local(script="start_singularity.sh")
        assert "ready at" in local("status", script="start_singularity.sh")
        pid = local.pid
        assert "stopped" in local("stop", script="start_singularity.sh")
        assert gone(pid)
        serving = f"ari registry serve --host 127.0.0.1 --port {local.environment['ARI_REGISTRY_PORT']}"
        assert engine() == [
            f"build --force {sif}.part scripts/registry/ari-registry.def",
            f"exec --contain --no-home --bind {local.data} --pwd / {sif} {serving}",
        ]
        assert os.listdir(Path(sif).parent) == ["it.sif"]

    def test_a_failed_build_leaves_no_image(self, local, engine):
        Path(local.environment["ENGINE"]).write_text('#!/bin/sh\necho half >"$3"; exit 1\n')
        assert "could not make the image" in local(script="start_singularity.sh", status=1)
        assert not Path(local.environment["SIF"]).exists()
        assert not local.data.exists()

    def test_tokens_are_issued_in_the_container(self, local, engine):
        said = local("registry", "token", script="start_singularity.sh", status=1)
        assert "run start_singularity.sh build first" in said
        Path(local.environment["SIF"]).parent.mkdir()
        Path(local.environment["SIF"]).touch()
        local(
            "registry", "token", "issue", "alice", script="start_singularity.sh", status=1
        )  # the stand-in cannot
        assert engine()[-1].endswith("it.sif ari registry token issue alice")

    def test_a_folder_that_cannot_be_bound_is_refused(self, local, engine):
        Path(local.environment["SIF"]).parent.mkdir()
        Path(local.environment["SIF"]).touch()
        odd = local.data.with_name("a,b")
        said = local(script="start_singularity.sh", status=1, ARI_REGISTRY_DATA=str(odd))
        assert "its name holds a ',' or ':'" in said

    def test_without_an_engine_it_says_what_to_install(self, local):
        said = local(script="start_singularity.sh", status=1)
        assert "needs Apptainer or Singularity" in said
