"""A message that another program wrote: Machinery's JSON, pushed onto a Redis list by hand.

A Go service that uses Machinery writes the same. Wants `REDIS_URL`, such as redis://localhost:6379/0, and says so
where there is none. The queue and the result are removed at the end.

Prints:

    the list holds 1 message
    add returned 42
    as Machinery stores it: SUCCESS int64 42
"""

import asyncio
import json
import os
import sys
from uuid import uuid4

from redis.asyncio import Redis

from asyncqueue import Server, Worker

URL = os.environ.get("REDIS_URL")
QUEUE = f"example_{uuid4()}"


async def main(url: str) -> None:
    server = Server(url)
    task_id = f"task_{uuid4()}"
    message = {
        "UUID": task_id,
        "Name": "add",
        "RoutingKey": QUEUE,
        "Args": [{"Type": "int64", "Value": 40}, {"Type": "int64", "Value": 2}],
    }

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with server, Redis.from_url(url, decode_responses=True) as redis:
        pushed = await redis.rpush(QUEUE, json.dumps(message))
        print(f"the list holds {pushed} message")
        await Worker(server, queues=QUEUE).run(burst=True)  # until the queue is empty
        print(f"add returned {await server.result(task_id).get(timeout=30)}")

        state = json.loads(await redis.get(task_id) or "{}")
        (result,) = state["Results"]
        print(f"as Machinery stores it: {state['State']} {result['Type']} {result['Value']}")
        await server.result(task_id).forget()


if __name__ == "__main__":
    if URL is None:
        sys.exit("set REDIS_URL to a Redis, such as redis://localhost:6379/0, to see this example")
    asyncio.run(main(URL))
