"""Running tasks at once, in the process that sends them: the same path, with nothing in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import replace
from typing import Any

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Inspector, Message, Settled, Unsettled
from asyncqueue.clock import Clock
from asyncqueue.engine.execution import Execution, Ran
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.outcome import Overdue, Succeeded, settled
from asyncqueue.engine.settlement import Outgoing, Settlement, Submission, WholeSettlement
from asyncqueue.workflow import WATCH

_has_sender_left: ContextVar[Callable[[], bool]] = ContextVar("asyncqueue_has_sender_left")


class EagerSettlement:
    """Another settlement in which nothing is delayed: eager means now, for retries and ETAs too."""

    def __init__(self, inner: Settlement) -> None:
        self._inner = inner

    async def settle(self, batch: Sequence[Settled]) -> Sequence[Unsettled]:
        return await self._inner.settle([_at_once(item) for item in batch])

    @property
    def is_atomic(self) -> bool:
        return self._inner.is_atomic

    def submission(self, work: Outgoing) -> Submission:
        return self._inner.submission(replace(work, messages=_due(work.messages)))

    async def offer(self, work: Outgoing) -> bool:
        return await self._inner.offer(replace(work, messages=_due(work.messages)))


class EagerRunner:
    """Fetches and runs, one after the other, until every queue is empty."""

    def __init__(
        self,
        broker: Broker,
        execution: Execution,
        settlement: Settlement,
        backend: Backend | None,
        *,
        clock: Clock,
        rules: Callable[[], Rules],
    ) -> None:
        self._broker = broker
        self._execution = execution
        self._settlement = WholeSettlement(settlement, backend, rules=rules, clock=clock)
        self._clock = clock
        self._rules = rules

    async def run(self) -> None:
        """Run what is queued, and what that sends."""
        while await self._run_next():
            pass

    async def _run_next(self) -> bool:
        broker = self._broker
        queues = await broker.queues() if isinstance(broker, Inspector) else ()
        for queue in queues:
            for delivery in await broker.fetch(queue, 1, 0.0):
                # in an asyncio task of its own: the context of the task must not stay with the sender
                context = copy_context()
                has_left = context.run(_note_sender)
                ran = await asyncio.create_task(self._execution.run(delivery), context=context)
                if has_left():  # and the task made something else of it
                    raise asyncio.CancelledError
                outcome = Succeeded(()) if _is_for_later(ran) else ran.outcome
                item = settled(delivery, ran.signature, outcome, self._rules(), self._clock.now_ns())
                if item is not None:
                    await self._settlement.settle([item])
                return True
        return False


def has_lost_its_sender(run: asyncio.Task[Any]) -> bool:
    """Whether the sender was cancelled for whom this runs, which asks it."""
    return _has_sender_left.get()()


def _note_sender() -> Callable[[], bool]:
    sender = asyncio.current_task()
    cancels = sender.cancelling() if sender is not None else 0

    def has_left() -> bool:
        return sender is not None and sender.cancelling() > cancels

    _has_sender_left.set(has_left)
    return has_left


def _is_for_later(ran: Ran) -> bool:
    """Whether a run looked at a group from outside. No time passes here, so no group's time is ever over; and nobody
    but us ends any, so a watch would be run again and again before the members."""
    return isinstance(ran.outcome, Overdue) or (ran.signature is not None and ran.signature.name == WATCH)


def _at_once(item: Settled) -> Settled:
    end = item.end if item.end is None else replace(item.end, publish=_due(item.end.publish))
    return replace(item, publish=_due(item.publish), end=end)


def _due(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, not_before=None) for message in messages)
