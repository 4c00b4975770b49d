"""Faults happen where they were planned, and nowhere else."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from asyncqueue.backends.base import Backend, GroupClaim, Member, Progress
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import (
    Ack,
    Broker,
    Inspector,
    JointStore,
    Message,
    Polling,
    Reconnecting,
    Settled,
    Tended,
    Unsettled,
)
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import Refused, Unavailable
from asyncqueue.locks.base import TurnLock
from asyncqueue.locks.memory import MemoryLock
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.testing import Faults, ManualClock, with_faults
from asyncqueue.testing.faults import ALWAYS

A = Message(b"a", "queue", "task_a")


async def faulty_broker(faults: Faults) -> MemoryBroker:
    broker = with_faults(MemoryBroker(), faults)
    await broker.open()
    return broker


async def test_a_call_that_fails_before_does_nothing() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    faults.before("publish")
    with pytest.raises(Unavailable, match="publish"):
        await broker.publish([A])
    assert list(await broker.fetch("queue", 1, 0)) == []
    await broker.publish([A])
    assert len(await broker.fetch("queue", 1, 0)) == 1
    assert faults.calls["publish"] == 2


async def test_a_call_that_fails_after_was_done() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    faults.after("publish", error=Refused("too late"))
    with pytest.raises(Refused, match="too late"):
        await broker.publish([A])
    assert len(await broker.fetch("queue", 1, 0)) == 1


async def test_a_fetch_whose_reply_is_lost_keeps_what_it_took_until_the_lease_ends() -> None:
    faults, clock = Faults(), ManualClock()
    broker = with_faults(MemoryBroker(lease=10.0, clock=clock), faults)
    await broker.open()
    await broker.publish([A])
    faults.after("fetch")
    with pytest.raises(Unavailable):
        await broker.fetch("queue", 1, 0)
    assert list(await broker.fetch("queue", 1, 0)) == []
    clock.advance(10.0)
    assert [delivery.attempt for delivery in await broker.fetch("queue", 1, 0)] == [2]


async def test_plans_skip_and_repeat() -> None:
    faults = Faults()
    lock = with_faults(MemoryLock(), faults)
    await lock.open()
    faults.before("acquire", skip=1, times=2)
    outcomes: list[bool | None] = []
    for number in range(4):
        try:
            outcomes.append(bool(await lock.acquire(str(number), 1.0)))
        except Unavailable:
            outcomes.append(None)
    assert outcomes == [True, None, None, True]


async def test_plans_for_one_verb_are_met_one_after_the_other() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    faults.before("publish", error=Unavailable("first"))
    faults.before("publish", error=Unavailable("second"))
    for name in ("first", "second"):
        with pytest.raises(Unavailable, match=name):
            await broker.publish([A])
    await broker.publish([A])


async def test_a_plan_holds_until_it_is_cleared() -> None:
    faults = Faults()
    backend = with_faults(MemoryBackend(), faults)
    await backend.open()
    faults.before("put", times=ALWAYS)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await backend.put([TaskState(task_uuid="task_a", state=State.SUCCESS)])
    faults.clear()
    await backend.put([TaskState(task_uuid="task_a", state=State.SUCCESS)])
    assert [task_id async for task_id, _ in backend.watch(["task_a"])] == ["task_a"]
    await backend.close()


async def test_a_call_that_hangs_goes_on_when_it_is_released() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    hang = faults.hang("publish")
    publishing = asyncio.create_task(broker.publish([A]))
    async with asyncio.timeout(30):
        await hang.reached()
        await hang.reached()
    assert list(await broker.fetch("queue", 1, 0)) == []
    hang.release()
    await asyncio.wait_for(publishing, 30)
    assert len(await broker.fetch("queue", 1, 0)) == 1


async def test_a_call_in_another_loop_can_be_released() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    hang = faults.hang("extend")
    twin = broker.twin()

    async def extend() -> int:
        await twin.open()
        return len(await twin.extend([]))

    extending = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(extend())))
    async with asyncio.timeout(30):
        await hang.reached()
        hang.release()
        assert await extending == 0
    assert faults.calls["extend"] == 1


async def test_a_hanging_call_can_be_cancelled() -> None:
    faults = Faults()
    broker = await faulty_broker(faults)
    hang = faults.hang("publish")
    publishing = asyncio.create_task(broker.publish([A]))
    await asyncio.wait_for(hang.reached(), 30)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    hang.release()
    assert list(await broker.fetch("queue", 1, 0)) == []


def test_with_faults_a_thing_is_what_it_was() -> None:
    broker, backend = with_faults(MemoryBroker(), Faults()), with_faults(MemoryBackend(), Faults())
    assert isinstance(broker, Inspector)
    assert isinstance(broker, JointStore)
    assert not isinstance(broker, Tended)
    assert not isinstance(backend, JointStore)
    assert broker.capabilities == MemoryBroker().capabilities
    assert broker.address.startswith("memory://")


def test_what_a_thing_can_be_told_reaches_it_through_its_faults() -> None:
    driver = RedisBroker("redis://127.0.0.1")
    broker: Any = with_faults(driver, Faults())
    for protocol in (Polling, Reconnecting, Tended):
        assert isinstance(broker, protocol)
    broker.normal_poll = 0.5
    assert driver.normal_poll == 0.5


@pytest.mark.parametrize(
    ("contract", "thing"),
    [(Backend, MemoryBackend), (Broker, MemoryBroker), (JointStore, MemoryBroker), (TurnLock, MemoryLock)],
)
async def test_every_verb_of_a_contract_meets_its_faults(contract: type[Any], thing: type[Any]) -> None:
    verbs = [name for name in dir(contract) if inspect.iscoroutinefunction(getattr(contract, name))]
    assert len(verbs) >= 2
    for verb in verbs:
        faults = Faults()
        faults.before(verb)
        with pytest.raises(Unavailable, match=verb):
            await getattr(with_faults(thing(), faults), verb)()


async def test_what_a_verb_is_given_and_answers_passes_through() -> None:
    faults, store = Faults(), MemoryStore()
    broker, backend = with_faults(MemoryBroker(store), faults), with_faults(MemoryBackend(store), faults)
    await broker.open()
    await backend.open()
    group, plan = GroupMeta(group_uuid="group_a", task_uuids=("task_a",)), Plan("plan_a", (), ("task_a",))
    await broker.submit([TaskState(task_uuid="task_a")], [A], 60.0, groups=[group], plans=[plan])
    assert list(await backend.get_groups(["group_a"])) == [group]
    assert list(await backend.get_plans(["plan_a"])) == [plan]
    (delivery,) = await broker.fetch("queue", 1, 0)
    done = TaskState(task_uuid="task_a", state=State.SUCCESS)
    item = Settled(delivery, Ack(), state=done, member=Member("group_a", "task_a"))
    assert list(await broker.settle([item], 60.0)) == [Unsettled(item, Progress.COMPLETE)]
    assert await backend.claim_group("group_a", "me", ttl=60.0) is GroupClaim.MINE
    assert faults.calls["claim_group"] == faults.calls["settle"] == 1


def test_a_manual_clock_moves_when_told_and_not_back() -> None:
    clock = ManualClock(100.0)
    clock.advance(1.5)
    assert clock.now_ns() == 101_500_000_000
    assert clock.monotonic() == 101.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1.0)
