"""`asyncqueue worker`: runs the tasks of a server, in this process or in several."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn

import click

from asyncqueue import urls
from asyncqueue.cli import logs
from asyncqueue.cli.processes import Supervisor
from asyncqueue.cli.target import load_server
from asyncqueue.cli.watch import changes
from asyncqueue.errors import AsyncQueueError
from asyncqueue.server import Server
from asyncqueue.worker import Worker

log = logging.getLogger(__name__)

_CLOSE_WITHIN = 0.5  # seconds, when a thread is stuck and the process leaves by force
_THREADS_MAY_TAKE = 5.0  # seconds, after a stop that went well


@dataclass(frozen=True, slots=True)
class _Options:
    """What a worker process is told."""

    target: str
    queues: tuple[str, ...]
    config: str | None
    concurrency: int | None
    burst: bool
    log_level: str
    log_format: Literal["text", "json"]
    debug: bool

    def command(self) -> Sequence[str]:
        """The command line that says the same to another process."""
        return (
            sys.executable,
            "-m",
            "asyncqueue",
            *(("--debug",) if self.debug else ()),
            "worker",
            self.target,
            *(word for queue in self.queues for word in ("--queue", queue)),
            *(("--config", self.config) if self.config is not None else ()),
            *(("--concurrency", str(self.concurrency)) if self.concurrency is not None else ()),
            *(("--burst",) if self.burst else ()),
            *("--log-level", self.log_level, "--log-format", self.log_format),
        )


@click.command()
@click.argument("target", metavar="MODULE:SERVER")
@click.option("--queue", "-q", "queues", multiple=True, metavar="NAME", help="A queue to consume; may be repeated.")
@click.option("--config", metavar="FILE", help="YAML settings that win over the code's; reloaded when they change.")
@click.option("--concurrency", "-c", type=click.IntRange(min=0), metavar="N", help="Tasks at once; 0: no limit.")
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="So many processes, replaced when they die.")
@click.option("--reload", is_flag=True, help="Start again when a .py file here changes; for development.")
@click.option("--burst", is_flag=True, help="End when the queues are empty and nothing runs.")
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="The least that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object per line.",
)
@click.option("--lifeline", type=int, hidden=True)
@click.pass_context
def worker(
    context: click.Context,
    target: str,
    queues: tuple[str, ...],
    config: str | None,
    concurrency: int | None,
    processes: int | None,
    reload: bool,
    burst: bool,
    log_level: str,
    log_format: Literal["text", "json"],
    lifeline: int | None,
) -> None:
    """Run the tasks of a server until SIGTERM or SIGINT.

    \b
      asyncqueue worker app:server
      asyncqueue worker app:server -q mails -q reports --concurrency 100
      asyncqueue worker app:server --processes 4 --log-format json
      asyncqueue worker app:server --reload --log-level debug

    The first signal stops gracefully: nothing more is fetched, what runs may go on for the grace time
    (`worker.grace`, 25 s), then it is cancelled and given back. A second signal ends the grace time at once.

    With --config, keys of the file win over the code, and the environment wins over the file.

    --log-format json: {time, level, logger, message, process}, and for events {event} and its facts, such as
    {task_id, task_name, queue, error}. The log goes to stderr.

    Exit code: 0 after a stop that went well, 1 if a task could not be ended or worker processes died again and again.
    """
    if reload and burst:
        raise click.UsageError("--reload and --burst do not go together.")
    debug = context.find_root().params["debug"]
    options = _Options(target, queues, config, concurrency, burst, log_level, log_format, debug)
    logs.set_up(log_level, log_format)
    if processes is not None or reload:
        supervisor = _supervisor(options, processes or 1, reload=reload)
        sys.exit(asyncio.run(supervisor.run()))
    try:
        _work(options, lifeline)
    except Exception as exc:
        if log_format != "json":
            raise
        # who reads JSON objects can read nothing else
        log.critical("%s", exc, exc_info=exc if debug or not isinstance(exc, AsyncQueueError) else None)
        sys.exit(1)


def _supervisor(options: _Options, processes: int, *, reload: bool) -> Supervisor:
    watched = partial(changes, Path.cwd()) if reload else None
    return Supervisor(options.command(), processes, may_end=options.burst, changes=watched)


def _work(options: _Options, lifeline: int | None) -> None:
    server = load_server(options.target)
    if options.config is not None:
        server.override(options.config)
    _warn_of_idleness(server)
    worker = Worker(server, queues=options.queues or None, concurrency=options.concurrency)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(worker, burst=options.burst, lifeline=lifeline))
        _leave_within(_THREADS_MAY_TAKE)


def _warn_of_idleness(server: Server) -> None:
    """Two ways to wait for ever for what is sent."""
    if not server.registered_task_names():
        log.warning("no task is registered on this server: the module that it is in has to import those with tasks")
    if urls.is_of_one_process(server.broker_address):
        log.warning("%s: what other processes send does not come here, but stays in theirs", server.broker_address)


async def _serve(worker: Worker, *, burst: bool, lifeline: int | None) -> None:
    if lifeline is not None:
        loop = asyncio.get_running_loop()
        loop.add_reader(lifeline, _orphaned, loop, lifeline)
    code = 0
    try:
        code = await worker.run(burst=burst)
    finally:
        try:
            async with asyncio.timeout(_CLOSE_WITHIN if code else None):
                await worker.server.close()
        except (AsyncQueueError, TimeoutError) as exc:
            log.warning("the stores could not be closed in order: %s", exc)
    if code:
        _leave(code)  # from here: what comes after would wait for the thread that is stuck


def _orphaned(loop: asyncio.AbstractEventLoop, lifeline: int) -> None:
    """The parent is gone, and whoever stops it would not reach us."""
    loop.remove_reader(lifeline)
    log.warning("the parent process is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_within(seconds: float) -> None:
    """Threads that a task started by itself, and that never end, do not keep the process for longer than this."""

    def leave() -> None:
        names = ", ".join(each.name for each in threading.enumerate() if not each.daemon)
        log.error("threads do not end, leaving without them: %s", names)
        _leave(1)

    watchdog = threading.Timer(seconds, leave)
    watchdog.daemon = True
    watchdog.start()


def _leave(code: int) -> NoReturn:
    """End the process without waiting for anybody."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    if find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
