"""Batching by completion: what ended while the last settlement was under way goes into the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Ack, Bury, Delivery, Settled
from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine import settler as module
from asyncqueue.engine.events import Event, Events, MessageBuried, StoreAway, StoreBack, StoreRefused
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.settler import Settler
from asyncqueue.errors import ArgumentError, Refused, Unavailable
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState


def delivery(n: int) -> Delivery:
    return Delivery(b"", "q", n, 1)


def ended(n: int, state: State = State.SUCCESS) -> Settled:
    return Settled(delivery(n), Ack(), TaskState(task_uuid=f"task_{n}", state=state))


class Store:
    """Takes batches; may be held up, may be away, also with some of its servers alone, may refuse items."""

    def __init__(self) -> None:
        self.batches: list[list[Settled]] = []
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(1_000)
        self.away = 0
        self.out_of_reach: set[object] = set()
        self.refuses: dict[int, Exception] = {}
        self.refuses_everything_of: set[int] = set()

    async def settle(self, batch: Sequence[Settled]) -> None:
        self.begun.release()
        await self.go.acquire()
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        if not self.out_of_reach.isdisjoint(item.delivery.receipt for item in batch):
            raise Unavailable("one of several servers is away")
        for item in batch:
            number = item.delivery.receipt
            assert isinstance(number, int)
            if number in self.refuses_everything_of:
                raise Refused("no")
            if number in self.refuses and item.state is not None and item.state.state is State.SUCCESS:
                raise self.refuses[number]
        self.batches.append(list(batch))

    def submission(self, states: object, messages: object) -> object:
        raise NotImplementedError


class Desk:
    """A settler on a store, and what it told."""

    def __init__(self, max_batch: int = 3) -> None:
        self.store = Store()
        self.backend = MemoryBackend(MemoryStore())
        self.settled: list[object] = []
        self.told: list[Event] = []
        events = Events()
        events.listen(self.told.append)
        self.settler = Settler(
            self.store,  # type: ignore[arg-type]  # nothing is submitted here
            self.backend,
            events=events,
            patience=Patience(events, SYSTEM_CLOCK),
            settled=lambda each: self.settled.append(each.receipt),
            failed=lambda each, error: Settled(
                each, Ack(), TaskState(task_uuid=f"task_{each.receipt}", state=State.FAILURE, error=error)
            ),
            max_batch=max_batch,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Settler]:
        await self.backend.open()
        running = asyncio.create_task(self.settler.run())
        yield self.settler
        running.cancel()
        await asyncio.wait({running})

    def end(self, *numbers: int) -> None:
        for n in numbers:
            self.settler.ended(delivery(n), ended(n))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def test_what_ended_during_a_settlement_goes_into_the_next() -> None:
    desk = Desk()
    desk.store.go = asyncio.Semaphore(0)
    async with desk.at_work() as settler:
        desk.end(0)
        await desk.store.begun.acquire()
        desk.end(1, 2, 3, 4)
        assert not settler.is_drained
        for _ in range(3):
            desk.store.go.release()
        await settler.drained()
    assert [[each.delivery.receipt for each in batch] for batch in desk.store.batches] == [[0], [1, 2, 3], [4]]
    assert desk.settled == [0, 1, 2, 3, 4]


async def test_a_store_that_is_away_is_asked_again() -> None:
    desk = Desk()
    desk.store.away = 2
    async with desk.at_work() as settler:
        desk.end(0)
        await settler.drained()
    assert desk.settled == [0]


async def test_an_end_that_is_kept_waiting_by_its_own_server_holds_up_no_other() -> None:
    desk = Desk()
    desk.store.out_of_reach = {0, 3}
    async with desk.at_work() as settler:
        desk.end(0)
        await desk.store.begun.acquire()
        desk.end(1, 2, 3)
        await until(lambda: set(desk.settled) == {1, 2})
        desk.end(4)
        await until(lambda: set(desk.settled) == {1, 2, 4})
        assert not settler.is_drained
        desk.store.out_of_reach = set()
        async with asyncio.timeout(20):
            await settler.drained()
    assert set(desk.settled) == {0, 1, 2, 3, 4}
    assert [type(event) for event in desk.told] == [StoreAway, StoreBack]


async def test_room_is_short_while_too_many_ends_wait_for_their_server() -> None:
    desk = Desk(max_batch=2)
    desk.store.out_of_reach = set(range(6))
    async with desk.at_work() as settler:
        desk.end(*range(6))
        waiting = asyncio.create_task(settler.has_room())
        desk.end(6)
        await until(lambda: desk.settled == [6])
        assert not waiting.done()
        desk.store.out_of_reach = set()
        async with asyncio.timeout(20):
            await waiting
            await settler.drained()


async def test_a_run_whose_start_cannot_be_recorded_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTED_AFTER", 0.005)
    monkeypatch.setattr(module, "REPORTED_AGAIN_AFTER", 0.005)
    desk = Desk()
    refused = asyncio.Semaphore(0)
    put = desk.backend.put

    async def away(states: Sequence[TaskState]) -> None:
        refused.release()
        raise Unavailable("away")

    monkeypatch.setattr(desk.backend, "put", away)
    async with desk.at_work() as settler:
        for number in (0, 1):
            settler.started(delivery(number), Signature(uuid=f"task_{number}", name="long"), 1)
        async with asyncio.timeout(20):
            await refused.acquire()
            desk.end(0)
            await settler.drained()
            monkeypatch.setattr(desk.backend, "put", put)
            while (states := await desk.backend.get(["task_0", "task_1"]))[1] is None:
                await asyncio.sleep(0.001)
        assert states[0] is None
        assert states[1].state is State.STARTED


async def test_a_lost_run_is_let_go_of_without_a_settlement() -> None:
    desk = Desk()
    async with desk.at_work() as settler:
        settler.ended(delivery(0), None)
        await settler.drained()
    assert (desk.settled, desk.store.batches) == ([0], [])


@pytest.mark.parametrize("error", [Refused("too large"), ArgumentError("a surrogate"), ZeroDivisionError("a mistake")])
async def test_one_end_that_is_refused_holds_up_no_other(error: Exception) -> None:
    desk = Desk()
    desk.store.refuses[1] = error
    async with desk.at_work() as settler:
        desk.end(0, 1, 2)
        await settler.drained()
    assert sorted(desk.settled, key=str) == [0, 1, 2]
    recorded = {item.delivery.receipt: item.state for batch in desk.store.batches for item in batch}
    assert [state and state.state for _, state in sorted(recorded.items(), key=str)] == [
        State.SUCCESS,
        State.FAILURE,
        State.SUCCESS,
    ]
    failure = recorded[1]
    assert failure is not None
    assert str(error) in failure.error
    assert any(isinstance(each, StoreRefused) for each in desk.told)


async def test_what_cannot_be_recorded_at_all_goes_to_the_dead_letter_and_then_is_let_go() -> None:
    desk = Desk()
    desk.store.refuses_everything_of = {0}
    async with desk.at_work() as settler:
        desk.end(0)
        await settler.drained()
        desk.end(1)
        await settler.drained()
    assert desk.settled == [0, 1]
    assert [[each.delivery.receipt for each in batch] for batch in desk.store.batches] == [[1]]


async def test_a_burial_is_told() -> None:
    desk = Desk()
    async with desk.at_work() as settler:
        settler.ended(delivery(0), Settled(delivery(0), Bury("undecodable", "no JSON")))
        await settler.drained()
    assert desk.told == [MessageBuried("", "q", "undecodable", "no JSON")]


async def test_a_long_run_is_recorded_as_started_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTED_AFTER", 0.005)
    desk = Desk()
    async with desk.at_work() as settler:
        settler.started(delivery(0), Signature(uuid="task_0", name="short"), 1)
        desk.end(0)
        settler.started(delivery(1), Signature(uuid="task_1", name="long"), 2)
        async with asyncio.timeout(20):
            while (states := await desk.backend.get(["task_0", "task_1"]))[1] is None:
                await asyncio.sleep(0.001)
        assert states[0] is None  # the end of the short one went another way
        assert (states[1].state, states[1].attempt, states[1].task_name) == (State.STARTED, 2, "long")
        desk.end(1)
        await settler.drained()


async def test_room_is_short_while_more_has_ended_than_the_stores_take() -> None:
    desk = Desk(max_batch=2)
    desk.store.go = asyncio.Semaphore(0)
    async with desk.at_work() as settler:
        desk.end(0)
        await desk.store.begun.acquire()
        desk.end(1, 2, 3, 4, 5)
        waiting = asyncio.create_task(settler.has_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        for _ in range(4):
            desk.store.go.release()
        async with asyncio.timeout(20):
            await waiting
        await settler.drained()
