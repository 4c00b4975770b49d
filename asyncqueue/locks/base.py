"""The contract of a lock: one holder at a time, for a while.

Every sentence of these docstrings has a test in ``asyncqueue.testing.lock_contract``.
"""

from __future__ import annotations

from typing import Protocol


class Lock(Protocol):
    """Named leases. A token proves who holds one; it is never given out twice.

    Every verb raises ``Unavailable`` when the service did not answer and ``Refused`` when it said no.
    """

    async def open(self) -> None:
        """Reach the service. Twice is no harm."""

    async def close(self) -> None:
        """Let go of the service. Locks that are held stay held until their time is over. Twice is no harm."""

    async def acquire(self, key: str, ttl: float) -> str | None:
        """Take ``key`` for ``ttl`` seconds; returns the token, or None while somebody else has it."""

    async def renew(self, key: str, token: str, ttl: float) -> bool:
        """Start the ``ttl`` anew; False, and no change, where the token no longer holds the key."""

    async def release(self, key: str, token: str) -> bool:
        """Let go; False, and no change, where the token no longer holds the key."""
