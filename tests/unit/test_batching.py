"""Work that comes together leaves together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncqueue.engine.batching import Batcher
from asyncqueue.errors import Refused, Unavailable


class Flushes:
    """Keeps what was flushed; each flush waits to be let go."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0 if held else 1_000)
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[int]) -> None:
        self.begun.release()
        await self.go.acquire()
        self.batches.append(list(items))
        if self.error is not None:
            raise self.error


async def test_a_lone_item_waits_for_nobody() -> None:
    flushes = Flushes()
    await Batcher(flushes, 10).add([1])
    assert flushes.batches == [[1]]


async def test_what_comes_during_a_flush_goes_into_the_next_one() -> None:
    flushes = Flushes(held=True)
    batcher = Batcher(flushes, 4)
    adding = [asyncio.create_task(batcher.add([n])) for n in range(8)]
    await flushes.begun.acquire()
    for _ in range(10):
        flushes.go.release()
    await asyncio.gather(*adding)
    assert flushes.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


async def test_what_is_too_much_for_one_flush_takes_several() -> None:
    flushes = Flushes()
    await Batcher(flushes, 3).add(list(range(8)))
    assert flushes.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_an_error_reaches_everybody_whose_items_it_carried_and_nobody_else() -> None:
    flushes = Flushes(held=True)
    batcher = Batcher(flushes, 2)
    first = asyncio.create_task(batcher.add([0]))
    await flushes.begun.acquire()
    second, third, fourth = (asyncio.create_task(batcher.add([n])) for n in (1, 2, 3))
    flushes.go.release()
    await first
    flushes.error = Unavailable("away")
    await flushes.begun.acquire()
    flushes.go.release()
    for each in (second, third):
        with pytest.raises(Unavailable):
            await each
    flushes.error = None
    flushes.go.release()
    await fourth


async def test_a_refusal_is_only_for_the_caller_whose_items_were_refused() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def flush(items: Sequence[int]) -> None:
        begun.set()
        await go.wait()
        if 2 in items:
            raise Refused("no 2")

    batcher = Batcher(flush, 10)
    callers = [asyncio.create_task(batcher.add([number])) for number in range(4)]
    await begun.wait()
    go.set()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(end) for end in ends] == ["None", "None", "no 2", "None"]


async def test_a_caller_that_leaves_takes_nobody_along() -> None:
    flushes = Flushes(held=True)
    batcher = Batcher(flushes, 10)
    first = asyncio.create_task(batcher.add([0]))
    await flushes.begun.acquire()
    second, third = asyncio.create_task(batcher.add([1])), asyncio.create_task(batcher.add([2]))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    for _ in range(3):
        flushes.go.release()
    await third
    assert flushes.batches[-1] == [1, 2]


async def test_close_waits_for_what_is_under_way() -> None:
    flushes = Flushes(held=True)
    batcher = Batcher(flushes, 10)
    adding = [asyncio.create_task(batcher.add([n])) for n in range(3)]
    await flushes.begun.acquire()
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    assert not closing.done()
    for _ in range(3):
        flushes.go.release()
    await closing
    assert flushes.batches == [[0], [1, 2]]
    await asyncio.gather(*adding)
    await batcher.close()
