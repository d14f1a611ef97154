"""The one spelling of a SHA-256 digest, and how to tell it from everything else."""

from __future__ import annotations

import re
from typing import Final

from ari_core.errors import DigestSpellingError, escape

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN: Final = 80


def is_sha256(text: object) -> bool:
    """Says whether `text` is 64 lower-case hexadecimal digits and nothing else."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def parse_sha256(text: str) -> str:
    """Returns `text` if it is a digest in the documented spelling.

    Raises:
        DigestSpellingError: It is not; the message says what is wrong with it.
    """
    if is_sha256(text):
        return text
    if not text:
        reason = "it is empty"
    elif _SHA256.fullmatch(text.strip().lower()):
        reason = "it has upper-case letters" if text.strip() == text else "it has white space around it"
    elif not re.fullmatch(r"[0-9a-f]+", text):
        reason = "it has characters other than 0-9 and a-f"
    else:
        reason = f"it has {len(text)} digits, not 64"
    shown = escape(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
    raise DigestSpellingError(f"not a SHA-256 digest: '{shown}': {reason}")
