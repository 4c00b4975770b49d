"""Redis as a backend, on Machinery's keys: one JSON per task and group under its UUID, with an expiry.

Waiting is pushed: the server remembers which keys one of our connections has read (``CLIENT TRACKING``) and tells
another one when they are written, by whomever. Where a server does not do that, the states are polled.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.connections.redis import (
    CONNECT_TIMEOUT,
    MAX_CONNECTIONS,
    REPLY_TIMEOUT,
    Channel,
    RedisLink,
    Reply,
    Word,
    expiry,
    kept_from,
    parse_url,
    read_scripts,
    tombstone,
)
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable
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

POLLED = 0.01, 0.25
"""First and longest pause (seconds) between looks while nobody tells us of writes."""

TOLD = 2.0, 10.0
"""The same while the server tells us: for the connection that died without a word."""

RECONNECT = 0.1, 5.0
"""First and longest pause (seconds) before the server is asked again to tell us."""

_SCRIPTS = read_scripts("connections/redis_states.lua", "connections/redis_groups.lua", "backends/redis.lua")
_CHANNEL = "__redis__:invalidate"


class RedisBackend:
    """States on one Redis server; see ``asyncqueue.backends.base`` for what each verb promises.

    ``url`` and ``tls`` as for the broker. ``results_expire_in`` is how long (seconds) an entry is kept after its last
    write. ``max_connections`` bounds those that are in use at once; two more listen while somebody waits.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._link = RedisLink(
            parse_url(url, tls),
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            max_connections=max_connections,
            client_name=client_name,
        )
        self.results_expire_in = results_expire_in
        self._waiters: Waiters | None = None
        self._tracking: _Tracking | None = None

    @property
    def address(self) -> str:
        return str(self._link.address)

    def connect_with(self, url: str, **options: Any) -> None:
        self._link.connect_with(url, **options)

    async def open(self) -> None:
        await self._link.open()
        if self._waiters is None:
            shortest, longest = POLLED
            self._waiters = Waiters(self._look, shortest=shortest, longest=longest)
            self._tracking = _Tracking(self._link, self._waiters)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        tracking, self._tracking = self._tracking, None
        if tracking is not None:
            await tracking.close()
        if waiters is not None:
            await waiters.close()
        await self._link.close()

    async def identity(self) -> Hashable:
        facts = await self._link.look()
        return ("redis", facts.run_id, self._link.address.db)

    async def begin(self, states: Sequence[TaskState]) -> None:
        await self._write([(state, "b") for state in states])

    async def put(self, states: Sequence[TaskState]) -> None:
        await self._write([(state, _mode(state)) for state in states])

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        return _states(await self._link.call("MGET", *task_ids)) if task_ids else []

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        if self._waiters is None or self._tracking is None:
            raise Unavailable(f"the connection to Redis at {self.address} is closed")
        self._tracking.begin()
        return self._waiters.watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        if task_ids:
            await self._link.call("UNLINK", *task_ids)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        args: list[Word] = [*expiry(self.results_expire_in)]
        for group in groups:
            args += (encode_group(group), kept_from(group.not_before))
        if groups:
            await self._link.run(_SCRIPTS["open"], [group.group_uuid for group in groups], args)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        reply = await self._link.call("MGET", *group_ids) if group_ids else []
        found = [None if data is None else decode_group(data) for data in reply]
        return [  # what is at a UUID may also be a task
            group if group is not None and group.group_uuid == group_id else None
            for group_id, group in zip(group_ids, found, strict=True)
        ]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        if not members:
            return []
        groups, tasks = [member.group_id for member in members], [member.task_id for member in members]
        return [Progress(word.decode()) for word in await self._link.run(_SCRIPTS["finish"], groups, tasks)]

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        return bool(await self._link.run(_SCRIPTS["add"], (group_id,), (*expiry(self.results_expire_in), *task_ids)))

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        args = (*expiry(self.results_expire_in), owner, round(ttl * 1000), tombstone(group_id))
        return GroupClaim((await self._link.run(_SCRIPTS["claim"], (group_id,), args)).decode())

    async def mark_group_sent(self, group_id: str) -> None:
        args = (*expiry(self.results_expire_in), tombstone(group_id))
        await self._link.run(_SCRIPTS["sent"], (group_id,), args)

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        args: list[Word] = [*expiry(self.results_expire_in)]
        for plan in plans:
            args += ("b", encode_plan(plan), "", kept_from(plan.not_before))
        if plans:
            await self._link.run(_SCRIPTS["put"], [plan.plan_id for plan in plans], args)

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        reply = await self._link.call("MGET", *plan_ids) if plan_ids else []
        return [None if data is None else decode_plan(name, data) for name, data in zip(plan_ids, reply, strict=True)]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        args: list[Word] = [*expiry(self.results_expire_in), kept_from(not_before)]
        for family in families:
            if family:
                args += (len(family), *family)
        if any(families):
            await self._link.run(_SCRIPTS["touch"], (), args)

    async def _write(self, states: Sequence[tuple[TaskState, str]]) -> None:
        args: list[Word] = [*expiry(self.results_expire_in)]
        for state, mode in states:
            if mode in "bo" or state.created_at != ZERO:
                args += (mode, encode_state(state), "", kept_from(state.not_before))
            else:
                args += (mode, *encode_state_around_created_at(state), kept_from(state.not_before))
        if states:
            await self._link.run(_SCRIPTS["put"], [state.task_uuid for state, _ in states], args)

    async def _look(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        """``get`` for those who wait: reading is what makes the server tell us of the next write."""
        reply = None if self._tracking is None else await self._tracking.read(task_ids)
        return await self.get(task_ids) if reply is None else _states(reply)


class _Tracking:
    """Two connections: what was read through the one, the server reports to the other when it is written.

    The report goes to a connection of protocol 2 that listens and does nothing else; both end together.
    """

    def __init__(self, link: RedisLink, waiters: Waiters) -> None:
        self._link = link
        self._waiters = waiters
        self._listener: Channel | None = None
        self._reader: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start listening, if that has not happened yet."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen_for_ever())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def read(self, task_ids: Sequence[str]) -> Reply | None:
        """What the keys hold; None where nobody listens. Called by one task at a time."""
        reader = self._reader
        if reader is None:
            return None
        try:
            return await reader.call("MGET", *task_ids)
        except Unavailable:
            self._reader = None
            if self._listener is not None:
                await self._listener.close(nowait=True)  # may be as dead, and would not notice: it only listens
            return None

    async def _listen_for_ever(self) -> None:
        pause, longest = RECONNECT
        while True:
            try:
                await self._listen()
            except Refused:
                return  # this server does not tell: the waiters poll
            except AsyncQueueError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)

    async def _listen(self) -> None:
        listener = self._listener = await self._link.channel()
        try:
            number = await listener.call("CLIENT", "ID")
            await listener.call("SUBSCRIBE", _CHANNEL)
            reader = await self._link.channel()
            try:
                await reader.call("CLIENT", "TRACKING", "ON", "REDIRECT", number)
                self._reader = reader
                self._waiters.pace(*TOLD)  # looks at everything again, through the reader now
                while True:
                    match await listener.receive():
                        case [b"message", _, [*keys]]:
                            self._waiters.changed([key.decode(errors="replace") for key in keys])
                        case _:
                            self._waiters.changed()  # the whole db was emptied
            finally:
                self._reader = None
                self._waiters.pace(*POLLED)
                await reader.close(nowait=True)
        finally:
            await listener.close(nowait=True)


def _mode(state: TaskState) -> str:
    """How a state is put: see ``redis.lua``."""
    if state.state is State.PENDING:
        return "o"
    return "p" if state.task_name else "n"


def _states(reply: Sequence[bytes | None]) -> list[TaskState | None]:
    return [None if data is None else decode_state(data) for data in reply]
