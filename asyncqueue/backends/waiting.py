"""Waiting for states, once for all backends: any number of watchers, one look at a time.

A driver makes one ``Waiters`` per open instance, gives it its ``get``, returns its ``watch``, and tells it by
``changed`` what it hears of writes. Where it hears nothing, the hub looks by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

from asyncqueue.errors import AsyncQueueError, Unavailable
from asyncqueue.state import TaskState

LOOK_AT_ONCE = 500
"""The most UUIDs of one look-up."""

REST = 4.0
"""A pause is at least this many times as long as the look before it took: watching never fills the loop."""

LONGEST_REST = 0.5
"""The longest (seconds) that a look makes a pause for having taken long itself: often it did so because a task blocked
the loop, or the store was away for a moment."""

UNPROBED = 2.0
"""The longest (seconds) that ``has_changed`` can put off a look: entries also expire, which no probe shows."""

Ending = tuple[str, TaskState | None]


class Waiters:
    """Everybody of one backend who waits for final states.

    ``get`` is the backend's; it is asked for at most ``LOOK_AT_ONCE`` UUIDs at a time. An error in the place of a state
    ends the watches of that UUID, and no others. The hub looks by itself every ``shortest`` seconds, growing to
    ``longest`` while nothing ends; a driver that hears of writes sets long pauses and calls ``changed``.
    ``has_changed``, where given, is a cheap question asked before each look of that kind: was anything written since
    it was last asked?

    An instance belongs to one event loop. Its task runs while somebody waits.
    """

    def __init__(
        self,
        get: Callable[[Sequence[str]], Awaitable[Sequence[TaskState | AsyncQueueError | None]]],
        *,
        has_changed: Callable[[], Awaitable[bool]] | None = None,
        shortest: float = 0.005,
        longest: float = 0.25,
    ) -> None:
        self._get = get
        self._has_changed = has_changed
        self._shortest = shortest
        self._longest = longest
        self._watchers: dict[str, set[_Watcher]] = {}
        self._due: dict[str, None] = {}  # UUIDs to look at now, in the order in which that was asked for
        self._pause = shortest
        self._next_round = 0.0  # when, in the loop's time, to look at everything
        self._last_round = 0.0
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def watch(self, task_ids: Iterable[str]) -> AsyncGenerator[Ending, None]:
        """Each UUID once: with its final state, or with None where there is no entry.

        Raises ``Unavailable`` after ``close``, and what a look at one of the UUIDs raised.
        """
        watcher = _Watcher(task_ids)
        self._enter(watcher)  # subscribe first; the look that this asks for comes second
        try:
            for _ in watcher.task_ids:
                yield await watcher.next_ending()
        finally:
            self._leave(watcher)

    def changed(self, task_ids: Iterable[str] | None = None) -> None:
        """These were written or dropped, by whomever; None: something was. To be called on the hub's loop."""
        concerned = self._watchers if task_ids is None else [one for one in task_ids if one in self._watchers]
        if concerned:
            self._due.update(dict.fromkeys(concerned))
            self._stirred.set()

    def pace(self, shortest: float, longest: float) -> None:
        """Look by itself in this rhythm from now on, and once more at everything: for drivers that begin, or cease, to
        hear of writes."""
        self._shortest, self._longest = shortest, longest
        self._look_soon()
        self.changed()  # nobody may tell of writes to what a look that is under way has read

    async def close(self) -> None:
        """End every watch with ``Unavailable``. Twice is no harm."""
        self._is_closed = True
        self._fail(list(self._watchers), Unavailable("the backend was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _enter(self, watcher: _Watcher) -> None:
        if self._is_closed:
            raise Unavailable("the backend is closed")
        for task_id in watcher.task_ids:
            self._watchers.setdefault(task_id, set()).add(watcher)
        self.changed(watcher.task_ids)
        self._look_soon()
        if self._task is None and self._watchers:
            self._task = asyncio.get_running_loop().create_task(self._look_while_watched())

    def _leave(self, watcher: _Watcher) -> None:
        for task_id in watcher.task_ids:
            others = self._watchers.get(task_id)
            if others is not None:
                others.discard(watcher)
                if not others:
                    del self._watchers[task_id]
        self._stirred.set()  # so that the task sees when nobody is left

    async def _look_while_watched(self) -> None:
        try:
            while self._watchers:
                self._stirred.clear()
                await (self._look_at_everything() if self._is_time() else self._look_at_due())
                await self._rest()
        finally:
            self._task = None

    def _is_time(self) -> bool:
        return asyncio.get_running_loop().time() >= self._next_round

    async def _look_at_due(self) -> None:
        due = [task_id for task_id in self._due if task_id in self._watchers]
        self._due.clear()
        if await self._look_in_batches(due):
            self._look_soon()  # where one ended others may be about to

    async def _look_at_everything(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        any_ended = False
        if self._due or await self._is_worth_it():
            self._due.clear()
            any_ended = await self._look_in_batches(list(self._watchers))
            self._last_round = loop.time()
        self._pause = self._shortest if any_ended else min(2 * self._pause, self._longest)
        pause = max(self._pause, min(REST * (loop.time() - began), LONGEST_REST))
        self._next_round = loop.time() + pause * random.uniform(0.75, 1.25)

    async def _is_worth_it(self) -> bool:
        if self._has_changed is None or asyncio.get_running_loop().time() - self._last_round >= UNPROBED:
            return True
        try:
            return await self._has_changed()
        except Exception:  # the look that follows meets the same trouble and tells the watchers
            return True

    def _look_soon(self) -> None:
        self._pause = self._shortest
        self._next_round = min(self._next_round, asyncio.get_running_loop().time() + self._pause)

    async def _look_in_batches(self, task_ids: Sequence[str]) -> bool:
        any_ended = False
        for start in range(0, len(task_ids), LOOK_AT_ONCE):
            any_ended |= await self._look_at(task_ids[start : start + LOOK_AT_ONCE])
        return any_ended

    async def _look_at(self, task_ids: Sequence[str]) -> bool:
        try:
            found = dict(zip(task_ids, await self._get(task_ids), strict=True))
        except Exception as error:
            if isinstance(error, Unavailable) or len(task_ids) == 1:
                self._fail(task_ids, error)
                return True
            middle = len(task_ids) // 2  # one entry that cannot be read is not everybody's error: find it
            first = await self._look_at(task_ids[:middle])
            return await self._look_at(task_ids[middle:]) or first
        any_ended = False
        for task_id, state in found.items():
            if isinstance(state, AsyncQueueError):
                self._fail((task_id,), state)
            elif state is None or state.is_completed:
                for watcher in self._watchers.pop(task_id, ()):
                    watcher.tell((task_id, state))
            else:
                continue
            any_ended = True
        return any_ended

    def _fail(self, task_ids: Iterable[str], error: Exception) -> None:
        for task_id in task_ids:
            for watcher in self._watchers.pop(task_id, ()):
                watcher.tell(error)

    async def _rest(self) -> None:
        left = self._next_round - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(left, 0)):
                await self._stirred.wait()
        except TimeoutError:
            return


class _Watcher:
    """One call of ``watch``: what it asked for, and what it was told and has not yet handed on."""

    __slots__ = ("_told", "task_ids")

    def __init__(self, task_ids: Iterable[str]) -> None:
        self.task_ids = tuple(dict.fromkeys(task_ids))
        self._told: asyncio.Queue[Ending | Exception] = asyncio.Queue()

    def tell(self, ending: Ending | Exception) -> None:
        self._told.put_nowait(ending)

    async def next_ending(self) -> Ending:
        match await self._told.get():
            case Unavailable() as error:
                raise Unavailable(str(error)) from error  # one error, many watchers: each raises its own
            case Exception() as error:
                raise error
            case ending:
                return ending
