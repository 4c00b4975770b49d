"""What does sending cost: one by one, many at once side by side, and in bulk?"""

from __future__ import annotations

import asyncio

from benchmarks.measure import Meter
from benchmarks.tasks import make_server


def run(urls: dict[str, str], count: int) -> dict[str, dict[str, float]]:
    """CPU µs per task of the sender, and tasks per second, for each store and way."""
    rows: dict[str, dict[str, float]] = {}
    for name, url in urls.items():
        rows |= {f"{name}, {way}": row for way, row in asyncio.run(_send(url, count)).items()}
    return rows


async def _send(url: str, count: int) -> dict[str, dict[str, float]]:
    server = make_server(url)
    rows = {}
    async with server:
        few = max(1, count // 10)
        meter = Meter()
        for number in range(few):
            await server.send_task("noop", number)
        rows["one by one"] = meter.spent().per(few)

        meter = Meter()
        await asyncio.gather(*(server.send_task("noop", number) for number in range(few)))
        rows["side by side"] = meter.spent().per(few)

        meter = Meter()
        await server.send_many([server.signature("noop", number) for number in range(count)])
        rows["in bulk"] = meter.spent().per(count)
        await server.purge("bench")
    return rows
