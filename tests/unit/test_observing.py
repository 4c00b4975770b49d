"""Observers of sends and runs, and what they put on a send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncqueue import ArgumentError, Server, TaskContext, Worker, chain, chord, group
from asyncqueue.compiling import compiled
from asyncqueue.engine.events import Event, Events, HookFailed
from asyncqueue.engine.observing import Observers, RunEnded, Sending, Watched
from asyncqueue.engine.outcome import Failed, Outcome, Succeeded
from asyncqueue.signature import Signature, nested
from asyncqueue.workflow import Compiled, Series, tasks_in


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self, pages: list[str], name: str = "", headers: dict[str, str] | None = None) -> None:
        self.pages = pages
        self.name = name
        self.headers = headers or {}
        self.sent: list[Compiled | None] = []
        self.came_to: list[Outcome | None] = []

    def sends(self, sending: Sending) -> Watched:
        self.pages.append(f"{self.name}send")

        def ended(sent: Compiled | None, error: BaseException | None) -> None:
            self.sent.append(sent)
            self.pages.append(f"{self.name}sent {type(error).__name__}" if error else f"{self.name}sent")

        return Watched(self.headers, ended)

    def runs(self, context: TaskContext) -> RunEnded:
        self.pages.append(f"{self.name}run {context.attempt}")

        def ended(outcome: Outcome | None, error: BaseException | None) -> None:
            self.came_to.append(outcome)
            self.pages.append(f"{self.name}ran {type(error).__name__}" if error else f"{self.name}ran")

        return ended


class Fragile(Diary):
    """An observer that raises at a word."""

    def __init__(self, word: str) -> None:
        super().__init__([])
        self.word = word

    def sends(self, sending: Sending) -> Watched:
        self._say("sends")
        return Watched({}, lambda sent, error: self._say("sent"))

    def runs(self, context: TaskContext) -> RunEnded:
        self._say("runs")
        return lambda outcome, error: self._say("ran")

    def _say(self, word: str) -> None:
        if word == self.word:
            raise KeyError(word)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(f"memory://{tmp_path.name}")

    @server.task
    async def half(number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number // 2

    yield server
    await server.close()


async def test_observers_are_told_of_sends_and_runs_the_first_one_outermost(server: Server) -> None:
    pages: list[str] = []
    first, second = Diary(pages, "1 "), Diary(pages, "2 ")
    server.observe(first)
    server.observe(second)
    async with Worker(server):
        sent = await server.send_task("half", 4)
        assert pages[:4] == ["1 send", "2 send", "2 sent", "1 sent"]
        assert await sent.get(timeout=30) == 2
        await (await server.send_task("half", 3)).wait(timeout=30)
    assert [page for page in pages if "run" in page or "ran" in page] == [
        *("1 run 1", "2 run 1", "2 ran", "1 ran"),
        *("1 run 1", "2 run 1", "2 ran ValueError", "1 ran ValueError"),
    ]
    assert [type(outcome) for outcome in first.came_to] == [Succeeded, Failed]
    told = first.sent[0]
    assert told is not None
    assert [each.uuid for each in told.entries] == [sent.id]


async def test_a_send_that_fails_has_ended_with_its_exception(server: Server) -> None:
    diary = Diary([])
    server.observe(diary)
    with pytest.raises(ArgumentError):
        await server.send_task(Signature(name="half"))
    with pytest.raises(ArgumentError):
        await server.send_chain(chain(Signature(name="half", group_uuid="another's")))
    assert diary.pages == ["send", "sent ArgumentError"] * 2
    assert diary.sent == [None, None]


@pytest.mark.parametrize("word", ["sends", "sent", "runs", "ran"])
async def test_an_observer_that_raises_is_told_of_and_does_no_other_harm(server: Server, word: str) -> None:
    events: list[Event] = []
    pages: list[str] = []
    server.events.listen(events.append)
    server.observe(Fragile(word))
    server.observe(Diary(pages))
    async with Worker(server):
        assert await (await server.send_task("half", 4)).get(timeout=30) == 2
    assert [event for event in events if isinstance(event, HookFailed)] == [
        HookFailed("Fragile", f"KeyError: '{word}'", next(e.exception for e in events if isinstance(e, HookFailed)))
    ]
    assert pages == ["send", "sent", "run 1", "ran"]


class Lazy:
    """An observer of nothing that is written as nobody expects it."""

    def sends(self, sending: Sending) -> dict[str, str]:
        return {"tenant": "blue"}


async def test_what_is_no_observer_is_told_of_and_does_no_other_harm(server: Server) -> None:
    events: list[Event] = []
    server.events.listen(events.append)
    server.observe(Lazy())  # type: ignore[arg-type]  # a mistake of a user's
    async with Worker(server):
        assert await (await server.send_task("half", 4)).get(timeout=30) == 2
    assert [event.error for event in events if isinstance(event, HookFailed)] == [
        "TypeError: sends: expected a Watched, not dict",
        "AttributeError: 'Lazy' object has no attribute 'runs'",
    ]


def _send(work: Any, *headers: dict[str, str]) -> Any:
    observers = Observers(Events())
    for some in headers:
        observers.add(Diary([], headers=some))
    with observers.sending(work) as send:
        return send.work


def test_the_headers_of_observers_are_on_every_task_of_a_workflow_and_its_callbacks() -> None:
    handler = Signature(name="handler", on_error=(Signature(name="second"),))
    task = Signature(name="task", headers={"tenant": "blue"}, on_success=(Signature(name="next"),), on_error=(handler,))
    work = chain(task, group(task, task), chord([task, chain(task, task)], task, group_timeout=5.0), task)
    sent = compiled(_send(work, {"a": "1"}, {"b": "2"}), default_queue="q")
    seen = set()
    waiting = list(tasks_in(sent.entries, sent.plans))
    while waiting:
        each = waiting.pop()
        waiting += [handler for handler in nested(each) if not handler.uuid or handler.name in ("handler", "second")]
        seen.add(each.name)
        if not each.name.startswith("aq."):
            assert each.headers is not None
            assert {"a": "1", "b": "2"}.items() <= each.headers.items()
            assert each.headers.get("tenant") == ("blue" if each.name == "task" else None)
    assert seen >= {"task", "next", "handler", "second"}


def test_a_member_of_a_group_that_was_made_elsewhere_gives_its_headers_to_its_callback() -> None:
    member = Signature(name="member", group_uuid="g", group_task_count=1, chord_callback=Signature(name="callback"))
    sent = _send(member, {"a": "1"})
    assert sent.chord_callback.headers == {"a": "1"}


def test_what_is_sent_with_no_headers_is_left_as_it_is() -> None:
    work = chain(Signature(name="task"), Signature(name="task"))
    assert _send(work) is work
    assert _send(work, {}) is work


def test_shared_parts_are_copied_once() -> None:
    work: Any = Signature(name="task")
    for _ in range(60):  # two to the sixtieth tasks, if each place were a copy of its own
        work = Series((work, work))
    links = _send(work, {"a": "1"}).links
    assert links[0] is links[1]


def test_a_workflow_that_is_a_part_of_itself_is_refused_as_ever() -> None:
    loop = Series((Signature(name="task"),))
    object.__setattr__(loop, "links", (loop,))
    with pytest.raises(ArgumentError, match="part of itself"):
        compiled(_send(loop, {"a": "1"}), default_queue="q")


def test_what_nests_too_deep_is_refused_as_ever() -> None:
    work: Any = Signature(name="task")
    for _ in range(2_000):
        work = Series((work,))
    with pytest.raises(ArgumentError, match="deeper"):
        compiled(_send(work, {"a": "1"}), default_queue="q")
