"""The backend contract (API 1): what a store owes, and nothing more.

To write a backend, read `types` (what goes in and out), `backend` (what to write) and `optional` (what more a
store can offer); `guards` is what core puts between a backend and its caller.

A backend stores and returns *artifacts*: one gzip archive each, with a few facts about it. Public methods here
are final: they check arguments and capabilities, translate errors (also while a stream is read) and count bytes.
Authors write the underscore methods. Nothing here retries, verifies or caches: core does, around any backend.

A backend is synchronous, may be called from several threads, and can never mark anything as verified: every
`Artifact` it returns is a claim that core checks by hashing what it reads.

It sets a time limit on each request it sends, and raises `Unavailable` when that has passed; how long a whole
operation may take is core's business. Three things can be cancelled: a put, by its source (or `on_reserved`)
raising, a read, by leaving its ``with`` block, and a listing, by dropping it. All else should be short: core may
stop waiting for it, and then it goes on unheard in its thread.
"""

from __future__ import annotations

from ari_core.contract.backend import Backend
from ari_core.contract.guards import WatchedSource
from ari_core.contract.optional import (
    SupportsDirectUrl,
    SupportsLocalPath,
    SupportsManifest,
    SupportsOwners,
    SupportsOwnRefs,
    SupportsProviderChecksum,
    SupportsRehearsal,
    SupportsServing,
    SupportsShare,
    SupportsSweep,
    SupportsTrial,
    SupportsWorkdir,
)
from ari_core.contract.types import (
    API,
    Artifact,
    BackendSpec,
    Capabilities,
    Claim,
    CommandGroupSpec,
    Leftover,
    Locator,
    NewArtifact,
    OpenContext,
    Owner,
    Share,
    Source,
    Visibility,
)
from ari_core.streams import CHUNK, ReadStream

__all__ = [
    "API",
    "CHUNK",
    "Artifact",
    "Backend",
    "BackendSpec",
    "Capabilities",
    "Claim",
    "CommandGroupSpec",
    "Leftover",
    "Locator",
    "NewArtifact",
    "OpenContext",
    "Owner",
    "ReadStream",
    "Share",
    "Source",
    "SupportsDirectUrl",
    "SupportsLocalPath",
    "SupportsManifest",
    "SupportsOwnRefs",
    "SupportsOwners",
    "SupportsProviderChecksum",
    "SupportsRehearsal",
    "SupportsServing",
    "SupportsShare",
    "SupportsSweep",
    "SupportsTrial",
    "SupportsWorkdir",
    "Visibility",
    "WatchedSource",
]
