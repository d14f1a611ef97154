"""Streams: the little that is asked of one, and reading ahead in a second thread."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self, TypeVar, runtime_checkable

from ari_core.errors import ConfigurationError, Unavailable

CHUNK: Final = 128 * 1024
"""Bytes moved at a time; measured best here (docs/benchmark.md)."""

DEADLINE_VARIABLE: Final = "ARI_DEADLINE"
_DEADLINE_SECONDS: Final = 300.0
_CHUNKS_AHEAD: Final = 8
_POLL_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 5.0

_T = TypeVar("_T")

Progress = Callable[[str, int, "int | None"], None]
"""Called with what is being done, how much of it (bytes or files) is done, and the total if known."""


class ReadStream(Protocol):
    """All that is asked of a stream."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, b"" only at the end."""


@runtime_checkable
class Interruptible(Protocol):
    """A stream whose `read` may wait long in one thread when another has no more use for it."""

    def interrupt(self) -> None:
        """Makes a `read` that waits end now, by whatever error."""


class ByteSource(Protocol):
    """Something that can be read from its beginning more than once.

    Attributes:
        name: For messages.
        size: Bytes, or None if not known.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def size(self) -> int | None: ...  # noqa: D102 - see the class

    def open(self) -> AbstractContextManager[ReadStream]:
        """Starts reading from the beginning."""


def deadline() -> float:
    """Returns how many seconds to wait for the next bytes or answer before giving up (``$ARI_DEADLINE``).

    Raises:
        ConfigurationError: The variable is not a positive number.
    """
    text = os.environ.get(DEADLINE_VARIABLE)
    try:
        seconds = _DEADLINE_SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigurationError(f"{DEADLINE_VARIABLE} must be a positive number of seconds")
    return seconds


class ReadAhead:
    """Runs an iterator of chunks in its own thread, a few chunks ahead of whoever iterates over this.

    Decompressing and hashing release the interpreter's lock, so the two threads really work side by side. Leaving
    the ``with`` block stops the thread; an exception in it is raised where the chunks are consumed. Where nothing
    comes for `deadline` seconds, that is `Unavailable`. Where the block fails, the `stream` that the chunks come
    from is interrupted, if it can be.
    """

    def __init__(self, chunks: Iterator[bytes], stream: object = None) -> None:
        self._chunks = chunks
        self._stream = stream
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
        self._stop = threading.Event()
        self._deadline = deadline()
        self._thread = threading.Thread(target=self._run, name="ari-read-ahead", daemon=True)

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for chunk in self._chunks:
                if not self._put(chunk):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            last = error
        self._put(last)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def __enter__(self) -> Iterator[bytes]:
        self._thread.start()
        return self._consume()

    def _consume(self) -> Iterator[bytes]:
        while isinstance(item := self._next(), bytes):
            yield item
        if item is not None:
            raise item

    def _next(self) -> bytes | BaseException | None:
        try:
            return self._ready.get(timeout=self._deadline)
        except queue.Empty:
            raise Unavailable(f"nothing came for {self._deadline:g} seconds") from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is not None and isinstance(self._stream, Interruptible):
            self._stream.interrupt()
        self._thread.join(_PATIENCE_SECONDS)  # one that hangs is a daemon, and dies with the program


def in_thread(name: str, call: Callable[[], _T]) -> Future[_T]:
    """Calls in a daemon thread: one that hangs keeps no program from ending, as a pool's would."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class BackgroundSha256:
    """Hashes in a thread of its own what `update` is given, in order. Use it as a context manager."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._todo: queue.Queue[bytes | None] = queue.Queue(_CHUNKS_AHEAD)
        self._thread = threading.Thread(target=self._run, name="ari-hash", daemon=True)

    def _run(self) -> None:
        while (data := self._todo.get()) is not None:
            self._digest.update(data)

    def update(self, data: bytes) -> None:
        """Adds `data`."""
        self._todo.put(data)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._todo.put(None)
        self._thread.join()

    def hexdigest(self) -> str:
        """Returns the digest; valid behind the ``with`` block."""
        return self._digest.hexdigest()
