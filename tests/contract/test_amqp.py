"""RabbitMQ keeps the contract of a broker; and what is its own."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from asyncqueue.brokers.amqp import AmqpBroker
from asyncqueue.brokers.base import Delivery, Message
from asyncqueue.connections import amqp_topology
from asyncqueue.connections.amqp import parse_urls
from asyncqueue.connections.amqp_holding import ack_frames
from asyncqueue.connections.amqp_topology import Topology
from asyncqueue.errors import Blocked, ConfigError, MessageTooLarge, Refused, Unavailable
from asyncqueue.signature import Signature
from asyncqueue.testing import BrokerContract, InspectorContract
from asyncqueue.testing.suite import BrokerSuite, Suite, names
from asyncqueue.wire import encode_signature
from tests.opened import opened
from tests.proxy import FaultProxy
from tests.services import Rabbit, RabbitServer, free_port

T = TypeVar("T")
PATIENCE = 30.0
CANARY = "s3cret-c4nary"
GOLDEN = sorted((Path(__file__).parent.parent / "wire" / "golden").glob("v*/amqp/publish/*.json"))
UNSHOWN = "RabbitMQ does not show that to its clients"


class OnRabbit(Suite):
    """A virtual host for each test."""

    @pytest.fixture
    def service(self, amqp_url: str) -> None:
        self.url = amqp_url

    def nobody(self) -> str:
        """A URL where no server is."""
        return f"amqp://127.0.0.1:{free_port()}/"


class TestAmqpBroker(OnRabbit, BrokerContract):
    knows_tokens = False
    keeps_places = True
    delay = 1.0

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url)

    async def make_unreachable(self) -> AmqpBroker:
        return AmqpBroker(self.nobody())


class TestAmqpBrokerOnQuorumQueues(TestAmqpBroker):
    """Replicated queues, which count deliveries."""

    uncounted_nacks = False

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url, topology=Topology(queue_arguments={"x-queue-type": "quorum"}))

    async def test_what_was_given_back_is_next_in_the_order_given(self) -> None:
        # but for that: a quorum queue may show some that waited before those that came back
        await self.publish("a", "b", "c", "d")
        await self.broker.nack(await self.fetch_until(3))
        assert sorted(names(await self.fetch_until(4))) == ["a", "b", "c", "d"]

    async def test_a_killed_workers_showings_are_counted(self) -> None:
        await self.publish("a")
        for attempt in (1, 2, 3):
            other = await self.another_broker()
            assert isinstance(other, AmqpBroker)
            (delivery,) = await self.fetch_until(1, broker=other)
            assert delivery.attempt == attempt
            other._consuming.abandon()  # as if it had been killed


@pytest.mark.long
class TestAmqpBrokerWithPriorities(TestAmqpBroker):
    """Queues that know priorities."""

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url, topology=Topology(queue_arguments={"x-max-priority": 255}))

    async def test_a_delayed_message_keeps_its_priority(self) -> None:
        due = self.now() + self.delay
        await self.broker.publish(
            [self.message(name, not_before=due, priority=each) for name, each in (("low", 1), ("high", 9))]
        )

        async def are_due() -> bool:
            return (await self.inspector().depth(self.queue)).ready == 2

        await self.until(are_due)
        assert names(await self.fetch_until(2)) == ["high", "low"]


class TestAmqpInspector(OnRabbit, InspectorContract):
    """What a client of RabbitMQ can see: how much is ready, and the dead letter."""

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url)

    async def test_what_it_does_not_show_is_said_with_what_to_do(self) -> None:
        with pytest.raises(Refused, match="rabbitmqctl list_queues"):
            await self.inspector().queues()
        with pytest.raises(Refused, match="only to those who take them"):
            await self.inspector().peek(self.queue, 10)
        with pytest.raises(Refused, match="shows no delayed messages"):
            await self.inspector().delayed(10)

    async def test_depth_counts_what_is_ready_held_delayed_and_dead(self) -> None:
        await self._bury("dead")
        await self.publish("held", "held", "ready", "ready", "ready")
        await self.fetch_until(2)
        depth = await self.inspector().depth(self.queue)
        assert (depth.ready, depth.dead) == (3, 1)
        assert depth.held is depth.delayed is None, "it does not say, and so do we not"

    async def test_depth_counts_what_others_hold(self) -> None:
        pytest.skip(UNSHOWN)

    async def test_a_queue_that_nobody_knows_is_empty(self) -> None:
        inspector = self.inspector()
        depth = await inspector.depth("never-used")
        assert (depth.ready, depth.dead) == (0, 0)
        assert list(await inspector.dead("never-used", 10)) == []
        assert await inspector.purge("never-used") == 0
        assert await inspector.requeue("never-used", ["1"]) == 0
        assert await inspector.drop("never-used", ["1"]) == 0

    async def test_purge_drops_what_is_ready_and_nothing_else(self) -> None:
        inspector = self.inspector()
        await self._bury("dead")
        await self.publish("held", "a", "b", "c")
        (held,) = await self.fetch_until(1)
        await self.broker.publish([self.message("elsewhere", queue=self.other_queue)])
        assert await inspector.purge(self.queue) == 3
        assert (await inspector.depth(self.queue)).dead == 1
        assert (await inspector.depth(self.other_queue)).ready == 1
        assert list(await self.broker.extend([held])) == []
        assert await inspector.purge(self.queue) == 0


class TestAmqpInspectorOnQuorumQueues(TestAmqpInspector):
    """There, a message that was looked at comes back a moment later."""

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url, topology=Topology(queue_arguments={"x-queue-type": "quorum"}))


# ---------------------------------------------------------------------------------------------------- helpers


def message(name: str, queue: str = "q", **fields: Any) -> Message:
    body = encode_signature(Signature(uuid=f"task_{name}", name=name, routing_key=queue))
    return Message(body, queue, f"task_{name}", **fields)


async def fetched(broker: AmqpBroker, count: int = 1, queue: str = "q") -> list[Delivery]:
    """``count`` deliveries, through whatever happens to the server meanwhile."""
    taken: list[Delivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            try:
                taken += await broker.fetch(queue, count - len(taken), 0.5)
            except Unavailable:
                await asyncio.sleep(0.05)
    return taken


async def at_last(call: Callable[[], Awaitable[T]]) -> T:
    """What it returns once the service answers again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.02)


class Host:
    """A virtual host, as its administrator sees it."""

    def __init__(self, server: Rabbit, url: str) -> None:
        self.server = server
        self.name = urlsplit(url).path.removeprefix("/") or "%2F"

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self.server.manage, method, path.replace("VHOST", self.name), body)

    async def queues(self) -> dict[str, Any]:
        return {each["name"]: each for each in await self.ask("GET", "queues/VHOST?disable_stats=true")}

    async def messages(self, queue: str) -> list[Any]:
        wanted = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "auto"}
        return list(await self.ask("POST", f"queues/VHOST/{queue}/get", wanted))


@pytest.fixture(scope="module")
def own_server(shared_rabbitmq: Rabbit) -> Iterator[RabbitServer]:
    """A server to be harmed. Each test leaves it running, and uses queues of its own."""
    with RabbitServer() as server:
        yield server


@pytest.fixture
def host(shared_rabbitmq: Rabbit, amqp_url: str) -> Host:
    return Host(shared_rabbitmq, amqp_url)


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[AmqpBroker]:
    async with opened(AmqpBroker(amqp_url)) as broker:
        yield broker


# ---------------------------------------------------------------------------------------------------- topology


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
async def test_what_stands_on_the_server_and_what_is_sent_is_what_machinery_makes_of_it(
    path: Path, amqp_url: str, host: Host
) -> None:
    golden = json.loads(path.read_text())
    peer, theirs = golden["peer"], golden["topology"]
    ((sent_to, (sent,)),) = golden["messages"].items()
    body = json.loads(sent["body"])
    topology = Topology(
        exchange=peer["exchange"],
        exchange_type=peer["exchange_type"],
        default_queue=peer["queue"],
        binding_key=peer["binding_key"],
        queue_arguments=peer.get("queue_args", {}),
        auto_delete=peer.get("auto_delete", False),
        delayed_queue=peer.get("delayed_queue", ""),
    )
    not_before = time.time() + 59.5 if body["ETA"] else None
    async with opened(AmqpBroker(amqp_url, topology=topology)) as broker:
        await broker.publish(
            [
                Message(
                    sent["body"].encode(),
                    body["RoutingKey"],
                    body["UUID"],
                    not_before=not_before,
                    priority=body["Priority"],
                )
            ]
        )
    target = peer["queue"] if body["RoutingKey"] == peer["binding_key"] else body["RoutingKey"]
    ours = await host.queues()
    for queue in theirs["queues"]:
        # Machinery's publisher declares a queue that has the name of the binding key, and that no worker consumes
        name = target if queue["name"] == peer["binding_key"] else _rounded(queue["name"])
        mine = ours[name]
        assert (mine["durable"], mine["auto_delete"], mine["exclusive"]) == (True, queue["auto_delete"], False)
        told = {key: value for key, value in mine["arguments"].items() if (key, value) != ("x-queue-type", "classic")}
        assert told == {
            key: _rounded(value) for key, _, value in queue["arguments"]
        }  # RabbitMQ 4 tells its default too
    # a delayed message needs a place to go to, which Machinery leaves to the worker
    assert set(ours) == {_rounded(q["name"]) for q in theirs["queues"] if q["name"] != peer["binding_key"]} | {target}
    (exchange,) = [each for each in await host.ask("GET", "exchanges/VHOST") if each["name"] == peer["exchange"]]
    assert (exchange["type"], exchange["durable"], exchange["auto_delete"]) == (peer["exchange_type"], True, False)
    bindings = {
        (each["source"], each["destination"], each["routing_key"])
        for each in await host.ask("GET", "bindings/VHOST")
        if each["source"]
    }
    for binding in theirs["bindings"]:
        name = target if binding["destination_name"] == peer["binding_key"] else _rounded(binding["destination_name"])
        assert (binding["source_name"], name, _rounded(binding["routing_key"])) in bindings
    (mine,) = await host.messages(target if sent_to == peer["binding_key"] else _rounded(sent_to))
    properties = {key: value for key, value in mine["properties"].items() if key != "message_id"}
    if "expiration" in properties:
        assert 59_000 < int(properties["expiration"]) <= 59_500
        properties["expiration"] = sent["properties"]["expiration"]
    assert mine["payload"] == sent["body"]
    assert properties == sent["properties"]
    assert mine["routing_key"] == _rounded(sent["routing_key"])


def _rounded(value: Any) -> Any:
    """Delays in whole seconds, where Machinery has milliseconds."""
    if isinstance(value, str):
        return re.sub(r"\b5999\d\b", "60000", value)
    return round(value, -3) if value > 50_000 else value


async def test_a_task_for_the_default_queue_is_in_that_queue_alone(broker: AmqpBroker, host: Host) -> None:
    assert list(await broker.fetch("mails", 1, 0)) == []  # as a worker of that queue declares it
    await broker.publish([message("a", "machinery_tasks"), message("b", "machinery_task")])
    assert set(await host.queues()) == {"machinery_tasks", "mails"}
    assert list(await broker.fetch("mails", 10, 0.1)) == []
    assert names(await fetched(broker, 2, "machinery_tasks")) == ["a", "b"]


async def test_what_no_queue_is_bound_for_is_refused_and_the_queue_is_named(amqp_url: str) -> None:
    topology = Topology(exchange="topics", exchange_type="topic", binding_key="something.else")
    async with opened(AmqpBroker(amqp_url, topology=topology)) as broker:
        with pytest.raises(Refused, match="machinery_tasks"):
            await broker.publish([message("a", "machinery_tasks")])
        await broker.publish([message("b", "mails")])
        assert names(await fetched(broker, queue="mails")) == ["b"]


async def test_a_queue_with_other_arguments_is_refused_and_the_argument_is_named(
    broker: AmqpBroker, amqp_url: str
) -> None:
    await broker.publish([message("a")])
    other = Topology(queue_arguments={"x-max-priority": 10})
    async with opened(AmqpBroker(amqp_url, topology=other)) as different:
        for verb in (lambda: different.publish([message("b")]), lambda: different.fetch("q", 1, 0)):
            with pytest.raises(Refused, match=r"x-max-priority.*'q'"):
                await verb()
        await different.publish([message("c", "another")])
        assert names(await fetched(different, queue="another")) == ["c"], "other queues go on"


async def test_a_queue_with_too_long_a_name_is_refused_and_the_bound_is_named(broker: AmqpBroker) -> None:
    long = "q" * 245  # itself it may stand, but not what delays for it
    await broker.publish([message("a", long)])
    for queue, not_before in (("q" * 256, None), (long, time.time() + 30), (long, time.time() + 7_200)):
        with pytest.raises(Refused, match=r"255 bytes.*qqq"):
            await broker.publish([message("b", queue, not_before=not_before)])
    with pytest.raises(Refused, match="255 bytes"):
        await broker.fetch("q" * 256, 1, 0)
    assert names(await fetched(broker, queue=long)) == ["a"]


async def test_an_exchange_of_another_type_is_refused_and_the_argument_is_named(
    broker: AmqpBroker, amqp_url: str
) -> None:
    await broker.publish([message("a")])
    async with opened(AmqpBroker(amqp_url, topology=Topology(exchange_type="fanout"))) as different:
        with pytest.raises(Refused, match=r"inequivalent arg 'type' for exchange 'machinery_exchange'"):
            await different.publish([message("b")])


async def test_a_user_without_permissions_is_refused_and_what_was_not_allowed_is_named(
    host: Host, amqp_url: str, broker: AmqpBroker
) -> None:
    await broker.publish([message("a")])
    name, place = f"user-{host.name}", amqp_url.partition("@")[2]
    await host.ask("PUT", f"users/{name}", {"password": CANARY, "tags": ""})
    try:
        denied = AmqpBroker(f"amqp://{name}:{CANARY}@{place}")
        with pytest.raises(Refused, match=r"virtual host exist, and may this user use it") as raised:
            await denied.open()
        assert CANARY not in str(raised.value)
        await host.ask("PUT", f"permissions/VHOST/{name}", {"configure": ".*", "write": "q", "read": "machinery.*"})
        async with opened(denied):
            with pytest.raises(Refused, match="access to exchange 'machinery_exchange'"):
                await denied.publish([message("b")])
            with pytest.raises(Refused, match="access to queue 'q'"):
                await denied.fetch("q", 1, 0)
        assert names(await fetched(broker)) == ["a"]
    finally:
        await host.ask("DELETE", f"users/{name}")


async def test_a_body_over_the_servers_limit_is_refused_and_its_queue_is_named(own_server: RabbitServer) -> None:
    words = "application:set_env(rabbit, max_message_size, {})."
    await asyncio.to_thread(own_server.control, "eval", words.format(100_000))
    try:
        async with opened(AmqpBroker(own_server.url)) as broker:
            await at_last(lambda: broker.publish([message("before", "sizes")]))
            large = Message(b"x" * 100_001, "sizes", "task_large")
            innocent = asyncio.create_task(at_last(lambda: broker.publish([message("beside", "sizes-2")])))
            with pytest.raises(MessageTooLarge, match=r"'sizes'.*100001"):
                await broker.publish([message("with it", "sizes-3"), large])
            await innocent
            await broker.publish([message("after", "sizes-2")])
            assert names(await fetched(broker, queue="sizes")) == ["before"]
            seen: set[str] = set()
            while seen != {"beside", "after"}:  # the one beside may be there twice
                seen |= {*names(await fetched(broker, queue="sizes-2"))}
    finally:
        await asyncio.to_thread(own_server.control, "eval", words.format(134_217_728))


async def test_a_message_arrives_in_a_queue_that_was_deleted_since_we_declared_it(
    broker: AmqpBroker, host: Host
) -> None:
    await broker.publish([message("a")])
    await host.ask("DELETE", "queues/VHOST/q")
    await broker.publish([message("b")])
    assert names(await fetched(broker)) == ["b"]


async def test_a_waiting_fetch_comes_back_when_its_queue_is_deleted(broker: AmqpBroker, host: Host) -> None:
    waiting = asyncio.create_task(broker.fetch("q", 1, PATIENCE))
    while "q" not in await host.queues():
        await asyncio.sleep(0.01)
    await broker.publish([message("a")])
    await broker.ack(await waiting)
    waiting = asyncio.create_task(broker.fetch("q", 1, PATIENCE))
    while not (await host.ask("GET", "consumers/VHOST")):
        await asyncio.sleep(0.01)
    await host.ask("DELETE", "queues/VHOST/q")
    assert list(await asyncio.wait_for(waiting, PATIENCE / 2)) == []
    await broker.publish([message("b")])
    assert names(await fetched(broker)) == ["b"]


async def test_messages_of_others_come_as_they_are(broker: AmqpBroker, host: Host) -> None:
    assert list(await broker.fetch("q", 1, 0)) == []
    bodies = ["", "{", "\x00\x01", "[1, 2]", "x" * 1_000_000]
    for body in bodies:
        sent = {"properties": {"headers": {"x-b3-traceid": "1", "number": 7}}, "routing_key": "q", "payload": body}
        await host.ask("POST", "exchanges/VHOST/machinery_exchange/publish", {**sent, "payload_encoding": "string"})
    taken = await fetched(broker, len(bodies))
    assert [each.body.decode() for each in taken] == bodies
    await broker.nack(taken[:1], delay=1.0)
    await broker.bury(taken[1:2], "unreadable", "no JSON")
    await broker.ack(taken[2:])
    (dead,) = await broker.dead("q", 10)
    assert (dead.body, dead.reason) == (b"{", "unreadable")
    (again,) = await fetched(broker)
    assert again.body == b""
    await broker.nack([again])
    (seen,) = await host.messages("q")
    assert seen["properties"]["headers"] == {"x-b3-traceid": "1", "number": 7} | {
        key: value for key, value in seen["properties"]["headers"].items() if "death" in key
    }


# ---------------------------------------------------------------------------------------------------- delays


async def test_delays_of_one_to_ten_seconds_are_kept_to_the_second(broker: AmqpBroker) -> None:
    await _are_kept_to_the_second(broker, range(1, 11))


async def test_delays_by_way_of_several_queues_are_kept_to_the_second(
    broker: AmqpBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_topology, "SHORT", range(0))
    monkeypatch.setattr(amqp_topology, "BASE", 2)
    await _are_kept_to_the_second(broker, range(1, 6))


async def _are_kept_to_the_second(broker: AmqpBroker, delays: range) -> None:
    sent_at = time.time()
    await broker.publish([message(f"m{delay}", not_before=sent_at + delay) for delay in delays])
    for delay in delays:
        (delivery,) = await fetched(broker)
        late = time.time() - sent_at - delay
        print(f"a delay of {delay} s: {late:+.3f} s")
        assert (names([delivery]), late >= -0.01) == ([f"m{delay}"], True)
        await broker.ack([delivery])


async def test_a_delay_that_is_too_long_is_refused_in_words(broker: AmqpBroker) -> None:
    with pytest.raises(Refused, match=r"cannot delay a message of queue 'q' so long: .* s is longer than"):
        await broker.publish([message("a", not_before=time.time() + 365 * 86_400)])


async def test_one_queue_for_all_delayed_tasks_can_be_asked_for(amqp_url: str, host: Host) -> None:
    async with opened(AmqpBroker(amqp_url, topology=Topology(delayed_queue="later"))) as broker:
        await broker.publish([message("a", "machinery_tasks", not_before=time.time() + 1.0)])
        assert "later" in await host.queues()
        assert names(await fetched(broker, queue="machinery_tasks")) == ["a"]


# ---------------------------------------------------------------------------------------------------- holding


def test_the_oldest_are_acked_with_one_frame() -> None:
    assert ack_frames([1, 2, 3, 4], {1, 2, 3}) == [(3, True)]
    assert ack_frames([1, 2, 3, 4], {1, 2, 4}) == [(2, True), (4, False)]
    assert ack_frames([1, 2, 3, 4], {3, 4}) == [(3, False), (4, False)]
    assert ack_frames([7, 9], {7}) == [(7, False)]
    assert ack_frames([], set()) == []


async def test_verdicts_in_any_order_and_all_at_once_do_no_harm(broker: AmqpBroker) -> None:
    await broker.publish([message(f"m{number}") for number in range(60)])
    taken = await fetched(broker, 60)
    await asyncio.gather(
        *(broker.ack([each, each]) for each in taken[::3]),
        *(broker.nack([each], delay=1.0) for each in taken[1::3]),
        *(broker.bury([each], "reason", "error") for each in taken[2::3]),
        broker.ack(taken[::3]),
    )
    assert list(await broker.extend(taken)) == taken
    assert len(await broker.dead("q", 100)) == 20
    assert sorted(names(await fetched(broker, 20))) == sorted(names(taken[1::3]))
    assert list(await broker.fetch("q", 10, 0.1)) == []


async def test_a_bound_of_held_messages_is_kept_and_freed(amqp_url: str) -> None:
    async with opened(AmqpBroker(amqp_url, prefetch=3)) as broker:
        await broker.publish([message(f"m{number}") for number in range(5)])
        first = await fetched(broker, 3)
        assert list(await broker.fetch("q", 10, 0.05)) == []
        waiting = asyncio.create_task(broker.fetch("q", 10, PATIENCE))
        await asyncio.sleep(0)
        await broker.ack(first[:1])
        assert names(await waiting) == ["m3"]


async def test_a_fetch_takes_no_more_than_its_limit_while_others_ask_what_is_held(broker: AmqpBroker) -> None:
    await broker.publish([message(f"m{number}") for number in range(200)])
    (first,) = await fetched(broker)
    for limit in (7, 1) * 10:
        taken, *lost = await asyncio.gather(
            broker.fetch("q", limit, PATIENCE), *(broker.extend([first]) for _ in range(5))
        )
        assert len(taken) <= limit
        assert lost == [[]] * 5
        await broker.ack(taken)


async def test_a_bound_of_held_messages_counts_those_that_are_held_anew(amqp_url: str) -> None:
    async with opened(AmqpBroker(amqp_url, prefetch=3, renew_after=0.0)) as broker:
        await broker.publish([message(f"m{number}") for number in range(5)])
        taken = await fetched(broker, 3)
        assert list(await broker.extend(taken)) == []
        assert list(await broker.fetch("q", 10, 0.05)) == []
        await broker.ack(taken[:1])
        assert names(await fetched(broker)) == ["m3"]


async def test_a_fetch_that_waits_for_room_ends_when_the_broker_is_closed(amqp_url: str) -> None:
    async with asyncio.timeout(PATIENCE), opened(AmqpBroker(amqp_url, prefetch=1)) as broker:
        await broker.publish([message("a")])
        await fetched(broker)
        waiting = asyncio.create_task(broker.fetch("q", 1, 10 * PATIENCE))
        for _ in range(100):
            await asyncio.sleep(0)
        await broker.close()
        assert list(await waiting) == []


async def test_a_connection_that_the_server_closes_costs_what_it_held_and_nothing_more(
    broker: AmqpBroker, host: Host
) -> None:
    await broker.publish([message("a")])
    (held,) = await fetched(broker)
    waiting = asyncio.create_task(fetched(broker))
    closed = 0
    while not closed:
        for each in await host.ask("GET", "vhosts/VHOST/connections"):
            with suppress(OSError):
                await host.ask("DELETE", f"connections/{each['name'].replace(' ', '%20').replace('>', '%3E')}")
                closed += 1
        await asyncio.sleep(0.05)
    (again,) = await waiting
    assert (again.body, again.attempt) == (held.body, 2)
    await broker.ack([held])
    assert list(await broker.extend([held, again])) == [held]
    await at_last(lambda: broker.publish([message("b")]))
    assert names(await fetched(broker)) == ["b"]


async def test_a_connection_that_is_half_open_holds_nothing_any_more(amqp_url: str, shared_rabbitmq: Rabbit) -> None:
    place = urlsplit(amqp_url)
    async with FaultProxy("127.0.0.1", urlsplit(shared_rabbitmq.url).port or 0, reads=False) as proxy:
        url = f"amqp://{place.username}:{place.password}@127.0.0.1:{proxy.port}{place.path}"
        async with opened(AmqpBroker(url, reply_timeout=1.0, heartbeat=3)) as broker:
            await broker.publish([message("a"), message("b")])
            taken = await fetched(broker, 2)
            assert list(await broker.extend(taken)) == []
            proxy.strand()
            assert list(await broker.extend(taken)) == taken
            await broker.ack(taken)  # which changes nothing
            assert sorted(names(await fetched(broker, 2))) == ["a", "b"], "the server gives a silent client up, too"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_what_was_held_for_long_is_held_anew_and_every_verdict_reaches_it(kind: str, amqp_url: str) -> None:
    def worker() -> AmqpBroker:
        return AmqpBroker(amqp_url, topology=Topology(queue_arguments={"x-queue-type": kind}), renew_after=0.0)

    async with opened(worker()) as other:
        async with opened(worker()) as broker:
            await broker.publish([message(name, priority=3) for name in ("acked", "back", "later", "dead", "left")])
            acked, back, later, dead, left = taken = await fetched(broker, 5)
            for _ in range(3):
                assert list(await broker.extend(taken)) == []
            assert (await other.depth("q")).ready == 0
            await asyncio.gather(broker.extend(taken), broker.ack([acked]))
            await broker.nack([back])
            await broker.nack([later], delay=1.0)
            await broker.bury([dead], "reason", "error")
            assert list(await broker.extend(taken)) == taken[:4]
            assert [entry.body for entry in await other.dead("q", 10)] == [dead.body]
            again = {name: await fetched(other) for name in ("back", "later")}
            assert {name: names(each) for name, each in again.items()} == {"back": ["back"], "later": ["later"]}
            await other.ack([each for some in again.values() for each in some])
        (once_more,) = await fetched(other)
        assert once_more.body == left.body, "it was given back by a worker that left"
        assert once_more.attempt in (2, 3), "RabbitMQ 4 goes on counting where another quorum queue ended"
        await other.ack([once_more])
        assert list(await other.fetch("q", 10, 0.1)) == []


async def test_what_is_held_anew_twice_at_once_is_there_once(amqp_url: str) -> None:
    async with opened(AmqpBroker(amqp_url)) as other:
        async with opened(AmqpBroker(amqp_url, renew_after=0.0)) as broker:
            await broker.publish([message(f"m{number}") for number in range(6)])
            taken = await fetched(broker, 6)
            assert await asyncio.gather(*(broker.extend([each]) for each in taken)) == [[]] * 6
            await broker.ack(taken)
            assert list(await broker.extend(taken)) == taken
        assert names(await other.fetch("q", 10, 3.0)) == [], "what is left would come back in two seconds"


async def test_a_copy_whose_confirmation_was_lost_is_dropped_and_the_first_one_is_kept(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(AmqpBroker(amqp_url)) as other:
        async with opened(AmqpBroker(amqp_url, renew_after=0.0)) as broker:
            await broker.publish([message("a")])
            taken = await fetched(broker)
            send = broker._send

            async def send_and_fail(parcels: Any) -> None:
                await send(parcels)
                raise Unavailable("the confirmation was lost")

            monkeypatch.setattr(broker, "_send", send_and_fail)
            assert list(await broker.extend(taken)) == []
            await broker.ack(taken)
        assert names(await other.fetch("q", 10, 3.0)) == [], "what is left would come back in two seconds"


async def test_nothing_is_copied_to_another_server_than_the_one_that_holds_it(
    amqp_url: str, own_server: RabbitServer
) -> None:
    async with opened(AmqpBroker(amqp_url, renew_after=0.0), AmqpBroker(own_server.url)) as (broker, elsewhere):
        await broker.publish([message("a", "here")])
        taken = await fetched(broker, queue="here")
        # as after a fail-over of the one connection alone, between servers that are no cluster
        broker._publishing.abandon()
        broker._publishing.access = elsewhere._publishing.access
        assert list(await broker.extend(taken)) == []
        assert names(await elsewhere.fetch("here", 10, 3.0)) == [], "a copy would come back in two seconds"
        await broker.ack(taken)


@pytest.mark.parametrize("turns", [0, 1, 5, 25, 125])
async def test_a_fetch_that_is_under_way_while_the_broker_is_closed_keeps_nothing(turns: int, amqp_url: str) -> None:
    async with opened(AmqpBroker(amqp_url)) as other:
        async with asyncio.timeout(PATIENCE / 2), opened(AmqpBroker(amqp_url)) as broker:
            link = broker._consuming
            fetching = asyncio.create_task(broker.fetch("q", 1, 10 * PATIENCE))
            for _ in range(turns):
                await asyncio.sleep(0)
            await broker.close()
            await asyncio.wait({fetching})
        assert fetching.exception() is not None or fetching.result() in ((), [])
        assert not link.is_open
        await other.publish([message("a")])
        assert names(await fetched(other)) == ["a"]


async def test_nothing_is_lost_while_no_server_is_there_to_give_it_to_others(
    amqp_url: str, shared_rabbitmq: Rabbit
) -> None:
    place = urlsplit(amqp_url)
    async with FaultProxy("127.0.0.1", urlsplit(shared_rabbitmq.url).port or 0, reads=False) as proxy:
        url = f"amqp://{place.username}:{place.password}@127.0.0.1:{proxy.port}{place.path}"
        async with opened(AmqpBroker(url, reply_timeout=1.0)) as broker:
            await broker.publish([message("a")])
            taken = await fetched(broker)
            await proxy.refuse()
            with pytest.raises(Unavailable):
                await broker.extend(taken)
            await proxy.accept()
            assert await at_last(lambda: broker.extend(taken)) == taken


async def test_what_the_server_buried_by_its_own_limit_is_shown_with_its_reason_and_put_back(amqp_url: str) -> None:
    limited = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q.dead"}
    async with opened(AmqpBroker(amqp_url, topology=Topology(queue_arguments=limited | to_dead))) as broker:
        await broker.publish([message("first")])
        await broker.bury(await fetched(broker), "mine", "an error")  # now the dead letter is there
        await broker.publish([message("a")])
        for _ in range(2):
            await broker.nack(await fetched(broker))
        async with asyncio.timeout(PATIENCE):
            while len(dead := await broker.dead("q", 10)) < 2:
                await asyncio.sleep(0.02)
        theirs, mine = sorted(dead, key=lambda entry: entry.reason)
        assert (theirs.reason, mine.reason) == ("delivery_limit", "mine")
        assert abs(theirs.buried_at - time.time()) < 60
        assert await broker.requeue("q", [theirs.id]) == 1
        assert names(await fetched(broker)) == ["a"]


# ---------------------------------------------------------------------------------------------------- reaching it


@pytest.mark.parametrize("url", ["amqp://h:x/", "amqp:///", "http://h", "amqps://h/?cafil=x", "amqp://h/?cafile=x", ""])
def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected .*amqps?://"):
        parse_urls(url)


def test_a_password_is_never_shown() -> None:
    broker = AmqpBroker(f"amqp://user:{CANARY}@h/v;amqp://user:{CANARY}@h2/v", separator=";")
    assert broker.address == "amqp://h:5672/v, amqp://h2:5672/v"
    with pytest.raises(ConfigError) as raised:
        AmqpBroker(f"amqp://user:{CANARY}@h:port/")
    assert CANARY not in str(raised.value) + repr(parse_urls(f"amqp://user:{CANARY}@h/"))


async def test_wrong_credentials_and_an_unknown_host_are_refused(shared_rabbitmq: Rabbit) -> None:
    place = shared_rabbitmq.url.partition("@")[2].rstrip("/")
    for url in (f"amqp://guest:{CANARY}@{place}/", f"amqp://guest:guest@{place}/no-such-host"):
        with pytest.raises(Refused) as raised:
            await AmqpBroker(url).open()
        assert place in str(raised.value)
        assert CANARY not in str(raised.value)


async def test_tls_is_spoken_and_certificates_are_verified(shared_rabbitmq: Rabbit) -> None:
    async with opened(AmqpBroker(shared_rabbitmq.tls_url)) as broker:
        await broker.publish([message("tls", "tls-queue")])
        (delivery,) = await fetched(broker, queue="tls-queue")
        await broker.ack([delivery])
    with pytest.raises(Refused, match="certificate"):
        await AmqpBroker(shared_rabbitmq.tls_url.partition("?")[0]).open()


async def test_of_several_servers_the_first_that_answers_is_used(amqp_url: str) -> None:
    nobody = f"amqp://127.0.0.1:{free_port()}/"
    async with opened(AmqpBroker(f"{nobody};{amqp_url}", separator=";")) as broker:
        await broker.publish([message("a")])
        assert names(await fetched(broker)) == ["a"]
    with pytest.raises(Unavailable):
        await AmqpBroker(f"{nobody};{nobody}", separator=";").open()


async def test_a_server_that_is_killed_and_comes_back_has_what_it_confirmed(own_server: RabbitServer) -> None:
    server = own_server
    async with opened(AmqpBroker(server.url)) as broker:
        await broker.publish([message("held"), message("ready"), message("later", not_before=time.time() + 2)])
        (held,) = await fetched(broker)
        waiting = asyncio.create_task(fetched(broker, 3))
        await asyncio.to_thread(server.kill)
        with pytest.raises(Unavailable):
            await broker.publish([message("nobody hears this")])
        await asyncio.to_thread(server.restart)
        taken = await waiting
        assert sorted(names(taken)) == ["held", "later", "ready"]
        assert list(await broker.extend([held, *taken])) == [held]
        await at_last(lambda: broker.publish([message("after")]))
        assert names(await fetched(broker)) == ["after"]


async def test_a_server_that_stands_still_is_noticed_by_the_next_call(own_server: RabbitServer) -> None:
    server = own_server
    async with opened(AmqpBroker(server.url, reply_timeout=3.0, connect_timeout=3.0)) as broker:
        await at_last(lambda: broker.publish([message("a", "still")]))
        await asyncio.to_thread(server.suspend)
        try:
            for verb in (lambda: broker.publish([message("b", "still")]), lambda: broker.fetch("still", 1, 0.1)):
                with pytest.raises(Unavailable):
                    await verb()
        finally:
            server.resume()
        while names(await fetched(broker, queue="still")) != ["a"]:
            pass  # "b" may be there or not: nobody has confirmed it


async def test_a_server_that_is_short_of_memory_refuses_messages_and_goes_on_giving_them_out(
    own_server: RabbitServer,
) -> None:
    server = own_server
    async with opened(AmqpBroker(server.url, reply_timeout=3.0)) as broker:
        await at_last(lambda: broker.publish([message("a", "short"), message("b", "short")]))
        (first,) = await fetched(broker, queue="short")
        await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0")
        with pytest.raises(Blocked, match="memory or disk alarm"):
            await broker.publish([message("c", "short")])
        assert names(await fetched(broker, queue="short")) == ["b"]
        await broker.ack([first])
        await asyncio.to_thread(server.control, "set_vm_memory_high_watermark", "0.8")
        await at_last(lambda: broker.publish([message("d", "short")]))
        while names(await fetched(broker, queue="short")) != ["d"]:
            pass  # "c" may be there or not: nobody has confirmed it


class TestTwoWorkersOnRabbit(OnRabbit, BrokerSuite):
    """Threads and loops."""

    async def make_broker(self) -> AmqpBroker:
        return AmqpBroker(self.url)

    async def test_a_twin_whose_family_has_left_holds_nothing(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        twin = await self.opened(self.broker.twin())
        await self.broker.close()
        assert list(await twin.extend([delivery])) == [delivery]
        await twin.ack([delivery])
        assert names(await self.fetch_until(1, broker=twin)) == ["a"]
