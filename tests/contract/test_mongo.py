"""MongoDB keeps the contracts of backend and lock, through PyMongo and through Motor; and what is its own."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
from bson import Int64
from dns.resolver import NXDOMAIN, LifetimeTimeout
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo import errors as pymongo_errors
from pymongo.monitoring import CommandListener, CommandStartedEvent

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.mongo import MongoBackend
from asyncqueue.connections import mongo, mongo_groups
from asyncqueue.connections.mongo import MongoLink, parse_url
from asyncqueue.connections.mongo_documents import MAX_ENTRY
from asyncqueue.connections.mongo_stream import TOLD
from asyncqueue.errors import ArgumentError, BadMessage, ConfigError, Refused, Unavailable
from asyncqueue.locks.mongo import MongoLock
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.testing import (
    BackendContract,
    GroupContract,
    LockContract,
    ManualClock,
    MigratingContract,
    TurnLockContract,
    backend_contract,
    group_contract,
)
from asyncqueue.testing.suite import BackendSuite, Suite, state
from tests.conftest import StartServer
from tests.opened import opened
from tests.proxy import FaultProxy
from tests.services import MongoServer, free_port

NOW = datetime(2025, 1, 2, 3, 4, 5)

FAR = 4_000_000_000
"""Unix seconds, decades from now: what ends by the tests' own clock the server keeps for as long as they run."""


class OnMongo(Suite):
    """A database of each test's own."""

    driver = "mongo"

    @pytest.fixture
    def service(self, mongo_url: str) -> None:
        self.url = mongo_url

    @property
    def nowhere(self) -> str:
        return f"mongodb://127.0.0.1:{free_port()}/machinery?serverSelectionTimeoutMS=50"


class BackendOnMongo(OnMongo):
    entry_limit: int | None = MAX_ENTRY

    @pytest.fixture(autouse=True)
    def batches_are_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SecantusDB takes a millisecond for each document that it reads or writes."""
        monkeypatch.setattr(group_contract, "BATCH", 50)
        monkeypatch.setattr(group_contract, "MANY", 200)
        monkeypatch.setattr(backend_contract, "BATCH", 200)
        monkeypatch.setattr(backend_contract, "MANY", 400)

    @pytest.fixture
    def service(self, mongo_url: str) -> None:
        self.url = mongo_url
        self.clock = self.manual_clock = ManualClock(FAR)

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)

    async def make_backend(self, results_expire_in: float = 3600.0) -> MongoBackend:
        return MongoBackend(self.url, results_expire_in=results_expire_in, clock=self.clock)

    async def make_unreachable(self) -> MongoBackend:
        return MongoBackend(self.nowhere)


class TestBackend(BackendOnMongo, BackendContract):
    pass


class TestGroups(BackendOnMongo, GroupContract):
    pass


class TestMigrating(BackendOnMongo, MigratingContract):
    async def make_driver(self) -> MongoBackend:
        return await self.make_backend()


class LockOnMongo(OnMongo):
    async def make_lock(self) -> MongoLock:
        return MongoLock(self.url)

    async def make_unreachable(self) -> MongoLock:
        return MongoLock(self.nowhere)


class TestLock(LockOnMongo, LockContract):
    pass


class TestTurnLock(LockOnMongo, TurnLockContract):
    pass


class TestLockMigrating(LockOnMongo, MigratingContract):
    async def make_driver(self) -> MongoLock:
        return await self.make_lock()


class ThroughMotor(BackendOnMongo):
    """The same through clients of Motor, which somebody else has made."""

    driver = "motor"

    @pytest.fixture(autouse=True)
    def crowds_are_smaller(self, batches_are_smaller: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the server takes long for was tried through the other client."""
        for contract in (backend_contract, group_contract):
            monkeypatch.setattr(contract, "BATCH", 20)
            monkeypatch.setattr(contract, "MANY", 40)

    async def prepare(self) -> None:
        self.clients: list[AsyncIOMotorClient[Any]] = []
        await super().prepare()

    async def clean_up(self) -> None:
        await super().clean_up()
        for client in self.clients:
            client.close()

    def client(self, url: str) -> AsyncIOMotorClient[Any]:
        self.clients.append(AsyncIOMotorClient(url))
        return self.clients[-1]

    async def make_backend(self, results_expire_in: float = 3600.0) -> MongoBackend:
        client = self.client(self.url)
        return MongoBackend(self.url, results_expire_in=results_expire_in, client=client, clock=self.clock)

    async def make_unreachable(self) -> MongoBackend:
        return MongoBackend(self.nowhere, client=self.client(self.nowhere))


class TestMotorBackend(ThroughMotor, BackendContract):
    pass


@pytest.mark.long
class TestMotorGroups(ThroughMotor, GroupContract):
    async def test_a_lock_can_be_had_through_the_client_of_a_backend(self) -> None:
        lock = await self.opened(MongoLock(self.url, client=self.client(self.url)))
        token = await lock.acquire("key", 60.0)
        assert token
        assert await lock.acquire("key", 60.0) is None
        assert await lock.renew("key", token, 60.0)
        assert await lock.release("key", token)


class TestOfItsOwn(BackendOnMongo, BackendSuite):
    """What only MongoDB does."""

    backend: MongoBackend

    @pytest.fixture(autouse=True)
    def a_client_that_blocks(self, mongo_client: Any, service: None) -> None:
        self.database = mongo_client[urlsplit(self.url).path.strip("/")]

    # documents

    async def test_every_integer_is_an_int64_and_every_field_has_machinerys_name(self) -> None:
        created_at = 1_735_787_045_123_456_789
        results = (TaskResult(type="int8", value=1), TaskResult(type="[]int64", value=[1, -1]))
        await self.backend.put(
            [state("task_a", State.SUCCESS, name="add", results=results, created_at=created_at, attempt=2)]
        )
        await self.backend.put([state("task_b", State.FAILURE, error="why", name="add")])
        first, second = self.stored("tasks", "task_a", "task_b")
        assert first == {
            "_id": "task_a",
            "task_name": "add",
            "created_at": datetime(2025, 1, 2, 3, 4, 5, 123_000),
            "state": "SUCCESS",
            "results": [{"type": "int8", "value": 1}, {"type": "[]int64", "value": [1, -1]}],
            "delete_at": self.end,
            "aq_created_ns": 456_789,
            "aq_attempt": 2,
        }
        assert {type(each) for each in integers(first)} == {Int64}
        assert second == {
            "_id": "task_b",
            "task_name": "add",
            "state": "FAILURE",
            "error": "why",
            "delete_at": self.end,
        }

    @pytest.mark.parametrize(
        "result",
        [
            TaskResult(type="uint64", value=2**64 - 1),
            TaskResult(type="json", value={"big": -(2**70), "$set": 1, "a.b": {"": None}}),
            TaskResult(type="json", value=[1, 1.0, [[]], {}, "$state"]),
            TaskResult(type="json", value=json.loads("[" * 60 + "]" * 60)),
            TaskResult(type="string", value='{"looks": "like JSON"}'),
            TaskResult(type="string", value="zero \0 and $dollar"),
            TaskResult(type="[]byte", value="AH//"),
            TaskResult(type="float64", value=1e300),
            TaskResult(type="float64", value=-0.0),
            TaskResult(type="[]float32", value=[0.1, 3]),
            TaskResult(type="bool", value=True),
        ],
        ids=repr,
    )
    async def test_a_result_comes_back_with_its_type(self, result: TaskResult) -> None:
        await self.backend.put([state("task_a", State.SUCCESS, results=(result,))])
        (found,) = await self.backend.get(["task_a"])
        assert found is not None
        assert found.results is not None
        assert found.results[0] == result
        assert kinds(found.results[0].value) == kinds(result.value) or result.type == "[]float32"

    @pytest.mark.parametrize("value", [math.nan, [math.inf], "\ud800", {"a": object()}])
    async def test_a_result_that_json_cannot_say_is_named(self, value: object) -> None:
        with pytest.raises(ArgumentError, match=r"task add: .*result"):
            await self.backend.put([state("task_a", State.SUCCESS, name="add", results=(TaskResult(value=value),))])
        assert await self.states("task_a") == [None]

    async def test_a_failure_can_always_be_recorded(self) -> None:
        await self.backend.put([state("task_a", State.FAILURE, error="bad \ud800")])
        (found,) = await self.backend.get(["task_a"])
        assert found is not None
        assert found.error == "bad \ufffd"

    async def test_states_with_missing_fields_are_read(self) -> None:
        self.database.tasks.insert_many([{"_id": "task_a", "state": "STARTED"}, {"_id": "task_b", "lock": True}])
        assert list(await self.backend.get(["task_a", "task_b"])) == [state("task_a", State.STARTED), state("task_b")]

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            ({"state": "DONE"}, "state"),
            ({"state": "SUCCESS", "results": "no list"}, "results"),
            ({"state": "SUCCESS", "results": [1]}, "results"),
            ({"state": "FAILURE", "error": 5}, "error"),
            ({"state": "PENDING", "created_at": "yesterday"}, "created_at"),
        ],
    )
    async def test_a_state_that_cannot_be_read_is_named(self, document: dict[str, Any], field: str) -> None:
        self.database.tasks.insert_one({"_id": "task_a", **document})
        with pytest.raises(BadMessage, match=f"task task_a: {field}"):
            await self.backend.get(["task_a"])

    # beside Go

    async def test_a_group_that_go_opened_and_whose_members_go_ended_is_counted(self) -> None:
        members = [f"task_{number}" for number in range(5)]
        self.database.group_metas.insert_one(
            {"_id": "group_a", "task_uuids": members, "chord_triggered": False, "lock": False, "created_at": NOW}
        )
        await self.end_as_go_does(*members[:3])
        assert await self.backend.finish_members([Member("group_a", members[3])]) == [Progress.WAITING]
        assert await self.backend.add_members("group_a", ["task_5"])
        await self.end_as_go_does("task_4", "task_5")
        assert await self.backend.finish_members([Member("group_a", members[3])]) == [Progress.COMPLETE]
        assert await self.backend.claim_group("group_a", "me", 60.0) is GroupClaim.MINE
        (found,) = self.stored("group_metas", "group_a")
        assert (found["chord_triggered"], found["task_uuids"]) == (True, [*members, "task_5"])

    async def test_a_group_that_go_triggered_is_over(self) -> None:
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_a",))])
        self.database.group_metas.update_one(
            {"_id": "group_a", "chord_triggered": False}, {"$set": {"chord_triggered": True}}
        )
        assert await self.backend.finish_members([Member("group_a", "task_a")]) == [Progress.TRIGGERED]
        assert await self.backend.claim_group("group_a", "me", 60.0) is GroupClaim.SENT

    async def test_what_go_ends_wakes_who_waits(self) -> None:
        await self.backend.begin([state("task_a", name="add")])
        watching = asyncio.create_task(self.watch(self.backend, "task_a"))
        await self.until_told()
        await self.end_as_go_does("task_a")
        (found,) = await watching
        assert (found.state, found.task_name) == (State.SUCCESS, "add")

    # groups

    async def test_members_that_were_lost_are_counted_anew(self) -> None:
        members = ("task_a", "task_b", "task_c")
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=members)])
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert await self.backend.finish_members([Member("group_a", "task_a")]) == [Progress.WAITING]
        self.database.aq_members.delete_many({})
        assert await self.backend.finish_members([Member("group_a", "task_a")]) == [Progress.WAITING]
        await self.backend.put([state("task_b", State.SUCCESS), state("task_c", State.SUCCESS)])
        assert await self.backend.finish_members([Member("group_a", "task_c")]) == [Progress.COMPLETE]

    async def test_a_big_group_is_laid_out_and_kept_in_calls_of_a_bounded_size(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (mongo, mongo_groups):
            monkeypatch.setattr(module, "MANY", 4)
        heard = Commands()
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.url, event_listeners=[heard])
        backend = await self.opened(MongoBackend(self.url, client=client, clock=self.clock))
        members = tuple(f"task_{number}" for number in range(10))
        await backend.put([state(task_id, State.SUCCESS) for task_id in members])
        await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=members)])
        assert await backend.finish_members([Member("group_a", members[0])]) == [Progress.COMPLETE]
        assert heard.count("insert") == 3
        await self.advance(1800.0)
        await backend.touch([["group_a"]])
        ends = [each["delete_at"] for each in self.stored("tasks", *members)]
        assert ends == [datetime.fromtimestamp(FAR + 5400, UTC).replace(tzinfo=None)] * 10
        ends = [each["aq_delete_at"] for each in self.database.aq_members.find()]
        assert ends == [datetime.fromtimestamp(FAR + 9000, UTC).replace(tzinfo=None)] * 10
        await backend.close()
        await client.close()

    async def test_a_look_finds_those_that_are_left_by_an_index(self) -> None:
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_a", "task_b"))])
        await self.backend.finish_members([Member("group_a", "task_a")])
        (found,) = self.stored("group_metas", "group_a")
        plan = self.database.aq_members.find({"run": found["aq_run"], "left": True}).explain()
        assert "IXSCAN" in str(plan["queryPlanner"]["winningPlan"])

    # waiting

    async def test_any_number_of_waiters_have_one_stream_which_ends_with_the_last(self) -> None:
        heard = Commands()
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.url, event_listeners=[heard])
        backend = await self.opened(MongoBackend(self.url, client=client, clock=self.clock))
        await backend.begin([state(f"task_{number}") for number in range(100)])
        watching = [asyncio.create_task(self.watch(backend, f"task_{number}")) for number in range(100)]
        await self.until_told(backend)
        reads = heard.count("find")
        await self.backend.put([state(f"task_{number}", State.SUCCESS) for number in range(100)])
        await asyncio.gather(*watching)
        assert heard.count("aggregate") == 1
        assert heard.count("find") - reads <= 100
        stream = backend._stream
        assert stream is not None

        async def is_over() -> bool:
            return stream._task is None

        await self.until(is_over)
        assert heard.count("killCursors") == 1
        await backend.close()
        await client.close()

    async def test_a_stream_that_breaks_is_opened_again(self) -> None:
        heard = Commands()
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.url, event_listeners=[heard])
        backend = await self.opened(MongoBackend(self.url, client=client, clock=self.clock))
        await backend.begin([state("task_a"), state("task_b")])
        watching = asyncio.create_task(self.watch(backend, "task_a", "task_b"))
        await self.until_told(backend)
        self.database.copied.insert_many(self.database.tasks.find())
        self.database.copied.rename("tasks", dropTarget=True)  # which invalidates every stream of it
        await self.until(lambda: _holds(heard.count("aggregate") == 2))
        await self.until_told(backend)
        await self.end_as_go_does("task_a", "task_b")
        assert [each.state for each in await watching] == [State.SUCCESS] * 2
        await backend.close()
        await client.close()

    async def test_a_server_without_change_streams_is_asked_again_and_again(self, start_server: StartServer) -> None:
        url = start_server(MongoServer(lone=True)).url
        async with opened(MongoBackend(url), MongoBackend(url)) as (backend, other):
            await backend.begin([state("task_a")])
            watching = asyncio.create_task(self.watch(backend, "task_a"))
            await self.until(lambda: _holds(backend._stream is not None and not backend._stream._is_told))
            await other.put([state("task_a", State.SUCCESS)])
            (found,) = await watching
            assert found.state is State.SUCCESS

    # indexes

    async def test_indexes_are_made_once(self) -> None:
        heard = Commands()
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.url, event_listeners=[heard])
        for _ in range(2):
            await (await self.opened(MongoBackend(self.url, client=client))).close()
        assert heard.count("createIndexes") == 0
        assert heard.count("listIndexes") > 0
        await client.close()

    async def test_the_index_of_machinery_2_is_ours(self) -> None:
        self.database.tasks.create_index([("delete_at", 1)], background=True, expireAfterSeconds=0)
        assert set(self.database.tasks.index_information()) == {"_id_", "delete_at_1"}

    async def test_an_index_of_machinery_1_and_one_with_other_options_are_left_until_they_are_migrated(self) -> None:
        self.database.tasks.create_index([("state", 1)], expireAfterSeconds=3600)
        self.database.tasks.drop_index("delete_at_1")
        self.database.tasks.create_index([("delete_at", 1)], name="old", expireAfterSeconds=60)
        backend = await self.opened(await self.make_backend())
        assert set(self.database.tasks.index_information()) == {"_id_", "state_1", "old"}
        missing = await backend.missing()
        assert [line.partition(":")[0] for line in missing] == [
            "index delete_at_1 of collection tasks, which ends entries",
            "no index on state of collection tasks",
        ]
        assert list(await backend.migrate()) == list(missing)
        assert set(self.database.tasks.index_information()) == {"_id_", "delete_at_1"}

    @pytest.mark.long
    @pytest.mark.timeout(300)
    async def test_the_server_ends_entries_by_itself(self) -> None:
        self.patience = 200.0
        backend = await self.opened(MongoBackend(self.url, results_expire_in=1.0))
        await backend.put([state("task_a", State.SUCCESS)])
        await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_a", "task_b"))])
        await backend.finish_members([Member("group_a", "task_a")])
        await backend.put_plans([Plan("plan_a", (), ())])
        names = ("tasks", "group_metas", "aq_members", "aq_plans")
        await self.until(lambda: _holds(not any(self.database[name].count_documents({}) for name in names)))

    # the client

    async def test_a_client_of_ones_own_stays_open(self) -> None:
        client: AsyncMongoClient[Any] = AsyncMongoClient(self.url)
        await (await self.opened(MongoBackend(self.url, client=client))).close()
        assert (await client.admin.command("ping"))["ok"]
        await client.close()
        with pytest.raises(Unavailable, match="client"):
            await MongoBackend(self.url, client=client).open()

    @pytest.mark.parametrize("client", [pymongo.MongoClient, object], ids=["a client that blocks", "anything"])
    async def test_any_other_client_is_a_clear_error(self, client: Any) -> None:
        with pytest.raises(ConfigError, match=r"AsyncMongoClient or motor\.motor_asyncio\.AsyncIOMotorClient"):
            MongoBackend(self.url, client=client() if client is object else client(connect=False))

    async def test_a_server_that_was_away_serves_again(self) -> None:
        async with self.proxied() as (proxy, url), opened(MongoBackend(url), MongoLock(url)) as (backend, lock):
            await backend.begin([state("task_a")])
            await proxy.refuse()
            for verb in (backend.put([state("task_a", State.SUCCESS)]), lock.acquire("key", 600.0)):
                with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
                    await verb
            await proxy.accept()

            async def is_recorded() -> bool:
                with suppress(Unavailable):  # the client looks for its server twice a second
                    await backend.put([state("task_a", State.SUCCESS)])
                    return True
                return False

            await self.until(is_recorded)
            assert [each async for each in backend.watch(["task_a"])] == [("task_a", state("task_a", State.SUCCESS))]
            assert await lock.acquire("key", 600.0)

    @pytest.mark.parametrize("harm", ["refuse", "stall"])
    async def test_closing_does_not_wait_for_a_server_that_is_away(self, harm: str) -> None:
        async with self.proxied(60_000) as (proxy, url), opened(MongoBackend(url)) as backend:
            await backend.begin([state("task_a")])
            watching = asyncio.create_task(self.watch(backend, "task_a"))
            await self.until_told(backend)
            await proxy.refuse() if harm == "refuse" else proxy.stall()
            began = time.monotonic()
            await self.in_time(backend.close())
            print(f"closed within {time.monotonic() - began:.2f} s")
            with pytest.raises(Unavailable):
                await watching

    @pytest.mark.parametrize("kind", [AsyncMongoClient, AsyncIOMotorClient])
    async def test_a_client_of_another_event_loop_is_a_clear_error(self, kind: type[Any]) -> None:
        client = kind(self.url)
        await client.admin.command("ping")
        for driver in (MongoBackend(self.url, client=client), MongoLock(self.url, client=client)):
            with pytest.raises(ConfigError, match=r"MongoDB at .*: .* \(a client belongs to the event loop"):
                await self.in_another_thread(driver.open)
        if (closing := client.close()) is not None:
            await closing

    async def test_a_call_that_nobody_answers_ends(self) -> None:
        async with self.proxied() as (proxy, url), opened(MongoBackend(url, reply_timeout=0.5)) as backend:
            proxy.stall()
            with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
                await backend.get(["task_a"])
            proxy.resume()
            assert list(await backend.get(["task_a"])) == [None]

    # helpers

    @asynccontextmanager
    async def proxied(self, selection: int = 300) -> AsyncIterator[tuple[FaultProxy, str]]:
        """A way to the server that can be harmed, and its URL, with milliseconds to look for the server."""
        place = urlsplit(self.url)
        async with FaultProxy(place.hostname or "", place.port or 0, reads=False) as proxy:
            # its own name would lead past the proxy
            options = f"directConnection=true&serverSelectionTimeoutMS={selection}"
            yield proxy, f"mongodb://127.0.0.1:{proxy.port}{place.path}?{options}"

    @property
    def end(self) -> datetime:
        return datetime.fromtimestamp(FAR + 3600, UTC).replace(tzinfo=None)

    def stored(self, collection: str, *names: str) -> list[dict[str, Any]]:
        return [self.database[collection].find_one({"_id": name}) for name in names]

    async def end_as_go_does(self, *task_ids: str) -> None:
        results = [{"type": "int64", "value": Int64(3)}]
        for task_id in task_ids:
            ended = {"$set": {"state": "SUCCESS", "results": results, "delete_at": self.end}}
            await asyncio.to_thread(self.database.tasks.update_one, {"_id": task_id}, ended, upsert=True)

    async def watch(self, backend: MongoBackend, *task_ids: str) -> list[TaskState]:
        async def collect() -> list[TaskState]:
            return [each async for _, each in backend.watch(task_ids) if each is not None]

        return await self.in_time(collect())

    async def until_told(self, backend: MongoBackend | None = None) -> None:
        """Wait until the server tells of changes: from then on nothing but that wakes anybody for a while."""
        backend = backend or self.backend

        async def is_told() -> bool:
            waiters = backend._waiters
            return waiters is not None and waiters._longest == TOLD[1]

        await self.until(is_told)


class Commands(CommandListener):
    """Counts the commands that a client sends."""

    def __init__(self) -> None:
        self._names: Counter[str] = Counter()

    def count(self, name: str) -> int:
        return self._names[name]

    def started(self, event: CommandStartedEvent) -> None:
        self._names[event.command_name] += 1

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


async def _holds(condition: bool) -> bool:
    return condition


def integers(value: Any) -> Iterator[int]:
    match value:
        case dict():
            for each in value.values():
                yield from integers(each)
        case list():
            for each in value:
                yield from integers(each)
        case int():
            yield value


def caused_by(trouble: type[Exception]) -> Exception:
    """What PyMongo raises when a name cannot be resolved."""
    error = pymongo_errors.ConfigurationError("it cannot be resolved")
    error.__cause__ = trouble()
    return error


def kinds(value: Any) -> Any:
    """The types in a value."""
    match value:
        case dict():
            return {key: kinds(each) for key, each in value.items()}
        case list():
            return [kinds(each) for each in value]
    return type(value)


# urls


@pytest.mark.parametrize(
    ("url", "database", "shown"),
    [
        ("mongodb://host", "", "host/machinery"),
        ("mongodb://host/", "", "host/machinery"),
        ("mongodb://host:27018/tasks", "", "host:27018/tasks"),
        ("mongodb://host/tasks?replicaSet=rs0", "other", "host/other"),
        ("mongodb://user:secret@a:1,b:2/tasks?authSource=admin", "", "a:1,b:2/tasks"),
        ("mongodb+srv://user:secret@cluster.example.org/?retryWrites=true", "", "cluster.example.org/machinery"),
        ("mongodb://user:s%40cret@[::1]:27017/tasks", "", "[::1]:27017/tasks"),
    ],
)
def test_a_url_names_hosts_and_a_database(url: str, database: str, shown: str) -> None:
    backend = MongoBackend(url, database=database)
    assert backend.address == MongoLock(url, database=database).address == shown
    assert backend.database == shown.rpartition("/")[2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", "no URL of MongoDB"),
        ("mongodb://", "hostname"),
        ("mongodb://user:c4n4ry@host:99999", "Port"),
        ("mongodb://user:c4n4ry/x@host", "Port|cannot be read"),
        ("mongodb://user:c4n4ry@host/a b", "database"),
        ("mongodb://user:c4n4ry@host/?colour=red", "colour"),
        ("mongodb://user:c4n4ry@host/?connectTimeoutMS=soon", "connecttimeoutms"),
        ("mongodb+srv://user:c4n4ry@", "hostname|host"),
    ],
)
def test_a_url_that_cannot_work_is_a_clear_error(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        MongoBackend(url)
    assert "expected mongodb://" in str(raised.value)
    assert "c4n4ry" not in str(raised.value)


async def test_a_database_that_cannot_be_is_a_clear_error() -> None:
    for driver in (MongoBackend("mongodb://host", database="a b"), MongoLock("mongodb://host", database="a.b")):
        with pytest.raises(ConfigError, match=r"database names cannot contain"):
            await driver.open()


@pytest.mark.parametrize("name", ["tlsCAFile", "tlsCertificateKeyFile"])
def test_a_file_of_a_url_that_is_not_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match="/nowhere"):
        MongoBackend(f"mongodb://host/?tls=true&{name}=/nowhere")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pymongo_errors.OperationFailure("cursor id 5 not found", 43), Unavailable),
        (pymongo_errors.OperationFailure("operation was interrupted", 11601), Unavailable),
        (pymongo_errors.OperationFailure("request rate is large", 16500), Unavailable),
        (pymongo_errors.OperationFailure("not authorized", 13), Refused),
        (pymongo_errors.ConfigurationError("not supported"), ConfigError),
        (caused_by(LifetimeTimeout), Unavailable),
        (caused_by(NXDOMAIN), ConfigError),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each.__name__,
)
def test_what_passes_by_itself_is_unavailable(error: Exception, kind: type[Exception]) -> None:
    assert type(MongoLink(parse_url("mongodb://host")).meaning(error)) is kind


async def test_a_login_and_a_certificate_are_asked_for_and_no_password_is_shown(start_server: StartServer) -> None:
    server = start_server(MongoServer(durable=True, tls=True))
    with pymongo.MongoClient[dict[str, Any]](server.url) as client:
        client.admin.command("createUser", "worker", pwd="right", roles=["readWriteAnyDatabase"])
    server.auth = True
    await asyncio.to_thread(server.restart)
    place, _, options = server.url.removeprefix("mongodb://").partition("/?")

    def url(login: str, options: str = f"{options}&serverSelectionTimeoutMS=30000") -> str:
        return f"mongodb://{login}{place}/tasks?authSource=admin&{options}"

    async with opened(MongoBackend(url("worker:right@"), reply_timeout=30.0)) as backend:
        await backend.put([state("task_a", State.SUCCESS)])
        assert [each.state for each in await backend.get(["task_a"]) if each] == [State.SUCCESS]
    strange = url("worker:c4n4ry@")
    for driver in (MongoBackend(strange), MongoBackend(url("")), MongoLock(strange)):
        with pytest.raises(Refused, match=f"MongoDB at {place}/tasks") as raised:
            await driver.open()
        assert "c4n4ry" not in str(raised.value)
    # a client asks for the server until its time is over, whatever that said
    distrustful = MongoBackend(url("worker:right@", "tls=true&serverSelectionTimeoutMS=500"))
    async with asyncio.timeout(30.0):
        while True:
            with pytest.raises((Refused, Unavailable), match=f"MongoDB at {place}/tasks") as refused:
                await distrustful.open()
            if isinstance(refused.value, Refused):
                return
