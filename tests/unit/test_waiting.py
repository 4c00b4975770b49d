"""Any number of watchers share one look; none misses its ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from asyncqueue.backends import waiting
from asyncqueue.backends.waiting import LOOK_AT_ONCE, Waiters
from asyncqueue.errors import AsyncQueueError, BadMessage, Unavailable
from asyncqueue.state import State, TaskState

NEVER = 1e6


class Store:
    """States by id, and a record of who looked."""

    def __init__(self) -> None:
        self.states: dict[str, TaskState] = {}
        self.looks: list[list[str]] = []
        self.error: Exception | None = None
        self.unreadable: str | None = None
        self.looked = asyncio.Condition()

    async def get(self, task_ids: Sequence[str]) -> list[TaskState | None]:
        self.looks.append(list(task_ids))
        async with self.looked:
            self.looked.notify_all()
        if self.error is not None:
            raise self.error
        if self.unreadable in task_ids:
            raise BadMessage("undecodable", f"{self.unreadable} is no state")
        return [self.states.get(task_id) for task_id in task_ids]

    def write(self, state: State, *task_ids: str) -> None:
        self.states.update({task_id: TaskState(task_uuid=task_id, state=state) for task_id in task_ids})

    async def until_looks(self, count: int) -> None:
        async with asyncio.timeout(30), self.looked:
            await self.looked.wait_for(lambda: len(self.looks) >= count)


async def watch(waiters: Waiters, *task_ids: str) -> dict[str, State | None]:
    async with asyncio.timeout(30):
        return {task_id: None if state is None else state.state async for task_id, state in waiters.watch(task_ids)}


async def settled(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


def hears() -> tuple[Store, Waiters]:
    """A hub whose driver hears of every write."""
    store = Store()
    return store, Waiters(store.get, shortest=NEVER, longest=NEVER)


async def test_what_is_final_or_missing_ends_at_the_first_look() -> None:
    store, waiters = hears()
    store.write(State.SUCCESS, "a")
    assert await watch(waiters, "a", "x") == {"a": State.SUCCESS, "x": None}
    assert store.looks == [["a", "x"]]


async def test_a_change_that_was_heard_of_is_looked_at_and_nothing_else_is() -> None:
    store, waiters = hears()
    store.write(State.PENDING, "a", "b", "c")
    watching = asyncio.create_task(watch(waiters, "a", "b", "c"))
    await store.until_looks(1)
    for task_id in "bca":
        store.write(State.SUCCESS, task_id)
        waiters.changed([task_id, "somebody-elses"])
        await store.until_looks(len(store.looks) + 1)
    assert len(await watching) == 3
    assert store.looks == [["a", "b", "c"], ["b"], ["c"], ["a"]]


async def test_a_change_during_a_look_is_looked_at_again() -> None:
    store, waiters = hears()
    store.write(State.PENDING, "a")
    looking, may_answer = asyncio.Event(), asyncio.Event()

    async def slow_get(task_ids: Sequence[str]) -> list[TaskState | None]:
        found = await store.get(task_ids)
        looking.set()
        await may_answer.wait()
        return found

    waiters = Waiters(slow_get, shortest=NEVER, longest=NEVER)
    watching = asyncio.create_task(watch(waiters, "a"))
    await looking.wait()
    store.write(State.SUCCESS, "a")  # after it was read, before the answer
    waiters.changed(["a"])
    may_answer.set()
    assert await watching == {"a": State.SUCCESS}


async def test_changes_nobody_waits_for_cost_nothing() -> None:
    store, waiters = hears()
    waiters.changed(["a"])
    waiters.changed()
    await asyncio.sleep(0)
    assert store.looks == []


async def test_a_change_of_who_knows_what_looks_at_everything() -> None:
    store, waiters = hears()
    store.write(State.PENDING, "a", "b")
    watching = asyncio.create_task(watch(waiters, "a", "b"))
    await store.until_looks(1)
    store.write(State.FAILURE, "a", "b")
    waiters.changed()
    assert await watching == {"a": State.FAILURE, "b": State.FAILURE}


async def test_where_nothing_is_heard_the_hub_looks_by_itself() -> None:
    store = Store()
    waiters = Waiters(store.get, shortest=0.001, longest=0.01)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(4)
    store.write(State.SUCCESS, "a")
    assert await watching == {"a": State.SUCCESS}


async def test_a_look_that_took_long_does_not_put_off_the_next_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "REST", 1e9)  # by which every look took long
    store = Store()
    waiters = Waiters(store.get, shortest=0.001, longest=0.01)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(3)
    store.write(State.SUCCESS, "a")
    assert await watching == {"a": State.SUCCESS}


async def test_new_watchers_do_not_keep_the_hub_from_looking_after_old_ones() -> None:
    store = Store()
    waiters = Waiters(store.get, shortest=0.005, longest=0.01)
    store.write(State.PENDING, "old")
    watching = asyncio.create_task(watch(waiters, "old"))
    await store.until_looks(1)
    store.write(State.SUCCESS, "old")
    others: list[asyncio.Task[dict[str, State | None]]] = []
    async with asyncio.timeout(30):
        while not watching.done():  # one after the other, faster than the hub's pause
            store.write(State.PENDING, f"new-{len(others)}")
            others.append(asyncio.create_task(watch(waiters, f"new-{len(others)}")))
            await asyncio.sleep(0)
    await waiters.close()
    await asyncio.gather(*others, return_exceptions=True)


async def test_ten_thousand_watchers_share_looks_of_bounded_size() -> None:
    store, waiters = hears()
    ids = [f"task_{number}" for number in range(10_000)]
    store.write(State.PENDING, *ids)
    watching = [asyncio.create_task(watch(waiters, task_id)) for task_id in ids]
    await store.until_looks(len(ids) // LOOK_AT_ONCE)
    store.write(State.SUCCESS, *ids)
    waiters.changed(ids)
    await asyncio.gather(*watching)
    assert max(map(len, store.looks)) == LOOK_AT_ONCE
    assert len(store.looks) <= 2 * len(ids) // LOOK_AT_ONCE + 2


async def test_many_who_watch_one_task_share_one_look() -> None:
    store, waiters = hears()
    store.write(State.SUCCESS, "a")
    watching = [asyncio.create_task(watch(waiters, "a")) for _ in range(100)]
    assert {tuple(one.items()) for one in await asyncio.gather(*watching)} == {(("a", State.SUCCESS),)}
    assert len(store.looks) == 1


async def test_a_probe_that_says_nothing_changed_saves_the_look() -> None:
    store = Store()
    asked = 0

    async def has_changed() -> bool:
        nonlocal asked
        asked += 1
        return False

    waiters = Waiters(store.get, has_changed=has_changed, shortest=0.001, longest=0.002)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await settled(lambda: asked >= 20)
    assert len(store.looks) < asked
    store.write(State.SUCCESS, "a")
    assert await watching == {"a": State.SUCCESS}  # looked at in the end: entries also expire


async def test_a_probe_that_says_yes_leads_to_a_look() -> None:
    store = Store()
    written = False

    async def has_changed() -> bool:
        return written

    waiters = Waiters(store.get, has_changed=has_changed, shortest=0.001, longest=0.002)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(1)
    store.write(State.SUCCESS, "a")
    written = True
    assert await watching == {"a": State.SUCCESS}


async def test_a_probe_that_fails_leads_to_a_look_that_says_why() -> None:
    store = Store()

    async def has_changed() -> bool:
        raise Unavailable("the file is gone")

    waiters = Waiters(store.get, has_changed=has_changed, shortest=0.001, longest=0.002)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(1)
    store.error = Unavailable("the file is gone")
    with pytest.raises(Unavailable, match="the file is gone"):
        await watching


async def test_a_look_that_fails_ends_the_watches_that_it_was_for() -> None:
    store, waiters = hears()
    store.error = Unavailable("connection refused")
    with pytest.raises(Unavailable, match="connection refused"):
        await watch(waiters, "a")
    store.error = None
    assert await watch(waiters, "a") == {"a": None}


async def test_one_entry_that_cannot_be_read_is_not_everybodys_error() -> None:
    store, waiters = hears()
    ids = [f"task_{number}" for number in range(20)]
    store.write(State.SUCCESS, *ids)
    store.unreadable = "task_13"
    watching = [asyncio.create_task(watch(waiters, task_id)) for task_id in ids]
    endings = await asyncio.gather(*watching, return_exceptions=True)
    assert [task_id for task_id, one in zip(ids, endings, strict=True) if isinstance(one, BadMessage)] == ["task_13"]
    assert sum(isinstance(one, dict) for one in endings) == 19


async def test_close_ends_every_watch_and_refuses_new_ones() -> None:
    store, waiters = hears()
    store.write(State.PENDING, "a")
    watching = [asyncio.create_task(watch(waiters, "a")) for _ in range(3)]
    await store.until_looks(1)
    await waiters.close()
    await waiters.close()
    assert {type(one) for one in await asyncio.gather(*watching, return_exceptions=True)} == {Unavailable}
    with pytest.raises(Unavailable):
        await watch(waiters, "a")


async def test_close_does_not_wait_for_a_look_under_way() -> None:
    waits = asyncio.Event()

    async def get(task_ids: Sequence[str]) -> list[TaskState | None]:
        waits.set()
        await asyncio.Event().wait()
        return []

    waiters = Waiters(get)
    watching = asyncio.create_task(watch(waiters, "a"))
    await waits.wait()
    async with asyncio.timeout(30):
        await waiters.close()
    with pytest.raises(Unavailable):
        await watching


async def test_nothing_runs_while_nobody_waits() -> None:
    store, waiters = hears()
    before = asyncio.all_tasks()
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(1)
    watching.cancel()
    await settled(lambda: asyncio.all_tasks() == before)
    store.write(State.SUCCESS, "a")
    assert await watch(waiters, "a") == {"a": State.SUCCESS}
    await settled(lambda: asyncio.all_tasks() == before)


async def test_a_watch_may_be_left_at_any_ending() -> None:
    store, waiters = hears()
    store.write(State.SUCCESS, "a", "b")
    endings = waiters.watch(["a", "b"])
    await anext(endings)
    await endings.aclose()
    assert await watch(waiters, "a", "b") == {"a": State.SUCCESS, "b": State.SUCCESS}


async def test_a_change_of_pace_holds_at_once() -> None:
    store, waiters = hears()
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(1)
    waiters.pace(0.001, 0.002)
    await store.until_looks(5)
    store.write(State.SUCCESS, "a")
    assert await watching == {"a": State.SUCCESS}


async def test_what_a_look_under_way_has_read_is_looked_at_again_once_the_driver_hears() -> None:
    store, may_answer = Store(), asyncio.Event()

    async def get(task_ids: Sequence[str]) -> list[TaskState | None]:
        found = await store.get(task_ids)
        await may_answer.wait()
        return found

    waiters = Waiters(get, shortest=0.001, longest=0.002)
    store.write(State.PENDING, "a")
    watching = asyncio.create_task(watch(waiters, "a"))
    await store.until_looks(1)
    store.write(State.SUCCESS, "a")  # of which nobody tells: the driver hears of what is read from now on
    waiters.pace(NEVER, NEVER)
    may_answer.set()
    assert await watching == {"a": State.SUCCESS}


async def test_an_error_in_the_place_of_a_state_is_no_matter_of_other_watchers() -> None:
    store = Store()
    store.write(State.STARTED, "task_a", "task_away")

    async def look(task_ids: Sequence[str]) -> list[TaskState | AsyncQueueError | None]:
        found = await store.get(task_ids)
        pairs = zip(task_ids, found, strict=True)
        return [Unavailable("its server is away") if task_id == "task_away" else one for task_id, one in pairs]

    waiters = Waiters(look, shortest=NEVER, longest=NEVER)
    other = asyncio.create_task(watch(waiters, "task_a"))
    with pytest.raises(Unavailable, match="its server is away"):
        await watch(waiters, "task_away", "task_a")
    assert not other.done()
    store.write(State.SUCCESS, "task_a")
    waiters.changed(["task_a"])
    assert await other == {"task_a": State.SUCCESS}
    await waiters.close()
