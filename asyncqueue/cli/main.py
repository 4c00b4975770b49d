"""The command `asyncqueue`: its verbs, and how its errors are shown."""

from __future__ import annotations

import importlib
from typing import Any

import click

from asyncqueue import __version__
from asyncqueue.engine.events import printable
from asyncqueue.errors import AsyncQueueError

_VERBS = {
    "worker": "asyncqueue.cli.worker:worker",
    "send": "asyncqueue.cli.send:send",
    "result": "asyncqueue.cli.result:result",
    "queues": "asyncqueue.cli.queues:queues",
    "purge": "asyncqueue.cli.queues:purge",
    "tasks": "asyncqueue.cli.tasks:tasks",
    "schedules": "asyncqueue.cli.schedules:schedules",
    "dead": "asyncqueue.cli.dead:dead",
    "config": "asyncqueue.cli.config:config",
    "migrate": "asyncqueue.cli.migrate:migrate",
    "doctor": "asyncqueue.cli.doctor:doctor",
}


class _Failed(click.ClickException):
    """An error of ours as one line on stderr; exit code 1."""

    def format_message(self) -> str:
        return " ".join(printable(line.strip()) for line in self.message.splitlines() if line.strip())


class _Main(click.Group):
    """Imports a verb when it is asked for; shows our errors as one line unless ``--debug``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _VERBS.get(cmd_name)
        if home is None:
            return None
        module, _, name = home.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AsyncQueueError as exc:
            if ctx.params["debug"]:
                raise
            raise _Failed(str(exc)) from exc


@click.group(
    cls=_Main,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="asyncqueue VERB --help explains a verb. Exit code: 0 it worked, 1 it did not, 2 it was misused.",
)
@click.version_option(__version__, message="asyncqueue %(version)s")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def main(debug: bool) -> None:
    """Run workers, send tasks, look into queues.

    \b
      asyncqueue worker app:server                       run the tasks of `server` in app.py
      asyncqueue send app:server add --args '[2, 3]'     send one, and print its id
      asyncqueue queues --broker redis://localhost:6379  what waits where
      asyncqueue doctor app:server                       does everything answer?

    MODULE:SERVER is a module, looked for in the current directory first, and the Server in it, or a function
    that makes one. Where there is only one Server in it, the module's name is enough.
    """
