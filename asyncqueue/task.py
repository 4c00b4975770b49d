"""A registered function: still callable, and three verbs to make it run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    final,
    overload,
)

from asyncqueue.builders import Chain, Link, TaskSignature
from asyncqueue.clock import Clock
from asyncqueue.engine.context import TaskContext, current_task
from asyncqueue.engine.registry import KEYWORDS_HEADER, Registered
from asyncqueue.errors import ArgumentError, ConfigError, shown
from asyncqueue.options import SendOptions, check_send_options, eta_of
from asyncqueue.result import AsyncResult
from asyncqueue.retry import Backoff, fibonacci
from asyncqueue.signature import Arg, Call, Signature, Typed

if TYPE_CHECKING:
    from asyncqueue.server import Server

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
H = TypeVar("H")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Task(Generic[P, R]):
    """A task of a server: three verbs to make it run elsewhere. Calling it calls the function, here and now."""

    function: Callable[..., Any]
    registered: Registered
    server: Server
    options: SendOptions

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return self.registered.name

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send one run of the task with these arguments. Raises as ``Server.send_task`` does."""
        return cast("AsyncResult[R]", await self.server.send_task(self.s(*args, **kwargs)))

    # What a signature still takes is known of tasks with few parameters, from how they can be sent.

    @overload
    def s(self: _TakesMany[A, R], *args: A) -> TaskSignature[R]: ...
    @overload
    def s(self: _TakesUpToOne[A, R]) -> TaskSignature[R, A | None]: ...
    @overload
    def s(self: _TakesOneOrTwo[A, B, R]) -> TaskSignature[R, A | tuple[A, B]]: ...
    @overload
    def s(self: _TakesOneOrTwo[A, B, R], first: A, /) -> TaskSignature[R, B | None]: ...
    @overload
    def s(self: _TakesOne[A, R]) -> TaskSignature[R, A]: ...
    @overload
    def s(self: _TakesTwo[A, B, R]) -> TaskSignature[R, tuple[A, B]]: ...
    @overload
    def s(self: _TakesTwo[A, B, R], first: A, /) -> TaskSignature[R, B]: ...
    @overload
    def s(self, *args: Any, **kwargs: Any) -> TaskSignature[R]: ...
    def s(self, *args: Any, **kwargs: Any) -> TaskSignature[Any]:
        """A signature of the task, to send later or to build with. Arguments may be missing at the end: a predecessor
        adds its results. Raises ``ArgumentError`` for arguments that can never fit."""
        wire_args, by_name = self.registered.arguments(args, kwargs)
        signature = make_signature(self.registered, wire_args, by_name, self.options, self.server.clock)
        return cast("TaskSignature[R]", signature.with_changes(sender=self.server))

    def si(self, *args: Any, **kwargs: Any) -> TaskSignature[R]:
        """A signature that takes nothing from the task before it, as an ``on_success`` of another one."""
        return cast("TaskSignature[R]", self.s(*args, **kwargs).with_changes(takes_nothing=True))

    def __or__(self, after: Link[B, H, R]) -> Chain[B, object, H]:
        return self.s() | after

    if TYPE_CHECKING:

        @overload
        def _typed(self: _TakesMany[A, R]) -> Typed[R, R, object]: ...
        @overload
        def _typed(self: _TakesUpToOne[A, R]) -> Typed[R, R, A | None]: ...
        @overload
        def _typed(self: _TakesOneOrTwo[A, B, R]) -> Typed[R, R, A | tuple[A, B]]: ...
        @overload
        def _typed(self: _TakesOne[A, R]) -> Typed[R, R, A]: ...
        @overload
        def _typed(self: _TakesTwo[A, B, R]) -> Typed[R, R, tuple[A, B]]: ...
        @overload
        def _typed(self: _TakesThree[R]) -> Typed[R, R, object]: ...
        @overload
        def _typed(self: _TakesFour[R]) -> Typed[R, R, object]: ...
        def _typed(self) -> Any: ...

    def with_(self, **options: Unpack[SendOptions]) -> Self:
        """The same task with other options for its sends. Raises ``ArgumentError`` for one that there is not, or that
        cannot be so."""
        check_send_options(self.name, options)
        return replace(self, options={**self.options, **options})

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call the function; one that wants a context gets that of the task it is called in, or one of its own."""
        if self.registered.context_parameter is not None:
            args, kwargs = self.registered.with_context(args, kwargs, self._context(args, kwargs))
        return self.function(*args, **kwargs)

    def _context(self, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskContext:
        try:
            return current_task()
        except LookupError:
            return TaskContext(self.s(*args, **kwargs), queue="", attempt=1, deliveries=1)


class CoroutineTask(Task[P, R]):
    """A task made of a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        return cast("Coroutine[Any, Any, R]", self._call(args, kwargs))


class FunctionTask(Task[P, R]):
    """A task made of a plain function; workers run it in a thread."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, self._call(args, kwargs))


_Sent: TypeAlias = Coroutine[Any, Any, AsyncResult[R_co]]


class _TakesMany(Protocol[A_contra, R_co]):
    @overload
    def send(self, a: A_contra, /) -> _Sent[R_co]: ...
    @overload
    def send(
        self, a: A_contra, b: A_contra, c: A_contra, d: A_contra, e: A_contra, f: A_contra, g: A_contra, /
    ) -> _Sent[R_co]: ...


class _TakesUpToOne(Protocol[A_contra, R_co]):
    @overload
    def send(self) -> _Sent[R_co]: ...
    @overload
    def send(self, a: A_contra, /) -> _Sent[R_co]: ...


class _TakesOneOrTwo(Protocol[A_contra, B_contra, R_co]):
    @overload
    def send(self, a: A_contra, /) -> _Sent[R_co]: ...
    @overload
    def send(self, a: A_contra, b: B_contra, /) -> _Sent[R_co]: ...


class _TakesOne(Protocol[A_contra, R_co]):
    def send(self, a: A_contra, /) -> _Sent[R_co]: ...


class _TakesTwo(Protocol[A_contra, B_contra, R_co]):
    def send(self, a: A_contra, b: B_contra, /) -> _Sent[R_co]: ...


class _TakesThree(Protocol[R_co]):
    def send(self, a: Any, b: Any, c: Any, /) -> _Sent[R_co]: ...


class _TakesFour(Protocol[R_co]):
    def send(self, a: Any, b: Any, c: Any, d: Any, /) -> _Sent[R_co]: ...


@final
class _Stranger:
    """Nobody's class: a parameter that takes it takes anything."""


class TaskDecorator:
    """``@server.task`` or ``@server.task(retries=5, timeout=30)``: registers a function as a task.

    ``name`` is the function's own name unless said otherwise. ``retries`` is how often a run that raised one of
    ``retry_on`` is repeated, after waits (seconds) that ``backoff`` decides: Machinery's Fibonacci numbers, or a
    name such as ``"exponential"`` or ``"fixed:5"``. ``timeout`` is the time limit of one run in seconds.
    ``retry_later_limit`` caps the runs of a task that raises ``RetryTaskLater``. ``queue`` and ``priority`` hold for
    its sends.

    A context comes first: of a function whose first parameter is a ``TaskContext``, the others are the parameters of
    the task, for type checkers too. Raises ``ConfigError`` where the function or an option cannot work.
    """

    def __init__(self, register: Callable[..., Task[..., Any]], options: Mapping[str, Any]) -> None:
        self._register = register
        self._options = options

    # The first match wins, and a parameter that takes anything would also take a context: such functions come first,
    # and their parameters are not checked. A coroutine function is a function too, so it comes before one.

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the order decides
        self, function: Callable[Concatenate[_Stranger, ...], Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[..., R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[_Stranger, ...], R], /) -> FunctionTask[..., R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the order decides
        self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> FunctionTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the order decides
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> FunctionTask[P, R]: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        retries: int = 0,
        retry_on: tuple[type[BaseException], ...] | type[BaseException] = (Exception,),
        backoff: Backoff | str = fibonacci,
        timeout: float | None = None,
        retry_later_limit: int | None = None,
        priority: int = 0,
        ignore_when_not_registered: bool = False,
        stop_task_deletion_on_error: bool = False,
    ) -> TaskDecorator: ...
    def __call__(self, function: Callable[..., Any] | None = None, /, **changes: Any) -> Any:
        options = {**self._options, **changes}
        if function is None:
            return TaskDecorator(self._register, options)
        name = options.pop("name", None)
        return self._register(_own_name(function) if name is None else name, function, **options)


def _own_name(function: Callable[..., Any]) -> str:
    """What a function is called. Raises ``ConfigError`` for what has no name of its own."""
    name = function.name if isinstance(function, Task) else getattr(function, "__name__", "")
    if name in ("", "<lambda>"):
        raise ConfigError(
            f"server.task: {shown(function)} has no name of its own; expected server.task(name=…)(function)"
        )
    return str(name)


def make_signature(
    registered: Registered, args: tuple[Arg, ...], by_name: bool, options: SendOptions, clock: Clock
) -> Signature:
    """A signature of a registered task: its own options, overruled by those of the send."""
    own = registered.options
    headers: dict[str, Any] = dict(options.get("headers", {}))
    if by_name:
        headers[KEYWORDS_HEADER] = "1"
    successors = _several(options.get("on_success"))
    return TaskSignature(
        uuid=options.get("task_id", ""),
        name=registered.name,
        routing_key=options.get("queue", own.queue or ""),
        eta=eta_of(registered.name, options, clock),
        args=args,
        headers=headers or None,
        priority=options.get("priority", own.priority),
        immutable=options.get("immutable", False) or _keeps_results_back(registered.name, successors),
        retry_count=options.get("retries", own.retries),
        on_success=successors,
        on_error=_several(options.get("on_error")),
        broker_message_group_id=options.get("message_group_id", ""),
        stop_task_deletion_on_error=own.stop_task_deletion_on_error,
        ignore_when_task_not_registered=own.ignore_when_not_registered,
    )


def _keeps_results_back(name: str, successors: tuple[Signature, ...] | None) -> bool:
    """Whether the successors take nothing. Raises ``ArgumentError`` where some do and some do not: Machinery's
    ``Immutable`` stands on the task before them, and speaks for them all."""
    kinds = {isinstance(each, Call) and each.takes_nothing for each in successors or ()}
    if len(kinds) > 1:
        raise ArgumentError(
            f"task {name}: on_success mixes signatures that take its results (s) with ones that do not (si)"
        )
    return True in kinds


def _several(signatures: Signature | tuple[Signature, ...] | None) -> tuple[Signature, ...] | None:
    return (signatures,) if isinstance(signatures, Signature) else signatures
