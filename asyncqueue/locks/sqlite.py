"""Locks in a SQLite file: one holder among all processes of a machine."""

from __future__ import annotations

import os
from secrets import token_hex

from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.sqlite import BUSY_TIMEOUT, Connection, Database

_ACQUIRE = """
    INSERT INTO lock (name, token, ends_at) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET token = excluded.token, ends_at = excluded.ends_at WHERE lock.ends_at <= ?
"""
_RENEW = "UPDATE lock SET ends_at = ? WHERE name = ? AND token = ? AND ends_at > ?"
_RELEASE = "DELETE FROM lock WHERE name = ? AND token = ? AND ends_at > ?"
_SWEEP = "DELETE FROM lock WHERE ends_at <= ?"


class SqliteLock:
    """Locks in one file; see ``Lock``.

    ``path`` may be a ``sqlite:///`` URL. ``busy_timeout`` is how long (seconds) a call waits for other writers before
    it raises ``Unavailable``.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock = SYSTEM_CLOCK, busy_timeout: float = BUSY_TIMEOUT
    ) -> None:
        self._database = Database(path, busy_timeout=busy_timeout)
        self._clock = clock

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def acquire(self, key: str, ttl: float) -> str | None:
        token, now = token_hex(16), self._now()

        def acquire(connection: Connection) -> bool:
            connection.execute(_SWEEP, (now,))
            return connection.execute(_ACQUIRE, (key, token, now + ttl, now)).rowcount == 1

        return token if await self._database.write(acquire) else None

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        now = self._now()
        return await self._database.write(
            lambda connection: connection.execute(_RENEW, (now + ttl, key, token, now)).rowcount == 1
        )

    async def release(self, key: str, token: str) -> bool:
        now = self._now()
        return await self._database.write(
            lambda connection: connection.execute(_RELEASE, (key, token, now)).rowcount == 1
        )

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS
