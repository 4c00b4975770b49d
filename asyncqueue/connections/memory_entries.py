"""What the in-process store keeps for a time: states of tasks, groups and plans, by UUID.

An entry that has expired counts as none, also before it is swept away. Moments are unix seconds and are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.connections.keeping import kept_until, with_send_kept
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState, may_follow
from asyncqueue.wire import decode_plan, encode_plan, encode_state

SWEEP_AFTER = 100
"""The fewest writes between two sweeps that drop what has expired."""


@dataclass(slots=True, kw_only=True)
class Expiring:
    """An entry; ``expires_at`` is when it is gone."""

    expires_at: float


E = TypeVar("E", bound=Expiring)


class Shelf(Generic[E]):
    """Entries of one kind."""

    def __init__(self) -> None:
        self._records: dict[str, E] = {}
        self._writes = 0  # since the last sweep
        self._next_sweep = SWEEP_AFTER

    def present(self, key: str, now: float) -> E | None:
        """The entry, if it has not expired."""
        record = self._records.get(key)
        return record if record and record.expires_at > now else None

    def expires_at(self, key: str) -> float:
        """When the entry is gone; long ago where there is none."""
        record = self._records.get(key)
        return record.expires_at if record else 0.0

    def prolong(self, keys: Iterable[str], until: float, now: float) -> None:
        """Keep these at least until then."""
        for key in keys:
            if record := self.present(key, now):
                record.expires_at = max(record.expires_at, until)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop entries."""
        for key in keys:
            self._records.pop(key, None)

    def _write(self, key: str, record: E, now: float) -> None:
        self._records[key] = record
        self._writes += 1
        if self._writes >= self._next_sweep:
            self._records = {key: record for key, record in self._records.items() if record.expires_at > now}
            self._writes = 0
            self._next_sweep = max(SWEEP_AFTER, len(self._records))  # cheap on average, however many are kept


@dataclass(slots=True, kw_only=True)
class Record(Expiring):
    """A task's state: its bytes, and what the rules for the next write need to know of them."""

    data: bytes
    state: State
    task_name: str
    created_at: int


class States(Shelf[Record]):
    """States of tasks, kept as their bytes."""

    def begin(self, states: Iterable[TaskState], keep: float, now: float) -> None:
        """Write whatever was there."""
        for state in states:
            self._record(state, keep, now)

    def put(self, states: Iterable[TaskState], keep: float, now: float) -> None:
        """Write what may follow what is there; name and time of the send are kept where the new state has none."""
        for state in states:
            old = self.present(state.task_uuid, now)
            if not may_follow(state.state, old.state if old else None):
                continue
            if old is None:
                self._record(state, keep, now)
            else:
                self._record(with_send_kept(state, old.task_name, old.created_at), keep, now, old.expires_at)

    def get(self, task_ids: Iterable[str], now: float) -> list[bytes | None]:
        """The bytes, in the order asked."""
        records = [self.present(task_id, now) for task_id in task_ids]
        return [record.data if record else None for record in records]

    def has_ended(self, task_id: str, now: float) -> bool:
        """Whether the task is known to be in a final state."""
        record = self.present(task_id, now)
        return record is not None and record.state.is_final

    def _record(self, state: TaskState, keep: float, now: float, at_least: float = 0.0) -> None:
        record = Record(
            data=encode_state(state),
            state=state.state,
            task_name=state.task_name,
            created_at=state.created_at,
            expires_at=max(at_least, kept_until(keep, now, state.not_before)),
        )
        self._write(state.task_uuid, record, now)


@dataclass(slots=True, kw_only=True)
class Group(Expiring):
    """A group. ``owner`` has claimed what follows it, until ``claimed_until``; None where nobody has, or it was sent.

    ``unfinished`` are the members that are not known to have ended. ``unprobed`` are those whose state was not looked
    at, and some that are no longer unfinished: none of the unfinished is missing there.
    """

    meta: GroupMeta
    members: dict[str, None]  # in order
    unfinished: set[str]
    unprobed: list[str]
    is_triggered: bool = False
    owner: str | None = None
    claimed_until: float = 0.0

    @property
    def is_sent(self) -> bool:
        """Whether what follows is on its way, or is never to be."""
        return self.is_triggered and self.owner is None


class Groups(Shelf[Group]):
    """Groups. ``has_ended(task_id, now)`` says whether the final state of a task is recorded."""

    def __init__(self, has_ended: Callable[[str, float], bool]) -> None:
        super().__init__()
        self._has_ended = has_ended

    def open(self, groups: Iterable[GroupMeta], keep: float, now: float) -> None:
        """Write those that are not there."""
        for group in groups:
            if self.present(group.group_uuid, now) is None:
                self._make(group, keep, now)

    def get(self, group_ids: Iterable[str], now: float) -> list[GroupMeta | None]:
        """Groups as they are now, in the order asked."""
        groups = [self.present(group_id, now) for group_id in group_ids]
        return [_meta_of(group) if group else None for group in groups]

    def members(self, group_id: str, now: float) -> Iterable[str]:
        """UUIDs of its members; none where there is no such group."""
        group = self.present(group_id, now)
        return group.members if group else ()

    def finish(self, member: Member, now: float) -> Progress:
        """Count a member; how its group stands then."""
        group = self.present(member.group_id, now)
        if group is None:
            return Progress.LOST
        group.unfinished.discard(member.task_id)
        if group.is_sent:
            return Progress.TRIGGERED
        return Progress.WAITING if self._waits(group, now) else Progress.COMPLETE

    def add(self, group_id: str, task_ids: Sequence[str], now: float) -> bool:
        """Append members; False where the group is over, or there is none."""
        group = self.present(group_id, now)
        if group is None or group.is_triggered or not self._waits(group, now):
            return False
        new = [task_id for task_id in dict.fromkeys(task_ids) if task_id not in group.members]
        group.members.update(dict.fromkeys(new))
        group.unfinished.update(new)
        group.unprobed.extend(new)
        return True

    def end(self, group_id: str, keep: float, now: float) -> bool:
        """Trigger it, with what follows on its way; False where that was done before."""
        group = self._present_or_made(group_id, keep, now)
        is_first = not group.is_sent
        group.is_triggered, group.owner = True, None
        return is_first

    def claim(self, group_id: str, owner: str, ttl: float, keep: float, now: float) -> GroupClaim:
        """Take what follows it for ``ttl`` seconds."""
        group = self._present_or_made(group_id, keep, now)
        if group.is_sent:
            return GroupClaim.SENT
        if group.owner not in (None, owner) and group.claimed_until > now:
            return GroupClaim.TAKEN
        group.is_triggered, group.owner, group.claimed_until = True, owner, now + ttl
        return GroupClaim.MINE

    def _waits(self, group: Group, now: float) -> bool:
        """Whether a member has not ended. What is found to have ended on the way is never looked at again."""
        while group.unprobed:
            task_id = group.unprobed[-1]
            if task_id in group.unfinished:
                if not self._has_ended(task_id, now):
                    return True
                group.unfinished.remove(task_id)
            group.unprobed.pop()
        return False

    def _present_or_made(self, group_id: str, keep: float, now: float) -> Group:
        group = self.present(group_id, now) or self._make(GroupMeta(group_uuid=group_id, task_uuids=()), keep, now)
        group.expires_at = max(group.expires_at, now + keep)  # it is about to be written
        return group

    def _make(self, meta: GroupMeta, keep: float, now: float) -> Group:
        members = dict.fromkeys(meta.task_uuids or ())
        group = Group(
            meta=meta,
            members=members,
            unfinished=set(members),
            unprobed=list(members),
            is_triggered=meta.chord_triggered,
            expires_at=kept_until(keep, now, meta.not_before),
        )
        self._write(meta.group_uuid, group, now)
        return group


@dataclass(slots=True, kw_only=True)
class Kept(Expiring):
    """A plan: its bytes, and what is in it."""

    data: bytes
    ids: tuple[str, ...]


class Plans(Shelf[Kept]):
    """Plans, kept as their bytes."""

    def put(self, plans: Iterable[Plan], keep: float, now: float) -> None:
        """Write whatever was there."""
        for plan in plans:
            until = kept_until(keep, now, plan.not_before)
            self._write(plan.plan_id, Kept(data=encode_plan(plan), ids=plan.ids, expires_at=until), now)

    def get(self, plan_ids: Iterable[str], now: float) -> list[Plan | None]:
        """Plans in the order asked."""
        kept = [(plan_id, self.present(plan_id, now)) for plan_id in plan_ids]
        return [decode_plan(plan_id, plan.data) if plan else None for plan_id, plan in kept]

    def ids(self, plan_id: str, now: float) -> Iterable[str]:
        """UUIDs of all that is in it; none where there is no such plan."""
        plan = self.present(plan_id, now)
        return plan.ids if plan else ()


def _meta_of(group: Group) -> GroupMeta:
    members = tuple(group.members) or (None if group.meta.task_uuids is None else ())
    changes = {"task_uuids": members, "chord_triggered": group.is_triggered, "not_before": None}
    return group.meta.model_copy(update=changes)
