"""docs/capacity.md, docs/s3.md and docs/scaling.md: what they say in numbers and names is so.

Their programs and commands are carried out by test_docs.py. Here is what no command shows.
"""

import base64
import hashlib
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.dialects.postgresql import REGCLASS
from support.faults import Faults
from support.programs import find, run
from support.registry import Registry, Sample
from support.run import ari
from support.s3 import s3
from support.stores import Rgw
from support.tables import code, table

from ari_backends.s3 import client, transfers
from ari_backends.s3.connection import ATTEMPTS
from ari_backends.s3.promises import MEMORY
from ari_backends.s3.settings import S3Settings
from ari_core.contract import Locator, Owner, Visibility
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, META_NAME
from ari_server import migrations, postgres, survey, turns
from ari_server.config import load_config
from ari_server.index import Index, _upsert
from ari_server.rows import Row

pytestmark = pytest.mark.in_ci
ROOT = Path(__file__).parents[2]
CAPACITY, S3, SCALING, CONFIGURATION = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("capacity", "s3", "scaling", "configuration")
)
MIB = 2**20


# -- requests -----------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(moto):
    """A store that counts what it is asked, and a function that says it: writes and reads since the last time."""
    with Faults(moto.endpoint_url) as faults:

        def since():
            counts = faults.counts.copy()
            faults.counts.clear()
            reads = sum(counts.pop(name, 0) for name in ("GetObject", "HeadObject", "HeadBucket"))
            for free in ("DeleteObject", "DeleteObjects"):
                del counts[free]
            return counts.total(), reads

        yield moto.behind(faults), since


def told_requests():
    rows = table(CAPACITY, "doing", "writes (PUT, POST, LIST)", "reads (GET, HEAD)")
    return {doing: (int(writes), int(reads)) for doing, writes, reads in rows}


def assert_at_most(counted, told):
    assert counted[0] <= told[0]
    assert counted[1] <= told[1]
    assert counted[0] + counted[1] > 0


def test_without_a_registry_no_more_is_asked_of_a_store_than_is_told(tmp_path, counted):
    store, since = counted
    folder = tmp_path / "run/ear/code"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("print(1)\n")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true", **store.env}
    with closing(s3(store)) as backend:  # remembers what the store promises
        since()
        assert ari("ear", "curate", "run", cwd=tmp_path, env=env).returncode == 0
        told = told_requests()
        done = ari(
            "ear", "publish", "run", "--backend", "s3", "-o", f"bucket={store.bucket}", cwd=tmp_path, env=env
        )
        assert done.returncode == 0, done.stderr
        assert_at_most(since(), told["publish into a bucket, a bundle of up to 8 MiB"])
        ref = json.loads((tmp_path / "run/publish_record.json").read_text())["ref"]
        assert ari("clone", ref, "copy", cwd=tmp_path, env=env).returncode == 0
        assert_at_most(since(), told["clone it from there"])
        assert len(list(backend.list())) == 1
        assert since() == (1, 0)  # of a thousand keys
        above = f"artifacts/{backend.resolve(ref).split('/')[-2]}/"
        stored = [entry.key for entry in backend._client.keys(above)]
        assert stored == [above + name for name in (BUNDLE_NAME, MANIFEST_NAME, META_NAME)]
        assert told["list 1,000 artifacts of a bucket"] == (len(stored) * 1000 / client.PAGE, 0)
        assert f"the longest\nname: {max(map(len, stored))} bytes" in CAPACITY


def test_a_registry_asks_no_more_of_its_store_than_is_told(tmp_path, counted):
    store, since = counted
    env = {
        **store.env,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ARI_REGISTRY_BACKEND": "s3",
        "ARI_REGISTRY_OPTIONS": json.dumps({"bucket": store.bucket}),
    }
    told = told_requests()
    with Registry(tmp_path / "registry", env=env) as registry:
        alice = registry.token("alice")
        small, large = Sample.new(), Sample.noise(20 * MIB)
        since()
        assert upload(registry, small, alice).status_code == 200
        assert_at_most(since(), told["upload it to a registry"])
        assert registry.promote(small, alice, "public").status_code == 200
        assert_at_most(since(), told["promote it there"])
        assert registry.get(small.path).content == small.data
        assert_at_most(since(), told["download it through the registry"])
        assert registry.head(small.path).status_code == 200
        assert registry.ids() == [small.id]
        assert since() == (0, 0)
        assert upload(registry, large, alice).status_code == 200
        parts = -(-len(large.data) // (8 * MIB))
        writes, reads = told["upload it to a registry"]
        assert_at_most(since(), (writes + 1 + parts, reads))
        assert registry.get(large.path, alice).content == large.data
        assert_at_most(since(), (0, told["download it through the registry"][1] + 1))
        registry.stop()
        for name in ("registry.db", "registry.db-wal", "registry.db-shm"):
            (registry.data / name).unlink(missing_ok=True)
        since()
        done = registry.run("registry", "reindex", "--take-over", "--data-dir", registry.data)
        assert "2 in the index" in done.stdout, done.stderr
        opening = 3  # whatever the number of artifacts: of the note whom the bucket belongs to
        assert since() == (2, 3 * 2 + opening)


def upload(registry, sample, token):
    """Sends a bundle as our client does, with its digest."""
    digest = base64.b64encode(hashlib.sha256(sample.data).digest()).decode()
    return registry.upload(sample, token, **{"Repr-Digest": f"sha-256=:{digest}:"})


# -- the index ----------------------------------------------------------------------------------------------------


def told_sizes(database):
    rows = table(CAPACITY, "database", "files in a bundle", "bytes for one artifact", "for 10⁹")
    found = {int(files): int(size.replace(",", "")) for name, files, size, _ in rows if name == database}
    told = {int(files): total for name, files, _, total in rows if name == database}
    assert told == {files: f"{size / 1000:.1f} TB" for files, size in found.items()}
    return found


def made_up(count, files):
    """Rows as the document describes them."""
    for number in range(count):
        digest, bundle, manifest = (hashlib.sha256(f"{what}{number}".encode()).hexdigest() for what in "abm")
        created = datetime.fromtimestamp(1_600_000_000 + number, UTC)
        row = Row(
            digest,
            digest,
            bundle,
            10_000_000,
            Visibility.PUBLIC,
            created,
            Locator(f"lab-artifacts/ari/artifacts/{digest}/"),
            (Owner(f"user{number % 50:02}", Visibility.PUBLIC, created),),
            files,
            20_000_000,
            "CC-BY-4.0",
            f"Figure {number % 10} of the study",
            manifest,
        )
        assert (len(row.locator), len(row.title)) == (93, 21)
        yield row, "\n".join(f"results/run_{name:03}.csv" for name in range(files))


def fill(index, count, files):
    rows = list(made_up(count, files))
    for start in range(0, count, 500):
        with index._database.write() as connection:
            _upsert(connection, rows[start : start + 500], 1)


@pytest.mark.parametrize("files", [10, 100])
def test_an_index_in_a_file_is_as_large_as_is_told(tmp_path, files):
    count = 4000
    with closing(Index(load_config({}, data=tmp_path / "data"))) as index:
        fill(index, count, files)
    with closing(sqlite3.connect(tmp_path / "data/registry.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (tmp_path / "data/registry.db").stat().st_size
    assert size / count == pytest.approx(told_sizes("SQLite")[files], rel=0.05)


@pytest.mark.parametrize("files", [10, 100])
def test_an_index_in_postgresql_is_as_large_as_is_told(tmp_path, postgres_url, files):
    count = 4000
    config = load_config({}, data=tmp_path / "data", db=postgres_url)
    for kind in migrations.NEWEST:
        postgres.upgrade(config.db, kind)
    with closing(Index(config)) as index:
        fill(index, count, files)
        with index._database.read() as connection:
            tables = (sqlalchemy.literal(name) for name in ("artifacts", "owners", "words"))
            sizes = (sqlalchemy.func.pg_total_relation_size(sqlalchemy.cast(name, REGCLASS)) for name in tables)
            size = sum(connection.execute(sqlalchemy.select(*sizes)).one())
    assert size / count == pytest.approx(told_sizes("PostgreSQL")[files], rel=0.05)


# -- names and numbers --------------------------------------------------------------------------------------------


def test_stores_promise_what_is_told(s3_store):
    name = {"moto": "moto", "rgw": "Ceph RGW", "swift": "OpenStack Swift"}[s3_store.name]
    rows = table(S3, "store", "`exclusive_create`", "`atomic_updates`", "remarks")
    (told,) = [row[1:3] for row in rows if row[0].startswith(name)]
    with closing(s3(s3_store, known=False)) as backend:
        can = backend.trial()
    assert told == ["yes" if promise else "no" for promise in (can.exclusive_create, can.atomic_updates)]


@pytest.mark.needs("radosgw")
def test_the_policies_are_enough_and_no_more(tmp_path):
    readers, authors = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", S3, re.DOTALL))
    with Rgw(tmp_path / "rgw") as rgw:
        store = rgw.store.with_bucket()
        author = replace(rgw.user("author", "authorkey", "s" * 40), bucket=store.bucket)
        for statement in authors["Statement"]:
            statement["Principal"] = {"AWS": ["arn:aws:iam:::user/author"]}
        (reading,) = readers["Statement"]
        reading["Resource"] = reading["Resource"].replace("/artifacts/", "/lab/artifacts/")
        policy = {**authors, "Statement": [reading, *authors["Statement"]]}
        with closing(store.client()) as owner:
            owner.put_bucket_policy(
                Bucket=store.bucket, Policy=json.dumps(policy).replace("lab-artifacts", store.bucket)
            )
        folder = tmp_path / "run/ear/code"
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("print(1)\n")
        reader = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true"}
        reader["ARI_S3_ENDPOINT_URL"] = store.endpoint_url
        settings = ("-o", f"bucket={store.bucket}", "-o", "prefix=lab")

        def done(env, *words):
            return ari(*words, cwd=tmp_path, env=env)

        assert done(reader, "ear", "curate", "run").returncode == 0
        for words in (
            ("backends", "check", "s3", *settings, "--trial", "--write"),
            ("ear", "publish", "run", "--backend", "s3", *settings),
            ("backends", "gc", "s3", *settings),
        ):
            tried = done({**reader, **author.env}, *words)
            assert (tried.returncode, "could not be removed" in tried.stderr) == (0, False), tried.stderr
        ref = json.loads((tmp_path / "run/publish_record.json").read_text())["ref"]
        assert done(reader, "clone", ref, "copy").returncode == 0
        assert done(reader, "clone", ref[:-40], "short").returncode == 4  # that would take a listing
        assert done(reader, "backends", "check", "s3", *settings, "--write").returncode == 4
        with closing(store.client()) as owner:
            left = [each["Key"] for each in owner.list_objects_v2(Bucket=store.bucket)["Contents"]]
        assert [key for key in left if "/artifacts/" not in key] == [f"lab/{MEMORY}"]


def test_the_messages_are_those_of_the_backend():
    files = [*(ROOT / "backends/ari_backends/s3").glob("*.py"), ROOT / "core/ari_core/layout.py"]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    told = [message for cell, _ in table(S3, "the message says", "do") for message in code(cell)]
    assert len(told) >= 15
    assert [message for message in told if message.replace(BUNDLE_NAME, "{BUNDLE_NAME}") not in source] == []


@pytest.mark.parametrize(
    ("document", "phrase", "value"),
    [
        (SCALING, r"Each worker takes up to (\d+) connections", postgres.MOST_CONNECTIONS),
        (SCALING, r"two servers with four workers each need up to (\d+)", 2 * 4 * postgres.MOST_CONNECTIONS),
        (SCALING, r"one waits for the other, for a (\w+) at most", {60: "minute"}[turns.TURN_SECONDS]),
        (CONFIGURATION, r"Up to (\d+) MiB of an upload are in memory", transfers._BUFFERS // MIB),
        (CONFIGURATION, r"of parts over (\d+) MiB there are two", transfers._BUFFERS // MIB // 2),
        (CONFIGURATION, r"where ([\d,]+) of them would not do", f"{transfers._MOST_PARTS:,}"),
        (CONFIGURATION, r"A request is sent up to (\w+) times", {3: "three"}[ATTEMPTS]),
        (CAPACITY, r"this program asks (\d+) at a time", survey._AT_A_TIME),
        (CAPACITY, r"one read for each (\d+) MiB behind the first 16", transfers._RANGE // MIB),
        (CAPACITY, r"one read for each 8 MiB behind the first (\d+)", transfers._FIRST // MIB),
        (CAPACITY, r"1 \+ ⌈\*b\* / (\d+) MiB⌉", S3Settings.model_fields["part_size"].default // MIB),
    ],
)
def test_a_number_is_the_one_in_the_source(document, phrase, value):
    assert re.findall(phrase, " ".join(document.split())) == [str(value)]


@pytest.mark.needs("nginx")
def test_nginx_takes_the_upstream_of_several_servers(tmp_path):
    told = re.search(r"```nginx\n(upstream registry \{.*?\n\}\n)```", SCALING, re.DOTALL)[1]
    conf = (ROOT / "scripts/registry/nginx.conf").read_text(encoding="utf-8")
    conf, count = re.subn(r"(?m)^    upstream registry \{.*?^    \}\n", told, conf, flags=re.DOTALL)
    assert count == 1
    file = tmp_path / "nginx.conf"
    file.write_text(conf)
    run(find("nginx"), "-t", "-p", f"{tmp_path}/", "-c", file, "-g", "daemon off; error_log stderr;")
