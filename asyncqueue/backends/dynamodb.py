"""DynamoDB as a backend, on Machinery's tables: an item per task and group under its UUID, with an expiry.

Waiting is one poll for all: DynamoDB tells nobody of a write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections import dynamodb_groups, dynamodb_states
from asyncqueue.connections.aws import CONNECT_TIMEOUT, REPLY_TIMEOUT
from asyncqueue.connections.dynamodb import Table
from asyncqueue.connections.dynamodb_families import Families
from asyncqueue.connections.dynamodb_groups import Groups
from asyncqueue.connections.dynamodb_plans import Plans
from asyncqueue.connections.dynamodb_states import States
from asyncqueue.connections.dynamodb_tables import OnTables
from asyncqueue.connections.dynamodb_tallies import Tallies, key_of
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState

LOOK = 0.05, 1.0
"""First and longest pause (seconds) between looks of waiters. A look reads every entry that is waited for, and a read
has its price."""


class DynamoBackend(OnTables):
    """States, groups and plans on Amazon DynamoDB, or on what speaks like it; see ``Backend``.

    ``url`` is ``https://dynamodb.<region>.amazonaws.com``; see ``connections.aws.parse_url`` for other endpoints.
    ``results_expire_in`` is how long (seconds, rounded up) an entry is kept after its last write. Groups and plans lie
    in one table. ``client`` is an ``aiobotocore`` client that the caller made, and will close. Expiry and claims end by
    ``clock``, which those of all workers must agree with.

    ``open`` raises ``Refused`` where a table is missing; ``migrate`` makes it.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        task_states_table: str = "task_states",
        group_metas_table: str = "group_metas",
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        client: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        tasks = Table(task_states_table, dynamodb_states.KEY)
        groups = Table(group_metas_table, dynamodb_groups.KEY)
        super().__init__(
            url, tasks, groups, connect_timeout=connect_timeout, reply_timeout=reply_timeout, client=client
        )
        self.results_expire_in = results_expire_in
        self._clock = clock
        self._states = States(self._dynamo, tasks)
        self._tallies = Tallies(self._dynamo, groups, self._states.ended)
        self._groups = Groups(self._dynamo, groups, self._tallies)
        self._plans = Plans(self._dynamo, groups)
        self._families = Families(self._dynamo, tasks, groups, self._tallies, self._plans)
        self._waiters: Waiters | None = None

    async def open(self) -> None:
        await self._dynamo.open(self._tables)
        if self._waiters is None:
            shortest, longest = LOOK
            self._waiters = Waiters(self.get, shortest=shortest, longest=longest)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.close()
        await self._dynamo.close()

    async def identity(self) -> Hashable:
        return ("dynamodb", *self._dynamo.place, *(table.name for table in self._tables))

    async def begin(self, states: Sequence[TaskState]) -> None:
        await self._states.begin(states, self.results_expire_in, self._now())

    async def put(self, states: Sequence[TaskState]) -> None:
        await self._states.put(states, self.results_expire_in, self._now())
        self._opened().changed([state.task_uuid for state in states if state.is_completed])

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        found = await self._states.get(task_ids, self._now())
        return [found.get(task_id) for task_id in task_ids]

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        return self._opened().watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        self._now()
        tasks, groups = self._tables
        await self._dynamo.drop(tasks, task_ids)
        # shards of tallies and parts of plans are left to expire: nothing leads to them any more
        await self._dynamo.drop(groups, [key for each in task_ids for key in (each, key_of(each))])
        self._opened().changed(task_ids)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        await self._groups.open(groups, self.results_expire_in, self._now())

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = await self._groups.get(group_ids, self._now())
        return [found.get(group_id) for group_id in group_ids]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        """Members of one group that are counted together are told the same."""
        now, ended = self._now(), dict[str, list[str]]()
        for member in members:
            ended.setdefault(member.group_id, []).append(member.task_id)
        counts = (self._groups.finish(group_id, some, self.results_expire_in, now) for group_id, some in ended.items())
        progress = dict(zip(ended, await all_of(counts), strict=True))
        return [progress[member.group_id] for member in members]

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        return await self._groups.add(group_id, task_ids, self.results_expire_in, self._now())

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await self._groups.claim(group_id, owner, ttl, self.results_expire_in, self._now())

    async def mark_group_sent(self, group_id: str) -> None:
        await self._groups.mark_sent(group_id, self.results_expire_in, self._now())

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        await self._plans.put(plans, self.results_expire_in, self._now())

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        found = await self._plans.get(plan_ids, self._now())
        return [found.get(plan_id) for plan_id in plan_ids]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        await self._families.touch(families, self.results_expire_in, self._now(), not_before)

    def _opened(self) -> Waiters:
        if self._waiters is None:
            raise Unavailable(f"DynamoDB at {self.address} is not open")
        return self._waiters

    def _now(self) -> float:
        self._opened()
        return self._clock.now_ns() / NANOSECONDS
