"""Staging, atomic commits and recovery."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from ari_core import fs
from ari_core.errors import ArchiveRefusedError, DestinationExistsError, UsageError
from ari_core.names import STAGING_PREFIX


def staged(folder):
    return [name for name in os.listdir(folder) if name.startswith(STAGING_PREFIX)]


def test_what_was_not_committed_is_gone(tmp_path):
    with fs.Staging(tmp_path) as staging:
        (staging.path / "half").write_text("x")
        assert staged(tmp_path)
    assert os.listdir(tmp_path) == []


def test_staging_is_private(tmp_path):
    with fs.Staging(tmp_path) as staging:
        assert staging.path.stat().st_mode & 0o777 == 0o700


def test_an_exception_removes_staging(tmp_path):
    with pytest.raises(KeyboardInterrupt), fs.Staging(tmp_path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        fs.Staging(tmp_path / "absent")


def test_the_next_run_removes_what_a_killed_one_left_but_not_what_a_living_one_has(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from ari_core.fs import Staging
        with Staging(Path({str(tmp_path)!r})) as staging:
            print(staging.path.name, flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        name = process.stdout.readline().strip()
        with fs.Staging(tmp_path):
            assert name in staged(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert staged(tmp_path) == [name]
    with fs.Staging(tmp_path):
        assert name not in staged(tmp_path)


def test_commit_tree_takes_an_empty_folder_and_nothing_else(tmp_path):
    def commit(name):
        with fs.Staging(tmp_path) as staging:
            (staging.path / "tree").mkdir()
            (staging.path / "tree" / "f").write_text("new")
            staging.commit_tree("tree", name)

    commit("absent")
    assert (tmp_path / "absent" / "f").read_text() == "new"
    (tmp_path / "empty").mkdir()
    commit("empty")
    assert (tmp_path / "empty" / "f").read_text() == "new"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("old")
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        with pytest.raises(DestinationExistsError):
            commit(name)
    assert (tmp_path / "full" / "mine").read_text() == "old"
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "elsewhere").exists()
    assert staged(tmp_path) == []


def test_commit_file_creates_or_replaces_as_told(tmp_path):
    def commit(text, *, replace):
        with fs.Staging(tmp_path) as staging:
            (staging.path / "x").write_text(text)
            staging.commit_file("x", "file", replace=replace)

    commit("one", replace=False)
    with pytest.raises(DestinationExistsError):
        commit("two", replace=False)
    assert (tmp_path / "file").read_text() == "one"
    commit("three", replace=True)
    assert (tmp_path / "file").read_text() == "three"


def replace_tree(folder, text):
    with fs.Staging(folder) as staging:
        (staging.path / "tree").mkdir()
        (staging.path / "tree" / "f").write_text(text)
        staging.replace_tree("tree", "t")


@pytest.fixture(params=["exchange", "no exchange"])
def _system(request, monkeypatch):
    if request.param == "no exchange":
        monkeypatch.setattr(fs, "_exchange", lambda *_: False)


@pytest.mark.usefixtures("_system")
def test_replace_tree(tmp_path):
    for text in ("one", "two"):
        replace_tree(tmp_path, text)
        assert os.listdir(tmp_path) == ["t"]
        assert (tmp_path / "t" / "f").read_text() == text


@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_replacement_without_exchange_is_mended(tmp_path, monkeypatch, after):
    replace_tree(tmp_path, "old")
    monkeypatch.setattr(fs, "_exchange", lambda *_: False)
    calls = iter(range(10))
    rename, remove = os.rename, fs._remove

    def dying(real):
        def call(*arguments, **keywords):
            if next(calls) >= after:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying(rename))
        patch.setattr(fs, "_remove", dying(remove))
        with pytest.raises(KeyboardInterrupt):
            replace_tree(tmp_path, "new")
    fs.recover_tree(tmp_path, "t")
    # Each step died once: before the second rename the old tree is back, after it the new one stands.
    assert (tmp_path / "t" / "f").read_text() == ("old" if after < 2 else "new")
    with fs.Staging(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["t"]


def test_a_tree_set_aside_is_never_swept(tmp_path):
    (tmp_path / f"{STAGING_PREFIX}previous-t").mkdir()
    with fs.Staging(tmp_path):
        pass
    assert (tmp_path / f"{STAGING_PREFIX}previous-t").is_dir()


def test_write_durably_replaces_whole_files(tmp_path):
    fs.write_durably(tmp_path / "f", b"one")
    fs.write_durably(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


@pytest.fixture
def writer(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with fs.TreeWriter(fd) as tree:
        yield tree
    os.close(fd)


def test_a_tree_never_overwrites(writer, tmp_path):
    os.close(writer.create("a/b", executable=False))
    with pytest.raises(ArchiveRefusedError, match="as one"):
        writer.create("a/b", executable=False)


def test_a_tree_follows_no_link(writer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "in").symlink_to("out")
    with pytest.raises(ArchiveRefusedError):
        writer.create("in/f", executable=False)
    assert os.listdir(tmp_path / "out") == []


def test_a_name_the_disk_cannot_hold_is_refused_by_name(writer):
    with pytest.raises(ArchiveRefusedError, match="cannot hold the name"):
        writer.create("x" * 256, executable=False)


def test_many_folders_do_not_hold_many_descriptors(writer, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        os.close(writer.create(f"d{number}/e/f", executable=number % 2 == 0))
    assert len(os.listdir("/proc/self/fd")) - before < 150
    assert (tmp_path / "d0/e/f").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d1/e/f").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("libc", [None, object()], ids=["this-system", "no-such-call"])
def test_beginning_to_write_out_changes_no_byte(tmp_path, monkeypatch, libc):
    if libc:
        monkeypatch.setattr(fs, "_libc", lambda: libc)
    data = os.urandom(3 * 2**20)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        for start in range(0, len(data), 2**20):
            fs.write_all(file.fileno(), data[start : start + 2**20])
            fs.begin_write_out(file.fileno(), start, 2**20)
    assert (tmp_path / "file").read_bytes() == data


def test_beginning_to_write_out_what_has_no_disk_is_no_error():
    reader, writer = os.pipe()
    try:
        fs.begin_write_out(writer, 0, 1)
    finally:
        os.close(reader)
        os.close(writer)
