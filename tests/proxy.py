"""A proxy that does to a connection what networks do: delay, cut, stall, refuse, and lose one reply.

``async with FaultProxy("127.0.0.1", port) as proxy:`` and let the client connect to ``proxy.port``. It parses what
clients of Redis send, so that a fault can hit the reply of one named command: the server executes it, and the client
never hears of it. What clients of others send is carried unread (``reads=False``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import hiredis

from tests.services import free_port

CHUNK = 65_536


@dataclass(slots=True)
class _Loss:
    """The n-th request (from 1) of a name from now on loses its reply. ``name`` None: of any name."""

    name: str | None
    left: int
    happened: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Forwards connections to ``host:port``, or to the unix socket ``path``, and harms them on request.

    ``requests`` counts requests by command name in capitals; a script counts as ``EVALSHA`` and, where ``scripts``
    names its SHA, as that name instead. ``writes`` counts how often clients wrote something, whatever they speak: the
    nearest thing to requests where those are not read. ``delay`` is added (seconds) to everything in both directions.
    """

    def __init__(self, host: str, port: int, *, scripts: dict[str, str] | None = None, reads: bool = True) -> None:
        self._target = host, port
        self.reads = reads
        self._scripts = scripts or {}
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._losses: list[_Loss] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = free_port()  # which stays free while the proxy refuses
        self.delay = 0.0
        self.requests: Counter[str] = Counter()
        self.writes = 0

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def refuse(self) -> None:
        """Cut everything, and let nobody connect until ``accept``."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def accept(self) -> None:
        """Let clients connect again, at the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            pair.abort()

    def stall(self) -> None:
        """Carry nothing any more, and close nothing: a half-open connection. New connections stall too."""
        self._flowing.clear()

    def strand(self) -> int:
        """Carry nothing any more on the connections that there are, and tell neither end when the other one leaves;
        new ones work. Returns how many there are."""
        for pair in self._pairs:
            pair.is_stranded = True
        return len(self._pairs)

    def resume(self) -> None:
        """Carry on, what was held back first."""
        self._flowing.set()

    def lose_reply(self, name: str | None = None, nth: int = 1) -> asyncio.Event:
        """The ``nth`` request called ``name`` from now on is executed, its reply is dropped, and its connection is
        reset then. Returns the event of that."""
        loss = _Loss(name, nth)
        self._losses.append(loss)
        return loss.happened

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._pairs)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            try:
                server_reader, server_writer = await asyncio.open_connection(*self._target)
            except OSError:
                writer.transport.abort()
                return
            pair = _Pair(self, (reader, writer), (server_reader, server_writer))
            self._pairs.add(pair)
            try:
                await pair.run()
            finally:
                self._pairs.discard(pair)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def pass_time(self) -> None:
        """What everything on its way waits for."""
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._flowing.wait()

    def name_of(self, request: Sequence[bytes]) -> str:
        """The name under which a request counts."""
        if request[0].upper() == b"EVALSHA":
            return self._scripts.get(request[1].decode(), "EVALSHA")
        return request[0].decode(errors="replace").upper()

    def loss_of(self, name: str) -> _Loss | None:
        """The loss that a request of this name is hit by, if any; counts it."""
        self.requests[name] += 1
        for loss in self._losses:
            if loss.name in (None, name):
                loss.left -= 1
                if loss.left == 0:
                    self._losses.remove(loss)
                    return loss
        return None


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: Streams, server: Streams) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._replies = 0  # replies that were seen
        self._asked = 0  # requests that were passed on
        self._losses: dict[int, _Loss] = {}  # number of the reply -> why it is lost
        self.is_stranded = False

    async def run(self) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry_requests())
                    group.create_task(self._carry_replies())
        except* OSError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _carry_requests(self) -> None:
        reader, writer = self._client[0], self._server[1]
        parser = hiredis.Reader()
        while data := await self._read(reader):
            self._proxy.writes += 1
            await self._proxy.pass_time()
            if self._proxy.reads:
                parser.feed(data)
            while (request := parser.gets()) is not False:
                self._asked += 1
                loss = self._proxy.loss_of(self._proxy.name_of(request))
                if loss is not None:
                    self._losses[self._asked] = loss
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the client is gone")

    async def _carry_replies(self) -> None:
        reader, writer = self._server[0], self._client[1]
        parser = hiredis.Reader()
        while data := await self._read(reader):
            await self._proxy.pass_time()
            if self._proxy.reads:
                parser.feed(data)
            while (parser.gets()) is not False:
                self._replies += 1
                if loss := self._losses.pop(self._replies, None):
                    # the server has answered, so it has done it; the client must not hear a byte of that
                    self.abort()
                    loss.happened.set()
                    raise ConnectionResetError("a reply was lost")
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the server is gone")

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """What came; nothing ever comes, not even an end, where the connection is stranded."""
        data = b""
        try:
            data = await reader.read(CHUNK)
        finally:
            if self.is_stranded:
                await asyncio.Event().wait()
        return data
