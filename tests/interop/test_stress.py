"""Workers in Go of both versions and ours share one queue, and ours are killed by the second.

Nothing that ours held is lost, and the callback of every chord is sent once, whoever ends last. What was sent the
broker counts, what ran the tasks themselves write down: neither is what a worker says of itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
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
from asyncqueue.errors import AsyncQueueError, ResultUnknown
from asyncqueue.workflow import companion
from tests.conftest import unavailable
from tests.interop.peer import GoClient, GoWorker
from tests.interop.peer import Place as GoPlace
from tests.interop.sent import Sent, sent_log
from tests.path.bench import Stores, eventually
from tests.path.conftest import stores_of
from tests.path.ledger import Ledger
from tests.path.nursery import Child, Nursery, opened_nursery
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
    async with opened_nursery("tests.interop.stressed") as nursery:
        fleet = Fleet(stores, ledger, tmp_path, nursery)
        yield fleet
        await fleet.close()


# — kill -9 —


async def test_what_workers_of_ours_held_that_are_killed_beside_workers_in_go_is_run_and_callbacks_are_sent_once(
    fleet: Fleet, seed: int
) -> None:
    await _under_kills(fleet, 1_000, 100, seed)


@pytest.mark.long
async def test_five_thousand_tasks_and_five_hundred_chords_are_run_and_callbacks_sent_once(
    fleet: Fleet, seed: int
) -> None:
    await _under_kills(fleet, 5_000, 500, seed)


async def _under_kills(fleet: Fleet, tasks: int, chords: int, seed: int) -> None:
    """Half of it is sent by us, half by Go; all of it ends as it should, or an assertion fails."""
    server = fleet.server()
    async with sent_log(fleet.stores.broker, QUEUE) as log, fleet.clients() as clients:
        for version in MACHINERY:
            fleet.start_go(version)
        async with fleet.killed_by_the_second(random.Random(seed)) as kills:
            senders = [_Ours(server), *(_Go(client) for client in clients), _Ours(server)]
            async with asyncio.timeout(PATIENCE + tasks), asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(_send(sender, range(place, tasks, 4), range(place, chords, 4)))
                    for place, sender in enumerate(senders)
                ]
            found = Found([each for part in parts for each in part.result()])
            await _wait_for(server, found, PATIENCE + tasks / 10)
        sent = await log.all()
    await fleet.rest(server)
    assert kills, "nobody was killed"
    _report(fleet, found, sent, kills)
    _judge(fleet, found, sent, kills)
    await _nothing_is_left_behind(fleet, found)


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


def _report(fleet: Fleet, found: Found, sent: Sent, kills: Sequence[int]) -> None:
    starts, ends = fleet.ledger.counts("S"), fleet.ledger.counts("E")
    whose = Counter("Go" if line.pid in fleet.in_go else "ours" for line in fleet.ledger.lines() if line.what == "E")
    callbacks = found.callbacks
    members_and_tasks = [each for asked in found.asked for each in asked.ids if each not in set(callbacks)]
    print(
        f"{fleet.stores.kind}: {len(members_and_tasks)} tasks and members, {len(callbacks)} callbacks, {len(kills)} kills:"
        f" ended by {dict(whose)};"
        f" begun once {sum(starts[each] == 1 for each in members_and_tasks)},"
        f" more often {sum(starts[each] > 1 for each in members_and_tasks)},"
        f" ended more than once {sum(ends[each] > 1 for each in members_and_tasks)};"
        f" callbacks sent by our workers {sum(sent.by_our_workers[each] for each in callbacks)},"
        f" by Go {sum(sent.by_others[each] for each in callbacks)},"
        f" never {sum(not sent[each] for each in callbacks)}, more than once {sum(sent[each] > 1 for each in callbacks)},"
        f" begun more than once {sum(starts[each] > 1 for each in callbacks)};"
        f" without an end {sum(each.end not in found.values for each in found.asked)},"
        f" wrong {sum(found.values.get(each.end, each.expected) != each.expected for each in found.asked)}"
    )


def _judge(fleet: Fleet, found: Found, sent: Sent, kills: Sequence[int]) -> None:
    starts = fleet.ledger.counts("S")
    unended = [each for each in found.asked if each.end not in found.values]
    assert unended == [], f"without an end; begun: {[[starts[task] for task in each.ids] for each in unended]}"
    wrong = {each.end: found.values[each.end] for each in found.asked if found.values[each.end] != each.expected}
    assert wrong == {}
    asked = [task for each in found.asked for task in each.ids]
    assert [task for task in asked if not starts[task]] == [], "never begun"
    killed = {line.task_id for line in fleet.ledger.lines() if line.pid in kills}
    again = [task for task in asked if starts[task] > 1 and task not in killed and sent[task] < 2]
    assert again == [], "begun again although nobody was killed who had begun it"
    more = [each for each in found.callbacks if sent[each] > 1]
    # where results are in another store than messages: who is killed between sending and saying so sends once more
    assert len(more) <= (0 if fleet.stores.is_atomic else len(kills)), "sent more than once"


async def _nothing_is_left_behind(fleet: Fleet, found: Found) -> None:
    """But results, which expire, and what says which queues there are."""
    ids = {task for each in found.asked for task in each.ids}
    async with Redis.from_url(fleet.stores.backend, decode_responses=True) as client:
        left = Counter[str]()
        async for key in client.scan_iter(count=1_000):
            if key not in ids:
                expires = await client.ttl(key) > 0
                left[f"{_shape_of(key)} {'expires' if expires else 'stays'}"] += 1
        print("left:", dict(left))


def _shape_of(key: str) -> str:
    return re.sub(r"[0-9a-f]{4,}(-[0-9a-f]+)*", "#", key)


# — what there is —


class Fleet:
    """Workers in Go and of ours, on one queue of one pair of stores."""

    def __init__(self, stores: Stores, ledger: Ledger, folder: Path, nursery: Nursery) -> None:
        self.stores = stores
        self.ledger = ledger
        self.in_go: dict[int, GoWorker] = {}
        self._place = GoPlace(stores.broker, stores.backend, QUEUE)
        self._folder = folder
        self._nursery = nursery
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

    async def start_ours(self) -> Child:
        """One more worker of ours."""
        return await self._nursery.start(
            "tests.interop.stressed",
            broker=self.stores.broker,
            backend=self.stores.backend,
            ledger=str(self.ledger.folder),
            settings=self._settings,
        )

    @asynccontextmanager
    async def killed_by_the_second(self, chance: random.Random) -> AsyncIterator[Sequence[int]]:
        """Workers of ours, one of which is killed each second, with another one in its place; the pids of the killed."""
        killed: list[int] = []

        async def kill() -> None:
            while True:
                await asyncio.sleep(BETWEEN_KILLS)
                victim = chance.randrange(OURS)
                assert workers[victim].is_running, "a worker ended by itself"
                await workers[victim].kill()
                killed.append(workers[victim].pid)
                workers[victim] = await self.start_ours()

        workers = [await self.start_ours() for _ in range(OURS)]
        killing = asyncio.create_task(kill())
        try:
            yield killed
        finally:
            killing.cancel()
            await asyncio.wait({killing})
        assert killing.cancelled(), killing.exception()

    async def rest(self, server: Server) -> None:
        """Wait until nothing is queued or held, then end the workers in Go."""
        inspector = await server.inspector()

        async def look() -> bool:
            # twice: a message may go from the one that is looked at second to the one that was looked at first
            depths = [await inspector.depth(each) for each in 2 * (QUEUE, companion(QUEUE))]
            return not any(each.pending + (each.dead or 0) for each in depths)

        await eventually(look)
        for worker in self.in_go.values():
            await asyncio.to_thread(worker.stop)

    async def close(self) -> None:
        for server in self._servers:
            await server.close()
        for worker in self.in_go.values():
            await asyncio.to_thread(worker.kill)
