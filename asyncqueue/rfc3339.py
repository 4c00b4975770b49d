"""Go's time format: RFC 3339 with up to nine digits of a second, to and from unix nanoseconds.

Go's ``time.RFC3339Nano``: ``2025-01-02T03:04:05.123456789Z``, trailing zeros of the fraction cut off, the zone ``Z``
or ``±hh:mm``. Go's zero time, ``0001-01-01T00:00:00Z``, is ``ZERO``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from asyncqueue.clock import NANOSECONDS

ZERO = -62_135_596_800 * NANOSECONDS
ZERO_TEXT = "0001-01-01T00:00:00Z"

_FORM = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_FIRST = ZERO
_LAST = 253_402_300_799 * NANOSECONDS + 999_999_999  # the end of the year 9999


def parse(text: str) -> int:
    """Unix nanoseconds of a moment in RFC 3339.

    Raises ``ValueError`` for any other form; like Go, it wants the ``T`` and a zone.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is no RFC 3339 time with a zone, e.g. 2025-01-02T03:04:05Z")
    whole, fraction, zone = match.groups()
    offset = "+00:00" if zone == "Z" else zone
    try:
        moment = datetime.fromisoformat(whole + offset)
    except ValueError as exc:
        raise ValueError(f"{text[:64]!r} is no moment of the calendar: {exc}") from exc
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    delta = moment - epoch
    nanoseconds = (delta.days * 86_400 + delta.seconds) * NANOSECONDS
    return nanoseconds + (int(fraction.ljust(9, "0")) if fraction else 0)


def render(nanoseconds: int) -> str:
    """RFC 3339 in UTC, as Go writes it. Raises ``ValueError`` outside the years 1 to 9999."""
    if not _FIRST <= nanoseconds <= _LAST:
        raise ValueError(f"{nanoseconds} ns is outside the years 1 to 9999")
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    days, second_of_day = divmod(seconds, 86_400)
    date = datetime.fromordinal(719_163 + days)  # 719 163 is the ordinal of 1970-01-01
    hours, remainder = divmod(second_of_day, 3_600)
    text = f"{date.year:04}-{date.month:02}-{date.day:02}T{hours:02}:{remainder // 60:02}:{remainder % 60:02}"
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"
