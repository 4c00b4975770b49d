"""Code of the user around every task of a worker."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from asyncqueue.engine.context import TaskContext
from asyncqueue.signature import Signature

Call = Callable[[], Awaitable[Any]]


class Middleware(Protocol):
    """Wraps a run: do something, ``await call()`` for the result, do something else.

    What it raises counts as the task's own exception; what it returns as the task's own result.
    """

    async def __call__(self, context: TaskContext, call: Call) -> Any:
        """Run the task by ``await call()``, or do not."""


PublishHook = Callable[[Signature], Signature | Awaitable[Signature | None] | None]
"""Called with every signature before it is sent; may return another one to send in its place."""

TaskHook = Callable[[TaskContext], Awaitable[None] | None]
"""Called before or after every run."""


def wrapped(middlewares: Sequence[Middleware], context: TaskContext, call: Call) -> Call:
    """The call with every middleware around it; the first one is the outermost."""
    for middleware in reversed(middlewares):
        call = _around(middleware, context, call)
    return call


def before_and_after(before: Sequence[TaskHook], after: Sequence[TaskHook]) -> Middleware:
    """Machinery's pre- and post-task hooks as one middleware. ``after`` is called on success and failure alike."""

    async def around(context: TaskContext, call: Call) -> Any:
        for hook in before:
            await finished(hook(context))
        try:
            return await call()
        finally:
            for hook in after:
                await finished(hook(context))

    return around


async def finished(value: Any) -> Any:
    """The value of a hook that may be a coroutine function or a plain one."""
    return await value if inspect.isawaitable(value) else value


def _around(middleware: Middleware, context: TaskContext, call: Call) -> Call:
    async def inner() -> Any:
        return await middleware(context, call)

    return inner
