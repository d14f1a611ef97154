"""What is accepted here, GNU tar and Python's tarfile read the same way: names, sizes and contents.

`ARI_FUZZ_COUNT=1000000 pytest --long tests/core/test_differential.py` is the long run.
"""

import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.archives import (
    END,
    MANIFEST,
    bundle_digest,
    gzip,
    manifest,
    member,
)
from support.corpus import CASES, HONEST
from support.fuzz import (
    JSON,
    KEYS,
    PATHS,
    TREES,
    UnreadableError,
    archives,
    by_tarfile,
    damaged,
    mutations,
    plain_name,
)
from support.places import deadline

from ari_core.errors import AriError, VerificationError
from ari_core.fs import TreeWriter
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.names import unsafe_reason
from ari_core.verification import check_archive

LONG_COUNT = int(os.environ.get("ARI_FUZZ_COUNT", "100000"))  # read here: fixtures clear the environment
LISTING = re.compile(rb"([-d])\S{9} \d+/\d+ +(\d+) ")


class Bytes:
    name = "memory"

    def __init__(self, data):
        self.data, self.size = data, len(data)

    @contextmanager
    def open(self):
        yield io.BytesIO(self.data)


def assert_printable(error):
    assert error.message.isprintable(), ascii(error.message)


def check(data):
    """Returns the files of an archive that is accepted, or None; anything but a refusal fails."""
    try:
        report = check_archive(Bytes(data), limits=Limits())
    except VerificationError as error:
        assert_printable(error)
        return None
    return {entry.path: entry.size for entry in report.manifest.files}


# -- the two other readers ----------------------------------------------------------------------------------------


def gnu_tar(tar, *options):
    done = subprocess.run(
        ["tar", *options, "--numeric-owner", "--quoting-style=literal", "-f", "-"],
        input=tar,
        capture_output=True,
        timeout=20,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    )
    if done.returncode:
        raise UnreadableError(done.stderr.decode(errors="replace"))
    return done


def by_gnu_tar(tar):
    """What GNU tar lists: pairs of name and size (None: a directory), and the contents of all files in a row."""
    unpacked = gnu_tar(tar, "-xvO")
    names = [
        plain_name(line.decode()) for line in unpacked.stderr.split(b"\n")[:-1] if not line.startswith(b"tar: ")
    ]
    sizes = [LISTING.match(line).groups() for line in gnu_tar(tar, "-tv").stdout.split(b"\n")[:-1]]
    found = [(name, None if kind == b"d" else int(size)) for name, (kind, size) in zip(names, sizes, strict=True)]
    return found, unpacked.stdout


def assert_read_alike(tar, files):
    """Both other readers must see exactly `files` (path to contents or size) and the manifest, each once."""
    sizes = {path: data if isinstance(data, int) else len(data) for path, data in files.items()}
    theirs = [(name, data) for name, data in by_tarfile(tar) if data is not None]
    assert len(dict(theirs)) == len(theirs)
    held = dict(theirs)
    top = next(name for name in held if name.rpartition("/")[2] == MANIFEST and name.count("/") <= 1)
    top = "" if MANIFEST in held else top.removesuffix(MANIFEST)
    assert all(name.startswith(top) for name in held)
    held = {name.removeprefix(top): data for name, data in held.items()}
    del held[MANIFEST]
    assert {name: len(data) for name, data in held.items()} == sizes
    for path, data in files.items():
        assert isinstance(data, int) or held[path] == data

    listed, contents = by_gnu_tar(tar)
    assert [(name, size) for name, size in listed if size is not None] == [(n, len(d)) for n, d in theirs]
    assert contents == b"".join(data for _, data in theirs)


# -- whatever the corpus holds ------------------------------------------------------------------------------------


@pytest.mark.needs("tar")
def test_the_corpus_is_what_the_other_readers_disagree_about():
    """Not a test of ours, but of the corpus: were the two readers enough, much of it would be harmless."""
    silent = 0
    for case in CASES:
        if case.big or case.whole:
            continue
        tar = case.archive("tar")
        try:
            theirs = by_tarfile(tar)
        except UnreadableError:
            continue
        silent += bool(theirs)
    assert silent > 300


# -- round trips --------------------------------------------------------------------------------------------------

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(archives())
def test_every_way_to_pack_a_tree_is_accepted(packed):
    files, tar = packed
    for data in (tar, gzip(tar)):
        report = check_archive(Bytes(data), limits=Limits())
        assert report.bundle_sha256 == bundle_digest(files)
        assert not report.problems
        assert {entry.path: entry.size for entry in report.manifest.files} == {p: len(d) for p, d in files.items()}


@SLOW
@given(archives())
@pytest.mark.needs("tar")
def test_every_way_to_pack_a_tree_is_read_alike_by_others(packed):
    files, tar = packed
    assert_read_alike(tar, files)


@SLOW
@given(TREES)
@example({"A": b"1", "a": b"2"})
def test_a_tree_comes_back_as_it_was(tmp_path_factory, files):
    """Packed by our own writer, read by tarfile, checked and unpacked again."""
    from ari_core.bundle.writer import write_bundle

    work = tmp_path_factory.mktemp("trip")
    (work / "tree").mkdir()
    fd = os.open(work / "tree", os.O_RDONLY)
    with TreeWriter(fd) as writer:
        for path, data in files.items():
            created = writer.create(path, executable=bool(len(data) % 2))
            os.write(created, data)
            os.close(created)
    os.close(fd)
    made = parse_manifest(manifest(files), Limits())
    with (work / "b.tar.gz").open("w+b") as out:
        write_bundle(work / "tree", made, out.fileno())
        out.seek(0)
        packed = out.read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames() == [MANIFEST, *sorted(files)]
        assert {i.name: archive.extractfile(i).read() for i in archive if i.name != MANIFEST} == files
    (work / "again").mkdir()
    fd = os.open(work / "again", os.O_RDONLY)
    with TreeWriter(fd) as writer:
        report = check_archive(Bytes(packed), limits=Limits(), sink=writer)
    os.close(fd)
    assert report.bundle_sha256 == bundle_digest(files)
    for path, data in files.items():
        assert (work / "again" / path).read_bytes() == data
        assert os.access(work / "again" / path, os.X_OK) == bool(len(data) % 2)


# -- manifests ----------------------------------------------------------------------------------------------------


@MANY
@given(st.binary(max_size=300) | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_bytes_as_a_manifest_are_refused_by_our_own_error(raw):
    with pytest.raises(VerificationError) as caught:
        parse_manifest(raw, Limits())
    assert caught.value.message.isprintable()


@MANY
@given(st.sampled_from(KEYS), JSON)
def test_any_value_in_a_manifest_is_refused_or_means_the_same(key, value):
    data = json.loads(manifest(HONEST))
    target = data if key in data else data["files"][0]
    target[key] = value
    try:
        made = parse_manifest(json.dumps(data).encode(), Limits())
    except VerificationError as error:
        assert_printable(error)
    else:
        assert made.bundle_sha256 == bundle_digest(HONEST)
        assert {entry.path for entry in made.files} == set(HONEST)


@MANY
@given(st.text(max_size=30) | PATHS)
def test_a_name_is_refused_or_stays_below_the_folder(tmp_path_factory, name):
    if unsafe_reason(name, Limits()) is None:
        assert name == os.path.normpath(name)
        assert not name.startswith(("/", "../"))
        assert name not in {"", ".", ".."}
        assert name.encode().decode().isprintable() or all(not 0 <= ord(c) < 32 for c in name)


# -- the fuzzer ---------------------------------------------------------------------------------------------------


def fuzz(count, seed):
    """Runs `count` mutations and returns how many were accepted; each of those is compared with both readers."""
    accepted = 0
    for number, files, tar in mutations(count, seed):
        try:
            with deadline(10):
                ours = check(tar)
        except BaseException as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {error!r}") from error
        if ours is None:
            continue
        accepted += 1
        try:
            assert ours == {path: len(data) for path, data in files.items()}
            assert_read_alike(tar, files)
        except (AssertionError, UnreadableError, AriError) as error:
            raise AssertionError(f"mutation {number} of seed {seed}: read otherwise") from error
    return accepted


@pytest.mark.needs("tar")
def test_damaged_archives_are_refused_or_read_alike():
    accepted = fuzz(1500, seed=20_261_123)
    assert accepted > 50  # else this checks next to nothing


@pytest.mark.long
@pytest.mark.needs("tar")
def test_very_many_damaged_archives_are_refused_or_read_alike(capsys):
    seed = random.SystemRandom().randrange(1 << 32)
    accepted = fuzz(LONG_COUNT, seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{LONG_COUNT} mutations of seed {seed}, {accepted} accepted, all read alike\n")
    assert accepted > LONG_COUNT / 50


@pytest.mark.parametrize("count", [1000, pytest.param(30_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("pack", [gzip, lambda tar: gzip(tar, level=0)], ids=["packed", "stored"])
def test_damaged_gzip_streams_are_refused(pack, count):
    """Damage anywhere in the compressed bytes never gives other files."""
    tar = member(MANIFEST, manifest(HONEST)) + b"".join(member(p, d) for p, d in HONEST.items()) + END
    packed = pack(tar)
    whole = {path: len(data) for path, data in HONEST.items()}
    for raw in damaged(packed, count, seed=7):
        assert check(raw) in (None, whole)
