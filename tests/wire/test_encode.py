"""Models to bytes: Go's form, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from asyncqueue import rfc3339, wire
from asyncqueue.errors import ArgumentError
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState

NOW = rfc3339.parse("2026-11-22T03:12:36.256978389Z")


def _value(type_name: str, value: Any) -> str:
    text = wire.encode_signature(Signature(name="n", args=(Arg(type=type_name, value=value),))).decode()
    start = text.index('"Value":') + len('"Value":')
    return text[start : text.index('}],"Headers"')]


def test_an_empty_signature_has_every_field_in_gos_order() -> None:
    assert wire.encode_signature(Signature()) == (
        b'{"UUID":"","Name":"","RoutingKey":"","ETA":null,"GroupUUID":"","GroupTaskCount":0,"Args":null,'
        b'"Headers":null,"Priority":0,"Immutable":false,"RetryCount":0,"RetryTimeout":0,"OnSuccess":null,'
        b'"OnError":null,"ChordCallback":null,"BrokerMessageGroupId":"","SQSReceiptHandle":"",'
        b'"StopTaskDeletionOnError":false,"IgnoreWhenTaskNotRegistered":false}'
    )


def test_every_field_of_a_signature_survives_there_and_back() -> None:
    inner = Signature(uuid="inner", name="inner")
    full = Signature(
        uuid="u",
        name="n",
        routing_key="q",
        eta=NOW,
        group_uuid="g",
        group_task_count=3,
        args=(Arg(name="a", type="int64", value=1), Arg(type="json", value={"b": [1.0, None], "a": 1})),
        headers={"b": "1", "a": {"z": 1, "y": None}},
        priority=255,
        immutable=True,
        retry_count=2**63 - 1,
        retry_timeout=-(2**63),
        on_success=(inner,),
        on_error=(),
        chord_callback=inner,
        broker_message_group_id="m",
        sqs_receipt_handle="r",
        stop_task_deletion_on_error=True,
        ignore_when_task_not_registered=True,
    )
    assert wire.decode_signature(wire.encode_signature(full)) == full


def test_null_and_empty_are_told_apart() -> None:
    empty = Signature(name="n", args=(), headers={}, on_success=(), on_error=())
    absent = Signature(name="n")
    assert wire.decode_signature(wire.encode_signature(empty)) == empty
    assert wire.decode_signature(wire.encode_signature(absent)) == absent
    assert wire.encode_signature(empty) != wire.encode_signature(absent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<&>", r'"\u003c\u0026\u003e"'),
        ("\u2028\u2029", r'"\u2028\u2029"'),
        ("é漢😀\x7f", '"é漢😀\x7f"'),
        ('"\\/', r'"\"\\/"'),
        ("\x00\x1f\b\f\n\r\t", r'"\u0000\u001f\b\f\n\r\t"'),
    ],
)
def test_text_is_escaped_as_go_escapes_it(text: str, expected: str) -> None:
    assert _value("string", text) == expected
    assert _value("json", text) == expected
    assert _value("[]string", [text]) == f"[{expected}]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, "1"),
        (-0.0, "-0"),
        (0.1, "0.1"),
        (1e16, "10000000000000000"),
        (1.5e17, "150000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (1e-5, "0.00001"),
        (1.25e-6, "0.00000125"),
        (1e-6, "0.000001"),
        (9.99e-7, "9.99e-7"),
        (1e-7, "1e-7"),
        (1e-10, "1e-10"),
        (5e-324, "5e-324"),
        (-2.5e-8, "-2.5e-8"),
    ],
)
def test_floats_have_gos_form(value: float, expected: str) -> None:
    assert _value("float64", value) == expected
    assert _value("[]float64", [value]) == f"[{expected}]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, "0.1"),
        (3.141592653589793, "3.1415927"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (16777217.0, "16777216"),
        (3.4028234663852886e38, "3.4028235e+38"),
        (1.401298464324817e-45, "1e-45"),
        (0.0, "0"),
        (-0.0, "-0"),
        (123456789012345680000.0, "123456790000000000000"),
        # powers of two: the floats below lie closer than those above
        (2.0**-12, "0.00024414063"),
        (2.0**-96, "1.2621775e-29"),
        (-(2.0**87), "-1.5474251e+26"),
    ],
)
def test_a_float32_has_the_digits_of_a_float32(value: float, expected: str) -> None:
    assert _value("float32", value) == expected
    assert _value("[]float32", [value]) == f"[{expected}]"


def test_64_bit_integers_are_exact() -> None:
    assert _value("uint64", 2**64 - 1) == "18446744073709551615"
    assert _value("int64", -(2**63)) == "-9223372036854775808"


def test_bytes_become_base64() -> None:
    assert _value("[]byte", b"\x00\x7f\xff") == '"AH//"'
    assert _value("[]uint8", b"") == '""'


def test_a_json_float_stays_a_float() -> None:
    """Go never reads type ``json``, so its missing point would only turn floats into integers."""
    signature = Signature(name="n", args=(Arg(type="json", value={"total": 2.0}),))
    (arg,) = wire.decode_signature(wire.encode_signature(signature)).args or ()
    assert isinstance(arg.value["total"], float)


def test_header_keys_are_sorted_at_every_level() -> None:
    text = wire.encode_signature(Signature(name="n", headers={"b": [{"y": 1, "x": 2.0}], "a": "v", "é": 0})).decode()
    assert '"Headers":{"a":"v","b":[{"x":2,"y":1}],"é":0}' in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")], {"a": float("nan")}, object()])
@pytest.mark.parametrize("type_name", ["float64", "float32", "json", "unheard of"])
def test_what_json_cannot_say_is_refused_and_the_argument_named(type_name: str, value: Any) -> None:
    args = (Arg(type="int64", value=1), Arg(type=type_name, value=value))
    with pytest.raises(ArgumentError, match="task add, argument 2: "):
        wire.encode_signature(Signature(name="add", args=args))
    with pytest.raises(ArgumentError, match=r"task add, argument 2: "):
        wire.encode_signature(Signature(name="outer", on_success=(Signature(name="add", args=args),)))
    with pytest.raises(ArgumentError, match="result 1"):
        wire.encode_state(TaskState(task_uuid="u", results=(TaskResult(type=type_name, value=value),)))
    with pytest.raises(ArgumentError, match="headers"):
        wire.encode_signature(Signature(name="add", headers={"h": value}))


def test_an_endless_integer_is_refused() -> None:
    for value in (10**40, -(10**40), 10**5000):
        with pytest.raises(ArgumentError, match="argument 1"):
            wire.encode_signature(Signature(name="n", args=(Arg(type="int64", value=value),)))


def test_values_nested_without_end_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    for type_name in ("json", "[]int64"):
        with pytest.raises(ArgumentError):
            wire.encode_signature(Signature(name="n", args=(Arg(type=type_name, value=value),)))


def test_a_moment_that_go_cannot_write_is_refused() -> None:
    with pytest.raises(ArgumentError, match="years 1 to 9999"):
        wire.encode_signature(Signature(name="n").with_changes(eta=10**30))


def test_a_lone_surrogate_in_an_argument_is_refused_and_the_argument_named() -> None:
    with pytest.raises(ArgumentError, match="lone surrogate in argument 2"):
        wire.encode_signature(Signature(name="n", args=(Arg(type="int64"), Arg(type="string", value="\ud800"))))
    with pytest.raises(ArgumentError, match="lone surrogate"):
        wire.encode_signature(Signature(name="n", headers={"\udfff": ""}))
    with pytest.raises(ArgumentError, match="lone surrogate in result 1"):
        wire.encode_state(TaskState(results=(TaskResult(type="string", value="\ud800"),)))


def test_a_lone_surrogate_in_an_error_text_does_not_keep_a_failure_from_being_recorded() -> None:
    state = TaskState(task_uuid="u", state=State.FAILURE, error="no file \udcff<", created_at=NOW)
    assert wire.decode_state(wire.encode_state(state)).error == "no file \ufffd<"
    head, tail = wire.encode_state_around_created_at(state)
    assert head + b"2026-11-22T03:12:36.256978389Z" + tail == wire.encode_state(state)


def test_a_state_of_every_kind_survives_there_and_back() -> None:
    states = [
        TaskState(task_uuid="u", task_name="n", state=state, created_at=NOW, attempt=attempt, results=results)
        for state in State
        for attempt in (0, 2)
        for results in (None, (), (TaskResult(type="int64", value=1), TaskResult(type="json", value=None)))
    ]
    assert [wire.decode_state(wire.encode_state(state)) for state in states] == states


def test_the_attempt_stands_last_and_only_where_it_is_known() -> None:
    assert wire.encode_state(TaskState(task_uuid="u", attempt=3)).endswith(b'"TTL":0,"AqAttempt":3}')
    assert wire.encode_state(TaskState(task_uuid="u")).endswith(b'"TTL":0}')


def test_a_state_is_split_around_its_created_at() -> None:
    state = TaskState(task_uuid="u", error='","CreatedAt":"', created_at=NOW, attempt=1)
    head, tail = wire.encode_state_around_created_at(state)
    assert head.endswith(b'"CreatedAt":"')
    assert tail.startswith(b'","TTL":')
    assert head + rfc3339.render(NOW).encode() + tail == wire.encode_state(state)


def test_a_group_survives_there_and_back() -> None:
    for members in (None, (), ("task_1", "task_2")):
        group = GroupMeta(group_uuid="g", task_uuids=members, chord_triggered=True, lock=True, created_at=NOW, ttl=5)
        assert wire.decode_group(wire.encode_group(group)) == group
    with pytest.raises(ArgumentError, match="lone surrogate"):
        wire.encode_group(GroupMeta(group_uuid="\ud800"))
