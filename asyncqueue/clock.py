"""The only module that asks what time it is.

Moments are unix seconds (``float``) wherever they are compared, and unix nanoseconds (``int``) where the wire needs
them exactly: Go writes nanoseconds, and a float of seconds holds about 240 of them.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

NANOSECONDS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What time it is. Code that needs the time is given one of these."""

    def now_ns(self) -> int:
        """Unix nanoseconds."""

    def monotonic(self) -> float:
        """Seconds that never go back, for measuring durations."""


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK: Clock = SystemClock()


def to_nanoseconds(moment: datetime) -> int:
    """Unix nanoseconds of an aware ``datetime``.

    Raises ``ValueError`` for a naive one: what moment it means depends on where it is read.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"naive datetime {moment.isoformat()}: a time zone is needed, e.g. datetime.now(UTC)")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * NANOSECONDS + delta.microseconds * 1_000


def to_datetime(nanoseconds: int) -> datetime:
    """The aware ``datetime`` (UTC) of unix nanoseconds; below a microsecond it is cut off."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)
