"""A Zenodo on 127.0.0.1: its records API over real HTTP, with state, with its traps, and with faults on demand.

    with Zenodo(folder) as zenodo:
        backend = ...(base_url=zenodo.url, token=zenodo.token)
        zenodo.faults.add("504", "POST .*/actions/publish", after=True)     # it was published, but who knows
        zenodo.faults.add("reset", "PUT .*/content", at=100_000, times=2)
        ...
        assert zenodo.state().records.keys() == {"1000002"}

It does what the code of Zenodo was read to do: InvenioRDM's records API, and of the old deposit API no more than
what is cheap. Bytes are kept in `folder`, everything else in memory. It plays doi.org as well, at the same place:
`/10.5281/zenodo.N`. Links begin with the host that was asked for (and X-Forwarded-Proto), as behind a proxy.

By itself: `cd tests && python -m support.zenodo --port 8080 --token secret`.
"""

import argparse
import datetime as dt
import hashlib
import json
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from support.faults import Body
from support.httpd import Server
from support.zenodo_api import HTML, Answer, Api, Request, crash
from support.zenodo_faults import Faults, flipped
from support.zenodo_forms import Forms
from support.zenodo_rules import Refusal
from support.zenodo_store import BLOCK, Community, File, Store

BLOCKED = "<html><body><h1>Forbidden</h1>Blocked due to unusual traffic from your network.</body></html>"
_PHRASES = {502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Time-out"}
_GUEST, _USER = 133, 1000


class _Gone(Exception):  # noqa: N818 - an order, not an error
    """The connection is to be reset."""


class Zenodo(Server):
    """The service, working inside the ``with`` block.

    Attributes:
        url: Where it is, for `base_url`.
        token: That of its only user, as long as there are no others.
        tokens: Users by token; a test may add and remove some.
        faults: What is to go wrong, see `Faults.add`.
        api: Its `scopes` say what a token may do.
        limits: Bytes of a record and of a file, files of a record, and whether parts of files can be asked for.
        seen: All requests; `counts()` counts them.
    """

    def __init__(self, folder, *, prefix="10.5281", token="token-of-alice", port=0, **options):  # noqa: S107
        """Bytes are kept in `folder`; `authority` makes it speak TLS."""
        super().__init__(self._exchange, **options)
        if port:
            self._listener.close()
            self._listener = socket.create_server(("127.0.0.1", port))
            self.port = port
        self.store = Store(folder, prefix)
        self.api = Api(self.store)
        self.tokens = {token: "alice"}
        self.faults = Faults(self.store)
        self._calls = 0

    @property
    def url(self):
        return self.origin

    @property
    def token(self):
        return next(iter(self.tokens))

    @property
    def limits(self):
        return self.store.limits

    def state(self):
        """Returns what is there, as a `State`."""
        return self.store.state()

    def counts(self, when):
        """Says how many requests came whose "METHOD target" has this pattern."""
        return sum(re.search(when, f"{seen.method} {seen.target}") is not None for seen in self.seen)

    # What happens behind the service's back

    def path(self, number, key="bundle.tar.gz"):
        """Returns where the bytes of a file are, to be damaged; its checksum is still told as it was."""
        return self._content(number).files[key].path

    def swap(self, number, data, key="bundle.tar.gz"):
        """Puts other bytes in the place of a file, with a checksum that fits; makes it if it is not there."""
        path, now = self.store.folder / str(uuid.uuid4()), dt.datetime.now(dt.UTC)
        path.write_bytes(data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self._content(number).files[key] = File(key, now, now, path, len(data), md5, completed=True)

    def delete(self, number, *, visible=True):
        """Deletes a published record, as its owner or an administrator may; there is a tombstone from then on."""
        with self.store.lock:
            self.store.delete(self.store.published(number), "spam", visible=visible)

    def pass_days(self, days):
        """Goes into the future: embargoes end."""
        self.store.today = self.store.date() + dt.timedelta(days=days)

    def community(self, slug, *members, closed=False):
        """Founds a community; what its members submit is in it at once, what others do waits for a review."""
        self.store.communities[slug] = Community(slug, frozenset(members), closed)

    def _content(self, number):
        record = self.store.all[number]
        return record.published or record.draft

    # One request

    def _exchange(self, seen, wire):
        split = urlsplit(seen.target)
        query = {name: values[-1] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        fault = self.faults.take(seen)
        user = None if fault and fault.kind == "guest" else self._user(seen, query)
        scheme = seen.headers.get("x-forwarded-proto", urlsplit(self.url).scheme)
        url = f"{scheme}://{seen.headers['host']}" if "host" in seen.headers else self.url
        body, forms = Body(seen, wire), Forms(self.store, url)
        request = Request(seen.method, split.path, query, seen.headers, user, body, fault, forms)
        blocks = request.body.blocks()
        headers = self._always(user, seen)
        try:
            answer = self._instead(request, blocks)
            if answer is None:
                answer = self.api.answer(request, blocks)
                answer = self._afterwards(request, answer)
            for _ in blocks:  # who answers before all was read resets the connection
                pass
        except _Gone:
            wire.reset()
            return
        self._send(request, wire, answer, headers | answer.headers)

    def _user(self, seen, query):
        kind, _, token = seen.headers.get("authorization", "").partition(" ")
        return self.tokens.get(token if kind.lower() == "bearer" else query.get("access_token", ""))

    def _always(self, user, seen):
        """The headers of every answer; Retry-After is among them, whatever the answer."""
        self._calls += 1
        limit = _USER if user else _GUEST
        headers = {
            "Server": "nginx",
            "X-Request-Id": uuid.uuid4().hex,
            "X-RateLimit-Limit": limit,
            "X-RateLimit-Remaining": limit - 1 - self._calls % (limit - 1),
            "X-RateLimit-Reset": int(time.time()) + 61,
            "Retry-After": 60,
        }
        if seen.method == "POST":
            headers["Set-Cookie"] = "csrftoken=eyJhbGciOi; Expires=Wed, 01 Jan 2121 00:00:00 GMT; Secure; Path=/"
        return headers

    def _instead(self, request, blocks):
        """Returns what is answered instead of doing anything, if that was ordered."""
        fault = request.fault
        if fault is None or fault.after:
            return None
        if fault.kind.isdigit():
            return self._failure(fault)
        if fault.kind == "hang":
            while not fault.until.wait(0.05) and not self._stopping.is_set():
                pass
            raise _Gone
        if fault.kind == "reset":
            self._break_off(request, blocks)
            raise _Gone
        answers = {
            "blocked": Answer(fault.status, BLOCKED, kind=fault.content_type),
            "redirect": Answer(302, "", {"Location": fault.location}, "text/html"),
            "slow-doi": Answer(404, HTML.format("DOI Not Found"), kind="text/html"),
            "quota": Answer(400, Refusal(400, "Bucket quota exceeded.").body),
        }
        return answers.get(fault.kind)

    def _break_off(self, request, blocks):
        """Reads as much of the body as is read before the connection breaks."""
        left = request.fault.at
        while left > 0 and (block := next(blocks, None)):
            left -= len(block)
        if request.fault.noticed and request.method == "PUT":
            self.api.notice(request.path)

    def _afterwards(self, request, answer):
        fault = request.fault
        if fault is None:
            return answer
        if fault.kind == "lost-answer":
            raise _Gone
        if fault.kind.isdigit():
            return self._failure(fault)
        return answer

    @staticmethod
    def _failure(fault):
        status = int(fault.kind)
        headers = {"Retry-After": fault.retry_after} if status in {429, 503} else {}
        if status == 429:
            return Answer(status, {"message": "100 per 1 minute", "status": 429}, headers)
        if status == 500:
            return crash()
        if status in _PHRASES:
            return Answer(status, HTML.format(f"{status} {_PHRASES[status]}"), headers, "text/html")
        return Answer(status, {"status": status, "message": "ordered by a test"}, headers)

    def _send(self, request, wire, answer, headers):
        body, fault = answer.body, request.fault
        if fault and fault.kind == "wrong-bytes" and request.body.length:
            fault = None  # it was what came that is wrong
        if hasattr(body, "path"):
            self._send_file(request, wire, answer, headers)
            return
        if isinstance(body, dict | list):
            body = json.dumps(body)
        data = (body or "").encode()
        if data:
            headers["Content-Type"] = answer.kind
        if request.method == "HEAD":
            self._head(wire, answer.status, headers, len(data))
            return
        self._head(wire, answer.status, headers, None if answer.status == 204 else len(data))
        self._body(wire, [data], len(data), fault)

    def _send_file(self, request, wire, answer, headers):
        file, fault = answer.body, request.fault
        first, length = answer.part or (0, file.size)
        self._head(wire, answer.status, headers, length)
        if request.method == "HEAD":
            return
        with file.path.open("rb") as stream:
            if fault is None or fault.kind not in {"truncate", "wrong-bytes"}:
                sent = wire.socket.sendfile(stream, first, length) if length else 0
                wire.keep = sent == length  # what was damaged behind its back may be shorter
                return
            stream.seek(first)
            self._body(wire, iter(lambda: stream.read(BLOCK), b""), length, fault)

    @staticmethod
    def _head(wire, status, headers, length):
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items())]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        wire.send("\r\n".join(lines).encode() + b"\r\n\r\n")
        wire.keep = True

    @staticmethod
    def _body(wire, blocks, length, fault):
        """Sends a body, or what an order has left of it."""
        cut = fault.at if fault and fault.kind == "truncate" else length
        flip = fault.at if fault and fault.kind == "wrong-bytes" else None
        sent = 0
        for block in blocks:
            wire.send(flipped(block, sent, flip)[: max(0, cut - sent)])
            sent += len(block)
            if sent > cut:
                wire.keep = False
                return


def main():
    """Runs it until it is interrupted, and says where it is."""
    parser = argparse.ArgumentParser(description="a simulated Zenodo")
    parser.add_argument("--port", type=int, default=0, help="free one by default")
    parser.add_argument("--token", default="token-of-alice")
    parser.add_argument("--prefix", default="10.5281")
    parser.add_argument("--folder", type=Path, help="where the bytes are kept; a temporary folder by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ari-zenodo-"))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Zenodo(folder, prefix=options.prefix, token=options.token, port=options.port) as zenodo:
        print(zenodo.url, flush=True)  # noqa: T201 - whoever started it reads this
        ended.wait()
    if not options.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
