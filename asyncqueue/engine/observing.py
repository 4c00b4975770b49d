"""Who watches a server: observers are told of every send and every run, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from asyncqueue.engine.context import TaskContext
from asyncqueue.engine.events import Events, HookFailed
from asyncqueue.engine.messages import error_text
from asyncqueue.engine.outcome import Outcome
from asyncqueue.signature import Signature, with_headers
from asyncqueue.workflow import Compiled, Join, Node, Parallel, Series

N = TypeVar("N", bound=Node)
T = TypeVar("T")

_DEEPEST = 300  # far more than workflows and callbacks may nest, and less than Python recurses


@dataclass(frozen=True, slots=True)
class Sending:
    """A task or a workflow that is about to be sent.

    ``concurrency`` is how many of its messages are handed to the broker at once; 0: all. ``schedule`` is the name of
    the schedule whose occurrence it is, "" where somebody sends it. What a task adds to its own group is a
    ``Parallel``.
    """

    work: Node
    concurrency: int = 0
    schedule: str = ""


SendEnded = Callable[[Compiled | None, BaseException | None], None]
"""Called with what was sent. None: nothing was, because of the exception, or because another process had sent it."""

RunEnded = Callable[[Outcome | None, BaseException | None], None]
"""Called with what a run came to and, where it raised, with the exception. No outcome: it was cancelled from outside,
and the task will be run elsewhere or later."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What an observer wants of a send: headers on every task of it, at any depth, and to be told of its end."""

    headers: Mapping[str, str]
    ended: SendEnded


class Observer(Protocol):
    """Watches the sends of a server and the runs of its workers.

    Each method is called where something begins and returns what is called where it has ended, within the same asyncio
    task: a context variable that ``runs`` sets is seen by the task that runs. Built-in tasks are not told of. What an
    observer raises is told as ``HookFailed`` and does no other harm.
    """

    def sends(self, sending: Sending) -> Watched:
        """Something is about to be sent: by a server, a schedule, or a task that adds to its group or goes on as a
        workflow. Retries and callbacks are sent with the headers that they have."""

    def runs(self, context: TaskContext) -> RunEnded:
        """A task is about to be called, or found to have arguments that do not fit."""


@dataclass(slots=True)
class Send(Generic[N]):
    """A send under observation: ``work`` is what is to be sent; ``sent`` is set to what was."""

    work: N
    sent: Compiled | None = None


class Observers:
    """The observers of a server. ``is_watched``: there is one; asked for each task, so it is a plain attribute."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._observers: list[Observer] = []
        self.is_watched = False

    def add(self, observer: Observer) -> None:
        """Tell this one too, from the next send and run on."""
        self._observers.append(observer)
        self.is_watched = True

    @contextmanager
    def sending(self, work: N, concurrency: int = 0, schedule: str = "") -> Iterator[Send[N]]:
        """Around a send, from its beginning to its end."""
        if not self.is_watched:
            yield Send(work)
            return
        sending = Sending(work, concurrency, schedule)
        watched = self._told(lambda observer: _watched(observer, sending))
        send = Send(_carrying(work, {name: value for _, each in watched for name, value in each.headers.items()}))
        error: BaseException | None = None
        try:
            yield send
        except BaseException as exc:
            error = exc
            raise
        finally:
            for observer, each in reversed(watched):
                self._guarded(observer, each.ended, send.sent, error)
            error = None  # its traceback knows this frame

    def running(self, context: TaskContext) -> RunEnded:
        """A run begins; returns what is to be called at its end."""
        watched = self._told(lambda observer: observer.runs(context))

        def ended(outcome: Outcome | None, error: BaseException | None) -> None:
            for observer, each in reversed(watched):
                self._guarded(observer, each, outcome, error)

        return ended

    def _told(self, tell: Callable[[Observer], T]) -> list[tuple[Observer, T]]:
        """What the observers answer when they are told that something begins; nothing of one that fails."""
        answers = [(each, self._guarded(each, tell, each)) for each in self._observers]
        return [(observer, answer) for observer, answer in answers if answer is not None]

    def _guarded(self, observer: Observer, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as exc:
            self._events.emit(HookFailed(type(observer).__name__, error_text(exc), exc))
            return None


def _watched(observer: Observer, sending: Sending) -> Watched:
    watched = observer.sends(sending)
    if not isinstance(watched, Watched):
        raise TypeError(f"sends: expected a Watched, not {type(watched).__name__}")
    return watched


def _carrying(work: N, headers: Mapping[str, str]) -> N:
    """A copy in which every task has these headers too, its callbacks included."""
    return cast(N, _copied(work, headers, {}, 0)) if headers else work


def _copied(node: Node, headers: Mapping[str, str], copies: dict[int, Node], depth: int) -> Node:
    """``copies`` has what was copied before, since parts may be shared; of a part of itself, and of what nests too
    deep, it is the original, which whoever compiles it finds fault with."""
    if id(node) in copies or depth == _DEEPEST:
        return copies.get(id(node), node)
    copies[id(node)] = node

    inner = partial(_copied, headers=headers, copies=copies, depth=depth + 1)
    match node:
        case Signature():
            callbacks: dict[str, Any] = {
                name: tuple(map(inner, parts)) for name in ("on_success", "on_error") if (parts := getattr(node, name))
            }
            if node.chord_callback is not None:
                callbacks["chord_callback"] = inner(node.chord_callback)
            copy: Node = with_headers(node.with_changes(**callbacks) if callbacks else node, headers)
        case Series(links):
            copy = replace(node, links=tuple(map(inner, links)))
        case Parallel(members):
            copy = replace(node, members=tuple(map(inner, members)))
        case Join(members, callback):
            copy = replace(node, members=cast(Parallel, inner(members)), callback=inner(callback))
        case _:
            copy = node
    copies[id(node)] = copy
    return copy
