"""Rules for the names of files in a bundle: unsafe ones are refused everywhere, unportable ones warned about.

The lists are fixed (docs/format.md) and do not come from `unicodedata`, whose tables change with Python.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from ari_core.errors import escape
from ari_core.limits import Limits, how_to_raise

MANIFEST_NAME: Final = "manifest.lock"
BUNDLE_NAME: Final = "bundle.tar.gz"
META_NAME: Final = "meta.json"
RECORD_NAME: Final = "publish_record.json"

# Everything this program leaves half-done on a disk starts with this; no bundle may hold such a name.
STAGING_PREFIX: Final = ".ari-staging-"

_FORBIDDEN_RANGES: Final = (
    (0x0000, 0x001F),  # C0
    (0x007F, 0x009F),  # DEL, C1
    (0x00AD, 0x00AD),  # soft hyphen
    (0x061C, 0x061C),  # Arabic letter mark
    (0x180E, 0x180E),  # Mongolian vowel separator
    (0x200B, 0x200F),  # zero width, directional marks
    (0x2028, 0x202E),  # line and paragraph separators, bidi embedding
    (0x2060, 0x206F),  # word joiner, invisible operators, bidi isolates
    (0xD800, 0xDFFF),  # surrogates
    (0xFDD0, 0xFDEF),  # noncharacters
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF9, 0xFFFB),  # interlinear annotation
    (0xE0000, 0xE007F),  # tags
    *((plane << 16 | 0xFFFE, plane << 16 | 0xFFFF) for plane in range(17)),  # noncharacters
)
_FORBIDDEN: Final = re.compile(
    "[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in _FORBIDDEN_RANGES) + "]"
)
_COMMON: Final = r"\w\-+=,@%^()#!$&'\[\]{};~ "
# The overwhelming case, decided by one look: ASCII, no part empty or with a leading dot, no colon, no backslash.
_PLAIN: Final = re.compile(rf"[{_COMMON}][{_COMMON}.]*(?:/[{_COMMON}][{_COMMON}.]*)*", re.ASCII)
# An upper-case drive prefix. A lower-case one is an ordinary, if unportable, name such as `a:b`.
_DRIVE: Final = re.compile(r"[A-Z]:")
_RESERVED_WINDOWS: Final = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE
)
_WINDOWS_CHARACTERS: Final = re.compile(r'[<>:"|?*]')


def unsafe_reason(path: str, limits: Limits) -> str | None:
    """Says why `path` must not be in a bundle, or None if it may.

    Args:
        path: A POSIX path relative to the bundle's root.
        limits: Depth and length limits.

    Returns:
        A phrase that fits behind the name: ``"has a '..' part"``.
    """
    if len(path) <= limits.component_bytes and path.count("/") < limits.depth and _PLAIN.fullmatch(path):
        return None if len(path) <= limits.path_bytes else _over_a_limit(path, limits)
    return _unsafe_characters(path) or _unsafe_shape(path) or _over_a_limit(path, limits)


def _unsafe_characters(path: str) -> str | None:
    if found := _FORBIDDEN.search(path):
        return f"has the forbidden character U+{ord(found[0]):04X}"
    if "\\" in path:
        return "has a backslash"
    return None


def _unsafe_shape(path: str) -> str | None:
    if not path:
        return "is empty"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            return f"has a '{part}' part" if part else "has an empty part"
        if part[0] == "." and (part.lower() in {".git", ".ari"} or part.lower().startswith(STAGING_PREFIX)):
            return f"has a '{part}' part, a name kept for programs"
    return None


def _over_a_limit(path: str, limits: Limits) -> str | None:
    parts = path.split("/")
    if len(parts) > limits.depth:
        return f"is {len(parts)} parts deep, over the limit of {limits.depth} ({how_to_raise('depth')})"
    longest = max(len(part.encode()) for part in parts)
    if longest > limits.component_bytes:
        return (
            f"has a part of {longest} bytes, over the limit of {limits.component_bytes} "
            f"({how_to_raise('component_bytes')})"
        )
    if (length := len(path.encode())) > limits.path_bytes:
        return f"is {length} bytes long, over the limit of {limits.path_bytes} ({how_to_raise('path_bytes')})"
    return None


def file_as_directory(paths: Iterable[str]) -> str | None:
    """Returns a path that is listed as a file while another path needs it to be a directory, or None."""
    before = ""
    for path in sorted(paths, key=_folder_order):
        if before and path.startswith(before + "/"):
            return before
        before = path
    return None


def implied_folders(paths: Iterable[str]) -> int:
    """Counts the directories that hold `paths`, without keeping their names."""
    count = 0
    before: list[str] = []
    for path in sorted(paths, key=_folder_order):
        above = path.split("/")[:-1]
        shared = 0
        while shared < min(len(above), len(before)) and above[shared] == before[shared]:
            shared += 1
        count += len(above) - shared
        before = above
    return count


def _folder_order(path: str) -> str:
    """Sorts what is in a folder right behind the folder's own name."""
    return path.replace("/", "\0")


def unportable(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Finds names that some file systems or programs cannot hold or would confuse.

    Returns:
        Pairs of path and reason, in the order of `paths`, one pair for each reason.
    """
    found: list[tuple[str, str]] = []
    spellings: dict[str, str] = {}
    told: set[str] = set()
    for path in paths:
        parts = path.split("/")
        for depth, part in enumerate(parts, 1):
            prefix = "/".join(parts[:depth])
            if prefix in told:
                continue
            told.add(prefix)
            other = spellings.setdefault(folded(prefix), prefix)
            if other != prefix:
                found.append((path, f"'{prefix}' and '{other}' are one name on some file systems"))
            if reason := _unportable_part(part):
                found.append((path, reason))
    return found


def _unportable_part(part: str) -> str | None:
    if _RESERVED_WINDOWS.fullmatch(part):
        return f"'{part}' is a reserved name on Windows"
    if part[-1] in ". ":
        return f"'{part}' ends with a dot or space, which Windows drops"
    if part[0] == " ":
        return f"'{part}' starts with a space"
    if found := _WINDOWS_CHARACTERS.search(part):
        return f"'{part}' has a '{found[0]}', which Windows cannot hold"
    if part[0] in "-~":
        return f"'{part}' starts with '{part[0]}', which shells and programs read as something else"
    return None


def folded(path: str) -> str:
    """Returns a key that is equal for names which case- or normalisation-folding file systems hold as one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def quoted(path: str) -> str:
    """Returns a foreign name for a message: escaped and in quotes."""
    return f"'{escape(path)}'"
