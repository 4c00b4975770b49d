"""Tasks on RabbitMQ go through restarts, dead connections, a lost node and a consumer timeout; others' messages too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncqueue import Server, Worker
from asyncqueue.brokers.amqp import AmqpBroker
from asyncqueue.brokers.base import Message
from asyncqueue.config import Settings
from asyncqueue.connections.amqp_topology import Topology
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import PublishUnknown, Unavailable
from asyncqueue.state import State
from asyncqueue.wire import encode_signature
from tests.path.bench import PATIENCE, Bench, Stores, eventually, reaches
from tests.proxy import FaultProxy
from tests.services import RabbitServer

QUEUE = "machinery_tasks"
AHEAD = 20
TIMES = pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.long)])

pytestmark = pytest.mark.timeout(600)  # servers that restart, on a machine that may be busy


@pytest.fixture
def stores(amqp_url: str, redis_url: str) -> Stores:
    """RabbitMQ, with its results in Redis."""
    return Stores("rabbit+redis", amqp_url, redis_url)


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitServer]:
    """A server to be harmed. Each test leaves it running."""
    with RabbitServer(options={"collect_statistics_interval": "500"}) as rabbit:
        yield rabbit


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[RabbitServer, RabbitServer]]:
    """Two nodes in one cluster, to be harmed. Each test leaves both running."""
    often = {"collect_statistics_interval": "500"}  # its management API is as late as that
    with RabbitServer(options=often) as first, RabbitServer(options=often, joins=first) as second:
        yield first, second


class Stream:
    """Tasks sent one after the other while a worker runs them, through whatever happens to their broker."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.sent: list[str] = []
        self.runs = 0
        self._enough = False

        @server.task
        async def step(number: int) -> int:
            self.runs += 1
            await asyncio.sleep(seconds)
            return number

        self._step = step

    async def flow(self) -> None:
        """Send until it is enough, a few ahead of the worker. What was not acknowledged may be lost: the next one is
        another."""
        number = 0
        while not self._enough:
            number += 1
            try:
                result = await self.server.send_task(self._step.s(number))
            except (PublishUnknown, Unavailable):
                continue
            self.sent.append(result.task_id)
            if len(self.sent) > AHEAD:
                await self.all_end([self.sent[-AHEAD]])

    async def goes_on(self) -> None:
        """What is sent from now on comes to its end."""
        known = len(self.sent)

        async def is_more() -> bool:
            return len(self.sent) > known + 10

        await eventually(is_more)
        await self.all_end(self.sent[known:])

    async def all_end(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            await self.server.result(task_id).get(PATIENCE)

    async def ends(self) -> None:
        """Send no more; everything that was acknowledged comes to its end."""
        self._enough = True
        await self.all_end(self.sent)


@asynccontextmanager
async def flowing(broker: AmqpBroker, redis_url: str, seconds: float = 0.1) -> AsyncIterator[Stream]:
    """Tasks are sent and run on this broker meanwhile; at the end, none that was acknowledged is lost."""
    server = Server(broker=broker, backend=redis_url, settings=Settings.parse({"worker": {"max_deliveries": 100}}))
    stream = Stream(server, seconds)
    async with server, Worker(server, concurrency=5, grace=5.0):
        flow = asyncio.create_task(stream.flow())
        try:
            await stream.goes_on()
            yield stream
            await stream.ends()
        finally:
            flow.cancel()
            await asyncio.wait({flow})


async def consumers_are_attached(rabbit: RabbitServer, *, but_by: frozenset[str] = frozenset()) -> None:
    """The server itself says that somebody consumes, on a connection that is none of these."""

    async def look() -> bool:
        return bool(await consumers(rabbit) - but_by)

    await eventually(look)


async def consumers(rabbit: RabbitServer) -> set[str]:
    """The connections on which somebody consumes; none while the server cannot tell."""
    try:
        found = await asyncio.to_thread(rabbit.manage, "GET", "consumers")
    except OSError:
        return set()
    return {each["channel_details"]["connection_name"] for each in found if each["channel_details"]}


# ---------------------------------------------------------------------------------------------------- faults


@TIMES
async def test_consumers_are_attached_again_each_time_a_server_restarts_under_running_tasks(
    times: int, own_rabbit: RabbitServer, redis_url: str
) -> None:
    async with flowing(AmqpBroker(own_rabbit.url), redis_url) as stream:
        for turn in range(times):
            if turn % 2:
                await asyncio.to_thread(own_rabbit.kill)  # else it is stopped in good order
            await asyncio.to_thread(own_rabbit.restart)
            back_at = time.monotonic()
            await consumers_are_attached(own_rabbit)
            print(f"consumers attached {time.monotonic() - back_at:.2f} s after the server was back")
            await stream.goes_on()
    print(f"{times} restarts: {len(stream.sent)} tasks acknowledged, 0 lost, {stream.runs} runs")


@TIMES
async def test_consumers_are_attached_again_each_time_a_connection_is_half_open_under_running_tasks(
    times: int, own_rabbit: RabbitServer, redis_url: str
) -> None:
    async with FaultProxy("127.0.0.1", own_rabbit.port, reads=False) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
        async with flowing(AmqpBroker(url, heartbeat=3, reply_timeout=2.0), redis_url) as stream:
            for _ in range(times):
                stale = frozenset(await consumers(own_rabbit))
                assert proxy.strand() >= 2, "one connection to publish and one to consume"
                stranded_at = time.monotonic()
                await consumers_are_attached(own_rabbit, but_by=stale)
                print(f"consumers attached {time.monotonic() - stranded_at:.2f} s after the connections died")
                await stream.goes_on()
    print(f"{times} half-open: {len(stream.sent)} tasks acknowledged, 0 lost, {stream.runs} runs")


@pytest.mark.long
async def test_when_a_node_dies_the_work_goes_on_at_the_other(
    cluster: tuple[RabbitServer, RabbitServer], redis_url: str
) -> None:
    doomed, other = cluster
    home = AmqpBroker(other.url)  # a classic queue lives on the node where it was first declared
    await home.open()
    await home.fetch(QUEUE, 1, 0)
    await home.fetch(f"{QUEUE}.aq", 1, 0)
    await home.close()
    async with flowing(AmqpBroker(f"{doomed.url};{other.url}", separator=";"), redis_url) as stream:
        await asyncio.to_thread(doomed.kill)
        try:
            killed_at = time.monotonic()
            await consumers_are_attached(other)
            await stream.goes_on()
            print(f"goes on at the other node {time.monotonic() - killed_at:.2f} s after the first one was killed")
        finally:
            await asyncio.to_thread(doomed.restart)
    print(f"{len(stream.sent)} tasks acknowledged, 0 lost, {stream.runs} runs")


@pytest.mark.long
async def test_quorum_queues_of_a_node_that_dies_and_comes_back_have_what_they_confirmed(
    cluster: tuple[RabbitServer, RabbitServer], redis_url: str
) -> None:
    doomed, other = cluster
    await asyncio.to_thread(other.manage, "PUT", "vhosts/quorum")
    urls = ";".join(f"{node.url}quorum" for node in cluster)
    topology = Topology(queue_arguments={"x-queue-type": "quorum"})
    async with flowing(AmqpBroker(urls, separator=";", topology=topology, reply_timeout=3.0), redis_url) as stream:
        await asyncio.to_thread(doomed.kill)
        await asyncio.to_thread(doomed.restart)  # of two nodes, one is no majority
        await consumers_are_attached(other)
        await stream.goes_on()
    print(f"{len(stream.sent)} tasks acknowledged, 0 lost, {stream.runs} runs")


async def test_a_task_three_times_as_long_as_the_consumer_timeout_runs_once(
    own_rabbit: RabbitServer, redis_url: str
) -> None:
    server = Server(broker=AmqpBroker(own_rabbit.url, renew_after=1.0), backend=redis_url)
    runs: list[int] = []

    @server.task(queue="timed")
    async def long(ctx: TaskContext, seconds: float) -> float:
        runs.append(ctx.deliveries)
        await asyncio.sleep(seconds)
        return seconds

    async with deliveries_time_out(own_rabbit, 3.0), server, Worker(server, queues="timed", grace=5.0):
        results = [await server.send_task(long.s(seconds)) for seconds in (9.0, 0.1, 5.0)]
        assert [await each.get(PATIENCE) for each in results] == [9.0, 0.1, 5.0]
    assert runs == [1, 1, 1]


async def test_a_task_that_outlives_the_consumer_timeout_unrenewed_is_noticed_and_run_again(
    own_rabbit: RabbitServer, redis_url: str
) -> None:
    bench = Bench(Stores("rabbit+redis", own_rabbit.url, redis_url))
    server = bench.server(default_queue="timed")
    runs: list[int] = []
    gone: list[float] = []

    @server.task
    async def long(ctx: TaskContext) -> str:
        runs.append(ctx.deliveries)
        began_at = time.monotonic()
        try:
            if len(runs) == 1:
                await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            gone.append(time.monotonic() - began_at)
            raise
        return "done"

    @server.task
    async def short(number: int) -> int:
        return number

    async with deliveries_time_out(own_rabbit, 3.0):
        async with bench.working(server, concurrency=10):
            result = await server.send_task(long.s())
            assert await result.get(PATIENCE) == "done"
            assert await (await server.send_task(short.s(1))).get(PATIENCE) == 1
        await bench.close()
    assert runs == [1, 2]
    print(f"the first run was ended {gone[0]:.2f} s after its begin, with a consumer timeout of 3 s")


@asynccontextmanager
async def deliveries_time_out(rabbit: RabbitServer, seconds: float) -> AsyncIterator[None]:
    """The server closes channels that hold a message for longer than this; it looks twice a second."""
    await _set_timeout(rabbit, round(seconds * 1_000), 500)
    try:
        yield
    finally:
        await _set_timeout(rabbit, 1_800_000, 60_000)


async def _set_timeout(rabbit: RabbitServer, timeout: int, tick: int) -> None:
    words = f"application:set_env(rabbit, consumer_timeout, {timeout}),"
    words += f" application:set_env(rabbit, channel_tick_interval, {tick})."
    await asyncio.to_thread(rabbit.control, "eval", words)


# ---------------------------------------------------------------------------------------------------- others, delays


@pytest.mark.usefixtures("stores")
async def test_what_others_put_into_the_queue_is_run_or_buried_and_holds_nothing_up(
    bench: Bench, amqp_url: str
) -> None:
    server = bench.server()

    @server.task
    async def double(number: int) -> int:
        return 2 * number

    of_go = encode_signature(double.s(4).with_changes(uuid="task_go")).replace(
        f'"RoutingKey":"{QUEUE}"'.encode(), b'"RoutingKey":""'
    )
    bodies = [b"", b"not JSON", b"[]", b'{"foreign": "JSON"}', b"\x00\xff binary", b"x" * 1_000_001, of_go]
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
    for entry in dead:
        print(f"{entry.body[:20]!r}: {entry.reason}")
