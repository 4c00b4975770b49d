"""States of tasks, groups and plans in a SQLite file, for many processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Hashable, Sequence

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections import sqlite_entries as entries
from asyncqueue.connections import sqlite_groups as groups_table
from asyncqueue.connections import sqlite_plans as plans_table
from asyncqueue.connections import sqlite_states as states_table
from asyncqueue.connections.sqlite import BUSY_TIMEOUT, OnFile, as_table
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState
from asyncqueue.wire import decode_plan

LOOK = 0.002, 0.050
"""First and longest pause (seconds) between looks of waiters: SQLite tells nobody of a commit, one has to ask."""


class SqliteBackend(OnFile):
    """States, groups and plans in one file; see ``Backend``.

    ``path`` may be a ``sqlite:///`` URL. ``results_expire_in`` is how long (seconds) an entry is kept after its last
    write. ``busy_timeout`` is how long (seconds) a call waits for other writers before it raises ``Unavailable``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        results_expire_in: float = 3600.0,
        clock: Clock = SYSTEM_CLOCK,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        super().__init__(path, busy_timeout=busy_timeout)
        self.results_expire_in = results_expire_in
        self._clock = clock
        self._waiters: Waiters | None = None
        self._seen = 0

    async def open(self) -> None:
        await self._database.open()
        if self._waiters is None:
            shortest, longest = LOOK
            self._waiters = Waiters(self.get, has_changed=self._has_changed, shortest=shortest, longest=longest)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.close()
        await self._database.close()

    async def identity(self) -> Hashable:
        return self._database.identity()

    async def begin(self, states: Sequence[TaskState]) -> None:
        now, rows = self._now(), self._rows(states)
        await self._database.write(lambda connection: states_table.begin(connection, rows, now))

    async def put(self, states: Sequence[TaskState]) -> None:
        now, rows = self._now(), self._rows(states)
        await self._database.write(lambda connection: states_table.put(connection, rows, now))
        self._opened().changed([state.task_uuid for state in states if state.is_completed])

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        now, wanted = self._now(), as_table(task_ids)
        rows = await self._database.read(lambda connection: states_table.get(connection, wanted, now))
        found = {row[0]: states_table.state_of(row) for row in rows}
        return [found.get(task_id) for task_id in task_ids]

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        return self._opened().watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        unwanted = as_table(task_ids)
        await self._database.write(lambda connection: entries.forget(connection, unwanted))
        self._opened().changed(task_ids)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        now, keep, openings = self._now(), self.results_expire_in, groups_table.to_openings(groups)
        await self._database.write(lambda connection: groups_table.open_groups(connection, openings, keep, now))

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        now, wanted = self._now(), as_table(group_ids)
        rows = await self._database.read(lambda connection: groups_table.get(connection, wanted, now))
        found = {row[0]: groups_table.group_of(row) for row in rows}
        return [found.get(group_id) for group_id in group_ids]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        now = self._now()
        return await self._database.write(lambda connection: groups_table.finish(connection, members, now))

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        now = self._now()
        return await self._database.write(lambda connection: groups_table.add(connection, group_id, task_ids, now))

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        now, keep = self._now(), self.results_expire_in
        return await self._database.write(
            lambda connection: groups_table.claim(connection, group_id, owner, ttl, keep, now)
        )

    async def mark_group_sent(self, group_id: str) -> None:
        now, keep = self._now(), self.results_expire_in
        await self._database.write(lambda connection: groups_table.end(connection, [group_id], keep, now))

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        now = self._now()
        rows = plans_table.to_rows(plans, self.results_expire_in, now)
        await self._database.write(lambda connection: plans_table.put(connection, rows, now))

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        now, wanted = self._now(), as_table(plan_ids)
        found = await self._database.read(lambda connection: plans_table.get(connection, wanted, now))
        return [decode_plan(one, found[one]) if one in found else None for one in plan_ids]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now, keep = self._now(), self.results_expire_in
        await self._database.write(lambda connection: entries.touch(connection, families, keep, now, not_before))

    async def _has_changed(self) -> bool:
        seen, self._seen = self._seen, await self._database.read(lambda _: self._database.version)
        return seen != self._seen

    def _opened(self) -> Waiters:
        if self._waiters is None:
            raise Unavailable(f"SQLite file {self.address} is not open")
        return self._waiters

    def _rows(self, states: Sequence[TaskState]) -> list[states_table.Row]:
        return states_table.to_rows(states, self.results_expire_in, self._now())

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS
