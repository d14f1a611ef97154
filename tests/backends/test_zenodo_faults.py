"""Nothing is lost, made twice or falsely reported, whatever goes wrong: each fault alone, and many in a row."""

import hashlib
import random
from contextlib import suppress
from dataclasses import dataclass

import pytest
from support.zenodo import Zenodo as Service
from support.zenodo_backend import new, number, patient, zenodo

from ari_core.conformance import make_bundle
from ari_core.conformance.bundles import SourceFailedError
from ari_core.conformance.knobs import read_all
from ari_core.contract import Artifact, Locator, Visibility
from ari_core.errors import AlreadyExists, AriError, BackendBug, NotFound

REQUESTS = {
    "search": "GET /api/user/records",
    "create": "POST /api/records$",
    "reserve": "POST .*/pids/doi",
    "list files": "GET .*/draft/files$",
    "begin a file": "POST .*/draft/files$",
    "send": "PUT .*/content",
    "complete": "POST .*/commit",
    "look at the draft": "GET .*/draft$",
    "describe": "PUT .*/draft$",
    "publish": "POST .*/publish",
    "look at the record": "GET /api/records/[0-9]+$",
    "read": "GET .*/content",
}
PASSING = {
    "429": {"retry_after": 3},
    "500": {},
    "500, though it was done": {"after": True},
    "502": {},
    "503": {},
    "504": {},
    "504, though it was done": {"after": True},
    "reset": {},
    "reset and left pending": {"noticed": False, "at": 3000},
    "lost-answer": {},
    "truncate": {"at": 3},
    "lost-content": {},
    "wrong-bytes": {"at": 100},
}
ONLY = {"wrong-bytes": ["send"], "search-lag": ["search"]}
"""Faults that are of no kind of request but these. That other bytes are read is for core to find out."""
LASTING = {"blocked": {}, "guest": {}, "quota": {}, "403": {}, "413": {}}


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path / "zenodo") as running:
        yield running


def md5(bundle):
    return hashlib.md5(bundle.archive, usedforsecurity=False).hexdigest()


def holders(contents, bundle):
    """Returns the ids of what holds a bundle."""
    return [id_ for id_, files in contents.items() if files.get("bundle.tar.gz") == md5(bundle)]


def life(service, bundle):
    """Publishes a bundle and reads it back, with the patience of core."""
    with zenodo(service) as inner:
        backend = patient(inner)
        artifact, _ = backend.put(bundle.source(), new())
        assert backend.raise_visibility(artifact.locator, Visibility.PUBLIC) is Visibility.PUBLIC
        assert read_all(backend, artifact.locator) == bundle.archive
        return artifact.locator


def assert_told(step, order=None):
    """Runs a step that may fail: in our own words then, and only if something was ordered to go wrong."""
    try:
        step()
    except AriError as error:
        told = error
    else:
        return
    assert order is None or order.done
    assert not isinstance(told, BackendBug)
    assert "\n" not in str(told)


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for(service, fault):
    kind = fault.partition(",")[0].partition(" ")[0]
    for seed, name in enumerate(ONLY.get(fault, REQUESTS)):
        bundle = make_bundle(seed=seed)
        order = service.faults.add(kind, REQUESTS[name], **PASSING[fault])
        locator = life(service, bundle)
        assert order.done or fault not in ONLY, name
        service.faults.clear()
        state = service.state()
        assert holders(state.records, bundle) == [number(locator)], name
        assert state.drafts == {}, name


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_told_and_nothing_is_in_the_way_afterwards(service, fault):
    for seed, (name, when) in enumerate(REQUESTS.items()):
        bundle = make_bundle(seed=seed)
        order = service.faults.add(fault, when, times=None, **LASTING[fault])
        assert_told(lambda bundle=bundle: life(service, bundle), order)
        service.faults.clear()
        locator = life(service, bundle)
        state = service.state()
        assert holders(state.records, bundle) == [number(locator)], name
        assert state.drafts == {}, name


# -- many in a row ------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """What core notes between two runs."""

    previous: Artifact | None = None
    pending: Locator | None = None


class Campaign:
    """Random runs of publishing, promoting, reading and deleting, on a service with random faults."""

    def __init__(self, service, seed):
        self.service, self.random = service, random.Random(seed)
        self.checkpoint = Checkpoint()
        self.bundles = [make_bundle(seed=10 * seed + n) for n in range(3)]
        self.by_archive = {bundle.archive_sha256: bundle for bundle in self.bundles}
        self.published = {}  # what was seen in public once
        self.blind = 0  # how often a draft could be made that nobody knows of

    def run(self):
        for _ in range(self.random.randint(4, 10)):
            self.disorder()
            self.act(self.random.choice([self.publish, self.publish, self.promote, self.read, self.delete]))
        self.service.faults.clear()
        self.settle()

    def disorder(self):
        """Orders what will go wrong."""
        for _ in range(self.random.choice([0, 1, 1, 2, 3])):
            fault, options = self.random.choice([*PASSING.items(), *LASTING.items(), ("search-lag", {})])
            when = REQUESTS[self.random.choice(ONLY.get(fault, [*REQUESTS]))]
            how = {"nth": self.random.choice([1, 1, 2, 3]), "times": self.random.choice([1, 1, 2, 9])}
            self.service.faults.add(fault.partition(",")[0].partition(" ")[0], when, **{**options, **how})

    def act(self, step):
        with suppress(SourceFailedError):  # the run was killed
            assert_told(step)
        self.check()

    def opened(self):
        return patient(zenodo(self.service))  # each run is another process

    def publish(self, bundle=None, *, dies=None, replace=False):
        bundle = bundle or self.random.choice(self.bundles)
        dies = self.random.random() < 0.2 if dies is None else dies
        sent = bundle.archive[: self.random.randrange(len(bundle.archive))] if dies else None
        created_before = self.service.counts(REQUESTS["create"])

        def note(locator):
            if dies and self.random.random() < 0.5:
                raise SourceFailedError("killed before it could be noted")
            self.checkpoint.pending = locator

        with self.opened() as backend:
            try:
                artifact, _ = backend.put(
                    bundle.source(sent),
                    new(previous=self.checkpoint.previous, replace=replace),
                    resume=self.checkpoint.pending,
                    on_reserved=note,
                )
            finally:
                self.blind += self.service.counts(REQUESTS["create"]) - created_before
        self.checkpoint = Checkpoint(
            Artifact(artifact.locator, archive_sha256=bundle.archive_sha256, bundle_sha256=bundle.bundle_sha256)
        )
        assert self.holds(artifact, bundle), "falsely reported"

    def holds(self, artifact, bundle):
        state = self.service.state()
        return number(artifact.locator) in holders(state.records | state.drafts, bundle)

    def promote(self):
        if place := self.checkpoint.previous:
            with self.opened() as backend:
                assert backend.raise_visibility(place.locator, Visibility.PUBLIC) is Visibility.PUBLIC
            assert number(place.locator) in self.service.state().records, "falsely reported"

    def read(self):
        if place := self.checkpoint.previous:
            bundle = self.by_archive[place.archive_sha256]
            with self.opened() as backend:
                try:
                    found = backend.stat(place.locator)
                except NotFound:
                    # A draft that is being filled anew holds nothing until that is done.
                    assert number(place.locator) not in self.service.state().records, "falsely reported"
                    raise
                if found.archive_sha256 == bundle.archive_sha256:
                    assert read_all(backend, place.locator) == bundle.archive

    def delete(self):
        if (place := self.checkpoint.previous) and self.random.random() < 0.5:
            with self.opened() as backend:
                backend.delete(place.locator)
            state = self.service.state()
            assert number(place.locator) not in state.records | state.drafts, "falsely reported"
            self.checkpoint = Checkpoint()

    def check(self):
        """Holds after every step, whatever happened."""
        state = self.service.state()
        for id_, files in self.published.items():
            assert state.records.get(id_) == files, "what was public changed or went"
        self.published = dict(state.records)
        for bundle in self.bundles:
            assert len(holders(state.records, bundle)) <= 1, "published twice"

    def settle(self):
        """Without faults, the same commands lead to what the author wants."""
        for bundle in self.bundles:
            before = self.service.state()
            try:
                self.publish(bundle, dies=False)
            except AlreadyExists:  # a draft holds another of the three, and the checkpoint does not know of that
                assert self.service.state() == before
                self.publish(bundle, dies=False, replace=True)
            self.promote()
            self.check()
        state = self.service.state()
        assert all(len(holders(state.records, bundle)) == 1 for bundle in self.bundles)
        orphans = len(state.drafts)
        assert orphans <= self.blind, "more drafts are left than were made"


@pytest.mark.parametrize("seed", range(25))
def test_many_faults_in_a_row(service, seed):
    Campaign(service, seed).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_very_many_faults_in_a_row(service, seed):
    Campaign(service, seed).run()
