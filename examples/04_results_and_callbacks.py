"""Several results, and tasks that follow a task: on its success with its results, on its failure with its error.

Prints:

    divide gave (3, 1)
    add got 3, 1 and 10 of its own: 14
    told: 'ZeroDivisionError: integer division or modulo by zero'
"""

import asyncio

from asyncqueue import AsyncResult, Server, TaskFailed, Worker

server = Server("memory://")


@server.task
async def divide(a: int, b: int) -> tuple[int, int]:  # two results
    return divmod(a, b)


@server.task
async def add(*numbers: int) -> int:
    return sum(numbers)


@server.task
async def tell(error: str) -> str:
    return error


async def main() -> None:
    async with server, Worker(server):
        # the results of a task come after the arguments that its successor has already
        result = await divide.with_(on_success=add.s(10), on_error=tell.s()).send(10, 3)
        print(f"divide gave {await result.get(timeout=30)}")
        print(f"add got 3, 1 and 10 of its own: {await successor(result).get(timeout=30)}")

        result = await divide.with_(on_success=add.s(10), on_error=tell.s()).send(1, 0)
        try:
            await result.get(timeout=30)
        except TaskFailed:
            print(f"told: {await error_handler(result).get(timeout=30)!r}")


def successor(result: AsyncResult[tuple[int, int]]) -> AsyncResult[int]:
    """A callback has its UUID from the moment when its task is sent."""
    assert result.signature is not None
    assert result.signature.on_success
    return server.result(result.signature.on_success[0].uuid)


def error_handler(result: AsyncResult[tuple[int, int]]) -> AsyncResult[str]:
    assert result.signature is not None
    assert result.signature.on_error
    return server.result(result.signature.on_error[0].uuid)


if __name__ == "__main__":
    asyncio.run(main())
