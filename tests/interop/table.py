"""What went between Python and Go on which stores: a table, printed at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

_Row = tuple[str, str, int, Sequence[str]]
_Cell = tuple[str, str, str]
_ROW = "interop-row"
_CELL = "interop-cell"
_BLOCKS = 2
"""How many pairs stand side by side."""


def tell(item: pytest.Item, pair: str, row: str, place: int, directions: Sequence[str]) -> None:
    """Note which cells an item is about: they are shown also where it does not run. ``place`` is that of the row."""
    item.user_properties.append((_ROW, (pair, row, place, tuple(directions))))


def note(item: pytest.Item, direction: str, outcome: str, reason: str = "") -> None:
    """Note what became of one of them: ``ok`` and what it leaves out, ``FAIL``, or nothing and why it cannot be."""
    item.user_properties.append((_CELL, (direction, outcome, reason)))


def print_table(reporter: pytest.TerminalReporter) -> None:
    """The table, where any of it ran."""
    table = _Table()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reporter.stats.get(outcome, []):
            noted = dict[str, list[Any]]()
            for name, value in getattr(report, "user_properties", ()):
                noted.setdefault(name, []).append(value)
            if _ROW in noted and (report.when == "call" or outcome != "passed"):
                table.add(noted[_ROW][0], noted.get(_CELL, []), "" if outcome == "skipped" else "FAIL", _reason(report))
                table.seconds += report.duration
    if table.cells:
        reporter.section("between Python and Go")
        for line in table.lines():
            reporter.line(line)


def _reason(report: Any) -> str:
    return report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""


@dataclass(slots=True)
class _Table:
    """Cells by pair, row and direction."""

    cells: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(
        self,
        about: tuple[str, str, int, Sequence[str]],
        noted: Sequence[tuple[str, str, str]],
        otherwise: str,
        reason: str,
    ) -> None:
        pair, row, self.places[row], directions = about
        known = {direction: (outcome, why) for direction, outcome, why in noted}
        cells = self.cells.setdefault(pair, {}).setdefault(row, {})
        for direction in directions:
            outcome, why = known.get(direction, (otherwise, reason))
            number = str(self.reasons.setdefault(why, len(self.reasons) + 1)) if why else ""
            cells[direction] = "/".join(filter(None, (outcome, number)))

    def lines(self) -> Iterator[str]:
        pairs = sorted(self.cells, key=lambda pair: (-len(self.cells[pair]), pair))
        width = max(len(row) for rows in self.cells.values() for row in rows)
        for start in range(0, len(pairs), _BLOCKS):
            yield from self._block(pairs[start : start + _BLOCKS], width)
        yield "ok: it ran; ok/number: but for this; FAIL: it failed; a number: it cannot be, for this reason"
        for reason, number in self.reasons.items():
            yield f"{number:5}  {reason}"
        yield f"{sum(len(each) for rows in self.cells.values() for each in rows.values())} cells, {self.seconds:.0f} s"

    def _block(self, pairs: Sequence[str], width: int) -> Iterator[str]:
        directions = {pair: list(next(iter(self.cells[pair].values()))) for pair in pairs}
        yield " " * width + "".join(f"   {pair:{6 * len(directions[pair])}}" for pair in pairs).rstrip()
        yield " " * width + "".join("  " + "".join(f" {each:^5}" for each in directions[pair]) for pair in pairs)
        for row in sorted({row for pair in pairs for row in self.cells[pair]}, key=lambda row: self.places[row]):
            cells = (
                "  " + "".join(f" {self.cells[pair].get(row, {}).get(each, ''):^5}" for each in directions[pair])
                for pair in pairs
            )
            yield f"{row:{width}}{''.join(cells)}".rstrip()
        yield ""
