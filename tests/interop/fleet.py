"""Workers and clients of three languages on one pair of stores: Python, and Go with either version of Machinery."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from asyncqueue import Arg, AsyncResult, ResultUnknown, Server, Signature, TaskFailed, TaskState, arguments
from asyncqueue.builders import chain, chord, group
from asyncqueue.config import Settings
from asyncqueue.signature import new_task_id
from asyncqueue.workflow_results import WorkflowResult
from tests.interop import stressed
from tests.interop.peer import DEADLINE, GoClient, GoError, GoWorker, Place
from tests.path.bench import eventually
from tests.path.forks import Fork, Forks
from tests.path.ledger import Ledger

PY, V1, V2 = "py", "v1", "v2"
LANGUAGES = (PY, V1, V2)
VERSIONS = (V1, V2)
QUEUES = {PY: "python", V1: "go-v1", V2: "go-v2"}
"""Where the workers of a language work. Pub/Sub takes no shorter names."""

DIRECTIONS = ((PY, V1), (V1, PY), (PY, V2), (V2, PY))
"""Who sends, and in whose language tasks run."""

SHARED = {direction: f"shared-{'-'.join(direction)}" for direction in DIRECTIONS}
"""Where our worker works too."""

FOR_GO = (*(QUEUES[version] for version in (V1, V2)), *SHARED.values(), "killed")
"""Queues on which workers in Go are. On Pub/Sub ours look after what is put off only for those that are named."""

PROGRAM = "peer-{}"
"""The base name of Go's executable, which is in the names of its locks."""

MAX_PRIORITY = 10
DELAYED_POLL = 50
"""How often (milliseconds) workers of all languages look for what is due on Redis."""

Values = list[tuple[str, Any]]
"""Type names and values of results."""


class Client(Protocol):
    """Whoever sends, and asks for results: the same in all languages."""

    async def send(
        self, *signatures: Signature, kind: str = "task", callback: Signature | None = None
    ) -> Sequence[str]:
        """Send a task, chain, group or chord; the UUIDs of its tasks, the callback's last."""

    async def get(self, *task_ids: str, kind: str = "task") -> list[Values]:
        """The results of each of these tasks; of a chain or a chord those at its end. Raises ``GoError`` or
        ``TaskFailed``."""

    async def state(self, task_id: str) -> TaskState:
        """The state of a task."""


class PythonClient:
    """A server of ours, as a ``Client``."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: dict[str, WorkflowResult[Any]] = {}

    async def send(
        self, *signatures: Signature, kind: str = "task", callback: Signature | None = None
    ) -> Sequence[str]:
        match kind:
            case "chain":
                self.sent[signatures[-1].uuid] = await self.server.send_chain(chain(*signatures))
            case "group":
                await self.server.send_group(group(*signatures))
            case "chord":
                assert callback is not None
                self.sent[callback.uuid] = await self.server.send_chord(chord(signatures, callback))
            case _:
                await self.server.send_many(signatures)
        return [each.uuid for each in (*signatures, *([callback] if callback else []))]

    async def get(self, *task_ids: str, kind: str = "task") -> list[Values]:
        if kind == "task":
            return [await self._values(await self._known(task_id)) for task_id in task_ids]
        if (sent := self.sent.get(task_ids[-1])) is not None:
            await sent.get(DEADLINE)
        last = await self._known(task_ids[-1])
        reopened = await (self.server.chain_result if kind == "chain" else self.server.chord_result)(last.id)
        await reopened.get(DEADLINE)
        return [await self._values(last)]

    async def state(self, task_id: str) -> TaskState:
        return await self.server.result(task_id).state()

    async def _known(self, task_id: str) -> AsyncResult[Any]:
        """A handle on a task that may still be to be sent, by a worker."""

        async def look() -> AsyncResult[Any] | None:
            result = self.server.result(task_id)
            try:
                await result.state()
            except ResultUnknown:
                return None
            return result

        found = await eventually(look)
        assert found is not None
        return found

    async def _values(self, result: AsyncResult[Any]) -> Values:
        value = await result.get(DEADLINE)
        results = (await result.wait()).results or ()
        assert len(results) < 2 or isinstance(value, tuple)
        values = value if len(results) > 1 else (value,) * len(results)
        assert value is not None or not results
        return [(each.type, one) for each, one in zip(results, values, strict=True)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A broker and a result backend, and whether all is tried on them, or what matters most."""

    broker: str
    backend: str
    in_full: bool = False

    @property
    def name(self) -> str:
        return f"{self.broker} + {self.backend}"

    @property
    def go_reads_texts_alone(self) -> bool:
        """Whether a worker in Go reads no results but texts there."""
        return self.backend == "dynamodb"


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a pair is. ``brokers`` are URLs for each language, which differ where a URL names a subscription."""

    pair: Pair
    brokers: Mapping[str, str]
    backend: str
    lock: str
    """URL of a Redis."""
    environment: Mapping[str, str] | None = None

    def broker(self, language: str, queue: str = "") -> str:
        """The URL for who works on that queue by default, or on that of the language."""
        url, own = self.brokers[language], f"/{QUEUES[language]}"
        return url.replace(own, f"/{queue}") if queue and self.pair.broker == "pubsub" else url

    def place(self, version: str, queue: str = "") -> Place:
        """Where a peer in Go of that version works."""
        return Place(
            self.broker(version, queue),
            self.backend,
            queue or QUEUES[version],
            self.lock,
            MAX_PRIORITY,
            self.environment,
        )

    def settings(
        self, *, queues: Sequence[str] = (), concurrency: int = 8, program: str = "asyncqueue"
    ) -> dict[str, Any]:
        """Of a server of ours."""
        return {
            "default_queue": QUEUES[PY],
            "go_compat": True,
            "go_queues": [*FOR_GO] if self.pair.broker == "pubsub" else [],
            "program": program,
            "lock": self.lock,
            "amqp": {"binding_key": QUEUES[PY], "queue_declare_args": {"x-max-priority": MAX_PRIORITY}},
            "redis": {"delayed_tasks_poll_period": DELAYED_POLL},
            "worker": {"concurrency": concurrency, "queues": list(queues)},
        }

    def server(self, *, program: str = "asyncqueue") -> Server:
        """A server of ours."""
        settings = Settings.parse(self.settings(program=program))
        return Server(broker=self.brokers[PY], backend=self.backend, settings=settings)


@dataclass(slots=True)
class Fleet:
    """A worker and a client of each language. Each language has a queue of its own."""

    stores: Stores
    folder: Path
    server: Server
    ledger: Ledger
    forks: Forks
    python: PythonClient = field(init=False)
    in_go: dict[str, GoClient] = field(default_factory=dict)
    workers: dict[str, GoWorker | Fork] = field(default_factory=dict)
    renewed: int = 0
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    """For those who pause workers and wait for others meanwhile."""
    _paused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.python = PythonClient(self.server)

    @property
    def pair(self) -> Pair:
        return self.stores.pair

    def client(self, language: str) -> Client:
        """Who sends in that language."""
        return self.python if language == PY else self.in_go[language]

    def start(self, language: str, queue: str = "", *, concurrency: int = 8) -> GoWorker | Fork:
        """A worker; on the queue of its language, unless another one is named."""
        if language != PY:
            log = self.folder / f"{queue or language}.log"
            place = self.stores.place(language, queue)
            return GoWorker(language, place, log, concurrency=concurrency, ledger=self.ledger.folder)
        queues = [queue] if queue else [QUEUES[PY], *SHARED.values()]
        return self.start_ours(self.stores.settings(queues=queues, concurrency=concurrency))

    def start_ours(self, settings: dict[str, Any]) -> Fork:
        """A worker of ours, with these settings."""
        asked = {
            "broker": self.stores.brokers[PY],
            "backend": self.stores.backend,
            "ledger": str(self.ledger.folder),
            "settings": settings,
        }
        return self.forks.start(stressed.run, asked)

    @asynccontextmanager
    async def working(self, language: str, queue: str = "", *, concurrency: int = 8) -> AsyncIterator[GoWorker | Fork]:
        """A worker more, meanwhile."""
        worker = self.start(language, queue, concurrency=concurrency)
        try:
            yield worker
        finally:
            await _killed(worker)

    async def stop(self) -> None:
        """The end of its workers."""
        for each in self.workers.values():
            await _killed(each)

    async def gave_up_in_go(self, error: Exception, renewed: int) -> bool:
        """Whether an error may be one of Go's that waits no longer: its client of Memcached does so after half a
        second. Its workers may have lost what they held, and there are new ones, which are counted in ``renewed``."""
        async with self.alone:
            workers = {version: each for version, each in self.workers.items() if isinstance(each, GoWorker)}
            if self.renewed == renewed and TOO_SLOW in "".join(
                [str(error), *(each.said() for each in workers.values())]
            ):
                self.renewed += 1
                for version, each in workers.items():
                    await _killed(each)
                    each.log.unlink()
                    self.workers[version] = self.start(version)
        return self.renewed > renewed

    @asynccontextmanager
    async def scheduling(self, version: str, spec: str, name: str, task: Signature) -> AsyncIterator[None]:
        """A scheduler of ours that shares its lock with those in Go of that version, meanwhile."""
        async with self.stores.server(program=PROGRAM.format(version)) as server:
            server.schedule(spec, name, task)
            scheduler = server.scheduler()
            running = asyncio.create_task(scheduler.run())
            try:
                yield
            finally:
                scheduler.stop()
                await asyncio.wait_for(running, DEADLINE)

    @asynccontextmanager
    async def scheduling_in_go(self, version: str, spec: str, name: str, task: Signature) -> AsyncIterator[None]:
        """A scheduler in Go, meanwhile."""
        async with GoClient(version, self.stores.place(version)) as client:
            await client.periodic(spec, name, task)
            yield

    def began_at(self, task_id: str) -> list[float]:
        """When a task that notes that was begun, unix seconds; once for each run."""
        return sorted(line.at for line in self.ledger.lines() if line.task_id == task_id and line.what == "S")

    @asynccontextmanager
    async def paused(self, *languages: str) -> AsyncIterator[None]:
        """Meanwhile the workers of these languages do nothing."""
        for each in languages:
            self._paused[each] += 1
            os.kill(self.workers[each].pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for each in languages:
                self._paused[each] -= 1
                if not self._paused[each]:
                    os.kill(self.workers[each].pid, signal.SIGCONT)


TOO_SLOW = "i/o timeout"
"""What Go says then."""


async def _killed(worker: GoWorker | Fork) -> None:
    if isinstance(worker, GoWorker):
        await asyncio.to_thread(worker.kill)
    else:
        worker.kill()


@asynccontextmanager
async def fleet_on(stores: Stores, folder: Path) -> AsyncIterator[Fleet]:
    """A fleet that works."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(stores.server())
        fleet = Fleet(stores, folder, server, Ledger(folder / "ledger"), stack.enter_context(Forks()))
        if stores.pair.broker in ("pubsub", "sqs"):
            broker = (await server.connected()).broker
            for queue in QUEUES.values():  # to Go, a queue that is not there is an error
                await broker.fetch(queue, 1, 0.0)
        for version in VERSIONS:
            client = GoClient(version, stores.place(version))
            fleet.in_go[version] = await stack.enter_async_context(client)
        stack.push_async_callback(fleet.stop)
        for language in LANGUAGES:
            fleet.workers[language] = fleet.start(language)
        yield fleet


@dataclass(frozen=True, slots=True)
class Leg:
    """One direction: who sends, and in whose language tasks run."""

    fleet: Fleet
    sender: str
    runner: str
    left_out: set[str] = field(default_factory=set)
    """What could not be tried here, and why."""

    @property
    def name(self) -> str:
        return f"{self.sender}→{self.runner}"

    @property
    def version(self) -> str:
        """That of Machinery."""
        return self.runner if self.sender == PY else self.sender

    @property
    def third(self) -> str:
        """The language that is neither the sender's nor the runner's."""
        return next(each for each in LANGUAGES if each not in (self.sender, self.runner))

    @property
    def client(self) -> Client:
        """Whoever sends."""
        return self.fleet.client(self.sender)

    async def send(self, *signatures: Signature, kind: str = "task", callback: Signature | None = None) -> None:
        """Send tasks, or a chain, a group or a chord, in the language of the sender."""
        if kind == "task":
            await asyncio.gather(*(self.client.send(each) for each in signatures))
        else:
            await self.client.send(*signatures, kind=kind, callback=callback)

    async def results(self, *asked: Signature, kind: str = "task", go_reads: bool = True) -> list[Values]:
        """What became of them, as both languages read it, if Go can."""
        ids = [each.uuid for each in asked]
        ours = await self.fleet.python.get(*ids, kind=kind)  # first: from RabbitMQ, Go takes what it reads
        if self.fleet.pair.go_reads_texts_alone and {name for values in ours for name, _ in values} != {"string"}:
            self.left_out.add(TEXTS_ALONE)
        elif go_reads:
            theirs = await self.fleet.in_go[self.version].get(*ids, kind=kind)
            in_python = [[(name, arguments.decode(name, value)) for name, value in values] for values in theirs]
            as_in_go = [[(name.replace("[]byte", "[]uint8"), value) for name, value in values] for values in ours]
            assert shown(in_python) == shown(as_in_go), "Go and Python read different results"
        return ours

    async def result(self, asked: Signature) -> Values:
        """What became of one of them."""
        (values,) = await self.results(asked)
        return values

    async def failure(self, asked: Signature) -> str:
        """How a task failed, as both languages read it."""
        texts = []
        for language in (PY, self.version):
            try:
                values = await self.fleet.client(language).get(asked.uuid)
            except TaskFailed as exc:
                texts.append(exc.error)
            except GoError as exc:
                texts.append(str(exc))
            else:
                raise AssertionError(f"{asked.name} did not fail: {values}")
        assert texts[0] == texts[1], "Go and Python read different failures"
        return texts[0]


TEXTS_ALONE = "Go keeps results in DynamoDB as text, and reads no others but texts there"


def call(name: str, *args: Any, to: str, **fields: Any) -> Signature:
    """A call of a task in that language; ``args`` are typed as they are in Python."""
    return Signature(
        uuid=new_task_id(), name=name, routing_key=QUEUES.get(to, to), args=tuple(map(arg, args)), **fields
    )


def arg(value: Any) -> Arg:
    """An argument on the wire."""
    name = arguments.infer(value)
    return Arg(type=name, value=arguments.encode(name, value))


def shown(values: Any) -> str:
    """Values to be compared: in this form, -0.0 is not 0.0, and True is not 1."""
    return repr(values)


def now() -> float:
    """Unix seconds."""
    return time.time()
