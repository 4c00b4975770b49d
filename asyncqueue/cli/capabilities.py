"""What each store can do as a Markdown table, for the documentation: ``python -m asyncqueue.cli.capabilities``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click

from asyncqueue.brokers.base import Broker, Capabilities, Inspector, JointStore
from asyncqueue.config import Settings
from asyncqueue.urls import DRIVERS, Driver, broker_for

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class _Column:
    """One service, and its broker as the settings' defaults make it, not open; None where it has none."""

    driver: Driver
    broker: Broker | None


def markdown() -> str:
    """One column per service that a URL can name, one row per fact. Nothing is connected."""
    columns = [_column(driver) for driver in DRIVERS]
    lines = [
        _line("", *(column.driver.service for column in columns)),
        "|---" * (len(columns) + 1) + "|",
        *(_line(title, *(show(column) for column in columns)) for title, show in _ROWS.items()),
    ]
    return "\n".join(lines) + "\n"


def _column(driver: Driver) -> _Column:
    return _Column(driver, broker_for(driver.example, Settings()) if driver.broker is not None else None)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _of_broker(show: Callable[[Broker], str]) -> Callable[[_Column], str]:
    return lambda column: "" if column.broker is None else show(column.broker)


def _fact(show: Callable[[Capabilities], str]) -> Callable[[_Column], str]:
    return _of_broker(lambda broker: show(broker.capabilities))


def _look(verb: str) -> Callable[[_Column], str]:
    return _of_broker(lambda broker: _yes(isinstance(broker, Inspector) and verb not in broker.capabilities.refused))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _lease(facts: Capabilities) -> str:
    return "none" if facts.lease is None else f"{facts.lease:g} s"


def _delay(facts: Capabilities) -> str:
    if math.isinf(facts.max_delay):
        return "any"
    return f"{facts.max_delay // _DAY:g} days" if facts.max_delay >= _DAY else f"{facts.max_delay:g} s"


def _batch(facts: Capabilities) -> str:
    return "any" if facts.max_batch == sys.maxsize else f"{facts.max_batch:,}"


_ROWS: Mapping[str, Callable[[_Column], str]] = {
    "URL": lambda column: "<br>".join(f"`{scheme}:`" for scheme in column.driver.schemes),
    "extra": lambda column: f"`{column.driver.extra}`" if column.driver.extra else "none",
    "broker": lambda column: _yes(column.driver.broker is not None),
    "result backend": lambda column: _yes(column.driver.backend is not None),
    "locks": lambda column: _yes(column.driver.lock is not None),
    "one step": _of_broker(lambda broker: _yes(isinstance(broker, JointStore))),
    "lease": _fact(_lease),
    "longest delay": _fact(_delay),
    "batch": _fact(_batch),
    "order": _fact(lambda facts: _yes(facts.ordered)),
    "priorities": _fact(lambda facts: _yes(facts.priorities)),
    "counts deliveries": _fact(lambda facts: _yes(facts.counts_deliveries)),
    "inspected": _of_broker(lambda broker: _yes(isinstance(broker, Inspector))),
    "lists queues": _look("queues"),
    "shows ready tasks": _look("peek"),
    "shows delayed tasks": _look("delayed"),
}


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
