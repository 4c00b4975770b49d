"""The page of what each store can do says what the drivers say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncqueue import Settings, urls
from asyncqueue.cli.capabilities import markdown
from asyncqueue.config.settings import AMQPSettings

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"


def rows(table: str) -> dict[str, list[str]]:
    """Title to cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {title: cells for title, *cells in lines if not title.startswith("-")}


def test_the_page_is_in_step_with_the_drivers() -> None:
    documented = re.search(r"<!-- table: begin[^\n]*\n(.*)<!-- table: end -->", PAGE.read_text(), re.DOTALL)
    assert documented is not None
    assert documented[1].strip() == markdown().strip(), "put `python -m asyncqueue.cli.capabilities` there"


def test_the_page_says_what_each_row_means() -> None:
    explained = PAGE.read_text().partition("| row |")[2]
    titles = [title for title in rows(markdown()) if title not in ("", "URL", "broker")]
    missing = [title for title in titles if not re.search(rf"\b{title.split()[0]}\b", explained)]
    assert missing == []


def test_the_table_can_be_printed() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "asyncqueue.cli.capabilities"], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout == markdown()


def test_every_scheme_has_its_place() -> None:
    cells = " ".join(rows(markdown())["URL"])
    assert re.findall(r"`([^`]+):`", cells) == [scheme for driver in urls.DRIVERS for scheme in driver.schemes]


def test_a_service_that_is_no_broker_has_a_column_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = urls.Driver("Shelf", ("shelf",), "shelf://", backend="asyncqueue.backends.memory:MemoryBackend")
    memory = next(driver for driver in urls.DRIVERS if "memory" in driver.schemes)
    monkeypatch.setattr("asyncqueue.cli.capabilities.DRIVERS", (memory, shelf))
    table = rows(markdown())
    assert table[""] == ["memory", "Shelf"]
    assert [table[title][1] for title in ("broker", "result backend", "lease", "shows ready tasks")] == [
        "no",
        "yes",
        "",
        "",
    ]


def test_what_rabbitmq_can_do_depends_on_its_queues() -> None:
    def facts(**arguments: object) -> tuple[bool, bool]:
        settings = Settings(amqp=AMQPSettings.model_validate({"queue_declare_args": arguments}))
        capabilities = urls.broker_for("amqp://localhost/", settings).capabilities
        return capabilities.priorities, capabilities.counts_deliveries

    assert facts() == (False, False)
    assert facts(**{"x-max-priority": 10}) == (True, False)
    assert facts(**{"x-queue-type": "quorum"}) == (False, True)
