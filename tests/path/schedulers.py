"""A process that keeps a schedule and logs what it sends.

It does not consume. Where told to, it stops for a moment between claim and send, to be killed there.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from asyncqueue import Server
from asyncqueue.engine.periodic import Rota

NAME, SPEC = "often", "@every 1s"


def server(url: str) -> Server:
    """A server with the schedule of these tests."""
    made = Server(url)

    @made.task
    async def note() -> None: ...

    made.schedule(SPEC, NAME, note, missed="all")
    return made


class Ledger:
    """Lines that many processes append, none of which can be taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, what: str, due_at: int) -> None:
        line = f"{json.dumps([what, os.getpid(), due_at])}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def lines(self) -> list[tuple[str, int, int]]:
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may be being written
        return [tuple(json.loads(line)) for line in whole.splitlines()]


class LoggingRota(Rota):
    """Says what it claimed and what it sent; a slow one takes its time in between."""

    ledger: Ledger
    pause = 0.0

    async def _send(self, due_at: int) -> bool:
        self.ledger.write("claimed", due_at)
        await asyncio.sleep(self.pause)
        self.ledger.write("sending", due_at)
        is_sent = await super()._send(due_at)
        self.ledger.write("sent", due_at)
        return is_sent


def run(url: str, ledger: Path, pause: float) -> None:
    """Be that process."""
    asyncio.run(_keep(server(url), Ledger(ledger), pause))


async def _keep(made: Server, ledger: Ledger, pause: float) -> None:
    async with made:
        rota = LoggingRota(made.schedules()[0], await made._office(f"owner-{os.getpid()}"))
        rota.ledger, rota.pause = ledger, pause
        rota.ledger.write("started", 0)
        await rota.run(asyncio.Event())
