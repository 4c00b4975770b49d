"""Shipped for tests: contract suites, faults, a manual clock.

The suites are pytest classes. A driver's test page subclasses one and says how to make the driver::

    class TestMyBroker(BrokerContract):
        async def make_broker(self) -> Broker:
            return MyBroker(self.namespace)

They need pytest and pytest-asyncio; nothing else here does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncqueue.testing.backend_contract import BackendContract
    from asyncqueue.testing.broker_contract import BrokerContract
    from asyncqueue.testing.clock import ManualClock
    from asyncqueue.testing.faults import Faults, with_faults
    from asyncqueue.testing.group_contract import GroupContract
    from asyncqueue.testing.inspector_contract import InspectorContract
    from asyncqueue.testing.joint_contract import JointContract
    from asyncqueue.testing.joint_group_contract import JointGroupContract
    from asyncqueue.testing.lock_contract import LockContract
    from asyncqueue.testing.migrating_contract import MigratingContract
    from asyncqueue.testing.turn_contract import TurnLockContract

__all__ = [
    "BackendContract",
    "BrokerContract",
    "Faults",
    "GroupContract",
    "InspectorContract",
    "JointContract",
    "JointGroupContract",
    "LockContract",
    "ManualClock",
    "MigratingContract",
    "TurnLockContract",
    "with_faults",
]

_SUITES = {
    "BackendContract": "backend_contract",
    "BrokerContract": "broker_contract",
    "GroupContract": "group_contract",
    "InspectorContract": "inspector_contract",
    "JointContract": "joint_contract",
    "JointGroupContract": "joint_group_contract",
    "LockContract": "lock_contract",
    "MigratingContract": "migrating_contract",
    "TurnLockContract": "turn_contract",
}
_TOOLS = {"Faults": "faults", "ManualClock": "clock", "with_faults": "faults"}


def __getattr__(name: str) -> Any:
    """Each name is imported on first use: a pytest plugin of this package must not load drivers or pytest-asyncio."""
    if name in _SUITES:
        import pytest

        modules = (f"{__name__}.{module}" for module in ("suite", *_SUITES.values()))
        pytest.register_assert_rewrite(*modules)  # failures then show the values compared
        return getattr(import_module(f"{__name__}.{_SUITES[name]}"), name)
    if name in _TOOLS:
        return getattr(import_module(f"{__name__}.{_TOOLS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
