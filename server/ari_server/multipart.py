"""The form in which existing clients upload: ``multipart/form-data``, read in order and with bounds of our own.

Pulled, not pushed: whoever reads the bundle drives the parser, and nothing of it is kept. A file name that a
client sends is never looked at.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ari_core.errors import escape, from_os_error
from ari_core.streams import CHUNK, Interruptible, ReadStream
from ari_server.problems import Problem

CONTENT_TYPE: Final = "multipart/form-data"
BUNDLE: Final = "bundle"
SMALL_FIELD: Final = 64 * 1024
_PARTS: Final = 16
_AROUND: Final = 4096
"""Bytes that may stand before the first part and behind the last one, as far as they come by themselves."""
_SHOWN: Final = 40
_PLAIN_ENCODINGS: Final = {"", "7bit", "8bit", "binary"}

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what is wrong with a request goes to its client


def boundary_of(content_type: str) -> bytes:
    """Returns the boundary that a ``Content-Type: multipart/form-data`` names.

    Raises:
        Problem: It names none (400).
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _bad("its Content-Type names no boundary")
    return boundary


class Form:
    """The parts of a body; itself a stream of the part ``bundle``.

    Read it to its end, then call `finish`: fields may stand before the bundle and behind it. Nothing is kept of
    those that are not known.
    """

    def __init__(self, body: ReadStream, boundary: bytes, most: Mapping[str, int], folder: Path) -> None:
        """Reads nothing yet.

        Args:
            body: The request's body.
            boundary: As the Content-Type says.
            most: The fields to keep and how long each may be, bytes.
            folder: Where long ones are kept meanwhile.
        """
        self._body, self._most, self._folder = body, most, folder
        self._fields: dict[str, SpooledTemporaryFile[bytes]] = {}
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_begin": self._header_begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._last,
                },
            )
        except FormParserError:
            raise _bad("its boundary is too long") from None
        self._headers: dict[bytes, bytes] = {}
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._names: set[str] = set()
        self._name = ""
        self._count = 0  # bytes of the field being read
        self._ready: deque[bytes] = deque()
        self._parts = 0
        self._around = 0
        self._bundle_ended = self._ended = False

    # -- for the reader --

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes of the bundle, b"" at its end.

        Raises:
            Problem: The form is malformed, or has no bundle (400).
        """
        while not self._ready:
            if self._bundle_ended:
                return b""
            if self._ended:
                raise _bad(f"it has no part '{BUNDLE}'")
            self._pull()
        piece = self._ready.popleft()
        if len(piece) > size:
            self._ready.appendleft(piece[size:])
        return piece[:size]

    def interrupt(self) -> None:
        """Makes a `read` that waits for more of the body end now."""
        if isinstance(self._body, Interruptible):
            self._body.interrupt()

    def finish(self) -> None:
        """Reads what is behind the bundle.

        Raises:
            Problem: The form is malformed or cut off (400).
        """
        while self.read(CHUNK):
            pass
        while not self._ended:
            self._pull()
        while data := self._body.read(CHUNK):
            self._count_around(len(data))

    def field(self, name: str) -> bytes | None:
        """Returns all of a field; None when there was none.

        Raises:
            AriError: The disk fails.
        """
        if (file := self._fields.get(name)) is None:
            return None
        with _disk_errors():
            file.seek(0)
            return file.read()

    def close(self) -> None:
        """Lets go of what was read; it would stay until Python happens to look for cycles."""
        for file in self._fields.values():
            file.close()
        self._fields.clear()
        self._ready.clear()

    def _pull(self) -> None:
        data = self._body.read(CHUNK)
        if not data:
            raise _bad("it ends before its last boundary")
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad(escape(str(error))) from None
        if not self._parts:
            self._count_around(len(data))

    def _count_around(self, count: int) -> None:
        self._around += count
        if self._around > _AROUND:
            raise _bad("there is too much outside of its parts")

    # -- called by the parser --

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise _bad(f"it has more than {_PARTS} parts")
        self._headers = {}

    def _header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        if name.lower() in self._headers:
            raise _bad("a part has the same header twice")
        self._headers[name.lower()] = value

    def _headers_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options:
            raise _bad("a part has no name")
        encoding = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:
            raise _bad("a part has a Content-Transfer-Encoding")
        self._name = options[b"name"].decode("utf-8", "replace")
        if self._name in self._names:
            raise _bad(f"it has the part '{escape(self._name[:_SHOWN])}' twice")
        self._names.add(self._name)
        self._count = 0
        if self._name in self._most:
            file = SpooledTemporaryFile(SMALL_FIELD, dir=str(self._folder))  # noqa: SIM115 - see `close`
            self._fields[self._name] = file

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == BUNDLE:
            self._ready.append(data[start:end])
            return
        most = self._most.get(self._name, SMALL_FIELD)
        self._count += end - start
        if self._count > most:
            raise Problem(413, f"the part '{escape(self._name[:_SHOWN])}' is larger than {most} bytes")
        if field := self._fields.get(self._name):
            with _disk_errors():
                field.write(memoryview(data)[start:end])

    def _end(self) -> None:
        if self._name == BUNDLE:
            self._bundle_ended = True

    def _last(self) -> None:
        self._ended = True


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "receiving an upload") from error


def _bad(what: str) -> Problem:
    return Problem(400, f"this is no form as browsers send it: {what}", "malformed-form")
