"""Our client against an existing server, which has the old routes and nothing more."""

import json

import pytest
from support.existing_server import ExistingServer

from ari_backends.ari_registry.backend import AriRegistry
from ari_core.conformance import make_bundle
from ari_core.conformance.knobs import new, read_all
from ari_core.contract import OpenContext, SupportsManifest, SupportsShare, Visibility
from ari_core.errors import AccessDenied, AlreadyExists, NotFound, Unsupported

ONE = make_bundle(seed=1)


@pytest.fixture
def server():
    with ExistingServer() as server:
        yield server


@pytest.fixture
def connect(server):
    made = []

    def connect(user="alice"):
        token = next((token for token, name in server.users.items() if name == user), None)
        made.append(AriRegistry(AriRegistry.Settings(url=server.url, token=token), OpenContext()))
        return made[-1]

    yield connect
    for backend in made:
        backend.close()


def test_publish_promote_clone_delete(server, connect):
    store = connect()
    assert store.probe().list == "no"
    artifact, created = store.put(ONE.source(), new())
    assert created
    assert store.ref(artifact.locator) == f"{server.url}/artifact/{ONE.archive_sha256[:16]}"
    reader = connect(None)
    found = reader.resolve(store.ref(artifact.locator))
    assert reader.stat(found).archive_sha256 == ONE.archive_sha256
    with pytest.raises(AccessDenied):
        read_all(reader, found)
    assert store.raise_visibility(artifact.locator, Visibility.PUBLIC) is Visibility.PUBLIC
    assert read_all(reader, found) == ONE.archive
    store.delete(artifact.locator)
    store.delete(artifact.locator)
    with pytest.raises(NotFound):
        reader.stat(found)


def test_an_upload_is_the_existing_clients_form_and_starts_staged(server, connect):
    connect().put(ONE.source(), new(wish=Visibility.PUBLIC, description={"license": "MIT"}))
    ((*fields, bundle),) = server.uploads
    assert [name for name, _ in fields] == ["visibility", "manifest", "metadata"]
    assert bundle == ("bundle", ONE.archive)
    assert json.loads(dict(fields)["manifest"]) == json.loads(ONE.manifest)
    assert json.loads(dict(fields)["metadata"]) == {"license": "MIT"}
    (stored,) = server.artifacts.values()
    assert stored.visibility == "staged"


def test_the_same_again_creates_nothing(connect):
    store = connect()
    first, _ = store.put(ONE.source(), new())
    assert store.put(ONE.source(), new()) == (first, False)


def test_levels_never_go_down(connect):
    store = connect()
    locator = store.put(ONE.source(), new())[0].locator
    store.raise_visibility(locator, Visibility.PUBLIC)
    assert store.raise_visibility(locator, Visibility.UNLISTED) is Visibility.PUBLIC


def test_another_archive_with_the_same_id_is_refused_before_anything_is_sent(server, connect):
    connect().put(make_bundle(seed=2).source(), new())
    ((_, other),) = server.artifacts.items()
    server.artifacts[ONE.archive_sha256[:16]] = other
    sent = len(server.uploads)
    with pytest.raises(AlreadyExists):
        connect().put(ONE.source(), new())
    assert len(server.uploads) == sent


def test_the_manifest_comes_from_the_bundle_as_it_is(server, connect):
    store = connect()
    locator = store.put(ONE.source(), new())[0].locator
    assert store.optional(SupportsManifest).manifest(locator) == ONE.manifest
    assert not any(path.endswith("manifest.lock") for _, path in server.requests)


def test_what_it_lacks_is_said(connect):
    store = connect()
    locator = store.put(ONE.source(), new())[0].locator
    with pytest.raises(Unsupported, match="lists nothing"):
        list(store.list())
    with pytest.raises(Unsupported, match="no fetch tokens"):
        store.optional(SupportsShare).share(locator, None)


def test_somebody_elses_artifact_is_not_ours_to_change(connect):
    locator = connect("alice").put(ONE.source(), new())[0].locator
    for change in (lambda s: s.raise_visibility(locator, Visibility.PUBLIC), lambda s: s.delete(locator)):
        with pytest.raises(AccessDenied, match="not the owner"):
            change(connect("bob"))
