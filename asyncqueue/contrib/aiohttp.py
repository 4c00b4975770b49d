"""aiohttp: a server, and perhaps a worker, that start and stop with the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from asyncqueue.contrib.lifetime import WorkerOrFactory, lifetime
from asyncqueue.server import Server

if TYPE_CHECKING:
    from aiohttp import web


def attach(app: web.Application, server: Server, worker: WorkerOrFactory | None = None) -> None:
    """Open the server, and start the worker, when the app starts; stop and close them when it is cleaned up.

    Raises, at the app's start, as ``asyncqueue.contrib.lifetime.lifetime`` does.
    """

    async def while_app_runs(app: web.Application) -> AsyncIterator[None]:
        async with lifetime(server, worker):
            yield

    app.cleanup_ctx.append(while_app_runs)
