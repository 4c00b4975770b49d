"""A Redis cluster: which node has which slot, learned from the nodes themselves, and a link to each of them.

Whoever asks a node for a slot that is not its own is told where it is now, and goes there: the node has done nothing.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import ClassVar, TypeAlias

from asyncqueue.connections.redis import (
    MAX_CONNECTIONS,
    Access,
    Channel,
    Elsewhere,
    Link,
    RedisLink,
    Reply,
    Request,
    ServerFacts,
    Word,
    packed,
)
from asyncqueue.connections.redis_place import Clustered, RedisAddress
from asyncqueue.errors import AsyncQueueError, Refused, Unavailable

SLOTS = 16_384
MOST_HOPS = 5
"""How often one request is sent on before that is an error: slots move, but not that fast."""

_Node: TypeAlias = tuple[str, int]
_Way: TypeAlias = tuple[_Node, bool]
"""To which node, and whether it is told before each request that it was ASKed for."""

_ASKING = packed(("ASKING",))


def slot_of(key: Word) -> int:
    """The slot of a key: that of what stands in its first braces, if anything does."""
    name = key if isinstance(key, bytes) else str(key).encode()
    opening = name.find(b"{")
    if opening >= 0:
        closing = name.find(b"}", opening + 1)
        if closing > opening + 1:
            name = name[opening + 1 : closing]
    return crc_hqx(name, 0) % SLOTS


class ClusterLink(Link):
    """Connections to the masters of a cluster, at most ``max_connections`` in use at a time to each of them."""

    is_spread: ClassVar[bool] = True

    def __init__(self, access: Access, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")) -> None:
        super().__init__(access)
        self._max_connections = max_connections
        self._slow = slow
        self._links: dict[_Node, NodeLink] = {}
        self._masters: dict[_Node, str] = {}
        self._owners: list[_Node | None] = [None] * SLOTS
        self._is_outdated = True
        self._learning = asyncio.Lock()

    async def open(self) -> ServerFacts:
        self._is_closed = False
        if self.facts is None:
            self.facts = await self.look()
            for link in self._links.values():
                link.facts = self.facts
        return self.facts

    async def close(self) -> None:
        self._is_closed = True
        self.facts = None
        self._is_outdated = True
        links, self._links = self._links, {}
        for link in links.values():
            await link.close()

    async def look(self) -> ServerFacts:
        """Of all masters the oldest version, and an eviction policy that drops keys if one has it."""
        self._is_outdated = True
        await self._learn()
        looks = [await self._link(master).look() for master in self._masters]
        for facts, master in zip(looks, self._masters, strict=True):
            if unfit := self._link(master).unfit(facts):
                raise Refused(f"Redis at {master[0]}:{master[1]} {unfit}")
        policies = [facts.eviction_policy for facts in looks if facts.eviction_policy != "noeviction"]
        return replace(
            looks[0],
            version=min(facts.version for facts in looks),
            run_id=min(self._masters.values()),
            uptime=min(facts.uptime for facts in looks),
            eviction_policy=policies[0] if policies else "noeviction",
        )

    async def identity(self, part: str) -> Hashable:
        # what lies in several slots cannot be changed in one step
        return ("redis cluster", (await self.look()).run_id, part)

    async def channel(self, key: Word) -> Channel:
        return await (await self.node_of(key)).channel()

    def contact(self, key: Word) -> float:
        owner = self._owners[slot_of(key)]
        return 0.0 if owner is None or owner not in self._links else self._links[owner].contact()

    def incarnation(self, key: Word) -> Hashable:
        owner = self._owners[slot_of(key)]
        return owner, self._links[owner].incarnation() if owner in self._links else None

    def parts(self, keys: Sequence[Word]) -> Sequence[Sequence[int]]:
        slots: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            slots.setdefault(slot_of(key), []).append(position)
        return list(slots.values())

    async def homes(self, keys: Sequence[Word]) -> Sequence[tuple[RedisLink, Sequence[int]]]:
        await self._learn()
        homes: dict[RedisLink, list[int]] = {}
        for position, key in enumerate(keys):
            homes.setdefault(self._link(self._owner(slot_of(key))), []).append(position)
        return list(homes.items())

    async def node_of(self, key: Word) -> NodeLink:
        """The link to the master that has a key, as far as is known. Raises ``Unavailable`` where none has."""
        await self._learn()
        return self._link(self._owner(slot_of(key)))

    def outdated(self) -> None:
        """Something is not as it was: the nodes are asked before the next use."""
        self._is_outdated = True

    async def _exchange(self, requests: Sequence[Request], *, to_last: bool) -> list[Reply]:
        if self._is_closed:
            raise Unavailable(f"the connection to the Redis cluster at {self.address} is closed")
        await self._learn()
        replies: list[Reply] = [None] * len(requests)
        ways: dict[_Way, list[int]] = {}
        for position, (key, _) in enumerate(requests):
            ways.setdefault((self._owner(slot_of(key)), False), []).append(position)
        for _ in range(MOST_HOPS):
            sendings = [self._send(way, positions, requests, replies, to_last) for way, positions in ways.items()]
            if len(sendings) == 1:
                await sendings[0]
            else:
                async with asyncio.TaskGroup() as group:
                    for sending in sendings:
                        group.create_task(sending)
            ways = self._ways_on(replies, [position for positions in ways.values() for position in positions])
            if not ways:
                return replies
        for position in (position for positions in ways.values() for position in positions):
            replies[position] = Unavailable(f"the nodes of the Redis cluster at {self.address} do not agree on slots")
        return replies

    async def _send(
        self, way: _Way, positions: Sequence[int], requests: Sequence[Request], replies: list[Reply], to_last: bool
    ) -> None:
        """Send some requests to one node, and put its replies, or its trouble, into their places."""
        node, is_asked = way
        commands = [requests[position][1] for position in positions]
        if is_asked:
            commands = [command for each in commands for command in (_ASKING, each)]
        try:
            answers = await self._link(node).exchange(commands, to_last=to_last)
        except AsyncQueueError as exc:
            answers = [exc] * len(commands)
        for position, answer in zip(positions, answers[1::2] if is_asked else answers, strict=True):
            replies[position] = answer

    def _ways_on(self, replies: Sequence[Reply], positions: Sequence[int]) -> dict[_Way, list[int]]:
        """Where those requests go that were sent to the wrong node."""
        ways: dict[_Way, list[int]] = {}
        for position in sorted(positions):
            reply = replies[position]
            if isinstance(reply, Elsewhere):
                node = (reply.host, reply.port)
                ways.setdefault((node, reply.is_once), []).append(position)
                if not reply.is_once:
                    self._owners[reply.slot] = node
                    self._is_outdated = True
        return ways

    def _owner(self, slot: int) -> _Node:
        owner = self._owners[slot]
        if owner is None:
            self._is_outdated = True
            raise Unavailable(f"no node of the Redis cluster at {self.address} serves slot {slot}")
        return owner

    def _link(self, node: _Node) -> NodeLink:
        link = self._links.get(node)
        if link is None:
            link = NodeLink(self, node, max_connections=self._max_connections, slow=self._slow)
            link.facts = self.facts
            self._links[node] = link
        return link

    def _is_known(self) -> bool:
        return not self._is_outdated

    async def _learn(self) -> None:
        """Learn which node has which slot, from the first one that tells."""
        if self._is_known():
            return
        async with self._learning:
            if self._is_known():  # somebody else has learned it meanwhile
                return
            trouble: AsyncQueueError | None = None
            for node in self._candidates():
                try:
                    self._take_in(node, await self._link(node).call("CLUSTER", "SLOTS"))
                except AsyncQueueError as exc:
                    trouble = _not_clustered(exc, node) or trouble or exc
                    continue
                await self._forget_others()
                return
            assert trouble is not None
            raise trouble

    async def _forget_others(self) -> None:
        for node in [node for node in self._links if node not in self._masters]:
            await self._links.pop(node).close()

    def _candidates(self) -> list[_Node]:
        """Whom to ask: nodes that were heard last first."""
        place = self.access.place
        assert isinstance(place, Clustered)
        known = sorted(self._masters, key=lambda node: node not in self._links or not self._links[node].contact())
        return list(dict.fromkeys([*known, *((seed.host, seed.port) for seed in place.seeds)]))

    def _take_in(self, asked: _Node, ranges: Reply) -> None:
        owners: list[_Node | None] = [None] * SLOTS
        masters: dict[_Node, str] = {}
        for first, last, (host, port, name, *_), *_ in ranges:
            # a node that does not know its own name is where we found it
            node = (host.decode() if host else asked[0], int(port))
            masters[node] = name.decode()
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners, self._masters = owners, masters
        self._is_outdated = not masters
        if not masters:
            raise Unavailable(f"the Redis cluster at {self.address} serves no slots yet")


class NodeLink(RedisLink):
    """Connections to one node of a cluster."""

    def __init__(self, cluster: ClusterLink, node: _Node, *, max_connections: int, slow: float) -> None:
        super().__init__(cluster.access, max_connections=max_connections, slow=slow)
        self._cluster = cluster
        self._node = node

    def lost_contact(self) -> None:
        super().lost_contact()
        self._cluster.outdated()

    def unfit(self, facts: ServerFacts) -> str:
        """Why this node will not do, if so."""
        return self._unfit(replace(facts, mode=""))

    def parts(self, keys: Sequence[Word]) -> Sequence[Sequence[int]]:
        return self._cluster.parts(keys)

    async def _locate(self) -> RedisAddress:
        self.access = self._cluster.access
        return self.access.place.like.at(*self._node)


def _not_clustered(exc: AsyncQueueError, node: _Node) -> AsyncQueueError | None:
    if isinstance(exc, Refused) and "cluster support disabled" in str(exc):
        return Refused(
            f"Redis at {node[0]}:{node[1]} is no node of a cluster;"
            " several addresses, or redis.cluster_mode, ask for one"
        )
    return None
