"""Finds plugins, and keeps a broken one from breaking anything else (plugins.md, "Isolation").

A plugin is a module named by an entry point of the group ``ari_registry``; it implements hooks that return plain
descriptions. Loading imports those modules only, never a backend's own module or an SDK.

Each plugin is registered with a `pluggy.PluginManager` of its own: its hooks can neither wrap nor see another's,
and one that is refused leaves no trace. All or nothing: a plugin with one fault offers nothing and is one line in
`LoadedPlugins.problems`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pluggy

from ari_core.contract import API, Backend, BackendSpec, Capabilities, Claim, CommandGroupSpec
from ari_core.errors import (
    ApiMismatch,
    ConfigurationError,
    DuplicateBackend,
    PluginError,
    PluginLoadError,
    UnknownBackend,
    escape,
)
from ari_core.spelling import did_you_mean

GROUP: Final = "ari_registry"
"""Entry-point group, and the project name of the pluggy markers."""

BUILT_IN: Final = "ari-registry"
"""The distribution whose plugins come first and are never blocked."""

SELECT_VARIABLE: Final = "ARI_PLUGINS"
STRICT_VARIABLE: Final = "ARI_PLUGINS_STRICT"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

# What a foreign function may throw at us. SystemExit is not an Exception; KeyboardInterrupt is the user's.
_ANY_FAILURE: Final = (Exception, SystemExit)
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_IMPORT_STRING: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MAX_LINE: Final = 200
# ``ARI_<NAME>_…`` are variables of the program itself.
_RESERVED: Final = frozenset({"checkpoint", "limit", "plugins", "publish", "registries", "registry", "test"})
# A ref of each usual kind: asking who claims these tells which schemes are known.
_SAMPLES: Final = ("file:///x/y", "https://x/y", "ari://x/y", "s3://x/y", "doi:10.5281/zenodo.1")

_S = TypeVar("_S", BackendSpec, CommandGroupSpec)


class Hooks:
    """What a plugin module may implement, each function marked with `hookimpl`."""

    @staticmethod
    @hookspec
    def ari_backends() -> list[BackendSpec]:  # type: ignore[empty-body]
        """Describes backends. Called at every start: import no SDK, read no file."""

    @staticmethod
    @hookspec
    def ari_command_groups() -> list[CommandGroupSpec]:  # type: ignore[empty-body]
        """Describes groups of commands, ``ari NAME …``. The same rules."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point and what became of it.

    Attributes:
        key: ``distribution:entry-point``; two packages may use one entry-point name.
        package: The distribution's name.
        version: The distribution's version.
        entry: The entry point's name.
        status: ``blocked`` ones were not even imported.
        error: Why it failed or is blocked.
        backends: What it offers; for a failed one, what it tried to.
        groups: Command groups, likewise.
    """

    key: str
    package: str
    version: str
    entry: str
    status: Literal["ok", "failed", "blocked"]
    error: PluginError | None = None
    backends: tuple[BackendSpec, ...] = ()
    groups: tuple[CommandGroupSpec, ...] = ()

    def may_provide(self, backend: str) -> bool:
        """Says whether a backend of that name may be this plugin's, also when it could not even be imported."""
        return backend in {self.entry, self.package, *(spec.name for spec in self.backends)}


@dataclass(slots=True)
class LoadedPlugins:
    """All plugins of one start.

    Attributes:
        plugins: In loading order: built-in first, then by distribution and entry point.
        problems: One error for each plugin that does not work, to be shown as one warning line each. It can grow:
            a ``claims`` function that fails is found only when it is asked.
    """

    plugins: tuple[Plugin, ...] = ()
    problems: list[PluginError] = field(default_factory=list)
    _failing_claims: set[str] = field(default_factory=set)

    @property
    def backends(self) -> dict[str, BackendSpec]:
        """The backends that can be asked for, by name."""
        return {spec.name: spec for plugin in self._working() for spec in plugin.backends}

    @property
    def groups(self) -> dict[str, CommandGroupSpec]:
        """The command groups, by name."""
        return {spec.name: spec for plugin in self._working() for spec in plugin.groups}

    def get(self, name: str, others: Iterable[str] = ()) -> BackendSpec:
        """Returns the backend called `name`.

        Args:
            name: As in ``--backend NAME``.
            others: Further names to suggest when there is no such backend.

        Raises:
            PluginError: The plugin that should provide it failed or is blocked; says why.
            UnknownBackend: Nobody provides it; says which names are near.
        """
        backends = self.backends
        if name in backends:
            return backends[name]
        for plugin in self.plugins:
            if plugin.error is not None and plugin.may_provide(name):
                raise type(plugin.error)(plugin.error.message, hint=plugin.error.hint) from plugin.error
        message = f"there is no backend '{escape(name[:_MAX_LINE])}'{did_you_mean(name, [*backends, *others])}"
        raise UnknownBackend(message, hint=self._where_to_look())

    def select(self, ref: str) -> BackendSpec:
        """Returns the backend that a ref belongs to: the one with the most specific claim.

        Raises:
            UnknownBackend: None claims it; says which schemes are near.
            DuplicateBackend: Several claim it equally.
        """
        claims = [(self.claim(spec, ref), spec) for spec in self.backends.values()]
        best = max((claim for claim, _ in claims), default=Claim.NO)
        if best is Claim.NO:
            raise self._nobody_claims(ref)
        first, *more = [spec for claim, spec in claims if claim is best]
        if more:
            raise DuplicateBackend(
                f"'{_scheme(ref)}…' is claimed by the backends '{first.name}' and '{more[0].name}'",
                hint=f"leave one of them out with {SELECT_VARIABLE}, a list of the packages to use",
            )
        return first

    def load_class(self, spec: BackendSpec) -> type[Backend]:
        """Imports a backend's class.

        Raises:
            PluginLoadError: It is not installed (the hint is the command that installs it), cannot be imported, or
                is not what its spec says.
        """
        cls = _import(f"the backend '{spec.name}'", spec.backend, spec.extra)
        if fault := _class_fault(cls, spec):
            raise PluginLoadError(
                f"the backend '{spec.name}' is broken: {spec.backend} {fault}", hint="report this to its author"
            )
        return cls  # type: ignore[no-any-return]

    def load_group(self, spec: CommandGroupSpec) -> Any:
        """Imports a command group, a `click.Command`.

        Raises:
            PluginLoadError: It is not installed (the hint is the command that installs it) or cannot be imported.
        """
        return _import(f"the command `ari {spec.name}`", spec.app, spec.extra)

    def schemes(self, spec: BackendSpec) -> tuple[str, ...]:
        """Returns which of the usual schemes, and the backend's own name as a scheme, a backend claims."""
        samples = (*_SAMPLES, f"{spec.name}://x/y", f"{spec.name}:x")
        return tuple(dict.fromkeys(ref.partition(":")[0] for ref in samples if self.claim(spec, ref)))

    def claim(self, spec: BackendSpec, ref: str) -> Claim:
        """Asks a backend whether a ref is its own; one whose function fails says no, and is a problem once."""
        try:
            claim: object = spec.claims(ref)
            if isinstance(claim, Claim):
                return claim
            reason = f"returned {type(claim).__name__}, not a Claim"
        except _ANY_FAILURE as error:
            reason = f"failed: {_reason(error)}"
        if spec.name not in self._failing_claims:
            self._failing_claims.add(spec.name)
            self.problems.append(
                PluginError(f"the backend '{spec.name}' takes no refs: its claims function {reason}")
            )
        return Claim.NO

    def configured(self, checkpoint: Path | None) -> list[tuple[BackendSpec, str]]:
        """Returns the backends that the user has set up, each with the place where.

        One whose function fails counts as not set up, and is a problem.
        """
        found = []
        for spec in self.backends.values():
            try:
                where = spec.configured(checkpoint) if spec.configured else None
            except _ANY_FAILURE as error:
                self.problems.append(
                    PluginError(f"the backend '{spec.name}' cannot say whether it is set up: {_reason(error)}")
                )
                continue
            if where:
                found.append((spec, escape(str(where))))
        return found

    def _working(self) -> Iterator[Plugin]:
        return (plugin for plugin in self.plugins if plugin.status == "ok")

    def _nobody_claims(self, ref: str) -> UnknownBackend:
        shown = escape(ref[:_MAX_LINE])
        scheme, colon, _ = ref.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
            return UnknownBackend(f"no backend can read '{shown}': it has no scheme", hint=self._where_to_look())
        known = sorted({s for spec in self.backends.values() for s in self.schemes(spec)})
        near = did_you_mean(scheme, known) or (f"; known: {', '.join(known)}" if known else "")
        return UnknownBackend(f"no backend reads refs with '{scheme}:'{near}", hint=self._where_to_look())

    def _where_to_look(self) -> str:
        idle = sum(plugin.status != "ok" for plugin in self.plugins)
        more = f", and why {idle} more cannot be used" if idle else ""
        return f"`ari backends list` shows what is installed{more}"


def load_plugins(
    distributions: Iterable[importlib.metadata.Distribution] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedPlugins:
    """Loads all plugins, built-in first, then by distribution and entry point; once in a process.

    Args:
        distributions: Where to look instead of in the running Python; always looks afresh.
        environment: ``ARI_PLUGINS`` (``none``, or a comma-separated list of the packages to load) and
            ``ARI_PLUGINS_STRICT`` (``1`` makes the first problem an error).

    Raises:
        ConfigurationError: A variable has a bad value.
        PluginError: There is a problem and ``ARI_PLUGINS_STRICT`` is set.
    """
    env = os.environ if environment is None else environment
    wanted = _wanted(env)
    strict = _strict(env)
    if distributions is None:
        loaded = _load_installed(wanted, tuple(sys.path))
    else:
        loaded = _load_all(distributions, wanted)
    if strict and loaded.problems:
        raise loaded.problems[0]
    return loaded


@functools.cache
def _load_installed(wanted: frozenset[str] | None, _path: tuple[str, ...]) -> LoadedPlugins:
    return _load_all(importlib.metadata.distributions(), wanted)


def _load_all(
    distributions: Iterable[importlib.metadata.Distribution], wanted: frozenset[str] | None
) -> LoadedPlugins:
    loaded = LoadedPlugins()
    packages = set()
    for package, version, entry_point in _entry_points(distributions, loaded.problems):
        packages.add(package)
        if wanted is None or package in wanted or package == BUILT_IN:
            plugin = _load(package, version, entry_point, loaded)
        else:
            plugin = _blocked(package, version, entry_point.name)
        loaded.plugins += (plugin,)
    for absent in sorted((wanted or frozenset()) - packages):
        loaded.problems.append(PluginLoadError(f"{SELECT_VARIABLE} names '{escape(absent)}', which has no plugin"))
    return loaded


def install_command(requirement: str) -> str:
    """Returns the command that installs what is missing."""
    return f"pip install '{requirement}'"


# -- finding -----------------------------------------------------------------------------------------------------


def canonical(package: str) -> str:
    """Returns a distribution's name in its one normal spelling (packaging.python.org, "Name normalization")."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _entry_points(
    distributions: Iterable[importlib.metadata.Distribution], problems: list[PluginError]
) -> list[tuple[str, str, importlib.metadata.EntryPoint]]:
    """Returns package, version and entry point of every plugin.

    `importlib.metadata.entry_points` would do, but one package with a damaged file stops it for all.
    """
    found: dict[tuple[str, str], tuple[str, str, importlib.metadata.EntryPoint]] = {}
    versions: dict[str, str] = {}
    for distribution in distributions:
        try:
            ours = distribution.entry_points.select(group=GROUP)
            if not ours:
                continue
            package, version = canonical(distribution.name), distribution.version
        except _ANY_FAILURE as error:
            if _names_our_group(distribution):
                where = escape(str(getattr(distribution, "_path", "a package")))
                problems.append(PluginLoadError(f"the plugin metadata of {where} is damaged: {_reason(error)}"))
            continue
        if package in versions:
            continue  # the same package further down the path: the first one is what imports find
        versions[package] = version
        for entry_point in ours:
            found.setdefault((package, entry_point.name), (package, version, entry_point))
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != BUILT_IN, *key))]


def _names_our_group(distribution: importlib.metadata.Distribution) -> bool:
    try:
        return f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or "")
    except _ANY_FAILURE:
        return False


def _wanted(env: Mapping[str, str]) -> frozenset[str] | None:
    """Returns the packages whose plugins may load besides the built-in ones; None for all."""
    text = env.get(SELECT_VARIABLE, "").strip()
    names = frozenset(canonical(name.strip()) for name in text.split(",") if name.strip())
    return names - {"none"} if text else None


def _strict(env: Mapping[str, str]) -> bool:
    text = env.get(STRICT_VARIABLE, "")
    if text not in {"", "0", "1"}:
        raise ConfigurationError(f"{STRICT_VARIABLE} must be 0 or 1")
    return text == "1"


# -- loading one -------------------------------------------------------------------------------------------------


def _blocked(package: str, version: str, entry: str) -> Plugin:
    key = f"{package}:{entry}"
    why = PluginLoadError(
        f"the plugin {key} ({version}) is blocked by {SELECT_VARIABLE}",
        hint=f"add '{package}' to {SELECT_VARIABLE}, or unset it",
    )
    return Plugin(key, package, version, entry, "blocked", why)


def _load(package: str, version: str, entry_point: importlib.metadata.EntryPoint, before: LoadedPlugins) -> Plugin:
    key = f"{package}:{entry_point.name}"
    backends: tuple[BackendSpec, ...] = ()
    groups: tuple[CommandGroupSpec, ...] = ()
    try:
        hooks = _hooks(entry_point.load(), key)
        backends = _specs(hooks.ari_backends, BackendSpec)
        groups = _specs(hooks.ari_command_groups, CommandGroupSpec)
        _check_backends(backends, package, before)
        _check_groups(groups, before)
    except _ANY_FAILURE as error:
        cls = type(error) if isinstance(error, PluginError) else PluginLoadError
        hint = error.hint if isinstance(error, PluginError) else None
        problem = cls(
            f"the plugin {key} ({version}) is not used: {_reason(error)}",
            hint=hint or f"upgrade or remove it: pip install --upgrade {package}",
        )
        problem.__cause__ = error
        before.problems.append(problem)
        return Plugin(key, package, version, entry_point.name, "failed", problem, backends, groups)
    return Plugin(key, package, version, entry_point.name, "ok", None, backends, groups)


def _hooks(module: object, key: str) -> Any:
    """Registers a plugin with a manager of its own and returns its hooks."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(module, key)
    implemented = manager.get_hookcallers(module) or []
    if not implemented:
        raise PluginLoadError(f"it implements no hook; is @hookimpl missing? Hooks: {', '.join(_HOOK_NAMES)}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        unknown = next(caller.name for caller in implemented if not caller.has_spec())
        raise PluginLoadError(f"unknown hook '{unknown}'{did_you_mean(unknown, _HOOK_NAMES)}") from None
    return manager.hook


def _specs(hook: pluggy.HookCaller, kind: type[_S]) -> tuple[_S, ...]:
    found: list[_S] = []
    # pluggy leaves out a hook that returned None, as one with a forgotten `return` does.
    for returned in hook() or [None] * len(hook.get_hookimpls()):
        if not isinstance(returned, (list, tuple)):
            raise PluginLoadError(f"{hook.name} returned {type(returned).__name__}, not a list of {kind.__name__}")
        for spec in returned:
            if type(spec) is not kind:
                raise PluginLoadError(
                    f"{hook.name} returned a {type(spec).__name__} where {kind.__name__} belongs"
                )
            found.append(spec)
    # Names first: a refused plugin is remembered by the names it asked for.
    for spec in found:
        name: object = spec.name
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _MAX_LINE:
            raise PluginLoadError(f"{name!r} is no name: lower-case letters, digits and single '-'")
    return tuple(found)


def _check_backends(specs: Sequence[BackendSpec], package: str, before: LoadedPlugins) -> None:
    taken = set(before.backends)
    for spec in specs:
        what = f"backend '{spec.name}'"
        # Another API may have other fields, so nothing else is looked at before.
        if type(spec.api) is not int or spec.api != API:
            raise ApiMismatch(
                f"{what} is written for API {spec.api!r}, this program has API {API}",
                hint=f"install versions of '{package}' and '{BUILT_IN}' that fit each other",
            )
        _check_common(what, spec.backend, spec.help, spec.extra)
        if not callable(spec.claims):
            raise PluginLoadError(f"{what}: claims is not a function")
        if not (spec.configured is None or callable(spec.configured)):
            raise PluginLoadError(f"{what}: configured is not a function")
        if spec.name in _RESERVED:
            raise PluginLoadError(f"{what}: this name is the program's own (ARI_{spec.name.upper()}_… variables)")
        if spec.name in taken:
            raise DuplicateBackend(f"the backend name '{spec.name}' is taken{_by(spec.name, before)}")
        taken.add(spec.name)


def _check_groups(specs: Sequence[CommandGroupSpec], before: LoadedPlugins) -> None:
    taken = set(before.groups)
    for spec in specs:
        what = f"command group '{spec.name}'"
        _check_common(what, spec.app, spec.help, spec.extra)
        if spec.name in taken:
            raise DuplicateBackend(f"the command group '{spec.name}' is taken")
        taken.add(spec.name)


def _check_common(what: str, target: object, text: object, extra: object) -> None:
    if not isinstance(target, str) or not _IMPORT_STRING.fullmatch(target):
        raise PluginLoadError(f"{what}: {target!r} is no import string 'package.module:Name'")
    if not _is_line(text):
        raise PluginLoadError(f"{what}: help must be one line of text")
    if extra is not None and not (_is_line(extra) and "'" not in str(extra)):
        raise PluginLoadError(f"{what}: extra must be a requirement such as 'package[extra]'")


def _is_line(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _MAX_LINE and text.isprintable()


def _by(name: str, before: LoadedPlugins) -> str:
    owners = [p.key for p in before.plugins if p.status == "ok" and name in {spec.name for spec in p.backends}]
    return f" by {owners[0]}" if owners else " by this very plugin"


def _import(what: str, import_string: str, extra: str | None) -> Any:
    module, _, name = import_string.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except _ANY_FAILURE as error:
        missing = error.name if isinstance(error, ImportError) else None
        if extra is None or missing in {None, module}:
            raise PluginLoadError(f"{what} cannot be imported: {_reason(error)}") from error
        raise PluginLoadError(
            f"{what} is not installed: there is no '{missing}'", hint=install_command(extra)
        ) from error


def _class_fault(cls: object, spec: BackendSpec) -> str | None:
    import pydantic  # noqa: PLC0415 - only a backend that is really used is worth its start-up time

    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        return "is not a subclass of ari_core.contract.Backend"
    if inspect.isabstract(cls):
        return f"lacks {', '.join(sorted(cls.__abstractmethods__))}"
    if getattr(cls, "name", None) != spec.name:
        return f"calls itself {getattr(cls, 'name', None)!r}, its spec says {spec.name!r}"
    if not isinstance(getattr(cls, "capabilities", None), Capabilities):
        return "has no Capabilities"
    model = getattr(cls, "Settings", None)
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
        return "has no pydantic model called Settings"
    return None


def _scheme(ref: str) -> str:
    """Returns all of a ref that may be shown: behind the scheme there can be a password."""
    return escape(ref.partition(":")[0][:_MAX_LINE]) + ":"


def _reason(error: BaseException) -> str:
    """Returns what went wrong as one short line."""
    if isinstance(error, PluginError):
        return error.message
    text = escape(" ".join(str(error).split()))
    text = text[:_MAX_LINE] + "…" if len(text) > _MAX_LINE else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_HOOK_NAMES: Final = sorted(name for name in vars(Hooks) if name.startswith("ari_"))
