"""Redis as a backend, on Machinery's keys: one JSON per task and group under its UUID, with an expiry.

Waiting is pushed: the server remembers which keys one of our connections has read (``CLIENT TRACKING``) and tells
another one when they are written, by whomever. Where a server does not do that, the states are polled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Unpack

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.connections.redis import (
    MAX_CONNECTIONS,
    Options,
    Word,
    expiry,
    kept_from,
    raise_first,
    read_scripts,
    tombstone,
)
from asyncqueue.connections.redis_link import OnRedis
from asyncqueue.connections.redis_spread import SpreadGroups
from asyncqueue.connections.redis_tracking import POLLED, Tracking
from asyncqueue.errors import Unavailable
from asyncqueue.rfc3339 import ZERO
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.wire import (
    decode_group,
    decode_plan,
    decode_state,
    encode_group,
    encode_plan,
    encode_state,
    encode_state_around_created_at,
)

_SCRIPTS = read_scripts("connections/redis_states.lua", "connections/redis_groups.lua", "backends/redis.lua")


class RedisBackend(OnRedis):
    """States on Redis: a server, a master that sentinels watch, or a cluster.

    See ``asyncqueue.backends.base`` for what each verb promises. ``url`` and ``options`` as for the broker.
    ``results_expire_in`` is how long (seconds) an entry is kept after its last write. ``max_connections`` bounds those
    that are in use at once; two more, to each server, listen while somebody waits.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        max_connections: int = MAX_CONNECTIONS,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(url, options, max_connections=max_connections)
        self._spread = SpreadGroups(self._link, _SCRIPTS["claim"]) if self._link.is_spread else None
        self.results_expire_in = results_expire_in
        self._waiters: Waiters | None = None
        self._tracking: Tracking | None = None

    async def open(self) -> None:
        await self._link.open()
        if self._waiters is None:
            shortest, longest = POLLED
            self._waiters = Waiters(self._look, shortest=shortest, longest=longest)
            self._tracking = Tracking(self._link, self._waiters)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        tracking, self._tracking = self._tracking, None
        if tracking is not None:
            await tracking.close()
        if waiters is not None:
            await waiters.close()
        await self._link.close()

    async def identity(self) -> Hashable:
        return await self._link.identity("results")

    async def begin(self, states: Sequence[TaskState]) -> None:
        await self._put([(state, "b") for state in states])

    async def put(self, states: Sequence[TaskState]) -> None:
        await self._put([(state, _mode(state)) for state in states])

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        return _states(await self._read(task_ids))

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        if self._waiters is None:
            raise Unavailable(f"the connection to Redis at {self.address} is closed")
        return self._waiters.watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        parts = self._link.parts(task_ids)
        raise_first(await self._link.pipeline([("UNLINK", *(task_ids[at] for at in part)) for part in parts]))

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        words = [(encode_group(group), kept_from(group.not_before)) for group in groups]
        await self._write("open", [group.group_uuid for group in groups], words)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = [None if data is None else decode_group(data) for data in await self._read(group_ids)]
        return [  # what is at a UUID may also be a task
            group if group is not None and group.group_uuid == group_id else None
            for group_id, group in zip(group_ids, found, strict=True)
        ]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        if not members:
            return []
        if self._spread is not None:
            return await self._spread.finish(members)
        groups, tasks = [member.group_id for member in members], [member.task_id for member in members]
        words = await self._link.run(_SCRIPTS["finish"], groups, tasks, to_last=True)
        return [Progress(word.decode()) for word in words]

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        if self._spread is not None:
            return await self._spread.add(group_id, task_ids)
        return bool(await self._link.run(_SCRIPTS["add"], (group_id,), task_ids, to_last=True))

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        if self._spread is not None:
            return await self._spread.claim(group_id, owner, ttl, self.results_expire_in)
        args = (*expiry(self.results_expire_in), owner, round(ttl * 1000), tombstone(group_id), "look")
        return GroupClaim((await self._link.run(_SCRIPTS["claim"], (group_id,), args, to_last=True)).decode())

    async def mark_group_sent(self, group_id: str) -> None:
        args = (*expiry(self.results_expire_in), tombstone(group_id))
        await self._link.run(_SCRIPTS["sent"], (group_id,), args, to_last=True)

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        words = [("b", encode_plan(plan), "", kept_from(plan.not_before)) for plan in plans]
        await self._write("put", [plan.plan_id for plan in plans], words)

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        found = zip(plan_ids, await self._read(plan_ids), strict=True)
        return [None if data is None else decode_plan(name, data) for name, data in found]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        if self._spread is not None:
            await self._spread.touch(families, not_before, self.results_expire_in)
            return
        args: list[Word] = [*expiry(self.results_expire_in), kept_from(not_before)]
        for family in families:
            if family:
                args += (len(family), *family)
        if any(families):
            await self._link.run(_SCRIPTS["touch"], (), args)

    async def _put(self, states: Sequence[tuple[TaskState, str]]) -> None:
        words: list[tuple[Word, ...]] = []
        for state, mode in states:
            if mode in "bo" or state.created_at != ZERO:
                words.append((mode, encode_state(state), "", kept_from(state.not_before)))
            else:
                words.append((mode, *encode_state_around_created_at(state), kept_from(state.not_before)))
        await self._write("put", [state.task_uuid for state, _ in states], words)

    async def _write(self, script: str, keys: Sequence[str], words: Sequence[tuple[Word, ...]]) -> None:
        """Run a script on keys, with some words for each of them, once for each part that lies together."""
        kept = expiry(self.results_expire_in)
        calls = [
            (_SCRIPTS[script], [keys[at] for at in part], [*kept, *(word for at in part for word in words[at])])
            for part in self._link.parts(keys)
        ]
        if calls:
            raise_first(await self._link.run_each(calls, to_last=True))

    async def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        """What is at the keys, in their order."""
        found: list[bytes | None] = [None] * len(keys)
        parts = self._link.parts(keys)
        replies = await self._link.pipeline([("MGET", *(keys[at] for at in part)) for part in parts])
        raise_first(replies)
        for part, reply in zip(parts, replies, strict=True):
            for at, data in zip(part, reply, strict=True):
                found[at] = data
        return found

    async def _look(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        """``get`` for those who wait: reading is what makes the server tell us of the next write."""
        found = None if self._tracking is None else await self._tracking.read(task_ids)
        return await self.get(task_ids) if found is None else _states(found)


def _mode(state: TaskState) -> str:
    """How a state is put: see ``redis.lua``."""
    if state.state is State.PENDING:
        return "o"
    return "p" if state.task_name else "n"


def _states(reply: Sequence[bytes | None]) -> list[TaskState | None]:
    return [None if data is None else decode_state(data) for data in reply]
