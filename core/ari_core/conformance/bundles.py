"""Real bundles of an exact size, and sources that hand them out well or badly."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ari_core.contract import CHUNK, ReadStream, Source
from ari_core.errors import AriError
from ari_core.manifest import FileEntry, bundle_digest, render_manifest
from ari_core.names import MANIFEST_NAME

SMALLEST: Final = 8000
"""Bytes of the smallest archive that `make_bundle` makes."""

_BLOCK: Final = 512
_STORED: Final = 0xFFFF  # most bytes of one stored block (RFC 1951, section 3.2.4)
_AROUND: Final = 10 + 8  # gzip header and trailer (RFC 1952)
_OVERHEAD: Final = 8 * _BLOCK  # two headers, the manifest, the end of the archive, and rounding


class SourceFailedError(AriError):
    """What a source of this suite raises. It has to come out of `put` as it is."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that verifies.

    Attributes:
        archive: The bytes of its ``bundle.tar.gz``.
        archive_sha256: Their digest.
        bundle_sha256: Digest of the file list.
        manifest: The manifest's bytes, as in the archive.
    """

    archive: bytes
    archive_sha256: str
    bundle_sha256: str
    manifest: bytes

    def source(
        self,
        sent: bytes | None = None,
        *,
        fails: bool = False,
        at_end: Callable[[], object] | None = None,
        local_path: Path | None = None,
    ) -> BundleSource:
        """Returns a source that claims to be this bundle.

        Args:
            sent: The bytes it really sends; another length or digest makes it raise before its end.
            fails: Raises after `sent` even if that is the whole archive.
            at_end: Called when everything was sent but the end is not yet told.
            local_path: A file to hand over.
        """
        return BundleSource(self, self.archive if sent is None else sent, fails, at_end, local_path)


class BundleSource(Source):
    """A source over bytes in memory. Each read gives less than was asked for, as streams may.

    Attributes:
        error: What it raises when it has to.
        largest_read: Most bytes that were asked for at once.
        reads: How often it was opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        sent: bytes,
        fails: bool,  # noqa: FBT001 - only `Bundle.source` calls this
        at_end: Callable[[], object] | None,
        local_path: Path | None,
    ) -> None:
        self.size = len(bundle.archive)
        self.archive_sha256, self.bundle_sha256 = bundle.archive_sha256, bundle.bundle_sha256
        self.error: AriError = SourceFailedError("this source fails on purpose")
        self.largest_read = 0
        self.reads = 0
        self._bundle, self._sent, self._at_end, self._local_path = bundle, sent, at_end, local_path
        self._fails = fails or hashlib.sha256(sent).hexdigest() != bundle.archive_sha256

    @contextmanager
    def open(self) -> Iterator[ReadStream]:
        """Starts reading from the beginning."""
        self.reads += 1
        yield _Pieces(self, self._sent)

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return self._bundle.manifest

    @property
    def local_path(self) -> Path | None:
        """The file given to `Bundle.source`."""
        return self._local_path

    def reached_end(self) -> None:
        """Ends well or badly."""
        if self._fails:
            raise self.error
        if self._at_end:
            self._at_end()


class _Pieces:
    def __init__(self, source: BundleSource, data: bytes) -> None:
        self._source, self._data, self._position = source, data, 0

    def read(self, size: int, /) -> bytes:
        if size < 0:
            raise TypeError("read() takes a number of bytes, not a wish for all of them")
        self._source.largest_read = max(self._source.largest_read, size)
        less = max(1, size - 1 - self._position % 7) if size else 0
        piece = self._data[self._position : self._position + less]
        self._position += len(piece)
        if size and not piece:
            self._source.reached_end()
        return piece


def make_bundle(size: int = SMALLEST, seed: int = 0) -> Bundle:
    """Makes a bundle of one file with random contents, whose archive has exactly `size` bytes.

    Args:
        size: At least `SMALLEST`.
        seed: Another seed, another bundle.
    """
    if size < SMALLEST:
        raise ValueError(f"the smallest archive here has {SMALLEST} bytes")
    tar_size, blocks = _tar_size(size)
    rng = random.Random(f"{size}/{seed}")  # noqa: S311 - has to be the same each time, not secret
    contents = rng.randbytes(tar_size - _OVERHEAD)
    entry = FileEntry("data.bin", len(contents), hashlib.sha256(contents).hexdigest())
    manifest = render_manifest([entry], {}, 0)
    archive = _gzip(_tar({MANIFEST_NAME: manifest, entry.path: contents}).ljust(tar_size, b"\0"), blocks)
    return Bundle(archive, hashlib.sha256(archive).hexdigest(), bundle_digest([entry]), manifest)


def repacked(bundle: Bundle) -> Bundle:
    """Returns the same bundle in other bytes, as another packing program would write it."""
    packer = zlib.compressobj(level=1, wbits=31)
    tar = zlib.decompress(bundle.archive, wbits=31)
    return Bundle(
        archive := packer.compress(tar) + packer.flush(),
        hashlib.sha256(archive).hexdigest(),
        bundle.bundle_sha256,
        bundle.manifest,
    )


def _tar_size(size: int) -> tuple[int, int]:
    """Splits an archive's size into that of the tar and a number of stored blocks of five bytes' overhead each."""
    blocks = 1 + size // _STORED
    while (size - _AROUND - 5 * blocks) % _BLOCK:
        blocks += 1
    return size - _AROUND - 5 * blocks, blocks


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
        end = tar.offset
    return buffer.getvalue()[: end + 2 * _BLOCK]


def _gzip(data: bytes, blocks: int) -> bytes:
    """Packs without compressing, in exactly so many blocks: the only way to meet a size to the byte."""
    parts = [b"\x1f\x8b\x08" + bytes(6) + b"\xff"]
    for index in range(blocks):
        piece = data[index * _STORED : (index + 1) * _STORED]
        parts.append(struct.pack("<BHH", index == blocks - 1, len(piece), len(piece) ^ 0xFFFF) + piece)
    parts.append(struct.pack("<II", zlib.crc32(data), len(data)))
    return b"".join(parts)


BLOCK_EDGES: Final = (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK)
"""Sizes around the pieces in which archives are moved."""
