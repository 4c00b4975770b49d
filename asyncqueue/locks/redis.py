"""Locks on one Redis server."""

from __future__ import annotations

import secrets
import ssl
from typing import Any

from asyncqueue.connections.redis import CONNECT_TIMEOUT, REPLY_TIMEOUT, RedisLink, parse_url, read_scripts

_SCRIPTS = read_scripts("locks/redis.lua")


class RedisLock:
    """Named leases as keys of the same names; the server's clock ends them. ``url`` and ``tls`` as for the broker.

    Where the reply to ``acquire`` is lost the lock may be held by a token that nobody knows, until its time is over.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        tls: ssl.SSLContext | None = None,
        client_name: str = "",
    ) -> None:
        self._link = RedisLink(
            parse_url(url, tls),
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            client_name=client_name,
            max_connections=2,
        )

    @property
    def address(self) -> str:
        return str(self._link.address)

    def connect_with(self, url: str, **options: Any) -> None:
        self._link.connect_with(url, **options)

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


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
