"""What is true of every broker: the sentences of ``asyncqueue.brokers.base.Broker``, as tests.

What a service cannot do is said by ``Capabilities`` or by the attributes at the top of ``BrokerContract``; the tests
concerned are then skipped with that reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import pytest

from asyncqueue.brokers.base import Broker, Delivery, Tended
from asyncqueue.testing.suite import GRAIN, BrokerSuite, names, tend

BINARY = bytes(range(256))
HARD_BODIES = (BINARY, b"\x00", b"1:2:3", b'{"a": "\xff"}', "☃ \U0001f600".encode(), b"x" * 300_000)
HARD_TEXT = 'line one\nline two: "quoted", \\, \t, ☃ \U0001f600'
YEAR = 365 * 86_400.0
BATCH = 500

T = TypeVar("T")


class BrokerContract(BrokerSuite):
    """Subclass it, and say how to make the broker: see ``make_broker`` and the attributes."""

    knows_tokens: bool = True
    """Whether the service can tell a repeated publish."""

    uncounted_nacks: bool = True
    """Whether the service lets a showing that was given back not count."""

    keeps_places: bool = False
    """Whether what was given back is where it was in its queue, whatever the order in which it was given."""

    password: str | None = None
    """The password that the brokers are made with, where there is one."""

    delay: float = 0.3
    """A delay (seconds) in the tests of delays. A real service really waits that long."""

    async def make_unreachable(self) -> Broker:
        """A broker, not yet open, whose service does not answer."""
        pytest.skip("there is no service that could be away")

    # the instance

    async def test_capabilities_are_known_before_open(self) -> None:
        capabilities = (await self.make_broker()).capabilities
        assert capabilities.lease is None or capabilities.lease > 0
        assert capabilities.max_delay >= 0
        assert capabilities.max_batch >= 1

    async def test_the_address_says_where_it_is_and_never_a_password(self) -> None:
        assert self.broker.address
        if self.password is not None:
            assert self.password not in self.broker.address

    async def test_opening_twice_is_no_harm(self) -> None:
        await self.broker.open()
        await self.publish("a")
        await self.broker.open()
        assert names(await self.fetch_until(1)) == ["a"]

    async def test_closing_twice_is_no_harm(self) -> None:
        await self.broker.close()
        await self.broker.close()

    async def test_closing_what_was_never_opened_is_no_harm(self) -> None:
        await (await self.make_broker()).close()

    async def test_two_instances_on_one_store_have_one_identity(self) -> None:
        assert await self.broker.identity() == await (await self.another_broker()).identity()

    async def test_verbs_raise_unavailable_when_the_service_does_not_answer(self) -> None:
        broker = await self.make_unreachable()
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.raises_unavailable(
            [
                broker.open,
                lambda: broker.publish([self.message("b")]),
                lambda: broker.fetch(self.queue, 1, 0),
                lambda: broker.ack([delivery]),
                lambda: broker.nack([delivery]),
                lambda: broker.extend([delivery]),
                lambda: broker.bury([delivery], "reason", "error"),
            ]
        )
        await broker.close()

    # publish and fetch

    async def test_a_queue_that_nobody_published_to_is_empty(self) -> None:
        assert list(await self.broker.fetch("never-used", 10, 0)) == []
        assert list(await self.broker.fetch("never-used", 10, 0.01)) == []

    async def test_every_verb_takes_an_empty_batch(self) -> None:
        await self.broker.publish([])
        await self.broker.ack([])
        await self.broker.nack([])
        await self.broker.nack([], delay=1.0)
        assert list(await self.broker.extend([])) == []
        await self.broker.bury([], "reason", "error")
        assert await self.fetch_now() == []

    async def test_after_publish_returns_another_instance_can_fetch_them_all(self) -> None:
        publisher = await self.another_broker()
        await publisher.publish([self.message(name) for name in "abc"])
        await publisher.close()  # what it had not handed over would be lost now
        assert sorted(names(await self.fetch_until(3))) == ["a", "b", "c"]

    async def test_messages_come_in_the_order_given_and_published(self) -> None:
        self._needs_order()
        await self.publish("a", "b", "c")
        await self.publish("d")
        await self.publish("e", "f")
        assert names(await self.fetch_until(6)) == ["a", "b", "c", "d", "e", "f"]

    async def test_messages_with_equal_ordering_keys_come_in_order(self) -> None:
        self._needs_order()
        await self.broker.publish([self.message(name, ordering_key="key") for name in "abcdef"])
        assert names(await self.fetch_until(6)) == list("abcdef")

    async def test_messages_of_a_higher_priority_come_first(self) -> None:
        if not self.broker.capabilities.priorities:
            pytest.skip("the service knows no priorities")
        priorities = {"low": 0, "high": 255, "middle": 7, "low-2": 0, "high-2": 255}
        await self.broker.publish([self.message(name, priority=number) for name, number in priorities.items()])
        assert names(await self.fetch_until(5)) == ["high", "high-2", "middle", "low", "low-2"]

    async def test_bodies_come_back_byte_for_byte(self) -> None:
        await self.broker.publish([self.raw_message(body) for body in HARD_BODIES])
        bodies = [delivery.body for delivery in await self.fetch_until(len(HARD_BODIES))]
        assert sorted(bodies) == sorted(HARD_BODIES)

    async def test_equal_bodies_are_messages_of_their_own(self) -> None:
        message = self.message("a")
        await self.broker.publish([message, message])
        await self.broker.publish([message])
        assert names(await self.fetch_until(3)) == ["a", "a", "a"]

    async def test_a_message_is_in_its_own_queue_alone(self) -> None:
        await self.broker.publish([self.message("a"), self.message("b", queue=self.other_queue)])
        (first,) = await self.fetch_until(1)
        (second,) = await self.fetch_until(1, queue=self.other_queue)
        assert names([first, second]) == ["a", "b"]
        assert (first.queue, second.queue) == (self.queue, self.other_queue)
        assert await self.fetch_now() == []

    async def test_a_repeated_publish_with_the_same_tokens_adds_no_second_copy(self) -> None:
        self._needs_tokens()
        messages = [self.message(name, token=f"token-{name}") for name in ("a", "b")]
        await self.broker.publish(messages)
        await self.broker.publish(messages)
        await (await self.another_broker()).publish(messages)
        assert sorted(names(await self.fetch_until(2))) == ["a", "b"]
        assert await self.fetch_now() == []

    async def test_a_repeated_publish_adds_no_copy_of_what_was_done_meanwhile(self) -> None:
        self._needs_tokens()
        messages = [self.message("a", token="token-a")]
        await self.broker.publish(messages)
        await self.broker.ack([await self.fetch_one()])
        await self.broker.publish(messages)
        assert await self.fetch_now() == []

    async def test_a_repeated_publish_adds_what_was_not_there(self) -> None:
        self._needs_tokens()
        first, second = self.message("a", token="token-a"), self.message("b", token="token-b")
        await self.broker.publish([first])
        await self.broker.publish([first, second])
        assert sorted(names(await self.fetch_until(2))) == ["a", "b"]
        assert await self.fetch_now() == []

    async def test_a_repeated_publish_of_delayed_messages_adds_no_second_copy(self) -> None:
        self._needs_tokens()
        self._needs_delay()
        message = self.message("a", not_before=self.now() + self.delay, token="token-a")
        await self.broker.publish([message])
        await self.broker.publish([message])
        await self.advance(self.delay)
        await self.broker.ack(await self.fetch_until(1))
        assert await self.fetch_now() == []

    async def test_fetch_takes_no_more_than_the_limit(self) -> None:
        await self.publish(*"abcde")
        taken: list[Delivery] = []
        while len(taken) < 5:
            some = await self.fetch_until(1, limit=2)
            some += await self.fetch_now(1)
            assert len(some) <= 2
            taken += some
        assert sorted(names(taken)) == list("abcde")

    async def test_fetch_takes_up_to_the_limit_at_once(self) -> None:
        await self.publish(*"abcde")
        taken = await self.fetch_now(3)
        assert len(taken) <= 3
        taken += await self.fetch_until(5 - len(taken))
        assert sorted(names(taken)) == list("abcde")

    async def test_a_fetch_that_waited_in_vain_is_empty(self) -> None:
        assert list(await self.broker.fetch(self.queue, 10, 0.05)) == []

    async def test_a_waiting_fetch_is_woken_by_a_publish(self) -> None:
        other = await self.another_broker()
        for round_number in range(12):
            # at another moment of the waiting in every round: before it, at its beginning, deep in it
            waiting = asyncio.create_task(self._fetch_in_one_wait())
            await asyncio.sleep(round_number * 0.002)
            await other.publish([self.message(f"m{round_number}")])
            taken = await self.in_time(waiting)
            assert names(taken) == [f"m{round_number}"]
            await self.broker.ack(taken)

    async def test_a_waiting_fetch_is_woken_by_what_another_gives_back(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        other = await self.another_broker()
        waiting = asyncio.create_task(self.fetch_until(1, broker=other))
        await asyncio.sleep(0.01)
        await self.broker.nack([delivery])
        assert names(await waiting) == ["a"]

    async def test_a_waiting_fetch_takes_what_becomes_due(self) -> None:
        self._needs_delay()
        due = self.now() + self.delay
        await self.broker.publish([self.message("a", not_before=due)])
        waiting = asyncio.create_task(self.fetch_until(1))
        await asyncio.sleep(0)
        await self.advance(self.delay)
        assert names(await waiting) == ["a"]
        assert self.now() >= due - GRAIN

    async def test_what_was_taken_is_nobody_elses(self) -> None:
        await self.publish("a", "b")
        await self.fetch_until(2)
        assert await self.fetch_now(broker=await self.another_broker()) == []
        assert await self.fetch_now() == []

    async def test_racing_workers_take_every_message_once(self) -> None:
        brokers = [self.broker, *[await self.another_broker() for _ in range(4)]]
        expected = sorted(f"m{number}" for number in range(100))
        await self.publish(*expected)
        seen: list[str] = []

        async def work(broker: Broker) -> None:
            while len(seen) < len(expected):
                await tend(broker, self.queue)
                taken = await broker.fetch(self.queue, 7, 0.02)
                seen.extend(names(taken))
                await broker.ack(taken)

        await self.in_time(asyncio.gather(*map(work, brokers)))
        assert sorted(seen) == expected

    async def test_a_cancelled_fetch_loses_nothing(self) -> None:
        seen: list[str] = []
        expected = [f"m{number}" for number in range(10)]
        for number, name in enumerate(expected):
            fetching = asyncio.create_task(self.broker.fetch(self.queue, 10, 5.0))
            await asyncio.sleep(number * 0.001)
            await self.publish(name)
            for _ in range(number):
                await asyncio.sleep(0)
            fetching.cancel()
            (taken,) = await asyncio.gather(fetching, return_exceptions=True)
            got = [] if isinstance(taken, BaseException) else list(taken)
            got += await self.fetch_now()  # what is still there would keep the next fetch from waiting
            seen += names(got)
            await self.broker.ack(got)
        if self.broker.capabilities.lease is not None:
            await self.advance(self.lease)  # until then, what a cancelled fetch took may stay taken
        seen += names(await self.fetch_until(len(expected) - len(seen)))
        assert sorted(seen) == expected

    # receipts and attempts

    async def test_the_first_showing_is_attempt_1(self) -> None:
        await self.publish("a", "b")
        assert [delivery.attempt for delivery in await self.fetch_until(2)] == [1, 1]

    async def test_no_two_showings_have_the_same_receipt(self) -> None:
        message = self.message("a")
        await self.broker.publish([message, message, self.message("b")])
        receipts: list[Hashable] = []
        for _ in range(3):
            taken = await self.fetch_until(3)
            receipts += [delivery.receipt for delivery in taken]
            await self.broker.nack(taken)
        other = await self.another_broker()
        receipts += [delivery.receipt for delivery in await self.fetch_until(3, broker=other)]
        assert len(set(receipts)) == 12

    async def test_a_showing_after_a_lost_lease_has_another_receipt(self) -> None:
        mine, _, theirs = await self._lost_to_another()
        assert mine.receipt != theirs.receipt

    async def test_receipts_work_through_a_twin_in_another_thread_and_loop(self) -> None:
        await self.publish("a", "b", "c", "d")
        acked, given_back, buried, kept = await self.fetch_until(4)
        twin = self.broker.twin()

        async def work() -> list[Delivery]:
            await twin.open()
            try:
                await twin.ack([acked])
                await twin.nack([given_back])
                await twin.bury([buried], "reason", "error")
                return list(await twin.extend([acked, kept]))
            finally:
                await twin.close()

        assert await self.in_another_thread(work) == [acked]
        assert names(await self.fetch_until(1)) == names([given_back])
        assert await self.fetch_now() == []

    async def test_a_twin_extends_the_lease_of_its_twin(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        twin = self.broker.twin()

        async def extend() -> list[Delivery]:
            await twin.open()
            try:
                return list(await twin.extend([delivery]))
            finally:
                await twin.close()

        await self.advance(self.lease * 0.6)
        assert await self.in_another_thread(extend) == []
        await self.advance(self.lease * 0.6)
        assert await self.fetch_now(broker=await self.another_broker()) == []
        assert list(await self.broker.extend([delivery])) == []

    async def test_a_closed_twin_gives_back_what_it_fetched_and_nothing_else(self) -> None:
        await self.publish("a", "b")
        mine = await self.fetch_one()
        twin = await self.opened(self.broker.twin())
        (its,) = await self.fetch_until(1, broker=twin)
        await twin.close()
        assert list(await self.broker.extend([mine])) == []
        assert names(await self.fetch_until(1, broker=await self.another_broker())) == names([its])

    # leases

    async def test_a_delivery_stays_ours_while_its_lease_lasts(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.advance(self.lease * 0.5)
        assert await self.fetch_now(broker=await self.another_broker()) == []
        assert list(await self.broker.extend([delivery])) == []

    async def test_a_delivery_without_a_lease_stays_ours(self) -> None:
        if self.broker.capabilities.lease is not None:
            pytest.skip("deliveries have a lease")
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.advance(self.delay)
        assert await self.fetch_now(broker=await self.another_broker()) == []
        assert list(await self.broker.extend([delivery])) == []

    async def test_when_a_lease_ends_the_message_is_shown_again_with_attempt_plus_1(self) -> None:
        mine, other, theirs = await self._lost_to_another()
        assert theirs.body == mine.body
        if not self.broker.capabilities.counts_deliveries:
            pytest.skip("the service does not count deliveries reliably")
        assert theirs.attempt == 2
        await self.advance(self.lease)
        third = await self.fetch_one(broker=await self.another_broker())
        assert (third.body, third.attempt) == (mine.body, 3)
        assert list(await other.extend([theirs])) == [theirs]

    async def test_extend_starts_the_lease_anew(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        other = await self.another_broker()
        for _ in range(4):
            await self.advance(self.lease * 0.4)
            assert list(await self.broker.extend([delivery])) == []
            assert await self.fetch_now(broker=other) == []

    async def test_extend_returns_those_that_are_no_longer_ours(self) -> None:
        await self.publish("a", "b", "c", "d")
        acked, kept, given_back, buried = taken = await self.fetch_until(4)
        await self.broker.ack([acked])
        await self.broker.nack([given_back])
        await self.broker.bury([buried], "reason", "error")
        assert set(await self.broker.extend(taken)) == {acked, given_back, buried}
        assert list(await self.broker.extend([kept])) == []

    async def test_extend_returns_what_another_has_now(self) -> None:
        mine, other, theirs = await self._lost_to_another()
        assert list(await self.broker.extend([mine])) == [mine]
        assert list(await other.extend([theirs])) == []

    async def test_a_worker_that_lost_a_delivery_goes_on_working(self) -> None:
        mine, other, theirs = await self._lost_to_another()
        await self.broker.ack([mine])
        await other.ack([theirs])
        await self.publish("b")
        delivery = await self.fetch_one()
        assert names([delivery]) == ["b"]
        await self.broker.ack([delivery])
        await self.assert_done(delivery)

    # ack

    async def test_what_was_acked_never_comes_back(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.ack([delivery])
        await self.assert_done(delivery)

    async def test_ack_concerns_only_what_it_names(self) -> None:
        await self.publish("a", "b", "c")
        first, second, third = await self.fetch_until(3)
        await self.broker.ack([first, third])
        assert list(await self.broker.extend([second])) == []

    async def test_acking_twice_is_no_error_and_no_harm(self) -> None:
        await self.publish("a", "b")
        first, second = await self.fetch_until(2)
        await self.broker.ack([first, first])
        await self.broker.ack([first])
        assert list(await self.broker.extend([second])) == []

    async def test_an_ack_after_the_lease_ended_is_no_error(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.advance(self.lease)
        await self.broker.ack([delivery])

    async def test_a_late_ack_does_not_take_anothers_delivery(self) -> None:
        mine, other, theirs = await self._lost_to_another()
        await self.broker.ack([mine])
        assert list(await other.extend([theirs])) == []
        await other.close()
        assert (await self.fetch_one()).body == mine.body

    async def test_a_late_ack_of_an_earlier_showing_of_our_own_changes_nothing(self) -> None:
        await self.publish("a")
        first = await self.fetch_one()
        await self.broker.nack([first])
        second = await self.fetch_one()
        await self.broker.ack([first])
        assert list(await self.broker.extend([second])) == []

    # nack and close

    async def test_what_was_given_back_is_next_in_the_order_given(self) -> None:
        self._needs_order()
        await self.publish("a", "b", "c", "d")
        first, second, third = await self.fetch_until(3)
        await self.broker.nack([third, first, second])
        expected = ["a", "b", "c", "d"] if self.keeps_places else ["c", "a", "b", "d"]
        assert names(await self.fetch_until(4)) == expected

    async def test_another_can_take_what_was_given_back(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.nack([delivery])
        assert list(await self.broker.extend([delivery])) == [delivery]
        again = await self.fetch_one(broker=await self.another_broker())
        assert (again.body, again.queue) == (delivery.body, delivery.queue)

    async def test_what_was_given_back_with_a_delay_comes_not_before(self) -> None:
        self._needs_delay()
        await self.publish("a")
        delivery = await self.fetch_one()
        due = self.now() + self.delay
        await self.broker.nack([delivery], delay=self.delay)
        assert list(await self.broker.extend([delivery])) == [delivery]
        early = await self.fetch_now()
        assert early == [] or self.now() >= due - GRAIN
        await self.advance(self.delay)
        again = early or await self.fetch_until(1)
        assert self.now() >= due - GRAIN
        assert [one.body for one in again] == [delivery.body]
        await self.broker.ack(again)
        await self.assert_done(*again)

    async def test_a_showing_that_was_given_back_does_not_count(self) -> None:
        self._needs_uncounted_nacks()
        await self.publish("a")
        for _ in range(3):
            delivery = await self.fetch_one()
            assert delivery.attempt == 1
            await self.broker.nack([delivery])

    async def test_a_showing_that_was_given_back_with_a_delay_does_not_count(self) -> None:
        self._needs_uncounted_nacks()
        self._needs_delay()
        await self.publish("a")
        await self.broker.nack([await self.fetch_one()], delay=self.delay)
        await self.advance(self.delay)
        assert (await self.fetch_one()).attempt == 1

    async def test_giving_back_keeps_the_count_of_lost_leases(self) -> None:
        self._needs_uncounted_nacks()
        _, other, theirs = await self._lost_to_another()
        await other.nack([theirs])
        assert (await self.fetch_one(broker=other)).attempt == 2

    async def test_giving_back_twice_makes_one_copy(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.nack([delivery, delivery])
        await self.broker.nack([delivery])
        (again,) = await self.fetch_until(1)
        await self.broker.nack([delivery])
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([again])) == []

    async def test_what_was_acked_cannot_be_given_back(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.ack([delivery])
        await self.broker.nack([delivery])
        await self.broker.nack([delivery], delay=GRAIN)
        await self.advance(2 * GRAIN)
        assert await self.fetch_now() == []

    async def test_a_late_nack_leaves_anothers_delivery_alone(self) -> None:
        mine, other, theirs = await self._lost_to_another()
        await self.broker.nack([mine])
        assert await self.fetch_now() == []
        assert list(await other.extend([theirs])) == []

    async def test_close_gives_back_what_is_held_as_if_it_had_not_been_shown(self) -> None:
        await self.publish("a", "b", "c", "d")
        done, *held = await self.fetch_until(3)
        await self.broker.ack([done])
        await self.broker.close()
        again = await self.fetch_until(3, broker=await self.another_broker())
        assert {one.body for one in held} < {one.body for one in again}
        if self.broker.capabilities.ordered:
            assert names(again) == ["b", "c", "d"]
        if self.uncounted_nacks and self.broker.capabilities.counts_deliveries:
            assert [one.attempt for one in again] == [1, 1, 1]

    async def test_close_leaves_alone_what_others_hold(self) -> None:
        await self.publish("a", "b")
        (mine,) = await self.fetch_until(1)
        other = await self.another_broker()
        await self.fetch_until(1, broker=other)
        await other.close()
        assert list(await self.broker.extend([mine])) == []

    async def test_a_closed_broker_can_be_opened_again(self) -> None:
        await self.publish("a")
        await self.fetch_until(1)
        await self.broker.close()
        await self.broker.open()
        assert names(await self.fetch_until(1)) == ["a"]

    # not_before

    async def test_no_message_comes_before_its_time(self) -> None:
        self._needs_delay()
        due = self.now() + self.delay
        await self.broker.publish([self.message("later", not_before=due), self.message("now")])
        assert names(await self.fetch_until(1)) == ["now"]
        early = await self.fetch_now()
        assert early == [] or self.now() >= due - GRAIN
        await self.advance(self.delay)
        later = early or await self.fetch_until(1)
        assert names(later) == ["later"]
        assert self.now() >= due - GRAIN

    async def test_a_time_that_is_over_is_now(self) -> None:
        await self.broker.publish([self.message("a", not_before=self.now() - 1000)])
        assert names(await self.fetch_until(1)) == ["a"]

    async def test_messages_become_due_each_at_its_own_time(self) -> None:
        self._needs_delay()
        start = self.now()
        moments = {"third": start + 3 * self.delay, "first": start + self.delay, "second": start + 2 * self.delay}
        await self.broker.publish([self.message(name, not_before=moment) for name, moment in moments.items()])
        for name in ("first", "second", "third"):
            await self.advance(max(moments[name] - self.now(), 0))
            delivery = await self.fetch_one()
            assert names([delivery]) == [name]
            assert self.now() >= moments[name] - GRAIN

    async def test_the_longest_delay_is_accepted(self) -> None:
        longest = min(self.broker.capabilities.max_delay, 10 * YEAR)
        await self.broker.publish([self.message("a", not_before=self.now() + longest)])
        if longest > self.patience:
            assert await self.fetch_now() == []

    # bury

    async def test_what_was_buried_is_acked(self) -> None:
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.bury([delivery], "reason", "error")
        await self.assert_done(delivery)

    async def test_the_dead_letter_keeps_reason_error_attempt_and_raw_bytes(self) -> None:
        inspector = self.inspector()
        for body in HARD_BODIES:
            await self.broker.publish([self.raw_message(body)])
            await self.broker.bury([await self.fetch_one()], "unreadable", HARD_TEXT)
        entries = await inspector.dead(self.queue, 100)
        assert [entry.body for entry in entries] == list(HARD_BODIES)
        assert {(entry.queue, entry.reason, entry.error, entry.attempt) for entry in entries} == {
            (self.queue, "unreadable", HARD_TEXT, 1)
        }

    async def test_the_dead_letter_says_which_attempt_it_was(self) -> None:
        inspector = self.inspector()
        _, other, theirs = await self._lost_to_another()
        await other.bury([theirs], "reason", "error")
        (entry,) = await inspector.dead(self.queue, 10)
        assert entry.attempt == theirs.attempt

    async def test_burying_twice_makes_one_entry(self) -> None:
        inspector = self.inspector()
        await self.publish("a")
        delivery = await self.fetch_one()
        await self.broker.bury([delivery, delivery], "reason", "error")
        await self.broker.bury([delivery], "reason", "error")
        assert len(await inspector.dead(self.queue, 10)) == 1

    async def test_what_is_no_longer_ours_is_not_buried(self) -> None:
        inspector = self.inspector()
        mine, other, theirs = await self._lost_to_another()
        await self.broker.bury([mine], "reason", "error")
        assert list(await inspector.dead(self.queue, 10)) == []
        assert list(await other.extend([theirs])) == []

    # batches

    async def test_every_verb_takes_a_batch_of_500(self) -> None:
        size = min(BATCH, self.broker.capabilities.max_batch)
        expected = [f"m{number:03}" for number in range(BATCH)]
        for some in _in_batches(expected, size):
            await self.publish(*some)
        taken = await self.fetch_until(BATCH, limit=size)
        assert self._as_expected(names(taken)) == expected
        for chunk in _in_batches(taken, size):
            assert list(await self.broker.extend(chunk)) == []
        for chunk in reversed(list(_in_batches(taken, size))):  # what was given back last is next
            await self.broker.nack(chunk)
        taken = await self.fetch_until(BATCH, limit=size)
        assert self._as_expected(names(taken)) == expected
        for chunk in _in_batches(taken[: BATCH // 2], size):
            await self.broker.ack(chunk)
        for chunk in _in_batches(taken[BATCH // 2 :], size):
            await self.broker.bury(chunk, "reason", "error")
        await self.assert_nothing_comes_back()

    # tending

    async def test_tending_says_in_a_few_seconds_when_to_come_back(self) -> None:
        if not isinstance(self.broker, Tended):
            pytest.skip("the broker looks after itself")
        assert 0 <= await self.broker.tend([self.queue]) <= 10
        assert 0 <= await self.broker.tend([]) <= 10

    async def test_any_number_may_tend_at_once(self) -> None:
        if not isinstance(self.broker, Tended):
            pytest.skip("the broker looks after itself")
        expected = [f"m{number:02}" for number in range(40)]
        due = self.now() + self.delay
        await self.broker.publish([self.message(name, not_before=due) for name in expected])
        others = [await self.another_broker() for _ in range(4)]
        await self.advance(self.delay)
        await asyncio.gather(*(tend(other, self.queue) for other in others for _ in range(5)))
        assert sorted(names(await self.fetch_until(len(expected)))) == expected
        assert await self.fetch_now() == []

    # helpers

    async def _fetch_in_one_wait(self) -> list[Delivery]:
        await tend(self.broker, self.queue)
        return list(await self.broker.fetch(self.queue, 1, 2 * self.patience))

    async def _lost_to_another(self) -> tuple[Delivery, Broker, Delivery]:
        """A delivery whose lease ended, another worker, and its delivery of the same message."""
        lease = self.lease
        await self.publish("a")
        mine = await self.fetch_one()
        other = await self.another_broker()
        await self.advance(lease)
        return mine, other, await self.fetch_one(broker=other)

    def _as_expected(self, shown: list[str]) -> list[str]:
        return shown if self.broker.capabilities.ordered else sorted(shown)

    def _needs_order(self) -> None:
        if not self.broker.capabilities.ordered:
            pytest.skip("the service keeps no order")

    def _needs_tokens(self) -> None:
        if not self.knows_tokens:
            pytest.skip("the service cannot tell a repeated publish")

    def _needs_delay(self) -> None:
        if self.broker.capabilities.max_delay < 3 * self.delay:
            pytest.skip("the service has no delays")

    def _needs_uncounted_nacks(self) -> None:
        if not (self.uncounted_nacks and self.broker.capabilities.counts_deliveries):
            pytest.skip("the service counts what was given back, or does not count")


def _in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
