"""Verifying an archive while it is passed on: a source for `Backend.put` that need not lie on a disk first.

What a backend reads goes to `check_archive` in a second thread at the same time. The end of the stream is held
back until that has passed, so a store that makes an artifact visible only after a clean end never shows a bad one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from ari_core.contract import CHUNK, ReadStream, Source
from ari_core.errors import ArchiveRefusedError, BackendBug, DigestMismatchError
from ari_core.limits import Limits
from ari_core.streams import ByteSource, Interruptible, Progress
from ari_core.verification import Report, check_archive

_CHUNKS_AHEAD: Final = 8
_POLL_SECONDS: Final = 0.1


class VerifyingSource(Source):
    """An archive that is verified while a backend reads it."""

    def __init__(
        self,
        source: ByteSource,
        *,
        size: int,
        archive_sha256: str,
        limits: Limits,
        progress: Progress | None = None,
        bundle_sha256: str | None = None,
        accept: Callable[[Report], None] = lambda _report: None,
    ) -> None:
        """Keeps what is claimed.

        Args:
            source: The archive; it is opened once for each time that this is.
            size: Bytes it should have.
            archive_sha256: Digest it should have.
            limits: Upper bounds for what is in it.
            progress: Told how many bytes were passed on.
            bundle_sha256: Digest that the bundle should have, if one is claimed: then it is known from the start.
            accept: Raises before the end of the stream what else is wrong with the archive.
        """
        self._source, self._limits, self._progress = source, limits, progress
        self.size, self.archive_sha256 = size, archive_sha256
        self._claimed, self._also = bundle_sha256, accept
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """What the verification found.

        Raises:
            BackendBug: It has not come to its end.
        """
        if self._report is None:
            raise BackendBug("a backend asked for what is in an archive before it has read it")
        return self._report

    @property
    def bundle_sha256(self) -> str:  # type: ignore[override]
        """Known after a clean end only, unless it is claimed."""
        return self._claimed or self.report.bundle_sha256

    @property
    def manifest(self) -> bytes:
        """Known after a clean end only."""
        return self.report.manifest.raw

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning.

        The stream raises `VerificationError` before its end if the archive does not verify or is another one; at
        once, also while more bytes are waited for, if what they come from can be interrupted.
        """
        self._report = None
        with self._source.open() as stream, _Check(self._source.name, self._limits, stream) as check:
            yield _Passing(self, stream, check)

    def finish(self) -> Report:
        """Verifies it all, if no backend had to read it because it has it already; returns the report.

        Raises:
            VerificationError: The archive does not verify or is another one.
        """
        if self._report is None:
            with self.open() as stream:
                while stream.read(CHUNK):
                    pass
        return self.report

    def _accept(self, report: Report, count: int) -> None:
        require_storable(report, self.archive_sha256)
        self._also(report)
        if self._claimed:
            report.require_digest(self._claimed)
        if count != self.size:
            raise ArchiveRefusedError(f"the archive has {count} bytes instead of {self.size}")
        self._report = report


def require_storable(report: Report, archive_sha256: str | None) -> None:
    """Refuses what verifies and still is not to be stored.

    Args:
        report: Of the archive.
        archive_sha256: Digest that was declared, if one was.

    Raises:
        ArchiveRefusedError: It is no gzip archive.
        DigestMismatchError: It is another archive.
    """
    if report.form != "tar.gz":
        raise ArchiveRefusedError("only gzip archives can be stored", hint="pack it again: `ari mirror` does")
    if archive_sha256 is not None and archive_sha256 != report.archive_sha256:
        raise DigestMismatchError(
            f"this is another archive: {archive_sha256} was declared, {report.archive_sha256} came",
            expected=archive_sha256,
            got=str(report.archive_sha256),
            hint="send it again; perhaps it was changed on its way",
        )


class _Passing:
    """The stream that a backend reads."""

    def __init__(self, source: VerifyingSource, stream: ReadStream, check: _Check) -> None:
        self._source, self._stream, self._check = source, stream, check
        self._count = 0

    def read(self, size: int, /) -> bytes:
        try:
            data = self._stream.read(min(size, CHUNK))
        except Exception:
            self._check.raise_failure()  # which has interrupted this
            raise
        if data:
            self._count += len(data)
            if self._count > self._source.size:
                raise ArchiveRefusedError(f"the archive has more than the {self._source.size} bytes announced")
            self._check.feed(data)
            if self._source._progress:  # noqa: SLF001 - one unit
                self._source._progress("sending", self._count, self._source.size)  # noqa: SLF001
        elif size:
            self._source._accept(self._check.finish(), self._count)  # noqa: SLF001
        return data


class _Check:
    """`check_archive` in a thread, as the `ByteSource` of its own archive: what it is fed."""

    size = None

    def __init__(self, name: str, limits: Limits, stream: ReadStream) -> None:
        self.name, self._limits, self._stream = name, limits, stream
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_CHUNKS_AHEAD)
        self._rest = b""
        self._ended = False
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._report: Report | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ari-verify", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._thread.join()

    def feed(self, data: bytes) -> None:
        """Hands on what comes next; raises what was found wrong with what came before."""
        self._hand_on(data)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises what was found wrong, if anything was."""
        if self._failure:
            raise self._failure from None

    def finish(self) -> Report:
        """Waits for the outcome."""
        self._hand_on(None)
        self._done.wait()
        self.raise_failure()
        if self._report is None:
            raise BackendBug("the verification was cancelled")
        return self._report

    def _hand_on(self, data: bytes | None) -> None:
        while not self._done.is_set():
            try:
                self._chunks.put(data, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        try:
            self._report = check_archive(self, limits=self._limits)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever feeds
            self._failure = error
        finally:
            self._done.set()
        if self._failure and not self._cancelled.is_set() and isinstance(self._stream, Interruptible):
            self._stream.interrupt()

    # -- the side of the verification --

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        yield self

    def read(self, size: int, /) -> bytes:
        while not (self._rest or self._ended or self._cancelled.is_set()):
            try:
                chunk = self._chunks.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            self._ended = chunk is None
            self._rest = chunk or b""
        data, self._rest = self._rest[:size], self._rest[size:]  # no copy of a chunk that is wanted whole
        return data

    def interrupt(self) -> None:
        """Ends a `read` that waits: nothing of what comes is needed any more."""
        self._ended = True
