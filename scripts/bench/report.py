"""Says where and with what something was measured, and renders the result as a page."""

import os
import platform
import subprocess
import zlib
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


def describe_versions(root: Path) -> dict[str, str]:
    """Returns the versions of everything that is measured."""
    return {
        "ari-registry": version("ari-registry"),
        "commit": lines_of("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12")[0],
        "python": platform.python_version(),
        "isal": version("isal"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        **{tool: lines_of(tool, "--version")[0] for tool in ("tar", "gzip", "pigz", "sha256sum")},
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
    if report["comparisons"]:
        lines += [
            "",
            "Whole commands, as typed; ours and the other way in turn, each into a fresh folder. A ratio is",
            "ours/theirs of two runs next to each other; the median one counts.",
            "",
            "| ours / theirs | runs | ours, median s | theirs, median s | ratio: min / median / max | target | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_cells(_comparison(row)) for row in report["comparisons"]]
    if report["memory"]:
        lines += [
            "",
            "Peak resident memory of the whole process.",
            "",
            "| what | peak | limit | |",
            "|---|---|---|---|",
        ]
        lines += [
            _cells([row["name"], _bytes(row["bytes"]), _bytes(row["limit"]), _verdict(row)])
            for row in report["memory"]
        ]
    return "\n".join(lines) + "\n"


def _comparison(row: dict[str, Any]) -> list[str]:
    times = [f"{row[side]['median']:.3g}" for side in ("ours_seconds", "theirs_seconds")]
    return [
        row["title"],
        str(len(row["ours"])),
        *times,
        str(Spread(**row["ratio"])),
        f"≤ {row['target']:.3g}",
        _verdict(row),
    ]


def _verdict(row: dict[str, Any]) -> str:
    return "PASS" if row["passed"] else "MISS"


def _bytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB" if count >= MEGABYTE else f"{count:,} bytes"


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
