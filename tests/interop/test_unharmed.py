"""Workers in Go beside ours: nothing that we do restarts, wedges or misleads them, and what they leave undone we see.

A worker in Go that reads what it does not understand starts its consumer anew and loses what it had fetched (version 1
on Redis), runs nothing ever again (version 2 on Redis), or runs everything that it holds again (RabbitMQ). So each one
here has to have begun once, when all is over, and to work.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from asyncqueue import BadMessage, MemberFailed, Server, Signature, State, TaskFailed, Worker, wire
from asyncqueue.brokers.base import Message
from asyncqueue.builders import Chord, chain, chord, group
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK
from asyncqueue.config import Settings
from asyncqueue.go_compat import GoCompat, problem_for_go
from asyncqueue.result import AsyncResult
from asyncqueue.workflow import companion
from tests.interop.fleet import LANGUAGES, PY, QUEUES, SHARED, V1, V2, VERSIONS, Fleet, Pair, call
from tests.interop.peer import DEADLINE, GoWorker
from tests.interop.rows import HIGH, LOW, WHERE
from tests.path.bench import eventually
from tests.wire import goldens

PAIRS = (Pair("redis", "redis"), Pair("rabbitmq", "redis"))
MORE_PAIRS = (Pair("pubsub", "redis"), Pair("sqs", "redis"))
TROUBLE = re.compile(
    "Broker failed|[Uu]nmarshal|not registered|[Rr]econnect|Reflect|may not be triggered"
    "|consume error|when deleting|when receiving|Failed process of"
)
"""In lines of a worker in Go whose consumer ended, or that was given what it could not read."""

BEGUN = "Waiting for messages"
"""What it says each time its consumer begins."""

RECEIVED = "Received new message: "
"""What it says of each message, which follows."""


def on_pairs(pairs: Sequence[Pair]) -> pytest.MarkDecorator:
    ids = [f"{each.broker}+{each.backend}" for each in pairs]
    return pytest.mark.parametrize("fleet", pairs, indirect=True, ids=ids)


on_each_pair = on_pairs(PAIRS)
pytestmark = pytest.mark.asyncio(loop_scope="module")


# — all our traffic —


@on_pairs([*PAIRS, *MORE_PAIRS])
async def test_a_worker_in_go_runs_through_all_our_traffic_and_begins_once(fleet: Fleet) -> None:
    async with asyncio.timeout(3 * DEADLINE):
        async with asyncio.TaskGroup() as traffic:
            for each in (_tasks, _workflows, _other_peoples_tasks, _dead_letters, _policies, _turns, _killed):
                traffic.create_task(each(fleet), name=each.__name__)
        await _unharmed(fleet)


async def _tasks(fleet: Fleet) -> None:
    """Headers of ours and of tracers, retries, ETAs, priorities, callbacks, with arguments of every type."""
    traced = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    due = SYSTEM_CLOCK.now_ns() + NANOSECONDS // 2
    for version in VERSIONS:
        failing = call("fail", "so it is", to=version, on_error=(call("record", to=PY), call("record", to=version)))
        to_go = call("add", 4, to=version)
        sent = [
            call("flaky", 1, to=version, retry_count=2, headers=traced | {"aq-check": "1"}),
            # on RabbitMQ, Go loses what it puts off for a moment when the machine is slow
            call("later", 1, 2_000, to=version, headers=traced),
            call("add", 1, 2, to=version, eta=due, headers=traced | {"aq-attempt": "2"}),
            call("echo_string", HIGH[1], to=version, priority=9),
            call("add", 1, 2, to=version, on_success=(call("add", 3, to=PY, on_success=(to_go,)),)),
        ]
        results = await fleet.server.send_many(sent)
        failed = await fleet.server.send_task(failing)
        assert [await each.get(DEADLINE) for each in results] == [2, 2, 3, HIGH[1], 3]
        assert "so it is" in (await failed.wait(DEADLINE)).error
    assert HIGH[0] is not LOW[0]


async def _workflows(fleet: Fleet) -> None:
    """Members of all languages, callbacks of each, with built-in tasks between and beside them."""

    def everywhere() -> list[Signature]:
        return [call("add", number, 1, to=each) for number, each in enumerate(LANGUAGES)]

    works: list[Any] = [
        *(chord(everywhere(), call("total", to=each)) for each in LANGUAGES),
        group(*everywhere()) | group(*(call("total", to=each) for each in LANGUAGES)) | call("total", to=V1),
        chord(everywhere(), call("total", to=V2), group_timeout=600.0),
        chain(*(call("add", 1, *([1] if first else []), to=each) for each, first in ((V1, 1), (PY, 0), (V2, 0)))),
    ]
    handles = [await fleet.server.send(work) for work in works]
    assert [await handle.get(DEADLINE) for handle in handles] == [6, 6, 6, 18, 6, 4]


async def _other_peoples_tasks(fleet: Fleet) -> None:
    """Tasks that only Go knows come to workers of ours first, and go back to where Go finds them."""
    for version in VERSIONS:
        queue = SHARED[PY, version]
        results = await fleet.server.send_many([call("go_only", to=queue) for _ in range(5)])
        async with fleet.working(version, queue, concurrency=2):
            assert [await each.get(DEADLINE) for each in results] == [WHERE[version]] * 5
            _has_begun_once(fleet.folder / f"{queue}.log")


async def _dead_letters(fleet: Fleet) -> None:
    """What nobody can read is buried, put back, buried again and dropped; a queue is purged."""
    server, queue = fleet.server, QUEUES[PY]
    connected = await server.connected()
    await connected.broker.publish([Message(b'{"UUID": "unreadable", "Args": 5}', queue, "unreadable")])
    await eventually(lambda: server.dead(queue))
    assert await server.requeue_dead(queue=queue) == 1
    await eventually(lambda: server.dead(queue))
    assert await server.drop_dead(queue=queue) == 1
    unused = "not-consumed"
    await server.send_many([call("add", 1, 2, to=unused) for _ in range(3)])

    dropped = 0

    async def purged() -> bool:
        nonlocal dropped
        dropped += await server.purge(unused)
        return dropped == 3

    await eventually(purged)


class Shape(BaseModel):
    corners: int
    names: list[str]


async def _policies(fleet: Fleet) -> None:
    """What only Python workers know, on a queue of theirs beside the others."""
    queue = "python-alone"
    settings = fleet.stores.settings() | {"default_queue": queue, "go_queues": [*QUEUES.values()]}
    settings["amqp"] = settings["amqp"] | {"binding_key": queue}
    server = Server(
        broker=fleet.stores.broker(PY, queue), backend=fleet.stores.backend, settings=Settings.parse(settings)
    )

    @server.task
    async def shape(corners: int) -> Shape:
        if corners < 3:
            raise ValueError("no such shape")
        return Shape(corners=corners, names=["a"] * corners)

    @server.task
    async def count(*shapes: Shape) -> int:
        return sum(each.corners for each in shapes)

    @server.task
    async def tell(number: int) -> int:
        return number

    async with server, Worker(server):
        policy = chord([shape.s(2), shape.s(3), shape.s(4)], count.s(), on_failure="skip")
        assert await (await server.send(policy)).get(DEADLINE) == 7
        long = chain(tell.s(7), *(tell.s() for _ in range(150)))  # a part of it is a plan
        assert await (await server.send(long)).get(DEADLINE) == 7
        assert await (await server.send(chain(tell.s(1), call("add", 1, to=V2)))).get(DEADLINE) == 2


async def _turns(fleet: Fleet) -> None:
    """Occurrences of a schedule of ours, in the presence of Go's locks."""
    program = f"turns-{uuid4()}"
    async with fleet.stores.server(program=program) as server:
        for version in VERSIONS:
            server.schedule("@every 1s", version, call("note", 1, to=version))
        scheduler = server.scheduler()
        before = _notes(fleet)
        running = asyncio.create_task(scheduler.run())

        async def sent_twice() -> bool:
            return _notes(fleet) >= before + 4

        await eventually(sent_twice)
        scheduler.stop()
        await asyncio.wait_for(running, DEADLINE)


def _notes(fleet: Fleet) -> int:
    pids = {str(worker.pid) for worker in fleet.workers.values() if isinstance(worker, GoWorker)}
    return sum(
        path.read_text().count("S ") for path in fleet.ledger.folder.iterdir() if path.name in pids and path.is_file()
    )


async def _killed(fleet: Fleet) -> None:
    """A worker of ours dies with tasks of a queue that is Go's too; another one, or Go's, runs them."""
    queue = "killed"
    settings = fleet.stores.settings(queues=[queue], concurrency=4)
    settings["worker"] |= {"lease": 2.0}
    victim = fleet.start_ours(settings)
    tasks = [call("sleep", 300, to=queue) for _ in range(4)]
    results = await fleet.server.send_many(tasks)

    async def all_begun() -> bool:
        return all(fleet.began_at(task.uuid) for task in tasks)

    await eventually(all_begun)
    victim.kill()
    follower = fleet.start_ours(settings)
    async with fleet.working(V1, queue, concurrency=2):
        assert [await each.get(DEADLINE) for each in results] == [300] * 4
        _has_begun_once(fleet.folder / f"{queue}.log")
    follower.kill()


# — whether they are well —


async def _unharmed(fleet: Fleet) -> None:
    """The workers in Go have begun once, and work; what they look into is as Machinery keeps it."""
    for version in VERSIONS:
        where = await fleet.server.send_many([call("where", to=version) for _ in range(20)])
        assert [await each.get(DEADLINE) for each in where] == [WHERE[version]] * 20
        worker = fleet.workers[version]
        assert isinstance(worker, GoWorker)
        assert worker.process.poll() is None
        _has_begun_once(worker.log)
        if fleet.pair in PAIRS:  # elsewhere Go cannot look
            for queue in (QUEUES[version], *(["not-consumed"] if fleet.pair.broker == "redis" else [])):
                assert await fleet.in_go[version].pending(queue) == []
    if fleet.pair.broker == "redis":
        for version in VERSIONS:  # each of them can be read by Go
            assert all(each.name for each in await fleet.in_go[version].delayed())
        await _keys_have_their_types(fleet)


def _has_begun_once(log: Any) -> None:
    said = log.read_text(errors="replace")
    assert said.count(BEGUN) == 1, said[-2_000:]
    trouble = [line for line in said.splitlines() if TROUBLE.search(line) and RECEIVED not in line]
    assert not trouble, trouble[:10]


TYPES = [
    (r"\{.+\}:aq:(?:.+:)?(?:again|inbox:.+)", "list"),
    (r"\{.+\}:aq:(?:.+:)?(?:later|workers|moving)", "zset"),
    (r"\{.+\}:aq:(?:.+:)?proc:.+", "hash"),
    (r"\{.+\}:aq:(?:.+:)?dead", "stream"),
    (r"\{.+\}:aq:(?:.+:)?left", "set"),
    (r"\{.+\}:aq:(?:.+:)?(?:claim|once:.+)", "string"),
    (r"(?:task|group|plan|over|chord)_.+|unreadable", "string"),
    (r"delayed_tasks|aq:queues", "zset"),
]
"""The keys on Redis: those of Machinery, and ours beside them."""


async def _keys_have_their_types(fleet: Fleet) -> None:
    queues = {*QUEUES.values(), *SHARED.values(), "killed", "not-consumed", "python-alone"}
    queues |= {companion(queue) for queue in queues}
    async with Redis.from_url(fleet.stores.brokers[PY], decode_responses=True) as redis:
        for key in map(str, await redis.keys()):
            found = str(await redis.type(key))
            if found == "none":  # it has gone meanwhile
                continue
            if key in queues:
                assert found == "list", f"{key} is a {found}"
                assert "" not in await redis.lrange(key, 0, -1), f"an empty message in {key}"
                continue
            assert found in [kind for form, kind in TYPES if re.fullmatch(form, key)], f"{key} is a {found}"


# — arguments —


@on_each_pair
async def test_go_reads_every_argument_that_is_let_through(fleet: Fleet) -> None:
    """Each value of the vectors that go_compat does not refuse."""
    everywhere = GoCompat(is_on=True)
    values = []
    for vector in goldens.reflect_vectors("v2"):
        try:
            signature = wire.decode_signature(f'{{"Name":"n","Args":[{vector.arg}]}}'.encode())
        except BadMessage:
            continue
        if problem_for_go(signature, everywhere, default_queue="") is None:
            values.append((vector, signature.args))
    for version in VERSIONS:
        tasks = [Signature(name=_echo(vector.type), routing_key=QUEUES[version], args=args) for vector, args in values]
        results = await fleet.server.send_many(tasks)
        for (vector, _), result in zip(values, results, strict=True):
            state = await result.wait(DEADLINE)
            assert state.state is State.SUCCESS, (vector.arg, state.error)
            assert state.results
            encoded = json.loads(vector.encoded)
            assert (state.results[0].type, state.results[0].value) == (vector.go_type, encoded), vector.arg
    print(f"{len(values)} values, each read by both versions")
    await _unharmed(fleet)


def _echo(type_name: str) -> str:
    if type_name in ("[]byte", "[]uint8"):
        return "echo_bytes"
    return f"echo_{type_name[2:]}s" if type_name.startswith("[]") else f"echo_{type_name}"


# — groups that end in Go —


@dataclass(frozen=True, slots=True)
class Case:
    """A chord that nobody would end, and what is to be said of it."""

    work: Callable[[str], Chord[Any]]
    error: str


def _soon(seconds: float = 0.7) -> int:
    return SYSTEM_CLOCK.now_ns() + int(seconds * NANOSECONDS)


def _collected(version: str) -> Signature:
    return call("total", to=PY, on_error=(call("record", to=PY),))


CASES = {
    "a member fails last, in Go": Case(
        lambda version: chord(
            [call("add", 1, 1, to=PY), call("fail", "in Go", to=version, eta=_soon())], _collected(version)
        ),
        r"member 'fail' \(task_.*\) of group group_.* failed: in Go",
    ),
    "a member fails first in Go, and Go ends last": Case(
        lambda version: chord(
            [call("fail", "in Go", to=version), call("add", 1, 1, to=version, eta=_soon())], _collected(version)
        ),
        r"member 'fail' \(task_.*\) of group group_.* failed: in Go",
    ),
    "a member fails first in Go, and ours ends last": Case(
        lambda version: chord(
            [call("fail", "in Go", to=version), call("add", 1, 1, to=PY, eta=_soon())], _collected(version)
        ),
        r"member 'fail' \(task_.*\) of group group_.* failed: in Go",
    ),
    "a member of ours fails, and Go ends last": Case(
        lambda version: chord(
            [call("fail", "in Python", to=PY), call("add", 1, 1, to=version, eta=_soon())], _collected(version)
        ),
        r"member 'fail' \(task_.*\) of group group_.* failed: Exception: in Python",
    ),
    "what is before a member fails in Go": Case(
        lambda version: chord(
            [call("add", 1, 1, to=PY), chain(call("fail", "in Go", to=version), call("record", to=PY))],
            _collected(version),
        ),
        r"task 'fail' \(task_.*\) before a member of group group_.* failed: in Go",
    ),
    "all of it is in Go": Case(
        lambda version: chord(
            [call("add", 1, 1, to=version), call("panics", "in Go", to=version, eta=_soon())],
            call("total", to=version, on_error=(call("record", to=version),)),
        ),
        r"member 'panics' \(task_.*\) of group group_.* failed: in Go",
    ),
}


@on_each_pair
async def test_a_chord_that_fails_in_go_is_a_failure_that_names_the_member(fleet: Fleet) -> None:
    async def fails(name: str, version: str) -> None:
        case = CASES[name]
        work = case.work(version)
        handle = await fleet.server.send_chord(work)
        with pytest.raises((MemberFailed, TaskFailed)):
            await handle.get(DEADLINE)
        state = await fleet.server.result(handle.callback.id).wait(DEADLINE)
        assert state.state is State.FAILURE
        assert re.search(case.error, state.error), (name, version, state.error)
        (handler,) = _callback(work).on_error or ()
        recorded = await _known(fleet, handler.uuid)
        assert state.error in str(await recorded.get(DEADLINE))
        assert len(fleet.began_at(handler.uuid)) == 1

    async with asyncio.TaskGroup() as cases:
        for name in CASES:
            for version in VERSIONS:
                cases.create_task(fails(name, version))
    await _unharmed(fleet)


@on_each_pair
async def test_a_chord_behind_a_task_in_go_has_its_time_and_its_watch(fleet: Fleet) -> None:
    """Go sends the tasks beside the group, and knows nothing of when they are due."""
    for version in VERSIONS:
        members = [call("add", 1, to=version), call("add", 2, to=PY)]
        work = chain(call("add", 1, 1, to=version), chord(members, call("total", to=PY), group_timeout=DEADLINE))
        assert await (await fleet.server.send(work)).get(DEADLINE) == 7
        failing = [call("flaky", to=version), call("total", to=PY)]
        work = chain(call("add", 1, 1, to=version), chord(failing, call("total", to=PY)))
        with pytest.raises((MemberFailed, TaskFailed), match="not yet"):
            await (await fleet.server.send(work)).get(DEADLINE)
    await _unharmed(fleet)


def _callback(work: Chord[Any]) -> Signature:
    assert isinstance(work.callback, Signature)
    return work.callback


async def _known(fleet: Fleet, task_id: str) -> AsyncResult[Any]:
    return await fleet.python._known(task_id)
