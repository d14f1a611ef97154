"""Runs of `ari` that strace spoils: killed, interrupted, or told of an error at one chosen system call."""

import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

CALL = re.compile(r"(?:\d+ +)?(\w+)\(([^,)]*)")
CHANGING = {
    *(
        "unlinkat",
        "rmdir",
        "write",
        "openat",
        "mkdir",
        "mkdirat",
        "fsync",
        "fdatasync",
        "syncfs",
        "close",
        "fchmod",
        "ftruncate",
    ),
    *("rename", "renameat", "renameat2", "link", "linkat"),
}
SAMPLE = 8


class Zygote:
    """Starts runs of `ari` and has strace spoil them."""

    def __init__(self, work, warm_up):
        """Starts with a first run, with the arguments `warm_up`, that imports what the others need."""
        self.work = work
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        self.tell(json.dumps({"arguments": [str(a) for a in warm_up]}))
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, arguments, *inject):
        """Returns the exit code, what was printed, and the log of system calls.

        Only the main thread is traced, which alone changes anything. What is injected counts calls of one name.
        """
        output, log = self.work / "output", self.work / "log"
        log.unlink(missing_ok=True)
        self.tell(json.dumps({"arguments": [str(a) for a in arguments], "output": str(output)}))
        pid = int(self.process.stdout.readline())
        tracer = subprocess.Popen(
            ["strace", "-qq", "-o", log, *(f"--inject={one}" for one in inject), "-p", str(pid)],
            stderr=subprocess.PIPE,
        )
        try:
            while tracer.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.001)
            self.tell("go")
            code = int(self.process.stdout.readline())
        finally:
            tracer.wait(timeout=60)
            tracer.stderr.close()
        return code, output.read_text(), log.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def calls_in(log):
    """Returns what the main thread called: name, how manieth of that name, first argument; no gate, no exit."""
    seen = collections.Counter()
    calls = []
    for match in map(CALL.match, log.splitlines()):
        if match:
            seen[match[1]] += 1
            calls.append((match[1], seen[match[1]], match[2]))
    assert calls[-1][0] == "exit_group"
    assert len(calls) > 50
    # Left out is waiting, at the gate or for another thread: it changes nothing, and how often it happens varies.
    return [call for call in calls[:-1] if "select" not in call[0] and call[0] != "futex"]


def sample(items, request):
    """All of them in a long run, else a few, evenly spread, the last one included."""
    if request.config.getoption("--long") or len(items) <= SAMPLE:
        return items
    step = (len(items) - 1) / (SAMPLE - 1)
    return [items[round(index * step)] for index in range(SAMPLE)]
