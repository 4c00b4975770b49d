"""The end of a group as a task of its own, ``aq.over``: for groups whose members workers in Go are shown too. Pure.

A worker of ours that claims a group and dies leaves the member, by whose message it did that, to be shown again. Go's
workers know nothing of the claim: they run the member anew and send nothing, since somebody has triggered the group
already. So where they may be shown it, what follows the group is left to a task in the companion queue, which only
workers of ours are shown.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from asyncqueue.brokers.base import Message, Settled
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.following import group_failed, member_of
from asyncqueue.engine.messages import Rules, message
from asyncqueue.signature import Arg, Signature, with_headers
from asyncqueue.workflow import ATTEMPT_HEADER, OVER, PLAN_HEADER, attempt_of, companion, cut_off

FIRST_PAUSE = 0.5
"""How long (seconds) to wait for a member that is run anew; then twice as long, and so on."""

LAST_PAUSE = 60.0
"""The longest pause (seconds)."""

_OF_MEMBER = frozenset({ATTEMPT_HEADER, PLAN_HEADER})


def over(member: Signature, queue: str, error: str, now_ns: int) -> Message:
    """The task that ends the group of a member, which came from ``queue``; with an error, the group has failed.

    Each has a UUID of its own, by which it claims the group: of two for one group, one sends what follows.
    """
    callback = member.chord_callback
    assert callback is not None, "it is a member"
    task = member.with_changes(
        uuid=f"over_{uuid4()}",
        name=OVER,
        routing_key=companion(queue),
        eta=None,
        args=(Arg(type="string", value=error),) if error else None,
        headers={name: value for name, value in (member.headers or {}).items() if name not in _OF_MEMBER},
        on_success=None,
        on_error=None,
        chord_callback=cut_off(callback, member) if error else callback,
        stop_task_deletion_on_error=False,
    )
    return message(task, task.routing_key, now_ns)


def over_again(task: Signature, now_ns: int) -> Message:
    """The same once more, each time after a longer pause: a member that is run anew may take its time."""
    attempt = attempt_of(task)
    pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 10))
    again = with_headers(task, {ATTEMPT_HEADER: str(attempt + 1)})
    return message(again.with_changes(eta=now_ns + int(pause * NANOSECONDS)), task.routing_key, now_ns)


def after_over(base: Settled, task: Signature, error: str, rules: Rules, now_ns: int) -> Settled:
    """``base`` with the end of the group; without an error, once the group is asked whether all members have ended."""
    callback = task.chord_callback
    assert callback is not None, "it is of a group"
    if error:
        return replace(base, end=group_failed(task.group_uuid, callback, error, rules, now_ns))
    return replace(base, member=member_of(task))  # it is none, so that nobody is counted
