"""Wrappers: each passes the conformance suite, and does what it is for."""

import threading
from contextlib import contextmanager

import pytest
from support.memory import MemoryBackend, MemoryHooks, innermost

from ari_core.conformance import BackendContract, make_bundle
from ari_core.conformance.knobs import new, read_all
from ari_core.contract import (
    CHUNK,
    Artifact,
    Capabilities,
    SupportsManifest,
    SupportsOwners,
    SupportsShare,
    SupportsWorkdir,
    Visibility,
)
from ari_core.errors import (
    AccessDenied,
    BackendBug,
    IntegrityError,
    NotFound,
    RateLimited,
    ReadOnly,
    Unavailable,
)
from ari_core.wrappers import (
    DeadlineBackend,
    Fault,
    FaultyBackend,
    ReadOnlyBackend,
    RetryBackend,
    RetryPolicy,
    Wrapper,
)

DOWN = Unavailable("down")
METHODS = ("resolve", "stat", "open", "probe", "put", "raise_visibility", "delete", "list")
BIG = make_bundle(8 * CHUNK)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def policy(self, **more):
        return RetryPolicy(sleep=self.sleep, clock=lambda: self.now, **{"jitter": lambda limit: limit, **more})


def rewrapped(wrap):
    """Returns the suite's `reopen` for a wrapper."""

    def reopen(self, backend):
        inner = innermost(backend)
        return wrap(type(inner)(inner.settings))

    return reopen


def retrying(inner, *plan, clock=None, **policy):
    return RetryBackend(FaultyBackend(inner, plan), (clock or Clock()).policy(**policy))


def stored(backend, bundle=BIG):
    return innermost(backend).put(bundle.source(), new())[0].locator


# -- the conformance suite


class TestPlain(MemoryHooks, BackendContract):
    reopen = rewrapped(Wrapper)

    @pytest.fixture
    def backend(self):
        return Wrapper(MemoryBackend())


class TestFaulty(MemoryHooks, BackendContract):
    reopen = rewrapped(FaultyBackend)

    @pytest.fixture
    def backend(self):
        return FaultyBackend(MemoryBackend())


def flaky(inner):
    """Everything fails at first, and every second stream is cut in its first block."""
    plan = [Fault(method, call, DOWN) for method in METHODS for call in (1, 3, 4)]
    plan += [Fault("read", call, DOWN, at=5) for call in range(1, 99, 2)]
    plan += [Fault("put", 5, DOWN, at=1000)]
    return retrying(inner, *plan, tries=9)  # one open may meet a bad stat, a bad open and a bad read


class TestRetry(MemoryHooks, BackendContract):
    """Over a store that fails all the time, everything works as if it did not."""

    reopen = rewrapped(flaky)

    @pytest.fixture
    def backend(self):
        return flaky(MemoryBackend())


class TestDeadline(MemoryHooks, BackendContract):
    """Within the deadline, nothing is different."""

    reopen = rewrapped(lambda inner: DeadlineBackend(inner, 60.0))

    @pytest.fixture
    def backend(self):
        return DeadlineBackend(MemoryBackend(), 60.0)


class TestReadOnly(MemoryHooks, BackendContract):
    reopen = rewrapped(ReadOnlyBackend)

    @pytest.fixture
    def backend(self):
        return ReadOnlyBackend(MemoryBackend())

    def seed(self, backend, bundle):
        return stored(backend, bundle)

    def absent(self, backend):
        return "0" * 64


# -- trying again


@pytest.mark.parametrize("error", [DOWN, RateLimited("slow down")], ids=["Unavailable", "RateLimited"])
def test_it_goes_on_after_what_may_be_repeated(error):
    clock = Clock()
    backend = retrying(MemoryBackend(), *[Fault("stat", n, error) for n in (1, 2, 3, 4)], clock=clock)
    assert backend.stat(stored(backend)).size == len(BIG.archive)
    assert clock.slept == [0.2, 0.4, 0.8, 1.6]


def test_it_gives_up_after_five_tries_with_the_last_error():
    clock = Clock()
    backend = retrying(MemoryBackend(), Fault("stat", None, DOWN), clock=clock)
    with pytest.raises(Unavailable) as caught:
        backend.stat(stored(backend))
    assert caught.value is DOWN
    assert (backend.inner.calls["stat"], len(clock.slept)) == (5, 4)


@pytest.mark.parametrize("kind", [NotFound, AccessDenied, IntegrityError, BackendBug, ReadOnly])
@pytest.mark.parametrize("method", ["stat", "resolve", "probe", "open", "list", "delete"])
def test_what_would_fail_again_is_not_repeated(kind, method):
    clock = Clock()
    backend = retrying(MemoryBackend(), Fault(method, None, kind("no")), clock=clock)
    locator = stored(backend)
    calls = {
        "stat": lambda: backend.stat(locator),
        "resolve": lambda: backend.resolve(backend.ref(locator)),
        "probe": backend.probe,
        "open": lambda: read_all(backend, locator),
        "list": lambda: list(backend.list()),
        "delete": lambda: backend.delete(locator),
    }
    with pytest.raises(kind):
        calls[method]()
    assert (backend.inner.calls[method], clock.slept) == (1, [])


def test_pauses_grow_to_the_cap_and_are_spread():
    clock, limits = Clock(), []
    backend = retrying(
        MemoryBackend(),
        Fault("stat", None, DOWN),
        clock=clock,
        tries=12,
        jitter=lambda limit: limits.append(limit) or limit / 3,
    )
    with pytest.raises(Unavailable):
        backend.stat(stored(backend))
    assert limits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0, 20.0, 20.0]
    assert clock.slept == [limit / 3 for limit in limits]
    pauses = {RetryPolicy().jitter(0.2) for _ in range(20)}
    assert len(pauses) > 1
    assert all(0 <= pause <= 0.2 for pause in pauses)


def test_the_store_says_how_long_to_wait():
    clock = Clock()
    backend = retrying(MemoryBackend(), Fault("stat", 1, RateLimited("slow", retry_after=7.0)), clock=clock)
    backend.stat(stored(backend))
    assert clock.slept == [7.0]


def test_nobody_waits_beyond_the_deadline():
    clock = Clock()
    wish = RateLimited("tomorrow", retry_after=86400.0)
    backend = retrying(MemoryBackend(), Fault("stat", 1, wish), clock=clock)
    with pytest.raises(RateLimited) as caught:
        backend.stat(stored(backend))
    assert (caught.value, clock.slept) == (wish, [])


def test_a_slow_failure_uses_up_the_deadline():
    clock = Clock()
    slow = Fault("stat", None, DOWN, wait=lambda: clock.sleep(40.0))
    backend = retrying(MemoryBackend(), slow, clock=clock, deadline=60.0)
    with pytest.raises(Unavailable):
        backend.stat(stored(backend))
    assert backend.inner.calls["stat"] == 2


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_cut_stream_goes_on_where_it_was_cut(ranges):
    class Plain(MemoryBackend):
        capabilities = Capabilities(put=True, ranges=ranges)

    offsets = []

    class Watching(FaultyBackend):
        def _open(self, locator, offset):
            offsets.append(offset)
            return super()._open(locator, offset)

    cuts = [Fault("read", 1, at=3 * CHUNK), Fault("read", 2, DOWN, at=5 * CHUNK + 17)]
    backend = RetryBackend(Watching(Plain(), cuts), Clock().policy())
    assert read_all(backend, stored(backend)) == BIG.archive
    assert offsets == ([0, 3 * CHUNK, 5 * CHUNK + 17] if ranges else [0, 0, 0])


def test_a_long_stream_survives_many_cuts_as_long_as_it_moves():
    cuts = [Fault("read", n, at=n * CHUNK) for n in range(1, 8)]
    backend = retrying(MemoryBackend(), *cuts, tries=2)
    assert read_all(backend, stored(backend)) == BIG.archive


def test_a_stream_that_stays_cut_is_given_up():
    backend = retrying(MemoryBackend(), Fault("read", None, at=1000))
    with pytest.raises(Unavailable):
        read_all(backend, stored(backend))
    assert backend.inner.calls["open"] == 5


def test_a_flipped_bit_is_nothing_to_repeat():
    backend = retrying(MemoryBackend(), Fault("read", at=CHUNK + 3, flip=True))
    data = read_all(backend, stored(backend))
    assert [n for n, (a, b) in enumerate(zip(data, BIG.archive, strict=True)) if a != b] == [CHUNK + 3]


def test_a_broken_stream_that_cannot_even_be_closed_goes_on():
    class ClosesBadly(MemoryBackend):
        @contextmanager
        def _open(self, locator, offset):
            with super()._open(locator, offset) as stream:
                yield stream
                if stream.position < len(stream.data):
                    raise Unavailable("cannot even close")

    backend = retrying(ClosesBadly(), Fault("read", 1, DOWN, at=CHUNK))
    assert read_all(backend, stored(backend)) == BIG.archive


def test_a_listing_goes_on_behind_the_last_cursor():
    class BreaksAfterEachPage(MemoryBackend):
        def _list(self, after):
            for locator, item in self._page(after):
                yield self._artifact(locator, item), locator
            if self._page(locator):
                raise Unavailable("down")

    backend = retrying(BreaksAfterEachPage(), tries=2)
    expected = sorted(stored(backend, make_bundle(seed=seed)) for seed in range(35))
    assert [artifact.locator for artifact, _ in backend.list()] == expected


def test_put_whose_answer_was_lost_is_not_sent_twice_and_claims_no_creation():
    backend = retrying(MemoryBackend(), Fault("put", 1, DOWN, after=True))
    source = make_bundle().source()
    artifact, created = backend.put(source, new())
    assert isinstance(artifact, Artifact)
    assert created is False
    assert source.reads == 1


def test_put_that_broke_in_the_middle_is_sent_again():
    backend = retrying(MemoryBackend(), Fault("put", 1, DOWN, at=5000), Fault("put", 2, DOWN))
    artifact, created = backend.put(BIG.source(), new())
    assert created is True
    assert read_all(backend, artifact.locator) == BIG.archive


def test_put_goes_on_with_the_name_it_reserved():
    resumed, noted = [], []

    class Reserving(MemoryBackend):
        def _put(self, source, new, resume, on_reserved):
            resumed.append(resume)
            return super()._put(source, new, resume, on_reserved)

    backend = retrying(Reserving(), Fault("put", 1, DOWN, at=5000))
    locator = backend.put(BIG.source(), new(), on_reserved=noted.append)[0].locator
    assert resumed == [None, locator]
    assert set(noted) == {locator}


def test_a_source_that_fails_is_not_asked_again():
    clock = Clock()
    backend = retrying(MemoryBackend(), clock=clock)
    source = BIG.source(BIG.archive[:1000])
    source.error = Unavailable("where the source comes from is down")
    with pytest.raises(Unavailable) as caught:
        backend.put(source, new())
    assert caught.value is source.error
    assert caught.value.backend is None, "it is not this store that is down"
    assert (source.reads, clock.slept) == (1, [])


def test_optional_protocols_are_tried_again_too():
    failures = [DOWN, DOWN]

    class Slow(MemoryBackend):
        def manifest(self, locator):
            if failures:
                raise failures.pop()
            return super().manifest(locator)

    backend = retrying(Slow())
    assert backend.optional(SupportsManifest).manifest(stored(backend)) == BIG.manifest
    assert backend.optional(SupportsWorkdir) is None


def test_a_secret_is_not_made_twice_when_an_answer_got_lost():
    """The first one would be valid, and nobody would know of it."""
    made = []

    class Lending(MemoryBackend):
        def share(self, locator, expires):
            made.append(locator)
            raise DOWN

    with pytest.raises(Unavailable):
        retrying(Lending()).optional(SupportsShare).share("x", None)
    assert made == ["x"]


# -- refusing to write


def test_read_only_refuses_every_write_and_changes_nothing():
    backend = ReadOnlyBackend(MemoryBackend())
    locator = stored(backend)
    before = backend.stat(locator)
    for write in (
        lambda: backend.put(make_bundle().source(), new()),
        lambda: backend.raise_visibility(locator, Visibility.PUBLIC),
        lambda: backend.delete(locator),
    ):
        with pytest.raises(ReadOnly) as caught:
            write()
        assert caught.value.backend == "memory"
    assert [artifact for artifact, _ in backend.list()] == [before]
    assert backend.optional(SupportsOwners) is None
    assert backend.optional(SupportsManifest).manifest(locator) == BIG.manifest


# -- not waiting for ever


@pytest.mark.parametrize("method", ["resolve", "stat", "probe", "open"])
def test_a_backend_that_does_not_answer_is_given_up(method):
    over = threading.Event()
    inner = FaultyBackend(MemoryBackend(), [Fault(method, wait=lambda: over.wait(60))])
    backend = DeadlineBackend(inner, 0.05)
    locator = stored(backend)
    calls = {
        "resolve": lambda: backend.resolve(backend.ref(locator)),
        "stat": lambda: backend.stat(locator),
        "probe": backend.probe,
        "open": lambda: read_all(backend, locator),
    }
    try:
        with pytest.raises(Unavailable, match="did not answer"):
            calls[method]()
    finally:
        over.set()


# -- failing on order


def test_faults_strike_at_their_call_and_at_no_other():
    backend = FaultyBackend(MemoryBackend(), [Fault("stat", 2, DOWN)])
    locator = stored(backend)
    backend.stat(locator)
    with pytest.raises(Unavailable):
        backend.stat(locator)
    backend.stat(locator)
    assert backend.calls["stat"] == 3


def test_a_fault_after_the_work_leaves_the_work_done():
    backend = FaultyBackend(MemoryBackend(), [Fault("delete", error=DOWN, after=True)])
    locator = stored(backend)
    with pytest.raises(Unavailable):
        backend.delete(locator)
    with pytest.raises(NotFound):
        backend.stat(locator)


def test_a_foreign_fault_is_translated_by_the_backend_inside():
    class Knows(MemoryBackend):
        def _translate(self, error):
            return AccessDenied("as the SDK says") if isinstance(error, PermissionError) else None

    backend = FaultyBackend(Knows(), [Fault("stat", 1, PermissionError()), Fault("stat", 2, ZeroDivisionError())])
    locator = stored(backend)
    with pytest.raises(AccessDenied):
        backend.stat(locator)
    with pytest.raises(BackendBug):
        backend.stat(locator)


def test_a_stream_is_cut_after_so_many_bytes():
    backend = FaultyBackend(MemoryBackend(), [Fault("read", at=1000)])
    got = b""
    with backend.open(stored(backend)) as stream:
        while len(got) < 1000:
            got += stream.read(300)
        with pytest.raises(Unavailable, match="ended 1047576 bytes early"):
            stream.read(300)
    assert got == BIG.archive[:1000]


def test_a_put_that_is_cut_stores_nothing():
    backend = FaultyBackend(MemoryBackend(), [Fault("put", error=DOWN, at=1000)])
    with pytest.raises(Unavailable):
        backend.put(BIG.source(), new())
    assert not list(backend.list())


def test_a_wait_happens_before_the_call():
    order = []
    backend = FaultyBackend(MemoryBackend(), [Fault("list", wait=lambda: order.append(stored(backend)))])
    assert [artifact.locator for artifact, _ in backend.list()] == order


def test_however_many_wrappers_a_download_asks_the_store_once_what_there_is():
    store = FaultyBackend(MemoryBackend())
    locator = stored(store)
    with RetryBackend(DeadlineBackend(store, 30)).open(locator) as stream:
        assert stream.read(CHUNK)
    assert store.calls["stat"] == 1


def test_a_source_that_can_be_read_once_does_not_hide_what_the_store_said():
    source = BIG.source()
    opened = source.open
    source.open = lambda: opened() if not source.reads else broken()

    @contextmanager
    def broken():
        raise Unavailable("it was not kept")
        yield

    with pytest.raises(Unavailable, match="down"):
        retrying(MemoryBackend(), Fault("put", error=DOWN, at=CHUNK)).put(source, new())
    assert source.reads == 1
