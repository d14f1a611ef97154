"""Uploads to a store that links no files: what is declared goes straight there, all else to a bounded spool."""

import base64
import contextlib
import hashlib
import itertools
import os
import threading
import tracemalloc
import zlib

import pytest
from support.archives import END, MANIFEST, gzip, header, manifest_of, member
from support.memory import MemoryBackend, MemoryTroubleError
from support.registry import Sample, bearer, eventually, together
from support.serving import Serving

from ari_core import streams
from ari_core.errors import Unavailable
from ari_core.wrappers import Fault, FaultyBackend
from ari_server import service

LIMIT = 400_000


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Makes servers on a store in memory; `faults` go wrong there."""
    with contextlib.ExitStack() as stack:

        def make(*faults, store=MemoryBackend, **config):
            made = store()
            monkeypatch.setattr(service, "open_backend", lambda *_: FaultyBackend(made, faults))
            one = stack.enter_context(Serving(tmp_path / str(len(list(tmp_path.iterdir()))), **config))
            one.space = made.space
            return one

        yield make


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def alice(server):
    return server.token("alice")


def declared(sha256):
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"}


def send(server, sample, token, data=None, **more):
    return server.upload(Sample(sample.data if data is None else data, b"", ""), token, **sample.declared, **more)


def sending(server, sample, token, size=None):
    """Starts an upload of `sample`; nothing of it is sent."""
    return server.uploading(token, len(sample.data) if size is None else size, **sample.declared)


def is_idle(server):
    """Whether nothing is left of uploads: no thread, no slot, no intent, no file."""
    threads = server.threads("ari-verify", "ari-read-ahead")
    busy = server.registry._receiving.borrowed_tokens
    return not (threads or busy or server.registry.index.intents() or server.spools())


# -- straight to the store ----------------------------------------------------------------------------------------


def test_what_is_declared_reaches_the_store_without_a_spool(server, alice):
    sample = Sample.noise(2_000_000)
    with sending(server, sample, alice) as wire:
        wire.send(sample.data[:1_900_000])
        assert eventually(lambda: server.threads("ari-verify"))
        assert server.spools() == []
        assert server.registry.index.intents() == []  # nothing will be changed before it has verified
        answer = wire.send(sample.data[1_900_000:]).answer().json()
    assert (answer["id"], answer["duplicate"], answer["visibility"]) == (sample.id, False, "staged")
    assert answer["bundle_sha256"] == sample.bundle_sha256
    assert server.space.items[sample.sha256].data == sample.data
    assert server.request("GET", f"{sample.path}/meta", alice).json()["file_count"] == 2
    assert server.request("GET", f"{sample.path}/manifest.lock", alice).content == sample.manifest
    assert is_idle(server)


@pytest.mark.parametrize("how", ["undeclared", "of unknown size", "form"])
def test_everything_else_is_spooled_and_stored_the_same(server, alice, how, monkeypatch):
    sample = Sample.noise(100_000)
    put, spooled = server.registry.store.inner.inner._put, []

    def looking(*arguments):
        spooled.extend(file.stat().st_size for folder in server.spools() for file in folder.iterdir())
        return put(*arguments)

    monkeypatch.setattr(server.registry.store.inner.inner, "_put", looking)
    match how:
        case "undeclared":
            answer = server.upload(sample, alice)
        case "of unknown size":
            headers = {"Content-Type": "application/gzip", **sample.declared}
            answer = server.request("POST", "/artifact", alice, content=iter([sample.data]), headers=headers)
        case "form":
            answer = server.request("POST", "/artifact", alice, files={"bundle": sample.data})
    assert answer.json()["archive_sha256"] == sample.sha256
    assert spooled == [len(sample.data)]
    assert is_idle(server)


def test_of_all_that_is_received_at_once_no_more_is_spooled_than_the_slots_hold(serve):
    server = serve(uploads=2, max_upload=LIMIT)
    tokens = [server.token(f"user{number}") for number in range(5)]
    most = [0]

    def spooled():
        sizes = []
        for folder in server.spools():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
        most[0] = max(most[0], sum(sizes))
        return sizes

    body = gzip(member("x", os.urandom(LIMIT * 2)), level=0)
    with contextlib.ExitStack() as stack:
        for token in tokens:
            wire = stack.enter_context(server.wire())
            headers = {"Content-Type": "application/gzip", **bearer(token), "Transfer-Encoding": "chunked"}
            wire.head("POST", "/artifact", headers).send(
                b"%x\r\n%s\r\n" % (LIMIT - 10_000, body[: LIMIT - 10_000])
            )
        assert eventually(lambda: len(spooled()) == 2 and min(spooled()) > LIMIT - 200_000)
        assert len(server.spools()) == 2
    with server.wire() as wire:  # who sends more than is allowed is stopped in time
        headers = {"Content-Type": "application/gzip", **bearer(tokens[0]), "Transfer-Encoding": "chunked"}
        wire.head("POST", "/artifact", headers)
        for at in range(0, LIMIT + 100_000, 10_000):
            wire.send(b"2710\r\n%s\r\n" % body[at : at + 10_000])
            spooled()
        assert wire.answer().status == 413
    form = {"bundle": body[: LIMIT + 100_000]}  # whose other fields may make it longer
    assert server.request("POST", "/artifact", tokens[0], files=form).status_code == 413
    assert LIMIT < most[0] <= 2 * LIMIT
    assert eventually(lambda: is_idle(server))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_bad_beginning_is_answered_while_the_rest_is_withheld(serve, monkeypatch):
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 600)  # for a thread that nobody told to end
    server = serve(body_timeout=600)
    bad = gzip(member("../x", b"x" * 200_000), level=0)
    with sending(server, Sample.new(), server.token("alice"), 10**9) as wire:
        wire.socket.settimeout(30)
        answer = wire.send(bad[:9000]).answer()
        assert answer.status == 422
        assert "../x" in answer.json()["detail"]
        assert wire.closed()
    assert eventually(lambda: is_idle(server))
    assert not server.space.items


@pytest.mark.parametrize("known", [False, True])
def test_an_archive_other_than_the_declared_one_is_refused(server, alice, known):
    sample, other = Sample.new(), Sample.new()
    if known:
        assert send(server, sample, server.token("bob")).status_code == 200
    answer = send(server, sample, alice, other.data)
    assert (answer.status_code, answer.json()["kind"]) == (422, "digest-mismatch")
    assert other.sha256 in answer.json()["detail"]
    assert other.sha256 not in server.space.items
    assert is_idle(server)


@pytest.mark.parametrize("data", [b"\x1f\x8b no archive", b"x" * 300_000])
def test_to_know_a_digest_makes_nobody_an_owner(server, alice, data):
    """What is stored already is read and verified all the same: only who has the bytes may claim them."""
    sample = Sample.noise(300_000)
    send(server, sample, server.token("bob"))
    for given in (data, sample.data[:-1] + bytes([sample.data[-1] ^ 1])):
        assert send(server, sample, alice, given).status_code == 422
    with sending(server, sample, alice) as wire:  # or who goes away before the end
        wire.send(sample.data[:-1])
    assert eventually(lambda: is_idle(server))
    assert [owner.user for owner in server.registry.find(sample.id).owners] == ["bob"]
    assert server.request("GET", sample.path, alice).status_code == 403


def test_who_sends_it_again_owns_it_too_and_who_does_so_twice_has_a_duplicate(server, alice):
    sample, bob = Sample.noise(300_000), server.token("bob")
    assert [send(server, sample, token).json()["duplicate"] for token in (alice, bob, alice)] == [
        False,
        False,
        True,
    ]
    assert {owner.user for owner in server.registry.find(sample.id).owners} == {"alice", "bob"}
    assert is_idle(server)


def test_of_several_who_send_it_at_once_all_are_owners_and_one_has_stored_it(serve):
    server = serve(uploads=16)
    sample = Sample.noise(500_000)
    tokens = [server.token(f"user{number}") for number in range(8)]
    answers = together(*(lambda token=token: send(server, sample, token) for token in tokens))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(server.registry.find(sample.id).owners) == 8
    assert is_idle(server)


def test_two_archives_with_one_id_do_not_meet(serve, tmp_path):
    server = serve()
    server.registry._id_digits, server.registry.least = 1, 1
    alice, first = server.token("alice"), Sample.new()
    second = next(s for s in iter(Sample.new, None) if s.sha256[0] == first.sha256[0])
    assert send(server, first, alice).json()["id"] == first.sha256[0]
    assert send(server, second, alice).status_code == 409
    assert list(server.space.items) == [first.sha256]
    assert is_idle(server)


def test_a_user_who_races_against_their_own_quota_does_not_exceed_it(serve):
    samples = [Sample.noise(100_000) for _ in range(3)]
    server = serve(uploads=16, quota=len(samples[0].data) + 50_000)
    token = server.token("alice")
    answers = together(*(lambda s=s: send(server, s, token).status_code for s in samples))
    assert sorted(answers) == [200, 507, 507]
    assert len(server.space.items) == 1
    assert is_idle(server)


# -- trouble ------------------------------------------------------------------------------------------------------


def test_who_goes_away_in_the_middle_leaves_nothing(server, alice):
    sample = Sample.noise(1_000_000)
    with sending(server, sample, alice) as wire:
        wire.send(sample.data[:600_000])
        assert eventually(lambda: server.threads("ari-verify"))
    assert eventually(lambda: is_idle(server))
    assert not server.space.items


def test_a_store_that_fails_in_the_middle_is_to_be_tried_again_and_keeps_nothing(serve, caplog):
    server = serve(Fault("put", 1, Unavailable("the bucket is on fire"), at=500_000))
    alice, sample = server.token("alice"), Sample.noise(1_000_000)
    answer = send(server, sample, alice)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert b"fire" not in answer.content
    assert any("the bucket is on fire" in record.getMessage() for record in caplog.records)
    assert not server.space.items
    assert eventually(lambda: is_idle(server))
    assert send(server, sample, alice).json()["duplicate"] is False
    assert server.space.items[sample.sha256].data == sample.data


def test_a_store_whose_answer_gets_lost_is_looked_at_again(serve):
    server = serve(Fault("put", 1, Unavailable("no answer"), after=True))
    alice, sample = server.token("alice"), Sample.noise(100_000)
    assert send(server, sample, alice).status_code == 200
    assert server.request("GET", sample.path, alice).content == sample.data


def test_nothing_is_stored_that_could_not_be_noted_first(server, alice, monkeypatch):
    def failing(*_):
        raise Unavailable("the database is away")

    sample = Sample.noise(100_000)
    monkeypatch.setattr(server.registry.index, "intend", failing)
    assert send(server, sample, alice).status_code == 503
    assert not server.space.items
    monkeypatch.undo()
    assert send(server, sample, alice).status_code == 200


@pytest.mark.parametrize("known", [False, True])
def test_what_was_stored_or_claimed_and_not_indexed_is_noted_and_mended_by_sending_it_again(
    server, alice, monkeypatch, known
):
    def failing(*_, **__):
        raise Unavailable("the database is away")

    sample = Sample.noise(100_000)
    if known:
        send(server, sample, server.token("bob"))
    monkeypatch.setattr(server.registry.index, "agree", failing)
    assert send(server, sample, alice).status_code == 503
    monkeypatch.undo()
    assert [intent.archive_sha256 for intent in server.registry.index.intents()] == [sample.sha256]
    assert send(server, sample, alice).status_code == 200
    assert is_idle(server)


# -- memory -------------------------------------------------------------------------------------------------------


class Discarding(MemoryBackend):
    """Takes everything and keeps only how much it was."""

    class Kept:
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

    def _read(self, source):
        with source.open() as stream:
            return self.Kept(sum(map(len, iter(lambda: stream.read(8 << 20), b""))))


def large(mebibytes):
    """A bundle of one file of so many MiB, as pieces; not all at once."""
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(mebibytes):
        digest.update(block)
    raw = manifest_of([{"path": "large", "size": mebibytes << 20, "sha256": digest.hexdigest()}])
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    for data in (member(MANIFEST, raw) + header("large", mebibytes << 20), *itertools.repeat(block, mebibytes)):
        yield packer.compress(data)
    yield packer.compress(END) + packer.flush()


def test_however_large_it_is_memory_is_bounded(serve):
    server = serve(store=Discarding)
    token = server.token("alice")
    pieces = list(large(64))
    digest, size = hashlib.sha256(b"".join(pieces)).hexdigest(), sum(map(len, pieces))
    with server.uploading(token, size, **declared(digest)) as wire:
        tracemalloc.start()
        try:
            for piece in pieces:
                wire.send(piece)
            assert wire.answer().json()["archive_sha256"] == digest
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 12 << 20


# -- the store is away --------------------------------------------------------------------------------------------


@pytest.fixture
def away(server, alice):
    """A store with an artifact; nothing of it can be had any more."""
    sample = Sample.new()
    send(server, sample, alice)
    server.request("POST", f"{sample.path}/promote", alice, json={"target": "public"})
    server.space.trouble["denied"] = server.space.trouble["probe"] = MemoryTroubleError("down")
    server.space.trouble["put"] = server.space.trouble["denied"]
    return sample


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "", {}),
        ("GET", "/manifest.lock", {}),
        ("POST", "/promote", {"json": {"target": "public"}}),
        ("DELETE", "", {}),
        ("POST", None, {"content": b"", "headers": {"Content-Type": "application/gzip"}}),
    ],
)
def test_what_needs_the_store_is_to_be_tried_again_and_then_works(server, away, alice, method, path, more):
    bob = server.token("bob")
    server.space.trouble.clear()
    send(server, away, bob)
    server.space.trouble["denied"] = server.space.trouble["put"] = MemoryTroubleError("down")
    if path is None:
        more = {**more, "content": Sample.new().data}

    def ask():
        return server.request(method, "/artifact" if path is None else away.path + path, bob, **more)

    answer = ask()
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json()["kind"] == "unavailable"
    server.space.trouble.clear()
    assert ask().status_code == 200


def test_what_the_index_knows_goes_on_being_answered(server, away, alice):
    head = server.request("HEAD", away.path)
    assert (head.status_code, head.headers["X-ARI-Sha256"]) == (200, away.sha256)
    assert server.request("GET", away.path, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304
    past = {"Range": f"bytes={len(away.data)}-"}
    assert server.request("GET", away.path, headers=past).status_code == 416
    assert [one["id"] for one in server.request("GET", "/artifacts").json()["artifacts"]] == [away.id]
    assert server.request("GET", f"{away.path}/meta").status_code == 200
    assert server.request("POST", f"{away.path}/tokens", alice).status_code == 200
    assert server.request("GET", "/healthz").status_code == 200


def test_readiness_names_the_store_until_it_is_back(server, away):
    answer = server.request("GET", "/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "not ready: store")
    server.space.trouble.clear()
    assert server.request("GET", "/readyz").status_code == 200


def test_a_store_that_hangs_keeps_nobody_waiting_for_long(serve, monkeypatch):
    monkeypatch.setattr(service, "PATIENCE", 0.2)
    back = threading.Event()
    server = serve(
        Fault("stat", None, wait=lambda: back.wait(60)), Fault("probe", None, wait=lambda: back.wait(60))
    )
    back.set()
    alice, sample = server.token("alice"), Sample.new()
    assert send(server, sample, alice).status_code == 200
    back.clear()
    server.http.timeout = 30
    try:
        assert server.request("GET", sample.path, alice).status_code == 503
        assert server.request("GET", "/readyz").status_code == 503
        assert server.request("HEAD", sample.path).status_code == 200
    finally:
        back.set()
    assert server.request("GET", sample.path, alice).content == sample.data


class Slow(MemoryBackend):
    """Gives bytes only after `back` was set."""

    back = threading.Event()

    @contextlib.contextmanager
    def _open(self, locator, offset):
        with super()._open(locator, offset) as stream:
            yield type("Waiting", (), {"read": lambda _, size: (self.back.wait(60), stream.read(size))[1]})()


def test_a_store_that_is_slow_to_give_bytes_keeps_nobody_else_waiting(serve):
    Slow.back = back = threading.Event()
    server = serve(store=Slow)
    alice, sample = server.token("alice"), Sample.noise(1000)
    send(server, sample, alice)
    server.request("POST", f"{sample.path}/promote", alice, json={"target": "public"})
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(server.wire()) for _ in range(64)]
        try:
            for wire in wires:
                wire.head("GET", sample.path)
            assert eventually(lambda: server.registry._readers.borrowed_tokens == 32)
            server.http.timeout = 30
            assert server.request("GET", "/readyz").status_code == 200
            assert send(server, Sample.new(), alice).status_code == 200
            assert server.request("GET", f"{sample.path}/manifest.lock").status_code == 200
            assert server.request("POST", f"{sample.path}/promote", alice).status_code == 200
        finally:
            back.set()
        for wire in wires:
            assert wire.answer().body == sample.data
