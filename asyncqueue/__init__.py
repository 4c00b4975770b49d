"""The asyncio-native task queue that speaks Machinery's wire format.

The public names are here. What is behind them is imported when it is first used, so that importing this package costs
next to nothing and loads no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncqueue.arguments import (
        Float32,
        Float64,
        Int,
        Int8,
        Int16,
        Int32,
        Int64,
        Uint,
        Uint8,
        Uint16,
        Uint32,
        Uint64,
    )
    from asyncqueue.builders import Chain, Chord, Group, TaskSignature, chain, chord, group
    from asyncqueue.config import Settings
    from asyncqueue.engine.context import TaskContext, current_task
    from asyncqueue.errors import (
        ArgumentError,
        AsyncQueueError,
        BadMessage,
        ConfigError,
        LeaseLost,
        MemberFailed,
        MessageTooLarge,
        NoBackend,
        PublishUnknown,
        Refused,
        ResultError,
        ResultExpired,
        ResultTimeout,
        ResultUnknown,
        RetryTaskLater,
        TaskFailed,
        TaskNotRegistered,
        Unavailable,
    )
    from asyncqueue.result import AsyncResult
    from asyncqueue.server import Server
    from asyncqueue.signature import Arg, Signature
    from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
    from asyncqueue.task import Task
    from asyncqueue.worker import Worker
    from asyncqueue.workflow import MemberFailure
    from asyncqueue.workflow_results import ChainResult, ChordResult, GroupResult

__version__ = "0.1.0"

_HOMES = {
    "Float32": "asyncqueue.arguments",
    "Float64": "asyncqueue.arguments",
    "Int": "asyncqueue.arguments",
    "Int8": "asyncqueue.arguments",
    "Int16": "asyncqueue.arguments",
    "Int32": "asyncqueue.arguments",
    "Int64": "asyncqueue.arguments",
    "Uint": "asyncqueue.arguments",
    "Uint8": "asyncqueue.arguments",
    "Uint16": "asyncqueue.arguments",
    "Uint32": "asyncqueue.arguments",
    "Uint64": "asyncqueue.arguments",
    "Chain": "asyncqueue.builders",
    "Chord": "asyncqueue.builders",
    "Group": "asyncqueue.builders",
    "TaskSignature": "asyncqueue.builders",
    "chain": "asyncqueue.builders",
    "chord": "asyncqueue.builders",
    "group": "asyncqueue.builders",
    "Settings": "asyncqueue.config",
    "TaskContext": "asyncqueue.engine.context",
    "current_task": "asyncqueue.engine.context",
    "ArgumentError": "asyncqueue.errors",
    "AsyncQueueError": "asyncqueue.errors",
    "BadMessage": "asyncqueue.errors",
    "ConfigError": "asyncqueue.errors",
    "LeaseLost": "asyncqueue.errors",
    "MemberFailed": "asyncqueue.errors",
    "MessageTooLarge": "asyncqueue.errors",
    "NoBackend": "asyncqueue.errors",
    "PublishUnknown": "asyncqueue.errors",
    "Refused": "asyncqueue.errors",
    "ResultError": "asyncqueue.errors",
    "ResultExpired": "asyncqueue.errors",
    "ResultTimeout": "asyncqueue.errors",
    "ResultUnknown": "asyncqueue.errors",
    "RetryTaskLater": "asyncqueue.errors",
    "TaskFailed": "asyncqueue.errors",
    "TaskNotRegistered": "asyncqueue.errors",
    "Unavailable": "asyncqueue.errors",
    "AsyncResult": "asyncqueue.result",
    "Server": "asyncqueue.server",
    "Arg": "asyncqueue.signature",
    "Signature": "asyncqueue.signature",
    "GroupMeta": "asyncqueue.state",
    "State": "asyncqueue.state",
    "TaskResult": "asyncqueue.state",
    "TaskState": "asyncqueue.state",
    "Task": "asyncqueue.task",
    "Worker": "asyncqueue.worker",
    "MemberFailure": "asyncqueue.workflow",
    "ChainResult": "asyncqueue.workflow_results",
    "ChordResult": "asyncqueue.workflow_results",
    "GroupResult": "asyncqueue.workflow_results",
}

__all__ = [
    "Arg",
    "ArgumentError",
    "AsyncQueueError",
    "AsyncResult",
    "BadMessage",
    "Chain",
    "ChainResult",
    "Chord",
    "ChordResult",
    "ConfigError",
    "Float32",
    "Float64",
    "Group",
    "GroupMeta",
    "GroupResult",
    "Int",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "LeaseLost",
    "MemberFailed",
    "MemberFailure",
    "MessageTooLarge",
    "NoBackend",
    "PublishUnknown",
    "Refused",
    "ResultError",
    "ResultExpired",
    "ResultTimeout",
    "ResultUnknown",
    "RetryTaskLater",
    "Server",
    "Settings",
    "Signature",
    "State",
    "Task",
    "TaskContext",
    "TaskFailed",
    "TaskNotRegistered",
    "TaskResult",
    "TaskSignature",
    "TaskState",
    "Uint",
    "Uint8",
    "Uint16",
    "Uint32",
    "Uint64",
    "Unavailable",
    "Worker",
    "chain",
    "chord",
    "current_task",
    "group",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
