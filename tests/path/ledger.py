"""What tasks did, written so that it survives ``kill -9`` and depends on nothing that is tested."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """``what`` is ``S`` for a start or ``E`` for an end; ``at`` is unix seconds; ``pid`` whose line it is."""

    what: str
    task_id: str
    at: float
    pid: int


class Ledger:
    """A folder with one file for each process that writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._file = -1

    def note(self, what: str, task_id: str) -> None:
        """Append a line: one ``write``, which is whole or not there at all."""
        if self._file < 0:
            self._file = os.open(self.folder / str(os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._file, f"{what} {task_id} {time.time()}\n".encode())

    def lines(self) -> Iterator[Line]:
        """All lines of all processes; each process's own in order."""
        for file in self.folder.iterdir():
            text = file.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():  # the last one may be being written
                what, task_id, at = line.split()
                yield Line(what, task_id, float(at), int(file.name))

    def counts(self, what: str) -> Counter[str]:
        """How often each task has such a line."""
        return Counter(line.task_id for line in self.lines() if line.what == what)

    def open_tasks(self, pid: int) -> set[str]:
        """What a process had begun and not ended."""
        mine = [line for line in self.lines() if line.pid == pid]
        return {line.task_id for line in mine if line.what == "S"} - {line.task_id for line in mine if line.what == "E"}
