"""Any broker works with any backend: a chosen set of pairs is walked through send, retry, chain, chord and failure."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from asyncqueue import Server, TaskContext, TaskFailed, chain, chord
from asyncqueue.state import State
from tests import matrix
from tests.path.bench import PATIENCE, Bench, in_time
from tests.path.conftest import stores_of

PAIRS = (
    "memory+memcache",
    "memory+dynamodb",
    "sqlite+memory",
    "sqlite+mongo",
    "redis+sqlite",
    "redis+mongo",
    "redis+rabbit",
    "rabbit+redis",
    "rabbit+rabbit",
    "sqs+dynamodb",
    "sqs+memcache",
    "pubsub+redis",
    "pubsub+sqlite",
    "pubsub+memory",
)
"""``broker+backend``: each of them stands in two at least."""
MEMBERS = 5


@pytest.mark.parametrize("pair", PAIRS)
async def test_a_pair_sends_retries_chains_joins_and_fails(
    pair: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    matrix.note(request.node, "path/test_every_backend", request.node.originalname, pair.partition("+")[2])
    async with Bench(stores_of(pair, request, tmp_path)) as bench:
        server = bench.server()
        async with bench.working(server, concurrency=20):
            began = time.monotonic()
            await in_time(asyncio.gather(*(walk(server) for walk in WALKS)))
            print(f"{pair}: {len(WALKS)} walks in {time.monotonic() - began:.2f} s")


async def sends(server: Server) -> None:
    @server.task
    async def pair_of(number: int, text: str) -> tuple[int, str]:
        return number, text

    values = (2**53 + 1, '"☃" <&>')
    assert await (await pair_of.send(*values)).get(PATIENCE) == values


async def retries(server: Server) -> None:
    attempts: list[int] = []

    @server.task(retries=2, backoff="fixed:0.05")
    async def third_time(ctx: TaskContext) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError("not yet")
        return ctx.attempt

    assert await (await third_time.send()).get(PATIENCE) == 3
    assert attempts == [1, 2, 3]


async def chains(server: Server) -> None:
    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    result = await server.send_chain(chain(add.s(1, 1), add.s(10), add.s(100)))
    assert await result.get(PATIENCE) == 112


async def joins(server: Server) -> None:
    totals: list[int] = []

    @server.task
    async def square(number: int) -> int:
        return number * number

    @server.task
    async def total(*numbers: int) -> int:
        totals.append(sum(numbers))
        return sum(numbers)

    result = await server.send_chord(chord([square.s(number) for number in range(MEMBERS)], total.s()))
    assert await result.get(PATIENCE) == 30
    assert totals == [30], "the callback ran once"


async def fails(server: Server) -> None:
    noted: asyncio.Queue[str] = asyncio.Queue()

    @server.task
    async def fail(text: str) -> int:
        raise ValueError(text)

    @server.task
    async def gather(*numbers: int) -> None:
        raise AssertionError("what follows a group of which a member failed does not run")

    @server.task
    async def note(error: str) -> None:
        noted.put_nowait(error)

    alone = await fail.with_(on_error=note.s()).send("on purpose")
    with pytest.raises(TaskFailed, match="ValueError: on purpose"):
        await alone.get(PATIENCE)
    assert await noted.get() == "ValueError: on purpose"
    joined = await server.send_chord(chord([fail.s("one of many")], gather.s()))
    with pytest.raises(TaskFailed, match="one of many"):
        await joined.get(PATIENCE)
    assert (await joined.callback.wait(PATIENCE)).state is State.FAILURE  # type: ignore[attr-defined]  # it is a task


async def forgets(server: Server) -> None:
    gate = asyncio.Event()

    @server.task
    async def waits(number: int) -> int:
        await in_time(gate.wait())
        return number

    @server.task
    async def total_of(*numbers: int) -> int:
        raise AssertionError("nobody knows whether its group is complete")

    result = await server.send_chord(chord([waits.s(number) for number in range(2)], total_of.s()))
    backend = (await server.connected()).backend
    assert backend is not None
    await backend.forget([result.group.id])
    gate.set()
    with pytest.raises(TaskFailed, match="group state lost"):
        await result.get(PATIENCE)


WALKS = (sends, retries, chains, joins, fails, forgets)


def test_every_broker_and_every_backend_is_in_two_pairs() -> None:
    brokers, backends = (Counter(each) for each in zip(*(pair.split("+") for pair in PAIRS), strict=True))
    assert brokers.keys() == {"memory", "sqlite", "redis", "rabbit", "sqs", "pubsub"}
    assert backends.keys() == {"memory", "sqlite", "redis", "mongo", "dynamodb", "memcache", "rabbit"}
    assert min(brokers.values()) >= 2
    assert min(backends.values()) >= 2
