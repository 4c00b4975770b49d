"""A task that sends others and awaits them. It gives its slot away while it waits: without that, twenty parents would
wait for ever for children that find no slot in a worker with two.

Prints:

    20 parents, 200 children, 2 slots: 20 times 285
"""

import asyncio

from asyncqueue import Server, TaskContext, Worker, group

server = Server("sqlite:///awaiting.db")


@server.task
async def square(number: int) -> int:
    return number * number


@server.task
async def sum_of_squares(ctx: TaskContext, count: int) -> int:
    squares = await group(*[square.s(number) for number in range(count)]).send()
    async with ctx.yield_slot():
        return sum(await squares.get(timeout=60))


async def main() -> None:
    async with server, Worker(server, concurrency=2):
        results = await server.send_many([sum_of_squares.s(10) for _ in range(20)])
        sums = [await result.get(timeout=60) for result in results]
        print(f"20 parents, 200 children, 2 slots: {sums.count(285)} times 285")


if __name__ == "__main__":
    asyncio.run(main())
