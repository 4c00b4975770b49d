"""When a periodic task is due: robfig's cron dialect, which Machinery uses.

Five fields (minute, hour, day of month, month, day of week), ``@yearly`` … ``@hourly``, ``@every 1h30m``, and a zone
in front: ``CRON_TZ=Europe/Paris 0 6 * * *``. Moments are whole unix seconds.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from math import floor
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from asyncqueue.errors import ConfigError

LONGEST_WAIT = 5
"""How many calendar years ahead an occurrence is looked for."""


class Schedule(Protocol):
    """A rule that says when."""

    def next_after(self, moment: float) -> int | None:
        """The first moment (unix seconds) after ``moment`` at which it is due; None: not in the next five years."""


def parse(spec: str) -> Schedule:
    """The schedule that ``spec`` describes. Without a zone in front, local time counts.

    Raises ``ConfigError`` that says what is wrong, where, and what was expected.
    """
    if not isinstance(spec, str):
        raise _wrong(spec, "expected a text, such as '*/5 * * * *' or '@every 30s'")
    rest, zone = _zone(spec)
    if not rest.startswith("@"):
        return _fields(spec, rest, zone)
    if rest.startswith("@every "):
        return Every(_whole_seconds(spec, rest.removeprefix("@every ").strip()))
    if rest not in _DESCRIPTORS:
        known = ", ".join((*_DESCRIPTORS, "@every DURATION"))
        raise _wrong(spec, f"{rest!r} is no descriptor; expected one of {known}")
    return _fields(spec, _DESCRIPTORS[rest], zone)


@dataclass(frozen=True, slots=True)
class Every:
    """Every so many seconds, counted from the epoch: all processes agree, whenever each of them began."""

    seconds: int

    def next_after(self, moment: float) -> int:
        return (floor(moment) // self.seconds + 1) * self.seconds


@dataclass(frozen=True, slots=True)
class Cron:
    """Every minute whose local time matches ``fields`` (cronsim's dialect, seconds first). ``zone`` None: this
    process's local time.

    A local time that clocks skip does not occur; one that they show twice occurs twice.
    """

    fields: str
    zone: tzinfo | None

    def next_after(self, moment: float) -> int | None:
        since, offset = floor(moment), self._offset(floor(moment))
        last_year = datetime.fromtimestamp(since + offset, UTC).year + LONGEST_WAIT
        # between two changes of the clocks, local time is plain arithmetic; so go from change to change
        while True:
            local = self._next_local(since + offset)
            if local is None or local.year > last_year:
                return None
            found = round(local.timestamp()) - offset
            horizon = min(found, since + _DAY)
            change = self._change(since, horizon, offset) if self._offset(horizon) != offset else None
            if change is not None and change <= found:
                since, offset = change - 1, self._offset(change)
            elif found == horizon:
                return found
            else:  # nothing matches before that day, whatever the clocks do
                since = found - _DAY
                offset = self._offset(since)

    def _next_local(self, local: int) -> datetime | None:
        """The first matching wall time after ``local``, both as if they were UTC."""
        try:
            return next(CronSim(self.fields, datetime.fromtimestamp(local, UTC)), None)
        except CronSimError:  # all fields were checked: a day that its months do not have
            return None

    def _offset(self, moment: int) -> int:
        """How far (seconds) local time is ahead of UTC."""
        if self.zone is None:
            return time.localtime(moment).tm_gmtoff
        offset = datetime.fromtimestamp(moment, self.zone).utcoffset()
        return 0 if offset is None else round(offset.total_seconds())

    def _change(self, low: int, high: int, offset: int) -> int:
        """The first second in (low, high] with another offset than ``offset``, which holds at ``low``."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return high


_DAY = 86_400

_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # of low, low + 1, …


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    _Field("day of week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


def _wrong(spec: str, what: str) -> ConfigError:
    return ConfigError(f"cron spec {spec!r}: {what}")


def _zone(spec: str) -> tuple[str, tzinfo | None]:
    """What follows the zone, and the zone; None is local time."""
    text = spec.strip()
    prefix = next((each for each in ("CRON_TZ=", "TZ=") if text.startswith(each)), None)
    if prefix is None:
        return text, None
    name, _, rest = text.removeprefix(prefix).partition(" ")
    if not rest.strip():
        raise _wrong(spec, f"nothing follows the zone {name!r}; expected five fields or a descriptor")
    if name == "Local":
        return rest.strip(), None
    try:
        return rest.strip(), ZoneInfo(name or "UTC")
    except (OSError, ValueError) as exc:
        raise _wrong(spec, f"{prefix}{name} is no zone known here; expected one such as Europe/Paris") from exc
    except LookupError as exc:  # ZoneInfoNotFoundError
        raise _wrong(spec, f"{prefix}{name} is no zone known here; expected one such as Europe/Paris") from exc


def _fields(spec: str, text: str, zone: tzinfo | None) -> Cron:
    words = text.split()
    if len(words) != len(_FIELDS):
        names = ", ".join(field.name for field in _FIELDS)
        raise _wrong(spec, f"{len(words)} fields; expected {len(_FIELDS)}: {names}")
    fields = [_values(spec, field, word) for field, word in zip(_FIELDS, words, strict=True)]
    # with its seconds written out, cronsim leaves the clocks alone
    return Cron(" ".join(("0", *fields)), zone)


def _values(spec: str, field: _Field, word: str) -> str:
    """A field as cronsim writes it: ``*``, or every value.

    A star that is left is what makes cronsim ask for both days; so one with a step above 1 must not stay.
    """
    values: set[int] = set()
    is_star = False
    for part in word.split(","):
        found, starred = _part(spec, field, part)
        values.update(found)
        is_star = is_star or starred
    return "*" if is_star else ",".join(map(str, sorted(values)))


def _part(spec: str, field: _Field, part: str) -> tuple[range, bool]:
    """The values of one item of a list, and whether it counts as a star."""
    span, slash, step_text = part.partition("/")
    step = _number(spec, field, part, step_text) if slash else 1
    if step < 1:
        raise _wrong(spec, f"{field.name} {part!r}: the step must be 1 or more")
    if span in ("*", "?"):
        return range(field.low, field.high + 1, step), step == 1
    first, dash, last = span.partition("-")
    low = _value(spec, field, part, first)
    high = _value(spec, field, part, last) if dash else field.high if slash else low
    if low > high:
        raise _wrong(spec, f"{field.name} {part!r}: the range ends before it begins")
    return range(low, high + 1, step), False


def _value(spec: str, field: _Field, part: str, text: str) -> int:
    if text.lower() in field.names:
        return field.names.index(text.lower()) + field.low
    value = _number(spec, field, part, text)
    if not field.low <= value <= field.high:
        raise _wrong(spec, f"{field.name} {part!r}: {value} is not in {field.low} to {field.high}")
    return value


def _number(spec: str, field: _Field, part: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
    raise _wrong(
        spec,
        f"{field.name} {part!r}: {text!r} is no number; expected {field.low} to {field.high}{names}, *, a range"
        " such as 1-5, a step such as */2, or a list of these",
    )


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_TERM = re.compile(rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
_LONGEST_EVERY = LONGEST_WAIT * 366 * _DAY


def _whole_seconds(spec: str, text: str) -> int:
    """A Go duration, cut to whole seconds; at least one."""
    terms = _TERM.findall(text.removeprefix("+"))
    if not terms or "".join(map("".join, terms)) != text.removeprefix("+"):
        raise _wrong(spec, f"{text!r} is no duration; expected one such as 90s, 1h30m or 24h")
    nanoseconds = sum(_scaled(number, _UNITS[unit]) for number, unit in terms)
    seconds = max(1, nanoseconds // 10**9)
    if seconds > _LONGEST_EVERY:
        raise _wrong(spec, f"{text!r} is longer than {LONGEST_WAIT} years: it would never fire")
    return seconds


def _scaled(number: str, unit: int) -> int:
    whole, _, part = number.partition(".")
    return int(whole or 0) * unit + int(part or 0) * unit // int(10 ** len(part))
