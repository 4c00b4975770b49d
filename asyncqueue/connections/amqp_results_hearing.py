"""What is written while somebody waits, as RabbitMQ tells it: one queue of our own, bound for each awaited task.

Whatever anybody publishes to the log of such a task comes here as well. So who waits reads the log once, and folds what
comes onto it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage

from asyncqueue.connections.amqp import AmqpLink, Standing
from asyncqueue.connections.amqp_results_log import FORGOTTEN, Known, Letter, follow, texts
from asyncqueue.connections.amqp_topology import Exchange
from asyncqueue.errors import BadMessage

READ_AGAIN = 60.0
"""Seconds after which a log is read again although nothing was heard: of a queue that was deleted nobody tells."""

_UNBOUND_AT_ONCE = 200


class Hearing:
    """The tasks that are awaited, and what is known of them. Belongs to one event loop.

    ``read`` reads logs. ``heard`` is told of whom something came. ``now`` is the clock's, in unix seconds.
    """

    def __init__(
        self,
        link: AmqpLink,
        exchange: Exchange,
        read: Callable[[Sequence[str]], Awaitable[Mapping[str, Known | None]]],
        heard: Callable[[Iterable[str]], None],
        now: Callable[[], float],
    ) -> None:
        self._link = link
        self._exchange = exchange
        self._standing = Standing(link)
        self._read = read
        self._heard = heard
        self._now = now
        self._subscribing = asyncio.Lock()
        self._channel: Channel | None = None
        self._generation = 0
        self._queue = ""
        self._bound: set[str] = set()
        self._awaited: dict[str, int] = {}
        self._views: dict[str, _View] = {}

    def enter(self, task_ids: Iterable[str]) -> None:
        """Somebody waits for these."""
        for task_id in task_ids:
            self._awaited[task_id] = self._awaited.get(task_id, 0) + 1

    def leave(self, task_ids: Iterable[str]) -> None:
        """Somebody waits for these no more."""
        for task_id in task_ids:
            self._awaited[task_id] -= 1
            if not self._awaited[task_id]:
                del self._awaited[task_id]
                self._views.pop(task_id, None)

    async def look(self, task_ids: Sequence[str]) -> Mapping[str, Known | None]:
        """What is known of these; the log is read where that is not enough."""
        await self._subscribe(task_ids)
        now = self._now()
        views = {task_id: self._views.setdefault(task_id, _View()) for task_id in task_ids}
        stale = {task_id: view for task_id, view in views.items() if not view.holds_at(now)}
        if stale:
            for view in stale.values():
                view.begin_reading()
            try:
                found = await self._read(list(stale))
            except BaseException:
                for view in stale.values():
                    view.break_off()
                raise
            for task_id, view in stale.items():
                view.end_reading(task_id, found[task_id], self._now())
        return {task_id: view.known for task_id, view in views.items()}

    async def _subscribe(self, task_ids: Sequence[str]) -> None:
        """See to it that we hear of these. Of a new subscription nothing is known."""
        async with self._subscribing:
            if self._channel is None or self._channel.is_closed or not self._link.is_open:
                self._bound.clear()
                self._views.clear()
                await self._standing.ensure([self._exchange])
                self._channel = await self._link.channel()
                await self._begin(self._channel)
            channel = self._channel
            new = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in self._bound]
            unwanted = [task_id for task_id in self._bound if task_id not in self._awaited][:_UNBOUND_AT_ONCE]
            async with self._link.asking("bind to results"):
                for task_id in new:
                    self._views.pop(task_id, None)
                    await channel.queue_bind(self._queue, self._exchange.name, task_id, nowait=True)
                if new:
                    await channel.basic_qos(prefetch_count=0)  # by its reply the others are through
                    self._bound.update(new)
                for task_id in unwanted:
                    self._bound.discard(task_id)
                    self._views.pop(task_id, None)
                    await channel.queue_unbind(self._queue, self._exchange.name, task_id)

    async def _begin(self, channel: Channel) -> None:
        def end(_: object) -> None:
            self._channel = None  # the server has cancelled the consumer: the next look begins anew

        channel.on_consumer_cancel_callbacks.add(end)
        async with self._link.asking("wait for results"):
            declared = await channel.queue_declare("", exclusive=True, auto_delete=True)
            self._queue = declared.queue or ""
            await channel.basic_consume(self._queue, self._take, no_ack=True)

    async def _take(self, message: DeliveredMessage) -> None:
        assert isinstance(message.delivery, spec.Basic.Deliver)
        task_id = message.delivery.routing_key or ""
        view = self._views.get(task_id)
        if view is not None:
            view.take(task_id, Letter(message.body, texts(message.header.properties.headers)))
            self._heard([task_id])


@dataclass(slots=True)
class _View:
    """What those who wait know of a task. ``reads_again_at`` (unix seconds) is when that is to be read anew."""

    known: Known | None = None
    reads_again_at: float = 0.0
    _came: list[Letter] | None = field(default=None)  # while the log is read

    def holds_at(self, now: float) -> bool:
        """Whether that is enough for now."""
        return now < self.reads_again_at

    def begin_reading(self) -> None:
        self._came = []

    def break_off(self) -> None:
        self._came, self.reads_again_at = None, 0.0

    def end_reading(self, task_id: str, known: Known | None, now: float) -> None:
        """That was read; what came meanwhile may be in it already, which does no harm."""
        came, self._came = self._came or [], None
        self.known = known
        self.reads_again_at = now + READ_AGAIN
        for letter in came:
            self.take(task_id, letter)
        if self.known is not None and self.known.until:
            self.reads_again_at = min(self.reads_again_at, max(self.known.until, now + 0.5))

    def take(self, task_id: str, letter: Letter) -> None:
        """One more message of the log."""
        if self._came is not None:
            self._came.append(letter)
        elif FORGOTTEN in letter.headers:
            self.known, self.reads_again_at = None, 0.0
        else:
            try:
                self.known = follow(task_id, self.known, letter)
            except BadMessage:
                self.reads_again_at = 0.0  # whoever reads it is told
