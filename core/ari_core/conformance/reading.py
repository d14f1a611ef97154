"""Cases about reading: resolve, ref, stat, open."""

# ruff: noqa: S101 - assert is how tests assert

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from ari_core.conformance.bundles import BLOCK_EDGES, SMALLEST, make_bundle
from ari_core.conformance.knobs import (
    DENIED,
    Knobs,
    Step,
    assert_claims,
    assert_holds,
    assert_same,
    assert_trouble,
    is_absent,
    listed,
    need,
    read_all,
)
from ari_core.contract import CHUNK, Backend, Capabilities
from ari_core.errors import AriError, BackendBug, IntegrityError, NotFound, RangeError

OFFSETS: dict[str, Callable[[int], int]] = {
    "the second byte": lambda _size: 1,
    "before a block's edge": lambda _size: CHUNK - 1,
    "a block's edge": lambda _size: CHUNK,
    "behind a block's edge": lambda _size: CHUNK + 1,
    "the last byte": lambda size: size - 1,
    "the end": lambda size: size,
}
HOSTILE_REFS = {
    "empty": "",
    "no scheme": "nothing-like-this",
    "NUL": "file:///tmp/a\0b",
    "line feed": "s3://bucket/a\nb",
    "lone surrogate": "https://host.invalid/\ud800",
    "bad host": "https://[::1/x",
    "dots": "ari://../../../etc/passwd",
    "bad escape": "file:///%zz%",
    "very long": "doi:" + "9" * 100_000,
}


class Reading(Knobs):
    """Reading back what was stored."""

    @pytest.mark.parametrize("size", [SMALLEST, *BLOCK_EDGES, "large"])
    def test_round_trip(self, backend: Backend, size: int | str) -> None:
        """What was stored is what is read, whatever its size."""
        bundle = make_bundle(self.large if isinstance(size, str) else size)
        locator = self.seed(backend, bundle)
        assert_holds(backend, locator, bundle)

    @pytest.mark.parametrize("piece", [1, 7, 1000])
    def test_small_reads(self, backend: Backend, piece: int) -> None:
        """``read(n)`` never returns more than n bytes, and all of them in the end."""
        bundle = make_bundle()
        assert_same(read_all(backend, self.seed(backend, bundle), piece=piece), bundle.archive)

    def test_the_end_stays_the_end(self, backend: Backend) -> None:
        """Reading on after the end gives nothing, again and again."""
        bundle = make_bundle()
        with backend.open(self.seed(backend, bundle)) as stream:
            while stream.read(CHUNK):
                pass
            assert (stream.read(CHUNK), stream.read(1)) == (b"", b"")

    def test_two_readers(self, backend: Backend) -> None:
        """Two open streams of one artifact do not disturb each other."""
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        with backend.open(locator) as one, backend.open(locator) as two:
            start = one.read(100)
            assert_same(b"".join(iter(lambda: two.read(CHUNK), b"")), bundle.archive)
            rest = b"".join(iter(lambda: one.read(CHUNK), b""))
        assert_same(start + rest, bundle.archive)

    def test_stream_left_early(self, backend: Backend) -> None:
        """A reader may leave before the end; the next one is not disturbed."""
        bundle = make_bundle(2 * CHUNK)
        locator = self.seed(backend, bundle)
        for _ in range(3):
            with backend.open(locator) as stream:
                assert stream.read(10)
        assert_holds(backend, locator, bundle)

    def test_callers_error_passes_unchanged(self, backend: Backend) -> None:
        """An exception of the reader's ``with`` block is none of the backend's business."""
        locator = self.seed(backend, make_bundle())
        mine = KeyError("mine")
        with pytest.raises(KeyError) as caught, backend.open(locator) as stream:  # noqa: PT012 - nested on purpose
            stream.read(10)
            raise mine
        assert caught.value is mine

    def test_stat_tells_the_truth(self, backend: Backend) -> None:
        """What stat says about size and digests, if anything, is so."""
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        assert_claims(backend.stat(locator), locator, bundle)

    def test_absent_is_not_found(self, backend: Backend) -> None:
        """What is absent raises NotFound from stat and open, and its ref leads nowhere."""
        locator = self.absent(backend)
        assert is_absent(backend, locator)
        try:
            resolved = backend.resolve(backend.ref(locator))
        except NotFound:
            return
        assert is_absent(backend, resolved)

    def test_ref_leads_back(self, backend: Backend) -> None:
        """A ref is one portable word, and resolves to the very same locator."""
        locator = self.seed(backend, make_bundle())
        ref = backend.ref(locator)
        assert ref
        assert ref.isascii()
        assert ref.isprintable()
        assert " " not in ref
        assert backend.resolve(ref) == locator

    def test_another_instance_reads_it(self, backend: Backend) -> None:
        """What is stored is in the store, not in the backend object."""
        bundle = make_bundle()
        ref = backend.ref(self.seed(backend, bundle))
        with self.reopen(backend) as other:
            assert_holds(other, other.resolve(ref), bundle)

    @pytest.mark.parametrize("where", OFFSETS)
    def test_offset(self, backend: Backend, where: str) -> None:
        """Reading starts exactly at the offset, with ranges or without."""
        bundle = make_bundle(2 * CHUNK)
        locator = self.seed(backend, bundle)
        offset = OFFSETS[where](len(bundle.archive))
        assert_same(read_all(backend, locator, offset), bundle.archive[offset:])

    @pytest.mark.parametrize("beyond", [1, 1_000_000])
    def test_offset_past_the_end(self, backend: Backend, beyond: int) -> None:
        """An offset past the end is an error, never an empty answer."""
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        with pytest.raises(RangeError), backend.open(locator, len(bundle.archive) + beyond) as stream:
            stream.read(1)

    @pytest.mark.parametrize("ref", HOSTILE_REFS.values(), ids=HOSTILE_REFS)
    def test_hostile_ref(self, backend: Backend, ref: str) -> None:
        """A ref that makes no sense is refused in our own words, or leads nowhere."""
        try:
            locator = backend.resolve(ref)
            backend.stat(locator)
        except BackendBug as error:
            pytest.fail(f"a foreign exception came out: {error}")
        except AriError:
            return
        pytest.fail(f"the ref {ref[:80]!r} leads to '{locator}'")

    def test_rot_is_not_hidden(self, backend: Backend) -> None:
        """Bytes that changed in the store come out changed or not at all: whoever hashes them sees it."""
        bundle = make_bundle(2 * CHUNK)
        locator = self.seed(backend, bundle)
        assert_holds(backend, locator, bundle)
        self.raw_corrupt(backend, locator)
        try:
            data = read_all(backend, locator)
        except IntegrityError:
            return
        assert hashlib.sha256(data).hexdigest() != bundle.archive_sha256

    @pytest.mark.parametrize("step", ["stat", "open", "read"])
    def test_trouble_while_reading(self, backend: Backend, step: Step) -> None:
        """A store that fails says so in our own words, and never that the artifact is absent."""
        bundle = make_bundle(4 * CHUNK)
        locator = self.seed(backend, bundle)
        with self.break_store(backend, step), pytest.raises(AriError) as caught:
            backend.stat(locator) if step == "stat" else read_all(backend, locator)
        assert_trouble(caught.value)
        assert_holds(backend, locator, bundle)

    def test_refused_credentials(self, backend: Backend) -> None:
        """Refused credentials are AccessDenied and never look like an absent artifact."""
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        with self.break_store(backend, "denied"):
            with pytest.raises(DENIED):
                backend.stat(locator)
            with pytest.raises(DENIED):
                read_all(backend, locator)
        assert_holds(backend, locator, bundle)

    def test_trouble_while_listing(self, backend: Backend, can: Capabilities) -> None:
        """A listing that fails in the middle says so; it never just ends."""
        need(can.list != "no", "the store lists nothing here")
        for seed in range(self.room_for(self.page)):
            self.seed(backend, make_bundle(seed=seed))
        with self.break_store(backend, "list"), pytest.raises(AriError) as caught:
            listed(backend)
        assert_trouble(caught.value)

    def test_trouble_while_storing(self, backend: Backend, can: Capabilities) -> None:
        """A store that fails while it takes an archive says so, and takes it when it works again."""
        need(can.put, "the store takes no artifacts here")
        bundle = make_bundle(2 * CHUNK)
        with self.break_store(backend, "put"), pytest.raises(AriError) as caught:
            backend.put(bundle.source(), self.new(backend))
        assert_trouble(caught.value)
        artifact, _ = backend.put(bundle.source(), self.new(backend))
        assert_holds(backend, artifact.locator, bundle)
