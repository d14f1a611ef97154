"""Says where and with what something was measured, and renders the result as a page."""

import os
import platform
import shutil
import statistics
import subprocess
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import Spread

MEGABYTE = 1_000_000


def lines_of(*command: str | Path) -> list[str]:
    """Returns what a program prints, or an empty line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return (done.stdout + done.stderr).strip().splitlines() or [""]


def describe_machine(scratch: Path) -> dict[str, object]:
    """Returns what a reader needs to know of the machine to compare numbers."""
    cpus = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": lines_of("df", "--output=fstype", scratch)[-1],
    }


def describe_versions(root: Path, path: str) -> dict[str, str]:
    """Returns the versions of everything that is measured; `path` is where programs are looked for."""
    servers = {"docker-registry": ["--version"], "nginx": ["-v"], "curl": ["--version"]}
    return {
        "ari-registry": version("ari-registry"),
        "commit": lines_of("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12")[0],
        "python": platform.python_version(),
        "isal": version("isal"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        **{tool: lines_of(tool, "--version")[0] for tool in ("tar", "gzip", "pigz", "sha256sum")},
        **{package: version(package) for package in ("fastapi", "uvicorn")},
        **{
            tool: lines_of(found, *how)[0].partition(" (")[0]
            if (found := shutil.which(tool, path=path))
            else "not installed"
            for tool, how in servers.items()
        },
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Renders the report as a page: what was measured where, and one table each for time and memory."""
    machine, versions = report["machine"], report["versions"]
    lines = [
        "# Benchmark",
        "",
        f"Made by `{report['command']}` on {report['started'][:10]}, commit `{versions['commit']}`.",
        "",
        f"- CPU: {machine['cpu']}, {machine['cores']} cores; memory: {machine['memory_bytes'] / 2**30:.0f} GiB.",
        f"- System: {machine['kernel']}, file system {machine['file_system']}.",
        *(f"- {name}: {said}" for name, said in versions.items() if name != "commit"),
    ]
    for name, described in report["sets"].items():
        lines.append(
            f"- `{name}`: {described['files']:,} files, {described['bytes']:,} bytes; "
            f"bundle {described['bundle_bytes']:,} bytes."
        )
    commands = [row for row in report["comparisons"] if not _is_served(row)]
    if commands:
        lines += [
            "",
            "Whole commands, as typed; ours and the other way in turn, each into a fresh folder. A ratio is",
            "ours/theirs of two runs next to each other; the median one counts.",
            "",
            _head("median s"),
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_cells(_comparison(row, _seconds)) for row in commands]
    served = [row for row in report["comparisons"] if _is_served(row)]
    if served:
        lines += [
            "",
            "Many requests to a server, ours and the other in turn: medians of requests a second and of the time",
            "within which 99 of 100 were answered. A ratio is that of the times.",
            "",
            _head("1/s and p99"),
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_cells(_comparison(row, _rate)) for row in served]
    if report["start"]:
        lines += [
            "",
            "From starting the process to its first answer, median.",
            "",
            "| what | s | limit | |",
            "|---|---|---|---|",
        ]
        lines += [
            _cells([row["name"], f"{row['seconds']:.3g}", f"{row['limit']:.3g}", _verdict(row)])
            for row in report["start"]
        ]
    if report["memory"]:
        lines += [
            "",
            "Peak resident memory of the whole process, or how far that is above what it held before.",
            "",
            "| what | peak | limit | |",
            "|---|---|---|---|",
        ]
        lines += [
            _cells([row["name"], _bytes(row["bytes"]), _bytes(row["limit"]), _verdict(row)])
            for row in report["memory"]
        ]
    return "\n".join(lines) + "\n"


def _head(what: str) -> str:
    return f"| ours / theirs | runs | ours, {what} | theirs, {what} | ratio: min / median / max | target | |"


def _is_served(row: dict[str, Any]) -> bool:
    return "ours" in row and "requests" in row["ours"][0]


def _comparison(row: dict[str, Any], say: Callable[[list[dict[str, Any]]], str]) -> list[str]:
    target = "" if row["target"] is None else f"≤ {row['target']:.3g}"
    if "missing" in row:
        without = f"not measured: without {', '.join(row['missing'])}"
        return [row["title"], "0", "", "", without, target, ""]
    ratio = str(Spread(**row["ratio"]))
    return [
        row["title"],
        str(len(row["ours"])),
        say(row["ours"]),
        say(row["theirs"]),
        ratio,
        target,
        _verdict(row),
    ]


def _seconds(runs: list[dict[str, Any]]) -> str:
    return f"{statistics.median(run['seconds'] for run in runs):.3g}"


def _rate(runs: list[dict[str, Any]]) -> str:
    rate = statistics.median(run["requests"] / run["seconds"] for run in runs)
    p99 = statistics.median(run["p99_seconds"] for run in runs)
    return f"{rate:,.0f}, {1000 * p99:.3g} ms"


def _verdict(row: dict[str, Any]) -> str:
    return {True: "PASS", False: "MISS", None: ""}[row["passed"]]


def _bytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB" if count >= MEGABYTE else f"{count:,} bytes"


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
