"""What stands between a backend and its caller: streams that end where they should, errors that are ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ari_core.contract.types import Locator, Source
from ari_core.errors import BackendBug, IntegrityError, RangeError, Unavailable
from ari_core.streams import CHUNK, ReadStream

if TYPE_CHECKING:
    from ari_core.contract.backend import Backend


class TranslatingProxy:
    """A backend whose optional methods translate errors, as its public ones do."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self._backend._errors():  # noqa: SLF001 - one unit with Backend
                found = method(*arguments, **keywords)
            return self._each(found) if isinstance(found, Iterator) else found

        return call

    def _each(self, found: Iterator[Any]) -> Iterator[Any]:
        with self._backend._errors():  # noqa: SLF001 - one unit with Backend
            yield from found


class Opened(AbstractContextManager[ReadStream]):
    """`Backend.open` under way."""

    def __init__(self, backend: Backend, locator: Locator, offset: int) -> None:
        self._backend, self._locator, self._offset = backend, locator, offset

    def __enter__(self) -> ReadStream:
        backend, offset = self._backend, self._offset
        with backend._errors():  # noqa: SLF001 - one unit with Backend
            if offset < 0:
                raise RangeError(f"offset {offset} is before the beginning")
            # A wrapper's inner backend looks by itself: one look is one request.
            size = backend._stat(self._locator).size if backend._looks_first else None  # noqa: SLF001
            if size is not None and offset > size:
                raise RangeError(f"offset {offset} is past the end at {size}")
            start = offset if backend.capabilities.ranges else 0
            self._inner = backend._open(self._locator, start)  # noqa: SLF001
            raw = self._inner.__enter__()
        stream = _CheckedStream(backend, raw, None if size is None else size - start)
        try:
            with backend._errors():  # noqa: SLF001
                stream.discard(offset - start)
        except BaseException as error:
            self._inner.__exit__(type(error), error, error.__traceback__)
            raise
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._backend._errors():  # noqa: SLF001
            self._inner.__exit__(kind, error, trace)


class _CheckedStream:
    """A backend's stream whose errors are translated and whose end is where it should be."""

    def __init__(self, backend: Backend, raw: ReadStream, left: int | None) -> None:
        self._backend, self._raw, self._left = backend, raw, left

    def read(self, size: int, /) -> bytes:
        backend = self._backend
        with backend._errors():  # noqa: SLF001
            data = backend._checked("read", self._raw.read(size), bytes)  # noqa: SLF001
            if len(data) > size:
                raise BackendBug(f"read({size}) returned {len(data)} bytes")
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    raise IntegrityError("the store sends more bytes than it announced")
                if not data and size and self._left:
                    raise Unavailable(f"the store's answer ended {self._left} bytes early")
        return data

    def discard(self, count: int) -> None:
        while count:
            data = self.read(min(count, CHUNK))
            if not data:
                raise RangeError("the offset is past the end")
            count -= len(data)


class WatchedSource(Source):
    """A source that knows how it was read.

    Attributes:
        ended: It was read to its end.
        handed_over: Its local file was given away.
        failure: What it raised last, to be told from what the store raised.
        opens: It gave a stream when it was opened last.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.size, self.archive_sha256 = inner.size, inner.archive_sha256
        self.ended = False
        self.handed_over = False
        self.failure: Exception | None = None
        self.opens = False

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning."""
        self.failure, self.opens = None, False
        with ExitStack() as stack:
            with self._noting():
                stream = stack.enter_context(self._inner.open())
            self.opens = True
            yield _WatchedStream(self, stream)

    @property
    def bundle_sha256(self) -> str:  # type: ignore[override]
        """The inner source's, which may know it at the end only."""
        return self._inner.bundle_sha256

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._inner.manifest

    @property
    def local_path(self) -> Path | None:
        """A file to link, or None."""
        path = self._inner.local_path
        self.handed_over = path is not None
        return path

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


class _WatchedStream:
    def __init__(self, source: WatchedSource, inner: ReadStream) -> None:
        self._source, self._inner = source, inner

    def read(self, size: int, /) -> bytes:
        with self._source._noting():  # noqa: SLF001 - one unit
            data = self._inner.read(size)
        if not data and size:
            self._source.ended = True
        return data
