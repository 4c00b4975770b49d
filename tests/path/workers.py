"""Worker processes to be killed: what they run, and how a test starts and ends them.

python -m tests.path.workers '{"broker": …, "backend": …, "ledger": …, "settings": {…}, "worker": {…}}'
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncqueue import Server, Worker
from asyncqueue.config import Settings
from asyncqueue.engine.context import TaskContext
from tests.path.bench import Stores
from tests.path.ledger import Ledger

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 60.0


def server_with_tasks(server: Server, ledger: Ledger) -> Server:
    """Register the tasks of these tests; each writes its start and its end."""

    @server.task
    async def work(ctx: TaskContext, seconds: float) -> float:
        ledger.note("S", ctx.task_id)
        await asyncio.sleep(seconds)
        ledger.note("E", ctx.task_id)
        return seconds

    @server.task
    async def wait_for_file(ctx: TaskContext, path: str) -> str:
        ledger.note("S", ctx.task_id)
        while not Path(path).exists():
            await asyncio.sleep(0.02)
        ledger.note("E", ctx.task_id)
        return str(os.getpid())

    @server.task
    async def poison(ctx: TaskContext) -> None:
        ledger.note("S", ctx.task_id)
        os.kill(os.getpid(), signal.SIGKILL)

    @server.task(stop_task_deletion_on_error=True)
    async def fail_without_file(ctx: TaskContext, path: str) -> str:
        ledger.note("S", ctx.task_id)
        if not Path(path).exists():
            raise FileNotFoundError(path)
        while Path(path).read_text() == "hang":
            await asyncio.sleep(0.02)
        ledger.note("E", ctx.task_id)
        return "done"

    @server.task
    async def fail_first(ctx: TaskContext) -> int:
        ledger.note("S", f"{ctx.task_id}#{ctx.attempt}")
        if ctx.attempt == 1:
            raise OSError("not yet")
        return ctx.attempt

    @server.task
    async def note(ctx: TaskContext, *values: Any) -> None:
        ledger.note("S", ctx.task_id)
        ledger.note("E", ctx.task_id)

    return server


@dataclass
class WorkerProcess:
    """One worker process."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait for it."""
        self.signal(signal.SIGKILL)
        self.process.wait(DEADLINE)

    async def ended(self) -> int:
        """Its exit code, waited for."""
        return await asyncio.to_thread(self.process.wait, DEADLINE)


class Crew:
    """Starts workers on one pair of stores; none is left at the end of the test."""

    def __init__(self, stores: Stores, ledger: Ledger) -> None:
        self.stores = stores
        self.ledger = ledger
        self._processes: list[WorkerProcess] = []

    def start(
        self, *, crash_at: int = 0, lease: float = 2.0, worker: dict[str, Any] | None = None, **options: Any
    ) -> WorkerProcess:
        """One more worker. ``crash_at`` makes it die before its n-th call of a store; ``options`` are those of
        ``Worker``, ``worker`` is that section of the settings."""
        asked = {
            "broker": self.stores.broker,
            "backend": self.stores.backend,
            "ledger": str(self.ledger.folder),
            "crash_at": crash_at,
            "settings": {"worker": {"lease": lease, **(worker or {})}},
            "worker": options,
        }
        process = subprocess.Popen([sys.executable, "-m", "tests.path.workers", json.dumps(asked)], cwd=ROOT)
        self._processes.append(WorkerProcess(process))
        return self._processes[-1]

    def stop(self) -> None:
        for each in self._processes:
            each.signal(signal.SIGCONT)
            each.kill()


class _Crashing:
    """A store whose process dies before its n-th call; the two stores of a server count together."""

    calls = 0

    def __init__(self, store: Any, crash_at: int, names: frozenset[str]) -> None:
        self._store = store
        self._crash_at = crash_at
        self._names = names

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._store, name)
        if name not in self._names:
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            _Crashing.calls += 1
            if _Crashing.calls == self._crash_at:
                os._exit(CRASHED)
            return await inner(*args, **kwargs)

        return call


CRASHED = 77
BROKER_CALLS = frozenset({"publish", "fetch", "ack", "nack", "bury"})
BACKEND_CALLS = frozenset({"begin", "put", "get"})


def _crashing(server: Server, crash_at: int) -> None:
    """Put a crash into the stores that this server opens."""
    make = server._stores

    def stores() -> Any:
        broker, backend = make()
        return _Crashing(broker, crash_at, BROKER_CALLS), _Crashing(backend, crash_at, BACKEND_CALLS)

    server._stores = stores  # type: ignore[method-assign]  # the one seam through which both come


def main() -> int:
    asked = json.loads(sys.argv[1])
    server = Server(broker=asked["broker"], backend=asked["backend"], settings=Settings.parse(asked["settings"]))
    if asked["crash_at"]:
        _crashing(server, asked["crash_at"])
    server_with_tasks(server, Ledger(Path(asked["ledger"])))

    async def work() -> int:
        async with server:
            return await Worker(server, **asked["worker"]).run()

    return asyncio.run(work())


if __name__ == "__main__":
    sys.exit(main())
