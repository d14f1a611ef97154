"""Where ``registries.yaml`` may be. Cheap: asked whenever a publication names no backend."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE_VARIABLE: Final = "ARI_REGISTRIES_FILE"
URL_VARIABLE: Final = "ARI_REGISTRY_URL"
_CHECKPOINT_VARIABLE: Final = "ARI_CHECKPOINT_DIR"
_NAME: Final = Path(".ari", "registries.yaml")


@dataclass(frozen=True, slots=True)
class Place:
    """One place to look.

    Attributes:
        path: The file.
        what: For people.
        named: The user named this very file, so it has to exist.
        untrusted: It may have come with a download.
        deprecated: To be given up in 1.0.
    """

    path: Path
    what: str
    named: bool = False
    untrusted: bool = False
    deprecated: bool = False


def places(checkpoint: Path | None) -> list[Place]:
    """Returns where to look, in this order.

    Args:
        checkpoint: The checkpoint, if the command has one; else ``$ARI_CHECKPOINT_DIR`` counts.
    """
    if named := os.environ.get(FILE_VARIABLE):
        return [Place(Path(named), FILE_VARIABLE, named=True)]
    folder = checkpoint or os.environ.get(_CHECKPOINT_VARIABLE)
    candidates = [(Path(folder, _NAME), "the checkpoint")] if folder else []
    found: list[Place] = []
    home = _home()
    for path, what in (*candidates, (_NAME, "the current folder")):
        # In the home folder itself, that one's rules hold: it is the user's own file, wherever they stand.
        if path.absolute() not in {home, *(place.path for place in found)}:
            found.append(Place(path.absolute(), what, untrusted=True))
    if home:
        found.append(Place(home, "the home folder", deprecated=True))
    return found


def configured(checkpoint: Path | None) -> str | None:
    """Says where registries are configured, or None. Reads nothing and never raises."""
    try:
        for place in places(checkpoint):
            if place.named or place.path.exists():
                return f"{place.path.name} in {place.path.parent}"
    except (OSError, ValueError, RuntimeError):
        return None
    return URL_VARIABLE if os.environ.get(URL_VARIABLE) else None


def _home() -> Path | None:
    try:
        return Path.home().absolute() / _NAME
    except RuntimeError:  # a user without a home
        return None
