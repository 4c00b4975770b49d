"""SQS keeps the contracts of broker and inspector, on ElasticMQ; and what is its own."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue import Server
from asyncqueue.brokers import sqs
from asyncqueue.brokers.base import Broker, Dead, Delivery, Message
from asyncqueue.brokers.sqs import MAX_BYTES, SqsBroker, _delay
from asyncqueue.connections.aws import parse_url
from asyncqueue.errors import ConfigError, MessageTooLarge, Refused, Unavailable
from asyncqueue.locks.sqlite import SqliteLock
from asyncqueue.testing import BrokerContract, InspectorContract, broker_contract
from asyncqueue.testing.clock import ManualClock
from asyncqueue.testing.suite import BrokerSuite, names
from tests.one_answer import service_that_says
from tests.opened import opened
from tests.services import free_port

LEASE = 2.0
CANARY = "c4n4ry"
ACCOUNT = "/1?region=here"


class OnSqs(BrokerSuite):
    """Queues of their own for each test. Delays and leases are whole seconds here."""

    delay = 1.0
    knows_tokens = False
    ending = ""

    @pytest.fixture
    def service(self, sqs_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "LAST_LOOK", 0)  # there is one server here, and it is asked in every receive
        self.url = sqs_url
        name = f"{secrets.token_hex(4)}-contract"
        self.queue, self.other_queue = f"{name}{self.ending}", f"{name}-2{self.ending}"

    async def make_broker(self) -> SqsBroker:
        return SqsBroker(self.url, lease=LEASE)

    async def make_unreachable(self) -> Broker:
        return SqsBroker(f"http://test:test@127.0.0.1:{free_port()}/1?region=here", lease=LEASE)


class TestBroker(OnSqs, BrokerContract):
    """Standard queues."""

    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        # by tens it takes longer than the short leases of the other tests
        self.broker = await self.opened(SqsBroker(self.url, lease=60.0))
        await super().test_every_verb_takes_a_batch_of_500()


class TestInspector(OnSqs, InspectorContract):
    """Standard queues."""


@pytest.mark.long
class TestFifoQueues(TestBroker):
    """FIFO queues, whose messages have no delay; what is given back keeps its place, and counts."""

    ending = ".fifo"
    delay = 1_000.0
    knows_tokens = True
    uncounted_nacks = False

    @pytest.fixture(autouse=True)
    def batches_are_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of 500 message groups, ElasticMQ would take half a minute."""
        monkeypatch.setattr(broker_contract, "BATCH", 50)

    async def test_the_longest_delay_is_accepted(self) -> None:
        pytest.skip("the service has no delays in FIFO queues: a worker gives back what comes early")

    async def test_extend_returns_those_that_are_no_longer_ours(self) -> None:
        pytest.skip("ElasticMQ takes a receipt of what was given back until it is shown again")

    async def test_another_can_take_what_was_given_back(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.nack([delivery])
        again = await self.fetch_one(broker=await self.another_broker())
        assert (again.body, again.attempt) == (delivery.body, 2)
        assert list(await self.broker.extend([delivery])) == [delivery]


class TestOfItsOwn(OnSqs):
    """What only SQS does."""

    broker: SqsBroker

    async def test_a_queues_name_is_made_fit_for_sqs(self) -> None:
        name = self.queue
        for self.queue in (f"{name}.high", f"{name}.aq"):
            await self.publish("a")
            assert names(await self.fetch_until(1)) == ["a"]
        # a companion queue is known by its ending, and is shown by it
        assert await self.broker.queues() == sorted([f"{name}-high", f"{name}.aq"])

    async def test_a_name_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(Refused, match="1 to 80"):
            await self.broker.publish([self.message("a", queue="q" * 81)])
        with pytest.raises(Refused, match="1 to 80"):
            await self.broker.publish([self.message("a", queue="q" * 81 + ".aq")])

    async def test_the_longest_name_has_a_dead_letter_and_a_companion_of_its_own(self) -> None:
        one, other = (f"{self.queue:q<79}{number}" for number in range(2))
        companions = [f"{queue}.aq" for queue in (one, other)]
        await self.broker.publish([self.message(queue[-4:], queue=queue) for queue in (one, *companions)])
        for queue in companions:
            assert names(await self.fetch_until(1, queue=queue)) == [queue[-4:]]
        await self.broker.bury(await self.fetch_until(1, queue=one), "reason", "error")
        assert [len(await self.broker.dead(queue, 10)) for queue in (one, other)] == [1, 0]

    async def test_what_is_no_text_travels_as_base64_and_text_as_it_is(self) -> None:
        await self.broker.publish([self.raw_message(b'{"plain": "\xe2\x98\x83"}'), self.raw_message(b"\x00\xff")])
        async with self.client() as client:
            url = f"{self.url.partition('?')[0].replace('test:test@', '')}/{self.queue}"
            reply = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
        assert {each["Body"] for each in reply["Messages"]} == {'{"plain": "☃"}', "AP8="}

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
    async def test_a_message_over_the_limit_is_refused_before_any_of_its_batch_is_sent(self) -> None:
        with pytest.raises(MessageTooLarge, match=rf"{self.queue}.*{MAX_BYTES + 1} bytes.*limit is {MAX_BYTES}"):
            await self.broker.publish([self.message("a"), self.raw_message(b"x" * (MAX_BYTES + 1))])
        assert await self.fetch_now() == []
        await self.broker.publish([self.raw_message(b"x" * MAX_BYTES)])
        assert len((await self.fetch_one()).body) == MAX_BYTES

    async def test_a_batch_over_the_limit_leaves_in_several_requests(self) -> None:
        await self.broker.publish([self.raw_message(b"x" * 300_000) for _ in range(10)])
        assert len(await self.fetch_until(10)) == 10

    async def test_a_batch_of_many_queues_reaches_them_all(self) -> None:
        queues = [f"{self.queue}-{number}" for number in range(10)]
        await self.broker.publish([self.message("a", queue=queue) for queue in queues])
        for queue in queues:
            assert names(await self.fetch_until(1, queue=queue)) == ["a"]

    async def test_a_missing_queue_is_named_where_none_is_to_be_made(self) -> None:
        broker = await self.opened(SqsBroker(self.url, lease=LEASE, create_queues=False))
        for verb in (broker.publish([self.message("a")]), broker.fetch(self.queue, 1, 0)):
            with pytest.raises(Refused, match=rf"{self.queue}.*does not exist at 127.0.0.1"):
                await verb

    async def test_what_part_of_a_batch_failed_is_sent_again_and_no_other(self) -> None:
        messages = [self.message(name, token=f"token-{name}") for name in "abcde"]
        await self.fetch_now()  # from now on the queue is there
        Faulty(self.broker).fail_entries("send_message_batch", {"1", "3"})
        with pytest.raises(Unavailable, match=rf"of 5 messages for queue '{self.queue}', 2 failed: Internal: oops"):
            await self.broker.publish(messages)
        assert sorted(names(await self.fetch_until(3))) == ["a", "c", "e"]
        await self.broker.publish(messages)
        assert sorted(names(await self.fetch_until(2))) == ["b", "d"]
        assert await self.fetch_now() == []

    @pytest.mark.parametrize("verb", ["nack", "bury"])
    async def test_what_was_sent_anew_and_not_yet_deleted_is_not_sent_twice(self, verb: str) -> None:
        async def let_go(delivery: Delivery) -> None:
            await (self.broker.nack([delivery]) if verb == "nack" else self.broker.bury([delivery], "reason", "error"))

        await self.publish("a")
        delivery = await self.fetch_one()
        Faulty(self.broker).fail_once("delete_message_batch")
        with pytest.raises(Unavailable):
            await let_go(delivery)
        await let_go(delivery)
        queue = self.queue if verb == "nack" else f"{self.queue}.dead"
        await self.fetch_until(1, queue=queue)
        assert list(await self.broker.fetch(queue, 10, 0)) == []
        assert list(await self.broker.extend([delivery])) == [delivery]

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
    async def test_what_leaves_no_room_for_facts_is_buried_without_them(self) -> None:
        body = b"x" * (MAX_BYTES - 200)
        await self.broker.publish([self.raw_message(body), self.raw_message(b"y" * MAX_BYTES)])
        for delivery in await self.fetch_until(2):
            await self.broker.bury([delivery], "reason", "e" * 10_000)
        found = {entry.body[:1]: entry for entry in await self.broker.dead(self.queue, 10)}
        assert (found[b"x"].body, found[b"x"].reason, found[b"x"].attempt) == (body, "reason", 1)
        assert 0 < len(found[b"x"].error) < 200
        assert (found[b"y"].body, found[b"y"].reason) == (b"y" * MAX_BYTES, "")

    async def test_what_is_no_longer_to_be_had_is_lost_and_what_is_throttled_is_tried_again(self) -> None:
        await self.publish("a", "b", "c")
        held = await self.fetch_until(3)
        faulty = Faulty(self.broker)
        beyond = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"
        faulty.fail_entries("change_message_visibility_batch", {"1"}, "InvalidParameterValue", beyond, is_ours=True)
        assert list(await self.broker.extend(held)) == [held[1]]
        for verb, operation in ((self.broker.extend, "change_message_visibility"), (self.broker.ack, "delete_message")):
            faulty.fail_entries(f"{operation}_batch", {"1"}, "RequestThrottled", "slow down", is_ours=True)
            with pytest.raises(Unavailable, match=rf"queue '{self.queue}', 1 failed: RequestThrottled: slow down"):
                await verb(held)
        faulty.fail_entries("delete_message_batch", {"0"}, "ReceiptHandleIsInvalid", "stale", is_ours=True)
        await self.broker.ack(held)

    async def test_purge_ends_at_what_was_sent_after_it_began(self) -> None:
        await self.publish(*(f"m{number}" for number in range(30)))
        broker = await self.opened(SqsBroker(self.url, lease=LEASE, clock=ManualClock(self.now() - 3_600.0)))
        assert await broker.purge(self.queue) == 10
        assert (await self.broker.depth(self.queue)).ready == 20
        assert await self.broker.purge(self.queue) == 20

    async def test_looking_waits_for_all_of_the_servers_of_sqs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        await self.publish("a", "b")
        await self.broker.bury(await self.fetch_until(1), "reason", "error")
        assert len(await self.broker.dead(self.queue, 10)) == 1
        assert await self.broker.purge(self.queue) == 1

    async def test_what_was_lost_is_not_remembered_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs, "_REMEMBERED", 3)
        await self.publish(*"abcde")
        taken = await self.fetch_until(5)
        assert len(self.broker._held) == 3
        await self.broker.close()  # gives back what it remembers, and no more
        assert sorted(names(await self.fetch_until(3, broker=await self.another_broker()))) == sorted(names(taken[-3:]))

    async def test_a_late_message_is_shown_early_rather_than_refused(self) -> None:
        await self.broker.publish([self.message("a", not_before=self.now() + 86_400.0)])
        assert (await self.broker.depth(self.queue)).delayed == 1

    async def test_a_delay_is_rounded_up_to_seconds(self) -> None:
        due = self.now() + 0.2
        await self.broker.publish([self.message("a", not_before=due)])
        await self.fetch_until(1)
        assert self.now() >= due

    async def test_a_fifo_group_keeps_its_order_and_holds_what_follows(self) -> None:
        queue = f"{self.queue}.fifo"
        await self.broker.publish([self.message(name, queue=queue, ordering_key="group") for name in "abc"])
        taken = list(await self.broker.fetch(queue, 1, 1))
        assert list(await self.broker.fetch(queue, 10, 0)) == []
        await self.broker.nack(taken)
        again = await self.fetch_until(3, queue=queue)
        assert names(again) == ["a", "b", "c"]

    async def test_a_retry_of_the_same_task_passes_the_deduplication_of_a_fifo_queue(self) -> None:
        first = self.message("a", queue=f"{self.queue}.fifo", token="1/task/1")
        second = Message(first.body, first.queue, first.id, token="2/task/2")
        await self.broker.publish([first])
        await self.broker.ack(await self.fetch_until(1, queue=first.queue))
        await self.broker.publish([first, second])
        assert len(await self.fetch_until(1, queue=first.queue)) == 1
        assert list(await self.broker.fetch(first.queue, 10, 0)) == []

    async def test_a_dead_message_goes_where_the_redrive_policy_of_its_queue_leads_to(self) -> None:
        await self.redriven(self.queue, self.other_queue, after=10)
        await self.publish("a", "b")
        first, second = await self.fetch_until(2)
        await self.broker.bury([first], "reason", "error")
        await self.broker.bury([second], "reason", "error")
        assert (await self.broker.depth(self.queue)).dead == (await self.broker.depth(self.other_queue)).ready == 2
        one, other = await self.broker.dead(self.queue, 10)
        assert (one.queue, one.body, one.reason, one.attempt) == (self.queue, first.body, "reason", 1)
        assert await self.broker.drop(self.queue, [one.id]) == 1
        assert await self.broker.requeue(self.queue, [other.id]) == 1
        assert (await self.fetch_one()).body == second.body
        assert await self.broker.queues() == sorted([self.queue, self.other_queue])

    async def test_what_the_service_itself_took_away_is_a_dead_message_too(self) -> None:
        began = self.now()
        await self.redriven(self.queue, self.other_queue, after=1)
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.end_lease(delivery)
        assert await self.fetch_now() == []
        (entry,) = await self.broker.dead(self.queue, 10)
        assert (entry.queue, entry.body, entry.reason) == (self.queue, delivery.body, "redrive")
        assert f"policy of {self.queue}" in entry.error
        assert began - 1 <= entry.buried_at <= self.now()
        assert await self.broker.requeue(self.queue, [entry.id]) == 1
        assert (await self.fetch_one()).attempt == 1

    async def test_a_dead_message_that_the_service_moves_back_is_shown_as_new(self) -> None:
        await self.publish("a")
        (delivery,) = await self.fetch_until(1)
        await self.broker.bury([replace(delivery, attempt=6)], "max_deliveries", "error")
        async with self.client() as client:
            # the attributes go with it, as in StartMessageMoveTask
            letter = (await client.get_queue_url(QueueName=f"{self.queue}-dead"))["QueueUrl"]
            queue = (await client.get_queue_url(QueueName=self.queue))["QueueUrl"]
            found = await client.receive_message(QueueUrl=letter, MessageAttributeNames=["All"])
            ((body, attributes),) = [(each["Body"], each["MessageAttributes"]) for each in found["Messages"]]
            assert attributes["aq-attempt"]["StringValue"] == "6"
            await client.send_message(QueueUrl=queue, MessageBody=body, MessageAttributes=attributes)
        again = await self.fetch_one()
        assert (again.body, again.attempt) == (delivery.body, 1)
        await self.broker.nack([again])
        assert (await self.fetch_one()).attempt == 1

    async def test_a_look_into_a_dead_letter_that_takes_too_long_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await self.publish("a", "b", "c")
        await self.broker.bury(await self.fetch_until(3), "reason", "error")
        monkeypatch.setattr(sqs, "LOOK", 0)  # all that was looked at is shown again at once
        async with asyncio.timeout(30):
            assert len(await self.broker.dead(self.queue, 10)) == 3

    @pytest.mark.parametrize("verb", ["requeue", "drop"])
    async def test_a_dead_message_that_somebody_else_took_meanwhile_is_not_taken_again(
        self, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await self.publish("a")
        await self.broker.bury(await self.fetch_until(1), "reason", "error")
        monkeypatch.setattr(sqs, "LOOK", 0)
        faster, look = await self.opened(SqsBroker(self.url, lease=LEASE)), self.broker._look_at_dead

        async def look_slowly(queue: str, wanted: set[str] | None = None) -> list[tuple[Delivery, Dead]]:
            found = await look(queue, wanted)
            assert await faster.requeue(queue, [entry.id for _, entry in found]) == 1
            return found

        (entry,) = await self.broker.dead(self.queue, 10)
        monkeypatch.setattr(self.broker, "_look_at_dead", look_slowly)
        assert await getattr(self.broker, verb)(self.queue, [entry.id]) == 0
        assert len(await self.fetch_until(1)) == 1
        assert await self.fetch_now() == []

    async def test_of_a_dead_letter_of_several_queues_each_shows_its_own(self) -> None:
        letter = f"{self.queue}-letter"
        for queue in (self.queue, self.other_queue):
            await self.redriven(queue, letter, after=10)
            await self.broker.publish([self.message("a", queue=queue)])
            await self.broker.bury(await self.fetch_until(1, queue=queue), queue, "error")
        for queue in (self.queue, self.other_queue) * 2:
            (entry,) = await self.broker.dead(queue, 10)
            assert (entry.queue, entry.reason) == (queue, queue)

    async def test_a_fifo_queue_has_a_dead_letter_that_is_one_too(self) -> None:
        queue = f"{self.queue}.fifo"
        await self.redriven(queue, f"{self.queue}-letter.fifo", after=10)
        await self.broker.publish([self.message("a", queue=queue) for _ in range(12)])
        for _ in range(12):
            await self.broker.bury(await self.fetch_until(1, queue=queue), "reason", "error")
        dead = await self.broker.dead(queue, 100)
        assert len(dead) == 12
        assert await self.broker.requeue(queue, [entry.id for entry in dead]) == 12
        assert len(await self.fetch_until(12, queue=queue)) == 12

    async def test_a_queue_of_another_account_is_not_made_in_ours(self) -> None:
        url = self.url.replace("000000000000", "111111111111")
        broker = await self.opened(SqsBroker(url, lease=LEASE))
        with pytest.raises(
            Refused, match=rf"'{self.queue}'.*we may not use it.*of account 0{{12}}: make it in 1{{12}}"
        ):
            await broker.publish([self.message("a")])

    async def test_a_queue_of_another_account_is_used_where_we_may(self) -> None:
        await self.fetch_now()  # from now on the queue is there; ElasticMQ lets everybody
        broker = await self.opened(SqsBroker(self.url.replace("000000000000", "111111111111"), lease=LEASE))
        await broker.publish([self.message("a")])
        await broker.ack([await self.fetch_one(broker=broker)])

    async def test_a_client_of_your_own_is_used_in_its_own_loop_and_left_open(self) -> None:
        url = self.url.replace("test:test@", "")
        async with self.client() as client:
            async with opened(SqsBroker(url, lease=LEASE, client=client)) as broker:
                await broker.publish([self.message("a")])
                delivery = await self.fetch_one(broker=broker)
                twin = broker.twin()

                async def extend() -> list[Delivery]:
                    async with opened(twin):
                        return list(await twin.extend([delivery]))

                assert await self.in_another_thread(extend) == []
                await broker.ack([delivery])
            assert "QueueUrls" in await client.list_queues()
        broker = SqsBroker(url, client=client)
        with pytest.raises(Refused, match="the client that was given is closed"):
            await broker.open()

    async def redriven(self, queue: str, letter: str, *, after: int) -> None:
        """Make a queue whose messages SQS moves to another one when they were shown so often."""
        kind = {"FifoQueue": "true"} if queue.endswith(".fifo") else {}
        async with self.client() as client:
            made = await client.create_queue(QueueName=letter, Attributes=kind)
            found = await client.get_queue_attributes(QueueUrl=made["QueueUrl"], AttributeNames=["QueueArn"])
            policy = {"deadLetterTargetArn": found["Attributes"]["QueueArn"], "maxReceiveCount": after}
            await client.create_queue(QueueName=queue, Attributes={"RedrivePolicy": json.dumps(policy), **kind})

    async def end_lease(self, delivery: Delivery) -> None:
        """What SQS does when the time is up."""
        async with self.client() as client:
            url = f"{self.url.partition('?')[0].replace('test:test@', '')}/{self.queue}"
            await client.change_message_visibility(QueueUrl=url, ReceiptHandle=delivery.receipt, VisibilityTimeout=0)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """A client that is not the broker's."""
        address = parse_url(self.url)
        making = AioSession().create_client(
            "sqs",
            region_name=address.region,
            endpoint_url=address.endpoint,
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        async with making as client:
            yield client


class Faulty:
    """Lets a broker's calls fail, each time in one way. What it says has failed never reached the service."""

    def __init__(self, broker: SqsBroker) -> None:
        self._inner = broker._link.call
        self._faults: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {}
        broker._link.call = self._call  # type: ignore[method-assign]  # the one seam before the service

    def fail_entries(
        self, operation: str, ids: set[str], code: str = "Internal", text: str = "oops", *, is_ours: bool = False
    ) -> None:
        """The next call loses these entries of its batch. ``is_ours``: the service says that it is our fault."""

        def fault(parameters: dict[str, Any]) -> list[dict[str, Any]]:
            parameters["Entries"] = [each for each in parameters["Entries"] if each["Id"] not in ids]
            return [{"Id": each, "Code": code, "Message": text, "SenderFault": is_ours} for each in ids]

        self._faults[operation] = fault

    def fail_once(self, operation: str) -> None:
        """The next call does not reach the service."""

        def fault(parameters: dict[str, Any]) -> list[dict[str, Any]]:
            raise Unavailable("oops")

        self._faults[operation] = fault

    async def _call(self, operation: str, *, wait: float = 0.0, **parameters: Any) -> Mapping[str, Any]:
        fault = self._faults.pop(operation, None)
        failed = fault(parameters) if fault else []
        reply = await self._inner(operation, wait=wait, **parameters)
        return {**reply, "Failed": [*(reply.get("Failed") or ()), *failed]}


# ----------------------------------------------------------------------------------------------- delays


_SECONDS = st.integers(0, 30 * 86_400_000).map(lambda milliseconds: milliseconds / 1_000)


@given(_SECONDS, st.lists(st.floats(0, 5), min_size=1))
def test_hops_to_a_due_time_are_as_few_as_can_be_and_never_early(ahead: float, pauses: list[float]) -> None:
    now, hops = 0.0, 0
    while now < ahead:
        delay = _delay(ahead - now)
        assert 0 < delay <= sqs.MAX_DELAY
        now, hops = now + delay, hops + 1
        if now < ahead:  # it lies in the queue for a while, until it is found too early
            now += pauses[hops % len(pauses)]
    assert hops <= math.ceil(ahead / sqs.MAX_DELAY)
    assert now - ahead <= 1.0 + max(pauses)


@pytest.mark.parametrize(
    ("seconds", "delay"), [(-5.0, 0), (0.0, 0), (0.01, 1), (900.0, 900), (900.01, 900), (1e9, 900)]
)
def test_a_delay_is_whole_seconds_and_never_more_than_sqs_takes(seconds: float, delay: int) -> None:
    assert _delay(seconds) == delay


# ----------------------------------------------------------------------------------------------- URLs and errors


async def test_what_is_no_open_client_of_sqs_is_told_what_was_expected() -> None:
    url = "https://sqs.eu-west-1.amazonaws.com/123456789012"
    session = AioSession()
    not_entered = session.create_client("sqs", region_name="eu-west-1")
    not_entered._coro.close()  # it is never awaited
    blocking = get_session().create_client("sqs", region_name="eu-west-1")
    async with session.create_client("dynamodb", region_name="eu-west-1") as other:
        for client, complaint in ((not_entered, "ClientCreatorContext"), (blocking, "SQS"), (other, "one of dynamodb")):
            with pytest.raises(ConfigError, match=rf"client: .*{complaint}; expected .*create_client\('sqs'\)"):
                SqsBroker(url, client=client)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012", "cn-north-1"),
        ("https://sqs-fips.us-east-2.amazonaws.com/123456789012/", "us-east-2"),
        ("https://vpce-0a1-xyz.sqs.eu-central-1.vpce.amazonaws.com/123456789012", "eu-central-1"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012?region=eu-north-1", "eu-north-1"),
        ("http://localhost:9324/000000000000?region=anything", "anything"),
        ("http://localhost:9324/000000000000", None),
    ],
)
def test_a_url_names_the_region(url: str, region: str | None) -> None:
    assert parse_url(url).region == region


def test_a_url_may_carry_a_key_and_its_secret_which_are_never_shown() -> None:
    address = parse_url(f"https://AKIA:a%2Fb%2B{CANARY}@sqs.eu-west-1.amazonaws.com/123456789012")
    assert (address.access_key, address.secret_key) == ("AKIA", f"a/b+{CANARY}")
    assert str(address) == "sqs.eu-west-1.amazonaws.com/123456789012"
    assert CANARY not in repr(address)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://sqs.eu-west-1.amazonaws.com", "account"),
        (f"https://:{CANARY}@sqs.eu-west-1.amazonaws.com/", "account"),
        (f"https://{CANARY}@sqs.eu-west-1.amazonaws.com/1", "a key and its secret"),
        ("https://sqs.eu-west-1.amazonaws.com/1?regoin=x", "unknown option 'regoin'"),
        ("https://host:port/1", "Port"),
        ("sqs://host/1", "http"),
        ("http://elastic_mq:9324/1?region=x", "'elastic_mq' is no name of a host"),
    ],
)
def test_a_url_that_cannot_work_is_told_what_was_expected(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"{complaint}.*expected https://") as raised:
        SqsBroker(url)
    assert CANARY not in str(raised.value)


def test_a_server_without_an_account_in_its_url_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="names no account"):
        Server(broker="https://example.org", backend="null://")


async def test_results_are_kept_elsewhere_and_locks_beside_them(sqs_url: str, sqlite_path: Path) -> None:
    with pytest.raises(ConfigError, match="Amazon SQS has no result backend; name another store"):
        Server(sqs_url)
    async with Server(broker=sqs_url, backend=f"sqlite:///{sqlite_path}") as server:
        assert isinstance(await server.lock(), SqliteLock)
    async with Server(broker=sqs_url, backend="null://") as server:
        assert await server.lock() is None


async def test_a_missing_region_and_missing_credentials_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = f"127.0.0.1:{free_port()}/1"
    with pytest.raises(ConfigError, match=r"region is not known: say \?region="):
        await SqsBroker(f"http://key:secret@{place}").open()
    with pytest.raises(Refused, match="AWS_ACCESS_KEY_ID"):
        await SqsBroker(f"http://{place}?region=here").open()


@pytest.mark.parametrize(
    ("status", "code", "expected", "says"),
    [
        (400, "RequestThrottled", Unavailable, "RequestThrottled"),
        (400, "com.amazonaws.sqs#OverLimit", Unavailable, "OverLimit"),
        (503, "ServiceUnavailable", Unavailable, "ServiceUnavailable"),
        (500, "Whatever", Unavailable, "Whatever"),
        (403, "InvalidClientTokenId", Refused, "the access key, its secret"),
        (403, "SignatureDoesNotMatch", Refused, "the access key, its secret"),
        (400, "InvalidAddress", Refused, "InvalidAddress"),
    ],
)
async def test_an_error_says_whether_trying_again_may_help(
    status: int, code: str, expected: type[Exception], says: str
) -> None:
    async with service_that_says(status, json.dumps({"__type": code, "message": "the reason"})) as place:
        broker = SqsBroker(f"{place}{ACCOUNT}")
        with pytest.raises(expected, match=rf"127.0.0.1.*{says}"):
            await broker.open()
        with pytest.raises(expected, match="the reason"):
            await broker.fetch("queue", 1, 0)
        await broker.close()


async def test_who_may_not_list_queues_may_work_all_the_same() -> None:
    refusal = json.dumps({"__type": "AccessDeniedException", "message": "not sqs:ListQueues"})
    async with service_that_says(403, refusal) as place, opened(SqsBroker(f"{place}{ACCOUNT}")) as broker:
        with pytest.raises(Refused, match="AccessDenied"):
            await broker.fetch("queue", 1, 0)


async def test_an_answer_that_is_none_of_sqs_does_not_mean_that_a_message_was_sent() -> None:
    async with (
        service_that_says(200, "<html>Welcome!</html>") as place,
        opened(SqsBroker(f"{place}{ACCOUNT}")) as broker,
    ):
        with pytest.raises(Unavailable, match=r"1 messages for queue 'queue', 1 failed: NoAnswer: the reply does not"):
            await broker.publish([Message(b"{}", "queue", "id")])


async def test_a_login_that_has_run_out_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = "sso_start_url=https://a.awsapps.com/start\nsso_region=eu-west-1\nsso_account_id=1\nsso_role_name=a"
    (tmp_path / "config").write_text(f"[profile someone]\n{profile}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "someone")
    broker = SqsBroker(f"http://127.0.0.1:{free_port()}/1?region=here")
    with pytest.raises(Refused, match="SSO"):
        await broker.fetch("queue", 1, 0)
    await broker.close()


async def test_a_service_that_says_nothing_is_unavailable() -> None:
    async with service_that_says(0, "") as place:
        broker = SqsBroker(f"{place}{ACCOUNT}", reply_timeout=0.2)
        with pytest.raises(Unavailable, match=r"no answer to list_queues within 0\.2 s"):
            await broker.open()
        await broker.close()
