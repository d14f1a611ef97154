"""The conformance suite over the memory backend: all it can do, the least a store can do, and in between."""

from dataclasses import replace

import pytest
from support.memory import MemoryBackend, MemoryHooks, ShowcaseBackend, Stored

from ari_core.conformance import BackendContract, Bundle, make_bundle, repacked
from ari_core.contract import Backend, Capabilities, Visibility
from ari_core.errors import BackendBug, Unsupported


class TestMemory(MemoryHooks, BackendContract):
    @pytest.fixture
    def backend(self):
        with MemoryBackend() as backend:
            yield backend


class TestShowcase(MemoryHooks, BackendContract):
    @pytest.fixture
    def backend(self):
        with ShowcaseBackend() as backend:
            yield backend


class BareBackend(Backend):
    """Reads, and promises nothing: not even to know a size."""

    name = "bare"
    capabilities = Capabilities()
    Settings = MemoryBackend.Settings

    def __init__(self, settings=None, context=None):
        super().__init__(settings or MemoryBackend.Settings(), context)
        self.memory = MemoryBackend(self.settings)

    def _resolve(self, ref):
        return self.memory._resolve(ref)

    def _ref(self, locator):
        return self.memory._ref(locator)

    def _stat(self, locator):
        return replace(self.memory._stat(locator), size=None, visibility=None, owners=None, created=None)

    def _open(self, locator, offset):
        assert offset == 0, "a store without ranges is only ever read from the beginning"
        return self.memory._open(locator, 0)


class TestBare(BackendContract):
    @pytest.fixture
    def backend(self):
        return BareBackend()

    def seed(self, backend, bundle):
        locator = bundle.archive_sha256
        backend.memory.space.items[locator] = Stored(bundle.archive, bundle.manifest, bundle.bundle_sha256, None)
        return locator

    def absent(self, backend):
        return "0" * 64


class HumbleBackend(MemoryBackend):
    """Could do everything, but not here: deletes only what is staged, has two levels, keeps nothing."""

    here = Capabilities(
        put=True,
        delete="unpublished",
        list="eventual",
        visibility="recorded",
        levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}),
    )

    def _probe(self):
        return self.here

    def _delete(self, locator):
        if (stored := self.space.items.get(locator)) and stored.visibility is not Visibility.STAGED:
            raise Unsupported("what is published stays")
        super()._delete(locator)

    def _raise_visibility(self, locator, target):
        if target not in self.here.levels:
            raise Unsupported(f"no level '{target}' here")
        return super()._raise_visibility(locator, target)


class TestHumble(MemoryHooks, BackendContract):
    @pytest.fixture
    def backend(self):
        return HumbleBackend()


def test_what_probe_reports_beyond_the_class_is_a_bug_of_the_backend():
    class Boaster(MemoryBackend):
        capabilities = Capabilities(put=True, list="eventual", levels=frozenset({Visibility.PUBLIC}))

        def _probe(self):
            return MemoryBackend.capabilities

    with pytest.raises(BackendBug) as caught:
        Boaster().probe()
    for name in "delete", "list", "ranges", "exclusive_create", "visibility", "levels", "stores_meta":
        assert name in str(caught.value)
    assert "put" not in str(caught.value).partition(":")[2]


def test_repacked_is_the_same_bundle():
    bundle = make_bundle()
    other = repacked(bundle)
    assert isinstance(other, Bundle)
    assert other.archive_sha256 != bundle.archive_sha256
    assert (other.bundle_sha256, other.manifest) == (bundle.bundle_sha256, bundle.manifest)
