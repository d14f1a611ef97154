"""Let somebody without an account read what was published."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from ari_core.contract import Share, SupportsShare, Visibility
from ari_core.errors import Unsupported
from ari_core.record import Record
from ari_core.workflows.checkpoint import find_checkpoint
from ari_core.workflows.promote import open_recorded, published_record, require_own

TOKEN_VARIABLE: Final = "ARI_FETCH_TOKEN"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class ShareResult:
    """What to hand to the reader.

    Attributes:
        share: The secret, and the ref it opens.
        record: The record of the checkpoint, unchanged.
        visibility: The level it has now; below ``private-token`` the secret opens nothing yet.
        clone_command: What the reader runs, with the secret in an environment variable.
    """

    share: Share
    record: Record
    visibility: Visibility | None
    clone_command: str

    @property
    def works_now(self) -> bool:
        """Whether the secret opens it already."""
        return self.visibility is None or self.visibility.rank >= Visibility.PRIVATE_TOKEN.rank


def share(
    checkpoint: str | Path | None = None,
    *,
    expires: timedelta | None = None,
    options: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _line: None,
) -> ShareResult:
    """Makes a fetch token for the published bundle: whoever has it can read this artifact and nothing else.

    Args:
        checkpoint: The checkpoint; default as for `publish`.
        expires: How long it works, from now; None for ever, until it is revoked.
        options: Settings of the backend.
        warn: Told at once what a backend has to say, one line each.

    Raises:
        CheckpointNotFoundError: Nothing was published from it.
        Unsupported: The store has no such thing.
        AriError: As the backend says.
    """
    folder = find_checkpoint(checkpoint)
    record = published_record(folder)
    with open_recorded(folder, record, options, warn) as store:
        sharing = store.optional(SupportsShare)
        if sharing is None:
            raise Unsupported(
                f"'{store.name}' has no fetch tokens", hint="share the bundle itself, or publish it to a registry"
            )
        locator = store.resolve(record.ref)
        require_own(store, locator, record)
        made = sharing.share(locator, expires)
        level = store.stat(locator).visibility
    words = ["ari", "clone", made.url, "--expect-sha256", record.bundle_sha256, "--token", TOKEN_VARIABLE]
    return ShareResult(made, record, level, f"{TOKEN_VARIABLE}={shlex.quote(made.token)} {shlex.join(words)}")
