"""MongoDB as a backend, on Machinery's documents: one per task in ``tasks``, one per group in ``group_metas``.

Waiting is pushed: one change stream tells of tasks that end, whoever ended them. Where a server has no change streams,
the states are polled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any

from pymongo import ReplaceOne, UpdateOne

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.keeping import LEAST_GAIN, kept_until
from asyncqueue.connections.mongo import REPLY_TIMEOUT, Document
from asyncqueue.connections.mongo_documents import (
    ENTRY_END,
    FINAL,
    TASK_END,
    group_in,
    is_gone,
    moment,
    plan_document,
    plan_in,
    state_document,
    state_in,
)
from asyncqueue.connections.mongo_groups import MEMBERS, MongoGroups
from asyncqueue.connections.mongo_indexes import Index, Indexes, OnMongo, Useless
from asyncqueue.connections.mongo_stream import POLLED, Stream
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState

PLANS = "aq_plans"
"""The collection of plans."""


class MongoBackend(OnMongo):
    """States on MongoDB.

    See ``asyncqueue.backends.base`` for what each verb promises. ``url`` is ``mongodb://…`` or ``mongodb+srv://…``;
    ``database`` wins over the one in its path, and ``machinery`` is where neither says one. ``results_expire_in`` is
    how long (seconds) an entry is kept after its last write. ``client`` is an ``AsyncMongoClient`` of PyMongo or a
    Motor client, to be used, and not closed, instead of one made from the URL. ``reply_timeout`` is the longest
    (seconds) that a call may take.
    """

    def __init__(
        self,
        url: str,
        *,
        results_expire_in: float = 3600.0,
        database: str = "",
        tasks_collection: str = "tasks",
        group_metas_collection: str = "group_metas",
        client: Any = None,
        reply_timeout: float = REPLY_TIMEOUT,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        indexes = _indexes(tasks_collection, group_metas_collection)
        super().__init__(url, database, client=client, reply_timeout=reply_timeout, indexes=indexes)
        self._tasks = tasks_collection
        self._group_metas = group_metas_collection
        self._groups = MongoGroups(self._link, tasks_collection, group_metas_collection, clock)
        self._clock = clock
        self.results_expire_in = results_expire_in
        self._waiters: Waiters | None = None
        self._stream: Stream | None = None

    @property
    def database(self) -> str:
        """The name of the database in use, whether URL, option or default says it."""
        return self._link.address.database

    async def open(self) -> None:
        if self._stream is not None:
            return
        await self._reach()
        shortest, longest = POLLED
        self._waiters = Waiters(self.get, shortest=shortest, longest=longest)
        self._stream = Stream(self._link, self._tasks, self._waiters)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
        if waiters is not None:
            await waiters.close()
        await self._link.close()

    async def identity(self) -> Hashable:
        said = await self._link.hello()
        place = (said.get("setName"), *sorted(said["hosts"])) if said.get("hosts") else self._link.address.hosts
        return ("mongodb", place, self._link.address.database, self._tasks)

    async def begin(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        documents = [state_document(state) | {TASK_END: self._end(state, now)} for state in states]
        await self._link.write(self._tasks, [ReplaceOne({"_id": each["_id"]}, each, upsert=True) for each in documents])

    async def put(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        writes = [UpdateOne({"_id": each.task_uuid}, self._stages(each, now), upsert=True) for each in states]
        await self._link.write(self._tasks, writes)

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        found = await self._read(self._tasks, task_ids, TASK_END)
        states = {name: state_in(document) for name, document in found.items()}
        return [states.get(task_id) for task_id in task_ids]

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        if self._stream is None:
            raise Unavailable(f"MongoDB at {self.address} is not open")
        return self._stream.watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        for name in (self._tasks, self._group_metas, PLANS) if task_ids else ():
            # what is beside a group nobody finds any more, and it has an end
            await self._link.delete(name, {"_id": {"$in": list(task_ids)}})

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        await self._groups.open(groups, self.results_expire_in)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        found = await self._read(self._group_metas, group_ids, ENTRY_END)
        groups = {name: group_in(document) for name, document in found.items()}
        return [groups.get(group_id) for group_id in group_ids]

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        return await self._groups.finish(members, self.results_expire_in) if members else []

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        return await self._groups.add(group_id, task_ids, self.results_expire_in)

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        return await self._groups.claim(group_id, owner, ttl, self.results_expire_in)

    async def mark_group_sent(self, group_id: str) -> None:
        await self._groups.mark_sent(group_id, self.results_expire_in)

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        now = self._now()
        documents = [plan_document(plan) | {ENTRY_END: self._end(plan, now)} for plan in plans]
        await self._link.write(PLANS, [ReplaceOne({"_id": each["_id"]}, each, upsert=True) for each in documents])

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        found = await self._read(PLANS, plan_ids, ENTRY_END)
        plans = {name: plan_in(document) for name, document in found.items()}
        return [plans.get(plan_id) for plan_id in plan_ids]

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now, keep = self._now(), self.results_expire_in
        until = kept_until(keep, now, not_before)
        firsts = [family[0] for family in families if family]
        ends = await self._ends(firsts) if firsts else {}
        worth = [family for family in families if family and until - ends.get(family[0], 0.0) >= LEAST_GAIN * keep]
        if worth:
            await self._prolong({each for family in worth for each in family}, until, now)

    async def _prolong(self, ids: set[str], until: float, now: float) -> None:
        """Keep these, and what they stand for, at least until then."""
        plans = await self._read(PLANS, list(ids), ENTRY_END, ("ids",))
        ids.update(each for plan in plans.values() for each in plan["ids"])
        groups = await self._read(self._group_metas, list(ids), ENTRY_END, ("task_uuids", "aq_run"))
        ids.update(each for group in groups.values() for each in group.get("task_uuids") or ())
        for name, end in ((self._tasks, TASK_END), (self._group_metas, ENTRY_END), (PLANS, ENTRY_END)):
            # one that has no end, as Machinery 1 writes them, is not given one
            await self._link.update(name, list(ids), {end: {"$gt": moment(now)}}, {"$max": {end: moment(until)}})
        await self._groups.prolong_members(list(groups.values()), until + self.results_expire_in)

    async def _ends(self, ids: Sequence[str]) -> dict[str, float]:
        """When entries of tasks, groups or plans are gone (unix seconds); never, where that is not said."""
        stored = ((self._tasks, TASK_END), (self._group_metas, ENTRY_END), (PLANS, ENTRY_END))
        found = await all_of(self._link.find(name, {"_id": {"$in": list(ids)}}, (end,)) for name, end in stored)
        return {
            each["_id"]: int(each[end]) / 1000 if end in each else float("inf")
            for (_, end), documents in zip(stored, found, strict=True)
            for each in documents
        }

    def _stages(self, state: TaskState, now: float) -> Sequence[dict[str, Any]]:
        """The update that puts a state: what was there decides what becomes of it."""
        has_time = {"$gt": [{"$ifNull": [f"${TASK_END}", _NEVER]}, moment(now)]}
        is_there = {"$and": [{"$ne": [{"$type": "$state"}, "missing"]}, has_time]}
        stays = is_there if state.state is State.PENDING else {"$and": [is_there, {"$in": ["$state", FINAL]}]}
        new = state_document(state)
        kept = [] if "task_name" in new else ["task_name"]
        kept += [] if "created_at" in new else ["created_at", "aq_created_ns"]
        old = {"$cond": [is_there, {name: f"${name}" for name in (*kept, TASK_END)}, {}]}
        written = {"$mergeObjects": [old, {"$literal": new}]}
        end = {"$max": [{"$cond": [is_there, f"${TASK_END}", None]}, self._end(state, now)]}
        later = {"$mergeObjects": [written, {TASK_END: end}]}
        return [{"$replaceWith": {"$cond": [stays, "$$ROOT", later]}}]

    def _end(self, entry: TaskState | Plan, now: float) -> Any:
        return moment(kept_until(self.results_expire_in, now, entry.not_before))

    async def _read(
        self, collection: str, ids: Sequence[str], end: str, fields: Sequence[str] = ()
    ) -> dict[str, Document]:
        """The entries that are there, by their UUIDs."""
        if not ids:
            return {}
        now = self._now()
        named = (*fields, end) if fields else ()
        found = await self._link.find(collection, {"_id": {"$in": list(dict.fromkeys(ids))}}, named)
        return {each["_id"]: each for each in found if not is_gone(each, end, now)}

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


def _indexes(tasks: str, groups: str) -> Indexes:
    return Indexes(
        wanted=(
            Index(tasks, (TASK_END,), ends=True),
            Index(groups, (ENTRY_END,), ends=True),
            Index(MEMBERS, ("run", "left")),
            Index(MEMBERS, (ENTRY_END,), ends=True),
            Index(PLANS, (ENTRY_END,), ends=True),
        ),
        useless=(Useless(tasks, "state"), Useless(tasks, "lock")),
    )


_NEVER = moment(253_402_300_799.0)  # the end of the year 9999
