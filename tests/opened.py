"""Drivers that are open for as long as a test needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar, overload


class Opens(Protocol):
    """A broker, a backend or a lock."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...


A = TypeVar("A", bound=Opens)
B = TypeVar("B", bound=Opens)
C = TypeVar("C", bound=Opens)


@overload
def opened(one: A, /) -> AbstractAsyncContextManager[A]: ...
@overload
def opened(one: A, two: B, /) -> AbstractAsyncContextManager[tuple[A, B]]: ...
@overload
def opened(one: A, two: B, three: C, /) -> AbstractAsyncContextManager[tuple[A, B, C]]: ...
@asynccontextmanager
async def opened(*things: Opens) -> AsyncIterator[Any]:
    """Open what is given, in this order, and close it in reverse: one thing as itself, several as a tuple."""
    try:
        for thing in things:
            await thing.open()
        yield things[0] if len(things) == 1 else things
    finally:
        for thing in reversed(things):
            await thing.close()
