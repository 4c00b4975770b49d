"""`asyncqueue result`: what became of a task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from asyncqueue import rfc3339
from asyncqueue.cli.output import compact, json_option, one_line, print_json
from asyncqueue.cli.target import Address, addressed, split
from asyncqueue.server import Server
from asyncqueue.state import TaskState


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODULE:SERVER] UUID")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long for the result.")
@json_option
@addressed
def result(words: Sequence[str], wait: float | None, as_json: bool, address: Address) -> None:
    """Show the state of the task UUID, and its result.

    \b
      asyncqueue result app:server task_6f0c… --wait 10

    The exit code is 1 if the task failed, if nothing is known of it, or if it did not end within --wait.

    --json: {task_id, name, state, results: [{type, value}], value, error, created_at, attempt}; `value` is the one
    result, a list of several, or null.
    """
    target, (task_id,) = split(words, "UUID")
    state = asyncio.run(_ask(address.server(target), task_id, wait))
    if as_json:
        print_json(described(state))
    else:
        click.echo(shown(state))
    ends_well(state)


async def _ask(server: Server, task_id: str, wait: float | None) -> TaskState:
    async with server:
        handle = server.result(task_id)
        return await (handle.state() if wait is None else handle.wait(wait))


def described(state: TaskState) -> dict[str, object]:
    """A state as plain data, with the keys that are documented."""
    return {
        "task_id": state.task_uuid,
        "name": state.task_name,
        "state": state.state.value,
        "results": [{"type": each.type, "value": each.value} for each in state.results or ()],
        "value": _value(state),
        "error": state.error,
        "created_at": None if state.created_at == rfc3339.ZERO else rfc3339.render(state.created_at),
        "attempt": state.attempt,
    }


def shown(state: TaskState) -> str:
    """A state as one line: its name, then the result as JSON or the error."""
    if state.is_failure:
        return f"{state.state.value} {one_line(state.error, 4_000)}"
    return f"{state.state.value} {compact(_value(state))}" if state.is_success else state.state.value


def ends_well(state: TaskState) -> None:
    """Leave with exit code 1 if the task failed."""
    if state.is_failure:
        raise SystemExit(1)


def _value(state: TaskState) -> Any:
    values = [each.value for each in state.results or ()]
    return values[0] if len(values) == 1 else values or None
