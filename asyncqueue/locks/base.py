"""The contract of a lock: one holder at a time, for a while; and whose turn it is to send what is due.

Every sentence of these docstrings has a test in ``asyncqueue.testing.lock_contract`` or ``turn_contract``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

OWED_FOR = 3600.0
"""How long (seconds) after its claim a turn is owed. What is taken over later than that would surprise."""


class Lock(Protocol):
    """Named leases. A token proves who holds one; it is never given out twice.

    Every verb raises ``Unavailable`` when the service did not answer and ``Refused`` when it said no.
    """

    async def open(self) -> None:
        """Reach the service. Twice is no harm."""

    async def close(self) -> None:
        """Let go of the service. Locks that are held stay held until their time is over. Twice is no harm."""

    async def acquire(self, key: str, ttl: float) -> str | None:
        """Take ``key`` for ``ttl`` seconds; returns the token, or None while somebody else has it."""

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        """Start the ``ttl`` anew; False, and no change, where the token no longer holds the key."""

    async def release(self, key: str, token: str) -> bool:
        """Let go; False, and no change, where the token no longer holds the key."""


class Claim(Enum):
    """What became of a claim: the turn is the caller's, another owner's for now, or over."""

    MINE = "mine"
    TAKEN = "taken"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Turn:
    """One occurrence of one schedule. ``key`` names the schedule's lock; ``due_at`` and ``next_at`` are the unix
    seconds of this occurrence and of the one after it (None: there is none)."""

    key: str
    due_at: int
    next_at: int | None


@dataclass(frozen=True, slots=True)
class LastTurn:
    """How far a schedule has come: every turn up to ``due_at`` that nobody owes is over; ``sent_at`` is when the last
    one was due that was sent, None where none was."""

    due_at: int
    sent_at: int | None

    @classmethod
    def after(cls, last: LastTurn | None, turn: Turn, *, sent: bool) -> LastTurn:
        """How far it has come when ``turn`` is finished: never back."""
        moments = [each for each in (last.sent_at if last else None, turn.due_at if sent else None) if each is not None]
        return cls(max(turn.due_at, last.due_at if last else turn.due_at), max(moments, default=None))


@runtime_checkable
class TurnLock(Lock, Protocol):
    """A lock that also keeps the turns of schedules: each is one owner's, and one whose owner died is another's.

    An owner claims, sends, finishes. Moments are the caller's own (``now_ns``: unix nanoseconds), as in Machinery.
    """

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        """Take the turn for ``ttl`` seconds; it is owed from then on until it is finished.

        MINE: it was nobody's, or the caller's already, or its owner's time is over. TAKEN: somebody else has time
        left. OVER: it is finished, or was passed over when a later one was finished. ``owner`` has no spaces in it.
        """

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        """The turn is over, whoever had it; ``sent``: its task is on its way. Twice is no harm."""

    async def owed(self, key: str) -> Sequence[int]:
        """When (unix seconds) those turns were due that were claimed and not finished, earliest first. What was
        claimed more than ``OWED_FOR`` seconds ago may be forgotten."""

    async def last_turn(self, key: str) -> LastTurn | None:
        """How far the schedule has come; None where no turn was ever finished."""
