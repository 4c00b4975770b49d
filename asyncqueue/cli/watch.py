"""Notices that the source of an application has changed."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

POLL = 0.5
"""How often (seconds) the files are looked at where no library tells."""

_SKIPPED = frozenset({"__pycache__", "node_modules"})


async def changes(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The ``.py`` files under ``folder`` that were changed, made or removed, each time some were.

    With ``watchfiles`` installed the system tells; else the files are looked at twice a second. Hidden folders and
    virtual environments are left out.
    """
    if find_spec("watchfiles") is not None:
        watchfiles = importlib.import_module("watchfiles")
        async for found in watchfiles.awatch(folder, watch_filter=watchfiles.PythonFilter()):
            yield sorted({path for _, path in found})
        return
    seen = await asyncio.to_thread(snapshot, folder)
    while True:
        await asyncio.sleep(POLL)
        now = await asyncio.to_thread(snapshot, folder)
        changed = {path for path, _ in seen.items() ^ now.items()}
        seen = now
        if changed:
            yield sorted(changed)


def snapshot(folder: Path) -> Mapping[str, tuple[int, int]]:
    """The ``.py`` files under a folder, with what changes when they do: time of change and size."""
    found: dict[str, tuple[int, int]] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_skipped(root, name)]
        for name in files:
            if not name.endswith(".py"):
                continue
            path = os.path.join(root, name)
            try:
                status = os.stat(path)
            except OSError:
                continue  # removed, or not to be read: as if it were not there
            found[path] = status.st_mtime_ns, status.st_size
    return found


def _is_skipped(root: str, name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or os.path.exists(os.path.join(root, name, "pyvenv.cfg"))
