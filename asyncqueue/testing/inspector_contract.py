"""What is true of every inspector: the sentences of ``asyncqueue.brokers.base.Inspector``, as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import pytest

from asyncqueue.brokers.base import Broker, Dead, Inspector, QueueDepth
from asyncqueue.errors import Refused
from asyncqueue.testing.suite import GRAIN, BrokerSuite, names
from asyncqueue.wire import decode_signature

HOUR = 3600.0


class InspectedBroker(Broker, Inspector, Protocol):
    """A broker that can be looked into."""


class InspectorContract(BrokerSuite):
    """For brokers that are inspectors too; ``make_broker`` as in ``BrokerContract``."""

    tells_depths: bool = True
    """Whether the service tells how much is in a queue; else ``depth`` of one that is there is None throughout."""

    async def test_the_broker_says_that_it_is_an_inspector(self) -> None:
        assert isinstance(self.broker, Inspector)

    async def test_queues_are_sorted_and_a_dead_letter_is_not_one(self) -> None:
        self._needs("queues")
        await self.broker.publish([self.message("a", queue=self.other_queue), self.message("b")])
        await self._bury("c")
        await self.publish("d")
        queues = list(await self.inspector().queues())
        assert queues == sorted(queues)
        assert queues == sorted([self.queue, self.other_queue])

    async def test_depth_counts_what_is_ready_held_delayed_and_dead(self) -> None:
        self._needs_depths()
        await self._bury("dead")
        await self.publish("held", "held", "ready", "ready", "ready")
        await self.fetch_until(2)
        await self.broker.publish([self.message(name, not_before=self.now() + HOUR) for name in "abcd"])
        await self.broker.publish([self.message("elsewhere", queue=self.other_queue)])
        assert await self.inspector().depth(self.queue) == QueueDepth(self.queue, ready=3, held=2, delayed=4, dead=1)

    async def test_depth_counts_what_others_hold(self) -> None:
        self._needs_depths()
        await self.publish("a")
        await self.fetch_until(1, broker=await self.another_broker())
        assert (await self.inspector().depth(self.queue)).held == 1

    async def test_what_the_service_does_not_tell_of_a_queue_is_none(self) -> None:
        if self.tells_depths:
            pytest.skip("the service tells how much is in a queue")
        await self.publish("a")
        assert await self.inspector().depth(self.queue) == QueueDepth(self.queue, None, None, None, None)

    async def test_a_queue_that_nobody_knows_is_empty(self) -> None:
        inspector = self.inspector()
        assert await inspector.depth("never-used") == QueueDepth("never-used", ready=0, held=0, delayed=0, dead=0)
        if self._shows("peek"):
            assert list(await inspector.peek("never-used", 10)) == []
        assert list(await inspector.dead("never-used", 10)) == []
        assert await inspector.purge("never-used") == 0
        assert await inspector.requeue("never-used", ["1"]) == 0
        assert await inspector.drop("never-used", ["1"]) == 0

    async def test_peek_shows_ready_messages_next_first(self) -> None:
        self._needs("peek")
        await self.publish(*"abcde")
        assert self._called(await self.inspector().peek(self.queue, 10)) == list("abcde")
        assert self._called(await self.inspector().peek(self.queue, 2)) == ["a", "b"]
        assert self._called(await self.inspector().peek(self.queue, 2, 3)) == ["d", "e"]
        assert self._called(await self.inspector().peek(self.queue, 2, 4)) == ["e"]
        assert list(await self.inspector().peek(self.queue, 2, 5)) == []

    async def test_peek_shows_neither_what_is_held_nor_what_is_delayed(self) -> None:
        self._needs("peek")
        await self.publish("held", "ready")
        await self.fetch_until(1)
        await self.broker.publish([self.message("later", not_before=self.now() + HOUR)])
        assert self._called(await self.inspector().peek(self.queue, 10)) == ["ready"]

    async def test_peek_shows_what_comes_next_after_something_was_given_back(self) -> None:
        self._needs("peek")
        await self.publish("a", "b")
        await self.broker.nack(await self.fetch_until(1))
        assert self._called(await self.inspector().peek(self.queue, 10)) == ["a", "b"]

    async def test_delayed_shows_all_queues_soonest_first_with_due_times(self) -> None:
        self._needs("delayed")
        start = self.now()
        await self.broker.publish(
            [
                self.message("third", not_before=start + 3 * HOUR),
                self.message("first", not_before=start + HOUR, queue=self.other_queue),
                self.message("second", not_before=start + 2 * HOUR),
                self.message("now"),
            ]
        )
        delayed = list(await self.inspector().delayed(10))
        assert self._called([body for _, body in delayed]) == ["first", "second", "third"]
        for hours, (due, _) in enumerate(delayed, 1):
            assert abs(due - (start + hours * HOUR)) <= GRAIN
        assert list(await self.inspector().delayed(1, 1)) == delayed[1:2]
        assert list(await self.inspector().delayed(5, 2)) == delayed[2:]

    async def test_delayed_shows_what_was_given_back_with_a_delay(self) -> None:
        self._needs("delayed")
        await self.publish("a")
        await self.broker.nack(await self.fetch_until(1), delay=HOUR)
        ((due, body),) = await self.inspector().delayed(10)
        assert self._called([body]) == ["a"]
        assert HOUR / 2 < due - self.now() <= HOUR + GRAIN
        assert (await self.inspector().depth(self.queue)).delayed == 1

    async def test_looking_takes_nothing_from_a_worker(self) -> None:
        inspector = self.inspector()
        await self._bury("dead")
        await self.publish("a", "b", "c")
        (held,) = await self.fetch_until(1)
        for _ in range(2):
            if self._shows("queues"):
                await inspector.queues()
            await inspector.depth(self.queue)
            if self._shows("peek"):
                await inspector.peek(self.queue, 10)
            if self._shows("delayed"):
                await inspector.delayed(10)
            await inspector.dead(self.queue, 10)
        assert list(await self.broker.extend([held])) == []
        taken = await self.fetch_until(2)
        assert sorted(names([held, *taken])) == ["a", "b", "c"]
        assert [delivery.attempt for delivery in taken] == [1, 1]

    async def test_what_a_service_cannot_show_is_refused_in_words(self) -> None:
        inspector = self.inspector()
        looks: dict[str, Callable[[], Awaitable[object]]] = {
            "queues": inspector.queues,
            "peek": lambda: inspector.peek(self.queue, 10),
            "delayed": lambda: inspector.delayed(10),
        }
        refused = self.broker.capabilities.refused
        assert refused <= looks.keys(), "every broker can do what the rest is"
        await self.publish("a")
        for verb in sorted(refused):
            with pytest.raises(Refused, match=r"\w+ \w+"):
                await looks[verb]()

    async def test_purge_drops_what_is_ready_and_nothing_else(self) -> None:
        inspector = self.inspector()
        await self._bury("dead")
        await self.publish("held", "a", "b", "c")
        (held,) = await self.fetch_until(1)
        await self.broker.publish(
            [self.message("later", not_before=self.now() + HOUR), self.message("elsewhere", queue=self.other_queue)]
        )
        assert await inspector.purge(self.queue) == 3
        if self.tells_depths:
            assert await inspector.depth(self.queue) == QueueDepth(self.queue, ready=0, held=1, delayed=1, dead=1)
        assert names(await self.fetch_until(1, queue=self.other_queue)) == ["elsewhere"]
        assert await self.fetch_now() == []
        assert list(await self.broker.extend([held])) == []
        assert await inspector.purge(self.queue) == 0

    async def test_the_dead_letter_shows_its_entries_oldest_first(self) -> None:
        start = self.now()
        for name in "abc":
            await self._bury(name)
        inspector = self.inspector()
        dead = list(await inspector.dead(self.queue, 10))
        assert self._called([entry.body for entry in dead]) == ["a", "b", "c"]
        assert all(start - GRAIN <= entry.buried_at <= self.now() + GRAIN for entry in dead)
        assert len({entry.id for entry in dead}) == 3
        assert list(await inspector.dead(self.queue, 2)) == dead[:2]
        assert list(await inspector.dead(self.queue, 2, 2)) == dead[2:]
        assert list(await inspector.dead(self.other_queue, 10)) == []

    async def test_requeue_puts_entries_at_the_end_of_their_queue(self) -> None:
        inspector = self.inspector()
        first = await self._bury("a")
        await self._bury("b")
        third = await self._bury("c")
        await self.publish("d")
        assert await inspector.requeue(self.queue, [first.id, third.id, "no-such-id"]) == 2
        assert self._called([entry.body for entry in await inspector.dead(self.queue, 10)]) == ["b"]
        taken = await self.fetch_until(3)
        shown = names(taken)
        assert (shown if self.broker.capabilities.ordered else sorted(shown, key="dac".index)) == ["d", "a", "c"]
        assert first.body in [delivery.body for delivery in taken]

    async def test_a_requeued_entry_is_a_new_message(self) -> None:
        lease = self.lease
        await self.publish("a")
        await self.fetch_until(1)
        other = await self.another_broker()
        await self.advance(lease)
        await other.bury(await self.fetch_until(1, broker=other), "reason", "error")
        (entry,) = await self.inspector().dead(self.queue, 10)
        assert await self.inspector().requeue(self.queue, [entry.id]) == 1
        assert (await self.fetch_one(broker=other)).attempt == 1

    async def test_an_entry_is_requeued_once_however_many_try(self) -> None:
        entry = await self._bury("a")
        others = [await self.another_broker() for _ in range(5)]
        counts = await asyncio.gather(
            *(other.requeue(self.queue, [entry.id, entry.id]) for other in others if isinstance(other, Inspector))
        )
        assert sorted(counts) == [0, 0, 0, 0, 1]
        assert names(await self.fetch_until(1)) == ["a"]
        assert await self.fetch_now() == []

    async def test_a_waiting_fetch_takes_what_is_requeued(self) -> None:
        entry = await self._bury("a")
        other = await self.another_broker()
        waiting = asyncio.create_task(self.fetch_until(1, broker=other))
        await asyncio.sleep(0.01)
        await self.inspector().requeue(self.queue, [entry.id])
        assert names(await waiting) == ["a"]

    async def test_a_raw_entry_is_requeued_byte_for_byte(self) -> None:
        body = bytes(range(256))
        await self.broker.publish([self.raw_message(body)])
        await self.broker.bury(await self.fetch_until(1), "unreadable", "")
        (entry,) = await self.inspector().dead(self.queue, 10)
        await self.inspector().requeue(self.queue, [entry.id])
        assert (await self.fetch_one()).body == body

    async def test_drop_drops_for_good(self) -> None:
        inspector = self.inspector()
        first = await self._bury("a")
        await self._bury("b")
        assert await inspector.drop(self.queue, [first.id, first.id, "no-such-id"]) == 1
        assert self._called([entry.body for entry in await inspector.dead(self.queue, 10)]) == ["b"]
        assert await inspector.drop(self.queue, [first.id]) == 0
        assert await inspector.requeue(self.queue, [first.id]) == 0
        assert await self.fetch_now() == []

    async def _bury(self, name: str) -> Dead:
        await self.publish(name)
        await self.broker.bury(await self.fetch_until(1), "reason", "error")
        return list(await self.inspector().dead(self.queue, 100))[-1]

    def _shows(self, verb: str) -> bool:
        return verb not in self.broker.capabilities.refused

    def _needs(self, verb: str) -> None:
        if not self._shows(verb):
            pytest.skip(f"the service cannot show what `{verb}` asks for")

    def _needs_depths(self) -> None:
        if not self.tells_depths:
            pytest.skip("the service does not tell how much is in a queue")

    def _called(self, bodies: Sequence[bytes]) -> list[str]:
        return [decode_signature(body).name for body in bodies]
