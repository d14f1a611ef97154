"""How long something is to work, as people write it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from ari_core.errors import UsageError
from ari_core.names import quoted

_AMOUNT: Final = re.compile(r"([1-9][0-9]{0,5})([hdwy])")
_UNITS: Final = {
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}


def parse_expiry(text: str, now: datetime | None = None) -> timedelta:
    """Reads ``12h``, ``90d``, ``4w``, ``2y`` or ``2027-12-31`` (to the end of that day, UTC).

    Raises:
        UsageError: It is none of these, or has passed.
    """
    now = now or datetime.now(UTC)
    span = _span(text)
    if span is not None:
        if span > datetime.max.replace(tzinfo=UTC) - now:
            raise UsageError(f"{quoted(text)} is further away than the calendar goes")
        return span
    try:
        end = datetime.combine(date.fromisoformat(text), time.max, UTC)
    except ValueError:
        raise UsageError(
            f"{quoted(text[:40])} is no time to expire", hint="write 12h, 90d, 4w, 2y or 2027-12-31"
        ) from None
    if end <= now:
        raise UsageError(f"{quoted(text)} has passed")
    return end - now


def parse_age(text: str, now: datetime | None = None) -> timedelta:
    """Reads ``12h``, ``90d``, ``4w`` or ``2y``.

    Raises:
        UsageError: It is none of these.
    """
    span = _span(text)
    if span is None:
        raise UsageError(f"{quoted(text[:40])} is no age", hint="write 12h, 90d, 4w or 2y")
    if span > (now or datetime.now(UTC)) - datetime.min.replace(tzinfo=UTC):
        raise UsageError(f"{quoted(text)} is further back than the calendar goes")
    return span


def _span(text: str) -> timedelta | None:
    amount = _AMOUNT.fullmatch(text)
    return int(amount[1]) * _UNITS[amount[2]] if amount else None
