"""The server and the task that every benchmark uses: a no-op with a result."""

from __future__ import annotations

from asyncqueue import Server

QUEUE = "bench"


def make_server(url: str) -> Server:
    """A server with the task ``noop``, which takes an integer and returns it. A second URL, behind a blank, is that of
    the results."""
    broker, _, backend = url.partition(" ")
    server = Server(broker=broker, backend=backend or broker)

    @server.task(queue=QUEUE)
    async def noop(number: int) -> int:
        return number

    return server
