"""The broker that lives in this process: for tests, eager servers and programs that are their own worker."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Self, assert_never

from asyncqueue.backends.base import Progress
from asyncqueue.brokers.base import (
    Ack,
    Bury,
    Capabilities,
    Dead,
    Delivery,
    Message,
    Nack,
    QueueDepth,
    Settled,
    Unsettled,
    Verdict,
)
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState

CLOCK_LOOK = 0.05
"""How often (seconds) a waiting fetch looks at the clock while something will be due by time: clocks can be moved."""


class MemoryBroker:
    """A broker on a ``MemoryStore``; brokers on the same store share its queues, from any thread and loop.

    ``lease`` is how long (seconds) a delivery stays its taker's without ``extend``; None: until it lets go. The store
    also holds states, so that this broker is a joint store together with a ``MemoryBackend`` on the same store.
    """

    def __init__(
        self, store: MemoryStore | None = None, *, lease: float | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._store = store if store is not None else MemoryStore()
        self._lease = lease
        self._clock = clock
        self._holder = token_hex(8)
        self._is_open = False
        self._waits: set[asyncio.Event] = set()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=self._lease,
            max_delay=math.inf,
            max_batch=sys.maxsize,
            ordered=True,
            counts_deliveries=True,
            priorities=True,
        )

    @property
    def address(self) -> str:
        return f"memory://{self._store.name}"

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        for wait in self._waits:
            wait.set()
        with self._store.mutex:
            self._store.announce(queues=self._store.messages.give_back(self._holder))

    def twin(self) -> Self:
        return type(self)(self._store, lease=self._lease, clock=self._clock)

    async def identity(self) -> Hashable:
        return ("memory", self._store.name, id(self._store))

    async def publish(self, messages: Sequence[Message]) -> None:
        now = self._now()
        with self._store.mutex:
            self._publish(messages, now)

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        await asyncio.sleep(0)  # a caller that fetches in a loop lets others run, as with any other broker
        if taken := self._take(queue, limit):
            return taken
        with self._woken_by(queue) as arrived:  # subscribe first, look second
            while not (taken := self._take(queue, limit)) and (left := deadline - loop.time()) > 0:
                await _happens(arrived, self._pause(queue, left))
                arrived.clear()
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        now = self._now()
        with self._store.mutex:
            for delivery in deliveries:
                self._store.messages.ack(delivery, now)

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.messages.nack(deliveries, delay, now)
            self._store.announce(queues={delivery.queue for delivery in deliveries})

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        now = self._now()
        with self._store.mutex:
            return [one for one in deliveries if not self._store.messages.extend(one, self._lease, now)]

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        now = self._now()
        with self._store.mutex:
            for delivery in deliveries:
                self._store.messages.bury(delivery, reason, error, now)

    async def queues(self) -> Sequence[str]:
        self._now()
        with self._store.mutex:
            return self._store.messages.names()

    async def depth(self, queue: str) -> QueueDepth:
        now = self._now()
        with self._store.mutex:
            return self._store.messages.depth(queue, now)

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        now = self._now()
        with self._store.mutex:
            return self._store.messages.peek(queue, limit, offset, now)

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        now = self._now()
        with self._store.mutex:
            return self._store.messages.delayed(limit, offset, now)

    async def purge(self, queue: str) -> int:
        now = self._now()
        with self._store.mutex:
            return self._store.messages.purge(queue, now)

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        self._now()
        with self._store.mutex:
            return self._store.messages.dead(queue)[offset : offset + limit]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        now = self._now()
        with self._store.mutex:
            count = self._store.messages.requeue(queue, ids, now)
            self._store.announce(queues=(queue,))
            return count

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        self._now()
        with self._store.mutex:
            return self._store.messages.drop(queue, ids)

    async def submit(
        self,
        states: Sequence[TaskState],
        messages: Sequence[Message],
        keep: float,
        *,
        groups: Sequence[GroupMeta] = (),
        plans: Sequence[Plan] = (),
    ) -> None:
        now = self._now()
        with self._store.mutex:
            ids = {message.id for message in messages}
            known = {message.id for message in messages if self._store.messages.knows(message, now)}
            if known and known == ids:
                return  # all of it was done before
            self._store.plans.put(plans, keep, now)
            fresh = [state for state in states if state.task_uuid not in known]
            # Whose message is new starts over. Of the rest we cannot say, where a part of this was done before.
            self._store.states.begin([one for one in fresh if not known or one.task_uuid in ids], keep, now)
            self._store.states.put([one for one in fresh if known and one.task_uuid not in ids], keep, now)
            self._store.groups.open(groups, keep, now)
            self._publish(messages, now)

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        now = self._now()
        unsettled: list[Unsettled] = []
        with self._store.mutex:
            for item in batch:
                if self._store.messages.holds(item.delivery, now):
                    progress = self._settle_one(item, keep, now)
                    unsettled += [] if progress is None else [Unsettled(item, progress)]
        return unsettled

    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        """Bring the item to its end, or say what keeps it from that."""
        states = (item.state, *item.ended, *item.pending) if item.state else (*item.ended, *item.pending)
        self._record(states, keep, now)  # the only step that can fail, on a value that is no JSON: so first
        self._store.groups.open(item.opens, keep, now)
        self._store.touch(item.alive, keep, now, item.state.not_before if item.state else None)
        progress = self._store.groups.finish(item.member, now) if item.member else None
        if item.end is None and (progress is Progress.COMPLETE or progress is Progress.LOST):
            return progress
        if item.end and self._store.groups.end(item.end.group_id, keep, now):
            self._record((*item.end.ended, *item.end.pending), keep, now)
            self._publish(item.end.publish, now)
        self._publish(item.publish, now)
        self._conclude(item.delivery, item.verdict, now)
        return None

    def _record(self, states: Sequence[TaskState], keep: float, now: float) -> None:
        self._store.states.put(states, keep, now)
        self._store.announce(task_ids=[state.task_uuid for state in states if state.is_completed])

    def _publish(self, messages: Sequence[Message], now: float) -> None:
        added = self._store.messages.add(messages, now)
        self._store.announce(queues={message.queue for message in added})

    def _conclude(self, delivery: Delivery, verdict: Verdict, now: float) -> None:
        match verdict:
            case Ack():
                self._store.messages.ack(delivery, now)
            case Nack(delay):
                self._store.messages.nack([delivery], delay, now)
            case Bury(reason, error):
                self._store.messages.bury(delivery, reason, error, now)
            case _:
                assert_never(verdict)
        self._store.announce(queues=(delivery.queue,))

    @contextmanager
    def _woken_by(self, queue: str) -> Iterator[asyncio.Event]:
        """An event that is set when something of ``queue`` may be ready, and when this broker is closed."""
        event = asyncio.Event()
        self._waits.add(event)
        try:
            with self._store.arrivals(queue, event.set):
                yield event
        finally:
            self._waits.discard(event)

    def _take(self, queue: str, limit: int) -> list[Delivery]:
        now = self._now()
        with self._store.mutex:
            return self._store.messages.take(queue, limit, holder=self._holder, lease=self._lease, now=now)

    def _pause(self, queue: str, left: float) -> float:
        with self._store.mutex:
            due = self._store.messages.next_change(queue)
        if due is None:
            return left
        return min(left, CLOCK_LOOK, max(due - self._now(), 0.001))

    def _now(self) -> float:
        if not self._is_open:
            raise Unavailable(f"{self.address} is not open")
        return self._clock.now_ns() / NANOSECONDS


async def _happens(event: asyncio.Event, within: float) -> None:
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        return
