"""How people write when something ends."""

from datetime import UTC, datetime, timedelta

import pytest

from ari_core.durations import parse_age, parse_expiry
from ari_core.errors import UsageError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("4w", timedelta(days=28)),
        ("2y", timedelta(days=730)),
        ("2026-11-23", timedelta(hours=12) - timedelta(microseconds=1)),  # the day itself still counts
        ("2026-11-24", timedelta(hours=36) - timedelta(microseconds=1)),
    ],
)
def test_spellings(text, span):
    assert parse_expiry(text, NOW) == span


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1", "d", "1.5h", "90 d", "90D", "999999y", "2026-13-01", "٣d"])
def test_everything_else_is_refused(text):
    with pytest.raises(UsageError):
        parse_expiry(text, NOW)


def test_what_has_passed_is_refused():
    with pytest.raises(UsageError, match="has passed"):
        parse_expiry("2026-11-22", NOW)


def test_an_age_is_spelt_alike():
    assert parse_age("36h", NOW) == timedelta(hours=36)
    assert parse_age("2w", NOW) == timedelta(days=14)


@pytest.mark.parametrize("text", ["", "24", "90m", "2026-11-22", "2026-11-24", "3000y"])
def test_what_is_no_age(text):
    with pytest.raises(UsageError):
        parse_age(text, NOW)
