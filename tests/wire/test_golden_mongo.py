"""The documents of MongoDB that Machinery wrote are read, and ours are equal to them where nothing varies."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import Int64
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.json_util import JSONMode, JSONOptions, loads

from asyncqueue.backends.mongo import MongoBackend
from asyncqueue.state import GroupMeta, TaskResult, TaskState
from tests.opened import opened
from tests.wire.goldens import GOLDEN

EXTENDED = JSONOptions(json_mode=JSONMode.CANONICAL, datetime_conversion=DatetimeConversion.DATETIME_MS)
LATER = DatetimeMS(4_000_000_000_000)
SCENARIOS = sorted(GOLDEN.glob("v*/mongo/*.json"))


def _name(path: Path) -> str:
    return f"{path.parts[-3]}/{path.stem}"


def _documents(path: Path, collection: str) -> list[dict[str, Any]]:
    """What was stored, its end put off, so that it is still there."""
    found: Any = loads(path.read_text(), json_options=EXTENDED)
    documents = found["collections"].get(collection, {}).get("documents", ())
    return [each | {"delete_at": LATER} if "delete_at" in each else each for each in documents]


def _integers(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            for each in value.values():
                yield from _integers(each)
        case list():
            for each in value:
                yield from _integers(each)
        case int() if not isinstance(value, bool):
            yield value


def _state(document: dict[str, Any]) -> TaskState:
    results = document.get("results")
    return TaskState(
        task_uuid=document["_id"],
        task_name=document["task_name"],
        state=document["state"],
        results=None
        if results is None
        else tuple(TaskResult(type=each["type"], value=_plain(each["value"])) for each in results),
        error=document.get("error", ""),
        created_at=int(document["created_at"]) * 1_000_000,
    )


def _group(document: dict[str, Any]) -> GroupMeta:
    return GroupMeta(
        group_uuid=document["_id"],
        task_uuids=document["task_uuids"],
        chord_triggered=document["chord_triggered"],
        lock=document["lock"],
        created_at=int(document["created_at"]) * 1_000_000,
    )


def _plain(value: Any) -> Any:
    """Bytes as base64: Go's own reader ends the program when it meets the bytes that Go's writer has written."""
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Without the moment of its end, which Machinery 1 does not write."""
    kept = {key: value for key, value in document.items() if key != "delete_at"}
    if "results" in kept:
        kept["results"] = [{"type": each["type"], "value": _plain(each["value"])} for each in kept["results"]]
    return kept


def test_there_are_documents_of_both_versions() -> None:
    counts = {version: sum(version in path.parts for path in SCENARIOS) for version in ("v1", "v2")}
    assert counts == {"v1": 15, "v2": 15}


@pytest.mark.parametrize("path", SCENARIOS, ids=_name)
async def test_what_machinery_wrote_is_read_and_ours_is_equal(path: Path, mongo_url: str) -> None:
    tasks, groups = _documents(path, "tasks"), _documents(path, "group_metas")
    with pymongo.MongoClient[dict[str, Any]](mongo_url) as client:
        database: Any = client.get_default_database().with_options(
            codec_options=CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
        )
        for name, documents in (("tasks", tasks), ("group_metas", groups)):
            if documents:
                database[name].insert_many(documents)
        async with opened(MongoBackend(mongo_url)) as backend:
            states = [state for state in await backend.get([each["_id"] for each in tasks]) if state]
            metas = [meta for meta in await backend.get_groups([each["_id"] for each in groups]) if meta]
        assert states == [_state(each) for each in tasks]
        assert metas == [_group(each) for each in groups]
        client.drop_database(database.name)
        async with opened(MongoBackend(mongo_url)) as backend:
            await backend.put(states)
            await backend.open_groups(metas)
        written = {each["_id"]: each for each in database.tasks.find()}
        for document in tasks:
            ours = written[document["_id"]]
            assert all(type(each) is Int64 for each in _integers(ours))
            assert _comparable(ours) == _comparable(document)
        written = {each["_id"]: each for each in database.group_metas.find()}
        for document in groups:
            ours = written[document["_id"]]
            assert {key: value for key, value in ours.items() if not key.startswith("aq_")} == document
