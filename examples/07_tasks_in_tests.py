"""Tasks in the tests of an application: run as they are sent, by the same code, with nothing to start or to wait for.

Arguments and results travel as they would in earnest, retries happen (without their waits), so does a failure.

Prints:

    test_an_order_is_shipped: passed
    test_a_carrier_that_is_busy_is_asked_again: passed
    test_an_unknown_order_is_an_error: passed
"""

import asyncio

from asyncqueue import Server, TaskContext

server = Server("eager://")  # an application would read the URL from its settings


@server.task(retries=2, retry_on=ConnectionError)
async def ship(ctx: TaskContext, order: int, busy: int = 0) -> str:
    if order > 100:
        raise KeyError(order)
    if ctx.attempt <= busy:
        raise ConnectionError("the carrier is busy")
    return f"order {order} shipped on attempt {ctx.attempt}"


async def test_an_order_is_shipped() -> None:
    assert await (await ship.send(7)) == "order 7 shipped on attempt 1"


async def test_a_carrier_that_is_busy_is_asked_again() -> None:
    assert await (await ship.send(7, busy=2)) == "order 7 shipped on attempt 3"


async def test_an_unknown_order_is_an_error() -> None:
    state = await (await ship.send(101)).wait()  # as `get`, but a failure is returned and not raised
    assert state.error == "KeyError: 101"


if __name__ == "__main__":  # a test runner such as pytest does this for you
    for test in (
        test_an_order_is_shipped,
        test_a_carrier_that_is_busy_is_asked_again,
        test_an_unknown_order_is_an_error,
    ):
        asyncio.run(test())
        print(f"{test.__name__}: passed")
