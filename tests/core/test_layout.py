"""The stored layout over the smallest place there is: no locks, as in a bucket."""

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel, ConfigDict
from support.memory import MemoryStream, MemoryTroubleError, Space

from ari_core.conformance import BackendContract, make_bundle
from ari_core.conformance.knobs import is_absent, new, read_all, together, users
from ari_core.contract import Capabilities, Locator, OpenContext, SupportsOwners, Visibility
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    NotFound,
    RateLimited,
    Unavailable,
    Unsupported,
)
from ari_core.layout import META_MAX_BYTES, Blob, Blobs, Meta, StoredLayout, key_of

PREFIX = "blobs://"
ONE, TWO = (make_bundle(seed=seed) for seed in (1, 2))
WHEN = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)


class MemoryBlobs(Blobs, Space):
    """Objects with versions, and conditions as a bucket has them: on writing, none on removing.

    So what is removed on a condition leaves a note, which stands for nothing.
    """

    def __init__(self):
        Space.__init__(self)
        self.count = 0
        self.at = {}  # what happens at a step, as if somebody else did it

    def happen(self, step):
        for act in self.at.pop(step, ()):
            act()

    def read(self, key, most=META_MAX_BYTES):
        self.check("stat")
        data, version = self.items.get(key, (b"", 0))
        if len(data) > most:
            raise IntegrityError("too long")
        self.happen("read")
        return Blob(data, version, WHEN) if data else None

    def write(self, key, data, *, replacing):
        self.happen("write")
        with self.lock:
            before, version = self.items.get(key, (b"", 0))
            if (version if before else None) != replacing:
                return False
            self.set(key, data)
        self.happen("written")
        return True

    def set(self, key, data):
        with self.lock:
            self.count += 1
            self.items[key] = (data, self.count)

    def remove(self, key, *, version=None):
        with self.lock:
            before, now = self.items.get(key, (b"", 0))
            if before and version is not None and now != version:
                return False
            self.set(key, b"")
        self.happen("removed")
        return True

    def size(self, key):
        self.check("stat")
        return len(self.items[key][0]) if key in self.items else None

    @contextmanager
    def open(self, key, offset):
        self.check("open")
        if key not in self.items:
            raise NotFound("no such object")
        yield MemoryStream(self, self.items[key][0], offset)

    @contextmanager
    def receive(self, artifact, source):
        with source.open() as stream:
            data = b"".join(iter(lambda: stream.read(100_000), b""))
        self.check("put")

        def commit():
            self.set(key_of(artifact, "bundle.tar.gz"), data)
            self.set(key_of(artifact, "manifest.lock"), source.manifest)

        yield commit

    def clear(self, artifact):
        self.happen("clear")
        for name in "bundle.tar.gz", "manifest.lock":
            self.items.pop(key_of(artifact, name), None)

    def ids(self, digits="", after=""):
        self.check("denied")
        for index, name in enumerate(sorted({key.split("/")[1] for key in self.items})):
            if index:
                self.check("list")
            if name.startswith(digits) and name > after:
                yield name


class BlobSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlobBackend(StoredLayout):
    name = "blobs"
    capabilities = Capabilities(
        put=True,
        delete="yes",
        list="immediate",
        ranges=True,
        exclusive_create=True,
        visibility="recorded",
        levels=frozenset(Visibility),
        stores_meta=True,
        atomic_updates=True,
    )
    Settings = BlobSettings

    def __init__(self, settings=None, context=None, *, place=None, id_digits=64):
        super().__init__(settings or BlobSettings(), context)
        self.place, self.id_digits = place or MemoryBlobs(), id_digits

    def _resolve(self, ref):
        if not ref.startswith(PREFIX):
            raise Unsupported("not a ref of this store")
        return self._locator(self._find(self.place, ref.removeprefix(PREFIX)))

    def _ref(self, locator):
        return PREFIX + locator

    def _here(self):
        return self.place

    def _at(self, locator):
        return self.place, locator

    def _locator(self, artifact):
        return Locator(artifact)

    def _translate(self, error):
        if isinstance(error, MemoryTroubleError):
            return {"denied": AccessDenied("no"), "busy": RateLimited("later")}.get(str(error), Unavailable("no"))
        return None


@pytest.fixture
def backend():
    return BlobBackend()


def put(backend, bundle, **more):
    return backend.put(bundle.source(), new(**more))


def stored_meta(backend, bundle):
    return json.loads(backend.place.items[key_of(bundle.archive_sha256, "meta.json")][0])


class TestConformance(BackendContract):
    @pytest.fixture
    def backend(self):
        return BlobBackend()

    def reopen(self, backend):
        return BlobBackend(place=backend.place)

    def raw_corrupt(self, backend, locator):
        key = key_of(locator, "bundle.tar.gz")
        data = bytearray(backend.place.items[key][0])
        data[len(data) // 2] ^= 1
        backend.place.set(key, bytes(data))

    @contextmanager
    def break_store(self, backend, step):
        backend.place.trouble[step] = MemoryTroubleError("denied" if step == "denied" else "down")
        try:
            yield
        finally:
            backend.place.trouble.clear()


# -- meta.json


def legacy(**more):
    """What the oldest servers wrote."""
    fields = {"visibility": "unlisted", "owner": "alice", "sha256": ONE.archive_sha256, "length": 5}
    return json.dumps({**fields, **more}).encode()


def parse(data, artifact=ONE.archive_sha256[:16]):
    return Meta.parse(artifact, Blob(data, data, WHEN.replace(microsecond=7)))


def levels(meta):
    return {owner.user: str(owner.visibility) for owner in meta.owners}


def again(meta):
    """What is read of what was written."""
    return parse(meta.encode())


def test_a_meta_with_the_four_oldest_fields_is_read():
    meta = parse(legacy())
    assert (levels(meta), meta.visibility, meta.length) == ({"alice": "unlisted"}, "unlisted", 5)
    assert (meta.created, meta.bundle_sha256, meta.manifest_sha256) == (WHEN, None, None)


@pytest.mark.parametrize("owner", [None, ""])
def test_a_level_without_an_owner_is_the_artifacts_own(owner):
    meta = parse(legacy(owner=owner))
    assert (meta.owners, meta.own, again(meta).own) == ((), "unlisted", "unlisted")


@pytest.mark.parametrize("text", ["2024-02-29T23:59:58Z", "2024-02-29T23:59:58.123+00:00", "2024-02-29T23:59:58"])
def test_times_of_all_spellings(text):
    assert parse(legacy(created_at=text)).created == WHEN


def test_what_we_do_not_know_is_kept():
    meta = again(parse(legacy(note={"x": [1, None]})).claimed("bob", WHEN))
    assert meta.fields["note"] == {"x": [1, None]}


def test_the_existing_server_finds_its_fields_true_after_every_change():
    def seen(meta):
        fields = json.loads(meta.encode())
        return [fields[name] for name in ("visibility", "owner", "sha256", "length")]

    meta = parse(legacy()).claimed("bob", WHEN)
    assert seen(meta) == ["unlisted", "alice", ONE.archive_sha256, 5]
    meta = meta.own_raised("bob", Visibility.PUBLIC)
    assert seen(meta) == ["public", "alice", ONE.archive_sha256, 5]
    assert seen(again(meta).disclaimed("bob")) == ["unlisted", "alice", ONE.archive_sha256, 5]
    assert seen(again(meta).disclaimed("alice")) == ["public", "bob", ONE.archive_sha256, 5]


def test_a_level_that_the_existing_server_raised_is_the_first_owners():
    ours = json.loads(parse(legacy()).claimed("bob", WHEN).encode())
    meta = parse(json.dumps({**ours, "visibility": "public"}).encode())
    assert levels(meta) == {"alice": "public", "bob": "staged"}
    assert levels(again(meta)) == levels(meta)


@pytest.mark.parametrize("user", ["Zoë", "\ud800", "a\nb", "\x1b[31m"])
def test_any_name_of_an_owner_survives(user):
    meta = again(parse(legacy()).claimed(user, WHEN))
    assert user in levels(meta)
    assert meta.encode().isascii()


DAMAGED = {
    "empty": b"",
    "cut": legacy()[:-3],
    "binary": b"\xff\xfe\x00",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "no level": b"{}",
    "foreign level": legacy(visibility="secret"),
    "level of a kind": legacy(visibility=[]),
    "digest of another": legacy(sha256=TWO.archive_sha256),
    "no digest": legacy(sha256=None),
    "length": legacy(length="5"),
    "true": legacy(length=True),
    "negative": legacy(length=-1),
    "endless": legacy(length=float("inf")),
    "owner": legacy(owner={"a": 1}),
    "number": legacy(owner=7),
    "owners": legacy(owners="alice"),
    "nameless": legacy(owners=[{"user": None, "visibility": "staged"}]),
    "time": legacy(created_at="yesterday"),
    "no time": legacy(created_at=None),
    "early": legacy(created_at="0001-01-01T00:00:00+23:59"),
    "bundle digest": legacy(bundle_sha256="ABC"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_meta_is_an_integrity_error(data):
    with pytest.raises(IntegrityError, match=f"meta.json of the artifact '{ONE.archive_sha256[:16]}' is damaged"):
        parse(data)


# -- one damaged among others


@pytest.fixture
def damaged(backend):
    """A store with two artifacts, the metadata of the first one spoilt, and their locators."""
    one, two = (put(backend, bundle)[0].locator for bundle in (ONE, TWO))
    backend.place.set(key_of(one, "meta.json"), b"{}")
    return backend, one, two


def test_a_damaged_artifact_says_so_and_others_are_not_affected(damaged):
    backend, one, two = damaged
    calls = [lambda: backend.stat(one), lambda: read_all(backend, one), lambda: put(backend, ONE)]
    calls += [lambda: backend.raise_visibility(one, Visibility.PUBLIC), lambda: backend.claim(one, "bob")]
    for call in calls:
        with pytest.raises(IntegrityError, match=f"'{one}' is damaged"):
            call()
    assert read_all(backend, two) == TWO.archive


def test_a_damaged_artifact_is_left_out_of_the_list_with_a_warning(damaged):
    backend, one, two = damaged
    lines = []
    with mock_context(backend, lines):
        assert [artifact.locator for artifact, _ in backend.list()] == [two]
    assert len(lines) == 1
    assert one in lines[0]


def test_a_damaged_artifact_can_be_deleted_and_stored_again(damaged):
    backend, one, _ = damaged
    backend.delete(one)
    assert is_absent(backend, one)
    assert put(backend, ONE)[1]
    assert read_all(backend, one) == ONE.archive


@contextmanager
def mock_context(backend, lines):
    before, backend.context = backend.context, OpenContext(warn=lines.append)
    yield
    backend.context = before


def test_lost_bytes_are_not_called_absent_and_come_back_with_the_next_put(backend):
    backend.raise_visibility(put(backend, ONE)[0].locator, Visibility.PUBLIC)
    locator = ONE.archive_sha256
    del backend.place.items[key_of(locator, "bundle.tar.gz")]
    with pytest.raises(IntegrityError, match="has lost its bundle"):
        read_all(backend, locator)
    artifact, created = put(backend, ONE)
    assert (created, artifact.visibility) == (False, "public")
    assert read_all(backend, locator) == ONE.archive


def test_a_manifest_that_is_not_the_bundles_own_is_not_given_out(backend):
    locator = put(backend, ONE)[0].locator
    assert backend.manifest(locator) == ONE.manifest
    backend.place.set(key_of(locator, "manifest.lock"), json.dumps(json.loads(ONE.manifest)).encode())
    with pytest.raises(Unsupported):
        backend.manifest(locator)


def test_metadata_that_could_not_be_read_back_is_not_written(backend):
    with pytest.raises(Unsupported, match="over the limit"):
        put(backend, ONE, description={"title": "x" * META_MAX_BYTES})
    assert is_absent(backend, Locator(ONE.archive_sha256))
    locator = put(backend, ONE)[0].locator
    with pytest.raises(Unsupported, match="over the limit"):
        backend.claim(locator, "x" * META_MAX_BYTES)
    assert users(backend.stat(locator)) == ["ada"]


def test_what_is_stored_beside_the_bundle_is_described(backend):
    put(backend, ONE, wish=Visibility.PUBLIC, description={"license": "MIT"})
    found = stored_meta(backend, ONE)
    assert (found["visibility"], found["wish"], found["description"]) == ("staged", "public", {"license": "MIT"})
    listed = json.loads(ONE.manifest)["files"]
    assert (found["file_count"], found["total_bytes"]) == (len(listed), sum(file["size"] for file in listed))


# -- ids


def test_two_archives_with_one_id(backend):
    short = BlobBackend(place=backend.place, id_digits=1)
    first = make_bundle(seed=1)
    second = next(
        other
        for other in (make_bundle(seed=seed) for seed in range(2, 1000))
        if other.archive_sha256[0] == first.archive_sha256[0]
    )
    locator = put(short, first)[0].locator
    before = dict(backend.place.items)
    with pytest.raises(AlreadyExists, match="another archive has the id"):
        put(short, second)
    assert backend.place.items == before
    assert read_all(short, locator) == first.archive


@pytest.mark.parametrize(("then", "now"), [(16, 64), (64, 16), (20, 30)])
def test_ids_of_another_length_are_found_again(backend, then, now):
    digest = ONE.archive_sha256
    first = put(BlobBackend(place=backend.place, id_digits=then), ONE)[0].locator
    later = BlobBackend(place=backend.place, id_digits=now)
    artifact, created = put(later, ONE)
    assert (artifact.locator, created) == (first, False)
    for count in (16, 17, 20, 29, 63, 64):
        assert later.resolve(PREFIX + digest[:count]) == first
    for digits in (digest[:15], digest[:20] + "x", digest.upper(), digest[:63] + "g", digest[:40] + "0" * 24):
        with pytest.raises(NotFound):
            later.resolve(PREFIX + digits)


def test_an_ambiguous_prefix_is_an_error_and_an_exact_id_wins(backend):
    digests = [digit * 20 + "0" * 44 for digit in "ab"] + ["a" * 18 + "0" * 46]
    for digest in digests:
        meta = parse(legacy(sha256=digest), digest)
        backend.place.set(key_of(digest, "meta.json"), meta.encode())
    with pytest.raises(AlreadyExists, match="several artifacts"):
        backend.resolve(PREFIX + "a" * 16)
    assert backend.resolve(PREFIX + "a" * 19) == digests[0]
    assert backend.resolve(PREFIX + "b" * 16) == digests[1]
    meta = parse(legacy(sha256=digests[2]), "a" * 16)
    backend.place.set(key_of("a" * 16, "meta.json"), meta.encode())
    assert backend.resolve(PREFIX + "a" * 16) == "a" * 16


# -- without locks


def test_racing_changes_lose_nothing(backend):
    locator = put(backend, ONE)[0].locator
    owners = backend.optional(SupportsOwners)
    names = [f"user{number}" for number in range(20)]
    steps = [Visibility.PRIVATE_TOKEN, Visibility.UNLISTED, Visibility.PUBLIC] * 3
    together(
        *[lambda name=name: owners.claim(locator, name) for name in names],
        *[lambda step=step: backend.raise_visibility(locator, step) for step in steps],
    )
    assert sorted(users(backend.stat(locator))) == sorted(["ada", *names])
    assert backend.stat(locator).visibility == "public"
    together(*[lambda name=name: owners.disclaim(locator, name) for name in names])
    assert users(backend.stat(locator)) == ["ada"]


@pytest.mark.parametrize("user", ["bob", "carol"])
def test_a_change_between_looking_and_writing_is_not_lost(backend, user):
    locator = put(backend, ONE)[0].locator
    backend.place.at["read"] = [lambda: backend.claim(locator, "bob")]
    if user == "bob":
        backend.raise_visibility(locator, Visibility.PUBLIC)
    else:
        backend.claim(locator, user)
    found = backend.stat(locator)
    assert {"ada", "bob", user} == set(users(found))
    assert found.visibility == ("public" if user == "bob" else "staged")


def test_who_claims_before_the_last_owner_has_gone_keeps_the_artifact(backend):
    locator = put(backend, ONE)[0].locator
    place, remove = backend.place, backend.place.remove

    def claimed_meanwhile(key, *, version=None):
        if not threading.current_thread().name.startswith("other"):
            other = threading.Thread(target=backend.claim, args=(locator, "bob"), name="other")
            place.remove = remove
            other.start()
            other.join()
        return remove(key, version=version)

    place.remove = claimed_meanwhile
    backend.disclaim(locator, "ada")
    assert users(backend.stat(locator)) == ["bob"]
    assert read_all(backend, locator) == ONE.archive


def test_a_put_whose_bytes_a_delete_takes_is_done_again(backend):
    """The delete removed the metadata before the put looked, and the bytes after the put brought them."""
    artifact = ONE.archive_sha256
    backend.place.at["written"] = [lambda: backend.place.clear(artifact)]
    with pytest.raises(Unavailable) as caught:
        put(backend, ONE)
    assert caught.value.retryable
    put(backend, ONE)
    assert read_all(backend, Locator(artifact)) == ONE.archive


def test_a_delete_leaves_what_was_stored_again_meanwhile(backend):
    locator = put(backend, ONE)[0].locator
    backend.place.at["removed"] = [lambda: put(backend, ONE, owner="bob")]
    backend.delete(locator)
    assert users(backend.stat(locator)) == ["bob"]
    assert read_all(backend, locator) == ONE.archive


def test_of_two_writers_the_second_finds_what_the_first_stored(backend):
    backend.place.at["write"] = [lambda: put(backend, ONE, owner="bob")]
    artifact, created = put(backend, ONE, owner="ada")
    assert (created, users(artifact)) == (False, ["bob"])


def test_a_change_that_never_gets_its_turn_gives_up(backend):
    locator = put(backend, ONE)[0].locator
    backend.place.write = lambda *_args, **_options: False
    with pytest.raises(AlreadyExists, match="all the time"):
        backend.claim(locator, "bob")
