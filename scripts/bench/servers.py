"""Starts the servers that are measured, each on a free port of 127.0.0.1, and stops what it started."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import Command, CommandFailedError

ARI = Path(sys.executable).with_name("ari")
BENCH = Path(__file__).parent
PATIENCE = 60.0

# As Debian's package configures it, but for the place, the log of requests and the check of its own disk.
OCI_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {folder}/store}}
http: {{addr: "127.0.0.1:{port}"}}
"""

NGINX_CONFIG = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: Where it answers, without a slash at the end.
        pid: Its process, which is also its only worker.
        seconds: From starting the process to its first answer.
    """

    url: str
    pid: int
    seconds: float


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody used a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(command: Command, port: int, path: str, folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Runs a server until the block ends; `path` is what it answers as soon as it can.

    Raises:
        CommandFailedError: It ended, or does not answer within a minute.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url + path):
            if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                said = log.read_bytes()[-2000:].decode(errors="replace")
                raise CommandFailedError(f"no answer from: {' '.join(map(str, command))}\n{said}")
            time.sleep(0.005)
        yield Server(url, process.pid, time.perf_counter() - start)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500  # noqa: PLR2004  a file server without a first page answers 403
    except OSError:
        return False


@contextmanager
def registry(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Our server with one worker, on the data directory `folder`/data."""
    port = free_port()
    command: Command = [
        ARI,
        "registry",
        "serve",
        "--port",
        str(port),
        "--data-dir",
        folder / "data",
        "--workers",
        "1",
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with serving(command, port, "/readyz", folder, environment) as server:
        yield server


@contextmanager
def oci(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Debian's docker-registry: OCI distribution 2.8."""
    port = free_port()
    config = folder / "config.yml"
    config.write_text(OCI_CONFIG.format(folder=folder, port=port), encoding="utf-8")
    with serving(["docker-registry", "serve", config], port, "/v2/", folder, environment) as server:
        yield server


@contextmanager
def nginx(folder: Path, root: Path, environment: dict[str, str]) -> Iterator[Server]:
    """One nginx process that serves the files below `root`."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=folder, port=port, root=root), encoding="utf-8")
    with serving(["nginx", "-c", config], port, "/", folder, environment) as server:
        yield server


@contextmanager
def plain(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """The plain FastAPI route on the files of `folder`, run the way ours is."""
    port = free_port()
    like_ours = ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
    command: Command = [
        *(sys.executable, "-m", "uvicorn", "plain_app:app", "--app-dir", BENCH, "--port", str(port)),
        *like_ours,
    ]
    with serving(command, port, "/docs", folder, {**environment, "BENCH_FOLDER": str(folder)}) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process, in bytes: resident now, most ever resident, and its share of what is shared."""

    resident: int
    peak: int
    proportional: int

    @classmethod
    def of(cls, pid: int) -> "Memory":
        """Reads it from `/proc`."""
        fields: dict[str, int] = {}
        for name in ("status", "smaps_rollup"):
            for line in Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if value.endswith(" kB"):
                    fields[key] = int(value.split()[0]) * 1024
        return cls(fields["VmRSS"], fields["VmHWM"], fields["Pss"])
