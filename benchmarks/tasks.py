"""The server and the task that every benchmark uses: a no-op with a result."""

from __future__ import annotations

from asyncqueue import Server

QUEUE = "bench"


def make_server(url: str) -> Server:
    """A server with the task ``noop``, which takes an integer and returns it."""
    server = Server(url)

    @server.task(queue=QUEUE)
    async def noop(number: int) -> int:
        return number

    return server
