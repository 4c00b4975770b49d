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
from tests.interop.rows import ROWS, Impossible, Row, periodic

IN_FULL = (Pair("redis", "redis", in_full=True), Pair("rabbitmq", "redis", in_full=True))
OTHERS = [
    Pair(broker, backend)
    for broker in ("redis", "rabbitmq", "pubsub")
    for backend in ("redis", "rabbitmq", "memcached", "mongodb")
    if (broker, backend) not in {(pair.broker, pair.backend) for pair in IN_FULL}
]
OTHERS += [Pair("sqs", "dynamodb"), Pair("sqs", "redis")]
MANY_SERVERS = [Pair("cluster", "cluster"), Pair("sentinel", "sentinel")]
CORE = [row for row in ROWS if row.is_core]
LOCKED = [row for row in ROWS if row.check is periodic]

on_a_fleet = pytest.mark.asyncio(loop_scope="module")


def pairs(found: Sequence[Pair]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fleet", found, ids=[each.name for each in found], indirect=True)


def rows(found: Sequence[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", found, ids=[each.name for each in found])


@on_a_fleet
@pairs(IN_FULL)
@rows(ROWS)
async def test_python_and_go_do_all_of_it_together(fleet: Fleet, row: Row, request: pytest.FixtureRequest) -> None:
    await _in_all_directions(fleet, row, request.node)


@on_a_fleet
@pairs(OTHERS)
@rows(CORE)
async def test_python_and_go_work_together(fleet: Fleet, row: Row, request: pytest.FixtureRequest) -> None:
    await _in_all_directions(fleet, row, request.node)


@on_a_fleet
@pairs(MANY_SERVERS)
@rows([*CORE, *LOCKED])
async def test_python_and_go_work_together_on_several_servers(
    fleet: Fleet, row: Row, request: pytest.FixtureRequest
) -> None:
    await _in_all_directions(fleet, row, request.node)


async def _in_all_directions(fleet: Fleet, row: Row, item: pytest.Item) -> None:
    legs = [Leg(fleet, sender, runner) for sender, runner in DIRECTIONS]
    ends = await asyncio.gather(*(_tried(row, leg) for leg in legs))
    failures = []
    for leg, end in zip(legs, ends, strict=True):
        match end:
            case str():
                table.note(item, leg.name, "ok", end)
            case Impossible():
                table.note(item, leg.name, "", str(end))
            case Exception():
                table.note(item, leg.name, "FAIL")
                end.add_note(f"{row.name}, {leg.name}, {fleet.pair.name}")
                failures.append(end)
    if failures:
        raise ExceptionGroup(f"{row.name} on {fleet.pair.name}: {len(failures)} of {len(legs)} directions", failures)


async def _tried(row: Row, leg: Leg) -> Exception | str:
    for _ in range(ATTEMPTS):
        renewed = leg.fleet.renewed
        try:
            async with asyncio.timeout(DEADLINE):
                await row.check(leg)
                return "; ".join(sorted(leg.left_out))
        except Exception as exc:
            error = exc
        if not await leg.fleet.gave_up_in_go(error, renewed):
            break
    return error


ATTEMPTS = 3
"""Where a busy machine answers too late for Go."""
