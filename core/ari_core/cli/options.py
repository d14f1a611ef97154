"""Options that several commands share, each declared once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ari_core.cli import output
from ari_core.errors import UsageError, from_os_error
from ari_core.names import quoted

_LONGEST_TOKEN: Final = 64 * 1024

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="Where the copy is: a path, file:///…, https://…, or what an installed backend knows."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="Directory with ear/ in it. Default: $ARI_CHECKPOINT_DIR, else the current directory.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("-o", metavar="KEY=VALUE", help="A setting of the backend; repeatable.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
ExpectSha256 = Annotated[
    str | None,
    typer.Option(
        metavar="HEX", help="The bundle digest printed in the paper: 64 lower-case hex digits.", show_default=False
    ),
]
RequireDigest = Annotated[
    bool, typer.Option("--require-digest", help="Fail when there is no digest to compare with.")
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Environment variable that holds the access token (or the token).", show_default=False
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="File that holds the access token; - reads stdin.", show_default=False),
]
MaxDownload = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Refuse to download more, as 10GB.", show_default=False)
]


def settings(
    pairs: list[str] | None,
    *,
    token: str | None = None,
    token_file: str | None = None,
    max_download: str | None = None,
) -> dict[str, str]:
    """Turns ``-o`` pairs and the options that are short for one into settings.

    Raises:
        UsageError: A pair is not KEY=VALUE, or a key comes twice.
    """
    found: dict[str, str] = {}
    given = [(pair, *pair.partition("=")) for pair in pairs or ()]
    for pair, key, equals, value in given:
        if not equals or not key:
            # Not echoed whole: somebody may have typed a secret.
            raise UsageError(f"-o takes KEY=VALUE, not {quoted(pair.partition('=')[0][:40])}")
        _set(found, key, value)
    if token is not None and token_file is not None:
        raise UsageError("--token and --token-file exclude each other")
    if token is not None:
        if token not in os.environ:
            output.warn("the token is on the command line, where process lists show it; use --token-file")
        _set(found, "token", os.environ.get(token, token))
    if token_file is not None:
        _set(found, "token", _read_token(token_file))
    if max_download is not None:
        _set(found, "max_download", max_download)
    return found


def _set(found: dict[str, str], key: str, value: str) -> None:
    if key in found:
        raise UsageError(f"the setting {quoted(key)} is given twice")
    found[key] = value


def _read_token(name: str) -> str:
    try:
        text = sys.stdin.read(_LONGEST_TOKEN) if name == "-" else Path(name).read_text("utf-8")
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise from_os_error(error, f"reading the token file {quoted(name)}") from error
    if not text.strip():
        raise UsageError(f"there is no token in {quoted(name)}")
    return text.strip()
