"""States, groups and plans as documents of MongoDB: Machinery's fields, and our own, which begin with ``aq``.

Every integer is an Int64, so that Go can read it into any of its integer types. A result that BSON's types do not hold
whole has its JSON beside it. ``delete_at`` is when a task's entry ends, as in Machinery 2; elsewhere ``aq_delete_at``.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from math import ceil, isfinite
from typing import Any, TypeVar

from bson import BSON, Binary, Int64
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from pydantic import BaseModel, ValidationError

from asyncqueue import rfc3339
from asyncqueue.connections.mongo import MAX_DOCUMENT, Document
from asyncqueue.errors import ArgumentError, BadMessage, EntryTooLarge
from asyncqueue.signature import INT64_MAX, INT64_MIN, Plan
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.wire import decode_plan, decode_result, encode_plan, encode_result

M = TypeVar("M", bound=BaseModel)

FINAL = tuple(each.value for each in State if each.is_final)
"""The states that nothing follows."""

TASK_END = "delete_at"
ENTRY_END = "aq_delete_at"
"""When an entry is gone: of tasks, and of all the rest."""

MAX_ENTRY = MAX_DOCUMENT - 16 * 1024
"""The most bytes of an entry: a little is left for what is added to a document later."""

_MILLISECOND = 1_000_000  # nanoseconds


def moment(seconds: float) -> DatetimeMS:
    """Unix seconds as the service has moments, rounded up."""
    return DatetimeMS(ceil(seconds * 1000))


def is_gone(document: Document, end: str, now: float) -> bool:
    """Whether an entry's time is over; one without an end, as Machinery 1 writes them, has none."""
    ends_at = document.get(end)
    return isinstance(ends_at, DatetimeMS) and int(ends_at) <= now * 1000


# ---------------------------------------------------------------------------------------------------- states


def state_document(state: TaskState) -> dict[str, Any]:
    """A state without its end. Raises ``ArgumentError`` for a result that JSON cannot say, ``EntryTooLarge``."""
    document: dict[str, Any] = {"_id": state.task_uuid, "state": str(state.state)}
    if state.task_name:
        document["task_name"] = _mended(state.task_name)
    if state.created_at != rfc3339.ZERO:
        document |= _created(state.created_at)
    if state.results is not None:
        document["results"] = [_result_document(state, result) for result in state.results]
    if state.error:
        document["error"] = _mended(state.error)
    counts = {"ttl": state.ttl, "aq_attempt": state.attempt, "aq_deliveries": state.deliveries}
    document |= {name: Int64(count) for name, count in counts.items() if count}
    _require_room(f"the state of task {state.task_uuid}", document)
    return document


def state_in(document: Document) -> TaskState:
    """The state in a document, whoever wrote it; fields that are missing are as Go's zero values. Raises
    ``BadMessage``."""
    values = {
        "task_uuid": document["_id"],
        "task_name": document.get("task_name", ""),
        "state": document.get("state", State.PENDING),
        "results": None if document.get("results") is None else _results_in(document),
        "error": document.get("error", ""),
        "created_at": _created_at(document),
        "ttl": document.get("ttl", 0),
        "attempt": document.get("aq_attempt", 0),
        "deliveries": document.get("aq_deliveries", 0),
    }
    return _validated(TaskState, values, f"task {document['_id']}", "invalid_state")


def _result_document(state: TaskState, result: TaskResult) -> dict[str, Any]:
    try:
        return {"type": result.type, "value": _bson(result.value, is_float=result.type in _FLOATS)}
    except _NotHeld:
        pass
    try:
        return {"type": result.type, "value": None, "aq_json": encode_result(result).decode()}
    except ArgumentError as exc:
        raise ArgumentError(f"task {state.task_name or state.task_uuid}: {exc}") from None


def _results_in(document: Document) -> Any:
    results = document["results"]
    return tuple(map(_result_in, results)) if isinstance(results, list) else results


def _result_in(document: Any) -> Any:
    if not isinstance(document, Mapping):
        return document
    if isinstance(text := document.get("aq_json"), str):
        return decode_result(text.encode())
    return TaskResult.model_construct(type=str(document.get("type", "")), value=_json(document.get("value")))


# ---------------------------------------------------------------------------------------------------- groups, plans


def group_document(group: GroupMeta) -> dict[str, Any]:
    """A group without its end and without our own fields. Raises ``EntryTooLarge``."""
    members = None if group.task_uuids is None else list(dict.fromkeys(group.task_uuids))
    document: dict[str, Any] = {
        "_id": group.group_uuid,
        "task_uuids": members,
        "chord_triggered": group.chord_triggered,
        "lock": group.lock,
    }
    if group.created_at != rfc3339.ZERO:
        document |= _created(group.created_at)
    if group.ttl:
        document["ttl"] = Int64(group.ttl)
    _require_room(f"group {group.group_uuid}", document)
    return document


def group_in(document: Document) -> GroupMeta:
    """The group in a document. Raises ``BadMessage``."""
    values = {
        "group_uuid": document["_id"],
        "task_uuids": document.get("task_uuids"),
        "chord_triggered": document.get("chord_triggered", False),
        "lock": document.get("lock", False),
        "created_at": _created_at(document),
        "ttl": document.get("ttl", 0),
    }
    return _validated(GroupMeta, values, f"group {document['_id']}", "invalid_group")


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan without its end. Raises ``EntryTooLarge``."""
    document = {"_id": plan.plan_id, "plan": Binary(encode_plan(plan)), "ids": list(plan.ids)}
    _require_room(f"plan {plan.plan_id}", document)
    return document


def plan_in(document: Document) -> Plan:
    """The plan in a document. Raises ``BadMessage``."""
    data = document.get("plan")
    if not isinstance(data, bytes):
        raise BadMessage("undecodable", f"{document['_id']} is no plan: its bytes are missing")
    return decode_plan(document["_id"], data)


# ---------------------------------------------------------------------------------------------------- values


class _NotHeld(Exception):
    """BSON would not give this value back as it is, or Go would stumble over it."""


def _bson(value: Any, *, is_float: bool = False, depth: int = 0) -> Any:
    """A value as BSON; raises ``_NotHeld``. ``is_float``: a number without a fraction is a float all the same."""
    kind = type(value)
    if kind is int and INT64_MIN <= value <= INT64_MAX:
        if not is_float:
            return Int64(value)
        if int(float(value)) == value:
            return float(value)
    elif kind is str:
        if not _SURROGATE.search(value):
            return value
    elif kind is bool or value is None or (kind is float and isfinite(value)):
        return value
    elif depth < _DEEPEST and kind in (list, tuple):
        return [_bson(each, is_float=is_float, depth=depth + 1) for each in value]
    elif depth < _DEEPEST and kind is dict and all(type(key) is str and _KEY.fullmatch(key) for key in value):
        return {key: _bson(each, depth=depth + 1) for key, each in value.items()}
    raise _NotHeld


def _json(value: Any) -> Any:
    """BSON as the JSON that other stores would have of it."""
    match value:
        case bool() | float() | str() | None:
            return value
        case int():
            return int(value)
        case list():
            return [_json(each) for each in value]
        case dict():
            return {key: _json(each) for key, each in value.items()}
        case bytes():
            return b64encode(value).decode("ascii")  # Go's []byte
        case DatetimeMS():
            return rfc3339.render(int(value) * _MILLISECOND)
        case _:
            return str(value)


def _created(nanoseconds: int) -> dict[str, Any]:
    """The moment as Go has it, in milliseconds, and what is below them."""
    milliseconds, rest = divmod(nanoseconds, _MILLISECOND)
    return {"created_at": DatetimeMS(milliseconds), **({"aq_created_ns": Int64(rest)} if rest else {})}


def _created_at(document: Document) -> Any:
    created_at, rest = document.get("created_at"), document.get("aq_created_ns", 0)
    if created_at is None:
        return rfc3339.ZERO
    if not isinstance(created_at, DatetimeMS) or not isinstance(rest, int):
        return created_at
    return int(created_at) * _MILLISECOND + rest


def _mended(text: str) -> str:
    """A lone surrogate becomes U+FFFD, as Go does with bad UTF-8: a failure can always be recorded."""
    return _SURROGATE.sub("\ufffd", text)


def _validated(model: type[M], values: Mapping[str, Any], entry: str, reason: str) -> M:
    try:
        return model.model_validate(values)
    except (ValidationError, ValueError) as exc:
        said = exc.errors(include_input=False) if isinstance(exc, ValidationError) else ()
        fields = ", ".join(".".join(map(str, each["loc"])) for each in said)
        raise BadMessage(reason, f"{entry}: {fields or exc} cannot be read") from None


def _require_room(entry: str, document: Mapping[str, Any]) -> None:
    try:
        size = len(BSON.encode(document))
    except (BSONError, UnicodeEncodeError, OverflowError) as exc:
        raise ArgumentError(f"{entry} has no form in MongoDB: {exc}") from None
    if size > MAX_ENTRY:
        raise EntryTooLarge(f"{entry} takes {size} bytes, over the limit of {MAX_ENTRY} bytes of a document of MongoDB")


_FLOATS = frozenset({"float32", "float64", "[]float32", "[]float64"})
_SURROGATE = re.compile("[\ud800-\udfff]")
_KEY = re.compile(r"(?!\$)[^.\0\ud800-\udfff]*")
_DEEPEST = 50  # the service ends at 100, and a Go program's own limits are not known
