"""Every call that a store gets for one task fails once: before it is done, after it is done, or by not answering.

The task fails once, is retried, and has a callback; whatever call goes wrong, all of it comes to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import Server, Worker
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.backends.redis import RedisBackend
from asyncqueue.backends.sqlite import SqliteBackend
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import Refused
from asyncqueue.testing import Faults, with_faults
from tests.path.bench import PATIENCE, eventually, in_time

VERBS = ("publish", "submit", "begin", "put", "get", "fetch", "settle", "ack", "nack", "tend")
LEASE = 2.0
Pair = tuple[Any, Any]


@pytest.fixture(params=["memory", "sqlite", "redis", "sqlite+memory", "redis+sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Pair]:
    """Makes a fresh pair of stores of one kind."""

    def pair(name: str) -> Pair:
        memory = MemoryStore()
        file = tmp_path / f"{name}.db"
        match request.param:
            case "memory":
                return MemoryBroker(memory), MemoryBackend(memory)
            case "sqlite":
                return SqliteBroker(file, lease=LEASE), SqliteBackend(file)
            case "redis":
                url = request.getfixturevalue("redis_url")
                return RedisBroker(url, lease=LEASE, delayed_poll=0.05), RedisBackend(url)
            case "sqlite+memory":
                return SqliteBroker(file, lease=LEASE), MemoryBackend(memory)
            case _:
                url = request.getfixturevalue("redis_url")
                return RedisBroker(url, lease=LEASE, delayed_poll=0.05), SqliteBackend(file)

    return pair


async def test_a_workflow_completes_whatever_call_fails(make: Callable[[str], Pair]) -> None:
    clean = Faults()
    await _workflow(make("clean"), clean, "clean")
    calls = {verb: clean.calls[verb] for verb in VERBS if clean.calls[verb]}
    assert sum(calls.values()) > 5
    plans = [
        (verb, n, how)
        for verb, count in calls.items()
        for n in range(min(count, 6))
        for how in ("before", "after")
        if (verb, how) != ("fetch", "after")  # the driver handed it over: a reply that it never had is its own tests'
    ]
    plans += [(verb, 0, "hang") for verb in calls]
    at_once = asyncio.Semaphore(4)

    async def one(verb: str, n: int, how: str) -> None:
        name = f"{verb}-{n}-{how}"
        async with at_once:
            faults = Faults()
            hang = None
            match how:
                case "before":
                    faults.before(verb, skip=n)
                case "after":
                    faults.after(verb, skip=n)
                case _:
                    hang = faults.hang(verb, skip=n)
            try:
                if hang is not None:
                    asyncio.get_running_loop().call_later(0.3, hang.release)
                await _workflow(make(name), faults, name)
            except Exception as exc:
                raise AssertionError(f"{name}: {exc!r}") from exc

    await asyncio.gather(*(one(*plan) for plan in plans))
    print(f"{len(plans)} faults: {calls}")


async def _workflow(stores: Pair, faults: Faults, queue: str) -> None:
    broker, backend = stores
    server = Server(broker=with_faults(broker, faults), backend=with_faults(backend, faults))
    attempts: list[int] = []
    noted: list[int] = []

    @server.task(retries=1, backoff="fixed:0.02", queue=queue)
    async def second_time(ctx: TaskContext) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise OSError("not yet")
        return ctx.attempt

    @server.task(queue=queue)
    async def note(n: int) -> None:
        noted.append(n)

    async with server, Worker(server, queues=queue, concurrency=2, grace=10):
        result = await in_time(second_time.with_(on_success=note.s()).send())
        assert await _eventually_get(result) == 2

        async def all_done() -> bool:
            depths = [each for each in await server.queues() if each.queue == queue]
            left = sum(each.pending + (each.dead or 0) for each in depths)
            return bool(noted) and left == 0

        await eventually(all_done)
    assert set(noted) == {2}
    assert len(noted) <= 2, "one fault repeats a callback at most once"
    assert set(attempts) == {1, 2}


async def _eventually_get(result: Any) -> Any:
    """The result, asked for again where the fault met the asking."""

    async def look() -> Any:
        try:
            return await result.get(PATIENCE)
        except Exception as exc:
            if "fault was planned" not in str(exc):
                raise
            return None

    return await eventually(look)


async def test_a_store_that_refuses_an_end_sends_the_message_to_the_dead_letter(tmp_path: Path) -> None:
    faults = Faults()
    file = tmp_path / "tasks.db"
    server = Server(broker=with_faults(SqliteBroker(file), faults), backend=with_faults(SqliteBackend(file), faults))

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with server:
        # the batch, then FAILURE for the result that could not be stored
        faults.before("settle", error=Refused("this store does not like it"), times=2)
        async with Worker(server, grace=10, concurrency=1):
            await server.send_task(add.s(1, 2))
            (dead,) = await eventually(server.dead)
            assert dead.reason == "refused"
            assert "does not like it" in dead.error
            assert await (await server.send_task(add.s(3, 4))).get(PATIENCE) == 7


async def test_a_store_that_refuses_everything_does_not_stop_its_worker(tmp_path: Path) -> None:
    faults = Faults()
    file = tmp_path / "tasks.db"
    server = Server(
        broker=with_faults(SqliteBroker(file, lease=1.0), faults), backend=with_faults(SqliteBackend(file), faults)
    )

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with server:
        faults.before("settle", error=Refused("no"), times=3)  # the dead letter is refused too
        async with Worker(server, grace=10, concurrency=1):
            sent = await server.send_task(add.s(1, 2))
            assert await sent.get(PATIENCE) == 3  # its lease ended, and it was shown again


async def test_an_aide_that_breaks_ends_the_worker_instead_of_leaving_it_idle(tmp_path: Path) -> None:
    faults = Faults()
    file = tmp_path / "tasks.db"
    server = Server(broker=with_faults(SqliteBroker(file), faults), backend=SqliteBackend(file))
    async with server:
        faults.before("tend", error=ZeroDivisionError("a mistake in a driver"))
        worker = Worker(server)
        with pytest.raises(ZeroDivisionError):
            await in_time(worker.run())


async def test_a_send_that_is_repeated_takes_back_no_result(tmp_path: Path) -> None:
    """The reply to a publish is lost, the task ends, and only then the publish is repeated."""
    faults = Faults()
    server = Server(
        broker=with_faults(SqliteBroker(tmp_path / "tasks.db"), faults), backend=MemoryBackend(MemoryStore())
    )

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with server, Worker(server, grace=10):
        faults.after("publish")
        again = faults.hang("publish")
        sending = asyncio.create_task(add.with_(task_id="task_once").send(1, 2))
        await in_time(again.reached())
        backend = (await server.connected()).backend
        assert backend is not None

        async def ended() -> bool:
            (state,) = await backend.get(["task_once"])
            return state is not None and state.is_completed

        await eventually(ended)
        again.release()
        assert await (await in_time(sending)).get(PATIENCE) == 3
