"""One delivery to one outcome: decode, check, look up, bind, call, judge."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asyncqueue import wire, workflow
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Delivery
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.compiling import continued
from asyncqueue.engine.context import Facilities, Replacement, TaskContext, enter
from asyncqueue.engine.events import Events, TaskFailed, TaskRetried, TaskStarted, TaskStuck, TaskSucceeded, TaskUnknown
from asyncqueue.engine.limit import TimeLimit
from asyncqueue.engine.messages import MAX_ERROR_TEXT, Rules, error_text
from asyncqueue.engine.middleware import Middleware, wrapped
from asyncqueue.engine.naming import name_problem, usable_task_id
from asyncqueue.engine.observing import Observers
from asyncqueue.engine.outcome import (
    Exhausted,
    Failed,
    NotMine,
    NotYet,
    Outcome,
    Over,
    Overdue,
    Replaced,
    Retry,
    Succeeded,
    Unreadable,
    judge,
    known_end,
)
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.registry import Bound, Registered, Registry, TaskOptions
from asyncqueue.engine.showings import Showings
from asyncqueue.engine.watching import Watcher
from asyncqueue.errors import ArgumentError, BadMessage, MessageTooLarge, NoBackend
from asyncqueue.go_compat import as_meant, problem_with_results
from asyncqueue.signature import Plan, Signature, header
from asyncqueue.state import TaskResult, TaskState
from asyncqueue.workflow import (
    BUILT_IN,
    CHECK_HEADER,
    COUNTDOWN_HEADER,
    FAILED_HEADER,
    PLAN_HEADER,
    Node,
    Workflow,
    attempt_of,
)


@dataclass(frozen=True, slots=True)
class Ran:
    """One delivery, what it said, and what came of it."""

    delivery: Delivery
    signature: Signature | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Host:
    """What a run tells whoever holds its message and its slot, and asks of them; by itself, nobody."""

    started: Callable[[Delivery, Signature, int], None] = lambda delivery, signature, attempt: None
    left_running: Callable[[Future[Any], str], None] = lambda thread, task_id: None
    is_given_up: Callable[[asyncio.Task[Any]], bool] = lambda run: run.cancelling() > 0
    showings: Showings | None = None
    facilities: Facilities | None = None


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
        host: Host,
        observers: Observers | None = None,
    ) -> None:
        self._registry = registry
        self._backend = backend
        self._watcher = None if backend is None else Watcher(backend, patience)
        self._clock = clock
        self._events = events
        self._patience = patience
        self._rules = rules
        self._is_beside_go = rules().go_compat
        self._max_deliveries = max_deliveries
        self._checks_due = longest_delay != float("inf")
        self._threads = threads
        self._middlewares = tuple(middlewares)
        self._observers = Observers(events) if observers is None else observers
        self._host = host
        self._unknown: set[str] = set()

    async def run(self, delivery: Delivery) -> Ran:
        """Everything from the bytes to the outcome. Raises ``CancelledError`` when its host has given it up, and
        ``Refused`` when the backend does not let a state be looked up."""
        try:
            signature = wire.decode_signature(delivery.body, self._rules().limits)
        except BadMessage as exc:
            return Ran(delivery, None, Unreadable(exc.reason, str(exc), _task_id_in(delivery)))
        if self._rules().go.prints_results:
            signature = as_meant(signature)
        problem = name_problem(signature, delivery.queue)
        if problem:
            return _misnamed(delivery, signature, problem)
        if delivery.attempt > 1 and delivery.attempt > self._max_deliveries():
            return Ran(delivery, signature, await self._exhausted(delivery, signature))
        if self._checks_due and signature.eta is not None:
            early = (signature.eta - self._clock.now_ns()) / NANOSECONDS
            if early > 0:
                return Ran(delivery, signature, NotYet(early))
        headers = signature.headers
        if signature.name in BUILT_IN or (headers and FAILED_HEADER in headers):
            return Ran(delivery, *await self._built_in(signature))
        registered = self._registry.find(signature.name)
        if registered is None:
            self._tell_unknown(signature.name, delivery.queue)
            return Ran(delivery, signature, NotMine())
        attempt = attempt_of(signature)
        if delivery.attempt > 1 or (headers and CHECK_HEADER in headers) or self._may_be_sent_twice(signature.uuid):
            state = await self._state_of(signature)
            known = known_end(state, signature, registered.options) if state is not None else None
            if known is not None:
                return Ran(delivery, signature, known)
        context = TaskContext(signature, delivery.queue, attempt, delivery.attempt, self._host.facilities)
        try:
            bound = registered.bind(signature)
        except ArgumentError as exc:
            unfit = Failed(str(exc)[:MAX_ERROR_TEXT])
            ended = self._observers.running(context)
            self._events.emit(TaskFailed(signature.uuid, signature.name, delivery.queue, unfit.error))
            ended(unfit, exc)
            return Ran(delivery, signature, unfit)
        if self._host.showings is not None:
            await self._host.showings.note(delivery, signature, attempt)
        self._host.started(delivery, signature, attempt)
        ran = await self._call(delivery, registered, bound, context)
        run = asyncio.current_task()
        if run is not None and run.cancelling():
            # what a task asked for as it ended would come to whoever goes on from here
            with suppress(asyncio.CancelledError):  # its outcome stands, even where it is ours
                await asyncio.sleep(0)
        return ran

    async def _call(self, delivery: Delivery, registered: Registered, bound: Bound, context: TaskContext) -> Ran:
        signature = context.signature
        ended = self._observers.running(context) if self._observers.is_watched else None
        outcome: Outcome | None = None
        error: BaseException | None = None
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
            if isinstance(value, Signature | Workflow):
                raise Replacement(value)  # as ctx.replace does
            try:
                results = registered.results_of(value)
            except ArgumentError as exc:
                raise exc.with_traceback(None) from None  # the task's own lines are over: ours tell nothing more
            if self._is_beside_go:
                self._check_for_go(signature, results)
            outcome = Succeeded(results)
        except Replacement as exc:
            outcome, error = await self._replaced(delivery, context, exc.workflow)
        except BaseException as exc:  # a task that calls sys.exit or cancels itself has failed, and its worker goes on
            if _is_cancelled(self._host.is_given_up):
                raise asyncio.CancelledError from exc  # it stumbled over our cancellation: that is not its own failure
            outcome, error = judge(exc, signature, registered.options), exc
            self._tell(outcome, delivery, signature, context.attempt, exc)
        else:
            if detailed:
                seconds = self._clock.monotonic() - began
                self._events.emit(TaskSucceeded(signature.uuid, signature.name, delivery.queue, seconds))
        finally:
            if ended is not None:
                ended(outcome, error)
            error = None  # its traceback knows this frame
            for thread in threads:
                self._tell_stuck(thread, signature)
        return Ran(delivery, signature, outcome)

    async def _built_in(self, signature: Signature) -> tuple[Signature, Outcome]:
        """A task of our own, or word that a task will never run; with the successors that its plan names."""
        failed = header(signature, FAILED_HEADER)
        plan_id = header(signature, PLAN_HEADER)
        if plan_id is not None:
            plan = await self._plan(plan_id)
            if plan is None:
                failed = failed or f"the plan of what follows it ({plan_id}) is gone: it has expired or was dropped"
            else:
                signature = signature.with_changes(on_success=plan.signatures)
        if failed is not None:
            return signature, Failed(failed[:MAX_ERROR_TEXT])
        match signature.name:
            case workflow.PASS:
                results = tuple(TaskResult(type=each.type, value=each.value) for each in signature.args or ())
                rules = self._rules()
                problem = problem_with_results(signature, results, rules.go, default_queue=rules.default_queue)
                return signature, Succeeded(results) if problem is None else Failed(problem)
            case workflow.DEADLINE | workflow.WATCH if signature.eta is None and attempt_of(signature) == 1:
                # a worker in Go sent it, who does not know that its time begins then
                return signature, Retry("sent early", float(header(signature, COUNTDOWN_HEADER) or 0), counts=False)
            case workflow.WATCH if self._watcher is not None:
                return await self._watcher.look(signature)
            case workflow.DEADLINE if signature.args and signature.chord_callback is not None:
                group_id = str(signature.args[0].value)
                error = f"group {group_id} was not complete within {header(signature, workflow.COUNTDOWN_HEADER)} s"
                return signature, Overdue(group_id, signature.chord_callback, error)
            case workflow.OVER if signature.group_uuid and signature.chord_callback is not None:
                return signature, Over(str(signature.args[0].value) if signature.args else "")
            case _:
                return signature, Succeeded(())

    def _may_be_sent_twice(self, task_id: str) -> bool:
        """Whether it is a callback that Go's client has named: it asks for no check, and Go may send it twice."""
        return self._is_beside_go and task_id.startswith("chord_")

    def _check_for_go(self, signature: Signature, results: Sequence[TaskResult]) -> None:
        rules = self._rules()
        problem = problem_with_results(signature, results, rules.go, default_queue=rules.default_queue)
        if problem is not None:
            raise ArgumentError(problem)

    async def _plan(self, plan_id: str) -> Plan | None:
        backend = self._backend
        if backend is None:
            return None
        try:
            (plan,) = await self._patience.insist("look up a plan", lambda: backend.get_plans([plan_id]))
        except BadMessage:
            return None
        return plan

    async def _replaced(
        self, delivery: Delivery, context: TaskContext, node: Node
    ) -> tuple[Outcome, BaseException | None]:
        """What the run means whose task goes on as a workflow, and why it cannot be one."""
        signature, backend, rules = context.signature, self._backend, self._rules()
        try:
            with self._observers.sending(node) as send:
                going_on = send.sent = continued(
                    signature,
                    send.work,
                    default_queue=context.queue,
                    limits=rules.limits,
                    attempt=context.attempt,
                    go=rules.go,
                    home=rules.default_queue,
                )
                for each in going_on.entries:
                    problem = self._registry.problem_for_go(each, rules.go, context.queue)
                    if problem is not None:
                        raise ArgumentError(problem)
                if backend is None and going_on.needs_backend:
                    raise NoBackend(f"{going_on.needs_backend}, and this worker has none")
        except (ArgumentError, MessageTooLarge, NoBackend) as exc:  # another run would find the same
            failed = Failed(error_text(exc))
            self._tell(failed, delivery, signature, context.attempt, exc)
            return failed, exc
        if going_on.kept and backend is not None:
            await self._patience.insist("write plans", lambda: backend.put_plans(going_on.kept))
        return Replaced(going_on.entries, going_on.plans), None

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
        stuck = TaskStuck(context.signature.uuid, context.signature.name)
        with TimeLimit(limit, goes_on=lambda: self._events.emit(stuck)):
            return await run()

    async def _in_thread(self, function: Callable[[], Any], threads: list[Future[Any]]) -> Any:
        context = contextvars.copy_context()
        future = self._threads.submit(context.run, _portably, function)
        threads.append(future)
        return await asyncio.wrap_future(future)

    def _tell_stuck(self, thread: Future[Any], signature: Signature) -> None:
        """A thread cannot be cancelled: one that outlives its run keeps its slot until it ends."""
        if not thread.done() and not thread.cancel():
            self._events.emit(TaskStuck(signature.uuid, signature.name))
            self._host.left_running(thread, signature.uuid)

    async def _exhausted(self, delivery: Delivery, signature: Signature) -> Outcome:
        """Shown too often; but its state may say that the task itself came to its end, and only its ack did not."""
        state = await self._state_of(signature)
        if state is not None and state.is_completed:
            known = known_end(state, signature, TaskOptions())
            if known is not None:
                return known
        return Exhausted(f"shown {delivery.attempt - 1} times without an end (limit {self._max_deliveries()})")

    async def _state_of(self, signature: Signature) -> TaskState | None:
        """What the backend knows of a message that may be a second copy."""
        backend = self._backend
        if backend is None:
            return None
        try:
            (state,) = await self._patience.insist("look up states", lambda: backend.get([signature.uuid]))
        except BadMessage:  # somebody wrote there what is no state: then nothing is known
            return None
        return state

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


def _task_id_in(delivery: Delivery) -> str:
    """The task UUID in bytes that are no signature, if it can be read and kept; else nothing."""
    task_id = wire.readable_task_id(delivery.body)
    return task_id if task_id and usable_task_id(task_id, delivery.queue) else ""


def _misnamed(delivery: Delivery, signature: Signature, problem: str) -> Ran:
    """Buried; who waits for the task is told all the same, by way of those names that can be used."""
    if not usable_task_id(signature.uuid, delivery.queue):
        return Ran(delivery, None, Unreadable("invalid_name", problem))
    own = signature.with_changes(on_success=None, on_error=None, chord_callback=None, routing_key=delivery.queue)
    own = own.with_changes(name=delivery.queue)
    usable = {
        part: getattr(signature, part)
        for part in ("on_error", "chord_callback")
        if name_problem(own.with_changes(**{part: getattr(signature, part)}), delivery.queue) is None
    }
    told = signature.with_changes(**{"on_success": None, "on_error": None, "chord_callback": None, **usable})
    return Ran(delivery, told, Unreadable("invalid_name", problem, signature.uuid))


def _portably(function: Callable[[], Any]) -> Any:
    """Two exceptions mean something else to whoever waits for a thread: a future cannot carry ``StopIteration``, and
    ``GeneratorExit`` closes the coroutine that it comes to."""
    try:
        return function()
    except (StopIteration, GeneratorExit) as exc:
        raise RuntimeError(f"the task raised {type(exc).__name__}") from exc


def _is_cancelled(says: Callable[[asyncio.Task[Any]], bool]) -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs: it is being thrown away with its loop
        return True
    return task is not None and says(task)
