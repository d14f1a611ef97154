"""What the user sees: results on stdout, everything else on stderr, and with ``--json`` exactly one object."""

from __future__ import annotations

import json as json_module
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from ari_core.errors import AriError, escape
from ari_core.streams import Progress

if TYPE_CHECKING:
    from ari_core.workflows.copies import Copy

_UNITS: Final = ("bytes", "KB", "MB", "GB", "TB")
_STEP: Final = 1000
_SHOW_AFTER_SECONDS: Final = 0.5
_UNPRINTABLE: Final = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SETTING: Final = re.compile(r"-o ([a-z_]+=)")
_EVIDENCE: Final = {
    "re-hashed": "all of it was read back and verified",
    "provider-checksum": "the store's own checksum agrees; it was not read back",
    "size": "the store says what was sent; it was not read back",
    "present": "it is there; it was not read back",
}
_state = {"json": False}
_told: set[str] = set()


def use(*, json: bool) -> None:
    """Says whether results are to be one JSON object."""
    _state["json"] = json


def result(data: Mapping[str, Any], *lines: str) -> None:
    """Prints a result: `data` as JSON, or `lines` for people."""
    if _state["json"]:
        _print_json(data, indent=2)
    else:
        for line in lines:
            print(escape(line))  # noqa: T201 - this is the output


def line(text: str) -> None:
    """Prints a line of a result that is too long to be kept; not as JSON, which is one object at the end."""
    if not _state["json"]:
        print(escape(text))  # noqa: T201 - this is the output


def _print_json(data: Mapping[str, Any], indent: int | None = None) -> None:
    text = json_module.dumps(data, ensure_ascii=False, indent=indent, default=str)
    # What a terminal would act on is escaped as JSON can; line breaks are json's own.
    print(_UNPRINTABLE.sub(lambda found: _as_json_escape(found[0]), text))  # noqa: T201 - this is the output


def _as_json_escape(character: str) -> str:
    return json_module.dumps(character)[1:-1]


def warn(line: str) -> None:
    """Prints one warning line."""
    print(f"warning: {escape(line)}", file=sys.stderr)  # noqa: T201 - this is the output


def plugin_problems() -> None:
    """Prints one warning line for each plugin that does not work, if plugins were loaded at all, and only once."""
    if "ari_core.plugins" not in sys.modules:
        return
    from ari_core.plugins import load_plugins

    with suppress(AriError):  # a bad ARI_PLUGINS was an error already
        for problem in load_plugins().problems:
            if problem.message not in _told:
                _told.add(problem.message)
                warn(problem.message)


def error(kind: str, message: str, hint: str | None, facts: Mapping[str, Any] | None = None) -> None:
    """Prints an error: one line, and one more with the next step; `facts` beside them as JSON."""
    if _state["json"]:
        _print_json({"error": {"kind": kind, "message": message, "hint": hint}, **(facts or {})})
    _tell(message, hint)


def _tell(message: str, hint: str | None) -> None:
    print(f"error: {escape(message)}", file=sys.stderr)  # noqa: T201 - this is the output
    if hint:
        print(f"hint: {escape(hint)}", file=sys.stderr)  # noqa: T201 - this is the output


def error_fields(error: AriError | None) -> dict[str, str | None] | None:
    """Returns an error as it stands in a JSON object."""
    return {"kind": error.kind, "message": error.message, "hint": error.hint} if error else None


def partly(problem: AriError | None) -> int:
    """Prints what was not done beside a result, if anything was not; returns the exit status.

    Unlike `error` it leaves the one JSON object to the result.
    """
    if problem is None:
        return 0
    _tell(problem.message, problem.hint)
    return problem.exit_code


def copy_fields(copy: Copy) -> dict[str, Any]:
    """Returns one copy as it stands in a JSON object."""
    return {
        "to": copy.to,
        "backend": copy.backend,
        "ref": copy.ref or None,
        "created": copy.created,
        "archive_sha256": copy.archive_sha256,
        "visibility": copy.visibility or None,
        "enforced": copy.enforced,
        "evidence": copy.evidence or None,
        "recorded": copy.recorded,
        "error": error_fields(copy.error),
    }


def copy_lines(copy: Copy, read: str = "") -> list[str]:
    """Returns one copy for people; `read` is the ref of what it was made from."""
    if not copy.ref:
        return [f"FAILED '{copy.to}'", *why(copy.error, copy.to)] if copy.error else [f"Would copy to '{copy.to}'"]
    what = f"Copied to '{copy.to}'" if copy.created else f"Already at '{copy.to}', unchanged"
    if copy.ref == read:
        what = f"NO further copy: what was read is itself at '{copy.to}'"
    return [
        f"{what}; visibility: {copy.visibility}",
        f"  ref            {copy.ref}",
        f"  evidence       {_EVIDENCE[copy.evidence]}",
        *(["  NOT as asked for", *why(copy.error, copy.to)] if copy.error else []),
    ]


def why(problem: AriError, name: str = "") -> list[str]:
    """Returns for people why one of several things was not done, and the next step with settings of `name`."""
    hint = _SETTING.sub(rf"-o {name}.\1", problem.hint or "") if name else problem.hint
    return [f"  why            {problem.message}", *([f"  next           {hint}"] if hint else [])]


def usage_error(problem: BaseException) -> int | None:
    """Prints what the command-line parser complains about; None if `problem` is something else."""
    if isinstance(problem, click.Abort):
        error("aborted", "not confirmed; nothing was changed", None)
        return 2
    if not isinstance(problem, click.ClickException):
        return None
    if isinstance(problem, click.exceptions.NoArgsIsHelpError):
        problem.show()
    else:
        context = getattr(problem, "ctx", None)
        path = context.command_path if context else "ari"
        error("usage", problem.format_message(), f"`{path} --help` shows how to call it")
    return 2


def size(count: int) -> str:
    """Returns a number of bytes for people: ``1.5 MB``."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < _STEP or unit == _UNITS[-1]:
            break
        value /= _STEP
    return f"{count} {unit}" if unit == _UNITS[0] else f"{value:.1f} {unit}"


def files(count: int) -> str:
    """Returns a number of files for people: ``1 file``."""
    return f"{count} file" if count == 1 else f"{count} files"


@contextmanager
def progress() -> Iterator[Progress | None]:
    """Gives a callback that draws a progress bar, if there is a terminal to draw on and it takes long enough."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar()
    try:
        yield bar.update
    finally:
        bar.stop()


class _Bar:
    """A bar of rich, which is imported only when something takes long."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def update(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            if time.monotonic() - self._started < _SHOW_AFTER_SECONDS:
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
