"""The backend that keeps many bundles in a shared folder."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from pydantic import ValidationError
from support.forks import at_once
from support.places import deadline, failing_calls, photograph, umask
from support.run import ari, ari_json
from support.strace import CALL, CHANGING, Zygote, calls_in, sample

from ari_backends import _local, filesystem_registry
from ari_backends._claims import filesystem_registry_claims
from ari_backends.filesystem_registry import FilesystemRegistry
from ari_core import fs
from ari_core.conformance import BackendContract, make_bundle
from ari_core.conformance.knobs import is_absent, new, read_all, together, users
from ari_core.contract import CHUNK, Claim, Locator, OpenContext, SupportsWorkdir, Visibility
from ari_core.errors import (
    AlreadyExists,
    AriError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    Unavailable,
    Unsupported,
)
from ari_core.filerefs import file_ref, path_of
from ari_core.record import read_record
from ari_core.workflows.curate import curate
from ari_core.workflows.publish import publish
from ari_core.workflows.verify import verify

ONE, TWO = (make_bundle(seed=seed) for seed in (1, 2))
FILES = ["bundle.tar.gz", "manifest.lock", "meta.json"]


def store(root, warn=lambda _line: None, *, digits=None, **settings):
    return FilesystemRegistry(
        FilesystemRegistry.Settings(root=root, **settings), OpenContext(warn=warn), id_digits=digits
    )


class TestConformance(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path):
        with store(tmp_path) as backend:
            yield backend

    def raw_corrupt(self, backend, locator):
        path = Path(locator) / "bundle.tar.gz"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    @contextmanager
    def break_store(self, backend, step):
        root = str(backend.settings.root)
        broken = {
            "stat": [(os, "open", errno.EIO)],
            "open": [(os, "open", errno.ESTALE)],
            "read": [(os, "read", errno.EIO)],
            "list": [(os, "read", errno.EIO)],
            "put": [(_local, "write_all", errno.ENOSPC)],
            "denied": [(Path, "lstat", errno.EACCES), (os, "open", errno.EACCES)],
        }
        with failing_calls(root, broken[step], reads=3):
            yield


def put(backend, bundle, **more):
    return backend.put(bundle.source(), new(**more))


def names(folder):
    """Returns all that is in a folder: no staging and no lock may be left."""
    return sorted(os.listdir(folder))


def folder_of(root, bundle, digits=16):
    return root / "artifacts" / bundle.archive_sha256[:digits]


def assert_tidy(root, *bundles):
    """Exactly these bundles are there, whole, and nothing else."""
    assert names(root) == ["artifacts"]
    assert names(root / "artifacts") == sorted(bundle.archive_sha256[:16] for bundle in bundles)
    for bundle in bundles:
        folder = folder_of(root, bundle)
        assert names(folder) == FILES
        assert (folder / "bundle.tar.gz").read_bytes() == bundle.archive
        assert (folder / "manifest.lock").read_bytes() == bundle.manifest
        assert json.loads((folder / "meta.json").read_bytes())["length"] == len(bundle.archive)


def edit_meta(folder, **fields):
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


# -- refs


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("count", [16, 24, 64])
def test_a_ref_names_its_own_root(tmp_path, count, slash):
    root = tmp_path / "a b?#ü"
    root.mkdir()
    locator = put(store(root), ONE)[0].locator
    ref = file_ref(f"{root}/artifacts/{ONE.archive_sha256[:count]}{slash}")
    reader = store(None)
    assert reader.resolve(ref) == locator == str(folder_of(root, ONE))
    assert read_all(reader, locator) == ONE.archive
    assert reader.manifest(locator) == ONE.manifest
    assert reader.local_path(locator) == folder_of(root, ONE) / "bundle.tar.gz"


@pytest.mark.parametrize(
    ("ref", "claim"),
    [
        ("file:///r/artifacts/0123456789012345", Claim.EXACT),
        ("file:///r/artifacts/0123456789abcdef/", Claim.EXACT),
        ("FILE:/r%20/artifacts/" + "a" * 64, Claim.EXACT),
        ("file:///r/artifacts/" + "a" * 65, Claim.NO),
        ("file:///r/artifacts/" + "a" * 15, Claim.NO),
        ("file:///r/artifacts/" + "A" * 16, Claim.NO),
        ("file:///r/artifacts/" + "a" * 16 + "/bundle.tar.gz", Claim.NO),
        ("file:///r/artifacts/" + "a" * 16 + "\n", Claim.NO),
        ("file:///r/other/" + "a" * 16, Claim.NO),
        ("file:///r?/artifacts/" + "a" * 16, Claim.NO),
        ("https://h/artifacts/" + "a" * 16, Claim.NO),
        ("/r/artifacts/" + "a" * 16, Claim.NO),
        ("", Claim.NO),
    ],
)
def test_what_it_claims(ref, claim):
    assert filesystem_registry_claims(ref) is claim


@pytest.mark.parametrize("path", ["/r/artifacts/xyz", "/r/0123456789abcdef", "/artifacts", "/"])
def test_what_is_no_artifacts_folder_is_refused(path):
    with pytest.raises(Unsupported):
        store(None).resolve(file_ref(path))


# -- where to


def test_opening_creates_nothing(tmp_path):
    backend = store(tmp_path / "yet")
    assert backend.probe() == backend.capabilities
    assert names(tmp_path) == []
    assert put(backend, ONE)[1]
    assert_tidy(tmp_path / "yet", ONE)


def test_a_new_root_lists_nothing(tmp_path):
    assert list(store(tmp_path).list()) == []


@pytest.mark.parametrize(
    "call", ["stat", "open", "delete", "manifest", "local_path", "claim", "resolve", "list", "put"]
)
def test_without_its_disk_nothing_is_certainly_absent(tmp_path, call):
    (tmp_path / "mount").mkdir()
    backend = store(tmp_path / "mount" / "root")
    locator = put(backend, ONE)[0].locator
    ref = backend.ref(locator)
    (tmp_path / "mount").rename(tmp_path / "in a drawer")
    calls = {
        "open": lambda: read_all(backend, locator),
        "claim": lambda: backend.claim(locator, "bob"),
        "resolve": lambda: backend.resolve(ref),
        "list": lambda: list(backend.list()),
        "put": lambda: put(backend, ONE),
    }
    with pytest.raises(InvalidConfiguration) as caught:
        calls.get(call, lambda: getattr(backend, call)(locator))()
    assert str(tmp_path / "mount") in caught.value.message
    assert caught.value.exit_code == 2
    assert names(tmp_path) == ["in a drawer"]


def test_a_root_is_needed_for_writing(tmp_path):
    reader, locator = store(None), put(store(tmp_path), ONE)[0].locator
    for call in (
        reader.probe,
        reader.workdir,
        lambda: put(reader, TWO),
        lambda: list(reader.list()),
        lambda: reader.delete(locator),
        lambda: reader.claim(locator, "bob"),
        lambda: reader.raise_visibility(locator, Visibility.PUBLIC),
    ):
        with pytest.raises(InvalidConfiguration) as caught:
            call()
        assert "-o root=DIR" in caught.value.hint
        assert "ARI_FILESYSTEM_REGISTRY_ROOT" in caught.value.hint


def test_only_what_is_in_the_root_is_changed(tmp_path):
    """A record that came with a download may name any folder."""
    locator = put(store(tmp_path / "theirs"), ONE)[0].locator
    (tmp_path / "mine").mkdir()
    mine = store(tmp_path / "mine")
    for call in (
        lambda: mine.delete(locator),
        lambda: mine.claim(locator, "bob"),
        lambda: mine.disclaim(locator, "ada"),
        lambda: mine.raise_own(locator, "ada", Visibility.PUBLIC),
        lambda: mine.raise_visibility(locator, Visibility.PUBLIC),
    ):
        with pytest.raises(Unsupported, match="not touched"):
            call()
    assert_tidy(tmp_path / "theirs", ONE)
    assert store(None).stat(locator).visibility == "staged"


@pytest.mark.parametrize("digits", [15, 65, "many"])
def test_ids_have_16_to_64_digits(digits):
    with pytest.raises(ValidationError):
        FilesystemRegistry.Settings(id_digits=digits)


def test_longer_ids(tmp_path):
    artifact = put(store(tmp_path, id_digits=40), ONE)[0]
    assert artifact.locator == str(folder_of(tmp_path, ONE, 40))
    assert put(store(tmp_path), ONE)[0].locator == artifact.locator


def test_two_archives_with_one_id(tmp_path):
    others = [make_bundle(seed=seed) for seed in range(2, 300)]
    second = next(each for each in others if each.archive_sha256[0] == ONE.archive_sha256[0])
    backend = store(tmp_path, digits=1)
    locator = put(backend, ONE)[0].locator
    before = photograph(tmp_path)
    with pytest.raises(AlreadyExists, match="another archive has the id"):
        put(backend, second)
    assert photograph(tmp_path) == before
    assert read_all(backend, locator) == ONE.archive


def test_two_archives_with_one_id_at_once(tmp_path):
    others = [make_bundle(seed=seed) for seed in range(2, 300)]
    rivals = [each for each in others if each.archive_sha256[0] == ONE.archive_sha256[0]][:8]

    def run(bundle):
        try:
            return put(store(tmp_path, digits=1), bundle)[1]
        except AlreadyExists:
            return False

    results = together(*[lambda bundle=bundle: run(bundle) for bundle in rivals])
    assert results.count(True) == 1
    assert (folder_of(tmp_path, ONE, 1) / "bundle.tar.gz").read_bytes() == rivals[results.index(True)].archive


# -- what core built itself


@pytest.fixture
def handed_over(tmp_path):
    """A file as core builds it: in a private folder inside the root."""
    folder = store(tmp_path).optional(SupportsWorkdir).workdir() / "private"
    folder.mkdir()
    (folder / "bundle.tar.gz").write_bytes(ONE.archive)
    return folder / "bundle.tar.gz"


def test_what_core_built_in_the_root_is_not_copied(tmp_path, handed_over):
    source = ONE.source(local_path=handed_over)
    assert store(tmp_path).put(source, new())[1]
    assert (folder_of(tmp_path, ONE) / "bundle.tar.gz").samefile(handed_over)
    assert source.reads == 0


def test_what_core_built_on_another_file_system_is_copied(tmp_path, handed_over):
    source, link = ONE.source(local_path=handed_over), os.link

    def elsewhere(path, *args, **options):
        if path == handed_over:
            raise OSError(errno.EXDEV, "another file system")
        link(path, *args, **options)

    with mock.patch.object(os, "link", elsewhere):
        assert store(tmp_path).put(source, new())[1]
    assert source.reads == 1
    assert (folder_of(tmp_path, ONE) / "bundle.tar.gz").read_bytes() == ONE.archive


# -- what a crash left


@pytest.mark.parametrize("left", [[], ["bundle.tar.gz"], ["manifest.lock"], ["bundle.tar.gz", "manifest.lock"]])
def test_a_folder_without_meta_is_absent_and_a_put_takes_it_over(tmp_path, left):
    folder = folder_of(tmp_path, ONE)
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_bytes(b"half")
    (folder / ".ari-staging-lock").touch()
    backend = store(tmp_path)
    assert list(backend.list()) == []
    assert is_absent(backend, Locator(str(folder)))
    with pytest.raises(NotFound):
        backend.resolve(backend.ref(Locator(str(folder))))
    assert put(backend, ONE)[1]
    assert_tidy(tmp_path, ONE)


def test_delete_removes_what_a_crash_left(tmp_path):
    folder = folder_of(tmp_path, ONE)
    folder.mkdir(parents=True)
    (folder / "bundle.tar.gz").write_bytes(b"half")
    store(tmp_path).delete(Locator(str(folder)))
    assert_tidy(tmp_path)


@pytest.mark.parametrize("change", ["delete", "claim", "disclaim", "raise"])
def test_changing_what_is_absent_leaves_no_trace(tmp_path, change):
    put(store(tmp_path), ONE)
    backend, absent = store(tmp_path), Locator(str(tmp_path / "artifacts" / ("0" * 16)))
    with suppress(NotFound):
        if change == "delete":
            backend.delete(absent)
        elif change == "raise":
            backend.raise_visibility(absent, Visibility.PUBLIC)
        else:
            getattr(backend, change)(absent, "bob")
    assert_tidy(tmp_path, ONE)


# -- permissions


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o644, 0o775)])
def test_modes_follow_the_umask(tmp_path, mask, file, folder):
    with umask(mask):
        put(store(tmp_path / "root"), ONE)
    at = folder_of(tmp_path / "root", ONE)
    assert {stat.S_IMODE((at / name).stat().st_mode) for name in FILES} == {file}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (at, at.parent, at.parent.parent)} == {folder}


def test_a_group_that_shares_the_root_shares_what_is_in_it(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o2770)
    group = root.stat().st_gid
    with umask(0o077):
        backend = store(root)
        locator = put(backend, ONE)[0].locator
        backend.claim(locator, "bob")
    at = folder_of(root, ONE)
    for folder in at, at.parent:
        status = folder.stat()
        assert (oct(stat.S_IMODE(status.st_mode)), status.st_gid) == (oct(0o2770), group)
    for name in FILES:
        assert oct(stat.S_IMODE((at / name).stat().st_mode)) == oct(0o660)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
def test_members_of_a_group_change_each_others_artifacts(monkeypatch):
    monkeypatch.setenv("ARI_DEADLINE", "20")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is its user's alone
        Path(folder).chmod(0o711)
        root = Path(folder) / "root"
        root.mkdir()
        os.chown(root, 0, 4242)
        root.chmod(0o2770)
        become = "os.umask(0o077), os.setgroups([]), os.setgid(4242), os.setuid(5001 + number)"
        assert at_once(root, 1, f"({become}, put(1, 'user0')[1])[-1]") == [True]
        locator = str(folder_of(root, ONE))
        # Another one was killed while it held the lock.
        lock = f"({become.replace('5001', '5099')}, _local.FolderLock(Path({locator!r})) and None)[-1]"
        assert at_once(root, 1, lock) == [None]
        assert (root / locator / ".ari-staging-lock").exists()
        change = f"({become}, store().claim(Locator({locator!r}), f'user{{number}}'))[-1]"
        assert at_once(root, 4, change) == [None] * 4
        assert sorted(users(store(root).stat(locator))) == [f"user{number}" for number in range(4)]


# -- trouble


@pytest.mark.parametrize(
    ("code", "exit_code"), [(errno.ENOSPC, 5), (errno.EACCES, 4), (errno.EROFS, 4), (errno.EIO, 5)]
)
@pytest.mark.parametrize("call", ["write_all", "Staging", "meta", "link", "rename", "fsync", "mkdir"])
def test_a_disk_that_refuses_leaves_nothing(tmp_path, call, code, exit_code):
    """Also behind the bytes: an artifact without its metadata is no use to anybody."""
    put(store(tmp_path), TWO)
    real = fs.Staging.write

    def meta(staging, inner, data):
        if inner == "small":
            raise fs.from_os_error(OSError(code, os.strerror(code)), "writing")
        real(staging, inner, data)

    failing = mock.Mock(side_effect=OSError(code, os.strerror(code)))
    patches = {
        "write_all": mock.patch.object(_local, "write_all", failing),
        "Staging": mock.patch.object(filesystem_registry, "Staging", failing),
        "meta": mock.patch.object(fs.Staging, "write", meta),
        "link": mock.patch.object(fs, "_create_only", failing),
        "rename": mock.patch.object(os, "rename", failing),
        "fsync": mock.patch.object(os, "fsync", failing),
        "mkdir": mock.patch.object(Path, "mkdir", failing),
    }
    with patches[call], pytest.raises(AriError) as caught:
        put(store(tmp_path), ONE)
    assert caught.value.exit_code == exit_code
    assert_tidy(tmp_path, TWO)


def test_a_folder_that_cannot_be_written_is_known_beforehand(tmp_path, monkeypatch):
    locator = put(store(tmp_path), ONE)[0].locator
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    found = store(tmp_path).probe()
    assert (found.put, found.delete, found.list, found.ranges) == (False, "no", "immediate", True)
    assert (found.visibility, found.levels, found.atomic_updates) == ("recorded", frozenset(), False)
    assert read_all(store(tmp_path), locator) == ONE.archive


@pytest.fixture
def small(tmp_path):
    """A file system of its own, that can be filled and made read-only."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    at = tmp_path / "small"
    at.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at], capture_output=True, check=False, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield at
    subprocess.run(["umount", at], check=True)


def test_a_full_disk_and_a_read_only_one(small):
    root, large = small / "root", make_bundle(2 * 1024 * 1024)
    backend = store(root)
    locator = put(backend, ONE)[0].locator
    with pytest.raises(AriError, match="No space left") as caught:
        put(backend, large)
    assert caught.value.exit_code == 5
    assert_tidy(root, ONE)
    (small / "filler").write_bytes(bytes(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize))
    for call in (
        lambda: backend.raise_visibility(locator, Visibility.PUBLIC),
        lambda: put(backend, TWO),
    ):
        with pytest.raises(AriError) as caught:
            call()
        assert caught.value.exit_code == 5
    assert backend.stat(locator).visibility == "staged"
    backend.delete(put_back := locator)  # a full disk can be tidied up
    assert is_absent(backend, put_back)
    (small / "filler").unlink()
    put(backend, ONE)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert not backend.probe().put
    assert read_all(backend, locator) == ONE.archive
    assert put(backend, ONE)[1] is False
    for call in (
        lambda: put(backend, TWO),
        lambda: backend.delete(locator),
        lambda: backend.claim(locator, "bob"),
    ):
        with pytest.raises(AriError) as caught:
            call()
        assert caught.value.exit_code == 4
    assert_tidy(root, ONE)


# -- hostile contents of the root


@pytest.fixture
def hostile(tmp_path):
    """A store with a sound artifact, and another one to be spoilt; its folder."""
    backend = store(tmp_path / "root")
    put(backend, TWO)
    put(backend, ONE)
    return backend, folder_of(tmp_path / "root", ONE)


def spoil(folder, name, how):
    path = folder / name if name else folder
    if how == "link":
        path.rename(folder.parents[1].with_name("elsewhere"))
        path.symlink_to(folder.parents[1].with_name("elsewhere"))
    elif how == "huge":
        with path.open("r+b") as file:
            file.truncate(1 << 40)
    else:
        path.unlink()
        os.mkfifo(path) if how == "fifo" else path.mkdir()


@pytest.mark.parametrize(
    ("name", "how"),
    [("", "link"), ("meta.json", "link"), ("meta.json", "fifo"), ("meta.json", "folder"), ("meta.json", "huge")],
)
def test_an_odd_artifact_is_refused_by_name_without_waiting_and_others_are_served(hostile, name, how):
    backend, folder = hostile
    spoil(folder, name, how)
    locator, lines = Locator(str(folder)), []
    with deadline(20):
        for call in (
            lambda: backend.stat(locator),
            lambda: read_all(backend, locator),
            lambda: backend.manifest(locator),
            lambda: backend.resolve(backend.ref(locator)),
            lambda: backend.claim(locator, "bob"),
            lambda: put(backend, ONE),
        ):
            with pytest.raises(IntegrityError, match=re.escape(str(folder))):
                call()
        listing = store(backend.settings.root, lines.append).list()
        assert [artifact.locator for artifact, _ in listing] == [str(folder_of(backend.settings.root, TWO))]
        assert len(lines) == 1


@pytest.mark.parametrize("how", ["link", "fifo", "folder"])
def test_an_odd_bundle_is_not_read(hostile, how):
    backend, folder = hostile
    spoil(folder, "bundle.tar.gz", how)
    with deadline(20), pytest.raises(IntegrityError, match=r"bundle\.tar\.gz"):
        read_all(backend, Locator(str(folder)))


@pytest.mark.parametrize("size", [0, len(ONE.archive) - 1, len(ONE.archive) + 1])
def test_a_bundle_of_another_size_is_damaged_and_the_next_put_mends_it(hostile, size):
    backend, folder = hostile
    backend.raise_visibility(Locator(str(folder)), Visibility.PUBLIC)
    os.truncate(folder / "bundle.tar.gz", size)
    with pytest.raises(IntegrityError, match=f"has {size} bytes"):
        read_all(backend, Locator(str(folder)))
    artifact, created = put(backend, ONE)
    assert (created, artifact.visibility) == (False, "public")
    assert_tidy(backend.settings.root, ONE, TWO)


@pytest.mark.parametrize("how", ["link", "fifo", "huge"])
def test_an_odd_manifest_is_not_read(hostile, how):
    backend, folder = hostile
    spoil(folder, "manifest.lock", how)
    with deadline(20), pytest.raises(IntegrityError, match=r"manifest\.lock"):
        backend.manifest(Locator(str(folder)))


def test_nothing_behind_a_link_is_deleted(hostile):
    backend, folder = hostile
    spoil(folder, "", "link")
    with pytest.raises(IntegrityError, match="not followed"):
        backend.delete(Locator(str(folder)))
    assert names(folder.resolve()) == FILES


def test_what_is_no_id_is_no_artifact(hostile):
    backend, folder = hostile
    for name in ("notes.txt", "ABCDEF0123456789", "a" * 65, ".ari-staging-lock"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "meta.json").write_bytes((folder / "meta.json").read_bytes())
    assert len(list(backend.list())) == 2


# -- several at once


def test_reading_goes_on_while_it_is_deleted(tmp_path):
    large = make_bundle(8 * CHUNK)
    backend = store(tmp_path)
    locator = put(backend, large)[0].locator
    with backend.open(locator) as stream:
        data = stream.read(10)
        backend.delete(locator)
        assert is_absent(backend, locator)
        data += b"".join(iter(lambda: stream.read(CHUNK), b""))
    assert data == large.archive
    assert_tidy(tmp_path)


def test_32_processes_store_one_bundle(tmp_path):
    found = at_once(tmp_path, 32, "[put(1)[1], sum(1 for _ in store().list())]")
    assert sorted(found) == [[False, 1]] * 31 + [[True, 1]]
    assert_tidy(tmp_path, ONE)
    assert read_all(store(tmp_path), Locator(str(folder_of(tmp_path, ONE)))) == ONE.archive


def test_racing_changes_of_several_processes_lose_nothing(tmp_path):
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    for user in range(16):
        backend.claim(locator, f"old{user}")
    job = f"""[
        store().claim(Locator({locator!r}), f"new{{number}}"),
        store().disclaim(Locator({locator!r}), f"old{{number}}"),
        store().raise_own(Locator({locator!r}), f"new{{number}}", list(Visibility)[number % 3]),
        store().raise_visibility(Locator({locator!r}), list(Visibility)[3 if number == 7 else number % 3]),
    ][2:]"""
    found = at_once(tmp_path, 16, job)
    assert all(level in set(Visibility) for levels in found for level in levels), found
    artifact = backend.stat(locator)
    assert sorted(users(artifact)) == sorted(["ada", *(f"new{number}" for number in range(16))])
    levels = {owner.user: owner.visibility for owner in artifact.owners}
    assert [levels[f"new{number}"] for number in range(16)] == [list(Visibility)[n % 3] for n in range(16)]
    assert artifact.visibility == "public"
    assert_tidy(tmp_path, ONE)


def test_puts_and_deletes_at_once_never_leave_metadata_without_bytes(tmp_path):
    """Half of them store and half delete, again and again, and each looks at what it finds."""
    locator = str(folder_of(tmp_path, ONE))
    put(store(tmp_path), ONE)
    job = f"""[
        (put(1), None)[1] if number % 2 else store().delete(Locator({locator!r}))
        for _ in range(25)
    ] and None"""
    assert at_once(tmp_path, 8, job) == [None] * 8
    backend = store(tmp_path)
    if list(backend.list()):
        assert_tidy(tmp_path, ONE)
    else:
        assert_tidy(tmp_path)


def test_one_claims_while_the_last_owner_goes(tmp_path):
    """Either the claim came first, and the artifact stays, or it finds nothing."""
    job = """[
        (
            put(seed),
            store().disclaim(put(seed)[0].locator, "ada")
        ) and None if number else store().claim(put(seed)[0].locator, "bob")
        for seed in range(10)
    ] and None"""
    found = at_once(tmp_path, 2, job)
    assert set(found) <= {None, "NotFound"}
    for artifact, _ in store(tmp_path).list():
        assert read_all(store(tmp_path), artifact.locator)
        assert len(users(artifact)) > 0


def test_a_put_whose_bytes_a_delete_took_says_so_and_the_next_one_brings_them_back(tmp_path):
    """Where there are no locks: the delete's second half comes when the put has written its metadata."""
    backend = store(tmp_path)
    real = fs.Staging.commit_file

    def late(staging, inner, name, *, replace=False):
        real(staging, inner, name, replace=replace)
        if name.endswith("meta.json"):
            (tmp_path / name).with_name("bundle.tar.gz").unlink()

    with mock.patch.object(fs.Staging, "commit_file", late), pytest.raises(Unavailable) as caught:
        put(backend, ONE)
    assert caught.value.retryable
    artifact, _ = put(backend, ONE)
    assert read_all(backend, artifact.locator) == ONE.archive


def test_without_locks_it_says_so_and_still_only_one_creates(tmp_path):
    put(store(tmp_path), TWO)
    with mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "no locks")):
        assert store(tmp_path).probe().atomic_updates is False
        results = together(*[lambda: put(store(tmp_path), ONE)[1]] * 10)
    assert results.count(True) == 1
    assert (folder_of(tmp_path, ONE) / "bundle.tar.gz").read_bytes() == ONE.archive


def test_a_lock_that_is_held_for_ever_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("ARI_DEADLINE", "0.2")
    backend = store(tmp_path)
    locator = put(backend, ONE)[0].locator
    with (Path(locator) / ".ari-staging-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for call in lambda: backend.claim(locator, "bob"), lambda: backend.delete(locator):
            with pytest.raises(AlreadyExists, match="locked"):
                call()
        assert read_all(backend, locator) == ONE.archive
        assert put(backend, TWO)[1]
    assert users(backend.stat(locator)) == ["ada"]


def test_who_waits_for_a_folder_that_goes_makes_a_new_one(tmp_path):
    backend, flock, waiting = store(tmp_path), fcntl.flock, []
    locator = put(backend, ONE)[0].locator

    def slow(fd, how):
        if Path(f"/proc/self/fd/{fd}").readlink().name == ".ari-staging-lock":
            waiting.append(fd)
            if len(waiting) == 1:
                with mock.patch.object(fcntl, "flock", flock):
                    store(tmp_path).delete(locator)
        flock(fd, how)

    (Path(locator) / "meta.json").unlink()  # so that the put does not find it at once
    with mock.patch.object(fcntl, "flock", slow):
        assert put(backend, ONE)[1]
    assert len(waiting) == 2
    assert_tidy(tmp_path, ONE)


def test_what_somebody_else_just_stored_is_on_the_disk_before_it_is_promised(tmp_path):
    locator = put(store(tmp_path), ONE)[0].locator
    synced, real = [], os.fsync

    def fsync(fd):
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    with mock.patch.object(os, "fsync", fsync):
        assert put(store(tmp_path), ONE)[1] is False
    assert locator in synced


def test_bytes_and_names_are_on_the_disk_before_metadata_tells_of_them(tmp_path):
    events, fsync, commit = [], os.fsync, fs.Staging.commit_file
    folder = folder_of(tmp_path, ONE)

    def synced(fd):
        fsync(fd)
        at = Path(f"/proc/self/fd/{fd}").readlink()
        events.append(f"{at.name if at == tmp_path or tmp_path in at.parents else '?'} synced")

    def committed(staging, inner, name, *, replace=False):
        commit(staging, inner, name, replace=replace)
        events.append(f"{Path(name).name} done")

    with mock.patch.object(os, "fsync", synced), mock.patch.object(fs.Staging, "commit_file", committed):
        put(store(tmp_path), ONE)
        stored, events = events, []
        store(tmp_path).delete(Locator(str(folder)))
    meta = stored.index("small synced")
    assert [event for event in stored[:meta] if event.endswith("done")] == [
        "bundle.tar.gz done",
        "manifest.lock done",
    ]
    behind = stored[stored.index("manifest.lock synced") : meta]
    assert {f"{folder.name} synced", "artifacts synced"} <= set(behind), stored
    assert stored[meta:] == ["small synced", f"{folder.name} synced", "meta.json done"]
    assert f"{folder.name} synced" in events, "a deleted artifact could come back without its bytes"


# -- data of the existing server


@pytest.fixture
def existing(tmp_path):
    with tarfile.open(SAMPLES / "registry-data.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "registry-data"


SAMPLES = Path(__file__).parents[1] / "data" / "existing"
EXPECTED = json.loads((SAMPLES / "registry-data.json").read_text())["artifacts"]


def readable_by_the_existing_server(folder):
    """What it reads of an artifact: these fields, and bytes that agree with them."""
    fields = json.loads((folder / "meta.json").read_bytes())
    data = (folder / "bundle.tar.gz").read_bytes()
    assert (fields["id"], fields["sha256"], fields["length"]) == (
        folder.name,
        hashlib.sha256(data).hexdigest(),
        len(data),
    )
    datetime.strptime(fields["created_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return fields["visibility"], fields["owner"]


def test_an_existing_data_directory_opens_as_it_is(existing):
    before = photograph(existing)
    backend = store(existing)
    found = {Path(artifact.locator).name: artifact for artifact, _ in backend.list()}
    assert {name: artifact.visibility for name, artifact in found.items()} == {
        name: each["visibility"] for name, each in EXPECTED.items()
    }
    for name, artifact in found.items():
        locator = backend.resolve(f"file://{existing}/artifacts/{name}/")
        assert (locator, backend.stat(locator)) == (artifact.locator, artifact)
        assert hashlib.sha256(read_all(backend, locator)).hexdigest() == artifact.archive_sha256
        assert artifact.owners[0].visibility == artifact.visibility
        with pytest.raises(Unsupported):
            backend.manifest(locator)
        verified = verify(str(existing / "artifacts" / name), expect_sha256=EXPECTED[name]["bundle_sha256"])
        assert verified.bundle_sha256 == EXPECTED[name]["bundle_sha256"]
    assert photograph(existing) == before


def test_the_existing_server_can_go_on_after_our_changes(existing):
    backend = store(existing)
    staged = next(name for name, each in EXPECTED.items() if each["visibility"] == "staged")
    folder = existing / "artifacts" / staged
    locator, owner = Locator(str(folder)), backend.stat(Locator(str(folder))).owners[0].user
    assert backend.raise_visibility(locator, Visibility.PRIVATE_TOKEN) == "private-token"
    assert readable_by_the_existing_server(folder) == ("private-token", owner)
    backend.claim(locator, "carol")
    assert backend.raise_own(locator, "carol", Visibility.PUBLIC) == "public"
    assert readable_by_the_existing_server(folder) == ("public", owner)
    backend.disclaim(locator, owner)
    assert readable_by_the_existing_server(folder) == ("public", "carol")
    put(backend, ONE)
    assert readable_by_the_existing_server(folder_of(existing, ONE)) == ("staged", "ada")
    backend.delete(locator)
    assert is_absent(backend, locator)
    assert names(existing / "artifacts") == sorted({*EXPECTED, folder_of(existing, ONE).name} - {staged})


def test_metadata_of_the_oldest_kind_has_the_files_time(existing):
    folder = existing / "artifacts" / next(iter(EXPECTED))
    fields = json.loads((folder / "meta.json").read_bytes())
    oldest = {name: fields[name] for name in ("visibility", "owner", "sha256", "length")}
    (folder / "meta.json").write_text(json.dumps(oldest))
    os.utime(folder / "meta.json", (86400, 86400))
    locator = Locator(str(folder))
    assert store(existing).stat(locator).created == datetime(1970, 1, 2, tzinfo=UTC)
    store(existing).claim(locator, "bob")
    assert store(existing).stat(locator).created == datetime(1970, 1, 2, tzinfo=UTC), "a change must not renew it"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"visibility": "public"}'])
def test_damaged_metadata_of_one_is_no_trouble_for_others(existing, damage):
    first, *others = EXPECTED
    (existing / "artifacts" / first / "meta.json").write_bytes(damage)
    lines = []
    backend = store(existing, lines.append)
    with pytest.raises(IntegrityError, match=f"meta.json of the artifact '{first}' is damaged"):
        backend.stat(Locator(str(existing / "artifacts" / first)))
    assert {Path(artifact.locator).name for artifact, _ in backend.list()} == set(others)
    assert [first in line for line in lines] == [True]


# -- the whole program


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print('hello')\n")
    (folder / "ear" / "publish.yaml").write_text("include: ['**']\nlicense: MIT\n")
    assert ari("ear", "curate", folder).returncode == 0
    return folder


@pytest.mark.in_ci
def test_publish_promote_clone_and_delete_from_the_command_line(checkpoint, tmp_path):
    root = tmp_path / "shared"
    at = ["--backend", "filesystem-registry", "-o", f"root={root}"]
    code, found = ari_json("ear", "publish", checkpoint, *at)
    assert code == 0, found
    ref = found["ref"]
    assert ref.startswith(f"file://{root}/artifacts/")
    assert [names(root), len(names(root / "artifacts"))] == [["artifacts"], 1]
    assert ari("ear", "promote", checkpoint, "--target", "public").returncode == 0
    meta = json.loads((path_of(ref) / "meta.json").read_bytes())
    assert (meta["visibility"], meta["description"]) == ("public", {"license": "MIT"})
    done = ari("clone", ref, tmp_path / "copy", "--expect-sha256", found["bundle_sha256"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "code" / "run.py").read_text() == "print('hello')\n"
    longer = path_of(ref).with_name(meta["sha256"][:40])  # more digits than the folder's name has
    for source in ref.rstrip("/"), str(path_of(ref)), file_ref(longer), str(longer):
        assert verify(source).bundle_sha256 == found["bundle_sha256"]
    assert ari_json("ear", "publish", checkpoint, *at)[1]["ref"] == ref
    done = ari("ear", "delete", checkpoint, "--yes")
    assert done.returncode == 0, done.stderr
    assert names(root / "artifacts") == []
    assert ari("clone", ref, tmp_path / "late").returncode == 3
    assert ari("ear", "publish", checkpoint, *at).returncode == 0


# -- killed at any system call


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    work = tmp_path_factory.mktemp("zygote")
    started = Zygote(work, ["ear", "publish", curated(work / "run"), *to(work / "root")])
    yield started
    started.close()


def curated(folder):
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "data.csv").write_text("a,b\n" * 1000)
    (folder / "ear" / "publish.yaml").write_text("include: ['**']\n")
    curate(folder)
    return folder


def to(root):
    return ["--backend", "filesystem-registry", "-o", f"root={root}"]


def stored(root):
    """Returns the refs that are there, each verified, if its files agree with what is said about them."""
    found = []
    for artifact, _ in store(root).list():
        assert hashlib.sha256(read_all(store(root), artifact.locator)).hexdigest() == artifact.archive_sha256
        assert verify(store(root).ref(artifact.locator)).bundle_sha256 == artifact.bundle_sha256
        found.append(store(root).ref(artifact.locator))
    return found


def about(calls, log, root):
    """Leaves out what a run calls before it looks at the root."""
    lines = [line for line in log.splitlines() if CALL.match(line)]
    before = next(index for index, line in enumerate(lines) if str(root) in line)
    begun = {name: 0 for name, _, _ in calls}
    for line in lines[:before]:
        begun[CALL.match(line)[1]] = begun.get(CALL.match(line)[1], 0) + 1
    return [call for call in calls if call[1] > begun[call[0]]]


@pytest.mark.needs("strace")
@pytest.mark.parametrize("command", ["publish", "delete"])
def test_killed_at_any_system_call(zygote, tmp_path, request, command):
    checkpoint, root = curated(tmp_path / "run"), tmp_path / "root"
    publishing = ["ear", "publish", checkpoint, *to(root)]
    arguments = publishing if command == "publish" else ["ear", "delete", checkpoint, "--yes"]

    def start_again():
        shutil.rmtree(root, ignore_errors=True)
        (checkpoint / "publish_record.json").unlink(missing_ok=True)
        if command == "delete":
            publish(checkpoint, backend="filesystem-registry", options={"root": str(root)})

    start_again()
    code, output, log = zygote.run(arguments)
    if not log:
        pytest.skip("strace cannot attach to a process here")
    assert code == 0, output
    assert len(stored(root)) == (command == "publish")
    calls = about(calls_in(log), log, root)
    changing = [call for call in calls if call[0] in {*CHANGING, "flock", "unlink"}]
    assert {"fsync", "unlink" if command == "delete" else "linkat"} & {name for name, _, _ in changing}
    seen = set()
    for name, at, _ in sample(calls if request.config.getoption("--long") else changing, request):
        what = f"{name} number {at}"
        start_again()
        code, output, _ = zygote.run(arguments, f"{name}:signal=KILL:when={at}")
        assert code in (-9, 0), (what, output)
        found = stored(root) if root.exists() else []
        record = read_record(checkpoint)
        acknowledged = record is not None and bool(record.ref)
        assert found or command == "delete" or not acknowledged, (what, "published, and lost")
        seen.add(bool(found))
        publish(checkpoint, backend="filesystem-registry", options={"root": str(root)})
        assert stored(root) == [read_record(checkpoint).ref], what
        assert names(root) == ["artifacts"], what
        (folder,) = (root / "artifacts").iterdir()
        store(root).raise_visibility(Locator(str(folder)), Visibility.PUBLIC)  # sees to a lock that was left
        assert names(folder) == FILES, what
    assert seen == {True, False}, "no kill came before the commit, or none after it"
