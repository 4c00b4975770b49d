"""Waits between attempts, and while a service is away."""

from __future__ import annotations

from itertools import islice

import pytest

from asyncqueue import retry
from asyncqueue.errors import ConfigError


def test_fibonacci_next_is_the_smallest_fibonacci_number_above() -> None:
    asked = [-1, 0, 1, 2, 3, 4, 5, 7, 8, 10, 13, 10**6]
    assert [retry.fibonacci_next(n) for n in asked] == [1, 1, 2, 3, 5, 5, 8, 8, 13, 13, 21, 1_346_269]


def test_fibonacci_waits_grow_as_machinerys_do() -> None:
    waits, previous = [], 0.0
    for attempt in range(1, 8):
        previous = retry.fibonacci(attempt, previous)
        waits.append(previous)
    assert waits == [1, 2, 3, 5, 8, 13, 21]
    assert retry.fibonacci(1, 10) == 13


def test_fixed_waits_stay() -> None:
    assert [retry.fixed(2.5)(attempt, 2.5) for attempt in (1, 2, 50)] == [2.5, 2.5, 2.5]


def test_exponential_waits_grow_to_their_cap() -> None:
    backoff = retry.exponential(base=0.5, factor=3, cap=10)
    assert [backoff(attempt, 0.0) for attempt in range(1, 6)] == [0.5, 1.5, 4.5, 10, 10]


def test_jitter_leaves_a_part_of_the_wait_to_chance() -> None:
    backoff = retry.exponential(base=8, jitter=0.5)
    waits = {backoff(1, 0.0) for _ in range(100)}
    assert len(waits) > 1
    assert all(4 <= wait <= 8 for wait in waits)


@pytest.mark.parametrize("backoff", [retry.fibonacci, retry.fixed(1e300), retry.exponential(cap=1e300)])
def test_no_wait_is_longer_than_a_year(backoff: retry.Backoff) -> None:
    for attempt, previous in ((1, 1e300), (10**6, 2.0**63), (10**9, float("inf"))):
        assert 0 < backoff(attempt, previous) <= retry.LONGEST


def test_a_plain_function_is_a_backoff() -> None:
    def linear(attempt: int, previous: float) -> float:
        return attempt * 10.0

    backoff: retry.Backoff = linear
    assert backoff(3, 20.0) == 30.0


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("fibonacci", [1, 2, 3]),
        ("fixed:5", [5, 5, 5]),
        ("fixed:0.25", [0.25, 0.25, 0.25]),
        ("exponential", [1, 2, 4]),
        ("exponential:2", [2, 4, 8]),
        (" exponential:2,3,10,0 ", [2, 6, 10]),
    ],
)
def test_a_backoff_is_known_by_its_name(text: str, waits: list[float]) -> None:
    backoff, previous, seen = retry.parse_backoff(text), 0.0, []
    for attempt in (1, 2, 3):
        previous = backoff(attempt, previous)
        seen.append(previous)
    assert seen == waits


@pytest.mark.parametrize(
    "text",
    [
        *("", "linear", "fixed", "fixed:", "fixed:x", "fixed:1,2", "fixed:-1", "fixed:nan", "fixed:inf", "fibonacci:1"),
        *("exponential:1,2,3,0,5", "exponential:1,0.5", "exponential:1,2,3,1.5", "exponential:-1"),
    ],
)
def test_an_unknown_backoff_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="backoff"):
        retry.parse_backoff(text)


def test_delays_double_up_to_their_cap() -> None:
    assert list(islice(retry.delays(first=0.05, cap=0.5, rng=lambda: 1.0), 6)) == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_delays_have_full_jitter() -> None:
    assert list(islice(retry.delays(rng=lambda: 0.0), 3)) == [0, 0, 0]
    seen = list(islice(retry.delays(first=1, cap=5), 1000))
    assert all(0 <= delay <= 5 for delay in seen)
    assert len(set(seen)) > 1
