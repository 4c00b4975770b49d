"""The lock of periodic tasks on Redis is Machinery's: its names, values and times, and its schedulers respect ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asyncqueue import Refused, Server
from asyncqueue.clock import NANOSECONDS
from asyncqueue.config import Settings
from asyncqueue.engine.periodic import Rota
from asyncqueue.locks.base import Claim, LastTurn, Turn
from asyncqueue.locks.redis import RedisLock
from asyncqueue.testing import ManualClock
from asyncqueue.testing.clock import START
from tests.wire.goldens import GOLDEN

RECORDS = sorted(GOLDEN.glob("v*/redis/lock/*.json"))
PROGRAM = "machinery-peer"
NAME, SPEC, PERIOD = "nightly", "@every 2s", 2
KEY = f"machinery_lock_{PROGRAM}{NAME}{SPEC}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    """A client that knows nothing of us, as Go's is."""
    async with Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), protocol=2) as client:
        yield client


@pytest.fixture
async def lock(redis_url: str) -> AsyncIterator[RedisLock]:
    lock = RedisLock(redis_url)
    await lock.open()
    yield lock
    await lock.close()


def turn(number: int) -> Turn:
    due_at = START + number * PERIOD
    return Turn(KEY, due_at, due_at + PERIOD)


def ns(number: int, late: float = 0.001) -> int:
    """Unix nanoseconds: so many seconds after that turn was due."""
    return turn(number).due_at * NANOSECONDS + round(late * NANOSECONDS)


async def go_locks(redis: Any, number: int, now: int) -> bool:
    """Machinery's four attempts, one command after the other."""
    value = turn(number + 1).due_at * NANOSECONDS - 1
    ttl = max(1, (value + 1 - now) // 1_000_000)
    for _ in range(4):
        if await redis.set(KEY, value, px=ttl, nx=True):
            return True
        held = int(await redis.get(KEY) or 0)
        if held != 0 and now > held:
            old = int(await redis.getset(KEY, value) or 0)
            if old < now:
                await redis.expire(KEY, max(1, ttl // 1000))
                return True
    return False


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parts[-4])
async def test_key_value_and_time_to_live_are_those_that_machinery_wrote(
    record: Path, redis_url: str, redis: Any
) -> None:
    golden = json.loads(record.read_text())
    first = next(row[2:] for row in golden["monitor"]["rows"] if row[2] == "set")
    command, key, value, px, milliseconds, nx = first
    clock = ManualClock((int(value) + 1) / NANOSECONDS - PERIOD - 0.5)
    flags = golden["peer"]["flags"]
    server = Server(redis_url, settings=Settings.parse({"program": golden["peer"]["binary_name"]}), clock=clock)
    server.schedule(flags["spec"], flags["title"], "add")
    rota = Rota(server.schedules()[0], await server._office("owner"))
    await rota.tick()
    clock.advance(0.5 + 0.000_3)
    async with redis.monitor() as monitor:
        await rota.tick()
        async with asyncio.timeout(20):
            seen = await _until_set_of(monitor, key)
    assert [seen[0].lower(), *seen[1:3], seen[3].lower(), seen[4], seen[5].lower()] == first
    assert (command, px, nx) == ("set", "px", "nx")
    kept = golden["keys_during"][key]
    assert kept["type"] == "string"
    assert (await redis.get(key)).decode() == kept["value"] == value
    assert 0 < await redis.pttl(key) <= int(milliseconds)
    await server.close()


async def _until_set_of(monitor: Any, key: str) -> list[str]:
    while True:
        said = (await monitor.next_command())["command"]
        words: list[str] = said.split(" ", 1)
        if words[0].lower() == "set" and said.split(" ", 1)[1].startswith(key):
            return [words[0], key, *said.split(" ", 1)[1].removeprefix(f"{key} ").split(" ")]


async def test_what_go_locked_is_sent_by_go(lock: RedisLock, redis: Any) -> None:
    assert await go_locks(redis, 0, ns(0))
    assert await lock.claim(turn(0), "a", ns(0), 5.0) is Claim.OVER
    assert await lock.last_turn(KEY) == LastTurn(turn(0).due_at, None)
    assert list(await lock.owed(KEY)) == []


async def test_what_we_locked_go_leaves_alone(lock: RedisLock, redis: Any) -> None:
    assert await lock.claim(turn(0), "a", ns(0), 5.0) is Claim.MINE
    assert not await go_locks(redis, 0, ns(0, 0.002))
    assert not await go_locks(redis, 0, ns(0, 1.9))
    await lock.finish(turn(0), sent=True)
    assert not await go_locks(redis, 0, ns(0, 1.95))


async def test_a_lock_whose_moment_has_passed_is_taken_over_as_machinery_does(lock: RedisLock, redis: Any) -> None:
    await redis.set(KEY, ns(0, 0) - 1)
    assert await lock.claim(turn(0), "a", ns(0), 5.0) is Claim.MINE
    assert int(await redis.get(KEY)) == ns(1, 0) - 1
    assert await redis.ttl(KEY) == 1
    assert not await go_locks(redis, 0, ns(0, 0.002))
    await redis.set(KEY, ns(1, 0) - 1)
    assert await go_locks(redis, 1, ns(1))
    assert await lock.claim(turn(1), "a", ns(1), 5.0) is Claim.OVER


async def test_only_turns_of_ours_are_taken_over(lock: RedisLock, redis: Any) -> None:
    assert await lock.claim(turn(0), "dead", ns(0), 0.5) is Claim.MINE
    await redis.delete(KEY)  # its time is over
    assert await go_locks(redis, 1, ns(1))
    assert await lock.claim(turn(1), "b", ns(1), 0.5) is Claim.OVER
    assert await lock.claim(turn(0), "b", ns(1), 0.5) is Claim.MINE


async def test_what_go_did_while_we_were_away_was_not_missed(lock: RedisLock, redis: Any) -> None:
    await lock.claim(turn(0), "a", ns(0), 5.0)
    await lock.finish(turn(0), sent=True)
    await redis.delete(KEY)
    assert await go_locks(redis, 5, ns(5))
    for number in range(1, 6):
        assert await lock.claim(turn(number), "a", ns(5, 0.5), 5.0) is Claim.OVER


async def test_of_go_and_us_one_gets_each_turn(redis_url: str, redis: Any) -> None:
    async with AsyncExitStack() as stack:
        locks = [RedisLock(redis_url) for _ in range(3)]
        for each in locks:
            await each.open()
            stack.push_async_callback(each.close)
        for number in range(60):
            go = [go_locks(redis, number, ns(number)) for _ in range(2)]
            ours = [lock.claim(turn(number), f"owner-{i}", ns(number), 5.0) for i, lock in enumerate(locks)]
            results = await asyncio.gather(*([*go, *ours] if number % 2 else [*ours, *go]))
            assert len([result for result in results if result in (True, Claim.MINE)]) == 1, results
            if Claim.MINE in results:
                await locks[0].finish(turn(number), sent=True)


async def test_a_lock_that_holds_no_moment_is_refused_by_name(lock: RedisLock, redis: Any) -> None:
    await redis.set(KEY, "somebody")
    with pytest.raises(Refused, match="holds no moment"):
        await lock.claim(turn(0), "a", ns(0), 5.0)
