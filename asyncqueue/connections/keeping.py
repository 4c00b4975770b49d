"""What is kept of entries and for how long, in stores that see to it themselves. Moments are unix seconds, times are
seconds."""

from __future__ import annotations

from asyncqueue import rfc3339
from asyncqueue.state import TaskState

LEAST_GAIN = 0.25
"""What would be kept longer by less than this part of its time is not touched."""


def kept_until(keep: float, now: float, not_before: float | None) -> float:
    """Until when an entry is kept that is written now, and due then."""
    return max(now, not_before or now) + keep


def with_send_kept(state: TaskState, task_name: str, created_at: int) -> TaskState:
    """A state that says name and time of the send: its own, or else those of the entry that was there."""
    changes: dict[str, object] = {}
    if not state.task_name:
        changes["task_name"] = task_name
    if state.created_at == rfc3339.ZERO:
        changes["created_at"] = created_at
    return state.model_copy(update=changes) if changes else state
