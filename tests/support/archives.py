"""Archives and manifests made byte by byte: what no packing program would write can be written here.

Nothing here uses `tarfile`, nor any code of the project: the digest and the manifest are computed a second time,
from their definition in docs/format.md.
"""

import hashlib
import json
import struct
import zlib
from itertools import starmap

BLOCK = 512
POSIX = b"ustar\x0000"
GNU = b"ustar  \0"
MANIFEST = "manifest.lock"
END = bytes(2 * BLOCK)

# Offset and width of each field of a header.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "chksum": (148, 8),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
    "padding": (500, 12),
}


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


# -- tar ----------------------------------------------------------------------------------------------------------


def octal(value, width):
    return b"%0*o\0" % (width - 1, value)


def base256(value, width):
    """The binary form of a number: the first bit set, the rest two's complement."""
    raw = bytearray((value & ((1 << 8 * width) - 1)).to_bytes(width, "big"))
    raw[0] |= 0x80
    return bytes(raw)


def fix_checksum(block):
    """Returns a header with the right checksum."""
    start, width = FIELDS["chksum"]
    cleared = block[:start] + b" " * width + block[start + width :]
    return block[:start] + b"%06o\0 " % sum(cleared) + block[start + width :]


def header(name, size=0, kind=b"0", *, fix=True, **fields):
    """Makes one header block. `fields` are numbers or raw bytes for any field of `FIELDS`."""
    values = {
        "name": name,
        "mode": 0o755 if kind == b"5" else 0o644,
        "uid": 0,
        "gid": 0,
        "size": size,
        "mtime": 0,
        "kind": kind,
        "magic": POSIX,
        **fields,
    }
    block = bytearray(BLOCK)
    for field, value in values.items():
        start, width = FIELDS[field]
        raw = octal(value, width) if isinstance(value, int) else as_bytes(value)
        assert len(raw) <= width, (field, raw)
        block[start : start + len(raw)] = raw
    return fix_checksum(bytes(block)) if fix and "chksum" not in fields else bytes(block)


def padded(data, fill=b"\0"):
    return data + fill * (-len(data) % BLOCK)


def member(name, data=b"", kind=b"0", **fields):
    """A header and its data."""
    return header(name, fields.pop("size", len(data)), kind, **fields) + padded(data)


def folder(name, **fields):
    return header(name, 0, b"5", **fields)


def record(key, value):
    """One pax record; its length counts itself."""
    rest = b" " + as_bytes(key) + b"=" + as_bytes(value) + b"\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d" % length + rest


def pax(*pairs, kind=b"x", **fields):
    """A pax extension header with these key-value pairs."""
    return raw_pax(b"".join(starmap(record, pairs)), kind, **fields)


def raw_pax(payload, kind=b"x", **fields):
    return member("PaxHeaders/x", payload, kind, **fields)


def longname(name, *, end=b"\0", kind=b"L", **fields):
    """A GNU long name block for the next header."""
    return member("././@LongLink", as_bytes(name) + end, kind, **{"magic": GNU, **fields})


def pax_member(name, data=b"", **fields):
    """A file whose name stands in a pax record only."""
    return pax(("path", name)) + member("short", data, **fields)


def gnu_member(name, data=b"", **fields):
    """A file whose name stands in a GNU long name only."""
    return longname(name) + member("short", data, magic=GNU, **fields)


# -- gzip ---------------------------------------------------------------------------------------------------------

FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT = 1, 2, 4, 8, 16


def gzip(data, *, flags=0, extra=b"", mtime=0, method=8, level=6, crc=None, size=None):
    """One gzip member. `extra` stands between header and data, as `flags` announce."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b" + struct.pack("<BBIBB", method, flags, mtime, 0, 3) + extra
    tail = struct.pack(
        "<II", zlib.crc32(data) if crc is None else crc, (len(data) if size is None else size) & 0xFFFFFFFF
    )
    return head + body + tail


def gzip_with_run(before, fill, count, after=b""):
    """One gzip member of `before`, `count` MiB of the byte `fill`, and `after`, without packing it all."""
    mebibyte = fill * (1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    run = packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(after) + packer.flush()
    crc = zlib.crc32(before)
    for _ in range(count):
        crc = zlib.crc32(mebibyte, crc)
    crc = zlib.crc32(after, crc)
    size = len(before) + (count << 20) + len(after)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + head
    return head + run * count + last + struct.pack("<II", crc, size & 0xFFFFFFFF)


# -- manifest -----------------------------------------------------------------------------------------------------


def entries(files):
    return [{"path": p, "size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for p, d in files.items()]


def digest_of(listed):
    """The bundle digest of a list of entries, as docs/format.md defines it."""
    canonical = {"version": 1, "files": sorted(listed, key=lambda e: e["path"])}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def bundle_digest(files):
    return digest_of(entries(files))


def manifest_of(listed, **changes):
    """The bytes of a manifest over a list of entries; `changes` replace or add top-level keys."""
    data = {
        "version": 1,
        "files": listed,
        "publish": {"visibility": "staged", "license": None},
        "excluded_count": 0,
        "bundle_sha256": digest_of(listed),
        **changes,
    }
    return json.dumps(data, indent=1).encode()


def manifest(files, **changes):
    return manifest_of(entries(files), **changes)


# -- bundles ------------------------------------------------------------------------------------------------------


def members(files, *, executables=(), **fields):
    """The members for these files, in their order."""
    return b"".join(
        member(path, data, mode=0o755 if path in executables else 0o644, **fields) for path, data in files.items()
    )


def plain_bundle(files, *, position=0, executables=(), **fields):
    """An honest archive; the manifest is member number `position`."""
    parts = [members({p: d}, executables=executables, **fields) for p, d in files.items()]
    parts.insert(position if position >= 0 else len(parts), member(MANIFEST, manifest(files), **fields))
    return b"".join(parts) + END


def bundle(files, **options):
    """An honest bundle.tar.gz."""
    return gzip(plain_bundle(files, **options))
