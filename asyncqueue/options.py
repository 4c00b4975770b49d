"""What can be said of a task, and of one send of it: the options, checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypedDict

from asyncqueue import names, rfc3339
from asyncqueue.clock import NANOSECONDS, Clock, to_nanoseconds
from asyncqueue.engine.registry import TaskOptions
from asyncqueue.errors import ArgumentError, ConfigError, shown
from asyncqueue.retry import parse_backoff
from asyncqueue.signature import MAX_PRIORITY, Signature


class SendOptions(TypedDict, total=False):
    """What ``with_`` changes about a send.

    ``eta`` is an aware datetime, ``countdown`` seconds (or a timedelta) from now: not both. ``queue`` is the routing
    key. ``priority`` is 0 to 255. ``retries`` is written to ``RetryCount``. ``task_id`` is a UUID of your own.
    ``on_success`` and ``on_error`` are signatures to send when the task has ended. ``immutable`` keeps the results from
    the successors; it is set by itself where these are made with ``si``.
    """

    eta: datetime
    countdown: float | timedelta
    queue: str
    priority: int
    headers: Mapping[str, str]
    retries: int
    task_id: str
    on_success: Signature | tuple[Signature, ...]
    on_error: Signature | tuple[Signature, ...]
    immutable: bool
    message_group_id: str


def task_options(name: str, options: Mapping[str, Any]) -> TaskOptions:
    """The options of a task, checked. Raises ``ConfigError`` that names the task and the option."""
    checked = dict(options)
    if "retry_on" in checked and not isinstance(checked["retry_on"], tuple):
        checked["retry_on"] = (checked["retry_on"],)
    if isinstance(checked.get("backoff"), str):
        try:
            checked["backoff"] = parse_backoff(checked["backoff"])
        except ConfigError as exc:
            raise ConfigError(f"task {name!r}: {exc}") from None
    known = [each.name for each in fields(TaskOptions)]
    for option in checked.keys() - set(known):
        raise ConfigError(f"task {name!r}: a task has no option {option!r}{_meant(option, known)}")
    for option, (expected, fits) in _TASK_EXPECTED.items():
        if option in checked and not fits(checked[option]):
            raise ConfigError(f"task {name!r}: {option} must be {expected}, not {shown(options[option])}")
    problem = names.queue_problem(checked["queue"]) if checked.get("queue") else None
    if problem:
        raise ConfigError(f"task {name!r}: {problem}")
    return TaskOptions(**checked)


def check_send_options(task: str, options: Mapping[str, object]) -> None:
    """Raises ``ArgumentError`` for an option that there is not, or that cannot be so; it names the task."""
    for option, value in options.items():
        if option not in SendOptions.__annotations__:
            raise ArgumentError(
                f"task {task}: a send has no option {option!r}{_meant(option, SendOptions.__annotations__)}"
            )
        expected, fits = _SEND_EXPECTED[option]
        if not fits(value):
            raise ArgumentError(f"task {task}: {option} must be {expected}, not {shown(value)}")


def eta_of(task: str, options: SendOptions, clock: Clock) -> int | None:
    """When (unix nanoseconds) a send is due; None: now. Raises ``ArgumentError`` for what no message can say; it names
    the task."""
    if "eta" in options and "countdown" in options:
        raise ArgumentError(f"task {task}: eta and countdown are two ways to say one thing: give one of them")
    if "eta" in options:
        moment = to_nanoseconds(options["eta"])
        _check_nameable(task, "eta", moment)
        return moment
    if "countdown" not in options:
        return None
    countdown = options["countdown"]
    seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
    now, wait = clock.now_ns(), seconds * NANOSECONDS
    _check_nameable(task, "countdown", now + wait)  # which may be infinite, and no whole number
    return now + int(wait)


def whole(value: object, most: int = 2**63 - 1) -> bool:
    """Whether this is a whole number from 0 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _check_nameable(task: str, option: str, moment: float) -> None:
    if not rfc3339.ZERO <= moment <= rfc3339.LAST:
        raise ArgumentError(f"task {task}: {option}: a message cannot name a time before the year 1 or after 9999")


def _meant(option: str, known: Collection[str]) -> str:
    near = get_close_matches(option, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_aware(value: object) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None


def _is_backoff(value: object) -> bool:
    if not callable(value) or inspect.iscoroutinefunction(value):
        return False
    try:
        inspect.signature(value).bind(1, 0)
    except TypeError:
        return False
    except ValueError:  # it does not say what it takes
        return True
    return True


_Expected = tuple[str, Callable[[Any], bool]]
_TEXT: _Expected = "a text", lambda value: isinstance(value, str)
_FLAG: _Expected = "True or False", lambda value: isinstance(value, bool)
_COUNT: _Expected = "a whole number from 0 on", whole
_PRIORITY: _Expected = f"a whole number from 0 to {MAX_PRIORITY}", lambda value: whole(value, MAX_PRIORITY)
_SIGNATURES: _Expected = (
    "a signature, such as task.s(), or a tuple of them",
    lambda value: all(isinstance(each, Signature) for each in (value if isinstance(value, tuple) else (value,))),
)
_TASK_EXPECTED: Mapping[str, _Expected] = {
    "retries": _COUNT,
    "retry_on": (
        "an exception class, or a tuple of them",
        lambda value: all(isinstance(each, type) and issubclass(each, BaseException) for each in value),
    ),
    "backoff": ("a name, or a plain function of the attempt and the wait before it", _is_backoff),
    "timeout": ("a number of seconds over 0", lambda value: value is None or (_is_number(value) and value > 0)),
    "retry_later_limit": ("a whole number from 1 on", lambda value: value is None or (whole(value) and value > 0)),
    "priority": _PRIORITY,
    "ignore_when_not_registered": _FLAG,
    "stop_task_deletion_on_error": _FLAG,
}
_SEND_EXPECTED: Mapping[str, _Expected] = {
    "eta": ("a datetime with a time zone, e.g. datetime.now(UTC)", _is_aware),
    "countdown": (
        "a finite number of seconds, or a timedelta",
        lambda value: isinstance(value, timedelta) or (_is_number(value) and abs(value) < math.inf),
    ),
    "queue": _TEXT,
    "priority": _PRIORITY,
    "headers": (
        "a mapping of names to values",
        lambda value: isinstance(value, Mapping) and all(isinstance(each, str) for each in value),
    ),
    "retries": _COUNT,
    "task_id": _TEXT,
    "on_success": _SIGNATURES,
    "on_error": _SIGNATURES,
    "immutable": _FLAG,
    "message_group_id": _TEXT,
}
