"""The backend that publishes on Zenodo: what every backend has to pass, and what only this one has to know."""

import hashlib
import importlib.resources
import json
import re
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from support.httpd import Server
from support.internet import Internet
from support.zenodo import Zenodo as Service
from support.zenodo_backend import DESCRIPTION, new, number, patient, zenodo

from ari_backends._claims import zenodo_claims
from ari_backends._http import parse_url
from ari_backends.zenodo import backend as zenodo_backend
from ari_backends.zenodo.backend import Zenodo
from ari_backends.zenodo.client import Version
from ari_backends.zenodo.note import Note, read
from ari_core.conformance import BackendContract, make_bundle, repacked
from ari_core.conformance.knobs import is_absent, read_all
from ari_core.contract import (
    Artifact,
    Claim,
    Locator,
    OpenContext,
    SupportsManifest,
    SupportsRehearsal,
    Visibility,
)
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    AriError,
    ConfigurationError,
    IntegrityError,
    InvalidConfiguration,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Unavailable,
    Unsupported,
    UsageError,
)
from ari_core.plugins import load_plugins
from ari_core.record import read_record
from ari_core.settings import open_for_ref
from ari_core.workflows.clone import clone
from ari_core.workflows.curate import curate
from ari_core.workflows.mirror import mirror
from ari_core.workflows.promote import promote
from ari_core.workflows.publish import publish

ONE, TWO = (make_bundle(seed=seed) for seed in (1, 2))
BOBS = "token-of-bob"
OURS = {"bundle.tar.gz", "manifest.lock", "verify_bundle.py"}


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path / "zenodo") as running:
        yield running


@pytest.fixture
def internet(tmp_path):
    with Internet(tmp_path / "internet") as running:
        yield running


@pytest.fixture
def backend(service):
    with zenodo(service) as opened:
        yield opened


def put(backend, bundle, **more):
    return backend.put(bundle.source(), new(**more))


def in_days(days):
    return datetime.now(UTC).date() + timedelta(days=days)


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class TestZenodo(BackendContract):
    """What every backend has to pass."""

    @pytest.fixture
    def backend(self, service):
        with zenodo(service) as opened:
            opened.service = service
            yield opened

    def reopen(self, backend):
        other = type(backend)(backend.settings, backend.context)
        other.service, other._sleep = backend.service, backend._sleep
        return other

    def raw_corrupt(self, backend, locator):
        path = backend.service.path(number(locator))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    @contextmanager
    def break_store(self, backend, step):
        orders = {
            "stat": ("504", "GET /api/records/", {}),
            "open": ("500", "GET .*/content", {}),
            "read": ("truncate", "GET .*/content", {"at": 100_000}),
            "put": ("reset", "PUT .*/content", {"at": 100_000}),
            "denied": ("guest", "", {}),
        }
        kind, when, options = orders[step]
        backend.service.faults.add(kind, when, times=None, **options)
        yield
        backend.service.faults.clear()


# -- the life of a bundle -----------------------------------------------------------------------------------------


def test_a_draft_holds_the_bundle_its_manifest_and_the_program_that_verifies_it(service, backend):
    artifact, _ = put(backend, ONE)
    draft = number(artifact.locator)
    assert service.state().drafts.keys() == {draft}
    verifier = importlib.resources.files("ari_core").joinpath("standalone/verify_bundle.py").read_bytes()
    contents = {"bundle.tar.gz": ONE.archive, "manifest.lock": ONE.manifest, "verify_bundle.py": verifier}
    assert service.state().drafts[draft] == {name: md5(data) for name, data in contents.items()}
    assert backend.optional(SupportsManifest).manifest(artifact.locator) == ONE.manifest


def test_the_doi_is_reserved_and_noted_before_any_byte_is_sent(internet):
    seen = []
    with zenodo(internet.zenodo, base_url=None, **internet.settings) as backend:
        artifact, _ = backend.put(
            ONE.source(),
            new(),
            on_reserved=lambda locator: seen.append((locator, internet.zenodo.counts("/files"))),
        )
        assert seen == [(artifact.locator, 0)]
        assert backend.ref(artifact.locator) == f"doi:10.5281/zenodo.{number(artifact.locator)}"
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert f"10.5281/zenodo.{number(artifact.locator)}" in internet.zenodo.state().dois


def test_the_doi_of_another_repository_is_told_since_its_refs_do_not_tell_it(service):
    lines = []
    with zenodo(service, warn=lines.append) as backend:
        artifact, _ = put(backend, ONE)
        assert backend.ref(artifact.locator) == f"zenodo+{service.url}/records/{number(artifact.locator)}"
    assert lines == [f"the DOI reserved for it is 10.5281/zenodo.{number(artifact.locator)}"]


def test_a_doi_that_would_not_be_the_one_in_the_ref_is_refused(internet):
    # As on the sandbox, where the deposit API predicts DOIs of the other prefix.
    internet.zenodo.store.prefix = "10.5072"
    wrong = pytest.raises(IntegrityError, match=r"10\.5072/zenodo.*not 10\.5281/zenodo")
    with zenodo(internet.zenodo, base_url=None, **internet.settings) as backend, wrong:
        put(backend, ONE)
    assert internet.zenodo.counts("/content") == 0


@pytest.mark.parametrize("status", ["400", "404"])
def test_a_repository_without_dois_takes_bundles_all_the_same(service, status):
    lines = []
    service.faults.add(status, "POST .*/pids/doi")
    with zenodo(service, warn=lines.append) as backend:
        artifact, created = put(backend, ONE)
        assert created
        assert read_all(backend, backend.resolve(backend.ref(artifact.locator))) == ONE.archive
    assert [line.partition(":")[0] for line in lines] == ["this repository reserves no DOI"]


def test_zenodo_without_a_doi_is_an_error(internet):
    internet.zenodo.faults.add("400", "POST .*/pids/doi")
    with (
        zenodo(internet.zenodo, base_url=None, **internet.settings) as backend,
        pytest.raises(InvalidConfiguration),
    ):
        put(backend, ONE)


def test_unchanged_content_sends_nothing(service, backend):
    first, _ = put(backend, ONE)
    sent = service.counts("^(PUT|POST|DELETE)")
    for bundle in ONE, repacked(ONE):
        assert put(backend, bundle, previous=first) == (first, False)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    again, created = put(backend, ONE, previous=first)
    assert (again.locator, again.visibility, created) == (first.locator, Visibility.PUBLIC, False)
    assert service.counts("^(PUT|POST|DELETE)") == sent + 1  # the publication


def test_a_changed_bundle_takes_its_draft_over_and_keeps_the_doi(service, backend):
    first, _ = put(backend, ONE)
    second, created = put(backend, TWO, previous=first)
    assert (second.locator, created) == (first.locator, True)
    assert read_all(backend, second.locator) == TWO.archive
    assert backend.stat(second.locator).bundle_sha256 == TWO.bundle_sha256
    assert len(service.state().drafts) == 1


def test_a_changed_bundle_is_a_new_version_of_what_is_published(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    second, created = put(backend, TWO, previous=first)
    assert created
    assert second.locator != first.locator
    assert backend.put(TWO.source(), new(previous=first)) == (second, False)  # it is the open draft
    backend.raise_visibility(second.locator, Visibility.PUBLIC)
    assert list(service.state().versions.values()) == [(number(first.locator), number(second.locator))]
    assert read_all(backend, first.locator) == ONE.archive


def test_going_back_to_an_earlier_bundle_publishes_it_no_second_time(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    second, _ = put(backend, TWO, previous=first)
    backend.raise_visibility(second.locator, Visibility.PUBLIC)
    back, created = put(backend, ONE, previous=second)
    assert (back.locator, created) == (first.locator, False)
    assert service.state().drafts == {}


def test_what_was_published_before_another_version_is_found_again(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    second, _ = put(backend, TWO, previous=first)
    backend.raise_visibility(second.locator, Visibility.PUBLIC)
    with zenodo(service) as stranger_to_the_checkpoint:
        assert put(stranger_to_the_checkpoint, ONE)[0].locator == first.locator
    assert len(service.state().records) == 2


@pytest.mark.parametrize("published", [False, True])
def test_what_somebody_else_put_in_this_place_does_not_give_way(service, backend, published):
    first, _ = put(backend, ONE)
    if published:
        backend.raise_visibility(first.locator, Visibility.PUBLIC)
    before = service.state()
    other = Artifact(first.locator, archive_sha256="0" * 64, bundle_sha256="1" * 64)
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, TWO, previous=other)
    assert service.state() == before
    second, created = put(backend, TWO, previous=other, replace=True)
    assert created
    assert (second.locator == first.locator) is not published


def test_a_record_without_our_note_gets_no_new_version_because_it_is_named(service, backend):
    locator = by_hand(service, backend, {"bundle.tar.gz": ONE.archive})
    before = service.state()
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, TWO, previous=Artifact(locator, archive_sha256=ONE.archive_sha256))
    assert service.state() == before


def test_the_digest_that_a_paper_prints_does_not_open_the_draft(service, backend):
    first, _ = put(backend, ONE)
    before = service.state()
    with pytest.raises(AlreadyExists):
        put(backend, TWO, previous=Artifact(first.locator, bundle_sha256=ONE.bundle_sha256))
    assert service.state() == before


@pytest.mark.parametrize("finished", [True, False])
def test_what_the_author_added_to_a_draft_is_not_lost(service, backend, finished):
    first, _ = put(backend, ONE)
    if not finished:
        service.faults.add("reset", "PUT .*/bundle.tar.gz/content", at=4000)
        with pytest.raises(Unavailable):
            put(backend, TWO, previous=first)
        service.faults.clear()
    service.swap(number(first.locator), b"hours of work", key="paper.pdf")
    before = service.state()
    with pytest.raises(AlreadyExists, match=r"\('paper.pdf'\); it was not touched"):
        put(backend, TWO, previous=first)
    with pytest.raises(Unsupported, match=r"'paper.pdf'.* not touched"):
        backend.delete(first.locator)
    assert service.state() == before
    assert backend.put(ONE.source(), new(previous=first))[1] is False if finished else True
    put(backend, TWO, previous=first, replace=True)
    assert service.state().drafts[number(first.locator)].keys() == OURS


def test_a_next_version_that_somebody_describes_in_the_browser_does_not_give_way(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    repository = backend._repository(service.url)
    draft = repository.new_version(number(first.locator))
    ours = zenodo_backend._as_it_is(draft, None)
    repository.describe(draft, {**ours, "metadata": {**ours["metadata"], "title": "An evening's thought"}})
    with pytest.raises(AlreadyExists, match=draft.id):
        put(backend, TWO, previous=first)
    assert repository.draft(draft.id).says["metadata"]["title"] == "An evening's thought"


def test_the_draft_of_a_next_version_that_nobody_touched_is_used(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    draft = backend._repository(service.url).new_version(number(first.locator))
    second, _ = put(backend, TWO, previous=first)
    assert number(second.locator) == draft.id


def test_a_draft_with_files_of_somebody_else_does_not_give_way(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    draft = backend._repository(service.url).new_version(number(first.locator))
    service.swap(draft.id, b"hours of work", key="thesis.pdf")
    with pytest.raises(AlreadyExists, match=draft.id):
        put(backend, TWO, previous=first)
    second, _ = put(backend, TWO, previous=first, replace=True)
    assert service.state().drafts[number(second.locator)].keys() == OURS


def test_a_place_that_is_gone_or_of_another_server_is_no_hindrance(service, backend):
    gone, _ = put(backend, ONE)
    backend.delete(gone.locator)
    elsewhere = Artifact(Locator("https://rdm.example.org/7"), archive_sha256=ONE.archive_sha256)
    for previous in gone, elsewhere:
        artifact, created = put(backend, ONE, previous=previous)
        assert created
        backend.delete(artifact.locator)


def test_a_draft_of_somebody_else_is_left_alone(service, backend):
    theirs, _ = put(backend, ONE)
    before = service.state()
    service.tokens[BOBS] = "bob"
    with zenodo(service, token=BOBS) as bobs:
        for led_there in {"resume": theirs.locator}, {"resume": None}:
            with pytest.raises(AccessDenied):
                bobs.put(TWO.source(), new(previous=theirs), **led_there)
    assert service.state() == before


# -- going on -----------------------------------------------------------------------------------------------------


def test_an_interrupted_upload_goes_on_in_its_draft(service, backend):
    reserved = []
    service.faults.add("reset", "PUT .*/bundle.tar.gz/content", at=4000, noticed=False)
    with pytest.raises(Unavailable):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    with zenodo(service) as second_run:
        artifact, created = second_run.put(ONE.source(), new(), resume=reserved[0])
        assert (artifact.locator, created) == (reserved[0], True)
        assert read_all(second_run, artifact.locator) == ONE.archive
    assert len(service.state().drafts) == 1


def test_another_bundle_goes_on_in_the_draft_of_an_interrupted_upload(service, backend):
    reserved = []
    service.faults.add("500", "POST .*/manifest.lock/commit")
    with pytest.raises(Unavailable):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    artifact, created = backend.put(TWO.source(), new(), resume=reserved[0])
    assert (artifact.locator, created) == (reserved[0], True)
    assert read_all(backend, artifact.locator) == TWO.archive


def test_files_that_are_there_are_not_sent_again(service, backend):
    for trouble in "manifest.lock", "verify_bundle.py":
        service.faults.add("500", f"POST .*/{trouble}/commit")
    patient(backend).put(ONE.source(), new())
    sent = {name: service.counts(f"PUT .*/{name}/content") for name in OURS}
    assert sent == {"bundle.tar.gz": 1, "manifest.lock": 2, "verify_bundle.py": 2}


def test_other_bytes_of_the_same_size_are_sent_again(service, backend):
    reserved = []
    service.faults.add("500", "PUT .*/draft$")
    with pytest.raises(Unavailable):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    service.swap(number(reserved[0]), bytes(len(ONE.archive)))
    artifact, _ = patient(backend).put(ONE.source(), new(), resume=reserved[0])
    assert read_all(backend, artifact.locator) == ONE.archive


def test_bytes_that_arrived_wrong_are_not_called_stored(service, backend):
    service.faults.add("wrong-bytes", "PUT .*/bundle.tar.gz/content", at=100)
    with pytest.raises(Unavailable, match="other bytes arrived than were sent"):
        put(backend, ONE)
    assert "bundle.tar.gz" not in next(iter(service.state().drafts.values()))


def test_a_draft_whose_creation_got_no_answer_is_found_again(service, backend):
    service.faults.add("lost-answer", "POST /api/records$")
    artifact, created = patient(backend).put(ONE.source(), new())
    assert created
    assert service.state().drafts.keys() == {number(artifact.locator)}
    assert service.counts("POST /api/records$") == 1


def test_the_search_is_asked_several_times_for_what_may_have_been_made(service, backend):
    lag = service.faults.add("search-lag", "GET /api/user/records", times=3)
    service.faults.add("504", "POST /api/records$", after=True)
    pauses = []
    backend._sleep = pauses.append
    patient(backend).put(ONE.source(), new())
    assert lag.done == 3
    assert pauses == [2.0, 4.0]
    assert len(service.state().drafts) == 1


def test_drafts_that_nobody_goes_on_with_are_told(service):
    service.faults.add("search-lag", "GET /api/user/records", times=2)
    service.faults.add("500", "POST .*/pids/doi", times=2)
    for _ in range(2):  # two runs that know nothing of each other, and leave a draft each
        with zenodo(service) as run, pytest.raises(Unavailable):
            put(run, ONE)
    lines = []
    with zenodo(service, warn=lines.append) as backend:
        artifact, _ = put(backend, ONE)
    (orphan,) = service.state().drafts.keys() - {number(artifact.locator)}
    assert f"another draft of this bundle can be deleted: {service.url}/uploads/{orphan}" in lines


@pytest.mark.parametrize("moment", ["the bundle is sent", "all is sent"])
def test_two_runs_in_one_draft_notice_each_other(service, backend, monkeypatch, moment):
    reserved, verifier = [], zenodo_backend._verifier

    def meanwhile():
        monkeypatch.setattr(zenodo_backend, "_verifier", verifier)
        with zenodo(service) as other:
            assert other.put(TWO.source(), new(), resume=reserved[0])[1]
        return verifier()

    if moment == "all is sent":
        monkeypatch.setattr(zenodo_backend, "_verifier", meanwhile)
    source = ONE.source(at_end=meanwhile if moment == "the bundle is sent" else None)
    with pytest.raises(Unavailable):
        backend.put(source, new(), on_reserved=reserved.append)
    try:  # whatever the draft says of itself is so
        assert read_all(backend, reserved[0]) == TWO.archive
        assert backend.stat(reserved[0]).archive_sha256 == TWO.archive_sha256
    except NotFound:
        assert moment == "the bundle is sent"  # Zenodo throws away what two send at once
    artifact, _ = backend.put(ONE.source(), new(replace=True), resume=reserved[0])
    assert artifact.locator == reserved[0]
    assert read_all(backend, reserved[0]) == ONE.archive


def begins(service, locator):
    """Another run that comes as far as to say that it is there."""
    service.faults.add("500", "GET .*/draft/files$")
    with zenodo(service) as other, pytest.raises(Unavailable):
        other.put(TWO.source(), new(), resume=locator)


def loses_a_file(service, locator):
    """Somebody in the browser."""
    with zenodo(service) as other:
        other._repository(service.url).drop(number(locator), "bundle.tar.gz")


@pytest.mark.parametrize(("meddle", "why"), [(begins, "somebody else writes"), (loses_a_file, "files .* changed")])
def test_what_happens_to_a_draft_before_its_last_change_is_noticed(service, backend, monkeypatch, meddle, why):
    reserved, verifier = [], zenodo_backend._verifier

    def meanwhile():
        monkeypatch.setattr(zenodo_backend, "_verifier", verifier)
        meddle(service, reserved[0])
        return verifier()

    monkeypatch.setattr(zenodo_backend, "_verifier", meanwhile)
    with pytest.raises(Unavailable, match=why):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    assert is_absent(backend, reserved[0])


def test_a_draft_that_another_run_completed_is_not_touched(service, backend):
    """What was looked at before the other run's last change is too old to act upon."""
    reserved = []
    service.faults.add("500", "POST .*/pids/doi")
    with pytest.raises(Unavailable):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    version = backend._repository(service.url).draft(number(reserved[0]))
    with zenodo(service) as other:
        other.put(ONE.source(), new(), resume=reserved[0])
    with pytest.raises(Unavailable, match="somebody else"):
        backend._repository(service.url).describe(version, {"metadata": {}})
    assert backend.stat(reserved[0]).archive_sha256 == ONE.archive_sha256


# -- refused before anything is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [Visibility.UNLISTED, Visibility.PRIVATE_TOKEN])
def test_levels_that_zenodo_does_not_have_are_refused_before_anything_is_made(service, backend, wish):
    with pytest.raises(Unsupported, match=f"no level '{wish}'"):
        put(backend, ONE, wish=wish)
    assert service.seen == []


@pytest.mark.parametrize("lacking", ["title", "creators"])
def test_what_the_author_has_to_supply_is_named_before_anything_is_made(service, backend, lacking):
    with pytest.raises(InvalidConfiguration, match=lacking.rstrip("s")) as caught:
        put(backend, ONE, description={k: v for k, v in DESCRIPTION.items() if k != lacking})
    assert "CITATION.cff" in caught.value.hint
    assert service.seen == []


def test_what_cannot_be_told_to_zenodo_is_refused_before_anything_is_made(service, backend):
    with pytest.raises(ConfigurationError, match="nonsense"):
        put(
            backend, ONE, description={**DESCRIPTION, "related": [{"identifier": "nonsense", "relation": "cites"}]}
        )
    assert service.seen == []


def test_what_the_repository_would_not_publish_is_refused_before_any_byte(service, backend):
    wrong = [{"family": "Lovelace", "orcid": "0000-0000-0000-0000"}]
    reserved = []
    with pytest.raises(InvalidConfiguration, match=r"would not publish this: .*ORCID") as caught:
        backend.put(ONE.source(), new(description={**DESCRIPTION, "creators": wrong}), on_reserved=reserved.append)
    assert "the draft is kept" in caught.value.hint
    assert service.counts("/files") == 0
    artifact, _ = backend.put(ONE.source(), new(), resume=reserved[0])
    assert artifact.locator == reserved[0]


def test_what_cannot_be_a_community_is_refused_before_anything_is_made(service, backend):
    with pytest.raises(InvalidConfiguration, match="no community"):
        put(backend, ONE, description={**DESCRIPTION, "communities": ["Tides & Waves"]})
    assert service.seen == []


def test_a_bundle_above_the_quota_is_refused_before_anything_is_made(service):
    with zenodo(service, max_size="7KB") as backend, pytest.raises(QuotaExceeded, match="7000"):
        put(backend, ONE)
    assert service.seen == []


def test_the_default_quota_is_that_of_zenodo():
    assert Zenodo.Settings().max_size == 50_000_000_000


def test_nothing_is_sent_without_a_token(service):
    with zenodo(service, token=None) as backend:
        for attempt in backend.probe, lambda: put(backend, ONE):
            with pytest.raises(AccessDenied, match="needs a token") as caught:
                attempt()
            assert "ZENODO_TOKEN" in caught.value.hint
    assert service.seen == []


# -- publishing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["500", "502", "504", "lost-answer"])
def test_a_publication_without_an_answer_happens_once(service, backend, kind, after):
    artifact, _ = put(backend, ONE)
    options = {} if kind == "lost-answer" else {"after": after}
    service.faults.add(kind, "POST .*/publish", **options)
    happened = after or kind == "lost-answer"
    publisher = backend if happened else patient(backend)  # what happened is seen at once
    assert publisher.raise_visibility(artifact.locator, Visibility.PUBLIC) is Visibility.PUBLIC
    assert service.state().records.keys() == {number(artifact.locator)}
    assert service.counts("POST .*/publish") == (1 if happened else 2)


def test_a_publication_that_fails_is_not_called_one(service, backend):
    artifact, _ = put(backend, ONE)
    service.faults.add("504", "POST .*/publish", times=None)
    with pytest.raises(Unavailable, match="X-Request-ID"):
        patient(backend).raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert backend.stat(artifact.locator).visibility is Visibility.STAGED
    assert service.state().records == {}


def test_a_draft_that_was_changed_by_hand_is_not_published(service, backend):
    artifact, _ = put(backend, ONE)
    service.swap(number(artifact.locator), TWO.archive)
    with pytest.raises(IntegrityError, match="not the one that was stored"):
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert service.state().records == {}


def test_what_publishing_would_be_refused_for_is_told(service, backend):
    artifact, _ = put(backend, ONE)
    version = backend._look(artifact.locator)
    broken = {**version.says["metadata"]}
    del broken["title"]
    backend._repository(service.url).describe(version, {"metadata": broken, "files": {"enabled": True}})
    with pytest.raises(InvalidConfiguration, match=r"metadata\.title: Missing data"):
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert service.counts("/publish") == 0


def test_an_embargo_opens_the_files_on_its_day(service, backend):
    day = datetime.now(UTC).date() + timedelta(days=30)
    artifact, _ = put(backend, ONE, embargo=day)
    assert backend.raise_visibility(artifact.locator, Visibility.PUBLIC) is Visibility.PUBLIC
    assert read_all(backend, artifact.locator) == ONE.archive  # its owner's
    with zenodo(service, token=None) as reader:
        with pytest.raises(AccessDenied, match=f"restricted until {day}"):
            reader.stat(artifact.locator)
        service.pass_days(30)
        assert read_all(reader, artifact.locator) == ONE.archive


def test_a_draft_whose_embargo_is_over_is_published_without_it(service, backend, monkeypatch):
    day = datetime.now(UTC).date() + timedelta(days=30)
    about = {**DESCRIPTION, "keywords": ["tides"], "language": "en", "version": "1.2"}
    artifact, _ = put(backend, ONE, embargo=day, description=about)
    before = backend._look(artifact.locator).says["metadata"]
    service.pass_days(30)
    monkeypatch.setattr("ari_backends.zenodo.backend._today", lambda: day)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    with zenodo(service, token=None) as reader:
        assert read_all(reader, artifact.locator) == ONE.archive
        assert reader._look(artifact.locator).says["metadata"] == before


def test_an_embargo_that_is_wished_for_later_is_set_in_the_draft(service, backend):
    about = {**DESCRIPTION, "keywords": ["tides"], "language": "en"}
    artifact, _ = put(backend, ONE, description=about)
    before = backend._look(artifact.locator)
    for days in 30, 60, 20:
        day = in_days(days)
        found, created = put(backend, ONE, embargo=day, wish=Visibility.PUBLIC)
        assert (found, created) == (backend.stat(artifact.locator), False)
        assert (found.locator, found.embargo) == (artifact.locator, day)
    after = backend._look(artifact.locator)
    assert (after.says["metadata"], after.dois, after.files) == (
        before.says["metadata"],
        before.dois,
        before.files,
    )
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    with (
        zenodo(service, token=None) as reader,
        pytest.raises(AccessDenied, match=f"restricted until {in_days(20)}"),
    ):
        reader.stat(artifact.locator)


def test_an_embargo_goes_when_public_is_wished_for_and_not_when_nothing_is(service, backend):
    artifact, _ = put(backend, ONE, embargo=in_days(30))
    for wish in None, Visibility.STAGED:
        assert put(backend, ONE, wish=wish)[0].embargo == in_days(30)
    assert put(backend, ONE, wish=Visibility.PUBLIC)[0].embargo is None
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    with zenodo(service, token=None) as reader:
        assert read_all(reader, artifact.locator) == ONE.archive


def test_an_embargo_for_what_is_published_is_told_to_come_too_late(service):
    lines = []
    with zenodo(service, warn=lines.append) as backend:
        artifact, _ = put(backend, ONE)
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
        del lines[:]
        before = service.state()
        found, _ = put(backend, ONE, previous=artifact, embargo=in_days(30))
        assert found.embargo is None
        assert service.state() == before
        assert put(backend, ONE, previous=artifact)[0].embargo is None
    assert len(lines) == 1
    assert re.search(rf"/records/{number(artifact.locator)} is published already", lines[0])


def restrict(service, backend, locator):
    """Closes the files of a draft as its owner does in the browser."""
    version = backend._look(locator)
    closed = {"record": "public", "files": "restricted"}
    backend._repository(service.url).describe(
        version, {**zenodo_backend._as_it_is(version, None), "access": closed}
    )


@pytest.mark.parametrize("published", [False, True])
def test_files_that_were_closed_by_hand_stay_closed(service, published):
    lines = []
    with zenodo(service, warn=lines.append) as backend:
        artifact, _ = put(backend, ONE)
        restrict(service, backend, artifact.locator)
        if published:
            backend._repository(service.url).publish(number(artifact.locator))
        put(backend, ONE, wish=Visibility.PUBLIC, previous=artifact)
        assert backend._look(artifact.locator).is_restricted
        changed, _ = put(backend, TWO, wish=Visibility.PUBLIC, previous=artifact)
        assert backend._look(changed.locator).is_restricted
        assert (
            f"the files of {service.url}/uploads/{number(changed.locator)} were restricted by hand, and stay so"
            in lines
        )
        put(backend, TWO, previous=changed, embargo=in_days(3))
        assert backend._look(changed.locator).embargo == in_days(3)


def test_what_nobody_could_read_is_not_called_public(service, backend):
    artifact, _ = put(backend, ONE)
    restrict(service, backend, artifact.locator)
    before = service.state()
    with pytest.raises(Unsupported, match="they would not be 'public'"):
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert service.state() == before
    backend._repository(service.url).publish(number(artifact.locator))
    with pytest.raises(Unsupported, match="they would not be 'public'"):
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)


def test_a_rehearsal_says_what_a_put_would_refuse_and_changes_nothing(service, tmp_path):
    refused = [
        ({"description": {}}, None, InvalidConfiguration, "title"),
        ({"description": {**DESCRIPTION, "language": "klingonish"}}, None, ConfigurationError, "language"),
        ({"wish": Visibility.UNLISTED}, None, Unsupported, "no level 'unlisted'"),
        ({}, 10**12, QuotaExceeded, "1000000000000 bytes"),
    ]
    with zenodo(service) as backend:
        rehearse = partial(backend.optional(SupportsRehearsal).rehearse, bundle_sha256=ONE.bundle_sha256)
        for more, size, error, why in refused:
            with pytest.raises(error, match=why):
                rehearse(new(**more), size=size)
        for size in None, 0, len(ONE.archive):
            rehearse(new(embargo=in_days(30)), size=size)
    with zenodo(service, token=None) as backend, pytest.raises(AccessDenied, match="needs a token"):
        backend.optional(SupportsRehearsal).rehearse(new(), ONE.bundle_sha256, None)
    assert service.seen == []


def test_a_description_goes_back_as_it_is_given_and_not_as_it_is_shown():
    shown = {
        "resource_type": {"id": "dataset", "title": {"en": "Dataset"}},
        "rights": [{"id": "mit", "title": {"en": "MIT"}}, {"title": {"en": "House rules"}}],
        "creators": [{"person_or_org": {"family_name": "Lovelace"}, "affiliations": [{"id": "1", "name": "X"}]}],
    }
    version = Version("https://zenodo.org", "7", {"metadata": shown, "access": {"record": "restricted"}}, {})
    assert zenodo_backend._as_it_is(version, None)["metadata"] == {
        "resource_type": {"id": "dataset"},
        "rights": [{"id": "mit"}, {"title": {"en": "House rules"}}],
        "creators": [{"person_or_org": {"family_name": "Lovelace"}, "affiliations": [{"id": "1"}]}],
    }
    for until in None, in_days(1):
        assert zenodo_backend._as_it_is(version, until)["access"]["record"] == "restricted"


def test_only_drafts_are_deleted(service, backend):
    artifact, _ = put(backend, ONE)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    with pytest.raises(Unsupported, match="is published, and stays"):
        backend.delete(artifact.locator)
    assert number(artifact.locator) in service.state().records


@pytest.mark.parametrize("members", [("alice",), ()])
def test_a_record_is_submitted_to_its_communities(service, members):
    lines = []
    service.community("tides", *members)
    service.community("waves", "alice")
    with zenodo(service, warn=lines.append, community="tides") as backend:
        artifact, _ = put(backend, ONE, description={**DESCRIPTION, "communities": ["waves"]})
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    expected = {"waves", "tides"} if members else {"waves"}
    assert [set(slugs) for slugs in service.state().communities.values()] == [expected]
    asked = [line for line in lines if "community 'tides'" in line]
    assert bool(asked) is not bool(members)
    assert all("curators have to accept" in line for line in asked[:1])


def test_a_community_that_does_not_take_it_leaves_the_publication_as_it_is(service):
    lines = []
    service.community("no-such")
    with zenodo(service, warn=lines.append, community="no-such") as backend:
        artifact, _ = put(backend, ONE)
        service.store.communities.clear()
        assert backend.raise_visibility(artifact.locator, Visibility.PUBLIC) is Visibility.PUBLIC
    assert [line for line in lines if line.startswith("community 'no-such': ")]
    assert number(artifact.locator) in service.state().records


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(internet):
    """What is published: the service, its first version and the concept of both."""
    with zenodo(internet.sandbox, base_url=None, sandbox=True, **internet.settings) as backend:
        first, _ = put(backend, ONE)
        backend.raise_visibility(first.locator, Visibility.PUBLIC)
        second, _ = put(backend, TWO, previous=first)
        backend.raise_visibility(second.locator, Visibility.PUBLIC)
    (concept,) = internet.sandbox.state().versions
    return first.locator, second.locator, concept


@pytest.mark.parametrize(
    "ref",
    [
        "doi:10.5072/zenodo.{}",
        "DOI:10.5072/ZENODO.{}",
        "https://doi.org/10.5072/zenodo.{}",
        "http://dx.doi.org/10.5072/zenodo.{}",
        "https://sandbox.zenodo.org/records/{}",
        "https://sandbox.zenodo.org/record/{}/",
        "https://sandbox.zenodo.org/api/records/{}",
        "https://sandbox.zenodo.org/records/{}?preview=1#files",
        "https://sandbox.zenodo.org/doi/10.5072/zenodo.{}",
        "zenodo+https://sandbox.zenodo.org/records/{}",
        "Zenodo+HTTPS://Sandbox.Zenodo.ORG:443/records/{}",
    ],
)
def test_every_spelling_leads_to_the_version(internet, published, ref):
    first, second, concept = published
    with zenodo(internet.sandbox, base_url=None, token=None, **internet.settings) as reader:
        assert zenodo_claims(ref.format(number(first))) is Claim.EXACT
        assert reader.resolve(ref.format(number(first))) == first
        assert reader.resolve(ref.format(concept)) == second  # the latest, and from then on that one
        assert read_all(reader, reader.resolve(ref.format(number(first)))) == ONE.archive


def test_a_foreign_doi_leads_where_doi_org_says(internet, monkeypatch):
    with ExitStack() as stack:

        def resolver(request, wire):
            doi = request.target.lstrip("/")
            place = {"10.7/known": f"{host.origin}/records/abcde-f1234", "10.7/paper": f"{host.origin}/article/1"}
            if doi in place:
                wire.redirect(place[doi])
            elif "records" in doi or "article" in doi:
                wire.answer(200, {"Content-Type": "text/html"}, b"<html>")
            else:
                wire.answer(404, {"Content-Type": "text/html"}, b"<html>")

        host = stack.enter_context(Server(resolver))
        monkeypatch.setattr("ari_backends.zenodo.backend.DOI_ORG", host.origin)
        reader = stack.enter_context(zenodo(internet.sandbox, base_url=None))
        assert reader._follow("10.7/known") == (host.origin, "abcde-f1234")
        with pytest.raises(Unsupported, match="article/1"):
            reader._follow("10.7/paper")
        with pytest.raises(NotFound, match="no such DOI"):
            reader._follow("10.7/unknown")
        assert not any("authorization" in seen.headers for seen in host.seen)


@pytest.mark.parametrize(
    ("ref", "claim"),
    [
        ("doi:10.5281/zenodo.12", Claim.EXACT),
        ("doi:10.1000/182", Claim.SCHEME),
        ("https://doi.org/10.1000/182", Claim.EXACT),  # the https backend claims it, too
        ("http://doi.org/10.1000/182", Claim.SCHEME),
        ("zenodo+https://rdm.example.org/records/abcde-12345", Claim.EXACT),
        ("https://zenodo.org/records/12/files/bundle.tar.gz", Claim.NO),  # a file behind a URL is no record
        ("https://zenodo.org.evil.example/records/12", Claim.NO),
        ("https://zenodo.org/communities/tides", Claim.NO),
        ("https://evil.example/https://zenodo.org/records/12", Claim.NO),
        ("doi:11.5281/zenodo.12", Claim.NO),
        ("doi:", Claim.NO),
        ("12", Claim.NO),
    ],
)
def test_claims(ref, claim):
    assert zenodo_claims(ref) is claim
    if claim:
        assert load_plugins().select(ref).name == "zenodo"


@pytest.mark.parametrize("name", ["run.tar.gz", "run.TGZ", "run.tar"])
def test_the_only_archive_of_a_strangers_record_is_its_bundle(service, backend, name):
    artifact = by_hand(service, backend, {name: ONE.archive, "readme.txt": b"hello"})
    found = backend.stat(artifact)
    assert (found.size, found.archive_sha256, found.bundle_sha256) == (len(ONE.archive), None, None)
    assert read_all(backend, artifact) == ONE.archive
    with pytest.raises(Unsupported):
        backend.optional(SupportsManifest).manifest(artifact)


def test_of_several_archives_none_is_guessed(service, backend):
    artifact = by_hand(service, backend, {"a.tar.gz": ONE.archive, "b.tar.gz": TWO.archive})
    with pytest.raises(Unsupported, match=r"several archives: 'a\.tar\.gz', 'b\.tar\.gz'"):
        backend.stat(artifact)


def test_a_record_without_an_archive_says_so(service, backend):
    with pytest.raises(Unsupported, match="no archive"):
        backend.stat(by_hand(service, backend, {"readme.txt": b"hello"}))


def by_hand(service, backend, files):
    """Returns a record that somebody filled in the browser."""
    artifact, _ = put(backend, ONE)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    record = service.store.all[number(artifact.locator)].published
    record.files.clear()
    record.metadata["additional_descriptions"] = []
    for name, data in files.items():
        service.swap(number(artifact.locator), data, key=name)
    return artifact.locator


def test_a_file_that_changed_since_is_not_told_to_have_the_old_digest(service, backend):
    artifact, _ = put(backend, ONE)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    service.swap(number(artifact.locator), TWO.archive)
    found = backend.stat(artifact.locator)
    assert (found.archive_sha256, found.bundle_sha256) == (None, None)


def test_a_withdrawn_record_is_gone_and_says_so(service, backend):
    artifact, _ = put(backend, ONE)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    service.delete(number(artifact.locator))
    with pytest.raises(NotFound, match="410: Record deleted") as caught:
        backend.stat(artifact.locator)
    assert "another copy" in caught.value.hint


def test_a_draft_that_somebody_made_by_hand_is_not_deleted(service, backend):
    first, _ = put(backend, ONE)
    version = backend._look(first.locator)
    about = {**version.says["metadata"], "additional_descriptions": []}
    backend._repository(service.url).describe(version, {"metadata": about, "files": {"enabled": True}})
    with pytest.raises(Unsupported, match="not touched"):
        backend.delete(first.locator)
    assert service.state().drafts.keys() == {number(first.locator)}


def test_a_draft_whose_bundle_somebody_replaced_is_not_deleted(service, backend):
    first, _ = put(backend, ONE)
    service.swap(number(first.locator), TWO.archive)
    with pytest.raises(Unsupported, match="not touched"):
        backend.delete(first.locator)
    assert service.state().drafts.keys() == {number(first.locator)}


def test_a_draft_is_not_absent_for_those_who_may_not_see_it(service, backend):
    artifact, _ = put(backend, ONE)
    with zenodo(service, token=None) as reader, pytest.raises(AccessDenied):
        reader.resolve(backend.ref(artifact.locator))


@pytest.mark.parametrize("ranges", [False, True])
def test_a_cut_download_goes_on(service, backend, ranges):
    service.limits.ranges = ranges
    bundle = make_bundle(300_000)
    locator = put(backend, bundle)[0].locator
    for at in 1000, 200_000:
        service.faults.add("truncate", "GET .*/content", at=at)
    assert read_all(patient(backend), locator) == bundle.archive


# -- through core -------------------------------------------------------------------------------------------------


@pytest.fixture
def study(service, tmp_path, monkeypatch):
    """A checkpoint whose bundle describes itself, and whose backend is set by the environment."""
    monkeypatch.setenv("ARI_ZENODO_BASE_URL", service.url)
    monkeypatch.setenv("ZENODO_TOKEN", service.token)
    folder = tmp_path / "study"
    (folder / "ear").mkdir(parents=True)
    (folder / "ear/fit.py").write_text("print(1)\n")
    (folder / "ear/CITATION.cff").write_text(
        "cff-version: 1.2.0\ntitle: Slopes\nlicense: MIT\nauthors:\n- family-names: Lovelace\n"
    )
    (folder / "ear/publish.yaml").write_text("include: ['*.py', CITATION.cff]\n")
    curate(folder)
    return folder


def test_a_checkpoint_goes_on_where_its_last_run_was_interrupted(service, study):
    service.faults.add("blocked", "PUT .*/content")
    with pytest.raises(AccessDenied):
        publish(study, backend="zenodo")
    (draft,) = service.state().drafts
    assert read_record(study).pending["locator"] == f"{service.url}/{draft}"
    done = publish(study, backend="zenodo")
    assert done.created
    assert (done.record.ref, done.record.pending) == (f"zenodo+{service.url}/records/{draft}", None)
    assert publish(study, backend="zenodo").created is False
    assert read_record(study).extra["doi"] == f"10.5281/zenodo.{draft}"  # which a ref of this place does not tell
    assert service.state().drafts.keys() == {draft}
    with zenodo(service) as backend:
        says = backend._look(Locator(f"{service.url}/{draft}")).says["metadata"]
    assert (says["title"], says["rights"][0]["id"]) == ("Slopes", "mit")


def test_an_embargo_of_the_author_is_one_of_the_repository(service, study):
    day = datetime.now(UTC).date() + timedelta(days=30)
    record = publish(study, backend="zenodo", visibility=f"embargoed-until:{day}").record
    promote(study)  # at once: the repository keeps the files closed
    copy = study / "copy"
    with pytest.raises(AccessDenied, match=str(day)):
        clone(str(study), copy)
    service.pass_days(30)
    assert clone(str(study), copy, expect_sha256=record.bundle_sha256).bundle_sha256 == record.bundle_sha256


def edit(study, visibility):
    policy = study / "ear/publish.yaml"
    policy.write_text(policy.read_text() + f"visibility: {visibility}\n")
    curate(study)
    publish(study, backend="zenodo")


LATER = {
    "published again with it": lambda study, wish: publish(study, backend="zenodo", visibility=wish),
    "written into publish.yaml": edit,
    "copied, then published again, then copied again": lambda study, wish: (
        publish(study, backend="local-tarball", visibility=wish),
        mirror(str(study), "zenodo"),
    ),
}


@pytest.mark.parametrize("how", LATER)
def test_an_embargo_that_came_after_the_draft_keeps_the_files_closed(service, study, how):
    copied = how.startswith("copied")
    publish(study, backend="local-tarball" if copied else "zenodo")
    if copied:
        mirror(str(study), "zenodo")
    LATER[how](study, f"embargoed-until:{in_days(30)}")
    with suppress(UsageError):  # of the folder, which keeps no embargo
        promote(study)
    (record,) = service.state().records
    with zenodo(service, token=None) as reader:
        locator = Locator(f"{service.url}/{record}")
        with pytest.raises(AccessDenied, match=f"restricted until {in_days(30)}"):
            reader.stat(locator)
        service.pass_days(30)
        assert reader.stat(locator).size


UNSET = {
    "named when promoting": lambda _study, wish: {"target": wish},
    "wished for where the copy was not told": lambda study, wish: (
        publish(study, backend="local-tarball", visibility=wish) and {}
    ),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("how", UNSET)
def test_what_the_repository_was_not_told_of_an_embargo_is_not_published(service, study, how, dry_run):
    publish(study, backend="local-tarball" if "copy" in how else "zenodo")
    if "copy" in how:
        mirror(str(study), "zenodo")
    given = UNSET[how](study, f"embargoed-until:{in_days(30)}")
    result = None
    try:
        result = promote(study, **given, dry_run=dry_run)
    except AriError as error:
        told = error
    else:
        told = next(place.error for place in result.places if place.backend == "zenodo")
    assert f"{in_days(30)}" in str(told)
    assert told.exit_code == 2
    assert service.state().records == {}
    assert read_record(study).visibility == "staged"


def test_an_embargo_that_was_taken_back_does_not_keep_the_files_closed(service, study):
    publish(study, backend="zenodo", visibility=f"embargoed-until:{in_days(30)}")
    publish(study, backend="zenodo", visibility="public")
    promote(study)
    assert clone(str(study), study / "copy").bundle_sha256 == read_record(study).bundle_sha256


def test_an_embargo_that_nobody_wishes_for_is_told_when_it_is_published(service, study):
    publish(study, backend="zenodo", visibility=f"embargoed-until:{in_days(30)}")
    publish(study, backend="zenodo", visibility="staged")
    lines = []
    assert promote(study, target="public", warn=lines.append).record.visibility == "public"
    assert len([line for line in lines if f"until {in_days(30)}" in line]) == 1
    assert len(service.state().records) == 1


# -- what goes where ----------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_repository_and_nowhere_else(service, backend):
    artifact, _ = put(backend, ONE)
    with Server(lambda _request, wire: wire.answer(200, {"ETag": '"x"'}, ONE.archive)) as elsewhere:
        service.faults.add("redirect", "GET .*/content", location=elsewhere.url("/stored"))
        assert read_all(backend, artifact.locator) == ONE.archive
        with pytest.raises(IntegrityError, match="not how a repository"):
            backend.resolve(f"zenodo+{elsewhere.origin}/records/7")
        assert len(elsewhere.seen) == 2
        assert not any("authorization" in seen.headers for seen in elsewhere.seen)
    assert all(seen.headers["authorization"] == f"Bearer {service.token}" for seen in service.seen)


def test_an_address_that_only_begins_like_the_repository_gets_no_token(service):
    with zenodo(service, base_url="https://rdm.example.org") as backend:
        for url, given in [
            ("https://rdm.example.org/api/records/7", True),
            ("https://rdm.example.org.evil.example/api/records/7", False),
            ("https://zenodo.org/api/records/7", False),
        ]:
            assert bool(backend._credentials(parse_url(url)).token) is given, url


def test_no_cookie_comes_back_and_every_request_says_who_asks(service, backend):
    artifact, _ = put(backend, ONE)
    backend.raise_visibility(artifact.locator, Visibility.PUBLIC)
    assert not any("cookie" in seen.headers for seen in service.seen)
    assert {seen.headers["user-agent"].partition("/")[0] for seen in service.seen} == {"ari-registry"}


def test_every_upload_says_its_length(service, backend):
    put(backend, ONE)
    lengths = [seen.headers.get("content-length") for seen in service.seen if seen.method == "PUT"]
    assert str(len(ONE.archive)) in lengths
    assert not any("transfer-encoding" in seen.headers for seen in service.seen)


def test_the_token_is_in_no_message(service):
    token = BOBS  # who has no account here
    with zenodo(service, token=token) as backend:
        for attempt in backend.probe, lambda: put(backend, ONE), lambda: backend.resolve("doi:10.5281/zenodo.9"):
            with pytest.raises((AccessDenied, NotFound)) as caught:
                attempt()
            assert token not in f"{caught.value!r} {caught.value.hint}"
        assert token not in repr(backend.settings)


# -- what the service answers on bad days -------------------------------------------------------------------------


def test_patience_that_is_asked_for_is_granted(service, backend):
    service.faults.add("429", "POST /api/records$", retry_after=7)
    service.faults.add("503", "PUT .*/draft$", retry_after=11)
    waits = []
    patient(backend, waits).put(ONE.source(), new())
    assert waits == [7.0, 11.0]  # and not the 60 s that come with every other answer
    assert len(service.state().drafts) == 1


def test_only_429_and_503_ask_for_patience(service, backend):
    service.faults.add("500", "GET /api/user/records")
    with pytest.raises(Unavailable) as caught:
        backend.probe()
    assert not isinstance(caught.value, RateLimited)


@pytest.mark.parametrize("content_type", ["text/html", "application/octet-stream"])
def test_a_page_that_says_we_are_blocked_is_one_sentence_and_final(service, backend, content_type):
    artifact, _ = put(backend, ONE)
    service.faults.add("blocked", "GET .*", content_type=content_type, times=None)
    for attempt in lambda: backend.stat(artifact.locator), lambda: read_all(backend, artifact.locator):
        with pytest.raises(AccessDenied, match=r"blocks this network.*") as caught:
            attempt()
        assert "<" not in str(caught.value)
        assert "X-Request-ID" in str(caught.value)


@pytest.mark.parametrize("body", [b"<h1>nothing here</h1>", b'{"message": "no route matched"}', b"404", b"{"])
def test_what_a_proxy_does_not_find_is_not_absent(service, body):
    def respond(_request, wire):
        wire.answer(404, {"Content-Type": "application/json"}, body)

    strange = pytest.raises(Unsupported, match="no repository with InvenioRDM")
    with Server(respond) as somewhere, zenodo(service, base_url=somewhere.origin) as backend, strange:
        backend.stat(Locator(f"{somewhere.origin}/7"))


@pytest.mark.parametrize(
    ("status", "says", "error"),
    [
        (400, {"message": "CSRF cookie not set."}, AccessDenied),
        (400, {"message": "Bucket quota exceeded."}, QuotaExceeded),
        (400, {"message": "File is smaller than expected."}, Unavailable),
        (400, {"message": "x", "errors": [{"field": "a", "messages": ["no"]}]}, InvalidConfiguration),
        (413, {"message": "The data value transmitted exceeds the capacity limit."}, QuotaExceeded),
        (415, {"message": "Invalid 'Content-Type' header."}, Unsupported),
        (401, {"message": "no"}, AccessDenied),
        (500, {"message": "The server encountered an internal error."}, Unavailable),
        (200, {"hits": 3}, IntegrityError),
        (200, [], IntegrityError),
    ],
)
def test_answers_and_what_they_mean(service, status, says, error):
    def respond(_request, wire):
        wire.answer(status, {"Content-Type": "application/json"}, json.dumps(says).encode())

    with Server(respond) as somewhere, zenodo(service, base_url=somewhere.origin) as backend:
        with pytest.raises(error) as caught:
            backend.probe()
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)


def test_a_quota_of_the_service_is_told_as_one(service, backend):
    service.faults.add("quota", "PUT .*/content")
    with pytest.raises(QuotaExceeded, match="quota"):
        patient(backend).put(ONE.source(), new())


# -- the note -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "note",
    [
        Note("a" * 64, run="b" * 32),
        Note("a" * 64, bundle_sha256="b" * 64, md5="c" * 32),
        Note("a" * 64, bundle_sha256="b" * 64, md5="c" * 32, communities=("tides", "eu")),
    ],
)
@pytest.mark.parametrize("spelled", ["{}", "<p>{}</p>", "<div>\n  Read me.</div> <b>{}</b>", "A\u00a0note: {}"])
def test_the_note_is_read_however_it_is_marked_up(note, spelled):
    assert read(["Something else.", spelled.format(str(note).replace(" ", "\n", 3))]) == note


@pytest.mark.parametrize("text", ["", "<p>", "The bundle digest (SHA-256) is " + "a" * 63, "SHA-256 " + "a" * 64])
def test_what_is_no_note_is_none(text):
    assert read([text]) is None


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({}, "https://zenodo.org"),
        ({"sandbox": "1"}, "https://sandbox.zenodo.org"),
        ({"base_url": "https://rdm.example.org/"}, "https://rdm.example.org"),
        ({"base_url": "https://rdm.example.org/api"}, "https://rdm.example.org"),
    ],
)
def test_where_it_publishes(settings, base):
    assert Zenodo.Settings(**settings).base == base


@pytest.mark.parametrize(
    "settings",
    [
        {"sandbox": True, "base_url": "https://rdm.example.org"},
        {"base_url": "http://rdm.example.org"},
        {"base_url": "https://me:secret@rdm.example.org"},
        {"base_url": "https://rdm.example.org?x=1"},
        {"community": "https://zenodo.org/communities/tides"},
        {"metadata": "/no/such/file"},
        {"token": "two words"},
    ],
)
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(ValueError) as caught:
        Zenodo.Settings(**settings)
    assert "secret" not in str(caught.value)


def test_a_file_of_the_users_describes_before_the_bundle(service, tmp_path):
    given = tmp_path / "about.yaml"
    given.write_text("title: The title of the file\ncreators:\n- name: Hopper, Grace\n")
    with zenodo(service, metadata=given) as backend:
        says = backend._look(put(backend, ONE)[0].locator).says["metadata"]
    assert says["title"] == "The title of the file"
    assert says["creators"][0]["person_or_org"]["family_name"] == "Hopper"
    assert says["rights"][0]["id"] == "cc-by-4.0"  # of which the file says nothing


def test_only_what_is_given_for_this_very_run_goes_where_a_strangers_record_leads(monkeypatch):
    monkeypatch.setenv("ZENODO_TOKEN", "token-of-the-environment")
    with open_for_ref("doi:10.5281/zenodo.7", context=OpenContext(anonymous=True)) as reader:
        assert reader.settings.token is None
