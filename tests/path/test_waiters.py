"""However many wait for results in one process, the backend is asked by one: it is told, or polls once for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from asyncqueue import Server
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.config import Settings
from asyncqueue.connections.sqlite import Database
from asyncqueue.signature import new_task_id
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.urls import backend_for
from tests.opened import opened
from tests.path.bench import Place, in_time
from tests.path.proxied import proxied
from tests.services import RedisCluster, RedisSentinel, RedisServer

WAITERS = 1_000
SLOW = ("mongo", "dynamodb", "rabbit")
"""Where the test server takes its time to write: there are fewer tasks, and some wait for the same one."""
SECONDS = 0.5
"""For how long requests are counted."""
BEGINNINGS = 5
"""How often they are counted anew while a thousand waits begin."""
AT_MOST = 500
"""Requests per second. If each waiter asked for itself, it would be thousands, even in the slowest rhythm of polls."""


async def test_a_thousand_waiters_are_one_to_the_backend(
    each_backend: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [new_task_id() for _ in range(WAITERS // 5 if each_backend.kind in SLOW else WAITERS)]
    async with (
        opened(backend_for(each_backend.url, Settings())) as others,
        counted(each_backend, request, monkeypatch) as (url, count),
        Server(broker="memory://", backend=url) as server,
    ):
        await others.begin([TaskState(task_uuid=task) for task in tasks])
        waiting = [asyncio.create_task(server.result(tasks[n % len(tasks)]).get()) for n in range(WAITERS)]
        await asyncio.sleep(SECONDS)
        rate = await requests_per_second(count)
        for _ in range(BEGINNINGS):
            if rate < AT_MOST:
                break
            print(f"{each_backend.kind}: {rate:.0f} requests/s while they begin")
            rate = await requests_per_second(count)
        assert not any(each.done() for each in waiting)
        written = time.monotonic()
        await others.put(
            [
                TaskState(task_uuid=task, state=State.SUCCESS, results=(TaskResult(type="int64", value=number),))
                for number, task in enumerate(tasks)
            ]
        )
        assert await in_time(asyncio.gather(*waiting)) == [n % len(tasks) for n in range(WAITERS)]
        took = time.monotonic() - written
    print(
        f"{each_backend.kind}: {WAITERS} waiters for {len(tasks)} tasks make {rate:.0f} requests/s; "
        f"all had their result {took:.2f} s later"
    )
    assert rate < AT_MOST


async def requests_per_second(count: Callable[[], int]) -> float:
    """How many there are now, of those that are counted."""
    before, since = count(), time.monotonic()
    assert before > 0, "nothing is counted"
    await asyncio.sleep(SECONDS)
    return (count() - before) / (time.monotonic() - since)


@asynccontextmanager
async def counted(
    place: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """A URL of the place, and how many requests it has had: counted at the server where there are several, else on
    the way to it; where there is no server, at the driver."""
    match place.kind:
        case "memory":
            yield place.url, calls_of(MemoryBackend, "get", monkeypatch)
        case "sqlite":
            yield place.url, calls_of(Database, "_call", monkeypatch)
        case "sentinel":
            group: RedisSentinel = request.getfixturevalue("shared_redis_sentinel")
            yield place.url, lambda: commands(*group.servers)
        case "cluster":
            cluster: RedisCluster = request.getfixturevalue("shared_redis_cluster")
            yield place.url, lambda: commands(*cluster.servers)
        case _:
            async with proxied(place.url) as way:
                yield way.url, lambda: way.writes


def calls_of(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the calls of a method from now on, of whichever instance."""
    inner = getattr(owner, name)
    calls = 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return lambda: calls


def commands(*servers: RedisServer) -> int:
    """How many commands these have run, those of their own watchers too."""
    lines = [line for each in servers for line in each.call("INFO", "stats").splitlines()]
    found = [line.partition(":")[2] for line in lines if line.startswith("total_commands_processed")]
    assert len(found) == len(servers)
    return sum(map(int, found))
