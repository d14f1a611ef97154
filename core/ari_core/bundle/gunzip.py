"""Unpacks the outer layer of an archive: one gzip member and nothing after it, or a plain tar (READ form)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from isal import igzip_lib

from ari_core.errors import ArchiveRefusedError
from ari_core.streams import CHUNK, ReadStream

GZIP_MAGIC: Final = b"\x1f\x8b"
_DEFLATE: Final = 8
_FNAME: Final = 0x08
_FLAG_NAMES: Final = {0x01: "FTEXT", 0x02: "FHCRC", 0x04: "FEXTRA", 0x10: "FCOMMENT"}
_FIXED_HEADER: Final = struct.Struct("<2sBB6x")
_LONGEST_FNAME: Final = 4096
_SNIFF: Final = 512
_ENOUGH: Final = 8192  # holds a gzip header with the longest file name

_LOOKS_LIKE: Final = (
    (GZIP_MAGIC, "gzip data"),
    (b"PK\x03\x04", "a zip file"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "lz4 data"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"{", "JSON text"),
)


def tar_chunks(
    stream: ReadStream, on_read: Callable[[bytes], None], on_form: Callable[[str], None]
) -> Iterator[bytes]:
    """Finds out what a stream holds and unpacks it. Reads nothing before the first chunk is asked for.

    Args:
        stream: The archive from its first byte.
        on_read: Sees every byte of the stream exactly as it was read, in order.
        on_form: Told the form, ``"tar.gz"`` or ``"tar"``, before the first chunk.

    Yields:
        The tar archive in chunks of at most 128 KiB.

    Raises:
        ArchiveRefusedError: It is neither, the gzip data is damaged, or something follows it.
    """
    head = b""
    while len(head) < _ENOUGH:
        data = stream.read(CHUNK)
        if not data:
            break
        on_read(data)
        head += data
    if head.startswith(GZIP_MAGIC):
        _check_gzip_header(head)
        on_form("tar.gz")
        yield from _inflate(head, stream, on_read)
    elif head[257:262] == b"ustar" or head[:_SNIFF] == bytes(_SNIFF):
        on_form("tar")
        yield from _copy(head, stream, on_read)
    else:
        raise ArchiveRefusedError(f"this is not a gzip or tar archive: it {_appearance(head)}")


def _appearance(head: bytes) -> str:
    if not head:
        return "is empty"
    if name := _known(head):
        return f"looks like {name}"
    start = head.lstrip()[:15].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "looks like a web page: the address may need a login or name a page instead of the file"
    if len(head) < _SNIFF:
        return f"has only {len(head)} bytes"
    return "looks like nothing this program knows"


def _known(head: bytes) -> str | None:
    return next((name for magic, name in _LOOKS_LIKE if head.startswith(magic)), None)


def _check_gzip_header(head: bytes) -> None:
    if len(head) < _FIXED_HEADER.size:
        _refuse("ends inside its header")
    _, method, flags = _FIXED_HEADER.unpack_from(head)
    if method != _DEFLATE:
        _refuse(f"uses compression method {method}, not deflate")
    if flags & ~_FNAME:
        names = [name for bit, name in _FLAG_NAMES.items() if flags & bit] or ["reserved flags"]
        _refuse(f"header has {', '.join(names)}, of which only a file name is allowed")
    if flags & _FNAME and head.find(b"\0", _FIXED_HEADER.size, _FIXED_HEADER.size + _LONGEST_FNAME) < 0:
        _refuse("header has a file name without an end")


def _inflate(head: bytes, stream: ReadStream, on_read: Callable[[bytes], None]) -> Iterator[bytes]:
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    data = head
    first = True
    while True:
        try:
            chunk = inflater.decompress(data, CHUNK)
        except igzip_lib.error as error:  # type: ignore[misc]  # the stub declares an instance
            reason = "its checksum is wrong" if "checksum" in str(error).lower() else "it cannot be decompressed"
            _refuse(f"data is damaged: {reason}")
        if chunk:
            if first and chunk[257:262] != b"ustar" and (what := _known(chunk)):
                _refuse(f"data is no tar archive: it looks like {what}")
            first = False
            yield chunk
        if inflater.eof:
            break
        data = b""
        if inflater.needs_input:
            data = stream.read(CHUNK)
            if not data:
                _refuse("data ends too early: the file is cut off")
            on_read(data)
    rest = inflater.unused_data or stream.read(CHUNK)
    if rest:
        what = "a second gzip member" if rest.startswith(GZIP_MAGIC) else "data"
        _refuse(f"member is followed by {what}, which other programs would not see")


def _copy(head: bytes, stream: ReadStream, on_read: Callable[[bytes], None]) -> Iterator[bytes]:
    for start in range(0, len(head), CHUNK):
        yield head[start : start + CHUNK]
    while data := stream.read(CHUNK):
        on_read(data)
        yield data


def _refuse(what: str) -> NoReturn:
    raise ArchiveRefusedError(f"the archive's gzip {what}")
