"""Processes that hold a lock until they are killed, or find that it is theirs no more."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from asyncqueue.config import Settings
from asyncqueue.urls import lock_for
from tests.opened import opened
from tests.path.ledger import Ledger

LOST = 78
"""How a holder ends that was away for too long."""

RENEWALS = 5
"""How often a holder renews within its time."""


def run(asked: dict[str, Any]) -> int:
    """Be the process that was asked for."""
    ledger = Ledger(Path(asked["ledger"]))
    return asyncio.run(hold(asked["url"], asked["key"], asked["ttl"], ledger, halts=asked["halts"]))


async def hold(url: str, key: str, ttl: float, ledger: Ledger, *, halts: bool) -> int:
    """Take a key, and write under it while it is ours: ``S`` before it is asked for, or for more time, ``E`` when that
    was granted.

    With ``halts`` the process halts itself when it has the key: not in the middle of a call, when it could hold more
    than the key.
    """
    async with opened(lock_for(url, Settings())) as lock:
        ledger.note("S", key)
        token = await lock.acquire(key, ttl)
        assert token, f"somebody else has {key}"
        ledger.note("E", key)
        if halts:
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            await asyncio.sleep(ttl / RENEWALS)
            ledger.note("S", key)
            if not await lock.renew(key, token, ttl):
                assert not await lock.release(key, token), "what cannot be renewed cannot be released"
                return LOST
            ledger.note("E", key)
