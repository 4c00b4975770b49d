"""What is Redis's own in its several places: how each is reached, what moves, and what is said where one cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster as OutsideCluster
from redis.crc import key_slot

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.redis import RedisBackend
from asyncqueue.brokers import redis as driver
from asyncqueue.brokers.base import Ack, Message, Settled
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.connections import redis_sentinel
from asyncqueue.connections.redis import Options
from asyncqueue.connections.redis_cluster import slot_of
from asyncqueue.connections.redis_place import Alone, Clustered, Place, RedisAddress, Watched, parse_url
from asyncqueue.errors import AsyncQueueError, ConfigError, Refused, Unavailable
from asyncqueue.locks.redis import RedisLock
from asyncqueue.signature import Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.wire import decode_signature, encode_signature
from tests.conftest import StartServer
from tests.contract.test_redis import ACL, go_all_the_way
from tests.opened import opened
from tests.services import RedisCluster, RedisSentinel, RedisServer, free_port

LEASE = 2.0
CANARY = "s3cret-c4nary"
PATIENCE = 30.0


def message(name: str, queue: str = "q", **fields: Any) -> Message:
    body = encode_signature(Signature(uuid=f"task_{name}", name=name, routing_key=queue))
    return Message(body, queue, f"task_{name}", **fields)


def success(name: str) -> TaskState:
    return TaskState(task_uuid=f"task_{name}", task_name=name, state=State.SUCCESS)


def names(deliveries: Any) -> list[str]:
    return [decode_signature(each.body).name for each in deliveries]


async def at_last(call: Callable[[], Awaitable[Any]]) -> Any:
    """What it returns once that is something, and the service answers."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                if found := await call():
                    return found
            except Unavailable:
                pass
            await asyncio.sleep(0.02)


# ------------------------------------------------------------------------------------------------------ URLs


def at(*places: str, **fields: Any) -> tuple[RedisAddress, ...]:
    parts = (place.rpartition(":") for place in places)
    return tuple(RedisAddress(host=host, port=int(port), **fields) for host, _, port in parts)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis://h:1,i:2", {}, Clustered(at("h:1", "i:2"))),
        ("redis://h,i/0", {}, Clustered(at("h:6379", "i:6379"))),
        ("redis://me:w%2Cord@h:1,i:2", {}, Clustered(at("h:1", "i:2", username="me", password="w,ord"))),
        ("redis://word@h:1,[::1]:2", {}, Clustered((*at("h:1", password="word"), *at("::1:2", password="word")))),
        ("redis://h:1", {"cluster": True}, Clustered(at("h:1"))),
        ("redis://h:1?cluster=true", {}, Clustered(at("h:1"))),
        ("redis://h:1?cluster=false", {"cluster": True}, Alone(*at("h:1"))),
        ("redis://h,i:5/3", {"master_name": "m"}, Watched(at("h:26379", "i:5"), "m", *at("h:26379", db=3))),
        ("redis://:p@h:1/3?master_name=m", {}, Watched(at("h:1"), "m", *at("h:1", db=3, password="p"))),
        (
            "redis://:p@h:1",
            {"master_name": "m", "sentinel_password": "s"},
            Watched(at("h:1", password="s"), "m", *at("h:1", password="p")),
        ),
    ],
)
def test_a_list_is_a_cluster_and_with_a_master_name_its_addresses_are_sentinels(
    url: str, options: dict[str, Any], expected: Place
) -> None:
    assert parse_url(url, **options) == expected


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        (f"redis://:{CANARY}@h:1,h:2/1", {}, "no database but 0, and this asks for 1"),
        (f"redis://:{CANARY}@h:1/1", {"cluster": True}, "no database but 0"),
        (f"redis://:{CANARY}@h:1/0,h:2/0", {}, "the db stands once"),
        (f"redis://:{CANARY}@h:1,:{CANARY}@h:2", {}, "the login stands once"),
        (f"redis://:{CANARY}@h:1,redis://h:2", {}, "the scheme stands once"),
        (f"redis://:{CANARY}@h:1?master_name=m&x=1", {}, "unknown option 'x'"),
        (f"redis://:ab?{CANARY}@h", {}, "percent-encoded"),
        (f"redis://:{CANARY}@h?cluster=yes", {}, "true or false"),
        (f"redis://:{CANARY}@h", {"cluster": True, "master_name": "m"}, "both a cluster and"),
        (f"redis+socket://:{CANARY}@/a", {"cluster": True}, "behind a unix socket"),
        (f"redis://:{CANARY}@h,i:x", {}, "host or port"),
    ],
)
def test_what_cannot_be_is_an_error_that_shows_no_password(url: str, options: Options, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        RedisBroker(url, **options)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("key", ["q", "{a}b", "a{b}c", "a{}b", "}{", "{", "a{b", "☃", "{☃}x"])
def test_a_key_is_in_the_slot_that_the_servers_find(key: str) -> None:
    assert slot_of(key) == slot_of(key.encode()) == key_slot(key.encode())


# ------------------------------------------------------------------------------------------- ways to reach it


async def test_a_valkey_goes_all_the_way(valkey_url: str) -> None:
    await go_all_the_way(valkey_url)


async def test_a_master_behind_sentinels_goes_all_the_way(redis_sentinel_url: str) -> None:
    await go_all_the_way(redis_sentinel_url)


async def test_a_server_that_demands_certificates_of_its_clients_is_given_ours(start_server: StartServer) -> None:
    server = start_server(RedisServer(tls=True, client_certificates=True))
    await go_all_the_way(server.tls_url)
    async with opened(RedisBackend(server.tls_url), RedisLock(server.tls_url)):
        pass
    for thing in (RedisBroker, RedisBackend, RedisLock):
        without = thing(f"rediss://localhost:{server.tls_port}/0?ssl_ca_certs={server.ca_file}")
        with pytest.raises((Refused, Unavailable), match="ssl_certfile"):
            await without.open()
        await without.close()


async def test_sentinels_with_passwords_and_tls_lead_to_their_master(start_server: StartServer) -> None:
    group = start_server(RedisSentinel(password=CANARY, sentinel_password="other", tls=True))
    async with opened(RedisBroker(group.url, sentinel_password="other")) as broker:
        await broker.publish([message("a")])
        assert names(await broker.fetch("q", 1, 0)) == ["a"]
        group.sentinels[0].kill()
        group.sentinels[1].suspend()
        async with opened(RedisBackend(group.url, sentinel_password="other")) as backend:
            await backend.put([success("a")])
        group.sentinels[1].resume()
        wrong = RedisBackend(group.url, sentinel_password="wrong-password")
        with pytest.raises(Refused, match="mymaster") as caught:
            await wrong.open()
        assert "wrong-password" not in str(caught.value)


async def test_a_cluster_with_password_and_tls_is_reached(start_server: StartServer) -> None:
    cluster = start_server(RedisCluster(password=CANARY, tls=True))
    async with opened(RedisBroker(cluster.url), RedisBackend(cluster.url), RedisLock(cluster.url)) as opened_ones:
        broker, backend, lock = opened_ones
        for queue in "abcdef":
            await broker.publish([message("x", queue)])
            assert names(await broker.fetch(queue, 1, 0)) == ["x"]
        await backend.put([success(name) for name in "abcdef"])
        assert await lock.acquire("lock", 10)


async def test_a_user_with_no_more_rights_than_documented_can_work_on_a_cluster(start_server: StartServer) -> None:
    cluster = start_server(RedisCluster())
    for node in cluster.servers:
        node.call("ACL", "SETUSER", "worker", "on", f">{CANARY}", *ACL.split(), "+cluster|slots")
    url = cluster.url.replace("redis://", f"redis://worker:{CANARY}@")
    queue = "machinery_tasks"
    async with opened(RedisBroker(url, lease=LEASE), RedisBackend(url)) as (broker, backend):
        group = GroupMeta(group_uuid="group_a", task_uuids=("task_a",))
        plans = [Plan("plan_a", (), ("task_a",))]
        await backend.open_groups([group])
        await backend.put_plans(plans)
        await backend.begin([TaskState(task_uuid="task_a", task_name="a")])
        await broker.publish([message("a", queue), message("b", queue, not_before=1.0)])
        await broker.tend([queue])
        a, b = await broker.fetch(queue, 2, 5)
        await broker.nack([b])
        await broker.bury(await broker.fetch(queue, 1, 5), "reason", "error")
        await backend.put([success("a")])
        await backend.touch([["group_a", "plan_a"]])
        assert list(await backend.finish_members([Member("group_a", "task_a")])) == [Progress.COMPLETE]
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.MINE
        await broker.ack([a])
        assert (await broker.depth(queue)).dead == 1


async def test_what_a_user_may_not_do_is_named(start_server: StartServer) -> None:
    server = start_server(RedisServer(acl={"worker": f"on >{CANARY} {ACL.replace('+blmove', '')}"}))
    url = f"redis://worker:{CANARY}@127.0.0.1:{server.port}"
    async with opened(RedisBroker(url), RedisBackend(url)) as (broker, backend):
        with pytest.raises(Refused, match="blmove"):
            await broker.fetch("machinery_tasks", 1, 1)
        with pytest.raises(Refused, match="not-mine"):
            await broker.publish([message("a", "not-mine")])
        with pytest.raises(Refused, match="other_task"):
            await backend.get(["other_task"])


# ----------------------------------------------------------------------------------- what is not what it seems


async def refusals(url: str, **options: Any) -> list[str]:
    """What opening each driver is refused with."""
    said = []
    for made in (RedisBroker, RedisBackend, RedisLock):
        thing: Any = made(url, connect_timeout=5, **options)
        with pytest.raises(Refused) as caught:
            await thing.open()
        said.append(str(caught.value))
        await thing.close()
    return said


async def test_a_node_of_a_cluster_is_not_taken_for_a_server(redis_cluster_url: str) -> None:
    node = redis_cluster_url.partition(",")[0]
    for said in await refusals(node):
        assert node.removeprefix("redis://") in said
        assert "cluster_mode" in said


async def test_a_server_is_not_taken_for_a_cluster(redis_url: str) -> None:
    place = redis_url.rpartition("/")[0]
    for said in await refusals(place, cluster=True):
        assert place.removeprefix("redis://") in said
        assert "is no node of a cluster" in said


async def test_a_sentinel_is_not_taken_for_a_server(shared_redis_sentinel: RedisSentinel) -> None:
    for said in await refusals(f"redis://127.0.0.1:{shared_redis_sentinel.sentinels[0].port}"):
        assert "is a sentinel" in said
        assert "redis.master_name" in said


async def test_an_unknown_master_is_named_with_the_sentinels_that_were_asked(
    shared_redis_sentinel: RedisSentinel,
) -> None:
    url = shared_redis_sentinel.url.replace("mymaster", "nobody")
    for said in await refusals(url):
        assert "'nobody'" in said
        assert all(f":{each.port} knows no master" in said for each in shared_redis_sentinel.sentinels)


async def test_a_server_is_not_taken_for_a_sentinel(redis_url: str) -> None:
    for said in await refusals(redis_url, master_name="mymaster"):
        assert "'mymaster'" in said
        assert "SENTINEL" in said


async def test_sentinels_that_are_all_away_are_named() -> None:
    ports = [free_port() for _ in range(2)]
    broker = RedisBroker(f"redis://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", master_name="mymaster")
    with pytest.raises(Unavailable) as caught:
        await broker.open()
    assert all(str(port) in str(caught.value) for port in ports)
    await broker.close()


# ------------------------------------------------------------------------------------------------- sentinels


@pytest.mark.long
async def test_a_fail_over_by_hand_is_followed_by_what_is_connected(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sentinel, "ASK_EVERY", 1_000.0)  # the servers themselves must say so
    group = start_server(RedisSentinel())
    old = group.master
    async with opened(RedisBroker(group.url), RedisBackend(group.url)) as (broker, backend):
        await broker.publish([message("a")])
        waiting = asyncio.create_task(broker.fetch("other", 1, 1))
        watched = backend.watch(["task_a"])
        await backend.begin([TaskState(task_uuid="task_a")])
        first = asyncio.ensure_future(anext(watched))
        group.sentinels[0].call("SENTINEL", "FAILOVER", "mymaster")

        async def moved() -> bool:
            return group.master is not old

        await at_last(moved)
        await asyncio.wait({waiting})

        async def settled() -> bool:
            await backend.put([success("a")])
            return True

        await at_last(lambda: broker.fetch("q", 1, 0))
        await at_last(settled)
        try:
            task_id, _ = await asyncio.wait_for(first, PATIENCE)
        except Unavailable:  # it was told that the store was away, and asks again
            task_id, _ = await asyncio.wait_for(anext(backend.watch(["task_a"])), PATIENCE)
        assert task_id == "task_a"
        assert str(group.master.port) in str(broker._link._at)  # type: ignore[attr-defined]  # nothing else tells


class Pointing:
    """Answers like a sentinel, that a server is the master which may be none."""

    def __init__(self, named: RedisServer) -> None:
        self.named = named
        self.url = ""

    async def __aenter__(self) -> Pointing:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}?master_name=m"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            port = str(self.named.port)
            for command in data.split(b"\r\n*"):
                is_question = b"GET-MASTER-ADDR-BY-NAME" in command
                answer = f"*2\r\n$9\r\n127.0.0.1\r\n${len(port)}\r\n{port}\r\n" if is_question else "$0\r\n\r\n"
                writer.write(answer.encode())
        writer.close()


async def test_a_master_that_works_is_left_for_the_one_that_the_sentinels_name(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old one that has come back takes itself for the master, and what is written to it will be thrown away."""
    monkeypatch.setattr(redis_sentinel, "ASK_EVERY", 0.0)
    old, new = (start_server(RedisServer()) for _ in range(2))
    async with Pointing(old) as sentinel, opened(RedisBroker(sentinel.url)) as broker:
        await broker.publish([message("a")])
        sentinel.named = new
        await broker.publish([message("b")])
        assert names(await broker.fetch("q", 10, 0)) == ["b"]


async def test_a_server_that_is_no_master_is_not_used(start_server: StartServer) -> None:
    server = start_server(RedisServer())
    server.call("REPLICAOF", "127.0.0.1", str(free_port()))
    async with Pointing(server) as sentinel:
        broker = RedisBroker(sentinel.url)
        with pytest.raises(Unavailable, match="is not the master 'm' now"):
            await broker.open()
        server.call("REPLICAOF", "NO", "ONE")
        await broker.open()
        await broker.close()


async def test_what_a_new_master_has_not_heard_was_settled_is_shown_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It believes that a worker holds it which lives, and does not."""
    monkeypatch.setattr(redis_sentinel, "ASK_EVERY", 0.0)
    old, new = (start_server(RedisServer()) for _ in range(2))
    new.call("REPLICAOF", "127.0.0.1", str(old.port))
    async with Pointing(old) as sentinel, opened(RedisBroker(sentinel.url, lease=1.0)) as broker:
        await broker.publish([message("settled"), message("held")])
        settled, held = await broker.fetch("q", 2, 0)
        await at_last(lambda: _has(new, "HLEN", driver._keys("q", settled.receipt[0])[1], 3))  # type: ignore[index]  # whose it is
        new.call("REPLICAOF", "NO", "ONE")
        await broker.ack([settled])
        sentinel.named = new

        async def shown_again() -> list[str]:
            await broker.tend(["q"])
            return names(await broker.fetch("q", 10, 0.05))

        assert list(await broker.extend([held])) == []
        assert sorted(await at_last(shown_again)) == ["held", "settled"]  # nobody extends what was held


async def _has(server: RedisServer, command: str, key: str, count: int) -> bool:
    return server.call(command, key).strip() == f":{count}"


async def test_who_was_the_master_and_waits_for_replicas_is_asked_again_later(start_server: StartServer) -> None:
    group = await asyncio.to_thread(start_server, RedisSentinel())
    replica = next(each for each in group.pair if each is not group.master)
    async with opened(RedisBroker(replica.url, replicas=1)) as broker:
        with pytest.raises(Unavailable, match="cannot serve now"):
            await broker.publish([message("a")])


async def test_too_few_replicas_make_a_publish_uncertain(start_server: StartServer) -> None:
    group = start_server(RedisSentinel())
    async with opened(RedisBroker(group.url, replicas=1, reply_timeout=1.0)) as broker:
        await broker.publish([message("a", token="a")])
        replica = next(each for each in group.pair if each is not group.master)
        replica.suspend()
        with pytest.raises(Unavailable, match="0 of 1 replicas"):
            await broker.publish([message("b", token="b")])
        replica.resume()
        await broker.publish([message("b", token="b")])
        assert names(await broker.fetch("q", 10, 0)) == ["a", "b"]


# ----------------------------------------------------------------------------------------------- the cluster


@pytest.fixture
async def outside(redis_cluster_url: str) -> Any:
    """A client of the same cluster that knows nothing of us."""
    host, _, port = redis_cluster_url.removeprefix("redis://").partition(",")[0].partition(":")
    async with OutsideCluster(host=host, port=int(port)) as client:
        yield client


async def test_a_cluster_is_no_joint_store_and_says_so(redis_cluster_url: str) -> None:
    async with opened(RedisBroker(redis_cluster_url), RedisBackend(redis_cluster_url)) as (broker, backend):
        assert await broker.identity() != await backend.identity()
        with pytest.raises(Refused, match="one step"):
            await broker.submit([success("a")], [message("a")], 60)
        await broker.publish([message("a")])
        (a,) = await broker.fetch("q", 1, 0)
        with pytest.raises(Refused, match="one step"):
            await broker.settle([Settled(a, Ack(), success("a"))], 60)
        assert list(await broker.extend([a])) == []


async def test_queues_states_and_groups_of_many_slots_work_together(redis_cluster_url: str) -> None:
    queues = [f"queue-{number}" for number in range(20)]
    tasks = [f"n{number}" for number in range(200)]
    async with opened(RedisBroker(redis_cluster_url), RedisBackend(redis_cluster_url)) as (broker, backend):
        sent = [message(name, queues[number % 20], token=name) for number, name in enumerate(tasks)]
        for _ in range(2):  # as after a lost reply
            await broker.publish(sent)
        held = [one for queue in queues for one in await broker.fetch(queue, 100, 0)]
        assert sorted(names(held)) == sorted(tasks)
        groups = [GroupMeta(group_uuid=f"group_{queue}", task_uuids=()) for queue in queues]
        members = tuple(f"task_{name}" for name in tasks)
        await backend.open_groups([*groups, GroupMeta(group_uuid="group_all", task_uuids=members)])
        await backend.put([success(name) for name in tasks])
        assert [state and state.state for state in await backend.get(members)] == [State.SUCCESS] * 200
        assert list(await backend.finish_members([Member("group_all", members[0])])) == [Progress.COMPLETE]
        assert list(await broker.extend(held)) == []
        await broker.nack(held[:100])
        await broker.ack(held[100:])
        assert len([one for queue in queues for one in await broker.fetch(queue, 100, 0)]) == 100


async def test_what_go_sent_delayed_lands_in_the_queue_that_it_names(redis_cluster_url: str, outside: Any) -> None:
    bodies = [encode_signature(Signature(uuid=f"task_{queue}", name="x", routing_key=queue)) for queue in "abcd"]
    await outside.zadd("delayed_tasks", dict.fromkeys((*bodies, b"junk"), 1.0))
    async with opened(RedisBroker(redis_cluster_url)) as broker:
        await broker.tend(["a"])
        for queue, body in zip("abcd", bodies, strict=True):
            assert await outside.lrange(queue, 0, -1) == [body]
        assert [one.reason for one in await broker.dead("delayed_tasks", 10)] == ["undecodable"]
        assert await outside.exists("{delayed_tasks}:aq:moving") == 0


async def test_a_due_message_whose_queue_is_something_else_goes_to_the_dead_letter(
    redis_cluster_url: str, outside: Any
) -> None:
    await outside.set("wrong", "x")
    async with opened(RedisBroker(redis_cluster_url)) as broker:
        await broker.publish([message("a", "wrong", not_before=1.0), message("b", "right", not_before=1.0)])
        await broker.tend([])
        (dead,) = await broker.dead("delayed_tasks", 10)
        assert (dead.reason, decode_signature(dead.body).name) == ("wrong_key", "a")
        assert "wrong" in dead.error
        assert names(await broker.fetch("right", 10, 0)) == ["b"]


@pytest.mark.parametrize("dies", ["before it landed", "after it landed"])
async def test_a_due_message_on_its_way_lands_once_whoever_dies(
    dies: str, redis_cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LANDS_WITHIN", 0.2)
    async with opened(RedisBroker(redis_cluster_url), RedisBroker(redis_cluster_url)) as (broker, other):
        await broker.publish([message("a", not_before=1.0)])
        run, run_each = broker._link.run, broker._link.run_each

        async def dying_run(script: Any, *args: Any, **options: Any) -> Any:
            if script.name == "arrived":
                raise Unavailable("it died")
            return await run(script, *args, **options)

        async def dying_run_each(calls: Any, **options: Any) -> Any:
            if dies == "before it landed" and any(script.name == "land" for script, *_ in calls):
                raise Unavailable("it died")
            return await run_each(calls, **options)

        monkeypatch.setattr(broker._link, "run", dying_run)
        monkeypatch.setattr(broker._link, "run_each", dying_run_each)
        with pytest.raises(Unavailable):
            await broker.tend(["q"])

        async def looked_after() -> bool:
            await other.tend(["q"])
            return not await other._link.call("EXISTS", "{delayed_tasks}:aq:moving")

        await at_last(looked_after)
        assert names(await other.fetch("q", 10, 0)) == ["a"]


async def test_a_go_workers_mutex_is_waited_for(redis_cluster_url: str, outside: Any) -> None:
    async with opened(RedisBackend(redis_cluster_url)) as backend:
        await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_a",))])
        await outside.set("TriggerChordMutex", "of a Go worker", px=60_000)
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.BUSY
        (group,) = await backend.get_groups(["group_a"])
        assert group is not None
        assert not group.chord_triggered
        await outside.delete("TriggerChordMutex")
        assert await backend.claim_group("group_a", "me", 10) is GroupClaim.MINE
        assert await outside.exists("TriggerChordMutex") == 0


async def test_a_group_that_machinery_opened_is_counted_down(redis_cluster_url: str, outside: Any) -> None:
    meta = (
        b'{"GroupUUID":"group_a","TaskUUIDs":["task_a","task_b","task_c"],"ChordTriggered":false,"Lock":false,'
        b'"CreatedAt":"2026-11-22T03:35:24.398915004+01:00","TTL":0}'
    )
    await outside.set("group_a", meta, ex=60)
    async with opened(RedisBackend(redis_cluster_url)) as backend:
        await backend.put([success("a"), success("b")])
        assert list(await backend.finish_members([Member("group_a", "task_a")])) == [Progress.WAITING]
        await backend.put([success("c")])  # as a Go worker does, which counts nothing
        assert list(await backend.finish_members([Member("group_a", "task_b")])) == [Progress.COMPLETE]
        await backend.claim_group("group_a", "me", 10)
        assert await outside.get("group_a") == meta.replace(b"false", b"true", 1)


async def test_a_slot_that_moves_takes_everything_along(start_server: StartServer) -> None:
    cluster = start_server(RedisCluster())
    source = cluster.owner_of("q")
    target = next(each for each in cluster.servers if each is not source)
    async with opened(RedisBroker(cluster.url, lease=60), RedisBackend(cluster.url)) as (broker, backend):
        await broker.publish([message(name) for name in "abc"])
        (a,) = await broker.fetch("q", 1, 0)
        task = "{q}state"
        await backend.put([TaskState(task_uuid=task, state=State.SUCCESS)])
        waiting = asyncio.create_task(at_last(lambda: broker.fetch("{q}other", 1, 20)))
        slot = str(slot_of("q"))
        ids = {each: each.call("CLUSTER", "MYID").strip() for each in (source, target)}
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        async with Redis(port=source.port) as raw:
            # the state goes first: whoever asks for it is sent there for this once (ASK)
            await raw.migrate("127.0.0.1", target.port, [task], 0, 5_000)
            (found,) = await backend.get([task])
            assert found is not None
            with pytest.raises(Unavailable, match="rehashing"):  # no script runs while its keys are here and there
                await broker.fetch("{q}third", 1, 0)
            while keys := await raw.cluster("GETKEYSINSLOT", slot, 100):
                await raw.migrate("127.0.0.1", target.port, keys, 0, 5_000)
        for node in (target, source, *cluster.servers):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert cluster.owner_of("q") is target
        assert list(await broker.extend([a])) == []  # (MOVED)
        await broker.publish([message("d", "{q}other")])
        assert names(await waiting) == ["d"]
        await broker.ack([a])
        assert "a" not in names(await broker.fetch("q", 100, 0))


async def test_states_that_anybody_wrote_wake_on_every_node(
    redis_cluster_url: str, outside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncqueue.connections.redis_tracking.TOLD", (1_000.0, 1_000.0))
    monkeypatch.setattr("asyncqueue.connections.redis_tracking.POLLED", (1_000.0, 1_000.0))
    tasks = [f"task_{number}" for number in range(12)]
    async with opened(RedisBackend(redis_cluster_url)) as backend:
        await backend.begin([TaskState(task_uuid=task) for task in tasks])
        endings = backend.watch(tasks)
        first = asyncio.ensure_future(anext(endings))

        async def all_listen() -> bool:
            tracking = backend._tracking
            return (
                tracking is not None and len(tracking._ears) == 3 and all(ear.hears for ear in tracking._ears.values())
            )

        await at_last(all_listen)
        await asyncio.sleep(0.2)  # the look that follows, through those who listen
        await backend.put([TaskState(task_uuid=task, state=State.SUCCESS) for task in tasks])
        found = {(await asyncio.wait_for(first, PATIENCE))[0]}
        while len(found) < len(tasks):
            found.add((await asyncio.wait_for(anext(endings), PATIENCE))[0])
        assert found == set(tasks)


async def test_a_lock_of_any_name_works_on_a_cluster(redis_cluster_url: str) -> None:
    async with opened(RedisLock(redis_cluster_url)) as lock:
        for name in ("a", "{a}b", "a{b}c{d}", "a{b"):
            token = await lock.acquire(name, 10)
            assert token
            assert await lock.release(name, token)
            assert await lock.owed(name) == []


async def test_while_a_node_is_away_others_are_served(start_server: StartServer) -> None:
    cluster = start_server(RedisCluster(options={"cluster-require-full-coverage": "no"}))
    queues = [f"queue-{number}" for number in range(30)]
    async with opened(RedisBroker(cluster.url, connect_timeout=2)) as broker:
        gone = cluster.owner_of(queues[0])
        gone.kill()
        there = next(queue for queue in queues if cluster.owner_of(queue) is not gone)
        with pytest.raises(AsyncQueueError):
            await broker.publish([message("a", queues[0])])

        async def serves() -> bool:
            await broker.publish([message("b", there)])
            return True

        await at_last(serves)
        assert "b" in names(await broker.fetch(there, 10, 0))
        gone.restart()
        await at_last(lambda: broker.queues())
