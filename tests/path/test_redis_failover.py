"""The master of a Redis is killed under load, behind sentinels and in a cluster; its replica takes over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from asyncqueue.errors import Unavailable
from tests.conftest import StartServer
from tests.path.bench import Bench, Stores
from tests.path.ledger import Ledger
from tests.path.watching import all_succeed, more_have_ended, task, until
from tests.path.workers import Crew, server_with_tasks
from tests.services import RedisCluster, RedisSentinel, RedisServer

BEFORE = 300
"""How many tasks end before the master is killed, and how many more after it is back."""

pytestmark = pytest.mark.timeout(600)  # processes by the dozen, on a machine that may be busy


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


async def test_behind_sentinels_nothing_that_a_replica_has_is_lost_with_the_master(
    start_server: StartServer, ledger: Ledger
) -> None:
    group = await asyncio.to_thread(start_server, RedisSentinel(password="p@ss w:rd"))

    def new_master(old: RedisServer) -> bool:
        # a sentinel that has not heard of the new one sends clients to the old one, which comes back with nothing
        return group.known_master not in (old, None)

    await _survives(Stores("sentinel", group.url, group.url), ledger, lambda: group.master, new_master)


async def test_in_a_cluster_nothing_that_a_replica_has_is_lost_with_a_master(
    start_server: StartServer, ledger: Ledger
) -> None:
    cluster = await asyncio.to_thread(start_server, RedisCluster(replicas=True))

    def new_master(old: RedisServer) -> bool:
        return all("cluster_state:ok" in each.call("CLUSTER", "INFO") for each in cluster.running()) and (
            cluster.owner_of("machinery_tasks") is not old
        )

    stores = Stores("cluster", cluster.url, cluster.url)
    await _survives(stores, ledger, lambda: cluster.owner_of("machinery_tasks"), new_master)


async def _survives(
    stores: Stores,
    ledger: Ledger,
    master: Callable[[], RedisServer],
    has_new_master: Callable[[RedisServer], bool],
) -> None:
    """Send and work while the master is killed and comes back as a replica; whatever was acknowledged has ended."""
    redis = {"wait_for_replicas": 1}
    bench, crew = Bench(stores), Crew(stores, ledger, redis=redis)
    server = server_with_tasks(bench.server(redis=redis), ledger)
    sent: list[str] = []
    enough = asyncio.Event()

    async def send() -> None:
        while not enough.is_set():
            signature = task(server, "work", 0.01)
            try:
                await server.send_task(signature)
            except Unavailable:
                continue  # not acknowledged, so it may be lost; the next one is another
            sent.append(signature.uuid)

    try:
        for _ in range(2):
            crew.start(concurrency=10)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(send())
            await until(partial(more_have_ended, ledger, BEFORE))
            old = await asyncio.to_thread(master)
            await asyncio.to_thread(old.kill)
            killed_at = time.monotonic()
            await until(lambda: has_new_master(old))
            took = time.monotonic() - killed_at
            await asyncio.to_thread(old.restart)
            ended = len(ledger.counts("E"))
            await until(partial(more_have_ended, ledger, ended + BEFORE))
            enough.set()
        await until(lambda: set(sent) <= set(ledger.counts("E")))
        await all_succeed(server.result(task_id) for task_id in sent)
        twice = sum(count > 1 for count in ledger.counts("E").values())
        print(f"{stores.kind}: new master after {took:.1f} s; {len(sent)} acknowledged, 0 lost, {twice} ended twice")
    finally:
        crew.stop()
        await bench.close()
