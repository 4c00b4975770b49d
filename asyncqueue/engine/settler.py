"""Batching by completion: whatever ended while the last settlement was under way goes into the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeAlias

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Bury, Delivery, Settled
from asyncqueue.engine.events import Events, MessageBuried, StoreRefused
from asyncqueue.engine.following import family
from asyncqueue.engine.messages import MAX_ERROR_TEXT
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.settlement import WholeSettlement, parts
from asyncqueue.engine.showings import started_state
from asyncqueue.errors import Unavailable
from asyncqueue.signature import Signature
from asyncqueue.state import State

STARTED_AFTER = 0.02
"""A run that ends within this many seconds is not reported as STARTED: nobody could rely on seeing it. One that
lasts twice as long is."""

TAKEN_FOR_AWAY = 3
"""How many more items have to fail alone than are settled alone, until the stores are away for the rest as well."""

REPORTED_AGAIN_AFTER = 1.0
"""How long (seconds) a start that could not be recorded waits until it is tried again: it is only news."""

REPORTS_PER_EXPIRY = 3
"""How often a long run is reported anew within the time that its entry is kept, so that nobody takes it for gone."""

_Run: TypeAlias = tuple[Signature, int, int]
"""What runs, which attempt of the task it is, and which showing of its message."""


class Settler:
    """Settles what ended, one batch at a time.

    Items of a batch for which the stores are away are tried alone: of a store of several servers, one may be away that
    the others do not need. What cannot be settled is put off and tried again, beside what ends meanwhile.

    ``settled`` is called with every delivery whose end is recorded. ``failed`` says what settles a delivery as a
    failure with that error, for a result that a store refuses; None where there is no such thing. STARTED is written
    from here too, so that it can never overtake the end of the same run.
    """

    def __init__(
        self,
        settlement: WholeSettlement,
        backend: Backend | None,
        *,
        events: Events,
        patience: Patience,
        settled: Callable[[Delivery], None],
        failed: Callable[[Delivery, str], Settled | None],
        max_batch: int,
    ) -> None:
        self._settlement = settlement
        self._backend = backend
        self._events = events
        self._patience = patience
        self._settled = settled
        self._failed = failed
        self._max_batch = max_batch
        self._room_for = 3 * max_batch  # a batch that is under way, and two behind it
        self._ended: deque[Settled] = deque()
        self._put_off: list[Settled] = []
        self._away: Unavailable | None = None
        self._unsettled = 0
        self._fresh: dict[Hashable, _Run] = {}
        self._older: dict[Hashable, _Run] = {}
        self._reported: dict[Hashable, _Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_round: asyncio.TimerHandle | None = None
        self._report = False
        self._wake = asyncio.Event()
        self._is_put_off = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()

    def started(self, delivery: Delivery, signature: Signature, attempt: int) -> None:
        """A run began; if it does not end soon, its state becomes STARTED."""
        if self._backend is None:
            return
        self._fresh[delivery.receipt] = (signature, attempt, delivery.attempt)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STARTED_AFTER, self._time_to_report)

    def ended(self, delivery: Delivery, settled: Settled | None) -> None:
        """A run came to its end; None: there is nothing to settle."""
        for runs in (self._fresh, self._older, self._reported):
            if runs.pop(delivery.receipt, None) is not None:
                break
        if settled is None:
            self._settled(delivery)
            return
        self._ended.append(settled)
        self._unsettled += 1
        if self._unsettled >= self._room_for:
            self._room.clear()
        self._idle.clear()
        self._wake.set()

    async def has_room(self) -> None:
        """Wait while more has ended than the stores keep up with: what runs no further need not be fetched."""
        await self._room.wait()

    @property
    def is_drained(self) -> bool:
        """Whether everything that ended is settled."""
        return self._idle.is_set()

    async def drained(self) -> None:
        """Wait until everything that ended is settled."""
        await self._idle.wait()

    async def run(self) -> None:
        """Settle until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_put_off())
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._report:
                    await self._report_started()
                while self._ended:
                    await self._settle([self._ended.popleft() for _ in range(min(len(self._ended), self._max_batch))])

    async def _settle_put_off(self) -> None:
        while True:
            await self._is_put_off.wait()
            self._is_put_off.clear()
            await self._patience.insist("settle tasks", self._try_put_off)

    async def _try_put_off(self) -> None:
        """Raises ``Unavailable`` while there is something that cannot be settled."""
        put_off, self._put_off = self._put_off, []
        for batch in parts(put_off, self._max_batch):
            await self._settle(batch)
        if self._put_off and self._away is not None:
            raise self._away

    async def _settle(self, batch: Sequence[Settled]) -> None:
        """Settle what can be settled now, and put off the rest."""
        if len(batch) == 1:
            await self._settle_alone(batch[0])
            return
        try:
            await self._settlement.settle(batch)
        except Unavailable:
            untried, failures = deque(batch), 0
            while untried and failures < TAKEN_FOR_AWAY:
                failures += -1 if await self._settle_alone(untried.popleft()) else 1
            self._put_off[:0] = untried
        except Exception:  # refused, or a value that cannot be written: one bad item must not hold up the others
            for item in batch:
                await self._settle_alone(item)
        else:
            for item in batch:
                self._tell(item)
                self._let_go(item)

    async def _settle_alone(self, item: Settled) -> bool:
        """Whether it is settled, or as good as a store allows; else it is put off."""
        try:
            await self._settlement.settle([item])
        except Unavailable as exc:
            self._away = exc
            self._put_off.append(item)
            self._is_put_off.set()
            return False
        except Exception as exc:  # as above: it must not stop a worker
            self._events.emit(StoreRefused("settle a task", str(exc)))
            simpler = self._simpler(item, f"{type(exc).__name__}: {exc}"[:MAX_ERROR_TEXT])
            if simpler is not None:
                return await self._settle_alone(simpler)
            # not even the dead letter takes it: it is shown again when its lease ends, which is when this worker ends
            # where one heartbeat holds all that a worker has
        else:
            self._tell(item)
        self._let_go(item)
        return True

    def _let_go(self, item: Settled) -> None:
        self._settled(item.delivery)
        self._unsettled -= 1
        if self._unsettled < self._room_for:
            self._room.set()
        if not self._unsettled:
            self._idle.set()

    def _simpler(self, item: Settled, error: str) -> Settled | None:
        """An end that the store may take where it refused this one: FAILURE that says why; then the dead letter, with
        nothing recorded; then none."""
        if item.state is not None and item.state.state is State.SUCCESS:
            failed = self._failed(item.delivery, f"the result could not be stored: {error}")
            # its success may be recorded, and only its callbacks be refused: they are not to be lost without a trace
            return replace(failed, verdict=Bury("refused", error)) if failed is not None and item.publish else failed
        if item.state is None and not item.publish and isinstance(item.verdict, Bury):
            return None
        return Settled(item.delivery, Bury("refused", error))

    async def _report_started(self) -> None:
        self._report = False
        due, self._older, self._fresh = self._older, self._fresh, {}
        if self._older and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STARTED_AFTER, self._time_to_report)
        backend = self._backend
        if not due or backend is None:
            return
        self._reported.update(due)
        if self._next_round is None:
            pause = max(STARTED_AFTER, backend.results_expire_in / REPORTS_PER_EXPIRY)
            self._next_round = asyncio.get_running_loop().call_later(pause, self._time_to_report_anew)
        states = [started_state(*run) for run in due.values()]
        families = [known for signature, _, _ in due.values() if (known := family(signature))]
        try:
            await backend.put(states)
            if families:  # what waits for a long run is to be there when it ends
                await backend.touch(families)
        except Unavailable:  # ends are not to wait for this
            for receipt in due.keys() & self._reported.keys():
                self._older[receipt] = self._reported.pop(receipt)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(REPORTED_AGAIN_AFTER, self._time_to_report)
        except Exception as exc:  # it is only news; the end of these runs is recorded all the same
            self._events.emit(StoreRefused("record STARTED", str(exc)))

    def _time_to_report(self) -> None:
        self._timer = None
        if self._fresh or self._older:
            self._report = True
            self._wake.set()

    def _time_to_report_anew(self) -> None:
        self._next_round = None
        if self._reported:
            self._older.update(self._reported)
            self._reported = {}
            self._report = True
            self._wake.set()

    def _tell(self, item: Settled) -> None:
        match item.verdict:
            case Bury(reason, error):
                task_id = item.state.task_uuid if item.state else ""
                self._events.emit(MessageBuried(task_id, item.delivery.queue, reason, error))
            case _:
                pass
