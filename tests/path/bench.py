"""Servers and workers on one pair of stores, and ways to wait for what they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from asyncqueue import Server, Worker
from asyncqueue.config import Settings
from asyncqueue.state import State

T = TypeVar("T")
PATIENCE = 60.0

UNHURRIED = 60.0
"""A lease (seconds) that does not end on a busy machine either: for tasks that are to run once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one store is, and the name of its service."""

    kind: str
    url: str


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a broker and a backend are."""

    kind: str
    broker: str
    backend: str

    @property
    def is_eager(self) -> bool:
        return self.kind == "eager"

    @property
    def is_atomic(self) -> bool:
        return self.broker == self.backend and self.kind not in ("cluster", "rabbit")

    @property
    def lease(self) -> float:
        """A short lease (seconds) that the broker can have."""
        return {"sqs": 5.0, "pubsub": 3.0}.get(self.kind.partition("+")[0], 2.0)


class Bench:
    """Makes servers on one pair of stores; each stands for a process of its own."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self._servers: list[Server] = []

    def server(self, *, lease: float | None = None, **sections: Any) -> Server:
        """One more server. ``sections`` are settings; ``worker`` holds those of the worker."""
        worker = {"lease": lease or self.stores.lease, **sections.pop("worker", {})}
        redis = {"delayed_tasks_poll_period": 50, **sections.pop("redis", {})}
        settings = Settings.parse({"worker": worker, "redis": redis, **sections})
        server = Server(broker=self.stores.broker, backend=self.stores.backend, settings=settings)
        self._servers.append(server)
        return server

    @asynccontextmanager
    async def working(self, server: Server, **options: Any) -> AsyncIterator[Worker | None]:
        """A worker runs meanwhile; none where tasks run as they are sent."""
        if self.stores.is_eager:
            yield None
            return
        async with Worker(server, **{"grace": 5.0, **options}) as worker:
            yield worker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for server in self._servers:
            await server.close()


async def eventually(look: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """What ``look`` returns, as soon as that is true."""
    deadline = asyncio.get_running_loop().time() + patience
    while not (found := await look()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {patience} s: {found!r}"
        await asyncio.sleep(0.02)
    return found


async def in_time(awaited: Awaitable[T], *, patience: float = PATIENCE) -> T:
    """What must come within the patience of these tests."""
    async with asyncio.timeout(patience):
        return await awaited


async def reaches(server: Server, task_id: str, state: State) -> None:
    """Wait until the backend says so."""

    async def look() -> bool:
        backend = (await server.connected()).backend
        assert backend is not None
        (found,) = await backend.get([task_id])
        return found is not None and found.state is state

    await eventually(look)


async def nothing_is_queued(server: Server, *, but_in: Container[str] = ()) -> None:
    """Wait until no message is ready, held, delayed or dead in any queue of the server's broker, but in these."""

    async def look() -> bool:
        # one after the other is looked at, and a message may go from one that was not to one that was
        looks = [await queued(server, but_in=but_in) for _ in range(3)]
        return not any(looks)

    await eventually(look)


async def queued(server: Server, *, but_in: Container[str] = ()) -> int:
    """How many messages there are, due or not, but in these queues."""
    inspector = await server.inspector()
    depths = [await inspector.depth(queue) for queue in await inspector.queues() if queue not in but_in]
    return sum(depth.pending + (depth.dead or 0) for depth in depths)
