"""Archives that are verified while a store reads them: what goes through, and what never comes to its end."""

import hashlib
import itertools
import os
import queue
import random
import threading
import tracemalloc
import zlib
from contextlib import contextmanager

import pytest
from support.archives import (
    END,
    FNAME,
    MANIFEST,
    bundle,
    bundle_digest,
    gzip,
    header,
    manifest,
    manifest_of,
    member,
    members,
    plain_bundle,
)
from support.memory import MemoryBackend

from ari_core.conformance.knobs import new, read_all
from ari_core.errors import (
    ArchiveRefusedError,
    BackendBug,
    ContentMismatchError,
    DigestMismatchError,
    DiskFullError,
    Unavailable,
    VerificationError,
)
from ari_core.limits import Limits
from ari_core.verifying import VerifyingSource
from ari_core.wrappers import Fault, FaultyBackend, RetryBackend, RetryPolicy

FILES = {"README.md": b"hello\n", "noise": random.Random(1).randbytes(2_000_000)}
ARCHIVE = bundle(FILES)
SMALL = bundle({"README.md": b"hello\n"})
LIMITS = Limits()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _no_thread_stays():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(30)
    assert not [thread for thread in left if thread.is_alive()]


class Bytes:
    """A `ByteSource` whose streams give `data` in pieces; each time it is opened, the next of several `data`."""

    name = "test"
    size = None

    def __init__(self, *data, piece=100_000, failing=None):
        self.data, self.piece, self.failing = data, piece, failing
        self.opened = self.closed = 0

    @contextmanager
    def open(self):
        data = self.data[min(self.opened, len(self.data) - 1)]
        self.opened += 1
        try:
            yield Stream(data, self.piece, self.failing)
        finally:
            self.closed += 1


class Stream:
    def __init__(self, data, piece, failing):
        self.data, self.piece, self.failing, self.position = data, piece, failing, 0

    def read(self, size):
        if self.failing and self.position >= len(self.data) // 2:
            raise self.failing
        data = self.data[self.position : self.position + min(size, self.piece)]
        self.position += len(data)
        return data


def source(data, *, says=None, **changes):
    """A source of `data`, which claims what is right for `says` (default: the same)."""
    says = data if says is None else says
    given = data if hasattr(data, "open") else Bytes(data)
    claims = {"size": len(says), "archive_sha256": sha256(says), "limits": LIMITS, **changes}
    return VerifyingSource(given, **claims)


def pass_on(verifying, came, piece=1 << 16):
    """Reads to the end, which is b"" in `came`."""
    with verifying.open() as stream:
        while not came or came[-1]:
            came.append(stream.read(piece))


def fail_after(count, verifying):
    with verifying.open() as stream:
        stream.read(count)
        raise DiskFullError("full")


def drain(verifying, piece=1 << 16):
    pass_on(verifying, came := [], piece)
    return b"".join(came)


# -- what is right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 100, 511, 8192, 1 << 22])
@pytest.mark.parametrize("data", [SMALL, ARCHIVE], ids=["small", "larger"])
def test_what_verifies_comes_byte_for_byte_however_it_is_cut(data, piece):
    if piece < 100 and data is ARCHIVE:
        piece = 1000
    verifying = source(Bytes(data, piece=piece), says=data)
    assert drain(verifying) == data
    assert verifying.finish().archive_sha256 == sha256(data)
    assert verifying._source.opened == 1


@pytest.mark.parametrize("length", [600, 8191, 8192, 8193, 9000])
def test_archives_about_as_long_as_the_first_look_at_them_come_to_their_end_too(length):
    """The reader of gzip looks at 8192 bytes first: of one that is shorter it meets the end there."""
    tar = plain_bundle({"noise": random.Random(2).randbytes(max(0, length - 4000))})
    name = b"n" * (length - len(gzip(tar)) - 1) + b"\0"
    data = gzip(tar, flags=FNAME, extra=name)
    assert len(data) == length
    assert drain(source(data)) == data


def test_what_is_in_it_is_known_at_the_end_and_not_before():
    verifying = source(ARCHIVE)
    with verifying.open() as stream:
        assert stream.read(100)
        for ask in ("manifest", "bundle_sha256", "report"):
            with pytest.raises(BackendBug):
                getattr(verifying, ask)
        while stream.read(100_000):
            pass
    assert verifying.bundle_sha256 == bundle_digest(FILES)
    assert verifying.manifest == manifest(FILES)


def test_a_manifest_at_the_very_end_is_found():
    data = gzip(members(FILES) + member(MANIFEST, manifest(FILES)) + END)
    verifying = source(data)
    assert drain(verifying) == data
    assert verifying.manifest == manifest(FILES)


def test_progress_counts_what_was_passed_on():
    told = []
    drain(source(ARCHIVE, progress=lambda *what: told.append(what)))
    assert told[-1] == ("sending", len(ARCHIVE), len(ARCHIVE))
    assert [count for _, count, _ in told] == sorted({count for _, count, _ in told})


def test_what_no_store_had_to_read_is_verified_all_the_same():
    verifying = source(ARCHIVE)
    assert verifying.finish().bundle_sha256 == bundle_digest(FILES)
    assert verifying._source.opened == 1
    with pytest.raises(ContentMismatchError):
        source(
            gzip(member(MANIFEST, manifest(FILES)) + members({**FILES, "README.md": b"HELLO\n"}) + END)
        ).finish()


# -- what is wrong ------------------------------------------------------------------------------------------------

FLIPPED = ARCHIVE[: len(ARCHIVE) // 2] + bytes([ARCHIVE[len(ARCHIVE) // 2] ^ 1]) + ARCHIVE[len(ARCHIVE) // 2 + 1 :]
PLAIN_TAR = member(MANIFEST, manifest(FILES)) + members(FILES) + END


@pytest.mark.parametrize(
    ("data", "claims", "error"),
    [
        (ARCHIVE, {"archive_sha256": "0" * 64}, DigestMismatchError),
        (ARCHIVE, {"size": len(ARCHIVE) + 1}, ArchiveRefusedError),
        (ARCHIVE, {"size": len(ARCHIVE) - 1}, ArchiveRefusedError),
        (ARCHIVE, {"size": 10}, ArchiveRefusedError),
        (b"", {}, ArchiveRefusedError),
        (b"no archive at all", {}, ArchiveRefusedError),
        (b"no archive" * 300_000, {}, ArchiveRefusedError),
        (PLAIN_TAR, {}, ArchiveRefusedError),
        (FLIPPED, {}, VerificationError),
        (FLIPPED, {"archive_sha256": sha256(ARCHIVE)}, VerificationError),
        (ARCHIVE[:-1], {}, ArchiveRefusedError),
        (ARCHIVE + b"\0", {}, ArchiveRefusedError),
        (ARCHIVE + SMALL, {}, ArchiveRefusedError),
        (SMALL[:-1], {}, ArchiveRefusedError),
        (SMALL[:50], {}, ArchiveRefusedError),
        (gzip(member("../x", b"x") + END), {}, ArchiveRefusedError),
        (gzip(PLAIN_TAR[: -len(END)] + member("more", b"x") + END), {}, ContentMismatchError),
    ],
)
def test_what_is_wrong_never_comes_to_its_end(data, claims, error):
    verifying, came = source(data, **claims), []
    with pytest.raises(error):
        pass_on(verifying, came)
    assert sum(map(len, came)) <= claims.get("size", len(data))
    assert verifying._source.closed == 1
    with pytest.raises(BackendBug):
        _ = verifying.manifest


class Withheld(Stream):
    """Gives what it has, and then waits for more until it is interrupted."""

    def __init__(self, data):
        super().__init__(data, 1 << 20, None)
        self.interrupted = threading.Event()

    def read(self, size):
        if data := super().read(size):
            return data
        assert self.interrupted.wait(60)
        raise InterruptedError

    def interrupt(self):
        self.interrupted.set()


@contextmanager
def opened(stream):
    yield stream


def test_a_bad_beginning_is_known_while_the_rest_is_withheld():
    bad = gzip(member("../x", b"x" * 200_000), level=0)
    given, stream = Bytes(), Withheld(bad[:9000])
    given.open = lambda: opened(stream)
    verifying = source(given, size=10**9, archive_sha256="0" * 64, says=b"")
    with pytest.raises(ArchiveRefusedError, match="x"):
        drain(verifying)
    assert stream.interrupted.is_set()


def test_a_source_that_fails_is_not_taken_for_a_bad_archive():
    with pytest.raises(ConnectionResetError):
        drain(source(Bytes(ARCHIVE, failing=ConnectionResetError("gone")), says=ARCHIVE))


# -- stores that do not do as they should -------------------------------------------------------------------------


def test_a_store_that_stops_reading_leaves_nothing_running():
    verifying = source(ARCHIVE)
    with verifying.open() as stream:
        stream.read(1000)
    assert verifying._source.closed == 1
    with pytest.raises(BackendBug):
        _ = verifying.bundle_sha256


def test_a_store_that_fails_while_it_reads_leaves_nothing_running():
    verifying = source(ARCHIVE)
    with pytest.raises(DiskFullError):
        fail_after(1000, verifying)
    assert drain(verifying) == ARCHIVE  # and it can be read again


def test_a_store_that_takes_no_end_for_an_answer_gets_it_again():
    verifying = source(SMALL)
    with verifying.open() as stream:
        while stream.read(1 << 16):
            pass
        assert (stream.read(10), stream.read(10)) == (b"", b"")


def test_a_second_reading_is_verified_like_the_first():
    changed = Bytes(ARCHIVE, FLIPPED, ARCHIVE)
    verifying = source(changed, says=ARCHIVE)
    assert drain(verifying) == ARCHIVE
    with pytest.raises(VerificationError):
        drain(verifying)
    with pytest.raises(BackendBug):
        _ = verifying.manifest  # what a reading before has found says nothing of this one
    assert drain(verifying) == ARCHIVE
    assert verifying.manifest == manifest(FILES)


def test_a_store_gets_what_verifies_and_never_what_does_not():
    store = MemoryBackend()
    for bad in (FLIPPED, ARCHIVE[:-1], PLAIN_TAR):
        with pytest.raises(VerificationError):
            store.put(source(bad), new())
    assert list(store.list()) == []
    artifact, created = store.put(source(ARCHIVE), new())
    assert (created, artifact.bundle_sha256) == (True, bundle_digest(FILES))
    assert read_all(store, artifact.locator) == ARCHIVE


def test_a_store_that_fails_is_asked_again_and_a_bad_archive_is_not():
    given = Bytes(ARCHIVE)
    faulty = FaultyBackend(MemoryBackend(), [Fault("put", 1, Unavailable("away"), at=1_000_000)])
    store = RetryBackend(faulty, RetryPolicy(sleep=lambda _seconds: None))
    assert store.put(source(given, says=ARCHIVE), new())[1]
    assert given.opened == 2
    bad = Bytes(FLIPPED)
    with pytest.raises(VerificationError):
        store.put(source(bad, says=FLIPPED), new())
    assert bad.opened == 1


# -- bounds -------------------------------------------------------------------------------------------------------


def test_a_source_that_is_slow_is_waited_for_and_one_that_is_fast_waits():
    pieces = queue.Queue(1)
    data = iter([ARCHIVE[at : at + 300_000] for at in range(0, len(ARCHIVE), 300_000)] + [b""])

    class Slow:
        def read(self, size):
            pieces.put(None, timeout=60)  # room for one: whoever reads sets the pace
            return next(data)

    given = Bytes()
    given.open = lambda: opened(Slow())
    verifying = source(given, says=ARCHIVE)
    with verifying.open() as stream:
        came = b""
        while True:
            thread = threading.Thread(target=lambda: pieces.get(timeout=60))
            thread.start()
            piece = stream.read(1 << 20)
            thread.join()
            came += piece
            if not piece:
                break
    assert came == ARCHIVE


class Large:
    """A bundle of one file of so many MiB, made while it is read."""

    name, size = "large", None

    def __init__(self, mebibytes):
        self._block, self._count = os.urandom(1 << 20), mebibytes
        file = {
            "path": "large",
            "size": mebibytes << 20,
            "sha256": self._digest(itertools.repeat(self._block, mebibytes)),
        }
        raw = manifest_of([file])
        self._before = member(MANIFEST, raw) + header("large", mebibytes << 20)
        self.length, self.sha256 = sum(map(len, self._pieces())), self._digest(self._pieces())

    def _digest(self, pieces):
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self):
        packer = zlib.compressobj(0, zlib.DEFLATED, 31)
        for data in (self._before, *itertools.repeat(self._block, self._count), END):
            yield packer.compress(data)
        yield packer.flush()

    @contextmanager
    def open(self):
        pieces, rest = self._pieces(), b""

        class Pieces:
            def read(self, size):
                nonlocal rest
                while not rest and (piece := next(pieces, None)) is not None:
                    rest = piece
                data, rest = rest[:size], rest[size:]
                return data

        yield Pieces()


def test_however_large_it_is_memory_is_bounded():
    large = Large(64)
    verifying = source(large, says=b"", size=large.length, archive_sha256=large.sha256)
    tracemalloc.start()
    try:
        with verifying.open() as stream:
            while stream.read(8 << 20):
                pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert verifying.report.manifest.total_size == 64 << 20
    assert most < 12 << 20
