"""Runs the real registry server, `ari registry serve`, as an operator would, and talks to it.

    with Registry(folder, workers=2) as registry:
        alice = registry.token("alice")
        sample = registry.store(Sample.new(), alice, "public")
        registry.get(sample.path)

Whatever a test does to it, when it has stopped its log must hold no token that was ever issued, no traceback and
nothing that a terminal would obey.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
import uuid
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2
from support.archives import END, MANIFEST, bundle_digest, gzip, manifest, member, members
from support.run import ARI, ari, error_of

LEVELS = ("staged", "private-token", "unlisted", "public")
PATIENCE = 60
"""Seconds after which what should happen soon counts as never happening: a kill limit, not a measure."""

_NOT_FILES = r"\.db(-wal|-shm|-journal)?$|/\.[^/]*lock$|/locks/[0-9a-f]+$"
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the machine's certificates for each client takes long


def eventually(what, seconds=PATIENCE):
    """Returns the first true value of `what()`; its last value, a false one, when none came."""
    until = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return value


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def bearer(token):
    return {"Authorization": f"Bearer {token}"} if token else {}


def together(*calls):
    """Calls all at once, each in a thread of its own; returns what they return, in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(PATIENCE) for future in [pool.submit(call) for call in calls]]


@dataclass(frozen=True)
class Sample:
    """A bundle made byte by byte, not by the code under test."""

    data: bytes
    manifest: bytes
    bundle_sha256: str

    @classmethod
    def new(cls, files=None, *, level=1, **changes):
        """A bundle that no test has seen before; `changes` replace keys of its manifest."""
        files = {"README.md": f"{uuid.uuid4()}\n".encode(), **(files or {"code/run.py": b"print(1)\n"})}
        raw = manifest(files, **changes)
        return cls(gzip(member(MANIFEST, raw) + members(files) + END, level=level), raw, bundle_digest(files))

    @classmethod
    def noise(cls, size):
        """A bundle of some more than `size` bytes: its contents do not compress."""
        return cls.new({"noise": os.urandom(size)})

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def id(self):
        return self.sha256[:16]

    @property
    def path(self):
        return f"/artifact/{self.id}"

    @property
    def declared(self):
        """The header in which our own client declares the digest."""
        return {"Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(self.sha256)).decode()}:"}


class Token(str):
    """The text of a token; `id` is what it is revoked by."""

    __slots__ = ("id",)


class Api:
    """What users ask of a registry; `http` is a client of it."""

    def request(self, method, path, token=None, **more):
        headers = {**bearer(token), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def get(self, path, token=None, **more):
        return self.request("GET", path, token, **more)

    def head(self, path, token=None, **more):
        return self.request("HEAD", path, token, **more)

    def post(self, path, token=None, **more):
        return self.request("POST", path, token, **more)

    def delete(self, path, token=None, **more):
        return self.request("DELETE", path, token, **more)

    def upload(self, sample, token=None, **headers):
        """Sends a bundle as our own client does."""
        headers = {"Content-Type": "application/gzip", **headers}
        return self.post("/artifact", token, content=sample.data, headers=headers)

    def promote(self, sample, token, target):
        return self.post(f"{sample.path}/promote", token, params={"target": target})

    def store(self, sample, token, level="staged"):
        """Uploads and promotes; returns the sample."""
        done = self.upload(sample, token)
        assert done.status_code == 200, done.text
        if level != "staged":
            done = self.promote(sample, token, level)
            assert done.status_code == 200, done.text
        return sample

    def level(self, sample):
        """The effective level, or None when there is no such artifact."""
        answer = self.head(sample.path)
        return answer.headers["X-ARI-Visibility"] if answer.status_code == 200 else None

    def listed(self, token=None, **params):
        """All artifacts that a listing shows, over all its pages."""
        found, after = [], None
        while True:
            answer = self.get("/artifacts", token, params=params if after is None else {**params, "after": after})
            assert answer.status_code == 200, answer.text
            found += answer.json()["artifacts"]
            after = answer.json()["next"]
            if after is None:
                return found

    def ids(self, token=None, **params):
        return [artifact["id"] for artifact in self.listed(token, **params)]


class Registry(Api):
    """One server process (with `workers` more, if several), its data directory and its log.

    Attributes:
        data: The data directory.
        log: File with everything the server prints.
        process: The running server, or None.
        http: A client that keeps connections.
        once: A client that makes one for each request, so that several workers share them.
    """

    def __init__(self, folder, *, data=None, workers=1, options=(), env=None, port=None):
        """`options` go to `serve`; `env` adds variables."""
        self.folder = Path(folder)
        self.data = Path(data) if data else self.folder / "data"
        self.log = self.folder / "server.log"
        self.scratch = self.folder / "scratch"
        self.workers, self.options, self.extra = workers, options, env or {}
        self.process = None
        self.issued = []
        self._tokens = None
        for path in (self.folder, self.scratch, self.folder / "home"):
            path.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = self.client()
        self.once = self.client(limits=httpx2.Limits(max_keepalive_connections=0))

    def client(self, token=None, **options):
        """Makes an HTTP client of this server. Kept connections would stay with one of several workers."""
        if self.workers > 1:
            options.setdefault("limits", httpx2.Limits(max_keepalive_connections=0))
        return httpx2.Client(
            base_url=self.url, headers=bearer(token), timeout=PATIENCE, trust_env=False, verify=_NO_TLS, **options
        )

    # -- the process ----------------------------------------------------------------------------------------------

    @property
    def env(self):
        """The environment of an operator: nothing of this test's own."""
        foreign = ("ARI_", "AWS_", "ZENODO_", "HOME", "XDG_", "TMPDIR")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "HOME": str(self.folder / "home"), "TMPDIR": str(self.scratch), **self.extra}

    @property
    def command(self):
        where = ["--data-dir", str(self.data), "--port", str(self.port), "--workers", str(self.workers)]
        return [ARI, "registry", "serve", *where, *map(str, self.options)]

    def run(self, *arguments):
        """Runs `ari` in the server's environment."""
        return ari(*arguments, env=self.env)

    def refused(self):
        """Starts a server that must not start; returns its exit code and its one line of error."""
        done = self.run(*self.command[1:])
        return done.returncode, error_of(done)[0]

    def start(self):
        assert self.process is None
        if self.http.is_closed:
            self.http = self.client()
            self.once = self.client(limits=httpx2.Limits(max_keepalive_connections=0))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if (
            not eventually(lambda: self.process.poll() is not None or self._ready())
            or self.process.poll() is not None
        ):
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
        return self

    def _ready(self):
        with contextlib.suppress(OSError, httpx2.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def stop(self):
        """Asks it to end, as an operator does, and returns its exit code."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.kill()
        return code

    def kill(self):
        """Ends it and its workers without notice. They are in a session of their own, which is ours."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)

    def restart(self):
        self.stop()
        return self.start()

    @property
    def worker_pids(self):
        """The processes that serve, if there are several."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    @contextlib.contextmanager
    def only(self, worker):
        """Holds all other workers still, so that this one must answer."""
        others = [pid for pid in self.worker_pids if pid != worker]
        assert others
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self.http.close()
            self.once.close()
            if self._tokens:
                self._tokens.close()
                self._tokens = None
        self.assert_log_is_clean()

    def assert_log_is_clean(self):
        if not self.log.exists():
            return
        text = self.log.read_text("utf-8", "surrogateescape")
        assert "Traceback" not in text, text[text.index("Traceback") :][:4000]
        for token in self.issued:
            assert token not in text, "a token stands in the log"
        for line in text.splitlines():
            assert line.isprintable(), repr(line)

    # -- tokens ---------------------------------------------------------------------------------------------------

    def token(self, user, *, scope="publish", expires=None):
        """Issues a token; `expires` is a timedelta."""
        issued = self._store_of_tokens().issue(user, scope=scope, expires=expires)
        token = Token(issued.token)
        token.id = issued.id
        self.issued.append(token)
        return token

    def revoke(self, token):
        assert self._store_of_tokens().revoke(token.id)

    def expired_token(self, user):
        """A token whose time is over."""
        token = self.token(user, expires=timedelta(seconds=1))
        assert eventually(lambda: self._store_of_tokens().check(token) is None)
        return token

    def fetch_token(self, sample, owner):
        """Has the server make a token that opens one artifact."""
        made = self.post(f"{sample.path}/tokens", owner)
        assert made.is_success, made.text
        token = Token(made.json()["token"])
        token.id = made.json()["id"]
        self.issued.append(token)
        return token

    def _store_of_tokens(self):
        if self._tokens is None:
            from ari_server.config import load_config
            from ari_server.tokens import Tokens

            self.data.mkdir(exist_ok=True)
            database = {name: self.extra[name] for name in ("ARI_REGISTRY_DB",) if name in self.extra}
            self._tokens = Tokens(load_config(database, data=self.data))
        return self._tokens

    def wire(self):
        return Wire(self.port)

    # -- what lies on its disk ------------------------------------------------------------------------------------

    def files(self):
        """Every file of the server but its databases and its metrics, with its size."""
        found = {}
        for top in (self.data, self.scratch):
            for path in (Path(folder, name) for folder, _, names in os.walk(top) for name in names):
                with contextlib.suppress(FileNotFoundError):  # as os.walk does with folders
                    if path.is_file() and not re.search(_NOT_FILES, str(path)):
                        found[str(path.relative_to(self.folder) if top == self.scratch else path)] = (
                            path.stat().st_size
                        )
        return found


class Wire:
    """A connection on which every byte can be wrong."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data.encode() if isinstance(data, str) else data)
        return self

    def head(self, method, path, headers=()):
        """Sends a request line and headers."""
        lines = [f"{method} {path} HTTP/1.1", "Host: registry.test"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        return self.send("\r\n".join(lines) + "\r\n\r\n")

    def answer(self, method="GET"):
        """Reads one answer: status, headers (lower case), body."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        body = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def closed(self):
        """Reads what is left and says whether the server has closed."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(65536):
                pass
        return True


@dataclass
class Answer:
    """What came back on a `Wire`."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)
