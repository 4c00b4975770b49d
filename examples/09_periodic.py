"""A task on a schedule: two workers keep it, and every occurrence is sent once.

Prints:

    tick 1
    tick 2
    tick 3
    each had its own moment: True
"""

import asyncio

from asyncqueue import Server, TaskContext, Worker

server = Server("sqlite:///periodic.db")
seen: list[str] = []
enough = asyncio.Event()


@server.task
async def tick(ctx: TaskContext) -> None:
    if len(seen) < 3:
        seen.append(ctx.signature.uuid)
        print(f"tick {len(seen)}")
    if len(seen) == 3:
        enough.set()


server.schedule("@every 1s", "tick", tick)


async def main() -> None:
    async with server, Worker(server), Worker(server):
        await enough.wait()
    print(f"each had its own moment: {len(set(seen)) == 3}")


if __name__ == "__main__":
    asyncio.run(main())
