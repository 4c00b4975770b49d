"""The memory drivers keep the contracts; and what is theirs alone."""

from __future__ import annotations

import asyncio

import pytest

from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Ack, GroupEnd, Message, Settled
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import Clock
from asyncqueue.connections.memory import TOKENS_KEPT, MemoryStore, named
from asyncqueue.connections.memory_entries import SWEEP_AFTER
from asyncqueue.errors import Unavailable
from asyncqueue.locks.memory import MemoryLock
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    ManualClock,
    TurnLockContract,
)
from tests.opened import opened


class OnMemory:
    """A store and a clock of each test's own."""

    clock: Clock

    def setup_method(self) -> None:
        self.store = MemoryStore()
        self.clock = self.manual_clock = ManualClock()

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)

    async def make_broker(self) -> MemoryBroker:
        return MemoryBroker(self.store, lease=10.0, clock=self.clock)

    async def make_backend(self, results_expire_in: float = 3600.0) -> MemoryBackend:
        return MemoryBackend(self.store, results_expire_in=results_expire_in, clock=self.clock)

    async def make_lock(self) -> MemoryLock:
        return MemoryLock(self.store, clock=self.clock)


class TestMemoryBroker(OnMemory, BrokerContract):
    pass


class TestMemoryBrokerWithoutLease(OnMemory, BrokerContract):
    async def make_broker(self) -> MemoryBroker:
        return MemoryBroker(self.store, clock=self.clock)


class TestMemoryInspector(OnMemory, InspectorContract):
    pass


class TestMemoryJointStore(OnMemory, JointContract):
    pass


class TestMemoryJointGroups(OnMemory, JointGroupContract):
    pass


class TestMemoryBackend(OnMemory, BackendContract):
    pass


class TestMemoryGroups(OnMemory, GroupContract):
    pass


class TestMemoryLock(OnMemory, LockContract):
    pass


class TestMemoryTurnLock(OnMemory, TurnLockContract):
    pass


async def test_a_name_is_one_store_in_the_whole_process() -> None:
    assert named("here") is named("here")
    assert named("here") is not named("there")


async def test_stores_without_a_name_have_nothing_in_common() -> None:
    first, second = MemoryBroker(), MemoryBroker()
    assert await first.identity() != await second.identity()
    await first.open()
    await second.open()
    await first.publish([Message(b"a", "queue", "task_a")])
    assert list(await second.fetch("queue", 1, 0)) == []


async def test_what_is_not_open_is_unavailable() -> None:
    store = MemoryStore()
    broker, backend, lock = MemoryBroker(store), MemoryBackend(store), MemoryLock(store)
    await broker.open()
    await broker.close()
    with pytest.raises(Unavailable, match=r"memory://.* is not open"):
        await broker.fetch("queue", 1, 0)
    with pytest.raises(Unavailable):
        await backend.get(["task_a"])
    with pytest.raises(Unavailable):
        await lock.acquire("key", 1.0)


async def test_a_fetch_that_waits_on_a_broker_ends_when_that_is_closed() -> None:
    broker = MemoryBroker()
    await broker.open()
    waiting = asyncio.create_task(broker.fetch("queue", 1, 30.0))
    await asyncio.sleep(0.01)
    await broker.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 10)


async def test_tokens_and_expired_entries_do_not_pile_up() -> None:
    store, clock = MemoryStore(), ManualClock()
    broker, backend = MemoryBroker(store, clock=clock), MemoryBackend(store, results_expire_in=1.0, clock=clock)
    await broker.open()
    await backend.open()
    for number in range(1000):
        await broker.publish([Message(b"a", "queue", "task", token=str(number))])
        await backend.put([TaskState(task_uuid=str(number), state=State.SUCCESS)])
        await backend.open_groups([GroupMeta(group_uuid=str(number))])
        await backend.put_plans([Plan(str(number), (), ())])
        clock.advance(TOKENS_KEPT / 10)
    await backend.close()
    assert len(store.messages._tokens) <= 11
    for shelf in (store.states, store.groups, store.plans):
        assert len(shelf._records) <= SWEEP_AFTER


async def test_a_submit_that_was_partly_made_before_takes_back_no_state_of_what_comes_later() -> None:
    """A callback has no message of its own in the call that sends its group."""
    store = MemoryStore()
    broker, backend = MemoryBroker(store), MemoryBackend(store)
    await broker.open()
    await backend.open()
    first, second = (Message(b"a", "queue", f"task_{name}", token=name) for name in "ab")
    pending = [TaskState(task_uuid=name) for name in ("task_a", "task_callback", "task_b", "task_later")]
    await broker.submit(pending[:2], [first], 3600.0)
    success = TaskState(task_uuid="task_callback", state=State.SUCCESS)
    await backend.put([success])
    await broker.submit(pending, [first, second], 3600.0)
    assert await backend.get([one.task_uuid for one in pending]) == [pending[0], success, *pending[2:]]
    await backend.close()


async def test_every_end_that_settle_records_wakes_its_watcher() -> None:
    store, names = MemoryStore(), ("own", "other", "never-run")
    broker, backend = MemoryBroker(store), MemoryBackend(store)
    async with opened(broker, backend):
        waiters = backend._opened()
        waiters.pace(1e6, 1e6)  # from now on it looks only at what it hears of
        await broker.submit([TaskState(task_uuid=name) for name in names], [Message(b"a", "queue", "own")], 60.0)

        async def watch(name: str) -> State | None:
            (found,) = [state async for _, state in backend.watch([name])]
            return None if found is None else found.state

        watching = [asyncio.create_task(watch(name)) for name in names]
        while waiters._due or len(waiters._watchers) < len(names):
            await asyncio.sleep(0)
        own, other, never_run = (TaskState(task_uuid=name, state=State.FAILURE) for name in names)
        (delivery,) = await broker.fetch("queue", 1, 0)
        end = GroupEnd("group_a", ended=(never_run,))
        await broker.settle([Settled(delivery, Ack(), state=own, ended=(other,), end=end)], 60.0)
        assert await asyncio.wait_for(asyncio.gather(*watching), 30) == [State.FAILURE] * 3


async def test_a_waiter_on_a_loop_that_is_gone_harms_nobody() -> None:
    store = MemoryStore()

    async def wait_and_leave() -> None:
        broker, backend = MemoryBroker(store), MemoryBackend(store)
        await broker.open()
        await backend.open()

    await asyncio.to_thread(lambda: asyncio.run(wait_and_leave()))
    backend = MemoryBackend(store)
    await backend.open()
    await backend.put([TaskState(task_uuid="task_a", state=State.SUCCESS)])
    assert [state is not None for state in await backend.get(["task_a"])] == [True]
