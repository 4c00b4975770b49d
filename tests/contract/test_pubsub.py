"""Pub/Sub keeps the contracts of broker and inspector, on Google's own test server; and what is its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.pubsub_v1.services.publisher.async_client import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports.grpc_asyncio import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.async_client import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports.grpc_asyncio import SubscriberGrpcAsyncIOTransport
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue import Server
from asyncqueue.brokers import pubsub
from asyncqueue.brokers.base import Broker, Delivery
from asyncqueue.brokers.pubsub import MAX_BYTES, MAX_LEASE, NEAR, PubSubBroker
from asyncqueue.connections.pubsub import Post, PubSubLink, Subscription, parse_url
from asyncqueue.connections.pubsub_holding import Receipt
from asyncqueue.engine.messages import MAX_ERROR_TEXT
from asyncqueue.errors import ConfigError, MessageTooLarge, Refused, Unavailable
from asyncqueue.testing import BrokerContract, InspectorContract
from asyncqueue.testing.suite import BrokerSuite, names
from tests.opened import opened
from tests.services import EmulatorServer, ServiceMissing, free_port

LEASE = 2.0


class OnPubSub(BrokerSuite):
    """A project of its own for each test. Delays and leases are whole seconds here."""

    driver = "pubsub"
    delay = 1.0
    knows_tokens = False
    uncounted_nacks = False
    tells_depths = False
    broker: PubSubBroker

    @pytest.fixture
    def service(self, pubsub_url: str) -> None:
        self.url = pubsub_url

    @pytest.fixture(autouse=True)
    def a_look_takes_no_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is in a dead letter on this machine comes at once."""
        monkeypatch.setattr(pubsub, "LOOK", 0.2)

    async def make_broker(self) -> PubSubBroker:
        return self.made()

    async def make_unreachable(self) -> Broker:
        return PubSubBroker(f"gcppubsub://project/workers?emulator=127.0.0.1:{free_port()}", lease=LEASE)

    def made(self, **options: Any) -> PubSubBroker:
        """A broker on the project of this test."""
        return PubSubBroker(self.url, **{"lease": LEASE, "default_queue": self.queue, **options})

    def link(self) -> PubSubLink:
        """The service itself, past the broker."""
        return self.broker._link


class TestBroker(OnPubSub, BrokerContract):
    """On pstest."""

    async def test_messages_become_due_each_at_its_own_time(self) -> None:
        # they are late by up to a second each, and what was taken first must still be ours
        self.broker = await self.opened(self.made(lease=10.0))
        await super().test_messages_become_due_each_at_its_own_time()

    async def test_extend_starts_the_lease_anew(self) -> None:
        # several calls fit between an extension and the end of a lease, and on a busy machine each takes its time
        self.broker = await self.opened(self.made(lease=5.0))
        await super().test_extend_starts_the_lease_anew()


class TestInspector(OnPubSub, InspectorContract):
    """On pstest."""


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """``host:port`` of Google's emulator, where the machine has it."""
    server = EmulatorServer()
    try:
        server.start()
    except ServiceMissing as exc:  # no package registry has it: nowhere is it a must
        pytest.skip(str(exc))
    yield server.host
    server.stop()


class OnEmulator(OnPubSub):
    """The same on Google's emulator."""

    @pytest.fixture
    def service(self, emulator: str, pubsub_url: str) -> None:
        self.url = f"{pubsub_url.partition('?')[0]}?emulator={emulator}"


@pytest.mark.long
class TestBrokerOnEmulator(OnEmulator, TestBroker):
    """Google's emulator has ack ids of its own for every showing."""


@pytest.mark.long
class TestInspectorOnEmulator(OnEmulator, TestInspector):
    """Its pulls wait for messages."""


class TestOfItsOwn(OnPubSub):
    """What only Pub/Sub does."""

    # places

    async def test_a_queue_is_a_topic_and_a_subscription_and_the_default_one_has_that_of_the_url(self) -> None:
        await self.publish("a")
        await self.broker.publish([self.message("b", queue="a/b:c", not_before=self.now() + 60)])
        found = {each.name: each.topic for each in await self.link().subscriptions()}
        assert found == {
            "workers": self.queue,
            f"{self.queue}.dead": f"{self.queue}.dead",
            "a%2Fb%3Ac.delayed": "a%2Fb%3Ac.delayed",
        }
        assert await self.broker.queues() == [self.queue]
        await self.broker.publish([self.message("b", queue="a/b:c")])
        assert await self.broker.queues() == ["a/b:c", self.queue]

    @pytest.mark.parametrize("queue", ["q", "1st-queue", "google-queue"])
    async def test_a_name_that_no_topic_may_have_is_made_fit(self, queue: str) -> None:
        await self.broker.publish([self.message("a", queue=queue)])
        assert names(await self.fetch_until(1, queue=queue)) == ["a"]
        assert f"q~{queue}" in {each.topic for each in await self.link().subscriptions()}
        assert await self.broker.queues() == [queue]

    async def test_no_two_queues_share_a_topic_and_a_plus_stays_as_it_is(self) -> None:
        for queue in ("x", "q~x", "a+b"):
            await self.broker.publish([self.message(f"in {queue}", queue=queue)])
        assert {"q~x", "q~q~x", "a+b"} <= {each.topic for each in await self.link().subscriptions()}
        for queue in ("x", "q~x", "a+b"):
            assert names(await self.fetch_until(1, queue=queue)) == [f"in {queue}"]
        assert await self.broker.queues() == ["a+b", "q~x", "x"]

    async def test_a_name_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(Refused, match=r"queue ':{100}': in Pub/Sub its name has 300 letters, and may have 255"):
            await self.broker.publish([self.message("a", queue=":" * 100)])

    async def test_what_is_missing_is_named_where_none_is_to_be_made(self) -> None:
        broker = self.made(create_topics=False)
        named = f"subscription 'workers' of topic '{self.queue}'.* does not exist in .*gcppubsub.create_topics"
        with pytest.raises(Refused, match=named):
            await broker.open()
        with pytest.raises(Refused, match=named):
            await broker.publish([self.message("a")])
        with pytest.raises(Refused, match="subscription 'other' of topic 'other'"):
            await broker.fetch("other", 1, 0)
        await broker.close()

    async def test_a_subscription_of_another_topic_is_refused_by_name(self) -> None:
        await self.link().create_topic("another")
        await self.link().create_subscription(Subscription("workers", "another", 10))
        with pytest.raises(Refused, match=f"'workers' .* is of topic 'another': queue '{self.queue}' needs one of"):
            await self.broker.publish([self.message("a")])

    async def test_what_somebody_else_set_up_is_used_as_it_is(self) -> None:
        await self.link().create_topic(self.queue)
        await self.link().create_subscription(Subscription("workers", self.queue, 60))
        broker = await self.opened(self.made(create_topics=False))
        await broker.publish([self.message("a")])
        delivery = await self.fetch_one(broker=broker)
        assert delivery.attempt == 0, "without a dead-letter policy, the service does not count"
        await self.advance(LEASE)  # and not its own 60 s
        assert names([await self.fetch_one(broker=await self.another_broker())]) == ["a"]

    async def test_what_is_deleted_meanwhile_is_made_anew(self) -> None:
        await self.publish("a")
        link = self.link()
        use = await link._clients()
        await use.subscriber.delete_subscription(subscription=link._subscription("workers"))
        await use.publisher.delete_topic(topic=link._topic(self.queue))
        await self.publish("b")
        assert names([await self.fetch_one()]) == ["b"]

    # messages

    async def test_a_message_is_its_body_and_nothing_else(self) -> None:
        await self.broker.publish([self.raw_message(b"\x00\xff"), self.raw_message(b"")])
        found = [each for _ in range(2) for each in await self.link().pull("workers", 1, wait=1)]
        assert {(each.body, tuple(each.attributes)) for each in found} == {(b"\x00\xff", ()), (b"", ("aq-empty",))}

    async def test_equal_ordering_keys_keep_their_order(self) -> None:
        await self.broker.publish([self.message(name, ordering_key="key") for name in "abc"])
        for name in "abc":
            delivery = await self.fetch_one()
            assert names([delivery]) == [name]
            await self.broker.ack([delivery])

    async def test_a_message_over_the_limit_is_refused_before_any_of_its_batch_is_sent(self) -> None:
        with pytest.raises(MessageTooLarge, match=rf"queue '{self.queue}' takes \d+ bytes .* limit is {MAX_BYTES}"):
            await self.broker.publish([self.message("a"), self.raw_message(b"x" * MAX_BYTES)])
        assert await self.fetch_now() == []

    async def test_a_batch_over_the_limit_leaves_in_several_requests(self) -> None:
        await self.broker.publish([self.raw_message(bytes([n]) * 3_000_000) for n in range(5)])
        found = [(await self.fetch_one()).body for _ in range(5)]
        assert sorted(found) == [bytes([n]) * 3_000_000 for n in range(5)]

    async def test_a_long_error_is_kept_whole_in_the_dead_letter(self) -> None:
        await self.publish("a")
        error = "ß☃ " * 2_000
        await self.broker.bury([await self.fetch_one()], "reason", error)
        (entry,) = await self.broker.dead(self.queue, 10)
        assert (entry.reason, entry.error, entry.queue) == ("reason", error, self.queue)

    async def test_the_largest_message_has_room_for_its_facts_in_the_dead_letter(self) -> None:
        body = b"x" * (MAX_BYTES - Post(b"").size)
        await self.broker.publish([self.raw_message(body)])
        error = "ß" * MAX_ERROR_TEXT
        await self.broker.bury([await self.fetch_one()], "reason", error)
        (entry,) = await self.broker.dead(self.queue, 10)
        assert (entry.body == body, entry.error == error) == (True, True)

    async def test_a_purge_of_a_queue_that_is_filled_meanwhile_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.publish("a")
        acknowledge = self.link().acknowledge

        async def acknowledge_and_publish(subscription: str, ack_ids: list[str]) -> set[str]:
            await self.publish("one more")
            return await acknowledge(subscription, ack_ids)

        monkeypatch.setattr(pubsub, "PURGE_MARGIN", 0.0)
        monkeypatch.setattr(self.link(), "acknowledge", acknowledge_and_publish)
        assert await self.in_time(self.broker.purge(self.queue)) == 2

    async def test_what_was_published_is_not_published_again_when_the_rest_of_it_is(self) -> None:
        mine = self.message("a", token="1")
        badly_named = self.message("b", queue=":" * 100, token="2")
        for _ in range(2):
            with pytest.raises(Refused):
                await self.broker.publish([mine, badly_named])
        assert names(await self.fetch_until(1)) == ["a"]
        assert await self.fetch_now() == []

    # leases

    async def test_a_message_is_kept_no_longer_than_the_longest_extension(self) -> None:
        broker = await self.opened(self.made(max_extension=1.0))
        await broker.publish([self.message("a")])
        delivery = await self.fetch_one(broker=broker)
        assert list(await broker.extend([delivery])) == []
        other = await self.another_broker()
        waiting = asyncio.create_task(self.fetch_one(broker=other))
        while not waiting.done():
            await broker.extend([delivery])
            await self.advance(0.2)
        assert names([await waiting]) == ["a"]
        assert list(await broker.extend([delivery])) == [delivery]

    async def test_a_request_that_outlasts_its_fetch_is_taken_up_by_the_next(self) -> None:
        assert list(await self.broker.fetch(self.queue, 5, 0.01)) == []
        await (await self.another_broker()).publish([self.message("a"), self.message("b")])
        assert sorted(names(await self.fetch_until(2))) == ["a", "b"]

    async def test_what_nobody_fetched_in_time_is_given_back_unrun(self) -> None:
        assert list(await self.broker.fetch(self.queue, 5, 0.01)) == []
        await self.publish("a")
        pull = self.broker._intakes[self.queue].pull
        assert pull is not None
        await self.in_time(asyncio.wait({pull}))
        await self.advance(LEASE / 2 + 0.1)
        assert list(await self.broker.fetch(self.queue, 5, 0.01)) == []
        assert names([await self.fetch_one()]) == ["a"]

    async def test_a_message_whose_lease_ended_is_not_remembered_for_ever(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pubsub, "_REMEMBERED", 0)
        await self.publish("a")
        lost = await self.fetch_one()
        again = await self.fetch_one()
        assert (lost.body, list(self.broker._holding._held)) == (again.body, [again.receipt])

    async def test_a_delay_that_a_deadline_can_be_is_one_request_and_a_longer_one_waits_in_the_store(self) -> None:
        await self.publish("a", "b")
        short, long = await self.fetch_until(2)
        await self.broker.nack([short], delay=float(MAX_LEASE))
        with pytest.raises(Refused):
            await self.link().subscription(f"{self.queue}.delayed")
        await self.broker.nack([long], delay=MAX_LEASE + 1.0)
        (waiting,) = await self.link().pull(f"{self.queue}.delayed", 10, wait=1)
        assert waiting.body == long.body
        assert float(waiting.attributes["aq-due"]) > self.now() + MAX_LEASE - 10
        assert await self.fetch_now() == []

    # the store of delayed messages

    async def test_a_delayed_message_keeps_its_ordering_key_for_later(self) -> None:
        await self.broker.publish([self.message("a", ordering_key="key", not_before=self.now() + 1)])
        assert await self.fetch_now() == []
        (moved,) = await self.in_time(self.found_in_queue())
        assert (moved.ordering_key, dict(moved.attributes)) == ("key", {})

    async def test_a_far_message_is_kept_by_hops_and_comes_at_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pubsub, "NEAR", 1.0)
        due = self.now() + 4.0
        await self.broker.publish([self.message("a", not_before=due)])
        assert names([await self.fetch_one()]) == ["a"]
        assert due <= self.now() < due + 30

    async def test_a_message_that_waits_for_days_is_published_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        due = self.now() + 86_400.0
        await self.broker.publish([self.message("a", not_before=due)])
        first = self.link().publish
        published: list[tuple[str, str]] = []

        async def publish(topic: str, posts: list[Post]) -> None:
            published.extend((topic, each.attributes["aq-due"]) for each in posts)
            await first(topic, posts)

        monkeypatch.setattr(self.link(), "publish", publish)
        monkeypatch.setattr(pubsub, "RENEW", -1.0)
        await self.broker.tend([self.queue])
        assert published == [(f"{self.queue}.delayed", f"{due:.6f}")]

    async def test_what_others_put_into_the_store_is_due_at_once(self) -> None:
        store = f"{self.queue}.delayed"
        await self.broker.publish([self.message("a", not_before=self.now() + 60)])
        await self.link().publish(store, [Post(b"b", {"aq-due": due}) for due in ("soon", "nan", "-1")])
        assert [each.body for each in await self.fetch_until(3)] == [b"b"] * 3

    async def test_a_queue_that_cannot_be_tended_holds_up_no_other(self) -> None:
        await self.publish("a")
        store = f"{self.queue}.delayed"
        await self.broker.publish([self.message("b", not_before=self.now() + 60)])
        await self.link().publish(store, [Post(b"c", {"aq-due": "0"})])
        with pytest.raises(Refused, match="its name has"):
            await self.broker.tend([":" * 100, self.queue])
        assert b"c" in {each.body for each in await self.link().pull("workers", 10, wait=0.0)}

    async def test_who_leaves_shows_what_it_kept_to_others_at_once(self) -> None:
        due = self.now() + NEAR - 1
        await self.broker.publish([self.message("a", not_before=due)])
        await self.broker.tend([self.queue])
        await self.broker.close()
        assert names([await self.fetch_one(broker=await self.another_broker())]) == ["a"]
        assert due <= self.now() < due + 5

    async def found_in_queue(self) -> list[Any]:
        while not (found := await self.link().pull("workers", 10, wait=0.0)):
            await asyncio.sleep(await self.broker.tend([self.queue]))
        return list(found)

    # clients

    async def test_clients_of_your_own_are_used_in_their_own_loop_and_left_open(self) -> None:
        emulator = parse_url(self.url).emulator
        url = self.url.partition("?")[0]
        async with grpc.aio.insecure_channel(emulator) as channel:
            publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
            subscriber = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
            broker = PubSubBroker(
                url, lease=LEASE, default_queue=self.queue, publisher=publisher, subscriber=subscriber
            )
            async with opened(broker):
                await broker.publish([self.message("a")])
                delivery = await self.fetch_one(broker=broker)
                twin = broker.twin()

                async def extend() -> list[Delivery]:
                    async with opened(twin):
                        return list(await twin.extend([delivery]))

                assert await self.in_another_thread(extend) == []
                await broker.ack([delivery])
            pages = await publisher.list_topics(project=f"projects/{parse_url(url).project}")
            assert [each async for each in pages]

    async def test_one_client_of_your_own_is_too_few(self) -> None:
        with pytest.raises(ConfigError, match="publisher and subscriber"):
            PubSubBroker(self.url, publisher=object())


# ----------------------------------------------------------------------------------------------- holding for long


@given(st.floats(NEAR, 40 * 86_400.0, exclude_min=True))
def test_a_delayed_message_is_looked_at_again_before_its_time_and_never_held_too_long(left: float) -> None:
    hops = 0
    while left > NEAR:
        hold = pubsub._hold(left)
        assert 1 <= hold <= MAX_LEASE
        assert hold < left
        left -= hold
        hops += 1
    assert hops <= 40 * 144 + 10


# ----------------------------------------------------------------------------------------------- URLs and errors


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("gcppubsub://project", "'' is no name of a subscription"),
        ("gcppubsub://project/a/b", "'a/b' is no name"),
        ("gcppubsub:///subscription", "'' is no project id"),
        ("gcppubsub://project/workers?emulater=x", "unknown option 'emulater'"),
        ("pubsub://project/workers", "no gcppubsub:// URL"),
    ],
)
def test_a_url_that_cannot_work_is_told_what_was_expected(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"{complaint}.*expected gcppubsub://PROJECT/SUBSCRIPTION"):
        PubSubBroker(url)


def test_an_emulator_is_named_by_the_environment_or_the_url_which_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "host:1")
    broker, _ = Server(broker="gcppubsub://project/workers", backend="null://")._stores.make()
    assert broker.address == "host:1/project/workers"
    broker, _ = Server(broker="gcppubsub://project/workers?emulator=host:2", backend="null://")._stores.make()
    assert broker.address == "host:2/project/workers"


async def test_without_credentials_it_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(Refused, match=r"pubsub.googleapis.com/project/workers: there are no credentials: .*missing"):
        await PubSubBroker("gcppubsub://project/workers").open()


async def test_credentials_that_cannot_be_read_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    with pytest.raises(Refused, match=r"project/workers: the credentials cannot be used: .*Is a directory"):
        await PubSubBroker("gcppubsub://project/workers").open()


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable, "RESOURCE_EXHAUSTED: the reason"),
        (grpc.StatusCode.INTERNAL, Unavailable, "INTERNAL: the reason"),
        (grpc.StatusCode.UNAUTHENTICATED, Refused, "the credentials are wrong, or have expired"),
        (grpc.StatusCode.PERMISSION_DENIED, Refused, "may not do this, or there is no project 'project'"),
        (grpc.StatusCode.INVALID_ARGUMENT, Refused, "INVALID_ARGUMENT: the reason"),
    ],
)
async def test_an_error_says_whether_trying_again_may_help(
    code: grpc.StatusCode, expected: type[Exception], says: str
) -> None:
    async with service_that_says(code) as url:
        broker = PubSubBroker(url)
        for verb in (broker.fetch("queue", 1, 0), broker.fetch("queue", 1, 1)):
            with pytest.raises(expected, match=rf"127.0.0.1:\d+/project/workers: .*queue.*: {code.name}.*"):
                await verb
        with pytest.raises(expected, match=says):
            await broker._link.publish("queue", [Post(b"x")])
        await broker.close()


async def test_a_service_that_says_nothing_is_unavailable() -> None:
    async with service_that_says(None) as url:
        broker = PubSubBroker(url, reply_timeout=0.2)
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            await broker.open()
        await broker.close()


async def test_who_closes_ends_what_is_under_way_and_cancels_nobody() -> None:
    asked = asyncio.Event()
    async with service_that_says(None, asked=asked) as url:
        broker = PubSubBroker(url, reply_timeout=60.0)
        publishing = asyncio.create_task(broker._link.publish("queue", [Post(b"x")]))
        await asyncio.wait_for(asked.wait(), 30)
        asked.clear()
        fetching = asyncio.create_task(broker.fetch("queue", 1, 60.0))
        await asyncio.wait_for(asked.wait(), 30)
        await broker.close()
        with pytest.raises(Unavailable, match="publish to queue: the connection was closed"):
            await asyncio.wait_for(publishing, 30)
        assert list(await asyncio.wait_for(fetching, 30)) == []


async def test_a_service_to_which_connecting_takes_seconds_is_reached() -> None:
    async with service_that_says(grpc.StatusCode.PERMISSION_DENIED) as url:
        host, _, port = parse_url(url).emulator.partition(":")

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
            writer.close()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(2.5)  # that is the slow connection itself
            from_service, to_service = await asyncio.open_connection(host, int(port))
            await asyncio.gather(carry(reader, to_service), carry(from_service, writer))

        slow = await asyncio.start_server(connect, "127.0.0.1")
        broker = PubSubBroker(f"gcppubsub://project/workers?emulator=127.0.0.1:{slow.sockets[0].getsockname()[1]}")
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            await broker.queues()
        await broker.close()
        slow.close()


async def test_what_an_exactly_once_subscription_does_not_confirm_is_lost_and_no_error() -> None:
    said = {"mine-no-more": "PERMANENT_FAILURE_INVALID_ACK_ID", "nor-this": "PERMANENT_FAILURE_OTHER"}
    async with service_that_says(grpc.StatusCode.FAILED_PRECONDITION, said) as url:
        broker = PubSubBroker(url)
        deliveries = [
            Delivery(b"", "queue", Receipt("workers", ack_id, "another", 1), 1) for ack_id in ("mine", "mine-no-more")
        ]
        await broker.ack(deliveries)
        assert list(await broker.extend(deliveries)) == deliveries[1:]
        await broker.close()


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT])
async def test_what_it_confirms_later_is_tried_again(code: grpc.StatusCode) -> None:
    said = {"mine": "TRANSIENT_FAILURE_UNORDERED_ACK_ID", "nor-this": "PERMANENT_FAILURE_INVALID_ACK_ID"}
    async with service_that_says(code, said) as url:
        broker = PubSubBroker(url)
        with pytest.raises(Unavailable, match="acknowledge in workers"):
            await broker.ack([Delivery(b"", "queue", Receipt("workers", "mine", "another", 1), 1)])
        await broker.close()


async def test_credentials_that_google_does_not_take_are_refused_and_their_key_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    for account, complaint in (
        ({"type": "service_account", "private_key": pem}, "credentials cannot be used|no credentials"),
        ({"type": "nonsense", "private_key": pem}, "no credentials"),
    ):
        path = tmp_path / "account.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        with pytest.raises(Refused, match=complaint) as raised:
            await PubSubBroker("gcppubsub://project/workers").open()
        assert "PRIVATE KEY" not in str(raised.value)


@asynccontextmanager
async def service_that_says(
    code: grpc.StatusCode | None, details: dict[str, str] | None = None, *, asked: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """The URL of a service with one answer to everything: those that pstest never gives. None: no answer. ``asked`` is
    set by every call."""
    leaving = asyncio.Event()

    async def answer(_: bytes, context: Any) -> bytes:
        if asked is not None:
            asked.set()
        if code is None:
            await leaving.wait()
            return b""
        status = status_pb2.Status(code=code.value[0], message="the reason")
        if details:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason="acks", metadata=details))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(code, "the reason")
        return b""

    handler = grpc.unary_unary_rpc_method_handler(answer)
    methods = ("Publish", "Pull", "Acknowledge", "ModifyAckDeadline", "GetSubscription", "ListSubscriptions")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", dict.fromkeys(methods, handler))
            for service in ("Publisher", "Subscriber")
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"gcppubsub://project/workers?emulator=127.0.0.1:{port}"
    finally:
        leaving.set()
        await server.stop(0)
