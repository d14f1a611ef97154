"""A strict tar reader: what it accepts, every tar program reads the same way (docs/format.md, READ form).

Python's `tarfile` reads damaged archives as shorter valid ones and can be led to loop for ever: hence our own.
It never seeks, holds one chunk at a time, and refuses on the first thing it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

from ari_core.errors import ArchiveRefusedError, escape
from ari_core.limits import Limits, how_to_raise
from ari_core.manifest import MAX_SIZE
from ari_core.names import quoted, unsafe_reason

BLOCK: Final = 512
_ZEROS: Final = bytes(BLOCK)
_MAX_END_PADDING: Final = 1024 * 1024
_OCTAL: Final = re.compile(rb" *([0-7]+)[ \0]*")
_OCTAL_LIMIT: Final = 8**11  # the first size that 11 octal digits cannot say
_POSIX: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_PAX_RECORD: Final = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n\0]+)=")
_PAX_SIZE: Final = re.compile(rb"0|[1-9][0-9]{0,18}")
_PAX_TIME: Final = re.compile(rb"-?[0-9]{1,18}(\.[0-9]{0,18})?")
_PAX_ID: Final = re.compile(rb"[0-9]{1,10}")
_LARGEST_ID: Final = 2**32 - 1
_PAX_NAME: Final = re.compile(rb"[^\0\n]+")
# Ignored, but held to a form on which every program agrees.
_PAX_IGNORED: Final = {
    b"mtime": _PAX_TIME,
    b"atime": _PAX_TIME,
    b"ctime": _PAX_TIME,
    b"LIBARCHIVE.creationtime": _PAX_TIME,
    b"uid": _PAX_ID,
    b"gid": _PAX_ID,
    b"uname": _PAX_NAME,
    b"gname": _PAX_NAME,
}
_TYPE_NAMES: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"g": "a global pax header",
    b"K": "a GNU long link",
    b"S": "a GNU sparse file",
    b"M": "a multi-volume part",
    b"V": "a volume label",
    b"D": "a GNU dump directory",
    b"N": "an old GNU long name",
    b"X": "a Solaris extended header",
    b"\0": "a file of the oldest tar kind",
}
_MAX_CACHED: Final = 1000


class Member(NamedTuple):
    """One file or directory of an archive.

    Attributes:
        path: Safe path without a leading ``./`` and without a trailing slash; empty for the root directory itself.
        size: Bytes of contents that follow, 0 for a directory.
        executable: The owner's x-bit.
        is_directory: Whether it is one.
    """

    path: str
    size: int
    executable: bool
    is_directory: bool


class _Extension(NamedTuple):
    """What an ``x`` or ``L`` header says about the member behind it."""

    kind: str
    path: str | None
    size: int | None


class TarReader:
    """Iterates over the members of a tar archive given in chunks.

    After each member `contents` gives its bytes; whatever the caller leaves unread is skipped (and its padding is
    still checked).
    """

    def __init__(self, chunks: Iterator[bytes], limits: Limits) -> None:
        self._chunks = chunks
        self._limits = limits
        self._chunk = memoryview(b"")
        self._left = 0  # contents of the current member not yet given out
        self._padding = 0
        self._last = ""
        self._source_failed = False
        self._magic: bytes | None = None
        self._modes: dict[bytes, bool] = {}  # mode, uid and gid fields already checked -> x-bit
        self._tails: dict[bytes, bytes] = {}  # magic to device fields already checked -> magic

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except ArchiveRefusedError as error:
            if not self._source_failed:  # what is wrong below the tar archive is at no place in it
                error.enclose(behind=f" ({self._where()})")
            raise

    def _next_chunk(self) -> bytes:
        self._source_failed = True
        chunk = next(self._chunks, b"")
        self._source_failed = False
        return chunk

    def _where(self) -> str:
        return f"behind {quoted(self._last)}" if self._last else "at its beginning"

    def _members(self) -> Iterator[Member]:
        extension: _Extension | None = None
        while True:
            block = self._take(BLOCK, "a header")
            if block == _ZEROS:
                if extension:
                    _refuse("an extension header is the last thing in the archive")
                self._check_end()
                return
            kind = block[156:157]
            size, executable = self._check_header(block)
            if kind in {b"x", b"L"}:
                if extension:
                    _refuse("two extension headers stand before one member")
                extension = self._extension(kind, size)
                continue
            member = self._member(block, kind, size, extension, executable=executable)
            self._last = member.path
            yield member
            extension = None
            if self._left:  # what the caller did not want
                for _ in self.contents():
                    pass
            if self._padding:
                self._check_padding()

    def contents(self) -> Iterable[memoryview]:
        """Gives the contents of the current member, each piece at most one chunk; valid until the next piece."""
        if self._left > len(self._chunk):
            return self._pieces()
        piece = self._chunk[: self._left]  # a small file, all of it at hand: most files are
        self._chunk = self._chunk[self._left :]
        self._left = 0
        return (piece,) if piece else ()

    def _pieces(self) -> Iterator[memoryview]:
        while self._left:
            if not self._chunk:
                self._chunk = memoryview(self._next_chunk())
                if not self._chunk:
                    _refuse(f"it ends in the middle of {quoted(self._last)}: the archive is cut off")
                continue
            piece = self._chunk[: self._left]
            self._chunk = self._chunk[len(piece) :]
            self._left -= len(piece)
            yield piece

    def _take(self, count: int, what: str) -> bytes:
        chunk = self._chunk
        if len(chunk) >= count:
            self._chunk = chunk[count:]
            return bytes(chunk[:count])
        parts = [bytes(chunk)]
        missing = count - len(chunk)
        while missing:
            chunk = memoryview(self._next_chunk())
            if not chunk:
                if any(parts) or what != "a header":
                    _refuse(f"it ends in the middle of {what}: the archive is cut off")
                _refuse("it ends without the two zero blocks of an end: the archive is cut off")
            parts.append(bytes(chunk[:missing]))
            self._chunk = chunk[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def _check_padding(self) -> None:
        if self._take(self._padding, "padding").strip(b"\0"):
            _refuse("the padding behind a file is not zero")
        self._padding = 0

    def _check_end(self) -> None:
        if self._take(BLOCK, "its end") != _ZEROS:
            _refuse("a single zero block is followed by more")
        seen = 0
        while True:
            if bytes(self._chunk).strip(b"\0"):
                _refuse("something follows the end of the archive, which other programs would not see")
            seen += len(self._chunk)
            if seen > _MAX_END_PADDING:
                _refuse(f"more than {_MAX_END_PADDING} zero bytes follow the end")
            chunk = self._next_chunk()
            if not chunk:
                break
            self._chunk = memoryview(chunk)
        if seen % BLOCK:
            _refuse("it ends in the middle of a block: the archive is cut off")

    # -- one header ----------------------------------------------------------------------------------------------

    def _check_header(self, block: bytes) -> tuple[int, bool]:
        """Checks all that does not depend on the member's kind; returns the size field and the owner's x-bit."""
        stated = _octal(block[148:156], "checksum")
        if sum(block) - sum(block[148:156]) + 8 * 0x20 != stated:
            _refuse("a header's checksum is wrong: the archive is damaged")
        magic = self._check_tail(block)
        if self._magic is None:
            self._magic = magic
        elif self._magic != magic:
            _refuse("it mixes POSIX and GNU headers")
        _octal_or_base256(block[136:148], "mtime")
        return _size(block[124:136], magic), self._check_mode(block[100:124])

    def _check_tail(self, block: bytes) -> bytes:
        """Checks magic, owner names and device numbers, and what must be zero; returns the magic."""
        tail = block[257:345]
        magic = self._tails.get(tail)
        if magic is None:
            magic = tail[:8]
            if magic not in {_POSIX, _GNU}:
                _refuse(f"a header has the magic {escape(magic.decode('latin-1'))!r}, not POSIX or GNU tar's")
            for name, field in (("devmajor", tail[72:80]), ("devminor", tail[80:88])):
                if field.strip(b"\0 "):
                    _octal(field, name)
            if len(self._tails) < _MAX_CACHED:
                self._tails[tail] = magic
        unused = block[345:] if magic == _GNU else block[500:]
        if unused.strip(b"\0"):
            _refuse("a header has data where there should be none")
        return magic

    def _check_mode(self, fields: bytes) -> bool:
        executable = self._modes.get(fields)
        if executable is None:
            executable = bool(_octal(fields[:8], "mode") & 0o100)
            _octal_or_base256(fields[8:16], "uid")
            _octal_or_base256(fields[16:24], "gid")
            if len(self._modes) < _MAX_CACHED:
                self._modes[fields] = executable
        return executable

    def _member(
        self, block: bytes, kind: bytes, size: int, extension: _Extension | None, *, executable: bool
    ) -> Member:
        name = extension.path if extension and extension.path is not None else self._name(block)
        if kind not in {b"0", b"5"}:
            what = _TYPE_NAMES.get(kind, f"of the unknown type {escape(kind.decode('latin-1'))!r}")
            _refuse(f"{quoted(name)} is {what}; only regular files and directories are allowed")
        if block[157:257].strip(b"\0"):
            _refuse(f"{quoted(name)} has a link target")
        if extension and extension.size is not None:
            size = self._pax_size(size, extension.size, name)
        is_directory = kind == b"5"
        if is_directory and size:
            _refuse(f"the directory {quoted(name)} has a size")
        path = self._path(name, is_directory=is_directory)
        self._left = size
        self._padding = -size % BLOCK
        return Member(path, size, executable and not is_directory, is_directory)

    def _name(self, block: bytes) -> str:
        name = _text_field(block[:100])
        prefix = _text_field(block[345:500])
        return _utf8(prefix + b"/" + name if prefix else name)

    def _path(self, name: str, *, is_directory: bool) -> str:
        path = name
        if is_directory:
            path = path.removesuffix("/")
            if path == ".":
                return ""
        path = path.removeprefix("./")
        if reason := unsafe_reason(path, self._limits):
            _refuse(f"the name {quoted(name)} {reason}")
        return path

    # -- extensions ----------------------------------------------------------------------------------------------

    def _extension(self, kind: bytes, size: int) -> _Extension:
        if size > self._limits.pax_bytes:
            _refuse(
                f"extension data of {size} bytes, over the limit of {self._limits.pax_bytes} "
                f"({how_to_raise('pax_bytes')})"
            )
        data = self._take(size, "an extension header")
        self._padding = -size % BLOCK
        if self._padding:
            self._check_padding()
        if kind == b"x":
            return _pax(data)
        if self._magic != _GNU:
            _refuse("a GNU long name stands in a POSIX archive")
        if not data.endswith(b"\0") or b"\0" in data[:-1] or len(data) == 1:
            _refuse("a GNU long name does not end with one NUL")
        return _Extension("L", _utf8(data[:-1]), None)

    @staticmethod
    def _pax_size(field: int, pax: int, name: str) -> int:
        # Programs that write a pax size for a huge file leave 0 or all sevens in the field, which cannot hold it.
        if field != pax and not (pax >= _OCTAL_LIMIT and field in {0, _OCTAL_LIMIT - 1}):
            _refuse(f"{quoted(name)} has the size {field} in its header and {pax} in its pax record")
        return pax


def _pax(data: bytes) -> _Extension:
    values: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        record = _PAX_RECORD.match(data, position)
        end = position + int(record[1]) if record else 0
        if not record or end > len(data) or end <= record.end() + 1 or data[end - 1 : end] != b"\n":
            _refuse("a pax record is malformed")
        key, value = record[2], data[record.end() : end - 1]
        if key in values:
            _refuse(f"a pax header has {quoted(key.decode('latin-1'))} twice")
        values[key] = value
        position = end
    path: str | None = None
    size: int | None = None
    for key, value in values.items():
        if key == b"path":
            path = _utf8(value)
        elif key == b"size":
            if not _PAX_SIZE.fullmatch(value) or int(value) > MAX_SIZE:
                _refuse("a pax size is not a plain number")
            size = int(value)
        elif (form := _PAX_IGNORED.get(key)) is None:
            _refuse(f"a pax header has {quoted(key.decode('latin-1'))}, which is not allowed")
        elif not form.fullmatch(value) or (form is _PAX_ID and int(value) > _LARGEST_ID):
            _refuse(f"a pax header has a malformed {key.decode('ascii')}")
    return _Extension("x", path, size)


# -- fields ------------------------------------------------------------------------------------------------------


def _octal(field: bytes, name: str) -> int:
    found = _OCTAL.fullmatch(field)
    if not found:
        _refuse(f"a header's {name} {escape(field.decode('latin-1'))!r} is not an octal number")
    return int(found[1], 8)


def _octal_or_base256(field: bytes, name: str) -> None:
    """Checks a number that is ignored, but that every program must be able to read.

    Base-256 is GNU tar's, yet bsdtar and 7-Zip write it under POSIX magic too (times before 1970).
    """
    if field[0] < 0x80:  # noqa: PLR2004 - the bit that marks base-256
        _octal(field, name)
        return
    value = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")  # noqa: PLR2004
    low, high = (-(2**62), 2**62) if name == "mtime" else (0, 2**32 - 2)
    if field[0] not in {0x80, 0xFF} or not low <= value <= high:
        _refuse(f"a header's {name} is out of range")


def _size(field: bytes, magic: bytes) -> int:
    if field[0] != 0x80 or magic != _GNU:  # noqa: PLR2004 - the byte that marks a base-256 number
        return _octal(field, "size")
    size = int.from_bytes(field[1:], "big")
    if not _OCTAL_LIMIT <= size <= MAX_SIZE:
        _refuse("a header's base-256 size is out of range")
    return size


def _text_field(field: bytes) -> bytes:
    text = field.rstrip(b"\0")
    if b"\0" in text:
        _refuse("a header has data behind the end of a name")
    return text


def _utf8(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(f"the name {escape(name.decode('utf-8', 'backslashreplace'))!r} is not UTF-8")


def _refuse(what: str) -> NoReturn:
    raise ArchiveRefusedError(what)
