"""Periodic tasks: each occurrence is sent once, however many processes keep the schedule.

What is sent is a copy for this occurrence: its UUIDs derive from the schedule's name and the moment at which it is
due, so that two senders send one and the same task or workflow, and the stores know the second copy. Who sends it is
agreed on in the lock: claim, send, finish. A turn whose owner died in between is claimed anew by whoever sees that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import floor
from secrets import token_hex
from typing import Literal, assert_never
from uuid import NAMESPACE_OID, uuid5

from asyncqueue.backends.base import Backend
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.compiling import NewId
from asyncqueue.engine.events import Events, OccurrenceFailed, OccurrenceSent, OccurrenceSkipped
from asyncqueue.engine.observing import Observers
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.publisher import Publisher
from asyncqueue.errors import AsyncQueueError, ConfigError
from asyncqueue.locks.base import Claim, Turn, TurnLock
from asyncqueue.schedule import Schedule
from asyncqueue.signature import Signature, with_headers
from asyncqueue.workflow import CHECK_HEADER, Compiled, Join, Node, Parallel, Series

Missed = Literal["skip", "last", "all"]
"""What becomes of occurrences that came due while no process kept the schedule: none, the latest or all are sent."""

Overlap = Literal["allow", "skip"]
"""Whether an occurrence is sent while the task of the one before it has not ended."""

CLAIM_TTL = 5.0
"""How long (seconds) the owner of a turn has for sending before another takes it over."""

LATE = 10.0
"""How late (seconds) a running process still sends what it slept through."""

_LONGEST_SLEEP = 60.0  # wall clocks are set, and machines are suspended
_AFTER_ERROR = 1.0
_PARTS_SHOWN = 3


Compile = Callable[[Node, NewId], Compiled]
"""Makes of a task or a workflow what is sent."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A registered schedule, and the task or workflow that each of its occurrences sends a fresh copy of.

    ``concurrency`` is how many messages of an occurrence are handed to the broker at once; 0: all of them.
    """

    name: str
    spec: str
    schedule: Schedule
    work: Node
    missed: Missed = "skip"
    overlap: Overlap = "allow"
    concurrency: int = 0

    @property
    def title(self) -> str:
        """What it sends, for people."""
        return _title(self.work)

    def lock_key(self, program: str) -> str:
        """The name of its lock: Machinery's, for a program of that name."""
        return f"machinery_lock_{program}{self.name}{self.spec}"

    def task_id(self, program: str, due_at: int) -> str:
        """The UUID of the task of the occurrence that is due then: the same whoever asks."""
        return f"task_{self._new_id(program, due_at, '')}"

    def occurrence(self, program: str, due_at: int, compile: Compile) -> Compiled:
        """What is sent for this occurrence: due now, with UUIDs of its own all the way down. Raises as ``compile``
        does."""
        work = compile(_anew(self.work), lambda path: self._new_id(program, due_at, path))
        # where a store cannot know a second copy, a worker does
        return replace(work, entries=tuple(with_headers(each, {CHECK_HEADER: "1"}) for each in work.entries))

    def next_times(self, after: float, count: int) -> list[int]:
        """The next moments (unix seconds) at which it is due."""
        times: list[int] = []
        at = self.schedule.next_after(after)
        while at is not None and len(times) < count:
            times.append(at)
            at = self.schedule.next_after(at)
        return times

    def _new_id(self, program: str, due_at: int, path: str) -> str:
        seed = f"{program} {self.name} {due_at}"
        return str(uuid5(NAMESPACE_OID, f"{seed}/{path}" if path else seed))


class Timetable:
    """The schedules of a server, by name. They may change while schedulers run."""

    def __init__(self) -> None:
        self._tasks: dict[str, PeriodicTask] = {}
        self._listeners: list[Callable[[], None]] = []

    def add(self, task: PeriodicTask) -> None:
        """Add, or replace where name and spec are the same. Raises ``ConfigError`` for another spec of that name."""
        known = self._tasks.get(task.name)
        if known is not None and known.spec != task.spec:
            raise ConfigError(
                f"schedule {task.name!r} is registered with {known.spec!r} and cannot be {task.spec!r} too: "
                "unregister it first, or choose another name"
            )
        self._tasks = {**self._tasks, task.name: task}  # another thread may be reading the old one
        self._tell()

    def remove(self, name: str) -> bool:
        """Whether there was one of that name."""
        is_known = name in self._tasks
        self._tasks = {each: task for each, task in self._tasks.items() if each != name}
        self._tell()
        return is_known

    def tasks(self) -> Sequence[PeriodicTask]:
        """All of them, by name."""
        return sorted(self._tasks.values(), key=lambda task: task.name)

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called after every change; returns what ends that."""
        self._listeners.append(changed)
        return lambda: self._listeners.remove(changed)

    def _tell(self) -> None:
        for changed in list(self._listeners):
            changed()


@dataclass(frozen=True, slots=True)
class Office:
    """What sending an occurrence takes. ``program`` is the name that schedulers of one lock share; ``owner`` is this
    one's own."""

    lock: TurnLock
    publisher: Publisher
    backend: Backend | None
    clock: Clock
    events: Events
    patience: Patience
    compile: Compile
    program: str
    owner: str
    observers: Observers


class Scheduler:
    """Keeps all schedules of a timetable, as long as it runs."""

    def __init__(
        self, timetable: Timetable, office: Callable[[str], Awaitable[Office]], *, events: Events, patience: Patience
    ) -> None:
        self._timetable = timetable
        self._office = office
        self._events = events
        self._patience = patience
        self._owner = token_hex(8)
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()
        self._kept: dict[str, tuple[PeriodicTask, asyncio.Event]] = {}

    async def run(self) -> None:
        """Keep the schedules until ``stop``; what is being sent then is sent to its end."""
        loop = asyncio.get_running_loop()

        def wake() -> None:  # schedules may be registered in any thread
            with suppress(RuntimeError):  # this loop was closed under us
                loop.call_soon_threadsafe(self._changed.set)

        silence = self._timetable.listen(wake)
        try:
            async with asyncio.TaskGroup() as group:
                while not self._stopped.is_set():
                    self._changed.clear()
                    self._take_up(group)
                    await self._changed.wait()
                for _, stopped in self._kept.values():
                    stopped.set()
        finally:
            silence()

    def stop(self) -> None:
        """Begin no more turns."""
        self._stopped.set()
        self._changed.set()

    def _take_up(self, group: asyncio.TaskGroup) -> None:
        """Keep what is in the timetable now, and nothing else."""
        wanted = {task.name: task for task in self._timetable.tasks()}
        for task, stopped in list(self._kept.values()):
            if wanted.get(task.name) is not task:
                stopped.set()
                del self._kept[task.name]
        for task in wanted.values():
            if task.name not in self._kept:
                stopped = asyncio.Event()
                self._kept[task.name] = task, stopped
                group.create_task(self._keep(task, stopped), name=f"asyncqueue-schedule-{task.name}")

    async def _keep(self, task: PeriodicTask, stopped: asyncio.Event) -> None:
        try:
            office = await self._patience.insist("reach the lock", lambda: self._office(self._owner))
        except AsyncQueueError as exc:  # registered while a worker ran whose lock cannot do this: the worker goes on
            self._events.emit(OccurrenceFailed(task.name, 0, str(exc)))
            return
        await Rota(task, office).run(stopped)


class Rota:
    """One schedule as one process keeps it."""

    def __init__(self, task: PeriodicTask, office: Office) -> None:
        self._task = task
        self._office = office
        self._key = task.lock_key(office.program)
        self._began: int | None = None
        self._since = 0  # up to when turns have been dealt with
        self._others: dict[int, float] = {}  # turns of others: when to look whether they were finished

    async def run(self, stopped: asyncio.Event) -> None:
        """Keep the schedule until ``stopped``."""
        while not stopped.is_set():
            try:
                wait = await self.tick()
            except Exception as exc:
                self._office.events.emit(OccurrenceFailed(self._task.name, self._since, f"{type(exc).__name__}: {exc}"))
                wait = _AFTER_ERROR
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await stopped.wait()

    async def tick(self) -> float:
        """Deal with every turn that has come; returns in how many seconds to come back."""
        if self._began is None:
            await self._begin()
        while (due_at := self._next_due()) is not None:
            # it counts as dealt with first: one that cannot be sent must not hold up those after it
            self._since = due_at
            await self._keep(due_at)
        now = self._now()
        for due_at in [due for due, at in self._others.items() if at <= now]:
            del self._others[due_at]
            await self._keep(due_at)
        return self._wait()

    async def _begin(self) -> None:
        """Find out what was left undone: turns that are owed, and, by policy, those that nobody came for."""
        lock, insist = self._office.lock, self._office.patience.insist
        began = self._since = floor(self._now())
        if self._task.missed != "skip":
            last = await insist(self._doing, lambda: lock.last_turn(self._key))
            self._since = min(began, last.due_at) if last is not None else began
        self._others = dict.fromkeys(await insist(self._doing, lambda: lock.owed(self._key)), 0.0)
        self._began = began

    def _next_due(self) -> int | None:
        """The next turn to be dealt with that has come; None: none has."""
        now = self._now()
        match self._task.missed:
            case "all":
                return self._by_now(self._since)
            case "skip":
                return self._by_now(self._fresh_since(now))
            case "last":
                return self._by_now(self._fresh_since(now)) or self._latest(now)
            case never:
                assert_never(never)

    def _fresh_since(self, now: float) -> float:
        """Turns after that moment came while this process kept the schedule, and not long ago."""
        return max(self._since, self._began or 0, now - LATE)

    def _latest(self, now: float) -> int | None:
        """The last turn of those that have come, found without a walk through all of them."""
        span = 60.0
        while (found := self._by_now(max(self._since, now - span))) is None:
            if now - span <= self._since:
                return None
            span *= 60
        while (later := self._by_now(found)) is not None:
            found = later
        return found

    def _by_now(self, after: float) -> int | None:
        due_at = self._task.schedule.next_after(after)
        return due_at if due_at is not None and due_at <= self._now() else None

    async def _keep(self, due_at: int) -> None:
        """Send this occurrence if its turn is ours."""
        office = self._office
        turn = Turn(self._key, due_at, self._task.schedule.next_after(due_at))
        budget = LATE if self._task.missed == "skip" else None
        claim = await office.patience.insist(
            self._doing, lambda: office.lock.claim(turn, office.owner, office.clock.now_ns(), CLAIM_TTL), budget=budget
        )
        match claim:
            case Claim.OVER:
                return
            case Claim.TAKEN:
                self._others[due_at] = self._now() + CLAIM_TTL * random.uniform(1.0, 1.2)
            case Claim.MINE:
                sent = await self._send(due_at)
                await office.patience.insist(self._doing, lambda: office.lock.finish(turn, sent=sent))
            case never:
                assert_never(never)

    async def _send(self, due_at: int) -> bool:
        """Send the occurrence unless it was, or must not be; whether its task is on its way."""
        office, name = self._office, self._task.name
        try:
            if await self._runs_still(due_at):
                office.events.emit(OccurrenceSkipped(name, due_at))
                return False
            with office.observers.sending(self._task.work, self._task.concurrency, name) as send:
                work = self._occurrence(due_at, send.work)
                token = f"{due_at:x}/{work.entries[0].uuid}"
                is_new = await office.patience.insist(
                    self._doing, lambda: office.publisher.offer_workflow(work, token, self._task.concurrency)
                )
                send.sent = work if is_new else None
        except Exception as exc:  # of this task or workflow, or of the user's own hooks: trying again would not help
            office.events.emit(OccurrenceFailed(name, due_at, f"{type(exc).__name__}: {exc}"))
            return False
        if is_new:
            office.events.emit(OccurrenceSent(name, due_at, work.outline.id))
        return True

    async def _runs_still(self, due_at: int) -> bool:
        """Whether what the occurrence before this one sent stands in its way."""
        office, backend = self._office, self._office.backend
        if self._task.overlap == "allow" or backend is None:
            return False
        last = await office.patience.insist(self._doing, lambda: office.lock.last_turn(self._key))
        if last is None or last.sent_at is None:
            return False
        own, before = (self._occurrence(at).outline.deciding() for at in (due_at, last.sent_at))
        states = await office.patience.insist(self._doing, lambda: backend.get([*own, *before]))
        # one that was sent by an owner who died before he could say so does not stand in its own way
        return all(state is None for state in states[: len(own)]) and any(
            state is not None and not state.is_completed for state in states[len(own) :]
        )

    def _occurrence(self, due_at: int, work: Node | None = None) -> Compiled:
        task = self._task if work is None else replace(self._task, work=work)
        return task.occurrence(self._office.program, due_at, self._office.compile)

    def _wait(self) -> float:
        now = self._now()
        due_at = self._task.schedule.next_after(max(self._since, now))
        moments = [*self._others.values(), *([due_at] if due_at is not None else [])]
        return min(max(0.0, min(moments, default=now + _LONGEST_SLEEP) - now), _LONGEST_SLEEP)

    @property
    def _doing(self) -> str:
        return f"keep schedule {self._task.name!r}"

    def _now(self) -> float:
        return self._office.clock.now_ns() / NANOSECONDS


def _anew(work: Node) -> Node:
    """A copy whose UUIDs and times are still to be given, and those of what follows its tasks too."""
    match work:
        case Signature():
            return _task_anew(work)
        case Series(links):
            return Series(tuple(map(_anew, links)))
        case Parallel():
            return _group_anew(work)
        case Join(members, callback):
            return replace(work, members=_group_anew(members), callback=_anew(callback))
        case _:
            return work  # it cannot be compiled either


def _group_anew(group: Parallel) -> Parallel:
    return Parallel(tuple(map(_anew, group.members)))


def _task_anew(signature: Signature) -> Signature:
    return signature.with_changes(
        uuid="",
        eta=None,
        on_success=_all_anew(signature.on_success),
        on_error=_all_anew(signature.on_error),
    )


def _all_anew(signatures: tuple[Signature, ...] | None) -> tuple[Signature, ...] | None:
    return None if signatures is None else tuple(map(_task_anew, signatures))


def _title(work: Node) -> str:
    match work:
        case Signature(name=name):
            return name
        case Series(links):
            return f"chain({_titles(links)})"
        case Parallel(members):
            return f"group({_titles(members)})"
        case Join(members, callback):
            return f"chord({_title(members)}, {_title(callback)})"
        case _:
            return type(work).__name__.lower()


def _titles(parts: Sequence[Node]) -> str:
    shown = [_title(part) for part in parts[:_PARTS_SHOWN]]
    left = len(parts) - len(shown)
    return ", ".join([*shown, f"{left} more"] if left else shown)
