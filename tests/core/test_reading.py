"""clone, verify and show of paths: which refs are understood, what they are compared with, what is left behind."""

import errno
import hashlib
import json
import os
import shutil
import tarfile

import pytest
from support.bundles import FILES, contents, make_bundle, make_tree

from ari_core import clone, show, status, verify
from ari_core.errors import (
    ArchiveRefusedError,
    CheckpointNotFoundError,
    ContentMismatchError,
    DestinationExistsError,
    DigestMismatchError,
    DigestSpellingError,
    LocalPermissionError,
    NotAnchoredError,
    NotFound,
    UnknownBackend,
    Unsupported,
    UsageError,
    VerificationError,
)
from ari_core.names import STAGING_PREFIX
from ari_core.record import Record, write_record
from ari_core.workflows import refs


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def bundle(here):
    manifest = make_bundle(here / "bundle.tar.gz")
    shutil.rmtree(here / "bundle.tar.gz.tree")
    return manifest


def checkpoint(folder, digest, ref):
    (folder / "ear_published").mkdir(parents=True)
    write_record(folder, Record(backend="local-tarball", ref=ref, bundle_sha256=digest))


# -- refs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "absolute", "file:///", "file://localhost", "percent"])
def test_spellings_of_a_path(here, bundle, form):
    path = here / "bundle.tar.gz"
    if form == "percent":
        path = path.rename(here / "a b#ü.tar.gz")
    ref = {
        "path": "bundle.tar.gz",
        "absolute": str(path),
        "file:///": f"file://{path}",
        "file://localhost": f"file://localhost{path}",
        "percent": refs.file_ref(path),
    }[form]
    found = verify(ref)
    assert found.ok
    assert found.bundle_sha256 == bundle.bundle_sha256
    assert verify(found.ref).ok


def test_a_home_directory_is_understood(here, bundle, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert verify("~/bundle.tar.gz").ok


def test_a_file_whose_name_looks_like_a_scheme(here, bundle):
    (here / "bundle.tar.gz").rename(here / "s3:x")
    assert verify("s3:x").ok


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [
        ("absent.tar.gz", NotFound, "no file or folder"),
        ("", UsageError, "empty"),
        ("file://elsewhere/x", Unsupported, "on another machine"),
        ("file:relative", Unsupported, "not a file:///absolute/path"),
        ("file:///a?b", Unsupported, "%3F"),
        ("nosuch://x", UnknownBackend, "nosuch"),
        ("simplecache::file:///etc/passwd", UnknownBackend, "simplecache"),
        ("x\0y", UsageError, "NUL"),
    ],
)
def test_refs_that_lead_nowhere(here, ref, error, words):
    for call in (clone, verify, show):
        with pytest.raises(error, match=words):
            call(ref)
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    "ref", ["10.5281/zenodo.7", "doi.org/10.5281/zenodo.7", "www.doi.org/10.5281/zenodo.7", "DOI 10.5281/zenodo.7"]
)
def test_a_doi_that_is_not_written_as_a_ref_is_recognised(here, ref):
    with pytest.raises(NotFound, match="no file or folder") as caught:
        clone(ref)
    assert caught.value.hint == "a DOI is written doi:10.5281/zenodo.7"


def test_not_a_regular_file_is_refused_without_waiting(here):
    os.mkfifo(here / "pipe")
    with pytest.raises(ArchiveRefusedError, match="not a regular file"):
        clone("pipe", "out")


def test_an_unreadable_file(here, bundle, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))  # root would not be refused

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LocalPermissionError, match=r"bundle\.tar\.gz.*: Permission denied"):
        verify("bundle.tar.gz")


def test_a_folder_that_is_nothing(here):
    (here / "x").mkdir()
    for call in (verify, clone, show):
        with pytest.raises(ArchiveRefusedError, match="'x': this is a folder without"):
            call("x")


def test_an_interrupted_curation_is_said(here):
    (here / "cp" / "ear").mkdir(parents=True)
    (here / "cp" / f"{STAGING_PREFIX}previous-ear_published").mkdir()
    with pytest.raises(NotFound, match="curation was interrupted"):
        verify("cp")


def test_settings_mean_nothing_for_a_path(here, bundle):
    with pytest.raises(UsageError, match="'nonsense'"):
        verify("bundle.tar.gz", options={"nonsense": "1"})


def test_a_record_whose_place_is_gone(here):
    checkpoint(here / "cp", "0" * 64, refs.file_ref(here / "unplugged" / "bundle.tar.gz"))
    with pytest.raises(NotFound, match="which is not there") as caught:
        verify("cp")
    assert "plugged in" in caught.value.hint


def test_a_folder_with_an_archive_in_it(here, bundle):
    (here / "store").mkdir()
    (here / "bundle.tar.gz").rename(here / "store" / "bundle.tar.gz")
    (here / "store" / "manifest.lock").write_bytes(bundle.raw)
    found = verify("store")
    assert found.ok
    assert found.form == "tar.gz"


@pytest.mark.parametrize("files", [{"bundle.tar.gz"}, {"bundle.tar.gz", "meta.json"}], ids=len)
def test_a_bundle_with_the_files_of_a_store_is_no_store(here, bundle, files):
    """Else another bundle than the one in the folder is checked."""
    inner = (here / "bundle.tar.gz").read_bytes()
    made = make_tree(here / "folder", dict.fromkeys(files, inner))
    assert verify("folder").bundle_sha256 == made.bundle_sha256
    assert verify("folder", expect_sha256=made.bundle_sha256).ok
    assert not verify("folder", expect_sha256=bundle.bundle_sha256).ok
    (here / "folder/bundle.tar.gz").write_bytes(inner + b"\0")
    with pytest.raises(UsageError, match="may be a stored bundle or a damaged unpacked one") as caught:
        verify("folder")
    assert "manifest.lock" in caught.value.hint
    assert [problem.path for problem in verify("folder/manifest.lock").problems] == ["bundle.tar.gz"]


def test_a_stored_bundle_with_the_files_of_a_store_is_read_by_its_name(here):
    (here / "store").mkdir()
    made = make_bundle(here / "store/bundle.tar.gz", {"bundle.tar.gz": b"x"})
    shutil.rmtree(here / "store/bundle.tar.gz.tree")
    (here / "store/manifest.lock").write_bytes(made.raw)
    with pytest.raises(UsageError, match="may be a stored bundle") as caught:
        verify("store")
    assert "bundle.tar.gz" in caught.value.hint
    assert verify("store/bundle.tar.gz", expect_sha256=made.bundle_sha256).ok


def test_an_unpacked_bundle_may_lie_where_a_store_would_have_it(here):
    made = make_tree(here / "artifacts/0123456789abcdef", {"meta.json": b"{}", "a": b""})
    assert verify("artifacts/0123456789abcdef", expect_sha256=made.bundle_sha256).ok


def store(folder, files):
    """Stores a bundle as a registry's folder has it; returns where, and its manifest."""
    made = make_bundle(folder / "b.tar.gz", files)
    shutil.rmtree(folder / "b.tar.gz.tree")
    archive = (folder / "b.tar.gz").read_bytes()
    (folder / "b.tar.gz").unlink()
    digest = hashlib.sha256(archive).hexdigest()
    place = folder / "artifacts" / digest[:16]
    place.mkdir(parents=True)
    (place / "bundle.tar.gz").write_bytes(archive)
    (place / "manifest.lock").write_bytes(made.raw)
    (place / "meta.json").write_text(
        json.dumps({"visibility": "public", "sha256": digest, "length": len(archive)})
    )
    return place, made


@pytest.mark.parametrize("files", [{"meta.json", "a"}, {"meta.json"}, {"meta.json", "bundle.tar.gz"}], ids=len)
def test_what_a_registry_stores_is_read_whatever_its_files_are_called(here, files):
    place, made = store(here, dict.fromkeys(files, b"{}"))
    for ref in (str(place), refs.file_ref(place) + "/"):
        assert verify(ref, expect_sha256=made.bundle_sha256).archive_sha256.startswith(place.name)
    checkpoint(here / "cp", made.bundle_sha256, refs.file_ref(place) + "/")
    assert clone("cp", "out").bundle_sha256 == made.bundle_sha256


def test_a_registrys_metadata_in_a_bundle_are_files_like_any_other(here):
    """Even where the unpacked bundle lies as the artifact did that it was made of."""
    place, _ = store(here / "registry", FILES)
    files = {name: (place / name).read_bytes() for name in ("bundle.tar.gz", "meta.json")}
    made = make_tree(here / "artifacts" / place.name, files)
    assert verify(f"artifacts/{place.name}", expect_sha256=made.bundle_sha256).ok


@pytest.mark.parametrize("files", [{"meta.json", "a"}, {"meta.json"}], ids=len)
def test_an_altered_file_of_an_unpacked_bundle_is_named_where_a_store_would_have_it(here, files):
    make_tree(here / "artifacts/0123456789abcdef", dict.fromkeys(files, b"{}"))
    (here / "artifacts/0123456789abcdef/meta.json").write_bytes(b"{ }")
    assert [p.path for p in verify("artifacts/0123456789abcdef").problems] == ["meta.json"]


@pytest.mark.parametrize("manifest", ["whole", "junk", "renamed", "folder"])
def test_a_store_planted_in_an_unpacked_bundle_does_not_vouch_for_it(here, manifest):
    place, made = store(here, FILES)
    make_tree(place)
    (place / "code/run.py").write_text("evil()")
    if manifest == "renamed":
        for path in ("README.md", "code", "data"):
            (place / path).rename(place / path.swapcase())
    elif manifest == "folder":
        (place / "manifest.lock").unlink()
        (place / "manifest.lock").mkdir()
    elif manifest == "junk":
        (place / "manifest.lock").write_text("x")
    assert not verify(str(place), expect_sha256=made.bundle_sha256).ok


def test_what_lies_in_a_registrys_folder_without_a_manifest_is_named_as_not_checked(here):
    place, made = store(here, FILES)
    (place / "manifest.lock").unlink()
    assert verify(str(place), expect_sha256=made.bundle_sha256).beside is None
    (place / "evil.py").write_text("evil()")
    assert verify(str(place), expect_sha256=made.bundle_sha256).beside == place


def test_what_an_operating_system_left_in_a_registry_does_no_harm(here):
    place, made = store(here, FILES)
    (place / ".DS_Store").write_bytes(b"x")
    found = verify(str(place), expect_sha256=made.bundle_sha256)
    assert (found.ok, found.beside) == (True, place)


@pytest.mark.parametrize("target", ["nowhere", "bundle.tar.gz", "../bundle.tar.gz"])
def test_a_link_in_place_of_the_only_file_is_refused(here, bundle, target):
    made = make_tree(here / "folder", {"bundle.tar.gz": (here / "bundle.tar.gz").read_bytes()})
    (here / "folder/bundle.tar.gz").unlink()
    (here / "folder/bundle.tar.gz").symlink_to(target)
    assert not verify("folder", expect_sha256=made.bundle_sha256).ok


# -- anchors -----------------------------------------------------------------------------------------------------


def test_what_it_was_compared_with(here, bundle):
    assert verify("bundle.tar.gz").anchored_by == "none"
    assert verify("bundle.tar.gz", expect_sha256=bundle.bundle_sha256).anchored_by == "paper"
    checkpoint(here / "cp", bundle.bundle_sha256, refs.file_ref(here / "bundle.tar.gz"))
    assert verify("cp").anchored_by == "record"
    assert verify("cp/publish_record.json").anchored_by == "record"
    assert verify("cp", expect_sha256=bundle.bundle_sha256).anchored_by == "paper"


def test_a_record_of_another_bundle_is_a_mismatch(here, bundle):
    checkpoint(here / "cp", "0" * 64, refs.file_ref(here / "bundle.tar.gz"))
    with pytest.raises(DigestMismatchError) as caught:
        clone("cp", "out")
    assert "paper" not in caught.value.hint
    assert not verify("cp").ok


def test_require_digest(here, bundle):
    for call in (clone, verify):
        with pytest.raises(NotAnchoredError):
            call("bundle.tar.gz", require_digest=True)
    checkpoint(here / "cp", bundle.bundle_sha256, refs.file_ref(here / "bundle.tar.gz"))
    assert verify("cp", require_digest=True).ok
    assert clone("bundle.tar.gz", "out", require_digest=True, expect_sha256=bundle.bundle_sha256).extracted


def test_a_misspelt_digest_is_seen_before_anything_is_opened(here):
    with pytest.raises(DigestSpellingError):
        clone("absent", expect_sha256="")


def test_a_checkpoint_that_is_also_an_unpacked_bundle_is_not_guessed_about(here, bundle):
    """Checking the archive while the user looks at altered files beside it would be a false "OK"."""
    make_tree(here / "cp")
    (here / "cp" / "code" / "run.py").write_text("evil")
    checkpoint(here / "cp", bundle.bundle_sha256, refs.file_ref(here / "bundle.tar.gz"))
    with pytest.raises(UsageError, match="at once") as caught:
        verify("cp", expect_sha256=bundle.bundle_sha256)
    assert "manifest.lock" in caught.value.hint
    assert {problem.path for problem in verify("cp/manifest.lock").problems} >= {"code/run.py"}


def test_an_honest_archive_in_an_altered_folder_does_not_make_the_folder_pass(here, bundle):
    make_tree(here / "unpacked")
    (here / "unpacked" / "code" / "run.py").write_text("evil")
    shutil.copy(here / "bundle.tar.gz", here / "unpacked" / "bundle.tar.gz")
    found = verify("unpacked", expect_sha256=bundle.bundle_sha256)
    assert not found.ok
    assert {problem.path for problem in found.problems} == {"code/run.py", "bundle.tar.gz"}


@pytest.mark.parametrize("stand_in", ["bundle", "ear_published", "record"])
@pytest.mark.parametrize("manifest", ["junk", "renamed", "empty", "folder"])
def test_no_honest_copy_vouches_for_the_folder_it_lies_in(here, bundle, stand_in, manifest):
    """A reader who checks a folder must not be told that another copy, planted in it, is right."""
    make_tree(here / "s", FILES)
    (here / "s/code/run.py").write_text("evil()")
    if manifest == "renamed":
        for path in ("README.md", "code", "data"):
            (here / "s" / path).rename(here / "s" / path.swapcase())
    elif manifest == "folder":
        (here / "s/manifest.lock").unlink()
        (here / "s/manifest.lock").mkdir()
    else:
        (here / "s/manifest.lock").write_text("x" if manifest == "junk" else "")
    if stand_in == "bundle":
        shutil.copy(here / "bundle.tar.gz", here / "s/bundle.tar.gz")
    elif stand_in == "ear_published":
        make_tree(here / "s/ear_published", FILES)
    else:
        checkpoint_record = Record(backend="local-tarball", ref=refs.file_ref(here / "bundle.tar.gz"))
        write_record(here / "s", checkpoint_record)
    assert not verify("s", expect_sha256=bundle.bundle_sha256).ok
    with pytest.raises(VerificationError):
        clone("s", "out", expect_sha256=bundle.bundle_sha256)


def test_a_folder_can_be_named_by_its_manifest(here, bundle, monkeypatch):
    make_tree(here / "unpacked")
    assert verify("unpacked/manifest.lock", expect_sha256=bundle.bundle_sha256).ok
    monkeypatch.chdir(here / "unpacked")
    assert verify("manifest.lock", expect_sha256=bundle.bundle_sha256).ok
    assert clone("manifest.lock", here / "copy", expect_sha256=bundle.bundle_sha256).file_count == len(FILES)


def test_what_was_not_checked_is_named(here, bundle):
    checkpoint(here / "cp", bundle.bundle_sha256, refs.file_ref(here / "bundle.tar.gz"))
    assert verify(str(here / "cp")).beside == here / "cp"
    assert clone(str(here / "cp"), "out").beside == here / "cp"
    assert verify("bundle.tar.gz").beside is None


@pytest.mark.parametrize("name", [".git.tar.gz", "-rf.tar", "~x.tgz", ".tar.gz", "a\x1bb.tar.gz", ".ari.tgz"])
def test_a_strangers_name_for_the_archive_is_not_the_destination(here, bundle, name):
    (here / "in").mkdir()
    (here / "bundle.tar.gz").rename(here / "in" / name)
    assert clone(f"in/{name}").dest == here / "bundle"


def test_an_empty_destination_keeps_its_mode(here, bundle):
    (here / "out").mkdir(mode=0o700)
    clone("bundle.tar.gz", "out")
    assert (here / "out").stat().st_mode & 0o777 == 0o700


def test_a_home_of_nobody(here):
    with pytest.raises(NotFound):
        verify("~no-such-user-here/x")


def test_a_folder_does_not_stand_in_for_an_address(here, bundle):
    (here / "nosuch:" / "host").mkdir(parents=True)
    shutil.copy(here / "bundle.tar.gz", here / "nosuch:" / "host" / "b.tar.gz")
    with pytest.raises(UnknownBackend):
        verify("nosuch://host/b.tar.gz")


def test_a_fifo_for_a_record_is_not_waited_for(here):
    (here / "cp" / "ear").mkdir(parents=True)
    os.mkfifo(here / "cp" / "publish_record.json")
    with pytest.raises(UsageError, match="not a regular file"):
        status(here / "cp")


def test_a_record_that_names_nothing(here):
    checkpoint(here / "cp", "", "")
    with pytest.raises(CheckpointNotFoundError):
        verify("cp")


def test_a_record_that_names_itself_does_not_loop(here):
    checkpoint(here / "cp", "", refs.file_ref(here / "cp"))
    with pytest.raises(UsageError):
        verify("cp")


def test_records_do_not_lead_in_circles(here):
    checkpoint(here / "cp", "", refs.file_ref(here / "cp" / "publish_record.json"))
    with pytest.raises(UsageError, match="names a checkpoint"):
        verify("cp")


def test_a_curated_checkpoint_without_a_record(here):
    make_tree(here / "cp" / "ear_published")
    found = verify("cp")
    assert found.ok
    assert found.ref.endswith("/cp/ear_published")


# -- clone -------------------------------------------------------------------------------------------------------


def test_clone_gives_the_very_files(here, bundle):
    result = clone("bundle.tar.gz")
    assert result.dest == here / "bundle"
    assert contents(here / "bundle") == {**FILES, "manifest.lock": bundle.raw}
    assert result.archive_sha256 == hashlib.sha256((here / "bundle.tar.gz").read_bytes()).hexdigest()
    assert (result.file_count, result.total_size) == (3, 11)
    assert sorted(os.listdir(here)) == ["bundle", "bundle.tar.gz"]


def test_clone_of_an_unpacked_folder(here):
    manifest = make_tree(here / "t")
    (here / "t" / "code" / "run.py").chmod(0o755)
    result = clone("t", "copy", expect_sha256=manifest.bundle_sha256)
    assert result.archive_sha256 is None
    assert contents(here / "copy") == contents(here / "t")
    assert (here / "copy/code/run.py").stat().st_mode & 0o777 == 0o755
    assert (here / "copy/README.md").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("order", ["first", "last"])
def test_no_extract_stores_the_archive_byte_for_byte(here, bundle, order):
    source = here / "bundle.tar.gz"
    if order == "last":
        clone("bundle.tar.gz", "t")
        with tarfile.open(here / "other.tar", "w") as archive:
            for name in ("README.md", "code/run.py", "data/empty", "manifest.lock"):
                archive.add(here / "t" / name, name)
        source = here / "other.tar"
    result = clone(str(source), "kept", extract=False)
    assert not result.extracted
    assert (here / "kept").read_bytes() == source.read_bytes()


def test_no_extract_derives_a_name(here, bundle):
    (here / "in").mkdir()
    (here / "bundle.tar.gz").rename(here / "in" / "run.tgz")
    assert clone("in/run.tgz", extract=False).dest == here / "run.tar.gz"


def test_no_extract_of_a_folder_or_onto_something(here, bundle):
    make_tree(here / "t")
    with pytest.raises(UsageError, match="no archive"):
        clone("t", "x", extract=False)
    (here / "empty").mkdir()
    for name in ("empty", "t"):
        with pytest.raises(DestinationExistsError):
            clone("bundle.tar.gz", name, extract=False)
    assert not (here / "x").exists()


def test_no_extract_of_what_does_not_verify_leaves_nothing(here, bundle):
    with pytest.raises(DigestMismatchError):
        clone("bundle.tar.gz", "kept", extract=False, expect_sha256="0" * 64)
    assert os.listdir(here) == ["bundle.tar.gz"]


def test_an_empty_folder_is_a_destination(here, bundle):
    (here / "out").mkdir()
    clone("bundle.tar.gz", "out")
    assert contents(here / "out").keys() == {*FILES, "manifest.lock"}


def test_the_current_folder_is_a_destination_if_empty(here, bundle, monkeypatch):
    (here / "out").mkdir()
    monkeypatch.chdir(here / "out")
    clone("../bundle.tar.gz", ".")
    assert contents(here / "out").keys() == {*FILES, "manifest.lock"}


def test_a_missing_parent_is_said(here, bundle):
    with pytest.raises(UsageError, match="there is no folder"):
        clone("bundle.tar.gz", "a/b/c")
    assert os.listdir(here) == ["bundle.tar.gz"]


def test_ctrl_c_leaves_nothing(here, bundle):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clone("bundle.tar.gz", "out", progress=interrupt)
    assert os.listdir(here) == ["bundle.tar.gz"]


def test_for_another_bundle_nothing_is_even_staged(here, monkeypatch):
    """A hostile mirror must not be able to fill the disk with a bundle nobody asked for."""
    make_bundle(here / "big.tar.gz", {"zeros": bytes(3_000_000)})
    written = []
    monkeypatch.setattr("ari_core.verification.write_all", lambda _fd, data: written.append(len(data)))
    with pytest.raises(DigestMismatchError):
        clone("big.tar.gz", "out", expect_sha256="0" * 64)
    assert written == []


def test_progress_reaches_the_end(here, bundle):
    seen = []
    clone("bundle.tar.gz", "out", progress=lambda *step: seen.append(step))
    size = (here / "bundle.tar.gz").stat().st_size
    assert seen[-1] == ("reading", size, size)


# -- verify and show ---------------------------------------------------------------------------------------------


def test_verify_lists_everything_that_disagrees(here):
    make_tree(here / "t")
    (here / "t/README.md").write_bytes(b"x\n")
    (here / "t/code/run.py").unlink()
    (here / "t/extra").write_bytes(b"")
    (here / "t/hollow").mkdir()
    (here / "t/data/empty").unlink()
    (here / "t/data/empty").symlink_to("/dev/null")
    found = verify("t")
    assert not found.ok
    assert isinstance(found.error, ContentMismatchError)
    assert {(p.kind, p.path) for p in found.problems} == {
        ("differs", "README.md"),
        ("missing", "code/run.py"),
        ("extra", "extra"),
        ("extra", "hollow"),
        ("differs", "data/empty"),
    }


def test_verify_of_an_archive_lists_everything_too(here):
    manifest = make_tree(here / "t")
    (here / "t/README.md").write_bytes(b"x\n")
    (here / "t/extra").write_bytes(b"")
    with tarfile.open(here / "x.tar", "w") as archive:
        for name in ("README.md", "extra", "data/empty", "manifest.lock"):
            archive.add(here / "t" / name, name)
    found = verify("x.tar", expect_sha256=manifest.bundle_sha256)
    assert {(p.kind, p.path) for p in found.problems} == {
        ("differs", "README.md"),
        ("missing", "code/run.py"),
        ("extra", "extra"),
    }


def test_os_files_are_overlooked_only_on_request(here):
    make_tree(here / "t")
    (here / "t/.DS_Store").write_bytes(b"x")
    (here / "t/code/__pycache__").mkdir()
    (here / "t/code/__pycache__/x.pyc").write_bytes(b"x")
    (here / "t/._README.md").write_bytes(b"x")
    assert not verify("t").ok
    assert verify("t", ignore_os_files=True).ok
    (here / "t/evil").write_bytes(b"x")
    assert [p.path for p in verify("t", ignore_os_files=True).problems] == ["evil"]


def test_a_listed_os_file_that_is_missing_is_still_missing(here):
    make_tree(here / "t", {".DS_Store": b"x", "a": b""})
    (here / "t/.DS_Store").unlink()
    assert [p.kind for p in verify("t", ignore_os_files=True).problems] == ["missing"]


def test_what_is_listed_in_an_os_folder_is_compared(here):
    make_tree(here / "t", {"__pycache__/listed": b"x"})
    (here / "t/__pycache__/other").write_bytes(b"x")
    assert verify("t", ignore_os_files=True).ok
    assert [p.path for p in verify("t").problems] == ["__pycache__/other"]
    (here / "t/__pycache__/listed").write_bytes(b"y")
    assert [p.kind for p in verify("t", ignore_os_files=True).problems] == ["differs"]


def test_a_listed_file_with_an_os_files_name_is_compared(here):
    make_tree(here / "t", {"desktop.ini": b"x", "a": b""})
    assert verify("t", ignore_os_files=True).ok
    (here / "t/desktop.ini").write_bytes(b"y")
    assert [p.kind for p in verify("t", ignore_os_files=True).problems] == ["differs"]


def test_verify_writes_nothing(here, bundle):
    before = contents(here)
    verify("bundle.tar.gz")
    verify("bundle.tar.gz", expect_sha256="0" * 64)
    show("bundle.tar.gz")
    assert contents(here) == before


def test_the_hint_says_whose_digest_was_given(here, bundle):
    archive = hashlib.sha256((here / "bundle.tar.gz").read_bytes()).hexdigest()
    manifest = hashlib.sha256(bundle.raw).hexdigest()
    for digest, words in ((archive, "of the archive file"), (manifest, "of manifest.lock")):
        with pytest.raises(DigestMismatchError, match=f"expected {digest}, got {bundle.bundle_sha256}") as caught:
            clone("bundle.tar.gz", "out", expect_sha256=digest)
        assert words in caught.value.hint


def test_show_describes_without_unpacking(here):
    manifest = make_bundle(here / "b.tar.gz", publish={"license": "MIT"})
    found = show("b.tar.gz")
    assert found.manifest == manifest
    assert found.archive_size == (here / "b.tar.gz").stat().st_size
    (here / "b.tar.gz").write_bytes((here / "b.tar.gz").read_bytes()[:-1])
    with pytest.raises(ArchiveRefusedError, match="cut off"):
        show("b.tar.gz")
