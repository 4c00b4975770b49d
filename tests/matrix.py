"""What passed on which driver: a table of tests and drivers, printed at the end of a run.

A row is a promise: a test of a shipped contract suite, a test of ``tests/path`` that takes a kind of stores, or an
example. A column is a driver: the ``driver`` of a contract page's class, or the kind of stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

DRIVERS = (
    "memory",
    "sqlite",
    "redis",
    "socket",
    "tls",
    "sentinel",
    "cluster",
    "valkey",
    "rabbit",
    "sqs",
    "pubsub",
    "mongo",
    "motor",
    "dynamodb",
    "memcache",
    "eager",
)
"""The columns, by their names in the classes of contract pages and in the kinds of stores."""

KINDS = (
    "stores",
    "one_store",
    "durable",
    "shared_store",
    "anywhere",
    "everywhere",
    "far",
    "each_broker",
    "each_backend",
    "each_lock",
    "pair",
)
"""The parameters of path tests whose value is a kind of stores: one service, or ``broker+backend``."""

FEWEST = 4
"""A run of fewer drivers shows no table: its own lines say it all."""

_CELL = "matrix"


def tell(item: pytest.Item) -> None:
    """Note which cell of the table a test is about, if it is about one."""
    if (cell := _cell_of(item)) is not None:
        item.user_properties.append((_CELL, cell))


def note(item: pytest.Item, section: str, test: str, driver: str, skipped: str = "") -> None:
    """Note one more cell that a running test is about; ``skipped`` says why it cannot be, on this driver."""
    item.user_properties.append((_CELL, (section, test, driver, skipped)))


def print_table(reporter: pytest.TerminalReporter) -> None:
    """The table of what ran."""
    table = _Table()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reporter.stats.get(outcome, []):
            for name, cell in getattr(report, "user_properties", ()):
                if name == _CELL and (report.when == "call" or outcome != "passed"):
                    *place, skipped = cell
                    table.add(place, "skipped" if skipped else outcome, skipped or _reason(report))
    if len(table.drivers) < FEWEST:
        return
    reporter.section("test by driver")
    for line in table.lines():
        reporter.line(line)


def _cell_of(item: pytest.Item) -> Sequence[str] | None:
    """Section, test, driver, and why it is skipped."""
    if not isinstance(item, pytest.Function):
        return None
    page = item.cls
    if page is not None and (suite := _suite_of(page, item.originalname)):
        return suite, item.originalname, getattr(page, "driver", "") or _driver_named_by(item.path.stem), ""
    params: Mapping[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    kind = next((params[name] for name in KINDS if isinstance(params.get(name), str)), None)
    if kind is None:
        return None
    return f"{item.path.parent.name}/{item.path.stem}", item.originalname, kind.partition("+")[0], ""


def _suite_of(page: type, test: str) -> str | None:
    """The shipped suite that a test of a contract page comes from, also where the page has a version of its own."""
    suites = (each for each in page.__mro__ if each.__module__.startswith("asyncqueue.testing."))
    return next((each.__name__ for each in suites if test in vars(each)), None)


def _driver_named_by(page: str) -> str:
    name = page.removeprefix("test_")
    return {"amqp": "rabbit"}.get(name, name)


def _reason(report: Any) -> str:
    return report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""


@dataclass(slots=True)
class _Table:
    """Outcomes by section, test and driver. A cell that several tests are about is as bad as the worst of them."""

    rows: dict[tuple[str, str], dict[str, dict[str, int]]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    why: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, cell: Sequence[str], outcome: str, reason: str) -> None:
        section, test, driver = cell
        counts = self.rows.setdefault((section, test), {}).setdefault(driver, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "skipped":
            self.why[section, test, driver] = self.reasons.setdefault(reason, len(self.reasons) + 1)

    @property
    def drivers(self) -> list[str]:
        """Those that have a column: the known ones in their order, then others."""
        found = {driver for cells in self.rows.values() for driver in cells}
        return [each for each in DRIVERS if each in found] + sorted(found - set(DRIVERS))

    def lines(self) -> Iterator[str]:
        drivers = self.drivers
        width = max(len(test) for _, test in self.rows)
        section = ""
        for here, test in sorted(self.rows):
            if here != section:
                section = here
                yield ""
                yield f"{section:{width}}  {'  '.join(drivers)}"
            cells = (f"{self._shown(here, test, driver):^{len(driver)}}" for driver in drivers)
            yield f"{test.removeprefix('test_'):{width}}  {'  '.join(cells)}".rstrip()
        yield ""
        yield "ok: passed; FAIL: failed; a number: skipped, for this reason; nothing: there is no such test"
        for reason, number in self.reasons.items():
            yield f"{number:5}  {reason}"

    def _shown(self, section: str, test: str, driver: str) -> str:
        counts = self.rows[section, test].get(driver, {})
        if not counts:
            return ""
        if "failed" in counts or "error" in counts:
            return "FAIL"
        return "ok" if "passed" in counts else str(self.why[section, test, driver])
