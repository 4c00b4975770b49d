"""What a batch of ended deliveries changes, in which order, and why it is safe to do twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar, assert_never

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Ack, Broker, Bury, Delivery, JointStore, Message, Nack, Settled
from asyncqueue.state import State, TaskState

T = TypeVar("T")

Submission = Callable[[], Awaitable[None]]
"""A step that records PENDING, then publishes. Raises ``Unavailable``: then the same step may be asked for again. It
begins no state anew that it has begun: the task may have ended in the meantime."""


class Settlement(Protocol):
    """Makes a batch of ``Settled`` true in the stores. Safe to repeat after any error."""

    async def settle(self, batch: Sequence[Settled]) -> None:
        """Returns when all of it is done. Raises ``Unavailable``: then some of it may be done, and all of it may be
        asked for again."""

    def submission(self, states: Sequence[TaskState], messages: Sequence[Message]) -> Submission:
        """The step that sends these."""

    async def offer(self, state: TaskState, message: Message) -> bool:
        """Send this task unless it was sent before, by whomever; whether it was sent now. ``state`` is its PENDING.

        For senders that all have the same message with the same token. Safe to repeat. Raises ``Unavailable``.
        """


class OrderedSettlement:
    """For any broker and any backend: record, then callbacks, then ack. One batched call each.

    The worker may die between any two of them: the message is not acked, comes back, its state is looked up, the
    function is not run again, and the same callbacks (their UUIDs are fixed) are sent again; their receivers look
    their own state up before they run.
    """

    def __init__(self, broker: Broker, backend: Backend | None) -> None:
        self._broker = broker
        self._backend = backend
        self._max_batch = broker.capabilities.max_batch

    async def settle(self, batch: Sequence[Settled]) -> None:
        await self._record(batch)
        await self._publish([message for item in batch for message in item.publish])
        await self._let_go(batch)

    def submission(self, states: Sequence[TaskState], messages: Sequence[Message]) -> Submission:
        backend = self._backend
        is_begun = backend is None or not states

        async def submit() -> None:
            nonlocal is_begun
            if backend is not None and not is_begun:
                await backend.begin(states)
                is_begun = True
            await self._publish(messages)

        return submit

    async def offer(self, state: TaskState, message: Message) -> bool:
        if self._backend is not None:
            (known,) = await self._backend.get([state.task_uuid])
            if known is not None and known.state is not State.PENDING:
                return False
            await self._backend.put([state])  # unlike begin, it takes back nothing that came in between
        await self._broker.publish([message])
        return True

    async def _record(self, batch: Sequence[Settled]) -> None:
        if self._backend is None:
            return
        states = [state for item in batch for state in (item.state, *item.pending) if state is not None]
        if states:
            await self._backend.put(states)

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

    def __init__(self, store: JointStore, backend: Backend, max_batch: int) -> None:
        self._store = store
        self._backend = backend
        self._max_batch = max_batch

    async def settle(self, batch: Sequence[Settled]) -> None:
        await in_parts(batch, self._max_batch, lambda part: self._store.settle(part, self._backend.results_expire_in))

    def submission(self, states: Sequence[TaskState], messages: Sequence[Message]) -> Submission:
        return lambda: self._store.submit(states, messages, self._backend.results_expire_in)

    async def offer(self, state: TaskState, message: Message) -> bool:
        (known,) = await self._backend.get([state.task_uuid])
        if known is not None:
            return False
        # whoever was faster since that look used the same token, so this changes nothing
        await self._store.submit([state], [message], self._backend.results_expire_in)
        return True


async def settlement_of(broker: Broker, backend: Backend | None) -> Settlement:
    """The strongest settlement that a pair of open stores allows."""
    if backend is not None and isinstance(broker, JointStore) and await broker.identity() == await backend.identity():
        return AtomicSettlement(broker, backend, broker.capabilities.max_batch)
    return OrderedSettlement(broker, backend)


async def in_parts(items: Sequence[T], size: int, call: Callable[[Sequence[T]], Awaitable[None]]) -> None:
    """Call with parts of at most ``size`` items, in order."""
    for part in parts(items, size):
        await call(part)


def parts(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """Slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
