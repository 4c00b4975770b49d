"""A group: all at once. Its members come as they end, it says how far it is, and it is opened again by its id.

Prints:

    25 of 100
    50 of 100
    75 of 100
    100 of 100
    in order: 0, 1, 4 … 9801
    opened by its id: the same, 100 of 100 done
    member 2 of another one failed: ValueError: -1 has no root
"""

import asyncio
import math

from asyncqueue import MemberFailed, Server, Worker, group

server = Server("sqlite:///group.db")


@server.task
async def square(number: int) -> int:
    return number * number


@server.task
async def root(number: int) -> float:
    if number < 0:
        raise ValueError(f"{number} has no root")
    return math.sqrt(number)


async def main() -> None:
    async with server, Worker(server):
        result = await group(*[square.s(number) for number in range(100)]).send()
        done = 0
        async for _ in result.as_completed():  # handles of the members; `await` of one is its result
            done += 1
            if done % 25 == 0:
                print(f"{done} of {len(result.members)}")
        squares = await result.get(timeout=30)
        print(f"in order: {squares[0]}, {squares[1]}, {squares[2]} … {squares[99]}")

        opened = await server.group_result(result.id)  # in any process that has the same file
        is_same = await opened.get(timeout=30) == squares
        progress = await opened.progress()
        print(f"opened by its id: {'the same' if is_same else 'others'}, {progress.done} of {progress.total} done")

        try:
            await (await group(root.s(9), root.s(4), root.s(-1)).send()).get(timeout=30)
        except MemberFailed as exc:  # at once, whatever the others do
            print(f"member {exc.index} of another one failed: {exc.error}")


if __name__ == "__main__":
    asyncio.run(main())
