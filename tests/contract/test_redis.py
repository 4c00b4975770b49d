"""Redis keeps the contracts of broker, backend, lock and joint store; and what is its own."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.redis import RedisBackend
from asyncqueue.brokers.base import Ack, Bury, Delivery, GroupEnd, Message, Nack, Settled, Unsettled
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.connections.redis_place import Alone, parse_url
from asyncqueue.errors import AsyncQueueError, ConfigError, Refused, Unavailable
from asyncqueue.locks.redis import RedisLock
from asyncqueue.signature import Arg, Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    TurnLockContract,
)
from asyncqueue.testing.suite import Suite
from asyncqueue.wire import decode_signature, decode_state, encode_group, encode_signature, encode_state
from tests.conftest import StartServer
from tests.opened import opened
from tests.replies import raw
from tests.services import RedisServer, free_port

T = TypeVar("T")
LEASE = 2.0
KEPT = 3600.0
SENT_AT = 1_735_787_045_123_456_789
CANARY = "s3cret-c4nary"

# what one worker and its senders need, and nothing else: docs/brokers/redis.md shows the same list
ACL = (
    "~machinery_tasks ~{machinery_tasks}:aq:* ~machinery_tasks.aq ~{machinery_tasks.aq}:aq:* ~delayed_tasks"
    " ~{delayed_tasks}:aq:* ~aq:queues ~task_* ~chord_* ~group_* ~{group_*}:aq:* ~plan_* ~TriggerChordMutex ~lock_*"
    " resetchannels &__redis__:invalidate -@all +ping +info +select +client|id +client|setname +client|tracking"
    " +subscribe +eval +evalsha +time +type +exists +get +getrange +set +del +unlink +mget +pttl"
    " +pexpire +sadd +srem +srandmember"
    " +hget +hset +hdel +hkeys +hlen +hexists +lpop +rpop +lpush +rpush +llen +lrange +blmove"
    " +zadd +zrem +zscore +zrange +zrangebyscore +zremrangebyscore +zcard +xadd +xrange +xlen +xdel"
)


class OnRedis(Suite):
    """An empty database for each test."""

    @pytest.fixture
    def service(self, redis_url: str) -> None:
        self.url = redis_url

    def nobody(self) -> str:
        """A URL where no server is."""
        return f"redis://127.0.0.1:{free_port()}/0"


class TestRedisBroker(OnRedis, BrokerContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)

    async def make_unreachable(self) -> RedisBroker:
        return RedisBroker(self.nobody(), lease=LEASE)


class TestRedisInspector(OnRedis, InspectorContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)


class TestRedisBackend(OnRedis, BackendContract):
    async def make_backend(self, results_expire_in: float = KEPT) -> RedisBackend:
        return RedisBackend(self.url, results_expire_in=results_expire_in)

    async def make_unreachable(self) -> RedisBackend:
        return RedisBackend(self.nobody())


class TestRedisGroups(OnRedis, GroupContract):
    async def make_backend(self, results_expire_in: float = KEPT) -> RedisBackend:
        return RedisBackend(self.url, results_expire_in=results_expire_in)

    async def make_unreachable(self) -> RedisBackend:
        return RedisBackend(self.nobody())


class TestRedisJoint(OnRedis, JointContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)

    async def make_backend(self) -> RedisBackend:
        return RedisBackend(self.url)


class TestRedisJointGroups(OnRedis, JointGroupContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)

    async def make_backend(self) -> RedisBackend:
        return RedisBackend(self.url)


class TestRedisLock(OnRedis, LockContract):
    async def make_lock(self) -> RedisLock:
        return RedisLock(self.url)

    async def make_unreachable(self) -> RedisLock:
        return RedisLock(self.nobody())


class TestRedisTurnLock(OnRedis, TurnLockContract):
    async def make_lock(self) -> RedisLock:
        return RedisLock(self.url)

    async def make_unreachable(self) -> RedisLock:
        return RedisLock(self.nobody())


# ---------------------------------------------------------------------------------------------------- helpers


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the same database that knows nothing of us."""
    async with outsider(redis_url) as client:
        yield client


def outsider(url: str) -> Redis:
    """A client that knows nothing of us, as redis-cli or Go would be."""
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2)


def signature(name: str, queue: str = "q", **fields: Any) -> Signature:
    return Signature(uuid=f"task_{name}", name=name, routing_key=queue, **fields)


def message(name: str, queue: str = "q", **fields: Any) -> Message:
    return Message(encode_signature(signature(name, queue)), queue, f"task_{name}", **fields)


def pending(name: str) -> TaskState:
    return TaskState(task_uuid=f"task_{name}", task_name=name, created_at=SENT_AT)


def failure(name: str) -> TaskState:
    return TaskState(task_uuid=f"task_{name}", task_name=name, state=State.FAILURE, error="why")


def member(name: str) -> Member:
    return Member("group_a", f"task_{name}")


def group(name: str, *members: str, **fields: Any) -> GroupMeta:
    return GroupMeta(group_uuid=name, task_uuids=members, created_at=SENT_AT, **fields)


def success(name: str, *results: TaskResult) -> TaskState:
    return TaskState(task_uuid=f"task_{name}", task_name=name, state=State.SUCCESS, results=results)


async def keys(redis: Redis) -> dict[str, int]:
    """Every key and its time to live (seconds; -1 for ever)."""
    return {raw(key).decode(): await redis.ttl(key) for key in await redis.keys("*")}


async def let_go(endings: AsyncIterator[object]) -> None:
    """Watch no longer."""
    assert isinstance(endings, AsyncGenerator)
    await endings.aclose()


async def comes(what: Callable[[], Awaitable[T]], until: float = 20.0) -> T:
    """The first answer that is not empty."""
    async with asyncio.timeout(until):
        while not (answer := await what()):
            await asyncio.sleep(0.02)
        return answer


# ------------------------------------------------------------------------------------------- ways to reach it


async def go_all_the_way(url: str) -> None:
    """Everything that a worker and its sender do, once."""
    queue = "machinery_tasks"
    broker, backend, lock = RedisBroker(url, lease=LEASE), RedisBackend(url), RedisLock(url)
    async with opened(broker, backend, lock):
        twin = broker.twin()
        async with opened(twin):
            assert await broker.identity() == await backend.identity() == await twin.identity()
            waiting = asyncio.create_task(broker.fetch(queue, 1, 20))
            await broker.submit([pending("a")], [message("a", queue)], KEPT)
            taken = list(await waiting) or list(await broker.fetch(queue, 1, 20))
            assert list(await twin.extend(taken)) == []
            endings = backend.watch(["task_a"])
            ending = asyncio.ensure_future(anext(endings))
            await broker.settle([Settled(taken[0], Ack(), success("a"))], KEPT)
            task_id, state = await asyncio.wait_for(ending, 20)
            assert state is not None
            assert (task_id, state.state, state.created_at) == ("task_a", State.SUCCESS, SENT_AT)
            await let_go(endings)
            later = message("b", queue, not_before=1.0)
            await broker.publish([later, replace(message("c", queue), token="once")])
            await broker.tend([queue])
            two = list(await broker.fetch(queue, 10, 0))
            await broker.nack(two[:1])
            await broker.nack(two[1:], delay=0.01)
            assert (await broker.depth(queue)).delayed == 1
            (again,) = await broker.fetch(queue, 10, 0)
            await broker.bury([again], "reason", "error")
            (dead,) = await broker.dead(queue, 10)
            assert await broker.requeue(queue, [dead.id]) == 1
            assert await broker.queues() == [queue]
            assert len(await broker.peek(queue, 10)) + len(await broker.delayed(10)) >= 1
            assert await broker.purge(queue) >= 1
            await backend.forget(["task_a"])
            await count_down(queue, broker, backend)
            token = await lock.acquire("lock_a", 10)
            assert token
            assert await lock.renew("lock_a", token, 10)
            assert await lock.release("lock_a", token)


async def count_down(queue: str, broker: RedisBroker, backend: RedisBackend) -> None:
    """Groups of every kind from their sending to their end, once."""
    groups = [group("group_a", "task_d", "task_e"), group("group_b", "task_f")]
    plans = [Plan("plan_a", (), ("task_d",))]
    states = [pending(name) for name in "de"]
    await broker.submit(states, [message(name, queue) for name in "de"], KEPT, groups=groups, plans=plans)
    d, e = await broker.fetch(queue, 10, 0)
    assert await backend.add_members("group_a", ["task_g"])
    await backend.touch([["task_unknown", "group_a", "plan_a"]])
    await backend.put([success("g")])
    items = [
        Settled(one, Ack(), success(name), member=Member("group_a", f"task_{name}"), alive=("task_unknown", "group_a"))
        for one, name in ((d, "d"), (e, "e"))
    ]
    (last,) = await broker.settle(items, KEPT)
    assert last.progress is Progress.COMPLETE
    end = GroupEnd("group_a", ended=(failure("h"),), pending=(pending("i"),), publish=(message("i", f"{queue}.aq"),))
    assert list(await broker.settle([replace(last.item, end=end)], KEPT)) == []
    assert [message.body for message in await broker.fetch(f"{queue}.aq", 10, 0)] == [message("i", f"{queue}.aq").body]
    assert list(await backend.finish_members([Member("group_b", "task_f")])) == [Progress.COMPLETE]
    assert await backend.claim_group("group_b", "me", 10) is GroupClaim.MINE
    await backend.mark_group_sent("group_b")
    await backend.put_plans(plans)
    assert list(await backend.get_plans(["plan_a"])) == plans
    await backend.open_groups(groups)
    found = await backend.get_groups(["group_a", "group_b"])
    assert [one and one.chord_triggered for one in found] == [True, True]


async def test_plain_tcp_works(redis_url: str) -> None:
    await go_all_the_way(redis_url)


async def test_tls_works_and_a_certificate_nobody_vouches_for_is_refused(redis_tls_url: str) -> None:
    await go_all_the_way(redis_tls_url)
    broker = RedisBroker(redis_tls_url.partition("?")[0])
    with pytest.raises(Refused, match="certificate"):
        await broker.open()
    await broker.close()


async def test_a_certificate_for_another_name_is_refused(redis_tls_url: str) -> None:
    broker = RedisBroker(redis_tls_url.replace("localhost", "127.0.0.2", 1))
    with pytest.raises((Refused, Unavailable)) as caught:
        await broker.open()
    assert "127.0.0.2" in str(caught.value)
    await broker.close()


async def test_a_unix_socket_with_password_works(start_server: StartServer) -> None:
    server = start_server(RedisServer(password=CANARY))
    await go_all_the_way(server.socket_url)
    await go_all_the_way(f"{server.socket_url}:/3")
    assert str(server.socket_path) in RedisBroker(server.socket_url).address


async def test_a_user_with_no_more_rights_than_documented_can_do_everything(start_server: StartServer) -> None:
    server = start_server(RedisServer(password="other", acl={"worker": f"on >{CANARY} {ACL}"}))
    await go_all_the_way(f"redis://worker:{CANARY}@127.0.0.1:{server.port}/2")


async def test_what_a_user_may_not_do_is_refused_with_the_reason(start_server: StartServer) -> None:
    server = start_server(RedisServer(acl={"worker": f"on >{CANARY} {ACL}"}))
    async with opened(RedisBroker(f"redis://worker:{CANARY}@127.0.0.1:{server.port}")) as broker:
        with pytest.raises(Refused, match="permission"):
            await broker.publish([message("a", "not-mine")])


# ------------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", ("localhost", 6379, "", 0, None, None)),
        ("redis://h", ("h", 6379, "", 0, None, None)),
        ("redis://h:1/2", ("h", 1, "", 2, None, None)),
        ("redis://h/2/3", ("h", 6379, "", 2, None, None)),
        ("redis://[::1]:7/0", ("::1", 7, "", 0, None, None)),
        ("redis://word@h", ("h", 6379, "", 0, None, "word")),
        ("redis://:word@h", ("h", 6379, "", 0, None, "word")),
        ("redis://me:w%2Fo%40rd@h", ("h", 6379, "", 0, "me", "w/o@rd")),
        ("redis+socket:///tmp/r.sock", ("localhost", 6379, "/tmp/r.sock", 0, None, None)),
        ("redis+socket:///tmp/r.sock:/5", ("localhost", 6379, "/tmp/r.sock", 5, None, None)),
        ("redis+socket:///tmp/@/r.sock", ("localhost", 6379, "/tmp/@/r.sock", 0, None, None)),
        ("redis+socket://word@/tmp/r@2.sock", ("localhost", 6379, "/tmp/r@2.sock", 0, None, "word")),
        ("redis+socket://me:word@/tmp/r.sock:/1", ("localhost", 6379, "/tmp/r.sock", 1, "me", "word")),
    ],
)
def test_a_url_says_where_and_who(url: str, expected: tuple[object, ...]) -> None:
    place = parse_url(url)
    assert isinstance(place, Alone)
    address = place.server
    found = (address.host, address.port, address.path, address.db, address.username, address.password)
    assert found == expected
    assert address.tls is None


def test_rediss_verifies_certificate_and_name() -> None:
    tls = parse_url("rediss://h").like.tls
    assert tls is not None
    assert (tls.verify_mode.name, tls.check_hostname) == ("CERT_REQUIRED", True)


@pytest.mark.parametrize(
    "url",
    [
        f"redys://:{CANARY}@h",
        f"redis:/:{CANARY}@h",
        f"redis://:{CANARY}/x@h:1",
        f"redis://:{CANARY}#x@h:1",
        f"redis://:{CANARY}?x@h:1",
        f"redis://:{CANARY}@h:port",
        f"redis://:{CANARY}@h:99999",
        f"redis://:{CANARY}@h/db",
        f"redis://:{CANARY}@h/1?unknown=1",
        f"redis://:{CANARY}@h/1?ssl_ca_certs=x",
        f"redis://:{CANARY}@h:1,h:2/1",
        f"rediss://:{CANARY}@h?ssl_ca_certs=/no/such/file",
        f"redis+socket://:{CANARY}@",
        f"redis+socket://:{CANARY}@/a:/b",
    ],
)
def test_a_url_that_cannot_work_is_an_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisBroker(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert "expected" in str(caught.value)


# --------------------------------------------------------------------------------------------------- secrets


async def failures(url: str) -> list[AsyncQueueError]:
    """What opening and using each driver raises at this URL."""
    found: list[AsyncQueueError] = []
    for thing in (RedisBroker(url, connect_timeout=2), RedisBackend(url, connect_timeout=2), RedisLock(url)):
        for verb in (thing.open, thing.open):
            with pytest.raises(AsyncQueueError) as caught:
                await verb()
            found.append(caught.value)
        await thing.close()
    return found


def assert_hidden(errors: Sequence[BaseException], place: str) -> None:
    for error in errors:
        assert place in str(error)
        shown = "".join(traceback.format_exception(error)) + repr(error)
        assert CANARY not in shown


async def test_no_error_shows_the_password(start_server: StartServer) -> None:
    server = start_server(RedisServer(password="other"))
    port = free_port()
    assert_hidden(await failures(f"redis://:{CANARY}@127.0.0.1:{server.port}/0"), f"127.0.0.1:{server.port}")
    assert_hidden(await failures(f"redis://me:{CANARY}@127.0.0.1:{server.port}/0"), f"127.0.0.1:{server.port}")
    assert_hidden(await failures(f"redis://me:{CANARY}@127.0.0.1:{port}/0"), f"127.0.0.1:{port}")
    assert_hidden(await failures(f"redis+socket://me:{CANARY}@/no/such.sock"), "/no/such.sock")


async def test_a_server_that_repeats_what_it_was_sent_betrays_nothing(start_server: StartServer) -> None:
    server = start_server(RedisServer(options={"rename-command": 'AUTH ""'}))
    assert_hidden(await failures(f"redis://:{CANARY}@127.0.0.1:{server.port}/0"), f"127.0.0.1:{server.port}")


def test_neither_address_nor_repr_shows_the_password() -> None:
    url = f"redis://me:{CANARY}@h:1/0"
    for thing in (RedisBroker(url), RedisBackend(url), RedisLock(url)):
        assert thing.address == "h:1"
        assert CANARY not in repr(thing)
    assert CANARY not in repr(parse_url(url))


# ---------------------------------------------------------------------------------------- what a server says


async def test_a_wrong_password_is_refused_at_first_and_unavailable_later(start_server: StartServer) -> None:
    server = start_server(RedisServer(password=CANARY))
    wrong = RedisBroker(f"redis://:wrong@127.0.0.1:{server.port}")
    with pytest.raises(Refused):
        await wrong.open()
    await wrong.close()
    async with opened(RedisBroker(server.url)) as broker:
        server.call("CONFIG", "SET", "requirepass", "changed")
        server.password = "changed"
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for _ in range(2):  # the connection is gone; then we are not let in
            with pytest.raises(Unavailable):
                await broker.publish([message("a")])
        server.call("CONFIG", "SET", "requirepass", CANARY)
        server.password = CANARY
        await broker.publish([message("a")])


async def test_a_server_that_is_too_old_is_refused() -> None:
    info = b"redis_version:6.0.16\r\nrun_id:x\r\nuptime_in_seconds:1\r\nmaxmemory_policy:noeviction\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            for _ in range(data.count(b"*")):
                writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        broker = RedisBroker(f"redis://127.0.0.1:{port}")
        with pytest.raises(Refused, match=r"6\.0.*6\.2"):
            await broker.open()
        await broker.close()


async def test_a_server_that_may_drop_keys_is_warned_of(start_server: StartServer) -> None:
    server = start_server(RedisServer(options={"maxmemory-policy": "allkeys-lru"}))
    async with opened(RedisBroker(server.url)) as broker:
        (warning,) = broker.warnings
        assert "allkeys-lru" in warning
        assert "noeviction" in warning


async def test_a_good_server_is_not_warned_of(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        assert list(broker.warnings) == []


async def test_a_replica_is_unavailable_until_it_is_promoted(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    async with opened(RedisBroker(server.url)) as broker:
        server.call("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(Unavailable):
            await broker.publish([message("a")])
        with pytest.raises(Unavailable):
            await broker.fetch("q", 1, 0)
        server.call("REPLICAOF", "NO", "ONE")
        await broker.publish([message("a")])
        assert len(await broker.fetch("q", 1, 0)) == 1


async def test_a_busy_server_is_unavailable(start_server: StartServer) -> None:
    server = start_server(RedisServer(options={"lua-time-limit": "1"}))
    async with opened(RedisBroker(server.url)) as broker:
        async with Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)) as other:
            endless = asyncio.ensure_future(other.eval("while true do end", 0))
            await asyncio.sleep(0.1)
            with pytest.raises(Unavailable):
                await broker.publish([message("a")])
            server.call("SCRIPT", "KILL")
            await asyncio.wait({endless})
            assert endless.exception() is not None
        await broker.publish([message("a")])


async def test_a_full_server_takes_no_messages_and_still_serves_what_it_has(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    async with opened(RedisBroker(server.url, lease=LEASE), RedisBackend(server.url)) as (broker, backend):
        names = "abcdef"
        await broker.submit([pending(name) for name in names], [message(name) for name in names], KEPT)
        held = list(await broker.fetch("q", 2, 0))
        server.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="full"):
            await broker.publish([message("g")])
        with pytest.raises(Unavailable, match="full"):
            await broker.submit([pending("g")], [message("g")], KEPT)
        assert list(await broker.extend(held)) == []
        await broker.settle([Settled(held[0], Ack(), success("a"))], KEPT)
        await broker.nack(held[1:])
        taken = list(await broker.fetch("q", 10, 0))
        assert [decode_signature(one.body).name for one in taken] == list("bcdef")
        (ended,) = await backend.get(["task_a"])
        assert ended is not None
        assert ended.state is State.SUCCESS
        waiting = asyncio.create_task(broker.fetch("q", 1, 20))  # BLMOVE is refused: it polls
        await asyncio.sleep(0.3)
        await broker.nack(taken[:1])
        assert len(await waiting) == 1
        await broker.tend(["q"])
        await broker.bury(taken[1:2], "reason", "error")
        await broker.ack(taken[2:])


async def test_a_full_server_still_lets_workflows_go_on(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    async with opened(RedisBroker(server.url, lease=LEASE), RedisBackend(server.url)) as (broker, backend):
        names = "ab"
        groups = [group("group_a", "task_a", "task_b")]
        states = [pending(name) for name in names]
        await broker.submit(states, [message(name) for name in names], KEPT, groups=groups)
        a, b = await broker.fetch("q", 2, 0)
        server.call("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="full"):
            await broker.submit([], [], KEPT, groups=[group("group_b")])
        with pytest.raises(Unavailable, match="full"):
            await backend.claim_group("group_a", "me", 10)
        items = [Settled(one, Ack(), success(name), member=member(name)) for one, name in ((a, "a"), (b, "b"))]
        (last,) = await broker.settle(items, KEPT)
        end = GroupEnd("group_a", pending=(pending("c"),), publish=(message("c"),))
        opens = (group("group_c", "task_c"),)
        assert list(await broker.settle([replace(last.item, end=end, opens=opens)], KEPT)) == []
        assert [decode_signature(one.body).name for one in await broker.fetch("q", 10, 0)] == ["c"]
        assert list(await backend.get_groups(["group_c"])) == list(opens)


# ------------------------------------------------------------------------------------------- keys and Go


async def test_what_a_sender_leaves_is_what_machinery_leaves(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        later = signature("later", eta=4_000_000_000 * 10**9)
        await broker.submit([pending("a"), pending("later")], [message("a")], KEPT)
        await broker.publish([Message(encode_signature(later), "q", later.uuid, not_before=4e9)])
        await backend.begin([pending("b")])
    assert await keys(redis) == {
        "q": -1,
        "delayed_tasks": -1,
        "task_a": 3600,
        "task_later": 3600,
        "task_b": 3600,
        "aq:queues": -1,  # ours: a list for people to look at
    }
    assert await redis.lrange("q", 0, -1) == [encode_signature(signature("a"))]
    assert await redis.zrange("delayed_tasks", 0, -1, withscores=True) == [(encode_signature(later), 4e18)]
    assert await redis.get("task_a") == encode_state(pending("a"))
    assert await redis.get("task_b") == encode_state(pending("b"))


async def test_keys_without_an_expiry_are_few_and_known(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url, lease=LEASE)) as broker:
        await broker.submit([pending("a")], [message("a"), message("b"), message("c")], KEPT)
        await broker.publish([message("d", token="token")])
        a, b, c, _ = await broker.fetch("q", 10, 0)
        next_one = Settled(a, Ack(), success("a"), pending=(pending("n"),), publish=(message("n"),))
        await broker.settle([next_one, Settled(b, Nack(60.0)), Settled(c, Bury("reason", "error"))], KEPT)
        lasting = {key for key, ttl in (await keys(redis)).items() if ttl == -1}
        worker = next(key for key in lasting if ":proc:" in key)
        assert lasting == {"q", "aq:queues", "{q}:aq:workers", "{q}:aq:later", "{q}:aq:dead", worker}
    lasting = {key for key, ttl in (await keys(redis)).items() if ttl == -1}
    assert lasting == {"q", "aq:queues", "{q}:aq:later", "{q}:aq:dead"}


async def test_a_worker_that_settled_everything_leaves_nothing_behind(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.publish([message("a"), message("b")])
        await broker.ack(await broker.fetch("q", 10, 1))
    assert set(await keys(redis)) == {"aq:queues"}


@pytest.mark.parametrize("queue", ["q", "a:b", "{tag}", "a{b}c", "a{b}{c}", "machinery_tasks"])
async def test_every_key_of_a_queue_lies_in_its_slot(queue: str, redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url, lease=LEASE)) as broker:
        await broker.publish([message("a", queue, token="t"), message("b", queue), message("c", queue)])
        _, b, c = await broker.fetch(queue, 10, 0)
        await broker.nack([b], delay=60)
        await broker.bury([c], "reason", "error")
        slots = {key_slot(key.encode()) for key in await keys(redis) if key != "aq:queues"}
        assert slots == {key_slot(queue.encode())}


async def test_hand_written_machinery_json_is_served(redis_url: str, redis: Redis) -> None:
    body = b'{"UUID": "task_1", "Name": "add", "Args": [{"Type": "int64", "Value": 1}]}'
    await redis.rpush("q", body)
    async with opened(RedisBroker(redis_url)) as broker:
        (taken,) = await broker.fetch("q", 10, 0)
        assert (taken.body, taken.attempt) == (body, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"UUID":"1","Name":"add","RoutingKey":"q","ETA":"2025-01-02T03:04:05Z","Args":null}',
        b'{ "Name":"add", "Args":[{"Value":"\\"RoutingKey\\":\\"x\\""}], "RoutingKey":"q" }',
        b'{"routingkey":"q"}',
        b'{"UUID":"\\u0031","Name":"a\\"dd","RoutingKey":"q"}',
    ],
)
async def test_what_go_delayed_is_promoted_unchanged(body: bytes, redis_url: str, redis: Redis) -> None:
    await redis.zadd("delayed_tasks", {body: 1_735_787_045_123_456_789})
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.tend([])
        assert await redis.lrange("q", 0, -1) == [body]
        assert await redis.zcard("delayed_tasks") == 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "undecodable"),
        (b"\xff\x00", "undecodable"),
        (b"[" * 5000, "undecodable"),
        (b'"RoutingKey":"q"', "undecodable"),
        (b'{"RoutingKey":""}', "undecodable"),
        (b'{"RoutingKey":7}', "undecodable"),
        (b'{"UUID":"","Name":"","RoutingKey":"delayed_tasks"}', "wrong_key"),
        (b'{"UUID":"","Name":"","RoutingKey":"{q}:aq:workers"}', "wrong_key"),
    ],
)
async def test_delayed_junk_goes_to_a_dead_letter_and_holds_nothing_up(
    body: bytes, reason: str, redis_url: str, redis: Redis
) -> None:
    good = encode_signature(signature("good"))
    await redis.zadd("delayed_tasks", {body: 1, good: 2, b"later": 4e18})
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.tend([])
        assert await redis.lrange("q", 0, -1) == [good]
        (dead,) = await broker.dead("delayed_tasks", 10)
        assert (dead.body, dead.reason) == (body, reason)


async def test_another_delayed_set_can_be_named(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url, delayed_tasks_key="later_tasks")) as broker:
        await broker.publish([message("a", not_before=4e9)])
        assert await redis.zcard("later_tasks") == 1


async def test_many_due_messages_are_promoted_in_few_calls(redis_url: str, redis: Redis) -> None:
    due = {encode_signature(signature(f"n{number}")): number + 1.0 for number in range(1_200)}
    await redis.zadd("delayed_tasks", due)
    async with opened(RedisBroker(redis_url)) as broker:
        pauses = [await broker.tend([]) for _ in range(3)]
        assert pauses[:2] == [0.0, 0.0]
        assert await redis.lrange("q", 0, -1) == list(due)


async def test_tending_comes_back_when_the_next_one_is_due(redis_url: str, redis: Redis) -> None:
    # a lease so long that nobody can be due for a reaping, however long the server has been up
    async with opened(RedisBroker(redis_url, lease=1e6, delayed_poll=900.0)) as broker:
        assert await broker.tend(["q"]) == 900.0
        now = float((await redis.time())[0])
        await broker.publish([message("a", not_before=now + 400)])
        assert 200.0 < await broker.tend(["q"]) <= 400.0
        await broker.publish([message("b")])
        await broker.nack(await broker.fetch("q", 1, 0), delay=200.0)
        assert 50.0 < await broker.tend(["q"]) <= 200.0


async def test_empty_elements_wake_and_are_nothing_else(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        await redis.rpush("q", b"", b"a", b"", b"b", b"")
        assert [one.body for one in await broker.fetch("q", 2, 0)] == [b"a", b"b"]
        waiting = asyncio.create_task(broker.fetch("q", 1, 20))
        await redis.rpush("q", b"")
        await comes(lambda: _none_waiting(redis))
        await redis.rpush("q", b"c")
        assert [one.body for one in await waiting] == [b"c"]
        assert await broker.peek("q", 10) == []


async def _none_waiting(redis: Redis) -> bool:
    return await redis.llen("q") == 0


async def test_numbers_and_bytes_come_through_every_script_unharmed(redis_url: str, redis: Redis) -> None:
    big = Arg(type="uint64", value=2**64 - 1), Arg(type="int64", value=-(2**63)), Arg(type="string", value='☃\x00"')
    body = encode_signature(signature("a", args=big))
    results = TaskResult(type="int64", value=2**63 - 1), TaskResult(type="json", value={"CreatedAt": "x", "State": "y"})
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        await broker.submit([pending("a")], [Message(body, "q", "task_a")], KEPT)
        await broker.nack(await broker.fetch("q", 1, 0))
        await broker.nack(await broker.fetch("q", 1, 0), delay=0.001)
        await asyncio.sleep(0.01)
        await broker.tend(["q"])
        await broker.bury(await broker.fetch("q", 1, 0), "reason", "error")
        (dead,) = await broker.dead("q", 1)
        await broker.requeue("q", [dead.id])
        (taken,) = await broker.fetch("q", 1, 0)
        assert taken.body == body
        await broker.settle([Settled(taken, Ack(), success("a", *results))], KEPT)
        expected = success("a", *results).model_copy(update={"created_at": SENT_AT})
        assert await redis.get("task_a") == encode_state(expected)
        assert list(await backend.get(["task_a"])) == [expected]


async def test_a_state_that_go_wrote_keeps_its_name_and_its_time(redis_url: str, redis: Redis) -> None:
    old = (
        b'{"TaskUUID":"task_a","TaskName":"a\\"State\\":\\"SUCCESS","State":"STARTED","Results":null,"Error":"",'
        b'"CreatedAt":"2025-01-02T03:04:05.1Z","TTL":0}'
    )
    await redis.set("task_a", old)
    async with opened(RedisBackend(redis_url)) as backend:
        await backend.put([TaskState(task_uuid="task_a", state=State.FAILURE, error="oh")])
        written = await redis.get("task_a")
        assert written == old.replace(b"STARTED", b"FAILURE").replace(b'"Error":""', b'"Error":"oh"')
        assert decode_state(written).task_name == 'a"State":"SUCCESS'


# --------------------------------------------------------------------------------------------------- groups


async def take_all_of(broker: RedisBroker, *names: str) -> list[Delivery]:
    """Members of ``group_a``, sent and taken."""
    members = [f"task_{name}" for name in names]
    sent = [message(name) for name in names]
    await broker.submit([pending(name) for name in names], sent, KEPT, groups=[group("group_a", *members)])
    return list(await broker.fetch("q", len(names), 0))


def ending(name: str, *, of: str = "group_a") -> GroupEnd:
    """An end of a group whose callback is this task."""
    return GroupEnd(of, pending=(pending(name),), publish=(message(name),))


async def test_a_group_that_machinery_opened_is_counted_down_and_triggered(redis_url: str, redis: Redis) -> None:
    """Every byte but the flag stays as Go wrote it, and so does the expiry where it is later than ours."""
    meta = (
        b'{"GroupUUID":"group_a","TaskUUIDs":["task_a","task_b"],"ChordTriggered":false,"Lock":false,'
        b'"CreatedAt":"2026-11-22T03:35:24.398915004+01:00","TTL":0}'
    )
    await redis.set("group_a", meta, ex=9_000)
    await redis.set("task_b", encode_state(success("b")), ex=9_000)  # a Go worker ran it
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        await broker.submit([pending("a")], [message("a")], KEPT)
        (a,) = await broker.fetch("q", 1, 0)
        (last,) = await broker.settle([Settled(a, Ack(), success("a"), member=member("a"))], KEPT)
        assert last.progress is Progress.COMPLETE
        assert await redis.get("group_a") == meta
        await broker.settle([replace(last.item, end=ending("c"))], KEPT)
        assert await redis.get("group_a") == meta.replace(b"false", b"true", 1)
        assert 8_000 < await redis.ttl("group_a") <= 9_000
        assert list(await backend.finish_members([member("a")])) == [Progress.TRIGGERED]


async def test_members_are_added_to_a_group_that_machinery_opened(redis_url: str, redis: Redis) -> None:
    meta = encode_group(group("group_a", "task_a"))
    await redis.set("group_a", meta, ex=9_000)
    async with opened(RedisBackend(redis_url)) as backend:
        assert await backend.add_members("group_a", ["task_b", "task_c"])
    assert await redis.get("group_a") == meta.replace(b'"task_a"', b'"task_a","task_b","task_c"')
    assert 8_000 < await redis.ttl("group_a") <= 9_000


async def test_what_machinery_triggered_is_left_alone(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        (a,) = await take_all_of(broker, "a")
        (last,) = await broker.settle([Settled(a, Ack(), success("a"), member=member("a"))], KEPT)
        await redis.set("group_a", encode_group(group("group_a", "task_a", chord_triggered=True)), ex=60)
        assert list(await backend.finish_members([member("a")])) == [Progress.TRIGGERED]
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.SENT
        assert not await backend.add_members("group_a", ["task_b"])
        assert list(await broker.settle([replace(last.item, end=ending("c"))], KEPT)) == []
        assert (await broker.depth("q")).ready == 0


async def test_nothing_is_triggered_while_a_go_worker_may_be_about_to(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        (a,) = await take_all_of(broker, "a")
        await redis.set("TriggerChordMutex", "of a Go worker", px=8_000)
        item = Settled(a, Ack(), success("a"), publish=(message("next"),), member=member("a"), end=ending("c"))
        for _ in range(2):
            assert list(await broker.settle([item], KEPT)) == [Unsettled(item, Progress.BUSY)]
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.BUSY
        assert list(await broker.extend([a])) == []
        assert (await broker.depth("q")).ready == 0
        (found,) = await backend.get_groups(["group_a"])
        assert found is not None
        assert not found.chord_triggered
        await redis.delete("TriggerChordMutex")
        assert list(await broker.settle([item], KEPT)) == []
        assert [decode_signature(one.body).name for one in await broker.fetch("q", 10, 0)] == ["c", "next"]
        assert await backend.claim_group("group_b", "me", 10) is GroupClaim.MINE


async def test_what_a_claim_of_ours_triggered_needs_no_go_worker_to_be_done(redis_url: str, redis: Redis) -> None:
    """A Go worker that finds it triggered sends nothing, so that nobody is waited for."""
    async with opened(RedisBackend(redis_url)) as backend:
        await backend.open_groups([group("group_a", "task_a")])
        await backend.claim_group("group_a", "me", 10)
        await redis.set("TriggerChordMutex", "of a Go worker", px=8_000)
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.MINE
        assert await backend.claim_group("group_a", "you", 10) is GroupClaim.TAKEN


@pytest.mark.parametrize("name", ["group_a", "a:b", "{tag}", "a{b}c", "a{b}{c}", "{}", "a}{b}"])
async def test_every_key_of_a_group_lies_in_its_slot_and_ends_with_it(name: str, redis_url: str, redis: Redis) -> None:
    async with opened(RedisBackend(redis_url)) as backend:
        await backend.open_groups([group(name, "task_a", "task_b")])
        await backend.finish_members([Member(name, "task_a")])
        await backend.claim_group(name, "me", 10)
        found = await keys(redis)
        assert len(found) == 3
        if name != "{}":  # has no form that lies in its slot
            assert {key_slot(key.encode()) for key in found} == {key_slot(name.encode())}
        assert all(3_500 < ttl <= 3_600 for ttl in found.values()), found
        backend.results_expire_in = 7_200.0
        await backend.touch([["task_unknown", name]])
        assert all(7_100 < ttl <= 7_200 for ttl in (await keys(redis)).values())
        await backend.mark_group_sent(name)
        assert set(await keys(redis)) == {name}


async def test_a_workflow_for_later_is_kept_from_when_it_is_due(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        due = float((await redis.time())[0]) + 1_000
        plans = [Plan(f"plan_{name}", (), ("task_old",), not_before=due) for name in "ab"]
        await backend.begin([TaskState(task_uuid="task_old", task_name="old")])
        await backend.open_groups([group("group_a", "task_a", not_before=due)])
        await backend.put_plans(plans[:1])
        await broker.submit([], [message("x")], KEPT, groups=[group("group_b", not_before=due)], plans=plans[1:])
        (x,) = await broker.fetch("q", 1, 0)
        retried = TaskState(task_uuid="task_x", task_name="x", state=State.RETRY, not_before=due)
        opens = (group("group_c", not_before=due),)
        await broker.settle([Settled(x, Ack(), retried, opens=opens, alive=("task_old",))], KEPT)
        expiring = {key: ttl for key, ttl in (await keys(redis)).items() if ttl > 0}
        assert expiring.keys() == {"task_old", "task_x", "group_a", "group_b", "group_c", "plan_a", "plan_b"}
        assert all(4_500 < ttl <= 4_600 for ttl in expiring.values()), expiring
        await backend.touch([["task_old", "group_a"]], due + 800)  # a gain of less than a quarter
        assert await redis.ttl("task_old") <= 4_600
        await backend.touch([["task_old", "group_a"]], due + 1_000)
        assert [await redis.ttl(key) > 5_500 for key in ("task_old", "group_a", "group_b")] == [True, True, False]
        await backend.touch([["task_unknown", "task_old"]])  # none is kept shorter
        assert await redis.ttl("task_old") > 5_500


async def test_a_group_that_is_over_leaves_one_key(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        a, b = await take_all_of(broker, "a", "b")
        await broker.settle([Settled(a, Ack(), success("a"), member=member("a"))], KEPT)
        assert "{group_a}:aq:left" in await keys(redis)
        await broker.settle([Settled(b, Ack(), success("b"), member=member("b"), end=GroupEnd("group_a"))], KEPT)
        assert [key for key in await keys(redis) if "group_a" in key] == ["group_a"]


async def test_the_remaining_set_of_an_earlier_group_is_not_the_next_ones(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBackend(redis_url)) as backend:
        await backend.open_groups([group("group_a", "task_a")])
        await backend.finish_members([member("a")])
        await redis.delete("group_a")  # as it expires a moment before what belongs to it
        await backend.open_groups([group("group_a", "task_b", "task_c")])
        assert list(await backend.finish_members([member("b")])) == [Progress.WAITING]


async def test_ten_thousand_members_are_sent_counted_down_and_ended(redis_url: str) -> None:
    count = 10_000
    names = [f"n{number}" for number in range(count)]
    members = [f"task_{name}" for name in names]
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        sent = [message(name) for name in names]
        for _ in range(2):  # as after a lost reply
            await broker.submit(
                [pending(name) for name in names],
                sent,
                KEPT,
                groups=[group("group_a", *members)],
                plans=[Plan("plan_a", (), tuple(members))],
            )
        assert (await broker.depth("q")).ready == count
        assert list(await backend.get_groups(["group_a"])) == [group("group_a", *members)]
        await backend.put([success(name) for name in names[1:]])
        assert list(await backend.finish_members([member("n0")])) == [Progress.COMPLETE]
        await backend.begin([pending("n7")])
        await backend.touch([["task_unknown", "group_a"], ["task_unknown", "plan_a"]])
        held = list(await broker.fetch("q", 1_000, 0))
        batch = [
            Settled(one, Ack(), success(name), member=member(name)) for one, name in zip(held, names, strict=False)
        ]
        unsettled = await broker.settle(batch, KEPT)
        assert [each.item for each in unsettled] == batch
        end = GroupEnd("group_a", ended=tuple(failure(f"x{number}") for number in range(count)))
        assert list(await broker.settle([replace(unsettled[0].item, end=end)], KEPT)) == []
        assert (await broker.depth("q")).held == len(held) - 1


async def commands_per_member(server: RedisServer, name: str, size: int) -> float:
    """What counting one member costs on average, in commands that the server executes."""
    tasks = [f"{name}{number}" for number in range(size)]
    random.Random(size).shuffle(tasks)
    async with opened(RedisBackend(server.url)) as backend, Redis.from_url(server.url) as redis:
        await backend.open_groups([group(name, *(f"task_{task}" for task in sorted(tasks)))])
        await backend.begin([pending(task) for task in tasks])
        spent = 0
        answers: list[Progress] = []
        for start in range(0, size, 10):
            some = tasks[start : start + 10]
            await backend.put([success(task) for task in some])
            await redis.config_resetstat()
            answers += await backend.finish_members([Member(name, f"task_{task}") for task in some])
            stats = await redis.info("commandstats")
            spent += sum(each["calls"] for key, each in stats.items() if not key.startswith("cmdstat_config"))
    assert answers[-1] is Progress.COMPLETE
    assert answers[: size - 10] == [Progress.WAITING] * (size - 10)
    return spent / size


async def test_counting_a_member_costs_the_same_in_groups_of_10_and_of_10_000(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    few, many = await commands_per_member(server, "few", 10), await commands_per_member(server, "many", 10_000)
    print(f"commands per finished member: {few:.2f} of 10, {many:.2f} of 10,000")
    assert many <= few < 10


async def test_progress_that_is_reported_often_costs_one_command(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    async with opened(RedisBackend(server.url)) as backend, Redis.from_url(server.url) as redis:
        members = [f"task_{number}" for number in range(1_000)]
        await backend.begin([TaskState(task_uuid=each, task_name="add") for each in members])
        await backend.open_groups([group("group_a", *members)])
        await redis.config_resetstat()
        await backend.touch([["group_a"]])
        stats = await redis.info("commandstats")
        assert {key: stats[key]["calls"] for key in stats if "pttl" in key or "expire" in key} == {"cmdstat_pttl": 1}


# ---------------------------------------------------------------------------------- other people's accidents


async def test_a_key_of_another_type_is_named_and_other_queues_go_on(redis_url: str, redis: Redis) -> None:
    await redis.set("wrong", "x")
    async with opened(RedisBroker(redis_url)) as broker:
        for verb in (
            lambda: broker.fetch("wrong", 1, 0),
            lambda: broker.publish([message("a"), message("a", "wrong")]),
            lambda: broker.submit([pending("a")], [message("a"), message("a", "wrong")], KEPT),
            lambda: broker.depth("wrong"),
            lambda: broker.purge("wrong"),
            lambda: broker.peek("wrong", 10),
        ):
            with pytest.raises(Refused, match="wrong"):
                await verb()
        assert await redis.exists("q", "task_a") == 0, "half of a batch"
        await broker.tend(["wrong", "q"])
        await broker.publish([message("a")])
        assert len(await broker.fetch("q", 1, 1)) == 1
        assert await redis.get("wrong") == b"x"


async def test_a_state_is_never_written_over_something_else(redis_url: str, redis: Redis) -> None:
    """A task whose UUID is the name of a queue must not wipe it out."""
    await redis.rpush("task_q", "waiting")
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        verbs: list[Callable[[], Awaitable[object]]] = [
            lambda: backend.begin([pending("q")]),
            lambda: backend.put([pending("q")]),
            lambda: backend.put([success("q")]),
            lambda: broker.submit([pending("q")], [message("q")], KEPT),
        ]
        for verb in verbs:
            with pytest.raises(Refused, match="task_q"):
                await verb()
        await broker.publish([message("q"), message("b"), message("c"), message("d")])
        one, two, three, four = await broker.fetch("q", 10, 0)
        await broker.settle(
            [
                Settled(one, Ack(), success("q")),
                Settled(two, Ack(), success("b"), pending=(pending("q"),)),
                Settled(three, Ack(), success("c"), publish=(message("x", "task_d"),)),
                Settled(four, Ack(), success("d")),
            ],
            KEPT,
        )
        assert await redis.lrange("task_q", 0, -1) == [b"waiting"]
        assert await redis.llen("task_d") == 1  # the third one's callback came first
        dead = await broker.dead("q", 10)
        assert [(one.reason, decode_signature(one.body).name) for one in dead] == [
            ("wrong_key", "q"),
            ("wrong_key", "b"),
            ("wrong_key", "d"),
        ]


async def test_a_callback_to_a_key_of_another_type_buries_its_sender(redis_url: str, redis: Redis) -> None:
    await redis.set("wrong", "x")
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.publish([message("a")])
        (taken,) = await broker.fetch("q", 1, 0)
        await broker.settle([Settled(taken, Ack(), success("a"), publish=(message("b", "wrong"),))], KEPT)
        (dead,) = await broker.dead("q", 10)
        assert (dead.reason, "wrong" in dead.error) == ("wrong_key", True)


async def test_a_delayed_set_of_another_type_costs_no_message(redis_url: str, redis: Redis) -> None:
    await redis.set("delayed_tasks", "x")
    later = message("a", not_before=4e9)
    async with opened(RedisBroker(redis_url)) as broker:
        verbs: list[Callable[[], Awaitable[object]]] = [
            lambda: broker.publish([message("b"), later]),
            lambda: broker.submit([pending("b"), pending("a")], [message("b"), later], KEPT),
        ]
        for verb in verbs:
            with pytest.raises(Refused, match="delayed_tasks"):
                await verb()
        assert await redis.exists("q", "task_a", "task_b") == 0, "half of a batch"
        await broker.publish([message("a")])
        (taken,) = await broker.fetch("q", 1, 0)
        await broker.settle([Settled(taken, Ack(), publish=(later,))], KEPT)
        (dead,) = await broker.dead("q", 10)
        assert (dead.reason, "delayed_tasks" in dead.error) == ("wrong_key", True)


async def test_groups_and_plans_are_never_written_over_something_else(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        await backend.open_groups([group("group_ok", "task_a", "task_b")])
        await backend.put([success("other")])
        await redis.rpush("group_list", "x")
        await redis.set("{group_left}:aq:left", "x")
        await redis.rpush("{group_claim}:aq:claim", "x")
        found = await keys(redis)
        for name in ("group_list", "task_other"):
            verbs: list[Callable[[], Awaitable[object]]] = [
                partial(backend.open_groups, [group("group_new"), group(name)]),
                partial(backend.finish_members, [Member("group_ok", "task_a"), Member(name, "task_a")]),
                partial(backend.add_members, name, ["task_b"]),
                partial(backend.claim_group, name, "me", 10),
                partial(backend.mark_group_sent, name),
                partial(broker.submit, [pending("new")], [message("new")], KEPT, groups=[group(name)]),
            ]
            for verb in verbs:
                with pytest.raises(Refused, match=name):
                    await verb()
        for verb in (
            partial(backend.put_plans, [Plan("plan_new", (), ()), Plan("group_list", (), ())]),
            partial(broker.submit, [pending("new")], [message("new")], KEPT, plans=[Plan("group_list", (), ())]),
        ):
            with pytest.raises(Refused, match="group_list"):
                await verb()
        assert (await keys(redis)).keys() == found.keys() | {"aq:queues"}, "half of a batch"
        await redis.set("group_left", encode_group(group("group_left", "task_a")))
        await redis.set("group_claim", encode_group(group("group_claim", "task_a")))
        with pytest.raises(Refused, match="group_left}:aq:left"):
            await backend.finish_members([Member("group_left", "task_a")])
        with pytest.raises(Refused, match="group_claim}:aq:claim"):
            await backend.claim_group("group_claim", "me", 10)
        await backend.touch([["group_list", "group_ok"], ["task_unknown", "group_list", "group_left"]])


async def test_a_member_whose_key_holds_something_else_has_not_ended(redis_url: str, redis: Redis) -> None:
    await redis.rpush("task_b", "x")
    async with opened(RedisBackend(redis_url)) as backend:
        await backend.open_groups([group("group_a", "task_a", "task_b")])
        assert list(await backend.finish_members([member("a")])) == [Progress.WAITING]


async def test_a_part_of_a_workflow_that_meets_something_else_buries_its_message_alone(
    redis_url: str, redis: Redis
) -> None:
    await redis.rpush("group_list", "x")
    await redis.rpush("task_list", "x")
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        await backend.open_groups([group("group_left", "task_a"), group("group_a", "task_a", "task_z")])
        await redis.set("{group_left}:aq:left", "x")
        list_state = TaskState(task_uuid="task_list", task_name="x", state=State.FAILURE)
        parts: list[tuple[str, dict[str, Any]]] = [
            ("task_list", {"ended": (list_state,)}),
            ("group_list", {"opens": (group("group_list"),)}),
            ("group_list", {"member": Member("group_list", "task_a")}),
            ("{group_left}:aq:left", {"member": Member("group_left", "task_a")}),
            ("group_list", {"end": GroupEnd("group_list")}),
            ("task_list", {"end": GroupEnd("group_a", ended=(list_state,))}),
            ("task_list", {"end": GroupEnd("group_a", pending=(list_state,))}),
            ("group_a", {"end": GroupEnd("group_a", publish=(message("x", "group_a"),))}),
        ]
        names = [f"n{number}" for number in range(len(parts))]
        await broker.publish([message(name) for name in (*names, "ok")])
        *held, ok = await broker.fetch("q", 20, 0)
        batch = [
            Settled(one, Ack(), success(name), publish=(message("never"),), **{"opens": (group("group_new"),)} | part)
            for one, name, (_, part) in zip(held, names, parts, strict=True)
        ]
        batch.append(Settled(ok, Ack(), success("ok"), alive=("task_list", "group_list"), publish=(message("sent"),)))
        assert list(await broker.settle(batch, KEPT)) == []
        dead = await broker.dead("q", 20)
        assert [decode_signature(one.body).name for one in dead] == names
        for one, (key, _) in zip(dead, parts, strict=True):
            assert one.reason == "wrong_key"
            assert f"the key {key}:" in one.error
        assert list(await backend.get([f"task_{name}" for name in names])) == [None] * len(names), "half of an item"
        found = await backend.get_groups(["group_a", "group_new"])
        assert [one and one.chord_triggered for one in found] == [False, None]
        assert [decode_signature(one.body).name for one in await broker.fetch("q", 20, 0)] == ["sent"]


async def test_what_cannot_be_buried_is_still_held(redis_url: str, redis: Redis) -> None:
    await redis.set("{q}:aq:dead", "x")
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.publish([message("a")])
        held = list(await broker.fetch("q", 1, 0))
        with pytest.raises(Refused):
            await broker.bury(held, "reason", "error")
        assert list(await broker.extend(held)) == []


async def test_a_flush_under_a_worker_stops_nobody(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url), RedisBackend(redis_url)) as (broker, backend):
        await broker.publish([message("a")])
        held = list(await broker.fetch("q", 1, 0))
        await redis.flushdb()
        assert list(await broker.extend(held)) == held
        await broker.settle([Settled(held[0], Ack(), success("a"))], KEPT)
        assert list(await backend.get(["task_a"])) == [None]
        await broker.publish([message("b")])
        taken = await comes(lambda: broker.fetch("q", 1, 1))
        assert [decode_signature(one.body).name for one in taken] == ["b"]
        await broker.ack(taken)
        assert list(await broker.fetch("q", 1, 0.05)) == []


async def test_what_a_waiting_worker_was_given_after_a_flush_is_not_lost(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        waiting = asyncio.create_task(broker.fetch("q", 1, 20))
        await comes(lambda: _someone_waits(redis))
        await redis.flushdb()  # the server has forgotten the worker, and hands it a message all the same
        await redis.rpush("q", b"a")
        taken = list(await waiting) or list(await comes(lambda: broker.fetch("q", 1, 1)))
        assert [one.body for one in taken] == [b"a"]


async def _someone_waits(redis: Redis) -> bool:
    db = str(redis.connection_pool.connection_kwargs["db"])
    return any(client["cmd"] == "blmove" and client["db"] == db for client in await redis.client_list())


async def test_what_a_twin_was_told_is_lost_and_is_not_goes_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a twin is told that has come to a server that takes itself for the master."""
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.publish([message("a"), message("b")])
        held = list(await broker.fetch("q", 2, 0))
        twin = broker.twin()
        async with opened(twin):

            async def nothing_is_known(calls: Sequence[object]) -> list[int]:
                return [-1 for _ in calls]

            monkeypatch.setattr(twin._link, "run_each", nothing_is_known)
            assert list(await twin.extend(held)) == held
        await broker.tend(["q"])
        assert [(one.body, one.attempt) for one in await broker.fetch("q", 2, 0)] == [(one.body, 1) for one in held]


async def test_losing_its_scripts_is_no_harm_to_a_worker(lone_redis_url: str) -> None:
    async with opened(RedisBroker(lone_redis_url)) as broker, outsider(lone_redis_url) as redis:
        await redis.script_flush()
        await broker.publish([message("a")])
        await redis.script_flush()
        taken = await broker.fetch("q", 1, 0)
        await redis.script_flush()
        await broker.settle([Settled(taken[0], Ack())], KEPT)
        await redis.script_flush()
        await broker.tend(["q"])
        assert list(await broker.extend(taken)) == list(taken)


async def test_the_dead_letter_is_capped(redis_url: str, redis: Redis) -> None:
    async with opened(RedisBroker(redis_url, dead_letter_size=100)) as broker:
        for _ in range(3):
            await broker.publish([message(f"n{number}") for number in range(300)])
            await broker.bury(await broker.fetch("q", 300, 0), "reason", "error")
        assert 100 <= ((await broker.depth("q")).dead or 0) <= 300


# --------------------------------------------------------------------------------------- settling, leases


async def test_one_batch_settles_deliveries_of_many_queues_and_workers(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url), RedisBroker(redis_url), RedisBackend(redis_url)) as (one, two, backend):
        await one.publish([message(name, queue) for queue in ("q", "r") for name in (f"{queue}1", f"{queue}2")])
        batch = [
            Settled(delivery, Ack(), success(decode_signature(delivery.body).name))
            for broker in (one, two)
            for queue in ("q", "r")
            for delivery in await broker.fetch(queue, 1, 0)
        ]
        assert len(batch) == 4
        await two.twin().close()
        twin = one.twin()
        async with opened(twin):
            await twin.settle(batch[::2] + batch[1::2], KEPT)
        found = await backend.get(["task_q1", "task_q2", "task_r1", "task_r2"])
        assert [state.state for state in found if state] == [State.SUCCESS] * 4
        for queue in ("q", "r"):
            assert (await one.depth(queue)).held == 0


async def test_an_idle_worker_keeps_its_lease_while_it_waits(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url, lease=1.5), RedisBroker(redis_url, lease=1.5)) as (broker, other):
        await broker.publish([message("a")])
        (held,) = await broker.fetch("q", 1, 0)
        waiting = asyncio.create_task(broker.fetch("q", 1, 3.0))
        while not waiting.done():
            await other.tend(["q"])
            await asyncio.sleep(0.05)
        assert list(await waiting) == []
        assert list(await broker.extend([held])) == []


async def test_what_a_dead_worker_held_comes_back_with_no_other_traffic(redis_url: str) -> None:
    lease = 1.0
    dead, other = RedisBroker(redis_url, lease=lease), RedisBroker(redis_url, lease=lease)
    async with opened(other):
        await dead.open()
        await dead.publish([message("a"), message("b")])
        held = await dead.fetch("q", 10, 0)
        await dead._link.close()  # it dies: nothing is given back
        waiting = asyncio.create_task(other.fetch("q", 10, 30))
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=await other.tend(["q"]))
        again = await waiting
        assert [(one.body, one.attempt) for one in again] == [(one.body, 2) for one in held]


async def test_what_only_its_inbox_held_comes_back_uncounted(redis_url: str, redis: Redis) -> None:
    lease = 0.5
    async with opened(RedisBroker(redis_url, lease=lease), RedisBroker(redis_url, lease=lease)) as (dead, other):
        await dead.fetch("q", 1, 0)
        (worker,) = await redis.zrange("{q}:aq:workers", 0, -1)
        await redis.rpush(b"{q}:aq:inbox:" + raw(worker), b"landed")  # as BLMOVE does, whose reply nobody read

        async def taken() -> Sequence[Delivery]:
            await other.tend(["q"])
            return await other.fetch("q", 1, 0)

        (again,) = await comes(taken)
        assert (again.body, again.attempt) == (b"landed", 1)
        assert list(await dead.fetch("q", 1, 0)) == []
        await redis.rpush(b"{q}:aq:inbox:" + raw(worker), b"late")  # what a broken connection still carried
        (again,) = await comes(taken)
        assert again.body == b"late"


async def test_a_fenced_worker_begins_anew_under_another_name(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url, lease=0.5), RedisBroker(redis_url, lease=0.5)) as (broker, other):
        await broker.publish([message("a"), message("b")])
        (a,) = await broker.fetch("q", 1, 0)

        async def is_lost() -> bool:
            await other.tend(["q"])
            return (await other.depth("q")).held == 0

        await comes(is_lost)
        assert list(await broker.fetch("q", 10, 20)) == []  # it says so at once, and takes nothing in its old name
        again = await broker.fetch("q", 10, 0)
        assert sorted((decode_signature(one.body).name, one.attempt) for one in again) == [("a", 2), ("b", 1)]
        assert list(await broker.extend([a, *again])) == [a]


async def test_a_fetch_without_a_reasonable_limit_takes_what_fits(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url)) as broker:
        await broker.publish([message(f"n{number}") for number in range(9_000)])
        taken = await broker.fetch("q", 1_000_000, 0)
        assert len(taken) == broker.capabilities.max_batch
        assert (await broker.depth("q")).ready == 9_000 - len(taken)


async def test_what_cannot_be_held_is_not_taken(start_server: StartServer) -> None:
    server = start_server(RedisServer(acl={"worker": f"on >{CANARY} {ACL.replace('+hset', '')}"}))
    url = f"redis://worker:{CANARY}@127.0.0.1:{server.port}"
    async with opened(RedisBroker(url), RedisBroker(server.url)) as (broker, owner):
        await owner.publish([message("a", "machinery_tasks")])
        with pytest.raises(Refused, match=r"can't run|permission"):
            await broker.fetch("machinery_tasks", 10, 0)
        assert len(await owner.fetch("machinery_tasks", 10, 0)) == 1


async def test_what_may_not_be_settled_is_buried_and_the_rest_is_settled(start_server: StartServer) -> None:
    server = start_server(RedisServer(acl={"worker": f"on >{CANARY} {ACL}"}))
    url, queue = f"redis://worker:{CANARY}@127.0.0.1:{server.port}", "machinery_tasks"
    async with opened(RedisBroker(url), RedisBackend(url)) as (broker, backend):
        await broker.publish([message(name, queue) for name in "abc"])
        a, b, c = await broker.fetch(queue, 10, 0)
        elsewhere = TaskState(task_uuid="elsewhere", task_name="a", state=State.SUCCESS)
        await broker.settle(
            [
                Settled(a, Ack(), elsewhere),
                Settled(b, Ack(), success("b"), publish=(message("x", "not-mine"),)),
                Settled(c, Ack(), success("c")),
            ],
            KEPT,
        )
        dead = await broker.dead(queue, 10)
        assert ["elsewhere" in dead[0].error, "not-mine" in dead[1].error, len(dead)] == [True, True, 2]
        found = await backend.get(["task_b", "task_c"])
        assert [state and state.state for state in found] == [None, State.SUCCESS]


def test_the_page_names_the_rights_that_are_tested() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "brokers" / "redis.md").read_text().split()
    assert set(ACL.split()) - set(page) == {"~lock_*"}


async def test_a_dead_worker_of_many_messages_is_taken_over_in_order(redis_url: str) -> None:
    lease = 1.0
    async with opened(RedisBroker(redis_url, lease=lease), RedisBroker(redis_url, lease=lease)) as (dead, other):
        names = [f"n{number:04}" for number in range(1_700)]
        await dead.publish([message(name) for name in names])
        held = [*await dead.fetch("q", 1_000, 0), *await dead.fetch("q", 1_000, 0)]
        assert len(held) == 1_700

        async def all_there() -> bool:
            await other.tend(["q"])
            return (await other.depth("q")).ready == 1_700

        await comes(all_there)
        again = [*await other.fetch("q", 1_000, 0), *await other.fetch("q", 1_000, 0)]
        assert [one.body for one in again] == [one.body for one in held]
        assert {one.attempt for one in again} == {2}
        await dead.ack(held)
        assert list(await other.extend(again[:500])) == []


async def test_the_queues_that_were_used_are_known_to_others(redis_url: str) -> None:
    async with opened(RedisBroker(redis_url), RedisBroker(redis_url)) as (broker, other):
        await broker.publish([message("a", "b-queue")])
        await broker.fetch("a-queue", 1, 0)
        assert await other.queues() == ["a-queue", "b-queue"]


# ------------------------------------------------------------------------------------------------- watching


async def test_a_state_that_anybody_wrote_wakes(lone_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "asyncqueue.connections.redis_tracking.TOLD", (1_000.0, 1_000.0)
    )  # nobody looks without being told
    async with opened(RedisBackend(lone_redis_url)) as backend, outsider(lone_redis_url) as redis:
        await backend.begin([pending("a"), pending("b"), pending("c")])
        endings = backend.watch(["task_a", "task_b", "task_c"])
        first = asyncio.ensure_future(anext(endings))
        await comes(lambda: _is_tracked(redis))
        await redis.set("task_a", encode_state(success("a")), ex=60)
        assert (await asyncio.wait_for(first, 20))[0] == "task_a"
        await redis.delete("task_b")
        assert await asyncio.wait_for(anext(endings), 20) == ("task_b", None)
        await redis.flushdb()
        assert await asyncio.wait_for(anext(endings), 20) == ("task_c", None)
        await let_go(endings)


async def _is_tracked(redis: Redis) -> bool:
    return bool((await redis.info("stats"))["tracking_total_keys"])


async def test_a_watch_survives_the_loss_of_its_connections(lone_redis_url: str) -> None:
    watcher = RedisBackend(lone_redis_url, client_name="watcher")
    async with opened(watcher) as backend, outsider(lone_redis_url) as redis:
        await backend.begin([pending("a")])
        endings = backend.watch(["task_a"])
        first = asyncio.ensure_future(anext(endings))
        await comes(lambda: _is_tracked(redis))
        for client in await redis.client_list():
            if client["name"] == "watcher" and client["sub"] != "0":
                await redis.client_kill_filter(_id=client["id"])
        await redis.set("task_a", encode_state(success("a")), ex=60)
        assert (await asyncio.wait_for(first, 20))[0] == "task_a"
        await let_go(endings)


async def test_a_server_that_does_not_tell_is_polled(start_server: StartServer) -> None:
    server = start_server(RedisServer(acl={"worker": f"on >{CANARY} {ACL.replace('+client|tracking', '')}"}))
    async with opened(RedisBackend(f"redis://worker:{CANARY}@127.0.0.1:{server.port}")) as backend:
        await backend.begin([pending("a")])
        endings = backend.watch(["task_a"])
        first = asyncio.ensure_future(anext(endings))
        await asyncio.sleep(0.1)
        await backend.put([success("a")])
        assert (await asyncio.wait_for(first, 20))[0] == "task_a"
        await let_go(endings)


async def test_a_watch_ends_when_the_server_is_gone_and_works_when_it_is_back(redis_server: RedisServer) -> None:
    async with opened(RedisBackend(redis_server.url)) as backend:
        await backend.begin([pending("a")])
        endings = backend.watch(["task_a"])
        first = asyncio.ensure_future(anext(endings))
        await asyncio.sleep(0.1)
        redis_server.kill()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(first, 20)
        redis_server.start()
        await comes(lambda: _writes(backend))
        assert await asyncio.wait_for(anext(backend.watch(["task_a"])), 20) == (
            "task_a",
            success("a").model_copy(update={"created_at": SENT_AT}),
        )


async def _writes(backend: RedisBackend) -> bool:
    try:
        await backend.put([success("a")])
    except Unavailable:
        return False
    return True
