"""How much may run at once."""

from __future__ import annotations

import asyncio

import pytest

from asyncqueue.engine.consumer import slots_for
from asyncqueue.engine.slots import Slots


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_several_slots_are_taken_at_once_and_at_most_what_is_free() -> None:
    slots = Slots(5)
    assert await slots.take(3) == 3
    assert await slots.take(10) == 2
    assert slots.free == 0


async def test_who_came_first_is_served_first() -> None:
    slots = Slots(1)
    await slots.take(1)
    order: list[str] = []

    async def wait(name: str) -> None:
        await slots.take(1)
        order.append(name)

    waiting = [asyncio.create_task(wait(name)) for name in "abc"]
    await settle()
    for _ in "abc":
        slots.give()
        await settle()
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c"]


async def test_whoever_takes_all_is_alone_and_holds_others_up() -> None:
    slots = Slots(3)
    await slots.take(1)
    alone = asyncio.create_task(slots.take_all())
    await settle()
    later = asyncio.create_task(slots.take(1))
    await settle()
    assert not alone.done()
    assert not later.done()  # it must not slip in before
    assert not slots.try_take(leaving=0)
    slots.give()
    assert await alone == 3
    await settle()
    assert not later.done()
    slots.give(3)
    assert await later == 1


async def test_trying_leaves_as_many_as_asked() -> None:
    slots = Slots(3)
    assert slots.try_take(leaving=2)
    assert not slots.try_take(leaving=2)
    assert slots.try_take(leaving=1)


async def test_a_waiter_that_is_cancelled_keeps_nothing() -> None:
    slots = Slots(1)
    await slots.take(1)
    first, second = asyncio.create_task(slots.take(1)), asyncio.create_task(slots.take(1))
    await settle()
    first.cancel()
    slots.give()
    assert await second == 1
    third = asyncio.create_task(slots.take(1))
    await settle()
    slots.give()  # it is given its slot, and leaves before it can know
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert slots.free == 1


async def test_the_total_changes_while_slots_are_out() -> None:
    slots = Slots(2)
    await slots.take(2)
    slots.resize(1)
    assert (slots.total, slots.free) == (1, -1)
    slots.give()
    waiting = asyncio.create_task(slots.take(5))
    await settle()
    assert not waiting.done()
    slots.resize(4)
    assert await waiting == 3


async def test_a_closed_set_of_slots_keeps_nobody_waiting() -> None:
    slots = Slots(1)
    await slots.take(1)
    waiting = [asyncio.create_task(slots.take(1)), asyncio.create_task(slots.take_all())]
    await settle()
    slots.close()
    assert [await each for each in waiting] == [0, 0]
    assert await slots.take(1) == 0
    slots.give()
    assert slots.free == 1


def test_unlimited_is_the_prefetch_bound() -> None:
    assert (slots_for(0, 1_000).total, slots_for(1, 1_000).total) == (1_000, 1)
