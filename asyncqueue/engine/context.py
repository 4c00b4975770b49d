"""What a running task can know of itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from asyncqueue.errors import ArgumentError, RetryTaskLater
from asyncqueue.signature import Signature
from asyncqueue.workflow import Node

log = logging.getLogger("asyncqueue.task")


class Replacement(BaseException):
    """Raised by ``TaskContext.replace``: not an error, so that no ``except Exception`` of a task swallows it."""

    def __init__(self, workflow: Node) -> None:
        super().__init__("the task goes on as a workflow")
        self.workflow = workflow


class Facilities(Protocol):
    """What a worker does for a running task."""

    def yield_slot(self) -> AbstractAsyncContextManager[None]:
        """Let another task run in the place of the one that asks."""

    async def add_members(self, signature: Signature, members: Sequence[Node], first: int) -> None:
        """Send more members of the task's own group; ``first`` is the number of the first of them."""


@dataclass(slots=True)
class _Added:
    """How many members a task has added to its group: their UUIDs are numbered."""

    count: int = 0


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
    facilities: Facilities | None = field(default=None, repr=False, compare=False)
    _added: _Added = field(default_factory=_Added, repr=False, compare=False)

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

    def replace(self, workflow: Node) -> NoReturn:
        """End this run; the task goes on as ``workflow``, whose result becomes its own.

        What waits for this task (successors, its group, whoever asks for its result) waits for the workflow then.
        Returning a signature or a workflow does the same.
        """
        raise Replacement(workflow)

    def yield_slot(self) -> AbstractAsyncContextManager[None]:
        """``async with ctx.yield_slot():`` lets another task run in the place of this one meanwhile.

        For a task that awaits others: with it, parents never keep their children from running. Behind it, the task
        waits for a free slot.
        """
        return self.facilities.yield_slot() if self.facilities is not None else nullcontext()

    async def add_to_group(self, *members: Node) -> None:
        """Send more members of this task's own group, whose callback then waits for them too. Handles on the group
        that are opened later show them.

        A second run of the task adds nothing twice: what is added is known by its number within the task. Raises
        ``ArgumentError`` where the task is no member of a group, and as a send does.
        """
        if not self.signature.group_uuid:
            raise ArgumentError(f"task {self.task_name}: it is no member of a group, so none can be added to it")
        if self.facilities is None:
            raise ArgumentError(f"task {self.task_name}: members can be added only while a worker runs it")
        first, self._added.count = self._added.count, self._added.count + len(members)
        await self.facilities.add_members(self.signature, members, first)


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
