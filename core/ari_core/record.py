"""``publish_record.json``: what was published from a checkpoint, where, and what is still to do (docs/format.md).

The fields of the existing tool stay as they are; ours are added, and fields we do not know are kept.
"""

from __future__ import annotations

import os
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
        pending: What was begun and not finished: ``{backend, locator, bundle_sha256, since}``.
        copies: Further places, each ``{backend, ref, archive_sha256, timestamp, options}``.
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
    copies: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    def with_event(self, event: str, **changes: Any) -> Record:
        """Returns a record with `changes` made and one more line of history that names them."""
        line = {"event": event, "at": now(), **{key: changes[key] for key in changes if key in _TOLD}}
        return self.model_copy(update={**changes, "history": [*self.history, line]})


_TOLD: Final = ("backend", "ref", "bundle_sha256", "archive_sha256", "visibility")


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
