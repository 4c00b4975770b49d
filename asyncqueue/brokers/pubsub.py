"""Google Pub/Sub as a broker: a topic and a subscription for each queue, the ack deadline as the lease.

A message is Machinery's JSON without attributes, so Go workers and ours share queues. Pub/Sub delays nothing: what is
due later waits in a topic of its own, ``<queue>.delayed``, kept from everybody by its ack deadline for up to ten
minutes at a time, and is moved to its queue when its time has come, by workers that tend that queue. Priorities are not
heeded.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote

from asyncqueue.brokers.base import Capabilities, Dead, Delivery, Message, QueueDepth
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.envelope import Envelope
from asyncqueue.connections.pubsub import (
    REPLY_TIMEOUT,
    Post,
    PubSubLink,
    Received,
    Subscription,
    is_name,
    parse_url,
)
from asyncqueue.connections.pubsub_holding import Held, Holding, Receipt
from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.connections.sending import Sent, all_of
from asyncqueue.errors import AsyncQueueError, MessageTooLarge, Refused, Unavailable

MAX_BATCH = 1_000
"""The most messages in one request."""

MAX_BYTES = 9_900_000
"""The largest message that is published, and the largest batch (bytes): the service's 10,000,000, less the facts that
go with a message into a dead letter."""

MAX_LEASE = 600
"""The longest ack deadline (seconds)."""

LEAST_DEADLINE = 10
"""The shortest ack deadline (seconds) that a subscription may have; that of a message may be shorter."""

PULL_TIME = 10.0
"""How long (seconds) one request for messages is under way at most; fetches that wait share it."""

LOOK = 1.0
"""How long (seconds) one look into a dead letter waits for what is in it."""

PURGE_MARGIN = 5.0
"""A purge ends at what was published so long (seconds) after it began: the service's clock may differ from ours."""

MOST_DEAD = 1_000
"""The most entries of a dead letter that one look goes through."""

TEND = 1.0
"""How often (seconds) to look for delayed messages that are due."""

NEAR = 5.0
"""What is due within so many seconds is kept by who looked at it, and moved at its time."""

RENEW = 86_400.0
"""At what age (seconds) a delayed message is published anew: the service drops what is a week old."""

MAX_NAME = 255
"""The most letters in the name of a topic."""

_MAX_ATTRIBUTE = 1_024
_PREFIX = "q~"
_DUE, _ORDERING_KEY, _EMPTY = "aq-due", "aq-ordering-key", "aq-empty"
_REMEMBERED = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sending:
    """One message on its way to a queue. ``token`` is by what we know that the service has it already."""

    queue: str
    token: str
    post: Post


@dataclass(slots=True)
class _Intake:
    """What comes in from one queue: a request that is under way, and what it brought that nobody has fetched yet."""

    pull: asyncio.Task[Sequence[Delivery]] | None = None
    ready: list[Delivery] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Near:
    """A delayed message that is due soon, ours until ``ends_at`` (monotonic seconds)."""

    message: Received
    ends_at: float


class PubSubBroker:
    """A broker on Google Pub/Sub; see ``asyncqueue.brokers.base`` for what each verb promises.

    ``url`` is ``gcppubsub://PROJECT/SUBSCRIPTION``: the subscription of ``default_queue``. Every other queue has one
    that is named as its topic, which is named as the queue. ``emulator`` is ``host:port`` of an emulator to use instead
    of Google; so is ``?emulator=`` in the URL, which wins. ``lease`` is how long (seconds, rounded up, 600 at most) a
    silent worker keeps what it holds, and ``max_extension`` for how long (seconds) a message is kept in all; 0: as long
    as its task runs. ``create_topics``: a topic or a subscription that is not there is made when it is first used.
    ``publisher`` and ``subscriber`` are the generated async clients that the caller made, and will close.
    """

    def __init__(
        self,
        url: str,
        *,
        default_queue: str = "machinery_tasks",
        emulator: str = "",
        lease: float = 30.0,
        max_extension: float = 0.0,
        create_topics: bool = True,
        reply_timeout: float = REPLY_TIMEOUT,
        publisher: Any = None,
        subscriber: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        address = parse_url(url, emulator=emulator)
        self._link = PubSubLink(address, reply_timeout=reply_timeout, publisher=publisher, subscriber=subscriber)
        self._url = url
        self._default_queue = default_queue
        self._lease = max(1, min(MAX_LEASE, math.ceil(lease)))
        self._max_extension = max_extension
        self._create_topics = create_topics
        self._clock = clock
        self._is_open = False
        self._holding = Holding(clock, max_extension)
        self._mine: dict[Hashable, Delivery] = {}
        self._known: dict[str, Subscription | None] = {}
        self._learning = asyncio.Lock()
        self._intakes: dict[str, _Intake] = {}
        self._near: dict[str, list[_Near]] = {}
        self._sent = Sent()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=float(self._lease),
            max_delay=math.inf,
            max_batch=MAX_BATCH,
            ordered=False,
            counts_deliveries=False,
            refused=frozenset({"peek", "delayed"}),
        )

    @property
    def address(self) -> str:
        return str(self._link.address)

    async def open(self) -> None:
        if self._is_open:
            return
        try:
            self._known[self._default_queue] = await self._looked_up(self._default_queue, create=False)
        except AsyncQueueError as exc:
            if not (self._create_topics and isinstance(exc, Missing)):
                await self._link.close()
                raise
        self._is_open = True

    async def close(self) -> None:
        intakes, self._intakes = self._intakes, {}
        pulls = [intake.pull for intake in intakes.values() if intake.pull is not None]
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)
        mine, self._mine = list(self._mine.values()), {}
        near, self._near = self._near, {}
        with suppress(Unavailable, Refused):  # the lease gives back what we now cannot
            await self.nack(mine)
            await all_of(
                self._show_again(_delayed(queue), [each.message for each in some]) for queue, some in near.items()
            )
        self._known.clear()
        self._is_open = False
        await self._link.close()

    def twin(self) -> Self:
        twin = type(self)(
            self._url,
            default_queue=self._default_queue,
            emulator=self._link.address.emulator,
            lease=self._lease,
            max_extension=self._max_extension,
            create_topics=self._create_topics,
            clock=self._clock,
        )
        twin._link = self._link.twin()
        twin._holding = self._holding
        return twin

    async def identity(self) -> Hashable:
        return ("pubsub", self.address)

    # ------------------------------------------------------------------------------------------------ publish

    async def publish(self, messages: Sequence[Message]) -> None:
        now = self._now()
        sendings = []
        for each in messages:
            post = Post(each.body, _marks(each.body), each.ordering_key or "")
            queue = each.queue
            if post.size > MAX_BYTES:
                raise MessageTooLarge(
                    f"a message for queue {queue!r} takes {post.size} bytes in Pub/Sub, the limit is {MAX_BYTES}"
                )
            if each.not_before is not None and each.not_before > now:
                post, queue = _waiting(post, each.not_before), _delayed(queue)
            sendings.append(_Sending(queue, each.token or secrets.token_hex(16), post))
        await self._send(sendings)
        self._sent.forget(each.token for each in sendings)

    async def _send(self, sendings: Sequence[_Sending]) -> None:
        """Send those that the service does not have. What it has is remembered until the verb ends."""
        queues: dict[str, list[_Sending]] = {}
        for each in sendings:
            if each.token not in self._sent:
                queues.setdefault(each.queue, []).append(each)
        await all_of(self._send_to(queue, waiting) for queue, waiting in queues.items())

    async def _send_to(self, queue: str, waiting: Sequence[_Sending]) -> None:
        topic = _topic(queue)
        # one request after the other: among equal ordering keys their order counts
        for batch in _batches(waiting):
            await self._at(queue, partial(self._publish, topic, [each.post for each in batch]))
            self._sent.add(each.token for each in batch)

    async def _publish(self, topic: str, posts: Sequence[Post], _: Subscription | None) -> None:
        await self._link.publish(topic, posts)

    # ------------------------------------------------------------------------------------------------ fetch

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if limit <= 0:
            return ()
        limit = min(limit, MAX_BATCH)
        intake = self._intakes.setdefault(queue, _Intake())
        if not intake.ready and not _is_over(intake.pull):
            if wait <= 0:
                return await self._pull(queue, limit, 0.0)
            if intake.pull is None:
                intake.pull = asyncio.create_task(self._pull(queue, limit, PULL_TIME), name=f"asyncqueue-pull-{queue}")
            # a request that was broken off may have taken messages: one that comes back late is for a later fetch
            await asyncio.wait({intake.pull}, timeout=wait)
        if intake.pull is not None and intake.pull.done():
            pull, intake.pull = intake.pull, None
            if not pull.cancelled():  # by close
                intake.ready += pull.result()
        taken, intake.ready = intake.ready[:limit], intake.ready[limit:]
        fresh = [each for each in taken if self._holding.of(each.receipt, left=self._lease / 2)]
        if len(fresh) < len(taken):  # they lay here for long, and nobody extended them
            with suppress(Unavailable, Refused):  # then their lease ends; what is fresh is not to wait for that
                await self.nack([each for each in taken if each not in fresh])
        return fresh

    async def _pull(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        name = self._subscription(queue)

        async def pull(known: Subscription | None) -> Sequence[Delivery]:
            found = await self._link.pull(name, limit, wait=wait)
            if not found:
                return ()
            since = self._clock.monotonic()
            deadline = known.ack_deadline if known else LEAST_DEADLINE
            # if there is no answer to the longer one, either may count
            ends_at = since + min(deadline, self._lease)
            lost: set[str] = set()
            if known is None or known.ack_deadline != self._lease:
                with suppress(Unavailable):
                    lost = await self._link.modify_deadline(name, [each.ack_id for each in found], self._lease)
                    ends_at = since + self._lease
            # the service counts what was given back too: all that can be relied on is whether this is the first
            return [
                Delivery(each.body, queue, self._holding.take(name, each, ends_at), min(each.shown, 2))
                for each in found
                if each.ack_id not in lost
            ]

        deliveries = await self._at(queue, pull)
        self._mine.update((delivery.receipt, delivery) for delivery in deliveries)
        if len(self._mine) > _REMEMBERED:  # of those that were lost, nobody told us
            self._let_go([each for receipt, each in self._mine.items() if self._holding.of(receipt) is None])
        return deliveries

    # ------------------------------------------------------------------------------------------------ settle

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        async def acknowledge(name: str, receipts: Sequence[Receipt]) -> None:
            with suppress(Missing):  # the subscription is gone, and all that was in it
                await self._link.acknowledge(name, [each.ack_id for each in receipts])

        await self._of_ours(deliveries, acknowledge)
        self._let_go(deliveries)

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        if delay > MAX_LEASE:
            due = self._now() + delay
            await self._move(deliveries, lambda delivery, held: _again(delivery, held, due))
            return
        await self._set_deadlines(deliveries, math.ceil(max(0.0, delay)))
        self._let_go(deliveries)

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        now = self._clock.monotonic()
        gone: set[Hashable] = set()
        kept: list[Delivery] = []
        for each in deliveries:
            held = self._holding.of(each.receipt)
            if held is None:
                gone.add(each.receipt)
            elif now < held.longest_at:
                kept.append(each)
        gone |= await self._set_deadlines(kept, self._lease)
        for each in kept:
            self._holding.extend(each.receipt, now + self._lease)
        lost = [each for each in deliveries if each.receipt in gone]
        self._let_go(lost)
        return lost

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        now = self._now()

        def buried(delivery: Delivery, _: Held) -> _Sending:
            facts = Envelope(delivery.queue, reason, error, delivery.attempt, now).attributes(longest=_MAX_ATTRIBUTE)
            return _Sending(_dead_letter(delivery.queue), f"buried/{delivery.receipt}", Post(delivery.body, facts))

        await self._move(deliveries, buried)

    async def _move(self, deliveries: Sequence[Delivery], sending: Callable[[Delivery, Held], _Sending]) -> None:
        """Send what these become, then acknowledge them. A kill in between leaves both; a repetition does not."""
        ours = {
            each.receipt: sending(each, held)
            for each in deliveries
            if (held := self._holding.of(each.receipt)) is not None
        }
        sendings = list(ours.values())
        await self._send(sendings)
        await self.ack(deliveries)
        self._sent.forget(each.token for each in sendings)

    async def _set_deadlines(self, deliveries: Sequence[Delivery], seconds: int) -> set[Hashable]:
        """The receipts of those that the service says are lost."""
        lost: set[Hashable] = set()

        async def modify(name: str, receipts: Sequence[Receipt]) -> None:
            try:
                gone = await self._link.modify_deadline(name, [each.ack_id for each in receipts], seconds)
            except Missing:
                gone = {each.ack_id for each in receipts}
            lost.update(each for each in receipts if each.ack_id in gone)

        await self._of_ours(deliveries, modify)
        return lost

    async def _of_ours(
        self, deliveries: Sequence[Delivery], call: Callable[[str, Sequence[Receipt]], Awaitable[None]]
    ) -> None:
        """Call with the receipts that are still ours, those of each subscription."""
        names: dict[str, dict[Receipt, None]] = {}
        for delivery in deliveries:
            if isinstance(delivery.receipt, Receipt) and self._holding.of(delivery.receipt) is not None:
                names.setdefault(delivery.receipt.subscription, {})[delivery.receipt] = None
        await all_of(call(name, list(receipts)) for name, receipts in names.items())

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._holding.let_go(delivery.receipt)
            self._mine.pop(delivery.receipt, None)

    # ------------------------------------------------------------------------------------------------ tend

    async def tend(self, queues: Sequence[str]) -> float:
        return min(await all_of(map(self._release, queues)), default=TEND)

    async def _release(self, queue: str) -> float:
        """Move what is due to its queue, and keep the rest for longer; returns when (in seconds) to look again."""
        waiting = _delayed(queue)
        name = self._subscription(waiting)
        since = self._clock.monotonic()
        try:
            found = await self._link.pull(name, MAX_BATCH, wait=0.0)
        except Missing:  # nothing was ever delayed
            return TEND
        now = self._now()
        near = [each for each in self._near.pop(queue, ()) if each.ends_at > since]
        due: list[tuple[Received, _Sending]] = []
        later: dict[int, list[str]] = {}
        soon: list[_Near] = []
        for each in (*near, *(_Near(message, since + LEAST_DEADLINE) for message in found)):
            message, left = each.message, _due(each.message) - now
            if left <= 0:
                due.append((message, _Sending(queue, f"due/{message.message_id}", _released(message))))
            elif left <= NEAR:
                soon.append(each)
            elif now - message.published_at > RENEW:
                post = Post(message.body, message.attributes)
                due.append((message, _Sending(waiting, f"renewed/{message.message_id}", post)))
            else:
                later.setdefault(_hold(left), []).append(message.ack_id)
        self._near[queue] = soon
        sendings = [sending for _, sending in due]
        await all_of(self._link.modify_deadline(name, ack_ids, seconds) for seconds, ack_ids in later.items())
        await self._send(sendings)
        if due:
            await self._link.acknowledge(name, [message.ack_id for message, _ in due])
        self._sent.forget(each.token for each in sendings)
        if found:  # the service gives as many at once as it likes
            return 0.0
        return max(0.0, min(TEND, min((_due(each.message) for each in soon), default=math.inf) - self._now()))

    # ------------------------------------------------------------------------------------------------ inspect

    async def queues(self) -> Sequence[str]:
        """Those with a subscription that a worker of this broker would use."""
        queues = set()
        for each in await self._link.subscriptions():
            queue = _queue(each.topic)
            if self._subscription(queue) == each.name and not queue.endswith((".dead", ".delayed")):
                queues.add(queue)
        return sorted(queues)

    async def depth(self, queue: str) -> QueueDepth:
        """Nothing but whether there is such a queue: how much is in it, Pub/Sub tells Cloud Monitoring alone."""
        try:
            await self._link.subscription(self._subscription(queue))
        except Missing:
            return QueueDepth(queue, ready=0, held=0, delayed=0, dead=0)
        return QueueDepth(queue, ready=None, held=None, delayed=None, dead=None)

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        """Raises ``Refused``: Pub/Sub shows a message only to who takes it."""
        raise Refused(f"Pub/Sub shows a message of queue {queue!r} only to a worker that takes it")

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        """Raises ``Refused``: Pub/Sub shows no message while it is kept for later."""
        raise Refused("Pub/Sub shows no message before it is due")

    async def purge(self, queue: str) -> int:
        count = 0
        until = self._now() + PURGE_MARGIN
        with suppress(Missing):
            while found := await self._link.pull(self._subscription(queue), MAX_BATCH, wait=LOOK):
                await self._link.acknowledge(self._subscription(queue), [each.ack_id for each in found])
                count += len(found)
                if min(each.published_at for each in found) > until:  # a queue that is filled all the time has no end
                    break
        return count

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        found = await self._look_at_dead(queue)
        await self._show_again(_dead_letter(queue), [each for each, _ in found])
        return [entry for _, entry in found][offset : offset + max(0, limit)]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        async def send(entries: Sequence[Dead]) -> None:
            sendings = [_Sending(queue, f"requeued/{each.id}", Post(each.body, _marks(each.body))) for each in entries]
            await self._send(sendings)

        return await self._take_dead(queue, ids, send)

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        async def nothing(entries: Sequence[Dead]) -> None:
            pass

        return await self._take_dead(queue, ids, nothing)

    async def _take_dead(
        self, queue: str, ids: Sequence[str], first: Callable[[Sequence[Dead]], Awaitable[None]]
    ) -> int:
        """Do something with these entries, take them out, and show the others again."""
        wanted = set(ids)
        found = await self._look_at_dead(queue, wanted)
        taken = [each for each in found if each[1].id in wanted]
        try:
            if taken:
                await first([entry for _, entry in taken])
                letter = self._subscription(_dead_letter(queue))
                await self._link.acknowledge(letter, [each.ack_id for each, _ in taken])
        finally:
            await self._show_again(_dead_letter(queue), [each for each, entry in found if entry.id not in wanted])
        self._sent.forget(f"requeued/{entry.id}" for _, entry in taken)
        return len(taken)

    async def _look_at_dead(self, queue: str, wanted: set[str] | None = None) -> list[tuple[Received, Dead]]:
        """Entries, oldest first, kept from others meanwhile: all of them, or until all that are wanted are there."""
        letter = self._subscription(_dead_letter(queue))
        found: dict[str, tuple[Received, Dead]] = {}
        with suppress(Missing):
            while len(found) < MOST_DEAD and (wanted is None or wanted - found.keys()):
                some = await self._link.pull(letter, MAX_BATCH, wait=LOOK)
                if not some:
                    break
                for each in some:
                    found[each.message_id] = (
                        each,
                        Envelope.read(each.attributes, queue).entry(each.message_id, each.body),
                    )
        return sorted(found.values(), key=lambda each: (each[1].buried_at, each[0].published_at, each[1].id))

    async def _show_again(self, queue: str, shown: Sequence[Received]) -> None:
        await self._link.modify_deadline(self._subscription(queue), [each.ack_id for each in shown], 0)

    # ------------------------------------------------------------------------------------------------ places

    async def _at(self, queue: str, call: Callable[[Subscription | None], Awaitable[T]]) -> T:
        """Call with what is known of a queue's subscription; of one that is gone, what is missing is made, or named."""
        try:
            return await call(await self._learn(queue))
        except Missing:
            self._known.pop(queue, None)
            return await call(await self._learn(queue))

    async def _learn(self, queue: str) -> Subscription | None:
        """What stands about a queue's subscription, which is made where it is missing; None: we may not look.

        Also before the first publish: of a topic that has no subscription, all messages are lost.
        """
        if queue in self._known:
            return self._known[queue]
        async with self._learning:
            if queue not in self._known:
                self._known[queue] = await self._looked_up(queue, create=self._create_topics)
        return self._known[queue]

    async def _looked_up(self, queue: str, *, create: bool) -> Subscription | None:
        topic, name = _topic(queue), self._subscription(queue)
        try:
            found = await self._link.subscription(name)
        except Missing as exc:
            if not create:
                raise Missing(
                    f"subscription {name!r} of topic {topic!r}, for queue {queue!r}, does not exist in"
                    f" {self.address}; gcppubsub.create_topics would make it",
                    exc.code,
                ) from exc
            found = await self._made(queue)
        except SaidNo as exc:
            if exc.code != "PERMISSION_DENIED":
                raise
            return None
        if found.topic != topic:
            raise Refused(
                f"subscription {name!r} in {self.address} is of topic {found.topic!r}: queue {queue!r} needs one of"
                f" topic {topic!r}"
            )
        return found

    async def _made(self, queue: str) -> Subscription:
        topic = _topic(queue)
        wanted = Subscription(self._subscription(queue), topic, max(LEAST_DEADLINE, self._lease))
        try:
            if not queue.endswith((".dead", ".delayed")):
                letter = _topic(_dead_letter(queue))
                await self._link.create_topic(letter)
                await self._link.create_subscription(Subscription(letter, letter, LEAST_DEADLINE))
                await self._link.create_topic(topic)
                await self._link.create_subscription(wanted, dead_letter=letter)
            else:
                await self._link.create_topic(topic)
                await self._link.create_subscription(wanted)
        except SaidNo as exc:
            raise Refused(
                f"subscription {wanted.name!r} of topic {topic!r} does not exist in {self.address}, and could not be"
                f" made: {exc}"
            ) from exc
        return await self._link.subscription(wanted.name)

    def _subscription(self, queue: str) -> str:
        return self._link.address.subscription if queue == self._default_queue else _topic(queue)

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


@lru_cache(1024)
def _topic(queue: str) -> str:
    """The name of a queue's topic: its own, where Pub/Sub takes that. Raises ``Refused`` for one that is too long."""
    name = quote(queue, safe="+")
    for possible in (name, f"{_PREFIX}{name}"):
        if is_name(possible) and _queue(possible) == queue:
            return possible
    raise Refused(f"queue {queue!r}: in Pub/Sub its name has {len(name)} letters, and may have {MAX_NAME}")


def _queue(topic: str) -> str:
    return unquote(topic.removeprefix(_PREFIX))


def _dead_letter(queue: str) -> str:
    return f"{queue}.dead"


def _delayed(queue: str) -> str:
    return f"{queue}.delayed"


def _marks(body: bytes) -> Mapping[str, str]:
    """What goes with a body: a message that is empty altogether is not taken."""
    return {} if body else {_EMPTY: "1"}


def _waiting(post: Post, due: float) -> Post:
    """The same in the store of delayed messages, where it must not hold up others of its ordering key."""
    key = {_ORDERING_KEY: post.ordering_key} if post.ordering_key else {}
    return Post(post.body, {**post.attributes, _DUE: f"{due:.6f}", **key})


def _again(delivery: Delivery, held: Held, due: float) -> _Sending:
    post = Post(delivery.body, held.attributes or _marks(delivery.body), held.ordering_key)
    return _Sending(_delayed(delivery.queue), f"again/{delivery.receipt}", _waiting(post, due))


def _released(message: Received) -> Post:
    attributes = dict(message.attributes)
    attributes.pop(_DUE, None)
    return Post(message.body, attributes, attributes.pop(_ORDERING_KEY, ""))


def _due(message: Received) -> float:
    try:
        due = float(message.attributes.get(_DUE, ""))
    except ValueError:  # put there by somebody else
        return 0.0
    return due if math.isfinite(due) else 0.0


def _hold(left: float) -> int:
    """For how long (seconds) to keep what is due then, so that it is looked at again shortly before: few different
    times, so that few requests say them all."""
    hold = left - NEAR / 2
    return int(hold) if hold < 20 else min(MAX_LEASE, int(hold) // 10 * 10)


def _is_over(pull: asyncio.Task[Any] | None) -> bool:
    return pull is not None and pull.done()


def _batches(waiting: Sequence[_Sending]) -> Iterator[Sequence[_Sending]]:
    """Parts that one request can carry."""
    batch: list[_Sending] = []
    size = 0
    for each in waiting:
        if batch and (len(batch) == MAX_BATCH or size + each.post.size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.post.size
    if batch:
        yield batch
