"""The deterministic writer: golden bytes, the WRITE form, and files that changed since they were curated."""

import gzip
import hashlib
import io
import os
import random
import tarfile

import pytest

from ari_core.bundle import writer
from ari_core.errors import ChangedSinceCurationError
from ari_core.limits import Limits
from ari_core.manifest import FileEntry, parse_manifest, render_manifest

# Bytes of a bundle are its id. If a library upgrade changes these, say so in CHANGELOG: old refs still verify
# (same bundle digest), but publishing the same bundle again gives another id.
GOLDEN = {
    "small": "fcdb1d158ebcc64cf1e63c07a49ae68403e60d33ec6649a316cb393fc304cfda",
    "names": "7d94c4088bd510e1a387518b8da636a736c84c6e100802f3d1935ef3f41ab2a2",
    "blocks": "030f770df3fc9801df3bfc56f96a119f69cd7fdaa489f504abe0c37a20ecf031",
}


def pseudo_random(count):
    return random.Random(7).randbytes(count)


TREES = {
    "small": {"README.md": b"r\n", "code/run.py": b"print(1)\n", "empty": b""},
    "names": {
        "a" * 100: b"1",
        "d" * 100 + "/" + "e" * 100: b"2",
        "f" * 101: b"3",
        "g" * 200 + "/" + "h" * 200: b"4",
        "été/日本.txt": b"5",
    },
    # Text and noise across the borders of compression blocks: here ISA-L's output would differ if cut otherwise.
    "blocks": {"csv": b"1,2.5,alpha\n" * 30_000, "noise": pseudo_random(300_001), "odd": pseudo_random(131_073)},
}


def curated(folder, files):
    entries = []
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        entries.append(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()))
    return parse_manifest(render_manifest(entries, {}, 0), Limits())


def packed(folder, manifest):
    out = folder.parent / "out.tar.gz"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    written = writer.write_bundle(folder, manifest, fd)
    os.close(fd)
    data = out.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (written.size, written.archive_sha256)
    return data


@pytest.mark.parametrize("name", TREES)
def test_golden_bytes(tmp_path, name):
    data = packed(tmp_path / "t", curated(tmp_path / "t", TREES[name]))
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name], f"made by {writer.ENCODER}"


def test_bytes_do_not_depend_on_times_owners_or_the_order_of_creation(tmp_path):
    first = packed(tmp_path / "a", curated(tmp_path / "a", TREES["small"]))
    manifest = curated(tmp_path / "b", dict(reversed(TREES["small"].items())))
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (1, 1))
    assert packed(tmp_path / "b", manifest) == first


def test_bytes_do_not_depend_on_how_much_one_read_returns(tmp_path, monkeypatch):
    manifest = curated(tmp_path / "t", TREES["blocks"])
    whole = packed(tmp_path / "t", manifest)
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, buffers: readv(fd, [memoryview(buffers[0])[:1000]]))
    assert packed(tmp_path / "t", manifest) == whole


def test_what_does_not_compress_is_stored(tmp_path):
    """Noise costs next to nothing, text still shrinks, and any gzip reads the mixture."""
    noise, text = pseudo_random(1_000_000), b"1,2.5,alpha\n" * 100_000
    data = packed(tmp_path / "t", curated(tmp_path / "t", {"a": text, "b": noise, "c": text, "d": noise}))
    assert len(data) < 2 * len(noise) + 0.2 * len(text)
    assert noise[300_000:300_500] in data
    assert gzip.decompress(data).count(b"ustar") == 5


@pytest.mark.parametrize("name", TREES)
def test_write_form(tmp_path, name):
    (tmp_path / "t").mkdir()
    manifest = curated(tmp_path / "t", TREES[name])
    executable = min(TREES[name])
    (tmp_path / "t" / executable).chmod(0o710)
    data = packed(tmp_path / "t", manifest)
    assert data[:10] == bytes.fromhex("1f8b08000000000000ff")
    tar = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["manifest.lock", *sorted(TREES[name])]
    for member in members:
        assert member.isreg()
        assert (member.uid, member.gid, member.mtime, member.uname) == (0, 0, 0, "")
        assert member.mode == (0o755 if member.name == executable else 0o644)
        fits = member.name.isascii() and len(member.name) != 101 and len(member.name) < 256
        assert set(member.pax_headers) == (set() if fits else {"path"})


def test_a_file_over_8_gib_says_its_size_in_pax():
    block = writer.header("big", 2**33, executable=False)
    member = tarfile.TarInfo.frombuf(block[:512], "utf-8", "strict")
    assert member.type == b"x"
    assert b"19 size=8589934592\n" in block[512:1024]
    with tarfile.open(fileobj=io.BytesIO(block)) as archive:
        assert archive.next().size == 2**33


def changed(path):
    path.write_bytes(b"x" * path.stat().st_size)


def grown(path):
    path.write_bytes(path.read_bytes() + b"x")


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [changed, grown, linked, piped, os.unlink])
def test_a_file_that_is_not_what_was_curated(tmp_path, harm):
    manifest = curated(tmp_path / "t", TREES["small"])
    harm(tmp_path / "t" / "README.md")
    with pytest.raises(ChangedSinceCurationError, match=r"README\.md"):
        packed(tmp_path / "t", manifest)


def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch):
    manifest = curated(tmp_path / "t", TREES["small"])
    fstat = os.fstat

    def late(fd):
        status = fstat(fd)
        with (tmp_path / "t" / "README.md").open("ab") as file:
            file.write(b"more")
        return status

    monkeypatch.setattr(os, "fstat", late)
    with pytest.raises(ChangedSinceCurationError, match=r"README\.md"):
        packed(tmp_path / "t", manifest)
