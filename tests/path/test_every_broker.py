"""What holds on every broker: workers are killed and stopped, tasks outlast leases and come due together."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from asyncqueue import Server, Worker
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import TaskFailed
from tests.path.bench import Bench, Stores, eventually, in_time
from tests.path.conftest import FORMS
from tests.path.ledger import Ledger
from tests.path.watching import PATIENCE, all_succeed, has_written_more, more_have_ended, task, until
from tests.path.workers import Crew, server_with_tasks

TASKS = 1_000
REPEATS = {"sqs+redis", "pubsub+redis"}
"""Services that may show a message twice by themselves, whatever becomes of it."""

SOME_FAR = (
    "rabbit+redis",
    "pubsub+redis",
    *(pytest.param(kind, marks=pytest.mark.long) for kind in ("sqs+redis", "cluster")),
    *FORMS,
)
"""All that is far: where workers die again and again, and each is a new process, two have to do."""

pytestmark = pytest.mark.timeout(600)  # processes by the dozen, on a machine that may be busy


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def crew(far: Stores, ledger: Ledger) -> Iterator[Crew]:
    crew = Crew(far, ledger)
    yield crew
    crew.stop()


@pytest.fixture
def server(bench: Bench, ledger: Ledger) -> Server:
    """A server that only sends; it knows the tasks of the workers."""
    return server_with_tasks(bench.server(), ledger)


async def test_a_worker_killed_in_the_middle_of_a_thousand_tasks_loses_none(
    far: Stores, server: Server, crew: Crew, ledger: Ledger
) -> None:
    doomed, other = (crew.start(concurrency=10) for _ in range(2))
    results = await server.send_many([task(server, "work", 0.02) for _ in range(TASKS)])
    await until(partial(has_written_more, ledger, doomed.pid, 200))
    doomed.kill()
    killed_at = time.time()
    orphans = ledger.open_tasks(doomed.pid)
    await all_succeed(results)
    ends = ledger.counts("E")
    assert set(ends) == {each.task_id for each in results}
    twice = [task_id for task_id, count in ends.items() if count > 1]
    assert len(twice) <= 20 or far.kind in REPEATS, "only what had ended and was not settled may end twice"
    again = [line.at - killed_at for line in ledger.lines() if line.task_id in orphans and line.pid == other.pid]
    print(
        f"{far.kind}: {len(orphans)} orphans, recovered {max(again, default=0):.2f} s after the kill, "
        f"lease {far.lease} s, {len(twice)} ended twice"
    )
    await nothing_is_left(server)


async def test_workers_that_are_stopped_under_load_end_everything_once(
    far: Stores, server: Server, crew: Crew, ledger: Ledger
) -> None:
    results = await server.send_many([task(server, "work", 0.02) for _ in range(TASKS)])
    for ended in (200, 600):
        worker = crew.start(concurrency=10, grace=10.0)
        await until(partial(more_have_ended, ledger, ended))
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert ledger.open_tasks(worker.pid) == set()
    crew.start(concurrency=10)
    await all_succeed(results)
    ends = ledger.counts("E")
    assert set(ends) == {each.task_id for each in results}
    twice = sum(count > 1 for count in ends.values())
    assert twice == 0 or far.kind in REPEATS
    print(f"{far.kind}: {TASKS} tasks, two workers stopped, {twice} ended twice")
    await nothing_is_left(server)


async def test_a_task_three_times_as_long_as_the_lease_runs_once(each_broker: Stores, bench: Bench) -> None:
    server = bench.server()
    runs: list[int] = []

    @server.task
    async def long(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)
        await asyncio.sleep(3 * each_broker.lease)

    async with bench.working(server), bench.working(server):
        await (await server.send_task(long.s())).get(PATIENCE)
    assert runs == [1]


async def test_of_a_thousand_tasks_due_in_the_same_second_none_starts_early(each_broker: Stores, bench: Bench) -> None:
    server = bench.server()
    starts: list[float] = []

    @server.task
    async def note() -> None:
        starts.append(time.time())

    due = datetime.now(UTC) + timedelta(seconds=6)
    async with bench.working(server, concurrency=100):
        results = await server.send_many([note.with_(eta=due).s() for _ in range(TASKS)])
        await in_time(asyncio.gather(*(each.get(PATIENCE) for each in results)), patience=PATIENCE)
    late = sorted(at - due.timestamp() for at in starts)
    assert late[0] >= 0
    assert len(late) == TASKS or each_broker.kind in REPEATS
    spread = f"the first {late[0]:.3f} s, the last {late[-1]:.3f} s after their time"
    print(f"{each_broker.kind}: {TASKS} tasks due at once: {spread}")


@pytest.mark.parametrize("far", SOME_FAR, indirect=True)
async def test_a_message_that_kills_its_workers_ends_in_the_dead_letter_and_takes_no_other_along(
    far: Stores, server: Server, crew: Crew, ledger: Ledger
) -> None:
    limit = 3
    poison = await server.send_task(task(server, "poison"))
    others = await server.send_many([task(server, "work", 0.02) for _ in range(20)])
    settings = {"max_deliveries": limit}
    ended = False

    async def look_after_workers() -> None:
        while not ended:
            await crew.start(concurrency=5, worker=settings).ended()

    looking = asyncio.create_task(look_after_workers())
    with pytest.raises(TaskFailed, match=f"shown {limit} times without an end"):
        await poison.get(PATIENCE)
    await all_succeed(others)
    ended = True
    (entry,) = await eventually(server.dead)
    assert entry.reason == "max_deliveries"
    assert poison.task_id.encode() in entry.body
    assert ledger.counts("S")[poison.task_id] == limit
    for each in crew.running:
        each.signal(signal.SIGTERM)
    await looking


async def test_more_work_than_slots_waits_in_the_queue_and_all_of_it_is_done(far: Stores, bench: Bench) -> None:
    server = bench.server()
    running = most = 0

    @server.task
    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return number

    results = await server.send_many([work.s(number) for number in range(200)])
    async with Worker(server, concurrency=7, grace=5.0):
        assert [await each.get(PATIENCE) for each in results] == list(range(200))
    assert most <= 7
    await nothing_is_left(server)


async def nothing_is_left(server: Server) -> None:
    """Wait until the queue is empty, and see that so is its dead letter."""

    async def look() -> bool:
        (depth,) = [each for each in await server.queues() if each.queue == server.settings.default_queue]
        if depth.ready is None:  # the service does not tell
            assert await server.dead() == []
            return await server.purge() == 0
        assert depth.dead == 0
        return depth.pending == 0

    await eventually(look, patience=PATIENCE)
