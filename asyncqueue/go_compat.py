"""What a worker in Go could not run, or would be hurt by, where Go's workers share queues with ours. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from asyncqueue import arguments, go_text
from asyncqueue.errors import ArgumentError
from asyncqueue.models import changed
from asyncqueue.signature import INT64_MAX, Arg, Signature, nested
from asyncqueue.state import TaskResult
from asyncqueue.workflow import COMPANION_SUFFIX, is_companion

_OF_RABBITMQ = "amq."


@dataclass(frozen=True, slots=True)
class GoCompat:
    """Where Go's workers are: nowhere, on the ``queues`` that are named, or, where none is, on any.

    ``keeps_failed``: Go's driver of the broker knows ``StopTaskDeletionOnError``, which hurts its worker elsewhere.
    ``prints_results``: its driver of the backend keeps results as the text that it prints of them, and gives a callback
    this text, which no worker in Go can read as anything but a text. ``companion_suffix`` is how the names of companion
    queues end where Go sends to them: it takes a queue's name for that in the service, letter by letter.
    """

    is_on: bool = False
    queues: frozenset[str] = frozenset()
    keeps_failed: bool = False
    prints_results: bool = False
    companion_suffix: str = COMPANION_SUFFIX

    def __bool__(self) -> bool:
        return self.is_on

    def shares(self, queue: str) -> bool:
        """Whether Go's workers may be on this queue. On a companion queue they never are."""
        return self.is_on and not self._is_companion(queue) and (not self.queues or queue in self.queues)

    def companion(self, queue: str, default_queue: str) -> str:
        """The queue of the built-in tasks beside ``queue``: one that Python workers consume. Of a queue of Go's they
        may not consume the companion, so there it is that of the default queue, which they all do."""
        if self._is_companion(queue):
            return queue
        return (default_queue if self.shares(queue) else queue) + self.companion_suffix

    def _is_companion(self, queue: str) -> bool:
        return is_companion(queue) or queue.endswith(self.companion_suffix)


OFF = GoCompat()
"""There are no workers in Go."""


def _not_known(signature: Signature) -> bool:
    return False


def problem_for_go(
    signature: Signature,
    go: GoCompat,
    *,
    default_queue: str,
    binds_by_name: Callable[[Signature], bool] = _not_known,
    returns_json: Callable[[Signature], bool] = _not_known,
) -> str | None:
    """What is wrong for Go with a signature or with one inside of it, with what to do about it; None where all is well.

    ``binds_by_name`` says of a signature whether its arguments could not be given in order, ``returns_json`` whether
    its function is known to return what Go has no type for.
    """
    if not go:
        return None
    for each in _all(signature):
        queue = each.routing_key or default_queue
        taker = _taker_in_go(each, go, default_queue)
        if taker is not None and returns_json(each):
            return _handed_on(each, "it returns what has only type json", taker, default_queue)
        if not go.shares(queue):
            continue
        problem = _problem(each, go, default_queue, binds_by_name)
        if problem is not None:
            return _beside_go(each, problem, queue)
    return None


def problem_with_results(
    signature: Signature, results: Sequence[TaskResult], go: GoCompat, *, default_queue: str
) -> str | None:
    """What is wrong with the results of a task as arguments of those tasks after it that Go may run; or None."""
    taker = _taker_in_go(signature, go, default_queue) if go and results else None
    if taker is None:
        return None
    problem = next(_unfit([Arg(type=each.type, value=each.value) for each in results], "result"), None)
    return None if problem is None else _handed_on(signature, problem, taker, default_queue)


def problem_with_arguments(signature: Signature, go: GoCompat, *, default_queue: str) -> str | None:
    """What is wrong for Go with the arguments of a task that is sent on, by whomever it was sent first; or None.

    Nothing else of it is looked at: what Go sent, Go can run.
    """
    queue = signature.routing_key or default_queue
    problem = next(_unfit(signature.args or (), "argument"), None) if go.shares(queue) else None
    return None if problem is None else _beside_go(signature, problem, queue)


def problem_with_delay(
    signature: Signature, seconds: float, longest: float, go: GoCompat, *, default_queue: str
) -> str | None:
    """What is wrong for Go with a task that is due in so many seconds, where the broker puts off for ``longest`` at
    most; or None. Workers of ours put off what comes too early once more."""
    queue = signature.routing_key or default_queue
    if seconds <= longest or not go.shares(queue):
        return None
    problem = (
        f"its ETA is in {seconds:.0f} s, and this broker puts off for {longest:g} s at most, after which a worker in "
        "Go would run it; expected an earlier one"
    )
    return _beside_go(signature, problem, queue)


def as_meant(signature: Signature) -> Signature:
    """With arguments of their types where they are what Go prints of them; a text that no value is printed as stays."""
    args = tuple(map(_as_meant, signature.args or ()))
    return signature if args == tuple(signature.args or ()) else signature.with_changes(args=args)


def _as_meant(arg: Arg) -> Arg:
    is_said = arg.type == "string" or (arg.type in ("[]byte", "[]uint8") and not str(arg.value).startswith("["))
    if is_said or not isinstance(arg.value, str):
        return arg
    try:
        return changed(arg, {"value": go_text.parsed(arg.type, arg.value)})
    except ValueError:
        return arg


def risk_for_go(signature: Signature, go: GoCompat, default_queue: str) -> str | None:
    """What may be lost with a signature that Go can run, for people to be told of once; or None."""
    for each in _all(signature) if go else ():
        if each.ignore_when_task_not_registered and go.shares(each.routing_key or default_queue):
            return (
                f"task {each.name} is dropped without a trace by any worker in Go of queue "
                f"{each.routing_key or default_queue!r} that has not registered it: it was sent with "
                "IgnoreWhenTaskNotRegistered, and go_compat is on"
            )
    return None


def _problem(
    signature: Signature, go: GoCompat, default_queue: str, binds_by_name: Callable[[Signature], bool]
) -> str | None:
    if (unfit := next(_unfit(signature.args or (), "argument"), None)) is not None:
        return unfit
    if binds_by_name(signature):
        return (
            "its arguments are given by name, and it is not registered here, so nobody knows their order; Go takes "
            "arguments by place: give them in order"
        )
    for name, value in (signature.headers or {}).items():
        if not _is_fit(value):
            return (
                f"header {name!r} is {_kind(value)}, and no worker in Go can send a task with such a header again on "
                "RabbitMQ, so that it would never be retried: expected text"
            )
    if signature.stop_task_deletion_on_error and not go.keeps_failed:
        return (
            "StopTaskDeletionOnError restarts the worker in Go in which the task fails, with what it has fetched, "
            "since only SQS knows it; expected False"
        )
    if signature.eta is not None and signature.eta > INT64_MAX:
        return "its ETA is after April 2262, which Go's clock cannot say; expected an earlier one"
    for what, name in (("UUID", signature.uuid), ("group UUID", signature.group_uuid)):
        if name and (go.shares(name) if go.queues else name == default_queue):
            return f"its {what} {name!r} is the name of a queue, which its state would overwrite; expected another one"
        if name.startswith(_OF_RABBITMQ):
            return f"its {what} {name!r} begins as the names that RabbitMQ keeps for itself; expected another one"
    if signature.routing_key.startswith(_OF_RABBITMQ):
        return "the name of its queue begins as those that RabbitMQ keeps for itself; expected another one"
    return None


def _unfit(args: Iterable[Arg], what: str) -> Iterator[str]:
    """Those that Go's worker cannot read: it fails the task and restarts, or never takes another one (version 2)."""
    for place, arg in enumerate(args, 1):
        if arg.type == arguments.JSON:
            yield (
                f"{what} {place} is of type json, which only Python workers know; expected one of Go's types: "
                "bool, int, float, str, bytes or a list of one of these, such as a str with the JSON in it"
            )
            continue
        try:
            arguments.decode(arg.type, arg.value)
        except ArgumentError as exc:
            yield f"{what} {place}: {exc}"


def _beside_go(signature: Signature, problem: str, queue: str) -> str:
    return f"task {signature.name}: {problem}; queue {queue!r} is one of Go's workers too (go_compat)"


def _taker_in_go(signature: Signature, go: GoCompat, default_queue: str) -> Signature | None:
    """One that Go may run, of those that are given the results of a task; None where there is none."""
    takers = () if signature.immutable else signature.on_success or ()
    callback = signature.chord_callback
    if callback is not None and not callback.immutable:
        takers = (*takers, callback)
    return next((each for each in takers if go.shares(each.routing_key or default_queue)), None)


def _handed_on(signature: Signature, problem: str, taker: Signature, default_queue: str) -> str:
    queue = taker.routing_key or default_queue
    return (
        f"task {signature.name}: {problem}; that is handed on to task {taker.name}, whose queue {queue!r} is one of "
        "Go's workers too (go_compat)"
    )


def _all(signature: Signature) -> Iterator[Signature]:
    """A signature and all that are inside of it. What follows a group is repeated in it, and looked at once."""
    waiting, seen = [signature], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting.extend(nested(each))


def _is_fit(value: object) -> bool:
    """Whether what Go reads from JSON here is what its client of RabbitMQ can write: neither numbers nor objects."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_fit, value))
    return value is None or isinstance(value, (str, bool))


def _kind(value: object) -> str:
    match value:
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list with numbers or objects in it"
        case _:
            return "an object"
