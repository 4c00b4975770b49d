"""The time limit of a run: what is over it is cancelled, and again until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

AGAIN = 30.0
"""How long (seconds) a run may take to clean up behind its limit, and after that behind each further cancellation."""


class TimeLimit:
    """``with TimeLimit(seconds, goes_on=…):`` cancels the asyncio task that it is in when the time is over.

    What leaves it by that is a ``TimeoutError``. ``goes_on`` is called when a run is cancelled for the second time.
    ``asyncio.timeout`` cancels once, and before Python 3.13 it takes its own cancellation for another's in a task in
    which a task group has failed.
    """

    def __init__(self, seconds: float, *, goes_on: Callable[[], object]) -> None:
        self._seconds = seconds
        self._goes_on = goes_on
        self._cancels = 0

    def __enter__(self) -> None:
        run = asyncio.current_task()
        assert run is not None
        self._run = run
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._cancel)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        for _cancel in range(self._cancels):
            self._run.uncancel()
        if self._cancels and isinstance(error, asyncio.CancelledError | TimeoutError):
            raise TimeoutError(f"ran over its time limit of {self._seconds:g} s") from None

    def _cancel(self) -> None:
        self._run.cancel()
        self._cancels += 1
        if self._cancels == 2:
            self._goes_on()
        self._timer = asyncio.get_running_loop().call_later(AGAIN, self._cancel)
