"""Plans to bytes and back: parts of workflows that are kept in a backend."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncqueue import wire
from asyncqueue.errors import ArgumentError, BadMessage
from asyncqueue.signature import Arg, Plan, Signature
from asyncqueue.wire import Limits

INNER = Signature(uuid="task_inner", name="inner", args=(Arg(type="string", value='line\n"two" \\ <&> \u2028 ☃'),))
PLAN = Plan(
    "plan_a",
    (
        Signature(uuid="task_a", name="a", on_success=(INNER,), headers={"aq-plan": "plan_b"}),
        Signature(uuid="task_b", name="b", group_uuid="group_a", group_task_count=1, chord_callback=INNER),
    ),
    ("task_a", "task_inner", "task_b", "group_a", "plan_b"),
)
BODY = wire.encode_plan(PLAN)
GENEROUS = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    "plan", [PLAN, Plan("plan_a", (), ()), Plan("plan_a", (INNER,), ()), Plan("plan_a", (), ("x",))]
)
def test_a_plan_survives_there_and_back(plan: Plan) -> None:
    assert wire.decode_plan("plan_a", wire.encode_plan(plan)) == plan


def test_a_plan_is_a_line_of_uuids_and_one_for_each_signature() -> None:
    head, *lines = BODY.split(b"\n")
    assert head == b'{"AqIds":["task_a","task_inner","task_b","group_a","plan_b"]}'
    assert [wire.decode_signature(line) for line in lines] == list(PLAN.signatures)


def test_a_plan_has_the_name_that_it_was_found_under() -> None:
    assert wire.decode_plan("plan_x", BODY).plan_id == "plan_x"


def test_limits_hold_for_each_signature_and_not_for_the_plan() -> None:
    longest = max(len(line) for line in BODY.split(b"\n")[1:])
    assert wire.decode_plan("plan_a", BODY, Limits(max_bytes=longest)) == PLAN
    with pytest.raises(BadMessage, match="over the limit"):
        wire.decode_plan("plan_a", BODY, Limits(max_bytes=longest - 1))


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ArgumentError, match="task n, argument 1"):
        wire.encode_plan(Plan("plan_a", (Signature(name="n", args=(Arg(type="float64", value=float("nan")),)),), ()))
    with pytest.raises(ArgumentError, match=r"plan_a.*lone surrogate"):
        wire.encode_plan(Plan("plan_a", (), ("task_\ud800",)))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"AqIds":null}',
        b'{"AqIds":5}',
        b'{"AqIds":"task_a"}',
        b'{"AqIds":{"task_a":1}}',
        b'{"AqIds":["task_a",1]}',
        b'{"AqIds":[["task_a"]]}',
        b'{"AqIds":["\\ud800"]}',
        b'{"AqIds":["\xff"]}',
        b'{"AqIds":["task_a"]',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_a_plan_without_its_uuids_is_a_bad_message_that_names_it(head: bytes) -> None:
    signature = wire.encode_signature(INNER)
    for body in (head, head + b"\n" + signature):
        with pytest.raises(BadMessage, match="plan_a") as caught:
            wire.decode_plan("plan_a", body)
        assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("rest", [b"\n", b"\n{}", b"\nnull", b"\n\xff", b'\n{"UUID":"task_a"}'])
def test_a_plan_with_what_is_no_signature_is_a_bad_message(rest: bytes) -> None:
    with pytest.raises(BadMessage):
        wire.decode_plan("plan_a", BODY + rest)


@GENEROUS
@given(st.binary())
def test_any_bytes_are_a_plan_or_a_bad_message(body: bytes) -> None:
    with suppress(BadMessage):
        wire.decode_plan("plan_a", body)
    with suppress(BadMessage):
        wire.decode_plan("plan_a", b'{"AqIds":' + body)


@GENEROUS
@given(st.integers(0, len(BODY) - 1), st.integers(0, 20), st.binary(max_size=3))
def test_any_damaged_plan_is_a_plan_or_a_bad_message(place: int, length: int, damage: bytes) -> None:
    with suppress(BadMessage):
        plan = wire.decode_plan("plan_a", BODY[:place] + damage + BODY[place + length :])
        assert all(isinstance(one, str) for one in plan.ids)
        assert wire.decode_plan("plan_a", wire.encode_plan(plan)) == plan


@GENEROUS
@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5))
def test_uuids_of_any_shape_are_uuids_or_a_bad_message(ids: object) -> None:
    body = json.dumps({"AqIds": ids}).encode()
    if isinstance(ids, list) and all(isinstance(one, str) for one in ids):
        assert wire.decode_plan("plan_a", body) == Plan("plan_a", (), tuple(ids))
    else:
        with pytest.raises(BadMessage):
            wire.decode_plan("plan_a", body)
