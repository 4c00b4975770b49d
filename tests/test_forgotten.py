"""PyMongo is cancelled while it connects."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pymongo import AsyncMongoClient


async def test_a_client_that_is_closed_while_it_connects_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    connecting = asyncio.Event()

    async def never(sock: socket.socket, address: object) -> None:
        made.append(sock)
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    client = AsyncMongoClient[dict[str, object]]("mongodb://127.0.0.1:1/?directConnection=true")
    await client.aconnect()
    await asyncio.wait_for(connecting.wait(), 30)
    await client.close()
    assert [sock.fileno() for sock in made] == [-1]
