"""`s3`: the stored layout in a bucket, with all 64 digits of the archive digest in the key; reads any key.

A locator is ``BUCKET/PREFIX/artifacts/ID/``, or ``BUCKET/KEY#ETAG``: an object as it was when it was resolved. A
bundle's key can only be overwritten by the same bytes, so all that matters happens in ``meta.json`` (`bucket`).
What a store really promises about that is found out by writers who race (`promises`): the first put lets them.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from ari_backends.s3.bucket import NOTE_MOST, Bucket
from ari_backends.s3.client import Client
from ari_backends.s3.promises import Promises
from ari_backends.s3.settings import BUCKET, S3Settings
from ari_backends.s3.transfers import Download
from ari_core.contract import (
    Artifact,
    Capabilities,
    Leftover,
    Locator,
    NewArtifact,
    OpenContext,
    ReadStream,
    Source,
    Visibility,
)
from ari_core.digests import is_sha256
from ari_core.errors import BackendError, IntegrityError, NotFound, Unavailable, Unsupported
from ari_core.layout import ARTIFACTS, ID_DIGITS, MOST_DIGITS, Blobs, StoredLayout, key_of
from ari_core.names import BUNDLE_NAME, META_NAME, quoted

SERVING: Final = ".ari-registry.json"
"""Beside ``artifacts/``: which registry's database this store belongs to."""

_SHOWN: Final = 200
_LONGEST_KEY: Final = 1024
_LONGEST_NOTE: Final = 4096
_TRIES: Final = 10
_SCHEME: Final = "s3://"
_UNESCAPED: Final = "/!$&'()*+,;=:@~"
_OBJECT: Final = re.compile(rf"({BUCKET.pattern})/(.*[^/])", re.DOTALL)
# With the slash an id may have any number of digits: other tools choose their own.
_STORED: Final = re.compile(
    rf"({BUCKET.pattern})/(?:(.*)/)?{ARTIFACTS}/([0-9a-f]{{1,64}}/|[0-9a-f]{{16,64}})", re.DOTALL
)
_SHORT: Final = re.compile(rf"(?:.*/)?{ARTIFACTS}/[0-9a-f]{{1,{ID_DIGITS - 1}}}", re.DOTALL)


class _Object(NamedTuple):
    """Any object that is a bundle, as a pinned locator names it."""

    client: Client
    key: str
    etag: str


class S3(StoredLayout):
    """Records levels and owners; who can read is the bucket's business."""

    name = "s3"
    capabilities = Capabilities(
        put=True,
        delete="yes",
        list="immediate",
        ranges=True,
        exclusive_create=True,
        visibility="recorded",
        levels=frozenset(Visibility),
        stores_meta=True,
        atomic_updates=True,
    )
    Settings = S3Settings
    # Not for keys and profile: botocore has rules of its own for which of them counts.
    aliases = MappingProxyType(
        {
            "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        }
    )
    reader_settings = ("endpoint_url", "region", "addressing_style")
    trust_settings = ("endpoint_url", "ca_bundle", "profile")
    id_digits = MOST_DIGITS
    settings: S3Settings

    def __init__(self, settings: S3Settings, context: OpenContext | None = None) -> None:
        """Keeps the settings."""
        super().__init__(settings, context)
        self._client = Client(settings, self.context)
        self._lock = threading.Lock()
        self._known: Promises | None = None
        self._just = threading.local()

    # -- the contract, as far as the layout leaves it ------------------------------------------------------------

    def _resolve(self, ref: str) -> Locator:
        path = (
            unquote(ref[len(_SCHEME) :], errors="surrogateescape")
            if ref[: len(_SCHEME)].lower() == _SCHEME
            else ""
        )
        if stored := _STORED.fullmatch(path):
            bucket, prefix, digits = stored[1], stored[2] or "", stored[3].rstrip("/")
            place = self._place(self._client.at(bucket, prefix))
            return _stored_locator(bucket, prefix, self._find(place, digits))
        found = _OBJECT.fullmatch(path)
        if not found or not _is_key(found[2]):
            raise Unsupported(
                f"{quoted(ref[:_SHOWN])} names nothing in a bucket",
                hint=f"name an artifact, s3://BUCKET/PREFIX/{ARTIFACTS}/ID/ (ID: {ID_DIGITS} to {MOST_DIGITS} hex "
                "digits), or any object, s3://BUCKET/KEY",
            )
        client = self._client.at(found[1])
        head = client.head(found[2])
        if head is None:
            hint = "in a ref, %20 is a space and %25 a percent sign" if "%" in ref else None
            if _SHORT.fullmatch(found[2]):
                hint = f"an artifact's id has {ID_DIGITS} to {MOST_DIGITS} digits"
            raise NotFound(f"there is no {client.where(found[2])}", hint=hint)
        return Locator(f"{found[1]}/{found[2]}#{quote(head.etag, safe='')}")

    def _ref(self, locator: Locator) -> str:
        one = self._object(locator)
        if one is None:
            self._at(locator)
        return _SCHEME + quote(locator if one is None else f"{one.client.bucket}/{one.key}", safe=_UNESCAPED)

    def _probe(self) -> Capabilities:
        client = self._mine()
        if self.context.turn:  # which lets one writer through at a time, whatever the store does
            client.head_bucket()
            return self.capabilities
        return self._effective(Promises.load(client) or Promises())

    def _effective(self, promises: Promises) -> Capabilities:
        return replace(
            self.capabilities, exclusive_create=promises.create_only, atomic_updates=promises.compare_and_set
        )

    def _stat(self, locator: Locator) -> Artifact:
        one = self._object(locator)
        if one is None:
            artifact = super()._stat(locator)
        else:
            head = one.client.head(one.key)
            if head is None:
                raise NotFound(f"there is no {one.client.where(one.key)}")
            if head.etag != one.etag:
                raise IntegrityError(
                    f"{one.client.where(one.key)} was changed since it was resolved", hint="resolve the ref again"
                )
            artifact = Artifact(locator, size=head.size)
        self._just.artifact = artifact
        return artifact

    @contextmanager
    def _open(self, locator: Locator, offset: int) -> Iterator[ReadStream]:
        one = self._object(locator)
        if one is not None:
            with Download(one.client, one.key, offset, one.etag) as download:
                yield download
            return
        with super()._open(locator, offset) as stream:
            told = getattr(self._just, "artifact", None)  # `_stat` was here a moment ago, in this thread
            size = stream.size if isinstance(stream, Download) else None
            if told and told.locator == locator and told.size != size:
                raise IntegrityError(f"{quoted(locator)}: {BUNDLE_NAME} has {size} bytes instead of {told.size}")
            yield stream

    def _put(
        self, source: Source, new: NewArtifact, resume: Locator | None, on_reserved: Callable[[Locator], None]
    ) -> tuple[Artifact, bool]:
        if self.context.turn is None:
            self._prove()
        return super()._put(source, new, resume, on_reserved)

    def _list(self, after: str | None) -> Iterator[tuple[Artifact, str]]:
        # From keys alone, so owners and levels stay unknown.
        place = self._here()
        for artifact, objects in place.listing(after or ""):
            meta, bundle = objects.get(META_NAME), objects.get(BUNDLE_NAME)
            if meta is None or meta.size < NOTE_MOST:
                continue
            if bundle is None:
                self.context.warn(f"left out of the list: the artifact {artifact} has lost its {BUNDLE_NAME}")
                continue
            digest = artifact if is_sha256(artifact) else None
            yield Artifact(self._locator(artifact), size=bundle.size, archive_sha256=digest), artifact

    def _translate(self, error: Exception) -> BackendError | None:
        return self._client.translate(error)

    def _close(self) -> None:
        self._client.close()

    def _here(self) -> Bucket:
        return self._place(self._mine())

    def _at(self, locator: Locator) -> tuple[Blobs, str]:
        match = _STORED.fullmatch(locator)
        if match and locator.endswith("/"):
            return self._place(self._client.at(match[1], match[2] or "")), match[3].rstrip("/")
        if self._object(locator):
            raise Unsupported(f"{quoted(locator[:_SHOWN])} is a single object: it has neither levels nor owners")
        raise NotFound(f"{quoted(locator[:_SHOWN])} names no artifact in a bucket")

    def _to_change(self, locator: Locator) -> tuple[Blobs, str]:
        place, artifact = self._at(locator)
        if self._locator(artifact) != locator:  # a ref may come with a stranger's record
            mine = self._mine()
            raise Unsupported(
                f"{quoted(locator)} is not in {mine.where(mine.key(''))}; it was not touched",
                hint="name the place that it is in: -o bucket=NAME -o prefix=PREFIX",
            )
        if self.context.turn is None:
            self._prove()
        return place, artifact

    def _locator(self, artifact: str) -> Locator:
        mine = self._mine()
        return _stored_locator(mine.bucket, mine.prefix, artifact)

    def _object(self, locator: Locator) -> _Object | None:
        path, hash_, etag = locator.rpartition("#")
        match = _OBJECT.fullmatch(path)
        if locator.endswith("/") or not hash_ or not match or not _is_key(match[2]):
            return None
        return _Object(self._client.at(match[1]), match[2], unquote(etag))

    def _mine(self) -> Client:
        _ = self._client.bucket  # raises if there is none to store in
        return self._client

    def _place(self, client: Client) -> Bucket:
        return Bucket(client, lambda: self._promises(client), self.context.turn, self.context.spool)

    def _prove(self) -> None:
        """Lets writers race, if nobody did in this store before."""
        with self._lock:
            if self._known is None:
                client = self._mine()
                self._known = Promises.load(client) or Promises.trial(client, self.context.warn)

    def _promises(self, client: Client) -> Promises:
        """Returns what is remembered about the store; nothing where nobody let writers race yet."""
        with self._lock:
            if self._known is None:
                self._known = Promises.load(client)
            return self._known or Promises()

    # -- optional protocols --------------------------------------------------------------------------------------

    def trial(self) -> Capabilities:
        """Lets writers race; see `ari_core.contract.SupportsTrial`."""
        with self._errors(), self._lock:
            self._known = Promises.trial(self._mine(), self.context.warn)
            return self._effective(self._known)

    def sweep(self, older_than: timedelta, *, dry_run: bool) -> Iterator[Leftover]:
        """Removes what interrupted runs left; see `ari_core.contract.SupportsSweep`."""
        with self._errors():
            yield from self._here().sweep(older_than, dry_run=dry_run)

    def serve_for(self, registry: str, *, take_over: bool = False) -> str:
        """Notes which registry this store serves; see `ari_core.contract.SupportsServing`."""
        with self._errors():
            self._prove()  # a turn can be lost unnoticed, with its database: then a condition is all that is left
            place, data = self._here(), json.dumps({"registry": registry}).encode()
            for _ in range(_TRIES):
                found = place.read(SERVING, _LONGEST_NOTE)
                noted = _registry_of(found.data) if found else None
                if noted is not None and (noted == registry or not take_over):
                    return noted
                if found and not take_over:
                    raise IntegrityError(
                        f"{SERVING} in the store is damaged",
                        hint="`ari registry reindex --take-over` writes it anew",
                    )
                place.write(SERVING, data, replacing=found.version if found else None)
            raise Unavailable(f"{SERVING} is being changed all the time")

    def direct_url(self, locator: Locator, ttl: float) -> str:
        """Presigns a download.

        Raises:
            Unsupported: There are no credentials to sign with.
        """
        with self._errors():
            if one := self._object(locator):
                return one.client.presign(one.key, int(ttl))
            place, artifact = self._bucket(locator)
            name = f'attachment; filename="bundle-{artifact}.tar.gz"'
            key = place.client.key(key_of(artifact, BUNDLE_NAME))
            return place.client.presign(key, int(ttl), disposition=name)

    def provider_checksum(self, locator: Locator) -> tuple[str, str]:
        """Returns the SHA-256 that the store computed over the whole object.

        Raises:
            NotFound: There is no such object.
            Unsupported: It keeps none; of several parts most keep checksums of the parts.
        """
        with self._errors():
            if one := self._object(locator):
                client, key = one.client, one.key
            else:
                place, artifact = self._bucket(locator)
                client, key = place.client, place.client.key(key_of(artifact, BUNDLE_NAME))
            head = client.head(key, checksum=True)
            if head is None:
                raise NotFound(f"there is no {client.where(key)}")
            if head.sha256 is None:
                raise Unsupported(f"the store keeps no SHA-256 of {client.where(key)}")
            return "sha256", head.sha256

    def _bucket(self, locator: Locator) -> tuple[Bucket, str]:
        place, artifact = self._at(locator)
        assert isinstance(place, Bucket)  # noqa: S101 - for the type checker: `_at` makes nothing else
        return place, artifact


def _stored_locator(bucket: str, prefix: str, artifact: str) -> Locator:
    return Locator("/".join(filter(None, (bucket, prefix, ARTIFACTS, artifact))) + "/")


def _is_key(key: str) -> bool:
    try:
        return "\0" not in key and len(key.encode()) <= _LONGEST_KEY
    except UnicodeEncodeError:
        return False


def _registry_of(data: bytes) -> str | None:
    """Reads who is noted; None if it is not what we note."""
    try:
        fields: Any = json.loads(data)
        if isinstance(fields["registry"], str):
            return fields["registry"]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None
