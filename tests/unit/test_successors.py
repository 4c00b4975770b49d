"""Which successors take the results of the task before them."""

from __future__ import annotations

from typing import Any

import pytest

from asyncqueue import ArgumentError, Server, Signature
from asyncqueue.task import Task


@pytest.fixture
def add() -> Task[..., Any]:
    return Server("memory://").register_task("add", lambda a, b=0: a + b)


def test_a_successor_made_with_s_takes_the_results(add: Task[..., Any]) -> None:
    assert not add.with_(on_success=add.s(1)).s(1, 2).immutable


def test_a_successor_made_with_si_makes_the_task_before_it_immutable(add: Task[..., Any]) -> None:
    first = add.with_(on_success=add.si(1, 2)).s(1, 2)
    assert first.immutable
    assert not (first.on_success or ())[0].immutable


def test_immutable_can_be_set_by_hand(add: Task[..., Any]) -> None:
    assert add.with_(immutable=True, on_success=Signature(name="add")).s(1).immutable


def test_successors_of_both_kinds_are_an_error_that_names_the_task(add: Task[..., Any]) -> None:
    with pytest.raises(ArgumentError, match=r"task add: on_success mixes"):
        add.with_(on_success=(add.s(1), add.si(1, 2))).s(1, 2)


async def test_a_successor_made_with_si_runs_with_its_own_arguments_alone() -> None:
    server = Server("eager://")

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    result = await server.send_task(add.with_(on_success=add.si(10, 20)).s(1, 2))
    assert result.signature is not None
    (successor,) = result.signature.on_success or ()
    assert await server.result(successor.uuid).get(timeout=10) == 30
    await server.close()
