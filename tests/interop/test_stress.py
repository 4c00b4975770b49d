"""Workers in Go of both versions and ours share one queue, and ours are killed by the second.

Nothing that ours held is lost, and the callback of every chord is sent once, whoever ends last. What was sent the
broker counts, what ran the tasks themselves write down: neither is what a worker says of itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from asyncqueue import Arg, Server, Signature
from asyncqueue.builders import chord
from asyncqueue.config import Settings
from asyncqueue.errors import AsyncQueueError, ResultUnknown, TaskFailed
from asyncqueue.wire import decode_state
from asyncqueue.workflow import WATCH, companion
from asyncqueue.workflow_results import ChordResult
from tests.conftest import unavailable
from tests.interop import stressed
from tests.interop.peer import GoClient, GoWorker
from tests.interop.peer import Place as GoPlace
from tests.interop.sent import Sent, sent_log
from tests.interop.tasks import WHERE
from tests.path.bench import Stores, eventually
from tests.path.conftest import stores_of
from tests.path.forks import Fork, Forks
from tests.path.ledger import Ledger
from tests.path.workers import CRASHED
from tests.services import ServiceMissing
from tests.services.machinery import MACHINERY

PATIENCE = 60.0
QUEUE = "shared"
MEMBERS = 10
OURS = 2
BETWEEN_KILLS = 1.0
TAKES = 150
"""How long (ms) a task takes at least."""
AT_ONCE = 20
"""How many sends of one client are under way."""

pytestmark = pytest.mark.timeout(900)  # thousands of tasks, on a machine that may be busy


@pytest.fixture(params=["redis", "rabbit+redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a broker and a backend that workers in Go share with ours."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def seed() -> int:
    """Which worker is killed when; printed, so that a failed run can be repeated."""
    chosen = int(os.environ.get("SEED", "20261122"))
    print(f"SEED={chosen}")
    return chosen


@pytest_asyncio.fixture
async def fleet(stores: Stores, ledger: Ledger, tmp_path: Path) -> AsyncIterator[Fleet]:
    for version in MACHINERY.values():
        try:
            version.require()
        except ServiceMissing as exc:
            unavailable(str(exc))
    with Forks() as forks:
        fleet = Fleet(stores, ledger, tmp_path, forks)
        yield fleet
        await fleet.close()


# — kill -9 —


async def test_what_workers_of_ours_held_that_are_killed_beside_workers_in_go_is_run_and_callbacks_are_sent_once(
    fleet: Fleet, seed: int
) -> None:
    await _under_kills(fleet, 400, 40, seed)


@pytest.mark.long
@pytest.mark.parametrize("each", [1, 2])
async def test_five_thousand_tasks_and_five_hundred_chords_are_run_and_callbacks_sent_once(
    fleet: Fleet, seed: int, each: int
) -> None:
    await _under_kills(fleet, 5_000, 500, seed, each)


async def _under_kills(fleet: Fleet, tasks: int, chords: int, seed: int, each: int = 1) -> None:
    """Half of it is sent by us, half by Go; all of it ends as it should, or an assertion fails. ``each`` is how many
    workers in Go there are of each version."""
    server = fleet.server()
    async with sent_log(fleet.stores.broker, QUEUE) as log, fleet.clients() as clients:
        for version in MACHINERY:
            for _ in range(each):
                fleet.start_go(version)
        async with fleet.killed_by_the_second(random.Random(seed)) as kills:
            senders: list[_Ours | _Go] = [_Ours(server), *map(_Go, clients), _Ours(server)]
            async with asyncio.timeout(PATIENCE + tasks), asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(_send(sender, range(place, tasks, 4), range(place, chords, 4)))
                    for place, sender in enumerate(senders)
                ]
            found = Found([each for part in parts for each in part.result()])
            await _wait_for(server, found, 2 * PATIENCE + tasks / 50)
        sent = await log.all()
    await fleet.rest(server)
    assert kills, "nobody was killed"
    print(f"{fleet.stores.kind}: {tasks} tasks, {chords} chords x {MEMBERS}: {_counts(fleet, found, sent, kills)}")
    _judge(fleet, found, sent, kills)
    await _only_what_expires_is_left(fleet, found)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was sent, and what its result is to be: of a chord, that of its callback."""

    ids: Sequence[str]
    expected: int | str

    @property
    def end(self) -> str:
        return self.ids[-1]

    @property
    def is_chord(self) -> bool:
        return len(self.ids) > 1


@dataclass(slots=True)
class Found:
    """What was asked for, and the results of what has ended."""

    asked: Sequence[Asked]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def callbacks(self) -> list[str]:
        return [each.end for each in self.asked if each.is_chord]


class _Ours:
    """Sends by this package."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def task(self, signature: Signature) -> Sequence[str]:
        return [(await self._server.send_task(signature)).id]

    async def chord(self, members: Sequence[Signature], callback: Signature) -> Sequence[str]:
        sent = await self._server.send_chord(chord(members, callback))
        return [*(member.id for member in sent.group.members), sent.callback.id]


class _Go:
    """Sends by a client in Go."""

    def __init__(self, client: GoClient) -> None:
        self._client = client

    async def task(self, signature: Signature) -> Sequence[str]:
        return await self._client.send(signature)

    async def chord(self, members: Sequence[Signature], callback: Signature) -> Sequence[str]:
        return await self._client.send(*members, kind="chord", callback=callback)


async def _send(sender: _Ours | _Go, tasks: range, chords: range) -> Sequence[Asked]:
    """These tasks and chords, mixed; each chord's results tell it from the others."""
    bound = asyncio.Semaphore(AT_ONCE)

    async def task(number: int) -> Asked:
        async with bound:
            return Asked(await sender.task(_call("sleep", TAKES + number % 10)), TAKES + number % 10)

    async def one_chord(number: int) -> Asked:
        values = [TAKES + (7 * number + 11 * place) % 100 for place in range(MEMBERS)]
        async with bound:
            members = [_call("sleep", value) for value in values]
            ids = await sender.chord(members, _call("gather", number))
        return Asked(ids, ",".join(map(str, (number, *values))))

    sends = [task(number) for number in tasks] + [one_chord(number) for number in chords]
    random.Random(0).shuffle(sends)
    return await asyncio.gather(*sends)


def _call(name: str, *numbers: int) -> Signature:
    return Signature(name=name, args=tuple(Arg(type="int64", value=number) for number in numbers))


async def _wait_for(server: Server, found: Found, patience: float) -> None:
    """Until everything has ended, or for so long."""

    async def one(each: Asked) -> None:
        while each.end not in found.values:
            try:
                found.values[each.end] = await server.result(each.end).get()
            except ResultUnknown:  # of a callback that Go's client sent nothing is recorded before it is its turn
                await asyncio.sleep(0.2)
            except AsyncQueueError as exc:
                found.values[each.end] = exc

    _, waiting = await asyncio.wait([asyncio.create_task(one(each)) for each in found.asked], timeout=patience)
    for task in waiting:
        task.cancel()


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of it all; ``again`` are tasks and members that were begun more than once."""

    kills: int
    ended_by_us: int
    ended_by_go: int
    again: int
    callbacks_sent_by_us: int
    callbacks_sent_by_go: int
    never_sent: int
    sent_more: int
    callbacks_begun_more: int
    without_an_end: int
    wrong: int


def _counts(fleet: Fleet, found: Found, sent: Sent, kills: Sequence[int]) -> Counts:
    starts, callbacks = fleet.ledger.counts("S"), found.callbacks
    ends = [line.pid in fleet.in_go for line in fleet.ledger.lines() if line.what == "E"]
    return Counts(
        kills=len(kills),
        ended_by_us=ends.count(False),
        ended_by_go=ends.count(True),
        again=sum(starts[task] > 1 for asked in found.asked for task in asked.ids if task not in set(callbacks)),
        callbacks_sent_by_us=sum(sent.by_our_workers[each] for each in callbacks),
        callbacks_sent_by_go=sum(sent.by_others[each] for each in callbacks),
        never_sent=sum(not sent[each] for each in callbacks),
        sent_more=sum(sent[each] > 1 for each in callbacks),
        callbacks_begun_more=sum(starts[each] > 1 for each in callbacks),
        without_an_end=sum(each.end not in found.values for each in found.asked),
        wrong=sum(found.values.get(each.end, each.expected) != each.expected for each in found.asked),
    )


def _judge(fleet: Fleet, found: Found, sent: Sent, kills: Sequence[int]) -> None:
    starts, callbacks = fleet.ledger.counts("S"), found.callbacks
    unended = [each for each in found.asked if each.end not in found.values]
    assert unended == [], f"without an end; begun: {[[starts[task] for task in each.ids] for each in unended]}"
    wrong = {
        each.end: found.values.get(each.end)
        for each in found.asked
        if found.values.get(each.end, each.expected) != each.expected
    }
    assert wrong == {}
    asked = [task for each in found.asked for task in each.ids]
    assert [task for task in asked if not starts[task]] == [], "never begun"
    assert [each for each in callbacks if not sent[each]] == [], "never sent"
    assert [each for each in callbacks if sent.by_our_workers[each] and sent.by_others[each]] == [], "sent by both"
    assert [each for each in callbacks if sent.by_others[each] > 1] == [], "sent by Go more than once"
    # where results are in another store than messages: who is killed between sending and saying so sends once more
    more = [each for each in callbacks if sent[each] > 1]
    assert len(more) <= (0 if fleet.stores.is_atomic else len(kills)), "sent more than once"
    of_killed = {line.task_id for line in fleet.ledger.lines() if line.pid in kills}
    again = [task for task in asked if starts[task] > 1 and task not in of_killed and sent[task] < 2]
    assert again == [], "begun again although nobody was killed who had begun it"


async def _only_what_expires_is_left(fleet: Fleet, found: Found) -> None:
    """The results, the groups, whose ends Go has sent unseen by us, what looked after groups; and who our workers
    are."""
    known = {task for each in found.asked for task in each.ids}
    passing = re.compile(r"group_[0-9a-f-]+|{group_[0-9a-f-]+}:aq:left")
    lasting = re.compile(r"aq:queues|{shared(\.aq)?}:aq:(workers|proc:\w+)")

    async with Redis.from_url(fleet.stores.backend) as client:

        async def look() -> bool:
            keys = [key.decode() async for key in client.scan_iter(count=1_000)]
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.ttl(key)
            lives = dict(zip(keys, await pipeline.execute(), strict=True))
            stay = [key for key, seconds in lives.items() if seconds == -1]
            others = [key for key in lives.keys() - known - set(stay) if not passing.fullmatch(key)]
            found = await client.mget(others) if others else ()
            names = {decode_state(json).task_name for json in found if isinstance(json, bytes)}
            assert names <= {WATCH}, f"left behind: {others}"
            assert [key for key in stay if not lasting.fullmatch(key)] == [], "they never expire"
            alive = Counter(key.partition(":proc:")[0] for key in stay if ":proc:" in key)
            return all(count <= OURS for count in alive.values())  # those of the killed go when their lease has ended

        await eventually(look)


# — chords of Go's clients in which a member fails —


async def test_the_callback_of_a_chord_that_go_sends_is_failed_wherever_a_member_fails_if_one_is_run_here(
    fleet: Fleet,
) -> None:
    await _failing(fleet, 40)


@pytest.mark.long
async def test_so_are_five_hundred_of_them(fleet: Fleet) -> None:
    await _failing(fleet, 500)


async def _failing(fleet: Fleet, count: int) -> None:
    """Chords in which one member is run here, one anywhere, and one fails anywhere, at about the same time."""
    server = fleet.server()
    for version in MACHINERY:
        fleet.start_go(version)
    workers = [fleet.start_ours() for _ in range(OURS)]
    failing = Signature(name="fail", args=(_text("oops"),))
    members = [Signature(name="py_only"), failing, _call("sleep", 1)]
    async with fleet.clients() as clients:
        sent = [
            await clients[number % 2].send(*members, kind="chord", callback=_call("gather", number))
            for number in range(count)
        ]
    found = Found([Asked(ids, "") for ids in sent])
    await _wait_for(server, found, 2 * PATIENCE)
    errors = Counter(type(found.values.get(ids[-1])).__name__ for ids in sent)
    ended_in_go = {line.task_id for line in fleet.ledger.lines() if line.pid in fleet.in_go}
    print(f"{fleet.stores.kind}: {dict(errors)} of {count}; {len(ended_in_go)} tasks were run in Go")
    assert errors == {"TaskFailed": count}
    assert all(f"'fail' ({ids[1]}) of group" in str(found.values[ids[-1]]) for ids in sent)
    for worker in workers:
        worker.kill()


# — tasks that only one language knows —


@pytest.mark.parametrize(("stores", "version"), [("redis", "v1"), ("rabbit+redis", "v2")], indirect=["stores"])
async def test_tasks_that_only_go_knows_all_end_beside_two_workers_of_ours(fleet: Fleet, version: str) -> None:
    await _known_to_some(fleet, version, 200, "go_only", f"go {version}")


@pytest.mark.long
@pytest.mark.parametrize("version", MACHINERY)
async def test_two_thousand_tasks_that_only_go_knows_all_end_beside_two_workers_of_ours(
    fleet: Fleet, version: str
) -> None:
    await _known_to_some(fleet, version, 2_000, "go_only", f"go {version}")


@pytest.mark.parametrize(("stores", "version"), [("redis", "v2"), ("rabbit+redis", "v1")], indirect=["stores"])
async def test_tasks_that_only_we_know_all_end_beside_a_worker_in_go(fleet: Fleet, version: str) -> None:
    await _known_to_some(fleet, version, 500, "py_only", WHERE)


@pytest.mark.long
@pytest.mark.parametrize("version", MACHINERY)
async def test_two_thousand_tasks_that_only_we_know_all_end_beside_a_worker_in_go(fleet: Fleet, version: str) -> None:
    await _known_to_some(fleet, version, 2_000, "py_only", WHERE)


async def _known_to_some(fleet: Fleet, version: str, count: int, name: str, where: str) -> None:
    """Tasks are run by those who know them; nothing is buried, and nothing is left."""
    server = fleet.server()
    results = await server.send_many([Signature(name=name) for _ in range(count)])
    began = time.monotonic()
    fleet.start_go(version)
    workers = [fleet.start_ours() for _ in range(OURS)]
    async with asyncio.timeout(PATIENCE * 3):
        values = Counter([await each.get() for each in results])
    seconds = time.monotonic() - began
    print(
        f"{fleet.stores.kind}, {version}: {count} x {name} in {seconds:.1f} s ({count / seconds:.0f}/s)", began and ""
    )
    assert values == {where: count}
    await fleet.is_empty(server, QUEUE, companion(QUEUE))
    for worker in workers:
        assert worker.is_running
        worker.kill()


# — what a worker of ours leaves undone comes to one in Go —


APART = pytest.mark.parametrize("stores", ["rabbit+redis"], indirect=True)
"""Where a worker in Go is shown the messages of one of ours that dies."""


@APART
async def test_what_follows_a_group_is_not_lost_with_a_worker_of_ours_that_has_claimed_it(fleet: Fleet) -> None:
    server = fleet.server()
    for member, expected in ((_call("sleep", 0), "7,0"), (Signature(name="fail", args=(_text("oops"),)), "oops")):
        sent = await server.send_chord(chord([member], _call("gather", 7)))
        ours = fleet.start_ours(crash_after_claim=True)
        async with asyncio.timeout(PATIENCE):
            assert await ours.ended() == CRASHED
        await fleet.let_go_end("v1", server)
        last = fleet.start_ours()
        assert expected in await _value_or_error(sent)
        last.kill()


@APART
@pytest.mark.long
async def test_a_group_is_ended_before_whichever_write_a_worker_of_ours_dies(fleet: Fleet) -> None:
    server = fleet.server()
    for write in itertools.count(1):
        sent = await server.send_chord(chord([_call("sleep", 0)], _call("gather", 7)))
        ours = fleet.start_ours(crash_before_write=write)
        ended, value = asyncio.create_task(ours.ended()), asyncio.create_task(_value_or_error(sent))
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({ended, value}, return_when=asyncio.FIRST_COMPLETED)
        ours.kill()
        await fleet.let_go_end("v2", server)
        last = fleet.start_ours()
        assert await value == "7,0"
        last.kill()
        died_at = [line.task_id for line in fleet.ledger.lines() if line.what == "X" and line.pid == ours.pid]
        if not died_at:
            break
        print(f"{write}: {died_at[0]}")
    assert write > 8


async def _value_or_error(sent: ChordResult[Any]) -> str:
    try:
        return str(await sent.get(PATIENCE))
    except TaskFailed as exc:
        return str(exc)


def _text(value: str) -> Arg:
    return Arg(type="string", value=value)


# — what there is —


class Fleet:
    """Workers in Go and of ours, on one queue of one pair of stores."""

    def __init__(self, stores: Stores, ledger: Ledger, folder: Path, forks: Forks) -> None:
        self.stores = stores
        self.ledger = ledger
        self.in_go: dict[int, GoWorker] = {}
        self._place = GoPlace(stores.broker, stores.backend, QUEUE)
        self._folder = folder
        self._forks = forks
        self._servers: list[Server] = []
        self._settings = {
            "default_queue": QUEUE,
            "go_compat": True,
            "amqp": {"binding_key": QUEUE},
            "worker": {"lease": 2.0, "max_deliveries": 1_000},
        }

    def server(self) -> Server:
        """A client of ours."""
        settings = Settings.parse(self._settings)
        self._servers.append(Server(broker=self.stores.broker, backend=self.stores.backend, settings=settings))
        return self._servers[-1]

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[Sequence[GoClient]]:
        """A client in Go of each version."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(GoClient(version, self._place)) for version in MACHINERY]

    def start_go(self, version: str) -> GoWorker:
        """One more worker in Go."""
        log = self._folder / f"{version}-{len(self.in_go)}.log"
        worker = GoWorker(version, self._place, log, ledger=self.ledger.folder)
        self.in_go[worker.pid] = worker
        return worker

    def start_ours(self, **crash: int) -> Fork:
        """One more worker of ours, which may be one that dies where tests.interop.stressed says."""
        asked = {
            "broker": self.stores.broker,
            "backend": self.stores.backend,
            "ledger": str(self.ledger.folder),
            "settings": self._settings,
        }
        return self._forks.start(stressed.run, asked | crash)

    @asynccontextmanager
    async def killed_by_the_second(self, chance: random.Random) -> AsyncIterator[Sequence[int]]:
        """Workers of ours, one of which is killed each second, and replaced; the pids of the killed."""
        killed: list[int] = []

        async def kill() -> None:
            while True:
                await asyncio.sleep(BETWEEN_KILLS)
                victim = chance.randrange(OURS)
                if workers[victim].is_running:
                    workers[victim].kill()
                    killed.append(workers[victim].pid)
                else:  # it could not reach a server in time that is as busy as this one
                    begun = [line for line in self.ledger.lines() if line.pid == workers[victim].pid]
                    assert begun == [], "a worker that had begun to work ended by itself"
                workers[victim] = self.start_ours()

        workers = [self.start_ours() for _ in range(OURS)]
        killing = asyncio.create_task(kill())
        try:
            yield killed
        finally:
            killing.cancel()
            await asyncio.wait({killing})
        assert killing.cancelled(), killing.exception()

    async def rest(self, server: Server) -> None:
        """Wait until nothing is queued or held, then end the workers in Go."""
        await self.is_empty(server, QUEUE, companion(QUEUE))
        for worker in self.in_go.values():
            await asyncio.to_thread(worker.stop)
            assert worker.said().count("Waiting for messages") == 1, "a worker in Go has restarted its consumer"

    async def let_go_end(self, version: str, server: Server) -> None:
        """A worker in Go does all that is there, and ends."""
        worker = self.start_go(version)
        await self.is_empty(server, QUEUE)
        await asyncio.to_thread(worker.stop)

    async def is_empty(self, server: Server, *queues: str) -> None:
        """Wait until nothing is in these queues."""
        inspector = await server.inspector()

        async def look() -> bool:
            # twice: a message may go from the one that is looked at second to the one that was looked at first
            depths = [await inspector.depth(each) for each in 2 * queues]
            return not any(each.pending + (each.dead or 0) for each in depths)

        await eventually(look)

    async def close(self) -> None:
        for server in self._servers:
            await server.close()
        for worker in self.in_go.values():
            await asyncio.to_thread(worker.kill)
