"""`asyncqueue send`: one task, by its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import click

from asyncqueue import urls
from asyncqueue.cli.output import json_option, moment, print_json
from asyncqueue.cli.result import described, ends_well, shown
from asyncqueue.cli.target import Address, addressed, split
from asyncqueue.clock import NANOSECONDS
from asyncqueue.options import SendOptions, check_send_options, eta_of
from asyncqueue.server import Server
from asyncqueue.signature import Signature


def _json(kind: type, name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Reads the JSON of an option, which must be of one type."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError as exc:
            raise click.BadParameter(f"this is no JSON: {exc}") from exc
        if not isinstance(value, kind):
            raise click.BadParameter(f"expected a JSON {name}, such as {kind()}")
        return value

    return read


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[MODULE:SERVER] NAME")
@click.option("--args", callback=_json(list, "list"), metavar="LIST", help="Arguments, as a JSON list.")
@click.option("--kwargs", callback=_json(dict, "object"), metavar="OBJECT", help="Keyword arguments, as a JSON object.")
@click.option("--queue", "-q", metavar="NAME", help="The queue; the task's own, or the default queue, if not given.")
@click.option("--countdown", type=click.FloatRange(min=0), metavar="SECONDS", help="Not before so many seconds.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long for the result.")
@json_option
@addressed
def send(
    words: Sequence[str],
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    queue: str | None,
    countdown: float | None,
    wait: float | None,
    as_json: bool,
    address: Address,
) -> None:
    """Send the task NAME, and print its id.

    \b
      asyncqueue send app:server add --args '[2, 3]' --wait 10
      asyncqueue send --broker redis://localhost:6379 mail --kwargs '{"to": "me@example.org"}'

    With MODULE:SERVER, the arguments are checked against the task's parameters. Without, their types follow from
    their values. With --wait, the state and the result follow on a second line, and the exit code is 1 if the task
    failed or did not end in time.

    --json: {task_id, name, queue, due_at}; with --wait also {state, results, value, error, created_at, attempt} as in
    `asyncqueue result`.
    """
    target, (name,) = split(words, "NAME")
    server = address.server(target)
    _warn_of_unknown(server, name)
    if urls.scheme_of(server.broker_address) == "memory":
        click.echo("Note: what is in memory is seen by this process alone, and goes when it ends.", err=True)
    signature = server.signature(name, *(args or ()), **(kwargs or {}))
    changes: dict[str, object] = {}
    if queue is not None:
        changes["routing_key"] = queue
    if countdown is not None:
        options = SendOptions(countdown=countdown)
        check_send_options(name, options)
        changes["eta"] = eta_of(name, options, server.clock)
    asyncio.run(_send(server, signature.with_changes(**changes), wait, as_json=as_json))


async def _send(server: Server, signature: Signature, wait: float | None, *, as_json: bool) -> None:
    async with server:
        sent = await server.send_task(signature)
        what = sent.signature or signature
        facts: dict[str, object] = {
            "task_id": sent.task_id,
            "name": what.name,
            "queue": what.routing_key,
            "due_at": None if what.eta is None else moment(what.eta / NANOSECONDS),
        }
        if not as_json:
            click.echo(sent.task_id)  # before the wait: who gives up waiting wants to ask again
        if wait is None:
            if as_json:
                print_json(facts)
            return
        state = await sent.wait(wait)
    if as_json:
        print_json(described(state) | facts)
    else:
        click.echo(shown(state))
    ends_well(state)


def _warn_of_unknown(server: Server, name: str) -> None:
    known = server.registered_task_names()
    if not known or name in known:
        return
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    click.echo(f"Note: no task {name!r} is registered on this server{hint} It is sent all the same.", err=True)
