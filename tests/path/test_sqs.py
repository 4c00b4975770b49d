"""Tasks on SQS, which delays a message for minutes at most, and counts every time that it was shown."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from asyncqueue import Server, Worker, chain, chord
from asyncqueue.brokers import sqs
from asyncqueue.brokers.base import Message
from asyncqueue.cli.main import main
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import TaskFailed
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State
from asyncqueue.wire import decode_signature, encode_signature
from tests.conftest import StartServer
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time, reaches
from tests.path.conftest import stores_of
from tests.path.ledger import Ledger
from tests.path.workers import Crew, server_with_tasks
from tests.services import ElasticServer
from tests.wire.goldens import GOLDEN, VERSIONS, texts

QUEUE = "machinery_tasks"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """SQS, with its results in Redis."""
    return stores_of("sqs+redis", request, tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def crew(stores: Stores, ledger: Ledger) -> Iterator[Crew]:
    crew = Crew(stores, ledger)
    yield crew
    crew.stop()


async def test_a_service_that_hangs_for_longer_than_a_lease_loses_nothing(
    start_server: StartServer, redis_url: str, ledger: Ledger
) -> None:
    elastic = start_server(ElasticServer())
    stores = Stores("sqs+redis", elastic.url, redis_url)
    bench, crew = Bench(stores), Crew(stores, ledger)
    server = server_with_tasks(bench.server(), ledger)
    try:
        for _ in range(2):
            crew.start(lease=3.0, concurrency=10)
        results = await server.send_many([work(0.05) for _ in range(400)])

        async def some_done() -> bool:
            return len(ledger.counts("E")) > 50

        await eventually(some_done)
        elastic.suspend()
        await asyncio.sleep(8.0)  # that is the fault itself: longer than a lease, and than the patience with a reply
        elastic.resume()
        await in_time(asyncio.gather(*(each.get(PATIENCE) for each in results)), patience=2 * PATIENCE)
        ends = ledger.counts("E")
        assert set(ends) == {each.task_id for each in results}
        print(f"sqs: hung for 8 s, 400 tasks, 0 lost, {sum(count > 1 for count in ends.values())} ended twice")
    finally:
        crew.stop()
        await bench.close()


async def test_a_service_killed_and_restarted_under_load_loses_nothing_and_has_its_workers_back(
    start_server: StartServer, redis_url: str, ledger: Ledger
) -> None:
    elastic = start_server(ElasticServer(durable=True))
    stores = Stores("sqs+redis", elastic.url, redis_url)
    bench, crew = Bench(stores), Crew(stores, ledger)
    server = server_with_tasks(bench.server(), ledger)
    try:
        workers = [crew.start(lease=3.0, concurrency=10) for _ in range(2)]
        results = await server.send_many([work(0.05) for _ in range(300)])

        async def both_at_work() -> bool:
            return {line.pid for line in ledger.lines() if line.what == "E"} == {each.pid for each in workers}

        await eventually(both_at_work)
        await asyncio.to_thread(elastic.kill)
        sending = asyncio.create_task(server.send_task(work(0.05)))  # it waits for the service
        await asyncio.to_thread(elastic.restart)
        results.append(await in_time(sending))
        await in_time(asyncio.gather(*(each.get(PATIENCE) for each in results)), patience=2 * PATIENCE)
        ends = ledger.counts("E")
        assert set(ends) == {each.task_id for each in results}
        assert all(each.code is None for each in workers)
        await nothing_is_left(server)
        twice = sum(count > 1 for count in ends.values())
        print(f"sqs: killed and restarted, {len(results)} tasks, 0 lost, {twice} ended twice")
    finally:
        crew.stop()
        await bench.close()


async def test_a_task_due_after_the_longest_delay_hops_and_still_counts_as_shown_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqs, "MAX_DELAY", 1.0)
    server = bench.server(worker={"max_deliveries": 2})
    runs: list[tuple[float, int]] = []

    @server.task
    async def late(ctx: TaskContext) -> None:
        runs.append((time.time(), ctx.deliveries))

    due = datetime.now(UTC) + timedelta(seconds=4.5)
    async with bench.working(server):
        await (await late.with_(eta=due).send()).get(PATIENCE)
    ((at, deliveries),) = runs
    assert at >= due.timestamp()
    assert deliveries == 1
    await nothing_is_left(server)


@pytest.mark.parametrize("concurrency", [0, 1])
async def test_any_concurrency_works(bench: Bench, concurrency: int) -> None:
    server = bench.server()

    @server.task
    async def double(n: int) -> int:
        return 2 * n

    async with bench.working(server, concurrency=concurrency):
        results = await server.send_many([double.s(n) for n in range(30)])
        assert [await each.get(PATIENCE) for each in results] == [2 * n for n in range(30)]


async def test_a_failure_that_is_not_to_be_deleted_lies_in_the_dead_letter_and_can_be_put_back(bench: Bench) -> None:
    server = bench.server()
    is_broken = True

    @server.task(stop_task_deletion_on_error=True)
    async def fails() -> str:
        if is_broken:
            raise OSError("broken")
        return "mended"

    async with bench.working(server):
        sent = await server.send_task(fails.s())
        with pytest.raises(TaskFailed, match="broken"):
            await sent.get(PATIENCE)

        async def dead() -> Any:
            return await server.dead()

        (entry,) = await eventually(dead)
        assert (entry.reason, entry.attempt) == ("failed", 1)
        is_broken = False
        assert await server.requeue_dead([entry.id]) == 1
        await reaches(server, sent.task_id, State.SUCCESS)


async def test_what_others_put_into_the_queue_is_run_or_buried_and_holds_nothing_up(bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def double(n: int) -> int:
        return 2 * n

    # Go's SQS broker encodes before it fills in the queue
    of_go = encode_signature(
        Signature(uuid="task_go", name="double", args=(Arg(type="int64", value=4),), headers=None)
    ).replace(f'"RoutingKey":"{QUEUE}"'.encode(), b'"RoutingKey":""')
    bodies = [b"not JSON", b"[]", b"\x00\xff binary", "\ufffe".encode(), b"x" * 1_000_001, of_go]
    broker = (await server.connected()).broker
    await broker.publish([Message(body, QUEUE, "x") for body in bodies])
    async with bench.working(server):
        await reaches(server, "task_go", State.SUCCESS)

        async def all_dead() -> Any:
            entries = await server.dead()
            return entries if len(entries) == len(bodies) - 1 else None

        dead = await eventually(all_dead)
    assert sorted(entry.body for entry in dead) == sorted(bodies[:-1])
    assert all(entry.reason and entry.error for entry in dead)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["add", "slices", "options", "callbacks"])
async def test_a_message_is_what_machinery_makes_of_it_and_has_nothing_beside_it(
    bench: Bench, sqs_client: Any, version: str, name: str
) -> None:
    (golden,) = texts(GOLDEN / version / "redis" / "publish" / f"{name}.json", '{"UUID"')
    server = bench.server()
    signature = decode_signature(golden.encode())
    await server.send_task(signature)
    url = sqs_client.get_queue_url(QueueName=signature.routing_key)["QueueUrl"]
    (message,) = sqs_client.receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]
    assert json.loads(message["Body"]) == json.loads(golden)
    assert list(json.loads(message["Body"])) == list(json.loads(golden))
    assert "MessageAttributes" not in message


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_machinery_puts_into_the_queue_runs(bench: Bench, sqs_client: Any, version: str) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    (golden,) = texts(GOLDEN / version / "redis" / "publish" / "add.json", '{"UUID"')
    # Go's SQS broker encodes before it fills in the queue
    body = golden.replace(f'"RoutingKey":"{QUEUE}"', '"RoutingKey":""')
    assert body != golden
    async with bench.working(server):
        url = sqs_client.create_queue(QueueName=QUEUE)["QueueUrl"]
        sqs_client.send_message(QueueUrl=url, MessageBody=body)
        await reaches(server, json.loads(golden)["UUID"], State.SUCCESS)


async def test_a_fifo_queue_runs_tasks_in_order_and_lets_their_retries_through(bench: Bench) -> None:
    queue = "orders.fifo"
    server = bench.server(default_queue=queue)
    ran: list[str] = []

    @server.task(retries=1, backoff="fixed:1")
    async def order(name: str, ctx: TaskContext) -> str:
        ran.append(f"{name}{ctx.attempt}")
        if name == "a" and ctx.attempt == 1:
            raise OSError("once")
        return name

    def of_group(name: str) -> Signature:
        return order.s(name).with_changes(broker_message_group_id="one")

    async with Worker(server, grace=5.0, concurrency=1):
        results = [await server.send_task(of_group(name)) for name in "abc"]
        assert [await each.get(PATIENCE) for each in results] == ["a", "b", "c"]
    assert [each for each in ran if each.endswith("1")] == ["a1", "b1", "c1"]
    assert "a2" in ran


async def test_workflows_keep_their_results_in_sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bench = Bench(stores_of("sqs+sqlite", request, tmp_path))
    server = bench.server()

    @server.task(retries=1, backoff="fixed:0")
    async def double(ctx: TaskContext, n: int) -> int:
        if ctx.attempt == 1:
            raise OSError("once")
        return 2 * n

    @server.task
    async def total(*numbers: int) -> int:
        return sum(numbers)

    async with bench.working(server):
        of_chord = await server.send_chord(chord([double.s(n) for n in range(12)], total.s()))
        assert await of_chord.get(PATIENCE) == 132
        of_chain = await server.send_chain(chain(double.s(1), double.s(), total.s(3)))
        assert await of_chain.get(PATIENCE) == 7
    await nothing_is_left(server)
    await bench.close()


async def test_a_task_costs_its_worker_little(bench: Bench) -> None:
    server = bench.server()
    count = 1_000

    @server.task
    async def nothing() -> None:
        pass

    results = await server.send_many([nothing.s() for _ in range(count)])
    before = time.process_time()
    async with bench.working(server, concurrency=32):
        await in_time(asyncio.gather(*(each.get(PATIENCE) for each in results)), patience=2 * PATIENCE)
    spent = time.process_time() - before
    print(f"sqs: {count} tasks that do nothing: {spent / count * 1e6:.0f} us of CPU each, waiting for them included")
    await nothing_is_left(server)


async def test_the_command_line_looks_into_sqs_and_says_what_cannot_be_seen(bench: Bench, stores: Stores) -> None:
    server = bench.server()

    @server.task(stop_task_deletion_on_error=True)
    async def divide(a: int, b: int) -> int:
        return a // b

    async def verb(*words: str, code: int = 0) -> str:
        address = (f"--broker={stores.broker}", f"--backend={stores.backend}")
        done = await asyncio.to_thread(CliRunner().invoke, main, [*words, *address])
        assert done.exit_code == code, done.output
        return done.output

    async def depth() -> dict[str, int]:
        (found,) = json.loads(await verb("queues", "--json"))
        return {key: value for key, value in found.items() if value}

    await server.send_task(divide.s(1, 0))
    assert await depth() == {"queue": QUEUE, "ready": 1}
    async with bench.working(server):
        await nothing_is_left(server, but_dead=1)
    assert await depth() == {"queue": QUEUE, "dead": 1}
    (entry,) = json.loads(await verb("dead", "list", "--json"))
    assert (entry["reason"], entry["attempt"]) == ("failed", 1)
    assert "ZeroDivisionError" in entry["error"]
    assert "1" in await verb("dead", "requeue", entry["id"])
    assert await depth() == {"queue": QUEUE, "ready": 1}
    assert "1 dropped" in await verb("purge", QUEUE, "--yes")
    for kind in ("pending", "delayed"):
        assert "SQS shows" in await verb("tasks", kind, code=1)
    checks = json.loads(await verb("doctor", "--json"))["checks"]
    assert {each["check"] for each in checks} >= {"connect", "broker", "publish and fetch"}
    assert not any(each["status"] == "fail" for each in checks)
    assert "test:test" not in json.dumps(checks)


def work(seconds: float) -> Signature:
    """A call of the crew's task that takes so long."""
    return Signature(name="work", args=(Arg(type="float64", value=seconds),))


async def nothing_is_left(server: Server, *, but_dead: int = 0) -> None:
    """Wait until SQS holds nothing at all, but for so many dead messages."""

    async def look() -> bool:
        depths = await server.queues()
        return sum(each.pending for each in depths) == 0 and sum(each.dead or 0 for each in depths) == but_dead

    await eventually(look)
