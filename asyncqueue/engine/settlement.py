"""What a batch of ended deliveries changes, in which order, and why it is safe to do twice."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, assert_never

from asyncqueue.backends.base import Backend, GroupClaim, Progress
from asyncqueue.brokers.base import (
    Ack,
    Broker,
    Bury,
    Delivery,
    GroupEnd,
    JointStore,
    Message,
    Nack,
    Settled,
    Unsettled,
)
from asyncqueue.clock import Clock
from asyncqueue.engine.following import group_completed, group_failed
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.over import over, over_again
from asyncqueue.engine.watching import begun, concluded
from asyncqueue.signature import Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.wire import decode_signature, readable_task_id
from asyncqueue.workflow import OVER, is_companion, is_of_go

T = TypeVar("T")

CLAIM_TTL = 30.0
"""How long (seconds) the owner of a group's end has for sending before another may."""

BUSY_PAUSE = 0.003
"""How long (seconds) to wait for another program that is about to trigger a group."""

MEMBERS_AT_ONCE = 1_000
"""The most states of a group that are read in one call."""

MOST_GROUPS_KNOWN = 10_000
"""Of so many groups it is remembered that they have a watch. Of others, one may be sent that ends at its first look."""

Submission = Callable[[], Awaitable[None]]
"""A step that records PENDING, then publishes. Raises ``Unavailable``: then the same step may be asked for again. It
begins no state anew that it has begun: the task may have ended in the meantime."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is written and published together for one send: groups, plans and PENDING states before the messages."""

    states: Sequence[TaskState] = ()
    messages: Sequence[Message] = ()
    groups: Sequence[GroupMeta] = ()
    plans: Sequence[Plan] = ()


class Settlement(Protocol):
    """Makes a batch of ``Settled`` true in the stores. Safe to repeat after any error."""

    async def settle(self, batch: Sequence[Settled]) -> Sequence[Unsettled]:
        """Returns when all of it is done but for the items that it returns: see ``JointStore.settle``. Raises
        ``Unavailable``: then some of it may be done, and all of it may be asked for again."""

    @property
    def is_atomic(self) -> bool:
        """Whether a task that has a state was sent: both come in one step."""

    def submission(self, work: Outgoing) -> Submission:
        """The step that sends this."""

    async def offer(self, work: Outgoing) -> bool:
        """Send this unless it was sent before, by whomever; whether it was sent now. Its first state tells.

        For senders that all have the same messages with the same tokens. Safe to repeat. Raises ``Unavailable``.
        """


class OrderedSettlement:
    """For any broker and any backend: record, then count, then callbacks, then ack. One batched call each.

    The worker may die between any two of them: the message is not acked, comes back, its state is looked up, the
    function is not run again, and the same callbacks (their UUIDs are fixed) are sent again; their receivers look
    their own state up before they run. What follows a group is claimed, sent and marked as sent, in this order; a
    claim whose owner died is claimed anew.
    """

    def __init__(self, broker: Broker, backend: Backend | None) -> None:
        self._broker = broker
        self._backend = backend
        self._max_batch = broker.capabilities.max_batch

    async def settle(self, batch: Sequence[Settled]) -> Sequence[Unsettled]:
        unsettled: Sequence[Unsettled] = ()
        if self._backend is not None:
            await self._record(self._backend, batch)
            unsettled = await self._group_matters(self._backend, batch)
        ready = batch
        if unsettled:
            held = {id(each.item) for each in unsettled}
            ready = [item for item in batch if id(item) not in held]
        await self._publish([message for item in ready for message in item.publish])
        await self._let_go(ready)
        return unsettled

    @property
    def is_atomic(self) -> bool:
        return False

    def submission(self, work: Outgoing) -> Submission:
        backend = self._backend
        is_begun = backend is None

        async def submit() -> None:
            nonlocal is_begun
            if backend is not None and not is_begun:
                await _prepare(backend, work)
                if work.states:
                    await backend.begin(work.states)
                is_begun = True
            await self._publish(work.messages)

        return submit

    async def offer(self, work: Outgoing) -> bool:
        if self._backend is not None:
            (known,) = await self._backend.get([work.states[0].task_uuid])
            if known is not None and known.state is not State.PENDING:
                return False
            await _prepare(self._backend, work)
            await self._backend.put(work.states)  # unlike begin, it takes back nothing that came in between
        await self._publish(work.messages)
        return True

    async def _record(self, backend: Backend, batch: Sequence[Settled]) -> None:
        states = [state for item in batch for state in (item.state, *item.ended, *item.pending) if state is not None]
        if states:
            await backend.put(states)
        groups = [group for item in batch for group in item.opens]
        if groups:
            await backend.open_groups(groups)
        families = [item.alive for item in batch if item.alive]
        if families:
            moments = [item.state.not_before or 0.0 for item in batch if item.alive and item.state is not None]
            await backend.touch(families, max(moments, default=0.0) or None)

    async def _group_matters(self, backend: Backend, batch: Sequence[Settled]) -> Sequence[Unsettled]:
        """Count members and end groups; returns the items that this leaves to be settled again."""
        unsettled: list[Unsettled] = []
        members = [(item, item.member) for item in batch if item.member is not None]
        if members:
            counted = await backend.finish_members([member for _, member in members])
            unsettled += [
                Unsettled(item, progress)
                for (item, _), progress in zip(members, counted, strict=True)
                if progress in (Progress.COMPLETE, Progress.LOST, Progress.BUSY)
            ]
        claims: dict[str, GroupClaim] = {}
        for item in batch:
            if item.end is None:
                continue
            if claims.get(item.end.group_id, GroupClaim.TAKEN) is GroupClaim.TAKEN:  # by another one here, it may be
                claims[item.end.group_id] = await self._claimed(backend, item, item.end)
            if claims[item.end.group_id] is GroupClaim.BUSY:
                unsettled.append(Unsettled(item, Progress.BUSY))
        return unsettled

    async def _claimed(self, backend: Backend, item: Settled, end: GroupEnd) -> GroupClaim:
        """What became of the claim of a group; where it was ours, what follows is sent."""
        # the same at each showing of the message, so that whoever is shown it next goes on with the claim
        owner = readable_task_id(item.delivery.body) or str(item.delivery.receipt)
        claim = await backend.claim_group(end.group_id, owner, CLAIM_TTL)
        if claim is GroupClaim.MINE:
            await backend.put((*end.ended, *end.pending))
            await self._publish(end.publish)
            await backend.mark_group_sent(end.group_id)
        # TAKEN: its owner holds its own message until it has sent; if it dies, that message comes back and sends
        return claim

    async def _publish(self, messages: Sequence[Message]) -> None:
        await in_parts(messages, self._max_batch, self._broker.publish)

    async def _let_go(self, batch: Sequence[Settled]) -> None:
        acked: list[Delivery] = []
        given_back: dict[float, list[Delivery]] = {}
        buried: dict[tuple[str, str], list[Delivery]] = {}
        for item in batch:
            match item.verdict:
                case Ack():
                    acked.append(item.delivery)
                case Nack(delay):
                    given_back.setdefault(delay, []).append(item.delivery)
                case Bury(reason, error):
                    buried.setdefault((reason, error), []).append(item.delivery)
                case never:
                    assert_never(never)
        await in_parts(acked, self._max_batch, self._broker.ack)
        for delay, deliveries in given_back.items():
            await self._broker.nack(deliveries, delay=delay)
        for (reason, error), deliveries in buried.items():
            await self._broker.bury(deliveries, reason, error)


class AtomicSettlement:
    """For a broker and a backend that are one store: the whole batch in one step.

    Each item applies only if its own message was still held by us, so a batch repeated after a lost reply changes
    nothing, and callbacks and retries are sent exactly once.
    """

    def __init__(self, broker: Broker, store: JointStore, backend: Backend) -> None:
        self._broker = broker
        self._store = store
        self._backend = backend
        self._max_batch = broker.capabilities.max_batch

    async def settle(self, batch: Sequence[Settled]) -> Sequence[Unsettled]:
        unsettled: list[Unsettled] = []
        for part in parts(batch, self._max_batch):
            unsettled += await self._store.settle(part, self._backend.results_expire_in)
        return unsettled

    @property
    def is_atomic(self) -> bool:
        return True

    def submission(self, work: Outgoing) -> Submission:
        return lambda: self._submit(work)

    async def offer(self, work: Outgoing) -> bool:
        (known,) = await self._backend.get([work.states[0].task_uuid])
        if known is not None:
            return False
        # whoever was faster since that look used the same tokens, so this changes nothing
        await self._submit(work)
        return True

    async def _submit(self, work: Outgoing) -> None:
        if not (work.states or work.groups or work.plans):  # what was submitted before: the tokens tell a second copy
            await in_parts(work.messages, self._max_batch, self._broker.publish)
            return
        keep = self._backend.results_expire_in
        await self._store.submit(work.states, work.messages, keep, groups=work.groups, plans=work.plans)


class WholeSettlement:
    """Brings every item to its end: one that closes its group is settled again, with what follows the group.

    Where a worker in Go may be shown the message next, that is left to an ``aq.over``: see ``engine/over.py``. The
    first item of a group that a client in Go has sent brings it its watch: see ``engine/watching.py``.
    """

    def __init__(self, inner: Settlement, backend: Backend | None, *, rules: Callable[[], Rules], clock: Clock) -> None:
        self._inner = inner
        self._backend = backend
        self._rules = rules
        self._clock = clock
        self._watched: OrderedDict[str, None] = OrderedDict()

    async def settle(self, batch: Sequence[Settled]) -> None:
        """Returns when all of it is done. Raises ``Unavailable``: then some of it may be done, and all of it may be
        asked for again."""
        new: dict[str, None] = {}
        if self._rules().go_compat and self._backend is not None:
            batch = [self._concluding(self._left_over(self._with_watch(item, new))) for item in batch]
        unsettled = await self._inner.settle(batch)
        while unsettled:
            if any(each.progress is Progress.BUSY for each in unsettled):
                await asyncio.sleep(BUSY_PAUSE)
            unsettled = await self._inner.settle(await self._with_ends(unsettled))
        self._watched.update(new)  # not before: what failed is settled again, with its watches
        while len(self._watched) > MOST_GROUPS_KNOWN:
            self._watched.popitem(last=False)

    def _with_watch(self, item: Settled, new: dict[str, None]) -> Settled:
        """A member of a group that Go's client has sent, with the watch of that; the first one only that ends here."""
        group = item.member or item.end
        group_id = "" if group is None else group.group_id
        if not group_id or group_id in self._watched or group_id in new or is_companion(item.delivery.queue):
            return item
        new[group_id] = None
        member = decode_signature(item.delivery.body, self._rules().limits)
        if member.chord_callback is None or not is_of_go(group_id, member.chord_callback):
            return item
        watch, states = begun(member, self._rules(), self._clock.now_ns())
        return replace(item, publish=(*item.publish, watch), pending=(*item.pending, *states))

    def _concluding(self, item: Settled) -> Settled:
        """An item that ends a group beside Go, with the end of what looks after that."""
        if item.end is None or not self._rules().go_compat:
            return item
        return replace(item, end=replace(item.end, ended=(*item.end.ended, concluded(item.end.group_id))))

    async def _with_ends(self, unsettled: Sequence[Unsettled]) -> Sequence[Settled]:
        """Of the members that ended a group together one looks what follows it: if each of them did, all would read
        the results of all. Where that has to be claimed, each of them may be the one that has the claim already."""
        again: list[Settled] = []
        ends: dict[str, GroupEnd | None] = {}
        for item, progress in ((each.item, each.progress) for each in unsettled):
            if progress is Progress.BUSY or item.member is None or self._backend is None:
                again.append(item)
                continue
            group_id = item.member.group_id
            if group_id in ends:
                again.append(replace(item, member=None, end=ends[group_id]))
            else:
                again.append(await self._with_end(self._backend, item, group_id))
                ends[group_id] = None if self._inner.is_atomic else again[-1].end
        return again

    async def _with_end(self, backend: Backend, item: Settled, group_id: str) -> Settled:
        # who closes a group is one of many, so reading its message again costs the others nothing
        signature = decode_signature(item.delivery.body, self._rules().limits)
        if self._is_left_to_companion(item):
            return self._with_over(replace(item, member=None), signature, "")
        end = await self._end_of(backend, group_id, signature)
        if end is None:
            again = over_again(signature, self._clock.now_ns())
            return replace(item, member=None, publish=(again,))
        return self._concluding(replace(item, member=None, end=end))

    def _left_over(self, item: Settled) -> Settled:
        """An item that a failure ends the group of, with word of it to a worker of ours where that is to end it."""
        if item.end is None or not self._is_left_to_companion(item):
            return item
        signature = decode_signature(item.delivery.body, self._rules().limits)
        failed = item.end.ended[0]  # the callback
        return self._with_over(replace(item, end=None), signature, failed.error)

    def _is_left_to_companion(self, item: Settled) -> bool:
        return self._rules().go.shares(item.delivery.queue) and not self._inner.is_atomic

    def _with_over(self, item: Settled, signature: Signature, error: str) -> Settled:
        word = over(signature, item.delivery.queue, error, self._clock.now_ns())
        return replace(item, publish=(*item.publish, word))

    async def _end_of(self, backend: Backend, group_id: str, signature: Signature) -> GroupEnd | None:
        """What follows a group; None where one of its members is run anew, and another end of it is to come."""
        rules, callback = self._rules(), signature.chord_callback
        assert callback is not None, "it has a member"
        (group,) = await backend.get_groups([group_id])
        if group is None:
            error = f"group state lost: the entry of group {group_id} has expired or was dropped"
            return group_failed(group_id, callback, error, rules, self._clock.now_ns())
        states: list[TaskState | None] = []
        for some in parts(group.task_uuids or (), MEMBERS_AT_ONCE):
            states += await backend.get(some)
        if signature.name == OVER and any(state is not None and not state.is_completed for state in states):
            return None  # a worker in Go was shown the message of one who died before the ack
        return group_completed(group, callback, states, rules, self._clock.now_ns())


async def settlement_of(broker: Broker, backend: Backend | None) -> Settlement:
    """The strongest settlement that a pair of open stores allows."""
    if backend is not None and isinstance(broker, JointStore) and await broker.identity() == await backend.identity():
        return AtomicSettlement(broker, broker, backend)
    return OrderedSettlement(broker, backend)


async def _prepare(backend: Backend, work: Outgoing) -> None:
    if work.groups:
        await backend.open_groups(work.groups)
    if work.plans:
        await backend.put_plans(work.plans)


async def in_parts(items: Sequence[T], size: int, call: Callable[[Sequence[T]], Awaitable[None]]) -> None:
    """Call with parts of at most ``size`` items, in order."""
    for part in parts(items, size):
        await call(part)


def parts(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """Slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
