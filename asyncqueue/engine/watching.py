"""Groups that end where no worker of ours sees it: what one look at such a group comes to.

Go's worker that fails a member looks at no group, and one that ends a group in which a member failed marks it as
triggered and sends nothing; what follows would be waited for for ever. So each group that Go's workers may be part of
has an ``aq.watch`` beside it, which looks until what follows has begun, or can be told that it never will.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncqueue.backends.base import Backend, Member, Progress
from asyncqueue.engine.following import policy_of
from asyncqueue.engine.outcome import Outcome, Overdue, Retry, Succeeded, Unseen
from asyncqueue.signature import Arg, Signature, header, with_headers
from asyncqueue.state import State, TaskState
from asyncqueue.workflow import FIRST_LOOK, SEEN_HEADER, attempt_of

LAST_PAUSE = 60.0
"""The longest pause (seconds) between two looks."""

_AT_ONCE = 1_000


async def looked_after(watch: Signature, backend: Backend) -> tuple[Signature, Outcome]:
    """The watch as it goes on, and what it comes to: the end of the group, another look later, or that there is nothing
    left to look after.

    Acts only on what it has seen at two looks, so that whoever is about to send what follows comes first. Raises
    ``Unavailable``.
    """
    callback = watch.chord_callback
    group_id = str(watch.args[0].value) if watch.args else ""
    if callback is None or not group_id:
        return watch, Succeeded(())
    (awaited,) = await backend.get([callback.uuid])
    if awaited is None or awaited.state is not State.PENDING:
        return watch, Succeeded(())
    failed = await _failed_ahead(watch, backend)
    if failed is not None:
        error = f"task {failed.task_name!r} ({failed.task_uuid}) before a member of group {group_id} failed"
        return watch, Overdue(group_id, callback, f"{error}: {failed.error}")
    (progress,) = await backend.finish_members([Member(group_id, watch.uuid)])
    if progress in (Progress.WAITING, Progress.BUSY):
        return _again(watch)
    (group,) = await backend.get_groups([group_id])
    if progress is Progress.LOST or group is None:
        return watch, Overdue(group_id, callback, f"group state lost: the entry of group {group_id} has expired")
    states: list[TaskState | None] = []
    members = group.task_uuids or ()
    for start in range(0, len(members), _AT_ONCE):
        states += await backend.get(members[start : start + _AT_ONCE])
    if any(state is not None and not state.is_completed for state in states):
        return _again(watch)  # Go was shown the message of a worker of ours that died, and runs the task anew
    is_marked = progress is Progress.TRIGGERED
    if is_marked and (policy_of(callback) != "fail" or not any(state and state.is_failure for state in states)):
        return watch, Succeeded(())  # what follows was sent, and waits for a worker
    if header(watch, SEEN_HEADER) is None:
        return with_headers(watch, {SEEN_HEADER: "1"}), Retry("the group has ended", FIRST_LOOK, counts=False)
    return watch, Unseen(group, callback, tuple(states), is_marked)


def _again(watch: Signature) -> tuple[Signature, Outcome]:
    pause = min(LAST_PAUSE, FIRST_LOOK * 2.0 ** min(attempt_of(watch) - 1, 10))
    return _unseen(watch), Retry("members of the group have not ended", pause, counts=False)


def _unseen(watch: Signature) -> Signature:
    """One that has not seen the group ended, or has to see it anew: a member of it runs again."""
    if header(watch, SEEN_HEADER) is None:
        return watch
    return watch.with_changes(
        headers={name: value for name, value in (watch.headers or {}).items() if name != SEEN_HEADER}
    )


async def _failed_ahead(watch: Signature, backend: Backend) -> TaskState | None:
    """A task before a member that has failed in Go, so that the member never runs."""
    ahead = _ahead(watch)
    for start in range(0, len(ahead), _AT_ONCE):
        for state in await backend.get(ahead[start : start + _AT_ONCE]):
            if state is not None and state.state is State.FAILURE:
                return state
    return None


def _ahead(watch: Signature) -> Sequence[str]:
    # what follows are the results of the task before the group
    match watch.args:
        case (_, Arg(type="[]string", value=[*task_ids]), *_):
            return [str(each) for each in task_ids]
        case _:
            return ()
