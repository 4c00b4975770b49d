"""DynamoDB keeps the contracts of backend, lock and what makes its tables, on DynamoDB Local; and what is its own."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from aiobotocore.session import AioSession
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue.backends.base import Backend, GroupClaim, Member, Progress
from asyncqueue.backends.dynamodb import DynamoBackend
from asyncqueue.clock import Clock
from asyncqueue.connections.aws import Reply, parse_url
from asyncqueue.connections.dynamodb import Table, change
from asyncqueue.connections.dynamodb_groups import LOCKED_FOR
from asyncqueue.connections.dynamodb_items import MAX_ITEM, ROOM, number, size_of
from asyncqueue.connections.dynamodb_states import item_of
from asyncqueue.connections.refusals import Missing
from asyncqueue.errors import BadMessage, ConfigError, EntryTooLarge, Refused, Unavailable
from asyncqueue.locks.base import TurnLock
from asyncqueue.locks.dynamodb import DynamoLock
from asyncqueue.signature import Arg, Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.testing import (
    BackendContract,
    GroupContract,
    LockContract,
    ManualClock,
    MigratingContract,
    TurnLockContract,
    group_contract,
)
from asyncqueue.testing.suite import KEPT, BackendSuite, Suite, state
from tests.one_answer import service_that_says
from tests.opened import opened
from tests.services import free_port

CANARY = "c4n4ry"
NEVER_SWEPT = 4_000_000_000
"""Unix seconds at which the tests' clock starts: DynamoDB Local deletes what has expired by its own."""


def nobody() -> str:
    """A URL at which nobody answers."""
    return f"http://test:test@127.0.0.1:{free_port()}?region=local"


class OnDynamo(Suite):
    """Empty tables, and a clock of each test's own: expiry, claims and locks are by the clock of those who ask."""

    driver = "dynamodb"
    clock: Clock
    expiry = 20.0  # in whole seconds, and so are the parts of it that the tests let pass
    entry_limit: int | None = MAX_ITEM
    password: str | None = "test"

    @pytest.fixture
    def service(self, dynamodb_url: str) -> None:
        self.url = dynamodb_url
        self.clock = self.manual_clock = ManualClock(NEVER_SWEPT)

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)

    async def make_backend(self, results_expire_in: float = KEPT) -> DynamoBackend:
        return DynamoBackend(self.url, results_expire_in=results_expire_in, clock=self.clock)


class OnDynamoBackend(OnDynamo):
    async def make_unreachable(self) -> Backend:
        return DynamoBackend(nobody(), clock=self.clock)


class OnDynamoLock(OnDynamo):
    async def make_lock(self) -> TurnLock:
        return DynamoLock(self.url, clock=self.clock)

    async def make_unreachable(self) -> TurnLock:
        return DynamoLock(nobody(), clock=self.clock)


class TestBackend(OnDynamoBackend, BackendContract):
    pass


class TestGroups(OnDynamoBackend, GroupContract):
    @pytest.fixture(autouse=True)
    def batches_are_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """DynamoDB Local makes 500 changes of single items per second, and no more. A bigger group is counted below."""
        monkeypatch.setattr(group_contract, "BATCH", 100)
        monkeypatch.setattr(group_contract, "MANY", 400)

    async def test_a_plan_over_the_size_limit_is_named_and_nothing_is_written(self) -> None:
        pytest.skip("a plan that is too big for an item lies in parts: it has no limit")


class TestTables(OnDynamo, MigratingContract):
    @pytest.fixture
    def service(self, bare_dynamodb_url: str) -> None:
        self.url = bare_dynamodb_url

    async def make_driver(self) -> Any:
        return DynamoBackend(self.url)

    async def make_unreachable(self) -> Any:
        return DynamoBackend(nobody())


class TestTableOfLocks(TestTables):
    async def make_driver(self) -> Any:
        return DynamoLock(self.url)

    async def make_unreachable(self) -> Any:
        return DynamoLock(nobody())


class TestLock(OnDynamoLock, LockContract):
    pass


class TestTurns(OnDynamoLock, TurnLockContract):
    pass


# -------------------------------------------------------------------------------------------------- Go's entries


class TestBesideGo(OnDynamoBackend, BackendSuite):
    """What Go's workers write, as the requests that they make, and what they find."""

    backend: DynamoBackend

    @pytest.fixture(autouse=True)
    def table(self, dynamodb_tables: tuple[str, Any], service: None) -> None:
        self.client = dynamodb_tables[1]

    async def test_a_result_of_go_is_read_as_its_type(self) -> None:
        for task_id, results in GO_RESULTS.items():
            await self.go_sends(task_id)
            await self.go_ends(task_id, results)
        found = await self.backend.get(list(GO_RESULTS))
        assert [one.results for one in found if one] == [
            (TaskResult(type="int64", value=3), TaskResult(type="float64", value=1e6)),
            (TaskResult(type="string", value="[1 2]"), TaskResult(type="bool", value=True)),
            (TaskResult(type="[]int64", value=[1, 2]), TaskResult(type="[]uint8", value="aGk=")),
            (TaskResult(type="map[string]int", value="map[a:1]"),),
            None,
        ]
        first = found[0]
        assert first
        assert (first.state, first.task_name, first.created_at) == (State.SUCCESS, "add", GO_SENT_AT)

    async def test_a_pending_of_go_never_expires_and_a_final_state_does(self) -> None:
        await self.go_sends("task_a")
        await self.go_sends("task_b")
        await self.go_ends("task_b", None, ttl=self.now() + 3600)
        await self.advance(3599)
        assert await self.states("task_a", "task_b") == [State.PENDING, State.SUCCESS]
        await self.advance(1)
        assert await self.states("task_a", "task_b") == [State.PENDING, None]
        await self.backend.put([state("task_a", State.STARTED)])
        assert await self.states("task_a") == [State.STARTED]
        await self.advance(KEPT)
        assert await self.states("task_a") == [None]

    async def test_what_go_does_not_say_is_not_said(self) -> None:
        nothing = {name: {"NULL": True} for name in ("TaskName", "Results", "Error", "TTL", "CreatedAt")}
        await self.write("task_states", {"TaskUUID": {"S": "task_a"}})
        await self.write("task_states", {"TaskUUID": {"S": "task_b"}, **nothing})
        await self.write("group_metas", {"GroupUUID": {"S": "group_a"}})
        assert list(await self.backend.get(["task_a", "task_b"])) == [state("task_a"), state("task_b")]
        assert list(await self.backend.get_groups(["group_a"])) == [GroupMeta(group_uuid="group_a")]
        await self.backend.put([state("task_a", State.SUCCESS), state("task_b", State.FAILURE)])
        assert await self.states("task_a", "task_b") == [State.SUCCESS, State.FAILURE]

    async def test_what_cannot_be_read_is_named(self) -> None:
        await self.write("task_states", {"TaskUUID": {"S": "task_a"}, "State": {"S": "DONE"}})
        await self.write("task_states", {"TaskUUID": {"S": "task_b"}, "CreatedAt": {"S": "yesterday"}})
        await self.write("task_states", {"TaskUUID": {"S": "task_c"}, "Error": {"N": "1"}})
        await self.write("group_metas", {"GroupUUID": {"S": "group_a"}, "TaskUUIDs": {"S": "task_a"}})
        for task_id, said in (("task_a", "DONE"), ("task_b", "yesterday"), ("task_c", "Error is of type N")):
            with pytest.raises(BadMessage, match=f"{task_id}.*{said}"):
                await self.backend.get([task_id])
        with pytest.raises(BadMessage, match=r"group_a.*TaskUUIDs is of type S, expected L"):
            await self.backend.get_groups(["group_a"])

    async def test_go_finds_its_own_attributes_and_text_for_results(self) -> None:
        results = (TaskResult(type="float64", value=1e6), TaskResult(type="json", value={"a": [None]}))
        success = TaskState(
            task_uuid="task_a", task_name="add", state=State.SUCCESS, results=results, created_at=GO_SENT_AT, attempt=2
        )
        await self.backend.put([success])
        assert await self.read("task_states", "TaskUUID", "task_a") == {
            "TaskUUID": {"S": "task_a"},
            "TaskName": {"S": "add"},
            "State": {"S": "SUCCESS"},
            "CreatedAt": {"S": "2025-01-02T03:04:05.123456789Z"},
            "TTL": {"N": str(NEVER_SWEPT + 3600)},
            "Results": {
                "L": [
                    {"M": {"Type": {"S": "float64"}, "Value": {"S": "1e+06"}}},
                    {
                        "M": {
                            "Type": {"S": "json"},
                            "Value": {"S": "map[a:[<nil>]]"},
                            "AqResult": {"S": '{"Type":"json","Value":{"a":[null]}}'},
                        }
                    },
                ]
            },
            "AqAttempt": {"N": "2"},
        }
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_b", "task_a"))])
        await self.backend.claim_group("group_a", "me", 60)
        found = await self.read("group_metas", "GroupUUID", "group_a")
        assert {name: value for name, value in found.items() if not name.startswith("Aq")} == {
            "GroupUUID": {"S": "group_a"},
            "TaskUUIDs": {"L": [{"S": "task_b"}, {"S": "task_a"}]},
            "ChordTriggered": {"BOOL": True},
            "Lock": {"BOOL": False},
            "CreatedAt": {"S": "0001-01-01T00:00:00Z"},
            "TTL": {"N": str(NEVER_SWEPT + 3600)},
        }

    async def test_a_lone_surrogate_in_an_error_is_no_reason_not_to_record_it(self) -> None:
        await self.backend.put([state("task_a", State.FAILURE, error="a\ud800b")])
        (found,) = await self.backend.get(["task_a"])
        assert found
        assert found.error == "a\ufffdb"

    @pytest.mark.parametrize("size", [3, 200])
    async def test_a_group_that_go_opened_is_counted(self, size: int) -> None:
        members = [f"task_{number}" for number in range(size)]
        await self.go_opens("group_a", members)
        *gos, mine = members
        await self.backend.put([state(mine, State.SUCCESS)])
        assert await self.finish("group_a", mine) is Progress.WAITING
        for task_id in gos:
            await self.go_ends(task_id, None)
        assert await self.finish("group_a", mine) is Progress.COMPLETE
        assert await self.backend.claim_group("group_a", mine, 60) is GroupClaim.MINE

    async def test_a_group_that_go_is_about_to_trigger_is_busy_and_then_sent(self) -> None:
        await self.go_opens("group_a", ["task_a"])
        await self.go_sets("group_a", "Lock", True)
        for _ in range(2):
            assert await self.backend.claim_group("group_a", "me", 60) is GroupClaim.BUSY
        await self.go_sets("group_a", "ChordTriggered", True)
        await self.go_sets("group_a", "Lock", False)
        assert await self.backend.claim_group("group_a", "me", 60) is GroupClaim.SENT
        assert await self.finish("group_a", "task_a") is Progress.TRIGGERED

    async def test_a_lock_that_go_left_behind_is_waited_for_no_longer_than_it_takes(self) -> None:
        await self.go_opens("group_a", ["task_a"])
        await self.go_sets("group_a", "Lock", True)
        assert await self.backend.claim_group("group_a", "me", 60) is GroupClaim.BUSY
        await self.advance(LOCKED_FOR - 1)
        assert await self.backend.claim_group("group_a", "you", 60) is GroupClaim.BUSY
        await self.advance(1)
        assert await self.backend.claim_group("group_a", "me", 60) is GroupClaim.MINE

    async def finish(self, group_id: str, task_id: str) -> Progress:
        (progress,) = await self.backend.finish_members([Member(group_id, task_id)])
        return progress

    # what Go does

    async def go_sends(self, task_id: str) -> None:
        nothing = {"NULL": True}
        sent = {"TaskUUID": {"S": task_id}, "TaskName": {"S": "add"}, "State": {"S": "PENDING"}, "TTL": {"N": "0"}}
        at = {"CreatedAt": {"S": "2025-01-02T03:04:05.123456789Z"}}
        await self.write("task_states", {**sent, **at, "Results": nothing, "Error": nothing})

    async def go_ends(self, task_id: str, results: dict[str, str] | None, *, ttl: float = NEVER_SWEPT + 60) -> None:
        said = [{"M": {"Type": {"S": name}, "Value": {"S": text}}} for name, text in (results or {}).items()]
        values = {":s": {"S": "SUCCESS"}, ":t": {"N": str(int(ttl))}}
        await self.update("task_states", "TaskUUID", task_id, "State", values[":s"])
        await self.update("task_states", "TaskUUID", task_id, "TTL", values[":t"])
        if said:
            await self.update("task_states", "TaskUUID", task_id, "Results", {"L": said})

    async def go_opens(self, group_id: str, members: Sequence[str]) -> None:
        flags = {"ChordTriggered": {"BOOL": False}, "Lock": {"BOOL": False}, "TTL": {"N": "0"}}
        group = {"GroupUUID": {"S": group_id}, "TaskUUIDs": {"L": [{"S": each} for each in members]}}
        await self.write("group_metas", {**group, **flags, "CreatedAt": {"S": "2025-01-02T03:04:05.123456789Z"}})

    async def go_sets(self, group_id: str, name: str, value: bool) -> None:
        await self.update("group_metas", "GroupUUID", group_id, name, {"BOOL": value})

    async def write(self, table: str, item: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self.client.put_item, TableName=table, Item=item)

    async def read(self, table: str, key: str, name: str) -> dict[str, Any]:
        reply = await asyncio.to_thread(self.client.get_item, TableName=table, Key={key: {"S": name}})
        found: dict[str, Any] = reply["Item"]
        return found

    async def update(self, table: str, key: str, item: str, name: str, value: Mapping[str, Any]) -> None:
        await asyncio.to_thread(
            self.client.update_item,
            TableName=table,
            Key={key: {"S": item}},
            UpdateExpression="SET #N = :v",
            ExpressionAttributeNames={"#N": name},
            ExpressionAttributeValues={":v": value},
        )


GO_SENT_AT = 1_735_787_045_123_456_789
GO_RESULTS: dict[str, dict[str, str] | None] = {
    "task_numbers": {"int64": "3", "float64": "1e+06"},
    "task_words": {"string": "[1 2]", "bool": "true"},
    "task_lists": {"[]int64": "[1 2]", "[]uint8": "[104 105]"},
    "task_maps": {"map[string]int": "map[a:1]"},
    "task_none": None,
}


# ------------------------------------------------------------------------------------------------------ its own


class TestOfItsOwn(OnDynamoBackend, BackendSuite):
    """What only DynamoDB does."""

    backend: DynamoBackend

    # big things

    async def test_an_item_is_as_big_as_dynamodb_says(self) -> None:
        table, dynamo = Table("task_states", "TaskUUID"), self.backend._dynamo
        odd: dict[str, Any] = {
            "TaskUUID": {"S": "task_ä☃"},
            "Words": {"SS": ["a", "☃☃", "ccc"]},
            "List": {"L": [{"S": "x"}, {"BOOL": True}, {"NULL": True}, {"M": {"Inner": {"S": "y"}}}]},
            "Data": {"B": b"\x00" * 100},
        }
        room = MAX_ITEM - size_of({**odd, "Fill": {"S": ""}})
        await dynamo.write(table, [{**odd, "Fill": {"S": "x" * room}}])
        with pytest.raises(EntryTooLarge):
            await dynamo.write(table, [{**odd, "Fill": {"S": "x" * (room + 1)}}])

    async def test_the_biggest_state_is_kept_whole_and_can_be_replaced(self) -> None:
        text = TaskResult(type="string", value="")
        spare = MAX_ITEM - ROOM - size_of(item_of(state("task_a", State.SUCCESS, results=(text,)), NEVER_SWEPT + 3600))
        whole = TaskResult(type="string", value="x" * spare)
        await self.backend.begin([state("task_a", name="n" * 200, created_at=GO_SENT_AT)])
        await self.backend.put([state("task_a", State.SUCCESS, results=(whole,))])
        (found,) = await self.backend.get(["task_a"])
        assert found
        assert (found.results, len(found.task_name)) == ((whole,), 200)
        with pytest.raises(EntryTooLarge, match=f"{MAX_ITEM - ROOM + 1} bytes"):
            await self.backend.put(
                [state("task_b", State.SUCCESS, results=(TaskResult(type="string", value="x" * (spare + 1)),))]
            )

    async def test_the_biggest_group_is_counted_claimed_and_refused_one_more(self) -> None:
        members = [f"task_{number:031}" for number in range(10_700)]
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(members))])
        assert await self.finish("group_a", members[:20]) is Progress.WAITING
        with pytest.raises(EntryTooLarge, match=r"group_a of 11200 members"):
            await self.backend.add_members("group_a", [f"task_x{number:030}" for number in range(500)])
        assert await self.backend.add_members("group_a", ["task_y"])
        assert await self.backend.claim_group("group_a", "o" * 200, 60) is GroupClaim.MINE
        await self.backend.mark_group_sent("group_a")
        assert await self.finish("group_a", members[20:30]) is Progress.TRIGGERED
        (found,) = await self.backend.get_groups(["group_a"])
        assert found
        assert found.task_uuids == (*members, "task_y")

    async def test_what_is_too_much_for_one_answer_is_read_in_several(self) -> None:
        text = TaskResult(type="string", value="x" * 390_000)
        ids = [f"task_{number}" for number in range(45)]
        await self.backend.begin([state(task_id, State.SUCCESS, results=(text,)) for task_id in ids])
        with counted(self.backend) as count:
            found = await self.backend.get(ids)
        assert [one.results for one in found if one] == [(text,)] * 45
        assert count["batch_get_item"] > 1, "DynamoDB gives no more than 16 MB at once"
        await self.backend.forget(ids)

    async def test_a_plan_in_parts_is_replaced_touched_and_dropped(self) -> None:
        def big(letter: str) -> Plan:
            text = Arg(type="string", value=letter * 500_000)
            return Plan("plan_a", (Signature(uuid="task_a", name="a", args=(text,)),), ("task_a", "task_b"))

        short = await self.another_backend(self.expiry)
        await short.put_plans([big("x")])
        await short.put_plans([big("y")])
        await short.begin([state("task_b")])
        assert list(await self.backend.get_plans(["plan_a"])) == [big("y")]
        await self.backend.touch([["plan_a"]])
        await self.advance(self.expiry)
        assert list(await self.backend.get_plans(["plan_a"])) == [big("y")]
        assert await self.states("task_b") == [State.PENDING]
        small = Plan("plan_a", (), ())
        await self.backend.put_plans([small])
        assert list(await self.backend.get_plans(["plan_a"])) == [small]
        await self.backend.put_plans([big("z")])
        await self.backend.forget(["plan_a"])
        assert list(await self.backend.get_plans(["plan_a"])) == [None]

    # counting

    async def test_counting_a_member_of_a_big_group_takes_no_more_requests_than_of_a_small_one(self) -> None:
        most: dict[int, int] = {}
        for size in (40, 1_000):
            members = [f"task_{size}_{number}" for number in range(size)]
            await self.backend.open_groups([GroupMeta(group_uuid=f"group_{size}", task_uuids=tuple(members))])
            await self.finish(f"group_{size}", members[:1])
            counts = []
            for task_id in members[1:11]:
                with counted(self.backend) as count:
                    assert await self.finish(f"group_{size}", [task_id]) is Progress.WAITING
                counts.append(sum(count.values()))
            most[size] = max(counts)
        print(f"requests to count a member, at most, by the size of its group: {most}")
        assert most[1_000] <= 6

    async def test_a_group_that_was_sent_is_counted_no_more(self) -> None:
        members = [f"task_{number}" for number in range(100)]
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(members))])
        assert await self.finish("group_a", members[:1]) is Progress.WAITING
        await self.backend.mark_group_sent("group_a")
        with counted(self.backend) as count:
            assert await self.finish("group_a", members[1:2]) is Progress.TRIGGERED
        assert count == {"get_item": 1}

    async def test_members_that_race_with_additions_make_a_big_group_complete_once_all_have_ended(self) -> None:
        backends = [self.backend, await self.another_backend()]
        members = [f"task_{number}" for number in range(60)]
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(members))])
        unended = {f"task_added_{number}" for number in range(5)}
        answers: list[Progress] = []

        async def end(number: int) -> None:
            backend = backends[number % 2]
            if number % 12 == 0:
                added = f"task_added_{number // 12}"
                assert await backend.add_members("group_a", [added])
                await backend.put([state(added, State.SUCCESS)])
                unended.remove(added)
            await backend.put([state(members[number], State.SUCCESS)])
            (progress,) = await backend.finish_members([Member("group_a", members[number])])
            answers.append(progress)

        await asyncio.gather(*map(end, range(60)))
        assert not unended
        assert set(answers) == {Progress.WAITING, Progress.COMPLETE}
        (found,) = await self.backend.get_groups(["group_a"])
        assert found
        assert len(found.task_uuids or ()) == 65

    async def test_who_was_counted_stays_counted_for_as_long_as_a_group_is_kept(self) -> None:
        short = await self.another_backend(self.expiry)
        for size in (2, 40):  # in the tally itself, and in shards
            first, *others = [f"task_{size}_{number}" for number in range(size)]
            group_id = f"group_{size}"
            await short.open_groups([GroupMeta(group_uuid=group_id, task_uuids=(first, *others))])
            await short.put([state(first, State.SUCCESS)])
            assert await self.finish(group_id, [first]) is Progress.WAITING
            await self.advance(self.expiry / 2)
            await short.touch([[group_id]])
            await short.forget([first])
            await self.advance(self.expiry / 2)
            assert await self.finish(group_id, others) is Progress.COMPLETE

    async def test_nobody_is_added_to_a_big_group_whose_last_member_has_just_ended(self) -> None:
        members = [f"task_{number}" for number in range(40)]
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(members))])
        await self.finish("group_a", members[:-1])
        inner = self.backend._groups._append

        async def append_late(*args: Any) -> bool:
            assert await self.finish("group_a", members[-1:]) is Progress.COMPLETE
            return await inner(*args)

        self.backend._groups._append = append_late  # type: ignore[method-assign,assignment]  # what comes in between
        assert not await self.backend.add_members("group_a", ["task_x"])
        assert await self.finish("group_a", members[-1:]) is Progress.COMPLETE

    async def test_a_group_whose_tally_has_lost_a_part_is_lost(self) -> None:
        members = [f"task_{number}" for number in range(100)]
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(members))])
        await self.finish("group_a", members[:1])
        tally = await self.backend._tallies.of("group_a", self.now())
        assert tally
        await self.backend._dynamo.drop(Table("group_metas", "GroupUUID"), map(tally.key_of, tally.left))
        assert await self.finish("group_a", members[1:2]) is Progress.LOST

    # what others come in between

    async def test_what_is_not_done_of_a_batch_is_asked_for_again_as_long_as_something_is_done(self) -> None:
        ids = [f"task_{number}" for number in range(25)]
        with undone(self.backend, "batch_write_item", 20, 10, 0):
            await self.backend.begin([state(task_id) for task_id in ids])
        with undone(self.backend, "batch_get_item", 24, 1, 0):
            assert await self.states(*ids) == [State.PENDING] * 25
        with (
            undone(self.backend, "batch_write_item", 20, 20),
            pytest.raises(Unavailable, match="'task_states' is asked too much"),
        ):
            await self.backend.begin([state(task_id) for task_id in ids])
        with (
            undone(self.backend, "batch_get_item", 25),
            pytest.raises(Unavailable, match="'task_states' is asked too much"),
        ):
            await self.backend.get(ids)

    async def test_a_final_state_that_comes_in_between_is_not_taken_back(self) -> None:
        other = await self.another_backend()
        await self.backend.begin([state("task_a", not_before=self.now() + 60)])  # kept longer: it has to be looked at
        inner = self.backend._dynamo.look

        async def look(table: Table, key: str) -> Any:
            seen = await inner(table, key)
            await other.put([state("task_a", State.FAILURE)])
            return seen

        self.backend._dynamo.look = look  # type: ignore[method-assign]  # what comes in between
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert await self.states("task_a") == [State.FAILURE]

    async def test_what_others_change_each_time_is_unavailable(self) -> None:
        await self.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_a",))])
        inner, moment = self.backend._dynamo.look, itertools.count(NEVER_SWEPT + 10_000)

        async def look(table: Table, key: str) -> Any:
            seen = await inner(table, key)
            await self.backend._dynamo.prolong(table, key, next(moment))
            return seen

        self.backend._dynamo.look = look  # type: ignore[method-assign]  # what comes in between
        with pytest.raises(Unavailable, match="group_a: others have changed it"):
            await self.backend.claim_group("group_a", "me", 60)

    async def test_a_change_of_several_items_that_can_never_be_made_is_refused(self) -> None:
        table, dynamo = Table("task_states", "TaskUUID"), self.backend._dynamo
        await dynamo.write(table, [{"TaskUUID": {"S": "task_a"}, "Fill": {"S": "x" * 390_000}}])
        more = {"More": {"S": "x" * 20_000}}
        changes = [
            change(table, task_id, sets=more, condition="attribute_not_exists(#More)", values={})
            for task_id in ("task_a", "task_b")
        ]
        with pytest.raises(Refused, match="ValidationError"):
            await dynamo.alter_all(*changes)

    # closing

    async def test_what_is_under_way_when_it_is_closed_ends_and_connects_no_more(self) -> None:
        backend = DynamoBackend(self.url, clock=self.clock)
        await self.opened(backend)
        states = [state(f"task_{number}", State.SUCCESS) for number in range(200)]
        with counted(backend) as count:
            under_way = asyncio.create_task(backend.put(states))

            async def is_under_way() -> bool:
                return count["update_item"] > 0

            await self.until(is_under_way)
        await backend.close()
        with pytest.raises(Unavailable):
            await self.in_time(under_way)
        assert backend._dynamo._link._own is None

    # a client that somebody made

    async def test_a_client_of_ones_own_serves_all_loops_and_is_not_closed(self) -> None:
        async with self.client() as client:
            backend, lock = DynamoBackend(self.url, client=client), DynamoLock(self.url, client=client)
            async with opened(backend, lock):
                await backend.put([state("task_a", State.SUCCESS)])
                assert await lock.acquire("key", 60)
                assert list(await backend.missing()) == EXPIRY_MISSING
            await client.list_tables()
            await backend.open()
        with pytest.raises(Refused, match="the client that was given is closed"):
            await backend.get(["task_a"])
        await backend.close()

    async def test_what_is_no_client_of_dynamodb_is_told_what_was_expected(self) -> None:
        async with AioSession().create_client("sqs", region_name="here") as client:
            with pytest.raises(ConfigError, match=r"client: one of sqs; expected .*create_client\('dynamodb'\)"):
                DynamoBackend(self.url, client=client)

    def client(self) -> Any:
        parts = urlsplit(self.url)
        return AioSession().create_client(
            "dynamodb",
            region_name="local",
            endpoint_url=f"http://{parts.hostname}:{parts.port}",
            aws_access_key_id=parts.username,
            aws_secret_access_key=parts.password,
        )

    async def finish(self, group_id: str, task_ids: Sequence[str]) -> Progress:
        *_, last = await self.backend.finish_members([Member(group_id, task_id) for task_id in task_ids])
        return last


EXPIRY_MISSING = [
    "expiry of the items of table task_states by their TTL",
    "expiry of the items of table group_metas by their TTL",
]


# ------------------------------------------------------------------------------------------------------- tables


class TestMissingTables(OnDynamo):
    @pytest.fixture
    def service(self, bare_dynamodb_url: str) -> None:
        self.url = bare_dynamodb_url

    async def test_a_missing_table_is_named_when_one_opens(self) -> None:
        await self.made("task_states", "TaskUUID")
        place = r"127\.0\.0\.1:\d+, region local: `asyncqueue migrate` makes it"
        with pytest.raises(Refused, match=rf"there is no table 'group_metas' at {place}") as raised:
            await DynamoBackend(self.url).open()
        assert "test:" not in str(raised.value)
        with pytest.raises(Refused, match=rf"there is no table 'my_locks' at {place}"):
            await DynamoLock(self.url, table="my_locks").open()

    async def test_a_table_that_goes_away_is_named_too(self) -> None:
        backend = DynamoBackend(self.url)
        await backend.migrate()
        await self.opened(backend)
        await self.call("delete_table", TableName="task_states")
        for verb in (backend.get(["task_a"]), backend.begin([state("task_a")]), backend.put([state("task_a")])):
            with pytest.raises(Refused, match="there is no table 'task_states'"):
                await verb

    async def test_a_table_of_machinerys_is_only_told_to_expire(self) -> None:
        await self.made("my_states", "TaskUUID")
        await self.call(
            "put_item", TableName="my_states", Item={"TaskUUID": {"S": "task_a"}, "State": {"S": "SUCCESS"}}
        )
        backend = DynamoBackend(self.url, task_states_table="my_states", group_metas_table="my_groups")
        made = await backend.migrate()
        assert made == [
            "expiry of the items of table my_states by their TTL",
            "table my_groups, key GroupUUID, whose items expire by their TTL",
        ]
        await self.opened(backend)
        (found,) = await backend.get(["task_a"])
        assert found == state("task_a", State.SUCCESS)
        for table in ("my_states", "my_groups"):
            reply = await self.call("describe_time_to_live", TableName=table)
            assert reply["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": "TTL"}

    async def test_a_table_that_another_process_is_making_is_waited_for(self) -> None:
        await self.made("aq_locks", "Name")
        lock, making = DynamoLock(self.url), 2
        inner = lock._dynamo.call

        async def call(operation: str, table: Table, **parameters: Any) -> Reply:
            """As DynamoDB has it for some seconds after a table was asked for, and DynamoDB Local never."""
            nonlocal making
            if operation == "describe_time_to_live" and making:
                raise Missing("it is not active", "ResourceNotFoundException")
            reply = await inner(operation, table, **parameters)
            if operation != "describe_table" or not making:
                return reply
            making -= 1
            return {**reply, "Table": {**reply["Table"], "TableStatus": "CREATING"}}

        lock._dynamo.call = call  # type: ignore[method-assign]  # the one seam before the service
        assert await lock.migrate() == ["expiry of the items of table aq_locks by their TTL"]
        assert not making
        assert await lock.missing() == []
        await lock.close()

    async def test_another_table_of_that_name_is_told_what_was_expected(self) -> None:
        await self.made("task_states", "Id")
        backend = DynamoBackend(self.url)
        for verb in (backend.missing, backend.migrate):
            with pytest.raises(Refused, match=r"table 'task_states' has the key Id \(S\); expected TaskUUID \(S\)"):
                await verb()
        with pytest.raises(Refused, match=r"table 'task_states': .* key"):
            await backend.open()

    async def test_items_that_expire_by_something_else_are_left_alone(self) -> None:
        await self.made("aq_locks", "Name")
        by = {"Enabled": True, "AttributeName": "Gone"}
        await self.call("update_time_to_live", TableName="aq_locks", TimeToLiveSpecification=by)
        for verb in (DynamoLock(self.url).missing, DynamoLock(self.url).migrate):
            with pytest.raises(Refused, match="items of table 'aq_locks' expire by their Gone; expected TTL"):
                await verb()

    async def test_a_wrong_key_is_refused_and_no_secret_is_shown(self) -> None:
        stranger = stranger_at(self.url)
        for verb in (DynamoBackend(stranger).open, DynamoBackend(stranger).migrate, DynamoLock(stranger).open):
            with pytest.raises(Refused, match="the access key, its secret or its session token is wrong") as raised:
                await verb()
            assert CANARY not in f"{raised.value!r} {raised.value.__cause__!r}"

    @pytest.mark.long
    async def test_dynamodb_deletes_what_has_expired(self) -> None:
        backend = DynamoBackend(self.url, results_expire_in=1.0)
        await backend.migrate()
        await self.opened(backend)
        await backend.begin([state("task_a")])

        async def is_deleted() -> bool:
            return not (await self.call("scan", TableName="task_states"))["Items"]

        await self.until(is_deleted)

    async def made(self, table: str, key: str) -> None:
        await self.call(
            "create_table",
            TableName=table,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    async def call(self, operation: str, **parameters: Any) -> Any:
        return await aws_client("dynamodb", self.url, operation, parameters)


# ------------------------------------------------------------------------------------- numbers, URLs and errors


@given(st.integers(-(2**63), 2**63))
def test_a_number_is_never_bigger_than_it_is_counted(value: int) -> None:
    digits = str(abs(value)).rstrip("0")
    assert size_of({"": number(value)}) >= (len(digits) + 1) // 2 + 1


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://dynamodb.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://dynamodb.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
        ("https://dynamodb-fips.us-east-2.amazonaws.com", "us-east-2"),
        ("http://localhost:8000?region=anything", "anything"),
        ("http://localhost:8000", None),
    ],
)
def test_a_url_names_the_region(url: str, region: str | None) -> None:
    assert parse_url(url, has_account=False).region == region


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (f"https://key:{CANARY}@dynamodb.eu-west-1.amazonaws.com/machinery", "nothing follows the host"),
        (f"https://{CANARY}@dynamodb.eu-west-1.amazonaws.com", "a key and its secret"),
        ("https://dynamodb.eu-west-1.amazonaws.com?regoin=x", "unknown option 'regoin'"),
    ],
)
def test_a_url_that_cannot_work_is_told_what_was_expected(url: str, complaint: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{complaint}.*expected https://\S*dynamodb.<region>.amazonaws.com"
    ) as raised:
        DynamoBackend(url)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException", Unavailable),
        (400, "ThrottlingException", Unavailable),
        (400, "RequestLimitExceeded", Unavailable),
        (400, "LimitExceededException", Unavailable),
        (500, "InternalServerError", Unavailable),
        (400, "com.amazon.coral.service#UnrecognizedClientException", Refused),
        (400, "InvalidSignatureException", Refused),
        (400, "AccessDeniedException", Refused),
        (400, "ValidationException", Refused),
    ],
)
async def test_an_error_says_whether_trying_again_may_help(status: int, code: str, expected: type[Exception]) -> None:
    async with service_that_says(status, json.dumps({"__type": code, "message": "the reason"})) as place:
        url = f"{place}?region=here"
        for driver in (DynamoBackend(url, reply_timeout=30.0), DynamoLock(url, reply_timeout=30.0)):
            for verb in (driver.open, driver.migrate):
                with pytest.raises(expected, match=rf"127\.0\.0\.1.*{code.partition('#')[2] or code}.*the reason"):
                    await verb()
            await driver.close()


async def test_a_service_that_says_nothing_is_unavailable() -> None:
    async with service_that_says(0, "") as place:
        backend = DynamoBackend(f"{place}?region=here", reply_timeout=0.2)
        with pytest.raises(Unavailable, match=r"no answer to get_item within 0\.2 s"):
            await backend.open()
        await backend.close()


async def test_a_web_server_that_is_no_dynamodb_gives_no_lock_and_takes_no_state() -> None:
    async with service_that_says(200, "<html>Welcome!</html>", kind="text/html") as place:
        url = f"{place}?region=here"
        for driver in (DynamoBackend(url, reply_timeout=30.0), DynamoLock(url, reply_timeout=30.0)):
            for verb in (driver.open, driver.missing, driver.migrate):
                with pytest.raises(Unavailable, match=r"none of DynamoDB: its type is 'text/html'"):
                    await verb()
            await driver.close()


async def test_an_answer_that_was_damaged_on_its_way_is_unavailable() -> None:
    async with service_that_says(200, "{}", "x-amz-crc32: 1") as place:
        backend = DynamoBackend(f"{place}?region=here", reply_timeout=30.0)
        with pytest.raises(Unavailable, match="Checksum"):
            await backend.open()
        await backend.close()


# ------------------------------------------------------------------------------------------------------ helpers


@contextmanager
def counted(backend: DynamoBackend) -> Iterator[Counter[str]]:
    """Counts its requests, by their names."""
    inner, count = backend._dynamo.call, Counter[str]()

    async def call(operation: str, table: Table, **parameters: Any) -> Reply:
        count[operation] += 1
        return await inner(operation, table, **parameters)

    backend._dynamo.call = call  # type: ignore[method-assign]  # the one seam before the service
    try:
        yield count
    finally:
        backend._dynamo.call = inner  # type: ignore[method-assign]  # the one seam before the service


@contextmanager
def undone(backend: DynamoBackend, operation: str, *left: int) -> Iterator[None]:
    """Of its next batches, so many items each do not reach the service, which says so: DynamoDB Local does all."""
    inner, lefts = backend._dynamo.call, iter(left)

    async def call(asked: str, table: Table, **parameters: Any) -> Reply:
        if asked != operation:
            return await inner(asked, table, **parameters)
        here = parameters["RequestItems"][table.name]
        is_read = asked == "batch_get_item"
        items, count = here["Keys"] if is_read else here, next(lefts)
        done, rest = items[count:], items[:count]
        reply: Reply = {}
        if done:
            some = {**here, "Keys": done} if is_read else done
            reply = await inner(asked, table, RequestItems={table.name: some})
        unprocessed = {table.name: {**here, "Keys": rest} if is_read else rest}
        return {**reply, "UnprocessedKeys" if is_read else "UnprocessedItems": unprocessed if rest else {}}

    backend._dynamo.call = call  # type: ignore[method-assign,assignment]  # the one seam before the service
    try:
        yield
        assert next(lefts, None) is None, "every batch was asked for"
    finally:
        backend._dynamo.call = inner  # type: ignore[method-assign]  # the one seam before the service


def stranger_at(url: str) -> str:
    """The same place, for somebody whom it does not know: a key has letters and digits only."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"no-such-key:{CANARY}@{parts.hostname}:{parts.port}"))


async def aws_client(service: str, url: str, operation: str, parameters: Mapping[str, Any]) -> Any:
    """One request by a client that knows nothing of us."""
    parts = urlsplit(url)
    async with AioSession().create_client(
        service,
        region_name="local",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    ) as client:
        return await getattr(client, operation)(**parameters)
