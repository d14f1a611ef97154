"""Any backend to any other: published here, mirrored there, gone here, and there it is what the paper says.

A backend joins by one line in `KINDS`: a function that makes a `Place`, a store of its kind that nobody has used.
"""

import importlib
import itertools
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from gzip import decompress

import pytest
from support.archives import END, gzip, member
from support.bundles import contents, make_bundle
from support.httpd import forget_proxies
from support.memory import PREFIX, SPACES, MemoryBackend
from support.registry import Registry
from support.s3 import s3
from support.zenodo import Zenodo

from ari_core import clone, curate, mirror, plugins, publish, wrappers
from ari_core.contract import BackendSpec, Claim, Locator, Visibility
from ari_core.errors import AriError
from ari_core.filerefs import path_of
from ari_core.plugins import LoadedPlugins, Plugin
from ari_core.settings import open_backend

CITATION = """cff-version: 1.2.0
message: Cite this.
title: A study of everything
authors: [{family-names: Lovelace, given-names: Ada}]
"""


@dataclass
class Place:
    """One store, empty at first.

    Attributes:
        backend: Its name.
        options: Settings of whoever stores there.
        reader: Settings of whoever reads a ref of it.
        overwrite: Puts other bytes in the place of the archive at a ref, behind the store's back.
        destroy: Makes an end of it, or at least of what is at a ref.
        opens: Lets everybody read what was stored at a ref, where only its author can at first.
    """

    backend: str
    options: dict[str, str]
    overwrite: Callable[[str, bytes], object]
    destroy: Callable[[str], object]
    reader: dict[str, str] = field(default_factory=dict)
    opens: Callable[[str], object] = lambda _ref: None


class World:
    """What places are made of: a folder of the test's own, and servers that may be shared with other tests."""

    def __init__(self, folder, request):
        self.here, self._folder, self._request = folder / "here", folder, request

    def folder(self):
        path = self._folder / uuid.uuid4().hex
        path.mkdir()
        return path

    def server(self, name):
        return self._request.getfixturevalue("shared_server")(name)

    def registry(self):
        return next(self._request.getfixturevalue("registries"))

    def until_the_end(self, opened):
        self._request.addfinalizer(lambda: opened.__exit__(None, None, None))
        return opened.__enter__()


def local_tarball(world):
    folder = world.folder()
    return Place(
        "local-tarball",
        {"out": str(folder)},
        overwrite=lambda ref, data: path_of(ref).write_bytes(data),
        destroy=lambda _ref: shutil.rmtree(folder),
    )


def filesystem_registry(world):
    folder = world.folder()
    return Place(
        "filesystem-registry",
        {"root": str(folder)},
        overwrite=lambda ref, data: (path_of(ref) / "bundle.tar.gz").write_bytes(data),
        destroy=lambda _ref: shutil.rmtree(folder),
    )


def ari_registry(world):
    """A user of a server that others use, too."""
    server = world.registry()
    token = server.token(uuid.uuid4().hex)

    def folder(ref):
        return server.data / "artifacts" / ref.rpartition("/")[2]

    return Place(
        "ari-registry",
        {"url": server.url, "token": token},
        overwrite=lambda ref, data: (folder(ref) / "bundle.tar.gz").write_bytes(data),
        destroy=lambda ref: shutil.rmtree(folder(ref)),
        reader={"token": token},
    )


def on_s3(name, world):
    store = world.server(name).with_bucket()
    s3(store).close()  # remembers there what this kind of store does, so that nobody lets writers race again
    client = store.client()

    def destroy(_ref):
        for entry in client.list_objects_v2(Bucket=store.bucket)["Contents"]:
            client.delete_object(Bucket=store.bucket, Key=entry["Key"])

    def overwrite(ref, data):
        key = ref.removeprefix(f"s3://{store.bucket}/") + "bundle.tar.gz"
        client.put_object(Bucket=store.bucket, Key=key, Body=data)

    keys = {"access_key_id": store.access_key, "secret_access_key": store.secret_key}
    reader = {"endpoint_url": store.endpoint_url, "region": store.region, **keys}
    return Place("s3", {"bucket": store.bucket, **reader}, overwrite, destroy, reader)


def zenodo(world):
    service = world.until_the_end(Zenodo(world.folder()))
    options = {"base_url": service.url, "token": service.token}

    def destroy(_ref):
        service.tokens.clear()  # a draft is its owner's only

    return Place(
        "zenodo",
        options,
        overwrite=lambda ref, data: service.swap(ref.rpartition("/")[2], data),
        destroy=destroy,
        reader=options,
    )


def published_on_zenodo(world):
    """For ever, as papers cite it: whoever reads it has no account there."""
    service = world.until_the_end(Zenodo(world.folder()))
    options = {"base_url": service.url, "token": service.token}

    def opens(ref):
        with open_backend("zenodo", options) as backend:
            backend.raise_visibility(backend.resolve(ref), Visibility.PUBLIC)
        service.tokens.clear()

    return Place(
        "zenodo",
        options,
        overwrite=lambda ref, data: service.swap(ref.rpartition("/")[2], data),
        destroy=lambda ref: service.delete(ref.rpartition("/")[2]),
        opens=opens,
    )


def memory(_world):
    name = uuid.uuid4().hex

    def overwrite(ref, data):
        items = SPACES[name].items
        locator = Locator(ref.removeprefix(PREFIX))
        items[locator] = replace(items[locator], data=data)

    return Place("memory", {"space": name}, overwrite, lambda _ref: SPACES.pop(name), {"space": name})


MEMORY = BackendSpec(
    name=MemoryBackend.name,
    backend="support.memory:MemoryBackend",
    help="keeps artifacts in memory",
    claims=lambda ref: Claim.EXACT if ref.startswith(PREFIX) else Claim.NO,
    api=1,
)

KINDS = {
    "local-tarball": local_tarball,
    "filesystem-registry": filesystem_registry,
    "ari-registry": ari_registry,
    "s3 on moto": partial(on_s3, "moto"),
    "s3 on ceph": partial(on_s3, "rgw"),
    "zenodo": zenodo,
    "zenodo, published": published_on_zenodo,
    "memory": memory,
}

RING = [kind for kind in KINDS if kind != "s3 on ceph"]
DAILY = set(zip(RING, RING[1:] + RING[:1], strict=True))
"""Pairs for every day: each kind once as the source and once as the target."""
PAIRS = [pytest.param(a, b, marks=[] if (a, b) in DAILY else [pytest.mark.in_ci]) for a in KINDS for b in KINDS]


@pytest.fixture(scope="module")
def registries(tmp_path_factory):
    """Two servers in turn, for one would know a bundle that it is sent twice."""
    with Registry(tmp_path_factory.mktemp("one")) as one, Registry(tmp_path_factory.mktemp("two")) as two:
        yield itertools.cycle((one, two))


@pytest.fixture
def world(tmp_path, request, monkeypatch):
    forget_proxies(monkeypatch)
    monkeypatch.setattr(
        wrappers,
        "RetryPolicy",
        partial(wrappers.RetryPolicy, sleep=lambda _seconds: None, jitter=lambda _limit: 0.0),
    )
    found = plugins.load_plugins().plugins
    loaded = LoadedPlugins((*found, Plugin("memory", "memory", "1", "memory", "ok", None, (MEMORY,))))
    for name in ("plugins", "settings", "workflows.publish", "workflows.copies"):
        module = importlib.import_module(f"ari_core.{name}")
        monkeypatch.setattr(module, "load_plugins", lambda *_: loaded)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return World(tmp_path, request)


@pytest.fixture
def study(world):
    """A checkpoint that was curated, and its bundle digest: a bundle that no other test has seen."""
    folder = world.folder()
    (folder / "ear/code").mkdir(parents=True)
    (folder / "ear/publish.yaml").write_text("include: ['**']\nlicense: MIT\n")
    (folder / "ear/CITATION.cff").write_text(CITATION)
    (folder / "ear/code/run.py").write_text("print(1)\n")
    (folder / "ear/data.csv").write_text(f"{uuid.uuid4()}\n" * 5000)
    return folder, curate(folder).bundle_sha256


def damaged(good, folder):
    """What may lie in the place of an archive: by name, bytes that are not the paper's bundle."""
    middle = len(good) // 2
    make_bundle(folder / "other.tar.gz", {"code/run.py": b"evil()\n"})
    return {
        "a bit is flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "it is cut off": good[:middle],
        "another valid bundle": (folder / "other.tar.gz").read_bytes(),
        "a file more": gzip(decompress(good).removesuffix(END) + member("extra.py", b"evil()\n") + END),
    }


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_bundle_survives_the_store_that_it_was_published_in(world, study, monkeypatch, request, a, b):
    here, there = KINDS[a](world), KINDS[b](world)
    checkpoint, digest = study
    tree = contents(checkpoint / "ear_published")
    ref = publish(checkpoint, backend=here.backend, options=here.options).record.ref
    here.opens(ref)
    (copy,) = mirror(
        ref, there.backend, options=there.options, source_options=here.reader, expect_sha256=digest
    ).copies
    assert copy.created
    there.opens(copy.ref)
    here.destroy(ref)
    get = partial(clone, expect_sha256=digest)
    with pytest.raises(AriError):
        get(ref, "gone", options=here.reader)
    assert get(copy.ref, "copy", options=there.reader).anchored_by == "paper"
    assert contents(world.here / "copy") == tree
    for key, value in (there.options if there.reader else {}).items():
        monkeypatch.setenv(f"ARI_{there.backend.upper().replace('-', '_')}_{key.upper()}", value)
    found = get(ref, "kept.tar.gz", mirrors=[copy.ref], options=here.reader, extract=False)
    assert (found.ref, found.archive_sha256) == (copy.ref, copy.archive_sha256)
    good = world.here / "kept.tar.gz"
    damages = damaged(good.read_bytes(), world.folder())
    if not request.config.getoption("--long"):  # each kind for each store, but not behind each other one
        kinds = list(KINDS)
        chosen = list(damages)[(kinds.index(a) + kinds.index(b)) % len(damages)]
        damages = {chosen: damages[chosen]}
    for how, data in damages.items():
        there.overwrite(copy.ref, data)
        with pytest.raises(AriError) as caught:
            get(copy.ref, "refused")
        # A registry sees by itself that the size is another, and says that it cannot give it now.
        expected = {1, 5} if there.backend == "ari-registry" and len(data) != good.stat().st_size else {1}
        assert caught.value.exit_code in expected, (how, caught.value)
        found = get(copy.ref, how, mirrors=[str(good)])
        assert [place.ref for place in found.skipped] == [copy.ref]
        assert contents(world.here / how) == tree
    assert "refused" not in [path.name for path in world.here.iterdir()]


def test_a_checkpoint_knows_where_its_copies_are(world, study):
    here, there = filesystem_registry(world), local_tarball(world)
    checkpoint, digest = study
    ref = publish(checkpoint, backend=here.backend, options=here.options).record.ref
    (copy,) = mirror(str(checkpoint), there.backend, options=there.options).copies
    assert copy.recorded
    here.destroy(ref)
    found = clone(str(checkpoint), "copy")
    assert (found.ref, found.bundle_sha256, found.anchored_by) == (copy.ref, digest, "record")
    assert [place.ref for place in found.skipped] == [str(checkpoint)]
