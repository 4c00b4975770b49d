"""``python -m benchmarks``: ask every question once; a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import imports, round_trip, sending, worker_cost
from tests.services import RabbitServer, RedisServer, Server, ServiceMissing, StartFailed

Rows = Mapping[str, Mapping[str, float]]


@click.command()
@click.option("--tasks", default=20_000, show_default=True, help="Tasks for each worker.")
@click.option("--concurrency", default=100, show_default=True, help="Concurrency of each worker.")
@click.option("--trips", default=500, show_default=True, help="Round trips for each store.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the JSON here; else benchmarks/results/.")
def main(tasks: int, concurrency: int, trips: int, output: Path | None) -> None:
    """Measure what this machine makes of asyncqueue. Read ratios within one run; machines differ by the hour."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _started("REDIS_URL", RedisServer(fsync="no")) as redis,
        _started("RABBITMQ_URL", RabbitServer()) as rabbit,
    ):
        urls = {"redis": redis} if redis else {}
        urls |= {"sqlite": f"sqlite:///{folder}/bench.db", "memory": "memory://bench"}
        urls |= {"rabbitmq, results in redis": f"{rabbit} {redis}"} if rabbit and redis else {}
        answers: dict[str, Rows] = {
            f"worker, {tasks} no-ops with result, concurrency {concurrency}": worker_cost.run(urls, tasks, concurrency),
            f"sending {tasks} tasks": sending.run(urls, tasks),
            f"send to result, {trips} times": round_trip.run(urls, trips),
            "import": imports.run(),
        }
    for question, rows in answers.items():
        _show(question, rows)
    target = output or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    target.write_text(json.dumps({"facts": facts, "answers": answers}, indent=2) + "\n")
    click.echo(f"\nJSON: {target}")


def _show(question: str, rows: Rows) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(len(name) for name in rows) + 2
    click.echo(f"\n{question}\n{'':{width}}" + "".join(f"{column:>18}" for column in columns))
    for name, row in rows.items():
        click.echo(f"{name:{width}}" + "".join(f"{row.get(column, ''):>18}" for column in columns))


@contextmanager
def _started(variable: str, server: Server) -> Iterator[str | None]:
    """The URL in a variable, or of a server for as long as this runs; None, with a word why, where there is none."""
    if url := os.environ.get(variable):
        yield url
        return
    try:
        server.start()
    except (OSError, ServiceMissing, StartFailed) as exc:
        click.echo(f"without {variable}: {exc}")
        yield None
        return
    try:
        yield server.variables()[variable]
    finally:
        server.stop()


if __name__ == "__main__":
    main()
