"""What the engine tells the world."""

from __future__ import annotations

import logging
from dataclasses import is_dataclass

import pytest

from asyncqueue.engine import events as module
from asyncqueue.engine.events import Event, Events, LoopBlocked, MessageBuried, TaskFailed, printable

EVENTS = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Event)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\nERROR fake", "a\n ERROR fake"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\r\x00\x7f", "a\\r\\x00\\x7f"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_log_line_cannot_be_faked(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_line_is_bounded() -> None:
    assert len(printable("x" * 100_000)) < 5_000


def test_every_event_is_a_value_that_log_records_can_carry(caplog: pytest.LogCaptureFixture) -> None:
    own = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
    for event in EVENTS:
        assert is_dataclass(event)
        assert event.__doc__
        assert not own & set(event.__dataclass_fields__), "logging refuses such a field"


def test_facts_are_fields_and_the_exception_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("no")
    except ValueError as exc:
        Events().emit(TaskFailed("task_a", "add", "q", "ValueError: no", exc))
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "task add failed: ValueError: no")
    assert (record.__dict__["task_id"], record.__dict__["queue"], record.__dict__["event"]) == (
        "task_a",
        "q",
        "TaskFailed",
    )
    assert record.exc_info is not None


def test_a_listener_that_raises_does_no_other_harm(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a mistake in a listener")

    events.listen(broken)
    events.listen(told.append)
    event = MessageBuried("task_a", "q", "undecodable", "no JSON")
    events.emit(event)
    assert told == [event]
    assert "a mistake in a listener" in caplog.text


def test_nothing_is_built_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    quiet = logging.Logger("quiet", logging.INFO)
    events = Events(quiet)
    before = events.detailed
    events.listen(lambda event: None)
    assert (before, events.detailed) == (False, True)
    loud = Events(quiet)
    loud.use_logger(logging.Logger("loud", logging.DEBUG))
    assert loud.detailed


def test_a_part_writes_its_own_lines_to_a_logger_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    whole = Events()
    one, other = whole.part(), whole.part()
    own = logging.getLogger("asyncqueue.tests.one")
    one.use_logger(own)
    told: list[Event] = []
    whole.listen(told.append)
    for events in (one, other, whole):
        events.emit(MessageBuried("task_a", "q", "undecodable", "no JSON"))
    assert [record.name for record in caplog.records] == [own.name, "asyncqueue", "asyncqueue"]
    assert len(told) == 3


def test_a_blocked_loop_is_told_with_its_stack() -> None:
    assert "5.0 s" in LoopBlocked(5.0, "stack").text()
