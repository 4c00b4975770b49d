"""The contract of a store that must hold something before it can be used: tables, indexes, a schema.

Every sentence of these docstrings has a test in ``asyncqueue.testing.migrating_contract``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Migration:
    """One thing that a store lacks, or lacked: ``change`` says what, for people; ``part`` is what wanted it, the
    broker, result backend or lock; ``address`` is where."""

    part: str
    address: str
    change: str


@runtime_checkable
class Migrating(Protocol):
    """A broker, backend or lock that can make in its service what it needs there.

    ``address`` is where that is, for people; never a password. Both verbs work whether the instance is open or not,
    and raise ``Unavailable`` when the service did not answer and ``Refused`` when it said no.
    """

    @property
    def address(self) -> str: ...

    async def close(self) -> None: ...

    async def missing(self) -> Sequence[str]:
        """What the service lacks, a line for people for each thing; it only looks."""

    async def migrate(self) -> Sequence[str]:
        """Make what is missing, and nothing else; a line for each thing that was. Twice is no harm, nor are several
        processes at once. What is stored is kept."""
