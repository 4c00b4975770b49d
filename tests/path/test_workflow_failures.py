"""What a failure means to the rest of a workflow, on every pair of stores."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
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
from asyncqueue.compiling import compiled
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State
from asyncqueue.workflow import OnFailure, tasks_in
from tests.path.bench import PATIENCE, UNHURRIED, Bench, Stores, in_time, nothing_is_queued, reaches
from tests.path.conftest import ATOMIC
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
        result = await its.send(its.row.s("b"), "fail", group_timeout=3)
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
        assert error == f"group state lost: the entry of group {result.group.id} has expired or was dropped"
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
    server = bench.server(lease=UNHURRIED)
    async with bench.working(server):
        await run_all(server, Steps(server), failing_nestings(on_failure, every=7))


@pytest.mark.parametrize(
    "stores",
    ["redis+sqlite", "sqlite+redis", *(pytest.param(kind, marks=pytest.mark.long) for kind in ATOMIC)],
    indirect=True,
)
async def test_a_failure_anywhere_fails_what_needs_it_and_no_more_with_two_workers(
    stores: Stores, bench: Bench
) -> None:
    server = bench.server(lease=UNHURRIED)
    other = bench.server(lease=UNHURRIED)
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


async def test_every_task_of_a_failed_workflow_comes_to_an_end(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    steps = Steps(server)
    cases = [shape for on_failure in POLICIES for shape in failing_nestings(on_failure, every=37)]
    cases = [labelled(shape, f"{place}.") for place, shape in enumerate(cases)]
    async with bench.working(server):
        connected = await server.connected()
        assert connected.backend is not None
        works = [compiled(steps.built(shape), default_queue="machinery_tasks") for shape in cases]
        for work in works:
            await connected.publisher.send_workflow(work)
        await nothing_is_queued(server)
        for shape, work in zip(cases, works, strict=True):
            states = await connected.backend.get([task.uuid for task in tasks_in(work.entries, work.plans)])
            assert [state for state in states if state is None or not state.is_completed] == [], shape


# — a link of a chain —


async def test_the_links_after_a_failed_one_say_which_it_was(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    row, culprit = its.row, its.fail.with_(task_id="task_b").si("b")
    workflows: dict[str, tuple[Any, Callable[[Any], Sequence[Any]]]] = {
        "links": (chain(row.s("a"), culprit, row.s(), row.s()), lambda result: result.links[2:]),
        "a group": (
            chain(culprit.with_changes(uuid="task_c"), group(row.s(), row.s())),
            lambda result: result.links[1].members,
        ),
        "a group of chains, and a link": (
            chain(culprit.with_changes(uuid="task_d"), group(row.s(), chain(row.s(), row.s())), row.s()),
            lambda result: [*result.links[1].members[1].links, result.links[2]],
        ),
        "two groups": (
            chain(culprit.with_changes(uuid="task_e"), group(row.s()), group(row.s(), row.s()), row.s()),
            lambda result: [*result.links[1].members, *result.links[2].members, result.links[3]],
        ),
        "a chord with a policy": (
            chain(culprit.with_changes(uuid="task_f"), chord([row.s(), row.s()], row.s(), on_failure="skip"), row.s()),
            lambda result: [*result.links[1].group.members, result.links[1].callback, result.links[2]],
        ),
        "a plan": (
            chain(culprit.with_changes(uuid="task_g"), *(row.s() for _ in range(300))),
            lambda result: result.links[1::50],
        ),
    }
    async with bench.working(its.server):
        for name, (workflow, later) in workflows.items():
            result = await its.server.send(workflow)
            with pytest.raises(TaskFailed, match="ValueError: no b") as raised:
                await result.get(PATIENCE)
            assert raised.value.task_name == "fail", name
            for link in later(result):
                state = await link.wait(PATIENCE) or await its.server.result(link.id).state()
                assert state.state is State.FAILURE, name
                assert f"'fail' ({raised.value.task_id})" in state.error, name
                assert "ValueError: no b" in state.error, name
        await nothing_is_queued(its.server)


async def test_a_link_that_cannot_take_what_it_is_given_fails(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())

    @its.server.task
    async def number(given: int) -> int:
        return given

    async with bench.working(its.server):
        untyped: Any = number.s()
        result = await its.server.send(chain(its.row.s("a"), untyped, its.row.s()))
        with pytest.raises(TaskFailed, match="number") as raised:
            await result.get(PATIENCE)
        assert raised.value.task_name == "number"


async def test_a_chord_behind_a_failure_does_not_run_whatever_its_policy(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    members = (its.row.s(), its.row.s("b"))
    async with bench.working(its.server):
        for on_failure in POLICIES:
            behind = chord(group(*members), its.table.s("title"), on_failure=on_failure)
            result = await its.server.send(chain(its.fail.s("a"), behind))
            with pytest.raises(TaskFailed, match="no a"):
                await result.get(PATIENCE)
            last = await its.server.result(result.id).wait(PATIENCE)
            assert last.state is State.FAILURE
            assert "before it failed: ValueError: no a" in last.error
        await nothing_is_queued(its.server)


# — what nests —


async def test_a_failure_goes_from_an_inner_group_to_the_outer_callback_and_its_handler(
    stores: Stores, bench: Bench
) -> None:
    its = Table(bench.server())
    row, fail, table = its.row, its.fail, its.table.with_(on_error=its.note.s())
    inner: dict[str, Any] = {
        "group": group(row.s("b"), fail.s("c")),
        "group in a group": group(group(row.s("b"), fail.s("c")), row.s("d")),
        "chord": chord([row.s("b"), fail.s("c")], row.s()),
        "callback": chord([row.s("b")], fail.si("c")),
        "chain": chain(row.s("b"), fail.si("c"), row.s()),
        "chain with groups": chain(group(row.s("b"), fail.s("c")), group(row.s(), row.s())),
    }
    async with bench.working(its.server):
        for name, member in inner.items():
            result = await its.server.send(chord([row.s("a"), member], table.s("title")))
            with pytest.raises(MemberFailed, match="ValueError: no c") as raised:
                await result.get(PATIENCE)
            assert (raised.value.index, raised.value.task_name) == (1, "fail"), name
            error = await failure_of(result)
            assert error.startswith("member "), name
            assert f"of group {result.group.id} failed: " in error, name
            assert raised.value.task_id in error, name
            await nothing_is_queued(its.server)
            assert its.errors == [error], name
            its.errors.clear()


async def test_a_member_that_is_a_chain_is_one_failure_to_a_callback_that_takes_failures(
    stores: Stores, bench: Bench
) -> None:
    its = Table(bench.server())
    its.gate.set()
    member: Any = chain(its.fail.with_(task_id="task_b").s("b"), its.row.with_(task_id="task_end").s())
    async with bench.working(its.server):
        result = await its.send(member, "pass")
        assert await result.get(PATIENCE) == [
            "title",
            "a",
            "task_end: task 'fail' (task_b) before it failed: ValueError: no b",
            "c",
        ]


async def test_a_task_that_went_on_as_a_workflow_fails_with_it(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    row, fail = its.row, its.fail

    @its.server.task
    async def grow(ctx: TaskContext, how: str) -> str:
        workflows: dict[str, Any] = {
            "task": fail.s("c"),
            "first link": chain(fail.s("c"), row.s()),
            "last link": chain(row.s("b"), fail.si("c")),
            "group": group(row.s("b"), fail.s("c")),
            "chord": chord([row.s("b"), fail.s("c")], row.s()),
            "nested": chain(row.s("b"), group(fail.si("c")), group(row.s(), row.s())),
        }
        ctx.replace(workflows[how])

    async with bench.working(its.server):
        for how in ("task", "first link", "last link", "group", "chord", "nested"):
            growing = grow.with_(on_error=its.note.s()).s(how)
            result = await its.server.send(chain(growing, row.s()))
            with pytest.raises(TaskFailed, match="ValueError: no c"):
                await result.get(PATIENCE)
            last = await its.server.result(result.id).wait(PATIENCE)
            assert "before it failed" in last.error, how
            joined = await its.server.send(chord([grow.s(how), row.s("d")], its.table.s("title"), on_failure="skip"))
            assert await joined.get(PATIENCE) == ["title", "d"], how
            await nothing_is_queued(its.server)
            assert len(its.errors) == 1, how
            assert "ValueError: no c" in its.errors.pop(), how


async def test_a_task_that_goes_on_as_what_cannot_be_sent_fails_at_once(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    runs: list[str] = []
    itself: Any = chain(its.row.s("a"))
    object.__setattr__(itself, "links", (itself,))
    big = Signature(name="row", args=(Arg(type="string", value="x" * 1_100_000),))

    @its.server.task(retries=3, backoff="fixed:0.02")
    async def grow(ctx: TaskContext, how: str, by_return: bool) -> Any:
        runs.append(how)
        workflow = itself if how == "itself" else big
        return workflow if by_return else ctx.replace(workflow)

    async with bench.working(its.server):
        for how, error in (
            ("itself", "ArgumentError: a chain is a part of itself"),
            ("big", "MessageTooLarge: .*1000000"),
        ):
            for by_return in (False, True):
                result = await its.server.send(grow.with_(on_error=its.note.s()).s(how, by_return))
                with pytest.raises(TaskFailed, match=error):
                    await result.get(PATIENCE)
                await nothing_is_queued(its.server)
    assert runs == ["itself", "itself", "big", "big"]
    assert len(its.errors) == 4


async def test_without_a_backend_a_task_goes_on_as_a_chain_and_as_nothing_else() -> None:
    its = Table(Server(f"memory://{uuid4()}", backend="null"))
    told: asyncio.Queue[str] = asyncio.Queue()

    @its.server.task
    async def tell(text: str) -> None:
        await told.put(text)

    @its.server.task
    async def grow(ctx: TaskContext, how: str) -> str:
        workflows: dict[str, Any] = {
            "chain": chain(its.row.s("a"), its.row.s()),
            "group": group(its.row.s("a")),
            "chord": chord([its.row.s("a")], its.row.s()),
            "long chain": chain(its.row.s("a"), *(its.row.s() for _ in range(300))),
        }
        ctx.replace(workflows[how])

    async with its.server, Worker(its.server):
        growing = grow.with_(on_success=tell.s(), on_error=tell.s())
        await its.server.send(growing.s("chain"))
        assert await in_time(told.get()) == "a"
        for how, kind in (("group", "a group"), ("chord", "a chord"), ("long chain", "a workflow this long")):
            await its.server.send(growing.s(how))
            assert (await in_time(told.get())).startswith(f"NoBackend: {kind} needs a result backend")


# — when it is told —


async def test_get_raises_when_the_first_member_fails_although_others_run(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    row, fail, last = its.row, its.fail, its.last
    async with bench.working(its.server, concurrency=20):
        for workflow in (
            group(last.s("a"), fail.s("b")),
            group(last.s("a"), chain(row.s("b"), fail.si("c"))),
            group(last.s("a"), group(last.s("b"), fail.s("c"))),
            chord([last.s("a"), fail.s("b")], row.s()),
            chain(group(last.s("a"), fail.s("b")), row.s()),
            chain(row.s("a"), group(last.si("b"), fail.si("c"))),
        ):
            untyped: Any = workflow
            result = await its.server.send(untyped)
            with pytest.raises(TaskFailed, match="ValueError: no "):
                await result.get(PATIENCE)
            assert (await result.progress()).failed > 0
        its.gate.set()
        await nothing_is_queued(its.server)


async def test_the_time_of_a_group_runs_from_when_its_members_are_sent(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())
    its.gate.set()
    members = group(its.row.s(), its.last.si("b"))
    timed: Any = chord(members, its.table.s("title"), group_timeout=0.5)
    async with bench.working(its.server):
        result = await its.server.send(chain(its.row.with_(countdown=0.8).s("a"), timed))
        assert await result.get(PATIENCE) == ["title", "a", "b"]


async def test_results_that_no_message_holds_fail_the_callback(stores: Stores, bench: Bench) -> None:
    its = Table(bench.server())

    @its.server.task
    async def long() -> str:
        return "x" * 600_000

    async with bench.working(its.server):
        result = await its.server.send(chord([long.s(), long.s()], its.table.with_(on_error=its.note.s()).s("title")))
        with pytest.raises(TaskFailed, match=r"the results of its group make a message of 12\d{5} bytes"):
            await result.get(PATIENCE)
        await nothing_is_queued(its.server)
    assert len(its.errors) == 1
