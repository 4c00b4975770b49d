"""A worker of ours with the tasks of the peers, for ``tests.path.nursery``: it starts in a moment, and is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from asyncqueue import Server, Worker
from asyncqueue.config import Settings
from tests.interop.tasks import server_with_tasks
from tests.path.ledger import Ledger


def run(asked: dict[str, Any]) -> int:
    """Be the worker process that was asked for."""
    server = Server(broker=asked["broker"], backend=asked["backend"], settings=Settings.parse(asked["settings"]))
    server_with_tasks(server, Ledger(Path(asked["ledger"])))

    async def work() -> int:
        async with server:
            return await Worker(server).run()

    return asyncio.run(work())
