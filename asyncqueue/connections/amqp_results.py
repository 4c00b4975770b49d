"""Results on RabbitMQ: a queue for each task as Machinery declares it, and queues of our own for what that cannot hold.

The queue of a task, named after its UUID, is a log: writers append, and nobody has to ask. To read it is to take all
that is in it and to give it back. Our own queues are named ``<UUID>.aq`` and hold one message, a record: a group, a
plan, or the state of a task that is to be kept for longer than its log. To write a record is to publish the new one
and to ack the old one.

Whoever reads or writes a record has a lock meanwhile: the one consumer of a lock queue, of which there are a few, each
for a part of all UUIDs. Lock, messages and publishes are on one channel, so that the server undoes all of it together
when its owner dies. Readers by ``basic.get`` are no consumers, which matters for the queues of Machinery: they are
deleted when their last consumer leaves.

A record has an expiry of its own, and a queue that held one is left empty. The server puts the expired record into the
lock queue, and the next owner of that lock, to whom it comes, deletes the queue.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiormq import Channel, spec
from aiormq import exceptions as amqp_errors
from aiormq.abc import ArgumentsType, DeliveredMessage

from asyncqueue.connections.amqp import AmqpLink, Standing, is_absent
from asyncqueue.connections.amqp_holding import tag_of
from asyncqueue.connections.amqp_results_log import UNTIL, Letter, texts
from asyncqueue.connections.amqp_topology import Exchange, Queue
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import Refused, Unavailable

T = TypeVar("T")

LOCKS = 16
"""How many locks all UUIDs share."""

KIND = "aq-kind"
"""The header that says what a record is: a state, a group or a plan."""

STATE, GROUP, PLAN = "state", "group", "plan"

AT_ONCE = 4
"""The most locks that one instance has at a time, and the most batches that it writes at a time."""

HEARD_AT_ONCE = 100
"""The most expired records that the owner of a lock is sent before it has dealt with them."""

MAX_NAME = 255 - len("_chord_triggered")
"""The most bytes of a UUID: RabbitMQ takes names of 255, and some queues have more in theirs."""

LONGEST = 2**32 - 1
"""The longest (ms) that a queue may be unused and a message may wait; some 49 days."""

_AGAIN = 10
_PART = 100
_OWN = ".aq"
_REMEMBERED = 10_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_OTHER_ARGUMENT = re.compile(
    r"inequivalent arg 'x-(?:expires|message-ttl)' for queue '(.*)' in vhost .*current is \D*(\d+)"
)
_NO_QUEUE = re.compile(r"no queue '(.*)' in vhost")


@dataclass(frozen=True, slots=True)
class Post:
    """A message for the log of that name; ``is_new``: what was kept longer than its log is of no interest any more."""

    name: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What is under a name: the record, and the log where that was asked for. ``old`` are the tags of all records that
    were there: more than one where the writer of a new one died before it had acked the old one."""

    record: Letter | None = None
    log: Sequence[Letter] = ()
    old: Sequence[int] = ()

    @property
    def is_there(self) -> bool:
        """Whether there is anything."""
        return self.record is not None or bool(self.log)


@dataclass(frozen=True, slots=True)
class Record:
    """A record to write; ``until`` (unix seconds) is when it expires."""

    name: str
    body: bytes
    headers: Mapping[str, str]
    until: float
    old: Sequence[int] = ()


class ResultQueues:
    """The queues of one backend. Belongs to one event loop. ``now`` is the clock's, in unix seconds."""

    def __init__(self, link: AmqpLink, exchange: Exchange, now: Callable[[], float]) -> None:
        self._link = link
        self._exchange = exchange
        self._now = now
        self._standing = Standing(link)
        self._idle: list[tuple[int, Channel]] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Semaphore(AT_ONCE)
        self._reading = asyncio.Semaphore(AT_ONCE)
        self._turns = [asyncio.Lock() for _ in range(LOCKS)]
        self._lives: OrderedDict[str, float] = OrderedDict()  # of logs that were declared with another expiry

    async def close(self) -> None:
        """Wait for what is being given up; the link is the caller's to close."""
        if self._ending:
            await asyncio.wait(self._ending)

    # ------------------------------------------------------------------------------------------------ logs

    async def append(self, posts: Sequence[Post], keep: float) -> Mapping[str, float]:
        """Publish these to their logs, in order; returns when the server has all of them.

        ``keep`` is what (seconds) new logs live after their last message. Returns how long they live that live shorter,
        because others had declared them.
        """
        waiting = list(posts)
        _check_names(post.name for post in waiting)
        async with self._writing:
            for _ in range(_AGAIN):
                if not waiting:
                    break
                await self._declare(waiting, keep)
                waiting = await self._publish(waiting, keep)
        if waiting:
            raise Unavailable(
                f"RabbitMQ at {self._link.where}: the queue {waiting[0].name!r} is deleted again and again"
            )
        return {post.name: self._lives[post.name] for post in posts if self._lives.get(post.name, keep) < keep}

    async def _declare(self, posts: Iterable[Post], keep: float) -> None:
        """See to it that their queues stand, and that those live on that do."""
        await self._standing.ensure([self._exchange])
        news = {post.name: post.is_new for post in posts}
        names = list(news)
        for start in range(0, len(names), _PART):
            await self._declare_part({name: news[name] for name in names[start : start + _PART]}, keep)

    async def _declare_part(self, news: Mapping[str, bool], keep: float) -> None:
        while True:
            try:
                async with self._channel() as channel, self._link.asking("declare queues of results"):
                    with _said_by(channel):
                        for name, is_new in news.items():
                            await self._declare_log(channel, name, keep)
                            if is_new:
                                await channel.queue_delete(own(name), nowait=True)
                        await channel.basic_qos(prefetch_count=HEARD_AT_ONCE)  # by its reply the others are through
                return
            except (Refused, Unavailable) as exc:
                if not self._learns_from(str(exc), news):
                    raise

    def _learns_from(self, said: str, names: Container[str]) -> bool:
        """Whether this says of one of these queues what we did not know: that it stands with another expiry, or does
        not stand any more."""
        if (other := _OTHER_ARGUMENT.search(said)) and other[1] in names:
            name, life = other[1], int(other[2]) / 1000
            is_news = self._lives.get(name) != life
            self._lives[name] = life
            while len(self._lives) > _REMEMBERED:
                self._lives.popitem(last=False)
            return is_news
        absent = _NO_QUEUE.search(said)
        return absent is not None and self._lives.pop(absent[1], None) is not None

    async def _declare_log(self, channel: Channel, name: str, keep: float) -> None:
        if name in self._lives:  # if it does not stand any more, this says so
            await channel.queue_bind(name, self._exchange.name, name, nowait=True)
        life = _milliseconds(self._lives.get(name, keep))
        arguments: ArgumentsType = {"x-message-ttl": life, "x-expires": life}
        # only where an answer is asked for, the time of a queue that stands begins anew
        await channel.queue_declare(name, auto_delete=True, arguments=arguments)
        await channel.queue_bind(name, self._exchange.name, name, nowait=True)

    async def _publish(self, posts: Sequence[Post], keep: float) -> list[Post]:
        """Publish in order; returns what there was no queue for."""
        now = self._now()
        sends = []
        for post in posts:
            until = now + min(keep, self._lives.get(post.name, keep))
            headers = {**post.headers, UNTIL: repr(until)}
            sends.append((self._exchange.name, post.name, post.body, _properties(headers)))
        async with self._channel() as channel:
            are_there = await self._send(channel, sends)
        absent = [post for post, is_there in zip(posts, are_there, strict=True) if not is_there]
        for post in absent:
            self._lives.pop(post.name, None)
        return absent

    async def notify(self, names: Iterable[str], headers: Mapping[str, str]) -> None:
        """Tell those who wait for these, and nobody else: where no consumer takes it, it expires at once."""
        await self._standing.ensure([self._exchange])
        async with self._channel() as channel:
            await self._send(channel, [(self._exchange.name, name, b"", _properties(headers, 0)) for name in names])

    async def delete(self, names: Iterable[str]) -> None:
        """Delete these queues; unknown ones are no error."""
        todo = list(names)
        async with self._writing, self._channel() as channel:
            for start in range(0, len(todo), _PART):
                async with self._link.asking("delete queues of results"):
                    for name in todo[start : start + _PART]:
                        self._lives.pop(name, None)
                        await channel.queue_delete(name, nowait=True)
                    await channel.basic_qos(prefetch_count=HEARD_AT_ONCE)  # by its reply the others are through

    async def declare(self, name: str, keep: float) -> None:
        """See to it that a queue of that name stands, which nothing is put into, for so many seconds."""
        async with self._writing, self._channel() as channel, self._link.asking(f"declare queue {name!r}"):
            with suppress(amqp_errors.ChannelPreconditionFailed):  # it stands, with another expiry
                await channel.queue_declare(name, arguments={"x-expires": _milliseconds(keep)})

    async def inspect(self, name: str) -> tuple[int, int] | None:
        """How many messages of a queue are ready, and how many consumers it has; None where there is no such queue."""
        async with self._writing, self._channel() as channel, self._link.asking(f"look at queue {name!r}"):
            try:
                found = await channel.queue_declare(name, passive=True)
            except amqp_errors.ChannelNotFoundEntity as exc:
                if is_absent(exc):
                    return None
                raise
        return found.message_count or 0, found.consumer_count or 0

    # ------------------------------------------------------------------------------------------------ locked

    async def each(
        self, names: Iterable[str], work: Callable[[Locked, Sequence[str]], Awaitable[Mapping[str, T]]]
    ) -> dict[str, T]:
        """Do the work on these names, those of each lock together while it is ours; returns all that it returned."""
        parts: dict[int, list[str]] = {}
        _check_names(names := list(dict.fromkeys(names)))
        for name in names:
            parts.setdefault(lock_of(name), []).append(name)
        found: dict[str, T] = {}
        for some in await all_of(self._locked(lock, part, work) for lock, part in parts.items()):
            found.update(some)
        return found

    async def _locked(
        self, lock: int, names: Sequence[str], work: Callable[[Locked, Sequence[str]], Awaitable[Mapping[str, T]]]
    ) -> Mapping[str, T]:
        async with self._turns[lock], self._reading:
            for _ in range(_AGAIN):
                locked = await self._lock(lock)
                try:
                    done = await work(locked, names)
                    await self._unlock(locked)
                except _Vanished as exc:
                    vanished = exc
                    self._give_up(locked.channel)
                    continue
                except BaseException:
                    self._give_up(locked.channel)  # the server gives everything back, and the lock to others
                    raise
                self._idle.append((self._link.generation, locked.channel))
                return done
        raise vanished

    async def _lock(self, lock: int) -> Locked:
        queue, pause = self._lock_queue(lock), _FIRST_PAUSE
        await self._standing.ensure([Queue(queue)])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._link.access.reply_timeout
        while True:
            channel = await self._take()
            locked = Locked(self, channel, lock)
            try:
                if await self._consume(locked, queue):
                    return locked
                while await self._is_taken(channel := await self._take(), queue):
                    if loop.time() >= deadline:
                        raise Unavailable(
                            f"RabbitMQ at {self._link.where}: {queue!r}, the lock of some results, was not to be had"
                            f" within {self._link.access.reply_timeout:g} s"
                        )
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    self._idle.append((self._link.generation, channel))
                self._idle.append((self._link.generation, channel))
            except BaseException:
                self._give_up(channel)
                raise

    async def _consume(self, locked: Locked, queue: str) -> bool:
        """Become the one consumer of a lock queue; False: another is."""
        async with self._link.asking(f"consume from queue {queue!r}"):
            try:
                await locked.channel.basic_consume(queue, locked.hear, exclusive=True, consumer_tag=queue)
            except amqp_errors.ChannelAccessRefused as exc:
                if "exclusive use" in " ".join(map(str, exc.args)):
                    return False
                raise
            except amqp_errors.ChannelNotFoundEntity as exc:
                raise self._lock_deleted(queue) from exc
        return True

    async def _is_taken(self, channel: Channel, queue: str) -> bool:
        async with self._link.asking(f"look at queue {queue!r}"):
            try:
                return bool((await channel.queue_declare(queue, passive=True)).consumer_count)
            except amqp_errors.ChannelNotFoundEntity as exc:
                raise self._lock_deleted(queue) from exc

    def _lock_deleted(self, queue: str) -> Unavailable:
        self._standing = Standing(self._link)  # which declares it anew
        return Unavailable(f"RabbitMQ at {self._link.where}: {queue!r}, the lock of some results, was deleted")

    async def _unlock(self, locked: Locked) -> None:
        channel = locked.channel
        await self._tidy(locked)
        async with self._link.asking("take results back"):
            await channel.basic_nack(0, multiple=True, wait=False)
            await channel.basic_cancel(self._lock_queue(locked.lock))
            await channel.basic_nack(0, multiple=True)  # what the lock queue has sent meanwhile

    async def _tidy(self, locked: Locked) -> None:
        """Delete the queues whose record has expired, as far as we have heard of them."""
        done = []
        for message in tuple(locked.heard):
            headers = message.header.properties.headers or {}
            queue = headers.get("x-first-death-queue")
            # what does not say until when is a question of ours
            if UNTIL in headers and isinstance(queue, str) and queue.endswith(_OWN) and queue not in locked.held:
                await self._delete_empty(queue)
            done.append(tag_of(message))
        async with self._link.asking("take acks"):
            for tag in done:
                await locked.channel.basic_ack(tag, wait=False)

    async def _delete_empty(self, name: str) -> None:
        async with self._channel() as channel, self._link.asking(f"delete queue {name!r}"):
            with suppress(amqp_errors.ChannelPreconditionFailed):  # there is a new record
                await channel.queue_delete(name, if_empty=True)

    # ------------------------------------------------------------------------------------------------ channels

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """A channel with confirmations, for one thing at a time; it is given up when that goes wrong."""
        channel = await self._take()
        try:
            yield channel
        except BaseException:
            self._give_up(channel)
            raise
        self._idle.append((self._link.generation, channel))

    async def _take(self) -> Channel:
        while self._idle:
            generation, channel = self._idle.pop()
            if generation == self._link.generation and not channel.is_closed and self._link.is_open:
                return channel
        channel = await self._link.channel(confirms=True)
        async with self._link.asking("limit what is sent ahead"):
            # or all records that expired since a lock was last taken would come at once, before the answers
            await channel.basic_qos(prefetch_count=HEARD_AT_ONCE)
        return channel

    def _give_up(self, channel: Channel) -> None:
        async def close() -> None:
            with suppress(Exception):  # what is wrong with it is known by now
                async with asyncio.timeout(self._link.access.reply_timeout):
                    await channel.close()

        if not channel.is_closed:
            task = asyncio.create_task(close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _send(
        self, channel: Channel, sends: Sequence[tuple[str, str, bytes, spec.Basic.Properties]]
    ) -> list[bool]:
        """Publish to exchanges by routing keys, in order; whether there was a queue for each."""
        are_there: list[bool] = []
        for start in range(0, len(sends), _PART):
            async with self._link.asking("confirm results"):
                results = await asyncio.gather(
                    *(
                        channel.basic_publish(
                            body, exchange=exchange, routing_key=key, properties=properties, mandatory=True, wait=False
                        )
                        for exchange, key, body, properties in sends[start : start + _PART]
                    ),
                    return_exceptions=True,
                )
                for result in results:
                    match result:
                        case amqp_errors.PublishError():
                            are_there.append(False)
                        case asyncio.CancelledError():
                            raise Unavailable(f"RabbitMQ at {self._link.where}: the connection broke (to publish)")
                        case BaseException():
                            raise result
                        case _:
                            are_there.append(True)
        return are_there

    def _lock_queue(self, lock: int) -> str:
        return f"{self._exchange.name}.aq.results.{lock}"


class _Vanished(Unavailable):
    """A queue was deleted, or has expired, between two looks at it."""


class Locked:
    """What one may do while a lock is ours."""

    def __init__(self, queues: ResultQueues, channel: Channel, lock: int) -> None:
        self.channel = channel
        self.lock = lock
        self.heard: list[DeliveredMessage] = []
        self.held: set[str] = set()
        """Queues of which we hold messages: to the server they are empty."""
        self._queues = queues
        self._link = queues._link

    async def hear(self, message: DeliveredMessage) -> None:
        """The server says that a record has expired."""
        self.heard.append(message)

    async def read(self, names: Sequence[str], *, logs: bool = False) -> dict[str, Entry]:
        """The records under these names, and with ``logs`` what they are records of, which must be tasks then. All is
        given back with the lock."""
        present = await self._present([own(name) for name in names] + (list(names) if logs else []))
        found = {}
        for name in names:
            records = await self._take_all(own(name)) if own(name) in present else []
            log = await self._take_all(name) if name in present else []
            # the last one is the newest
            found[name] = Entry(records[-1] if records else None, log, [each.tag for each in records])
        return found

    async def read_logs(self, names: Sequence[str]) -> dict[str, Sequence[Letter]]:
        """The logs of these tasks alone."""
        present = await self._present(names)
        return {name: await self._take_all(name) if name in present else [] for name in names}

    async def read_count(self, group_id: str) -> Sequence[Letter]:
        """What is in the queue of a group, which nothing is put into that does not count."""
        found = await self._queues.inspect(group_id)
        return await self._take_all(group_id, ours=0) if found is not None else ()

    async def shorten(self, log: Sequence[Letter]) -> None:
        """Drop these messages of a log, which were read: what follows from them is written elsewhere."""
        async with self._link.asking("take acks"):
            for letter in log:
                await self.channel.basic_ack(letter.tag, wait=False)

    async def write(self, records: Sequence[Record]) -> None:
        """Write these, in place of those that were there; returns when the server has them."""
        if not records:
            return
        back: ArgumentsType = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self._queues._lock_queue(self.lock),
            "x-expires": LONGEST,
        }
        now = self._queues._now()
        async with self._link.asking("declare records of results"):
            for record in records:
                if not record.old:
                    await self.channel.queue_declare(own(record.name), arguments=back, nowait=True)
        sends = [
            (
                "",
                own(record.name),
                record.body,
                _properties({**record.headers, UNTIL: repr(record.until)}, _milliseconds(record.until - now)),
            )
            for record in records
        ]
        are_there = await self._queues._send(self.channel, sends)
        if not all(are_there):
            name = next(record.name for record, is_there in zip(records, are_there, strict=True) if not is_there)
            raise _Vanished(f"RabbitMQ at {self._link.where}: {own(name)!r} is deleted again and again")
        async with self._link.asking("take acks"):
            for record in records:
                for tag in record.old:
                    await self.channel.basic_ack(tag, wait=False)

    async def _present(self, queues: Sequence[str]) -> set[str]:
        """Which of these queues stand: those that take a message which expires at once, and which nobody ever sees."""
        sends = [("", queue, b"", _properties({}, 0)) for queue in queues]
        are_there = await self._queues._send(self.channel, sends)
        return {queue for queue, is_there in zip(queues, are_there, strict=True) if is_there}

    async def _take_all(self, queue: str, ours: int = 1) -> list[Letter]:
        """Take what is in a queue but for the last message, which is ours: the question whether the queue is there."""
        taken: list[Letter] = []
        async with self._link.asking(f"read queue {queue!r}"):
            left = ours + 1
            while left > ours:
                try:
                    message = await self.channel.basic_get(queue)
                except amqp_errors.ChannelNotFoundEntity as exc:
                    if is_absent(exc):
                        text = f"RabbitMQ at {self._link.where}: {queue!r} is deleted again and again"
                        raise _Vanished(text) from exc
                    raise
                if not isinstance(message.delivery, spec.Basic.GetOk):
                    break
                taken.append(_letter(message))
                self.held.add(queue)
                left = message.delivery.message_count or 0
        return taken


@contextmanager
def _said_by(channel: Channel) -> Iterator[None]:
    """Of a channel that the server has closed, what it said is raised, and not only that it is closed."""
    try:
        yield
    except Exception as exc:
        closing = channel.closing
        if closing.done() and not closing.cancelled() and (reason := closing.exception()) is not None:
            raise reason from exc
        raise


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if (size := len(name.encode())) > MAX_NAME:
            raise Refused(f"results on RabbitMQ take UUIDs of {MAX_NAME} bytes, and {name!r} has {size}: shorten it")


def own(name: str) -> str:
    """The queue of the record under that name."""
    return f"{name}{_OWN}"


def lock_of(name: str) -> int:
    """Which lock a name has."""
    return zlib.crc32(name.encode()) % LOCKS


def _letter(message: DeliveredMessage) -> Letter:
    assert isinstance(message.delivery, spec.Basic.GetOk)
    return Letter(message.body, texts(message.header.properties.headers), message.delivery.delivery_tag or 0)


def _properties(headers: Mapping[str, Any], expiration: int | None = None) -> spec.Basic.Properties:
    """As Machinery has them, and headers. A library adds what it needs to each."""
    return spec.Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        headers=dict(headers) or None,
        expiration=None if expiration is None else str(expiration),
    )


def _milliseconds(seconds: float) -> int:
    """For an expiry: at least one, at most what a server takes."""
    return min(max(round(seconds * 1000), 1), LONGEST)
