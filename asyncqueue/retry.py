"""How long to wait before trying again: backoffs of tasks, and delays while a service is away."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Protocol

from asyncqueue.errors import ConfigError

LONGEST = 365 * 86_400.0
"""No backoff of this module asks for more seconds than this: a year."""


class Backoff(Protocol):
    """How many seconds a failed task waits before its next attempt. A plain function will do."""

    def __call__(self, attempt: int, previous: float, /) -> float:
        """``attempt`` is the one that failed, from 1; ``previous`` is the wait before it in seconds, 0 at first."""


def fibonacci_next(n: int) -> int:
    """The smallest Fibonacci number strictly greater than ``n``: 0 → 1, 1 → 2, 2 → 3, 3 → 5, 4 → 5."""
    smaller, larger = 1, 1
    while larger <= n:
        smaller, larger = larger, smaller + larger
    return larger


def fibonacci(attempt: int, previous: float, /) -> float:
    """Machinery's waits: 1, 2, 3, 5, 8 … s, or from the first Fibonacci number above ``previous`` on."""
    return min(float(fibonacci_next(int(min(previous, LONGEST)))), LONGEST)


def fixed(seconds: float) -> Backoff:
    """The same wait each time."""
    _check("fixed", seconds=seconds)

    def wait(attempt: int, previous: float, /) -> float:
        return min(seconds, LONGEST)

    return wait


def exponential(base: float = 1.0, factor: float = 2.0, cap: float = 3600.0, jitter: float = 0.0) -> Backoff:
    """``base`` seconds, then ``factor`` times as much each time, at most ``cap`` seconds.

    ``jitter`` is the part of a wait, 0 to 1, that is left to chance: with 0.5 a wait of 8 s is between 4 and 8 s, so
    that tasks which failed together do not come back together.
    """
    _check("exponential", base=base, factor=factor, cap=cap, jitter=jitter)
    if factor < 1 or jitter > 1:
        raise ConfigError(f"exponential backoff: factor {factor} must be at least 1, jitter {jitter} at most 1")

    def wait(attempt: int, previous: float, /) -> float:
        whole = min(_power(base, factor, attempt - 1), cap, LONGEST)
        return whole * (1 - jitter * random.random())

    return wait


def parse_backoff(text: str) -> Backoff:
    """A backoff by its name in a setting: ``fibonacci``, ``exponential``, or with numbers: ``fixed:5``,
    ``exponential:base,factor,cap,jitter`` (from the left, as many as wanted).

    Raises ``ConfigError`` for anything else.
    """
    name, _, rest = text.strip().partition(":")
    try:
        numbers = [float(part) for part in rest.split(",")] if rest else []
    except ValueError:
        raise _unknown(text) from None
    match name, numbers:
        case "fibonacci", []:
            return fibonacci
        case "fixed", [seconds]:
            return fixed(seconds)
        case "exponential", [*some] if len(some) <= 4:
            return exponential(*some)
        case _:
            raise _unknown(text)


def delays(first: float = 0.05, cap: float = 5.0, rng: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds to wait before each new try to reach a service that is away, without end.

    Each is by chance between 0 and a bound that doubles from ``first`` up to ``cap``, so that many clients of one
    service do not come back at once. ``rng`` gives a number from 0 to 1.
    """
    bound = first
    while True:
        yield min(bound, cap) * rng()
        bound = min(bound * 2, cap)


def _power(base: float, factor: float, exponent: int) -> float:
    try:
        return base * factor ** max(exponent, 0)
    except OverflowError:
        return LONGEST


def _check(name: str, **numbers: float) -> None:
    for key, number in numbers.items():
        if not (isfinite(number) and number >= 0):
            raise ConfigError(f"{name} backoff: {key} {number} must be a number from 0 on")


def _unknown(text: str) -> ConfigError:
    return ConfigError(f"backoff {text!r}: expected fibonacci, fixed:SECONDS or exponential:BASE,FACTOR,CAP,JITTER")
