"""What backends there are, what one of them offers and takes, and whether it works here.

Listing imports plugin modules only, never a backend's. Showing and checking do import it, and talk to its store:
that happens in a child process with a deadline, so that a backend which hangs or takes its process down costs one
error line.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from ari_core import errors
from ari_core.errors import AriError, BackendBug, Unavailable, escape
from ari_core.plugins import LoadedPlugins, Plugin, canonical, install_command, load_plugins

SHOW_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 120.0
"""How long a backend may take, unless the caller says otherwise."""

CHILD: Final = "ari_core.workflows.backends_child"

ONLY_A_TRIAL_SHOWS: Final = ("exclusive_create", "atomic_updates")
"""Promises that a store can break without anybody noticing, until two writers meet."""

LACKS: Final[Mapping[str, str]] = {
    "put": "nothing can be published here, only read",
    "delete": "what is published here cannot be deleted with this program, or not once it is promoted",
    "list": "what is stored here cannot be listed, or a listing may lag behind",
    "ranges": "an interrupted download starts again from the beginning",
    "exclusive_create": "two uploads of one bundle at the same moment may both report that they created it",
    "visibility": "levels keep fewer readers out here, or are not even written down",
    "levels": "some levels cannot be reached here",
    "stores_meta": "owners, levels and times of publication are not kept with what is stored",
    "atomic_updates": "of two changes of one artifact's level or owners at the same moment one may be lost: "
    "where several people change them, put a registry with PostgreSQL in front",
    "embargo": "an embargo is kept by promoting on the day, not by the store",
}
"""What it means for the user that a store does not have a capability."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One line of the list.

    Attributes:
        name: As in ``--backend NAME``; the entry point's name when the plugin could not say.
        package: The distribution it comes from.
        version: That distribution's version.
        status: ``not installed``: what it needs is missing. ``failed``: its plugin is. ``blocked``: by a variable.
        help: One line; None when the plugin could not say.
        reason: Why it is not ``ok``.
        install: The command that would install what is missing, or None.
    """

    name: str
    package: str
    version: str
    status: Literal["ok", "not installed", "failed", "blocked"]
    help: str | None = None
    reason: str | None = None
    install: str | None = None


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting of a backend.

    Attributes:
        key: As in ``-o key=value``.
        type: What it takes, in words.
        required: It has no default.
        default: The default as text; None when there is none or it says nothing.
        help: What it is for.
        value: The value in force as text; masked when it is a secret; None when nobody set it.
        source: Where that value comes from; None when nobody set it.
        variables: Environment variables that set it, the strongest first.
        secret: Its value is never shown.
    """

    key: str
    type: str
    required: bool
    default: str | None
    help: str | None
    value: str | None
    source: str | None
    variables: tuple[str, ...]
    secret: bool


@dataclass(frozen=True, slots=True)
class BackendDetails:
    """What one backend offers and takes.

    Attributes:
        name: Of the backend.
        profile: Of the configuration file, when that is what was asked for.
        help: One line.
        schemes: Schemes of the refs it reads.
        capabilities: The most it can do; `check_backend` tells what it does here.
        settings: All it takes, in its own order.
        problem: Why it cannot be opened with what is set now, or None.
    """

    name: str
    profile: str | None
    help: str
    schemes: tuple[str, ...]
    capabilities: Mapping[str, Any]
    settings: tuple[SettingInfo, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check that everything passed.

    Attributes:
        name: Of the backend.
        capabilities: What this very store does.
        lacks: What the backend can do elsewhere and not here, and what that means for the user, in words.
        untried: What may well be so here, but only a trial shows.
        steps: What was done, in order.
        left_behind: Ref of the test bundle, if the store keeps it; None if nothing was written or all is removed.
        warnings: Lines the backend had for the user.
    """

    name: str
    capabilities: Mapping[str, Any]
    lacks: Mapping[str, str]
    untried: tuple[str, ...]
    steps: tuple[str, ...]
    left_behind: str | None
    warnings: tuple[str, ...]


def list_backends(plugins: LoadedPlugins | None = None) -> tuple[BackendInfo, ...]:
    """Lists all backends, also those that cannot be used, and why. Opens, probes and imports none of them."""
    loaded = load_plugins() if plugins is None else plugins
    return tuple(info for plugin in loaded.plugins for info in _infos(plugin))


def show_backend(
    name_or_profile: str, options: Mapping[str, str] | None = None, *, seconds: float = SHOW_SECONDS
) -> BackendDetails:
    """Describes a backend and its settings, and where each of them comes from now.

    Args:
        name_or_profile: Of a backend, or of a profile in the configuration file.
        options: From ``-o``.
        seconds: How long the backend's own code may take.

    Raises:
        PluginError: There is no such backend, or it cannot be loaded.
        ConfigurationError: The configuration file is wrong, or a key is unknown.
        Unavailable: It took too long.
        BackendBug: It took its process down.
    """
    reply = _in_child(
        {"do": "show", "backend": name_or_profile, "options": dict(options or {})}, name_or_profile, seconds
    )
    settings = tuple(
        SettingInfo(**{**setting, "variables": tuple(setting["variables"])}) for setting in reply.pop("settings")
    )
    return BackendDetails(**{**reply, "settings": settings, "schemes": tuple(reply["schemes"])})


def check_backend(
    name_or_profile: str,
    options: Mapping[str, str] | None = None,
    *,
    write: bool = False,
    trial: bool = False,
    checkpoint: str | Path | None = None,
    seconds: float = CHECK_SECONDS,
) -> CheckResult:
    """Asks a store whether it can be reached and what it does; writes only when told to.

    Args:
        name_or_profile: Of a backend, or of a profile in the configuration file.
        options: From ``-o``.
        write: Store a small marked bundle, read it back, compare, and delete it where the store can delete.
        trial: Let writers race in the store to find out which promises it keeps; it remembers the outcome.
        checkpoint: For backends that store beside it.
        seconds: How long all of it may take.

    Raises:
        PluginError: There is no such backend, or it cannot be loaded.
        ConfigurationError: A setting is wrong.
        Unsupported: The backend has nothing to write, or no promises to try.
        BackendError: The store cannot be reached, refuses, or does not do what it says.
        Unavailable: It took too long.
        BackendBug: It took its process down.
    """
    request = {
        "do": "check",
        "backend": name_or_profile,
        "options": dict(options or {}),
        "write": write,
        "trial": trial,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }
    reply = _in_child(request, name_or_profile, seconds)
    return CheckResult(**{**reply, **{key: tuple(reply[key]) for key in ("untried", "steps", "warnings")}})


# -- listing -----------------------------------------------------------------------------------------------------


def _infos(plugin: Plugin) -> list[BackendInfo]:
    if plugin.error is not None:
        names = [spec.name for spec in plugin.backends] or [plugin.entry]
        status: Literal["failed", "blocked"] = "blocked" if plugin.status == "blocked" else "failed"
        reason = "; ".join(filter(None, (plugin.error.message, plugin.error.hint)))
        return [BackendInfo(name, plugin.package, plugin.version, status, reason=reason) for name in names]
    infos = []
    for spec in plugin.backends:
        info = BackendInfo(spec.name, plugin.package, plugin.version, "ok", spec.help)
        if spec.extra and (absent := _missing(spec.extra)):
            info = replace(
                info, status="not installed", reason=f"it needs '{absent}'", install=install_command(spec.extra)
            )
        infos.append(info)
    return infos


def _missing(requirement: str, seen: frozenset[str] = frozenset()) -> str | None:
    """Returns the first distribution that a requirement needs and that is not installed, or None.

    Looks at names only: that is enough to say *not installed*, and importing says the rest. A requirement of an
    extra that also depends on the platform or the Python version is taken as met.
    """
    match = _REQUIREMENT.match(requirement)
    if match is None or requirement in seen:
        return None
    try:
        distribution = importlib.metadata.distribution(match["name"])
    except importlib.metadata.PackageNotFoundError:
        return match["name"]
    extras = {canonical(extra) for extra in re.findall(r"[\w.-]+", match["extras"] or "")}
    for line in distribution.requires or []:
        needed, _, marker = line.partition(";")
        of_extra = _EXTRA_MARKER.fullmatch(marker.strip())
        if of_extra is None or canonical(of_extra[1]) not in extras:
            continue
        if absent := _missing(needed.strip(), seen | {requirement}):
            return absent
    return None


_REQUIREMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(\[(?P<extras>[^\]]*)\])?")
_EXTRA_MARKER: Final = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


# -- the child process -------------------------------------------------------------------------------------------


def _in_child(request: Mapping[str, Any], backend: str, seconds: float) -> dict[str, Any]:
    """Has `backends_child` answer a request. It goes through a pipe: options may be secrets."""
    what = f"the backend '{escape(backend)}'"
    output, in_time = b"", True
    with subprocess.Popen(  # noqa: S603 - our own module, in this very Python
        # -P: or a folder `ari_core` in the current directory would be imported instead.
        [sys.executable, "-P", "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("ARI_DEBUG") else subprocess.DEVNULL,
        start_new_session=True,  # so that what it starts can be ended with it
    ) as process:
        try:
            output, _ = process.communicate(json.dumps(request).encode(), timeout=seconds)
        except subprocess.TimeoutExpired as late:
            # It may have answered, and something it started keeps the pipe open.
            output, in_time = late.output or b"", False
        finally:
            _end(process)
    try:
        reply: dict[str, Any] = json.loads(output)
    except ValueError:
        if not in_time:
            raise Unavailable(f"{what} did not answer within {seconds:g} s and was stopped") from None
        raise BackendBug(f"{what} took its process down: {_how_it_ended(process.returncode)}") from None
    if "error" in reply:
        raise _error(**reply["error"])
    return dict(reply["result"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it started; as long as it was not waited for, its id is nobody else's."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    return f"signal {signal.Signals(-status).name}"


def _error(kind: str, message: str, hint: str | None) -> AriError:
    known = {cls.__name__: cls for cls in errors.TABLE if cls.__init__ is AriError.__init__}
    cls = known.get(kind, BackendBug)
    return cls(message, hint=hint)
