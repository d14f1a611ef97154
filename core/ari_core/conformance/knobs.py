"""What an author may add to the suite, and what its cases share."""

# ruff: noqa: S101, ARG002 - assert is how tests assert; hooks have arguments for those who override them

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, TypeVar

import pytest

from ari_core.conformance.bundles import Bundle, make_bundle
from ari_core.contract import CHUNK, Artifact, Backend, Capabilities, Locator, NewArtifact
from ari_core.errors import (
    AccessDenied,
    AriError,
    BackendBug,
    CheckpointNotFoundError,
    LocalPermissionError,
    NotFound,
    ReadOnly,
    Unsupported,
)
from ari_core.settings import is_secret
from ari_core.wrappers import Wrapper

Step = Literal["stat", "open", "read", "list", "put", "denied"]
"""Where `Knobs.break_store` lets the store fail; ``denied``: it refuses the credentials, whatever is asked."""

DENIED = (AccessDenied, LocalPermissionError)
"""How a store, or the disk it is on, says that the caller may not."""

REFUSED = (Unsupported, ReadOnly, *DENIED)
"""How a store says that it cannot do here what its class can do elsewhere."""

DESCRIPTION: Final[Mapping[str, Any]] = {
    "title": "Bundle of a conformance suite: Zoë's <b>run</b> & more",
    "abstract": 'Random bytes.\n\nThey are of no use, 1 < 2 & "so on".',
    "creators": [
        {
            "family": "Lovelace",
            "given": "Ada",
            "orcid": "0000-0002-1825-0097",
            "affiliation": "Analytical Society",
        },
        {"name": "The Conformance Suite", "organization": True},
    ],
    "contributors": [{"name": "Zoë O'Neil", "role": "DataCurator"}],
    "keywords": ["conformance", "Übung"],
    "license": "CC-BY-4.0",
    "version": "1.10",
    "date": "2024-02-29",
    "language": "en",
    "references": ["Ada Lovelace: Notes, 1843."],
    "related": [{"identifier": "10.1234/paper", "relation": "isSupplementTo", "scheme": "doi"}],
    "type": "dataset",
    "notes": "Made by a program.",
}
"""All that `ari_core.citation` may tell, but for communities and grants, which would have to exist."""

_T = TypeVar("_T")


class Knobs:
    """Hooks and knobs: override what your store needs, with the reason beside it.

    Attributes:
        large: Bytes of the largest archive stored; more than one part where a store uploads in parts.
        page: How many artifacts are surely more than one page of a listing.
        threads: How many write the same archive at once.
        capacity: How many different archives the store holds at once; None for no bound.
        lag: Seconds that an ``eventual`` listing, and a change of level, may take to show.
        longest_read: Most bytes that `put` may ask of its source at once: memory stays bounded.
        description: What a backend that `describes` is told of every bundle.
        known_failures: Cases that fail for a known reason, by name. They must fail: one that passes is an error.
    """

    large: ClassVar[int] = 9 * 1024 * 1024 + 1
    page: ClassVar[int] = 25
    threads: ClassVar[int] = 16
    capacity: ClassVar[int | None] = None
    lag: ClassVar[float] = 10.0
    longest_read: ClassVar[int] = 16 * 1024 * 1024
    description: ClassVar[Mapping[str, Any]] = DESCRIPTION
    known_failures: ClassVar[Mapping[str, str]] = {}

    # -- hooks ---------------------------------------------------------------------------------------------------

    def seed(self, backend: Backend, bundle: Bundle) -> Locator:
        """Stores `bundle` so that `backend` can read it. Override it for a store that takes no artifacts."""
        if not backend.probe().put:
            pytest.skip("the store takes no artifacts here: override seed() to place one")
        return backend.put(bundle.source(), self.new(backend))[0].locator

    def absent(self, backend: Backend) -> Locator:
        """Returns a locator of something that is certainly absent."""
        if backend.probe().delete == "no":
            pytest.skip("the store deletes nothing here: override absent() to name what is not there")
        locator = self.seed(backend, make_bundle(seed=404))
        backend.delete(locator)
        return locator

    def reopen(self, backend: Backend) -> Backend:
        """Returns another backend for the same store."""
        return type(backend)(backend.settings, backend.context)

    def stranger(self, backend: Backend) -> Backend:
        """Returns a backend for the same store, opened without any credentials."""
        while isinstance(backend, Wrapper):
            backend = backend.inner
        kind, settings = type(backend), backend.settings
        names = [name for name in backend.Settings.model_fields if not is_secret(backend.Settings, name)]
        open_ = backend.Settings(**{name: getattr(settings, name) for name in names})
        return kind(open_, replace(backend.context, anonymous=True))

    def raw_corrupt(self, backend: Backend, locator: Locator) -> None:
        """Changes a byte of what is stored, behind the backend's back."""
        pytest.skip("override raw_corrupt() to test what becomes of damaged bytes")

    def break_store(self, backend: Backend, step: Step) -> AbstractContextManager[None]:
        """Makes the store itself fail at `step`, inside the ``with`` block, in the way it really fails.

        ``read`` fails in the middle of an archive and ``list`` in the middle of a listing. What the backend then
        sees is the system's or the SDK's own exception, or the service's answer.
        """
        pytest.skip("override break_store() to test what becomes of the store's own failures")

    # -- for the cases -------------------------------------------------------------------------------------------

    def new(self, backend: Backend, owner: str | None = "ada", **more: Any) -> NewArtifact:
        """Returns what goes with a new artifact: as from core, with a description if the backend `describes`."""
        return new(owner, **{"description": self.description if backend.describes else {}, **more})

    @pytest.fixture(autouse=True)
    def _known_failures(self, request: pytest.FixtureRequest) -> None:
        """Turns a named known failure into one that is expected."""
        for name in self.known_failures:
            if not hasattr(self, name):
                pytest.fail(f"known_failures names '{name}', which is no case of this suite")
        name = getattr(request.node, "originalname", request.node.name)
        if reason := self.known_failures.get(name):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    def can(self, backend: Backend) -> Capabilities:
        """What this very store can do."""
        return backend.probe()

    def room_for(self, count: int) -> int:
        """Returns how many of `count` different archives the store has room for."""
        return count if self.capacity is None else min(count, self.capacity)

    def eventually(self, can: Capabilities, question: Callable[[], bool]) -> bool:
        """Asks until the answer is yes, where a listing may lag; else once."""
        deadline = time.monotonic() + (self.lag if can.list == "eventual" else 0)
        while not (answer := question()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return answer


def need(condition: object, reason: str) -> None:
    """Skips a case for what a store cannot do."""
    if not condition:
        pytest.skip(reason)


def need_put(can: Capabilities) -> None:
    """Skips a case for a store that takes no artifacts."""
    need(can.put, "the store takes no artifacts here")


def new(owner: str | None = "ada", **more: Any) -> NewArtifact:
    """Returns what goes with a new artifact."""
    return NewArtifact(created=datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC), owner=owner, **more)


def read_all(backend: Backend, locator: Locator, offset: int = 0, piece: int = CHUNK) -> bytes:
    """Reads an archive from `offset` to its end."""
    parts = []
    with backend.open(locator, offset) as stream:
        while data := stream.read(piece):
            assert len(data) <= piece
            parts.append(data)
    return b"".join(parts)


def listed(backend: Backend) -> dict[Locator, Artifact]:
    """Returns the whole listing; each artifact may be there only once."""
    found: dict[Locator, Artifact] = {}
    for artifact, _ in backend.list():
        assert artifact.locator not in found, f"'{artifact.locator}' is listed twice"
        found[artifact.locator] = artifact
    return found


def assert_trouble(error: AriError) -> None:
    """Checks that a failure of the store comes out in our own words, and not as if something were absent."""
    assert not isinstance(error, BackendBug | NotFound | CheckpointNotFoundError), repr(error)


def is_absent(backend: Backend, locator: Locator) -> bool:
    """Says whether stat and open agree that there is nothing."""
    with pytest.raises(NotFound):
        backend.stat(locator)
    with pytest.raises(NotFound), backend.open(locator):
        pass
    return True


def assert_same(found: bytes, expected: bytes) -> None:
    """Compares long contents so that a failure can be read."""
    got, wanted = (f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}" for data in (found, expected))
    assert got == wanted


def assert_holds(backend: Backend, locator: Locator, bundle: Bundle) -> None:
    """Checks that reading returns the bundle's archive."""
    assert_same(read_all(backend, locator), bundle.archive)


def assert_claims(artifact: Artifact, locator: Locator, bundle: Bundle) -> None:
    """Checks that whatever a store says about an artifact is true."""
    assert artifact.locator == locator
    size = len(bundle.archive)
    assert artifact.size in {None, size}
    assert artifact.archive_sha256 in {None, bundle.archive_sha256}
    assert artifact.bundle_sha256 in {None, bundle.bundle_sha256}


def together(*calls: Callable[[], _T]) -> list[_T]:
    """Runs all calls at the same moment, each in its thread, and returns what they return."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], _T]) -> _T:
        start.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def users(artifact: Artifact) -> list[str]:
    """Returns the names of the owners, in the store's order."""
    return [owner.user for owner in artifact.owners or ()]
