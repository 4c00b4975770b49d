"""Queues in a SQLite file, for many processes on one machine."""

from __future__ import annotations

import asyncio
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
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
)
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections import sqlite_entries as entries
from asyncqueue.connections import sqlite_groups as groups_table
from asyncqueue.connections import sqlite_messages as messages_table
from asyncqueue.connections import sqlite_plans as plans_table
from asyncqueue.connections import sqlite_states as states_table
from asyncqueue.connections.sqlite import BUSY_TIMEOUT, Connection, OnFile
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState

LEASE = 15.0
MAX_BATCH = 1000
TEND_AGAIN = 5.0
SWEEP_AT_ONCE = 1000

CLOCK_LOOK = 0.25
"""How often (seconds) a waiting fetch looks at the clock while something will be due by time: clocks can be moved,
and a machine that was suspended does not notice how long it slept."""


class SqliteBroker(OnFile):
    """Queues in one file, which may hold the states of a ``SqliteBackend`` too; see ``Broker``, ``Tended``,
    ``Inspector`` and ``JointStore``.

    ``path`` may be a ``sqlite:///`` URL. ``lease`` is how long (seconds) a delivery stays its taker's without
    ``extend``; ``busy_timeout`` how long (seconds) a call waits for other writers before it raises ``Unavailable``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease: float = LEASE,
        clock: Clock = SYSTEM_CLOCK,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        super().__init__(path, busy_timeout=busy_timeout)
        self._lease = lease
        self._clock = clock
        self._mine: dict[Hashable, Delivery] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=self._lease,
            max_delay=math.inf,
            max_batch=MAX_BATCH,
            ordered=True,
            counts_deliveries=True,
            priorities=True,
        )

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        try:
            if self._mine and self._database.is_open:
                await self.nack(list(self._mine.values()))
        finally:
            await self._database.close()

    def twin(self) -> Self:
        return type(self)(
            self._database.path, lease=self._lease, clock=self._clock, busy_timeout=self._database.busy_timeout
        )

    async def identity(self) -> Hashable:
        return self._database.identity()

    async def publish(self, messages: Sequence[Message]) -> None:
        now = self._now()
        await self._database.write(lambda connection: _publish(connection, messages, now))

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if limit < 1:
            return []
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            taken = await self._take(queue, limit)
            if taken or not await self._comes(queue, deadline):
                return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        def ack(connection: Connection) -> None:
            messages_table.remove(connection, messages_table.held(connection, deliveries))

        await self._database.write(ack)
        self._let_go(deliveries)

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        now = self._now()

        def nack(connection: Connection) -> None:
            _give_back(connection, messages_table.held(connection, deliveries), delay, now)

        await self._database.write(nack)
        self._let_go(deliveries)

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        until = self._now() + self._lease

        def extend(connection: Connection) -> list[Delivery]:
            held = messages_table.held(connection, deliveries)
            messages_table.extend(connection, held, until)
            return held

        receipts = {delivery.receipt for delivery in await self._database.write(extend)}
        lost = [delivery for delivery in deliveries if delivery.receipt not in receipts]
        self._let_go(lost)
        return lost

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        now = self._now()

        def bury(connection: Connection) -> None:
            messages_table.bury(connection, messages_table.held(connection, deliveries), reason, error, now)

        await self._database.write(bury)
        self._let_go(deliveries)

    async def tend(self, queues: Sequence[str]) -> float:
        # Fetching makes ready what is due and takes over what others left: there is no more to do for a queue.
        now = self._now()
        await self._database.write(lambda connection: entries.sweep(connection, now, SWEEP_AT_ONCE))
        return TEND_AGAIN

    async def queues(self) -> Sequence[str]:
        return await self._database.read(messages_table.queues)

    async def depth(self, queue: str) -> QueueDepth:
        now = self._now()
        return await self._database.read(lambda connection: messages_table.depth(connection, queue, now))

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        now = self._now()
        return await self._database.read(lambda connection: messages_table.peek(connection, queue, limit, offset, now))

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        now = self._now()
        return await self._database.read(lambda connection: messages_table.delayed(connection, limit, offset, now))

    async def purge(self, queue: str) -> int:
        now = self._now()
        return await self._database.write(lambda connection: messages_table.purge(connection, queue, now))

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        return await self._database.read(lambda connection: messages_table.dead(connection, queue, limit, offset))

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        now = self._now()
        return await self._database.write(lambda connection: messages_table.requeue(connection, queue, ids, now))

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        return await self._database.write(lambda connection: messages_table.drop(connection, queue, ids))

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
        rows = states_table.to_rows(states, keep, now)
        openings, plan_rows = groups_table.to_openings(groups), plans_table.to_rows(plans, keep, now)
        ids = {message.id for message in messages}

        def submit(connection: Connection) -> None:
            unknown = messages_table.unknown(connection, messages, now)
            if messages and not unknown:
                return  # all of it was done before
            known = ids.difference(message.id for message in unknown)
            plans_table.put(connection, plan_rows, now)
            # Whose message is new starts over. Of the rest we cannot say, where a part of this was done before.
            begun = [row for row in rows if row[0] not in known and (not known or row[0] in ids)]
            states_table.begin(connection, begun, now)
            states_table.put(connection, [row for row in rows if known and row[0] not in ids], now)
            groups_table.open_groups(connection, openings, keep, now)
            messages_table.add(connection, unknown, now)

        await self._database.write(submit)

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        now = self._now()
        prepared = [_prepared(item, keep, now) for item in batch]
        unsettled = await self._database.write(lambda connection: _settle(connection, prepared, keep, now))
        kept = {one.item.delivery.receipt for one in unsettled}
        self._let_go(item.delivery for item in batch if item.delivery.receipt not in kept)
        return unsettled

    async def _take(self, queue: str, limit: int) -> list[Delivery]:
        now = self._now()
        taken = await self._database.write(
            lambda connection: messages_table.take(connection, queue, limit, now, self._lease)
        )
        self._mine.update((delivery.receipt, delivery) for delivery in taken)
        return taken

    async def _comes(self, queue: str, deadline: float) -> bool:
        """Wait until there is something to take; False when the time is over."""
        loop = asyncio.get_running_loop()
        while (left := deadline - loop.time()) > 0:
            ready_at, seen = await self._database.read(
                lambda connection: (messages_table.ready_at(connection, queue), self._database.version)
            )
            pause = left if ready_at is None else min(left, ready_at - self._now(), CLOCK_LOOK)
            if pause <= 0:
                return True
            await self._database.changed(seen, pause)
        return False

    def _let_go(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._mine.pop(delivery.receipt, None)

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An item of a batch, with all that it writes as rows."""

    item: Settled
    states: list[states_table.Row]
    openings: list[groups_table.Opening]
    end_states: list[states_table.Row]


def _prepared(item: Settled, keep: float, now: float) -> _Prepared:
    states = (item.state, *item.ended, *item.pending) if item.state is not None else (*item.ended, *item.pending)
    end_states = (*item.end.ended, *item.end.pending) if item.end is not None else ()
    return _Prepared(
        item,
        states_table.to_rows(states, keep, now),
        groups_table.to_openings(item.opens),
        states_table.to_rows(end_states, keep, now),
    )


def _settle(connection: Connection, batch: Sequence[_Prepared], keep: float, now: float) -> list[Unsettled]:
    """Bring items to their end, in as few statements as if they were one; returns what could not be."""
    ours = _held_of(connection, batch)
    members = [one.item.member for one in ours if one.item.member is not None]
    unfinished = groups_table.unfinished(connection, members, now)  # before their states are written
    ends = _record(connection, ours, keep, now)
    tally = groups_table.Tally(groups_table.count(connection, members, now), unfinished)
    unsettled: list[Unsettled] = []
    settled: list[Settled] = []
    messages: list[Message] = []
    for one in ours:
        item = one.item
        progress = tally.finish(item.member) if item.member is not None else None
        if item.end is None and (progress is Progress.COMPLETE or progress is Progress.LOST):
            unsettled.append(Unsettled(item, progress))
            continue
        settled.append(item)
        if item.end is not None and ends[item.end.group_id] is one:
            tally.end(item.end.group_id)
            messages += item.end.publish
        messages += item.publish
    groups_table.end(connection, [group_id for group_id, one in ends.items() if one is not None], keep, now)
    _publish(connection, messages, now)
    _conclude(connection, settled, now)
    return unsettled


def _held_of(connection: Connection, batch: Sequence[_Prepared]) -> list[_Prepared]:
    """Those whose delivery is still ours, each delivery once."""
    held = {one.receipt for one in messages_table.held(connection, [one.item.delivery for one in batch])}
    ours: list[_Prepared] = []
    for one in batch:
        if one.item.delivery.receipt in held:
            held.remove(one.item.delivery.receipt)  # if it comes again in this batch, it is not ours any more
            ours.append(one)
    return ours


def _record(connection: Connection, items: Sequence[_Prepared], keep: float, now: float) -> dict[str, _Prepared | None]:
    """Write what items write before their members are counted. Returns which item ends which group, None where that
    was done before."""
    states_table.put(connection, [row for one in items for row in one.states], now)
    groups_table.open_groups(connection, [opening for one in items for opening in one.openings], keep, now)
    for not_before, families in _families(items).items():
        entries.touch(connection, families, keep, now, not_before)
    ends: dict[str, _Prepared | None] = {}
    for one in items:
        if one.item.end is not None:
            ends.setdefault(one.item.end.group_id, one)
    ends.update(dict.fromkeys(groups_table.sent(connection, ends, now)))
    states_table.put(connection, [row for one in ends.values() if one is not None for row in one.end_states], now)
    return ends


def _families(items: Sequence[_Prepared]) -> dict[float | None, list[Sequence[str]]]:
    """The families that items keep alive, by when they are due."""
    found: defaultdict[float | None, list[Sequence[str]]] = defaultdict(list)
    for one in items:
        if one.item.alive:
            found[one.item.state.not_before if one.item.state is not None else None].append(one.item.alive)
    return found


def _publish(connection: Connection, messages: Sequence[Message], now: float) -> None:
    messages_table.add(connection, messages_table.unknown(connection, messages, now), now)


def _conclude(connection: Connection, items: Sequence[Settled], now: float) -> None:
    done: list[Delivery] = []
    back: defaultdict[float, list[Delivery]] = defaultdict(list)
    for item in items:
        match item.verdict:
            case Ack():
                done.append(item.delivery)
            case Nack(delay):
                back[delay].append(item.delivery)
            case Bury(reason, error):
                messages_table.bury(connection, [item.delivery], reason, error, now)
            case _:
                assert_never(item.verdict)
    messages_table.remove(connection, done)
    for delay, deliveries in back.items():
        _give_back(connection, deliveries, delay, now)


def _give_back(connection: Connection, deliveries: Sequence[Delivery], delay: float, now: float) -> None:
    if delay > 0:
        messages_table.delay(connection, deliveries, now + delay)
    else:
        messages_table.give_back(connection, deliveries)
