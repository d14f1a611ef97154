"""Typed settings of backends and where each came from; the user's configuration file with its profiles.

A setting is taken from the first of these that has it (docs/configuration.md):

1. ``-o key=value``
2. the environment: ``ARI_<BACKEND>_<KEY>``, then the backend's documented aliases; empty counts as not set
3. the profile that was named with ``--backend PROFILE``
4. the backend's default

Values never appear in messages when they are, or may hold, a secret.
"""

from __future__ import annotations

import os
import re
import shlex
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydantic

from ari_core.contract import Backend, BackendSpec, OpenContext
from ari_core.errors import (
    AriError,
    BackendBug,
    CheckpointNotFoundError,
    ConfigurationError,
    UnknownBackend,
    escape,
)
from ari_core.plugins import LoadedPlugins, load_plugins
from ari_core.yamlfile import YamlFile, explain, read_yaml, unknown_key, validate

CONFIG_VARIABLE: Final = "ARI_CONFIG"
CONFIG_MAX_BYTES: Final = 256 * 1024
MASK: Final = "***"
MIRROR_FIELDS: Final = ("id", "bundle_sha256")
_FIELD: Final = re.compile(r"\{([^{}]*)\}")


class _ProfileModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    type: str


class _ConfigModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    backends: dict[str, _ProfileModel] = {}
    mirrors: list[str] = []


@dataclass(frozen=True, slots=True)
class Profile:
    """Named settings of one backend, from the configuration file.

    Attributes:
        name: As in ``--backend NAME``.
        type: Name of the backend.
        values: The settings.
        file: Where it stands.
    """

    name: str
    type: str
    values: Mapping[str, Any] = field(repr=False)
    file: YamlFile = field(repr=False)

    def source_of(self, key: str) -> str:
        """Names the place of one setting."""
        line = self.file.line_of(("backends", self.name, key))
        return f"profile '{self.name}' in {escape(str(self.file.path))}, line {line}"


@dataclass(frozen=True, slots=True)
class Config:
    """The user's configuration file; empty when there is none.

    Attributes:
        profiles: By name.
        mirrors: Where else to look for bundles: refs, with `MIRROR_FIELDS` in braces.
        file: The file, or None.
    """

    profiles: Mapping[str, Profile] = field(default_factory=dict)
    mirrors: tuple[str, ...] = ()
    file: YamlFile | None = None

    def mirrors_of(self, known: Mapping[str, str]) -> list[str]:
        """Returns where else one bundle may be.

        Args:
            known: What is known of it, of `MIRROR_FIELDS`; mirrors that need more are left out.
        """
        return [
            _FIELD.sub(lambda found: known[found[1]], mirror)
            for mirror in self.mirrors
            if all(known.get(name) for name in _FIELD.findall(mirror))
        ]


@dataclass(frozen=True, slots=True)
class Sourced:
    """Values for a backend's settings that are not checked yet.

    Attributes:
        values: By key; only what somebody set.
        sources: Where each of them comes from.
    """

    values: Mapping[str, Any] = field(repr=False)
    sources: Mapping[str, str]


def load_config(environment: Mapping[str, str] | None = None) -> Config:
    """Reads ``$ARI_CONFIG``, else ``$XDG_CONFIG_HOME/ari/config.yaml``, if there is one.

    Raises:
        ConfigurationError: ``$ARI_CONFIG`` names no file, others may write the file, or its contents are wrong;
            names file and line.
        LocalPermissionError: It cannot be read.
    """
    env = os.environ if environment is None else environment
    named = env.get(CONFIG_VARIABLE)
    path = Path(named) if named else _config_home(env) / "ari" / "config.yaml"
    try:
        file = read_yaml(path, CONFIG_MAX_BYTES, guarded=True)
    except CheckpointNotFoundError:
        if named:
            raise ConfigurationError(f"{CONFIG_VARIABLE} names '{escape(named)}', which does not exist") from None
        return Config()
    model = validate(_ConfigModel, file)
    for number, mirror in enumerate(model.mirrors):
        for name in _FIELD.findall(mirror):
            if name not in MIRROR_FIELDS:
                raise file.error(("mirrors", number), unknown_key(name, MIRROR_FIELDS))
    profiles = {
        name: Profile(name, profile.type, dict(profile.model_extra or {}), file)
        for name, profile in model.backends.items()
    }
    return Config(profiles, tuple(model.mirrors), file)


def open_backend(
    name_or_profile: str,
    options: Mapping[str, str] | None = None,
    context: OpenContext | None = None,
    plugins: LoadedPlugins | None = None,
    *,
    recorded: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Backend:
    """Opens a backend by its name or by a profile of the configuration file.

    Args:
        name_or_profile: As in ``--backend NAME``.
        options: From ``-o``.
        context: The run.
        plugins: Default: what is installed.
        recorded: Options that stand in a record. It may have come with a download, and the user's credentials are
            used here, so nothing in it decides where they go: `Backend.trust_settings` do not count. Nor do
            secrets, which no record of ours holds.
        environment: Instead of the process's own.

    Raises:
        PluginError: There is no such backend, or it cannot be loaded.
        ConfigurationError: A setting or the configuration file is wrong; or a record names a place that the user
            has to confirm.
        BackendError: The backend refuses its settings.
    """
    plugins = plugins or load_plugins()
    spec, profile = find_backend(name_or_profile, plugins, environment)
    if recorded:
        cls = plugins.load_class(spec)
        kept = {k: v for k, v in recorded.items() if not (k in cls.trust_settings or is_secret(cls.Settings, k))}
        options = {**kept, **(options or {})}
        _require_confirmed(cls, recorded, collect_settings(cls, options, profile, environment, names_of(plugins)))
    return _open(spec, profile, options, context, plugins, environment)


def _require_confirmed(cls: type[Backend], recorded: Mapping[str, str], sourced: Sourced) -> None:
    """Refuses to go without a place that a record names, where the user's credentials would go elsewhere then."""
    for key in cls.trust_settings:
        if key in recorded and key in cls.reader_settings and key not in sourced.values:
            raise ConfigurationError(
                f"the record names {escape(key)}={escape(recorded[key])}, which decides where your credentials go",
                hint=f"if that is right, give -o {escape(key)}={escape(shlex.quote(recorded[key]))}",
            )


def open_for_ref(
    ref: str,
    options: Mapping[str, str] | None = None,
    context: OpenContext | None = None,
    plugins: LoadedPlugins | None = None,
    *,
    recorded: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Backend:
    """Opens the backend that a ref belongs to, which is still to be resolved.

    Args:
        ref: The ref.
        options: From ``-o``.
        context: The run; with ``anonymous`` no secret but those in `options` is used.
        plugins: Default: what is installed.
        recorded: Options that stand beside the ref in a record, perhaps a stranger's: only
            `Backend.reader_settings` count; a caller who passes `trust_settings` opens it ``anonymous``.
        environment: Instead of the process's own.

    Raises:
        PluginError: No backend or several claim the ref, or the one that does cannot be loaded.
        ConfigurationError: A setting is wrong.
        BackendError: The backend refuses its settings.
    """
    plugins = plugins or load_plugins()
    spec = plugins.select(ref)
    known = plugins.load_class(spec).reader_settings
    options = {**{k: v for k, v in (recorded or {}).items() if k in known}, **(options or {})}
    return _open(spec, None, options, context, plugins, environment)


def find_backend(
    name_or_profile: str, plugins: LoadedPlugins, environment: Mapping[str, str] | None = None
) -> tuple[BackendSpec, Profile | None]:
    """Looks up a name among backends and profiles.

    Raises:
        PluginError: There is no such backend, or the plugin that should provide it failed.
        ConfigurationError: The configuration file is wrong, or a profile has a backend's name.
    """
    config = load_config(environment)
    backends = plugins.backends
    for name in config.profiles:
        if name in backends and config.file is not None:
            raise config.file.error(
                ("backends", name), f"the profile '{name}' has the name of a backend", hint="rename the profile"
            )
    profile = config.profiles.get(name_or_profile)
    if profile is None:
        return plugins.get(name_or_profile, others=config.profiles), None
    try:
        return plugins.get(profile.type), profile
    except UnknownBackend as error:
        place = ("backends", profile.name, "type")
        raise UnknownBackend(profile.file.error(place, error.message).message, hint=error.hint) from None


def load_settings(
    cls: type[Backend],
    *,
    options: Mapping[str, str] | None = None,
    profile: Profile | None = None,
    environment: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> Any:
    """Returns the settings of a backend, as an instance of its own model.

    Args:
        cls: The backend.
        options: From ``-o``.
        profile: From the configuration file.
        environment: Instead of the process's own.
        others: Names of other backends, whose variables are none of our business.

    Raises:
        ConfigurationError: An unknown key or variable (with the nearest one), a bad or a missing value; names its
            source.
    """
    return check_settings(cls, collect_settings(cls, options, profile, environment, others))


def collect_settings(
    cls: type[Backend],
    options: Mapping[str, str] | None = None,
    profile: Profile | None = None,
    environment: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
    *,
    anonymous: bool = False,
) -> Sourced:
    """Gathers what was set for a backend, without judging the values; see `load_settings`.

    With `anonymous`, secrets of the environment and of a profile are left out: only what was given with ``-o``
    for this very call goes to a place that a stranger's file names.

    Raises:
        ConfigurationError: An unknown key or variable.
    """
    known = list(fields_of(cls.Settings))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in (profile.values if profile else {}).items():
        if profile is not None and not (anonymous and is_secret(cls.Settings, key)):
            values[key], sources[key] = value, profile.source_of(key)
    env = os.environ if environment is None else environment
    for key in known:
        for variable in variables_of(cls, key):
            if env.get(variable) and not (anonymous and is_secret(cls.Settings, key)):
                values[key], sources[key] = env[variable], f"environment variable {variable}"
                break
    for key, value in (options or {}).items():
        values[key], sources[key] = value, f"-o {escape(key)}=…"
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{sources[key]}: {unknown_key(key, known)}")
    _refuse_unknown_variables(cls, known, env, others)
    return Sourced(values, sources)


def check_settings(cls: type[Backend], sourced: Sourced) -> Any:
    """Turns gathered values into the backend's own model.

    Raises:
        ConfigurationError: A bad or a missing value; names its source, never a secret.
    """
    values = {key: _expanded(cls, key, value, sourced) for key, value in sourced.values.items()}
    try:
        # Values of -o and the environment are text, so "3" must do for a number even in a strict model.
        return cls.Settings.model_validate(values, strict=False)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing" and key not in sourced.values:
            raise ConfigurationError(
                f"the backend '{cls.name}' needs the setting '{key}'",
                hint=f"give -o {key}=… or set {variables_of(cls, key)[0]}",
            ) from None
        what = explain(first, cls.Settings, show_input=not is_secret(cls.Settings, key))
        source = sourced.sources.get(key, f"settings of the backend '{cls.name}'")
        raise ConfigurationError(f"{source}: {_without_secrets(what, cls, sourced)}") from None


def names_of(plugins: LoadedPlugins) -> set[str]:
    """Returns the names of all backends, also of those that failed or are blocked, as far as they are known."""
    specs = {spec.name for plugin in plugins.plugins for spec in plugin.backends}
    return specs | {plugin.entry for plugin in plugins.plugins}


def variables_of(cls: type[Backend], key: str) -> tuple[str, ...]:
    """Returns the environment variables of a setting, the strongest first."""
    return (_prefix(cls.name) + key.upper(), *cls.aliases.get(key, ()))


def fields_of(model: type[pydantic.BaseModel]) -> dict[str, pydantic.fields.FieldInfo]:
    """Returns a model's fields by the key that sets them."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def is_secret(model: type[pydantic.BaseModel], key: str) -> bool:
    """Says whether a setting holds a secret, from its type."""
    info = fields_of(model).get(key)
    return info is not None and _mentions(info.annotation, pydantic.SecretStr, pydantic.SecretBytes)


def is_path(model: type[pydantic.BaseModel], key: str) -> bool:
    """Says whether a setting names a file or folder, from its type."""
    return _mentions(fields_of(model)[key].annotation, Path)


def reader_options(backend: Backend) -> dict[str, str]:
    """Returns what a reader of this backend's refs must give as ``-o``: its `reader_settings` that were set."""
    fields = fields_of(backend.Settings)
    values = {key: getattr(backend.settings, key) for key in backend.reader_settings}
    return {key: str(value) for key, value in values.items() if value not in {None, fields[key].default}}


def _open(
    spec: BackendSpec,
    profile: Profile | None,
    options: Mapping[str, str] | None,
    context: OpenContext | None,
    plugins: LoadedPlugins,
    environment: Mapping[str, str] | None,
) -> Backend:
    cls = plugins.load_class(spec)
    anonymous = context is not None and context.anonymous
    sourced = collect_settings(cls, options, profile, environment, others=names_of(plugins), anonymous=anonymous)
    settings = check_settings(cls, sourced)
    try:
        return cls(settings, context)
    except AriError:
        raise
    except Exception as error:
        what = _without_secrets(f"{type(error).__name__}: {escape(str(error))}", cls, sourced)
        raise BackendBug(f"the backend '{spec.name}' failed to open: {what}") from error


def _expanded(cls: type[Backend], key: str, value: Any, sourced: Sourced) -> Any:
    """Expands ``~``, which the shell does not do behind a ``=``, in what is a path.

    Raises:
        ConfigurationError: The path is empty, as in ``-o out=$UNSET``: that would be the current folder.
    """
    if not (isinstance(value, str) and is_path(cls.Settings, key)):
        return value
    if not value:
        raise ConfigurationError(f"{sourced.sources[key]}: '{key}' is empty, and must be a path")
    return os.path.expanduser(value)  # noqa: PTH111 - stays text


def _config_home(env: Mapping[str, str]) -> Path:
    """Returns the folder of configuration files (XDG base directories: a relative path is to be ignored)."""
    home = Path(env.get("XDG_CONFIG_HOME", ""))
    return home if home.is_absolute() else Path(env.get("HOME") or Path.home()) / ".config"


def _prefix(backend: str) -> str:
    return f"ARI_{backend.upper().replace('-', '_')}_"


def _refuse_unknown_variables(
    cls: type[Backend], known: list[str], env: Mapping[str, str], others: Iterable[str]
) -> None:
    """Refuses a variable that must be meant for us: silently ignored, it would send data to the wrong place."""
    prefix = _prefix(cls.name)
    longer = tuple(p for p in map(_prefix, others) if p != prefix and p.startswith(prefix))
    ours = {variable for key in known for variable in variables_of(cls, key)}
    for variable in sorted(env):
        if not variable.startswith(prefix) or variable in ours or variable.startswith(longer):
            continue
        if env[variable]:
            what = unknown_key(variable.removeprefix(prefix).lower(), known)
            raise ConfigurationError(f"environment variable {escape(variable)}: {what}")


def _mentions(annotation: Any, *kinds: type) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, kinds):
        return True
    return any(_mentions(part, *kinds) for part in typing.get_args(annotation))


def _without_secrets(text: str, cls: type[Backend], sourced: Sourced) -> str:
    """Masks secrets that a validator of the backend's own put into its message."""
    for key, value in sourced.values.items():
        if value and is_secret(cls.Settings, key):
            text = text.replace(escape(str(value)), MASK)
    return text
