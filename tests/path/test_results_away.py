"""What happens to tasks whose results cannot be stored: the store is away for a while, or they are too big for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest

from asyncqueue import Server, TaskFailed
from asyncqueue.brokers.base import QueueDepth
from asyncqueue.engine.context import TaskContext
from tests.path.bench import Bench, Stores, eventually, in_time
from tests.path.conftest import url_of
from tests.path.proxied import proxied
from tests.services.memcached import item_size_max

TASKS = 20
LEASE = 2.0
LIMITED = {"memcache": 1_048_576, "dynamodb": 409_600, "mongo": 16_777_216}
"""How many bytes are too many, of stores that limit their entries; a memcached may be told another limit."""
AWAY = ("redis", "rabbit", "mongo", "dynamodb", "memcache")
"""Stores that can be away while the broker is not."""


@pytest.mark.parametrize("seconds", [1.5 * LEASE, pytest.param(30.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("each_backend", AWAY)
async def test_while_the_backend_is_away_messages_stay_unacked_and_then_all_ends_once(
    each_backend: str, seconds: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    broker, gate, runs = f"sqlite:///{tmp_path / 'messages.db'}", asyncio.Event(), Counter[str]()
    async with (
        proxied(url_of(each_backend, request, tmp_path)) as way,
        Bench(Stores(f"sqlite+{each_backend}", broker, way.url)) as bench,
    ):
        server = bench.server(lease=LEASE)

        @server.task
        async def work(ctx: TaskContext, number: int) -> int:
            runs[ctx.task_id] += 1
            await in_time(gate.wait())
            return number

        async with bench.working(server, concurrency=TASKS):
            sent = await server.send_many([work.s(number) for number in range(TASKS)])
            await eventually(lambda: all_run(runs))
            await way.go_away()
            gate.set()
            await asyncio.sleep(seconds)
            assert (await depth(server)).held == TASKS
            await way.come_back()
            assert await in_time(asyncio.gather(*(each.get() for each in sent))) == list(range(TASKS))
            await eventually(lambda: is_empty(server))
    assert runs == dict.fromkeys((each.task_id for each in sent), 1)
    print(f"{each_backend}: away for {seconds:g} s; then {TASKS} tasks ended, each of which ran once")


async def test_one_memcached_that_is_away_holds_up_only_what_is_recorded_there(
    memcache_url: str, tmp_path: Path
) -> None:
    broker, gate, runs = f"sqlite:///{tmp_path / 'messages.db'}", asyncio.Event(), Counter[str]()
    async with proxied(memcache_url) as way, Bench(Stores("sqlite+memcache", broker, way.url)) as bench:
        server = bench.server()

        @server.task
        async def work(ctx: TaskContext) -> None:
            runs[ctx.task_id] += 1
            await in_time(gate.wait())

        async with bench.working(server, concurrency=TASKS):
            sent = await server.send_many([work.s() for _ in range(TASKS)])
            in_reach = [each for each in sent if crc32(each.task_id.encode()) % 2]
            await eventually(lambda: all_run(runs))
            await way.proxies[0].refuse()
            gate.set()
            await in_time(asyncio.gather(*(each.get() for each in in_reach)))
            await eventually(lambda: are_pending(server, TASKS - len(in_reach)))
            await way.proxies[0].accept()
            await in_time(asyncio.gather(*(each.get() for each in sent)))
            await eventually(lambda: is_empty(server))
    assert runs == dict.fromkeys((each.task_id for each in sent), 1)


@pytest.mark.parametrize("each_backend", LIMITED)
async def test_a_result_too_big_for_the_store_fails_its_task_and_no_other(
    each_backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(each_backend, request, tmp_path)
    async with Bench(Stores(f"memory+{each_backend}", "memory://", url)) as bench:
        server = bench.server()

        @server.task
        async def text(length: int) -> str:
            return "x" * length

        async with bench.working(server):
            too_long = item_size_max(url) if each_backend == "memcache" else LIMITED[each_backend]
            big, *small = await server.send_many([text.s(length) for length in (too_long, 10, 20)])
            with pytest.raises(TaskFailed, match=r"the result could not be stored: EntryTooLarge: .* limit .* bytes"):
                await in_time(big.get())
            assert [len(await in_time(each.get())) for each in small] == [10, 20]
            await eventually(lambda: is_empty(server))
            assert await server.dead() == []


async def all_run(runs: Counter[str]) -> bool:
    return len(runs) == TASKS


async def is_empty(server: Server) -> bool:
    return await are_pending(server, 0)


async def are_pending(server: Server, count: int) -> bool:
    return (await depth(server)).pending == count


async def depth(server: Server) -> QueueDepth:
    (found,) = [each for each in await server.queues() if each.queue == server.settings.default_queue]
    return found
