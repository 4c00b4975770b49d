"""Redis behind a bad network: no reply, a late reply, an outage, a stopped worker. Nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.redis import _SCRIPTS as BACKEND_SCRIPTS
from asyncqueue.backends.redis import RedisBackend
from asyncqueue.brokers.base import Ack, Bury, Delivery, GroupEnd, Message, Nack, Settled, Unsettled
from asyncqueue.brokers.redis import _SCRIPTS as BROKER_SCRIPTS
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.errors import Unavailable
from asyncqueue.locks.redis import _SCRIPTS as LOCK_SCRIPTS
from asyncqueue.locks.redis import RedisLock
from asyncqueue.rfc3339 import ZERO
from asyncqueue.signature import Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.wire import decode_signature, encode_signature
from tests.conftest import StartServer
from tests.opened import opened
from tests.proxy import FaultProxy
from tests.replies import raw
from tests.services import RedisServer

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
LEASE = 1.5
KEPT = 3600.0
SENT_AT = 1_735_787_045_123_456_789
SCRIPTS = [*BROKER_SCRIPTS.values(), *BACKEND_SCRIPTS.values()]
NAMES = {sha: script.name for script in SCRIPTS for sha in (script.sha, script.flagged_sha)}
NAMES |= {sha: f"lock {script.name}" for script in LOCK_SCRIPTS.values() for sha in (script.sha, script.flagged_sha)}


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client that does not go through the proxy."""
    async with Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), protocol=2) as client:
        yield client


@pytest.fixture
async def proxy(redis_url: str, redis: Redis) -> AsyncIterator[FaultProxy]:
    """A way to the server that can be harmed. The server knows the scripts: what is asked for is what is executed."""
    for script in (*SCRIPTS, *LOCK_SCRIPTS.values()):
        for text in (script.text, script.flagged_text):
            with suppress(ResponseError):  # the flag line is an error before 7.0
                await redis.script_load(text)
    parts = urlsplit(redis_url)
    async with FaultProxy(parts.hostname or "", parts.port or 6379, scripts=NAMES) as proxy:
        yield proxy


def through(proxy: FaultProxy, url: str) -> str:
    """The same database, by way of the proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login[0]}{login[1]}127.0.0.1:{proxy.port}"))


def message(name: str, **fields: Any) -> Message:
    body = encode_signature(Signature(uuid=f"task_{name}", name=name, routing_key="q"))
    return Message(body, "q", f"task_{name}", **fields)


def state(name: str, value: State) -> TaskState:
    created_at = SENT_AT if value is State.PENDING else ZERO
    return TaskState(task_uuid=f"task_{name}", task_name=name, state=value, created_at=created_at)


def group(*members: str, uuid: str = "group_a") -> GroupMeta:
    return GroupMeta(group_uuid=uuid, task_uuids=members, created_at=SENT_AT)


def names(deliveries: Any) -> list[str]:
    return [decode_signature(delivery.body).name for delivery in deliveries]


async def at_last(call: Callable[[], Awaitable[T]], until: float = 30.0) -> T:
    """What it returns once the service answers again."""
    async with asyncio.timeout(until):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.02)


# --------------------------------------------------------------------------------------------- lost replies


async def lost(proxy: FaultProxy, name: str, call: Callable[[], Awaitable[object]]) -> None:
    """The service does it, and the caller does not hear of it; then the caller repeats it."""
    happened = proxy.lose_reply(name)
    with pytest.raises(Unavailable):
        await call()
    assert happened.is_set()
    await call()


async def test_after_a_lost_publish_the_repeat_adds_no_second_copy(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url))) as broker:
        messages = [message("a", token="one"), message("b", token="two"), message("c", token="three", not_before=4e9)]
        await lost(proxy, "publish", lambda: broker.publish(messages))
        assert names(await broker.fetch("q", 10, 0)) == ["a", "b"]
        assert len(await broker.delayed(10)) == 1


async def test_after_a_lost_submit_the_repeat_adds_no_second_copy(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url))) as broker:
        states = [state(name, State.PENDING) for name in "ab"]
        await lost(proxy, "submit", lambda: broker.submit(states, [message("a"), message("b")], KEPT))
        assert names(await broker.fetch("q", 10, 0)) == ["a", "b"]


async def test_after_a_lost_fetch_the_next_one_returns_what_was_taken(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url))) as broker:
        await broker.publish([message(name) for name in "abcdef"])
        happened = proxy.lose_reply("take")
        with pytest.raises(Unavailable):
            await broker.fetch("q", 2, 0)  # the first of all, which also registers
        first = await broker.fetch("q", 2, 0)
        proxy.lose_reply("take")
        with pytest.raises(Unavailable):
            await broker.fetch("q", 3, 0)
        second = await broker.fetch("q", 3, 0)
        third = await broker.fetch("q", 3, 0)
        taken = [*first, *second, *third]
        assert happened.is_set()
        assert names(taken) == list("abcdef")
        assert {one.attempt for one in taken} == {1}
        assert len({one.receipt for one in taken}) == 6
        assert list(await broker.extend(taken)) == []
        await broker.ack(taken)
        assert (await broker.depth("q")).held == 0


async def test_after_a_lost_wait_the_message_is_in_the_next_fetch(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url)), RedisBroker(redis_url)) as (broker, sender):
        happened = proxy.lose_reply("BLMOVE")
        waiting = asyncio.create_task(broker.fetch("q", 10, 20))
        while not proxy.requests["BLMOVE"]:
            await asyncio.sleep(0.01)
        await sender.publish([message("a"), message("b")])
        with pytest.raises(Unavailable):
            await waiting
        assert happened.is_set()
        taken = await broker.fetch("q", 10, 0)
        assert names(taken) == ["a", "b"]
        assert [one.attempt for one in taken] == [1, 1]


async def test_after_a_lost_wait_a_message_that_nobody_asks_for_comes_back(proxy: FaultProxy, redis_url: str) -> None:
    broker, other = RedisBroker(through(proxy, redis_url), lease=LEASE), RedisBroker(redis_url, lease=LEASE)
    async with opened(broker, other):
        happened = proxy.lose_reply("BLMOVE")
        waiting = asyncio.create_task(broker.fetch("q", 10, 20))
        while not proxy.requests["BLMOVE"]:
            await asyncio.sleep(0.01)
        await other.publish([message("a")])
        with pytest.raises(Unavailable):
            await waiting
        assert happened.is_set()
        taken: list[Delivery] = []
        async with asyncio.timeout(30):
            while not taken:
                await asyncio.sleep(min(await other.tend(["q"]), 0.05))
                taken = list(await other.fetch("q", 10, 0))
        assert (names(taken), taken[0].attempt) == (["a"], 1)


async def test_a_lost_ack_nack_or_bury_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url))) as broker:
        await broker.publish([message(name) for name in "abcd"])
        a, b, c, d = await broker.fetch("q", 10, 0)
        await lost(proxy, "HDEL", lambda: broker.ack([a]))
        await lost(proxy, "settle", lambda: broker.bury([b], "reason", "error"))
        await lost(proxy, "settle", lambda: broker.nack([c]))
        await lost(proxy, "settle", lambda: broker.nack([d], delay=60))
        depth = await broker.depth("q")
        assert (depth.ready, depth.held, depth.delayed, depth.dead) == (1, 0, 1, 1)
        again = await broker.fetch("q", 10, 0)
        assert [(one.body, one.attempt) for one in again] == [(c.body, 1)]


async def test_a_lost_extend_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url))) as broker:
        await broker.publish([message("a")])
        held = await broker.fetch("q", 10, 0)
        await lost(proxy, "extend", lambda: broker.extend(held))
        assert list(await broker.extend(held)) == []


async def test_a_lost_settle_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url)), RedisBackend(redis_url)) as (broker, backend):
        sent = [message(name) for name in "abc"]
        await broker.submit([state(name, State.PENDING) for name in "abc"], sent, KEPT)
        a, b, c = await broker.fetch("q", 10, 0)
        callback = state("callback", State.PENDING)
        batch = [
            Settled(a, Ack(), state("a", State.SUCCESS), (callback,), (message("callback"),)),
            Settled(b, Nack(60), state("b", State.RETRY), publish=(message("later", not_before=4e9),)),
            Settled(c, Bury("reason", "error"), state("c", State.FAILURE)),
        ]

        async def settle() -> None:
            await broker.settle(batch, KEPT)
            await backend.put([state("callback", State.STARTED)])

        await lost(proxy, "settle", settle)
        await broker.settle(batch, KEPT)
        found = await backend.get(["task_a", "task_b", "task_c", "task_callback"])
        assert [one and one.state for one in found] == [State.SUCCESS, State.RETRY, State.FAILURE, State.STARTED]
        depth = await broker.depth("q")
        assert (depth.ready, depth.held, depth.delayed, depth.dead) == (1, 0, 2, 1)
        assert names(await broker.fetch("q", 10, 0)) == ["callback"]


async def test_a_lost_tend_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    dead, other = RedisBroker(redis_url, lease=LEASE), RedisBroker(through(proxy, redis_url), lease=LEASE)
    async with opened(dead, other):
        await dead.publish([message("held"), message("back")])
        _, back = await dead.fetch("q", 10, 0)
        await dead.nack([back], delay=0.1)
        await dead.publish([message("due", not_before=1.0), message("delayed", not_before=4e9)])
        await asyncio.sleep(LEASE + 0.1)
        await other.tend(["q"])  # our own contact is long enough now, or the server's is
        await lost(proxy, "tend", lambda: other.tend(["q"]))
        await lost(proxy, "promote", lambda: other.tend(["q"]))
        async with asyncio.timeout(30):
            taken = list(await other.fetch("q", 10, 0))
            while len(taken) < 3:
                await asyncio.sleep(min(await other.tend(["q"]), 0.05))
                taken += await other.fetch("q", 10, 0)
        assert sorted((name, one.attempt) for name, one in zip(names(taken), taken, strict=True)) == [
            ("back", 1),
            ("due", 1),
            ("held", 2),
        ]


async def test_lost_writes_and_reads_of_states_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBackend(through(proxy, redis_url))) as backend:
        await lost(proxy, "put", lambda: backend.begin([state("a", State.PENDING)]))
        await lost(proxy, "put", lambda: backend.put([state("a", State.SUCCESS)]))
        await lost(proxy, "MGET", lambda: backend.get(["task_a"]))
        (found,) = await backend.get(["task_a"])
        assert found is not None
        assert (found.state, found.created_at) == (State.SUCCESS, SENT_AT)
        await lost(proxy, "UNLINK", lambda: backend.forget(["task_a"]))


async def test_after_a_lost_submit_of_a_workflow_the_repeat_takes_back_no_progress(
    proxy: FaultProxy, redis_url: str
) -> None:
    async with opened(RedisBroker(through(proxy, redis_url)), RedisBackend(redis_url)) as (broker, backend):
        states, sent = [state(name, State.PENDING) for name in "ab"], [message("a"), message("b")]
        groups, plans = [group("task_a", "task_b")], [Plan("plan_a", (), ("task_a",))]
        happened = proxy.lose_reply("submit")
        with pytest.raises(Unavailable):
            await broker.submit(states, sent, KEPT, groups=groups, plans=plans)
        assert happened.is_set()
        (a,) = await broker.fetch("q", 1, 0)
        item = Settled(a, Ack(), state("a", State.SUCCESS), member=Member("group_a", "task_a"))
        assert list(await broker.settle([item], KEPT)) == []
        assert await backend.add_members("group_a", ["task_c"])
        await broker.submit(states, sent, KEPT, groups=groups, plans=plans)
        assert list(await backend.get_groups(["group_a"])) == [group("task_a", "task_b", "task_c")]
        assert list(await backend.get_plans(["plan_a"])) == plans
        assert names(await broker.fetch("q", 10, 0)) == ["b"]


async def test_a_lost_settle_of_a_workflow_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url)), RedisBackend(redis_url)) as (broker, backend):
        states, sent = [state(name, State.PENDING) for name in "ab"], [message("a"), message("b")]
        await broker.submit(states, sent, KEPT, groups=[group("task_a", "task_b")])
        held = await broker.fetch("q", 10, 0)
        batch = [
            Settled(
                one,
                Ack(),
                state(name, State.SUCCESS),
                publish=(message(f"{name}-next"),),
                ended=(state("never", State.FAILURE),),
                opens=(group("task_c", uuid="group_b"),),
                member=Member("group_a", f"task_{name}"),
                alive=("group_a", "task_a", "task_b"),
            )
            for one, name in zip(held, "ab", strict=True)
        ]
        await lost(proxy, "settle", lambda: broker.settle(batch, KEPT))
        (last,) = await broker.settle(batch, KEPT)
        assert last == Unsettled(batch[1], Progress.COMPLETE)
        callback = message("callback")
        end = GroupEnd("group_a", pending=(state("callback", State.PENDING),), publish=(callback,))

        async def ends() -> None:
            assert list(await broker.settle([replace(last.item, end=end)], KEPT)) == []
            await backend.put([state("callback", State.STARTED)])

        await lost(proxy, "settle", ends)
        await ends()
        assert names(await broker.fetch("q", 10, 0)) == ["a-next", "callback", "b-next"]
        found = await backend.get(["task_a", "task_b", "task_never", "task_callback"])
        assert [one and one.state for one in found] == [State.SUCCESS, State.SUCCESS, State.FAILURE, State.STARTED]
        assert (await broker.depth("q")).dead == 0


async def test_lost_verbs_of_groups_and_plans_can_be_repeated(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBackend(through(proxy, redis_url)), RedisBackend(redis_url)) as (backend, direct):
        plan = Plan("plan_a", (), ("task_a",))
        members = [Member("group_a", "task_a"), Member("group_a", "task_b")]
        await lost(proxy, "open", lambda: backend.open_groups([group("task_a", "task_b")]))
        await lost(proxy, "MGET", lambda: backend.get_groups(["group_a"]))
        await lost(proxy, "finish", lambda: backend.finish_members(members[:1]))
        assert list(await backend.finish_members(members[:1])) == [Progress.WAITING]
        await lost(proxy, "add", lambda: backend.add_members("group_a", ["task_c"]))
        assert list(await backend.get_groups(["group_a"])) == [group("task_a", "task_b", "task_c")]
        await lost(proxy, "finish", lambda: backend.finish_members([*members[1:], Member("group_a", "task_c")]))
        assert list(await backend.finish_members(members)) == [Progress.COMPLETE] * 2
        await lost(proxy, "claim", lambda: backend.claim_group("group_a", "me", 60))
        assert await direct.claim_group("group_a", "you", 60) is GroupClaim.TAKEN
        assert await backend.claim_group("group_a", "me", 60) is GroupClaim.MINE
        await lost(proxy, "sent", lambda: backend.mark_group_sent("group_a"))
        assert await direct.claim_group("group_a", "you", 60) is GroupClaim.SENT
        await lost(proxy, "put", lambda: backend.put_plans([plan]))
        await lost(proxy, "MGET", lambda: backend.get_plans(["plan_a"]))
        await lost(proxy, "touch", lambda: backend.touch([["task_unknown", "group_a", "plan_a"]]))
        assert list(await backend.get_plans(["plan_a"])) == [plan]


@pytest.mark.parametrize("name", ["MGET", "CLIENT", "SUBSCRIBE"])
async def test_a_watch_whose_replies_are_lost_still_ends(name: str, proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBackend(through(proxy, redis_url)), RedisBackend(redis_url)) as (backend, writer):
        await writer.begin([state("a", State.PENDING)])
        happened = [proxy.lose_reply(name, nth) for nth in (1, 2)]

        async def ending() -> Any:
            return await anext(backend.watch(["task_a"]))

        waiting = asyncio.create_task(at_last(ending))
        while not happened[0].is_set():
            await asyncio.sleep(0.01)
        await writer.put([state("a", State.SUCCESS)])
        task_id, found = await asyncio.wait_for(waiting, 30)
        assert (task_id, found.state) == ("task_a", State.SUCCESS)


async def test_a_lock_whose_token_was_lost_ends_by_itself(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisLock(through(proxy, redis_url))) as lock:
        proxy.lose_reply("SET")
        with pytest.raises(Unavailable):
            await lock.acquire("key", 2.0)
        assert await lock.acquire("key", 60) is None
        async with asyncio.timeout(20):
            while not (token := await lock.acquire("key", 60)):
                await asyncio.sleep(0.05)
        proxy.lose_reply("lock release")
        with pytest.raises(Unavailable):
            await lock.release("key", token)
        assert await lock.release("key", token) is False


@pytest.mark.parametrize("seed", range(4))
async def test_with_replies_lost_at_random_every_task_is_done_once(
    seed: int, proxy: FaultProxy, redis_url: str, redis: Redis
) -> None:
    """Senders and workers repeat what failed, as the engine does; each loses many replies of every kind."""
    chance = random.Random(seed)
    count = 300
    expected = {f"n{number}" for number in range(count)}
    shown: Counter[str] = Counter()
    callbacks: Counter[str] = Counter()
    broker = RedisBroker(through(proxy, redis_url), lease=60.0)

    async def harm() -> None:
        while True:
            happened = proxy.lose_reply(None, chance.randint(3, 12))
            await happened.wait()

    async def send() -> None:
        for start in range(0, count, 20):
            some = [f"n{number}" for number in range(start, start + 20)]
            states, sent = [state(name, State.PENDING) for name in some], [message(name) for name in some]
            await at_last(partial(broker.submit, states, sent, KEPT))

    async def work() -> None:
        while shown.keys() != expected or callbacks.total() < count:
            taken = await at_last(lambda: broker.fetch("q", 7, 0.1))
            batch = []
            for one, name in zip(taken, names(taken), strict=True):
                if name.startswith("callback-"):
                    callbacks[name] += 1
                    batch.append(Settled(one, Ack(), state(name, State.SUCCESS)))
                else:
                    shown[name] += 1
                    batch.append(
                        Settled(one, Ack(), state(name, State.SUCCESS), publish=(message(f"callback-{name}"),))
                    )
            await at_last(partial(broker.settle, batch, KEPT))

    await at_last(broker.open)
    harming = asyncio.create_task(harm())
    async with asyncio.timeout(90):
        await asyncio.gather(send(), work())
    harming.cancel()
    await asyncio.wait({harming})
    assert set(shown.values()) == {1}
    assert callbacks == Counter({f"callback-{name}": 1 for name in expected})
    assert await redis.llen("q") == 0
    for name in expected:
        assert b'"State":"SUCCESS"' in raw(await redis.get(f"task_{name}"))
    await broker.close()


# -------------------------------------------------------------------------------------------- late requests


async def test_a_half_open_connection_is_noticed(proxy: FaultProxy, redis_url: str) -> None:
    url = through(proxy, redis_url)
    async with opened(
        RedisBroker(url, reply_timeout=0.3, connect_timeout=0.3), RedisBackend(url, reply_timeout=0.3)
    ) as (broker, backend):
        waiting = asyncio.create_task(broker.fetch("q", 1, 20))
        while not proxy.requests["BLMOVE"]:
            await asyncio.sleep(0.01)
        proxy.stall()
        for call in (
            waiting,
            broker.publish([message("a")]),
            backend.get(["task_a"]),
        ):
            with pytest.raises(Unavailable, match="did not answer"):
                await asyncio.wait_for(call, 20)
        proxy.resume()
        await at_last(lambda: broker.fetch("q", 1, 0))


async def test_a_fetch_that_arrives_late_takes_nothing_away(proxy: FaultProxy, redis_url: str, redis: Redis) -> None:
    """A request that was given up may be executed all the same, before or after the next one."""
    async with opened(RedisBroker(through(proxy, redis_url), reply_timeout=0.2, connect_timeout=5.0)) as broker:
        await broker.fetch("q", 1, 0)
        expected = [f"n{number}" for number in range(30)]
        await broker.publish([message(name) for name in expected])
        taken: list[Delivery] = []
        for _ in range(5):
            taken += await broker.fetch("q", 2, 0)
            proxy.stall()
            with pytest.raises(Unavailable):
                await broker.fetch("q", 2, 0)
            proxy.resume()
        async with asyncio.timeout(30):
            while len(taken) < len(expected):
                taken += await at_last(lambda: broker.fetch("q", 10, 0.05))
        assert sorted(names(taken)) == sorted(expected)
        assert list(await broker.extend(taken)) == []
        await broker.ack(taken)
        depth = await broker.depth("q")
        assert (depth.ready, depth.held) == (0, 0)


async def test_a_publish_that_arrives_late_adds_no_second_copy(proxy: FaultProxy, redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(through(proxy, redis_url), reply_timeout=0.2), RedisBroker(redis_url)) as (
        broker,
        direct,
    ):
        await broker.publish([message("first")])
        proxy.stall()
        late = [message("a", token="one")]
        with pytest.raises(Unavailable):
            await broker.publish(late)
        await direct.publish(late)
        proxy.resume()
        await at_last(lambda: broker.publish(late))
        assert names(await direct.fetch("q", 10, 0)) == ["first", "a"]


async def test_a_cancelled_call_never_gives_its_reply_to_another(proxy: FaultProxy, redis_url: str) -> None:
    chance = random.Random(1)
    async with opened(RedisBackend(through(proxy, redis_url))) as backend:
        tasks = [f"n{number}" for number in range(20)]
        await backend.begin([state(name, State.PENDING) for name in tasks])
        proxy.delay = 0.001

        async def ask(name: str) -> None:
            try:
                async with asyncio.timeout(chance.random() * 0.012):
                    (found,) = await backend.get([f"task_{name}"])
            except TimeoutError:
                return
            assert found is not None
            assert found.task_uuid == f"task_{name}"

        for _ in range(40):
            await asyncio.gather(*(ask(name) for name in tasks))
        proxy.delay = 0.0
        found = await backend.get([f"task_{name}" for name in tasks])
        assert [one and one.task_name for one in found] == tasks


async def test_every_verb_is_one_request(proxy: FaultProxy, redis_url: str) -> None:
    async with opened(RedisBroker(through(proxy, redis_url)), RedisBackend(through(proxy, redis_url))) as both:
        broker, backend = both
        await broker.publish([message("warm")])
        await broker.ack(await broker.fetch("q", 1, 0))
        await backend.put([state("warm", State.SUCCESS)])
        held: list[Delivery] = []

        async def asks(name: str, call: Awaitable[Any]) -> Any:
            proxy.requests.clear()
            answer = await call
            assert proxy.requests == {name: 1}
            return answer

        await asks("submit", broker.submit([state("a", State.PENDING)], [message(name) for name in "abcd"], KEPT))
        await asks("publish", broker.publish([message("e"), message("f", not_before=4e9)]))
        held += await asks("take", broker.fetch("q", 10, 5))
        assert len(held) == 5
        await asks("extend", broker.extend(held))
        await asks("settle", broker.nack(held[:1]))
        await asks("settle", broker.bury(held[1:2], "reason", "error"))
        await asks("HDEL", broker.ack(held[2:4]))
        await asks("settle", broker.settle([Settled(held[4], Ack(), state("a", State.SUCCESS))], KEPT))
        await asks("put", backend.begin([state("b", State.PENDING), state("c", State.PENDING)]))
        await asks("MGET", backend.get(["task_a", "task_b"]))
        await asks("open", backend.open_groups([group("task_a", "task_b"), group("task_c", uuid="group_b")]))
        await asks("MGET", backend.get_groups(["group_a", "group_b"]))
        await asks("finish", backend.finish_members([Member("group_a", "task_a"), Member("group_b", "task_c")]))
        await asks("add", backend.add_members("group_a", ["task_d", "task_e"]))
        await asks("claim", backend.claim_group("group_b", "me", 60))
        await asks("sent", backend.mark_group_sent("group_b"))
        await asks("put", backend.put_plans([Plan("plan_a", (), ()), Plan("plan_b", (), ())]))
        await asks("MGET", backend.get_plans(["plan_a", "plan_b"]))
        await asks("touch", backend.touch([["task_unknown", "group_a"], ["task_unknown", "plan_a"]]))
        groups, plans = [group("task_g", uuid="group_c")], [Plan("plan_c", (), ())]
        sent = [state("g", State.PENDING)], [message("g")], KEPT
        await asks("submit", broker.submit(*sent, groups=groups, plans=plans))
        (last,) = await broker.fetch("q", 1, 0)
        await broker.ack([last])
        (last,) = await broker.fetch("q", 10, 0)
        item = Settled(last, Ack(), state("g", State.SUCCESS), member=Member("group_c", "task_g"), alive=("group_c",))
        assert await asks("settle", broker.settle([item], KEPT)) == [Unsettled(item, Progress.COMPLETE)]
        await asks("settle", broker.settle([replace(item, end=GroupEnd("group_c"))], KEPT))


# -------------------------------------------------------------------------------------------------- outages


async def test_an_outage_longer_than_the_lease_takes_nothing_from_the_living(proxy: FaultProxy, redis_url: str) -> None:
    url = through(proxy, redis_url)
    async with opened(RedisBroker(url, lease=LEASE), RedisBroker(url, lease=LEASE)) as (worker, other):
        await worker.publish([message("a")])
        held = list(await worker.fetch("q", 1, 0))
        await other.tend(["q"])
        await proxy.refuse()
        loop = asyncio.get_running_loop()
        back_at = loop.time() + 1.5 * LEASE
        while loop.time() < back_at:
            with pytest.raises(Unavailable):
                await other.tend(["q"])
            await asyncio.sleep(0.05)
        await proxy.accept()
        for _ in range(3):
            await other.tend(["q"])  # it is back; whoever is alive has yet to say so
        assert list(await at_last(lambda: worker.extend(held))) == []
        for _ in range(3):
            await other.tend(["q"])
        assert list(await other.fetch("q", 1, 0)) == []
        assert list(await worker.extend(held)) == []


async def test_after_an_outage_the_dead_are_still_taken_over(proxy: FaultProxy, redis_url: str) -> None:
    url = through(proxy, redis_url)
    async with opened(RedisBroker(url, lease=LEASE), RedisBroker(url, lease=LEASE)) as (dead, other):
        await dead.publish([message("a")])
        await dead.fetch("q", 1, 0)
        await proxy.refuse()
        with pytest.raises(Unavailable):
            await other.tend(["q"])
        await proxy.accept()
        async with asyncio.timeout(30):
            while not (taken := await other.fetch("q", 1, 0)):
                await asyncio.sleep(await at_last(lambda: other.tend(["q"])))
        assert taken[0].attempt == 2


async def test_a_server_that_was_just_started_is_given_time(start_server: StartServer) -> None:
    server = start_server(RedisServer(fsync="always"))
    async with opened(RedisBroker(server.url, lease=3.0)) as worker:
        await worker.publish([message("a")])
        held = list(await worker.fetch("q", 1, 0))
        server.kill()
        await asyncio.sleep(3.2)
        server.restart()
        async with opened(RedisBroker(server.url, lease=3.0)) as newcomer:
            await newcomer.tend(["q"])
            assert list(await at_last(lambda: worker.extend(held))) == []


async def test_a_server_killed_under_load_loses_nothing_and_doubles_nothing(redis_server: RedisServer) -> None:
    server, count = redis_server, 400
    expected = [f"n{number}" for number in range(count)]
    shown: Counter[str] = Counter()
    async with opened(RedisBroker(server.url), RedisBroker(server.url), RedisBackend(server.url)) as everything:
        sender, worker, backend = everything

        async def send() -> None:
            for start in range(0, count, 10):
                some = expected[start : start + 10]
                states, sent = [state(name, State.PENDING) for name in some], [message(name) for name in some]
                await at_last(partial(sender.submit, states, sent, KEPT))
                await asyncio.sleep(0.01)

        async def work() -> None:
            while len(shown) < count:
                taken = await at_last(lambda: worker.fetch("q", 8, 0.2))
                shown.update(names(taken))
                await asyncio.sleep(0.005)
                batch = [
                    Settled(one, Ack(), state(name, State.SUCCESS))
                    for one, name in zip(taken, names(taken), strict=True)
                ]
                await at_last(partial(worker.settle, batch, KEPT))

        async def kill() -> None:
            for so_far in (50, 200, 350):
                while len(shown) < so_far:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)

        async with asyncio.timeout(90):
            await asyncio.gather(send(), work(), kill())
        assert shown == Counter(dict.fromkeys(expected, 1))
        found = await at_last(lambda: backend.get([f"task_{name}" for name in expected]))
        assert {one and one.state for one in found} == {State.SUCCESS}
        depth = await at_last(lambda: sender.depth("q"))
        assert (depth.ready, depth.held) == (0, 0)


# -------------------------------------------------------------------------------------------- stopped worker

STOPPED = """
import asyncio, sys
from asyncqueue.brokers.base import Ack, Settled
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.state import State, TaskState

async def main():
    broker = RedisBroker(sys.argv[1], lease=float(sys.argv[2]))
    await broker.open()
    held = await broker.fetch("q", 1, 20)
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    state = TaskState(task_uuid="task_a", task_name="a", state=State.FAILURE, error="too late")
    await broker.settle([Settled(held[0], Ack(), state)], 3600)
    print("lost", len(await broker.extend(held)), flush=True)
    print("fenced", len(await broker.fetch("q", 10, 0)), flush=True)
    await broker.publish([])
    print("again", len(await broker.fetch("q", 10, 20)), flush=True)
    await broker.close()

asyncio.run(main())
"""


async def test_a_stopped_worker_is_fenced_and_changes_no_state(redis_url: str) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        STOPPED,
        redis_url,
        str(LEASE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(60), opened(RedisBroker(redis_url, lease=LEASE), RedisBackend(redis_url)) as both:
            other, backend = both
            await other.submit([state("a", State.PENDING)], [message("a")], KEPT)
            assert await worker.stdout.readline() == b"held\n"
            worker.send_signal(signal.SIGSTOP)
            while not (taken := await other.fetch("q", 1, 0)):
                await asyncio.sleep(await other.tend(["q"]))
            assert taken[0].attempt == 2
            worker.send_signal(signal.SIGCONT)
            worker.stdin.write(b"\n")
            assert await worker.stdout.readline() == b"lost 1\n"
            (found,) = await backend.get(["task_a"])
            assert found is not None
            assert found.state is State.PENDING
            assert list(await other.extend(taken)) == []
            await other.settle([Settled(taken[0], Ack(), state("a", State.SUCCESS))], KEPT)
            assert await worker.stdout.readline() == b"fenced 0\n"
            await other.publish([message("b")])
            assert await worker.stdout.readline() == b"again 1\n"
            assert await worker.wait() == 0
            (found,) = await backend.get(["task_a"])
            assert found is not None
            assert (found.state, found.error) == (State.SUCCESS, "")
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
