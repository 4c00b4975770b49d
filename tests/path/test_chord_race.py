"""However the members of a group race to their ends, what follows it is sent once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from asyncqueue.backends.base import Backend, Member
from asyncqueue.brokers.base import Ack, Delivery, Message, Settled
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.config import Settings
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.settlement import OrderedSettlement, WholeSettlement
from asyncqueue.signature import Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.urls import backend_for
from asyncqueue.wire import decode_signature, encode_signature
from tests.path.bench import Place, in_time

PROCESSES = 3
"""Backends that race: each as another worker process would have it."""

COUNTS = 100, 3, 50
"""Finishers, and how often they race: by default, and in the long run."""
SLOW = dict.fromkeys(("mongo", "dynamodb", "rabbit"), (20, 1, 10))
"""The same where the test server is slow under contention."""
SPREADS = 0.0, 0.05, 0.2
"""Within how long (seconds) they all finish."""


@pytest.mark.parametrize(
    "is_long", [pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.long)]
)
async def test_the_callback_of_a_group_is_sent_once_however_its_members_race(
    each_backend: Place, is_long: bool
) -> None:
    finishers, *counts = SLOW.get(each_backend.kind, COUNTS)
    rounds = counts[is_long]
    began = time.monotonic()
    async with backends_at(each_backend.url, PROCESSES) as backends:
        for number in range(rounds):
            await in_time(one_race(f"group_{number}", finishers, backends))
    print(
        f"{each_backend.kind}: {finishers} racing finishers of one group, {rounds} times in "
        f"{time.monotonic() - began:.1f} s: the callback was sent once each time"
    )


class Noting(MemoryBroker):
    """Notes every message that anybody publishes, also those that it knows already."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        self.published += messages
        await super().publish(messages)


async def one_race(group_id: str, finishers: int, backends: Sequence[Backend]) -> None:
    """All members of one group end at once."""
    callback = Signature(uuid=f"task_{group_id}_callback", name="collect", routing_key="callbacks")
    members = [
        Signature(
            uuid=f"task_{group_id}_{number}",
            name="member",
            group_uuid=group_id,
            group_task_count=finishers,
            chord_callback=callback,
        )
        for number in range(finishers)
    ]
    broker = Noting()
    await broker.open()
    settlements = [
        WholeSettlement(OrderedSettlement(broker, backend), backend, rules=Rules, clock=SYSTEM_CLOCK)
        for backend in backends
    ]
    await backends[0].begin([TaskState(task_uuid=each.uuid) for each in (*members, callback)])
    await backends[0].open_groups([GroupMeta(group_uuid=group_id, task_uuids=tuple(each.uuid for each in members))])

    spread = random.choice(SPREADS)

    async def finish(number: int) -> None:
        await asyncio.sleep(random.uniform(0, spread))
        await random.choice(settlements).settle([ended(members[number], group_id, number)])

    await asyncio.gather(*map(finish, range(finishers)))
    (sent,) = broker.published
    args = decode_signature(sent.body).args or ()
    assert (sent.id, [each.value for each in args]) == (callback.uuid, list(range(finishers)))
    await broker.close()


def ended(member: Signature, group_id: str, number: int) -> Settled:
    """The end of a member that returned its number."""
    state = TaskState(task_uuid=member.uuid, state=State.SUCCESS, results=(TaskResult(type="int64", value=number),))
    delivery = Delivery(encode_signature(member), "members", receipt=member.uuid, attempt=1)
    return Settled(delivery, Ack(), state=state, member=Member(group_id, member.uuid), alive=(group_id,))


@asynccontextmanager
async def backends_at(url: str, count: int) -> AsyncIterator[list[Backend]]:
    """Open backends on one place, each as another process would have it."""
    async with AsyncExitStack() as stack:
        backends = [backend_for(url, Settings()) for _ in range(count)]
        for backend in backends:
            await backend.open()
            stack.push_async_callback(backend.close)
        yield backends
