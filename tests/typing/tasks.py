"""What a type checker knows of tasks: types that it must see, and mistakes that it must find.

Each mistake carries the error it must be found as: under `mypy --strict`, one that is not found is an error itself,
since its `type: ignore` is then unused.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from asyncqueue import AsyncResult, Server, Signature, TaskContext, TaskSignature

server = Server("memory://")


@server.task
async def add(a: int, b: int) -> int:
    return a + b


@server.task(retries=3, timeout=1.5, backoff="exponential", retry_on=OSError)
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@server.task
def divide(a: int, b: int) -> tuple[int, int]:
    return divmod(a, b)


@server.task(name="sum", queue="sums")
def total(*numbers: float) -> float:
    return sum(numbers)


@server.task
async def report(ctx: TaskContext, title: str, *, pages: int = 1) -> str:
    return f"{title} {ctx.attempt}/{pages}"


@server.task(retries=1)
def note(ctx: TaskContext, text: str) -> None:
    ctx.log.info(text)


@server.task
async def anything(value: object) -> bool:
    return bool(value)


async def sending_is_typed() -> None:
    assert_type(await add.send(1, 2), AsyncResult[int])
    assert_type(await add.send(1, b=2), AsyncResult[int])
    assert_type(await fetch.send("x", tries=2), AsyncResult[bytes])
    assert_type(await divide.send(7, 2), AsyncResult[tuple[int, int]])
    assert_type(await total.send(1, 2.5, 3), AsyncResult[float])
    assert_type(await add.with_(countdown=1.5, queue="slow").send(1, 2), AsyncResult[int])
    assert_type(await server.send_task(add, 1, 2), AsyncResult[int])
    assert_type(await server.send_task(add.s(1, 2)), AsyncResult[int])
    assert_type(await server.send_task("add", 1, 2), AsyncResult[Any])
    assert_type(await server.send_task(Signature(name="add")), AsyncResult[Any])
    assert_type(await server.send_many([add.s(1, 2), add.s(3, 4)]), list[AsyncResult[int]])
    assert_type(await server.send_many([add.s(1, 2), total.s(3, 4)]), list[AsyncResult[Any]])


async def results_are_typed() -> None:
    assert_type(await (await add.send(1, 2)).get(), int)
    assert_type(await (await add.send(1, 2)).get(timeout=5), int)
    assert_type(await (await add.send(1, 2)), int)
    assert_type(await (await divide.send(7, 2)).get(), tuple[int, int])
    assert_type(await server.result("task_1").get(), Any)
    several: list[AsyncResult[object]] = [await add.send(1, 2), await fetch.send("x")]
    assert_type([await each for each in several], list[object])


async def calling_is_typed() -> None:
    assert_type(add(1, 2), Coroutine[Any, Any, int])  # type: ignore[unused-coroutine]  # only its type matters
    assert_type(await add(1, 2), int)
    assert_type(divide(7, 2), tuple[int, int])


def signatures_are_typed() -> None:
    assert_type(add.s(1, 2), TaskSignature[int])
    assert_type(add.s(1), TaskSignature[int, int])  # a predecessor adds the rest
    assert_type(divide.si(7, 2), TaskSignature[tuple[int, int]])


async def a_context_is_not_the_senders_to_give() -> None:
    assert_type(await report.send("weekly", pages=3), AsyncResult[str])
    assert_type(await report("weekly"), str)
    assert_type(await note.send("hello"), AsyncResult[None])
    assert_type(await server.send_task(report, "weekly"), AsyncResult[str])


async def a_parameter_that_takes_anything_is_no_context() -> None:
    assert_type(await anything.send(1), AsyncResult[bool])
    assert_type(await anything.send(value=1), AsyncResult[bool])


async def mistakes_are_found() -> None:
    await add.send(1, "x")  # type: ignore[arg-type]  # text for an int
    await add.send(1)  # type: ignore[call-arg]  # one is missing
    await add.send(1, 2, 3)  # type: ignore[call-arg]  # one too many
    await add.send(1, c=2)  # type: ignore[call-arg]  # no such parameter
    await add("x", 2)  # type: ignore[arg-type]  # a call is checked as well
    await fetch.send("x", 2)  # type: ignore[call-arg]  # keyword-only
    await total.send("x")  # type: ignore[arg-type]  # text among numbers
    await report.send()  # type: ignore[call-arg]  # a title is still wanted
    await note.send(1)  # type: ignore[arg-type]  # the text, not the context, comes first
    await server.send_task(add, 1, "x")  # type: ignore[call-overload]  # text for an int
    await server.send_task(add.s(1, 2), 3)  # type: ignore[call-overload]  # a signature has its arguments
    await add.with_(cuntdown=1).send(1, 2)  # type: ignore[call-arg]  # no such option
    server.task(retry=1)  # type: ignore[call-overload]  # no such option
    wrong: str = await (await add.send(1, 2)).get()  # type: ignore[assignment]  # it is an int
    assert wrong
