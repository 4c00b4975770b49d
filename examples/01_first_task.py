"""A task, sent and run over one SQLite file.

Here the worker runs inside of the program. As a process of its own, it is one command: see `shop.py`.

Prints:

    2 + 3 = 5
    7 / 0 failed: ZeroDivisionError: integer division or modulo by zero
"""

import asyncio

from asyncqueue import Server, TaskFailed, Worker

server = Server("sqlite:///tasks.db")


@server.task
async def add(a: int, b: int) -> int:
    return a + b


@server.task
async def divide(a: int, b: int) -> int:
    return a // b


async def main() -> None:
    async with server, Worker(server):
        result = await add.send(2, 3)
        print(f"2 + 3 = {await result.get(timeout=30)}")

        result = await divide.send(7, 0)
        try:
            await result.get(timeout=30)
        except TaskFailed as exc:
            print(f"7 / 0 failed: {exc.error}")


if __name__ == "__main__":
    asyncio.run(main())
