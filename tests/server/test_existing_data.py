"""A data directory of the existing server is served as it is, and the existing server can go on with it."""

import hashlib
import io
import json
import re
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
from support.registry import Registry, Sample

SAMPLES = Path(__file__).parents[1] / "data" / "existing"
EXPECTED = json.loads((SAMPLES / "registry-data.json").read_text())
ARTIFACTS = EXPECTED["artifacts"]
ALICE, BOB, REVOKED = EXPECTED["alice"], EXPECTED["bob"], EXPECTED["alice-revoked"]


def unpack(folder):
    """Unpacks the data directory below a folder."""
    with tarfile.open(SAMPLES / "registry-data.tar.gz") as tar:
        tar.extractall(folder, filter="data")  # our own sample
    return folder / "registry-data"


@pytest.fixture(scope="module")
def existing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("existing")
    with Registry(folder / "server", data=unpack(folder), workers=2) as server:
        server.issued += [ALICE, BOB, REVOKED]
        yield server


def stored(server, artifact):
    return (server.data / "artifacts" / artifact / "bundle.tar.gz").read_bytes()


def owner_of(server, artifact):
    return json.loads((server.data / "artifacts" / artifact / "meta.json").read_text())["owner"]


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_every_artifact_is_served_at_its_level(existing, artifact):
    level = ARTIFACTS[artifact]["visibility"]
    bundle = stored(existing, artifact)
    head = existing.head(f"/artifact/{artifact}")
    assert (head.status_code, head.headers["X-ARI-Visibility"]) == (200, level)
    assert head.headers["X-ARI-Sha256"] == hashlib.sha256(bundle).hexdigest()
    owner, other = (ALICE, BOB) if owner_of(existing, artifact) == "alice" else (BOB, ALICE)
    assert existing.get(f"/artifact/{artifact}", owner).content == bundle
    hidden = level in {"staged", "private-token"}
    assert existing.get(f"/artifact/{artifact}", other).status_code == (403 if hidden else 200)
    assert existing.get(f"/artifact/{artifact}").status_code == (401 if hidden else 200)


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_the_manifest_is_the_bundle_s_byte_for_byte(existing, artifact):
    """What lies beside the bundle there was written anew by its client."""
    with tarfile.open(fileobj=io.BytesIO(stored(existing, artifact))) as tar:
        inside = tar.extractfile("manifest.lock").read()
    owner = ALICE if owner_of(existing, artifact) == "alice" else BOB
    answer = existing.get(f"/artifact/{artifact}/manifest.lock", owner)
    assert answer.content == inside
    meta = existing.get(f"/artifact/{artifact}/meta", owner).json()
    assert meta["bundle_sha256"] == ARTIFACTS[artifact]["bundle_sha256"]


def test_the_listings_have_what_was_there(existing):
    by_level = {
        level: {a for a in ARTIFACTS if ARTIFACTS[a]["visibility"] == level} for level in ("public", "staged")
    }
    assert set(existing.ids()) >= by_level["public"]
    assert not set(existing.ids()) & by_level["staged"]
    mine = {who: set(existing.ids(token, mine="1")) for who, token in (("alice", ALICE), ("bob", BOB))}
    for artifact in ARTIFACTS:
        assert artifact in mine[owner_of(existing, artifact)]


def test_the_tokens_work_and_the_revoked_one_does_not(existing):
    for token in (ALICE, BOB):
        assert existing.upload(Sample.new(), token).status_code == 200
    assert existing.upload(Sample.new(), REVOKED).status_code == 401
    assert existing.get("/artifacts", REVOKED).status_code == 401


def test_uploading_what_is_there_already_is_a_duplicate(existing):
    artifact = next(iter(ARTIFACTS))
    owner, other = (ALICE, BOB) if owner_of(existing, artifact) == "alice" else (BOB, ALICE)
    sample = Sample(stored(existing, artifact), b"", "")
    answer = existing.upload(sample, owner).json()
    assert (answer["id"], answer["duplicate"]) == (artifact, True)
    answer = existing.upload(sample, other).json()
    assert (answer["id"], answer["duplicate"], answer["visibility"]) == (artifact, False, "staged")
    assert existing.delete(f"/artifact/{artifact}", other).status_code == 200
    assert existing.level(sample) == ARTIFACTS[artifact]["visibility"]


@pytest.mark.parametrize("left", [(), ("bundle.tar.gz",), ("bundle.tar.gz", "manifest.lock")])
def test_what_a_crashed_upload_left_is_absent_and_gives_way(existing, left):
    sample = Sample.new()
    folder = existing.data / "artifacts" / sample.id
    folder.mkdir()
    for name in left:
        (folder / name).write_bytes(b"half of it")
    assert existing.head(sample.path).status_code == 404
    assert existing.get(f"{sample.path}/manifest.lock", ALICE).status_code == 404
    assert existing.upload(sample, ALICE).json()["duplicate"] is False
    assert existing.get(sample.path, ALICE).content == sample.data
    assert existing.get(f"{sample.path}/manifest.lock", ALICE).content == sample.manifest


def test_older_metadata_without_id_and_time_is_read(tmp_path):
    data = unpack(tmp_path)
    for meta in (data / "artifacts").glob("*/meta.json"):
        fields = json.loads(meta.read_text())
        meta.write_text(json.dumps({key: fields[key] for key in ("visibility", "owner", "sha256", "length")}))
    left = data / "artifacts" / ("0" * 16)
    left.mkdir()
    with Registry(tmp_path / "server", data=data, workers=2) as server:
        server.issued += [ALICE, BOB]
        for artifact, expected in ARTIFACTS.items():
            assert server.head(f"/artifact/{artifact}").headers["X-ARI-Visibility"] == expected["visibility"]
        assert server.head(f"/artifact/{left.name}").status_code == 404
        mine = [*server.listed(ALICE, mine="1"), *server.listed(BOB, mine="1")]
        assert {one["id"] for one in mine} == set(ARTIFACTS)
        assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["created_at"]) for one in mine)


# -- and back again ----------------------------------------------------------------------------------------------


class ExistingServer:
    """How the existing server reads its data directory, from the description of its formats."""

    def __init__(self, data):
        self.data = data

    def user_of(self, token):
        with sqlite3.connect(self.data / "tokens.db") as database:
            row = database.execute(
                "SELECT user, revoked_at FROM tokens WHERE token_hash = ?",
                (hashlib.sha256(token.encode()).hexdigest(),),
            ).fetchone()
        database.close()
        return row[0] if row and row[1] is None else None

    def issue(self, token_id, token, user):
        with sqlite3.connect(self.data / "tokens.db") as database:
            values = (token_id, hashlib.sha256(token.encode()).hexdigest(), user, "2026-11-23T00:00:00Z", None)
            database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", values)
        database.close()

    def read(self, artifact):
        folder = self.data / "artifacts" / artifact
        meta = json.loads((folder / "meta.json").read_text())
        bundle = (folder / "bundle.tar.gz").read_bytes()
        assert meta["id"] == artifact
        assert meta["sha256"] == hashlib.sha256(bundle).hexdigest()
        assert meta["length"] == len(bundle)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", meta["created_at"])
        json.loads((folder / "manifest.lock").read_text())
        return meta["owner"], meta["visibility"], bundle


@pytest.mark.in_ci
def test_the_existing_server_goes_on_with_what_ours_leaves(tmp_path):
    data = unpack(tmp_path)
    new = [Sample.new() for _ in range(3)]
    shared = next(a for a in ARTIFACTS if ARTIFACTS[a]["visibility"] == "staged")
    with Registry(tmp_path / "server", data=data, workers=2) as server:
        server.issued += [ALICE, BOB]
        issued, limited = server.token("erin"), server.token("erin", scope="read")
        server.store(new[0], ALICE)
        server.store(new[1], issued, "public")
        server.store(new[2], ALICE)
        server.store(new[2], BOB, "unlisted")
        first, second = (ALICE, BOB) if owner_of(server, shared) == "alice" else (BOB, ALICE)
        bundle = Sample(stored(server, shared), b"", "")
        server.upload(bundle, second)
        assert server.promote(bundle, second, "public").status_code == 200
        first_owner = owner_of(server, shared)
        assert server.delete(bundle.path, first).status_code == 200
    there = ExistingServer(data)
    assert there.read(new[0].id) == ("alice", "staged", new[0].data)
    assert there.read(new[1].id) == ("erin", "public", new[1].data)
    assert there.read(new[2].id) == ("alice", "unlisted", new[2].data)
    owner, level, bundle = there.read(shared)
    assert owner != first_owner  # who has left owns nothing any more
    assert level == "public"
    for artifact in set(ARTIFACTS) - {shared}:
        assert there.read(artifact)[1] == ARTIFACTS[artifact]["visibility"]
    assert (there.user_of(ALICE), there.user_of(BOB), there.user_of(REVOKED)) == ("alice", "bob", None)
    assert there.user_of(issued) == "erin"
    assert there.user_of(limited) is None  # it would take a reader for a publisher

    token = "ari_" + "z" * 43
    there.issue("0123456789abcdef", token, "frank")
    folder = data / "artifacts" / "theirs"
    sample = Sample.new()
    folder = folder.with_name(sample.id)
    folder.mkdir()
    (folder / "bundle.tar.gz").write_bytes(sample.data)
    (folder / "manifest.lock").write_text(json.dumps(json.loads(sample.manifest)))
    meta = {"id": sample.id, "visibility": "unlisted", "owner": "frank", "created_at": "2026-11-23T00:00:00Z"}
    (folder / "meta.json").write_text(json.dumps({**meta, "sha256": sample.sha256, "length": len(sample.data)}))
    shutil.rmtree(data / "artifacts" / new[0].id)
    done = Registry(tmp_path / "again", data=data)
    reindex = done.run("registry", "reindex", "--data-dir", data)
    assert reindex.returncode == 0, reindex.stderr
    with done as server:
        server.issued.append(token)
        assert server.get(sample.path).content == sample.data
        assert server.ids(token, mine="1") == [sample.id]
        assert server.head(new[0].path).status_code == 404
        assert server.head(new[1].path).status_code == 200
