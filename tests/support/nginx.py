"""Runs nginx with scripts/registry/nginx.conf, that very file with other addresses."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx2
from support.registry import Wire, eventually, free_port

CONF = Path(__file__).parents[2] / "scripts" / "registry" / "nginx.conf"


class Nginx:
    """A running nginx with our configuration.

    Attributes:
        port: Where it listens.
        log: File with what it prints.
    """

    def __init__(self, folder, *upstream, artifacts="/nonexistent", changes=None):
        """`upstream` are ports of servers; `changes` replaces texts of the file, which stand there once each."""
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "nginx.log"
        self.http = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)
        text = CONF.read_text()
        places = {
            "server registry:8290;": " ".join(f"server 127.0.0.1:{port};" for port in upstream),
            "listen 8080;": f"listen 127.0.0.1:{self.port};",
            "alias /data/artifacts/;": f"alias {artifacts}/;",
        }
        for old, new in {**places, **(changes or {})}.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        folder.mkdir()
        (folder / "nginx.conf").write_text(text)

    def __enter__(self):
        more = "daemon off;" + ("user root;" if os.geteuid() == 0 else "")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["nginx", "-e", "stderr", "-p", f"{self.folder}/", "-c", "nginx.conf", "-g", more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin"},
            )
        assert eventually(lambda: self.process.poll() is not None or self._listens())
        assert self.process.poll() is None, self.log.read_text()
        return self

    def _listens(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def __exit__(self, *_):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def lines(self):
        """What it logged, one object for each request."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wire(self):
        return Wire(self.port)
