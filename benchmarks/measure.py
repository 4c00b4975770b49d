"""CPU and wall time of a stretch of work, and percentiles."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """What a stretch of work cost this process: seconds of CPU (user and system) and seconds of wall time."""

    cpu: float
    wall: float

    def per(self, count: int) -> dict[str, float]:
        """CPU µs for each of ``count`` things, and how many of them a second of wall time held."""
        return {"cpu_us": round(self.cpu / count * 1e6, 1), "per_second": round(count / self.wall)}


class Meter:
    """Starts when it is made; ``spent()`` says what was spent since."""

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        self._wall = time.perf_counter()

    def spent(self) -> Spent:
        return Spent(_cpu_seconds() - self._cpu, time.perf_counter() - self._wall)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
