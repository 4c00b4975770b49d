"""A chord whose members are retried and whose callback sends another task; and a process that works on it, traced.

python -m tests.path.traced URL SPANS: works until SIGTERM, and appends its spans to the file SPANS.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from opentelemetry.trace import TracerProvider

from asyncqueue import Chord, Server, TaskContext, Worker, chord, group
from asyncqueue.contrib.opentelemetry import Tracing
from tests.spans import written_to

TREE = """\
SendChord
├─ part
├─ part ! OSError
├─ part (run 2)
└─ total
   └─ SendTask
      └─ report"""
"""The spans of ``sums``, wherever it is sent and run."""


def with_tasks(server: Server, provider: TracerProvider) -> Server:
    """Register the tasks, and trace the server."""
    server.observe(Tracing(tracer_provider=provider))

    @server.task(retries=1, backoff="fixed:0")
    async def part(ctx: TaskContext, number: int) -> int:
        if number == 2 and ctx.attempt == 1:
            raise OSError("not yet")
        return number

    @server.task
    async def report(total: int) -> str:
        return f"the total is {total}"

    @server.task
    async def total(*parts: int) -> str:
        return (await report.send(sum(parts))).id

    return server


def sums(server: Server) -> Chord[str, Any]:
    """The chord. Its result is the UUID of the task that its callback has sent."""
    return chord(group(server.signature("part", 1), server.signature("part", 2)), server.signature("total"))


async def _work(url: str, spans: Path) -> int:
    server = with_tasks(Server(url), written_to(spans))
    async with server:
        return await Worker(server).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(_work(sys.argv[1], Path(sys.argv[2]))))
