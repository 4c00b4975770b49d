"""What one run came to, and what must change because of it: values in, values out."""

from __future__ import annotations

import pytest

from asyncqueue import wire
from asyncqueue.brokers.base import Ack, Bury, Delivery, Nack, Settled
from asyncqueue.clock import NANOSECONDS
from asyncqueue.engine.messages import (
    MAX_ERROR_TEXT,
    Rules,
    callback_id,
    callback_ids,
    error_text,
    message,
)
from asyncqueue.engine.naming import name_problem, usable_task_id
from asyncqueue.engine.outcome import (
    Cancelled,
    Exhausted,
    Failed,
    Lost,
    NotMine,
    NotYet,
    Outcome,
    Retry,
    Succeeded,
    Superseded,
    Unreadable,
    judge,
    known_end,
    settled,
)
from asyncqueue.engine.registry import TaskOptions
from asyncqueue.errors import RetryTaskLater
from asyncqueue.retry import LONGEST, fibonacci_next
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.workflow import attempt_of

NOW = 1_750_000_000 * NANOSECONDS
RULES = Rules()
RESULTS = (TaskResult(type="int64", value=3), TaskResult(type="string", value="x"))


def signature(**changes: object) -> Signature:
    return Signature(uuid="task_a", name="add", routing_key="q").with_changes(**changes)


def settle(outcome: Outcome, sent: Signature | None = None, *, now: int = NOW, rules: Rules = RULES) -> Settled:
    sent = sent or signature()
    found = settled(Delivery(b"", "q", 1, 1), sent, outcome, rules, now)
    assert found is not None
    return found


def published(item: Settled) -> list[Signature]:
    return [wire.decode_signature(each.body) for each in item.publish]


# — judging —


def test_an_exception_without_retries_is_a_failure() -> None:
    assert judge(ValueError("no"), signature(), TaskOptions()) == Failed("ValueError: no")
    assert judge(SystemExit(3), signature(retry_count=3), TaskOptions()) == Failed("SystemExit: 3")


def test_retries_wait_machinerys_fibonacci_numbers() -> None:
    waits: list[float] = []
    sent = signature(retry_count=5)
    while isinstance(outcome := judge(OSError("x"), sent, TaskOptions()), Retry):
        waits.append(outcome.delay)
        (sent,) = published(settle(outcome, sent))
    assert waits == [1, 2, 3, 5, 8]
    assert (sent.retry_count, sent.retry_timeout, attempt_of(sent)) == (0, 8, 6)


@pytest.mark.parametrize("outcome", [Retry("OSError: x", 1.0, counts=True), Superseded(2, 1.0)])
def test_a_retry_of_a_task_that_names_no_queue_stays_in_the_queue_it_was_in(outcome: Outcome) -> None:
    item = settle(outcome, signature(routing_key=""))
    assert [each.queue for each in item.publish] == ["q"]
    assert [each.routing_key for each in published(item)] == ["q"]


def test_a_retry_timeout_of_the_user_is_only_where_the_waits_begin() -> None:
    outcome = judge(OSError("x"), signature(retry_count=1, retry_timeout=10), TaskOptions())
    assert outcome == Retry("OSError: x", fibonacci_next(10), counts=True)


def test_a_retry_is_the_same_task_again_at_its_time() -> None:
    item = settle(Retry("OSError: x", 2.5, counts=True), signature(retry_count=2, headers={"mine": "1"}))
    (again,) = published(item)
    assert item.verdict == Ack()
    assert item.state == TaskState(
        task_uuid="task_a",
        task_name="add",
        state=State.RETRY,
        error="OSError: x",
        attempt=2,
        not_before=NOW / NANOSECONDS + 2.5,
    )
    assert (again.uuid, again.retry_count, again.retry_timeout) == ("task_a", 1, 3)
    assert again.eta == NOW + 2_500_000_000
    assert item.publish[0].not_before == NOW / NANOSECONDS + 2.5
    assert again.headers == {"mine": "1", "aq-attempt": "2", "aq-check": "1"}


def test_retry_task_later_uses_up_no_retry_and_counts_attempts() -> None:
    outcome = judge(RetryTaskLater(0.5), signature(retry_count=2), TaskOptions())
    assert isinstance(outcome, Retry)
    assert not outcome.counts
    (again,) = published(settle(outcome, signature(retry_count=2)))
    assert (again.retry_count, again.retry_timeout, attempt_of(again)) == (2, 0, 2)


def test_retry_task_later_ends_at_its_limit() -> None:
    options = TaskOptions(retry_later_limit=2)
    assert isinstance(judge(RetryTaskLater(1), signature(), options), Retry)
    outcome = judge(RetryTaskLater(1), signature(headers={"aq-attempt": "2"}), options)
    assert isinstance(outcome, Failed)
    assert "run 2 of 2" in outcome.error


@pytest.mark.parametrize(
    ("delay", "bounded"), [(float("nan"), 0.0), (-3.0, 0.0), (float("inf"), LONGEST), (1e300, LONGEST), (2.0, 2.0)]
)
def test_a_delay_is_a_number_between_now_and_a_year(delay: float, bounded: float) -> None:
    outcome = judge(RetryTaskLater(delay), signature(), TaskOptions())
    assert isinstance(outcome, Retry)
    assert outcome.delay == bounded
    published(settle(outcome))
    counted = judge(OSError(), signature(retry_count=1), TaskOptions(backoff=lambda attempt, previous: delay))
    assert isinstance(counted, Retry)
    assert counted.delay == bounded


def test_machinerys_waits_stand_in_for_a_backoff_that_raises() -> None:
    def broken(attempt: int, previous: float) -> float:
        raise ZeroDivisionError

    outcome = judge(OSError("x"), signature(retry_count=1, retry_timeout=2), TaskOptions(backoff=broken))
    assert outcome == Retry("OSError: x", 3.0, counts=True)


def test_an_error_text_is_bounded_and_can_be_written() -> None:
    assert error_text(ValueError()) == "ValueError"
    assert len(error_text(ValueError("x" * 100_000))) == MAX_ERROR_TEXT
    assert error_text(ValueError("\ud800")).encode() == b"ValueError: ?"


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "9" * 10])  # a digit that is no number
def test_an_attempt_header_that_is_no_number_says_nothing(text: str) -> None:
    assert attempt_of(signature(headers={"aq-attempt": text})) == 1


# — what changes —


def test_success_is_recorded_and_acked() -> None:
    item = settle(Succeeded(RESULTS))
    assert item.verdict == Ack()
    assert item.state is not None
    assert (item.state.state, item.state.results, item.publish) == (State.SUCCESS, RESULTS, ())


def test_results_are_appended_to_the_arguments_of_successors() -> None:
    mine = Arg(type="int64", value=1)
    sent = signature(on_success=(Signature(uuid="task_b", name="next", args=(mine,)),))
    item = settle(Succeeded(RESULTS), sent)
    (successor,) = published(item)
    assert successor.args == (mine, Arg(type="int64", value=3), Arg(type="string", value="x"))
    assert (successor.routing_key, item.publish[0].queue) == ("machinery_tasks", "machinery_tasks")
    assert [(each.task_uuid, each.state) for each in item.pending] == [("task_b", State.PENDING)]
    assert successor.headers == {"aq-check": "1"}


def test_the_immutable_bit_of_the_finished_task_decides() -> None:
    successor = Signature(uuid="task_b", name="next", immutable=True)
    (passed,) = published(settle(Succeeded(RESULTS), signature(on_success=(successor,))))
    assert passed.args is not None
    assert len(passed.args) == 2
    (bare,) = published(settle(Succeeded(RESULTS), signature(on_success=(successor,), immutable=True)))
    assert bare.args is None


def test_the_error_is_put_before_the_arguments_of_error_handlers_immutable_or_not() -> None:
    mine = Arg(type="int64", value=1)
    handler = Signature(uuid="task_b", name="tell", args=(mine,))
    for immutable in (False, True):
        item = settle(Failed("ValueError: no"), signature(on_error=(handler,), immutable=immutable))
        (told,) = published(item)
        assert told.args == (Arg(type="string", value="ValueError: no"), mine)
        assert item.state is not None
        assert (item.state.state, item.state.error) == (State.FAILURE, "ValueError: no")


def test_only_the_callbacks_of_the_outcome_are_sent() -> None:
    sent = signature(
        on_success=(Signature(uuid="task_b", name="next"),), on_error=(Signature(uuid="task_c", name="tell"),)
    )
    assert [each.uuid for each in published(settle(Succeeded(()), sent))] == ["task_b"]
    assert [each.uuid for each in published(settle(Failed("x"), sent))] == ["task_c"]


def test_a_callback_without_a_uuid_gets_the_same_one_each_time() -> None:
    sent = signature(on_success=(Signature(name="next"), Signature(name="next")))
    first, second = settle(Succeeded(()), sent), settle(Succeeded(()), sent, now=NOW + 1)
    assert [each.id for each in first.publish] == [each.id for each in second.publish]
    assert len({each.id for each in first.publish}) == 2
    assert [each.id for each in first.publish] == callback_ids(sent)
    assert callback_id(sent, "success", 0) != callback_id(sent, "error", 0)
    assert callback_id(sent, "success", 0) != callback_id(signature(uuid="task_b"), "success", 0)


def test_all_callbacks_inside_a_signature_are_known_by_their_uuids() -> None:
    inner = Signature(uuid="task_c", name="c", on_error=(Signature(uuid="task_d", name="d"),))
    sent = signature(on_success=(Signature(uuid="task_b", name="b", on_success=(inner,)),))
    assert callback_ids(sent) == ["task_b", "task_c", "task_d"]


def test_a_failure_stays_in_the_dead_letter_where_the_task_asks_for_it() -> None:
    assert settle(Failed("x")).verdict == Ack()
    assert settle(Failed("x"), signature(stop_task_deletion_on_error=True)).verdict == Bury("failed", "x")


def test_what_was_shown_too_often_is_buried_fails_and_tells_its_handlers() -> None:
    item = settle(Exhausted("5 times"), signature(on_error=(Signature(uuid="task_b", name="tell"),)))
    assert item.verdict == Bury("max_deliveries", "5 times")
    assert item.state is not None
    assert item.state.state is State.FAILURE
    assert [each.uuid for each in published(item)] == ["task_b"]


def test_bytes_that_are_no_signature_are_buried_and_a_readable_uuid_fails() -> None:
    delivery = Delivery(b"{", "q", 1, 1)
    bare = settled(delivery, None, Unreadable("undecodable", "no JSON"), RULES, NOW)
    assert bare == Settled(delivery, Bury("undecodable", "no JSON"))
    known = settled(delivery, None, Unreadable("undecodable", "no JSON", "task_a"), RULES, NOW)
    assert known is not None
    assert known.state is not None
    assert (known.state.task_uuid, known.state.state) == ("task_a", State.FAILURE)


def test_a_lost_run_changes_nothing_and_a_cancelled_one_goes_back() -> None:
    delivery = Delivery(b"", "q", 1, 1)
    assert settled(delivery, signature(), Lost(), RULES, NOW) is None
    assert settled(delivery, None, Cancelled(), RULES, NOW) == Settled(delivery, Nack())
    assert settled(delivery, signature(), NotYet(1.5), RULES, NOW) == Settled(delivery, Nack(1.5))


def test_an_unknown_task_is_given_back_after_growing_waits_up_to_five_seconds() -> None:
    sent, now = signature(), NOW
    waits: list[float] = []
    for _ in range(40):
        item = settle(NotMine(), sent, now=now)
        assert (item.verdict, item.state) == (Ack(), None)
        (sent,) = published(item)
        assert sent.eta is not None
        waits.append((sent.eta - now) / NANOSECONDS)
        now = sent.eta
    ages = [sum(waits[:count]) for count in range(len(waits))]
    assert waits == pytest.approx([min(5.0, max(0.05, age / 4)) for age in ages])
    assert (waits[0], waits[-1]) == (0.05, 5.0)
    assert sent.headers is not None
    assert sent.headers["aq-unknown-since"] == str(NOW)
    assert sent.headers["aq-check"] == "1"  # a copy of it may have been published twice
    assert attempt_of(sent) == 1


def test_a_clock_that_is_ahead_does_not_bring_an_unknown_task_back_ever_again_at_once() -> None:
    first = settle(NotMine(), signature(), now=NOW + 3600 * NANOSECONDS)
    second = settle(NotMine(), published(first)[0], now=NOW)
    assert (published(second)[0].headers or {})["aq-unknown-since"] == str(NOW)


def test_an_unknown_task_is_buried_by_age_and_not_by_tries() -> None:
    rules = Rules(unknown_task_after=60)
    headers = {"aq-unknown-since": str(NOW), "aq-unknown-times": "1000000"}
    sent = signature(headers=headers, on_error=(Signature(uuid="task_b", name="tell"),))
    assert settle(NotMine(), sent, rules=rules, now=NOW + 59 * NANOSECONDS).verdict == Ack()
    item = settle(NotMine(), sent, rules=rules, now=NOW + 60 * NANOSECONDS)
    assert isinstance(item.verdict, Bury)
    assert item.verdict.reason == "unknown_task"
    assert item.state is not None
    assert item.state.state is State.FAILURE
    assert [each.uuid for each in published(item)] == ["task_b"]


def test_an_unknown_task_is_dropped_where_it_asks_for_that() -> None:
    item = settle(NotMine(), signature(ignore_when_task_not_registered=True))
    assert (item.verdict, item.publish, item.state) == (Ack(), (), None)


# — second copies —


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TaskState(state=State.SUCCESS, results=RESULTS), Succeeded(RESULTS)),
        (TaskState(state=State.SUCCESS), Succeeded(())),
        (TaskState(state=State.FAILURE, error="no"), Failed("no")),
        (TaskState(state=State.PENDING), None),
        (TaskState(state=State.STARTED), None),
        (TaskState(state=State.RETRY, attempt=2), Superseded(2, 1.0)),
        (TaskState(state=State.STARTED, attempt=5), Superseded(5, 1.0)),
    ],
)
def test_a_recorded_state_says_what_a_second_copy_is_worth(state: TaskState, expected: Outcome | None) -> None:
    assert known_end(state, signature(), TaskOptions()) == expected


def test_the_copy_that_a_retry_came_from_sends_the_retry_again_and_no_older_one_does() -> None:
    (again,) = published(settle(Superseded(2, 1.0), signature(retry_count=3)))
    assert (attempt_of(again), again.retry_count) == (2, 2)
    assert settle(Superseded(3, 1.0), signature(retry_count=3)).publish == ()


def test_a_copy_of_the_recorded_attempt_runs() -> None:
    sent = signature(headers={"aq-attempt": "2"})
    assert known_end(TaskState(state=State.RETRY, attempt=2), sent, TaskOptions()) is None


# — messages and names —


def test_a_message_goes_to_the_default_queue_where_none_is_said() -> None:
    made = message(signature(routing_key="", priority=7, broker_message_group_id="g"), "default", NOW)
    assert (made.queue, made.priority, made.ordering_key, made.not_before) == ("default", 7, "g", None)
    assert wire.decode_signature(made.body).routing_key == "default"
    assert message(signature(eta=NOW - 1), "q", NOW).not_before is None


@pytest.mark.parametrize(
    "sent",
    [
        signature(uuid=""),
        signature(uuid="q"),
        signature(uuid="delayed_tasks"),
        signature(routing_key="TriggerChordMutex"),
        signature(name="a\nb"),
        signature(group_uuid="a b"),
        signature(on_success=(Signature(uuid="q", name="next"),)),
        signature(on_error=(Signature(uuid="task_a", name="next"),)),
        signature(on_error=(Signature(uuid="task_b", name="next", routing_key="delayed_tasks"),)),
        signature(on_success=(Signature(name="b", on_success=(Signature(uuid="task_a", name="c"),)),)),
        signature(chord_callback=Signature(uuid="task_a", name="c")),
        signature(on_success=(Signature(uuid="other", name="b", routing_key="other"),)),
    ],
)
def test_a_name_that_is_somebody_elses_key_is_a_problem_wherever_it_stands(sent: Signature) -> None:
    assert name_problem(sent, "q") is not None


def test_ordinary_names_are_no_problem() -> None:
    inner = Signature(name="c", on_error=(Signature(name="d"), Signature(uuid="task_e", name="e")))
    assert name_problem(signature(on_success=(inner, inner), group_uuid="group_x"), "q") is None
    assert usable_task_id("task_a", "q")
    assert not usable_task_id("q", "q")
