"""The lock that lives in this process."""

from __future__ import annotations

from secrets import token_hex

from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.memory import Locked, MemoryStore
from asyncqueue.errors import Unavailable


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

    def _holder(self, key: str, now: float) -> str | None:
        locked = self._store.locks.get(key)
        return locked.token if locked and locked.until > now else None

    def _now(self) -> float:
        if not self._is_open:
            raise Unavailable(f"memory://{self._store.name} is not open")
        return self._clock.now_ns() / NANOSECONDS
