"""What a registry server is told: its data directory or database, its store, its limits."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError, field_validator

from ari_core.errors import ConfigurationError, escape
from ari_core.layout import ID_DIGITS, MOST_DIGITS
from ari_core.names import quoted
from ari_core.spelling import did_you_mean
from ari_core.yamlfile import explain

PREFIX: Final = "ARI_REGISTRY_"
DATA_VARIABLE: Final = PREFIX + "DATA"
DEFAULT_BACKEND: Final = "filesystem-registry"
DEPRECATED_DATA: Final = ".ari/registry-data"

_OF_SERVE: Final = tuple(PREFIX + name for name in ("HOST", "PORT", "WORKERS"))
# Read by others: the command line, the client and docker-compose.yml.
_NOT_OURS: Final = frozenset((*_OF_SERVE, *(PREFIX + name for name in ("URL", "TOKEN", "NAME", "PUBLISH"))))
_SECRET: Final = frozenset({"options", "db"})


class ServerConfig(BaseModel):
    """Settings of a registry server; each is read from ``ARI_REGISTRY_<NAME>`` (docs/configuration.md).

    Workers are separate processes that read the same environment, so the command line sets that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    data: Path = Field(description="folder with tokens.db, registry.db and, by default, the artifacts")
    backend: str = Field(DEFAULT_BACKEND, description="backend, or profile of the configuration file, that stores")
    options: dict[str, str] = Field({}, description="settings of the backend, as a JSON object", repr=False)
    db: SecretStr | None = Field(
        None,
        description="PostgreSQL for tokens and index instead of files, as postgresql+psycopg://USER@HOST/NAME",
    )
    base_url: str | None = Field(None, description="public URL in front of it, for links in answers")
    max_upload: ByteSize = Field(ByteSize(10 * 1024**3), gt=0, description="refuse larger uploads (10 GiB)")
    quota: ByteSize | None = Field(None, gt=0, description="bytes that one user may own; default: no limit")
    id_digits: int = Field(ID_DIGITS, ge=ID_DIGITS, le=MOST_DIGITS, description="digits of new ids, 16 to 64")
    body_timeout: float = Field(60.0, gt=0, le=86400, description="seconds to wait for more of an upload")
    uploads: int = Field(8, ge=1, le=1000, description="uploads that one worker receives at a time; more wait")
    metrics: Literal["open", "token", "off"] = Field("open", description="who may read /metrics")
    accel: str | None = Field(
        None, pattern=r"^/[\w./-]*$", description="internal nginx location for X-Accel-Redirect, as /_artifacts"
    )
    redirect: int | None = Field(
        None, ge=1, le=7 * 86400, description="send downloads to the store by a link good for so many seconds"
    )

    @field_validator("db", mode="before")
    @classmethod
    def _postgresql(cls, value: Any) -> Any:
        if value is None:
            return None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        scheme, found, place = text.partition("://") if isinstance(text, str) else ("", "", "")
        if scheme not in {"postgresql+psycopg", "postgresql"} or not found or not place:
            raise ValueError("must be postgresql+psycopg://USER:PASSWORD@HOST/NAME: no other databases are known")
        if "@" in place.partition("@")[2]:  # a part of a password would be taken for a host, and named in messages
            raise ValueError("has more than one @: write %40 for one in a name or password")
        return SecretStr(f"postgresql+psycopg://{place}")

    @field_validator("options", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise ValueError("must be a JSON object") from None

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.absolute()

    @field_validator("base_url")
    @classmethod
    def _without_slash(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in value
        ):
            raise ValueError("must be a URL such as https://ari.example.org")
        return value.rstrip("/")


def load_config(environment: Mapping[str, str] | None = None, **given: Any) -> ServerConfig:
    """Returns the configuration: what is `given` and not None, else the environment, else defaults.

    An empty variable counts as not set.

    Raises:
        ConfigurationError: A value is bad, a variable unknown, or there is no data directory to be found.
    """
    env = os.environ if environment is None else environment
    variables = {variable_of(field): field for field in ServerConfig.model_fields}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in _NOT_OURS or not env[variable]:
            continue
        if variable not in variables:
            near = did_you_mean(variable, [*variables, *_NOT_OURS])
            raise ConfigurationError(
                f"there is no setting for the environment variable {escape(variable)}{near}",
                hint=f"one of: {', '.join((*variables, *_OF_SERVE))}",
            )
        values[variables[variable]], sources[variables[variable]] = env[variable], variable
    for field, value in given.items():
        if value is not None:
            values[field], sources[field] = value, "--" + field.replace("_", "-")
    if "data" not in values:
        values["data"] = _deprecated_data(env)
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        may_show = key not in _SECRET or first["type"] == "value_error"  # which is our own message
        what = explain(first, ServerConfig, show_input=may_show)
        raise ConfigurationError(f"{sources.get(key, 'registry configuration')}: {what}") from None


def _deprecated_data(env: Mapping[str, str]) -> Path:
    home = env.get("HOME")
    data = Path(home) / DEPRECATED_DATA if home else None
    if data is None or not data.is_dir():
        raise ConfigurationError(
            "there is no data directory for the registry", hint=f"set {DATA_VARIABLE}, or give --data-dir DIR"
        )
    warnings.warn(
        f"the data directory {quoted(str(data))} is used because {DATA_VARIABLE} is not set; "
        f"that ends with version 1.0: set {DATA_VARIABLE} to it",
        DeprecationWarning,
        stacklevel=3,
    )
    return data


def variable_of(field: str) -> str:
    """Returns the environment variable of a field of `ServerConfig`."""
    return PREFIX + field.upper()


def create_config_environment(config: ServerConfig) -> dict[str, str]:
    """Returns the variables from which `load_config` makes the same configuration in a worker."""
    values = config.model_dump(exclude_none=True)
    return {variable_of(field): _written(value) for field, value in values.items()}


def _written(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, dict) else str(value)
