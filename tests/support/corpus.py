"""The hostile archives: one `Case` per input that must be refused, by row of the list of attacks.

Every archive carries a manifest that matches its digest, and where possible one that lists the hostile member too,
so that nothing but the rule under test can refuse it.
"""

import bz2
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from support.archives import (
    BLOCK,
    END,
    FCOMMENT,
    FEXTRA,
    FHCRC,
    FNAME,
    FTEXT,
    GNU,
    MANIFEST,
    POSIX,
    base256,
    bundle_digest,
    digest_of,
    entries,
    fix_checksum,
    folder,
    gnu_member,
    gzip,
    gzip_with_run,
    header,
    longname,
    manifest,
    manifest_of,
    member,
    members,
    padded,
    pax,
    pax_member,
    plain_bundle,
    raw_pax,
    record,
)

HONEST = {"a.txt": b"alpha\n", "z.txt": b"omega\n"}
SHAPES = ("first", "last", "tar")


@dataclass(frozen=True)
class Case:
    """One archive that must be refused.

    `says` are words that the message must have. `whole` replaces the archive; otherwise it is made of `blocks` and
    a manifest that lists `listed` (or is `manifest`, byte for byte).
    """

    row: str
    name: str
    says: tuple[str, ...]
    blocks: bytes = b""
    listed: Mapping[str, bytes] = field(default_factory=lambda: HONEST)
    manifest: bytes | None = None
    digest: str | None = None
    magic: bytes = POSIX
    whole: Callable[[], bytes] | None = None
    big: bool = False

    def __str__(self):
        return f"{self.row}-{self.name}"

    @property
    def expected(self):
        return self.digest or bundle_digest(self.listed)

    @property
    def shapes(self):
        """Where the manifest stands, and whether the archive is packed; `whole` ones have one shape."""
        return ("whole",) if self.whole else SHAPES

    def archive(self, shape="first"):
        if self.whole:
            return self.whole()
        raw = manifest(self.listed) if self.manifest is None else self.manifest
        first = member(MANIFEST, raw, magic=self.magic)
        tar = (self.blocks + first if shape == "last" else first + self.blocks) + END
        return tar if shape == "tar" else gzip(tar)


CASES: list[Case] = []


def refuse(row, name, *says, **options):
    CASES.append(Case(row, name, says, **options))


def among(evil, **fields):
    """Honest files around what is hostile: what came before must vanish, what follows must not be reached."""
    head, tail = HONEST.items()
    return member(*head, **fields) + evil + member(*tail, **fields)


def hostile(row, name, evil, *says, listed=None, magic=POSIX):
    """A hostile part among honest files; `listed` are further files in the manifest."""
    refuse(row, name, *says, blocks=among(evil, magic=magic), listed={**HONEST, **(listed or {})}, magic=magic)


def whole(row, name, build, *says, big=False, listed=HONEST, digest=None):
    refuse(row, name, *says, whole=build, big=big, listed=listed, digest=digest)


X = b"content of x\n"

# -- P: paths -----------------------------------------------------------------------------------------------------

UNSAFE = {
    "P1": (
        ("parent", "../x", "'..' part"),
        ("through", "a/../../x", "'..' part"),
        ("at-the-end", "a/..", "'..' part"),
        ("alone", "..", "'..' part"),
    ),
    "P2": (
        ("root", "/x", "absolute"),
        ("two-slashes", "//x", "absolute"),
        ("drive", "C:\\x", "backslash"),
        ("drive-relative", "C:x", "absolute"),
        ("unc", "\\\\srv\\x", "backslash"),
        ("backslash", "a\\b", "backslash"),
        ("backslash-up", "..\\x", "backslash"),
    ),
    "P3": (("leave-and-return", "../new/../dest/f", "'..' part"),),
    "P4": (
        ("two-dots", "././a", "'.' part"),
        ("empty-part", "a//b", "empty part"),
        ("dot-part", "a/./b", "'.' part"),
        ("slash-at-the-end", "a/", "empty part"),
        ("dot", ".", "'.' part"),
        ("dot-slash", "./", "empty"),
    ),
}

for row, names in UNSAFE.items():
    for name, path, says in names:
        shown = path.replace("\\", "\\\\")
        hostile(row, name, member(path, X), says)
        hostile(row, f"{name}-pax", pax_member(path, X), says)
        hostile(row, f"{name}-gnu", gnu_member(path, X), says, magic=GNU)
        if row != "P4":
            hostile(row, f"{name}-folder", folder(path + "/"), says)

hostile("P1", "prefix", member("x", X, prefix=".."), "'../x'", "'..' part")
hostile("P1", "name-behind-prefix", member("../../x", X, prefix="a"), "'..' part")
hostile("P2", "prefix", member("x", X, prefix="/etc"), "'/etc/x'", "absolute")
hostile("P2", "prefix-slash", member("x", X, prefix="/"), "absolute")
hostile("P4", "empty", member("", X), "empty")
hostile("P4", "empty-gnu", longname("") + member("x", X, magic=GNU), "long name", listed={"x": X}, magic=GNU)
hostile("P4", "prefix-only", member("", X, prefix="a"), "empty part", listed={"a": X})
hostile("P4", "prefix-ends-with-slash", member("b", X, prefix="a/"), "empty part", listed={"a/b": X})
hostile("P4", "slash-folder", folder("/"), "empty")
hostile("P4", "same-as-a", member("./a.txt", HONEST["a.txt"]), "'a.txt'", "twice")
hostile("P4", "same-as-b", member("./z.txt", HONEST["z.txt"]), "'z.txt'", "twice")
for name, evil in {
    "file-then-folder": member("a", X) + member("a/b", X),
    "folder-then-file": member("a/b", X) + member("a", X),
    "file-then-explicit-folder": member("a", X) + folder("a/") + member("a/b", X),
    "explicit-folder-then-file": folder("a/") + member("a/b", X) + member("a", X),
    "explicit-folder-of-a-file": folder("a/") + member("a", X),
}.items():
    hostile("P5", name, evil, "'a", listed={"a": X})
    hostile("P5", f"{name}-other-listed", evil, "'a", listed={"a/b": X})
    hostile("P5", f"{name}-both-listed", evil, "'a'", "as a file and as a directory", listed={"a": X, "a/b": X})

# -- L: links -----------------------------------------------------------------------------------------------------


def symlink(name, target, **fields):
    return header(name, 0, b"2", link=target, **fields)


def hardlink(name, target, data=b"", **fields):
    return header(name, len(data), b"1", link=target, **fields) + padded(data)


for name, target in {
    "absolute": "/tmp",  # noqa: S108 - the attack
    "parent": "..",
    "dangling": "nowhere",
    "itself": "link",
    "sibling": "a.txt",
    "empty-target": "",
}.items():
    through = {"link/ari-attack": X}
    hostile("L1", name, symlink("link", target) + members(through), "'link'", "symbolic link", listed=through)
    hostile("L1", f"{name}-listed", symlink("link", target), "'link'", "symbolic link", listed={"link": b""})

UP = "d" * 247
_steps = "abcdefghijklmnop"
_path = ""
_chain = b""
for step in _steps:
    _chain += (
        pax_member(_path + UP + "/", kind=b"5") + pax(("path", _path + step), ("linkpath", UP)) + symlink("s", "")
    )
    _path += UP + "/"
_long = "/".join(_steps)
hostile(
    "L2",
    "path-max",
    _chain + pax(("path", _long + "/" + "l" * 254), ("linkpath", "../" * 16)) + symlink("s", "x"),
    "linkpath",
)
hostile(
    "L2",
    "joined",
    folder("d/") + folder("d/e/") + symlink("a", "d/e") + symlink("a/up", "../..") + member("a/up/x", X),
    "'a'",
    "symbolic link",
    listed={"a/up/x": X},
)
hostile("L2", "empty-name", symlink("", ".."), "symbolic link")
hostile("L2", "root", symlink("./", "/tmp"), "symbolic link")  # noqa: S108 - the attack
hostile("L2", "root-dot", symlink(".", "/tmp"), "symbolic link")  # noqa: S108 - the attack
hostile(
    "L2",
    "gnu-long-target",
    longname("t" * 300, kind=b"K") + symlink("s", "t", magic=GNU),
    "GNU long link",
    magic=GNU,
)

for name, evil in {
    "outside": hardlink("hard", "../../canary"),
    "absolute": hardlink("hard", "/etc/passwd"),
    "earlier": hardlink("hard", "a.txt"),
    "deeper-symlink": folder("d/") + hardlink("hard", "d/s"),
    "missing": hardlink("hard", "nowhere"),
    "with-data": hardlink("hard", "a.txt", X),
    "with-headers-as-data": hardlink("hard", "a.txt", member("hidden", X)),
    "pax-target": pax(("linkpath", "../../canary")) + hardlink("hard", "x"),
}.items():
    for what, listed in (("", {}), ("-listed", {"hard": HONEST["a.txt"]})):
        if name != "deeper-symlink":
            words = ("linkpath",) if name == "pax-target" else ("'hard'", "hard link")
            hostile("L3", name + what, evil, *words, listed=listed)
hostile(
    "L3",
    "to-a-deeper-symlink",
    folder("d/") + symlink("d/s", "../../x") + hardlink("hard", "d/s"),
    "'d/s'",
    "symbolic link",
    listed={"hard": b""},
)
hostile("L3", "file-with-target", member("x", X, link="a.txt"), "'x'", "link target", listed={"x": X})

# -- T: types -----------------------------------------------------------------------------------------------------

for name, kind, says in (
    ("character", b"3", "character device"),
    ("block", b"4", "block device"),
    ("fifo", b"6", "FIFO"),
    ("socket", b"s", "unknown type"),
):
    device = header("dev", 0, kind, devmajor=1, devminor=3)
    hostile("T1", name, device, "'dev'", says)
    hostile("T1", f"{name}-listed", device, "'dev'", says, listed={"dev": b""})

for key in (
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.security.capability",
    "LIBARCHIVE.xattr.user.x",
    "SCHILY.acl.access",
    "SCHILY.acl.default",
    "SCHILY.fflags",
    "SCHILY.realsize",
    "RHT.security.selinux",
    "VENDOR.anything",
    "comment",
    "charset",
    "linkpath",
    "realtime.x",
    "mode",
    "Path",
):
    hostile("T2", f"key-{key}", pax((key, "YQ==")) + member("x", X), key, listed={"x": X})

for kind, says in {
    "S": "sparse",
    "7": "contiguous",
    "M": "multi-volume",
    "V": "volume label",
    "D": "dump directory",
    "N": "old GNU long name",
    "X": "Solaris",
    "Z": "unknown type",
    "A": "unknown type",
    "K": "long link",
    "\0": "oldest",
    "\xff": "unknown type",
}.items():
    name = f"type-{ord(kind):02x}"
    evil = member("odd", X, kind=kind.encode("latin-1"))
    hostile("T3", name, evil, "'odd'", says, listed={"odd": X})
    hostile(
        "T3",
        f"{name}-gnu",
        member("odd", X, kind=kind.encode("latin-1"), magic=GNU),
        says,
        listed={"odd": X},
        magic=GNU,
    )
for key, value in (
    ("GNU.sparse.major", "1"),
    ("GNU.sparse.map", "0,1"),
    ("GNU.sparse.size", "99"),
    ("GNU.sparse.realsize", "99"),
    ("GNU.sparse.name", "../x"),
    ("GNU.sparse.numblocks", "1"),
):
    hostile("T3", key, pax((key, value)) + member("x", X), key, listed={"x": X})

V7 = bytes(8)
hostile(
    "T4", "folder-with-size", member("d/", bytes(512), b"5") + member("d/x", X), "'d", "size", listed={"d/x": X}
)
hostile(
    "T4",
    "folder-with-hidden-header",
    member("d/", member("hidden", b""), b"5") + member("d/x", X),
    "'d",
    "size",
    listed={"d/x": X},
)
hostile(
    "T4", "folder-with-pax-size", pax(("size", "512")) + folder("d/") + member("d/x", X), "size", listed={"d/x": X}
)
hostile("T4", "v7", member("d/", bytes(512), magic=V7), "magic")
hostile("T4", "ustar-file", member("d/", bytes(512)), "'d/'", "empty part")
hostile("T4", "oldest-file", member("d/", bytes(512), b"\0"), "'d/'", "oldest")

# -- X: headers ---------------------------------------------------------------------------------------------------

HIDDEN = member("hidden", b"")
INSIDE = padded(b"outer") + HIDDEN
for what, listed in {
    "-pax-view": {"outer": INSIDE},
    "-header-view": {"outer": b"", "hidden": b""},
}.items():
    evil = pax(("size", str(len(INSIDE)))) + header("outer", 0) + INSIDE
    hostile("X1", "pax-1024-header-0" + what, evil, "'outer'", "size", listed=listed)
    evil = pax(("size", "0")) + header("outer", len(INSIDE)) + INSIDE
    hostile("X1", "pax-0-header-1024" + what, evil, "'outer'", "size", listed=listed)
hostile("X1", "pax-less", pax(("size", "5")) + member("x", b"123456"), "'x'", "size", listed={"x": b"12345"})

for magic, label in ((POSIX, "posix"), (GNU, "gnu")):
    big = b"b" * 1024
    evil = (
        pax(("size", "2048"), magic=magic)
        + longname("file_a", magic=magic)
        + member("short", big, magic=magic)
        + member("file_b", big, magic=magic)
    )
    hostile(
        "X2",
        f"pax-size-then-long-name-{label}",
        evil,
        "two extension headers",
        listed={"file_a": big, "file_b": big},
        magic=magic,
    )
    two = (pax(("path", "from_pax"), magic=magic), longname("from_l", magic=magic))
    for order, parts in (("pax-first", two), ("gnu-first", two[::-1])):
        for path in ("from_pax", "from_l"):
            says = "two extension headers" if magic == GNU or order == "pax-first" else "long name"
            hostile(
                "X2",
                f"{order}-{label}-{path}",
                b"".join(parts) + member("x", X, magic=magic),
                says,
                listed={path: X},
                magic=magic,
            )
hostile(
    "X2",
    "long-name-in-a-posix-archive",
    longname("x", magic=POSIX) + member("short", X),
    "long name",
    listed={"x": X},
)

for name, evil, says in (
    ("path-same", pax(("path", "x"), ("path", "x")), "'path' twice"),
    ("path-other", pax(("path", "y"), ("path", "x")), "'path' twice"),
    ("size", pax(("size", str(len(X))), ("size", str(len(X)))), "'size' twice"),
    ("mtime", pax(("mtime", "1"), ("mtime", "2")), "'mtime' twice"),
    ("two-headers", pax(("path", "y")) + pax(("path", "x")), "two extension headers"),
    ("two-headers-other-keys", pax(("mtime", "1")) + pax(("path", "x")), "two extension headers"),
    ("global-path", pax(("path", "x"), kind=b"g"), "global"),
    ("global-size", pax(("size", "0"), kind=b"g"), "global"),
    ("global-comment", pax(("comment", "x"), kind=b"g"), "global"),
    ("global-empty", raw_pax(b"", b"g"), "global"),
):
    hostile("X3", name, evil + member("x", X), says, listed={"x": X})
hostile(
    "X3", "two-long-names", longname("y") + gnu_member("x", X), "two extension headers", listed={"x": X}, magic=GNU
)
refuse(
    "X3",
    "global-first",
    "global",
    whole=lambda: gzip(pax(("comment", "0" * 40), kind=b"g") + plain_bundle(HONEST)),
)

for name, payload in {
    "length-0": b"0 path=x\n",
    "length-9999": b"9999 path=x\n",
    "length-one-less": b"8 path=x\n",
    "length-one-more": b"11 path=x\n",
    "length-into-the-key": b"5 path=x\n",
    "length-negative": b"-11 path=x\n",
    "length-plus": b"+11 path=x\n",
    "length-leading-zero": b"011 path=x\n",
    "length-leading-space": b" 11 path=x\n",
    "length-hex": b"0xb path=x\n",
    "length-huge": b"9" * 30 + b" path=x\n",
    "length-only": b"3 \n",
    "length-missing": b" path=x\n",
    "no-newline": b"9 path=xy",
    "no-newline-but-nul": b"10 path=x\0",
    "no-equals": b"9 pathx_\n",
    "no-space": b"9path=xy\n",
    "tab": b"9\tpath=x\n",
    "empty-key": record("", "x"),
    "empty-path": record("path", ""),
    "empty-size": record("size", ""),
    "empty-mtime": record("mtime", ""),
    "nul-behind": record("path", "x") + b"\0",
    "newline-behind": record("path", "x") + b"\n",
    "second-cut-off": record("path", "x") + b"20 mtime=1\n",
    "key-with-newline": record("pa\nth", "x"),
    "key-with-nul": record("path\0", "x"),
}.items():
    hostile("X4", name, raw_pax(payload) + member("x", X), "pax", listed={"x": X})
# A header field too short for its record: the record must not be completed from the padding.
hostile(
    "X4",
    "record-ends-in-the-padding",
    header("PaxHeaders/x", 5, b"x") + padded(b"10 path=y\n") + member("x", X),
    "padding",
    listed={"x": X},
)
for name, key, value in (
    ("mtime-text", "mtime", "now"),
    ("mtime-exponent", "mtime", "1e3"),
    ("mtime-nan", "mtime", "nan"),
    ("uid-negative", "uid", "-1"),
    ("uid-text", "uid", "root"),
):
    hostile("X4", name, pax((key, value)) + member("x", X), key, listed={"x": X})

hostile("X5", "nul-in-pax-path", pax_member("good\0evil", X), "U+0000", listed={"good": X})
hostile("X5", "nul-at-the-end-of-pax-path", pax_member("good\0", X), "U+0000", listed={"good": X})
hostile("X5", "nul-in-long-name", gnu_member("good\0evil", X), "long name", listed={"good": X}, magic=GNU)
hostile("X5", "two-nuls-behind-long-name", gnu_member("good\0", X), "long name", listed={"good": X}, magic=GNU)
hostile(
    "X5",
    "long-name-without-nul",
    longname("good", end=b"") + member("x", X, magic=GNU),
    "long name",
    listed={"good": X},
    magic=GNU,
)
hostile(
    "X5",
    "empty-long-name-block",
    longname("", end=b"") + member("x", X, magic=GNU),
    "long name",
    listed={"x": X},
    magic=GNU,
)
hostile("X5", "fffe-in-pax-path", pax_member(b"\xff\xfe", X), "\\\\xff\\\\xfe", "UTF-8")
hostile("X5", "fffe-in-header", member(b"\xff\xfe", X), "\\\\xff\\\\xfe", "UTF-8")
hostile("X5", "fffe-in-prefix", member(b"x", X, prefix=b"\xff\xfe"), "UTF-8")
hostile("X5", "fffe-in-long-name", gnu_member(b"\xff\xfe", X), "UTF-8", magic=GNU)
hostile("X5", "overlong-slash", member(b"..\xc0\xafx", X), "UTF-8")
hostile("X5", "utf-16-surrogates", member(b"\xed\xa0\xbd\xed\xb8\x80", X), "UTF-8")
for charset in ("BINARY", "ISO-IR 10646 2000 UTF-8", "UTF-8"):
    evil = pax(("hdrcharset", charset), ("path", "x")) + member("short", X)
    hostile("X5", f"charset-{charset.split()[0]}", evil, "hdrcharset", listed={"x": X})

for name, last, magic in (
    ("pax", pax(("path", "x")), POSIX),
    ("pax-empty", raw_pax(b""), POSIX),
    ("long-name", longname("x"), GNU),
):
    start, rest = member(MANIFEST, manifest(HONEST), magic=magic), among(b"", magic=magic)
    for where, tar in (("", start + rest), ("-manifest-last", rest + start)):
        whole("X6", name + where, lambda t=tar + last + END: gzip(t), "extension header is the last thing")
        whole("X6", f"{name}-no-end{where}", lambda t=tar + last: gzip(t), "cut off")

SIZES = {
    "minus-1": b"-1",
    "minus-1-padded": b"-0000000001\0",
    "minus-512-text": b"-0000001000\0",
    "minus-1-binary": base256(-1, 12),
    "minus-512-binary": base256(-512, 12),
    "minus-513-binary": base256(-513, 12),
    "minus-1024-binary": base256(-1024, 12),
    "2-to-63-binary": base256(2**63, 12),
    "2-to-64-binary": base256(2**64, 12),
    "largest-binary": b"\x80" + b"\xff" * 11,
    "small-binary": base256(len(X), 12),
    "zero-binary": base256(0, 12),
    "first-byte-81": b"\x81" + bytes(10) + bytes([len(X)]),
    "first-byte-c0": b"\xc0" + bytes(10) + bytes([len(X)]),
    "spaces": b" " * 12,
    "nul": bytes(12),
    "letters": b"abcdefghijk\0",
    "exponent": b"1e3\0",
    "underscore": b"1_0\0",
    "plus": b"+3\0",
    "decimal": b"8\0",
    "hexadecimal": b"0x10\0",
    "point": b"5.0\0",
    "nul-inside": b"0000\x00000015\0",
    "space-inside": b"0000 000015\0",
    "nul-before": b"\x000000000015",
    "newline": b"00000000015\n",
    "full-width": "\uff11".encode() + b"\0",
}
for name, size in SIZES.items():
    for magic, label in ((POSIX, ""), (GNU, "-gnu")):
        hostile("X7", name + label, member("x", X, size=size, magic=magic), "size", listed={"x": X}, magic=magic)
for name, size in {
    "minus-1": "-1",
    "exponent": "1e3",
    "underscore": "1_0",
    "plus": "+3",
    "space": " 13",
    "space-behind": "13 ",
    "leading-zero": "013",
    "hexadecimal": "0xd",
    "point": "13.0",
    "arabic-digits": "\u0661\u0663",
    "2-to-63": str(2**63),
    "2-to-64-plus-13": str(2**64 + 13),
    "5000-digits": "9" * 5000,
    "newline": "13\n",
}.items():
    hostile("X7", f"pax-{name}", pax(("size", size)) + member("x", X), "pax size", listed={"x": X})
for field_name in ("mode", "uid", "gid", "mtime", "devmajor", "chksum"):
    for name, value in (
        ("letters", b"abcdef\0"),
        ("minus", b"-00001\0"),
        ("plus", b"+00001\0"),
        ("underscore", b"1_0\0"),
    ):
        hostile(
            "X7",
            f"{field_name}-{name}",
            member("x", X, **{field_name: value}),
            field_name.replace("chksum", "checksum"),
            listed={"x": X},
        )

whole(
    "X8",
    "pax-50-mb",
    lambda: gzip_with_run(_opening() + header("PaxHeaders/x", 50 << 20, b"x"), b"x", 50, END),
    "extension",
    "limit",
    "ARI_LIMIT_PAX_BYTES",
    big=True,
)
whole(
    "X8",
    "pax-50-mb-of-records",
    lambda: gzip(_opening() + raw_pax(record("comment", "c" * 90) * 500_000) + END, level=1),
    "extension",
    "limit",
    big=True,
)
whole(
    "X8",
    "pax-just-over",
    lambda: gzip(_opening() + raw_pax(_records(64 * 1024 + 1)) + member("x", X) + END),
    "65537 bytes",
    "65536",
    listed={**HONEST, "x": X},
)
whole(
    "X8",
    "long-name-1-mb",
    lambda: gzip(_opening(GNU) + longname("n" * (1 << 20)) + member("x", X, magic=GNU) + END),
    "extension",
    "limit",
    big=True,
)


def _opening(magic=POSIX):
    return member(MANIFEST, manifest(HONEST), magic=magic) + among(b"", magic=magic)


def _records(size):
    return record("uname", "u" * (size - len("65536 uname=\n")))


for name, magic in {
    "v7": bytes(8),
    "nul-version": b"ustar\0\0\0",
    "space-version": b"ustar\0  ",
    "ustar-with-spaces": b"ustar 00",
    "version-01": b"ustar\x0001",
    "upper-case": b"USTAR\x0000",
    "gnu-without-nul": b"ustar   ",
}.items():
    hostile("X9", name, member("x", X, magic=magic), "magic", listed={"x": X})
    tar = plain_bundle(HONEST, magic=magic)
    whole("X9", f"{name}-throughout", lambda t=tar: gzip(t), "magic")
hostile(
    "X9", "star", member("x", X, padding=b"\0" * 8 + b"tar\0"), "data where there should be none", listed={"x": X}
)
hostile(
    "X9", "padding", member("x", X, padding=b"\0" * 11 + b"x"), "data where there should be none", listed={"x": X}
)
hostile("X9", "gnu-in-posix", member("x", X, magic=GNU), "mixes", listed={"x": X})
hostile("X9", "posix-in-gnu", member("x", X, magic=POSIX), "mixes", listed={"x": X}, magic=GNU)
hostile("X9", "gnu-long-name-in-posix", longname("x") + member("short", X), "mixes", listed={"x": X})
hostile(
    "X9",
    "posix-pax-in-gnu",
    pax(("path", "x")) + member("short", X, magic=GNU),
    "mixes",
    listed={"x": X},
    magic=GNU,
)
hostile(
    "X9",
    "gnu-with-prefix",
    member("x", X, magic=GNU, prefix="up"),
    "data where there should be none",
    listed={"x": X},
    magic=GNU,
)
hostile("X9", "name-with-tail", member(b"x\0tail", X), "behind the end of a name", listed={"x": X})
hostile("X9", "prefix-with-tail", member("x", X, prefix=b"a\0tail"), "behind the end of a name", listed={"a/x": X})

# -- S: the stream ------------------------------------------------------------------------------------------------

PLAIN = plain_bundle(HONEST)
PACKED = gzip(PLAIN)
FIRST = member(MANIFEST, manifest(HONEST))
A, Z = (member(path, data) for path, data in HONEST.items())

wrong = header("z.txt", len(HONEST["z.txt"]), chksum=b"000001\0 ")
spoilt = bytearray(header("z.txt", len(HONEST["z.txt"])))
spoilt[0] ^= 1
for name, block in (("other-sum", wrong), ("other-name", bytes(spoilt)), ("not-a-header", b"x" * BLOCK)):
    evil = block + padded(HONEST["z.txt"])
    refuse("S1", name, "checksum", blocks=evil + A)
    refuse("S1", f"{name}-last", "checksum", blocks=A + evil)

for shape, pack in (("gz", gzip), ("tar", bytes)):
    for name, build, says in (
        ("no-end", FIRST + A + Z, "cut off"),
        ("one-zero-block", FIRST + A + Z + bytes(BLOCK), "cut off"),
        ("one-and-a-half-zero-blocks", FIRST + A + Z + bytes(BLOCK + BLOCK // 2), "cut off"),
        ("zero-block-then-member", FIRST + A + bytes(BLOCK) + Z + END, "zero block"),
        ("zero-block-then-hidden", FIRST + A + Z + bytes(BLOCK) + HIDDEN + END, "zero block"),
        ("second-tar", PLAIN + PLAIN, "follows the end"),
        ("second-tar-other", PLAIN + HIDDEN + END, "follows the end"),
        ("text-behind", PLAIN + b"text", "follows the end"),
        ("text-behind-zeros", PLAIN + bytes(9 * BLOCK) + b"text" + bytes(BLOCK - 4), "follows the end"),
        ("padding-after-file", FIRST + A[:-1] + b"x" + Z + END, "padding"),
        ("padding-after-last-file", FIRST + A + Z[:-1] + b"x" + END, "padding"),
        ("padding-after-manifest", FIRST[:-1] + b"x" + A + Z + END, "padding"),
        ("padding-after-pax", FIRST + pax(("mtime", "1"))[:-1] + b"x" + A + Z + END, "padding"),
        ("zeros-over-1-mib", PLAIN + bytes(1024 * 1024 + BLOCK), "zero bytes"),
    ):
        whole("S3", f"{name}-{shape}", lambda p=pack, b=build: p(b), says)

for name, build in {
    "crc": lambda: gzip(PLAIN, crc=1),
    "size": lambda: gzip(PLAIN, size=len(PLAIN) + 1),
    "size-plus-4-gib": lambda: gzip(PLAIN)[:-4] + (len(PLAIN) ^ 1 << 31).to_bytes(4, "little"),
    "trailer-missing": lambda: PACKED[:-8],
    "trailer-half": lambda: PACKED[:-4],
    "trailer-less-one": lambda: PACKED[:-1],
    "deflate-damaged": lambda: PACKED[:60] + bytes([PACKED[60] ^ 0x55]) + PACKED[61:],
}.items():
    whole("S4", name, build, "gzip")

for name, build, says in (
    ("second-empty", lambda: PACKED + gzip(b""), "second gzip member"),
    ("second-tar", lambda: PACKED + PACKED, "second gzip member"),
    ("second-other-tar", lambda: PACKED + gzip(HIDDEN + END), "second gzip member"),
    ("split", lambda: gzip(PLAIN[:1024]) + gzip(PLAIN[1024:]), "second gzip member"),
    ("split-inside-file", lambda: gzip(PLAIN[:2000]) + gzip(PLAIN[2000:]), "second gzip member"),
    ("empty-first", lambda: gzip(b"") + PACKED, "second gzip member"),
    ("zeros", lambda: PACKED + bytes(512), "followed by"),
    ("one-zero", lambda: PACKED + b"\0", "followed by"),
    ("text", lambda: PACKED + b"text", "followed by"),
    ("half-a-header", lambda: PACKED + b"\x1f\x8b", "followed by"),
):
    whole("S5", name, build, says)


def _sized(size):
    """Files, and an honest bundle of them that has exactly `size` bytes: a gzip file name makes up the rest."""
    for length in range(size - 20_000, size, BLOCK):
        files = {**HONEST, "fill": bytes(length)}
        tar = plain_bundle(files)
        rest = size - len(gzip(tar, level=0))
        if 0 < rest < 4000:
            return files, gzip(tar, level=0, flags=FNAME, extra=b"n" * (rest - 1) + b"\0")
    raise AssertionError(size)


# The bundle ends exactly where a read of 128 KiB ends: what follows arrives with the next one.
READ_FILES, READ = _sized(128 * 1024)
assert len(READ) == 128 * 1024
for name, behind, says in (
    ("text-in-the-next-read", b"text", "followed by"),
    ("zeros-in-the-next-read", bytes(512), "followed by"),
    ("member-in-the-next-read", gzip(b""), "second gzip member"),
):
    whole("S5", name, lambda more=behind: READ + more, says, listed=READ_FILES)


def _zip(prefix=b""):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in HONEST.items():
            archive.writestr(path, data)
        archive.writestr(MANIFEST, manifest(HONEST))
    return prefix + out.getvalue()


ZSTD = b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0hello"
for name, build, says in (
    ("bzip2", lambda: bz2.compress(PLAIN), "bzip2"),
    ("xz", lambda: lzma.compress(PLAIN), "xz"),
    ("lzma", lambda: lzma.compress(PLAIN, format=lzma.FORMAT_ALONE), "not a gzip or tar"),
    ("zstd", lambda: ZSTD, "zstd"),
    ("zip", _zip, "zip"),
    ("empty-zip", lambda: b"PK\5\6" + bytes(18), "zip"),
    ("zip-behind-tar", lambda: _zip(PLAIN), "follows the end"),
    ("zip-behind-gzip", lambda: _zip(PACKED), "followed by"),
    ("zip-and-tar", lambda: fix_checksum(b"PK\3\4" + PLAIN[4:BLOCK]) + PLAIN[BLOCK:], "U+0003"),
    ("gzip-in-gzip", lambda: gzip(PACKED), "gzip"),
    ("gzip-in-gzip-padded", lambda: gzip(padded(PACKED)), "gzip"),
    ("tar-in-tar", lambda: member("bundle.tar", PLAIN) + END, MANIFEST),
    ("zip-in-gzip", lambda: gzip(_zip()), "zip"),
    ("empty", lambda: b"", "is empty"),
    ("one-byte", lambda: b"\x1f", "1 byte"),
    ("gzip-magic-only", lambda: b"\x1f\x8b", "gzip"),
    ("empty-gzip", lambda: gzip(b""), "cut off"),
    ("text", lambda: b"just text\n", "not a gzip or tar"),
    ("web-page", lambda: b"<!DOCTYPE html><html><body>log in</body></html>", "web page"),
    ("manifest", lambda: manifest(HONEST), "JSON"),
    ("zeros", lambda: bytes(10240), MANIFEST),
    ("zeros-gz", lambda: gzip(bytes(10240)), MANIFEST),
):
    whole("S6", name, build, says)

for name, flags, extra, says in (
    ("extra", FEXTRA, b"\2\0ab", "FEXTRA"),
    ("extra-empty", FEXTRA, b"\0\0", "FEXTRA"),
    ("comment", FCOMMENT, b"c\0", "FCOMMENT"),
    ("header-crc", FHCRC, b"\0\0", "FHCRC"),
    ("text", FTEXT, b"", "FTEXT"),
    ("reserved-20", 0x20, b"", "reserved"),
    ("reserved-40", 0x40, b"", "reserved"),
    ("reserved-80", 0x80, b"", "reserved"),
    ("name-and-comment", FNAME | FCOMMENT, b"n\0c\0", "FCOMMENT"),
    ("name-without-end", FNAME, b"n" * 10_000, "name"),
):
    whole("S7", name, lambda f=flags, e=extra: gzip(PLAIN, flags=f, extra=e), says)
whole("S7", "method", lambda: gzip(PLAIN, method=7), "method 7")

# -- R: amounts ---------------------------------------------------------------------------------------------------

TEN = {**HONEST, "big": b"0123456789"}
whole("R1", "zeros", lambda: gzip_with_run(b"", b"\0", 1024), "", big=True)
whole("R1", "zeros-behind-the-end", lambda: gzip_with_run(PLAIN, b"\0", 1024), "zero bytes", big=True)
whole("R1", "double-gzip", lambda: gzip(gzip_with_run(PLAIN, b"\0", 1024)), "", big=True)
for shape in ("first", "last"):

    def _bomb(head, *, last):
        listing = member(MANIFEST, manifest(TEN))
        files = members(HONEST)
        return (
            gzip_with_run(files + head, b"\0", 1024, listing + END)
            if last
            else gzip_with_run(listing + files + head, b"\0", 1024, END)
        )

    last = shape == "last"
    whole(
        "R1",
        f"claims-10-streams-1-gb-{shape}",
        lambda b=_bomb, s=last: b(header("big", 10) + padded(b"0123456789"), last=s),
        "",
        big=True,
        listed=TEN,
    )
    whole(
        "R1",
        f"manifest-10-header-1-gb-{shape}",
        lambda b=_bomb, s=last: b(header("big", 1 << 30), last=s),
        "'big'",
        big=True,
        listed=TEN,
    )
    whole(
        "R1",
        f"pax-1-gb-header-10-{shape}",
        lambda b=_bomb, s=last: b(pax(("size", str(1 << 30))) + header("big", 10), last=s),
        "'big'",
        "size",
        big=True,
        listed=TEN,
    )
whole(
    "R1",
    "unlisted-1-gb",
    lambda: gzip_with_run(_opening() + header("more", 1 << 30), b"\0", 1024, END),
    "'more'",
    big=True,
)
whole(
    "R1",
    "huge-header-no-body",
    lambda: gzip(_opening(GNU) + header("more", base256(2**62, 12), magic=GNU) + END),
    "'more'",
)

# -- N: names -----------------------------------------------------------------------------------------------------

hostile("N1", "same-bytes", A, "'a.txt'", "twice")
hostile("N1", "other-bytes", member("a.txt", b"other\n"), "'a.txt'", "twice")
hostile("N1", "other-bytes-first-listed", member("z.txt", b"other!"), "'z.txt'")
hostile("N1", "pax-and-header", pax_member("a.txt", HONEST["a.txt"]), "'a.txt'", "twice")
hostile(
    "N1", "prefix-and-whole", member("d/x", X) + member("x", X, prefix="d"), "'d/x'", "twice", listed={"d/x": X}
)

CHARACTERS = {
    "lf": "\n",
    "cr": "\r",
    "tab": "\t",
    "escape": "\x1b[31m",
    "bell": "\a",
    "one": "\x01",
    "del": "\x7f",
    "c1-85": "\x85",
    "c1-9b": "\x9b31m",
    "soft-hyphen": "\xad",
    "arabic-mark": "\u061c",
    "zero-width-space": "\u200b",
    "zero-width-joiner": "\u200d",
    "right-to-left-mark": "\u200f",
    "line-separator": "\u2028",
    "right-to-left-override": "\u202e",
    "word-joiner": "\u2060",
    "isolate": "\u2066",
    "bom": "\ufeff",
    "annotation": "\ufff9",
    "noncharacter-fdd0": "\ufdd0",
    "noncharacter-fffe": "\ufffe",
    "noncharacter-ffff": "\uffff",
    "noncharacter-1fffe": "\U0001fffe",
    "noncharacter-10ffff": "\U0010ffff",
    "tag": "\U000e0041",
}
for name, text in CHARACTERS.items():
    code = f"U+{ord(text[0]):04X}"
    hostile("N4", name, member(f"a{text}b", X), code)
    hostile("N4", f"{name}-pax", pax_member(f"d/{text}", X), code)
    hostile("N4", f"{name}-folder", folder(f"{text}/") + member(f"{text}/x", X), code)
hostile("N4", "nul", member(b"a\0b", X), "behind the end of a name", listed={"a": X})
hostile("N4", "lone-surrogate", member(b"a\xed\xb2\x80", X), "UTF-8")

for name in (".git", ".GIT", ".ari", ".Ari"):
    hostile("N6", f"{name}-config", member(f"{name}/config", X), name)
    hostile("N6", f"{name}-hook-below", member(f"a/{name}/hooks/x", X), name)
    hostile("N6", f"{name}-file", member(name, X), name)
    hostile("N6", f"{name}-folder", folder(f"{name}/"), name)
hostile("N6", "staging", member(".ari-staging-0123/x", X), ".ari-staging")
hostile("N6", "staging-below", member("a/.ari-staging-previous-x", X), ".ari-staging")
hostile("N6", "staging-upper-case", member(".ARI-STAGING-x", X), ".ARI-STAGING")

# -- M: manifest and members --------------------------------------------------------------------------------------

for name, extra, says in (
    ("file", member("extra", X), "'extra'"),
    ("empty-file", member("extra"), "'extra'"),
    ("case-variant", member("A.TXT", HONEST["a.txt"]), "'A.TXT'"),
    ("second-manifest", member("d/manifest.lock", manifest(HONEST)), "'d/manifest.lock'"),
    ("second-manifest-upper-case", member("MANIFEST.LOCK", manifest(HONEST)), "'MANIFEST.LOCK'"),
    ("folder", folder("empty/"), "'empty"),
    ("folder-below", folder("d/") + folder("d/e/") + folder("d/e/f/"), "'d"),
    ("folder-named-like-the-manifest", folder("d/manifest.lock/"), "'d"),
    ("folder-of-a-prefix", folder("a.tx/"), "'a.tx"),
    ("folder-with-control", folder("d\x1b[2J/"), "U+001B"),
):
    hostile("M1", name, extra, says)
hostile(
    "M1",
    "folder-beside-listed",
    folder("d/") + folder("d/other/") + member("d/x", X),
    "'d/other",
    listed={"d/x": X},
)

refuse("M2", "missing", "'x'", blocks=A + Z, listed={**HONEST, "x": X})
refuse("M2", "all-missing", "'a.txt'", blocks=b"")
refuse("M2", "size-one-more", "'z.txt'", "bytes", blocks=A + member("z.txt", b"omega\n\n"))
refuse("M2", "size-one-less", "'z.txt'", "bytes", blocks=A + member("z.txt", b"omega"))
refuse("M2", "empty", "'z.txt'", "bytes", blocks=A + member("z.txt", b""))
refuse("M2", "other-bytes", "'z.txt'", "SHA-256", blocks=A + member("z.txt", b"omegA\n"))
refuse("M2", "swapped", "'a.txt'", blocks=member("a.txt", HONEST["z.txt"]) + member("z.txt", HONEST["a.txt"]))


def _listing(change, **changes):
    """A manifest over the honest files after `change` was made to its entries; the digest matches the change."""
    listed = entries(HONEST)
    change(listed)
    return manifest_of(listed, **changes)


def bad_manifest(row, name, raw, *says, blocks=A + Z):
    refuse(row, name, *says, blocks=blocks, manifest=raw)


def _digit(listed):
    digest = listed[1]["sha256"]
    listed[1]["sha256"] = ("0" if digest[0] != "0" else "1") + digest[1:]


_raw = _listing(_digit)
refuse(
    "M2",
    "one-digit-of-the-hash",
    "'z.txt'",
    "SHA-256",
    blocks=A + Z,
    manifest=_raw,
    digest=json.loads(_raw)["bundle_sha256"],
)
bad_manifest(
    "M2",
    "one-digit-of-the-hash-not-of-the-digest",
    _listing(_digit, bundle_sha256=bundle_digest(HONEST)),
    "bundle digest",
)

_fine = member("x", X)
for names in UNSAFE.values():
    for name, path, says in names:
        raw = manifest_of([*entries(HONEST), {**entries({"x": X})[0], "path": path}])
        says_there = "'.' part" if path == "./" else says  # a leading ./ is nothing special in a manifest
        bad_manifest("M3", name, raw, MANIFEST, says_there, blocks=A + Z + _fine)
for name, text in CHARACTERS.items():
    raw = manifest_of([*entries(HONEST), {**entries({"x": X})[0], "path": f"x{text}"}])
    bad_manifest("M3", name, raw, MANIFEST, f"U+{ord(text[0]):04X}", blocks=A + Z + _fine)
for name, path, says in (
    ("empty", "", "empty"),
    ("git", ".git/config", ".git"),
    ("ari", "d/.ARI/x", ".ARI"),
    ("staging", ".ari-staging-x", ".ari-staging"),
    ("depth", "/".join("x" * 65), "deep"),
    ("component", "x" * 256, "256 bytes"),
    ("path", "/".join(["x" * 64] * 63 + ["y" * 2]), "4097 bytes"),
    ("file-as-folder", "a.txt/x", "as a file and as a directory"),
    ("manifest-as-folder", "manifest.lock/x", "as a file and as a directory"),
):
    raw = manifest_of([*entries(HONEST), {**entries({"x": X})[0], "path": path}])
    bad_manifest("M3", name, raw, MANIFEST, says, blocks=A + Z + _fine)

twice = entries(HONEST)[0]
bad_manifest("M4", "same-hash", manifest_of([*entries(HONEST), twice]), "'a.txt' twice")
bad_manifest("M4", "other-hash", manifest_of([*entries(HONEST), {**twice, "sha256": "0" * 64}]), "'a.txt' twice")
for name, first, second in (
    ("case", "Name", "name"),
    ("nfc-nfd", "n\u00e9", "ne\u0301"),
    ("kelvin", "\u212a", "k"),
):
    # Both are listed, one is there: what the file system thinks of them must not matter.
    raw = manifest_of([*entries({**HONEST, first: X, second: X})])
    bad = {**HONEST, first: X, second: X}
    refuse("M4", f"{name}-variant", f"'{second}'", blocks=A + Z + member(first, X), listed=bad)

refuse("M5", "missing", MANIFEST, whole=lambda: gzip(A + Z + END))
refuse("M5", "missing-and-nothing-else", MANIFEST, whole=lambda: gzip(END))
refuse("M5", "twice", MANIFEST, "twice", blocks=A + Z + FIRST)
refuse("M5", "twice-other", MANIFEST, "twice", blocks=A + Z + member(MANIFEST, manifest({})))
refuse("M5", "folder", MANIFEST, whole=lambda: gzip(folder(MANIFEST + "/") + A + Z + END))
refuse(
    "M5",
    "symlink",
    "'manifest.lock'",
    "symbolic link",
    whole=lambda: gzip(member("real", manifest(HONEST)) + symlink(MANIFEST, "real") + A + Z + END),
)
refuse(
    "M5",
    "hard-link",
    "'manifest.lock'",
    "hard link",
    whole=lambda: gzip(member("real", manifest(HONEST)) + hardlink(MANIFEST, "real") + A + Z + END),
)
refuse(
    "M5",
    "too-deep",
    MANIFEST,
    whole=lambda: gzip(
        b"".join(member(f"a/b/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items()) + END
    ),
)
refuse(
    "M5",
    "other-top-folder",
    MANIFEST,
    whole=lambda: gzip(
        member("top/manifest.lock", manifest(HONEST))
        + member("other/a.txt", HONEST["a.txt"])
        + member("other/z.txt", HONEST["z.txt"])
        + END
    ),
)
refuse(
    "M5",
    "top-folder-but-one-beside",
    MANIFEST,
    whole=lambda: gzip(
        b"".join(member(f"top/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items())
        + member("beside", X)
        + END
    ),
)
refuse(
    "M5",
    "top-folder-but-one-folder-beside",
    MANIFEST,
    whole=lambda: gzip(
        b"".join(member(f"top/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items())
        + folder("beside/")
        + END
    ),
)
refuse(
    "M5",
    "root-and-top",
    "'top/",
    whole=lambda: gzip(
        plain_bundle(HONEST)[: -len(END)]
        + b"".join(member(f"top/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items())
        + END
    ),
)
refuse(
    "M5",
    "top-and-root",
    "'top/manifest.lock'",
    whole=lambda: gzip(
        b"".join(member(f"top/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items())
        + plain_bundle(HONEST)
    ),
)
refuse(
    "M5",
    "top-folder-is-git",
    "'.git",
    whole=lambda: gzip(
        b"".join(member(f".git/{p}", d) for p, d in {MANIFEST: manifest(HONEST), **HONEST}.items()) + END
    ),
)
refuse(
    "M5",
    "lists-itself",
    "lists itself",
    blocks=A + Z,
    manifest=manifest_of([*entries(HONEST), *entries({MANIFEST: b""})]),
)
refuse("M5", "upper-case", MANIFEST, whole=lambda: gzip(member("MANIFEST.LOCK", manifest(HONEST)) + A + Z + END))

for name, version in (
    ("2", 2),
    ("0", 0),
    ("text", "1"),
    ("float", 1.0),
    ("true", True),
    ("null", None),
    ("list", [1]),
):
    bad_manifest("M6", f"version-{name}", manifest(HONEST, version=version), "version")
for name, change, says in (
    ("unknown-key", lambda e: e[0].update(mode=420), "'mode'"),
    ("md5", lambda e: e[0].update(md5="0" * 32), "'md5'"),
    ("md5-only", lambda e: (e[0].pop("sha256"), e[0].update(md5="0" * 32)), "md5"),
    ("sha1", lambda e: e[0].update(sha1="0" * 40), "'sha1'"),
    ("sha1-instead", lambda e: e[0].update(sha256="0" * 40), "sha256"),
    ("no-sha256", lambda e: e[0].pop("sha256"), "'sha256'"),
    ("no-size", lambda e: e[0].pop("size"), "'size'"),
    ("sha256-null", lambda e: e[0].update(sha256=None), "sha256"),
    ("sha256-upper-case", lambda e: e[0].update(sha256=e[0]["sha256"].upper()), "sha256"),
    ("sha256-prefixed", lambda e: e[0].update(sha256="sha256:" + e[0]["sha256"]), "sha256"),
    ("sha256-newline", lambda e: e[0].update(sha256=e[0]["sha256"] + "\n"), "sha256"),
    ("path-number", lambda e: e[0].update(path=5), "path"),
    ("path-null", lambda e: e[0].update(path=None), "path"),
    ("key-with-escape", lambda e: e[0].update({"\x1b[31m": 1}), "\\x1b"),
):
    listed = entries(HONEST)
    change(listed)
    # The digest cannot be made to match where a path is no text; refused all the same.
    raw = json.dumps({"version": 1, "files": listed, "bundle_sha256": bundle_digest(HONEST)}).encode()
    bad_manifest("M6", name, raw, says)
for name, changes, says in (
    ("no-version", {"version": ...}, "version"),
    ("no-files", {"files": ...}, "'files'"),
    ("files-object", {"files": {}}, "'files'"),
    ("files-null", {"files": None}, "'files'"),
    ("entry-list", {"files": [[]]}, "entry"),
    ("entry-text", {"files": ["\x1b[31m"]}, "entry"),
    ("no-digest", {"bundle_sha256": ...}, "bundle_sha256"),
    ("digest-of-other-files", {"bundle_sha256": bundle_digest({})}, "bundle digest"),
    ("digest-upper-case", {"bundle_sha256": bundle_digest(HONEST).upper()}, "bundle_sha256"),
    ("publish-list", {"publish": []}, "publish"),
    ("excluded-text", {"excluded_count": "0"}, "excluded_count"),
    ("excluded-negative", {"excluded_count": -1}, "excluded_count"),
):
    data = {**json.loads(manifest(HONEST)), **changes}
    raw = json.dumps({k: v for k, v in data.items() if v is not ...}).encode()
    bad_manifest("M6", name, raw, says)

# -- J: the manifest's JSON ---------------------------------------------------------------------------------------

TEXT = manifest(HONEST).decode()


def replaced(old, new):
    assert old in TEXT
    return TEXT.replace(old, new, 1).encode()


DEEP = 100_000
for name, raw, says in (
    ("twice-top", replaced('"version"', '"version": 1, "version"'), "'version' twice"),
    ("twice-entry", replaced('"path"', '"path": "x", "path"'), "'path' twice"),
    ("twice-entry-same", replaced('"size"', '"size": 6, "size"'), "'size' twice"),
    ("twice-publish", replaced('"license"', '"license": "", "license"'), "'license' twice"),
    ("twice-in-unknown", replaced('"version"', '"more": [{"k": 1, "k": 1}], "version"'), "'k' twice"),
    ("twice-escaped", replaced('"version"', '"\\u0076ersion": 1, "version"'), "'version' twice"),
    ("nan", replaced('"version"', '"more": NaN, "version"'), "NaN"),
    ("infinity", replaced('"version"', '"more": Infinity, "version"'), "Infinity"),
    ("minus-infinity", replaced('"version"', '"more": [-Infinity], "version"'), "Infinity"),
    ("1e999", replaced('"version"', '"more": 1e999, "version"'), "finite"),
    ("minus-1e999", replaced('"version"', '"more": -1e999, "version"'), "finite"),
    ("5000-digits", replaced('"version"', f'"more": {"9" * 5000}, "version"'), "digits"),
    ("5000-digits-size", replaced('"size": 6', f'"size": {"9" * 5000}'), "digits"),
    ("5000-digits-version", replaced('"version": 1', f'"version": {"1" * 5000}'), "digits"),
    ("5000-digit-fraction", replaced('"size": 6', f'"size": 0.{"1" * 5000}'), "size"),
    ("deep-lists", replaced('"version"', f'"more": {"[" * DEEP + "]" * DEEP}, "version"'), "deep"),
    (
        "deep-objects",
        replaced('"version"', '"more": ' + '{"k":' * DEEP + "1" + "}" * DEEP + ', "version"'),
        "deep",
    ),
    ("deep-only", b"[" * DEEP, "deep"),
    ("deep-version", replaced('"version": 1', '"version": ' + "[" * 900 + "]" * 900), "version"),
    ("deep-size", replaced('"size": 6', '"size": ' + "[" * 900 + "]" * 900), "size"),
    ("deep-entry", replaced('"files": [', '"files": [' + "[" * 900 + "]" * 900 + ","), "entry"),
    ("deep-path", replaced('"path": "a.txt"', '"path": ' + "[" * 900 + "]" * 900), "path"),
):
    bad_manifest("J1", name, raw, says)

for name, raw, says in (
    ("bom", b"\xef\xbb\xbf" + TEXT.encode(), "byte order mark"),
    ("utf-16", TEXT.encode("utf-16"), "UTF-8"),
    ("utf-16-le", TEXT.encode("utf-16-le"), "JSON"),
    ("utf-16-be", TEXT.encode("utf-16-be"), "JSON"),
    ("utf-32", TEXT.encode("utf-32"), "UTF-8"),
    ("utf-32-be", TEXT.encode("utf-32-be"), "JSON"),
    ("bytes-ff", b"\xff\xff" + TEXT.encode(), "UTF-8"),
    ("bytes-ff-inside", TEXT.encode().replace(b"staged", b"st\xffed"), "UTF-8"),
    ("latin-1", TEXT.encode().replace(b"staged", b"st\xe9ed"), "UTF-8"),
    ("encoded-surrogate", TEXT.encode().replace(b"staged", b"\xed\xa0\x80"), "UTF-8"),
    ("overlong", TEXT.encode().replace(b"staged", b"\xc0\xaf"), "UTF-8"),
    ("lone-surrogate", replaced("staged", "\\ud800"), "surrogate"),
    ("lone-surrogate-path", replaced('"a.txt"', '"\\udc80"'), "surrogate"),
    ("lone-surrogate-key", replaced('"version"', '"\\udfff": 1, "version"'), "surrogate"),
    ("two-high-surrogates", replaced("staged", "\\ud83d\\ud83d"), "surrogate"),
    ("nul", replaced("staged", "\\u0000"), "NUL"),
    ("nul-path", replaced('"a.txt"', '"a.txt\\u0000"'), "NUL"),
    ("nul-raw", replaced("staged", "\0"), "JSON"),
    ("control-raw", replaced("staged", "\x1b[31m"), "JSON"),
    ("text-behind", TEXT.encode() + b"x", "JSON"),
    ("second-object-behind", TEXT.encode() + b"{}", "JSON"),
    ("nul-behind", TEXT.encode() + b"\0", "JSON"),
    ("empty", b"", "JSON"),
    ("space", b"  \n", "JSON"),
    ("null", b"null", "object"),
    ("list", b"[]", "object"),
    ("text", b'"manifest"', "object"),
    ("number", b"1", "object"),
    ("cut-off", TEXT.encode()[:-2], "JSON"),
    ("comment", b"// list\n" + TEXT.encode(), "JSON"),
    ("comma", replaced('"version": 1,', '"version": 1,,'), "JSON"),
    ("single-quotes", TEXT.replace('"', "'").encode(), "JSON"),
):
    bad_manifest("J2", name, raw, says)

for value in (
    '"6"',
    "6.0",
    "6e0",
    "1e3",
    "true",
    "-1",
    "-0.0",
    "null",
    str(2**63),
    str(2**64 + 6),
    "[6]",
    "{}",
    "0.6e1",
):
    bad_manifest("J3", f"size-{value}", replaced('"size": 6', f'"size": {value}'), "size")
bad_manifest("J3", "size-leading-zero", replaced('"size": 6', '"size": 06'), "JSON")
bad_manifest("J3", "size-plus", replaced('"size": 6', '"size": +6'), "JSON")
bad_manifest("J3", "size-full-width", replaced('"size": 6', '"size": \uff16'), "JSON")

assert digest_of(entries(HONEST)) == json.loads(TEXT)["bundle_sha256"]
assert len({str(case) for case in CASES}) == len(CASES), "case names must be unique"
