"""`asyncqueue schedules`: which periodic tasks a server has, and when they are due."""

from __future__ import annotations

import click

from asyncqueue.cli.output import json_option, moment, print_json, print_table
from asyncqueue.cli.target import load_server
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.periodic import PeriodicTask


@click.command()
@click.argument("target", metavar="MODULE:SERVER")
@click.option("--count", type=click.IntRange(1, 1000), default=3, show_default=True, help="So many times of each.")
@json_option
def schedules(target: str, count: int, as_json: bool) -> None:
    """List the schedules of a server, and when (UTC) each is due next.

    Schedules live in code: nothing is connected, and this says nothing of what other programs registered.

    --json: a list of {name, spec, task, missed, overlap, next: [times]}; a workflow is named by its shape.
    """
    server = load_server(target)
    now = server.clock.now_ns() / NANOSECONDS
    found = [(task, [moment(at) for at in task.next_times(now, count)]) for task in server.schedules()]
    if as_json:
        print_json([_described(task, times) for task, times in found])
        return
    columns = ("name", "spec", "task", "next")
    rows = [row for task, times in found for row in _rows(task, times)]
    print_table(columns, rows, "There is no schedule.")


def _described(task: PeriodicTask, times: list[str | None]) -> dict[str, object]:
    return {
        "name": task.name,
        "spec": task.spec,
        "task": task.title,
        "missed": task.missed,
        "overlap": task.overlap,
        "next": times,
    }


def _rows(task: PeriodicTask, times: list[str | None]) -> list[tuple[object, ...]]:
    """A line per time; what is the same is said once."""
    first, *later = times or [None]
    return [(task.name, task.spec, task.title, first), *(("", "", "", time) for time in later)]
