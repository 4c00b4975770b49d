"""Work that comes together leaves together: batching by completion, never by a timer.

What arrives while a flush is under way goes into the next one. A lone item waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Gathers items of concurrent callers into calls of ``flush``.

    A flush that raises raises in every caller whose items it carried. ``close`` waits for what is under way.
    """

    def __init__(self, flush: Callable[[Sequence[T]], Awaitable[None]], max_items: int) -> None:
        self._flush = flush
        self._max_items = max_items
        self._waiting: deque[tuple[Sequence[T], asyncio.Future[None]]] = deque()
        self._busy = False
        self._rest: asyncio.Task[None] | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def add(self, items: Sequence[T]) -> None:
        """Flush these, together with what others add; returns when they are flushed."""
        if self._busy:
            done = asyncio.get_running_loop().create_future()
            self._waiting.append((items, done))
            await done
            return
        self._busy = True
        self._at_rest.clear()
        try:
            for start in range(0, len(items), self._max_items):
                await self._flush(items[start : start + self._max_items])
        finally:
            if self._waiting:
                self._rest = asyncio.get_running_loop().create_task(self._flush_rest())
            else:
                self._stop()

    async def close(self) -> None:
        """Wait until everything that was added is flushed."""
        await self._at_rest.wait()

    def _stop(self) -> None:
        self._busy = False
        self._at_rest.set()

    async def _flush_rest(self) -> None:
        try:
            while self._waiting:
                items, waiters = self._next()
                try:
                    for start in range(0, len(items), self._max_items):
                        await self._flush(items[start : start + self._max_items])
                except asyncio.CancelledError:
                    for waiter in waiters:
                        waiter.cancel()
                    raise
                except Exception as exc:
                    _tell(waiters, exc)
                else:
                    _tell(waiters, None)
        finally:
            self._stop()

    def _next(self) -> tuple[list[T], list[asyncio.Future[None]]]:
        items: list[T] = []
        waiters: list[asyncio.Future[None]] = []
        while self._waiting and (not items or len(items) + len(self._waiting[0][0]) <= self._max_items):
            more, waiter = self._waiting.popleft()
            items.extend(more)
            waiters.append(waiter)
        return items, waiters


def _tell(waiters: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    for waiter in waiters:
        if waiter.done():  # the caller went away
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
