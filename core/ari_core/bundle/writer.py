"""The one deterministic writer: the same files and policy give the same bytes on any machine (WRITE form).

One thread reads, hashes and packs, a second compresses, hashes and writes. ISA-L's output depends on how its input
is cut, so the tar stream is cut into blocks of one fixed size, whatever the files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import isal
from isal import isal_zlib

from ari_core.bundle.untar import BLOCK
from ari_core.errors import ChangedSinceCurationError, from_os_error
from ari_core.fs import write_all
from ari_core.manifest import FileEntry, Manifest
from ari_core.names import MANIFEST_NAME, quoted
from ari_core.streams import CHUNK, BackgroundSha256, Progress, ReadAhead

# ISA-L levels 0 to 2 give the same bytes on every x86-64 processor, level 3 does not (design, section 4).
_LEVEL: Final = 1
_RAW: Final = -15  # window bits: deflate without a frame, which is written here
_GZIP_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no flags, no time, no system
_END_OF_DEFLATE: Final = b"\x01\x00\x00\xff\xff"  # an empty stored block, the final one (RFC 1951, section 3.2.4)
_LONGEST_STORED: Final = 65535
_SAMPLES: Final = 4
_SAMPLE: Final = 1024
_OCTAL_LIMIT: Final = 8**11
_NAME_FIELD: Final = 100
_PREFIX_FIELD: Final = 155

ENCODER: Final = f"isal {isal.__version__} level {_LEVEL}, stored where that is no larger"
"""Program and version that made the bytes; another one may make other bytes of the same bundle."""


@dataclass(frozen=True, slots=True)
class Written:
    """An archive that was written.

    Attributes:
        size: Bytes.
        archive_sha256: SHA-256 of them.
    """

    size: int
    archive_sha256: str


def write_bundle(tree: Path, manifest: Manifest, out_fd: int, *, progress: Progress | None = None) -> Written:
    """Packs an unpacked bundle, checking every file against the manifest in the same pass.

    Args:
        tree: Folder with the files; its own manifest is not read.
        manifest: What must be there; its bytes go into the archive first.
        out_fd: Descriptor to write the archive to.
        progress: Told how many bytes of files were packed.

    Raises:
        ChangedSinceCurationError: A file is not the one the manifest lists; what was written is worthless.
        LocalPermissionError: A file cannot be read.
        DiskFullError: No space.
    """
    packer = _Packer(tree, manifest, progress)
    digest = BackgroundSha256()
    size = 0
    with digest, ReadAhead(packer.blocks()) as blocks:
        for data in _gzipped(blocks):
            digest.update(data)
            size += len(data)
            try:
                write_all(out_fd, data)
            except OSError as error:
                raise from_os_error(error, "writing the archive") from error
    return Written(size, digest.hexdigest())


def _gzipped(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Makes one gzip member. A block that does not compress is stored: a reader gets it back many times faster.

    The compressor knows nothing of stored blocks, so behind one a new compressor starts, with an empty window.
    """
    yield _GZIP_HEADER
    crc = size = 0
    compressor: isal_zlib.Compress | None = None
    for block in blocks:
        crc = isal_zlib.crc32(block, crc)
        size += len(block)
        if _is_noise(block):
            if compressor:
                yield compressor.flush(isal_zlib.Z_SYNC_FLUSH)
                compressor = None
            yield _stored(block)
        else:
            compressor = compressor or isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
            yield compressor.compress(block)
    if compressor:
        yield compressor.flush(isal_zlib.Z_SYNC_FLUSH)
    yield _END_OF_DEFLATE + struct.pack("<II", crc, size % 2**32)


def _is_noise(block: bytes) -> bool:
    """Says whether samples of a block do not get smaller: compressed, encrypted or random data."""
    step = max(len(block) // _SAMPLES, _SAMPLE)
    sample = b"".join(block[start : start + _SAMPLE] for start in range(0, len(block), step))
    return len(isal_zlib.compress(sample, _LEVEL, _RAW)) >= len(sample)


def _stored(block: bytes) -> bytes:
    parts: list[bytes] = []
    for start in range(0, len(block), _LONGEST_STORED):
        part = block[start : start + _LONGEST_STORED]
        parts += struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF), part
    return b"".join(parts)


class _Packer:
    """Makes the tar stream."""

    def __init__(self, tree: Path, manifest: Manifest, progress: Progress | None) -> None:
        self._tree, self._manifest, self._progress = tree, manifest, progress
        self._total = manifest.total_size
        self._done = 0
        self._buffer = bytearray(CHUNK)
        self._used = 0

    def blocks(self) -> Iterator[bytes]:
        """Yields the tar stream in blocks of `CHUNK` bytes, the last one shorter."""
        raw = self._manifest.raw
        yield from self._bytes(header(MANIFEST_NAME, len(raw), executable=False) + raw + _padding(len(raw)))
        for entry in sorted(self._manifest.files):
            yield from self._file(entry)
        yield from self._bytes(bytes(2 * BLOCK))
        if self._used:
            yield bytes(self._buffer[: self._used])

    def _file(self, entry: FileEntry) -> Iterator[bytes]:
        path = f"{self._tree}/{entry.path}"  # a Path for each of many files costs as much as packing them
        fd = _open(path, entry)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
                raise _changed(entry)
            head = header(entry.path, entry.size, executable=bool(status.st_mode & stat.S_IXUSR))
            if self._used + len(head) + entry.size + BLOCK < CHUNK:
                self._whole(head, fd, entry)
            else:
                yield from self._bytes(head)
                yield from self._contents(fd, entry)
                yield from self._bytes(_padding(entry.size))
        except OSError as error:
            raise from_os_error(error, f"reading {quoted(path)}") from error
        finally:
            os.close(fd)
        self._done += entry.size
        if self._progress:
            self._progress("packing", self._done, self._total)

    def _whole(self, head: bytes, fd: int, entry: FileEntry) -> None:
        """Packs a small file, which fits into the block under way."""
        data = os.read(fd, entry.size + 1)
        while len(data) < entry.size and (more := os.read(fd, entry.size + 1 - len(data))):
            data += more
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _changed(entry)
        member = head + data + _padding(entry.size)
        self._buffer[self._used : self._used + len(member)] = member
        self._used += len(member)

    def _contents(self, fd: int, entry: FileEntry) -> Iterator[bytes]:
        digest = hashlib.sha256()
        left = entry.size
        while left:
            with memoryview(self._buffer)[self._used : self._used + left] as room:
                count = os.readv(fd, [room])
                digest.update(room[:count])
            if not count:
                raise _changed(entry)
            left -= count
            yield from self._filled(count)
            if self._progress:
                self._progress("packing", self._done + entry.size - left, self._total)
        if digest.hexdigest() != entry.sha256 or os.read(fd, 1):
            raise _changed(entry)

    def _bytes(self, data: bytes) -> Iterator[bytes]:
        while data:
            count = min(len(data), CHUNK - self._used)
            self._buffer[self._used : self._used + count] = data[:count]
            data = data[count:]
            yield from self._filled(count)

    def _filled(self, count: int) -> Iterator[bytes]:
        self._used += count
        if self._used == CHUNK:
            yield bytes(self._buffer)
            self._used = 0


def header(path: str, size: int, *, executable: bool) -> bytes:
    """Returns the tar header of a regular file: ustar, behind a pax header only where ustar cannot say it."""
    records = b""
    name = path.encode()
    split = _split(name)
    if split is None:
        records += _pax_record(b"path", name)
        split = (b"", name[:_NAME_FIELD])
    field = size
    if size >= _OCTAL_LIMIT:
        records += _pax_record(b"size", b"%d" % size)
        field = 0
    block = _ustar(split, field, b"0", 0o755 if executable else 0o644)
    if not records:
        return block
    return _ustar((b"", b"pax"), len(records), b"x", 0o644) + records + _padding(len(records)) + block


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Splits a path into ustar's prefix and name, or returns None when it fits in no way."""
    if not name.isascii():  # ustar says nothing about encoding, pax is UTF-8
        return None
    if len(name) <= _NAME_FIELD:
        return b"", name
    slash = name.find(b"/", len(name) - _NAME_FIELD - 1)
    if 0 < slash <= _PREFIX_FIELD:
        return name[:slash], name[slash + 1 :]
    return None


def _ustar(name: tuple[bytes, bytes], size: int, kind: bytes, mode: int) -> bytes:
    prefix, base = name
    block = bytearray(BLOCK)
    block[: len(base)] = base
    block[100:156] = b"%07o\0%07o\0%07o\0%011o\0%011o\0        " % (mode, 0, 0, size, 0)
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\x00" * 2
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_record(key: bytes, value: bytes) -> bytes:
    r"""Returns ``LENGTH key=value\n``, where the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    if len(rest) + len(str(length)) != length:
        length += 1
    return b"%d" % length + rest


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _open(path: str, entry: FileEntry) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                raise from_os_error(error, f"reading {quoted(path)}") from error
        raise _changed(entry) from error


def _changed(entry: FileEntry) -> ChangedSinceCurationError:
    return ChangedSinceCurationError(f"{quoted(entry.path)} is not the file that was curated")
