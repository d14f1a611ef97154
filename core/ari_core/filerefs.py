"""``file:`` refs (RFC 8089): every path on this machine has one, also a name that is not UTF-8."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ari_core.errors import Unsupported
from ari_core.names import quoted

# RFC 8089, section 2 and appendix B: file:/path, file:///path, file://localhost/path.
_FILE_REF: Final = re.compile(
    r"file:(?://(?P<host>[^/?#]*)(?=/)|(?!//))(?P<path>/[^?#]*)", re.IGNORECASE | re.DOTALL
)
_SHOWN: Final = 200


def file_ref(path: str | Path) -> str:
    """Returns the ``file:///`` ref of an absolute path."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def path_of(ref: str) -> Path:
    """Returns the absolute path that a ``file:`` ref names.

    Raises:
        Unsupported: It is not such a ref, or one of another machine.
    """
    parts = _FILE_REF.fullmatch(ref)
    try:
        path = os.fsdecode(unquote_to_bytes(parts["path"])) if parts else ""
    except UnicodeEncodeError:  # a lone surrogate
        path = ""
    if not parts or not path or "\0" in path:
        raise Unsupported(f"{quoted(ref[:_SHOWN])} is not a file:///absolute/path, with ? and # as %3F and %23")
    if (parts["host"] or "localhost").lower() != "localhost":
        raise Unsupported(
            f"{quoted(ref[:_SHOWN])} is on another machine", hint="for a file here write file:///absolute/path"
        )
    return Path(path)
