"""The SQLite drivers keep the contracts on a real file, and what is theirs alone."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from asyncqueue.backends.base import Member, Progress
from asyncqueue.backends.sqlite import SqliteBackend
from asyncqueue.brokers.base import Ack, GroupEnd, Message, Settled, Unsettled
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.clock import Clock
from asyncqueue.connections import sqlite
from asyncqueue.connections.sqlite import APPLICATION_ID, SCHEMA_VERSION, Connection, Database, insert, path_from_url
from asyncqueue.errors import ConfigError, Refused, Unavailable
from asyncqueue.locks.sqlite import SqliteLock
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    ManualClock,
    MigratingContract,
    TurnLockContract,
)

PATIENCE = 30.0


class OnFile:
    """A file and a clock of each test's own, and another file that somebody else has locked."""

    clock: Clock

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[None]:
        self.path = tmp_path / "tasks.db"
        self.locked = tmp_path / "locked.db"
        self.clock = self.manual_clock = ManualClock()
        with closing(lock_exclusively(self.locked)):
            yield

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)


class BrokerOnFile(OnFile):
    async def make_broker(self) -> SqliteBroker:
        return SqliteBroker(self.path, lease=10.0, clock=self.clock)


class TestSqliteBroker(BrokerOnFile, BrokerContract):
    async def make_unreachable(self) -> SqliteBroker:
        return SqliteBroker(self.locked, busy_timeout=0.05)


class TestSqliteInspector(BrokerOnFile, InspectorContract):
    pass


class BackendOnFile(OnFile):
    async def make_backend(self, results_expire_in: float = 3600.0) -> SqliteBackend:
        return SqliteBackend(self.path, results_expire_in=results_expire_in, clock=self.clock)

    async def make_unreachable(self) -> SqliteBackend:
        return SqliteBackend(self.locked, busy_timeout=0.05)


class TestSqliteBackend(BackendOnFile, BackendContract):
    pass


class TestSqliteGroups(BackendOnFile, GroupContract):
    pass


class StoreOnFile(BrokerOnFile):
    async def make_backend(self) -> SqliteBackend:
        return SqliteBackend(self.path, clock=self.clock)


class TestSqliteJointStore(StoreOnFile, JointContract):
    pass


class TestSqliteJointGroups(StoreOnFile, JointGroupContract):
    pass


class LockOnFile(OnFile):
    async def make_lock(self) -> SqliteLock:
        return SqliteLock(self.path, clock=self.clock)

    async def make_unreachable(self) -> SqliteLock:
        return SqliteLock(self.locked, busy_timeout=0.05)


class TestSqliteLock(LockOnFile, LockContract):
    pass


class TestSqliteTurnLock(LockOnFile, TurnLockContract):
    pass


class TestSqliteMigrating(BackendOnFile, MigratingContract):
    async def make_driver(self) -> SqliteBackend:
        return await self.make_backend()


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Database]:
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def lock_exclusively(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def message(name: str, **fields: object) -> Message:
    return Message(name.encode(), "q", f"task_{name}", **fields)  # type: ignore[arg-type]  # fields of a Message


def count_groups_members_and_plans(connection: Connection) -> tuple[int, ...]:
    counts = [
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        for table in ("task_group", "group_member", "plan")
    ]
    return tuple(count for (count,) in counts)


def names_of_tables(connection: Connection) -> list[str]:
    return [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        if not name.startswith("sqlite_")
    ]


def write_lock(name: str, *, fails: bool = False) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        insert(connection, "INSERT INTO lock (name, token, ends_at) VALUES {}", [(name, "token", 1.0)])
        if fails:
            raise ValueError(name)
        return name

    return work


def names_of_locks(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM lock ORDER BY name")]


async def run_python(code: str, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


# the file


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///tasks.db", "tasks.db"),
        ("sqlite:////var/lib/tasks.db", "/var/lib/tasks.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("tasks.db", "tasks.db"),
        ("/var/lib/tasks.db", "/var/lib/tasks.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert path_from_url(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite://tasks.db",
        "sqlite://host/tasks.db",
        "sqlite:///tasks.db?timeout=1",
        "redis://host/0",
        ":memory:",
        "",
    ],
)
def test_a_url_without_a_file_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"e\.g\. sqlite:///tasks\.db"):
        path_from_url(url)


async def test_two_paths_to_one_file_are_one_store(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "tasks.db")
    async with opened(Database(tmp_path / "tasks.db")) as one, opened(Database(f"sqlite:///{tmp_path}/link.db")) as two:
        assert one.identity() == two.identity()
        async with opened(Database(tmp_path / "other.db")) as third:
            assert third.identity() != one.identity()


async def test_broker_and_backend_on_one_file_are_one_store(tmp_path: Path) -> None:
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    assert await broker.identity() == await backend.identity()
    await backend.close()
    await broker.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        await Database(tmp_path / "nowhere" / "tasks.db").open()


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        await Database(tmp_path).open()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc, where nobody may write")
async def test_a_folder_where_nobody_may_write_is_refused() -> None:
    with pytest.raises(Refused, match=r"/proc/tasks\.db"):
        await Database("/proc/tasks.db").open()


async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n" * 1000)
    with pytest.raises(Refused, match=r"notes\.txt: file is not a database"):
        await Database(path).open()
    assert path.read_text() == "buy milk\n" * 1000


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cart (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"shop\.db belongs to another program"):
        await Database(path).open()
    assert path.read_bytes() == before


async def test_tables_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Refused, match=rf"tasks\.db was made by a newer asyncqueue.* version {SCHEMA_VERSION + 1}"):
        await Database(path).open()


async def test_a_file_of_version_1_is_brought_forward_with_all_that_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = TaskState(task_uuid="task_done", state=State.SUCCESS)
    with monkeypatch.context() as of_old:
        of_old.setattr(sqlite, "_STEPS", sqlite._STEPS[:1])
        of_old.setattr(sqlite, "SCHEMA_VERSION", 1)
        broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
        await broker.open()
        await backend.open()
        await broker.publish([message("a"), message("b")])
        await broker.bury(await broker.fetch("q", 1, 0), "reason", "error")
        await backend.put([done])
        assert await broker._database.read(names_of_tables) == [
            "body",
            "dead",
            "lock",
            "message",
            "publication",
            "task_state",
        ]
        await backend.close()
        await broker.close()
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    assert await broker._database.read(lambda one: one.execute("PRAGMA user_version").fetchone()) == (SCHEMA_VERSION,)
    assert await backend.get(["task_done"]) == [done]
    assert [dead.body for dead in await broker.dead("q", 10)] == [b"a"]
    assert [one.body for one in await broker.fetch("q", 10, 0)] == [b"b"]
    await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=("task_done", "task_b"))])
    assert await backend.finish_members([Member("group_a", "task_b")]) == [Progress.COMPLETE]
    await backend.close()
    await broker.close()


async def test_many_may_bring_a_file_forward_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as of_old:
        of_old.setattr(sqlite, "_STEPS", sqlite._STEPS[:1])
        of_old.setattr(sqlite, "SCHEMA_VERSION", 1)
        async with opened(Database(tmp_path / "tasks.db")):
            pass
    backends = [SqliteBackend(tmp_path / "tasks.db") for _ in range(8)]
    await asyncio.gather(*(backend.open() for backend in backends))
    await asyncio.gather(
        *(backend.open_groups([GroupMeta(group_uuid=f"group_{n}")]) for n, backend in enumerate(backends))
    )
    assert None not in await backends[0].get_groups([f"group_{n}" for n in range(8)])
    await asyncio.gather(*(backend.close() for backend in backends))


async def test_the_file_is_durable_and_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:

        def pragma(connection: Connection) -> tuple[str, int]:
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
            return mode, synchronous

        assert await database.read(pragma) == ("wal", 2)  # 2 is FULL: every commit is on the disk


async def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    brokers = [SqliteBroker(tmp_path / "tasks.db") for _ in range(16)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    await asyncio.gather(*(broker.publish([message(str(n))]) for n, broker in enumerate(brokers)))
    assert (await brokers[0].depth("q")).ready == len(brokers)
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_many_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from asyncqueue.brokers.base import Message
from asyncqueue.brokers.sqlite import SqliteBroker
async def main():
    sys.stdin.readline()
    broker = SqliteBroker(sys.argv[1])
    await broker.open()
    await broker.publish([Message(b"x", "q", "task_x")])
    await broker.close()
asyncio.run(main())
"""
    path = str(tmp_path / "tasks.db")
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, path, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    results = await asyncio.wait_for(asyncio.gather(*(one.communicate(b"go\n") for one in processes)), PATIENCE)
    assert [(one.returncode, error.decode()) for one, (_, error) in zip(processes, results, strict=True)] == [
        (0, "")
    ] * 4
    async with opened(Database(path)) as database:
        assert await database.read(lambda one: one.execute("SELECT count(*) FROM message").fetchone()) == (4,)


async def test_a_file_that_stays_locked_is_unavailable_and_serves_again_afterwards(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db", busy_timeout=0.1)
    await broker.open()
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match=r"tasks\.db: database is locked"):
            await broker.publish([message("a")])
        other.execute("ROLLBACK")
    await broker.publish([message("b")])
    assert [one.body for one in await broker.fetch("q", 10, 0)] == [b"b"]
    await broker.close()


async def test_a_call_waits_for_another_writer(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db", busy_timeout=PATIENCE)
    await broker.open()
    with closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        publish = asyncio.create_task(broker.publish([message("a")]))
        await asyncio.sleep(0)
        other.execute("COMMIT")
    await asyncio.wait_for(publish, PATIENCE)
    await broker.close()


async def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([message("a")])

    def limit(connection: Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")  # as SQLite itself tests a full disk

    await broker._database.read(limit)
    with pytest.raises(Unavailable, match="full"):
        await broker.publish([Message(b"x" * 1_000_000, "q", "task_big")])
    await broker.publish([message("b")])
    assert [one.body for one in await broker.fetch("q", 10, 0)] == [b"a", b"b"]
    await broker.close()


async def test_after_a_fork_an_instance_of_the_parent_is_refused(tmp_path: Path) -> None:
    code = """
import asyncio, os, sys, warnings
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.errors import Refused
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads, which this is about
broker = SqliteBroker(sys.argv[1])
async def in_child():
    try:
        await broker.fetch("q", 1, 0)
    except Refused as error:
        await broker.close()
        return 0 if "after a fork, open a new instance" in str(error) else 1
    return 2
with asyncio.Runner() as parent:
    parent.run(broker.open())
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(in_child()))
    _, status = os.waitpid(child, 0)
    parent.run(broker.fetch("q", 1, 0))
    parent.run(broker.close())
sys.exit(os.waitstatus_to_exitcode(status))
"""
    process = await run_python(code, str(tmp_path / "tasks.db"))
    _, error = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, error.decode()) == (0, "")


# calls that share a transaction


async def test_calls_that_queue_up_share_a_transaction(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:
        before = database.version
        await asyncio.gather(*(database.write(write_lock(f"lock {n:02}")) for n in range(50)))
        assert len(await database.read(names_of_locks)) == 50
        assert database.version - before < 10


async def test_a_call_that_fails_takes_none_of_the_others_down(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:
        results = await asyncio.gather(
            database.write(write_lock("a")),
            database.write(write_lock("b", fails=True)),
            database.write(write_lock("c")),
            database.write(write_lock("a")),  # a name that is taken: SQLite's own error
            database.write(write_lock("d")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [str, ValueError, str, Refused, str]
        assert await database.read(names_of_locks) == ["a", "c", "d"]


async def test_a_call_that_fails_alone_leaves_no_trace(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:
        with pytest.raises(ValueError, match="a"):
            await database.write(write_lock("a", fails=True))
        assert await database.read(names_of_locks) == []


async def test_a_transaction_that_fails_as_a_whole_is_tried_again_call_by_call(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:

        def give_up(connection: Connection) -> None:
            connection.execute("INSERT OR ROLLBACK INTO lock (name, token, ends_at) VALUES ('a', 'token', NULL)")

        results = await asyncio.gather(
            database.write(write_lock("a")),
            database.write(give_up),
            database.write(write_lock("b")),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [str, Refused, str]
        assert await database.read(names_of_locks) == ["a", "b"]


async def test_a_call_whose_caller_went_away_before_its_turn_is_not_made(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:
        is_busy, may_end = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def keep_busy(_: Connection) -> None:
            loop.call_soon_threadsafe(is_busy.set)
            assert may_end.wait(PATIENCE)

        busy = asyncio.create_task(database.read(keep_busy))
        await is_busy.wait()
        gone, stays = (asyncio.create_task(database.write(write_lock(name))) for name in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        may_end.set()
        await asyncio.gather(busy, stays)
        assert await database.read(names_of_locks) == ["stays"]


async def test_a_change_before_the_waiting_began_is_not_waited_for(tmp_path: Path) -> None:
    async with opened(Database(tmp_path / "tasks.db")) as database:
        seen = database.version
        await database.write(write_lock("a"))
        assert await asyncio.wait_for(database.changed(seen, 10 * PATIENCE), PATIENCE)


async def test_calls_are_served_while_a_fetch_waits(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    waiting = asyncio.create_task(broker.fetch("q", 1, PATIENCE))
    await broker.publish([Message(b"other", "other", "task_other")])
    (delivery,) = await broker.fetch("other", 1, 0)
    await broker.ack([delivery])
    assert not waiting.done()
    await broker.publish([message("a")])
    assert [one.body for one in await asyncio.wait_for(waiting, PATIENCE)] == [b"a"]
    await broker.close()


async def test_closing_ends_a_fetch_that_waits(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    waiting = asyncio.create_task(broker.fetch("q", 1, PATIENCE))
    await broker.publish([Message(b"other", "other", "task_other")])
    await broker.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_another_process_wakes_a_fetch_and_a_watcher(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from asyncqueue.brokers.base import Ack, GroupEnd, Message, Settled, Unsettled
from asyncqueue.brokers.sqlite import SqliteBroker
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, State, TaskState
async def main():
    broker = SqliteBroker(sys.argv[1])
    await broker.open()
    (delivery,) = await broker.fetch("requests", 1, 30.0)
    state = TaskState(task_uuid="task_a", state=State.SUCCESS)
    answer = Message(b"answer", "answers", "task_b")
    await broker.settle([Settled(delivery, Ack(), state=state, publish=(answer,))], 3600.0)
    await broker.close()
asyncio.run(main())
"""
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    await backend.begin([TaskState(task_uuid="task_a")])

    async def watch() -> list[tuple[str, TaskState | None]]:
        return [ending async for ending in backend.watch(["task_a"])]

    process = await run_python(code, str(tmp_path / "tasks.db"))
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        answer = group.create_task(broker.fetch("answers", 1, PATIENCE))
        await broker.publish([Message(b"request", "requests", "task_a")])
    _, error = await process.communicate()
    assert error.decode() == ""
    assert [(task_id, state and state.state) for task_id, state in watching.result()] == [("task_a", State.SUCCESS)]
    assert [one.body for one in answer.result()] == [b"answer"]
    await backend.close()
    await broker.close()


# messages


async def test_what_came_back_is_shown_before_what_is_more_urgent(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = SqliteBroker(tmp_path / "tasks.db", lease=5.0, clock=clock)
    await broker.open()
    await broker.publish([message("given back"), message("lost")])
    given_back, lost = await broker.fetch("q", 2, 0)
    await broker.publish([message("urgent", priority=255)])
    await broker.nack([given_back])
    clock.advance(5.0)
    assert await broker.peek("q", 10) == [b"lost", b"given back", b"urgent"]
    assert [one.body for one in await broker.fetch("q", 10, 0)] == [b"lost", b"given back", b"urgent"]
    assert await broker.extend([lost]) == [lost]
    await broker.close()


async def test_what_was_given_back_last_is_next(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([message(name) for name in "abcd"])
    a, b, c, d = await broker.fetch("q", 4, 0)
    await broker.nack([c, a])
    await broker.nack([b, d])
    assert [one.body for one in await broker.fetch("q", 4, 0)] == [b"b", b"d", b"c", b"a"]
    await broker.close()


async def test_what_was_given_back_with_a_delay_is_not_in_front_any_more(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = SqliteBroker(tmp_path / "tasks.db", clock=clock)
    await broker.open()
    await broker.publish([message("a"), message("urgent", priority=1)])
    urgent, a = await broker.fetch("q", 2, 0)
    await broker.nack([a])
    (a,) = await broker.fetch("q", 1, 0)
    await broker.nack([a, urgent], delay=1.0)
    clock.advance(1.0)
    assert [one.body for one in await broker.fetch("q", 2, 0)] == [b"urgent", b"a"]
    await broker.close()


async def test_a_worker_that_nobody_missed_goes_on_after_its_lease(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = SqliteBroker(tmp_path / "tasks.db", lease=5.0, clock=clock)
    await broker.open()
    await broker.publish([message("a")])
    (delivery,) = await broker.fetch("q", 1, 0)
    clock.advance(60.0)  # the machine slept
    assert (await broker.depth("q")).ready == 1
    assert await broker.extend([delivery]) == []
    assert await broker.fetch("q", 1, 0) == []
    await broker.close()


async def test_ids_that_begin_anew_confuse_no_receipt(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([message("a")])
    (first,) = await broker.fetch("q", 1, 0)
    await broker.ack([first])
    await broker.publish([message("b")])  # the table was empty, so this row has the number of the first
    (second,) = await broker.fetch("q", 1, 0)
    await broker.ack([first])
    assert await broker.extend([second]) == []
    await broker.close()


async def test_a_token_is_known_for_a_minute_and_then_forgotten(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = SqliteBroker(tmp_path / "tasks.db", clock=clock)
    await broker.open()
    await broker.publish([message("a", token="token")])
    clock.advance(60.0)
    await broker.publish([message("a", token="token")])
    assert (await broker.depth("q")).ready == 1
    clock.advance(120.0)
    await broker.publish([message("b", token="other")])
    count = await broker._database.read(lambda one: one.execute("SELECT count(*) FROM publication").fetchone())
    assert count == (1,)
    await broker.close()


async def test_more_bytes_than_one_value_may_have_are_taken_in_smaller_portions(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([Message(bytes([n]) * 1000, "q", f"task_{n}") for n in range(10)])
    await broker._database.read(lambda one: one.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 5_500))
    taken = list(await broker.fetch("q", 10, 0))
    assert 1 <= len(taken) <= 5
    while some := await broker.fetch("q", 10, 0):
        taken += some
    assert [one.body for one in taken] == [bytes([n]) * 1000 for n in range(10)]
    await broker.close()


async def test_a_fetch_of_none_takes_none(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([message("a")])
    assert await broker.fetch("q", 0, PATIENCE) == []
    assert await broker.fetch("q", -1, PATIENCE) == []
    await broker.close()


async def test_bodies_of_no_bytes_come_back(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    await broker.publish([Message(body, "q", "task") for body in (b"", b"", b"a", b"")])
    assert [one.body for one in await broker.fetch("q", 2, 0)] == [b"", b""]
    assert [one.body for one in await broker.fetch("q", 2, 0)] == [b"a", b""]
    await broker.close()


async def test_settling_a_delivery_twice_in_one_batch_applies_the_first(tmp_path: Path) -> None:
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    await broker.publish([message("a")])
    (delivery,) = await broker.fetch("q", 1, 0)
    success, failure = (TaskState(task_uuid=f"task_{state}", state=state) for state in (State.SUCCESS, State.FAILURE))
    await broker.settle([Settled(delivery, Ack(), state=success), Settled(delivery, Ack(), state=failure)], 3600.0)
    assert await backend.get(["task_SUCCESS", "task_FAILURE"]) == [success, None]
    await backend.close()
    await broker.close()


async def test_whom_an_end_fails_counts_for_those_who_come_after_it_in_the_batch(tmp_path: Path) -> None:
    """What follows the inner group is a member of the outer one, and is failed while the other member ends."""
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    inner = GroupMeta(group_uuid="inner", task_uuids=("task_a",))
    outer = GroupMeta(group_uuid="outer", task_uuids=("task_callback", "task_b"))
    await broker.submit([], [message("a"), message("b")], 3600.0, groups=[inner, outer])
    a, b = await broker.fetch("q", 2, 0)
    failed, done = (
        TaskState(task_uuid="task_a", state=State.FAILURE),
        TaskState(task_uuid="task_b", state=State.SUCCESS),
    )
    end = GroupEnd("inner", ended=(TaskState(task_uuid="task_callback", state=State.FAILURE),))
    last = Settled(b, Ack(), state=done, member=Member("outer", "task_b"))
    batch = [Settled(a, Ack(), state=failed, member=Member("inner", "task_a"), end=end), last]
    assert await broker.settle(batch, 3600.0) == [Unsettled(last, Progress.COMPLETE)]
    await broker.close()


async def test_a_submit_that_was_partly_made_before_takes_back_no_state(tmp_path: Path) -> None:
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    first, second = message("a", token="a"), message("b", token="b")
    pending = [TaskState(task_uuid=one.id) for one in (first, second)]
    await broker.submit(pending[:1], [first], 3600.0)
    success = TaskState(task_uuid=first.id, state=State.SUCCESS)
    await backend.put([success])
    await broker.submit(pending, [first, second], 3600.0)
    assert await backend.get([first.id, second.id]) == [success, pending[1]]
    assert (await broker.depth("q")).ready == 2
    await backend.close()
    await broker.close()


async def test_a_submit_that_was_partly_made_before_takes_back_no_state_of_what_comes_later(tmp_path: Path) -> None:
    """A callback has no message of its own in the call that sends its group."""
    broker, backend = SqliteBroker(tmp_path / "tasks.db"), SqliteBackend(tmp_path / "tasks.db")
    await broker.open()
    await backend.open()
    first, second = message("a", token="a"), message("b", token="b")
    pending = [TaskState(task_uuid=name) for name in ("task_a", "task_callback", "task_b", "task_later")]
    await broker.submit(pending[:2], [first], 3600.0)
    success = TaskState(task_uuid="task_callback", state=State.SUCCESS)
    await backend.put([success])
    await broker.submit(pending, [first, second], 3600.0)
    assert await backend.get([one.task_uuid for one in pending]) == [pending[0], success, *pending[2:]]
    await backend.close()
    await broker.close()


async def test_a_member_is_counted_at_the_same_cost_in_a_group_of_10_and_of_10_000(tmp_path: Path) -> None:
    """The cost is the work of SQLite's machine, in hundreds of its instructions."""
    broker = SqliteBroker(tmp_path / "tasks.db")
    await broker.open()
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    async def cost_of_one_in(size: int) -> int:
        nonlocal steps
        queue, names = f"q{size}", [f"task_{size}_{n:05}" for n in range(size)]
        await broker.submit(
            [TaskState(task_uuid=name) for name in names],
            [Message(b"a", queue, name) for name in names],
            3600.0,
            groups=[GroupMeta(group_uuid=f"group_{size}", task_uuids=tuple(names))],
        )
        costs = []
        for name in (names[size // 2], names[-1], names[0]):  # neither the order nor the first one makes it cheap
            (delivery,) = await broker.fetch(queue, 1, 0)
            done = TaskState(task_uuid=name, state=State.SUCCESS)
            await broker._database.read(lambda one: one.set_progress_handler(step, 100))
            steps = 0
            await broker.settle([Settled(delivery, Ack(), state=done, member=Member(f"group_{size}", name))], 3600.0)
            costs.append(steps)
            await broker._database.read(lambda one: one.set_progress_handler(None, 0))
        return max(costs)

    small, big = await cost_of_one_in(10), await cost_of_one_in(10_000)
    assert 0 < big <= small + 2  # a B-tree of more levels takes a few more
    await broker.close()


async def test_members_that_others_ended_are_passed_once(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "tasks.db")
    await backend.open()
    names = [f"task_{n}" for n in range(10)]
    await backend.open_groups([GroupMeta(group_uuid="group_a", task_uuids=tuple(names))])
    await backend.put([TaskState(task_uuid=name, state=State.SUCCESS) for name in names[:8]])
    assert await backend.finish_members([Member("group_a", "task_9")]) == [Progress.WAITING]
    left = await backend._database.read(
        lambda one: one.execute("SELECT task_uuid FROM group_member WHERE is_unfinished").fetchall()
    )
    assert left == [("task_8",)]
    await backend.close()


async def test_expired_groups_and_plans_are_swept_away_by_those_who_write(tmp_path: Path) -> None:
    clock = ManualClock()
    backend = SqliteBackend(tmp_path / "tasks.db", results_expire_in=10.0, clock=clock)
    await backend.open()
    await backend.open_groups([GroupMeta(group_uuid=f"group_{n}", task_uuids=("task_a", "task_b")) for n in range(2)])
    await backend.put_plans([Plan(f"plan_{n}", (), ("task_a",)) for n in range(2)])
    clock.advance(10.0)
    await backend.open_groups([GroupMeta(group_uuid="group_new", task_uuids=("task_c",))])
    await backend.put_plans([Plan("plan_new", (), ())])
    counts = await backend._database.read(count_groups_members_and_plans)
    assert counts == (1, 1, 1)
    await backend.close()


@pytest.mark.parametrize("verb", ["begin", "put"])
async def test_expired_states_are_swept_away_by_those_who_write(tmp_path: Path, verb: str) -> None:
    clock = ManualClock()
    backend = SqliteBackend(tmp_path / "tasks.db", results_expire_in=10.0, clock=clock)
    await backend.open()
    await backend.put([TaskState(task_uuid=f"task_{n}", state=State.SUCCESS) for n in range(4)])
    clock.advance(10.0)
    await getattr(backend, verb)([TaskState(task_uuid=f"task_new_{n}") for n in range(2)])
    count = await backend._database.read(lambda one: one.execute("SELECT count(*) FROM task_state").fetchone())
    assert count == (2,)
    await backend.close()


async def test_tending_sweeps_expired_groups_and_plans_away(tmp_path: Path) -> None:
    clock = ManualClock()
    broker, backend = (
        SqliteBroker(tmp_path / "tasks.db", clock=clock),
        SqliteBackend(tmp_path / "tasks.db", clock=clock),
    )
    await broker.open()
    await backend.open()
    await backend.open_groups([GroupMeta(group_uuid=f"group_{n}", task_uuids=("task_a", "task_b")) for n in range(4)])
    await backend.put_plans([Plan(f"plan_{n}", (), ("task_a",)) for n in range(4)])
    clock.advance(backend.results_expire_in)
    await broker.tend([])
    assert await broker._database.read(count_groups_members_and_plans) == (0, 0, 0)
    await backend.close()
    await broker.close()


async def test_tending_sweeps_expired_states_away(tmp_path: Path) -> None:
    clock = ManualClock()
    broker, backend = (
        SqliteBroker(tmp_path / "tasks.db", clock=clock),
        SqliteBackend(tmp_path / "tasks.db", clock=clock),
    )
    await broker.open()
    await backend.open()
    await backend.put([TaskState(task_uuid=f"task_{n}", state=State.SUCCESS) for n in range(4)])
    clock.advance(backend.results_expire_in)
    await broker.tend([])
    count = await broker._database.read(lambda one: one.execute("SELECT count(*) FROM task_state").fetchone())
    assert count == (0,)
    await backend.close()
    await broker.close()


def test_no_statement_numbers_its_parameters() -> None:
    # Python 3.12.0 to 3.12.3 take those for named ones, and warn that no sequence will do for these
    files = [*Path(sqlite.__file__).parents[1].glob("*/sqlite*.py")]
    assert len(files) > 5
    assert [each.name for each in files if re.search(r"\?\d", each.read_text())] == []
