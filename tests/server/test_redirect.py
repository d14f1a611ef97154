"""Downloads that the store serves itself: what the registry answers, and what our client sends where."""

import base64
import os
import re

import httpx2
import pytest
from support.httpd import Server, forget_proxies
from support.memory import DirectMemoryBackend, MemoryBackend
from support.registry import Sample, eventually
from support.run import ari
from support.serving import Serving

from ari_core.errors import InvalidConfiguration, Unavailable
from ari_server import service
from ari_server.config import load_config

SECONDS = 300
CANARY = "canary"


class Store:
    """A responder for the other origin: serves each URL that was given, once or as long as it is good.

    Attributes:
        cuts: After how many bytes of its body each answer is cut; none: not at all.
        refuse: Status that it answers with instead.
        once: Each URL is good for one request.
    """

    def __init__(self):
        self.backend, self.cuts, self.refuse, self.once = None, [], None, False
        self.used = set()

    def __call__(self, request, wire):
        locator = request.target.partition("?")[0].strip("/")
        known = any(url.endswith(request.target) for url, _ in self.backend.given)
        if self.refuse or not known or (self.once and request.target in self.used):
            wire.answer(self.refuse or 403, {"Content-Type": "application/xml"}, b"<Error/>")
            return
        self.used.add(request.target)
        data, headers, status = self.backend.space.items[locator].data, {"ETag": '"of-the-store"'}, 200
        if found := re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("range", "")):
            headers["Content-Range"] = f"bytes {found[1]}-{len(data) - 1}/{len(data)}"
            data, status = data[int(found[1]) :], 206
        cut = self.cuts.pop(0) if self.cuts else None
        lines = [f"HTTP/1.1 {status} -", "Accept-Ranges: bytes", f"Content-Length: {len(data)}"]
        wire.send("\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode() + data[:cut])
        wire.keep = cut is None


@pytest.fixture
def there(monkeypatch):
    """The store's own origin."""
    forget_proxies(monkeypatch)
    with Server(Store()) as server:
        yield server


@pytest.fixture
def server(tmp_path, monkeypatch, there):
    """A registry that redirects there."""
    there.respond.backend = backend = DirectMemoryBackend()
    backend.base = there.origin
    monkeypatch.setattr(service, "open_backend", lambda *_: backend)
    with Serving(tmp_path / "registry", redirect=SECONDS) as serving:
        serving.backend = backend
        yield serving


@pytest.fixture
def alice(server):
    return server.token("alice")


@pytest.fixture
def sample(server, alice):
    made = Sample.noise(300_000)
    assert server.upload(made, alice).status_code == 200
    return made


def promote(server, sample, token, level):
    assert server.request("POST", f"{sample.path}/promote", token, json={"target": level}).status_code == 200


# -- what the registry answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["staged", "public"])
def test_a_download_is_sent_to_the_store_with_what_its_reader_needs_to_check_it(
    server, there, sample, alice, level
):
    promote(server, sample, alice, level)
    answer = server.request("GET", sample.path, alice)
    assert (answer.status_code, answer.content) == (307, b"")
    assert [(answer.headers["Location"], SECONDS)] == server.backend.given
    assert answer.headers["Cache-Control"] == "private, no-store"  # also of what is public: the URL is a key
    assert answer.headers["X-ARI-Sha256"] == sample.sha256
    assert answer.headers["X-ARI-Visibility"] == level
    digest = base64.b64encode(bytes.fromhex(sample.sha256)).decode()
    assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert not {"etag", "content-type", "content-disposition", "accept-ranges"} & set(answer.headers)
    assert httpx2.get(answer.headers["Location"], trust_env=False).content == sample.data


def test_who_may_not_read_is_told_no_place(server, sample, alice):
    for token, status in ((None, 401), (server.token("bob"), 403), ("ari_" + "A" * 43, 401)):
        answer = server.request("GET", sample.path, token)
        assert (answer.status_code, "location" in answer.headers) == (status, False)
    assert server.backend.given == []


def test_what_needs_no_bytes_is_answered_by_the_registry(server, there, sample, alice):
    head = server.request("HEAD", sample.path)
    assert (head.status_code, int(head.headers["Content-Length"])) == (200, len(sample.data))
    for headers, status in (
        ({"If-None-Match": head.headers["ETag"]}, 304),
        ({"Range": f"bytes={len(sample.data)}-"}, 416),
    ):
        assert server.request("GET", sample.path, alice, headers=headers).status_code == status
    assert server.request("GET", f"{sample.path}/manifest.lock", alice).content == sample.manifest
    assert server.backend.given == []
    assert there.seen == []


def test_what_the_store_has_no_address_for_is_sent_by_the_registry(server, sample, alice):
    server.backend.base = None
    answer = server.request("GET", sample.path, alice, headers={"Range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, sample.data[5:10])


def test_a_store_that_is_away_when_it_is_asked_for_an_address_is_to_be_tried_again(server, sample, alice):
    server.backend.space.trouble["direct_url"] = Unavailable("no credentials now")
    answer = server.request("GET", sample.path, alice)
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


def test_no_address_is_in_the_log(server, sample, alice, caplog):
    caplog.set_level("DEBUG")
    assert server.request("GET", sample.path, alice).status_code == 307
    url = server.backend.given[0][0]

    def lines():
        return [record.getMessage() for record in caplog.records if record.name.startswith(("ari", "uvicorn"))]

    assert eventually(lambda: any("status=307" in line for line in lines()))  # when the answer is on its way
    assert not [line for line in lines() if url in line or CANARY in line]


def test_a_store_that_cannot_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "open_backend", lambda *_: MemoryBackend())
    with pytest.raises(InvalidConfiguration) as refused:
        service.open_store(load_config({}, data=tmp_path, redirect=SECONDS))
    assert "ARI_REGISTRY_REDIRECT" in refused.value.hint
    with pytest.raises(InvalidConfiguration) as refused:
        service.open_store(load_config({}, data=tmp_path, accel="/_artifacts"))
    assert "unset ARI_REGISTRY_ACCEL" in refused.value.hint
    service.open_store(load_config({}, data=tmp_path)).close()


# -- what the client sends where ----------------------------------------------------------------------------------

SENT_ELSEWHERE = {"host", "accept", "accept-encoding", "connection", "user-agent"}


@pytest.fixture
def clone(server, alice, tmp_path):
    """Clones with a token, as a user does; returns the process and the folder."""

    def run(ref):
        dest = tmp_path / "clone"
        env = {**os.environ, "ARI_REGISTRY_URL": server.url, "ARI_REGISTRY_TOKEN": alice}
        return ari("clone", ref, dest, env=env), dest

    server.url = f"http://127.0.0.1:{server.port}"
    return run


@pytest.mark.parametrize("ref", ["ari://{id}", "{url}/artifact/{id}"])
def test_the_token_stays_with_the_registry(server, there, sample, alice, clone, ref):
    done, dest = clone(ref.format(id=sample.id, url=server.url))
    assert done.returncode == 0, done.stderr
    assert (dest / "noise").stat().st_size == 300_000
    assert [request.method for request in there.seen] == ["GET"]
    for request in there.seen:
        assert set(request.headers) == SENT_ELSEWHERE
        assert alice.encode() not in request.raw


def test_a_download_that_is_cut_goes_on_there_at_an_address_of_its_own(server, there, sample, alice, clone):
    """Addresses are good for one request here: each time, the registry is asked for a new one."""
    there.respond.once, there.respond.cuts = True, [100_000, 50_000]
    done, dest = clone(f"ari://{sample.id}")
    assert done.returncode == 0, done.stderr
    assert (dest / "noise").stat().st_size == 300_000
    assert [request.headers.get("range") for request in there.seen] == [None, "bytes=100000-", "bytes=150000-"]
    assert len({request.target for request in there.seen}) == 3
    assert len(server.backend.given) == 3
    for request in there.seen:
        assert set(request.headers) - {"range", "if-range"} == SENT_ELSEWHERE
        assert alice.encode() not in request.raw


@pytest.mark.parametrize(
    ("status", "exit_code", "words"), [(403, 4, "the same command again"), (404, 1, "operator"), (503, 5, "later")]
)
def test_what_the_store_refuses_is_not_taken_for_the_registry_s_word(
    there, sample, clone, status, exit_code, words
):
    there.respond.refuse = status
    done, dest = clone(f"ari://{sample.id}")
    assert done.returncode == exit_code
    assert not dest.exists()
    told = done.stderr
    assert there.origin in told
    assert words in told
    assert "token" not in told
    assert CANARY not in told
