"""The zenodo backend on the simulated service."""

from ari_backends.zenodo.backend import Zenodo
from ari_core.conformance.knobs import new as anything
from ari_core.contract import OpenContext
from ari_core.wrappers import RetryBackend, RetryPolicy

DESCRIPTION = {
    "title": "Bundle of a run",
    "creators": [{"family": "Lovelace", "given": "Ada", "orcid": "0000-0002-1825-0097"}],
    "license": "CC-BY-4.0",
    "type": "dataset",
}


def zenodo(service, *, warn=lambda _line: None, anonymous=False, **settings):
    """Opens the backend, with the token of the service's first user unless another one is given."""
    given = {"base_url": service.url, "token": service.token, **settings}
    context = OpenContext(warn=warn, anonymous=anonymous)
    backend = Zenodo(Zenodo.Settings(**{k: v for k, v in given.items() if v is not None}), context)
    backend._sleep = lambda _seconds: None
    return backend


def patient(backend, waits=None):
    """What core puts around it, without the waiting; `waits` is told how long it would have been."""
    note = (lambda _seconds: None) if waits is None else waits.append
    return RetryBackend(backend, RetryPolicy(sleep=note, jitter=lambda limit: limit))


def new(**more):
    return anything(**{"description": DESCRIPTION, **more})


def number(locator):
    return locator.rpartition("/")[2]
