"""Where one copy fails, another may do: in which order, how each is opened, and what ends it at once."""

import errno
import os
import shutil
import threading
from contextlib import contextmanager
from functools import partial

import pytest
from support import evil, noting
from support.bundles import FILES, contents, make_bundle, make_tree
from support.evil import Evil
from support.noting import Noting
from support.places import failing_calls

from ari_core import clone, plugins, streams, verify, wrappers
from ari_core.errors import (
    BackendBug,
    ConfigurationError,
    DestinationExistsError,
    DigestMismatchError,
    DiskError,
    DiskFullError,
    LocalPermissionError,
    NotFound,
    UnknownBackend,
    UsageError,
    VerificationError,
)
from ari_core.filerefs import file_ref
from ari_core.fs import Staging
from ari_core.plugins import LoadedPlugins, Plugin
from ari_core.record import Record, write_record
from ari_core.workflows.spool import Spool
from ari_core.wrappers import RetryBackend, RetryPolicy

NOTHING = "0" * 64


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """`good.tar.gz` and its digest; `other.tar.gz`, another bundle; `damaged.tar.gz`."""
    folder = tmp_path_factory.mktemp("bundles")
    manifest = make_bundle(folder / "good.tar.gz")
    make_bundle(folder / "other.tar.gz", {**FILES, "README.md": b"older\n"})
    data = (folder / "good.tar.gz").read_bytes()
    (folder / "damaged.tar.gz").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    return folder, manifest.bundle_sha256


@pytest.fixture
def here(tmp_path, monkeypatch, bundles):
    """An empty current folder, with the backends `evil` and `noting` installed."""
    specs = (evil.SPEC, noting.SPEC)
    honest = plugins.load_plugins().plugins
    loaded = LoadedPlugins((*honest, *(Plugin(s.name, s.name, "1", s.name, "ok", None, (s,)) for s in specs)))
    monkeypatch.setattr(plugins, "load_plugins", lambda *_: loaded)
    monkeypatch.setattr(wrappers, "RetryBackend", lambda inner: RetryBackend(inner, RetryPolicy(tries=1)))
    monkeypatch.setenv("ARI_DEADLINE", "0.5")
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.1)  # for the thread that will never end
    Evil.forever.clear()
    Evil.bundle = (bundles[0] / "good.tar.gz").read_bytes()
    Evil.other = (bundles[0] / "other.tar.gz").read_bytes()
    monkeypatch.setattr(Noting, "files", {"good": Evil.bundle})
    monkeypatch.setattr(Noting, "opened", [])
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    Evil.forever.set()


@pytest.fixture
def config(tmp_path, monkeypatch):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        monkeypatch.setenv("ARI_CONFIG", str(tmp_path / "config.yaml"))

    return write


def checkpoint(folder, **fields):
    (folder / "ear").mkdir(parents=True)
    write_record(folder, Record(**{"backend": "noting", "ref": "noting://gone"} | fields))
    return str(folder)


def opened():
    return [ref for ref, _, _ in Noting.opened]


# -- order --------------------------------------------------------------------------------------------------------


def test_copies_are_tried_in_order_and_each_that_fails_is_told(here, bundles, config):
    """The ref, --mirror, the record's copies, the mirrors of the configuration file."""
    config("mirrors: ['noting://d', 'noting://good', 'noting://never']")
    digest = bundles[1]
    copies = [{"backend": "noting", "ref": "noting://c1"}, {"backend": "noting", "ref": "noting://c2"}]
    place = checkpoint(here / "cp", bundle_sha256=digest, copies=copies)
    told = []
    done = clone(place, "out", mirrors=["noting://b1", "noting://b2"], warn=told.append)
    order = ["gone", "b1", "b2", "c1", "c2", "d", "good"]
    assert opened() == [f"noting://{name}" for name in order]
    assert done.ref == "noting://good"
    assert [copy.ref for copy in done.skipped] == [place, *(f"noting://{name}" for name in order[1:-1])]
    assert {copy.exit_code for copy in done.skipped} == {3}
    assert told == [f"skipped '{copy.ref}': {copy.error}" for copy in done.skipped]
    assert (done.anchored_by, done.beside) == ("record", here / "cp")
    assert contents(here / "out").keys() == {*FILES, "manifest.lock"}


def test_a_copy_that_is_tried_while_another_fails_is_told_at_once(here, bundles):
    told = []
    clone(
        "noting://gone",
        "out",
        mirrors=["noting://good"],
        expect_sha256=bundles[1],
        warn=lambda line: told.append((line, opened())),
    )
    assert told == [("skipped 'noting://gone': there is no 'gone'", ["noting://gone"])]


def test_a_first_copy_that_verifies_needs_no_other(here, bundles, config):
    config("mirrors: [3]")  # not even read
    told = []
    done = clone("noting://good", "out", mirrors=["noting://b"], expect_sha256=bundles[1], warn=told.append)
    assert (done.skipped, told, opened()) == ((), [], ["noting://good"])


def test_the_same_place_is_not_tried_twice(here, bundles, config):
    config("mirrors: ['noting://gone', 'noting://good']")
    clone("noting://gone", "out", mirrors=["noting://b", "noting://b"], expect_sha256=bundles[1])
    assert opened() == ["noting://gone", "noting://b", "noting://good"]


def test_the_same_ref_is_tried_again_with_other_settings(here, bundles):
    """The artifact of one id, in another registry than the one that was picked for the ref."""
    options = {"endpoint": "lab"}
    with pytest.raises(NotFound):
        clone("noting://gone", "out", mirrors=["noting://gone"], expect_sha256=bundles[1], options=options)
    assert [given for _, _, given in Noting.opened] == [options, {}]


# -- what is skipped ----------------------------------------------------------------------------------------------


BAD = {
    "absent.tar.gz": 3,
    "damaged.tar.gz": 1,
    "other.tar.gz": 1,
    "altered": 1,
    "pipe": 1,
    "file://elsewhere/x.tar.gz": 2,
    "nosuch://x/y.tar.gz": 2,
    "https://[": 2,
    "evil://wrong": 1,
    "evil://verified": 1,
    "evil://short": 5,
    "evil://raises": 70,
    "evil://raises-reading": 70,
    "evil://hangs": 5,
    "evil://hangs-reading": 5,
}


@pytest.mark.parametrize("ref", BAD)
@pytest.mark.parametrize("extract", [True, False])
def test_a_copy_that_fails_is_skipped_and_leaves_nothing(here, tmp_path, bundles, ref, extract):
    for name in ("damaged.tar.gz", "other.tar.gz"):
        shutil.copy(bundles[0] / name, tmp_path)
    make_tree(tmp_path / "altered")
    (tmp_path / "altered/code/run.py").write_text("evil()")
    if not extract:  # a folder is no archive to keep; one with an archive in it is
        shutil.rmtree(tmp_path / "altered")
        (tmp_path / "altered").mkdir()
        shutil.copy(bundles[0] / "damaged.tar.gz", tmp_path / "altered/bundle.tar.gz")
    os.mkfifo(tmp_path / "pipe")
    bad = str(tmp_path / ref) if (tmp_path / ref).exists() or "://" not in ref else ref
    done = clone(bad, "out", mirrors=["noting://good"], expect_sha256=bundles[1], extract=extract)
    (skipped,) = done.skipped
    assert (done.ref, skipped.exit_code) == ("noting://good", BAD[ref]), skipped
    assert skipped.error.isprintable()
    assert os.listdir(here) == ["out"]
    if extract:
        assert contents(here / "out").keys() == {*FILES, "manifest.lock"}
    else:
        assert (here / "out").read_bytes() == Evil.bundle


def test_a_local_copy_that_cannot_be_read_is_skipped(here, tmp_path, bundles):
    """A dying USB stick."""
    shutil.copytree(bundles[0], tmp_path / "usb")
    stick = str(tmp_path / "usb/good.tar.gz")
    with failing_calls(str(tmp_path / "usb"), [(os, "open", errno.EIO)]):
        done = clone(stick, "out", mirrors=["noting://good"], expect_sha256=bundles[1])
    assert [copy.ref for copy in done.skipped] == [stick]


def test_what_is_wrong_with_another_copies_settings_skips_that_one(here, bundles, monkeypatch):
    monkeypatch.setenv("ARI_NOTING_ENDPIONT", "x")
    good = str(bundles[0] / "good.tar.gz")
    done = clone("absent", "out", mirrors=["noting://good", "", good], expect_sha256=bundles[1])
    assert [copy.exit_code for copy in done.skipped] == [3, 2, 2]
    assert "did you mean 'endpoint'" in done.skipped[1].error


def test_an_unpacked_mirror_is_no_archive_to_keep(here, bundles):
    make_tree(here / "unpacked")
    done = clone("absent", "out", mirrors=["unpacked", "noting://good"], expect_sha256=bundles[1], extract=False)
    assert [copy.ref for copy in done.skipped] == ["absent", "unpacked"]


def test_the_bundle_of_a_mirror_is_never_staged_if_it_is_another(here, bundles, monkeypatch):
    written = []
    monkeypatch.setattr("ari_core.verification.write_all", lambda _fd, data: written.append(len(data)))
    with pytest.raises(DigestMismatchError):
        clone("absent", "out", mirrors=[str(bundles[0] / "other.tar.gz")], expect_sha256=bundles[1])
    assert written == []
    assert os.listdir(here) == []


def test_a_mirror_with_another_id_than_its_ref_says_is_skipped(here, bundles, tmp_path, monkeypatch):
    archive = f"artifacts/{NOTHING[:16]}"
    monkeypatch.setattr(Noting, "files", {archive: Evil.bundle, "good": Evil.bundle})
    done = clone("absent", "o", mirrors=[f"noting://{archive}", "noting://good"], expect_sha256=bundles[1])
    assert "the ref names the archive 0000000000000000" in done.skipped[1].error


def test_a_thread_that_hung_writes_into_nobodys_file_when_it_wakes_up(tmp_path):
    """The number of its descriptor may be that of the next copy's file by then."""
    waiting, released, done = (threading.Event() for _ in range(3))

    class Source:
        name, size = "x", None

        @contextmanager
        def open(self):
            yield self

        def read(self, _size):
            waiting.set()
            released.wait(10)
            return b"late"

    def read(stream):
        stream.read(10)
        done.set()

    with Staging(tmp_path) as staging:
        with Spool(Source(), staging).open() as stream:
            threading.Thread(target=read, args=(stream,), daemon=True).start()
            assert waiting.wait(10)
        files = [os.open(tmp_path / str(i), os.O_WRONLY | os.O_CREAT) for i in range(4)]
        released.set()
        assert done.wait(10)
        for fd in files:
            os.close(fd)
        assert [(tmp_path / str(i)).read_bytes() for i in range(4)] == [b""] * 4


# -- what ends it at once -----------------------------------------------------------------------------------------


def test_without_a_digest_there_are_no_mirrors(here, config):
    config("mirrors: ['noting://good']")
    with pytest.raises(UsageError, match="without a digest") as caught:
        clone("noting://gone", "out", mirrors=["noting://good"])
    assert "--expect-sha256" in caught.value.hint
    assert opened() == []
    with pytest.raises(NotFound) as caught:
        clone("noting://gone", "out")
    assert caught.value.message == "there is no 'gone'"
    assert opened() == ["noting://gone"]


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (DestinationExistsError, "exists"),
        (DestinationExistsError, "appears"),
        (UsageError, "no parent"),
        (DiskFullError, "full"),
        (LocalPermissionError, "refused"),
        (LocalPermissionError, "not moved"),
        (ConfigurationError, "mistyped setting"),
    ],
)
@pytest.mark.parametrize("ref", ["noting://good", "good.tar.gz"])
def test_trouble_at_the_destination_ends_it_at_once(here, bundles, monkeypatch, error, trouble, ref):
    ref = ref if "://" in ref else str(bundles[0] / ref)
    out, options = here / "out", {}
    call = {"full": "write", "refused": "mkdir", "not moved": "rename"}.get(trouble)
    if trouble == "exists":
        make_tree(out)
    elif trouble == "no parent":
        out = here / "a/b/out"
    elif trouble == "mistyped setting":
        ref, options = "noting://good", {"endpiont": "x"}

    def progress(*_):
        if trouble == "appears":
            make_tree(out)

    def refuse(*_, **__):
        code = errno.ENOSPC if trouble == "full" else errno.EACCES
        raise OSError(code, os.strerror(code))

    before = contents(out) if trouble == "exists" else None
    told = []
    attempt = partial(
        clone,
        ref,
        out,
        mirrors=["noting://good", "noting://b"],
        expect_sha256=bundles[1],
        options=options,
        progress=progress,
        warn=told.append,
    )
    with monkeypatch.context() as patch:
        if call:
            patch.setattr(os, call, refuse)
        with pytest.raises(error):
            attempt()
    assert told == []
    assert set(opened()) <= {ref}
    if trouble == "exists":
        assert contents(out) == before
    assert [name for name in os.listdir(here) if name != "out"] == []


def test_a_dying_disk_at_the_destination_ends_it_at_once(here, bundles):
    with failing_calls(str(here), [(os, "write", errno.EIO)]), pytest.raises(DiskError, match=r"^writing"):
        clone("noting://good", "out", mirrors=["noting://b"], expect_sha256=bundles[1])
    assert opened() == ["noting://good"]


def test_ctrl_c_ends_it_at_once(here, bundles):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clone("noting://good", "out", mirrors=["noting://b"], expect_sha256=bundles[1], progress=interrupt)
    assert (opened(), os.listdir(here)) == (["noting://good"], [])


# -- when none does -----------------------------------------------------------------------------------------------


def test_when_all_fail_one_error_names_all(here, bundles):
    damaged = str(bundles[0] / "damaged.tar.gz")
    with pytest.raises(NotFound) as caught:
        clone("noting://a", "out", mirrors=["noting://b", "evil://raises"], expect_sha256=bundles[1])
    told = "none of 3 copies could be used: 'noting://a': there is no 'a'; 'noting://b': there is no 'b'; 'evil:"
    assert caught.value.message.startswith(told)
    told = []
    with pytest.raises(VerificationError) as caught:
        clone("noting://a", "out", mirrors=[damaged, "noting://c"], expect_sha256=bundles[1], warn=told.append)
    message = caught.value.message
    assert message.isprintable()
    assert message.count(damaged) == 1
    first, second, third = message.removeprefix("none of 3 copies could be used: ").split("; ")
    assert (first, third) == ("'noting://a': there is no 'a'", "'noting://c': there is no 'c'")
    assert second.startswith(f"'{damaged}': ")
    assert caught.value.exit_code == 1
    assert told == [f"skipped {first}", f"skipped {second}"]
    assert os.listdir(here) == []


def test_the_first_that_does_not_verify_weighs_most(here, bundles):
    other = str(bundles[0] / "other.tar.gz")
    with pytest.raises(DigestMismatchError) as caught:
        clone("noting://a", "out", mirrors=["evil://raises", other, "evil://wrong"], expect_sha256=bundles[1])
    assert caught.value.expected == bundles[1]
    with pytest.raises(BackendBug):
        clone("evil://raises", "out", mirrors=["noting://b"], expect_sha256=bundles[1])


def test_alone_it_fails_as_it_always_did(here, bundles):
    told = []
    with pytest.raises(UnknownBackend, match=r"^no backend"):
        clone("nosuch://x", "out", expect_sha256=bundles[1], warn=told.append)
    assert told == []


# -- credentials and strangers ------------------------------------------------------------------------------------


def test_a_records_copies_are_opened_without_the_users_credentials(here, bundles, monkeypatch):
    """Who made the record chose the hosts: none of them gets a token."""
    monkeypatch.setenv("ARI_NOTING_TOKEN", "canary")
    copy = {"ref": "noting://c", "options": {"endpoint": "theirs", "max_download": "7", "nonsense": "1"}}
    place = checkpoint(here / "cp", bundle_sha256=bundles[1], copies=[copy])
    clone(place, "out", mirrors=["noting://mine", "noting://good"], options={"token": "for-the-ref"})
    with pytest.raises(NotFound):
        clone(place, "out2", options={"max_download": "5"})
    assert Noting.opened == [
        ("noting://gone", True, {"token": "for-the-ref"}),
        ("noting://mine", False, {"token": "canary"}),
        ("noting://good", False, {"token": "canary"}),
        ("noting://gone", True, {"max_download": 5}),
        ("noting://c", True, {"endpoint": "theirs", "max_download": 5}),
    ]


def test_a_place_that_the_record_names_is_worth_a_try_with_credentials(here, bundles, config, monkeypatch):
    monkeypatch.setenv("ARI_NOTING_TOKEN", "canary")
    config("mirrors: ['noting://gone', 'noting://c']")
    copies = [{"ref": "noting://c"}]
    with pytest.raises(NotFound):
        clone(checkpoint(here / "cp", bundle_sha256=bundles[1], copies=copies), "out")
    assert Noting.opened == [
        ("noting://gone", True, {}),
        ("noting://c", True, {}),
        ("noting://gone", False, {"token": "canary"}),
        ("noting://c", False, {"token": "canary"}),
    ]


def test_where_the_published_copy_was_deleted_its_copies_stand_for_it(here, bundles):
    copies = [{"ref": "noting://b"}, {"ref": "noting://good", "archive_sha256": "ab" * 32}]
    place = checkpoint(here / "cp", ref="", bundle_sha256=bundles[1], copies=copies)
    done = clone(place, "out")
    assert (done.ref, done.anchored_by, done.beside) == ("noting://good", "record", here / "cp")
    assert opened() == ["noting://b", "noting://good"]
    write_record(here / "cp", Record(bundle_sha256=bundles[1], copies=copies[1:]))
    assert verify(place).ok


def test_copies_that_are_checkpoints_lead_nowhere(here, bundles):
    """Else a record could lead to itself for ever."""
    place = here / "cp"
    copies = [{"ref": file_ref(place)}, {"ref": file_ref(place / "publish_record.json")}, {"ref": "noting://good"}]
    done = clone(checkpoint(place, bundle_sha256=bundles[1], copies=copies), "out")
    assert ["names a checkpoint" in copy.error for copy in done.skipped] == [False, True, True]


@pytest.mark.parametrize("copies", [[{"ref": 3}], [{}], [{"ref": "noting://good", "options": {"endpoint": []}}]])
def test_copies_that_are_none_do_not_keep_other_copies_from_being_used(here, bundles, copies):
    told = []
    place = checkpoint(here / "cp", bundle_sha256=bundles[1], copies=copies)
    done = clone(place, "out", mirrors=["noting://good"], warn=told.append)
    assert done.ref == "noting://good"


def test_a_strangers_record_cannot_send_the_reader_to_thousands_of_hosts(here, bundles):
    copies = [{"ref": f"noting://{i}"} for i in range(1000)]
    with pytest.raises(NotFound):
        clone(checkpoint(here / "cp", bundle_sha256=bundles[1], copies=copies), "out")
    assert len(opened()) == 33


def test_settings_are_for_the_ref_and_the_size_for_all(here, bundles):
    options = {"token": "canary", "endpoint": "mine", "max_download": "9"}
    mirrors = ["noting://b", "evil://verified", str(bundles[0] / "good.tar.gz")]
    done = clone("noting://gone", "out", mirrors=mirrors, options=options, expect_sha256=bundles[1])
    assert [copy.exit_code for copy in done.skipped] == [3, 3, 1]
    assert [given for _, _, given in Noting.opened] == [
        {"token": "canary", "endpoint": "mine", "max_download": 9},
        {"max_download": 9},
    ]


def test_settings_given_for_a_checkpoint_are_for_its_published_copy(here, bundles):
    place = checkpoint(here / "cp", bundle_sha256=bundles[1], ref="noting://good", options={"endpoint": "x"})
    assert verify(place, options={"token": "canary"}).ok
    assert Noting.opened == [("noting://good", True, {"endpoint": "x", "token": "canary"})]


def test_what_may_be_a_secret_in_a_ref_is_not_told(here, bundles):
    told = []
    secret = "noting://user:canary@gone/x?signature=canary"  # noqa: S105 - a canary
    done = clone(
        secret, "out", mirrors=[secret + "2", "noting://good"], expect_sha256=bundles[1], warn=told.append
    )
    with pytest.raises(NotFound) as caught:
        clone("absent", "out2", mirrors=[secret, "https://u:canary@["], expect_sha256=bundles[1], warn=told.append)
    assert "canary" not in f"{done} {caught.value}" + "".join(told)


# -- the configuration file ---------------------------------------------------------------------------------------


def test_mirrors_name_the_bundle_by_what_is_known(here, bundles, config):
    """{id} is that of the ref, else of the record; {bundle_sha256} is what is compared with."""
    config("mirrors: ['noting://m/{id}', 'noting://m/{bundle_sha256}/{id}', 'noting://m/{bundle_sha256}']")
    digest, archive = bundles[1], "ab" * 32
    for ref, known in (
        ("noting://gone", ""),
        ("noting://gone/artifact/0123456789abcdef01", "0123456789abcdef01"),
        (checkpoint(here / "a", bundle_sha256=digest, archive_sha256=archive), archive[:16]),
        (
            checkpoint(
                here / "b", bundle_sha256=digest, archive_sha256=archive, ref=f"noting://artifacts/{NOTHING}/"
            ),
            NOTHING,
        ),
        (checkpoint(here / "c", bundle_sha256=digest, archive_sha256="../../secret"), ""),
    ):
        Noting.opened.clear()
        with pytest.raises(NotFound):
            clone(ref, "out", expect_sha256=digest)
        by_id = [f"noting://m/{known}", f"noting://m/{digest}/{known}"] if known else []
        assert opened()[1:] == [*by_id, f"noting://m/{digest}"]


def test_a_mirror_may_be_a_folder_at_home(here, bundles, config, monkeypatch):
    monkeypatch.setenv("HOME", str(bundles[0].parent))
    config(f"mirrors: ['~/{bundles[0].name}/good.tar.gz']")
    assert clone("noting://gone", "out", expect_sha256=bundles[1]).ref == file_ref(bundles[0] / "good.tar.gz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mirrors:\n- noting://{id}\n- noting://{ids}\n", "line 3: unknown key 'ids'; did you mean 'id'?"),
        ("mirrors: ['x{}']", "line 1: unknown key ''; known: bundle_sha256, id"),
        ("mirors: []", "line 1: unknown key 'mirors'"),
    ],
)
def test_a_wrong_configuration_file_is_told_and_hides_nothing(here, bundles, config, text, words):
    config(text)
    told = []
    with pytest.raises(NotFound, match=r"^there is no 'gone'$"):
        clone("noting://gone", "out", expect_sha256=bundles[1], warn=told.append)
    (line,) = told
    assert line.startswith("the mirrors of the configuration file are not used: ")
    assert words in line


# -- the destination ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "extract", "name"),
    [
        ("noting://host/study.tar.gz", True, "study"),
        ("noting://host/study.tar.gz", False, "study.tar.gz"),
        ("absent/study.tgz", True, "study"),
        ("https://[", True, "bundle"),
    ],
)
def test_it_is_named_after_the_ref_whichever_copy_it_is(here, bundles, ref, extract, name):
    done = clone(ref, mirrors=["noting://good"], expect_sha256=bundles[1], extract=extract)
    assert done.dest == here / name


def test_progress_starts_again_with_each_copy(here, bundles):
    seen = []
    other = bundles[0] / "other.tar.gz"
    good = bundles[0] / "good.tar.gz"
    clone(
        str(other), "out", mirrors=[str(good)], expect_sha256=bundles[1], progress=lambda *step: seen.append(step)
    )
    sizes = [path.stat().st_size for path in (other, good)]
    assert [seen[0], seen[-1]] == [("reading", size, size) for size in sizes]
