"""Hearing of writes, by whomever: a server remembers which keys we have read, and tells when they are written.

For each server that is read from there are two connections. What was read through the one (``CLIENT TRACKING``), the
server reports to the other when it is written. Where a server does not do that, whoever waits has to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asyncqueue.backends.waiting import Waiters
from asyncqueue.connections.redis import Channel, Link, RedisLink, Reply, packed
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable

POLLED = 0.01, 0.25
"""First and longest pause (seconds) between looks while nobody tells us of writes."""

TOLD = 2.0, 10.0
"""The same while the server tells us: for the connection that died without a word."""

RECONNECT = 0.1, 5.0
"""First and longest pause (seconds) before the server is asked again to tell us."""

_CHANNEL = "__redis__:invalidate"


class Tracking:
    """Reads keys for those who wait, and tells them of writes to what was read, as far as the servers tell us."""

    def __init__(self, link: Link, waiters: Waiters) -> None:
        self._link = link
        self._waiters = waiters
        self._ears: dict[RedisLink, _Ear] = {}

    async def close(self) -> None:
        """Hear of nothing any more."""
        ears, self._ears = self._ears, {}
        for ear in ears.values():
            await ear.close()

    async def read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """What is at the keys, in their order; None where that is to be read in another way. Called by one task at a
        time."""
        for home in [each for each in self._ears if each.is_closed]:
            await self._ears.pop(home).close()
        found: list[bytes | None] = [None] * len(keys)
        is_told = True
        for home, positions in await self._link.homes(keys):
            data = await self._ear(home).read([keys[at] for at in positions])
            if data is None:
                is_told = False
                continue
            for at, value in zip(positions, data, strict=True):
                found[at] = value
        return found if is_told else None

    def _ear(self, home: RedisLink) -> _Ear:
        ear = self._ears.get(home)
        if ear is None:
            ear = self._ears[home] = _Ear(home, self._waiters, self)
        return ear

    def turned(self) -> None:
        """An ear began or ceased to hear: everything is looked at again, through it where it hears."""
        is_told = all(each.hears for each in self._ears.values())
        self._waiters.pace(*(TOLD if is_told else POLLED))


class _Ear:
    """The two connections to one server: a reader, and a listener of protocol 2 that does nothing else. Both end
    together."""

    def __init__(self, home: RedisLink, waiters: Waiters, tracking: Tracking) -> None:
        self.home = home
        self._waiters = waiters
        self._tracking = tracking
        self._listener: Channel | None = None
        self._reader: Channel | None = None
        self._task = asyncio.get_running_loop().create_task(self._listen_for_ever())

    @property
    def hears(self) -> bool:
        """Whether what is read now is told of later."""
        return self._reader is not None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        """What is at the keys; None where nobody listens."""
        reader = self._reader
        if reader is None:
            return None
        parts = self.home.parts(keys)
        payload = b"".join(packed(("MGET", *(keys[at] for at in part))) for part in parts)
        try:
            replies = await reader.exchange(payload, len(parts))
        except Unavailable:
            self._reader = None
            if self._listener is not None:
                await self._listener.close(nowait=True)  # may be as dead, and would not notice: it only listens
            return None
        if any(isinstance(reply, AsyncQueueError) for reply in replies):
            return None  # whoever reads in another way finds out what that means
        found: list[bytes | None] = [None] * len(keys)
        for part, reply in zip(parts, replies, strict=True):
            for at, value in zip(part, reply, strict=True):
                found[at] = value
        return found

    async def _listen_for_ever(self) -> None:
        pause, longest = RECONNECT
        while not self.home.is_closed:
            try:
                await self._listen()
            except Refused:
                break  # this server does not tell: the waiters poll
            except AsyncQueueError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
        self._tracking.turned()

    async def _listen(self) -> None:
        listener = self._listener = await self.home.channel()
        try:
            number = await listener.call("CLIENT", "ID")
            await listener.call("SUBSCRIBE", _CHANNEL)
            reader = await self.home.channel()
            try:
                if reader.address != listener.address:
                    raise Unavailable("the master has changed meanwhile")
                await reader.call("CLIENT", "TRACKING", "ON", "REDIRECT", number)
                self._reader = reader
                self._tracking.turned()
                while True:
                    self._heard(await listener.receive())
            finally:
                self._reader = None
                self._tracking.turned()
                await reader.close(nowait=True)
        finally:
            await listener.close(nowait=True)

    def _heard(self, message: Reply) -> None:
        match message:
            case [b"message", _, [*keys]]:
                self._waiters.changed([key.decode(errors="replace") for key in keys])
            case _:
                self._waiters.changed()  # the whole db was emptied
