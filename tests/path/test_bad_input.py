"""Bad messages and bad arguments among good tasks: all good ones complete, and every bad one says why it did not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from asyncqueue import Server, Worker
from asyncqueue.brokers.base import Dead, Message
from asyncqueue.engine.events import Event, MessageBuried, WorkerStarted, WorkerStopped
from asyncqueue.errors import TaskFailed
from asyncqueue.signature import Signature, new_task_id
from asyncqueue.state import State
from asyncqueue.wire import encode_signature
from tests.path.bench import PATIENCE, Bench, Stores, eventually
from tests.path.corpus import QUEUE, bad_arguments, bad_messages

GOOD = 1_000


async def test_bad_input_harms_nobody_else(
    shared_store: Stores, bench: Bench, seed: Callable[[int], int], caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed(20_260_101))
    server = bench.server()
    told: Counter[str] = Counter()
    events: list[Event] = []
    troubles: list[dict[str, object]] = []
    server.events.listen(events.append)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    @server.task
    async def note(error: str, what: str) -> None:
        told[what] += 1

    bad = bad_messages()
    misfits = {
        new_task_id(): Signature(name="add", routing_key=QUEUE, args=args, on_error=(note.s(what),))
        for what, args in bad_arguments()
    }
    good = {new_task_id(): n for n in range(GOOD)}
    messages = [
        *(Message(each.body, QUEUE, new_task_id()) for each in bad),
        *(Message(encode_signature(each.with_changes(uuid=uuid)), QUEUE, uuid) for uuid, each in misfits.items()),
        *(
            Message(encode_signature(add.with_(task_id=uuid, queue=QUEUE).s(n, n)), QUEUE, uuid)
            for uuid, n in good.items()
        ),
    ]
    assert len(bad) + len(misfits) >= 200
    chance.shuffle(messages)
    broker = (await server.connected()).broker
    for start in range(0, len(messages), 100):
        await broker.publish(messages[start : start + 100])

    async with Worker(server, concurrency=20, grace=5) as worker:

        async def all_done() -> bool:
            (depth,) = await server.queues()
            return depth.dead == len(bad) and depth.pending == 0

        await eventually(all_done, patience=2 * PATIENCE)
        assert worker.running == 0
        for uuid, n in good.items():
            assert await server.result(uuid).get(PATIENCE) == 2 * n
        for uuid in misfits:
            with pytest.raises(TaskFailed, match="add"):
                await server.result(uuid).get(PATIENCE)
        await eventually(_counts(told, len(misfits)))

    dead = await server.dead(QUEUE, limit=len(bad) + 1)
    assert Counter((each.body, each.reason) for each in dead) == Counter((each.body, each.reason) for each in bad)
    assert all(each.error for each in dead)
    assert set(told.values()) == {1}
    assert [type(each) for each in events if isinstance(each, WorkerStarted | WorkerStopped)] == [
        WorkerStarted,
        WorkerStopped,
    ]
    assert sum(isinstance(each, MessageBuried) for each in events) == len(bad)
    assert troubles == []
    for record in caplog.records:  # nothing in a message can fake a log line
        assert "\x1b" not in record.getMessage()
        assert not [line for line in record.getMessage().split("\n")[1:] if not line.startswith(" ")]


async def test_what_is_buried_with_a_readable_uuid_is_a_failure_that_can_be_waited_for(
    shared_store: Stores, bench: Bench
) -> None:
    server = bench.server()
    told: list[str] = []

    @server.task
    async def note(error: str) -> None:
        told.append(error)

    misnamed = Signature(uuid="task_misnamed", name="a\nb", routing_key=QUEUE, on_error=(note.s(),))
    broken = encode_signature(Signature(uuid="task_broken", name="add", routing_key=QUEUE))[:-5]
    broker = (await server.connected()).broker
    await broker.publish([Message(encode_signature(misnamed), QUEUE, "x"), Message(broken, QUEUE, "y")])
    async with bench.working(server):
        with pytest.raises(TaskFailed, match="printable"):
            await _result(server, "task_misnamed")
        with pytest.raises(TaskFailed):
            await _result(server, "task_broken")

        async def is_told() -> bool:
            return len(told) == 1

        await eventually(is_told)


async def test_a_message_cannot_make_a_state_overwrite_its_queue(shared_store: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    broker = (await server.connected()).broker
    hostile = [
        b'{"UUID":"machinery_tasks","Name":"add"',
        b'{"UUID":"machinery_tasks","Name":"add"}',
        b'{"UUID":"task_x","Name":"add","Args":[{"Type":"int64","Value":1},{"Type":"int64","Value":1}],'
        b'"OnSuccess":[{"UUID":"machinery_tasks","Name":"add"}]}',
        b'{"UUID":"task_y","Name":"add","OnError":[{"UUID":"machinery_tasks","Name":"add"}]}',
        b'{"UUID":"task_z","Name":"a\\nb","OnError":[{"UUID":"machinery_tasks","Name":"add"}]}',
    ]
    sent = await server.send_many([add.s(n, n) for n in range(20)])
    await broker.publish([Message(body, QUEUE, new_task_id()) for body in hostile])
    sent += await server.send_many([add.s(n, n) for n in range(20)])
    async with bench.working(server, concurrency=1):
        assert [await each.get(PATIENCE) for each in sent] == [2 * n for n in (*range(20), *range(20))]

        async def all_dead() -> list[Dead]:
            dead = list(await server.dead())
            return dead if len(dead) == len(hostile) else []

        dead = await eventually(all_dead)
    assert [each.reason for each in dead] == ["undecodable", *["invalid_name"] * 4]
    backend = (await server.connected()).backend
    assert backend is not None
    states = await backend.get(["task_x", "task_y", "task_z"])
    assert [each and each.state for each in states] == [State.FAILURE] * 3


def _counts(told: Counter[str], count: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return sum(told.values()) == count

    return look


async def _result(server: Server, task_id: str) -> None:
    """Wait for a task that nobody has recorded as sent."""

    async def look() -> bool:
        backend = (await server.connected()).backend
        assert backend is not None
        (state,) = await backend.get([task_id])
        return state is not None

    await eventually(look)
    await server.result(task_id).get(PATIENCE)
