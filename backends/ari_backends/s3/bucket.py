"""A bucket as a place for the stored layout.

Only ``meta.json`` needs conditions: it is created only where nothing is, and replaced only if it is still what was
read. A removal takes no condition in most stores, so it begins with a note in its place (`Bucket.remove`). Where a
store ignores conditions, a look just before the write does what it can; `OpenContext.turn` does the rest.
"""

# ruff: noqa: D102 - `ari_core.layout.Blobs` says what most methods take and do

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ari_backends.s3.client import Client, Head, Outcome
from ari_backends.s3.promises import TRIALS, Promises
from ari_backends.s3.transfers import RANGES_AHEAD, Download, Sending
from ari_core.contract import Leftover, Source
from ari_core.errors import (
    Unavailable,
)
from ari_core.layout import ARTIFACTS, META_MAX_BYTES, Blob, Blobs, is_id, key_of
from ari_core.names import BUNDLE_NAME, MANIFEST_NAME, META_NAME

NOTE_MOST: Final = 64
"""Bytes that a note has less of, and a ``meta.json`` more: so a listing tells them apart."""
NOTE_LASTS: Final = timedelta(minutes=20)
"""So long a note keeps others from storing; an older one was left by a crash. No request arrives so late: a
signature is good for 15 minutes."""
CLEARING_SECONDS: Final = 60.0
"""A deleter begins no request later than this behind its note: each then has minutes to end."""

_NOTE: Final = b'{"ari-note":"%s"}'
_WRITE: Final = "ari-write"
_TRIES: Final = 20
_PAUSE: Final = 0.05


class Bucket(Blobs):
    """A bucket and a prefix, for one operation: what this one deletes it remembers only here."""

    def __init__(
        self,
        client: Client,
        promises: Callable[[], Promises],
        turn: Callable[[str], AbstractContextManager[None]] | None = None,
        spool: Path | None = None,
    ) -> None:
        """Keeps how to reach it.

        Args:
            client: Of the bucket and prefix.
            promises: What the store is known to keep; asked for when something is to be changed.
            turn: See `ari_core.contract.OpenContext`.
            spool: See `ari_core.contract.OpenContext`.
        """
        self.client, self._promises, self._turn, self._spool = client, promises, turn, spool
        self._taken: dict[str, float] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, key: str, most: int = META_MAX_BYTES) -> Blob | None:
        found = self.client.read(self.client.key(key), most)
        if found is None or _is_note(found[0]):
            return None
        data, head = found
        return Blob(data, head.etag, head.modified)

    def size(self, key: str) -> int | None:
        head = self.client.head(self.client.key(key))
        return None if head is None else head.size

    @contextmanager
    def open(self, key: str, offset: int) -> Iterator[Download]:
        ahead = 0 if self._spool else RANGES_AHEAD  # what is read ahead is held in memory
        with Download(self.client, self.client.key(key), offset, ahead=ahead) as download:
            yield download

    def ids(self, digits: str = "", after: str = "") -> Iterator[str]:
        above = self.client.key(ARTIFACTS, "")
        for folder in self.client.folders(above + digits, after=above + _behind(after) if after else ""):
            name = folder.removeprefix(above).removesuffix("/")
            if is_id(name) and name > after:
                yield name

    def listing(self, after: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields every id behind `after` with its objects by name, a thousand of them a request."""
        above = self.client.key(ARTIFACTS, "")
        last, objects = "", dict[str, Any]()
        for entry in self.client.keys(above, after=above + _behind(after) if after else ""):
            artifact, _, name = entry.key.removeprefix(above).partition("/")
            if artifact != last:
                if objects:
                    yield last, objects
                last, objects = artifact, {}
            if is_id(artifact) and "/" not in name:
                objects[name] = entry
        if objects:
            yield last, objects

    # -- changing ------------------------------------------------------------------------------------------------

    def guard(self, artifact: str, *, new: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002
        return self._turn(artifact) if self._turn else nullcontext()

    def write(self, key: str, data: bytes, *, replacing: Any) -> bool:
        whole = self.client.key(key)
        for _ in range(_TRIES):
            if self._swap(whole, data, replacing):
                return True
            if replacing is not None:
                return False
            head, is_note = self._look(whole)
            if head is not None:  # else it is gone since
                # An old note is overruled: whoever deleted here did not come to the end.
                return is_note and head.now - head.modified > NOTE_LASTS and self._swap(whole, data, head.etag)
        return False

    def remove(self, key: str, *, version: Any = None) -> bool:
        """Leaves a note in the object's place, which `clear` takes away when everything else is gone.

        Where there is nothing at all there is no note; where another deleter's is, the rest is left to that one.
        """
        artifact = key.split("/")[1]
        whole = self.client.key(key)
        for _ in range(_TRIES):
            head, is_note = self._look(whole)
            if version is not None and (head is None or head.etag != version):
                return False
            if head is None and not any(self.client.keys(self.client.key(ARTIFACTS, artifact, ""))):
                return True
            if head is not None and is_note and head.now - head.modified <= NOTE_LASTS:
                return True
            if self._take(artifact, None if head is None else head.etag):
                return True
        raise Unavailable(f"{self.client.where(whole)} is being changed all the time")

    def clear(self, artifact: str) -> None:
        since = self._taken.pop(artifact, None)
        if since is None:  # not ours to clear
            return
        for name in (BUNDLE_NAME, MANIFEST_NAME, META_NAME):
            if time.monotonic() - since > CLEARING_SECONDS:
                raise Unavailable(
                    f"deleting the artifact {artifact} took too long: it is absent, its bytes are not"
                )
            # Once: a try that was given up may arrive late, and must find the note, not what is stored next.
            self.client.delete(self.client.key(key_of(artifact, name)), once=True)

    def _take(self, artifact: str, etag: str | None) -> bool:
        since = time.monotonic()
        note = _NOTE % secrets.token_hex(16).encode()
        if not self._swap(self.client.key(key_of(artifact, META_NAME)), note, etag):
            return False
        self._taken[artifact] = since
        return True

    def _look(self, whole: str) -> tuple[Head | None, bool]:
        head = self.client.head(whole)
        if head is None or head.size >= NOTE_MOST:
            return head, False
        found = self.client.read(whole, META_MAX_BYTES)
        return (None, False) if found is None else (found[1], _is_note(found[0]))

    def _swap(self, whole: str, data: bytes, etag: str | None) -> bool:
        """Writes if what is there has this ETag, or nothing is there; as surely as the store can."""
        promises = self._promises()
        if_absent = etag is None and promises.if_none_match
        if_match = None if etag is None else promises.spelled(etag)
        if not (if_absent or if_match):
            head = self.client.head(whole)
            if (head and head.etag) != etag:
                return False
        mine = secrets.token_hex(8)
        for _ in range(_TRIES):
            written = self.client.put(
                whole,
                data,
                if_absent=if_absent,
                if_match=if_match,
                metadata={_WRITE: mine},
                content_type="application/json",
            )
            if written.outcome is Outcome.DONE:
                return True
            if written.outcome is Outcome.FAILED:
                # The SDK tries again when an answer is lost: then our own first try is in the way.
                head = self.client.head(whole)
                return head is not None and head.metadata.get(_WRITE) == mine
            time.sleep(random.uniform(0, _PAUSE))  # noqa: S311 - nothing secret
        raise Unavailable(f"{self.client.where(whole)} is being changed all the time")

    @contextmanager
    def receive(self, artifact: str, source: Source) -> Iterator[Callable[[], None]]:
        key = self.client.key(key_of(artifact, BUNDLE_NAME))
        with Sending(self.client, key, source, self._spool) as sending:
            with source.open() as stream:
                sending.read(stream)
            manifest = source.manifest

            def commit() -> None:
                sending.commit()
                self.client.put(self.client.key(key_of(artifact, MANIFEST_NAME)), manifest)

            yield commit

    # -- what is left over ---------------------------------------------------------------------------------------

    def sweep(self, older_than: timedelta, *, dry_run: bool) -> Iterator[Leftover]:
        """See `ari_core.contract.SupportsSweep`."""
        before = self._now() - older_than
        yield from self._sweep_uploads(before, dry_run=dry_run)
        if self._turn or (self._promises().create_only and self._promises().compare_and_set):
            # Else nothing shows that somebody stores one of them meanwhile.
            yield from self._sweep_objects(before, dry_run=dry_run)
        for entry in self.client.keys(self.client.key(TRIALS)):
            if entry.modified < before:
                if not dry_run:
                    self.client.delete(entry.key)
                yield Leftover("object of a trial", entry.key, entry.size, entry.modified)

    def _sweep_uploads(self, before: datetime, *, dry_run: bool) -> Iterator[Leftover]:
        for upload in self.client.uploads(self.client.key(ARTIFACTS, "")):
            if upload.started < before:
                if not dry_run:
                    self.client.abort(upload.key, upload.id)
                yield Leftover("unfinished upload", upload.key, None, upload.started)

    def _sweep_objects(self, before: datetime, *, dry_run: bool) -> Iterator[Leftover]:
        for artifact, objects in self.listing():
            meta = objects.get(META_NAME)
            if meta and meta.size >= NOTE_MOST:
                continue
            since = max(entry.modified for entry in objects.values())
            if since < before and (dry_run or self._swept(artifact)):
                for name, entry in objects.items():
                    what = "note of a deletion" if name == META_NAME else "object without an artifact"
                    yield Leftover(what, entry.key, entry.size, since)

    def _swept(self, artifact: str) -> bool:
        """Deletes what belongs to no artifact, unless one is stored there meanwhile."""
        key = self.client.key(key_of(artifact, META_NAME))
        with self.guard(artifact):
            head, is_note = self._look(key)
            if head is not None and not is_note:
                return False
            if not self._take(artifact, None if head is None else head.etag):
                return False
            self.clear(artifact)
        return True

    def _now(self) -> datetime:
        """Returns the store's own time: those of what is in it are compared with it."""
        return self.client.now()


def _is_note(data: bytes) -> bool:
    return len(data) < NOTE_MOST and data.startswith(_NOTE.partition(b"%")[0])


def _behind(artifact: str) -> str:
    """What sorts behind all keys of an artifact, and before those of the next id."""
    return f"{artifact}0"
