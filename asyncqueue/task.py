"""A registered function: still callable, and three verbs to make it run elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypedDict, TypeVar, Unpack, cast, overload

from asyncqueue.clock import NANOSECONDS, Clock, to_nanoseconds
from asyncqueue.engine.registry import KEYWORDS_HEADER, Registered
from asyncqueue.errors import ArgumentError
from asyncqueue.result import AsyncResult
from asyncqueue.signature import Arg, Signature, TaskSignature

if TYPE_CHECKING:
    from asyncqueue.server import Server

P = ParamSpec("P")
R = TypeVar("R")


class SendOptions(TypedDict, total=False):
    """What ``with_`` changes about a send.

    ``eta`` is an aware datetime, ``countdown`` seconds (or a timedelta) from now: not both. ``queue`` is the routing
    key. ``priority`` is 0 to 255. ``retries`` is written to ``RetryCount``. ``task_id`` is a UUID of your own.
    ``on_success`` and ``on_error`` are signatures to send when the task has ended.
    """

    eta: datetime
    countdown: float | timedelta
    queue: str
    priority: int
    headers: Mapping[str, str]
    retries: int
    task_id: str
    on_success: Signature | tuple[Signature, ...]
    on_error: Signature | tuple[Signature, ...]
    immutable: bool
    message_group_id: str


@dataclass(frozen=True)
class Task(Generic[P, R]):
    """A task of a server: three verbs to make it run elsewhere. Calling it calls the function, here and now."""

    function: Callable[P, Any]
    registered: Registered
    server: Server
    options: SendOptions

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return self.registered.name

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send one run of the task with these arguments. Raises as ``Server.send_task`` does."""
        return await self.server.send_task(self.s(*args, **kwargs))

    def s(self, *args: Any, **kwargs: Any) -> TaskSignature[R]:
        """A signature of the task, to send later or to build with. Arguments may be missing at the end: a predecessor
        adds its results. Raises ``ArgumentError`` for arguments that can never fit."""
        wire_args, by_name = self.registered.arguments(args, kwargs)
        return cast(
            "TaskSignature[R]", make_signature(self.registered, wire_args, by_name, self.options, self.server.clock)
        )

    def si(self, *args: Any, **kwargs: Any) -> TaskSignature[R]:
        """A signature that hands none of its results on to its ``on_success`` signatures: Machinery's ``Immutable``."""
        return cast("TaskSignature[R]", self.s(*args, **kwargs).with_changes(immutable=True))

    def with_(self, **options: Unpack[SendOptions]) -> Self:
        """The same task with other options for its sends."""
        return replace(self, options={**self.options, **options})


class CoroutineTask(Task[P, R]):
    """A task made of a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        return cast("Coroutine[Any, Any, R]", self.function(*args, **kwargs))


class FunctionTask(Task[P, R]):
    """A task made of a plain function; workers run it in a thread."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, self.function(*args, **kwargs))


class Decorator(Protocol):
    """What ``server.task(...)`` gives: it takes a coroutine function or a plain one."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function too; the first match wins
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> FunctionTask[P, R]: ...


def make_signature(
    registered: Registered, args: tuple[Arg, ...], by_name: bool, options: SendOptions, clock: Clock
) -> Signature:
    """A signature of a registered task: its own options, overruled by those of the send."""
    own = registered.options
    headers: dict[str, Any] = dict(options.get("headers", {}))
    if by_name:
        headers[KEYWORDS_HEADER] = "1"
    return TaskSignature(
        uuid=options.get("task_id", ""),
        name=registered.name,
        routing_key=options.get("queue", own.queue or ""),
        eta=eta_of(options, clock),
        args=args,
        headers=headers or None,
        priority=options.get("priority", own.priority),
        immutable=options.get("immutable", False),
        retry_count=options.get("retries", own.retries),
        on_success=_several(options.get("on_success")),
        on_error=_several(options.get("on_error")),
        broker_message_group_id=options.get("message_group_id", ""),
        stop_task_deletion_on_error=own.stop_task_deletion_on_error,
        ignore_when_task_not_registered=own.ignore_when_not_registered,
    )


def eta_of(options: SendOptions, clock: Clock) -> int | None:
    """When (unix nanoseconds) a send is due; None: now. Raises ``ArgumentError`` for a naive datetime."""
    if "eta" in options and "countdown" in options:
        raise ArgumentError("eta and countdown are two ways to say one thing: give one of them")
    if "countdown" in options:
        countdown = options["countdown"]
        seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
        if not math.isfinite(seconds):
            raise ArgumentError(f"countdown must be a finite number of seconds, not {seconds}")
        return clock.now_ns() + int(seconds * NANOSECONDS)
    if "eta" not in options:
        return None
    try:
        return to_nanoseconds(options["eta"])
    except (ValueError, AttributeError) as exc:
        raise ArgumentError(f"eta: {exc}") from exc


def _several(signatures: Signature | tuple[Signature, ...] | None) -> tuple[Signature, ...] | None:
    return (signatures,) if isinstance(signatures, Signature) else signatures
