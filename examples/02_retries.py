"""What is tried again, how often, and after which waits.

Prints:

    attempt 1: the line is busy
    attempt 2: the line is busy
    attempt 3: hello
    deliver: hello on attempt 3
    bill failed at once: KeyError: 'nobody'
    poll asked twice to be run again: ready on attempt 3
"""

import asyncio

from asyncqueue import Server, TaskContext, TaskFailed, Worker
from asyncqueue.retry import exponential

server = Server("memory://")


# without `backoff`, the waits are Machinery's Fibonacci numbers: 1, 2, 3, 5, 8 … seconds
@server.task(retries=5, backoff=exponential(base=0.05, factor=2, cap=60, jitter=0.5))
async def deliver(ctx: TaskContext, text: str) -> str:
    if ctx.attempt < 3:
        print(f"attempt {ctx.attempt}: the line is busy")
        raise ConnectionError("the line is busy")
    print(f"attempt {ctx.attempt}: {text}")
    return f"{text} on attempt {ctx.attempt}"


@server.task(retries=5, retry_on=(ConnectionError, TimeoutError))
async def bill(customer: str) -> int:
    return {"ada": 5}[customer]  # a KeyError is a mistake: trying again would not help


@server.task(retry_later_limit=10)
async def poll(ctx: TaskContext) -> str:
    if ctx.attempt < 3:
        ctx.retry_later(0.05)  # no error, and uses up no retry: just not yet
    return f"ready on attempt {ctx.attempt}"


async def main() -> None:
    async with server, Worker(server):
        print("deliver:", await (await deliver.send("hello")).get(timeout=30))
        try:
            await (await bill.send("nobody")).get(timeout=30)
        except TaskFailed as exc:
            print("bill failed at once:", exc.error)
        print("poll asked twice to be run again:", await (await poll.send()).get(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
