"""The conformance suite itself: every bug planted here has to make the case fail that is there for it.

`plant` makes a test class of each planted bug. They are named so that an ordinary run does not collect them; one
child process runs the case each is meant for, and all cases over the backend without a bug.
"""

# ruff: noqa: BLE001, RUF012 - these are bugs, planted on purpose

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr
from support.memory import (
    PREFIX,
    MemoryBackend,
    MemoryHooks,
    MemorySettings,
    MemoryStream,
    ShowcaseBackend,
    Stored,
)

from ari_core.conformance import BackendContract, make_bundle
from ari_core.contract import Artifact, Backend, Capabilities, Locator, Owner, Visibility
from ari_core.errors import AccessDenied, NotFound, Unavailable, Unsupported

PLANTED = {}


def plant(case, hooks=MemoryHooks):
    """Plants the decorated bug, for the suite's `case` to find."""

    def add(bug):
        name = f"Planted{bug.__name__}"
        fixture = pytest.fixture(name="backend")(lambda self: bug())
        globals()[name] = type(name, (hooks, BackendContract), {"_backend": fixture, "__module__": __name__})
        PLANTED[name] = case
        return bug

    return add


class HidesSize(MemoryBackend):
    """Not a bug: the contract cannot help where a store does not know sizes."""

    def _artifact(self, locator, stored):
        return replace(super()._artifact(locator, stored), size=None)


class Elsewhere(MemoryBackend):
    """Not a bug: less is possible here than the class declares."""

    here = MemoryBackend.capabilities

    def _probe(self):
        return self.here


# -- reading


class ShortStream(MemoryStream):
    def read(self, size):
        return super().read(min(size, max(0, len(self.data) - 1 - self.position)))


@plant("test_round_trip")
class LosesTheLastByte(HidesSize):
    @contextmanager
    def _open(self, locator, offset):
        yield ShortStream(self.space, self._stored(locator).data, offset)


@plant("test_round_trip")
class LosesWhatIsBehindABlock(HidesSize):
    def _commit(self, locator, stored):
        return super()._commit(locator, replace(stored, data=stored.data[: 128 * 1024]))


@plant("test_small_reads")
class ReadsMoreThanAsked(MemoryBackend):
    @contextmanager
    def _open(self, locator, offset):
        stream = MemoryStream(self.space, self._stored(locator).data, offset)
        stream.read = lambda size, read=stream.read: read(max(size, 100))
        yield stream


@plant("test_the_end_stays_the_end")
class StartsAgainAtTheEnd(HidesSize):
    @contextmanager
    def _open(self, locator, offset):
        stream = MemoryStream(self.space, self._stored(locator).data, offset)

        def read(size, good=stream.read):
            piece = good(size)
            if not piece:
                stream.position = 0
            return piece

        stream.read = read
        yield stream


@plant("test_two_readers")
class SharesThePosition(MemoryBackend):
    shared = None

    @contextmanager
    def _open(self, locator, offset):
        self.shared = self.shared or MemoryStream(self.space, self._stored(locator).data, offset)
        yield self.shared


@plant("test_stream_left_early")
class NeverLetsGo(MemoryBackend):
    opened = 0

    @contextmanager
    def _open(self, locator, offset):
        if self.opened:
            raise Unavailable("all connections are in use")
        self.opened += 1
        stream = MemoryStream(self.space, self._stored(locator).data, offset)
        yield stream
        self.opened -= stream.position == len(stream.data)


@plant("test_callers_error_passes_unchanged")
class TakesTheCallersErrorForItsOwn(MemoryBackend):
    @contextmanager
    def _open(self, locator, offset):
        try:
            yield MemoryStream(self.space, self._stored(locator).data, offset)
        except Exception as error:
            raise Unavailable("the connection broke") from error


@plant("test_stat_tells_the_truth")
class StatesTheWrongSize(MemoryBackend):
    def _stat(self, locator):
        return replace(super()._stat(locator), size=12345)


@plant("test_stat_tells_the_truth")
class StatesTheBundleDigestForTheArchives(MemoryBackend):
    def _stat(self, locator):
        found = super()._stat(locator)
        return replace(found, archive_sha256=found.bundle_sha256)


@plant("test_absent_is_not_found")
class DeniesWhatIsAbsent(MemoryBackend):
    def _stored(self, locator):
        try:
            return super()._stored(locator)
        except NotFound:
            raise AccessDenied("403") from None


@plant("test_absent_is_not_found")
class LetsAKeyErrorOut(MemoryBackend):
    def _stored(self, locator):
        return self.space.items[locator]


@plant("test_ref_leads_back")
class ResolvesToAnAlias(MemoryBackend):
    def _resolve(self, ref):
        return Locator(super()._resolve(ref).upper())


@plant("test_ref_leads_back")
class RefIsTwoWords(MemoryBackend):
    def _ref(self, locator):
        return f"{PREFIX}{locator} "

    def _resolve(self, ref):
        return super()._resolve(ref.strip())


@plant("test_another_instance_reads_it")
class KeepsItToItself(MemoryBackend):
    def __init__(self, settings=None, context=None):
        super().__init__(MemorySettings(), context)


@plant("test_offset")
class IgnoresTheOffset(HidesSize):
    @contextmanager
    def _open(self, locator, offset):
        yield MemoryStream(self.space, self._stored(locator).data, 0)


@plant("test_offset")
class IsOffByOne(HidesSize):
    @contextmanager
    def _open(self, locator, offset):
        yield MemoryStream(self.space, self._stored(locator).data, offset and offset + 1)


@plant("test_offset_past_the_end")
class HasNothingBehindTheEnd(HidesSize):
    """The base would raise nothing either: without a size only the backend can know."""


@plant("test_hostile_ref")
class StumblesOverARef(MemoryBackend):
    def _resolve(self, ref):
        return super()._resolve(ref.encode().decode())


@plant("test_hostile_ref")
class FindsSomethingForAnything(MemoryBackend):
    def _resolve(self, ref):
        return Locator(ref)

    def _stat(self, locator):
        return Artifact(locator)


@plant("test_rot_is_not_hidden")
class ServesFromACache(MemoryBackend):
    def __init__(self, settings=None, context=None):
        super().__init__(settings, context)
        self.cache = {}

    @contextmanager
    def _open(self, locator, offset):
        data = self.cache.setdefault(locator, self._stored(locator).data)
        yield MemoryStream(self.space, data, offset)


@plant("test_trouble_while_reading")
class LetsAForeignErrorOutWhileReading(MemoryBackend):
    def _translate(self, error):
        return None

    def _stat(self, locator):
        try:
            return super()._stat(locator)
        except Exception as error:
            raise super()._translate(error) or error from error


@plant("test_trouble_while_reading")
class TakesTroubleForAbsence(MemoryBackend):
    def _stat(self, locator):
        try:
            return super()._stat(locator)
        except Exception:
            raise NotFound("there is no such artifact") from None


@plant("test_refused_credentials")
class TakesRefusalForAbsence(MemoryBackend):
    def _translate(self, error):
        found = super()._translate(error)
        return NotFound("there is no such artifact") if isinstance(found, AccessDenied) else found


@plant("test_trouble_while_listing")
class ListsUntilTroubleComes(MemoryBackend):
    def _list(self, after):
        try:
            yield from super()._list(after)
        except Exception:
            return


@plant("test_trouble_while_storing")
class SaysThatItIsStored(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        try:
            return super()._put(source, new, resume, on_reserved)
        except Exception as error:
            if self._translate(error) is None:
                raise
            return Artifact(Locator(source.archive_sha256)), False


# -- storing


@plant("test_put_returns_what_it_stored")
class ReturnsAnotherSize(MemoryBackend):
    def _commit(self, locator, stored):
        artifact, created = super()._commit(locator, stored)
        return replace(artifact, size=1), created


@plant("test_put_returns_what_it_stored")
class TakesAShortReadForTheEnd(MemoryBackend):
    def _read(self, source):
        data = b""
        with source.open() as stream:
            while True:
                piece = stream.read(1000)
                data += piece
                if len(piece) < 1000:
                    return data


@plant("test_same_archive_again")
class CreatesTwice(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        artifact, _ = super()._put(source, new, resume, on_reserved)
        self._read(source)
        return artifact, True


@plant("test_another_archive")
class HasOnePlaceForAll(MemoryBackend):
    def _commit(self, locator, stored):
        self.space.items.clear()
        return super()._commit(locator, stored)


@plant("test_put_is_refused_where_it_is_not_possible")
class StoresWhereItCannot(Elsewhere):
    here = Capabilities(ranges=True)


@plant("test_failing_source")
class KeepsWhatItGot(MemoryBackend):
    def _read(self, source):
        data = b""
        with source.open() as stream:
            try:
                while piece := stream.read(1000):
                    data += piece
            except Exception:
                self.space.items[source.archive_sha256] = Stored(data, b"", source.bundle_sha256, None)
                raise
        return data


@plant("test_failing_source")
class StopsAtTheAnnouncedSize(MemoryBackend):
    def _read(self, source):
        data = b""
        with source.open() as stream:
            while len(data) < source.size:
                data += stream.read(source.size - len(data))
        return data


@plant("test_failing_source")
class TriesABadSourceTwiceAndGivesIn(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        try:
            return super()._put(source, new, resume, on_reserved)
        except Exception:
            return Artifact(Locator(source.archive_sha256)), False


@plant("test_failing_source_where_it_was_before")
class LeavesAnEmptyPlace(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        self.space.items.setdefault(source.archive_sha256, None)
        return self._commit(Locator(source.archive_sha256), Stored(self._read(source), b"", "", None))

    def _commit(self, locator, stored):
        self.space.items[locator] = stored
        return self._artifact(locator, stored), True

    def _stored(self, locator):
        return super()._stored(locator) or Stored(b"", b"", "", None)


@plant("test_failing_source_harms_no_other")
class CleansUpTooMuch(MemoryBackend):
    def _read(self, source):
        try:
            return super()._read(source)
        except Exception:
            self.space.items.clear()
            raise


@plant("test_nothing_is_visible_before_the_end")
class ShowsItTooEarly(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        locator = Locator(source.archive_sha256)
        stored = Stored(b"", b"", source.bundle_sha256, new.created)
        self.space.items[locator] = stored
        try:
            stored = replace(stored, data=self._read(source))
        finally:
            del self.space.items[locator]
        return self._commit(locator, stored)


@plant("test_put_reads_in_pieces")
class WantsItAllAtOnce(MemoryBackend):
    def _read(self, source):
        with source.open() as stream:
            return b"".join(iter(lambda: stream.read(2 * source.size), b""))


@plant("test_handed_over_file")
class MovesTheFileAndForgetsIt(MemoryBackend):
    def _read(self, source):
        return b"" if source.local_path else super()._read(source)


@plant("test_many_writers")
class EveryWriterCreates(MemoryBackend):
    def _commit(self, locator, stored):
        absent = locator not in self.space.items
        time.sleep(0.05)
        super()._commit(locator, stored)
        return self._artifact(locator, stored), absent


@plant("test_reserved_name_is_resumed")
class ForgetsWhatItReserved(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        if resume:
            self._stored(resume)
        return super()._put(source, new, resume, on_reserved)


@plant("test_resuming_what_is_complete")
class ResumesWhatIsComplete(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        if resume:
            self._delete(resume)
        return super()._put(source, new, resume, on_reserved)


@plant("test_it_starts_staged")
class StartsAtTheWish(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        artifact, created = super()._put(source, new, resume, on_reserved)
        self._raise_visibility(artifact.locator, new.wish or Visibility.STAGED)
        return artifact, created


@plant("test_metadata_is_kept")
class ForgetsTheOwner(MemoryBackend):
    def _commit(self, locator, stored):
        return super()._commit(locator, replace(stored, owners=()))


@plant("test_metadata_is_kept")
class HasItsOwnIdeaOfTime(MemoryBackend):
    def _commit(self, locator, stored):
        return super()._commit(locator, replace(stored, created=datetime.now(UTC)))


@plant("test_metadata_is_kept")
class KeepsOnlyPlainNames(MemoryBackend):
    def _commit(self, locator, stored):
        plain = [owner.user.encode("ascii", "ignore").decode() for owner in stored.owners]
        owners = tuple(replace(owner, user=user) for owner, user in zip(stored.owners, plain, strict=True))
        return super()._commit(locator, replace(stored, owners=owners))


@plant("test_second_writer_changes_no_metadata")
class LastWriterOwnsIt(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        found = super()._put(source, new, resume, on_reserved)
        self._set_owners(found[0].locator, lambda _owners: (Owner(new.owner),))
        return found


# -- levels


@plant("test_up_step_by_step")
class SaysItIsPublicAndIsNot(MemoryBackend):
    def _raise_visibility(self, locator, target):
        self._stored(locator)
        return target


@plant("test_straight_up")
class GoesUpOneStepAtATime(MemoryBackend):
    def _raise_visibility(self, locator, target):
        now = self._stored(locator).visibility
        step = list(Visibility)[min(now.rank + 1, 3)]
        return super()._raise_visibility(locator, min(step, target, key=lambda level: level.rank))


@plant("test_never_down")
class GoesDown(MemoryBackend):
    def _raise_visibility(self, locator, target):
        self.space.items[locator] = replace(self._stored(locator), visibility=target)
        return target


@plant("test_never_down")
class AnswersWithTheTarget(MemoryBackend):
    def _raise_visibility(self, locator, target):
        super()._raise_visibility(locator, target)
        return target


@plant("test_racing_raises_end_at_the_highest")
class LastRaiseWins(MemoryBackend):
    def _raise_visibility(self, locator, target):
        stored = self._stored(locator)
        if target.rank <= stored.visibility.rank:
            return stored.visibility
        time.sleep(0.05 * (4 - target.rank))
        self.space.items[locator] = replace(stored, visibility=target)
        return target


@plant("test_foreign_level")
class TakesAnyLevel(Elsewhere):
    here = replace(MemoryBackend.capabilities, levels=frozenset({Visibility.STAGED, Visibility.PUBLIC}))


@plant("test_foreign_level")
class RefusesALevelTooLate(TakesAnyLevel):
    def _raise_visibility(self, locator, target):
        super()._raise_visibility(locator, target)
        if target not in self.here.levels:
            raise Unsupported("no such level")
        return target


@plant("test_absent_has_no_level")
class RaisesWhatIsAbsent(MemoryBackend):
    def _raise_visibility(self, locator, target):
        return super()._raise_visibility(locator, target) if locator in self.space.items else target


@plant("test_second_put_keeps_the_level")
class SecondPutStartsAnew(MemoryBackend):
    def _put(self, source, new, resume, on_reserved):
        known = source.archive_sha256 in self.space.items
        self._delete(source.archive_sha256)
        artifact, _ = super()._put(source, new, resume, on_reserved)
        return artifact, not known


@plant("test_raising_changes_nothing_else")
class RaisingWritesNewMetadata(MemoryBackend):
    def _raise_visibility(self, locator, target):
        level = super()._raise_visibility(locator, target)
        self.space.items[locator] = replace(self._stored(locator), created=datetime.now(UTC))
        return level


# -- embargoes and descriptions


@plant("test_embargo")
class ForgetsTheEmbargoWhenRaised(ShowcaseBackend):
    def _raise_visibility(self, locator, target):
        self.space.items[locator] = replace(self._stored(locator), embargo=None)
        return super()._raise_visibility(locator, target)


@plant("test_embargo")
class ClosesEverything(ShowcaseBackend):
    def _open(self, locator, offset):
        if self.context.anonymous:
            raise AccessDenied("for its owner only")
        return super()._open(locator, offset)


@plant("test_embargo_is_told")
class KeepsTheEmbargoToItself(ShowcaseBackend):
    def _artifact(self, locator, stored):
        return replace(super()._artifact(locator, stored), embargo=None)


@plant("test_embargo_of_a_second_put")
class KeepsTheFirstEmbargo(ShowcaseBackend):
    def _closed(self, locator, new):
        return self._stat(locator)


@plant("test_embargo_of_a_second_put")
class OpensWhatNobodySpeaksOf(ShowcaseBackend):
    def _closed(self, locator, new):
        return super()._closed(locator, replace(new, wish=Visibility.PUBLIC))


@plant("test_description")
class WantsWholeNames(ShowcaseBackend):
    def rehearse(self, new, bundle_sha256, size):
        super().rehearse(new, bundle_sha256, size)
        "; ".join(creator["name"] for creator in new.description["creators"])


@plant("test_description")
class CutsTheTitle(ShowcaseBackend):
    def _artifact(self, locator, stored):
        found = super()._artifact(locator, stored)
        return replace(found, description={**found.description, "title": found.description["title"][:20]})


@plant("test_description_that_says_nothing")
class StumblesOverAMissingTitle(ShowcaseBackend):
    def rehearse(self, new, bundle_sha256, size):
        new.description["title"].strip()


@plant("test_description_that_says_nothing")
class LooksAtTheTitleTooLate(ShowcaseBackend):
    def _put(self, source, new, resume, on_reserved):
        on_reserved(Locator(source.archive_sha256))
        return super()._put(source, new, resume, on_reserved)


@plant("test_rehearsal")
class RehearsesForReal(ShowcaseBackend):
    def rehearse(self, new, bundle_sha256, size):
        super().rehearse(new, bundle_sha256, size)
        bundle = make_bundle()
        stored = Stored(bundle.archive, bundle.manifest, bundle.bundle_sha256, new.created)
        self.space.items.setdefault(bundle.archive_sha256, stored)


@plant("test_rehearsal")
class RehearsesNothing(ShowcaseBackend):
    def _put(self, source, new, resume, on_reserved):
        super().rehearse(new, "", source.size)
        return super()._put(source, new, resume, on_reserved)

    def rehearse(self, new, bundle_sha256, size):
        pass


@plant("test_own_refs")
class DisownsItsRefs(MemoryBackend):
    def is_own(self, ref):
        return False


@plant("test_own_refs")
class OwnsEveryRef(MemoryBackend):
    def is_own(self, ref):
        return True


# -- listing and deleting


@plant("test_empty_store_lists_nothing")
class CannotListNothing(MemoryBackend):
    def _list(self, after):
        if not self.space.items:
            raise NotFound("there is no such folder")
        yield from super()._list(after)


@plant("test_listing_is_complete")
class ListsOnePage(MemoryBackend):
    def _list(self, after):
        for locator, stored in self._page(after):
            yield self._artifact(locator, stored), locator


@plant("test_listing_is_complete")
class DropsTheLastOfEachPage(MemoryBackend):
    def _list(self, after):
        while page := self._page(after):
            for locator, stored in page[:-1] or page:
                yield self._artifact(locator, stored), locator
            after = page[-1][0]


@plant("test_listing_is_complete")
class ListsThePagesEdgeTwice(MemoryBackend):
    def _list(self, after):
        while page := self._page(after):
            for locator, stored in [*page, page[-1]]:
                after = locator
                yield self._artifact(locator, stored), after


@plant("test_listing_is_complete")
class ListsWrongSizes(MemoryBackend):
    def _list(self, after):
        for artifact, cursor in super()._list(after):
            yield replace(artifact, size=artifact.size // 1024 * 1024), cursor


@plant("test_cursor_continues")
class IgnoresTheCursor(MemoryBackend):
    def _list(self, after):
        return super()._list(None)


@plant("test_cursor_continues")
class CursorOfThePage(MemoryBackend):
    def _list(self, after):
        while page := self._page(after):
            after = page[-1][0]
            for locator, stored in page:
                yield self._artifact(locator, stored), after


@plant("test_listing_agrees_with_stat")
class ListsOldLevels(MemoryBackend):
    def _list(self, after):
        for artifact, cursor in super()._list(after):
            yield replace(artifact, visibility=Visibility.STAGED), cursor


@plant("test_listing_is_refused_where_it_is_not_possible")
class ListsNothingWhereItCannot(Elsewhere):
    here = replace(MemoryBackend.capabilities, list="no")

    def _list(self, after):
        return iter(())


@plant("test_deleted_is_gone")
class DeletesTheMetadataOnly(MemoryBackend):
    deleted = None

    def _delete(self, locator):
        self.deleted = locator

    def _stat(self, locator):
        if locator == self.deleted:
            raise NotFound("deleted")
        return super()._stat(locator)


@plant("test_deleted_is_gone")
class StillListsWhatIsDeleted(MemoryBackend):
    gone = ()

    def _delete(self, locator):
        self.gone = ((locator, self._stored(locator)),)
        super()._delete(locator)

    def _page(self, after):
        return super()._page(after) or (self.gone if after is None else ())


@plant("test_delete_again")
class CannotDeleteWhatIsAbsent(MemoryBackend):
    def _delete(self, locator):
        self._stored(locator)
        super()._delete(locator)


@plant("test_delete_harms_no_other")
class DeletesTheFolder(MemoryBackend):
    def _delete(self, locator):
        self.space.items.clear()


GRAVES = {}


@plant("test_stored_again_after_delete")
class RisesFromTheGrave(MemoryBackend):
    def _delete(self, locator):
        GRAVES[locator] = self.space.items.pop(locator)

    def _commit(self, locator, stored):
        return super()._commit(locator, GRAVES.get(locator, stored))


@plant("test_published_is_not_deleted")
class DeletesWhatIsPublished(Elsewhere):
    here = replace(MemoryBackend.capabilities, delete="unpublished")


@plant("test_delete_is_refused_where_it_is_not_possible")
class DeletesWhereItCannot(Elsewhere):
    here = replace(MemoryBackend.capabilities, delete="no")


# -- manners


@plant("test_declared_is_implemented")
class CanMoreThanItDeclares(MemoryBackend):
    capabilities = replace(MemoryBackend.capabilities, delete="no")


@plant("test_declared_is_implemented")
class DeclaresMoreThanItCan(MemoryBackend):
    _list = Backend._list


@plant("test_declared_is_implemented")
class HasLevelsButNoVisibility(MemoryBackend):
    capabilities = replace(MemoryBackend.capabilities, levels=frozenset())


@plant("test_probe_stays_within_the_class")
class PromisesMoreHereThanAnywhere(MemoryBackend):
    capabilities = replace(MemoryBackend.capabilities, visibility="recorded", list="eventual")

    def _probe(self):
        return MemoryBackend.capabilities


@plant("test_probe_stays_within_the_class")
class ChangesItsMind(MemoryBackend):
    asked = 0

    def _probe(self):
        self.asked += 1
        return replace(self.capabilities, ranges=self.asked % 2 == 0)


@plant("test_name")
class HasABadName(MemoryBackend):
    name = "My Memory"


class LaxSettings(BaseModel):
    space: str = "lax"
    token: SecretStr = SecretStr("open-sesame-memory")
    page: int = 10


@plant("test_settings")
class TakesAnySetting(MemoryBackend):
    Settings = LaxSettings

    def __init__(self, settings=None, context=None):
        super().__init__(settings or LaxSettings(), context)


@plant("test_settings")
class HasAliasesForNothing(MemoryBackend):
    aliases = {"tokn": ("MEMORY_TOKEN",)}


@plant("test_no_secret_is_shown")
class PutsTheTokenIntoTheRef(MemoryBackend):
    def _ref(self, locator):
        return f"{PREFIX}{locator}?{self.settings.token.get_secret_value()}"

    def _resolve(self, ref):
        return super()._resolve(ref.partition("?")[0])


@plant("test_no_secret_is_shown")
class PutsTheTokenIntoAnError(MemoryBackend):
    def _resolve(self, ref):
        try:
            return super()._resolve(ref)
        except NotFound:
            raise NotFound(f"{ref} (with {self.settings.token.get_secret_value()})") from None


class OpenSettings(MemorySettings):
    def __repr__(self):
        return f"OpenSettings({self.token.get_secret_value()})"


@plant("test_no_secret_is_shown")
class ShowsItsSettings(MemoryBackend):
    def __init__(self, settings=None, context=None):
        super().__init__(settings or OpenSettings(), context)


@plant("test_errors_name_the_backend")
class BlamesAnother(MemoryBackend):
    def _stored(self, locator):
        try:
            return super()._stored(locator)
        except NotFound as error:
            error.backend = "boto"
            raise


@plant("test_close_twice")
class ClosesOnce(MemoryBackend):
    closed = False

    def _close(self):
        if self.closed:
            raise Unavailable("closed already")
        self.closed = True


@plant("test_manifest")
class WritesTheManifestAnew(MemoryBackend):
    def manifest(self, locator):
        return json.dumps(json.loads(super().manifest(locator))).encode()


@plant("test_manifest_of_what_is_absent")
class HasAManifestForAnything(MemoryBackend):
    def manifest(self, locator):
        return self.space.items[locator].manifest if locator in self.space.items else b""


@plant("test_local_path")
class NamesAnotherFile(MemoryBackend):
    def local_path(self, locator):
        return Path(__file__).absolute()


@plant("test_workdir")
class NamesAFolderThatIsNotThere(MemoryBackend):
    def workdir(self):
        return Path("/no/such/folder")


@plant("test_provider_checksum")
class HasAChecksumOfParts(MemoryBackend):
    def provider_checksum(self, locator):
        algorithm, digits = super().provider_checksum(locator)
        return algorithm, digits + "-1"


@plant("test_direct_url")
class HasAUrlForItselfOnly(MemoryBackend):
    def direct_url(self, locator, ttl):
        return PREFIX + locator


@plant("test_owners")
class CountsOwnersTwice(MemoryBackend):
    def claim(self, locator, user):
        self._set_owners(locator, lambda owners: (*owners, Owner(user)))


@plant("test_owners")
class NeverDisclaims(MemoryBackend):
    def disclaim(self, locator, user):
        pass


@plant("test_own_levels")
class RaisesEverybody(MemoryBackend):
    def raise_own(self, locator, user, target):
        self._set_owners(locator, lambda owners: tuple(replace(owner, visibility=target) for owner in owners))
        return target


@plant("test_own_levels")
class KeepsOnlyTheLastLevel(MemoryBackend):
    def _level(self, stored):
        return stored.owners[-1].visibility if stored.owners else stored.visibility


@plant("test_last_owner_takes_the_artifact_along")
class KeepsWhatNobodyOwns(MemoryBackend):
    def disclaim(self, locator, user):
        self._set_owners(locator, lambda owners: tuple(owner for owner in owners if owner.user != user))


@plant("test_owners_of_what_is_absent")
class OwnsWhatIsAbsent(MemoryBackend):
    def claim(self, locator, user):
        if locator in self.space.items:
            super().claim(locator, user)


@plant("test_made_up_locator")
class BelievesInAnyLocator(MemoryBackend):
    def _stored(self, locator):
        if not locator[0].isalnum():
            raise NotFound("no")
        return super()._stored(locator)


# -- not bugs, but uses of a knob; the named case must not just pass


class Knows(MemoryHooks):
    known_failures = {"test_name": "a reason", "test_round_trip": "of every size"}


class KnowsNoSuchCase(MemoryHooks):
    known_failures = {"test_nmae": "a reason"}


@plant("test_round_trip", Knows)
class PassesWhereItShouldFail(MemoryBackend):
    """A known failure that passes is one that nobody would notice coming back."""


@plant("test_name", KnowsNoSuchCase)
class NamesNoCase(MemoryBackend):
    """A known failure by a name that is no case."""


# -- the test


class PlantedNothing(MemoryHooks, BackendContract):
    @pytest.fixture
    def backend(self):
        return MemoryBackend()


class PlantedKnownFailure(Knows, BackendContract):
    @pytest.fixture
    def backend(self):
        return HasABadName()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs all planted bugs in one child process: {class: {case: outcome of its worst parameter}}."""
    report = tmp_path_factory.mktemp("planted") / "report.xml"
    nodes = [f"{__file__}::{name}::{case}" for name, case in PLANTED.items()]
    nodes += [f"{__file__}::PlantedNothing", f"{__file__}::PlantedKnownFailure::test_name"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
    run = subprocess.run(
        [*command, "-o", "python_classes=Planted*", *nodes],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    found = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest just wrote it
        name = case.get("classname").rpartition(".")[2]
        found.setdefault(name, {}).setdefault(case.get("name").partition("[")[0], set()).add(outcome_of(case))
    return found


def outcome_of(case):
    for tag in "error", "failure", "skipped":
        if (element := case.find(tag)) is not None:
            return "xfailed" if element.get("type") == "pytest.xfail" else tag
    return "passed"


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_bug_is_caught(outcomes, name):
    expected = {"error"} if name == "PlantedNamesNoCase" else {"failure"}
    assert outcomes[name][PLANTED[name]] & expected, outcomes[name]


def test_without_a_bug_nothing_fails(outcomes):
    assert set().union(*outcomes["PlantedNothing"].values()) <= {"passed", "skipped"}


def test_a_known_failure_is_told_apart(outcomes):
    assert outcomes["PlantedKnownFailure"]["test_name"] == {"xfailed"}


def test_each_case_has_caught_something():
    """A case that no planted bug fails may be one that cannot fail."""
    cases = {name for name in dir(BackendContract) if name.startswith("test_")}
    assert cases == set(PLANTED.values())
