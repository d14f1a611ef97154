"""What more a store can offer, one thing each: ask with ``backend.optional(SupportsX)``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

from ari_core.contract.types import Capabilities, Leftover, Locator, NewArtifact, Share, Visibility


@runtime_checkable
class SupportsManifest(Protocol):
    """Returns the manifest faster than core, which reads it from the bundle."""

    def manifest(self, locator: Locator) -> bytes:
        """Returns the manifest, byte for byte as in the bundle."""


@runtime_checkable
class SupportsDirectUrl(Protocol):
    """Gives a URL that anybody can read the archive from for `ttl` seconds."""

    def direct_url(self, locator: Locator, ttl: float) -> str:
        """Returns a URL valid for `ttl` seconds."""


@runtime_checkable
class SupportsLocalPath(Protocol):
    """The archive is a local file."""

    def local_path(self, locator: Locator) -> Path:
        """Returns where the archive is."""


@runtime_checkable
class SupportsProviderChecksum(Protocol):
    """The provider's own checksum as ``(algorithm, hex digits)``: weak evidence, never verification."""

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns algorithm and hex digits."""


@runtime_checkable
class SupportsWorkdir(Protocol):
    """Names a folder where core should build an archive, so that storing it is a link (`Source.local_path`)."""

    def workdir(self) -> Path:
        """Returns an existing folder; creates it if need be."""


@runtime_checkable
class SupportsRehearsal(Protocol):
    """Says beforehand that an artifact would not be taken: before it is packed, and in dry runs."""

    def rehearse(self, new: NewArtifact, bundle_sha256: str, size: int | None) -> None:
        """Raises what a put of this would raise before it sends anything; changes nothing.

        Args:
            new: What would go with it.
            bundle_sha256: Of what would be stored: where that very bundle is already, nothing is in the way.
            size: Bytes of the archive, if that is known yet.

        Raises:
            BackendError: It would be refused, and why.
        """


@runtime_checkable
class SupportsOwnRefs(Protocol):
    """Tells its own refs, for stores of which there are several: a record may name one that is gone."""

    def is_own(self, ref: str) -> bool:
        """Says whether this store, as it is set, could have given this ref; asks nobody."""


@runtime_checkable
class SupportsOwners(Protocol):
    """Ownership, for stores that serve a registry. Each owner has a level of their own."""

    def claim(self, locator: Locator, user: str) -> None:
        """Makes `user` an owner too, staged; one who is one already stays as they are.

        Raises:
            NotFound: There is no such artifact.
        """

    def raise_own(self, locator: Locator, user: str, target: Visibility) -> Visibility:
        """Raises the level of one owner; returns the effective level of the artifact.

        Raises:
            NotFound: There is no such artifact, or `user` is no owner of it.
        """

    def disclaim(self, locator: Locator, user: str) -> None:
        """Removes `user` from the owners; one who is none changes nothing, and absent is fine.

        With the last one the artifact goes, in the same step.
        """


@runtime_checkable
class SupportsShare(Protocol):
    """Lets somebody without an account read one artifact, by a secret of its own."""

    def share(self, locator: Locator, expires: timedelta | None) -> Share:
        """Makes a new secret; `expires` from now, None for never.

        Raises:
            NotFound: There is no such artifact.
            AccessDenied: It is not ours to share.
        """


@runtime_checkable
class SupportsTrial(Protocol):
    """Finds out what only writers who race each other can: whether a store keeps its promises."""

    def trial(self) -> Capabilities:
        """Lets writers race in the store, keeps the outcome there for `Backend.probe`, and returns it."""


@runtime_checkable
class SupportsSweep(Protocol):
    """Finds and removes what interrupted runs left in the store, which no reader ever sees."""

    def sweep(self, older_than: timedelta, *, dry_run: bool) -> Iterator[Leftover]:
        """Yields what is older than that, each once it is removed; with `dry_run` nothing is."""


@runtime_checkable
class SupportsServing(Protocol):
    """Remembers which registry a store serves: two databases that do not know of each other would contradict."""

    def serve_for(self, registry: str, *, take_over: bool = False) -> str:
        """Notes the registry unless another one is noted, or in any case with `take_over`; returns who is."""
