"""`asyncqueue tasks`: tasks that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import click

from asyncqueue.brokers.base import Inspector
from asyncqueue.cli.output import compact, json_option, moment, print_json, print_table, queue_option, readable
from asyncqueue.cli.target import Address, addressed, split
from asyncqueue.server import Server
from asyncqueue.signature import Signature

_PAGE = 200


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that waits; ``due_at`` is unix seconds. One without a signature cannot be read."""

    queue: str
    signature: Signature | None
    size: int
    due_at: float | None = None


@click.group()
def tasks() -> None:
    """Look at the tasks that wait."""


@tasks.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@queue_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@json_option
@addressed
def pending(words: Sequence[str], queue: str | None, limit: int, as_json: bool, address: Address) -> None:
    """List the tasks that are ready in a queue, next first.

    --json: a list of {task_id, name, queue, due_at, args: [values], priority, bytes}. A message that is no task has
    null for task_id and name.
    """
    target, _ = split(words)
    _print(asyncio.run(_pending(address.server(target), queue, limit)), as_json=as_json)


@tasks.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@click.option("--queue", "-q", metavar="NAME", help="Only of this queue; of all queues if not given.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@json_option
@addressed
def delayed(words: Sequence[str], queue: str | None, limit: int, as_json: bool, address: Address) -> None:
    """List the tasks that are not due yet, soonest first.

    --json: as for `asyncqueue tasks pending`.
    """
    target, _ = split(words)
    _print(asyncio.run(_delayed(address.server(target), queue, limit)), as_json=as_json)


async def _pending(server: Server, queue: str | None, limit: int) -> list[_Waiting]:
    async with server:
        name = queue or server.settings.default_queue
        bodies = await (await server.inspector()).peek(name, limit)
        return [_Waiting(name, readable(body), len(body)) for body in bodies]


async def _delayed(server: Server, queue: str | None, limit: int) -> list[_Waiting]:
    found: list[_Waiting] = []
    async with server:
        async for each in _all_delayed(await server.inspector(), server.settings.default_queue):
            if queue is None or each.queue == queue:
                found.append(each)
            if len(found) == limit:
                break
    return found


async def _all_delayed(inspector: Inspector, default_queue: str) -> AsyncIterator[_Waiting]:
    offset = 0
    while page := await inspector.delayed(_PAGE, offset):
        offset += len(page)
        for due_at, body in page:
            signature = readable(body)
            name = (signature.routing_key if signature is not None else "") or default_queue
            yield _Waiting(name, signature, len(body), due_at)


def _print(waiting: Sequence[_Waiting], *, as_json: bool) -> None:
    if as_json:
        print_json([_described(each) for each in waiting])
        return
    columns = ("task_id", "name", "queue", "due_at", "args")
    print_table(columns, [_row(each) for each in waiting], "No task waits.")


def _described(waiting: _Waiting) -> dict[str, object]:
    signature = waiting.signature
    return {
        "task_id": None if signature is None else signature.uuid,
        "name": None if signature is None else signature.name,
        "queue": waiting.queue,
        "due_at": moment(waiting.due_at),
        "args": [] if signature is None else [arg.value for arg in signature.args or ()],
        "priority": 0 if signature is None else signature.priority,
        "bytes": waiting.size,
    }


def _row(waiting: _Waiting) -> tuple[object, ...]:
    signature = waiting.signature
    if signature is None:
        return None, f"(no task: {waiting.size} bytes)", waiting.queue, moment(waiting.due_at), None
    args = ", ".join(compact(arg.value) for arg in signature.args or ())
    return signature.uuid, signature.name, waiting.queue, moment(waiting.due_at), args
