"""Deliveries are counted in the backend where their broker does not count them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from asyncqueue import wire
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Delivery
from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.engine.events import Event, Events, StoreRefused
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.showings import Showings
from asyncqueue.errors import Refused
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState
from asyncqueue.testing import Faults, with_faults

TASK = Signature(uuid="task_1", name="work")


@pytest.fixture
async def backend() -> AsyncIterator[MemoryBackend]:
    backend = MemoryBackend()
    await backend.open()
    await backend.begin([TaskState(task_uuid=TASK.uuid, task_name=TASK.name)])
    yield backend
    await backend.close()


@pytest.fixture
def showings(backend: MemoryBackend) -> Showings:
    return showings_of(backend, Events())


def showings_of(backend: MemoryBackend, events: Events) -> Showings:
    """One worker's."""
    return Showings(backend, events=events, patience=Patience(events, SYSTEM_CLOCK))


def shown(attempt: int, receipt: str = "1", task: Signature = TASK) -> Delivery:
    return Delivery(wire.encode_signature(task), "tasks", receipt, attempt)


async def counts(showings: Showings, delivery: Delivery, *, attempt: int = 1) -> int:
    """The number of a showing that begins to run."""
    (counted,) = await showings.counted([delivery])
    await showings.note(counted, TASK, attempt)
    return counted.attempt


async def state_of(backend: MemoryBackend) -> TaskState:
    (state,) = await backend.get([TASK.uuid])
    assert state is not None
    return state


async def test_a_showing_that_is_said_to_be_the_first_costs_nothing() -> None:
    faults, events = Faults(), Events()
    showings = showings_of(with_faults(MemoryBackend(), faults), events)
    assert await counts(showings, shown(1)) == 1
    assert not faults.calls


@pytest.mark.parametrize("later", [2, 0], ids=["told from the first", "not told at all"])
async def test_workers_that_die_count_on(backend: MemoryBackend, later: int) -> None:
    first = 1 if later else 0
    numbers = [await counts(showings_of(backend, Events()), shown(first))]
    for _ in range(5):
        numbers.append(await counts(showings_of(backend, Events()), shown(later)))
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert (await state_of(backend)).deliveries == 6


async def test_what_was_counted_and_not_begun_does_not_count(showings: Showings) -> None:
    for _ in range(3):
        (counted,) = await showings.counted([shown(2)])
        assert counted.attempt == 2


@pytest.mark.parametrize("unsure", [2, 0])
async def test_a_run_that_is_given_back_does_not_count(backend: MemoryBackend, showings: Showings, unsure: int) -> None:
    before = await counts(showings, shown(unsure))
    taken_back = showings.taken_back(shown(unsure))
    assert taken_back is not None
    assert taken_back.state is State.RETRY
    await backend.put([taken_back])
    assert await counts(showings, shown(unsure)) == before


async def test_what_the_broker_counts_by_itself_is_the_least(showings: Showings) -> None:
    assert await counts(showings, shown(4)) == 4
    assert await counts(showings, shown(2)) == 5


async def test_the_message_of_the_next_attempt_is_counted_anew(backend: MemoryBackend, showings: Showings) -> None:
    for _ in range(3):
        await counts(showings, shown(2))
    await backend.put([TaskState(task_uuid=TASK.uuid, task_name=TASK.name, state=State.RETRY, attempt=2)])
    assert await counts(showings, shown(0), attempt=2) == 1
    assert await counts(showings, shown(0), attempt=2) == 2


async def test_one_whose_task_has_ended_is_not_the_first(backend: MemoryBackend, showings: Showings) -> None:
    await backend.put([TaskState(task_uuid=TASK.uuid, task_name=TASK.name, state=State.SUCCESS)])
    assert await counts(showings, shown(0)) == 2, "so that its state is looked up before it runs"
    assert (await state_of(backend)).state is State.SUCCESS


async def test_what_is_done_with_is_forgotten(showings: Showings) -> None:
    await counts(showings, shown(2))
    showings.ended(shown(2))
    assert showings.taken_back(shown(2)) is None


async def test_bytes_that_name_no_task_stay_as_they_are(showings: Showings) -> None:
    garbage = replace(shown(2), body=b"\xff")
    assert await showings.counted([shown(2, "a"), garbage]) == [shown(2, "a"), garbage]


async def test_a_backend_that_refuses_holds_nothing_up() -> None:
    faults, events, told = Faults(), Events(), list[Event]()
    events.listen(told.append)
    faults.before("get", error=Refused("no right"))
    faults.before("put", error=Refused("no right"))
    showings = showings_of(with_faults(MemoryBackend(), faults), events)
    assert await counts(showings, shown(2)) == 2
    assert [each.doing for each in told if isinstance(each, StoreRefused)] == ["count deliveries"] * 2
