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
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, Self, TypeAlias, Unpack, assert_never, cast

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
    MAX_CONNECTIONS,
    Channel,
    Elsewhere,
    Options,
    OutOfMemory,
    Reply,
    Script,
    ServerFacts,
    Word,
    companion_prefix,
    expiry,
    kept_from,
    raise_first,
    read_scripts,
    tombstone,
)
from asyncqueue.connections.redis_link import OnRedis
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable
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

LANDS_WITHIN = 30.0
"""How long (seconds) whoever moves a due message to another node has for it before another may: less than a publish
is remembered, so that it lands once."""

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
_ENLIST, _EXTEND, _RELEASE = _SCRIPTS["enlist"], _SCRIPTS["extend"], _SCRIPTS["release"]
_PUBLISH, _SUBMIT = _SCRIPTS["publish"], _SCRIPTS["submit"]
_TEND, _PROMOTE = _SCRIPTS["tend"], _SCRIPTS["promote"]
_DEPART, _LAND, _ARRIVED = _SCRIPTS["depart"], _SCRIPTS["land"], _SCRIPTS["arrived"]

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
    incarnation: Hashable = None
    # whether something that we sent, and have no answer to, may still reach the server
    is_doubtful: bool = False
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    channel: Channel | None = None


class RedisBroker(OnRedis):
    """A broker on Redis: a server, a master that sentinels watch, or a cluster.

    See ``asyncqueue.brokers.base`` for what each verb promises.

    ``url`` is ``redis://``, ``rediss://`` or ``redis+socket://``; ``connections.redis.Options`` are further arguments,
    which say how to connect. ``lease`` is how long (seconds) a silent worker keeps what it holds. ``normal_poll`` is
    the longest (seconds) that one blocking command waits, ``delayed_poll`` how often (seconds) the delayed set is
    looked at; both may be changed while the broker is open. A dead letter keeps about ``dead_letter_size`` entries, the
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
        max_connections: int = MAX_CONNECTIONS,
        dead_letter_size: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
        **options: Unpack[Options],
    ) -> None:
        self._arguments: dict[str, Any] = {
            "url": url,
            "lease": lease,
            "delayed_tasks_key": delayed_tasks_key,
            "normal_poll": normal_poll,
            "delayed_poll": delayed_poll,
            "max_connections": max_connections,
            "dead_letter_size": dead_letter_size,
            "clock": clock,
            **options,
        }
        super().__init__(url, options, max_connections=max_connections, slow=lease / 2)
        self._lease = lease
        self._lease_ms = round(lease * 1000)
        self._delayed_key = delayed_tasks_key
        self.normal_poll = normal_poll
        self.delayed_poll = delayed_poll
        self._dead_letter_size = dead_letter_size
        self._clock = clock
        self._workers: dict[str, _Worker] = {}
        self._announced: dict[str, float] = {}
        # what was said to be no longer ours, here or by a twin in its own thread
        self._disowned: deque[Delivery] = deque()
        self._blocked = 0
        self.warnings: Sequence[str] = ()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=self._lease, max_delay=float("inf"), max_batch=MAX_BATCH, ordered=True, counts_deliveries=True
        )

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
        twin._disowned = self._disowned
        return twin

    def connect_with(self, url: str, **options: Any) -> None:
        super().connect_with(url, **options)
        self._arguments |= {"url": url, **options}

    async def identity(self) -> Hashable:
        return await self._link.identity("queues")

    async def facts(self) -> ServerFacts:
        """What the server says of itself, now."""
        return await self._link.look()

    # ------------------------------------------------------------------------------------------------ publish

    async def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        await self._announce({message.queue for message in messages})
        keys: list[Word] = [self._slot_key(message) for message in messages]
        calls = [self._publishing([messages[at] for at in part], keys[part[0]]) for part in self._link.parts(keys)]
        raise_first(await self._link.run_each(calls, to_last=True))

    def _publishing(self, messages: Sequence[Message], key: Word) -> tuple[Script, Sequence[Word], Sequence[Word]]:
        """The call that publishes messages whose keys lie in one slot: that of this key."""
        token = next((message.token for message in messages if message.token), "")
        tokens = "".join(f"{message.token}\n" for message in messages) if token else ""
        args: list[Word] = [round(REMEMBER_TOKENS * 1000) if token else 0, secrets.token_hex(8), tokens]
        for (queue, is_delayed), run in groupby(messages, key=lambda one: (one.queue, one.not_before is not None)):
            if is_delayed:
                op = "d" if self._is_beside(queue, key) else "z"
                for message in run:
                    args += (op, queue, *self._due(message), message.body)
            else:
                bodies = [message.body for message in run]
                args += ("p", queue, len(bodies), *bodies)
        queue = messages[0].queue
        once = _once(queue if self._is_beside(queue, key) else str(key), token)
        return _PUBLISH, (self._delayed_in(key), once), args

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
        if self._is_spread:
            raise Refused(f"the Redis cluster at {self.address} cannot record and publish in one step")
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
        await self._link.run(_SUBMIT, (self._delayed_key,), args, to_last=True)

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
        return due, f"{companion_prefix(message.queue)}later"

    @property
    def _is_spread(self) -> bool:
        """Whether the queues lie in several places, which cannot be changed in one step."""
        return self._link.is_spread

    def _slot_key(self, message: Message) -> str:
        """The key beside which a message is published: the delayed set's, where it waits in that."""
        return self._delayed_key if message.not_before is not None and not self._due(message)[1] else message.queue

    def _is_beside(self, queue: str, key: Word) -> bool:
        """Whether a queue is in the slot of a key."""
        return not self._is_spread or len(self._link.parts((queue, key))) == 1

    def _delayed_in(self, key: Word) -> Word:
        """The delayed set, or where that is in another slot what takes its place among the keys of a script."""
        return self._delayed_key if self._is_beside(self._delayed_key, key) else key

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
        worker = await self._worker(queue)
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
        if not worker.is_registered:
            worker.incarnation = self._link.incarnation(worker.queue)
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
            if worker.channel is None or not worker.channel.is_open or worker.channel.is_stale:
                worker.channel = await self._blocking_channel(worker)
            await worker.channel.call("BLMOVE", worker.queue, inbox, "LEFT", "RIGHT", f"{wait:.3f}", wait=wait)
            worker.is_doubtful = was_doubtful
        except OutOfMemory:  # taking works all the same
            worker.is_doubtful = was_doubtful
            await asyncio.sleep(min(left, POLL))
        except Elsewhere:  # the queue lives on another node now, where taking finds it
            worker.is_doubtful = was_doubtful
            if worker.channel is not None:
                await worker.channel.close()
        finally:
            self._blocked -= 1

    async def _blocking_channel(self, worker: _Worker) -> Channel:
        if worker.channel is not None:
            await worker.channel.close(nowait=True)
        channel = await self._link.channel(worker.queue)
        try:
            workers = _keys(worker.queue, worker.id)[2]
            await channel.run(_ENLIST, (workers,), (worker.id, self._lease_ms))
        except AsyncQueueError:
            await channel.close(nowait=True)
            raise
        return channel

    async def _worker(self, queue: str) -> _Worker:
        """What this instance is on a queue now.

        Where the server is another one, or has begun anew, it may have lost what it said last: that a message was
        settled, which it then believes to be held. So the worker is another one too, and what the old one holds there
        and not here comes back when its lease ends. Receipts of the old one work as before.
        """
        worker = self._workers.get(queue)
        if worker is not None and (not worker.is_registered or worker.fetching.locked()):
            return worker
        if worker is not None and worker.incarnation == self._link.incarnation(queue):
            return worker
        new = self._workers[queue] = _Worker(queue)
        if worker is not None and worker.channel is not None:
            await worker.channel.close(nowait=True)
        return new

    # ------------------------------------------------------------------------------------------------ settle

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        commands: list[tuple[Word, ...]] = [
            ("HDEL", _keys(queue, worker)[1], *numbers) for (queue, worker), numbers in _by_worker(deliveries).items()
        ]
        if commands:
            raise_first(await self._link.pipeline(commands))

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        await self.settle([Settled(delivery, Nack(delay)) for delivery in deliveries], keep=1.0)

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        await self.settle([Settled(delivery, Bury(reason, error)) for delivery in deliveries], keep=1.0)

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        if not batch:
            return ()
        if self._is_spread:
            await self._settle_spread(batch, keep)
            return ()
        keys, args = self._packed(batch, keep, self._delayed_key)
        unsettled = await self._link.run(_SETTLE, keys, args)
        return [Unsettled(batch[index], Progress(why.decode())) for index, why in _pairs(unsettled)]

    async def _settle_spread(self, batch: Sequence[Settled], keep: float) -> None:
        """Settle each queue in its own slot, where nothing but verdicts can be carried out."""
        if any(item != Settled(item.delivery, item.verdict) for item in batch):
            raise Refused(f"the Redis cluster at {self.address} cannot record and settle in one step")
        calls: list[tuple[Script, Sequence[Word], Sequence[Word]]] = []
        for part in self._link.parts([item.delivery.queue for item in batch]):
            some = [batch[at] for at in part]
            calls.append((_SETTLE, *self._packed(some, keep, some[0].delivery.queue)))
        raise_first(await self._link.run_each(calls))

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
        raise_first(replies)
        lost: set[Hashable] = set()
        for ((_, worker), numbers), reply in zip(groups.items(), replies, strict=True):
            missing = numbers if reply == -1 else [numbers[position - 1] for position in reply]
            lost.update((worker, number) for number in missing)
        gone = [delivery for delivery in deliveries if delivery.receipt in lost]
        self._disowned.extend(gone)
        return gone

    def _packed(self, batch: Sequence[Settled], keep: float, delayed: str) -> tuple[list[Word], list[Word]]:
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
        keys: list[Word] = [delayed]
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
        await self._give_back_disowned()
        pause = min(self._lease / 5, self.delayed_poll)
        calls: list[tuple[Script, Sequence[Word], Sequence[Word]]] = []
        for queue in queues:
            patience = self._lease - self._link.contact(queue)
            if patience > 0:
                pause = min(pause, patience)
            calls.append(self._tending(queue, may_reap=patience <= 0))
        if not self._is_spread:
            dead = f"{companion_prefix(self._delayed_key)}dead"
            calls.append((_PROMOTE, (self._delayed_key, dead), (AT_ONCE, self._dead_letter_size)))
        replies = await self._link.run_each(calls)
        if self._is_spread:
            replies.append(await self._promote_spread())
        raise_first(replies)
        for moved, due in replies:
            if moved >= AT_ONCE:
                return 0.0
            if due >= 0:
                pause = min(pause, due / 1000)
        return pause

    async def _give_back_disowned(self) -> None:
        """Give back what we were told is not ours, in case it is: it may have been another server that said so, which
        was the master before, or has lost what it knew."""
        gone = [self._disowned.popleft() for _ in range(min(len(self._disowned), MAX_BATCH))]
        try:
            await self.nack(gone)
        except Unavailable:
            self._disowned.extendleft(reversed(gone))
            raise

    async def _promote_spread(self) -> tuple[int, int]:
        """Move what is due to queues in other slots: noted as being on its way, landed there once, crossed out."""
        prefix = companion_prefix(self._delayed_key)
        moving, dead = f"{prefix}moving", f"{prefix}dead"
        args = (AT_ONCE, self._dead_letter_size, secrets.token_hex(8), round(LANDS_WITHIN * 1000))
        due, *found = await self._link.run(_DEPART, (self._delayed_key, moving, dead), args)
        queues: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for queue, number, body in zip(found[::3], found[1::3], found[2::3], strict=True):
            queues.setdefault(queue, []).append((number, body))
        landings: list[tuple[Script, Sequence[Word], Sequence[Word]]] = [
            (
                _LAND,
                (queue, *(_once(queue.decode(errors="surrogateescape"), number.decode()) for number, _ in some)),
                (round(REMEMBER_TOKENS * 1000), *(body for _, body in some)),
            )
            for queue, some in queues.items()
        ]
        replies = await self._link.run_each(landings)
        words: list[Word] = []
        for some, reply in zip(queues.values(), replies, strict=True):
            if isinstance(reply, Unavailable):
                continue  # stays noted, and lands another time
            for number, body in some:
                words += (number, body, str(reply) if isinstance(reply, AsyncQueueError) else "")
        if words:
            await self._link.run(_ARRIVED, (moving, dead), (self._dead_letter_size, *words))
        return len(found) // 3, due

    def _tending(self, queue: str, *, may_reap: bool) -> tuple[Script, Sequence[Word], Sequence[Word]]:
        prefix = companion_prefix(queue)
        keys = (queue, f"{prefix}workers", f"{prefix}again", f"{prefix}later")
        return _TEND, keys, (prefix, "1" if may_reap else "0", AT_ONCE, round(REMEMBER_FENCED * 1000))

    # ------------------------------------------------------------------------------------------------ inspect

    async def queues(self) -> Sequence[str]:
        oldest = self._clock.now_ns() // NANOSECONDS - round(QUEUE_IS_KNOWN_FOR)
        replies = await self._link.pipeline([("ZREMRANGEBYSCORE", QUEUES, "-inf", oldest), ("ZRANGE", QUEUES, 0, -1)])
        raise_first(replies)
        return sorted(queue.decode() for queue in replies[1])

    async def depth(self, queue: str) -> QueueDepth:
        prefix = companion_prefix(queue)
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
            [("LRANGE", f"{companion_prefix(queue)}again", 0, last), ("LRANGE", queue, 0, last)]
        )
        raise_first((again, ready))
        bodies = [*(_parts(value)[1] for value in again), *(body for body in ready if body)]
        return bodies[offset : offset + limit]

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        last = offset + limit - 1
        if limit <= 0:
            return []
        queues = await self.queues()
        commands = [
            ("ZRANGE", key, 0, last, "WITHSCORES")
            for key in (self._delayed_key, *(f"{companion_prefix(queue)}later" for queue in queues))
        ]
        replies = await self._link.pipeline(commands)
        raise_first(replies)
        found = [(float(score) / NANOSECONDS, body) for body, score in _pairs(replies[0])]
        for reply in replies[1:]:
            found += [(float(score) / 1000, _parts(_parts(member)[1])[1]) for member, score in _pairs(reply)]
        return sorted(found)[offset : offset + limit]

    async def purge(self, queue: str) -> int:
        return int(await self._link.run(_SCRIPTS["purge"], (queue, f"{companion_prefix(queue)}again"), ()))

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        if limit <= 0:
            return []
        entries = await self._link.call("XRANGE", f"{companion_prefix(queue)}dead", "-", "+", "COUNT", offset + limit)
        return [_dead(queue, entry, fields) for entry, fields in entries[offset:]]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        known = _entry_ids(ids)
        if not known:
            return 0
        return int(await self._link.run(_SCRIPTS["requeue"], (queue, f"{companion_prefix(queue)}dead"), known))

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        known = _entry_ids(ids)
        if not known:
            return 0
        return int(await self._link.call("XDEL", f"{companion_prefix(queue)}dead", *known))


def _once(queue: str, token: str) -> str:
    """The key that remembers a publish whose first token this is."""
    return f"{companion_prefix(queue)}once:{token}"


@lru_cache(1024)
def _keys(queue: str, worker: str) -> tuple[str, ...]:
    """The queue, proc, workers, again, later, dead, inbox."""
    prefix = companion_prefix(queue)
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
