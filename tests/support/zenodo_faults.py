"""What can go wrong with a simulated Zenodo."""

import re
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Fault:
    """Something bad that happens to requests; see `Faults.add`.

    Attributes:
        matched: How many requests it could have happened to.
        done: How many it happened to.
    """

    kind: str
    when: str = ""
    nth: int = 1
    times: int | None = 1
    after: bool = False
    at: int = 0
    retry_after: int = 1
    noticed: bool = True
    status: int = 403
    content_type: str = "text/html"
    location: str = ""
    until: threading.Event | None = None
    matched: int = 0
    done: int = 0
    since: int = 0


class Faults:
    """What is to go wrong. Several faults may be due; the first that fits is what happens."""

    KINDS = frozenset(
        {
            *("reset", "lost-answer", "truncate", "wrong-bytes", "blocked", "redirect", "guest", "hang"),
            *("lost-content", "search-lag", "slow-doi", "quota"),
        }
    )

    def __init__(self, store):
        self._store, self._lock, self._due = store, threading.Lock(), []

    def add(self, kind, when="", **options):
        """Orders a fault.

        Args:
            kind: One of:

                * a status (`"429"`, `"500"`, `"504"`): answered instead; with `after`: all was done all the same.
                  500 and less is JSON, 502 and more an HTML page. 429 and 503 say `retry_after` (seconds).
                * `"reset"`: the connection is reset after `at` bytes of the request's body, before all is done.
                  The service forgets the file that was being sent; with `noticed=False` it stays, pending.
                * `"lost-answer"`: all is done, and the connection reset instead of answering.
                * `"truncate"`: the connection ends after `at` bytes of the answer's body.
                * `"wrong-bytes"`: byte `at` of the answer's body is wrong, or (uploads) of what is stored.
                * `"blocked"`: an HTML page that says so, with `status` (403) and `content_type`.
                * `"redirect"`: 302 to `location`.
                * `"guest"`: the token is not recognised.
                * `"hang"`: it waits until the event `until` is set, and resets.
                * `"lost-content"`: (commit) the bytes sent before are gone: 404.
                * `"quota"`: (content) 400, the quota is exceeded.
                * `"search-lag"`: (searches) nothing that was changed after the fault was ordered is found.
                * `"slow-doi"`: (doi.org) not registered yet.
            when: A pattern to be found in "METHOD target"; empty: whatever the kind fits.
            options: The `nth` (1) match is the first that meets it, `times` (1, None: all) do from then on; others
                as above.
        """
        if kind not in self.KINDS and not re.fullmatch(r"[45][0-9]{2}", kind):
            raise ValueError(kind)
        if options.get("after") and not kind.isdigit():
            raise ValueError("after")
        fault = Fault(kind, when, since=self._store.last_change, **options)
        with self._lock:
            self._due.append(fault)
        return fault

    def clear(self):
        """Takes back whatever did not happen yet."""
        with self._lock:
            self._due.clear()

    def take(self, request):
        """Returns the fault that happens to this request, if any; each request is asked for once."""
        line, happens = f"{request.method} {request.target}", None
        with self._lock:
            for fault in self._due:
                if not _fits(fault.kind, request) or not re.search(fault.when, line):
                    continue
                fault.matched += 1
                if happens or fault.matched < fault.nth or (fault.times is not None and fault.done >= fault.times):
                    continue
                fault.done += 1
                happens = fault
        return happens


def _fits(kind, request):
    """Says whether this kind of fault can happen to a request at all."""
    line = f"{request.method} {urlsplit(request.target).path}"
    place = {
        "search-lag": r"^GET /api/(records|user/records|deposit/depositions)$",
        "slow-doi": r"^(GET|HEAD) /10\.",
        "lost-content": r"^POST .*/commit$",
        "quota": r"^PUT .*/content$",
        "guest": r"^\S+ /api/",
    }
    return re.search(place.get(kind, ""), line) is not None


def flipped(block, before, at):
    """Returns a block that begins after `before` bytes, with byte `at` of all made wrong if it is in it."""
    if at is None or not before <= at < before + len(block):
        return block
    place = at - before
    return block[:place] + bytes([block[place] ^ 1]) + block[place + 1 :]


def spoilt(blocks, at):
    before = 0
    for block in blocks:
        yield flipped(block, before, at)
        before += len(block)
