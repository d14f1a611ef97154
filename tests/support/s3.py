"""The s3 backend on a store of `support.stores`, and what lies in its bucket."""

from datetime import UTC, datetime

from ari_backends.s3.backend import S3
from ari_backends.s3.promises import MEMORY, Promises
from ari_core.contract import OpenContext

REMEMBERED = {}
"""What writers who raced found out about each kind of store: once for all tests of a process."""


def s3(store, *, warn=lambda _line: None, turn=None, spool=None, patience=None, known=True, **more):
    """Opens the backend. With `known` its store remembers what a trial found."""
    settings = {
        "bucket": store.bucket,
        "endpoint_url": store.endpoint_url,
        "region": store.region,
        "access_key_id": store.access_key,
        "secret_access_key": store.secret_key,
        **more,
    }
    backend = S3(S3.Settings(**settings), OpenContext(warn=warn, turn=turn, spool=spool, patience=patience))
    if known and backend.settings.bucket:
        remember(store, backend)
    return backend


def remember(store, backend):
    """Puts into a bucket what a trial would find out about its store."""
    client = backend._client
    if Promises.load(client) is None:
        if store.name not in REMEMBERED:
            REMEMBERED[store.name] = Promises.trial(client)
        remembered = REMEMBERED[store.name].model_copy(update={"tried": datetime.now(UTC)})
        client.put(client.key(MEMORY), remembered.model_dump_json().encode())


def keys(backend, *, all_of_them=False):
    """Returns the keys below the prefix, without what a trial left for ever."""
    found = (entry.key for entry in backend._client.keys(backend._client.key("")))
    return [key for key in found if all_of_them or not key.endswith(MEMORY)]


def names(backend, bundle):
    """Returns what lies there of one bundle."""
    return [key.rpartition("/")[2] for key in keys(backend) if bundle.archive_sha256 in key]


def raw(backend, bundle, name):
    """Returns the bytes of one object of a bundle."""
    return backend._client.read(key_in(backend, bundle, name), 1 << 30)[0]


def key_in(backend, bundle, name):
    return backend._client.key("artifacts", bundle.archive_sha256, name)
