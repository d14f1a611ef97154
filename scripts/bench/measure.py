"""Runs commands and keeps what they took."""

import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).with_name("launch.py")


class CommandFailedError(Exception):
    """A command that is measured did not succeed, so its time means nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a command took: wall-clock, user and system seconds, peak resident memory in KiB."""

    seconds: float
    user_seconds: float
    system_seconds: float
    peak_kib: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of several values."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarises `values`."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.min:.3g} / **{self.median:.3g}** / {self.max:.3g}"


def run_once(command: Sequence[str | Path], environment: dict[str, str]) -> Run:
    """Runs one command to its end.

    Raises:
        CommandFailedError: With the end of what it printed.
    """
    argv = [str(part) for part in command]
    with tempfile.TemporaryDirectory(prefix="ari-bench-") as folder:
        result = Path(folder, "result.json")
        with Path(folder, "log").open("w+b") as log:
            # What was written before is on the disk before the clock starts, whoever wrote it.
            os.sync()
            done = subprocess.run(
                [sys.executable, "-I", "-S", LAUNCHER, result, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                check=False,
            )
            if done.returncode != 0:
                log.seek(max(0, log.tell() - 2000))
                said = log.read().decode(errors="replace")
                raise CommandFailedError(f"exit status {done.returncode} of: {' '.join(argv)}\n{said}")
        return Run(**json.loads(result.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Served:
    """How a server answered many requests: seconds for all of them, and what 99 of 100 were answered within."""

    requests: int
    seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True)
class Requests:
    """The same request many times, on some connections that stay open. `count` is a multiple of `connections`."""

    method: str
    url: str
    connections: int
    count: int

    def send(self, environment: dict[str, str]) -> Served:
        """Has `hey` send them all: it is far from being what is slow, and knows HEAD, which `wrk` does not.

        Raises:
            CommandFailedError: Not every one was answered with 200.
        """
        command = [
            "hey",
            "-n",
            str(self.count),
            "-c",
            str(self.connections),
            "-m",
            self.method,
            "-o",
            "csv",
            self.url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        answers = list(csv.DictReader(done.stdout.splitlines()))
        good = sum(answer["status-code"] == "200" for answer in answers)
        if good != self.count:
            raise CommandFailedError(
                f"{good} of {self.count} requests were answered with 200: {' '.join(command)}"
            )
        took = sorted(float(answer["response-time"]) for answer in answers)
        starts = [float(answer["offset"]) for answer in answers]
        ends = [float(answer["offset"]) + float(answer["response-time"]) for answer in answers]
        return Served(self.count, max(ends) - min(starts), took[math.ceil(0.99 * self.count) - 1])


Command = Sequence[str | Path]
Task = Command | Requests
"""A command, or requests to a server."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same end, and how their times should compare.

    Attributes:
        name: As in ``--only``.
        title: What is compared with what, for the table.
        target: Largest acceptable median of ours/theirs; None where theirs is only there to compare with.
        ours: Makes our task; its argument is a fresh folder it may write into.
        theirs: The same for the other way.
        repeat: A short task varies more: this many times the runs asked for.
        needs: Programs without which it is not measured.
    """

    name: str
    title: str
    target: float | None
    ours: Callable[[Path], Task]
    theirs: Callable[[Path], Task]
    repeat: int = 1
    needs: tuple[str, ...] = ()

    def missing(self, environment: dict[str, str]) -> list[str]:
        """Returns the programs that are needed and not installed."""
        return [tool for tool in self.needs if shutil.which(tool, path=environment["PATH"]) is None]

    def describe_missing(self, missing: list[str]) -> dict[str, Any]:
        """Returns what is known of a comparison that could not be made, ready for JSON."""
        return {"name": self.name, "title": self.title, "target": self.target, "missing": missing}


@dataclass(frozen=True, slots=True)
class Compared:
    """The runs of one comparison, which ran in turn: ours, theirs, ours, theirs."""

    name: str
    title: str
    target: float | None
    ours: list[Run | Served]
    theirs: list[Run | Served]

    @property
    def ratios(self) -> list[float]:
        """Ours/theirs, of each pair of neighbouring runs: what drifts on the machine meets both."""
        return [a.seconds / b.seconds for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def passed(self) -> bool | None:
        """Whether the median ratio is within the target; None without one."""
        return None if self.target is None else statistics.median(self.ratios) <= self.target

    def describe(self) -> dict[str, Any]:
        """Returns every run and what follows from them, ready for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "target": self.target,
            "ratio": asdict(Spread.of(self.ratios)),
            "passed": self.passed,
            "ours_seconds": asdict(Spread.of([run.seconds for run in self.ours])),
            "theirs_seconds": asdict(Spread.of([run.seconds for run in self.theirs])),
            "ours": [asdict(run) for run in self.ours],
            "theirs": [asdict(run) for run in self.theirs],
        }


def compare(comparison: Comparison, runs: int, scratch: Path, environment: dict[str, str]) -> Compared:
    """Runs both ways in turn, each time into a fresh folder; what they write stays until all is measured."""
    ours: list[Run | Served] = []
    theirs: list[Run | Served] = []
    for _ in range(runs * comparison.repeat):
        for make, results in ((comparison.ours, ours), (comparison.theirs, theirs)):
            task = make(Path(tempfile.mkdtemp(dir=scratch)))
            results.append(task.send(environment) if isinstance(task, Requests) else run_once(task, environment))
    return Compared(comparison.name, comparison.title, comparison.target, ours, theirs)
