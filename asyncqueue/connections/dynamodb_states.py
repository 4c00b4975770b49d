"""Task states as items of DynamoDB: Machinery's attributes, which Go reads, and ours, which begin with ``Aq``.

Machinery keeps a result as its type and as the text that Go prints of it. Where that text does not say the value again,
it stands beside it once more, in ``AqResult``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asyncqueue import go_text, rfc3339
from asyncqueue.connections.dynamodb import TRIES, Dynamo, Table, as_seen, change, is_free, too_many_tries
from asyncqueue.connections.dynamodb_items import (
    EXPIRY,
    Item,
    Value,
    expires_at,
    is_live,
    list_in,
    number,
    number_in,
    require_room,
    text,
    text_in,
)
from asyncqueue.connections.sending import all_of
from asyncqueue.errors import ArgumentError, BadMessage
from asyncqueue.state import State, TaskResult, TaskState, may_follow
from asyncqueue.wire import decode_result, encode_result

KEY = "TaskUUID"
"""The key of the table, as Machinery has it."""

_OURS_ALONE = ("Results", "Error", "AqAttempt", "AqDeliveries")
"""What a new state leaves nothing of: where it says nothing, there is nothing."""

_CREATED = "attribute_not_exists(#TaskUUID)"
_FOLLOWS = "NOT #State IN (:success, :failure) AND #TTL > :now AND #TTL <= :new_TTL"
"""Of almost every entry all of this is true; where not, one has to look."""


class States:
    """The table of states."""

    def __init__(self, dynamo: Dynamo, table: Table) -> None:
        self._dynamo = dynamo
        self._table = table

    async def begin(self, states: Sequence[TaskState], keep: float, now: float) -> None:
        """Write whatever was there."""
        await self._dynamo.write(self._table, _items_of(states, keep, now))

    async def put(self, states: Sequence[TaskState], keep: float, now: float) -> None:
        """Write what may follow what is there; states of one task one after the other."""
        by_task: dict[str, list[tuple[TaskState, Item]]] = {}
        for state, item in zip(states, _items_of(states, keep, now), strict=True):
            by_task.setdefault(state.task_uuid, []).append((state, item))
        await all_of(self._put_each(entries, now) for entries in by_task.values())

    async def get(self, task_ids: Iterable[str], now: float) -> dict[str, TaskState]:
        """States by task, where there are any."""
        found = await self._dynamo.read(self._table, task_ids)
        return {task_id: state_of(item) for task_id, item in found.items() if is_live(item, now)}

    async def ended(self, task_ids: Iterable[str], now: float) -> frozenset[str]:
        """Those whose final state is recorded."""
        found = await self._dynamo.read(self._table, task_ids, "State", EXPIRY)
        return frozenset(task_id for task_id, item in found.items() if is_live(item, now) and _state_in(item).is_final)

    async def _put_each(self, entries: Sequence[tuple[TaskState, Item]], now: float) -> None:
        for state, item in entries:
            if state.state is State.PENDING:
                await self._dynamo.put(self._table, item, *is_free(self._table, now))
            elif not await self._put_blindly(state, item, now):
                await self._put_knowingly(state, item, now)

    async def _put_blindly(self, state: TaskState, item: Item, now: float) -> bool:
        """Write over an entry that lives, is not final, and would not be kept longer; or where there is none."""
        values = {
            ":success": text(State.SUCCESS),
            ":failure": text(State.FAILURE),
            ":now": number(int(now)),
        }
        return await self._write_over(state, item, f"{_CREATED} OR ({_FOLLOWS})", values)

    async def _put_knowingly(self, state: TaskState, item: Item, now: float) -> None:
        for _ in range(TRIES):
            seen = await self._dynamo.look(self._table, state.task_uuid)
            condition, values = as_seen(seen, KEY, "State", EXPIRY)
            if seen is None or not is_live(seen, now):
                is_done = await self._dynamo.put(self._table, item, condition, values)
            elif not may_follow(state.state, _state_in(seen)):
                return
            else:
                longest = number(max(number_in(seen, EXPIRY), number_in(item, EXPIRY)))
                is_done = await self._write_over(state, {**item, EXPIRY: longest}, condition, values)
            if is_done:
                return
        raise too_many_tries(f"the state of task {state.task_uuid}")

    async def _write_over(self, state: TaskState, item: Item, condition: str, values: dict[str, Value]) -> bool:
        """Name and time of the send stay what they were where the new state does not say them."""
        sets = {name: value for name, value in item.items() if name != KEY}
        removes = [name for name in _OURS_ALONE if name not in item]
        return await self._dynamo.alter(
            change(self._table, state.task_uuid, sets=sets, removes=removes, condition=condition, values=values)
        )


def item_of(state: TaskState, expires: int) -> dict[str, Value]:
    """The item of a state. What it does not say is left out. Raises ``ArgumentError`` for a result that JSON cannot
    say."""
    said: dict[str, Value | None] = {
        KEY: text(state.task_uuid),
        "TaskName": text(state.task_name) if state.task_name else None,
        "State": text(state.state),
        "Results": None if state.results is None else {"L": [_result_value(state, each) for each in state.results]},
        "Error": text(state.error) if state.error else None,
        "CreatedAt": text(rfc3339.render(state.created_at)) if state.created_at != rfc3339.ZERO else None,
        EXPIRY: number(expires),
        "AqAttempt": number(state.attempt) if state.attempt else None,
        "AqDeliveries": number(state.deliveries) if state.deliveries else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def state_of(item: Item) -> TaskState:
    """The state in an item, whoever wrote it: what is missing there is as though it were not said. Raises
    ``BadMessage``."""
    task_id = text_in(item, KEY)
    try:
        results = list_in(item, "Results")
        created_at = text_in(item, "CreatedAt")
        return TaskState(
            task_uuid=task_id,
            task_name=text_in(item, "TaskName"),
            state=_state_in(item),
            results=None if results is None else tuple(map(_result_in, results)),
            error=text_in(item, "Error"),
            created_at=rfc3339.parse(created_at) if created_at else rfc3339.ZERO,
            attempt=int(number_in(item, "AqAttempt")),
            deliveries=int(number_in(item, "AqDeliveries")),
        )
    except BadMessage as exc:
        raise BadMessage("invalid_state", f"the state of task {task_id}: {exc}") from None
    except ValueError as exc:
        raise BadMessage("invalid_state", f"the state of task {task_id}: {exc}") from None


def _items_of(states: Sequence[TaskState], keep: float, now: float) -> list[Item]:
    """All of them, or an error before any is written."""
    items: list[Item] = []
    for state in states:
        items.append(item_of(state, expires_at(keep, now, state.not_before)))
        require_room(f"the state {state.state} of task {state.task_name or '?'} ({state.task_uuid})", items[-1])
    return items


def _state_in(item: Item) -> State:
    said = text_in(item, "State")
    try:
        return State(said) if said else State.PENDING
    except ValueError:
        raise BadMessage("invalid_state", f"State is {said[:40]!r}, expected one of {', '.join(State)}") from None


def _result_value(state: TaskState, result: TaskResult) -> Value:
    try:
        exact = encode_result(result)
        said = go_text.printed(result.type, result.value)
    except ArgumentError as exc:
        raise ArgumentError(f"task {state.task_name or state.task_uuid}, {exc}") from None
    value = {"Type": text(result.type), "Value": text(said)}
    if not _says(result.type, said, exact):
        value["AqResult"] = text(exact.decode())
    return {"M": value}


def _says(name: str, said: str, exact: bytes) -> bool:
    """Whether the text alone gives the same value again."""
    try:
        return encode_result(TaskResult(type=name, value=go_text.parsed(name, said))) == exact
    except (ValueError, ArgumentError):
        return False


def _result_in(value: Value) -> TaskResult:
    result: Item = value.get("M") or {}
    if exact := text_in(result, "AqResult"):
        return decode_result(exact.encode())
    name = text_in(result, "Type")
    return TaskResult(type=name, value=_parsed(name, text_in(result, "Value")))


def _parsed(name: str, said: str) -> Any:
    try:
        return go_text.parsed(name, said)
    except ValueError:
        return said  # as Go reads it
