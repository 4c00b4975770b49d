"""Workers on RabbitMQ are killed and stopped, and RabbitMQ is killed, in the middle of the work; nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import Server
from asyncqueue.errors import PublishUnknown, Unavailable
from asyncqueue.result import AsyncResult
from asyncqueue.signature import Signature, new_task_id
from tests.path.bench import Bench, Stores, eventually
from tests.path.ledger import Ledger
from tests.path.workers import Crew, server_with_tasks
from tests.services import RabbitServer

PATIENCE = 90.0
TASKS = 1_000

pytestmark = pytest.mark.timeout(600)  # processes by the dozen, on a machine that may be busy


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def on_rabbit(amqp_url: str, redis_url: str) -> Stores:
    return Stores("rabbit+redis", amqp_url, redis_url)


@pytest.fixture
def crew(on_rabbit: Stores, ledger: Ledger) -> Iterator[Crew]:
    crew = Crew(on_rabbit, ledger)
    yield crew
    crew.stop()


@pytest.fixture
async def server(on_rabbit: Stores, ledger: Ledger) -> AsyncIterator[Server]:
    """A server that only sends; it knows the tasks of the workers."""
    bench = Bench(on_rabbit)
    yield server_with_tasks(bench.server(), ledger)
    await bench.close()


def task(server: Server, name: str, *args: Any) -> Signature:
    wire_args, _ = server.registry.get(name).arguments(args, {})
    return Signature(uuid=new_task_id(), name=name, args=wire_args, headers={})


async def all_succeed(results: list[AsyncResult[Any]]) -> None:
    async with asyncio.timeout(PATIENCE):
        for each in results:
            await each.get()


async def until(look: Callable[[], object]) -> None:
    async def ask() -> object:
        return look()

    await eventually(ask, patience=PATIENCE)


async def nothing_is_left(server: Server) -> None:
    """The queue is empty, and so is its dead letter."""
    inspector = await server.inspector()

    async def look() -> bool:
        depth = await inspector.depth(server.settings.default_queue)
        return depth.ready == depth.dead == 0

    await eventually(look)


async def test_a_worker_killed_in_the_middle_of_a_thousand_tasks_loses_none(
    server: Server, crew: Crew, ledger: Ledger
) -> None:
    doomed, other = (crew.start(concurrency=10) for _ in range(2))
    results = await server.send_many([task(server, "work", 0.02) for _ in range(TASKS)])
    await until(lambda: sum(line.pid == doomed.pid for line in ledger.lines()) > 200)
    doomed.kill()
    killed_at = time.time()
    orphans = ledger.open_tasks(doomed.pid)
    await all_succeed(results)
    ends = ledger.counts("E")
    assert set(ends) == {each.task_id for each in results}
    twice = {task_id for task_id, count in ends.items() if count > 1}
    assert len(twice) <= 20, "only what ended and was not settled when the worker died may end twice"
    again = [line.at - killed_at for line in ledger.lines() if line.task_id in orphans and line.pid == other.pid]
    print(f"{len(orphans)} orphans, recovered {max(again, default=0):.2f} s after the kill; {len(twice)} ended twice")
    await nothing_is_left(server)


async def test_a_worker_that_is_stopped_under_load_ends_everything_once(
    server: Server, crew: Crew, ledger: Ledger
) -> None:
    results = await server.send_many([task(server, "work", 0.02) for _ in range(TASKS)])
    for ended in range(100, TASKS, 300):
        worker = crew.start(concurrency=10, grace=10.0)
        await until(partial(_has_ended, ledger, ended))
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    crew.start(concurrency=10)
    await all_succeed(results)
    assert ledger.counts("E") == dict.fromkeys([each.task_id for each in results], 1)
    await nothing_is_left(server)


async def test_a_server_killed_twice_under_load_loses_nothing_that_was_acknowledged(
    redis_url: str, ledger: Ledger
) -> None:
    await _survives_kills_of_the_server(redis_url, ledger, kills=2)


@pytest.mark.long
async def test_a_server_killed_ten_times_under_load_loses_nothing_that_was_acknowledged(
    redis_url: str, ledger: Ledger
) -> None:
    await _survives_kills_of_the_server(redis_url, ledger, kills=10)


async def _survives_kills_of_the_server(redis_url: str, ledger: Ledger, kills: int) -> None:
    rabbit = await asyncio.to_thread(RabbitServer().start)
    stores = Stores("rabbit+redis", rabbit.url, redis_url)
    bench, crew = Bench(stores), Crew(stores, ledger)
    server = server_with_tasks(bench.server(), ledger)
    sent: list[str] = []
    enough = asyncio.Event()

    async def send() -> None:
        while not enough.is_set():
            signature = task(server, "work", 0.01)
            try:
                await server.send_task(signature)
            except (PublishUnknown, Unavailable):
                continue  # not acknowledged, so it may be lost; the next one is another
            sent.append(signature.uuid)

    try:
        for _ in range(2):
            crew.start(concurrency=10)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(send())
            for kill in range(1, kills + 1):
                await until(partial(_has_ended, ledger, 150 * kill))
                await asyncio.to_thread(rabbit.kill)
                await asyncio.to_thread(rabbit.restart)
            await until(lambda: len(ledger.counts("E")) > 150 * (kills + 1))
            enough.set()
        await until(lambda: set(sent) <= set(ledger.counts("E")))
        await all_succeed([server.result(task_id) for task_id in sent])
        twice = sum(count > 1 for count in ledger.counts("E").values())
        print(f"{len(sent)} acknowledged, 0 lost, {twice} ended twice, {kills} kills of the server")
    finally:
        crew.stop()
        await bench.close()
        await asyncio.to_thread(rabbit.stop)


def _has_ended(ledger: Ledger, count: int) -> bool:
    """Whether more tasks than this have ended."""
    return len(ledger.counts("E")) > count
