"""Many clients at once against two workers: what was acknowledged is there, whole, at its highest level."""

import contextlib
import hashlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
from support.registry import LEVELS, PATIENCE, Sample, bearer, eventually, together

CLIENTS = 32


def once(pair, method, path, token=None, **more):
    """One request on a connection of its own, so that the workers share them."""
    return pair.once.request(method, path, headers={**bearer(token), **more.pop("headers", {})}, **more)


def upload(pair, sample, token):
    headers = {"Content-Type": "application/gzip"}
    return once(pair, "POST", "/artifact", token, content=sample.data, headers=headers)


def test_one_upload_by_32_clients_of_one_user_is_stored_once(pair):
    alice = pair.token("alice")
    sample = Sample.noise(100_000)
    answers = together(*[partial(upload, pair, sample, alice)] * CLIENTS)
    assert [answer.status_code for answer in answers] == [200] * CLIENTS, answers[0].text
    assert sorted(answer.json()["duplicate"] for answer in answers) == [False] + [True] * (CLIENTS - 1)
    assert pair.get(sample.path, alice).content == sample.data
    assert len(pair.get(f"{sample.path}/meta", alice).json()["owners"]) == 1
    assert eventually(lambda: len([path for path in pair.files() if sample.id in path]) == 3)


def test_one_upload_by_32_users_has_32_owners(pair):
    tokens = [pair.token(f"user-{number}") for number in range(CLIENTS)]
    sample = Sample.noise(100_000)
    answers = together(*[partial(upload, pair, sample, token) for token in tokens])
    assert [answer.status_code for answer in answers] == [200] * CLIENTS
    assert not any(answer.json()["duplicate"] for answer in answers)
    owners = pair.get(f"{sample.path}/meta", tokens[0]).json()["owners"]
    assert {owner["user"] for owner in owners} == {f"user-{number}" for number in range(CLIENTS)}
    for token in tokens:
        assert pair.get(sample.path, token).status_code == 200


def test_racing_promotions_end_at_the_highest(pair):
    tokens = [pair.token("alice"), pair.token("bob")]
    for sample in [Sample.new() for _ in range(4)]:
        for token in tokens:
            pair.store(sample, token)
        calls = [
            partial(once, pair, "POST", f"{sample.path}/promote", token, params={"target": level})
            for token in tokens
            for level in LEVELS[1:] * 2
        ]
        random.shuffle(calls)
        assert {answer.status_code for answer in together(*calls)} <= {200, 400}  # a lower one may come too late
        owners = pair.get(f"{sample.path}/meta", tokens[0]).json()["owners"]
        assert [owner["visibility"] for owner in owners] == ["public", "public"]
        assert pair.level(sample) == "public"
        assert pair.ids(q=sample.id) == [sample.id]


def test_a_download_that_its_artifact_is_deleted_under_is_whole_or_fails_cleanly(pair):
    alice = pair.token("alice")
    sample = pair.store(Sample.noise(30_000_000), alice)
    streams = [pair.http.stream("GET", sample.path, headers=bearer(alice)) for _ in range(3)]
    digests = []
    for number, stream in enumerate(streams):
        with stream as answer:
            assert answer.status_code == 200
            pieces = answer.iter_raw(65536)
            digest = hashlib.sha256(next(pieces))
            if number == 0:
                assert once(pair, "DELETE", sample.path, alice).status_code == 200
                assert once(pair, "GET", sample.path, alice).status_code == 404
                pair.store(sample, alice)
            try:
                for piece in pieces:
                    digest.update(piece)
            except httpx2.RemoteProtocolError:
                continue  # shorter than announced, and the reader can tell
            digests.append(digest.hexdigest())
    assert set(digests) == {sample.sha256}
    assert len(digests) >= 2


def test_what_an_upload_acknowledged_stays_readable_while_others_delete(pair):
    """One user uploads and deletes all the time; what the other was told is stored is there."""
    alice, bob = pair.token("alice"), pair.token("bob")
    sample = Sample.noise(20_000)
    stop = threading.Event()
    troubles = []

    def restless(token):
        while not stop.is_set():
            answers = (upload(pair, sample, token), once(pair, "DELETE", sample.path, token))
            troubles.extend(answer.text for answer in answers if answer.status_code not in {200, 403, 404})

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(restless, alice) for _ in range(2)]
        try:
            for _ in range(20):
                answer = upload(pair, sample, bob)
                assert answer.status_code == 200, answer.text
                got = once(pair, "GET", sample.path, bob)
                assert (got.status_code, got.content == sample.data) == (200, True), got.text
                assert once(pair, "HEAD", sample.path).status_code == 200
                answer = once(pair, "DELETE", sample.path, bob)
                assert answer.status_code == 200, answer.text
                assert once(pair, "GET", sample.path, bob).status_code in {403, 404}
        finally:
            stop.set()
        for other in others:
            other.result(PATIENCE)
    assert troubles == []
    upload(pair, sample, alice)
    assert pair.get(sample.path, alice).content == sample.data
    pair.delete(sample.path, alice)
    assert [path for path in pair.files() if sample.id in path] == []


def test_deleting_at_once_deletes_once_and_only_what_there_is(pair):
    alice, bob = pair.token("alice"), pair.token("bob")
    sample = pair.store(Sample.new(), alice)
    pair.store(sample, bob)
    statuses = [
        answer.status_code for answer in together(*[partial(once, pair, "DELETE", sample.path, alice)] * 8)
    ]
    assert set(statuses) <= {200, 403}
    assert 200 in statuses
    assert pair.get(sample.path, bob).content == sample.data
    assert pair.get(sample.path, alice).status_code == 403


@pytest.mark.parametrize("levels", [("staged", "public"), ("public", "staged")])
def test_what_one_owner_does_reaches_the_other_worker_at_once(pair, levels):
    """No worker answers from memory what another has changed."""
    owner = pair.token("alice")
    sample = pair.store(Sample.new(), owner, levels[0])
    first, second = pair.worker_pids
    for here, there in ((first, second), (second, first)):
        with pair.only(there):
            before = once(pair, "HEAD", sample.path).headers["X-ARI-Visibility"]
        with pair.only(here):
            assert once(pair, "DELETE", sample.path, owner).status_code == 200
        with pair.only(there):
            assert once(pair, "HEAD", sample.path).status_code == (404 if before == "staged" else 410)
        with pair.only(here):
            assert upload(pair, sample, owner).status_code == 200
            once(pair, "POST", f"{sample.path}/promote", owner, params={"target": levels[1]})
        with pair.only(there):
            assert once(pair, "HEAD", sample.path).headers["X-ARI-Visibility"] == levels[1]


def test_after_every_race_the_index_says_what_the_store_says(pair):
    """Owners come, rise and go at once; then listings and levels are those on the disk."""
    users = {f"racer-{number}": pair.token(f"racer-{number}") for number in range(4)}
    chance = random.Random(5)
    for _ in range(25):
        sample = Sample.new()
        for token in users.values():
            if chance.random() < 0.7:
                pair.store(sample, token)
        calls = []
        for token in users.values():
            target = {"target": chance.choice(LEVELS[1:])}
            calls += chance.sample(
                [
                    partial(upload, pair, sample, token),
                    partial(once, pair, "DELETE", sample.path, token),
                    partial(once, pair, "POST", f"{sample.path}/promote", token, params=target),
                ],
                2,
            )
        assert {answer.status_code for answer in together(*calls)} <= {200, 400, 403, 404, 410}
        assert_index_and_store_agree(pair, sample, users)


def assert_index_and_store_agree(pair, sample, users):
    owners = {}
    with contextlib.suppress(FileNotFoundError):
        meta = json.loads((pair.data / "artifacts" / sample.id / "meta.json").read_text())
        owners = {owner["user"]: owner["visibility"] for owner in meta["owners"]}
    for user, token in users.items():
        assert (sample.id in pair.ids(token, mine="1", q=sample.id)) == (user in owners)
        if user in owners:
            told = pair.get(f"{sample.path}/meta", token).json()
            assert {owner["user"]: owner["visibility"] for owner in told["owners"]} == owners
            assert told["visibility"] == max(owners.values(), key=LEVELS.index)
    assert (sample.id in pair.ids(q=sample.id)) == ("public" in owners.values())
    assert pair.head(sample.path).status_code in ({200} if owners else {404, 410})
