"""Spans as tests read them, from whatever process or language: as a tree that can be printed and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended.

    Ids are lower-case hexadecimal; ``parent_id`` is "" where it begins a trace. ``kind`` and ``status`` are
    OpenTelemetry's names (``CONSUMER``, ``ERROR``). ``events`` has the attributes of each by its name.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    status: str
    description: str
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]

    @property
    def label(self) -> str:
        """Its name, which run it was if not the first one, and what was wrong."""
        attempt = self.attributes.get("signature.attempt", 1)
        again = f" (run {attempt})" if attempt > 1 else ""
        wrong = f" ! {self.attributes.get('error.type', 'failed')}" if self.status == "ERROR" else ""
        return f"{self.name}{again}{wrong}"


def parsed(text: str) -> Span:
    """A span from the JSON that OpenTelemetry's SDK for Python writes."""
    found = json.loads(text)
    return Span(
        name=found["name"],
        trace_id=_plain(found["context"]["trace_id"]),
        span_id=_plain(found["context"]["span_id"]),
        parent_id=_plain(found["parent_id"] or ""),
        kind=found["kind"].removeprefix("SpanKind."),
        status=found["status"]["status_code"],
        description=found["status"].get("description", ""),
        attributes=found["attributes"],
        events={event["name"]: event["attributes"] for event in found["events"]},
    )


def spans_of(ended: Iterable[ReadableSpan]) -> list[Span]:
    """What an exporter of this process has."""
    return [parsed(span.to_json()) for span in ended]


def written_to(path: Path) -> TracerProvider:
    """A provider whose spans are appended to a file, a line each, as they end: for a process to be looked at."""
    out = path.open("a")
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: f"{span.to_json(indent=None)}\n")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def read_from(path: Path) -> list[Span]:
    """The spans that ``written_to`` wrote there."""
    return [parsed(line) for line in path.read_text().splitlines()]


def tree(spans: Sequence[Span], label: Callable[[Span], str] = lambda span: span.label) -> str:
    """The spans, a line each, under their parents; brothers by their labels. One whose parent is not among them is
    drawn as the beginning of a trace, with an ``?`` in front."""
    known = {span.span_id for span in spans}
    under: dict[str, list[Span]] = {}
    for span in spans:
        under.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    for brothers in under.values():
        brothers.sort(key=label)
    lines: list[str] = []

    def draw(span: Span, before: str, branch: str, after: str) -> None:
        lines.append(before + branch + label(span))
        below = under.get(span.span_id, [])
        for place, child in enumerate(below, 1):
            is_last = place == len(below)
            draw(child, before + after, "└─ " if is_last else "├─ ", "   " if is_last else "│  ")

    for root in under.get("", []):
        draw(root, "", "? " if root.parent_id else "", "  " if root.parent_id else "")
    return "\n".join(lines)


def _plain(number: str) -> str:
    return number.removeprefix("0x")
