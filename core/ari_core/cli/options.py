"""Options that several commands share, each declared once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ari_core.cli import output
from ari_core.errors import UsageError, from_os_error
from ari_core.names import quoted

_LONGEST_TOKEN: Final = 64 * 1024

_F = TypeVar("_F", bound=Callable[..., Any])
PATH: Final = click.Path(path_type=Path)

ref = click.argument("ref", metavar="REF")
checkpoint = click.argument("checkpoint", metavar="[CHECKPOINT]", required=False, type=PATH)
setting = click.option(
    "-o", "pairs", metavar="KEY=VALUE", multiple=True, help="A setting of the backend; repeatable."
)
expect_sha256 = click.option(
    "--expect-sha256", metavar="HEX", help="The bundle digest printed in the paper: 64 lower-case hex digits."
)
require_digest = click.option(
    "--require-digest", is_flag=True, help="Fail when there is no digest to compare with."
)
dry_run = click.option(
    "--dry-run", is_flag=True, help="Check what can be checked without writing; change nothing."
)
_token = click.option(
    "--token", metavar="NAME", help="Environment variable that holds the access token (or the token)."
)
_token_file = click.option("--token-file", metavar="FILE", help="File that holds the access token; - reads stdin.")
_registry = click.option(
    "--registry", metavar="NAME", help="A registry of registries.yaml, instead of the first that fits."
)
_max_download = click.option("--max-download", metavar="SIZE", help="Refuse to download more, as 10GB.")


def json(command: _F) -> _F:
    """Adds ``--json``, which `main` and `output` act on."""

    def use(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        output.use(json=value)

    option = click.option(
        "--json", is_flag=True, expose_value=False, callback=use, help="Print exactly one JSON object on stdout."
    )
    return option(command)


def source(command: _F) -> _F:
    """Adds what is short for settings of the backend that a ref belongs to."""
    for decorate in (_max_download, _token_file, _token, _registry):
        command = decorate(command)
    return command


def reading(command: _F) -> _F:
    """Adds the options of every command that only reads a ref."""
    return setting(source(command))


def storing(command: _F) -> _F:
    """Adds the options of every command that changes something in a store."""
    for decorate in (_token_file, _token, _registry, setting):
        command = decorate(command)
    return command


def settings(
    pairs: Iterable[str],
    *,
    registry: str | None = None,
    token: str | None = None,
    token_file: str | None = None,
    max_download: str | None = None,
) -> dict[str, str]:
    """Turns ``-o`` pairs and the options that are short for one into settings.

    Raises:
        UsageError: A pair is not KEY=VALUE, or a key comes twice.
    """
    found: dict[str, str] = {}
    given = [(pair, *pair.partition("=")) for pair in pairs]
    for pair, key, equals, value in given:
        if not equals or not key:
            # Not echoed whole: somebody may have typed a secret.
            raise UsageError(f"-o takes KEY=VALUE, not {quoted(pair.partition('=')[0][:40])}")
        _set(found, key, value)
    if registry is not None:
        _set(found, "registry", registry)
    if token is not None and token_file is not None:
        raise UsageError("--token and --token-file exclude each other")
    if token is not None:
        if token not in os.environ:
            output.warn(
                "no environment variable has the name that --token gives, so that is taken as the token itself, "
                "which process lists show; use --token-file"
            )
        _set(found, "token", _one_word(os.environ.get(token, token), "--token"))
    if token_file is not None:
        _set(found, "token", _one_word(_read_token(token_file), f"--token-file {quoted(token_file)}"))
    if max_download is not None:
        _set(found, "max_download", max_download)
    return found


def _set(found: dict[str, str], key: str, value: str) -> None:
    if key in found:
        raise UsageError(f"the setting {quoted(key)} is given twice")
    found[key] = value


def _one_word(token: str, where: str) -> str:
    if not token or " " in token or not (token.isascii() and token.isprintable()):
        raise UsageError(f"{where}: a token is one word of printable ASCII characters, and this is not")
    return token


def _read_token(name: str) -> str:
    try:
        if name == "-":
            text = sys.stdin.read(_LONGEST_TOKEN)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(_LONGEST_TOKEN)  # of whatever is named by mistake, /dev/zero included
    except UnicodeDecodeError:
        text = ""
    except FileNotFoundError:
        raise UsageError(f"there is no token file {quoted(name)}", hint="check the spelling of the path") from None
    except OSError as error:
        raise from_os_error(error, f"reading the token file {quoted(name)}") from error
    if len(text) == _LONGEST_TOKEN:
        raise UsageError(f"{quoted(name)} is too long to hold a token and nothing else")
    if not text.strip():
        raise UsageError(f"there is no token in {quoted(name)}")
    return text.strip()
