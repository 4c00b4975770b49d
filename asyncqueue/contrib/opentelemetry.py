"""OpenTelemetry: one trace from the sender through tasks, retries, chains, groups and chords, in Python and across Go.

Names and attributes are those of Machinery's own tracing, with OpenTelemetry's for messaging beside them. Arguments and
results are never in a span.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import assert_never

try:
    from opentelemetry import context as current
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(f"tracing needs {exc.name}: install asyncqueue[otel]", name=exc.name) from exc

from asyncqueue import __version__
from asyncqueue.engine.context import TaskContext
from asyncqueue.engine.messages import error_message, error_text
from asyncqueue.engine.observing import RunEnded, Sending, Watched
from asyncqueue.engine.outcome import Failed, Outcome, Replaced, Retry
from asyncqueue.errors import ArgumentError
from asyncqueue.signature import Signature
from asyncqueue.workflow import Compiled, Join, Node, Outline, Parallel, Series, Workflow

Attributes = dict[str, str | int | float]

_MOST_IDS = 100
_SYSTEM: Mapping[str, str | int | float] = {"component": "machinery", "messaging.system": "asyncqueue"}

_log = logging.getLogger("asyncqueue")


class Tracing:
    """Spans for all that a server sends and its workers run: ``server.observe(Tracing())``.

    A send is a producer span ``SendTask``, ``SendChain``, ``SendGroup`` or ``SendChord``, a child of the span that is
    current where it is sent; an occurrence of a schedule begins a trace of its own. Its context travels in the headers
    of every task of it, callbacks included, so that each run of each, a retry too, is a consumer span and a child of
    that send. A task without such headers, or with broken ones, begins a trace.

    ``tracer_provider`` and ``propagator`` are the global ones unless given. The propagator says which headers: W3C's
    ``traceparent``, ``tracestate`` and ``baggage`` unless it is set otherwise, by code or in ``OTEL_PROPAGATORS``.
    """

    def __init__(
        self, *, tracer_provider: trace.TracerProvider | None = None, propagator: TextMapPropagator | None = None
    ) -> None:
        self._tracer = trace.get_tracer("asyncqueue", __version__, tracer_provider)
        self._propagator = propagator

    def sends(self, sending: Sending) -> Watched:
        """The span of a send, with the headers by which its tasks become children of it."""
        # a schedule is kept in the context of whoever started the worker, who has nothing to do with it
        parent = Context() if sending.schedule else current.get_current()
        name, known = _kind_of(sending.work)
        span = self._tracer.start_span(name, parent, SpanKind.PRODUCER, _before_send(sending, known))
        headers: dict[str, str] = {}
        try:
            self._textmap().inject(headers, trace.set_span_in_context(span, parent))
        except Exception:
            span.end()  # nobody else will
            raise

        def ended(sent: Compiled | None, error: BaseException | None) -> None:
            if span.is_recording():
                if error is not None:
                    _record(span, error)
                elif sent is None:
                    span.add_event("sent by another process")
                else:
                    span.set_attributes(_of_sent(sent, sending.concurrency))
            span.end()

        return Watched(headers, ended)

    def runs(self, context: TaskContext) -> RunEnded:
        """The span of a run, which is the current one meanwhile, with the baggage that came with the task."""
        parent = self._sender_of(context.signature)
        span = self._tracer.start_span(context.task_name, parent, SpanKind.CONSUMER, _of_run(context))
        token = current.attach(trace.set_span_in_context(span, parent))

        def ended(outcome: Outcome | None, error: BaseException | None) -> None:
            current.detach(token)
            if span.is_recording():
                _tell(span, outcome, error, context.attempt)
            span.end()

        return ended

    def _textmap(self) -> TextMapPropagator:
        return self._propagator or propagate.get_global_textmap()

    def _sender_of(self, signature: Signature) -> Context:
        """The context that a task was sent in; never that of whoever started this worker."""
        carrier = {name: value for name, value in (signature.headers or {}).items() if isinstance(value, str)}
        try:
            return self._textmap().extract(carrier, Context())
        except Exception:  # what others wrote into a header must not keep a task from running
            _log.debug("the trace headers of task %s cannot be read", signature.name, exc_info=True)
            return Context()


class TraceIds(logging.Filter):
    """Gives every log record ``trace_id`` and ``span_id`` of the current span, in hexadecimal; "" where there is none.

    For a handler: ``handler.addFilter(TraceIds())``. It lets every record pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        found = trace.get_current_span().get_span_context()
        record.trace_id = trace.format_trace_id(found.trace_id) if found.is_valid else ""
        record.span_id = trace.format_span_id(found.span_id) if found.is_valid else ""
        return True


def _kind_of(work: Node) -> tuple[str, str]:
    """The name of the span that sends this, and what Machinery calls it."""
    match work:
        case Series():
            return "SendChain", "chain"
        case Parallel():
            return "SendGroup", "group"
        case Join():
            return "SendChord", "chord"
        case Signature() | Workflow():
            return "SendTask", ""
        case never:
            assert_never(never)


def _before_send(sending: Sending, workflow: str) -> Attributes:
    """What a sampler can decide by."""
    attributes: Attributes = {**_SYSTEM, "messaging.operation.name": "send", "messaging.operation.type": "send"}
    if workflow:
        attributes["machinery.workflow"] = workflow
    if isinstance(sending.work, Signature):
        attributes["signature.name"] = sending.work.name
    if sending.schedule:
        attributes["asyncqueue.schedule"] = sending.schedule
    return attributes


def _of_sent(sent: Compiled, concurrency: int) -> Attributes:
    attributes: Attributes = {}
    queues = {each.routing_key for each in sent.entries}
    if len(queues) == 1:
        attributes["messaging.destination.name"] = queues.pop()
    outline = sent.outline
    match outline.kind:
        case "task":
            for each in sent.entries:
                attributes |= _of_signature(each)
        case "chain":
            attributes["chain.tasks.length"] = len(outline.parts)
        case "group":
            attributes |= _of_group(outline, concurrency)
        case "chord":
            attributes |= _of_group(outline.parts[0], concurrency)
            attributes["chord.callback.uuid"] = outline.id
        case never:
            assert_never(never)
    if outline.kind != "task":
        attributes["messaging.batch.message_count"] = len(sent.entries)
    return attributes


def _of_group(group: Outline, concurrency: int) -> Attributes:
    members = [each.id or each.group_id for each in group.parts[:_MOST_IDS]]
    return {
        "group.uuid": group.group_id,
        "group.tasks.length": len(group.parts),
        "group.concurrency": concurrency,
        "group.tasks": json.dumps(members),
    }


def _of_run(context: TaskContext) -> Attributes:
    return {
        **_SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": context.queue,
        **_of_signature(context.signature),
        "signature.attempt": context.attempt,
        "signature.deliveries": context.deliveries,
    }


def _of_signature(signature: Signature) -> Attributes:
    attributes: Attributes = {
        "messaging.message.id": signature.uuid,
        "signature.name": signature.name,
        "signature.uuid": signature.uuid,
    }
    if signature.group_uuid:
        attributes["signature.group.uuid"] = signature.group_uuid
    if signature.chord_callback is not None:
        attributes["signature.chord.callback.uuid"] = signature.chord_callback.uuid
        attributes["signature.chord.callback.name"] = signature.chord_callback.name
    return attributes


def _tell(span: Span, outcome: Outcome | None, error: BaseException | None, attempt: int) -> None:
    """What a run came to. One that asked to be run later has not failed."""
    match outcome:
        case None:
            span.add_event("task cancelled")
        case Failed():
            _record(span, error)
        case Retry(_, delay, counts):
            if counts:
                _record(span, error)
            span.add_event("task retried", {"retry.delay": delay, "retry.attempt": attempt + 1})
        case Replaced(entries):
            span.add_event("task replaced", {"messaging.batch.message_count": len(entries)})
        case _:
            pass


def _record(span: Span, error: BaseException | None) -> None:
    """An exception as event and status. The text of an ``ArgumentError`` shows arguments, so it is left out, and so is
    a traceback that has one in it."""
    if error is None:
        span.set_status(Status(StatusCode.ERROR))
        return
    name = _type_name(error)
    event = {"exception.type": name}
    description = name
    if not isinstance(error, ArgumentError):
        event["exception.message"] = error_message(error)
        description = error_text(error)
    if not any(isinstance(each, ArgumentError) for each in _behind(error, set())):
        shown = "".join(traceback.format_exception(error))
        event["exception.stacktrace"] = shown.encode("utf-8", "replace").decode()
    span.set_attribute("error.type", name)
    span.add_event("exception", event)
    span.set_status(Status(StatusCode.ERROR, description))


def _behind(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """All exceptions that the traceback of this one shows, itself first."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for each in (error.__cause__, error.__context__, *(getattr(error, "exceptions", ()))):
        yield from _behind(each, seen)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
