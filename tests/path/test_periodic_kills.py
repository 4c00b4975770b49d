"""Processes that keep a schedule are killed: no occurrence is sent twice, and none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.path import schedulers
from tests.path.bench import eventually
from tests.path.forks import Fork, Forks
from tests.path.schedulers import Ledger, server

PATIENCE = 100.0


class Crew:
    """Scheduler processes on one store."""

    def __init__(self, url: str, ledger: Ledger, forks: Forks) -> None:
        self.url = url
        self.ledger = ledger
        self.forks = forks

    def start(self, pause: float = 0.0) -> Fork:
        return self.forks.start(schedulers.run, self.url, self.ledger.path, pause)

    async def started(self) -> None:
        """Wait until each of them keeps the schedule."""
        await until(lambda: {pid for what, pid, _ in self.ledger.lines()} >= {each.pid for each in self.forks.started})

    def has_come_to(self, what: str, due_at: int) -> bool:
        return max(self.due(what), default=0) >= due_at

    def due(self, what: str, pid: int | None = None) -> list[int]:
        return [due for said, by, due in self.ledger.lines() if said == what and pid in (None, by)]


async def until(look: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return look()

    await eventually(ask, patience=PATIENCE)


@pytest.fixture(params=["sqlite", "redis"])
def crew(request: pytest.FixtureRequest, tmp_path: Path, forks: Forks) -> Crew:
    url = f"sqlite:///{tmp_path}/tasks.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    return Crew(url, Ledger(tmp_path / "ledger"), forks)


async def occurrences(crew: Crew) -> list[int]:
    """When those were due that are in the queue, in its order: each must be one of those that were claimed."""
    async with server(crew.url) as looking:
        (task,) = looking.schedules()
        known = {task.task_id(looking.settings.program, due): due for due in crew.due("claimed")}
        return [known[each.uuid] for each in await looking.get_pending_tasks(limit=10_000)]


def assert_each_once(found: list[int], until: int) -> None:
    """Of every second up to ``until`` one occurrence, and none twice."""
    assert len(found) == len(set(found)), "sent twice"
    dues = [due for due in found if due <= until]
    assert sorted(dues) == list(range(min(dues), until + 1))


@pytest.mark.timeout(150)
async def test_an_occurrence_whose_owner_was_killed_is_sent_by_another(crew: Crew) -> None:
    for _ in range(2):
        crew.start()
    await crew.started()
    slow = crew.start(pause=600.0)
    await until(lambda: bool(crew.due("claimed", slow.pid)))
    slow.kill()
    (left,) = crew.due("claimed", slow.pid)
    assert crew.due("sending", slow.pid) == []
    await until(lambda: left in crew.due("sent") and max(crew.due("sent")) > left)
    last = await nothing_is_owed(crew)
    found = await occurrences(crew)
    assert_each_once(found, last)
    assert left in found


@pytest.mark.timeout(150)
async def test_no_kill_costs_or_doubles_an_occurrence(crew: Crew) -> None:
    await five_schedulers_are_killed(crew, seconds=10)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_no_kill_in_a_minute_costs_or_doubles_an_occurrence(crew: Crew) -> None:
    await five_schedulers_are_killed(crew, seconds=60)


async def five_schedulers_are_killed(crew: Crew, seconds: int) -> None:
    """Whichever of them claimed last is killed at each fifth occurrence, and replaced."""
    for pause in (0.0, 0.0, 0.0, 0.3, 0.3):
        crew.start(pause)
    await crew.started()
    await until(lambda: bool(crew.due("sent")))
    first = min(crew.due("claimed"))
    for number in range(5, seconds + 1, 5):
        await until(partial(crew.has_come_to, "claimed", first + number))
        last_pid = [pid for what, pid, _ in crew.ledger.lines() if what == "claimed"][-1]
        next(each for each in crew.forks.started if each.pid == last_pid).kill()
        crew.start(pause=0.3)
    await until(partial(crew.has_come_to, "sent", first + seconds + 1))
    last = await nothing_is_owed(crew)
    claimed = Counter(crew.due("claimed"))
    found = await occurrences(crew)
    assert_each_once(found, last)
    taken_over = sum(count > 1 for count in claimed.values())
    print(f"{len(found)} occurrences, {seconds // 5} kills, {taken_over} of them between claim and send")


async def nothing_is_owed(crew: Crew) -> int:
    """Wait until every occurrence that was sent by now, and those before it, are finished; kill all; which was last."""
    last = max(crew.due("sent"))
    async with server(crew.url) as looking:
        (task,) = looking.schedules()
        lock, key = await looking.turn_lock(), task.lock_key(looking.settings.program)

        async def rests() -> bool:
            return min(await lock.owed(key), default=last + 1) > last

        await eventually(rests, patience=PATIENCE)
    for each in crew.forks.started:
        each.kill()
    return last
