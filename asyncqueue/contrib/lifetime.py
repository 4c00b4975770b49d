"""A server, and perhaps a worker, for as long as an application runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from asyncqueue.server import Server
from asyncqueue.worker import Worker

WorkerOrFactory = Worker | Callable[[], Worker]
"""A worker; or what makes one, for an application that may be started again: a worker runs once."""


@asynccontextmanager
async def lifetime(server: Server, worker: WorkerOrFactory | None = None) -> AsyncIterator[None]:
    """Open the server and start the worker; at the end, stop the worker within its grace time and close the server.

    Signals stay the application's. Raises ``Unavailable``, ``Refused`` or ``ConfigError``, so that an application whose
    queue cannot be reached does not start.
    """
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        if worker is not None:
            await stack.enter_async_context(worker if isinstance(worker, Worker) else worker())
        yield
