"""`asyncqueue queues` and `asyncqueue purge`: what waits, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from asyncqueue.brokers.base import QueueDepth
from asyncqueue.cli.output import json_option, one_line, print_json, print_table
from asyncqueue.cli.target import Address, addressed, split
from asyncqueue.errors import Refused
from asyncqueue.server import Server


@click.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@json_option
@addressed
def queues(words: Sequence[str], as_json: bool, address: Address) -> None:
    """List the queues: how many messages are ready, held by workers, delayed, dead.

    A ? is what the broker does not tell.

    --json: a list of {queue, ready, held, delayed, dead}; null is what the broker does not tell.
    """
    target, _ = split(words)
    found, why_these = asyncio.run(_queues(address.server(target)))
    rows = [(each.queue, each.ready, each.held, each.delayed, each.dead) for each in found]
    columns = ("queue", "ready", "held", "delayed", "dead")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        shown = [["?" if count is None else count for count in row] for row in rows]
        print_table(columns, shown, "There is no queue.")
        if why_these:
            click.echo(f"These are the queues that the server knows by itself: {one_line(why_these, 1_000)}", err=True)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODULE:SERVER] QUEUE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@addressed
def purge(words: Sequence[str], yes: bool, as_json: bool, address: Address) -> None:
    """Drop what waits in QUEUE, for good.

    What workers hold, what is delayed and what is in the dead letter stays.

    --json: {queue, purged}.
    """
    target, (queue,) = split(words, "QUEUE")
    server = address.server(target)
    if not yes:
        click.confirm(f"Drop all that waits in queue {one_line(queue)!r}, for good?", abort=True, err=True)
    purged = asyncio.run(_purge(server, queue))
    if as_json:
        print_json({"queue": queue, "purged": purged})
    else:
        click.echo(f"{purged} dropped")


async def _queues(server: Server) -> tuple[list[QueueDepth], str]:
    """The queues, and why they may not be all there are; empty where they are."""
    async with server:
        found = await server.queues()
        try:
            await (await server.inspector()).queues()
        except Refused as exc:
            return found, str(exc)
        return found, ""


async def _purge(server: Server, queue: str) -> int:
    async with server:
        return await server.purge(queue)
