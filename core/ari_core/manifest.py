"""``manifest.lock``: the list of files that a bundle digest stands for (docs/format.md).

Parsing is strict: a manifest that two readers could understand differently is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import (
    encode_basestring as _json_text,  # what json.dumps(text, ensure_ascii=False) does, directly
)
from typing import Any, Final, NamedTuple, NoReturn

from ari_core.digests import is_sha256
from ari_core.errors import ArchiveRefusedError
from ari_core.limits import Limits, how_to_raise, most_values
from ari_core.names import MANIFEST_NAME, file_as_directory, implied_folders, quoted, unsafe_reason

FORMAT_VERSION: Final = 1
MAX_SIZE: Final = 2**63 - 1
_ENTRY_KEYS: Final = frozenset({"path", "size", "sha256"})
# An entry has one brace and three or four commas. What is far beyond that only eats memory.
_VALUES_PER_FILE: Final = 8
_VALUES_BESIDES: Final = 10_000
_INTEGER_DIGITS: Final = 20  # one more than MAX_SIZE has


class FileEntry(NamedTuple):
    """One file of a bundle.

    Attributes:
        path: POSIX path relative to the bundle's root.
        size: Bytes.
        sha256: Digest of the contents, 64 lower-case hex digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest whose bundle digest was recomputed and agrees.

    Attributes:
        files: In the order of the file.
        bundle_sha256: The bundle digest.
        publish: The policy the author published under; informative, not covered by the digest.
        excluded_count: Files that deny or exclude rules left out, or None if not said.
        raw: The manifest's own bytes.
    """

    files: tuple[FileEntry, ...]
    bundle_sha256: str
    publish: Mapping[str, Any]
    excluded_count: int | None
    raw: bytes

    @property
    def total_size(self) -> int:
        """Sum of the sizes of all files, in bytes."""
        return sum(entry.size for entry in self.files)


def bundle_digest(files: Iterable[FileEntry]) -> str:
    """Computes the bundle digest: SHA-256 over the canonical JSON of the file list.

    The canonical form is ``{"files":[{"path","sha256","size"}…],"version":1}`` with the files sorted by path
    (code points), sorted keys, no spaces, non-ASCII kept as is, in UTF-8 (docs/format.md, "Bundle digest").
    """
    digest = hashlib.sha256(b'{"files":[')
    separator = ""
    for path, size, sha256 in sorted(files):
        digest.update(f'{separator}{{"path":{_json_text(path)},"sha256":"{sha256}","size":{size}}}'.encode())
        separator = ","
    digest.update(f'],"version":{FORMAT_VERSION}}}'.encode())
    return digest.hexdigest()


def render_manifest(files: Iterable[FileEntry], publish: Mapping[str, Any], excluded_count: int) -> bytes:
    """Returns the bytes of a manifest: sorted, no field that depends on time or machine."""
    entries = sorted(files)
    lines = [f'    {{"path": {_json_text(e.path)}, "sha256": "{e.sha256}", "size": {e.size}}}' for e in entries]
    listing = "[\n" + ",\n".join(lines) + "\n  ]" if lines else "[]"
    policy = json.dumps(dict(publish), ensure_ascii=False, sort_keys=True, indent=2).replace("\n", "\n  ")
    return (
        "{\n"
        f'  "bundle_sha256": "{bundle_digest(entries)}",\n'
        f'  "excluded_count": {excluded_count},\n'
        f'  "files": {listing},\n'
        f'  "publish": {policy},\n'
        f'  "version": {FORMAT_VERSION}\n'
        "}\n"
    ).encode()


def parse_manifest(raw: bytes, limits: Limits) -> Manifest:
    """Parses and checks a manifest.

    Raises:
        ArchiveRefusedError: It is not strict UTF-8 JSON of version 1, a name is unsafe or listed twice, a value
            has the wrong type, or its bundle digest is not that of its file list.
    """
    if len(raw) > limits.manifest_bytes:
        _refuse(
            f"is {len(raw)} bytes, over the limit of {limits.manifest_bytes} ({how_to_raise('manifest_bytes')})"
        )
    data = _load_json(raw, limits)
    if not isinstance(data, dict):
        _refuse("is not a JSON object")
    version = data.get("version")
    if type(version) is not int or version != FORMAT_VERSION:
        _refuse(f"has version {_shown(version)}; this program reads version {FORMAT_VERSION}")
    listed = data.get("files")
    if not isinstance(listed, list):
        _refuse("has no list 'files'")
    if len(listed) > limits.files:
        _refuse(f"lists {len(listed)} files, over the limit of {limits.files} ({how_to_raise('files')})")
    files = tuple(_entry(item, limits) for item in listed)
    _check_paths(files, limits)
    stated = data.get("bundle_sha256")
    if not is_sha256(stated):
        _refuse("has no valid 'bundle_sha256'")
    computed = bundle_digest(files)
    if stated != computed:
        _refuse(f"states the bundle digest {stated}, but its file list has {computed}")
    publish = data.get("publish", {})
    if not isinstance(publish, dict):
        _refuse("has a 'publish' that is not an object")
    excluded = data.get("excluded_count")
    if excluded is not None and (type(excluded) is not int or excluded < 0):
        _refuse("has an 'excluded_count' that is not a count")
    return Manifest(files, computed, publish, excluded, raw)


def same_manifest(one: bytes, other: bytes, limits: Limits) -> bool:
    """Says whether two manifests are the same as JSON, whatever their spelling; neither needs to be valid.

    Raises:
        ArchiveRefusedError: One is no strict JSON.
    """
    return one == other or _load_json(one, limits) == _load_json(other, limits)


def _refuse(what: str) -> NoReturn:
    raise ArchiveRefusedError(f"{MANIFEST_NAME} {what}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"  # noqa: PLR2004 - a line's length, not a rule


def _load_json(raw: bytes, limits: Limits) -> Any:
    if most_values(raw) > _VALUES_PER_FILE * limits.files + _VALUES_BESIDES:
        _refuse(f"holds more values than {limits.files} files need ({how_to_raise('files')})")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"is not UTF-8 (byte {error.start})")
    if text.startswith("\ufeff"):
        _refuse("starts with a byte order mark")
    try:
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=lambda name: _refuse(f"has the number {name}, which JSON does not"),
        )
    except RecursionError:
        _refuse("is nested too deeply")
    except json.JSONDecodeError as error:
        _refuse(f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}")
    if "\\u" in text:  # only an escape can smuggle in what strict UTF-8 cannot hold
        _check_strings(data)
    return data


class _RawEntry(NamedTuple):
    """An object with the keys of a file entry: a third of a dict's memory, which counts with 100,000 of them."""

    path: Any
    size: Any
    sha256: Any


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _RawEntry:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        _refuse(f"has the key {quoted(twice)} twice in one object")
    return _RawEntry(**result) if result.keys() == _ENTRY_KEYS else result


def _integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        _refuse(f"has a number of {len(text)} digits")
    if text == "-0":
        _refuse("has the number -0, which not every program reads as 0")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(f"has the number {text[:40]}, which is not finite")
    return value


def _check_strings(data: Any) -> None:
    todo = [data]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.keys()
            todo += value.values()
        elif isinstance(value, (list, _RawEntry)):
            todo += value
        elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            _refuse(f"has a NUL or a lone surrogate in the text {quoted(value[:80])}")


def _entry(item: Any, limits: Limits) -> FileEntry:
    if isinstance(item, dict):
        path = item.get("path")
        name = quoted(path) if isinstance(path, str) else "one"
        if unknown := sorted(item.keys() - _ENTRY_KEYS):
            _refuse(f"has the unknown key {quoted(unknown[0])} in the entry for {name}")
        _refuse(f"has no {min(_ENTRY_KEYS - item.keys())!r} in the entry for {name}")
    if not isinstance(item, _RawEntry):
        _refuse(f"has a file entry that is not an object: {_shown(item)}")
    path, size, sha256 = item
    if not isinstance(path, str):
        _refuse(f"has a path that is not text: {_shown(path)}")
    if reason := unsafe_reason(path, limits):
        _refuse(f"lists {quoted(path)}, a name that {reason}")
    if path == MANIFEST_NAME:
        _refuse("lists itself")
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        _refuse(f"has the size {_shown(size)} for {quoted(path)}")
    if not is_sha256(sha256):
        _refuse(f"has a sha256 for {quoted(path)} that is not 64 lower-case hex digits")
    return FileEntry(path, size, sha256)


def _check_paths(files: tuple[FileEntry, ...], limits: Limits) -> None:
    seen: set[str] = set()
    for entry in files:
        if entry.path in seen:
            _refuse(f"lists {quoted(entry.path)} twice")
        seen.add(entry.path)
    if (folders := implied_folders(seen)) > limits.files:
        _refuse(f"needs {folders} directories, over the limit of {limits.files} ({how_to_raise('files')})")
    if clash := file_as_directory(seen | {MANIFEST_NAME}):
        _refuse(f"lists {quoted(clash)} as a file and as a directory")
