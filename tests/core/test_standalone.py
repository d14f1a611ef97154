"""The verifier in one file never accepts what `ari verify` refuses, and accepts every honest bundle."""

import ast
import base64
import gzip as standard_gzip
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from importlib.resources import files as resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archives import (
    BLOCK,
    END,
    FNAME,
    GNU,
    MANIFEST,
    base256,
    bundle,
    bundle_digest,
    digest_of,
    entries,
    gzip,
    header,
    manifest,
    manifest_of,
    member,
    members,
    pax,
    pax_member,
    plain_bundle,
)
from support.bundles import make_bundle, make_tree
from support.corpus import CASES, CHARACTERS, HONEST
from support.fuzz import JSON, KEYS, PATHS, archives, damaged, mutations
from support.programs import require

from ari_core import names, verify
from ari_core.bundle.writer import header as written_header
from ari_core.errors import AriError
from ari_core.limits import Limits
from ari_core.manifest import MAX_SIZE
from ari_core.verification import check_archive, check_tree

ROOT = Path(__file__).parents[2]
PROGRAM = Path(str(resources("ari_core"))) / "standalone" / "verify_bundle.py"
DATA = ROOT / "tests" / "data" / "existing"
LONG_COUNT = int(os.environ.get("ARI_FUZZ_COUNT", "100000"))  # read here: fixtures clear the environment
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
DIGEST = bundle_digest(HONEST)
FIRST = member(MANIFEST, manifest(HONEST))
REFUSALS = (ValueError, RecursionError, zlib.error)  # what the program's `main` takes for a no

spec = importlib.util.spec_from_file_location("verify_bundle", PROGRAM)
standalone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(standalone)


class Given:
    """A file as something to read from."""

    def __init__(self, path):
        self.name, self.size = str(path), path.stat().st_size

    def open(self):
        return Path(self.name).open("rb")


def refusal(path, digest):
    """Returns the verifier's reason to refuse, or None."""
    try:
        standalone.verify(str(path), digest)
    except REFUSALS as error:
        reason = str(error)
    else:
        return None
    assert reason.isprintable()
    assert reason.isascii()
    return reason


def refused_by_ari(path, digest):
    """The same by the verification that `ari verify` uses."""
    try:
        if path.is_dir():
            report = check_tree(path, limits=Limits())
        else:
            report = check_archive(Given(path), limits=Limits())
        report.require_digest(digest)
    except AriError as error:
        return error.message
    return None


def put(folder, data):
    path = folder / "archive"
    path.write_bytes(data)
    return path


def packed(raw, files=HONEST):
    """An archive of these files with that manifest."""
    return member(MANIFEST, raw) + members(files) + END


# -- what it must refuse ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", sorted({case.row for case in CASES}))
def test_no_hostile_archive_is_accepted(tmp_path, row):
    for case in CASES:
        if case.row == row and not case.big:
            for shape in case.shapes:
                assert refusal(put(tmp_path, case.archive(shape)), case.expected), f"{case} {shape}"


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if str(case) in {"R1-double-gzip", "R1-zeros"} else pytest.mark.long)
        for case in CASES
        if case.big
    ],
    ids=str,
)
def test_a_bomb_is_refused_within_little_memory(tmp_path, case):
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    path = put(tmp_path, case.archive())
    arguments = [sys.executable, "-I", "-c", program, PROGRAM, path, case.expected]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch("no: .+\n", done.stdout)


def assert_never_weaker(path, digest):
    """Accepted here means accepted by ari; returns whether both accept, or None if only ari does."""
    here, there = refusal(path, digest), refused_by_ari(path, digest)
    assert here or not there, there
    return None if here and not there else not here


def fuzz(folder, count, seed):
    """Returns how many damaged archives both accept, and how many only `ari verify` does."""
    both = only = 0
    for number, files, tar in mutations(count, seed):
        try:
            found = assert_never_weaker(put(folder, tar), bundle_digest(files))
        except AssertionError as error:
            raise AssertionError(
                f"mutation {number} of seed {seed}: only the standalone verifier accepts"
            ) from error
        both += found is True
        only += found is None
    return both, only


def test_no_damaged_archive_is_accepted_that_ari_refuses(tmp_path):
    both, only = fuzz(tmp_path, 1500, seed=20_261_123)
    assert both > 50  # else this checks next to nothing
    assert only < both / 4


@pytest.mark.long
def test_of_very_many_damaged_archives_none_is_accepted_that_ari_refuses(tmp_path, capsys):
    seed = int.from_bytes(os.urandom(4))
    both, only = fuzz(tmp_path, LONG_COUNT, seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{LONG_COUNT} mutations of seed {seed}: {both} accepted by both, {only} by ari only\n")
    assert both > LONG_COUNT / 50


@pytest.mark.parametrize("count", [300, pytest.param(30_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("level", [0, 6])
def test_no_damaged_gzip_stream_is_accepted_that_ari_refuses(tmp_path, level, count):
    """zlib unpacks here, ISA-L there."""
    for raw in damaged(gzip(plain_bundle(HONEST), level=level), count, seed=11):
        assert_never_weaker(put(tmp_path, raw), DIGEST)


@pytest.mark.parametrize("shape", ["gzip", "tar"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, shape):
    whole = bundle(HONEST) if shape == "gzip" else plain_bundle(HONEST)
    cuts = range(len(whole)) if shape == "gzip" else range(0, len(whole), 64)
    for length in cuts:
        assert refusal(put(tmp_path, whole[:length]), DIGEST), length


@MANY
@given(st.sampled_from(KEYS), JSON)
def test_no_odd_manifest_is_accepted_that_ari_refuses(tmp_path_factory, key, value):
    data = json.loads(manifest(HONEST))
    target = data if key in data else data["files"][0]
    target[key] = value
    path = put(tmp_path_factory.getbasetemp(), packed(json.dumps(data).encode()))
    assert_never_weaker(path, DIGEST)


@MANY
@given(st.text(max_size=30) | PATHS | st.sampled_from(list(CHARACTERS.values())))
def test_a_name_is_unsafe_where_it_is_for_ari(name):
    assert standalone.unsafe(name) is (names.unsafe_reason(name, Limits()) is not None)


def test_the_same_characters_are_forbidden_as_by_ari():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert standalone.FORBIDDEN.findall(everything) == sorted([*names._FORBIDDEN.findall(everything), "\\"])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a:b",
            "C:",
            "c:x",
            "C:x",
            "...",
            "a.",
            ".gitignore",
            ".git",
            "x/.GIT",
            ".git.",
            ".g\u0131t",
            ".ar\u0130",
        ),
        *(
            ".ari",
            ".arid",
            ".ari-staging-",
            "a/.ARI-staging-x/b",
            ".ari-staging",
            "a/",
            "/a",
            "a//b",
            "",
            ".",
            "a/..",
        ),
        *(
            "n" * 255,
            "n" * 256,
            "é" * 128,
            "/".join("d" * 64),
            "/".join("d" * 65),
            "/".join(["d" * 255] * 16),
            " ",
        ),
        *(
            "/".join(["d" * 255] * 15 + ["e" * 254] + ["f"]),
            "\u017f",
            "\u212a",
            "a\u200bb",
            "\U0001ffff",
            "~",
            "-",
        ),
    ],
    ids=ascii,
)
def test_a_name_at_the_edge_is_judged_as_by_ari(name):
    assert standalone.unsafe(name) is (names.unsafe_reason(name, Limits()) is not None)


def test_its_limits_are_those_of_ari():
    limits = Limits()
    assert limits.files == standalone.MOST_FILES
    assert limits.manifest_bytes == standalone.LARGEST_MANIFEST
    assert limits.pax_bytes == standalone.LARGEST_EXTENSION
    assert MAX_SIZE == standalone.LARGEST_FILE


NINE = {f"{n}/{n}/f": b"" for n in range(9)}  # in 18 folders


@pytest.mark.parametrize(
    ("limit", "least", "archive"),
    [
        ("MOST_FILES", 18, plain_bundle(NINE)),
        ("LARGEST_MANIFEST", len(manifest(NINE)), plain_bundle(NINE)),
        ("LARGEST_EXTENSION", 14, member(MANIFEST, manifest(NINE)) + b"".join(map(pax_member, NINE)) + END),
        ("LARGEST_PADDING", 512, plain_bundle(NINE) + bytes(BLOCK)),
    ],
)
def test_what_is_over_a_limit_is_refused(tmp_path, monkeypatch, limit, least, archive):
    path = put(tmp_path, archive)
    for value, refused in ((least, False), (least - 1, True)):
        monkeypatch.setattr(standalone, limit, value)
        assert bool(refusal(path, bundle_digest(NINE))) is refused


def test_more_files_or_values_than_the_limit_are_refused(tmp_path, monkeypatch):
    values = ",".join("0" * 900_000)
    many = manifest(HONEST).replace(b'"version"', f'"more": [{values}], "version"'.encode(), 1)
    assert "too much" in refusal(put(tmp_path, packed(many)), DIGEST)
    monkeypatch.setattr(standalone, "MOST_FILES", 1)
    assert "too many files" in refusal(put(tmp_path, plain_bundle(HONEST)), DIGEST)
    assert "too many files" in refusal(put(tmp_path, plain_bundle(HONEST, position=-1)), DIGEST)


BELOW = {"d/x": b"a header and a block"}
TWICE = [*entries(HONEST), *entries(HONEST)[:1]]


@pytest.mark.parametrize(
    ("archive", "digest"),
    [
        (packed(manifest_of(TWICE)), digest_of(TWICE)),
        (
            member(MANIFEST, manifest(BELOW)) + header("d/", 1024, b"5") + members(BELOW) + END,
            bundle_digest(BELOW),
        ),
        (plain_bundle(HONEST) + bytes(100), DIGEST),
        (plain_bundle(HONEST) + bytes(2 << 20), DIGEST),
    ],
    ids=["listed-twice", "folder-around-files", "part-of-a-block", "long-end"],
)
def test_what_one_rule_alone_keeps_out_is_refused(tmp_path, archive, digest):
    path = put(tmp_path, archive)
    assert refused_by_ari(path, digest)
    assert refusal(path, digest)


# -- what it must accept ------------------------------------------------------------------------------------------


@FEW
@given(archives())
def test_every_way_to_pack_a_tree_is_accepted(tmp_path_factory, made):
    files, tar = made
    for data in (tar, gzip(tar), gzip(tar, flags=FNAME, extra=b"name.tar\0", mtime=7)):
        assert refusal(put(tmp_path_factory.getbasetemp(), data), bundle_digest(files)) is None


def test_what_is_written_here_is_accepted(tmp_path):
    files = {
        **{f"data/{size}": b"x" * size for size in (0, 1, 511, 512, 513, 300_000)},
        "data/noise": os.urandom(300_000),
        "data/manifest.lock": b"a file like any other",
        "Zürich/日本語/😀 \u0301": b"names that need pax",
        "n" * 100: b"",
        "p" * 150 + "/" + "n" * 100: b"a prefix",
        "/".join(["d" * 255] * 14): b"long",
        "/".join("d" * 64): b"deep",
        'a "b" <c>:d?': b"unportable",
        "a:b": b"",
    }
    made = make_bundle(tmp_path / "b.tar.gz", files, {"license": "MIT"})
    assert refusal(tmp_path / "b.tar.gz", made.bundle_sha256) is None
    assert refusal(tmp_path / "b.tar.gz.tree", made.bundle_sha256) is None
    (tmp_path / "b.tar").write_bytes(standard_gzip.decompress((tmp_path / "b.tar.gz").read_bytes()))
    assert refusal(tmp_path / "b.tar", made.bundle_sha256) is None
    assert made.bundle_sha256 in refusal(tmp_path / "b.tar.gz", DIGEST)
    none = make_bundle(tmp_path / "none.tar.gz", {})
    assert refusal(tmp_path / "none.tar.gz", none.bundle_sha256) is None


@pytest.mark.parametrize(
    "start",
    [
        written_header("big", 8 << 30, executable=False),
        header("big", base256(8 << 30, 12), magic=GNU),
        pax(("size", str(8 << 30))) + header("big", b"77777777777\0"),
    ],
    ids=["ours", "gnu", "others"],
)
def test_a_file_of_8_gib_is_read_whatever_its_header_looks_like(start):
    """The header alone: the contents stay away."""
    found = []

    class Contents:
        def add_file(self, path, size, stream):
            found.append((path, size))
            raise standalone.No

    with pytest.raises(standalone.No):
        standalone.read_tar(io.BytesIO(start), Contents())
    assert found == [("big", 8 << 30)]


def test_every_golden_vector_is_accepted(tmp_path):
    vectors = json.loads((Path(__file__).parent / "vectors" / "curation.json").read_bytes())
    assert vectors
    for vector in vectors:
        wanted = vector["expect"]
        if "bundle_sha256" not in wanted:
            continue
        path = tmp_path / f"{vector['name']}.tar.gz"
        make_bundle(path, {name: base64.b64decode(vector["files"][name]) for name in wanted["included"]})
        assert refusal(path, wanted["bundle_sha256"]) is None


def test_every_bundle_of_the_existing_tool_is_accepted(tmp_path):
    digest = "3d837f52c9aabac49b31d49120e62e31e18a2a2df60452e9943684f480ef146d"
    assert refusal(DATA / "bundle.tar.gz", digest) is None
    artifacts = json.loads((DATA / "registry-data.json").read_bytes())["artifacts"]
    with tarfile.open(DATA / "registry-data.tar.gz") as data:
        for name, artifact in artifacts.items():
            held = data.extractfile(f"registry-data/artifacts/{name}/bundle.tar.gz").read()
            assert refusal(put(tmp_path, held), artifact["bundle_sha256"]) is None
    assert len(artifacts) == 4


LONG = {**HONEST, "run.sh": b"true\n", "é" * 60: b"long", "d" * 90 + "/" + "e" * 99: b"longer"}
REPACKED = {
    "gnu": ("tar", "-czf", "{out}", "."),
    "gnu-pax": ("tar", "--format=pax", "-czf", "{out}", "."),
    "gnu-top-folder": ("tar", "-C", "..", "-czf", "{out}", "top"),
    "gnu-large-owner": ("tar", "--owner=:4000000000", "--group=:3000000", "-czf", "{out}", "."),
    "gnu-blocks": ("tar", "-b", "2000", "-cf", "{out}", "."),
    "bsd": ("bsdtar", "-czf", "{out}", "."),
    "bsd-gnu": ("bsdtar", "--format=gnutar", "-czf", "{out}", "."),
    "bsd-pax": ("bsdtar", "--format=pax", "-C", "..", "-czf", "{out}", "./top"),
    "7-zip-pax": ("7z", "a", "-ttar", "-mm=pax", "{out}", "."),
    "7-zip-gnu": ("7z", "a", "-ttar", "-mm=gnu", "{out}", "."),
    "python": (sys.executable, "-m", "tarfile", "-c", "{out}", *LONG, MANIFEST),
}


@pytest.mark.parametrize("packer", REPACKED)
def test_what_common_programs_repack_is_accepted(tmp_path, packer):
    program, *arguments = REPACKED[packer]
    require(program)
    make_tree(tmp_path / "top", LONG)
    os.utime(tmp_path / "top" / "a.txt", ns=(1, -315_619_199_500_000_000))  # 1960, and half a second
    (tmp_path / "made").mkdir()
    out = tmp_path / "made" / ("b.tar.gz" if "-czf" in arguments else "b.tar")
    command = [program, *(str(out) if word == "{out}" else word for word in arguments)]
    subprocess.run(command, cwd=tmp_path / "top", check=True, capture_output=True, timeout=60)
    assert refusal(out, bundle_digest(LONG)) is None


# -- what only `ari verify` accepts, as docs/verify-in-2046.md lists it -------------------------------------------

A, Z = (member(*file) for file in HONEST.items())
NAMED = pax(("path", "a.txt"))


def with_more(value):
    """An archive whose manifest has a key that nobody knows."""
    return packed(manifest(HONEST).replace(b'"version"', f'"more": {value}, "version"'.encode(), 1))


STRICTER = {
    "pax-owner": FIRST + pax(("uid", "1000000000")) + A + Z + END,
    "binary-owner": FIRST + member("a.txt", HONEST["a.txt"], gid=base256(0xFF00_0000, 8)) + Z + END,
    "binary-time": FIRST + member("a.txt", HONEST["a.txt"], mtime=base256(2**56, 12)) + Z + END,
    "link-in-an-extension": FIRST + header("x", 14, b"x", link="l") + NAMED[BLOCK:] + A + Z + END,
    "name-behind-a-name": FIRST + NAMED + member("b\0c", HONEST["a.txt"]) + Z + END,
    "nested": with_more("[" * 20 + "]" * 20),
    "long-number": with_more("9" * 20),
}


@pytest.mark.parametrize("name", STRICTER)
def test_some_odd_archives_are_accepted_by_ari_only(tmp_path, name):
    path = put(tmp_path, STRICTER[name])
    assert refused_by_ari(path, DIGEST) is None
    assert refusal(path, DIGEST)


@pytest.mark.parametrize(
    "archive",
    [
        FIRST + pax(("uid", "999999999")) + A + Z + END,
        FIRST
        + member("a.txt", HONEST["a.txt"], gid=base256(0xFEFF_FFFF, 8), mtime=base256(-(2**56), 12))
        + Z
        + END,
        FIRST + header("x", 14, b"x") + NAMED[BLOCK:] + member("b", HONEST["a.txt"]) + Z + END,
        with_more("[" * 18 + "]" * 18),
        with_more("-9223372036854775808"),
    ],
    ids=["owner", "numbers", "name", "nested", "number"],
)
def test_what_is_just_not_so_odd_is_accepted_by_both(tmp_path, archive):
    assert assert_never_weaker(put(tmp_path, archive), DIGEST)


# -- folders ------------------------------------------------------------------------------------------------------


def remove(top):
    (top / "a.txt").unlink()


def change(top):
    (top / "a.txt").write_bytes(b"Alpha\n")


def add_file(top):
    (top / "extra").touch()


def add_folder(top):
    (top / "empty").mkdir()


def link_a_file(top):
    (top / "a.txt").rename(top.parent / "abc")
    (top / "a.txt").symlink_to("../abc")  # as long as the file


def link_a_folder(top):
    (top / "d").rename(top.parent / "d")
    (top / "d").symlink_to("../d")


def link_the_manifest(top):
    (top / MANIFEST).rename(top.parent / MANIFEST)
    (top / MANIFEST).symlink_to(f"../{MANIFEST}")


def pipe(top):
    (top / "a.txt").unlink()
    os.mkfifo(top / "a.txt")


def no_manifest(top):
    (top / MANIFEST).unlink()


def below(top):
    """The bundle is one folder further down."""
    top.rename(top.parent / "below")
    top.mkdir()
    (top.parent / "below").rename(top / "below")


def undecodable(top):
    (Path(os.fsdecode(os.fsencode(top) + b"/\xff"))).touch()


def manifest_is_a_folder(top):
    (top / MANIFEST).unlink()
    (top / MANIFEST).mkdir()


def the_bundle_is_its_manifest(top):
    """All of it lies in a folder that is called as the manifest is."""
    top.rename(top.parent / "whole")
    top.mkdir()
    (top.parent / "whole").rename(top / MANIFEST)


DAMAGE = [
    *(
        remove,
        change,
        add_file,
        add_folder,
        link_a_file,
        link_a_folder,
        link_the_manifest,
        pipe,
        no_manifest,
        below,
    ),
    *(undecodable, manifest_is_a_folder, the_bundle_is_its_manifest),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_refused(tmp_path, damage):
    made = make_tree(tmp_path / "top", {**HONEST, "d/e": b"x"})
    damage(tmp_path / "top")
    assert refused_by_ari(tmp_path / "top", made.bundle_sha256)
    assert refusal(tmp_path / "top", made.bundle_sha256)


@pytest.mark.parametrize("others", [(), ("bundle.tar.gz",), ("bundle.tar.gz", "meta.json")], ids=len)
def test_a_folder_with_a_folder_for_a_manifest_is_refused_whatever_lies_beside(tmp_path, others):
    """Not by `check_tree` alone: `ari verify` could also take the folder for a store's."""
    top = tmp_path / "artifacts" / "0123456789abcdef"
    (top / MANIFEST).mkdir(parents=True)
    (top / MANIFEST / "unseen").touch()
    for name in others:
        (top / name).write_bytes(bundle(HONEST))
    assert not verify(str(top), expect_sha256=DIGEST).ok
    assert refusal(top, DIGEST)


STORES = ("bundle.tar.gz", "meta.json", "bundle-0123456789abcdef.tar.gz")


@pytest.mark.parametrize(
    ("files", "given"),
    [
        *(
            ((*names, *more), "")
            for names in (STORES[:1], STORES[1:2], STORES[:2], STORES)
            for more in ((), ("a",))
        ),
        *((("publish_record.json", inner), f"/{MANIFEST}") for inner in ("ear/x", "ear_published/x")),
    ],
)
def test_a_whole_folder_is_accepted_by_ari_whatever_its_files_are_called(tmp_path, files, given):
    top = tmp_path / "artifacts" / "0123456789abcdef"
    made = make_tree(top, dict.fromkeys(files, bundle(HONEST)))
    assert refusal(top, made.bundle_sha256) is None
    assert verify(f"{top}{given}", expect_sha256=made.bundle_sha256).ok


def test_a_whole_folder_is_accepted_also_through_a_link(tmp_path):
    made = make_tree(tmp_path / "top", {**HONEST, "d/manifest.lock": b"x", "A/first": b""})
    (tmp_path / "link").symlink_to("top")
    for name in ("top", "link", "top/"):
        assert refusal(f"{tmp_path}/{name}", made.bundle_sha256) is None


# -- the program itself -------------------------------------------------------------------------------------------


def run(*arguments, python=sys.executable, program=PROGRAM):
    command = [python, "-I", "-W", "error", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_answer_is_one_line_and_an_exit_status(tmp_path):
    path = put(tmp_path, bundle(HONEST))
    done = run(path, DIGEST)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"yes: the bundle {DIGEST}, all of its 2 files and nothing else\n"
    evil = put(tmp_path, packed(manifest({"a\x1b[31m\u202e": b""})))
    for place, digest in ((evil, DIGEST), (put(tmp_path, b""), DIGEST), (put(tmp_path, b"\x1f\x8b"), DIGEST)):
        done = run(place, digest)
        assert (done.returncode, done.stderr) == (1, "")
        assert re.fullmatch(r"no: [ -~]+\n", done.stdout)
    hidden = put(tmp_path, FIRST + member(b"a\xe2\x80\xae\x1b[31m", b"x") + END)
    assert re.fullmatch(r"no: [ -~]+\n", run(hidden, DIGEST).stdout)


@pytest.mark.parametrize(
    "digest",
    ["", DIGEST.upper(), DIGEST[:-1], DIGEST + "0", DIGEST + "\n", " " + DIGEST, "sha256:" + DIGEST, DIGEST[:16]],
    ids=ascii,
)
def test_another_spelling_of_the_digest_is_no_question(tmp_path, digest):
    done = run(put(tmp_path, bundle(HONEST)), digest)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


def test_what_cannot_be_read_is_no_answer(tmp_path):
    for arguments in ((), (tmp_path,), (tmp_path, DIGEST, "more"), (tmp_path / "nothing\n", DIGEST)):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"(usage|no answer): [ -~]+\n", done.stderr)


def test_it_needs_nothing_but_the_standard_library_of_python_3_8():
    source = PROGRAM.read_text(encoding="ascii")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module != "__future__"  # what is deprecated goes one day
            imported.add(node.module)
    assert imported <= sys.stdlib_module_names


OTHERS = Path.home() / ".pyenv" / "versions"  # looked up here: fixtures change the home folder


@pytest.mark.parametrize("minor", range(8, 16))
def test_every_python_from_3_8_on_gives_the_same_answers(tmp_path, minor):
    found = [*OTHERS.glob(f"3.{minor}.*/bin/python3"), shutil.which(f"python3.{minor}")]
    if not (python := found[0]):
        pytest.skip(f"there is no Python 3.{minor}")
    cases = list({case.row: case for case in CASES if not case.big}.values())
    cases += [case for case in CASES if case.row in {"J1", "J2", "J3", "S4"}]
    expected = []
    for number, case in enumerate(cases):
        (tmp_path / str(number)).write_bytes(case.archive())
        expected.append([str(tmp_path / str(number)), case.expected, 1])
    digest = make_bundle(tmp_path / "ours.tar.gz", LONG).bundle_sha256
    expected += [[str(tmp_path / name), digest, 0] for name in ("ours.tar.gz", "ours.tar.gz.tree")]
    (tmp_path / "last.tar").write_bytes(plain_bundle(HONEST, position=-1))
    expected.append([str(tmp_path / "last.tar"), DIGEST, 0])
    (tmp_path / "list").write_text(json.dumps(expected))
    driver = (
        "import json, runpy, sys\n"
        "main = runpy.run_path(sys.argv[1])['main']\n"
        "for path, digest, status in json.load(open(sys.argv[2])):\n"
        "    assert main([path, digest]) == status, path\n"
    )
    command = [python, "-I", "-c", driver, PROGRAM, tmp_path / "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == len(expected)


# -- where it is --------------------------------------------------------------------------------------------------


def test_it_is_in_both_kinds_of_package_and_among_the_scripts():
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    for builder in (WheelBuilder(str(ROOT)), SdistBuilder(str(ROOT))):
        assert str(PROGRAM) in {file.path for file in builder.recurse_included_files()}
    script = ROOT / "scripts" / "verify_bundle.py"
    assert script.resolve() == PROGRAM.resolve()
    assert os.access(script, os.X_OK)
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")
