"""Archives made at random: honest ways to pack a tree, and damage where it hurts.

A damaged archive has the checksums of its headers mended and a manifest that lists whatever our own reader or
`tarfile` makes of it: nothing but the strictness of a reader keeps such an archive out.
"""

import io
import random
import tarfile

from hypothesis import strategies as st
from support.archives import (
    BLOCK,
    END,
    FIELDS,
    GNU,
    MANIFEST,
    POSIX,
    base256,
    fix_checksum,
    folder,
    gnu_member,
    header,
    longname,
    manifest,
    member,
    padded,
    pax,
    pax_member,
    raw_pax,
    record,
)

from ari_core.bundle.untar import TarReader
from ari_core.errors import VerificationError
from ari_core.limits import Limits
from ari_core.names import unsafe_reason

# -- two readers -------------------------------------------------------------------------------------------------


class UnreadableError(Exception):
    """The other reader has no opinion."""


def plain_name(name):
    return name.removeprefix("./").rstrip("/")


def by_tarfile(tar):
    """What Python's tarfile lists: pairs of name and contents (None for a directory), in order."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            before = -1
            while (info := archive.next()) is not None:
                if archive.offset <= before or len(found) > 200:
                    raise UnreadableError("it loops")  # negative sizes lead it back
                before = archive.offset
                if info.isdir():
                    found.append((plain_name(info.name), None))
                elif info.isreg() and not info.issparse():
                    data = archive.extractfile(info).read() if info.size < 1 << 20 else b""
                    found.append((info.name.removeprefix("./"), data))
                else:
                    found.append((info.name, "odd"))
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, MemoryError) as error:
        raise UnreadableError(repr(error)) from error
    return found


def by_us(tar):
    """The same by our own reader, with no manifest to compare with."""
    reader = TarReader(iter([tar]), Limits())
    return [(info.path, None if info.is_directory else b"".join(map(bytes, reader.contents()))) for info in reader]


# -- honest ways to pack ------------------------------------------------------------------------------------------

PARTS = st.text(
    st.one_of(st.sampled_from("abAB.-_ ~#:é日😀\u0301\u00a0"), st.characters(exclude_categories=("Cs", "Cc"))),
    min_size=1,
    max_size=40,
)
PATHS = (
    st.lists(PARTS, min_size=1, max_size=5)
    .map("/".join)
    .filter(lambda path: unsafe_reason(path, Limits()) is None and path != MANIFEST)
)


def no_file_is_a_folder(files):
    return not any(other.startswith(path + "/") for path in [*files, MANIFEST] for other in files)


TREES = st.dictionaries(PATHS, st.binary(max_size=1100), max_size=6).filter(no_file_is_a_folder)


def by_header(path, data, magic):
    """A member whose name stands in the header itself, by prefix if need be; None if it does not fit."""
    raw = path.encode()
    if len(raw) <= 100:
        return member(raw, data, magic=magic)
    cut = raw.find(b"/", len(raw) - 101)
    if magic == GNU or not 0 < cut <= 155 or cut + 1 == len(raw):
        return None
    return member(raw[cut + 1 :], data, prefix=raw[:cut])


@st.composite
def archives(draw):
    """A tree and one of the many honest ways to pack it."""
    files = draw(TREES)
    magic = draw(st.sampled_from([POSIX, GNU]))
    top = draw(st.sampled_from(["", "./", "top/", "./top/"]))
    parts = []
    for path, data in draw(st.permutations([*files.items(), (MANIFEST, manifest(files))])):
        name = top + path
        long_form = pax_member if magic == POSIX else gnu_member
        made = by_header(name, data, magic) if draw(st.booleans()) else None
        if made is None:
            if magic == POSIX and draw(st.booleans()):
                made = pax(("mtime", "-1.5"), ("path", name), ("uname", "é")) + member("short", data)
            else:
                made = long_form(name, data)
        parts.append(made)
    if draw(st.booleans()):
        folders = sorted({top + path.rpartition("/")[0] for path in files if "/" in path} - {top})
        parts = [folder(f"{name}/", magic=magic) for name in folders if len(name.encode()) < 100] + parts
    return files, b"".join(parts) + END + bytes(BLOCK * draw(st.integers(0, 20)))


# -- manifests ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["path", "0" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("version", "files", "publish", "excluded_count", "bundle_sha256", "path", "size", "sha256")


# -- damage ------------------------------------------------------------------------------------------------------

BODY = {"a": b"alpha\n", "d/b": bytes(600), "d/e/c.txt": b"c" * 512, "empty": b""}


def seeds():
    """Honest archives without a manifest, as lists of their parts, with the magic of their headers."""
    ustar = [folder("d/"), *(member(path, data) for path, data in BODY.items())]
    dotted = [folder("./"), folder("./d/"), *(member(f"./{path}", data) for path, data in BODY.items())]
    prefixed = [
        member(path.rpartition("/")[2], data, prefix=path.rpartition("/")[0]) for path, data in BODY.items()
    ]
    paxed = [pax(("path", path), ("mtime", "1.5")) + member("s", data) for path, data in BODY.items()]
    sized = [pax(("size", str(len(data))), ("uid", "5")) + member(path, data) for path, data in BODY.items()]
    gnu = [folder("d/", magic=GNU), *(member(path, data, magic=GNU) for path, data in BODY.items())]
    named = [gnu_member(path, data, mtime=base256(-5, 12)) for path, data in BODY.items()]
    return [
        (ustar, POSIX),
        (dotted, POSIX),
        (prefixed, POSIX),
        (paxed, POSIX),
        (sized, POSIX),
        (gnu, GNU),
        (named, GNU),
    ]


NUMBERS = [
    *(
        b"",
        b"0",
        b"7\0",
        b"00000000006\0",
        b"00000000006 ",
        b"      6 \0",
        b"6",
        b"6 \0x",
        b"\0" * 12,
        b" " * 12,
        b"-1\0",
    ),
    *(
        b"1e1\0",
        b"1_0\0",
        b"+3\0",
        b"000001130\0",
        b"00000001130\0",
        b"00000001000\0",
        b"000000000006",
        b"8\0",
        b"0x6\0",
    ),
    *(base256(n, 12) for n in (-513, -512, -1, 0, 6, 512, 600, 2**33, 2**63, 2**70)),
    *(base256(n, 8) for n in (-1, 0, 0o755, 3_000_000)),
    *(b"\x81" + bytes(11), b"\xc0" + bytes(11), b"00000000006\n", b"0000000\x006\0", b"\x000000000006"),
]
NAMES = [
    *(
        b"a",
        b"a\0",
        b"./a",
        b"d/",
        b"d/b",
        b"d",
        b"x",
        b"x/",
        b"../x",
        b"/a",
        b"a\0tail",
        b"",
        b".",
        b"./",
        b"d//b",
        b"d/./b",
    ),
    *(
        "é".encode(),
        b"\xc3",
        b"\xff",
        b"n" * 100,
        b"n" * 99 + b"/",
        MANIFEST.encode(),
        b"././a",
        b"D/B",
        b"C:x",
        b"a\\b",
        b" a",
    ),
]
KINDS = b"0500000\x001234567xgLKSMVDNXZA\xff"
MAGICS = [POSIX, GNU, bytes(8), b"ustar\0\0\0", b"ustar 00", b"ustar   ", b"ustar\x0001"]
PAYLOADS = [
    record("path", "a"),
    record("path", "other"),
    record("size", "6"),
    record("size", "512"),
    record("size", "0"),
    record("mtime", "1"),
    record("comment", "x"),
    record("hdrcharset", "BINARY"),
    record("GNU.sparse.realsize", "600"),
    record("GNU.sparse.name", "other"),
    record("linkpath", "a"),
    record("path", "a") * 2,
    record("path", "x\0y"),
    record("path", ""),
    record("uid", "5") + record("path", "d/b"),
    b"9 path=a\0",
    b"99 path=a\n",
    b"0 path=a\n",
    b"8 pathaa\n",
    b"",
    record("path", "a") + b"\0" * 9,
]
INSERTS = [
    *(raw_pax(payload, kind) for payload in PAYLOADS for kind in (b"x", b"g")),
    *(longname(name, magic=magic) for name in ("a", "other", "d/", "n" * 600) for magic in (GNU, POSIX)),
    longname("a", kind=b"K"),
    longname("a", end=b""),
    longname("a\0b"),
    longname("a", end=b"\0\0"),
    bytes(BLOCK),
    END,
    b"x" * BLOCK,
    member("extra", b"extra"),
    folder("d/"),
    header("l", 0, b"2", link="a"),
    header("h", 0, b"1", link="a"),
    header("h", 6, b"1", link="a") + padded(b"linked"),
]


def mutate(parts, rng):
    """Damages a list of parts in one to four places and returns the bytes and whether to mend checksums."""
    parts = list(parts)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(parts))
        what = rng.random()
        if what < 0.5:
            parts[at] = in_a_header(parts[at], rng)
        elif what < 0.62:
            parts.insert(at, rng.choice(INSERTS))
        elif what < 0.7:
            parts.insert(rng.randrange(len(parts) + 1), parts[at])
        elif what < 0.76:
            del parts[at]
            parts = parts or [member("a", b"")]
        elif what < 0.82:
            rng.shuffle(parts)
        elif what < 0.92:
            raw = bytearray(parts[at])
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            parts[at] = bytes(raw)
        else:
            cut = rng.randrange(len(parts[at]) + 1)
            parts[at] = (
                parts[at][:cut] if rng.random() < 0.5 else parts[at][:cut] + rng.randbytes(8) + parts[at][cut:]
            )
    tail = rng.choice(
        (END, END, END, END, END, END, b"", bytes(BLOCK), END + bytes(BLOCK * 18), END + b"x" * BLOCK)
    )
    return b"".join(parts) + tail


def in_a_header(part, rng):
    """Sets a field of one of the headers of a part."""
    starts = [at for at in range(0, len(part) - BLOCK + 1, BLOCK) if part[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return part
    start = rng.choice(starts)
    name = rng.choice(
        (
            "name",
            "prefix",
            "kind",
            "size",
            "size",
            "magic",
            "mode",
            "uid",
            "mtime",
            "link",
            "devmajor",
            "padding",
            "name",
        )
    )
    offset, width = FIELDS[name]
    if name in {"name", "prefix", "link"}:
        value = rng.choice(NAMES)
    elif name == "kind":
        at = rng.randrange(len(KINDS))
        value = KINDS[at : at + 1]
    elif name == "magic":
        value = rng.choice(MAGICS)
    elif name == "padding":
        value = rng.choice((b"\0" * 12, b"\0" * 8 + b"tar\0", b"x"))
    else:
        value = rng.choice(NUMBERS)
    value = value[:width] if rng.random() < 0.3 else value[:width].ljust(width, b"\0")
    place = start + offset
    return part[:place] + value + part[place + len(value) :]


def mended(tar):
    """Gives every block that has the form of a checksum where a header has it the one it needs."""
    blocks = (tar[at : at + BLOCK] for at in range(0, len(tar), BLOCK))
    return b"".join(
        fix_checksum(block) if len(block) == BLOCK and block[154:156] == b"\0 " else block for block in blocks
    )


def listed_by(found):
    """A manifest of what another reader found, or None if no manifest could list it."""
    files = {name: data for name, data in found if isinstance(data, bytes)}
    try:
        return files, manifest(files)
    except UnicodeEncodeError:
        return files, None


def behind(first, body):
    """The manifest as the last member, where the end is where one would look for it."""
    end = body.find(END)
    end = end - end % BLOCK if end >= 0 else len(body)
    return body[:end] + first + body[end:]


def mutations(count, seed):
    """Yields `count` damaged plain archives: the number, the files of the manifest, and the archive."""
    rng = random.Random(seed)
    bodies = seeds()
    for number in range(count):
        parts, magic = rng.choice(bodies)
        body = mutate(parts, rng)
        if rng.random() < 0.95:
            body = mended(body)
        try:
            found = by_us(body) if rng.random() < 0.5 else by_tarfile(body)
        except (UnreadableError, VerificationError):
            found = list(BODY.items())
        files, raw = listed_by(found)
        if raw is None:
            files, raw = BODY, manifest(BODY)
        first = member(MANIFEST, raw, magic=magic if rng.random() < 0.9 else rng.choice(MAGICS))
        yield number, files, first + body if rng.random() < 0.8 else behind(first, body)


def damaged(packed, count, seed):
    """Yields `count` damaged copies of some bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        raw = bytearray(packed)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(raw))
            match rng.randrange(4):
                case 0:
                    raw[at] = rng.randrange(256)
                case 1:
                    del raw[at]
                case 2:
                    raw.insert(at, rng.randrange(256))
                case _:
                    raw[at:at] = raw[at : at + rng.randrange(20)]
        yield bytes(raw)
