"""The `ari` command: parse, call one workflow, render."""

from __future__ import annotations

import io
import os
import signal
import sys

from ari_core.errors import AriError, Case, InterruptedByUserError, escape, from_os_error

_BUG = Case("bug", 70, 500, "this is a bug: please report it with what ARI_DEBUG=1 prints")
_INTERRUPTED = InterruptedByUserError(
    "interrupted",
    hint="run the same command again: it goes on with a draft or copy that it had begun (see `ari ear status`)",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status; never lets an exception out."""
    try:
        status = _prepare_and_run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before or behind the command itself
        status = _fail(_INTERRUPTED)
    return status


def _prepare_and_run(arguments: list[str]) -> int:
    from ari_core.cli import output

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the program
            stream.reconfigure(errors="backslashreplace")
    output.use(json="--json" in arguments)  # so that errors of parsing come out right too
    status = _run(arguments)
    output.plugin_problems()
    return status


def _run(arguments: list[str]) -> int:
    from ari_core.cli import output
    from ari_core.cli.app import app

    try:
        status = app(arguments, prog_name="ari", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough of it; do not complain when the interpreter closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a sentence instead of a traceback
        if _is_interruption(error):
            return _fail(_INTERRUPTED)
        if isinstance(error, AriError):
            return _fail(error)
        if isinstance(error, OSError):
            return _fail(from_os_error(error, "running the command"))
        return output.usage_error(error) or _bug(error)
    return status if isinstance(status, int) else 0


def _is_interruption(error: BaseException | None) -> bool:
    """Says whether Ctrl-C is behind an error: click makes it its own, and cleaning up can fail because of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(error: AriError) -> int:
    from ari_core.cli import output

    if error is _INTERRUPTED:
        from ari_core.fs import remove_leftovers

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not keep this from being done
        remove_leftovers()
    if os.environ.get("ARI_DEBUG") and error.exit_code == _BUG.exit_code:
        raise error
    output.error(error.kind, error.message, error.hint, error.facts)
    return error.exit_code


def _bug(error: BaseException) -> int:
    from ari_core.cli import output

    if os.environ.get("ARI_DEBUG"):
        raise error
    output.error(_BUG.kind, f"{type(error).__name__}: {escape(str(error))}", _BUG.advice)
    return _BUG.exit_code
