"""RabbitMQ keeps the contract of a backend; and what is its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

import pytest
from aiormq import Channel, spec

from asyncqueue.backends.amqp import LONG, AmqpBackend
from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.connections.amqp import Access, AmqpLink, parse_urls
from asyncqueue.connections.amqp_results import HEARD_AT_ONCE, KIND, MAX_NAME, PLAN, Locked, Record, lock_of
from asyncqueue.connections.amqp_topology import Topology
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.outcome import Outcome, Retry, Succeeded
from asyncqueue.engine.watching import begun, looked_after
from asyncqueue.errors import BadMessage, ConfigError, Refused, Unavailable
from asyncqueue.go_compat import GoCompat
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState
from asyncqueue.testing import BackendContract, GroupContract
from asyncqueue.testing.group_contract import group, plan
from asyncqueue.testing.suite import KEPT, Suite, state, state_of
from asyncqueue.wire import decode_signature, decode_state, encode_plan, encode_state
from tests.opened import opened
from tests.services import Rabbit, free_port

PATIENCE = 30.0
LIMIT = 3_000_000
EXCHANGE = "machinery_exchange"
GOLDEN = [
    path
    for path in sorted((Path(__file__).parent.parent / "wire" / "golden").glob("v*/amqp/results/*.json"))
    if path.stem != "get_state_consumes"
]
KINDS, MANY = ("queues", "exchanges"), 300
LOGS_OF_GO = {"x-message-ttl": 3_600_000, "x-expires": 3_600_000}


@pytest.fixture(scope="module")
def virtual_host(shared_rabbitmq: Rabbit) -> Iterator[str]:
    """One for all of these tests: to make and to delete one takes longer than most of them."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    with suppress(HTTPError):  # the last one left so much that it was deleted
        shared_rabbitmq.manage("DELETE", f"vhosts/{name}")


@pytest.fixture
def amqp_url(shared_rabbitmq: Rabbit, virtual_host: str) -> Iterator[str]:
    """``amqp://…/vhost``: there is nothing in it."""
    shared_rabbitmq.manage("PUT", f"vhosts/{virtual_host}")
    yield f"{shared_rabbitmq.url}{virtual_host}"
    found = {kind: shared_rabbitmq.manage("GET", f"{kind}/{virtual_host}?disable_stats=true") for kind in KINDS}
    names = [(kind, each["name"]) for kind in KINDS for each in found[kind]]
    left = [(kind, name) for kind, name in names if name and not name.startswith("amq.")]  # those are the server's
    if len(left) > MANY:
        shared_rabbitmq.manage("DELETE", f"vhosts/{virtual_host}")
        return
    for kind, name in left:
        shared_rabbitmq.manage("DELETE", f"{kind}/{virtual_host}/{quote(name, safe='')}")


class OnRabbit(Suite):
    driver = "rabbit"
    entry_limit: int | None = LIMIT

    @pytest.fixture
    def service(self, amqp_url: str) -> None:
        self.url = amqp_url

    async def make_backend(self, results_expire_in: float = KEPT) -> AmqpBackend:
        return AmqpBackend(self.url, results_expire_in=results_expire_in, max_entry=LIMIT)

    async def make_unreachable(self) -> AmqpBackend:
        return AmqpBackend(f"amqp://127.0.0.1:{free_port()}/")


class TestAmqpBackend(OnRabbit, BackendContract):
    # the server needs milliseconds for each queue, and these make thousands

    @pytest.mark.long
    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        await super().test_every_verb_takes_a_batch_of_500()

    @pytest.mark.long
    async def test_a_thousand_watchers_are_served_at_once(self) -> None:
        await super().test_a_thousand_watchers_are_served_at_once()


class TestAmqpGroups(OnRabbit, GroupContract):
    @pytest.mark.long
    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        await super().test_every_verb_takes_a_batch_of_500()

    @pytest.mark.long
    async def test_a_group_of_2000_is_counted_down(self) -> None:
        await super().test_a_group_of_2000_is_counted_down()


# ---------------------------------------------------------------------------------------------------- helpers


class Host:
    """A virtual host, as its administrator sees it."""

    def __init__(self, server: Rabbit, url: str) -> None:
        self._server = server
        self._name = urlsplit(url).path.removeprefix("/")

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self._server.manage, method, path.replace("VHOST", self._name), body)

    async def queues(self) -> dict[str, Any]:
        return {each["name"]: each for each in await self.ask("GET", "queues/VHOST?disable_stats=true")}

    async def messages(self, queue: str) -> list[Any]:
        wanted = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "auto"}
        return list(await self.ask("POST", f"queues/VHOST/{quote(queue)}/get", wanted))


class Go:
    """What Machinery's workers and clients do, call by call, on a connection of their own."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def write(self, body: bytes, queue: str = "") -> None:
        """``updateState``, or ``markTaskCompleted`` where ``queue`` is that of a group."""
        queue = queue or decode_state(body).task_uuid
        await self.channel.exchange_declare(EXCHANGE, exchange_type="direct", durable=True)
        await self.channel.queue_declare(queue, auto_delete=True, arguments=dict(LOGS_OF_GO))
        await self.channel.queue_bind(queue, EXCHANGE, queue)
        properties = spec.Basic.Properties(content_type="application/json", delivery_mode=2)
        await self.channel.basic_publish(body, exchange=EXCHANGE, routing_key=queue, properties=properties)

    async def read(self, task_id: str) -> State | None:
        """``GetState``: the oldest message, which is gone after that."""
        message = await self.channel.basic_get(task_id, no_ack=True)
        return decode_state(message.body).state if message.body else None

    async def finish(self, task_id: str, group_id: str) -> None:
        """The end of a member of a group."""
        body = encode_state(state(task_id, State.SUCCESS))
        await self.write(body)
        await self.write(body, group_id)

    async def count(self, group_id: str) -> int:
        """``GroupCompleted`` compares that with the size of the group."""
        return (await self.channel.queue_declare(group_id, passive=True)).message_count or 0


@pytest.fixture
def host(shared_rabbitmq: Rabbit, amqp_url: str) -> Host:
    return Host(shared_rabbitmq, amqp_url)


@pytest.fixture
async def backend(amqp_url: str) -> AsyncIterator[AmqpBackend]:
    async with opened(AmqpBackend(amqp_url)) as backend:
        yield backend


@pytest.fixture
async def go(amqp_url: str) -> AsyncIterator[Go]:
    link = AmqpLink(Access(parse_urls(amqp_url)), "Go")
    yield Go(await link.channel(confirms=True))
    await link.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():
            await asyncio.sleep(0.02)


async def states(backend: AmqpBackend, *task_ids: str) -> list[State | None]:
    return [state_of(one) for one in await backend.get(task_ids)]


async def ends(backend: AmqpBackend, task_id: str) -> list[State | None]:
    async with asyncio.timeout(PATIENCE):
        return [state_of(one) async for _, one in backend.watch([task_id])]


# ---------------------------------------------------------------------------------------------------- Machinery's data


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
async def test_what_machinery_wrote_is_read_and_ours_stands_beside_it(
    path: Path, amqp_url: str, host: Host, backend: AmqpBackend
) -> None:
    golden = json.loads(path.read_text())
    theirs = {queue["name"]: queue for queue in golden["topology"]["queues"]}
    logs = {name: messages for name, messages in golden["messages"].items() if not name.startswith("machinery")}
    await host.ask("PUT", f"exchanges/VHOST/{EXCHANGE}", {"type": "direct", "durable": True})
    for name, messages in logs.items():
        queue = theirs[name]
        arguments = {key: value for key, _, value in queue["arguments"]}
        await host.ask("PUT", f"queues/VHOST/{name}", _declared(queue) | {"arguments": arguments})
        await host.ask("POST", f"bindings/VHOST/e/{EXCHANGE}/q/{name}", {"routing_key": name})
        for message in messages:
            sent = {"properties": message["properties"], "payload": message["body"], "payload_encoding": "string"}
            await host.ask("POST", f"exchanges/VHOST/{EXCHANGE}/publish", sent | {"routing_key": name})
    for name, messages in logs.items():
        first, last = (decode_state(messages[at]["body"].encode()) for at in (0, -1))
        (found,) = await backend.get([name])
        if first.task_uuid != name:
            assert found is None, "it is a group's"
            continue
        assert found is not None
        assert (found.state, found.results, found.error) == (last.state, last.results, last.error)
        assert (found.task_name, found.created_at) == (first.task_name, first.created_at)
        await backend.put([state(name, State.STARTED)])  # their declaration allows for ours
        assert (await host.messages(name))[-1]["payload"] == encode_state(state(name, State.STARTED)).decode()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
async def test_what_we_write_is_what_machinery_writes(path: Path, host: Host, backend: AmqpBackend) -> None:
    golden = json.loads(path.read_text())
    theirs = {queue["name"]: queue for queue in golden["topology"]["queues"]}
    logs = {name: messages for name, messages in golden["messages"].items() if not name.startswith("machinery")}
    groups = {name for name in logs if name.startswith("group_")}
    for name in logs.keys() - groups:
        written = [decode_state(message["body"].encode()) for message in logs[name]]
        await backend.begin(written[:1])
        await backend.put(written[1:])
    for name in groups:
        members = [decode_state(message["body"].encode()).task_uuid for message in logs[name]]
        await backend.open_groups([group(name, *members, "task_more")])
        await backend.finish_members([Member(name, member) for member in members])
    ours = await host.queues()
    bindings = {
        (each["source"], each["destination"], each["routing_key"])
        for each in await host.ask("GET", "bindings/VHOST")
        if each["source"]
    }
    for name, messages in logs.items():
        assert _declared(ours[name]) == _declared(theirs[name])
        arguments = {key: value for key, value in ours[name]["arguments"].items() if key != "x-queue-type"}
        assert arguments == {key: value for key, _, value in theirs[name]["arguments"]}
        assert (EXCHANGE, name, name) in bindings
        found = await host.messages(name)
        assert [message["payload"] for message in found] == [message["body"] for message in messages]
        for mine, their in zip(found, messages, strict=True):
            # a library numbers messages; our headers are for ourselves
            assert mine["properties"].keys() - {"headers", "message_id"} == their["properties"].keys()
            assert {key: mine["properties"][key] for key in their["properties"]} == their["properties"]
            assert mine["routing_key"] == their["routing_key"]


def _declared(queue: dict[str, Any]) -> dict[str, Any]:
    return {key: queue[key] for key in ("durable", "auto_delete")}


# ---------------------------------------------------------------------------------------------------- logs


async def test_readers_at_once_each_see_the_whole_log(amqp_url: str, backend: AmqpBackend) -> None:
    await backend.begin([state("task_a", name="add")])
    await backend.put([state("task_a", State.STARTED), state("task_a", State.SUCCESS)])
    async with opened(AmqpBackend(amqp_url)) as other:
        for found in await asyncio.gather(*(each.get(["task_a"]) for each in (backend, other) * 10)):
            assert [(one.state, one.task_name) for one in found if one] == [(State.SUCCESS, "add")]


async def test_a_reader_that_dies_gives_back_what_it_has_read(amqp_url: str, backend: AmqpBackend, go: Go) -> None:
    await backend.put([state("task_a", State.STARTED), state("task_a", State.SUCCESS)])
    async with opened(AmqpBackend(amqp_url)) as dying:

        async def die(locked: Locked, names: Any) -> Any:
            assert len((await locked.read(names, logs=True))["task_a"].log) == 2
            assert await go.count("task_a") <= 1, "it is held"
            dying._storing.abandon()
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await dying._queues.each(["task_a"], die)
    assert await states(backend, "task_a") == [State.SUCCESS]


async def test_who_waits_for_a_lock_that_is_never_given_back_is_told(amqp_url: str, backend: AmqpBackend) -> None:
    async with opened(AmqpBackend(amqp_url, reply_timeout=0.5)) as other:

        async def hold(locked: Locked, names: Any) -> Any:
            with pytest.raises(Unavailable, match="lock of some results"):
                await other.get(["task_a"])
            return {}

        await backend.put([state("task_a", State.SUCCESS)])
        await backend._queues.each(["task_a"], hold)
        assert await states(other, "task_a") == [State.SUCCESS]


async def test_what_a_reader_of_gos_has_left_is_what_is_known(backend: AmqpBackend, go: Go) -> None:
    await backend.begin([state("task_a", name="add")])
    await backend.put([state("task_a", State.STARTED), state("task_a", State.SUCCESS)])
    assert await go.read("task_a") is State.PENDING
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert (found.state, found.task_name) == (State.SUCCESS, "")
    assert [await go.read("task_a") for _ in range(3)] == [State.STARTED, State.SUCCESS, None]
    assert await states(backend, "task_a") == [None]


async def test_a_pending_of_gos_after_the_end_is_a_new_send_and_before_it_a_retry(backend: AmqpBackend, go: Go) -> None:
    await go.write(encode_state(state("task_a", name="add")))
    await go.write(encode_state(state("task_a", State.RETRY)))
    await go.write(encode_state(state("task_a")))
    assert await states(backend, "task_a") == [State.RETRY]
    await go.write(encode_state(state("task_a", State.FAILURE, error="why")))
    assert await states(backend, "task_a") == [State.FAILURE]
    await go.write(encode_state(state("task_a", name="again")))
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert (found.state, found.task_name, found.error) == (State.PENDING, "again", "")


async def test_a_message_that_nobody_can_read_hides_nothing(backend: AmqpBackend, go: Go) -> None:
    await backend.put([state("task_a", State.STARTED)])
    for body in (b"{", b"[]"):
        await go.write(body, "task_a")
        await go.write(body, "task_b")
    assert await states(backend, "task_a") == [State.STARTED]
    with pytest.raises(BadMessage):
        await backend.get(["task_b"])


async def test_a_long_log_is_shortened_by_whoever_reads_it(backend: AmqpBackend, go: Go) -> None:
    await backend.begin([state("task_a", name="add")])
    for attempt in range(1, LONG + 1):
        await backend.put([state("task_a", State.RETRY, error=f"{attempt}", attempt=attempt)])
    (before,) = await backend.get(["task_a"])
    assert await go.count("task_a") <= 2, "the last one, and maybe a question"
    assert list(await backend.get(["task_a"])) == [before]
    await backend.put([state("task_a", State.SUCCESS)])
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert (found.state, found.task_name) == (State.SUCCESS, "add")
    await backend.begin([state("task_a", name="anew")])
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert (found.state, found.task_name) == (State.PENDING, "anew")


async def test_what_has_expired_leaves_no_queues_behind(amqp_url: str, backend: AmqpBackend, host: Host) -> None:
    async with opened(AmqpBackend(amqp_url, results_expire_in=0.3)) as short:
        await short.open_groups([group("group_a", "task_a")])
        await short.put_plans([plan("plan_a")])
        await short.begin([state("task_a")])
        await backend.touch([["task_a"]])  # kept for longer than its log
        assert {"group_a.aq", "plan_a.aq", "task_a", "task_a.aq"} <= set(await host.queues())

        async def are_gone() -> bool:
            await backend.get_groups(["group_a", "plan_a"])  # whoever comes next
            return not {"group_a.aq", "plan_a.aq", "task_a"} & set(await host.queues())

        await until(are_gone)
        assert "task_a.aq" in await host.queues()
        assert await states(backend, "task_a") == [State.PENDING]
        await backend.forget(["task_a"])
        left = set(await host.queues())
    assert all(name.startswith(f"{EXCHANGE}.aq.results.") for name in left), "what is left is locks"


async def test_the_end_of_an_old_record_takes_no_new_one_with_it(backend: AmqpBackend) -> None:
    """A writer died between the new record and the ack of the old one, whose end is heard while the new one is read."""
    old = Record("plan_a", encode_plan(plan("plan_a", ("old",))), {KIND: PLAN}, until=time.time() + 0.2)
    new = replace(old, body=encode_plan(plan("plan_a", ("new",))), until=time.time() + KEPT)

    async def write_both(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
        await locked.write([old, new])
        return {}

    async def has_expired() -> bool:
        return await backend._queues.inspect(f"{EXCHANGE}.aq.results.{lock_of('plan_a')}") == (1, 0)

    await backend._queues.each(["plan_a"], write_both)
    await until(has_expired)
    for _ in range(3):
        assert list(await backend.get_plans(["plan_a"])) == [plan("plan_a", ("new",))]


async def test_of_records_that_expired_long_ago_whoever_comes_next_is_sent_a_part(
    amqp_url: str, backend: AmqpBackend, host: Host
) -> None:
    names = [name for number in range(4_000) if lock_of(name := f"plan_{number}") == 0][: HEARD_AT_ONCE + 50]
    async with opened(AmqpBackend(amqp_url, results_expire_in=1.0)) as short:
        await short.put_plans([plan(name) for name in names])
    left = [name for name in await host.queues() if name.endswith(".aq")]

    async def have_expired() -> bool:
        return await backend._queues.inspect(f"{EXCHANGE}.aq.results.0") == (len(left), 0)

    async def hear(locked: Locked, _: Sequence[str]) -> Mapping[str, None]:
        async def has_heard() -> bool:
            return len(locked.heard) >= HEARD_AT_ONCE

        await until(has_heard)
        await locked.read(["plan_unknown"])  # whatever else was sent has come before the answer
        assert len(locked.heard) == HEARD_AT_ONCE
        return {}

    await until(have_expired)
    await backend._queues.each(names[:1], hear)
    left = left[HEARD_AT_ONCE:]
    await until(have_expired)  # the rest is for the next owner of the lock


async def test_a_lock_that_somebody_deleted_is_made_anew(backend: AmqpBackend, host: Host) -> None:
    await backend.put([state("task_a", State.SUCCESS)])
    assert await states(backend, "task_a") == [State.SUCCESS]
    await host.ask("DELETE", f"queues/VHOST/{EXCHANGE}.aq.results.{lock_of('task_a')}")
    with pytest.raises(Unavailable, match="was deleted"):
        await backend.get(["task_a"])
    assert await states(backend, "task_a") == [State.SUCCESS]


async def test_a_uuid_that_is_too_long_for_a_queue_is_refused_before_anything_is_written(
    backend: AmqpBackend, host: Host
) -> None:
    longest = "x" * MAX_NAME
    await backend.put([state(longest, State.SUCCESS)])
    await backend.open_groups([group(f"{longest[:-1]}y", longest)])
    assert await backend.claim_group(f"{longest[:-1]}y", "me", 1.0) is GroupClaim.MINE
    assert await states(backend, longest) == [State.SUCCESS]
    for refused in (
        backend.put([state("task_a", State.SUCCESS), state(f"{longest}x", State.SUCCESS)]),
        backend.open_groups([group("group_a"), group(f"{longest}x")]),
        backend.get([f"{longest}x"]),
    ):
        with pytest.raises(Refused, match=f"{MAX_NAME} bytes"):
            await refused
    assert not {"task_a", "group_a.aq"} & set(await host.queues())


async def test_the_exchange_has_to_have_a_name_and_to_route_by_it(amqp_url: str) -> None:
    for topology in (Topology(exchange=""), Topology(exchange_type="fanout")):
        with pytest.raises(ConfigError, match=r"amqp\.exchange"):
            AmqpBackend(amqp_url, topology=topology)
    topic = Topology(exchange="topics", exchange_type="topic")
    async with opened(AmqpBackend(amqp_url, topology=topic)) as backend:
        await backend.put([state("task_a.b", State.SUCCESS)])
        assert await ends(backend, "task_a.b") == [State.SUCCESS]
    async with opened(AmqpBackend(amqp_url, topology=Topology(exchange="topics"))) as backend:
        with pytest.raises(Refused, match="inequivalent arg 'type'"):
            await backend.put([state("task_a", State.SUCCESS)])


# ---------------------------------------------------------------------------------------------------- waiting


async def test_states_that_go_writes_wake(backend: AmqpBackend, go: Go) -> None:
    await go.write(encode_state(state("task_a", name="add")))
    watching = asyncio.create_task(ends(backend, "task_a"))
    await until(lambda: _is_bound(backend, "task_a"))
    for new in (State.RECEIVED, State.STARTED, State.SUCCESS):
        await go.write(encode_state(state("task_a", new)))
    assert await watching == [State.SUCCESS]


async def test_many_who_wait_are_one_consumer_that_listens_no_more_to_what_has_ended(
    backend: AmqpBackend, host: Host
) -> None:
    ids = [f"task_{number}" for number in range(20)]
    await backend.begin([state(task_id) for task_id in ids])
    watching = [asyncio.create_task(ends(backend, task_id)) for task_id in ids]
    await until(lambda: _is_bound(backend, *ids))

    assert len([name for name in await host.queues() if name.startswith("amq.gen-")]) == 1
    await backend.put([state(task_id, State.SUCCESS) for task_id in ids])
    assert await asyncio.gather(*watching) == [[State.SUCCESS]] * len(ids)
    await backend.begin([state("task_last")])
    last = asyncio.create_task(ends(backend, "task_last"))

    async def listens_to_that_alone() -> bool:
        return backend._hearing._bound == {"task_last"}

    await until(listens_to_that_alone)
    last.cancel()


async def test_who_waits_looks_anew_when_the_connection_broke(backend: AmqpBackend, amqp_url: str) -> None:
    await backend.begin([state("task_a"), state("task_b")])
    watching = [asyncio.create_task(ends(backend, task_id)) for task_id in ("task_a", "task_b")]
    await until(lambda: _is_bound(backend, "task_a", "task_b"))
    backend._waiting.abandon()
    async with opened(AmqpBackend(amqp_url)) as other:
        await other.put([state("task_a", State.SUCCESS)])  # of which nobody hears
        assert await watching[0] == [State.SUCCESS]
        await other.put([state("task_b", State.SUCCESS)])
        assert await watching[1] == [State.SUCCESS]


async def _is_bound(backend: AmqpBackend, *task_ids: str) -> bool:
    return backend._hearing._bound.issuperset(task_ids) and backend._hearing._views.keys() >= set(task_ids)


# ---------------------------------------------------------------------------------------------------- groups with Go


async def test_gos_workers_count_each_of_our_members_once(backend: AmqpBackend, amqp_url: str, go: Go) -> None:
    await backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
    await backend.put([state("task_a", State.SUCCESS), state("task_b", State.FAILURE)])
    async with opened(AmqpBackend(amqp_url)) as other:
        for each in (backend, other, backend):
            assert list(await each.finish_members([Member("group_a", "task_a")])) == [Progress.WAITING]
        assert await go.count("group_a") == 1
        await other.finish_members([Member("group_a", "task_b"), Member("group_a", "task_b")])
    assert await go.count("group_a") == 2
    await go.finish("task_c", "group_a")
    assert await go.count("group_a") == 3, "now it would trigger it"


async def test_gos_workers_are_told_by_the_second_showing_where_the_first_worker_died(
    backend: AmqpBackend, amqp_url: str, go: Go
) -> None:
    await backend.open_groups([group("group_a", "task_a", "task_b")])
    await backend.put([state("task_a", State.SUCCESS)])
    await backend._groups._count({"group_a": ["task_a"]}, 2)  # counted, and not told
    async with opened(AmqpBackend(amqp_url)) as other:
        assert list(await other.finish_members([Member("group_a", "task_a")])) == [Progress.WAITING]
    assert await go.count("group_a") == 1


async def test_a_member_whose_end_only_the_count_of_go_knows_counts_as_well(backend: AmqpBackend, go: Go) -> None:
    """A client of Go's that waits for a member takes its states out of its queue."""
    await backend.open_groups([group("group_a", "task_a", "task_b")])
    await go.finish("task_a", "group_a")
    assert await go.read("task_a") is State.SUCCESS
    assert await states(backend, "task_a") == [None]
    await backend.put([state("task_b", State.SUCCESS)])
    assert list(await backend.finish_members([Member("group_a", "task_b")])) == [Progress.COMPLETE]
    assert await states(backend, "task_a", "task_b") == [State.SUCCESS] * 2, "what follows is made of them"
    assert await go.count("group_a") == 2, "and all that is there still"


async def test_a_group_that_go_takes_and_loses_is_completed_all_the_same(backend: AmqpBackend, go: Go) -> None:
    await backend.open_groups([group("group_a", "task_a")])
    await backend.put([state("task_a", State.FAILURE, error="why")])
    member = Member("group_a", "task_a")
    await backend.finish_members([member])
    taken: asyncio.Queue[None] = asyncio.Queue()

    async def take(_: object) -> None:
        taken.put_nowait(None)

    consumer = await go.channel.basic_consume("group_a", take, exclusive=True)
    async with asyncio.timeout(PATIENCE):
        await taken.get()
    assert list(await backend.finish_members([member])) == [Progress.COMPLETE]
    await go.channel.basic_cancel(consumer.consumer_tag or "")  # which deletes the queue; it was a failure, or Go died

    async def is_gone() -> bool:
        return await backend._queues.inspect("group_a") is None

    await until(is_gone)
    assert await backend.claim_group("group_a", "me", 1.0) is GroupClaim.MINE


async def test_an_end_that_gos_workers_were_told_twice_is_taken_back(backend: AmqpBackend, go: Go) -> None:
    """They look for the very number of members: with one too many, the last of theirs would send nothing."""
    await backend.open_groups([group("group_a", "task_a", "task_b", "task_c")])
    await backend.put([state("task_a", State.SUCCESS)])
    assert list(await backend.finish_members([Member("group_a", "task_a")])) == [Progress.WAITING]
    await go.finish("task_a", "group_a")
    assert await go.count("group_a") == 2
    assert list(await backend.finish_members([Member("group_a", "task_a")])) == [Progress.WAITING]
    assert await go.count("group_a") == 1


async def test_gos_workers_see_that_what_follows_is_sent(backend: AmqpBackend, host: Host) -> None:
    await backend.open_groups([group("group_a", "task_a")])
    await backend.claim_group("group_a", "me", 1.0)
    assert "group_a_chord_triggered" in await host.queues()
    await backend.forget(["group_a"])
    assert not {"group_a", "group_a.aq", "group_a_chord_triggered"} & set(await host.queues())


async def test_a_group_that_a_client_of_gos_has_sent_is_counted_as_go_does(amqp_url: str, go: Go) -> None:
    a, b, c = (Member("group_a", f"task_{name}", size=3) for name in "abc")
    async with opened(AmqpBackend(amqp_url)) as backend:
        await backend.put([state("task_b", State.SUCCESS)])
        assert list(await backend.finish_members([b])) == [Progress.LOST], "nobody has said that Go sends here"
    async with opened(AmqpBackend(amqp_url, go_groups=True)) as backend:
        assert list(await backend.finish_members([b])) == [Progress.WAITING]
        await go.finish("task_c", "group_a")
        assert list(await backend.finish_members([b])) == [Progress.WAITING]
        assert list(await backend.get_groups(["group_a"])) == [None]
        await backend.put([state("task_a", State.FAILURE, error="why")])
        assert list(await backend.finish_members([a])) == [Progress.COMPLETE]
        (found,) = await backend.get_groups(["group_a"])
        assert found is not None
        assert found.task_uuids == ("task_b", "task_c", "task_a"), "in the order of their ends, as Go has them"
        assert list(await backend.finish_members([c])) == [Progress.COMPLETE]
        assert await backend.claim_group("group_a", "me", 5.0) is GroupClaim.MINE
        await backend.mark_group_sent("group_a")
        assert list(await backend.finish_members([a])) == [Progress.TRIGGERED]
        assert await go.count("group_a") == 3


async def test_a_look_at_a_group_of_gos_client_waits_for_its_members(amqp_url: str, go: Go) -> None:
    a, b = (
        Signature(
            uuid=f"task_{name}",
            name="add",
            group_uuid="group_a",
            group_task_count=2,
            chord_callback=Signature(uuid="chord_a", name="total"),
        )
        for name in "ab"
    )
    async with opened(AmqpBackend(amqp_url, go_groups=True)) as backend:
        await backend.put([state(a.uuid, State.SUCCESS)])
        assert list(await backend.finish_members([Member("group_a", a.uuid, size=2)])) == [Progress.WAITING]
        sent, states = begun(a, Rules(go=GoCompat(is_on=True)), time.time_ns())
        watch = decode_signature(sent.body)
        await backend.put(states)

        async def outcome() -> Outcome:
            ((_, found),) = await looked_after([watch], backend)
            return found

        assert goes_on(await outcome(), "have not ended")
        assert await go.count("group_a") == 1, "a watch is no member"
        await go.finish(b.uuid, "group_a")
        await backend.put([state(b.uuid, State.SUCCESS)])
        assert goes_on(await outcome(), "has ended")
        await backend.forget(["group_a", "chord_a"])
        assert await outcome() == Succeeded(())


def goes_on(outcome: Outcome, said: str) -> bool:
    """Whether the watch does, for that reason."""
    return isinstance(outcome, Retry) and said in outcome.error


async def test_a_state_of_gos_says_nothing_of_when_it_expires_and_is_kept_all_the_same(
    amqp_url: str, backend: AmqpBackend, go: Go
) -> None:
    await go.write(encode_state(TaskState(task_uuid="task_a", task_name="add", state=State.SUCCESS)))
    await backend.touch([["task_a"]])
    await go.read("task_a")
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert (found.state, found.task_name) == (State.SUCCESS, "add")
