"""Workers are killed by the second, and strangers meddle; the callback of every chord is sent, once, with all results.

Sends are counted by the store itself, so that one which led to no run is seen too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from asyncqueue import Server
from asyncqueue.builders import chord, group
from asyncqueue.engine.context import TaskContext
from asyncqueue.errors import TaskFailed
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.wire import decode_group, encode_state
from asyncqueue.workflow import DEADLINE, companion
from tests.conftest import StartServer
from tests.path import workers
from tests.path.bench import Bench, Stores, eventually, reaches
from tests.path.conftest import stores_of
from tests.path.forks import Forks
from tests.path.ledger import Ledger
from tests.path.senders import send
from tests.path.sends import send_log
from tests.path.workers import server_with_tasks
from tests.services import RedisServer

PATIENCE = 60.0
MEMBERS = 10
WORKERS = 3
BETWEEN_KILLS = 1.0
MEMBER_TAKES = 0.1
"""Seconds."""

pytestmark = pytest.mark.timeout(900)  # thousands of tasks, on a machine that may be busy


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


# — kill -9 —


async def test_chords_whose_workers_are_killed_by_the_second_have_their_callbacks_sent_once(
    shared_store: Stores, bench: Bench, ledger: Ledger, forks: Forks, seed: Callable[[int], int]
) -> None:
    found = await _chords_under_kills(200, bench, ledger, forks, seed(20_251_122))
    assert found.sent_once == 200


@pytest.mark.long
async def test_a_thousand_chords_whose_workers_are_killed_have_their_callbacks_sent_once(
    shared_store: Stores, bench: Bench, ledger: Ledger, forks: Forks, seed: Callable[[int], int]
) -> None:
    found = await _chords_under_kills(1_000, bench, ledger, forks, seed(20_251_122))
    assert found.sent_once == 1_000


@pytest.mark.parametrize("kind", ["redis+sqlite", "sqlite+redis"])
async def test_chords_on_two_stores_have_their_callbacks_sent_however_workers_are_killed(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    ledger: Ledger,
    forks: Forks,
    seed: Callable[[int], int],
) -> None:
    bench = Bench(stores_of(kind, request, tmp_path))
    try:
        found = await _chords_under_kills(60, bench, ledger, forks, seed(20_251_122))
    finally:
        await bench.close()
    # what is sent once more is what the killed had claimed, and was not marked as sent
    assert found.sent_more <= found.kills * WORKERS


@dataclass(frozen=True, slots=True)
class Found:
    """How often workers were killed, and callbacks sent and begun."""

    kills: int
    sent_once: int
    sent_more: int
    begun_more: int


async def _chords_under_kills(count: int, bench: Bench, ledger: Ledger, forks: Forks, seed: int) -> Found:
    """Every chord ends with its results in order, or an assertion fails; what it took."""
    server = server_with_tasks(bench.server(), ledger)
    await server.connected()
    async with send_log(bench.stores) as log:
        chords = []
        for number in range(count):
            members = [server.signature("member", number * MEMBERS + place, MEMBER_TAKES) for place in range(MEMBERS)]
            chords.append(await send(server, chord(members, server.signature("collect", f"chord {number}"))))
        async with _killed_by_the_second(bench.stores, ledger, forks, random.Random(seed)) as kills:
            async with asyncio.timeout(PATIENCE + count):
                values = [await server.result(each.outline.id).get() for each in chords]
        sent = await log.counts()
    expected = [
        f"chord {number}({','.join(str(number * MEMBERS + place) for place in range(MEMBERS))})"
        for number in range(count)
    ]
    assert values == expected
    callbacks = [each.outline.id for each in chords]
    assert [each for each in callbacks if not sent[each]] == [], "never sent"
    starts = ledger.counts("S")
    assert [each for each in callbacks if not starts[each]] == [], "never run"
    found = Found(
        kills=len(kills),
        sent_once=sum(sent[each] == 1 for each in callbacks),
        sent_more=sum(sent[each] > 1 for each in callbacks),
        begun_more=sum(starts[each] > 1 for each in callbacks),
    )
    again = sum(starts[each] > 1 for each in starts) - found.begun_more
    print(f"{bench.stores.kind}: {count} chords x {MEMBERS}, {found}, members begun more than once: {again}")
    assert found.kills, "nobody was killed"
    return found


@asynccontextmanager
async def _killed_by_the_second(
    stores: Stores, ledger: Ledger, forks: Forks, chance: random.Random
) -> AsyncIterator[Sequence[int]]:
    """Workers, one of which is killed each second, with another one in its place; the pids of the killed."""
    asked = {
        "broker": stores.broker,
        "backend": stores.backend,
        "ledger": str(ledger.folder),
        "settings": {"worker": {"lease": 2.0, "max_deliveries": 1_000}},
        "worker": {"concurrency": MEMBERS},
    }
    killed: list[int] = []

    async def kill() -> None:
        while True:
            await asyncio.sleep(BETWEEN_KILLS)
            victim = chance.randrange(WORKERS)
            assert running[victim].is_running, "a worker ended by itself"
            running[victim].kill()
            killed.append(running[victim].pid)
            running[victim] = forks.start(workers.run, asked)

    running = [forks.start(workers.run, asked) for _ in range(WORKERS)]
    killing = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        killing.cancel()
        await asyncio.wait({killing})
    assert killing.cancelled(), killing.exception()


# — who waits does not keep others waiting —


async def test_tasks_that_await_groups_do_not_keep_them_from_running(one_store: Stores, bench: Bench) -> None:
    server = bench.server()

    @server.task
    async def child(number: int) -> int:
        return number

    @server.task
    async def parent(ctx: TaskContext, number: int) -> int:
        members = [child.s(number * MEMBERS + place) for place in range(MEMBERS)]
        sent = await send(server, group(*members))
        async with ctx.yield_slot():
            values = [await server.result(part.id).get() for part in sent.outline.parts]
        return sum(values)

    results = await server.send_many([parent.s(number) for number in range(100)])
    async with bench.working(server, concurrency=4), asyncio.timeout(PATIENCE):
        values = [await each.get() for each in results]
    assert values == [sum(range(number * MEMBERS, (number + 1) * MEMBERS)) for number in range(100)]


# — the cost of a member —


@pytest.mark.long
async def test_a_member_of_ten_thousand_costs_redis_no_more_than_one_of_ten(start_server: StartServer) -> None:
    redis = await asyncio.to_thread(start_server, RedisServer())
    small = await _commands_per_member(redis, chords=1_000, members=10)
    large = await _commands_per_member(redis, chords=1, members=10_000)
    print(f"commands of the server per finished member: {small:.2f} in groups of 10, {large:.2f} in one of 10,000")
    assert large < 1.5 * small


async def _commands_per_member(redis: RedisServer, chords: int, members: int) -> float:
    """How many commands the server runs, those in scripts too, for each member from when workers begin."""
    bench = Bench(Stores("redis", redis.url, redis.url))
    server = bench.server(lease=30.0)

    @server.task
    async def one(number: int) -> int:
        return number

    @server.task
    async def count(*numbers: int) -> int:
        assert sorted(numbers) == list(numbers)
        return len(numbers)

    try:
        sent = [await send(server, chord([one.s(n) for n in range(members)], count.s())) for _ in range(chords)]
        async with Redis.from_url(redis.url) as client:
            before = await _commands(client)
            async with bench.working(server, concurrency=10), asyncio.timeout(PATIENCE * 2):
                for each in sent:
                    assert await server.result(each.outline.id).get() == members
                return (await _commands(client) - before) / (chords * members)
    finally:
        await bench.close()


async def _commands(client: Redis) -> int:
    return sum(int(facts["calls"]) for facts in (await client.info("commandstats")).values())


# — Go as a neighbour —


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another program on the Redis that holds the states, and a server whose tasks ``theirs`` go to a queue of its
    own."""

    server: Server
    client: Redis
    queue: str = "theirs"

    def member(self, number: int) -> Signature:
        """A member that the neighbour is to run."""
        return self.server.signature("member", number).with_changes(routing_key=self.queue)

    async def succeeds(self, task_id: str, number: int) -> None:
        """The neighbour has run a task, and says so as Machinery does."""
        result = TaskResult(type="int64", value=number)
        state = TaskState(task_uuid=task_id, task_name="member", state=State.SUCCESS, results=(result,))
        await self.client.set(task_id, encode_state(state), keepttl=True)

    async def triggers(self, group_id: str) -> None:
        """The neighbour takes what follows a group upon itself."""
        text = await self._text(group_id)
        await self.client.set(group_id, text.replace(b'"ChordTriggered":false', b'"ChordTriggered":true'), keepttl=True)

    async def is_triggered(self, group_id: str) -> bool:
        return decode_group(await self._text(group_id)).chord_triggered

    async def _text(self, key: str) -> bytes:
        found = await self.client.get(key)
        assert isinstance(found, bytes)
        return found


@pytest.fixture(params=["redis", "sqlite+redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of the stores whose states are on Redis, for the tests below."""
    return stores_of(request.param, request, tmp_path)


@pytest_asyncio.fixture
async def neighbour(stores: Stores, bench: Bench, ledger: Ledger) -> AsyncIterator[Neighbour]:
    async with Redis.from_url(stores.backend) as client:
        yield Neighbour(server_with_tasks(bench.server(), ledger), client)


async def test_members_that_another_program_ended_count(stores: Stores, bench: Bench, neighbour: Neighbour) -> None:
    server = neighbour.server
    members = [neighbour.member(1), server.signature("member", 2), neighbour.member(3)]
    sent = await send(server, chord(members, server.signature("collect", "all")))
    for number, entry in ((1, sent.entries[0]), (3, sent.entries[2])):
        await neighbour.succeeds(entry.uuid, number)
    async with bench.working(server):
        assert await server.result(sent.outline.id).get(PATIENCE) == "all(1,2,3)"


async def test_a_group_that_another_program_is_about_to_trigger_is_waited_for(
    stores: Stores, bench: Bench, neighbour: Neighbour
) -> None:
    server = neighbour.server
    sent = await send(server, _chord_of_three(server))
    await neighbour.client.set("TriggerChordMutex", "of a stranger")
    async with bench.working(server):
        for entry in sent.entries:
            await reaches(server, entry.uuid, State.SUCCESS)
        await _asks_again(neighbour, times=20)
        assert not await neighbour.is_triggered(sent.outline.group_id)
        assert (await server.result(sent.outline.id).state()).state is State.PENDING
        await neighbour.client.delete("TriggerChordMutex")
        assert await server.result(sent.outline.id).get(PATIENCE) == "all(1,2,3)"
    assert await neighbour.is_triggered(sent.outline.group_id)


async def test_what_follows_a_group_that_another_program_triggered_is_not_sent(
    stores: Stores, bench: Bench, neighbour: Neighbour
) -> None:
    server = neighbour.server
    sent = await send(server, _chord_of_three(server))
    await neighbour.triggers(sent.outline.group_id)
    async with send_log(stores) as log:
        async with bench.working(server):
            await _is_at_rest(server)
        assert (await log.counts())[sent.outline.id] == 0
    assert (await server.result(sent.outline.id).state()).state is State.PENDING


async def test_the_callback_of_a_group_whose_entry_is_gone_fails(
    stores: Stores, bench: Bench, neighbour: Neighbour, ledger: Ledger
) -> None:
    server = neighbour.server
    handler = server.signature("note").with_changes(uuid="handler")
    callback = server.signature("collect", "all").with_changes(on_error=(handler,))
    sent = await send(server, chord([server.signature("member", n) for n in (1, 2, 3)], callback))
    await neighbour.client.delete(sent.outline.group_id)
    async with bench.working(server):
        with pytest.raises(TaskFailed, match="group state lost"):
            await server.result(sent.outline.id).get(PATIENCE)
        await eventually(lambda: _begun(ledger, handler.uuid))
        await _is_at_rest(server)
    assert (ledger.counts("S")[handler.uuid], ledger.counts("S")[sent.outline.id]) == (1, 0)


# — time limits of groups —


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis", "sqlite+redis"])
async def test_a_group_that_is_not_complete_in_time_fails(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, ledger: Ledger
) -> None:
    async with _bench_on(kind, request, tmp_path) as bench:
        server = server_with_tasks(bench.server(), ledger)
        handler = server.signature("note").with_changes(uuid="handler")
        callback = server.signature("collect", "all").with_changes(on_error=(handler,))
        release = tmp_path / "release"
        members = [server.signature("member", 1), server.signature("wait_for_file", str(release))]
        sent = await send(server, chord(members, callback, group_timeout=0.5))
        async with bench.working(server):
            with pytest.raises(TaskFailed, match=r"was not complete within 0\.5 s"):
                await server.result(sent.outline.id).get(PATIENCE)
            await eventually(lambda: _begun(ledger, handler.uuid))
            release.touch()  # the member that comes too late changes nothing
            await _is_at_rest(server)
        assert (ledger.counts("S")[handler.uuid], ledger.counts("S")[sent.outline.id]) == (1, 0)
        assert (await server.result(sent.outline.id).state()).is_failure


async def test_a_group_that_was_complete_in_time_is_left_alone_by_its_deadline(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async def look(kind: str) -> None:
        folder = tmp_path / kind
        folder.mkdir()
        ledger = Ledger(folder / "ledger")
        async with _bench_on(kind, request, folder) as bench:
            server = server_with_tasks(bench.server(default_queue=kind.replace("+", "-")), ledger)
            sent = await send(server, _chord_of_three(server, group_timeout=5.0))
            (deadline,) = (entry.uuid for entry in sent.entries if entry.name == DEADLINE)
            async with bench.working(server):
                assert await server.result(sent.outline.id).get(PATIENCE) == "all(1,2,3)"
                await reaches(server, deadline, State.SUCCESS)
                await _is_at_rest(server)
            assert ledger.counts("S")[sent.outline.id] == 1
            assert await server.result(sent.outline.id).get(0) == "all(1,2,3)"

    async with asyncio.TaskGroup() as looks:  # they all wait for the same time
        for kind in ("memory", "sqlite", "redis", "sqlite+redis"):
            looks.create_task(look(kind))


@asynccontextmanager
async def _bench_on(kind: str, request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(stores_of(kind, request, folder))
    try:
        yield bench
    finally:
        await bench.close()


def _chord_of_three(server: Server, **options: Any) -> Any:
    members = [server.signature("member", number) for number in (1, 2, 3)]
    return chord(members, server.signature("collect", "all"), **options)


async def _begun(ledger: Ledger, task_id: str) -> bool:
    return ledger.counts("S")[task_id] > 0


async def _is_at_rest(server: Server) -> None:
    """Wait until nothing is queued, held or delayed."""
    inspector = await server.inspector()
    queue = server.settings.default_queue

    async def look() -> bool:
        # twice: a message may go from the one that is looked at second to the one that was looked at first
        depths = [await inspector.depth(each) for each in 2 * (queue, companion(queue))]
        return not any(each.pending for each in depths)

    await eventually(look, patience=PATIENCE)


async def _asks_again(neighbour: Neighbour, times: int) -> None:
    """Wait until Redis was asked so often by scripts whether the mutex is held."""

    async def asked() -> int:
        stats = await neighbour.client.info("commandstats")
        return int(stats.get("cmdstat_exists", {"calls": 0})["calls"])

    before = await asked()

    async def look() -> bool:
        return await asked() >= before + times

    await eventually(look, patience=PATIENCE)
