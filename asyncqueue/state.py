"""What is known of a task or a group: Machinery's ``TaskState``, ``TaskResult`` and ``GroupMeta``.

A task goes PENDING → RECEIVED → STARTED → SUCCESS or FAILURE; RETRY leads back. SUCCESS and FAILURE are final: a
store never lets a later write take them back, only a new send of the same UUID does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from asyncqueue import rfc3339
from asyncqueue.signature import INT64_MAX, INT64_MIN, MODEL, Moment


class State(StrEnum):
    """Machinery's six states."""

    PENDING = "PENDING"
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    RETRY = "RETRY"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows this state but a new send."""
        return self is State.SUCCESS or self is State.FAILURE


class TaskResult(BaseModel):
    """One value that a task returned: its type name and its JSON form."""

    model_config = MODEL

    type: str = Field(default="", validation_alias="Type")
    value: Any = Field(default=None, validation_alias="Value")


class TaskState(BaseModel):
    """What the backend knows of a task.

    ``created_at`` is unix nanoseconds of the send (``rfc3339.ZERO`` where it is not known). ``attempt`` is ours: the
    number of the attempt this state speaks of, from 1; 0 is "not said", and is not written. So is ``deliveries``: how
    often the message of that attempt was shown, where that is more than once. ``not_before`` (unix
    seconds) is when the task is due, where that is later than now; it is never written, and only tells a store from
    when on the entry is to be kept.
    """

    model_config = MODEL

    task_uuid: str = Field(default="", validation_alias="TaskUUID")
    task_name: str = Field(default="", validation_alias="TaskName")
    state: State = Field(default=State.PENDING, validation_alias="State")
    results: tuple[TaskResult, ...] | None = Field(default=None, validation_alias="Results")
    error: str = Field(default="", validation_alias="Error")
    created_at: Moment = Field(default=rfc3339.ZERO, validation_alias="CreatedAt")
    ttl: int = Field(default=0, ge=INT64_MIN, le=INT64_MAX, validation_alias="TTL")
    attempt: int = Field(default=0, ge=0, le=INT64_MAX, validation_alias="AqAttempt")
    deliveries: int = Field(default=0, ge=0, le=INT64_MAX, validation_alias="AqDeliveries")
    not_before: float | None = Field(default=None, exclude=True, validation_alias="AqNotBefore")

    @property
    def is_completed(self) -> bool:
        """Whether the state is final."""
        return self.state.is_final

    @property
    def is_success(self) -> bool:
        """Whether the task ended well."""
        return self.state is State.SUCCESS

    @property
    def is_failure(self) -> bool:
        """Whether the task ended in failure."""
        return self.state is State.FAILURE


class GroupMeta(BaseModel):
    """What the backend knows of a group: its members, in order, and whether its chord was triggered.

    ``not_before`` (unix seconds) is when its first members are due, where that is later than now; it is never written,
    and only tells a store from when on the entry is to be kept.
    """

    model_config = MODEL

    group_uuid: str = Field(default="", validation_alias="GroupUUID")
    task_uuids: tuple[str, ...] | None = Field(default=None, validation_alias="TaskUUIDs")
    chord_triggered: bool = Field(default=False, validation_alias="ChordTriggered")
    lock: bool = Field(default=False, validation_alias="Lock")
    created_at: Moment = Field(default=rfc3339.ZERO, validation_alias="CreatedAt")
    ttl: int = Field(default=0, ge=INT64_MIN, le=INT64_MAX, validation_alias="TTL")
    not_before: float | None = Field(default=None, exclude=True, validation_alias="AqNotBefore")


def may_follow(new: State, old: State | None) -> bool:
    """Whether a store takes ``new`` where it holds ``old``: nothing follows a final state, PENDING follows nothing.

    ``Backend.begin`` is the exception, and the only one: a new send starts over.
    """
    return old is None or not (old.is_final or new is State.PENDING)
