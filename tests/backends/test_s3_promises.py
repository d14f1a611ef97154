import contextlib
import hashlib
import json
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from support.faults import Faults
from support.httpd import Server

from ari_backends.s3.client import Client
from ari_backends.s3.promises import MEMORY, TRIALS, Promises
from ari_backends.s3.settings import S3Settings
from ari_core.errors import AccessDenied, Unavailable

KEYS = {"access_key_id": "AKID", "secret_access_key": "secret"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextlib.contextmanager
def opened(store, prefix="lab"):
    keys = {"access_key_id": store.access_key, "secret_access_key": store.secret_key}
    client = Client(S3Settings(bucket=store.bucket, prefix=prefix, endpoint_url=store.endpoint_url, **keys))
    try:
        yield client
    finally:
        client.close()


def received(request, wire):
    """The body of a request, which botocore sends when it is told to go on, or after a second."""
    if "expect" in request.headers:
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = request.raw.split(b"\r\n\r\n", 1)[1]
    while len(body) < int(request.headers.get("content-length", 0)):
        body += wire.socket.recv(65536)
    return body


class Made(Server):
    """A store in memory that heeds conditions as told.

    Attributes:
        objects: By key.
        heeds: Conditions that are heeded, "if-none-match" and "if-match"; others are ignored.
        refuses: A status for any condition.
        revives: Writes over what is gone, whatever If-Match says.
        racy: Looks at what is there only when all who race have arrived, and lets all of them win.
        busy: How often somebody who meets another writer is told 409 first.
        keeps: Refuses to delete.
    """

    def __init__(self, **told):
        super().__init__(self._respond)
        self.heeds = told.pop("heeds", ("if-none-match", "if-match"))
        self.refuses, self.racy, self.busy = (told.pop(name, None) for name in ("refuses", "racy", "busy"))
        self.revives, self.keeps = (told.pop(name, False) for name in ("revives", "keeps"))
        assert not told
        self.objects, self.told_busy = {}, {}
        self._turn = threading.Lock()
        self._race = threading.Barrier(8, timeout=5)

    def _respond(self, request, wire):
        key = urlsplit(request.target).path.removeprefix("/lab/")
        body = received(request, wire)
        answer = getattr(self, request.method.lower())
        status, headers, data = answer(key, body, request)
        wire.answer(status, {"Date": "Mon, 23 Nov 2026 06:00:00 GMT", **headers}, data)

    def get(self, key, _body, _request):
        if key not in self.objects:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        return 200, self._facts(key), self.objects[key]

    def head(self, key, _body, _request):
        if key not in self.objects and key not in {"", "lab", "/lab"}:
            return 404, {}, b""
        return 200, self._facts(key), b""

    def put(self, key, body, request):
        conditions = {name for name in ("if-none-match", "if-match") if name in request.headers}
        if conditions and self.refuses:
            return self.refuses, {}, b"<Error><Code>NotImplemented</Code></Error>"
        with self._turn:
            if conditions and self.told_busy.get(body, 0) < (self.busy or 0):
                self.told_busy[body] = self.told_busy.get(body, 0) + 1
                return 409, {}, b"<Error><Code>ConditionalRequestConflict</Code></Error>"
            good = self._holds(key, request)
            if good and not (self.racy in conditions and len(body) == 32):
                self.objects[key] = body
        if not good:
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        if self.racy in conditions and len(body) == 32:
            self._race.wait()
            self.objects[key] = body
        return 200, self._facts(key), b""

    def _holds(self, key, request):
        if "if-none-match" in request.headers and "if-none-match" in self.heeds and key in self.objects:
            return False
        if "if-match" in request.headers and "if-match" in self.heeds:
            if key not in self.objects:
                return self.revives
            return request.headers["if-match"] == self._facts(key)["ETag"]
        return True

    def delete(self, key, _body, _request):
        if self.keeps:
            return 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
        self.objects.pop(key, None)
        return 204, {}, b""

    def post(self, _key, body, request):
        assert "delete" in parse_qs(urlsplit(request.target).query, keep_blank_values=True)
        return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"

    def _facts(self, key):
        facts = (
            {"ETag": f'"{hashlib.sha1(self.objects[key], usedforsecurity=False).hexdigest()}"'}
            if key in self.objects
            else {}
        )
        return {**facts, "Last-Modified": "Mon, 23 Nov 2026 06:00:00 GMT"}


@contextlib.contextmanager
def trying(server):
    with server:
        client = Client(S3Settings(bucket="lab", endpoint_url=server.origin, **KEYS))
        try:
            yield client
        finally:
            client.close()


def kept(promises):
    return (promises.create_only, promises.compare_and_set, promises.if_none_match, promises.if_match)


REAL = {
    "moto": (True, True, True, "quoted"),
    "rgw": (True, True, True, "unquoted"),
    "swift": (False, False, True, None),
}


def test_a_trial_tells_what_a_store_keeps_and_the_store_remembers_it(s3_store):
    with opened(s3_store) as client:
        assert Promises.load(client) is None
        promises = Promises.trial(client)
        assert kept(promises) == REAL[s3_store.name]
        assert Promises.load(client) == promises
        assert [entry.key for entry in client.keys("")] == [f"lab/{MEMORY}"]
        with opened(s3_store, prefix="elsewhere") as other:
            assert Promises.load(other) is None


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({}, (True, True, True, "quoted")),
        ({"heeds": ()}, (False, False, False, None)),
        ({"heeds": ("if-none-match",)}, (True, False, True, None)),
        ({"heeds": ("if-match",)}, (False, True, False, "quoted")),
        ({"refuses": 501}, (False, False, False, None)),
        ({"refuses": 400}, (False, False, False, None)),
        ({"revives": True}, (True, False, True, None)),
        ({"racy": "if-none-match"}, (False, True, True, "quoted")),
        ({"racy": "if-match"}, (True, False, True, "quoted")),
        ({"busy": 2}, (True, True, True, "quoted")),
    ],
)
def test_no_store_is_believed_more_than_it_keeps(made, expected):
    with trying(server := Made(**made)) as client:
        assert kept(Promises.trial(client)) == expected
        assert list(server.objects) == [MEMORY]


def test_a_winner_whose_answer_got_lost_is_not_held_against_the_store(moto):
    with Faults(moto.endpoint_url) as faults, opened(moto.behind(faults)) as client:
        faults.order("PutObject", "/once", lose=True)
        faults.order("PutObject", "/swap-quoted", nth=2, lose=True)
        assert kept(Promises.trial(client)) == REAL["moto"]


def test_a_trial_that_fails_leaves_nothing_behind_and_nothing_remembered(moto):
    with Faults(moto.endpoint_url) as faults, opened(moto.behind(faults)) as client:
        faults.order("PutObject", "/create-3", nth=5, times=None, answer=(500, "InternalError"))
        with pytest.raises(Unavailable):
            Promises.trial(client)
        faults.forget()
        assert list(client.keys()) == []


def test_who_may_not_delete_learns_it_and_has_the_outcome_all_the_same():
    lines = []
    with trying(server := Made(keeps=True)) as client:
        assert kept(Promises.trial(client, lines.append)) == (True, True, True, "quoted")
        assert len(lines) == 1
        assert TRIALS in lines[0]
        assert "could not be removed" in lines[0]
        assert Promises.load(client) is not None
        assert len(server.objects) > 1


def remembered(client, **changes):
    good = {"create_only": True, "compare_and_set": True, "if_none_match": True, "if_match": "quoted"}
    memory = {**good, "tried": "2026-11-23T06:00:00Z", **changes}  # when `Made` says that all was modified
    client.put(client.key(MEMORY), json.dumps(memory).encode())
    return Promises.load(client)


@pytest.mark.parametrize(
    "changes",
    [
        {"create_only": "true"},
        {"create_only": 1},
        {"if_match": "both"},
        {"if_none_match": False},
        {"if_match": None},
        {"tried": None},
        {"tried": "2026-11-23T06:00:00"},
        {"tried": 1700000000},
        {"tried": "2020-01-01T00:00:00Z"},
        {"tried": "2099-01-01T00:00:00Z"},
        {"something": "else"},
    ],
)
def test_a_memory_with_anything_odd_in_it_is_none(changes):
    with trying(Made()) as client:
        assert remembered(client) is not None
        assert remembered(client, **changes) is None


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b"{", b"[" * 4000, b" " * 5000])
def test_a_memory_that_is_no_json_of_ours_is_none(data):
    with trying(Made()) as client:
        client.put(client.key(MEMORY), data)
        assert Promises.load(client) is None


def test_a_memory_that_was_copied_from_another_store_is_none(moto):
    with opened(moto) as client:
        promises = Promises.trial(client)
        old = promises.model_copy(update={"tried": promises.tried.replace(year=2025)})
        client.put(client.key(MEMORY), old.model_dump_json().encode())
        assert Promises.load(client) is None


def test_that_nothing_is_remembered_is_never_said_of_a_store_that_refuses():
    with trying(Server(lambda _request, wire: wire.answer(403))) as client, pytest.raises(AccessDenied) as caught:
        Promises.load(client)
    assert "to say what the store can do" in caught.value.message


def test_nothing_is_promised_by_default_and_an_etag_is_spelled_as_the_store_wants_it():
    assert kept(Promises()) == (False, False, False, None)
    assert Promises().spelled('"e"') is None
    assert Promises(if_match="quoted").spelled("e") == '"e"'
    assert Promises(if_match="unquoted").spelled('"e"') == "e"
