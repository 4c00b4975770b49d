"""Drivers that are wrong on purpose, each in one way: the contract suites must notice every one of them.

Each mutant names the test that must fail on it. A mutant may look into a driver's inside: it is the driver's own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import (
    Ack,
    Capabilities,
    Dead,
    Delivery,
    GroupEnd,
    Message,
    Nack,
    QueueDepth,
    Settled,
    Unsettled,
)
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import NANOSECONDS
from asyncqueue.connections.memory import Locked, MemoryStore
from asyncqueue.errors import AsyncQueueError, Refused
from asyncqueue.locks.base import Claim, LastTurn, Turn
from asyncqueue.locks.memory import MemoryLock
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    ManualClock,
    TurnLockContract,
)

CONTRACTS = (
    BrokerContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    BackendContract,
    GroupContract,
    LockContract,
    TurnLockContract,
)
T = TypeVar("T")
Failed = pytest.fail.Exception  # what ``pytest.raises`` raises when nothing was raised

IMPATIENCE = 0.5
"""How long (seconds) a test waits for what a mutant may never give."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A driver that is wrong, and the test that must fail on it."""

    kind: type[Any]
    contract: type[Any]
    test: str


MUTANTS: list[Mutant] = []


def noticed_by(test: Callable[[Any], Any]) -> Callable[[type[T]], type[T]]:
    """Make the driver below a mutant that this test of a contract must notice."""
    contract = {one.__name__: one for one in CONTRACTS}[test.__qualname__.partition(".")[0]]

    def add(kind: type[T]) -> type[T]:
        MUTANTS.append(Mutant(kind, contract, test.__name__))
        return kind

    return add


async def a_moment() -> None:
    """Let the others go on: for some turns of the loop, which are as many on a slow machine."""
    for _ in range(20):
        await asyncio.sleep(0)


# brokers


@noticed_by(BrokerContract.test_a_late_ack_does_not_take_anothers_delivery)
class AckForgetsWhoseItIs(MemoryBroker):
    """Removes by the body, as ``LREM`` does, instead of by the receipt."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        held = self._store.messages._held
        for body in [delivery.body for delivery in deliveries]:
            for receipt in [receipt for receipt, one in held.items() if one.entry.message.body == body]:
                self._store.messages._release(receipt)


@noticed_by(BrokerContract.test_what_was_acked_never_comes_back)
class AckDoesNothing(MemoryBroker):
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        pass


@noticed_by(BrokerContract.test_acking_twice_is_no_error_and_no_harm)
class AckFailsTheSecondTime(MemoryBroker):
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if not self._store.messages.holds(delivery, self._now()):
                raise Refused(f"{delivery.receipt} is unknown")
            await super().ack([delivery])


@noticed_by(BrokerContract.test_every_verb_takes_a_batch_of_500)
class AckTakesTheFirstOnly(MemoryBroker):
    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await super().ack(deliveries[:1])


@noticed_by(BrokerContract.test_a_showing_that_was_given_back_does_not_count)
class NackCounts(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        for receipt in [str(delivery.receipt) for delivery in deliveries]:
            if held := self._store.messages._held.get(receipt):
                held.entry = replace(held.entry, attempt=held.entry.attempt + 1)
        await super().nack(deliveries, delay=delay)


@noticed_by(BrokerContract.test_giving_back_keeps_the_count_of_lost_leases)
class NackStartsTheCountOver(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        for receipt in [str(delivery.receipt) for delivery in deliveries]:
            if held := self._store.messages._held.get(receipt):
                held.entry = replace(held.entry, attempt=1)
        await super().nack(deliveries, delay=delay)


@noticed_by(BrokerContract.test_what_was_given_back_is_next_in_the_order_given)
class NackPutsAtTheEnd(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        messages = [Message(delivery.body, delivery.queue, "task") for delivery in deliveries]
        await self.ack(deliveries)
        await self.publish(messages)


@noticed_by(BrokerContract.test_what_was_given_back_is_next_in_the_order_given)
class NackTurnsTheOrderAround(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        await super().nack(list(reversed(deliveries)), delay=delay)


@noticed_by(BrokerContract.test_what_was_given_back_with_a_delay_comes_not_before)
class NackForgetsTheDelay(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        await super().nack(deliveries)


@noticed_by(BrokerContract.test_a_late_nack_leaves_anothers_delivery_alone)
class NackPublishesWhatIsNotOurs(MemoryBroker):
    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        await self.ack(deliveries)
        due = self._now() + delay if delay else None
        await self.publish([Message(delivery.body, delivery.queue, "task", not_before=due) for delivery in deliveries])


@noticed_by(BrokerContract.test_no_message_comes_before_its_time)
class FetchIgnoresNotBefore(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        await super().publish([replace(message, not_before=None) for message in messages])


@noticed_by(BrokerContract.test_fetch_takes_no_more_than_the_limit)
class FetchIgnoresTheLimit(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        return await super().fetch(queue, 1000, wait)


@noticed_by(BrokerContract.test_a_waiting_fetch_is_woken_by_a_publish)
class FetchDoesNotWake(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if taken := await super().fetch(queue, limit, 0):
            return taken
        await asyncio.sleep(wait)
        return await super().fetch(queue, limit, 0)


@noticed_by(BrokerContract.test_a_cancelled_fetch_loses_nothing)
class FetchForgetsWhatItTakes(MemoryBroker):
    """Like a pop from a list: until it returns, nothing says that somebody has the message."""

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        held, leases = self._store.messages._held, self._store.messages._leases
        taken = await super().fetch(queue, limit, wait)
        popped = {str(one.receipt): held.pop(str(one.receipt)) for one in taken}
        for receipt in popped:
            del leases[receipt]
        await a_moment()
        held.update(popped)
        leases.update(dict.fromkeys(popped, queue))
        return taken


@noticed_by(BrokerContract.test_what_was_taken_is_nobody_elses)
class FetchLeavesWhatItTakes(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        taken = await super().fetch(queue, limit, wait)
        self._store.messages._put_in_front([self._store.messages._held[str(one.receipt)].entry for one in taken])
        return taken


@noticed_by(BrokerContract.test_no_two_showings_have_the_same_receipt)
class ReceiptIsTheMessage(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        messages = self._store.messages
        taken = await super().fetch(queue, limit, wait)
        shown = [replace(delivery, receipt=f"{hash(delivery.body)}") for delivery in taken]
        for old, new in zip(taken, shown, strict=True):
            messages._held[str(new.receipt)] = messages._held.pop(str(old.receipt))
            messages._leases[str(new.receipt)] = messages._leases.pop(str(old.receipt))
        return shown


@noticed_by(BrokerContract.test_receipts_work_through_a_twin_in_another_thread_and_loop)
class ReceiptBelongsToTheInstance(MemoryBroker):
    def twin(self) -> MemoryBroker:  # type: ignore[override]  # it is wrong on purpose
        return MemoryBroker(MemoryStore(), lease=self._lease, clock=self._clock)


@noticed_by(BrokerContract.test_when_a_lease_ends_the_message_is_shown_again_with_attempt_plus_1)
class AttemptIsAlways1(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        return [replace(delivery, attempt=1) for delivery in await super().fetch(queue, limit, wait)]


@noticed_by(BrokerContract.test_when_a_lease_ends_the_message_is_shown_again_with_attempt_plus_1)
class LeaseNeverEnds(MemoryBroker):
    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        for held in self._store.messages._held.values():
            held.until = None
        return await super().fetch(queue, limit, wait)


@noticed_by(BrokerContract.test_extend_starts_the_lease_anew)
class ExtendDoesNothing(MemoryBroker):
    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        now = self._now()
        return [one for one in deliveries if not self._store.messages.holds(one, now)]


@noticed_by(BrokerContract.test_extend_returns_those_that_are_no_longer_ours)
class ExtendLies(MemoryBroker):
    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        await super().extend(deliveries)
        return []


@noticed_by(BrokerContract.test_extend_returns_those_that_are_no_longer_ours)
class ExtendSaysAllIsLost(MemoryBroker):
    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return list(deliveries) if await super().extend(deliveries) else []


@noticed_by(BrokerContract.test_what_was_buried_is_acked)
class BuryDoesNotAck(MemoryBroker):
    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        bodies = {delivery.body: delivery for delivery in deliveries}
        await super().bury(deliveries, reason, error)
        await self.publish([Message(body, one.queue, "task") for body, one in bodies.items()])


@noticed_by(BrokerContract.test_what_is_no_longer_ours_is_not_buried)
class BuryTakesWhatIsNotOurs(MemoryBroker):
    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        await self.ack(deliveries)
        _write_dead(self, deliveries, reason, error)


@noticed_by(BrokerContract.test_the_dead_letter_keeps_reason_error_attempt_and_raw_bytes)
class BuryKeepsTextOnly(MemoryBroker):
    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        await self.ack(deliveries)
        as_text = [replace(one, body=one.body.decode("utf-8", "replace").encode()) for one in deliveries]
        _write_dead(self, as_text, reason, error)


@noticed_by(BrokerContract.test_the_dead_letter_says_which_attempt_it_was)
class BuryForgetsTheAttempt(MemoryBroker):
    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        ours = [one for one in deliveries if self._store.messages.holds(one, self._now())]
        await self.ack(ours)
        _write_dead(self, [replace(one, attempt=1) for one in ours], reason, error)


@noticed_by(BrokerContract.test_a_repeated_publish_with_the_same_tokens_adds_no_second_copy)
class PublishDoublesWhenRepeated(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        await super().publish([replace(message, token="") for message in messages])


@noticed_by(BrokerContract.test_a_repeated_publish_adds_what_was_not_there)
class PublishDropsABatchWithOneRepeat(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        if not any(message.token and self._store.messages.knows(message, self._now()) for message in messages):
            await super().publish(messages)


@noticed_by(BrokerContract.test_equal_bodies_are_messages_of_their_own)
class PublishMergesEqualBodies(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        await super().publish(list({message.body: message for message in messages}.values()))


@noticed_by(BrokerContract.test_messages_come_in_the_order_given_and_published)
class PublishTurnsTheOrderAround(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        await super().publish(list(reversed(messages)))


@noticed_by(BrokerContract.test_after_publish_returns_another_instance_can_fetch_them_all)
class PublishReturnsTooEarly(MemoryBroker):
    """Says done, and hands over when there is time."""

    async def publish(self, messages: Sequence[Message]) -> None:
        self._buffer = list(messages)
        asyncio.get_running_loop().call_later(60.0, self._flush)

    def _flush(self) -> None:
        self._store.messages.add(self._buffer, self._clock.now_ns() / NANOSECONDS)

    async def close(self) -> None:
        self._buffer = []
        await super().close()


@noticed_by(BrokerContract.test_messages_of_a_higher_priority_come_first)
class PriorityIsIgnored(MemoryBroker):
    async def publish(self, messages: Sequence[Message]) -> None:
        await super().publish([replace(message, priority=0) for message in messages])


@noticed_by(BrokerContract.test_close_gives_back_what_is_held_as_if_it_had_not_been_shown)
class CloseForgetsWhatIsHeld(MemoryBroker):
    async def close(self) -> None:
        self._is_open = False


@noticed_by(BrokerContract.test_close_gives_back_what_is_held_as_if_it_had_not_been_shown)
class CloseCountsWhatIsHeld(MemoryBroker):
    async def close(self) -> None:
        for held in self._store.messages._held.values():
            held.entry = replace(held.entry, attempt=held.entry.attempt + 1)
        await super().close()


@noticed_by(BrokerContract.test_close_leaves_alone_what_others_hold)
class CloseGivesBackWhatOthersHold(MemoryBroker):
    async def close(self) -> None:
        for held in self._store.messages._held.values():
            held.holder = self._holder
        await super().close()


@noticed_by(BrokerContract.test_capabilities_are_known_before_open)
class CapabilitiesNeedAService(MemoryBroker):
    @property
    def capabilities(self) -> Capabilities:
        assert self._is_open, "not connected"
        return super().capabilities


def _write_dead(broker: MemoryBroker, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
    messages, now = broker._store.messages, broker._now()
    for one in deliveries:
        dead = Dead(str(next(messages._numbers)), one.queue, one.body, reason, error, one.attempt, now)
        messages._queue(one.queue).dead[dead.id] = (dead, Message(one.body, one.queue, "task"))


def settled_one(broker: MemoryBroker, item: Settled, keep: float) -> list[Unsettled]:
    """Settle it without looking whose it is."""
    progress = broker._settle_one(item, keep, broker._now())
    return [] if progress is None else [Unsettled(item, progress)]


# inspectors


@noticed_by(InspectorContract.test_depth_counts_what_is_ready_held_delayed_and_dead)
class DepthForgetsWhatIsDelayed(MemoryBroker):
    async def depth(self, queue: str) -> QueueDepth:
        return replace(await super().depth(queue), delayed=0)


@noticed_by(InspectorContract.test_looking_takes_nothing_from_a_worker)
class PeekTakes(MemoryBroker):
    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        return [delivery.body for delivery in await self.fetch(queue, limit, 0)]


@noticed_by(InspectorContract.test_purge_drops_what_is_ready_and_nothing_else)
class PurgeDropsTheDelayedToo(MemoryBroker):
    async def purge(self, queue: str) -> int:
        self._store.messages._queue(queue).delayed.clear()
        return await super().purge(queue)


@noticed_by(InspectorContract.test_an_entry_is_requeued_once_however_many_try)
class RequeueLeavesTheEntry(MemoryBroker):
    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        entries = dict(self._store.messages._queue(queue).dead)
        count = await super().requeue(queue, ids)
        self._store.messages._queue(queue).dead = entries
        return count


@noticed_by(InspectorContract.test_what_a_service_cannot_show_is_refused_in_words)
class SaysThatItCannotShowWhatItShows(MemoryBroker):
    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, refused=frozenset({"peek"}))


@noticed_by(InspectorContract.test_the_dead_letter_shows_its_entries_oldest_first)
class DeadShowsTheNewestFirst(MemoryBroker):
    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        return list(reversed(await super().dead(queue, 1000)))[offset : offset + limit]


# joint stores


@noticed_by(JointContract.test_settle_changes_nothing_for_what_is_no_longer_ours)
class SettleAppliesWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        return [one for item in batch for one in settled_one(self, item, keep)]


@noticed_by(JointContract.test_settle_applies_what_is_ours_beside_what_is_not)
class SettleStopsAtWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        now = self._now()
        return await super().settle(
            list(itertools.takewhile(lambda item: self._store.messages.holds(item.delivery, now), batch)), keep
        )


@noticed_by(JointContract.test_a_delivery_that_comes_twice_in_a_batch_is_settled_once)
class SettleLooksOnceForTheWholeBatch(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        now = self._now()
        ours = [item for item in batch if self._store.messages.holds(item.delivery, now)]
        return [one for item in ours for one in settled_one(self, item, keep)]


@noticed_by(JointContract.test_settle_changes_nothing_for_what_another_has_now)
class SettleRecordsAnyway(MemoryBroker):
    """Only the message is fenced; the state is written whoever has it."""

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        states = [item.state for item in batch if item.state]
        self._store.states.put(states, keep, self._now())
        return await super().settle(batch, keep)


@noticed_by(JointContract.test_settle_does_not_take_back_a_final_state)
class SettleTakesBackAFinalState(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        unsettled = await super().settle(batch, keep)
        self._store.states.begin([item.state for item in batch if item.state], keep, self._now())
        return unsettled


@noticed_by(JointContract.test_settle_takes_pending_only_where_no_entry_is)
class SettleOverwritesWithPending(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        self._store.states.begin([one for item in batch for one in item.pending], keep, self._now())
        return await super().settle(batch, keep)


@noticed_by(JointContract.test_settle_can_give_back)
class SettleAcksWhatItShouldGiveBack(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        return await super().settle(
            [replace(one, verdict=Ack()) if isinstance(one.verdict, Nack) else one for one in batch], keep
        )


@noticed_by(JointContract.test_settle_can_give_back_with_a_delay)
class SettleForgetsTheDelay(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        return await super().settle(
            [replace(one, verdict=Nack()) if isinstance(one.verdict, Nack) else one for one in batch], keep
        )


@noticed_by(JointContract.test_settled_states_are_kept_as_long_as_asked)
class SettleForgetsHowLongToKeep(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        return await super().settle(batch, 1e9)


@noticed_by(JointContract.test_settle_keeps_what_it_publishes_until_it_is_due)
class SettlePublishesAtOnce(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        at_once = [tuple(replace(message, not_before=None) for message in item.publish) for item in batch]
        return await super().settle(
            [replace(item, publish=publish) for item, publish in zip(batch, at_once, strict=True)], keep
        )


@noticed_by(JointContract.test_who_fetches_a_submitted_message_finds_its_state)
class SubmitPublishesFirst(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await self.publish(messages)
        await a_moment()
        await super().submit(states, [], keep, **more)


@noticed_by(JointContract.test_a_repeated_submit_takes_back_no_state)
class SubmitTakesBackStates(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await super().submit(states, messages, keep, **more)
        self._store.states.begin(states, keep, self._now())


@noticed_by(JointContract.test_submit_starts_a_task_over_that_had_ended)
class SubmitDoesNotStartOver(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        self._store.states.put(states, keep, self._now())
        await super().submit([], messages, keep, **more)


@noticed_by(JointContract.test_a_repeated_submit_adds_no_second_copy)
class SubmitDoublesWhenRepeated(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await super().submit(states, [replace(message, token="") for message in messages], keep, **more)


# joint stores: groups and plans


@noticed_by(JointGroupContract.test_submit_records_groups_and_plans)
class SubmitForgetsPlans(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await super().submit(states, messages, keep, **more | {"plans": ()})


@noticed_by(JointGroupContract.test_who_fetches_a_submitted_message_finds_its_group_and_plan)
class SubmitOpensGroupsLast(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await super().submit(states, messages, keep)
        await a_moment()
        await super().submit([], [], keep, **more)


@noticed_by(JointGroupContract.test_a_repeated_submit_takes_back_no_progress)
class SubmitOpensGroupsAnew(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        self._store.groups.forget([group.group_uuid for group in more.get("groups", ())])
        await super().submit(states, messages, keep)
        await super().submit([], [], keep, **more)


@noticed_by(JointGroupContract.test_a_repeated_submit_takes_back_no_progress)
class SubmitTakesBackWhatIsNotPublished(MemoryBroker):
    """Knows a repetition by each message, but not those states that have none."""

    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        await super().submit(states, messages, keep, **more)
        ids = {message.id for message in messages}
        self._store.states.begin([state for state in states if state.task_uuid not in ids], keep, self._now())


@noticed_by(JointGroupContract.test_the_last_member_comes_back_and_stays_ours_and_nothing_is_published)
class SettlePublishesWithComplete(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        progress = super()._settle_one(item, keep, now)
        if progress is Progress.COMPLETE:
            self._publish(item.publish, now)
        return progress


@noticed_by(JointGroupContract.test_the_last_member_comes_back_and_stays_ours_and_nothing_is_published)
class SettleLetsGoWithComplete(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        progress = super()._settle_one(item, keep, now)
        if progress is Progress.COMPLETE:
            self._conclude(item.delivery, item.verdict, now)
        return progress


@noticed_by(JointGroupContract.test_a_settle_that_is_repeated_gives_back_what_came_back)
class SettleTellsCompleteOnce(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        progress = super()._settle_one(item, keep, now)
        if progress is Progress.COMPLETE and item.member:
            self._store.groups.end(item.member.group_id, keep, now)
        return progress


@noticed_by(JointGroupContract.test_a_group_without_an_entry_comes_back_as_lost)
class SettleLetsTheLostGo(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        unsettled = await super().settle(batch, keep)
        await self.ack([one.item.delivery for one in unsettled if one.progress is Progress.LOST])
        return [one for one in unsettled if one.progress is not Progress.LOST]


@noticed_by(JointGroupContract.test_an_item_that_comes_back_does_not_hold_up_the_others)
class SettleStopsAtWhatComesBack(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        for item in batch:
            if unsettled := await super().settle([item], keep):
                return unsettled
        return []


@noticed_by(JointGroupContract.test_states_are_recorded_before_the_member_is_counted)
class SettleCountsFirst(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.member and not item.end and (progress := self._store.groups.finish(item.member, now)):
            super()._settle_one(replace(item, member=None), keep, now)
            return progress if progress is Progress.COMPLETE else None
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_whoever_an_item_fails_counts_for_the_items_after_it)
class SettleLooksAtStatesOnceForTheBatch(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        states, groups = self._store.states, self._store.groups
        ended = {one for one in states._records if states.has_ended(one, self._now())}
        groups._has_ended = lambda task_id, now: task_id in ended
        return await super().settle(batch, keep)


@noticed_by(JointGroupContract.test_groups_that_settle_makes_are_kept_as_long_as_asked)
class SettleKeepsGroupsForEver(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        self._store.groups.open(item.opens, 1e9, now)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_what_is_no_longer_ours_changes_no_group_and_does_not_come_back)
class SettleCountsWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        for item in batch:
            if item.member:
                self._store.groups.finish(item.member, self._now())
        return await super().settle(batch, keep)


@noticed_by(JointGroupContract.test_what_is_no_longer_ours_changes_no_group_and_does_not_come_back)
class SettleReturnsWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        lost = [item for item in batch if not self._store.messages.holds(item.delivery, self._now())]
        return [*await super().settle(batch, keep), *(Unsettled(item, Progress.LOST) for item in lost)]


@noticed_by(JointGroupContract.test_an_item_that_came_back_and_was_lost_meanwhile_ends_nothing)
class SettleEndsWhatIsNotOurs(MemoryBroker):
    """The group is asked whether it is over, and the delivery is not."""

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        for end in [item.end for item in batch if item.end]:
            if self._store.groups.end(end.group_id, keep, self._now()):
                await self.publish(end.publish)
        return await super().settle(batch, keep)


@noticed_by(JointGroupContract.test_of_racing_ends_one_is_applied)
class SettleAppliesEveryEnd(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end:
            self._store.groups.end(item.end.group_id, keep, now)
            self._publish(item.end.publish, now)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_an_end_sends_once_and_lets_go)
class SettleLooksAtTheMemberBeforeTheEnd(MemoryBroker):
    """What comes back as COMPLETE comes back for ever."""

    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        without_end = replace(item, end=None)
        return super()._settle_one(without_end if item.member else item, keep, now)


@noticed_by(JointGroupContract.test_an_end_of_a_triggered_group_does_nothing_but_the_item_settles)
class SettleHoldsWhatComesTooLate(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end and self._is_triggered(item.end, now):
            return Progress.TRIGGERED
        return super()._settle_one(item, keep, now)

    def _is_triggered(self, end: GroupEnd, now: float) -> bool:
        return self._store.groups.finish(Member(end.group_id, ""), now) is Progress.TRIGGERED


@noticed_by(JointGroupContract.test_an_end_of_a_triggered_group_does_nothing_but_the_item_settles)
class SettleRecordsWhatComesTooLate(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end:
            self._record((*item.end.ended, *item.end.pending), keep, now)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_an_end_needs_no_complete_group)
class EndWaitsForTheOthers(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end and self._store.groups.finish(Member(item.end.group_id, ""), now) is Progress.WAITING:
            return super()._settle_one(replace(item, end=None), keep, now)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_an_end_of_a_group_without_an_entry_makes_one_that_is_triggered)
class EndNeedsAnEntry(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end and self._store.groups.get([item.end.group_id], now) == [None]:
            return super()._settle_one(replace(item, member=None, end=None), keep, now)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_an_end_of_a_group_without_an_entry_makes_one_that_is_triggered)
class EndLeavesNoEntry(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        was_there = item.end and self._store.groups.get([item.end.group_id], now) != [None]
        progress = super()._settle_one(item, keep, now)
        if item.end and not was_there:
            self._store.groups.forget([item.end.group_id])
        return progress


@noticed_by(JointGroupContract.test_a_claim_alone_does_not_keep_a_group_from_its_end)
class EndRespectsAClaim(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        (group,) = self._store.groups.get([item.end.group_id], now) if item.end else (None,)
        return super()._settle_one(replace(item, end=None) if group and group.chord_triggered else item, keep, now)


@noticed_by(JointGroupContract.test_messages_of_an_end_go_before_those_of_its_item)
class EndPublishesLast(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        if item.end is None:
            return super()._settle_one(item, keep, now)
        both = (*item.publish, *item.end.publish)
        return super()._settle_one(replace(item, publish=(), end=replace(item.end, publish=both)), keep, now)


@noticed_by(JointGroupContract.test_what_an_end_records_follows_the_rules)
class EndOverwritesFinalStates(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        progress = super()._settle_one(item, keep, now)
        self._store.states.begin(item.end.ended if item.end else (), keep, now)
        return progress


@noticed_by(JointGroupContract.test_ends_that_settle_records_end_watches)
class EndsOfOthersAreLost(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        return super()._settle_one(replace(item, ended=()), keep, now)


@noticed_by(JointGroupContract.test_of_20_racing_members_one_ends_the_group)
class CountsOverwriteEachOtherWhenSettled(MemoryBroker):
    """Asks how the group stands, and counts a moment later."""

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        without = [replace(item, member=None) for item in batch]
        groups = [self._store.groups.present(item.member.group_id, self._now()) for item in batch if item.member]
        are_last = [group is not None and len(group.unfinished) == 1 for group in groups]
        await asyncio.sleep(0)
        for item in batch:
            if item.member and (group := self._store.groups.present(item.member.group_id, self._now())):
                group.unfinished.discard(item.member.task_id)
        return await super().settle(batch if any(are_last) else without, keep)


@noticed_by(JointGroupContract.test_settle_opens_groups_only_where_no_entry_is)
class SettleOpensGroupsAnew(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        self._store.groups.forget([group.group_uuid for group in item.opens])
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_groups_are_opened_before_the_member_is_counted)
class SettleOpensGroupsLast(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        progress = super()._settle_one(replace(item, opens=()), keep, now)
        self._store.groups.open(item.opens, keep, now)
        return progress


@noticed_by(JointGroupContract.test_settle_keeps_a_family_alive)
class SettleLetsTheFamilyDie(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        return super()._settle_one(replace(item, alive=()), keep, now)


@noticed_by(JointGroupContract.test_a_family_is_kept_as_long_as_asked)
class SettleKeepsTheFamilyForEver(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        self._store.touch(item.alive, 1e9, now, None)
        return super()._settle_one(item, keep, now)


@noticed_by(JointGroupContract.test_a_family_is_kept_from_the_time_the_state_of_its_item_is_due)
class SettleKeepsTheFamilyFromNow(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        self._store.touch(item.alive, keep, now, None)
        return super()._settle_one(replace(item, alive=()), keep, now)


@noticed_by(JointGroupContract.test_a_family_is_kept_from_the_time_the_state_of_its_item_is_due)
class SettleTakesTheLatestDueTimeForAll(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        now = self._now()
        latest = max((item.state.not_before or now for item in batch if item.state), default=now)
        for item in batch:
            self._store.touch(item.alive, keep, now, latest)
        return await super().settle(batch, keep)


@noticed_by(JointGroupContract.test_groups_for_later_that_settle_opens_are_kept_from_the_time_they_are_due)
class SettleOpensGroupsFromNow(MemoryBroker):
    def _settle_one(self, item: Settled, keep: float, now: float) -> Progress | None:
        return super()._settle_one(replace(item, opens=tuple(from_now(group) for group in item.opens)), keep, now)


@noticed_by(JointGroupContract.test_submitted_groups_and_plans_for_later_are_kept_from_the_time_they_are_due)
class SubmitOpensGroupsFromNow(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float, **more: Any) -> None:
        groups = [from_now(group) for group in more.pop("groups")]
        await super().submit(states, messages, keep, groups=groups, **more)


# backends


@noticed_by(BackendContract.test_a_final_state_never_goes_back)
class PutTakesBackAFinalState(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        final = [state.task_uuid for state in states if state.state is not State.PENDING]
        self._store.states.forget(final)
        await super().put(states)


@noticed_by(BackendContract.test_a_final_state_never_goes_back)
class PutLetsAnotherFinalStateFollow(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        self._store.states.forget([state.task_uuid for state in states if state.is_completed])
        await super().put(states)


@noticed_by(BackendContract.test_a_put_keeps_an_entry_no_shorter_than_it_was)
class PutShortens(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        for each in states:
            if record := self._store.states.present(each.task_uuid, now):
                record.expires_at = now + self.results_expire_in
        await super().put(states)


@noticed_by(BackendContract.test_pending_is_put_only_where_no_entry_is)
class PutTakesPendingAnywhere(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        pending = [state.task_uuid for state in states if state.state is State.PENDING]
        found = await self.get(pending)
        old = [task_id for task_id, one in zip(pending, found, strict=True) if one and not one.is_completed]
        self._store.states.forget(old)
        await super().put(states)


@noticed_by(BackendContract.test_the_time_and_name_of_the_send_are_kept_where_a_state_does_not_say_them)
class PutForgetsTheSend(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        for state in states:
            (old,) = await self.get([state.task_uuid])
            if old and not old.is_completed and state.state is not State.PENDING:
                self._store.states.forget([state.task_uuid])
            await super().put([state])


@noticed_by(BackendContract.test_begin_replaces_whatever_was_there)
class BeginRespectsAFinalState(MemoryBackend):
    async def begin(self, states: Sequence[TaskState]) -> None:
        found = await self.get([state.task_uuid for state in states])
        await super().begin([new for new, old in zip(states, found, strict=True) if not (old and old.is_completed)])


@noticed_by(BackendContract.test_begin_keeps_nothing_of_the_entry_that_was_there)
class BeginKeepsTheOldName(MemoryBackend):
    async def begin(self, states: Sequence[TaskState]) -> None:
        found = await self.get([state.task_uuid for state in states])
        await super().begin(
            [
                new.model_copy(update={"task_name": old.task_name}) if old and not new.task_name else new
                for new, old in zip(states, found, strict=True)
            ]
        )


@noticed_by(BackendContract.test_get_answers_in_the_order_asked_with_none_where_there_is_no_entry)
class GetSkipsWhatIsMissing(MemoryBackend):
    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        return [state for state in await super().get(task_ids) if state]


@noticed_by(BackendContract.test_entries_are_gone_some_time_after_they_were_written)
class EntriesStayForEver(MemoryBackend):
    async def begin(self, states: Sequence[TaskState]) -> None:
        self._store.states.begin(states, 1e9, self._now())

    async def put(self, states: Sequence[TaskState]) -> None:
        self._store.states.put(states, 1e9, self._now())


@noticed_by(BackendContract.test_the_entry_of_a_task_for_later_is_kept_from_the_time_it_is_due)
class ExpiryDoesNotWaitForTheDueTime(MemoryBackend):
    async def begin(self, states: Sequence[TaskState]) -> None:
        await super().begin([state.model_copy(update={"not_before": None}) for state in states])


@noticed_by(BackendContract.test_how_long_entries_are_kept_may_be_changed_while_open)
class ExpiryIsFixedAtTheStart(MemoryBackend):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fixed = self.results_expire_in

    async def put(self, states: Sequence[TaskState]) -> None:
        asked, self.results_expire_in = self.results_expire_in, self._fixed
        await super().put(states)
        self.results_expire_in = asked


@noticed_by(BackendContract.test_every_write_keeps_an_entry_alive)
class ExpiryCountsFromTheFirstWrite(MemoryBackend):
    async def put(self, states: Sequence[TaskState]) -> None:
        records = self._store.states._records
        before = {state.task_uuid: records.get(state.task_uuid) for state in states}
        await super().put(states)
        for task_id, old in before.items():
            if old and task_id in records and old.expires_at > self._now():
                records[task_id] = replace(records[task_id], expires_at=old.expires_at)


@noticed_by(BackendContract.test_no_wake_up_is_lost_between_looking_and_waiting)
class WatchLooksBeforeItSubscribes(MemoryBackend):
    """Looks, goes away for a moment, and then waits for writes to come: one in between is never heard of."""

    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        written: asyncio.Queue[str] = asyncio.Queue()
        waiting = dict.fromkeys(task_ids)
        for task_id, state in zip(list(waiting), await self.get(list(waiting)), strict=True):
            if state is None or state.is_completed:
                del waiting[task_id]
                yield task_id, state
        await a_moment()

        def hear(task_ids: Sequence[str]) -> None:
            for one in task_ids:
                written.put_nowait(one)

        unsubscribe = self._store.subscribe(hear)
        try:
            while waiting:
                task_id = await written.get()
                if task_id in waiting:
                    del waiting[task_id]
                    yield task_id, (await self.get([task_id]))[0]
        finally:
            unsubscribe()


@noticed_by(BackendContract.test_what_another_process_writes_wakes_too)
class WatchHearsOfItsOwnWritesOnly(MemoryBackend):
    async def open(self) -> None:
        await super().open()
        assert self._waiters is not None
        self._waiters.pace(1e6, 1e6)
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def put(self, states: Sequence[TaskState]) -> None:
        await super().put(states)
        self._opened().changed([state.task_uuid for state in states])


@noticed_by(BackendContract.test_watch_waits_for_a_final_state)
class WatchEndsWithAnyState(MemoryBackend):
    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        for task_id, state in zip(task_ids, await self.get(task_ids), strict=True):
            yield task_id, state


@noticed_by(BackendContract.test_watch_gives_each_task_once_and_ends)
class WatchRepeatsItself(MemoryBackend):
    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        for task_id in task_ids:
            async for ending in super().watch([task_id]):
                yield ending


@noticed_by(BackendContract.test_watch_gives_none_where_there_is_no_entry)
class WatchWaitsForWhatIsNot(MemoryBackend):
    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        async for task_id, state in super().watch(task_ids):
            while state is None:
                await asyncio.sleep(0.05)
                (state,) = await self.get([task_id])
            yield task_id, state


@noticed_by(BackendContract.test_close_ends_watches_with_unavailable)
class CloseLeavesWatchersWaiting(MemoryBackend):
    async def close(self) -> None:
        if self._waiters is not None and self._waiters._task is not None:
            self._waiters._task.cancel()
        self._waiters = None


@noticed_by(BackendContract.test_close_ends_watches_with_unavailable)
class CloseEndsWatchesQuietly(MemoryBackend):
    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        try:
            async for ending in super().watch(task_ids):
                yield ending
        except Exception:
            return


# backends: groups and plans


@noticed_by(GroupContract.test_a_group_is_opened_only_where_no_entry_is)
class OpeningOverwrites(MemoryBackend):
    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        self._store.groups.forget([group.group_uuid for group in groups])
        await super().open_groups(groups)


@noticed_by(GroupContract.test_opening_again_takes_back_no_progress)
class OpeningStartsTheCountOver(MemoryBackend):
    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        for group in groups:
            if old := self._store.groups.present(group.group_uuid, self._now()):
                old.unfinished, old.unprobed = set(old.members), list(old.members)
        await super().open_groups(groups)


@noticed_by(GroupContract.test_groups_come_in_the_order_asked_with_none_where_there_is_no_entry)
class GroupsComeWithoutGaps(MemoryBackend):
    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        return [group for group in await super().get_groups(group_ids) if group]


@noticed_by(GroupContract.test_a_group_comes_back_whole)
class MembersComeSorted(MemoryBackend):
    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = await super().get_groups(group_ids)
        return [one and one.model_copy(update={"task_uuids": tuple(sorted(one.task_uuids or ()))}) for one in found]


@noticed_by(GroupContract.test_the_same_member_twice_counts_once)
class CountIsANumber(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        answers = []
        for member in members:
            if group := self._store.groups.present(member.group_id, self._now()):
                group.unfinished.discard(group.unprobed.pop() if group.unprobed else "")
                answers.append(Progress.WAITING if group.unprobed else Progress.COMPLETE)
        return answers


@noticed_by(GroupContract.test_who_is_no_member_counts_for_nothing)
class CountTakesAnybody(MemoryBackend):
    """A set of those who came, compared by its size."""

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        answers = []
        for member in members:
            came = self._store.__dict__.setdefault("came", {}).setdefault(member.group_id, set())
            came.add(member.task_id)
            group = self._store.groups.present(member.group_id, self._now())
            answers.append(Progress.COMPLETE if group and len(came) >= len(group.members) else Progress.WAITING)
        return answers


@noticed_by(GroupContract.test_a_member_whose_end_others_recorded_counts_as_well)
class CountHearsOfItsOwnOnly(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        self._store.groups._has_ended = lambda task_id, now: False
        return await super().finish_members(members)


@noticed_by(GroupContract.test_who_was_counted_stays_counted)
class CountLooksAtStatesOnly(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        for group in [self._store.groups.present(member.group_id, self._now()) for member in members]:
            if group:
                group.unfinished, group.unprobed = set(group.members), list(group.members)
        return await super().finish_members(members)


@noticed_by(GroupContract.test_a_failed_member_has_ended_as_well)
class CountTakesSuccessOnly(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        found = await self.get([member.task_id for member in members])
        failed = [state is not None and state.is_failure for state in found]
        return [
            Progress.WAITING if is_failed else (await super(CountTakesSuccessOnly, self).finish_members([member]))[0]
            for member, is_failed in zip(members, failed, strict=True)
        ]


@noticed_by(GroupContract.test_a_member_that_has_not_ended_is_waited_for)
class CountTakesWhatIsMissing(MemoryBackend):
    """A member without an entry is taken for one whose entry has expired."""

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        states = self._store.states
        self._store.groups._has_ended = lambda one, now: states.has_ended(one, now) or states.present(one, now) is None
        return await super().finish_members(members)


@noticed_by(GroupContract.test_of_20_racing_finishers_one_at_least_is_told_complete)
class CountsOverwriteEachOther(MemoryBackend):
    """Reads what is left, and writes it back a moment later."""

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        answers = []
        for member in members:
            kept = self._store.__dict__.setdefault("left", {})
            group = self._store.groups.present(member.group_id, self._now())
            left = set(kept.get(member.group_id, group.members if group else ())) - {member.task_id}
            await asyncio.sleep(0)
            kept[member.group_id] = left
            answers.append(Progress.WAITING if left else Progress.COMPLETE)
        return answers


@noticed_by(GroupContract.test_complete_is_told_until_what_follows_is_sent)
class CompleteIsToldOnce(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        told = self._store.__dict__.setdefault("told", set())
        answers = []
        for member, progress in zip(members, await super().finish_members(members), strict=True):
            is_old = progress is Progress.COMPLETE and member.group_id in told
            told |= {member.group_id} if progress is Progress.COMPLETE else set()
            answers.append(Progress.TRIGGERED if is_old else progress)
        return answers


@noticed_by(GroupContract.test_complete_is_told_until_what_follows_is_sent)
class CompleteEndsWithAClaim(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        answers = await super().finish_members(members)
        groups = await self.get_groups([member.group_id for member in members])
        return [
            Progress.TRIGGERED if group and group.chord_triggered else progress
            for group, progress in zip(groups, answers, strict=True)
        ]


@noticed_by(GroupContract.test_a_group_without_an_entry_is_lost)
class CountWaitsForTheLost(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        answers = await super().finish_members(members)
        return [Progress.WAITING if progress is Progress.LOST else progress for progress in answers]


@noticed_by(GroupContract.test_progress_is_told_in_the_order_asked)
class ProgressComesByGroup(MemoryBackend):
    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        return await super().finish_members(sorted(members, key=lambda member: member.group_id))


@noticed_by(GroupContract.test_members_are_appended_in_the_order_given)
class AddPutsInFront(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        group = self._store.groups.present(group_id, self._now())
        old = list(group.members) if group else []
        is_added = await super().add_members(group_id, task_ids)
        if group:
            group.members = dict.fromkeys([one for one in group.members if one not in old] + old)
        return is_added


@noticed_by(GroupContract.test_a_member_that_has_ended_is_not_waited_for_again)
class AddWaitsForTheEndedAgain(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        is_added = await super().add_members(group_id, task_ids)
        if group := self._store.groups.present(group_id, self._now()):
            group.unfinished.update(task_ids)
            group.unprobed.extend(task_ids)
        return is_added


@noticed_by(GroupContract.test_a_group_that_was_down_to_one_waits_for_the_added)
class AddWaitsForNobody(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        is_added = await super().add_members(group_id, task_ids)
        if group := self._store.groups.present(group_id, self._now()):
            group.unfinished.difference_update(task_ids)
        return is_added


@noticed_by(GroupContract.test_nobody_is_added_to_a_group_that_is_claimed_or_triggered)
class AddIgnoresWhatIsOver(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        await super().add_members(group_id, task_ids)
        return await self.get_groups([group_id]) != [None]


@noticed_by(GroupContract.test_nobody_is_added_to_a_group_that_is_complete)
class AddReopensWhatIsComplete(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        group = self._store.groups.present(group_id, self._now())
        if group and not group.is_triggered:
            group.unfinished.add("")
            group.unprobed.append("")
        is_added = await super().add_members(group_id, task_ids)
        if group:
            group.unfinished.discard("")
        return is_added


@noticed_by(GroupContract.test_nobody_is_added_to_a_group_without_an_entry)
class AddOpensAGroup(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        await self.open_groups([GroupMeta(group_uuid=group_id, task_uuids=("",))])
        return await super().add_members(group_id, task_ids)


@noticed_by(GroupContract.test_racing_additions_are_all_there)
class AdditionsOverwriteEachOther(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        group = self._store.groups.present(group_id, self._now())
        members = dict.fromkeys((*(group.members if group else ()), *task_ids))
        await asyncio.sleep(0)
        if group:
            group.members = members
        return group is not None


@noticed_by(GroupContract.test_a_group_that_was_added_to_is_touched_as_though_it_were_not)
class AdditionsKeepTheirGroup(MemoryBackend):
    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        now = self._now()
        self._store.groups.prolong([group_id], now + self.results_expire_in, now)
        return await super().add_members(group_id, task_ids)


@noticed_by(GroupContract.test_a_claim_is_one_owners)
class ClaimsAreEverybodys(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await super().claim_group(group_id, "everybody", ttl)


@noticed_by(GroupContract.test_a_claim_is_one_owners)
class ClaimsAreTakenFromTheirOwner(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await super().claim_group(group_id, f"{owner}-{id(self)}", ttl)


@noticed_by(GroupContract.test_a_claim_ends_with_its_time)
class ClaimsNeverEnd(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await super().claim_group(group_id, owner, 1e9)


@noticed_by(GroupContract.test_a_claim_of_the_same_owner_starts_its_time_anew)
class ClaimsKeepTheirFirstTime(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        group = self._store.groups.present(group_id, self._now())
        until = group.claimed_until if group and group.owner == owner else None
        claim = await super().claim_group(group_id, owner, ttl)
        if group and until:
            group.claimed_until = until
        return claim


@noticed_by(GroupContract.test_of_20_racing_claimers_one_gets_the_group)
class ClaimLooksThenTakes(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        group = self._store.groups.present(group_id, self._now())
        if group and group.owner not in (None, owner):
            return GroupClaim.TAKEN
        await asyncio.sleep(0)
        if group:
            group.is_triggered, group.owner = False, None
        return await super().claim_group(group_id, owner, ttl)


@noticed_by(GroupContract.test_other_programs_see_a_claimed_group_as_triggered)
class ClaimsAreASecret(MemoryBackend):
    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = await super().get_groups(group_ids)
        return [one and one.model_copy(update={"chord_triggered": False}) for one in found]


@noticed_by(GroupContract.test_what_another_program_triggered_is_sent)
class ClaimIgnoresOtherPrograms(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        if (group := self._store.groups.present(group_id, self._now())) and group.meta.chord_triggered:
            group.is_triggered = False
        return await super().claim_group(group_id, owner, ttl)


@noticed_by(GroupContract.test_a_claim_of_a_group_without_an_entry_makes_one_that_has_no_members)
class ClaimNeedsAnEntry(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        if await self.get_groups([group_id]) == [None]:
            return GroupClaim.SENT
        return await super().claim_group(group_id, owner, ttl)


@noticed_by(GroupContract.test_a_claim_of_a_group_without_an_entry_makes_one_that_has_no_members)
class ClaimLeavesNoEntry(MemoryBackend):
    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        was_there = await self.get_groups([group_id]) != [None]
        claim = await super().claim_group(group_id, owner, ttl)
        if not was_there:
            self._store.groups.forget([group_id])
        return claim


@noticed_by(GroupContract.test_what_was_marked_as_sent_nobody_can_claim)
class MarkDoesNothing(MemoryBackend):
    async def mark_group_sent(self, group_id: str) -> None:
        pass


@noticed_by(GroupContract.test_what_was_marked_as_sent_nobody_can_claim)
class MarkGivesTheClaimBack(MemoryBackend):
    async def mark_group_sent(self, group_id: str) -> None:
        if group := self._store.groups.present(group_id, self._now()):
            group.is_triggered, group.owner = False, None


@noticed_by(GroupContract.test_a_mark_needs_no_claim)
class MarkNeedsAClaim(MemoryBackend):
    async def mark_group_sent(self, group_id: str) -> None:
        if (group := self._store.groups.present(group_id, self._now())) and group.owner:
            await super().mark_group_sent(group_id)


@noticed_by(GroupContract.test_a_mark_needs_no_entry)
class MarkNeedsAnEntry(MemoryBackend):
    async def mark_group_sent(self, group_id: str) -> None:
        if await self.get_groups([group_id]) != [None]:
            await super().mark_group_sent(group_id)


@noticed_by(GroupContract.test_of_a_plan_the_last_write_wins)
class PlansKeepTheFirstWrite(MemoryBackend):
    async def put_plans(self, plans: Sequence[Plan]) -> None:
        found = await self.get_plans([plan.plan_id for plan in plans])
        await super().put_plans([plan for plan, old in zip(plans, found, strict=True) if old is None])


@noticed_by(GroupContract.test_a_plan_comes_back_whole)
class PlansForgetWhatIsInThem(MemoryBackend):
    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        return [plan and replace(plan, ids=()) for plan in await super().get_plans(plan_ids)]


@noticed_by(GroupContract.test_what_was_forgotten_is_gone)
class ForgetKnowsTasksOnly(MemoryBackend):
    async def forget(self, task_ids: Sequence[str]) -> None:
        self._store.states.forget(task_ids)


@noticed_by(GroupContract.test_a_forgotten_group_starts_over)
class ForgetLeavesTheClaim(MemoryBackend):
    """Drops the entry, and not what stands beside it."""

    async def forget(self, task_ids: Sequence[str]) -> None:
        kept = self._store.__dict__.setdefault("kept", {})
        kept |= {one: group for one in task_ids if (group := self._store.groups.present(one, self._now()))}
        await super().forget(task_ids)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        await super().open_groups(groups)
        self._store.groups._records.update(self._store.__dict__.get("kept", {}))


@noticed_by(GroupContract.test_forgetting_a_group_leaves_its_members)
class ForgetTakesTheMembersToo(MemoryBackend):
    async def forget(self, task_ids: Sequence[str]) -> None:
        members = [one for group_id in task_ids for one in self._store.groups.members(group_id, self._now())]
        await super().forget([*task_ids, *members])


@noticed_by(GroupContract.test_groups_and_plans_are_gone_some_time_after_they_were_written)
class PlansStayForEver(MemoryBackend):
    async def put_plans(self, plans: Sequence[Plan]) -> None:
        self._store.plans.put(plans, 1e9, self._now())


@noticed_by(GroupContract.test_groups_and_plans_for_later_are_kept_from_the_time_they_are_due)
class GroupsAreKeptFromNow(MemoryBackend):
    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        await super().open_groups([from_now(group) for group in groups])


@noticed_by(GroupContract.test_groups_and_plans_for_later_are_kept_from_the_time_they_are_due)
class PlansAreKeptFromNow(MemoryBackend):
    async def put_plans(self, plans: Sequence[Plan]) -> None:
        await super().put_plans([replace(plan, not_before=None) for plan in plans])


@noticed_by(GroupContract.test_when_a_group_or_plan_is_due_is_not_written)
class GroupsTellWhenTheyAreDue(MemoryBackend):
    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        kept = [self._store.groups.present(group_id, self._now()) for group_id in group_ids]
        return [group.meta if group else None for group in kept]


@noticed_by(GroupContract.test_touch_keeps_a_family_from_the_time_it_is_due)
class TouchKeepsFromNow(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch(families)


@noticed_by(GroupContract.test_what_was_due_before_is_touched_as_though_it_were_written_now)
class TouchKeepsFromTheDueTimeOnly(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        if not_before is None or not_before > self._now():
            await super().touch(families, not_before)


@noticed_by(GroupContract.test_nothing_is_done_where_the_first_of_a_family_would_be_kept_but_little_longer)
class TouchLooksAtTheTimeLeftFromNow(MemoryBackend):
    """What has most of its time left from now on is not touched, however much later it is due."""

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        fresh = self._now() + 0.75 * self.results_expire_in
        stale = [family for family in families if self._store.states.expires_at(family[0]) <= fresh]
        await super().touch(stale, not_before)


@noticed_by(GroupContract.test_nothing_is_done_where_the_first_of_a_family_would_be_kept_but_little_longer)
class TouchTouchesForLittle(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([["", *family] for family in families], not_before)


@noticed_by(GroupContract.test_touch_keeps_nothing_for_later_shorter_than_it_was)
class TouchShortensWhatIsForLater(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now, until = self._now(), max(self._now(), not_before or 0) + self.results_expire_in
        for shelf in (self._store.states, self._store.groups, self._store.plans):
            for record in [shelf.present(one, now) for family in families for one in family]:
                if record is not None:
                    record.expires_at = until


@noticed_by(GroupContract.test_touch_keeps_a_family_as_though_it_were_written_now)
class TouchDoesNothing(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        pass


@noticed_by(GroupContract.test_touch_keeps_a_family_as_though_it_were_written_now)
class TouchStopsAtTheFirst(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([family[:1] for family in families], not_before)


@noticed_by(GroupContract.test_touch_keeps_nothing_shorter_than_it_was)
class TouchShortens(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now = self._now()
        for task_id in [one for family in families for one in family]:
            if record := self._store.states.present(task_id, now):
                record.expires_at = now + self.results_expire_in
        await super().touch(families, not_before)


@noticed_by(GroupContract.test_a_touched_group_stands_for_its_members_too)
class TouchLeavesMembers(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now, until = self._now(), self._now() + self.results_expire_in
        for shelf in (self._store.states, self._store.groups, self._store.plans):
            for family in families:
                shelf.prolong(family, until, now)


@noticed_by(GroupContract.test_a_touched_plan_stands_for_all_that_is_in_it)
class TouchLeavesWhatIsInPlans(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([[one for one in family if not one.startswith("plan_")] for family in families], not_before)


@noticed_by(GroupContract.test_nothing_is_done_where_the_first_of_a_family_has_most_of_its_time_left)
class TouchAlwaysTouches(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([["", *family] for family in families], not_before)


@noticed_by(GroupContract.test_touch_takes_unknown_ones)
class TouchNeedsTheFirst(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([family for family in families if await self.get(family[:1]) != [None]], not_before)


@noticed_by(GroupContract.test_families_do_not_concern_each_other)
class TouchTakesAllForOneFamily(MemoryBackend):
    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await super().touch([[one for family in families for one in family]], not_before)


# locks


@noticed_by(LockContract.test_while_somebody_has_a_key_nobody_else_gets_it)
class LockIsNone(MemoryLock):
    async def acquire(self, key: str, ttl: float) -> str | None:
        self._store.locks.pop(key, None)
        return await super().acquire(key, ttl)


@noticed_by(LockContract.test_of_20_racers_one_gets_the_key)
class LockLooksThenTakes(MemoryLock):
    async def acquire(self, key: str, ttl: float) -> str | None:
        if self._holder(key, self._now()):
            return None
        await asyncio.sleep(0)
        self._store.locks.pop(key, None)
        return await super().acquire(key, ttl)


@noticed_by(LockContract.test_a_lock_ends_with_its_time)
class LockNeverEnds(MemoryLock):
    async def acquire(self, key: str, ttl: float) -> str | None:
        return await super().acquire(key, 1e9)


@noticed_by(LockContract.test_a_wrong_token_releases_nothing)
class ReleaseTakesAnyToken(MemoryLock):
    async def release(self, key: str, token: str) -> bool:
        return self._store.locks.pop(key, None) is not None


@noticed_by(LockContract.test_what_was_released_can_be_taken_at_once)
class ReleaseSaysAlwaysYes(MemoryLock):
    async def release(self, key: str, token: str) -> bool:
        await super().release(key, token)
        return True


@noticed_by(LockContract.test_a_wrong_token_renews_nothing)
class RenewTakesAnyToken(MemoryLock):
    async def renew(self, key: str, token: str, ttl: float) -> bool:
        holder = self._holder(key, self._now())
        return bool(holder) and await super().renew(key, holder or "", ttl)


@noticed_by(LockContract.test_renew_starts_the_time_anew)
class RenewDoesNothing(MemoryLock):
    async def renew(self, key: str, token: str, ttl: float) -> bool:
        return self._holder(key, self._now()) == token


@noticed_by(LockContract.test_a_token_whose_time_is_over_holds_nothing)
class RenewTakesWhatIsOver(MemoryLock):
    async def renew(self, key: str, token: str, ttl: float) -> bool:
        if not self._holder(key, self._now()):
            self._store.locks[key] = Locked(token, self._now() + ttl)
        return await super().renew(key, token, ttl)


@noticed_by(LockContract.test_a_token_is_never_given_out_twice)
class TokensRepeat(MemoryLock):
    async def acquire(self, key: str, ttl: float) -> str | None:
        if await super().acquire(key, ttl) is None:
            return None
        self._store.locks[key] = Locked("me", self._now() + ttl)
        return "me"


@noticed_by(LockContract.test_a_lock_outlives_the_instance_that_took_it)
class LockEndsWithItsInstance(MemoryLock):
    async def close(self) -> None:
        self._store.locks.clear()
        await super().close()


@noticed_by(TurnLockContract.test_of_20_racers_one_gets_the_turn)
class TurnsAreEverybodys(MemoryLock):
    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        return await super().claim(turn, "everybody", now_ns, ttl)


@noticed_by(TurnLockContract.test_an_owner_whose_time_is_over_loses_the_turn)
class OwnersNeverLoseTheirTurn(MemoryLock):
    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        return await super().claim(turn, owner, now_ns, 1e9)


@noticed_by(TurnLockContract.test_a_finished_turn_is_over_for_everybody)
class FinishedTurnsAreForgotten(MemoryLock):
    async def finish(self, turn: Turn, *, sent: bool) -> None:
        self._store.turns.pop(turn.key, None)


@noticed_by(TurnLockContract.test_a_turn_is_owed_until_it_is_finished)
class NothingIsOwed(MemoryLock):
    async def owed(self, key: str) -> Sequence[int]:
        return []


@noticed_by(TurnLockContract.test_a_turn_that_is_owed_is_taken_over_after_later_ones_are_over)
class LaterTurnsEndEarlierOnes(MemoryLock):
    async def finish(self, turn: Turn, *, sent: bool) -> None:
        await super().finish(turn, sent=sent)
        self._store.turns[turn.key].claims.clear()


@noticed_by(TurnLockContract.test_the_last_turn_never_goes_back)
class LastTurnGoesBack(MemoryLock):
    async def finish(self, turn: Turn, *, sent: bool) -> None:
        await super().finish(turn, sent=sent)
        self._store.turns[turn.key].last = LastTurn(turn.due_at, turn.due_at if sent else None)


def from_now(group: GroupMeta) -> GroupMeta:
    """The group, as though it were due."""
    return group.model_copy(update={"not_before": None})


# how a mutant is tested


class OnMemory:
    """What the suites are told about how to make drivers: one of them is the mutant."""

    def __init__(self, *, patience: float, mutant: type[Any] | None = None) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.patience = patience
        self._mutant = mutant or object

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def make_broker(self) -> MemoryBroker:
        return self._kind(MemoryBroker)(self.store, lease=10.0, clock=self.clock)

    async def make_backend(self, results_expire_in: float = 3600.0) -> MemoryBackend:
        return self._kind(MemoryBackend)(self.store, results_expire_in=results_expire_in, clock=self.clock)

    async def make_lock(self) -> MemoryLock:
        return self._kind(MemoryLock)(self.store, clock=self.clock)

    def _kind(self, right: type[T]) -> type[T]:
        mutant: Any = self._mutant
        return mutant if issubclass(mutant, right) else right


def suite(contract: type[Any], *, patience: float, mutant: type[Any] | None = None) -> Any:
    """The contract's suite, as it is made for one test."""
    return type(contract.__name__, (OnMemory, contract), {})(patience=patience, mutant=mutant)


def run(made: Any, test: str) -> None:
    """One test of a suite, from its preparation to its end, in an event loop of its own."""

    async def story() -> None:
        await made.prepare()
        try:
            await getattr(made, test)()
        finally:
            await made.clean_up()

    asyncio.run(story())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.kind.__name__)
def test_a_mutant_is_noticed(mutant: Mutant) -> None:
    with pytest.raises((AssertionError, Failed, AsyncQueueError)):
        run(suite(mutant.contract, patience=IMPATIENCE, mutant=mutant.kind), mutant.test)


@pytest.mark.parametrize(
    ("contract", "test"),
    sorted({(mutant.contract, mutant.test) for mutant in MUTANTS}, key=str),
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_driver_that_is_right_passes_the_same_tests(contract: type[Any], test: str) -> None:
    run(suite(contract, patience=30.0), test)


def test_there_are_mutants_of_every_contract() -> None:
    assert {mutant.contract for mutant in MUTANTS} == set(CONTRACTS)
