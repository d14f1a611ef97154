"""``publish_record.json``: what was published from a checkpoint, where, and what is still to do (docs/format.md).

The fields of the existing tool stay as they are; ours are added, and fields we do not know are kept.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ari_core.errors import ConfigurationError, from_os_error
from ari_core.fs import Staging, open_regular, write_durably
from ari_core.names import RECORD_NAME, quoted

_MAX_BYTES: Final = 16 * 1024 * 1024


class Record(BaseModel):
    """The record of a checkpoint. Fields of other programs are kept.

    Attributes:
        backend: Name of the backend that holds the copy.
        ref: Where the copy is.
        bundle_sha256: The bundle digest.
        visibility: The level it has now.
        timestamp: Time of publication, ``YYYY-MM-DDTHH:MM:SSZ``.
        dry_run: Always False in a file: a dry run writes none.
        extra: What the backend adds.
        promoted_at: Time of the last promotion.
        promote_failed_at: Time of the last promotion that failed.
        archive_sha256: SHA-256 of the archive that was stored.
        wish: The visibility the author wants in the end.
        encoder: Program and version that made the archive's bytes.
        options: Settings without secrets that a reader of `ref` needs.
        settings: Settings without secrets that were given when publishing; promoting and deleting use them again.
        profile: Profile of the configuration file that was used, if one was.
        pending: A publication that was begun and not finished: ``{backend, profile, settings, locator,
            bundle_sha256, since}``.
        pending_copies: The same of copies, and of publications before another one that went elsewhere.
        copies: Further places, each with those of the fields above that are about one place; see `places`.
        history: What happened, oldest first, each ``{event, at, …}``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    backend: str = ""
    ref: str = ""
    bundle_sha256: str = ""
    visibility: str = "staged"
    timestamp: str = ""
    dry_run: bool = False
    extra: dict[str, Any] = {}
    promoted_at: str | None = None
    promote_failed_at: str | None = None
    archive_sha256: str | None = None
    wish: str | None = None
    encoder: str | None = None
    options: dict[str, str] = {}
    settings: dict[str, str] = {}
    profile: str | None = None
    pending: dict[str, Any] | None = None
    pending_copies: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    def with_event(self, event: str, **changes: Any) -> Record:
        """Returns a record with `changes` made and one more line of history that names them."""
        return self.model_copy(update={**changes, "history": [*self.history, _line(event, changes)]})

    def places(self) -> list[Record]:
        """Returns the record as it is seen from each place that holds the bundle: from `ref`, then from each copy.

        Raises:
            ConfigurationError: A copy is not one.
        """
        return [*([self] if self.ref else []), *map(self._seen_from, self.copies)]

    def _seen_from(self, copy: Mapping[str, Any], **facts: Any) -> Record:
        unknown = {key: Record.model_fields[key].get_default() for key in _OF_A_PLACE}
        rest = self.model_dump(exclude={"copies", "history", "pending", "pending_copies", *_OF_A_PLACE})
        try:
            return Record.model_validate({**rest, **unknown, **_of_a_place(copy), **facts})
        except ValidationError as error:
            raise ConfigurationError(
                f"{RECORD_NAME}: the copy {quoted(str(copy.get('ref'))[:200])} has no proper "
                f"'{error.errors()[0]['loc'][0]}'"
            ) from None

    def unfinished(self) -> list[dict[str, Any]]:
        """Returns what was begun and not finished, the publication first."""
        return [*([self.pending] if self.pending else []), *self.pending_copies]

    def reserved(self) -> list[Record]:
        """Returns the record as it is seen from each place where something was begun, with its locator as `ref`.

        Raises:
            ConfigurationError: What is noted of one is no such thing.
        """
        return [
            self._seen_from({**begun, "ref": begun.get("locator")}, bundle_sha256=begun.get("bundle_sha256"))
            for begun in self.unfinished()
        ]

    def with_pending(self, begun: Mapping[str, Any], *, is_copy: bool) -> Record:
        """Returns a record that tells of what was just begun; what is unfinished elsewhere stays in it."""
        rest = self.without_pending(begun)
        if is_copy:
            return rest.model_copy(update={"pending_copies": [*rest.pending_copies, dict(begun)]})
        return rest.model_copy(update={"pending": dict(begun), "pending_copies": rest.unfinished()})

    def without_pending(self, done: Mapping[str, Any]) -> Record:
        """Returns a record without what was begun in the place of `done`, which has the first four keys of it."""
        pending = None if self.pending and _is_in_place(self.pending, done) else self.pending
        copies = [begun for begun in self.pending_copies if not _is_in_place(begun, done)]
        return self.model_copy(update={"pending": pending, "pending_copies": copies})

    def without_place(self, ref: str) -> Record:
        """Returns a record that tells that the copy in a place was deleted."""
        line = {"backend": self.backend, "ref": ref, "bundle_sha256": self.bundle_sha256}
        if ref == self.ref:
            return self.with_event("deleted", **line).model_copy(update={"ref": "", "archive_sha256": None})
        gone = next((copy for copy in self.copies if copy.get("ref") == ref), line)
        line["backend"] = str(gone.get("backend"))
        rest = [copy for copy in self.copies if copy.get("ref") != ref]
        return self.model_copy(update={"copies": rest, "history": [*self.history, _line("deleted", line)]})

    def with_level(self, ref: str, level: str) -> Record:
        """Returns a record in which the place `ref` has been raised to a level."""
        if ref == self.ref:
            return self.with_event("promoted", visibility=level, promoted_at=now(), promote_failed_at=None)
        return self.with_copy({"ref": ref, "visibility": level}, "promoted")

    def with_failure(self, ref: str) -> Record:
        """Returns a record that tells of a place which could not be raised."""
        if ref == self.ref:
            return self.with_event("promotion failed", promote_failed_at=now())
        return self.model_copy(update={"history": [*self.history, _line("promotion failed", {"ref": ref})]})

    def as_copy(self) -> dict[str, Any]:
        """Returns what `copies` holds of the place in `ref`."""
        return _of_a_place(self.model_dump())

    def with_copy(self, copy: Mapping[str, Any], event: str | None) -> Record:
        """Returns a record with `copy` added, or in the place of what was there about the same ref.

        Args:
            copy: As of `as_copy`, with ``ref``.
            event: For the history; None if there is nothing to tell.
        """
        copies = list(self.copies)
        at = next((i for i, known in enumerate(copies) if known.get("ref") == copy["ref"]), None)
        if at is None:
            copies.append(_of_a_place(copy))
        else:
            copies[at] = {**copies[at], **_of_a_place(copy)}
        line = [_line(event, {"bundle_sha256": self.bundle_sha256, **copy})] if event else []
        return self.model_copy(update={"copies": copies, "history": [*self.history, *line]})


_TOLD: Final = ("backend", "ref", "bundle_sha256", "archive_sha256", "visibility")
_OF_A_PLACE: Final = (
    "backend",
    "ref",
    "archive_sha256",
    "visibility",
    "timestamp",
    "options",
    "settings",
    "profile",
)


def _line(event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"event": event, "at": now(), **{key: facts[key] for key in _TOLD if key in facts}}


def _is_in_place(begun: Mapping[str, Any], done: Mapping[str, Any]) -> bool:
    """Says whether both are one place: by the name that the store went on with, or by the settings, if given."""
    if (begun.get("backend"), begun.get("profile")) != (done.get("backend"), done.get("profile")):
        return False
    if begun.get("locator") == done.get("locator"):
        return True
    return "settings" in done and begun.get("settings", done["settings"]) == done["settings"]


def _of_a_place(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: fields[key] for key in _OF_A_PLACE if key in fields}


def read_record(checkpoint: Path) -> Record | None:
    """Reads the record of a checkpoint; None if there is none.

    Raises:
        ConfigurationError: It is not a record.
        LocalPermissionError: It cannot be read.
    """
    path = checkpoint / RECORD_NAME
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"reading {quoted(str(path))}") from error
    try:
        if len(raw) > _MAX_BYTES:
            raise ConfigurationError(f"{quoted(str(path))} is too large to be a publish record")
        return Record.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = f" ('{first['loc'][0]}')" if first["loc"] else ""
        raise ConfigurationError(
            f"{quoted(str(path))} is not a publish record{where}: {first['msg']}",
            hint="move it aside and publish again",
        ) from None


def write_record(checkpoint: Path, record: Record) -> None:
    """Replaces the record, atomically and durably.

    Raises:
        AriError: The disk is full or refuses.
    """
    write_durably(checkpoint / RECORD_NAME, (record.model_dump_json(indent=2) + "\n").encode())


def change_record(checkpoint: Path, change: Callable[[Record], Record]) -> Record:
    """Reads the record, changes it and writes it, without another `ari` doing so in between; returns it.

    Raises:
        AriError: As `read_record` and `write_record` say.
    """
    try:
        fd = os.open(checkpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"opening the folder {quoted(str(checkpoint))}") from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        record = change(read_record(checkpoint) or Record())
        write_record(checkpoint, record)
    finally:
        os.close(fd)
    return record


def check_record_writable(checkpoint: Path) -> None:
    """Checks that a record could be written.

    Raises:
        AriError: As `write_record` would.
    """
    with Staging(checkpoint):
        pass


def now() -> str:
    """Returns the time as records hold it: UTC, ``YYYY-MM-DDTHH:MM:SSZ``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
