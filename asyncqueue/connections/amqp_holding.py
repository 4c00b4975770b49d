"""What came on one channel of RabbitMQ and is not settled: deliveries, held by the channel that they came on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import aiormq
from aiormq.abc import DeliveredMessage

from asyncqueue.connections.amqp import AmqpLink


class Holding:
    """A channel that takes messages of one queue, and what came on it and is not settled.

    The server ends a channel that acks what it does not hold, and with it every delivery on it. So a tag leaves our
    books before its frame is written, and one writer at a time does both.
    """

    def __init__(self, link: AmqpLink, channel: aiormq.Channel, number: int) -> None:
        self.number = number
        self._link = link
        self._channel = channel
        self._prefetch = 0
        self._shown: dict[int, DeliveredMessage] = {}
        self._claimed: set[int] = set()
        self._settling = asyncio.Lock()
        self._settled = asyncio.Event()
        self._arrivals = Arrivals()
        channel.closing.add_done_callback(lambda _: self._ended())
        channel.on_consumer_cancel_callbacks.add(lambda _: self._arrivals.end())

    @property
    def is_open(self) -> bool:
        """Whether the channel is there, as far as we know."""
        return not self._channel.is_closed

    def holds(self, tag: int) -> bool:
        """Whether that is ours, and nobody is settling it."""
        return tag in self._shown and tag not in self._claimed

    def message(self, tag: int) -> DeliveredMessage:
        """What came with that tag."""
        return self._shown[tag]

    async def room(self, most: int, wait: float) -> int:
        """How many more may be held where ``most`` may, waiting up to ``wait`` seconds for there to be room."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while self.is_open and len(self._shown) >= most:
                    self._settled.clear()
                    await self._settled.wait()
        return most - len(self._shown)

    async def attach(self, queue: str, tag: str, limit: int, arrivals: Arrivals) -> None:
        """Begin to consume, ``limit`` messages at most."""
        self._arrivals = arrivals

        async def arrive(message: DeliveredMessage) -> None:
            self._shown[tag_of(message)] = message
            arrivals.add(message)

        async with self._link.asking(f"consume from queue {queue!r}"):
            if self._prefetch != limit:
                await self._channel.basic_qos(prefetch_count=limit)
                self._prefetch = limit
            await self._channel.basic_consume(queue, arrive, consumer_tag=tag)

    async def detach(self, tag: str) -> None:
        """Consume no more. What the server had sent until then has arrived when this returns."""
        async with self._link.asking("end consuming"):
            await self._channel.basic_cancel(tag)

    async def ack(self, tags: Iterable[int]) -> None:
        """These of ours are done."""
        async with self._settling:
            await self._ack({tag for tag in tags if self.holds(tag)})

    async def ack_claimed(self, tags: Iterable[int]) -> None:
        """These, which the caller has claimed, are done."""
        async with self._settling:
            await self._ack({tag for tag in tags if tag in self._shown})

    async def give_back(self, tags: Iterable[int]) -> None:
        """These of ours go back to where they were in the queue."""
        async with self._settling, self._link.asking("take messages back"):
            mine = [tag for tag in tags if self.holds(tag)]
            for number, tag in enumerate(mine, 1):
                self._shown.pop(tag, None)
                await self._channel.basic_nack(tag, requeue=True, wait=number == len(mine))
        self._settled.set()

    @contextmanager
    def claimed(self, tags: Iterable[int]) -> Iterator[Sequence[int]]:
        """Those of these that are ours, kept from anybody else who would settle them."""
        mine = [tag for tag in tags if self.holds(tag)]
        self._claimed.update(mine)
        try:
            yield mine
        finally:
            self._claimed.difference_update(mine)

    async def _ack(self, done: set[int]) -> None:
        frames = ack_frames(self._shown, done)
        for tag in done:
            self._shown.pop(tag, None)
        async with self._link.asking("take acks"):
            for number, (tag, multiple) in enumerate(frames, 1):
                # once the last is out, all are: a connection that is closed drops what is not
                await self._channel.basic_ack(tag, multiple, wait=number == len(frames))
        self._settled.set()

    def _ended(self) -> None:
        self._shown.clear()
        self._settled.set()
        self._arrivals.end()


def ack_frames(shown: Iterable[int], done: set[int]) -> list[tuple[int, bool]]:
    """The fewest acks that say that ``done`` is done, of what was shown, oldest first: (tag, whether all up to it)."""
    oldest = list(itertools.takewhile(done.__contains__, shown))
    first = [(oldest[-1], len(oldest) > 1)] if oldest else []
    return first + [(tag, False) for tag in sorted(done.difference(oldest))]


class Arrivals:
    """What came while a consumer was attached."""

    def __init__(self) -> None:
        self.messages: list[DeliveredMessage] = []
        self.were_ended = False
        self._stirred = asyncio.Event()

    def add(self, message: DeliveredMessage) -> None:
        """One came."""
        self.messages.append(message)
        self._stirred.set()

    def end(self) -> None:
        """The server sends no more."""
        self.were_ended = True
        self._stirred.set()

    def leave(self) -> None:
        """Nobody waits any more."""
        self._stirred.set()

    async def first(self, ends_at: float) -> None:
        """Until the first came, or none will, or it is ``ends_at`` (the loop's time)."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends_at):
                await self._stirred.wait()


def tag_of(message: DeliveredMessage) -> int:
    """The server's number for it on its channel."""
    return message.delivery_tag or 0
