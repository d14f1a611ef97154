"""Cases about visibility, which only ever moves up, and embargoes."""

# ruff: noqa: S101 - assert is how tests assert

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta

import pytest

from ari_core.conformance.bundles import make_bundle
from ari_core.conformance.knobs import DENIED, REFUSED, Knobs, assert_holds, need, need_put, read_all, together
from ari_core.contract import Backend, Capabilities, Locator, Visibility
from ari_core.errors import NotFound, Unsupported


def reachable(can: Capabilities) -> list[Visibility]:
    """Returns the levels of a store, lowest first; skips the case if there are none."""
    need(can.visibility != "none" and can.levels, "the store raises no levels here")
    return [level for level in Visibility if level in can.levels]


def need_two(levels: list[Visibility]) -> None:
    """Skips a case for a store that has one level."""
    need(len(levels) > 1, "the store has only one level")


def need_embargo(can: Capabilities) -> None:
    """Skips a case for a store that keeps no embargoes."""
    need(can.embargo and can.put and can.levels, "the store keeps no embargo here")


def in_days(days: int) -> date:
    """Returns a day of the future."""
    return datetime.now(UTC).date() + timedelta(days=days)


class Levels(Knobs):
    """Raising visibility."""

    def _now(self, backend: Backend, can: Capabilities, locator: Locator, wanted: Visibility) -> Visibility | None:
        self.eventually(can, lambda: backend.stat(locator).visibility is wanted)
        return backend.stat(locator).visibility

    def test_up_step_by_step(self, backend: Backend, can: Capabilities) -> None:
        """Every level can be reached in order, and is what stat and another instance say then."""
        levels = reachable(can)
        bundle = make_bundle()
        locator = self.seed(backend, bundle)
        for level in levels:
            assert backend.raise_visibility(locator, level) is level
            assert self._now(backend, can, locator, level) is level
        with self.reopen(backend) as other:
            assert other.stat(locator).visibility is levels[-1]
        assert_holds(backend, locator, bundle)

    @pytest.mark.parametrize("level", Visibility)
    def test_straight_up(self, backend: Backend, can: Capabilities, level: Visibility) -> None:
        """Every level can be reached in one step, and again: that changes nothing."""
        need(level in reachable(can), f"the store has no level '{level}'")
        locator = self.seed(backend, make_bundle())
        assert backend.raise_visibility(locator, level) is level
        assert backend.raise_visibility(locator, level) is level
        assert self._now(backend, can, locator, level) is level

    def test_never_down(self, backend: Backend, can: Capabilities) -> None:
        """A lower target changes nothing, and the level that is stored is the answer."""
        levels = reachable(can)
        need_two(levels)
        for seed, (low, high) in enumerate(itertools.combinations(levels, 2)):
            if seed >= self.room_for(seed + 1):
                break
            locator = self.seed(backend, make_bundle(seed=seed))
            backend.raise_visibility(locator, high)
            assert backend.raise_visibility(locator, low) is high
            assert self._now(backend, can, locator, high) is high

    def test_racing_raises_end_at_the_highest(self, backend: Backend, can: Capabilities) -> None:
        """Whoever comes last, the highest target wins."""
        need(can.atomic_updates, "the store leaves racing changes to somebody else")
        levels = reachable(can)
        need_two(levels)
        for seed in range(self.room_for(5)):
            locator = self.seed(backend, make_bundle(seed=seed))

            def raise_to(level: Visibility, locator: Locator = locator) -> tuple[Visibility, Visibility]:
                return level, backend.raise_visibility(locator, level)

            targets = (levels * self.threads)[: self.threads]
            for target, answer in together(*[lambda t=target: raise_to(t) for target in targets]):
                assert answer.rank >= target.rank
            assert self._now(backend, can, locator, levels[-1]) is levels[-1]

    @pytest.mark.parametrize("level", Visibility)
    def test_foreign_level(self, backend: Backend, can: Capabilities, level: Visibility) -> None:
        """A level that the store does not have is refused before anything changes."""
        need(level not in can.levels, f"the store has the level '{level}'")
        locator = self.seed(backend, make_bundle())
        before = backend.stat(locator)
        with pytest.raises(REFUSED if level in backend.capabilities.levels else Unsupported):
            backend.raise_visibility(locator, level)
        assert backend.stat(locator) == before

    def test_absent_has_no_level(self, backend: Backend, can: Capabilities) -> None:
        """What is absent has no level to raise."""
        target = reachable(can)[-1]
        locator = self.absent(backend)
        with pytest.raises(NotFound):
            backend.raise_visibility(locator, target)
        with pytest.raises(NotFound):
            backend.stat(locator)

    def test_second_put_keeps_the_level(self, backend: Backend, can: Capabilities) -> None:
        """To put the same archive again does not take it back to staged."""
        need_put(can)
        highest = reachable(can)[-1]
        bundle = make_bundle()
        locator = backend.put(bundle.source(), self.new(backend))[0].locator
        backend.raise_visibility(locator, highest)
        _, created = backend.put(bundle.source(), self.new(backend))
        assert created is False
        assert self._now(backend, can, locator, highest) is highest

    def test_raising_changes_nothing_else(self, backend: Backend, can: Capabilities) -> None:
        """Owner, time of creation and size stay what they were."""
        highest = reachable(can)[-1]
        locator = self.seed(backend, make_bundle())
        before = backend.stat(locator)
        backend.raise_visibility(locator, highest)
        after = backend.stat(locator)
        assert (after.owners, after.created, after.size) == (before.owners, before.created, before.size)

    # -- embargoes -----------------------------------------------------------------------------------------------

    def test_embargo(self, backend: Backend, can: Capabilities) -> None:
        """Raised to the highest level, nobody but its owner reads it before the day; without one, everybody."""
        need_embargo(can)
        closed, opened = make_bundle(seed=1), make_bundle(seed=2)
        held = backend.put(closed.source(), self.new(backend, embargo=in_days(30)))[0].locator
        free = backend.put(opened.source(), self.new(backend))[0].locator
        for locator in held, free:
            backend.raise_visibility(locator, reachable(can)[-1])
        assert_holds(backend, held, closed)
        with self.stranger(backend) as other:
            assert_holds(other, free, opened)
            with pytest.raises(DENIED):
                read_all(other, held)

    def test_embargo_is_told(self, backend: Backend, can: Capabilities) -> None:
        """Core raises no level unless the store says that it knows of the embargo."""
        need_embargo(can)
        bundle = make_bundle()
        stored, _ = backend.put(bundle.source(), self.new(backend, embargo=in_days(30)))
        with self.reopen(backend) as other:
            for found in stored, backend.stat(stored.locator), other.stat(stored.locator):
                assert found.embargo == in_days(30)
        assert backend.put(make_bundle(seed=2).source(), self.new(backend))[0].embargo is None

    def test_embargo_of_a_second_put(self, backend: Backend, can: Capabilities) -> None:
        """Of what is staged, another day takes effect; none takes it away only where public is wished for."""
        need_embargo(can)
        bundle = make_bundle()
        locator = backend.put(bundle.source(), self.new(backend))[0].locator
        public = Visibility.PUBLIC
        for day, wish, then in [
            (in_days(30), public, in_days(30)),
            (in_days(20), public, in_days(20)),
            (in_days(40), None, in_days(40)),
            (None, None, in_days(40)),
            (None, Visibility.STAGED, in_days(40)),
            (None, public, None),
        ]:
            found, created = backend.put(bundle.source(), self.new(backend, embargo=day, wish=wish))
            assert (found.locator, created, found.embargo) == (locator, False, then)
            assert backend.stat(locator).embargo == then
        assert_holds(backend, locator, bundle)
