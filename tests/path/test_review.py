"""What must never go wrong with a delivery: kept for ever, run for ever, or forgotten while somebody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncqueue import Server, TaskContext, Worker
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.backends.redis import RedisBackend
from asyncqueue.backends.sqlite import SqliteBackend
from asyncqueue.brokers.base import Delivery
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine import consumer
from asyncqueue.errors import Refused, TaskFailed
from asyncqueue.state import State, TaskState
from asyncqueue.testing import Faults, ManualClock, with_faults
from asyncqueue.wire import encode_state
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time

SHORT = 3.0
"""How long (seconds) results are kept here: long enough for a slow machine to fetch one."""

LONG = SHORT + 0.5
"""What takes so long (seconds) outlives an entry."""


# — waiting for what outlives its entry —


async def test_a_task_that_is_due_after_its_entry_would_expire_is_waited_for(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=SHORT)

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(server):
        sent = await add.with_(countdown=LONG).send(1, 2)
        assert await in_time(sent.get()) == 3


async def test_a_retry_that_is_due_after_its_entry_would_expire_is_waited_for(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=SHORT)

    @server.task(retries=1, backoff=lambda attempt, previous: LONG)
    async def flaky(ctx: TaskContext) -> int:
        if ctx.attempt == 1:
            raise RuntimeError("not yet")
        return ctx.attempt

    async with bench.working(server):
        assert await in_time((await flaky.send()).get()) == 2


async def test_a_task_that_runs_longer_than_entries_are_kept_is_waited_for(stores: Stores, bench: Bench) -> None:
    server = bench.server(results_expire_in=SHORT)

    @server.task
    async def long() -> str:
        await asyncio.sleep(LONG)
        return "at last"

    async with bench.working(server):
        sent = await long.send()
        assert await in_time(sent.get()) == "at last"


# — giving back —


class Dangerous(MemoryBroker):
    """A message with "poison" in it comes as if two workers had died of it; as on Redis, what its holder does not let
    go of stays its own."""

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        got = await super().fetch(queue, limit, wait)
        return [replace(one, attempt=consumer.ISOLATE_FROM) if b"poison" in one.body else one for one in got]


async def test_what_must_go_back_goes_back_however_long_the_store_is_away() -> None:
    faults, clock, store = Faults(), ManualClock(), MemoryStore()
    server = Server(
        broker=with_faults(Dangerous(store, clock=clock), faults),
        backend=MemoryBackend(store, clock=clock),
        clock=clock,
    )

    @server.task
    async def poison() -> str:
        return "survived"

    @server.task
    async def innocent() -> str:
        return "done"

    async with server:
        faults.before("nack", times=3)
        away = faults.hang("nack")
        dangerous, other = await server.send_many([poison.s(), innocent.s()])
        async with Worker(server, concurrency=4, grace=5):
            await eventually(lambda: _reached(faults, "nack", 1))
            clock.advance(60.0)
            await in_time(away.reached())
            faults.clear()
            assert await in_time(dangerous.get()) == "survived"
            assert await in_time(other.get()) == "done"


async def test_a_task_that_is_cancelled_before_it_began_goes_back(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    ran: list[int] = []

    @server.task
    async def add(number: int) -> int:
        ran.append(number)
        return number

    await server.connected()
    worker = Worker(server, grace=5)
    start = consumer.Consumer._start

    def cancelled_at_once(self: consumer.Consumer, delivery: Delivery) -> None:
        start(self, delivery)
        if not worker._stop_asked.is_set():
            worker.stop_at_once()
            self.stop()
            self.cancel_running()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer.Consumer, "_start", cancelled_at_once)
        async with worker:
            sent = await add.send(1)
            await in_time(worker._stop_asked.wait())
    assert ran == []
    async with bench.working(server):
        assert await in_time(sent.get()) == 1


# — slots and stops —


async def test_a_stuck_thread_keeps_its_slot_when_the_concurrency_is_changed(bench: Bench, one_store: Stores) -> None:
    server = bench.server(worker={"concurrency": 2})
    go = threading.Event()

    @server.task(timeout=0.05)
    def stuck() -> None:
        go.wait(PATIENCE)

    async with bench.working(server) as worker:
        assert worker is not None
        assert worker._slots is not None
        try:
            sent = await stuck.send()
            with pytest.raises(TaskFailed):
                await in_time(sent.get())
            await eventually(lambda: _is(worker, 1))
            more = server.settings.worker.model_copy(update={"concurrency": 3})
            settings = server.settings.model_copy(update={"worker": more})
            await server._stores.apply(settings, frozenset({"worker.concurrency"}))
            assert worker._slots.total == 2
        finally:
            go.set()
        await eventually(lambda: _is(worker, 3))


async def _is(worker: Worker, total: int) -> bool:
    return worker._slots is not None and worker._slots.total == total


async def test_a_worker_that_is_cancelled_while_it_starts_leaves_nothing_running(
    one_store: Stores, bench: Bench
) -> None:
    server = bench.server()
    await server.connected()
    starting = asyncio.create_task(Worker(server).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(starting)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("asyncqueue-")] == []


# — what a store refuses, and what it does not tell —


async def test_callbacks_that_are_refused_after_the_success_was_recorded_leave_a_trace(tmp_path: Path) -> None:
    faults = Faults()
    server = Server(
        broker=with_faults(MemoryBroker(MemoryStore()), faults), backend=SqliteBackend(tmp_path / "states.db")
    )

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with server, Worker(server, grace=5):
        faults.before("publish", error=Refused("that queue is not for you"), skip=1, times=2)
        sent = await add.with_(on_success=add.s(1)).send(1, 2)
        assert await in_time(sent.get()) == 3
        (dead,) = await eventually(server.dead)
        assert (dead.reason, "not for you" in dead.error) == ("refused", True)


async def test_a_watch_is_told_again_after_the_connection_that_reads_was_lost(
    lone_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer that forgets idle connections tells neither end; the one that only listens would never notice."""
    # nobody looks without being told
    monkeypatch.setattr("asyncqueue.connections.redis_tracking.TOLD", (1_000.0, 1_000.0))
    backend = RedisBackend(lone_redis_url)
    await backend.open()
    async with Redis.from_url(lone_redis_url, protocol=2) as redis:

        async def readers() -> list[dict[str, str]]:
            return [one for one in await redis.client_list() if "t" in one["flags"]]

        try:
            await backend.begin([TaskState(task_uuid=f"task_{name}") for name in "ab"])
            endings = asyncio.ensure_future(_first(backend, "task_a"))
            (reader,) = await eventually(readers)
            await redis.client_kill_filter(_id=reader["id"])
            other = asyncio.ensure_future(_first(backend, "task_b"))  # looks, and finds the reader gone
            await eventually(readers)
            for name in "ab":
                await redis.set(f"task_{name}", encode_state(TaskState(task_uuid=f"task_{name}", state=State.SUCCESS)))
            assert await in_time(endings) is State.SUCCESS
            assert await in_time(other) is State.SUCCESS
        finally:
            await backend.close()


async def _first(backend: RedisBackend, task_id: str) -> State | None:
    async for _, state in backend.watch([task_id]):
        return state.state if state else None
    return None


async def _reached(faults: Faults, verb: str, count: int) -> bool:
    return faults.calls[verb] >= count
