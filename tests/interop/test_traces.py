"""A trace that begins in Python goes on in Python behind tasks that Go runs: Go hands on what it was given."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncqueue import Arg, Server, Worker, chain, chord
from asyncqueue.contrib.opentelemetry import Tracing
from tests.interop.fleet import V1, V2, Fleet, Pair, call
from tests.interop.tasks import server_with_tasks
from tests.path.bench import PATIENCE, eventually
from tests.spans import Span, spans_of, tree

HERE = "traced"
"""The queue of the worker whose spans are looked at."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("fleet", [Pair("redis", "redis")], ids=["redis + redis"], indirect=True),
]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest_asyncio.fixture(loop_scope="module")
async def traced(fleet: Fleet, exporter: InMemorySpanExporter) -> AsyncIterator[Server]:
    """A server of ours that traces what it sends and runs, and its worker."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with server_with_tasks(fleet.stores.server()) as server:
        server.observe(Tracing(tracer_provider=provider))
        async with Worker(server, queues=HERE):
            yield server


async def spans(exporter: InMemorySpanExporter, count: int) -> list[Span]:
    """So many that have ended: the last one a moment after its result was there."""

    async def look() -> list[Span]:
        found = spans_of(exporter.get_finished_spans())
        return found if len(found) >= count else []

    return await eventually(look)


async def test_a_chain_that_goes_through_go_is_one_trace(traced: Server, exporter: InMemorySpanExporter) -> None:
    first, *others = (call("add", 1, to=to) for to in (HERE, V1, V2, HERE))
    first = first.with_changes(args=(*(first.args or ()), Arg(type="int64", value=1)))
    result = await traced.send_chain(chain(first, *others))
    assert await result.get(PATIENCE) == 5
    found = await spans(exporter, 3)
    assert tree(found) == "SendChain\n├─ add\n└─ add"
    assert {span.attributes["signature.uuid"] for span in found if span.name == "add"} == {first.uuid, others[-1].uuid}
    assert len({span.trace_id for span in found}) == 1


@pytest.mark.parametrize("callback", [HERE, V1])
async def test_a_chord_with_members_in_go_is_one_trace(
    callback: str, traced: Server, exporter: InMemorySpanExporter
) -> None:
    members = [call("where", to=to) for to in (HERE, V1, V2)]
    after = call("record", to=HERE)  # behind a callback in Go, it is ours again
    joining = call("join", to=callback, on_success=(after,))
    result = await traced.send_chord(chord(members, joining))
    assert await result.get(PATIENCE) == "python,go v1,go v2"
    ours = ["join", "record", "where"] if callback == HERE else ["record", "where"]
    found = await spans(exporter, 1 + len(ours))
    assert [line.lstrip("├└─ ") for line in tree(found).splitlines()] == ["SendChord", *ours]
    assert len({span.trace_id for span in found}) == 1
