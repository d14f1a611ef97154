"""What a stranger's record, bundle or repository can bring about through the zenodo backend: nothing."""

import json
import socket
import tracemalloc
from datetime import UTC, datetime

import pytest
from support.zenodo import Zenodo as Service
from support.zenodo_backend import DESCRIPTION, new, number, zenodo

from ari_backends._http import Answer
from ari_backends.zenodo import client
from ari_backends.zenodo.backend import Zenodo
from ari_backends.zenodo.client import File, Repository
from ari_backends.zenodo.metadata import record_metadata
from ari_core import curate, mirror, publish
from ari_core.conformance import make_bundle, repacked
from ari_core.contract import Artifact, Locator, SupportsOwnRefs, Visibility
from ari_core.errors import (
    AccessDenied,
    AlreadyExists,
    ConfigurationError,
    IntegrityError,
    Unavailable,
    Unsupported,
)
from ari_core.record import Record, change_record, write_record
from ari_core.wrappers import RetryBackend

ONE, TWO = (make_bundle(seed=seed) for seed in (1, 2))


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path / "zenodo") as running:
        yield running


@pytest.fixture
def told():
    return []


@pytest.fixture
def backend(service, told):
    with zenodo(service, warn=told.append) as opened:
        yield opened


def put(backend, bundle, **more):
    resume = more.pop("resume", None)
    return backend.put(bundle.source(), new(**more), resume=resume)


def own_draft(service, backend, files):
    """A draft that the user made by hand; returns its locator."""
    metadata = record_metadata({**DESCRIPTION, "title": "Thesis"}, notes="", today=backend_today())
    draft = backend._repository(service.url).create(
        {"access": {"record": "public", "files": "public"}, "files": {"enabled": True}, "metadata": metadata}
    )
    for name, data in files.items():
        service.swap(draft.id, data, key=name)
    return Locator(f"{service.url}/{draft.id}")


def backend_today():
    return datetime.now(UTC).date()


# -- a record that names what is the user's -----------------------------------------------------------------------


@pytest.mark.parametrize("files", [{"thesis.tex": b"years of work"}, {"bundle.tar.gz": b"another one"}, {}])
@pytest.mark.parametrize("as_what", ["resume", "previous"])
def test_a_record_that_names_a_draft_of_the_users_does_not_change_it(service, backend, files, as_what):
    locator = own_draft(service, backend, files)
    before = service.state()
    led = {"resume": locator} if as_what == "resume" else {"previous": Artifact(locator)}
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, ONE, **led)
    assert service.state() == before
    assert backend._look(locator).says["metadata"]["title"] == "Thesis"


def test_a_record_that_names_a_stored_bundle_of_the_users_does_not_replace_it(service, backend):
    theirs, _ = put(backend, ONE)
    before = service.state()
    for led in {"resume": theirs.locator}, {"previous": Artifact(theirs.locator)}:
        with pytest.raises(AlreadyExists, match="not touched"):
            put(backend, TWO, **led)
    assert service.state() == before


def test_an_unfinished_draft_with_files_of_the_users_does_not_give_way(service, backend):
    reserved = []
    service.faults.add("blocked", "PUT .*/content")
    with pytest.raises(AccessDenied):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    service.swap(number(reserved[0]), b"years of work", key="thesis.tex")
    before = service.state()
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, TWO, resume=reserved[0])
    assert service.state() == before


def test_nothing_published_gets_a_successor_because_a_record_calls_it_unfinished(service, backend):
    theirs, _ = put(backend, ONE)
    backend.raise_visibility(theirs.locator, Visibility.PUBLIC)
    before = service.state()
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, TWO, resume=theirs.locator)
    assert service.state() == before


def test_nothing_published_by_hand_gets_a_successor_because_a_record_calls_it_unfinished(service, backend):
    locator = own_draft(service, backend, {"thesis.pdf": b"years of work"})
    backend._repository(service.url).publish(number(locator))
    before = service.state()
    with pytest.raises(AlreadyExists, match="not touched"):
        put(backend, ONE, resume=locator)
    assert service.state() == before


def test_it_is_told_before_something_becomes_a_new_version(service, backend, told):
    theirs, _ = put(backend, ONE)
    backend.raise_visibility(theirs.locator, Visibility.PUBLIC)
    told.clear()
    order = service.faults.add("blocked", "POST .*/versions")
    with pytest.raises(AccessDenied):
        put(backend, TWO, previous=theirs)
    assert order.done
    assert told == [f"this becomes a new version of {theirs.doi} ('Bundle of a run')"]


# -- what another run does meanwhile ------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("how", ["emptied", "filled with another one"])
def test_what_was_published_is_what_was_looked_at(service, backend, monkeypatch, how, lost):
    artifact, _ = put(backend, ONE)
    publishing = Repository.publish

    def meddle(repository, id_):
        if how == "emptied":
            service.swap(id_, b"", key="README")
            repository.drop(id_, "bundle.tar.gz")
        else:
            with zenodo(service) as other:
                put(other, TWO, resume=artifact.locator, replace=True)
        publishing(repository, id_)

    monkeypatch.setattr(Repository, "publish", meddle)
    if lost:
        service.faults.add("lost-answer", "POST .*/publish")
    with pytest.raises(IntegrityError, match=r"published, but bundle\.tar\.gz"):
        backend.raise_visibility(artifact.locator, Visibility.PUBLIC)


def test_the_same_bundle_in_another_packing_is_not_published_twice(service, backend):
    first, _ = put(backend, ONE)
    backend.raise_visibility(first.locator, Visibility.PUBLIC)
    with zenodo(service) as another_run:
        again, created = put(another_run, repacked(ONE))
    assert (again.locator, created) == (first.locator, False)
    assert len(service.state().records) == 1
    assert service.state().drafts == {}


# -- descriptions and answers -------------------------------------------------------------------------------------


def test_a_long_identifier_is_refused_in_no_time_and_in_one_line():
    identifier = "https://" + "a." * 100_000 + "<"
    related = {**DESCRIPTION, "related": [{"identifier": identifier, "relation": "cites"}]}
    with pytest.raises(ConfigurationError, match="no kind of identifier") as caught:  # quadratic: minutes
        record_metadata(related, notes="", today=backend_today())
    assert len(str(caught.value)) < 300
    for field, value in ("language", "x" * 10**6), ("grants", ["10.1/x::" + "9" * 10**6]):
        with pytest.raises(ConfigurationError) as caught:
            record_metadata({**DESCRIPTION, field: value}, notes="", today=backend_today())
        assert len(str(caught.value)) < 300


def test_a_small_answer_cannot_take_much_memory(service, backend, monkeypatch):
    theirs, _ = put(backend, ONE)
    backend.raise_visibility(theirs.locator, Visibility.PUBLIC)
    bomb = b'{"id": "1", "metadata": {}, "x": [' + b"{}," * 2_000_000 + b"{}]}"
    monkeypatch.setattr(Answer, "body", lambda _answer, _most: bomb)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="not how a repository"):
            backend._look(theirs.locator)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("listed", [False, True])
def test_odd_files_of_a_repository_are_no_bundle(service, backend, listed):
    entries = {"\ud800.tar": {"size": 3}, "a.zip": {"size": -5}, "b.zip": {"size": 2**63}, "c.zip": {"size": 3}}
    if listed:
        entries = [{"key": name, **says} for name, says in entries.items()]
    found = client._files(entries)
    assert found == {
        "a.zip": File("a.zip", None, None),
        "b.zip": File("b.zip", None, None),
        "c.zip": found["c.zip"],
    }
    assert found["c.zip"].size == 3


def test_a_file_name_that_no_address_can_hold_is_passed_over(service, backend, monkeypatch):
    theirs, _ = put(backend, ONE)
    says = dict(backend._look(theirs.locator).says)
    says["files"] = {"entries": {"\ud800\ud800.tar": {"size": 3, "checksum": "md5:" + "0" * 32}}}
    says["is_published"] = True
    monkeypatch.setattr(Repository, "_ask", lambda *_args, **_more: json.loads(json.dumps(says)))
    with pytest.raises(Unsupported, match="no archive"), backend.open(theirs.locator):
        pass


# -- through core -------------------------------------------------------------------------------------------------


@pytest.fixture
def study(service, tmp_path, monkeypatch):
    """A checkpoint whose bundle describes itself, and whose backend is set by the environment."""
    monkeypatch.setenv("ARI_ZENODO_BASE_URL", service.url)
    monkeypatch.setenv("ZENODO_TOKEN", service.token)
    folder = tmp_path / "study"
    (folder / "ear").mkdir(parents=True)
    (folder / "ear/publish.yaml").write_text(
        "include: ['*.py']\nvisibility: embargoed-until:2999-01-01\n"
        "zenodo: {title: Slopes, creators: [{name: 'Lovelace, Ada'}]}\n"
    )
    (folder / "ear/fit.py").write_text("print(1)\n")
    curate(folder)
    return folder


@pytest.mark.parametrize("command", ["mirror", "publish"])
@pytest.mark.parametrize("key", ["pending", "pending_copies"])
def test_a_downloaded_checkpoint_takes_no_draft_of_the_users(service, backend, study, command, key):
    locator = own_draft(service, backend, {"thesis.tex": b"years of work"})
    before = service.state()
    publish(study, backend="local-tarball")
    begun = {"backend": "zenodo", "profile": None, "locator": locator}
    led = {key: begun if key == "pending" else [begun]}
    change_record(study, lambda record: record.model_copy(update=led))
    try:
        mirror(str(study), "zenodo") if command == "mirror" else publish(study, backend="zenodo")
    except AlreadyExists:
        assert service.state() == before
    assert service.state().drafts[number(locator)] == before.drafts[number(locator)]
    assert backend._look(locator).says["metadata"]["title"] == "Thesis"


def test_a_repository_that_is_gone_is_no_hindrance_to_publishing_in_another(service, study, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        record = Record(backend="zenodo", ref=f"zenodo+http://127.0.0.1:{nobody.getsockname()[1]}/records/7")
        write_record(study, record.with_event("published", backend="zenodo", ref=record.ref))
        monkeypatch.setattr(RetryBackend, "_again", lambda _backend, call, **_more: call())
        assert publish(study, backend="zenodo").created
    assert len(service.state().drafts) == 1


def test_a_repository_that_answers_nothing_just_now_is_asked_again_before_anything_is_made_twice(
    service, study, monkeypatch
):
    first = publish(study, backend="zenodo").record
    service.faults.add("504", "GET /api/records/", times=None)
    (study / "ear/fit.py").write_text("print(2)\n")
    curate(study)
    monkeypatch.setattr(RetryBackend, "_again", lambda _backend, call, **_more: call())
    with pytest.raises(Unavailable):
        publish(study, backend="zenodo")
    service.faults.clear()
    assert publish(study, backend="zenodo").record.ref == first.ref
    assert len(service.state().drafts) == 1


@pytest.mark.parametrize(
    ("settings", "ref", "own"),
    [
        ({}, "doi:10.5281/zenodo.7", True),
        ({}, "doi:10.5072/zenodo.7", False),
        ({"sandbox": True}, "doi:10.5072/zenodo.7", True),
        ({"base_url": "https://rdm.example.org"}, "doi:10.5281/zenodo.7", False),
        ({"base_url": "https://rdm.example.org"}, "zenodo+https://rdm.example.org/records/7", True),
        ({"base_url": "https://rdm.example.org"}, "zenodo+https://rdm.example.org.evil/records/7", False),
        ({}, "doi:10.1234/x", False),
        ({}, "", False),
    ],
)
def test_own_refs_are_known_without_asking(settings, ref, own):
    assert Zenodo(Zenodo.Settings(**settings)).optional(SupportsOwnRefs).is_own(ref) is own


@pytest.mark.parametrize("source", ["local-tarball", "filesystem-registry"])  # as a file, and while it is read
def test_an_embargo_in_the_manifest_holds_where_the_record_tells_of_no_wish(service, study, source):
    options = {"root": str(study.parent / "archive")} if source == "filesystem-registry" else {}
    publish(study, backend=source, options=options)
    change_record(study, lambda record: record.model_copy(update={"wish": None}))  # as the existing tool leaves it
    mirror(str(study), "zenodo")
    with zenodo(service) as backend:
        (draft,) = service.state().drafts
        assert str(backend.stat(Locator(f"{service.url}/{draft}")).embargo) == "2999-01-01"


def test_only_what_is_unfinished_and_of_nobody_else_is_deleted(service, backend):
    reserved = []
    service.faults.add("blocked", "PUT .*/content")
    with pytest.raises(AccessDenied):
        backend.put(ONE.source(), new(), on_reserved=reserved.append)
    service.swap(number(reserved[0]), b"years of work", key="thesis.tex")
    for locator in reserved[0], own_draft(service, backend, {}):
        with pytest.raises(Unsupported, match="not touched"):
            backend.delete(locator)
    assert len(service.state().drafts) == 2
