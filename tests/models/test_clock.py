"""models.clock against the standard library, across offset changes and bad names."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.clock import is_known_zone, local_hour_weekday, utc_offset_ms

ZONES = [
    "UTC",
    "Asia/Shanghai",
    "America/New_York",
    "America/St_Johns",  # half hours, and changes at 00:01 until 2011
    "Australia/Lord_Howe",  # a change of half an hour
    "Asia/Kathmandu",  # quarter hours
    "Africa/Casablanca",  # winter time during Ramadan
    "Pacific/Apia",  # skipped 2011-12-30
    "Europe/London",
]
times = st.integers(946_684_800_000, 4_102_444_799_999)


def ms(*when: int) -> int:
    return round(datetime(*when, tzinfo=UTC).timestamp() * 1_000)  # type: ignore[misc,arg-type]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(times, st.sampled_from(ZONES))
def test_hour_and_weekday_are_those_of_the_standard_library(time_ms: int, zone: str) -> None:
    local = datetime.fromtimestamp(time_ms // 1_000, ZoneInfo(zone))
    hour, weekday = local_hour_weekday(time_ms // 1_000 * 1_000, zone)
    assert hour == pytest.approx(local.hour + local.minute / 60 + local.second / 3_600)
    assert weekday == local.weekday()


def test_spring_forward_skips_an_hour() -> None:
    change = ms(2026, 3, 8, 7)  # New York, 02:00 EST to 03:00 EDT, a Sunday
    assert local_hour_weekday(change - 1_000, "America/New_York")[0] == pytest.approx(1.9997, 1e-4)
    assert local_hour_weekday(change, "America/New_York") == (3.0, 6)


def test_change_within_a_quarter_of_an_hour_is_exact() -> None:
    change = ms(2010, 3, 14, 3, 31)  # Newfoundland, 00:01 to 01:01
    assert local_hour_weekday(change - 60_000, "America/St_Johns") == (0.0, 6)
    assert local_hour_weekday(change, "America/St_Johns") == (1 + 1 / 60, 6)


def test_times_before_1970_have_a_weekday_too() -> None:
    assert local_hour_weekday(-1, "UTC") == (pytest.approx(24.0), 2)


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "a\0b", "Europe", "x" * 300])
def test_bad_zone_is_utc_and_never_raises(zone: str) -> None:
    assert not is_known_zone(zone)
    assert utc_offset_ms(ms(2026, 7, 1), zone) == 0
    assert local_hour_weekday(ms(2026, 7, 1, 6, 30), zone) == (6.5, 2)
