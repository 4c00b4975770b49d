"""How a worker's log looks: text for people, one JSON object per line for programs. Both go to stderr."""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

from asyncqueue import rfc3339
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.events import printable

LEVELS = ("debug", "info", "warning", "error", "critical")

_LONGEST = 20_000
_OWN = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime"))
_SHOWN_FACTS = ("task_id", "queue")


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Log everything of this process at ``level`` and above. Called before the application is imported, which may
    still decide otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """``2026-01-31 12:00:00.000Z INFO [pid] message``: what an event is about follows where the message lacks it.

    Control characters are written as escapes; every line after the first begins with a blank: a line that begins
    with a time is a record of ours.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = _moment(record).replace("T", " ")
        line = f"{moment} {record.levelname} [{record.process}] {printable(record.getMessage(), _LONGEST)}"
        facts = [
            f"{name}={printable(str(fact), 200)}" for name in _SHOWN_FACTS if (fact := getattr(record, name, "")) != ""
        ]
        traceback = _traceback(self, record)
        end = "\n " + printable(traceback, _LONGEST) if traceback else ""
        return f"{line}{''.join(f' {fact}' for fact in facts)}{end}"


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, process, then the event's facts and, where there is
    one, the traceback as ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        for name, value in vars(record).items():
            if name not in _OWN:
                line.setdefault(name, value)
        if traceback := _traceback(self, record):
            line["exception"] = traceback
        return json.dumps(line, default=str)


def _moment(record: logging.LogRecord) -> str:
    """UTC, always with three digits after the point."""
    seconds, milliseconds = divmod(int(record.created * 1_000), 1_000)
    return f"{rfc3339.render(seconds * NANOSECONDS).removesuffix('Z')}.{milliseconds:03}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
