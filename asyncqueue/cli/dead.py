"""`asyncqueue dead`: the dead letter of a queue."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import click

from asyncqueue.brokers.base import Dead
from asyncqueue.cli.output import json_option, moment, one_line, print_json, print_table, queue_option, readable
from asyncqueue.cli.target import Address, addressed, split, split_ids
from asyncqueue.server import Server

_PAGE = 500

_Change = Callable[[Server, Sequence[str] | None, str | None], Awaitable[int]]


@click.group()
def dead() -> None:
    """Look into the dead letter of a queue; put back or drop what is in it."""


@dead.command("list")
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@queue_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@json_option
@addressed
def list_(words: Sequence[str], queue: str | None, limit: int, as_json: bool, address: Address) -> None:
    """List the dead messages of a queue, oldest first.

    --json: a list of {id, queue, task_id, name, reason, error, attempt, buried_at}. A message that is no task has null
    for task_id and name.
    """
    target, _ = split(words)
    entries = asyncio.run(_list(address.server(target), queue, limit))
    if as_json:
        print_json([_described(each) for each in entries])
        return
    keys = ("id", "buried_at", "name", "reason", "error")
    rows = [[described[key] for key in keys] for described in map(_described, entries)]
    print_table(keys, rows, "The dead letter is empty.")


@dead.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODULE:SERVER] ID")
@queue_option
@json_option
@addressed
def show(words: Sequence[str], queue: str | None, as_json: bool, address: Address) -> None:
    """Show one dead message, with its body.

    --json: what `asyncqueue dead list` has, and {body, body_base64}; `body` is null where the bytes are no UTF-8.
    """
    target, (wanted,) = split(words, "ID")
    entry = asyncio.run(_find(address.server(target), queue, wanted))
    described = _described(entry) | {"body": _text(entry.body), "body_base64": b64encode(entry.body).decode()}
    if as_json:
        print_json(described)
        return
    for key in ("id", "queue", "task_id", "name", "reason", "error", "attempt", "buried_at"):
        click.echo(f"{key:<10} {'-' if described[key] is None else one_line(str(described[key]), 4_000)}")
    click.echo(f"{'body':<10} {one_line(_text(entry.body) or repr(entry.body), 100_000)}")


@dead.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER] ID...")
@click.option("--all", "everything", is_flag=True, help="All of the queue.")
@queue_option
@json_option
@addressed
def requeue(words: Sequence[str], everything: bool, queue: str | None, as_json: bool, address: Address) -> None:
    """Put dead messages back into their queue; they run again, as new ones.

    --json: {queue, requeued}.
    """
    target, ids = _chosen(words, address, everything=everything)
    _move(address.server(target), Server.requeue_dead, "requeued", ids, queue, as_json=as_json)


@dead.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER] ID...")
@click.option("--all", "everything", is_flag=True, help="All of the queue.")
@queue_option
@json_option
@addressed
def drop(words: Sequence[str], everything: bool, queue: str | None, as_json: bool, address: Address) -> None:
    """Drop dead messages for good.

    --json: {queue, dropped}.
    """
    target, ids = _chosen(words, address, everything=everything)
    _move(address.server(target), Server.drop_dead, "dropped", ids, queue, as_json=as_json)


def _chosen(words: Sequence[str], address: Address, *, everything: bool) -> tuple[str | None, Sequence[str] | None]:
    """MODULE:SERVER where it was given, and the ids; None: all of them."""
    target, ids = split_ids(words, address)
    if everything and ids:
        raise click.UsageError("Give ids or --all, not both.")
    if not everything and not ids:
        raise click.UsageError("Which ones? Give ids (`asyncqueue dead list` shows them) or --all.")
    return target, None if everything else tuple(dict.fromkeys(ids))


def _move(
    server: Server, change: _Change, verb: str, ids: Sequence[str] | None, queue: str | None, *, as_json: bool
) -> None:
    """Do it to these entries, or to all of them, and say how many there were."""
    count = asyncio.run(_change(server, change, ids, queue))
    _say(server, queue, verb, count, ids, as_json=as_json)


def _say(server: Server, queue: str | None, verb: str, count: int, ids: Sequence[str] | None, *, as_json: bool) -> None:
    name = queue or server.settings.default_queue
    if as_json:
        print_json({"queue": name, verb: count})
    else:
        click.echo(f"{count} {verb}")
    if ids is not None and count < len(ids):
        raise click.ClickException(
            f"{len(ids) - count} of the {len(ids)} ids are not in the dead letter of queue {name!r}"
        )


async def _list(server: Server, queue: str | None, limit: int) -> Sequence[Dead]:
    async with server:
        return await server.dead(queue, limit)


async def _find(server: Server, queue: str | None, wanted: str) -> Dead:
    async with server:
        async for entry in _all(server, queue):
            if entry.id == wanted:
                return entry
    raise click.ClickException(
        f"there is no {wanted!r} in the dead letter of queue {queue or server.settings.default_queue!r}"
    )


async def _all(server: Server, queue: str | None) -> AsyncIterator[Dead]:
    offset = 0
    while page := await server.dead(queue, _PAGE, offset):
        offset += len(page)
        for entry in page:
            yield entry


async def _change(server: Server, change: _Change, ids: Sequence[str] | None, queue: str | None) -> int:
    async with server:
        return await change(server, ids, queue or server.settings.default_queue)


def _described(entry: Dead) -> dict[str, object]:
    signature = readable(entry.body)
    return {
        "id": entry.id,
        "queue": entry.queue,
        "task_id": None if signature is None else signature.uuid,
        "name": None if signature is None else signature.name,
        "reason": entry.reason,
        "error": entry.error,
        "attempt": entry.attempt,
        "buried_at": moment(entry.buried_at),
    }


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
