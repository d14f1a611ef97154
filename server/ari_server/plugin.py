"""Declares ``ari registry``; importing it loads nothing of the server."""

from __future__ import annotations

from ari_core.contract import CommandGroupSpec
from ari_core.plugins import hookimpl


@hookimpl
def ari_command_groups() -> list[CommandGroupSpec]:
    """Describes the server's command group."""
    return [
        CommandGroupSpec(
            name="registry",
            app="ari_server.cli:app",
            help="Run a registry: serve, tokens, reindex, db.",
            extra="ari-registry[server]",
        )
    ]
