"""Go's time format: RFC 3339 with up to nine digits of a second, to and from unix nanoseconds.

Go's ``time.RFC3339Nano``: ``2025-01-02T03:04:05.123456789Z``, trailing zeros of the fraction cut off, the zone ``Z``
or ``±hh:mm``. Go's zero time, ``0001-01-01T00:00:00Z``, is ``ZERO``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from asyncqueue.clock import NANOSECONDS

ZERO = -62_135_596_800 * NANOSECONDS
ZERO_TEXT = "0001-01-01T00:00:00Z"
LAST = 253_402_300_799 * NANOSECONDS + 999_999_999  # the end of the year 9999
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = 719_163  # datetime's ordinal of 1970-01-01
_FORM = re.compile(
    r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:[.,](\d{1,9})\d*)?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)


def parse(text: str) -> int:
    """Unix nanoseconds of a moment in RFC 3339; digits below a nanosecond are cut off.

    Raises ``ValueError`` for any other form, and outside the years 1 to 9999 in UTC; like Go, it wants the ``T`` and a
    zone.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is no RFC 3339 time with a zone, e.g. 2025-01-02T03:04:05Z")
    whole, fraction, zone = match.groups()
    try:
        nanoseconds = _whole_seconds(whole, zone) * NANOSECONDS
    except ValueError as exc:
        raise ValueError(f"{text[:64]!r} is no moment of the calendar: {exc}") from exc
    if fraction:
        nanoseconds += int(fraction.ljust(9, "0"))
    if not ZERO <= nanoseconds <= LAST:
        raise ValueError(f"{text[:64]!r} is outside the years 1 to 9999")
    return nanoseconds


def render(nanoseconds: int) -> str:
    """RFC 3339 in UTC, as Go writes it. Raises ``ValueError`` outside the years 1 to 9999."""
    if not ZERO <= nanoseconds <= LAST:
        raise ValueError(f"{nanoseconds} ns is outside the years 1 to 9999")
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    if not rest:
        return _whole_text(seconds) + "Z"
    return f"{_whole_text(seconds)}.{rest:09}".rstrip("0") + "Z"


# Moments on the wire come close together, so that most of them share their second with the one before.


@lru_cache(maxsize=1024)
def _whole_seconds(whole: str, zone: str) -> int:
    moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    delta = moment - _EPOCH
    return delta.days * 86_400 + delta.seconds


@lru_cache(maxsize=1024)
def _whole_text(seconds: int) -> str:
    days, second_of_day = divmod(seconds, 86_400)
    date = datetime.fromordinal(_EPOCH_DAY + days)
    hours, remainder = divmod(second_of_day, 3_600)
    return f"{date.year:04}-{date.month:02}-{date.day:02}T{hours:02}:{remainder // 60:02}:{remainder % 60:02}"
