"""Cases about listing and deleting."""

# ruff: noqa: S101 - assert is how tests assert

from __future__ import annotations

import pytest

from ari_core.conformance.bundles import SMALLEST, Bundle, make_bundle
from ari_core.conformance.knobs import (
    REFUSED,
    Knobs,
    assert_claims,
    assert_holds,
    is_absent,
    listed,
    need,
    users,
)
from ari_core.contract import Backend, Capabilities, Locator, Visibility
from ari_core.errors import Unsupported


def need_list(can: Capabilities) -> None:
    """Skips a case for a store that lists nothing."""
    need(can.list != "no", "the store lists nothing here")


def need_delete(can: Capabilities) -> None:
    """Skips a case for a store that deletes nothing."""
    need(can.delete != "no", "the store deletes nothing here")


class Keeping(Knobs):
    """Listing and deleting."""

    def _fill(self, backend: Backend, count: int) -> dict[Locator, Bundle]:
        bundles = [make_bundle(SMALLEST + 10 * seed, seed) for seed in range(self.room_for(count))]
        return {self.seed(backend, bundle): bundle for bundle in bundles}

    def test_empty_store_lists_nothing(self, backend: Backend, can: Capabilities) -> None:
        """A new store is empty, and listing it is no error."""
        need_list(can)
        assert list(backend.list()) == []

    def test_listing_is_complete(self, backend: Backend, can: Capabilities) -> None:
        """Beyond one page, every artifact is listed once, and what is said about it is true."""
        need_list(can)
        stored = self._fill(backend, self.page)
        assert self.eventually(can, lambda: listed(backend).keys() == stored.keys())
        for locator, artifact in listed(backend).items():
            assert_claims(artifact, locator, stored[locator])

    def test_cursor_continues(self, backend: Backend, can: Capabilities) -> None:
        """From every cursor, what comes is exactly what came behind it; behind the last, nothing."""
        need_list(can)
        stored = self._fill(backend, self.page)
        assert self.eventually(can, lambda: len(listed(backend)) == len(stored))
        whole = list(backend.list())
        order = [artifact.locator for artifact, _ in whole]
        for index, (_, cursor) in enumerate(whole):
            assert [artifact.locator for artifact, _ in backend.list(cursor)] == order[index + 1 :]

    def test_listing_agrees_with_stat(self, backend: Backend, can: Capabilities) -> None:
        """Where a listing says something about an artifact, stat says the same."""
        need_list(can)
        (locator,) = self._fill(backend, 1)
        if can.levels:
            backend.raise_visibility(locator, max(can.levels, key=lambda level: level.rank))
        truth = backend.stat(locator)

        def agrees() -> bool:
            shown = listed(backend).get(locator)
            return shown is not None and all(
                getattr(shown, name) in {None, getattr(truth, name)}
                for name in ("size", "archive_sha256", "bundle_sha256", "visibility", "owners", "created")
            )

        assert self.eventually(can, agrees)

    def test_listing_is_refused_where_it_is_not_possible(self, backend: Backend, can: Capabilities) -> None:
        """A store that lists nothing says so; it does not list nothing."""
        need(can.list == "no", "the store lists")
        with pytest.raises(REFUSED if backend.capabilities.list != "no" else Unsupported):
            list(backend.list())

    def test_deleted_is_gone(self, backend: Backend, can: Capabilities) -> None:
        """What was deleted is found nowhere, by no instance."""
        need_delete(can)
        locator = self.seed(backend, make_bundle())
        backend.delete(locator)
        assert is_absent(backend, locator)
        with self.reopen(backend) as other:
            assert is_absent(other, locator)
        if can.list != "no":
            assert self.eventually(can, lambda: locator not in listed(backend))

    def test_delete_again(self, backend: Backend, can: Capabilities) -> None:
        """Deleting what is absent is no error."""
        need_delete(can)
        locator = self.seed(backend, make_bundle())
        backend.delete(locator)
        backend.delete(locator)
        assert is_absent(backend, locator)

    def test_delete_harms_no_other(self, backend: Backend, can: Capabilities) -> None:
        """Only what was named is deleted."""
        need_delete(can)
        need(self.room_for(2) > 1, "the store holds one artifact")
        stored = self._fill(backend, 3)
        doomed = next(iter(stored))
        backend.delete(doomed)
        del stored[doomed]
        for locator, bundle in stored.items():
            assert_holds(backend, locator, bundle)
        if can.list != "no":
            assert self.eventually(can, lambda: listed(backend).keys() == stored.keys())

    def test_stored_again_after_delete(self, backend: Backend, can: Capabilities) -> None:
        """What was deleted can be stored again, and starts anew."""
        need_delete(can)
        need(can.put, "the store takes no artifacts here")
        bundle = make_bundle()
        first = backend.put(bundle.source(), self.new(backend, "ada"))[0].locator
        if can.levels and can.delete == "yes":
            backend.raise_visibility(first, max(can.levels, key=lambda level: level.rank))
        backend.delete(first)
        artifact, created = backend.put(bundle.source(), self.new(backend, "grace"))
        assert created
        assert_holds(backend, artifact.locator, bundle)
        found = backend.stat(artifact.locator)
        if can.visibility != "none":
            assert found.visibility is Visibility.STAGED
        if can.stores_meta:
            assert users(found) == ["grace"]

    def test_published_is_not_deleted(self, backend: Backend, can: Capabilities) -> None:
        """Where only unpublished artifacts can be deleted, others stay."""
        need(can.delete == "unpublished", "the store deletes everything or nothing")
        need(can.levels, "the store raises no levels here")
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        backend.raise_visibility(locator, max(can.levels, key=lambda level: level.rank))
        with pytest.raises(Unsupported):
            backend.delete(locator)
        assert_holds(backend, locator, bundle)

    def test_delete_is_refused_where_it_is_not_possible(self, backend: Backend, can: Capabilities) -> None:
        """A store that deletes nothing refuses, and everything stays."""
        need(can.delete == "no", "the store deletes")
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        with pytest.raises(REFUSED if backend.capabilities.delete != "no" else Unsupported):
            backend.delete(locator)
        assert_holds(backend, locator, bundle)
