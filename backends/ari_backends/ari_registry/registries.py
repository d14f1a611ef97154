"""Which registries there are, and which token belongs to which: ``registries.yaml``, else the environment.

A file in the checkpoint or the current folder may have come with a download. From it only ``$ARI_*`` variables
expand, and it is refused where others could have written it.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httpx2
from pydantic import BaseModel, ConfigDict, SecretStr, field_validator

from ari_backends._http import TOKEN, parse_url
from ari_backends.ari_registry.places import FILE_VARIABLE, URL_VARIABLE, Place, places
from ari_core.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    InvalidConfiguration,
    escape,
    from_os_error,
)
from ari_core.names import quoted
from ari_core.spelling import did_you_mean
from ari_core.yamlfile import YamlFile, check_guarded, read_yaml, validate

NAME_VARIABLE: Final = "ARI_REGISTRY_NAME"
TOKEN_VARIABLE: Final = "ARI_REGISTRY_TOKEN"  # noqa: S105 - the name of a variable
_MAX_BYTES: Final = 256 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE: Final = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


@dataclass(frozen=True, slots=True)
class Registry:
    """One registry.

    Attributes:
        name: As in ``ari://NAME/ID``; empty for the environment's own without ``$ARI_REGISTRY_NAME``.
        url: Its address, without a slash at the end.
        where: Where it is configured.
        untrusted: The file, if it may have come with a download.
    """

    name: str
    url: str
    where: str
    untrusted: Path | None = None
    _token: str | None = field(default=None, repr=False)
    _token_where: str = ""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name} ({self.url})" if self.name else self.url

    @property
    def token_from(self) -> str | None:
        """Says where the token comes from, or None if there is none."""
        if self._token is None:
            return None
        variable = self._variable()
        if self._token_where == variable:
            return variable
        return f"{variable}, named in {self._token_where}" if variable else self._token_where

    def token(self) -> SecretStr | None:
        """Returns the token.

        Raises:
            ConfigurationError: Its variable is not set, or must not be read here.
        """
        if self._token is None:
            return None
        variable, value = self._variable(), self._token
        if variable:
            value = self._expanded(variable)
        elif value.startswith("$"):
            raise self._error("the token is neither $NAME nor ${NAME} nor a token")
        elif value in os.environ:
            raise self._error("the token is the name of a variable", hint="write $ before it")
        if not TOKEN.fullmatch(value):
            raise self._error("the token is not one word of printable ASCII characters")
        return SecretStr(value)

    def _expanded(self, variable: str) -> str:
        if self.untrusted and not variable.startswith("ARI_"):
            raise self._error(
                f"refused: the token names the variable {variable}, but this file may have come with a download, "
                "so only $ARI_… variables are read",
                hint=f"if the file is yours, name it in {FILE_VARIABLE}",
            )
        value = os.environ.get(variable)
        if not value:
            raise self._error(f"the variable {variable} is not set, and should hold the token for {self.url}")
        own = os.environ.get(URL_VARIABLE)
        if self.untrusted and own and variable == TOKEN_VARIABLE and base_url(own) != self.url:
            raise self._error(
                f"refused: {TOKEN_VARIABLE} is for {base_url(own)} ({URL_VARIABLE}), not for {self.url}"
            )
        return value

    def _variable(self) -> str | None:
        match = _VARIABLE.fullmatch(self._token or "")
        return (match[1] or match[2]) if match else None

    def _error(self, what: str, *, hint: str | None = None) -> ConfigurationError:
        return ConfigurationError(f"{self._token_where}: {what}", hint=hint)


@dataclass(frozen=True, slots=True)
class Registries:
    """All that are configured, in order.

    Attributes:
        entries: The registries.
        looked: Where was looked for the file.
        place: Where it was found, if it was.
        notes: What the user should know.
    """

    entries: tuple[Registry, ...]
    looked: tuple[Place, ...] = ()
    place: Place | None = None
    notes: tuple[str, ...] = ()

    def candidates(self, name: str | None) -> tuple[Registry, ...]:
        """Returns the registry of that name, else the one that ``$ARI_REGISTRY_NAME`` picks, else all.

        Raises:
            InvalidConfiguration: There is none, or none of that name.
        """
        if not self.entries:
            looked = " or ".join(quoted(str(place.path)) for place in self.looked if not place.deprecated)
            absent = f": there is no {looked}" if looked else ""
            raise InvalidConfiguration(
                f"no registry is configured{self._where() or absent}",
                hint=f"name a file in {FILE_VARIABLE}, set {URL_VARIABLE} and {TOKEN_VARIABLE}, "
                "or give -o url=https://HOST",
            )
        wanted = name or os.environ.get(NAME_VARIABLE)
        if not wanted:
            return self.entries
        for entry in self.entries:
            if entry.name == wanted:
                return (entry,)
        names = [entry.name for entry in self.entries if entry.name]
        known = did_you_mean(wanted, names) or (f"; known: {', '.join(names)}" if names else "")
        by = "" if name else f" ({NAME_VARIABLE})"
        raise InvalidConfiguration(f"there is no registry {quoted(wanted[:64])}{by}{self._where()}{known}")

    def _where(self) -> str:
        return f" in {quoted(str(self.place.path))}" if self.place else ""


def base_url(text: str) -> str:
    """Returns a registry's address in normal form, without a slash at the end.

    Raises:
        InvalidConfiguration: It is not https (or http on this very machine), or holds more than an address.
    """
    url = parse_url(text)
    if "?" in text or "#" in text:
        raise InvalidConfiguration("the address of a registry has no '?' or '#' part")
    return str(url).rstrip("/")


def is_below(url: httpx2.URL, base: str) -> bool:
    """Says whether `url` is of the registry at `base`; a server may read an escaped ``..`` as a way out of it."""
    return str(url).startswith(base + "/") and ".." not in re.split(r"[/\\]", unquote(str(url)))


def find_registries(checkpoint: Path | None) -> Registries:
    """Reads the first ``registries.yaml`` that there is, else the environment.

    Raises:
        ConfigurationError: The file is wrong, refused, or named and missing; names file and line.
        LocalPermissionError: It cannot be read.
    """
    looked = []
    for place in places(checkpoint):
        looked.append(place)
        file = _read(place)
        if file is not None:
            notes = _deprecation(place) if place.deprecated else ()
            return Registries(_entries(file, place), tuple(looked), place, notes)
    return Registries(_from_environment(), tuple(looked))


def _deprecation(place: Place) -> tuple[str, ...]:
    note = (
        f"{quoted(str(place.path))} is deprecated and will not be read by version 1.0: move it to .ari/ in the "
        f"checkpoint, or name it in {FILE_VARIABLE}"
    )
    warnings.warn(note, DeprecationWarning, stacklevel=2)
    return (note,)


def _read(place: Place) -> YamlFile | None:
    try:
        file = read_yaml(place.path, _MAX_BYTES, guarded=place.untrusted)
        if place.untrusted:  # in its folder, somebody else could exchange it
            check_guarded(place.path.parent, place.path.parent.stat())
    except (CheckpointNotFoundError, FileNotFoundError, NotADirectoryError):
        if place.named:
            raise ConfigurationError(
                f"{place.what} names {quoted(str(place.path))}, which does not exist"
            ) from None
        return None
    except OSError as error:
        raise from_os_error(error, f"reading {quoted(str(place.path))}") from error
    return file


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    url: str
    token: Any = None  # judged below: a validator's message would show it

    @field_validator("name")
    @classmethod
    def _one_word(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("must be 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit")
        return name

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        try:
            return base_url(url)
        except InvalidConfiguration as error:
            raise ValueError(error.message) from None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    registries: list[_Entry]


def _entries(file: YamlFile, place: Place) -> tuple[Registry, ...]:
    found: dict[str, Registry] = {}
    for index, entry in enumerate(validate(_File, file).registries):
        here = ("registries", index)
        if entry.name in found:
            raise file.error((*here, "name"), f"the name '{entry.name}' is there twice")
        if not (entry.token is None or isinstance(entry.token, str)):
            raise file.error((*here, "token"), "'token' must be text: put it in quotes")
        found[entry.name] = Registry(
            entry.name,
            entry.url,
            _line(file, here),
            place.path if place.untrusted else None,
            entry.token or None,
            _line(file, (*here, "token")),
        )
    return tuple(found.values())


def _line(file: YamlFile, location: tuple[str | int, ...]) -> str:
    return f"{escape(str(file.path))}, line {file.line_of(location)}"


def _from_environment() -> tuple[Registry, ...]:
    url = os.environ.get(URL_VARIABLE)
    if not url:
        return ()
    try:
        base = base_url(url)
    except InvalidConfiguration as error:
        raise ConfigurationError(
            f"environment variable {URL_VARIABLE}: {error.message}", hint=error.hint
        ) from None
    name = os.environ.get(NAME_VARIABLE) or ""
    token = f"${TOKEN_VARIABLE}" if os.environ.get(TOKEN_VARIABLE) else None
    return (Registry(name, base, URL_VARIABLE, None, token, TOKEN_VARIABLE),)
