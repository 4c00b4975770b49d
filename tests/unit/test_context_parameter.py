"""A task that asks for its context gets it, wherever the parameter stands and whoever calls."""

from __future__ import annotations

import pytest

from asyncqueue import Server, TaskContext, current_task


@pytest.fixture
def server() -> Server:
    return Server("eager://")


async def test_a_context_first_leaves_the_other_arguments_in_their_places(server: Server) -> None:
    @server.task
    async def task(ctx: TaskContext, a: int, b: int = 0, *rest: int) -> str:
        return f"{ctx.task_name} {ctx.attempt} {a} {b} {rest}"

    assert await (await task.send(1)).get(10) == "task 1 1 0 ()"
    assert await (await task.send(1, 2, 3, 4)).get(10) == "task 1 1 2 (3, 4)"
    assert await (await task.send(b=2, a=1)).get(10) == "task 1 1 2 ()"


async def test_a_context_in_the_middle_or_at_the_end_is_given_too(server: Server) -> None:
    def middle(a: int, ctx: TaskContext, b: int = 0) -> str:
        return f"{ctx.task_name} {a} {b}"

    def last(a: int, b: int = 0, *, ctx: TaskContext) -> str:
        return f"{ctx.task_name} {a} {b}"

    middle_task, last_task = server.register_task("middle", middle), server.register_task("last", last)
    for task in (middle_task, last_task):
        assert await (await task.send(1)).get(10) == f"{task.name} 1 0"
        assert await (await task.send(1, 2)).get(10) == f"{task.name} 1 2"
        assert await (await task.send(a=1, b=2)).get(10) == f"{task.name} 1 2"


async def test_a_call_outside_of_a_task_has_a_context_of_its_own(server: Server) -> None:
    @server.task
    def task(ctx: TaskContext, a: int) -> tuple[str, int, int]:
        return ctx.task_name, ctx.attempt, a

    assert task(5) == ("task", 1, 5)
    await (await task.send(6)).get(10)
    with pytest.raises(LookupError):
        current_task()  # an eager run leaves no context behind


async def test_a_call_inside_of_a_task_has_the_context_of_that_task(server: Server) -> None:
    @server.task
    async def inner(ctx: TaskContext) -> str:
        return ctx.task_name

    @server.task
    async def outer() -> str:
        return await inner()

    assert await (await outer.send()).get(10) == "outer"
