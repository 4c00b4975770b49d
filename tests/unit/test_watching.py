"""What looks at a group come to, that Go's workers may be part of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from asyncqueue import Arg, Signature, State, TaskState
from asyncqueue.backends.base import Backend, GroupClaim, Member
from asyncqueue.backends.memory import MemoryBackend
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.outcome import Outcome, Overdue, Retry, Succeeded, Unseen
from asyncqueue.engine.watching import LAST_PAUSE, looked_after
from asyncqueue.signature import with_headers
from asyncqueue.state import GroupMeta
from asyncqueue.workflow import ATTEMPT_HEADER, FIRST_LOOK, ON_FAILURE_HEADER, SEEN_HEADER, WATCH

GROUP, CALLBACK = "group_1", Signature(uuid="callback", name="total")
WATCHING = Signature(uuid="watch", name=WATCH, args=(Arg(type="string", value=GROUP),), chord_callback=CALLBACK)
SEEN = with_headers(WATCHING, {SEEN_HEADER: "1"})


@pytest_asyncio.fixture
async def backend() -> AsyncIterator[Backend]:
    """In it: a group of two that wait, and its callback."""
    backend = MemoryBackend(MemoryStore(), results_expire_in=3600.0)
    await backend.open()
    await backend.open_groups([GroupMeta(group_uuid=GROUP, task_uuids=("a", "b"))])
    await backend.begin([_state(each) for each in ("a", "b", "callback", "ahead")])
    yield backend
    await backend.close()


def _state(task_id: str, state: State = State.PENDING) -> TaskState:
    error = "too late" if state is State.FAILURE else ""
    return TaskState(task_uuid=task_id, task_name="ship", state=state, error=error)


async def _ended(backend: Backend, **states: State) -> None:
    """As Go does it: the states are written, and nobody is told."""
    await backend.put([_state(task_id, state) for task_id, state in states.items()])


async def _outcome(backend: Backend, watch: Signature = WATCHING) -> Outcome:
    _, outcome = await looked_after(watch, backend)
    return outcome


async def test_while_members_run_it_looks_again_after_twice_as_long_but_each_minute(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS)
    pauses = []
    for attempt in range(1, 9):
        outcome = await _outcome(backend, with_headers(WATCHING, {ATTEMPT_HEADER: str(attempt)}))
        assert isinstance(outcome, Retry)
        assert not outcome.counts
        pauses.append(outcome.delay)
    assert pauses == [FIRST_LOOK, 4.0, 8.0, 16.0, 32.0, LAST_PAUSE, LAST_PAUSE, LAST_PAUSE]


async def test_it_acts_at_the_second_look_that_finds_the_group_ended(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    watch, outcome = await looked_after(WATCHING, backend)
    assert outcome == Retry("the group has ended", FIRST_LOOK, counts=False)
    outcome = await _outcome(backend, watch)
    assert isinstance(outcome, Unseen)
    assert not outcome.is_marked
    assert [state and state.error for state in outcome.states] == ["", "too late"]


async def test_a_member_that_go_runs_anew_between_two_looks_is_seen_ended_twice_more(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    await backend.finish_members([Member(GROUP, "a"), Member(GROUP, "b")])
    await backend.begin([_state("b", State.STARTED)])  # as Go writes over what was there
    watch, outcome = await looked_after(SEEN, backend)
    assert isinstance(outcome, Retry)
    await _ended(backend, b=State.SUCCESS)
    watch, outcome = await looked_after(watch, backend)
    assert isinstance(outcome, Retry), "Go is about to send what follows"
    assert isinstance(await _outcome(backend, watch), Unseen)


async def test_members_that_succeeded_unseen_have_their_callback_sent(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    outcome = await _outcome(backend, SEEN)
    assert isinstance(outcome, Unseen)
    assert not outcome.is_marked


async def test_a_group_that_is_marked_with_a_failed_member_is_ended(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    await backend.finish_members([Member(GROUP, "a")])
    await backend.mark_group_sent(GROUP)
    outcome = await _outcome(backend, SEEN)
    assert isinstance(outcome, Unseen)
    assert outcome.is_marked


async def test_a_group_that_is_marked_whose_members_all_succeeded_is_left_alone(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    await backend.mark_group_sent(GROUP)
    assert await _outcome(backend, SEEN) == Succeeded(())


async def test_so_is_one_of_whose_members_an_entry_has_expired_since(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.SUCCESS)
    await backend.mark_group_sent(GROUP)
    await backend.forget(["a"])
    assert await _outcome(backend, SEEN) == Succeeded(())


async def test_so_is_one_whose_callback_takes_failed_members(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS, b=State.FAILURE)
    await backend.mark_group_sent(GROUP)
    skipping = SEEN.with_changes(chord_callback=with_headers(CALLBACK, {ON_FAILURE_HEADER: "skip"}))
    assert await _outcome(backend, skipping) == Succeeded(())


@pytest.mark.parametrize("state", [each for each in State if each is not State.PENDING])
async def test_once_the_callback_has_begun_there_is_nothing_to_look_after(backend: Backend, state: State) -> None:
    await _ended(backend, b=State.FAILURE, callback=state)
    assert await _outcome(backend) == Succeeded(())


async def test_nor_is_there_once_it_has_expired(backend: Backend) -> None:
    await backend.forget(["callback"])
    assert await _outcome(backend) == Succeeded(())


async def test_a_task_ahead_of_a_member_that_failed_ends_the_group(backend: Backend) -> None:
    ahead = Arg(type="[]string", value=["unknown", "ahead"])
    watch = WATCHING.with_changes(args=(*(WATCHING.args or ()), ahead))
    assert isinstance(await _outcome(backend, watch), Retry)
    await _ended(backend, ahead=State.FAILURE)
    outcome = await _outcome(backend, watch)
    text = f"task 'ship' (ahead) before a member of group {GROUP} failed: too late"
    assert outcome == Overdue(GROUP, CALLBACK, text)


async def test_a_group_without_an_entry_has_failed(backend: Backend) -> None:
    await backend.forget([GROUP])
    outcome = await _outcome(backend)
    assert isinstance(outcome, Overdue)
    assert "has expired" in outcome.error


async def test_looking_counts_nobody_and_claims_nothing(backend: Backend) -> None:
    await _ended(backend, a=State.SUCCESS)
    await _outcome(backend)
    (group,) = await backend.get_groups([GROUP])
    assert group is not None
    assert group.task_uuids == ("a", "b")
    assert not group.chord_triggered
    assert await backend.claim_group(GROUP, "somebody", 30.0) is GroupClaim.MINE


async def test_a_watch_that_carries_no_group_ends(backend: Backend) -> None:
    assert await _outcome(backend, WATCHING.with_changes(chord_callback=None)) == Succeeded(())
    assert await _outcome(backend, WATCHING.with_changes(args=())) == Succeeded(())
