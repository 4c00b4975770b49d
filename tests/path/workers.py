"""Worker processes to be killed: what they run, and how a test starts and ends them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from asyncqueue import Server, Worker
from asyncqueue.builders import chord
from asyncqueue.config import Settings
from asyncqueue.engine.context import TaskContext
from tests.path.bench import Stores
from tests.path.forks import Fork, Forks
from tests.path.ledger import Ledger


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

    @server.task
    async def member(ctx: TaskContext, number: int, seconds: float = 0.0) -> int:
        ledger.note("S", ctx.task_id)
        await asyncio.sleep(seconds)
        ledger.note("E", ctx.task_id)
        return number

    @server.task
    async def oops(ctx: TaskContext, number: int) -> int:
        ledger.note("S", ctx.task_id)
        raise ValueError(f"oops {number}")

    @server.task
    async def collect(ctx: TaskContext, name: str, *values: Any) -> str:
        ledger.note("S", ctx.task_id)
        ledger.note("E", ctx.task_id)
        return f"{name}({','.join(map(str, values))})"

    @server.task
    async def becoming(ctx: TaskContext, *numbers: int) -> str:
        ledger.note("S", f"{ctx.task_id}#becoming")  # what it goes on as has its UUID
        ctx.replace(chord([member.s(number) for number in numbers], collect.s("became")))

    @server.task
    async def adding(ctx: TaskContext, number: int, *more: int) -> int:
        ledger.note("S", ctx.task_id)
        await ctx.add_to_group(*(member.s(each) for each in more))
        ledger.note("E", ctx.task_id)
        return number

    return server


class Crew:
    """Starts workers on one pair of stores; none is left at the end of the test. ``sections`` are settings of all."""

    def __init__(self, stores: Stores, ledger: Ledger, **sections: Any) -> None:
        self.stores = stores
        self.ledger = ledger
        self.sections = sections
        self._forks = Forks()

    def start(
        self, *, crash_at: int = 0, lease: float | None = None, worker: dict[str, Any] | None = None, **options: Any
    ) -> Fork:
        """One more worker. ``crash_at`` makes it die before its n-th call of a store; ``options`` are those of
        ``Worker``, ``worker`` is that section of the settings."""
        asked = {
            "broker": self.stores.broker,
            "backend": self.stores.backend,
            "ledger": str(self.ledger.folder),
            "crash_at": crash_at,
            "settings": self.sections | {"worker": {"lease": lease or self.stores.lease, **(worker or {})}},
            "worker": options,
        }
        return self._forks.start(run, asked)

    @property
    def running(self) -> list[Fork]:
        """Those that have not ended."""
        return self._forks.running

    def stop(self) -> None:
        self._forks.stop()


CRASHED = 77
CALLS = frozenset({"publish", "fetch", "ack", "nack", "bury", "begin", "put", "get"})
WRITES = CALLS | {"submit", "settle", "open_groups", "finish_members", "add_members"}
WRITES |= {"claim_group", "mark_group_sent", "put_plans", "touch"}
WRITES -= {"fetch", "get"}  # the stores are the same after a fetch, but for what dies with its worker


def crash_before_write(server: Server, crash_at: int, ledger: Ledger) -> None:
    """The process dies before its n-th write to the stores of this server, and notes which one that would have been."""
    _crash_before(server, WRITES, crash_at, ledger)


def _crash_before(server: Server, names: Collection[str], crash_at: int, ledger: Ledger) -> None:
    """Both stores of a server count together."""
    make = server._stores.make
    calls = 0

    def dying(name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                ledger.note("X", name)
                os._exit(CRASHED)
            return await call(*args, **kwargs)

        return counted

    def stores() -> Any:
        opened = make()
        for store in opened:
            # they stay the drivers that they are: what stands around one is not all that it is
            for name in names:
                if hasattr(store, name):
                    setattr(store, name, dying(name, getattr(store, name)))
        return opened

    server._stores.make = stores  # type: ignore[method-assign]  # the one seam through which both come


def run(asked: dict[str, Any]) -> int:
    """Be the worker process that was asked for."""
    ledger = Ledger(Path(asked["ledger"]))
    server = Server(broker=asked["broker"], backend=asked["backend"], settings=Settings.parse(asked["settings"]))
    if asked.get("crash_at"):
        _crash_before(server, CALLS, asked["crash_at"], ledger)
    if asked.get("crash_before_write"):
        crash_before_write(server, asked["crash_before_write"], ledger)
    server_with_tasks(server, ledger)

    async def work() -> int:
        async with server:
            return await Worker(server, **asked["worker"]).run()

    return asyncio.run(work())
