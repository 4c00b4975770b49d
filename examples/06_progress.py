"""Many tasks in one go, and their results as they come: a thousand handles wait at the cost of one.

Prints:

    250 of 1000
    500 of 1000
    750 of 1000
    1000 of 1000
    the sum of the squares is 332833500
"""

import asyncio

from asyncqueue import Server, Worker

server = Server("sqlite:///progress.db")


@server.task
async def square(number: int) -> int:
    return number * number


async def main() -> None:
    async with server, Worker(server, concurrency=100):
        results = await server.send_many([square.s(number) for number in range(1000)])
        total = 0
        for count, each in enumerate(asyncio.as_completed([result.get() for result in results]), start=1):
            total += await each
            if count % 250 == 0:
                print(f"{count} of {len(results)}")
        print(f"the sum of the squares is {total}")


if __name__ == "__main__":
    asyncio.run(main())
