"""What a service says no with: its own word for why, by which drivers tell one refusal from another."""

from __future__ import annotations

from asyncqueue.errors import Refused


class SaidNo(Refused):
    """The service refused a call; ``code`` is its own word for why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Missing(SaidNo):
    """What a call is about does not exist."""
