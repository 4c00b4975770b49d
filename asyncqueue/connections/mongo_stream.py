"""Hearing of tasks that end, by whomever: one change stream for all who wait, while somebody does.

Where a server has no change streams, whoever waits has to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from asyncqueue.backends.waiting import Waiters
from asyncqueue.connections.mongo import FAREWELL, MongoLink, NotTold
from asyncqueue.connections.mongo_documents import FINAL
from asyncqueue.errors import AsyncQueueError
from asyncqueue.state import TaskState

POLLED = 0.01, 0.25
"""First and longest pause (seconds) between looks while nobody tells us of changes."""

TOLD = 1.0, 10.0
"""The same while the server tells us: for entries that expire, and a stream that died without a word."""

PATIENCE = 1.0
"""How long (seconds) one request waits for a change. So much later the stream ends when nobody waits any more."""

RECONNECT = 0.1, 5.0
"""First and longest pause (seconds) before the server is asked again to tell us."""

_CANCELLATIONS = 2
"""The library, when it is cancelled, says goodbye to the server, and waits for ever for one that does not answer; a
second cancellation ends that. What lives on then, as Motor's threads do, ends with the client."""

_ENDINGS: Sequence[dict[str, Any]] = (
    {
        "$match": {
            "$or": [
                {"operationType": "delete"},
                {"fullDocument.state": {"$in": FINAL}},
                {"updateDescription.updatedFields.state": {"$in": FINAL}},
            ]
        }
    },
    {"$project": {"documentKey": 1}},
)


class Stream:
    """Tells waiters which tasks ended, as far as the server tells us."""

    def __init__(self, link: MongoLink, collection: str, waiters: Waiters) -> None:
        self._link = link
        self._collection = collection
        self._waiters = waiters
        self._waiting = 0
        self._is_told = True  # until the server says that it does not
        self._pause = RECONNECT[0]
        self._task: asyncio.Task[None] | None = None

    async def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        """``Backend.watch``."""
        self._waiting += 1
        if self._task is None and self._is_told:
            self._task = asyncio.get_running_loop().create_task(self._listen_while_somebody_waits())
        try:
            async with aclosing(self._waiters.watch(task_ids)) as endings:
                async for ending in endings:
                    yield ending
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Hear of nothing any more."""
        self._is_told = False
        task = self._task
        for _ in range(_CANCELLATIONS):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=FAREWELL)

    async def _listen_while_somebody_waits(self) -> None:
        try:
            while self._waiting and self._is_told:
                try:
                    await self._listen()
                except NotTold:
                    self._is_told = False
                except AsyncQueueError:
                    await asyncio.sleep(self._pause)
                    self._pause = min(2 * self._pause, RECONNECT[1])
        finally:
            self._task = None

    async def _listen(self) -> None:
        try:
            async with aclosing(self._link.changes(self._collection, _ENDINGS, PATIENCE)) as changes:
                await anext(changes)
                self._pause = RECONNECT[0]
                # what was written before is looked at now, what comes after is told: no wake-up is lost between
                self._waiters.pace(*TOLD)
                while self._waiting:
                    change = await anext(changes)
                    if change is not None:
                        self._waiters.changed([change["documentKey"]["_id"]])
        finally:
            self._waiters.pace(*POLLED)
