"""A group as its record on RabbitMQ tells of it: Machinery's entry, and beside it who was counted and who claimed it.

Pure. Moments are unix seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from asyncqueue.backends.base import GroupClaim
from asyncqueue.connections.amqp_results_log import Letter, number
from asyncqueue.state import GroupMeta
from asyncqueue.wire import decode_group, encode_group

COUNTED = "aq-counted"
"""The header with the places of the members that were counted: a number to the base of 16, a bit for each."""

OWNER, CLAIMED_UNTIL, TOLD_UNTIL = "aq-owner", "aq-claimed-until", "aq-told-until"


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """``counted`` has a bit for each member that was counted. ``owner`` has claimed what follows it, until
    ``claimed_until``; None where nobody has, or it was sent. ``told_until`` is until when the queue stands, unless
    somebody deletes it, from which Go's workers count; 0.0: it was not made by us."""

    meta: GroupMeta
    counted: int = 0
    owner: str | None = None
    claimed_until: float = 0.0
    told_until: float = 0.0
    until: float = 0.0

    @classmethod
    def read(cls, letter: Letter) -> GroupRecord:
        """The group in what ``body`` and ``headers`` wrote."""
        headers = letter.headers
        return cls(
            decode_group(letter.body),
            int(headers.get(COUNTED, "0"), 16),
            headers.get(OWNER),
            number(headers.get(CLAIMED_UNTIL, "")),
            number(headers.get(TOLD_UNTIL, "")),
            letter.until,
        )

    @property
    def body(self) -> bytes:
        """Machinery's entry."""
        return encode_group(self.meta)

    @property
    def headers(self) -> Mapping[str, str]:
        """All that is not in the body, but for the end of its time."""
        claim = {} if self.owner is None else {OWNER: self.owner, CLAIMED_UNTIL: repr(self.claimed_until)}
        return {COUNTED: f"{self.counted:x}", TOLD_UNTIL: repr(self.told_until), **claim}

    @property
    def members(self) -> Sequence[str]:
        """UUIDs of its members, in order."""
        return self.meta.task_uuids or ()

    @property
    def is_sent(self) -> bool:
        """Whether what follows is on its way, or is never to be."""
        return self.meta.chord_triggered and self.owner is None

    @property
    def is_complete(self) -> bool:
        """Whether every member was counted."""
        return self.counted == (1 << len(self.members)) - 1

    def has_counted(self, task_id: str) -> bool:
        """Whether that one is a member and was counted."""
        return task_id in self.members and bool(self.counted >> self.members.index(task_id) & 1)

    def count(self, task_ids: Iterable[str]) -> GroupRecord:
        """The group with these counted, as far as they are members."""
        wanted, counted = set(task_ids), self.counted
        for place, member in enumerate(self.members):
            if member in wanted:
                counted |= 1 << place
        return replace(self, counted=counted)

    def tell(self, until: float) -> GroupRecord:
        """The group with the queue for Go's workers standing until then."""
        return replace(self, told_until=max(self.told_until, until))

    def draw(self, most: int) -> Sequence[str]:
        """Some members that were not counted."""
        left = [member for place, member in enumerate(self.members) if not self.counted >> place & 1]
        return random.sample(left, min(most, len(left)))

    def add(self, task_ids: Iterable[str]) -> GroupRecord:
        """The group with these appended, but for those that are members."""
        members = tuple(dict.fromkeys((*self.members, *task_ids)))
        return replace(self, meta=self.meta.model_copy(update={"task_uuids": members}))

    def end(self) -> GroupRecord:
        """The group with what follows on its way."""
        return replace(self, meta=self.meta.model_copy(update={"chord_triggered": True}), owner=None)

    def claim(self, owner: str, ttl: float, now: float) -> tuple[GroupClaim, GroupRecord]:
        """What becomes of a claim, and the group after it."""
        if self.is_sent:
            return GroupClaim.SENT, self
        if self.owner not in (None, owner) and self.claimed_until > now:
            return GroupClaim.TAKEN, self
        meta = self.meta.model_copy(update={"chord_triggered": True})
        return GroupClaim.MINE, replace(self, meta=meta, owner=owner, claimed_until=now + ttl)
