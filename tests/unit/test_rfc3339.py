"""Go's time format, to the nanosecond."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue import rfc3339
from asyncqueue.clock import NANOSECONDS, to_datetime, to_nanoseconds

EXACT = int(datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()) * NANOSECONDS


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2025-01-02T03:04:05Z", EXACT),
        ("2025-01-02T03:04:05.1Z", EXACT + 100_000_000),
        ("2025-01-02T03:04:05.123456789Z", EXACT + 123_456_789),
        ("2025-01-02T03:04:05.000000001Z", EXACT + 1),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999999Z", -1),
        (rfc3339.ZERO_TEXT, rfc3339.ZERO),
        ("9999-12-31T23:59:59.999999999Z", rfc3339.LAST),
    ],
)
def test_moments_are_read_and_written_to_the_nanosecond(text: str, nanoseconds: int) -> None:
    assert rfc3339.parse(text) == nanoseconds
    assert rfc3339.render(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2025-01-02T03:04:05.12+05:30", "2025-01-01T21:34:05.12Z"),
        ("2025-01-02T03:04:05-23:59", "2025-01-03T03:03:05Z"),
        ("2025-01-02T03:04:05+00:00", "2025-01-02T03:04:05Z"),
        ("2025-01-02T03:04:05.100000000Z", "2025-01-02T03:04:05.1Z"),
        ("2025-01-02T03:04:05.1234567899Z", "2025-01-02T03:04:05.123456789Z"),
        ("2025-01-02T03:04:05,5Z", "2025-01-02T03:04:05.5Z"),
    ],
)
def test_other_ways_to_write_a_moment_are_read(text: str, same: str) -> None:
    assert rfc3339.render(rfc3339.parse(text)) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2025-01-02T03:04:05",
        "2025-01-02 03:04:05Z",
        "2025-01-02t03:04:05z",
        "2025-01-02T03:04:05.Z",
        "2025-01-02T03:04:05+0530",
        "2025-01-02T03:04:05+24:00",
        "2025-01-02T03:04:05+05:60",
        "2025-02-30T03:04:05Z",
        "2025-13-01T03:04:05Z",
        "2025-01-02T24:00:00Z",
        "2025-01-02T03:60:05Z",
        "2025-01-02T03:04:60Z",
        "2025-1-2T03:04:05Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        " 2025-01-02T03:04:05Z",
        "2025-01-02T03:04:05Z\n",
        "٢٠٢٥-01-02T03:04:05Z",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        rfc3339.parse(text)


@pytest.mark.parametrize("nanoseconds", [rfc3339.ZERO - 1, rfc3339.LAST + 1, 10**30, -(10**30)])
def test_a_moment_outside_the_calendar_is_not_written(nanoseconds: int) -> None:
    with pytest.raises(ValueError, match="years 1 to 9999"):
        rfc3339.render(nanoseconds)


@given(st.integers(rfc3339.ZERO, rfc3339.LAST))
def test_every_moment_comes_back_as_it_was(nanoseconds: int) -> None:
    assert rfc3339.parse(rfc3339.render(nanoseconds)) == nanoseconds


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_agree_with_datetime(moment: datetime) -> None:
    assert to_datetime(rfc3339.parse(moment.isoformat())) == moment
    assert rfc3339.parse(moment.isoformat()) == to_nanoseconds(moment)
