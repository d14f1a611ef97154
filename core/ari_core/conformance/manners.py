"""Cases about declarations, settings, secrets, closing, and the optional protocols."""

# ruff: noqa: S101 - assert is how tests assert

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from ari_core.conformance.bundles import make_bundle
from ari_core.conformance.knobs import Knobs, assert_same, is_absent, need, users
from ari_core.contract import (
    CHUNK,
    Backend,
    Locator,
    SupportsDirectUrl,
    SupportsLocalPath,
    SupportsManifest,
    SupportsOwners,
    SupportsProviderChecksum,
    SupportsWorkdir,
    Visibility,
)
from ari_core.errors import AriError, BackendBug, BackendError, NotFound, Unsupported
from ari_core.wrappers import Wrapper

_SHORTEST_SECRET = 4  # shorter ones turn up in any text by chance


def secrets_of(settings: BaseModel) -> list[str]:
    """Returns the secrets that settings hold."""
    found = []
    for name in type(settings).model_fields:
        match getattr(settings, name):
            case SecretStr() as secret:
                found.append(secret.get_secret_value())
            case SecretBytes() as secret:
                found.append(secret.get_secret_value().decode("utf-8", "replace"))
            case BaseModel() as inner:
                found += secrets_of(inner)
    return [secret for secret in found if len(secret) >= _SHORTEST_SECRET]


class Manners(Knobs):
    """What else a backend owes."""

    def test_declared_is_implemented(self, backend: Backend) -> None:
        """What the class declares it has, and what it has it declares."""
        while isinstance(backend, Wrapper):
            backend = backend.inner
        most = backend.capabilities
        declared = {
            "_put": most.put,
            "_delete": most.delete != "no",
            "_list": most.list != "no",
            "_raise_visibility": most.visibility != "none",
        }
        for method, present in declared.items():
            implemented = getattr(type(backend), method) is not getattr(Backend, method)
            assert implemented == present, f"{method}: declared {present}, implemented {implemented}"
        assert bool(most.levels) == (most.visibility != "none"), "visibility and levels go together"

    def test_probe_stays_within_the_class(self, backend: Backend) -> None:
        """A store does at most what its class declares, and says the same when asked again."""
        found = backend.probe()
        assert not found.beyond(backend.capabilities)
        assert backend.probe() == found

    def test_name(self, backend: Backend) -> None:
        """The name fits behind ``--backend`` and into the name of a variable."""
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", backend.name)

    def test_settings(self, backend: Backend) -> None:
        """Settings are a model that refuses what it does not know, and aliases name its fields."""
        assert issubclass(backend.Settings, BaseModel)
        assert isinstance(backend.settings, backend.Settings)
        with pytest.raises(ValidationError) as caught:
            backend.Settings.model_validate({"no_such_setting": "1"})
        assert "extra_forbidden" in {error["type"] for error in caught.value.errors()}
        assert backend.aliases.keys() <= backend.Settings.model_fields.keys()
        assert set(backend.reader_settings) <= backend.Settings.model_fields.keys()

    def test_no_secret_is_shown(self, backend: Backend) -> None:
        """No secret is in a representation, a locator, a ref or an error."""
        secrets = secrets_of(backend.settings)
        need(secrets, "the settings hold no secret: give the fixture's backend one, if it can have any")
        locator = self.seed(backend, make_bundle())
        shown = [repr(backend), repr(backend.settings), str(backend.settings), str(locator), backend.ref(locator)]
        for ref in ("", backend.ref(locator) + "-no-such-thing", "nothing-like-this"):
            try:
                backend.stat(backend.resolve(ref))
            except AriError as error:
                shown += [str(error), repr(error), str(error.hint)]
        for secret in secrets:
            if leaks := [text.replace(secret, "*****") for text in shown if secret in text]:
                pytest.fail(f"a secret (here *****) is shown: {leaks}")

    def test_errors_name_the_backend(self, backend: Backend) -> None:
        """Whoever meets an error sees which backend it came from."""
        locator = self.absent(backend)
        with pytest.raises(NotFound) as caught:
            backend.stat(locator)
        assert caught.value.backend == backend.name
        assert "\n" not in str(caught.value)

    def test_close_twice(self, backend: Backend) -> None:
        """Closing twice is fine, and so is closing what never did anything."""
        self.reopen(backend).close()
        self.seed(backend, make_bundle())
        backend.close()
        backend.close()

    # -- optional protocols --------------------------------------------------------------------------------------

    def test_manifest(self, backend: Backend) -> None:
        """The manifest is, byte for byte, the one in the bundle."""
        has = backend.optional(SupportsManifest)
        need(has, "no SupportsManifest")
        assert has
        bundle = make_bundle()
        assert has.manifest(self.seed(backend, bundle)) == bundle.manifest

    def test_manifest_of_what_is_absent(self, backend: Backend) -> None:
        """What is absent has no manifest."""
        has = backend.optional(SupportsManifest)
        need(has, "no SupportsManifest")
        assert has
        locator = self.absent(backend)
        with pytest.raises(NotFound):
            has.manifest(locator)

    def test_local_path(self, backend: Backend) -> None:
        """The local file is the archive."""
        has = backend.optional(SupportsLocalPath)
        need(has, "no SupportsLocalPath")
        assert has
        bundle = make_bundle()
        path = has.local_path(self.seed(backend, bundle))
        assert path.is_absolute()
        assert_same(path.read_bytes(), bundle.archive)

    def test_workdir(self, backend: Backend) -> None:
        """The folder to build in exists."""
        has = backend.optional(SupportsWorkdir)
        need(has, "no SupportsWorkdir")
        assert has
        assert Path(has.workdir()).is_dir()

    def test_provider_checksum(self, backend: Backend) -> None:
        """The provider's checksum is that of the archive, in an algorithm that can be repeated."""
        has = backend.optional(SupportsProviderChecksum)
        need(has, "no SupportsProviderChecksum")
        assert has
        bundle = make_bundle(CHUNK)
        locator = self.seed(backend, bundle)
        try:
            algorithm, digits = has.provider_checksum(locator)
        except Unsupported:
            pytest.skip("the store keeps no checksum of it")
        assert hashlib.new(algorithm, bundle.archive, usedforsecurity=False).hexdigest() == digits

    def test_direct_url(self, backend: Backend) -> None:
        """A direct URL is one word with a scheme that a browser can follow; what is absent has none."""
        has = backend.optional(SupportsDirectUrl)
        need(has, "no SupportsDirectUrl")
        assert has
        assert re.fullmatch(r"https?://\S+", has.direct_url(self.seed(backend, make_bundle()), 60.0))

    def test_owners(self, backend: Backend) -> None:
        """Owners are a set: claiming twice is claiming once, and who disclaims is out."""
        has = backend.optional(SupportsOwners)
        need(has, "no SupportsOwners")
        assert has
        locator = self.seed(backend, make_bundle())
        has.claim(locator, "ada")
        first = users(backend.stat(locator))
        for _ in range(2):
            has.claim(locator, "grace")
            assert sorted(users(backend.stat(locator))) == sorted({*first, "grace"})
        for _ in range(2):
            has.disclaim(locator, "grace")
            assert users(backend.stat(locator)) == first

    def test_own_levels(self, backend: Backend) -> None:
        """Each owner has a level of their own; the effective one is the highest, and goes with its owner."""
        has = backend.optional(SupportsOwners)
        need(has, "no SupportsOwners")
        assert has
        locator = self.seed(backend, make_bundle())
        has.claim(locator, "ada")
        before = backend.stat(locator).visibility
        has.claim(locator, "grace")
        assert has.raise_own(locator, "grace", Visibility.PUBLIC) is Visibility.PUBLIC
        has.claim(locator, "heidi")
        found = backend.stat(locator)
        assert found.visibility is Visibility.PUBLIC
        levels = {owner.user: owner.visibility for owner in found.owners or ()}
        assert levels["grace"] is Visibility.PUBLIC
        assert levels["ada"] is before
        assert has.raise_own(locator, "grace", Visibility.UNLISTED) is Visibility.PUBLIC
        has.disclaim(locator, "grace")
        assert backend.stat(locator).visibility is before

    def test_last_owner_takes_the_artifact_along(self, backend: Backend) -> None:
        """When nobody owns it any more, it is gone; disclaiming what is gone is fine."""
        has = backend.optional(SupportsOwners)
        need(has, "no SupportsOwners")
        assert has
        locator = self.seed(backend, make_bundle())
        has.claim(locator, "grace")
        for user in users(backend.stat(locator)):
            has.disclaim(locator, user)
        assert is_absent(backend, locator)
        has.disclaim(locator, "grace")

    def test_owners_of_what_is_absent(self, backend: Backend) -> None:
        """What is absent cannot be claimed."""
        has = backend.optional(SupportsOwners)
        need(has, "no SupportsOwners")
        assert has
        locator = self.absent(backend)
        with pytest.raises(NotFound):
            has.claim(locator, "grace")
        assert is_absent(backend, locator)

    def test_made_up_locator(self, backend: Backend) -> None:
        """A locator that nobody ever gave out is refused in our own words."""
        for text in ("", "no-such-locator", "../../etc/passwd", "/", "a" * 5000):
            with pytest.raises(BackendError) as caught:
                backend.stat(Locator(text))
            assert not isinstance(caught.value, BackendBug), f"{text[:40]!r}: {caught.value}"
