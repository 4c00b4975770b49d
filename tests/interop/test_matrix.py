"""Python and Go in one fleet: what is promised, in each direction, with each version, on each pair of stores.

An item is a behaviour on a pair; each of its directions is a cell of the table at the end of the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.interop import table
from tests.interop.fleet import DIRECTIONS, Fleet, Leg, Pair
from tests.interop.peer import DEADLINE
from tests.interop.rows import ROWS, Impossible, Row

IN_FULL = (("redis", "redis"), ("rabbitmq", "redis"))
PAIRS = sorted(
    (
        Pair(broker, backend, (broker, backend) in IN_FULL)
        for broker in ("redis", "rabbitmq", "pubsub")
        for backend in ("redis", "rabbitmq", "memcached", "mongodb")
    ),
    key=lambda pair: not pair.in_full,
)
CASES = [
    pytest.param(pair, row, id=f"{pair.broker}+{pair.backend}-{row.name}")
    for pair in PAIRS
    for row in ROWS
    if row.is_core or pair.in_full
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("fleet", "row"), CASES, indirect=["fleet"])
async def test_python_and_go_work_together(fleet: Fleet, row: Row, request: pytest.FixtureRequest) -> None:
    legs = [Leg(fleet, sender, runner) for sender, runner in DIRECTIONS]
    if row.together:
        ends: Sequence[Exception | str | None] = await asyncio.gather(*(_tried(row, leg) for leg in legs))
    else:
        ends = [await _tried(row, leg) for leg in legs]
    failures = []
    for leg, end in zip(legs, ends, strict=True):
        match end:
            case None | str():
                table.note(request.node, leg.name, "ok", end or "")
            case Impossible():
                table.note(request.node, leg.name, "", str(end))
            case Exception():
                table.note(request.node, leg.name, "FAIL")
                end.add_note(f"{row.name}, {leg.name}, {fleet.pair.name}")
                failures.append(end)
    if failures:
        raise ExceptionGroup(f"{row.name} on {fleet.pair.name}: {len(failures)} of {len(legs)} directions", failures)


async def _tried(row: Row, leg: Leg) -> Exception | str | None:
    try:
        async with asyncio.timeout(DEADLINE):
            return await row.check(leg)
    except Exception as exc:
        return exc
