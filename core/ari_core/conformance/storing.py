"""Cases about put: all or nothing, once."""

# ruff: noqa: S101, PLR2004 - these are tests

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ari_core.conformance.bundles import Bundle, BundleSource, make_bundle
from ari_core.conformance.knobs import (
    REFUSED,
    Knobs,
    assert_claims,
    assert_holds,
    is_absent,
    need,
    need_put,
    together,
    users,
)
from ari_core.contract import (
    CHUNK,
    Artifact,
    Backend,
    Capabilities,
    Locator,
    SupportsOwnRefs,
    SupportsRehearsal,
    SupportsWorkdir,
    Visibility,
)
from ari_core.errors import (
    AlreadyExists,
    AriError,
    ConfigurationError,
    InvalidConfiguration,
    NotFound,
    Unsupported,
)

BAD_SOURCES: dict[str, Callable[[Bundle], BundleSource]] = {
    "dies at once": lambda bundle: bundle.source(b""),
    "dies midway": lambda bundle: bundle.source(bundle.archive[: CHUNK + 5]),
    "is short": lambda bundle: bundle.source(bundle.archive[:-1]),
    "is long": lambda bundle: bundle.source(bundle.archive + b"\0"),
    "sends other bytes": lambda bundle: bundle.source(b"\x1f" * len(bundle.archive)),
    "dies before it ends": lambda bundle: bundle.source(fails=True),
}
PATIENCE = 20.0  # seconds for a look at the store while it takes an archive


class Storing(Knobs):
    """Storing, and failing to."""

    def test_put_returns_what_it_stored(self, backend: Backend, can: Capabilities) -> None:
        """The first put creates, and describes what is there."""
        need_put(can)
        bundle = make_bundle()
        artifact, created = backend.put(bundle.source(), self.new(backend))
        assert created is True
        assert_claims(artifact, artifact.locator, bundle)
        assert_holds(backend, artifact.locator, bundle)

    def test_same_archive_again(self, backend: Backend, can: Capabilities) -> None:
        """The same archive again creates nothing and leads to the same place, from any instance."""
        need_put(can)
        bundle = make_bundle()
        first, _ = backend.put(bundle.source(), self.new(backend))
        again, created = backend.put(bundle.source(), self.new(backend, "grace"))
        assert (again.locator, created) == (first.locator, False)
        with self.reopen(backend) as other:
            again, created = other.put(bundle.source(), self.new(other))
            assert (again.locator, created) == (first.locator, False)
        assert_holds(backend, first.locator, bundle)

    def test_another_archive(self, backend: Backend, can: Capabilities) -> None:
        """Another archive takes its own place, or is refused where the store is full; the first one stays."""
        need_put(can)
        one, two = make_bundle(seed=1), make_bundle(seed=2)
        first = backend.put(one.source(), self.new(backend))[0].locator
        if self.room_for(2) == 2:
            second, created = backend.put(two.source(), self.new(backend))
            assert created
            assert second.locator != first
            assert_holds(backend, second.locator, two)
        else:
            with pytest.raises(AlreadyExists):
                backend.put(two.source(), self.new(backend))
        assert_holds(backend, first, one)

    def test_put_is_refused_where_it_is_not_possible(self, backend: Backend, can: Capabilities) -> None:
        """A store that takes no artifacts refuses them."""
        need(not can.put, "the store takes artifacts")
        with pytest.raises(REFUSED if backend.capabilities.put else Unsupported):
            backend.put(make_bundle().source(), self.new(backend))

    @pytest.mark.parametrize("how", BAD_SOURCES)
    def test_failing_source(self, backend: Backend, can: Capabilities, how: str) -> None:
        """A source that fails comes out as it is, leaves nothing, and a good one is stored afterwards."""
        need_put(can)
        bundle = make_bundle(2 * CHUNK)
        reserved: list[Locator] = []
        source = BAD_SOURCES[how](bundle)
        with pytest.raises(type(source.error)) as caught:
            backend.put(source, self.new(backend), on_reserved=reserved.append)
        assert caught.value is source.error
        if can.list != "no":
            assert not list(backend.list())
        for locator in reserved:
            assert is_absent(backend, locator)
        artifact, created = backend.put(
            bundle.source(), self.new(backend), resume=reserved[-1] if reserved else None
        )
        assert created, "what a failed put left behind passes for the archive"
        assert_holds(backend, artifact.locator, bundle)

    @pytest.mark.parametrize("how", BAD_SOURCES)
    def test_failing_source_where_it_was_before(self, backend: Backend, can: Capabilities, how: str) -> None:
        """After a failed put, the place where the archive was once stays empty."""
        need_put(can)
        need(can.delete != "no", "the store deletes nothing here")
        bundle = make_bundle(2 * CHUNK)
        locator = backend.put(bundle.source(), self.new(backend))[0].locator
        ref = backend.ref(locator)
        backend.delete(locator)
        source = BAD_SOURCES[how](bundle)
        with pytest.raises(type(source.error)):
            backend.put(source, self.new(backend))
        assert is_absent(backend, locator)
        with pytest.raises(NotFound):
            backend.stat(backend.resolve(ref))

    def test_failing_source_harms_no_other(self, backend: Backend, can: Capabilities) -> None:
        """A failed put leaves what is stored already as it was."""
        need_put(can)
        one, two = make_bundle(seed=1), make_bundle(seed=2)
        locator = backend.put(one.source(), self.new(backend))[0].locator
        source = two.source(two.archive[:1000])
        with pytest.raises((type(source.error), AlreadyExists)):
            backend.put(source, self.new(backend))
        assert_holds(backend, locator, one)

    def test_nothing_is_visible_before_the_end(self, backend: Backend, can: Capabilities) -> None:
        """While an archive is being sent, up to its last byte, nobody sees it."""
        need_put(can)
        bundle = make_bundle(2 * CHUNK)
        known: list[Locator] = []
        if can.delete != "no":
            known.append(backend.put(bundle.source(), self.new(backend))[0].locator)
            backend.delete(known[0])
        need(known or can.list != "no", "the store neither deletes nor lists: there is no way to look")
        seen: list[str] = []

        def look() -> None:
            if can.list != "no" and list(backend.list()):
                seen.append("it is listed")
            for locator in known:
                try:
                    backend.stat(locator)
                except NotFound:
                    continue
                seen.append("stat finds it")

        def look_aside() -> None:
            # In its own thread: a store that serves one call at a time would wait for itself for ever.
            observer = threading.Thread(target=look, daemon=True)
            observer.start()
            observer.join(PATIENCE)

        _, created = backend.put(bundle.source(at_end=look_aside), self.new(backend), on_reserved=known.append)
        assert created
        assert not seen

    def test_put_reads_in_pieces(self, backend: Backend, can: Capabilities) -> None:
        """Memory stays bounded: an archive is never asked for as a whole."""
        need_put(can)
        source = make_bundle(self.large).source()
        backend.put(source, self.new(backend))
        assert source.largest_read <= self.longest_read

    def test_handed_over_file(self, backend: Backend, can: Capabilities, tmp_path: Path) -> None:
        """A file that core hands over is stored like any other source, and stays as it was."""
        need_put(can)
        workdir = backend.optional(SupportsWorkdir)
        bundle = make_bundle(CHUNK)
        path = (workdir.workdir() if workdir else tmp_path) / "handed-over.tar.gz"
        path.write_bytes(bundle.archive)
        try:
            artifact, created = backend.put(bundle.source(local_path=path), self.new(backend))
            assert path.read_bytes() == bundle.archive
        finally:
            path.unlink(missing_ok=True)
        assert created
        assert_holds(backend, artifact.locator, bundle)

    def test_many_writers(self, backend: Backend, can: Capabilities) -> None:
        """Many writers of one archive all succeed, and what is there is whole."""
        need_put(can)
        bundle = make_bundle(2 * CHUNK)

        def write() -> tuple[Artifact, bool]:
            return backend.put(bundle.source(), self.new(backend))

        results = together(*[write] * self.threads)
        creators = sum(created for _, created in results)
        assert creators == 1 if can.exclusive_create else creators >= 1
        places = {artifact.locator for artifact, _ in results}
        assert len(places) == 1 or not can.exclusive_create
        for place in places:
            assert_holds(backend, place, bundle)

    def test_reserved_name_is_resumed(self, backend: Backend, can: Capabilities) -> None:
        """What an interrupted put reserved is a locator that a second put goes on with."""
        need_put(can)
        bundle = make_bundle()
        reserved: list[Locator] = []
        source = bundle.source(bundle.archive[:1000])
        with pytest.raises(type(source.error)):
            backend.put(source, self.new(backend), on_reserved=reserved.append)
        need(reserved, "the store reserves no names")
        artifact, created = backend.put(bundle.source(), self.new(backend), resume=reserved[-1])
        assert created
        assert artifact.locator == reserved[-1]
        assert_holds(backend, artifact.locator, bundle)

    def test_resuming_what_is_complete(self, backend: Backend, can: Capabilities) -> None:
        """To resume what was completed after all is fine, and creates nothing."""
        need_put(can)
        bundle = make_bundle()
        locator = backend.put(bundle.source(), self.new(backend))[0].locator
        artifact, created = backend.put(bundle.source(), self.new(backend), resume=locator)
        assert (artifact.locator, created) == (locator, False)

    def test_it_starts_staged(self, backend: Backend, can: Capabilities) -> None:
        """A new artifact is staged, whatever the author wishes in the end."""
        need_put(can)
        need(can.visibility != "none", "the store knows no visibility")
        artifact, _ = backend.put(make_bundle().source(), self.new(backend, wish=Visibility.PUBLIC))
        assert artifact.visibility in {None, Visibility.STAGED}
        assert backend.stat(artifact.locator).visibility is Visibility.STAGED

    @pytest.mark.parametrize("owner", ["ada", "Zoë O'Neil <zoe@example.org>", None])
    def test_metadata_is_kept(self, backend: Backend, can: Capabilities, owner: str | None) -> None:
        """Owner and time of creation are the ones that were given, also for another instance."""
        need_put(can)
        need(can.stores_meta, "the store keeps no metadata")
        given = self.new(backend, owner)
        locator = backend.put(make_bundle().source(), given)[0].locator
        with self.reopen(backend) as other:
            for found in backend.stat(locator), other.stat(locator):
                assert users(found) == ([owner] if owner else [])
                assert found.created == given.created

    def test_second_writer_changes_no_metadata(self, backend: Backend, can: Capabilities) -> None:
        """Whoever puts the same archive again does not become its owner by that."""
        need_put(can)
        need(can.stores_meta, "the store keeps no metadata")
        bundle = make_bundle()
        locator = backend.put(bundle.source(), self.new(backend, "ada"))[0].locator
        before = backend.stat(locator)
        backend.put(bundle.source(), self.new(backend, "mallory"))
        assert backend.stat(locator) == before

    # -- descriptions --------------------------------------------------------------------------------------------

    def test_description(self, backend: Backend, can: Capabilities) -> None:
        """All that core may say of a bundle is taken, and told unchanged where it is told."""
        need_put(can)
        need(backend.describes, "the store shows people nothing")
        bundle = make_bundle()
        artifact, created = backend.put(bundle.source(), self.new(backend))
        assert created
        for found in artifact, backend.stat(artifact.locator):
            assert found.description in (None, self.description)

    def test_description_that_says_nothing(self, backend: Backend, can: Capabilities) -> None:
        """A description that is not enough is refused before anything is reserved or read."""
        need_put(can)
        need(backend.describes, "the store shows people nothing")
        source = make_bundle().source()
        reserved: list[Locator] = []
        try:
            backend.put(source, self.new(backend, description={}), on_reserved=reserved.append)
        except (ConfigurationError, InvalidConfiguration):
            assert (reserved, source.reads) == ([], 0)
            assert backend.put(make_bundle().source(), self.new(backend))[1]

    def test_own_refs(self, backend: Backend, can: Capabilities) -> None:
        """A store that tells its own refs knows what it gave, and nothing of another kind."""
        need_put(can)
        has = backend.optional(SupportsOwnRefs)
        need(has, "no SupportsOwnRefs")
        assert has
        artifact, _ = backend.put(make_bundle().source(), self.new(backend))
        assert has.is_own(backend.ref(artifact.locator))
        assert not has.is_own("no-such-scheme:7")

    def test_rehearsal(self, backend: Backend, can: Capabilities) -> None:
        """A rehearsal refuses what a put refuses at once, and nothing else, and stores nothing."""
        need_put(can)
        has = backend.optional(SupportsRehearsal)
        need(has, "no SupportsRehearsal")
        assert has
        bundle = make_bundle()
        for size in None, len(bundle.archive):
            has.rehearse(self.new(backend), bundle.bundle_sha256, size)
        assert backend.put(bundle.source(), self.new(backend))[1], "the rehearsal was for real"
        bare = self.new(backend, description={})
        outcomes, other = [], make_bundle(seed=2)
        for call in (
            lambda: has.rehearse(bare, other.bundle_sha256, None),
            lambda: backend.put(other.source(), bare),
        ):
            try:
                call()
                outcomes.append("")
            except AriError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
