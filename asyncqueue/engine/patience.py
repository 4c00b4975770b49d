"""Trying again while a service is away: written once, for every store and every verb."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncqueue.clock import Clock
from asyncqueue.engine.events import Events, StoreAway, StoreBack
from asyncqueue.errors import Unavailable
from asyncqueue.retry import delays

T = TypeVar("T")


class Patience:
    """Repeats a call while it raises ``Unavailable``, after growing, jittered waits. Tells the world once, and at the
    end."""

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    async def insist(self, doing: str, call: Callable[[], Awaitable[T]], *, budget: float | None = None) -> T:
        """The result of ``call``, tried again for up to ``budget`` seconds (None: for ever).

        ``doing`` completes the sentence "cannot …". Raises the last ``Unavailable`` when the budget is spent, and
        everything else at once.
        """
        try:
            return await call()
        except Unavailable as first:
            return await self._again(doing, call, first, budget)

    async def _again(self, doing: str, call: Callable[[], Awaitable[T]], error: Unavailable, budget: float | None) -> T:
        since = self._clock.monotonic()
        told = False
        for delay in delays():
            if budget is not None and self._clock.monotonic() - since + delay > budget:
                raise error
            if not told:
                self._events.emit(StoreAway(doing, str(error), delay))
                told = True
            await asyncio.sleep(delay)
            try:
                result = await call()
            except Unavailable as exc:
                error = exc
            else:
                self._events.emit(StoreBack(doing, self._clock.monotonic() - since))
                return result
        raise AssertionError("delays() never ends")
