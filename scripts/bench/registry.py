"""Measures the registry server, with one worker, side by side with other servers that do the same.

What is sent is the bundle of the large set. Before each upload four bytes of its gzip header change, the time that
nobody reads: another archive each time, so that no server can say that it has it already.
"""

import base64
import hashlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import servers
from artifacts import fill
from measure import Command, CommandFailedError, Comparison, Requests, Spread, run_once

UPLOADS = 8
DOWNLOADS = 32
CONNECTIONS = 32
READERS_RATE = "16M"
MEMORY_LIMIT = 64_000_000
START_LIMIT = 2.0

CURL = ["curl", "-q", "--noproxy", "*", "--silent", "--show-error", "--fail-with-body"]


@dataclass(frozen=True, slots=True)
class Archive:
    """A bundle to upload, and the digest of its bytes."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Archive":
        """Hashes it."""
        with path.open("rb") as file:
            return cls(path, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class Hosted:
    """One of our servers, and a token for it."""

    server: servers.Server
    folder: Path
    token: str

    def url(self, archive: Archive, what: str = "") -> str:
        """Where an archive is, or its manifest."""
        return f"{self.server.url}/artifact/{archive.sha256[:16]}{what}"

    def upload(self, archive: Archive) -> Command:
        """Uploads as our client does: the raw bytes, and their digest."""
        digest = base64.b64encode(bytes.fromhex(archive.sha256)).decode()
        headers = ["-H", "Content-Type: application/gzip", "-H", f"Repr-Digest: sha-256=:{digest}:"]
        return [*self._authorised, *headers, "-X", "POST", "-T", archive.path, f"{self.server.url}/artifact"]

    def upload_form(self, archive: Archive, manifest: Path) -> Command:
        """Uploads as existing clients do: a form."""
        fields = ["-F", "visibility=staged", "-F", f"manifest=<{manifest}", "-F", "metadata={}"]
        file = ["-F", f"bundle=@{archive.path};type=application/gzip"]
        return [*self._authorised, *fields, *file, f"{self.server.url}/artifact"]

    @property
    def _authorised(self) -> Command:
        return [*CURL, "-H", f"Authorization: Bearer {self.token}"]

    def promote(self, archive: Archive) -> Command:
        """Lets anybody read it."""
        return [*self._authorised, "-X", "POST", self.url(archive, "/promote?target=public")]


class RegistryBench:
    """The servers, each started when first needed, and what is asked of them.

    Args:
        scratch: Where to work; made here.
        environment: Of all programs.
        large: Gives the bundle and the manifest of the large set.
        small: The same of a small one.
        requests: How many requests one run sends.
        artifacts: How many there are in a small and in a large registry.
    """

    def __init__(
        self,
        scratch: Path,
        environment: dict[str, str],
        large: Callable[[], Path],
        small: Callable[[], Path],
        requests: int,
        artifacts: tuple[int, int],
    ) -> None:
        self.scratch = scratch
        self.environment = environment
        self.large = large
        self.small = small
        self.requests = requests
        self.artifacts = artifacts
        self.numbers = itertools.count(1)
        self.running = ExitStack()

    def close(self) -> None:
        """Stops every server."""
        self.running.close()

    def started(self, context: AbstractContextManager[servers.Server]) -> servers.Server:
        """Starts a server that runs until `close`."""
        return self.running.enter_context(context)

    def host(self, name: str) -> Hosted:
        """Starts one of our servers, or starts it again on what it had."""
        folder = self.folder(name)
        server = self.started(servers.registry(folder, self.environment))
        return Hosted(server, folder, self.token(folder))

    def folder(self, name: str) -> Path:
        """Returns a folder of that name, to work in."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def token(self, folder: Path) -> str:
        """Issues a token."""
        command: Command = [
            servers.ARI,
            "registry",
            "token",
            "issue",
            "bench",
            "--json",
            "--data-dir",
            folder / "data",
        ]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True)
        token: str = json.loads(done.stdout)["token"]
        return token

    def publish(self, hosted: Hosted, archive: Archive) -> None:
        """Puts an archive where anybody can read it."""
        run_once(hosted.upload(archive), self.environment)
        run_once(hosted.promote(archive), self.environment)

    # -- the servers

    @cached_property
    def ours(self) -> Hosted:
        """The registry that is uploaded to, with the large bundle in it."""
        hosted = self.host("ours")
        self.publish(hosted, self.large_archive)
        return hosted

    @cached_property
    def oci(self) -> servers.Server:
        """The OCI registry, with the large bundle in it."""
        server = self.started(servers.oci(self.folder("oci"), self.environment))
        run_once(self.upload_oci(server, self.large_archive), self.environment)
        return server

    @cached_property
    def nginx(self) -> servers.Server:
        """A file server, with the large bundle in it."""
        return self.started(servers.nginx(self.folder("nginx"), self.large().parent, self.environment))

    @cached_property
    def plain(self) -> servers.Server:
        """The plain route, with a stored artifact's JSON files."""
        folder = self.folder("plain")
        (stored,) = (self.few.folder / "data" / "artifacts").glob(f"{self.archive.sha256[:16]}*")
        for name in ("meta.json", "manifest.lock"):
            shutil.copy(stored / name, folder)
        return self.started(servers.plain(folder, self.environment))

    @cached_property
    def large_archive(self) -> Archive:
        """The large bundle."""
        return Archive.of(self.large())

    @cached_property
    def archive(self) -> Archive:
        """The one artifact that small questions are about."""
        return Archive.of(self.small())

    @cached_property
    def few(self) -> Hosted:
        """A registry of few artifacts."""
        return self.filled("few", self.artifacts[0])

    @cached_property
    def many(self) -> Hosted:
        """A registry of many artifacts."""
        return self.filled("many", self.artifacts[1])

    def filled(self, name: str, artifacts: int) -> Hosted:
        """Starts a registry of which only one artifact is in the store, and the others in the index alone."""
        folder = self.folder(name)
        with servers.registry(folder, self.environment) as server:
            self.publish(Hosted(server, folder, self.token(folder)), self.archive)
        fill(folder / "data", artifacts - 1, self.small().with_name("manifest.lock").read_bytes())
        return self.host(name)

    # -- what is asked of them

    def next_archive(self) -> Archive:
        """Makes another archive of the same content."""
        path = self.folder("upload") / "bundle.tar.gz"
        if not path.exists():
            shutil.copyfile(self.large(), path)
        return self.stamp(path)

    def stamp(self, path: Path) -> Archive:
        """Changes the time in a gzip header."""
        with path.open("r+b") as file:
            file.seek(4)
            file.write(next(self.numbers).to_bytes(4, "little"))
        return Archive.of(path)

    def upload_oci(self, server: servers.Server, archive: Archive) -> Command:
        """Begins an upload, off the clock, and returns the one request that sends all of it and commits."""
        begun = httpx2.post(f"{server.url}/v2/bench/blobs/uploads/", trust_env=False).raise_for_status()
        url = httpx2.URL(begun.headers["Location"]).copy_merge_params({"digest": f"sha256:{archive.sha256}"})
        return [*CURL, "-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", archive.path, str(url)]

    def get(self, url: str) -> Command:
        """Downloads to nowhere."""
        return [*CURL, "-o", "/dev/null", url]

    def ask(self, method: str, url: str, connections: int = CONNECTIONS) -> Requests:
        """Asks again and again; one connection waits for each answer, so a tenth of the requests do."""
        count = self.requests if connections > 1 else self.requests // 10
        return Requests(method, url, connections, count)

    def comparisons(self) -> list[Comparison]:
        """Everything that is compared."""

        def download(_: Path) -> Command:
            return self.get(self.ours.url(self.large_archive))

        def upload_oci(_: Path) -> Command:
            return self.upload_oci(self.oci, self.next_archive())

        few, many = self.artifacts
        return [
            Comparison(
                "registry-get",
                "GET of the large bundle / OCI registry",
                1.0,
                download,
                lambda _: self.get(f"{self.oci.url}/v2/bench/blobs/sha256:{self.large_archive.sha256}"),
                repeat=3,
                needs=("docker-registry",),
            ),
            Comparison(
                "registry-get-nginx",
                "GET of the large bundle / nginx",
                None,
                download,
                lambda _: self.get(f"{self.nginx.url}/{self.large().name}"),
                repeat=3,
                needs=("nginx",),
            ),
            Comparison(
                "registry-put",
                "upload of the large bundle / OCI registry",
                1.0,
                lambda _: self.ours.upload(self.next_archive()),
                upload_oci,
                needs=("docker-registry",),
            ),
            Comparison(
                "registry-put-form",
                "upload of the large bundle as a form / OCI registry",
                1.0,
                lambda _: self.ours.upload_form(self.next_archive(), self.large().with_name("manifest.lock")),
                upload_oci,
                needs=("docker-registry",),
            ),
            Comparison(
                "registry-head",
                f"HEAD, {CONNECTIONS} connections / plain FastAPI route, `meta.json`",
                1.0,
                lambda _: self.ask("HEAD", self.few.url(self.archive)),
                lambda _: self.ask("HEAD", f"{self.plain.url}/record/meta.json"),
                needs=("hey",),
            ),
            Comparison(
                "registry-manifest",
                f"GET of the manifest, {CONNECTIONS} connections / plain FastAPI route, the same file",
                1.0,
                lambda _: self.ask("GET", self.few.url(self.archive, "/manifest.lock")),
                lambda _: self.ask("GET", f"{self.plain.url}/record/manifest.lock"),
                needs=("hey",),
            ),
            Comparison(
                "registry-head-many",
                f"HEAD, 1 connection: {many:,} / {few:,} artifacts",
                1.3,
                lambda _: self.ask("HEAD", self.many.url(self.archive), 1),
                lambda _: self.ask("HEAD", self.few.url(self.archive), 1),
                needs=("hey",),
            ),
            Comparison(
                "registry-list-many",
                f"list, 1 connection: {many:,} / {few:,} artifacts",
                1.3,
                lambda _: self.ask("GET", f"{self.many.server.url}/artifacts", 1),
                lambda _: self.ask("GET", f"{self.few.server.url}/artifacts", 1),
                needs=("hey",),
            ),
        ]

    def start_up(self, runs: int) -> Iterator[dict[str, Any]]:
        """Yields how long it takes from starting the server to an answer, with many artifacts."""
        folder = self.many.folder
        seconds = []
        for _ in range(runs):
            with servers.registry(folder, self.environment) as server:
                seconds.append(server.seconds)
        median = Spread.of(seconds).median
        yield {
            "name": f"start of `ari registry serve`, {self.artifacts[1]:,} artifacts",
            "seconds": median,
            "runs": seconds,
            "limit": START_LIMIT,
            "passed": median <= START_LIMIT,
        }

    def memory(self) -> Iterator[dict[str, Any]]:
        """Yields how much the worker grew over what it held when idle, under uploads and downloads at once."""
        folder = self.folder("memory")
        with servers.registry(folder, self.environment) as server:
            self.publish(Hosted(server, folder, self.token(folder)), self.large_archive)
        with servers.registry(folder, self.environment) as server:
            hosted = Hosted(server, folder, self.token(folder))
            run_once([*CURL, "--head", hosted.url(self.large_archive)], self.environment)
            uploads = []
            for number in range(UPLOADS):
                copy = folder / f"upload-{number}.tar.gz"
                shutil.copyfile(self.large(), copy)
                uploads.append(hosted.upload(self.stamp(copy)))
            # A server holds most for readers that are slower than it is.
            download = [*self.get(hosted.url(self.large_archive)), "--limit-rate", READERS_RATE]
            idle = servers.Memory.of(server.pid)
            proportional = self._watch(server, [*uploads, *[download] * DOWNLOADS])
            after = servers.Memory.of(server.pid)
        growth = after.peak - idle.resident
        yield {
            "name": f"growth of `ari registry serve`, {UPLOADS} uploads and {DOWNLOADS} downloads at once",
            "bytes": growth,
            "idle": idle.resident,
            "proportional_growth": proportional - idle.proportional,
            "limit": MEMORY_LIMIT,
            "passed": growth <= MEMORY_LIMIT,
        }

    def _watch(self, server: servers.Server, commands: list[Command]) -> int:
        """Runs all commands at once and returns the most memory that the server held in proportion meanwhile."""
        most = 0
        with ExitStack() as started:
            running = []
            for command in commands:
                process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)
                started.callback(process.wait)
                started.callback(process.kill)
                running.append(process)
            while any(process.poll() is None for process in running):
                most = max(most, servers.Memory.of(server.pid).proportional)
                time.sleep(0.05)
            if failed := [process for process in running if process.returncode]:
                raise CommandFailedError(f"{len(failed)} of {len(running)} transfers at once failed")
        return most
