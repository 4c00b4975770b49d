"""What the engine tells the world: plain events, and one listener that turns them into log lines."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from asyncqueue.errors import ConfigError, shown

H = TypeVar("H")

log = logging.getLogger("asyncqueue")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``level`` and ``text`` are how the log says it; the fields are its facts."""

    def level(self) -> int:
        """The level of its log line."""
        return logging.INFO

    def text(self) -> str:
        """Its log line, without its facts."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """A worker began to fetch."""

    queues: tuple[str, ...]
    concurrency: int
    broker: str

    def text(self) -> str:
        return f"worker started on {', '.join(self.queues)} (concurrency {self.concurrency or 'unlimited'})"


@dataclass(frozen=True, slots=True)
class WorkerStopping(Event):
    """A worker was asked to stop; ``running`` tasks have ``grace`` seconds."""

    running: int
    grace: float

    def text(self) -> str:
        return f"worker stopping: {self.running} running tasks have {self.grace:g} s"


@dataclass(frozen=True, slots=True)
class WorkerStopped(Event):
    """A worker ended; ``stuck`` tasks could not be ended with it."""

    stuck: tuple[str, ...]

    def level(self) -> int:
        return logging.ERROR if self.stuck else logging.INFO

    def text(self) -> str:
        return f"worker stopped; still stuck: {', '.join(self.stuck)}" if self.stuck else "worker stopped"


@dataclass(frozen=True, slots=True)
class OccurrenceSent(Event):
    """The occurrence of a schedule that was due at ``due_at`` (unix seconds) is on its way."""

    schedule: str
    due_at: int
    task_id: str

    def text(self) -> str:
        return f"schedule {self.schedule} sent {self.task_id}"


@dataclass(frozen=True, slots=True)
class OccurrenceSkipped(Event):
    """An occurrence was not sent, because the task of the one before it has not ended."""

    schedule: str
    due_at: int

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"schedule {self.schedule} skipped an occurrence: the one before it has not ended"


@dataclass(frozen=True, slots=True)
class OccurrenceFailed(Event):
    """An occurrence could not be sent."""

    schedule: str
    due_at: int
    error: str

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"schedule {self.schedule} could not send an occurrence: {self.error}"


@dataclass(frozen=True, slots=True)
class TaskStarted(Event):
    """A task was called. Only built for detailed listeners."""

    task_id: str
    task_name: str
    queue: str
    attempt: int

    def level(self) -> int:
        return logging.DEBUG

    def text(self) -> str:
        return f"task {self.task_name} started"


@dataclass(frozen=True, slots=True)
class TaskSucceeded(Event):
    """A task returned. Only built for detailed listeners. ``seconds`` is how long the call took."""

    task_id: str
    task_name: str
    queue: str
    seconds: float

    def level(self) -> int:
        return logging.DEBUG

    def text(self) -> str:
        return f"task {self.task_name} succeeded"


@dataclass(frozen=True, slots=True)
class TaskFailed(Event):
    """A task ended in FAILURE."""

    task_id: str
    task_name: str
    queue: str
    error: str
    exception: BaseException | None = None

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"task {self.task_name} failed: {self.error}"


@dataclass(frozen=True, slots=True)
class TaskRetried(Event):
    """A task goes again in ``delay`` seconds."""

    task_id: str
    task_name: str
    queue: str
    error: str
    delay: float
    attempt: int

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"task {self.task_name} goes again in {self.delay:g} s: {self.error}"


@dataclass(frozen=True, slots=True)
class TaskUnknown(Event):
    """A message names a task that is not registered here; it was given back. Told once for each name."""

    task_name: str
    queue: str

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"task {self.task_name} is not registered here; its messages on {self.queue} are given back"


@dataclass(frozen=True, slots=True)
class MessageBuried(Event):
    """A message went to the dead letter of its queue."""

    task_id: str
    queue: str
    reason: str
    error: str

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"message buried in {self.queue}.dead ({self.reason}): {self.error}"


@dataclass(frozen=True, slots=True)
class LeasesLost(Event):
    """Somebody else has these tasks now; what this worker did with them does not count."""

    task_count: int
    queue: str

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"{self.task_count} leases on {self.queue} were lost; their tasks are cancelled here"


@dataclass(frozen=True, slots=True)
class StoreAway(Event):
    """A service does not answer; the engine keeps what it has and tries again in ``delay`` seconds."""

    doing: str
    error: str
    delay: float

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"cannot {self.doing}, trying again: {self.error}"


@dataclass(frozen=True, slots=True)
class StoreBack(Event):
    """A service that was away answers again."""

    doing: str
    seconds: float

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"can {self.doing} again after {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class StoreRefused(Event):
    """A service said no to something the engine had to do."""

    doing: str
    error: str

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"cannot {self.doing}: {self.error}"


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A hook of the user raised."""

    hook: str
    error: str
    exception: BaseException | None = None

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"the hook {self.hook} failed: {self.error}"


@dataclass(frozen=True, slots=True)
class LoopBlocked(Event):
    """The event loop did not turn for ``seconds``; ``stack`` shows where it stands. Leases are kept meanwhile."""

    seconds: float
    stack: str

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return f"the event loop is blocked for {self.seconds:.1f} s by\n{self.stack}"


@dataclass(frozen=True, slots=True)
class TaskStuck(Event):
    """A task goes on behind its time limit and keeps its slot: in a thread, which cannot be cancelled, or as a
    coroutine that was cancelled and has not ended half a minute later."""

    task_id: str
    task_name: str

    def level(self) -> int:
        return logging.ERROR

    def text(self) -> str:
        return f"task {self.task_name} is stuck behind its time limit and keeps its slot"


@dataclass(frozen=True, slots=True)
class RiskForGo(Event):
    """A task was sent to a queue of Go's workers, who can run it and may do harm to it."""

    task_name: str
    risk: str

    def level(self) -> int:
        return logging.WARNING

    def text(self) -> str:
        return self.risk


Listener = Callable[[Event], None]


class Events:
    """Where the engine says what happens. A listener that raises is logged and does no other harm.

    ``detailed`` says whether anybody wants an event for each task that simply ran; nothing is built for nobody.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._own_log = logger
        self._listeners: list[Listener] = []
        self._whole: Events | None = None

    def part(self) -> Events:
        """Where one of several says what happens to it: its own listeners are told, and everybody here."""
        part = Events()
        part._whole = self
        return part

    @property
    def detailed(self) -> bool:
        of_whole = self._whole is not None and self._whole.detailed
        return of_whole or bool(self._listeners) or self._log.isEnabledFor(logging.DEBUG)

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with every event from now on, in the loop of the worker; with ``LoopBlocked`` from another
        thread, since that loop does not turn. Raises ``ConfigError`` for what is no plain function."""
        self._listeners.append(checked_hook("events.listen", listener, awaited=False))

    def use_logger(self, logger: logging.Logger) -> None:
        """Write log lines to this logger; of a part, those of what happens to it, and to no other one."""
        self._own_log = logger

    def emit(self, event: Event) -> None:
        level = event.level()
        if self._log.isEnabledFor(level):
            exception = getattr(event, "exception", None)
            self._log.log(level, "%s", printable(event.text()), extra=_facts(event), exc_info=exception)
        self._tell(event)

    @property
    def _log(self) -> logging.Logger:
        return self._own_log or (log if self._whole is None else self._whole._log)

    def _tell(self, event: Event) -> None:
        if self._whole is not None:
            self._whole._tell(event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self._log.exception("a listener failed on %s", type(event).__name__)


def checked_hook(place: str, hook: H, *, awaited: bool = True) -> H:
    """A function of the user's. Raises ``ConfigError`` for what is none, or would have to be ``awaited`` and is not."""
    if not callable(hook):
        raise ConfigError(f"{place}: expected a function, not {shown(hook)}")
    if not awaited and any(map(inspect.iscoroutinefunction, (hook, type(hook).__call__))):
        raise ConfigError(f"{place}: expected a plain function, not {shown(hook)}, which would not be awaited")
    return hook


def printable(text: str, limit: int = 4_096) -> str:
    """Text that cannot fake a log line: control and direction characters are written as escapes; bounded.

    Line breaks stay where they indent nothing but our own stacks: every line after the first begins with a blank.
    """
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(map(_printable_character, cut))


def _printable_character(char: str) -> str:
    if char == "\n":
        return "\n "
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _facts(event: Event) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in fields(event) if field.name != "exception"} | {
        "event": type(event).__name__
    }
