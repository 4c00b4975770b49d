"""What a running task can know of itself."""

from __future__ import annotations

import logging
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import NoReturn

from asyncqueue.errors import RetryTaskLater
from asyncqueue.signature import Signature

log = logging.getLogger("asyncqueue.task")


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Given to a task that has a parameter annotated with this class.

    ``attempt`` counts the runs of the task from 1 (retries make it grow); ``deliveries`` counts the showings of this
    very message (a crash makes it grow). ``queue`` is where the message came from.
    """

    signature: Signature
    queue: str
    attempt: int
    deliveries: int

    @property
    def task_id(self) -> str:
        """The task's UUID."""
        return self.signature.uuid

    @property
    def task_name(self) -> str:
        """The task's registered name."""
        return self.signature.name

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the task's id, name and attempt."""
        facts = {"task_id": self.task_id, "task_name": self.task_name, "attempt": self.attempt}
        return logging.LoggerAdapter(log, facts)

    def retry_later(self, delay: float, message: str = "") -> NoReturn:
        """End this run; the task runs again after ``delay`` seconds. Does not use up its retries."""
        raise RetryTaskLater(delay, message)


_current: ContextVar[TaskContext] = ContextVar("asyncqueue_task_context")


def current_task() -> TaskContext:
    """The context of the task that is running here.

    Raises ``LookupError`` outside of a task. In a plain function that runs in a thread it works too.
    """
    return _current.get()


def enter(context: TaskContext) -> Token[TaskContext]:
    """Make this the context of the current asyncio task (or thread's context copy), until ``leave``."""
    return _current.set(context)


def leave(token: Token[TaskContext]) -> None:
    """Whatever was the context before ``enter`` is it again: an eager task runs inside of its sender."""
    _current.reset(token)
