"""States: which are final, which may follow which, and what the models refuse."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from asyncqueue import rfc3339
from asyncqueue.signature import Arg, Signature, header, nested, new_group_id, new_task_id
from asyncqueue.state import State, TaskState, may_follow

FINAL = {State.SUCCESS, State.FAILURE}


@pytest.mark.parametrize("state", State)
def test_success_and_failure_are_final(state: State) -> None:
    entry = TaskState(task_uuid="u", state=state)
    assert state.is_final == entry.is_completed == (state in FINAL)
    assert entry.is_success == (state is State.SUCCESS)
    assert entry.is_failure == (state is State.FAILURE)


@pytest.mark.parametrize("new", State)
def test_any_state_is_taken_where_no_entry_is(new: State) -> None:
    assert may_follow(new, None)


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_nothing_follows_a_final_state_and_pending_follows_nothing(old: State, new: State) -> None:
    assert may_follow(new, old) == (old not in FINAL and new is not State.PENDING)


def test_a_state_knows_its_zero_values() -> None:
    state = TaskState()
    assert (state.created_at, state.results, state.attempt) == (rfc3339.ZERO, None, 0)


def test_moments_may_be_text_datetimes_or_nanoseconds() -> None:
    moment = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    nanoseconds = int(moment.timestamp()) * 1_000_000_000
    for given in (moment, nanoseconds, "2025-01-02T03:04:05Z", "2025-01-02T05:04:05+02:00"):
        assert Signature.model_validate({"name": "n", "eta": given}).eta == nanoseconds


@pytest.mark.parametrize(
    "fields",
    [
        {"eta": datetime(2025, 1, 2)},  # naive
        {"eta": "2025-01-02"},
        {"eta": 10**30},
        {"priority": 256},
        {"priority": -1},
        {"group_task_count": -1},
        {"retry_count": 2**63},
    ],
)
def test_a_signature_refuses_what_go_could_not_hold(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Signature.model_validate({"name": "n", **fields})


def test_a_signature_does_not_change_but_has_changed_copies() -> None:
    signature = Signature(name="n", args=(Arg(type="int64", value=1),))
    with pytest.raises(ValidationError):
        signature.name = "other"
    assert signature.with_changes(routing_key="q").routing_key == "q"
    assert signature.routing_key == ""


def test_nested_signatures_are_successors_error_handlers_and_the_callback() -> None:
    a, b, c = (Signature(name=name) for name in "abc")
    assert list(nested(Signature(on_success=(a,), on_error=(b,), chord_callback=c))) == [a, b, c]
    assert list(nested(a)) == []


def test_only_text_headers_are_read() -> None:
    signature = Signature(headers={"aq-kw": "1", "number": 5})
    assert header(signature, "aq-kw") == "1"
    assert header(signature, "number") is None
    assert header(Signature(), "aq-kw") is None


def test_fresh_ids_have_machinerys_form_and_differ() -> None:
    assert new_task_id().startswith("task_")
    assert new_group_id().startswith("group_")
    assert len({new_task_id() for _ in range(100)}) == 100
