"""Deliveries in, outcomes out: fetch what there are slots for, hold it, run it, hand it on to be settled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from asyncqueue import wire
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Bury, Delivery, Nack, Settled, Tended
from asyncqueue.clock import Clock
from asyncqueue.engine.events import Events, HookFailed, LeasesLost, LoopBlocked, StoreRefused
from asyncqueue.engine.execution import Execution, Ran
from asyncqueue.engine.leases import LeaseKeeper
from asyncqueue.engine.messages import Rules, error_text
from asyncqueue.engine.outcome import Cancelled, Failed, Lost, NotMine, NotYet, settled
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.settlement import Settlement, WholeSettlement
from asyncqueue.engine.settler import Settler
from asyncqueue.engine.showings import Showings
from asyncqueue.engine.slots import Slots
from asyncqueue.errors import ArgumentError, AsyncQueueError, BadMessage, Refused, Unavailable
from asyncqueue.workflow import companion

WAIT = 1.0
"""How long (seconds) one fetch waits for a message, and so how long a stop may take to be noticed by a fetch."""

COMPANION_SLOTS = 100
"""How many built-in tasks run at once: in slots of their own, since they run nobody's code and others wait for them."""

MOST_YIELDED = 10_000
"""The most running tasks that have given up their slot for a while; what yields beyond that keeps its own."""

ISOLATE_FROM = 3
"""From this showing on a message runs alone: whatever killed its workers shall take nobody else along."""

_PAUSE_FOR_EACH = 0.001
_PAUSE_FOR_FETCH = 2.0
_FIRST_POLL = 0.005
_LAST_POLL = 0.25
_REFUSED_PAUSE = 2.0
_GIVE_BACK = 5.0
_MOST_AT_ONCE = 1_000
_LAST_CHANCE = 0.5


class Consumer:
    """Works a set of queues until it is stopped.

    ``execution`` is made by the caller with this consumer's ``started``, ``left_running`` and ``showings``.
    """

    def __init__(
        self,
        broker: Broker,
        backend: Backend | None,
        settlement: Settlement,
        queues: Sequence[str],
        *,
        slots: Slots,
        clock: Clock,
        events: Events,
        patience: Patience,
        rules: Callable[[], Rules],
        may_consume: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        # those of Go's queues are that of the default queue: all workers of ours serve it
        beside_go = (rules().default_queue,) if rules().go_compat else ()
        companions = dict.fromkeys(map(companion, (*queues, *beside_go)))
        self._companions = tuple(each for each in companions if each not in queues)
        # what is put off for workers in Go nobody else looks after
        self._tended = tuple(dict.fromkeys((*queues, *self._companions, *rules().go.queues)))
        self._slots = slots
        self._companion_slots = Slots(COMPANION_SLOTS)
        self._clock = clock
        self._events = events
        self._patience = patience
        self._rules = rules
        self._may_consume = may_consume
        self._max_batch = min(broker.capabilities.max_batch, _MOST_AT_ONCE)
        self._execution: Execution | None = None
        self._own: asyncio.Task[Any] | None = None
        self._running: dict[asyncio.Task[None], Delivery] = {}
        self._slotless: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        self._lost: set[Hashable] = set()
        self._threads: dict[Future[Any], str] = {}
        self._stubborn: tuple[str, ...] = ()
        self._stopping = asyncio.Event()
        self._quiet = asyncio.Event()
        self._idle_queues: set[str] = set()
        # how many messages in a row were of tasks not known here: whoever knows them comes first to such a queue
        self._strangers: dict[str, int] = {}
        self._taken = 0
        self._leases = LeaseKeeper(broker, clock=clock, lost=self._on_lost, blocked=self._on_blocked)
        self._settler = Settler(
            WholeSettlement(settlement, backend, rules=rules, clock=clock),
            backend,
            events=events,
            patience=patience,
            settled=self._leases.release,
            failed=self._failed,
            max_batch=self._max_batch,
        )
        self.started = self._settler.started
        self.showings: Showings | None = None
        if backend is not None and not broker.capabilities.counts_deliveries:
            self.showings = Showings(backend, events=events, patience=patience)

    @property
    def running(self) -> int:
        """How many tasks run now."""
        return len(self._running)

    @property
    def stuck(self) -> Sequence[str]:
        """UUIDs of tasks that were given up and go on: in a thread, or in a coroutine that does not let itself be
        cancelled."""
        return (*self._threads.values(), *self._stubborn)

    def left_running(self, thread: Future[Any], task_id: str) -> None:
        """A thread outlived its run: it keeps a slot until it ends."""
        loop = asyncio.get_running_loop()
        self._threads[thread] = task_id
        self._slots.resize(self._slots.total - 1)
        thread.add_done_callback(lambda ended: _tell_loop(loop, lambda: self._thread_ended(ended)))

    def resize(self, total: int) -> None:
        """Change how many tasks may run at once; what is stuck goes on counting as one of them."""
        self._slots.resize(total - len(self._threads))

    @asynccontextmanager
    async def yield_slot(self) -> AsyncIterator[None]:
        """Let another task run in the place of the one that runs here; behind it, wait for a free slot."""
        task = asyncio.current_task()
        if task not in self._running or task in self._slotless or len(self._slotless) >= MOST_YIELDED:
            yield  # it has none to give: another asyncio task than the one we started, or for the second time
            return
        self._slotless.add(task)
        self._slots.give()
        try:
            yield
        finally:
            if await self._slots.take(1):  # none is handed out any more to a worker that stops: then it ends without
                self._slotless.discard(task)

    async def run(self, execution: Execution) -> None:
        """Fetch and run until ``stop`` was called and everything that was fetched is settled or given back."""
        self._execution = execution
        self._own = asyncio.current_task()
        self._leases.start()
        aides = [asyncio.create_task(self._settler.run(), name="asyncqueue-settler")]
        if isinstance(self._broker, Tended):
            aides.append(asyncio.create_task(self._tend(self._broker), name="asyncqueue-tender"))
        working = asyncio.create_task(self._work(), name="asyncqueue-feeds")
        try:
            await asyncio.wait({working, *aides}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*aides, working):
                if task.done():
                    task.result()  # an aide does not end by itself: it failed, and so have we
        finally:
            for task in (working, *aides):
                task.cancel()
            self.cancel_running()
            try:
                await asyncio.wait({working, *aides})
                if self._running:
                    _, stubborn = await asyncio.wait(self._running, timeout=_LAST_CHANCE)
                    self._stubborn = tuple(wire.readable_task_id(self._running[task].body) or "?" for task in stubborn)
            finally:
                await self._leases.stop()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as feeds:
            for queue in (*self._queues, *self._companions):
                feeds.create_task(self._feed(queue), name=f"asyncqueue-feed-{queue}")
        await self._all_ended()
        await self._settler.drained()

    def stop(self) -> None:
        """Fetch no more; what runs goes on, what was not begun goes back."""
        self._stopping.set()
        self._slots.close()
        self._companion_slots.close()

    def cancel_running(self) -> None:
        """Cancel what runs; it goes back to its queue."""
        for task in self._running:
            self._give_up(task)

    def is_given_up(self, run: asyncio.Task[Any]) -> bool:
        """Whether we have cancelled it, or whoever ends the whole loop: then we are cancelled as well.
        ``run.cancelling()`` does not tell: a task may cancel itself, and before Python 3.13, it stays above 0 where a
        task group within a task has failed."""
        return run in self._given_up or (self._own is not None and self._own.cancelling() > 0)

    async def all_idle(self) -> None:
        """Wait until every queue was found empty and nothing runs or waits to be settled."""
        while not self._is_quiet():
            self._quiet.clear()
            await self._quiet.wait()

    # — fetching —

    async def _feed(self, queue: str) -> None:
        poll = _FIRST_POLL
        for_others = 0.0
        slots = self._slots_of(queue)
        alone = slots is self._companion_slots or len(self._queues) == 1
        while not self._stopping.is_set():
            if not await self._allowed():
                continue
            await self._settler.has_room()
            if strangers := self._strangers.get(queue):
                await self._pause(min(for_others, _FIRST_POLL * strangers))
            taken = await slots.take(self._max_batch)
            began = self._clock.monotonic()
            got = await self._fetch(queue, taken, WAIT if alone else 0.0)
            if not got and not alone:
                slots.give(taken)
                if slots.try_take(leaving=len(self._queues) - 1):
                    taken, poll = 1, _FIRST_POLL
                    got = await self._fetch(queue, 1, WAIT)
                else:
                    await self._pause(poll)
                    poll = min(_LAST_POLL, poll * 2)
                    continue
            for_others = _left_to_others(len(got), taken, self._clock.monotonic() - began)
            slots.give(taken - len(got))
            if got:
                poll = _FIRST_POLL
                await self._begin(got)

    async def _fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        """One fetch that ends by itself even while the broker is away: the loop above asks again."""
        mark = self._taken if self._is_calm() else None
        try:
            got = await self._patience.insist(
                f"fetch from {queue}", lambda: self._fetch_unless_stopping(queue, limit, wait)
            )
        except Refused as exc:
            self._events.emit(StoreRefused(f"fetch from {queue}", str(exc)))
            await self._pause(_REFUSED_PAUSE)
            return ()
        self._leases.hold(got)
        self._note(queue, got, mark)
        return got

    async def _fetch_unless_stopping(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if self._stopping.is_set() or limit < 1:
            return ()
        return await self._broker.fetch(queue, limit, wait)

    async def _allowed(self) -> bool:
        if self._may_consume is None:
            return True
        try:
            if await self._may_consume():
                return True
        except Exception as exc:  # the user's own code: not now, then
            self._events.emit(HookFailed("pre_consume", error_text(exc), exc))
        await self._pause(_LAST_POLL)
        return False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):  # the pause is over and nobody stopped us
            await asyncio.wait_for(self._stopping.wait(), seconds * random.uniform(0.8, 1.2))

    # — running —

    async def _begin(self, got: Sequence[Delivery]) -> None:
        """Start what was fetched; the slots for it are taken."""
        if self._stopping.is_set():
            await self._give_back(got)
            return
        if self.showings is not None:
            got = await self.showings.counted(got)
        dangerous = None
        if self._slots_of(got[0].queue) is self._slots:
            dangerous = next((delivery for delivery in got if delivery.attempt >= ISOLATE_FROM), None)
        if dangerous is None:
            for delivery in got:
                self._start(delivery)
            return
        await self._give_back([delivery for delivery in got if delivery is not dangerous])
        await self._run_alone(dangerous)

    def _start(self, delivery: Delivery) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._run(delivery))
        self._running[task] = delivery
        task.add_done_callback(self._ended)
        return task

    async def _run_alone(self, delivery: Delivery) -> None:
        self._slots.give()  # its own slot: two who keep one and wait for the rest would wait for ever
        held = await self._slots.take_all()
        if self._stopping.is_set():
            self._slots.give(held - 1)
            await self._give_back([delivery])
            return
        # not until all have ended: one that yielded its slot may be waiting for what comes after this one
        await asyncio.wait({self._start(delivery)})
        self._slots.give(held - 1)  # its own was given when it ended

    async def _run(self, delivery: Delivery) -> None:
        assert self._execution is not None
        try:
            ran = await self._execution.run(delivery)
        except asyncio.CancelledError:
            # where it was not us, it may come to that again at once
            ran = Ran(delivery, None, Cancelled() if self._stopping.is_set() else NotYet(_REFUSED_PAUSE))
        except Refused as exc:
            self._events.emit(StoreRefused("look up a state", str(exc)))
            ran = Ran(delivery, None, NotYet(_REFUSED_PAUSE))
        if isinstance(ran.outcome, NotMine):
            self._strangers[delivery.queue] = self._strangers.get(delivery.queue, 0) + 1
        elif self._strangers:
            self._strangers.pop(delivery.queue, None)
        if delivery.receipt in self._lost:
            ran = Ran(delivery, ran.signature, Lost())
        end = self._settled(ran)
        if self.showings is not None and end is not None and isinstance(end.verdict, Nack):
            end = replace(end, state=self.showings.taken_back(delivery))
        self._settler.ended(delivery, end)

    def _settled(self, ran: Ran) -> Settled | None:
        try:
            return settled(ran.delivery, ran.signature, ran.outcome, self._rules(), self._clock.now_ns())
        except ArgumentError as exc:  # a callback would be given what no message can say
            return self._failed(ran.delivery, error_text(exc))

    def _failed(self, delivery: Delivery, error: str) -> Settled | None:
        """What settles a delivery as a failure; None where it is no signature."""
        try:
            signature = wire.decode_signature(delivery.body, self._rules().limits)
        except BadMessage:
            return None
        return settled(delivery, signature, Failed(error), self._rules(), self._clock.now_ns())

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._running.pop(task)
        self._given_up.discard(task)
        if self.showings is not None:
            self.showings.ended(delivery)
        if task in self._slotless:
            self._slotless.discard(task)
        else:
            self._slots_of(delivery.queue).give()
        is_lost = delivery.receipt in self._lost
        self._lost.discard(delivery.receipt)
        if task.cancelled():  # before it began
            self._settler.ended(delivery, None if is_lost else Settled(delivery, Nack()))
        elif (error := task.exception()) is not None:
            # not the task's own error, which is an outcome, but ours: in the dead letter nothing is lost
            verdict = Bury("internal_error", error_text(error))
            failed = self._failed(delivery, verdict.error)
            self._settler.ended(delivery, replace(failed, verdict=verdict) if failed else Settled(delivery, verdict))
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a delivery could not be brought to an end", "exception": error, "task": task}
            )

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(self._running)
            await asyncio.sleep(0)  # the callbacks that take them out run after us

    # — giving back, losing, looking after —

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Unbegun work goes back, in order; its slots are free again."""
        if not deliveries:
            return
        with suppress(AsyncQueueError):  # then its lease ends, and it is shown again
            await self._nack(deliveries)
        for delivery in deliveries:
            self._leases.release(delivery)
        self._slots_of(deliveries[0].queue).give(len(deliveries))

    async def _nack(self, deliveries: Sequence[Delivery]) -> None:
        """Given up only by a worker that stops: the lease of one that goes on may never end."""
        while True:
            try:
                await self._patience.insist("give work back", lambda: self._broker.nack(deliveries), budget=_GIVE_BACK)
                return
            except Unavailable:
                if self._stopping.is_set():
                    raise

    def _on_lost(self, deliveries: Sequence[Delivery]) -> None:
        lost = {delivery.receipt for delivery in deliveries}
        for delivery in deliveries:
            self._leases.release(delivery)
        victims = [(task, held) for task, held in self._running.items() if held.receipt in lost]
        for task, held in victims:
            self._lost.add(held.receipt)
            self._give_up(task)
        if victims:
            self._events.emit(LeasesLost(len(victims), victims[0][1].queue))

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._given_up.add(task)
        task.cancel()

    def _on_blocked(self, seconds: float, stack: str) -> None:
        self._events.emit(LoopBlocked(seconds, stack))

    def _thread_ended(self, thread: Future[Any]) -> None:
        if self._threads.pop(thread, None) is not None:
            self._slots.resize(self._slots.total + 1)

    async def _tend(self, broker: Tended) -> None:
        while True:
            try:
                again = await broker.tend(self._tended)
            except Unavailable:
                again = 1.0  # the fetches tell the world
            except Refused as exc:
                self._events.emit(StoreRefused("tend the queues", str(exc)))
                again = _REFUSED_PAUSE
            await asyncio.sleep(max(0.001, again) * random.uniform(0.9, 1.0))

    def _note(self, queue: str, got: Sequence[Delivery], mark: int | None) -> None:
        """A queue counts as empty when a fetch found nothing, and nothing was under way here from its begin to its end
        that could have filled it."""
        if got:
            self._taken += len(got)
            self._idle_queues.clear()
        elif mark == self._taken and self._is_calm():
            self._idle_queues.add(queue)
            self._quiet.set()

    def _is_calm(self) -> bool:
        """Whether nothing is under way here that could still send something."""
        return not self._running and self._settler.is_drained

    def _is_quiet(self) -> bool:
        return self._is_calm() and len(self._idle_queues) == len(self._queues) + len(self._companions)

    def _slots_of(self, queue: str) -> Slots:
        return self._companion_slots if queue in self._companions else self._slots


def slots_for(concurrency: int, prefetch: int) -> Slots:
    """Slots for a concurrency: 0 is unlimited, which still means a bound (``prefetch``) that memory can stand."""
    return Slots(concurrency if concurrency > 0 else prefetch)


def _left_to_others(got: int, asked: int, took: float) -> float:
    """How long (seconds) a queue is left to others after a fetch that brought nothing that is known here.

    What is known may lie behind a fetch that came back full: then it is for as long as lets others have most of what
    there is, and keeps the service and us idle for most of the time. Else there was no more to see.
    """
    return min(_LAST_POLL, _PAUSE_FOR_EACH * got + _PAUSE_FOR_FETCH * took) if got == asked else _LAST_POLL


def _tell_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: the worker has left
        loop.call_soon_threadsafe(function)
