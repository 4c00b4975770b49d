"""Workflows that are due later than their entries would be kept: they are there all the same when it is their turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncqueue import Server, Task, TaskContext, chain, chord, group
from asyncqueue.errors import RetryTaskLater
from asyncqueue.state import State
from tests.path.bench import PATIENCE, Bench, Stores, reaches
from tests.path.conftest import stores_of

KEPT = 2.0
"""How long (seconds) results are kept here."""
LATER = 1.5 * KEPT


@pytest.fixture(params=("memory", "sqlite", "redis", "sqlite+redis"))
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """A fresh store of every kind that is broker and backend, and a pair of two."""
    return stores_of(request.param, request, tmp_path)


async def test_a_chord_whose_members_are_due_later_completes(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)
    add = adding(server)
    later = add.with_(countdown=LATER)
    async with bench.working(server):
        handle = await server.send_chord(chord([later.s(1), later.s(2), later.s(3)], add.s(10)))
        assert await handle.get(PATIENCE) == 16
        assert await handle.group.get(PATIENCE) == [1, 2, 3]


async def test_a_chord_whose_member_is_retried_later_completes(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)
    add = adding(server)
    others_ended = asyncio.Event()

    @server.task
    async def second_time(ctx: TaskContext, number: int) -> int:
        if ctx.attempt > 1:
            return number
        await others_ended.wait()
        raise RetryTaskLater(LATER)

    async with bench.working(server):
        handle = await server.send_chord(chord([add.s(1), second_time.s(2), add.s(3)], add.s(10)))
        first, _, third = handle.group.members
        for each in (first, third):
            await reaches(server, each.id, State.SUCCESS)
        others_ended.set()
        assert await handle.get(PATIENCE) == 16


def adding(server: Server) -> Task[..., int]:
    @server.task
    async def add(*numbers: int) -> int:
        return sum(numbers)

    return add


async def test_a_result_is_there_when_another_member_is_due_much_later(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)
    add = adding(server)
    async with bench.working(server):
        handle = await server.send_chord(chord([add.with_(countdown=LATER).s(1), add.s(2)], add.s(10)))
        assert await handle.get(PATIENCE) == 13


async def test_a_member_that_ends_after_another_was_put_off_shortens_nothing(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)
    add = adding(server)
    go = asyncio.Event()

    @server.task
    async def second_time(ctx: TaskContext, number: int) -> int:
        if ctx.attempt == 1:
            raise RetryTaskLater(LATER)
        return number

    @server.task
    async def held(number: int) -> int:
        await go.wait()
        return number

    async with bench.working(server):
        handle = await server.send_chord(chord([held.s(1), second_time.s(2)], add.s(10)))
        await reaches(server, handle.group.members[1].id, State.RETRY)
        go.set()
        assert await handle.get(PATIENCE) == 13


async def test_the_first_results_of_a_chain_are_there_when_the_last_one_is(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)

    @server.task
    async def longer(number: int) -> int:
        await asyncio.sleep(KEPT / 3)
        return number + 1

    async with bench.working(server):
        handle = await server.send(chain(longer.s(0), *[longer.s()] * 5))
        assert await handle.get(PATIENCE) == 6
        assert await handle.links[0].get(PATIENCE) == 1


async def test_later_parts_may_be_due_later_too(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=KEPT)
    add = adding(server)
    later = add.with_(countdown=LATER)
    async with bench.working(server):
        link = await server.send(chain(add.s(1), later.s(2), add.s(3)))
        members = await server.send(chain(add.s(1), group(later.s(2), later.s(3)), add.s(10)))
        callback = await server.send(chord([add.s(1), add.s(2)], later.s(10)))
        assert await link.get(PATIENCE) == 6
        assert await members.get(PATIENCE) == 17
        assert await callback.get(PATIENCE) == 13
