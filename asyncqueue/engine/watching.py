"""Groups that end where no worker of ours sees it: what a look at such groups comes to.

Go's worker that fails a member looks at no group, and one that ends a group in which a member failed marks it as
triggered and sends nothing; what follows would be waited for for ever. So each group that Go's workers may be part of
has an ``aq.watch`` beside it, which looks until what follows has begun, or can be told that it never will. It is sent
with the group; to one that a client in Go has sent, by the first worker of ours that ends a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asyncqueue import rfc3339
from asyncqueue.backends.base import Backend, Member, Progress
from asyncqueue.brokers.base import Message
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.batching import Batcher
from asyncqueue.engine.following import policy_of
from asyncqueue.engine.messages import Rules, message, pending
from asyncqueue.engine.outcome import Copied, Outcome, Overdue, Retry, Succeeded, Unseen
from asyncqueue.engine.patience import Patience
from asyncqueue.errors import BadMessage
from asyncqueue.signature import Arg, Signature, header, with_headers
from asyncqueue.state import GroupMeta, State, TaskState
from asyncqueue.workflow import (
    FIRST_LOOK,
    SEEN_HEADER,
    WATCH,
    attempt_of,
    companion,
    is_of_go,
    watch_id_of,
)

LAST_PAUSE = 60.0
"""The longest pause (seconds) between two looks."""

LOOKS_TO_END = 1
"""At so many looks before, a group has to have been seen ended, so that whoever is about to send what follows comes
first."""

LOOKS_TO_SEND_AGAIN = 4
"""The same where somebody has said that they send what follows, and is never seen to begin: 30 seconds."""

_TOGETHER = 100
_AT_ONCE = 1_000
_FIRST_LOOK_NS = int(FIRST_LOOK * NANOSECONDS)

Found = tuple[Signature, Outcome]
"""A watch as it goes on after a look, and what the look came to."""

_States = dict[str, TaskState]


def begun(member: Signature, rules: Rules, now_ns: int) -> tuple[Message, tuple[TaskState, ...]]:
    """The watch of a group that Go's client has sent, and the PENDING states of it and of what follows the group.

    Each worker of ours that ends a member may send one. They have one UUID, and PENDING is taken only where no entry
    is: so the entry has the time at which the one was sent that goes on.
    """
    callback = member.chord_callback
    assert callback is not None, "it is a member"
    watch = Signature(
        uuid=watch_id_of(member.group_uuid),
        name=WATCH,
        routing_key=companion(rules.default_queue),
        eta=now_ns + _FIRST_LOOK_NS,
        args=(Arg(type="string", value=member.group_uuid),),
        group_task_count=member.group_task_count,
        chord_callback=callback,
    )
    return message(watch, rules.default_queue, now_ns), (pending(watch, now_ns), pending(callback, now_ns))


def concluded(group_id: str) -> TaskState:
    """The end of a group's watch: what follows the group is sent by one of ours, or never will be."""
    return TaskState(task_uuid=watch_id_of(group_id), task_name=WATCH, state=State.SUCCESS, results=())


class Watcher:
    """Looks after groups, at those that come together in the same round trips."""

    def __init__(self, backend: Backend, patience: Patience) -> None:
        self._backend = backend
        self._patience = patience
        self._batcher: Batcher[_Look] = Batcher(self._flush, _TOGETHER)

    async def look(self, watch: Signature) -> Found:
        """The watch as it goes on, and what it comes to. Raises ``Refused``."""
        look = _Look(watch)
        await self._batcher.add([look])
        assert look.found is not None, "it was flushed"
        return look.found

    async def _flush(self, looks: Sequence[_Look]) -> None:
        watches = [each.watch for each in looks]
        found = await self._patience.insist("look after groups", lambda: looked_after(watches, self._backend))
        for look, came_of_it in zip(looks, found, strict=True):
            look.found = came_of_it


@dataclass(slots=True)
class _Look:
    watch: Signature
    found: Found | None = None


async def looked_after(watches: Sequence[Signature], backend: Backend) -> Sequence[Found]:
    """Each watch as it goes on, and what it comes to: the end of its group, another look later, or that there is
    nothing left to look after. Raises ``Unavailable`` and ``Refused``."""
    known = await _states(backend, (task_id for watch in watches for task_id in _first_asked_for(watch)))
    found = [_without_asking(watch, known) for watch in watches]
    asked = [place for place, each in enumerate(found) if each is None]
    progress = await backend.finish_members([_member(watches[place], known) for place in asked])
    stands = dict(zip(asked, progress, strict=True))
    for place, how in stands.items():
        found[place] = _unended(watches[place], how, known)
    ended = [place for place in asked if found[place] is None]
    groups = await _groups(backend, [_group_id(watches[place]) for place in ended]) if ended else ()
    known |= await _states(backend, (task_id for group in groups if group for task_id in group.task_uuids or ()))
    for place, group in zip(ended, groups, strict=True):
        found[place] = _ended(watches[place], group, stands[place] is Progress.TRIGGERED, known)
    return [each for each in found if each is not None]


async def _states(backend: Backend, task_ids: Iterable[str]) -> _States:
    """What is known of these tasks. Of one to whose UUID somebody wrote what is no state, nothing is."""
    asked = list(dict.fromkeys(task_ids))
    known: _States = {}
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        try:
            states = await backend.get(some)
        except BadMessage:
            for each in some if len(some) > 1 else ():
                known |= await _states(backend, [each])
        else:
            known |= {each: state for each, state in zip(some, states, strict=True) if state is not None}
    return known


async def _groups(backend: Backend, group_ids: Sequence[str]) -> Sequence[GroupMeta | None]:
    """The entries of these groups; None for one that is gone, or that nobody can read."""
    try:
        return await backend.get_groups(group_ids)
    except BadMessage:
        if len(group_ids) == 1:
            return (None,)
        return [group for each in group_ids for group in await _groups(backend, [each])]


def _first_asked_for(watch: Signature) -> Iterable[str]:
    callback = watch.chord_callback
    return () if callback is None else (callback.uuid, watch.uuid, *_ahead(watch))


def _without_asking(watch: Signature, known: _States) -> Found | None:
    """What the look comes to for which the group need not be asked."""
    callback, group_id = watch.chord_callback, _group_id(watch)
    if callback is not None and _is_second(watch, known):
        return watch, Copied()
    if callback is None or not group_id or _has_begun(callback, known):
        return watch, Succeeded(())
    failed = next((known[each] for each in _ahead(watch) if each in known and known[each].is_failure), None)
    if failed is None:
        return None
    error = f"task {failed.task_name!r} ({failed.task_uuid}) before a member of group {group_id} failed"
    return watch, Overdue(group_id, callback, f"{error}: {failed.error}")


def _member(watch: Signature, known: _States) -> Member:
    """The watch as a member that never ends: so a look at a group is asked for. With the size of one that Go's client
    has sent, where a store may have no entry of it."""
    return Member(_group_id(watch), watch.uuid, 0 if _is_concluded(watch, known) else watch.group_task_count)


def _unended(watch: Signature, progress: Progress, known: _States) -> Found | None:
    """What it comes to where the group has not ended."""
    if progress in (Progress.WAITING, Progress.BUSY):
        return (watch, Succeeded(())) if _has_expired(watch, known) else _again(watch)
    return _without_entry(watch, known) if progress is Progress.LOST else None


def _without_entry(watch: Signature, known: _States) -> Found:
    callback, group_id = watch.chord_callback, _group_id(watch)
    if callback is None or callback.uuid not in known:
        return watch, Succeeded(())  # all of it has expired
    return watch, Overdue(group_id, callback, f"group state lost: the entry of group {group_id} has expired")


def _ended(watch: Signature, group: GroupMeta | None, is_marked: bool, known: _States) -> Found:
    callback = watch.chord_callback
    if group is None or callback is None:
        return _without_entry(watch, known)
    states = tuple(known.get(task_id) for task_id in group.task_uuids or ())
    if any(state is not None and not state.is_completed for state in states):
        return _again(watch)  # Go was shown the message of a worker of ours that died, and runs the task anew
    has_failed = policy_of(callback) == "fail" and any(state is not None and state.is_failure for state in states)
    looks = LOOKS_TO_END
    if is_marked and not has_failed:
        if not all(state and state.is_success for state in states) or not _is_unsent(watch, callback, known):
            return watch, Succeeded(())  # what follows waits for a worker
        looks = LOOKS_TO_SEND_AGAIN
    elif is_marked and _is_concluded(watch, known):
        return watch, Succeeded(())
    seen = int(header(watch, SEEN_HEADER) or 0)
    if seen >= looks:
        return watch, Unseen(group, callback, states, is_marked)
    again = with_headers(watch, {SEEN_HEADER: str(seen + 1)})
    return again, Retry("the group has ended", FIRST_LOOK * 2.0**seen, counts=False)


def _again(watch: Signature) -> Found:
    pause = min(LAST_PAUSE, FIRST_LOOK * 2.0 ** min(attempt_of(watch) - 1, 10))
    if header(watch, SEEN_HEADER) is not None:  # a member of it runs again: it has to be seen ended anew
        headers = {name: value for name, value in (watch.headers or {}).items() if name != SEEN_HEADER}
        watch = watch.with_changes(headers=headers)
    return watch, Retry("members of the group have not ended", pause, counts=False)


def _has_begun(callback: Signature, known: _States) -> bool:
    """Whether what follows the group has; not an earlier run of it, where that goes on as the workflow it ends."""
    state = known.get(callback.uuid)
    if state is None or state.state is State.PENDING:
        return False
    return state.is_completed or (state.attempt or 1) >= attempt_of(callback)


def _has_expired(watch: Signature, known: _States) -> bool:
    """Whether what follows a group of Go's client has: a store that has no entry of such groups cannot tell of them."""
    callback = watch.chord_callback
    return watch.group_task_count > 0 and callback is not None and callback.uuid not in known


def _is_second(watch: Signature, known: _States) -> bool:
    """Whether another watch of this group goes on, of those that were sent because Go's client had sent none."""
    callback, own = watch.chord_callback, known.get(watch.uuid)
    if own is None or callback is None or watch.eta is None or attempt_of(watch) > 1:
        return False
    # one that has not looked yet, although it was sent first, may have been lost with its sender
    has_looked = own.state is not State.PENDING
    return has_looked and is_of_go(_group_id(watch), callback) and own.created_at + _FIRST_LOOK_NS != watch.eta


def _is_unsent(watch: Signature, callback: Signature, known: _States) -> bool:
    """Whether nobody has sent what follows: Go's workers write PENDING anew before they do, and ours end the watch."""
    own, awaited = known.get(watch.uuid), known.get(callback.uuid)
    if own is None or awaited is None or _is_concluded(watch, known):
        return False
    return own.created_at == awaited.created_at != rfc3339.ZERO


def _is_concluded(watch: Signature, known: _States) -> bool:
    own = known.get(watch.uuid)
    return own is not None and own.is_completed


def _group_id(watch: Signature) -> str:
    return str(watch.args[0].value) if watch.args else ""


def _ahead(watch: Signature) -> Sequence[str]:
    """The tasks in Go without whose success a member never runs: what follows are the results of the task before the
    group."""
    match watch.args:
        case (_, Arg(type="[]string", value=[*task_ids]), *_):
            return [str(each) for each in task_ids]
        case _:
            return ()
