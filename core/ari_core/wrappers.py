"""Backends around a backend: trying again, refusing to write, failing on order.

A wrapper is a backend itself and passes the same conformance suite.
"""

# ruff: noqa: ARG002 - the contract says which arguments a method takes

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from ari_core.contract import (
    CHUNK,
    Artifact,
    Backend,
    Capabilities,
    Locator,
    NewArtifact,
    ReadStream,
    Source,
    SupportsOwners,
    SupportsRehearsal,
    SupportsServing,
    SupportsShare,
    SupportsSweep,
    SupportsTrial,
    SupportsWorkdir,
    Visibility,
    WatchedSource,
)
from ari_core.errors import (
    AriError,
    BackendError,
    IntegrityError,
    RangeError,
    RateLimited,
    ReadOnly,
    Unavailable,
)
from ari_core.streams import deadline, in_thread

if TYPE_CHECKING:
    from pydantic import BaseModel

_T = TypeVar("_T")
_P = TypeVar("_P")


class Wrapper(Backend):
    """Passes everything on to another backend, under that one's name and with its capabilities.

    Attributes:
        inner: The backend inside.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.settings, inner.context)
        self.inner = inner

    # On an ordinary backend these are class values. A wrapper has those of whatever it wraps.

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.capabilities

    @property
    def Settings(self) -> type[BaseModel]:  # type: ignore[override]  # noqa: N802 - the contract's name
        """The inner backend's."""
        return self.inner.Settings

    @property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.aliases

    def _resolve(self, ref: str) -> Locator:
        return self.inner.resolve(ref)

    def _ref(self, locator: Locator) -> str:
        return self.inner.ref(locator)

    def _stat(self, locator: Locator) -> Artifact:
        return self.inner.stat(locator)

    def _open(self, locator: Locator, offset: int) -> AbstractContextManager[ReadStream]:
        return self.inner.open(locator, offset)

    def _probe(self) -> Capabilities:
        return self.inner.probe()

    def _close(self) -> None:
        self.inner.close()

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        return self.inner.put(source, new, resume=resume, on_reserved=on_reserved)

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self.inner.raise_visibility(locator, target)

    def _delete(self, locator: Locator) -> None:
        self.inner.delete(locator)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        return self.inner.list(after)

    def _translate(self, error: Exception) -> BackendError | None:
        return self.inner._translate(error)  # noqa: SLF001 - one family

    @property
    def reader_settings(self) -> tuple[str, ...]:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.reader_settings

    @property
    def trust_settings(self) -> tuple[str, ...]:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.trust_settings

    @property
    def describes(self) -> bool:  # type: ignore[override]
        """The inner backend's."""
        return self.inner.describes

    def optional(self, protocol: type[_P]) -> _P | None:
        """Returns what the inner backend has of it."""
        return self.inner.optional(protocol)


# -- trying again ------------------------------------------------------------------------------------------------


def _full_jitter(limit: float) -> float:
    return random.uniform(0.0, limit)  # noqa: S311 - spreads load, protects nothing


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again.

    The pause before a try is random between nothing and a limit that doubles from `base` to `cap` ("full
    jitter"): many clients that met the same outage do not come back all at once.

    Attributes:
        tries: At most so many in a row without progress.
        base: Limit of the first pause, seconds.
        cap: Limit of any pause, seconds.
        deadline: Seconds after which no further try starts, counted like `tries`.
        on_retry: Told why it will be tried again.
        sleep: Waits so many seconds.
        clock: Seconds from some fixed moment.
        jitter: Picks a pause between 0 and a limit.
    """

    tries: int = 5
    base: float = 0.2
    cap: float = 20.0
    deadline: float = 300.0
    on_retry: Callable[[AriError], None] = lambda _error: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float], float] = _full_jitter


class _Patience:
    """How much of it is left for one operation."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.renew()

    def renew(self) -> None:
        """There was progress: counts from here."""
        self._failures = 0
        self._until = self._policy.clock() + self._policy.deadline

    def wait(self, error: AriError) -> None:
        """Waits before the next try, or raises `error` when there should be none."""
        policy = self._policy
        self._failures += 1
        if not error.retryable or self._failures >= policy.tries:
            raise error
        pause = policy.jitter(min(policy.cap, policy.base * 2 ** (self._failures - 1)))
        if isinstance(error, RateLimited) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if policy.clock() + pause > self._until:
            raise error
        policy.on_retry(error)
        policy.sleep(pause)


class RetryBackend(Wrapper):
    """Tries again what may be tried again: errors that say so (`RateLimited`, `Unavailable`), and no others.

    - A stream that breaks goes on where it broke; without ``ranges`` the bytes before are read again and thrown
      away. A listing goes on behind the last cursor. Each `CHUNK` of progress renews the patience, so that a long
      download survives many cuts.
    - `raise_visibility` and `delete` can be repeated by contract, and so can the optional protocols.
    - `put` after an unclear failure (the answer got lost) has to look before it sends again. The contract makes
      every put begin with that look, and only the backend can do it, since nobody else knows the name that the
      archive will have. So it is simply called again, with the name it reserved, if it did. If the first try
      succeeded after all, the second returns ``created=False``, and that is reported as it is: whether the
      archive is from our lost try or was somebody's before cannot be told, and a caller may undo only what it
      surely created. So of several writers at most one gets ``created=True``, and none if its answer was lost.
    - A source that fails is not the store's failure: `put` is not repeated then.
    """

    _looks_first = False

    def __init__(self, inner: Backend, policy: RetryPolicy | None = None) -> None:
        super().__init__(inner)
        self._policy = policy or RetryPolicy()

    def _again(self, call: Callable[[], _T], give_up: Callable[[AriError], bool] = lambda _error: False) -> _T:
        patience = _Patience(self._policy)
        while True:
            try:
                return call()
            except AriError as error:
                if give_up(error):
                    raise
                patience.wait(error)

    def _resolve(self, ref: str) -> Locator:
        return self._again(partial(super()._resolve, ref))

    def _stat(self, locator: Locator) -> Artifact:
        return self._again(partial(super()._stat, locator))

    def _probe(self) -> Capabilities:
        return self._again(super()._probe)

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self._again(partial(super()._raise_visibility, locator, target))

    def _delete(self, locator: Locator) -> None:
        self._again(partial(super()._delete, locator))

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        reading = WatchedSource(source)
        reserved = resume
        before: AriError | None = None

        def note(locator: Locator) -> None:
            nonlocal reserved
            reserved = locator
            on_reserved(locator)

        def is_the_sources(error: AriError) -> bool:
            nonlocal before
            if error is not reading.failure:
                before = error
                return False
            if before is not None and not reading.opens:  # one that can be read once says nothing new
                if isinstance(source, WatchedSource):
                    source.failure = None  # or `put` would raise that
                raise before from error
            return True

        return self._again(
            lambda: self.inner.put(reading, new, resume=reserved, on_reserved=note), give_up=is_the_sources
        )

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        patience = _Patience(self._policy)
        while True:
            try:
                for artifact, cursor in self.inner.list(after):
                    patience.renew()
                    after = cursor
                    yield artifact, cursor
            except AriError as error:
                patience.wait(error)
            else:
                return

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with ExitStack() as stack:
            yield _ResumingStream(self.inner, locator, offset, _Patience(self._policy), stack)

    def optional(self, protocol: type[_P]) -> _P | None:
        """Returns what the inner backend has of it, tried again like everything else that may be repeated."""
        found = self.inner.optional(protocol)
        if found is None or protocol is SupportsShare:  # a secret whose answer got lost would be valid, unknown
            return found
        return cast("_P", _Retried(found, self._again))


class _Retried:
    """An optional protocol whose methods are tried again."""

    def __init__(self, target: object, again: Callable[[Callable[[], Any]], Any]) -> None:
        self._target, self._again = target, again

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._target, name)
        return lambda *args, **kwargs: self._again(partial(method, *args, **kwargs))


class _ResumingStream:
    """A stream that goes on where it broke."""

    def __init__(
        self, inner: Backend, locator: Locator, offset: int, patience: _Patience, stack: ExitStack
    ) -> None:
        self._inner, self._locator, self._patience, self._stack = inner, locator, patience, stack
        self._offset = self._position = self._renewed_at = offset
        self._stream: ReadStream | None = None
        self._trying(lambda _stream: b"")  # opens now, so that what is absent is known at once

    def read(self, size: int, /) -> bytes:
        data = self._trying(lambda stream: stream.read(size))
        self._position += len(data)
        if self._position - self._renewed_at >= CHUNK:
            self._renewed_at = self._position
            self._patience.renew()
        return data

    def _trying(self, read: Callable[[ReadStream], bytes]) -> bytes:
        while True:
            try:
                if self._stream is None:
                    self._stream = self._stack.enter_context(self._inner.open(self._locator, self._position))
                return read(self._stream)
            except RangeError as error:
                if self._position == self._offset:
                    raise
                raise IntegrityError("the artifact became shorter while it was being read") from error
            except AriError as error:
                self._stream = None
                with suppress(AriError):  # what closing a broken stream says is of no use
                    self._stack.close()
                self._patience.wait(error)


# -- refusing to write -------------------------------------------------------------------------------------------


class ReadOnlyBackend(Wrapper):
    """Reads, and refuses every write with `ReadOnly`."""

    def _probe(self) -> Capabilities:
        return replace(
            super()._probe(), put=False, delete="no", exclusive_create=False, levels=frozenset(), stores_meta=False
        )

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        raise self._refused()

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        raise self._refused()

    def _delete(self, locator: Locator) -> None:
        raise self._refused()

    def _refused(self) -> ReadOnly:
        return ReadOnly(f"the backend '{self.name}' is opened for reading only")

    def optional(self, protocol: type[_P]) -> _P | None:
        """Returns what the inner backend has of it, unless it is for writing."""
        return None if protocol in _FOR_WRITING else super().optional(protocol)


_FOR_WRITING: Final[tuple[object, ...]] = (
    SupportsOwners,
    SupportsRehearsal,
    SupportsServing,
    SupportsShare,
    SupportsSweep,
    SupportsTrial,
    SupportsWorkdir,
)


# -- failing on order --------------------------------------------------------------------------------------------

Method = Literal["resolve", "stat", "open", "read", "probe", "put", "raise_visibility", "delete", "list", "close"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that `FaultyBackend` does wrong.

    Attributes:
        method: Where. ``read`` is any stream that `Backend.open` gave; its calls are counted by stream.
        call: At which call, counted from 1 over the backend's life; None for every call.
        error: Raised instead of, or after, the real call; None for a fault that raises nothing.
        after: The store does its work and only the answer is lost.
        at: For ``read``: this many bytes of the archive arrive well. For ``put``: so many are taken from the
            source. Then `error` is raised or, for ``read`` without one, the stream just ends.
        flip: For ``read``: instead of that, the lowest bit of the byte at `at` is wrong.
        wait: Called first: a delay, or whatever a test lets happen at this moment.
    """

    method: Method
    call: int | None = 1
    error: Exception | None = None
    after: bool = False
    at: int | None = None
    flip: bool = False
    wait: Callable[[], object] | None = None


class FaultyBackend(Wrapper):
    """Does what the plan says goes wrong, and everything else right. For tests.

    Attributes:
        calls: How often each method was called.
    """

    def __init__(self, inner: Backend, plan: Sequence[Fault] = ()) -> None:
        super().__init__(inner)
        self._plan = tuple(plan)
        self._lock = threading.Lock()
        self.calls: Counter[Method] = Counter()

    def _due(self, method: Method) -> list[Fault]:
        with self._lock:
            self.calls[method] += 1
            count = self.calls[method]
        return [fault for fault in self._plan if fault.method == method and fault.call in {None, count}]

    def _faulty(self, method: Method, call: Callable[[], _T], faults: list[Fault] | None = None) -> _T:
        due = self._due(method) if faults is None else faults
        _strike(due, after=False)
        result = call()
        _strike(due, after=True)
        return result

    def _resolve(self, ref: str) -> Locator:
        return self._faulty("resolve", partial(super()._resolve, ref))

    def _stat(self, locator: Locator) -> Artifact:
        return self._faulty("stat", partial(super()._stat, locator))

    def _probe(self) -> Capabilities:
        return self._faulty("probe", super()._probe)

    def _close(self) -> None:
        self._faulty("close", super()._close)

    def _raise_visibility(self, locator: Locator, target: Visibility) -> Visibility:
        return self._faulty("raise_visibility", partial(super()._raise_visibility, locator, target))

    def _delete(self, locator: Locator) -> None:
        self._faulty("delete", partial(super()._delete, locator))

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        due = self._due("put")
        for fault in due:
            if fault.at is not None:
                source = _CutSource(source, fault)
        return self._faulty("put", partial(super()._put, source, new, resume, on_reserved), due)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        due = self._due("list")
        _strike(due, after=False)
        yield from super()._list(after)
        _strike(due, after=True)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        due = self._due("open")
        _strike(due, after=False)
        reading = self._due("read")
        with super()._open(locator, offset) as good:
            _strike(due, after=True)
            stream = good
            for fault in reading:
                stream = _FaultyStream(stream, fault, offset)
            yield stream


def _strike(faults: list[Fault], *, after: bool) -> None:
    for fault in faults:
        if fault.at is None and fault.after == after:
            if fault.wait:
                fault.wait()
            if fault.error:
                raise fault.error.with_traceback(None)  # else it grows with each time


class _FaultyStream:
    """A stream that goes wrong at one byte."""

    def __init__(self, inner: ReadStream, fault: Fault, offset: int) -> None:
        self._inner, self._fault, self._position = inner, fault, offset

    def read(self, size: int, /) -> bytes:
        fault = self._fault
        before = (fault.at or 0) - self._position  # bytes until it goes wrong
        if before < 0 or not size:
            return self._forward(size)
        if before:
            return self._forward(min(size, before))
        if fault.wait:
            fault.wait()
        if fault.flip:
            data = self._forward(size)
            return bytes([data[0] ^ 1]) + data[1:] if data else data
        if fault.error:
            raise fault.error.with_traceback(None)
        return b""

    def _forward(self, size: int) -> bytes:
        data = self._inner.read(size)
        self._position += len(data)
        return data


class _CutSource(WatchedSource):
    """A source for a store that fails while it takes the archive."""

    def __init__(self, inner: Source, fault: Fault) -> None:
        super().__init__(inner)
        self._fault = fault

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning."""
        with super().open() as stream:
            yield _FaultyStream(stream, self._fault, 0)

    @property
    def local_path(self) -> Path | None:
        """None: what is cut has to be read."""
        return None


# -- not waiting for ever ----------------------------------------------------------------------------------------


def patient(backend: Backend) -> Backend:
    """Returns a backend that is asked again when it fails for a moment, and given up when it does not answer."""
    return RetryBackend(DeadlineBackend(backend, deadline()))


class DeadlineBackend(Wrapper):
    """Gives up on a backend that does not answer a short question within `seconds`.

    The call goes on in a daemon thread, whose outcome nobody waits for: hence only for calls that change nothing.
    Reading is watched where it is consumed (`streams.ReadAhead`).
    """

    _looks_first = False

    def __init__(self, inner: Backend, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds

    def _resolve(self, ref: str) -> Locator:
        return self._within(lambda: self.inner.resolve(ref))

    def _stat(self, locator: Locator) -> Artifact:
        return self._within(lambda: self.inner.stat(locator))

    def _probe(self) -> Capabilities:
        return self._within(self.inner.probe)

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        with ExitStack() as stack:
            opening = self.inner.open(locator, offset)
            stream = self._within(opening.__enter__)
            stack.push(opening.__exit__)
            yield stream

    def _within(self, call: Callable[[], _T]) -> _T:
        answer = in_thread(f"ari-{self.name}", call)
        try:
            return answer.result(self._seconds)
        except TimeoutError:
            if answer.done():
                raise  # the backend's own
            late = f"the backend '{self.name}' did not answer within {self._seconds:g} seconds"
            raise Unavailable(late) from None
