"""Redis between us and Machinery: what we send is what it sends, what it sends runs here, what we leave it can read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncqueue import (
    Arg,
    Float32,
    Float64,
    Int,
    Int8,
    Int16,
    Int32,
    Int64,
    Server,
    Settings,
    Signature,
    TaskContext,
    Uint,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Worker,
    arguments,
)
from asyncqueue.clock import Clock
from asyncqueue.rfc3339 import ZERO, render
from asyncqueue.testing import ManualClock
from asyncqueue.wire import decode_signature, decode_state
from tests.path.bench import eventually, in_time
from tests.replies import execute, raw
from tests.wire.goldens import GOLDEN, VERSIONS, commands

UUID = "task_00000000-0000-4000-8000-000000000001"
QUEUE = "machinery_tasks"

Scalars = tuple[
    bool, Int, Int8, Int16, Int32, Int64, Uint, Uint8, Uint16, Uint32, Uint64, Float32, Float64, str
]  # fmt: skip

# what varies is not compared: the words of an error, and when a callback or a retry was sent
AS_THEY_ARE = ("success", "no_result", "many_results", "scalars_high", "scalars_low")
BUT_FOR_ERRORS = ("retry_count", "failure", "failure_on_error", "success_callbacks", "too_few_args", "bad_arg_value")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """Another program's connection."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Callable[..., Server]]:
    """Makes servers with the tasks of the recordings, on an empty database."""
    servers: list[Server] = []

    def made(*, tasks: bool = True, **options: Any) -> Server:
        server = Server(redis_url, **options)
        if tasks:
            register(server)
        servers.append(server)
        return server

    yield made
    for server in servers:
        await server.close()


def register(server: Server) -> None:
    """The tasks of the recordings."""

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    @server.task
    async def multiply(*numbers: int) -> int:
        product = 1
        for number in numbers:
            product *= number
        return product

    @server.task
    async def noop() -> None:
        pass

    @server.task
    async def fail(message: str) -> None:
        raise ValueError(message)

    @server.task
    async def record_error(error: str, what: str) -> str:
        return f"recorded: {error}|{what}"

    @server.task
    async def split(text: str, separator: str) -> tuple[str, str, int]:
        before, _, after = text.partition(separator)
        return before, after, len(text)

    @server.task
    async def flaky(context: TaskContext, failures: int) -> int:
        if context.attempt <= failures:
            raise ValueError("not yet")
        return context.attempt

    @server.task
    async def echo_types(
        a: bool,
        b: Int,
        c: Int8,
        d: Int16,
        e: Int32,
        f: Int64,
        g: Uint,
        h: Uint8,
        i: Uint16,
        j: Uint32,
        k: Uint64,
        m: Float32,
        n: Float64,
        o: str,
    ) -> Scalars:
        return a, b, c, d, e, f, g, h, i, j, k, m, n, o


# ------------------------------------------------------------------------------------------------ what we send


def sends() -> list[Path]:
    """The recordings in which one task was sent and none ran."""
    paths = sorted(GOLDEN.glob("v*/redis/publish/*.json"))
    return [path for path in paths if json.loads(path.read_text())["peer"]["command"] == "send"]


def name_of(path: Path) -> str:
    return f"{path.parts[-4]}-{path.stem}"


@pytest.mark.parametrize("path", sends(), ids=name_of)
async def test_a_send_leaves_what_a_send_of_machinery_leaves(
    path: Path, make: Callable[..., Server], redis: Redis
) -> None:
    recording = json.loads(path.read_text())
    server = make(clock=clock_of(recording), tasks=False)  # some recordings do not fit their tasks
    given = decode_signature(json.dumps(recording["peer"]["flags"]["sig"]).encode())
    args = [each.model_copy(update={"value": _as_a_value(each)}) for each in given.args or ()]
    await server.send_task(given.with_changes(args=None if given.args is None else tuple(args)))
    await same_keys(recording, redis)


@pytest.mark.parametrize("version", VERSIONS)
async def test_our_own_tasks_and_options_leave_the_same(
    version: str, make: Callable[..., Server], redis: Redis
) -> None:
    def recorded(name: str) -> Any:
        return json.loads((GOLDEN / version / "redis" / "publish" / f"{name}.json").read_text())

    plain = recorded("add")
    server = make(clock=clock_of(plain), tasks=False)
    add, multiply, noop, record_error = (
        server.task(name=name)(function)
        for name, function in (("add", _add), ("multiply", _multiply), ("noop", _noop), ("record_error", _record_error))
    )
    await add.with_(task_id=UUID).send(1, 2)
    await same_keys(plain, redis)

    await redis.flushdb()
    with_callbacks = recorded("callbacks")
    others = [UUID[:-1] + digit for digit in "234"]
    await add.with_(
        task_id=UUID,
        on_success=(
            multiply.with_(task_id=others[0]).s(3),
            noop.with_(task_id=others[1], immutable=True).s(),
        ),
        on_error=record_error.with_(task_id=others[2]).s("extra"),
    ).send(1, 2)
    await same_messages(with_callbacks, redis)

    await redis.flushdb()
    eta = datetime(2100, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    await add.with_(task_id=UUID, eta=eta).send(1, 2)
    ((body, score),) = await scored(redis, "delayed_tasks")
    (theirs,) = recorded("eta_future")["keys"]["delayed_tasks"]["members"]
    assert body.decode() == theirs["member"].replace(".123456789Z", ".123456Z")
    assert score == pytest.approx(float(theirs["score"]), abs=1e4)

    await redis.flushdb()
    await add.with_(task_id=UUID, queue="other_queue").send(1, 2)
    await same_messages(recorded("routing_key"), redis)


async def same_keys(recording: Any, redis: Redis) -> None:
    """Every key is there with the same bytes and lifetime; what is there beside them is ours alone."""
    theirs = recording["keys"]
    assert await keys_but_ours(redis) == set(theirs)
    await same_messages(recording, redis)
    for key, held in theirs.items():
        # an entry of ours lives on from when its task is due; Machinery's may be gone by then
        early = 5 if "delayed_tasks" not in theirs else float("inf")
        assert -5 <= await redis.ttl(key) - held["ttl_seconds"] <= early
        if held["type"] == "string":
            assert raw(await redis.get(key)).decode() == held["value"]


async def keys_but_ours(redis: Redis) -> set[str]:
    keys = [raw(key).decode() for key in await redis.keys("*")]
    return {key for key in keys if "aq:" not in key}


async def scored(redis: Redis, key: str) -> list[tuple[bytes, float | None]]:
    """The members of a sorted set, and where they stand."""
    members = [raw(member) for member in await redis.zrange(key, 0, -1)]
    return [(member, await redis.zscore(key, member)) for member in members]


async def same_messages(recording: Any, redis: Redis) -> None:
    for key, held in recording["keys"].items():
        match held["type"]:
            case "list":
                expected = [in_utc(item) for item in held["items"]]
                assert [raw(item).decode() for item in await redis.lrange(key, 0, -1)] == expected
            case "zset":
                assert [(member.decode(), score) for member, score in await scored(redis, key)] == [
                    (each["member"], float(each["score"])) for each in held["members"]
                ]


def _as_a_value(arg: Arg) -> Any:
    """The recorded sender had turned what it was told into values of its language."""
    return arguments.encode(arg.type, arguments.decode(arg.type, arg.value))


def in_utc(text: str) -> str:
    """Go keeps the zone of an ETA. We keep the moment, and write it in UTC."""
    return text.replace('"2020-01-02T03:04:05+02:00"', '"2020-01-02T01:04:05Z"')


def clock_of(recording: Any) -> Clock:
    """A clock that shows when the recorded task was sent."""
    clock = ManualClock()
    clock._now = decode_state(recording["keys"][UUID]["value"].encode()).created_at  # exactly: a float is not enough
    return clock


async def _add(a: int, b: int) -> int:
    return a + b


async def _multiply(a: int, b: int = 1, c: int = 1) -> int:
    return a * b * c


async def _noop() -> None:
    pass


async def _record_error(error: str, what: str = "") -> None:
    pass


# ----------------------------------------------------------------------------------------- what they send


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*AS_THEY_ARE, *BUT_FOR_ERRORS])
async def test_what_machinery_sent_leaves_here_what_it_left_there(
    name: str, version: str, make: Callable[..., Server], redis: Redis
) -> None:
    path = GOLDEN / version / "redis" / "run" / f"{name}.json"
    recording = json.loads(path.read_text())
    sent = next(index for index, command in enumerate(commands(path)) if command[0] == "RPUSH")
    for command in commands(path)[: sent + 1]:
        if command[0] in ("SET", "RPUSH"):
            await execute(redis, *command)
    theirs = {key: held["value"] for key, held in recording["keys_after"].items() if held["type"] == "string"}
    async with Worker(make(), grace=5):
        ours = await eventually(lambda: states(redis, set(theirs)))
    for key, text in theirs.items():
        expected, found = json.loads(text), json.loads(ours[key])
        if name in BUT_FOR_ERRORS:
            assert bool(found["Error"]) is bool(expected["Error"])
            if key != UUID or name == "retry_count":
                assert found["CreatedAt"] != "0001-01-01T00:00:00Z"
                expected["CreatedAt"] = found["CreatedAt"]
                expected["Results"] = _reworded(expected["Results"])
                found["Results"] = _reworded(found["Results"])
            expected["Error"] = found["Error"]
            assert list(found) == list(expected)
            assert found == expected
        else:
            assert ours[key] == text
        assert 3590 <= await redis.ttl(key) <= 3600
    assert await redis.llen(QUEUE) == 0
    assert await keys_but_ours(redis) == set(theirs)


async def states(redis: Redis, keys: set[str]) -> dict[str, str]:
    """The entries, once all of them say how their task ended."""
    found = {key: raw(await redis.get(key) or b"").decode() for key in keys}
    done = all('"State":"SUCCESS"' in text or '"State":"FAILURE"' in text for text in found.values())
    return found if done else {}


def _reworded(results: Any) -> Any:
    """Results that repeat the words of an error."""
    return [{**each, "Value": str(each["Value"]).rpartition("|")[2]} for each in results] if results else results


async def test_a_hand_written_message_runs_without_anybody_having_said_pending(
    make: Callable[..., Server], redis: Redis
) -> None:
    await redis.rpush(
        QUEUE,
        b'{"UUID":"task_by_hand","Name":"add","Args":[{"Type":"int64","Value":1},{"Type":"int64","Value":2}]}',
    )
    async with Worker(make(), grace=5):
        found = await eventually(lambda: states(redis, {"task_by_hand"}))
    state = decode_state(found["task_by_hand"].encode())
    assert (state.task_name, state.created_at) == ("add", ZERO)
    assert '"Results":[{"Type":"int64","Value":3}]' in found["task_by_hand"]
    assert 3590 <= await redis.ttl("task_by_hand") <= 3600


@pytest.mark.parametrize("key", ["delayed_tasks", "later"])
async def test_a_task_that_machinery_delayed_runs_when_it_is_due(
    key: str, make: Callable[..., Server], redis: Redis
) -> None:
    settings = Settings.parse({"redis": {"delayed_tasks_poll_period": 20, "delayed_tasks_key": key}})
    ran_at: list[int] = []
    server = make(settings=settings)

    @server.task
    async def note() -> None:
        ran_at.append(time.time_ns())

    due = time.time_ns() + 300_000_000
    written = Signature(uuid="task_later", name="note", routing_key=QUEUE, eta=due)
    (theirs,) = [
        command for command in commands(GOLDEN / "v1" / "redis" / "run" / "delayed.json") if command[0] == "ZADD"
    ]
    assert theirs[:2] == ["ZADD", "delayed_tasks"]
    assert decode_signature(theirs[3].encode()).eta == int(theirs[2])
    await redis.zadd(key, {_as_go_writes(written, theirs[3]): due})
    async with Worker(server, grace=5):
        await eventually(lambda: states(redis, {"task_later"}))
    assert len(ran_at) == 1
    assert ran_at[0] >= due
    assert await redis.zcard(key) == 0


def _as_go_writes(signature: Signature, like: str) -> str:
    """A recorded message, with another name, UUID and ETA."""
    fields = json.loads(like) | {
        "UUID": signature.uuid,
        "Name": signature.name,
        "Args": [],
        "ETA": render(signature.eta or 0),
    }
    return json.dumps(fields, separators=(",", ":"))


async def test_who_waits_here_is_told_what_machinery_wrote(make: Callable[..., Server], redis: Redis) -> None:
    server = make()
    sent = await server.send_task("a_task_of_a_go_worker", 1)
    waiting = asyncio.create_task(sent.get())
    written = raw(await redis.get(sent.task_id))
    assert decode_state(written).task_name == "a_task_of_a_go_worker"
    written = written.replace(b'"PENDING"', b'"SUCCESS"')
    written = written.replace(b'"Results":null', b'"Results":[{"Type":"int64","Value":7}]')
    await redis.set(sent.task_id, written, ex=3600)
    assert await in_time(waiting) == 7
