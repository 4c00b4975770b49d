"""One delivery to one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Delivery
from asyncqueue.clock import NANOSECONDS
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.events import Event, Events, TaskFailed, TaskUnknown
from asyncqueue.engine.execution import Execution, Host
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.outcome import (
    Exhausted,
    Failed,
    NotMine,
    NotYet,
    Outcome,
    Retry,
    Succeeded,
    Superseded,
    Unreadable,
)
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.registry import Registry, TaskOptions, register
from asyncqueue.errors import Refused
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State, TaskState
from asyncqueue.testing import Faults, ManualClock, with_faults
from asyncqueue.wire import encode_signature

CHECK = {"aq-check": "1"}


class Desk:
    """An execution with one task, ``add``, and what it did."""

    def __init__(self, threads: ThreadPoolExecutor, *, longest_delay: float = float("inf")) -> None:
        self.runs: list[tuple[int, int]] = []
        self.told: list[Event] = []
        self.clock = ManualClock()
        self.faults = Faults()
        self.backend = with_faults(MemoryBackend(MemoryStore(), clock=self.clock), self.faults)
        events = Events()
        events.listen(self.told.append)
        registry = Registry()
        registry.add(register("add", self._add, TaskOptions()))
        self.execution = Execution(
            registry,
            self.backend,
            clock=self.clock,
            events=events,
            patience=Patience(events, self.clock),
            rules=Rules,
            max_deliveries=lambda: 5,
            longest_delay=longest_delay,
            threads=threads,
            host=Host(),
        )

    async def _add(self, a: int, b: int) -> int:
        self.runs.append((a, b))
        return a + b

    async def knows(self, **state: Any) -> None:
        await self.backend.open()
        await self.backend.put([TaskState(task_uuid="task_a", **state)])

    async def outcome(self, *, attempt: int = 1, **changes: Any) -> Outcome:
        args = (Arg(type="int64", value=1), Arg(type="int64", value=2))
        sent = Signature(uuid="task_a", name="add", routing_key="q", args=args).with_changes(**changes)
        await self.backend.open()
        return (await self.execution.run(Delivery(encode_signature(sent), "q", 1, attempt))).outcome


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def desk(threads: ThreadPoolExecutor) -> Desk:
    return Desk(threads)


async def test_a_first_showing_is_run_and_nothing_is_looked_up(desk: Desk) -> None:
    await desk.knows(state=State.SUCCESS)
    outcome = await desk.outcome()
    assert isinstance(outcome, Succeeded)
    assert outcome.results[0].value == 3
    assert desk.faults.calls["get"] == 0


@pytest.mark.parametrize("showing", [{"attempt": 2}, {"headers": CHECK}])
async def test_what_may_be_a_second_copy_is_looked_up_before_it_runs(desk: Desk, showing: dict[str, Any]) -> None:
    assert isinstance(await desk.outcome(**showing), Succeeded)
    assert desk.runs == [(1, 2)]  # nothing was known
    await desk.knows(state=State.STARTED)
    await desk.outcome(**showing)
    assert len(desk.runs) == 2
    await desk.knows(state=State.FAILURE, error="it was so")
    assert await desk.outcome(**showing) == Failed("it was so")
    assert len(desk.runs) == 2


async def test_a_copy_of_an_earlier_attempt_is_not_run(desk: Desk) -> None:
    await desk.knows(state=State.RETRY, attempt=2)
    assert isinstance(await desk.outcome(attempt=2), Superseded)
    assert desk.runs == []
    assert isinstance(await desk.outcome(attempt=2, headers={"aq-attempt": "2"}), Succeeded)


async def test_what_was_shown_too_often_is_not_run(desk: Desk) -> None:
    assert isinstance(await desk.outcome(attempt=5), Succeeded)
    outcome = await desk.outcome(attempt=6)
    assert isinstance(outcome, Exhausted)
    assert "limit 5" in outcome.error
    assert len(desk.runs) == 1


async def test_what_was_shown_too_often_and_has_ended_has_ended(desk: Desk) -> None:
    await desk.knows(state=State.SUCCESS, results=())
    assert await desk.outcome(attempt=6) == Succeeded(())


async def test_a_message_before_its_time_is_given_back_where_brokers_delay_only_so_long(
    threads: ThreadPoolExecutor,
) -> None:
    desk = Desk(threads, longest_delay=900)
    due = desk.clock.now_ns() + 2 * NANOSECONDS
    assert await desk.outcome(eta=due) == NotYet(2.0)
    desk.clock.advance(2)
    assert isinstance(await desk.outcome(eta=due), Succeeded)


async def test_an_unknown_name_is_told_once(desk: Desk) -> None:
    assert await desk.outcome(name="nobody") == NotMine()
    assert await desk.outcome(name="nobody") == NotMine()
    assert desk.told == [TaskUnknown("nobody", "q")]


async def test_arguments_that_do_not_fit_are_a_failure_and_no_retry(desk: Desk) -> None:
    outcome = await desk.outcome(args=(), retry_count=3)
    assert isinstance(outcome, Failed)
    assert "takes 2 arguments, not 0" in outcome.error
    assert [type(each) for each in desk.told] == [TaskFailed]
    assert desk.runs == []


@pytest.mark.parametrize(
    ("body", "reason", "task_id"),
    [
        (b"", "undecodable", ""),
        (b'{"UUID":"task_x","Name":', "undecodable", "task_x"),
        (b'{"UUID":"q","Name":', "undecodable", ""),
        (b'{"UUID":"delayed_tasks","Name":', "undecodable", ""),
        (b'{"UUID":"task_x","Name":7}', "invalid_signature", "task_x"),
        (b'{"UUID":"q","Name":"add"}', "invalid_name", ""),
        (b'{"UUID":"task_x","Name":"a\\nb"}', "invalid_name", "task_x"),
        (b'{"UUID":"task_x","Name":"add","OnSuccess":[{"UUID":"q","Name":"add"}]}', "invalid_name", "task_x"),
    ],
)
async def test_bytes_that_are_no_signature_are_unreadable(desk: Desk, body: bytes, reason: str, task_id: str) -> None:
    ran = await desk.execution.run(Delivery(body, "q", 1, 1))
    assert isinstance(ran.outcome, Unreadable)
    assert (ran.outcome.reason, ran.outcome.task_id) == (reason, task_id)
    assert ran.outcome.error


async def test_a_state_that_cannot_be_looked_up_is_no_failure_of_the_task(desk: Desk) -> None:
    desk.faults.before("get", error=Refused("no"))
    with pytest.raises(Refused):
        await desk.outcome(attempt=2)
    assert desk.runs == []


async def test_a_cancelled_run_raises_and_one_that_cancels_itself_fails(threads: ThreadPoolExecutor) -> None:
    desk = Desk(threads)
    waiting = asyncio.Event()

    async def wait(a: int, b: int) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def cancel_itself(a: int, b: int) -> None:
        raise asyncio.CancelledError("mine")

    desk.execution._registry.add(
        register("wait", wait, TaskOptions()), register("cancel_itself", cancel_itself, TaskOptions())
    )
    running = asyncio.create_task(desk.outcome(name="wait"))
    await waiting.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await desk.outcome(name="cancel_itself") == Failed("CancelledError: mine")


async def test_a_timeout_of_the_tasks_own_is_not_its_time_limit(threads: ThreadPoolExecutor) -> None:
    desk = Desk(threads)

    async def impatient(a: int, b: int) -> None:
        raise TimeoutError("of my own")

    desk.execution._registry.add(register("impatient", impatient, TaskOptions(timeout=60)))
    assert await desk.outcome(name="impatient", retry_count=1) == Retry("TimeoutError: of my own", 1.0, counts=True)
