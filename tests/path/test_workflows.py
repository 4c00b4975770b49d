"""What workflows come to, on every pair of stores: compared with plain Python, and with what Machinery promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from redis.asyncio import Redis

import asyncqueue
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
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.backends.sqlite import SqliteBackend
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.clock import Clock
from asyncqueue.compiling import compiled
from asyncqueue.config import Settings
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import ArgumentError, MessageTooLarge, NoBackend, Refused, TaskFailed
from asyncqueue.signature import Arg, Signature
from asyncqueue.testing.clock import ManualClock
from asyncqueue.workflow import Node
from asyncqueue.workflow_results import Progress
from tests.path.bench import PATIENCE, UNHURRIED, Bench, Stores, eventually, in_time, queued
from tests.path.conftest import FORMS, KINDS, ONE_FAR
from tests.path.shapes import (
    Computed,
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
    told,
)

NESTINGS = nestings()


# — every shape —


@asynccontextmanager
async def at_work(bench: Bench, workers: int) -> AsyncIterator[tuple[Server, Steps]]:
    """So many servers with a worker each, which know the tasks of shapes; the first of them."""
    server = bench.server(lease=UNHURRIED)
    steps = Steps(server)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bench.working(server))
        for _ in range(workers - 1):
            other = bench.server(lease=UNHURRIED)
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


async def test_every_nesting_comes_to_what_plain_python_does(everywhere: Stores, bench: Bench) -> None:
    await every_nesting_comes_to_what_plain_python_does(bench, workers=2)


@pytest.mark.parametrize("everywhere", [*KINDS, *ONE_FAR, *FORMS], indirect=True)
async def test_one_worker_alone_comes_to_what_plain_python_does(everywhere: Stores, bench: Bench) -> None:
    await every_nesting_comes_to_what_plain_python_does(bench, workers=1)


async def every_nesting_comes_to_what_plain_python_does(bench: Bench, workers: int) -> None:
    async with at_work(bench, workers) as (server, steps):
        handles = {name: await server.send(steps.built(shape)) for name, shape in NESTINGS.items()}
        values = {name: await handle.get(PATIENCE) for name, handle in handles.items()}
    assert values == {name: computed(shape).value for name, shape in NESTINGS.items()}
    assert steps.runs == dict.fromkeys((label for shape in NESTINGS.values() for label in computed(shape).runs), 1)


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
    assert steps.runs == dict.fromkeys((label for shape in batch for label in computed(shape).runs), 1)


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
        members = (its.add.s(1), third_time.s("member"), its.add.s(2))
        assert await (await server.send(chord(group(*members), its.multiply.s()))).get(PATIENCE) == 20
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


async def test_messages_stay_small_however_much_follows() -> None:
    server = Server(f"memory://{uuid4()}")
    steps, its = Steps(server), Sums(server)
    table = [_sizes(name, steps.built(shape)) for name, shape in NESTINGS.items()]
    table += [_sizes(f"chain of 5 groups of {count}", groups(its, 5, count)) for count in (10, 100)]
    print("workflow: messages sent, bytes of the largest, of all of them; plans, bytes of all of them")
    for name, sent, largest, together, plans, planned in table:
        print(f"{name:28}{sent:5}{largest:8}{together:8}{plans:4}{planned:8}")
    assert {name: largest for name, _, largest, *_ in table if largest > 32_768} == {}
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
        before: Any
        for before in result.links[:-1]:
            assert (await before.progress()).done == count


def groups(its: Sums, many: int, count: int) -> Chain[Any, Any]:
    """So many groups of so many members, one after the other, and their sum."""
    return chain(*(group(*(its.add.s(1) for _ in range(count))) for _ in range(many)), its.add.s())


def _sizes(name: str, workflow: Node) -> tuple[str, int, int, int, int, int]:
    work = compiled(workflow, default_queue="machinery_tasks")
    messages = [len(wire.encode_signature(each)) for each in work.entries]
    plans = [len(wire.encode_plan(each)) for each in work.plans]
    return name, len(messages), max(messages), sum(messages), len(plans), sum(plans)


# — work that comes to mind while it runs —

SEEDS: Mapping[str, Shape] = {
    "task": Step(""),
    "task that returns nothing": Step("", "none"),
    "chain": Line((Step(""), Step("", "two"))),
    "group": Fan((Step(""), Step(""))),
    "empty group": Fan(()),
    "chord": Funnel((Step(""), Step("")), Step("")),
    "workflow": Line((Step(""), Fan((Step(""), Growing("", Fan((Step(""), Step("")))))))),
}


async def test_a_task_goes_on_as_a_workflow_wherever_it_stands(stores: Stores, bench: Bench) -> None:
    task = Step("")
    cases: dict[str, Shape] = {}
    for place, (name, seed) in enumerate(SEEDS.items()):
        growing = Growing("", seed, by_return=place % 2 == 0)
        cases |= {
            f"{name}, alone": growing,
            f"{name}, as a first link": Line((growing, task)),
            f"{name}, as a link": Line((task, growing, task)),
            f"{name}, as a last link": Line((task, growing)),
            f"{name}, before a group": Line((growing, Fan((task, task)))),
            f"{name}, as a member": Fan((task, growing)),
            f"{name}, as a member of a chord": Funnel((growing, task), task),
            f"{name}, as a callback": Funnel((task, task), growing),
            f"{name}, as the end of a member": Funnel((task, Line((task, growing))), task),
        }
    cases = {name: labelled(shape, f"{place}.") for place, (name, shape) in enumerate(cases.items())}
    async with at_work(bench, 2) as (server, steps):
        handles = {name: await server.send(steps.built(shape)) for name, shape in cases.items()}
        values = {name: await handle.get(PATIENCE) for name, handle in handles.items()}
    assert values == {name: computed(shape).value for name, shape in cases.items()}
    assert steps.runs == dict.fromkeys((label for shape in cases.values() for label in computed(shape).runs), 1)


async def test_a_task_goes_on_as_a_chord_whose_members_are_too_long_for_a_message(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)

    @server.task
    async def grow(ctx: TaskContext) -> int:
        line = chain(its.add.s(0, 1), *(its.add.s(1) for _ in range(60)))
        ctx.replace(chord([line, its.add.s(0, 1)], its.add.s()))

    async with bench.working(server):
        assert await (await grow.send()).get(PATIENCE) == 62


async def test_a_task_that_was_retried_goes_on_as_a_workflow(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)

    @server.task(retries=1, backoff="fixed:0.02")
    async def hesitant(ctx: TaskContext, number: int) -> int:
        if ctx.attempt == 1:
            raise OSError("not yet")
        ctx.replace(chord([its.add.s(number, 1), its.add.s(number, 2)], its.multiply.s()))

    async with bench.working(server):
        assert await (await server.send(its.add.s(1) | hesitant.s() | its.add.s(100))).get(PATIENCE) == 106


async def test_members_are_added_by_members(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    runs: list[str] = []

    @server.task
    async def leaf(name: str) -> str:
        runs.append(name)
        return name

    @server.task
    async def adds(ctx: TaskContext, name: str, depth: int) -> str:
        runs.append(name)
        if depth:
            await ctx.add_to_group(leaf.s(f"{name}a"), adds.s(f"{name}b", depth - 1))
            await ctx.add_to_group(chain(leaf.s(f"{name}c"), leaf.si(f"{name}d")))
        return name

    @server.task
    async def table(*names: str) -> list[str]:
        return list(names)

    async with bench.working(server):
        handle = await server.send(chord([adds.s("x", 2), leaf.s("y")], table.s()))
        found = await handle.get(PATIENCE)
        grouped = await server.send(group(adds.s("v", 1), leaf.s("w")))
        assert await grouped.get(PATIENCE) == ["v", "w"]
        reopened = await server.group_result(grouped.id)
        assert await reopened.get(PATIENCE) == ["v", "w", "va", "vb", "vd"]
    assert found[:4] == ["x", "y", "xa", "xb"]
    assert sorted(found[4:]) == ["xba", "xbb", "xbd", "xd"]  # in the order in which two tasks added them
    assert sorted(runs) == sorted([*found, "xc", "xbc", "v", "w", "va", "vb", "vc", "vd"])


async def test_a_retry_adds_no_member_twice(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    runs: list[str] = []

    @server.task
    async def leaf(name: str) -> str:
        runs.append(name)
        return name

    @server.task(retries=2, backoff="fixed:0.02")
    async def adds(ctx: TaskContext) -> str:
        await ctx.add_to_group(leaf.s("a"))
        if ctx.attempt == 2:
            await ctx.add_to_group(leaf.s("b"))
        if ctx.attempt < 3:
            raise OSError("not yet")
        await ctx.add_to_group(leaf.s("b"), leaf.s("c"))
        return "adds"

    @server.task
    async def table(*names: str) -> list[str]:
        return list(names)

    async with bench.working(server):
        handle = await server.send(chord([adds.s(), leaf.s("y")], table.s()))
        assert await handle.get(PATIENCE) == ["adds", "y", "a", "b", "c"]
    assert sorted(runs) == ["a", "b", "c", "y"]


async def test_only_a_member_of_a_group_that_is_not_over_adds_to_it(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    gate = asyncio.Event()

    @server.task
    async def leaf() -> str:
        return "leaf"

    @server.task
    async def adds(ctx: TaskContext) -> None:
        await ctx.add_to_group(leaf.s())

    @server.task
    async def adds_late(ctx: TaskContext) -> None:
        await in_time(gate.wait())
        await ctx.add_to_group(leaf.s())

    @server.task
    async def fail() -> None:
        raise ValueError("oops")

    async with bench.working(server):
        with pytest.raises(TaskFailed, match="ArgumentError: task adds: it is no member of a group"):
            await (await server.send(adds.s())).get(PATIENCE)
        handle = await server.send(chord([adds_late.s(), fail.s()], leaf.si()))
        with pytest.raises(TaskFailed, match="oops"):
            await handle.get(PATIENCE)
        gate.set()
        with pytest.raises(TaskFailed, match=r"ArgumentError: task adds_late: group .* is over"):
            await handle.group.members[0].get(PATIENCE)


async def test_parents_that_yield_their_slot_do_not_starve_their_children(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    its = Sums(server)

    @server.task
    async def parent(ctx: TaskContext, number: int) -> int:
        children = await server.send(group(*(its.add.s(number, child) for child in range(5))))
        async with ctx.yield_slot():
            return sum(await children.get(PATIENCE))

    async with bench.working(server, concurrency=2):
        handle = await server.send(chord([parent.s(number) for number in range(20)], its.add.s()))
        assert await handle.get(PATIENCE) == sum(5 * number + 10 for number in range(20))


# — what is refused, and what is then sent: nothing —


def bad_workflows(server: Any, its: Sums) -> dict[str, tuple[Any, type[Exception], str]]:
    """What cannot be sent, each as a function that tries to, with the error that it gets."""
    # without types, since a type checker knows of many that they cannot be
    chain, group, chord = cast("tuple[Any, Any, Any]", (asyncqueue.chain, asyncqueue.group, asyncqueue.chord))
    add, other = its.add, Sums(Server(f"memory://{uuid4()}"))
    inside: Chain[Any, Any] = chain(add.s(1))
    object.__setattr__(inside, "links", (add.s(1), inside))
    members: Group[Any, Any] = group(add.s(1))
    object.__setattr__(members, "members", (add.s(1), members))
    called: Chord[Any, Any] = chord([add.s(1)], add.s())
    object.__setattr__(called, "callback", called)
    deep: Node = add.s(1)
    for _ in range(101):
        deep = group(deep)
    big = Signature(name="add", args=(Arg(type="string", value="x" * 1_100_000),))
    small = Signature(name="add", args=(Arg(type="int64", value=1),))
    named = add.with_(task_id="task_mine")
    stranger, long = add.with_(queue="no such queue!"), add.with_(queue="q" * 200)

    async def plain(*numbers: int) -> int:
        return 0

    async def called_task() -> Any:
        return await server.send_chord(chord([add.s(1)], add(1)))

    return {
        "a callback that is no task": (lambda: server.send_chord(chord([add.s(1)], plain)), ArgumentError, "register"),
        "a callback that was called": (called_task, ArgumentError, r"use add\.s"),
        "a callback that is a name": (lambda: server.send_chord(chord([add.s(1)], "add")), ArgumentError, "a name"),
        "a callback that is nothing": (lambda: server.send_chord(chord([add.s(1)], None)), ArgumentError, "expected"),
        "a chain inside itself": (lambda: server.send_chain(inside), ArgumentError, "part of itself"),
        "a group inside itself": (lambda: server.send_group(members), ArgumentError, "part of itself"),
        "a chord inside itself": (lambda: server.send_chord(called), ArgumentError, "part of itself"),
        "too deep": (lambda: server.send(deep), ArgumentError, "nest deeper than 100"),
        "a chain of nothing": (lambda: server.send_chain(chain()), ArgumentError, "at least one link"),
        "a list as a member": (lambda: server.send_group(group([add.s(1)])), ArgumentError, r"group\(\*parts\)"),
        "a group as a chain": (lambda: server.send_chain(group(add.s(1))), ArgumentError, "chain"),
        "a chain as a chord": (lambda: server.send_chord(chain(add.s(1))), ArgumentError, "chord"),
        "a chain as a group": (lambda: server.send_group(chain(add.s(1))), ArgumentError, "group"),
        "concurrency below 0": (lambda: server.send_group(group(add.s(1)), -1), ArgumentError, "concurrency"),
        "too big at first": (lambda: server.send_chain(chain(big, add.s())), MessageTooLarge, "1000000"),
        "too big in the middle": (lambda: server.send_chain(chain(small, big, add.s())), MessageTooLarge, "1000000"),
        "too big as a member": (lambda: server.send_group(group(small, big)), MessageTooLarge, "1000000"),
        "too big as a callback": (lambda: server.send_chord(chord([small], big)), MessageTooLarge, "1000000"),
        "a UUID twice": (lambda: server.send(group(named.s(1), named.s(2))), ArgumentError, "task_mine is given twice"),
        "a UUID that no store takes": (
            lambda: server.send(chain(add.s(1), add.with_(task_id="no id!").s())),
            ArgumentError,
            "no id!",
        ),
        "a queue that no broker takes": (lambda: server.send(chain(add.s(1), stranger.s())), Refused, "no such queue"),
        "a queue that none can be beside": (
            lambda: server.send(chain(add.s(1), group(add.s(), add.s()), group(long.s(), long.s()))),
            ArgumentError,
            "queue",
        ),
        "tasks of two servers": (
            lambda: server.send(chain(add.s(1), other.add.s())),
            ArgumentError,
            "different servers",
        ),
        "arguments that do not fit": (
            lambda: server.send(group(add.s(1), Signature(name="sum_all", args=small.args))),
            ArgumentError,
            "sum_all",
        ),
        "a member of another group": (
            lambda: server.send(group(add.s(1), small.with_changes(group_uuid="group_other", group_task_count=2))),
            ArgumentError,
            "group_other",
        ),
        "an unknown policy": (
            lambda: server.send(chord([add.s(1)], add.s(), on_failure="retry")),
            ArgumentError,
            "fail, skip, pass",
        ),
        "no time": (lambda: server.send(chord([add.s(1)], add.s(), group_timeout=0)), ArgumentError, "over 0"),
        "no number of seconds": (
            lambda: server.send(chord([add.s(1)], add.s(), group_timeout=float("nan"))),
            ArgumentError,
            "over 0",
        ),
    }


async def test_nothing_is_sent_of_what_cannot_be_sent(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    for name, (send, error, text) in bad_workflows(server, Sums(server)).items():
        try:
            with pytest.raises(error, match=text):
                await send()
        except BaseException as exc:
            exc.add_note(name)
            raise
        assert await queued(server) == 0, name


async def test_a_workflow_has_so_many_tasks_and_no_more(
    one_store: Stores, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncqueue.server.compiled", partial(compiled, max_tasks=100))
    server = bench.server()
    add = Sums(server).add
    with pytest.raises(ArgumentError, match="more than 100 tasks"):
        await server.send_group(group(*[add.s(1)] * 101))
    assert await queued(server) == 0
    await server.send_group(group(*[add.s(1)] * 100))
    assert await queued(server) == 100


async def test_go_is_sent_nothing_that_only_python_understands(one_store: Stores, bench: Bench) -> None:
    server = bench.server(go_compat=True)
    its = Sums(server)
    with pytest.raises(ArgumentError, match=r"go_compat"):
        await server.send(chord([its.add.s(1)], its.add.s(), on_failure="skip"))
    with pytest.raises(MessageTooLarge, match=r"go_compat"):
        await server.send(groups(its, 5, 10))
    assert await queued(server) == 0


async def test_without_a_backend_there_are_chains_and_nothing_else() -> None:
    server = Server(f"memory://{uuid4()}", backend="null")
    its = Sums(server)
    reached = asyncio.Event()

    @server.task
    async def reach(number: int) -> None:
        assert number == 3
        reached.set()

    async with server, Worker(server):
        for workflow in (
            group(its.add.s(1)),
            chord([its.add.s(1)], its.add.s()),
            chain(its.add.s(1), group(its.add.s())),
            chain(*(its.add.s(1) for _ in range(300))),
        ):
            with pytest.raises(NoBackend, match="needs a result backend"):
                await server.send(workflow)
        assert await queued(server) == 0
        await server.send(chain(its.add.s(1), its.add.s(2), reach.s()))
        await in_time(reached.wait())


# — work that takes longer than results are kept —


class Slow:
    """Tasks that run when they are let."""

    def __init__(self, server: Server) -> None:
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self._gates: dict[str, asyncio.Event] = {}

        @server.task
        async def step(label: str, *given: str) -> str:
            self._gates[label] = asyncio.Event()
            await self.began.put(label)
            await in_time(self._gates[label].wait())
            return told(label, given)

        @server.task
        async def quick(label: str, *given: str) -> str:
            return told(label, given)

        self.step, self.quick = step, quick

    def let(self, label: str) -> None:
        self._gates[label].set()


def long_chain(its: Slow) -> Chain[Any, Any]:
    """Six slow steps, one of them a member that others have ended long before."""
    step, quick = its.step, its.quick
    members = (step.s("c1"), quick.s("c2"), chain(quick.s("c3"), step.s("c4"), step.s("c5")))
    return chain(step.s("a"), step.s("b"), group(*members), group(quick.s("d1"), quick.s("d2")), step.s("e"))


LONG_CHAIN = Line(
    (
        Step("a"),
        Step("b"),
        Fan((Step("c1"), Step("c2"), Line((Step("c3"), Step("c4"), Step("c5"))))),
        Fan((Step("d1"), Step("d2"))),
        Step("e"),
    )
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_entries_live_as_long_as_there_is_progress(kind: str, tmp_path: Path) -> None:
    clock = ManualClock()
    server = _clocked(kind, tmp_path / "tasks.db", clock)
    its = Slow(server)
    async with server, Worker(server):
        result = await server.send(long_chain(its))
        for _ in range(6):
            label = await in_time(its.began.get())
            clock.advance(1.2)
            its.let(label)
        assert await result.get(PATIENCE) == computed(LONG_CHAIN).value
        assert await result.progress() == Progress(done=5, failed=0, total=5)


def _clocked(kind: str, path: Path, clock: Clock) -> Server:
    """A server all of whose parts have this clock. Results are kept for 2 seconds."""
    if kind == "memory":
        store = MemoryStore()
        backend = MemoryBackend(store, results_expire_in=2.0, clock=clock)
        return Server(broker=MemoryBroker(store, clock=clock), backend=backend, clock=clock)
    broker = SqliteBroker(path, lease=3600.0, clock=clock)
    return Server(broker=broker, backend=SqliteBackend(path, results_expire_in=2.0, clock=clock), clock=clock)


async def test_entries_live_as_long_as_there_is_progress_on_redis(redis_url: str) -> None:
    server = Server(redis_url, settings=Settings.parse({"results_expire_in": 2}))
    its = Slow(server)
    async with server, Worker(server), Redis.from_url(redis_url) as client:

        async def is_gone() -> bool:
            return await client.get("a while") is None

        result = await server.send(long_chain(its))
        for _ in range(6):
            label = await in_time(its.began.get())
            await client.set("a while", "", px=600)
            await eventually(is_gone)
            its.let(label)
        assert await result.get(PATIENCE) == computed(LONG_CHAIN).value
