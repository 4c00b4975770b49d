"""A clock that moves when the test says so."""

from __future__ import annotations

from asyncqueue.clock import NANOSECONDS

START = 1_750_000_000
"""Unix seconds at which a manual clock starts: some moment in June 2025."""


class ManualClock:
    """A ``Clock`` that stands still until ``advance``."""

    def __init__(self, start: float = START) -> None:
        self._now = round(start * NANOSECONDS)

    def now_ns(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._now / NANOSECONDS

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``; a clock does not go back."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back, and {seconds} s would")
        self._now += round(seconds * NANOSECONDS)
