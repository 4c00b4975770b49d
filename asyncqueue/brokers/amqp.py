"""RabbitMQ as a broker, on Machinery's exchange and queues: at least once, pulled, with every publish confirmed.

A fetch attaches a consumer with a prefetch of what was asked for, takes what comes, and detaches it: the server pushes
nothing that nobody asked for, and a consumer that the server has lost is missed for one fetch and no longer. What was
taken is held by the channel that took it, until it is settled or that channel ends; then the server shows it again.

Publishing has a connection of its own, because a server that is short of memory stops reading from those that publish.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Coroutine, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self, TypeAlias, TypeVar, cast

from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity, PublishError

from asyncqueue.brokers.base import Capabilities, Dead, Delivery, Message, QueueDepth
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.amqp import (
    CONNECT_TIMEOUT,
    HEARTBEAT,
    REPLY_TIMEOUT,
    Access,
    AmqpLink,
    Standing,
    is_absent,
    parse_urls,
)
from asyncqueue.connections.amqp_holding import Arrivals, Copies, Holding, tag_of
from asyncqueue.connections.amqp_topology import MAX_DELAY, Route, Topology
from asyncqueue.errors import AsyncQueueError, BadMessage, MessageTooLarge, Refused, Unavailable
from asyncqueue.wire import decode_signature

MAX_BATCH = 1_000
"""The most messages that one fetch takes."""

RENEW_AFTER = 300.0
"""Seconds after which a delivery that is still held is held anew; a server allows 30 minutes unless told otherwise."""

_RENEW_AGAIN = 30.0

MAX_ERROR = 32_768
"""The most characters of an error text that a dead letter keeps: headers have to fit in one frame."""

LOST = "aq-lost"
"""The header that says how often a message was shown and lost before it was published again."""

DEAD_QUEUE, DEAD_REASON, DEAD_ERROR = "aq-queue", "aq-reason", "aq-error"
DEAD_ATTEMPT, DEAD_AT = "aq-attempt", "aq-buried-at"

_NO_HEADERS = b'"Headers":{}'
_SERVERS_OWN = re.compile(r"x-(death|first-death-|last-death-|delivery-count|acquired-count)")

_DEAD_HEADERS = frozenset({DEAD_QUEUE, DEAD_REASON, DEAD_ERROR, DEAD_ATTEMPT, DEAD_AT})

T = TypeVar("T")

_Receipt: TypeAlias = tuple[str, int, int]
"""Whose it is, the number of the channel that it came on, and the server's number for it there."""


class AmqpBroker:
    """A broker on RabbitMQ; see ``asyncqueue.brokers.base`` for what each verb promises.

    ``url`` is ``amqp://`` or ``amqps://``; with ``separator`` it names several servers, of which the first that answers
    is used. ``topology`` is Machinery's: exchange, default queue, binding key, arguments. ``prefetch`` bounds how many
    messages of a queue this instance holds, 0: as many as are asked for. ``reply_timeout`` (seconds) is for each
    request and for the confirmation of a batch; ``heartbeat`` is in whole seconds. ``tls`` is a context to use for
    ``amqps://`` instead of the one that the URL's options make.

    Deliveries have no lease: they stay ours until their channel ends. A server ends that, too, where one was held for
    longer than its ``consumer_timeout``: so ``extend`` holds anew what was held for ``renew_after`` seconds, as a copy
    in a queue of our own. Deliveries are counted by quorum queues alone; any other queue tells
    only a first showing from a later one.
    """

    def __init__(
        self,
        url: str,
        *,
        separator: str = "",
        topology: Topology | None = None,
        prefetch: int = 0,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        heartbeat: int = HEARTBEAT,
        renew_after: float = RENEW_AFTER,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "url": url,
            "separator": separator,
            "topology": topology,
            "prefetch": prefetch,
            "connect_timeout": connect_timeout,
            "reply_timeout": reply_timeout,
            "heartbeat": heartbeat,
            "renew_after": renew_after,
            "tls": tls,
            "client_name": client_name,
            "clock": clock,
        }
        self._separator = separator
        self._topology = topology or Topology()
        self._prefetch = prefetch
        self._renew_after = renew_after
        self._clock = clock
        self._access = Access(parse_urls(url, separator, tls), connect_timeout, reply_timeout, heartbeat, client_name)
        self._start()
        # a broker and its twins, as far as they are open: whoever has the channel settles what came on it
        self._family: dict[str, AmqpBroker] = {}

    def _start(self) -> None:
        self._id = secrets.token_hex(8)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publishing = AmqpLink(self._access, "publishing")
        self._consuming = AmqpLink(self._access, "consuming")
        self._outlets = Standing(self._publishing)
        self._inlets = Standing(self._consuming)
        self._opening_channel = asyncio.Lock()
        self._outlet: Channel | None = None
        self._routes: dict[str, Route] = {}
        self._intakes: dict[str, _Intake] = {}
        self._channels: dict[int, Holding] = {}
        self._numbers = itertools.count(1)
        self._moved: dict[Hashable, _Receipt] = {}  # what is held anew, by its first receipt
        self._renewing: set[Hashable] = set()
        self._renewed = asyncio.Event()
        self._ending: set[asyncio.Task[Any]] = set()

    @property
    def capabilities(self) -> Capabilities:
        arguments = self._topology.queue_arguments
        return Capabilities(
            lease=None,
            max_delay=float(MAX_DELAY - 1),
            max_batch=MAX_BATCH,
            ordered=True,
            counts_deliveries=self._topology.is_quorum,
            priorities="x-max-priority" in arguments,
            refused=frozenset({"queues", "peek", "delayed"}),
        )

    @property
    def address(self) -> str:
        return ", ".join(f"amqp://{server}" for server in self._access.servers)

    async def open(self) -> None:
        await self._publishing.reach()
        self._loop = asyncio.get_running_loop()
        self._family[self._id] = self

    async def close(self) -> None:
        self._family.pop(self._id, None)
        for intake in self._intakes.values():
            intake.leave()
        if self._ending:
            await asyncio.wait(self._ending)
        await self._consuming.close()
        await self._publishing.close()
        self._start()

    def twin(self) -> Self:
        twin = type(self)(**self._arguments)
        twin._access, twin._family = self._access, self._family
        twin._start()
        return twin

    def connect_with(
        self,
        url: str,
        *,
        topology: Topology | None = None,
        prefetch: int | None = None,
        connect_timeout: float | None = None,
        reply_timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._access.servers = parse_urls(url, self._separator, tls)
        self._access.connect_timeout = connect_timeout or self._access.connect_timeout
        self._access.reply_timeout = reply_timeout or self._access.reply_timeout
        self._topology = topology or self._topology
        self._routes.clear()
        self._prefetch = self._prefetch if prefetch is None else prefetch
        self._arguments |= {"topology": self._topology, "prefetch": self._prefetch}

    async def identity(self) -> Hashable:
        return ("amqp", self.address, self._topology.exchange)

    # ------------------------------------------------------------------------------------------------ publish

    async def publish(self, messages: Sequence[Message]) -> None:
        self._check_open()
        await self._send([self._parcel(message) for message in messages])

    def _parcel(self, message: Message) -> _Parcel:
        """A message as Machinery would publish it."""
        return _Parcel(
            self._route(message.queue, 0.0 if message.not_before is None else message.not_before - self._now()),
            message.body,
            _properties(_headers_in(message.body), message.priority),
            message.queue,
        )

    def _direct(self, queue: str) -> Route:
        """To a queue at once, made out once for each queue."""
        route = self._routes.get(queue)
        if route is None:
            route = self._routes[queue] = self._topology.route(queue)
        return route

    def _route(self, queue: str, delay: float) -> Route:
        if delay <= 0:
            return self._direct(queue)
        try:
            return self._topology.delayed(queue, delay)
        except ValueError as exc:
            raise Refused(f"RabbitMQ cannot delay a message of queue {queue!r} so long: {exc}") from exc

    async def _send(self, parcels: Sequence[_Parcel]) -> None:
        """Publish in order; returns when the server has confirmed all of them."""
        if not parcels:
            return
        returned = await self._try_to_send(parcels)
        if returned:  # a queue may have been deleted since we declared it
            for parcel in returned:
                self._outlets.forget(parcel.route.needs)
            returned = await self._try_to_send(returned)
        if returned:
            queues = ", ".join(sorted({repr(parcel.queue) for parcel in returned}))
            key = returned[0].route.routing_key
            raise Refused(
                f"RabbitMQ at {self._publishing.where} has no queue for messages to {queues}: nothing is bound to"
                f" exchange {returned[0].route.exchange!r} by routing key {key!r}"
            )

    async def _try_to_send(self, parcels: Sequence[_Parcel]) -> list[_Parcel]:
        """Publish in order and wait for the confirmations; returns what the server could put into no queue."""
        for needs in {id(parcel.route.needs): parcel.route.needs for parcel in parcels}.values():
            await self._outlets.ensure(needs)
        channel = await self._outlet_channel()
        async with self._publishing.asking("confirm messages"):
            results = await asyncio.gather(
                *(
                    channel.basic_publish(
                        parcel.body,
                        exchange=parcel.route.exchange,
                        routing_key=parcel.route.routing_key,
                        properties=parcel.properties,
                        mandatory=True,
                        wait=False,
                    )
                    for parcel in parcels
                ),
                return_exceptions=True,
            )
        returned: list[_Parcel] = []
        for parcel, result in zip(parcels, results, strict=True):
            match result:
                case PublishError():
                    returned.append(parcel)
                case asyncio.CancelledError():
                    raise Unavailable(f"RabbitMQ at {self._publishing.where}: the connection broke (to publish)")
                case Exception():
                    raise self._error(result, parcel, parcels) from result
                case _:
                    if not self._outlets.stands(parcel.route.needs):
                        raise Unavailable(
                            f"RabbitMQ at {self._publishing.where} was too slow: the delay queue"
                            f" {parcel.route.routing_key!r} may have expired with the message in it"
                        )
        return returned

    def _error(self, exc: Exception, parcel: _Parcel, parcels: Sequence[_Parcel]) -> AsyncQueueError:
        """What it means for these parcels that publishing one of them ended so."""
        error = self._publishing.meaning(exc, f"take a message for queue {parcel.queue!r}")
        if not isinstance(error, MessageTooLarge):
            return error
        # the server ends the channel, and everything on it; it names the size alone
        large = next((each for each in parcels if f"size {len(each.body)} " in str(error)), None)
        if large is None:
            return Unavailable(f"RabbitMQ at {self._publishing.where}: another message has closed the channel")
        return self._publishing.meaning(exc, f"take a message for queue {large.queue!r}")

    async def _outlet_channel(self) -> Channel:
        async with self._opening_channel:
            if self._outlet is None or self._outlet.is_closed:
                self._outlet = await self._publishing.channel(confirms=True)
            return self._outlet

    # ------------------------------------------------------------------------------------------------ fetch

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        self._check_open()
        if limit <= 0:
            return ()
        intake = self._intakes.setdefault(queue, _Intake())
        fetching = self._own(
            asyncio.create_task(self._take(queue, intake, min(limit, MAX_BATCH), wait, intake.asked_to_leave))
        )
        try:
            # a request that is broken off would take the channel with it, and all that it holds
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            intake.leave()
            self._own(asyncio.create_task(self._undo(fetching)))
            raise

    def _own(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """It comes to its end before we close, whatever becomes of whoever asked for it."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be left to hear of it
        return task

    async def _undo(self, fetching: asyncio.Task[Sequence[Delivery]]) -> None:
        """Give back what a fetch that was cancelled took all the same."""
        with suppress(AsyncQueueError):  # then it goes back with its channel
            await self._nack(await fetching, 0.0)

    async def _take(
        self, queue: str, intake: _Intake, limit: int, wait: float, leaving: asyncio.Event
    ) -> Sequence[Delivery]:
        async with intake.fetching:
            if leaving.is_set():
                return ()
            ends_at = asyncio.get_running_loop().time() + wait
            channel = await self._intake_channel(queue, intake)
            if self._prefetch:
                held_anew = 0 if intake.anew is None else intake.anew.channel.count
                limit = min(limit, await channel.room(self._prefetch - held_anew, wait, leaving))
            if limit <= 0 or leaving.is_set():
                return ()
            arrived = await self._attend(queue, intake, channel, limit, ends_at)
            return [self._delivery(queue, channel, message) for message in arrived]

    async def _intake_channel(self, queue: str, intake: _Intake) -> Holding:
        await self._inlets.ensure(self._direct(queue).needs)
        if intake.channel is None or not intake.channel.is_open:
            intake.channel = await self._new_channel()
        return intake.channel

    async def _new_channel(self, *, is_private: bool = False) -> Holding:
        number = next(self._numbers)
        channel = Holding(self._consuming, await self._consuming.channel(), number, is_private=is_private)
        self._channels = {number: each for number, each in self._channels.items() if each.is_open}
        self._channels[channel.number] = channel
        return channel

    async def _attend(
        self, queue: str, intake: _Intake, channel: Holding, limit: int, ends_at: float
    ) -> list[DeliveredMessage]:
        """Be a consumer until something came, or until ``ends_at``."""
        needs = self._direct(queue).needs
        tag = f"{self._id}.{channel.number}.{next(self._numbers)}"
        intake.arrivals = arrivals = Arrivals()
        try:
            await channel.attach(self._topology.name(queue), tag, limit, arrivals)
            await arrivals.first(ends_at)
            await channel.detach(tag)
        except AsyncQueueError:  # the channel is at its end, and what came on it went back
            self._inlets.forget(needs)
            raise
        if arrivals.were_ended:
            self._inlets.forget(needs)  # the queue was deleted, or its node went down
        return [message for message in arrivals.messages if channel.holds(tag_of(message))]

    def _delivery(self, queue: str, channel: Holding, message: DeliveredMessage) -> Delivery:
        headers = message.header.properties.headers or {}
        lost = headers.get("x-delivery-count", 1 if message.redelivered else 0)
        receipt: _Receipt = (self._id, channel.number, tag_of(message))
        return Delivery(message.body, queue, receipt, 1 + _number(lost) + _number(headers.get(LOST)))

    # ------------------------------------------------------------------------------------------------ settle

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        for owner, mine in await self._owners(deliveries):
            await self._through(owner, owner._ack(mine))

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        for owner, mine in await self._owners(deliveries):
            await self._through(owner, owner._nack(mine, delay))

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        lost = {delivery.receipt for delivery in deliveries}
        for owner, mine in await self._owners(deliveries):
            lost -= await self._through(owner, owner._still_held(mine))
        return [delivery for delivery in deliveries if delivery.receipt in lost]

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        for owner, mine in await self._owners(deliveries):
            await self._through(owner, owner._bury(mine, reason, error))

    async def _owners(self, deliveries: Sequence[Delivery]) -> list[tuple[AmqpBroker, list[Delivery]]]:
        """Who has the channels that these came on, of us and our twins; what is nobody's is left out."""
        self._check_open()
        found: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            found.setdefault(_receipt(delivery)[0], []).append(delivery)
        if any(each not in self._family for each in found):
            await self._consuming.reach()  # that it is nobody's, only a server that is there can mean
        return [(self._family[each], mine) for each, mine in found.items() if each in self._family]

    async def _through(self, owner: AmqpBroker, work: Coroutine[Any, Any, T]) -> T:
        """Have it done in the loop that the channel belongs to."""
        loop = owner._loop
        if loop is asyncio.get_running_loop():
            return await work
        if loop is None:  # in its own thread, it was closed just now
            work.close()
            raise Unavailable("the broker that holds these deliveries has left")
        try:
            doing = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError as exc:  # its loop is closed, and its channels with it
            work.close()
            raise Unavailable("the loop of the broker that holds these deliveries is closed") from exc
        async with self._consuming.asking("settle through another loop"):
            return await asyncio.wrap_future(doing)

    async def _ack(self, deliveries: Sequence[Delivery]) -> None:
        for channel, held in await self._settleable(deliveries):
            await channel.ack(held)

    async def _nack(self, deliveries: Sequence[Delivery], delay: float) -> None:
        for channel, held in await self._settleable(deliveries):
            if delay <= 0 and not channel.is_private:
                await channel.give_back(held)
                continue
            parcels: dict[int, _Parcel] = {}
            for tag, each in held.items():
                properties = _again(channel.message(tag), each)
                parcels[tag] = _Parcel(self._route(each.queue, delay), each.body, properties, each.queue)
            await self._replace(channel, parcels)

    async def _bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        for channel, held in await self._settleable(deliveries):
            parcels: dict[int, _Parcel] = {}
            for tag, each in held.items():
                properties = _buried(channel.message(tag), each, reason, error, self._now())
                route = self._topology.dead_letter(each.queue)
                parcels[tag] = _Parcel(route, each.body, properties, route.routing_key)
            await self._replace(channel, parcels)

    async def _replace(self, channel: Holding, parcels: Mapping[int, _Parcel]) -> None:
        """Publish in their place, then ack: who dies between the two leaves both, and never none."""
        with channel.claimed(parcels) as tags:
            await self._send([parcels[tag] for tag in tags])
            await channel.ack_claimed(tags)

    async def _settleable(self, deliveries: Sequence[Delivery]) -> list[tuple[Holding, dict[int, Delivery]]]:
        """What of these we hold, once none of them is being held anew."""
        receipts = {each.receipt for each in deliveries}
        while not self._renewing.isdisjoint(receipts):
            self._renewed.clear()
            await self._renewed.wait()
        return self._held(deliveries)

    def _held(self, deliveries: Sequence[Delivery]) -> list[tuple[Holding, dict[int, Delivery]]]:
        """What of these we hold, each once, by channel and by its tag there."""
        found: dict[int, dict[int, Delivery]] = {}
        for delivery in deliveries:
            _, number, tag = self._moved.get(delivery.receipt) or _receipt(delivery)
            channel = self._channels.get(number)
            if channel is not None and channel.holds(tag):
                found.setdefault(number, {})[tag] = delivery
        return [(self._channels[number], held) for number, held in found.items()]

    # ------------------------------------------------------------------------------------------------ extend

    async def _still_held(self, deliveries: Sequence[Delivery]) -> set[Hashable]:
        # a request that is broken off would take the channel with it, and all that it holds
        return await asyncio.shield(self._own(asyncio.create_task(self._keep(deliveries))))

    async def _keep(self, deliveries: Sequence[Delivery]) -> set[Hashable]:
        for channel, _ in self._held(deliveries):
            await channel.check()
        for channel, held in self._held(deliveries):
            old = {tag: each for tag, each in held.items() if channel.age(tag) >= self._renew_after}
            for queue in {each.queue for each in old.values()}:
                await self._try_to_renew(queue, channel, {tag: e for tag, e in old.items() if e.queue == queue})
        kept: set[Hashable] = {each.receipt for _, held in self._held(deliveries) for each in held.values()}
        if len(kept) < len(deliveries):
            await self._consuming.reach()  # while no server is there, nobody else is given them
        return kept

    async def _try_to_renew(self, queue: str, channel: Holding, old: Mapping[int, Delivery]) -> None:
        now, intake = asyncio.get_running_loop().time(), self._intakes[queue]
        if now < intake.renew_again_at:
            return
        try:
            await self._renew(queue, channel, old)
        except AsyncQueueError:  # they stay where they are, for as long as the server lets them
            intake.renew_again_at = now + _RENEW_AGAIN

    async def _renew(self, queue: str, channel: Holding, old: Mapping[int, Delivery]) -> None:
        """Hold these anew: publish copies that nobody else is shown, take them, and ack what they are copies of.

        Who dies meanwhile leaves both, and never none; a copy that comes back tells that it was shown before.
        """
        self._moved = {first: now for first, now in self._moved.items() if self._has(now)}
        async with self._intakes[queue].renewing:
            anew = await self._anew(queue)
            with channel.claimed(old) as tags:
                receipts = {tag: old[tag].receipt for tag in tags}
                coming: dict[int, asyncio.Future[int]] = {}
                there: dict[int, int] = {}
                self._renewing.update(receipts.values())
                try:
                    parcels: list[_Parcel] = []
                    for tag in tags:
                        properties = _copied(channel.message(tag), old[tag])
                        parcels.append(_Parcel(anew.route, old[tag].body, properties, anew.route.routing_key))
                        coming[tag] = anew.copies.expect(properties.message_id)
                    if coming:  # else somebody is about to settle them all
                        await self._send(parcels)
                        await asyncio.wait(coming.values(), timeout=self._access.reply_timeout)
                    there = {
                        tag: each.result()
                        for tag, each in coming.items()
                        if each.done() and not each.cancelled() and channel.has(tag)
                    }
                    for tag, new in there.items():
                        self._moved[receipts[tag]] = (self._id, anew.channel.number, new)
                    await channel.ack_claimed(there)
                finally:
                    for tag, each in coming.items():
                        if tag not in there:
                            anew.copies.refuse(each)  # the first one is not acked
                    self._renewing.difference_update(receipts.values())
                    self._renewed.set()

    async def _anew(self, queue: str) -> _Anew:
        """Where what came from a queue is held anew, ready to take copies."""
        intake = self._intakes[queue]
        if intake.anew is None or not intake.anew.channel.is_open or intake.anew.copies.were_ended:
            channel = await self._new_channel(is_private=True)
            # a name for each channel: what one gave back must not come to the next, where nobody waits for it
            route = self._topology.held_anew(queue, f"{self._id}.{channel.number}")
            await self._inlets.ensure(route.needs)
            copies = Copies(lambda tag: self._own(asyncio.create_task(channel.ack([tag]))))
            await channel.attach(route.routing_key, f"{self._id}.{channel.number}", 0, copies)
            # declared here alone: a copy that is sent to another server than this one comes back as an error
            intake.anew = _Anew(channel, copies, replace(route, needs=()))
        return intake.anew

    def _has(self, receipt: _Receipt) -> bool:
        channel = self._channels.get(receipt[1])
        return channel is not None and channel.has(receipt[2])

    # ------------------------------------------------------------------------------------------------ inspect

    async def queues(self) -> Sequence[str]:
        raise Refused(
            f"RabbitMQ at {self._publishing.where} does not list its queues to clients: ask `rabbitmqctl list_queues`"
        )

    async def depth(self, queue: str) -> QueueDepth:
        self._check_open()
        ready = await self._count(self._topology.name(queue))
        dead = await self._count(f"{queue}.dead")
        return QueueDepth(queue, ready=ready, held=None, delayed=None, dead=dead)

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        raise Refused(
            f"RabbitMQ shows messages of queue {queue!r} only to those who take them: to look at one would count as a"
            " delivery and keep it from a worker meanwhile"
        )

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        raise Refused("RabbitMQ shows no delayed messages: they wait in queues of their own, for nobody to read")

    async def purge(self, queue: str) -> int:
        self._check_open()
        name = self._topology.name(queue)
        if not await self._count(name):
            return 0
        channel = await self._publishing.channel()
        try:
            async with self._publishing.asking(f"purge queue {name!r}"):
                purged = await channel.queue_purge(name)
        finally:
            await _leave(channel)
        return purged.message_count or 0

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        if not self._topology.is_quorum:
            async with self._reading(queue) as reading:
                messages = await reading.messages(offset + limit)
            return [_dead(queue, message) for message in messages[offset:]]
        # there, what was looked at comes back behind what was not: a part of it would be any part
        async with self._reading(queue) as reading:
            entries = [_dead(queue, message) for message in await reading.messages()]
        return sorted(entries, key=lambda entry: entry.buried_at)[offset : offset + limit]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        async with self._reading(queue) as reading:
            found = [message for message in await reading.messages() if _id(message) in ids]
            for message in found:
                headers = {key: value for key, value in _headers(message).items() if key not in _DEAD_HEADERS}
                properties = _properties(headers, message.header.properties.priority)
                await self._send([_Parcel(self._direct(queue), message.body, properties, queue)])
                await reading.done(message)
        return len(found)

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        async with self._reading(queue) as reading:
            found = [message for message in await reading.messages() if _id(message) in ids]
            for message in found:
                await reading.done(message)
        return len(found)

    @asynccontextmanager
    async def _reading(self, queue: str) -> AsyncIterator[_Reading]:
        """The dead letter, to look through. What is not done with at the end is where it was."""
        self._check_open()
        channel = await self._publishing.channel()
        try:
            reading = _Reading(self._publishing, channel, f"{queue}.dead")
            yield reading
            await reading.give_back()
        finally:
            await _leave(channel)

    async def _count(self, name: str) -> int:
        """How many messages are ready in a queue; 0 where there is none."""
        channel = await self._publishing.channel()
        try:
            async with self._publishing.asking(f"look at queue {name!r}"):
                try:
                    declared = await channel.queue_declare(name, passive=True)
                except ChannelNotFoundEntity as exc:
                    if is_absent(exc):
                        return 0
                    raise
        finally:
            await _leave(channel)
        return declared.message_count or 0

    def _check_open(self) -> None:
        if self._loop is None:
            raise Unavailable(f"the broker on {self.address} is not open")

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A message on its way; ``queue`` is what errors call its target."""

    route: Route
    body: bytes
    properties: spec.Basic.Properties
    queue: str

    def __post_init__(self) -> None:
        if self.route.expiration is not None:
            self.properties.expiration = str(self.route.expiration)


class _Intake:
    """How one queue is fetched from: one fetch at a time, on a channel of its own."""

    def __init__(self) -> None:
        self.fetching = asyncio.Lock()
        self.channel: Holding | None = None
        self.arrivals = Arrivals()
        self.asked_to_leave = asyncio.Event()
        self.renewing = asyncio.Lock()
        self.anew: _Anew | None = None
        self.renew_again_at = 0.0

    def leave(self) -> None:
        """Whoever fetches now comes to an end."""
        self.asked_to_leave.set()
        self.asked_to_leave = asyncio.Event()
        self.arrivals.leave()
        if self.channel is not None:
            self.channel.stir()


@dataclass(frozen=True, slots=True)
class _Anew:
    """Where copies of what was held for long are taken and held: a channel that consumes from a queue of its own."""

    channel: Holding
    copies: Copies
    route: Route


class _Reading:
    """Looking through a dead letter, on a channel that holds what it has seen; nobody else sees it meanwhile."""

    def __init__(self, link: AmqpLink, channel: Channel, name: str) -> None:
        self._link = link
        self._channel = channel
        self._name = name
        self._held: list[int] = []

    async def messages(self, limit: int | None = None) -> list[DeliveredMessage]:
        """The oldest, or all."""
        found: list[DeliveredMessage] = []
        while limit is None or len(found) < limit:
            async with self._link.asking(f"read queue {self._name!r}"):
                try:
                    message = await self._channel.basic_get(self._name)
                except ChannelNotFoundEntity as exc:
                    if is_absent(exc):
                        break
                    raise
            if isinstance(message.delivery, spec.Basic.GetEmpty):
                break
            self._held.append(tag_of(message))
            found.append(message)
        return found

    async def done(self, message: DeliveredMessage) -> None:
        """This one is not to stay."""
        self._held.remove(tag_of(message))
        async with self._link.asking("take an ack"):
            await self._channel.basic_ack(tag_of(message))

    async def give_back(self) -> None:
        """The others are back where they were, for whoever looks next, when this returns."""
        if not self._held:
            return
        async with self._link.asking("take messages back"):
            await self._channel.basic_nack(self._held[-1], multiple=True, requeue=True)
            await self._channel.basic_qos(prefetch_count=1)  # answered when what came before it is done


async def _leave(channel: Channel) -> None:
    with suppress(Exception):  # what is wrong with a channel that is being given up is of no interest
        await channel.close(None)


def _receipt(delivery: Delivery) -> _Receipt:
    return cast(_Receipt, delivery.receipt)


def _properties(headers: Mapping[str, Any], priority: int | None, message_id: str | None = None) -> Any:
    return spec.Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        headers=dict(headers) or None,
        priority=priority or None,
        message_id=message_id,
    )


def _headers_in(body: bytes) -> Mapping[str, Any]:
    """The headers of a signature, as Machinery repeats them outside of it for others to see."""
    if _NO_HEADERS in body:
        return {}
    try:
        headers = decode_signature(body).headers or {}
    except BadMessage:  # it is for the worker to judge
        return {}
    return {name: value for name, value in headers.items() if isinstance(value, str | bool | int)}


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    """Its headers without those that the server added."""
    headers = message.header.properties.headers or {}
    return {name: value for name, value in headers.items() if not _SERVERS_OWN.match(name)}


def _again(message: DeliveredMessage, delivery: Delivery) -> Any:
    """Properties of a message that is published again in the place of a delivery."""
    headers = {name: value for name, value in _headers(message).items() if name != LOST}
    lost = {LOST: delivery.attempt - 1} if delivery.attempt > 1 else {}
    return _properties(headers | lost, message.header.properties.priority)


def _copied(message: DeliveredMessage, delivery: Delivery) -> Any:
    """Properties of a copy that is held in the place of a delivery; if it comes back, that one counts."""
    headers = _headers(message) | {LOST: delivery.attempt}
    return _properties(headers, message.header.properties.priority, secrets.token_hex(16))


def _buried(message: DeliveredMessage, delivery: Delivery, reason: str, error: str, now: float) -> Any:
    facts = {
        DEAD_QUEUE: delivery.queue,
        DEAD_REASON: reason,
        DEAD_ERROR: error[:MAX_ERROR],
        DEAD_ATTEMPT: delivery.attempt,
        DEAD_AT: f"{now:.6f}",
    }
    headers = {name: value for name, value in _headers(message).items() if name != LOST}
    return _properties(headers | facts, message.header.properties.priority, secrets.token_hex(16))


def _dead(queue: str, message: DeliveredMessage) -> Dead:
    """One that we buried, or that the server put there itself by a policy, which says why in words of its own."""
    headers = message.header.properties.headers or {}
    return Dead(
        id=_id(message),
        queue=str(headers.get(DEAD_QUEUE, queue)),
        body=message.body,
        reason=str(headers.get(DEAD_REASON, headers.get("x-first-death-reason", ""))),
        error=str(headers.get(DEAD_ERROR, "")),
        attempt=_number(headers.get(DEAD_ATTEMPT)) or _number(headers.get("x-delivery-count")) or 1,
        buried_at=float(str(headers[DEAD_AT])) if DEAD_AT in headers else _died_at(headers.get("x-death")),
    )


def _died_at(deaths: object) -> float:
    """When a server buried it (unix seconds), as the newest entry of its own header says; 0 where there is none."""
    match deaths:
        case [{"time": datetime() as at}, *_]:
            return at.timestamp()
        case _:
            return 0.0


def _id(message: DeliveredMessage) -> str:
    """Its own id; what Go or a server put there has none, and is known by its bytes."""
    return message.header.properties.message_id or hashlib.sha256(message.body).hexdigest()[:32]


def _number(value: object) -> int:
    """A count in a header; what others put there is none."""
    return value if isinstance(value, int) and value > 0 else 0
