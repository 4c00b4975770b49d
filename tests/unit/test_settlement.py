"""The two ways to make a batch of ends true."""

from __future__ import annotations

from typing import Any

import pytest

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Ack, Bury, Delivery, Message, Nack, Settled
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.outcome import Failed, Outcome, Over, Succeeded, settled
from asyncqueue.engine.over import over, over_again
from asyncqueue.engine.settlement import (
    CLAIM_TTL,
    AtomicSettlement,
    OrderedSettlement,
    Outgoing,
    WholeSettlement,
    parts,
    settlement_of,
)
from asyncqueue.errors import Unavailable
from asyncqueue.go_compat import GoCompat
from asyncqueue.signature import Signature, with_headers
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.testing import Faults, ManualClock, with_faults
from asyncqueue.wire import decode_signature, encode_signature
from asyncqueue.workflow import ATTEMPT_HEADER, OVER, PLAN_HEADER, companion, group_id_of

QUEUE = "q"


class Pair:
    """A broker and a backend on one store or on two, and the order of their calls."""

    def __init__(self, *, together: bool) -> None:
        self.faults = Faults()
        store = MemoryStore()
        self.broker = with_faults(MemoryBroker(store), self.faults)
        self.backend = with_faults(MemoryBackend(store if together else MemoryStore()), self.faults)
        self.order: list[str] = []

    async def open(self) -> Pair:
        await self.broker.open()
        await self.backend.open()
        around = self.faults.around

        async def noting(verb: str, call: Any) -> Any:
            self.order.append(verb)
            return await around(verb, call)

        self.faults.around = noting  # type: ignore[method-assign]  # to see the order of calls
        return self

    async def deliveries(self, count: int) -> list[Delivery]:
        await self.broker.publish([Message(str(n).encode(), QUEUE, f"task_{n}") for n in range(count)])
        found = list(await self.broker.fetch(QUEUE, count, 0))
        self.order.clear()
        return found

    async def state(self, task_id: str) -> State | None:
        (found,) = await self.backend.get([task_id])
        return found.state if found else None


def ended(delivery: Delivery, verdict: Any, state: State = State.SUCCESS, **more: Any) -> Settled:
    return Settled(delivery, verdict, TaskState(task_uuid=f"task_{delivery.body.decode()}", state=state), **more)


async def test_one_store_settles_atomically_and_two_in_order() -> None:
    together, apart = await Pair(together=True).open(), await Pair(together=False).open()
    assert isinstance(await settlement_of(together.broker, together.backend), AtomicSettlement)
    assert isinstance(await settlement_of(apart.broker, apart.backend), OrderedSettlement)
    assert isinstance(await settlement_of(together.broker, None), OrderedSettlement)


async def test_an_ordered_end_is_recorded_then_its_callbacks_are_sent_then_it_is_acked() -> None:
    pair = await Pair(together=False).open()
    one, two, three, four = await pair.deliveries(4)
    callback = Message(b"9", QUEUE, "task_9", token="t")
    await OrderedSettlement(pair.broker, pair.backend).settle(
        [
            ended(one, Ack(), publish=(callback,), pending=(TaskState(task_uuid="task_9"),)),
            ended(two, Bury("failed", "why"), State.FAILURE),
            Settled(three, Nack()),
            Settled(four, Ack()),
        ]
    )
    assert pair.order == ["put", "publish", "ack", "nack", "bury"]
    assert [await pair.state(f"task_{n}") for n in (0, 1, 2, 9)] == [State.SUCCESS, State.FAILURE, None, State.PENDING]
    depth = await pair.broker.depth(QUEUE)
    assert (depth.ready, depth.held, depth.dead) == (2, 0, 1)


@pytest.mark.parametrize("verb", ["put", "publish", "ack"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_ordered_settlement_may_be_asked_for_again(verb: str, when: str) -> None:
    pair = await Pair(together=False).open()
    (one,) = await pair.deliveries(1)
    settlement = OrderedSettlement(pair.broker, pair.backend)
    batch = [ended(one, Ack(), publish=(Message(b"9", QUEUE, "task_9", token="t"),))]
    getattr(pair.faults, when)(verb)
    with pytest.raises(Unavailable):
        await settlement.settle(batch)
    await settlement.settle(batch)
    assert await pair.state("task_0") is State.SUCCESS
    depth = await pair.broker.depth(QUEUE)
    assert (depth.ready, depth.held) == (1, 0)


async def test_a_member_whose_group_another_program_is_about_to_trigger_is_settled_again_before_it_is_acked() -> None:
    pair = await Pair(together=False).open()
    await pair.backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_0", "task_1"))])
    (delivery,) = await pair.deliveries(1)
    around = pair.faults.around

    async def busy_once(verb: str, call: Any) -> Any:
        is_first = verb == "finish_members" and verb not in pair.order
        found = await around(verb, call)
        return [Progress.BUSY] if is_first else found

    pair.faults.around = busy_once  # type: ignore[method-assign]  # as a service says it that Go's workers use too
    inner = OrderedSettlement(pair.broker, pair.backend)
    whole = WholeSettlement(inner, pair.backend, rules=Rules, clock=SYSTEM_CLOCK)
    await whole.settle([ended(delivery, Ack(), member=Member("group_a", "task_0"))])
    assert [verb for verb in pair.order if verb in ("finish_members", "ack")] == ["finish_members"] * 2 + ["ack"]


async def test_two_workers_that_end_a_group_by_one_members_message_send_what_follows_once() -> None:
    """Where the broker knows a second copy: the claim is the member's, so that both of them have it."""
    pair = await Pair(together=False).open()
    delivery, member = await _shown_a_member(pair)
    clock = ManualClock()
    end = settled(delivery, member, Succeeded(()), Rules(QUEUE), clock.now_ns())
    assert end is not None
    first, second = (
        WholeSettlement(
            OrderedSettlement(pair.broker, pair.backend), pair.backend, rules=lambda: Rules(QUEUE), clock=clock
        )
        for _ in range(2)
    )
    pair.faults.before("mark_group_sent")
    with pytest.raises(Unavailable):  # it is held up between sending and saying so
        await first.settle([end])
    clock.advance(0.1)
    await second.settle([end])
    (sent,) = await pair.broker.fetch(QUEUE, 10, 0)
    assert decode_signature(sent.body).name == CALLBACK.name


@pytest.mark.parametrize("together", [True, False])
async def test_members_that_end_together_read_the_results_of_their_group_once(together: bool) -> None:
    pair = await Pair(together=together).open()
    ends = await _shown_members(pair, 20)
    inner = await settlement_of(pair.broker, pair.backend)
    whole = WholeSettlement(inner, pair.backend, rules=lambda: Rules(QUEUE), clock=SYSTEM_CLOCK)
    await whole.settle(ends)
    assert [pair.order.count(verb) for verb in ("get_groups", "get")] == [1, 1]
    assert pair.order.count("claim_group") == (0 if together else 1)
    (sent,) = await pair.broker.fetch(QUEUE, 100, 0)
    assert decode_signature(sent.body).name == CALLBACK.name
    depth = await pair.broker.depth(QUEUE)
    assert (depth.ready, depth.held) == (0, 1)


@pytest.mark.parametrize("owner", [0, 1, 2])
async def test_of_members_that_end_together_one_may_have_claimed_before_its_worker_died(owner: int) -> None:
    pair = await Pair(together=False).open()
    ends = await _shown_members(pair, 3)
    pair.faults.before("mark_group_sent")
    pair.faults.before("publish")
    whole = WholeSettlement(
        OrderedSettlement(pair.broker, pair.backend), pair.backend, rules=lambda: Rules(QUEUE), clock=SYSTEM_CLOCK
    )
    await pair.backend.put([end.state for end in ends if end.state])
    await pair.backend.finish_members([end.member for end in ends if end.member])
    assert await pair.backend.claim_group(GROUP, f"task_{owner}", CLAIM_TTL) is GroupClaim.MINE
    for _ in range(2):  # it is held up before it sends, and before it says that it has
        with pytest.raises(Unavailable):
            await whole.settle(ends)
    await whole.settle(ends)
    assert await pair.backend.claim_group(GROUP, "another", CLAIM_TTL) is GroupClaim.SENT
    (sent,) = await pair.broker.fetch(QUEUE, 100, 0)
    assert decode_signature(sent.body).name == CALLBACK.name
    assert (await pair.broker.depth(QUEUE)).held == 1


async def _shown_members(pair: Pair, count: int) -> list[Settled]:
    """The ends of so many members, which are all of a group."""
    members = [
        Signature(uuid=f"task_{n}", name="m", group_uuid=GROUP, group_task_count=count, chord_callback=CALLBACK)
        for n in range(count)
    ]
    await pair.backend.open_groups([GroupMeta(group_uuid=GROUP, task_uuids=tuple(each.uuid for each in members))])
    await pair.broker.publish([Message(encode_signature(each), QUEUE, each.uuid) for each in members])
    deliveries = await pair.broker.fetch(QUEUE, count, 0)
    ends = [
        settled(delivery, member, Succeeded(()), Rules(QUEUE), SYSTEM_CLOCK.now_ns())
        for delivery, member in zip(deliveries, members, strict=True)
    ]
    pair.order.clear()
    return [end for end in ends if end is not None]


BESIDE_GO = Rules(QUEUE, go=GoCompat(is_on=True))
CALLBACK = Signature(uuid="callback", name="collect", routing_key=QUEUE)
GROUP = group_id_of(CALLBACK.uuid)


async def _shown_a_member(pair: Pair) -> tuple[Delivery, Signature]:
    """The message of the only member of a group."""
    member = Signature(uuid="task_m", name="m", group_uuid=GROUP, group_task_count=1, chord_callback=CALLBACK)
    await pair.backend.open_groups([GroupMeta(group_uuid=GROUP, task_uuids=("task_m",))])
    await pair.broker.publish([Message(encode_signature(member), QUEUE, member.uuid)])
    (delivery,) = await pair.broker.fetch(QUEUE, 1, 0)
    return delivery, member


def _whole(pair: Pair) -> WholeSettlement:
    inner = OrderedSettlement(pair.broker, pair.backend)
    return WholeSettlement(inner, pair.backend, rules=lambda: BESIDE_GO, clock=SYSTEM_CLOCK)


async def _settle(pair: Pair, delivery: Delivery, signature: Signature, outcome: Outcome) -> list[str]:
    """Settle what a run came to; the calls that concern its group and its message, in order."""
    end = settled(delivery, signature, outcome, BESIDE_GO, SYSTEM_CLOCK.now_ns())
    assert end is not None
    pair.order.clear()
    await _whole(pair).settle([end])
    return [verb for verb in pair.order if verb in ("finish_members", "claim_group", "publish", "ack")]


async def _shown_what_is_over(pair: Pair) -> tuple[Delivery, Signature]:
    (delivery,) = await pair.broker.fetch(companion(QUEUE), 1, 0)
    found = decode_signature(delivery.body)
    assert found.name == OVER
    return delivery, found


async def test_where_go_may_be_shown_a_member_it_claims_no_group_but_a_task_in_the_companion_queue_does() -> None:
    pair = await Pair(together=False).open()
    result = TaskResult(type="int64", value=7)
    delivery, member = await _shown_a_member(pair)
    assert await _settle(pair, delivery, member, Succeeded((result,))) == ["finish_members", "publish", "ack"]
    delivery, task = await _shown_what_is_over(pair)
    order = await _settle(pair, delivery, task, Over(""))
    assert order == ["finish_members", "claim_group", "publish", "ack"]
    (sent,) = await pair.broker.fetch(QUEUE, 1, 0)
    assert [each.value for each in decode_signature(sent.body).args or ()] == [7]
    assert await pair.state(task.uuid) is None, "nobody waits for it"


async def test_where_go_may_be_shown_a_member_that_failed_it_claims_no_group_either() -> None:
    pair = await Pair(together=False).open()
    delivery, member = await _shown_a_member(pair)
    assert await _settle(pair, delivery, member, Failed("oops")) == ["publish", "ack"]
    delivery, task = await _shown_what_is_over(pair)
    assert task.args is not None
    assert await _settle(pair, delivery, task, Over(task.args[0].value)) == ["claim_group", "ack"]
    (found,) = await pair.backend.get(["callback"])
    assert found is not None
    assert found.is_failure
    assert f"'m' (task_m) of group {GROUP} failed: oops" in found.error


async def test_what_follows_a_group_waits_for_a_member_that_go_runs_anew() -> None:
    pair = await Pair(together=False).open()
    delivery, member = await _shown_a_member(pair)
    await _settle(pair, delivery, member, Succeeded(()))
    delivery, task = await _shown_what_is_over(pair)
    await pair.backend.begin([TaskState(task_uuid="task_m", state=State.STARTED)])  # as Go writes over what was there
    assert await _settle(pair, delivery, task, Over("")) == ["finish_members", "publish", "ack"]
    assert (await pair.broker.depth(companion(QUEUE))).delayed == 1
    assert await pair.state("callback") is None


async def test_it_waits_longer_each_time_and_keeps_nothing_alive_by_that() -> None:
    member = Signature(uuid="task_m", name="m", group_uuid=GROUP, group_task_count=1, chord_callback=CALLBACK)
    retried = with_headers(member, {ATTEMPT_HEADER: "4", PLAN_HEADER: "plan_of_what_follows_the_member"})
    task = decode_signature(over(retried, QUEUE, "", 0).body)
    assert not task.headers
    pauses, kept = [], []
    for _ in range(9):
        item = settled(Delivery(b"", companion(QUEUE), 1, 1), task, Over(""), BESIDE_GO, 0)
        assert item is not None
        kept.append(bool(item.alive))
        task = decode_signature(over_again(task, 0).body)
        pauses.append((task.eta or 0) / NANOSECONDS)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert kept == [True] + [False] * 8


async def test_an_atomic_settlement_that_is_repeated_changes_nothing() -> None:
    pair = await Pair(together=True).open()
    (one,) = await pair.deliveries(1)
    settlement = await settlement_of(pair.broker, pair.backend)
    batch = [ended(one, Ack(), publish=(Message(b"9", QUEUE, "task_9"),))]
    pair.faults.after("settle")
    with pytest.raises(Unavailable):
        await settlement.settle(batch)
    await settlement.settle(batch)
    depth = await pair.broker.depth(QUEUE)
    assert (depth.ready, depth.held) == (1, 0)
    assert set(pair.order) <= {"settle", "depth", "identity"}


async def test_a_submission_begins_a_state_once_however_often_it_is_repeated() -> None:
    pair = await Pair(together=False).open()
    message = Message(b"0", QUEUE, "task_0", token="t")
    submission = OrderedSettlement(pair.broker, pair.backend).submission(
        Outgoing([TaskState(task_uuid="task_0")], [message])
    )
    pair.faults.before("begin")
    pair.faults.after("publish")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await submission()
    await pair.backend.put([TaskState(task_uuid="task_0", state=State.SUCCESS)])  # it ran meanwhile
    await submission()
    assert await pair.state("task_0") is State.SUCCESS
    assert (await pair.broker.depth(QUEUE)).ready == 1


async def test_without_a_backend_nothing_is_recorded() -> None:
    pair = await Pair(together=False).open()
    (one,) = await pair.deliveries(1)
    settlement = OrderedSettlement(pair.broker, None)
    await settlement.settle([ended(one, Ack())])
    await settlement.submission(Outgoing([TaskState(task_uuid="task_1")], [Message(b"1", QUEUE, "task_1")]))()
    assert pair.order == ["ack", "publish"]


def test_parts_are_slices_in_order() -> None:
    assert list(parts([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(parts([], 2)) == []
