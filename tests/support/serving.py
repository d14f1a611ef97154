"""Runs the registry's application in this process, behind a real uvicorn: for tests that look or reach inside."""

import contextlib
import socket
import threading

import httpx2
import uvicorn
from support.registry import PATIENCE, Wire, bearer, eventually

from ari_server.app import create
from ari_server.config import load_config


class Serving:
    """A server with one worker, of the data directory `folder`.

    Attributes:
        registry: What is inside, `ari_server.service.Registry`.
    """

    def __init__(self, folder, *, least=16, **config):
        folder.mkdir(exist_ok=True)
        self._others = set(threading.enumerate())  # other tests may have left some that hang for ever
        self.app = create(load_config({}, data=folder, **config), least=least)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, http="httptools", loop="uvloop", log_config=None, access_log=False)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE, trust_env=False)

    def __enter__(self):
        self._thread.start()
        assert eventually(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started
        return self

    def __exit__(self, *_):
        self.http.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive()

    @property
    def registry(self):
        return self.app.state.registry

    def token(self, user, **more):
        return self.registry.tokens.issue(user, **more).token

    def request(self, method, path, token=None, **more):
        headers = {**bearer(token), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def upload(self, sample, token, **headers):
        headers = {"Content-Type": "application/gzip", **headers}
        return self.request("POST", "/artifact", token, content=sample.data, headers=headers)

    def wire(self):
        return Wire(self.port)

    def uploading(self, token, size, **headers):
        """Starts an upload of `size` bytes and sends none of them."""
        wire = self.wire()
        headers = {"Content-Type": "application/gzip", **bearer(token), **headers, "Content-Length": size}
        return wire.head("POST", "/artifact", headers)

    def threads(self, *names):
        """Threads of these names that began since."""
        return [t for t in threading.enumerate() if t.name in names and t not in self._others]

    def spools(self):
        """What lies in the folder where uploads are received."""
        with contextlib.suppress(FileNotFoundError):
            return [path for path in self.registry.workdir().iterdir() if path.name.startswith(".ari-staging-")]
        return []
