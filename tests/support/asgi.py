"""Serves an ASGI app in this process with the real uvicorn, so that a test can put anything behind the app."""

import http.client
import logging
import socket
import threading
import time

import uvicorn

from ari_server.logs import LineFormatter


class Serving:
    """``with Serving(app) as server: server.get("/x")``; on 127.0.0.1, with the event loop that `serve` uses.

    Attributes:
        lines: What a server would have logged.
    """

    def __init__(self, app):
        self.lines = []
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._handler = _Lines(self.lines)
        self.port = self._socket.getsockname()[1]

    def __enter__(self):
        for name in ("ari_server", "uvicorn"):
            logging.getLogger(name).addHandler(self._handler)
            logging.getLogger(name).setLevel(logging.INFO)
        self._thread.start()
        self.logged("Application startup complete")
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()
        for name in ("ari_server", "uvicorn"):
            logging.getLogger(name).removeHandler(self._handler)

    def request(self, method, path, headers=(), body=None):
        """Returns status, headers (lower-case names) and body; `headers` are pairs, so that one can come twice."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path, *headers):
        return self.request("GET", path, headers)

    def logged(self, text):
        """Waits for a line with `text` in it, which is written when the answer is on its way already."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for line in self.lines:
                if text in line:
                    return line
            time.sleep(0.005)
        raise AssertionError(f"no line with {text!r} in {self.lines}")

    def raw(self, data):
        """Sends bytes as they are; returns the open socket."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.sendall(data)
        return sock


class _Lines(logging.Handler):
    def __init__(self, lines):
        super().__init__()
        self._lines = lines
        self.setFormatter(LineFormatter())

    def emit(self, record):
        self._lines.append(self.format(record))
