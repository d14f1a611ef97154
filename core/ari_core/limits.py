"""The one table of limits that writer, verifier and every reader of bundles share (docs/format.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from ari_core.errors import ConfigurationError, escape

ENVIRONMENT_PREFIX: Final = "ARI_LIMIT_"
_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on what a bundle may hold. Member and total sizes are bound by the manifest itself.

    Attributes:
        files: Files in a bundle (members of an archive, the manifest not counted).
        manifest_bytes: Size of ``manifest.lock``.
        depth: Path components, the file name included.
        component_bytes: UTF-8 bytes of one path component.
        path_bytes: UTF-8 bytes of a whole path.
        pax_bytes: Bytes of extension data (pax records or a GNU long name) for one member.
    """

    files: int = 100_000
    manifest_bytes: int = 64 * 1024 * 1024
    depth: int = 64
    component_bytes: int = 255
    path_bytes: int = 4096
    pax_bytes: int = 64 * 1024

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Limits:
        """Reads overrides such as ``ARI_LIMIT_FILES=200000``.

        Raises:
            ConfigurationError: A value is not a positive whole number, or a variable's name is misspelt.
        """
        env = os.environ if environment is None else environment
        overrides: dict[str, int] = {}
        known = {ENVIRONMENT_PREFIX + field.name.upper() for field in fields(cls)}
        for variable in env:
            if variable.startswith(ENVIRONMENT_PREFIX) and variable not in known:
                raise ConfigurationError(
                    f"there is no {escape(variable)}", hint=f"one of: {', '.join(sorted(known))}"
                )
        for field in fields(cls):
            variable = ENVIRONMENT_PREFIX + field.name.upper()
            if (text := env.get(variable)) is None:
                continue
            if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) > 0):
                raise ConfigurationError(f"{variable} must be a positive whole number")
            overrides[field.name] = int(text)
        return cls(**overrides)


def how_to_raise(name: str) -> str:
    """Says which variable raises the limit `name`."""
    return f"set {ENVIRONMENT_PREFIX}{name.upper()} to raise the limit, if you trust the source"


def most_values(raw: bytes) -> int:
    """Returns how many lists, objects and values in them JSON can hold at most: two bytes can take a hundred."""
    return sum(map(raw.count, (b"{", b"[", b",")))
