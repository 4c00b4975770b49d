"""One delivery to one outcome: decode, check, look up, bind, call, judge."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from asyncqueue import names, wire
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Delivery
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.engine.context import TaskContext, enter
from asyncqueue.engine.events import Events, TaskFailed, TaskRetried, TaskStarted, TaskStuck, TaskSucceeded, TaskUnknown
from asyncqueue.engine.middleware import Middleware, wrapped
from asyncqueue.engine.outcome import (
    ATTEMPT_HEADER,
    CHECK_HEADER,
    MAX_ERROR_TEXT,
    Exhausted,
    Failed,
    NotMine,
    NotYet,
    Outcome,
    Retry,
    Rules,
    Succeeded,
    Superseded,
    Unreadable,
    attempt_of,
    judge,
)
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.registry import Bound, Registered, Registry
from asyncqueue.errors import ArgumentError, BadMessage
from asyncqueue.models import made
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState

_RAISED_BY_TASKS = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)
"""What ends a task and not its worker: a task that calls ``sys.exit`` has failed, that is all."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One delivery, what it said, and what came of it."""

    delivery: Delivery
    signature: Signature | None
    outcome: Outcome


class Execution:
    """Runs deliveries. Knows the tasks, and of the stores only the backend, to look a second copy up."""

    def __init__(
        self,
        registry: Registry,
        backend: Backend | None,
        *,
        clock: Clock,
        events: Events,
        patience: Patience,
        rules: Callable[[], Rules],
        max_deliveries: Callable[[], int],
        longest_delay: float,
        threads: ThreadPoolExecutor,
        middlewares: Sequence[Middleware] = (),
        started: Callable[[Delivery, Signature, int], None] = lambda delivery, signature, attempt: None,
        left_running: Callable[[Future[Any], str], None] = lambda thread, task_id: None,
    ) -> None:
        self._registry = registry
        self._backend = backend
        self._clock = clock
        self._events = events
        self._patience = patience
        self._rules = rules
        self._max_deliveries = max_deliveries
        self._checks_due = longest_delay != float("inf")
        self._threads = threads
        self._middlewares = tuple(middlewares)
        self._started = started
        self._left_running = left_running
        self._unknown: set[str] = set()

    async def run(self, delivery: Delivery) -> Ran:
        """Everything from the bytes to the outcome. Raises only ``CancelledError``, when somebody cancels it."""
        try:
            signature = wire.decode_signature(delivery.body, self._rules().limits)
        except BadMessage as exc:
            return Ran(delivery, None, Unreadable(exc.reason, str(exc), wire.readable_task_id(delivery.body) or ""))
        problem = _name_problem(signature, delivery.queue)
        if problem:
            return Ran(delivery, None, Unreadable("invalid_name", problem))
        if delivery.attempt > 1 and delivery.attempt > self._max_deliveries():
            error = f"shown {delivery.attempt - 1} times without an end (limit {self._max_deliveries()})"
            return Ran(delivery, signature, Exhausted(error))
        if self._checks_due and signature.eta is not None:
            early = (signature.eta - self._clock.now_ns()) / NANOSECONDS
            if early > 0:
                return Ran(delivery, signature, NotYet(early))
        registered = self._registry.find(signature.name)
        if registered is None:
            self._tell_unknown(signature.name, delivery.queue)
            return Ran(delivery, signature, NotMine())
        headers = signature.headers
        attempt = attempt_of(signature) if headers and ATTEMPT_HEADER in headers else 1
        if delivery.attempt > 1 or (headers and CHECK_HEADER in headers):
            known = await self._known_end(signature, attempt, registered)
            if known is not None:
                return Ran(delivery, signature, known)
        try:
            bound = registered.bind(signature)
        except ArgumentError as exc:
            error = str(exc)[:MAX_ERROR_TEXT]
            self._events.emit(TaskFailed(signature.uuid, signature.name, delivery.queue, error))
            return Ran(delivery, signature, Failed(error))
        self._started(delivery, signature, attempt)
        context = TaskContext(signature, delivery.queue, attempt, delivery.attempt)
        return await self._call(delivery, registered, bound, context)

    async def _call(self, delivery: Delivery, registered: Registered, bound: Bound, context: TaskContext) -> Ran:
        signature = context.signature
        detailed = self._events.detailed
        if detailed:
            self._events.emit(TaskStarted(signature.uuid, signature.name, delivery.queue, context.attempt))
        began = self._clock.monotonic() if detailed else 0.0
        enter(context)
        args, kwargs = bound.args, bound.kwargs
        if registered.context_parameter is not None:
            args, kwargs = registered.with_context(args, kwargs, context)
        threads: list[Future[Any]] = []
        try:
            if registered.is_async and not self._middlewares and registered.options.timeout is None:
                value = await registered.function(*args, **kwargs)
            else:
                value = await self._wrapped(registered, args, kwargs, context, threads)
            outcome: Outcome = Succeeded(registered.results_of(value))
        except asyncio.CancelledError as exc:
            if _is_cancelled():
                raise
            outcome = judge(exc, signature, registered.options)  # the task raised it by itself
            self._tell(outcome, delivery, signature, context.attempt, exc)
        except _RAISED_BY_TASKS as exc:
            outcome = judge(exc, signature, registered.options)
            self._tell(outcome, delivery, signature, context.attempt, exc)
        else:
            if detailed:
                seconds = self._clock.monotonic() - began
                self._events.emit(TaskSucceeded(signature.uuid, signature.name, delivery.queue, seconds))
        finally:
            for thread in threads:
                self._tell_stuck(thread, signature)
        return Ran(delivery, signature, outcome)

    async def _wrapped(
        self,
        registered: Registered,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: TaskContext,
        threads: list[Future[Any]],
    ) -> Any:
        async def call() -> Any:
            if registered.is_async:
                return await registered.function(*args, **kwargs)
            return await self._in_thread(lambda: registered.function(*args, **kwargs), threads)

        limit = registered.options.timeout
        run = wrapped(self._middlewares, context, call)
        if limit is None:
            return await run()
        try:
            async with asyncio.timeout(limit) as scope:
                return await run()
        except TimeoutError:
            if scope.expired():
                raise TimeoutError(f"ran over its time limit of {limit:g} s") from None
            raise

    async def _in_thread(self, function: Callable[[], Any], threads: list[Future[Any]]) -> Any:
        context = contextvars.copy_context()
        future = self._threads.submit(context.run, function)
        threads.append(future)
        return await asyncio.wrap_future(future)

    def _tell_stuck(self, thread: Future[Any], signature: Signature) -> None:
        """A thread cannot be cancelled: one that outlives its run keeps its slot until it ends."""
        if not thread.done() and not thread.cancel():
            self._events.emit(TaskStuck(signature.uuid, signature.name))
            self._left_running(thread, signature.uuid)

    async def _known_end(self, signature: Signature, attempt: int, registered: Registered) -> Outcome | None:
        """What the backend already knows of a message that may be a second copy."""
        if self._backend is None:
            return None
        backend = self._backend
        (state,) = await self._patience.insist("look up states", lambda: backend.get([signature.uuid]))
        if state is None:
            return None
        recorded = state.attempt or 1
        match state.state:
            case State.SUCCESS:
                return Succeeded(state.results or ())
            case State.FAILURE:
                return Failed(state.error)
            case _ if recorded > attempt:
                return Superseded(recorded, registered.options.backoff(attempt, signature.retry_timeout))
            case _:
                return None

    def _tell(
        self, outcome: Outcome, delivery: Delivery, signature: Signature, attempt: int, error: BaseException
    ) -> None:
        match outcome:
            case Failed(text):
                self._events.emit(TaskFailed(signature.uuid, signature.name, delivery.queue, text, error))
            case Retry(text, delay, _):
                self._events.emit(TaskRetried(signature.uuid, signature.name, delivery.queue, text, delay, attempt + 1))
            case _:
                pass

    def _tell_unknown(self, name: str, queue: str) -> None:
        if name not in self._unknown and len(self._unknown) < 1_000:
            self._unknown.add(name)
            self._events.emit(TaskUnknown(name, queue))


def started_state(signature: Signature, attempt: int) -> TaskState:
    """The STARTED state of a run."""
    return made(
        TaskState,
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.STARTED,
        attempt=attempt if attempt > 1 else 0,
    )


def _name_problem(signature: Signature, queue: str) -> str | None:
    """UUIDs and queues become keys of the stores as they are: one that is somebody else's key would destroy it."""
    if signature.uuid == queue or signature.uuid == signature.routing_key:
        return f"task UUID {signature.uuid!r} is the name of a queue"
    routed = signature.routing_key
    return (
        names.task_id_problem(signature.uuid)
        or names.task_name_problem(signature.name)
        or (names.queue_problem(routed) if routed and routed != queue else None)
    )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
