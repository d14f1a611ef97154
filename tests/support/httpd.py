"""A web server on 127.0.0.1 that misbehaves on demand: plain sockets, so that every byte can be wrong.

    with Server(StaticFile(b"...")) as server:
        fetch(server.url("/x"))
        server.seen[0].headers["range"]

A *responder* is called with each request and a `Wire` to write the answer to. What it leaves open is closed.
"""

import contextlib
import datetime as dt
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import trustme


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    raw: bytes


class Wire:
    """The server's end of one connection."""

    def __init__(self, sock, stopping):
        self.socket, self._stopping = sock, stopping
        self.keep = False

    def send(self, data):
        self.socket.sendall(data)

    def answer(self, status, headers=(), body=b"", *, length=True):
        """Sends a whole answer; `length` adds Content-Length."""
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in dict(headers).items())]
        if length:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.keep = length

    def redirect(self, location, status=302):
        self.answer(status, {"Location": location})

    def chunked(self, headers, body, *, end=True, status=200):
        head = [f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items()), "Transfer-Encoding: chunked"]
        self.send("\r\n".join(head).encode() + b"\r\n\r\n")
        if body:
            self.send(b"%x\r\n%s\r\n" % (len(body), body))
        if end:
            self.send(b"0\r\n\r\n")

    def reset(self):
        """Cuts the connection the rude way (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.keep = False

    def hang(self):
        """Says nothing until the client goes away or the server stops."""
        self.keep = False
        while not self._stopping.is_set():
            ready, _, _ = select.select([self.socket], [], [], 0.05)
            if ready:
                with contextlib.suppress(OSError):
                    if not self.socket.recv(1):
                        return


Responder = Callable[[Seen, Wire], None]


class Server:
    """Threads, one per connection, until the ``with`` block ends."""

    def __init__(self, respond, *, authority=None, host="127.0.0.1"):
        """`host` is only the name in `url`: it always listens on 127.0.0.1."""
        self.respond, self.host = respond, host
        self.seen = []
        self._tls = authority.server_context() if authority else None
        self._stopping = threading.Event()
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    @property
    def origin(self):
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def url(self, path="/bundle.tar.gz"):
        return self.origin + path

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_):
        self._stopping.set()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass  # wakes the accepting thread, which is the first in the list and the only one that adds to it
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a server thread hangs"
        self._listener.close()

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._stopping.is_set():
            sock, _ = self._listener.accept()
            self._start(self._serve, sock)

    def _serve(self, sock):
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            try:
                sock.settimeout(10)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                    stack.callback(sock.close)
                while self.handle(sock):
                    pass
            except OSError:  # the client went away, or did not like our certificate
                return

    def handle(self, sock):
        """Serves one request; says whether another may follow."""
        request = self._read(sock)
        if request is None:
            return False
        self.seen.append(request)
        wire = Wire(sock, self._stopping)
        self.respond(request, wire)
        return wire.keep and not self._stopping.is_set()

    def _read(self, sock):
        raw = b""
        while b"\r\n\r\n" not in raw:
            while not select.select([sock], [], [], 0.05)[0]:
                if self._stopping.is_set():
                    return None
            data = sock.recv(65536)
            if not data:
                return None
            raw += data
        first, *lines = raw.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Seen(method, target, headers, raw)


class Proxy(Server):
    """A proxy that tunnels CONNECT to this machine, whatever host is asked for, and refuses all else.

    `ports` are those of the servers that play other machines, by "HOST:PORT".
    """

    def __init__(self, ports=()):
        super().__init__(self._tunnel)
        self.refuse, self._ports = None, dict(ports)

    def _tunnel(self, request, wire):
        if request.method != "CONNECT" or self.refuse:
            wire.answer(self.refuse or 405)
            return
        port = self._ports.get(request.target) or int(request.target.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as upstream:
            wire.send(b"HTTP/1.1 200 -\r\n\r\n")
            ends = {wire.socket: upstream, upstream: wire.socket}
            while not self._stopping.is_set():
                for ready in select.select(list(ends), [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    ends[ready].sendall(data)


class Authority:
    """A certificate authority of our own; `file` is what a client is to trust."""

    names = ("localhost", "127.0.0.1", "example.test")

    def __init__(self, folder):
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def server_context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*self.names).configure_cert(context)
        return context


class OtherName(Authority):
    """Certifies somebody else."""

    names = ("example.test",)


class Expired(Authority):
    """Issues certificates that ended long ago."""

    def server_context(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        began, ended = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2019, 2020))
        self._ca.issue_cert(*self.names, not_before=began, not_after=ended).configure_cert(context)
        return context


def forget_proxies(monkeypatch):
    """Keeps the machine's own proxies and authorities out of a test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextlib.contextmanager
def servers(authority):
    """Gives a function that starts a server, with TLS unless told otherwise; all end with the block."""
    with contextlib.ExitStack() as stack:

        def start(respond, *, tls=True, **options):
            return stack.enter_context(Server(respond, authority=authority if tls else None, **options))

        yield start


@dataclass
class StaticFile:
    """A responder that serves one file properly, apart from what it is told to get wrong.

    Attributes:
        cuts: For each GET in turn, after how many bytes of body the connection is cut; None or missing: never.
        reset: Cut with RST instead of closing.
        ranges: Whether ranges are honoured; `announce` is what Accept-Ranges says (None: nothing).
    """

    body: bytes
    etag: str | None = '"v1"'
    ranges: bool = True
    announce: str | None = "bytes"
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    reset: bool = False
    gets: int = 0

    def __call__(self, request, wire):
        if request.method == "HEAD":
            wire.send(self._head(200, len(self.body)))
            wire.keep = True
            return
        cut = self.cuts[self.gets] if self.gets < len(self.cuts) else None
        self.gets += 1
        first = self._first(request)
        if first is None:
            head, body = self._head(200, len(self.body)), self.body
        elif first >= len(self.body):
            wire.answer(416, {"Content-Range": f"bytes */{len(self.body)}"})
            return
        else:
            extra = {"Content-Range": f"bytes {first}-{len(self.body) - 1}/{len(self.body)}"}
            head, body = self._head(206, len(self.body) - first, extra), self.body[first:]
        wire.send(head + (body if cut is None else body[:cut]))
        wire.keep = cut is None
        if cut is not None and self.reset:
            wire.reset()

    def _first(self, request):
        match = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("range", ""))
        if not match or not self.ranges or request.headers.get("if-range", self.etag) != self.etag:
            return None
        return int(match[1])

    def _head(self, status, length, extra=()):
        headers = {"Content-Length": length, **self.headers, **dict(extra)}
        if self.etag:
            headers["ETag"] = self.etag
        if self.announce:
            headers["Accept-Ranges"] = self.announce
        return "\r\n".join([f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()
