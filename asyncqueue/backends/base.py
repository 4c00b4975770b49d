"""The contract of a backend: what is known of tasks, and waiting for it.

Every sentence of these docstrings has a test in ``asyncqueue.testing.backend_contract``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Protocol

from asyncqueue.state import TaskState


class Backend(Protocol):
    """States of tasks by UUID.

    Every verb raises ``Unavailable`` when the service did not answer and ``Refused`` when it said no. An instance
    belongs to one event loop. Entries are gone ``results_expire_in`` seconds after their last write, or, where that
    state has a ``not_before``, after that moment; it may be changed while the backend is open, and holds for the writes
    after that.
    """

    results_expire_in: float

    @property
    def address(self) -> str:
        """Where it is, for people: host, port or file. Never a password."""

    async def open(self) -> None:
        """Reach the service. Twice is no harm."""

    async def close(self) -> None:
        """Let go of the service; iterators of ``watch`` end with ``Unavailable``. Twice is no harm."""

    async def identity(self) -> Hashable:
        """Which store this is; see ``Broker.identity``."""

    async def begin(self, states: Sequence[TaskState]) -> None:
        """Record PENDING for a new send or a requeue. Replaces whatever was there, a final state too."""

    async def put(self, states: Sequence[TaskState]) -> None:
        """Record states; the last write wins, except: a final state never goes back, and PENDING is taken only where
        no entry is.

        ``created_at`` and ``task_name`` of the entry that was there are kept where the new state does not say them.
        """

    async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        """States in the order asked; None where there is no entry."""

    def watch(self, task_ids: Sequence[str]) -> AsyncIterator[tuple[str, TaskState | None]]:
        """Each UUID once: with its final state as soon as there is one, or with None as soon as there is no entry.

        Ends after the last one. Any number of watchers share one connection or one poll. No wake-up is lost between
        looking and waiting; states that others wrote wake too.
        """

    async def forget(self, task_ids: Sequence[str]) -> None:
        """Drop entries. Unknown ones are no error."""
