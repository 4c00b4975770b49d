"""Locks on Redis: a server, a master that sentinels watch, or a cluster."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Unpack

from asyncqueue.clock import NANOSECONDS
from asyncqueue.connections.redis import Options, companion_prefix, read_scripts
from asyncqueue.connections.redis_link import OnRedis
from asyncqueue.locks.base import OWED_FOR, Claim, LastTurn, Turn

_SCRIPTS = read_scripts("locks/redis.lua")


class RedisLock(OnRedis):
    """Named leases as keys of the same names; the server's clock ends them. ``url`` and
    ``options`` as for the broker.

    Where the reply to ``acquire`` is lost the lock may be held by a token that nobody knows, until its time is over.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        super().__init__(url, options, max_connections=2)

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def acquire(self, key: str, ttl: float) -> str | None:
        token = secrets.token_hex(16)
        taken = await self._link.call("SET", key, token, "NX", "PX", _milliseconds(ttl))
        return token if taken else None

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        return bool(await self._link.run(_SCRIPTS["renew"], (key,), (token, _milliseconds(ttl))))

    async def release(self, key: str, token: str) -> bool:
        return bool(await self._link.run(_SCRIPTS["release"], (key,), (token,)))

    async def claim(self, turn: Turn, owner: str, now_ns: int, ttl: float) -> Claim:
        until = now_ns // _MILLISECOND + _milliseconds(ttl)
        is_over = turn.next_at is not None and turn.next_at * NANOSECONDS <= now_ns
        # one without a successor is locked for as long as it is owed
        value = turn.next_at * NANOSECONDS - 1 if turn.next_at is not None else now_ns + _OWED * _MILLISECOND
        lasts = max(1, (value + 1 - now_ns) // _MILLISECOND)
        reply = await self._link.run(
            _SCRIPTS["claim"],
            (turn.key, *_companions(turn.key)),
            (turn.due_at, owner, now_ns, until, _OWED, "" if is_over else value, lasts),
        )
        return Claim(reply.decode())

    async def finish(self, turn: Turn, *, sent: bool) -> None:
        await self._link.run(_SCRIPTS["finish"], _companions(turn.key), (turn.due_at, int(sent)))

    async def owed(self, key: str) -> Sequence[int]:
        fields = await self._link.call("HKEYS", _companions(key)[0])
        return sorted(int(field) for field in fields if field != b"lock")

    async def last_turn(self, key: str) -> LastTurn | None:
        found = await self._link.call("GET", _companions(key)[1])
        if found is None:
            return None
        due_at, _, sent_at = found.partition(b" ")
        return LastTurn(int(due_at), int(sent_at) if sent_at else None)


def _companions(key: str) -> tuple[str, str]:
    """Who owes which turns, and how far the schedule has come."""
    prefix = companion_prefix(key)
    return f"{prefix}owner", f"{prefix}sent"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


_MILLISECOND = 1_000_000
_OWED = _milliseconds(OWED_FOR)
