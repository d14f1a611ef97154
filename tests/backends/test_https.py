"""The https backend against a real server that misbehaves: rows F2 and F3 of the attack cases, and plain use."""

import contextlib
import itertools
import logging
import random
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.httpd import Authority, Expired, OtherName, Proxy, Server, StaticFile, forget_proxies, servers

from ari_backends import _http
from ari_backends._claims import https_claims
from ari_backends._http import RESUMES
from ari_backends.https import Https, HttpsSettings
from ari_core.conformance import BackendContract
from ari_core.contract import CHUNK, Claim, Visibility
from ari_core.errors import (
    AccessDenied,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    RangeError,
    RateLimited,
    Unavailable,
    Unsupported,
)
from ari_core.plugins import load_plugins

BODY = random.Random(1).randbytes(300_000)
TOKEN = "canary-token-9f2c"  # noqa: S105 - a canary
QUERY = "X-Signature=canary-query-77aa"
SIZE = len(BODY)
CANARIES = (TOKEN, "canary-query-77aa")


@pytest.fixture(autouse=True)
def _no_proxy_of_the_machine(monkeypatch):
    forget_proxies(monkeypatch)


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def serve(authority):
    with servers(authority) as start:
        yield start


@pytest.fixture
def connect(authority):
    """Makes backends that trust our authority, and note how long they would have slept."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            backend = stack.enter_context(
                Https(HttpsSettings(**{"ca_file": authority.file, "token": TOKEN} | options))
            )
            backend.slept = []
            backend._sleep = backend.slept.append
            return backend

        yield make


def read(backend, url, offset=0, piece=CHUNK):
    with backend.open(backend.resolve(url), offset) as stream:
        return b"".join(iter(lambda: stream.read(piece), b""))


def refused(kind, backend, url, action=read):
    """Checks that `action` raises exactly `kind`, and that nothing it says holds a secret; returns the error."""
    with pytest.raises(kind) as caught:
        action(backend, url)
    assert type(caught.value) is kind
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.hint)
    for canary in CANARIES:
        assert canary not in told
    assert "\n" not in str(caught.value)
    return caught.value


def stat(backend, url):
    return backend.stat(backend.resolve(url))


def methods(server):
    return [request.method for request in server.seen]


# -- refs --------------------------------------------------------------------------------------------------------


def test_a_page_of_a_record_says_how_the_record_itself_is_named(serve, connect):
    page = serve(lambda _request, wire: wire.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"))
    error = refused(Unsupported, connect(), page.url("/records/7"))
    assert error.hint.endswith(f": zenodo+{page.url('/records/7')}")
    assert load_plugins().select(error.hint.rpartition(" ")[2]).name == "zenodo"
    assert read(connect(), page.url("/about")) == b"<html>"  # what it is comes out when it is verified


@pytest.mark.parametrize(
    ("ref", "claim"),
    [
        ("https://example.org/bundle.tar.gz", Claim.SCHEME),
        ("HTTPS://EXAMPLE.ORG/x", Claim.SCHEME),
        ("https://[2001:db8::1]:8443/x", Claim.SCHEME),
        ("https://user:word@example.org/x", Claim.SCHEME),  # refused later, with the reason
        ("http://localhost:8000/x", Claim.SCHEME),
        ("http://127.8.9.1/x", Claim.SCHEME),
        ("http://[::1]:80/x", Claim.SCHEME),
        ("http://example.org/x", Claim.NO),
        ("http://localhost.example.org/x", Claim.NO),
        ("http://127.0.0.1@example.org/x", Claim.NO),
        ("http://127.1/x", Claim.NO),
        ("http://2130706433/x", Claim.NO),
        ("http://[::1", Claim.NO),
        ("http://", Claim.NO),
        ("simplecache::https://example.org/x", Claim.NO),
        ("https://example.org/x::file:///etc/passwd", Claim.NO),
        ("https://example.org/a[::]", Claim.NO),
        ("zip://x::https://example.org/y", Claim.NO),
        ("ftp://example.org/x", Claim.NO),
        ("https:/example.org/x", Claim.NO),
        (" https://example.org/x", Claim.NO),
        ("bundle.tar.gz", Claim.NO),
        ("", Claim.NO),
    ],
)
def test_claims(ref, claim):
    assert https_claims(ref) == claim


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["", "https://", "http://", "http://[", "https://h"]))
def test_claims_never_raises(text, start):
    assert https_claims(start + text) in set(Claim)


def test_declaring_the_backend_loads_no_http_library():
    code = "import sys, ari_backends.plugin; sys.exit('httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("ref", "locator"),
    [
        ("HTTPS://Example.ORG:443/a b/../c?d=%20e#part", "https://example.org/c?d=%20e"),
        ("https://münchen.example/ü", "https://xn--mnchen-3ya.example/%C3%BC"),
        ("https://example.org", "https://example.org"),
    ],
)
def test_resolve_normalises(connect, ref, locator):
    backend = connect()
    assert backend.resolve(ref) == locator
    assert backend.resolve(backend.ref(locator)) == locator


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("https://canary-token-9f2c@example.org/x", "holds a user name or password"),
        ("https://me:canary-token-9f2c@example.org/x", "holds a user name or password"),
        ("http://example.org/x?" + QUERY, "is not https"),
        ("ftp://example.org/x", "is not https"),
        ("https:///x", "names no valid host"),
        ("https://a..b/x", "names no valid host"),
        ("https://" + "a" * 64 + ".org/x", "names no valid host"),
        ("https://a|b/x", "names no valid host"),
        ("https://example.org:0/x", "port that does not exist"),
        ("https://example.org:65536/x", "port that does not exist"),
        ("https://example.org:canary-query-77aa/x", "not a valid URL"),
        ("https://[::1/x", "not a valid URL"),
        ("https://example.org/a\nb", "not a valid URL"),
        ("https://example.org/" + "a" * 70_000, "not a valid URL"),
        ("https://example.org/\ud800", "not a valid URL"),
        ("a" * 5000, "is not https"),
    ],
)
def test_resolve_refuses(connect, ref, says):
    error = refused(InvalidConfiguration, connect(), ref)
    assert says in error.message
    assert len(error.message) < 300


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resolving_again_changes_nothing(connect, text):
    backend = connect()
    with contextlib.suppress(InvalidConfiguration):
        locator = backend.resolve("https://example.org/" + text)
        assert backend.resolve(backend.ref(locator)) == locator


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("500", 500), ("10GB", 10 * 10**9), ("2 GiB", 2 * 2**30), (None, 50 * 2**30)]
)
def test_max_download_spellings(text, size):
    options = {} if text is None else {"max_download": text}
    assert HttpsSettings(**options).max_download == size


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_download": "0"},
        {"max_download": "-1"},
        {"max_download": "much"},
        {"read_timeout": 0},
        {"connect_timeout": -1},
        {"ca_file": "/nowhere/ca.pem"},
        {"token": "two words"},
        {"token": "line\r\nfeed"},
        {"token": ""},
        {"tokens": "x"},
        {"proxy": "h:1"},
        {"proxy": "ftp://h:1"},
        {"proxy": "socks5://h:1"},
        {"proxy": "http://[h"},
        {"proxy": "http://h:port"},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValidationError):
        HttpsSettings(**wrong)


def test_no_secret_in_repr_or_complaint():
    assert TOKEN not in repr(HttpsSettings(token=TOKEN, proxy=f"http://u:{TOKEN}@h:1"))
    for wrong in ({"token": TOKEN + " x"}, {"proxy": f"ftp://u:{TOKEN}@h"}):
        with pytest.raises(ValidationError) as caught:
            HttpsSettings(**wrong)
        assert TOKEN not in str(caught.value)


def test_probe_finds_an_unusable_authority_file(connect, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(InvalidConfiguration, match="trusted authorities") as caught:
        connect(ca_file=tmp_path / "ca.pem").probe()
    assert "ca_file" in caught.value.hint


@pytest.mark.parametrize("proxy", ["ftp://h:1", "socks5://me:canary-token-9f2c@h:1", "http://h:port"])
def test_probe_finds_an_unusable_proxy(connect, monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    error = refused(InvalidConfiguration, connect(), "", lambda backend, _: backend.probe())
    assert "HTTPS_PROXY" in error.hint


# -- plain use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http on loopback"])
@pytest.mark.parametrize("piece", [1000, CHUNK, 10 * CHUNK])
def test_reads_it_all(serve, connect, tls, piece):
    server = serve(StaticFile(BODY), tls=tls)
    assert read(connect(), server.url(), piece=piece) == BODY
    assert methods(server) == ["HEAD", "GET"]


def test_sends_nothing_that_was_not_asked_for(serve, connect):
    server = serve(StaticFile(BODY, headers={"Set-Cookie": "c=1; Path=/"}))
    backend = connect()
    read(backend, server.url(f"/x?{QUERY}"))
    read(backend, server.url("/y"))
    for request in server.seen:
        assert request.headers.pop("user-agent").startswith("ari-registry/")
        assert request.headers.pop("connection") == "keep-alive"
        assert request.headers == {
            "host": f"127.0.0.1:{server.port}",
            "accept": "*/*",
            "accept-encoding": "identity",
            "authorization": f"Bearer {TOKEN}",
        }
    assert {request.target for request in server.seen} == {f"/x?{QUERY}", "/y"}


def test_no_token_no_header(serve, connect):
    server = serve(StaticFile(BODY))
    read(connect(token=None), server.url())
    assert all("authorization" not in request.headers for request in server.seen)


def test_logs_hold_no_query(serve, connect, caplog):
    caplog.set_level(logging.INFO)
    read(connect(), serve(StaticFile(BODY)).url(f"/x?{QUERY}"))
    assert caplog.messages  # the library does log
    assert not any(canary in caplog.text for canary in CANARIES)


def test_stat_claims(serve, connect):
    headers = {"X-ARI-Sha256": "ab" * 32, "X-ARI-Visibility": "unlisted"}
    artifact = stat(connect(), serve(StaticFile(BODY, headers=headers)).url())
    assert (artifact.size, artifact.archive_sha256, artifact.visibility) == (
        SIZE,
        "ab" * 32,
        Visibility.UNLISTED,
    )


@pytest.mark.parametrize("headers", [{}, {"X-ARI-Sha256": "AB" * 32, "X-ARI-Visibility": "secret"}])
def test_stat_leaves_open_what_it_was_not_told(serve, connect, headers):
    artifact = stat(connect(), serve(StaticFile(BODY, headers=headers)).url())
    assert (artifact.archive_sha256, artifact.visibility) == (None, None)


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_head_unwelcome(serve, connect, status):
    file = StaticFile(BODY)

    def respond(request, wire):
        wire.send(
            f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n".encode()
        ) if request.method == "HEAD" else file(request, wire)

    server = serve(respond)
    backend = connect()
    assert stat(backend, server.url()).size == SIZE
    assert read(backend, server.url()) == BODY
    assert methods(server) == ["HEAD", "GET", "GET"]


def test_head_that_always_says_zero(serve, connect):
    file = StaticFile(BODY)

    def respond(request, wire):
        wire.answer(200) if request.method == "HEAD" else file(request, wire)

    assert read(connect(), serve(respond).url()) == BODY


def test_one_head_for_questions_in_a_row(serve, connect):
    server = serve(StaticFile(BODY))
    backend = connect()
    now = [0.0]
    backend._clock = lambda: now[0]
    stat(backend, server.url())
    stat(backend, server.url())
    read(backend, server.url())
    assert methods(server) == ["HEAD", "GET"]
    now[0] = _http.FRESH
    stat(backend, server.url())
    assert methods(server) == ["HEAD", "GET", "HEAD"]


def test_memory_of_stats_is_bounded(serve, connect):
    server = serve(StaticFile(BODY))
    backend = connect()
    for number in range(100):
        stat(backend, server.url(f"/{number}"))
    assert len(backend._seen) == 64
    assert backend.resolve(server.url("/99")) in backend._seen


def test_several_threads(serve, connect):
    server = serve(StaticFile(BODY))
    backend = connect()
    results = {}

    def run(number):
        results[number] = read(backend, server.url(f"/{number}"), offset=number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: BODY[number:] for number in range(8)}


def test_close_twice_and_use_again(serve, connect):
    server = serve(StaticFile(BODY))
    backend = connect()
    assert stat(backend, server.url()).size == SIZE
    backend.close()
    backend.close()
    assert read(backend, server.url()) == BODY


def test_leaving_early_closes_the_connection(serve, connect):
    gone = threading.Event()

    def respond(request, wire):
        if request.method == "HEAD":
            StaticFile(BODY)(request, wire)
            return
        wire.send(b"HTTP/1.1 200 -\r\nContent-Length: 300000\r\n\r\n" + BODY[:10])
        wire.hang()
        gone.set()

    backend = connect()
    with backend.open(backend.resolve(serve(respond).url())) as stream:
        assert stream.read(10) == BODY[:10]
    assert gone.wait(10)


# -- ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 65536, SIZE - 1, SIZE])
@pytest.mark.parametrize(
    "file",
    [
        StaticFile(BODY),
        StaticFile(BODY, etag=None),
        StaticFile(BODY, ranges=False),
        StaticFile(BODY, ranges=False, announce=None, etag=None),
    ],
    ids=["ranges", "ranges without etag", "announced ranges that are ignored", "no ranges"],
)
def test_open_in_the_middle(serve, connect, file, offset):
    assert read(connect(), serve(file).url(), offset) == BODY[offset:]


def test_range_asks_for_the_object_that_was_seen(serve, connect):
    server = serve(StaticFile(BODY))
    read(connect(), server.url(), 1000)
    assert server.seen[-1].headers["range"] == "bytes=1000-"
    assert server.seen[-1].headers["if-range"] == '"v1"'


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_offset_past_the_end(serve, connect, ranges, known):
    file = StaticFile(BODY, ranges=ranges)

    def respond(request, wire):
        if request.method == "HEAD" and not known:
            wire.chunked({}, b"", end=False)
        elif not ranges and not known:
            wire.chunked({}, BODY)
        else:
            file(request, wire)

    refused(RangeError, connect(), serve(respond).url(), lambda b, u: read(b, u, SIZE + 1))


def test_offset_at_the_end_of_unknown_size(serve, connect):
    file = StaticFile(BODY)

    def respond(request, wire):
        wire.chunked({}, b"", end=False) if request.method == "HEAD" else file(request, wire)

    assert read(connect(), serve(respond).url(), SIZE) == b""


# -- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("cuts", [[0], [1], [SIZE - 1], [65536], [0, 0, 0], [70_000, 1, 100_000, 0, 5]], ids=str)
def test_resumes_where_it_was_cut(serve, connect, tls, reset, cuts):
    file = StaticFile(BODY, cuts=list(cuts), reset=reset)
    server = serve(file, tls=tls)
    backend = connect()
    assert read(backend, server.url()) == BODY
    assert file.gets == len(cuts) + 1
    assert len(backend.slept) == len(cuts)
    for request in server.seen[2:]:
        if "range" in request.headers:
            assert request.headers["if-range"] == '"v1"'
    if not reset:  # a reset may also destroy what was sent before it
        starts = [0, *itertools.accumulate(cuts)]
        asked = [request.headers.get("range", "bytes=0-") for request in server.seen[1:]]
        assert asked == [f"bytes={start}-" for start in starts]


@given(
    cuts=st.lists(st.integers(0, 40_000), max_size=RESUMES),
    offset=st.integers(0, 1000),
    piece=st.sampled_from([999, CHUNK]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cuts(serve, connect, cuts, offset, piece):
    assert read(connect(), serve(StaticFile(BODY, cuts=cuts), tls=False).url(), offset, piece) == BODY[offset:]


def test_gives_up_after_some_resumes_without_progress(serve, connect):
    file = StaticFile(BODY, cuts=[1] * 100)
    backend = connect()
    error = refused(Unavailable, backend, serve(file).url(f"/x?{QUERY}"))
    assert error.message.endswith(f"the connection was cut after {RESUMES + 1} of {SIZE} bytes")
    assert file.gets == RESUMES + 1
    assert backend.slept == [0.5, 1, 2, 4, 8]


def test_progress_earns_more_resumes(serve, connect, monkeypatch):
    monkeypatch.setattr(_http, "REFILL", 10_000)
    file = StaticFile(BODY, cuts=[20_000] * 14)
    backend = connect()
    assert read(backend, serve(file).url()) == BODY
    assert backend.slept == [0.5] * 14


@pytest.mark.parametrize(
    ("etag", "announce"), [(None, "bytes"), ('W/"v1"', "bytes"), ("v1", "bytes"), ('"v1"', None), ('"v1"', "none")]
)
def test_no_resume_without_proof(serve, connect, etag, announce):
    file = StaticFile(BODY, etag=etag, announce=announce, cuts=[100_000])
    refused(Unavailable, connect(), serve(file).url())
    assert file.gets == 1


def test_resumes_behind_an_end_that_came_early(serve, connect):
    file = StaticFile(BODY)

    def respond(request, wire):
        if request.method == "HEAD" or "range" in request.headers:
            file(request, wire)
        else:
            wire.chunked({"ETag": '"v1"', "Accept-Ranges": "bytes"}, BODY[:1000])

    assert read(connect(), serve(respond).url()) == BODY


def second_get(answer, file=None):
    """A responder whose first GET is cut after 1000 bytes; `answer` gives the second one."""
    file = file or StaticFile(BODY, cuts=[1000])
    gets = []

    def respond(request, wire):
        gets.append(request.method == "GET")
        if request.method == "GET" and sum(gets) == 2:
            answer(wire)
        else:
            file(request, wire)

    return respond


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_resumes_past_a_server_in_trouble(serve, connect, status):
    backend = connect()
    assert read(backend, serve(second_get(lambda wire: wire.answer(status))).url()) == BODY
    assert backend.slept == [0.5, 1]


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (403, AccessDenied), (429, RateLimited), (400, Unsupported)]
)
def test_resume_that_is_refused(serve, connect, status, kind):
    server = serve(second_get(lambda wire: wire.answer(status)))
    refused(kind, connect(), server.url())
    assert methods(server) == ["HEAD", "GET", "GET"]


def partial(first=1000, last=SIZE - 1, total=SIZE, body=None, **headers):
    body = BODY[first:] if body is None else body
    fields = {"ETag": '"v1"', "Content-Range": f"bytes {first}-{last}/{total}", **headers}
    return lambda wire: wire.answer(206, {k: v for k, v in fields.items() if v is not None}, body)


MULTIPART = {"Content-Range": None, "Content-Type": "multipart/byteranges; boundary=x"}
OTHER = BODY[:1000] + bytes(SIZE - 1000)


@pytest.mark.parametrize(
    "answer",
    [
        partial(first=999),
        partial(first=1001),
        partial(last=SIZE - 2, body=BODY[1000:-1]),
        partial(last=SIZE),
        partial(last=SIZE, total=SIZE + 1, body=BODY[1000:] + b"x"),
        partial(last=SIZE - 2, total=SIZE - 1, body=BODY[1000:-1]),
        partial(total="*"),
        partial(ETag='"v2"'),
        partial(ETag='W/"v1"'),
        partial(ETag=None),
        partial(**{"Content-Range": None}),
        partial(**{"Content-Range": "bytes 1000-"}),
        partial(**{"Content-Range": f"items 1000-{SIZE - 1}/{SIZE}"}),
        partial(**{"Content-Range": f"bytes 1000-{SIZE - 1}/{SIZE}" + "0" * 5000}),
        partial(**{"Content-Encoding": "gzip"}),
        partial(**MULTIPART),
        lambda wire: wire.answer(200, {"ETag": '"v2"'}, OTHER),
        lambda wire: wire.answer(200, {}, OTHER),
        lambda wire: wire.answer(200, {"ETag": '"v1"'}, BODY[:-1]),
        lambda wire: wire.answer(200, {"ETag": '"v1"'}, BODY + b"x"),
        lambda wire: wire.answer(416, {"Content-Range": "bytes */1000"}),
        lambda wire: wire.answer(416, {}),
    ],
    ids=[
        "starts before",
        "starts behind",
        "ends before",
        "ends behind",
        "longer",
        "shorter",
        "total unknown",
        "other etag",
        "weak etag",
        "no etag",
        "no range",
        "half a range",
        "other unit",
        "absurd total",
        "encoded",
        "multipart",
        "other object whole",
        "unknown object whole",
        "shorter whole",
        "longer whole",
        "not satisfiable any more",
        "not satisfiable",
    ],
)
def test_f2_another_object_on_resume(serve, connect, answer):
    server = serve(second_get(answer))
    refused(IntegrityError, connect(), server.url(f"/x?{QUERY}"))
    assert methods(server) == ["HEAD", "GET", "GET"]


def test_f2_starts_over_when_the_range_is_ignored(serve, connect):
    file = StaticFile(BODY, ranges=False, cuts=[1000])
    server = serve(file)
    assert read(connect(), server.url()) == BODY
    assert file.gets == 2


def test_f2_starts_over_only_once(serve, connect):
    file = StaticFile(BODY, ranges=False, cuts=[1000, 2000, 3000])
    refused(Unavailable, connect(), serve(file).url())
    assert file.gets == 2


def test_cut_behind_the_last_byte_of_unknown_size(serve, connect):
    file = StaticFile(BODY)

    def respond(request, wire):
        if request.method == "HEAD":
            wire.chunked({}, b"", end=False)
        elif "range" in request.headers:
            file(request, wire)
        else:
            wire.chunked({"ETag": '"v1"', "Accept-Ranges": "bytes"}, BODY, end=False)

    server = serve(respond)
    assert read(connect(), server.url()) == BODY
    assert methods(server) == ["HEAD", "GET", "GET"]


def test_cut_behind_the_last_byte_of_known_size(serve, connect):
    def respond(request, wire):
        if request.method == "HEAD":
            StaticFile(BODY)(request, wire)
        else:
            wire.chunked({}, BODY, end=False)

    assert read(connect(), serve(respond).url()) == BODY


# -- F2: wrong from the start ------------------------------------------------------------------------------------


def get_with(answer):
    """A responder with a proper HEAD, and `answer` for each GET."""
    file = StaticFile(BODY)
    return lambda request, wire: file(request, wire) if request.method == "HEAD" else answer(wire)


def raw(text, body=b""):
    return lambda wire: wire.send(text.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


F2 = {
    "cut, no validator": (
        Unavailable,
        raw(f"HTTP/1.1 200 -\nContent-Length: {SIZE}", BODY[:-1]),
    ),
    "closed early, no length": (Unavailable, raw("HTTP/1.1 200 -", BODY[:-1])),
    "closed late, no length": (IntegrityError, raw("HTTP/1.1 200 -", BODY + b"x")),
    "chunked, fewer": (Unavailable, lambda wire: wire.chunked({}, BODY[:-1])),
    "chunked, more": (IntegrityError, lambda wire: wire.chunked({}, BODY + b"x")),
    "shorter than HEAD said": (IntegrityError, lambda wire: wire.answer(200, {}, BODY[:-1])),
    "longer than HEAD said": (IntegrityError, lambda wire: wire.answer(200, {}, BODY + b"x")),
    "other etag than HEAD": (IntegrityError, lambda wire: wire.answer(200, {"ETag": '"v2"'}, BODY)),
    "gzip": (IntegrityError, lambda wire: wire.answer(200, {"Content-Encoding": "gzip"}, BODY)),
    "x-gzip": (IntegrityError, lambda wire: wire.answer(200, {"Content-Encoding": "x-gzip"}, BODY)),
    "two encodings": (IntegrityError, lambda wire: wire.answer(200, {"Content-Encoding": "identity, br"}, BODY)),
    "escape sequence as encoding": (
        IntegrityError,
        lambda wire: wire.answer(200, {"Content-Encoding": "\x80]0;x"}, BODY),
    ),
    "gzip as transfer encoding": (
        Unavailable,
        raw("HTTP/1.1 200 -\nTransfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    ),
    "two lengths": (
        Unavailable,
        raw(f"HTTP/1.1 200 -\nContent-Length: {SIZE}\nContent-Length: 5", BODY),
    ),
    "negative length": (Unavailable, raw("HTTP/1.1 200 -\nContent-Length: -5", BODY)),
    "absurd length": (Unavailable, raw("HTTP/1.1 200 -\nContent-Length: " + "9" * 5000, BODY)),
    "a part for the whole": (
        IntegrityError,
        lambda wire: wire.answer(206, {"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"}, BODY),
    ),
    "not HTTP": (Unavailable, lambda wire: wire.send(b"\x1b[31mSSH-2.0\r\n\r\n")),
    "nothing": (Unavailable, lambda wire: None),
    "endless headers": (Unavailable, raw("HTTP/1.1 200 -\n" + "X: " + "y" * 200_000)),
}


@pytest.mark.parametrize("case", F2)
def test_f2_wrong_answer(serve, connect, case):
    kind, answer = F2[case]
    server = serve(get_with(answer))
    error = refused(kind, connect(), server.url(f"/x?{QUERY}"))
    assert error.message.isprintable()
    assert methods(server) == ["HEAD", "GET"]


def test_f2_bytes_behind_the_announced_end_are_not_read(serve, connect):
    server = serve(get_with(raw(f"HTTP/1.1 200 -\nContent-Length: {SIZE}", BODY + b"more")))
    assert read(connect(), server.url()) == BODY


def test_f2_encoded_head(serve, connect):
    server = serve(StaticFile(BODY, headers={"Content-Encoding": "gzip"}))
    refused(IntegrityError, connect(), server.url(), stat)


def test_http_1_0_without_length(serve, connect):
    def respond(request, wire):
        wire.send(b"HTTP/1.0 200 OK\r\n\r\n" + (BODY if request.method == "GET" else b""))

    assert read(connect(), serve(respond).url()) == BODY


# -- F3: redirects -----------------------------------------------------------------------------------------------


def redirects(*targets, status=302):
    """A responder that sends its n-th path on to the n-th target, and serves the file elsewhere."""
    file = StaticFile(BODY)

    def respond(request, wire):
        path = request.target.partition("?")[0]
        number = int(path[2:]) if path.startswith("/r") else len(targets)
        if number < len(targets):
            wire.redirect(targets[number], status)
        else:
            file(request, wire)

    return respond


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_f3_redirect_on_the_same_origin_keeps_the_token(serve, connect, status):
    server = serve(redirects("/r1", "r2?q=1", "/x", status=status))
    backend = connect()
    assert read(backend, server.url("/r0")) == BODY
    assert backend.ref(backend.resolve(server.url("/r0"))) == server.url("/r0")
    assert {request.headers["authorization"] for request in server.seen} == {f"Bearer {TOKEN}"}
    assert methods(server) == ["HEAD"] * 4 + ["GET"] * 4


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_f3_nothing_secret_reaches_another_origin(serve, connect, host, tls):
    other = serve(StaticFile(BODY), host=host, tls=tls)

    def respond(request, wire):
        wire.answer(307, {"Location": other.url(f"/y?{QUERY}"), "Set-Cookie": f"c={TOKEN}; Path=/"})

    first = serve(respond, tls=tls)
    assert read(connect(), first.url()) == BODY
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in first.seen)
    assert methods(other) == ["HEAD", "GET"]
    for request in other.seen:
        assert TOKEN.encode() not in request.raw
        assert set(request.headers) == {"host", "accept", "accept-encoding", "connection", "user-agent"}


def test_f3_same_host_and_port_by_another_name_is_another_origin(serve, connect):
    server = serve(lambda request, wire: file(request, wire) if request.target == "/y" else wire.redirect(target))
    file, target = StaticFile(BODY), f"https://localhost:{server.port}/y"
    assert read(connect(), server.url()) == BODY
    assert {request.target: "authorization" in request.headers for request in server.seen} == {
        "/bundle.tar.gz": True,
        "/y": False,
    }


def test_f3_the_way_back_gets_no_token(serve, connect):
    other = serve(lambda request, wire: wire.redirect(first.url("/x")))
    file = StaticFile(BODY)
    first = serve(
        lambda request, wire: file(request, wire) if request.target == "/x" else wire.redirect(other.url())
    )
    assert read(connect(), first.url("/start")) == BODY
    sent = {request.target: "authorization" in request.headers for request in first.seen}
    assert sent == {"/start": True, "/x": False}


def test_f3_a_resume_asks_the_first_origin_again(serve, connect):
    other = serve(StaticFile(BODY, cuts=[1000, 1000]))
    first = serve(lambda request, wire: wire.redirect(other.url()))
    assert read(connect(), first.url()) == BODY
    assert methods(first) == ["HEAD", "GET", "GET", "GET"]
    assert all(TOKEN.encode() not in request.raw for request in other.seen)


def test_presigned_elsewhere_with_an_etag_of_its_own(serve, connect):
    """A registry answers HEAD itself and sends GET to a store that signs for GET only."""
    file = StaticFile(BODY, etag='"md5-of-the-store"', cuts=[1000])
    store = serve(file)
    registry = StaticFile(BODY, etag='"digest-of-the-registry"')

    def respond(request, wire):
        if request.method == "HEAD":
            registry(request, wire)
        else:
            wire.redirect(store.url(f"/k?{QUERY}{file.gets}"), 307)

    assert read(connect(), serve(respond).url()) == BODY
    assert [request.headers.get("if-range") for request in store.seen] == [None, '"md5-of-the-store"']


def test_f3_third_hop_is_the_last(serve, connect):
    assert read(connect(), serve(redirects("/r1", "/r2", "/x")).url("/r0")) == BODY
    server = serve(redirects("/r1", "/r2", "/r3", "/x"))
    error = refused(IntegrityError, connect(), server.url("/r0"))
    assert "more than 3 redirects" in error.message
    assert len(server.seen) == 4


@pytest.mark.parametrize("targets", [["/r0"], ["/r1", "/r0"], ["/r1", "/r2", "/r1"]], ids=len)
def test_f3_loop(serve, connect, targets):
    server = serve(redirects(*targets))
    assert "in a circle" in refused(IntegrityError, connect(), server.url("/r0")).message
    assert len(server.seen) == len(targets)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/x?" + QUERY,
        "http://localhost:{port}/x?" + QUERY,
        "http://example.org/x?" + QUERY,
        "file:///etc/passwd?" + QUERY,
        "ftp://127.0.0.1:{port}/x",
        "data:text/plain,x",
        "simplecache::file:///etc/passwd",
        "https://canary-token-9f2c@127.0.0.1:{port}/x",
        "https://me:canary-token-9f2c@127.0.0.1:{port}/x",
        "https://a..b/x",
        "https://127.0.0.1:99999/x",
        "https://[::1/" + QUERY,
        "https://127.0.0.1:canary-query-77aa/",
        "//canary-token-9f2c@127.0.0.1:{port}/",
    ],
)
def test_f3_off_policy(serve, connect, location):
    bait = serve(StaticFile(BODY), tls=False)
    server = serve(lambda request, wire: wire.redirect(location.format(port=bait.port)))
    error = refused(IntegrityError, connect(), server.url())
    assert "the server redirects to" in error.message
    assert len(server.seen) == 1
    assert not bait.seen


def test_f3_http_leads_to_loopback_or_https_only(serve, connect):
    encrypted = serve(StaticFile(BODY))
    assert read(connect(), serve(redirects(encrypted.url()), tls=False).url("/r0")) == BODY
    plain = serve(redirects("http://example.org/x"), tls=False)
    refused(IntegrityError, connect(), plain.url("/r0"))


@pytest.mark.parametrize("headers", [{}, {"Location": ""}])
@pytest.mark.parametrize("status", [300, 304, 305])
def test_other_3xx_are_not_followed(serve, connect, status, headers):
    server = serve(lambda request, wire: wire.answer(status, headers))
    refused(Unsupported, connect(), server.url())
    assert len(server.seen) == 1


# -- what a status means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [read, stat])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (201, Unsupported),
        (204, Unsupported),
        (302, Unsupported),  # without a Location
        (400, Unsupported),
        (401, AccessDenied),
        (402, Unsupported),
        (403, AccessDenied),
        (404, NotFound),
        (406, Unsupported),
        (407, AccessDenied),
        (408, Unavailable),
        (410, NotFound),
        (416, RangeError),
        (418, Unsupported),
        (425, Unavailable),
        (429, RateLimited),
        (451, Unsupported),
        (499, Unsupported),
        (500, Unavailable),
        (501, Unavailable),
        (503, Unavailable),
        (599, Unavailable),
    ],
)
def test_status(serve, connect, status, kind, action):
    server = serve(lambda request, wire: wire.answer(status, {}, b""))
    error = refused(kind, connect(), server.url(f"/x?{QUERY}"), action)
    assert error.message.startswith(server.url("/x") + ": ")
    assert error.backend == "https"


def test_deleted_is_said(serve, connect):
    server = serve(lambda request, wire: wire.answer(410))
    assert "deleted" in refused(NotFound, connect(), server.url()).message


def test_refusal_elsewhere_names_the_place_and_not_the_key(serve, connect):
    other = serve(lambda request, wire: wire.answer(403))
    error = refused(
        AccessDenied, connect(), serve(lambda request, wire: wire.redirect(other.url(f"/k?{QUERY}"))).url()
    )
    assert f"(redirected to {other.origin})" in error.message
    assert "token" not in error.hint  # it has seen none


def test_retry_after(serve, connect):
    values = {
        "7": 7.0,
        "0": 0.0,
        format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True): 0.0,
        "": None,
        "soon": None,
        "-3": None,
        "9" * 400: None,
        "Mon, 99 Foo 2024 00:00:00 GMT": None,
    }
    asked = iter(values)
    server = serve(lambda request, wire: wire.answer(429, {"Retry-After": next(asked)}))
    backend = connect()
    found = {text: refused(RateLimited, backend, server.url(), stat).retry_after for text in values}
    assert found == values
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < _http.retry_after(later) <= 3600


# -- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [SIZE, SIZE + 1])
@pytest.mark.parametrize("offset", [0, 1000])
def test_just_inside_max_download(serve, connect, limit, offset):
    assert read(connect(max_download=limit), serve(StaticFile(BODY)).url(), offset) == BODY[offset:]


@pytest.mark.parametrize("offset", [0, SIZE - 10])
def test_max_download_by_announcement(serve, connect, offset):
    def only_open(backend, url):
        with backend.open(backend.resolve(url), offset):
            pass

    error = refused(IntegrityError, connect(max_download=SIZE - 1), serve(StaticFile(BODY)).url(), only_open)
    assert str(SIZE - 1) in error.message
    assert "max_download" in error.hint


def test_max_download_by_counting(serve, connect):
    hung_up = threading.Event()

    def respond(request, wire):
        wire.chunked({}, b"", end=False)
        if request.method == "GET":
            try:
                for _ in range(1000):
                    wire.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            except OSError:
                hung_up.set()

    got = []

    def action(backend, url):
        with backend.open(backend.resolve(url)) as stream:
            while data := stream.read(CHUNK):
                got.append(len(data))

    refused(IntegrityError, connect(max_download="1MB"), serve(respond).url(), action)
    assert sum(got) <= 1_000_000
    assert hung_up.wait(10)


@pytest.mark.parametrize("when", ["headers", "body"])
def test_silence_ends_in_unavailable(serve, connect, when):
    def respond(request, wire):
        if when == "body":
            wire.send(
                b"HTTP/1.1 200 -\r\nContent-Length: 10\r\n\r\n" + (b"12" if request.method == "GET" else b"")
            )
            if request.method == "HEAD":
                wire.keep = True
                return
        wire.hang()

    error = refused(Unavailable, connect(read_timeout=0.2), serve(respond).url(f"/x?{QUERY}"))
    if when == "headers":
        assert "nothing received for 0.2 s" in error.message


def test_timeouts_reach_the_library(connect):
    timeout = connect(read_timeout=7, connect_timeout=3)._fetcher.client().timeout
    assert (timeout.read, timeout.connect) == (7, 3)


def test_nobody_listens(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "[::1]"):
        error = refused(Unavailable, connect(), f"https://{host}:{port}/x?{QUERY}")
        assert error.message.startswith(f"https://{host}:{port}: ")
        assert "Errno" not in error.message


def test_unknown_host(connect, monkeypatch):
    def unknown(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused(Unavailable, connect(), f"https://host.invalid/x?{QUERY}")
    assert error.message == "https://host.invalid: Name or service not known"


# -- certificates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "hint"), [(Authority, "ca_file"), (OtherName, "the name"), (Expired, "to renew it")]
)
def test_certificate_that_does_not_fit(tmp_path, authority, connect, theirs, hint):
    theirs = theirs(tmp_path)
    trusted = authority if type(theirs) is Authority else theirs
    with Server(StaticFile(BODY), authority=theirs) as server:
        error = refused(InvalidConfiguration, connect(ca_file=trusted.file), server.url(f"/x?{QUERY}"))
        assert not server.seen
    assert "certificate is not trusted" in error.message
    assert hint in error.hint


def test_a_server_that_wants_a_certificate_of_ours_is_not_asked_again(authority, connect):
    class Strict(Authority):
        def __init__(self):
            pass

        def server_context(self):
            context = authority.server_context()
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authority.file)
            return context

    with Server(StaticFile(BODY), authority=Strict()) as server:
        error = refused(InvalidConfiguration, connect(), server.url())
    assert "CERTIFICATE_REQUIRED" in error.message


def test_system_authorities_by_default(serve, connect):
    server = serve(StaticFile(BODY))
    refused(InvalidConfiguration, connect(ca_file=None), server.url())
    assert not server.seen


def test_certificate_that_changes_before_a_resume(serve, connect, tmp_path):
    server = serve(StaticFile(BODY, cuts=[1000]))
    backend = connect()
    with backend.open(backend.resolve(server.url())) as stream:
        server._tls = Authority(tmp_path).server_context()
        with pytest.raises(InvalidConfiguration):
            stream.read(SIZE)
    assert backend.slept == [0.5]


def test_plain_server_behind_https(serve, connect):
    class Plain(Server):
        def handle(self, sock):
            sock.recv(10)
            sock.sendall(b"HTTP/1.1 400 -\r\n\r\n")
            return False

    with Plain(None) as server:
        error = refused(InvalidConfiguration, connect(), server.url().replace("http:", "https:"))
    assert "not https" in error.message
    assert "http:// goes to this very machine only" in error.hint


def test_no_handshake_in_time(serve, connect):
    server = serve(StaticFile(BODY), tls=False)
    error = refused(Unavailable, connect(connect_timeout=0.2), server.url().replace("http:", "https:"))
    assert "no connection within 0.2 s" in error.message
    assert not server.seen


# -- proxies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_https_goes_through_the_proxy(serve, connect, monkeypatch, how):
    server = serve(StaticFile(BODY))
    with Proxy() as proxy:
        if how == "environment":
            monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
        backend = connect(proxy=proxy.origin if how == "setting" else None)
        assert read(backend, f"https://example.test:{server.port}/x?{QUERY}") == BODY
        backend.close()
    assert {(request.method, request.target) for request in proxy.seen} == {
        ("CONNECT", f"example.test:{server.port}")
    }
    for request in proxy.seen:
        assert not any(canary.encode() in request.raw for canary in CANARIES)


def test_no_proxy(serve, connect, monkeypatch):
    server = serve(StaticFile(BODY))
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert read(connect(), server.url()) == BODY
    assert not proxy.seen


@pytest.mark.parametrize("how", ["setting", "HTTP_PROXY", "ALL_PROXY"])
def test_loopback_http_never_goes_through_a_proxy(serve, connect, monkeypatch, how):
    server = serve(StaticFile(BODY), tls=False)
    with Proxy() as proxy:
        if how != "setting":
            monkeypatch.setenv(how.lower(), proxy.origin)
        assert read(connect(proxy=proxy.origin if how == "setting" else None), server.url()) == BODY
    assert not proxy.seen


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_a_proxy_that_cannot_be_reached_is_named(connect, monkeypatch, how):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    address = f"http://me:{TOKEN}@{place}"
    if how == "environment":
        monkeypatch.setenv("HTTPS_PROXY", address)
    backend = connect(proxy=address if how == "setting" else None)
    error = refused(Unavailable, backend, f"https://example.test/x?{QUERY}")
    assert error.message == f"https://example.test, through the proxy {place}: Connection refused"


def test_proxy_that_refuses(serve, connect):
    server = serve(StaticFile(BODY))
    with Proxy() as proxy:
        proxy.refuse = 407
        address = proxy.origin.replace("//", f"//me:{TOKEN}@")
        error = refused(Unavailable, connect(proxy=address), server.url(f"/x?{QUERY}"))
        assert (
            f", through the proxy {proxy.origin.removeprefix('http://')}: the proxy refuses: 407" in error.message
        )
    assert not server.seen


# -- what every backend owes -------------------------------------------------------------------------------------


class Shelf:
    """A responder with a file for each path, which can be made to fail."""

    def __init__(self):
        self.files = {}
        self.trouble = None

    def __call__(self, request, wire):
        file = self.files.get(request.target)
        trouble = {"open": "GET", "stat": "HEAD"}.get(self.trouble, "")
        if self.trouble == "denied":
            wire.answer(401)
        elif file is None:
            wire.answer(404)
        elif request.method == trouble:
            wire.answer(503)
        elif self.trouble == "read" and request.method == "GET":
            StaticFile(file, etag=None, cuts=[len(file) // 2])(request, wire)
        else:
            StaticFile(file)(request, wire)


class TestConformance(BackendContract):
    @pytest.fixture
    def shelf(self):
        return Shelf()

    @pytest.fixture
    def server(self, serve, shelf):
        return serve(shelf, tls=False)

    @pytest.fixture
    def backend(self, connect, server, shelf):
        backend = connect(proxy="http://me:another-secret@127.0.0.1:9")
        backend.place, backend.shelf = server.url, shelf
        return backend

    def seed(self, backend, bundle):
        path = f"/artifact/{bundle.archive_sha256}"
        backend.shelf.files[path] = bundle.archive
        return backend.resolve(backend.place(path))

    def absent(self, backend):
        return backend.resolve(backend.place("/artifact/none"))

    def raw_corrupt(self, backend, locator):
        ((path, archive),) = backend.shelf.files.items()
        backend.shelf.files[path] = archive[:-1] + bytes([archive[-1] ^ 1])

    @contextlib.contextmanager
    def break_store(self, backend, step):
        backend.shelf.trouble = step
        yield
        backend.shelf.trouble = None


@pytest.mark.parametrize("text", ["Mon, 01 Jan 2024 00:00:00 +99999999999999999", "soon", "-1", "9" * 400])
def test_an_impossible_retry_after_is_no_crash(text):
    from ari_backends._http import retry_after

    assert retry_after(text) in {None, float("inf")}
