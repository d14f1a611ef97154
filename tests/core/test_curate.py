"""Curation: which files, under which digest, what is refused, and what survives a crash."""

import base64
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import deadline

from ari_core import secrets_scan
from ari_core.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    CurationError,
    DiskFullError,
    LocalPermissionError,
)
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.curate import curate

VECTORS = json.loads((Path(__file__).parent / "vectors" / "curation.json").read_text(encoding="utf-8"))
EVERYTHING = "include: ['**']\n"
CHUNK = 128 * 1024


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a function that makes a checkpoint out of file contents and a policy."""

    def make(files, policy=EVERYTHING):
        folder = tmp_path / "checkpoint"
        (folder / "ear").mkdir(parents=True, exist_ok=True)
        if policy is not None:
            files = {**files, "publish.yaml": policy}
        for name, content in files.items():
            path = folder / "ear" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return make


def tree(folder):
    """Returns everything below a folder: contents of files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def litter(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- what is published -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector, checkpoint):
    files = {name: base64.b64decode(content) for name, content in vector["files"].items()}
    folder = checkpoint(files, vector["publish_yaml"])
    expect = vector["expect"]
    if expect.get("error"):
        with pytest.raises(CurationError, match=r"ear/big\.bin' has 2000 bytes, over the cap of 1048"):
            curate(folder)
        assert not (folder / "ear_published").exists()
        return
    result = curate(folder)
    assert result.bundle_sha256 == expect["bundle_sha256"]
    assert result.included_files == expect["included"]
    assert result.excluded_count == expect["excluded_count"]
    assert result.ear_published_dir == folder / "ear_published"
    assert result.manifest_path == folder / "ear_published" / "manifest.lock"
    listed = json.loads(result.manifest_path.read_bytes())
    canonical = {"version": listed["version"], "files": listed["files"]}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text == expect["canonical"]
    assert hashlib.sha256(text.encode()).hexdigest() == expect["bundle_sha256"]
    published = {name: content for name, content in tree(folder / "ear_published").items() if content is not None}
    assert published.pop("manifest.lock") == result.manifest_path.read_bytes()
    assert published == {name: files[name] for name in expect["included"]}


def test_manifest_says_the_terms_and_nothing_private(checkpoint):
    policy = "include: [a.txt]\nexclude: ['private-study/**']\nlicense: MIT\nmax_file_mb: 3\nzenodo: {title: QX}\n"
    result = curate(checkpoint({"a.txt": "a", "private-study/x": "x", ".env": "K=1"}, policy))
    raw = result.manifest_path.read_bytes()
    assert json.loads(raw) == {
        "version": 1,
        "files": [{"path": "a.txt", "size": 1, "sha256": hashlib.sha256(b"a").hexdigest()}],
        "publish": {
            "visibility": "staged",
            "license": "MIT",
            "max_file_mb": 3,
            "backend": None,
            "required": False,
            "auto_promote": False,
        },
        "excluded_count": 1,
        "bundle_sha256": result.bundle_sha256,
    }
    for private in (b"private-study", b"QX", b".env"):
        assert private not in raw
    assert parse_manifest(raw, Limits()).files == result.files


def test_same_input_same_bytes_whatever_the_time(checkpoint):
    folder = checkpoint({"b": "b", "a/x": "x"})
    first = curate(folder).manifest_path.read_bytes()
    os.utime(folder / "ear" / "b", (1, 1))
    assert curate(folder).manifest_path.read_bytes() == first


def test_ear_itself_may_be_a_link_but_not_to_what_is_kept_back(checkpoint, tmp_path):
    """A stranger's checkpoint whose ear/ leads to the user's own keys."""
    home = tmp_path / "home" / ".ssh"
    (home / "code").mkdir(parents=True)
    (home / "code" / "id_custom").write_text("key")
    folder = checkpoint({})
    shutil.rmtree(folder / "ear")
    (folder / "ear").symlink_to(home)
    with pytest.raises(CurationError, match="never published"):
        curate(folder)
    (folder / "ear").unlink()
    home.rename(tmp_path / "scratch")
    (folder / "ear").symlink_to(tmp_path / "scratch")
    result = curate(folder)
    assert result.included_files == ["code/id_custom"]
    assert any("is a link" in line for line in result.warnings)


def test_only_the_owners_x_bit_is_kept(checkpoint):
    folder = checkpoint({"run.sh": "x", "data": "x", "odd": "x"})
    (folder / "ear" / "run.sh").chmod(0o700)
    (folder / "ear" / "data").chmod(0o666)
    (folder / "ear" / "odd").chmod(0o655)
    curate(folder)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (folder / "ear_published").iterdir()}
    assert modes == {"run.sh": 0o755, "data": 0o644, "odd": 0o644, "manifest.lock": 0o644}


def test_files_longer_than_a_chunk_are_whole(checkpoint):
    content = os.urandom(CHUNK * 2 + 7)
    folder = checkpoint({"big": content, "one": b"1" * CHUNK})
    result = curate(folder)
    assert result.files[0].sha256 == hashlib.sha256(content).hexdigest()
    assert (folder / "ear_published" / "big").read_bytes() == content


def test_the_old_result_makes_way_whole(checkpoint):
    folder = checkpoint({"old": "1", "dir/old": "2"})
    curate(folder)
    (folder / "ear" / "old").unlink()
    shutil.rmtree(folder / "ear" / "dir")
    checkpoint({"new": "3"})
    result = curate(folder)
    assert sorted(tree(folder / "ear_published")) == ["manifest.lock", "new"]
    assert result.included_files == ["new"]
    assert litter(folder) == []


def test_the_copy_is_independent_of_ear(checkpoint):
    folder = checkpoint({"a": "before"})
    curate(folder)
    with (folder / "ear" / "a").open("r+") as file:
        file.write("AFTER!")
    assert (folder / "ear_published" / "a").read_text() == "before"


def test_deny_rules_count_also_what_nobody_asked_for(checkpoint):
    files = {"a": "", ".env": "", "deep/SECRETS/x": "", "k.PEM": "", ".ari/registries.yaml": "", "b": ""}
    result = curate(checkpoint(files, "include: [a]\n"))
    assert result.included_files == ["a"]
    assert result.excluded_count == 4
    assert result.skipped == ()


def test_git_trees_are_pruned_and_count_one_each(checkpoint):
    folder = checkpoint(
        {".git/config": "", ".git/objects/a": "", "sub/.git": "gitdir: x", "x/.GIT/y": "", "a": ""}
    )
    (folder / "ear" / ".git" / "unreadable").symlink_to("/")
    result = curate(folder)
    assert (result.included_files, result.excluded_count) == (["a"], 3)


def test_progress_counts_all_bytes(checkpoint):
    seen = []
    folder = checkpoint({"a": b"x" * (CHUNK + 1), "b": "yy", "c": ""})
    curate(folder, progress=lambda *arguments: seen.append(arguments))
    total = CHUNK + 3
    assert seen == [("curating", CHUNK, total), ("curating", CHUNK + 1, total), ("curating", total, total)]


def test_what_killed_runs_left_is_removed(checkpoint):
    folder = checkpoint({"a": "1"})
    (folder / ".ari-staging-0123456789abcdef" / "ear_published").mkdir(parents=True)
    curate(folder)
    assert litter(folder) == []


def test_half_done_work_of_this_program_is_never_published(checkpoint):
    result = curate(checkpoint({"a": "", ".ari-staging-00/ear_published/x": "", "d/.ari-staging-01": ""}))
    assert (result.included_files, result.excluded_count) == (["a"], 2)


# -- links and other things that are not files -------------------------------------------------------------------


def test_links_inside_ear_are_published_as_what_they_lead_to(checkpoint):
    folder = checkpoint(
        {"store/data.csv": "1,2", "store/sub/more.csv": "3"}, "include: ['results/**', 'top.csv']\n"
    )
    ear = folder / "ear"
    (ear / "results").mkdir()
    (ear / "results" / "file.csv").symlink_to("../store/data.csv")
    (ear / "results" / "absolute.csv").symlink_to(ear / "store" / "data.csv")
    (ear / "results" / "folder").symlink_to("../store")
    (ear / "hop").symlink_to("store/data.csv")
    (ear / "top.csv").symlink_to("hop")
    result = curate(folder)
    assert tree(folder / "ear_published") == {
        "manifest.lock": result.manifest_path.read_bytes(),
        "results": None,
        "results/absolute.csv": b"1,2",
        "results/file.csv": b"1,2",
        "results/folder": None,
        "results/folder/data.csv": b"1,2",
        "results/folder/sub": None,
        "results/folder/sub/more.csv": b"3",
        "top.csv": b"1,2",
    }
    assert not any(path.is_symlink() for path in (folder / "ear_published").rglob("*"))


def test_links_are_judged_by_where_they_lead_too(checkpoint):
    folder = checkpoint(
        {"vault/id_rsa": "k", ".git/annex/o": "o", "private/p": "p", "secrets/s": "s"},
        "include: ['**']\nexclude: ['private/**']\n",
    )
    ear = folder / "ear"
    (ear / "notes.txt").symlink_to("vault/id_rsa")
    (ear / "annexed").symlink_to(".git/annex/o")
    (ear / "annex").symlink_to(".git/annex")
    (ear / "latest").symlink_to("private")
    (ear / "open").symlink_to("secrets")
    (ear / "policy").symlink_to("publish.yaml")
    result = curate(folder)
    assert result.included_files == []
    # vault/id_rsa, .git, private/p, secrets/s; then five of the six links: the policy is nobody's secret
    assert result.excluded_count == 9
    assert dict(result.skipped) == {
        "notes.txt": "a link to 'ear/vault/id_rsa', which is denied",
        "annexed": "a link to 'ear/.git/annex/o', which is denied",
        "annex": "a link to 'ear/.git/annex', which is denied",
        "latest/p": "a link to 'ear/private/p', which is excluded",
        "open/s": "a link to 'ear/secrets/s', which is denied",
        "policy": "publish.yaml, which is never published",
    }


@pytest.mark.parametrize(
    ("policy", "name", "target", "why"),
    [
        (
            EVERYTHING,
            "data/raw",
            "{outside}/file",
            "'ear/data/raw' is a link that leads outside ear/, to '{outside}/file'",
        ),
        (EVERYTHING, "data/raw", "../../../outside/file", "leads outside ear/, to '{outside}/file'"),
        (EVERYTHING, "data/raw", "{outside}", "leads outside ear/, to '{outside}'"),
        ("include: ['data/raw/*.csv']\n", "data/raw", "{outside}", "leads outside ear/"),
        ("include: ['**/*.py']\n", "venv", "{outside}", "leads outside ear/"),
        (EVERYTHING, "data/raw", "../../ear-old/file", "leads outside ear/"),
        (EVERYTHING, "data/raw", "gone", "leads nowhere"),
        (EVERYTHING, "data/raw", "a.txt/x", "leads nowhere"),
        (EVERYTHING, "data/raw", "raw", "leads back to itself"),
        (EVERYTHING, "data/raw", "..", "leads back to a folder that it is in"),
        (EVERYTHING, "data/raw", ".", "leads back to a folder that it is in"),
        ("include: ['data/raw/*.csv']\n", "data/raw", "..", "leads back to a folder that it is in"),
    ],
)
def test_a_link_that_cannot_be_followed_is_refused_by_name(checkpoint, tmp_path, policy, name, target, why):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("private")
    folder = checkpoint({"a.txt": "a"}, policy)
    (folder / "ear-old").mkdir()
    (folder / "ear-old" / "file").write_text("private too")
    link = folder / "ear" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target.format(outside=outside))
    with pytest.raises(CurationError) as caught:
        curate(folder)
    assert f"'ear/{name}' is a link that " in caught.value.message
    assert why.format(outside=outside) in caught.value.message
    assert "exclude it in publish.yaml" in caught.value.hint
    assert not (folder / "ear_published").exists()
    assert litter(folder) == []


def test_a_chain_of_links_that_ends_outside_is_refused(checkpoint, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("private")
    folder = checkpoint({"a": ""}, "include: [hop]\n")
    (folder / "ear" / "through").symlink_to(tmp_path / "outside")
    (folder / "ear" / "hop").symlink_to("through/file")
    with pytest.raises(CurationError, match="'ear/hop' is a link that leads outside ear/"):
        curate(folder)


def test_a_link_with_a_denied_name_is_not_followed(checkpoint):
    folder = checkpoint({"settings/production": "K=1"}, "include: ['**']\nexclude: ['settings/**']\n")
    (folder / "ear" / ".env").symlink_to("settings")
    result = curate(folder)
    assert (result.included_files, result.excluded_count, result.skipped) == ([], 2, ())


def test_folders_that_lead_into_each_other_are_refused(checkpoint):
    folder = checkpoint({"a/x": "x", "b/y": "y"})
    (folder / "ear" / "a" / "to-b").symlink_to("../b")
    (folder / "ear" / "b" / "to-a").symlink_to("../a")
    with pytest.raises(CurationError, match="leads back to a folder that it is in"):
        curate(folder)


def test_links_that_multiply_folders_are_stopped(checkpoint):
    folder = checkpoint({"a": ""})
    for level in range(12):
        place = folder / "ear" / f"level{level}"
        place.mkdir()
        for name in ("one", "two"):
            (place / name).symlink_to(f"../level{level + 1}")
    (folder / "ear" / "level12").mkdir()
    with pytest.raises(CurationError, match=r"lead to more than 500 folders.*ARI_LIMIT_FILES"):
        curate(folder, limits=Limits(files=500))


@pytest.mark.parametrize(
    ("policy", "name", "target", "excluded"),
    [
        ("include: [a.txt]\n", "venv", "/usr", 0),
        ("include: [a.txt]\n", "lock", "user@host.123", 0),
        ("include: ['**/*.txt']\n", "lock", "user@host.123", 0),
        ("include: [a.txt]\n", "loop", "loop", 0),
        ("include: [a.txt, 'code/*']\n", "up", "..", 0),
        ("include: ['**']\nexclude: [venv]\n", "venv", "/usr", 1),
        ("include: ['**']\nexclude: ['venv/**']\n", "venv", "/usr", 1),
        ("include: ['**']\nexclude: ['venv/**']\n", "venv", "gone", 1),
        ("include: ['**']\n", "id_rsa", "/etc/passwd", 1),
        ("include: ['**']\n", "secrets", "/usr", 1),
        ("include: ['**']\n", ".git", "/usr", 1),
    ],
)
def test_a_link_that_nobody_asks_for_does_no_harm(checkpoint, policy, name, target, excluded):
    folder = checkpoint({"a.txt": "a"}, policy)
    (folder / "ear" / name).symlink_to(target)
    result = curate(folder)
    assert (result.included_files, result.excluded_count) == (["a.txt"], excluded)


def test_ear_itself_may_be_a_link(checkpoint, tmp_path):
    folder = checkpoint({"a.txt": "a"})
    (folder / "ear" / "b.txt").symlink_to("a.txt")
    (folder / "ear").rename(tmp_path / "elsewhere")
    (folder / "ear").symlink_to(tmp_path / "elsewhere")
    assert curate(folder).included_files == ["a.txt", "b.txt"]


def test_pipes_sockets_and_empty_folders_are_told(checkpoint, monkeypatch):
    folder = checkpoint({"a": "", "data/x": ""}, "include: ['a', 'data/**', 'pipe-link']\n")
    ear = folder / "ear"
    os.mkfifo(ear / "data" / "pipe")
    os.mkfifo(ear / "unasked")
    (ear / "pipe-link").symlink_to("data/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(ear / "data")  # the name of a socket has room for 107 bytes only
        listener.bind("socket")
        (ear / "data" / "empty").mkdir()
        (ear / "empty-unasked").mkdir()
        result = curate(folder)
    assert result.included_files == ["a", "data/x"]
    assert dict(result.skipped) == {
        "data/pipe": "a named pipe; a bundle holds regular files only",
        "pipe-link": "a named pipe; a bundle holds regular files only",
        "data/socket": "a socket; a bundle holds regular files only",
        "data/empty": "an empty folder; a bundle holds files only",
    }


# -- what is refused ---------------------------------------------------------------------------------------------


def put(name, content="x"):
    def place(folder):
        path = folder / "ear" / (os.fsdecode(name) if isinstance(name, bytes) else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return place


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        (put("data/over", "x" * 1049), CurationError, r"'ear/data/over' has 1049 bytes, over the cap of 1048"),
        (put("a\\b"), CurationError, r"'ear/a\\b' cannot be published: the name has a backslash"),
        (put("a\nb"), CurationError, r"'ear/a\\nb' cannot be published: .* forbidden character U\+000A"),
        (put("x/\u202egpj"), CurationError, r"'ear/x/\\u202egpj' cannot be published: .* U\+202E"),
        (put(b"x/caf\xe9"), CurationError, r"'ear/x/caf\\udce9' cannot be published: the name is not UTF-8"),
        (put("C:x"), CurationError, r"'ear/C:x' cannot be published: the name is absolute"),
        (put("manifest.lock"), CurationError, r"'ear/manifest.lock' cannot be published: .* own list of files"),
        (put("manifest.lock/x"), CurationError, r"'ear/manifest.lock/x' cannot be published"),
        (put("d/" * 7 + "x"), CurationError, r"d/x' cannot be published: .* 8 parts deep, over the limit of 7"),
        (put("y" * 121), CurationError, r"over the limit of 120 \(set ARI_LIMIT_COMPONENT_BYTES"),
        (
            lambda folder: [put(f"many/{i}")(folder) for i in range(9)],
            CurationError,
            r"more than 8 files \(set ARI_LIMIT_FILES",
        ),
        (
            lambda folder: [put(f"many/{'l' * 39}{i}")(folder) for i in range(7)],
            CurationError,
            r"manifest.lock would have \d+ bytes, over the limit of 1000 \(set ARI_LIMIT_MANIFEST_BYTES",
        ),
        (put("publish.yaml", "- a list\n"), ConfigurationError, r"publish.yaml, line 1: must be a mapping"),
        (lambda folder: shutil.rmtree(folder / "ear"), CheckpointNotFoundError, r"checkpoint' has no folder ear/"),
    ],
)
def test_refused_by_name_and_nothing_changed(checkpoint, place, kind, message):
    folder = checkpoint({"a": "1"}, "include: ['**']\nmax_file_mb: 0.001\n")
    limits = Limits(files=8, depth=7, component_bytes=120, manifest_bytes=1000)
    curate(folder, limits=limits)
    before = tree(folder / "ear_published")
    place(folder)
    with pytest.raises(kind, match=message) as caught:
        curate(folder, limits=limits)
    assert caught.type is kind
    assert caught.value.message.isprintable()
    assert tree(folder / "ear_published") == before
    assert litter(folder) == []


def test_what_is_known_beforehand_is_refused_before_anything_is_copied(checkpoint):
    folder = checkpoint({"a": "1", "z": "x" * 2000}, "include: ['**']\nmax_file_mb: 0.001\n")
    copied = []
    with pytest.raises(CurationError, match="'ear/z' has 2000 bytes"):
        curate(folder, progress=lambda *arguments: copied.append(arguments))
    assert copied == []


def test_what_nobody_asks_for_may_have_any_name_and_size(checkpoint):
    folder = checkpoint({"a": "1"}, "include: [a, 'x/*']\nexclude: ['x/*']\nmax_file_mb: 0.001\n")
    put(b"caf\xe9")(folder)
    put("x/a\nb")(folder)
    put("x/big", "x" * 5000)(folder)
    put("manifest.lock")(folder)
    result = curate(folder)
    assert (result.included_files, result.excluded_count) == (["a"], 2)


def test_just_inside_the_limits_works(checkpoint):
    folder = checkpoint({"a": "x" * 1048, "d/" * 6 + "y" * 120: ""}, "include: ['**']\nmax_file_mb: 0.001\n")
    assert len(curate(folder, limits=Limits(files=2, depth=7, component_bytes=120)).files) == 2


@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_ear_published_that_is_no_folder_is_left_alone(checkpoint, tmp_path, kind):
    folder = checkpoint({"a": "1"})
    (tmp_path / "target").mkdir()
    if kind == "file":
        (folder / "ear_published").write_text("mine")
    else:
        (folder / "ear_published").symlink_to(tmp_path / "target")
    with pytest.raises(CurationError, match="ear_published' is not a folder; it was not touched"):
        curate(folder)
    assert (folder / "ear_published").is_symlink() or (folder / "ear_published").read_text() == "mine"


def test_an_ear_published_that_curation_did_not_make_is_left_alone(checkpoint):
    folder = checkpoint({"a": "1"})
    (folder / "ear_published").mkdir()
    (folder / "ear_published" / "thesis.tex").write_text("mine")
    with pytest.raises(CurationError, match=r"ear_published' .* manifest\.lock.*; it was not touched") as caught:
        curate(folder)
    assert caught.value.hint == "move it away"
    assert tree(folder / "ear_published") == {"thesis.tex": b"mine"}
    assert litter(folder) == []
    (folder / "ear_published" / "thesis.tex").unlink()
    assert curate(folder).included_files == ["a"]  # an empty folder is nobody's loss


def grow(path):
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path):
    os.truncate(path, CHUNK)


def rewrite(path):
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [grow, shrink, rewrite])
def test_a_file_that_changes_while_it_is_read_is_refused(checkpoint, change):
    folder = checkpoint({"log": b"x" * (CHUNK * 3)})
    changed = []

    def progress(*_):
        if not changed:
            changed.append(change(folder / "ear" / "log"))

    with pytest.raises(CurationError, match="'ear/log' changed while it was being read") as caught:
        curate(folder, progress=progress)
    assert "nothing writes to ear/" in caught.value.hint
    assert not (folder / "ear_published").exists()
    assert litter(folder) == []


def test_a_file_that_never_ends_is_not_read_for_ever(checkpoint):
    folder = checkpoint({"log": b"x" * CHUNK})
    chunks = []

    def progress(*_):
        chunks.append(1)
        if len(chunks) < 50:
            with (folder / "ear" / "log").open("ab") as file:
                file.write(b"x" * CHUNK)

    with pytest.raises(CurationError, match="changed while it was being read"):
        curate(folder, progress=progress)
    assert len(chunks) == 1


def test_a_file_that_ends_early_is_refused(checkpoint, monkeypatch):
    folder = checkpoint({"data": b"x" * CHUNK * 2})
    read, left = os.read, [1]  # a file system that loses the end without an error

    def short(fd, size):
        return read(fd, size) if left and size == CHUNK and left.pop() else b""

    monkeypatch.setattr("ari_core.workflows.curate.os.read", short)
    with pytest.raises(CurationError, match="'ear/data' changed while it was being read"):
        curate(folder)


def to_pipe(path, outside):
    path.unlink()
    os.mkfifo(path)


def to_link(path, outside):
    path.unlink()
    path.symlink_to(outside / "file")


def to_folder(path, outside):
    path.unlink()
    path.mkdir()


def parent_to_link(path, outside):
    path.parent.rename(path.parent.parent / "aside")
    path.parent.symlink_to(outside)


def removed(path, outside):
    path.unlink()


@pytest.mark.parametrize("change", [to_pipe, to_link, to_folder, parent_to_link, removed])
def test_a_file_swapped_after_it_was_chosen_is_never_followed(checkpoint, tmp_path, change):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("private")
    folder = checkpoint({"a": "first", "sub/file": "1"})
    changed = []

    def progress(*_):
        if not changed:
            changed.append(change(folder / "ear" / "sub" / "file", tmp_path / "outside"))

    with deadline(30), pytest.raises(CurationError, match="'ear/sub/file' changed while it was being read"):
        curate(folder, progress=progress)
    assert not (folder / "ear_published").exists()


def test_a_file_that_outgrows_the_cap_after_it_was_chosen_is_refused(checkpoint):
    folder = checkpoint({"a": "first", "b": "small"}, "include: ['**']\nmax_file_mb: 0.001\n")
    with pytest.raises(CurationError, match="'ear/b' has 2000 bytes, over the cap"):
        curate(folder, progress=lambda *_: (folder / "ear" / "b").write_bytes(b"x" * 2000))


def test_a_full_disk_is_said_to_be_full(checkpoint):
    folder = checkpoint({"a": "1", "big": b"x" * 200_000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the disk's quota, as far as writers can tell
    try:
        with pytest.raises(DiskFullError, match="writing 'ear_published/big'"):
            curate(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folder / "ear_published").exists()
    assert litter(folder) == []


def test_an_interruption_leaves_nothing(checkpoint):
    folder = checkpoint({"a": "1"})

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(folder, progress=interrupt)
    assert names(folder) == ["ear"]


def as_nobody_special(folder, limits=""):
    """Curates in a process that file modes hold for, also when the tests are run by root."""
    code = (
        "import sys\n"
        "from ari_core.errors import AriError\n"
        "from ari_core.workflows.curate import curate\n"
        "try: print(curate(sys.argv[1]))\n"
        "except AriError as error: print(type(error).__name__, error.message)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.needs("setpriv")
def test_what_may_not_be_read_is_named(checkpoint):
    folder = checkpoint({"a": "1", "locked/x": "1"}, "include: ['**']\n")
    (folder / "ear" / "a").chmod(0)
    assert as_nobody_special(folder).startswith(
        f"{LocalPermissionError.__name__} reading 'ear/a': Permission denied"
    )
    (folder / "ear" / "a").chmod(0o644)
    (folder / "ear" / "locked").chmod(0)
    try:
        told = as_nobody_special(folder)
        assert told.startswith("LocalPermissionError reading the folder 'ear/locked': Permission denied")
        (folder / "ear" / "publish.yaml").write_text("include: ['**']\nexclude: ['locked/**']\n")
        assert "('locked', 'a folder that cannot be read; nothing in it would be published')" in as_nobody_special(
            folder
        )
    finally:
        (folder / "ear" / "locked").chmod(0o755)


@pytest.mark.needs("setpriv")
@pytest.mark.parametrize(("place", "mode"), [(".", 0o555), ("ear", 0), (".", 0), ("ear/publish.yaml", 0)])
def test_a_checkpoint_that_may_not_be_used_is_named(checkpoint, place, mode):
    folder = checkpoint({"a": "1"})
    (folder / place).chmod(mode)
    try:
        told = as_nobody_special(folder)
    finally:
        (folder / place).chmod(0o755)
    assert told.startswith("LocalPermissionError ")
    assert str(folder) in told or "ear/" in told
    assert names(folder) == ["ear"]


# -- which checkpoint --------------------------------------------------------------------------------------------


def test_the_checkpoint_is_given_or_in_the_environment_or_here(checkpoint, tmp_path, monkeypatch):
    folder = checkpoint({"a": "1"})
    assert find_checkpoint(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("checkpoint") == folder
    with pytest.raises(CheckpointNotFoundError, match=r"the current folder .* has no ear/") as caught:
        find_checkpoint()
    assert "ARI_CHECKPOINT_DIR" in caught.value.hint
    monkeypatch.chdir(folder)
    assert find_checkpoint() == folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARI_CHECKPOINT_DIR", str(folder))
    assert find_checkpoint() == folder
    assert curate().included_files == ["a"]
    monkeypatch.setenv("ARI_CHECKPOINT_DIR", str(tmp_path / "gone"))
    with pytest.raises(
        CheckpointNotFoundError, match=r"no checkpoint folder '.*gone' \(from \$ARI_CHECKPOINT_DIR\)"
    ):
        find_checkpoint()
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint folder '.*/else'$") as caught:
        curate(tmp_path / "else")
    assert caught.value.exit_code == 3


def test_a_folder_without_ear_is_told_what_is_missing(checkpoint, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="has no folder ear/"):
        curate(tmp_path)
    folder = checkpoint({"a": "1"})
    with pytest.raises(CheckpointNotFoundError) as caught:
        curate(folder / "ear")
    assert "give the folder it is in" in caught.value.hint
    shutil.rmtree(folder / "ear")
    (folder / "ear").write_text("not a folder")
    with pytest.raises(CheckpointNotFoundError, match="has no folder ear/"):
        curate(folder)


@pytest.mark.parametrize("place", ["ear", "ear_published"])
def test_inside_the_checkpoint_it_is_the_folder_above(checkpoint, monkeypatch, place):
    folder = checkpoint({"a": "1"})
    curate(folder)
    monkeypatch.chdir(folder / place)
    with pytest.raises(CheckpointNotFoundError, match=r"the current folder .* has no ear/") as caught:
        curate()
    assert caught.value.hint == f"you are inside {place}/; go up one folder"


def test_a_file_is_said_to_be_no_checkpoint(checkpoint):
    folder = checkpoint({"a": "1"})
    with pytest.raises(CheckpointNotFoundError, match=r"ear/a' is a file, not a checkpoint folder$") as caught:
        curate(folder / "ear" / "a")
    assert "give the checkpoint's folder" in caught.value.hint


# -- warnings ----------------------------------------------------------------------------------------------------


EMPTY = "nothing in ear/ is both asked for and allowed: the bundle is empty"
DEFAULTS = "reproduce.sh, environment.json, code/**, data/**, scripts/**, configs/**"


def test_nothing_published_is_a_warning_that_names_the_globs(checkpoint):
    result = curate(checkpoint({"a": "1"}, "include: [b, '[a']\n"))
    assert result.files == ()
    assert result.warnings == (
        f"{EMPTY}; see include in publish.yaml",
        "publish.yaml: include 'b' matches nothing that is published",
        "publish.yaml: include '[a' matches nothing that is published",
    )


def test_an_empty_ear_without_a_policy_is_not_sent_to_the_policy(checkpoint):
    assert curate(checkpoint({}, None)).warnings == (EMPTY,)


def test_without_a_policy_it_says_what_is_published_and_how_much_is_not(checkpoint):
    files = {"README.md": "", "results/a": "", "results/b": "", ".env": ""}
    folder = checkpoint(files, None)
    (folder / "ear" / "results" / "none").mkdir()
    result = curate(folder)
    left = f"no publish.yaml: only {DEFAULTS} are published; 3 files are not asked for"
    assert (result.files, result.not_asked_for, result.excluded_count) == ((), 3, 1)
    assert result.warnings == (EMPTY, left)
    checkpoint({"code/a": ""}, None)
    assert curate(folder).warnings == (left,)
    shutil.rmtree(folder / "ear" / "results")
    assert curate(folder).warnings == (left.replace("3 files are", "1 file is"),)
    (folder / "ear" / "README.md").unlink()
    assert curate(folder).warnings == ()


def test_with_a_policy_what_is_not_asked_for_is_counted_and_no_warning(checkpoint):
    files = {"a": "", "b": "", "c/d": "", "c/e": "", "x": "", ".env": ""}
    folder = checkpoint(files, "include: ['[ax]']\nexclude: [x]\n")
    (folder / "ear" / "folder").symlink_to("gone")
    result = curate(folder)
    assert (result.not_asked_for, result.excluded_count, result.warnings) == (3, 2, ())


def test_a_glob_that_matches_nothing_is_a_warning(checkpoint):
    policy = "include: ['code/**', 'dta/**']\nexclude: ['cdoe/x', 'code/b', '*.TMP']\n"
    result = curate(checkpoint({"code/a": "1", "code/b": "2"}, policy))
    assert result.warnings == (
        "publish.yaml: include 'dta/**' matches nothing that is published",
        "publish.yaml: exclude 'cdoe/x' matches nothing in ear/",
        "publish.yaml: exclude '*.TMP' matches nothing in ear/",
    )


@pytest.mark.parametrize("glob", ["code", "code/", "code/deep", "code/deep//"])
@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_glob_that_names_a_folder_is_told_how_to_mean_what_is_in_it(checkpoint, key, glob):
    more = "include: ['**']\n" if key == "exclude" else ""
    result = curate(checkpoint({"code/deep/a": "1", "b": "2"}, f"{more}{key}: ['{glob}', 'b', '**/deep/x']\n"))
    (warning,) = (warning for warning in result.warnings if f"'{glob}'" in warning)
    assert warning == (
        f"publish.yaml: {key} '{glob}' matches nothing {'in ear/' if more else 'that is published'}; "
        f"for all that is in this folder write '{glob.rstrip('/')}/**'"
    )
    assert len(result.warnings) == 2


@pytest.mark.parametrize(
    "glob",
    [
        "a",
        "not/asked",
        "*.x",
        "none/**",
        "secrets/**",
        ".git/**",
        "*.pem",
        "venv",
        "venv/**",
        "to/a",
        "publish.yaml",
    ],
)
def test_an_exclude_glob_that_has_something_to_do_is_no_warning(checkpoint, glob):
    folder = checkpoint({"a": "", "not/asked": "", "dir/b.x": "", ".git/config": "", "keep": ""})
    (folder / "ear" / "none").mkdir()
    (folder / "ear" / "to").symlink_to("dir")
    (folder / "ear" / "dir" / "a").write_text("")
    (folder / "ear" / "venv").symlink_to("/usr")
    include = "['**']" if "venv" in glob else "[keep, a]"
    (folder / "ear" / "publish.yaml").write_text(f"include: {include}\nexclude: ['{glob}']\n")
    assert [warning for warning in curate(folder).warnings if "exclude" in warning] == []


def test_an_exclude_glob_with_the_name_of_a_file_as_a_folder_is_a_warning(checkpoint):
    (warning,) = curate(checkpoint({"private.csv": ""}, "include: ['**']\nexclude: ['private.csv/**']\n")).warnings
    assert warning == "publish.yaml: exclude 'private.csv/**' matches nothing in ear/"


def test_a_citation_file_that_is_not_asked_for_is_a_warning(checkpoint):
    files = {"a": "", "CITATION.cff": "title: x\n"}
    (warning,) = curate(checkpoint(files, "include: [a]\n")).warnings
    assert warning == "CITATION.cff describes the bundle only as a part of it: add it to include in publish.yaml"
    for policy in "include: [a, CITATION.cff]\n", "include: ['**']\nexclude: [CITATION.cff]\n":
        assert curate(checkpoint(files, policy)).warnings == ()


def test_an_embargo_whose_day_is_over_is_a_warning(checkpoint):
    (warning,) = curate(checkpoint({"a": ""}, "include: [a]\nvisibility: embargoed-until:2026-02-01\n")).warnings
    assert warning.startswith("publish.yaml: the embargo until 2026-02-01 is over already")
    assert curate(checkpoint({"a": ""}, "include: [a]\nvisibility: embargoed-until:2999-02-01\n")).warnings == ()


@pytest.mark.parametrize(
    "name", ["ear/publish.yml", "publish.yaml", "ear/Publish.yaml", "ear/PUBLISH.YML", "Publish.yml"]
)
def test_a_misplaced_policy_is_a_warning(checkpoint, name):
    folder = checkpoint({"code/a": "1"}, None)
    (folder / name).write_text("visibility: public\n")
    assert curate(folder).warnings == (f"{name} is not read: a policy goes into ear/publish.yaml",)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["A", "a"], "are one name on some file systems"),
        (["Dir/x", "dir/y"], "'dir' and 'Dir' are one name"),
        (["\u212a", "k"], "are one name"),
        (["e\u0301", "\u00e9"], "are one name"),
        (["Manifest.lock"], "'manifest.lock' and 'Manifest.lock' are one name"),
        (["nul.txt"], "reserved name on Windows"),
        (["a."], "ends with a dot"),
        ([" a"], "starts with a space"),
        (["a:b"], "has a ':'"),
        (["-rf"], "starts with '-'"),
    ],
)
def test_unportable_names_are_published_with_a_warning(checkpoint, names, part):
    result = curate(checkpoint(dict.fromkeys(names, "1")))
    assert result.included_files == sorted(names)
    assert len(result.warnings) == 1
    assert part in result.warnings[0]


# -- secrets -----------------------------------------------------------------------------------------------------

AWS = "AKIA" + "IOSFODNN7EXAMPL2"
GITHUB = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"
SECRETS = {
    f"key = {AWS}": "AWS Access Key",
    f"token: {GITHUB}": "GitHub Token",
    "-----BEGIN RSA " + "PRIVATE KEY-----": "Private Key",
    "url = https://user:" + "hunter22@example.org/x": "Basic Auth Credentials",
    "xoxb-" + "1234567890-abcdefABCDEF": "Slack Token",
    "aws_secret_access_key = '" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'": "AWS Access Key",
    "sk_live_" + "0123456789abcdefghijklmn": "Stripe Access Key",
}


@pytest.mark.parametrize(("line", "kind"), SECRETS.items())
def test_what_looks_like_a_secret_is_a_warning_without_the_secret(checkpoint, line, kind):
    folder = checkpoint({"code/settings.py": f"a = 1\n\n{line}\nb = 2\n{line}\n"})
    (warning,) = curate(folder).warnings
    assert warning.startswith(f"code/settings.py:3: looks like a secret ({kind})")
    assert "--no-scan-secrets" in warning
    assert line[-12:] not in warning
    assert curate(folder, scan_secrets=False).warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        f"key = {AWS}\n".encode("utf-16"),
        b"\0" + AWS.encode(),
        f"key = '{AWS}'  # pragma: allowlist secret\n".encode(),
        f"# pragma: allowlist nextline secret\nkey = '{AWS}'\n".encode(),
        b"https://{user}:{password}@host, https://${USER}:${PASSWORD}@host, https://u:***@host\n",
        b"a9f0e61a137d86aa9db53465e0801612 3.14159,2.71828\n",
        b"password = 'hunter2hunter2'\n",
    ],
)
def test_what_only_resembles_a_secret_is_passed_over(content):
    assert secrets_scan.find_secrets(content) == []


def test_a_secret_in_a_long_line_or_behind_others_is_found():
    line = b"x" * 300_000 + AWS.encode() + b"y" * 300_000 + GITHUB.encode()
    assert [kind for _, kind in secrets_scan.find_secrets(line)] == ["AWS Access Key", "GitHub Token"]
    many = b"https://a@b " * 5000 + b"\n" + b"https://a@b\n" * 5000 + GITHUB.encode()
    assert secrets_scan.find_secrets(many) == [(5002, "GitHub Token")]


def test_only_the_beginning_of_a_file_is_scanned(checkpoint):
    padding = b"x\n" * (secrets_scan.SCANNED_BYTES // 2)
    folder = checkpoint({"in": padding[:-100] + AWS.encode(), "out": padding + AWS.encode()})
    assert [warning.split(":")[0] for warning in curate(folder).warnings] == ["in"]


def test_scanning_uses_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for line in SECRETS:
        assert secrets_scan.find_secrets(line.encode())


@pytest.mark.parametrize("place", secrets_scan.PLUGINS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_hints_hide_nothing_that_a_plugin_finds(place, data):
    plugin = secrets_scan._plugins()[secrets_scan.PLUGINS.index(place)]
    ascii_only = st.characters(max_codepoint=126, min_codepoint=32)
    for pattern in plugin.denylist:
        text = data.draw(st.from_regex(pattern, fullmatch=True, alphabet=ascii_only)).encode()
        assert list(secrets_scan._windows(b"first\n" + text + b"\nlast"))


def test_curating_nothing_suspicious_does_not_load_the_detector(checkpoint):
    folder = checkpoint({"a.py": "import os\nprint('https://example.org')\n"})
    code = (
        "import sys\nfrom ari_core.workflows.curate import curate\n"
        "curate(sys.argv[1])\nassert 'detect_secrets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


# -- crashes -----------------------------------------------------------------------------------------------------

# Runs curate in a child that dies, as by SIGKILL, just before its n-th call into the system, for every n. Before
# the child there is an old result; after it there must be the old or the new one, whole; and the next run mends.
CRASHES = r"""
import json, os, pathlib, shutil, sys
from ari_core import fs
from ari_core.limits import Limits
from ari_core.manifest import parse_manifest
from ari_core.workflows.curate import curate
import hashlib

base, exchange = pathlib.Path(sys.argv[1]), sys.argv[2] == "exchange"
WATCHED = ("open", "os.", "shutil.", "ctypes.dlsym", "fcntl.")
if not exchange:
    fs._exchange = lambda *_: False

def prepare(folder):
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "a").write_text("old")
    curate(folder)
    (folder / "ear" / "code" / "a").write_text("new")
    (folder / "ear" / "code" / "b").write_text("new too")

def whole(published):
    raw = (published / "manifest.lock").read_bytes()
    files = {e.path: e.sha256 for e in parse_manifest(raw, Limits()).files}
    found = {p.relative_to(published).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
             for p in published.rglob("*") if p.is_file() and p.name != "manifest.lock"}
    assert found == files, (found, files)
    return sorted(files)

def run(folder, dies_at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0
    def hook(event, arguments):
        nonlocal calls
        if event.startswith(WATCHED):
            calls += 1
            if calls == dies_at:
                os._exit(9)
    sys.addaudithook(hook)
    try:
        curate(folder)
    except BaseException:
        import traceback; traceback.print_exc(); os._exit(1)
    os._exit(0)

outcomes = []
for step in range(1, 1000):
    folder = base / str(step)
    prepare(folder)
    code = run(folder, step)
    assert code in (0, 9), code
    published = folder / "ear_published"
    if published.exists():
        outcomes.append("new" if len(whole(published)) == 2 else "old")
    else:
        assert not exchange, "a moment without ear_published"
        outcomes.append("gone")
        fs.recover_tree(folder, "ear_published")
        whole(published)
    assert sorted(curate(folder).included_files) == ["code/a", "code/b"]
    assert whole(published) == ["code/a", "code/b"]
    assert sorted(os.listdir(folder)) == ["ear", "ear_published"], os.listdir(folder)
    shutil.rmtree(folder)
    if code == 0:
        break
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_a_crash_at_any_moment_loses_nothing(tmp_path, way):
    command = [sys.executable, "-c", CRASHES, str(tmp_path), way]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 20
    assert {"old", "new"} <= set(outcomes)
    assert ("gone" in outcomes) is (way == "aside")  # else the moment between the two renames was not hit
