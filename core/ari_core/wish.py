"""What an author may wish for: a level of visibility, or an embargo until a day (docs/publication.md)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Final

from ari_core.errors import ConfigurationError, UsageError
from ari_core.names import quoted
from ari_core.spelling import nearest

LEVELS: Final = ("staged", "private-token", "unlisted", "public")
"""Levels of visibility, lowest first."""

CHOICES: Final = f"{', '.join(LEVELS)}, embargoed-until:YYYY-MM-DD"

_EMBARGO: Final = "embargoed-until:"
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SHOWN: Final = 60


def check_wish(wish: str) -> str:
    """Returns a wish as authors write it: a level, or ``embargoed-until:YYYY-MM-DD``.

    Raises:
        ConfigurationError: It is neither.
    """
    if reason := why_not(wish):
        raise ConfigurationError(f"the visibility {reason}", hint=f"one of: {CHOICES}")
    return wish


def why_not(wish: str) -> str | None:
    """Says why `wish` cannot be one, as ``"cannot be 'pubic' (did you mean 'public'?)"``, or None if it can."""
    if wish in LEVELS:
        return None
    try:
        if embargo_end(wish):
            return None
    except ConfigurationError as error:
        return f"cannot be {quoted(wish[:_SHOWN])}: {error.message}"
    near = [_EMBARGO + wish] if _DATE.fullmatch(wish) else nearest(wish, LEVELS)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    return f"cannot be {quoted(wish[:_SHOWN])}{meant}"


def require_ahead(wish: str | None) -> None:
    """Checks that an embargo asked for now has not ended yet.

    Raises:
        UsageError: It has.
        ConfigurationError: There is no such day.
    """
    if over := why_over(wish):
        raise UsageError(over, hint="give a day that is to come; or say public, if that is what you want")


def why_over(wish: str | None) -> str | None:
    """Says that the day of an embargo has come, as with a year mistyped; None if it has not, or there is none.

    Raises:
        ConfigurationError: There is no such day.
    """
    end = embargo_end(wish)
    if end is None or end > datetime.now(UTC).date():
        return None
    return f"the embargo until {end.isoformat()} is over already: promoting makes the bundle public at once"


def embargo_end(wish: str | None) -> date | None:
    """Returns the day an embargo ends, or None when `wish` is no embargo.

    Raises:
        ConfigurationError: There is no such day.
    """
    if not wish or not wish.startswith(_EMBARGO):
        return None
    text = wish.removeprefix(_EMBARGO)
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        raise ConfigurationError("there is no such day") from None
