"""What a failure means to the rest of a workflow, on every pair of stores."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, assert_never
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from asyncqueue import (
    ChainResult,
    ChordResult,
    GroupResult,
    MemberFailed,
    MemberFailure,
    Server,
    TaskContext,
    TaskFailed,
    Worker,
    chain,
    chord,
    group,
)
from asyncqueue.builders import TaskSignature
from asyncqueue.state import State
from asyncqueue.workflow import OnFailure
from tests.path.bench import PATIENCE, Bench, Stores, in_time, nothing_is_queued, reaches
from tests.path.shapes import (
    Computed,
    Failed,
    Fan,
    Funnel,
    Growing,
    Line,
    Shape,
    Step,
    Steps,
    computed,
    labelled,
    nestings,
    shapes,
)

NOWHERE = "nowhere"
"""A queue that no worker fetches from: what is sent there is lost."""

POLICIES: tuple[OnFailure, ...] = ("fail", "skip", "pass")


# — a member of a chord: succeeded, failed, expired, lost —


class Table:
    """A chord whose middle member comes to a bad end, and what its callback and its error handler were given."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.gate = asyncio.Event()
        self.errors: list[str] = []

        @server.task
        async def row(text: str) -> str:
            return text

        @server.task
        async def fail(text: str) -> str:
            raise ValueError(f"no {text}")

        @server.task
        async def last(text: str) -> str:
            await in_time(self.gate.wait())
            return text

        @server.task
        async def table(title: str, *rows: str | MemberFailure) -> list[str]:
            return [title, *(each if isinstance(each, str) else f"{each.task_id}: {each.error}" for each in rows)]

        @server.task
        async def note(error: str) -> None:
            self.errors.append(error)

        self.row, self.fail, self.last, self.table, self.note = row, fail, last, table, note

    async def send(
        self, member: TaskSignature[Any, Any], on_failure: OnFailure, group_timeout: float | None = None
    ) -> ChordResult[Any]:
        return await self.server.send_chord(
            chord(
                [self.row.s("a"), member, self.last.s("c")],
                self.table.with_(on_error=self.note.s()).s("title"),
                on_failure=on_failure,
                group_timeout=group_timeout,
            )
        )


async def failure_of(result: ChordResult[Any]) -> str:
    """The error text of a chord's callback, which has failed."""
    state = await result.callback.wait(PATIENCE)  # type: ignore[attr-defined]  # it is a task
    assert state.state is State.FAILURE
    assert state.task_name == "table"
    return str(state.error)


@pytest.mark.parametrize("on_failure", POLICIES)
async def test_a_callback_gets_what_succeeded_in_order(stores: Stores, bench: Bench, on_failure: OnFailure) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await its.send(its.row.s("b"), on_failure)
        its.gate.set()
        assert await result.get(PATIENCE) == ["title", "a", "b", "c"]
        assert its.errors == []


async def test_a_failed_member_fails_the_callback_while_others_run(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await its.send(its.fail.with_(task_id="task_b").s("b"), "fail")
        with pytest.raises(MemberFailed, match="ValueError: no b") as raised:
            await result.get(PATIENCE)
        assert (raised.value.index, raised.value.task_id, raised.value.task_name) == (1, "task_b", "fail")
        error = await failure_of(result)
        assert error == f"member 'fail' (task_b) of group {result.group.id} failed: ValueError: no b"
        assert not await result.group.members[2].is_completed()  # type: ignore[attr-defined]  # it is a task
        its.gate.set()
        assert await result.group.members[2].get(PATIENCE) == "c"
        await nothing_is_queued(its.server)
    assert its.errors == [error]


@pytest.mark.parametrize(("on_failure", "middle"), [("skip", []), ("pass", ["task_b: ValueError: no b"])])
async def test_a_failed_member_is_skipped_or_passed_on(
    stores: Stores, bench: Bench, on_failure: OnFailure, middle: list[str]
) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await its.send(its.fail.with_(task_id="task_b").s("b"), on_failure)
        its.gate.set()
        assert await result.get(PATIENCE) == ["title", "a", *middle, "c"]
        with pytest.raises(MemberFailed, match="no b"):
            await result.group.get(PATIENCE)
        await nothing_is_queued(its.server)
    assert its.errors == []


async def expired(its: Table, on_failure: OnFailure) -> ChordResult[Any]:
    """A chord whose middle member has ended, and whose entry was gone before the last one ended."""
    result = await its.send(its.row.with_(task_id="task_b").s("b"), on_failure)
    await reaches(its.server, "task_b", State.SUCCESS)
    backend = (await its.server.connected()).backend
    assert backend is not None
    await backend.forget(["task_b"])
    its.gate.set()
    return result


async def test_an_expired_member_fails_the_callback(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await expired(its, "fail")
        error = await failure_of(result)
        assert "(task_b)" in error
        assert error.endswith(f"of group {result.group.id} failed: its result has expired")
        with pytest.raises(TaskFailed, match="expired"):
            await result.get(PATIENCE)
        await nothing_is_queued(its.server)
    assert its.errors == [error]


@pytest.mark.parametrize(("on_failure", "middle"), [("skip", []), ("pass", ["task_b: its result has expired"])])
async def test_an_expired_member_is_skipped_or_passed_on(
    stores: Stores, bench: Bench, on_failure: OnFailure, middle: list[str]
) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await expired(its, on_failure)
        assert await result.get(PATIENCE) == ["title", "a", *middle, "c"]
    assert its.errors == []


@pytest.mark.parametrize("on_failure", POLICIES)
async def test_a_lost_member_fails_the_callback_when_its_time_is_over(
    stores: Stores, bench: Bench, on_failure: OnFailure
) -> None:
    its = Table(bench.server())
    its.gate.set()
    async with bench.working(its.server):
        result = await its.send(its.row.with_(queue=NOWHERE).s("b"), on_failure, group_timeout=0.3)
        error = await failure_of(result)
        assert error == f"group {result.group.id} was not complete within 0.3 s"
        with pytest.raises(TaskFailed, match="was not complete within"):
            await result.get(PATIENCE)
        assert await result.group.members[2].get(PATIENCE) == "c"
        await nothing_is_queued(its.server, but_in=[NOWHERE])
    assert its.errors == [error]


async def test_a_group_that_is_complete_in_time_has_no_deadline_any_more(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    its.gate.set()
    async with bench.working(its.server):
        result = await its.send(its.row.s("b"), "fail", group_timeout=0.3)
        assert await result.get(PATIENCE) == ["title", "a", "b", "c"]
        await nothing_is_queued(its.server)  # the deadline has come, too
        assert await (await its.server.chord_result(result.id)).get(PATIENCE) == ["title", "a", "b", "c"]
    assert its.errors == []


async def test_a_group_whose_entry_is_gone_fails_the_callback_when_a_member_ends(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    async with bench.working(its.server):
        result = await its.send(its.row.with_(task_id="task_b").s("b"), "skip")
        await reaches(its.server, "task_b", State.SUCCESS)
        backend = (await its.server.connected()).backend
        assert backend is not None
        await backend.forget([result.group.id])
        its.gate.set()
        error = await failure_of(result)
        assert error == f"the entry of group {result.group.id} is gone: it has expired or was dropped"
        await nothing_is_queued(its.server)
    assert its.errors == [error]


async def test_a_failed_callback_tells_its_handlers_and_those_after_it(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    its.gate.set()
    failing = its.fail.with_(task_id="task_callback", on_error=its.note.s()).si("callback")
    async with bench.working(its.server):
        result = await its.server.send(chord([its.row.s("a")], failing) | its.row.s())
        with pytest.raises(TaskFailed, match="no callback") as raised:
            await result.get(PATIENCE)
        assert raised.value.task_id == "task_callback"
        await nothing_is_queued(its.server)
    assert its.errors == ["ValueError: no callback"]


# — a failure anywhere —


async def agrees(handle: Any, expected: Computed) -> None:
    """Whether a handle and those on all parts return, or raise, what plain Python says."""
    if not handle.id:
        return  # an empty group that no task stands for
    try:
        value = await handle.get(PATIENCE)
    except TaskFailed:
        value = Failed()
    assert value == expected.value, expected.shape
    match handle:
        case ChainResult():
            parts = handle.links
        case GroupResult():
            parts = handle.members
        case ChordResult():
            parts = (handle.group, handle.callback)
        case _:
            return
    for part, its in zip(parts, expected.parts, strict=True):
        await agrees(part, its)


async def run_all(server: Server, steps: Steps, cases: Sequence[Shape]) -> None:
    """Send these and compare all that they come to and all that runs with plain Python."""
    handles = [await server.send(steps.built(shape)) for shape in cases]
    for shape, handle in zip(cases, handles, strict=True):
        await agrees(handle, computed(shape))
    await nothing_is_queued(server)
    assert steps.runs == Counter(label for shape in cases for label in computed(shape).runs)


def with_failing(shape: Shape, label: str, on_failure: OnFailure) -> Shape:
    """The shape with one task that fails, and another policy for every group with a callback of its own."""
    match shape:
        case Step():
            return replace(shape, kind="fails") if shape.label == label else shape
        case Growing(own, inner, by_return):
            return Growing(own, with_failing(inner, label, on_failure), by_return)
        case Line(links):
            return Line(tuple(with_failing(link, label, on_failure) for link in links))
        case Fan(members):
            return Fan(tuple(with_failing(member, label, on_failure) for member in members))
        case Funnel(members, callback):
            again = tuple(with_failing(member, label, on_failure) for member in members)
            return Funnel(again, with_failing(callback, label, on_failure), on_failure)
    assert_never(shape)


def failing_nestings(on_failure: OnFailure, *, every: int) -> list[Shape]:
    """Every nesting of depth 3 with one failing task: for each of its tasks one, or for each ``every``-th of all."""
    labels = [(shape, label) for shape in nestings().values() for label in computed(shape).runs]
    chosen = [with_failing(shape, label, on_failure) for shape, label in labels[::every]]
    return [labelled(shape, f"{place}.") for place, shape in enumerate(chosen)]


@pytest.mark.parametrize("on_failure", POLICIES)
async def test_a_failure_anywhere_in_any_nesting_fails_what_needs_it_and_no_more(
    one_store: Stores, bench: Bench, on_failure: OnFailure
) -> None:
    server = bench.server()
    async with bench.working(server):
        await run_all(server, Steps(server), failing_nestings(on_failure, every=7))


async def test_a_failure_anywhere_on_two_stores_fails_what_needs_it_and_no_more(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    other = bench.server()
    steps = Steps(server)
    Steps(other, like=steps)
    cases = [shape for on_failure in POLICIES for shape in failing_nestings(on_failure, every=23)]
    async with bench.working(server), bench.working(other):
        await run_all(server, steps, [labelled(shape, f"{place}.") for place, shape in enumerate(cases)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=strategies.lists(shapes(30, failing=True), min_size=1, max_size=10))
def test_failures_in_any_workflow_are_what_plain_python_says(
    batch: list[Shape], stopping_takes_no_second: None
) -> None:
    async def run() -> None:
        server = Server(f"memory://{uuid4()}")
        steps = Steps(server)
        async with server, Worker(server):
            await run_all(server, steps, [labelled(shape, f"{place}.") for place, shape in enumerate(batch)])

    asyncio.run(run())
