"""Measures the s3 backend side by side with `aws s3 cp`, against a Ceph object gateway on this machine.

The gateway is the one the tests start (`tests/support/stores.py`). Each archive that is put is another one: the
time in its gzip header changes, which nobody reads.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from measure import Command, Comparison, Run, run_once
from registry import Archive, RegistryBench
from servers import ARI

ROOT = Path(__file__).resolve().parents[2]
PUT = Path(__file__).with_name("s3_put.py")
AWS = ROOT / ".cache" / "awscli"

BUCKET = "bench"
MEMORY_LIMIT = 150_000_000

# The same job without us: pack, hash, send.
THEIR_PUBLISH = """
tar -C "$2" -cf - . | pigz -1 >"$3/b.tar.gz"; sha256sum "$3/b.tar.gz"
"$1" s3 cp --only-show-errors "$3/b.tar.gz" "$4"
"""
# And: hash a packed archive and every byte in it, and send it.
THEIR_CHECKED_PUT = """
sha256sum "$2"; tar -xzOf "$2" | sha256sum
"$1" s3 cp --only-show-errors "$2" "$3"
"""
# And: get the archive, unpack it, hash every file and compare.
THEIR_CLONE = """
"$1" s3 cp --only-show-errors "$2" "$3/b.tar.gz"
mkdir "$3/tree"; tar -C "$3/tree" -xzf "$3/b.tar.gz"
cd "$3/tree"; sha256sum --quiet -c "$4"
"""


class S3Bench:
    """A gateway, started when first needed, and what is asked of it.

    Args:
        scratch: Where to work; made here.
        environment: Of all programs.
        large: Gives the bundle of the large set.
        checkpoint: Gives its checkpoint, curated.
        sized: Gives a bundle of a set of so many bytes.
        registry: Makes other archives of the same content.
    """

    def __init__(
        self,
        scratch: Path,
        environment: dict[str, str],
        large: Callable[[], Path],
        checkpoint: Callable[[], Path],
        sized: Callable[[int], Path],
        registry: RegistryBench,
    ) -> None:
        self.scratch = scratch
        self.environment = environment
        self.large = large
        self.checkpoint = checkpoint
        self.sized = sized
        self.registry = registry
        self.running = ExitStack()
        self.row = ""
        self.store: Any = None

    def close(self) -> None:
        """Stops the gateway."""
        self.running.close()

    def begin(self, row: str) -> None:
        """Starts a gateway with an empty bucket for a row of the tables: it has all in memory, frees it late."""
        if row == self.row:
            return
        sys.path.insert(0, str(ROOT / "tests"))
        from support.stores import Rgw  # noqa: PLC0415 - only where it is measured

        self.close()
        self.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="ceph-", dir=self.scratch))
        folder.chmod(0o755)
        self.store, self.row = self.running.enter_context(Rgw(folder)).store, row
        self.store.client().create_bucket(Bucket=BUCKET)

    def signed(self, *command: str | Path) -> Command:
        """Runs a command with the credentials of the gateway's user."""
        return ["env", *(f"{name}={value}" for name, value in self.store.env.items()), *command]

    @cached_property
    def aws(self) -> Path:
        """The `aws` command, in an environment of its own: it has its own ideas of botocore."""
        program = AWS / "bin" / "aws"
        if not program.exists():
            venv.create(AWS, with_pip=True)
            subprocess.run([AWS / "bin" / "pip", "install", "-qq", "awscli"], check=True)
        return program

    @property
    def options(self) -> list[str]:
        """What names the bucket."""
        return [f"bucket={BUCKET}", f"endpoint_url={self.store.endpoint_url}"]

    def put(self, archive: Archive, *more: str) -> Command:
        """Ours: verified, hashed and stored."""
        return self.signed(sys.executable, PUT, archive.path, archive.sha256, *self.options, *more)

    def put_ours(self, _: Path) -> Command:
        """Puts another archive."""
        self.begin("put")
        return self.put(self.registry.next_archive())

    def put_theirs(self, _: Path) -> Command:
        """Theirs: stored."""
        archive = self.registry.next_archive()
        target = f"s3://{BUCKET}/theirs/{archive.sha256}"
        return self.signed(self.aws, "s3", "cp", "--only-show-errors", archive.path, target)

    def put_theirs_checked(self, _: Path) -> Command:
        """Theirs: hashed whole and within, and stored."""
        archive = self.registry.next_archive()
        script = ["bash", "-euo", "pipefail", "-c", THEIR_CHECKED_PUT, "bash"]
        return self.signed(*script, self.aws, archive.path, f"s3://{BUCKET}/theirs/{archive.sha256}")

    @cached_property
    def stored(self) -> tuple[str, str, Path]:
        """Returns ref and digest of the large bundle in the store, and what `sha256sum -c` reads."""
        self.begin("clone")
        archive = Archive.of(self.large())
        self.run(self.put(archive))
        manifest = json.loads(self.large().with_name("manifest.lock").read_text(encoding="utf-8"))
        sums = self.scratch / "SHA256SUMS"
        sums.write_text("".join(f"{entry['sha256']}  {entry['path']}\n" for entry in manifest["files"]))
        return f"s3://{BUCKET}/artifacts/{archive.sha256}/", manifest["bundle_sha256"], sums

    def publish(self, fresh: Path) -> Command:
        """Ours: packed, hashed while it is sent, and stored; each time under another prefix."""
        self.begin("publish")
        checkpoint = self.checkpoint()
        # A checkpoint published before is another case: its record names where.
        (checkpoint / "publish_record.json").unlink(missing_ok=True)
        options = [f"-o{option}" for option in (*self.options, f"prefix={fresh.name}")]
        return self.signed(ARI, "ear", "publish", checkpoint, "--backend", "s3", *options)

    def publish_theirs(self, fresh: Path) -> Command:
        """Theirs: one step after the other."""
        script = ["bash", "-euo", "pipefail", "-c", THEIR_PUBLISH, "bash"]
        target = f"s3://{BUCKET}/theirs/{fresh.name}"
        return self.signed(*script, self.aws, self.checkpoint() / "ear_published", fresh, target)

    def clone(self, fresh: Path) -> Command:
        """Ours: nothing appears that does not verify."""
        ref, digest, _ = self.stored
        return self.signed(ARI, "clone", ref, fresh / "clone", "--expect-sha256", digest, "-o", self.options[1])

    def clone_theirs(self, fresh: Path) -> Command:
        """Theirs: one step after the other."""
        ref, _, sums = self.stored
        script = ["bash", "-euo", "pipefail", "-c", THEIR_CLONE, "bash"]
        return self.signed(*script, self.aws, f"{ref}bundle.tar.gz", fresh, sums)

    def run(self, command: Command) -> Run:
        """Runs one command outside of a comparison."""
        return run_once(command, self.environment)

    def comparisons(self) -> list[Comparison]:
        """Everything that is compared."""
        return [
            Comparison(
                "s3-publish",
                "publish, large, to S3 / `tar \\| pigz -1`, `sha256sum`, `aws s3 cp`",
                1.0,
                self.publish,
                self.publish_theirs,
                needs=("radosgw", "pigz"),
            ),
            Comparison(
                "s3-put",
                "put of the large bundle, verified meanwhile / `aws s3 cp`",
                1.0,
                self.put_ours,
                self.put_theirs,
                needs=("radosgw",),
            ),
            Comparison(
                "s3-put-checked",
                "the same / `sha256sum`, `tar xzO \\| sha256sum`, `aws s3 cp`",
                1.0,
                self.put_ours,
                self.put_theirs_checked,
                needs=("radosgw",),
            ),
            Comparison(
                "s3-clone",
                "clone of the large bundle / `aws s3 cp`, `tar xzf`, `sha256sum -c`",
                1.0,
                self.clone,
                self.clone_theirs,
                needs=("radosgw",),
            ),
        ]

    def memory(self, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Yields the peak of a put and of a clone, for each size of the set."""
        for size in sizes:
            self.begin(f"memory-{size}")
            bundle = self.sized(size)
            archive = Archive.of(bundle)
            fresh = self.scratch / f"memory-{size}"
            fresh.mkdir()
            ref = f"s3://{BUCKET}/memory/artifacts/{archive.sha256}/"
            for name, command in (
                ("put", self.put(archive, "prefix=memory")),
                ("clone", self.signed(ARI, "clone", ref, fresh / "clone", "-o", self.options[1])),
            ):
                peak = self.run(command).peak_kib * 1024
                yield {
                    "name": f"s3 {name}, {size // 2**20} MiB",
                    "bytes": peak,
                    "limit": MEMORY_LIMIT,
                    "passed": peak <= MEMORY_LIMIT,
                }
            shutil.rmtree(fresh)
        yield from self.server_memory()

    def server_memory(self) -> Iterator[dict[str, Any]]:
        """Yields how much a registry's worker grows whose artifacts are in the bucket."""
        self.begin("registry")
        options = dict(option.split("=", 1) for option in [*self.options, "prefix=registry"])
        environment = {
            **self.environment,
            **self.store.env,
            "ARI_REGISTRY_BACKEND": "s3",
            "ARI_REGISTRY_OPTIONS": json.dumps(options),
        }
        on_s3 = RegistryBench(
            self.scratch / "registry", environment, self.large, self.large, requests=0, artifacts=(0, 0)
        )
        try:
            for row in on_s3.memory():
                yield {**row, "name": f"{row['name']}, on S3"}
        finally:
            on_s3.close()
