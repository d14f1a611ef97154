"""Writes a grey-scale PNG with the standard library alone (PNG specification, ISO/IEC 15948)."""

import struct
import zlib
from pathlib import Path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write(path: Path, rows: list[bytes]) -> None:
    """Writes `rows` (top first, one byte a pixel, 0 is black) as an image."""
    header = struct.pack(
        ">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0
    )  # 8 bits a pixel, grey, not interlaced
    lines = b"".join(b"\0" + row for row in rows)  # filter type 0: the bytes as they are
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
