"""How much may run at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """A semaphore that hands out several slots at once, first come first served.

    Slots are taken for a waiter in the moment it is woken, so nobody can slip in between.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiters: deque[tuple[bool, int, asyncio.Future[int]]] = deque()
        self._closed = False

    @property
    def total(self) -> int:
        """How many there are."""
        return self._total

    @property
    def free(self) -> int:
        """How many nobody has; negative while more are taken than there are (after ``resize``)."""
        return self._free

    async def take(self, most: int) -> int:
        """Wait for at least one slot; returns how many were taken, at most ``most``; 0 after ``close``."""
        return await self._turn(everything=False, most=most)

    async def take_all(self) -> int:
        """Wait until every slot is free and take them all: whoever has them is alone. Returns how many; 0 after
        ``close``."""
        return await self._turn(everything=True, most=0)

    def try_take(self, leaving: int) -> bool:
        """Take one slot now if at least ``leaving`` are free beside it and nobody waits."""
        if self._waiters or self._free <= leaving:
            return False
        self._free -= 1
        return True

    def give(self, count: int = 1) -> None:
        """Give slots back."""
        self._free += count
        self._wake()

    def resize(self, total: int) -> None:
        """Change how many there are; what runs goes on."""
        self._free += total - self._total
        self._total = total
        self._wake()

    def close(self) -> None:
        """Hand out no more: whoever waits leaves without."""
        self._closed = True
        self._wake()

    async def _turn(self, *, everything: bool, most: int) -> int:
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        entry = (everything, most, turn)
        self._waiters.append(entry)
        self._wake()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(turn.result())  # we were given them, and leave without
            elif entry in self._waiters:
                self._waiters.remove(entry)
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiters:
            everything, most, turn = self._waiters[0]
            if turn.cancelled():
                self._waiters.popleft()
                continue
            if self._closed:
                self._waiters.popleft()
                turn.set_result(0)
                continue
            if self._free < max(1, self._total if everything else 1):
                return
            self._waiters.popleft()
            taken = self._free if everything else min(most, self._free)
            self._free -= taken
            turn.set_result(taken)
