"""One of two packages with the same entry point, offering the same backend."""

from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


@hookimpl
def ari_backends():
    return [BackendSpec("twin", "nowhere:Nothing", "never used", lambda _ref: Claim.NO, api=1)]
