"""The items of DynamoDB that Machinery wrote are read as what they say."""

from __future__ import annotations

import json
from typing import Any

from asyncqueue import rfc3339
from asyncqueue.connections.dynamodb_groups import group_of, is_sent
from asyncqueue.connections.dynamodb_groups import item_of as item_of_group
from asyncqueue.connections.dynamodb_items import is_live, number_in
from asyncqueue.connections.dynamodb_states import item_of, state_of
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from tests.wire.goldens import GOLDEN

EXPIRES_AT = 1_795_366_157
RESULTS = (
    TaskResult(type="int64", value=3),
    TaskResult(type="float64", value=1e6),
    TaskResult(type="[]int64", value=[1, 2]),
    TaskResult(type="string", value="a b"),
    TaskResult(type="[]uint8", value="aGk="),
)


def items(table: str, key: str) -> dict[str, Any]:
    """The items of a table, by their keys."""
    found = json.loads((GOLDEN / "v1" / "dynamodb" / f"{table}.json").read_text())
    return {item[key]["S"]: item for item in found}


def test_states_of_machinery_are_read() -> None:
    states = {task_id: state_of(item) for task_id, item in items("task_states", "TaskUUID").items()}
    said = {task_id: (one.task_name, one.state, one.results, one.error) for task_id, one in states.items()}
    assert said == {
        "task_pending": ("add", State.PENDING, None, ""),
        "task_started": ("add", State.STARTED, None, ""),
        "task_success": ("add", State.SUCCESS, RESULTS, ""),
        "task_failure": ("add", State.FAILURE, None, "boom"),
        "task_lone": ("", State.SUCCESS, RESULTS, ""),
    }
    assert states["task_lone"].created_at == rfc3339.ZERO
    assert all(one.created_at > rfc3339.ZERO for task_id, one in states.items() if task_id != "task_lone")


def test_what_machinery_lets_expire_expires_and_nothing_else() -> None:
    for task_id, item in items("task_states", "TaskUUID").items():
        assert is_live(item, EXPIRES_AT - 1)
        assert is_live(item, EXPIRES_AT + 1) == (task_id in ("task_pending", "task_started"))


def test_groups_of_machinery_are_read() -> None:
    for group_id, item in items("group_metas", "GroupUUID").items():
        group, is_done = group_of(item), group_id == "group_done"
        members = ("task_success", "task_failure")
        assert group.model_copy(update={"created_at": rfc3339.ZERO}) == GroupMeta(
            group_uuid=group_id, task_uuids=members, chord_triggered=is_done
        )
        assert is_sent(item) == is_done


def test_our_items_are_those_of_machinery() -> None:
    """What it writes as NULL, and a name that nobody knows, we leave out: it reads both alike."""
    for item in items("task_states", "TaskUUID").values():
        ours = item_of(state_of(item), int(number_in(item, "TTL")))
        assert ours == {name: value for name, value in item.items() if "NULL" not in value}
    for item in items("group_metas", "GroupUUID").values():
        assert item_of_group(group_of(item), int(number_in(item, "TTL"))) == item


def test_a_state_that_says_little_is_a_small_item() -> None:
    assert item_of(TaskState(task_uuid="task_a"), 7) == {
        "TaskUUID": {"S": "task_a"},
        "State": {"S": "PENDING"},
        "TTL": {"N": "7"},
    }
