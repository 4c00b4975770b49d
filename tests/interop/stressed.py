"""A worker of ours with the tasks of the peers, as a process that is killed."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from asyncqueue import Server, Unavailable, Worker
from asyncqueue.config import Settings
from tests.interop.tasks import server_with_tasks
from tests.path.bench import eventually
from tests.path.ledger import Ledger
from tests.path.workers import CRASHED, crash_before_write


def run(asked: dict[str, Any]) -> int:
    """Be the worker process that was asked for."""
    server = Server(broker=asked["broker"], backend=asked["backend"], settings=Settings.parse(asked["settings"]))
    ledger = Ledger(Path(asked["ledger"]))
    server_with_tasks(server, ledger)
    if asked.get("crash_before_write"):
        crash_before_write(server, asked["crash_before_write"], ledger)
    if asked.get("crash_after_claim"):
        _crash_after_claim(server)

    async def connected() -> bool:
        with suppress(Unavailable):  # whoever supervises a worker would start it again
            await server.connected()
            return True
        return False

    async def work() -> int:
        await eventually(connected)
        async with server:
            return await Worker(server).run()

    return asyncio.run(work())


def _crash_after_claim(server: Server) -> None:
    """The process dies as soon as it has claimed a group."""
    make = server._stores.make

    def stores() -> Any:
        broker, backend = make()
        assert backend is not None
        claim = backend.claim_group

        async def claim_group(*args: Any) -> Any:
            await claim(*args)
            os._exit(CRASHED)

        backend.claim_group = claim_group  # type: ignore[method-assign, assignment]  # as any other call of it
        return broker, backend

    server._stores.make = stores  # type: ignore[method-assign]  # the one seam through which both come
