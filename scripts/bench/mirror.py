"""Measures `ari mirror` between two stores side by side with reading the one and writing the other alone.

A mirror verifies while it passes on, so it should take hardly longer than the slower of the two.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import Command, Comparison, run_once
from registry import Archive
from s3 import BUCKET, S3Bench
from servers import ARI

PUT_ALONE = Path(__file__).with_name("put_alone.py")
STORES = ("folder", "s3")
TARGET = 1.2
MEMORY_LIMIT = 100_000_000


class MirrorBench:
    """Two kinds of stores, each with a bundle in it.

    Args:
        scratch: Where to work; made here.
        environment: Of all programs.
        large: Gives the bundle of the large set.
        sized: Gives a bundle of a set of so many bytes.
        s3: Has the gateway.
    """

    def __init__(
        self,
        scratch: Path,
        environment: dict[str, str],
        large: Callable[[], Path],
        sized: Callable[[int], Path],
        s3: S3Bench,
    ) -> None:
        self.scratch, self.environment = scratch, environment
        self.large, self.sized, self.s3 = large, sized, s3
        self.slower: dict[str, str] = {}
        self.sources: dict[tuple[str, Path], str] = {}

    def mirror(self, source: str, target: str, bundle: Path, fresh: Path) -> Command:
        """Ours: read, verified and written at once."""
        self.begin(source, target, bundle)
        ref = self.stored(source, bundle)
        backend, options = self.place(target, fresh)
        settings = [*(f"-o{option}" for option in options), *(f"--from-o={o}" for o in self.reading(source))]
        return self.signed(ARI, "mirror", ref, "--to", backend, *settings)

    def read(self, source: str, bundle: Path) -> Command:
        """Reading and verifying alone."""
        ref = self.stored(source, bundle)
        return self.signed(ARI, "verify", ref, *(f"-o{option}" for option in self.reading(source)))

    def write(self, target: str, bundle: Path, fresh: Path) -> Command:
        """Writing alone, of what is known to be sound."""
        backend, options = self.place(target, fresh)
        return self.signed(sys.executable, PUT_ALONE, bundle, Archive.of(bundle).sha256, backend, *options)

    def alone(self, source: str, target: str, fresh: Path) -> Command:
        """The slower of the two, which is found out once."""
        bundle = self.large()
        self.begin(source, target, bundle)
        ways = {"read": lambda: self.read(source, bundle), "write": lambda: self.write(target, bundle, fresh)}
        name = f"{source}-{target}"
        if name not in self.slower:
            seconds = {way: run_once(make(), self.environment).seconds for way, make in ways.items()}
            self.slower[name] = max(seconds, key=lambda way: seconds[way])
            fresh = fresh / "measured"
            fresh.mkdir()
        return ways[self.slower[name]]()

    def begin(self, source: str, target: str, bundle: Path) -> None:
        """Starts a gateway of its own for each row, if it needs one: all rows together would fill one up."""
        row = f"mirror-{source}-{target}-{bundle.parent.name}"
        if "s3" in {source, target} and row != self.s3.row:
            self.s3.begin(row)
            self.sources = {(store, stored): ref for (store, stored), ref in self.sources.items() if store != "s3"}

    def place(self, store: str, fresh: Path) -> tuple[str, Sequence[str]]:
        """Returns a backend and its settings for a place where nothing is yet."""
        if store == "s3":
            return "s3", [*self.s3.options, f"prefix={fresh.parent.name}/{fresh.name}"]
        root = fresh / "store"
        root.mkdir(exist_ok=True)
        return "filesystem-registry", [f"root={root}"]

    def reading(self, store: str) -> Sequence[str]:
        """Returns the settings that reading needs."""
        return [option for option in self.s3.options if option.startswith("endpoint")] if store == "s3" else []

    def stored(self, store: str, bundle: Path) -> str:
        """Returns the ref of a bundle in a store; it is put there once."""
        if (store, bundle) not in self.sources:
            self.scratch.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix="source-", dir=self.scratch))
            run_once(self.write(store, bundle, fresh), self.environment)
            digest = Archive.of(bundle).sha256
            if store == "s3":
                self.sources[store, bundle] = f"s3://{BUCKET}/{fresh.parent.name}/{fresh.name}/artifacts/{digest}/"
            else:
                self.sources[store, bundle] = f"file://{fresh}/store/artifacts/{digest[:16]}/"
        return self.sources[store, bundle]

    def signed(self, *command: str | Path) -> Command:
        """Runs a command with the gateway's credentials, once there is a gateway."""
        return self.s3.signed(*command) if self.s3.row.startswith("mirror") else list(command)

    def comparisons(self) -> list[Comparison]:
        """Each kind of store to each kind."""

        def compared(source: str, target: str) -> Comparison:
            return Comparison(
                f"mirror-{source}-{target}",
                f"mirror, large, {source} to {target} / the slower of reading and writing alone",
                TARGET,
                lambda fresh: self.mirror(source, target, self.large(), fresh),
                lambda fresh: self.alone(source, target, fresh),
                needs=("radosgw",) if "s3" in {source, target} else (),
            )

        return [compared(source, target) for source in STORES for target in STORES]

    def memory(self, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Yields the peak of a mirror between all stores, for each size of the set."""
        for size in sizes:
            bundle = self.sized(size)
            for source in STORES:
                for target in STORES:
                    fresh = self.scratch / f"memory-{source}-{target}-{size}"
                    fresh.mkdir(parents=True)
                    command = self.mirror(source, target, bundle, fresh)
                    peak = run_once(command, self.environment).peak_kib * 1024
                    yield {
                        "name": f"mirror, {source} to {target}, {size // 2**20} MiB",
                        "bytes": peak,
                        "limit": MEMORY_LIMIT,
                        "passed": peak <= MEMORY_LIMIT,
                    }
                    shutil.rmtree(fresh)
