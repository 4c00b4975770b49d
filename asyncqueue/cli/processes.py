"""A parent of worker processes: starts them, replaces those that die, passes signals on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

log = logging.getLogger(__name__)

AT_ONCE = 5.0
"""A process that dies within so many seconds of its start has died at once."""

TRIES = 5
"""After so many deaths at once, one after the other, in one place, the parent gives up."""

FIRST_DELAY = 0.5
"""How long (seconds) after a death the next start waits; twice as long after each death at once."""

_KILL_AFTER = 3.0  # what a second signal leaves to processes whose loop is blocked

Changes = Callable[[], AsyncIterator[Sequence[str]]]


class Supervisor:
    """Keeps ``count`` processes of ``command`` running until a SIGTERM or SIGINT.

    The first signal is passed on to all, and all are waited for; a second one is passed on too, and what still runs
    three seconds later is killed. The processes get the option ``--lifeline FD``: a pipe that ends when this process
    does, however it ends. They are process groups of their own, since a terminal's Ctrl-C would reach them twice.

    With ``may_end``, a process that ends by itself with exit code 0 is not replaced. With ``changes``, all are told to
    stop and are started anew at each change, and one that dies is started again at the next change.
    """

    def __init__(
        self, command: Sequence[str], count: int, *, may_end: bool = False, changes: Changes | None = None
    ) -> None:
        self._command = tuple(command)
        self._count = count
        self._may_end = may_end
        self._changes = changes
        self._children: set[Process] = set()
        self._outdated: set[Process] = set()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._has_failed = False

    async def run(self) -> int:
        """Returns when all processes have ended, with the exit code: 0, or 1 when one ended badly after the signal, or
        when the parent gave up."""
        with self._signals(), _lifeline() as end:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch())
                places = [group.create_task(self._keep(number, end)) for number in range(1, self._count + 1)]
                await asyncio.wait(places)
                watching.cancel()
        return 1 if self._has_failed else 0

    async def _keep(self, number: int, lifeline: int) -> None:
        """Keep one place filled."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._stopping.is_set():
            began = loop.time()
            child, code = await self._live(lifeline)
            if self._stopping.is_set():
                self._has_failed |= code not in (0, -signal.SIGTERM, -signal.SIGINT)
                return
            if self._may_end and code == 0:
                return
            if child in self._outdated:
                self._outdated.discard(child)
                continue
            if self._changes is not None:
                log.error("worker process %d %s; it starts again when a file changes", number, _ended(code))
                await _either(self._changed, self._stopping)
                continue
            deaths = deaths + 1 if loop.time() - began < AT_ONCE else 1
            if deaths == TRIES:
                self._give_up(number, code)
                return
            delay = FIRST_DELAY * 2 ** (deaths - 1)
            log.error("worker process %d %s; another one starts in %g s", number, _ended(code), delay)
            await _either(self._stopping, timeout=delay)

    async def _live(self, lifeline: int) -> tuple[Process, int]:
        """One process from its start to its exit code."""
        self._changed.clear()
        child = await asyncio.create_subprocess_exec(
            *self._command, "--lifeline", str(lifeline), stdin=DEVNULL, pass_fds=(lifeline,), process_group=0
        )
        self._children.add(child)
        if self._stopping.is_set():  # while it was being started
            _send(child, signal.SIGTERM)
        try:
            return child, await child.wait()
        finally:
            self._children.discard(child)

    async def _watch(self) -> None:
        if self._changes is None:
            return
        async for paths in self._changes():
            log.info("changed: %s; the workers start again", ", ".join(map(os.path.relpath, paths)))
            self._changed.set()
            for child in self._children:
                self._outdated.add(child)
                _send(child, signal.SIGTERM)

    def _give_up(self, number: int, code: int) -> None:
        log.critical("worker process %d %s: at once, %d times in a row; giving up", number, _ended(code), TRIES)
        self._has_failed = True
        self._stop(signal.SIGTERM)

    def _stop(self, how: signal.Signals) -> None:
        if self._stopping.is_set():
            asyncio.get_running_loop().call_later(_KILL_AFTER, self._kill)
        self._stopping.set()
        for child in self._children:
            _send(child, how)

    def _kill(self) -> None:
        for child in self._children:
            log.error("worker process with pid %d does not end; it is killed", child.pid)
            _send(child, signal.SIGKILL)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for each in handled:
            loop.add_signal_handler(each, self._stop, each)
        try:
            yield
        finally:
            for each in handled:
                loop.remove_signal_handler(each)


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe for the children to watch; the other end closes with this process."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


async def _either(*events: asyncio.Event, timeout: float | None = None) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _send(child: Process, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended, and is about to be noticed
        child.send_signal(how)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"
