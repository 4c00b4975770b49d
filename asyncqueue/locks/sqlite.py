"""Locks in a SQLite file: one holder among all processes of a machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from secrets import token_hex

from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.sqlite import BUSY_TIMEOUT, Connection, OnFile
from asyncqueue.locks.base import OWED_FOR, Claim, LastTurn, Turn

_ACQUIRE = """
    INSERT INTO lock (name, token, ends_at) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET token = excluded.token, ends_at = excluded.ends_at WHERE lock.ends_at <= ?
"""
_RENEW = "UPDATE lock SET ends_at = ? WHERE name = ? AND token = ? AND ends_at > ?"
_RELEASE = "DELETE FROM lock WHERE name = ? AND token = ? AND ends_at > ?"
_TAKE = "INSERT OR REPLACE INTO lock (name, token, ends_at) VALUES (?, ?, ?)"
_DROP = "DELETE FROM lock WHERE name = ?"
_LOOK = "SELECT token, ends_at FROM lock WHERE name = ?"
_OWED = "SELECT name FROM lock WHERE name >= ? AND name < ?"
_SWEEP = "DELETE FROM lock WHERE ends_at <= ?"

_FOR_EVER = 1e11
"""Unix seconds at which what is never swept would end."""


class SqliteLock(OnFile):
    """Locks in one file; see ``Lock``.

    ``path`` may be a ``sqlite:///`` URL. ``busy_timeout`` is how long (seconds) a call waits for other writers before
    it raises ``Unavailable``.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock = SYSTEM_CLOCK, busy_timeout: float = BUSY_TIMEOUT
    ) -> None:
        super().__init__(path, busy_timeout=busy_timeout)
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

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        now = now_ns / NANOSECONDS

        def claim(connection: Connection) -> Claim:
            connection.execute(_SWEEP, (now,))
            claimed = connection.execute(_LOOK, (_owner_name(turn),)).fetchone()
            last = _last_turn(connection, turn.key)
            if claimed is None and last is not None and turn.due_at <= last.due_at:
                return Claim.OVER
            # the row outlives the owner's time: that is how the turn is owed
            if claimed is not None and claimed[0] != owner and claimed[1] - OWED_FOR > now:
                return Claim.TAKEN
            connection.execute(_TAKE, (_owner_name(turn), owner, now + ttl + OWED_FOR))
            return Claim.MINE

        return await self._database.write(claim)

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        def finish(connection: Connection) -> None:
            connection.execute(_DROP, (_owner_name(turn),))
            last = LastTurn.after(_last_turn(connection, turn.key), turn, sent=sent)
            said = f"{last.due_at} {'' if last.sent_at is None else last.sent_at}"
            connection.execute(_TAKE, (_sent_name(turn.key), said, _FOR_EVER))

        await self._database.write(finish)

    async def owed(self, key: str) -> Sequence[int]:
        start = f"{key}:aq:owner:"

        def owed(connection: Connection) -> list[int]:
            found = connection.execute(_OWED, (start, f"{start[:-1]};")).fetchall()
            return sorted(int(name.removeprefix(start)) for (name,) in found)

        return await self._database.read(owed)

    async def last_turn(self, key: str) -> LastTurn | None:
        return await self._database.read(lambda connection: _last_turn(connection, key))

    def _now(self) -> float:
        return self._clock.now_ns() / NANOSECONDS


def _owner_name(turn: Turn) -> str:
    return f"{turn.key}:aq:owner:{turn.due_at}"


def _sent_name(key: str) -> str:
    return f"{key}:aq:sent"


def _last_turn(connection: Connection, key: str) -> LastTurn | None:
    found = connection.execute(_LOOK, (_sent_name(key),)).fetchone()
    if found is None:
        return None
    due_at, _, sent_at = found[0].partition(" ")
    return LastTurn(int(due_at), int(sent_at) if sent_at else None)
