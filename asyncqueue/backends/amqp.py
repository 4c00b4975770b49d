"""RabbitMQ as a backend, on Machinery's queues: one for each task and each group, with the states as messages.

For fleets that have nothing but RabbitMQ; any other store costs less. A queue only takes and gives: so writers append,
and readers fold what they find by the rules of a store, and give it back. Waiting is pushed, whoever writes. Groups,
plans, and what is to be kept for longer than the queue of a task are records of our own, one at a time under a lock.
"""

from __future__ import annotations

import secrets
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Ending, Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.amqp import CONNECT_TIMEOUT, HEARTBEAT, REPLY_TIMEOUT, Access, AmqpLink, parse_urls
from asyncqueue.connections.amqp_results import (
    GROUP,
    KIND,
    PLAN,
    STATE,
    Entry,
    Locked,
    Post,
    Record,
    ResultQueues,
    own,
)
from asyncqueue.connections.amqp_results_groups import ResultGroups, group_in, triggered
from asyncqueue.connections.amqp_results_hearing import Hearing
from asyncqueue.connections.amqp_results_log import BEGUN, FORGOTTEN, Known, fold
from asyncqueue.connections.amqp_topology import Exchange, Topology
from asyncqueue.connections.keeping import LEAST_GAIN, kept_until
from asyncqueue.errors import BadMessage, ConfigError, EntryTooLarge, Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState
from asyncqueue.wire import decode_plan, encode_plan, encode_state

MAX_ENTRY = 16 * 1024 * 1024
"""The most bytes of an entry, unless told otherwise: what RabbitMQ 4 takes for a message."""

LONG = 32
"""A log of more messages than that is shortened by whoever reads it: what follows from it becomes a record."""

_LOOKS = 0.5, 2.0
_REMEMBERED = 10_000

T = TypeVar("T")


class AmqpBackend:
    """States, groups and plans on RabbitMQ; see ``asyncqueue.backends.base`` for what each verb promises.

    ``url`` is ``amqp://`` or ``amqps://``, of one server. ``results_expire_in`` is how long (seconds) an entry is kept
    after its last write. ``topology`` is Machinery's, of which the exchange counts: it has to be named, and to be a
    direct one or a topic. ``max_entry`` is the most bytes of one entry; a server may take less. ``go_groups`` says that
    Go's clients send groups too, of which they record nothing: one without an entry is not lost then, but counted as
    Go's workers do it. ``reply_timeout`` (seconds) is for each request, for the confirmation of a batch, and for a lock
    that others have; ``heartbeat`` is in whole seconds. ``tls`` is a context to use for ``amqps://`` instead of the one
    that the URL's options make.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        topology: Topology | None = None,
        max_entry: int = MAX_ENTRY,
        go_groups: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        heartbeat: int = HEARTBEAT,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.results_expire_in = results_expire_in
        self._exchange = _exchange_of(topology or Topology())
        self._max_entry = max_entry
        self._go_groups = go_groups
        self._clock = clock
        self._access = Access(parse_urls(url, "", tls), connect_timeout, reply_timeout, heartbeat, client_name)
        self._waiters: Waiters | None = None
        self._start()

    def _start(self) -> None:
        self._storing = AmqpLink(self._access, "results")
        self._waiting = AmqpLink(self._access, "waiting")
        self._queues = ResultQueues(self._storing, self._exchange, self._now)
        self._hearing = Hearing(self._waiting, self._exchange, self._read, self._heard, self._now)
        self._groups = ResultGroups(self._queues, self._read, self._checked, self._now, self._go_groups)
        self._kept: OrderedDict[str, float] = OrderedDict()  # until when some entries are kept at least

    @property
    def address(self) -> str:
        return ", ".join(f"amqp://{server}" for server in self._access.servers)

    def connect_with(self, url: str, *, tls: ssl.SSLContext | None = None, **_: Any) -> None:
        self._access.servers = parse_urls(url, "", tls)

    async def open(self) -> None:
        await self._storing.reach()
        if self._waiters is None:
            shortest, longest = _LOOKS
            self._waiters = Waiters(self._look, shortest=shortest, longest=longest)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.close()
        await self._queues.close()
        await self._waiting.close()
        await self._storing.close()
        self._start()

    async def identity(self) -> Hashable:
        return ("amqp", self.address, self._exchange.name)

    # ------------------------------------------------------------------------------------------------ states

    async def begin(self, states: Sequence[TaskState]) -> None:
        self._check_open()
        await self._write(states, begins=True)

    async def put(self, states: Sequence[TaskState]) -> None:
        self._check_open()
        await self._write(states, begins=False)
        self._groups.recorded(states)

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        self._check_open()
        found = await self._read(task_ids)
        return [None if (known := found[task_id]) is None else known.state for task_id in task_ids]

    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[Ending]:
        waiters, hearing = self._check_open(), self._hearing
        awaited = list(dict.fromkeys(task_ids))
        hearing.enter(awaited)
        try:
            async with aclosing(waiters.watch(awaited)) as endings:
                async for ending in endings:
                    yield ending
        finally:
            hearing.leave(awaited)

    async def forget(self, task_ids: Sequence[str]) -> None:
        self._check_open()
        if not task_ids:
            return
        for task_id in task_ids:
            self._kept.pop(task_id, None)
        self._groups.forget(task_ids)
        await self._queues.delete(name for one in task_ids for name in (one, own(one), triggered(one)))
        await self._queues.notify(task_ids, {FORGOTTEN: "1"})

    async def _write(self, states: Sequence[TaskState], *, begins: bool) -> None:
        if not states:
            return
        keep, now = self.results_expire_in, self._now()
        until: dict[str, float] = {}
        for state in states:
            moment = kept_until(keep, now, state.not_before)
            until[state.task_uuid] = max(moment, until.get(state.task_uuid, moment))
        posts = [
            Post(
                state.task_uuid,
                self._encoded(state),
                {BEGUN: secrets.token_hex(8)} if begins else {},
                is_new=begins,
            )
            for state in states
        ]
        shorter = await self._queues.append(posts, keep)
        longer = {name: moment for name, moment in until.items() if moment > now + min(keep, shorter.get(name, keep))}
        await self._prolong(longer)
        for name, moment in until.items():
            _remember(self._kept, name, moment)

    def _encoded(self, state: TaskState) -> bytes:
        return self._checked(encode_state(state), f"the state of task {state.task_uuid}")

    def _checked(self, body: bytes, what: str) -> bytes:
        if len(body) > self._max_entry:
            raise EntryTooLarge(f"{what} is {len(body)} bytes long, over the limit of {self._max_entry} bytes")
        return body

    async def _read(self, task_ids: Sequence[str]) -> Mapping[str, Known | None]:
        """What follows from the logs of these tasks."""

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, Entry]:
            entries = await locked.read(names, logs=True)
            until = self._now() + self.results_expire_in
            long = {name: entry for name, entry in entries.items() if len(entry.log) > LONG}
            records = [record for name, entry in long.items() for record in _longer(name, entry, until)]
            await locked.write(records)
            for record in records:
                await locked.shorten(entries[record.name].log[:-1])  # the last one is for Go's readers
            return entries

        entries = await self._queues.each(task_ids, read)
        return {name: _folded(name, entry) for name, entry in entries.items()}

    async def _look(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        found = await self._hearing.look(task_ids)
        return [None if (known := found[task_id]) is None else known.state for task_id in task_ids]

    def _heard(self, task_ids: Iterable[str]) -> None:
        if self._waiters is not None:
            self._waiters.changed(task_ids)

    # ------------------------------------------------------------------------------------------------ groups

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        self._check_open()
        keep, now = self.results_expire_in, self._now()
        await self._groups.open([(group, kept_until(keep, now, group.not_before)) for group in groups])

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        self._check_open()
        found = await self._groups.get(group_ids)
        return [None if (group := found[group_id]) is None else group.meta for group_id in group_ids]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        self._check_open()
        return await self._groups.finish(members, self.results_expire_in)

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        self._check_open()
        return await self._groups.add(group_id, task_ids)

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        self._check_open()
        return await self._groups.claim(group_id, owner, ttl, self.results_expire_in)

    async def mark_group_sent(self, group_id: str) -> None:
        self._check_open()
        await self._groups.end(group_id, self.results_expire_in)

    # ------------------------------------------------------------------------------------------------ plans

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        self._check_open()
        keep, now = self.results_expire_in, self._now()
        written = {
            plan.plan_id: Record(
                plan.plan_id,
                self._checked(encode_plan(plan), f"plan {plan.plan_id}"),
                {KIND: PLAN},
                kept_until(keep, now, plan.not_before),
            )
            for plan in plans
        }

        async def put(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            there = await locked.read(names)
            await locked.write([replace(written[name], old=there[name].old) for name in names])
            return {}

        await self._queues.each(written, put)

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        self._check_open()

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, Plan | None]:
            return {name: _plan_in(name, entry) for name, entry in (await locked.read(names)).items()}

        found = await self._queues.each(plan_ids, read)
        return [found[plan_id] for plan_id in plan_ids]

    # ------------------------------------------------------------------------------------------------ keeping

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        self._check_open()
        until = kept_until(self.results_expire_in, self._now(), not_before)
        enough = until - LEAST_GAIN * self.results_expire_in
        some = [family for family in families if family and self._kept.get(family[0], 0.0) <= enough]
        firsts = await self._kept_until([family[0] for family in some])
        todo = dict.fromkeys(each for family in some if firsts[family[0]] <= enough for each in family)
        known = set(todo)
        while todo:
            inner = await self._prolong(dict.fromkeys(todo, until))
            todo = dict.fromkeys(each for each in inner if each not in known)
            known.update(todo)

    async def _kept_until(self, names: Sequence[str]) -> Mapping[str, float]:
        """Until when these are kept at least; 0.0 where there is no entry."""

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, float]:
            return {name: _until(name, entry) for name, entry in (await _entries(locked, names)).items()}

        found = await self._queues.each(names, read)
        for name, until in found.items():
            _remember(self._kept, name, until)
        return found

    async def _prolong(self, until: Mapping[str, float]) -> Sequence[str]:
        """Keep these until then, unless they are kept longer; returns what is in them, which they stand for."""
        inner: list[str] = []

        async def prolong(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            records = []
            for name, entry in (await _entries(locked, names)).items():
                inner.extend(_inside(entry))
                if entry.is_there and _until(name, entry) < until[name]:
                    records += _longer(name, entry, until[name])
            await locked.write(records)
            return {}

        await self._queues.each(until, prolong)
        return inner

    def _check_open(self) -> Waiters:
        if self._waiters is None:
            raise Unavailable(f"{self.address} is not open")
        return self._waiters

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


async def _entries(locked: Locked, names: Sequence[str]) -> Mapping[str, Entry]:
    """What is under these names, which may be of tasks, groups or plans.

    The queue of a group is left alone, since others count what is in it: ours have a record, and those of Go's clients
    are all named so.
    """
    entries = await locked.read(names)
    tasks = [
        name
        for name, entry in entries.items()
        if (not name.startswith("group_") if entry.record is None else entry.record.headers.get(KIND) == STATE)
    ]
    logs = await locked.read_logs(tasks)
    return {name: replace(entry, log=logs.get(name, ())) for name, entry in entries.items()}


def _folded(name: str, entry: Entry) -> Known | None:
    is_state = entry.record is None or entry.record.headers.get(KIND) == STATE
    return fold(name, entry.record, entry.log) if is_state else None


def _plan_in(name: str, entry: Entry) -> Plan | None:
    return decode_plan(name, entry.record.body) if entry.record and entry.record.headers.get(KIND) == PLAN else None


def _until(name: str, entry: Entry) -> float:
    """Until when it is kept at least; 0.0 where there is nothing, or nothing that can be read."""
    try:
        known = _folded(name, entry)
    except BadMessage:
        return 0.0
    if known is not None:
        return known.until
    return entry.record.until if entry.record else 0.0


def _inside(entry: Entry) -> Sequence[str]:
    """UUIDs of what a group or a plan stands for."""
    if (group := group_in(entry)) is not None:
        return group.members
    plan = _plan_in("", entry)
    return () if plan is None else plan.ids


def _longer(name: str, entry: Entry, until: float) -> list[Record]:
    """What to write so that it is kept until then at least; nothing where there is nothing that can be read."""
    try:
        known = _folded(name, entry)
    except BadMessage:
        return []
    if known is not None:
        until = max(until, known.until)
        return [Record(name, encode_state(known.state), {KIND: STATE, BEGUN: known.begun}, until, entry.old)]
    if entry.record is not None and entry.record.headers.get(KIND) in (GROUP, PLAN):
        return [Record(name, entry.record.body, entry.record.headers, until, entry.old)]
    return []


def _remember(found: OrderedDict[str, T], name: str, what: T) -> None:
    found[name] = what
    found.move_to_end(name)
    while len(found) > _REMEMBERED:
        found.popitem(last=False)


def _exchange_of(topology: Topology) -> Exchange:
    if not topology.exchange or topology.exchange_type not in ("direct", "topic"):
        raise ConfigError(
            "results on RabbitMQ need a named exchange of type direct or topic (settings amqp.exchange and"
            f" amqp.exchange_type), not {topology.exchange!r} of type {topology.exchange_type!r}"
        )
    return Exchange(topology.exchange, topology.exchange_type)
