"""The backend that keeps one bundle in a folder."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from support.places import failing_calls

from ari_backends import _local, local_tarball
from ari_backends.local_tarball import LocalTarball, file_ref, path_of
from ari_core.conformance import BackendContract, make_bundle, repacked
from ari_core.conformance.knobs import new, read_all, together
from ari_core.contract import (
    CHUNK,
    Artifact,
    Locator,
    OpenContext,
    SupportsLocalPath,
    SupportsManifest,
    SupportsWorkdir,
)
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    Unsupported,
)
from ari_core.record import read_record
from ari_core.workflows.curate import curate
from ari_core.workflows.delete import delete
from ari_core.workflows.publish import publish

ONE, TWO, THREE = (make_bundle(seed=seed) for seed in (1, 2, 3))


def store(out, warn=lambda _line: None, **settings):
    return LocalTarball(LocalTarball.Settings(out=out, **settings), OpenContext(warn=warn))


def put(backend, bundle, **more):
    return backend.put(bundle.source(), new(**more))


def kept(bundle):
    return f"bundle-{bundle.archive_sha256[:16]}.tar.gz"


def names(folder):
    """Returns all that is in a folder: no staging and no lock may be left."""
    return sorted(os.listdir(folder))


def holds(folder, bundle, name="bundle.tar.gz"):
    return (folder / name).read_bytes() == bundle.archive


# -- the conformance suite


class TestConformance(BackendContract):
    capacity = 1  # one folder, one bundle: another one is refused

    @pytest.fixture
    def backend(self, tmp_path):
        (tmp_path / "out").mkdir()
        with store(tmp_path / "out") as backend:
            yield backend

    def raw_corrupt(self, backend, locator):
        data = bytearray(Path(locator).read_bytes())
        data[len(data) // 2] ^= 1
        Path(locator).write_bytes(data)

    @contextmanager
    def break_store(self, backend, step):
        out = str(backend.settings.out)
        broken = {
            "stat": [(Path, "stat", errno.EIO)],
            "open": [(os, "open", errno.ESTALE)],
            "read": [(os, "read", errno.EIO)],
            "list": [(os, "scandir", errno.EIO)],
            "put": [(_local, "write_all", errno.ENOSPC)],
            "denied": [(Path, "stat", errno.EACCES), (os, "open", errno.EACCES)],
        }
        with failing_calls(out, broken[step]):
            yield


# -- refs


PATHS = [
    "/plain/bundle.tar.gz",
    "/a b/ü/日本.tar.gz",
    "/100%/50%25/x",
    "/what?/a#b;c=d&e",
    "/line\nfeed\ttab",
    os.fsdecode(b"/not/utf-8/\xff\xfe"),
    "/:/@/[x]/~",
    "/back\\slash",
]


@pytest.mark.parametrize("path", PATHS)
def test_any_path_survives_its_ref(path):
    ref = file_ref(path)
    assert ref.startswith("file:///")
    assert ref.isascii()
    assert ref.isprintable()
    assert " " not in ref
    assert str(path_of(ref)) == path


@pytest.mark.parametrize(
    "ref", ["file:///x/y%20z", "file:/x/y%20z", "file://localhost/x/y%20z", "FILE://LOCALHOST/x/y%20z"]
)
def test_the_spellings_of_a_file_ref(ref):
    assert path_of(ref) == Path("/x/y z")


NOT_HERE = ["", "/x", "x", "file:x", "file://", "file://host/x", "file://host", "file://user@localhost/x"]
NOT_HERE += ["https://localhost/x", "file:///x?y", "file:///x#y", "file:///a%00b", "file:///\ud800"]


@pytest.mark.parametrize("ref", NOT_HERE)
def test_what_is_no_file_ref_of_this_machine_is_refused(ref):
    with pytest.raises(Unsupported):
        store(None).resolve(ref)


def test_a_folder_leads_to_the_bundle_in_it(tmp_path):
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    assert locator == str(tmp_path / "bundle.tar.gz")
    assert {backend.resolve(ref) for ref in (file_ref(str(tmp_path)), file_ref(f"{tmp_path}/"))} == {locator}


def test_a_folder_without_a_bundle_leads_nowhere(tmp_path):
    with pytest.raises(NotFound):
        store(None).resolve(file_ref(str(tmp_path)))


def test_any_archive_can_be_read_without_a_folder_to_store_in(tmp_path):
    path = tmp_path / "from an e-mail.tgz"
    path.write_bytes(ONE.archive)
    backend = store(None)
    locator = backend.resolve(file_ref(str(path)))
    assert read_all(backend, locator) == ONE.archive
    assert backend.optional(SupportsManifest).manifest(locator) == ONE.manifest
    assert backend.optional(SupportsLocalPath).local_path(locator) == path


def test_a_manifest_that_does_not_come_first_is_found(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "manifest.lock").write_bytes(ONE.manifest)
    subprocess.run(["tar", "xzf", "-", "-C", tmp_path / "a"], input=ONE.archive, check=True)
    (tmp_path / "a" / "b").rmdir()
    path = tmp_path / "repacked.tgz"
    subprocess.run(["tar", "czf", path, "-C", tmp_path, "a/data.bin", "a/manifest.lock"], check=True)
    assert store(None).manifest(Locator(str(path))) == ONE.manifest


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "bundle.tar.gz"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "bundle.tar.gz").mkdir(parents=True)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(Unsupported, match="not a regular file"):
        store(None).resolve(file_ref(str(path)))
    with pytest.raises(AlreadyExists, match="no regular file"):
        put(store(tmp_path), ONE, replace=True)
    assert names(tmp_path) == ["bundle.tar.gz"]


# -- where to


def test_opening_creates_nothing(tmp_path):
    with store(tmp_path / "yet") as backend:
        assert backend.probe().put
        assert list(backend.list()) == []
        with pytest.raises(NotFound):
            backend.resolve(file_ref(str(tmp_path / "yet")))
    assert names(tmp_path) == []


def test_put_creates_the_folder(tmp_path):
    out = tmp_path / "yet"
    assert put(store(out), ONE)[1]
    assert names(out) == ["bundle.tar.gz", "manifest.lock"]
    assert (out / "manifest.lock").read_bytes() == ONE.manifest


def test_a_whole_chain_of_folders_is_not_created(tmp_path):
    """It is a misspelling, or a disk that is not there."""
    backend = store(tmp_path / "not" / "there" / "yet")
    for call in backend.probe, lambda: put(backend, ONE), lambda: list(backend.list()), backend.workdir:
        with pytest.raises(InvalidConfiguration) as caught:
            call()
        assert caught.value.message == f"there is no folder '{tmp_path}/not/there'"
        assert "create it first" in caught.value.hint
        assert caught.value.exit_code == 2
    assert names(tmp_path) == []


def test_a_folder_where_none_can_be_made():
    with pytest.raises(InvalidConfiguration) as caught:
        put(store(Path("/proc/nope")), ONE)
    assert caught.value.message.startswith("the folder '/proc/nope' cannot be created: ")
    assert "-o out=DIR" in caught.value.hint
    assert caught.value.exit_code == 2


def test_without_a_folder_the_checkpoint_is_meant(tmp_path):
    backend = LocalTarball(LocalTarball.Settings(), OpenContext(checkpoint=tmp_path))
    assert put(backend, ONE)[0].locator == str(tmp_path / "bundle.tar.gz")


def test_without_any_folder_the_error_says_how_to_give_one():
    backend = LocalTarball(LocalTarball.Settings())
    for call in backend.probe, lambda: put(backend, ONE), lambda: list(backend.list()), backend.workdir:
        with pytest.raises(InvalidConfiguration) as caught:
            call()
        assert "-o out=DIR" in caught.value.hint
        assert "ARI_LOCAL_TARBALL_OUT" in caught.value.hint


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_is_no_folder(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    backend = store(tmp_path / "file" / below)
    for call in backend.probe, lambda: put(backend, ONE):
        with pytest.raises(InvalidConfiguration, match="is not a folder"):
            call()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_relative_folder_becomes_absolute_the_way_the_system_sees_it(tmp_path, monkeypatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    monkeypatch.chdir(tmp_path)
    assert put(store(Path("link/../out")), ONE)[0].locator == str(tmp_path / "real" / "out" / "bundle.tar.gz")
    assert put(store(Path("link")), ONE)[0].locator == str(tmp_path / "link" / "bundle.tar.gz")


def test_a_folder_that_cannot_be_written_is_known_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    found = store(tmp_path).probe()
    assert (found.put, found.delete, found.list, found.ranges) == (False, "no", "immediate", True)


# -- what is there already


def test_the_same_bundle_in_other_bytes_is_the_same(tmp_path):
    backend, other = store(tmp_path), repacked(ONE)
    put(backend, other)
    artifact, created = put(backend, ONE)
    assert created is False
    assert (artifact.archive_sha256, artifact.size) == (other.archive_sha256, len(other.archive))
    assert holds(tmp_path, other)


def test_a_damaged_copy_does_not_pass_for_the_bundle(tmp_path):
    bundle = make_bundle(8 * CHUNK)
    damaged = bytearray(bundle.archive)
    damaged[-CHUNK] ^= 1
    (tmp_path / "bundle.tar.gz").write_bytes(damaged)
    assert store(tmp_path).manifest(Locator(str(tmp_path / "bundle.tar.gz"))) == bundle.manifest
    with pytest.raises(AlreadyExists, match="does not verify"):
        put(store(tmp_path), bundle)
    assert (tmp_path / "bundle.tar.gz").read_bytes() == damaged
    assert put(store(tmp_path), bundle, replace=True)[1]
    assert holds(tmp_path, bundle)


def test_another_bundle_is_refused_before_anything_is_read(tmp_path):
    backend = store(tmp_path)
    put(backend, ONE)
    source = TWO.source()
    with pytest.raises(AlreadyExists) as caught:
        backend.put(source, new())
    assert "--replace" in caught.value.hint
    assert caught.value.exit_code == 2
    assert source.reads == 0
    assert holds(tmp_path, ONE)
    assert names(tmp_path) == ["bundle.tar.gz", "manifest.lock"]


def test_another_bundle_is_replaced_on_demand(tmp_path):
    put(store(tmp_path), ONE)
    assert put(store(tmp_path), TWO, replace=True)[1]
    assert holds(tmp_path, TWO)
    assert (tmp_path / "manifest.lock").read_bytes() == TWO.manifest
    assert names(tmp_path) == ["bundle.tar.gz", "manifest.lock"]


@pytest.mark.parametrize("replace", [False, True])
def test_the_one_published_before_is_kept(tmp_path, replace):
    warnings = []
    backend = store(tmp_path, warnings.append)
    first = put(backend, ONE)[0]
    artifact, created = put(backend, TWO, previous=first, replace=replace)
    assert (artifact.locator, created) == (first.locator, True)
    assert holds(tmp_path, TWO)
    assert holds(tmp_path, ONE, kept(ONE))
    assert names(tmp_path) == sorted([kept(ONE), "bundle.tar.gz", "manifest.lock"])
    assert [kept(ONE) in line for line in warnings] == [True]
    assert {a.locator: a.size for a, _ in backend.list()} == {
        str(tmp_path / name): len(ONE.archive) for name in (kept(ONE), "bundle.tar.gz")
    }


def test_going_back_and_forth_keeps_each_bundle_once(tmp_path):
    backend = store(tmp_path)
    last = put(backend, ONE)[0]
    for bundle in TWO, ONE, THREE, ONE, ONE:
        last = put(backend, bundle, previous=last)[0]
    assert holds(tmp_path, ONE)
    assert names(tmp_path) == sorted([kept(ONE), kept(TWO), kept(THREE), "bundle.tar.gz", "manifest.lock"])


def test_a_previous_one_elsewhere_gives_no_right_of_way(tmp_path):
    put(store(tmp_path / "here"), ONE)
    there = put(store(tmp_path / "there"), ONE)[0]
    with pytest.raises(AlreadyExists):
        put(store(tmp_path / "here"), TWO, previous=there)


def test_a_previous_one_that_is_no_longer_there_gives_no_right_of_way(tmp_path):
    """The record of one checkpoint names a place where by now another author's bundle lies."""
    backend = store(tmp_path)
    mine = put(backend, ONE)[0]
    put(backend, TWO, replace=True)
    with pytest.raises(AlreadyExists):
        put(backend, THREE, previous=mine)
    with pytest.raises(AlreadyExists):
        put(backend, THREE, previous=Artifact(mine.locator))
    assert holds(tmp_path, TWO)


def test_a_previous_one_is_known_by_its_bundle_too(tmp_path):
    """Packed again by another encoder it is another archive, and still the bundle that was published."""
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    put(backend, TWO, previous=Artifact(locator, archive_sha256="0" * 64, bundle_sha256=ONE.bundle_sha256))
    assert holds(tmp_path, ONE, kept(ONE))


def test_nothing_is_given_up_for_a_name_that_is_taken(tmp_path):
    backend = store(tmp_path)
    first = put(backend, ONE)[0]
    (tmp_path / kept(ONE)).write_text("somebody's notes")
    with pytest.raises(AlreadyExists):
        put(backend, TWO, previous=first)
    assert holds(tmp_path, ONE)
    assert (tmp_path / kept(ONE)).read_text() == "somebody's notes"


def test_a_file_system_without_hard_links_will_do(tmp_path):
    with mock.patch.object(os, "link", side_effect=OSError(errno.EPERM, "no links here")):
        backend = store(tmp_path)
        first = put(backend, ONE)[0]
        with pytest.raises(AlreadyExists):
            put(backend, TWO)
        put(backend, TWO, previous=first)
    assert holds(tmp_path, TWO)
    assert holds(tmp_path, ONE, kept(ONE))


def test_a_link_is_replaced_and_what_it_leads_to_is_kept(tmp_path):
    (tmp_path / "elsewhere.tgz").write_bytes(ONE.archive)
    (tmp_path / "bundle.tar.gz").symlink_to("elsewhere.tgz")
    backend = store(tmp_path)
    put(
        backend,
        TWO,
        previous=Artifact(Locator(str(tmp_path / "bundle.tar.gz")), archive_sha256=ONE.archive_sha256),
    )
    assert holds(tmp_path, TWO)
    assert not (tmp_path / "bundle.tar.gz").is_symlink()
    assert holds(tmp_path, ONE, kept(ONE))
    assert holds(tmp_path, ONE, "elsewhere.tgz")


def test_a_link_to_nothing_is_in_the_way(tmp_path):
    (tmp_path / "bundle.tar.gz").symlink_to("gone")
    with pytest.raises(AlreadyExists):
        put(store(tmp_path), ONE)
    assert names(tmp_path) == ["bundle.tar.gz"]


# -- manifest.lock


@pytest.mark.parametrize("found", [None, b"", b"{}", TWO.manifest, ONE.manifest + b" "])
def test_the_manifest_beside_is_mended(tmp_path, found):
    backend = store(tmp_path)
    put(backend, ONE)
    beside = tmp_path / "manifest.lock"
    beside.unlink() if found is None else beside.write_bytes(found)
    assert put(backend, ONE)[1] is False
    assert beside.read_bytes() == ONE.manifest


def test_a_good_manifest_beside_is_left_alone(tmp_path):
    backend = store(tmp_path)
    put(backend, ONE)
    before = (tmp_path / "manifest.lock").stat()
    put(backend, ONE)
    assert (tmp_path / "manifest.lock").stat() == before


def test_a_manifest_that_cannot_be_written_is_worth_a_warning(tmp_path):
    warnings = []
    (tmp_path / "manifest.lock").mkdir()
    assert put(store(tmp_path, warnings.append), ONE)[1]
    assert holds(tmp_path, ONE)
    assert ["manifest.lock" in line for line in warnings] == [True]


# -- a disk that is not plugged in


@pytest.fixture
def unplugged(tmp_path):
    """A backend whose folder went away with a bundle in it, and that bundle's locator."""
    (tmp_path / "disk").mkdir()
    backend = store(tmp_path / "disk")
    locator = put(backend, ONE)[0].locator
    (tmp_path / "disk").rename(tmp_path / "in a drawer")
    return backend, locator


@pytest.mark.parametrize("call", ["stat", "open", "delete", "local_path", "manifest"])
def test_without_its_folder_nothing_is_certainly_absent(tmp_path, unplugged, call):
    backend, locator = unplugged
    with pytest.raises(InvalidConfiguration) as caught:
        read_all(backend, locator) if call == "open" else getattr(backend, call)(locator)
    assert caught.value.message == f"the folder '{tmp_path}/disk' is not there"
    assert "plugged in" in caught.value.hint
    assert not caught.value.retryable
    assert caught.value.exit_code == 2


def test_a_file_in_the_folders_place_is_no_proof_either(tmp_path, unplugged):
    backend, locator = unplugged
    (tmp_path / "disk").write_text("mine")
    for call in backend.stat, backend.delete:
        with pytest.raises(InvalidConfiguration, match="is not there"):
            call(locator)
    assert (tmp_path / "disk").read_text() == "mine"


def test_what_was_published_is_not_said_to_be_deleted(tmp_path):
    checkpoint, disk = tmp_path / "run", tmp_path / "disk"
    (checkpoint / "ear" / "code").mkdir(parents=True)
    (checkpoint / "ear" / "code" / "run.py").write_text("print('hello')\n")
    disk.mkdir()
    curate(checkpoint)
    ref = publish(checkpoint, options={"out": str(disk)}).record.ref
    disk.rename(tmp_path / "in a drawer")
    with pytest.raises(InvalidConfiguration):
        delete(checkpoint)
    assert read_record(checkpoint).ref == ref
    (tmp_path / "in a drawer").rename(disk)
    assert delete(checkpoint).record.ref == ""
    assert names(disk) == []


def test_another_place_can_be_published_to_meanwhile(tmp_path, unplugged):
    backend, locator = unplugged
    assert backend.resolve(backend.ref(locator)) == locator
    before = Artifact(locator, archive_sha256=ONE.archive_sha256)
    assert put(store(tmp_path / "other"), TWO, previous=before)[1]


# -- deleting


def test_delete_takes_the_manifest_along(tmp_path):
    backend = store(tmp_path)
    backend.delete(put(backend, ONE)[0].locator)
    assert names(tmp_path) == []


def test_delete_leaves_a_manifest_of_something_else(tmp_path):
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    (tmp_path / "manifest.lock").write_bytes(TWO.manifest)
    backend.delete(locator)
    assert names(tmp_path) == ["manifest.lock"]


def test_delete_of_a_damaged_bundle(tmp_path):
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    Path(locator).write_bytes(b"no archive")
    backend.delete(locator)
    assert not Path(locator).exists()


def test_delete_of_a_kept_bundle_leaves_the_present_one(tmp_path):
    backend = store(tmp_path)
    put(backend, TWO, previous=put(backend, ONE)[0])
    backend.delete(Locator(str(tmp_path / kept(ONE))))
    assert names(tmp_path) == ["bundle.tar.gz", "manifest.lock"]
    assert holds(tmp_path, TWO)


@pytest.mark.parametrize("name", ["notes.txt", "bundle.tar.gz.bak", "sub/bundle.tar.gz", "../bundle.tar.gz"])
def test_only_bundles_in_the_folder_are_deleted(tmp_path, name):
    """A record that came with a download may name any file."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    victim = out / name
    victim.write_text("mine")
    with pytest.raises(Unsupported, match="not touched"):
        store(out).delete(Locator(str(victim)))
    assert victim.read_text() == "mine"


# -- what core built itself


@pytest.fixture
def handed_over(tmp_path):
    """A file as core builds it: in a private folder inside the one to store in."""
    folder = store(tmp_path).optional(SupportsWorkdir).workdir() / "private"
    folder.mkdir()
    path = folder / "bundle.tar.gz"
    path.write_bytes(ONE.archive)
    return path


def test_what_core_built_in_the_folder_is_not_copied(tmp_path, handed_over):
    source = ONE.source(local_path=handed_over)
    assert store(tmp_path).put(source, new())[1]
    assert (tmp_path / "bundle.tar.gz").samefile(handed_over)
    assert source.reads == 0


def test_what_core_built_on_another_file_system_is_copied(tmp_path, handed_over):
    source = ONE.source(local_path=handed_over)
    link = os.link

    def elsewhere(path, *args, **options):
        if path == handed_over:
            raise OSError(errno.EXDEV, "another file system")
        link(path, *args, **options)

    with mock.patch.object(os, "link", elsewhere):
        assert store(tmp_path).put(source, new())[1]
    assert not (tmp_path / "bundle.tar.gz").samefile(handed_over)
    assert source.reads == 1
    assert holds(tmp_path, ONE)


def test_what_core_built_is_not_taken_when_it_is_not_whole(tmp_path, handed_over):
    handed_over.write_bytes(ONE.archive[:-1])
    with pytest.raises(IntegrityError):
        store(tmp_path).put(ONE.source(local_path=handed_over), new())
    assert names(tmp_path) == ["private"]


# -- trouble


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 5), (errno.EACCES, 4), (errno.EROFS, 4)])
@pytest.mark.parametrize(("where", "call"), [(_local, "write_all"), (local_tarball, "Staging")])
def test_a_disk_that_refuses_leaves_nothing(tmp_path, where, call, code, exit_code):
    out = tmp_path / "out"
    out.mkdir()
    failing = mock.Mock(side_effect=OSError(code, os.strerror(code)))
    with mock.patch.object(where, call, failing), pytest.raises(AriError) as caught:
        put(store(out), ONE)
    assert caught.value.exit_code == exit_code
    assert names(out) == []


def test_a_manifest_that_the_source_cannot_give_stores_nothing(tmp_path):
    source = ONE.source()
    ignorant = mock.patch.object(type(source), "manifest", mock.PropertyMock(side_effect=IntegrityError("no")))
    with ignorant, pytest.raises(IntegrityError):
        store(tmp_path).put(source, new())
    assert names(tmp_path) == []


# -- several at once


def test_of_many_different_bundles_one_gets_the_place(tmp_path):
    bundles = [make_bundle(seed=seed) for seed in range(10)]

    def run(bundle):
        try:
            return put(store(tmp_path), bundle)[1]
        except AlreadyExists:
            return False

    results = together(*[lambda bundle=bundle: run(bundle) for bundle in bundles])
    assert results.count(True) == 1
    assert holds(tmp_path, bundles[results.index(True)])
    assert (tmp_path / "manifest.lock").read_bytes() == bundles[results.index(True)].manifest
    assert names(tmp_path) == ["bundle.tar.gz", "manifest.lock"]


def test_of_bundles_that_replace_one_at_once_the_first_does(tmp_path):
    """The others find another one in its place, even if it came after their first look."""
    first = put(store(tmp_path), ONE)[0]
    bundles = [make_bundle(seed=seed) for seed in range(10, 20)]

    def run(bundle):
        try:
            return put(store(tmp_path), bundle, previous=first)[1]
        except AlreadyExists:
            return False

    results = together(*[lambda bundle=bundle: run(bundle) for bundle in bundles])
    assert results.count(True) == 1
    assert holds(tmp_path, bundles[results.index(True)])
    assert holds(tmp_path, ONE, kept(ONE))
    assert names(tmp_path) == sorted([kept(ONE), "bundle.tar.gz", "manifest.lock"])


def test_without_locks_there_is_still_only_one_creator(tmp_path):
    with mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "no locks")):
        results = together(*[lambda: put(store(tmp_path), ONE)[1]] * 10)
    assert results.count(True) == 1
    assert holds(tmp_path, ONE)


def test_whoever_waited_for_a_lock_that_went_away_takes_the_next_one(tmp_path):
    lock, flock, calls = tmp_path / ".ari-staging-lock", fcntl.flock, []

    def slow(fd, how):
        calls.append(fd)
        if len(calls) == 1:  # while it waited, its holder removed the file, and somebody made another one
            lock.unlink()
            lock.touch()
        flock(fd, how)

    with mock.patch.object(fcntl, "flock", slow), _local.locked(tmp_path):
        other = os.open(lock, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    assert names(tmp_path) == []


def test_a_fifo_that_takes_the_files_place_is_not_waited_for(tmp_path):
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(ONE.archive)

    looks, ends = [], []

    def swap(file, real=local_tarball._regular):
        found = real(file)
        looks.append(found)
        if len(looks) == 2:  # stat, then the last look before opening
            path.unlink()
            os.mkfifo(path)
        return found

    def read():
        try:
            with store(None).open(Locator(str(path))):
                ends.append("opened it")
        except AriError as error:
            ends.append(type(error))

    reader = threading.Thread(target=read, daemon=True)
    with mock.patch.object(local_tarball, "_regular", swap):
        reader.start()
        reader.join(10)
    assert ends == [Unsupported], "it waits for a writer, or takes it for a file"


# -- crashes

REPLACE = f"""
import sys
from datetime import datetime
from pathlib import Path
from ari_backends.local_tarball import LocalTarball
from ari_core.contract import Artifact, NewArtifact, Source
class Saved(Source):
    size, archive_sha256, bundle_sha256 = {len(TWO.archive)}, {TWO.archive_sha256!r}, {TWO.bundle_sha256!r}
    manifest = {TWO.manifest!r}
    def open(self):
        return Path(sys.argv[2]).open("rb", buffering=0)
out = Path(sys.argv[1])
LocalTarball(LocalTarball.Settings(out=out)).put(
    Saved(),
    NewArtifact(
        datetime(2024, 1, 1),
        previous=Artifact(str(out / "bundle.tar.gz"), archive_sha256={ONE.archive_sha256!r}),
    ),
)
"""
COMMITTING = "link,linkat,rename,renameat,renameat2"  # what changes which bundle has which name
EVERYTHING = f"{COMMITTING},fsync,unlink,unlinkat,openat,mkdir,mkdirat,rmdir,write,flock,close,newfstatat"


def crash(out, trace, *options, expected):
    saved = trace.with_name("saved.tar.gz")
    saved.write_bytes(TWO.archive)
    strace = ["strace", "-f", "-qq", "-o", trace, *options]
    run = subprocess.run(
        [*strace, sys.executable, "-B", "-c", REPLACE, out, saved],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == expected, run.stderr


def check_every_crash(tmp_path, calls, *, earlier):
    """Kills a put before each system call of a kind, and looks at what is left."""

    def fresh(name):
        out = tmp_path / name
        out.mkdir()
        if earlier:
            put(store(out), ONE)
        return out

    trace, whole = tmp_path / "trace", fresh("whole")
    crash(whole, trace, f"--trace={calls}", expected=0)
    seen = set()
    for call, number in steps(trace.read_text().splitlines(), str(whole)):
        out = fresh(f"{call}-{number}")
        crash(out, trace, f"--trace={call}", f"--inject={call}:signal=KILL:when={number}", expected=-9)
        if "bundle.tar.gz" in names(out):
            now = next(bundle for bundle in (ONE, TWO) if holds(out, bundle))
            assert earlier or now is TWO
            assert not earlier or now is ONE or holds(out, ONE, kept(ONE)), "the old one is lost"
            seen.add(now)
        else:
            assert not earlier, "neither the old one nor the new one is there"
            seen.add(None)
        before = Artifact(Locator(str(out / "bundle.tar.gz")), archive_sha256=ONE.archive_sha256)
        put(store(out), TWO, previous=before)
        assert holds(out, TWO)
        assert (out / "manifest.lock").read_bytes() == TWO.manifest
        assert set(names(out)) == {"bundle.tar.gz", "manifest.lock"} | ({kept(ONE)} if earlier else set())
    assert len(seen) == 2, "no crash came before the commit, or none after it"


def steps(trace, out):
    """Yields each call of a trace, with its number among its kind, from the first one on that is about `out`."""
    count = Counter()
    begun = False
    for line in trace:
        call = line.split()[1].partition("(")[0]
        count[call] += 1
        begun = begun or out in line
        if begun and call.isalnum():  # not a line that tells of an exit
            yield call, count[call]


@pytest.mark.needs("strace")
def test_a_crash_while_committing_leaves_one_or_the_other(tmp_path):
    check_every_crash(tmp_path, COMMITTING, earlier=True)


@pytest.mark.long
@pytest.mark.needs("strace")
@pytest.mark.parametrize("earlier", [False, True], ids=["first bundle", "second bundle"])
def test_a_crash_at_any_moment_leaves_one_or_the_other(tmp_path, earlier):
    check_every_crash(tmp_path, EVERYTHING, earlier=earlier)


def test_denied_is_not_absent(tmp_path):
    denied = PermissionError(errno.EACCES, "no", str(tmp_path))
    with mock.patch.object(Path, "stat", side_effect=denied), pytest.raises(AccessDenied) as caught:
        store(None).resolve(file_ref(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


def test_a_lock_that_is_held_for_ever_is_given_up(tmp_path, monkeypatch):
    """Whoever can open the lock's file can hold it; a publisher must not hang because of that."""
    monkeypatch.setenv("ARI_DEADLINE", "0.2")
    with (tmp_path / ".ari-staging-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AlreadyExists, match="locked"):
            put(store(tmp_path), ONE)
    assert not (tmp_path / "bundle.tar.gz").exists()
