"""What follows the end of a task, of a chain, of a group: values in, values out."""

from __future__ import annotations

from typing import Any

import pytest

from asyncqueue import wire
from asyncqueue.brokers.base import Ack, Delivery, GroupEnd, Message, Settled
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.following import after_failure, after_success, family, group_completed, group_failed
from asyncqueue.engine.messages import Rules
from asyncqueue.go_compat import GoCompat
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState

NOW = 1_750_000_000 * NANOSECONDS
RULES = Rules()
BASE = Settled(Delivery(b"", "q", 1, 1), Ack(), TaskState(task_uuid="task_a", state=State.SUCCESS))
THREE = (TaskResult(type="int64", value=3),)


def task(uuid: str, **changes: Any) -> Signature:
    return Signature(uuid=uuid, name=uuid.removeprefix("task_"), routing_key="q").with_changes(**changes)


def member(uuid: str, callback: Signature, **changes: Any) -> Signature:
    return task(uuid, group_uuid="group_g", group_task_count=2, chord_callback=callback, **changes)


def sent(messages: tuple[Message, ...]) -> list[Signature]:
    return [wire.decode_signature(each.body) for each in messages]


def completed(callback: Signature, *states: TaskState | None, rules: Rules = RULES) -> GroupEnd:
    group = GroupMeta(group_uuid="group_g", task_uuids=tuple(f"task_{number}" for number, _ in enumerate(states)))
    return group_completed(group, callback, states, rules, NOW)


def ended(value: int) -> TaskState:
    results = (TaskResult(type="int64", value=value),)
    return TaskState(task_uuid="task_x", task_name="x", state=State.SUCCESS, results=results)


def failed(error: str) -> TaskState:
    return TaskState(task_uuid="task_x", task_name="x", state=State.FAILURE, error=error)


def test_a_task_without_a_workflow_is_followed_by_nothing() -> None:
    assert after_success(BASE, task("task_a"), THREE, RULES, NOW) is BASE


def test_successors_are_given_the_results_behind_their_own_arguments() -> None:
    own = Arg(type="int64", value=1)
    item = after_success(BASE, task("task_a", on_success=(task("task_b", args=(own,)),)), THREE, RULES, NOW)
    (successor,) = sent(item.publish)
    assert [each.value for each in successor.args or ()] == [1, 3]
    assert [each.task_uuid for each in item.pending] == ["task_b"]


def test_what_fans_out_opens_its_groups() -> None:
    callback = task("task_c")
    members = (member("task_m", callback), member("task_n", callback))
    (group,) = after_success(BASE, task("task_a", on_success=members), THREE, RULES, NOW).opens
    assert (group.group_uuid, group.task_uuids, group.created_at) == ("group_g", ("task_m", "task_n"), NOW)


def test_what_is_behind_a_later_task_is_kept_until_that_is_due() -> None:
    later = NOW + 60 * NANOSECONDS
    item = after_success(BASE, task("task_a", on_success=(task("task_b", eta=later),)), THREE, RULES, NOW)
    assert item.state is not None
    assert item.state.not_before == later / NANOSECONDS


def test_later_links_fail_with_the_link_that_did() -> None:
    chain = task("task_a", on_success=(task("task_b", on_success=(task("task_c"),)),))
    item = after_failure(BASE, chain, "ValueError: no", RULES, NOW)
    assert [each.task_uuid for each in item.ended] == ["task_b", "task_c"]
    assert all(each.error == "task 'a' (task_a) before it failed: ValueError: no" for each in item.ended)
    assert item.publish == ()


def test_word_is_sent_of_a_link_that_is_a_member_and_calls_no_handlers_of_it() -> None:
    last = member("task_z", task("task_c"), on_error=(task("task_h"),))
    item = after_failure(BASE, task("task_a", on_success=(last,)), "no", RULES, NOW)
    (word,) = sent(item.publish)
    assert (word.uuid, word.routing_key, word.on_error) == ("task_z", "q.aq", None)
    assert (word.headers or {})["aq-failed"].endswith("before it failed: no")


def test_a_failed_member_ends_its_group() -> None:
    callback = task("task_c", on_success=(task("task_d"),), on_error=(task("task_h"),))
    end = after_failure(BASE, member("task_m", callback), "no", RULES, NOW).end
    assert end is not None
    assert [(each.task_uuid, each.state) for each in end.ended] == [
        ("task_c", State.FAILURE),
        ("task_d", State.FAILURE),
    ]
    assert end.ended[0].error == "member 'm' (task_m) of group group_g failed: no"
    (word,) = sent(end.publish)
    assert (word.uuid, word.routing_key) == ("task_c", "q.aq")
    assert word.on_error is not None


@pytest.mark.parametrize("policy", ["skip", "pass"])
def test_a_failed_member_is_counted_where_the_policy_lets_the_others_go_on(policy: str) -> None:
    callback = task("task_c", headers={"aq-on-failure": policy})
    item = after_failure(BASE, member("task_m", callback), "no", RULES, NOW)
    assert item.end is None
    assert item.member is not None
    assert (item.member.group_id, item.member.task_id) == ("group_g", "task_m")


def test_a_broken_member_ends_its_group_whatever_the_policy() -> None:
    callback = task("task_c", headers={"aq-on-failure": "skip"})
    item = after_failure(BASE, member("task_m", callback, headers={"aq-broken": "group_g"}), "no", RULES, NOW)
    assert item.end is not None


def test_a_callback_without_consequences_fails_without_a_word() -> None:
    end = group_failed("group_g", task("task_c"), "no", RULES, NOW)
    assert [each.error for each in end.ended] == ["no"]
    assert end.publish == ()


def test_the_callback_is_given_the_results_in_the_order_of_the_group() -> None:
    end = completed(task("task_c", args=(Arg(type="int64", value=0),)), ended(1), ended(2), ended(3))
    (callback,) = sent(end.publish)
    assert [each.value for each in callback.args or ()] == [0, 1, 2, 3]
    assert [each.task_uuid for each in end.pending] == ["task_c"]
    assert callback.headers == {"aq-check": "1"}


def test_a_callback_that_go_sent_is_sent_whatever_is_refused_of_one_of_ours() -> None:
    beside = Rules(go=GoCompat(is_on=True))
    callback = task("task_c", headers={"attempts": 3}, stop_task_deletion_on_error=True)
    (ready,) = sent(completed(callback, ended(3), rules=beside).publish)
    assert ready.headers is not None
    assert ready.headers["attempts"] == 3
    unfit = TaskState(
        task_uuid="task_x", task_name="x", state=State.SUCCESS, results=(TaskResult(type="json", value={}),)
    )
    end = completed(callback, unfit, rules=beside)
    assert not end.publish
    assert "task c: argument 1 is of type json" in end.ended[0].error
    assert completed(callback, unfit).publish


def test_an_immutable_callback_is_given_nothing() -> None:
    (callback,) = sent(completed(task("task_c", immutable=True), ended(1)).publish)
    assert not callback.args


def test_policies_decide_what_a_callback_is_given_of_failures_and_of_what_expired() -> None:
    states = (ended(1), failed("no"), None)
    (skipped,) = sent(completed(task("task_c", headers={"aq-on-failure": "skip"}), *states).publish)
    assert [each.value for each in skipped.args or ()] == [1]
    (passed,) = sent(completed(task("task_c", headers={"aq-on-failure": "pass"}), *states).publish)
    assert [each.value for each in passed.args or ()] == [
        1,
        {"task_id": "task_1", "task_name": "x", "error": "no"},
        {"task_id": "task_2", "task_name": "", "error": "its result has expired"},
    ]
    end = completed(task("task_c"), *states)
    assert end.ended[0].error == "member 'x' (task_1) of group group_g failed: no"
    assert end.publish == ()


def test_results_that_no_message_holds_fail_the_callback() -> None:
    few = Rules(limits=wire.Limits(max_args=2))
    small = Rules(limits=wire.Limits(max_bytes=300))
    for rules, text in ((few, "3 arguments, the limit is 2"), (small, "bytes, the limit is 300")):
        end = completed(task("task_c"), ended(1), ended(2), ended(3), rules=rules)
        assert text in end.ended[0].error
        assert end.publish == ()


def test_a_family_is_all_that_waits_for_a_task_or_the_plan_that_names_it_all() -> None:
    callback = task("task_c", on_success=(task("task_d"),))
    assert family(member("task_m", callback)) == ("group_g", "task_c", "task_d")
    assert family(task("task_a", on_success=(task("task_b"),))) == ("task_b",)
    assert family(task("task_a", headers={"aq-workflow": "plan_1 plan_2"})) == ("plan_1", "plan_2")
