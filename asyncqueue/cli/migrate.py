"""`asyncqueue migrate`: make in the stores what a server needs there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from asyncqueue.cli.output import json_option, one_line, print_json
from asyncqueue.cli.target import Address, addressed, split


@click.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be made.")
@json_option
@addressed
def migrate(words: Sequence[str], dry_run: bool, as_json: bool, address: Address) -> None:
    """Make what the stores of a server lack: tables, indexes, a newer schema.

    One line for each thing. What is there, and what is stored, stays; twice is no harm. A store that needs nothing,
    such as Redis, is not asked.

    --json: a list of {part, address, change}; part is broker, result backend or lock.
    """
    target, _ = split(words)
    migrations = asyncio.run(address.server(target).migrate(dry_run=dry_run))
    if as_json:
        print_json([{"part": each.part, "address": each.address, "change": each.change} for each in migrations])
        return
    for each in migrations:
        verb = "missing" if dry_run else "made"
        click.echo(f"{verb}  {each.part} {one_line(each.address)}: {one_line(each.change)}")
    if not migrations:
        click.echo("Nothing is missing.", err=True)
