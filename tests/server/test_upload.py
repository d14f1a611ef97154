"""Receiving a bundle: the form's parser, the pipe into the thread, and what must not be left behind."""

import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import io
import json
import re
import socket
import threading
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.archives import gzip, member
from support.registry import Sample, bearer, eventually, together
from support.serving import Serving

from ari_core import streams
from ari_core.contract import Visibility
from ari_core.errors import NotFound, Unavailable
from ari_core.wrappers import Fault, FaultyBackend
from ari_server import upload
from ari_server.index import Index
from ari_server.multipart import Form
from ari_server.problems import Problem
from ari_server.upload import Pipe

FIELDS = {"visibility": 100, "manifest": 1000, "metadata": 1000}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(tmp_path_factory.mktemp("uploads")) as serving:
        yield serving


@pytest.fixture(scope="module")
def alice(server):
    return server.token("alice")


@pytest.fixture
def serve(tmp_path):
    """Makes servers with settings of their own."""
    made = []

    def make(**config):
        made.append(Serving(tmp_path / str(len(made)), **config).__enter__())
        return made[-1]

    yield make
    for one in made:
        one.__exit__()


# -- the form ---------------------------------------------------------------------------------------------------


def part(name, value, *headers):
    lines = [f'Content-Disposition: form-data; name="{name}"', *headers]
    return "\r\n".join(["--x", *lines, "", ""]).encode() + value + b"\r\n"


def form(*parts):
    return b"".join(parts) + b"--x--\r\n"


class Trickle:
    """A body that comes in pieces of `size` bytes."""

    def __init__(self, data, size):
        self._file, self._size = io.BytesIO(data), size

    def read(self, size):
        return self._file.read(min(size, self._size))


def read_form(data, size=1 << 20):
    with TemporaryDirectory() as folder, closing(Form(Trickle(data, size), b"x", FIELDS, Path(folder))) as parsed:
        bundle = b"".join(iter(lambda: parsed.read(1000), b""))
        parsed.finish()
        return bundle, {name: value for name in FIELDS if (value := parsed.field(name)) is not None}


BUNDLE = b"\x1f\x8b\r\n--y\r\n--\r\n-\r\n\r\n--x" + bytes(range(256))
WHOLE = form(part("visibility", b"public"), part("bundle", BUNDLE[:3] + BUNDLE[10:]), part("metadata", b"{}"))


@pytest.mark.parametrize("size", range(1, 80))
def test_a_form_is_the_same_however_it_is_cut_into_pieces(size):
    assert read_form(WHOLE, size) == (BUNDLE[:3] + BUNDLE[10:], {"visibility": b"public", "metadata": b"{}"})


def test_a_form_cut_off_at_any_byte_is_refused():
    end = len(WHOLE) - len(b"\r\n")  # the very last line end is not needed
    for cut in range(end):
        with pytest.raises(Problem) as refused:
            read_form(WHOLE[:cut])
        assert refused.value.status == 400
    assert read_form(WHOLE[:end])[1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(part("bundle", b"1"), part("bundle", b"2")), 400),
        (form(part("visibility", b"a"), part("visibility", b"b"), part("bundle", b"")), 400),
        (form(part("visibility", b"a")), 400),
        (form(*(part(f"f{n}", b"") for n in range(20)), part("bundle", b"")), 400),
        (form(part("visibility", b"v" * 101), part("bundle", b"")), 413),
        (form(part("other", b"v" * 70_000), part("bundle", b"")), 413),
        (form(part("bundle", b"", "Content-Transfer-Encoding: base64")), 400),
        (form(part("bundle", b"", 'Content-Disposition: form-data; name="visibility"')), 400),
        (form(part("bundle", b"", *(f"X-{n}: 1" for n in range(20)))), 400),
        (form(part("bundle", b"", "X: " + "y" * 9000)), 400),
        (b"\r\n" * 5000 + form(part("bundle", b"")), 400),
        (form(part("bundle", b"")) + b"\r\n" * 5000, 400),
        (form(part("bundle", b"")).replace(b"form-data", b"attachment"), 400),
    ],
)
def test_a_form_that_is_odd_or_endless_is_refused(body, status):
    with pytest.raises(Problem) as refused:
        read_form(body, size=512)
    assert refused.value.status == status


def test_unknown_fields_of_a_form_are_passed_over():
    body = form(part("comment", b"hello"), part("bundle", b"1", "Content-Transfer-Encoding: binary"))
    assert read_form(body) == (b"1", {})


@pytest.mark.parametrize("order", [("visibility", "manifest", "metadata", "bundle"), ("bundle", "manifest")])
def test_the_fields_may_stand_before_or_behind_the_bundle(server, alice, order):
    sample = Sample.new()
    values = {
        "visibility": b"public",
        "manifest": json.dumps(json.loads(sample.manifest)).encode(),
        "metadata": b'{"title": "Figure 3"}',
        "bundle": sample.data,
    }
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = form(*(part(name, values[name]) for name in order))
    assert server.request("POST", "/artifact", alice, content=body, headers=headers).status_code == 200
    title = "Figure 3" if "metadata" in order else None
    assert server.request("GET", f"{sample.path}/meta", alice).json()["title"] == title
    values["manifest"] = Sample.new().manifest
    body = form(*(part(name, values[name]) for name in order))
    assert server.request("POST", "/artifact", alice, content=body, headers=headers).status_code == 422


@pytest.mark.parametrize(
    "metadata",
    [b"[]", b"1", b"{", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b'{"a":' * 5000],
)
def test_metadata_that_is_no_strict_json_object_is_refused(server, alice, metadata):
    body = form(part("metadata", metadata), part("bundle", Sample.new().data))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.request("POST", "/artifact", alice, content=body, headers=headers).status_code == 400


# -- the pipe ---------------------------------------------------------------------------------------------------


def test_the_pipe_keeps_order_and_never_holds_much():
    data = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 400  # 3 MB
    most = 0

    async def main():
        nonlocal most
        pipe = Pipe()
        reading = asyncio.to_thread(lambda: b"".join(iter(lambda: pipe.read(70_000), b"")))
        reader = asyncio.create_task(reading)
        for at in range(0, len(data), 100_000):
            await pipe.send(data[at : at + 100_000])
            most = max(most, pipe._held)
        pipe.end()
        return await reader

    assert asyncio.run(main()) == data
    assert most <= upload._AHEAD + 100_000


def test_a_failure_reaches_the_reader_at_once_and_only_the_first_counts():
    async def main():
        pipe = Pipe()
        await pipe.send(b"never to be read")
        pipe.end(Problem(413, "too large"))
        pipe.end(Problem(503, "later"))
        return await asyncio.to_thread(pipe.read, 10)

    with pytest.raises(Problem, match="too large"):
        asyncio.run(main())


def test_a_reader_that_waits_can_be_interrupted():
    async def main():
        pipe = Pipe()
        reader = asyncio.create_task(asyncio.to_thread(pipe.read, 10))
        await asyncio.sleep(0)
        await asyncio.to_thread(pipe.interrupt)
        return await reader

    with pytest.raises(InterruptedError):
        asyncio.run(main())


# -- answers that come early ------------------------------------------------------------------------------------


def test_a_bad_beginning_is_answered_while_the_rest_is_withheld(serve, monkeypatch):
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 600)  # for the thread that waits for the rest
    server = serve(body_timeout=600)
    bad = gzip(member("../x", b"x" * 200_000), level=0)
    with server.uploading(server.token("alice"), 10**9) as wire:
        wire.socket.settimeout(30)
        answer = wire.send(bad[:9000]).answer()  # all of it is read, and then more is waited for
        assert answer.status == 422
        assert "../x" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
        assert wire.closed()
    assert eventually(lambda: not server.spools())
    assert eventually(lambda: not server.threads("ari-read-ahead"))


def test_nothing_of_a_body_is_asked_for_before_the_request_was_judged(server):
    """A client that waits for 100 Continue sees whether anybody wants its body."""
    reader = server.token("alice", scope="read")
    cases = (
        (None, {}, 401),
        (reader, {}, 403),
        (server.token("alice"), {"Content-Type": "text/plain"}, 415),
        (server.token("alice"), {"X-ARI-Visibility": "secret"}, 400),
        (server.token("alice"), {"Repr-Digest": "sha-256=:AAAA:"}, 400),
    )

    def judged(token, more, status):
        with server.uploading(token, 10**6, Expect="100-continue", **more) as wire:
            assert wire.answer().status == status
            assert wire.closed()

    together(*(functools.partial(judged, *case) for case in cases))


def test_an_upload_over_quota_with_a_declared_digest_is_refused_before_its_body(serve):
    server = serve(quota=1000)
    digest = base64.b64encode(bytes(32)).decode()
    with server.uploading(server.token("alice"), 1001, **{"Repr-Digest": f"sha-256=:{digest}:"}) as wire:
        answer = wire.answer()
        assert (answer.status, answer.json()["kind"]) == (507, "quota-exceeded")


def test_an_upload_that_has_to_wait_is_not_read_meanwhile(serve):
    server = serve(uploads=1)
    first, second = Sample.noise(300_000), Sample.new()
    token = server.token("alice")
    with server.uploading(token, len(first.data)) as one:
        one.send(first.data[:200_000])
        assert eventually(server.spools)
        with server.uploading(token, len(second.data), Expect="100-continue") as two:
            two.send(b"")
            assert (
                server.request("GET", "/healthz").status_code == 200
            )  # it was seen by now, and is not waited for
            two.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                two.socket.recv(1)
            two.socket.settimeout(60)
            assert one.send(first.data[200_000:]).answer().status == 200
            assert two.socket.recv(100).startswith(b"HTTP/1.1 100")
            assert two.send(second.data).answer().status == 200


def test_a_trickle_is_cut_though_something_always_comes(serve, monkeypatch):
    monkeypatch.setattr(upload, "_SLOWEST", 10**6)
    server = serve(body_timeout=0.5)
    sample = Sample.noise(300_000)
    with server.uploading(server.token("alice"), len(sample.data)) as wire:
        wire.socket.settimeout(0.1)
        for at in range(100):
            try:
                wire.socket.send(sample.data[at * 10 : at * 10 + 10])
                if wire.socket.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue  # no answer yet, which is a tenth of a second between two drops
        else:
            pytest.fail("a hundred drops, and it still waits for more")
        wire.socket.settimeout(60)
        assert wire.answer().status == 408
    assert eventually(lambda: not server.spools())


def test_one_user_s_idle_uploads_keep_nobody_else_waiting(serve):
    server = serve(uploads=2)
    mallory, alice = server.token("mallory"), server.token("alice")
    with contextlib.ExitStack() as idle:
        for _ in range(4):
            idle.enter_context(server.uploading(mallory, 10**6)).send(b"\x1f\x8b")
        assert eventually(server.spools)
        assert server.upload(Sample.new(), alice).status_code == 200
        assert len(server.spools()) == 1


def test_a_connection_goes_on_after_a_body_that_was_read(server, alice):
    with server.wire() as wire:
        for sample in (Sample.new(), Sample.new()):
            headers = {"Content-Type": "application/gzip", **bearer(alice), "Content-Length": len(sample.data)}
            assert wire.head("POST", "/artifact", headers).send(sample.data).answer().status == 200


# -- what is not left behind ------------------------------------------------------------------------------------


def test_who_goes_away_in_the_middle_leaves_nothing(server, alice):
    sample = Sample.noise(500_000)
    with server.uploading(alice, len(sample.data)) as wire:
        wire.send(sample.data[:300_000])
        assert eventually(server.spools)
    assert eventually(lambda: not server.spools())
    assert eventually(lambda: server.registry._receiving.borrowed_tokens == 0)
    assert eventually(lambda: not server.registry._shares)
    assert eventually(lambda: not server.threads("ari-read-ahead"))


def test_a_full_disk_is_said_and_leaves_nothing(server, alice, monkeypatch):
    def full(_fd, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    sample = Sample.new()
    monkeypatch.setattr(upload, "write_all", full)
    assert server.upload(sample, alice).status_code == 507
    monkeypatch.undo()
    assert server.spools() == []
    assert server.upload(sample, alice).json()["duplicate"] is False


def test_a_store_that_is_away_is_asked_to_be_tried_again(server, alice, monkeypatch):
    sample = Sample.new()
    faulty = FaultyBackend(server.registry.store, [Fault("put", None, Unavailable("away"))])
    monkeypatch.setattr(server.registry, "store", faulty)
    answer = server.upload(sample, alice)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    monkeypatch.undo()
    assert server.spools() == []
    assert server.upload(sample, alice).status_code == 200


# -- the store and the index ------------------------------------------------------------------------------------


def test_an_upload_whose_index_entry_failed_is_repaired_by_repeating_it(server, alice, monkeypatch):
    sample = Sample.new()
    real = server.registry.index.agree

    def failing(*_, **__):
        raise Unavailable("the database is away")

    monkeypatch.setattr(server.registry.index, "agree", failing)
    assert server.upload(sample, alice).status_code == 503
    assert sample.sha256 in {intent.archive_sha256 for intent in server.registry.index.intents()}
    monkeypatch.setattr(server.registry.index, "agree", real)
    assert server.request("GET", sample.path, alice).status_code == 404
    assert server.upload(sample, alice).status_code == 200
    assert server.request("GET", sample.path, alice).content == sample.data
    assert sample.sha256 not in {intent.archive_sha256 for intent in server.registry.index.intents()}


@pytest.mark.parametrize("change", ["promote", "delete"])
def test_a_change_between_a_look_at_the_store_and_the_index_is_not_lost(server, alice, monkeypatch, change):
    """Two workers: what one read of the store is out of date when it writes it down."""
    registry = server.registry
    sample = Sample.new()
    bob = server.token("bob")
    server.upload(sample, alice)
    real = registry.index.agree
    once = []

    def late(archive_sha256, look, *more, **named):
        if not once:
            once.append(True)
            row = registry.find(archive_sha256)
            if change == "promote":
                registry._owners.raise_own(row.locator, "alice", Visibility.PUBLIC)
            else:
                registry._owners.disclaim(row.locator, "alice")
                registry._owners.disclaim(row.locator, "bob")
        return real(archive_sha256, look, *more, **named)

    monkeypatch.setattr(registry.index, "agree", late)
    assert server.upload(sample, bob).status_code == 200
    if change == "promote":
        assert registry.find(sample.id).visibility is Visibility.PUBLIC
    else:
        with pytest.raises(NotFound):
            registry.find(sample.id)


def test_two_archives_with_one_id_do_not_meet(serve):
    """Ids of one digit: the second archive with the same one is refused, and nothing of it stays."""
    server = serve(least=1)
    alice, bob = server.token("alice"), server.token("bob")
    first = Sample.new()
    second = next(s for s in iter(Sample.new, None) if s.sha256[0] == first.sha256[0])
    assert server.upload(first, alice).json()["id"] == first.sha256[0]
    answer = server.upload(second, bob)
    assert answer.status_code == 409
    assert re.search(rf"\b{first.sha256[0]}\b", answer.json()["detail"])
    assert server.request("GET", f"/artifact/{first.sha256[0]}", alice).content == first.data
    assert [artifact.archive_sha256 for artifact, _ in server.registry.store.list()] == [first.sha256]


def test_of_two_archives_that_race_for_one_id_one_gets_it(serve, monkeypatch):
    server = serve(least=1)
    token = server.token("alice")
    first = Sample.new()
    second = next(s for s in iter(Sample.new, None) if s.sha256[0] == first.sha256[0])
    barrier = threading.Barrier(2, timeout=30)
    real = server.registry._free_id

    def both(sha256):
        found = real(sha256)
        barrier.wait()
        return found

    monkeypatch.setattr(server.registry, "_free_id", both)
    answers = together(*(lambda s=s: server.upload(s, token).status_code for s in (first, second)))
    assert sorted(answers) == [200, 409]
    winner = (first, second)[answers.index(200)]
    assert [artifact.archive_sha256 for artifact, _ in server.registry.store.list()] == [winner.sha256]
    assert server.registry.index.intents() == []


# -- workers that start while others serve ------------------------------------------------------------------------


def test_a_worker_that_starts_mends_what_a_dead_one_left(serve, monkeypatch, tmp_path):
    first = serve()
    sample, alice = Sample.new(), first.token("alice")
    first.upload(sample, alice)
    row = first.registry.find(sample.id)
    first.registry._owners.raise_own(row.locator, "alice", Visibility.PUBLIC)  # and then it was killed
    monkeypatch.setattr(first.registry.index._database, "me", "999999999-dead")
    first.registry.index.intend(row.archive_sha256, row.locator)
    assert first.request("GET", sample.path).status_code == 401
    with Serving(first.registry.config.data):
        assert first.request("GET", sample.path).status_code == 200
    assert first.registry.index.intents() == []


def test_a_worker_starts_also_when_nothing_can_be_mended_now(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise Unavailable("the store is away")

    monkeypatch.setattr(Index, "repair", failing)
    with Serving(tmp_path / "data") as server:
        assert server.request("GET", "/healthz").status_code == 200
