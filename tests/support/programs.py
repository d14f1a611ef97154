"""Programs that tests start: where they are, ports to give them, and that none of them outlives who started it."""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.registry import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
SWIFT = ROOT / ".cache" / "swift"
"""The virtual environment that scripts/test makes for OpenStack Swift."""


def find(name):
    """Returns the path of a program, also where an ordinary user's PATH does not lead; None without it."""
    postgresql = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    ours = [Path(sys.executable).parent, SWIFT / "bin", *postgresql]
    places = [*map(str, ours), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


NOT_EVERY_DAY = {"radosgw", "swift-proxy-server"}
"""What tests need that would take minutes of each run; moto stands in for it."""


def require(*names):
    """Skips the test when a program is missing; fails it under ARI_TEST_REQUIRE=all."""
    import pytest

    if not NOT_EVERY_DAY.isdisjoint(names) and os.environ.get("ARI_TEST_REQUIRE") != "all":
        pytest.skip("the real object stores: with ARI_TEST_REQUIRE=all, as in CI")
    for name in names:
        if find(name) is None:
            if os.environ.get("ARI_TEST_REQUIRE") == "all":
                pytest.fail(f"'{name}' is missing and ARI_TEST_REQUIRE=all")
            pytest.skip(f"needs '{name}'")


def lasting_port():
    """Returns a free port that no outgoing connection takes while the server it is for is being restarted."""
    while True:
        port = random.randrange(12_000, 32_000)  # Linux gives outgoing connections those from 32768 on
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def accepts(port):
    """Says whether a server on this machine takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


def descendants(pid):
    """Returns the processes that `pid` started, directly or not."""
    found = []
    with contextlib.suppress(OSError):  # it ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def naming(text):
    """Returns the processes in whose command line `text` occurs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.fsencode(text) in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def gone(pid):
    """Says whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


class Daemon:
    """A server process that the kernel ends when the thread that started it does, however that happens.

    Attributes:
        process: The running process, or None.
    """

    def __init__(self, *command, log, user=None, dies_by="KILL", **options):
        """`user` is who it runs as; `dies_by` the signal for when the starter is gone; `options` go to Popen."""
        self.command = ["setpriv", f"--pdeathsig={dies_by}", *become(user), "--", *map(str, command)]
        self.log, self.options = Path(log), options
        self.process = None

    def start(self, ready):
        """Starts it and waits until `ready()`."""
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.options,
            )
        ended = self.process.poll
        if not eventually(lambda: ended() is not None or ready()) or ended() is not None:
            self.kill()
            raise AssertionError(
                f"{self.command[-1]} did not start:\n{self.log.read_text('utf-8', 'replace')[-4000:]}"
            )

    def stop(self, by=signal.SIGTERM):
        """Asks it to end and waits for it."""
        if self.process:
            self.process.send_signal(by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        self.kill()

    def kill(self):
        """Ends it and what it started without notice."""
        process, self.process = self.process, None
        if process is None:
            return
        family = [process.pid, *descendants(process.pid)]
        if process.poll() is None:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait(PATIENCE)
        assert eventually(lambda: all(map(gone, family))), "killed, and still there"


def become(user):
    """Options of setpriv for running as another user."""
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    return [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"]


def run(*command, user=None, **options):
    """Runs a program to its end; what it said is in the error if it fails."""
    prefix = ["setpriv", *become(user), "--"] if user else []
    done = subprocess.run(
        [*prefix, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        **options,
    )
    assert done.returncode == 0, f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}"
    return done.stdout
