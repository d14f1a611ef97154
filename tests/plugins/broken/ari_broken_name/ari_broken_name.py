"""Wants a name that is taken."""

from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


@hookimpl
def ari_backends():
    return [BackendSpec("local-tarball", "nowhere:Nothing", "never used", lambda _ref: Claim.NO, api=1)]
