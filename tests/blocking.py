"""Notices what blocks the event loop: the package waiting for a network, a file or a clock on the loop's thread.

It listens to Python's audit events instead of measuring time, so a slow machine raises no false alarm.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

TESTS = str(Path(__file__).parent)
PACKAGE = str(Path(__file__).parent.parent / "asyncqueue")
# time.sleep raises its event from Python 3.13 on; before, ruff's ASYNC rules are what sees it
EVENTS = frozenset({"socket.connect", "socket.getaddrinfo", "sqlite3.connect", "time.sleep"})

_seen: list[str] = []


def watch() -> None:
    """Begin to listen, until the process ends."""
    sys.addaudithook(_hear)


def take() -> list[str]:
    """What blocked since the last call: the event, and the line of the package."""
    taken = _seen.copy()
    _seen.clear()
    return taken


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in EVENTS or asyncio._get_running_loop() is None:
        return
    if event == "socket.connect" and arguments[0].gettimeout() == 0:
        return
    if frame := _ours(sys._getframe(1)):
        _seen.append(f"{event} at {frame.f_code.co_filename}:{frame.f_lineno}")


def _ours(frame: FrameType | None) -> FrameType | None:
    """The line of the package that did it; None where a test did, which may."""
    while frame is not None and not frame.f_code.co_filename.startswith((PACKAGE, TESTS)):
        frame = frame.f_back
    return frame if frame is not None and frame.f_code.co_filename.startswith(PACKAGE) else None
