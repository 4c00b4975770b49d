"""What a Go worker writes wakes our waiters, on Redis in all its forms, and may say less than we would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from asyncqueue import Server, Settings, TaskFailed
from asyncqueue.connections import redis_tracking
from tests.conftest import StartServer
from tests.path.bench import eventually, in_time
from tests.path.conftest import SENTINEL
from tests.services import RedisCluster, RedisSentinel, RedisServer

NEVER = 1_000.0
PASSWORD = "p@ss w:rd"
PENDING = (
    '{"TaskUUID":"UUID","TaskName":"add","State":"PENDING","Results":null,"Error":"",'
    '"CreatedAt":"2025-01-02T03:04:05.123456789Z","TTL":0}'
)
ENDS: dict[str, tuple[str, Any]] = {
    "task_whole": (
        '{"TaskUUID":"UUID","TaskName":"add","State":"SUCCESS","Results":[{"Type":"int64","Value":9007199254740993}],'
        '"Error":"","CreatedAt":"2025-01-02T03:04:05.123456789Z","TTL":0}',
        9007199254740993,
    ),
    "task_without_results": ('{"TaskUUID":"UUID","State":"SUCCESS"}', None),
    "task_of_no_time": (
        '{"TaskUUID":"UUID","State":"SUCCESS","Results":null,"CreatedAt":"0001-01-01T00:00:00Z"}',
        None,
    ),
    "task_without_uuid": ('{"State":"SUCCESS","Results":[{"Type":"string","Value":"x"}]}', "x"),
    "task_failed": ('{"TaskUUID":"UUID","State":"FAILURE","Error":"boom"}', TaskFailed("boom")),
    "task_without_error": ('{"TaskUUID":"UUID","State":"FAILURE"}', TaskFailed("")),
}
"""What stands at the end, by UUID, and what whoever waits is given."""

Owner = Callable[[str], RedisServer]


def start(stores: str, start_server: StartServer) -> tuple[str, Sequence[RedisServer], Owner]:
    """A Redis of that form with a password: its URL, its masters, and which of them has a key."""
    match stores:
        case "sentinel":
            group = start_server(RedisSentinel(password=PASSWORD, sentinel_password="other"))
            return group.url, [group.master], lambda _: group.master
        case "cluster":
            cluster = start_server(RedisCluster(password=PASSWORD))
            return cluster.url, cluster.nodes, cluster.owner_of
        case _:
            server = start_server(RedisServer(password=PASSWORD))
            return server.url, [server], lambda _: server


@pytest.mark.parametrize("stores", ["redis", "cluster", SENTINEL])
async def test_what_go_writes_wakes_whoever_waits(
    stores: str, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tracking, "TOLD", (NEVER, NEVER))  # nobody looks without being told
    url, masters, owner_of = await asyncio.to_thread(start, stores, start_server)

    def write(task_id: str, text: str) -> None:
        said = owner_of(task_id).call("SET", task_id, text.replace('UUID":"UUID', f'UUID":"{task_id}'), "EX", "60")
        assert said.startswith("+OK"), said

    def are_tracked() -> bool:
        found = [re.search(r"^tracking_total_keys:(\d+)", each.call("INFO", "stats"), re.MULTILINE) for each in masters]
        return sum(int(each[1]) for each in found if each) == len(ENDS)

    settings = Settings.parse({"redis": {"sentinel_password": "other"}})
    async with Server(broker="memory://", backend=url, settings=settings) as server:
        for task_id in ENDS:
            await asyncio.to_thread(write, task_id, PENDING)
        waiting = {task_id: asyncio.create_task(server.result(task_id).get()) for task_id in ENDS}
        await eventually(lambda: asyncio.to_thread(are_tracked))
        for task_id, (end, _) in ENDS.items():
            await asyncio.to_thread(write, task_id, end)
        for task_id, (_, expected) in ENDS.items():
            if isinstance(expected, TaskFailed):
                with pytest.raises(TaskFailed) as raised:
                    await in_time(waiting[task_id])
                assert raised.value.error == expected.error
            else:
                assert await in_time(waiting[task_id]) == expected
