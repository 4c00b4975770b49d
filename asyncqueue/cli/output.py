"""What verbs print: columns for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from asyncqueue import rfc3339, wire
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.events import printable
from asyncqueue.errors import BadMessage
from asyncqueue.signature import Signature

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """The option ``--json``, as an argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def queue_option(command: F) -> F:
    """The option ``--queue``; None is the server's default queue."""
    return click.option("--queue", "-q", metavar="NAME", help="The queue; the default queue if not given.")(command)


def print_json(value: object) -> None:
    """One JSON value. What is not ASCII is escaped, so that nothing in it can move a terminal's cursor."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> None:
    """Aligned columns, numbers to the right; ``nothing`` is said, on stderr, in place of an empty table."""
    if not rows:
        click.echo(nothing, err=True)
        return
    cells = [[*columns], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    right = [all(isinstance(row[index], int) for row in rows) for index in range(len(columns))]
    for row in cells:
        padded = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def one_line(text: str, limit: int = 200) -> str:
    """Text that stays on its line and cannot move a terminal's cursor."""
    return printable(text, limit).replace("\n ", "\\n")


def moment(seconds: float | None) -> str | None:
    """Unix seconds as RFC 3339 text (UTC), to the millisecond."""
    return None if seconds is None else rfc3339.render(round(seconds * 1_000) * (NANOSECONDS // 1_000))


def compact(value: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(value)


def readable(body: bytes) -> Signature | None:
    """The signature in a message, None where there is none."""
    try:
        return wire.decode_signature(body)
    except BadMessage:
        return None


def _cell(value: object) -> str:
    return "-" if value is None else one_line(str(value), 60)
