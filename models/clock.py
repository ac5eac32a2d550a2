"""Local time: what the clock on a user's wall shows at an instant.

Reads   instants in milliseconds since 1970 in UTC, and IANA zone names.
Owns    the cache of UTC offsets, and the rule for unknown zones: they are UTC.

The context features and quiet hours both ask for it, once a trigger or more, so offsets are
cached by zone and quarter of an hour. A quarter in which the offset changes is looked up anew
each time: most changes fall on a quarter, but Newfoundland's came at one minute past midnight
until 2011. The machine's own clock is never read.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
_BUCKET_MS: Final = 900_000  # 15 min
_THURSDAY: Final = 3  # 1970-01-01; Monday is 0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1_024)  # about 600 names exist; the rest of the room is for wrong ones
def _zone(name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name)
    # ValueError: a name such as "../x" or with a null byte; OSError: the name of a directory.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def is_known_zone(zone: str) -> bool:
    """Say whether `zone` is an IANA zone name that this machine knows.

    >>> is_known_zone("Asia/Shanghai"), is_known_zone("Mars/Olympus")
    (True, False)
    """
    return _zone(zone) is not None


def _lookup(time_ms: int, zone: str) -> int:
    tz = _zone(zone)
    if tz is None:
        return 0
    offset = (_EPOCH + timedelta(milliseconds=time_ms)).astimezone(tz).utcoffset()
    return 0 if offset is None else round(offset.total_seconds() * 1_000)


@lru_cache(maxsize=8_192)  # 600 zones for 3 hours, or 40 zones for 2 days; about 1.5 MB
def _bucket_offset_ms(bucket: int, zone: str) -> int | None:
    first = _lookup(bucket * _BUCKET_MS, zone)
    last = _lookup((bucket + 1) * _BUCKET_MS - 1, zone)
    return first if first == last else None


def utc_offset_ms(time_ms: int, zone: str) -> int:
    """Return how far local time is ahead of UTC, ms; 0 for an unknown zone.

    >>> utc_offset_ms(1_700_000_000_000, "America/New_York") / HOUR_MS
    -5.0
    """
    offset = _bucket_offset_ms(time_ms // _BUCKET_MS, zone)
    return _lookup(time_ms, zone) if offset is None else offset


def local_hour_weekday(time_ms: int, zone: str) -> tuple[float, int]:
    """Return the local hour, [0, 24) with its fraction, and the weekday, 0 for Monday.

    Examples
    --------
    Tuesday 2023-11-14, 22:13:20 in UTC, is Wednesday morning in Shanghai:

    >>> local_hour_weekday(1_700_000_000_000, "UTC")
    (22.22222, 1)
    >>> local_hour_weekday(1_700_000_000_000, "Asia/Shanghai")
    (6.22222, 2)
    >>> local_hour_weekday(1_700_000_000_000, "no such zone")  # as UTC
    (22.22222, 1)
    """
    days, ms = divmod(time_ms + utc_offset_ms(time_ms, zone), DAY_MS)
    return ms / HOUR_MS, (days + _THURSDAY) % 7
