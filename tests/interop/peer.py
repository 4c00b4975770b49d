"""Processes of tests/interop/go: a worker in Go, and a client in Go that is told what to do."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from asyncqueue import Signature, TaskState, wire
from asyncqueue.arguments import NegativeZero
from tests.services.machinery import MACHINERY

DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer works. ``lock`` is the URL of the Redis of the locks of periodic tasks."""

    broker: str
    backend: str
    queue: str
    lock: str = ""
    max_priority: int = 0
    environment: Mapping[str, str] | None = None

    def command(self, version: str, *more: str) -> list[str]:
        """The command line of a peer there; raises ``ServiceMissing`` where it was not built."""
        options = {"broker": self.broker, "backend": self.backend, "queue": self.queue, "lock": self.lock}
        given = [f"-{name}={value}" for name, value in options.items() if value]
        return [MACHINERY[version].require(), *given, f"-max-priority={self.max_priority}", *more]


class GoWorker:
    """A worker in Go. It ends with this process at the latest, since it reads our end of a pipe."""

    def __init__(self, version: str, place: Place, log: Path, *, concurrency: int = 8, ledger: Path | None = None):
        self.log = log
        more = [f"-concurrency={concurrency}", *([f"-ledger={ledger}"] if ledger else [])]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                place.command(version, *more),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=place.environment,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """``kill -9``, and wait for it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as Machinery does: it takes nothing more, and waits for what it runs."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            assert self.process.stdin is not None
            self.process.stdin.close()

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")


class GoError(Exception):
    """What Machinery said when it was asked for something that did not work."""


class GoClient:
    """A client in Go: ``async with GoClient("v1", place) as client``."""

    def __init__(self, version: str, place: Place) -> None:
        self._command = place.command(version)
        self._environment = place.environment
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environment,
            limit=2**24,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reading is not None
        self._stdin.close()
        await asyncio.wait_for(self._process.wait(), DEADLINE)
        await self._reading

    async def send(self, *signatures: Signature, kind: str = "task", callback: Signature | None = None) -> list[str]:
        """Send a task, chain, group or chord; the UUIDs of its tasks, the callback's last."""
        reply = await self.ask("send", signatures, callback, Kind=kind)
        return [each["UUID"] for each in reply["Signatures"]]

    async def get(self, *task_ids: str, kind: str = "task", timeout: float = DEADLINE) -> list[list[tuple[str, Any]]]:
        """Type and value of each result of each of these tasks; of a chain or a chord, whose UUIDs are those that
        ``send`` has returned, those at its end. Raises ``GoError``: the failure's text, or ``Timeout reached``."""
        *members, last = (Signature(uuid=task_id) for task_id in task_ids)
        asked = members if kind == "chord" else [*members, last]
        reply = await self.ask("get", asked, last if kind == "chord" else None, Kind=kind, Timeout=timeout)
        return [[(each["Type"], each["Value"]) for each in values] for values in reply["Values"]]

    async def state(self, task_id: str) -> TaskState:
        """The state of a task, as Machinery reads it."""
        reply = await self.ask("state", [Signature(uuid=task_id)])
        return wire.decode_state(json.dumps(reply["State"]).encode())

    async def pending(self, queue: str) -> list[Signature]:
        """What waits in a queue."""
        return _signatures(await self.ask("pending", Queue=queue))

    async def delayed(self) -> list[Signature]:
        """What waits for its time."""
        return _signatures(await self.ask("delayed"))

    async def periodic(self, spec: str, name: str, signature: Signature) -> None:
        """Register a periodic task, which this client sends from now on when it gets the lock."""
        await self.ask("periodic", [signature], Spec=spec, Name=name)

    async def ask(
        self, verb: str, signatures: Sequence[Signature] = (), callback: Signature | None = None, **fields: Any
    ) -> dict[str, Any]:
        """One request and its reply, as tests/interop/go/peer.go has them."""
        number = next(self._numbers)
        request = {
            "ID": number,
            "Verb": verb,
            "Signatures": [_as_json(each) for each in signatures],
            "Callback": None if callback is None else _as_json(callback),
            **fields,
        }
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._stdin.write(json.dumps(request).encode() + b"\n")
        reply = await asyncio.wait_for(self._waiting[number], DEADLINE + fields.get("Timeout", 0.0))
        if error := reply.get("Error"):
            raise GoError(error)
        return reply

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            reply = json.loads(line, parse_int=_integer)
            waiting = self._waiting.pop(reply["ID"])
            if not waiting.done():  # whoever asked may have been cancelled
                waiting.set_result(reply)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(GoError("the client has ended"))


def _integer(text: str) -> int:
    return NegativeZero() if text == "-0" else int(text)


def _as_json(signature: Signature) -> Any:
    return json.loads(wire.encode_signature(signature), parse_int=lambda text: -0.0 if text == "-0" else int(text))


def _signatures(reply: dict[str, Any]) -> list[Signature]:
    return [wire.decode_signature(json.dumps(each).encode()) for each in reply.get("Signatures") or ()]
