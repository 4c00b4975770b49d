"""How long from a send to its result, with one worker that is idle otherwise?"""

from __future__ import annotations

import asyncio
import time

from asyncqueue import Worker
from benchmarks.measure import percentile
from benchmarks.tasks import QUEUE, make_server


def run(urls: dict[str, str], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the median and the slowest hundredth, for each store."""
    return {name: asyncio.run(_trips(url, count)) for name, url in urls.items()}


async def _trips(url: str, count: int) -> dict[str, float]:
    server = make_server(url)
    times: list[float] = []
    async with server, Worker(server, queues=QUEUE, concurrency=10):
        for number in range(count):
            began = time.perf_counter()
            result = await server.send_task("noop", number)
            await result.get(timeout=60)
            times.append(time.perf_counter() - began)
    steady = times[count // 10 :]
    return {
        "p50_ms": round(percentile(steady, 0.5) * 1_000, 2),
        "p99_ms": round(percentile(steady, 0.99) * 1_000, 2),
    }
