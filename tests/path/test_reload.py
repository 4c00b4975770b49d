"""Live reload: what a file changes is taken up by servers and workers that run, when the documentation says so."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from redis.asyncio import Redis

from asyncqueue import Server, Worker
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.config import EFFECT, Reloader
from asyncqueue.errors import MessageTooLarge, Unavailable
from asyncqueue.signature import Arg, Signature
from tests.conftest import StartServer
from tests.path.bench import Stores, eventually, in_time
from tests.replies import execute
from tests.services import RedisServer

AT_ONCE_AND_TESTED = {
    "default_queue",
    "results_expire_in",
    "publish_timeout",
    "redis.normal_tasks_poll_period",
    "redis.delayed_tasks_poll_period",
    "worker.concurrency",
    "worker.prefetch",
    "worker.grace",
    "worker.max_deliveries",
    "worker.unknown_task_after",
    "limits.message_bytes",
    "limits.depth",
}


class File:
    """A configuration file, and what a server that was made of it does when it changes."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self._settings = settings
        self.says()
        self.server = Server.from_yaml(path, reload=True)
        self.reloader: Reloader = self.server.reloader(path)
        self.reloader._settle = 0.0  # nobody writes while we read

    def says(self, **changes: Any) -> None:
        """Write it anew; a section that is given replaces the whole section."""
        self._settings |= changes
        self.path.write_text(yaml.safe_dump(self._settings))

    async def changes(self, **changes: Any) -> frozenset[str]:
        """Write it anew, and let the server look."""
        self.says(**changes)
        return await self.reloader.look()


@asynccontextmanager
async def configured(tmp_path: Path, **settings: Any) -> AsyncIterator[File]:
    file = File(tmp_path / "asyncqueue.yaml", **settings)
    try:
        yield file
    finally:
        await file.server.close()


@pytest.fixture
async def file(shared_store: Stores, tmp_path: Path) -> AsyncIterator[File]:
    async with configured(tmp_path, broker=shared_store.broker) as file:
        yield file


def test_every_key_that_counts_at_once_is_tested_here() -> None:
    at_once = {path for path, effect in EFFECT.items() if effect == "at once"}
    assert at_once == AT_ONCE_AND_TESTED


# ------------------------------------------------------------------------------------------------- at once


async def test_the_next_send_goes_to_the_new_default_queue(file: File) -> None:
    server = file.server
    await server.send_task("before")
    assert await file.changes(default_queue="mails") == {"default_queue"}
    await server.send_task("after")
    assert [one.name for one in await server.get_pending_tasks("machinery_tasks")] == ["before"]
    assert [one.name for one in await server.get_pending_tasks("mails")] == ["after"]
    assert [one.name for one in await server.get_pending_tasks()] == ["after"]


async def test_the_next_result_is_kept_for_the_new_time(file: File) -> None:
    server = file.server
    before = await server.send_task("before")
    await file.changes(results_expire_in=0.2)
    after = await server.send_task("after")
    backend = (await server.connected()).backend
    assert backend is not None

    async def is_gone() -> bool:
        kept, gone = await backend.get([before.task_id, after.task_id])
        return kept is not None and gone is None

    await eventually(is_gone)


async def test_the_next_message_meets_the_new_limits(file: File) -> None:
    server = file.server
    deep = Signature(name="deep", args=(Arg(type="json", value=[[[[[[[[[[[]]]]]]]]]]]),))
    await server.send_task("big", "x" * 2_000)
    sent = await server.send_task(deep)
    await file.changes(limits={"message_bytes": 1_500, "depth": 8})
    with pytest.raises(MessageTooLarge, match="the limit is 1500"):
        await server.send_task("big", "x" * 2_000)
    async with Worker(server, grace=5):

        async def both_are_dead() -> list[str]:
            dead = [one.reason for one in await server.dead()]
            return dead if len(dead) == 2 else []

        assert len(await eventually(both_are_dead)) == 2
    assert (await sent.wait(5)).is_failure


async def test_the_next_try_to_send_ends_after_the_new_time(start_server: StartServer, tmp_path: Path) -> None:
    redis = start_server(RedisServer())
    async with configured(tmp_path, broker=redis.url, publish_timeout=3_600) as file:
        await file.server.send_task("one")
        redis.kill()
        await file.changes(publish_timeout=0.01)
        with pytest.raises(Unavailable, match="cannot be reached"):
            await in_time(file.server.send_task("two"))


async def test_a_running_worker_takes_more_or_fewer_tasks_at_once(file: File) -> None:
    server = file.server
    running, let_go = [0], asyncio.Event()

    @server.task
    async def hold() -> None:
        running[0] += 1
        await let_go.wait()
        running[0] -= 1

    def run(count: int) -> Any:
        async def look() -> bool:
            return running[0] == count

        return look

    await file.changes(worker={"concurrency": 1})
    async with Worker(server, grace=5) as worker:
        await server.send_many([hold.s() for _ in range(10)])
        await eventually(run(1))
        await file.changes(worker={"concurrency": 4})
        await eventually(run(4))
        assert worker.concurrency == 4
        await file.changes(worker={"concurrency": 0, "prefetch": 6})
        await eventually(run(6))
        await file.changes(worker={"concurrency": 0, "prefetch": 8})
        await eventually(run(8))
        let_go.set()
        await eventually(run(0))


async def test_a_worker_that_stops_gives_the_new_grace(file: File) -> None:
    server, begun = file.server, asyncio.Event()

    @server.task
    async def hold() -> None:
        begun.set()
        await asyncio.sleep(3_600)

    await file.changes(worker={"grace": 3_600})
    worker = Worker(server)
    await worker.start()
    await hold.send()
    await in_time(begun.wait())
    await file.changes(worker={"grace": 0})
    await in_time(worker.stop())


async def test_a_worker_buries_after_the_new_number_of_deliveries(shared_store: Stores, tmp_path: Path) -> None:
    async with configured(tmp_path, broker=shared_store.broker, worker={"lease": 0.5}) as file:
        server = file.server
        broker = (await server.connected()).broker
        sent = await server.send_task("crash")
        other = broker.twin()
        await other.open()
        assert await other.fetch("machinery_tasks", 1, 5)  # and its holder dies: nobody extends this
        await file.changes(worker={"lease": 0.5, "max_deliveries": 1})
        async with Worker(server, grace=5):

            async def is_dead() -> list[str]:
                return [one.reason for one in await server.dead()]

            assert await eventually(is_dead) == ["max_deliveries"]
        await other.close()
        assert (await sent.wait(5)).is_failure


async def test_a_worker_gives_up_unknown_tasks_after_the_new_time(file: File) -> None:
    server = file.server
    await server.send_task("nobody_knows_me")
    await file.changes(worker={"unknown_task_after": 0})
    async with Worker(server, grace=5):

        async def is_dead() -> list[str]:
            return [one.reason for one in await server.dead()]

        assert await eventually(is_dead) == ["unknown_task"]


async def test_a_redis_broker_polls_in_the_new_periods(redis_url: str, tmp_path: Path) -> None:
    slow = {"normal_tasks_poll_period": 900_000, "delayed_tasks_poll_period": 900_000}
    async with configured(tmp_path, broker=redis_url, redis=slow) as file:
        broker = (await file.server.connected()).broker
        assert isinstance(broker, RedisBroker)
        assert (broker.normal_poll, broker.delayed_poll) == (900.0, 900.0)
        await file.changes(redis={"normal_tasks_poll_period": 20, "delayed_tasks_poll_period": 30})
        assert (broker.normal_poll, broker.delayed_poll) == (0.02, 0.03)
        assert await broker.tend(["q"]) <= 0.03


# -------------------------------------------------------------------------------------------- at reconnect


async def test_a_new_password_counts_at_the_next_connection(start_server: StartServer, tmp_path: Path) -> None:
    redis = start_server(RedisServer())
    place = urlsplit(redis.url)

    def url(password: str) -> str:
        return f"redis://worker:{password}@{place.hostname}:{place.port}/0"

    async def let_in(password: str) -> None:
        async with Redis.from_url(redis.url) as admin:
            await execute(admin, "ACL", "SETUSER", "worker", "on", "resetpass", f">{password}", "~*", "&*", "+@all")
            await execute(admin, "CLIENT", "KILL", "USER", "worker")

    await let_in("first")
    async with configured(tmp_path, broker=url("first")) as file:
        server = file.server
        let_go = asyncio.Event()

        @server.task
        async def hold() -> str:
            await let_go.wait()
            return "done"

        async with Worker(server, grace=5):
            held = await hold.send()
            lock = await server.lock()
            assert lock is not None
            await let_in("second")
            assert await file.changes(broker=url("second")) == {"broker"}
            await in_time(server.send_task("hold"))
            assert await lock.acquire("lock", 60)
            twin = (await server.connected()).broker.twin()  # as the heartbeat uses
            await twin.open()
            await twin.close()
            let_go.set()
            assert await held.get(30) == "done"
            state = await held.state()
            assert state.attempt == 0
            assert "second" not in repr(server)


async def test_a_name_and_timeouts_count_at_the_next_connection(redis_url: str, tmp_path: Path) -> None:
    async with configured(tmp_path, broker=redis_url, redis={"client_name": "before"}) as file:
        connected = await file.server.connected()
        lock = await file.server.lock()
        broker, backend = connected.broker, connected.backend
        twin = broker.twin()
        redis = {"client_name": f"after-{os.getpid()}", "connect_timeout": 3, "read_timeout": 4}
        await file.changes(redis=redis)
        for driver in (broker, backend, lock, twin, broker.twin()):
            access = driver._link.access  # type: ignore[union-attr]  # all of them are Redis drivers
            assert (access.client_name, access.connect_timeout, access.reply_timeout) == (
                redis["client_name"],
                3.0,
                4.0,
            )
        await twin.open()
        async with Redis.from_url(redis_url) as admin:
            names = [each["name"] for each in await admin.client_list()]
        await twin.close()
        assert redis["client_name"] in names


async def test_certificates_count_at_the_next_connection(start_server: StartServer, tmp_path: Path) -> None:
    redis = start_server(RedisServer(tls=True))
    url = redis.tls_url.partition("?")[0]
    async with configured(tmp_path, broker=url, tls={"insecure_skip_verify": True}) as file:
        broker = (await file.server.connected()).broker
        await file.changes(tls={"ca_file": str(redis.ca_file)})
        twin = broker.twin()
        await twin.open()
        await twin.close()
        access = broker._link.access  # type: ignore[attr-defined]  # a Redis driver
        assert access.place.like.tls.check_hostname


async def test_a_certificate_that_cannot_be_read_changes_nothing_but_the_log(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redis = start_server(RedisServer(tls=True))
    url = redis.tls_url.partition("?")[0]
    async with configured(tmp_path, broker=url, tls={"ca_file": str(redis.ca_file)}) as file:
        await file.server.connected()
        await file.changes(tls={"ca_file": str(tmp_path / "nothing.pem")}, default_queue="mails")
        assert "not all of them could be taken up" in caplog.text
        await file.server.send_task("one")
        assert [one.name for one in await file.server.get_pending_tasks("mails")] == ["one"]


# --------------------------------------------------------------------------------------------------- never


async def test_another_place_needs_a_restart(file: File, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = file.server
    await server.send_task("before")
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    await file.changes(broker=elsewhere, worker={"lease": 7.0}, redis={"delayed_tasks_key": "other"})
    assert "a restart is needed for: broker, redis.delayed_tasks_key, worker.lease" in caplog.text
    assert server.settings.worker.lease == 15.0
    assert server.settings.redis.delayed_tasks_key == ""
    await server.send_task("after")
    await server.close()  # and opens again where it was
    assert [one.name for one in await server.get_pending_tasks()] == ["before", "after"]
    assert not (tmp_path / "elsewhere.db").exists()


async def test_a_broken_file_changes_nothing_and_is_one_error(file: File, caplog: pytest.LogCaptureFixture) -> None:
    server = file.server
    await file.changes(default_queue="mails")
    for broken in ("default_que: x\n", "broker: [\n", "", "worker: {concurrency: -1}\n"):
        caplog.clear()
        file.path.write_text(broken)
        for _ in range(3):
            assert await file.reloader.look() == frozenset()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert str(file.path) in caplog.text
        assert server.settings.default_queue == "mails"
    assert await file.changes(default_queue="bills") == {"default_queue"}
    assert server.settings.default_queue == "bills"
