"""RabbitMQ as a backend, on Machinery's queues: one for each task and each group, with the states as messages.

For fleets that have nothing but RabbitMQ; any other store costs less. A queue only takes and gives: so writers append,
and readers fold what they find by the rules of a store, and give it back. Waiting is pushed, whoever writes. Groups,
plans, and what is to be kept for longer than the queue of a task are records of our own, one at a time under a lock.
"""

from __future__ import annotations

import secrets
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Ending, Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.amqp import CONNECT_TIMEOUT, HEARTBEAT, REPLY_TIMEOUT, Access, AmqpLink, parse_urls
from asyncqueue.connections.amqp_results import Entry, Locked, Post, Record, ResultQueues, own
from asyncqueue.connections.amqp_results_group import GroupRecord
from asyncqueue.connections.amqp_results_hearing import Hearing
from asyncqueue.connections.amqp_results_log import BEGUN, FORGOTTEN, Known, Letter, fold
from asyncqueue.connections.amqp_topology import Exchange, Topology
from asyncqueue.connections.keeping import LEAST_GAIN, kept_until
from asyncqueue.errors import BadMessage, ConfigError, EntryTooLarge, Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState
from asyncqueue.wire import decode_plan, encode_plan, encode_state

MAX_ENTRY = 16 * 1024 * 1024
"""The most bytes of an entry, unless told otherwise: what RabbitMQ 4 takes for a message."""

KIND = "aq-kind"
"""The header that says what a record is: a state, a group or a plan."""

STATE, GROUP, PLAN = "state", "group", "plan"

_LOOKS = 0.5, 2.0
_FIRST_DRAW, _LARGEST_DRAW = 2, 1_000
_REMEMBERED = 10_000
_REMEMBERED_BYTES = 10_000

T = TypeVar("T")


class AmqpBackend:
    """States, groups and plans on RabbitMQ; see ``asyncqueue.backends.base`` for what each verb promises.

    ``url`` is ``amqp://`` or ``amqps://``, of one server. ``results_expire_in`` is how long (seconds) an entry is kept
    after its last write. ``topology`` is Machinery's, of which the exchange counts: it has to be named, and to be a
    direct one or a topic. ``max_entry`` is the most bytes of one entry; a server may take less. ``reply_timeout``
    (seconds) is for each request, for the confirmation of a batch, and for a lock that others have; ``heartbeat`` is
    in whole seconds. ``tls`` is a context to use for ``amqps://`` instead of the one that the URL's options make.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        topology: Topology | None = None,
        max_entry: int = MAX_ENTRY,
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
        self._clock = clock
        self._access = Access(parse_urls(url, "", tls), connect_timeout, reply_timeout, heartbeat, client_name)
        self._waiters: Waiters | None = None
        self._start()

    def _start(self) -> None:
        self._storing = AmqpLink(self._access, "results")
        self._waiting = AmqpLink(self._access, "waiting")
        self._queues = ResultQueues(self._storing, self._exchange, self._now)
        self._hearing = Hearing(self._waiting, self._exchange, self._read, self._heard, self._now)
        self._kept: OrderedDict[str, float] = OrderedDict()  # until when some entries are kept at least
        self._ends: OrderedDict[str, bytes] = OrderedDict()  # final states that were recorded here

    @property
    def address(self) -> str:
        return ", ".join(f"amqp://{server}" for server in self._access.servers)

    def connect_with(
        self, url: str, *, topology: Topology | None = None, tls: ssl.SSLContext | None = None, **_: Any
    ) -> None:
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
        for state in states:
            if state.is_completed:
                _remember(self._ends, state.task_uuid, self._encoded(state))

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
            self._ends.pop(task_id, None)
        await self._queues.delete(name for one in task_ids for name in (one, own(one), triggered(one)))
        await self._queues.notify(task_ids, {FORGOTTEN: "1"})

    async def _write(self, states: Sequence[TaskState], *, begins: bool) -> None:
        if not states:
            return
        keep, now = self.results_expire_in, self._now()
        until = {state.task_uuid: kept_until(keep, now, state.not_before) for state in states}
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
        longer = {
            name: moment for name, moment in until.items() if moment > now + min(keep, shorter.get(name, keep))
        }
        await self._prolong(longer)
        for name, moment in until.items():
            _remember(self._kept, name, moment)

    def _encoded(self, state: TaskState) -> bytes:
        return self._checked(encode_state(state), f"the state of task {state.task_uuid}")

    def _checked(self, body: bytes, what: str) -> bytes:
        if len(body) > self._max_entry:
            raise EntryTooLarge(f"{what} is {len(body)} bytes, and RabbitMQ may be given {self._max_entry}")
        return body

    async def _read(self, task_ids: Sequence[str]) -> Mapping[str, Known | None]:
        """What follows from the logs of these tasks."""

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, Entry]:
            return await locked.read(names, logs=True)

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
        opened: dict[str, GroupRecord] = {}
        for group in groups:
            record = GroupRecord(group, until=kept_until(keep, now, group.not_before))
            self._checked(record.body, f"group {group.group_uuid}")
            opened.setdefault(group.group_uuid, record)

        async def open_(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            there = await locked.read(names)
            await locked.write([_record(name, opened[name]) for name in names if there[name].record is None])
            return {}

        await self._queues.each(opened, open_)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = await self._groups(group_ids)
        return [None if (group := found[group_id]) is None else group.meta for group_id in group_ids]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        self._check_open()
        ended: dict[str, list[str]] = {}
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
        found: dict[str, Progress] = {}
        draw = _FIRST_DRAW
        while ended:
            counts = await self._count(ended, draw)
            await self._tell_others({name: count.untold for name, count in counts.items()})
            found.update((name, count.progress) for name, count in counts.items())
            # where all that were drawn have ended, nobody may be left
            drawn = {name: count.drawn for name, count in counts.items() if count.progress is Progress.WAITING}
            final = await self._ended([task_id for some in drawn.values() for task_id in some])
            ended = {name: list(some) for name, some in drawn.items() if final.issuperset(some)}
            draw = min(2 * draw, _LARGEST_DRAW)
        for name in [name for name, progress in found.items() if progress is Progress.COMPLETE]:
            found[name] = await self._seen_by_others(name, found[name])
        return [found[member.group_id] for member in members]

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        self._check_open()
        draw, witness = _FIRST_DRAW, ""
        while True:
            added = await self._update(group_id, lambda group: _with_members(group, task_ids, witness))
            if added is not None:
                return added
            count = (await self._count({group_id: []}, draw))[group_id]
            final = await self._ended(count.drawn)
            witness = next((task_id for task_id in count.drawn if task_id not in final), "")
            await self._count({group_id: list(final)}, draw)
            draw = min(2 * draw, _LARGEST_DRAW)

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        self._check_open()

        def claim(group: GroupRecord | None) -> tuple[GroupClaim, GroupRecord]:
            group = self._present_or_made(group, group_id)
            return group.claim(owner, ttl, self._now())

        claimed = await self._update(group_id, claim)
        if claimed is GroupClaim.MINE:
            await self._queues.declare(triggered(group_id), max(self.results_expire_in, ttl))
        return claimed

    async def mark_group_sent(self, group_id: str) -> None:
        self._check_open()
        await self._update(group_id, lambda group: (None, self._present_or_made(group, group_id).end()))
        await self._queues.declare(triggered(group_id), self.results_expire_in)

    def _present_or_made(self, group: GroupRecord | None, group_id: str) -> GroupRecord:
        """The group, which is about to be written."""
        until = self._now() + self.results_expire_in
        if group is None:
            return GroupRecord(GroupMeta(group_uuid=group_id, task_uuids=()), until=until)
        return replace(group, until=max(group.until, until))

    async def _groups(self, group_ids: Sequence[str]) -> Mapping[str, GroupRecord | None]:
        self._check_open()

        async def read(locked: Locked, names: Sequence[str]) -> Mapping[str, GroupRecord | None]:
            return {name: _group_in(entry) for name, entry in (await locked.read(names)).items()}

        return await self._queues.each(group_ids, read)

    async def _update(
        self, group_id: str, change: Callable[[GroupRecord | None], tuple[T, GroupRecord | None]]
    ) -> T:
        """Change a group, and return what the change returned beside it."""

        async def update(locked: Locked, names: Sequence[str]) -> Mapping[str, T]:
            entry = (await locked.read(names))[group_id]
            old = _group_in(entry)
            answer, new = change(old)
            if new is not None and new != old:
                self._checked(new.body, f"group {group_id}")
                await locked.write([_record(group_id, new, entry.old)])
            return {group_id: answer}

        return (await self._queues.each([group_id], update))[group_id]

    async def _count(self, ended: Mapping[str, Sequence[str]], draw: int) -> Mapping[str, _Count]:
        """Count these members of these groups, and draw some that were not counted."""

        async def count(locked: Locked, names: Sequence[str]) -> Mapping[str, _Count]:
            entries = await locked.read(names)
            counts, records = {}, []
            for name in names:
                old = _group_in(entries[name])
                counts[name], new = _counted(old, ended[name], draw)
                if new is not None and new != old:
                    records.append(_record(name, new, entries[name].old))
            await locked.write(records)
            return counts

        return await self._queues.each(ended, count)

    async def _ended(self, task_ids: Sequence[str]) -> set[str]:
        """Those of these tasks that have a final state."""
        found = await self._read(task_ids) if task_ids else {}
        return {name for name, known in found.items() if known is not None and known.state.is_completed}

    # ------------------------------------------------------------------------------------------------ Go's count

    async def _tell_others(self, ended: Mapping[str, Sequence[str]]) -> None:
        """Put the final states of these members into the queues of their groups, from which Go's workers count."""

    async def _seen_by_others(self, group_id: str, progress: Progress) -> Progress:
        return progress

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
            found = {}
            for name, entry in (await locked.read(names, logs=True)).items():
                found[name] = _until(name, entry)
            return found

        found = await self._queues.each(names, read)
        for name, until in found.items():
            _remember(self._kept, name, until)
        return found

    async def _prolong(self, until: Mapping[str, float]) -> Sequence[str]:
        """Keep these until then, unless they are kept longer; returns what is in them, which they stand for."""
        inner: list[str] = []

        async def prolong(locked: Locked, names: Sequence[str]) -> Mapping[str, None]:
            records = []
            for name, entry in (await locked.read(names, logs=True)).items():
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


def triggered(group_id: str) -> str:
    """The queue that tells Go's workers, by being there, that what follows a group is sent."""
    return f"{group_id}_chord_triggered"


@dataclass(frozen=True, slots=True)
class _Count:
    """How a group stands: some members that were not counted, and those whose end Go's workers have not heard of."""

    progress: Progress
    drawn: Sequence[str] = ()
    untold: Sequence[str] = ()


def _counted(group: GroupRecord | None, ended: Sequence[str], draw: int) -> tuple[_Count, GroupRecord | None]:
    if group is None:
        return _Count(Progress.LOST), None
    new = group.count(ended)
    if new.is_sent:
        return _Count(Progress.TRIGGERED), new
    untold = [task_id for task_id in ended if new.has_counted(task_id) and not group.has_counted(task_id)]
    if new.is_complete:
        return _Count(Progress.COMPLETE, untold=untold), new
    return _Count(Progress.WAITING, new.draw(draw), untold), new


def _with_members(
    group: GroupRecord | None, task_ids: Sequence[str], witness: str
) -> tuple[bool | None, GroupRecord | None]:
    """Whether these were added, and the group after it; None: first it has to be known of a ``witness``, a member that
    was not counted, that it has not ended."""
    if group is None or group.meta.chord_triggered or group.is_complete:
        return False, None
    if not witness or group.has_counted(witness):
        return None, None
    return True, group.add(task_ids)


def _folded(name: str, entry: Entry) -> Known | None:
    is_state = entry.record is None or entry.record.headers.get(KIND) == STATE
    return fold(name, entry.record, entry.log) if is_state else None


def _group_in(entry: Entry) -> GroupRecord | None:
    return GroupRecord.read(entry.record) if entry.record and entry.record.headers.get(KIND) == GROUP else None


def _plan_in(name: str, entry: Entry) -> Plan | None:
    return decode_plan(name, entry.record.body) if entry.record and entry.record.headers.get(KIND) == PLAN else None


def _record(name: str, group: GroupRecord, old: Sequence[int] = ()) -> Record:
    return Record(name, group.body, {**group.headers, KIND: GROUP}, group.until, old)


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
    if (group := _group_in(entry)) is not None:
        return group.members
    plan = _plan_in("", entry)
    return () if plan is None else plan.ids


def _longer(name: str, entry: Entry, until: float) -> list[Record]:
    """What to write so that it is kept until then."""
    try:
        known = _folded(name, entry)
    except BadMessage:
        return []
    if known is not None:
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
