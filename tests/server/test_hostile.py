"""What people with bad manners send: refused with the right status, and nothing of it stays."""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import uuid
from datetime import timedelta

import pytest
from support.archives import MANIFEST, gzip, manifest, member, members
from support.registry import LEVELS, Registry, Sample, bearer, eventually, together
from support.run import ari_json

GZIP = {"Content-Type": "application/gzip"}
LIMIT = Sample.noise(200_000)
"""A bundle of exactly the size that the small server takes."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with a limit of so many bytes that it says no soon, and little patience."""
    env = {"ARI_REGISTRY_MAX_UPLOAD": str(len(LIMIT.data)), "ARI_REGISTRY_BODY_TIMEOUT": "1"}
    with Registry(tmp_path_factory.mktemp("small"), env=env) as server:
        yield server


@pytest.fixture
def alice(registry):
    return registry.token("alice")


@pytest.fixture
def bob(registry):
    return registry.token("bob")


def multipart(sample, *, manifest=None, visibility="staged", metadata="{}", boundary="limit"):
    """The body and the content type that an existing client sends."""
    raw = sample.manifest if manifest is None else manifest
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in (
            ("visibility", visibility.encode()),
            ("manifest", raw),
            ("metadata", metadata.encode()),
        )
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="bundle"; filename="bundle.tar.gz"\r\n'
        "Content-Type: application/gzip\r\n\r\n".encode()
        + sample.data
        + f"\r\n--{boundary}--\r\n".encode()
    )
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def send_form(registry, sample, token, **more):
    body, kind = multipart(sample, **more)
    return registry.post("/artifact", token, content=body, headers={"Content-Type": kind})


@pytest.fixture
def nothing_stays(request):
    """After the test the disk of the server holds what it held before."""
    server = request.getfixturevalue("small" if "small" in request.fixturenames else "registry")
    # What an earlier test's upload has not taken away yet is not this one's.
    before = {path: size for path, size in server.files().items() if ".ari-staging-" not in path}
    yield
    assert eventually(lambda: server.files() == before, 15), set(server.files()) ^ set(before)


# -- uploads (H5) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "ari_" + "x" * 43, "arif_" + "x" * 43, "", "å", "a b", "ari_\t"])
def test_an_upload_by_nobody_is_refused_before_its_body_arrives(registry, token, nothing_stays):
    headers = {**GZIP, "Content-Length": "1000000"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    with registry.wire() as wire:
        answer = wire.head("POST", "/artifact", headers).answer()
        assert answer.status == 401
        assert "bearer" in answer.headers["www-authenticate"].lower()
        assert answer.json()["detail"]
        assert wire.closed()


def test_a_reader_s_upload_is_refused_before_its_body_arrives(registry, nothing_stays):
    headers = {**GZIP, **bearer(registry.token("alice", scope="read")), "Content-Length": "1000000"}
    with registry.wire() as wire:
        assert wire.head("POST", "/artifact", headers).answer().status == 403
        assert wire.closed()


@pytest.mark.parametrize("kind", ["application/gzip", "multipart/form-data; boundary=x"])
def test_an_upload_that_says_it_is_too_large_is_refused_before_its_body_arrives(small, kind, nothing_stays):
    size = len(LIMIT.data) + 64 * 1024**3
    headers = {"Content-Type": kind, **bearer(small.token("alice")), "Content-Length": size}
    with small.wire() as wire:
        answer = wire.head("POST", "/artifact", headers).answer()
        assert answer.status == 413
        assert str(len(LIMIT.data)) in answer.json()["detail"] or "KiB" in answer.json()["detail"]
        assert wire.closed()


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", None])
def test_an_upload_of_another_type_is_refused_before_its_body_arrives(registry, alice, kind, nothing_stays):
    headers = {**bearer(alice), "Content-Length": "1000000", **({"Content-Type": kind} if kind else {})}
    with registry.wire() as wire:
        assert wire.head("POST", "/artifact", headers).answer().status == 415
        assert wire.closed()


def chunks(data, size=16384):
    return (data[at : at + size] for at in range(0, len(data), size))


def test_a_chunked_upload_without_a_length_is_cut_at_the_limit(small, nothing_stays):
    too_much = Sample.noise(len(LIMIT.data) + 1)
    token = small.token("alice")
    with small.wire() as wire:
        wire.head("POST", "/artifact", {**GZIP, **bearer(token), "Transfer-Encoding": "chunked"})
        for chunk in chunks(too_much.data):
            wire.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        wire.send("0\r\n\r\n")
        assert wire.answer().status == 413
    assert small.level(too_much) is None


def test_the_limit_itself_is_taken_and_a_byte_more_is_not(small):
    token = small.token("alice")
    before = small.files()
    more = Sample(LIMIT.data + b"\0", LIMIT.manifest, LIMIT.bundle_sha256)
    assert small.upload(more, token).status_code == 413
    assert small.post("/artifact", token, content=chunks(more.data), headers=GZIP).status_code == 413
    assert send_form(small, more, token).status_code == 413
    assert eventually(lambda: small.files() == before, 15)
    for upload in (small.upload, lambda *call: send_form(small, *call)):
        answer = upload(LIMIT, token)
        assert answer.status_code == 200, answer.text
    assert small.post("/artifact", token, content=chunks(LIMIT.data), headers=GZIP).json()["duplicate"] is True
    assert small.get(LIMIT.path, token).content == LIMIT.data


def test_an_empty_upload_is_refused(registry, alice, nothing_stays):
    assert registry.post("/artifact", alice, content=b"", headers=GZIP).status_code == 422
    assert send_form(registry, Sample(b"", Sample.new().manifest, ""), alice).status_code == 422
    assert registry.post("/artifact", alice, content=iter(()), headers=GZIP).status_code == 422


def test_a_length_that_is_too_small_stores_nothing(registry, alice, nothing_stays):
    sample = Sample.noise(50_000)
    with registry.wire() as wire:
        wire.head("POST", "/artifact", {**GZIP, **bearer(alice), "Content-Length": len(sample.data) - 10})
        wire.send(sample.data)
        assert wire.answer().status in {400, 422}  # what is too much is the next request to HTTP, and none
    assert registry.level(sample) is None


def test_a_length_that_is_too_large_stores_nothing(small, nothing_stays):
    sample = Sample.noise(50_000)
    token = small.token("alice")
    with small.wire() as wire:
        wire.head("POST", "/artifact", {**GZIP, **bearer(token), "Content-Length": len(sample.data) + 10})
        wire.send(sample.data)
        assert wire.answer().status in {408, 422}  # the wait for the rest ends
        assert wire.closed()
    assert small.level(sample) is None


def test_an_upload_that_stops_is_given_up(small, nothing_stays):
    sample, alice = Sample.noise(150_000), small.token("alice")

    def given_up(body, kind):
        with small.wire() as wire:
            wire.head("POST", "/artifact", {"Content-Type": kind, **bearer(alice), "Content-Length": len(body)})
            wire.send(body[: len(body) // 2])
            assert wire.answer().status == 408
            assert wire.closed()

    together(lambda: given_up(sample.data, GZIP["Content-Type"]), lambda: given_up(*multipart(sample)))
    assert small.level(sample) is None


@pytest.mark.parametrize("form", ["raw", "multipart"])
def test_an_upload_cut_at_any_byte_leaves_nothing(registry, alice, form, nothing_stays):
    sample = Sample.new()
    body, kind = (sample.data, "application/gzip") if form == "raw" else multipart(sample)
    headers = {"Content-Type": kind, **bearer(alice), "Content-Length": len(body)}
    for cut in {*range(0, len(body), 23), len(body) - 1}:
        with registry.wire() as wire:
            wire.head("POST", "/artifact", headers).send(body[:cut])
    assert registry.level(sample) is None
    assert registry.upload(sample, alice).json()["duplicate"] is False
    registry.delete(sample.path, alice)


@pytest.mark.parametrize("form", ["raw", "multipart"])
def test_a_truncated_bundle_with_a_true_length_is_refused(registry, alice, form, nothing_stays):
    sample = Sample.new()
    send = registry.upload if form == "raw" else lambda *call: send_form(registry, *call)
    for cut in {*range(0, len(sample.data), 37), len(sample.data) - 1}:
        answer = send(Sample(sample.data[:cut], sample.manifest, sample.bundle_sha256), alice)
        assert answer.status_code == 422, cut
        assert answer.json()["detail"]


def refused_bundles():
    """Archives that must not be stored, each with words of the reason."""
    files = {"a.txt": b"alpha\n"}
    raw = manifest(files)
    good = member(MANIFEST, raw) + members(files)
    end = bytes(1024)
    yield "extra", gzip(good + member("b.txt", b"b") + end), "b.txt"
    yield "missing", gzip(member(MANIFEST, raw) + end), "a.txt"
    yield "other", gzip(member(MANIFEST, raw) + member("a.txt", b"alphA\n") + end), "a.txt"
    yield "parent", gzip(good + member("../x", b"x") + end), ".."
    yield "link", gzip(good + member("l", b"", b"2", link=b"/etc/passwd") + end), "l"
    yield "no manifest", gzip(members(files) + end), "manifest"
    yield "no gzip", good + end, "gzip"
    yield "zip", b"PK\3\4" + bytes(100), ""
    yield "text", b"hello\n", ""
    yield "trailing", gzip(good + end) + b"\0", ""
    yield "escape", gzip(good + member("\x1b[31m", b"x") + end), ""


@pytest.mark.parametrize(("archive", "says"), [pytest.param(*rest, id=name) for name, *rest in refused_bundles()])
def test_a_bundle_that_does_not_verify_is_refused_with_the_reason(registry, alice, archive, says, nothing_stays):
    sample = Sample(archive, Sample.new().manifest, "")
    answer = registry.upload(sample, alice)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert answer.text.isprintable()
    assert registry.level(sample) is None


def test_a_large_bundle_that_is_bad_at_its_start_is_refused_without_reading_it_all(registry, alice, nothing_stays):
    """And a client that never looks before it has sent everything still gets its answer."""
    bad = gzip(member("../x", b"x")) + bytes(3_000_000)
    assert registry.upload(Sample(bad, b"", ""), alice).status_code == 422
    with registry.wire() as wire:
        wire.head("POST", "/artifact", {**GZIP, **bearer(alice), "Content-Length": 10**9}).send(bad)
        assert wire.answer().status == 422
        assert wire.closed()


def test_a_manifest_field_that_disagrees_is_refused(registry, alice, nothing_stays):
    sample, other = Sample.new(), Sample.new()
    for field in (other.manifest, b"{}", b"[]", b"", b"nonsense", b"null", b'"x"', b"[" * 100_000, b"\xff"):
        answer = send_form(registry, sample, alice, manifest=field)
        assert answer.status_code in {400, 422}, field[:20]
    changed = json.loads(sample.manifest)
    changed["publish"]["license"] = "MIT"
    assert send_form(registry, sample, alice, manifest=json.dumps(changed).encode()).status_code == 422
    assert registry.level(sample) is None


def digest_field(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_a_declared_digest_must_be_right(registry, alice):
    sample = Sample.new()
    before = registry.files()
    answer = registry.upload(sample, alice, **{"Repr-Digest": digest_field(b"other")})
    assert answer.status_code == 422
    assert sample.sha256 in answer.json()["detail"]
    for nonsense in ("sha-256=:x:", "sha-256=abc", "sha-256=::", "sha-256=:" + "A" * 10000 + ":"):
        assert registry.upload(sample, alice, **{"Repr-Digest": nonsense}).status_code in {400, 422}, nonsense
    assert registry.files() == before
    assert registry.upload(sample, alice, **{"Repr-Digest": digest_field(sample.data)}).status_code == 200


def test_every_upload_starts_staged_whatever_is_wished(registry, alice):
    for level in LEVELS:
        raw, form = Sample.new(), Sample.new()
        answer = registry.upload(raw, alice, **{"X-ARI-Visibility": level})
        assert answer.json()["visibility"] == "staged"
        answer = send_form(registry, form, alice, visibility=level)
        assert answer.json()["visibility"] == "staged"
        assert registry.level(raw) == registry.level(form) == "staged"
        for sample in (raw, form):
            meta = json.loads((registry.data / "artifacts" / sample.id / "meta.json").read_text())
            assert (meta["visibility"], meta["wish"]) == ("staged", level)
    assert registry.upload(Sample.new(), alice, **{"X-ARI-Visibility": "secret"}).status_code in {400, 422}
    assert send_form(registry, Sample.new(), alice, visibility="secret").status_code in {400, 422}


def test_a_user_s_quota_is_kept(alone):
    first, second = Sample.noise(60_000), Sample.noise(60_000)
    with alone(env={"ARI_REGISTRY_QUOTA": "100000"}) as server:
        alice, bob = server.token("alice"), server.token("bob")
        server.store(first, alice)
        before = server.files()
        answer = server.upload(second, alice)
        assert answer.status_code == 507
        assert "quota" in answer.json()["detail"]
        answer = server.post("/artifact", alice, content=chunks(second.data), headers=GZIP)
        assert answer.status_code == 507
        assert eventually(lambda: server.files() == before, 15)
        assert server.level(second) is None
        assert server.upload(first, alice).json()["duplicate"] is True  # costs nothing
        assert server.upload(second, bob).status_code == 200
        assert server.delete(first.path, alice).status_code == 200
        assert server.upload(second, alice).status_code == 200


# -- ownership (H2, H3) -------------------------------------------------------------------------------------------


def test_who_uploads_what_somebody_has_staged_owns_a_claim_of_their_own(registry, alice, bob):
    sample = registry.store(Sample.new(), alice)
    assert registry.get(sample.path, bob).status_code == 403
    for incomplete in (sample.data[:-1], b""):
        assert registry.upload(Sample(incomplete, b"", ""), bob).status_code == 422
        assert registry.get(sample.path, bob).status_code == 403
    made = registry.upload(sample, bob).json()
    assert (made["duplicate"], made["visibility"], made["id"]) == (False, "staged", sample.id)
    assert registry.upload(sample, bob).json()["duplicate"] is True
    owners = registry.get(f"{sample.path}/meta", alice).json()["owners"]
    assert {(owner["user"], owner["visibility"]) for owner in owners} == {("alice", "staged"), ("bob", "staged")}


def test_the_level_of_an_artifact_is_the_highest_of_its_owners(registry, alice, bob):
    sample = registry.store(Sample.new(), alice, "unlisted")
    made = registry.upload(sample, bob).json()
    assert made["visibility"] == "staged"
    assert registry.level(sample) == "unlisted"
    assert registry.promote(sample, bob, "private-token").status_code == 200
    assert registry.level(sample) == "unlisted"
    assert registry.delete(sample.path, alice).status_code == 200
    assert registry.level(sample) == "private-token"
    assert registry.get(sample.path).status_code == 401
    assert registry.get(sample.path, alice).status_code == 403
    assert registry.get(sample.path, bob).content == sample.data
    assert registry.delete(sample.path, alice).status_code == 403  # no owner any more
    assert registry.delete(sample.path, bob).status_code == 200
    assert registry.get(sample.path, bob).status_code in {404, 410}
    assert not [path for path in registry.files() if sample.id in path]


def test_nobody_sees_what_others_have_not_published(registry, alice, bob):
    word = f"w{uuid.uuid4().hex}"
    mine = {level: registry.store(Sample.new({f"{word}.csv": b"1\n"}), alice, level).id for level in LEVELS}
    reader = registry.token("alice", scope="read")
    for who in (None, bob, alice, registry.token("bob", scope="read")):
        assert registry.ids(who, q=word) == [mine["public"]]
        assert not set(registry.ids(who)) & {mine["staged"], mine["private-token"], mine["unlisted"]}
    for who in (alice, reader):
        assert set(registry.ids(who, mine="1", q=word)) == set(mine.values())
    assert registry.ids(bob, mine="1", q=word) == []
    assert registry.get("/artifacts", params={"mine": "1"}).status_code == 401
    for hidden in (mine["staged"], mine["private-token"], mine["unlisted"]):
        assert registry.ids(bob, q=hidden) == []


def test_metadata_shows_no_owners_to_others(registry, alice, bob):
    sample = registry.store(Sample.new(), alice, "public")
    for who in (None, bob):
        assert "owners" not in registry.get(f"{sample.path}/meta", who).json()
    assert "alice" not in registry.get("/artifacts").text


# -- levels -------------------------------------------------------------------------------------------------------


def test_levels_only_ever_rise(registry, alice):
    sample = registry.store(Sample.new(), alice)
    for at, level in enumerate(LEVELS):
        assert registry.promote(sample, alice, level).json() == {"id": sample.id, "visibility": level}
        for lower in LEVELS[:at]:
            assert registry.promote(sample, alice, lower).status_code == 400
            assert registry.level(sample) == level


def test_the_target_may_stand_in_the_query_or_in_the_body_but_not_differ(registry, alice):
    path = registry.store(Sample.new(), alice).path + "/promote"
    both = {"params": {"target": "unlisted"}, "json": {"target": "public"}}
    assert registry.post(path, alice, **both).status_code == 400
    for bad in (
        {"params": {"target": "secret"}},
        {"json": {"target": "secret"}},
        {"json": {"target": 1}},
        {"json": {"target": None}},
        {"json": {"taget": "staged"}},
    ):
        assert registry.post(path, alice, **bad).status_code in {400, 422}
    for bad in (b"[]", b"nonsense", b"\xff", b'{"target": "public", "target": "staged"}', b"1e999", b"[" * 9999):
        answer = registry.post(path, alice, content=bad, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, bad[:20]
    twice = [("target", "private-token"), ("target", "public")]
    assert registry.post(path, alice, params=twice).status_code in {400, 422}
    assert registry.post(path, alice, json={"target": "private-token"}).json()["visibility"] == "private-token"
    same = {"params": {"target": "unlisted"}, "json": {"target": "unlisted"}}
    assert registry.post(path, alice, **same).json()["visibility"] == "unlisted"
    assert registry.post(path, alice).json()["visibility"] == "public"


# -- other sites' forms (H11) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_json_that_does_not_say_so_changes_nothing(registry, alice, kind):
    """What a browser sends across sites without asking first."""
    sample = registry.store(Sample.new(), alice)
    headers = {"Content-Type": kind, "Origin": "https://elsewhere.test"}
    answer = registry.post(f"{sample.path}/promote", alice, content=b'{"target":"public"}', headers=headers)
    assert answer.status_code == 415
    assert registry.level(sample) == "staged"


def test_no_answer_invites_other_sites(registry):
    sample = registry.store(Sample.new(), registry.token("alice"), "public")
    ask = {"Origin": "https://elsewhere.test", "Access-Control-Request-Method": "POST"}
    for method, path in (
        ("OPTIONS", "/artifact"),
        ("GET", sample.path),
        ("GET", "/artifacts"),
        ("GET", "/nowhere"),
    ):
        answer = registry.request(method, path, headers=ask)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "set-cookie" not in answer.headers


def hostile_forms():
    """Bodies of multipart/form-data with boundary x that are refused."""
    part = b'--x\r\nContent-Disposition: form-data; name="visibility"\r\n\r\nstaged\r\n'
    yield "preamble", b"p" * 3_000_000 + b"\r\n" + part + b"--x--\r\n"
    yield "huge header", b'--x\r\nContent-Disposition: form-data; name="a"\r\nX: ' + b"h" * 2_000_000 + b"\r\n\r\n"
    yield "many headers", b"--x\r\n" + b"X: h\r\n" * 100_000 + b"\r\n"
    yield "many fields", part * 20_000 + b"--x--\r\n"
    yield "unknown field", part.replace(b"visibility", b"extra") + b"--x--\r\n"
    yield "huge field", part.replace(b"staged", b"s" * 3_000_000) + b"--x--\r\n"
    yield "no name", b"--x\r\nContent-Disposition: form-data\r\n\r\nstaged\r\n--x--\r\n"
    yield "no bundle", part + b"--x--\r\n"
    yield "empty", b"--x--\r\n"
    yield "nothing", b""
    yield "no multipart", b"hello\n" * 1000
    yield "not closed", part


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in hostile_forms()])
def test_a_hostile_form_is_refused(registry, alice, body, nothing_stays):
    headers = {**bearer(alice), "Content-Type": "multipart/form-data; boundary=x", "Content-Length": len(body)}
    with registry.wire() as wire:
        with contextlib.suppress(ConnectionError):  # the answer came first
            wire.head("POST", "/artifact", headers).send(body)
        assert wire.answer().status in {400, 413, 422}


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"]
)
def test_a_form_without_a_usable_type_is_refused(registry, alice, kind, nothing_stays):
    body, _ = multipart(Sample.new(), boundary="x")
    answer = registry.post("/artifact", alice, content=body, headers={"Content-Type": kind})
    assert answer.status_code in {400, 415}


def test_the_file_name_of_a_form_is_never_used(registry, alice):
    sample = Sample.new()
    body, kind = multipart(sample)
    name = uuid.uuid4().hex
    evil = f"filename=\"../../{name}\"; filename*=utf-8''..%2f..%2f{name}".encode()
    body = body.replace(b'filename="bundle.tar.gz"', evil)
    answer = registry.post("/artifact", alice, content=body, headers={"Content-Type": kind})
    assert answer.status_code in {200, 400}
    assert not [*registry.folder.rglob(f"*{name}*"), *registry.folder.parent.glob(f"*{name}*")]


# -- ids (H6) -----------------------------------------------------------------------------------------------------


def bad_ids(sample):
    real = sample.id
    yield from ("../x", "..%2fx", "..%2f..%2ftokens.db", "%2e%2e%2f%2e%2e%2ftokens.db", "%252e%252e%252ftokens.db")
    yield from ("%00", f"{real}%00", "%ff", "%c3%28", "%F0%9F%92%A9", "%0a", f"{real}%0a", f"{real}%20", "%1b[31m")
    yield from (real.upper(), "a" * 300, "a" * 65, real[:15], "", ".", "..", "*", "tokens.db", "registry.db")
    yield from (f"{real}/", f"{real}//", f"{real}/..", f"{real}/meta.json", f"{real}/bundle.tar.gz", f"/{real}")
    yield from ("0" * 16, "f" * 64, sample.sha256[:-1] + ("0" if sample.sha256[-1] != "0" else "1"))
    yield from ("%EF%BC%91" * 16, "%D9%A1" * 16)  # digits of other scripts
    yield f"{real};x=1"


def test_an_id_that_is_none_is_not_found_and_opens_nothing(registry, alice):
    sample = registry.store(Sample.new(), alice, "public")
    before = registry.files()
    for bad, (method, tail) in itertools.product(
        bad_ids(sample),
        [
            ("GET", ""),
            ("HEAD", ""),
            ("DELETE", ""),
            ("GET", "/manifest.lock"),
            ("GET", "/meta"),
            ("POST", "/promote"),
        ],
    ):
        with registry.wire() as wire:
            answer = wire.head(method, f"/artifact/{bad}{tail}", bearer(alice)).answer(method)
        assert answer.status in ({404, 405} if bad in {"", ".", ".."} else {404}), (method, bad, tail)
        assert b"SQLite" not in answer.body
        assert answer.body.isascii()
    assert registry.files() == before
    assert registry.level(sample) == "public"


def test_any_prefix_of_16_to_64_digits_finds_it(registry, alice):
    sample = registry.store(Sample.new(), alice, "public")
    for digits in (16, 17, 40, 63, 64):
        assert registry.get(f"/artifact/{sample.sha256[:digits]}").content == sample.data
        assert registry.get(f"/artifact/{sample.sha256[:digits]}/manifest.lock").content == sample.manifest
    assert registry.get(f"/artifact/{sample.sha256}/meta").json()["id"] == sample.id


def test_an_absent_artifact_looks_the_same_to_everybody(registry, alice):
    answers = [
        registry.get("/artifact/" + "0" * 16, who) for who in (None, alice, registry.token("bob", scope="read"))
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.json()["detail"] for answer in answers}) == 1


# -- ranges (H9) --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranged(registry):
    return registry.store(Sample.noise(300_000), registry.token("alice"), "public")


def test_single_ranges(registry, ranged):
    data, size = ranged.data, len(ranged.data)
    for spelled, first, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, size),
        ("bytes=0-", 0, size),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 1}-", size - 1, size),
        (f"bytes=5-{size * 2}", 5, size),
        ("bytes=-5", size - 5, size),
        (f"bytes=-{size}", 0, size),
        ("BYTES=1-2", 1, 3),
    ):
        answer = registry.get(ranged.path, headers={"Range": spelled})
        assert (answer.status_code, answer.content) == (206, data[first:end]), spelled
        assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/{size}"
        assert int(answer.headers["Content-Length"]) == end - first
    answer = registry.get(ranged.path, headers={"Range": f"bytes=-{size + 10}"})
    assert answer.content == data
    assert answer.status_code in {200, 206}


def test_ranges_that_cannot_be_satisfied(registry, ranged):
    size = len(ranged.data)
    for spelled in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0", f"bytes={10**30}-"):
        answer = registry.get(ranged.path, headers={"Range": spelled})
        assert answer.status_code == 416, spelled
        assert answer.headers["Content-Range"] == f"bytes */{size}"


def test_ranges_that_are_none_or_many_get_the_whole(registry, ranged):
    many = "bytes=" + ",".join(f"{at}-{at}" for at in range(1000))
    overlapping = "bytes=" + ",".join(["0-"] * 1000)
    none = ("9-5", "", "-", "a-b", "1_0-20", "+1-2", "\u0661-2", "0x1-2", "1-2-3", "0-1,5-6")
    for spelled in (many, overlapping, "items=0-1", "bytes 0-5", *(f"bytes={spec}" for spec in none)):
        answer = registry.get(ranged.path, headers={"Range": spelled.encode()})
        assert (answer.status_code, answer.content) == (200, ranged.data), spelled[:40]
        assert "Content-Range" not in answer.headers


def test_a_range_is_only_good_for_the_same_bytes(registry, ranged):
    etag = registry.head(ranged.path).headers["ETag"]
    assert etag == f'"{ranged.sha256}"'
    for condition, status in (
        (etag, 206),
        ('"other"', 200),
        (f"W/{etag}", 200),
        ("Sat, 01 Jan 2050 00:00:00 GMT", 200),
    ):
        answer = registry.get(ranged.path, headers={"Range": "bytes=5-", "If-Range": condition})
        assert answer.status_code == status, condition
        assert answer.content == (ranged.data[5:] if status == 206 else ranged.data)


def test_what_a_reader_has_is_not_sent_again(registry, ranged):
    etag = f'"{ranged.sha256}"'
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = registry.request(method, ranged.path, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b""), known
            assert answer.headers["ETag"] == etag
    assert registry.get(ranged.path, headers={"If-None-Match": '"other"'}).content == ranged.data


def test_the_headers_of_a_download(registry, alice, ranged):
    answer = registry.get(ranged.path)
    headers = answer.headers
    assert headers["Content-Type"] == "application/gzip"
    assert headers["X-ARI-Sha256"] == ranged.sha256
    assert headers["X-ARI-Visibility"] == "public"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Repr-Digest"] == digest_field(ranged.data)
    assert headers["Content-Disposition"].startswith("attachment")
    assert "immutable" in headers["Cache-Control"]
    head = registry.head(ranged.path)
    same = {
        "content-length",
        "content-type",
        "etag",
        "x-ari-sha256",
        "x-ari-visibility",
        "accept-ranges",
        "repr-digest",
    }
    assert {name: head.headers[name] for name in same} == {name: headers[name] for name in same}
    for level in LEVELS[:3]:
        hidden = registry.store(Sample.new(), alice, level)
        control = registry.get(hidden.path, alice).headers["Cache-Control"]
        assert "private" in control or "no-store" in control
        assert "public" not in control


# -- what a browser might do with it (H10) ------------------------------------------------------------------------


def test_no_answer_runs_as_a_page(registry, alice):
    evil = {"index.html": b"<script>alert(1)</script>", "x.svg": b"<svg onload=alert(1)>"}
    sample = Sample.new(evil)
    title = '"><script>alert(1)</script>\r\nSet-Cookie: a=b'
    metadata = json.dumps({"title": title})
    assert registry.upload(sample, alice, **{"X-ARI-Metadata": metadata}).status_code == 200
    registry.promote(sample, alice, "public")
    paths = [
        "/healthz",
        "/version",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/artifacts",
        "/nowhere",
        "/docs",
        "/",
    ]
    paths += [sample.path, f"{sample.path}/manifest.lock", f"{sample.path}/meta", "/artifact/%3Cscript%3E"]
    paths += [f"{sample.path}/index.html", "/<script>", "/artifacts?after=<script>alert(1)</script>"]
    for path in paths:
        headers = registry.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert "sandbox" in headers["Content-Security-Policy"], path
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["Referrer-Policy"] == "no-referrer", path
        assert "html" not in headers["Content-Type"], path
        assert "svg" not in headers["Content-Type"], path
        assert "server" not in headers, path
        assert "set-cookie" not in headers, path
    assert registry.get(f"{sample.path}/meta").json()["title"] == title


def test_broken_requests_too_get_the_careful_headers(registry):
    for method, path in (("POST", "/artifact"), ("PUT", "/artifacts"), ("GET", "/artifact/x")):
        headers = registry.request(method, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Type"].startswith("application/problem+json")


# -- tokens (H4, H12, H15) ----------------------------------------------------------------------------------------


def test_a_token_is_refused_on_the_next_request_of_every_worker_after_it_was_revoked(pair):
    owner = pair.token("alice")
    sample = pair.store(Sample.new(), owner, "private-token")
    tokens = {"publish": pair.token("alice"), "read": pair.token("alice", scope="read")}
    tokens["fetch"] = pair.fetch_token(sample, owner)

    def status(token):
        return pair.once.get(sample.path, headers=bearer(token)).status_code

    workers = pair.worker_pids
    assert len(workers) == 2
    for kind, token in tokens.items():
        for worker in workers:
            with pair.only(worker):
                assert status(token) == 200, kind
        with pair.only(workers[0]):
            if kind == "fetch":
                made = pair.once.delete(f"{sample.path}/tokens/{token.id}", headers=bearer(owner))
                assert made.is_success
            else:
                pair.revoke(token)
        for worker in reversed(workers):
            with pair.only(worker):
                assert status(token) == 401, kind


def test_a_token_expires_by_itself(pair):
    sample = pair.store(Sample.new(), pair.token("alice"))
    assert pair.get(sample.path, pair.expired_token("alice")).status_code == 401
    assert pair.get(sample.path, pair.token("alice", expires=timedelta(hours=1))).status_code == 200


def test_a_token_of_the_command_line_works_until_the_command_line_revokes_it(registry):
    code, issued = ari_json("registry", "token", "issue", "carol", "--data-dir", registry.data)
    assert code == 0
    registry.issued.append(issued["token"])
    sample = Sample.new()
    assert registry.upload(sample, issued["token"]).status_code == 200
    code, _ = ari_json("registry", "token", "revoke", issued["id"], "--data-dir", registry.data)
    assert code == 0
    assert registry.get(sample.path, issued["token"]).status_code == 401


def test_every_bad_token_gets_the_same_answer(registry):
    revoked, expired = registry.token("alice"), registry.expired_token("alice")
    good = registry.token("alice")
    registry.revoke(revoked)
    bad = [
        "ari_" + "A" * 43,
        revoked,
        expired,
        "x",
        "arif_" + "A" * 43,
        good[:-1],
        good + "x",
        good.swapcase(),
        "ä",
    ]
    answers = [registry.get("/artifacts", headers={"Authorization": f"Bearer {token}".encode()}) for token in bad]
    schemes = (f"Basic {good}", "Bearer", good, f"Bearer {good} {good}", f"Bearer  {good}x", "Digest a=b")
    answers += [registry.get("/artifacts", headers={"Authorization": scheme}) for scheme in schemes]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert registry.get("/artifacts", headers={"Authorization": f"bearer {good}"}).status_code == 200


def test_a_fetch_token_opens_its_artifact_and_nothing_else(registry, alice):
    mine, other = (registry.store(Sample.new(), alice, "private-token") for _ in range(2))
    fetch = registry.fetch_token(mine, alice)
    assert fetch.startswith("arif_")
    assert registry.get(mine.path, fetch).content == mine.data
    assert registry.get(f"{mine.path}/manifest.lock", fetch).content == mine.manifest
    assert registry.get(other.path, fetch).status_code == 403
    assert registry.get("/artifacts", fetch, params={"mine": "1"}).status_code == 403
    assert registry.upload(Sample.new(), fetch).status_code == 403
    assert fetch not in registry.get(f"{mine.path}/tokens", alice).text


def test_nobody_manages_the_fetch_tokens_of_others(registry, alice, bob):
    sample = registry.store(Sample.new(), alice, "private-token")
    theirs = registry.store(Sample.new(), bob, "private-token")
    fetch = registry.fetch_token(sample, alice)
    assert registry.get(f"{sample.path}/tokens", bob).status_code == 403
    assert registry.delete(f"{sample.path}/tokens/{fetch.id}", bob).status_code == 403
    absent = registry.delete(f"{theirs.path}/tokens/{'0' * 16}", bob)
    guessed = registry.delete(f"{theirs.path}/tokens/{fetch.id}", bob)
    assert (absent.status_code, guessed.status_code) == (404, 404)
    strip = re.compile("[0-9a-f]{16}")
    assert strip.sub("", absent.json()["detail"]) == strip.sub("", guessed.json()["detail"])
    registry.upload(sample, bob)  # an owner now, but not of that token
    assert registry.delete(f"{sample.path}/tokens/{fetch.id}", bob).status_code == 404
    assert fetch.id not in registry.get(f"{sample.path}/tokens", bob).text
    assert registry.get(sample.path, fetch).status_code == 200
    assert registry.delete(f"{sample.path}/tokens/{fetch.id}", alice).is_success
    assert registry.get(sample.path, fetch).status_code == 401


def test_fetch_tokens_end_with_the_claim_they_were_made_under(registry, alice, bob):
    sample = registry.store(Sample.new(), alice, "private-token")
    fetch = registry.fetch_token(sample, alice)
    registry.store(sample, bob, "private-token")
    registry.delete(sample.path, alice)
    assert registry.get(sample.path, fetch).status_code == 401
    registry.delete(sample.path, bob)
    registry.store(sample, alice, "private-token")
    assert registry.get(sample.path, fetch).status_code == 401


def canaries(canary, sample, token):
    """Requests that carry a secret where people put secrets."""
    yield "GET", sample.path, {"Authorization": f"Bearer {canary}"}
    yield "GET", sample.path, {"Authorization": f"Basic {canary}"}
    yield "GET", sample.path, {"Authorization": canary}
    yield "GET", sample.path, {"X-Api-Key": canary, "Cookie": f"token={canary}", "X-Request-Id": canary}
    yield "GET", f"{sample.path}?token={canary}&access_token={canary}", {}
    yield "GET", f"/artifacts?q={canary}", {}
    yield "GET", f"/artifacts?after={canary}", {}
    yield "GET", f"/artifact/{canary}", {}
    yield "DELETE", f"{sample.path}/tokens/{canary}", bearer(token)
    yield "POST", f"{sample.path}/promote?target={canary}", bearer(token)
    yield "GET", f"{sample.path}?token={canary}", bearer(token)
    yield "GET", f"/artifacts?mine={canary}", bearer(token)
    yield "GET", f"/{canary}", {}
    yield "POST", f"{sample.path}/promote?target={canary}", {}
    yield "GET", sample.path, {"User-Agent": canary, "Referer": f"http://x/?{canary}", "Range": f"bytes={canary}"}
    yield "GET", sample.path, {"If-None-Match": canary, "If-Range": canary, "Host": canary, "Origin": canary}
    yield "POST", "/artifact", {"Authorization": f"Bearer {canary}", "Content-Type": canary, "Content-Length": "0"}
    yield canary[4:14].upper(), "/artifact", {"Authorization": f"Bearer {canary}"}
    yield "GET", "/a%1b[31m%0aINFO%0d%00b\x7f", {"Authorization": f"Bearer {canary}"}
    yield "GET", f"http://{canary}@host/artifact", {}


def test_no_secret_reaches_the_log_and_each_request_is_one_line(alone):
    canary = f"ari_{uuid.uuid4().hex}canary"
    with alone() as server:
        server.issued.append(canary)
        alice = server.token("alice")
        requests = list(canaries(canary, server.store(Sample.new(), alice), alice))

        def lines():
            return len(server.log.read_bytes().splitlines())

        # A request's line is written behind its answer; one that came later would be taken for the next one's.
        assert eventually(lambda: b" method=POST path=/artifact " in server.log.read_bytes())
        for method, path, headers in requests:
            before = lines()
            with server.wire() as wire:
                host = {} if "Host" in headers else {"Host": "x"}
                wire.send(f"{method} {path} HTTP/1.1\r\n")
                wire.send("".join(f"{name}: {value}\r\n" for name, value in (host | headers).items()) + "\r\n")
                assert canary.encode() not in wire.answer(method).body
            assert eventually(lambda before=before: lines() > before, 15), (method, path)
            assert lines() == before + 1, (method, path)
        assert canary not in server.get("/metrics").text


# -- listing ------------------------------------------------------------------------------------------------------


def test_pages_are_complete_and_stable_while_others_publish(registry, alice):
    word = f"w{uuid.uuid4().hex}"
    stored = {registry.store(Sample.new({f"{word}.csv": b"1\n"}), alice, "public").id for _ in range(7)}
    seen, after = [], None
    while True:
        params = {"limit": "2", "q": word, **({"after": after} if after else {})}
        page = registry.get("/artifacts", params=params).json()
        assert len(page["artifacts"]) <= 2
        seen += page["artifacts"]
        registry.store(Sample.new({f"{word}.csv": b"1\n"}), alice, "public")
        if (after := page["next"]) is None:
            break
    ids = [one["id"] for one in seen]
    assert stored <= set(ids)
    assert len(ids) == len(set(ids))
    times = [one["created_at"] for one in seen]
    assert times == sorted(times, reverse=True)
    assert {one["visibility"] for one in seen} == {"public"}


@pytest.mark.parametrize(
    "params",
    [{"after": after} for after in ("x", "%", "1", "AAAA", "e30", "-1", "\x00", "' OR 1=1 --", "é", "a" * 10_000)]
    + [{"limit": limit} for limit in ("0", "-1", "x", "1e3", "99999999999999999999", "")],
    ids=lambda value: str(value)[:30],
)
def test_a_listing_that_makes_no_sense_is_refused(registry, params):
    assert registry.get("/artifacts", params=params).status_code in {400, 422}


def test_a_search_is_words_and_no_language(registry, alice):
    word = f"w{uuid.uuid4().hex}"
    metadata = json.dumps({"title": f"The {word} of É", "license": "MIT"})
    sample = Sample.new({"data/Table.csv": b"1\n"}, publish={"visibility": "staged", "license": "CC-BY-4.0"})
    assert registry.upload(sample, alice, **{"X-ARI-Metadata": metadata}).status_code == 200
    registry.promote(sample, alice, "public")
    for found in (
        word,
        word.upper(),
        f"é  {word}",
        f"table.CSV {word}",
        f"cc-by-4.0 {word}",
        f"{sample.id} {word}",
    ):
        assert registry.ids(q=found) == [sample.id], found
    for odd in ("%", "_", "*", "?", "\\", "'", '"', "' OR '1'='1", " OR a", " NEAR(a b)", "(", "^", ":", "\x00"):
        for query in (f"{word[:-1]}{odd}", f"{word} {odd}x7x"):
            answer = registry.get("/artifacts", params={"q": query})
            assert answer.status_code == 400 or answer.json()["artifacts"] == [], query
    assert registry.get("/artifacts", params={"q": "é" * 10_000}).status_code in {400, 414, 422}


# -- deleting (H14) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_what_may_be_cited_leaves_a_tombstone(registry, alice, level):
    sample = registry.store(Sample.new(), alice, level)
    assert registry.delete(sample.path, alice).json() == {"deleted": sample.id}
    gone = 410 if level in {"unlisted", "public"} else 404
    for tail in ("", "/manifest.lock", "/meta"):
        answer = registry.get(sample.path + tail)
        assert answer.status_code == gone
        if gone == 410:
            assert re.search(r"20\d\d-\d\d-\d\d", answer.json()["detail"])
            assert "alice" not in answer.text
    assert registry.head(sample.path).status_code == gone
    assert registry.delete(sample.path, alice).status_code == gone
    assert registry.promote(sample, alice, "public").status_code == gone
    assert registry.ids(q=sample.id) == []
    assert registry.ids(alice, mine="1", q=sample.id) == []
    made = registry.upload(sample, alice).json()
    assert (made["visibility"], made["duplicate"]) == ("staged", False)
    assert registry.get(sample.path, alice).content == sample.data
    assert registry.get(sample.path).status_code == 401


# -- what the server is made to fetch (F4) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://169.254.169.254/", "simplecache::file:///etc/passwd"]
)
def test_the_server_fetches_nothing_that_a_user_names(registry, alice, url):
    answer = registry.upload(Sample.new(), alice, **{"X-ARI-Metadata": json.dumps({"url": url}), "Location": url})
    assert "root:" not in answer.text
    for path in (
        f"/artifact/{url}",
        f"/artifact?url={url}",
        f"/artifacts?q={url}",
        f"/artifact/{'0' * 16}?ref={url}",
    ):
        with registry.wire() as wire:
            answer = wire.head("GET", path, bearer(alice)).answer()
            assert answer.status in {200, 404, 405}
            assert b"root:" not in answer.body
