"""A proxy in front of an S3 server that does to chosen requests what networks and stores do on bad days.

    with Faults(store.endpoint_url) as faults:
        client = store.behind(faults).client()
        faults.order("CompleteMultipartUpload", lose=True)           # stored, but the client does not learn it
        faults.order("GET", r"bundle", nth=2, cut_response=1000)
        ...
        assert faults.counts["UploadPart"] == 3

Requests are passed on as they came, with the Host they were signed for. Only path-style addressing is understood.
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from urllib.parse import urlsplit

from support.httpd import Server
from support.registry import PATIENCE, eventually

BLOCK = 65536
_OPERATIONS = {  # method, what follows the bucket, and the parameter that tells
    ("PUT", "key", "uploadId"): "UploadPart",
    ("POST", "key", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "key", "uploadId"): "AbortMultipartUpload",
    ("GET", "key", "uploadId"): "ListParts",
    ("POST", "key", "uploads"): "CreateMultipartUpload",
    ("PUT", "key", ""): "PutObject",
    ("GET", "key", ""): "GetObject",
    ("HEAD", "key", ""): "HeadObject",
    ("DELETE", "key", ""): "DeleteObject",
    ("GET", "", "uploads"): "ListMultipartUploads",
    ("GET", "", "list-type"): "ListObjectsV2",
    ("GET", "", ""): "ListObjects",
    ("POST", "", "delete"): "DeleteObjects",
    ("PUT", "", ""): "CreateBucket",
    ("HEAD", "", ""): "HeadBucket",
    ("DELETE", "", ""): "DeleteBucket",
}


def operation(method, target):
    """Returns the S3 name of what a request asks for; the method for what has no name here."""
    path, _, query = target.partition("?")
    names = {parameter.partition("=")[0] for parameter in query.split("&")}
    bucket, _, key = path.lstrip("/").partition("/")
    if not bucket:
        return "ListBuckets"
    place = "key" if key else ""
    for told in (*("uploadId", "uploads", "list-type", "delete"), ""):
        if (not told or told in names) and (method, place, told) in _OPERATIONS:
            return _OPERATIONS[method, place, told]
    return method


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a request; several things may, in this order.

    Attributes:
        delay: It waits for so many seconds.
        until: It waits until this event is set.
        drop: The connection is reset instead of passing it on.
        answer: A status (and the code of S3's error) that is answered instead of passing it on.
        retry_after: Seconds, as a header of that answer.
        without: Headers that do not reach the store, such as "if-none-match".
        framed: The store gets the body in the frame of an aws-chunked upload and takes that for data. Only a store
            that checks no signature (moto) accepts it.
        cut_request: The connections end when the store has so many bytes of the body.
        lose: The store's answer is read and thrown away, and the connection reset.
        answer_after: The store's answer is read, and this status sent in its place.
        flip: So many bytes into the body of the answer, one bit is wrong.
        cut_response: The connection ends after so many bytes of the answer's body.
        reset: Cut connections end with RST.
    """

    delay: float = 0
    until: threading.Event | None = None
    drop: bool = False
    answer: int | tuple[int, str] | None = None
    retry_after: int | None = None
    without: tuple[str, ...] = ()
    framed: bool = False
    cut_request: int | None = None
    lose: bool = False
    answer_after: int | None = None
    flip: int | None = None
    cut_response: int | None = None
    reset: bool = False


@dataclass
class Order:
    """A fault for some requests: from the `nth` match on, `times` times (None: always).

    Attributes:
        matched: How many requests matched.
        done: How many met the fault.
    """

    what: str | None
    where: str
    nth: int
    times: int | None
    fault: Fault
    matched: int = 0
    done: int = 0

    def takes(self, request, name):
        """Says whether the fault is for this request; each request is asked for once."""
        if self.what not in {None, request.method, name} or not re.search(self.where, request.target):
            return False
        self.matched += 1
        if self.matched < self.nth or (self.times is not None and self.done >= self.times):
            return False
        self.done += 1
        return True


class Faults(Server):
    """The proxy, working inside the ``with`` block.

    Attributes:
        counts: How many requests arrived, by operation ("PutObject").
        seen: The requests themselves.
    """

    def __init__(self, endpoint_url, **options):
        """`endpoint_url` is the store's; with `authority` the proxy itself speaks TLS."""
        super().__init__(self._exchange, **options)
        where = urlsplit(endpoint_url)
        self._store = (where.hostname, where.port)
        self._lock = threading.Lock()
        self._orders = []
        self._busy = Counter()
        self.counts = Counter()

    def order(self, what=None, where="", *, nth=1, times=1, **fault):
        """Orders a `Fault`.

        Args:
            what: A method, or an operation; None for any.
            where: A pattern to be found in path and query.
            nth: The first match that meets the fault.
            times: How many do, from then on; None for all.
            fault: Attributes of `Fault`.
        """
        order = Order(what, where, nth, times, Fault(**fault))
        with self._lock:
            self._orders.append(order)
        return order

    @contextlib.contextmanager
    def without(self, *operations):
        """Has none of these under way: waits for their ends, and resets what comes meanwhile."""
        orders = [self.order(name, times=None, drop=True) for name in operations]
        try:
            assert eventually(lambda: not any(self._busy[name] for name in operations))
            yield
        finally:
            with self._lock:
                self._orders = [order for order in self._orders if order not in orders]

    def forget(self):
        """Counts from nought and takes all orders back."""
        with self._lock:
            self.counts.clear()
            self.seen.clear()
            self._orders.clear()

    def _fault_for(self, request):
        name = operation(request.method, request.target)
        with self._lock:
            self.counts[name] += 1
            due = [order.fault for order in self._orders if order.takes(request, name)]
            self._busy[name] += 1
        return due[0] if due else Fault()

    def _exchange(self, request, wire):
        fault = self._fault_for(request)
        try:
            self._suffer(fault, request, wire)
        finally:
            with self._lock:
                self._busy[operation(request.method, request.target)] -= 1

    def _suffer(self, fault, request, wire):
        if fault.delay:
            time.sleep(fault.delay)
        while fault.until and not fault.until.wait(0.05) and not self._stopping.is_set():
            pass
        if fault.drop:
            wire.reset()
            return
        body = Body(request, wire)
        if fault.answer is not None:
            for _ in body.blocks():  # who closes with unread data resets the connection
                pass
            self._refuse(request, wire, fault.answer, fault.retry_after)
            return
        with socket.create_connection(self._store, PATIENCE) as store:
            if self._pass_on(request, body, store, fault):
                self._pass_back(request, store, wire, fault)
            elif fault.reset:
                wire.reset()

    @staticmethod
    def _refuse(request, wire, answer, retry_after=None):
        status, code = answer if isinstance(answer, tuple) else (answer, "InternalError")
        headers = {"Content-Type": "application/xml"}
        if retry_after is not None:
            headers["Retry-After"] = retry_after
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>ordered by a test</Message></Error>"
        wire.answer(status, headers, b"" if request.method == "HEAD" else text.encode())

    @staticmethod
    def _pass_on(request, body, store, fault):
        """Sends the request to the store; says whether all of it."""
        first, *lines = request.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
        dropped, added, blocks = {"connection", "expect", *fault.without}, [b"Connection: close"], body.blocks()
        if fault.framed:
            before, after = b"%x\r\n" % body.length, b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
            dropped.add("content-length")
            added.append(b"Content-Length: %d" % (len(before) + body.length + len(after)))
            blocks = chain([before], blocks, [after])
            dropped |= {name for name in request.headers if "checksum" in name}  # it knows nothing of them
        kept = [line for line in lines if line.partition(b":")[0].decode().lower() not in dropped]
        store.sendall(b"\r\n".join([first, *kept, *added]) + b"\r\n\r\n")
        sent = 0
        for block in blocks:
            left = len(block) if fault.cut_request is None else fault.cut_request - sent
            store.sendall(block[:left])
            sent += len(block)
            if left < len(block):
                return False
        return True

    def _pass_back(self, request, store, wire, fault):
        """Sends the store's answer to the client; the store closes the connection at its end."""
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._some(store)
        head, _, block = answer.partition(b"\r\n\r\n")
        if fault.lose or fault.answer_after is not None:
            while store.recv(BLOCK):
                pass
            if fault.answer_after is not None:
                self._refuse(request, wire, fault.answer_after)
            else:
                wire.reset()
            return
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"keep-alive:"))
        ]
        wire.send(b"\r\n".join(lines) + b"\r\n\r\n")
        sent = 0
        while block or (block := store.recv(BLOCK)):
            if fault.flip is not None and 0 <= fault.flip - sent < len(block):
                at = fault.flip - sent
                block = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
            if fault.cut_response is not None and sent + len(block) > fault.cut_response:
                wire.send(block[: fault.cut_response - sent])
                if fault.reset:
                    wire.reset()
                return
            wire.send(block)
            sent += len(block)
            block = b""
        told = any(line.lower().startswith((b"content-length:", b"transfer-encoding:")) for line in lines)
        whole = told or head.split()[1] in {b"204", b"304"}
        wire.keep = whole and request.headers.get("connection", "").lower() != "close"

    @staticmethod
    def _some(sock):
        data = sock.recv(BLOCK)
        if not data:
            raise ConnectionError("closed too early")
        return data


class Body:
    """The body of a request as it comes, chunked or with a length."""

    def __init__(self, request, wire):
        self._request, self._wire = request, wire
        self._read = request.raw.partition(b"\r\n\r\n")[2]
        self.length = int(request.headers.get("content-length", 0))

    def blocks(self):
        """Gives the body block by block, chunks with their frames."""
        headers = self._request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield from self._exactly(self.length)
            return
        size = 1
        while size:
            line = self._line()
            yield line
            size = int(line.partition(b";")[0], 16)
            if size:
                yield from self._exactly(size + 2)
        while (line := self._line()) != b"\r\n":
            yield line
        yield line

    def _exactly(self, length):
        while length:
            self._fill()
            block, self._read = self._read[:length], self._read[length:]
            length -= len(block)
            yield block

    def _line(self):
        while b"\n" not in self._read:
            self._read += Faults._some(self._wire.socket)
        line, _, self._read = self._read.partition(b"\n")
        return line + b"\n"

    def _fill(self):
        if not self._read:
            self._read = Faults._some(self._wire.socket)
