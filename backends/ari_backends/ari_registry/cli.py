"""`ari config`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ari_core.cli import options, output


@click.group("config")
def app() -> None:
    """See and try which registries are configured.

    \b
    Examples:
      ari config check
    """  # noqa: D301 - click keeps paragraphs as they are behind a real \b


@app.command()
@options.checkpoint
@click.option("--registry", metavar="NAME", help="Only this registry.  [default: all]")
@options.json
def check(checkpoint: Path | None, *, registry: str | None) -> int:
    """Show which registries.yaml counts here, and ask each registry whether it takes the token.

    CHECKPOINT is a directory with ear/ in it; default: $ARI_CHECKPOINT_DIR, else the current directory.

    \b
    Examples:
      ari config check
      ari config check run_42 --registry lab --json
    """  # noqa: D301 - click keeps paragraphs as they are behind a real \b
    from ari_backends.ari_registry.check import check_config  # noqa: PLC0415 - --help needs none of it

    found = check_config(checkpoint, registry, warn=output.warn)
    lines = [
        f"{'read     ' if place.found else 'not there'}  {place.path} ({place.what})" for place in found.looked
    ]
    for entry in found.registries:
        lines.append(f"registry {entry.name or '(without a name)'}: {entry.url} ({entry.configured_in})")
        lines.append(f"  server  {entry.version or 'a registry'}" if entry.reachable else "  server  not reached")
        whose = f", as {entry.user}" if entry.user else ""
        whose += ", for reading only" if entry.scope == "read" else ""
        lines.append(f"  token   {_TOKENS[entry.token]}{whose}{_from(entry.token_from)}")
        if entry.problem:
            lines.append(f"  problem {entry.problem}")
            if entry.hint:
                lines.append(f"          {entry.hint}")
    output.result(asdict(found), *lines)
    return found.exit_code


_TOKENS = {
    "accepted": "accepted",
    "refused": "REFUSED",
    "none": "none: only what is public or unlisted can be read, and nothing stored",
    "not-checked": "not tested: this server offers no way to",
    "unknown": "not tested",
}


def _from(place: str | None) -> str:
    return f" (from {place})" if place else ""
