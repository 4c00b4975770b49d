"""`asyncqueue doctor`: does everything a server needs answer, and is it set up well?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal, Protocol, runtime_checkable

import click

from asyncqueue import urls
from asyncqueue.brokers.base import Inspector, Message
from asyncqueue.cli.output import json_option, one_line, print_json
from asyncqueue.cli.target import Address, addressed, split
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.engine.settlement import AtomicSettlement
from asyncqueue.errors import AsyncQueueError
from asyncqueue.server import Server
from asyncqueue.signature import new_task_id
from asyncqueue.state import State, TaskState
from asyncqueue.stores import Connected

PROBE_QUEUE = "asyncqueue.doctor"
"""Messages of ours go to this queue and are taken from it; no worker of anybody's consumes it."""

_ROUND_TRIPS = 5
_PROBES = 8  # entries of the backend: a store may be spread over several servers
_SLOW = 0.1  # seconds
_SKEW = 1.0  # seconds
_PATIENCE = 15.0  # seconds for each check


class ServerFacts(Protocol):
    """What a store's server says of itself; ``clock_at`` is unix seconds."""

    @property
    def version(self) -> tuple[int, int]: ...
    @property
    def clock_at(self) -> float | None: ...


@runtime_checkable
class Candid(Protocol):
    """A broker whose server can be asked about itself."""

    warnings: Sequence[str]

    async def facts(self) -> ServerFacts: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``seconds`` is how long a round trip took, where that was measured."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    seconds: float | None = None


@click.command()
@click.argument("words", nargs=-1, metavar="[MODULE:SERVER]")
@json_option
@addressed
def doctor(words: Sequence[str], as_json: bool, address: Address) -> None:
    """Check that the stores of a server answer, allow what is needed, and are set up well.

    One line for each check, with ok, warn or fail. No task is sent, and none is run: the broker is tried with a queue
    of its own, asyncqueue.doctor, the backend with entries that are dropped at once.

    The exit code is 1 if a check failed.

    --json: {ok, checks: [{check, status, detail, milliseconds}]}.
    """
    target, _ = split(words)
    findings = asyncio.run(_examined(address.server(target), has_tasks=target is not None, aloud=not as_json))
    failed = any(each.status == "fail" for each in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [_described(each) for each in findings]})
    if failed:
        raise SystemExit(1)


async def _examined(server: Server, *, has_tasks: bool, aloud: bool) -> list[Finding]:
    findings: list[Finding] = []
    async for finding in _examine(server, has_tasks=has_tasks):
        findings.append(finding)
        if aloud:
            click.echo(f"{finding.status:<4}  {finding.check:<18}  {one_line(finding.detail, 1_000)}")
    return findings


async def _examine(server: Server, *, has_tasks: bool) -> AsyncIterator[Finding]:
    try:
        connected = await server.connected()
    except AsyncQueueError as exc:
        yield Finding("connect", "fail", str(exc))
        return
    try:
        yield _reached(server, connected)
        checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [
            ("server", lambda: _facts(connected, server.clock)),
            ("broker", lambda: _broker(connected, server.clock)),
            ("publish and fetch", lambda: _publish_and_fetch(connected)),
            ("backend", lambda: _backend(connected, server.clock)),
            ("lock", lambda: _lock(server)),
        ]
        for name, check in checks:
            for finding in await _with_patience(name, check):
                yield finding
        yield _settlement(connected)
        if has_tasks:
            yield _tasks(server)
    finally:
        await server.close()


async def _with_patience(name: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await check()
    except AsyncQueueError as exc:
        return [Finding(name, "fail", str(exc))]
    except TimeoutError:
        return [Finding(name, "fail", f"no answer within {_PATIENCE:g} s")]


def _reached(server: Server, connected: Connected) -> Finding:
    where = f"broker {server.broker_address}"
    if connected.backend is not None:
        where += f", backend {connected.backend.address}"
    if urls.is_of_one_process(server.broker_address):
        return Finding("connect", "warn", f"{where}: what is in memory is seen by this process alone")
    return Finding("connect", "ok", where)


async def _facts(connected: Connected, clock: Clock) -> list[Finding]:
    broker = connected.broker
    if not isinstance(broker, Candid):
        return []
    before = clock.now_ns()
    facts = await broker.facts()
    after = clock.now_ns()
    found = [Finding("server", "ok", f"version {'.'.join(map(str, facts.version))}")]
    found += [Finding("server", "warn", warning) for warning in broker.warnings]
    if facts.clock_at is not None:
        found.append(_skew(facts.clock_at, before / NANOSECONDS, after / NANOSECONDS))
    return found


def _skew(theirs: float, before: float, after: float) -> Finding:
    """How far a clock that was read between two moments of ours is from ours."""
    ahead = theirs - max(before, min(theirs, after))
    if abs(ahead) <= _SKEW:
        return Finding("clock", "ok", f"the server's clock is within {_SKEW:g} s of ours")
    word = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock", "warn", f"the server's clock is {abs(ahead):.1f} s {word} ours: delayed tasks are due by it"
    )


async def _broker(connected: Connected, clock: Clock) -> list[Finding]:
    broker = connected.broker
    look = partial(broker.depth, PROBE_QUEUE) if isinstance(broker, Inspector) else broker.identity
    return [_timed("broker", await _round_trip(clock, look))]


async def _publish_and_fetch(connected: Connected) -> list[Finding]:
    """Sends a message to the queue of our own and takes whatever is in it."""
    name, broker = "publish and fetch", connected.broker
    probe = new_task_id()
    await broker.publish([Message(probe.encode(), PROBE_QUEUE, probe, token=probe)])
    found = False
    while not found:
        deliveries = await broker.fetch(PROBE_QUEUE, 100, 1.0)
        await broker.ack(deliveries)
        found = any(each.body == probe.encode() for each in deliveries)
        if not deliveries:
            break
    if found:
        return [Finding(name, "ok", f"a message went through queue {PROBE_QUEUE}")]
    return [Finding(name, "warn", f"both are allowed, but somebody else took our message from queue {PROBE_QUEUE}")]


async def _backend(connected: Connected, clock: Clock) -> list[Finding]:
    backend = connected.backend
    if backend is None:
        return [Finding("backend", "ok", "none: no result is kept")]
    probes = [new_task_id() for _ in range(_PROBES)]
    seconds = await _round_trip(clock, lambda: backend.get(probes[:1]))
    now = clock.now_ns()
    await backend.begin([TaskState(task_uuid=probe, task_name=PROBE_QUEUE, created_at=now) for probe in probes])
    states = await backend.get(probes)
    await backend.forget(probes)
    if any(state is None or state.state is not State.PENDING for state in states):
        return [Finding("backend", "fail", "a state that was written could not be read")]
    return [_timed("backend", seconds)]


async def _lock(server: Server) -> list[Finding]:
    lock = await server.lock()
    if lock is None:
        return [Finding("lock", "ok", "none: this server keeps no schedules; `lock` names a store that has locks")]
    key = f"{PROBE_QUEUE}.lock"
    token = await lock.acquire(key, 5.0)
    if token is None:
        return [Finding("lock", "ok", "somebody else tries it just now")]
    await lock.release(key, token)
    return [Finding("lock", "ok", "got and given back")]


def _settlement(connected: Connected) -> Finding:
    if isinstance(connected.settlement, AtomicSettlement):
        return Finding("settlement", "ok", "atomic: broker and backend are one store")
    if connected.backend is None:
        return Finding("settlement", "ok", "in order: callbacks, then acknowledgement")
    detail = "in order: state, callbacks, acknowledgement; atomic where both are one Redis or one SQLite file"
    return Finding("settlement", "ok", detail)


def _tasks(server: Server) -> Finding:
    count = len(server.registered_task_names())
    if count == 0:
        return Finding("tasks", "warn", "none is registered on this server")
    return Finding("tasks", "ok", f"{count} registered")


async def _round_trip(clock: Clock, call: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(_ROUND_TRIPS):
        began = clock.monotonic()
        await call()
        took.append(clock.monotonic() - began)
    return median(took)


def _timed(name: str, seconds: float) -> Finding:
    detail = f"answers in {seconds * 1_000:.2f} ms"
    if seconds > _SLOW:
        return Finding(name, "warn", f"{detail}: more than {_SLOW * 1_000:g} ms", seconds)
    return Finding(name, "ok", detail, seconds)


def _described(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "status": finding.status,
        "detail": finding.detail,
        "milliseconds": None if finding.seconds is None else round(finding.seconds * 1_000, 3),
    }
