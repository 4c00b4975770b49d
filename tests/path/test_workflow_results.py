"""What handles on workflows tell: results in order, the first failure when it happens and where, how far things are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from asyncqueue import (
    ArgumentError,
    AsyncResult,
    GroupResult,
    MemberFailed,
    NoBackend,
    ResultExpired,
    ResultTimeout,
    ResultUnknown,
    Server,
    State,
    Task,
    TaskContext,
    TaskFailed,
    TaskState,
    chain,
    chord,
    group,
)
from asyncqueue.backends.base import Backend
from asyncqueue.errors import Unavailable
from asyncqueue.workflow_results import Progress
from tests.path.bench import Bench, Stores, eventually, in_time


@dataclass(slots=True)
class Crew:
    """A server whose tasks add, fail, and wait until they are let go."""

    server: Server
    add: Task[..., int]
    fail: Task[..., int]
    held: Task[..., int]
    gates: dict[int, asyncio.Event] = field(default_factory=dict)

    def let_go(self, number: int) -> None:
        self.gates.setdefault(number, asyncio.Event()).set()

    async def backend(self) -> Backend:
        backend = (await self.server.connected()).backend
        assert backend is not None
        return backend


def crew_of(server: Server) -> Crew:
    gates: dict[int, asyncio.Event] = {}

    @server.task
    async def add(*numbers: int) -> int:
        return sum(numbers)

    @server.task
    async def fail(*numbers: int) -> int:
        raise ValueError("no such luck")

    @server.task
    async def held(number: int) -> int:
        await gates.setdefault(number, asyncio.Event()).wait()
        return number

    return Crew(server, add, fail, held, gates)


# ----------------------------------------------------------------------------------------------------- results


async def test_results_are_those_of_the_last_link_the_members_and_the_callback(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    add = crew_of(server).add
    async with bench.working(server):
        of_chain = await server.send_chain(chain(add.s(1, 1), add.s(10), add.s(48)))
        of_group = await server.send_group(group(add.s(1, 1), add.s(2, 2), add.s(5, 6)))
        of_chord = await server.send_chord(chord(group(add.s(1, 1), add.s(2, 2), add.s(5, 6)), add.s(71)))
        assert await in_time(of_chain.get()) == 60
        assert [await in_time(link.get()) for link in of_chain.links] == [2, 12, 60]
        assert await in_time(of_group.get()) == [2, 4, 11]
        assert [await in_time(member.get()) for member in of_group.members] == [2, 4, 11]
        assert await in_time(of_chord.get()) == 88
        assert await in_time(of_chord.group.get()) == [2, 4, 11]
        assert await in_time(of_chord.callback.get()) == 88


async def test_a_group_has_one_value_for_each_member_whatever_that_returns(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    add = crew_of(server).add

    @server.task
    async def nothing() -> None:
        pass

    @server.task
    async def two() -> tuple[int, str]:
        return 1, "one"

    members = group(nothing.s(), two.s(), chain(add.s(1), add.s(2)), group(add.s(1), add.s(2)), group())
    async with bench.working(server):
        result = await server.send_group(members)
        assert await in_time(result.get()) == [None, (1, "one"), 3, [1, 2], []]


async def test_a_task_that_went_on_as_another_has_its_result(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def word(number: int) -> str:
        return f"word {number}"

    @server.task
    async def number(context: TaskContext) -> int:
        context.replace(word.s(1))

    async with bench.working(server):
        result: AsyncResult[Any] = await server.send_task(number.s())
        assert await in_time(result.get()) == "word 1"
        became: GroupResult[Any] = await server.send_group(group(number.s()))
        assert await in_time(became) == ["word 1"]


async def test_a_chain_that_ends_in_a_group_returns_a_list(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    add = crew_of(server).add
    async with bench.working(server):
        assert await in_time(await server.send(chain(add.s(1), group(add.s(1), add.s(2))))) == [2, 3]
        assert await in_time(await server.send(chain(group(add.s(1), add.s(2)), group(add.s(), add.s(1))))) == [3, 4]
        assert await in_time(await server.send(chord([add.s(1)], group(add.s(1), add.s(2))))) == [2, 3]


async def test_an_empty_group_has_its_result_at_once() -> None:
    async with Server("memory://") as server:
        result = await server.send_group(group())
        assert await result.get(0) == []
        assert [member async for member in result.as_completed()] == []
        assert await result.progress() == Progress(0, 0, 0)


async def test_workflows_are_sent_by_what_they_are_made_of(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    add = crew_of(server).add
    async with bench.working(server):
        assert await in_time(await chain(add.s(1), add.s(2)).send()) == 3
        assert await in_time(await group(add.s(1), add.s(2)).send()) == [1, 2]
        assert await in_time(await chord([add.s(1), add.s(2)], add.s()).send()) == 3
        assert await in_time(await server.send(add.s(1))) == 1


# ---------------------------------------------------------------------------------------------------- failures


async def test_a_chain_says_which_link_failed(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_chain(chain(crew.add.s(1), crew.fail.s(), crew.add.s(), crew.add.s()))
        with pytest.raises(TaskFailed, match="no such luck") as caught:
            await in_time(result.get())
        assert (caught.value.task_name, caught.value.task_id) == ("fail", result.links[1].id)
        for link in result.links[2:]:
            with pytest.raises(TaskFailed, match="no such luck"):
                await in_time(link.get())


async def test_the_first_failure_of_a_group_is_raised_while_others_run(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_group(group(crew.held.s(1), crew.add.s(1), crew.fail.s()))
        with pytest.raises(MemberFailed, match=r"member 2 of its group: task fail .* no such luck") as caught:
            await in_time(result.get())
        found = caught.value
        assert (found.index, found.task_name, found.task_id) == (2, "fail", result.members[2].id)
        assert "no such luck" in found.error
        crew.let_go(1)
        await in_time(result.wait())
        assert await result.progress() == Progress(3, 1, 3)


async def test_the_task_is_named_that_failed_inside_of_a_member(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    inner = chain(crew.add.s(1), crew.fail.with_(task_id="task_guilty").s(), crew.add.s())
    async with bench.working(server):
        for workflow in (
            group(crew.add.s(), inner),
            chord([crew.add.s(), inner], crew.add.s()),
            chain(crew.add.s(), group(crew.add.s(), inner), crew.add.s()),
            chain(crew.add.s(), group(crew.add.s(), inner)),
            chord([crew.add.s(), group(inner)], chain(crew.add.s(), crew.add.s())),
        ):
            result = await server.send(workflow)
            with pytest.raises(MemberFailed, match="no such luck") as caught:
                await in_time(result.get())
            assert (caught.value.index, caught.value.task_id) == (1, "task_guilty")


async def test_a_chain_in_front_of_a_group_is_no_failure_of_a_member(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        for last in (group(crew.add.s(), crew.add.s()), chord([crew.add.s()], crew.add.s(), on_failure="skip")):
            result = await server.send(chain(crew.fail.s(), last))
            with pytest.raises(TaskFailed, match="no such luck") as caught:
                await in_time(result.get())
            assert caught.value.task_id == result.links[0].id
            assert not isinstance(caught.value, MemberFailed)


async def test_a_chord_fails_with_its_member_while_others_run(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_chord(chord([crew.held.s(1), crew.fail.s()], crew.add.s()))
        with pytest.raises(MemberFailed, match="no such luck") as caught:
            await in_time(result.get())
        assert (caught.value.index, caught.value.task_name) == (1, "fail")
        assert await result.progress() == Progress(1, 1, 2)
        crew.let_go(1)


async def test_a_callback_that_fails_by_itself_is_named(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_chord(chord([crew.add.s(1), crew.fail.s()], crew.fail.s(), on_failure="skip"))
        with pytest.raises(TaskFailed, match="no such luck") as caught:
            await in_time(result.get())
        assert not isinstance(caught.value, MemberFailed)
        assert caught.value.task_id == result.id == result.callback.id


async def test_a_member_that_is_skipped_fails_its_group_and_not_the_chord(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_chord(chord([crew.add.s(1), crew.fail.s()], crew.add.s(2), on_failure="skip"))
        assert await in_time(result.get()) == 3
        with pytest.raises(MemberFailed):
            await in_time(result.group.get())


async def test_a_link_that_another_program_failed_ends_the_chain(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    result = await server.send_chain(chain(crew.add.s(1), crew.add.s(2), crew.add.s(3)))
    waiting = asyncio.create_task(result.get())
    error = TaskState(task_uuid=result.links[1].id, task_name="add", state=State.FAILURE, error="panic")
    await (await crew.backend()).put([error])
    with pytest.raises(TaskFailed, match="panic") as caught:
        await in_time(waiting)
    assert caught.value.task_id == result.links[1].id
    await in_time(result.wait())


# ------------------------------------------------------------------------------------------- how far things are


async def test_members_come_as_they_end(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    numbers = (2, 0, 1, 3)
    ended: list[int] = []
    async with bench.working(server):
        result = await server.send_group(group(*(crew.held.s(number) for number in range(3)), chain(crew.held.s(3))))
        crew.let_go(numbers[0])
        async with asyncio.timeout(30):
            async for member in result.as_completed():
                ended.append(await member.get(0))
                assert result.members.index(member) == ended[-1]
                crew.let_go(numbers[min(len(ended), 3)])
        assert ended == list(numbers)
        assert sorted([await member.get(0) async for member in result.as_completed()]) == [0, 1, 2, 3]


async def test_members_that_fail_come_as_well(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        result = await server.send_group(group(crew.fail.s(), crew.add.s(1)))
        ended = [member async for member in result.as_completed()]
        assert sorted(each.id for each in ended) == sorted(each.id for each in result.members)
        with pytest.raises(TaskFailed):
            await result.members[0].get(0)


async def test_progress_counts_what_has_ended(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    members = group(crew.held.s(1), crew.fail.s(), chain(crew.add.s(2), crew.held.s()))
    async with bench.working(server):
        result = await server.send_group(members)
        result_of_chord = await server.send_chord(chord(members, crew.add.s(), on_failure="skip"))

        async def stand(number: int) -> bool:
            return {await result.progress(), await result_of_chord.progress()} == {Progress(number, 1, 3)}

        await eventually(lambda: stand(1))
        crew.let_go(1)
        await eventually(lambda: stand(2))
        crew.let_go(2)
        await eventually(lambda: stand(3))
        assert await in_time(result_of_chord.get()) == 3


async def test_a_result_that_is_late_is_told_and_can_be_asked_for_again(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        for workflow in (chain(crew.add.s(1), crew.held.s()), group(crew.add.s(2), crew.held.s(1))):
            crew.gates.clear()
            result = await server.send(workflow)
            for timeout in (0, 0.01):
                with pytest.raises(ResultTimeout, match=f"{result.id} did not end within {timeout:g} s"):
                    await result.get(timeout)
                with pytest.raises(ResultTimeout):
                    await result.wait(timeout)
            crew.let_go(1)
            assert await in_time(result.get()) in (1, [2, 1])
            assert await result.get(0) in (1, [2, 1])


async def test_a_group_is_watched_once_whatever_its_size(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    backend = await crew.backend()
    watch, watched = backend.watch, []

    def counting(task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        watched.append(len(task_ids))
        return watch(task_ids)

    backend.watch = counting  # type: ignore[method-assign]  # spied upon
    async with bench.working(server):
        result = await server.send_group(group(*(crew.add.s(number) for number in range(200))))
        assert await in_time(result.get()) == list(range(200))
        assert watched == [200]
        assert await result.get() == list(range(200))
        assert watched == [200]


async def test_a_backend_that_is_away_for_a_moment_costs_no_result(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    backend = await crew.backend()
    watch, failures = backend.watch, iter([True, True])

    async def failing(task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        async for ending in watch(task_ids):
            yield ending
            if next(failures, False):
                raise Unavailable("away")

    backend.watch = failing  # type: ignore[method-assign]  # spied upon
    async with bench.working(server):
        result = await server.send_group(group(*(crew.add.s(number) for number in range(5))))
        assert await in_time(result.get()) == [0, 1, 2, 3, 4]
        assert next(failures, None) is None


async def test_an_entry_that_is_dropped_is_no_endless_wait(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    crew = crew_of(server)
    result = await server.send_group(group(crew.add.s(1), crew.add.s(2)))
    waiting = asyncio.create_task(result.get())
    await (await crew.backend()).forget([result.members[1].id])
    with pytest.raises(ResultExpired, match=result.members[1].id):
        await in_time(waiting)


# ------------------------------------------------------------------------------------------------ opened again


async def test_workflows_are_opened_by_id_in_another_process(durable: Stores, bench: Bench) -> None:
    server, other = bench.server(), bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        of_chain = await server.send_chain(chain(crew.add.s(1), crew.add.s(2)))
        to_group = await server.send(chain(crew.add.s(1), group(crew.add.s(2), crew.add.s(3))))
        of_group = await server.send_group(
            group(crew.add.s(1), chain(crew.add.s(1), crew.add.s(1)), group(crew.add.s(3)))
        )
        of_chord = await server.send_chord(chord([crew.add.s(1), crew.fail.s()], crew.add.s(5), on_failure="skip"))
        assert await in_time((await other.chain_result(of_chain.id)).get()) == 3
        assert await in_time((await other.chain_result(to_group.id)).get()) == [3, 4]
        opened = await other.group_result(of_group.id)
        assert await in_time(opened.get()) == [1, 2, [3]]
        assert [member.id for member in opened.members] == [member.id for member in of_group.members]
        chord_opened = await other.chord_result(of_chord.id)
        assert await in_time(chord_opened.get()) == 6
        assert await chord_opened.progress() == Progress(2, 1, 2)
        assert await in_time(chord_opened.callback.get()) == 6


async def test_a_chord_that_was_opened_by_id_says_which_member_failed(durable: Stores, bench: Bench) -> None:
    server, other = bench.server(), bench.server()
    crew = crew_of(server)
    async with bench.working(server):
        sent = await server.send_chord(chord([crew.add.s(1), crew.fail.s()], crew.add.s()))
        with pytest.raises(MemberFailed) as caught:
            await in_time((await other.chord_result(sent.id)).get())
        assert (caught.value.index, caught.value.task_name) == (1, "fail")


async def test_a_workflow_that_never_was_is_unknown(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    with pytest.raises(ResultUnknown, match="chain task_x"):
        await server.chain_result("task_x")
    with pytest.raises(ResultUnknown, match="group group_x"):
        await server.group_result("group_x")
    with pytest.raises(ResultUnknown, match="chord task_x"):
        await server.chord_result("task_x")


# --------------------------------------------------------------------------------------------------- bad input


async def test_groups_need_a_backend_and_chains_do_not() -> None:
    async with Server("memory://alone", backend="null") as server:
        add = crew_of(server).add
        for verb, workflow in (
            ("group", group(add.s())),
            ("chord", chord([add.s()], add.s())),
            ("group", chain(add.s(), group(add.s()))),
        ):
            with pytest.raises(NoBackend, match=f"a {verb} needs a result backend"):
                await server.send(workflow)
        assert await server.get_pending_tasks() == []
        result = await server.send_chain(chain(add.s(1), add.s(2)))
        assert len(await server.get_pending_tasks()) == 1
        with pytest.raises(NoBackend):
            await result.get()
        with pytest.raises(NoBackend):
            await server.group_result("group_x")


async def test_what_cannot_be_sent_is_refused_and_nothing_is_sent() -> None:
    async with Server("memory://one") as server:
        add = crew_of(server).add
        other = crew_of(Server("memory://other")).add
        wrong: Any = group(add.s())
        with pytest.raises(ArgumentError, match="expected a chain, not a Group"):
            await server.send_chain(wrong)
        with pytest.raises(ArgumentError, match="more than one task: use send"):
            await server.send_task(wrong)
        for concurrency in (-1, 1.5, True):
            with pytest.raises(ArgumentError, match="concurrency must be a whole number"):
                await server.send_group(wrong, concurrency)  # type: ignore[arg-type]  # what it is about
        with pytest.raises(ArgumentError, match="belong to different servers"):
            await server.send_group(group(add.s(), other.s()))
        with pytest.raises(ArgumentError, match="given twice"):
            await server.send_group(group(*(add.with_(task_id="task_a").s() for _ in range(2))))
        assert await server.get_pending_tasks() == []


@pytest.mark.parametrize(("concurrency", "parts"), [(0, [5]), (2, [0, 2, 2, 1]), (5, [5]), (100, [5])])
async def test_concurrency_bounds_how_many_messages_go_at_once(concurrency: int, parts: list[int]) -> None:
    async with Server("memory://parts") as server:
        add = crew_of(server).add
        broker: Any = (await server.connected()).broker
        submit, publish, sent = broker.submit, broker.publish, []

        async def counting(states: Any, messages: Sequence[Any], *args: Any, **more: Any) -> None:
            sent.append(len(messages))
            await submit(states, messages, *args, **more)

        async def counting_too(messages: Sequence[Any]) -> None:
            sent.append(len(messages))
            await publish(messages)

        broker.submit, broker.publish = counting, counting_too
        await server.send_group(group(*(add.s(number) for number in range(5))), concurrency)
        assert sent == parts
