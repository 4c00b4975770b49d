"""A log of what was sent, kept by the store itself: not what ran, and not what a sender says of it."""

from __future__ import annotations

import asyncio
import re
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from tests.path.bench import Stores

DEADLINE = 30.0


class SendLog(Protocol):
    """What was put into the queues of one store since the log was opened."""

    async def counts(self) -> Counter[str]:
        """How often a message of each task was put into a queue. What is shown again does not count."""


@asynccontextmanager
async def send_log(stores: Stores) -> AsyncIterator[SendLog]:
    """The log of a broker on Redis or SQLite, whose file exists."""
    if stores.broker.startswith("sqlite"):
        yield _SqliteLog(urlsplit(stores.broker).path)
        return
    log = await asyncio.to_thread(RedisLog, stores.broker)
    try:
        yield log
    finally:
        await asyncio.to_thread(log.close)


class _SqliteLog:
    """A trigger on the table of messages. A message that is shown again, or given back, is not inserted anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        with closing(sqlite3.connect(path, timeout=DEADLINE)) as connection, connection:
            connection.execute("CREATE TABLE sent (task_uuid TEXT NOT NULL)")
            connection.execute(
                "CREATE TRIGGER log_of_sends AFTER INSERT ON message"
                " BEGIN INSERT INTO sent (task_uuid) VALUES (new.task_uuid); END"
            )

    async def counts(self) -> Counter[str]:
        return await asyncio.to_thread(self._counts)

    def _counts(self) -> Counter[str]:
        with closing(sqlite3.connect(self._path, timeout=DEADLINE)) as connection:
            return Counter(task_id for (task_id,) in connection.execute("SELECT task_uuid FROM sent"))


class RedisLog:
    """A connection that MONITORs: it is shown every command, those of scripts too.

    A message is sent with RPUSH, as a bare signature. What comes back to a queue is put at its head with LPUSH, or
    into another list with a number before it.
    """

    _SENT = re.compile(rb' "\{\\"UUID\\":\\"([^"\\]+)\\"')

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._of_database = f" [{parts.path.strip('/') or 0} ".encode()
        self._of_scripts = self._of_database + b"lua] "
        self._sent: Counter[str] = Counter()
        self._marks: dict[bytes, threading.Event] = {}
        self._connection = socket.create_connection(self._address, timeout=DEADLINE)
        self._connection.sendall(b"MONITOR\r\n")
        assert self._connection.recv(5) == b"+OK\r\n"
        self._connection.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    async def counts(self) -> Counter[str]:
        await asyncio.to_thread(self._catch_up)
        return self._sent.copy()

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._connection.close()

    def _catch_up(self) -> None:
        """Wait until the log has what was sent before now."""
        mark = uuid4().hex.encode()
        seen = self._marks[mark] = threading.Event()
        with socket.create_connection(self._address, timeout=DEADLINE) as connection:
            connection.sendall(b"ECHO %s\r\n" % mark)
            connection.recv(len(mark))
        assert seen.wait(DEADLINE), "MONITOR does not show what was sent"

    def _listen(self) -> None:
        rest = b""
        while read := self._connection.recv(1 << 20):
            *lines, rest = (rest + read).split(b"\r\n")
            for line in lines:
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        if b'] "ECHO" "' in line:
            for mark in [mark for mark in self._marks if mark in line]:
                self._marks.pop(mark).set()
        elif self._of_scripts in line[:40] and b'lua] "RPUSH" "' in line[:60]:
            self._sent.update(task_id.decode() for task_id in self._SENT.findall(line))
