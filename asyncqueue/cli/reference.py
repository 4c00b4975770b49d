"""Every verb and its help as Markdown, for the documentation: ``python -m asyncqueue.cli.reference``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from asyncqueue.cli.main import main

_WIDTH = 100


def markdown() -> str:
    """One section per verb: its own help, word for word."""
    return "\n\n".join(_section(context) for context in _contexts(main, None, "asyncqueue")) + "\n"


def _contexts(command: click.Command, parent: click.Context | None, name: str) -> Iterator[click.Context]:
    context = click.Context(
        command,
        parent,
        info_name=name,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            assert inner is not None
            yield from _contexts(inner, context, each)


def _section(context: click.Context) -> str:
    return f"### `{context.command_path}`\n\n```text\n{context.get_help()}\n```"


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
