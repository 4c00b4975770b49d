"""Which names tasks, UUIDs and queues may have."""

from __future__ import annotations

import pytest

from asyncqueue import names
from asyncqueue.signature import new_group_id, new_task_id
from asyncqueue.workflow import BUILT_IN


@pytest.mark.parametrize("key", ["a", "machinery_tasks", "q:{tag}/x.y-z", "x" * 200])
def test_ordinary_keys_are_taken(key: str) -> None:
    assert names.task_id_problem(key) is None
    assert names.group_id_problem(key) is None
    assert names.queue_problem(key) is None


def test_ids_of_our_own_are_ordinary_keys() -> None:
    assert names.task_id_problem(new_task_id()) is None
    assert names.group_id_problem(new_group_id()) is None


@pytest.mark.parametrize("key", ["", "x" * 201, "a b", "a\n", "é", "a*", "a?b", "a\x00", "a[0]", "a,b", "\ud800"])
def test_other_characters_are_refused(key: str) -> None:
    assert "expected 1 to 200" in (names.queue_problem(key) or "")
    assert "task UUID" in (names.task_id_problem(key) or "")


@pytest.mark.parametrize("key", ["delayed_tasks", "TriggerChordMutex", "machinery_lock_x", "q:aq:held", "a:aq:"])
def test_keys_of_the_stores_are_reserved(key: str) -> None:
    assert names.reserved(key)
    for problem in (names.queue_problem, names.task_id_problem, names.group_id_problem):
        assert "reserved" in (problem(key) or "")


@pytest.mark.parametrize("name", ["add", "math.add", "größer als", "a b", "x" * 200, "发送"])
def test_printable_task_names_are_taken(name: str) -> None:
    assert names.task_name_problem(name) is None


@pytest.mark.parametrize("name", ["", "x" * 201, "a\n", "a\x1b[31m", "a\u2028", "\ud800"])
def test_other_task_names_are_refused(name: str) -> None:
    assert "printable" in (names.task_name_problem(name) or "")


@pytest.mark.parametrize("name", ["aq.pass", "aq.none", "aq.deadline", "aq.anything", "aq."])
def test_names_of_built_in_tasks_are_no_names_for_others(name: str) -> None:
    problem = names.own_task_name_problem(name) or ""
    assert repr(name) in problem
    assert "reserved" in problem
    assert names.task_name_problem(name) is None  # a message may bear it


@pytest.mark.parametrize("name", ["add", "aq", "aqua.add", "a.aq.b"])
def test_names_that_only_resemble_those_are_taken(name: str) -> None:
    assert names.own_task_name_problem(name) is None


def test_names_of_built_in_tasks_begin_alike() -> None:
    assert [name for name in BUILT_IN if not name.startswith(names.BUILT_IN_PREFIX)] == []
