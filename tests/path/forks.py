"""Processes that begin in a moment: each is forked from one that has loaded all they need, and does nothing else."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from typing import Self

DEADLINE = 60.0


class Forks:
    """Starts processes: ``with Forks() as forks``. None is left behind it."""

    def __init__(self) -> None:
        self.started: list[Fork] = []

    def start(self, work: Callable[..., int | None], *arguments: object) -> Fork:
        """A process that calls a function of a module, and ends with the exit code that it returns."""
        process = _FORKS.Process(target=_be, args=(work, *arguments), daemon=True)
        process.start()
        self.started.append(Fork(process))
        return self.started[-1]

    @property
    def running(self) -> list[Fork]:
        """Those that have not ended."""
        return [each for each in self.started if each.is_running]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """``kill -9`` for all."""
        for each in self.running:
            each.kill()


@dataclass(frozen=True, slots=True)
class Fork:
    """A process."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code: minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    @property
    def is_running(self) -> bool:
        return self.code is None

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, and wait for it."""
        self.signal(signal.SIGKILL)
        self.process.join(DEADLINE)

    async def ended(self) -> int:
        """Its exit code, waited for."""
        async with asyncio.timeout(DEADLINE):
            while (code := self.code) is None:  # only one thread may ask, so that none is left to wait
                await asyncio.sleep(0.02)
        return code


def _be(work: Callable[..., int | None], *arguments: object) -> None:
    sys.exit(work(*arguments))


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "tests.interop.stressed",
        *(f"tests.path.{each}" for each in ("workers", "senders", "schedulers", "holders")),
        *(f"asyncqueue.brokers.{each}" for each in ("redis", "sqlite", "amqp", "sqs", "pubsub")),
        *(f"asyncqueue.backends.{each}" for each in ("redis", "sqlite", "amqp", "mongo", "dynamodb", "memcache")),
        *(f"asyncqueue.locks.{each}" for each in ("redis", "sqlite", "mongo", "dynamodb")),
    ]
)
