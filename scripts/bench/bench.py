"""Measures `ari` and its registry server side by side with what one would use otherwise, and their memory.

Every timed run writes into a fresh folder, and nothing large is deleted before the last one: deleting 10,000 files
slows the creation of the next ones down many times over on some file systems.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import sets
from measure import CommandFailedError, Comparison, Run, compare, run_once
from mirror import MirrorBench
from registry import RegistryBench
from report import as_markdown, describe_machine, describe_versions
from s3 import S3Bench
from servers import ARI

ROOT = Path(__file__).resolve().parents[2]
TARFILE_WAY = Path(__file__).with_name("tarfile_way.py")

MEMORY_LIMIT = 64_000_000
MEMORY_PER_FILE = 1000

# What any program like ours loads before it does a thing; typer, which builds on click, would take longer.
LEAST_PYTHON = (
    "import click, pluggy; from importlib.metadata import entry_points; tuple(entry_points(group='ari_registry'))"
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; sizes in bytes."""

    large: int
    small_files: int
    memory: tuple[int, ...]
    memory_files: tuple[int, int]
    memory_runs: int
    requests: int
    artifacts: tuple[int, int]
    disk: int


FULL = Size(
    large=512 * sets.MIB,
    small_files=10_000,
    memory=(64 * sets.MIB, 512 * sets.MIB, 4096 * sets.MIB),
    memory_files=(10_000, 50_000),
    memory_runs=3,
    requests=9_600,
    artifacts=(1_000, 100_000),
    disk=55 * 10**9,
)
QUICK = Size(
    large=64 * sets.MIB,
    small_files=1_000,
    memory=(16 * sets.MIB, 64 * sets.MIB),
    memory_files=(1_000, 5_000),
    memory_runs=1,
    requests=960,
    artifacts=(100, 1_000),
    disk=6 * 10**9,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A curated checkpoint and its bundle."""

    checkpoint: Path
    bundle: Path
    digest: str
    files: int
    bytes: int

    @property
    def published(self) -> Path:
        """The curated folder, which is what the other ways pack."""
        return self.checkpoint / "ear_published"

    def describe(self) -> dict[str, int]:
        """What the report says of it."""
        return {"files": self.files, "bytes": self.bytes, "bundle_bytes": self.bundle.stat().st_size}


class Bench:
    """One benchmark: where it works, and its sets, each made when first needed."""

    def __init__(self, scratch: Path, size: Size) -> None:
        self.scratch = scratch
        self.size = size
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ARI_")}
        self.environment["XDG_CONFIG_HOME"] = str(scratch / "no-config")
        self.environment["PATH"] += ":/usr/sbin:/sbin"  # where Debian has nginx
        self.prepared: dict[str, Prepared] = {}
        self.registry = RegistryBench(
            scratch / "registry",
            self.environment,
            large=lambda: self.large.bundle,
            small=lambda: self.prepare_small(10).bundle,
            requests=size.requests,
            artifacts=size.artifacts,
        )
        self.s3 = S3Bench(
            scratch / "s3",
            self.environment,
            large=lambda: self.large.bundle,
            checkpoint=lambda: self.large.checkpoint,
            sized=lambda size: self.prepare_large(size).bundle,
            registry=self.registry,
        )
        self.mirror = MirrorBench(
            scratch / "mirror",
            self.environment,
            large=lambda: self.large.bundle,
            sized=lambda size: self.prepare_large(size).bundle,
            s3=self.s3,
        )

    @cached_property
    def large(self) -> Prepared:
        """The set of few large files."""
        return self.prepare_large(self.size.large)

    @cached_property
    def small(self) -> Prepared:
        """The set of many small files."""
        return self.prepare_small(self.size.small_files)

    def prepare_large(self, size: int) -> Prepared:
        """Makes, curates and publishes a large set of `size` bytes."""
        return self._prepare(f"large-{size // sets.MIB}MiB", lambda ear: sets.write_large(ear, size))

    def prepare_small(self, files: int) -> Prepared:
        """Makes, curates and publishes a set of `files` small files."""
        return self._prepare(f"small-{files}", lambda ear: sets.write_small(ear, files))

    def _prepare(self, name: str, write: Callable[[Path], None]) -> Prepared:
        if name not in self.prepared:
            say(f"preparing the set {name}")
            checkpoint, out = self.scratch / name, self.scratch / f"{name}-bundle"
            write(checkpoint / "ear")
            self.run([ARI, "ear", "curate", checkpoint])
            self.run(self.publish(checkpoint, out))
            manifest = json.loads((out / "manifest.lock").read_text(encoding="utf-8"))
            sizes = [entry["size"] for entry in manifest["files"]]
            digest = manifest["bundle_sha256"]
            self.prepared[name] = Prepared(checkpoint, out / "bundle.tar.gz", digest, len(sizes), sum(sizes))
        return self.prepared[name]

    def run(self, command: Sequence[str | Path]) -> Run:
        """Runs one command outside of a comparison."""
        return run_once(command, self.environment)

    def publish(self, checkpoint: Path, out: Path) -> list[str | Path]:
        """Our way to pack: an already curated checkpoint into a folder."""
        # A checkpoint published before is another case: its record names where.
        (checkpoint / "publish_record.json").unlink(missing_ok=True)
        return [ARI, "ear", "publish", checkpoint, "--backend", "local-tarball", "-o", f"out={out}"]

    def clone(self, prepared: Prepared, fresh: Path) -> list[str | Path]:
        """Our way to unpack."""
        return [ARI, "clone", prepared.bundle, fresh / "clone", "--expect-sha256", prepared.digest]

    def verify(self, prepared: Prepared) -> list[str | Path]:
        """Our way to check."""
        return [ARI, "verify", prepared.bundle, "--expect-sha256", prepared.digest]

    def comparisons(self) -> list[Comparison]:
        """Everything that is timed. Sets are made when a comparison's first command is."""

        def pigz(prepared: Prepared, fresh: Path) -> list[str | Path]:
            return shell(
                'tar -C "$1" -cf - . | pigz -1 >"$2"; sha256sum "$2"', prepared.published, fresh / "b.tar.gz"
            )

        def untar(prepared: Prepared, fresh: Path) -> list[str | Path]:
            script = 'tar -C "$1" -xzf "$2"; find "$1" -type f -print0 | xargs -0 sha256sum'
            return shell(script, fresh, prepared.bundle)

        def gunzip(prepared: Prepared) -> list[str | Path]:
            return shell('gzip -dc "$1" | sha256sum', prepared.bundle)

        return [
            Comparison(
                "publish-large-tarfile",
                "publish, large / Python `tarfile` `w:gz` + SHA-256",
                1 / 25,
                lambda fresh: self.publish(self.large.checkpoint, fresh),
                lambda fresh: [sys.executable, "-I", TARFILE_WAY, self.large.published, fresh / "b.tar.gz"],
            ),
            Comparison(
                "publish-large-pigz",
                "publish, large / `tar \\| pigz -1` + `sha256sum`",
                0.4,
                lambda fresh: self.publish(self.large.checkpoint, fresh),
                lambda fresh: pigz(self.large, fresh),
            ),
            Comparison(
                "publish-small",
                "publish, small / `tar \\| pigz -1` + `sha256sum`",
                1.2,
                lambda fresh: self.publish(self.small.checkpoint, fresh),
                lambda fresh: pigz(self.small, fresh),
            ),
            Comparison(
                "clone-large",
                "clone, large / `tar xzf` + `sha256sum` of each file",
                0.25,
                lambda fresh: self.clone(self.large, fresh),
                lambda fresh: untar(self.large, fresh),
            ),
            Comparison(
                "clone-small",
                "clone, small / `tar xzf` + `sha256sum` of each file",
                0.9,
                lambda fresh: self.clone(self.small, fresh),
                lambda fresh: untar(self.small, fresh),
            ),
            Comparison(
                "verify-large",
                "verify, large / `gzip -dc \\| sha256sum`",
                0.3,
                lambda _: self.verify(self.large),
                lambda _: gunzip(self.large),
            ),
            Comparison(
                "verify-small",
                "verify, small / `gzip -dc \\| sha256sum`",
                1.2,
                lambda _: self.verify(self.small),
                lambda _: gunzip(self.small),
            ),
            Comparison(
                "startup",
                "`ari --help` / `import click, pluggy` + entry-point scan",
                1.5,
                lambda _: [ARI, "--help"],
                lambda _: [sys.executable, "-c", LEAST_PYTHON],
                repeat=3,
            ),
            *self.registry.comparisons(),
            *self.s3.comparisons(),
            *self.mirror.comparisons(),
        ]

    def peaks(self, prepared: Prepared) -> dict[str, int]:
        """Returns the largest peak memory seen, in bytes, of publish, clone and verify. Nothing is timed here."""
        peaks: dict[str, int] = {}
        for _ in range(self.size.memory_runs):
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                fresh = Path(folder)
                for name, command in (
                    ("publish", self.publish(prepared.checkpoint, fresh / "out")),
                    ("clone", self.clone(prepared, fresh)),
                    ("verify", self.verify(prepared)),
                ):
                    peaks[name] = max(peaks.get(name, 0), self.run(command).peak_kib * 1024)
        return peaks

    def memory(self) -> Iterator[dict[str, Any]]:
        """Yields one row for each set and command, then the growth with each further file."""
        for size in self.size.memory:
            for name, peak in self.peaks(self.prepare_large(size)).items():
                yield {
                    "name": f"{name}, {size // sets.MIB} MiB",
                    "bytes": peak,
                    "limit": MEMORY_LIMIT,
                    "passed": peak <= MEMORY_LIMIT,
                }
        few, many = self.size.memory_files
        at_few, at_many = (self.peaks(self.prepare_small(files)) for files in (few, many))
        for name, peak in at_many.items():
            yield {
                "name": f"{name}, {many:,} files",
                "bytes": peak,
                "limit": MEMORY_LIMIT + MEMORY_PER_FILE * max(0, many - 10_000),
                "passed": peak <= MEMORY_LIMIT + MEMORY_PER_FILE * max(0, many - 10_000),
            }
            growth = (peak - at_few[name]) / (many - few)
            yield {
                "name": f"{name}, each file from {few:,} to {many:,}",
                "bytes": round(growth),
                "limit": MEMORY_PER_FILE,
                "passed": growth <= MEMORY_PER_FILE,
            }


def say(text: str) -> None:
    """Tells on stderr what is going on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def shell(script: str, *arguments: str | Path) -> list[str | Path]:
    """Makes a command of a shell pipeline that fails when any part of it fails."""
    return ["bash", "-euo", "pipefail", "-c", script, "bash", *arguments]


def measure(bench: Bench, names: Sequence[str], runs: int) -> dict[str, Any]:
    """Runs what was asked for and returns the report, ready for JSON."""
    report: dict[str, Any] = {
        "command": " ".join(["scripts/bench/run", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(bench.scratch),
        "versions": describe_versions(ROOT, bench.environment["PATH"]),
        "comparisons": [],
        "start": [],
        "memory": [],
    }
    for comparison in bench.comparisons():
        if comparison.name in names:
            say(comparison.name)
            if missing := comparison.missing(bench.environment):
                report["comparisons"].append(comparison.describe_missing(missing))
            else:
                compared = compare(comparison, runs, bench.scratch, bench.environment)
                report["comparisons"].append(compared.describe())
    for name, kind, rows in (
        ("registry-start", "start", bench.registry.start_up(runs)),
        ("registry-memory", "memory", bench.registry.memory()),
        ("s3-memory", "memory", bench.s3.memory(bench.size.memory)),
        ("mirror-memory", "memory", bench.mirror.memory(bench.size.memory)),
        ("memory", "memory", bench.memory()),
    ):
        if name in names:
            say(name)
            report[kind] += rows
    report["sets"] = {name: prepared.describe() for name, prepared in bench.prepared.items()}
    return report


def parse_arguments(names: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="64 MiB and 1,000 files, 3 runs: does it work at all?"
    )
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}"
    )
    parser.add_argument(
        "--runs", type=int, help="runs of each side (default 5, with --quick 3); start-up three times as many"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, as in docs/benchmark.md")
    parser.add_argument(
        "--scratch", type=Path, default=ROOT / ".cache", metavar="DIR", help="where to work (default: .cache)"
    )
    arguments = parser.parse_args()
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs must be at least 1")
    if missing := [tool for tool in ("tar", "gzip", "pigz", "sha256sum", "curl") if shutil.which(tool) is None]:
        parser.error(f"needs {', '.join(missing)}; on Debian: apt-get install pigz curl")
    return arguments


def main() -> int:
    """Runs the benchmark. A missed target is a result, not an error."""
    names = [comparison.name for comparison in Bench(ROOT, QUICK).comparisons()]
    names += ["registry-start", "registry-memory", "s3-memory", "mirror-memory", "memory"]
    arguments = parse_arguments(names)
    size = QUICK if arguments.quick else FULL
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(arguments.scratch).free) < size.disk:
        say(f"{arguments.scratch} has {free:,} bytes free, {size.disk:,} are needed; see --scratch")
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.scratch) as scratch:
        bench = Bench(Path(scratch), size)
        try:
            report = measure(bench, arguments.only or names, arguments.runs or (3 if arguments.quick else 5))
        except (CommandFailedError, httpx2.HTTPError) as failure:
            say(str(failure))
            return 1
        except KeyboardInterrupt:
            say("interrupted; nothing is kept")
            return 130
        finally:
            bench.s3.close()
            bench.registry.close()
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        page = as_markdown(report)
        if arguments.markdown:
            arguments.markdown.write_text(page, encoding="utf-8")
        print(page, end="")
        say("removing what was made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
