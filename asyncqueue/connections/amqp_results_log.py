"""The log of a task on RabbitMQ: what was written of it, in the order of its queue, and the state that follows.

Writers only append, Go's among them; whoever reads folds the log by the rules of a store. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncqueue import rfc3339
from asyncqueue.errors import BadMessage
from asyncqueue.state import State, TaskState, may_follow
from asyncqueue.wire import decode_state

UNTIL = "aq-until"
"""The header that says until when (unix seconds) a message is kept. All of ours have it, and none of Go's."""

BEGUN = "aq-begun"
"""The header with a token for each begin: here the log starts anew, once, however often the message is there."""

FORGOTTEN = "aq-forgotten"
"""The header of a notice to those who wait: the entry was dropped."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message: its body, its headers that are texts, and the server's number for it on its channel."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    tag: int = 0

    @property
    def until(self) -> float:
        """Until when it is kept, as far as it says so; 0.0 where it does not."""
        return number(self.headers.get(UNTIL, ""))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a task: its state, until when (unix seconds) that is kept at least, and which begin it goes back
    to; "" where that is not known."""

    state: TaskState
    until: float
    begun: str = ""


def texts(headers: Mapping[str, Any] | None) -> dict[str, str]:
    """Those headers that are texts."""
    return {name: value for name, value in (headers or {}).items() if isinstance(value, str)}


def number(text: str) -> float:
    """The number in a header; 0.0 for what is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def fold(task_id: str, base: Letter | None, log: Sequence[Letter]) -> Known | None:
    """What follows from an entry that was kept longer than its log, if there is one, and from the log; None where
    nothing was written. A message that nobody can read counts only where there is no other: then it raises
    ``BadMessage``."""
    known: Known | None = None
    unreadable: BadMessage | None = None
    if base is not None:
        known = Known(decode_state(base.body), base.until, base.headers.get(BEGUN, ""))
        log = _since(known.begun, log)
    for letter in log:
        try:
            known = follow(task_id, known, letter)
        except BadMessage as exc:
            unreadable = exc
    if known is None and unreadable is not None:
        raise unreadable
    return known


def follow(task_id: str, known: Known | None, letter: Letter) -> Known | None:
    """What is known after one more message. Raises ``BadMessage``."""
    state = decode_state(letter.body)
    if state.task_uuid != task_id:  # the queue of a group has the name of the group
        return known
    if known is None or _starts_anew(letter, state, known):
        return Known(state, letter.until, letter.headers.get(BEGUN, ""))
    if not may_follow(state.state, known.state.state):
        return known
    return Known(_inherit(state, known.state), max(known.until, letter.until), known.begun)


def _starts_anew(letter: Letter, state: TaskState, known: Known) -> bool:
    begun = letter.headers.get(BEGUN)
    if begun is not None:
        return begun != known.begun
    # Go's workers and clients say nothing: their PENDING after the end is a new send, and any other a retry's
    return UNTIL not in letter.headers and state.state is State.PENDING and known.state.is_completed


def _since(begun: str, log: Sequence[Letter]) -> Sequence[Letter]:
    """The part of the log that is not older than that begin."""
    places: Iterable[int] = (at for at, letter in enumerate(log) if begun and letter.headers.get(BEGUN) == begun)
    return log[max(places, default=0) :]


def _inherit(state: TaskState, old: TaskState) -> TaskState:
    changes: dict[str, object] = {}
    if not state.task_name:
        changes["task_name"] = old.task_name
    if state.created_at == rfc3339.ZERO:
        changes["created_at"] = old.created_at
    return state.model_copy(update=changes) if changes else state
