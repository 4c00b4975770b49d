"""What was put into a queue that workers in Go and ours share, and by whom: the broker itself keeps count."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aio_pika

from asyncqueue.workflow import CHECK_HEADER
from tests.path.sends import RedisLog

EXCHANGE = "machinery_exchange"


@dataclass(frozen=True, slots=True)
class Sent:
    """How often a message of each task was put into the queue. What our workers send has word on it that it may be a
    second copy of theirs; that of our clients and of Go has not."""

    by_our_workers: Counter[str] = field(default_factory=Counter)
    by_others: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, task_id: str) -> int:
        return self.by_our_workers[task_id] + self.by_others[task_id]


class SentLog(Protocol):
    """What was put into one queue since the log was opened."""

    async def all(self) -> Sent:
        """Everything that was sent until now."""


@asynccontextmanager
async def sent_log(broker: str, queue: str) -> AsyncIterator[SentLog]:
    """The log of a queue on Redis or RabbitMQ."""
    if broker.startswith("redis"):
        log = await asyncio.to_thread(_RedisLog, broker, queue)
        try:
            yield log
        finally:
            await asyncio.to_thread(log.close)
        return
    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        await channel.declare_exchange(EXCHANGE, "direct", durable=True)
        copies = await channel.declare_queue(f"{queue}-copies", exclusive=True)
        await copies.bind(EXCHANGE, queue)
        yield _RabbitLog(copies)


class _RedisLog(RedisLog):
    """Clients put a message at the end of the list by themselves, our workers by a script.

    Our clients use a script too: what they send counts as ours.
    """

    def __init__(self, broker: str, queue: str) -> None:
        self._of_others = Counter[str]()
        self._push = f'"RPUSH" "{queue}" "'.encode()
        super().__init__(broker)

    async def all(self) -> Sent:
        ours = await self.counts()
        return Sent(ours, self._of_others.copy())

    def _hear(self, line: bytes) -> None:
        if self._push in line[:120] and self._of_database in line[:40] and b"lua]" not in line[:40]:
            self._of_others.update(task_id.decode() for task_id in self._SENT.findall(line))
            return
        super()._hear(line)


class _RabbitLog:
    """A second queue with the same binding gets a copy of each message."""

    def __init__(self, copies: aio_pika.abc.AbstractQueue) -> None:
        self._copies = copies
        self._sent = Sent()

    async def all(self) -> Sent:
        while (message := await self._copies.get(no_ack=True, fail=False)) is not None:
            signature = json.loads(message.body)
            is_ours = (signature["Headers"] or {}).get(CHECK_HEADER) == "1"
            (self._sent.by_our_workers if is_ours else self._sent.by_others)[signature["UUID"]] += 1
        return self._sent
