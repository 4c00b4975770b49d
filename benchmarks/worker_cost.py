"""What does one no-op task with a result cost a worker, and how near is that to the least it can cost?

The tasks are queued first; a worker in a process of its own then runs them all. Its CPU and wall time are those
between its start and the moment when the last result can be read. The last row is the limit: a loop with the least
round trips that give the same guarantee, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asyncqueue import Server, Worker
from asyncqueue.signature import Signature
from benchmarks import raw_loop
from benchmarks.measure import Meter
from benchmarks.tasks import QUEUE, make_server

LIMIT = "limit (raw loop, Redis)"


def run(urls: dict[str, str], count: int, concurrency: int) -> dict[str, dict[str, float]]:
    """CPU µs per task and tasks per second for each store, and for the raw loop on Redis."""
    rows = {name: _in_another_process(url, count, concurrency) for name, url in urls.items()}
    if "redis" in urls:
        rows[LIMIT] = _in_another_process(urls["redis"], count, concurrency, raw=True)
        limit = rows[LIMIT]["cpu_us"]
        for row in rows.values():
            row["times_the_limit"] = round(row["cpu_us"] / limit, 2)
    return rows


def _in_another_process(url: str, count: int, concurrency: int, *, raw: bool = False) -> dict[str, float]:
    last = "" if url.startswith("memory") else asyncio.run(_fill(url, count))[-1]
    words = [sys.executable, "-m", "benchmarks.worker_cost", url, str(count), str(concurrency), "raw" if raw else last]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    parsed: dict[str, float] = json.loads(done.stdout)
    return parsed


async def _fill(url: str, count: int) -> Sequence[str]:
    server = make_server(url)
    async with server:
        results = await server.send_many(_signatures(server, count))
    return [result.task_id for result in results]


def _signatures(server: Server, count: int) -> list[Signature]:
    return [server.signature("noop", number) for number in range(count)]


async def _work(url: str, count: int, concurrency: int, task_id: str) -> dict[str, float]:
    server = make_server(url)
    async with server:
        if not task_id:
            task_id = (await server.send_many(_signatures(server, count)))[-1].task_id
        last = server.result(task_id)
        meter = Meter()
        async with Worker(server, queues=QUEUE, concurrency=concurrency):
            await last.wait()
            return meter.spent().per(count)


def main() -> None:
    """The child process: work one queue empty and print what it cost."""
    url, count, concurrency, last = sys.argv[1:]
    if last == "raw":
        spent = asyncio.run(raw_loop.work(url, int(count), int(concurrency)))
    else:
        spent = asyncio.run(_work(url, int(count), int(concurrency), last))
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
