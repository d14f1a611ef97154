"""Which origins a token was sent to before because a file said so that may have come with a download.

One line each in ``$XDG_STATE_HOME/ari/origins`` (default ``~/.local/state``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ari_core.fs import Staging, open_regular, write_all

_NAME: Final = "origins"
_MAX_BYTES: Final = 1024 * 1024


def is_known(origin: str) -> bool:
    """Says whether `origin` was remembered; False when that cannot be read."""
    try:
        return origin in _read()
    except (OSError, ValueError, RuntimeError):
        return False


def remember(origin: str) -> None:
    """Notes `origin`, atomically.

    Raises:
        AriError: As the disk says.
        OSError: As the system says.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        known = _read()
    except (FileNotFoundError, ValueError):
        known = []
    with Staging(folder) as staging:
        fd = os.open(_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=staging.fd)
        try:
            write_all(fd, "".join(f"{line}\n" for line in dict.fromkeys([*known, origin])).encode())
        finally:
            os.close(fd)
        staging.commit_file(_NAME, _NAME, replace=True)


def _read() -> list[str]:
    with os.fdopen(open_regular(_folder() / _NAME), "rb") as file:
        return file.read(_MAX_BYTES).decode("ascii").splitlines()


def _folder() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", ""))  # a relative one is to be ignored
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "ari"
