"""Tasks that are not to run yet: after some seconds, or at a moment.

Prints:

    2 tasks wait for their time
    now
    in 0.3 seconds
    at a moment
"""

import asyncio
from datetime import UTC, datetime, timedelta

from asyncqueue import Server, Worker

server = Server("memory://")


@server.task
async def say(text: str) -> None:
    print(text)


async def main() -> None:
    async with server:
        at_a_moment = await say.with_(eta=datetime.now(UTC) + timedelta(seconds=0.6)).send("at a moment")
        in_a_while = await say.with_(countdown=0.3).send("in 0.3 seconds")
        now = await say.send("now")
        print(f"{len(await server.get_delayed_tasks())} tasks wait for their time")
        async with Worker(server):
            for result in (now, in_a_while, at_a_moment):
                await result.get(timeout=30)


if __name__ == "__main__":
    asyncio.run(main())
