"""What nobody holds any more is taken over after its time, by one: tokens abandoned, processes killed or halted."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from asyncqueue.config import Settings
from asyncqueue.locks.base import Lock
from asyncqueue.urls import lock_for
from tests.path import holders
from tests.path.bench import Place, in_time
from tests.path.forks import Fork, Forks
from tests.path.holders import LOST
from tests.path.ledger import Ledger
from tests.path.watching import until

TAKERS = 10
TOKEN_TTL = 0.05
HALTED = 2
LONG = 600.0
GRAIN = 0.002
"""How much earlier (seconds) is still on time: a service rounds moments to its own grain."""
SLOW = {"mongo": 200, "dynamodb": 1_000}
"""Where the test server is slow under contention, and how many tokens it can cope with within minutes."""


def on_every_lock(count: int, *, where_slow: int) -> pytest.MarkDecorator:
    """Run a test on each service that has locks with a ``count``; with fewer (0: not at all) where the test server is
    slow, but for the long run."""
    fast = [(kind, count) for kind in ("memory", "sqlite", "redis", "cluster")]
    slow = [(kind, where_slow) for kind in SLOW if where_slow]
    full = [(kind, min(count, most)) for kind, most in {"sentinel": count, **SLOW}.items()]
    marked = [pytest.param(*each, marks=pytest.mark.long) for each in full]
    return pytest.mark.parametrize(("each_lock", "count"), [*fast, *slow, *marked], indirect=["each_lock"])


@on_every_lock(1_000, where_slow=20)
async def test_of_ten_who_race_for_an_abandoned_key_one_gets_it_after_its_time(each_lock: Place, count: int) -> None:
    began = time.monotonic()
    async with locks_at(each_lock.url, 1 + TAKERS) as (abandoner, *takers):
        slots = asyncio.Semaphore(10 if each_lock.kind in SLOW else 100)

        async def abandon(key: str) -> float:
            async with slots:
                return await taken_over(key, abandoner, takers)

        late = sorted(await asyncio.gather(*(abandon(f"key-{number}") for number in range(count))))
    print(
        f"{each_lock.kind}: {count} abandoned tokens, {TAKERS} takers each, in {time.monotonic() - began:.1f} s; taken "
        f"{late[count // 2] * 1000:.0f} ms (median), {late[-1] * 1000:.0f} ms (at most) after the ttl of "
        f"{TOKEN_TTL * 1000:.0f} ms"
    )


async def taken_over(key: str, abandoner: Lock, takers: list[Lock]) -> float:
    """Abandon a key and let the takers race for it; how long (seconds) after its time it was taken."""
    began = time.monotonic()
    stale = await abandoner.acquire(key, TOKEN_TTL)
    assert stale
    held_until = time.monotonic() + TOKEN_TTL
    winners: list[tuple[Lock, str, float]] = []

    async def race(taker: Lock) -> None:
        await asyncio.sleep(TOKEN_TTL * random.uniform(0.6, 1.1))
        while True:
            token = await taker.acquire(key, LONG)
            if token:
                winners.append((taker, token, time.monotonic()))
            if winners:
                return
            await asyncio.sleep(TOKEN_TTL / 10)

    await in_time(asyncio.gather(*map(race, takers)))
    ((winner, token, taken_at),) = winners
    assert taken_at >= began + TOKEN_TTL - GRAIN, "it was taken before its time was over"
    assert not await abandoner.renew(key, stale, LONG)
    assert not await abandoner.release(key, stale)
    assert await winner.renew(key, token, LONG)
    return taken_at - held_until


@on_every_lock(20, where_slow=0)
async def test_what_killed_processes_held_is_taken_over_after_its_time_by_one(
    each_lock: Place, count: int, tmp_path: Path, forks: Forks
) -> None:
    if each_lock.kind == "memory":
        pytest.skip("another process cannot reach it")
    ledger, keys = Ledger(tmp_path / "ledger"), [f"key-{number}" for number in range(count + HALTED)]
    killed, halted = keys[:count], keys[count:]
    ttl, at_once = (3.0, 2) if each_lock.kind in SLOW else (1.0, len(keys))  # what takes long to start is not hurried
    async with locks_at(each_lock.url, 2) as takers:
        holding: dict[str, Fork] = {}
        for start in range(0, len(keys), at_once):
            for key in keys[start : start + at_once]:
                asked = {"url": each_lock.url, "key": key, "ttl": ttl, "ledger": str(ledger.folder)}
                holding[key] = forks.start(holders.run, asked | {"halts": key in halted})
            await until(partial(all_hold, ledger, holding))
        taking = {key: asyncio.create_task(taken_at(key, takers, ttl)) for key in keys}
        for key in random.sample(killed, len(killed)):
            holding[key].kill()
        taken = {key: await in_time(each) for key, each in taking.items()}
        for key in halted:
            holding[key].signal(signal.SIGCONT)
        assert [await holding[key].ended() for key in halted] == [LOST] * HALTED
        ends = Counter([await holding[key].ended() for key in killed])
    # a machine that is too busy for a holder may make it lose its key before it is killed
    assert ends.keys() <= {-signal.SIGKILL, LOST}
    assert ends[-signal.SIGKILL] > len(killed) / 2
    late = sorted(taken[key] - last_renewal(ledger, holding[key]) - ttl for key in keys)
    print(
        f"{each_lock.kind}: {ends[-signal.SIGKILL]} holders killed, {HALTED} halted; taken over "
        f"{late[0] * 1000:.0f} to {late[-1] * 1000:.0f} ms after the ttl of {ttl:g} s"
    )
    assert late[0] >= -GRAIN, "it was taken before its time was over"


def all_hold(ledger: Ledger, holding: dict[str, Fork]) -> bool:
    """Whether each of them has got its key; on a busy machine, one may have lost it before the last has."""
    assert {each.code for each in holding.values()} <= {None, LOST}, "a holder ended by itself"
    return ledger.counts("E").keys() == holding.keys()


async def taken_at(key: str, takers: list[Lock], ttl: float) -> float:
    """When (unix seconds) one of the takers got the key, which was held for ``ttl`` seconds; the others do not."""
    winners: list[float] = []

    async def take(taker: Lock) -> None:
        while True:
            if await taker.acquire(key, LONG):
                winners.append(time.time())
            if winners:
                return
            await asyncio.sleep(ttl / 20)

    await asyncio.gather(*map(take, takers))
    (at,) = winners
    return at


def last_renewal(ledger: Ledger, holder: Fork) -> float:
    """When (unix seconds) a holder asked for the last renewal that it was granted, whenever that was."""
    lines = [line for line in ledger.lines() if line.pid == holder.pid]
    last = max(place for place, line in enumerate(lines) if line.what == "E")
    assert lines[last - 1].what == "S"
    return lines[last - 1].at


@asynccontextmanager
async def locks_at(url: str, count: int) -> AsyncIterator[list[Lock]]:
    """Open locks on one place, each as another process would have it."""
    async with AsyncExitStack() as stack:
        locks = [lock_for(url, Settings()) for _ in range(count)]
        for lock in locks:
            await lock.open()
            stack.push_async_callback(lock.close)
        yield locks
