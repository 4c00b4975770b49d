"""A trace runs from the sender through everything that comes of a send."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.jaeger import JaegerPropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asyncqueue import (
    ArgumentError,
    Chain,
    RetryTaskLater,
    Server,
    TaskContext,
    Unavailable,
    Worker,
    chain,
    chord,
    group,
)
from asyncqueue.contrib.opentelemetry import TraceIds, Tracing
from asyncqueue.engine.periodic import Rota
from asyncqueue.signature import Signature
from asyncqueue.state import State
from asyncqueue.testing import ManualClock
from tests.path.bench import PATIENCE
from tests.path.traced import TREE, sums, with_tasks
from tests.spans import Span, read_from, spans_of, tree

ROOT = Path(__file__).parent.parent.parent
SECRET = "hunter2"


@dataclass
class Traced:
    """A server whose spans are kept here."""

    server: Server
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    provider: TracerProvider = field(default_factory=lambda: TracerProvider(shutdown_on_exit=False))

    def __post_init__(self) -> None:
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def observe(self, propagator: TextMapPropagator | None = None) -> None:
        self.server.observe(Tracing(tracer_provider=self.provider, propagator=propagator))

    @property
    def spans(self) -> list[Span]:
        return spans_of(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> Span:
        (span,) = self.named(name)
        return span


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    traced = Traced(Server(f"memory://{tmp_path.name}"))
    yield traced
    await traced.server.close()


def shown(spans: Sequence[Span]) -> str:
    """The tree, printed too."""
    drawn = tree(spans)
    print(f"\n{drawn}")
    return drawn


# — trees —


async def test_the_spans_of_a_chord_are_one_tree(traced: Traced) -> None:
    server = with_tasks(traced.server, traced.provider)
    async with Worker(server):
        report = await (await server.send(sums(server))).get(timeout=PATIENCE)
        assert await server.result(report).get(timeout=PATIENCE) == "the total is 3"
    assert shown(traced.spans) == TREE
    assert len({span.trace_id for span in traced.spans}) == 1


async def test_the_spans_of_a_chord_are_one_tree_across_two_processes(redis_url: str, tmp_path: Path) -> None:
    traced = Traced(Server(redis_url))
    server = with_tasks(traced.server, traced.provider)
    path = tmp_path / "spans"
    process = subprocess.Popen([sys.executable, "-m", "tests.path.traced", redis_url, str(path)], cwd=ROOT)
    try:
        async with server:
            report = await (await server.send(sums(server))).get(timeout=PATIENCE)
            assert await server.result(report).get(timeout=PATIENCE) == "the total is 3"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    here, there = traced.spans, read_from(path)
    assert {span.kind for span in here} == {"PRODUCER"}
    assert shown([*here, *there]) == TREE
    assert len({span.trace_id for span in (*here, *there)}) == 1


async def test_the_links_of_a_chain_and_the_callbacks_of_a_task_are_children_of_the_send(traced: Traced) -> None:
    server = traced.server
    traced.observe()
    handled = asyncio.Event()

    @server.task
    async def double(number: int) -> int:
        return 2 * number

    @server.task
    async def oops(number: int) -> int:
        raise ValueError(f"oops {number}")

    @server.task
    async def note(*values: Any) -> None:
        handled.set()

    @server.task
    async def never(number: int) -> int:
        return number

    async with Worker(server):
        failing = oops.with_(on_error=note.s()).s()
        result = await server.send_chain(
            chain(double.with_(on_success=double.s()).s(1), double.s(), failing, never.s())
        )
        await result.wait(timeout=PATIENCE)
        await asyncio.wait_for(handled.wait(), PATIENCE)
    assert shown(traced.spans) == ("SendChain\n├─ double\n├─ double\n├─ double\n├─ note\n└─ oops ! ValueError")


async def test_a_task_that_goes_on_as_a_workflow_and_one_that_adds_to_its_group_are_parents(traced: Traced) -> None:
    server = traced.server
    traced.observe()

    @server.task
    async def one() -> int:
        return 1

    @server.task
    async def adding(ctx: TaskContext) -> int:
        await ctx.add_to_group(one.s(), one.s())
        return 1

    @server.task
    async def becoming() -> Chain[int]:
        return chain(one.s(), one.si())

    @server.task
    async def total(*parts: int) -> int:
        return sum(parts)

    async with Worker(server):
        result = await server.send_chord(chord([adding.s(), becoming.s()], total.s()))
        assert await result.get(timeout=PATIENCE) == 4
    assert shown(traced.spans) == (
        "SendChord\n"
        "├─ adding\n│  └─ SendGroup\n│     ├─ one\n│     └─ one\n"
        # the last one goes on as the task itself, whose next run it is
        "├─ becoming\n│  └─ SendChain\n│     ├─ one\n│     └─ one (run 2)\n"
        "└─ total"
    )
    assert "task replaced" in traced.only("becoming").events
    assert traced.only("SendGroup").attributes["group.uuid"] == traced.only("adding").attributes["signature.group.uuid"]


async def test_what_travels_in_plans_is_in_the_trace_too(traced: Traced) -> None:
    server = traced.server
    traced.observe()

    @server.task
    async def more(number: int) -> int:
        return number + 1

    links = 120
    async with Worker(server):
        result = await server.send_chain(chain(more.s(0), *(more.s() for _ in range(links - 1))))
        assert await result.get(timeout=PATIENCE) == links
    send = traced.only("SendChain")
    assert [span.parent_id for span in traced.named("more")] == [send.span_id] * links


async def test_eager_tasks_are_children_of_their_sends_too(traced: Traced) -> None:
    server = Server("eager")
    with_tasks(server, traced.provider)
    with traced.provider.get_tracer("test").start_as_current_span("request"):
        await server.send(sums(server))
    await server.close()
    assert shown(traced.spans) == "request\n" + "\n".join(
        ("└─ " if number == 0 else "   ") + line for number, line in enumerate(TREE.splitlines())
    )


# — where a trace begins —


async def test_a_send_is_a_child_of_the_current_span_and_each_of_many_has_its_own(traced: Traced) -> None:
    server = with_tasks(traced.server, traced.provider)
    with traced.provider.get_tracer("test").start_as_current_span("request"):
        results = await server.send_many([server.signature("report", 1), server.signature("report", 2)])
    with traced.provider.get_tracer("test").start_as_current_span("other"):  # with which the tasks have nothing to do
        async with Worker(server):
            for result in results:
                await result.wait(timeout=PATIENCE)
    assert shown(traced.spans) == "other\nrequest\n├─ SendTask\n│  └─ report\n└─ SendTask\n   └─ report"


async def test_a_task_without_headers_begins_a_trace(traced: Traced, tmp_path: Path) -> None:
    server = with_tasks(traced.server, traced.provider)
    untraced = Server(f"memory://{tmp_path.name}")
    result = await untraced.send_task("report", 1)
    with traced.provider.get_tracer("test").start_as_current_span("other"):
        async with Worker(server):
            await server.result(result.id).wait(timeout=PATIENCE)
    await untraced.close()
    assert traced.only("report").parent_id == ""
    assert traced.only("report").trace_id != traced.only("other").trace_id


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nonsense"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "\x00" * 600, "tracestate": "=,=", "baggage": "%%%;;=" * 100},
        {"traceparent": 7, "tracestate": ["a"], "baggage": None},
    ],
    ids=["nonsense", "zeros", "too long", "no text"],
)
async def test_broken_headers_begin_a_trace_and_fail_nothing(
    traced: Traced, tmp_path: Path, headers: dict[str, Any]
) -> None:
    server = with_tasks(traced.server, traced.provider)
    untraced = Server(f"memory://{tmp_path.name}")
    result = await untraced.send_task(untraced.signature("report", 1).with_changes(headers=headers))
    async with Worker(server):
        assert await server.result(result.id).get(timeout=PATIENCE) == "the total is 1"
    await untraced.close()
    assert traced.only("report").parent_id == ""


async def test_a_header_that_is_no_text_does_not_break_a_trace(traced: Traced, tmp_path: Path) -> None:
    server = with_tasks(traced.server, traced.provider)
    untraced = Server(f"memory://{tmp_path.name}")
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": 7}
    result = await untraced.send_task(untraced.signature("report", 1).with_changes(headers=headers))
    async with Worker(server):
        await server.result(result.id).wait(timeout=PATIENCE)
    await untraced.close()
    assert traced.only("report").parent_id == "b" * 16


class Raising(TraceContextTextMapPropagator):
    """A propagator that cannot take what it finds."""

    def extract(
        self, carrier: CarrierT, context: context.Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> context.Context:
        raise KeyError("traceparent")

    def inject(
        self,
        carrier: CarrierT,
        context: context.Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        raise KeyError("traceparent")


class Speechless(Exception):
    """An exception that cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


async def test_a_propagator_that_raises_fails_nothing(traced: Traced) -> None:
    traced.observe(Raising())

    @traced.server.task
    async def one() -> int:
        return 1

    async with Worker(traced.server):
        assert await (await one.send()).get(timeout=PATIENCE) == 1
    assert traced.only("one").parent_id == ""
    assert traced.only("SendTask").events == {}


async def test_every_occurrence_of_a_schedule_is_a_trace(tmp_path: Path) -> None:
    clock = ManualClock()
    traced = Traced(Server(f"memory://{tmp_path.name}", clock=clock))
    server = with_tasks(traced.server, traced.provider)
    server.schedule("@every 10s", "nightly", server.signature("report", 1), overlap="skip")
    server.schedule("@every 10s", "sums", sums(server))
    with traced.provider.get_tracer("test").start_as_current_span("start"):
        for schedule in server.schedules():
            rota = Rota(schedule, await server._office(f"owner of {schedule.name}"))
            await rota.tick()
            for _ in range(2):
                clock.advance(10)
                await rota.tick()
    await server.close()
    task = traced.only("SendTask")  # the second one was left out: the first one has not ended
    assert task.attributes["asyncqueue.schedule"] == "nightly"
    chords = traced.named("SendChord")
    assert [span.attributes["asyncqueue.schedule"] for span in chords] == ["sums", "sums"]
    assert [span.parent_id for span in (task, *chords)] == ["", "", ""]
    assert len({span.trace_id for span in traced.spans}) == 4


# — what is in them —


async def test_spans_have_machinerys_attributes_and_those_of_messaging(traced: Traced) -> None:
    server = with_tasks(traced.server, traced.provider)
    alone = await server.send_task("report", 1)
    line = await server.send_chain(chain(server.signature("report", 1), server.signature("part")))
    some = await server.send_group(group(server.signature("part", 1), server.signature("part", 3)), 1)
    joined = await server.send_chord(sums(server))

    sent = {"component": "machinery", "messaging.system": "asyncqueue"}
    sent |= {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    sent |= {"messaging.destination.name": "machinery_tasks"}
    task = {"signature.name": "report", "signature.uuid": alone.id, "messaging.message.id": alone.id}
    assert traced.only("SendTask").attributes == sent | task
    assert traced.only("SendChain").attributes == sent | {
        "machinery.workflow": "chain",
        "chain.tasks.length": 2,
        "messaging.batch.message_count": 1,
    }
    members = [member.id for member in some.members]
    assert traced.only("SendGroup").attributes == sent | {
        "machinery.workflow": "group",
        "group.uuid": some.id,
        "group.tasks.length": 2,
        "group.concurrency": 1,
        "group.tasks": f'["{members[0]}", "{members[1]}"]',
        "messaging.batch.message_count": 2,
    }
    found = traced.only("SendChord").attributes
    assert found["machinery.workflow"] == "chord"
    assert found["chord.callback.uuid"] == joined.id
    assert (found["group.tasks.length"], found["group.concurrency"]) == (2, 0)

    async with Worker(server):
        await joined.wait(timeout=PATIENCE)
    again = next(span for span in traced.named("part") if span.attributes["signature.attempt"] == 2)
    uuid = again.attributes["signature.uuid"]
    assert uuid in found["group.tasks"]
    assert again.kind == "CONSUMER"
    assert again.attributes == {
        "component": "machinery",
        "messaging.system": "asyncqueue",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "machinery_tasks",
        "messaging.message.id": uuid,
        "signature.name": "part",
        "signature.uuid": uuid,
        "signature.group.uuid": found["group.uuid"],
        "signature.chord.callback.uuid": joined.id,
        "signature.chord.callback.name": "total",
        "signature.attempt": 2,
        "signature.deliveries": 1,
    }
    await line.wait(timeout=PATIENCE)


async def test_failures_retries_and_time_limits_show(traced: Traced) -> None:
    server = traced.server
    traced.observe()

    @server.task(retries=1, backoff="fixed:0")
    async def failing() -> None:
        raise ValueError("no luck")

    @server.task(timeout=0.01)
    async def slow() -> None:
        await asyncio.Event().wait()

    @server.task
    async def later(ctx: TaskContext) -> None:
        if ctx.attempt == 1:
            raise RetryTaskLater(0.0, "not now")

    async with Worker(server):
        for task in (failing, slow, later):
            await (await task.send()).wait(timeout=PATIENCE)
    first, second = _runs(traced, "failing")
    assert first.events["task retried"] == {"retry.delay": 0.0, "retry.attempt": 2}
    assert "task retried" not in second.events
    for span in (first, second):
        assert (span.status, span.description) == ("ERROR", "ValueError: no luck")
        assert span.attributes["error.type"] == "ValueError"
        assert span.events["exception"]["exception.message"] == "no luck"
        assert "raise ValueError" in span.events["exception"]["exception.stacktrace"]
    assert traced.only("slow").description == "TimeoutError: ran over its time limit of 0.01 s"
    asked, ran = _runs(traced, "later")
    assert (asked.status, ran.status) == ("UNSET", "UNSET")
    assert asked.events == {"task retried": {"retry.delay": 0.0, "retry.attempt": 2}}
    assert ran.events == {}


async def test_the_span_of_an_exception_that_has_no_text_ends_too(traced: Traced) -> None:
    server = traced.server
    traced.observe()

    @server.task(retries=1, backoff="fixed:0")
    async def mute() -> None:
        raise Speechless

    async with Worker(server):
        await (await mute.send()).wait(timeout=PATIENCE)
    assert [span.description for span in _runs(traced, "mute")] == ["Speechless: <its text cannot be read>"] * 2


def _runs(traced: Traced, name: str) -> list[Span]:
    """The runs of a task, in order."""
    return sorted(traced.named(name), key=lambda span: int(span.attributes["signature.attempt"]))


async def test_a_run_that_a_stop_gives_back_has_ended_and_not_failed(traced: Traced) -> None:
    server = traced.server
    traced.observe()
    begun = asyncio.Event()

    @server.task
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with Worker(server, grace=0.0):
        await endless.send()
        await asyncio.wait_for(begun.wait(), PATIENCE)
    span = traced.only("endless")
    assert (span.status, span.events) == ("UNSET", {"task cancelled": {}})


async def test_no_argument_and_no_result_is_in_a_span(traced: Traced, tmp_path: Path) -> None:
    server = traced.server
    traced.observe()

    @server.task
    async def count(number: int, text: str = "") -> str:
        return text

    untraced = Server(f"memory://{tmp_path.name}")
    unfit = await untraced.send_task("count", SECRET)
    with pytest.raises(ArgumentError, match=SECRET):
        await server.send_task("count", SECRET)
    with pytest.raises(ArgumentError, match=SECRET):
        await server.send_many([untraced.signature("count", SECRET)])
    async with Worker(server):
        assert await (await count.send(1, SECRET)).get(timeout=PATIENCE) == SECRET
        assert SECRET in (await server.result(unfit.id).wait(timeout=PATIENCE)).error
    await untraced.close()
    assert sorted(span.label for span in traced.spans) == [
        "SendTask",
        "SendTask ! asyncqueue.errors.ArgumentError",
        "count",
        "count ! asyncqueue.errors.ArgumentError",
    ]
    assert SECRET not in repr(traced.spans)


async def test_no_argument_is_in_the_traceback_of_what_comes_of_an_argument_error(traced: Traced) -> None:
    server = traced.server
    traced.observe()

    @server.task
    async def count(number: int) -> None:
        pass

    @server.task
    async def several() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.send_task("count", SECRET))

    @server.task
    async def wrapping() -> None:
        try:
            await server.send_task("count", SECRET)
        except ArgumentError:
            raise ValueError("no number") from None

    async with Worker(server):
        for task in (several, wrapping):
            await (await task.send()).wait(timeout=PATIENCE)
    assert traced.only("several").label == "several ! ExceptionGroup"
    assert traced.only("wrapping").events["exception"]["exception.message"] == "no number"
    assert SECRET not in repr(traced.spans)


async def test_a_send_that_fails_shows_why() -> None:
    traced = Traced(Server("redis://127.0.0.1:1/0"))
    traced.observe()
    with pytest.raises(Unavailable):
        await traced.server.send_chain(chain(Signature(name="report")))
    with pytest.raises(Unavailable):
        await traced.server.send_task("report")
    for name in ("SendChain", "SendTask"):
        assert traced.only(name).label == f"{name} ! asyncqueue.errors.Unavailable"


# — what travels —


@pytest.mark.parametrize(
    ("propagator", "names"),
    [
        (None, {"traceparent"}),
        (B3MultiFormat(), {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled"}),
        (B3SingleFormat(), {"b3"}),
        (JaegerPropagator(), {"uber-trace-id"}),
    ],
    ids=["w3c", "b3 multi", "b3 single", "jaeger"],
)
async def test_the_propagator_says_which_headers_a_trace_travels_in(
    traced: Traced, propagator: TextMapPropagator | None, names: set[str]
) -> None:
    traced.observe(propagator)

    @traced.server.task
    async def one(ctx: TaskContext) -> int:
        headers = ctx.signature.headers or {}
        assert names <= headers.keys()
        assert all(isinstance(value, str) for value in headers.values())
        return 1

    async with Worker(traced.server):
        assert await (await one.send()).get(timeout=PATIENCE) == 1
    assert shown(traced.spans) == "SendTask\n└─ one"


async def test_headers_of_an_older_send_give_way_and_those_of_the_user_stay(traced: Traced) -> None:
    server = with_tasks(traced.server, traced.provider)
    await server.send_task("report", 1)
    (first,) = await server.get_pending_tasks()
    again = first.with_changes(uuid="", headers={**(first.headers or {}), "tenant": "blue"})
    await server.send_task(again)
    _, second = await server.get_pending_tasks()
    assert second.headers is not None
    assert second.headers["tenant"] == "blue"
    assert [span.span_id for span in traced.spans] == [
        str(each.headers["traceparent"]).split("-")[2] for each in (first, second) if each.headers
    ]


async def test_baggage_reaches_a_task_and_what_it_sends(traced: Traced) -> None:
    traced.observe(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    server = traced.server
    seen: list[object] = []

    @server.task
    async def inner() -> None:
        seen.append(baggage.get_baggage("batch.id"))

    @server.task
    def outer() -> None:  # in a thread
        seen.append(baggage.get_baggage("batch.id"))

    @server.task
    async def outermost() -> None:
        await (await inner.send()).wait(timeout=PATIENCE)

    token = context.attach(baggage.set_baggage("batch.id", "b-7"))
    sent = [await task.send() for task in (outer, outermost)]
    context.detach(token)
    async with Worker(server):
        for result in sent:
            await result.wait(timeout=PATIENCE)
    assert seen == ["b-7", "b-7"]


async def test_without_an_sdk_nothing_is_added_and_all_goes_on(traced: Traced) -> None:
    server = traced.server
    server.observe(Tracing(tracer_provider=NoOpTracerProvider()))

    @server.task
    async def headers(ctx: TaskContext) -> str:
        return ",".join(ctx.signature.headers or ())

    async with Worker(server):
        assert await (await headers.send()).get(timeout=PATIENCE) == ""


# — inside of a task —


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_a_task_and_its_log_are_in_the_span_of_the_run(
    traced: Traced, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = traced.server
    traced.observe()

    def body(ctx: TaskContext) -> None:
        ctx.log.warning("about to fail")
        trace.get_current_span().set_attribute("mine", 1)
        raise ValueError("oops")

    @server.task(name="one" if kind == "coroutine" else "other")
    async def coroutine(ctx: TaskContext) -> None:
        body(ctx)

    server.register_task("one" if kind == "function" else "other", body)
    caplog.handler.addFilter(TraceIds())
    logging.getLogger("asyncqueue").warning("outside")
    async with Worker(server):
        assert (await (await server.send_task("one")).wait(timeout=PATIENCE)).state is State.FAILURE
    span = traced.only("one")
    assert span.attributes["mine"] == 1
    ids = {record.getMessage(): (vars(record)["trace_id"], vars(record)["span_id"]) for record in caplog.records}
    assert ids["about to fail"] == (span.trace_id, span.span_id)
    assert ids["task one failed: ValueError: oops"] == (span.trace_id, span.span_id)
    assert ids["outside"] == ("", "")


def test_a_span_whose_parent_is_unknown_is_drawn_with_a_question_mark() -> None:
    def span(name: str, span_id: str, parent_id: str) -> Span:
        return Span(name, "1", span_id, parent_id, "CONSUMER", "UNSET", "", {}, {})

    spans = [span("c", "c", "b"), span("b", "b", "a"), span("d", "d", "b"), span("e", "e", "c")]
    assert tree(spans) == "? b\n  ├─ c\n  │  └─ e\n  └─ d"
    whole = [*spans, span("a", "a", "")]
    assert tree(whole, lambda each: each.name * 2) == "aa\n└─ bb\n   ├─ cc\n   │  └─ ee\n   └─ dd"
