"""Running tasks at once, in the process that sends them: the same path, with nothing in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from asyncqueue.brokers.base import Broker, Inspector, Message, Settled
from asyncqueue.clock import Clock
from asyncqueue.engine.execution import Execution
from asyncqueue.engine.outcome import Rules, settled
from asyncqueue.engine.settlement import Settlement, Submission
from asyncqueue.state import TaskState


class EagerSettlement:
    """Another settlement in which nothing is delayed: eager means now, for retries and ETAs too."""

    def __init__(self, inner: Settlement) -> None:
        self._inner = inner

    async def settle(self, batch: Sequence[Settled]) -> None:
        await self._inner.settle([replace(item, publish=_due(item.publish)) for item in batch])

    def submission(self, states: Sequence[TaskState], messages: Sequence[Message]) -> Submission:
        return self._inner.submission(states, _due(messages))

    async def offer(self, state: TaskState, message: Message) -> bool:
        return await self._inner.offer(state, replace(message, not_before=None))


class EagerRunner:
    """Fetches and runs, one after the other, until every queue is empty."""

    def __init__(
        self,
        broker: Broker,
        execution: Execution,
        settlement: Settlement,
        *,
        clock: Clock,
        rules: Callable[[], Rules],
    ) -> None:
        self._broker = broker
        self._execution = execution
        self._settlement = settlement
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
                ran = await asyncio.create_task(self._execution.run(delivery))
                item = settled(delivery, ran.signature, ran.outcome, self._rules(), self._clock.now_ns())
                if item is not None:
                    await self._settlement.settle([item])
                return True
        return False


def _due(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, not_before=None) for message in messages)
