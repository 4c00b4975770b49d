"""What is tried in each direction: a row is a behaviour, and says what is to be seen by whoever sent."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from asyncqueue import Arg, MemberFailed, Refused, Signature, State, arguments, wire
from asyncqueue.clock import NANOSECONDS
from tests.interop.fleet import LANGUAGES, PY, SHARED, V1, V2, Leg, call, now, shown
from tests.interop.peer import DEADLINE, GoError, GoWorker
from tests.path.bench import eventually

WHERE = {PY: "python", V1: "go v1", V2: "go v2"}
"""What the task ``where`` returns."""

Check = Callable[[Leg], Awaitable[None]]


class Impossible(Exception):
    """Why there can be no such cell."""


@dataclass(frozen=True, slots=True)
class Row:
    """A behaviour. ``is_core``: it is tried on every pair."""

    name: str
    check: Check
    is_core: bool = False

    @property
    def place(self) -> int:
        """Of the row in the table."""
        return ROWS.index(self)


# — one task —


async def send(leg: Leg) -> None:
    added, where = call("add", 2, 3, to=leg.runner), call("where", to=leg.runner)
    await leg.send(added, where)
    assert await leg.results(added, where) == [[("int64", 5)], [("string", WHERE[leg.runner])]]
    if leg.fleet.pair.backend != "rabbitmq":  # whose entries are gone once Go has read them
        for client in (leg.fleet.python, leg.fleet.in_go[leg.version]):
            assert (await client.state(added.uuid)).state is State.SUCCESS


TEXT = 'quote " back \\ slash / <tag> & é 漢 🎉 \u2028 \u2029 tab\t nl\n nul\u0000 del\u007f'
SCALARS = (
    *("bool", "string"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in ("", 8, 16, 32, 64)),
    *("float32", "float64"),
)
HIGH: tuple[Any, ...] = (
    *(True, TEXT),
    *(2**bits - 1 for bits in (63, 7, 15, 31, 63)),
    *(2**bits - 1 for bits in (64, 8, 16, 32, 64)),
    *(3.4028234663852886e38, 1.7976931348623157e308),
)
LOW: tuple[Any, ...] = (False, "", *(-(2**bits) for bits in (63, 7, 15, 31, 63)), *[0] * 5, -0.0, -0.0)
ODD: tuple[Any, ...] = (True, "-0", 1, 2, 3, 4, -5, 6, 7, 8, 9, 2**63, 1e21, 5e-324)
SLICES = (*(f"[]{name}" for name in SCALARS), "[]byte")
EDGES: tuple[Any, ...] = (*([low, high, odd] for low, high, odd in zip(LOW, HIGH, ODD, strict=True)), bytes(range(256)))
EMPTY: tuple[Any, ...] = (*([] for _ in SCALARS), b"")
NULLS = (None,) * len(SLICES)


async def typed_arguments(leg: Leg) -> None:
    """Each of the 29 types goes there and comes back, value and name."""
    cases = [(SCALARS, values) for values in (HIGH, LOW, ODD)] + [(SLICES, values) for values in (EDGES, EMPTY, NULLS)]
    match leg.fleet.pair.backend:
        case "mongodb":
            in_int64 = [(types, [_in_int64(each) for each in values]) for types, values in cases]
            await _come_back(leg, in_int64, go_reads=False)
            if leg.runner == PY:
                await asyncio.gather(*(_comes_back(leg, name, values) for name, values in GO_READS))
            leg.left_out.add(NOT_IN_BSON)
        case "dynamodb" if leg.runner != PY:
            in_words = [(types, [_in_words(each) for each in values]) for types, values in cases]
            await _come_back(leg, in_words)
            leg.left_out.add(NOT_IN_WORDS)
        case _:
            await _come_back(leg, cases)


NOT_IN_BSON = (
    "in MongoDB there is no integer over 63 bits; Go reads no unsigned integers and no bytes from there, and of what Go"
    " has written no integers but int64"
)


NOT_IN_WORDS = (
    "in DynamoDB, Go's lists of texts do not say where a text with a blank ends, nor its lists which are null"
)


async def _come_back(leg: Leg, cases: Sequence[tuple[Sequence[str], Sequence[Any]]], *, go_reads: bool = True) -> None:
    asked = [
        call("echo_scalars" if types is SCALARS else "echo_slices", to=leg.runner).with_changes(
            args=tuple(Arg(type=name, value=_on_wire(name, value)) for name, value in zip(types, values, strict=True))
        )
        for types, values in cases
    ]
    await leg.send(*asked)
    found = await leg.results(*asked, go_reads=go_reads)
    for (types, values), seen in zip(cases, found, strict=True):
        for expected_type, expected, (type_name, value) in zip(types, values, seen, strict=True):
            assert plain(type_name) == plain(expected_type)
            assert shown(value) == shown(arguments.decode(expected_type, _on_wire(expected_type, expected)))


GO_READS = [
    (name, values)
    for name, *values in zip(SCALARS, LOW, HIGH, ODD, strict=True)
    if isinstance(name, str) and not name.startswith("uint")
]
"""Types whose values Go reads from MongoDB where we have written them."""


async def _comes_back(leg: Leg, name: str, values: Sequence[Any]) -> None:
    asked = [call(f"echo_{name}", to=leg.runner).with_changes(args=(Arg(type=name, value=each),)) for each in values]
    asked.append(call(f"echo_{name}s", to=leg.runner).with_changes(args=(Arg(type=f"[]{name}", value=values),)))
    await leg.send(*asked)
    kept = [arguments.decode(name, each) for each in values]  # a float32 has fewer digits
    assert await leg.results(*asked) == [*([(name, each)] for each in kept), [(f"[]{name}", kept)]]


def _on_wire(name: str, value: Any) -> Any:
    return None if value is None else arguments.encode(name, value)


def _in_int64(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_int64(each) for each in value]
    return min(value, 2**63 - 1) if type(value) is int else value


def _in_words(value: Any) -> Any:
    """Lists without what Go does not say of them."""
    match value:
        case None:
            return []
        case [*texts] if any(isinstance(each, str) for each in texts):
            return ["-".join(each.split()) or "-" for each in texts]
        case _:
            return value


def plain(type_name: str) -> str:
    """Go knows only one of these two names once it has read a value."""
    return "[]uint8" if type_name == "[]byte" else type_name


async def several_results(leg: Leg) -> None:
    asked = call("pair", 41, "a", to=leg.runner)
    await leg.send(asked)
    assert await leg.result(asked) == [("int64", 42), ("string", "a!")]


async def no_result(leg: Leg) -> None:
    asked = call("nothing", to=leg.runner)
    await leg.send(asked)
    assert await leg.result(asked) == []


async def failure(leg: Leg) -> None:
    """Its text; and a panic is a failure."""
    failing, panicking = call("fail", f"oops, {TEXT}", to=leg.runner), call("panics", "oops", to=leg.runner)
    await leg.send(failing, panicking)
    assert await leg.failure(failing) == text_of(leg.runner, f"oops, {TEXT}")
    assert await leg.failure(panicking) == text_of(leg.runner, "oops", "RuntimeError")


def text_of(runner: str, text: str, kind: str = "Exception") -> str:
    """Ours name the kind of an error."""
    return f"{kind}: {text}" if runner == PY else text


async def retry(leg: Leg) -> None:
    """With Machinery's waits. On pairs that are not tried in full there is one wait, of a second."""
    waits = [1, 2] if leg.fleet.pair.in_full else [1]
    sent_at = now()
    retried = call("retried", to=leg.runner, retry_count=len(waits), headers={"x-tenant": "é"})
    flaky = call("flaky", 1, to=leg.runner, retry_count=3)
    failing = call("fail", "oops", to=leg.runner, retry_count=1)
    await leg.send(retried, flaky, failing)
    ((_, text),) = await leg.result(retried)
    last = wire.decode_signature(text[1:-1].encode())
    assert (last.uuid, last.retry_count, last.retry_timeout) == (retried.uuid, 0, waits[-1])
    assert last.eta is not None
    assert last.eta / NANOSECONDS >= sent_at + sum(waits)
    assert now() >= last.eta / NANOSECONDS - grain(leg)
    assert (last.headers or {}).get("x-tenant") == "é"
    assert await leg.result(flaky) == [("int64", 2)]
    assert await leg.failure(failing) == text_of(leg.runner, "oops")


async def retry_later(leg: Leg) -> None:
    """Not earlier than it was asked for."""
    asked = call("later", 1, LONG_ENOUGH * 1000, to=leg.runner)
    sent_at = now()
    await leg.send(asked)
    assert await leg.result(asked) == [("int64", 2)]
    assert now() >= sent_at + LONG_ENOUGH - GRAIN


LONG_ENOUGH = 2
"""Seconds: on RabbitMQ, Go loses what it delays by so little that twice that is over before it has been sent."""


async def eta(leg: Leg) -> None:
    due = now() + LONG_ENOUGH
    asked = call("record", "due", to=leg.runner, eta=moment(due))
    await leg.send(asked)
    assert await leg.result(asked) == [("string", "due")]
    assert min(leg.fleet.began_at(asked.uuid)) >= due - GRAIN


GRAIN = 0.002
"""Seconds: Go counts a delay on RabbitMQ in whole milliseconds, and leaves out what is over."""


def grain(leg: Leg) -> float:
    """How much too early (seconds) a retry may come: Go counts a delay on SQS in whole seconds."""
    return 1.0 if leg.fleet.pair.broker == "sqs" and leg.runner != PY else GRAIN


async def delayed_by_one_moved_by_the_other(leg: Leg) -> None:
    """Whoever sent has no worker then."""
    if leg.fleet.pair.broker != "redis":
        raise Impossible("the broker itself moves what is due")
    async with leg.fleet.alone, leg.fleet.paused(*{*LANGUAGES} - {leg.runner}):
        due = now() + 0.5
        asked = call("record", "due", to=leg.runner, eta=moment(due))
        await leg.send(asked)
        assert await leg.result(asked) == [("string", "due")]
    assert min(leg.fleet.began_at(asked.uuid)) >= due - GRAIN


def moment(at: float) -> int:
    """Unix nanoseconds."""
    return int(at * NANOSECONDS)


async def headers(leg: Leg) -> None:
    """Strings, which come back from the task; through a retry too, which is what ``retry`` looks at."""
    given = {"x-tenant": "a", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "ключ": "é\"'"}
    callback = call("signature", to=leg.sender, headers=given)
    asked = call("signature", to=leg.runner, headers=given, on_success=(callback,), immutable=True)
    await leg.send(asked)
    for each in (asked, callback):
        ((_, text),) = await leg.result(each)
        assert given.items() <= json.loads(text)["Headers"].items()


# — what follows a task —


async def on_success(leg: Leg) -> None:
    """Sent by whoever ran the task, to either language."""
    there, back = (call("add", 10, to=each) for each in (leg.runner, leg.sender))
    asked = call("add", 1, 2, to=leg.runner, on_success=(there, back))
    await leg.send(asked)
    assert await leg.results(asked, there, back) == [[("int64", 3)], [("int64", 13)], [("int64", 13)]]


async def on_error(leg: Leg) -> None:
    """Is given the text, in the language of whoever sent; and only then."""
    recorder, never = call("record", to=leg.sender), call("record", "never", to=leg.sender)
    asked = call("fail", "oops, é", to=leg.runner, on_error=(recorder,), on_success=(never,))
    await leg.send(asked)
    assert await leg.result(recorder) == [("string", text_of(leg.runner, "oops, é"))]
    assert await leg.failure(asked) == text_of(leg.runner, "oops, é")
    assert leg.fleet.began_at(never.uuid) == []


async def immutable(leg: Leg) -> None:
    """What is immutable hands nothing on; a callback that is takes nothing."""
    there, back = (call("join", "alone", to=each) for each in (leg.runner, leg.sender))
    asked = call("where", to=leg.runner, on_success=(there, back), immutable=True)
    members = [call("where", to=each) for each in (leg.runner, leg.sender)]
    callback = call("join", "alone", to=leg.runner, immutable=True)
    await leg.send(asked)
    await leg.send(*members, kind="chord", callback=callback)
    assert await leg.results(there, back, callback) == [[("string", "alone")]] * 3


async def chained(leg: Leg) -> None:
    """Through all three languages and back to the first."""
    links = [call("add", 1, to=each) for each in (leg.runner, leg.sender, leg.third, leg.runner)]
    links[0] = links[0].with_changes(args=(*(links[0].args or ()), Arg(type="int64", value=1)))
    await leg.send(*links, kind="chain")
    numbers = await leg.fleet.python.get(*(each.uuid for each in links))
    assert numbers == [[("int64", number)] for number in (2, 3, 4, 5)]
    assert await leg.results(*links, kind="chain") == [[("int64", 5)]]


async def grouped(leg: Leg) -> None:
    members = [call("where", to=each) for each in LANGUAGES]
    await leg.send(*members, kind="group")
    assert await leg.results(*members) == [[("string", WHERE[each])] for each in LANGUAGES]


async def chorded(leg: Leg) -> None:
    """With members of all languages and a callback of either; with members of one and a callback of another."""
    await asyncio.gather(
        *(chord(leg, LANGUAGES, callback) for callback in (leg.runner, leg.sender)),
        chord(leg, [leg.runner] * 2, leg.sender),
        chord(leg, [leg.sender] * 2, leg.runner),
        *(chord_of_numbers(leg, leg.runner, callback) for callback in (leg.runner, leg.sender)),
        chord_of_numbers(leg, leg.sender, leg.runner),
    )


async def chord(leg: Leg, members: Sequence[str], callback: str) -> None:
    asked, after = [call("where", to=each) for each in members], call("join", "from", to=callback)
    await leg.send(*asked, kind="chord", callback=after)
    ((type_name, text),) = (await leg.results(*asked, after, kind="chord"))[0]
    assert type_name == "string"
    first, *others = text.split(",")
    # elsewhere Go takes them as they come
    keeps_order = leg.fleet.pair.backend in ("redis", "cluster", "sentinel", "memcached")
    expected = [WHERE[each] for each in members]
    assert (first, others if keeps_order else sorted(others)) == ("from", expected if keeps_order else sorted(expected))


async def chord_of_numbers(leg: Leg, members: str, callback: str) -> None:
    """They come as numbers, whatever the backend makes of them."""
    asked, after = [call("add", 1, number, to=members) for number in (1, 2)], call("total", to=callback)
    await leg.send(*asked, kind="chord", callback=after)
    assert await leg.results(*asked, after, kind="chord") == [[("int64", 5)]]


async def failing_member(leg: Leg) -> None:
    """Its callback does not run, and ends in failure too: by our worker that ends last; where Go's does, which does
    nothing about it, by our workers who look after what we have sent."""
    await asyncio.gather(*(_failing_member(leg, last) for last in (PY, leg.version)))
    if leg.sender != PY:
        leg.left_out.add("of a chord that Go has sent and ends itself, the callback never gets a state")


async def _failing_member(leg: Leg, last: str) -> None:
    members = [call("fail", "oops", to=leg.runner), call("sleep", 1, to=last)]
    callback = call("record", to=leg.sender)
    async with leg.fleet.alone:  # two that pause each other's workers would wait for ever
        async with leg.fleet.paused(*{last} - {leg.runner}):
            await leg.send(*members, kind="chord", callback=callback)
            assert await leg.failure(members[0]) == text_of(leg.runner, "oops")
        assert await leg.result(members[1]) == [("int64", 1)]
    if leg.sender == PY:
        with pytest.raises(MemberFailed, match="oops"):
            await leg.fleet.python.sent[callback.uuid].get(DEADLINE)
    if leg.sender == PY or last == PY:
        assert members[0].uuid in await leg.failure(callback)
    assert leg.fleet.began_at(callback.uuid) == []


# — queues —


async def unknown_on_one_side(leg: Leg) -> None:
    """A queue that both work on: whoever does not know a task leaves it to the other."""
    queue = SHARED[leg.sender, leg.runner]
    asked = [call("py_only" if leg.runner == PY else "go_only", to=queue) for _ in range(5)]
    if leg.runner == PY:
        async with leg.fleet.working(leg.version, queue) as worker:
            assert isinstance(worker, GoWorker)
            async with leg.fleet.paused(PY):
                await leg.send(*asked)
                await eventually(lambda: asyncio.to_thread(lambda: "not registered" in worker.said()))
            found = await leg.results(*asked)
    else:
        await leg.send(*asked)
        if leg.fleet.pair.broker == "redis":
            await eventually(lambda: _was_given_back(leg, asked))
        async with leg.fleet.working(leg.version, queue):
            found = await leg.results(*asked)
    assert found == [[("string", WHERE[leg.runner])]] * len(asked)
    assert await leg.fleet.server.dead(queue) == []


async def _was_given_back(leg: Leg, asked: Sequence[Signature]) -> bool:
    waiting = await leg.fleet.server.get_delayed_tasks()
    return any(each.uuid == asked[0].uuid and "aq-unknown-times" in (each.headers or {}) for each in waiting)


async def priorities(leg: Leg) -> None:
    """The more urgent first, of what waits when the worker comes."""
    if leg.fleet.pair.broker != "rabbitmq":
        raise Impossible("the broker has no priorities")
    queue = f"urgent-{leg.sender}-{leg.runner}"
    numbers = random.Random(7).sample(range(1, 10), 9)
    asked = [call("record", str(each), to=queue, priority=each) for each in numbers]
    for each in asked:
        await leg.client.send(each)
    async with leg.fleet.working(leg.runner, queue, concurrency=1):
        await leg.results(*asked)
    order = sorted(asked, key=lambda each: leg.fleet.began_at(each.uuid))
    assert [each.priority for each in order] == sorted(numbers, reverse=True)


async def pending(leg: Leg) -> None:
    """What one has sent and nobody took, the other can look at."""
    queue = f"waiting-{leg.sender}-{leg.runner}"
    asked = [call("add", each, 1, to=queue) for each in range(3)]
    for each in asked:
        await leg.client.send(each)
    if leg.runner == PY:
        try:
            seen = await leg.fleet.server.get_pending_tasks(queue)
        except Refused:
            raise Impossible("RabbitMQ shows messages only to who takes them: ours are not to be looked at") from None
    else:
        seen = await leg.fleet.in_go[leg.runner].pending(queue)
    assert [(each.uuid, each.name, each.args) for each in seen] == [(each.uuid, "add", each.args) for each in asked]


async def delayed(leg: Leg) -> None:
    """What one has delayed, the other can look at."""
    due = moment(now() + 3_600)
    asked = call("add", 1, 1, to=leg.runner, eta=due)
    await leg.client.send(asked)
    try:
        if leg.runner == PY:
            seen = await leg.fleet.server.get_delayed_tasks()
        else:
            seen = await leg.fleet.in_go[leg.runner].delayed()
    except Refused:
        raise Impossible("RabbitMQ does not show what is delayed") from None
    except GoError as exc:
        if "Not implemented" not in str(exc):
            raise
        raise Impossible("RabbitMQ does not show what is delayed") from None
    assert [(each.uuid, each.eta) for each in seen if each.uuid == asked.uuid] == [(asked.uuid, due)]


async def periodic(leg: Leg) -> None:
    """Two schedulers on one lock: the sender's begins, then there are both, then the other's goes on alone. Each
    occurrence is sent once."""
    queue = f"tick-{leg.sender}-{leg.runner}"
    task = Signature(name="where", routing_key=queue)

    async def sent() -> list[str]:
        waiting = await leg.fleet.in_go[leg.version].pending(queue)  # ours shows nothing on RabbitMQ
        return [each.uuid for each in waiting if each.routing_key == queue]

    ids: list[str] = []

    async def until_sent(more: int) -> None:
        nonlocal ids
        wanted = len(ids) + more
        async with asyncio.timeout(60):
            # a look on RabbitMQ finds fewer, or none, while those of the look before are being put back
            while len(ids := max(ids, await sent(), key=len)) < wanted:
                await asyncio.sleep(0.3)

    ours = leg.fleet.scheduling(leg.version, SPEC, queue, task)
    theirs = leg.fleet.scheduling_in_go(leg.version, SPEC, queue, task)
    first, second = (ours, theirs) if leg.sender == PY else (theirs, ours)
    async with AsyncExitStack() as alone:
        await alone.enter_async_context(first)
        await until_sent(1)
        async with second:
            await until_sent(3)
            await alone.aclose()
            await until_sent(1)
    states = [await leg.fleet.python.state(each) for each in ids]
    seconds = sorted(each.created_at // NANOSECONDS for each in states)
    assert len(ids) == len(set(ids))
    assert len(seconds) <= seconds[-1] - seconds[0] + 1, f"more were sent than came due: {seconds}"


SPEC = "@every 1s"


ROWS = (
    Row("send", send, is_core=True),
    Row("typed arguments", typed_arguments, is_core=True),
    Row("several results", several_results),
    Row("no result", no_result),
    Row("failure, panic", failure, is_core=True),
    Row("retry, Fibonacci waits", retry, is_core=True),
    Row("retry later", retry_later),
    Row("ETA", eta),
    Row("delayed here, moved there", delayed_by_one_moved_by_the_other),
    Row("OnSuccess", on_success),
    Row("OnError", on_error),
    Row("chain", chained, is_core=True),
    Row("group", grouped),
    Row("chord", chorded, is_core=True),
    Row("chord, a member fails", failing_member),
    Row("Immutable", immutable),
    Row("unknown on one side", unknown_on_one_side),
    Row("priorities", priorities),
    Row("headers", headers),
    Row("pending inspection", pending),
    Row("delayed inspection", delayed),
    Row("periodic, one lock", periodic),
)
