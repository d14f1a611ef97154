"""Hostile archives, names, manifests and digests: each is refused, in one line, leaving nothing anywhere.

The inputs stand in `support.corpus`, one `Case` each, named by the row of the list of attacks that they belong to.
"""

import errno
import functools
import gzip as standard_gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.archives import (
    END,
    FNAME,
    GNU,
    MANIFEST,
    bundle,
    bundle_digest,
    digest_of,
    entries,
    folder,
    gnu_member,
    gzip,
    header,
    manifest,
    manifest_of,
    member,
    members,
    pax,
    pax_member,
    plain_bundle,
    record,
)
from support.corpus import CASES, HONEST, PACKED, PLAIN, SHAPES, A, X, Z, among
from support.places import Place, deadline, photograph, tree, umask

from ari_core.errors import (
    AriError,
    DestinationExistsError,
    DigestMismatchError,
    DigestSpellingError,
    UsageError,
    VerificationError,
)
from ari_core.limits import Limits
from ari_core.verification import check_archive
from ari_core.workflows.clone import clone
from ari_core.workflows.verify import verify

ARI = Path(sysconfig.get_path("scripts")) / "ari"
SECONDS = 30
SECONDS_OF_ROW = {"X7": 2}
MEBIBYTE = 1 << 20


@pytest.fixture
def place(tmp_path):
    with umask(0o022):
        yield Place(tmp_path)


class Bytes:
    """An archive in memory, which counts how much of it was read."""

    name = "memory"

    def __init__(self, data):
        self.data, self.size, self.count = data, len(data), 0

    @contextmanager
    def open(self):
        self.position = 0
        yield self

    def read(self, size, /):
        piece = self.data[self.position : self.position + size]
        self.position += len(piece)
        self.count += len(piece)
        return piece


def assert_one_line(error):
    assert error.message
    assert error.message.isprintable(), ascii(error.message)
    assert error.hint is None or error.hint.isprintable()


def assert_refused(place, path, expected, seconds=SECONDS, kind=VerificationError, **options):
    """Clones, expects a refusal, and returns it; nothing may have changed anywhere near."""
    before = place.photograph()
    with deadline(seconds), pytest.raises(kind) as caught:
        clone(str(path), place.dest, expect_sha256=expected, **options)
    assert place.photograph() == before
    assert_one_line(caught.value)
    assert not os.path.lexists("/tmp/ari-attack")  # noqa: S108 - what the links among the cases lead to
    return caught.value


SMALL = [case for case in CASES if not case.big]
BIG = [case for case in CASES if case.big]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_hostile_archive_is_refused_and_leaves_nothing(place, case):
    for shape in case.shapes:
        path = place.put(case.archive(shape))
        seconds = SECONDS_OF_ROW.get(case.row, SECONDS)
        error = assert_refused(place, path, case.expected, seconds)
        assert error.exit_code == 1
        for words in case.says:
            assert words in error.message, shape

        before = photograph(place.root)
        with deadline(seconds):
            result = verify(str(path), expect_sha256=case.expected)
        assert photograph(place.root) == before
        assert not result.ok
        assert result.problems
        for problem in result.problems:
            assert problem.detail.isprintable()
            assert problem.path is None or problem.path.isprintable()


@pytest.mark.parametrize("case", BIG, ids=str)
def test_a_bomb_is_refused_within_256_mb_and_without_filling_the_disk(place, case):
    path = place.put(case.archive())
    before = place.photograph()
    program = (
        "import resource, sys\n"
        "from ari_core.errors import VerificationError\n"
        "from ari_core.workflows.clone import clone\n"
        "path, dest, expected, room = sys.argv[1:]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))\n"
        "try:\n"
        "    clone(path, dest, expect_sha256=expected)\n"
        "except VerificationError as error:\n"
        "    print(error.message)\n"
        "    print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    total = sum(map(len, case.listed.values()))
    arguments = [path, place.dest, case.expected, str(total + MEBIBYTE)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    message, peak = done.stdout.splitlines()
    assert place.photograph() == before
    assert int(peak) < 256 * 1024
    for words in case.says:
        assert words in message


@pytest.mark.parametrize("case", [c for c in BIG if c.row == "X8"], ids=str)
def test_extension_data_over_the_limit_is_refused_before_it_is_read(case):
    source = Bytes(standard_gzip.decompress(case.archive()))
    with pytest.raises(VerificationError):
        check_archive(source, limits=Limits())
    assert source.size >= MEBIBYTE
    assert source.count <= 2 * MEBIBYTE  # what one reads ahead


# -- through the command itself -----------------------------------------------------------------------------------

SAMPLE = list({case.row: case for case in CASES if not case.big}.values()) + [
    case
    for case in CASES
    if str(case) in {"N4-escape", "N4-lf", "N4-nul", "M6-key-with-escape", "X5-fffe-in-header"}
]
RAW_CONTROLS = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")


def ari(*arguments, cwd=None, **environment):
    return subprocess.run(
        [ARI, *arguments],
        capture_output=True,
        cwd=cwd,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )


def assert_one_error(done, code):
    """The exit code, one line that starts with `error:`, at most one hint, and nothing raw."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.decode().splitlines()
    assert [line.startswith("error: ") for line in lines[:1]] == [True], lines
    assert len(lines) <= 2, lines
    assert all(line.startswith("hint: ") for line in lines[1:]), lines
    assert not RAW_CONTROLS.search(done.stdout + done.stderr)
    return lines[0]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.in_ci] if n % 9 else []) for n, case in enumerate(SAMPLE)],
    ids=str,
)
def test_the_command_refuses_in_one_line(place, case):
    path = place.put(case.archive())
    before = place.photograph()
    done = ari("clone", path, place.dest, "--expect-sha256", case.expected)
    line = assert_one_error(done, 1)
    assert place.photograph() == before
    for words in case.says:
        assert words in line
    done = ari("verify", path, "--expect-sha256", case.expected)
    assert done.returncode == 1
    assert not RAW_CONTROLS.search(done.stdout + done.stderr)
    assert b"Traceback" not in done.stderr
    assert place.photograph() == before


# -- what must be accepted ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accept:
    """An archive that looks odd and must be accepted; `executables` are its executable files."""

    row: str
    name: str
    archive: bytes
    files: dict
    executables: tuple = ()

    def __str__(self):
        return f"{self.row}-{self.name}"


def moded(mode, **fields):
    return gzip(plain_bundle(HONEST)[: -len(END)] + member("m", X, mode=mode, **fields) + END)


def with_listed(blocks, files, magic=None):
    fields = {"magic": magic} if magic else {}
    return gzip(member(MANIFEST, manifest(files), **fields) + blocks + END)


def one(row, name, blocks, extra, executables=(), magic=None):
    fields = {"magic": magic} if magic else {}
    files = {**HONEST, **extra}
    return Accept(row, name, with_listed(among(blocks, **fields), files, magic), files, executables)


PLAIN_X = {"x": X}
UNPORTABLE = (
    *("CON", "nul.txt", "COM1", "COM\u00b9", "a.", "a ", " a", "a:b", "a?b", 'a"b', "a|b", "a*b", "<a>"),
    *("-rf", "~root", "$HOME", "`id`", "a;b", "%2e%2e", "..a", "a..", "...", ".gitignore", ".github/x", "x.git/y"),
    *(
        "ABCDEF~1",
        "\u00a0",
        "\u3000",
        "e\u0301",
        "\u212a",
        "\U0001f600",
        "#",
        "'",
        "&&",
        "!",
        "c:x",
        "d/manifest.lock",
    ),
)
ACCEPTED = [
    one("P4", "dot-slash", member("./x", X), PLAIN_X),
    one("P4", "dot-slash-folder", folder("./") + folder("./d/") + member("./d/x", X), {"d/x": X}),
    one("P4", "dot-slash-prefix", member("x", X, prefix="./d"), {"d/x": X}),
    one("P4", "root-as-a-dot", folder(".") + member("x", X), PLAIN_X),
    *(
        one(
            "T2",
            f"mode-{mode:05o}",
            member("x", X, mode=mode, uid=uid, gid=uid, uname=who, gname=who),
            PLAIN_X,
            runs,
        )
        for mode, runs in (
            *((0o4755, ("x",)), (0o2755, ("x",)), (0o1777, ("x",)), (0o0777, ("x",)), (0o0100, ("x",))),
            *((0o0000, ()), (0o0666, ()), (0o0011, ()), (0o4644, ())),
        )
        for uid, who in ((0, "root") if mode == 0o4755 else (12345, "somebody"),)
    ),
    one(
        "T2", "folder-modes", folder("d/", mode=0o1777) + folder("d/e/", mode=0) + member("d/e/x", X), {"d/e/x": X}
    ),
    one(
        "T2",
        "ignored-pax-keys",
        pax(
            *(("mtime", "-5.25"), ("atime", "1.000000001"), ("ctime", "99999999999"), ("uid", "4294967294")),
            *(("gid", "3000000"), ("uname", "Zoë"), ("gname", "staff users"), ("LIBARCHIVE.creationtime", "1")),
        )
        + member("x", X, mtime=b"\xff" * 7 + b"\xed\x30\x08\x80 ", uid=b"13343300"),
        PLAIN_X,
    ),
    one("X1", "pax-size-that-agrees", pax(("size", str(len(X)))) + member("x", X), PLAIN_X),
    one(
        "X4", "many-records", pax(("path", "x"), ("uname", "a=b\u00e9"), ("mtime", "1")) + member("y", X), PLAIN_X
    ),
    one("X8", "pax-just-inside", pax(("uname", "u" * (65536 - len("65536 uname=\n")))) + member("x", X), PLAIN_X),
    one("X9", "gnu", gnu_member("x", X), PLAIN_X, magic=GNU),
    one(
        "X9",
        "bsd-numbers",
        member("x", X, mode=b"000644 \0", size=b"%011o " % len(X), mtime=b"15300702100 "),
        PLAIN_X,
    ),
    one("N3", "nfd", pax_member("ne\u0301", X), {"ne\u0301": X}),
    *(one("N5", f"name-{name!a}", pax_member(name, X), {name: X}) for name in UNPORTABLE),
    one(
        "N2",
        "case-variants",
        member("A.TXT", X) + folder("D/") + member("D/x", X) + member("d/y", X),
        {"A.TXT": X, "D/x": X, "d/y": X},
    ),
    one(
        "N3",
        "nfc-and-nfd",
        pax_member("n\u00e9", X) + pax_member("ne\u0301", b"other"),
        {"n\u00e9": X, "ne\u0301": b"other"},
    ),
    Accept("S3", "zeros-behind-the-end", gzip(PLAIN + bytes(MEBIBYTE)), HONEST),
    Accept("S3", "zeros-behind-the-end-of-a-tar", PLAIN + bytes(10240), HONEST),
    Accept("S7", "name-and-time", gzip(PLAIN, flags=FNAME, extra=b"../../evil\0", mtime=1 << 31), HONEST),
    Accept("S7", "name-with-controls", gzip(PLAIN, flags=FNAME, extra=b"\x1b[31m\xff\n\0"), HONEST),
    Accept("S7", "empty-name", gzip(PLAIN, flags=FNAME, extra=b"\0"), HONEST),
    Accept("M5", "last", bundle(HONEST, position=-1), HONEST),
    Accept("M5", "in-the-middle", bundle(HONEST, position=1), HONEST),
    Accept(
        "M5",
        "behind-folders",
        gzip(folder("./") + folder("d/") + plain_bundle({**HONEST, "d/x": X})),
        {**HONEST, "d/x": X},
    ),
    Accept(
        "M6",
        "unknown-top-level",
        gzip(member(MANIFEST, manifest(HONEST, more={"deep": [1.5, None]}, created_at="x")) + A + Z + END),
        HONEST,
    ),
    Accept("M2", "no-files", gzip(member(MANIFEST, manifest({})) + END), {}),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
def test_what_only_looks_odd_is_accepted_exactly(place, case):
    path = place.put(case.archive)
    expected = bundle_digest(case.files)
    with deadline(SECONDS):
        result = clone(str(path), place.dest, expect_sha256=expected)
        assert verify(str(path), expect_sha256=expected).ok
    assert result.bundle_sha256 == expected
    assert result.archive_sha256 == hashlib.sha256(case.archive).hexdigest()
    found = tree(place.dest)
    del found[MANIFEST]
    assert found == {name: (data, name in case.executables) for name, data in case.files.items()}
    assert sorted(os.listdir(place.parent)) == ["canary.txt", "dest", "folder", "link"]


# -- unpacked folders --------------------------------------------------------------------------------------------


def replace_by(make):
    def change(folder):
        (folder / "a.txt").unlink()
        make(folder / "a.txt")

    return change


def move_and_link(folder):
    """The folder of a listed file becomes a link to one with the same contents."""
    (folder / "d").rename(folder.parent / "elsewhere")
    (folder / "d").symlink_to("../elsewhere")


def hide_manifest(make):
    def change(folder):
        (folder / MANIFEST).rename(folder.parent / "hidden")
        make(folder / MANIFEST)

    return change


def write_beside(folder, data=HONEST["a.txt"]):
    (folder.parent / "same").write_bytes(data)
    return "../same"


HOSTILE_FOLDERS = {
    "file-is-a-link": (replace_by(lambda path: path.symlink_to(write_beside(path.parent))), "'a.txt'"),
    "file-is-a-dangling-link": (replace_by(lambda path: path.symlink_to("nowhere")), "'a.txt'"),
    "file-is-a-link-to-itself": (replace_by(lambda path: path.symlink_to("a.txt")), "'a.txt'"),
    "file-is-a-fifo": (replace_by(os.mkfifo), "'a.txt'"),
    "file-is-a-folder": (replace_by(Path.mkdir), "'a.txt'"),
    "file-is-a-device": (replace_by(lambda path: path.symlink_to("/dev/zero")), "'a.txt'"),
    "folder-is-a-link": (move_and_link, "'d'"),
    "extra-link": (lambda folder: (folder / "more").symlink_to("a.txt"), "'more'"),
    "extra-fifo": (lambda folder: os.mkfifo(folder / "more"), "'more'"),
    "extra-file": (lambda folder: (folder / "more").write_bytes(b""), "'more'"),
    "extra-folder": (lambda folder: (folder / "more").mkdir(), "'more'"),
    "extra-git": (lambda folder: (folder / ".git").mkdir(), "'.git'"),
    "extra-with-newline": (lambda folder: (folder / "a\n\x1b[31m").write_bytes(b""), "U+000A"),
    "extra-not-utf-8": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_bytes(b""),
        "U+DCFF",
    ),
    "extra-backslash": (lambda folder: (folder / "d\\x").write_bytes(b""), "backslash"),
    "second-manifest": (
        lambda folder: (folder / "d" / MANIFEST).write_bytes(manifest(HONEST)),
        "'d/manifest.lock'",
    ),
    "missing": (lambda folder: (folder / "a.txt").unlink(), "'a.txt'"),
    "changed": (lambda folder: (folder / "a.txt").write_bytes(b"ALPHA\n"), "'a.txt'"),
    "longer": (lambda folder: (folder / "a.txt").write_bytes(b"alpha\n\n"), "'a.txt'"),
    "manifest-is-a-link": (hide_manifest(lambda path: path.symlink_to("../hidden")), MANIFEST),
    "manifest-is-a-fifo": (hide_manifest(os.mkfifo), MANIFEST),
    "manifest-is-a-folder": (hide_manifest(Path.mkdir), MANIFEST),
    "manifest-is-missing": (hide_manifest(lambda _path: None), MANIFEST),
    "manifest-is-empty": (hide_manifest(Path.touch), MANIFEST),
}


@pytest.mark.parametrize("what", HOSTILE_FOLDERS)
def test_a_hostile_folder_is_refused_and_leaves_nothing(place, what):
    files = {**HONEST, "d/x": X}
    unpacked = place.archives / "unpacked"
    clone(str(place.put(bundle(files))), unpacked)
    change, says = HOSTILE_FOLDERS[what]
    change(unpacked)
    error = assert_refused(place, unpacked, bundle_digest(files))
    assert says in error.message
    before = os.listdir(unpacked)
    with deadline(SECONDS):
        try:
            result = verify(str(unpacked), expect_sha256=bundle_digest(files))
        except VerificationError as refused:
            assert_one_line(refused)
        else:
            assert not result.ok
            assert all(problem.detail.isprintable() for problem in result.problems)
            assert all((problem.path or "-").isprintable() for problem in result.problems)
    assert os.listdir(unpacked) == before


# -- L4, L5: the destination --------------------------------------------------------------------------------------

OBSTACLES = {
    "full-folder": lambda dest: (dest.mkdir(), (dest / "keep").write_text("mine")),
    "folder-with-a-folder": lambda dest: (dest / "inner").mkdir(parents=True),
    "file": lambda dest: dest.write_text("mine"),
    "link-to-folder": lambda dest: dest.symlink_to("folder"),
    "link-to-empty-folder": lambda dest: ((dest.parent / "void").mkdir(), dest.symlink_to("void")),
    "dangling-link": lambda dest: dest.symlink_to("nowhere"),
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("late", [False, True], ids=["before", "while-cloning"])
def test_an_existing_destination_is_never_touched(place, obstacle, late):
    path = place.put(bundle(HONEST))
    if late:  # it appears after the first look at it: only the final step can notice

        def progress(*_):
            if not os.path.lexists(place.dest):
                OBSTACLES[obstacle](place.dest)
                progress.before = photograph(place.dest) if place.dest.is_dir() else os.lstat(place.dest)

        with pytest.raises(DestinationExistsError) as caught:
            clone(str(path), place.dest, progress=progress)
        after = photograph(place.dest) if place.dest.is_dir() else os.lstat(place.dest)
        assert after == progress.before
        assert sorted(set(os.listdir(place.parent)) - {"void"}) == ["canary.txt", "dest", "folder", "link"]
    else:
        OBSTACLES[obstacle](place.dest)
        caught = assert_refused_usage(place, path, DestinationExistsError)
    assert "dest" in str(caught.value if late else caught)


def assert_refused_usage(place, path, kind, expected=None):
    before = place.photograph()
    with pytest.raises(kind) as caught:
        clone(str(path), place.dest, expect_sha256=expected)
    assert place.photograph() == before
    assert caught.value.exit_code == 2
    assert_one_line(caught.value)
    return caught.value


def test_an_empty_folder_is_a_good_destination(place):
    place.dest.mkdir()
    clone(str(place.put(PACKED)), place.dest)
    assert tree(place.dest).keys() == {MANIFEST, *HONEST}


def test_a_folder_that_is_missing_above_the_destination_is_not_made(place):
    path = place.put(PACKED)
    before = place.photograph()
    with pytest.raises(UsageError):
        clone(str(path), place.parent / "no" / "dest")
    assert place.photograph() == before


def test_the_parent_becomes_a_link_at_every_step_of_a_clone(place, monkeypatch):
    """One clone for each call that touches the disk, with the parent swapped for a link just before that call."""
    files = {**HONEST, "d/x": X}
    path = place.put(bundle(files, position=-1))
    outside = place.root / "outside"
    outside.mkdir()
    (outside / "canary").write_text("canary")
    aside = place.outer / "aside"
    real = {
        name: getattr(os, name) for name in ("mkdir", "open", "write", "rename", "link", "fsync", "close", "stat")
    }
    armed = {"at": 0, "count": 0}

    def wrapped(name):
        def call(*arguments, **options):
            if armed["at"] is not None and any(
                entry.startswith(".ari-staging-") for entry in os.listdir(place.parent)
            ):
                armed["count"] += 1
                if armed["count"] == armed["at"]:
                    armed["at"] = None
                    real["rename"](place.parent, aside)
                    place.parent.symlink_to(outside)
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, wrapped(name))
    clone(str(path), place.dest)
    steps = armed["count"]
    assert steps > 20
    verified = 0
    for step in range(1, steps + 1):
        shutil.rmtree(place.dest, ignore_errors=True)
        armed.update(at=step, count=0)
        try:
            clone(str(path), place.dest)
        except AriError as error:
            assert_one_line(error)
        armed["at"] = None
        assert sorted(os.listdir(outside)) == ["canary"], step
        if aside.exists():
            place.parent.unlink()
            aside.rename(place.parent)
        left = set(os.listdir(place.parent)) - {"canary.txt", "folder", "link"}
        assert left <= {"dest"}, (step, left)
        if left:
            verified += 1
            assert tree(place.dest).keys() == {MANIFEST, *files}
    assert verified


def swapping(parent, aside, outside, stop):
    """Puts a link in the place of `parent` whenever staging shows up in it, and takes it away again."""
    swaps = 0
    while not stop.is_set():
        try:
            staged = any(name.startswith(".ari-staging-") for name in os.listdir(parent))
        except OSError:
            continue
        if staged:
            parent.rename(aside)
            parent.symlink_to(outside)
            parent.unlink()
            aside.rename(parent)
            swaps += 1
    return swaps


@pytest.mark.parametrize("tries", [200, pytest.param(10_000, marks=pytest.mark.long)])
def test_the_parent_is_swapped_for_a_link_again_and_again_while_cloning(place, tries):
    path = place.put(bundle({**HONEST, "d/x": X}, position=-1))
    outside = place.root / "outside"
    outside.mkdir()
    stop, counts = threading.Event(), []
    aside = place.outer / "aside"
    racer = threading.Thread(target=lambda: counts.append(swapping(place.parent, aside, outside, stop)))
    racer.start()
    whole = 0
    try:
        for _ in range(tries):
            try:
                clone(str(path), place.dest)
            except AriError as error:
                assert_one_line(error)
            # The link is there for moments only; what came out of it would stay.
            assert not any(name != "dest" for name in os.listdir(outside))
            for folder_found in (outside / "dest", place.dest, aside / "dest"):
                if folder_found.is_dir():
                    whole += 1
                    shutil.rmtree(folder_found, ignore_errors=True)
    finally:
        stop.set()
        racer.join()
    assert counts[0] > tries / 10
    assert whole


# -- S2, S8: every cut and every flipped bit ----------------------------------------------------------------------

THREE = {"a": b"alpha\n", "b.sh": b"#!/bin/sh\n", "c/d": bytes(range(64))}
SMALLEST = plain_bundle(THREE)


def outcome(data):
    """What checking makes of an archive: None if it refuses, else what it found."""
    try:
        report = check_archive(Bytes(data), limits=Limits())
    except VerificationError as error:
        assert_one_line(error)
        return None
    assert not report.problems
    return {(entry.path, entry.size, entry.sha256) for entry in report.manifest.files}


WHOLE = {(e["path"], e["size"], e["sha256"]) for e in entries(THREE)}


LONG = functools.partial(pytest.param, marks=pytest.mark.long)


# 11 has nothing in common with 512: every place in a block is cut at, of one block or another.
@pytest.mark.parametrize(
    ("archive", "every"),
    [
        (gzip(SMALLEST), 1),
        *(case for tar in (SMALLEST, gzip(SMALLEST, level=0)) for case in ((tar, 11), LONG(tar, 1))),
    ],
    ids=["gz", "tar-11", "tar", "stored-11", "stored"],
)
def test_an_archive_cut_at_any_byte_is_refused(place, archive, every):
    assert outcome(archive) == WHOLE
    for length in range(0, len(archive), every):
        assert outcome(archive[:length]) is None, length
    for length in range(len(archive) - 20, len(archive)):
        assert outcome(archive[:length]) is None, length
    for length in range(0, len(archive), max(1, len(archive) // 25)):
        assert_refused(place, place.put(archive[:length]), bundle_digest(THREE))


def flips(data, every=1):
    for place_of_bit in range(0, 8 * len(data), every):
        flipped = bytearray(data)
        flipped[place_of_bit // 8] ^= 1 << place_of_bit % 8
        yield place_of_bit, bytes(flipped)


@pytest.mark.parametrize("every", [3, LONG(1)])
def test_a_flipped_bit_of_a_packed_archive_is_refused_or_changes_nothing(place, every):
    archive = gzip(SMALLEST)
    for at, flipped in flips(archive, every):
        found = outcome(flipped)
        assert found in (None, WHOLE), at
        if found and at // 8 not in range(4, 10):  # time, extra flags and operating system are ignored
            # A copy of zeros from further back, or the unused bits behind the last code: it unpacks to the same.
            assert standard_gzip.decompress(flipped) == SMALLEST, at
        if at % 97 == 0 or found:
            assert_flip_is_harmless(place, flipped)


def assert_flip_is_harmless(place, archive):
    path = place.put(archive)
    before = place.photograph()
    try:
        clone(str(path), place.dest, expect_sha256=bundle_digest(THREE))
    except VerificationError as error:
        assert_one_line(error)
        assert place.photograph() == before
    else:
        found = tree(place.dest)
        assert found == {name: (data, False) for name, data in {MANIFEST: manifest(THREE), **THREE}.items()}
        shutil.rmtree(place.dest)


@pytest.mark.parametrize("every", [11, LONG(1)])
def test_a_flipped_bit_of_a_plain_tar_never_changes_names_or_contents(every):
    """The checksum of a header and the digests cover all but what the bundle digest leaves out of the manifest."""
    raw = manifest(THREE)
    start = SMALLEST.index(raw)
    uncovered = range(start, start + len(raw))
    listing = range(raw.index(b'"files"'), raw.index(b'"publish"'))
    for at, flipped in flips(SMALLEST, every):
        found = outcome(flipped)
        assert found in (None, WHOLE), at
        if found:
            byte = at // 8
            in_header = SMALLEST[byte // 512 * 512 + 257 : byte // 512 * 512 + 262] == b"ustar"
            assert byte in uncovered or (in_header and byte % 512 in range(148, 156)), byte
            if byte in uncovered and byte - start in listing:
                # Nothing but white space may differ inside the list.
                assert raw[byte - start : byte - start + 1].isspace(), byte


# -- S3: how the end is told apart --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 511, 513, 1000])
def test_zeros_that_do_not_fill_a_block_are_a_cut(size):
    assert outcome(SMALLEST + bytes(size)) is None


# -- R2: limits ---------------------------------------------------------------------------------------------------


def named(name):
    return (
        bundle({**HONEST, name: X})
        if len(name) < 100
        else with_listed(A + Z + pax_member(name, X), {**HONEST, name: X})
    )


def deep(parts, length=None):
    """A path of `parts` components, of `length` bytes if given."""
    if length is None:
        return "/".join("d" * parts)
    each, rest = divmod(length - (parts - 1), parts)
    return "/".join("d" * (each + (index < rest)) for index in range(parts))


BOUNDS = [
    ("depth", deep(64), deep(65), {}),
    ("component_bytes", "n" * 255, "n" * 256, {}),
    ("component_bytes", "é" * 127, "é" * 128, {}),
    ("path_bytes", deep(64, 4096), deep(64, 4097), {}),
    ("depth", deep(3), deep(4), {"depth": 3}),
    ("component_bytes", "n" * 20, "n" * 21, {"component_bytes": 20}),
    ("path_bytes", deep(3, 30), deep(3, 31), {"path_bytes": 30}),
    ("path_bytes", "n" * 30, "n" * 31, {"path_bytes": 30}),
    ("depth", deep(70), deep(71), {"depth": 70}),
    ("path_bytes", deep(64, 5000), deep(64, 5001), {"path_bytes": 5000}),
]


@pytest.mark.parametrize(
    ("limit", "inside", "outside", "limits"), BOUNDS, ids=[f"{b[0]}-{i}" for i, b in enumerate(BOUNDS)]
)
def test_a_name_just_inside_a_limit_works_and_just_outside_is_refused(place, limit, inside, outside, limits):
    limits = Limits(**limits)
    error = assert_refused(place, place.put(named(outside)), bundle_digest({**HONEST, outside: X}), limits=limits)
    assert f"ARI_LIMIT_{limit.upper()}" in error.message
    # The same name only in the archive, behind a manifest that does not list it.
    blocks = pax_member(outside, X) if len(outside) >= 100 else member(outside, X)
    error = assert_refused(place, place.put(with_listed(A + Z + blocks, HONEST)), None, limits=limits)
    assert f"ARI_LIMIT_{limit.upper()}" in error.message
    clone(str(place.put(named(inside))), place.dest, limits=limits)
    assert tree(place.dest)[inside] == (X, False)


def test_the_number_of_files_is_limited(place):
    many = {f"{number:02}": b"" for number in range(21)}
    ten = dict(list(many.items())[:20])
    limits = Limits(files=20)
    for position in (0, -1):
        error = assert_refused(
            place, place.put(bundle(many, position=position)), bundle_digest(many), limits=limits
        )
        assert "ARI_LIMIT_FILES" in error.message
        clone(str(place.put(bundle(ten, position=position))), place.dest, limits=limits)
        assert len(tree(place.dest)) == 21
        shutil.rmtree(place.dest)


@pytest.mark.parametrize("what", ["files", "folders"])
def test_the_number_of_members_is_limited_before_a_manifest_is_found(place, what):
    files, folders = members({f"{n}": b"" for n in range(50)}), b"".join(folder(f"d{n}/") for n in range(50))
    extra = files if what == "files" else folders
    honest = plain_bundle(HONEST)[: -len(END)]
    error = assert_refused(place, place.put(gzip(extra + honest + END)), RIGHT, limits=Limits(files=20))
    assert "ARI_LIMIT_FILES" in error.message
    # Behind the manifest the first of them is one too many already, a folder once there are too many.
    error = assert_refused(place, place.put(gzip(honest + extra + END)), RIGHT, limits=Limits(files=20))
    assert ("not in the manifest" if what == "files" else "ARI_LIMIT_FILES") in error.message


@pytest.mark.in_ci
def test_the_default_limit_is_100000_files():
    def listing(count):
        return [{"path": f"{n:06}", "size": 0, "sha256": hashlib.sha256().hexdigest()} for n in range(count)]

    def archive(count):
        listed = listing(count)
        blank = bytearray(header("000000", 0))
        plain = sum(blank) - sum(b"000000") - sum(blank[148:156]) + 8 * 32

        def block(number):
            name = b"%06d" % number
            blank[0:6] = name
            blank[148:156] = b"%06o\0 " % (plain + sum(name))
            return bytes(blank)

        return member(MANIFEST, manifest_of(listed)) + b"".join(map(block, range(count))) + END

    report = check_archive(Bytes(archive(100_000)), limits=Limits())
    assert len(report.manifest.files) == 100_000
    with pytest.raises(VerificationError, match=r"over the limit of 100000 .*ARI_LIMIT_FILES"):
        check_archive(Bytes(archive(100_001)), limits=Limits())


@pytest.mark.parametrize("position", [0, -1])
def test_the_size_of_the_manifest_is_limited(place, position):
    size = len(manifest(HONEST))
    path = place.put(bundle(HONEST, position=position))
    error = assert_refused(place, path, bundle_digest(HONEST), limits=Limits(manifest_bytes=size - 1))
    assert "ARI_LIMIT_MANIFEST_BYTES" in error.message
    clone(str(path), place.dest, limits=Limits(manifest_bytes=size))


def test_extension_data_is_limited(place):
    name = "n" * 200
    path = place.put(named(name))
    size = len(record("path", name))
    error = assert_refused(place, path, bundle_digest({**HONEST, name: X}), limits=Limits(pax_bytes=size - 1))
    assert "ARI_LIMIT_PAX_BYTES" in error.message
    clone(str(path), place.dest, limits=Limits(pax_bytes=size))


# -- N2, N3: file systems that fold names -------------------------------------------------------------------------

FOLDED = {
    "case": ("A", "a"),
    "folder-case": ("Dir/x", "dir/y"),
    "deep-folder-case": ("d/Dir/x", "d/dir/y"),
    "file-and-folder-case": ("Name", "name/x"),
    "kelvin": ("\u212a", "k"),
    "sharp-s": ("stra\u00dfe", "strasse"),
    "fi-ligature": ("\ufb01", "fi"),
    "dotted-i": ("\u0130", "i\u0307"),
    "nfc-nfd": ("n\u00e9", "ne\u0301"),
}


def assert_never_merged(place, names, *, must_refuse):
    """A clone of two names either holds both, each with its own bytes, or refuses and leaves nothing."""
    files = dict(zip(names, (b"first\n", b"second\n"), strict=True))
    blocks = b"".join(pax_member(name, data) for name, data in files.items())
    path = place.put(with_listed(blocks, files))
    before = place.photograph()
    try:
        clone(str(path), place.dest, expect_sha256=bundle_digest(files))
    except VerificationError as error:
        assert_one_line(error)
        refusal = error
    else:
        assert not must_refuse
        assert {n: d for n, (d, _) in tree(place.dest).items() if n != MANIFEST} == files
        return False
    assert refusal.exit_code == 1
    assert names[1] in refusal.message
    assert place.photograph() == before
    return True


@pytest.mark.parametrize("pair", FOLDED)
@pytest.mark.parametrize("swap", [False, True], ids=["", "swapped"])
def test_a_folding_file_system_never_loses_a_file(place, monkeypatch, pair, swap):
    """A stand-in for such a file system: creating a name that folds to a known one fails."""
    from ari_core.names import folded

    names = FOLDED[pair][::-1] if swap else FOLDED[pair]
    taken = {}
    real = {"open": os.open, "mkdir": os.mkdir}

    def fold(name, fd):
        status = os.fstat(fd)
        return taken.setdefault((status.st_dev, status.st_ino, folded(str(name))), str(name))

    def fake_open(name, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is not None and flags & os.O_CREAT:
            known = fold(name, dir_fd)
            if known != str(name) and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            name = known
        elif dir_fd is not None:
            name = fold(name, dir_fd)
        return real["open"](name, flags, mode, dir_fd=dir_fd)

    def fake_mkdir(name, mode=0o777, *, dir_fd=None):
        if dir_fd is not None and fold(name, dir_fd) != str(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        return real["mkdir"](name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", fake_open)
    monkeypatch.setattr(os, "mkdir", fake_mkdir)
    assert assert_never_merged(place, names, must_refuse=True)


@pytest.fixture(scope="session")
def casefold(tmp_path_factory):
    """A folder on an ext4 file system that folds case, mounted from an image."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system that folds case needs root")
    if not Path("/sys/fs/ext4/features/casefold").exists():
        pytest.skip("this kernel's ext4 cannot fold case")
    for tool in ("mkfs.ext4", "mount", "umount", "chattr"):
        if shutil.which(tool) is None:
            message = f"needs '{tool}'"
            pytest.fail(message) if os.environ.get("ARI_TEST_REQUIRE") == "all" else pytest.skip(message)
    base = tmp_path_factory.mktemp("casefold")
    image, mounted = base / "image", base / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MEBIBYTE)
    subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount it here: {done.stderr.strip()}")
    try:
        top = mounted / "top"
        top.mkdir()
        subprocess.run(["chattr", "+F", top], check=True)
        yield top
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("pair", FOLDED)
@pytest.mark.parametrize("swap", [False, True], ids=["", "swapped"])
def test_a_real_folding_file_system_never_loses_a_file(casefold, tmp_path_factory, pair, swap):
    root = casefold / tmp_path_factory.mktemp("place").name
    root.mkdir()
    with umask(0o022):
        names = FOLDED[pair][::-1] if swap else FOLDED[pair]
        assert_never_merged(Place(root), names, must_refuse="case" in pair or pair == "nfc-nfd")


# -- J1: how deep is too deep -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ['"version": 1', '"size": 6', '"path": "a.txt"', '"files": [', '"license": null']
)
def test_nesting_of_any_depth_is_a_refusal_or_ignored(where):
    """The interpreter's own limit lies somewhere below 1,000, at another depth for reading than for showing."""
    text = manifest(HONEST).decode()
    key = where.split(":")[0]
    for depth in (*range(1, 40, 7), *range(850, 1010), 5000):
        nested = "[" * depth + "]" * depth
        new = f"{where}{nested}," if where.endswith("[") else f"{key}: {nested}"
        raw = text.replace(where, new, 1).encode()
        archive = member(MANIFEST, raw) + A + Z + END
        try:
            report = check_archive(Bytes(archive), limits=Limits())
        except VerificationError as error:
            assert_one_line(error)
        else:
            assert where == '"license": null'
            assert report.bundle_sha256 == bundle_digest(HONEST)


# -- D: digests ---------------------------------------------------------------------------------------------------

RIGHT = bundle_digest(HONEST)
MISSPELT = {
    "upper-case": RIGHT.upper(),
    "one-upper-case": RIGHT.replace("a", "A", 1) if "a" in RIGHT else RIGHT.upper(),
    "space-before": " " + RIGHT,
    "space-behind": RIGHT + " ",
    "spaces-inside": " ".join([RIGHT[:32], RIGHT[32:]]),
    "newline": RIGHT + "\n",
    "carriage-return": RIGHT + "\r\n",
    "0x": "0x" + RIGHT,
    "sha256-colon": "sha256:" + RIGHT,
    "sha256-dash": "sha256-" + RIGHT,
    "sha512": "sha512:" + RIGHT * 2,
    "63": RIGHT[:63],
    "65": RIGHT + "0",
    "full-width": RIGHT.translate({ord("0") + n: 0xFF10 + n for n in range(10)}),
    "arabic": RIGHT.translate({ord("0") + n: 0x660 + n for n in range(10)}),
    "empty": "",
    "letter": RIGHT[:63] + "g",
    "nul": RIGHT + "\0",
    "escape": "\x1b[31m" + RIGHT,
    "long": RIGHT * 1000,
    "none": "None",
    **{f"prefix-{length}": RIGHT[:length] for length in (8, 16, 32, 40, 62)},
}


@pytest.mark.parametrize("spelling", MISSPELT)
@pytest.mark.parametrize("ref", ["file", "missing", "remote", "unknown"])
def test_a_misspelt_digest_is_refused_before_anything_is_opened(place, spelling, ref, monkeypatch):
    path = place.put(PACKED)
    refs = {
        "file": str(path),
        "missing": str(place.archives / "no"),
        "remote": "https://127.0.0.1:9/bundle.tar.gz",
        "unknown": "nothing-like-it://x",
    }
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda p, *a, **k: (opened.append(str(p)), real(p, *a, **k))[1])
    before = place.photograph()
    opened.clear()
    for run in (clone, verify):
        arguments = (refs[ref], place.dest) if run is clone else (refs[ref],)
        with pytest.raises(DigestSpellingError) as caught:
            run(*arguments, expect_sha256=MISSPELT[spelling])
        assert caught.value.exit_code == 2
        assert_one_line(caught.value)
        assert len(caught.value.message) < 300
    assert not [name for name in opened if str(place.root) in name]
    assert place.photograph() == before


@pytest.mark.parametrize("spelling", ["upper-case", "newline", "63", "empty", "escape", "full-width", "prefix-16"])
def test_the_command_says_how_a_digest_is_spelt(place, spelling):
    path = place.put(PACKED)
    done = ari("clone", path, place.dest, f"--expect-sha256={MISSPELT[spelling]}".encode())
    assert "64" in done.stderr.decode()
    assert_one_error(done, 2)
    assert not place.dest.exists()


def test_the_digest_in_its_one_spelling_is_accepted(place):
    clone(str(place.put(PACKED)), place.dest, expect_sha256=RIGHT)
    assert tree(place.dest).keys() == {MANIFEST, *HONEST}


@pytest.mark.parametrize("shape", ["first", "last", "tar", "folder"])
@pytest.mark.parametrize("given", ["other", "manifest", "archive", "one-digit"])
def test_a_digest_of_something_else_is_refused_and_named(place, shape, given):
    data = {"first": PACKED, "last": bundle(HONEST, position=-1), "tar": PLAIN, "folder": PACKED}[shape]
    path = place.put(data)
    digests = {
        "other": bundle_digest({}),
        "manifest": hashlib.sha256(manifest(HONEST)).hexdigest(),
        "archive": hashlib.sha256(data).hexdigest(),
        "one-digit": RIGHT[:-1] + ("0" if RIGHT[-1] != "0" else "1"),
    }
    if shape == "folder":
        clone(str(path), place.archives / "unpacked")
        path = place.archives / "unpacked"
    error = assert_refused(place, path, digests[given], kind=DigestMismatchError)
    assert error.exit_code == 1
    assert digests[given] in error.message
    assert RIGHT in error.message
    says = f"{error.message} {error.hint}"
    assert ("SHA-256 of the archive" in says) == (given == "archive" and shape != "folder")
    assert (f"SHA-256 of {MANIFEST}" in says) == (given == "manifest")
    result = verify(str(path), expect_sha256=digests[given])
    assert not result.ok
    assert result.bundle_sha256 == RIGHT
    assert [problem.kind for problem in result.problems] == ["digest"]


@pytest.mark.parametrize(
    "other",
    [
        bundle({**HONEST, "a.txt": b"ALPHA\n"}, position=-1),
        bundle(HONEST, position=1),
        gzip(PLAIN, level=0),
        b"",
        gzip(A + member(MANIFEST, manifest(HONEST)) + member("../x", X) + Z + END),
    ],
    ids=["contents", "order", "level", "empty", "hostile"],
)
def test_an_archive_that_changes_between_its_two_readings_is_refused(place, other):
    path = place.put(bundle(HONEST, position=-1))
    size = path.stat().st_size
    swapped = place.put(other, "other")

    def progress(_what, done, _total):
        if done == size and swapped.exists():
            swapped.replace(path)

    error = assert_refused(place, path, RIGHT, progress=progress)
    assert not swapped.exists()
    assert error.exit_code == 1


def test_nothing_of_another_bundle_is_ever_written(place, monkeypatch):
    """Not even to staging: who asks for one bundle must not get another one's bytes on the disk."""
    path = place.put(PACKED)
    written = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (written.append(bytes(data)), real(fd, data))[1])
    assert_refused(place, path, bundle_digest({}), kind=DigestMismatchError)
    assert not any(b"alpha" in data or b"omega" in data for data in written)


def test_the_same_files_packed_otherwise_are_the_same_bundle(place):
    files = {**HONEST, "d/x": X, "ü/" + "n" * 120: b"long\n"}
    other = dict(reversed(files.items()))
    packed = with_listed(b"".join(pax_member(p, d) for p, d in files.items()), files)
    plain_gnu = (
        folder("./", magic=GNU)
        + b"".join(gnu_member(f"./{p}", d, mtime=1, uid=5) for p, d in other.items())
        + member(f"./{MANIFEST}", manifest(files), magic=GNU)
        + END
    )
    archives = {
        "pax": packed,
        "gnu": plain_gnu,
        "gnu-gz": gzip(plain_gnu, level=9, flags=FNAME, extra=b"x.tar\0", mtime=7),
        "top-folder": gzip(
            b"".join(pax_member(f"top/{p}", d) for p, d in {**other, MANIFEST: manifest(other)}.items()) + END,
            level=1,
        ),
    }
    digests, ids = set(), set()
    for name, data in archives.items():
        result = clone(str(place.put(data, name)), place.dest, expect_sha256=bundle_digest(files))
        digests.add(result.bundle_sha256)
        ids.add(result.archive_sha256)
        found = {n: d for n, (d, _) in tree(place.dest).items() if n != MANIFEST}
        assert found == files
        shutil.rmtree(place.dest)
    assert digests == {bundle_digest(files)}
    assert len(ids) == len(archives)


def test_the_corpus_covers_every_row_that_refuses():
    rows = {case.row for case in CASES}
    assert rows == {
        *("P1", "P2", "P3", "P4", "P5", "L1", "L2", "L3", "T1", "T2", "T3", "T4"),
        *(f"X{n}" for n in range(1, 10)),
        *("S1", "S3", "S4", "S5", "S6", "S7", "R1", "N1", "N4", "N6"),
        *("M1", "M2", "M3", "M4", "M5", "M6", "J1", "J2", "J3"),
    }
    assert digest_of(entries(HONEST)) == RIGHT
    assert SHAPES
