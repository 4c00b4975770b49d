"""A service with one answer to everything: for the errors that a test server never gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.services import free_port


@asynccontextmanager
async def service_that_says(
    status: int, body: str, *headers: str, kind: str = "application/x-amz-json-1.0"
) -> AsyncIterator[str]:
    """``http://key:secret@host:port``, where every request has this answer. With the status 0 there is none."""
    leaving = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length"))
        await reader.readexactly(length)
        if status == 0:
            await leaving.wait()
        about = [f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        words = [f"HTTP/1.1 {status} X", *about]
        writer.write("\r\n".join([*words, "", body]).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", free_port())
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://key:secret@{host}:{port}"
    finally:
        leaving.set()
        server.close()
        await server.wait_closed()
