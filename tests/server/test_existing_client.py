"""People use the existing client now: a stand-in written from its description, against two of our workers."""

import json
import os

import httpx2
import pytest
from support.archives import END, MANIFEST, bundle_digest, gzip, header, manifest
from support.registry import LEVELS, Sample


class ExistingClient:
    """What `ari-publish/0.7.0` sends, request by request."""

    def __init__(self, registry, token):
        self.http = registry.client(token)
        self.http.headers["User-Agent"] = "ari-publish/0.7.0"

    def publish(self, archive, raw_manifest, visibility="staged", metadata=None):
        """Fields first, in this order, then the file; the manifest as its own JSON writer spells it."""
        boundary = os.urandom(16).hex()
        fields = {
            "visibility": visibility,
            "manifest": json.dumps(json.loads(raw_manifest)),
            "metadata": json.dumps(metadata or {}),
        }
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        file = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="bundle"; filename="bundle.tar.gz"\r\n'
            "Content-Type: application/gzip\r\n\r\n"
        )
        body = "".join([*parts, file]).encode() + archive + f"\r\n--{boundary}--\r\n".encode()
        answer = self.http.post(
            "/artifact", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )
        return answer.raise_for_status().json()

    def promote(self, artifact, target):
        return self.http.post(f"/artifact/{artifact}/promote", json={"target": target}).raise_for_status().json()

    def clone(self, artifact):
        head = self.http.head(f"/artifact/{artifact}").raise_for_status()
        got = self.http.get(f"/artifact/{artifact}").raise_for_status()
        assert int(head.headers["Content-Length"]) == len(got.content)
        return head.headers["X-ARI-Sha256"], head.headers["X-ARI-Visibility"], got.content


@pytest.fixture
def client(pair):
    client = ExistingClient(pair, pair.token("dora"))
    yield client
    client.http.close()


def test_publish_promote_and_clone(client, pair):
    sample = Sample.new()
    answer = client.publish(sample.data, sample.manifest, "public", {"title": "A study"})
    assert answer["id"] == sample.id
    assert answer["ref"] == f"ari://{sample.id}"
    assert answer["visibility"] == "staged"
    assert answer["duplicate"] is False
    assert client.publish(sample.data, sample.manifest)["duplicate"] is True
    for level in LEVELS:
        assert client.promote(sample.id, level) == {"id": sample.id, "visibility": level}
    assert client.clone(sample.id) == (sample.sha256, "public", sample.data)
    nobody = ExistingClient(pair, None)
    assert nobody.clone(sample.id) == (sample.sha256, "public", sample.data)
    nobody.http.close()


def test_the_stored_manifest_is_the_bundle_s_and_not_what_the_client_wrote_anew(client, pair):
    sample = Sample.new()
    assert json.dumps(json.loads(sample.manifest)).encode() != sample.manifest
    client.publish(sample.data, sample.manifest)
    client.promote(sample.id, "public")
    assert pair.get(f"{sample.path}/manifest.lock").content == sample.manifest


def test_errors_have_the_sentence_that_it_prints(pair):
    client = ExistingClient(pair, "ari_" + "A" * 43)
    sample = Sample.new()
    for call in (
        lambda: client.publish(sample.data, sample.manifest),
        lambda: client.promote(sample.id, "public"),
    ):
        with pytest.raises(httpx2.HTTPStatusError) as failed:
            call()
        assert failed.value.response.status_code == 401
        assert isinstance(failed.value.response.json()["detail"], str)
    client.http.close()


@pytest.mark.in_ci
def test_a_manifest_of_fifty_thousand_files(client):
    """More than 6 MB in one form field."""
    files = {f"data/part-{number:05d}.csv": b"" for number in range(50_000)}
    raw = manifest(files)
    assert len(raw) > 5_000_000
    tar = [header(MANIFEST, len(raw)), raw, bytes(-len(raw) % 512)]
    blank = header("?", 0)
    for path in files:  # as `header` writes it, without its price
        block = bytearray(blank)
        block[: len(path)] = path.encode()
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        tar.append(bytes(block))
    archive = gzip(b"".join([*tar, END]), level=1)
    answer = client.publish(archive, raw)
    assert answer["bundle_sha256"] == bundle_digest(files)
    assert client.clone(answer["id"])[2] == archive
