"""What can be said of a task, and of one send of it: the options, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypedDict

from asyncqueue import names, rfc3339
from asyncqueue.clock import NANOSECONDS, Clock, to_nanoseconds
from asyncqueue.engine.registry import TaskOptions
from asyncqueue.errors import ArgumentError, ConfigError
from asyncqueue.retry import fibonacci, parse_backoff
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
    retry_on = options.get("retry_on", (Exception,))
    checked = {
        **options,
        "retry_on": retry_on if isinstance(retry_on, tuple) else (retry_on,),
        "backoff": parse_backoff(options["backoff"])
        if isinstance(options.get("backoff"), str)
        else options.get("backoff", fibonacci),
    }
    known = [each.name for each in fields(TaskOptions)]
    for option in checked.keys() - set(known):
        raise ConfigError(f"task {name!r}: a task has no option {option!r}{_meant(option, known)}")
    made = TaskOptions(**checked)
    if not whole(made.retries):
        raise ConfigError(f"task {name!r}: retries must be a whole number from 0 on, not {made.retries!r}")
    if not whole(made.priority, MAX_PRIORITY):
        raise ConfigError(
            f"task {name!r}: priority must be at least 0 and at most {MAX_PRIORITY}, not {made.priority!r}"
        )
    if made.timeout is not None and not (isinstance(made.timeout, int | float) and made.timeout > 0):
        raise ConfigError(f"task {name!r}: timeout must be more than 0 seconds, not {made.timeout!r}")
    for each in made.retry_on:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigError(f"task {name!r}: retry_on must be exceptions, not {each!r}")
    problem = names.queue_problem(made.queue) if made.queue else None
    if problem:
        raise ConfigError(f"task {name!r}: {problem}")
    return made


def check_send_options(task: str, options: Mapping[str, object]) -> None:
    """Raises ``ArgumentError`` for an option that there is not, or that cannot be so; it names the task."""
    for option, value in options.items():
        if option not in SendOptions.__annotations__:
            raise ArgumentError(
                f"task {task}: a send has no option {option!r}{_meant(option, SendOptions.__annotations__)}"
            )
        expected, fits = _EXPECTED.get(option, ("", lambda _: True))
        if not fits(value):
            raise ArgumentError(f"task {task}: {option} must be {expected}, not {value!r}")


def eta_of(options: SendOptions, clock: Clock) -> int | None:
    """When (unix nanoseconds) a send is due; None: now. Raises ``ArgumentError`` for a naive datetime."""
    if "eta" in options and "countdown" in options:
        raise ArgumentError("eta and countdown are two ways to say one thing: give one of them")
    if "countdown" in options:
        countdown = options["countdown"]
        seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
        if not math.isfinite(seconds):
            raise ArgumentError(f"countdown must be a finite number of seconds, not {seconds}")
        return _expressible("countdown", clock.now_ns() + int(seconds * NANOSECONDS))
    if "eta" not in options:
        return None
    try:
        return to_nanoseconds(options["eta"])
    except (ValueError, AttributeError) as exc:
        raise ArgumentError(f"eta: {exc}") from exc


def whole(value: object, most: int = 2**63 - 1) -> bool:
    """Whether this is a whole number from 0 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _expressible(option: str, moment: int) -> int:
    if not rfc3339.ZERO <= moment <= rfc3339.LAST:
        raise ArgumentError(f"{option}: a message cannot name a time before the year 1 or after 9999")
    return moment


def _meant(option: str, known: Collection[str]) -> str:
    near = get_close_matches(option, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"


_Fits = Callable[[Any], bool]
_TEXT: tuple[str, _Fits] = "a text", lambda value: isinstance(value, str)
_SIGNATURES: tuple[str, _Fits] = (
    "a signature, or several",
    lambda value: all(isinstance(each, Signature) for each in (value if isinstance(value, tuple) else (value,))),
)
_EXPECTED: Mapping[str, tuple[str, _Fits]] = {
    "countdown": ("a number of seconds, or a timedelta", lambda value: isinstance(value, int | float | timedelta)),
    "queue": _TEXT,
    "priority": (f"a whole number from 0 to {MAX_PRIORITY}", lambda value: whole(value, MAX_PRIORITY)),
    "headers": ("a mapping", lambda value: isinstance(value, Mapping)),
    "retries": ("a whole number from 0 on", lambda value: whole(value)),
    "task_id": _TEXT,
    "on_success": _SIGNATURES,
    "on_error": _SIGNATURES,
    "message_group_id": _TEXT,
}
