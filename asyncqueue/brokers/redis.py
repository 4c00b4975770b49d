"""Redis as a broker, on Machinery's keys: at least once, batched, recovering by itself.

A queue is Machinery's list. What a worker takes lies in a hash of its own until it is settled, under one heartbeat; a
worker whose heartbeat ended is fenced off and what it held is shown again. Each step of this is one script, so that a
kill, a lost reply or an outage between two of them loses nothing. ``redis.lua`` names the keys.

Priorities are not heeded: a queue is served in the order of its list.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, Self, TypeAlias, assert_never, cast

from asyncqueue.backends.base import Progress
from asyncqueue.brokers.base import (
    Ack,
    Bury,
    Capabilities,
    Dead,
    Delivery,
    Message,
    Nack,
    QueueDepth,
    Settled,
    Unsettled,
)
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.redis import (
    CONNECT_TIMEOUT,
    MAX_CONNECTIONS,
    REPLY_TIMEOUT,
    Channel,
    OutOfMemory,
    RedisLink,
    Reply,
    Script,
    ServerFacts,
    Word,
    expiry,
    kept_from,
    parse_url,
    read_scripts,
    tombstone,
)
from asyncqueue.errors import AsyncQueueError, Unavailable
from asyncqueue.rfc3339 import ZERO
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.wire import encode_group, encode_plan, encode_state, encode_state_around_created_at

QUEUES = "aq:queues"
"""A sorted set of the queues that workers and publishers of ours have used, with when they last did (unix seconds)."""

QUEUE_IS_KNOWN_FOR = 30 * 86_400.0
"""How long (seconds) a queue is listed after its last use."""

ANNOUNCE_EVERY = 60.0
"""How often (seconds) an instance says which queues it uses."""

REMEMBER_TOKENS = 60.0
"""How long (seconds) a publish with a token can be repeated without adding a second copy."""

REMEMBER_FENCED = 3_600.0
"""How long (seconds) after its fencing a worker's inbox is still looked at."""

AT_ONCE = 500
"""The most entries that one call of a tending script moves: the server serves nobody else meanwhile."""

MAX_BATCH = 1_000
"""The most messages that one fetch takes. Lua can spread out only so many words of a command."""

MAX_BLOCKED = 8
"""The most connections of an instance that wait in BLMOVE; further queues are polled."""

POLL = 0.1
"""How often (seconds) a queue is polled where BLMOVE cannot be used."""

_SCRIPTS = read_scripts("connections/redis_states.lua", "connections/redis_groups.lua", "brokers/redis.lua")
_SETTLE, _TAKE = _SCRIPTS["settle"], _SCRIPTS["take"]
_EXTEND, _RELEASE = _SCRIPTS["extend"], _SCRIPTS["release"]
_PUBLISH, _SUBMIT = _SCRIPTS["publish"], _SCRIPTS["submit"]
_TEND, _PROMOTE = _SCRIPTS["tend"], _SCRIPTS["promote"]

_FENCED, _UNTOLD = 1, 2

_ROUTING_KEY = re.compile(rb'\{"UUID":"[^"\\]*","Name":"[^"\\]*","RoutingKey":"([^"\\]*)"')


_Receipt: TypeAlias = tuple[str, int]
"""Whose it is, and the worker's number for it."""


@dataclass(slots=True)
class _Worker:
    """What this instance is on one queue: an id, and the number of what it was last given."""

    queue: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    last: int = 0
    is_registered: bool = False
    is_fenced: bool = False
    # whether something that we sent, and have no answer to, may still reach the server
    is_doubtful: bool = False
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    channel: Channel | None = None


class RedisBroker:
    """A broker on one Redis server; see ``asyncqueue.brokers.base`` for what each verb promises.

    ``url`` is ``redis://``, ``rediss://`` or ``redis+socket://``; ``tls`` a context to use instead of the one that
    the URL's options make. ``lease`` is how long (seconds) a silent worker keeps what it holds. ``normal_poll`` is the
    longest (seconds) that one blocking command waits, ``delayed_poll`` how often (seconds) the delayed set is looked
    at; both may be changed while the broker is open. A dead letter keeps about ``dead_letter_size`` entries, the
    youngest. ``max_connections`` bounds the connections in use at once; up to ``MAX_BLOCKED`` more wait for messages.

    After ``open``, ``warnings`` holds what is wrong with the server's settings, for people.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 15.0,
        delayed_tasks_key: str = "delayed_tasks",
        normal_poll: float = 1.0,
        delayed_poll: float = 0.5,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
        max_connections: int = MAX_CONNECTIONS,
        dead_letter_size: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "url": url,
            "lease": lease,
            "delayed_tasks_key": delayed_tasks_key,
            "normal_poll": normal_poll,
            "delayed_poll": delayed_poll,
            "connect_timeout": connect_timeout,
            "reply_timeout": reply_timeout,
            "tls": tls,
            "client_name": client_name,
            "max_connections": max_connections,
            "dead_letter_size": dead_letter_size,
            "clock": clock,
        }
        self._link = RedisLink(
            parse_url(url, tls),
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            max_connections=max_connections,
            client_name=client_name,
            slow=lease / 2,
        )
        self._lease = lease
        self._lease_ms = round(lease * 1000)
        self._delayed_key = delayed_tasks_key
        self.normal_poll = normal_poll
        self.delayed_poll = delayed_poll
        self._dead_letter_size = dead_letter_size
        self._clock = clock
        self._workers: dict[str, _Worker] = {}
        self._announced: dict[str, float] = {}
        self._blocked = 0
        self.warnings: Sequence[str] = ()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=self._lease, max_delay=float("inf"), max_batch=MAX_BATCH, ordered=True, counts_deliveries=True
        )

    @property
    def address(self) -> str:
        return str(self._link.address)

    async def open(self) -> None:
        facts = await self._link.open()
        if facts.eviction_policy not in ("noeviction", ""):
            self.warnings = (
                f"Redis at {self.address} has maxmemory-policy {facts.eviction_policy}: when its memory is full it"
                " drops keys, and tasks with them; set it to noeviction",
            )

    async def close(self) -> None:
        workers = list(self._workers.values())
        self._workers.clear()
        for worker in workers:
            if worker.channel is not None:
                await worker.channel.close(nowait=True)
        calls = [
            (_RELEASE, (queue, proc, ready, again, inbox), (worker.id, "1" if worker.is_doubtful else "0"))
            for worker in workers
            if worker.is_registered or worker.is_doubtful
            for queue, proc, ready, again, _, _, inbox in [_keys(worker.queue, worker.id)]
        ]
        if calls:
            # the lease gives back what we now cannot
            with suppress(Unavailable):
                await self._link.run_each(calls)
        await self._link.close()

    def twin(self) -> Self:
        twin = type(self)(**self._arguments)
        twin._link.access = self._link.access
        return twin

    def connect_with(self, url: str, **options: Any) -> None:
        self._link.connect_with(url, **options)
        self._arguments |= {"url": url, **options}

    async def identity(self) -> Hashable:
        facts = await self._link.look()
        return ("redis", facts.run_id, self._link.address.db)

    async def facts(self) -> ServerFacts:
        """What the server says of itself, now."""
        return await self._link.look()

    # ------------------------------------------------------------------------------------------------ publish

    async def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        token = next((message.token for message in messages if message.token), "")
        tokens = "".join(f"{message.token}\n" for message in messages) if token else ""
        args: list[Word] = [round(REMEMBER_TOKENS * 1000) if token else 0, secrets.token_hex(8), tokens]
        for (queue, is_delayed), run in groupby(messages, key=lambda one: (one.queue, one.not_before is not None)):
            if is_delayed:
                for message in run:
                    args += ("d", queue, *self._due(message), message.body)
            else:
                bodies = [message.body for message in run]
                args += ("p", queue, len(bodies), *bodies)
        once = _once(messages[0].queue, token)
        await self._announce({message.queue for message in messages})
        await self._link.run(_PUBLISH, (self._delayed_key, once), args)

    async def submit(
        self,
        states: Sequence[TaskState],
        messages: Sequence[Message],
        keep: float,
        *,
        groups: Sequence[GroupMeta] = (),
        plans: Sequence[Plan] = (),
    ) -> None:
        if not (states or messages or groups or plans):
            return
        position = {state.task_uuid: number for number, state in enumerate(states, 1)}
        args: list[Word] = [*expiry(keep), secrets.token_hex(8), len(states)]
        for state in states:
            args += (state.task_uuid, encode_state(state), kept_from(state.not_before))
        args.append(len(groups))
        for group in groups:
            args += (group.group_uuid, encode_group(group), kept_from(group.not_before))
        args.append(len(plans))
        for plan in plans:
            args += (plan.plan_id, encode_plan(plan), kept_from(plan.not_before))
        for message in messages:
            args += (message.queue, *self._due(message), position.get(message.id, 0), message.body)
        await self._announce({message.queue for message in messages})
        await self._link.run(_SUBMIT, (self._delayed_key,), args)

    def _due(self, message: Message) -> tuple[Word, Word]:
        """When a message is due (ns), and the set to wait in where that is not the delayed set.

        From the delayed set a message goes to the queue that its RoutingKey names. One that names another queue, or
        none, waits beside its own.
        """
        if message.not_before is None:
            return "", ""
        due = int(message.not_before * NANOSECONDS)
        named = _ROUTING_KEY.match(message.body)
        if named is not None and named[1] == message.queue.encode():
            return due, ""
        return due, f"{_prefix(message.queue)}later"

    async def _announce(self, queues: set[str]) -> None:
        now = asyncio.get_running_loop().time()
        late = [queue for queue in queues if now - self._announced.get(queue, float("-inf")) > ANNOUNCE_EVERY]
        if late:
            seconds = self._clock.now_ns() // NANOSECONDS
            # a list for people to look at: work goes on without it
            with suppress(OutOfMemory):
                await self._link.call("ZADD", QUEUES, *(word for queue in late for word in (seconds, queue)))
            recent = {queue: at for queue, at in self._announced.items() if now - at <= ANNOUNCE_EVERY}
            self._announced = recent | dict.fromkeys(late, now)

    # ------------------------------------------------------------------------------------------------ fetch

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if limit <= 0:
            return ()
        worker = self._worker(queue)
        async with worker.fetching:
            ends_at = asyncio.get_running_loop().time() + wait
            await self._announce({queue})
            while True:
                deliveries = await self._take(worker, limit)
                left = ends_at - asyncio.get_running_loop().time()
                if deliveries or worker.is_fenced or left <= 0:
                    return deliveries
                await self._wait_for_message(worker, left)

    async def _take(self, worker: _Worker, limit: int) -> Sequence[Delivery]:
        queue, proc, workers, again, _, _, inbox = _keys(worker.queue, worker.id)
        keys = (queue, proc, workers, again, inbox)
        is_new = "0" if worker.is_registered else "1"
        args = (worker.id, self._lease_ms, min(limit, MAX_BATCH), worker.last, is_new)
        was_doubtful, worker.is_doubtful = worker.is_doubtful, True
        status, *rest = await self._link.run(_TAKE, keys, args)
        worker.is_doubtful, worker.is_registered = was_doubtful, True
        if status == _FENCED:
            worker.is_fenced = True
            if self._workers.get(worker.queue) is worker:
                del self._workers[worker.queue]
            if worker.channel is not None:
                await worker.channel.close()
            self._announced.pop(worker.queue, None)
            return ()
        if status == _UNTOLD:
            last, *pairs = rest
            worker.last = int(last)
            numbered = [(int(pairs[at]), pairs[at + 1]) for at in range(0, len(pairs), 2)]
            return _deliveries(worker, numbered)
        first = worker.last + 1
        worker.last += len(rest[0])
        return _deliveries(worker, enumerate(rest[0], first))

    async def _wait_for_message(self, worker: _Worker, left: float) -> None:
        """Until there may be one: BLMOVE puts it where the next ``take`` finds it, whatever becomes of the reply."""
        if self._blocked >= MAX_BLOCKED:
            await asyncio.sleep(min(left, POLL))
            return
        wait = max(min(left, self.normal_poll, self._lease / 5), 0.001)  # 0 would be for ever
        inbox = _keys(worker.queue, worker.id)[6]
        self._blocked += 1
        was_doubtful, worker.is_doubtful = worker.is_doubtful, True
        try:
            if worker.channel is None or not worker.channel.is_open:
                worker.channel = await self._link.channel()
            await worker.channel.call("BLMOVE", worker.queue, inbox, "LEFT", "RIGHT", f"{wait:.3f}", wait=wait)
            worker.is_doubtful = was_doubtful
        except OutOfMemory:  # taking works all the same
            worker.is_doubtful = was_doubtful
            await asyncio.sleep(min(left, POLL))
        finally:
            self._blocked -= 1

    def _worker(self, queue: str) -> _Worker:
        worker = self._workers.get(queue)
        if worker is None:
            worker = self._workers[queue] = _Worker(queue)
        return worker

    # ------------------------------------------------------------------------------------------------ settle

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        commands: list[tuple[Word, ...]] = [
            ("HDEL", _keys(queue, worker)[1], *numbers) for (queue, worker), numbers in _by_worker(deliveries).items()
        ]
        if commands:
            _raise_first(await self._link.pipeline(commands))

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        await self.settle([Settled(delivery, Nack(delay)) for delivery in deliveries], keep=1.0)

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        await self.settle([Settled(delivery, Bury(reason, error)) for delivery in deliveries], keep=1.0)

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        if not batch:
            return ()
        keys, args = self._packed(batch, keep)
        unsettled = await self._link.run(_SETTLE, keys, args)
        return [Unsettled(batch[index], Progress(why.decode())) for index, why in _pairs(unsettled)]

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        groups = _by_worker(deliveries)
        calls: list[tuple[Script, Sequence[Word], Sequence[Word]]] = [
            (_EXTEND, (workers, proc), (worker, self._lease_ms, *numbers))
            for (queue, worker), numbers in groups.items()
            for _, proc, workers, *_ in [_keys(queue, worker)]
        ]
        if not calls:
            return ()
        replies = await self._link.run_each(calls)
        _raise_first(replies)
        lost: set[Hashable] = set()
        for ((_, worker), numbers), reply in zip(groups.items(), replies, strict=True):
            gone = numbers if reply == -1 else [numbers[position - 1] for position in reply]
            lost.update((worker, number) for number in gone)
        return [delivery for delivery in deliveries if delivery.receipt in lost]

    def _packed(self, batch: Sequence[Settled], keep: float) -> tuple[list[Word], list[Word]]:
        """The keys and arguments of ``settle``: see ``redis.lua``. This is the hottest line of the driver."""
        groups: dict[tuple[str, str], int] = {}
        queue = worker = ""
        items: list[Word] = []
        add = items.extend
        for index, item in enumerate(batch):
            delivery, state = item.delivery, item.state
            holder, number = cast(_Receipt, delivery.receipt)
            if holder != worker or delivery.queue != queue:
                queue, worker = delivery.queue, holder
                position = groups.setdefault((queue, worker), len(groups) + 1)
                if items or position > 1:
                    add(("g", position))
            if item.member is not None or item.end is not None or item.ended or item.opens or item.alive:
                add(("w", index))
                add(self._packed_at_length(item, number))
                add(self._packed_workflow(item))
            elif item.verdict.__class__ is not Ack or item.publish or item.pending:
                add(("x",))
                add(self._packed_at_length(item, number))
            elif state is None:
                add(("a", number))
            elif state.state.is_final and state.task_name and state.created_at == ZERO:
                head, tail = encode_state_around_created_at(state)
                add(("s", number, state.task_uuid, head, tail))
            else:
                add(("x",))
                add(self._packed_at_length(item, number))
        keys: list[Word] = [self._delayed_key]
        for each in groups:
            keys += _keys(*each)
        workers = [worker for _, worker in groups]
        unique = secrets.token_hex(8)
        return keys, [self._lease_ms, *expiry(keep), self._dead_letter_size, unique, len(groups), *workers, *items]

    def _packed_at_length(self, item: Settled, number: int) -> Iterator[Word]:
        yield number
        match item.verdict:
            case Ack():
                yield from ("a", "", "")
            case Nack(delay):
                yield from ("n", max(0, round(delay * 1000)), "")
            case Bury(reason, error):
                yield from ("b", reason, error.encode(errors="replace"))
            case _:
                assert_never(item.verdict)
        yield from _packed_state(item.state)
        yield from _packed_pending(item.pending)
        yield from self._packed_messages(item.publish)

    def _packed_workflow(self, item: Settled) -> Iterator[Word]:
        yield from _packed_ended(item.ended)
        yield len(item.opens)
        for group in item.opens:
            yield from (group.group_uuid, encode_group(group), kept_from(group.not_before))
        yield len(item.alive)
        yield from item.alive
        yield from ("", "") if item.member is None else (item.member.group_id, item.member.task_id)
        if item.end is None:
            yield ""
            return
        yield from (item.end.group_id, tombstone(item.end.group_id))
        yield from _packed_ended(item.end.ended)
        yield from _packed_pending(item.end.pending)
        yield from self._packed_messages(item.end.publish)

    def _packed_messages(self, messages: Sequence[Message]) -> Iterator[Word]:
        yield len(messages)
        for message in messages:
            yield from (message.queue, *self._due(message), message.body)
            yield _once(message.queue, message.token) if message.token else ""

    # ------------------------------------------------------------------------------------------------ tend

    async def tend(self, queues: Sequence[str]) -> float:
        patience = self._lease - self._link.contact()
        pause = min(self._lease / 5, self.delayed_poll)
        if patience > 0:
            pause = min(pause, patience)
        calls = [self._tending(queue, may_reap=patience <= 0) for queue in queues]
        dead = f"{_prefix(self._delayed_key)}dead"
        calls.append((_PROMOTE, (self._delayed_key, dead), (AT_ONCE, self._dead_letter_size)))
        replies = await self._link.run_each(calls)
        _raise_first(replies)
        for moved, due in replies:
            if moved >= AT_ONCE:
                return 0.0
            if due >= 0:
                pause = min(pause, due / 1000)
        return pause

    def _tending(self, queue: str, *, may_reap: bool) -> tuple[Script, Sequence[Word], Sequence[Word]]:
        prefix = _prefix(queue)
        keys = (queue, f"{prefix}workers", f"{prefix}again", f"{prefix}later")
        return _TEND, keys, (prefix, "1" if may_reap else "0", AT_ONCE, round(REMEMBER_FENCED * 1000))

    # ------------------------------------------------------------------------------------------------ inspect

    async def queues(self) -> Sequence[str]:
        oldest = self._clock.now_ns() // NANOSECONDS - round(QUEUE_IS_KNOWN_FOR)
        replies = await self._link.pipeline([("ZREMRANGEBYSCORE", QUEUES, "-inf", oldest), ("ZRANGE", QUEUES, 0, -1)])
        _raise_first(replies)
        return sorted(queue.decode() for queue in replies[1])

    async def depth(self, queue: str) -> QueueDepth:
        prefix = _prefix(queue)
        keys = (queue, *(f"{prefix}{name}" for name in ("workers", "again", "later", "dead")))
        ready, held, later, dead = await self._link.run(_SCRIPTS["depth"], keys, (prefix,))
        return QueueDepth(queue, ready, held, later + await self._delayed_for(queue), dead)

    async def _delayed_for(self, queue: str) -> int:
        start, found = 0, 0
        while True:
            args = (queue, start, start + AT_ONCE - 1)
            looked_at, count = await self._link.run(_SCRIPTS["routed"], (self._delayed_key,), args)
            found += int(count)
            if looked_at < AT_ONCE:
                return found
            start += AT_ONCE

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        last = offset + limit - 1
        if limit <= 0:
            return []
        again, ready = await self._link.pipeline(
            [("LRANGE", f"{_prefix(queue)}again", 0, last), ("LRANGE", queue, 0, last)]
        )
        _raise_first((again, ready))
        bodies = [*(_parts(value)[1] for value in again), *(body for body in ready if body)]
        return bodies[offset : offset + limit]

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        last = offset + limit - 1
        if limit <= 0:
            return []
        queues = await self.queues()
        commands = [
            ("ZRANGE", key, 0, last, "WITHSCORES")
            for key in (self._delayed_key, *(f"{_prefix(queue)}later" for queue in queues))
        ]
        replies = await self._link.pipeline(commands)
        _raise_first(replies)
        found = [(float(score) / NANOSECONDS, body) for body, score in _pairs(replies[0])]
        for reply in replies[1:]:
            found += [(float(score) / 1000, _parts(_parts(member)[1])[1]) for member, score in _pairs(reply)]
        return sorted(found)[offset : offset + limit]

    async def purge(self, queue: str) -> int:
        return int(await self._link.run(_SCRIPTS["purge"], (queue, f"{_prefix(queue)}again"), ()))

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        if limit <= 0:
            return []
        entries = await self._link.call("XRANGE", f"{_prefix(queue)}dead", "-", "+", "COUNT", offset + limit)
        return [_dead(queue, entry, fields) for entry, fields in entries[offset:]]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        known = _entry_ids(ids)
        if not known:
            return 0
        return int(await self._link.run(_SCRIPTS["requeue"], (queue, f"{_prefix(queue)}dead"), known))

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        known = _entry_ids(ids)
        if not known:
            return 0
        return int(await self._link.call("XDEL", f"{_prefix(queue)}dead", *known))


@lru_cache(1024)
def _prefix(queue: str) -> str:
    """What the names of a queue's companion keys begin with: they lie in the queue's own slot of a cluster."""
    opening = queue.find("{")
    closing = queue.find("}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        return f"{{{queue[opening + 1 : closing]}}}:aq:{queue}:"
    return f"{{{queue}}}:aq:"


def _once(queue: str, token: str) -> str:
    """The key that remembers a publish whose first token this is."""
    return f"{_prefix(queue)}once:{token}"


@lru_cache(1024)
def _keys(queue: str, worker: str) -> tuple[str, ...]:
    """The queue, proc, workers, again, later, dead, inbox."""
    prefix = _prefix(queue)
    return (
        queue,
        f"{prefix}proc:{worker}",
        f"{prefix}workers",
        f"{prefix}again",
        f"{prefix}later",
        f"{prefix}dead",
        f"{prefix}inbox:{worker}",
    )


def _by_worker(deliveries: Sequence[Delivery]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for delivery in deliveries:
        worker, number = cast(_Receipt, delivery.receipt)
        groups.setdefault((delivery.queue, worker), []).append(number)
    return groups


def _packed_state(state: TaskState | None) -> tuple[Word, Word, Word, Word, Word]:
    """UUID, head, tail, mode and due, as ``redis.lua`` wants them."""
    if state is None:
        return "", "", "", "", ""
    if state.state is State.PENDING:
        return state.task_uuid, encode_state(state), "", "o", kept_from(state.not_before)
    mode = "p" if state.task_name else "n"
    if state.created_at != ZERO:
        return state.task_uuid, encode_state(state), "", mode, kept_from(state.not_before)
    return state.task_uuid, *encode_state_around_created_at(state), mode, kept_from(state.not_before)


def _packed_ended(states: Sequence[TaskState]) -> Iterator[Word]:
    yield len(states)
    for state in states:
        yield from _packed_state(state)


def _packed_pending(states: Sequence[TaskState]) -> Iterator[Word]:
    yield len(states)
    for state in states:
        yield from (state.task_uuid, encode_state(state), kept_from(state.not_before))


def _parts(value: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the first colon."""
    head, _, tail = value.partition(b":")
    return head, tail


def _deliveries(worker: _Worker, numbered: Iterable[tuple[int, bytes]]) -> list[Delivery]:
    queue, holder = worker.queue, worker.id
    deliveries = []
    for number, value in numbered:
        attempt, _, body = value.partition(b":")
        deliveries.append(Delivery(body, queue, (holder, number), int(attempt)))
    return deliveries


def _pairs(reply: Reply) -> Iterator[tuple[Reply, Reply]]:
    return zip(reply[::2], reply[1::2], strict=True)


def _entry_ids(ids: Sequence[str]) -> list[str]:
    """Those that are ids of stream entries; others name nothing."""
    return [one for one in ids if re.fullmatch(r"\d{1,18}-\d{1,18}", one, re.ASCII)]


def _dead(queue: str, entry: bytes, fields: Sequence[bytes]) -> Dead:
    known = dict(_pairs(fields))
    return Dead(
        id=entry.decode(),
        queue=queue,
        body=known[b"body"],
        reason=known[b"reason"].decode(errors="replace"),
        error=known[b"error"].decode(errors="replace"),
        attempt=int(known[b"attempt"]),
        buried_at=int(entry.partition(b"-")[0]) / 1000,
    )


def _raise_first(replies: Sequence[Reply]) -> None:
    for reply in replies:
        if isinstance(reply, AsyncQueueError):
            raise reply
