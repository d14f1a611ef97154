"""What hostile users, strangers and damaged stores did to the server once; each of these worked."""

import hashlib
import json
import socket
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.registry import Sample, bearer, eventually, together

SMALL_QUOTA = 1_000_000


def described(**metadata):
    return {"X-ARI-Metadata": json.dumps(metadata)}


def shown(registry, sample):
    told = registry.get(f"{sample.path}/meta").json()
    return told["title"], told["license"]


def memory(pid):
    """Bytes of memory that a process has now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.fixture
def alice(registry):
    return registry.token("alice")


@pytest.fixture
def mallory(registry):
    return registry.token("mallory")


# -- what others said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{"title": "All of it invented", "license": "Proprietary"}, {}])
@pytest.mark.parametrize("told", [{"title": "Ice", "license": "CC-BY-4.0"}, {}])
def test_who_uploads_the_same_archive_does_not_word_what_is_public(registry, alice, mallory, told, metadata):
    sample = Sample.new()
    assert registry.upload(sample, alice, **described(**told)).status_code == 200
    assert registry.promote(sample, alice, "public").status_code == 200
    before = shown(registry, sample)
    assert registry.upload(sample, mallory, **described(**metadata)).status_code == 200
    assert shown(registry, sample) == before == (told.get("title"), told.get("license"))


def test_a_long_license_costs_no_request_anything(registry, mallory):
    """It stands in the manifest, which may have 64 MiB; every look at the artifact read it."""
    sample = Sample.new(publish={"visibility": "staged", "license": "L" * 5_000_000})
    told = registry.upload(sample, mallory, **described(title="t" * 50_000))
    assert told.status_code == 200, told.text
    registry.promote(sample, mallory, "public")
    assert len(registry.get(f"{sample.path}/meta").content) < 5_000
    assert len(registry.get("/artifacts", params={"limit": 1}).content) < 5_000
    assert (registry.data / "registry.db").stat().st_size < 5_000_000


# -- quotas ------------------------------------------------------------------------------------------------------


def test_a_quota_is_kept_by_uploads_at_once(alone):
    with alone(workers=2, env={"ARI_REGISTRY_QUOTA": str(SMALL_QUOTA)}) as server:
        alice, bob = server.token("alice"), server.token("bob")
        samples = [Sample.noise(SMALL_QUOTA * 2 // 3) for _ in range(6)]
        headers = {**bearer(alice), "Content-Type": "application/gzip"}

        def upload(sample):
            return server.once.post("/artifact", content=sample.data, headers=headers)

        answers = together(*(lambda sample=sample: upload(sample) for sample in samples))
        stored = {sample.id for sample, answer in zip(samples, answers, strict=True) if answer.is_success}
        assert {answer.status_code for answer in answers} == {200, 507}
        assert {artifact["id"] for artifact in server.listed(alice, mine=1)} == stored
        assert len(stored) == 1
        assert {path.name for path in (server.data / "artifacts").iterdir()} == stored
        kept = next(sample for sample in samples if sample.id in stored)
        assert server.get(kept.path, alice).content == kept.data
        assert server.upload(kept, bob).status_code == 200, "a quota is each user's own"


# -- stores that somebody else wrote -----------------------------------------------------------------------------


def rewrite(server, sample, **fields):
    path = server.data / "artifacts" / sample.id / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def forget_index(server):
    for path in server.data.glob("registry.db*"):
        path.unlink()


def lie_about_sizes(server, sample):
    files = [{"path": f"f{n}", "sha256": "0" * 64, "size": 2**63 - 1} for n in range(3)]
    canonical = json.dumps({"files": files, "version": 1}, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    lie = json.dumps({"version": 1, "files": files, "bundle_sha256": digest}).encode()
    (server.data / "artifacts" / sample.id / "manifest.lock").write_bytes(lie)
    rewrite(server, sample, manifest_sha256=hashlib.sha256(lie).hexdigest())


def test_odd_artifacts_keep_no_server_from_starting(alone):
    server = alone().start()
    alice = server.token("alice")
    good, titled, nobodys, endless, lying = (server.store(Sample.new(), alice, "public") for _ in range(5))
    server.stop()
    rewrite(server, titled, description={"title": "Ice\ud800"})
    rewrite(server, nobodys, owner="\ud800", owners=[{"user": "\ud800", "visibility": "public"}])
    rewrite(server, endless, length=10**30)
    lie_about_sizes(server, lying)
    forget_index(server)
    server.start()
    assert set(server.ids()) == {good.id, titled.id}
    assert shown(server, titled) == ("Ice", None)
    told = server.run("registry", "reindex", "--data-dir", str(server.data)).stderr
    assert all(f"left out: '{server.data}/artifacts/{odd.id}'" in told for odd in (nobodys, endless, lying))


def test_a_damaged_artifact_that_a_crash_left_to_be_repaired_keeps_no_server_from_starting(alone):
    server = alone().start()
    good, odd = (server.store(Sample.new(), server.token("alice"), "public") for _ in range(2))
    server.stop()
    place = server.data / "artifacts" / odd.id
    whole = (place / "meta.json").read_bytes()
    (place / "meta.json").write_text("{")
    with closing(sqlite3.connect(server.data / "registry.db")) as database:
        database.execute("INSERT INTO intents VALUES (?, 'x', ?, 1)", (odd.sha256, str(place)))
        database.commit()
    server.start()
    assert server.get(good.path).status_code == 200
    assert "not repaired" in server.log.read_text()
    server.stop()
    (place / "meta.json").write_bytes(whole)
    server.start()
    assert server.get(odd.path).content == odd.data


@pytest.mark.parametrize("user", ["''", "x'616c696365'"], ids=["empty", "bytes"])
def test_a_token_of_nobody_s_opens_nothing(alone, user):
    """What it stored could be neither read nor deleted by anyone; a name of bytes broke even the log."""
    server = alone().start()
    token = "ari_" + "n" * 43
    digest = hashlib.sha256(token.encode()).hexdigest()
    server.token("alice")
    with closing(sqlite3.connect(server.data / "tokens.db")) as database:
        database.execute(
            f"INSERT INTO tokens (id, token_hash, user, created_at) VALUES ('odd', ?, {user}, 'x')",  # noqa: S608
            (digest,),
        )
        database.commit()
    assert server.upload(Sample.new(), token).status_code == 401
    assert server.ids() == []


# -- memory ------------------------------------------------------------------------------------------------------

ENDLESS = {
    "a header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 65536),
    "headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 10_000),
    "a path": (b"GET /", b"a" * 65536),
    "trailers": (
        b"POST /artifact HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\n%s\r\n0\r\n"
        % b"Content-Type: application/gzip\r\nTransfer-Encoding: chunked\r\n",
        b"a: b\r\n" * 10_000,
    ),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
def test_a_head_without_end_is_cut(registry, alice, start, more):
    before = memory(registry.process.pid)
    with registry.wire() as wire:
        wire.send(start.replace(b"TOKEN", alice.encode()))
        with pytest.raises(ConnectionError):
            wire.send(more * (100_000_000 // len(more)))
    assert memory(registry.process.pid) - before < 64 * 1024**2
    assert registry.once.get("/healthz").status_code == 200


def test_a_head_in_many_pieces_is_taken(registry, alice):
    """Up to the limit, and followed by a body in the same piece as its end."""
    sample = Sample.noise(200_000)
    with registry.wire() as wire:
        wire.send("POST /artifact HTTP/1.1\r\nHost: x\r\n")
        for number in range(100):
            wire.send(f"X-{number}: {'a' * 500}\r\n")
            time.sleep(0.001)
        wire.send(f"Authorization: Bearer {alice}\r\nContent-Type: application/gzip\r\n")
        wire.send(f"Content-Length: {len(sample.data)}\r\n\r\n".encode() + sample.data)
        assert wire.answer().status == 200
        wire.head("GET", "/healthz")
        assert wire.answer().status == 200


def test_long_fields_of_a_form_take_no_memory_while_they_wait_or_afterwards(alone):
    server = alone().start()
    field = b'--b\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n' + b"x" * 40_000_000
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(field) + 9)}
    tokens = [server.token(f"user{number}") for number in range(5)]
    before = memory(server.process.pid)
    for held in (5, 10):
        with ExitStack() as uploads:
            for token in tokens:
                wire = uploads.enter_context(server.wire())
                wire.head("POST", "/artifact", {**headers, **bearer(token)}).send(field)
            assert memory(server.process.pid) - before < 100 * 1024**2
        assert eventually(lambda held=held: server.log.read_text().count("method=POST") == held)
        assert not [file for file in server.files() if "artifacts" not in file]
    assert memory(server.process.pid) - before < 100 * 1024**2


def test_many_slow_readers_of_a_long_manifest_share_one(registry, alice):
    sample = registry.store(Sample.new(publish={"visibility": "staged", "x": "x" * 30_000_000}), alice, "public")
    before = memory(registry.process.pid)
    with ExitStack() as readers:
        wires = [readers.enter_context(registry.wire()) for _ in range(10)]
        for wire in wires:
            wire.head("GET", f"{sample.path}/manifest.lock")
        for wire in wires:
            wire.socket.recv(1, socket.MSG_PEEK)
        assert memory(registry.process.pid) - before < 120 * 1024**2
        assert wires[0].answer().body == wires[1].answer().body == sample.manifest
