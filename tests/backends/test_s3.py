"""The backend that keeps bundles in a bucket: what every backend has to pass, on three real servers, and what only
it has to know.
"""

import base64
import errno
import hashlib
import re
import socketserver
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from unittest import mock
from urllib.parse import quote, unquote
from urllib.request import urlopen

import pytest
from support.faults import Faults
from support.httpd import Server
from support.places import deadline
from support.registry import eventually
from support.s3 import key_in, keys, names, raw, s3
from support.stores import Store

from ari_backends._claims import s3_claims
from ari_backends.filesystem_registry import FilesystemRegistry
from ari_backends.s3 import bucket, transfers
from ari_backends.s3.backend import S3
from ari_backends.s3.promises import MEMORY
from ari_core.conformance import BackendContract, make_bundle
from ari_core.conformance.knobs import is_absent, new, read_all, together, users
from ari_core.contract import CHUNK, Claim, Locator, SupportsOwners, Visibility
from ari_core.errors import (
    AccessDenied,
    DiskFullError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    RateLimited,
    Unavailable,
    Unsupported,
    VerificationError,
)
from ari_core.workflows.clone import clone
from ari_core.wrappers import patient

FIVE_MIB = 5 * 1024 * 1024
ONE, TWO = (make_bundle(seed=seed) for seed in (1, 2))
FILES = ["bundle.tar.gz", "manifest.lock", "meta.json"]
OLD = timedelta(minutes=6)


def put(backend, bundle, **more):
    return backend.put(bundle.source(), new(**more))


class TestConformance(BackendContract):
    """On each server; what one of them does not keep, its own `probe` says."""

    @pytest.fixture
    def backend(self, s3_store):
        self.store = s3_store
        with Faults(s3_store.endpoint_url) as self.faults:
            # Without `when_supported` no store would have a checksum to show.
            checksum = "when_supported" if s3_store.name == "moto" else None
            with s3(
                s3_store.behind(self.faults), prefix="lab/a b", checksum=checksum, part_size=FIVE_MIB
            ) as backend:
                yield backend

    def raw_corrupt(self, backend, locator):
        key = locator.partition("/")[2] + "bundle.tar.gz"
        data = bytearray(backend._client.read(key, 1 << 30)[0])
        data[len(data) // 2] ^= 1
        backend._client.put(key, data)

    @contextmanager
    def break_store(self, backend, step):
        orders = {
            "stat": ["GET", "meta.json", {"answer": 503}],
            "open": ["GET", "bundle.tar.gz", {"drop": True}],
            "read": ["GET", "bundle.tar.gz", {"cut_response": 1000}],
            "list": ["ListObjectsV2", "", {"cut_response": 1000}],
            "put": ["PutObject", "bundle.tar.gz", {"answer": 500}],
            "denied": [None, "", {"answer": (403, "AccessDenied")}],
        }
        what, where, fault = orders[step]
        order = self.faults.order(what, where, times=None, **fault)
        try:
            with mock.patch.object(transfers, "_LONGEST_PAUSE", 0):
                yield
        finally:
            self.faults.forget()
        assert order.done


# -- refs and places


def test_a_ref_names_bucket_and_prefix_and_leads_back(moto):
    with s3(moto, prefix="labor ü/50%") as backend, s3(moto, bucket=None) as reader:
        locator = put(backend, ONE)[0].locator
        ref = backend.ref(locator)
        assert ref == f"s3://{moto.bucket}/labor%20%C3%BC/50%25/artifacts/{ONE.archive_sha256}/"
        for text in (ref, ref[:-1], ref.replace("s3:", "S3:"), unquote(ref).replace("50%", "50%25")):
            assert reader.resolve(text) == locator
        assert read_all(reader, locator) == ONE.archive
        assert reader.manifest(locator) == ONE.manifest


@pytest.mark.parametrize("count", [16, 24, 64])
def test_the_first_digits_of_an_id_are_enough(moto, count):
    with s3(moto) as backend:
        locator = put(backend, ONE)[0].locator
        assert backend.resolve(f"s3://{moto.bucket}/artifacts/{ONE.archive_sha256[:count]}/") == locator
        with pytest.raises(NotFound):
            backend.resolve(f"s3://{moto.bucket}/artifacts/{'0' * count}/")


@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
@pytest.mark.parametrize("key", ["bundle.tar.gz", "ä/ö b+c%41#d?e&f=g.tar.gz", "a//b/./c", "artifacts/abc"])
def test_any_key_is_read_as_it_was_when_it_was_resolved(s3_store, key):
    with s3(s3_store, known=False) as backend:
        backend._client.put(key, ONE.archive)
        ref = f"s3://{s3_store.bucket}/{quote(key)}"
        locator = backend.resolve(ref)
        assert backend.resolve(backend.ref(locator)) == locator
        assert backend.stat(locator).size == len(ONE.archive)
        assert read_all(backend, locator, 4000) == ONE.archive[4000:]
        backend._client.put(key, TWO.archive)
        for call in backend.stat, lambda locator: read_all(backend, locator):
            with pytest.raises(IntegrityError, match="changed"):
                call(locator)
        backend._client.delete(key)
        assert is_absent(backend, locator)
        with pytest.raises(NotFound):
            backend.resolve(ref)


def test_a_single_object_has_neither_levels_nor_owners(moto):
    with s3(moto) as backend:
        backend._client.put("one.tar.gz", ONE.archive)
        locator = backend.resolve(f"s3://{moto.bucket}/one.tar.gz")
        for call in (
            lambda: backend.raise_visibility(locator, Visibility.PUBLIC),
            lambda: backend.delete(locator),
            lambda: backend.claim(locator, "bob"),
            lambda: backend.manifest(locator),
        ):
            with pytest.raises(Unsupported):
                call()
        assert read_all(backend, locator) == ONE.archive


@pytest.mark.parametrize(
    ("ref", "claim"),
    [
        ("s3://bucket/key", Claim.SCHEME),
        ("S3://bucket/a b/artifacts/" + "a" * 64 + "/", Claim.SCHEME),
        ("s3://bucket/a\nb", Claim.SCHEME),
        ("s3://bucket/", Claim.SCHEME),  # refused later, with the reason
        ("s3://bucket", Claim.SCHEME),
        ("s3:bucket/key", Claim.NO),
        ("simplecache::s3://bucket/key", Claim.NO),
        ("https://bucket.s3.amazonaws.com/key", Claim.NO),
    ],
)
def test_what_it_claims(ref, claim):
    assert s3_claims(ref) is claim


@pytest.mark.parametrize(
    "ref",
    [
        *("s3://", "s3://bucket", "s3://bucket/", "s3://b/key", "s3://bucket//", "s3://bucket/folder/"),
        *("s3://bucket/artifacts/", "s3://buc ket/k", "s3://bucket/%00", "s3://a..b/"),
    ],
)
def test_what_is_no_object_in_a_bucket_is_refused_without_a_request(ref):
    settings = S3.Settings(endpoint_url="http://127.0.0.1:9", anonymous=True)
    with S3(settings) as backend, pytest.raises(Unsupported) as caught:
        backend.resolve(ref)
    assert "s3://BUCKET/PREFIX/artifacts/ID/" in caught.value.hint


@pytest.mark.parametrize("end", ["", "/"])
def test_an_id_with_too_few_digits_is_told_how_many_it_has(moto, end):
    with s3(moto) as backend:
        put(backend, ONE)
        with pytest.raises(NotFound) as caught:
            backend.resolve(f"s3://{moto.bucket}/artifacts/{ONE.archive_sha256[:15]}{end}")
    assert "16 to 64 digits" in caught.value.hint


def test_an_address_that_ends_with_the_bucket_is_refused_without_a_request():
    for bucket_, ref in (("lab", None), (None, "s3://lab/key")):
        settings = S3.Settings(bucket=bucket_, endpoint_url="http://127.0.0.1:9/s3/lab", anonymous=True)
        with S3(settings) as backend, pytest.raises(InvalidConfiguration) as caught:
            backend.resolve(ref) if ref else backend.probe()
        assert caught.value.hint.endswith("endpoint_url=http://127.0.0.1:9/s3")


def test_a_bucket_is_needed_for_writing_only(moto):
    with s3(moto) as backend, s3(moto, bucket=None) as reader:
        locator = put(backend, ONE)[0].locator
        assert reader.stat(locator) == backend.stat(locator)
        for call in (
            reader.probe,
            lambda: put(reader, TWO),
            lambda: list(reader.list()),
            lambda: reader.delete(locator),
            lambda: reader.raise_visibility(locator, Visibility.PUBLIC),
        ):
            with pytest.raises(InvalidConfiguration) as caught:
                call()
            assert "-o bucket=NAME" in caught.value.hint


def test_only_what_is_in_the_configured_place_is_changed(moto):
    """A record that came with a download may name any bucket that the user may write to."""
    with s3(moto, prefix="theirs") as theirs, s3(moto, prefix="mine") as mine:
        locator = put(theirs, ONE)[0].locator
        for call in (
            lambda: mine.delete(locator),
            lambda: mine.claim(locator, "bob"),
            lambda: mine.disclaim(locator, "ada"),
            lambda: mine.raise_visibility(locator, Visibility.PUBLIC),
        ):
            with pytest.raises(Unsupported, match="not touched"):
                call()
        assert read_all(theirs, locator) == ONE.archive
        assert users(theirs.stat(locator)) == ["ada"]


def test_folders_of_a_filesystem_registry_go_on_in_a_bucket(moto, tmp_path):
    """They have ids of 16 digits, and the same archive stays where it is."""
    folder = FilesystemRegistry(FilesystemRegistry.Settings(root=tmp_path))
    old = Path(folder.put(ONE.source(), new())[0].locator)
    with s3(moto, prefix="p") as backend:
        for path in old.iterdir():
            backend._client.put(f"p/artifacts/{old.name}/{path.name}", path.read_bytes())
        locator = f"{moto.bucket}/p/artifacts/{old.name}/"
        for digits in (old.name, ONE.archive_sha256):
            assert backend.resolve(f"s3://{moto.bucket}/p/artifacts/{digits}/") == locator
        assert read_all(backend, locator) == ONE.archive
        artifact, created = put(backend, ONE, owner="bob")
        assert (artifact.locator, created, users(artifact)) == (locator, False, ["ada"])
        backend.claim(locator, "bob")
        assert [artifact.archive_sha256 for artifact, _ in backend.list()] == [None]
        backend.delete(locator)
        assert is_absent(backend, locator)
        assert keys(backend) == []


# -- what it promises


def test_the_first_put_lets_writers_race_and_everybody_knows_from_then_on(s3_store):
    with s3(s3_store, known=False) as backend, s3(s3_store, known=False) as other:
        assert (backend.probe().exclusive_create, backend.probe().atomic_updates) == (False, False)
        put(backend, ONE)
        found = other.probe()
        assert found == backend.probe()
        assert (found.exclusive_create, found.atomic_updates) == {
            "moto": (True, True),
            "rgw": (True, True),
            "swift": (False, False),
        }[s3_store.name]
        assert other.trial() == found
        assert {key.split("/")[0] for key in keys(backend)} == {"artifacts"}


def test_a_registry_lets_one_through_at_a_time_so_nothing_has_to_be_tried(swift):
    turns = []

    @contextmanager
    def turn(name):
        turns.append(name)
        yield

    with Faults(swift.endpoint_url) as faults, s3(swift.behind(faults), turn=turn, known=False) as backend:
        assert backend.probe() == backend.capabilities
        locator = put(backend, ONE)[0].locator
        backend.claim(locator, "bob")
        backend.raise_visibility(locator, Visibility.PUBLIC)
        backend.disclaim(locator, "bob")
        backend.delete(locator)
        assert turns == [ONE.archive_sha256] * 5
        assert not [seen for seen in faults.seen if ".ari-trial" in seen.target or "if-none-match" in seen.headers]
        assert keys(backend) == []


def test_a_condition_that_is_ignored_is_not_relied_on(moto):
    """Some stores drop headers that they do not know."""
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults), known=False) as backend:
        faults.order("PutObject", without=("if-none-match", "if-match"), times=None)
        locator = put(backend, ONE)[0].locator
        found = backend.probe()
        assert (found.exclusive_create, found.atomic_updates) == (False, False)
        faults.forget()
        # With what is left: it looks before it writes.
        assert put(backend, ONE)[1] is False
        backend.claim(locator, "bob")
        backend.delete(locator)
        assert not any(
            {"if-none-match", "if-match"} & {*seen.headers} for seen in faults.seen if seen.method == "PUT"
        )
        assert is_absent(backend, locator)


# -- requests


def requests_of(faults, call):
    faults.forget()
    result = call()
    return result, dict(faults.counts)


def test_how_many_requests_it_takes(moto):
    """They cost money and time; a change of these numbers is to be noticed."""
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend:
        put(backend, TWO)  # which reads what the trial found out
        (artifact, _), counts = requests_of(faults, lambda: put(backend, ONE))
        assert counts == {"GetObject": 3, "ListObjectsV2": 1, "PutObject": 3, "HeadObject": 1}
        assert requests_of(faults, lambda: put(backend, ONE))[1] == {"GetObject": 1, "HeadObject": 1}
        assert requests_of(faults, lambda: backend.stat(artifact.locator))[1] == {"GetObject": 1}
        ref = backend.ref(artifact.locator)
        assert requests_of(faults, lambda: backend.resolve(ref))[1] == {"GetObject": 1}
        assert requests_of(faults, lambda: read_all(backend, artifact.locator))[1] == {"GetObject": 2}
        assert requests_of(faults, lambda: backend.claim(artifact.locator, "bob"))[1] == {
            "GetObject": 1,
            "PutObject": 1,
        }
        assert requests_of(faults, lambda: backend.direct_url(artifact.locator, 60))[1] == {}
        assert requests_of(faults, lambda: backend.delete(artifact.locator))[1] == {
            "HeadObject": 1,
            "PutObject": 1,
            "GetObject": 1,
            "DeleteObject": 3,
        }


@pytest.mark.in_ci
def test_listing_a_thousand_keys_takes_one_request(moto):
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend, s3(moto) as other:
        client = other._client
        ids = sorted(f"{number:064x}" for number in range(1, 335))

        def fill(artifact):
            for name, data in ("bundle.tar.gz", b"12345"), ("meta.json", b" " * 64), ("manifest.lock", b""):
                client.put(f"artifacts/{artifact}/{name}", data)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fill, ids))
        client.put("artifacts/notes.txt", b"")
        client.put(f"artifacts/{'f' * 64}/bundle.tar.gz", b"no meta.json")
        listed, counts = requests_of(faults, lambda: list(backend.list()))
        assert counts == {"ListObjectsV2": 2}
        assert [artifact.archive_sha256 for artifact, _ in listed] == [cursor for _, cursor in listed] == ids
        assert {artifact.size for artifact, _ in listed} == {5}
        behind, counts = requests_of(faults, lambda: list(backend.list(after=ids[-300])))
        assert (len(behind), counts) == (299, {"ListObjectsV2": 1})


def test_metadata_without_a_bundle_is_told_and_not_listed(moto):
    lines = []
    with s3(moto, warn=lines.append) as backend:
        put(backend, ONE), put(backend, TWO)
        backend._client.delete(key_in(backend, ONE, "bundle.tar.gz"))
        assert [artifact.archive_sha256 for artifact, _ in backend.list()] == [TWO.archive_sha256]
        assert ONE.archive_sha256 in lines[0]
        locator = f"{moto.bucket}/artifacts/{ONE.archive_sha256}/"
        with pytest.raises(IntegrityError, match="lost"):
            read_all(backend, locator)
        assert put(backend, ONE)[1] is False
        assert read_all(backend, locator) == ONE.archive
        backend._client.put(key_in(backend, ONE, "bundle.tar.gz"), ONE.archive[:-1])
        with pytest.raises(IntegrityError, match="7999 bytes instead of 8000"):
            read_all(backend, locator)


# -- uploads

LARGE = make_bundle(3 * FIVE_MIB + 1)


def unfinished(backend):
    return list(backend._client.uploads(""))


@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_large_archives_go_in_parts_which_nobody_sees_when_they_fail(s3_store):
    with Faults(s3_store.endpoint_url) as faults, s3(s3_store.behind(faults), part_size=FIVE_MIB) as backend:
        source = LARGE.source(fails=True)
        with pytest.raises(type(source.error)):
            backend.put(source, new())
        assert faults.counts["UploadPart"] == 3
        assert (keys(backend), unfinished(backend)) == ([], [])
        faults.order("UploadPart", "partNumber=2", times=None, answer=(400, "InvalidRequest"))
        with pytest.raises(InvalidConfiguration):
            put(backend, LARGE)
        assert (keys(backend), unfinished(backend)) == ([], [])
        faults.forget()
        locator = put(backend, LARGE)[0].locator
        assert read_all(backend, locator) == LARGE.archive
        assert backend._client.head(key_in(backend, LARGE, "bundle.tar.gz")).metadata["sha256"] == (
            LARGE.archive_sha256
        )
        assert names(backend, LARGE) == FILES


@pytest.mark.parametrize("s3_store", ["moto", "rgw", "swift"], indirect=True)
@pytest.mark.parametrize("fault", [{"lose": True}, {"answer_after": 500}])
@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("CompleteMultipartUpload", ""),
        ("CreateMultipartUpload", ""),
        ("UploadPart", "partNumber=2"),
        ("PutObject", "manifest.lock"),
        ("PutObject", "meta.json"),
    ],
)
def test_a_lost_answer_loses_nothing_and_creates_once(s3_store, what, where, fault):
    with Faults(s3_store.endpoint_url) as faults, s3(s3_store.behind(faults), part_size=FIVE_MIB) as backend:
        order = faults.order(what, where, **fault)
        artifact, created = patient(backend).put(LARGE.source(), new())
        assert (created, order.done) == (True, 1)
        assert read_all(backend, artifact.locator) == LARGE.archive
        assert [entry for entry, _ in backend.list()] == [backend_listed(artifact)]


def backend_listed(artifact):
    """What a listing says of an artifact: what its keys tell."""
    return type(artifact)(artifact.locator, size=artifact.size, archive_sha256=artifact.archive_sha256)


@pytest.fixture
def hurried():
    """Between botocore's own tries of a request no time passes."""
    with mock.patch("botocore.retries.standard.ExponentialBackoff.delay_amount", return_value=0):
        yield


@pytest.mark.parametrize(
    ("bundle", "what", "where"),
    [
        (LARGE, "CompleteMultipartUpload", ""),
        (LARGE, "UploadPart", "partNumber=2"),
        (ONE, "PutObject", "bundle.tar.gz"),
        (ONE, "PutObject", "meta.json"),
    ],
)
def test_a_request_that_is_cut_loses_nothing_and_creates_once(s3_store, hurried, bundle, what, where):
    with Faults(s3_store.endpoint_url) as faults, s3(s3_store.behind(faults), part_size=FIVE_MIB) as backend:
        asked = faults.order(what, where, times=0)
        cut = faults.order(what, where, cut_request=20)
        artifact, created = put(backend, bundle)
        assert (created, cut.done, asked.matched) == (True, 1, 2)
        assert read_all(backend, artifact.locator) == bundle.archive


def test_a_store_that_is_busy_says_how_long_to_wait(moto, hurried):
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend:
        busy = faults.order("PutObject", "bundle.tar.gz", times=None, answer=(503, "SlowDown"), retry_after=7)
        with pytest.raises(RateLimited) as caught:
            put(backend, ONE)
        assert (caught.value.retry_after, busy.done) == (7, 3)
        faults.forget()
        assert put(backend, ONE)[1]


def test_somebody_else_s_write_that_is_under_way_is_waited_for(moto):
    """It may end in nothing, so its condition was not looked at yet."""
    fault = {"times": 2, "answer": (409, "ConditionalRequestConflict")}
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend:
        creating = faults.order("PutObject", "meta.json", **fault)
        assert (put(backend, ONE)[1], creating.done) == (True, 2)
        place, key = backend._here(), f"artifacts/{ONE.archive_sha256}/meta.json"
        found = place.read(key)
        replacing = faults.order("PutObject", "meta.json", **fault)
        assert place.write(key, found.data + b"\n", replacing=found.version)
        assert (place.read(key).data, replacing.done) == (found.data + b"\n", 2)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_parts_are_on_their_way_at_once(moto, concurrency):
    go, on_their_way, wait = threading.Event(), [], transfers.wait

    def waiting(parts, **more):  # the sender, for one of these to arrive
        if not go.is_set():
            assert eventually(lambda: faults.counts["UploadPart"] == len(parts))
            go.set()
        on_their_way.append(len(parts))
        return wait(parts, **more)

    with (
        Faults(moto.endpoint_url) as faults,
        s3(moto.behind(faults), part_size=FIVE_MIB, concurrency=concurrency) as backend,
        mock.patch.object(transfers, "wait", waiting),
    ):
        faults.order("UploadPart", times=None, until=go)
        backend.put(LARGE.source(at_end=go.set), new())
        assert max(on_their_way) == concurrency
        assert faults.counts["UploadPart"] == 4


def test_parts_are_larger_where_there_would_be_too_many(moto):
    with (
        Faults(moto.endpoint_url) as faults,
        s3(moto.behind(faults), part_size=FIVE_MIB) as backend,
        mock.patch.object(transfers, "_MOST_PARTS", 3),
    ):
        assert read_all(backend, put(backend, LARGE)[0].locator) == LARGE.archive
        assert faults.counts["UploadPart"] == 3


def test_what_does_not_arrive_whole_is_not_acknowledged(moto):
    """The store says that it has put the parts together, and has not."""
    with s3(moto, part_size=FIVE_MIB) as backend:
        complete = backend._client.complete

        def short(client, key, upload, etags, **more):
            return complete(key, upload, etags[:-1], **more)

        with (
            mock.patch.object(type(backend._client), "complete", short),
            pytest.raises(Unavailable, match="whole"),
        ):
            put(backend, LARGE)
        assert list(backend.list()) == []
        assert put(backend, LARGE)[1]


def test_a_framed_body_is_noticed(moto):
    """Some stores take the frame of an upload for data."""
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend:
        faults.order("PutObject", "bundle.tar.gz", framed=True)
        with pytest.raises(Unavailable):
            put(backend, ONE)
        assert list(backend.list()) == []
        assert put(backend, ONE)[1]
        assert raw(backend, ONE, "bundle.tar.gz") == ONE.archive


KILLED = """
import os, signal, sys
from support.s3 import s3
from support.stores import Store
from ari_core.conformance import make_bundle
from ari_core.conformance.knobs import new

bundle = make_bundle(15 * 1024 * 1024 + 1)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
with s3(Store(*sys.argv[1:]), part_size=5 * 1024 * 1024) as backend:
    backend.put(bundle.source(at_end=die), new())
"""


def test_what_a_killed_process_left_is_found_and_removed(rgw):
    store = (rgw.name, rgw.endpoint_url, rgw.access_key, rgw.secret_key, rgw.region, rgw.bucket)
    with s3(rgw) as backend:
        put(backend, ONE)
        folder = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *store], env={"PYTHONPATH": folder}, check=False, timeout=60
        )
        assert done.returncode == -9
        backend._client.put(f"artifacts/{TWO.archive_sha256}/bundle.tar.gz", TWO.archive)
        backend._client.put(".ari-trial/abc/once", b"1")
        assert list(backend.sweep(timedelta(hours=1), dry_run=False)) == []
        found = [(leftover.what, leftover.name) for leftover in backend.sweep(-OLD, dry_run=True)]
        assert found == [
            ("unfinished upload", f"artifacts/{LARGE.archive_sha256}/bundle.tar.gz"),
            ("object without an artifact", f"artifacts/{TWO.archive_sha256}/bundle.tar.gz"),
            ("object of a trial", ".ari-trial/abc/once"),
        ]
        assert len(unfinished(backend)) == 1
        removed = [(leftover.what, leftover.name) for leftover in backend.sweep(-OLD, dry_run=False)]
        assert removed == found
        assert unfinished(backend) == []
        assert {key.split("/")[1] for key in keys(backend)} == {ONE.archive_sha256}
        assert list(backend.sweep(-OLD, dry_run=True)) == []
        assert put(backend, TWO)[1]


# -- deleting, where no condition goes with a removal


@contextmanager
def happening(backend, operation, where, act):
    """Lets `act` happen once, just before the client sends this operation for such a key."""
    cls, done = type(backend._client), []
    real = getattr(cls, operation)

    def meddled(client, key, *args, **more):
        if not done and where in key:
            done.append(key)
            act()
        return real(client, key, *args, **more)

    with mock.patch.object(cls, operation, meddled):
        yield
    assert done


def is_consistent(backend, bundle):
    """Either all of it is there or nothing."""
    found = names(backend, bundle)
    assert found in (FILES, []), found
    return found == FILES


@pytest.mark.parametrize(
    "step", [("delete", "bundle.tar.gz"), ("delete", "manifest.lock"), ("delete", "meta.json")]
)
@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_a_put_while_it_is_deleted_is_refused_for_now(s3_store, step):
    """The deleter could take the new bytes along with the old ones."""
    with s3(s3_store) as backend, s3(s3_store) as other:
        locator = put(backend, ONE)[0].locator

        def interfere():
            with pytest.raises(Unavailable) as caught:
                put(other, ONE)
            assert caught.value.retryable

        with happening(backend, *step, interfere):
            backend.delete(locator)
        assert is_absent(other, locator)
        assert put(other, ONE)[1]
        assert read_all(backend, locator) == ONE.archive


def test_what_a_deleter_asked_for_and_gave_up_is_not_asked_for_again(moto):
    """It may still arrive: then it must find the note, and not what somebody has stored since."""
    held = threading.Event()
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults), patience=0.5) as backend:
        locator = put(backend, ONE)[0].locator
        faults.order("DeleteObject", "bundle.tar.gz", until=held)
        with pytest.raises(Unavailable):
            backend.delete(locator)
        assert faults.counts["DeleteObject"] == 1
        assert is_absent(backend, locator)
        with pytest.raises(Unavailable):
            put(backend, ONE)
        held.set()


ENDLESS = {
    "a body": b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: -5\r\n\r\n',
    "a refusal": b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_store_whose_answers_do_not_end_fills_no_memory(what):
    piece = b"x" * 0x100000 if what == "a body" else b"100000\r\n" + b"x" * 0x100000 + b"\r\n"

    class Endless(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            with suppress(OSError):
                self.request.sendall(ENDLESS[what])
                while True:
                    self.request.sendall(piece)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = Store("endless", f"http://127.0.0.1:{server.server_address[1]}", "key", "secret", bucket="bucket")
        tracemalloc.start()
        try:
            with s3(store, known=False) as backend, pytest.raises((IntegrityError, Unavailable)):
                backend.stat(Locator(f"bucket/artifacts/{ONE.archive_sha256}/"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            server.shutdown()
    assert peak < 100 * 1024 * 1024, f"{peak} bytes"


def test_a_delete_that_comes_while_it_is_stored_takes_no_acknowledged_bytes(moto):
    """It comes between the bytes and their metadata, and sees an artifact that is not there."""
    with s3(moto) as backend, s3(moto) as other:
        locator = f"{moto.bucket}/artifacts/{ONE.archive_sha256}/"
        with (
            happening(backend, "put", "meta.json", lambda: other.delete(locator)),
            pytest.raises(Unavailable, match="meanwhile"),
        ):
            put(backend, ONE)
        assert list(backend.list()) == []
        put(backend, ONE)
        assert read_all(backend, locator) == ONE.archive
        other.delete(locator)
        with happening(backend, "put", "meta.json", lambda: other.delete(locator)):
            patient(backend).put(ONE.source(), new())
        assert read_all(backend, locator) == ONE.archive


def test_what_a_deleter_left_to_another_one_is_not_cleared_twice(moto):
    """The second one begins while the first is at work, and ends when somebody has stored it again."""
    with s3(moto) as first, s3(moto) as second, s3(moto) as writer:
        locator = put(first, ONE)[0].locator
        artifact, key = ONE.archive_sha256, f"artifacts/{ONE.archive_sha256}/meta.json"
        one, two = first._here(), second._here()
        assert one.remove(key)
        assert two.remove(key)
        one.clear(artifact)
        assert put(writer, ONE)[1]
        two.clear(artifact)
        one.clear(artifact)
        assert read_all(writer, locator) == ONE.archive


@pytest.fixture
def crashed(moto):
    """Somebody was killed while he deleted: the note stays."""
    with s3(moto) as backend:
        locator = put(backend, ONE)[0].locator
        backend._here().remove(f"artifacts/{ONE.archive_sha256}/meta.json")
        yield backend, locator


@contextmanager
def minutes_later():
    """Lets notes be old, without anybody's waiting."""
    with mock.patch.object(bucket, "NOTE_LASTS", -OLD):
        yield


def test_an_artifact_whose_deletion_was_begun_is_absent(crashed):
    backend, locator = crashed
    assert names(backend, ONE) == FILES
    assert is_absent(backend, locator)
    assert list(backend.list()) == []
    for change in (
        lambda: backend.claim(locator, "bob"),
        lambda: backend.raise_visibility(locator, Visibility.PUBLIC),
    ):
        with pytest.raises(NotFound):
            change()
    backend.disclaim(locator, "ada")
    backend.delete(locator)
    assert names(backend, ONE) == FILES, "the first one may still be at it"


def test_what_a_killed_deleter_left_is_stored_over_after_a_while(crashed):
    backend, locator = crashed
    with pytest.raises(Unavailable):
        put(backend, ONE)
    with minutes_later():
        assert put(backend, ONE, owner="bob")[1]
    assert users(backend.stat(locator)) == ["bob"]
    assert is_consistent(backend, ONE)


def test_what_a_killed_deleter_left_is_deleted_after_a_while(crashed):
    backend, locator = crashed
    with minutes_later():
        backend.delete(locator)
    assert keys(backend) == []


def test_what_a_killed_deleter_left_is_swept(crashed):
    backend, _ = crashed
    assert [leftover.what for leftover in backend.sweep(-OLD, dry_run=False)] == [
        "object without an artifact",
        "object without an artifact",
        "note of a deletion",
    ]
    assert keys(backend) == []


def test_sweeping_takes_nothing_that_is_stored_meanwhile(moto):
    """What looks forsaken may get its metadata any moment."""
    with s3(moto) as backend, s3(moto) as other:
        backend._client.put(f"artifacts/{ONE.archive_sha256}/bundle.tar.gz", b"half")
        with happening(backend, "head", "meta.json", lambda: put(other, ONE)):
            assert list(backend.sweep(-OLD, dry_run=False)) == []
        assert is_consistent(backend, ONE)
        assert read_all(backend, f"{moto.bucket}/artifacts/{ONE.archive_sha256}/") == ONE.archive


@pytest.mark.parametrize("dry_run", [True, False])
def test_where_nothing_keeps_writers_apart_sweeping_leaves_objects_alone(moto, dry_run):
    with s3(moto, known=False) as backend:
        backend._client.put(key_in(backend, ONE, "bundle.tar.gz"), ONE.archive)
        assert list(backend.sweep(timedelta(seconds=-60), dry_run=dry_run)) == []
        assert names(backend, ONE) == ["bundle.tar.gz"]


def test_a_change_lets_writers_race_where_nobody_did_before(moto):
    with s3(moto) as backend:
        locator = put(backend, ONE)[0].locator
        backend._client.delete(MEMORY)
    with s3(moto, known=False) as backend:
        list(backend.sweep(timedelta(hours=1), dry_run=True))  # which asks what is remembered
        backend.raise_visibility(locator, Visibility.UNLISTED)
        assert MEMORY in keys(backend, all_of_them=True)


def test_a_deleter_that_was_held_up_stops(moto):
    """Its note may be overruled soon, and what it would delete then is somebody else's."""
    with s3(moto) as backend:
        locator = put(backend, ONE)[0].locator
        with mock.patch.object(bucket, "CLEARING_SECONDS", -1), pytest.raises(Unavailable, match="took too long"):
            backend.delete(locator)
        assert names(backend, ONE) == FILES
        assert is_absent(backend, locator)


@pytest.mark.parametrize("fault", [{"lose": True}, {"answer_after": 500}])
@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_a_lost_answer_to_the_last_disclaim(s3_store, fault):
    """The note was written, and the SDK's second try found it in the way."""
    with Faults(s3_store.endpoint_url) as faults, s3(s3_store.behind(faults)) as backend:
        locator = put(backend, ONE)[0].locator
        faults.forget()
        order = faults.order("PutObject", "meta.json", **fault)
        patient(backend).optional(SupportsOwners).disclaim(locator, "ada")
        assert order.done
        assert is_absent(backend, locator)
        assert keys(backend) == []


@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_puts_and_deletes_at_once_end_with_all_or_nothing(s3_store):
    """Whoever was told that it is there, and saw nobody delete it, finds it."""
    locator = f"{s3_store.bucket}/artifacts/{ONE.archive_sha256}/"
    with s3(s3_store) as backend, ThreadPoolExecutor(4) as pool:
        put(backend, ONE)

        def run(number):
            with s3(s3_store) as mine:
                for _ in range(8):
                    if number % 2:
                        mine.delete(locator)
                    else:
                        with suppress(Unavailable):
                            put(mine, ONE)

        list(pool.map(run, range(4)))
        patient(backend).put(ONE.source(), new())
        assert read_all(backend, locator) == ONE.archive
        assert is_consistent(backend, ONE)
        backend.delete(locator)
        assert keys(backend) == []


# -- downloads


@pytest.fixture(scope="module")
def huge():
    """More than the first range and several that are fetched ahead."""
    return make_bundle(70 * 1024 * 1024)


def fill(backend, bundle):
    """Stores without the fuss."""
    client = backend._client
    client.put("huge.tar.gz", bundle.archive)
    return backend.resolve(f"s3://{client.bucket}/huge.tar.gz")


def test_a_large_download_goes_on_where_it_was_cut(rgw, huge):
    with Faults(rgw.endpoint_url) as faults, s3(rgw.behind(faults), known=False) as backend:
        locator = fill(backend, huge)
        faults.forget()
        for nth, at in (1, 1_000_000), (2, 5_000_000), (4, 0), (5, 8_000_000):
            faults.order("GetObject", nth=nth, cut_response=at, reset=nth % 2)
        assert read_all(backend, locator) == huge.archive
        asked = [seen.headers for seen in faults.seen if seen.method == "GET"]
        assert len(asked) == 1 + 7 + 4
        assert all("range" in headers and "if-match" in headers for headers in asked)


@pytest.mark.parametrize("offset", [1, 16 * 1024 * 1024, 70 * 1024 * 1024 - 1, 70 * 1024 * 1024])
def test_a_large_download_begins_anywhere(moto, huge, offset):
    with s3(moto, known=False) as backend:
        assert read_all(backend, fill(backend, huge), offset, piece=1_000_003) == huge.archive[offset:]


def test_a_download_that_is_cut_all_the_time_ends(moto):
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults)) as backend:
        locator = put(backend, ONE)[0].locator
        with mock.patch.object(transfers, "_LONGEST_PAUSE", 0):
            faults.order("GetObject", "bundle.tar.gz", times=None, cut_response=10)
            with pytest.raises(Unavailable):
                read_all(backend, locator)


def test_an_object_that_changes_while_it_is_read_is_refused(rgw, huge):
    with s3(rgw, known=False) as backend:
        locator = fill(backend, huge)
        with backend.open(locator) as stream:
            stream.read(CHUNK)
            backend._client.put("huge.tar.gz", huge.archive[::-1])
            with pytest.raises(IntegrityError, match="changed") as caught:
                list(iter(lambda: len(stream.read(CHUNK)), 0))
        assert "resolve" in caught.value.hint


def test_a_bundle_that_is_stored_again_while_it_is_read_is_read_on(rgw, huge):
    """Its name is its digest: it is the same in other parts, with another ETag."""
    with s3(rgw, part_size=FIVE_MIB) as backend, s3(rgw, part_size=8 * 1024 * 1024) as other:
        store = patient(backend)
        locator = put(backend, huge)[0].locator
        with store.open(locator) as stream:
            data = bytearray(stream.read(CHUNK))
            with other._here().receive(huge.archive_sha256, huge.source()) as commit:
                commit()
            while piece := stream.read(CHUNK):
                data += piece
        assert data == huge.archive


def test_leaving_a_download_waits_for_nothing():
    """Not for a store that says nothing any more, in the middle of what is fetched ahead."""

    def answer(request, wire):
        first, last = map(int, re.search(r"bytes=(\d+)-(\d+)", request.headers.get("range", "bytes=0-0")).groups())
        told = {"ETag": '"1"', "Last-Modified": "Mon, 23 Nov 2026 06:00:00 GMT"}
        if request.method == "HEAD":
            wire.answer(200, {**told, "Content-Length": 1 << 30}, length=False)
            return
        told |= {"Content-Range": f"bytes {first}-{last}/{1 << 30}", "Content-Length": last - first + 1}
        wire.answer(206, told, bytes(1 << 20 if first == 0 else 1000), length=False)
        stuck.release()
        wire.hang()

    stuck = threading.Semaphore(0)
    with Server(answer) as server, S3(S3.Settings(endpoint_url=server.origin, anonymous=True)) as backend:
        locator = backend.resolve("s3://bucket/key")
        with deadline(20), backend.open(locator) as stream:
            assert stream.read(CHUNK)
            for _ in range(5):
                stuck.acquire()
        assert not [thread for thread in threading.enumerate() if thread.name == "ari-s3"]


@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_with_a_spool_no_transfer_holds_anything_large_in_memory(s3_store, huge, tmp_path):
    with s3(s3_store, spool=tmp_path) as backend:
        put(backend, make_bundle(6 * FIVE_MIB, seed=1))  # what is made once, and is not the transfer's
        tracemalloc.start()
        try:
            locator = put(backend, huge)[0].locator
            with backend.open(locator) as stream:
                digest = hashlib.sha256()
                while data := stream.read(CHUNK):
                    digest.update(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert digest.hexdigest() == huge.archive_sha256
        assert peak < 8 * 1024 * 1024, f"{peak} bytes"  # which is less than one part of the upload or the download
        assert list(tmp_path.iterdir()) == []


def test_with_a_spool_small_archives_and_last_parts_are_cut_where_they_end(moto, tmp_path):
    with s3(moto, spool=tmp_path, part_size=FIVE_MIB) as backend:
        for bundle in LARGE, make_bundle(CHUNK), make_bundle(5 * FIVE_MIB):
            assert read_all(backend, put(backend, bundle)[0].locator) == bundle.archive


def test_a_spool_that_is_full_says_so_and_leaves_nothing(moto, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with s3(moto, spool=tmp_path, part_size=FIVE_MIB) as backend:
        with (
            mock.patch("ari_backends.s3.transfers.write_all", side_effect=full),
            pytest.raises(DiskFullError, match="holding back an upload"),
        ):
            put(backend, LARGE)
        assert (keys(backend), unfinished(backend)) == ([], [])


def test_a_store_without_ranges_is_read_from_its_beginning(moto, huge):
    with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults), known=False) as backend:
        locator = fill(backend, huge)
        faults.forget()
        faults.order("GetObject", times=None, without=("range",))
        assert read_all(backend, locator, 20_000_000) == huge.archive[20_000_000:]
        assert faults.counts["GetObject"] == 1


@pytest.mark.parametrize("s3_store", ["moto", "rgw"], indirect=True)
def test_wrong_bytes_are_refused_wherever_they_come_from(s3_store, tmp_path):
    """No ETag and no checksum of the store decides: the bytes are hashed."""
    with Faults(s3_store.endpoint_url) as faults, s3(s3_store.behind(faults)) as backend:
        ref = backend.ref(put(backend, ONE)[0].locator)
        options = {"endpoint_url": faults.origin, "access_key_id": s3_store.access_key}
        options["secret_access_key"] = s3_store.secret_key
        faults.order("GetObject", "bundle.tar.gz", flip=6000)
        with pytest.raises((VerificationError, IntegrityError)):
            clone(ref, tmp_path / "copy", options=options)
        assert not (tmp_path / "copy").exists()
        assert clone(ref, tmp_path / "copy", options=options).archive_sha256 == ONE.archive_sha256


# -- wrong credentials


@pytest.mark.parametrize("s3_store", ["rgw", "swift"], indirect=True)
@pytest.mark.parametrize("wrong", [{"secret_access_key": "wrong-wrong"}, {"access_key_id": "nobody"}])
def test_wrong_credentials_are_never_absence(s3_store, wrong):
    with s3(s3_store) as backend, s3(s3_store, known=False, **wrong) as stranger:
        locator, absent = put(backend, ONE)[0].locator, f"{s3_store.bucket}/artifacts/{'0' * 64}/"
        for call in (
            lambda: stranger.stat(locator),
            lambda: stranger.stat(Locator(absent)),
            lambda: stranger.resolve(f"s3://{absent}"),
            lambda: stranger.resolve(f"s3://{s3_store.bucket}/nothing"),
            lambda: read_all(stranger, locator),
            lambda: list(stranger.list()),
            lambda: put(stranger, TWO),
            lambda: stranger.delete(locator),
            stranger.probe,
        ):
            with pytest.raises(AccessDenied) as caught:
                call()
            assert "wrong-wrong" not in caught.value.message + caught.value.hint


def test_a_public_bucket_is_read_without_credentials(rgw):
    policy = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*",
        "Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::%s/lab/*"}]}"""
    with s3(rgw, prefix="lab") as backend, s3(rgw, prefix="secret") as other:
        rgw.client().put_bucket_policy(Bucket=rgw.bucket, Policy=policy % rgw.bucket)
        locator, secret = put(backend, ONE)[0].locator, put(other, ONE)[0].locator
        with S3(S3.Settings(endpoint_url=rgw.endpoint_url, anonymous=True)) as reader:
            assert reader.resolve(backend.ref(locator)) == locator
            assert read_all(reader, locator) == ONE.archive
            for call in (
                lambda: reader.stat(secret),
                lambda: reader.raise_visibility(locator, Visibility.PUBLIC),
            ):
                with pytest.raises((AccessDenied, InvalidConfiguration)):
                    call()


# -- optional protocols


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"x-amz-checksum-sha256": TWO.archive_sha256}, TWO.archive_sha256),
        ({"x-amz-checksum-sha256": TWO.archive_sha256, "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"ETag": '"0123456789abcdef0123456789abcdef"'}, None),
    ],
)
def test_only_a_checksum_of_the_whole_object_is_one(headers, found):
    told = {name: b64(value) if "sha256" in name else value for name, value in headers.items()}

    def answer(request, wire):
        assert request.headers["x-amz-checksum-mode"] == "ENABLED"
        wire.answer(200, {"Last-Modified": "Mon, 23 Nov 2026 06:00:00 GMT", **told})

    with Server(answer) as server, S3(S3.Settings(endpoint_url=server.origin, anonymous=True)) as backend:
        locator = f"bucket/artifacts/{TWO.archive_sha256}/"
        if found:
            assert backend.provider_checksum(locator) == ("sha256", found)
        else:
            with pytest.raises(Unsupported):
                backend.provider_checksum(locator)


def b64(digest):
    return base64.b64encode(bytes.fromhex(digest)).decode()


def test_a_checksum_goes_along_where_it_is_wished_for(moto):
    for mode, sent in ("when_supported", b64(ONE.archive_sha256)), ("when_required", None):
        with Faults(moto.endpoint_url) as faults, s3(moto.behind(faults), prefix=mode, checksum=mode) as backend:
            put(backend, ONE)
            (seen,) = (each for each in faults.seen if each.method == "PUT" and "bundle.tar.gz" in each.target)
            assert seen.headers.get("x-amz-checksum-sha256") == sent
            assert raw(backend, ONE, "bundle.tar.gz") == ONE.archive


def test_a_direct_url_downloads_the_bundle_under_a_name(s3_store):
    with s3(s3_store) as backend:
        locator = put(backend, ONE)[0].locator
        with urlopen(backend.direct_url(locator, 60)) as answer:  # noqa: S310 - of our own server
            assert answer.read() == ONE.archive
            assert answer.headers["Content-Disposition"] == (
                f'attachment; filename="bundle-{ONE.archive_sha256}.tar.gz"'
            )


def test_a_store_serves_one_registry(s3_store):
    with s3(s3_store, prefix="p") as backend:
        assert backend.serve_for("one") == "one"
        assert backend.serve_for("two") == "one"
        assert backend.serve_for("two", take_over=True) == "two"
        assert backend.serve_for("one") == "two"
        assert keys(backend) == ["p/.ari-registry.json"]


def test_a_damaged_note_of_the_registry_is_refused_until_somebody_takes_the_store_over(moto):
    with s3(moto) as backend:
        backend._client.put(".ari-registry.json", b"{}")
        with pytest.raises(IntegrityError, match="damaged"):
            backend.serve_for("one")
        assert backend.serve_for("one", take_over=True) == backend.serve_for("two") == "one"


def test_of_many_registries_one_gets_the_store(rgw):
    with s3(rgw) as backend:
        got = together(*[lambda number=number: backend.serve_for(f"number {number}") for number in range(8)])
        assert len(set(got)) == 1
