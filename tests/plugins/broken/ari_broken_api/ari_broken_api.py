"""Written for another API."""

from ari_core.contract import BackendSpec, Claim
from ari_core.plugins import hookimpl


@hookimpl
def ari_backends():
    return [BackendSpec("from-the-future", "nowhere:Nothing", "never used", lambda _ref: Claim.NO, api=99)]
