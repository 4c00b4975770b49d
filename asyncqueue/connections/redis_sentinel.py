"""The master of a name, whichever server that is now: found by asking sentinels before each new connection."""

from __future__ import annotations

from asyncqueue.connections.redis import MAX_CONNECTIONS, Access, Channel, RedisLink
from asyncqueue.connections.redis_place import Alone, RedisAddress, Watched
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable

PATIENCE = 1.0
"""How long (seconds) one sentinel has for its answer before the next one is asked."""


class SentinelLink(RedisLink):
    """Connections to a master that sentinels watch.

    A connection that breaks, and one whose server says that it is no master any more, are followed by new ones, to
    whatever server the sentinels name then. They are asked one after the other, the one that answered last time first.
    """

    def __init__(self, access: Access, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")) -> None:
        super().__init__(access, max_connections=max_connections, slow=slow)
        self._first = 0

    @property
    def _watched(self) -> Watched:
        place = self.access.place
        assert isinstance(place, Watched)
        return place

    async def _locate(self) -> RedisAddress:
        watched = self._watched
        count = len(watched.sentinels)
        troubles: list[str] = []
        is_refused = False
        for turn in range(count):
            number = (self._first + turn) % count
            sentinel = watched.sentinels[number]
            try:
                found = await self._ask(sentinel, watched.master_name)
            except AsyncQueueError as exc:
                troubles.append(str(exc))
                is_refused |= isinstance(exc, Refused)
                continue
            if found is not None:
                self._first = number
                return found
            is_refused = True
            troubles.append(f"{sentinel} knows no such master")
        # what was known once may be so again: sentinels are restarted too
        kind = Refused if is_refused and not self._was_let_in else Unavailable
        raise kind(f"no sentinel told where the master {watched.master_name!r} is: {'; '.join(troubles)}")

    async def _ask(self, sentinel: RedisAddress, master_name: str) -> RedisAddress | None:
        """Where this sentinel believes the master to be; None where it knows none of that name."""
        patience = min(PATIENCE, self.access.connect_timeout)
        link = RedisLink(Access(Alone(sentinel), patience, patience), max_connections=1)
        try:
            found = await link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master_name)
        finally:
            await link.close()
        return None if found is None else self._watched.like.at(found[0].decode(), int(found[1]))

    async def _greet(self, channel: Channel) -> None:
        # a sentinel that was cut off still names the old master, and a new one may not have taken office yet
        (role, *_) = await channel.call("ROLE")
        if role != b"master":
            self._first += 1
            raise Unavailable(f"Redis at {self._where} is not the master {self._watched.master_name!r} now")
