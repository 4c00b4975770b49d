"""Work that comes together leaves together: batching by completion, never by a timer.

What arrives while a flush is under way goes into the next one. A lone item waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncqueue.errors import Refused

T = TypeVar("T")


class Batcher(Generic[T]):
    """Gathers items of concurrent callers into calls of ``flush``.

    A flush that raises raises in every caller whose items it carried; but one that was refused is repeated for each
    caller alone, so ``flush`` must be safe to repeat. ``close`` waits for what is under way.
    """

    def __init__(self, flush: Callable[[Sequence[T]], Awaitable[None]], max_items: int) -> None:
        self._flush = flush
        self._max_items = max_items
        self._waiting: deque[_Entry[T]] = deque()
        self._busy = False
        self._rest: asyncio.Task[None] | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def add(self, items: Sequence[T]) -> None:
        """Flush these, together with what others add; returns when they are flushed."""
        if self._busy:
            done = asyncio.get_running_loop().create_future()
            self._waiting.append(_Entry(items, done))
            await done
            return
        self._busy = True
        self._at_rest.clear()
        try:
            await self._flush_parts(items)
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
                group = self._next()
                if not await self._flush_together(group):
                    for entry in group:
                        await self._flush_together([entry])
        finally:
            self._stop()

    async def _flush_together(self, group: Sequence[_Entry[T]]) -> bool:
        """Flush what callers added; False where they are to be tried apart: a refusal may concern only one of them."""
        error: Exception | None = None
        try:
            await self._flush_parts([item for entry in group for item in entry.items])
        except asyncio.CancelledError:
            for entry in group:
                entry.done.cancel()
            raise
        except Refused as exc:
            if len(group) > 1:
                return False
            error = exc
        except Exception as exc:
            error = exc
        for entry in group:
            entry.tell(error)
        return True

    async def _flush_parts(self, items: Sequence[T]) -> None:
        for start in range(0, len(items), self._max_items):
            await self._flush(items[start : start + self._max_items])

    def _next(self) -> list[_Entry[T]]:
        group = [self._waiting.popleft()]
        count = len(group[0].items)
        while self._waiting and count + len(self._waiting[0].items) <= self._max_items:
            group.append(self._waiting.popleft())
            count += len(group[-1].items)
        return group


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """What one caller added, and how it is told."""

    items: Sequence[T]
    done: asyncio.Future[None]

    def tell(self, error: Exception | None) -> None:
        if self.done.done():  # the caller went away
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
