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

from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Ack, Capabilities, Dead, Delivery, Message, Nack, QueueDepth, Settled
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import NANOSECONDS
from asyncqueue.connections.memory import Locked, MemoryStore
from asyncqueue.errors import AsyncQueueError, Refused
from asyncqueue.locks.base import Claim, LastTurn, Turn
from asyncqueue.locks.memory import MemoryLock
from asyncqueue.state import State, TaskState
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    InspectorContract,
    JointContract,
    LockContract,
    ManualClock,
    TurnLockContract,
)

CONTRACTS = (BrokerContract, InspectorContract, JointContract, BackendContract, LockContract, TurnLockContract)
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


@noticed_by(InspectorContract.test_the_dead_letter_shows_its_entries_oldest_first)
class DeadShowsTheNewestFirst(MemoryBroker):
    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        return list(reversed(await super().dead(queue, 1000)))[offset : offset + limit]


# joint stores


@noticed_by(JointContract.test_settle_changes_nothing_for_what_is_no_longer_ours)
class SettleAppliesWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        for item in batch:
            self._settle_one(item, keep, self._now())


@noticed_by(JointContract.test_settle_applies_what_is_ours_beside_what_is_not)
class SettleStopsAtWhatIsNotOurs(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        now = self._now()
        await super().settle(
            list(itertools.takewhile(lambda item: self._store.messages.holds(item.delivery, now), batch)), keep
        )


@noticed_by(JointContract.test_a_delivery_that_comes_twice_in_a_batch_is_settled_once)
class SettleLooksOnceForTheWholeBatch(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        now = self._now()
        ours = [item for item in batch if self._store.messages.holds(item.delivery, now)]
        for item in ours:
            self._settle_one(item, keep, now)


@noticed_by(JointContract.test_settle_changes_nothing_for_what_another_has_now)
class SettleRecordsAnyway(MemoryBroker):
    """Only the message is fenced; the state is written whoever has it."""

    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        states = [item.state for item in batch if item.state]
        self._store.states.put(states, keep, self._now())
        await super().settle(batch, keep)


@noticed_by(JointContract.test_settle_does_not_take_back_a_final_state)
class SettleTakesBackAFinalState(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        await super().settle(batch, keep)
        self._store.states.begin([item.state for item in batch if item.state], keep, self._now())


@noticed_by(JointContract.test_settle_takes_pending_only_where_no_entry_is)
class SettleOverwritesWithPending(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        self._store.states.begin([one for item in batch for one in item.pending], keep, self._now())
        await super().settle(batch, keep)


@noticed_by(JointContract.test_settle_can_give_back)
class SettleAcksWhatItShouldGiveBack(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        await super().settle(
            [replace(one, verdict=Ack()) if isinstance(one.verdict, Nack) else one for one in batch], keep
        )


@noticed_by(JointContract.test_settle_can_give_back_with_a_delay)
class SettleForgetsTheDelay(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        await super().settle(
            [replace(one, verdict=Nack()) if isinstance(one.verdict, Nack) else one for one in batch], keep
        )


@noticed_by(JointContract.test_settled_states_are_kept_as_long_as_asked)
class SettleForgetsHowLongToKeep(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        await super().settle(batch, 1e9)


@noticed_by(JointContract.test_settle_keeps_what_it_publishes_until_it_is_due)
class SettlePublishesAtOnce(MemoryBroker):
    async def settle(self, batch: Sequence[Settled], keep: float) -> None:
        at_once = [tuple(replace(message, not_before=None) for message in item.publish) for item in batch]
        await super().settle(
            [replace(item, publish=publish) for item, publish in zip(batch, at_once, strict=True)], keep
        )


@noticed_by(JointContract.test_who_fetches_a_submitted_message_finds_its_state)
class SubmitPublishesFirst(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float) -> None:
        await self.publish(messages)
        await a_moment()
        await super().submit(states, [], keep)


@noticed_by(JointContract.test_a_repeated_submit_takes_back_no_state)
class SubmitTakesBackStates(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float) -> None:
        await super().submit(states, messages, keep)
        self._store.states.begin(states, keep, self._now())


@noticed_by(JointContract.test_submit_starts_a_task_over_that_had_ended)
class SubmitDoesNotStartOver(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float) -> None:
        self._store.states.put(states, keep, self._now())
        await super().submit([], messages, keep)


@noticed_by(JointContract.test_a_repeated_submit_adds_no_second_copy)
class SubmitDoublesWhenRepeated(MemoryBroker):
    async def submit(self, states: Sequence[TaskState], messages: Sequence[Message], keep: float) -> None:
        await super().submit(states, [replace(message, token="") for message in messages], keep)


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


# how a mutant is tested


class OnMemory:
    """What the suites are told about how to make drivers: one of them is the mutant."""

    def __init__(self, *, patience: float, mutant: type[Any] | None = None) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.patience = patience
        self.knows_priorities = True
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
