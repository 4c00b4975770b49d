"""Keeping what we hold: a heartbeat that a blocked event loop cannot stop.

Everything taken is extended well within its lease by a second instance of the broker, in a thread and a loop of its
own. What turns out to be lost is reported to the worker's loop. Where deliveries have no lease but are ours as long as
something lives that the broker itself holds, a connection or a channel, it is asked from time to time what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any

from asyncqueue.brokers.base import Broker, Delivery
from asyncqueue.clock import Clock
from asyncqueue.engine.settlement import parts
from asyncqueue.errors import AsyncQueueError

_BEATS_PER_LEASE = 5
_PULSE = 1.0
_PARTS_AT_ONCE = 8
"""How many requests one beat has under way, where a service takes few deliveries in each."""

_GLANCE = 1.0
"""How often (seconds) a broker without leases is asked what is lost."""


class LeaseKeeper:
    """Extends what is held, from ``hold`` until ``release``.

    ``lost`` is called in the worker's loop with deliveries that are no longer ours; ``blocked`` with the seconds and
    the stack of a loop that did not turn for ``blocked_after`` seconds, once per blockage.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        clock: Clock,
        lost: Callable[[Sequence[Delivery]], None],
        blocked: Callable[[float, str], None],
        blocked_after: float = 5.0,
    ) -> None:
        self._broker = broker
        self._lease = broker.capabilities.lease
        self._clock = clock
        self._lost = lost
        self._blocked = blocked
        self._blocked_after = blocked_after
        self._held: dict[Hashable, Delivery] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beating: asyncio.Task[None] | None = None
        self._asked_at = self._turned_at = clock.monotonic()
        self._ready = threading.Event()
        self._glancing: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """How many deliveries are held."""
        return len(self._held)

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        """Extend these from now on."""
        self._held.update((delivery.receipt, delivery) for delivery in deliveries)

    def release(self, delivery: Delivery) -> None:
        """This one has come to its end."""
        self._held.pop(delivery.receipt, None)

    def start(self) -> None:
        """Start the heartbeat."""
        if self._thread is not None:
            return
        if self._lease is None:
            self._glancing = asyncio.create_task(self._glance(), name="asyncqueue-leases")
        twin = None if self._lease is None else self._broker.twin()
        beat = self._beat(twin, asyncio.get_running_loop(), threading.get_ident())
        self._thread = threading.Thread(target=self._run, args=(beat,), name="asyncqueue-leases", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the heartbeat; what is still held is no longer extended."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._glancing is not None:
            self._glancing.cancel()
            await asyncio.wait({self._glancing})
        await asyncio.to_thread(self._ready.wait)
        if self._loop is not None and self._beating is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._beating.cancel)  # a store that does not answer holds up no stop
        await asyncio.to_thread(thread.join)

    def _run(self, beat: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(beat)
        except asyncio.CancelledError:
            return  # by stop
        finally:
            self._ready.set()

    async def _glance(self) -> None:
        """Tell what was lost, by the broker itself: what it holds may belong to a connection of its own."""
        while True:
            await asyncio.sleep(_GLANCE)
            held = list(self._held.values())
            with contextlib.suppress(AsyncQueueError):  # the worker's own calls tell the world that the store is away
                for part in parts(held, self._broker.capabilities.max_batch):
                    if lost := await self._broker.extend(part):
                        self._lost(tuple(lost))

    async def _beat(self, twin: Broker | None, owner: asyncio.AbstractEventLoop, main: int) -> None:
        self._loop, self._beating = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        every = _PULSE if self._lease is None else self._lease / _BEATS_PER_LEASE
        next_beat = self._clock.monotonic() + every
        told = False
        try:
            while not owner.is_closed():  # what is held by a loop that is gone is held by nobody
                self._ask_for_a_turn(owner)
                told = self._watch(owner, main, told)
                if self._clock.monotonic() >= next_beat and await self._extend(twin, owner):
                    next_beat = self._clock.monotonic() + every  # else the next pulse tries again
                await asyncio.sleep(min(_PULSE, every))
        finally:
            if twin is not None:
                with contextlib.suppress(AsyncQueueError):  # we are leaving
                    await twin.close()

    async def _extend(self, twin: Broker | None, owner: asyncio.AbstractEventLoop) -> bool:
        """Whether everything that is held was extended."""
        held = list(self._held.values())
        if twin is None or not held:
            return True
        at_once = asyncio.Semaphore(_PARTS_AT_ONCE)

        async def extend(part: Sequence[Delivery]) -> bool:
            async with at_once:
                return await self._extend_part(twin, owner, part)

        done = await asyncio.gather(*(extend(part) for part in parts(held, twin.capabilities.max_batch)))
        return all(done)

    async def _extend_part(self, twin: Broker, owner: asyncio.AbstractEventLoop, part: Sequence[Delivery]) -> bool:
        """Whether these were extended. What the service refuses to one part concerns no other."""
        try:
            await twin.open()
            lost = await twin.extend(part)
        except AsyncQueueError:
            return False  # the worker's own calls tell the world that the store is away
        except Exception as exc:  # no driver should; but if this thread ended, every lease would, without a word
            context = {"message": "leases could not be extended", "exception": exc}
            _call(owner, functools.partial(owner.call_exception_handler, context))
            return False
        if lost:
            _call(owner, functools.partial(self._lost, tuple(lost)))
        return True

    def _ask_for_a_turn(self, owner: asyncio.AbstractEventLoop) -> None:
        if self._turned_at >= self._asked_at:  # else the last question still waits for its answer
            self._asked_at = self._clock.monotonic()
            _call(owner, self._turn)

    def _turn(self) -> None:
        self._turned_at = self._clock.monotonic()

    def _watch(self, owner: asyncio.AbstractEventLoop, main: int, told: bool) -> bool:
        if self._turned_at >= self._asked_at:
            return False
        # since it was asked, not since its last turn: this loop may itself have waited long for a store
        silent = self._clock.monotonic() - self._asked_at
        if silent < self._blocked_after:
            return told
        if not told:
            frame = sys._current_frames().get(main)
            stack = "".join(traceback.format_stack(frame)[-8:]) if frame else "(no frame)"
            self._blocked(silent, stack)
        return True


def _call(owner: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the worker's loop is closed: nobody is left to tell
        owner.call_soon_threadsafe(function)
