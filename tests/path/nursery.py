"""Processes that start in a moment: forked from one that has loaded the package already, and these modules.

    python -m tests.path.nursery [module …]

reads lines of JSON: ``{"key": …, "module": …, "asked": {…}}`` forks a process that calls ``run(asked)`` of that module,
``{"kill": pid}`` ends one with ``kill -9``. It writes ``{"key": …, "pid": …}`` for each that began, and
``{"pid": …, "code": …}`` for each that ended. At the end of its input it kills what is left.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import select
import signal
import sys
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PRELOADED = (
    "tests.path.workers",
    "tests.path.senders",
    "asyncqueue.brokers.redis",
    "asyncqueue.brokers.sqlite",
    "asyncqueue.backends.redis",
    "asyncqueue.backends.sqlite",
    "asyncqueue.locks.redis",
    "asyncqueue.locks.sqlite",
)
_CHUNK = 65_536


class Child:
    """A process of a nursery."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._nursery = nursery

    @property
    def is_running(self) -> bool:
        return not self.code.done()

    async def ended(self) -> int:
        """Its exit code, waited for: minus the signal that ended it."""
        return await asyncio.shield(self.code)

    async def kill(self) -> None:
        """``kill -9``, and wait for it."""
        await self._nursery.ask(kill=self.pid)
        await self.ended()


class Nursery:
    """Starts processes; none is left at the end of the test."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._starting: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, Child] = {}
        self._count = 0

    async def start(self, module: str, **asked: Any) -> Child:
        """A process that calls ``run(asked)`` of a module, and ends with what that returns."""
        self._count += 1
        begun: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._starting[self._count] = begun
        await self.ask(key=self._count, module=module, asked=asked)
        return await begun

    async def ask(self, **words: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        await self._process.stdin.drain()

    async def listen(self) -> None:
        """Hear of those that begin and end, for ever."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match json.loads(line):
                case {"key": key, "pid": pid}:
                    child = self._children[pid] = Child(self, pid)
                    begun = self._starting.pop(key)
                    if not begun.cancelled():
                        begun.set_result(child)
                case {"pid": pid, "code": code}:
                    self._children.pop(pid).code.set_result(code)


@asynccontextmanager
async def opened_nursery(*modules: str) -> AsyncIterator[Nursery]:
    """A nursery for as long as a test needs it. Those of its processes that need one of ``modules`` start sooner."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.path.nursery", *modules, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    nursery = Nursery(process)
    listening = asyncio.create_task(nursery.listen())
    try:
        yield nursery
    finally:
        process.stdin.close()
        await process.wait()
        await listening


def main() -> int:
    """The process that is forked. It runs nothing itself, so that a fork of it is as good as new."""
    for module in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(module)
    told, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(telling)
    children: set[int] = set()
    text = b""
    while True:
        ready, _, _ = select.select([0, told], [], [])
        if told in ready:
            os.read(told, _CHUNK)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    children.discard(pid)
                    _tell(pid=pid, code=os.waitstatus_to_exitcode(status))
        if 0 in ready:
            read = os.read(0, _CHUNK)
            if not read:
                break
            *lines, text = (text + read).split(b"\n")
            for line in lines:
                match json.loads(line):
                    case {"kill": pid}:
                        if pid in children:
                            os.kill(pid, signal.SIGKILL)
                    case {"key": key, "module": module, "asked": asked}:
                        pid = os.fork()
                        if not pid:
                            _be(module, asked)
                        children.add(pid)
                        _tell(key=key, pid=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return 0


def _be(module: str, asked: dict[str, Any]) -> None:
    """Do what was asked for, and end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)  # what we print is no word of the nursery's
        logging.getLogger("asyncqueue").addFilter(_is_news)
        code = importlib.import_module(module).run(asked)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _is_news(record: logging.LogRecord) -> bool:
    """Tasks that fail on purpose are none."""
    return "oops" not in record.getMessage()


def _tell(**words: Any) -> None:
    with suppress(BrokenPipeError):  # whoever started us is gone: the end of our input comes next
        os.write(1, json.dumps(words).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
