"""A run is cancelled: by a stop, its time limit, a lost lease, the end of its loop, or its own code. Whatever the task
makes of that, its message comes to an end that is defined: none runs for ever, none counts as done that is not."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from asyncqueue import Server, Worker
from asyncqueue.config import Settings
from asyncqueue.engine import limit
from asyncqueue.engine.context import TaskContext
from asyncqueue.engine.events import Event, TaskStuck
from asyncqueue.errors import TaskFailed
from asyncqueue.result import AsyncResult
from tests.path.bench import PATIENCE, eventually, in_time, nothing_is_queued

Wait = Callable[[], Coroutine[Any, Any, NoReturn]]
Way = Callable[[Wait], Coroutine[Any, Any, str | None]]
WAYS: dict[str, Way] = {}
"""Ways to wait without end, and to take it when that is cancelled."""


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


async def fail() -> NoReturn:
    raise ValueError("own")


async def fail_in_a_group() -> None:
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())


@way
async def plainly(wait: Wait) -> None:
    await wait()


@way
async def and_returns(wait: Wait) -> str:
    with suppress(asyncio.CancelledError):
        await wait()
    return "returned"


@way
async def and_raises_another_error(wait: Wait) -> None:
    try:
        await wait()
    except asyncio.CancelledError:
        raise ValueError("own") from None


@way
async def and_cleans_up(wait: Wait) -> None:
    try:
        await wait()
    finally:
        await asyncio.sleep(0)


@way
async def and_fails_to_clean_up(wait: Wait) -> None:
    try:
        await wait()
    finally:
        await fail()


@way
async def after_a_caught_group(wait: Wait) -> None:
    await fail_in_a_group()
    await wait()


@way
async def after_two_caught_groups_and_cleans_up_in_a_third(wait: Wait) -> None:
    await fail_in_a_group()
    await fail_in_a_group()
    try:
        await wait()
    finally:
        await fail_in_a_group()


@way
async def in_a_group(wait: Wait) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait())
        tasks.create_task(wait())


@way
async def in_a_group_whose_tasks_raise_another_error(wait: Wait) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(and_raises_another_error(wait))


@way
async def in_a_timeout(wait: Wait) -> None:
    async with asyncio.timeout(PATIENCE):
        await wait()


@way
async def after_an_expired_timeout(wait: Wait) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    await wait()


@way
async def for_a_shielded_task(wait: Wait) -> None:
    waiting = asyncio.ensure_future(wait())
    try:
        await asyncio.shield(waiting)
    finally:
        waiting.cancel()


@way
async def with_wait_for(wait: Wait) -> None:
    await asyncio.wait_for(wait(), PATIENCE)


@way
async def with_gather(wait: Wait) -> None:
    await asyncio.gather(wait(), wait(), return_exceptions=True)


@way
async def beside_a_task_of_its_own(wait: Wait) -> None:
    beside = asyncio.create_task(asyncio.sleep(PATIENCE))
    try:
        await wait()
    finally:
        beside.cancel()


@way
async def after_it_cancelled_itself(wait: Wait) -> None:
    own = asyncio.current_task()
    assert own is not None
    own.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    await wait()


@way
async def in_a_scope(wait: Wait) -> None:
    with anyio.CancelScope():
        await wait()


@way
async def in_a_scope_that_ends_late(wait: Wait) -> None:
    with anyio.fail_after(PATIENCE):
        await wait()


@way
async def after_an_expired_scope(wait: Wait) -> None:
    with anyio.move_on_after(0):
        await anyio.sleep_forever()
    await wait()


@way
async def and_cleans_up_in_a_shielded_scope(wait: Wait) -> None:
    try:
        await wait()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)


@way
async def in_a_group_of_anyio(wait: Wait) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)


@way
async def after_a_caught_group_of_anyio(wait: Wait) -> None:
    with suppress(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()
    await wait()


@way
async def in_a_generator(wait: Wait) -> None:
    async def waiting() -> AsyncIterator[None]:
        try:
            yield await wait()
        finally:
            await asyncio.sleep(0)

    async for _ in waiting():
        pass


@dataclass
class Trial:
    """A server of one task, which takes each way when it runs for the first time and returns "again" from then on."""

    url: str
    ways: Mapping[str, Way]
    timeout: float | None = None
    runs: Counter[str] = field(default_factory=Counter)
    waiting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        settings = Settings.parse({"default_queue": "ways", "worker": {"lease": 1.0, "concurrency": len(self.ways)}})
        self.server = Server(self.url, settings=settings)

        @self.server.task(timeout=self.timeout)
        async def take(ctx: TaskContext, name: str) -> str | None:
            self.runs[name] += 1
            if self.runs[name] > 1:
                return "again"

            async def wait() -> NoReturn:
                self.waiting.add(name)
                await asyncio.Event().wait()
                raise AssertionError("nobody sets it")

            return await self.ways[name](wait)

        self.take = take

    async def begin(self) -> Mapping[str, AsyncResult]:
        """Send each of them."""
        return {name: await self.take.send(name) for name in self.ways}

    async def all_wait(self) -> bool:
        return self.waiting == set(self.ways)

    async def ends(self, sent: Mapping[str, AsyncResult]) -> dict[str, str]:
        """How each ended, after which nothing is left."""
        ends = {name: await _end(result) for name, result in sent.items()}
        await nothing_is_queued(self.server)
        return ends


async def _end(result: AsyncResult) -> str:
    try:
        return str(await result.get(PATIENCE))
    except TaskFailed as exc:
        return exc.error


LIMIT = "TimeoutError: ran over its time limit of 0.2 s"
RETURNED = {"and_returns": "returned"}
FAILED = {
    "and_raises_another_error": "ValueError: own",
    "and_fails_to_clean_up": "ValueError: own",
    "in_a_group_whose_tasks_raise_another_error": "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
}


async def test_what_a_stop_cancels_runs_again_unless_it_returns() -> None:
    trial = Trial("memory://stopped", WAYS)
    async with trial.server:
        sent = await trial.begin()
        worker = Worker(trial.server, grace=0)
        await worker.start()
        await eventually(trial.all_wait)
        await in_time(worker.stop())
        assert list(worker.stuck) == []
        async with Worker(trial.server):
            assert await trial.ends(sent) == dict.fromkeys(WAYS, "again") | RETURNED


async def test_what_is_over_its_time_limit_has_failed_unless_it_returns() -> None:
    trial = Trial("memory://limited", WAYS, timeout=0.2)
    async with trial.server, Worker(trial.server):
        assert await trial.ends(await trial.begin()) == dict.fromkeys(WAYS, LIMIT) | RETURNED | FAILED
    assert trial.runs == Counter(WAYS.keys())


async def test_what_goes_on_behind_its_time_limit_is_told_and_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "AGAIN", 0.1)
    stuck: list[Event] = []

    async def deaf(wait: Wait) -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await wait()
        await wait()

    trial = Trial("memory://deaf", {"deaf": deaf}, timeout=0.1)
    trial.server.events.listen(lambda event: stuck.append(event) if isinstance(event, TaskStuck) else None)
    async with trial.server, Worker(trial.server):
        sent = await trial.begin()
        assert await trial.ends(sent) == {"deaf": "TimeoutError: ran over its time limit of 0.1 s"}
    assert stuck == [TaskStuck(sent["deaf"].task_id, "take")]


async def test_what_has_lost_its_lease_changes_nothing_and_runs_again(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    trial = Trial(f"sqlite:///{file}", WAYS)
    async with trial.server, Worker(trial.server) as worker:
        sent = await trial.begin()
        await eventually(trial.all_wait)
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE message SET until = NULL, fence = NULL")
        assert await trial.ends(sent) == dict.fromkeys(WAYS, "again")

        async def nothing_runs() -> bool:
            return worker.running == 0

        await eventually(nothing_runs)


def test_what_the_end_of_its_loop_cancels_runs_again(tmp_path: Path) -> None:
    trial = Trial(f"sqlite:///{tmp_path / 'tasks.db'}", WAYS)

    async def begin() -> Mapping[str, AsyncResult]:
        sent = await trial.begin()
        await Worker(trial.server).start()
        await eventually(trial.all_wait)
        return sent

    async def end() -> dict[str, str]:
        async with trial.server, Worker(trial.server):
            return await trial.ends(sent)

    sent = asyncio.run(begin())
    assert asyncio.run(end()) == dict.fromkeys(WAYS, "again")


OWN: dict[str, Way] = {}
"""Ways to be cancelled by nobody else, and what they end as."""
OWN_END: dict[str, str] = {}
OWN_TIMEOUT = "CancelledError" if sys.version_info < (3, 13) else "TimeoutError"
"""What comes of an ``asyncio.timeout`` within which a task group has failed, whoever runs it."""


def ends_as(end: str) -> Callable[[Way], Way]:
    def own(function: Way) -> Way:
        OWN[function.__name__] = function
        OWN_END[function.__name__] = end
        return function

    return own


@ends_as("CancelledError")
async def by_itself(wait: Wait) -> None:
    own = asyncio.current_task()
    assert own is not None
    own.cancel()
    await wait()


@ends_as("returned")
async def by_itself_as_it_returns(wait: Wait) -> str:
    own = asyncio.current_task()
    assert own is not None
    own.cancel()
    return "returned"


@ends_as("CancelledError")
async def by_another_task(wait: Wait) -> None:
    own = asyncio.current_task()
    assert own is not None
    asyncio.get_running_loop().call_soon(own.cancel)
    await wait()


@ends_as("CancelledError")
async def with_a_task_that_it_awaits(wait: Wait) -> None:
    other = asyncio.ensure_future(wait())
    other.cancel()
    await other


@ends_as(OWN_TIMEOUT)
async def by_a_timeout_of_its_own_after_a_caught_group(wait: Wait) -> None:
    async with asyncio.timeout(0.01):
        await fail_in_a_group()
        await wait()


@ends_as(OWN_TIMEOUT)
async def by_a_scope_of_its_own_after_a_caught_group(wait: Wait) -> None:
    with anyio.fail_after(0.01):
        await fail_in_a_group()
        await wait()


@pytest.mark.parametrize("url", ["memory://own-cancels", "eager"])
async def test_what_cancels_itself_has_failed_unless_it_returns(url: str) -> None:
    trial = Trial(url, OWN)
    async with trial.server, nullcontext() if url == "eager" else Worker(trial.server):
        ends = await trial.ends(await trial.begin())
    assert {name: end.partition(":")[0] for name, end in ends.items()} == OWN_END
    assert trial.runs == Counter(OWN.keys())
