"""Signatures as messages and states: what is written and sent for a task, by whoever sends it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import NAMESPACE_OID, uuid5

from asyncqueue import wire
from asyncqueue.brokers.base import Message
from asyncqueue.clock import NANOSECONDS
from asyncqueue.go_compat import OFF, GoCompat
from asyncqueue.models import made
from asyncqueue.signature import Signature, header
from asyncqueue.state import State, TaskState
from asyncqueue.workflow import COUNTDOWN_HEADER, attempt_of

MAX_ERROR_TEXT = 8_192


@dataclass(frozen=True, slots=True)
class Rules:
    """What settling depends on beside the outcome. Durations are seconds. ``go`` is where Go's workers are."""

    default_queue: str = "machinery_tasks"
    unknown_task_after: float = 86_400.0
    limits: wire.Limits = wire.DEFAULT_LIMITS
    go: GoCompat = OFF

    @property
    def go_compat(self) -> bool:
        """Whether there are workers in Go."""
        return self.go.is_on

    def companion(self, queue: str) -> str:
        """The queue of the built-in tasks beside ``queue``."""
        return self.go.companion(queue, self.default_queue)


def error_text(error: BaseException) -> str:
    """What a state says of an exception: its type and its message, bounded, never its class revived."""
    message = error_message(error)
    name = type(error).__name__
    return (f"{name}: {message}" if message else name)[:MAX_ERROR_TEXT]


def error_message(error: BaseException) -> str:
    """What an exception says, as text that can be sent; also where its own ``__str__`` fails."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception:
        return "<its text cannot be read>"


def message(signature: Signature, default_queue: str, now_ns: int) -> Message:
    """The bytes that carry a signature, and where they go. Raises ``ArgumentError`` for a value JSON cannot hold."""
    queue = signature.routing_key or default_queue
    if not signature.routing_key:
        signature = signature.with_changes(routing_key=queue)
    return Message(
        body=wire.encode_signature(signature),
        queue=queue,
        id=signature.uuid,
        not_before=later(signature.eta, now_ns),
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
        not_before=later(signature.eta, now_ns),
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


def timed(signature: Signature, now_ns: int) -> Signature:
    """With the due time of one whose time begins when it is sent."""
    seconds = header(signature, COUNTDOWN_HEADER)
    return signature.with_changes(eta=now_ns + int(float(seconds) * NANOSECONDS)) if seconds else signature


def later(eta: int | None, now_ns: int) -> float | None:
    """A due time that is still to come, in unix seconds."""
    return eta / NANOSECONDS if eta is not None and eta > now_ns else None


def failure_state(task_id: str, task_name: str, error: str, attempt: int = 0) -> TaskState:
    """The FAILURE state of a task."""
    return TaskState(
        task_uuid=task_id, task_name=task_name, state=State.FAILURE, error=error[:MAX_ERROR_TEXT], attempt=attempt
    )
