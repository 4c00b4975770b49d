"""Replies lost on the way, at any kind of request: a sender and a worker behind a bad network do everything once.

The whole path, on one Redis: a task that is run again after an error, one whose success and one whose failure send a
callback, a delayed one, one that is held for long. A ledger beside the queue counts what was really run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from asyncqueue import Server, Settings, TaskContext, Unavailable, Worker
from asyncqueue.backends.redis import _SCRIPTS as BACKEND_SCRIPTS
from asyncqueue.brokers.redis import _SCRIPTS as BROKER_SCRIPTS
from asyncqueue.state import State
from tests.path.bench import PATIENCE, eventually
from tests.proxy import FaultProxy

T = TypeVar("T")

SCRIPTS = [*BROKER_SCRIPTS.values(), *BACKEND_SCRIPTS.values()]
NAMES = {sha: script.name for script in SCRIPTS for sha in (script.sha, script.flagged_sha)}
LAST = 30
"""Each of the first so many requests loses its reply once."""

SENT_BY = {
    "sender": ("INFO", "ZADD", "submit", "MGET", "CLIENT", "SUBSCRIBE"),
    "worker": ("INFO", "ZADD", "take", "settle", "BLMOVE", "tend", "promote", "extend", "put"),
}
LEDGER = Counter(
    ["flaky 1", "flaky 2", "parent", "after 7", "broken", "sorry ValueError: it broke", "later", "slow"],
)


@pytest.fixture
async def place(redis_url: str) -> str:
    """An empty database of a server that knows the scripts: what is asked for is what is executed."""
    async with Redis.from_url(redis_url) as client:
        for script in SCRIPTS:
            for text in (script.text, script.flagged_text):
                with suppress(ResponseError):  # the flag line is an error before 7.0
                    await client.script_load(text)
    return redis_url


@pytest.mark.parametrize("side", ["sender", "worker"])
async def test_whatever_kind_of_request_loses_its_reply_everything_is_done_once(side: str, place: str) -> None:
    cases = [(side, name, nth) for name in SENT_BY[side] for nth in (1, 2)]
    outcomes = await _each(place, cases)
    missed = {name for (_, name, nth), outcome in outcomes.items() if nth == 1 and not outcome.startswith("lost")}
    assert missed == set()


@pytest.mark.parametrize("side", ["sender", "worker"])
async def test_whichever_request_loses_its_reply_everything_is_done_once(side: str, place: str) -> None:
    outcomes = await _each(place, [(side, None, nth) for nth in range(1, LAST + 1)])
    assert sum(outcome.startswith("lost") for outcome in outcomes.values()) >= 10


Case = tuple[str, str | None, int]


async def _each(url: str, cases: Sequence[Case]) -> dict[Case, str]:
    """Go through each case, several at a time, each on a queue of its own; prints what came of each."""
    at_once = asyncio.Semaphore(8)

    async def one(number: int, case: Case) -> str:
        async with at_once:
            return await _go(url, f"q{number}", *case)

    outcomes = await asyncio.gather(*(one(number, case) for number, case in enumerate(cases)))
    for (side, name, nth), outcome in zip(cases, outcomes, strict=True):
        print(f"{side:8}{name or 'any':12}{nth:3}  {outcome}")
    return dict(zip(cases, outcomes, strict=True))


async def _go(url: str, queue: str, side: str, name: str | None, nth: int) -> str:
    """Send everything, run it, wait for it; one reply is lost. Says what became of it."""
    ledger: Counter[str] = Counter()
    told: list[str] = []
    async with _proxies(url) as proxies:
        servers = {each: _server(_through(proxy, url), queue, ledger) for each, proxy in proxies.items()}
        sender, worker = servers["sender"], servers["worker"]
        happened = proxies[side].lose_reply(name, nth)
        running: Worker | None = None

        async def start() -> Worker:
            return await Worker(worker, grace=5).__aenter__()

        try:
            async with asyncio.timeout(PATIENCE):
                ids = [await _at_last(told, _send(sender, signature)) for signature in _signatures(sender)]
                running = await _at_last(told, start)
                waits = [asyncio.create_task(_at_last(told, sender.result(each).wait)) for each in ids]
                states = await asyncio.gather(*waits)
            assert [state.state for state in states] == [*[State.SUCCESS] * 4, State.FAILURE]
            assert [state.results and state.results[0].value for state in states[:4]] == [2, 7, "late", "slowly"]

            async def nothing_is_left() -> bool:
                (depth,) = [each for each in await sender.queues() if each.queue == queue]
                return depth.pending == 0

            await eventually(lambda: _at_last(told, nothing_is_left))
            assert ledger == LEDGER, (side, name, nth)
            assert await _at_last(told, lambda: sender.dead(queue)) == []
        finally:
            if running is not None:
                await running.stop()
            for server in servers.values():
                await server.close()
    if not happened.is_set():
        return "never asked for"
    return f"lost; {'the caller was told: ' + ', '.join(told) if told else 'nobody noticed'}; all done once"


def _server(url: str, queue: str, ledger: Counter[str]) -> Server:
    settings = Settings.parse(
        {"default_queue": queue, "worker": {"lease": 5.0}, "redis": {"delayed_tasks_poll_period": 20}}
    )
    server = Server(url, settings=settings)

    @server.task(retries=1, backoff="fixed:0.01")
    async def flaky(context: TaskContext) -> int:
        ledger[f"flaky {context.attempt}"] += 1
        if context.attempt == 1:
            raise ValueError("not yet")
        return context.attempt

    @server.task
    async def parent() -> int:
        ledger["parent"] += 1
        return 7

    @server.task
    async def after(value: int) -> None:
        ledger[f"after {value}"] += 1

    @server.task
    async def broken() -> None:
        ledger["broken"] += 1
        raise ValueError("it broke")

    @server.task
    async def sorry(error: str) -> None:
        ledger[f"sorry {error}"] += 1

    @server.task
    async def later() -> str:
        ledger["later"] += 1
        return "late"

    @server.task
    async def slow() -> str:
        ledger["slow"] += 1
        await asyncio.sleep(2.2)  # longer than two beats of the lease's heart
        return "slowly"

    return server


def _signatures(server: Server) -> Iterator[Any]:
    """What is sent; each has its UUID, so that sending it again is safe."""
    now = server.clock.now_ns()
    for name in ("flaky", "parent", "later", "slow", "broken"):
        signature = server.signature(name)
        changes: dict[str, Any] = {"uuid": f"task_{server.settings.default_queue}_{name}"}
        match name:
            case "parent":
                changes["on_success"] = (server.signature("after", 0).with_changes(args=()),)
            case "broken":
                changes["on_error"] = (server.signature("sorry", "").with_changes(args=()),)
            case "later":
                changes["eta"] = now + 200_000_000
            case "flaky":
                changes["retry_count"] = 1
        yield signature.with_changes(**changes)


def _send(server: Server, signature: Any) -> Callable[[], Awaitable[str]]:
    async def send() -> str:
        return (await server.send_task(signature)).task_id

    return send


@asynccontextmanager
async def _proxies(url: str) -> AsyncIterator[dict[str, FaultProxy]]:
    """A way to the server for each side, which can be harmed."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 6379
    async with FaultProxy(host, port, scripts=NAMES) as sender, FaultProxy(host, port, scripts=NAMES) as worker:
        yield {"sender": sender, "worker": worker}


def _through(proxy: FaultProxy, url: str) -> str:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login[0]}{login[1]}127.0.0.1:{proxy.port}"))


async def _at_last(told: list[str], call: Callable[[], Awaitable[T]]) -> T:
    """What it returns, asked again by a caller who was told that the server is away."""
    while True:
        try:
            return await call()
        except Unavailable as exc:
            told.append(type(exc).__name__)
            await asyncio.sleep(0.02)
