"""Processes that are killed while they publish, fetch and settle on one SQLite file lose nothing and do nothing twice.

Settling a request publishes its answer in the same transaction, so the file itself says which requests were settled,
and how often. Each process also notes in a ledger what it was told: a ledger line is written after the call returned.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from asyncqueue.backends.sqlite import SqliteBackend
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.state import State

SEED = 20_250_102
PROCESSES = 3
KILLS = 12
LINES_BETWEEN_KILLS = 150
LEASE = 0.5
PATIENCE = 60.0

PROCESS = """
import asyncio, os, random, sys
from asyncqueue.brokers.base import Ack, Message, Nack, Settled
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.state import State, TaskState

path, ledger_path, name, lease = sys.argv[1:]
ledger = os.open(ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
chance = random.Random(name)

def note(what, ids):
    os.write(ledger, "".join(f"{what} {one}\\n" for one in ids).encode())

async def publish(broker):
    number = 0
    while True:
        ids = [f"{name}.{number + place}" for place in range(chance.randint(1, 20))]
        number += len(ids)
        states = [TaskState(task_uuid=one) for one in ids]
        await broker.submit(states, [Message(one.encode(), "requests", one, token=one) for one in ids], 3600.0)
        note("published", ids)
        await asyncio.sleep(chance.uniform(0, 0.02))

async def settle(broker):
    while True:
        deliveries = await broker.fetch("requests", chance.randint(1, 30), 1.0)
        back, done = [], []
        for delivery in deliveries:
            (back if chance.random() < 0.1 else done).append(delivery)
        batch = [Settled(one, Nack()) for one in back]
        for one in done:
            request = one.body.decode()
            answer = Message(one.body, "answers", f"answer-{request}")
            batch.append(Settled(one, Ack(), TaskState(task_uuid=request, state=State.SUCCESS), publish=(answer,)))
        await broker.settle(batch, 3600.0)
        note("settled", [one.body.decode() for one in done])

async def main():
    broker = SqliteBroker(path, lease=float(lease))
    await broker.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(publish(broker))
        group.create_task(settle(broker))
        group.create_task(settle(broker))

asyncio.run(main())
"""


def test_killed_processes_lose_no_message_and_settle_none_twice(tmp_path: Path) -> None:
    path, ledger = tmp_path / "tasks.db", Ledger(tmp_path / "ledger")
    chance = random.Random(SEED)
    with ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(path, ledger.path, name))

        processes = [start(f"p{number}") for number in range(PROCESSES)]
        for kill in range(KILLS):
            ledger.wait_for_more(chance.randint(1, LINES_BETWEEN_KILLS), processes)
            victim = chance.randrange(PROCESSES)
            processes[victim].kill()
            processes[victim] = start(f"p{PROCESSES + kill}")
        ledger.wait_for_more(LINES_BETWEEN_KILLS, processes)

    published, settled = ledger.read("published"), ledger.read("settled")
    assert_sound(path)
    requests, answers, states = asyncio.run(take_everything(path, published | settled))

    assert settled, "nothing was settled: the test tests nothing"
    assert [one for one, count in (requests + answers).items() if count > 1] == []  # neither twice nor in both
    assert published <= requests.keys() | answers.keys()
    assert settled <= answers.keys()
    finished = {one for one, state in states.items() if state.is_final}
    assert finished == (published | settled) & answers.keys()


class Ledger:
    """What all processes noted, one line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[str]:
        text = self.path.read_text()
        return text[: text.rfind("\n") + 1].splitlines()  # the last line may be being written

    def read(self, what: str) -> set[str]:
        return {line.removeprefix(f"{what} ") for line in self.lines() if line.startswith(f"{what} ")}

    def wait_for_more(self, count: int, processes: list[subprocess.Popen[bytes]]) -> None:
        goal = len(self.lines()) + count
        deadline = time.monotonic() + PATIENCE
        while len(self.lines()) < goal:
            assert time.monotonic() < deadline, "the processes stand still"
            assert [one.poll() for one in processes] == [None] * len(processes), "a process ended by itself"
            time.sleep(0.005)


@contextmanager
def running(path: Path, ledger: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", PROCESS, str(path), str(ledger), name, str(LEASE)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        messages, bodies = (set(connection.execute(f"SELECT id FROM {table}")) for table in ("message", "body"))
        assert messages == bodies


async def take_everything(path: Path, task_ids: set[str]) -> tuple[Counter[str], Counter[str], dict[str, State]]:
    """All requests and answers that there are, with what the dead held, and the states."""
    broker, backend = SqliteBroker(path), SqliteBackend(path)
    await broker.open()
    await backend.open()
    taken = []
    for queue in ("requests", "answers"):
        found: Counter[str] = Counter()
        depth = await broker.depth(queue)
        async with asyncio.timeout(PATIENCE):
            while found.total() < depth.pending:
                found.update(one.body.decode() for one in await broker.fetch(queue, 500, 1.0))
        assert await broker.fetch(queue, 1, 0) == []
        taken.append(found)
    ids = sorted(task_ids)
    states = {one: state.state for one, state in zip(ids, await backend.get(ids), strict=True) if state is not None}
    assert states.keys() == task_ids
    await backend.close()
    await broker.close()
    return taken[0], taken[1], states
