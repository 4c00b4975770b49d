"""What is true of every joint store: the sentences of ``asyncqueue.brokers.base.JointStore``, as tests."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Ack, Broker, Bury, Delivery, JointStore, Message, Nack, Settled
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.testing.suite import GRAIN, BrokerSuite, names, state, state_of

SENT_AT = 1_735_787_045_123_456_789
KEEP = 3600.0
BATCH = 500


class JointBroker(Broker, JointStore, Protocol):
    """A broker whose store also holds states."""


class JointSuite(BrokerSuite):
    """Brokers and a backend of one store."""

    delay: float = 0.3
    """A delay (seconds) in the tests of delays. A real service really waits that long."""

    expiry: float = 1.0
    """How long (seconds) states are kept in the tests of expiry. A real service really waits that long."""

    async def make_backend(self) -> Backend:
        """A backend, not yet open, on the same store as the brokers."""
        raise self.unsaid("make_backend", "a backend, not yet open, on the same store as the brokers")

    async def prepare(self) -> None:
        await super().prepare()
        self.backend = await self.opened(await self.make_backend())
        self.joint = cast(JointBroker, self.broker)

    def call(self, name: str) -> Message:
        """A call of that task, with a token of its own."""
        self._calls = getattr(self, "_calls", 0) + 1
        return self.message(name, token=f"token-{self._calls}")

    async def taken(self) -> tuple[Delivery, str]:
        """A submitted task that this worker took, and its id."""
        message = self.call("task")
        await self.joint.submit([pending(message)], [message], KEEP)
        return await self.fetch_one(), message.id

    async def state(self, task_id: str) -> State | None:
        """The state of a task, None where there is no entry."""
        (found,) = await self.backend.get([task_id])
        return state_of(found)

    async def until_gone(self, task_id: str) -> None:
        """Wait until there is no entry of the task."""

        async def is_gone() -> bool:
            return await self.state(task_id) is None

        await self.until(is_gone)


class JointContract(JointSuite):
    """Subclass it, and say how to make the broker and the backend of one store."""

    async def test_the_broker_says_that_it_is_a_joint_store(self) -> None:
        assert isinstance(self.broker, JointStore)

    async def test_broker_and_backend_of_one_store_have_one_identity(self) -> None:
        assert await self.broker.identity() == await self.backend.identity()

    # submit

    async def test_submit_records_and_publishes(self) -> None:
        first, second = self.call("a"), self.call("b")
        await self.joint.submit([pending(first, "a"), pending(second, "b")], [first, second], KEEP)
        assert list(await self.backend.get([first.id, second.id])) == [pending(first, "a"), pending(second, "b")]
        assert names(await self.fetch_until(2)) == ["a", "b"]

    async def test_submit_takes_an_empty_batch(self) -> None:
        await self.joint.submit([], [], KEEP)
        assert await self.fetch_now() == []

    async def test_submit_takes_states_without_messages_and_messages_without_states(self) -> None:
        await self.joint.submit([state("task_a")], [], KEEP)
        await self.joint.submit([], [self.call("b")], KEEP)
        assert await self.state("task_a") is State.PENDING
        assert names(await self.fetch_until(1)) == ["b"]

    async def test_submit_keeps_messages_back_until_they_are_due(self) -> None:
        due = self.now() + self.delay
        message = self.message("a", not_before=due, token="token-a")
        await self.joint.submit([pending(message)], [message], KEEP)
        assert await self.fetch_now() == [] or self.now() >= due - GRAIN
        await self.advance(self.delay)
        assert names(await self.fetch_until(1)) == ["a"]
        assert self.now() >= due - GRAIN

    async def test_submit_starts_a_task_over_that_had_ended(self) -> None:
        message = self.call("a")
        await self.backend.put([state(message.id, State.FAILURE, error="old")])
        await self.joint.submit([pending(message)], [message], KEEP)
        assert list(await self.backend.get([message.id])) == [pending(message)]

    async def test_a_repeated_submit_adds_no_second_copy(self) -> None:
        first, second = self.call("a"), self.call("b")
        for _ in range(2):
            await self.joint.submit([pending(first), pending(second)], [first, second], KEEP)
        await self.broker.ack(await self.fetch_until(2))
        await self.joint.submit([pending(first), pending(second)], [first, second], KEEP)
        assert await self.fetch_now() == []

    async def test_a_repeated_submit_takes_back_no_state(self) -> None:
        message = self.call("a")
        await self.joint.submit([pending(message)], [message], KEEP)
        for later in (State.STARTED, State.SUCCESS):
            await self.backend.put([state(message.id, later)])
            await self.joint.submit([pending(message)], [message], KEEP)
            assert await self.state(message.id) is later

    async def test_who_fetches_a_submitted_message_finds_its_state(self) -> None:
        messages = [self.call(f"m{number}") for number in range(30)]

        async def send() -> None:
            for message in messages:
                await self.joint.submit([pending(message)], [message], KEEP)

        other = await self.another_broker()
        sending = asyncio.create_task(send())
        ids = {message.body: message.id for message in messages}
        for _ in messages:
            delivery = await self.fetch_one(broker=other)
            assert await self.state(ids[delivery.body]) is State.PENDING
        await sending

    async def test_submitted_states_are_kept_as_long_as_asked(self) -> None:
        await self.joint.submit([state("task_short")], [], self.expiry)
        await self.joint.submit([state("task_long")], [], KEEP)
        await self.advance(self.expiry)
        await self.until_gone("task_short")
        assert await self.state("task_long") is State.PENDING

    async def test_the_submitted_state_of_a_task_for_later_is_kept_from_the_time_it_is_due(self) -> None:
        written, due = self.clock.monotonic(), self.now() + self.expiry
        message = self.message("a", not_before=due, token="token-a")
        await self.joint.submit([state(message.id, not_before=due)], [message], self.expiry)
        await self.advance(self.expiry * 1.4)
        found = await self.state(message.id)
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found is State.PENDING
        await self.advance(self.expiry * 0.6)
        await self.until_gone(message.id)

    # settle

    async def test_settle_records_publishes_and_acks(self) -> None:
        delivery, task_id = await self.taken()
        callback = self.call("callback")
        done = state(task_id, State.SUCCESS, name="a", results=(TaskResult(type="int64", value=3),), created_at=SENT_AT)
        await self.joint.settle(
            [Settled(delivery, Ack(), state=done, pending=(pending(callback),), publish=(callback,))], KEEP
        )
        assert list(await self.backend.get([task_id, callback.id])) == [done, pending(callback)]
        (shown,) = await self.fetch_until(1)
        assert shown.body == callback.body
        await self.broker.ack([shown])
        await self.assert_done(delivery)

    async def test_settle_takes_an_empty_batch(self) -> None:
        await self.joint.settle([], KEEP)

    async def test_settle_can_change_the_delivery_alone(self) -> None:
        delivery, task_id = await self.taken()
        await self.joint.settle([Settled(delivery, Ack())], KEEP)
        assert await self.state(task_id) is State.PENDING
        await self.assert_done(delivery)

    async def test_settle_can_give_back(self) -> None:
        delivery, task_id = await self.taken()
        await self.joint.settle([Settled(delivery, Nack(), state=state(task_id, State.RETRY))], KEEP)
        assert await self.state(task_id) is State.RETRY
        assert list(await self.broker.extend([delivery])) == [delivery]
        again = await self.fetch_one()
        assert (again.body, again.attempt) == (delivery.body, 1)

    async def test_settle_can_give_back_with_a_delay(self) -> None:
        delivery, _ = await self.taken()
        due = self.now() + self.delay
        await self.joint.settle([Settled(delivery, Nack(self.delay))], KEEP)
        early = await self.fetch_now()
        assert early == [] or self.now() >= due - GRAIN
        await self.advance(self.delay)
        (again,) = early or await self.fetch_until(1)
        assert again.body == delivery.body
        assert self.now() >= due - GRAIN

    async def test_settle_can_bury(self) -> None:
        delivery, task_id = await self.taken()
        failed = state(task_id, State.FAILURE, error="why")
        callback = self.call("callback")
        await self.joint.settle(
            [Settled(delivery, Bury("max_deliveries", "seen ☃ times"), state=failed, publish=(callback,))], KEEP
        )
        assert await self.state(task_id) is State.FAILURE
        assert names(await self.fetch_until(1)) == ["callback"]
        (entry,) = await self.inspector().dead(self.queue, 10)
        assert (entry.body, entry.reason, entry.error) == (delivery.body, "max_deliveries", "seen ☃ times")
        assert list(await self.broker.extend([delivery])) == [delivery]

    async def test_settle_publishes_in_the_order_given(self) -> None:
        first, _ = await self.taken()
        second, _ = await self.taken()
        callbacks = {name: self.call(name) for name in "wxyz"}
        await self.joint.settle(
            [
                Settled(first, Ack(), publish=(callbacks["w"], callbacks["x"])),
                Settled(second, Ack(), publish=(callbacks["y"], callbacks["z"])),
            ],
            KEEP,
        )
        assert names(await self.fetch_until(4)) == ["w", "x", "y", "z"]

    async def test_settle_keeps_what_it_publishes_until_it_is_due(self) -> None:
        delivery, _ = await self.taken()
        due = self.now() + self.delay
        retry = self.message("retry", not_before=due, token="token-retry")
        await self.joint.settle([Settled(delivery, Ack(), publish=(retry,))], KEEP)
        assert await self.fetch_now() == [] or self.now() >= due - GRAIN
        await self.advance(self.delay)
        assert names(await self.fetch_until(1)) == ["retry"]
        assert self.now() >= due - GRAIN

    async def test_a_waiting_fetch_takes_what_settle_publishes(self) -> None:
        delivery, _ = await self.taken()
        other = await self.another_broker()
        waiting = asyncio.create_task(self.fetch_until(1, broker=other))
        await asyncio.sleep(0.01)
        await self.joint.settle([Settled(delivery, Ack(), publish=(self.call("callback"),))], KEEP)
        assert names(await waiting) == ["callback"]

    async def test_settle_ends_a_watch(self) -> None:
        delivery, task_id = await self.taken()

        async def watch() -> list[tuple[str, TaskState | None]]:
            return [ending async for ending in self.backend.watch([task_id])]

        watching = asyncio.create_task(self.in_time(watch()))
        await asyncio.sleep(0.02)
        await self.joint.settle([Settled(delivery, Ack(), state=state(task_id, State.SUCCESS))], KEEP)
        assert [state_of(one) for _, one in await watching] == [State.SUCCESS]

    async def test_settle_takes_receipts_of_its_twin(self) -> None:
        delivery, task_id = await self.taken()
        twin = self.joint.twin()

        async def work() -> None:
            await twin.open()
            try:
                await twin.settle([Settled(delivery, Ack(), state=state(task_id, State.SUCCESS))], KEEP)
            finally:
                await twin.close()

        await self.in_another_thread(work)
        assert await self.state(task_id) is State.SUCCESS
        await self.assert_done(delivery)

    # settle: the rules for states

    async def test_settle_does_not_take_back_a_final_state(self) -> None:
        delivery, task_id = await self.taken()
        kept = state(task_id, State.SUCCESS, name="kept")
        await self.backend.put([kept])
        (before,) = await self.backend.get([task_id])
        await self.joint.settle([Settled(delivery, Ack(), state=state(task_id, State.FAILURE, error="late"))], KEEP)
        assert list(await self.backend.get([task_id])) == [before]
        await self.assert_done(delivery)

    async def test_settle_keeps_the_time_and_name_of_the_send(self) -> None:
        message = self.call("a")
        await self.joint.submit([pending(message, "add", SENT_AT)], [message], KEEP)
        (delivery,) = await self.fetch_until(1)
        await self.joint.settle([Settled(delivery, Ack(), state=state(message.id, State.SUCCESS))], KEEP)
        (found,) = await self.backend.get([message.id])
        assert found
        assert (found.state, found.task_name, found.created_at) == (State.SUCCESS, "add", SENT_AT)

    async def test_settle_takes_pending_only_where_no_entry_is(self) -> None:
        delivery, _ = await self.taken()
        callbacks = [self.call(old) for old in State]
        kept = [state(one.id, old, error="kept", created_at=SENT_AT) for one, old in zip(callbacks, State, strict=True)]
        await self.backend.put(kept)
        fresh = self.call("fresh")
        await self.joint.settle(
            [Settled(delivery, Ack(), pending=tuple(pending(one, "late") for one in (*callbacks, fresh)))], KEEP
        )
        assert list(await self.backend.get([one.id for one in callbacks])) == kept
        assert await self.state(fresh.id) is State.PENDING

    async def test_settle_applies_its_items_in_order(self) -> None:
        first, task_id = await self.taken()
        second, _ = await self.taken()
        third, _ = await self.taken()
        await self.joint.settle(
            [
                Settled(first, Ack(), state=state(task_id, State.STARTED)),
                Settled(second, Ack(), state=state(task_id, State.SUCCESS)),
                Settled(third, Ack(), state=state(task_id, State.FAILURE)),
            ],
            KEEP,
        )
        assert await self.state(task_id) is State.SUCCESS

    async def test_settled_states_are_kept_as_long_as_asked(self) -> None:
        first, short = await self.taken()
        second, long = await self.taken()
        await self.backend.forget([short])  # it may be kept for as long as it was
        await self.joint.settle([Settled(first, Ack(), state=state(short, State.SUCCESS))], self.expiry)
        await self.joint.settle([Settled(second, Ack(), state=state(long, State.SUCCESS))], KEEP)
        await self.advance(self.expiry)
        await self.until_gone(short)
        assert await self.state(long) is State.SUCCESS

    async def test_the_settled_state_of_a_task_for_later_is_kept_from_the_time_it_is_due(self) -> None:
        delivery, task_id = await self.taken()
        await self.backend.forget([task_id])
        written, due = self.clock.monotonic(), self.now() + self.expiry
        again, callback = self.message("again", not_before=due), self.message("callback", not_before=due)
        retried, waiting = state(task_id, State.RETRY, not_before=due), state(callback.id, not_before=due)
        item = Settled(delivery, Ack(), state=retried, pending=(waiting,), publish=(again, callback))
        await self.joint.settle([item], self.expiry)
        await self.advance(self.expiry * 1.4)
        found = [await self.state(task_id), await self.state(callback.id)]
        if self.clock.monotonic() - written < 2 * self.expiry:
            assert found == [State.RETRY, State.PENDING]
        await self.advance(self.expiry * 0.6)
        await self.until_gone(task_id)
        await self.until_gone(callback.id)

    # settle: only what is ours, and once

    async def test_settle_changes_nothing_for_what_is_no_longer_ours(self) -> None:
        acked, acked_id = await self.taken()
        given_back, given_back_id = await self.taken()
        await self.broker.ack([acked])
        await self.broker.nack([given_back])
        for delivery, task_id in ((acked, acked_id), (given_back, given_back_id)):
            for verdict in (Ack(), Nack(), Nack(self.delay), Bury("reason", "error")):
                callback = self.call("callback")
                settled = Settled(
                    delivery,
                    verdict,
                    state=state(task_id, State.SUCCESS),
                    pending=(pending(callback),),
                    publish=(callback,),
                )
                await self.joint.settle([settled], KEEP)
                assert await self.state(task_id) is State.PENDING
                assert await self.state(callback.id) is None
        assert [one.body for one in await self.fetch_until(1)] == [given_back.body]
        await self.advance(self.delay)
        assert await self.fetch_now() == []
        assert list(await self.inspector().dead(self.queue, 10)) == []

    async def test_settle_changes_nothing_for_what_another_has_now(self) -> None:
        lease = self.lease
        mine, task_id = await self.taken()
        other = await self.another_broker()
        await self.advance(lease)
        theirs = await self.fetch_one(broker=other)
        callback = self.call("callback")
        for verdict in (Ack(), Nack(), Bury("reason", "error")):
            settled = Settled(mine, verdict, state=state(task_id, State.SUCCESS), publish=(callback,))
            await self.joint.settle([settled], KEEP)
        assert await self.state(task_id) is State.PENDING
        assert await self.fetch_now() == []
        assert list(await other.extend([theirs])) == []

    async def test_settle_applies_what_is_ours_beside_what_is_not(self) -> None:
        lost, lost_id = await self.taken()
        first, first_id = await self.taken()
        second, second_id = await self.taken()
        await self.broker.ack([lost])
        callbacks = [self.call(name) for name in "xyz"]
        await self.joint.settle(
            [
                Settled(one, Ack(), state=state(task_id, State.SUCCESS), publish=(callback,))
                for (one, task_id), callback in zip(
                    [(first, first_id), (lost, lost_id), (second, second_id)], callbacks, strict=True
                )
            ],
            KEEP,
        )
        assert await self.state(first_id) is State.SUCCESS
        assert await self.state(lost_id) is State.PENDING
        assert await self.state(second_id) is State.SUCCESS
        assert names(await self.fetch_until(2)) == ["x", "z"]
        assert await self.fetch_now() == []

    async def test_a_repeated_settle_changes_nothing(self) -> None:
        acked, acked_id = await self.taken()
        buried, buried_id = await self.taken()
        given_back, given_back_id = await self.taken()
        callback = self.message("callback")  # without a token: the delivery itself says that this was done
        batch = [
            Settled(acked, Ack(), state=state(acked_id, State.RETRY), publish=(callback,)),
            Settled(buried, Bury("reason", "error"), state=state(buried_id, State.FAILURE)),
            Settled(given_back, Nack(), state=state(given_back_id, State.RETRY)),
        ]
        await self.joint.settle(batch, KEEP)
        taken = await self.fetch_until(2)
        assert sorted(one.body for one in taken) == sorted([callback.body, given_back.body])
        await self.backend.begin([state(acked_id), state(buried_id)])
        await self.backend.put([state(given_back_id, State.STARTED)])
        await self.joint.settle(batch, KEEP)
        found = await self.backend.get([acked_id, buried_id, given_back_id])
        assert [state_of(one) for one in found] == [State.PENDING, State.PENDING, State.STARTED]
        assert await self.fetch_now() == []
        assert list(await self.broker.extend(taken)) == []
        assert len(await self.inspector().dead(self.queue, 10)) == 1

    async def test_a_delivery_that_comes_twice_in_a_batch_is_settled_once(self) -> None:
        delivery, task_id = await self.taken()
        first, second = self.message("first"), self.message("second")
        await self.joint.settle(
            [
                Settled(delivery, Ack(), state=state(task_id, State.RETRY), publish=(first,)),
                Settled(delivery, Ack(), state=state(task_id, State.SUCCESS), publish=(second,)),
            ],
            KEEP,
        )
        assert await self.state(task_id) is State.RETRY
        assert names(await self.fetch_until(1)) == ["first"]
        assert await self.fetch_now() == []

    async def test_settle_adds_no_second_copy_of_what_was_published_before(self) -> None:
        callback = self.call("callback")
        await self.broker.publish([callback])
        await self.broker.ack(await self.fetch_until(1))
        delivery, task_id = await self.taken()
        await self.joint.settle(
            [Settled(delivery, Ack(), state=state(task_id, State.SUCCESS), publish=(callback,))], KEEP
        )
        assert await self.state(task_id) is State.SUCCESS
        assert await self.fetch_now() == []

    async def test_racing_settles_apply_once(self) -> None:
        delivery, task_id = await self.taken()
        twins = [await self.opened(self.joint.twin()) for _ in range(4)]
        settled = Settled(delivery, Ack(), state=state(task_id, State.SUCCESS), publish=(self.message("callback"),))
        await asyncio.gather(*(twin.settle([settled], KEEP) for twin in (self.joint, *twins)))
        assert names(await self.fetch_until(1)) == ["callback"]
        assert await self.fetch_now() == []

    async def test_settle_takes_a_batch_of_500(self) -> None:
        size = min(BATCH, self.broker.capabilities.max_batch)
        messages = [self.call(f"m{number}") for number in range(size)]
        await self.joint.submit([pending(message) for message in messages], messages, KEEP)
        ids = {message.body: message.id for message in messages}
        taken = await self.fetch_until(size)
        await self.joint.settle([Settled(one, Ack(), state=state(ids[one.body], State.SUCCESS)) for one in taken], KEEP)
        found = await self.backend.get([message.id for message in messages])
        assert [state_of(one) for one in found] == [State.SUCCESS] * size
        assert len(await self.broker.extend(taken)) == size


def pending(message: Message, name: str = "", created_at: int = SENT_AT) -> TaskState:
    """The PENDING state of a message's task."""
    return state(message.id, name=name, created_at=created_at)
