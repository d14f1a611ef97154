"""A stand-in for the existing registry server, written from its documented routes: the fixed rows, nothing else.

It takes uploads as multipart only, honours the visibility that is asked for, resolves ids of exactly 16 digits,
shows manifests (written again) to everybody; no listing, no ranges, no metadata route, no fetch tokens.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LEVELS = ["staged", "private-token", "unlisted", "public"]


@dataclass
class Stored:
    """One artifact."""

    owner: str
    visibility: str
    bundle: bytes
    manifest: str

    @property
    def sha256(self):
        return hashlib.sha256(self.bundle).hexdigest()


@dataclass
class ExistingServer:
    """Runs between ``with`` and its end.

    Attributes:
        users: User by token.
        artifacts: What is stored, by id.
        uploads: Each upload's parts in order, ``(name, content)``.
        requests: ``(method, path)`` of each request.
    """

    users: dict = field(default_factory=lambda: {"ari_alice": "alice", "ari_bob": "bob"})
    artifacts: dict = field(default_factory=dict)
    uploads: list = field(default_factory=list)
    requests: list = field(default_factory=list)

    def __enter__(self):
        state = self

        class Handler(_Handler):
            server_state = state

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"


class _RefusedError(Exception):
    def __init__(self, status, detail):
        super().__init__(detail)
        self.status, self.detail = status, detail


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - the library's names

    def _answer(self):
        self.server_state.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route(body)
        except _RefusedError as refused:
            self._json({"detail": refused.detail}, refused.status)

    def _route(self, body):
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"/artifact/([0-9a-f]{16})(/manifest\.lock|/promote)?", path)
        route = (self.command, match[2] if match else path)
        if route == ("GET", "/healthz"):
            self._json({"ok": True})
        elif route == ("GET", "/version"):
            self._json({"version": "0.7.0", "service": "ari-registry"})
        elif route == ("POST", "/artifact"):
            self._upload(body)
        elif not match or match[1] not in self.server_state.artifacts:
            raise _RefusedError(404, "Not Found")
        else:
            self._artifact(match[1], self.server_state.artifacts[match[1]], route, body)

    def _artifact(self, number, stored, route, body):
        match route:
            case ("HEAD", None):
                self._bundle(stored)
            case ("GET", None):
                self._may_read(stored)
                self._bundle(stored)
            case ("GET", "/manifest.lock"):
                self._send(200, {"Content-Type": "application/json"}, stored.manifest.encode())
            case ("POST", "/promote"):
                self._must_own(stored)
                target = json.loads(body or b"{}").get("target", "public")
                if LEVELS.index(target) < LEVELS.index(stored.visibility):
                    raise _RefusedError(400, "visibility can only be raised")
                stored.visibility = target
                self._json({"id": number, "visibility": target})
            case ("DELETE", None):
                self._must_own(stored)
                del self.server_state.artifacts[number]
                self._json({"deleted": number})
            case _:
                raise _RefusedError(405, "Method Not Allowed")

    def _upload(self, body):
        user = self._user()
        if user is None:
            raise _RefusedError(401, "missing bearer token")
        kind, _, boundary = self.headers.get("Content-Type", "").partition("; boundary=")
        if kind != "multipart/form-data":
            raise _RefusedError(422, [{"loc": ["body", "bundle"], "msg": "Field required"}])
        parts = _parts(body, boundary.encode())
        self.server_state.uploads.append(parts)
        form = dict(parts)
        bundle = form["bundle"]
        number = hashlib.sha256(bundle).hexdigest()[:16]
        known = self.server_state.artifacts.get(number)
        if known is None:
            manifest = json.dumps(json.loads(form["manifest"]), indent=1)
            known = Stored(user, form["visibility"].decode(), bundle, manifest)
            self.server_state.artifacts[number] = known
            duplicate = False
        else:
            duplicate = True
        self._json(
            {"id": number, "ref": f"ari://{number}", "visibility": known.visibility, "duplicate": duplicate}
        )

    def _user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.server_state.users:
            raise _RefusedError(401, "invalid token")
        return self.server_state.users[token]

    def _must_own(self, stored):
        user = self._user()
        if user is None:
            raise _RefusedError(401, "missing bearer token")
        if user != stored.owner:
            raise _RefusedError(403, "not the owner")

    def _may_read(self, stored):
        if stored.visibility in {"unlisted", "public"}:
            return
        user = self._user()
        if user is None:
            raise _RefusedError(401, "missing bearer token")
        if user != stored.owner:
            raise _RefusedError(403, "not allowed")

    def _bundle(self, stored):
        headers = {
            "Content-Type": "application/gzip",
            "X-ARI-Sha256": stored.sha256,
            "X-ARI-Visibility": stored.visibility,
        }
        self._send(200, headers, stored.bundle)

    def _json(self, data, status=200):
        self._send(status, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def _send(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _parts(body, boundary):
    """Splits a form into its parts, in order."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        found.append((re.search(rb'[ ;]name="([^"]*)"', head)[1].decode(), content))
    return found
