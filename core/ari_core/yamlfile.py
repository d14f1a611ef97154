"""YAML files written by people: read strictly, and every complaint names file, line and what would be right.

Only the plain part of YAML is taken: mappings with text keys, lists, text, numbers, true/false and null. Aliases
are refused (a few lines of them expand to billions of values), duplicate keys are refused (readers keep the last
one silently), and what YAML 1.1 makes of ``010`` (8), ``12:30`` (750) or ``2025-01-01`` (a date) stays text.
"""

from __future__ import annotations

import os
import re
import stat
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import yaml

from ari_core.errors import ConfigurationError, escape, from_os_error
from ari_core.spelling import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    _M = TypeVar("_M", bound=BaseModel)

__all__ = [
    "Location",
    "YamlFile",
    "check_guarded",
    "explain",
    "parse_yaml",
    "read_yaml",
    "unknown_key",
    "validate",
]

Location = tuple[str | int, ...]

MOST_VALUES: Final = 150_000
_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = {_TAG + name for name in ("str", "timestamp", "merge", "value")}
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT: Final = re.compile(r"[-+]?[0-9]{0,30}\.[0-9]{1,30}([eE][-+]?[0-9]{1,3})?")
_SHOWN: Final = 60
_STAR: Final = "a glob that starts with * needs quotes: '*.py'"  # what an alias is meant to be, nearly always
_FOREIGN_WRITERS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that was read.

    Attributes:
        path: Where it is.
        data: Its contents; ``{}`` for an empty file.
        lines: Line (from 1) of every key and list item, by location: ``("include", 0)``.
    """

    path: Path
    data: dict[str, Any]
    lines: Mapping[Location, int] = field(repr=False)

    def line_of(self, location: Location) -> int | None:
        """Returns the line of a location, or of the nearest thing around it; None for the file as a whole."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location)

    def error(self, location: Location, what: str, *, hint: str | None = None) -> ConfigurationError:
        """Returns the error that says `what` about a location: ``/x/publish.yaml, line 3: …``."""
        return _error(self.path, self.line_of(location), what, hint=hint)


def read_yaml(path: Path, max_bytes: int, *, guarded: bool = False) -> YamlFile:
    """Reads a YAML file whose top level is a mapping.

    Args:
        path: The file.
        max_bytes: A larger file is refused unread.
        guarded: Refuse a file that others may write or that belongs to somebody else (than the user or root).

    Raises:
        ConfigurationError: It is not such a file; one line naming the file and, where there is one, the line.
        LocalPermissionError: It cannot be read.
        CheckpointNotFoundError: It is not there.
    """
    return parse_yaml(path, _read(path, max_bytes, guarded=guarded))


def parse_yaml(path: Path, raw: bytes, *, as_spelled: bool = False, most: int = MOST_VALUES) -> YamlFile:
    """Reads the bytes of a YAML file whose top level is a mapping.

    Args:
        path: How messages name it.
        raw: What it holds.
        as_spelled: Numbers and true/false stay text: ``version: 1.10`` is no 1.1.
        most: How many keys, lists, mappings and other values it may hold: two bytes can take thousands.

    Raises:
        ConfigurationError: As `read_yaml`.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(path, raw.count(b"\n", 0, error.start) + 1, "not UTF-8") from None
    try:
        loader = (_SpelledLoader if as_spelled else _Loader)(text)
        loader.left = most
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        data = {} if node is None else _value(node, (), lines)
    except _RefusedError as error:
        raise _error(path, error.line, error.what) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        if error.context == "while scanning an alias":
            what = _STAR
        raise _error(path, mark.line + 1 if mark else None, f"not YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(path, line, f"YAML does not allow the character U+{error.character:04X}") from None
    except RecursionError:
        raise _error(path, None, "nested too deeply") from None
    if not isinstance(data, dict):
        raise _error(path, 1, f"must be a mapping, as in 'key: value', found {_found(data)}")
    return YamlFile(path, data, lines)


def validate(
    model: type[_M], file: YamlFile, location: Location = (), *, extra: Literal["ignore"] | None = None
) -> _M:
    """Turns what the file holds at `location` into a pydantic model.

    Args:
        model: The model.
        file: The file.
        location: Of what is to be turned.
        extra: ``"ignore"`` passes over keys that the model does not know, at any depth, whatever the model says.

    Raises:
        ConfigurationError: It does not fit; names file, line, what was found and what is allowed.
    """
    import pydantic  # noqa: PLC0415 - costs start-up time that only a found file is worth

    data: Any = file.data
    for step in location:
        data = data[step]
    try:
        return model.model_validate(data, extra=extra)
    except pydantic.ValidationError as error:
        details = error.errors(include_url=False)
        # A misspelled key often makes another one missing: name the misspelling.
        worst = min(details, key=lambda e: (e["type"] == "missing", file.line_of(location + e["loc"]) or 0))
        raise file.error(location + worst["loc"], explain(worst, model)) from None


def explain(error: ErrorDetails, model: type[BaseModel], *, show_input: bool = True) -> str:
    """Says what one pydantic error is about, as a phrase without a place.

    Args:
        error: One of `pydantic.ValidationError.errors()`.
        model: The model that was validated; its fields give the known keys.
        show_input: False leaves the value out: it may be a secret.
    """
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return unknown_key(str(location[-1]), _fields_at(model, location[:-1]))
    if kind == "missing":
        return f"'{_spelled(location)}' is missing"
    phrase = _PHRASES.get(kind)
    if phrase is None:
        phrase = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
        phrase = re.sub(r"^Input should be ", "must be ", phrase)
    if show_input and kind not in {"value_error", "assertion_error"}:
        phrase += f", found {_found(error['input'])}"
        if kind == "string_type" and not isinstance(error["input"], (dict, list, type(None))):
            phrase += ": put it in quotes"
    elif not show_input and kind not in _PHRASES:
        phrase = "is not valid"  # the message itself may quote the value
    if not location:
        return escape(phrase)
    link = " " if phrase.startswith(("must ", "is ", "has ", "cannot ")) else ": "
    return f"'{_spelled(location)}'{link}{escape(phrase)}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Says that `key` is unknown, with the nearest known one, or all of them when nothing is near."""
    names = sorted(known)
    near = did_you_mean(key, names) or (f"; known: {', '.join(names)}" if names else "; there are none here")
    return f"unknown key '{escape(key[:_SHOWN])}'{near}"


_PHRASES: Final = {
    "string_type": "must be text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
}


class _RefusedError(Exception):
    def __init__(self, node_or_event: Any, what: str) -> None:
        super().__init__(what)
        self.line = node_or_event.start_mark.line + 1
        self.what = what


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses aliases where they stand, before anything can expand, and too many nodes."""

    left = MOST_VALUES

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _RefusedError(event, f"aliases ('*name') are not allowed here; {_STAR}")
        self.left -= 1
        if self.left < 0:
            raise _RefusedError(self.peek_event(), "holds too much")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


class _SpelledLoader(_Loader):
    """Takes plain scalars for text, other than null."""


_SpelledLoader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] == _TAG + "null"]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}


def _value(node: yaml.Node, location: Location, lines: dict[Location, int]) -> Any:
    """Turns a node into a plain value, noting the lines of all below it."""
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _value(key_node, location, {}) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise _RefusedError(key_node, f"keys must be text, found {_source_text(key_node)}")
            if key in result:
                raise _RefusedError(key_node, f"the key '{escape(key[:_SHOWN])}' is there twice")
            lines[*location, key] = key_node.start_mark.line + 1
            result[key] = _value(value_node, (*location, key), lines)
        return result
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        for index, item in enumerate(node.value):
            lines[*location, index] = item.start_mark.line + 1
        return [_value(item, (*location, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    raise _RefusedError(node, f"the tag '{node.tag[:_SHOWN]}' is not allowed here")


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "int":
        return int(text) if _INTEGER.fullmatch(text) else text
    if kind == "float":
        return float(text) if _FLOAT.fullmatch(text) else text
    if kind == "bool":
        return yaml.SafeLoader.bool_values.get(text.lower(), text)
    if kind == "null":
        return None
    if node.tag in _TEXT:
        return text
    raise _RefusedError(node, f"the tag '{node.tag[:_SHOWN]}' is not allowed here")


def _source_text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{str(node.value)[:_SHOWN]}: put it in quotes"
    return "a mapping or list"


def _read(path: Path, max_bytes: int, *, guarded: bool) -> bytes:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)  # of this very file, whatever has that name a moment later
            if not stat.S_ISREG(found.st_mode):
                raise _error(path, None, "not a regular file")
            if guarded:
                check_guarded(path, found)
            with open(fd, "rb", closefd=False) as stream:
                raw = stream.read(max_bytes + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"reading {escape(str(path))}") from error
    if len(raw) > max_bytes:
        raise _error(path, None, f"larger than the limit of {max_bytes} bytes")
    return raw


def check_guarded(path: Path, found: os.stat_result) -> None:
    """Refuses a file or folder that others may write or that belongs to somebody else (than the user or root).

    Raises:
        ConfigurationError: It is one; names it.
    """
    if found.st_uid not in {os.geteuid(), 0}:
        raise _error(path, None, "belongs to another user", hint="copy it, look at it, and use the copy")
    if found.st_mode & _FOREIGN_WRITERS:
        raise _error(path, None, "can be written by other users", hint=f"chmod go-w '{escape(str(path))}'")


def _error(path: Path, line: int | None, what: str, *, hint: str | None = None) -> ConfigurationError:
    place = escape(str(path)) + (f", line {line}" if line is not None else "")
    return ConfigurationError(f"{place}: {escape(what)}", hint=hint)


def _spelled(location: Location) -> str:
    """Spells a location as people do: ``backends.lab.type``, ``include[0]``."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return escape(text)


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    shown = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
    return f"'{shown}'" if isinstance(value, str) else shown


def _fields_at(model: Any, location: Location) -> list[str]:
    """Returns the keys that the model nested at `location` knows."""
    current = model
    for step in location:
        fields = getattr(current, "model_fields", None)
        if fields is not None and step in fields:
            current = fields[step].annotation
        else:  # a dict's value or a list's item is the last type argument
            current = (typing.get_args(current) or (None,))[-1]
        if type(None) in (args := typing.get_args(current)):  # `X | None`
            current = args[0]
    fields = getattr(current, "model_fields", {})
    return [info.alias or name for name, info in fields.items()]
