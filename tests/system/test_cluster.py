"""Two servers of one store and one database behind nginx: what was acknowledged by one is true for both.

Tests run on Ceph, with downloads that are redirected there, and on a store that ignores every condition, so that
only the servers' turns keep writers apart.
"""

import contextlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial

import httpx2
import pytest
from support.cluster import PART, Cluster
from support.faults import Faults
from support.registry import LEVELS, PATIENCE, Sample, eventually, together
from support.stores import Moto, Postgres, Rgw

from ari_backends.s3.backend import S3

pytestmark = [pytest.mark.in_ci, pytest.mark.needs("nginx", "setpriv", "initdb")]
WEAK = ("if-match", "if-none-match")
ABSENT = {403, 404, 410}
CHANGES = ("PutObject", "DeleteObject", "DeleteObjects")
KILLS = 60


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    with Rgw(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@contextlib.contextmanager
def weak(folder):
    """A store whose writers all win."""
    with Moto(folder) as moto, Faults(moto.store.endpoint_url) as proxy:
        proxy.order(times=None, without=WEAK)
        yield moto.store.behind(proxy).with_bucket()


CEPH = pytest.param("ceph", marks=pytest.mark.needs("radosgw", "ceph-mon", "ceph-osd"))
MOTO = pytest.param("weak", marks=pytest.mark.needs("moto_server"))


@pytest.fixture(scope="module", params=[CEPH, MOTO])
def cluster(request, postgres, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres.store.database())
        if request.param == "ceph":
            store, settings = request.getfixturevalue("ceph").store.with_bucket(), {"redirect": 60}
        else:
            store, settings = stack.enter_context(weak(folder / "moto")), {}
        yield stack.enter_context(Cluster(folder / "cluster", store, url, **settings))


@pytest.fixture(autouse=True)
def _no_faults(cluster):
    yield
    cluster.faults.forget()


only_ceph = pytest.mark.parametrize("cluster", [CEPH], indirect=True)
only_weak = pytest.mark.parametrize("cluster", [MOTO], indirect=True)


def refused(answer):
    """Says whether the client is told to come again."""
    return (answer.status_code, "Retry-After" in answer.headers) == (503, True)


# -- one registry, whoever answers --------------------------------------------------------------------------------


@only_ceph
def test_what_one_server_did_all_workers_know_at_once(cluster):
    one, two = cluster.servers
    alice = cluster.token("alice")
    sample = Sample.noise(100_000)

    def everywhere(ask):
        found = [ask(server) for server in cluster.workers()]
        assert len(found) == 4
        return set(found)

    assert everywhere(lambda server: server.head(sample.path).status_code) == {404}
    one.store(sample, alice)
    assert everywhere(lambda server: server.get(f"{sample.path}/meta", alice).json()["visibility"]) == {"staged"}
    assert two.promote(sample, alice, "public").status_code == 200
    assert everywhere(lambda server: server.level(sample)) == {"public"}
    assert everywhere(lambda server: sample.id in server.ids(q=sample.id)) == {True}
    assert cluster.get(sample.path).content == sample.data
    done = two.run("registry", "token", "revoke", alice.id)
    assert done.returncode == 0, done.stderr
    assert everywhere(lambda server: server.get("/artifacts", alice).status_code) == {401}
    assert one.delete(sample.path, cluster.token("alice")).status_code == 200
    assert everywhere(lambda server: server.head(sample.path).status_code) == {410}
    assert cluster.keys(sample) == []


@only_ceph
def test_a_user_publishes_promotes_clones_and_deletes_as_with_one_server(cluster, tmp_path):
    token = cluster.token("carol")
    (tmp_path / "study" / "ear").mkdir(parents=True)
    (tmp_path / "study" / "ear" / "fit.py").write_text(f"print({random.random()})\n")
    (tmp_path / "study" / "ear" / "publish.yaml").write_text('include: ["*.py"]\n')

    def user(*arguments):
        done = cluster.run(*arguments, "--json", token=token, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    user("ear", "curate", "study")
    published = user("ear", "publish", "study", "--registry", "lab")
    assert user("ear", "promote", "study", "--target", "public")["visibility"] == "public"
    ref, digest = published["ref"], published["bundle_sha256"]
    done = cluster.run("clone", ref, "copy", "--expect-sha256", digest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "fit.py").read_bytes() == (tmp_path / "study" / "ear" / "fit.py").read_bytes()
    user("ear", "delete", "study", "--yes")
    done = cluster.run("clone", ref, "again", cwd=tmp_path)
    assert (done.returncode, "it was deleted" in done.stderr) == (3, True)


@only_ceph
def test_a_download_is_sent_to_the_store_by_either_server(cluster):
    alice = cluster.token("alice")
    sample = cluster.store(Sample.noise(100_000), alice)
    for server in cluster.servers:
        answer = server.get(sample.path, alice)
        assert answer.status_code == 307
        assert answer.headers["Location"].startswith(f"{cluster.faults.origin}/")
    answer = cluster.get(sample.path, alice)
    assert (len(answer.history), answer.content) == (1, sample.data)


@only_weak
@pytest.mark.parametrize("why", ["a database of its own", "another PostgreSQL database"])
def test_a_server_with_another_database_is_refused(cluster, postgres, tmp_path, why):
    with postgres.store.database() as url:
        other = cluster.server(tmp_path / "other", ARI_REGISTRY_DB=None if "own" in why else url)
        if "own" not in why:
            assert other.run("registry", "db", "upgrade").returncode == 0
        code, sentence = other.refused()
    assert code == 2
    assert "several servers of one store need one PostgreSQL database (ARI_REGISTRY_DB)" in sentence
    assert cluster.get("/healthz").status_code == 200


# -- races --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50_000, pytest.param(2 * PART, marks=pytest.mark.long)])
def test_32_racing_uploads_of_one_bundle_make_one_artifact_with_all_their_owners(cluster, size):
    sample, users = Sample.noise(size), [f"racer-{number}" for number in range(8)]
    tokens = [cluster.token(user) for user in users]
    answers = together(*[partial(cluster.upload, sample, token, **sample.declared) for token in tokens] * 4)
    assert [answer.status_code for answer in answers] == [200] * 32, {answer.text for answer in answers}
    for number in range(len(users)):
        duplicates = [answer.json()["duplicate"] for answer in answers[number :: len(users)]]
        assert False in duplicates
    assert cluster.levels(sample) == dict.fromkeys(users, "staged")
    assert sorted(cluster.keys(sample)) == ["bundle.tar.gz", "manifest.lock", "meta.json"]
    assert cluster.unfinished() == []
    for server in cluster.servers:
        told = server.get(f"{sample.path}/meta", tokens[0]).json()
        assert {owner["user"] for owner in told["owners"]} == set(users)
    assert cluster.get(sample.path, tokens[-1]).content == sample.data


class Player:
    """A user of one artifact, who remembers what was acknowledged.

    Nobody else changes what is theirs, so they know what every answer must be.

    Attributes:
        levels: The levels that may be theirs (None: no owner): more than one after a change without an answer.
        unanswered: How many had none.
    """

    def __init__(self, cluster, sample, user, *, disturbed=False):
        """`disturbed`: servers may be killed meanwhile."""
        self.cluster, self.sample, self.user, self.disturbed = cluster, sample, user, disturbed
        self.token, self.chance = cluster.token(user), random.Random(user)
        self.levels = {None}
        self.unanswered = 0

    def play(self, rounds):
        """Does so many things."""
        moves = (self.upload, self.upload, self.promote, self.promote, self.delete, self.read)
        for _ in range(rounds):
            move = self.chance.choice(moves)
            ask, outcomes = move()
            try:
                answer = ask()
                status, text = answer.status_code, answer.text[:200]
            except httpx2.TransportError as error:
                status, text = 502, str(error)
            if status >= 500:
                assert self.disturbed, (move.__name__, status, text)
                self.unanswered += 1
                self.levels |= {outcomes[level][1] for level in self.levels}
            elif self.disturbed and status in ABSENT:  # the index may not know yet what a killed server has stored
                assert None in self.levels or move == self.delete, (move.__name__, status, text, self.levels)
                self.levels |= {None}
            else:
                known = {outcomes[level][1] for level in self.levels if status in outcomes[level][0]}
                assert known, (move.__name__, status, text, self.levels)
                self.levels = known

    def upload(self):
        outcomes = {level: ({200}, level or "staged") for level in (None, *LEVELS)}
        return partial(self.cluster.upload, self.sample, self.token, **self.sample.declared), outcomes

    def promote(self):
        target = self.chance.choice(LEVELS[1:])
        too_low = {200, 400} if self.disturbed else {400}
        outcomes = {
            level: ({200}, target) if LEVELS.index(level) <= LEVELS.index(target) else (too_low, level)
            for level in LEVELS
        }
        outcomes[None] = (ABSENT, None)
        return partial(self.cluster.promote, self.sample, self.token, target), outcomes

    def delete(self):
        outcomes = {**dict.fromkeys(LEVELS, ({200}, None)), None: (ABSENT, None)}
        return partial(self.cluster.delete, self.sample.path, self.token), outcomes

    def read(self):
        outcomes = {**{level: ({200}, level) for level in LEVELS}, None: ({200} | ABSENT, None)}

        def ask():
            answer = self.cluster.get(self.sample.path, self.token)
            assert answer.status_code != 200 or answer.content == self.sample.data
            return answer

        return ask, outcomes


def assert_nothing_was_lost(cluster, players):
    """Compares the store and both servers with what the users were told."""
    sample = players[0].sample
    there = cluster.levels(sample)
    for player in players:
        assert there.get(player.user) in player.levels, (player.user, there, player.levels)
    for server in cluster.servers:
        status = server.head(sample.path).status_code
        assert status in ({200} if there else {404, 410})
        for player in players:
            mine = sample.id in server.ids(player.token, mine="1", q=sample.id)
            assert mine == (player.user in there)
            if mine:
                told = server.get(f"{sample.path}/meta", player.token).json()["owners"]
                assert {owner["user"]: owner["visibility"] for owner in told} == there
                assert server.get(sample.path, player.token).status_code in {200, 307}
        assert (sample.id in server.ids(q=sample.id)) == ("public" in there.values())


@pytest.mark.parametrize("rounds", [8, pytest.param(300, marks=pytest.mark.long)])
def test_racing_changes_of_one_artifact_lose_nothing_that_was_acknowledged(cluster, rounds):
    sample = Sample.noise(20_000)
    players = [Player(cluster, sample, f"player-{number}") for number in range(6)]
    together(*(partial(player.play, rounds) for player in players))
    assert_nothing_was_lost(cluster, players)
    for player in players:
        cluster.delete(sample.path, player.token)
    assert cluster.keys(sample) == []


# -- failures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def held(cluster):
    """Lets a request to the store wait: gives a function that orders so, and one that lets all go on."""
    go_on = threading.Event()
    yield partial(cluster.faults.order, until=go_on), go_on.set
    go_on.set()


@pytest.mark.parametrize(
    "cluster", [pytest.param("ceph", marks=[*CEPH.marks, pytest.mark.long]), MOTO], indirect=True
)
def test_a_server_killed_in_the_middle_of_uploads_loses_nothing_and_leaves_nothing_to_see(cluster, held):
    hold, _ = held
    alice = cluster.token("alice")
    kept, half, late = Sample.new(), Sample.noise(3 * PART), Sample.new()
    two = cluster.two
    two.store(kept, alice, "public")
    headers = {"Authorization": f"Bearer {alice}", "Content-Type": "application/gzip", **half.declared}
    last_step = {"what": "PutObject", "where": rf"{late.sha256}/meta\.json"}
    cluster.faults.order(**last_step, lose=True)
    asking_again = hold(**last_step, nth=2)
    with two.wire() as wire, ThreadPoolExecutor(1) as pool:
        wire.head("POST", "/artifact", {**headers, "Content-Length": len(half.data)})
        wire.send(half.data[: 2 * PART + 1000])
        assert eventually(lambda: cluster.faults.counts["UploadPart"])
        cut_off = pool.submit(two.upload, late, alice, **late.declared)
        assert eventually(lambda: asking_again.done)
        two.kill()
        with pytest.raises(httpx2.TransportError):
            cut_off.result(PATIENCE)
    try:
        for _ in range(4):  # also when it is the turn of the one that is away
            assert cluster.level(kept) == "public"
            assert cluster.get(kept.path).content == kept.data
        assert [cluster.head(sample.path).status_code for sample in (half, late)] == [404, 404]
        assert cluster.keys(half) == []
        assert "meta.json" in cluster.keys(late)
        again = cluster.store(Sample.new(), alice)
    finally:
        two.start()
    for server in cluster.servers:  # nobody sent `late` again: it is there, so the start has put the index right
        assert [server.level(sample) for sample in (kept, late, again)] == ["public", "staged", "staged"]
    assert cluster.get(late.path, alice).content == late.data
    assert len(cluster.unfinished()) == 1
    assert cluster.store(half, alice)
    if cluster.name == "moto":  # which says that every unfinished upload is of 2010
        assert cluster.collect_garbage() == {"unfinished upload": 1}
    else:
        assert cluster.collect_garbage() == {}
        assert eventually(lambda: [leftover.name for leftover in cluster.s3.sweep(timedelta(0), dry_run=False)])
    assert cluster.unfinished() == []
    assert cluster.get(half.path, alice).content == half.data


@only_ceph
def test_a_server_that_lost_its_turn_undoes_nothing(cluster, held, postgres):
    """Its write comes when others have had their turn: as when the database is started again in between."""
    hold, go_on = held
    alice, bob = cluster.token("alice"), cluster.token("bob")
    sample = Sample.new()
    for token in (alice, bob):
        cluster.store(sample, token)
    late = hold("PutObject", r"/meta\.json")
    with ThreadPoolExecutor(1) as pool:
        promoting = pool.submit(cluster.one.promote, sample, alice, "public")
        assert eventually(lambda: late.done)
        postgres.store.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ari-registry'"
        )
        done = cluster.two.promote(sample, bob, "unlisted")
        assert done.status_code == 200, done.text
        go_on()
        answer = promoting.result(PATIENCE)
    assert answer.status_code == 200 or refused(answer)  # it may have had another turn
    assert cluster.levels(sample)["bob"] == "unlisted"
    assert cluster.promote(sample, alice, "public").status_code == 200
    assert cluster.levels(sample) == {"alice": "public", "bob": "unlisted"}


@only_ceph
def test_without_the_store_clients_are_to_come_again_and_need_wait_for_no_restart(cluster, ceph):
    alice = cluster.token("alice")
    there, late = cluster.store(Sample.new(), alice, "public"), Sample.new()
    ceph.kill()
    try:
        asked = together(
            partial(cluster.upload, late, alice, **late.declared),
            partial(cluster.upload, late, alice),
            partial(cluster.get, f"{there.path}/manifest.lock"),
            partial(cluster.delete, there.path, alice),
            partial(cluster.get, "/readyz"),
        )
        assert [refused(answer) for answer in asked] == [True] * 5, asked
        assert "the registry's store" in asked[0].json()["detail"]
        assert asked[-1].json()["detail"] == "not ready: store"
        for server in cluster.servers:
            assert server.level(there) == "public"
            assert server.ids(alice, mine="1", q=there.id) == [there.id]
            assert server.get("/healthz").status_code == 200
    finally:
        ceph.start()
    for server in cluster.servers:
        assert server.get("/readyz").status_code == 200
        assert server.upload(late, alice, **late.declared).status_code == 200
    assert cluster.get(late.path, alice).content == late.data
    assert cluster.get(there.path).content == there.data


@only_weak
def test_without_the_database_clients_are_to_come_again_and_need_wait_for_no_restart(cluster, postgres):
    alice = cluster.token("alice")
    there, late = cluster.store(Sample.new(), alice, "public"), Sample.new()
    postgres.kill()
    try:
        asked = together(
            partial(cluster.upload, late, alice, **late.declared),
            partial(cluster.get, there.path),
            partial(cluster.head, there.path),
            partial(cluster.get, "/artifacts"),
            partial(cluster.delete, there.path, alice),
            partial(cluster.get, "/readyz"),
        )
        assert [refused(answer) for answer in asked] == [True] * 6, asked
        assert "the registry's database" in asked[0].json()["detail"]
        assert asked[-1].json()["detail"] == "not ready: tokens, index"
        assert cluster.get("/healthz").status_code == 200
    finally:
        postgres.start()
    for server in cluster.servers:
        assert server.level(there) == "public"
        assert server.upload(late, alice, **late.declared).status_code == 200
    assert cluster.get(late.path, alice).content == late.data


@pytest.mark.long
def test_servers_that_are_killed_again_and_again_lose_nothing_that_was_acknowledged(cluster):
    has_conditions = cluster.s3.probe().atomic_updates
    chance, ended = random.Random(7), threading.Event()
    samples = [Sample.noise(size) for size in (20_000, 20_000, 2 * PART)]
    games = [
        [Player(cluster, sample, f"player-{number}", disturbed=True) for number in range(3)] for sample in samples
    ]

    def until_the_end(player):
        while not ended.is_set():
            player.play(1)

    with ThreadPoolExecutor(9) as pool:
        playing = [pool.submit(until_the_end, player) for players in games for player in players]
        try:
            for _ in range(KILLS):
                server = chance.choice(cluster.servers)
                assert not ended.wait(chance.uniform(0, 2))
                # What of a killed server is still under way may undo, where nothing but turns keeps writers apart,
                # what the next in turn has done (docs/scaling.md).
                with contextlib.nullcontext() if has_conditions else cluster.faults.without(*CHANGES):
                    server.kill()
                server.start()
        finally:
            ended.set()
        for future in playing:
            future.result(PATIENCE)
    for server in cluster.servers:
        server.restart()
    assert sum(player.unanswered for players in games for player in players) > KILLS / 2
    for players in games:
        assert_nothing_was_lost(cluster, players)
    now_idle = replace(cluster.s3.context, turn=lambda _artifact: contextlib.nullcontext())
    with S3(cluster.s3.settings, now_idle) as store:
        list(store.sweep(timedelta(0), dry_run=False))
    for players in games:
        lasts = any(cluster.ids(player.token, mine="1", q=player.sample.id) for player in players)
        assert sorted(cluster.keys(players[0].sample)) == (
            ["bundle.tar.gz", "manifest.lock", "meta.json"] if lasts else []
        )
    assert cluster.unfinished() == []
