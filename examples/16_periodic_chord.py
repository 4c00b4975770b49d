"""A chord on a schedule: every occurrence is one of its own, and each is sent once, by one of two workers.

Prints:

    report 1: 3 shops, 600 sold
    report 2: 3 shops, 600 sold
    each had its own moment: True
"""

import asyncio

from asyncqueue import Server, TaskContext, Worker, chord

server = Server("sqlite:///periodic_chord.db")
SOLD = {"Paris": 100, "Rome": 200, "Oslo": 300}
reports: list[str] = []
enough = asyncio.Event()


@server.task
async def sold_in(shop: str) -> int:
    return SOLD[shop]


@server.task
async def report(ctx: TaskContext, *sold: int) -> None:
    if len(reports) < 2:
        reports.append(ctx.task_id)
        print(f"report {len(reports)}: {len(sold)} shops, {sum(sold)} sold")
    if len(reports) == 2:
        enough.set()


server.schedule("@every 1s", "report", chord([sold_in.s(shop) for shop in SOLD], report))


async def main() -> None:
    async with server, Worker(server), Worker(server):
        await enough.wait()
    print(f"each had its own moment: {len(set(reports)) == 2}")


if __name__ == "__main__":
    asyncio.run(main())
