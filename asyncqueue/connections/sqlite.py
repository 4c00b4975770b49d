"""One SQLite file, reached through one thread.

Every statement of a ``Database`` runs on its own thread, so the event loop never waits for a disk. Calls that queue up
while a transaction is under way share the next one: with ``synchronous=FULL`` a commit costs a flush of the disk
whether it carries one call or fifty, and that is what makes this fast.

Python's global lock is given up at every step of a statement, and a busy event loop takes milliseconds to give it
back. So a call here should be a few statements, whatever the number of rows: ``insert`` for many rows in one
statement, ``json_each`` to pass many keys, aggregates to get many rows as one.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar
from urllib.parse import unquote

from pydantic_core import PydanticSerializationError, to_json

from asyncqueue.errors import ConfigError, Refused, Unavailable

T = TypeVar("T")

Connection = sqlite3.Connection
"""What the work of a call is given. It belongs to the thread: nothing of it may leave the call."""

TooBig = sqlite3.DataError
"""What SQLite raises for a value over its limit, which is 1 GB unless it was built otherwise."""

APPLICATION_ID: Final = 0x61737171  # "asqq": what makes a file ours
BUSY_TIMEOUT: Final = 10.0
SHORTEST_POLL: Final = 0.002
LONGEST_POLL: Final = 0.050

# Each file of statements brings the tables from one version to the next, from 0: an empty file.
_STEPS: Final = tuple(Path(__file__).with_name(name) for name in ("sqlite_1_tasks.sql", "sqlite_2_groups.sql"))
SCHEMA_VERSION: Final = len(_STEPS)

_OLDEST = (3, 37, 0)  # STRICT tables
_MOST_ROWS = 128  # of one INSERT: far below SQLite's limit of 32 766 parameters
_GROWTH = 1.5
_NAP = 0.010

# Waiting and trying again can help with these. BUSY and LOCKED: somebody else writes. The rest: the machine is short
# of something.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_CANTOPEN,
    }
)


def path_from_url(url: str) -> str:
    """The file that a URL names: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; a plain path is returned
    as it is.

    Raises ``ConfigError`` for another scheme, a host, options, or no file.
    """
    scheme, separator, rest = url.partition("://")
    path = url
    if separator:
        host, slash, path = rest.partition("/")
        if scheme.lower() != "sqlite" or host or not slash or "?" in path:
            raise ConfigError(f"{url!r}: a SQLite URL has three slashes and a file, e.g. sqlite:///tasks.db")
        path = unquote(path)
    if not path or path == ":memory:":
        raise ConfigError(f"{url!r} names no file, e.g. sqlite:///tasks.db; for a queue in memory use memory://")
    return path


def as_table(keys: Iterable[Any]) -> str:
    """Keys, or tuples of keys, as one parameter for ``json_each(?)``, whose column ``value`` then holds them.

    Raises ``Refused`` for text that UTF-8 cannot say.
    """
    try:
        return to_json(list(keys)).decode()
    except PydanticSerializationError as exc:
        raise Refused(f"SQLite cannot hold this name: {exc}") from exc


def insert(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]], *more: Any) -> None:
    """Insert rows with as few statements as can be; ``statement`` has ``{}`` where the rows go, and ``more`` are its
    parameters after them.

    The rows are split in powers of two, so that few different statements have to be compiled and kept.
    """
    start = 0
    while start < len(rows):
        count = min(_MOST_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
        some = rows[start : start + count]
        connection.execute(_with_rows(statement, count, len(some[0])), [*chain.from_iterable(some), *more])
        start += count


class OnFile:
    """A broker, backend or lock in a SQLite file: ``Migrating``, and somewhere."""

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float) -> None:
        self._database = Database(path, busy_timeout=busy_timeout)

    @property
    def address(self) -> str:
        return self._database.path

    async def missing(self) -> Sequence[str]:
        return await self._database.missing()

    async def migrate(self) -> Sequence[str]:
        return await self._database.migrate()


class Database:
    """One file and the thread that all its statements run on. Belongs to one event loop and one process.

    ``busy_timeout`` is how long (seconds) a call waits for other writers before it raises ``Unavailable``.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = os.path.abspath(path_from_url(os.fspath(path)))
        self.busy_timeout = busy_timeout
        self.version = 0
        """Grows with every commit to the file that this instance made or noticed. Others' commits are noticed at
        every call, and within ``LONGEST_POLL`` while somebody waits in ``changed``."""
        self._identity: Hashable = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[Hashable] | None = None
        self._process = 0
        self._jobs: _Jobs = SimpleQueue()
        self._waiting: set[asyncio.Future[None]] = set()
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are served."""
        return (
            self._thread is not None
            and self._opened is not None
            and self._opened.done()
            and self._process == os.getpid()
        )

    def identity(self) -> Hashable:
        """Which file this is: equal for everything that has it open, by whatever path."""
        if self._identity is None:
            raise self._closed()
        return self._identity

    async def open(self) -> None:
        """Open the file, and make it and its tables where they are missing. Twice is no harm.

        Raises ``ConfigError`` where the folder is missing, ``Refused`` where the file is not for us,
        ``Unavailable`` where it stays locked.
        """
        if self._thread is not None and self._opened is not None:
            self._check_process()
            await asyncio.shield(self._opened)
            return
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._jobs = SimpleQueue()
        self._opened = self._loop.create_future()
        session = _Session(self, self._loop, self._jobs)
        # A daemon: a process that ends without close() must not hang, and a transaction cut short leaves no trace.
        self._thread = threading.Thread(
            target=session.run, args=(self._opened,), name=f"sqlite {self.path}", daemon=True
        )
        self._thread.start()
        try:
            self._identity = await asyncio.shield(self._opened)
        except BaseException:
            self._jobs.put(_Signal.STOP)
            self._thread = None
            raise

    async def close(self) -> None:
        """Finish what was called and let go of the file; who waits in ``changed`` gets ``Unavailable``. Twice is no
        harm."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None:
            return
        if self._process != os.getpid():
            return  # the thread is in the process that opened it
        self._wake(self._closed())
        self._jobs.put(_Signal.STOP)
        await self._loop.run_in_executor(None, thread.join)

    async def missing(self) -> Sequence[str]:
        """See ``Migrating``. No file is made."""
        return await asyncio.to_thread(_missing, self.path, self.busy_timeout)

    async def migrate(self) -> Sequence[str]:
        """See ``Migrating``; ``open`` does the same."""
        missing = await self.missing()
        if missing:
            other = Database(self.path, busy_timeout=self.busy_timeout)
            await other.open()
            await other.close()
        return missing

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on the thread, in a transaction that only reads."""
        return await self._call(work, writes=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on the thread, in a transaction that is on the disk when this returns.

        It may share the transaction with other calls. Where ``work`` raises, what it did is undone, and nothing else.
        It may run more than once, so it must not change anything but the file.
        """
        return await self._call(work, writes=True)

    async def changed(self, seen: int, timeout: float) -> bool:
        """Wait until ``version`` is not ``seen`` any more, at most ``timeout`` seconds; False if the time is over.

        Raises ``Unavailable`` when the file is closed.
        """
        change: asyncio.Future[None] = self._require_open().create_future()
        # Register first, look second: no change is lost between.
        self._waiting.add(change)
        try:
            if self.version != seen:
                return True
            self._jobs.put(_Signal.LOOK)
            async with asyncio.timeout(timeout):
                await change
        except TimeoutError:
            return self.version != seen
        finally:
            self._waiting.discard(change)
        return True

    async def _call(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        loop = self._require_open()
        result: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, writes, result))
        return await result

    def _require_open(self) -> asyncio.AbstractEventLoop:
        if self._thread is None or self._loop is None or self._opened is None or not self._opened.done():
            raise self._closed()
        self._check_process()
        return self._loop

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise Refused(
                f"SQLite file {self.path} was opened by process {self._process} and is used by process {os.getpid()}: "
                "after a fork, open a new instance"
            )

    def _closed(self) -> Unavailable:
        return Unavailable(f"SQLite file {self.path} is not open")

    def _wake(self, error: Exception | None = None) -> None:
        for change in self._waiting:
            if change.done():
                continue
            if error is None:
                change.set_result(None)
            else:
                change.set_exception(error)


class _Signal(Enum):
    LOOK = auto()  # somebody waits for a change
    STOP = auto()


@dataclass(frozen=True, slots=True, eq=False)
class _Job(Generic[T]):
    work: Callable[[Connection], T]
    writes: bool
    future: asyncio.Future[T]


_Jobs = SimpleQueue[_Job[Any] | _Signal]
_Outcome = tuple[Any, Exception | None]


class _Session:
    """What happens on the thread: calls in, one transaction for all that are there, results out."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop, jobs: _Jobs) -> None:
        self._database = database
        self._loop = loop
        self._jobs = jobs
        self._data_version = 0
        self._connection: Connection

    def run(self, opened: asyncio.Future[Hashable]) -> None:
        try:
            self._connection = _connect(self._database.path, self._deadline(), self._loop.time)
            status = os.stat(self._database.path)
        except Exception as exc:
            self._tell(_set, opened, None, _translated(exc, self._database.path))
            return
        self._tell(_set, opened, ("sqlite", status.st_dev, status.st_ino), None)
        try:
            self._serve()
        finally:
            self._connection.close()

    def _serve(self) -> None:
        poll, stop = SHORTEST_POLL, False
        while not stop:
            seen = self._database.version
            jobs: list[_Job[Any]] = []
            try:
                jobs, stop = self._take(poll if self._database._waiting else None)
            except Empty:
                poll = min(poll * _GROWTH, LONGEST_POLL)
            if jobs:
                self._answer(jobs)
            else:
                self._look()
            if self._database.version != seen:
                poll = SHORTEST_POLL

    def _take(self, timeout: float | None) -> tuple[list[_Job[Any]], bool]:
        """All calls that are there, and whether to stop after them; raises ``Empty`` after ``timeout``."""
        items = [self._jobs.get(timeout=timeout)]
        with suppress(Empty):  # which says that we have them all
            while True:
                items.append(self._jobs.get_nowait())
        jobs = [item for item in items if isinstance(item, _Job) and not item.future.cancelled()]
        return jobs, _Signal.STOP in items

    def _answer(self, jobs: list[_Job[Any]]) -> None:
        """Run these in one transaction, or, where that fails as a whole, each in its own."""
        deadline = self._deadline()
        while True:
            try:
                outcomes = self._transaction(jobs)
                break
            except Exception as exc:
                with suppress(sqlite3.Error):  # nothing to roll back: SQLite did it itself
                    self._connection.execute("ROLLBACK")
                if _is_busy(exc) and self._loop.time() < deadline:
                    continue
                if len(jobs) > 1 and not _is_busy(exc):
                    for job in jobs:
                        self._answer([job])
                    return
                outcomes = [(None, _translated(exc, self._database.path))] * len(jobs)
                break
        self._tell(_set_all, [job.future for job in jobs], outcomes)

    def _transaction(self, jobs: list[_Job[Any]]) -> list[_Outcome]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE" if any(job.writes for job in jobs) else "BEGIN")
        changes = connection.total_changes
        self._look()  # from here on ``version`` is what the calls see
        run = self._isolated if len(jobs) > 1 else self._alone
        outcomes = [run(job) for job in jobs]
        connection.execute("COMMIT")
        if connection.total_changes != changes:
            self._note_change()
        return outcomes

    def _alone(self, job: _Job[Any]) -> _Outcome:
        return job.work(self._connection), None

    def _isolated(self, job: _Job[Any]) -> _Outcome:
        connection = self._connection
        connection.execute("SAVEPOINT call")
        try:
            outcome: _Outcome = (job.work(connection), None)
        except Exception as exc:
            if not connection.in_transaction:
                raise  # SQLite gave up the whole transaction, e.g. because the disk is full
            connection.execute("ROLLBACK TO call")
            outcome = (None, _translated(exc, self._database.path))
        connection.execute("RELEASE call")
        return outcome

    def _look(self) -> None:
        """Note it if others committed since the last look."""
        try:
            (data_version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            self._note_change()  # who waits makes a call then, and gets the error
            return
        if data_version != self._data_version:
            self._data_version = data_version
            self._note_change()

    def _note_change(self) -> None:
        self._database.version += 1
        if self._database._waiting:
            self._tell(self._database._wake)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _deadline(self) -> float:
        return self._loop.time() + self._database.busy_timeout


def _set(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return  # cancelled meanwhile
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _set_all(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[_Outcome]) -> None:
    for future, (value, error) in zip(futures, outcomes, strict=True):
        _set(future, value, error)


def _connect(path: str, deadline: float, monotonic: Callable[[], float]) -> Connection:
    """The file, opened and checked, with its tables."""
    _check_place(path)
    try:
        # Waiting for other writers is ours (see ``_is_busy``): SQLite's own naps grow to 100 ms, ours stay below 10.
        connection = sqlite3.connect(path, timeout=_NAP, isolation_level=None, cached_statements=512)
    except sqlite3.OperationalError as exc:
        raise Refused(f"SQLite file {path}: {exc}; may this user write in {os.path.dirname(path)}?") from exc
    try:
        while True:
            try:
                _prepare(connection, path)
                return connection
            except sqlite3.OperationalError as exc:
                with suppress(sqlite3.Error):  # there was no transaction
                    connection.execute("ROLLBACK")
                if not _is_busy(exc) or monotonic() >= deadline:
                    raise
    except BaseException:
        connection.close()
        raise


def _check_place(path: str) -> None:
    if sqlite3.sqlite_version_info < _OLDEST:
        raise ConfigError(f"SQLite {'.'.join(map(str, _OLDEST))} is needed; this Python has {sqlite3.sqlite_version}")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"SQLite file {path}: the folder {folder} does not exist")
    if os.path.isdir(path):
        raise ConfigError(f"SQLite file {path} is a folder")


def _missing(path: str, busy_timeout: float) -> Sequence[str]:
    """What ``_prepare`` would make, a line for each thing."""
    _check_place(path)
    version = 0
    if os.path.exists(path):
        try:
            with closing(sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)) as connection:
                version = _check_is_ours(connection, path)
        except sqlite3.Error as exc:
            raise _translated(exc, path) from exc
    if version == SCHEMA_VERSION:
        return ()
    return (f"tables of version {SCHEMA_VERSION}" + (f", in place of version {version}" if version else ""),)


def _prepare(connection: Connection, path: str) -> None:
    connection.execute("BEGIN")
    _check_is_ours(connection, path)
    connection.execute("COMMIT")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Refused(f"SQLite file {path}: its file system allows no write-ahead log (is it a network folder?)")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -32768")  # KiB
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("BEGIN IMMEDIATE")
    version = _check_is_ours(connection, path)  # another process may have been faster
    for step in _STEPS[version:]:
        for statement in step.read_text(encoding="utf-8").split(";\n"):
            connection.execute(statement)
    if version < SCHEMA_VERSION:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _check_is_ours(connection: Connection, path: str) -> int:
    """The version of the tables, 0 for an empty file; raises ``Refused`` where the file is not for us."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == APPLICATION_ID and version <= SCHEMA_VERSION:
        return int(version)
    if application == APPLICATION_ID:
        raise Refused(
            f"SQLite file {path} was made by a newer asyncqueue: its tables have version {version}, "
            f"this one knows up to {SCHEMA_VERSION}"
        )
    if tables or version:
        raise Refused(f"SQLite file {path} belongs to another program; asyncqueue wants a file of its own")
    return 0


def _is_busy(exc: Exception) -> bool:
    """Whether another connection is writing just now; everything was rolled back, and the same can be tried again."""
    return _code(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(exc: Exception) -> int:
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF  # the rest says which kind of BUSY, IOERR, …


def _translated(exc: Exception, path: str) -> Exception:
    match exc:
        case sqlite3.Error():
            kind = Unavailable if _code(exc) in _PASSING else Refused
            error: Exception = kind(f"SQLite file {path}: {exc}")
        case OverflowError() | UnicodeEncodeError():
            error = Refused(f"SQLite file {path} cannot hold this value: {exc}")
        case _:
            return exc
    error.__cause__ = exc
    return error


@lru_cache(maxsize=512)
def _with_rows(statement: str, rows: int, columns: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return statement.format(",".join([row] * rows))
