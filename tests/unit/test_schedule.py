"""Specs mean what robfig's cron says they mean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncqueue.errors import ConfigError
from asyncqueue.schedule import Schedule, parse

MINUTE = 60


def moment(text: str) -> int:
    """Unix seconds of RFC 3339 text; UTC where it names no zone."""
    found = datetime.fromisoformat(text)
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def shown(seconds: int | None, zone: str = "UTC") -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("spec", "after", "expected"),
    [
        # from robfig's own tests
        ("0/15 * * * *", "2012-07-09T14:45", "2012-07-09T15:00"),
        ("0/15 * * * *", "2012-07-09T14:59", "2012-07-09T15:00"),
        ("0/15 * * * *", "2012-07-09T14:59:59", "2012-07-09T15:00"),
        ("20-35/15 * * * *", "2012-07-09T15:45", "2012-07-09T16:20"),
        ("*/15 1-2 * * *", "2012-07-09T23:46", "2012-07-10T01:00"),
        ("20-35/15 1/2 */2 * *", "2012-07-09T23:35:51", "2012-07-11T01:20"),
        ("20-35/15 10-12 * * *", "2012-07-09T23:35:51", "2012-07-10T10:20"),
        ("20-35/15 1/2 */2 Jul *", "2012-07-31T23:59", "2013-07-01T01:20"),
        ("0 0 9 Apr-Oct ?", "2012-07-09T23:35", "2012-08-09T00:00"),
        ("0 0 */5 Apr,Aug,Oct Mon", "2012-07-09T23:35", "2012-08-01T00:00"),
        ("0 0 */5 Oct Mon", "2012-07-09T23:35", "2012-10-01T00:00"),
        ("0 0 * Feb Mon", "2012-07-09T23:35", "2013-02-04T00:00"),
        ("0 0 * Feb Mon/2", "2012-07-09T23:35", "2013-02-01T00:00"),
        ("0 0 29 Feb ?", "2012-07-09T23:35", "2016-02-29T00:00"),
        # a step N/step runs to the end of its field
        ("50/3 * * * *", "2024-01-01T00:00", "2024-01-01T00:50"),
        ("50/3 * * * *", "2024-01-01T00:50", "2024-01-01T00:53"),
        ("50/3 * * * *", "2024-01-01T00:59", "2024-01-01T01:50"),
        ("0 0 * * 5/1", "2024-01-06T00:00", "2024-01-12T00:00"),  # Friday and Saturday, and no Sunday
        # both days count where one is a star; either counts where none is; a step above 1 is no star
        ("0 0 13 * *", "2024-09-01T00:00", "2024-09-13T00:00"),
        ("0 0 * * fri", "2024-09-01T00:00", "2024-09-06T00:00"),
        ("0 0 13 * fri", "2024-09-07T00:00", "2024-09-13T00:00"),
        ("0 0 13 * fri", "2024-10-12T00:00", "2024-10-13T00:00"),
        ("0 0 13 * fri", "2024-10-13T00:00", "2024-10-18T00:00"),
        ("0 0 */1 * fri", "2024-09-01T00:00", "2024-09-06T00:00"),
        ("0 0 */2 * fri", "2024-09-01T00:00", "2024-09-03T00:00"),
        ("0 0 ? * fri", "2024-09-01T00:00", "2024-09-06T00:00"),
        ("0 0 13 * ?", "2024-09-01T00:00", "2024-09-13T00:00"),
        ("0 0 13 * */2", "2024-09-01T00:00", "2024-09-03T00:00"),
        ("0 0 5,* * mon", "2024-09-03T00:00", "2024-09-09T00:00"),
        # names, in any case, in ranges and lists
        ("0 0 * * MON-wed,Fri", "2024-09-04T00:00", "2024-09-06T00:00"),
        ("0 0 1 jan,JUL *", "2024-02-01T00:00", "2024-07-01T00:00"),
        # descriptors
        ("@yearly", "2024-02-01T00:00", "2025-01-01T00:00"),
        ("@annually", "2024-02-01T00:00", "2025-01-01T00:00"),
        ("@monthly", "2024-02-01T00:00", "2024-03-01T00:00"),
        ("@weekly", "2024-02-01T00:00", "2024-02-04T00:00"),
        ("@daily", "2024-02-01T00:00", "2024-02-02T00:00"),
        ("@midnight", "2024-02-01T12:00", "2024-02-02T00:00"),
        ("@hourly", "2024-02-01T00:00", "2024-02-01T01:00"),
        # @every is anchored to the epoch, cut to whole seconds, and at least one
        ("@every 5s", "2024-02-01T00:00:03", "2024-02-01T00:00:05"),
        ("@every 5s", "2024-02-01T00:00:05", "2024-02-01T00:00:10"),
        ("@every 1h30m", "1970-01-01T00:00:01", "1970-01-01T01:30"),
        ("@every 1.5h", "1970-01-01T01:30", "1970-01-01T03:00"),
        ("@every 300ms", "2024-02-01T00:00:03", "2024-02-01T00:00:04"),
        ("@every 2.999s", "1970-01-01T00:00:02", "1970-01-01T00:00:04"),
        ("@every 1m500µs", "1970-01-01T00:00:02", "1970-01-01T00:01"),
    ],
)
def test_a_spec_is_next_due_when_robfig_says(spec: str, after: str, expected: str) -> None:
    assert shown(parse(f"TZ=UTC {spec}").next_after(moment(after))) == f"{shown(moment(expected))}"


NEW_YORK = "TZ=America/New_York "


@pytest.mark.parametrize(
    ("spec", "after", "expected"),
    [
        # clocks go forward on 11 March 2012 at 02:00
        ("30 2 11 Mar ?", "2012-03-11T00:00:00-05:00", "2013-03-11T02:30:00-04:00"),
        ("0 * * * ?", "2012-03-11T00:00:00-05:00", "2012-03-11T01:00:00-05:00"),
        ("0 * * * ?", "2012-03-11T01:00:00-05:00", "2012-03-11T03:00:00-04:00"),
        ("0 * * * ?", "2012-03-11T03:00:00-04:00", "2012-03-11T04:00:00-04:00"),
        ("0 1 * * ?", "2012-03-11T00:00:00-05:00", "2012-03-11T01:00:00-05:00"),
        ("0 1 * * ?", "2012-03-11T01:00:00-05:00", "2012-03-12T01:00:00-04:00"),
        ("0 2 * * ?", "2012-03-11T00:00:00-05:00", "2012-03-12T02:00:00-04:00"),
        # clocks go back on 4 November 2012 at 02:00
        ("30 2 04 Nov ?", "2012-11-04T00:00:00-04:00", "2012-11-04T02:30:00-05:00"),
        ("30 1 04 Nov ?", "2012-11-04T01:45:00-04:00", "2012-11-04T01:30:00-05:00"),
        ("0 * * * ?", "2012-11-04T00:00:00-04:00", "2012-11-04T01:00:00-04:00"),
        ("0 * * * ?", "2012-11-04T01:00:00-04:00", "2012-11-04T01:00:00-05:00"),
        ("0 * * * ?", "2012-11-04T01:00:00-05:00", "2012-11-04T02:00:00-05:00"),
        ("0 1 * * ?", "2012-11-04T01:00:00-05:00", "2012-11-05T01:00:00-05:00"),
        ("0 3 * * ?", "2012-11-04T00:00:00-04:00", "2012-11-04T03:00:00-05:00"),
        # far ahead, beyond several changes
        ("0 12 1 12 *", "2012-01-15T00:00:00-05:00", "2012-12-01T12:00:00-05:00"),
        ("0 12 1 7 *", "2012-01-15T00:00:00-05:00", "2012-07-01T12:00:00-04:00"),
    ],
)
def test_clocks_that_change_skip_and_repeat_local_times(spec: str, after: str, expected: str) -> None:
    assert shown(parse(NEW_YORK + spec).next_after(moment(after)), "America/New_York") == expected


def test_a_midnight_that_does_not_exist_is_skipped() -> None:
    schedule = parse("CRON_TZ=America/Sao_Paulo 0 0 * * *")
    found = schedule.next_after(moment("2018-11-03T00:00:00-03:00"))
    assert shown(found, "America/Sao_Paulo") == "2018-11-05T00:00:00-02:00"


@pytest.mark.parametrize("spec", ["0 0 30 2 *", "0 0 31 4,6 ?", "0 0 31 Jun *"])
def test_what_never_comes_is_given_up(spec: str) -> None:
    assert parse(spec).next_after(0) is None


def test_what_comes_only_after_more_than_five_years_is_given_up() -> None:
    assert parse("TZ=UTC 0 0 29 2 *").next_after(moment("2096-03-01T00:00")) is None


@pytest.fixture
def in_kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_kolkata")
def test_without_a_zone_local_time_counts() -> None:
    after = moment("2024-02-01T00:00")
    assert shown(parse("0 6 * * *").next_after(after)) == "2024-02-01T00:30:00+00:00"
    assert parse("TZ=Local 0 6 * * *").next_after(after) == parse("0 6 * * *").next_after(after)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "0 fields; expected 5"),
        ("* * * *", "4 fields; expected 5: minute, hour, day of month, month, day of week"),
        ("* * * * * *", "6 fields"),
        ("60 * * * *", "minute '60': 60 is not in 0 to 59"),
        ("* 24 * * *", "hour '24': 24 is not in 0 to 23"),
        ("* * 0 * *", "day of month '0': 0 is not in 1 to 31"),
        ("* * * 13 *", "month '13': 13 is not in 1 to 12"),
        ("* * * * 7", "day of week '7': 7 is not in 0 to 6"),
        ("* * * * sunday", "day of week 'sunday': 'sunday' is no number; expected 0 to 6 or sun to sat"),
        ("5-1 * * * *", "minute '5-1': the range ends before it begins"),
        ("*/0 * * * *", "minute '*/0': the step must be 1 or more"),
        ("*/-2 * * * *", "minute '*/-2'"),
        ("*/2/3 * * * *", "minute '*/2/3'"),
        ("1-2-3 * * * *", "minute '1-2-3'"),
        ("1,,2 * * * *", "minute ''"),
        ("* * L * *", "day of month 'L'"),
        ("* * * * 1#2", "day of week '1#2'"),
        ("\u0663 * * * *", "minute '\u0663'"),
        ("@often", "'@often' is no descriptor; expected one of @yearly"),
        ("@every", "'@every' is no descriptor"),
        ("@every 5", "'5' is no duration; expected one such as 90s, 1h30m or 24h"),
        ("@every 1d", "'1d' is no duration"),
        ("@every -5s", "'-5s' is no duration"),
        ("@every 1h x", "'1h x' is no duration"),
        ("@every 99999h", "would never fire"),
        ("TZ=Europe/Nowhere * * * * *", "TZ=Europe/Nowhere is no zone known here"),
        ("TZ=../etc * * * * *", "TZ=../etc is no zone known here"),
        ("CRON_TZ=UTC", "nothing follows the zone 'UTC'"),
    ],
)
def test_a_wrong_spec_says_what_where_and_what_was_expected(spec: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spec)
    assert said in str(caught.value)
    assert repr(spec) in str(caught.value)


# ------------------------------------------------------------------------- against a scanner of every minute


def field(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int], bool]]:
    """A field: its text, what it allows, and whether it is a star; computed with no help of the code under test."""
    value = st.integers(low, high)
    step = st.integers(1, 7)
    one = st.one_of(
        st.sampled_from("*?").map(lambda star: (star, range(low, high + 1), True)),
        value.map(lambda n: (str(n), range(n, n + 1), False)),
        st.tuples(value, value)
        .map(sorted)
        .map(lambda ends: (f"{ends[0]}-{ends[1]}", range(ends[0], ends[1] + 1), False)),
        step.map(lambda n: (f"*/{n}", range(low, high + 1, n), n == 1)),
        st.tuples(value, step).map(lambda each: (f"{each[0]}/{each[1]}", range(each[0], high + 1, each[1]), False)),
    )
    return st.lists(one, min_size=1, max_size=2).map(
        lambda parts: (
            ",".join(text for text, _, _ in parts),
            frozenset(value for _, values, _ in parts for value in values),
            any(star for _, _, star in parts),
        )
    )


ZONES = ["UTC", "America/New_York", "Europe/Paris", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kolkata"]
FIELDS = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6))


@settings(max_examples=150, deadline=None)
@given(
    fields=FIELDS,
    zone=st.sampled_from(ZONES),
    year=st.sampled_from([2012, 2017, 2018]),
    start=st.integers(0, 366 * 86_400),
)
def test_the_next_moment_is_the_first_minute_that_matches(
    fields: tuple[tuple[str, frozenset[int], bool], ...], zone: str, year: int, start: int
) -> None:
    after = moment(f"{year}-01-01T00:00") + start
    found = parse(f"TZ={zone} {' '.join(text for text, _, _ in fields)}").next_after(after)
    _assert_first(found, after, fields, ZoneInfo(zone), 3 * 24 * 60)


@settings(max_examples=100, deadline=None)
@given(
    fields=st.tuples(
        field(0, 59),
        field(0, 23),
        st.just(("*", frozenset(range(1, 32)), True)),
        st.just(("*", frozenset(range(1, 13)), True)),
        st.just(("*", frozenset(range(7)), True)),
    ),
    change=st.sampled_from(
        [
            ("America/New_York", "2012-03-11T07:00"),
            ("America/New_York", "2012-11-04T06:00"),
            ("Europe/Paris", "2018-03-25T01:00"),
            ("Europe/Paris", "2018-10-28T01:00"),
            ("Australia/Lord_Howe", "2018-04-07T15:00"),
            ("Australia/Lord_Howe", "2018-10-06T15:30"),
            ("America/Sao_Paulo", "2018-11-04T03:00"),
            ("America/Sao_Paulo", "2018-02-18T02:00"),
        ]
    ),
    before=st.integers(-7_200, 10_800),
)
def test_around_a_change_of_the_clocks_too(
    fields: tuple[tuple[str, frozenset[int], bool], ...], change: tuple[str, str], before: int
) -> None:
    zone, at = change
    after = moment(at) - before
    found = parse(f"TZ={zone} {' '.join(text for text, _, _ in fields)}").next_after(after)
    _assert_first(found, after, fields, ZoneInfo(zone), 2 * 24 * 60)


def _assert_first(
    found: int | None, after: int, fields: tuple[tuple[str, frozenset[int], bool], ...], zone: ZoneInfo, minutes: int
) -> None:
    if found is not None:
        assert found > after
        assert _matches(found, fields, zone)
    first = after // MINUTE * MINUTE + MINUTE
    end = first + minutes * MINUTE if found is None else min(found, first + minutes * MINUTE)
    assert [each for each in range(first, end, MINUTE) if _matches(each, fields, zone)] == []


def _matches(seconds: int, fields: tuple[tuple[str, frozenset[int], bool], ...], zone: ZoneInfo) -> bool:
    local = datetime.fromtimestamp(seconds, zone)
    minute, hour, day, month, weekday = fields
    on_day, on_weekday = local.day in day[1], local.isoweekday() % 7 in weekday[1]
    days = on_day and on_weekday if day[2] or weekday[2] else on_day or on_weekday
    return local.minute in minute[1] and local.hour in hour[1] and local.month in month[1] and days


def test_a_schedule_goes_on_for_ever() -> None:
    schedule: Schedule = parse("TZ=UTC */20 * * * *")
    at: int | None = moment("2024-01-01T00:00")
    for expected in ("00:20", "00:40", "01:00"):
        assert at is not None
        at = schedule.next_after(at)
        assert shown(at) == f"2024-01-01T{expected}:00+00:00"
