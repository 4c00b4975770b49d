"""What came on one channel of RabbitMQ and is not settled: deliveries, held by the channel that they came on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import aiormq
from aiormq.abc import DeliveredMessage

from asyncqueue.connections.amqp import AmqpLink
from asyncqueue.errors import AsyncQueueError


class Holding:
    """A channel that takes messages of one queue, and what came on it and is not settled.

    The server ends a channel that acks what it does not hold, and with it every delivery on it. So a tag leaves our
    books before its frame is written, and one writer at a time does both.

    ``is_private``: the queue is one that nobody else looks into, so that what is given back comes to nobody.
    """

    def __init__(self, link: AmqpLink, channel: aiormq.Channel, number: int, *, is_private: bool = False) -> None:
        self.number = number
        self.is_private = is_private
        self._link = link
        self._channel = channel
        self._prefetch = 0
        self._beginning = asyncio.Lock()
        self._shown: dict[int, DeliveredMessage] = {}
        self._shown_at: dict[int, float] = {}
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

    @property
    def count(self) -> int:
        """How much came and is not settled."""
        return len(self._shown)

    def holds(self, tag: int) -> bool:
        """Whether that is ours, and nobody is settling it."""
        return tag in self._shown and tag not in self._claimed

    def has(self, tag: int) -> bool:
        """Whether that came and is not settled, be somebody settling it or not."""
        return tag in self._shown

    def message(self, tag: int) -> DeliveredMessage:
        """What came with that tag."""
        return self._shown[tag]

    def age(self, tag: int) -> float:
        """For how long (seconds) that is held."""
        return asyncio.get_running_loop().time() - self._shown_at[tag]

    async def room(self, most: int, wait: float, leaving: asyncio.Event) -> int:
        """How many more may be held where ``most`` may, waiting up to ``wait`` seconds for there to be room, or until
        whoever asks is ``leaving``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while self.is_open and len(self._shown) >= most and not leaving.is_set():
                    self._settled.clear()
                    await self._settled.wait()
        return most - len(self._shown)

    def stir(self) -> None:
        """Who waits for room looks again."""
        self._settled.set()

    async def attach(self, queue: str, tag: str, limit: int, arrivals: Arrivals) -> None:
        """Begin to consume, ``limit`` messages at most; 0: any number."""
        self._arrivals = arrivals

        async def arrive(message: DeliveredMessage) -> None:
            self._shown[tag_of(message)] = message
            self._shown_at[tag_of(message)] = asyncio.get_running_loop().time()
            arrivals.add(message)

        async with self._beginning, self._link.asking(f"consume from queue {queue!r}"):
            if self._prefetch != limit:
                await self._channel.basic_qos(prefetch_count=limit)
                self._prefetch = limit
            await self._channel.basic_consume(queue, arrive, consumer_tag=tag)

    async def check(self) -> None:
        """Ask the server whether it still has this channel; if it does not say so, nothing is held any more.

        A connection may be half open and a channel be closed, and nobody has told us yet.
        """
        try:
            # not between a limit that is being set and the consumer that it is for
            async with self._beginning, self._link.asking("keep messages"):
                await self._channel.basic_qos(prefetch_count=self._prefetch)  # as it is
        except AsyncQueueError:
            self._ended()

    async def detach(self, tag: str) -> None:
        """Consume no more. What the server had sent until then has arrived when this returns."""
        async with self._link.asking("end consuming"):
            await self._channel.basic_cancel(tag)

    async def ack(self, tags: Iterable[int]) -> None:
        """These of ours are done."""
        with self.claimed(tags) as mine:
            await self.ack_claimed(mine)

    async def ack_claimed(self, tags: Iterable[int]) -> None:
        """These, which the caller has claimed, are done."""
        async with self._settling:
            await self._ack({tag for tag in tags if tag in self._shown})

    async def give_back(self, tags: Iterable[int]) -> None:
        """These of ours go back to where they were in the queue."""
        with self.claimed(tags) as claimed:
            async with self._settling, self._link.asking("take messages back"):
                await self._give_back([tag for tag in claimed if tag in self._shown])
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
            self._forget(tag)
        async with self._link.asking("take acks"):
            for number, (tag, multiple) in enumerate(frames, 1):
                # once the last is out, all are: a connection that is closed drops what is not
                await self._channel.basic_ack(tag, multiple, wait=number == len(frames))
        self._settled.set()

    async def _give_back(self, tags: Sequence[int]) -> None:
        for number, tag in enumerate(tags, 1):
            self._forget(tag)
            await self._channel.basic_nack(tag, requeue=True, wait=number == len(tags))

    def _forget(self, tag: int) -> None:
        self._shown.pop(tag, None)
        self._shown_at.pop(tag, None)

    def _ended(self) -> None:
        self._shown.clear()
        self._shown_at.clear()
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


class Copies(Arrivals):
    """What comes to a consumer that stays attached: copies that are waited for, each by its id.

    ``drop`` is told the tag of a copy that nobody needs any more.
    """

    def __init__(self, drop: Callable[[int], object]) -> None:
        super().__init__()
        self._drop = drop
        self._awaited: dict[str, asyncio.Future[int]] = {}

    def expect(self, message_id: str) -> asyncio.Future[int]:
        """The tag that this copy will come with; cancelled if none comes any more."""
        future = self._awaited[message_id] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._awaited.pop(message_id, None))
        return future

    def add(self, message: DeliveredMessage) -> None:
        future = self._awaited.get(message.header.properties.message_id or "")
        if future is None or future.done():
            self._drop(tag_of(message))
        else:
            future.set_result(tag_of(message))

    def refuse(self, future: asyncio.Future[int]) -> None:
        """This copy is not needed, be it there or still to come."""
        if not future.cancel() and not future.cancelled():
            self._drop(future.result())

    def end(self) -> None:
        super().end()
        for future in list(self._awaited.values()):
            future.cancel()


def tag_of(message: DeliveredMessage) -> int:
    """The server's number for it on its channel."""
    return message.delivery_tag or 0
