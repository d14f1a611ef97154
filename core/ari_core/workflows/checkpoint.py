"""Finds the checkpoint that a command is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ari_core.errors import CheckpointNotFoundError, from_os_error
from ari_core.names import quoted

VARIABLE: Final = "ARI_CHECKPOINT_DIR"
EAR: Final = "ear"
"""What the author works in."""
PUBLISHED: Final = "ear_published"
"""What curation makes of it."""


def find_checkpoint(checkpoint: str | Path | None = None) -> Path:
    """Returns the checkpoint as an absolute path.

    Args:
        checkpoint: The folder; if not given, ``$ARI_CHECKPOINT_DIR``, else the current folder if it has
            ``ear/`` or ``ear_published/``.

    Raises:
        CheckpointNotFoundError: There is no such folder, or none was given and the current one is no checkpoint.
        LocalPermissionError: It cannot be looked into.
    """
    origin = ""
    if checkpoint is None and (checkpoint := os.environ.get(VARIABLE)):
        origin = f" (from ${VARIABLE})"
    folder = Path(checkpoint or "").absolute()
    hint = f"give the checkpoint's folder, or set {VARIABLE}"
    try:
        if folder.is_file():
            raise CheckpointNotFoundError(
                f"{quoted(str(folder))}{origin} is a file, not a checkpoint folder", hint=hint
            )
        if not folder.is_dir():
            raise CheckpointNotFoundError(
                f"there is no checkpoint folder {quoted(str(folder))}{origin}", hint=hint
            )
        if not checkpoint and folder.name in {EAR, PUBLISHED}:
            hint = f"you are inside {folder.name}/; go up one folder"
        if not checkpoint and not ((folder / EAR).is_dir() or (folder / PUBLISHED).is_dir()):
            raise CheckpointNotFoundError(f"the current folder {quoted(str(folder))} has no {EAR}/", hint=hint)
    except OSError as error:
        raise from_os_error(error, f"looking into the checkpoint {quoted(str(folder))}") from error
    return folder


def ear_of(checkpoint: Path) -> Path:
    """Returns the folder ``ear/`` of a checkpoint, free of links.

    Raises:
        CheckpointNotFoundError: There is none.
        LocalPermissionError: It cannot be looked into.
    """
    ear = checkpoint / EAR
    try:
        if ear.is_dir():
            return ear.resolve(strict=True)
    except OSError as error:
        raise from_os_error(error, f"looking into {quoted(str(ear))}") from error
    hint = f"put what should be published into {quoted(str(ear))}"
    if checkpoint.name == EAR:
        hint = f"if this is {EAR}/ itself, give the folder it is in"
    raise CheckpointNotFoundError(f"the checkpoint {quoted(str(checkpoint))} has no folder {EAR}/", hint=hint)
