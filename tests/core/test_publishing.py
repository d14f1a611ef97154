"""publish, promote, status and delete, over the real local-tarball and a backend that misbehaves on order."""

import importlib
import json
import os
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from support.bundles import contents
from support.memory import MemoryBackend

import ari_core
from ari_core import clone, curate, delete, promote, publish, status
from ari_core.contract import Locator, Visibility
from ari_core.errors import (
    AlreadyExists,
    ChangedSinceCurationError,
    CheckpointNotFoundError,
    ConfigurationError,
    CurationError,
    LocalPermissionError,
    NotFound,
    ReadOnly,
    Unavailable,
    UnknownBackend,
    Unsupported,
    UsageError,
)
from ari_core.record import read_record, write_record
from ari_core.wrappers import RetryBackend, RetryPolicy

copies_module = importlib.import_module("ari_core.workflows.copies")
publish_module = importlib.import_module("ari_core.workflows.publish")
promote_module = importlib.import_module("ari_core.workflows.promote")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "run.py").write_text("print(1)\n")
    curate(folder)
    return folder


def recurate(checkpoint, text):
    (checkpoint / "ear" / "code" / "run.py").write_text(text)
    return curate(checkpoint).bundle_sha256


def another_author(tmp_path):
    """Returns the curated checkpoint of somebody else."""
    folder = tmp_path / "other"
    (folder / "ear" / "code").mkdir(parents=True)
    (folder / "ear" / "code" / "x.py").write_text("x")
    curate(folder)
    return folder


def listing(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# -- publish -----------------------------------------------------------------------------------------------------


def test_what_the_author_needs_next(checkpoint, tmp_path):
    result = publish(checkpoint)
    digest = status(checkpoint).curated_sha256
    assert result.created
    assert result.record.bundle_sha256 == digest
    assert result.record.visibility == "staged"
    assert result.latex == rf"\codedigest{{{digest}}}"
    words = shlex.split(result.clone_command)
    assert words == ["ari", "clone", result.record.ref, "--expect-sha256", digest]
    copy = clone(words[2], tmp_path / "copy", expect_sha256=words[4])
    assert copy.anchored_by == "paper"
    assert contents(copy.dest) == contents(checkpoint / "ear_published")


def test_the_record_keeps_the_fields_of_the_existing_tool(checkpoint):
    publish(checkpoint, visibility="unlisted")
    data = json.loads((checkpoint / "publish_record.json").read_text())
    assert {"backend", "ref", "bundle_sha256", "visibility", "timestamp", "dry_run", "extra"} <= data.keys()
    assert (data["backend"], data["visibility"], data["wish"]) == ("local-tarball", "staged", "unlisted")
    assert data["dry_run"] is False
    assert data["encoder"].startswith("isal ")
    assert [line["event"] for line in data["history"]] == ["published"]


def test_fields_of_other_programs_are_kept(checkpoint):
    (checkpoint / "publish_record.json").write_text('{"theirs": {"x": 1}}')
    publish(checkpoint)
    assert json.loads((checkpoint / "publish_record.json").read_text())["theirs"] == {"x": 1}


def test_the_existing_tools_record_is_read(checkpoint):
    sample = Path(__file__).parents[1] / "data" / "existing" / "publish_record.json"
    (checkpoint / "publish_record.json").write_bytes(sample.read_bytes())
    found = status(checkpoint)
    assert found.record.visibility == "public"
    assert not found.published_is_curated
    assert publish(checkpoint).record.history[-1]["event"] == "published"


def test_publishing_again_changes_nothing(checkpoint):
    first = publish(checkpoint)
    promote(checkpoint, target="public")
    inode = (checkpoint / "bundle.tar.gz").stat().st_ino
    second = publish(checkpoint)
    assert not second.created
    assert second.record.ref == first.record.ref
    assert second.record.visibility == "public"
    assert (checkpoint / "bundle.tar.gz").stat().st_ino == inode


def test_a_second_place_is_remembered_as_a_copy(checkpoint, tmp_path):
    first = publish(checkpoint).record
    second = publish(checkpoint, options={"out": str(tmp_path / "other")}).record
    assert second.ref != first.ref
    assert [copy["ref"] for copy in second.copies] == [first.ref]


def test_a_new_bundle_keeps_the_one_this_checkpoint_published(checkpoint):
    old = publish(checkpoint).record
    digest = recurate(checkpoint, "print(2)\n")
    new = publish(checkpoint).record
    assert new.bundle_sha256 == digest
    assert new.copies == []
    kept = checkpoint / f"bundle-{old.archive_sha256[:16]}.tar.gz"
    assert clone(str(kept), checkpoint.parent / "old", expect_sha256=old.bundle_sha256)
    assert [line["bundle_sha256"] for line in new.history] == [old.bundle_sha256, digest]


def test_somebody_elses_bundle_is_in_the_way(checkpoint, tmp_path):
    other = another_author(tmp_path)
    out = {"out": str(tmp_path / "out")}
    theirs = publish(other, options=out).record
    for dry_run in True, False:
        with pytest.raises(AlreadyExists) as caught:
            publish(checkpoint, options=out, dry_run=dry_run)
        assert "--replace" in f"{caught.value.message} {caught.value.hint}"
    assert publish(other, options=out, dry_run=True).dry_run  # the very bundle is no hindrance
    assert not (checkpoint / "publish_record.json").exists()
    assert clone(theirs.ref, tmp_path / "copy", expect_sha256=theirs.bundle_sha256)
    mine = publish(checkpoint, options=out, replace=True).record
    assert clone(mine.ref, tmp_path / "copy2", expect_sha256=mine.bundle_sha256)


def test_what_somebody_else_put_in_its_place_is_not_replaced(checkpoint, tmp_path):
    """The record names a place; what lies there now may be another author's."""
    out = {"out": str(tmp_path / "out")}
    publish(checkpoint, options=out)
    other = another_author(tmp_path)
    theirs = publish(other, options=out, replace=True).record
    recurate(checkpoint, "print(2)\n")
    with pytest.raises(AlreadyExists):
        publish(checkpoint, options=out)
    assert clone(theirs.ref, tmp_path / "copy", expect_sha256=theirs.bundle_sha256)


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_dry_run_writes_nothing(checkpoint, monkeypatch, how):
    publish(checkpoint)
    record = (checkpoint / "publish_record.json").read_bytes()
    digest = recurate(checkpoint, "print(2)\n")
    before = contents(checkpoint)
    if how == "environment":
        monkeypatch.setenv("ARI_PUBLISH_DRYRUN", "1")
    result = publish(checkpoint, dry_run=how == "flag")
    assert result.dry_run
    assert result.record.bundle_sha256 == digest
    assert contents(checkpoint) == before
    assert (checkpoint / "publish_record.json").read_bytes() == record
    would = promote(checkpoint, target="public", dry_run=True)
    assert (would.dry_run, would.record.visibility) == (True, "public")
    assert contents(checkpoint) == before


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda tree: (tree / "code/run.py").write_text("print(2)\n"), "code/run.py"),
        (lambda tree: (tree / "code/run.py").unlink(), "code/run.py"),
        (lambda tree: (tree / "new.py").write_text(""), "new.py"),
        (lambda tree: (tree / "link").symlink_to("/etc/passwd"), "link"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_edited_since_curation(checkpoint, harm, words, dry_run):
    harm(checkpoint / "ear_published")
    before = listing(checkpoint)
    with pytest.raises(ChangedSinceCurationError, match=words):
        publish(checkpoint, dry_run=dry_run)
    assert listing(checkpoint) == before


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_store_that_only_reads_is_said(checkpoint, dry_run):
    with pytest.raises(Unsupported, match="only reads") as caught:
        publish(checkpoint, backend="https", dry_run=dry_run)
    assert "local-tarball" in caught.value.hint


def test_a_place_that_is_read_only_is_said(checkpoint, monkeypatch):
    monkeypatch.setattr("ari_backends.local_tarball.is_writable", lambda *_: False)
    with pytest.raises(ReadOnly, match="in this place") as caught:
        publish(checkpoint)
    assert "mounted" in caught.value.hint


def test_a_misspelt_rehearsal_is_not_the_performance(checkpoint, monkeypatch):
    monkeypatch.setenv("ARI_PUBLISH_DRY_RUN", "1")
    before = listing(checkpoint)
    with pytest.raises(ConfigurationError, match="did you mean ARI_PUBLISH_DRYRUN"):
        publish(checkpoint)
    assert listing(checkpoint) == before


def test_copies_elsewhere_are_not_forgotten_when_one_is_deleted(checkpoint, tmp_path):
    first = publish(checkpoint).record.ref
    publish(checkpoint, options={"out": str(tmp_path / "usb")})
    delete(checkpoint)
    assert [copy["ref"] for copy in status(checkpoint).record.copies] == [first]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="absent"):
        publish(tmp_path / "absent")
    (tmp_path / "ear").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="not curated"):
        publish(tmp_path)
    for call in (promote, delete):
        with pytest.raises(CheckpointNotFoundError, match=r"nothing is published from '.*'$"):
            call(tmp_path)


def test_an_empty_bundle_needs_a_word(tmp_path):
    (tmp_path / "ear").mkdir()
    curate(tmp_path)
    with pytest.raises(CurationError, match="no files") as caught:
        publish(tmp_path)
    assert "--allow-empty" in caught.value.hint
    assert publish(tmp_path, allow_empty=True).file_count == 0


def test_the_backend_is_chosen_and_the_choice_explained(checkpoint):
    assert publish(checkpoint).backend_reason == "nothing else is configured"
    assert publish(checkpoint, backend="local-tarball").backend_reason == "asked for by --backend local-tarball"
    (checkpoint / "ear" / "publish.yaml").write_text("backend: local-tarball\n")
    curate(checkpoint)
    assert publish(checkpoint, replace=True).backend_reason == "named in publish.yaml"
    with pytest.raises(UnknownBackend, match="local-tarball"):
        publish(checkpoint, backend="local-tarbal")


def test_bad_settings_are_seen_before_anything_is_written(checkpoint):
    before = listing(checkpoint)
    with pytest.raises(ConfigurationError, match="outt"):
        publish(checkpoint, options={"outt": "x"})
    with pytest.raises(ConfigurationError, match="cannot be"):
        publish(checkpoint, visibility="secret")
    with pytest.raises(ConfigurationError, match="no such day"):
        publish(checkpoint, visibility="embargoed-until:2027-02-30")
    assert listing(checkpoint) == before


def test_a_place_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ari_core.AriError) as caught:
        publish(checkpoint, options={"out": str(tmp_path / "file" / "x")})
    assert caught.value.exit_code in {2, 3, 4}
    assert not (checkpoint / "publish_record.json").exists()


def test_where_the_record_cannot_be_written_nothing_is_stored(checkpoint, tmp_path, monkeypatch):
    """A copy that its own author has no record of helps nobody."""

    def refuse(*_):
        raise LocalPermissionError("writing publish_record.json: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "check_record_writable", refuse)
        with pytest.raises(LocalPermissionError):
            publish(checkpoint, options={"out": str(tmp_path / "out")})
        assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "change_record", refuse)
        with pytest.raises(LocalPermissionError):
            publish(checkpoint)
    again = publish(checkpoint)
    assert not again.created
    assert read_record(checkpoint).ref == again.record.ref


# -- promote -----------------------------------------------------------------------------------------------------


def test_promote_goes_to_the_wish(checkpoint):
    publish(checkpoint, visibility="unlisted")
    result = promote(checkpoint)
    assert result.changed
    assert not result.enforced
    assert read_record(checkpoint).visibility == "unlisted"
    assert read_record(checkpoint).promoted_at
    assert not promote(checkpoint).changed


def test_never_silently_public(checkpoint):
    publish(checkpoint)
    with pytest.raises(UsageError, match="which level"):
        promote(checkpoint)
    assert read_record(checkpoint).visibility == "staged"


def test_visibility_only_moves_up(checkpoint):
    publish(checkpoint)
    promote(checkpoint, target="public")
    with pytest.raises(UsageError, match="only moves up"):
        promote(checkpoint, target="unlisted")
    with pytest.raises(ConfigurationError, match="cannot be"):
        promote(checkpoint, target="publik")
    assert read_record(checkpoint).visibility == "public"


def day(offset):
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


def test_an_embargo_holds_until_its_day(checkpoint):
    publish(checkpoint, visibility=f"embargoed-until:{day(2)}")
    for target in (None, "public"):
        with pytest.raises(UsageError, match=f"embargo until {day(2)}"):
            promote(checkpoint, target=target)
    assert status(checkpoint).embargo_ends.isoformat() == day(2)
    write_record(checkpoint, read_record(checkpoint).model_copy(update={"wish": f"embargoed-until:{day(0)}"}))
    assert promote(checkpoint).record.visibility == "public"


def test_an_embargo_asked_for_whose_day_is_over_is_refused(checkpoint):
    over = f"embargoed-until:{day(0)}"
    with pytest.raises(UsageError, match="is over already") as caught:
        publish(checkpoint, visibility=over)
    assert "public" in caught.value.hint
    publish(checkpoint)
    with pytest.raises(UsageError, match="is over already"):
        promote(checkpoint, target=over)
    assert read_record(checkpoint).visibility == "staged"


def test_an_embargo_of_the_policy_whose_day_is_over_is_told(checkpoint):
    (checkpoint / "ear/publish.yaml").write_text(f"visibility: embargoed-until:{day(0)}\n")
    curate(checkpoint)
    (warning,) = (line for line in publish(checkpoint).warnings if "embargo" in line)
    assert "promoting makes the bundle public at once" in warning
    assert promote(checkpoint).record.visibility == "public"


def test_what_is_gone_cannot_be_promoted(checkpoint):
    publish(checkpoint)
    (checkpoint / "bundle.tar.gz").unlink()
    with pytest.raises(ari_core.AriError) as caught:
        promote(checkpoint, target="public")
    assert caught.value.exit_code == 3
    record = read_record(checkpoint)
    assert record.visibility == "staged"
    assert record.promote_failed_at


# -- status and delete -------------------------------------------------------------------------------------------


def test_status_tells_what_is_where(checkpoint):
    found = status(checkpoint)
    assert (found.has_ear, found.record, found.published_is_curated) == (True, None, False)
    publish(checkpoint)
    assert status(checkpoint).published_is_curated
    recurate(checkpoint, "print(2)\n")
    assert not status(checkpoint).published_is_curated


def test_delete_takes_it_back(checkpoint):
    ref = publish(checkpoint).record.ref
    record = delete(checkpoint).record
    assert record.ref == ""
    assert record.history[-1] == {**record.history[-1], "event": "deleted", "ref": ref}
    assert not {"bundle.tar.gz", "manifest.lock"} & set(os.listdir(checkpoint))
    assert publish(checkpoint).created


def test_settings_are_remembered_for_later_commands(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ref = publish(checkpoint, options={"out": "usb"}).record.ref
    assert ref.endswith("/usb/bundle.tar.gz")
    monkeypatch.chdir(checkpoint)
    assert promote(checkpoint, target="public").changed
    assert delete(checkpoint).record.ref == ""
    assert os.listdir(tmp_path / "usb") == []


def test_what_lies_there_now_may_be_another_authors(checkpoint, tmp_path):
    """The record names a place. Neither deleting nor promoting may touch what somebody else put there since."""
    out = {"out": str(tmp_path / "out")}
    publish(checkpoint, options=out)
    other = another_author(tmp_path)
    theirs = publish(other, options=out, replace=True).record
    for call in (delete, lambda folder: promote(folder, target="public")):
        with pytest.raises(AlreadyExists, match="another bundle"):
            call(checkpoint)
    assert clone(theirs.ref, tmp_path / "copy", expect_sha256=theirs.bundle_sha256)


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_dry_run_deletes_nothing(checkpoint, monkeypatch, how):
    publish(checkpoint)
    before = contents(checkpoint)
    if how == "environment":
        monkeypatch.setenv("ARI_PUBLISH_DRYRUN", "1")
    assert delete(checkpoint, dry_run=how == "flag").record.ref
    assert contents(checkpoint) == before


def test_a_dry_run_promotes_nothing_that_is_gone(checkpoint):
    publish(checkpoint)
    (checkpoint / "bundle.tar.gz").unlink()
    before = contents(checkpoint)
    with pytest.raises(NotFound, match=r"bundle\.tar\.gz"):
        promote(checkpoint, target="public", dry_run=True)
    assert contents(checkpoint) == before


def test_delete_of_what_is_gone_is_fine(checkpoint):
    publish(checkpoint)
    (checkpoint / "bundle.tar.gz").unlink()
    assert delete(checkpoint).record.ref == ""


def test_a_damaged_record_is_a_sentence(checkpoint):
    for text in ("", "[]", "{", '{"history": 3}', '{"ref": 1}'):
        (checkpoint / "publish_record.json").write_text(text)
        for call in (publish, promote, status, delete):
            with pytest.raises(ConfigurationError, match="is not a publish record"):
                call(checkpoint)


# -- a store that reserves names, records visibility and fails on order ------------------------------------------


class Reserving(MemoryBackend):
    """Gives a name before the bytes, and can fail behind that."""

    fail = 0
    seen: ClassVar[list] = []

    def _put(self, source, new, resume, on_reserved):
        on_reserved(resume or Locator("reserved-1"))
        if type(self).fail:
            type(self).fail -= 1
            raise Unavailable("the line is down")
        type(self).seen.append(resume)
        return super()._put(source, new, resume, lambda _locator: None)

    def _delete(self, locator):
        self.deleted.append(locator)
        super()._delete(locator)


@pytest.fixture
def store(monkeypatch):
    """Makes every command open one and the same memory store, and give up soon."""
    one = Reserving()
    one.deleted = []
    Reserving.seen = []
    Reserving.fail = 0

    def impatient(inner):
        return RetryBackend(inner, RetryPolicy(tries=2, sleep=lambda _seconds: None))

    for module in (copies_module, promote_module):
        monkeypatch.setattr(module, "open_backend", lambda *_, **__: one)
        monkeypatch.setattr(module, "patient", impatient)
    return one


def test_what_was_begun_is_written_down_and_resumed(checkpoint, store):
    Reserving.fail = 100
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="memory")
    pending = read_record(checkpoint).pending
    assert (pending["backend"], pending["locator"]) == (store.name, "reserved-1")
    assert pending["bundle_sha256"] == status(checkpoint).curated_sha256
    Reserving.fail = 0
    publish(checkpoint, backend="memory")
    assert Reserving.seen == ["reserved-1"]
    assert read_record(checkpoint).pending is None


def test_another_bundle_resumes_too_so_that_nothing_is_orphaned(checkpoint, store):
    Reserving.fail = 100
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="memory")
    Reserving.fail = 0
    recurate(checkpoint, "print(2)\n")
    publish(checkpoint, backend="memory")
    assert Reserving.seen == ["reserved-1"]


def test_what_was_begun_can_be_discarded(checkpoint, store):
    Reserving.fail = 100
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="memory")
    done = delete(checkpoint)
    assert [(place.ref, place.unfinished) for place in done.places] == [("reserved-1", True)]
    assert store.deleted == ["reserved-1"]
    assert read_record(checkpoint).pending is None
    with pytest.raises(CheckpointNotFoundError):
        delete(checkpoint)


def test_a_reserved_name_that_holds_another_bundle_is_not_deleted(checkpoint, store, tmp_path):
    """A record can come with a download, and name what is another's."""
    other = another_author(tmp_path)
    locator = store.resolve(publish(other, backend="memory").record.ref)
    Reserving.fail = 100
    with pytest.raises(Unavailable):
        publish(checkpoint, backend="memory")
    record = read_record(checkpoint)
    write_record(checkpoint, record.model_copy(update={"pending": {**record.pending, "locator": locator}}))
    with pytest.raises(AlreadyExists, match="another bundle"):
        delete(checkpoint)
    assert store.deleted == []
    assert read_record(checkpoint).pending


def test_promotion_goes_through_the_store(checkpoint, store):
    publish(checkpoint, backend="memory", visibility="public")
    record = promote(checkpoint).record
    assert record.visibility == "public"
    assert store.stat(store.resolve(record.ref)).visibility is Visibility.PUBLIC
