"""Whoever sends a workflow, or works on one, dies before any of its writes; the workflow ends as it should, once.

The processes that die are real, and each write that they can die before is tried in turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import Server
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState
from asyncqueue.workflow import DEADLINE, Compiled, companion, tasks_in
from tests.path import senders, workers
from tests.path.bench import Bench, Stores, eventually
from tests.path.forks import Fork, Forks
from tests.path.ledger import Ledger
from tests.path.senders import SHAPES, Shape, compiled_shape, send
from tests.path.sends import SendLog, send_log
from tests.path.workers import CRASHED, server_with_tasks

PATIENCE = 60.0
AT_ONCE = 16
ROUND = 8
MOST_WRITES = 80
LEASE = 2.0

pytestmark = pytest.mark.timeout(600)  # processes by the hundred, on a machine that may be busy


@dataclass(frozen=True, slots=True)
class Case:
    """One workflow on stores and a queue of its own."""

    stores: Stores
    bench: Bench
    server: Server
    ledger: Ledger
    work: Compiled

    @classmethod
    def of(cls, stores: Stores, folder: Path, shape: str, seed: str) -> Case:
        folder.mkdir()
        sqlite = f"sqlite:///{folder / 'tasks.db'}"
        broker, backend = (url if url.startswith("redis") else sqlite for url in (stores.broker, stores.backend))
        stores = Stores(stores.kind, broker, backend)
        ledger, bench = Ledger(folder / "ledger"), Bench(stores)
        server = server_with_tasks(bench.server(lease=LEASE, default_queue=seed), ledger)
        return cls(stores, bench, server, ledger, compiled_shape(server, shape, seed))

    @property
    def queue(self) -> str:
        return self.server.settings.default_queue

    @property
    def tasks(self) -> Sequence[Signature]:
        return tasks_in(self.work.entries, self.work.plans)

    def asked(self, crash_before_write: int, **more: Any) -> dict[str, Any]:
        """What a process is told that dies before its n-th write."""
        return {
            "broker": self.stores.broker,
            "backend": self.stores.backend,
            "ledger": str(self.ledger.folder),
            "crash_before_write": crash_before_write,
            "settings": {"default_queue": self.queue, "worker": {"lease": LEASE}},
            **more,
        }

    async def states(self, task_ids: Iterable[str]) -> dict[str, TaskState]:
        """What is known of these, where anything is."""
        backend = (await self.server.connected()).backend
        assert backend is not None
        return {each.task_uuid: each for each in await backend.get(list(task_ids)) if each is not None}

    async def end(self) -> TaskState | None:
        """The final state of the whole, if it has one."""
        found = (await self.states([self.work.outline.id])).get(self.work.outline.id)
        return found if found is not None and found.is_completed else None

    async def rests(self) -> bool:
        """Whether nothing is queued, held, delayed or dead."""
        inspector = await self.server.inspector()
        # twice: a message may go from the one that is looked at second to the one that was looked at first
        depths = [await inspector.depth(queue) for queue in 2 * (self.queue, companion(self.queue))]
        return not any(each.pending + (each.dead or 0) for each in depths)

    async def is_over(self) -> bool:
        return await self.end() is not None and await self.rests()

    def crashed_before(self) -> str:
        """The write that was not done."""
        return next((line.task_id for line in self.ledger.lines() if line.what == "X"), "")

    def handlers(self) -> list[str]:
        """The UUIDs of the error handlers of the callback."""
        callback = next((each.chord_callback for each in self.work.entries if each.chord_callback is not None), None)
        return [each.uuid for each in (callback.on_error or ())] if callback is not None else []


ALL = tuple(shape for shape in SHAPES if shape != "timeout")
SOME = ("fail", "group, group", "add")


@pytest.mark.parametrize(
    ("durable", "shapes"),
    [
        ("redis", ALL),
        ("redis+sqlite", SOME),
        *(pytest.param(kind, ALL, marks=pytest.mark.long) for kind in ("sqlite", "redis+sqlite", "sqlite+redis")),
    ],
    indirect=["durable"],
    ids=lambda value: {ALL: "all", SOME: "some"}.get(value, value),
)
async def test_a_worker_may_die_before_any_write(
    durable: Stores, shapes: Sequence[str], tmp_path: Path, forks: Forks
) -> None:
    async with send_log(durable) if durable.kind == "redis" else nullcontext() as log:

        async def crash(shape: str, n: int) -> str:
            async with _case(durable, tmp_path, shape, f"{shape.replace(', ', '-')}-{n}") as case:
                return await _worker_dies(case, shape, n, forks, log)

        found = await _enumerated({shape: partial(crash, shape) for shape in shapes})
    for shape, outcomes in found.items():
        print(f"{durable.kind}, {shape}: {_told(outcomes)}")


async def test_a_sender_may_die_before_any_write(durable: Stores, tmp_path: Path, forks: Forks) -> None:
    async def crash(concurrency: int, n: int) -> str:
        async with _case(durable, tmp_path, "timeout", f"sender-{concurrency}-{n}") as case:
            return await _sender_dies(case, concurrency, n, forks)

    found = await _enumerated({f"concurrency {each}": partial(crash, each) for each in (0, 1)})
    for concurrency, outcomes in found.items():
        print(f"{durable.kind}, {concurrency}: {_told(outcomes)}")
        assert any("nothing runs" in each for each in outcomes.values())


@asynccontextmanager
async def _case(stores: Stores, folder: Path, shape: str, name: str) -> AsyncIterator[Case]:
    case = Case.of(stores, folder / name, shape, name)
    try:
        yield case
    except Exception as exc:
        exc.add_note(f"{stores.kind}, {name}: died before its write {case.crashed_before() or '(none)'}")
        raise
    finally:
        await case.bench.close()


async def _worker_dies(case: Case, shape: str, n: int, forks: Forks, log: SendLog | None) -> str:
    """A worker dies before its n-th write, another one finishes the work; before which write, or nothing if it had
    fewer. ``log`` is that of Redis, which is one for all."""
    await case.server.connected()
    async with send_log(case.stores) if case.stores.kind == "sqlite" else nullcontext(log) as log:
        await send(case.server, case.work)
        worker = forks.start(workers.run, case.asked(n, worker={"concurrency": 1}))
        await _until_dead_or(case.is_over, worker)
        crashed = not worker.is_running
        if crashed:
            assert worker.code == CRASHED
        known = await case.states(task.uuid for task in case.tasks)
        starts = case.ledger.counts("S")
        if not crashed:
            worker.kill()
        async with case.bench.working(case.server, concurrency=4):
            await eventually(case.is_over, patience=PATIENCE)
        await _check_end(case, SHAPES[shape])
        _check_runs(case, known, starts)
        if log is not None:
            _check_sends(case, await log.counts())
    return case.crashed_before()


async def _check_end(case: Case, expected: Shape) -> None:
    """It ended as it should, and nothing in it is left without an end."""
    end = await case.end()
    assert end is not None
    if expected.error:
        oops = next((task.uuid for task in case.tasks if task.name == "oops"), "")
        assert end.state is State.FAILURE
        assert expected.error.format(oops=oops) in end.error
        assert case.ledger.counts("S")[end.task_uuid] == 0, "a callback of a failed group ran"
        assert all(case.ledger.counts("S")[each] for each in case.handlers()), "an error handler did not run"
    else:
        assert await case.server.result(end.task_uuid).get(0) == expected.result
    states = await case.states(task.uuid for task in case.tasks)
    assert [task.name for task in case.tasks if not states[task.uuid].is_completed] == [], "left without an end"


def _check_runs(case: Case, known: dict[str, TaskState], starts_before: Counter[str]) -> None:
    """After the crash, nothing ran that had ended, and what had not ran once. Where broker and backend are two stores
    it may be sent twice, and two copies that begin together both run."""
    again = case.ledger.counts("S") - starts_before
    assert [each for each in known if known[each].is_completed and again[each]] == [], "run again behind its end"
    most = 1 if case.stores.is_atomic else 2
    assert {each: again[each] for each in again if again[each] > most} == {}, "run again though nobody was killed"


def _check_sends(case: Case, sent: Counter[str]) -> None:
    """Where broker and backend are one store, everything is sent once."""
    ids = {*(task.uuid for task in case.tasks), *case.handlers(), *case.ledger.counts("S")}
    # what goes on as a workflow is sent once more, as the end of that
    expected = {task.uuid: 2 for task in case.tasks if task.name == "becoming"}
    assert {each: sent[each] for each in ids if sent[each] > expected.get(each, 1)} == {}, "sent twice"


async def _sender_dies(case: Case, concurrency: int, n: int, forks: Forks) -> str:
    sender = forks.start(senders.run, case.asked(n, shape="timeout", seed=case.queue, concurrency=concurrency))
    code = await sender.ended()
    assert code in (0, CRASHED)
    crashed = code == CRASHED
    if await case.rests():
        assert crashed
        assert [each for each in (await case.states(t.uuid for t in case.tasks)).values() if each.is_completed] == []
        return f"{case.crashed_before()}: nothing runs"
    deadline = next(task.uuid for task in case.tasks if task.name == DEADLINE)
    async with case.bench.working(case.server, concurrency=4):
        await eventually(case.is_over, patience=PATIENCE)
    end = await case.end()
    assert end is not None
    if end.is_failure:
        assert "was not complete within" in end.error
        assert crashed
        assert case.ledger.counts("S")[end.task_uuid] == 0
        ended = "fails"
    else:
        assert await case.server.result(end.task_uuid).get(0) == SHAPES["timeout"].result
        assert case.ledger.counts("S")[end.task_uuid] == 1
        ended = "completes"
    assert (await case.states([deadline]))[deadline].is_success
    return f"{case.crashed_before()}: {ended}" if crashed else ""


async def _enumerated(crashes: Mapping[str, Callable[[int], Awaitable[str]]]) -> dict[str, dict[int, str]]:
    """What crashes before the n-th write led to, for every n that there is; "" where n was too many."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(crash: Callable[[int], Awaitable[str]], n: int, outcomes: dict[int, str]) -> None:
        async with at_once:
            outcomes[n] = await crash(n)

    async def all_of(crash: Callable[[int], Awaitable[str]]) -> dict[int, str]:
        outcomes: dict[int, str] = {}
        while all(outcomes.values()):
            last = len(outcomes)
            assert last < MOST_WRITES
            async with asyncio.TaskGroup() as group:
                for n in range(last + 1, last + ROUND + 1):
                    group.create_task(one(crash, n, outcomes))
        assert any(outcomes.values())
        return outcomes

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(all_of(crash)) for name, crash in crashes.items()}
    return {name: task.result() for name, task in tasks.items()}


async def _until_dead_or(look: Callable[[], Awaitable[bool]], process: Fork) -> None:
    async def dead_or() -> bool:
        return not process.is_running or await look()

    await eventually(dead_or, patience=PATIENCE)


def _told(outcomes: dict[int, str]) -> str:
    return ", ".join(f"{n}: {outcomes[n]}" for n in sorted(outcomes) if outcomes[n])
