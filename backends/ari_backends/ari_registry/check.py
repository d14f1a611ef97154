"""Which registries are configured here, and does each take our token: what `ari config check` tells."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ari_backends.ari_registry.backend import AriRegistry
from ari_backends.ari_registry.places import URL_VARIABLE
from ari_backends.ari_registry.registries import Registry
from ari_core.contract import OpenContext
from ari_core.errors import AccessDenied, AriError, Unsupported
from ari_core.settings import open_backend


@dataclass(frozen=True, slots=True)
class Looked:
    """One place where registries.yaml may be.

    Attributes:
        path: The file.
        what: Why there.
        found: Whether it was there, and so was read.
    """

    path: str
    what: str
    found: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """One registry.

    Attributes:
        name: Its name, or "".
        url: Its address.
        configured_in: File and line, or variable.
        token_from: Where its token comes from; never the token.
        reachable: Whether a registry answers there.
        version: Of the server.
        token: ``accepted``, ``refused``, ``none``, ``not-checked`` (the server offers no way) or ``unknown``.
        user: Whose token it is, as far as the server tells.
        scope: What it may do: ``publish`` or ``read``, as far as the server tells.
        problem: What is wrong, or None.
        hint: The next step, or None.
        exit_code: What the problem means for a command.
    """

    name: str
    url: str
    configured_in: str
    token_from: str | None
    reachable: bool
    version: str = ""
    token: str = "unknown"  # noqa: S105 - a state
    user: str | None = None
    scope: str | None = None
    problem: str | None = None
    hint: str | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class ConfigCheck:
    """All of it.

    Attributes:
        looked: Places, in order; the search ends at the first file.
        registries: In order.
        warnings: Deprecations and the like.
    """

    looked: tuple[Looked, ...]
    registries: tuple[Checked, ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """Returns that of the first problem, 0 without one."""
        return next((found.exit_code for found in self.registries if found.exit_code), 0)


def check_config(
    checkpoint: Path | None = None,
    registry: str | None = None,
    *,
    warn: Callable[[str], None] = lambda _line: None,
) -> ConfigCheck:
    """Looks at the configuration and asks every registry, or one by its name; `warn` is told at once.

    Raises:
        ConfigurationError: The configuration cannot be used.
        InvalidConfiguration: No registry is configured, or none of that name.
    """
    warnings: list[str] = []

    def note(line: str) -> None:
        if line not in warnings:
            warnings.append(line)
            warn(line)

    context = OpenContext(checkpoint=checkpoint, warn=note)
    options = {"registry": registry} if registry else {}
    with cast("AriRegistry", open_backend("ari-registry", options, context)) as backend:
        found = backend.registries
        # A name picks; without one all are of interest, also those that $ARI_REGISTRY_NAME passes over.
        entries = backend.candidates(registry) if registry or not found.entries else found.entries
        checked = tuple(_check(entry, context) for entry in entries)
    if found.place and os.environ.get(URL_VARIABLE):
        note(f"{URL_VARIABLE} is set, but does not count: {found.place.path} does")
    looked = tuple(Looked(str(place.path), place.what, place == found.place) for place in found.looked)
    return ConfigCheck(looked, checked, tuple(warnings))


def _check(entry: Registry, context: OpenContext) -> Checked:
    options = {"registry": entry.name} if entry.name else {}
    with cast("AriRegistry", open_backend("ari-registry", options, context)) as backend:
        found = Checked(entry.name, entry.url, entry.where, entry.token_from, reachable=False)
        asked = backend.optional(AriRegistry) or backend  # whose errors are translated
        try:
            about = asked.about(entry.url)
            found = replace(found, reachable=about.is_registry, version=about.version)
            if not about.is_registry:
                raise Unsupported(f"{entry.url}: something answers there, but not a registry")
            token = asked.check_token(entry.url)
        except AriError as error:
            return replace(
                found,
                token="refused" if isinstance(error, AccessDenied) else "unknown",
                problem=error.message,
                hint=error.hint,
                exit_code=error.exit_code,
            )
        return replace(found, token=token.state, user=token.user, scope=token.scope)
