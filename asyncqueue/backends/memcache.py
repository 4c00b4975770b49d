"""Memcached as a backend, on Machinery's keys: one JSON per task and group under its UUID, with an expiry.

Whatever is read and then written is written only where nobody has written it since. Waiting is one poll for all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from math import inf

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.keeping import LEAST_GAIN, kept_until, with_send_kept
from asyncqueue.connections.memcache import (
    ANYTHING,
    FOREVER,
    NOTHING,
    TIMEOUT,
    Answer,
    Item,
    Key,
    Link,
    Write,
    ending,
    first_error,
    lasting_within,
    parse_url,
    without_errors,
)
from asyncqueue.connections.memcache_groups import Groups
from asyncqueue.errors import AsyncQueueError, BadMessage, Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState, may_follow
from asyncqueue.wire import (
    decode_group,
    decode_plan,
    decode_state,
    encode_plan,
    encode_state,
    ids_of_plan,
    is_group,
)

POLLED = 0.01, 0.25
"""First and longest pause (seconds) between looks of those who wait: Memcached tells nobody of a write."""


class MemcacheBackend:
    """States, groups and plans on one or several memcached.

    See ``asyncqueue.backends.base`` for what each verb promises, ``docs/backends/memcache.md`` for what Memcached does
    not. ``url`` is ``memcache://host:port,host:port``: the servers and their order are what every program must have
    alike. ``results_expire_in`` is how long (seconds) an entry is kept after its last write; ``timeout`` how long
    (seconds) a reply may take. Where one of several servers is away, verbs that concern it raise ``Unavailable``; those
    that only write or drop have then done what concerns the others. What is on the others alone is used as ever.
    """

    def __init__(
        self, url: str, *, results_expire_in: float = 3600.0, timeout: float = TIMEOUT, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._link = Link(parse_url(url), timeout=timeout)
        self.results_expire_in = results_expire_in
        self._clock = clock
        self._groups = Groups(self._link, lambda: self.results_expire_in, clock)
        self._waiters: Waiters | None = None

    @property
    def address(self) -> str:
        return self._link.address

    async def open(self) -> None:
        await self._link.open()
        if self._waiters is None:
            shortest, longest = POLLED
            self._waiters = Waiters(self._look, shortest=shortest, longest=longest)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.close()
        await self._link.close()

    async def identity(self) -> Hashable:
        return ("memcache", self._link.places)

    async def begin(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        writes = []
        for state in states:
            ends = ending(kept_until(self.results_expire_in, now, state.not_before), now)
            writes.append(Write(self._link.key(state.task_uuid), encode_state(state), ends, ANYTHING))
        first_error(await self._write("state", writes))

    async def put(self, states: Sequence[TaskState]) -> None:
        todo: dict[Key, list[TaskState]] = {}
        for state in states:
            todo.setdefault(self._link.key(state.task_uuid), []).append(state)
        answers: list[object] = []
        while todo:
            found = await self._link.read(list(todo))
            now = self._now()
            followers = [
                self._follower(key, item, news, now)
                for (key, news), item in zip(todo.items(), found, strict=True)
                if not isinstance(item, AsyncQueueError)
            ]
            writes = [write for write in followers if write is not None]
            written = await self._write("state", writes)
            answers += (*found, *written)
            # somebody else was faster with these
            again = {write.key for write, number in zip(writes, written, strict=True) if number is None}
            todo = {key: news for key, news in todo.items() if key in again}
        first_error(answers)

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        return without_errors(await self._look(task_ids))

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        if self._waiters is None:
            raise Unavailable(f"the connection to Memcached at {self.address} is closed")
        return self._waiters.watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        keys = [self._link.key(each) for each in task_ids]
        found = await self._link.read(keys)
        for name, item in zip(task_ids, found, strict=True):
            if isinstance(item, Item) and is_group(item.data):
                keys += self._groups.counts(name, _members(item.data))
        await self._link.drop(keys)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        await self._groups.open(groups)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        return await self._groups.get(group_ids)

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        return await self._groups.finish(members)

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        return await self._groups.add(group_id, task_ids)

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await self._groups.claim(group_id, owner, ttl)

    async def mark_group_sent(self, group_id: str) -> None:
        await self._groups.mark_sent(group_id)

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        now = self._now()
        writes = []
        for plan in plans:
            ends = ending(kept_until(self.results_expire_in, now, plan.not_before), now)
            writes.append(Write(self._link.key(plan.plan_id), encode_plan(plan), ends, ANYTHING))
        first_error(await self._write("plan", writes))

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        found = without_errors(await self._link.read([self._link.key(plan_id) for plan_id in plan_ids]))
        return [
            None if item is None else decode_plan(plan_id, item.data)
            for plan_id, item in zip(plan_ids, found, strict=True)
        ]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now = self._now()
        keep = self.results_expire_in
        until = kept_until(keep, now, not_before)
        some = [family for family in families if family]
        firsts = without_errors(await self._link.glance([self._link.key(family[0]) for family in some]))
        gaining = [
            family
            for family, first in zip(some, firsts, strict=True)
            if until - now - _left(first) >= LEAST_GAIN * keep
        ]
        await self._keep_alive([each for family in gaining for each in family], until, now)

    async def _keep_alive(self, names: Sequence[str], until: float, now: float) -> None:
        """Let entries last until then, and all that they stand for."""
        todo = dict.fromkeys(names)
        known = set(todo)
        members: dict[str, None] = {}
        while todo:
            keys = [self._link.key(each) for each in todo]
            found = without_errors(await self._link.read(keys))
            await self._prolong(keys, found, until, now)
            inner: dict[str, None] = {}
            for name, item in zip(todo, found, strict=True):
                if item is None:
                    continue
                inner.update(dict.fromkeys(_in_plan(item.data)))
                if is_group(item.data):
                    of_group = _members(item.data)
                    members.update(dict.fromkeys(of_group))
                    if _is_short(item, until, now):
                        ends = lasting_within(int(until - now), now)
                        first_error(await self._link.prolong(dict.fromkeys(self._groups.counts(name, of_group), ends)))
            todo = dict.fromkeys(each for each in inner if each not in known)
            known.update(todo)
        keys = [self._link.key(each) for each in members if each not in known]
        await self._prolong(keys, without_errors(await self._link.glance(keys)), until, now)

    async def _prolong(self, keys: Sequence[Key], found: Sequence[Item | None], until: float, now: float) -> None:
        """Let entries that were found last until then, and none of them shorter than it does."""
        ends = ending(until, now)
        short = [key for key, item in zip(keys, found, strict=True) if item is not None and _is_short(item, until, now)]
        before = without_errors(await self._link.prolong(dict.fromkeys(short, ends)))
        longer = {  # those were written since they were found
            key: ending(until, now, item.left)
            for key, item in zip(short, before, strict=True)
            if item is not None and not _is_short(item, until, now)
        }
        first_error(await self._link.prolong(longer))

    def _follower(self, key: Key, item: Item | None, news: Sequence[TaskState], now: float) -> Write | None:
        """What is written of some states of one task, one after the other; None where none of them may follow."""
        old = current = None if item is None else _state_in(item)
        until = now
        for state in news:
            if may_follow(state.state, None if current is None else current.state):
                current = state if current is None else with_send_kept(state, current.task_name, current.created_at)
                until = max(until, kept_until(self.results_expire_in, now, state.not_before))
        if current is None or current is old:
            return None
        if item is None:
            return Write(key, encode_state(current), ending(until, now), NOTHING)
        return Write(key, encode_state(current), ending(until, now, item.left), item.number)

    async def _write(self, what: str, writes: Sequence[Write]) -> list[Answer[int | None]]:
        """Write all of it, where there is room for all of it."""
        for write in writes:
            self._link.require_room(what, write)
        return await self._link.write(writes)

    async def _look(self, task_ids: Sequence[str]) -> list[Answer[TaskState | None]]:
        found = await self._link.read([self._link.key(task_id) for task_id in task_ids])
        return [_state_of(item) for item in found]

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


def _state_of(answer: Answer[Item | None]) -> Answer[TaskState | None]:
    if not isinstance(answer, Item):
        return answer
    try:
        return decode_state(answer.data)
    except BadMessage as exc:
        return exc


def _state_in(item: Item) -> TaskState | None:
    """The state that is there, None for what nobody can read: that is no loss."""
    try:
        return decode_state(item.data)
    except BadMessage:
        return None


def _members(data: bytes) -> tuple[str, ...]:
    """UUIDs of a group's members; none where nobody can read it."""
    try:
        return decode_group(data).task_uuids or ()
    except BadMessage:
        return ()


def _in_plan(data: bytes) -> tuple[str, ...]:
    """UUIDs of all that is in a plan; none where it is none, or nobody can read it."""
    try:
        return ids_of_plan(data)
    except BadMessage:
        return ()


def _left(item: Item | None) -> float:
    if item is None:
        return 0.0
    return inf if item.left == FOREVER else item.left


def _is_short(item: Item, until: float, now: float) -> bool:
    """Whether an entry lasts for less than until then."""
    return _left(item) < until - now + 1
