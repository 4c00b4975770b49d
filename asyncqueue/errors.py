"""Every error this package raises, in one tree.

AsyncQueueError
├── ConfigError              a setting, URL or registration that cannot work; names it and what was expected
├── Unavailable              a service did not answer; trying again may help
│   ├── Blocked              the service takes no messages for now, and goes on giving out those that it has
│   └── PublishUnknown       the outcome of a publish is not known; sending the same signature again is safe
├── Refused                  a service or a limit said no; trying again does not help
│   ├── MessageTooLarge      a message over the size limit
│   └── EntryTooLarge        a state, group or plan over the size limit of the store of results
├── BadMessage               bytes that are not a signature (or a state); `reason` is a short word for the dead letter
├── ArgumentError            arguments that do not fit a task's parameters (also a TypeError)
├── TaskNotRegistered        no task of that name on this server
├── ResultError
│   ├── NoBackend            a result was asked for, and this server keeps none
│   ├── ResultTimeout        no final state within the timeout (also a TimeoutError)
│   ├── ResultExpired        the entry is gone, and this handle knows that it once was there
│   ├── ResultUnknown        no entry: the UUID never was, or its entry expired
│   └── TaskFailed           the task ended in FAILURE; `error` is the text it left
│       └── MemberFailed     a member of a group did; `index` is its place in the group
├── RetryTaskLater           raised by a task: run me again after `delay` seconds
└── LeaseLost                the service gave this delivery to somebody else
"""

from __future__ import annotations


class AsyncQueueError(Exception):
    """The root of every error of this package."""


class ConfigError(AsyncQueueError):
    """A setting, URL or registration that cannot work."""


class Unavailable(AsyncQueueError):
    """A service did not answer, or not in time. Trying again may help."""


class Blocked(Unavailable):
    """A service is short of memory or disk and takes no messages for now. It goes on giving out those that it has."""


class PublishUnknown(Unavailable):
    """Whether the service has the messages is not known.

    ``task_ids`` are the UUIDs concerned; sending the same signatures again is safe.
    """

    def __init__(self, message: str, task_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.task_ids = task_ids


class Refused(AsyncQueueError):
    """A service or a limit said no. Trying the same again does not help."""


class MessageTooLarge(Refused):
    """A message is over the size limit."""


class EntryTooLarge(Refused):
    """A state, group or plan is over the size limit of the store of results."""


class BadMessage(AsyncQueueError):
    """Bytes that are no signature. ``reason`` is the word the dead letter shows."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArgumentError(AsyncQueueError, TypeError):
    """Arguments that do not fit a task's parameters, or a value that does not fit its type name."""


class TaskNotRegistered(AsyncQueueError):
    """No task of that name is registered on this server."""


class ResultError(AsyncQueueError):
    """A result cannot be had."""


class NoBackend(ResultError):
    """A result was asked for, and this server has no backend to keep it."""


class ResultTimeout(ResultError, TimeoutError):
    """The task did not reach a final state within the timeout."""


class ResultExpired(ResultError):
    """The entry was there when this handle was made, and is gone."""


class ResultUnknown(ResultError):
    """There is no entry: the UUID never was, or its entry expired."""


class TaskFailed(ResultError):
    """The task ended in FAILURE. ``error`` is the text that it left; ``task_id`` and ``task_name`` say which."""

    def __init__(self, error: str, *, task_id: str = "", task_name: str = "") -> None:
        super().__init__(f"task {task_name or '?'} ({task_id}) failed: {error}")
        self.error = error
        self.task_id = task_id
        self.task_name = task_name


class MemberFailed(TaskFailed):
    """A member of a group ended in FAILURE.

    ``index`` is its place in the group, from 0. ``error``, ``task_id`` and ``task_name`` are those of the task that
    failed: the member itself or, where the member is a workflow, a task in it.
    """

    def __init__(self, index: int, cause: TaskFailed) -> None:
        super().__init__(cause.error, task_id=cause.task_id, task_name=cause.task_name)
        self.args = (f"member {index} of its group: {cause}",)
        self.index = index


class RetryTaskLater(AsyncQueueError):
    """Raised by a task that wants to run again after ``delay`` seconds. Does not use up ``RetryCount``."""

    def __init__(self, delay: float, message: str = "") -> None:
        super().__init__(message or f"the task asked to run again in {delay:g} s")
        self.delay = delay


class LeaseLost(AsyncQueueError):
    """The service gave this delivery to somebody else; what this worker did with it does not count."""


def shown(value: object) -> str:
    """A value as an error shows it: what it looks like, in 80 characters at most."""
    try:
        text = repr(value)
    except Exception:  # of thousands of digits, or a mistake in somebody's class
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
