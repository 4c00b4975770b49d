"""Fixtures for tests of applications: a clock to move, a store to look into, faults to plan.

Switched on in a ``conftest.py`` by ``pytest_plugins = ["asyncqueue.testing.plugin"]``. Everything is imported where it
is used, since a plugin is loaded by test runs that need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from asyncqueue.connections.memory import MemoryStore
    from asyncqueue.testing.clock import ManualClock
    from asyncqueue.testing.faults import Faults


@pytest.fixture
def manual_clock() -> ManualClock:
    """A clock that stands still until ``advance``; give it to memory drivers."""
    from asyncqueue.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def memory_store() -> MemoryStore:
    """A store of this test's own, for ``MemoryBroker``, ``MemoryBackend`` and ``MemoryLock``."""
    from asyncqueue.connections.memory import MemoryStore

    return MemoryStore()


@pytest.fixture
def faults() -> Faults:
    """Faults to plan, for ``with_faults``."""
    from asyncqueue.testing.faults import Faults

    return Faults()
