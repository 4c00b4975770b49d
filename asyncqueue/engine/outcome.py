"""What one run of one task came to, and what must change because of it. Pure: values in, values out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from asyncqueue.brokers.base import Ack, Bury, Delivery, Nack, Settled
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.following import (
    after_failure,
    after_replacement,
    after_success,
    family,
    group_completed,
    group_failed,
)
from asyncqueue.engine.messages import (
    MAX_ERROR_TEXT,
    Rules,
    error_text,
    failure_state,
    later,
    message,
)
from asyncqueue.engine.over import after_over
from asyncqueue.engine.registry import TaskOptions
from asyncqueue.errors import RetryTaskLater
from asyncqueue.models import made
from asyncqueue.retry import LONGEST, fibonacci
from asyncqueue.signature import Plan, Signature, header, with_headers
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.workflow import ATTEMPT_HEADER, CHECK_HEADER, attempt_of

UNKNOWN_SINCE_HEADER = "aq-unknown-since"
UNKNOWN_TIMES_HEADER = "aq-unknown-times"

_FIRST_UNKNOWN_DELAY = 0.05
_LAST_UNKNOWN_DELAY = 5.0
_UNKNOWN_DELAY = 0.25
"""As a part of how long nobody has known it yet: who comes to know it, or gets round to it, need not wait for long."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned."""

    results: tuple[TaskResult, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The task failed for good."""

    error: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The task goes again in ``delay`` seconds. ``counts``: a retry of ``RetryCount`` is used up."""

    error: str
    delay: float
    counts: bool


@dataclass(frozen=True, slots=True)
class NotMine:
    """No task of that name is registered here."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """The message came ``delay`` seconds before its time."""

    delay: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The bytes are no signature that may run. ``task_id`` where it could be read all the same."""

    reason: str
    error: str
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The message was shown too often; its runs ended without an end."""

    error: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """An older copy of a task that has gone on. ``recorded`` is the attempt that the backend knows of."""

    recorded: int
    delay: float


@dataclass(frozen=True, slots=True)
class Copied:
    """Another copy of the message goes on. This one ends, and says nothing: the state is that of the other one."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The task goes on as a workflow, which these begin; its last one has the task's own UUID, and is its end.
    ``plans`` are what of it no message holds."""

    entries: tuple[Signature, ...]
    plans: tuple[Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class Overdue:
    """The time of a group is over: if it is not complete, it has failed."""

    group_id: str
    callback: Signature
    error: str


@dataclass(frozen=True, slots=True)
class Over:
    """All members of the task's group have ended; or it has failed, with this error."""

    error: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """All members of a group have ended, as ``states`` say, and nobody sends what follows.

    ``is_marked``: a worker in Go has marked it as triggered, so that it cannot be claimed.
    """

    group: GroupMeta
    callback: Signature
    states: tuple[TaskState | None, ...]
    is_marked: bool


@dataclass(frozen=True, slots=True)
class Cancelled:
    """This worker gave up the run, and wants it run elsewhere or later."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease ended while the task ran: whatever came out is no longer ours to say."""


OfTask = Succeeded | Failed | Retry | Replaced | Overdue | Unseen | Over | NotMine | Exhausted | Superseded | Copied
Outcome = OfTask | NotYet | Unreadable | Cancelled | Lost


def judge(error: BaseException, signature: Signature, options: TaskOptions) -> Outcome:
    """What an exception out of a task means."""
    attempt = attempt_of(signature)
    text = error_text(error)
    if isinstance(error, RetryTaskLater):
        limit = options.retry_later_limit
        if limit is not None and attempt >= limit:
            return Failed(f"{text} (this was run {attempt} of {limit})"[:MAX_ERROR_TEXT])
        return Retry(text, _bounded(error.delay), counts=False)
    if signature.retry_count > 0 and isinstance(error, options.retry_on):
        return Retry(text, backed_off(signature, options), counts=True)
    return Failed(text)


def backed_off(signature: Signature, options: TaskOptions) -> float:
    """How long (seconds) a failed run waits for the next one. Machinery's waits stand in for a backoff that raises: it
    is the user's code, and its mistake shall not cost the task its retries."""
    attempt, previous = attempt_of(signature), signature.retry_timeout
    try:
        return _bounded(options.backoff(attempt, previous))
    except Exception:
        return fibonacci(attempt, previous)


def known_end(state: TaskState, signature: Signature, options: TaskOptions) -> Outcome | None:
    """What a recorded state makes of a message that may be a second copy; None: it is to be run."""
    recorded = state.attempt or 1
    match state.state:
        case State.SUCCESS:
            return Succeeded(state.results or ())
        case State.FAILURE:
            return Failed(state.error)
        case _ if recorded > attempt_of(signature):
            return Superseded(recorded, backed_off(signature, options))
        case _:
            return None


def settled(
    delivery: Delivery, signature: Signature | None, outcome: Outcome, rules: Rules, now_ns: int
) -> Settled | None:
    """What must change because of an outcome; None where nothing may (``Lost``)."""
    match outcome:
        case Lost():
            return None
        case Cancelled():
            return Settled(delivery, Nack())
        case NotYet(delay):
            return Settled(delivery, Nack(delay))
        case Unreadable(reason, error) if signature is not None:
            return _failed(delivery, signature, error, Bury(reason, error), rules, now_ns)
        case Unreadable(reason, error, task_id):
            state = failure_state(task_id, "", error, 0) if task_id else None
            return Settled(delivery, Bury(reason, error), state)
        case _:
            assert signature is not None
            return _of_task(delivery, signature, outcome, rules, now_ns)


def _of_task(delivery: Delivery, signature: Signature, outcome: OfTask, rules: Rules, now_ns: int) -> Settled:
    attempt = attempt_of(signature)
    match outcome:
        case Succeeded(results):
            state = made(
                TaskState,
                task_uuid=signature.uuid,
                task_name=signature.name,
                state=State.SUCCESS,
                results=results,
                attempt=0,
            )
            return after_success(Settled(delivery, Ack(), state), signature, results, rules, now_ns)
        case Failed(error):
            verdict = Bury("failed", error) if signature.stop_task_deletion_on_error else Ack()
            return _failed(delivery, signature, error, verdict, rules, now_ns)
        case Exhausted(error):
            return _failed(delivery, signature, error, Bury("max_deliveries", error), rules, now_ns)
        case Retry(error, delay, counts):
            again = _again(signature, attempt + 1, delay, counts, now_ns)
            state = TaskState(
                task_uuid=signature.uuid,
                task_name=signature.name,
                state=State.RETRY,
                error=error,
                attempt=attempt + 1,
                not_before=later(again.eta, now_ns),
            )
            sent = (message(again, delivery.queue, now_ns),)  # to where it came from, where it names no queue
            return Settled(delivery, Ack(), state, publish=sent, alive=family(signature))
        case Replaced(entries, plans):
            # no state: it runs until the workflow has ended, and if we die before the ack it is replaced again
            return after_replacement(Settled(delivery, Ack()), signature, entries, plans, rules, now_ns)
        case Overdue(group_id, callback, error):
            state = made(TaskState, task_uuid=signature.uuid, task_name=signature.name, state=State.SUCCESS, results=())
            return Settled(delivery, Ack(), state, end=group_failed(group_id, callback, error, rules, now_ns))
        case Unseen(group, callback, states, is_marked):
            end = group_completed(group, callback, states, rules, now_ns)
            if is_marked:  # its state would say, before it is true, that all is sent
                return Settled(delivery, Ack(), ended=end.ended, pending=end.pending, publish=end.publish)
            state = made(TaskState, task_uuid=signature.uuid, task_name=signature.name, state=State.SUCCESS, results=())
            return Settled(delivery, Ack(), state, end=end)
        case Over(error):
            # to wait for a member is no progress: if that never ends, the entries shall
            base = Settled(delivery, Ack(), alive=family(signature) if attempt == 1 else ())
            return after_over(base, signature, error, rules, now_ns)
        case Copied():
            return Settled(delivery, Ack())
        case Superseded(recorded, delay):
            if recorded > attempt + 1:
                return Settled(delivery, Ack())
            again = _again(signature, recorded, delay, True, now_ns)
            return Settled(delivery, Ack(), publish=(message(again, delivery.queue, now_ns),))
        case NotMine():
            return _given_back(delivery, signature, rules, now_ns)
        case never:
            assert_never(never)


def _bounded(delay: float) -> float:
    """A delay that is no number is none, and one beyond all bounds is a year."""
    return 0.0 if delay != delay else min(max(0.0, float(delay)), LONGEST)


def _failed(
    delivery: Delivery, signature: Signature, error: str, verdict: Ack | Bury, rules: Rules, now_ns: int
) -> Settled:
    base = Settled(delivery, verdict, failure_state(signature.uuid, signature.name, error))
    return after_failure(base, signature, error, rules, now_ns)


def _again(signature: Signature, attempt: int, delay: float, counts: bool, now_ns: int) -> Signature:
    changes = {"eta": now_ns + int(delay * NANOSECONDS)}
    if counts:
        changes["retry_count"] = max(0, signature.retry_count - 1)
        changes["retry_timeout"] = math.ceil(delay)
    return with_headers(signature.with_changes(**changes), {ATTEMPT_HEADER: str(attempt), CHECK_HEADER: "1"})


def _given_back(delivery: Delivery, signature: Signature, rules: Rules, now_ns: int) -> Settled:
    if signature.ignore_when_task_not_registered:
        return Settled(delivery, Ack())
    since = min(_number(header(signature, UNKNOWN_SINCE_HEADER)) or now_ns, now_ns)  # clocks differ
    times = _number(header(signature, UNKNOWN_TIMES_HEADER))
    age = (now_ns - since) / NANOSECONDS
    if age >= rules.unknown_task_after:
        error = f"task {signature.name!r} was registered on no worker of this queue for {age:.0f} s"
        return _failed(delivery, signature, error, Bury("unknown_task", error), rules, now_ns)
    delay = min(_LAST_UNKNOWN_DELAY, max(_FIRST_UNKNOWN_DELAY, _UNKNOWN_DELAY * age))
    back = with_headers(
        signature.with_changes(eta=now_ns + int(delay * NANOSECONDS), routing_key=delivery.queue),
        {UNKNOWN_SINCE_HEADER: str(since), UNKNOWN_TIMES_HEADER: str(times + 1), CHECK_HEADER: "1"},
    )
    return Settled(delivery, Ack(), publish=(message(back, rules.default_queue, now_ns),))


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else 0
