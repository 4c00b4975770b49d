"""The master of a name, whichever server that is now: found by asking the sentinels."""

from __future__ import annotations

import asyncio
from collections import Counter

from asyncqueue.connections.redis import MAX_CONNECTIONS, Access, Channel, RedisLink
from asyncqueue.connections.redis_place import Alone, RedisAddress, Watched
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable

PATIENCE = 1.0
"""How long (seconds) a sentinel has for its answer."""

ASK_EVERY = 1.0
"""After how long (seconds) the sentinels are asked again, though the connections work: a server that was the master and
comes back soon takes itself for the master for some seconds, and what is written to it then is lost."""

ASK_AGAIN = 10.0
"""The same where no sentinel answered: what works goes on without them."""


class SentinelLink(RedisLink):
    """Connections to a master that sentinels watch.

    The sentinels are asked before each new connection, and once a second while there is something to do. All are asked
    at once, and the server counts that most of them name, since one that was cut off names the old master. When it is
    another one than before, and when a server says that it is no master any more, all connections are made anew.
    """

    def __init__(self, access: Access, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")) -> None:
        super().__init__(access, max_connections=max_connections, slow=slow)
        self._sentinels: dict[RedisAddress, RedisLink] = {}
        self._ask_at = 0.0

    async def close(self) -> None:
        await super().close()
        while self._sentinels:
            await self._sentinels.popitem()[1].close()

    @property
    def _watched(self) -> Watched:
        place = self.access.place
        assert isinstance(place, Watched)
        return place

    async def _borrow(self) -> Channel:
        loop = asyncio.get_running_loop()
        if self._at is not None and loop.time() >= self._ask_at:
            self._ask_at = loop.time() + ASK_AGAIN
            try:
                if await self._locate() != self._at:
                    self.demoted()
            except AsyncQueueError:
                pass  # the connections that there are tell better whether the master serves
        return await super()._borrow()

    async def _locate(self) -> RedisAddress:
        watched = self._watched
        votes: Counter[RedisAddress] = Counter()
        troubles: list[AsyncQueueError] = []
        asked = [asyncio.create_task(self._ask(each, watched)) for each in watched.sentinels]
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    votes[await answer] += 1
                except AsyncQueueError as exc:
                    troubles.append(exc)
                if votes and max(votes.values()) > len(asked) // 2:
                    break
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if votes:
            self._ask_at = asyncio.get_running_loop().time() + ASK_EVERY
            return votes.most_common(1)[0][0]
        # what was known once may be so again: sentinels are restarted too
        is_refused = any(isinstance(trouble, Refused) for trouble in troubles) and not self._was_let_in
        said = "; ".join(map(str, troubles))
        raise (Refused if is_refused else Unavailable)(
            f"no sentinel told where the master {watched.master_name!r} is: {said}"
        )

    async def _ask(self, sentinel: RedisAddress, watched: Watched) -> RedisAddress:
        """Where this sentinel believes the master to be."""
        link = self._sentinels.get(sentinel)
        if link is None:
            patience = min(PATIENCE, self.access.connect_timeout)
            link = self._sentinels[sentinel] = RedisLink(Access(Alone(sentinel), patience, patience), max_connections=1)
        found = await link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", watched.master_name)
        if found is None:
            raise Refused(f"the sentinel at {sentinel} knows no master of that name")
        return watched.like.at(found[0].decode(), int(found[1]))

    async def _greet(self, channel: Channel) -> None:
        (role, *_) = await channel.call("ROLE")
        if role != b"master":  # one that has just been chosen may not have taken office yet
            raise Unavailable(f"Redis at {self._where} is not the master {self._watched.master_name!r} now")
        await super()._greet(channel)
