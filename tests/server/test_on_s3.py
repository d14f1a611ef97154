"""A registry on real S3 servers: uploads that pass through, a store that is away, downloads from there."""

import contextlib
import json
import os
import subprocess
import threading

import pytest
from support.faults import Faults
from support.registry import Sample, eventually
from support.run import ARI, ari
from support.serving import Serving

from ari_server import service

PART = 5 << 20


@pytest.fixture
def faults(s3_store):
    with Faults(s3_store.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def serve(s3_store, faults, tmp_path, monkeypatch):
    """Starts a registry whose store is behind a proxy that can fail."""
    monkeypatch.setattr(service, "PATIENCE", 1.5)
    options = {
        "bucket": s3_store.bucket,
        "endpoint_url": faults.origin,
        "region": s3_store.region,
        "access_key_id": s3_store.access_key,
        "secret_access_key": s3_store.secret_key,
        "part_size": str(PART),
    }
    with contextlib.ExitStack() as stack:

        def start(**config):
            return stack.enter_context(Serving(tmp_path / "registry", backend="s3", options=options, **config))

        yield start


def altered(sample):
    return Sample(sample.data[:-1] + bytes([sample.data[-1] ^ 1]), b"", "")


def in_bucket(store):
    """Everything that is there: keys and unfinished uploads, without what the backend remembers."""
    with contextlib.closing(store.client()) as client:
        keys = [one["Key"] for one in client.list_objects_v2(Bucket=store.bucket).get("Contents", ())]
        uploads = client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", ())
    return sorted(key for key in keys if "/.ari" not in f"/{key}"), [one["Key"] for one in uploads]


def of(sample):
    return [f"artifacts/{sample.sha256}/{name}" for name in ("bundle.tar.gz", "manifest.lock", "meta.json")]


def test_an_upload_passes_through_to_the_store_and_what_is_bad_is_not_completed(serve, s3_store, faults):
    server = serve()
    alice, bob = server.token("alice"), server.token("bob")
    sample, bad = Sample.noise(3 * PART), Sample.noise(3 * PART)
    with server.uploading(alice, len(sample.data), **sample.declared) as wire:
        wire.send(sample.data[: 2 * PART + 1000])
        assert eventually(lambda: faults.counts["UploadPart"])
        assert server.spools() == []
        assert in_bucket(s3_store)[0] == []
        answer = wire.send(sample.data[2 * PART + 1000 :]).answer()
    assert (answer.status, answer.json()["duplicate"]) == (200, False)
    assert in_bucket(s3_store) == (of(sample), [])
    assert server.request("GET", sample.path, alice).content == sample.data
    assert server.request("GET", sample.path, alice, headers={"Range": "bytes=9-"}).content == sample.data[9:]

    assert server.upload(altered(bad), alice, **bad.declared).status_code == 422
    with server.uploading(alice, len(bad.data), **bad.declared) as wire:
        wire.send(bad.data[: 2 * PART])
        assert eventually(lambda: in_bucket(s3_store)[1])
    assert eventually(lambda: in_bucket(s3_store) == (of(sample), []))

    parts = faults.counts["UploadPart"]
    assert server.upload(altered(sample), bob, **sample.declared).status_code == 422
    assert server.upload(sample, bob, **sample.declared).json()["duplicate"] is False
    assert faults.counts["UploadPart"] == parts  # it is there: only verified again
    assert {owner.user for owner in server.registry.find(sample.id).owners} == {"alice", "bob"}


@pytest.mark.in_ci
def test_a_store_that_is_away_is_to_be_asked_again_and_recovers_by_itself(serve, s3_store, faults):
    server = serve()
    alice = server.token("alice")
    there, late = Sample.noise(100_000), Sample.noise(3 * PART)
    assert server.upload(there, alice, **there.declared).status_code == 200

    away = faults.order("UploadPart", nth=2, times=None, answer=(503, "SlowDown"))
    answer = server.upload(late, alice, **late.declared)
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    assert away.done
    faults.forget()
    assert eventually(lambda: in_bucket(s3_store) == (of(there), []))

    faults.order(None, times=None, drop=True)
    for method, path in (("GET", there.path), ("GET", f"{there.path}/manifest.lock"), ("DELETE", there.path)):
        answer = server.request(method, path, alice)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    assert server.request("GET", "/readyz").json()["detail"] == "not ready: store"
    assert server.request("HEAD", there.path).status_code == 200
    assert server.request("GET", "/artifacts?mine=1", alice).json()["artifacts"][0]["id"] == there.id
    faults.forget()
    assert server.request("GET", "/readyz").status_code == 200
    assert server.upload(late, alice, **late.declared).status_code == 200


@pytest.mark.parametrize("s3_store", ["moto"], indirect=True)
@pytest.mark.in_ci
def test_a_change_is_given_up_when_the_store_hangs(serve, faults):
    """No thread can be taken back from a change: it ends since the store's client gives up by itself."""
    server = serve()
    alice, sample = server.token("alice"), Sample.noise(1000)
    server.upload(sample, alice, **sample.declared)
    back = threading.Event()
    faults.order(None, times=None, until=back)
    server.http.timeout = 3 * service.PATIENCE + 30
    try:
        assert server.request("DELETE", sample.path, alice).status_code == 503
    finally:
        back.set()
        faults.forget()
    assert eventually(lambda: server.request("DELETE", sample.path, alice).status_code in {200, 404})


def test_a_proxied_download_survives_a_store_that_cuts(serve, faults):
    server = serve()
    alice, sample = server.token("alice"), Sample.noise(3_000_000)
    assert server.upload(sample, alice, **sample.declared).status_code == 200
    cut = faults.order("GetObject", r"bundle\.tar\.gz", times=2, cut_response=1_000_000)
    assert server.request("GET", sample.path, alice).content == sample.data
    assert cut.done == 2


def test_a_redirected_clone_needs_no_token_there_and_goes_on_after_a_cut(serve, faults, tmp_path):
    server = serve(redirect=60)
    alice, sample = server.token("alice"), Sample.noise(3_000_000)
    assert server.upload(sample, alice, **sample.declared).status_code == 200
    answer = server.request("GET", sample.path, alice)
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith(f"{faults.origin}/")
    seen = len(faults.seen)
    cut = faults.order("GetObject", times=1, cut_response=1_000_000)
    env = {
        **os.environ,
        "ARI_REGISTRY_URL": f"http://127.0.0.1:{server.port}",
        "ARI_REGISTRY_TOKEN": alice,
    }
    done = ari("clone", f"ari://{sample.id}", tmp_path / "clone", "--expect-sha256", sample.bundle_sha256, env=env)
    assert done.returncode == 0, done.stderr
    assert cut.done == 1
    assert len(faults.seen) == seen + 2
    for request in faults.seen[seen:]:
        assert request.method == "GET"
        assert "authorization" not in request.headers
        assert alice.encode() not in request.raw


def test_a_server_that_is_told_to_stop_while_it_asks_its_store_does_so_without_a_word(moto, tmp_path):
    hold = threading.Event()
    with Faults(moto.endpoint_url) as faults:
        faults.order("GET", times=None, until=hold)
        options = {"bucket": moto.bucket, "endpoint_url": faults.origin}
        env = {
            **os.environ,
            **moto.env,
            "ARI_REGISTRY_DATA": str(tmp_path / "data"),
            "ARI_REGISTRY_BACKEND": "s3",
            "ARI_REGISTRY_OPTIONS": json.dumps(options),
        }
        command = [ARI, "registry", "serve", "--port", "0"]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
            assert eventually(lambda: any(seen.method == "GET" for seen in faults.seen))
            process.terminate()
            _, said = process.communicate(timeout=60)
        hold.set()
    assert (process.returncode, said) == (0, "")
