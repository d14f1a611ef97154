"""Suggestions for misspelled words."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """Returns up to three of the known words that look like `word`, best first.

    Args:
        word: The misspelled one.
        known: The right ones.
        likeness: From 0 (anything) to 1 (the same), as `difflib` measures it.
    """
    import difflib  # noqa: PLC0415 - only ever needed for an error message

    return difflib.get_close_matches(word, sorted(set(known)), n=3, cutoff=likeness)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x' or 'y'?"`` with the known words that look like `word`, or nothing."""
    near = nearest(word, known)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
