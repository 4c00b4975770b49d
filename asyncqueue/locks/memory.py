"""The lock that lives in this process."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex

from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.memory import Locked, MemoryStore, Turns
from asyncqueue.errors import Unavailable
from asyncqueue.locks.base import OWED_FOR, Claim, LastTurn, Turn


class MemoryLock:
    """Locks on a ``MemoryStore``: they exclude each other in all threads and loops of this process."""

    def __init__(self, store: MemoryStore | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store if store is not None else MemoryStore()
        self._clock = clock
        self._is_open = False

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False

    async def acquire(self, key: str, ttl: float) -> str | None:
        now = self._now()
        with self._store.mutex:
            if self._holder(key, now):
                return None
            token = token_hex(16)
            self._store.locks[key] = Locked(token, now + ttl)
            return token

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        now = self._now()
        with self._store.mutex:
            if self._holder(key, now) != token:
                return False
            self._store.locks[key] = Locked(token, now + ttl)
            return True

    async def release(self, key: str, token: str) -> bool:
        now = self._now()
        with self._store.mutex:
            if self._holder(key, now) != token:
                return False
            del self._store.locks[key]
            return True

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        self._now()
        now = now_ns / NANOSECONDS
        with self._store.mutex:
            turns = self._store.turns.setdefault(turn.key, Turns())
            claimed = turns.claims.get(turn.due_at)
            if claimed is None and turns.last is not None and turn.due_at <= turns.last.due_at:
                return Claim.OVER
            if claimed is not None and claimed.token != owner and claimed.until > now:
                return Claim.TAKEN
            turns.claims = {due: each for due, each in turns.claims.items() if each.until + OWED_FOR > now}
            turns.claims[turn.due_at] = Locked(owner, now + ttl)
            return Claim.MINE

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        self._now()
        with self._store.mutex:
            turns = self._store.turns.setdefault(turn.key, Turns())
            turns.claims.pop(turn.due_at, None)
            turns.last = LastTurn.after(turns.last, turn, sent=sent)

    async def owed(self, key: str) -> Sequence[int]:
        self._now()
        with self._store.mutex:
            return sorted(self._store.turns.get(key, Turns()).claims)

    async def last_turn(self, key: str) -> LastTurn | None:
        self._now()
        with self._store.mutex:
            return self._store.turns.get(key, Turns()).last

    def _holder(self, key: str, now: float) -> str | None:
        locked = self._store.locks.get(key)
        return locked.token if locked and locked.until > now else None

    def _now(self) -> float:
        if not self._is_open:
            raise Unavailable(f"memory://{self._store.name} is not open")
        return self._clock.now_ns() / NANOSECONDS
