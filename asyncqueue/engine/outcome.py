"""What one run of one task came to, and what must change because of it. Pure: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never
from uuid import NAMESPACE_OID, uuid5

from asyncqueue import wire
from asyncqueue.brokers.base import Ack, Bury, Delivery, Message, Nack, Settled
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.registry import TaskOptions
from asyncqueue.errors import RetryTaskLater
from asyncqueue.models import made
from asyncqueue.retry import LONGEST, fibonacci
from asyncqueue.signature import Arg, Signature, header
from asyncqueue.state import State, TaskResult, TaskState

ATTEMPT_HEADER = "aq-attempt"
"""The number of the run that this message asks for, from 2; without it, 1."""

CHECK_HEADER = "aq-check"
"""Says: look up the state before you run me, I may be a second copy."""

UNKNOWN_SINCE_HEADER = "aq-unknown-since"
UNKNOWN_TIMES_HEADER = "aq-unknown-times"

MAX_ERROR_TEXT = 8_192

_FIRST_UNKNOWN_DELAY = 0.05
_LAST_UNKNOWN_DELAY = 5.0


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
class Cancelled:
    """This worker gave up the run, and wants it run elsewhere or later."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease ended while the task ran: whatever came out is no longer ours to say."""


Outcome = Succeeded | Failed | Retry | NotMine | NotYet | Unreadable | Exhausted | Superseded | Cancelled | Lost


@dataclass(frozen=True, slots=True)
class Rules:
    """What settling depends on beside the outcome. Durations are seconds."""

    default_queue: str = "machinery_tasks"
    unknown_task_after: float = 86_400.0
    limits: wire.Limits = wire.DEFAULT_LIMITS


def attempt_of(signature: Signature) -> int:
    """The number of the run that a message asks for, from 1."""
    text = header(signature, ATTEMPT_HEADER) if signature.headers else None
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 1


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


def error_text(error: BaseException) -> str:
    """What a state says of an exception: its type and its message, bounded, never its class revived."""
    message = str(error).encode("utf-8", "replace").decode()
    name = type(error).__name__
    return (f"{name}: {message}" if message else name)[:MAX_ERROR_TEXT]


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
            state = _failure(task_id, "", error, 0) if task_id else None
            return Settled(delivery, Bury(reason, error), state)
        case _:
            assert signature is not None
            return _of_task(delivery, signature, outcome, rules, now_ns)


def _of_task(
    delivery: Delivery,
    signature: Signature,
    outcome: Succeeded | Failed | Retry | NotMine | Exhausted | Superseded,
    rules: Rules,
    now_ns: int,
) -> Settled:
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
            if not signature.on_success:
                return Settled(delivery, Ack(), state)
            passed = () if signature.immutable else tuple(Arg(type=each.type, value=each.value) for each in results)
            callbacks = [_appended(each, passed) for each in signature.on_success]
            return _with_callbacks(Settled(delivery, Ack(), state), signature, "success", callbacks, rules, now_ns)
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
                not_before=_later(again.eta, now_ns),
            )
            return Settled(delivery, Ack(), state, publish=(message(again, rules.default_queue, now_ns),))
        case Superseded(recorded, delay):
            if recorded > attempt + 1:
                return Settled(delivery, Ack())
            again = _again(signature, recorded, delay, True, now_ns)
            return Settled(delivery, Ack(), publish=(message(again, rules.default_queue, now_ns),))
        case NotMine():
            return _given_back(delivery, signature, rules, now_ns)
        case never:
            assert_never(never)


def message(signature: Signature, default_queue: str, now_ns: int) -> Message:
    """The bytes that carry a signature, and where they go. Raises ``ArgumentError`` for a value JSON cannot hold."""
    queue = signature.routing_key or default_queue
    if not signature.routing_key:
        signature = signature.with_changes(routing_key=queue)
    return Message(
        body=wire.encode_signature(signature),
        queue=queue,
        id=signature.uuid,
        not_before=_later(signature.eta, now_ns),
        priority=signature.priority,
        ordering_key=signature.broker_message_group_id or None,
        token=f"{now_ns:x}/{signature.uuid}/{attempt_of(signature)}",  # time first: an index on it grows at its end
    )


def pending(signature: Signature, now_ns: int) -> TaskState:
    """The PENDING state of a signature that is about to be sent."""
    return made(
        TaskState,
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.PENDING,
        created_at=now_ns,
        not_before=_later(signature.eta, now_ns),
    )


def callback_id(parent: Signature, kind: str, index: int) -> str:
    """The UUID of a callback that was sent without one: the same each time it is asked for, so that a parent that is
    settled twice sends one callback, not two."""
    return f"task_{uuid5(NAMESPACE_OID, f'{parent.uuid}/{attempt_of(parent)}/{kind}/{index}')}"


def callback_ids(parent: Signature) -> list[str]:
    """The UUIDs of all callbacks inside a signature, those that they get when they are sent."""
    found: list[str] = []
    for kind, callbacks in (("success", parent.on_success), ("error", parent.on_error)):
        for index, each in enumerate(callbacks or ()):
            named = each.with_changes(uuid=each.uuid or callback_id(parent, kind, index))
            found += [named.uuid, *callback_ids(named)]
    return found


def _later(eta: int | None, now_ns: int) -> float | None:
    """A due time that is still to come, in unix seconds."""
    return eta / NANOSECONDS if eta is not None and eta > now_ns else None


def _bounded(delay: float) -> float:
    """A delay that is no number is none, and one beyond all bounds is a year."""
    return 0.0 if delay != delay else min(max(0.0, float(delay)), LONGEST)


def with_headers(signature: Signature, **changes: str) -> Signature:
    """A copy with these headers added; ``_`` in a name stands for ``-``."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    return signature.with_changes(headers={**(signature.headers or {}), **named})


def _failed(
    delivery: Delivery, signature: Signature, error: str, verdict: Ack | Bury, rules: Rules, now_ns: int
) -> Settled:
    state = _failure(signature.uuid, signature.name, error, 0)
    base = Settled(delivery, verdict, state)
    if not signature.on_error:
        return base
    first = Arg(type="string", value=error)
    callbacks = [each.with_changes(args=(first, *(each.args or ()))) for each in signature.on_error]
    return _with_callbacks(base, signature, "error", callbacks, rules, now_ns)


def _failure(task_id: str, task_name: str, error: str, attempt: int) -> TaskState:
    return TaskState(
        task_uuid=task_id, task_name=task_name, state=State.FAILURE, error=error[:MAX_ERROR_TEXT], attempt=attempt
    )


def _with_callbacks(
    base: Settled, parent: Signature, kind: str, callbacks: Sequence[Signature], rules: Rules, now_ns: int
) -> Settled:
    ready = [
        with_headers(each.with_changes(uuid=each.uuid or callback_id(parent, kind, index)), aq_check="1")
        for index, each in enumerate(callbacks)
    ]
    return replace(
        base,
        pending=tuple(pending(each, now_ns) for each in ready),
        publish=tuple(message(each, rules.default_queue, now_ns) for each in ready),
    )


def _appended(signature: Signature, passed: tuple[Arg, ...]) -> Signature:
    return signature.with_changes(args=(*(signature.args or ()), *passed)) if passed else signature


def _again(signature: Signature, attempt: int, delay: float, counts: bool, now_ns: int) -> Signature:
    changes = {"eta": now_ns + int(delay * NANOSECONDS)}
    if counts:
        changes["retry_count"] = max(0, signature.retry_count - 1)
        changes["retry_timeout"] = math.ceil(delay)
    return with_headers(signature.with_changes(**changes), aq_attempt=str(attempt), aq_check="1")


def _given_back(delivery: Delivery, signature: Signature, rules: Rules, now_ns: int) -> Settled:
    if signature.ignore_when_task_not_registered:
        return Settled(delivery, Ack())
    since = _number(header(signature, UNKNOWN_SINCE_HEADER)) or now_ns
    times = _number(header(signature, UNKNOWN_TIMES_HEADER))
    age = (now_ns - since) / NANOSECONDS
    if age >= rules.unknown_task_after:
        error = f"task {signature.name!r} was registered on no worker of this queue for {age:.0f} s"
        return _failed(delivery, signature, error, Bury("unknown_task", error), rules, now_ns)
    delay = min(_LAST_UNKNOWN_DELAY, _FIRST_UNKNOWN_DELAY * 2 ** min(times, 10))
    back = with_headers(
        signature.with_changes(eta=now_ns + int(delay * NANOSECONDS), routing_key=delivery.queue),
        aq_unknown_since=str(since),
        aq_unknown_times=str(times + 1),
        aq_check="1",
    )
    return Settled(delivery, Ack(), publish=(message(back, rules.default_queue, now_ns),))


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else 0
