"""What workflows come to, on every pair of stores: compared with plain Python, and with what Machinery promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from asyncqueue import (
    Chain,
    ChainResult,
    Chord,
    ChordResult,
    Group,
    GroupResult,
    Server,
    TaskContext,
    Worker,
    chain,
    chord,
    group,
    wire,
)
from asyncqueue.brokers.base import Inspector
from asyncqueue.compiling import compiled
from asyncqueue.config import Settings
from asyncqueue.errors import ArgumentError, MessageTooLarge, NoBackend, Refused, TaskFailed
from asyncqueue.signature import Arg, Signature
from asyncqueue.workflow import Join, Node, Series, companion
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time
from tests.path.shapes import Computed, Fan, Funnel, Growing, Line, Shape, Step, Steps, computed, labels_of, labelled
from tests.path.shapes import nestings, shapes

NESTINGS = nestings()


# — every shape —


@asynccontextmanager
async def at_work(bench: Bench, workers: int) -> AsyncIterator[tuple[Server, Steps]]:
    """So many servers with a worker each, which know the tasks of shapes; the first of them."""
    server = bench.server()
    steps = Steps(server)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bench.working(server))
        for _ in range(workers - 1):
            other = bench.server()
            Steps(other, like=steps)
            await stack.enter_async_context(bench.working(other))
        yield server, steps


async def agrees(handle: Any, expected: Computed) -> None:
    """Whether a handle and the handles on all parts have the values that plain Python has."""
    assert await handle.get(PATIENCE) == expected.value, expected.shape
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


@pytest.mark.parametrize("workers", [1, 2])
async def test_every_nesting_comes_to_what_plain_python_does(stores: Stores, bench: Bench, workers: int) -> None:
    async with at_work(bench, workers) as (server, steps):
        handles = {name: await server.send(steps.built(shape)) for name, shape in NESTINGS.items()}
        values = {name: await handle.get(PATIENCE) for name, handle in handles.items()}
    assert values == {name: computed(shape).value for name, shape in NESTINGS.items()}
    assert steps.runs == dict.fromkeys((label for shape in NESTINGS.values() for label in labels_of(shape)), 1)


async def test_every_part_of_every_nesting_has_a_handle_with_its_value(one_store: Stores, bench: Bench) -> None:
    async with at_work(bench, 1) as (server, steps):
        handles = {name: await server.send(steps.built(shape)) for name, shape in NESTINGS.items()}
        for name, shape in NESTINGS.items():
            await agrees(handles[name], computed(shape))


async def test_every_nesting_is_opened_by_its_id_elsewhere(shared_store: Stores, bench: Bench) -> None:
    elsewhere = bench.server()
    async with at_work(bench, 1) as (server, steps):
        sent = {name: await server.send(steps.built(shape)) for name, shape in NESTINGS.items()}
        opened = {name: await _opened(elsewhere, handle) for name, handle in sent.items()}
        values = {name: await handle.get(PATIENCE) for name, handle in opened.items()}
        assert values == {name: computed(shape).value for name, shape in NESTINGS.items()}
        for name, handle in sent.items():
            progress = await handle.progress()
            assert (progress.done, progress.failed) == (progress.total, 0)
            if isinstance(handle, GroupResult):
                assert await opened[name].progress() == progress


async def _opened(server: Server, handle: Any) -> Any:
    match handle:
        case ChainResult():
            return await server.chain_result(handle.id)
        case GroupResult():
            return await server.group_result(handle.id)
        case _:
            return await server.chord_result(handle.id)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=strategies.lists(shapes(30), min_size=1, max_size=10))
def test_any_workflow_comes_to_what_plain_python_does(batch: list[Shape], stopping_takes_no_second: None) -> None:
    asyncio.run(_as_plain_python([labelled(shape, f"{place}.") for place, shape in enumerate(batch)]))


async def _as_plain_python(batch: list[Shape]) -> None:
    server = Server(f"memory://{uuid4()}")
    steps = Steps(server)
    async with server, Worker(server):
        handles = [await server.send(steps.built(shape)) for shape in batch]
        for shape, handle in zip(batch, handles, strict=True):
            assert await handle.get(PATIENCE) == computed(shape).value, shape
    assert steps.runs == dict.fromkeys((label for shape in batch for label in labels_of(shape)), 1)


# — what Machinery promises —


class Sums:
    """The tasks of Machinery's own examples, and others that its tests have."""

    def __init__(self, server: Server) -> None:
        @server.task
        async def add(*numbers: int) -> int:
            return sum(numbers)

        @server.task
        async def multiply(*numbers: int) -> int:
            product = 1
            for number in numbers:
                product *= number
            return product

        @server.task
        async def sum_all(numbers: list[int]) -> int:
            return sum(numbers)

        @server.task
        async def two_values(first: str, second: str) -> tuple[str, str]:
            return first, second

        @server.task
        async def glue(*texts: str) -> str:
            return "".join(texts)

        @server.task
        async def panic(*given: int) -> None:
            raise RuntimeError("oops")

        self.add, self.multiply, self.sum_all = add, multiply, sum_all
        self.two_values, self.glue, self.panic = two_values, glue, panic


async def test_machinerys_own_examples_come_out(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)
    add, multiply = its.add, its.multiply
    members = (add.s(1, 1), add.s(2, 2), add.s(5, 6))
    async with bench.working(server):
        assert await (await server.send(add.s(1, 1))).get(PATIENCE) == 2
        assert await (await server.send(its.sum_all.s([1, 2]))).get(PATIENCE) == 3
        assert await (await server.send_group(group(*members))).get(PATIENCE) == [2, 4, 11]
        assert await (await server.send_chord(chord(group(*members), multiply.s()))).get(PATIENCE) == 88
        assert await (await server.send_chain(chain(add.s(2, 2), add.s(5, 6), multiply.s(4)))).get(PATIENCE) == 60
        assert await (await chord([add.s(1, 1), add.s(5, 5)], multiply).send()).get(PATIENCE) == 20
        assert await (await (add.s(1, 1) | add.s(5, 5) | multiply.s(4)).send()).get(PATIENCE) == 48
        assert await (await server.send(its.two_values.s("foo", "bar"))).get(PATIENCE) == ("foo", "bar")


async def test_several_results_become_several_arguments_in_order(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)
    pair = its.two_values.s("foo", "bar")
    async with bench.working(server):
        assert await (await server.send(pair | its.glue.s("<"))).get(PATIENCE) == "<foobar"
        joined = group(pair, its.glue.s("-"), pair) | its.glue.s("<")
        assert await (await server.send(joined)).get(PATIENCE) == "<foobar-foobar"


async def test_what_a_task_raises_in_a_workflow_is_its_own_error(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)
    async with bench.working(server):
        for workflow in (
            chain(its.add.s(1), its.panic.s(), its.add.s(2)),
            group(its.add.s(1), its.panic.s()),
            chord([its.add.s(1), its.panic.s()], its.add.s()),
        ):
            with pytest.raises(TaskFailed, match="RuntimeError: oops") as raised:
                await (await server.send(workflow)).get(PATIENCE)
            assert raised.value.task_name == "panic"


async def test_links_and_members_are_retried(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)
    attempts: list[tuple[str, int]] = []

    @server.task(retries=2, backoff="fixed:0.02")
    async def third_time(ctx: TaskContext, name: str, *given: int) -> int:
        attempts.append((name, ctx.attempt))
        if ctx.attempt < 3:
            raise OSError("not yet")
        return 10 + sum(given)

    async with bench.working(server):
        assert await (await server.send(its.add.s(1) | third_time.s("link") | its.add.s(2))).get(PATIENCE) == 13
        members = [its.add.s(1), third_time.s("member"), its.add.s(2)]
        assert await (await server.send(chord(members, its.multiply.s()))).get(PATIENCE) == 20
        assert await (await server.send(chord([its.add.s(1)], third_time.s("callback")))).get(PATIENCE) == 11
    assert sorted(attempts) == [(name, count) for name in ("callback", "link", "member") for count in (1, 2, 3)]


async def test_links_members_and_callbacks_wait_for_their_eta(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)
    began: dict[str, datetime] = {}

    @server.task
    async def tell(name: str, *given: int) -> int:
        began[name] = datetime.now(UTC)
        return sum(given)

    due = datetime.now(UTC) + timedelta(seconds=0.4)
    later = tell.with_(eta=due)
    add = its.add
    async with bench.working(server):
        handles = [
            await server.send(chain(add.s(1), later.s("link"), add.s(2))),
            await server.send(chord([add.s(1), later.s("member", 2), add.s(3)], add.s())),
            await server.send(chord([add.s(1), add.s(2)], later.s("callback"))),
            await server.send(group(later.s("first", 4), add.s(5))),
        ]
        assert [await each.get(PATIENCE) for each in handles] == [3, 6, 3, [4, 5]]
    assert sorted(began) == ["callback", "first", "link", "member"]
    assert all(at >= due for at in began.values())


# — how big messages are —


async def test_messages_stay_small_however_much_follows(
    capsys: pytest.CaptureFixture[str], stopping_takes_no_second: None
) -> None:
    server = Server(f"memory://{uuid4()}")
    steps, its = Steps(server), Sums(server)
    table = [_sizes(name, steps.built(shape)) for name, shape in NESTINGS.items()]
    table += [_sizes(f"chain of 5 groups of {count}", groups(its, 5, count)) for count in (10, 100)]
    with capsys.disabled():
        print(
            f"\n{'workflow':28}{'sent':>6}{'bytes each, at most':>22}{'bytes in all':>14}{'plans':>7}{'their bytes':>13}"
        )
        for name, sent, largest, together, plans, planned in table:
            print(f"{name:28}{sent:6}{largest:22}{together:14}{plans:7}{planned:13}")
    for name, _, largest, *_ in table:
        assert largest < 50_000, name
    await server.close()


@pytest.mark.parametrize("count", [10, 100])
async def test_a_chain_of_five_groups_comes_out(one_store: Stores, bench: Bench, count: int) -> None:
    server = bench.server()
    its = Sums(server)
    expected = 0
    for _ in range(5):
        expected = count * (1 + expected)  # each member adds 1 to all that the members before it came to
    async with bench.working(server, concurrency=100):
        result = await server.send(groups(its, 5, count))
        assert await result.get(PATIENCE) == expected
        for link in result.links[:-1]:
            assert (await link.progress()).done == count


def groups(its: Sums, many: int, count: int) -> Chain[Any, Any]:
    """So many groups of so many members, one after the other, and their sum."""
    return chain(*(group(*(its.add.s(1) for _ in range(count))) for _ in range(many)), its.add.s())


def _sizes(name: str, workflow: Node) -> tuple[str, int, int, int, int, int]:
    work = compiled(workflow, default_queue="machinery_tasks")
    messages = [len(wire.encode_signature(each)) for each in work.entries]
    plans = [len(wire.encode_plan(each)) for each in work.plans]
    return name, len(messages), max(messages), sum(messages), len(plans), sum(plans)
