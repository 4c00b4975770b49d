"""Signatures on their way out: checked, filled, recorded, published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from asyncqueue import Server
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Capabilities
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.config import Settings
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.errors import ArgumentError, MessageTooLarge, PublishUnknown, Refused, Unavailable
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State
from asyncqueue.testing import Faults, with_faults
from asyncqueue.testing.faults import ALWAYS
from asyncqueue.wire import decode_signature


class SmallBatches(MemoryBroker):
    """Takes a hundred messages at once."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, max_batch=100)


class Desk:
    """A server on memory whose stores can fail."""

    def __init__(self, *, publish_timeout: float = 30.0) -> None:
        self.faults = Faults()
        store = MemoryStore()
        self.broker = SmallBatches(store)
        self.backend = MemoryBackend(store)
        settings = Settings.parse({"publish_timeout": publish_timeout, "limits": {"message_bytes": 2_000}})
        self.server = Server(
            broker=with_faults(self.broker, self.faults),
            backend=with_faults(self.backend, self.faults),
            settings=settings,
        )

        @self.server.task
        async def add(a: int, b: int) -> int:
            return a + b

        self.add = add

    async def queued(self, queue: str = "machinery_tasks") -> list[Signature]:
        return [decode_signature(body) for body in await self.broker.peek(queue, 5_000)]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.server.close()


async def test_a_signature_is_filled_recorded_and_published(desk: Desk) -> None:
    bare = Signature(name="somewhere_else", on_success=(Signature(name="next"),), on_error=(Signature(name="tell"),))
    result = await desk.server.send_task(bare)
    (queued,) = await desk.queued()
    assert queued.uuid == result.task_id
    assert queued.uuid.startswith("task_")
    assert queued.routing_key == "machinery_tasks"
    assert queued.headers == {}
    assert queued.on_success is not None
    assert queued.on_error is not None
    assert queued.on_success[0].uuid
    assert queued.on_error[0].uuid
    state = await result.state()
    assert (state.state, state.task_name) == (State.PENDING, "somewhere_else")
    assert state.created_at > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"uuid": "machinery_tasks"},
        {"uuid": "delayed_tasks"},
        {"uuid": "a b"},
        {"routing_key": "TriggerChordMutex"},
        {"routing_key": "x" * 201},
        {"name": "a\nb"},
        {"name": ""},
        {"on_success": (Signature(name="next", routing_key="delayed_tasks"),)},
        {"on_error": (Signature(name="tell", uuid="task_mine"),)},
    ],
)
async def test_names_that_no_worker_would_take_are_refused(desk: Desk, changes: dict[str, object]) -> None:
    signature = Signature(uuid="task_mine", name="somewhere_else").with_changes(**changes)
    with pytest.raises(Refused):
        await desk.server.send_task(signature)
    assert await desk.queued() == []


async def test_arguments_are_checked_where_the_task_is_known(desk: Desk) -> None:
    with pytest.raises(ArgumentError, match="takes 2 arguments"):
        await desk.server.send_task("add", 1)
    with pytest.raises(ArgumentError, match="argument 2"):
        await desk.server.send_task("add", 1, "x")
    with pytest.raises(ArgumentError, match="carries its own"):
        await desk.server.send_task(desk.add.s(1, 2), 3)  # type: ignore[call-overload]  # that is what is tried here
    with pytest.raises(ArgumentError, match="nan"):
        await desk.server.send_task("somewhere_else", float("nan"))
    with pytest.raises(ArgumentError, match="surrogate"):
        await desk.server.send_task("somewhere_else", "\ud800")
    assert await desk.queued() == []


async def test_a_message_over_the_limit_is_refused_with_both_sizes(desk: Desk) -> None:
    with pytest.raises(MessageTooLarge, match=r"bytes, the limit is 2000"):
        await desk.server.send_task("somewhere_else", "x" * 2_000)


async def test_hooks_see_every_signature_and_may_send_another(desk: Desk) -> None:
    seen: list[str] = []

    @desk.server.before_publish
    async def rename(signature: Signature) -> Signature:
        seen.append(signature.name)
        return signature.with_changes(name="renamed")

    @desk.server.before_publish
    def look(signature: Signature) -> None:
        seen.append(signature.name)

    await desk.server.send_task("somewhere_else")
    assert [each.name for each in await desk.queued()] == ["renamed"]
    assert seen == ["somewhere_else", "renamed"]


async def test_a_hook_that_raises_keeps_the_task_from_being_sent(desk: Desk) -> None:
    @desk.server.before_publish
    def refuse(signature: Signature) -> None:
        raise PermissionError("not you")

    with pytest.raises(PermissionError):
        await desk.server.send_task("somewhere_else")
    assert await desk.queued() == []


async def test_sends_that_come_together_leave_together(desk: Desk) -> None:
    await desk.server.connected()
    hang = desk.faults.hang("submit")
    sending = [asyncio.create_task(desk.server.send_task("n", n)) for n in range(50)]
    await hang.reached()
    for _ in range(10):
        await asyncio.sleep(0)
    hang.release()
    await asyncio.gather(*sending)
    assert desk.faults.calls["submit"] == 2
    assert len(await desk.queued()) == 50


async def test_a_broker_that_comes_back_in_time_is_only_late(desk: Desk) -> None:
    desk.faults.before("submit", times=2)
    await desk.server.send_task("somewhere_else")
    assert len(await desk.queued()) == 1


async def test_a_lost_reply_sends_no_second_copy(desk: Desk) -> None:
    desk.faults.after("submit")
    await desk.server.send_task("somewhere_else")
    assert len(await desk.queued()) == 1


async def test_a_broker_that_stays_away_leaves_it_unknown_and_names_the_tasks() -> None:
    desk = Desk(publish_timeout=0.001)
    desk.faults.before("submit", times=ALWAYS)
    with pytest.raises(PublishUnknown, match="memory") as raised:
        await desk.server.send_task(Signature(uuid="task_mine", name="n"))
    assert raised.value.task_ids == ("task_mine",)
    assert isinstance(raised.value, Unavailable)


async def test_what_is_unknown_is_the_callers_own_and_only_what_was_not_confirmed() -> None:
    desk = Desk(publish_timeout=0.001)
    broker = (await desk.server.connected()).broker
    size = broker.capabilities.max_batch
    desk.faults.before("submit", skip=1, times=ALWAYS)
    ids = [f"task_{n}" for n in range(2 * size + 5)]
    with pytest.raises(PublishUnknown) as raised:
        await desk.server.send_many([Signature(uuid=each, name="n") for each in ids])
    assert raised.value.task_ids == tuple(ids[size:])
    assert len(await desk.queued()) == size


async def test_all_are_checked_before_the_first_is_sent(desk: Desk) -> None:
    bad = Signature(name="add", args=(Arg(type="int64", value=1),))
    with pytest.raises(ArgumentError):
        await desk.server.send_many([desk.add.s(1, 2), bad])
    assert await desk.queued() == []
    assert await desk.server.send_many([]) == []
