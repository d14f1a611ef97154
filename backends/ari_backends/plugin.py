"""Declares the built-in backends through the same hooks a third party's package uses."""

from __future__ import annotations

from ari_backends._claims import https_claims
from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


def local_tarball_claims(ref: str) -> Claim:
    """Claims any ``file:`` ref, and leaves a stored layout to whoever knows it better."""
    return Claim.SCHEME if ref[:5].lower() == "file:" else Claim.NO


@hookimpl
def ari_backends() -> list[BackendSpec]:
    """Describes the built-in backends."""
    return [
        BackendSpec(
            name="local-tarball",
            backend="ari_backends.local_tarball:LocalTarball",
            help="one bundle.tar.gz in a folder: the checkpoint, or -o out=DIR",
            claims=local_tarball_claims,
            api=0,
        ),
        BackendSpec(
            name="https",
            backend="ari_backends.https:Https",
            help="read a bundle from any web server",
            claims=https_claims,
            api=0,
        ),
    ]
