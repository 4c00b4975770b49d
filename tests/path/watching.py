"""What tests of killed workers send, and how they wait for what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from asyncqueue import Server
from asyncqueue.result import AsyncResult
from asyncqueue.signature import Signature, new_task_id
from tests.path.bench import eventually
from tests.path.ledger import Ledger

PATIENCE = 120.0


def task(server: Server, name: str, *args: Any, **options: Any) -> Signature:
    """A signature of one of the workers' tasks."""
    found = server.registry.get(name)
    wire_args, _ = found.arguments(args, {})
    stays = found.options.stop_task_deletion_on_error
    return Signature(
        uuid=new_task_id(), name=name, args=wire_args, headers={}, stop_task_deletion_on_error=stays, **options
    )


async def all_succeed(results: Iterable[AsyncResult[Any]]) -> None:
    async with asyncio.timeout(PATIENCE):
        for each in results:
            await each.get()


async def until(look: Callable[[], object]) -> None:
    """Wait until ``look`` returns something true. It may block: it runs in a thread."""

    async def ask() -> object:
        return await asyncio.to_thread(look)

    await eventually(ask, patience=PATIENCE)


def more_have_ended(ledger: Ledger, tasks: int) -> bool:
    return len(ledger.counts("E")) > tasks


def has_written_more(ledger: Ledger, pid: int, lines: int) -> bool:
    return sum(line.pid == pid for line in ledger.lines()) > lines
