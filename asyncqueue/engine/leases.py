"""Keeping what we hold: a heartbeat that a blocked event loop cannot stop.

Everything taken is extended well within its lease by a second instance of the broker, in a thread and a loop of its
own. What turns out to be lost is reported to the worker's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence

from asyncqueue.brokers.base import Broker, Delivery
from asyncqueue.clock import Clock
from asyncqueue.engine.settlement import parts
from asyncqueue.errors import AsyncQueueError

_BEATS_PER_LEASE = 5
_PULSE = 1.0


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
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_at = self._turned_at = clock.monotonic()
        self._ready = threading.Event()

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
        """Start the heartbeat, where the broker has leases at all."""
        if self._lease is None or self._thread is not None:
            return
        owner = asyncio.get_running_loop()
        main = threading.get_ident()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._beat(owner, main)), name="asyncqueue-leases", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """End the heartbeat; what is still held is no longer extended."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await asyncio.to_thread(self._ready.wait)
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(thread.join)

    async def _beat(self, owner: asyncio.AbstractEventLoop, main: int) -> None:
        assert self._lease is not None
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        twin = self._broker.twin()
        every = self._lease / _BEATS_PER_LEASE
        next_beat = self._clock.monotonic() + every
        told = False
        try:
            while not self._stop.is_set():
                self._ask_for_a_turn(owner)
                told = self._watch(owner, main, told)
                if self._clock.monotonic() >= next_beat:
                    await self._extend(twin, owner)
                    next_beat = self._clock.monotonic() + every
                with contextlib.suppress(TimeoutError):  # nobody asked us to stop
                    await asyncio.wait_for(self._stop.wait(), min(_PULSE, every))
        finally:
            with contextlib.suppress(AsyncQueueError):  # we are leaving
                await twin.close()

    async def _extend(self, twin: Broker, owner: asyncio.AbstractEventLoop) -> None:
        held = list(self._held.values())
        if not held:
            return
        try:
            await twin.open()
            for part in parts(held, twin.capabilities.max_batch):
                lost = await twin.extend(part)
                if lost:
                    _call(owner, functools.partial(self._lost, tuple(lost)))
        except AsyncQueueError:
            return  # the next beat tries again; the worker's own calls tell the world that the store is away

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
