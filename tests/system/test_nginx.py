"""scripts/registry/nginx.conf, that very file with other addresses, in nginx in front of the real server."""

import contextlib
import json
import os
import re
import time
from email.utils import formatdate

import httpx2
import pytest
from support.httpd import Server, StaticFile
from support.nginx import CONF, Nginx
from support.registry import LEVELS, Registry, Sample, bearer, eventually, free_port

from ari_server.config import load_config

pytestmark = pytest.mark.needs("nginx")

HASTY = {
    "client_header_timeout 20s": "client_header_timeout 2s",
    "client_body_timeout 60s": "client_body_timeout 2s",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A server that sends its bundles itself."""
    with Registry(tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory):
    """A server that lets nginx send them."""
    environment = {"ARI_REGISTRY_ACCEL": "/_artifacts"}
    with Registry(tmp_path_factory.mktemp("accelerated"), env=environment) as server:
        yield server


def nginx(folder, registry, **changes):
    return Nginx(folder / "nginx", registry.port, artifacts=registry.data / "artifacts", changes=changes)


@pytest.fixture(scope="module")
def before_plain(plain, tmp_path_factory):
    with nginx(tmp_path_factory.mktemp("proxy"), plain) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def before_accelerated(accelerated, tmp_path_factory):
    with nginx(tmp_path_factory.mktemp("proxy"), accelerated) as proxy:
        yield proxy


@pytest.fixture(params=["plain", "accelerated"])
def pair(request):
    """A server, and nginx in front of it."""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"before_{request.param}")


def upload(proxy, sample, token, **headers):
    headers = {"Content-Type": "application/gzip", **bearer(token), **headers}
    return proxy.http.post("/artifact", content=sample.data, headers=headers)


def problem(answer, status):
    """The detail of an error that is one as everywhere in the API."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    body = answer.json()
    assert body["status"] == status
    return body["detail"]


class TestTransfer:
    def test_upload_promotion_and_download(self, pair):
        server, proxy = pair
        sample, token = Sample.noise(3_000_000), server.token("alice")
        assert upload(proxy, sample, token).json()["id"] == sample.id
        assert proxy.http.get(sample.path, headers=bearer(token)).content == sample.data
        assert problem(proxy.http.get(sample.path), 401)
        for level in LEVELS[1:]:
            done = proxy.http.post(f"{sample.path}/promote", params={"target": level}, headers=bearer(token))
            assert done.json()["visibility"] == level
        assert proxy.http.get(sample.path).content == sample.data
        assert proxy.http.get(f"{sample.path}/manifest.lock").content == sample.manifest

    SAID = (
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-length",
        "content-range",
        "content-security-policy",
        "content-type",
        "etag",
        "last-modified",
        "referrer-policy",
        "repr-digest",
        "x-ari-sha256",
        "x-ari-visibility",
        "x-content-type-options",
    )

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Range": "bytes=0-0"},
            {"Range": "bytes=1000-"},
            {"Range": "bytes=-7"},
            {"Range": "bytes=999999999-"},
            {"Range": "bytes=0-1,5-6"},
            {"Range": "bytes=6-5"},
            {"Range": "bytes=-0"},
            {"Range": "lines=1-2"},
            {"Range": "bytes=5-6", "If-Match": "ETAG"},
            {"Range": "bytes=5-6", "If-Range": "ETAG"},
            {"Range": "bytes=5-6", "If-Range": '"stale"'},
            {"If-None-Match": "ETAG"},
            {"If-None-Match": '"other"'},
            {"If-Modified-Since": "TIME"},
        ],
        ids=lambda headers: ",".join(map(str, headers.values())) or "whole",
    )
    def test_every_answer_is_what_the_server_itself_would_say(
        self, shared, plain, before_plain, accelerated, before_accelerated, method, headers
    ):
        etag = plain.head(shared.path).headers["ETag"]
        stored = accelerated.data / "artifacts" / shared.id / "bundle.tar.gz"
        modified = formatdate(stored.stat().st_mtime, usegmt=True)
        headers = {name: value.replace("ETAG", etag).replace("TIME", modified) for name, value in headers.items()}

        def said(client):
            answer = client.request(method, shared.path, headers=headers)
            body = answer.content if answer.status_code in (200, 206) else b""
            found = {name: answer.headers.get_list(name) for name in self.SAID}
            if answer.status_code == 206:  # which says it by itself; nginx leaves it out
                del found["accept-ranges"]
            return answer.status_code, found, body

        expected = said(plain.http)
        assert said(before_plain.http) == expected
        assert said(before_accelerated.http) == expected

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, plain, accelerated):
        """A public sample that both of them have."""
        sample = Sample.noise(100_000)
        for server in (plain, accelerated):
            server.store(sample, server.token("bob"), "public")
        return sample

    def test_the_folder_behind_is_reached_through_the_server_only(self, accelerated, before_accelerated):
        staged = accelerated.store(Sample.new(), accelerated.token("carol"))
        inside = f"/_artifacts/{staged.id}/bundle.tar.gz"
        assert (accelerated.data / "artifacts" / staged.id / "bundle.tar.gz").read_bytes() == staged.data
        for path in (
            inside,
            f"/_artifacts/../_artifacts/{staged.id}/bundle.tar.gz",
            f"/{inside}",
            "/%5fartifacts/",
        ):
            assert before_accelerated.http.get(path).status_code in (400, 404)

    def test_a_refusal_arrives_while_the_upload_is_still_being_sent(self, before_plain):
        sample = Sample.noise(20_000_000)
        for _ in range(12):  # what could go wrong is a matter of who is faster
            assert problem(upload(before_plain, sample, None), 401)

    def test_nothing_is_kept_back_until_an_upload_is_complete(self, before_plain):
        with before_plain.wire() as wire:
            wire.head("POST", "/artifact", {"Content-Length": "1000", "Content-Type": "application/gzip"})
            assert wire.send(b"some").answer().status == 401

    def test_metrics_stay_inside(self, plain, before_plain):
        assert plain.get("/metrics").status_code == 200
        assert problem(before_plain.http.get("/metrics"), 404)


class TestSize:
    def test_what_the_server_takes_passes_the_proxy(self, tmp_path):
        (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", CONF.read_text())
        config = load_config({}, data=tmp_path)
        form = 2 * 64 * 1024**2  # a manifest, twice at its limit
        assert int(megabytes) * 1024**2 >= config.max_upload + form

    @pytest.fixture
    def small(self, plain, tmp_path):
        with nginx(tmp_path, plain, **{"client_max_body_size 10400m;": "client_max_body_size 1m;"}) as proxy:
            yield proxy

    def test_one_byte_more_is_refused_before_it_is_sent(self, plain, small):
        token = plain.token("alice")
        for length, status in ((1024**2 + 1, 413), (1024**2, 100)):
            with small.wire() as wire:
                headers = {"Content-Length": length, "Content-Type": "application/gzip", "Expect": "100-continue"}
                wire.head("POST", "/artifact", {**headers, **bearer(token)})
                if status == 413:
                    answer = wire.answer()
                    assert answer.json()["detail"] == "the upload is larger than this registry takes"
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert (answer.status, answer.headers["connection"]) == (413, "close")
                else:
                    assert wire.socket.recv(100).startswith(b"HTTP/1.1 100 ")

    def test_without_a_length_it_is_cut_off(self, plain, small):
        before = plain.files()

        def endless():
            for _ in range(40):
                yield os.urandom(100_000)

        headers = {"Content-Type": "application/gzip", **bearer(plain.token("alice"))}
        with contextlib.suppress(httpx2.TransportError):  # cut while sending
            assert small.http.post("/artifact", content=endless(), headers=headers).status_code in (413, 422)
        assert eventually(lambda: plain.files() == before)

    def test_only_uploads_may_be_large(self, plain, before_plain):
        token = plain.token("alice")
        answer = before_plain.http.post("/artifact/x/promote", content=bytes(70_000), headers=bearer(token))
        assert problem(answer, 413)


GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /artifact HTTP/1.1\r\nHost: a\r\nContent-Type: application/gzip\r\n"
MALFORMED = {
    "length and chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "twice the same length": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "huge chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "no host, as one could in 1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "two hosts": GET + b"Host: b\r\n\r\n",
    "bad host": b"GET /healthz HTTP/1.1\r\nHost: a/../b\r\n\r\n",
    "space in the host": b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
    "null in a header": GET + b"X: a\0b\r\n\r\n",
    "header of 1 MB": GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "headers of 1 MB": GET + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(1000)) + b"\r\n",
    "address of 1 MB": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "version 3": b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    "above the root": b"GET /../healthz HTTP/1.1\r\nHost: a\r\n\r\n",
}


def everything(wire):
    """All that comes until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := wire.socket.recv(65536):
            found += data
    return found


class TestMalformed:
    @pytest.mark.parametrize("what", MALFORMED)
    def test_it_is_refused_and_the_connection_closed(self, what, before_plain, plain):
        token = f"Authorization: Bearer {plain.token('mallory')}\r\n".encode()
        raw = MALFORMED[what].replace(b"Content-Type:", token + b"Content-Type:", 1)
        with before_plain.wire() as wire:
            with contextlib.suppress(ConnectionError):
                wire.send(raw)
            answer = everything(wire)
        assert re.match(rb"HTTP/1\.1 (4\d\d|501|505) ", answer), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]

    def test_bare_line_feeds_reach_the_server_as_one_proper_request(self, tmp_path):
        hidden = b"GET /healthz HTTP/1.1\nHost: a\nX: y\n\n"
        with Server(StaticFile(b"{}")) as behind, Nginx(tmp_path / "nginx", behind.port) as proxy:
            with proxy.wire() as wire:
                wire.send(hidden.replace(b"X:", b"Connection: close\nX:"))
                assert everything(wire).count(b"HTTP/1.1 ") == 1
            (seen,) = behind.seen
        assert seen.raw.count(b"\n") == seen.raw.count(b"\r\n")

    def test_the_server_still_answers(self, before_plain):
        assert before_plain.http.get("/healthz").json() == {"ok": True}


class TestSlow:
    @pytest.mark.parametrize("sockets", [45, pytest.param(200, marks=pytest.mark.long)])
    def test_all_are_cut_off_while_a_good_client_is_served(self, plain, tmp_path, sockets):
        token = plain.token("mallory")
        stalled = POST + f"Authorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\nabc".encode()
        kinds = [b"", b"GET /heal", GET + b"X: ", stalled]
        sample = plain.store(Sample.noise(1_000_000), plain.token("alice"), "public")
        before = plain.files()
        with contextlib.ExitStack() as stack:
            proxy = stack.enter_context(nginx(tmp_path, plain, **HASTY))
            wires = [stack.enter_context(proxy.wire()) for _ in range(sockets)]
            for number, wire in enumerate(wires):
                wire.send(kinds[number % len(kinds)])
            open_ones = set(wires)
            for wire in wires:
                wire.socket.settimeout(0)
            served, until = 0, time.monotonic() + 60
            while open_ones and time.monotonic() < until:
                for wire in list(open_ones):
                    # One more byte each round: a deadline that starts anew with each would never come.
                    if cut(wire, b"a" if wires.index(wire) % len(kinds) == 2 else b""):
                        open_ones.remove(wire)
                assert proxy.http.get(sample.path).content == sample.data
                served += 1
            assert not open_ones
            assert served > 1
        assert eventually(lambda: plain.files() == before)


def cut(wire, more):
    """Sends some more, and says whether the other end has closed."""
    try:
        wire.socket.send(more)
        return wire.socket.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class TestRates:
    def test_guessing_tokens_is_slowed_down_and_nobody_without_one_is(self, plain, tmp_path):
        rates = {"rate=50r/s": "rate=1r/m", "burst=200 nodelay": "burst=5 nodelay"}
        with nginx(tmp_path, plain, **rates) as proxy:
            path = f"/artifact/{Sample.new().id}"
            answers = [proxy.http.get(path, headers=bearer(f"ari_{n}")) for n in range(12)]
            assert [answer.status_code for answer in answers] == [401] * 6 + [429] * 6
            assert problem(answers[-1], 429)
            assert answers[-1].headers["Retry-After"] == "1"
            assert proxy.http.get(path).status_code == 404

    def test_connections_of_one_address_are_counted(self, plain, tmp_path):
        headers = {"Content-Type": "application/gzip", "Content-Length": "1000", "Expect": "100-continue"}
        headers |= bearer(plain.token("mallory"))
        with nginx(tmp_path, plain, **{"limit_conn addresses 128;": "limit_conn addresses 3;"}) as proxy:
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    wire = stack.enter_context(proxy.wire())
                    wire.head("POST", "/artifact", headers)
                    assert wire.socket.recv(100).startswith(b"HTTP/1.1 100 ")
                assert problem(proxy.http.get("/healthz"), 429)
            assert eventually(lambda: proxy.http.get("/healthz").status_code == 200)


class TestForwarding:
    def test_what_a_client_says_about_itself_is_overwritten(self, tmp_path):
        lies = {
            "X-Forwarded-For": "10.0.0.1",
            "X-Forwarded-Proto": "gopher",
            "X-Forwarded-Host": "evil.test",
            "X-Forwarded-Port": "1",
            "Forwarded": "for=10.0.0.1",
        }
        with Server(StaticFile(b"{}")) as behind, Nginx(tmp_path / "nginx", behind.port) as proxy:
            proxy.http.get("/healthz", headers={**lies, "Host": "good.test"})
            (seen,) = behind.seen
        forwarded = {name: seen.headers.get(name.lower()) for name in lies}
        assert {name: value for name, value in forwarded.items() if value is not None} == {
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "http",
        }
        assert seen.headers["host"] == "good.test"

    def test_without_the_server_it_says_to_try_again(self, tmp_path):
        with Nginx(tmp_path / "nginx", free_port()) as proxy:
            answer = proxy.http.get("/healthz")
            assert "try again" in problem(answer, 502)
            assert answer.headers["Retry-After"] == "5"
            assert answer.headers["Server"] == "nginx"
            assert proxy.http.head("/healthz").status_code == 502
            assert problem(proxy.http.post("/artifact", content=bytes(100_000)), 502)

    def test_an_upload_is_never_sent_twice(self, tmp_path):
        def cut_off(request, wire):
            if request.method == "POST":
                wire.reset()
            else:
                wire.answer(200)

        with Server(cut_off) as behind, Nginx(tmp_path / "nginx", behind.port) as proxy:
            assert (
                proxy.http.get("/healthz").status_code == 200
            )  # leaves a connection, which may have become stale
            assert problem(proxy.http.post("/artifact", content=b"x"), 502)
            assert [seen.method for seen in behind.seen] == ["GET", "POST"]


def test_no_log_shows_queries_or_tokens(plain, tmp_path):
    with nginx(tmp_path, plain) as proxy:
        proxy.http.get("/artifacts?q=canary-1", headers=bearer("ari_canary-2"))
        proxy.http.get("/healthz?x=canary-3", headers={"Referer": "http://a/?canary-4", "Cookie": "canary-5"})
        proxy.http.get("/artifact/ari_canary-6")
        for start in (
            b"GET /artifact/\x1b[31m%0aforged?canary-7 HTTP/1.1\r\nHost: a\r\n",
            b"GET /canary-8 HTTP/1.1\r\n",
        ):
            with proxy.wire() as wire:
                wire.send(start + b"Connection: close\r\n\r\n").closed()
        lines = eventually(lambda: len(proxy.lines()) >= 5 and proxy.lines())
        assert [line["path"] for line in lines] == ["/artifacts", "/healthz", "/artifact", "-", "-"]
        assert lines[0]["request_id"] in plain.log.read_text()
        assert "canary" not in proxy.log.read_text()
        assert proxy.log.read_text().replace("\n", "").isprintable()
    with Nginx(tmp_path / "other", free_port()) as alone:  # an error of nginx itself
        assert alone.http.get("/x?canary").status_code == 502
        assert eventually(lambda: "502" in alone.log.read_text())
        assert "canary" not in alone.log.read_text()
