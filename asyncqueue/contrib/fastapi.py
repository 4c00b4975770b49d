"""FastAPI, and everything made of Starlette: a server, and perhaps a worker, that live as long as the app."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from asyncqueue.contrib.lifetime import WorkerOrFactory, lifetime
from asyncqueue.server import Server


def lifespan(
    server: Server, worker: WorkerOrFactory | None = None
) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """The lifespan of an app: ``FastAPI(lifespan=lifespan(server))``.

    The app starts when the server is connected, and with ``worker``, when that fetches. An app with a lifespan of its
    own enters this one in it: ``async with lifespan(server)(app): ...``. Raises, at the app's start, as
    ``asyncqueue.contrib.lifetime.lifetime`` does.
    """

    def of_app(app: object) -> AbstractAsyncContextManager[None]:
        return lifetime(server, worker)

    return of_app
