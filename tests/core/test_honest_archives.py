"""Honest copies, repacked by the programs people use: all verify, with one and the same bundle digest."""

import gzip as standard_gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.archives import MANIFEST, bundle_digest, manifest
from support.places import tree, umask

from ari_core.errors import ContentMismatchError, VerificationError
from ari_core.workflows.clone import clone
from ari_core.workflows.verify import verify

DATA = Path(__file__).parents[1] / "data"
INNER = {"a.txt": b"inside a bundle inside a bundle\n"}
LONG = "n" * 120
LONGER = "/".join(("p" * 90, "q" * 90, "r" * 90, "s.txt"))


def contents(size):
    return random.Random(size).randbytes(size)


SHORT_NAMES = {
    "README.md": b"# An experiment\n",
    "run.sh": b"#!/bin/sh\necho run\n",
    "data/empty": b"",
    **{f"data/{size}.bin": contents(size) for size in (1, 511, 512, 513, 1024, 200_000)},
    "data/zeros.bin": bytes(70_000),
    "results/Zürich/été.txt": b"ete\n",
    "results/日本語.csv": b"1,2\n",
    "results/😀": b"smile\n",
    "a b/c d.txt": b"spaces\n",
    # A bundle as data of another one: sorted by name its manifest comes long before our own.
    **{f"a-bundle/{path}": data for path, data in {MANIFEST: manifest(INNER), **INNER}.items()},
    "h" * 100: b"a name of exactly 100 bytes\n",
    "k" * 50 + "/" + "l" * 49: b"a path of exactly 100 bytes\n",
    "p" * 90 + "/" + "l" * 99: b"a path that needs the prefix\n",
}
FILES = {
    **SHORT_NAMES,
    f"long/{LONG}": b"a component over 100 bytes\n",
    LONGER: b"a path over 256 bytes\n",
    "ü" * 127: b"a component of 254 bytes\n",
    # Cut to 100 bytes, this name ends inside a character.
    "x" + "é" * 60: b"cut inside a character\n",
}
EXECUTABLE = "run.sh"


def lay_out(folder, files):
    """Writes an unpacked bundle as people's disks hold it: odd times and modes."""
    for path, data in {**files, MANIFEST: manifest(files)}.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(0o600)
    (folder / EXECUTABLE).chmod(0o750)
    os.utime(folder / "README.md", ns=(1, -315_619_199_500_000_000))  # 1960, and half a second
    os.utime(folder / "data" / "1.bin", ns=(1, 1_700_000_000_123_456_789))
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("honest") / "top", FILES)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Without the names that ustar cannot hold, and without times before 1970."""
    folder = lay_out(tmp_path_factory.mktemp("short") / "top", SHORT_NAMES)
    os.utime(folder / "README.md", ns=(1, 1))
    return folder


def check(archive, work, files, *, form, executables=(EXECUTABLE,)):
    """The archive verifies and unpacks to exactly these files; returns the digests of bundle and archive."""
    expected = bundle_digest(files)
    checked = verify(str(archive), expect_sha256=expected)
    assert checked.ok, checked.problems
    assert checked.form == form
    with umask(0o022):
        result = clone(str(archive), work / "dest", expect_sha256=expected)
    found = tree(work / "dest")
    shutil.rmtree(work / "dest")
    assert found.pop(MANIFEST)[0] == manifest(files)
    assert found == {path: (data, path in executables) for path, data in files.items()}
    assert result.bundle_sha256 == expected
    if archive.is_file():
        assert result.archive_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    return result.bundle_sha256, result.archive_sha256


def run(*command, cwd, **options):
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **options.pop("env", {})}
    subprocess.run(command, cwd=cwd, check=True, env=environment, capture_output=True, timeout=60, **options)


OWNERS = {
    "small": (),
    "large": ("--owner=:3000000", "--group=:3000000"),
    "largest": ("--owner=somebody:4294967294",),
}
SHAPES = {
    "dot": lambda top: (top, ["."]),
    "top-folder": lambda top: (top.parent, [top.name]),
    "dot-top-folder": lambda top: (top.parent, [f"./{top.name}"]),
    "names": lambda top: (top, sorted(os.listdir(top))),
    "reversed": lambda top: (top, sorted(os.listdir(top), reverse=True)),
    "manifest-last": lambda top: (top, [*sorted(set(os.listdir(top)) - {MANIFEST}), MANIFEST]),
    "files-only": lambda top: (top, sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())),
    "files-only-dot": lambda top: (top, sorted(f"./{p.relative_to(top)}" for p in top.rglob("*") if p.is_file())),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["ustar", "gnu", "pax"])
@pytest.mark.needs("tar", "gzip")
def test_gnu_tar(honest, short, tmp_path, kind, shape):
    top, files = (short, SHORT_NAMES) if kind == "ustar" else (honest, FILES)
    folder, names = SHAPES[shape](top)
    archive = tmp_path / "b.tar.gz"
    run("tar", f"--format={kind}", "-czf", archive, "--", *names, cwd=folder)
    check(archive, tmp_path, files, form="tar.gz")


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.needs("tar")
def test_gnu_tar_with_numbers_that_do_not_fit(honest, tmp_path, kind, owner):
    archive = tmp_path / "b.tar"
    run("tar", f"--format={kind}", *OWNERS[owner], "-cf", archive, ".", cwd=honest)
    check(archive, tmp_path, FILES, form="tar")


@pytest.mark.parametrize(
    "options",
    [
        ("--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"),
        ("--blocking-factor=1",),
        ("--blocking-factor=2000",),
        ("--mode=a+rwx",),
        ("--pax-option=delete=atime,delete=ctime", "--format=pax"),
        ("--hard-dereference", "--dereference"),
        ("--no-xattrs", "--no-acls", "--no-selinux"),
        ("--transform=s,^\\./,,",),
    ],
    ids=lambda options: options[0],
)
@pytest.mark.needs("tar")
def test_gnu_tar_with_options(honest, tmp_path, options):
    archive = tmp_path / "b.tar"
    run("tar", *options, "-cf", archive, ".", cwd=honest)
    executables = FILES if options[0] == "--mode=a+rwx" else (EXECUTABLE,)
    check(archive, tmp_path, FILES, form="tar", executables=executables)


@pytest.mark.parametrize(
    "packer", ["gzip -1", "gzip -6", "gzip -9", "gzip -n", "gzip --rsyncable", "pigz", "pigz -9", "pigz -i"]
)
@pytest.mark.parametrize("named", [True, False], ids=["name-in-header", "pipe"])
def test_packed_with(honest, tmp_path, packer, named, request):
    program = packer.split()[0]
    for tool in ("tar", program):
        request.node.add_marker(pytest.mark.needs(tool))
        if shutil.which(tool) is None:
            pytest.skip(f"needs '{tool}'")
    run("tar", "-cf", tmp_path / "b.tar", ".", cwd=honest)
    if named:
        run(*packer.split(), "b.tar", cwd=tmp_path)
    else:
        with (tmp_path / "b.tar").open("rb") as source, (tmp_path / "b.tar.gz").open("wb") as target:
            subprocess.run([*packer.split(), "-c"], stdin=source, stdout=target, check=True)
    check(tmp_path / "b.tar.gz", tmp_path, FILES, form="tar.gz")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["default", "ustar", "gnutar", "pax", "paxr"])
@pytest.mark.needs("bsdtar")
def test_bsdtar(honest, short, tmp_path, kind, shape):
    top, files = (short, SHORT_NAMES) if kind == "ustar" else (honest, FILES)
    folder, names = SHAPES[shape](top)
    archive = tmp_path / "b.tar.gz"
    options = () if kind == "default" else (f"--format={kind}",)
    run("bsdtar", *options, "-czf", archive, "--", *names, cwd=folder)
    check(archive, tmp_path, files, form="tar.gz")


@pytest.mark.parametrize("kind", ["gnutar", "pax", "paxr"])
@pytest.mark.parametrize("number", ["3000000", "2147483647"])
@pytest.mark.needs("bsdtar")
def test_bsdtar_with_numbers_that_do_not_fit(honest, tmp_path, kind, number):
    archive = tmp_path / "b.tar"
    owner = ("--uid", number, "--gid", number, "--uname", "büro")
    run("bsdtar", f"--format={kind}", *owner, "-cf", archive, ".", cwd=honest)
    check(archive, tmp_path, FILES, form="tar")


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("shape", ["dot", "top-folder", "manifest-last"])
@pytest.mark.needs("7z")
def test_7_zip(honest, tmp_path, kind, shape):
    folder, names = SHAPES[shape](honest)
    run("7z", "a", "-ttar", f"-mm={kind}", tmp_path / "b.tar", *names, cwd=folder)
    first = check(tmp_path / "b.tar", tmp_path, FILES, form="tar")
    run("7z", "a", "-tgzip", "b.tar.gz", "b.tar", cwd=tmp_path)
    second = check(tmp_path / "b.tar.gz", tmp_path, FILES, form="tar.gz")
    assert first[0] == second[0]


TARFILE_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("kind", TARFILE_FORMATS)
@pytest.mark.parametrize("top", ["", ".", "top", "./top"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_python_tarfile(honest, short, tmp_path, kind, top, mode):
    folder, files = (short, SHORT_NAMES) if kind == "ustar" else (honest, FILES)
    archive = tmp_path / "b.any"

    def owner(info):
        info.uid = 0 if kind == "ustar" else 3_000_000
        info.uname = "büro"
        info.mtime = int(info.mtime) if kind == "ustar" else info.mtime
        return info

    with tarfile.open(archive, mode, format=TARFILE_FORMATS[kind]) as packing:
        if top:
            packing.add(folder, top, filter=owner)
        else:
            for name in os.listdir(folder):
                packing.add(folder / name, name, filter=owner)
    check(archive, tmp_path, files, form="tar" if mode == "w" else "tar.gz")


def test_the_python_standard_library_as_people_use_it(honest, tmp_path):
    made = shutil.make_archive(str(tmp_path / "made"), "gztar", honest)
    check(Path(made), tmp_path, FILES, form="tar.gz")
    made = shutil.make_archive(str(tmp_path / "below"), "tar", honest.parent, honest.name)
    check(Path(made), tmp_path, FILES, form="tar")


def test_an_unpacked_folder(honest, tmp_path):
    digest, archive = check(honest, tmp_path, FILES, form="directory")
    assert digest == bundle_digest(FILES)
    assert archive is None


@pytest.mark.needs("tar", "bsdtar", "7z")
def test_unpacked_by_any_program_it_still_verifies(honest, tmp_path):
    run("tar", "--format=gnu", "-czf", tmp_path / "b.tar.gz", ".", cwd=honest)
    for name, command in {
        "tar": ("tar", "xf", "../b.tar.gz"),
        "bsdtar": ("bsdtar", "xf", "../b.tar.gz"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        run(*command, cwd=folder)
        assert verify(str(folder), expect_sha256=bundle_digest(FILES)).ok


def test_what_the_existing_tool_wrote(tmp_path):
    archive = DATA / "existing" / "bundle.tar.gz"
    expected = "3d837f52c9aabac49b31d49120e62e31e18a2a2df60452e9943684f480ef146d"
    assert verify(str(archive), expect_sha256=expected).ok
    result = clone(str(archive), tmp_path / "dest", expect_sha256=expected)
    assert result.bundle_sha256 == expected
    with tarfile.open(archive) as reading:
        held = {info.name: reading.extractfile(info).read() for info in reading if info.isfile()}
    assert {path: data for path, (data, _) in tree(tmp_path / "dest").items()} == held
    # What it unpacks to, and its plain tar, are the same bundle.
    plain = tmp_path / "bundle.tar"
    plain.write_bytes(standard_gzip.decompress(archive.read_bytes()))
    for copy in (plain, tmp_path / "dest"):
        assert verify(str(copy), expect_sha256=expected).ok


def test_a_file_of_8_gib_has_a_size_field_that_every_program_writes_otherwise(tmp_path):
    """The headers alone: the bodies stay away, so each is refused, but for that reason."""
    size = 8 << 30
    info = tarfile.TarInfo("big")
    info.size = size
    listed = manifest_of_one("big", size)
    for kind in ("gnu", "pax"):
        out = io.BytesIO()
        first = tarfile.TarInfo(MANIFEST)
        first.size = len(listed)
        out.write(first.tobuf(TARFILE_FORMATS[kind]))
        out.write(listed + bytes(-len(listed) % 512))
        out.write(info.tobuf(TARFILE_FORMATS[kind]))
        path = tmp_path / f"{kind}.tar"
        path.write_bytes(out.getvalue())
        with pytest.raises(VerificationError, match="cut off"):
            clone(str(path), tmp_path / "dest")


def manifest_of_one(path, size):
    from support.archives import manifest_of

    return manifest_of([{"path": path, "size": size, "sha256": "0" * 64}])


# -- near misses: what these programs write when asked for more ---------------------------------------------------


@pytest.mark.needs("tar")
def test_a_hard_linked_file_is_refused_with_a_reason(short, tmp_path):
    folder = tmp_path / "top"
    shutil.copytree(short, folder)
    (folder / "data" / "512.bin").unlink()
    os.link(folder / "data" / "511.bin", folder / "data" / "512.bin")
    run("tar", "-cf", tmp_path / "b.tar", ".", cwd=folder)
    with pytest.raises(VerificationError, match="hard link"):
        clone(str(tmp_path / "b.tar"), tmp_path / "dest")


@pytest.mark.needs("bsdtar")
def test_holes_in_a_file_are_refused_with_a_reason(short, tmp_path):
    folder = tmp_path / "top"
    shutil.copytree(short, folder)
    with (folder / "README.md").open("wb") as file:
        file.truncate(1 << 20)
    run("bsdtar", "-cf", tmp_path / "b.tar", ".", cwd=folder)
    if b"GNU.sparse" not in (tmp_path / "b.tar").read_bytes():
        pytest.skip("this file system keeps no holes")
    with pytest.raises(VerificationError, match="sparse"):
        clone(str(tmp_path / "b.tar"), tmp_path / "dest")


@pytest.mark.needs("tar")
@pytest.mark.parametrize("extra", [".DS_Store", "__pycache__/x.pyc", "empty/"])
def test_what_systems_leave_in_folders_is_still_extra_in_an_archive(short, tmp_path, extra):
    folder = tmp_path / "top"
    shutil.copytree(short, folder)
    if extra.endswith("/"):
        (folder / extra).mkdir()
    else:
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"junk")
    run("tar", "-cf", tmp_path / "b.tar", ".", cwd=folder)
    with pytest.raises(ContentMismatchError, match=extra.split("/")[0]):
        clone(str(tmp_path / "b.tar"), tmp_path / "dest")
