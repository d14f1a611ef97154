#!/usr/bin/env python3
"""Says whether an archive or folder is the bundle that the digest in a paper stands for.

    python3 -I verify_bundle.py ARCHIVE-OR-FOLDER DIGEST

ARCHIVE is a bundle.tar.gz, or the plain tar that was in it; FOLDER is one that was unpacked. DIGEST is the bundle
digest, 64 lower-case hexadecimal digits. Prints one line. Exit status: 0 yes, 1 no, 2 no answer (used wrongly, or
something cannot be read).

It needs Python 3.8 or newer and nothing else, writes nothing, and reads every byte once, a piece at a time. It
covers names and contents, not the executable bit. What it accepts, `ari verify` accepts. What it refuses though
`ari verify` takes it is listed in docs/verify-in-2046.md, which describes the format, too.
"""

import hashlib
import io
import json
import math
import os
import re
import struct
import sys
import zlib
from bisect import bisect_left

MANIFEST = "manifest.lock"
MOST_FILES = 100_000
LARGEST_FILE = 2**63 - 1
LARGEST_MANIFEST = 64 << 20
LARGEST_EXTENSION = 64 << 10
LARGEST_PADDING = 1 << 20
PIECE = 128 << 10

# Names: control characters, what turns or hides text, what is no character.
FORBIDDEN = re.compile(
    r"[\\\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)
RESERVED = re.compile(r"\.{0,2}|\.git|\.ari|\.ari-staging-.*", re.IGNORECASE | re.ASCII)

# gzip: no flag is set, or only that of a file name.
GZIP = re.compile(rb"\x1f\x8b\x08(\0.{6}|\x08.{6}[^\0]{0,4095}\0)", re.DOTALL)

# tar: name, mode, uid, gid, size, mtime, checksum, type, link name, magic, 64 bytes that do not matter, two device
# numbers, prefix, rest. Numbers are octal digits, or in a binary form where GNU tar has too few digits.
HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12s")
POSIX, GNU = b"ustar\x0000", b"ustar  \0"
OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
OCTAL_LIMIT = 8**11  # the first size that eleven octal digits cannot say
OWNER = re.compile(rb" *[0-7]+[ \0]*|\x80\0{3}[\0-\xfe].{3}", re.DOTALL)
TIME = re.compile(rb" *[0-7]+[ \0]*|(\x80\0{4}|\xff{5}).{7}", re.DOTALL)
DEVICE = re.compile(rb"( *[0-7]+)?[ \0]*")
PAX = re.compile(
    rb"(path|uname|gname)=[^\0\n]+|size=(0|[1-9][0-9]{0,18})|[ug]id=[0-9]{1,9}|"
    rb"([amc]time|LIBARCHIVE\.creationtime)=-?[0-9]{1,18}(\.[0-9]{0,18})?"
)


class No(ValueError):
    """Why it is not the bundle."""


def need(condition: object, otherwise: str) -> None:
    """Raises `No` unless the condition holds."""
    if not condition:
        raise No(otherwise)


def verify(place: str, digest: str) -> int:
    """Returns the number of files of the bundle at `place`; raises `No` unless it is the one with that digest."""
    contents = Contents()
    if os.path.isdir(place):
        need(MANIFEST in os.listdir(place), f"there is no {MANIFEST} in this folder")
        read_folder(place, "", contents)
        need(MANIFEST in contents.manifests, f"the {MANIFEST} in this folder is no file")
    else:
        with open(place, "rb") as file:
            start = file.read(8192)
            file.seek(0)
            packed = start.startswith(b"\x1f\x8b")
            need(not packed or GZIP.match(start), "its gzip header has more than a file name")
            read_tar(io.BufferedReader(Gunzip(file), PIECE) if packed else file, contents)
    return compare(contents, digest)


class Contents:
    """What an archive or folder holds: size and SHA-256 of its files, its folders, what may be its manifest."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, str]] = {}
        self.folders: set[str] = set()
        self.manifests: dict[str, bytes] = {}
        self.length = 0

    def add_folder(self, path: str) -> None:
        """Notes a folder."""
        self.check(path)
        self.folders.add(path)
        need(len(self.folders) <= MOST_FILES, "it has too many folders")

    def add_file(self, path: str, size: int, stream: io.BufferedIOBase) -> None:
        """Reads a file."""
        self.check(path)
        need(path not in self.files, f"{path!a} is there twice")
        need(len(self.files) <= MOST_FILES, "it has too many files")
        top = next(iter(self.files), path).split("/")[0]  # the only folder that can have the manifest at its top
        keep = path in {MANIFEST, f"{top}/{MANIFEST}"}
        need(not keep or size <= LARGEST_MANIFEST, "the manifest is too large")
        sha256, kept = hashlib.sha256(), bytearray()
        for left in range(size, 0, -PIECE):
            data = take(stream, min(left, PIECE))
            sha256.update(data)
            if keep:
                kept += data
        self.files[path] = size, sha256.hexdigest()
        if keep:
            self.manifests[path] = bytes(kept)

    def check(self, path: str) -> None:
        """Refuses a name that no bundle may have, and more names than any manifest can list."""
        need(not unsafe(path), f"the name {path!a} is not allowed")
        self.length += len(path)
        need(self.length <= LARGEST_MANIFEST, "its names are too long")


def unsafe(path: str) -> bool:
    """Says whether no file or folder of a bundle may have this name."""
    parts = path.split("/")
    return (
        FORBIDDEN.search(path) is not None
        or re.match("[A-Z]:", path) is not None
        or any(RESERVED.fullmatch(part) or len(part.encode()) > 255 for part in parts)
        or len(parts) > 64
        or len(path.encode()) > 4096
    )


def compare(contents: Contents, digest: str) -> int:
    """Compares what was found with the manifest, both ways, and the manifest with the digest."""
    need(contents.manifests, f"there is no {MANIFEST} at its top")
    name = MANIFEST if MANIFEST in contents.manifests else next(iter(contents.manifests))
    root = name[: -len(MANIFEST)]
    listed = parse(contents.manifests[name], digest)
    paths = sorted(listed)

    def holds_files(folder: str) -> bool:
        at = bisect_left(paths, f"{folder}/")
        return at < len(paths) and paths[at].startswith(f"{folder}/")

    for path in (*paths, MANIFEST):
        need(not holds_files(path), f"the manifest lists {path!a} as a file and as a folder")
    del contents.files[name]
    for path in contents.files:
        need(path.startswith(root) and path[len(root) :] in listed, f"{path!a} is not in the manifest")
    for folder in contents.folders:
        inside = folder.startswith(root) and holds_files(folder[len(root) :])
        need(inside or f"{folder}/" == root, f"the folder {folder!a} holds no file of the manifest")
    for path in paths:
        found = contents.files.get(root + path)
        need(found, f"{path!a} is missing")
        need(found == listed[path], f"{path!a} has other contents than the manifest says")
    return len(paths)


# -- the manifest: strict, so that every reader understands the same


def parse(raw: bytes, digest: str) -> "dict[str, tuple[int, str]]":
    """Returns size and SHA-256 of the files by path; raises `No` unless their list has that digest."""
    need(sum(map(raw.count, (b"{", b"[", b","))) <= 8 * MOST_FILES + 10_000, "the manifest holds too much")
    data = json.loads(
        raw.decode(), object_pairs_hook=unique, parse_int=integer, parse_float=finite, parse_constant=finite
    )
    check_values(data, 20)
    need(isinstance(data, dict) and isinstance(data.get("files"), list), "the manifest has no list of files")
    need(type(data.get("version")) is int and data["version"] == 1, "the manifest is not of version 1")
    need(isinstance(data.get("publish", {}), dict), "the manifest has an odd 'publish'")
    excluded = data.get("excluded_count")
    need(excluded is None or (type(excluded) is int and excluded >= 0), "the manifest has an odd 'excluded_count'")
    listed: dict[str, tuple[int, str]] = {}
    for entry in data["files"]:
        need(isinstance(entry, dict) and set(entry) == {"path", "sha256", "size"}, "the manifest has an odd entry")
        path, sha256, size = entry["path"], entry["sha256"], entry["size"]
        need(isinstance(path, str) and path != MANIFEST and not unsafe(path), "the manifest lists an odd name")
        need(path not in listed, f"the manifest lists {path!a} twice")
        need(type(size) is int, f"the manifest has an odd size for {path!a}")
        need(is_sha256(sha256), f"the manifest has an odd SHA-256 for {path!a}")
        listed[path] = size, sha256
    need(len(listed) <= MOST_FILES, "the manifest lists too many files")
    need(count_folders(sorted(listed)) <= MOST_FILES, "the manifest needs too many folders")
    files = sorted(data["files"], key=lambda entry: str(entry["path"]))
    canonical = {"files": files, "version": 1}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    computed = hashlib.sha256(text.encode()).hexdigest()
    need(data.get("bundle_sha256") == computed, "the manifest states a digest that is not that of its list")
    need(computed == digest, f"it is another bundle, {computed}")
    return listed


def unique(pairs: "list[tuple[str, object]]") -> "dict[str, object]":
    """Makes a JSON object."""
    made = dict(pairs)
    need(len(made) == len(pairs), "the manifest has a key twice")
    return made


def integer(text: str) -> int:
    """Reads a JSON number without fraction or exponent."""
    need(re.fullmatch("0|-?[1-9][0-9]{0,18}", text), "the manifest has an odd number")
    return int(text)


def finite(text: str) -> float:
    """Reads any other JSON number, and what only Python takes for one."""
    need(math.isfinite(float(text)), "the manifest has a number that is not finite")
    return float(text)


def check_values(value: object, depth: int) -> None:
    """Refuses what an escape can put into a text though UTF-8 cannot hold it, and what is nested too deeply."""
    need(depth, "the manifest is nested too deeply")
    if isinstance(value, str):
        need(not re.search(r"[\0\ud800-\udfff]", value), "the manifest has a NUL or half a character")
    elif isinstance(value, (dict, list)):
        for part in value:
            check_values(part, depth - 1)
        for part in value.values() if isinstance(value, dict) else ():
            check_values(part, depth - 1)


def is_sha256(text: object) -> bool:
    """Says whether this is a SHA-256 in the only spelling that counts."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def count_folders(paths: "list[str]") -> int:
    """Counts the folders that sorted paths need."""
    count = 0
    before: list[str] = []
    for path in paths:
        above = path.split("/")[:-1]
        count += len(above) - [*(one == other for one, other in zip(above, before)), False].index(False)
        before = above
    return count


# -- folders, gzip and tar


def read_folder(place: str, prefix: str, contents: Contents) -> None:
    """Reads what lies in a folder, the manifest first; follows no link."""
    for entry in sorted(os.scandir(place), key=lambda entry: (entry.name != MANIFEST, entry.name)):
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            contents.add_folder(path)
            read_folder(entry.path, f"{path}/", contents)
        else:
            need(entry.is_file(follow_symlinks=False), f"{path!a} is no regular file")
            with open(entry.path, "rb") as file:
                contents.add_file(path, entry.stat(follow_symlinks=False).st_size, file)
                need(not file.read(1), f"{path!a} changed while it was read")


class Gunzip(io.RawIOBase):
    """The contents of a gzip file with one member and nothing behind it; zlib checks its checksum and length."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file, self.member = file, zlib.decompressobj(31)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]  # a buffer is all there is to come
        """Unpacks the next bytes."""
        data = b""
        while not data and not self.member.eof:
            packed = self.member.unconsumed_tail or self.file.read(PIECE)
            need(packed, "its gzip data are cut off")
            data = self.member.decompress(packed, len(room))
        if self.member.eof:
            need(not self.member.unused_data and not self.file.read(1), "something follows its gzip data")
        room[: len(data)] = data
        return len(data)


def read_tar(stream: io.BufferedIOBase, contents: Contents) -> None:
    """Reads a tar archive to its very end."""
    dialect = b""
    extension: dict[bytes, bytes] | None = None  # what a block of type x or L says about the member behind it
    while True:
        block = take(stream, HEADER.size)
        if zero(block):
            break
        name, mode, uid, gid, length, mtime, checksum, kind, link, magic, major, minor, prefix, rest = (
            HEADER.unpack(block)
        )
        need(octal(checksum) == sum(block) - sum(checksum) + 8 * ord(" "), "a header is damaged")
        dialect = dialect or magic
        need(magic == dialect and magic in {POSIX, GNU}, "a header is neither POSIX nor GNU, or there are both")
        need(
            zero(link + rest) and (magic == POSIX or zero(prefix)), "a header has data where there should be none"
        )
        owners = OCTAL.fullmatch(mode) and OWNER.fullmatch(uid) and OWNER.fullmatch(gid)
        others = TIME.fullmatch(mtime) and DEVICE.fullmatch(major) and DEVICE.fullmatch(minor)
        need(owners and others, "a header has a malformed number")
        size = gnu_size(length) if magic == GNU and length[:1] == b"\x80" else octal(length)
        if kind in {b"x", b"L"}:
            need(extension is None, "a member has two extensions")
            need(size <= LARGEST_EXTENSION, "an extension is too long")
            data = take(stream, size)
            extension = pax(data) if kind == b"x" else gnu_name(data, magic)
        else:
            need(kind in {b"0", b"5"}, "it has a member that is neither file nor folder")
            extension = extension or {}
            if b"size" in extension:
                field, size = size, int(extension[b"size"])
                unsaid = size >= OCTAL_LIMIT and field in {0, OCTAL_LIMIT - 1}
                need(size <= LARGEST_FILE and (size == field or unsaid), "a member has two sizes")
            whole = text(name) if zero(prefix) else text(prefix) + b"/" + text(name)
            path = extension.get(b"path", whole).decode()
            extension = None
            if kind == b"5":
                need(size == 0, "a folder has a size")
                path = path[:-1] if path.endswith("/") else path
                if path != ".":
                    contents.add_folder(path[2:] if path.startswith("./") else path)
            else:
                contents.add_file(path[2:] if path.startswith("./") else path, size, stream)
        need(zero(take(stream, -size % HEADER.size)), "the padding behind a member is not zero")
    need(extension is None, "an extension is the last thing in it")
    need(zero(take(stream, HEADER.size)), "something follows its end")
    padding = stream.read(LARGEST_PADDING + 1)
    need(zero(padding) and len(padding) <= LARGEST_PADDING, "something follows its end")
    need(len(padding) % HEADER.size == 0, "it is cut off")


def take(stream: io.BufferedIOBase, count: int) -> bytes:
    """Reads so many bytes."""
    data = stream.read(count)
    need(len(data) == count, "it is cut off")
    return data


def zero(data: bytes) -> bool:
    """Says whether there are only NULs."""
    return not data.strip(b"\0")


def octal(field: bytes) -> int:
    """Reads a number of a header."""
    found = OCTAL.fullmatch(field)
    need(found, "a header has a malformed number")
    return int(found[1], 8) if found else 0


def gnu_size(field: bytes) -> int:
    """Reads a size in binary form, in which only large ones are written."""
    size = int.from_bytes(field[1:], "big")
    need(OCTAL_LIMIT <= size <= LARGEST_FILE, "a header has a malformed size")
    return size


def text(field: bytes) -> bytes:
    """Reads a name, or the part of one, that ends with the field or with NULs."""
    found = field.rstrip(b"\0")
    need(b"\0" not in found, "a header has data behind a name")
    return found


def gnu_name(data: bytes, magic: bytes) -> "dict[bytes, bytes]":
    """Reads the extension of GNU tar: a long name."""
    need(magic == GNU and re.fullmatch(rb"[^\0]+\0", data), "a long name is malformed")
    return {b"path": data[:-1]}


def pax(data: bytes) -> "dict[bytes, bytes]":
    """Reads the extension of POSIX: records like `10 path=a` and a line feed; 10 is the record's length."""
    values: dict[bytes, bytes] = {}
    while data:
        start = re.match(rb"[1-9][0-9]{0,5} ", data)
        need(start, "a pax record is malformed")
        digits = start[0] if start else b""
        record, data = data[: int(digits)], data[int(digits) :]
        need(len(record) == int(digits) and record.endswith(b"\n"), "a pax record is malformed")
        statement = record[len(digits) : -1]
        need(PAX.fullmatch(statement), f"the pax record {statement!a:.80} is not allowed")
        key, _, value = statement.partition(b"=")
        need(key not in values, "a pax header has a key twice")
        values[key] = value
    return values


def main(arguments: "list[str]") -> int:
    """Answers in one line; returns the exit status."""
    if len(arguments) != 2 or not is_sha256(arguments[1]):
        print("usage: verify_bundle.py ARCHIVE-OR-FOLDER DIGEST (64 digits, 0-9 and a-f)", file=sys.stderr)
        return 2
    try:
        count = verify(*arguments)
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 2
    except (ValueError, RecursionError, zlib.error) as error:
        print(f"no: {error}")
        return 1
    print(f"yes: the bundle {arguments[1]}, all of its {count} files and nothing else")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
