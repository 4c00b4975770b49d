"""A worker: the consumer of some queues, started and stopped with a process or inside an application."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self, TypeVar

from asyncqueue.config import Settings
from asyncqueue.engine.consumer import Consumer, slots_for
from asyncqueue.engine.events import Event, TaskFailed, WorkerStarted, WorkerStopped, WorkerStopping, checked_hook
from asyncqueue.engine.execution import Host
from asyncqueue.engine.facilities import WorkerFacilities
from asyncqueue.engine.middleware import TaskHook, before_and_after, finished
from asyncqueue.engine.slots import Slots
from asyncqueue.errors import ConfigError, shown
from asyncqueue.names import queue_problem
from asyncqueue.options import whole
from asyncqueue.server import Server

H = TypeVar("H")

_END_AFTER_CANCEL = 0.4
_SETTLE_AFTER_CANCEL = 5.0
_SEND_AFTER_STOP = 1.0
_MOST_THREADS = 1_000

ErrorHook = Callable[[TaskFailed], None]
"""Called with every task that ended in failure."""

ConsumeGate = Callable[["Worker"], object]
"""Asked before each fetch; may be a coroutine function. False: not now."""


class Worker:
    """Runs the tasks of a server.

    ``queues`` are fetched from side by side (the default queue unless said otherwise). ``concurrency`` is how many
    tasks run at once: 1 is one after the other, 0 unlimited within ``settings.worker.prefetch``. ``grace`` is how
    long (seconds) a stop waits for running tasks before it cancels them and gives them back.

    ``async with Worker(server):`` runs it inside an application; ``await worker.run()`` is a whole process, with
    SIGTERM and SIGINT unless ``settings.no_unix_signals`` is set. A worker runs once; make another one to run again.
    Its hooks and listeners (``worker.events``) are told of this worker alone. Raises ``ConfigError``.
    """

    def __init__(
        self,
        server: Server,
        *,
        queues: str | Sequence[str] | None = None,
        concurrency: int | None = None,
        grace: float | None = None,
    ) -> None:
        if not isinstance(server, Server):
            raise ConfigError(f"a worker runs the tasks of a Server, not of {type(server).__name__}")
        settings = server.settings
        self.server = server
        self.events = server.events.part()
        self.queues: tuple[str, ...] = _checked(_several(queues) or settings.worker.queues or (settings.default_queue,))
        self._own_concurrency = concurrency
        self._own_grace = None if grace is None else _seconds(grace)
        if concurrency is not None and not whole(concurrency):
            raise ConfigError(f"concurrency must be a whole number from 0 (unlimited) on, not {shown(concurrency)}")
        self._before: list[TaskHook] = []
        self._after: list[TaskHook] = []
        self._gates: list[ConsumeGate] = []
        self._consumer: Consumer | None = None
        self._slots: Slots | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """How many tasks run at once; 0: unlimited within the prefetch bound."""
        return self.server.settings.worker.concurrency if self._own_concurrency is None else self._own_concurrency

    @property
    def grace(self) -> float:
        """How long (seconds) a stop waits for running tasks."""
        return self.server.settings.worker.grace if self._own_grace is None else self._own_grace

    @property
    def running(self) -> int:
        """How many tasks run now."""
        return self._consumer.running if self._consumer is not None else 0

    @property
    def stuck(self) -> Sequence[str]:
        """UUIDs of tasks that were given up and whose threads go on."""
        return self._consumer.stuck if self._consumer is not None else ()

    # — hooks —

    def pre_task(self, hook: TaskHook) -> TaskHook:
        """Call ``hook`` with the context before every run (usable as a decorator)."""
        self._before.append(self._hook("pre_task", hook))
        return hook

    def post_task(self, hook: TaskHook) -> TaskHook:
        """Call ``hook`` with the context after every run, on success and failure alike (usable as a decorator)."""
        self._after.append(self._hook("post_task", hook))
        return hook

    def on_error(self, hook: ErrorHook) -> ErrorHook:
        """Call ``hook``, a plain function, with every task that ended in failure here (usable as a decorator)."""
        self._hook("on_error", hook, awaited=False)

        def listen(event: Event) -> None:
            if isinstance(event, TaskFailed):
                hook(event)

        self.events.listen(listen)
        return hook

    def pre_consume(self, gate: ConsumeGate) -> ConsumeGate:
        """Ask ``gate`` before each fetch (usable as a decorator); while one says False, nothing is fetched."""
        self._gates.append(self._hook("pre_consume", gate))
        return gate

    def _hook(self, verb: str, hook: H, *, awaited: bool = True) -> H:
        if self._task is not None:
            raise ConfigError(f"worker.{verb}: this worker was started already; expected its hooks before that")
        return checked_hook(f"worker.{verb}", hook, awaited=awaited)

    # — running —

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to work in the background; returns when the stores answer and fetching begins.

        Raises ``Unavailable``, ``Refused`` or ``ConfigError``.
        """
        if self._task is not None:
            raise ConfigError("this worker was started already: make another one")
        await self.server.connected()
        if self.server.schedules():
            await self.server.turn_lock()
        self._task = asyncio.create_task(self._work(), name="asyncqueue-worker")
        started = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()  # nobody will stop a worker that was never handed out
            await asyncio.wait({self._task})
            raise
        finally:
            started.cancel()
        if self._task.done():
            await self._task

    async def stop(self, grace: float | None = None) -> None:
        """Stop fetching, give back what was not begun, wait ``grace`` seconds for what runs, cancel and give back the
        rest. Returns when the worker has ended. Twice is no harm."""
        if self._task is None:
            return
        if grace is not None:
            self._own_grace = _seconds(grace)
        self._stop_asked.set()
        await self._task

    def stop_at_once(self) -> None:
        """End a stop's grace time now: what runs is cancelled and given back."""
        self._stop_asked.set()
        self._hurry.set()

    async def run(self, *, burst: bool = False) -> int:
        """Work until a signal or ``stop``; the exit code: 0, or 1 when a task could not be ended.

        The first SIGTERM or SIGINT stops gracefully, a second one at once. With ``burst``, it ends when all queues
        are empty and nothing runs. Raises as ``start`` does.
        """
        with self._signals():
            await self.start()
            assert self._task is not None
            assert self._consumer is not None
            if burst:
                idle = asyncio.create_task(self._consumer.all_idle())
                await asyncio.wait({idle, self._task}, return_when=asyncio.FIRST_COMPLETED)
                idle.cancel()
                self._stop_asked.set()
            await self._task
        return 1 if self.stuck else 0

    async def _work(self) -> None:
        server = self.server
        connected = await server.connected()
        self._slots = slots_for(self.concurrency, server.settings.worker.prefetch)
        server.on_settings(self._resize)
        consumer = self._consumer = Consumer(
            connected.broker,
            connected.backend,
            connected.settlement,
            self.queues,
            slots=self._slots,
            clock=server.clock,
            events=self.events,
            patience=server.patience,
            rules=server.rules,
            may_consume=self._may_consume if self._gates else None,
        )
        threads = ThreadPoolExecutor(self._thread_count(server.settings), thread_name_prefix="asyncqueue-task")
        facilities = WorkerFacilities(
            consumer.yield_slot, connected.publisher, connected.backend, server.rules, server.observers
        )
        host = Host(consumer.started, consumer.left_running, consumer.is_given_up, consumer.showings, facilities)
        within = (before_and_after(self._before, self._after),) if self._before or self._after else ()
        execution = server.execution(
            connected.broker, connected.backend, threads, host, events=self.events, within=within
        )
        self.events.emit(WorkerStarted(self.queues, self.concurrency, connected.broker.address))
        reloading = self._reload()
        self._started.set()
        consuming = asyncio.create_task(consumer.run(execution), name="asyncqueue-consumer")
        scheduler = server.scheduler()
        scheduling = asyncio.create_task(scheduler.run(), name="asyncqueue-scheduler")
        asked = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({consuming, scheduling, asked}, return_when=asyncio.FIRST_COMPLETED)
            scheduler.stop()
            await self._end(consumer, consuming)
            await asyncio.wait({scheduling}, timeout=_SEND_AFTER_STOP)
            if scheduling.done():
                scheduling.result()
        finally:
            if not scheduling.done():  # the store is away; what it was about to send, another takes over
                scheduling.cancel()
                await asyncio.wait({scheduling})
            asked.cancel()
            if not consuming.done():  # we are being cancelled ourselves
                consuming.cancel()
                await asyncio.wait({consuming})
            if reloading is not None:
                reloading.cancel()
            server.off_settings(self._resize)
            threads.shutdown(wait=False, cancel_futures=True)
            self.events.emit(WorkerStopped(tuple(consumer.stuck)))

    async def _end(self, consumer: Consumer, consuming: asyncio.Task[None]) -> None:
        """Stop in order: fetch no more, let run for a while, cancel, settle."""
        self.events.emit(WorkerStopping(consumer.running, self.grace))
        consumer.stop()
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({consuming, hurry}, timeout=self.grace, return_when=asyncio.FIRST_COMPLETED)
            if not consuming.done():
                consumer.cancel_running()
                await asyncio.wait({consuming}, timeout=_END_AFTER_CANCEL)
            if not consuming.done() and not consumer.running:
                await asyncio.wait(
                    {consuming, hurry}, timeout=_SETTLE_AFTER_CANCEL, return_when=asyncio.FIRST_COMPLETED
                )
            if not consuming.done():
                consuming.cancel()  # the stores are away, or a task does not let itself be cancelled
            await asyncio.wait({consuming})
            if not consuming.cancelled():
                consuming.result()
        finally:
            hurry.cancel()

    async def _may_consume(self) -> bool:
        for gate in self._gates:
            if not await finished(gate(self)):
                return False
        return True

    def _thread_count(self, settings: Settings) -> int:
        return settings.worker.thread_limit or min(_MOST_THREADS, max(1, slots_for(self.concurrency, 64).total))

    def _resize(self, settings: Settings) -> None:
        if self._consumer is not None and self._own_concurrency is None:
            self._consumer.resize(slots_for(settings.worker.concurrency, settings.worker.prefetch).total)

    def _reload(self) -> asyncio.Task[None] | None:
        path = self.server.reload_path
        return asyncio.create_task(self.server.reloader(path).run()) if path is not None else None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if self.server.settings.no_unix_signals:
            yield
            return
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for each in handled:
            loop.add_signal_handler(each, self._on_signal)
        try:
            yield
        finally:
            for each in handled:
                loop.remove_signal_handler(each)

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            self.stop_at_once()
        else:
            self._stop_asked.set()


def _several(queues: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(queues, str):
        return (queues,)
    if not isinstance(queues, Iterable | None) or isinstance(queues, bytes):
        raise ConfigError(f"queues must be a name or a list of names, not {shown(queues)}")
    return tuple(queues or ())


def _checked(queues: tuple[str, ...]) -> tuple[str, ...]:
    for problem in filter(None, map(queue_problem, queues)):
        raise ConfigError(problem)
    if len(set(queues)) != len(queues):
        raise ConfigError(f"a queue is named twice: {', '.join(queues)}")
    return queues


def _seconds(grace: float) -> float:
    if not isinstance(grace, int | float) or isinstance(grace, bool) or not grace >= 0:
        raise ConfigError(f"grace must be a number of seconds from 0 on, not {shown(grace)}")
    return grace
