"""mirror, publish --also and the promotion of copies: what is stored where, what is said of it, what is noted."""

import hashlib
import importlib
import itertools
import json
import shutil
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from gzip import decompress

import pytest
from support.archives import END, MANIFEST, gzip, manifest, member, members
from support.bundles import FILES, contents, make_bundle, make_tree
from support.memory import MemoryBackend, MemorySettings, Stored
from support.places import photograph

import ari_core.settings
from ari_core import clone, curate, delete, mirror, promote, publish, share, show, status, verify
from ari_core.contract import Locator, Visibility
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    CheckpointNotFoundError,
    ConfigurationError,
    ContentMismatchError,
    DigestMismatchError,
    IntegrityError,
    InvalidConfiguration,
    NotAnchoredError,
    PartlyDoneError,
    QuotaExceeded,
    Unavailable,
    UnknownBackend,
    Unsupported,
    UsageError,
    VerificationError,
)
from ari_core.record import Record, change_record, read_record, write_record
from ari_core.workflows import copies as copies_module
from ari_core.workflows import spool as spool_module
from ari_core.workflows.copies import split_options
from ari_core.wrappers import RetryBackend, RetryPolicy

promote_module = importlib.import_module("ari_core.workflows.promote")
publish_module = importlib.import_module("ari_core.workflows.publish")

OTHER = {"README.md": b"another one\n"}


def flipped(data):
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


class Store(MemoryBackend):
    """A memory store that can be told to misbehave, and remembers what it was given."""

    reserves = False

    def __init__(self, name):
        super().__init__(MemorySettings())
        self.name = name
        self.fail_put = self.fail_raise = self.fail_probe = self.fail_delete = None
        self.seen, self.deleted = [], []
        self.opened = 0

    @contextmanager
    def _open(self, locator, offset):
        self.opened += 1
        with super()._open(locator, offset) as stream:
            yield stream

    def _probe(self):
        if self.fail_probe:
            raise self.fail_probe
        return self.capabilities

    def _put(self, source, new, resume, on_reserved):
        self.seen.append((new, resume, source.local_path is not None))
        if self.reserves:
            on_reserved(resume or Locator("reserved-1"))
        if self.fail_put:
            raise self.fail_put
        return super()._put(source, new, resume, lambda _locator: None)

    def _raise_visibility(self, locator, target):
        if self.fail_raise:
            raise self.fail_raise
        return super()._raise_visibility(locator, target)

    def _delete(self, locator):
        if self.fail_delete:
            raise self.fail_delete
        self.deleted.append(locator)
        super()._delete(locator)

    def _ref(self, locator):
        return f"memory://{self.name}/{locator}"

    def _resolve(self, ref):
        if not ref.startswith(f"memory://{self.name}/"):
            raise Unsupported("not a ref of this store")
        locator = Locator(ref.rpartition("/")[2])
        self._stored(locator)
        return locator

    @property
    def archives(self):
        return [stored.data for stored in self.space.items.values()]

    def keep(self, data, **claims):
        """Puts bytes there behind everybody's back; returns their ref."""
        digest = hashlib.sha256(data).hexdigest()
        claims = {"manifest": b"", "bundle_sha256": None, "created": None, **claims}
        self.space.items[digest] = Stored(data, **claims)
        return f"memory://{self.name}/{digest}"


class Reserving(Store):
    reserves = True


class Forgetful(Store):
    """Keeps other bytes than it is given, and says nothing of what it has."""

    def __init__(self, name, instead=None):
        super().__init__(name)
        self.instead = instead

    def _read(self, source):
        data = super()._read(source)
        return self.instead or flipped(data)

    def _artifact(self, locator, stored):
        return replace(super()._artifact(locator, stored), size=None, archive_sha256=None, bundle_sha256=None)

    def optional(self, _protocol):
        return None


class Levels(Store):
    """Knows two levels only, as an archive for publications does."""

    capabilities = replace(Store.capabilities, levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}))


class Describing(Store):
    describes = True


class Embargoing(Describing):
    """Keeps embargoes, of what it is told of one."""

    capabilities = replace(Store.capabilities, embargo=True)
    deaf = False

    def _stat(self, locator):
        told = [new.embargo for new, *_ in self.seen if not self.deaf]
        return replace(super()._stat(locator), embargo=told[0] if told else None)


class Particular(Levels, Describing):
    """Refuses what it could not show, at a put and before."""

    def __init__(self, name):
        super().__init__(name)
        self.rehearsed = []

    def rehearse(self, new, bundle_sha256, size):
        self.rehearsed.append((new, size))
        if new.wish and new.wish not in self.capabilities.levels:
            raise Unsupported(f"no level '{new.wish}' here")
        if "title" not in new.description:
            raise InvalidConfiguration("it would not publish this: there is no title")

    def _put(self, source, new, resume, on_reserved):
        self.rehearse(new, "", source.size)
        return super()._put(source, new, resume, on_reserved)


@pytest.fixture
def stores(monkeypatch):
    """Backends by name; refs are `memory://NAME/…`. Whoever fails is asked once more, at once."""
    every = {}
    real_open, real_open_for_ref = ari_core.settings.open_backend, ari_core.settings.open_for_ref

    def open_named(name, options=None, context=None, plugins=None, **keywords):
        return every[name] if name in every else real_open(name, options, context, plugins, **keywords)

    def open_ref(ref, *arguments, **keywords):
        name = ref.removeprefix("memory://").partition("/")[0]
        return every[name] if ref.startswith("memory://") else real_open_for_ref(ref, *arguments, **keywords)

    def impatient(inner):
        return RetryBackend(inner, RetryPolicy(tries=2, sleep=lambda _seconds: None))

    for module in (copies_module, promote_module):
        monkeypatch.setattr(module, "open_backend", open_named)
        monkeypatch.setattr(module, "patient", impatient)
    monkeypatch.setattr(ari_core.settings, "open_for_ref", open_ref)
    monkeypatch.setattr("ari_core.wrappers.patient", impatient)

    def add(name, kind=Store, **settings):
        every[name] = kind(name, **settings)
        return every[name]

    return add


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder that is no checkpoint."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ARI_CHECKPOINT_DIR", raising=False)
    return folder


@pytest.fixture
def archive(tmp_path):
    """A bundle's archive, its manifest and its bytes."""
    path = tmp_path / "bundle.tar.gz"
    found = make_bundle(path)
    return path, found, path.read_bytes()


def kept(store, archive):
    """Returns the ref of the archive in a store that knows all about it."""
    _, found, data = archive
    return store.keep(data, manifest=found.raw, bundle_sha256=found.bundle_sha256)


@pytest.fixture
def checkpoint(tmp_path, place):
    return make_checkpoint(tmp_path / "run")


def make_checkpoint(folder, files=(("code/run.py", "print(1)\n"),)):
    for name, text in files:
        path = folder / "ear" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    curate(folder)
    return folder


# -- what is stored ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_a_copy_has_the_same_bytes_and_passes_through_no_file(stores, archive, monkeypatch):
    here, there = stores("a"), stores("b")
    monkeypatch.setattr("ari_core.workflows.mirror.Spool", None)  # whoever makes a file of it fails
    done = mirror(kept(here, archive), "b")
    (copy,) = done.copies
    assert there.archives == [archive[2]]
    assert (copy.created, copy.evidence, copy.visibility, copy.recorded) == (True, "size", "staged", False)
    assert done.bundle_sha256 == archive[1].bundle_sha256
    assert done.archive_sha256 == copy.archive_sha256 == hashlib.sha256(archive[2]).hexdigest()
    assert (done.anchored_by, done.repacked, done.checkpoint, done.error) == ("none", False, None, None)
    assert clone(copy.ref, "copy", expect_sha256=done.bundle_sha256).anchored_by == "paper"


@pytest.mark.usefixtures("place")
def test_a_second_time_changes_nothing_and_still_verifies_the_source(stores, archive):
    here, there = stores("a"), stores("b")
    ref = kept(here, archive)
    first = mirror(ref, "b")
    before = dict(there.space.items)
    again = mirror(ref, "b")
    assert not again.copies[0].created
    assert again.copies[0].ref == first.copies[0].ref
    assert there.space.items == before
    data = here.archives[0]
    item = next(iter(here.space.items))
    here.space.items[item] = replace(here.space.items[item], data=data[:-1] + b"\xff")
    with pytest.raises(VerificationError):
        mirror(ref, "b")


def extended(_data):
    return gzip(member(MANIFEST, manifest(FILES)) + members({**FILES, "extra": b"x"}) + END)


BAD = {"flipped": flipped, "cut": lambda data: data[:-9], "with an extra file": extended, "empty": lambda _: b""}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("to", [["b"], ["b", "c"]], ids=["passed on", "from a file"])
@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_verify_is_stored_nowhere(stores, archive, to, bad):
    here, there, third = stores("a"), stores("b"), stores("c")
    data = BAD[bad](archive[2])
    ref = here.keep(data, manifest=archive[1].raw, bundle_sha256=archive[1].bundle_sha256)
    with pytest.raises(VerificationError):
        mirror(ref, to)
    assert there.archives == third.archives == []


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("to", [["b"], ["b", "c"]], ids=["passed on", "from a file"])
def test_a_sound_bundle_that_is_another_one_is_stored_nowhere(stores, archive, tmp_path, to):
    here, there, third = stores("a"), stores("b"), stores("c")
    other = make_bundle(tmp_path / "other.tar.gz", OTHER)
    with pytest.raises(DigestMismatchError):
        mirror(kept(here, archive), to, expect_sha256=other.bundle_sha256)
    # What the store says of it agrees with what is asked for, what it has does not.
    data = (tmp_path / "other.tar.gz").read_bytes()
    liar = here.keep(data, manifest=other.raw, bundle_sha256=archive[1].bundle_sha256)
    with pytest.raises(DigestMismatchError):
        mirror(liar, to, expect_sha256=archive[1].bundle_sha256)
    if to == ["b"]:
        with pytest.raises(DigestMismatchError):
            mirror(liar, to)
    assert there.archives == third.archives == []


@pytest.mark.usefixtures("place")
def test_an_archive_that_is_not_the_one_in_the_ref_is_stored_nowhere(stores, archive):
    class Renaming(Store):
        def _resolve(self, _ref):
            return next(iter(self.space.items))

    here, there = stores("a", Renaming), stores("b")
    ref = kept(here, archive)
    with pytest.raises(IntegrityError, match="the ref names the archive 0000"):
        mirror(f"memory://a/artifacts/{'0' * 16}", "b")
    assert there.archives == []
    digits = ref.rpartition("/")[2][:16]
    assert mirror(f"memory://a/artifacts/{digits}", "b").anchored_by == "archive-id"


def plain_tar(tmp_path):
    data = member(MANIFEST, manifest(FILES)) + members(FILES) + END
    (tmp_path / "bundle.tar").write_bytes(data)
    return tmp_path / "bundle.tar", data


@pytest.mark.usefixtures("place")
def test_a_folder_and_a_plain_tar_are_packed_as_our_writer_does(stores, archive, tmp_path):
    """The manifest's bytes are kept, so that the bundle digest is; the archive is a new one."""
    there, here = stores("b"), stores("a")
    tree = tmp_path / "tree"
    raw = make_tree(tree).raw
    tar, data = plain_tar(tmp_path)
    assert raw != manifest(FILES)
    in_store = here.keep(data, bundle_sha256=archive[1].bundle_sha256)
    for ref in (tree, tar, in_store):
        there.space.items.clear()
        done = mirror(str(ref), "b")
        assert done.repacked
        assert done.copies[0].created
        assert done.bundle_sha256 == archive[1].bundle_sha256
        clone(done.copies[0].ref, f"copy-{hashlib.sha256(str(ref).encode()).hexdigest()[:4]}")
        (stored,) = there.space.items.values()
        assert stored.manifest == (raw if ref == tree else manifest(FILES))
        if ref == tree:
            assert stored.data == archive[2]


@pytest.mark.usefixtures("place")
def test_a_gzip_archive_that_others_packed_is_copied_as_it_is(stores, tmp_path):
    there = stores("b")
    data = gzip(members(FILES) + member(MANIFEST, manifest(FILES)) + END)
    (tmp_path / "late.tar.gz").write_bytes(data)
    done = mirror(str(tmp_path / "late.tar.gz"), "b")
    assert not done.repacked
    assert there.archives == [data]


@pytest.mark.usefixtures("place")
def test_a_folder_with_more_than_its_manifest_says_is_no_bundle(stores, tmp_path):
    there = stores("b")
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "extra").write_text("x")
    with pytest.raises(ContentMismatchError):
        mirror(str(tmp_path / "tree"), "b")
    assert there.archives == []


def test_two_stores_on_one_disk_never_share_a_file(stores, place, archive, tmp_path):
    """Whoever spoils the one copy would spoil the other, too."""
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
    (place / "config.yaml").write_text(
        f"backends:\n  one: {{type: filesystem-registry, root: {tmp_path}/one}}\n"
        f"  two: {{type: filesystem-registry, root: {tmp_path}/two}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARI_CONFIG", str(place / "config.yaml"))
        done = mirror(str(archive[0]), "one")  # a file of the user's
        mirror(done.copies[0].ref, "two")  # a file of a store's
        assert_separate(archive[0], tmp_path)
        for root in ("one", "two"):
            shutil.rmtree(tmp_path / root / "artifacts")
        mirror(kept(stores("a"), archive), ["one", "two"])  # one of ours, which may be linked once
    assert_separate(archive[0], tmp_path)


def assert_separate(original, folder):
    paths = [original, *folder.glob("*/artifacts/*/bundle.tar.gz")]
    assert len(paths) == len({path.stat().st_ino for path in paths}) == 3


# -- several, and what can go wrong ------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_one_that_fails_keeps_the_others_from_nothing(stores, archive):
    broken, away, good = stores("b"), stores("c"), stores("d")
    broken.fail_put = QuotaExceeded("no room")
    away.fail_probe = Unavailable("nobody answers")
    done = mirror(str(archive[0]), ["b", "c", "d"])
    assert [type(copy.error) for copy in done.copies] == [QuotaExceeded, Unavailable, type(None)]
    assert [copy.to for copy in done.copies] == ["b", "c", "d"]
    assert good.archives == [archive[2]]
    assert isinstance(done.error, PartlyDoneError)
    assert done.error.exit_code == 6
    assert "no room" in done.error.message
    assert "nobody answers" in done.error.message


@pytest.mark.usefixtures("place")
def test_where_none_succeeds_that_is_the_error(stores, archive):
    first, second = stores("b"), stores("c")
    first.fail_put, second.fail_put = QuotaExceeded("no room"), AccessDenied("not you")
    with pytest.raises(QuotaExceeded, match=r"no room.*not you"):
        mirror(str(archive[0]), ["b", "c"])
    first.fail_put = QuotaExceeded("no room")
    with pytest.raises(QuotaExceeded, match=r"^no room$"):
        mirror(str(archive[0]), "b")


@pytest.mark.usefixtures("place")
def test_a_call_that_cannot_be_meant_reads_and_stores_nothing(stores, archive, tmp_path):
    there = stores("b")
    before = photograph(tmp_path)
    for to, keywords, error in (
        ([], {}, UsageError),
        (["b", "b"], {}, UsageError),
        (["b", "no-such-store"], {}, UnknownBackend),
        (["b", "local-tarball"], {"options": {"local-tarball.outt": "x"}}, ConfigurationError),
        (["b", "local-tarball"], {"options": {"out": "x"}}, UsageError),
        (["b"], {"options": {"c.out": "x"}}, UsageError),
        (["b"], {"visibility": "embargoed-until:2999-01-01"}, UsageError),
        (["b"], {"visibility": "publik"}, ConfigurationError),
        (["b"], {"require_digest": True}, NotAnchoredError),
        (["b"], {"checkpoint": tmp_path / "nowhere"}, CheckpointNotFoundError),
    ):
        with pytest.raises(error):
            mirror(str(archive[0]), to, **keywords)
    assert there.seen == []
    assert photograph(tmp_path) == before


def test_settings_are_for_whom_they_name():
    assert split_options({"a": "1", "s3.b": "2", "s3.eu.c": "3"}, ["s3", "s3.eu"], "s3") == {
        "s3": {"a": "1", "b": "2"},
        "s3.eu": {"c": "3"},
    }
    with pytest.raises(UsageError, match="for which"):
        split_options({"a": "1"}, ["s3", "zenodo"], None)


@pytest.mark.usefixtures("place")
def test_a_dry_run_verifies_and_writes_nothing(stores, archive, tmp_path, monkeypatch):
    there = stores("b")
    before = photograph(tmp_path)
    done = mirror(str(archive[0]), "b", dry_run=True)
    assert (done.dry_run, done.bundle_sha256) == (True, archive[1].bundle_sha256)
    archive[0].write_bytes(flipped(archive[2]))
    with pytest.raises(VerificationError):
        mirror(str(archive[0]), "b", dry_run=True)
    archive[0].write_bytes(archive[2])
    monkeypatch.setenv("ARI_PUBLISH_DRYRUN", "1")
    assert mirror(str(archive[0]), "b").dry_run
    assert there.seen == []
    assert photograph(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("to", [["z"], ["z", "b"]], ids=["one", "several"])
@pytest.mark.parametrize("kind", ["archive", "folder", "plain tar", "checkpoint"])
def test_a_dry_run_finds_what_a_store_would_refuse(stores, place, tmp_path, kind, to):
    there, other = stores("z", Particular), stores("b")
    make_bundle(tmp_path / "bundle.tar.gz")
    refs = {"archive": tmp_path / "bundle.tar.gz", "checkpoint": tmp_path / "run", "folder": tmp_path / "tree"}
    make_tree(refs["folder"])
    refs["plain tar"] = plain_tar(tmp_path)[0]
    if kind == "checkpoint":
        publish(make_checkpoint(refs["checkpoint"]))
    before = photograph(tmp_path)
    if to == ["z"]:
        with pytest.raises(InvalidConfiguration, match="no title"):
            mirror(str(refs[kind]), to, dry_run=True)
    else:
        done = mirror(str(refs[kind]), to, dry_run=True)
        assert [type(copy.error) for copy in done.copies] == [InvalidConfiguration, type(None)]
        assert done.error.exit_code == 6
    archive = refs["checkpoint"] / "bundle.tar.gz" if kind == "checkpoint" else refs["archive"]
    size = None if kind in {"folder", "plain tar"} else archive.stat().st_size
    assert [seen for _, seen in there.rehearsed] == [size]
    assert there.seen == other.seen == []
    assert photograph(tmp_path).keys() == before.keys()


def test_a_dry_run_tells_a_store_what_the_bundle_says_of_itself(stores, place, tmp_path):
    there = stores("z", Particular)
    make_bundle(tmp_path / "cited.tar.gz", {**FILES, "CITATION.cff": CFF.encode()})
    assert mirror(str(tmp_path / "cited.tar.gz"), "z", dry_run=True).copies[0].error is None
    assert there.rehearsed[0][0].description["title"] == "From the bundle"
    make_bundle(tmp_path / "e.tar.gz", publish={"visibility": "embargoed-until:2999-01-01"})
    with pytest.raises(UsageError, match="embargo"):
        mirror(str(tmp_path / "e.tar.gz"), "z", visibility="public", dry_run=True)


# -- what arrived ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_evidence_is_what_was_looked_at_and_no_more(stores, archive):
    here = stores("a")
    stores("b"), stores("c"), stores("d", Forgetful)
    ref = kept(here, archive)
    assert mirror(ref, "b").copies[0].evidence == "size"
    assert mirror(ref, "c", reread=True).copies[0].evidence == "re-hashed"
    assert mirror(str(archive[0]), "b").copies[0].evidence == "provider-checksum"
    assert mirror(ref, "d").copies[0].evidence == "present"


@pytest.mark.parametrize("instead", ["damaged", "packed otherwise", "another bundle"])
@pytest.mark.parametrize("how", ["passed on", "from a file"])
def test_a_store_that_keeps_other_bytes_is_found_out_by_reading_back(stores, checkpoint, tmp_path, how, instead):
    publish(checkpoint)
    source, data = str(checkpoint / "bundle.tar.gz"), (checkpoint / "bundle.tar.gz").read_bytes()
    if instead == "another bundle":
        make_bundle(tmp_path / "other.tar.gz", OTHER)
        there = stores("d", Forgetful, instead=(tmp_path / "other.tar.gz").read_bytes())
    else:
        there = stores("d", Forgetful, instead=gzip(decompress(data)) if instead == "packed otherwise" else None)
    if how == "passed on":
        source = stores("a").keep(data, bundle_sha256=read_record(checkpoint).bundle_sha256)
    with pytest.raises(AriError, match=r"memory://d/.* does not hold what was sent") as caught:
        mirror(source, "d", checkpoint=checkpoint, reread=True)
    assert caught.value.exit_code == 1
    assert len(there.archives) == 1
    assert read_record(checkpoint).copies == []


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("says_so", [True, False])
def test_a_store_that_takes_another_bundle_for_this_one_is_not_believed(stores, archive, tmp_path, says_so):
    class Confused(Store):
        def _put(self, *_):
            (locator,) = self.space.items
            return self._stat(locator), False

    there = stores("b", Confused)
    other = make_bundle(tmp_path / "other.tar.gz", OTHER)
    claim = other.bundle_sha256 if says_so else None
    there.keep((tmp_path / "other.tar.gz").read_bytes(), bundle_sha256=claim)
    if not says_so:
        assert mirror(str(archive[0]), "b").copies[0].evidence == "present"
    with pytest.raises(AriError, match="does not hold what was sent"):
        mirror(str(archive[0]), "b", reread=not says_so)


@pytest.mark.usefixtures("place")
def test_a_checksum_that_disagrees_is_an_error(stores, archive):
    class Wrong(Store):
        def provider_checksum(self, locator):
            return "md5", "0" * 32

    stores("b", Wrong)
    with pytest.raises(IntegrityError, match="as its md5"):
        mirror(str(archive[0]), "b")


# -- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_a_copy_stays_staged_unless_a_level_is_asked_for(stores, archive):
    there = stores("b")
    assert mirror(str(archive[0]), "b").copies[0].visibility == "staged"
    assert mirror(str(archive[0]), "b", visibility="unlisted").copies[0].visibility == "unlisted"
    assert {stored.visibility for stored in there.space.items.values()} == {Visibility.UNLISTED}
    assert mirror(str(archive[0]), "b", visibility="private-token").copies[0].visibility == "unlisted"


@pytest.mark.usefixtures("place")
def test_a_level_that_a_store_does_not_have_is_refused_before_anything_is_sent(stores, archive):
    there = stores("b", Levels)
    with pytest.raises(Unsupported, match="no level 'unlisted', only: staged, public"):
        mirror(str(archive[0]), "b", visibility="unlisted")
    assert there.seen == []


@pytest.mark.usefixtures("place")
def test_an_embargo_holds_for_copies_too(stores, tmp_path):
    there, keeper = stores("b"), stores("c", Embargoing)
    make_bundle(tmp_path / "e.tar.gz", publish={"visibility": "embargoed-until:2999-01-01"})
    with pytest.raises(UsageError, match="embargo until 2999-01-01"):
        mirror(str(tmp_path / "e.tar.gz"), "b", visibility="public")
    assert there.archives == []
    mirror(str(tmp_path / "e.tar.gz"), "b")  # staged is fine
    assert mirror(str(tmp_path / "e.tar.gz"), "c", visibility="public").copies[0].visibility == "public"
    assert keeper.seen[0][0].embargo.isoformat() == "2999-01-01"


@pytest.mark.usefixtures("place")
def test_a_copy_is_not_opened_by_a_store_that_knows_nothing_of_the_embargo(stores, tmp_path):
    keeper = stores("c", Embargoing)
    keeper.deaf = True
    make_bundle(tmp_path / "e.tar.gz", publish={"visibility": "embargoed-until:2999-01-01"})
    with pytest.raises(UsageError, match="2999-01-01"):
        mirror(str(tmp_path / "e.tar.gz"), "c", visibility="public")
    assert {stored.visibility for stored in keeper.space.items.values()} == {Visibility.STAGED}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("of", ["an archive", "a checkpoint", "a publication"])
def test_a_wish_that_a_store_cannot_grant_keeps_no_copy_from_being_made(stores, tmp_path, of):
    """A copy is staged; promoting leaves it at that where there is no such level."""
    there = stores("z", Particular)
    policy = "include: [CITATION.cff]\nvisibility: unlisted\n"
    run = make_checkpoint(tmp_path / "run", [("CITATION.cff", CFF), ("publish.yaml", policy)])
    published = publish(run, also=["z"] if of == "a publication" else [])
    if of != "a publication":
        mirror(str(run / "bundle.tar.gz" if of == "an archive" else run), "z", checkpoint=run)
    assert published.error is None
    assert [(new.wish, new.embargo) for new, *_ in there.seen] == [(Visibility.STAGED, None)]
    assert "no level" in promote(run).places[1].note
    assert mirror(str(run), "z", visibility="public").copies[0].visibility == "public"
    assert there.seen[-1][0].wish == "public"


def test_a_copy_that_cannot_be_raised_is_noted_all_the_same(stores, checkpoint):
    publish(checkpoint)
    stores("b").fail_raise = AccessDenied("not you")
    with pytest.raises(AccessDenied):
        mirror(str(checkpoint), "b", visibility="public")
    (noted,) = read_record(checkpoint).copies
    assert (noted["backend"], noted["visibility"]) == ("b", "staged")


# -- the record --------------------------------------------------------------------------------------------------


def test_the_record_tells_of_a_copy_once(stores, checkpoint):
    publish(checkpoint)
    stores("b")
    first = mirror(str(checkpoint), "b")
    assert first.checkpoint == checkpoint
    assert first.anchored_by == "record"
    record = read_record(checkpoint)
    (noted,) = record.copies
    assert noted["ref"] == first.copies[0].ref
    assert noted["archive_sha256"] == record.archive_sha256
    assert [line["event"] for line in record.history] == ["published", "copied"]
    mirror(str(checkpoint), "b", visibility="public")
    record = read_record(checkpoint)
    assert [copy["visibility"] for copy in record.copies] == ["public"]
    assert [line["event"] for line in record.history] == ["published", "copied", "promoted"]
    assert record.visibility == "staged"


def test_a_copy_where_it_was_published_is_none(stores, checkpoint):
    stores("b")
    record = publish(checkpoint, backend="b").record
    done = mirror(record.ref, "b", checkpoint=checkpoint)
    assert not done.copies[0].created
    assert done.anchored_by == "record"
    assert read_record(checkpoint).copies == []


def test_the_current_checkpoint_is_told_if_it_is_of_this_bundle(stores, checkpoint, archive, monkeypatch):
    publish(checkpoint)
    stores("b")
    monkeypatch.chdir(checkpoint)
    assert mirror("bundle.tar.gz", "b").checkpoint == checkpoint
    assert len(read_record(checkpoint).copies) == 1
    other = mirror(str(archive[0]), "b")
    assert other.checkpoint is None
    assert not other.copies[0].recorded
    assert len(read_record(checkpoint).copies) == 1


@pytest.mark.parametrize("step", ["_stat", "_open"])
def test_a_record_is_followed_without_credentials_and_what_to_do_is_said(stores, checkpoint, step):
    class Private(Store):
        pass

    def refuse(self, *arguments):
        if self.closed:
            raise AccessDenied("not without a token")
        return getattr(Store, step)(self, *arguments)

    setattr(Private, step, refuse)

    here = stores("a", Private)
    here.closed = False
    publish(checkpoint, backend="a")
    stores("b")
    here.closed = True
    ref = read_record(checkpoint).ref
    for read in (lambda ref: mirror(ref, "b"), lambda ref: clone(ref, checkpoint / "copy"), verify, show):
        with pytest.raises(AccessDenied, match="not without a token") as caught:
            read(str(checkpoint))
        assert f"without your credentials; to use them, name the copy itself: {ref}" in caught.value.hint
        with pytest.raises(AccessDenied) as caught:
            read(ref)
        assert "name the copy" not in caught.value.hint


def test_no_secret_gets_into_the_record(checkpoint, tmp_path, monkeypatch):
    publish(checkpoint)
    (tmp_path / "out").mkdir()
    made = []

    class Keyed(Store):
        pass

    def open_keyed(name, options=None, *_arguments, **_keywords):
        made.append(Keyed(name))
        return made[-1]

    monkeypatch.setattr(copies_module, "open_backend", open_keyed)
    mirror(str(checkpoint), "memory", options={"token": "canary-secret", "page": "7"})
    text = (checkpoint / "publish_record.json").read_text()
    assert "canary" not in text
    assert json.loads(text)["copies"][0]["settings"] == {"page": "7"}


def test_what_was_begun_is_written_down_resumed_and_forgotten(stores, checkpoint):
    publish(checkpoint)
    one, two = stores("b", Reserving), stores("c", Reserving)
    one.fail_put = two.fail_put = Unavailable("the line is down")
    for name in ("b", "c"):
        with pytest.raises(Unavailable):
            mirror(str(checkpoint), name)
    pending = read_record(checkpoint).pending_copies
    assert [(line["backend"], line["locator"]) for line in pending] == [("b", "reserved-1"), ("c", "reserved-1")]
    assert {line["bundle_sha256"] for line in pending} == {read_record(checkpoint).bundle_sha256}
    one.fail_put = None
    one.seen.clear()
    mirror(str(checkpoint), "b")
    assert [resume for _, resume, _ in one.seen] == ["reserved-1"]
    assert [line["backend"] for line in read_record(checkpoint).pending_copies] == ["c"]


@pytest.mark.parametrize("finished", [True, False])
def test_two_programs_at_once_begin_in_one_place_only(stores, checkpoint, finished):
    class Slow(Store):
        def _put(self, source, new, resume, on_reserved):
            if not self.seen:
                self.seen.append(None)
                with suppress(Unavailable):
                    mirror(str(checkpoint), "r", checkpoint=checkpoint)
                on_reserved(Locator("reserved-2"))
            on_reserved(Locator("reserved-1"))
            if not finished:
                raise Unavailable("down")
            return MemoryBackend._put(self, source, new, resume, lambda _locator: None)

    stores("r", Slow)
    publish(checkpoint)
    with pytest.raises(AlreadyExists, match="another `ari` began to store from this checkpoint in 'r'"):
        mirror(str(checkpoint), "r", checkpoint=checkpoint)
    record = read_record(checkpoint)
    assert len(record.copies) == finished
    assert [begun["locator"] for begun in record.pending_copies] == ([] if finished else ["reserved-1"])


def test_what_was_begun_elsewhere_is_not_forgotten_by_a_publication(stores, checkpoint):
    """A reserved name that nobody knows of is a draft left over for ever."""
    begun, _ = stores("z", Reserving), stores("a")
    begun.fail_put = Unavailable("the line is down")
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="z")
    assert read_record(checkpoint).pending["locator"] == "reserved-1"
    publish(checkpoint, backend="a")
    record = read_record(checkpoint)
    assert record.pending is None
    assert [line["locator"] for line in record.pending_copies] == ["reserved-1"]
    begun.fail_put = None
    publish(checkpoint, backend="z")
    assert begun.seen[-1][1] == "reserved-1"
    assert read_record(checkpoint).unfinished() == []


def test_a_copy_goes_on_with_what_a_publication_began(stores, checkpoint):
    publish(checkpoint)
    begun = stores("z", Reserving)
    begun.fail_put = Unavailable("the line is down")
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="z")
    begun.fail_put = None
    mirror(str(checkpoint), "z")
    assert begun.seen[-1][1] == "reserved-1"
    assert read_record(checkpoint).unfinished() == []


def test_one_publication_begun_after_another_keeps_both_in_mind(stores, checkpoint):
    for name in ("y", "z"):
        stores(name, Reserving).fail_put = Unavailable("the line is down")
        with pytest.raises(Unavailable):
            publish(checkpoint, backend=name)
    record = read_record(checkpoint)
    assert record.pending["backend"] == "z"
    assert [line["backend"] for line in record.pending_copies] == ["y"]


def test_what_was_begun_with_other_settings_is_kept_unless_a_store_goes_on_with_it(stores, checkpoint):
    """The sandbox and the real thing are one backend, and what is in one is not in the other."""

    class Two(Reserving):
        def _put(self, source, new, resume, on_reserved):
            self.seen.append((new, resume, False))
            on_reserved(Locator(self.named))
            raise Unavailable("the line is down")

    store = stores("z", Two)
    for store.named, options in (("one", {"page": "1"}), ("two", {"page": "2"}), ("one", {"page": "1"})):
        with pytest.raises(Unavailable):
            publish(checkpoint, backend="z", options=options)
    assert store.seen[-1][1] == "one"
    assert {line["locator"] for line in read_record(checkpoint).unfinished()} == {"one", "two"}


def test_a_new_version_knows_what_it_supersedes(stores, checkpoint):
    there = stores("b")
    publish(checkpoint)
    first = mirror(str(checkpoint), "b")
    (checkpoint / "ear" / "code" / "run.py").write_text("print(2)\n")
    curate(checkpoint)
    publish(checkpoint)
    assert read_record(checkpoint).copies == []
    mirror(str(checkpoint), "b")
    previous = there.seen[-1][0].previous
    assert previous.bundle_sha256 == first.bundle_sha256
    assert there.ref(previous.locator) == first.copies[0].ref


def test_a_copy_on_a_disk_gives_way_to_the_next_version_of_it(checkpoint, tmp_path):
    publish(checkpoint)
    mirror(str(checkpoint), "local-tarball", options={"out": str(tmp_path / "usb")})
    (checkpoint / "ear" / "code" / "run.py").write_text("print(2)\n")
    curate(checkpoint)
    second = publish(checkpoint)
    done = mirror(str(checkpoint), "local-tarball", options={"out": str(tmp_path / "usb")})
    assert done.bundle_sha256 == second.record.bundle_sha256
    make_bundle(tmp_path / "other.tar.gz", OTHER)
    with pytest.raises(AlreadyExists):
        mirror(str(tmp_path / "other.tar.gz"), "local-tarball", options={"out": str(tmp_path / "usb")})
    mirror(str(tmp_path / "other.tar.gz"), "local-tarball", options={"out": str(tmp_path / "usb")}, replace=True)
    assert read_record(checkpoint).bundle_sha256 == second.record.bundle_sha256


def test_programs_that_note_something_at_once_lose_nothing(tmp_path):
    write_record(tmp_path, Record(ref="file:///x", bundle_sha256="0" * 64))
    barrier = threading.Barrier(6)

    def note(thread):
        barrier.wait()
        for number in range(5):
            copy = {"backend": "b", "ref": f"memory://{thread}/{number}"}
            change_record(tmp_path, lambda record, copy=copy: record.with_copy(copy, None))

    threads = [threading.Thread(target=note, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_record(tmp_path).copies) == 30


def test_an_older_record_s_copies_are_places_too(checkpoint):
    publish(checkpoint)
    record = read_record(checkpoint)
    old = {"backend": "https", "ref": "https://example.org/b.tar.gz", "options": {"x": "y"}}
    write_record(checkpoint, record.model_copy(update={"copies": [old]}))
    own, copy = read_record(checkpoint).places()
    assert own == read_record(checkpoint)
    assert (copy.backend, copy.ref, copy.options, copy.visibility) == ("https", old["ref"], {"x": "y"}, "staged")
    assert (copy.archive_sha256, copy.settings, copy.bundle_sha256) == (None, {}, record.bundle_sha256)
    write_record(checkpoint, record.model_copy(update={"copies": [{**old, "options": "no"}]}))
    with pytest.raises(ConfigurationError, match="has no proper 'options'"):
        read_record(checkpoint).places()


# -- stores that show people what it is --------------------------------------------------------------------------

CFF = "cff-version: 1.2.0\ntitle: From the bundle\nauthors: [{family-names: Lovelace, given-names: Ada}]\n"


def test_a_describing_store_is_told_what_the_bundle_says_of_itself(stores, place, archive, tmp_path):
    told, plain, here = stores("z", Describing), stores("b"), stores("a")
    data = {**FILES, "CITATION.cff": CFF.encode()}
    found = make_bundle(tmp_path / "cited.tar.gz", data, {"license": "MIT"})
    raw = (tmp_path / "cited.tar.gz").read_bytes()
    ref = here.keep(raw, manifest=found.raw, bundle_sha256=found.bundle_sha256)
    for source in (str(tmp_path / "cited.tar.gz"), str(tmp_path / "cited.tar.gz.tree"), ref):
        told.space.items.clear()
        plain.space.items.clear()
        mirror(source, ["z", "b"])
        description = told.seen[-1][0].description
        assert (description["title"], description["license"]) == ("From the bundle", "MIT")
        assert description["creators"][0]["family"] == "Lovelace"
        assert plain.seen[-1][0].description == {"license": "MIT"}
    assert [path.name for path in place.iterdir()] == []


def test_the_author_s_own_words_come_first_and_are_streamed_along(stores, tmp_path, place, monkeypatch):
    told = stores("z", Describing)
    stores("a")
    policy = "include: [CITATION.cff]\nlicense: MIT\nzenodo: {title: From publish.yaml}\n"
    folder = make_checkpoint(tmp_path / "cited", [("CITATION.cff", CFF), ("publish.yaml", policy)])
    publish(folder, backend="a", also=["z"])
    assert told.seen[-1][0].description["title"] == "From publish.yaml"
    told.space.items.clear()
    monkeypatch.setattr("ari_core.workflows.mirror.Spool", None)
    done = mirror(read_record(folder).ref, "z", checkpoint=folder)
    description = told.seen[-1][0].description
    assert (description["title"], description["creators"][0]["given"]) == ("From publish.yaml", "Ada")
    assert done.checkpoint == folder


def test_what_a_copy_s_manifest_says_of_licence_and_visibility_counts_only_where_nothing_better_is_known(
    stores, tmp_path, place
):
    told = stores("z", Describing)
    folder = make_checkpoint(
        tmp_path / "mine", [("CITATION.cff", CFF), ("publish.yaml", "include: ['*.cff']\nlicense: MIT\n")]
    )
    publish(folder)
    files = {path.name: path.read_bytes() for path in (folder / "ear_published").iterdir()}
    del files[MANIFEST]
    says = {"license": "CC0-1.0", "visibility": "public"}  # the digest is the same
    copy = str(tmp_path / "copy.tar.gz")
    assert make_bundle(tmp_path / "copy.tar.gz", files, says).bundle_sha256 == read_record(folder).bundle_sha256
    lines = []
    for source, dry_run in itertools.product((copy, f"{copy}.tree"), (True, False)):
        mirror(source, "z", checkpoint=folder, dry_run=dry_run, warn=lines.append)
    assert told.seen[-1][0].description["license"] == "MIT"
    assert not [line for line in lines if "digest" in line]
    mirror(copy, "z", warn=lines.append)
    assert told.seen[-1][0].description["license"] == "CC0-1.0"
    (line,) = (line for line in lines if "digest" in line)
    assert "that the bundle has license 'CC0-1.0' and visibility 'public' stands in its manifest.lock" in line


def test_a_description_that_is_wrong_keeps_that_copy_from_being_made(stores, tmp_path, place):
    told, plain = stores("z", Describing), stores("b")
    bad = CFF.replace("title: From the bundle", "title: [1]").encode()
    make_bundle(tmp_path / "bad.tar.gz", {**FILES, "CITATION.cff": bad})
    done = mirror(str(tmp_path / "bad.tar.gz"), ["z", "b"])
    assert isinstance(done.copies[0].error, ConfigurationError)
    assert "CITATION.cff" in done.copies[0].error.message
    assert told.seen == []
    assert len(plain.archives) == 1


# -- publish --also ----------------------------------------------------------------------------------------------


def test_publishing_also_elsewhere_packs_once_and_notes_all(stores, checkpoint, monkeypatch):
    stores("a"), stores("b"), stores("c")
    packed = []
    real = spool_module.write_bundle
    monkeypatch.setattr(spool_module, "write_bundle", lambda *args, **kw: packed.append(args) or real(*args, **kw))
    done = publish(checkpoint, backend="a", also=["b", "c"])
    assert len(packed) == 1
    assert [copy.created for copy in done.copies] == [True, True]
    record = read_record(checkpoint)
    assert record == done.record
    assert [record.ref, *(copy["ref"] for copy in record.copies)] == [
        f"memory://{name}/{record.archive_sha256}" for name in "abc"
    ]


def test_what_is_published_stands_though_a_copy_fails(stores, checkpoint):
    good, bad = stores("a"), stores("b")
    bad.fail_probe = Unavailable("nobody answers")
    done = publish(checkpoint, backend="a", also=["b"])
    assert isinstance(done.error, PartlyDoneError)
    assert read_record(checkpoint).ref.startswith("memory://a/")
    assert read_record(checkpoint).copies == []
    assert len(good.archives) == 1
    bad.fail_probe = None
    again = publish(checkpoint, backend="a", also=["b"])
    assert again.error is None
    assert len(read_record(checkpoint).copies) == 1


def test_a_wrong_setting_of_a_copy_is_found_before_anything_is_published(stores, checkpoint):
    good = stores("a")
    for also, options, error in (
        (["no-such"], {}, UnknownBackend),
        (["local-tarball"], {"local-tarball.nonsense": "1"}, ConfigurationError),
        (["a"], {}, UsageError),
        (["local-tarball"], {"zenodo.token": "1"}, UsageError),
    ):
        with pytest.raises(error):
            publish(checkpoint, backend="a", also=also, options=options)
    assert good.archives == []
    assert read_record(checkpoint) is None


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_a_store_would_refuse_is_known_before_anything_is_packed(stores, checkpoint, monkeypatch, dry_run):
    there = stores("z", Particular)
    monkeypatch.setattr(publish_module, "pack", None)  # whoever packs fails
    with pytest.raises(InvalidConfiguration, match="no title"):
        publish(checkpoint, backend="z", dry_run=dry_run)
    with pytest.raises(ConfigurationError, match="CITATION"):
        publish(bad_citation(checkpoint), backend="z", dry_run=dry_run)
    assert there.seen == []
    assert read_record(checkpoint) is None


def bad_citation(checkpoint):
    (checkpoint / "ear" / "CITATION.cff").write_text("title: [1]\n")
    (checkpoint / "ear" / "publish.yaml").write_text("include: [CITATION.cff]\n")
    curate(checkpoint)
    return checkpoint


def test_a_dry_run_tells_which_copies_would_fail(stores, checkpoint):
    stores("a"), stores("b"), stores("z", Particular)
    done = publish(checkpoint, backend="a", also=["b", "z"], dry_run=True)
    assert [(copy.to, type(copy.error)) for copy in done.copies] == [
        ("b", type(None)),
        ("z", InvalidConfiguration),
    ]
    assert done.error.exit_code == 6
    assert read_record(checkpoint) is None


def test_publishing_to_where_a_copy_was_makes_that_the_place(stores, checkpoint):
    stores("a"), stores("b")
    publish(checkpoint, backend="a", also=["b"])
    promote(checkpoint, target="public")
    record = publish(checkpoint, backend="b").record
    assert record.ref.startswith("memory://b/")
    assert record.visibility == "public"
    assert [copy["ref"][:11] for copy in record.copies] == ["memory://a/"]


# -- promoting copies --------------------------------------------------------------------------------------------


@pytest.fixture
def published(stores, checkpoint):
    """A checkpoint that is published to `a`, with copies in `b`, which has all levels, and `z`, which has not."""
    every = stores("a"), stores("b"), stores("z", Levels)
    publish(checkpoint, backend="a", also=["b", "z"], visibility="public")
    return checkpoint, *every


def test_copies_are_promoted_too(published):
    checkpoint, *stores = published
    done = promote(checkpoint)
    assert [place.visibility for place in done.places] == ["public"] * 3
    assert [copy["visibility"] for copy in read_record(checkpoint).copies] == ["public"] * 2
    for store in stores:
        assert {stored.visibility for stored in store.space.items.values()} == {Visibility.PUBLIC}


def test_a_copy_that_has_no_such_level_stays_and_that_is_no_failure(published):
    checkpoint, _, _, levels = published
    done = promote(checkpoint, target="private-token")
    assert done.error is None
    assert [place.visibility for place in done.places] == ["private-token", "private-token", "staged"]
    assert "no level" in done.places[2].note
    assert {stored.visibility for stored in levels.space.items.values()} == {Visibility.STAGED}


def test_the_place_itself_must_have_the_level(stores, checkpoint):
    stores("z", Levels)
    publish(checkpoint, backend="z")
    with pytest.raises(Unsupported, match="no level"):
        promote(checkpoint, target="private-token")
    assert read_record(checkpoint).promote_failed_at


def test_a_copy_is_promoted_though_the_place_itself_is_gone_and_the_record_says_which(published):
    checkpoint, gone, *_ = published
    gone.fail_probe = Unavailable("the lab has closed")
    done = promote(checkpoint)
    assert isinstance(done.error, PartlyDoneError)
    record = read_record(checkpoint)
    assert (record.visibility, [copy["visibility"] for copy in record.copies]) == ("staged", ["public"] * 2)
    gone.fail_probe = None
    again = promote(checkpoint)
    assert again.error is None
    assert [place.changed for place in again.places] == [True, False, False]


def test_a_copy_that_is_another_bundle_by_now_is_not_touched(published, archive):
    checkpoint, _, other, _ = published
    (item,) = other.space.items
    other.space.items[item] = replace(other.space.items[item], bundle_sha256=archive[1].bundle_sha256)
    record = read_record(checkpoint)
    copies = [{**copy, "archive_sha256": None} for copy in record.copies]
    write_record(checkpoint, record.model_copy(update={"copies": copies}))
    done = promote(checkpoint)
    assert isinstance(done.places[1].error, AlreadyExists)
    assert {stored.visibility for stored in other.space.items.values()} == {Visibility.STAGED}
    assert read_record(checkpoint).history[-2]["event"] == "promotion failed"


def test_where_nothing_can_be_promoted_that_is_the_error(published):
    checkpoint, *stores = published
    for store in stores:
        store.fail_probe = AccessDenied("not you")
    with pytest.raises(AccessDenied):
        promote(checkpoint)
    assert read_record(checkpoint).visibility == "staged"


def test_copies_can_be_promoted_when_only_they_are_left(published):
    checkpoint, *_ = published
    gone = delete(checkpoint).record
    assert len(gone.copies) == 2
    done = promote(checkpoint)
    assert [place.visibility for place in done.places] == ["public"] * 2
    assert read_record(checkpoint).ref == ""


# -- deleting copies ---------------------------------------------------------------------------------------------


def test_a_copy_is_deleted_by_its_name_or_its_ref(published):
    checkpoint, first, second, third = published
    refs = [copy["ref"] for copy in read_record(checkpoint).copies]
    done = delete(checkpoint, copies=["b"])
    assert [(place.ref, place.error) for place in done.places] == [(refs[0], None)]
    assert [copy["ref"] for copy in done.record.copies] == [refs[1]]
    done = delete(checkpoint, copies=[refs[1]])
    assert (len(first.archives), second.archives, third.archives) == (1, [], [])
    record = read_record(checkpoint)
    assert record == done.record
    assert (record.copies, record.ref[:11]) == ([], "memory://a/")
    assert [line["ref"] for line in record.history if line["event"] == "deleted"] == refs


def test_all_of_it_is_deleted_and_what_cannot_be_is_said_and_kept_in_mind(published):
    checkpoint, first, second, third = published
    second.fail_delete = AccessDenied("not you")
    done = delete(checkpoint, everything=True)
    assert isinstance(done.error, PartlyDoneError)
    assert [type(place.error) for place in done.places] == [type(None), AccessDenied, type(None)]
    assert [first.archives, third.archives] == [[], []]
    record = read_record(checkpoint)
    assert (record.ref, [copy["backend"] for copy in record.copies]) == ("", ["b"])
    with pytest.raises(AccessDenied):
        delete(checkpoint, everything=True)
    second.fail_delete = None
    assert delete(checkpoint, everything=True).record.copies == []
    with pytest.raises(CheckpointNotFoundError, match="nothing is published"):
        delete(checkpoint, everything=True)


def test_where_only_copies_are_left_that_is_said(published):
    checkpoint, *_ = published
    delete(checkpoint)
    with pytest.raises(CheckpointNotFoundError, match=r"only copies are left: memory://b/.*memory://z/") as caught:
        delete(checkpoint)
    assert "--copy" in caught.value.hint
    with pytest.raises(CheckpointNotFoundError, match="any more; only copies are left"):
        share(checkpoint)


def test_a_copy_has_to_be_named_well(stores, published):
    checkpoint, *_ = published
    stores("z").keep(b"x")
    for name, words in (("nowhere", "there is no copy"), ("a", "there is no copy")):
        with pytest.raises(UsageError, match=words):
            delete(checkpoint, copies=[name])
    record = read_record(checkpoint)
    twin = {**record.copies[0], "ref": "memory://b/other"}
    write_record(checkpoint, record.model_copy(update={"copies": [*record.copies, twin]}))
    with pytest.raises(UsageError, match="2 copies") as caught:
        delete(checkpoint, copies=["b"])
    assert "memory://b/other" in caught.value.hint
    assert len(read_record(checkpoint).copies) == 3


def test_a_copy_that_is_another_bundle_by_now_is_not_deleted(published, archive):
    checkpoint, _, other, _ = published
    (item,) = other.space.items
    other.space.items[item] = replace(other.space.items[item], bundle_sha256=archive[1].bundle_sha256)
    record = read_record(checkpoint)
    copies = [{**copy, "archive_sha256": None} for copy in record.copies]
    write_record(checkpoint, record.model_copy(update={"copies": copies}))
    with pytest.raises(AlreadyExists, match="not touched"):
        delete(checkpoint, copies=["b"])
    assert len(other.archives) == 1


def test_deleting_one_copy_for_rehearsal_deletes_none(published):
    checkpoint, *stores = published
    before = read_record(checkpoint)
    assert len(delete(checkpoint, everything=True, dry_run=True).places) == 3
    assert read_record(checkpoint) == before
    assert [len(store.archives) for store in stores] == [1, 1, 1]


def test_a_copy_that_was_begun_is_discarded_by_name(stores, published):
    checkpoint, *_ = published
    begun = stores("r", Reserving)
    begun.fail_put = Unavailable("down")
    with pytest.raises(Unavailable):
        mirror(str(checkpoint / "ear_published"), "r", checkpoint=checkpoint)
    done = delete(checkpoint, copies=["r"])
    assert [(place.ref, place.unfinished) for place in done.places] == [("reserved-1", True)]
    assert begun.deleted == ["reserved-1"]
    assert (done.record.pending_copies, len(done.record.copies), bool(done.record.ref)) == ([], 2, True)


def test_status_lists_copies_and_what_is_unfinished(stores, published):
    checkpoint, *_ = published
    stores("r", Reserving).fail_put = Unavailable("down")
    with pytest.raises(Unavailable):
        mirror(str(checkpoint / "ear_published"), "r", checkpoint=checkpoint)
    found = status(checkpoint)
    assert [(copy.backend, copy.visibility) for copy in found.copies] == [("b", "staged"), ("z", "staged")]
    assert [line["backend"] for line in found.record.pending_copies] == ["r"]
    assert contents(clone(found.copies[0].ref, checkpoint.parent / "copy").dest)
