"""Misspells its hook."""

from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


@hookimpl
def ari_backend():
    return [BackendSpec("misspelled", "nowhere:Nothing", "never used", lambda _ref: Claim.NO, api=1)]
