"""That the watch over the event loop sees what it is for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests import blocking

CODE = compile("import sqlite3; sqlite3.connect(':memory:').close()", str(Path(blocking.PACKAGE) / "some.py"), "exec")


async def test_a_call_of_the_package_that_blocks_the_loop_is_seen() -> None:
    exec(CODE)
    (seen,) = blocking.take()
    assert seen.startswith("sqlite3.connect at ")
    assert seen.endswith("some.py:1")


async def test_the_same_call_in_a_thread_is_fine() -> None:
    await asyncio.to_thread(exec, CODE)
    assert blocking.take() == []


def test_the_same_call_without_a_loop_is_fine() -> None:
    exec(CODE)
    assert blocking.take() == []


async def test_a_connection_that_asyncio_makes_is_fine() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.close()
        await writer.wait_closed()
    assert blocking.take() == []
