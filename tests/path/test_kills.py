"""Workers and servers are killed, stopped and suspended in the middle of their work; nothing is lost.

Each worker is a process of its own and writes a ledger that nothing here can take back.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import Server
from asyncqueue.errors import PublishUnknown, Unavailable
from asyncqueue.result import AsyncResult
from asyncqueue.state import State
from tests.path.bench import Bench, Stores, eventually
from tests.path.ledger import Ledger
from tests.path.watching import PATIENCE, all_succeed, has_written_more, more_have_ended, task, until
from tests.path.workers import CRASHED, Crew, server_with_tasks
from tests.services import RedisServer

TASKS = 2_000

pytestmark = pytest.mark.timeout(600)  # processes by the dozen, on a machine that may be busy


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def crew(bench: Bench, ledger: Ledger) -> Iterator[Crew]:
    crew = Crew(bench.stores, ledger)
    yield crew
    crew.stop()


@pytest.fixture
def server(bench: Bench, ledger: Ledger) -> Server:
    """A server that only sends; it knows the tasks of the workers."""
    return server_with_tasks(bench.server(), ledger)


async def test_a_worker_killed_in_the_middle_of_two_thousand_tasks_loses_none(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger
) -> None:
    lease = 2.0
    doomed, other = (crew.start(lease=lease, concurrency=10) for _ in range(2))
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
    if again:
        print(
            f"{shared_store.kind}: {len(orphans)} orphans, recovered {max(again):.2f} s after the kill, lease {lease} s"
        )
    assert await _rests(server)


async def test_a_killed_workers_task_is_recovered_on_an_idle_queue(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger, tmp_path: Path
) -> None:
    lease = 2.0
    release = tmp_path / "release"
    doomed = crew.start(lease=lease)
    result = await server.send_task(task(server, "wait_for_file", str(release)))
    await until(lambda: ledger.counts("S")[result.task_id] == 1)
    crew.start(lease=lease)
    doomed.kill()
    killed_at = time.time()
    release.touch()
    assert int(await result.get(PATIENCE)) != doomed.pid
    took = max(line.at for line in ledger.lines() if line.what == "S") - killed_at
    print(f"{shared_store.kind}: recovered {took:.2f} s after the kill, with a lease of {lease} s")


async def test_a_killed_redis_comes_back_and_nothing_is_lost(
    redis_server: RedisServer, tmp_path: Path, ledger: Ledger
) -> None:
    stores = Stores("redis", redis_server.url, redis_server.url)
    bench = Bench(stores)
    crew = Crew(stores, ledger)
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
            crew.start(lease=3.0, concurrency=10)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(send())
            for kills in range(1, 4):
                await until(partial(more_have_ended, ledger, 150 * kills))
                redis_server.kill()
                await asyncio.to_thread(redis_server.restart)
            await until(partial(more_have_ended, ledger, 600))
            enough.set()
        await until(lambda: set(sent) <= set(ledger.counts("E")))
        async with asyncio.timeout(PATIENCE):
            for task_id in sent:
                await _patiently(server.result(task_id).get)
        twice = sum(count > 1 for task_id, count in ledger.counts("E").items())
        print(f"{len(sent)} acknowledged, 0 lost, {twice} ended twice, 3 kills of redis-server")
    finally:
        crew.stop()
        await bench.close()


@pytest.mark.parametrize("cycles", [6, pytest.param(20, marks=pytest.mark.long)])
async def test_sigterm_under_load_again_and_again(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger, cycles: int
) -> None:
    grace = 1.0
    short: list[AsyncResult[Any]] = []
    enough = asyncio.Event()

    async def load() -> None:
        while not enough.is_set():
            if len(short) - len(ledger.counts("E")) < 200:
                short.extend(await server.send_many([task(server, "work", 0.02) for _ in range(200)]))
            await asyncio.sleep(0.05)

    long = await server.send_many([task(server, "work", 1.5) for _ in range(3)])
    feeding = asyncio.create_task(load())
    codes: list[int] = []
    worker, following = crew.start(concurrency=10, grace=grace), crew.start(concurrency=10, grace=grace)
    for _ in range(cycles):
        leaving, worker = worker, following
        await until(partial(has_written_more, ledger, leaving.pid, 20))
        following = crew.start(concurrency=10, grace=grace)
        leaving.signal(signal.SIGTERM)
        codes.append(await leaving.ended())
    enough.set()
    await feeding
    await all_succeed([*short, *long])
    assert codes == [0] * cycles
    starts, ends = ledger.counts("S"), ledger.counts("E")
    assert {each.task_id: (starts[each.task_id], ends[each.task_id]) for each in short} == {
        each.task_id: (1, 1) for each in short
    }
    assert [ends[each.task_id] for each in long] == [1, 1, 1]
    begun = [starts[each.task_id] for each in long]
    print(f"{shared_store.kind}: {len(short)} short tasks ran once each; long ones were begun {begun} times")


async def test_a_second_sigterm_stops_at_once_and_gives_the_task_back(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    worker = crew.start(grace=600)
    result = await server.send_task(task(server, "wait_for_file", str(release)))
    await until(lambda: ledger.counts("S")[result.task_id] == 1)
    worker.signal(signal.SIGTERM)
    await until(lambda: worker.code is None)
    worker.signal(signal.SIGINT)
    assert await worker.ended() == 0
    assert [each.uuid for each in await server.get_pending_tasks()] == [result.task_id]
    release.touch()
    crew.start()
    await result.get(PATIENCE)


async def test_poison_ends_in_the_dead_letter_alone(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger
) -> None:
    limit = 4
    callback = task(server, "note")
    poison = task(server, "poison", on_error=(callback,))
    innocents = [task(server, "work", 0.02) for _ in range(60)]
    results = await server.send_many([*innocents[:30], poison, *innocents[30:]])
    done = asyncio.Event()

    async def supervise() -> None:
        """Start a worker again whenever it died."""
        while not done.is_set():
            worker = crew.start(lease=1.0, concurrency=10, worker={"max_deliveries": limit})
            while worker.code is None and not done.is_set():
                await asyncio.sleep(0.05)

    supervising = asyncio.create_task(supervise())
    try:
        state = await server.result(poison.uuid).wait(PATIENCE)
        assert state.state is State.FAILURE
        assert f"limit {limit}" in state.error
        await all_succeed([each for each in results if each.task_id != poison.uuid])
        await until(lambda: ledger.counts("S")[callback.uuid] == 1)
    finally:
        done.set()
        await supervising
    (dead,) = await server.dead()
    assert dead.reason == "max_deliveries"
    assert ledger.counts("S")[poison.uuid] == limit
    assert set(ledger.counts("E")) >= {each.uuid for each in innocents}


async def test_a_message_put_back_from_the_dead_letter_runs_though_its_worker_is_killed(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    doomed = crew.start(lease=1.0)
    result = await server.send_task(task(server, "fail_without_file", str(file)))
    assert (await result.wait(PATIENCE)).state is State.FAILURE
    await eventually(server.dead, patience=PATIENCE)
    file.write_text("hang")
    assert await server.requeue_dead() == 1
    await until(lambda: ledger.counts("S")[result.task_id] == 2)
    doomed.kill()
    file.write_text("go on")
    crew.start(lease=1.0)
    assert await server.result(result.task_id).get(PATIENCE) == "done"
    assert ledger.counts("S")[result.task_id] == 3
    assert await server.dead() == []


async def test_a_suspended_worker_changes_nothing_when_it_wakes(
    shared_store: Stores, bench: Bench, server: Server, crew: Crew, ledger: Ledger, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    callback = task(server, "note")
    first = crew.start(lease=1.0)
    result = await server.send_task(task(server, "wait_for_file", str(release), on_success=(callback,)))
    await until(lambda: ledger.counts("S")[result.task_id] == 1)
    first.signal(signal.SIGSTOP)
    second = crew.start(lease=1.0)
    await until(lambda: ledger.counts("S")[result.task_id] == 2)
    release.touch()
    assert await result.get(PATIENCE) == str(second.pid)
    await until(lambda: ledger.counts("S")[callback.uuid] == 1)
    first.signal(signal.SIGCONT)
    more = await server.send_many([task(server, "work", 0.01) for _ in range(40)])
    await all_succeed(more)
    first.signal(signal.SIGTERM)
    second.signal(signal.SIGTERM)
    assert [await first.ended(), await second.ended()] == [0, 0]
    assert await server.result(result.task_id).get(PATIENCE) == str(second.pid)
    assert ledger.counts("S")[callback.uuid] == 1
    assert await _rests(server)


@pytest.mark.parametrize("kind", ["redis+sqlite", pytest.param("sqlite+redis", marks=pytest.mark.long)])
async def test_an_ordered_pair_survives_a_crash_before_every_call(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    redis_url = request.getfixturevalue("redis_url")
    at_once = asyncio.Semaphore(3)
    outcomes: dict[int, str] = {}

    async def crash_at(n: int) -> bool:
        async with at_once:
            folder = tmp_path / str(n)
            folder.mkdir()
            sqlite = f"sqlite:///{folder / 'tasks.db'}"
            broker, backend = (redis_url, sqlite) if kind == "redis+sqlite" else (sqlite, redis_url)
            outcomes[n] = await _crash(Stores(kind, broker, backend), n, folder)
            return outcomes[n] != "no crash"

    last = 0
    while all(await asyncio.gather(*(crash_at(last + n) for n in range(1, 4)))):
        last += 3
        assert last < 60
    print(f"{kind}: " + ", ".join(f"{n}: {outcomes[n]}" for n in sorted(outcomes)))
    assert {"run again", "not run again"} <= set(outcomes.values())


async def _crash(stores: Stores, n: int, folder: Path) -> str:
    """One task with a retry and a callback; its worker dies before its n-th call; another one finishes the work."""
    ledger = Ledger(folder / "ledger")
    bench, crew = Bench(stores), Crew(stores, ledger)
    server = server_with_tasks(bench.server(), ledger)
    queue = f"crash-{n}"  # one Redis serves them all
    options: dict[str, Any] = {"queues": [queue], "concurrency": 2}
    try:
        callback = task(server, "note", routing_key=queue)
        signature = task(server, "fail_first", routing_key=queue, retry_count=1, on_success=(callback,))
        result = await server.send_task(signature)
        doomed = crew.start(crash_at=n, lease=2.0, **options)
        while doomed.code is None and not ledger.counts("E")[callback.uuid]:
            await asyncio.sleep(0.05)
        code = doomed.code
        known = await result.state()
        before = ledger.counts("S")
        if code is None:  # the callback ran before the n-th call: whether that still comes is of no importance
            doomed.signal(signal.SIGTERM)
            code = await doomed.ended()
        crew.start(lease=2.0, **options)
        assert await result.get(PATIENCE) == 2
        await server.result(callback.uuid).get(PATIENCE)

        async def at_rest() -> bool:
            return await _rests(server, queue)

        await eventually(at_rest, patience=PATIENCE)
        starts = ledger.counts("S")
        assert starts[callback.uuid] <= 1 + before[callback.uuid], "a callback that was not killed ran twice"
        if known.state is State.SUCCESS:
            second = f"{signature.uuid}#2"
            assert starts[second] == before[second], "it ran again though its end was recorded"
        if code != CRASHED:
            assert (starts[f"{signature.uuid}#1"], starts[f"{signature.uuid}#2"], starts[callback.uuid]) == (1, 1, 1)
            return "no crash"
        return "run again" if max(starts[f"{signature.uuid}#{k}"] for k in (1, 2)) > 1 else "not run again"
    finally:
        crew.stop()
        await bench.close()


async def _rests(server: Server, *queues: str) -> bool:
    """Whether nothing is queued, held or dead."""
    depths = [each for each in await server.queues() if not queues or each.queue in queues]
    return not any(each.pending + (each.dead or 0) for each in depths)


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask again while the store is away."""
    while True:
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(0.1)


def test_a_ledger_tells_what_was_begun_and_not_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.note("S", "a")
    ledger.note("S", "b")
    ledger.note("E", "a")
    (line, *_) = list(ledger.lines())
    assert ledger.open_tasks(line.pid) == {"b"}
    assert ledger.counts("S") == Counter({"a": 1, "b": 1})
