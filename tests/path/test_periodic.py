"""Each occurrence of a schedule is sent once, whoever keeps the schedule and whoever dies: on every store.

Processes are played by servers that share stores; time is a manual clock, moved between the ticks of their rotas.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import ArgumentError, ConfigError, NoBackend, Server, Signature, Worker, chain, chord, group
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.brokers.base import Message
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import NANOSECONDS
from asyncqueue.config import Settings
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.events import Event, OccurrenceFailed, OccurrenceSent, OccurrenceSkipped
from asyncqueue.engine.periodic import CLAIM_TTL, LATE, PeriodicTask, Rota
from asyncqueue.engine.settlement import OrderedSettlement, Outgoing
from asyncqueue.locks.base import Claim, Turn
from asyncqueue.state import State, TaskState
from asyncqueue.testing import ManualClock
from asyncqueue.testing.clock import START
from tests.path.bench import eventually

QUEUE = "machinery_tasks"
PERIOD = 10
SPEC = f"@every {PERIOD}s"


class Fleet:
    """Processes that keep one schedule on one store, and one clock for them all."""

    def __init__(self, url: str, backend: str | None = None) -> None:
        self.url = url
        self.backend = backend
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.servers: list[Server] = []

    def server(self, **settings: Any) -> Server:
        server = Server(
            self.url, backend=self.backend, settings=Settings.parse(settings) if settings else None, clock=self.clock
        )

        @server.task
        async def note(text: str = "") -> None:
            pass

        server.events.listen(self.events.append)
        self.servers.append(server)
        return server

    async def rota(self, spec: str = SPEC, owner: str | None = None, **options: Any) -> Rota:
        """One more process that keeps the schedule ``nightly``, and has looked once."""
        rota = await self.unstarted(spec, owner, **options)
        await rota.tick()
        return rota

    async def unstarted(self, spec: str = SPEC, owner: str | None = None, **options: Any) -> Rota:
        server = self.server()
        server.schedule(spec, "nightly", options.pop("work", "note"), **options)
        (task,) = server.schedules()
        return Rota(task, await server._office(owner or f"owner-{len(self.servers)}"))

    def move_to(self, number: float) -> None:
        """To so many periods after the start."""
        self.clock.advance(START + number * PERIOD - self.clock.now_ns() / NANOSECONDS)

    async def queued(self) -> list[Signature]:
        return await self.servers[0].get_pending_tasks()

    async def sent(self) -> list[int]:
        """Which occurrences are in the queue, by their numbers from the start, in order."""
        (task,) = self.servers[0].schedules()
        program = self.servers[0].settings.program
        numbers = {task.task_id(program, START + number * PERIOD): number for number in range(-10, 100)}
        return [numbers[signature.uuid] for signature in await self.queued()]

    async def end(self, number: int, state: State) -> None:
        """The task of that occurrence comes to this state."""
        (task,) = self.servers[0].schedules()
        backend = (await self.servers[0].connected()).backend
        assert backend is not None
        task_id = task.task_id(self.servers[0].settings.program, START + number * PERIOD)
        await backend.put([TaskState(task_uuid=task_id, state=state)])

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def close(self) -> None:
        for server in self.servers:
            await server.close()


@pytest.fixture(params=["memory", "sqlite", "redis", "redis+sqlite"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    match request.param:
        case "memory":
            fleet = Fleet(f"memory://{tmp_path.name}")
        case "sqlite":
            fleet = Fleet(f"sqlite:///{tmp_path}/tasks.db")
        case "redis":
            fleet = Fleet(request.getfixturevalue("redis_url"))
        case _:  # two stores: nothing can be done in one step
            fleet = Fleet(request.getfixturevalue("redis_url"), f"sqlite:///{tmp_path}/results.db")
    yield fleet
    await fleet.close()


@pytest.fixture
def server(fleet: Fleet) -> Server:
    return fleet.server()


# ------------------------------------------------------------------------------------------------- occurrences


async def test_each_occurrence_is_sent_once_by_five_processes(fleet: Fleet) -> None:
    rotas = [await fleet.rota() for _ in range(5)]
    for number in range(1, 6):
        fleet.move_to(number)
        await asyncio.gather(*(rota.tick() for rota in rotas))
        assert await fleet.sent() == list(range(1, number + 1))
    assert [event.due_at for event in fleet.told(OccurrenceSent)] == [START + n * PERIOD for n in range(1, 6)]


async def test_nothing_is_sent_before_its_time(fleet: Fleet) -> None:
    rota = await fleet.rota()
    fleet.move_to(0.99)
    assert 0 < await rota.tick() <= 0.1 + 1e-6
    assert await fleet.sent() == []


async def test_every_occurrence_has_fresh_ids_and_no_eta(fleet: Fleet) -> None:
    server = fleet.server()
    after = Signature(uuid="task_after", name="note", eta=1)
    signature = Signature(uuid="task_mine", name="note", eta=4_000_000_000 * NANOSECONDS, on_success=(after,))
    server.schedule(SPEC, "nightly", signature)
    rota = Rota(server.schedules()[0], await server._office("owner"))
    await rota.tick()
    for number in (1, 2):
        fleet.move_to(number)
        await rota.tick()
    sent = await fleet.queued()
    assert await server.get_delayed_tasks() == []
    assert [signature.eta for signature in sent] == [None, None]
    ids = {each.uuid for signature in sent for each in (signature, *(signature.on_success or ()))}
    assert len(ids) == 4
    assert not ids & {"task_mine", "task_after", ""}


async def test_an_occurrence_has_the_same_id_in_every_process(fleet: Fleet) -> None:
    one, two = await fleet.unstarted(), await fleet.unstarted()
    due_at = START + PERIOD
    assert one._task.task_id("asyncqueue", due_at) == two._task.task_id("asyncqueue", due_at)
    assert len({one._task.task_id(program, at) for program in ("a", "b") for at in (due_at, due_at + 1)}) == 4


async def test_a_store_that_is_away_for_a_moment_costs_no_occurrence(fleet: Fleet) -> None:
    rota = await fleet.rota()
    lock = rota._office.lock
    fleet.move_to(1)
    await lock.close()
    ticking = asyncio.create_task(rota.tick())
    await asyncio.sleep(0.05)
    await lock.open()
    await asyncio.wait_for(ticking, 30)
    assert await fleet.sent() == [1]


# --------------------------------------------------------------------------------------------------- takeover


async def _claimed_and_died(fleet: Fleet, number: int) -> Turn:
    """A process claims that turn, and is never heard of again."""
    rota = await fleet.unstarted()
    turn = Turn(rota._key, START + number * PERIOD, START + (number + 1) * PERIOD)
    assert await rota._office.lock.claim(turn, "dead", fleet.clock.now_ns(), CLAIM_TTL) is Claim.MINE
    return turn


async def test_what_an_owner_did_not_send_is_taken_over_once(fleet: Fleet) -> None:
    rotas = [await fleet.rota() for _ in range(3)]
    fleet.move_to(1)
    await _claimed_and_died(fleet, 1)
    waits = [await rota.tick() for rota in rotas]
    assert await fleet.sent() == []
    assert all(CLAIM_TTL <= wait < PERIOD for wait in waits)
    fleet.clock.advance(CLAIM_TTL * 1.3)
    await asyncio.gather(*(rota.tick() for rota in rotas))
    assert await fleet.sent() == [1]
    fleet.move_to(2)
    await asyncio.gather(*(rota.tick() for rota in rotas))
    assert await fleet.sent() == [1, 2]


async def test_a_takeover_does_not_hold_up_the_next_occurrences(fleet: Fleet) -> None:
    rotas = [await fleet.rota() for _ in range(2)]
    fleet.move_to(1)
    await _claimed_and_died(fleet, 1)
    fleet.move_to(1.1)
    await asyncio.gather(*(rota.tick() for rota in rotas))
    fleet.move_to(2)
    await asyncio.gather(*(rota.tick() for rota in rotas))
    assert sorted(await fleet.sent()) == [1, 2]


async def test_a_process_that_starts_takes_over_what_is_owed(fleet: Fleet) -> None:
    fleet.move_to(1)
    await _claimed_and_died(fleet, 1)
    fleet.move_to(2.5)
    await fleet.rota()
    assert await fleet.sent() == [1]


async def test_an_owner_who_died_after_sending_has_it_sent_by_nobody_else(fleet: Fleet) -> None:
    rota = await fleet.rota()
    fleet.move_to(1)
    turn = await _claimed_and_died(fleet, 1)
    assert await rota._send(turn.due_at)  # the dead one's work, not finished
    fleet.clock.advance(CLAIM_TTL * 1.3)
    await fleet.rota()
    await rota.tick()
    assert await fleet.sent() == [1]
    assert list(await rota._office.lock.owed(rota._key)) == []


async def test_an_owner_who_slept_through_its_time_sends_no_second_copy(fleet: Fleet) -> None:
    sleeper, other = await fleet.rota(owner="sleeper"), await fleet.rota()
    fleet.move_to(1)
    turn = Turn(sleeper._key, START + PERIOD, START + 2 * PERIOD)
    assert await sleeper._office.lock.claim(turn, "sleeper", fleet.clock.now_ns(), CLAIM_TTL) is Claim.MINE
    await other.tick()
    fleet.clock.advance(CLAIM_TTL * 1.3)
    await other.tick()
    for state in (None, State.STARTED, State.SUCCESS):  # whatever became of the task in the meantime
        if state is not None:
            await fleet.end(1, state)
        await sleeper._send(turn.due_at)
        assert await fleet.sent() == [1]
    backend = sleeper._office.backend
    assert backend is not None
    (found,) = await backend.get([sleeper._task.task_id("asyncqueue", turn.due_at)])
    assert found is not None
    assert found.state is State.SUCCESS


async def test_two_that_send_at_the_same_time_send_one(fleet: Fleet) -> None:
    rotas = [await fleet.rota() for _ in range(5)]
    fleet.move_to(1)
    await asyncio.gather(*(rota._send(START + PERIOD) for rota in rotas))
    assert await fleet.sent() == [1]


async def test_what_ended_between_look_and_send_is_not_begun_anew() -> None:
    class Blind(MemoryBackend):
        """Looks too early."""

        async def get(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
            return [None for _ in task_ids]

    broker, store = MemoryBroker(), MemoryStore()
    blind, backend = Blind(store), MemoryBackend(store)
    for each in (broker, blind, backend):
        await each.open()
    await backend.put([TaskState(task_uuid="task_a", state=State.SUCCESS)])
    pending, message = TaskState(task_uuid="task_a"), Message(b"a", QUEUE, "task_a", token="once")
    await OrderedSettlement(broker, blind).offer(Outgoing([pending], [message]))
    (found,) = await backend.get(["task_a"])
    assert found is not None
    assert found.state is State.SUCCESS


# ----------------------------------------------------------------------------------------------------- missed


@pytest.mark.parametrize(
    ("missed", "expected"), [("skip", [1, 2, 8]), ("last", [1, 2, 7, 8]), ("all", [1, 2, 3, 4, 5, 6, 7, 8])]
)
async def test_what_was_missed_is_sent_as_the_policy_says(fleet: Fleet, missed: str, expected: list[int]) -> None:
    rotas = [await fleet.rota(missed=missed) for _ in range(2)]
    for number in (1, 2):
        fleet.move_to(number)
        await asyncio.gather(*(rota.tick() for rota in rotas))
    fleet.move_to(7.5)  # nobody kept the schedule
    rotas = [await fleet.unstarted(missed=missed) for _ in range(3)]
    await asyncio.gather(*(rota.tick() for rota in rotas))
    fleet.move_to(8)
    await asyncio.gather(*(rota.tick() for rota in rotas))
    assert sorted(await fleet.sent()) == expected


@pytest.mark.parametrize(("missed", "expected"), [("skip", [73]), ("last", [72]), ("all", list(range(1, 73)))])
async def test_a_machine_that_slept_does_as_the_policy_says(fleet: Fleet, missed: str, expected: list[int]) -> None:
    rota = await fleet.rota(missed=missed)
    late = LATE / PERIOD + 0.05  # by so much is one missed; the next one is just late
    fleet.move_to(72 + late if missed == "skip" else 72.95)
    await rota.tick()
    assert sorted(await fleet.sent()) == expected


@pytest.mark.parametrize("missed", ["last", "all"])
async def test_a_schedule_that_never_ran_has_missed_nothing(fleet: Fleet, missed: str) -> None:
    fleet.move_to(3)
    await fleet.rota(missed=missed)
    assert await fleet.sent() == []


# ---------------------------------------------------------------------------------------------------- overlap


async def test_an_occurrence_waits_for_no_other_unless_told_to(fleet: Fleet) -> None:
    rota = await fleet.rota()
    for number in (1, 2):
        fleet.move_to(number)
        await rota.tick()
    assert await fleet.sent() == [1, 2]


@pytest.mark.parametrize("ending", [State.SUCCESS, State.FAILURE])
async def test_an_occurrence_is_skipped_while_the_one_before_runs(fleet: Fleet, ending: State) -> None:
    rotas = [await fleet.rota(overlap="skip") for _ in range(3)]

    async def tick(number: int) -> None:
        fleet.move_to(number)
        await asyncio.gather(*(rota.tick() for rota in rotas))

    await tick(1)
    await tick(2)
    await fleet.end(1, State.STARTED)
    await tick(3)
    assert await fleet.sent() == [1]
    assert len(fleet.told(OccurrenceSkipped)) == 2
    await fleet.end(1, ending)
    await tick(4)
    await tick(5)
    assert await fleet.sent() == [1, 4]


async def test_a_result_that_is_gone_stands_in_nobodys_way(fleet: Fleet) -> None:
    rota = await fleet.rota(overlap="skip")
    fleet.move_to(1)
    await rota.tick()
    backend = rota._office.backend
    assert backend is not None
    await backend.forget([rota._task.task_id("asyncqueue", START + PERIOD)])
    fleet.move_to(2)
    await rota.tick()
    assert await fleet.sent() == [1, 2]


# -------------------------------------------------------------------------------------------------- workflows

NOTE = Signature(uuid="task_mine", name="note", eta=4_000_000_000 * NANOSECONDS)
FIRST, SECOND = NOTE.with_changes(uuid=""), NOTE.with_changes(uuid="task_other")
WORKFLOWS = {
    "chain": (chain(NOTE, SECOND), 1),
    "group": (group(NOTE, FIRST, SECOND), 3),
    "chord": (chord([NOTE, chain(FIRST, FIRST)], SECOND, group_timeout=3_600), 2),
    "nested": (chain(group(NOTE, FIRST), group(FIRST, SECOND)), 2),
}
"""Each with how many of its tasks are in the queue once it is sent."""


@pytest.mark.parametrize("kind", WORKFLOWS)
async def test_each_occurrence_of_a_workflow_is_sent_once_by_five_processes(fleet: Fleet, kind: str) -> None:
    work, count = WORKFLOWS[kind]
    rotas = [await fleet.rota(work=work) for _ in range(5)]
    for number in range(1, 4):
        fleet.move_to(number)
        await asyncio.gather(*(rota.tick() for rota in rotas))
        sent = [signature for signature in await fleet.queued() if signature.name == "note"]
        assert len({signature.uuid for signature in sent}) == len(sent) == number * count
        assert not {"task_mine", "task_other", ""} & {signature.uuid for signature in sent}
        assert all(signature.eta is None for signature in sent)
    assert len(fleet.told(OccurrenceSent)) == 3


@pytest.mark.parametrize("kind", WORKFLOWS)
async def test_two_that_send_a_workflow_at_the_same_time_send_one(fleet: Fleet, kind: str) -> None:
    work, count = WORKFLOWS[kind]
    rotas = [await fleet.rota(work=work) for _ in range(5)]
    fleet.move_to(1)
    await asyncio.gather(*(rota._send(START + PERIOD) for rota in rotas))
    sent = [signature.uuid for signature in await fleet.queued() if signature.name == "note"]
    assert len(sent) == count


@pytest.mark.parametrize("concurrency", [1, 2, 100])
async def test_what_an_owner_sent_in_part_another_sends_to_its_end(fleet: Fleet, concurrency: int) -> None:
    work = group(*(Signature(name="note") for _ in range(5)))
    dying, other = [await fleet.rota(work=work, concurrency=concurrency) for _ in range(2)]
    settlement: Any = dying._office.publisher._settlement
    offer = settlement.offer

    async def dies(*args: Any) -> bool:
        await offer(*args)
        raise asyncio.CancelledError

    settlement.offer = dies
    fleet.move_to(1)
    with pytest.raises(asyncio.CancelledError):
        await dying.tick()
    assert len(await fleet.queued()) == min(concurrency, 5)
    await other.tick()
    fleet.clock.advance(CLAIM_TTL * 1.3)
    await other.tick()
    sent = [signature.uuid for signature in await fleet.queued()]
    assert len(sent) == len(set(sent)) == 5


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
async def test_a_workflow_is_skipped_while_the_one_before_has_not_ended(fleet: Fleet, kind: str) -> None:
    rota = await fleet.rota(work=WORKFLOWS[kind][0], overlap="skip")
    backend = rota._office.backend
    assert backend is not None
    numbers = iter(range(1, 10))

    async def tick() -> int:
        fleet.move_to(next(numbers))
        await rota.tick()
        return len(fleet.told(OccurrenceSent))

    assert [await tick(), await tick()] == [1, 1]
    *first, last = [part.deciding()[-1] for part in rota._occurrence(START + PERIOD).outline.parts]
    for task_id in first:
        await backend.put([TaskState(task_uuid=task_id, state=State.SUCCESS)])
        assert await tick() == 1
    await backend.put([TaskState(task_uuid=last, state=State.FAILURE)])
    assert [await tick(), await tick()] == [2, 2]


async def test_workflows_that_cannot_be_sent_are_refused_and_nothing_is_registered(server: Server) -> None:
    wrong: Any = group(NOTE)
    with pytest.raises(ArgumentError, match="expected a chain, not a Group"):
        await server.register_periodic_chain("@hourly", "nightly", wrong)
    with pytest.raises(ArgumentError, match="expected a chord, not a Group"):
        await server.register_periodic_chord("@hourly", "nightly", wrong)
    with pytest.raises(ArgumentError, match="expected a group, not a Chain"):
        await server.register_periodic_group("@hourly", "nightly", chain(wrong))  # type: ignore[arg-type]  # a mistake
    with pytest.raises(ArgumentError, match="nothing to send"):
        await server.register_periodic_group("@hourly", "nightly", group())
    with pytest.raises(ArgumentError, match="concurrency must be"):
        await server.register_periodic_group("@hourly", "nightly", group(NOTE), concurrency=-1)
    with pytest.raises(ArgumentError, match="takes"):
        server.schedule("@hourly", "nightly", group(Signature(name="note", args=server.signature("?", 1, 2).args)))
    with pytest.raises(NoBackend, match="a chord needs a result backend"):
        Server("memory://", backend="null").schedule("@hourly", "nightly", chord([NOTE], FIRST))
    assert server.schedules() == []


def test_what_a_schedule_sends_has_a_title() -> None:
    server = Server("memory://")
    server.schedule("@hourly", "a", "note")
    server.schedule("@hourly", "b", chain(FIRST, group(FIRST), FIRST))
    server.schedule("@hourly", "c", chord([FIRST] * 9, FIRST))
    assert [task.title for task in server.schedules()] == [
        "note",
        "chain(note, group(note), note)",
        "chord(group(note, note, note, 6 more), note)",
    ]


# -------------------------------------------------------------------------------------------------- bad cases


async def test_an_occurrence_that_cannot_be_sent_is_told_and_the_next_one_is_tried(fleet: Fleet) -> None:
    rota = await fleet.rota()
    server = fleet.servers[0]
    fails = True

    @server.before_publish
    def hook(signature: Signature) -> None:
        if fails:
            raise ValueError("no way")

    fleet.move_to(1)
    await rota.tick()
    (failed,) = fleet.told(OccurrenceFailed)
    assert (failed.due_at, failed.error) == (START + PERIOD, "ValueError: no way")
    fails = False
    fleet.move_to(2)
    await rota.tick()
    assert await fleet.sent() == [2]


@pytest.mark.parametrize(
    ("spec", "name", "options", "said"),
    [
        ("* * * *", "nightly", {}, "4 fields; expected 5"),
        ("0 0 30 2 *", "nightly", {}, "never fires"),
        ("@hourly", "", {}, "1 to 200 printable characters"),
        ("@hourly", "a\nb", {}, "1 to 200 printable characters"),
        ("@hourly", "nightly", {"missed": "some"}, "missed='some'; expected one of skip, last, all"),
        ("@hourly", "nightly", {"overlap": "never"}, "overlap='never'; expected one of allow, skip"),
    ],
)
async def test_what_cannot_work_is_refused_and_nothing_is_registered(
    server: Server, spec: str, name: str, options: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("'", ".").replace("*", ".")):
        await server.register_periodic_task(spec, name, "note", **options)
    assert server.schedules() == []


async def test_arguments_that_do_not_fit_are_refused(server: Server) -> None:
    two = server.signature("unknown here", 1, 2).args
    with pytest.raises(ArgumentError):
        server.schedule("@hourly", "nightly", Signature(name="note", args=two))


async def test_one_name_has_one_spec(server: Server) -> None:
    await server.register_periodic_task("@hourly", "nightly", "note")
    await server.register_periodic_task("@hourly", "nightly", "note", missed="all")
    with pytest.raises(ConfigError, match=r"'nightly' is registered with '@hourly' and cannot be '@daily' too"):
        await server.register_periodic_task("@daily", "nightly", "note")
    assert [(task.spec, task.missed) for task in server.schedules()] == [("@hourly", "all")]
    assert server.unregister_periodic_task("nightly")
    assert not server.unregister_periodic_task("nightly")
    await server.register_periodic_task("@daily", "nightly", "note")


async def test_no_overlap_needs_results() -> None:
    with pytest.raises(ConfigError, match="keeps none"):
        Server("memory://", backend="null").schedule("@hourly", "nightly", "note", overlap="skip")


async def test_a_worker_whose_lock_keeps_no_turns_does_not_start() -> None:
    class PlainLock:
        """Keeps its contract, and no more."""

        async def open(self) -> None:
            pass

        async def close(self) -> None:
            pass

        async def acquire(self, key: str, ttl: float) -> str | None:
            return None

        async def renew(self, key: str, token: str, ttl: float) -> bool:
            return False

        async def release(self, key: str, token: str) -> bool:
            return False

    server = Server("memory://", lock=PlainLock())
    server.schedule("@hourly", "nightly", "note")
    with pytest.raises(ConfigError, match="PlainLock, which keeps no turns"):
        await Worker(server).start()
    await server.close()


async def test_schedules_say_when_they_are_due_next(server: Server) -> None:
    server.schedule("CRON_TZ=Europe/Paris 0 6 * * *", "early", "note")
    assert [each.isoformat() for each in server.next_times("early", 2)] == [
        "2025-06-16T04:00:00+00:00",
        "2025-06-17T04:00:00+00:00",
    ]
    with pytest.raises(ConfigError, match="no schedule is called 'late'"):
        server.next_times("late")


# --------------------------------------------------------------------------------------------- inside a worker


@pytest.fixture
def real(fleet: Fleet) -> Server:
    """A server whose clock is the machine's."""
    server = Server(fleet.url, backend=fleet.backend)
    fleet.servers.append(server)
    return server


async def _until(look: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return look()

    await eventually(ask)


def _noting(server: Server) -> list[str]:
    ran: list[str] = []

    @server.task
    async def note(text: str) -> None:
        ran.append(text)

    return ran


async def test_a_worker_keeps_the_schedules_of_its_server_and_stops_with_them(real: Server) -> None:
    ran = _noting(real)
    real.schedule("@every 1s", "often", real.signature("note", "often"))
    async with Worker(real):
        await _until(lambda: len(ran) >= 2)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("asyncqueue-schedule")]
    assert set(ran) == {"often"}


async def test_a_worker_runs_periodic_workflows(real: Server) -> None:
    ran: list[int] = []

    @real.task
    async def one() -> int:
        return 1

    @real.task
    async def add(*numbers: int) -> int:
        ran.append(sum(numbers))
        return sum(numbers)

    await real.register_periodic_chain("@every 1s", "chain", chain(one.s(), add.s(10), add.s(100)))
    await real.register_periodic_chord("@every 1s", "chord", chord([one.s(), one.s()], add.s(1000)), concurrency=1)
    await real.register_periodic_group("@every 1s", "group", group(add.s(5), add.s(6)))
    async with Worker(real):
        await _until(lambda: {11, 111, 1002, 5, 6} <= set(ran))


async def test_schedules_come_and_go_while_a_worker_runs(real: Server) -> None:
    ran = _noting(real)
    async with Worker(real):
        real.schedule("@every 1s", "one", real.signature("note", "one"))
        await _until(lambda: "one" in ran)
        await asyncio.to_thread(real.unregister_periodic_task, "one")
        await real.register_periodic_task("@every 1s", "two", real.signature("note", "two"))
        await _until(lambda: "two" in ran)
        before = ran.count("one")
        await _until(lambda: ran.count("two") >= 3)
        assert ran.count("one") <= before + 1  # one may have been on its way


def test_a_task_of_a_schedule_is_a_plain_value() -> None:
    server = Server("memory://")
    server.schedule("@every 1s", "often", "note")
    (task,) = server.schedules()
    assert isinstance(task, PeriodicTask)
    assert task.lock_key("hper") == "machinery_lock_hperoften@every 1s"
