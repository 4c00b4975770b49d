"""What is refused where Go's workers share queues, and that nothing of it is sent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from asyncqueue import Arg, ArgumentError, BadMessage, Server, Signature, Worker, arguments, wire
from asyncqueue.brokers.base import Capabilities
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.builders import chain, chord, group
from asyncqueue.clock import NANOSECONDS
from asyncqueue.config import Settings
from asyncqueue.go_compat import GoCompat, as_meant, problem_for_go
from asyncqueue.testing.clock import ManualClock
from asyncqueue.workflow import WATCH, tasks_in
from tests.wire import goldens

OURS, GOS = "python", "go"
EVERYWHERE = GoCompat(is_on=True)


def server_beside(*queues: str, is_on: bool = True) -> Server:
    """A server of ours, whose default queue is ``OURS``, beside Go's workers on these queues."""
    settings = Settings.parse({"default_queue": OURS, "go_compat": is_on, "go_queues": list(queues)})
    server = Server(f"memory://{uuid4()}", settings=settings)

    @server.task(name="known")
    async def known(first: int = 1, *, second: int = 2) -> int:
        return first + second

    @server.task(name="mapped")
    async def mapped() -> dict[str, int]:
        return {"a": 1}

    @server.task(name="anything")
    async def anything() -> Any:
        return {"a": 1}

    return server


def call(name: str, *args: tuple[str, Any], to: str = GOS, **fields: Any) -> Signature:
    """A signature that somebody has built by hand."""
    return Signature(
        name=name, routing_key=to, args=tuple(Arg(type=kind, value=value) for kind, value in args), **fields
    )


def total(to: str = GOS, **fields: Any) -> Signature:
    return call("total", to=to, **fields)


REFUSED: list[tuple[Signature, str]] = [
    (call("add", ("json", {"a": 1})), r"task add: argument 1 is of type json, .* expected one of Go's types"),
    (call("add", ("int64", 1), ("strin", "x")), r"argument 2: strin is not one of supported types"),
    (call("add", ("int64", 1.0)), r"argument 1: 1\.0 is not int64: expected an integer from"),
    (call("add", ("int64", "1")), r"argument 1: '1' is not int64"),
    (call("add", ("int64", True)), r"argument 1: True is not int64"),
    (call("add", ("int8", 300)), r"300 is not int8: expected an integer from -128 to 127"),
    (call("add", ("uint64", -1)), r"-1 is not uint64"),
    (call("add", ("float32", 1e39)), r"1e\+39 is not? float32"),
    (call("add", ("[]int64", [1, None])), r"not \[\]int64"),
    (call("add", ("[]byte", "no base64!")), r"not \[\]byte"),
    (call("add", on_success=(call("b", ("json", 1)),)), r"task b: argument 1 is of type json"),
    (call("add", on_error=(call("b", ("json", 1)),)), r"task b: argument 1 is of type json"),
    (call("a", to=OURS, on_success=(call("b", ("json", 1)),)), r"task b: .* queue 'go' is one of Go's"),
    (call("add", headers={"n": 1}), r"header 'n' is a number, .* expected text"),
    (call("add", headers={"n": {"a": "b"}}), r"header 'n' is an object"),
    (call("add", headers={"n": ["a", 1.5]}), r"header 'n' is a list with numbers"),
    (call("add", stop_task_deletion_on_error=True), r"StopTaskDeletionOnError restarts the worker in Go"),
    (call("add", eta="2262-05-01T00:00:00Z"), r"ETA is after April 2262"),
    (call("add", uuid=OURS), r"UUID 'python' is the name of a queue"),
    (call("add", uuid="amq.rabbit"), r"begins as the names that RabbitMQ keeps for itself"),
    (call("mapped", to=OURS, on_success=(call("b"),)), r"task mapped: it returns what has only type json; .* task b"),
]


@pytest.mark.parametrize(("signature", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_would_hurt_a_worker_in_go_is_refused_and_nothing_is_sent(signature: Signature, said: str) -> None:
    queues = () if signature.uuid == OURS else (GOS,)
    async with server_beside(*queues) as server:
        with pytest.raises(ArgumentError, match=said) as caught:
            await server.send_task(signature)
        assert "(go_compat)" in str(caught.value)
        with pytest.raises(ArgumentError, match=said):
            await server.send(chain(call("first"), signature))
        if not signature.uuid and signature.eta is None:  # an occurrence has its own
            with pytest.raises(ArgumentError, match=said):
                server.schedule("@hourly", "by the hour", signature)
        assert [(each.queue, each.ready, each.delayed) for each in await server.queues() if each.pending] == []


@pytest.mark.parametrize("signature", [each for each, _ in REFUSED], ids=str)
def test_where_go_is_not_the_same_is_no_problem(signature: Signature) -> None:
    for go in (GoCompat(), GoCompat(is_on=True, queues=frozenset({"elsewhere"}))):
        assert problem_for_go(signature, go, default_queue=OURS) is None


def test_sqs_knows_what_keeps_a_failed_message() -> None:
    kept = call("add", stop_task_deletion_on_error=True)
    assert problem_for_go(kept, GoCompat(is_on=True, keeps_failed=True), default_queue=OURS) is None


def test_headers_that_go_can_write_are_let_through() -> None:
    fine = call("add", headers={"text": "1", "flag": True, "nothing": None, "list": ["a", False]})
    assert problem_for_go(fine, EVERYWHERE, default_queue=OURS) is None


async def test_arguments_by_name_are_for_functions_that_are_known_here() -> None:
    async with server_beside() as server:
        with pytest.raises(ArgumentError, match=r"task other: its arguments are given by name, .* give them in order"):
            await server.send_task("other", first=1)
        await server.send_task("known", first=1)


@pytest.mark.parametrize("version", goldens.VERSIONS)
def test_every_argument_that_go_refuses_is_refused_before_it_is_sent(version: str) -> None:
    """And what Go silently makes another value of."""
    counts = {True: 0, False: 0}
    for vector in goldens.reflect_vectors(version):
        try:
            signature = wire.decode_signature(f'{{"Name":"n","Args":[{vector.arg}]}}'.encode())
        except BadMessage:  # what JSON cannot say in the first place
            assert not vector.accepted
            continue
        problem = problem_for_go(signature, EVERYWHERE, default_queue=OURS)
        assert vector.accepted or problem is not None, vector.arg
        if problem is not None:
            assert "expected" in problem or "is not one of supported types" in problem, problem
        else:
            back = arguments.decode(vector.go_type, json.loads(vector.encoded))
            assert signature.args is not None
            assert back == arguments.decode(vector.type, signature.args[0].value)
        counts[problem is None] += 1
    print(f"{version}: {counts[True]} let through, {counts[False]} refused")
    assert counts[True] == 218


async def test_what_a_broker_cannot_put_off_for_long_enough_is_refused_beside_go() -> None:
    """A worker of ours would put it off once more, one in Go would run it."""

    class UpToAQuarter(MemoryBroker):
        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, max_delay=900.0)

    clock = ManualClock()
    settings = Settings.parse({"default_queue": OURS, "go_compat": True, "go_queues": [GOS]})
    broker = UpToAQuarter(clock=clock)
    async with Server(broker=broker, backend="null://", settings=settings, clock=clock) as server:
        in_time, too_late = (clock.now_ns() + seconds * NANOSECONDS for seconds in (900, 1_200))
        await server.send_many([call("add", eta=in_time), call("add", to=OURS, eta=too_late)])
        with pytest.raises(
            ArgumentError, match=r"task add: its ETA is in 1200 s, and .* for 900 s at most, .* earlier"
        ):
            await server.send_task(call("add", eta=too_late))
        assert len(await server.get_delayed_tasks()) == 2


# — results, groups, workflows —


async def test_a_result_that_go_cannot_be_given_is_a_failure_that_says_so() -> None:
    async with server_beside(GOS) as server, Worker(server):
        result = await server.send_task(call("anything", to=OURS, on_success=(call("b"),)))
        state = await result.wait(10)
        assert "result 1 is of type json" in state.error
        assert "handed on to task b, whose queue 'go' is one of Go's workers too (go_compat)" in state.error
        alone = await server.send_task(
            call("anything", to=OURS, on_success=(call("anything", to=OURS, immutable=True),))
        )
        assert await alone.get(timeout=10) == {"a": 1}


async def test_a_group_is_failed_whose_results_go_cannot_be_given() -> None:
    async with server_beside(GOS) as server, Worker(server):
        handle = await server.send_chord(chord([call("anything", to=OURS), call("known", to=OURS)], total()))
        state = await server.result(handle.callback.id).wait(10)
        assert "member 'anything'" in state.error
        assert "handed on to task total" in state.error


@pytest.mark.parametrize(
    "work",
    [
        chord([total()], total(OURS), on_failure="skip"),
        chord([total(OURS)], total(), on_failure="pass"),
        chain(total(), chord([total(OURS)], total(OURS), on_failure="skip")),
    ],
)
async def test_policies_are_refused_where_a_task_is_on_a_queue_of_go(work: Any) -> None:
    async with server_beside(GOS) as server:
        with pytest.raises(ArgumentError, match=r"on_failure='.*' is known to Python workers only, .* \(go_compat\)"):
            await server.send(work)
        assert not [each for each in await server.queues() if each.pending]


async def test_workflows_of_queues_without_go_are_as_ever() -> None:
    async with server_beside(GOS) as server, Worker(server):
        handle = await server.send(chord([call("anything", to=OURS)], call("known", to=OURS), on_failure="skip"))
        with pytest.raises(Exception, match="known"):  # it is given an object
            await handle.get(10)
        long = await server.send(chain(*(call("known", to=OURS) for _ in range(300))))
        assert await long.get(30) == 601


def test_a_group_that_go_may_be_part_of_is_looked_after() -> None:
    server = server_beside(GOS)
    works = {
        "none of it": group(total(OURS), total(OURS)) | total(OURS),
        "a member": group(total(OURS), total()) | total(OURS),
        "before a member": group(total(OURS), chain(total(uuid="ahead"), total(OURS))) | total(OURS),
        "the callback": group(total(OURS), total(OURS)) | total(),
    }
    watches = {
        name: [(each.routing_key, [arg.value for arg in each.args or ()][1:]) for each in tasks if each.name == WATCH]
        for name, work in works.items()
        for tasks in [tasks_in(server._compiled(work).entries)]
    }
    assert watches == {
        "none of it": [],
        "a member": [("python.aq", [[]])],
        "before a member": [("python.aq", [["ahead"]])],
        "the callback": [],
    }


async def test_an_eager_server_has_nobody_to_look_after() -> None:
    settings = Settings(go_compat=True, go_queues=("z",), default_queue="a")  # so the watch is found before the members
    async with Server("eager", settings=settings) as server:

        @server.task(queue="z")
        async def add(*numbers: int) -> int:
            return sum(numbers)

        handle = await asyncio.wait_for(server.send_chord(chord([add.s(1), add.s(2)], add.s(3))), 30)
        assert await handle.get(timeout=10) == 6


def test_built_in_tasks_beside_queues_of_go_go_where_workers_of_ours_are() -> None:
    server = server_beside(GOS)
    entries = server._compiled(group(total(), total()) | group(total(), total()) | total("other")).entries
    assert {each.routing_key for each in tasks_in(entries) if each.name.startswith("aq.")} == {"python.aq"}
    without = server_beside(is_on=False)
    entries = without._compiled(group(total(), total()) | group(total(), total()) | total("other")).entries
    assert {each.routing_key for each in tasks_in(entries) if each.name.startswith("aq.")} == {"go.aq"}


def server_on_aws() -> Server:
    settings = Settings.parse({"default_queue": OURS, "go_compat": True, "go_queues": [GOS]})
    sqs, dynamodb = "https://sqs.eu-west-1.amazonaws.com/1", "https://dynamodb.eu-west-1.amazonaws.com"
    return Server(broker=sqs, backend=dynamodb, settings=settings)


def test_on_sqs_go_finds_companion_queues_by_the_names_that_they_have_there() -> None:
    """It looks for a queue by the letters of its name, and SQS has no dots."""
    server = server_on_aws()
    entries = server._compiled(chain(call("first"), chord([total(), total()], total(), group_timeout=9.0))).entries
    built_in = {each.name: each.routing_key for each in tasks_in(entries) if each.name.startswith("aq.")}
    assert built_in == dict.fromkeys(["aq.deadline", "aq.watch", "aq.pass"], "python-aq")
    go = server.rules().go
    assert not go.shares("python-aq")
    assert not go.shares("python.aq")
    assert go.companion("python-aq", OURS) == "python-aq"


@pytest.mark.parametrize(
    ("callback", "is_between"), [(total(), True), (total(immutable=True), False), (total(to=OURS), False)]
)
def test_of_what_go_keeps_as_text_a_callback_in_go_is_given_values_by_ours(
    callback: Signature, is_between: bool
) -> None:
    entries = server_on_aws()._compiled(chord([total(), total()], callback)).entries
    after = [each.chord_callback for each in entries if each.name == "total"]
    assert {each.name for each in after if each is not None} == {"aq.pass" if is_between else "total"}


def test_what_go_prints_of_a_value_is_that_value_again() -> None:
    printed = [("int64", "-5"), ("float32", "1e+08"), ("bool", "true"), ("[]int8", "[1 2]"), ("[]byte", "[104 105]")]
    args = [*printed, ("string", "[1 2]"), ("int64", 7), ("[]byte", "aGk="), ("int64", "seven"), ("[]string", ["a"])]
    meant = as_meant(call("add", *args)).args or ()
    said = [-5, 1e8, True, [1, 2], "aGk=", "[1 2]", 7, "aGk=", "seven", ["a"]]
    assert [(each.type, each.value) for each in meant] == [
        (kind, value) for (kind, _), value in zip(args, said, strict=True)
    ]


@pytest.mark.parametrize("is_on", [True, False])
async def test_callbacks_without_a_queue_are_sent_to_ours_by_go_too(is_on: bool) -> None:
    async with server_beside(is_on=is_on) as server:
        inner = call("after", to="", on_error=(call("handler", to=""),))
        await server.send_task(call("first", on_success=(inner, call("elsewhere"))))
        (sent,) = await server.get_pending_tasks(GOS)
    after, elsewhere = sent.on_success or ()
    (handler,) = after.on_error or ()
    queue = OURS if is_on else ""
    assert [each.routing_key for each in (sent, after, handler, elsewhere)] == [GOS, queue, queue, GOS]


async def test_a_task_that_go_may_drop_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with server_beside() as server:
        for _ in range(3):
            await server.send_task(call("maybe", ignore_when_task_not_registered=True))
    assert [record.message for record in caplog.records if "maybe is dropped without a trace" in record.message] == [
        "task maybe is dropped without a trace by any worker in Go of queue 'go' that has not registered it: it was "
        "sent with IgnoreWhenTaskNotRegistered, and go_compat is on"
    ]
