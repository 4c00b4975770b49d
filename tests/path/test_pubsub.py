"""Tasks on Pub/Sub while it does not answer."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from asyncqueue import Server, Worker
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK
from asyncqueue.config import Settings
from asyncqueue.signature import Arg, Signature
from asyncqueue.wire import decode_signature
from tests.conftest import StartServer
from tests.path.bench import PATIENCE, Bench, Stores, eventually, in_time
from tests.path.ledger import Ledger
from tests.path.workers import Crew, server_with_tasks
from tests.services import PubSubServer

pytestmark = pytest.mark.timeout(300)


async def test_what_is_delayed_for_workers_in_go_is_delivered_by_ours(pubsub_url: str, redis_url: str) -> None:
    """They cannot: whoever works on a queue here looks after those of Go's too that are named."""
    settings = Settings.parse({"default_queue": "python", "go_compat": True, "go_queues": ["orders"]})
    async with Server(broker=pubsub_url, backend=redis_url, settings=settings) as server, Worker(server):
        broker = (await server.connected()).broker
        await broker.fetch("orders", 1, 0.0)  # there is a subscription
        due = SYSTEM_CLOCK.now_ns() + NANOSECONDS
        sent = await server.send_task(Signature(name="ship", routing_key="orders", eta=due))
        (delivery,) = await eventually(lambda: broker.fetch("orders", 1, 5.0))
        assert decode_signature(delivery.body).uuid == sent.id
        assert SYSTEM_CLOCK.now_ns() >= due
        await broker.ack([delivery])


async def test_a_service_that_hangs_for_longer_than_a_lease_loses_nothing(
    start_server: StartServer, redis_url: str, tmp_path: Path
) -> None:
    service = start_server(PubSubServer())
    stores = Stores(
        "pubsub+redis", f"gcppubsub://hung-{secrets.token_hex(4)}/workers?emulator={service.host}", redis_url
    )
    ledger = Ledger(tmp_path / "ledger")
    bench, crew = Bench(stores), Crew(stores, ledger)
    server = server_with_tasks(bench.server(), ledger)
    try:
        for _ in range(2):
            crew.start(lease=3.0, concurrency=10)
        work = Signature(name="work", args=(Arg(type="float64", value=0.05),))
        results = await server.send_many([work for _ in range(400)])

        async def some_done() -> bool:
            return len(ledger.counts("E")) > 50

        await eventually(some_done)
        service.suspend()
        await asyncio.sleep(7.0)  # that is the fault itself: longer than a lease, and than the patience with a reply
        service.resume()
        await in_time(asyncio.gather(*(each.get(PATIENCE) for each in results)), patience=2 * PATIENCE)
        ends = ledger.counts("E")
        assert set(ends) == {each.task_id for each in results}
        print(f"pubsub: hung for 7 s, 400 tasks, 0 lost, {sum(count > 1 for count in ends.values())} ended twice")
    finally:
        crew.stop()
        await bench.close()
