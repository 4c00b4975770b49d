"""What looks at a group come to, that Go's workers may be part of, and when a worker of ours begins to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from asyncqueue import Arg, Server, Signature, State, TaskResult, TaskState, Worker
from asyncqueue.backends.base import Backend, GroupClaim, Member
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Delivery, Message
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.builders import chord
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK
from asyncqueue.compiling import compiled, continued
from asyncqueue.config import Settings
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.events import Events
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.outcome import Failed, Outcome, Over, Overdue, Retry, Succeeded, Unseen, settled
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.settlement import WholeSettlement, settlement_of
from asyncqueue.engine.watching import LAST_PAUSE, LOOKS_TO_SEND_AGAIN, Watcher, begun, looked_after
from asyncqueue.errors import BadMessage, Unavailable
from asyncqueue.go_compat import GoCompat
from asyncqueue.signature import header, with_headers
from asyncqueue.state import GroupMeta
from asyncqueue.testing import Faults, with_faults
from asyncqueue.wire import decode_signature, encode_signature
from asyncqueue.workflow import (
    ATTEMPT_HEADER,
    CHECK_HEADER,
    FIRST_LOOK,
    ON_FAILURE_HEADER,
    SEEN_HEADER,
    WATCH,
    companion,
    group_id_of,
    tasks_in,
    watch_id_of,
)
from tests.path.bench import eventually

QUEUE = "q"
CALLBACK = Signature(uuid="callback", name="total", routing_key=QUEUE)
GROUP = group_id_of(CALLBACK.uuid)
WATCHING = Signature(
    uuid=watch_id_of(GROUP), name=WATCH, args=(Arg(type="string", value=GROUP),), chord_callback=CALLBACK
)
SEEN = with_headers(WATCHING, {SEEN_HEADER: "1"})
SENT_AT = 1_700_000_000_000_000_000

GO_GROUP = "group_that_go_has_named"
BESIDE_GO = Rules(QUEUE, go=GoCompat(is_on=True))


@pytest_asyncio.fixture
async def backend() -> AsyncIterator[Backend]:
    """In it: a group of two that wait, and what was sent with it."""
    backend = MemoryBackend(MemoryStore(), results_expire_in=3600.0)
    await backend.open()
    await backend.open_groups([GroupMeta(group_uuid=GROUP, task_uuids=("a", "b"))])
    await backend.begin([_state(each) for each in ("a", "b", "callback", "ahead", WATCHING.uuid)])
    yield backend
    await backend.close()


def _state(task_id: str, state: State = State.PENDING, created_at: int = SENT_AT) -> TaskState:
    error = "too late" if state is State.FAILURE else ""
    return TaskState(task_uuid=task_id, task_name="ship", state=state, error=error, created_at=created_at)


async def _ended(backend: Backend, **states: State) -> None:
    """As Go does it: the states are written, and nobody is told."""
    await backend.put([_state(task_id, state) for task_id, state in states.items()])


async def _look(backend: Backend, watch: Signature = WATCHING) -> tuple[Signature, Outcome]:
    (found,) = await looked_after([watch], backend)
    return found


async def _outcome(backend: Backend, watch: Signature = WATCHING) -> Outcome:
    _, outcome = await _look(backend, watch)
    return outcome


async def test_while_members_run_it_looks_again_after_twice_as_long_but_each_minute(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS)
    pauses = []
    for attempt in range(1, 9):
        outcome = await _outcome(backend, with_headers(WATCHING, {ATTEMPT_HEADER: str(attempt)}))
        assert isinstance(outcome, Retry)
        assert not outcome.counts
        pauses.append(outcome.delay)
    assert pauses == [FIRST_LOOK, 4.0, 8.0, 16.0, 32.0, LAST_PAUSE, LAST_PAUSE, LAST_PAUSE]


async def test_it_acts_at_the_second_look_that_finds_the_group_ended(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    watch, outcome = await _look(backend)
    assert outcome == Retry("the group has ended", FIRST_LOOK, counts=False)
    outcome = await _outcome(backend, watch)
    assert isinstance(outcome, Unseen)
    assert not outcome.is_marked
    assert [state and state.error for state in outcome.states] == ["", "too late"]


async def test_a_member_that_go_runs_anew_between_two_looks_is_seen_ended_twice_more(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    await backend.finish_members([Member(GROUP, "a"), Member(GROUP, "b")])
    await backend.begin([_state("b", State.STARTED)])  # as Go writes over what was there
    watch, outcome = await _look(backend, SEEN)
    assert isinstance(outcome, Retry)
    await _ended(backend, b=State.SUCCESS)
    watch, outcome = await _look(backend, watch)
    assert isinstance(outcome, Retry), "Go is about to send what follows"
    assert isinstance(await _outcome(backend, watch), Unseen)


async def test_members_that_succeeded_unseen_have_their_callback_sent(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    outcome = await _outcome(backend, SEEN)
    assert isinstance(outcome, Unseen)
    assert not outcome.is_marked


async def test_a_group_that_is_marked_with_a_failed_member_is_ended(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    await backend.finish_members([Member(GROUP, "a")])
    await backend.mark_group_sent(GROUP)
    outcome = await _outcome(backend, SEEN)
    assert isinstance(outcome, Unseen)
    assert outcome.is_marked


async def test_but_not_once_more_where_ours_have_ended_it(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    await backend.mark_group_sent(GROUP)
    await backend.put([_state(WATCHING.uuid, State.SUCCESS)])
    await backend.forget(["callback"])  # as Go's clients take from RabbitMQ what they have read
    assert await _outcome(backend, SEEN) == Succeeded(())


async def _marked_by_go(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    await backend.mark_group_sent(GROUP)


async def test_a_callback_that_nobody_has_sent_half_a_minute_after_the_mark_is_sent(backend: Backend) -> None:
    await _marked_by_go(backend)
    watch, outcome = await _look(backend)
    pauses = []
    while isinstance(outcome, Retry):
        pauses.append(outcome.delay)
        watch, outcome = await _look(backend, watch)
    assert pauses == [2.0, 4.0, 8.0, 16.0]
    assert isinstance(outcome, Unseen)
    delivery = Delivery(b"", companion(QUEUE), 1, 1)
    item = settled(delivery, watch, outcome, BESIDE_GO, 0)
    assert item is not None
    (sent,) = item.publish
    assert decode_signature(sent.body).uuid == "callback"
    assert item.state is None, "whoever is shown the watch again would take it for sent"


NEVER_SENT = with_headers(WATCHING, {SEEN_HEADER: str(LOOKS_TO_SEND_AGAIN)})


async def test_one_that_go_has_recorded_anew_was_sent_and_waits_for_a_worker(backend: Backend) -> None:
    await _marked_by_go(backend)
    await backend.begin([_state("callback", created_at=SENT_AT + 1)])
    assert await _outcome(backend, NEVER_SENT) == Succeeded(())


async def test_so_was_one_whose_watch_was_ended_by_who_sent_it(backend: Backend) -> None:
    await _marked_by_go(backend)
    await backend.put([_state(WATCHING.uuid, State.SUCCESS)])
    assert await _outcome(backend, NEVER_SENT) == Succeeded(())


async def test_so_may_have_been_one_of_whose_watch_nothing_is_known(backend: Backend) -> None:
    await _marked_by_go(backend)
    await backend.forget([WATCHING.uuid])
    assert await _outcome(backend, NEVER_SENT) == Succeeded(())


async def test_so_may_have_been_one_of_whose_members_an_entry_has_expired_since(backend: Backend) -> None:
    await _marked_by_go(backend)
    await backend.forget(["a"])
    assert await _outcome(backend, NEVER_SENT) == Succeeded(())


async def test_a_marked_group_is_left_alone_whose_callback_takes_failed_members(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    await backend.mark_group_sent(GROUP)
    skipping = SEEN.with_changes(chord_callback=with_headers(CALLBACK, {ON_FAILURE_HEADER: "skip"}))
    assert await _outcome(backend, skipping) == Succeeded(())


@pytest.mark.parametrize("state", [each for each in State if each is not State.PENDING])
async def test_once_the_callback_has_begun_there_is_nothing_to_look_after(backend: Backend, state: State) -> None:
    await _ended(backend, b=State.FAILURE, callback=state)
    assert await _outcome(backend) == Succeeded(())


async def test_an_earlier_run_of_a_task_that_goes_on_as_the_group_is_no_begin_of_what_ends_that(
    backend: Backend,
) -> None:
    last = with_headers(CALLBACK, {ATTEMPT_HEADER: "2"})
    watch = WATCHING.with_changes(chord_callback=last)
    await _ended(backend, b=State.FAILURE, callback=State.STARTED)
    assert isinstance(await _outcome(backend, watch), Retry)
    await backend.put([TaskState(task_uuid="callback", state=State.STARTED, attempt=2)])
    assert await _outcome(backend, watch) == Succeeded(())


async def test_a_callback_inside_of_such_a_group_has_no_entry_and_is_looked_after(backend: Backend) -> None:
    await backend.forget(["callback"])
    assert isinstance(await _outcome(backend), Retry)


async def test_once_the_group_and_the_callback_have_expired_there_is_nothing_to_look_after(backend: Backend) -> None:
    await backend.forget(["callback", GROUP])
    assert await _outcome(backend) == Succeeded(())


async def test_a_task_ahead_of_a_member_that_failed_ends_the_group(backend: Backend) -> None:
    ahead = Arg(type="[]string", value=["unknown", "ahead"])
    watch = WATCHING.with_changes(args=(*(WATCHING.args or ()), ahead))
    assert isinstance(await _outcome(backend, watch), Retry)
    await _ended(backend, ahead=State.FAILURE)
    outcome = await _outcome(backend, watch)
    text = f"task 'ship' (ahead) before a member of group {GROUP} failed: too late"
    assert outcome == Overdue(GROUP, CALLBACK, text)


async def test_a_group_without_an_entry_has_failed(backend: Backend) -> None:
    await backend.forget([GROUP])
    outcome = await _outcome(backend)
    assert isinstance(outcome, Overdue)
    assert "has expired" in outcome.error


async def test_looking_counts_nobody_and_claims_nothing(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS)
    await _outcome(backend)
    (group,) = await backend.get_groups([GROUP])
    assert group is not None
    assert group.task_uuids == ("a", "b")
    assert not group.chord_triggered
    assert await backend.claim_group(GROUP, "somebody", 30.0) is GroupClaim.MINE


async def test_a_watch_that_carries_no_group_ends(backend: Backend) -> None:
    assert await _outcome(backend, WATCHING.with_changes(chord_callback=None)) == Succeeded(())
    assert await _outcome(backend, WATCHING.with_changes(args=())) == Succeeded(())


# — looks of many —


def _watch_number(number: int) -> Signature:
    callback = CALLBACK.with_changes(uuid=f"callback_{number}")
    group_id = group_id_of(callback.uuid)
    args = (Arg(type="string", value=group_id),)
    return WATCHING.with_changes(uuid=watch_id_of(group_id), args=args, chord_callback=callback)


async def _open(backend: Backend, watch: Signature, number: int) -> None:
    group_id, members = str((watch.args or ())[0].value), (f"a_{number}", f"b_{number}")
    await backend.open_groups([GroupMeta(group_uuid=group_id, task_uuids=members)])
    await backend.begin([_state(each) for each in (*members, f"callback_{number}", watch.uuid)])


async def test_looks_that_come_together_share_their_round_trips_and_each_is_told_its_own() -> None:
    faults = Faults()
    backend = with_faults(MemoryBackend(MemoryStore(), results_expire_in=3600.0), faults)
    await backend.open()
    watches = [_watch_number(number) for number in range(50)]
    for number, watch in enumerate(watches):
        await _open(backend, watch, number)
        if number % 2:
            await _ended(backend, **{f"a_{number}": State.SUCCESS, f"b_{number}": State.FAILURE})
    calls: list[str] = []
    around = faults.around

    async def noting(verb: str, call: Any) -> Any:
        calls.append(verb)
        await asyncio.sleep(0)  # as a store that answers later: so the others come meanwhile
        return await around(verb, call)

    faults.around = noting  # type: ignore[method-assign]  # to see the calls
    watcher = Watcher(backend, Patience(Events(), SYSTEM_CLOCK))
    found = await asyncio.gather(*map(watcher.look, watches))
    assert [outcome.error for _, outcome in found if isinstance(outcome, Retry)] == [
        "the group has ended" if number % 2 else "members of the group have not ended" for number in range(50)
    ]
    assert [watch.uuid for watch, _ in found] == [watch.uuid for watch in watches]
    # the first look waits for nobody; the others for its end
    assert calls == ["get", "finish_members", "get", "finish_members", "get_groups", "get"]


async def test_a_state_that_nobody_can_read_is_not_known_and_keeps_no_other_look_from_its_end(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _watch_number(1)
    await _open(backend, other, 1)
    get = backend.get

    async def unreadable(task_ids: Any) -> Any:
        if "callback" in task_ids:
            raise BadMessage("not_json", "somebody else's")
        return await get(task_ids)

    monkeypatch.setattr(backend, "get", unreadable)
    await _ended(backend, callback_1=State.SUCCESS)
    found = [outcome for _, outcome in await looked_after([WATCHING, other], backend)]
    assert isinstance(found[0], Retry)
    assert found[1] == Succeeded(())


async def test_a_group_that_nobody_can_read_keeps_no_other_look_from_its_end(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _watch_number(1)
    await _open(backend, other, 1)
    get_groups = backend.get_groups

    async def unreadable(group_ids: Any) -> Any:
        if GROUP in group_ids:
            raise BadMessage("invalid_group", "somebody else's")
        return await get_groups(group_ids)

    monkeypatch.setattr(backend, "get_groups", unreadable)
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS, a_1=State.SUCCESS, b_1=State.SUCCESS)
    found = [outcome for _, outcome in await looked_after([WATCHING, other], backend)]
    assert isinstance(found[0], Overdue)
    assert isinstance(found[1], Retry)


# — groups that Go's clients send —


@dataclass(slots=True)
class Fleet:
    """A broker and a backend on one store or on two, and members of a group that a client in Go has sent."""

    is_one: bool
    faults: Faults = field(default_factory=Faults)
    broker: Any = None
    backend: Any = None

    async def open(self, *members: str) -> Fleet:
        store = MemoryStore()
        self.broker = with_faults(MemoryBroker(store), self.faults)
        self.backend = with_faults(MemoryBackend(store if self.is_one else MemoryStore()), self.faults)
        await self.broker.open()
        await self.backend.open()
        await self.backend.open_groups([GroupMeta(group_uuid=GO_GROUP, task_uuids=members)])
        await self.backend.begin([_state(each) for each in members])
        for each in members:
            sent = Signature(uuid=each, name="m", group_uuid=GO_GROUP, group_task_count=2, chord_callback=CALLBACK)
            await self.broker.publish([Message(encode_signature(sent), QUEUE, each)])
        return self

    async def worker(self) -> WholeSettlement:
        inner = await settlement_of(self.broker, self.backend)
        return WholeSettlement(inner, self.backend, rules=lambda: BESIDE_GO, clock=SYSTEM_CLOCK)

    async def shown(self, count: int) -> list[Delivery]:
        return list(await self.broker.fetch(QUEUE, count, 0))

    async def settle(self, worker: WholeSettlement, deliveries: list[Delivery], outcome: Outcome) -> None:
        now = SYSTEM_CLOCK.now_ns()
        items = [settled(each, decode_signature(each.body), outcome, BESIDE_GO, now) for each in deliveries]
        await worker.settle([each for each in items if each is not None])

    async def watches(self) -> list[Signature]:
        waiting = [decode_signature(body) for _, body in await self.broker.delayed(100)]
        return [each for each in waiting if each.name == WATCH]

    async def state(self, task_id: str) -> TaskState | None:
        (found,) = await self.backend.get([task_id])
        return found  # type: ignore[no-any-return]  # of a backend with faults nothing is known


RESULT = Succeeded((TaskResult(type="int64", value=1),))
on_each_settlement = pytest.mark.parametrize("is_one", [True, False], ids=["one store", "two stores"])


@on_each_settlement
@pytest.mark.parametrize("outcome", [RESULT, Failed("oops")])
async def test_the_first_member_that_ends_here_of_a_group_sent_by_go_begins_its_watch(
    is_one: bool, outcome: Outcome
) -> None:
    fleet = await Fleet(is_one).open("a", "b", "c")
    worker = await fleet.worker()
    await fleet.settle(worker, await fleet.shown(2), outcome)
    await fleet.settle(worker, await fleet.shown(1), outcome)
    (watch,) = await fleet.watches()
    assert (watch.routing_key, watch.chord_callback) == (companion(QUEUE), CALLBACK)
    known = await fleet.state(watch.uuid)
    assert known is not None
    assert known.task_name == WATCH


async def test_so_its_callback_has_a_state_before_it_is_sent() -> None:
    fleet = await Fleet(is_one=False).open("a", "b")
    await fleet.settle(await fleet.worker(), await fleet.shown(1), RESULT)
    callback = await fleet.state("callback")
    assert callback is not None
    assert (callback.state, callback.task_name) == (State.PENDING, "total")


@pytest.mark.parametrize("go", [GoCompat(), GoCompat(is_on=True)], ids=["without Go", "ours"])
async def test_a_group_of_ours_is_begun_no_watch_by_its_members_nor_is_any_without_go(go: GoCompat) -> None:
    fleet = await Fleet(is_one=False).open("a", "b")
    inner = await settlement_of(fleet.broker, fleet.backend)
    rules = Rules(QUEUE, go=go)
    worker = WholeSettlement(inner, fleet.backend, rules=lambda: rules, clock=SYSTEM_CLOCK)
    (delivery,) = await fleet.shown(1)
    member = decode_signature(delivery.body)
    if go:
        member = member.with_changes(group_uuid=GROUP)
        delivery = Delivery(encode_signature(member), QUEUE, delivery.receipt, 1)
    item = settled(delivery, member, RESULT, rules, 0)
    assert item is not None
    await worker.settle([item])
    assert await fleet.watches() == []


@on_each_settlement
async def test_a_watch_is_begun_although_the_stores_were_away_when_it_was_to_be(is_one: bool) -> None:
    fleet = await Fleet(is_one).open("a", "b")
    worker, shown = await fleet.worker(), await fleet.shown(1)
    fleet.faults.before("settle" if is_one else "publish")
    with pytest.raises(Unavailable):
        await fleet.settle(worker, shown, RESULT)
    await fleet.settle(worker, shown, RESULT)
    assert len(await fleet.watches()) == 1


async def test_of_the_watches_that_several_workers_begin_the_first_goes_on() -> None:
    fleet = await Fleet(is_one=False).open("a", "b", "c")
    for _ in range(2):
        await fleet.settle(await fleet.worker(), await fleet.shown(1), RESULT)
    first, second = sorted(await fleet.watches(), key=lambda watch: watch.eta or 0)
    assert first.uuid == second.uuid
    assert isinstance(await _outcome(fleet.backend, second), Retry), "the first one may have been lost"
    await fleet.backend.put([TaskState(task_uuid=first.uuid, state=State.RETRY, attempt=2)])
    assert isinstance(await _outcome(fleet.backend, first), Retry), "it is shown again"
    outcome = await _outcome(fleet.backend, second)
    item = settled(Delivery(b"", companion(QUEUE), 1, 1), second, outcome, BESIDE_GO, 0)
    assert item is not None
    assert item.state is None, "the first one would be taken for ended by who sent what follows"


@on_each_settlement
async def test_a_failure_of_ours_that_comes_after_gos_end_of_the_group_is_found_by_the_watch(is_one: bool) -> None:
    fleet = await Fleet(is_one).open("a", "b")
    await _ended(fleet.backend, b=State.SUCCESS)
    await fleet.backend.mark_group_sent(GO_GROUP)  # by Go, which saw our failure and sends nothing
    await fleet.settle(await fleet.worker(), await fleet.shown(1), Failed("oops"))
    (watch,) = await fleet.watches()
    watch, outcome = await _look(fleet.backend, watch)
    assert isinstance(outcome, Retry)
    outcome = await _outcome(fleet.backend, watch)
    assert isinstance(outcome, Unseen)
    assert outcome.is_marked


@on_each_settlement
async def test_who_ends_a_group_beside_go_ends_its_watch(is_one: bool) -> None:
    fleet = await Fleet(is_one).open("a", "b")
    worker = await fleet.worker()
    await fleet.settle(worker, await fleet.shown(2), RESULT)
    for each in await fleet.broker.fetch(companion(QUEUE), 10, 0):  # word that it is over, with two stores
        task = decode_signature(each.body)
        item = settled(each, task, _over(task), BESIDE_GO, SYSTEM_CLOCK.now_ns())
        assert item is not None
        await worker.settle([item])
    (watch,) = await fleet.watches()
    known = await fleet.state(watch.uuid)
    assert known is not None
    assert known.is_success
    (sent,) = await fleet.shown(2)
    assert decode_signature(sent.body).uuid == "callback"


def _over(task: Signature) -> Outcome:
    return Over(str(task.args[0].value) if task.args else "")


# — what is compiled —


def _call(name: str, to: str) -> Signature:
    return Signature(name=name, routing_key=to)


def test_a_callback_that_go_may_send_says_that_it_may_be_a_second_copy_and_no_other_does() -> None:
    work = chord([_call("a", "go"), _call("b", "python")], _call("total", "python"))
    for go, expected in ((GoCompat(is_on=True), {"total"}), (GoCompat(), set())):
        tasks = tasks_in(compiled(work, default_queue="python", go=go).entries)
        assert {each.name for each in tasks if header(each, CHECK_HEADER)} == expected


def test_built_in_tasks_of_a_task_that_goes_on_are_in_the_companion_of_the_servers_default_queue() -> None:
    work = chord([_call("a", "go"), _call("b", "")], _call("total", ""))
    original = Signature(uuid="original", name="split", routing_key="burst")
    go = GoCompat(is_on=True, queues=frozenset({"go"}))
    going_on = continued(original, work, default_queue="burst", home="python", go=go)
    queues = {each.name: each.routing_key for each in tasks_in(going_on.entries)}
    assert queues == {WATCH: "python.aq", "a": "go", "b": "burst", "total": "burst"}


async def test_a_worker_of_another_queue_leaves_what_it_begins_beside_go_to_all() -> None:
    settings = Settings.parse({"default_queue": "python", "go_compat": True, "go_queues": ["go"]})
    async with Server("memory://", settings=settings) as server:

        @server.task(queue="burst")
        async def split() -> Any:
            return chord([_call("a", "go"), _call("b", "go")], _call("total", "go"))

        async def watches() -> list[Signature]:
            return [each for each in await server.get_delayed_tasks() if each.name == WATCH]

        await server.send_task(split.s())
        async with Worker(server, queues="burst"):
            (watch,) = await eventually(watches)
        assert watch.routing_key == "python.aq"


def test_a_watch_begins_to_look_after_two_seconds() -> None:
    member = Signature(uuid="a", name="m", group_uuid=GO_GROUP, chord_callback=CALLBACK)
    sent, _ = begun(member, BESIDE_GO, 5 * NANOSECONDS)
    assert sent.not_before == 5 + FIRST_LOOK


@pytest.mark.parametrize("is_on", [True, False])
async def test_a_second_copy_of_a_callback_that_gos_client_has_named_does_not_run_beside_go(is_on: bool) -> None:
    runs = []
    settings = Settings.parse({"default_queue": QUEUE, "go_compat": is_on})
    async with Server("memory://", settings=settings) as server:

        @server.task(name="total")
        async def total() -> None:
            runs.append("total")

        named = [CALLBACK.with_changes(uuid=each) for each in ("chord_by_go", "task_by_anybody")]
        copies = [Message(encode_signature(each), QUEUE, each.uuid) for each in named]
        broker = (await server.connected()).broker
        async with Worker(server, concurrency=1):
            for last in ("first", "second"):  # the second one of each when the first has ended
                await broker.publish(copies)
                await (await server.send_task(CALLBACK.with_changes(uuid=last))).get(30)
                for each in named:
                    await server.result(each.uuid).get(30)
    assert len(runs) == (5 if is_on else 6)
