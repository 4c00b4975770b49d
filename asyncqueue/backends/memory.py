"""The backend that lives in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Sequence

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.waiting import Waiters
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState
from asyncqueue.wire import decode_state

EXPIRY_LOOK = 0.1, 1.0
"""First and longest pause (seconds) between looks of waiters: writes wake them, only expiry has to be looked for."""


class MemoryBackend:
    """States, groups and plans on a ``MemoryStore``; backends and brokers on the same store share them, from any
    thread and loop.

    ``results_expire_in`` is how long (seconds) an entry is kept after its last write.
    """

    def __init__(
        self, store: MemoryStore | None = None, *, results_expire_in: float = 3600.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._store = store if store is not None else MemoryStore()
        self.results_expire_in = results_expire_in
        self._clock = clock
        self._waiters: Waiters | None = None
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def address(self) -> str:
        return f"memory://{self._store.name}"

    async def open(self) -> None:
        if self._waiters is None:
            shortest, longest = EXPIRY_LOOK
            self._waiters = Waiters(self.get, shortest=shortest, longest=longest)
            self._unsubscribe = self._store.subscribe(self._waiters.changed)

    async def close(self) -> None:
        waiters, self._waiters = self._waiters, None
        if self._unsubscribe is not None:
            self._unsubscribe()
        if waiters is not None:
            await waiters.close()

    async def identity(self) -> Hashable:
        return ("memory", self._store.name, id(self._store))

    async def begin(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.states.begin(states, self.results_expire_in, now)

    async def put(self, states: Sequence[TaskState]) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.states.put(states, self.results_expire_in, now)
            self._store.announce(task_ids=[state.task_uuid for state in states if state.is_completed])

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        now = self._now()
        with self._store.mutex:
            found = self._store.states.get(task_ids, now)
        return [None if data is None else decode_state(data) for data in found]

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        return self._opened().watch(task_ids)

    async def forget(self, task_ids: Sequence[str]) -> None:
        self._now()
        with self._store.mutex:
            self._store.forget(task_ids)

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.groups.open(groups, self.results_expire_in, now)

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        now = self._now()
        with self._store.mutex:
            return self._store.groups.get(group_ids, now)

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        now = self._now()
        with self._store.mutex:
            return [self._store.groups.finish(member, now) for member in members]

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        now = self._now()
        with self._store.mutex:
            return self._store.groups.add(group_id, task_ids, now)

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        now = self._now()
        with self._store.mutex:
            return self._store.groups.claim(group_id, owner, ttl, self.results_expire_in, now)

    async def mark_group_sent(self, group_id: str) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.groups.end(group_id, self.results_expire_in, now)

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        now = self._now()
        with self._store.mutex:
            self._store.plans.put(plans, self.results_expire_in, now)

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        now = self._now()
        with self._store.mutex:
            return self._store.plans.get(plan_ids, now)

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        now = self._now()
        with self._store.mutex:
            for family in families:
                self._store.touch(family, self.results_expire_in, now, not_before)

    def _opened(self) -> Waiters:
        if self._waiters is None:
            raise Unavailable(f"{self.address} is not open")
        return self._waiters

    def _now(self) -> float:
        self._opened()
        return self._clock.now_ns() / NANOSECONDS
