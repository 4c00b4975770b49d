"""Sockets that PyMongo forgets: closed here, since the garbage collector would fail some later test for them.

PyMongo connects a socket of its own making, and does not close it when it is cancelled meanwhile: by the timeout of a
call, or by the client's own ``close``, which cancels those who watch the servers. Nothing in its public interface
tells of such a socket, and the collector closes it some time later.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from traceback import walk_tb
from typing import Any

from pymongo import pool_shared

Connect = Callable[..., Coroutine[Any, Any, socket.socket]]


def close_them() -> None:
    """From now on, in this process."""
    pool_shared._async_create_connection = _closing(pool_shared._async_create_connection)


def _closing(connect: Connect) -> Connect:
    async def connect_or_close(*arguments: Any) -> socket.socket:
        try:
            return await connect(*arguments)
        except asyncio.CancelledError as exc:
            for frame, _ in walk_tb(exc.__traceback__):
                if frame.f_code.co_name == connect.__name__ and "sock" in frame.f_locals:
                    frame.f_locals["sock"].close()
            raise

    return connect_or_close
