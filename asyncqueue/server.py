"""The front of the house: tasks are registered here, sent from here, and their results asked for here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast, get_args, overload

from asyncqueue import names
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker
from asyncqueue.builders import Chain, Chord, Group, TaskSignature, owner_of, part_of
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock, to_datetime
from asyncqueue.compiling import NewId, compiled
from asyncqueue.config import Settings, from_env, from_yaml
from asyncqueue.engine.events import checked_hook
from asyncqueue.engine.middleware import Middleware, PublishHook
from asyncqueue.engine.observing import Observer
from asyncqueue.engine.periodic import Missed, Office, Overlap, PeriodicTask, Scheduler, Timetable
from asyncqueue.engine.registry import (
    KEYWORDS_HEADER,
    TaskOptions,
    register,
    untyped_args,
    untyped_value_of,
)
from asyncqueue.errors import ArgumentError, ConfigError, NoBackend, shown
from asyncqueue.inspectable import Inspectable
from asyncqueue.locks.base import Lock
from asyncqueue.options import task_options, whole
from asyncqueue.result import AsyncResult, Results
from asyncqueue.schedule import LONGEST_WAIT, parse
from asyncqueue.signature import Signature
from asyncqueue.state import TaskResult
from asyncqueue.stores import Choice, Connected
from asyncqueue.task import CoroutineTask, FunctionTask, Task, TaskDecorator, make_signature
from asyncqueue.workflow import (
    PASS,
    Compiled,
    Join,
    Node,
    Outline,
    Parallel,
    Series,
    Workflow,
)
from asyncqueue.workflow_results import (
    ChainResult,
    ChordResult,
    GroupResult,
    WorkflowResult,
    reopened_chain,
    reopened_chord,
    reopened_group,
    workflow_result,
)

P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W")


class Server(Inspectable):
    """Tasks, a broker, and a backend for results.

    ``Server("sqlite:///tasks.db")`` is broker, backend and lock in one; ``broker=``, ``backend=`` and ``lock=`` say
    them apart, as URLs or as drivers of your own. ``backend="null"`` keeps no results. Everything else is
    ``settings``. Nothing is connected before it is used; a server that is used in another event loop or another
    process connects anew there. Raises ``ConfigError`` for what cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        broker: str | Broker | None = None,
        backend: str | Backend | None = None,
        lock: str | Lock | None = None,
        settings: Settings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(Choice(url, broker, backend, lock), Settings() if settings is None else settings, clock)
        self.timetable = Timetable()
        self._results = Results(self._backend, self._value_of, patience=self._patience)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A server as ``settings`` describe it. Raises ``ConfigError``."""
        return cls(settings=settings)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, reload: bool = False) -> Self:
        """A server as a YAML file describes it, with Machinery's key names.

        With ``reload``, a worker of this server looks at the file every ten seconds and takes up what can be taken up
        while it runs. Raises ``ConfigError``.
        """
        server = cls.from_settings(from_yaml(path))
        server._stores.reload_path = Path(path) if reload else None
        return server

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A server as environment variables describe it, with Machinery's names. Raises ``ConfigError``."""
        return cls.from_settings(from_env(environ))

    def __repr__(self) -> str:
        return f"<Server {self.broker_address} with {len(self.registry.names())} tasks>"

    # — tasks —

    @property
    def task(self) -> TaskDecorator:
        """Register a function as a task: ``@server.task`` or ``@server.task(retries=5, timeout=30)``."""
        return TaskDecorator(self.register_task, {})

    def register_task(self, name: str, function: Callable[..., Any] | Task[..., Any], **options: Any) -> Task[..., Any]:
        """Register a function under a name, with the options of ``task``.

        ``server.task(name=name)(function)`` is the same, with types. A function that is registered again replaces what
        it was. Raises ``ConfigError`` where the function cannot be a task, or another one has the name.
        """
        function = _function_of(function)
        registered = register(name, function, task_options(name, options))
        self.registry.add(registered)
        kind = CoroutineTask if registered.is_async else FunctionTask
        return kind(function, registered, self, {})

    def register_tasks(self, tasks: Mapping[str, Callable[..., Any] | Task[..., Any]]) -> None:
        """Register several functions by name: all of them, or none. Raises as ``register_task`` does."""
        self.registry.add(*(register(name, _function_of(each), TaskOptions()) for name, each in tasks.items()))

    def is_task_registered(self, name: str) -> bool:
        """Whether a task of that name is registered here."""
        return self.registry.find(name) is not None

    def registered_task_names(self) -> Sequence[str]:
        """The names of the tasks registered here, sorted."""
        return self.registry.names()

    def add_middleware(self, middleware: Middleware) -> None:
        """Wrap every run of every worker of this server; the first one added is the outermost."""
        self.middlewares.append(checked_hook("add_middleware", middleware))

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of everything that this server sends and its workers run: for tracing and metrics."""
        self.observers.add(observer)

    def before_publish(self, hook: PublishHook) -> PublishHook:
        """Call ``hook`` with every signature before it is sent (usable as a decorator); it may return another one."""
        self._publish_hooks.append(checked_hook("before_publish", hook))
        return hook

    # — sending —

    @overload
    async def send_task(self, task: TaskSignature[R, None], /) -> AsyncResult[R]: ...
    @overload
    async def send_task(self, task: Signature, /) -> AsyncResult[Any]: ...
    @overload
    async def send_task(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...
    @overload
    async def send_task(self, task: str, /, *args: Any, **kwargs: Any) -> AsyncResult[Any]: ...
    async def send_task(self, task: Signature | Task[Any, Any] | str, /, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send one task: a signature, a task with its arguments, or a name with arguments.

        Returns when the broker has it. Raises ``ArgumentError`` (also for a name that is registered here and
        arguments that do not fit it), ``MessageTooLarge``, ``Refused``, ``Unavailable``, and ``PublishUnknown`` when
        the broker went away and may have it: sending the same signature again is safe.
        """
        signature = self.signature(task, *args, **kwargs)
        (result,) = await self.send_many([signature])
        return result

    def signature(self, task: Signature | Task[Any, Any] | str, /, *args: Any, **kwargs: Any) -> Signature:
        """What ``send_task`` with the same arguments would send: for ``send_many``, for callbacks. Raises
        ``ArgumentError``."""
        if isinstance(task, Signature):
            if args or kwargs:
                raise ArgumentError(f"task {task.name}: a signature carries its own arguments")
            return task
        if isinstance(task, Task):
            return task.s(*args, **kwargs)
        given: Any = task  # whoever has no type checker gives anything
        if not isinstance(given, str):
            return _one_task(given, "send_task")
        registered = self.registry.find(task)
        if registered is not None:
            wire_args, by_name = registered.arguments(args, kwargs)
            return make_signature(registered, wire_args, by_name, {}, self.clock)
        try:
            untyped = untyped_args((*args, *kwargs.values()))
        except ArgumentError as exc:
            raise ArgumentError(f"task {task}, {exc}") from exc
        named = (arg.model_copy(update={"name": name}) for name, arg in zip(kwargs, untyped[len(args) :], strict=True))
        headers = {KEYWORDS_HEADER: "1"} if kwargs else None
        return Signature(name=task, args=(*untyped[: len(args)], *named), headers=headers)

    @overload
    async def send_many(self, signatures: Iterable[TaskSignature[R, None]]) -> list[AsyncResult[R]]: ...
    @overload
    async def send_many(self, signatures: Iterable[Signature]) -> list[AsyncResult[Any]]: ...
    async def send_many(self, signatures: Iterable[Signature]) -> list[AsyncResult[Any]]:
        """Send many signatures in as few round trips as can be; results in the same order.

        All are checked before the first one is sent. Raises as ``send_task`` does.
        """
        signatures = _tasks(signatures)
        if self.observers.is_watched:
            connected, sent = await self._observed(signatures)
        else:
            connected = await self.connected()
            sent = await connected.publisher.send(signatures)
        if connected.eager is not None:
            await connected.eager.run()
        return [AsyncResult(signature.uuid, self._results, signature=signature, is_sent=True) for signature in sent]

    async def _observed(self, signatures: Iterable[Signature]) -> tuple[Connected, Sequence[Signature]]:
        """Each one is a send of its own to observers, however many leave together."""
        with ExitStack() as stack:
            sends = [stack.enter_context(self.observers.sending(each)) for each in signatures]
            connected = await self.connected()
            sent = await connected.publisher.send([send.work for send in sends])
            for send, each in zip(sends, sent, strict=True):
                send.sent = Compiled((each,), (), Outline("task", each.uuid, each.name))
        return connected, sent

    # — sending workflows —

    @overload
    async def send(self, work: TaskSignature[R, None], /, concurrency: int = 0) -> AsyncResult[R]: ...
    @overload
    async def send(self, work: Signature, /, concurrency: int = 0) -> AsyncResult[Any]: ...
    @overload
    async def send(self, work: Chain[R], /, concurrency: int = 0) -> ChainResult[R]: ...
    @overload
    async def send(self, work: Group[R], /, concurrency: int = 0) -> GroupResult[R]: ...
    @overload
    async def send(self, work: Chord[R], /, concurrency: int = 0) -> ChordResult[R]: ...
    async def send(self, work: Signature | Workflow, /, concurrency: int = 0) -> AsyncResult[Any] | WorkflowResult[Any]:
        """Send a task, a chain, a group or a chord.

        Groups, plans and the PENDING states of all tasks are written before the first message is published.
        ``concurrency`` is how many messages are handed to the broker at once; 0: all of them, and where broker and
        backend are one store, everything in one step. Raises ``ArgumentError`` for what cannot be a workflow, before
        anything is sent; ``NoBackend`` for a group, a chord or a very long chain where no results are kept; else as
        ``send_task`` does.
        """
        work = part_of(work, "send")
        if isinstance(work, Signature):
            return await self.send_task(work)
        return await self._send(work, concurrency)

    async def send_chain(self, chain: Chain[R]) -> ChainResult[R]:
        """Send a chain. Raises as ``send`` does."""
        return cast("ChainResult[R]", await self._send(_expected(chain, Series, "chain"), 0))

    async def send_group(self, group: Group[R], concurrency: int = 0) -> GroupResult[R]:
        """Send a group, ``concurrency`` messages at once. Raises as ``send`` does."""
        return cast("GroupResult[R]", await self._send(_expected(group, Parallel, "group"), concurrency))

    async def send_chord(self, chord: Chord[R], concurrency: int = 0) -> ChordResult[R]:
        """Send a chord, ``concurrency`` messages at once. Raises as ``send`` does."""
        return cast("ChordResult[R]", await self._send(_expected(chord, Join, "chord"), concurrency))

    async def _send(self, workflow: Workflow, concurrency: int) -> WorkflowResult[Any]:
        at_once = _bound(concurrency)
        with self.observers.sending(workflow, at_once) as send:
            work = self._compiled(send.work)
            connected = await self.connected()
            await connected.publisher.send_workflow(work, at_once)
            send.sent = work
        if connected.eager is not None:
            await connected.eager.run()
        return workflow_result(work.outline, self._results)

    def _compiled(self, workflow: Node, new_id: NewId | None = None) -> Compiled:
        owner_of(workflow)  # a workflow of tasks of several servers is a mistake
        settings, limits = self.settings, self.rules().limits
        work = compiled(
            workflow, default_queue=settings.default_queue, limits=limits, new_id=new_id, go=self.rules().go
        )
        if not self._stores.keeps_results and work.needs_backend:
            raise NoBackend(f"{work.needs_backend}, and this server has none")
        return work

    # — results —

    def result(self, task_id: str) -> AsyncResult[Any]:
        """A handle on a task that was sent elsewhere or before, by its UUID."""
        return AsyncResult(_uuid(task_id), self._results)

    async def chain_result(self, chain_id: str) -> ChainResult[Any]:
        """A handle on a chain that was sent elsewhere or before, by its ``id``: the UUID of its last link, be that a
        task or a group. Raises ``NoBackend``, and ``ResultUnknown`` where there is no entry."""
        return await reopened_chain(_uuid(chain_id), self._results)

    async def group_result(self, group_id: str) -> GroupResult[Any]:
        """A handle on a group that was sent elsewhere or before, by its UUID. Raises as ``chain_result`` does."""
        return await reopened_group(_uuid(group_id), self._results)

    async def chord_result(self, callback_id: str) -> ChordResult[Any]:
        """A handle on a chord that was sent elsewhere or before, by its ``id``: the UUID of its callback. Where the
        callback is a workflow, nothing is known of the group. Raises as ``chain_result`` does."""
        return await reopened_chord(_uuid(callback_id), self._results)

    async def _backend(self) -> Backend | None:
        return (await self.connected()).backend

    def _patience(self, backend: Backend) -> float:
        return self.settings.publish_timeout if self._stores.is_open(backend) else 0.0

    def _value_of(self, name: str, results: Sequence[TaskResult]) -> Any:
        if name == PASS:  # it collects what others returned: there is one value for each
            return [untyped_value_of([each]) for each in results]
        registered = self.registry.find(name)
        if registered is not None:
            with suppress(ArgumentError):  # it went on as a task that returns something else
                return registered.value_of(results)
        return untyped_value_of(results)

    # — periodic tasks —

    async def register_periodic_task(
        self,
        spec: str,
        name: str,
        task: Signature | Task[Any, Any] | str,
        *,
        missed: Missed = "skip",
        overlap: Overlap = "allow",
    ) -> None:
        """Machinery's verb for ``schedule``, which see."""
        self.schedule(spec, name, task, missed=missed, overlap=overlap)

    async def register_periodic_chain(
        self, spec: str, name: str, chain: Chain, *, missed: Missed = "skip", overlap: Overlap = "allow"
    ) -> None:
        """Machinery's verb for ``schedule`` with a chain, which see."""
        self.schedule(spec, name, _expected(chain, Series, "chain"), missed=missed, overlap=overlap)

    async def register_periodic_group(
        self,
        spec: str,
        name: str,
        group: Group,
        *,
        concurrency: int = 0,
        missed: Missed = "skip",
        overlap: Overlap = "allow",
    ) -> None:
        """Machinery's verb for ``schedule`` with a group, which see."""
        work = _expected(group, Parallel, "group")
        self.schedule(spec, name, work, concurrency=concurrency, missed=missed, overlap=overlap)

    async def register_periodic_chord(
        self,
        spec: str,
        name: str,
        chord: Chord,
        *,
        concurrency: int = 0,
        missed: Missed = "skip",
        overlap: Overlap = "allow",
    ) -> None:
        """Machinery's verb for ``schedule`` with a chord, which see."""
        work = _expected(chord, Join, "chord")
        self.schedule(spec, name, work, concurrency=concurrency, missed=missed, overlap=overlap)

    def schedule(
        self,
        spec: str,
        name: str,
        work: Signature | Task[Any, Any] | Workflow | str,
        *,
        concurrency: int = 0,
        missed: Missed = "skip",
        overlap: Overlap = "allow",
    ) -> None:
        """Send a task or a workflow whenever ``spec`` says, while a worker of this server runs: once, however many do.

        ``spec`` is five cron fields, ``@hourly`` and the like, or ``@every 30s``, with ``CRON_TZ=Europe/Paris`` in
        front where another zone than the local one is meant. Each occurrence is a fresh copy; ETAs and UUIDs in it do
        not count. ``concurrency`` is how many of its messages are handed to the broker at once; 0: all. ``missed``
        says which occurrences are sent that came due while no worker ran: none (``"skip"``), the latest (``"last"``)
        or ``"all"``. With ``overlap="skip"`` an occurrence is left out while the one before it has not ended.

        Nothing is connected. Raises ``ConfigError`` for a spec that is wrong or never fires, and for a name that has
        another spec already; ``ArgumentError`` for arguments that do not fit a task, and for what cannot be a workflow;
        ``NoBackend`` for a group or a chord where no results are kept.
        """
        _check_periodic(name, missed, overlap)
        if overlap == "skip" and not self._stores.keeps_results:
            raise ConfigError(f"schedule {name!r}: overlap='skip' looks at results, and this server keeps none")
        node = work if isinstance(work, Workflow) else self.signature(work)
        schedule = parse(spec)
        task = PeriodicTask(name, spec, schedule, node, missed, overlap, _bound(concurrency))
        self._check_occurrence(task)
        if schedule.next_after(self.clock.now_ns() / NANOSECONDS) is None:
            raise ConfigError(f"schedule {name!r}: {spec!r} never fires in the next {LONGEST_WAIT} years")
        self.timetable.add(task)

    def unregister_periodic_task(self, name: str) -> bool:
        """Send no more occurrences from this process; whether there was a schedule of that name. What was sent runs."""
        return self.timetable.remove(name)

    def schedules(self) -> Sequence[PeriodicTask]:
        """The schedules registered here, by name."""
        return self.timetable.tasks()

    def next_times(self, name: str, count: int = 1) -> list[datetime]:
        """When the schedule of that name is due next (UTC). Raises ``ConfigError`` where there is none."""
        task = next((each for each in self.schedules() if each.name == name), None)
        if task is None:
            raise ConfigError(f"no schedule is called {name!r}")
        times = task.next_times(self.clock.now_ns() / NANOSECONDS, count)
        return [to_datetime(at * NANOSECONDS) for at in times]

    def scheduler(self) -> Scheduler:
        """What keeps the schedules in this event loop; a worker runs one."""
        return Scheduler(self.timetable, self._office, events=self.events, patience=self.patience)

    def _check_occurrence(self, task: PeriodicTask) -> None:
        entries = task.occurrence(self.settings.program, 0, self._compiled).entries
        if not entries:
            raise ArgumentError(f"schedule {task.name!r}: a workflow without a task is nothing to send")
        for each in entries:
            registered = self.registry.find(each.name)
            if registered is not None:
                registered.bind(each)
            problem = self.registry.problem_for_go(each, self.rules().go, self.settings.default_queue)
            if problem is not None:
                raise ArgumentError(f"schedule {task.name!r}: {problem}")

    async def _office(self, owner: str) -> Office:
        lock, connected = await self.turn_lock(), await self.connected()
        return Office(
            lock,
            connected.publisher,
            connected.backend,
            self.clock,
            self.events,
            self.patience,
            self._compiled,
            self.settings.program,
            owner,
            self.observers,
        )


def _function_of(given: Callable[..., Any] | Task[..., Any]) -> Callable[..., Any]:
    return given.function if isinstance(given, Task) else given  # it may be a task of another server


def _tasks(given: Any) -> list[Signature]:
    if isinstance(given, Signature) or not isinstance(given, Iterable):
        raise ArgumentError(f"send_many: expected a list of signatures, not {shown(given)}")
    return [each if isinstance(each, Signature) else _one_task(each, "send_many") for each in given]


def _one_task(given: Any, verb: str) -> Signature:
    work = part_of(given, verb)
    if isinstance(work, Workflow):
        raise ArgumentError(f"{verb}: a {type(work).__name__.lower()} is more than one task: use send")
    return work


def _uuid(given: str) -> str:
    if not isinstance(given, str) or not given:
        raise ArgumentError(f"a result is asked for by its UUID, which is a text, not by {shown(given)}")
    return given


def _expected(given: W, kind: type[Workflow], name: str) -> W:
    if isinstance(given, kind):
        return given
    raise ArgumentError(f"expected a {name}, not a {type(given).__name__}; send and schedule take them all")


def _bound(concurrency: int) -> int:
    if whole(concurrency):
        return concurrency
    raise ArgumentError(f"concurrency must be a whole number from 0 (no bound) on, not {concurrency!r}")


def _check_periodic(name: str, missed: str, overlap: str) -> None:
    if not isinstance(name, str) or not names.valid_name(name):
        raise ConfigError(f"schedule {shown(name)}: a name is 1 to {names.MAX_LENGTH} printable characters")
    for option, said, known in (("missed", missed, get_args(Missed)), ("overlap", overlap, get_args(Overlap))):
        if said not in known:
            raise ConfigError(f"schedule {name!r}: {option}={said!r}; expected one of {', '.join(known)}")
