"""The contract of a backend: what is known of tasks, and waiting for it.

Every sentence of these docstrings has a test in ``asyncqueue.testing.backend_contract`` or ``group_contract``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState


@dataclass(frozen=True, slots=True)
class Member:
    """A task whose end counts for a group. ``size`` is how many members its sender gave the group, 0 where that is not
    said: for stores in which other programs record no groups."""

    group_id: str
    task_id: str
    size: int = field(default=0, compare=False)


class Progress(Enum):
    """How a group stands when one of its members has ended.

    WAITING: other members have not. COMPLETE: they all have, and what follows is still to be sent. TRIGGERED: what
    follows was sent, or is never to be. LOST: there is no entry of the group. BUSY: another program is about to trigger
    it, so that one has to ask again in a moment.
    """

    WAITING = "waiting"
    COMPLETE = "complete"
    TRIGGERED = "triggered"
    LOST = "lost"
    BUSY = "busy"


class GroupClaim(Enum):
    """What became of a claim: sending what follows the group is the caller's, another owner's for now, or done. BUSY:
    another program is about to trigger it, so that one has to ask again in a moment."""

    MINE = "mine"
    TAKEN = "taken"
    SENT = "sent"
    BUSY = "busy"


class Backend(Protocol):
    """States of tasks, groups and plans by UUID.

    Every verb raises ``Unavailable`` when the service did not answer and ``Refused`` when it said no. One that is given
    an entry over the store's size limit raises ``EntryTooLarge``, which names the entry, its size and the limit in
    bytes, and has written nothing.

    An instance belongs to one event loop. Entries are gone ``results_expire_in`` seconds after their last write, or,
    where what was written has a ``not_before``, after that moment; it may be changed while the backend is open, and
    holds for the writes after that.
    """

    results_expire_in: float

    @property
    def address(self) -> str:
        """Where it is, for people: host, port or file. Never a password."""

    async def open(self) -> None:
        """Reach the service. Twice is no harm."""

    async def close(self) -> None:
        """Let go of the service; iterators of ``watch`` end with ``Unavailable``. Twice is no harm."""

    async def identity(self) -> Hashable:
        """Which store this is; see ``Broker.identity``."""

    async def begin(self, states: Sequence[TaskState]) -> None:
        """Record PENDING for a new send or a requeue. Replaces whatever was there, a final state too."""

    async def put(self, states: Sequence[TaskState]) -> None:
        """Record states; the last write wins, except: a final state never goes back, and PENDING is taken only where
        no entry is.

        ``created_at`` and ``task_name`` of the entry that was there are kept where the new state does not say them. An
        entry is kept no shorter than it was.
        """

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        """States in the order asked; None where there is no entry."""

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        """Each UUID once: with its final state as soon as there is one, or with None as soon as there is no entry.

        Ends after the last one. Any number of watchers share one connection or one poll. No wake-up is lost between
        looking and waiting; states that others wrote wake too.
        """

    async def forget(self, task_ids: Sequence[str]) -> None:
        """Drop entries of tasks, groups or plans. Unknown ones are no error."""

    async def open_groups(self, groups: Sequence[GroupMeta]) -> None:
        """Record groups, each only where no entry is."""

    async def get_groups(self, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
        """Groups in the order asked, their members in theirs, ``chord_triggered`` where it is claimed or triggered;
        None where there is no entry."""

    async def finish_members(self, members: Sequence[Member]) -> Sequence[Progress]:
        """Count members whose final state is recorded, which is the caller's word and not looked up; how each one's
        group stands, in the order asked.

        A set, not a number: the same member twice counts once, who was counted stays counted, and who is no member
        counts for nothing. A member whose final state others recorded counts as well, although nobody said so here.
        Whoever finishes last is told COMPLETE, and so is everybody who asks again before what follows is sent: marked
        as sent, done by a ``GroupEnd``, or triggered by another program. A claim alone is not enough, since its owner
        may die. The cost does not grow with the size of the group, but for the first call.
        """

    async def add_members(self, group_id: str, task_ids: Sequence[str]) -> bool:
        """Append members, in the order given, to a group that is not over; False where it is, or has no entry.

        A group is over that is complete, claimed or triggered. It waits for the added ones too; who is a member
        already, ended or not, is not added again. The group is kept no longer by it: else ``touch`` would find it
        fresh, and let those of its members go that ended early.
        """

    async def claim_group(self, group_id: str, owner: str, ttl: float) -> GroupClaim:
        """Take what follows a group for ``ttl`` seconds, to send it.

        MINE: it was nobody's, or the caller's already (whose time starts anew), or its owner's time is over; other
        programs see the group as triggered from then on. TAKEN: somebody else has time left. SENT: it was marked as
        sent, or is triggered without a claim: by another program, or by a ``GroupEnd``. Of a group without an entry, an
        entry is made that has no members.
        """

    async def mark_group_sent(self, group_id: str) -> None:
        """What follows the group is on its way; nobody can claim it any more. Twice is no harm. Of a group without an
        entry, an entry is made that has no members."""

    async def put_plans(self, plans: Sequence[Plan]) -> None:
        """Record parts of workflows that are too big for a message; the last write wins."""

    async def get_plans(self, plan_ids: Sequence[str]) -> Sequence[Plan | None]:
        """Plans in the order asked; None where there is no entry."""

    async def touch(self, families: Sequence[Sequence[str]], not_before: float | None = None) -> None:
        """Keep entries that belong together as though they were written now, or at ``not_before`` (unix seconds) where
        that is later.

        Each family is UUIDs of tasks, groups and plans; a group stands for its members too, a plan for all that is in
        it. Nothing is done where the first of a family would be kept longer by less than a quarter of
        ``results_expire_in``, so that progress can be reported often at little cost. None is kept shorter than it was,
        and unknown ones are no error, not even as the first.
        """
