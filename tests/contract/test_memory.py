"""The memory drivers keep the contracts, and what is theirs alone."""

from __future__ import annotations

import pytest

from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.testing import BrokerContract, ManualClock


class OnMemory:
    """A store and a clock of each test's own."""

    def setup_method(self) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestMemoryBroker(OnMemory, BrokerContract):
    knows_priorities = True

    async def make_broker(self) -> MemoryBroker:
        return MemoryBroker(self.store, lease=10.0, clock=self.clock)


class TestMemoryBrokerWithoutLease(OnMemory, BrokerContract):
    knows_priorities = True

    async def make_broker(self) -> MemoryBroker:
        return MemoryBroker(self.store, clock=self.clock)
