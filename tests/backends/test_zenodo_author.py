"""What an author meets who publishes to Zenodo: what is said, and what the next command makes of it."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from support.zenodo import Zenodo as Service
from support.zenodo_backend import zenodo

from ari_backends._claims import doi_of
from ari_core import clone, curate, delete, mirror, promote, publish
from ari_core.cli.authoring import _deleted, _promoted
from ari_core.errors import AlreadyExists, InvalidConfiguration, NotFound, Unsupported, VerificationError
from ari_core.record import read_record, write_record
from ari_core.workflows.backends import check_backend


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path / "zenodo") as running:
        yield running


@pytest.fixture
def study(service, tmp_path, monkeypatch):
    """A checkpoint whose bundle describes itself, and whose backend is set by the environment."""
    monkeypatch.setenv("ARI_ZENODO_BASE_URL", service.url)
    monkeypatch.setenv("ZENODO_TOKEN", service.token)
    folder = tmp_path / "study"
    (folder / "ear").mkdir(parents=True)
    (folder / "ear/publish.yaml").write_text(
        "include: ['*.py']\nzenodo: {title: Slopes, creators: [{name: 'Lovelace, Ada'}]}\n"
    )
    change(folder, 1)
    return folder


def change(folder, number):
    (folder / "ear/fit.py").write_text(f"print({number})\n")
    curate(folder)


def test_a_check_that_writes_describes_its_bundle(service, study):
    found = check_backend("zenodo", {}, write=True)
    assert found.steps[-1] == "deleted it"
    assert not service.state().drafts


def test_a_doi_may_be_pasted_with_a_space():
    assert doi_of("doi: 10.5281/zenodo.7") == doi_of("doi:10.5281/zenodo.7") == "10.5281/zenodo.7"


def test_after_a_second_version_was_deleted_the_next_is_one_of_the_first(service, study):
    for number in 1, 2, 3:
        change(study, number)
        publish(study, backend="zenodo")
        if number == 2:
            delete(study)
        else:
            promote(study, target="public")
    (versions,) = service.state().versions.values()
    assert len(versions) == 2


def test_a_promotion_under_an_embargo_says_when_the_files_open(service, study):
    day = datetime.now(UTC).date() + timedelta(days=30)
    publish(study, backend="zenodo", visibility=f"embargoed-until:{day}")
    (rehearsed,) = promote(study, dry_run=True).places
    (place,) = promote(study).places
    assert (place.visibility, place.changed, place.embargo, rehearsed.embargo) == ("public", True, day, day)
    assert f"Visibility is now public; its files open on {day}." in _promoted(place, dry_run=False)


def test_a_draft_that_was_deleted_in_the_browser_is_not_misspelt(service, study):
    publish(study, backend="zenodo")
    (draft,) = service.state().drafts
    with zenodo(service) as backend:
        backend._repository(service.url).discard(draft)
    with pytest.raises(NotFound) as caught:
        promote(study, target="public")
    assert "store it again: `ari ear publish`" in caught.value.hint
    for dry_run in True, False:
        (place,) = delete(study, dry_run=dry_run).places
        assert place.absent
        assert "gone already" in _deleted(place, dry_run=dry_run)[0]
    assert publish(study, backend="zenodo").created


def test_a_mistyped_community_is_seen_before_anything_is_made(service, study):
    service.community("tides", "alice")
    for dry_run in True, False:
        with pytest.raises(InvalidConfiguration, match="there is no community 'tide'"):
            publish(study, backend="zenodo", options={"community": "tide"}, dry_run=dry_run)
    assert not service.state().drafts
    publish(study, backend="zenodo", options={"community": "tides"})
    with pytest.raises(InvalidConfiguration, match="there is no community 'tide'"):  # though nothing is to be sent
        publish(study, backend="zenodo", options={"community": "tide"})


def test_a_community_of_the_description_that_is_not_there_is_told_once_and_in_time(service, study):
    text = (study / "ear/publish.yaml").read_text()
    (study / "ear/publish.yaml").write_text(text.replace("title:", "communities: [tide], title:"))
    curate(study)
    told = publish(study, backend="zenodo").warnings
    assert [line for line in told if "tide" in line] == [
        f"{service.url}: there is no community 'tide': -o community=NAME adds one"
    ]


def test_a_bundle_that_takes_the_place_of_another_says_whose_digest_is_void(service, study, tmp_path):
    first = publish(study, backend="zenodo").record
    copied = tmp_path / "copied"
    shutil.copytree(study, copied)
    change(copied, 2)
    done = publish(copied, backend="zenodo")
    assert done.record.ref == first.ref
    (told,) = (line for line in done.warnings if "takes the place" in line)
    assert first.bundle_sha256 in told
    assert "a paper that prints that digest has to print the new one" in told


def test_what_does_not_verify_takes_no_place_in_a_draft(service, study, tmp_path):
    lab = {"root": str(tmp_path / "lab")}
    (tmp_path / "lab").mkdir()
    first = publish(study, backend="filesystem-registry", options=lab).record
    mirror(str(study), "zenodo")
    change(study, 2)
    second = publish(study, backend="filesystem-registry", options=lab).record
    stored = tmp_path / "lab/artifacts" / second.ref.rstrip("/").rpartition("/")[2] / "bundle.tar.gz"
    data = bytearray(stored.read_bytes())
    data[-30] ^= 1
    stored.write_bytes(data)
    before = service.state()
    with pytest.raises(VerificationError):
        mirror(str(study), "zenodo")
    assert service.state() == before
    (draft,) = before.drafts
    ref = f"zenodo+{service.url}/records/{draft}"
    assert clone(ref, tmp_path / "copy", expect_sha256=first.bundle_sha256).anchored_by == "paper"


def test_a_dry_run_sees_what_is_in_the_way_and_what_cannot_be_deleted(service, study, tmp_path):
    publish(study, backend="zenodo")
    promote(study, target="public")
    before = service.state()
    with pytest.raises(Unsupported, match="only what is not published"):
        delete(study, dry_run=True)
    with pytest.raises(Unsupported, match="is published, and stays"):
        delete(study)
    record = read_record(study)
    assert publish(study, backend="zenodo", dry_run=True).dry_run  # the very bundle is no hindrance
    write_record(study, record.model_copy(update={"archive_sha256": "0" * 64, "history": []}))
    change(study, 2)
    for dry_run in True, False:
        with pytest.raises(AlreadyExists, match="not touched"):
            publish(study, backend="zenodo", dry_run=dry_run)
    assert service.state() == before


def test_what_is_lacking_is_said_with_every_way_to_say_it(service, study):
    (study / "ear/publish.yaml").write_text("include: ['*.py']\n")
    (study / "ear/CITATION.cff").write_text("title: Slopes\n")
    (told,) = curate(study).warnings
    assert told.startswith("CITATION.cff describes the bundle only as a part of it")
    with pytest.raises(
        InvalidConfiguration, match=r"would not publish this: it lacks a title .*; and at least"
    ) as caught:
        publish(study, backend="zenodo")
    for way in "`zenodo:` of publish.yaml", "that `include` asks for", "-o metadata=FILE":
        assert way in caught.value.hint
