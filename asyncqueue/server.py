"""The front of the house: tasks are registered here, sent from here, and their results asked for here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import fields, replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast, get_args, overload

from asyncqueue import names, wire
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Dead, Inspector, QueueDepth
from asyncqueue.builders import Chain, Chord, Group, TaskSignature, owner_of
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock, to_datetime
from asyncqueue.compiling import NewId, compiled
from asyncqueue.config import Reloader, Settings, from_env, from_yaml
from asyncqueue.engine.eager import EagerRunner, EagerSettlement
from asyncqueue.engine.events import Events
from asyncqueue.engine.execution import Execution
from asyncqueue.engine.messages import Rules, callback_ids, pending
from asyncqueue.engine.middleware import Middleware, PublishHook
from asyncqueue.engine.observing import Observer, Observers
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.periodic import Missed, Office, Overlap, PeriodicTask, Scheduler, Timetable
from asyncqueue.engine.publisher import Publisher
from asyncqueue.engine.registry import (
    KEYWORDS_HEADER,
    Registry,
    TaskOptions,
    register,
    untyped_args,
    untyped_value_of,
)
from asyncqueue.engine.settlement import Settlement, settlement_of
from asyncqueue.errors import ArgumentError, BadMessage, ConfigError, NoBackend, Refused
from asyncqueue.locks.base import Lock, TurnLock
from asyncqueue.migrating import Migration
from asyncqueue.result import AsyncResult, Results
from asyncqueue.retry import fibonacci, parse_backoff
from asyncqueue.schedule import LONGEST_WAIT, parse
from asyncqueue.signature import MAX_PRIORITY, Signature
from asyncqueue.state import TaskResult
from asyncqueue.stores import Choice, Connected, Stores
from asyncqueue.task import CoroutineTask, FunctionTask, Task, TaskDecorator, make_signature, whole
from asyncqueue.workflow import (
    PASS,
    Compiled,
    Join,
    Node,
    Outline,
    Parallel,
    Series,
    Workflow,
    companion,
    is_companion,
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


class Server:
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
        self.clock = clock
        self.events = Events()
        self.observers = Observers(self.events)
        self.registry = Registry()
        self.middlewares: list[Middleware] = []
        self.timetable = Timetable()
        self._publish_hooks: list[PublishHook] = []
        self.patience = Patience(self.events, clock)
        self._stores = Stores(Choice(url, broker, backend, lock), settings or Settings(), self._assemble)
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

    async def __aenter__(self) -> Self:
        await self.connected()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # — tasks —

    @property
    def task(self) -> TaskDecorator:
        """Register a function as a task: ``@server.task`` or ``@server.task(retries=5, timeout=30)``."""
        return TaskDecorator(self.register_task, {})

    def register_task(self, name: str, function: Callable[..., Any], **options: Any) -> Task[..., Any]:
        """Register a function under a name, with the options of ``task``. Registering a name again replaces it.

        ``server.task(name=name)(function)`` is the same, with types. Raises ``ConfigError`` where the function cannot
        be a task.
        """
        registered = register(name, function, _options(name, options))
        self.registry.add(registered)
        kind = CoroutineTask if registered.is_async else FunctionTask
        return kind(function, registered, self, {})

    def register_tasks(self, tasks: Mapping[str, Callable[..., Any]]) -> None:
        """Register several functions by name: all of them, or none if one cannot be a task (``ConfigError``)."""
        ready = [register(name, function, TaskOptions()) for name, function in tasks.items()]
        for registered in ready:
            self.registry.add(registered)

    def is_task_registered(self, name: str) -> bool:
        """Whether a task of that name is registered here."""
        return self.registry.find(name) is not None

    def registered_task_names(self) -> Sequence[str]:
        """The names of the tasks registered here, sorted."""
        return self.registry.names()

    def add_middleware(self, middleware: Middleware) -> None:
        """Wrap every run of every worker of this server; the first one added is the outermost."""
        self.middlewares.append(middleware)

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of everything that this server sends and its workers run: for tracing and metrics."""
        self.observers.add(observer)

    def before_publish(self, hook: PublishHook) -> PublishHook:
        """Call ``hook`` with every signature before it is sent (usable as a decorator); it may return another one."""
        self._publish_hooks.append(hook)
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
        if isinstance(task, Workflow):
            raise ArgumentError(f"a {type(task).__name__.lower()} is more than one task: use send")
        if isinstance(task, Task):
            return task.s(*args, **kwargs)
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
        if self.observers.is_watched:
            connected, sent = await self._observed(signatures)
        else:
            connected = await self.connected()
            sent = await connected.publisher.send(list(signatures))
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
        return AsyncResult(task_id, self._results)

    async def chain_result(self, chain_id: str) -> ChainResult[Any]:
        """A handle on a chain that was sent elsewhere or before, by its ``id``: the UUID of its last link, be that a
        task or a group. Raises ``NoBackend``, and ``ResultUnknown`` where there is no entry."""
        return await reopened_chain(chain_id, self._results)

    async def group_result(self, group_id: str) -> GroupResult[Any]:
        """A handle on a group that was sent elsewhere or before, by its UUID. Raises as ``chain_result`` does."""
        return await reopened_group(group_id, self._results)

    async def chord_result(self, callback_id: str) -> ChordResult[Any]:
        """A handle on a chord that was sent elsewhere or before, by its ``id``: the UUID of its callback. Where the
        callback is a workflow, nothing is known of the group. Raises as ``chain_result`` does."""
        return await reopened_chord(callback_id, self._results)

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

    async def turn_lock(self) -> TurnLock:
        """The lock in which processes agree on who sends. Raises ``ConfigError`` where the server's cannot do that."""
        lock = await self.lock()
        if not isinstance(lock, TurnLock):
            what = "has no lock" if lock is None else f"has a {type(lock).__name__}, which keeps no turns"
            raise ConfigError(f"periodic tasks need a lock that keeps turns, and this server {what}: give lock=")
        return lock

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

    # — looking —

    async def get_pending_tasks(self, queue: str | None = None, limit: int = 1_000) -> list[Signature]:
        """Signatures that wait in a queue (the default queue unless said otherwise), next first.

        What is no signature is left out. Raises ``Refused`` where the broker cannot be looked into.
        """
        inspector = await self.inspector()
        return _readable(await inspector.peek(queue or self.settings.default_queue, limit))

    async def get_delayed_tasks(self, limit: int = 1_000) -> list[Signature]:
        """Signatures that are not due yet, of all queues, soonest first. Raises as ``get_pending_tasks`` does."""
        inspector = await self.inspector()
        return _readable([body for _, body in await inspector.delayed(limit)])

    async def queues(self) -> list[QueueDepth]:
        """How much is in each queue the broker can see; of companion queues, in those that have anything in them.

        Where the service does not list its queues, these are the queues that this server knows: its default queue, and
        those of its tasks. Raises ``Refused`` where the broker cannot be looked into at all.
        """
        inspector = await self.inspector()
        names = {self.settings.default_queue}
        try:
            names.update(await inspector.queues())
        except Refused:
            own = (self.registry.get(task).options.queue for task in self.registry.names())
            names.update(queue for queue in own if queue)
            names.update([companion(name) for name in names])
        found = [await inspector.depth(name) for name in sorted(names)]
        return [
            depth
            for depth in found
            if depth.ready or depth.held or depth.delayed or depth.dead or not is_companion(depth.queue)
        ]

    async def migrate(self, *, dry_run: bool = False) -> Sequence[Migration]:
        """Make in the stores what this server needs there before it can work: tables, indexes, a schema.

        Returns what was made, or what would be where ``dry_run``; nothing where nothing is missing, and for stores that
        need nothing. Twice is no harm. Raises ``Unavailable``, ``Refused`` or ``ConfigError``.
        """
        return await self._stores.migrate(dry_run=dry_run)

    async def purge(self, queue: str | None = None) -> int:
        """Drop what waits in a queue; returns how many. What workers hold, and what is delayed, stays."""
        inspector = await self.inspector()
        return await inspector.purge(queue or self.settings.default_queue)

    async def dead(self, queue: str | None = None, limit: int = 100, offset: int = 0) -> Sequence[Dead]:
        """Entries of a queue's dead letter, oldest first."""
        inspector = await self.inspector()
        return await inspector.dead(queue or self.settings.default_queue, limit, offset)

    async def requeue_dead(self, ids: Sequence[str] | None = None, queue: str | None = None) -> int:
        """Put dead entries (all of them, unless ``ids`` are given) back into their queue; returns how many.

        They run again, as new messages, although their state was FAILURE: it becomes PENDING first.
        """
        queue = queue or self.settings.default_queue
        connected = await self.connected()
        inspector = await self.inspector()
        count = 0
        for entry in await _all_dead(inspector, queue):
            if ids is not None and entry.id not in ids:
                continue
            signatures = _readable([entry.body])
            if connected.backend is not None and signatures:
                # its callbacks are sent anew too, and look their own states up before they run
                await connected.backend.forget(callback_ids(signatures[0]))
                await connected.backend.begin([pending(signatures[0], self.clock.now_ns())])
            count += await inspector.requeue(queue, [entry.id])
        return count

    async def drop_dead(self, ids: Sequence[str] | None = None, queue: str | None = None) -> int:
        """Drop dead entries (all of them, unless ``ids`` are given) for good; returns how many."""
        queue = queue or self.settings.default_queue
        inspector = await self.inspector()
        known = [entry.id for entry in await _all_dead(inspector, queue)]
        chosen = [each for each in known if ids is None or each in ids]
        return await inspector.drop(queue, chosen) if chosen else 0

    async def lock(self) -> Lock | None:
        """The lock of this server, open; None where it has none."""
        return await self._stores.lock()

    async def inspector(self) -> Inspector:
        """The broker, as something to look into. Raises ``Refused`` where it cannot be."""
        broker = (await self.connected()).broker
        if not isinstance(broker, Inspector):
            raise Refused(f"{broker.address} cannot be looked into")
        return broker

    # — being connected —

    @property
    def settings(self) -> Settings:
        """The settings as they are now; a reload changes them."""
        return self._stores.settings

    @property
    def reload_path(self) -> Path | None:
        """The file that a worker of this server looks at for new settings."""
        return self._stores.reload_path

    @property
    def broker_address(self) -> str:
        """Where the broker is, for people; no password."""
        return self._stores.address

    def rules(self) -> Rules:
        """What settling and sending depend on, as the settings say now."""
        return self._stores.rules

    async def connected(self) -> Connected:
        """The open parts of this server, in this process and event loop; opened on first use.

        Raises ``Unavailable`` (naming host and port or file), ``Refused`` or ``ConfigError``.
        """
        return await self._stores.connected()

    async def close(self) -> None:
        """Wait for sends that are under way and let go of the services, in this event loop. A later use opens them
        again."""
        await self._stores.close()

    def override(self, path: str | os.PathLike[str]) -> None:
        """Lay a YAML file, and the environment above it, over what the code says; before the first use.

        It is for whoever runs a program that somebody else wrote. A key that neither of them sets stays as the code
        has it. A worker of this server looks at the file every ten seconds and takes up what can be taken up while it
        runs. Raises ``ConfigError``.
        """
        self._stores.override(path)

    def reloader(self, path: str | os.PathLike[str]) -> Reloader:
        """Watches a configuration file and applies what can be applied; ``await reloader.run()``."""
        return self._stores.reloader(path)

    def on_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` whenever settings were reloaded."""
        self._stores.on_settings(listener)

    def off_settings(self, listener: Callable[[Settings], None]) -> None:
        """Call ``listener`` no more."""
        self._stores.off_settings(listener)

    async def _assemble(self, broker: Broker, backend: Backend | None, stack: AsyncExitStack) -> Connected:
        settlement = await settlement_of(broker, backend)
        eager = None
        if self._stores.is_eager:
            settlement = EagerSettlement(settlement)
            threads = stack.enter_context(ThreadPoolExecutor(thread_name_prefix="asyncqueue-eager"))
            eager = self._eager_runner(broker, backend, settlement, threads)
        publisher = Publisher(
            self.registry,
            settlement,
            clock=self.clock,
            patience=self.patience,
            rules=self.rules,
            timeout=lambda: self.settings.publish_timeout,
            address=broker.address,
            max_batch=broker.capabilities.max_batch,
            hooks=self._publish_hooks,
            events=self.events,
        )
        return Connected(broker, backend, settlement, publisher, eager)

    def _eager_runner(
        self, broker: Broker, backend: Backend | None, settlement: Settlement, threads: ThreadPoolExecutor
    ) -> EagerRunner:
        def rules() -> Rules:
            return replace(self.rules(), unknown_task_after=0.0)  # nobody else will ever know the task

        execution = Execution(
            self.registry,
            backend,
            clock=self.clock,
            events=self.events,
            patience=self.patience,
            rules=rules,
            max_deliveries=lambda: self.settings.worker.max_deliveries,
            longest_delay=broker.capabilities.max_delay,
            threads=threads,
            middlewares=self.middlewares,
            observers=self.observers,
            is_given_up=lambda run: False,  # the runner knows
        )
        return EagerRunner(broker, execution, settlement, backend, clock=self.clock, rules=rules)

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


def _expected(given: W, kind: type[Workflow], name: str) -> W:
    if isinstance(given, kind):
        return given
    raise ArgumentError(f"expected a {name}, not a {type(given).__name__}; send and schedule take them all")


def _bound(concurrency: int) -> int:
    if whole(concurrency):
        return concurrency
    raise ArgumentError(f"concurrency must be a whole number from 0 (no bound) on, not {concurrency!r}")


def _check_periodic(name: str, missed: str, overlap: str) -> None:
    if not names.valid_name(name):
        raise ConfigError(f"schedule {name!r}: a name is 1 to {names.MAX_LENGTH} printable characters")
    for option, said, known in (("missed", missed, get_args(Missed)), ("overlap", overlap, get_args(Overlap))):
        if said not in known:
            raise ConfigError(f"schedule {name!r}: {option}={said!r}; expected one of {', '.join(known)}")


def _options(name: str, options: dict[str, Any]) -> TaskOptions:
    """The options of a task, checked. Raises ``ConfigError`` that names the task and the option."""
    retry_on = options.get("retry_on", (Exception,))
    checked = {
        **options,
        "retry_on": retry_on if isinstance(retry_on, tuple) else (retry_on,),
        "backoff": parse_backoff(options["backoff"])
        if isinstance(options.get("backoff"), str)
        else options.get("backoff", fibonacci),
    }
    known = [each.name for each in fields(TaskOptions)]
    for option in checked.keys() - set(known):
        near = get_close_matches(option, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
        raise ConfigError(f"task {name!r}: a task has no option {option!r}{hint}")
    made = TaskOptions(**checked)
    if not whole(made.retries):
        raise ConfigError(f"task {name!r}: retries must be a whole number from 0 on, not {made.retries!r}")
    if not whole(made.priority, MAX_PRIORITY):
        raise ConfigError(
            f"task {name!r}: priority must be at least 0 and at most {MAX_PRIORITY}, not {made.priority!r}"
        )
    if made.timeout is not None and not (isinstance(made.timeout, int | float) and made.timeout > 0):
        raise ConfigError(f"task {name!r}: timeout must be more than 0 seconds, not {made.timeout!r}")
    for each in made.retry_on:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigError(f"task {name!r}: retry_on must be exceptions, not {each!r}")
    problem = names.queue_problem(made.queue) if made.queue else None
    if problem:
        raise ConfigError(f"task {name!r}: {problem}")
    return made


def _readable(bodies: Iterable[bytes]) -> list[Signature]:
    signatures: list[Signature] = []
    for body in bodies:
        try:
            signatures.append(wire.decode_signature(body))
        except BadMessage:
            continue  # a worker will bury it, and say so
    return signatures


async def _all_dead(inspector: Inspector, queue: str) -> list[Dead]:
    found: list[Dead] = []
    while page := await inspector.dead(queue, _PAGE, len(found)):
        found.extend(page)
    return found


_PAGE = 500
