"""A heartbeat in a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asyncqueue.brokers.base import Capabilities, Delivery, Message
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.engine.leases import LeaseKeeper
from asyncqueue.errors import Refused
from asyncqueue.testing import Faults, with_faults

LEASE = 1.5


class Desk:
    """A broker with one message taken, and a keeper for it."""

    def __init__(self, path: Path, *, blocked_after: float = 60.0) -> None:
        self.faults = Faults()
        self.broker = with_faults(SqliteBroker(path, lease=LEASE), self.faults)
        self.lost: asyncio.Queue[Sequence[Delivery]] = asyncio.Queue()
        self.blocked: list[tuple[float, str]] = []
        self.keeper = LeaseKeeper(
            self.broker,
            clock=SYSTEM_CLOCK,
            lost=self.lost.put_nowait,
            blocked=lambda seconds, stack: self.blocked.append((seconds, stack)),
            blocked_after=blocked_after,
        )

    async def take(self) -> Delivery:
        await self.broker.open()
        await self.broker.publish([Message(b"x", "q", "task_a")])
        (delivery,) = await self.broker.fetch("q", 1, 1)
        self.keeper.hold([delivery])
        self.keeper.start()
        return delivery

    async def beats(self, count: int) -> None:
        before = self.faults.calls["extend"]
        async with asyncio.timeout(30):
            while self.faults.calls["extend"] < before + count:
                await asyncio.sleep(0.01)


async def test_what_is_held_stays_ours_beyond_its_lease(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "q.db")
    delivery = await desk.take()
    await desk.beats(6)
    assert await desk.broker.fetch("q", 1, 0) == []
    assert await desk.broker.extend([delivery]) == []
    await desk.keeper.stop()
    await desk.broker.close()


async def test_a_blocked_loop_does_not_stop_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "q.db", blocked_after=0.3)
    delivery = await desk.take()
    await desk.beats(1)
    time.sleep(2 * LEASE)  # that is what is tried here
    other = SqliteBroker(tmp_path / "q.db", lease=LEASE)
    await other.open()
    assert await other.fetch("q", 1, 0) == []
    assert await desk.broker.extend([delivery]) == []
    await desk.keeper.stop()
    ((seconds, stack),) = desk.blocked
    assert seconds >= 0.3
    assert "test_a_blocked_loop_does_not_stop_it" in stack
    await other.close()
    await desk.broker.close()


async def test_a_store_that_is_slow_is_no_blocked_loop(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "q.db", blocked_after=0.2)
    hang = desk.faults.hang("extend")
    await desk.take()
    await hang.reached()
    await asyncio.sleep(0.5)
    hang.release()
    await desk.beats(2)
    await desk.keeper.stop()
    assert desk.blocked == []
    await desk.broker.close()


async def test_what_was_lost_is_told_and_what_was_let_go_is_not_extended(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "q.db")
    delivery = await desk.take()
    await desk.broker.nack([delivery])
    async with asyncio.timeout(30):
        assert await desk.lost.get() == (delivery,)
    desk.keeper.release(delivery)
    assert desk.keeper.held == 0
    calls = desk.faults.calls["extend"]
    await asyncio.sleep(LEASE / 2)
    assert desk.faults.calls["extend"] <= calls + 1  # one may have been under way
    await desk.keeper.stop()
    await desk.keeper.stop()
    await desk.broker.close()


async def test_a_store_that_is_away_is_asked_again_at_the_next_beat(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "q.db")
    desk.faults.before("extend", times=2)
    delivery = await desk.take()
    await desk.beats(4)
    assert await desk.broker.extend([delivery]) == []
    await desk.keeper.stop()
    await desk.broker.close()


async def test_without_leases_what_is_no_longer_ours_is_told_all_the_same() -> None:
    broker = MemoryBroker(lease=None)
    lost: asyncio.Queue[Sequence[Delivery]] = asyncio.Queue()
    blocked: list[str] = []
    keeper = LeaseKeeper(
        broker,
        clock=SYSTEM_CLOCK,
        lost=lost.put_nowait,
        blocked=lambda seconds, stack: blocked.append(stack),
        blocked_after=0.3,
    )
    await broker.open()
    await broker.publish([Message(b"x", "q", "task_a"), Message(b"y", "q", "task_b")])
    taken, kept = await broker.fetch("q", 2, 1)
    keeper.hold([taken, kept])
    keeper.start()
    other = broker.twin()
    await other.open()
    await other.nack([taken])
    async with asyncio.timeout(30):
        assert await lost.get() == (taken,)
    time.sleep(3.0)  # that is what is tried here
    await keeper.stop()
    assert "test_without_leases" in blocked[0]
    await other.close()
    await broker.close()


async def test_what_is_refused_to_one_part_keeps_no_other_from_being_extended() -> None:
    extended: list[str] = []

    class InParts(MemoryBroker):
        """Two to a request, of which those of one queue are refused."""

        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, max_batch=2)

        async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            if any(each.queue == "forbidden" for each in deliveries):
                raise Refused("no right to extend")
            extended.extend(each.body.decode() for each in deliveries)
            return await super().extend(deliveries)

    broker = InParts(lease=LEASE)
    keeper = LeaseKeeper(broker, clock=SYSTEM_CLOCK, lost=lambda lost: None, blocked=lambda seconds, stack: None)
    await broker.open()
    names = [f"task_{number}" for number in range(6)]
    await broker.publish([Message(b"x", "forbidden", "task_x")])
    await broker.publish([Message(name.encode(), "q", name) for name in names])
    keeper.hold([*await broker.fetch("forbidden", 1, 1), *await broker.fetch("q", 6, 1)])
    keeper.start()
    async with asyncio.timeout(30):
        while not set(names[1:]) <= set(extended):
            await asyncio.sleep(0.01)
    await keeper.stop()
    await broker.close()
