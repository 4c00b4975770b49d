"""The tasks of the workers in Go (tests/interop/go/tasks.go) in Python, by the same names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any

from asyncqueue import Server, TaskContext, wire
from asyncqueue import arguments as types
from tests.path.ledger import Ledger

SCALARS: dict[str, Any] = {
    "bool": bool,
    "string": str,
    **{name: getattr(types, name.capitalize()) for name in ("int", "int8", "int16", "int32", "int64")},
    **{name: getattr(types, name.capitalize()) for name in ("uint", "uint8", "uint16", "uint32", "uint64")},
    **{name: getattr(types, name.capitalize()) for name in ("float32", "float64")},
}
"""Annotations of Machinery's scalars, by their names on the wire."""

WHERE = "python"


def echo(annotation: Any) -> Callable[[Any], Any]:
    """A task that returns its one argument."""

    def echoing(given: Any) -> Any:
        return given

    echoing.__annotations__ = {"given": annotation, "return": annotation}
    return echoing


def echo_all(annotations: Sequence[Any]) -> Callable[..., Any]:
    """A task that returns its arguments, one of each type."""

    def echoing(*given: Any) -> Any:
        return given

    hints = {f"given_{place}": each for place, each in enumerate(annotations)}
    echoing.__annotations__ = {**hints, "return": GenericAlias(tuple, tuple(annotations))}
    parameters = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in hints]
    echoing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # functions may have one of their own
    return echoing


def server_with_tasks(server: Server, ledger: Ledger | None = None) -> Server:
    """Register them; those that note what they did do it in ``ledger``."""
    for name, annotation in SCALARS.items():
        server.register_task(f"echo_{name}", echo(annotation))
        server.register_task(f"echo_{name}s", echo(GenericAlias(list, (annotation,))))
    server.register_task("echo_bytes", echo(bytes))
    server.register_task("echo_scalars", echo_all([*SCALARS.values()]))
    slices = [GenericAlias(list, (each,)) for each in SCALARS.values()]
    server.register_task("echo_slices", echo_all([*slices, bytes]))

    def note(what: str, ctx: TaskContext) -> None:
        if ledger is not None:
            ledger.note(what, ctx.task_id)

    @server.task(name="add")
    async def add(a: int, b: int) -> int:
        return a + b

    @server.task(name="total")
    async def total(*numbers: int) -> int:
        return sum(numbers)

    @server.task(name="join")
    async def join(*parts: str) -> str:
        return ",".join(parts)

    @server.task(name="pair")
    async def pair(number: int, text: str) -> tuple[int, str]:
        return number + 1, f"{text}!"

    @server.task(name="nothing")
    async def nothing() -> None:
        return

    @server.task(name="fail")
    async def fail(text: str) -> None:
        raise Exception(text)

    @server.task(name="panics")
    async def panics(text: str) -> None:
        raise RuntimeError(text)

    @server.task(name="flaky")
    async def flaky(ctx: TaskContext, failures: int) -> int:
        if ctx.attempt > failures:
            return ctx.attempt
        raise Exception("not yet")

    @server.task(name="retried")
    async def retried(ctx: TaskContext) -> str:
        if ctx.signature.retry_count:
            raise Exception("not yet")
        return f"[{wire.encode_signature(ctx.signature).decode()}]"

    @server.task(name="later")
    async def later(ctx: TaskContext, times: int, milliseconds: int) -> int:
        if ctx.attempt <= times:
            ctx.retry_later(milliseconds / 1000, "later")
        return ctx.attempt

    @server.task(name="sleep")
    async def sleep(ctx: TaskContext, milliseconds: int) -> int:
        note("S", ctx)
        await asyncio.sleep(milliseconds / 1000)
        note("E", ctx)
        return milliseconds

    @server.task(name="note")
    async def noting(ctx: TaskContext, *numbers: int) -> int:
        note("S", ctx)
        return sum(numbers)

    @server.task(name="gather")
    async def gather(ctx: TaskContext, *numbers: int) -> str:
        note("S", ctx)
        note("E", ctx)
        return ",".join(map(str, numbers))

    @server.task(name="record")
    async def record(ctx: TaskContext, text: str) -> str:
        note("S", ctx)
        return text

    @server.task(name="signature")
    async def signature(ctx: TaskContext) -> str:
        return wire.encode_signature(ctx.signature).decode()

    @server.task(name="where")
    async def where() -> str:
        return WHERE

    @server.task(name="py_only")
    async def py_only() -> str:
        return WHERE

    return server
