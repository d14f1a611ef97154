"""What routes ask for and answer, as far as the matrix and the hostile tests do not say."""

import threading
from datetime import UTC, datetime

import pytest
from support.registry import Sample, bearer, eventually, together
from support.serving import Serving

from ari_core.contract import Locator, Owner, Visibility
from ari_core.errors import Unavailable
from ari_core.verification import check_archive
from ari_server import upload
from ari_server.access import Permission, Verdict, decide
from ari_server.rows import Row
from ari_server.tokens import Caller

LEVELS = tuple(Visibility)
OK, WHO, NO = Verdict.ALLOWED, Verdict.WHO_ARE_YOU, Verdict.NO


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(tmp_path_factory.mktemp("routes"), body_timeout=1.0) as serving:
        yield serving


@pytest.fixture(scope="module")
def alice(server):
    return server.token("alice")


@pytest.fixture
def sample(server, alice):
    made = Sample.new()
    assert server.upload(made, alice).status_code == 200
    return made


# -- who may do what -------------------------------------------------------------------------------------------


def artifact(level):
    owners = (Owner("alice", level), Owner("bob"))
    return Row("a" * 16, "a" * 64, None, 1, level, datetime(2026, 1, 1, tzinfo=UTC), Locator("x"), owners)


CALLERS = {
    "nobody": None,
    "stranger": Caller("carol", "publish", "1"),
    "stranger who reads": Caller("carol", "read", "2"),
    "fetch": Caller("alice", "fetch", "3", "a" * 64),
    "fetch of another": Caller("alice", "fetch", "4", "b" * 64),
    "owner who reads": Caller("alice", "read", "5"),
    "owner": Caller("alice", "publish", "6"),
    "owner at a lower level": Caller("bob", "publish", "7"),
}
READING = {  # staged, private-token, unlisted, public
    "nobody": (WHO, WHO, OK, OK),
    "stranger": (NO, NO, OK, OK),
    "stranger who reads": (NO, NO, OK, OK),
    "fetch": (NO, OK, OK, OK),
    "fetch of another": (NO, NO, OK, OK),
    "owner who reads": (OK, OK, OK, OK),
    "owner": (OK, OK, OK, OK),
    "owner at a lower level": (OK, OK, OK, OK),
}
CHANGING = {"nobody": WHO, "owner": OK, "owner at a lower level": OK}
PUBLISHING = {**CHANGING, "stranger": OK}


@pytest.mark.parametrize("who", CALLERS)
def test_who_may_read_change_and_publish(who):
    caller = CALLERS[who]
    rows = [artifact(level) for level in LEVELS]
    assert tuple(decide(Permission.READER, caller, row) for row in rows) == READING[who]
    assert {decide(Permission.OWNER, caller, row) for row in rows} == {CHANGING.get(who, NO)}
    assert decide(Permission.PUBLISHER, caller, None) == PUBLISHING.get(who, NO)
    assert decide(Permission.ANYBODY, caller, None) == OK


def test_an_artifact_without_owners_belongs_to_nobody():
    row = Row("a" * 16, "a" * 64, None, 1, Visibility.STAGED, datetime(2026, 1, 1, tzinfo=UTC), Locator("x"))
    assert decide(Permission.READER, Caller("", "publish", "1"), row) == NO
    assert decide(Permission.OWNER, Caller("", "publish", "1"), row) == NO


# -- methods and paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/artifact/" + "0" * 16, "DELETE, GET, HEAD"),
        ("/artifact", "POST"),
        ("/artifact/" + "0" * 16 + "/tokens", "GET, POST"),
    ],
)
def test_a_wrong_method_is_told_all_right_ones(server, path, allowed):
    answer = server.request("PUT", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_a_path_is_not_completed(server):
    for path in ("/artifacts/", "//artifacts", "/Artifacts", "/artifact/" + "0" * 16 + "/"):
        assert server.request("GET", path).status_code == 404


def test_the_version_says_how_bundles_can_be_sent(server):
    answer = server.request("GET", "/version").json()
    assert (answer["service"], answer["uploads"]) == ("ari-registry", ["raw", "multipart"])
    assert answer["version"]


# -- small bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json", "Content-Length": 65537}, 413),
        ({"Content-Type": "text/plain", "Content-Length": 10}, 415),
        ({"Content-Length": 10}, 415),
        ({"Content-Type": "application/json", "Content-Length": 10}, 408),
    ],
)
def test_a_small_body_is_refused_before_it_came(server, alice, sample, headers, status):
    def refused(path):
        with server.wire() as wire:
            wire.head("POST", f"{sample.path}/{path}", {**bearer(alice), **headers})
            assert wire.answer().status == status
            assert wire.closed()

    together(lambda: refused("promote"), lambda: refused("tokens"))


def test_a_small_body_without_a_length_is_bounded(server, alice, sample):
    chunks = (b" " * 10_000 for _ in range(8))
    headers = {"Content-Type": "application/json"}
    answer = server.request("POST", f"{sample.path}/promote", alice, content=chunks, headers=headers)
    assert answer.status_code == 413


def test_json_may_say_its_charset(server, alice, sample):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = b'{"target": "unlisted", "more": 1}'
    answer = server.request("POST", f"{sample.path}/promote", alice, content=body, headers=headers)
    assert answer.json() == {"id": sample.id, "visibility": "unlisted"}


# -- fetch tokens ----------------------------------------------------------------------------------------------


def test_a_fetch_token_carries_its_note_and_its_end(server, alice, sample):
    path = f"{sample.path}/tokens"
    made = server.request("POST", path, alice, json={"expires_in": 3600, "note": "reviewer 2"}).json()
    assert set(made) == {"id", "token", "artifact", "expires_at"}
    assert made["artifact"] == sample.id
    ends = datetime.fromisoformat(made["expires_at"])
    assert 3500 < (ends - datetime.now(UTC)).total_seconds() <= 3600
    forever = server.request("POST", path, alice).json()
    assert forever["expires_at"] is None
    listed = {one["id"]: one for one in server.request("GET", path, alice).json()["tokens"]}
    assert (listed[made["id"]]["note"], listed[made["id"]]["expires_at"]) == ("reviewer 2", made["expires_at"])
    assert server.request("DELETE", f"{path}/{made['id']}", alice).json() == {"deleted": made["id"]}
    assert [one["id"] for one in server.request("GET", path, alice).json()["tokens"]] == [forever["id"]]


@pytest.mark.parametrize(
    "body",
    [
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": True},
        {"expires_in": "3600"},
        {"expires_in": 10**12},
        {"note": 1},
        {"note": "n" * 201},
    ],
)
def test_a_fetch_token_with_odd_wishes_is_not_made(server, alice, sample, body):
    assert server.request("POST", f"{sample.path}/tokens", alice, json=body).status_code == 400
    assert server.request("GET", f"{sample.path}/tokens", alice).json() == {"tokens": []}


def test_a_fetch_token_made_while_its_maker_deletes_opens_nothing(server, alice, sample, monkeypatch):
    registry = server.registry
    bob = server.token("bob")
    server.upload(sample, bob)
    server.request("POST", f"{sample.path}/promote", bob, json={"target": "private-token"})
    real, made = registry.tokens.issue_fetch, []

    def slow(*arguments, **more):
        registry.delete(registry.find(sample.id), Caller("alice", "publish", "1"))
        made.append(real(*arguments, **more))
        return made[0]

    monkeypatch.setattr(registry.tokens, "issue_fetch", slow)
    assert server.request("POST", f"{sample.path}/tokens", alice).status_code == 404
    assert server.request("GET", sample.path, made[0].token).status_code == 401


# -- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "host", "url"),
    [
        ("https://ari.example.org/lab", "evil.example", "https://ari.example.org/lab/artifact/"),
        (None, "ari.example.org:8290", "http://ari.example.org:8290/artifact/"),
        (None, "[::1]:8290", "http://[::1]:8290/artifact/"),
        (None, 'x"><script>', "/artifact/"),
        (None, "user@evil.example/", "/artifact/"),
    ],
)
def test_links_are_those_that_are_configured_else_how_the_request_came(tmp_path, base_url, host, url):
    with Serving(tmp_path, base_url=base_url) as server:
        answer = server.upload(Sample.new(), server.token("alice"), Host=host).json()
        assert answer["url"] == url + answer["id"]


# -- readiness and metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["store", "index", "tokens", "spool"])
def test_a_server_that_cannot_serve_says_which_part_fails_and_no_more(server, monkeypatch, part):
    def failing():
        raise Unavailable("/srv/secret/path is gone")

    registry = server.registry
    owner, name = {
        "store": (registry.store, "_probe"),
        "index": (registry.index, "ping"),
        "tokens": (registry.tokens, "ping"),
        "spool": (registry, "workdir"),
    }[part]
    monkeypatch.setattr(owner, name, failing)
    answer = server.request("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == f"not ready: {part}"
    monkeypatch.undo()
    assert server.request("GET", "/readyz").json() == {"ready": True}


def test_metrics_can_be_kept_for_users(tmp_path):
    with Serving(tmp_path / "token", metrics="token") as server:
        user, sample = server.token("alice", scope="read"), Sample.new()
        owner = server.token("alice")
        server.upload(sample, owner)
        fetch = server.request("POST", f"{sample.path}/tokens", owner).json()["token"]
        statuses = [server.request("GET", "/metrics", token).status_code for token in (None, "x", fetch, user)]
        assert statuses == [401, 401, 403, 200]
    with Serving(tmp_path / "off", metrics="off") as server:
        assert server.request("GET", "/metrics", server.token("alice")).status_code == 404


def test_an_upload_ends_before_the_server_does(tmp_path, monkeypatch):
    """Its thread has a spool to remove, and nobody waits for threads once uvicorn is done."""
    told, left = threading.Event(), []

    def slow_to_give_up(*arguments, **more):
        try:
            return check_archive(*arguments, **more)
        finally:
            told.wait(0.5)  # longer than anything else that happens at the end

    monkeypatch.setattr(upload, "check_archive", slow_to_give_up)
    with Serving(tmp_path) as server:
        close = server.registry.close
        monkeypatch.setattr(server.registry, "close", lambda: (left.extend(server.spools()), close()))
        data = Sample.noise(400_000).data
        with server.uploading(server.token("alice"), len(data)) as wire:
            wire.send(data[:200_000])
            assert eventually(server.spools)
            server._server.config.timeout_graceful_shutdown = 1
            server._server.should_exit = True
            assert wire.answer().status == 503
    assert left == []
