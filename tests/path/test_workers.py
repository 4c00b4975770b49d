"""What a worker does beside running tasks: queues, concurrency, hooks, stopping; and servers in odd places."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from asyncqueue import Server, Worker
from asyncqueue.engine.context import TaskContext
from asyncqueue.engine.events import Event, LeasesLost, LoopBlocked, StoreRefused, TaskFailed, WorkerStopped
from asyncqueue.errors import (
    AsyncQueueError,
    ConfigError,
    NoBackend,
    Refused,
    ResultExpired,
    ResultTimeout,
    ResultUnknown,
)
from asyncqueue.errors import TaskFailed as TaskFailedError
from asyncqueue.signature import Signature, new_task_id
from asyncqueue.state import State
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time, reaches


def adding(server: Server) -> Any:
    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    return add


class Gate:
    """Tasks that wait until they are let go, and a count of those that are in."""

    def __init__(self, server: Server, name: str = "wait_here") -> None:
        self.inside = 0
        self.most = 0
        self.total = 0
        self.opened = asyncio.Event()

        async def wait_here() -> None:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)
            try:
                await self.opened.wait()
            finally:
                self.inside -= 1

        self.task = server.register_task(name, wait_here)

    async def holds(self, count: int) -> None:
        async def look() -> bool:
            return self.inside == count

        await eventually(look)


# — queues and concurrency —


async def test_a_busy_queue_does_not_wait_for_an_idle_one(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    async with bench.working(server, queues=["idle", "busy"], concurrency=4):
        for _ in range(5):
            sent = await server.send_many([add.with_(queue="busy").s(n, n) for n in range(20)])
            assert [await each.get(PATIENCE) for each in sent] == [2 * n for n in range(20)]
        sent_late = await add.with_(queue="idle").send(1, 1)
        assert await sent_late.get(PATIENCE) == 2


async def test_one_slot_serves_two_queues(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    async with bench.working(server, queues=["one", "two"], concurrency=1):
        sent = await server.send_many([add.with_(queue=queue).s(n, n) for n in range(10) for queue in ("one", "two")])
        assert [await each.get(PATIENCE) for each in sent] == [2 * n for n in range(10) for _ in range(2)]


async def test_a_busy_queue_does_not_starve_another(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    endless = asyncio.Event()

    @server.task
    async def again() -> None:
        if not endless.is_set():
            await server.send_task(again.with_(queue="busy").s())

    add = adding(server)
    async with bench.working(server, queues=["busy", "rare"], concurrency=1):
        await again.with_(queue="busy").send()
        sent = await add.with_(queue="rare").send(1, 2)
        assert await sent.get(PATIENCE) == 3
        endless.set()


async def test_concurrency_of_one_is_one_after_the_other_in_order(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    order: list[int] = []

    @server.task
    async def slow(n: int) -> None:
        order.append(n)
        await asyncio.sleep(0)
        assert order[-1] == n

    sent = await server.send_many([slow.s(n) for n in range(30)])
    async with bench.working(server, concurrency=1):
        for each in sent:
            await each.get(PATIENCE)
    assert order == list(range(30))


async def test_unlimited_concurrency_ends_at_the_prefetch_bound(one_store: Stores, bench: Bench) -> None:
    server = bench.server(worker={"prefetch": 7})
    gate = Gate(server)
    sent = await server.send_many([gate.task.s() for _ in range(20)])
    async with bench.working(server, concurrency=0):
        await gate.holds(7)
        assert len(await server.get_pending_tasks()) == 13
        gate.opened.set()
        for each in sent:
            await each.get(PATIENCE)
    assert gate.most == 7


async def test_a_worker_takes_no_more_than_it_can_run(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    gate = Gate(server)
    await server.send_many([gate.task.s() for _ in range(10)])
    async with bench.working(server, concurrency=3):
        await gate.holds(3)
        (depth,) = await server.queues()
        assert (depth.ready, depth.held) == (7, 3)
        gate.opened.set()


@pytest.mark.parametrize("queues", [["machinery_tasks"], ["a", "machinery_tasks", "b"]])
async def test_a_burst_ends_when_what_its_tasks_sent_is_done_too(
    one_store: Stores, bench: Bench, queues: list[str]
) -> None:
    server = bench.server()
    done: list[int] = []

    @server.task
    async def count_down(n: int) -> int:
        done.append(n)
        if n:
            await server.send_task(count_down.with_(queue=queues[n % len(queues)]).s(n - 1))
        return n

    @server.task
    async def note(n: int) -> None:
        done.append(-1)

    await count_down.with_(on_success=note.s(), queue=queues[-1]).send(8)
    assert await in_time(Worker(server, queues=queues, concurrency=1).run(burst=True)) == 0
    assert sorted(done) == [-1, *range(9)]


# — hooks —


async def test_hooks_are_called_around_every_run(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    told: list[str] = []
    add = adding(server)

    @server.task
    async def fail() -> None:
        raise ValueError("no")

    worker = Worker(server, concurrency=1, grace=5)

    @worker.pre_task
    def before(context: TaskContext) -> None:
        told.append(f"before {context.task_name}")

    @worker.post_task
    async def after(context: TaskContext) -> None:
        told.append(f"after {context.task_name}")

    @worker.on_error
    def error(event: TaskFailed) -> None:
        told.append(f"error {event.task_name} {event.error} {type(event.exception).__name__}")

    async with worker:
        await (await add.send(1, 2)).get(PATIENCE)
        await (await server.send_task(fail.s())).wait(PATIENCE)
    assert told == ["before add", "after add", "before fail", "after fail", "error fail ValueError: no ValueError"]


async def test_hooks_and_listeners_are_told_of_their_own_worker_alone(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    told: list[tuple[str, str]] = []
    gate = asyncio.Event()

    @server.task
    async def fail(queue: str) -> None:
        raise ValueError(queue)

    @server.task
    async def wait() -> None:
        await gate.wait()

    def worker_of(queue: str) -> Worker:
        worker = Worker(server, queues=queue, grace=5)
        worker.on_error(lambda event: told.append((queue, event.queue)))
        worker.post_task(lambda context: told.append((queue, context.queue)))
        worker.events.listen(lambda event: told.append((queue, getattr(event, "queue", queue))))
        return worker

    async with worker_of("one"), worker_of("two"):
        for queue in ("one", "two"):
            await (await fail.with_(queue=queue).send(queue)).wait(PATIENCE)
    assert {queue for queue, _ in told} == {"one", "two"}
    assert all(hooked == ran for hooked, ran in told)
    before = len(told)
    async with Worker(server, queues="three", grace=5):
        await (await fail.with_(queue="three").send("three")).wait(PATIENCE)
    assert len(told) == before


async def test_hooks_that_a_worker_would_not_call_are_refused(bench: Bench, anywhere: Stores) -> None:
    worker = Worker(bench.server())

    async def later(event: TaskFailed) -> None: ...

    with pytest.raises(ConfigError, match=r"worker\.on_error: expected a plain function, not .*later"):
        worker.on_error(later)  # type: ignore[arg-type]  # what somebody without a type checker may do

    class Later:
        async def __call__(self, event: Event) -> None: ...

    with pytest.raises(ConfigError, match=r"events\.listen: expected a plain function"):
        worker.events.listen(Later())  # type: ignore[arg-type]  # the same
    hooks: Any = (worker.pre_task, worker.post_task, worker.on_error, worker.pre_consume)
    for hook in hooks:
        with pytest.raises(ConfigError, match=rf"worker\.{hook.__name__}: expected a function, not 5"):
            hook(5)
    if anywhere.is_eager:
        return
    async with worker:
        for hook in hooks:
            with pytest.raises(ConfigError, match=rf"worker\.{hook.__name__}: this worker was started already"):
                hook(print)


async def test_middleware_wraps_runs_the_first_one_outermost(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    told: list[str] = []

    def layer(name: str) -> Any:
        async def middleware(context: TaskContext, call: Callable[[], Awaitable[Any]]) -> Any:
            told.append(f"{name} in")
            value = await call()
            told.append(f"{name} out")
            return value + 1

        return middleware

    server.add_middleware(layer("outer"))
    server.add_middleware(layer("inner"))
    add = adding(server)
    async with bench.working(server):
        assert await (await add.send(1, 2)).get(PATIENCE) == 5
    assert told == ["outer in", "inner in", "inner out", "outer out"]


async def test_a_hook_before_publishing_may_send_another_signature(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    seen: list[str] = []

    @server.before_publish
    def look(signature: Signature) -> None:
        seen.append(signature.name)

    @server.before_publish
    async def tag(signature: Signature) -> Signature:
        return signature.with_changes(headers={**(signature.headers or {}), "trace": "abc"})

    @server.task
    async def header(ctx: TaskContext) -> str:
        assert ctx.signature.headers is not None
        return str(ctx.signature.headers["trace"])

    async with bench.working(server):
        assert await (await header.send()).get(PATIENCE) == "abc"
    assert seen == ["header"]


async def test_a_closed_gate_keeps_a_worker_from_fetching(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    worker = Worker(server, grace=5)
    is_open, asked = False, asyncio.Event()

    @worker.pre_consume
    async def gate(each: Worker) -> bool:
        assert each is worker
        asked.set()
        return is_open

    sent = await add.send(1, 2)
    async with worker:
        await in_time(asked.wait())
        assert (await sent.state()).state is State.PENDING
        is_open = True
        assert await sent.get(PATIENCE) == 3


async def test_of_several_gates_each_can_keep_a_worker_from_fetching(bench: Bench, one_store: Stores) -> None:
    server = bench.server()
    add = adding(server)
    worker = Worker(server, grace=5)
    is_open, asked = [False, True], asyncio.Event()

    @worker.pre_consume
    def first(each: Worker) -> bool:
        return is_open[0]

    @worker.pre_consume
    async def second(each: Worker) -> bool:
        asked.set()
        return is_open[1]

    sent = await add.send(1, 2)
    async with worker:
        is_open[:] = [True, False]
        await in_time(asked.wait())
        assert (await sent.state()).state is State.PENDING
        is_open[1] = True
        assert await sent.get(PATIENCE) == 3


async def test_a_gate_that_raises_is_told_and_means_not_now(
    one_store: Stores, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    server = bench.server()
    add = adding(server)
    worker = Worker(server, grace=5)
    calls = 0

    @worker.pre_consume
    def gate(each: Worker) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a mistake in the gate")
        return True

    async with worker:
        assert await (await add.send(1, 2)).get(PATIENCE) == 3
    assert "a mistake in the gate" in caplog.text


async def test_events_go_to_a_logger_of_ones_own_as_fields(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    records: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.Logger("mine")
    logger.addHandler(Keeping())
    server.events.use_logger(logger)

    @server.task
    async def fail() -> None:
        raise ValueError("line one\nERROR fake \x1b[2J")

    async with bench.working(server):
        result = await fail.send()
        await result.wait(PATIENCE)
    (record,) = [each for each in records if each.__dict__["event"] == "TaskFailed"]
    assert (record.__dict__["task_id"], record.__dict__["task_name"]) == (result.task_id, "fail")
    assert "\nERROR fake" not in record.getMessage()
    assert "\x1b" not in record.getMessage()


# — results —


async def test_three_different_errors_tell_why_there_is_no_result(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    sent = await add.send(1, 2)
    reopened = server.result(sent.task_id)
    assert (await reopened.state()).state is State.PENDING
    with pytest.raises(ResultTimeout):
        await sent.get(0.05)
    await sent.forget()
    for handle in (sent, reopened):  # both saw the entry
        with pytest.raises(ResultExpired):
            await handle.get(PATIENCE)
        with pytest.raises(ResultExpired):
            await handle.state()
    never = server.result(new_task_id())
    with pytest.raises(ResultUnknown):
        await never.get(PATIENCE)
    with pytest.raises(ResultUnknown):
        await server.result(sent.task_id).state()

    silent = Server(broker=bench.stores.broker, backend="null")
    async with silent:
        result = await silent.send_task("add", 1, 2)
        for ask in (result.get, result.state, result.is_completed, result.forget):
            with pytest.raises(NoBackend):
                await ask()


async def test_a_result_is_reopened_by_its_uuid_elsewhere(stores: Stores, bench: Bench) -> None:
    server, elsewhere = bench.server(), bench.server()
    add = adding(server)
    async with bench.working(server):
        sent = await add.send(20, 22)
        assert await elsewhere.result(sent.task_id).get(PATIENCE) == 42


async def test_a_task_of_your_own_uuid_is_found_under_it(anywhere: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    async with bench.working(server):
        await add.with_(task_id="order-77").send(1, 2)
        assert await server.result("order-77").get(PATIENCE) == 3
        await add.with_(task_id="order-77").send(3, 4)  # the same again is a new run

        async def second() -> bool:
            return bool(await server.result("order-77").get(PATIENCE) == 7)

        await eventually(second)


async def test_a_long_run_is_seen_as_started(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    gate = Gate(server)
    async with bench.working(server):
        sent = await gate.task.send()
        await reaches(server, sent.task_id, State.STARTED)
        gate.opened.set()
        await sent.get(PATIENCE)


# — looking into queues —


async def test_what_waits_can_be_listed_and_purged(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    sent = await server.send_many([add.s(n, n) for n in range(3)])
    later = await add.with_(countdown=3600).send(9, 9)
    other = await add.with_(queue="other").send(8, 8)
    assert [each.uuid for each in await server.get_pending_tasks()] == [each.task_id for each in sent]
    assert [each.uuid for each in await server.get_pending_tasks("other")] == [other.task_id]
    assert [each.uuid for each in await server.get_delayed_tasks()] == [later.task_id]
    assert [(each.queue, each.ready) for each in await server.queues()] == [("machinery_tasks", 3), ("other", 1)]
    assert await server.purge() == 3
    assert await server.get_pending_tasks() == []
    assert [each.uuid for each in await server.get_delayed_tasks()] == [later.task_id]


async def test_a_dead_letter_is_listed_put_back_and_dropped(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    runs: list[str] = []

    @server.task(stop_task_deletion_on_error=True)
    async def fails_first(name: str) -> str:
        runs.append(name)
        if runs.count(name) == 1:
            raise ValueError("keep me")
        return name

    @server.task
    async def note(error: str, name: str) -> None:
        runs.append(f"note {name}")

    async with bench.working(server, concurrency=1):
        one = await fails_first.with_(on_error=note.s("one")).send("one")
        two = await fails_first.send("two")
        for each in (one, two):
            with pytest.raises(TaskFailedError, match="keep me"):
                await each.get(PATIENCE)
        dead = await eventually(lambda: _dead(server, 2))
        assert [each.reason for each in dead] == ["failed", "failed"]
        assert await server.drop_dead([dead[1].id]) == 1
        assert await server.requeue_dead() == 1
        again = server.result(one.task_id)

        async def second_run() -> bool:
            return bool(await again.get(PATIENCE) == "one")

        await eventually(second_run)
        assert await server.dead() == []
    assert runs.count("one") == 2
    assert runs.count("note one") == 1


async def test_a_dead_task_that_is_put_back_and_fails_again_tells_its_error_handlers_again(
    stores: Stores, bench: Bench
) -> None:
    server = bench.server()
    told: list[str] = []

    @server.task(stop_task_deletion_on_error=True)
    async def fail() -> None:
        raise ValueError("always")

    @server.task
    async def note(error: str) -> None:
        told.append(error)

    async with bench.working(server, concurrency=1):
        await fail.with_(on_error=note.s()).send()

        async def told_once() -> bool:
            return len(told) == 1

        await eventually(told_once)
        await eventually(lambda: _dead(server, 1))
        assert await server.requeue_dead() == 1

        async def told_twice() -> bool:
            return len(told) == 2

        await eventually(told_twice)


async def _dead(server: Server, count: int) -> Any:
    dead = await server.dead()
    return dead if len(dead) == count else None


async def test_an_unknown_task_waits_for_a_worker_that_knows_it(stores: Stores, bench: Bench) -> None:
    ignorant, knowing = bench.server(), bench.server()
    add = adding(knowing)
    async with bench.working(ignorant):
        sent = await add.send(1, 2)
        ignored = Signature(name="nobody", ignore_when_task_not_registered=True)
        await ignorant.send_task(ignored)

        async def put_aside() -> bool:
            waiting = [*await ignorant.get_delayed_tasks(), *await ignorant.get_pending_tasks()]
            return [each.name for each in waiting] == ["add"] and "aq-unknown-times" in (waiting[0].headers or {})

        await eventually(put_aside)
    async with bench.working(knowing):
        assert await sent.get(PATIENCE) == 3


async def test_who_is_shown_unknown_tasks_only_leaves_them_to_those_who_know_them(
    one_store: Stores, bench: Bench
) -> None:
    ignorant, knowing = bench.server(), bench.server()
    given_back: list[int] = []

    @knowing.task
    async def known(ctx: TaskContext) -> None:
        given_back.append(int((ctx.signature.headers or {}).get("aq-unknown-times", 0)))

    async with bench.working(ignorant, concurrency=1):
        results = await knowing.send_many([known.s() for _ in range(300)])

        async def was_given_back() -> bool:
            return bool(await ignorant.get_delayed_tasks())

        await eventually(was_given_back)
        async with bench.working(knowing, concurrency=1):
            for each in results:
                await in_time(each.get())
    print(f"{one_store.kind}: given back {sum(given_back)} times, each at most {max(given_back)} times")
    assert sum(given_back) < len(results) / 2


async def test_a_known_task_behind_many_unknown_ones_does_not_wait_for_each_of_them(
    one_store: Stores, bench: Bench
) -> None:
    server = bench.server()
    add = adding(server)
    await server.send_many([Signature(name="nobody") for _ in range(400)])
    sent = await add.send(1, 2)
    began = time.monotonic()
    async with bench.working(server, concurrency=1):
        assert await in_time(sent.get()) == 3
    print(f"{one_store.kind}: known behind 400 unknown ones after {time.monotonic() - began:.1f} s")


async def test_an_unknown_task_is_buried_when_it_is_too_old(stores: Stores, bench: Bench) -> None:
    server = bench.server(worker={"unknown_task_after": 0.2})
    told: list[str] = []

    @server.task
    async def note(error: str) -> None:
        told.append(error)

    async with bench.working(server):
        sent = await server.send_task(Signature(name="nobody", on_error=(note.s(),)))
        with pytest.raises(TaskFailedError, match="registered on no worker"):
            await sent.get(PATIENCE)
        (dead,) = await eventually(lambda: _dead(server, 1))
    assert dead.reason == "unknown_task"
    assert len(told) <= 1


# — stopping —


async def test_a_stop_waits_for_running_tasks_and_gives_the_rest_back(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    gate = Gate(server)
    sent = await server.send_many([gate.task.s() for _ in range(5)])
    worker = Worker(server, concurrency=2, grace=PATIENCE)
    await worker.start()
    await gate.holds(2)
    stopping = asyncio.create_task(worker.stop())
    while not worker._consumer._stopping.is_set():  # type: ignore[union-attr]  # it was started
        await asyncio.sleep(0)
    gate.opened.set()
    await in_time(stopping)
    assert gate.total == 2
    assert [(await each.state()).state for each in sent[:2]] == [State.SUCCESS] * 2
    assert [each.uuid for each in await server.get_pending_tasks()] == [each.task_id for each in sent[2:]]


async def test_what_outlives_the_grace_time_is_cancelled_and_runs_again_elsewhere(
    one_store: Stores, bench: Bench
) -> None:
    server = bench.server()
    gate = Gate(server)
    sent = await gate.task.send()
    worker = Worker(server, grace=0.05)
    await worker.start()
    await gate.holds(1)
    await in_time(worker.stop())
    assert gate.inside == 0
    assert [each.uuid for each in await server.get_pending_tasks()] == [sent.task_id]
    gate.opened.set()
    async with bench.working(server):
        await sent.get(PATIENCE)
    assert gate.total == 2


async def test_a_task_that_stumbles_over_its_cancellation_has_not_failed(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    runs = 0
    running = asyncio.Event()

    @server.task
    async def clumsy() -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("while cleaning up") from None
        return runs

    sent = await clumsy.send()
    worker = Worker(server, grace=0)
    await worker.start()
    await in_time(running.wait())
    await in_time(worker.stop())
    async with bench.working(server):
        assert await sent.get(PATIENCE) == 2


@pytest.mark.parametrize("url", ["memory://task-groups", "eager"])
async def test_a_task_whose_task_group_fails_has_failed(url: str) -> None:
    server = Server(url)

    async def fail() -> None:
        raise ValueError("no luck")

    @server.task
    async def several() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async with server, nullcontext() if url == "eager" else Worker(server):
        with pytest.raises(TaskFailedError, match="ExceptionGroup"):
            await (await several.send()).get(PATIENCE)


async def test_an_eager_task_that_stumbles_over_the_cancellation_of_its_sender_has_not_failed() -> None:
    server = Server("eager")
    running = asyncio.Event()
    events: list[Event] = []
    server.events.listen(events.append)

    @server.task
    async def clumsy() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("while cleaning up") from None

    task_id = "task_clumsy"
    async with server:
        sending = asyncio.create_task(server.send_task(clumsy.s().with_changes(uuid=task_id)))
        await in_time(running.wait())
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(sending)
        assert not (await server.result(task_id).state()).is_completed
    assert not [each for each in events if isinstance(each, TaskFailed)]


async def test_a_task_that_ignores_its_cancellation_does_not_hold_up_the_stop(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    running, release = asyncio.Event(), asyncio.Event()

    @server.task
    async def stubborn() -> None:
        running.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    sent = await stubborn.send()
    stopped: list[Event] = []
    server.events.listen(lambda event: stopped.append(event) if isinstance(event, WorkerStopped) else None)
    worker = Worker(server, grace=0)
    await worker.start()
    await in_time(running.wait())
    await in_time(worker.stop())
    assert list(worker.stuck) == [sent.task_id]
    assert stopped == [WorkerStopped((sent.task_id,))]
    release.set()


async def test_a_cancelled_worker_leaves_nothing_running(one_store: Stores, bench: Bench) -> None:
    server = bench.server(no_unix_signals=True)
    gate = Gate(server)
    await gate.task.send()
    running = asyncio.create_task(Worker(server, grace=PATIENCE).run())
    await gate.holds(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(running)
    assert gate.inside == 0
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("asyncqueue-feed")]


async def test_a_worker_runs_once(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    async with Worker(server) as worker:
        with pytest.raises(ConfigError, match="started already"):
            await worker.start()
    await worker.stop()
    with pytest.raises(ConfigError, match="concurrency"):
        Worker(server, concurrency=-1)
    with pytest.raises(ConfigError, match="twice"):
        Worker(server, queues=["a", "a"])


# — leases —


async def test_a_blocked_event_loop_does_not_lose_its_lease(durable: Stores, bench: Bench) -> None:
    server, other = bench.server(lease=2.0), bench.server(lease=2.0)
    runs: list[str] = []
    events: list[Event] = []
    server.events.listen(events.append)
    blocked = threading.Event()

    @server.task(name="block")
    async def block() -> str:
        runs.append("first")
        blocked.set()
        time.sleep(3.0)  # that is what is tried here
        return "done"

    async def run_elsewhere() -> str:
        runs.append("second")
        return "elsewhere"

    other.register_task("block", run_elsewhere)

    async def block_in_a_loop_of_its_own() -> str:
        async with server, Worker(server, grace=5):
            return await (await block.send()).get(PATIENCE)

    blocking = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(block_in_a_loop_of_its_own())))
    assert await asyncio.to_thread(blocked.wait, PATIENCE)
    async with bench.working(other):  # it would take over what is given up
        assert await in_time(blocking) == "done"
    assert runs == ["first"]
    assert not [each for each in events if isinstance(each, LeasesLost)]


async def test_a_blocked_event_loop_is_told_with_its_stack(
    one_store: Stores, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_store.kind == "memory":
        pytest.skip("a broker without leases has no heartbeat that could notice")
    from asyncqueue.engine import leases

    monkeypatch.setattr(leases.LeaseKeeper.__init__, "__kwdefaults__", {"blocked_after": 0.5})
    server = bench.server(lease=1.0)
    events: list[Event] = []
    server.events.listen(events.append)

    @server.task
    async def block_the_loop() -> None:
        time.sleep(1.5)  # that is what is tried here

    async with bench.working(server):
        await (await block_the_loop.send()).get(PATIENCE)
    (blocked,) = [each for each in events if isinstance(each, LoopBlocked)]
    assert "block_the_loop" in blocked.stack


# — servers in odd places —


async def test_two_workers_in_one_process_share_a_server(stores: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    async with bench.working(server), bench.working(server):
        sent = await server.send_many([add.s(n, n) for n in range(100)])
        assert [await each.get(PATIENCE) for each in sent] == [2 * n for n in range(100)]
    assert not [each for each in await server.queues() if each.ready or each.held]


async def test_two_workers_of_one_server_run_no_task_twice(one_store: Stores, bench: Bench) -> None:
    server = bench.server()
    seen: list[int] = []

    @server.task
    async def note(n: int) -> None:
        seen.append(n)
        await asyncio.sleep(0)

    sent = await server.send_many([note.s(n) for n in range(200)])
    async with bench.working(server, concurrency=3), bench.working(server, concurrency=5):
        for each in sent:
            await each.get(PATIENCE)
    assert sorted(seen) == list(range(200))


def test_a_server_is_used_in_two_event_loops_one_after_the_other(durable: Stores) -> None:
    bench = Bench(durable)
    server = bench.server()
    add = adding(server)

    async def send_and_work(close: bool) -> int:
        async with Worker(server, grace=5):
            value: int = await (await add.send(1, 2)).get(PATIENCE)
        if close:
            await server.close()
        return value

    assert [asyncio.run(send_and_work(close)) for close in (True, True)] == [3, 3]


async def test_a_server_is_used_in_two_event_loops_at_once(durable: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)

    async def send_elsewhere(n: int) -> int:
        value: int = await (await add.send(n, n)).get(PATIENCE)
        await server.close()
        return value

    async with bench.working(server):
        for n in range(3):
            assert await asyncio.to_thread(asyncio.run, send_elsewhere(n)) == 2 * n
            assert await (await add.send(n, 1)).get(PATIENCE) == n + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_opens_its_own_connections(durable: Stores, bench: Bench) -> None:
    server = bench.server()
    add = adding(server)
    first = await add.send(1, 2)  # connected before the fork
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio._set_running_loop(None)

            async def send() -> None:
                await add.with_(task_id="from-the-child").send(3, 4)
                await server.close()

            asyncio.run(send())
            code = 0
        finally:
            os._exit(code)
    _, status = await in_time(asyncio.to_thread(os.waitpid, child, 0))
    assert os.waitstatus_to_exitcode(status) == 0
    async with bench.working(server):
        assert await first.get(PATIENCE) == 3
        assert await server.result("from-the-child").get(PATIENCE) == 7


async def test_a_broker_of_ones_own_is_used_as_it_is(one_store: Stores, bench: Bench) -> None:
    if one_store.kind != "memory":
        pytest.skip("one store is enough for this")
    from asyncqueue.backends.memory import MemoryBackend
    from asyncqueue.brokers.memory import MemoryBroker
    from asyncqueue.connections.memory import MemoryStore

    store = MemoryStore()
    server = Server(broker=MemoryBroker(store), backend=MemoryBackend(store))
    add = adding(server)
    async with server, Worker(server):
        assert await (await add.send(1, 2)).get(PATIENCE) == 3


async def test_an_eager_server_tells_an_unknown_task_at_once(bench: Bench, anywhere: Stores) -> None:
    if not anywhere.is_eager:
        pytest.skip("other workers may know it")
    server = bench.server()
    with pytest.raises(TaskFailedError, match="registered on no worker"):
        await (await server.send_task("nobody")).get(1)


async def test_errors_of_a_worker_are_ours(one_store: Stores, bench: Bench) -> None:
    assert issubclass(Refused, AsyncQueueError)
    assert StoreRefused("x", "y").text() == "cannot x: y"
