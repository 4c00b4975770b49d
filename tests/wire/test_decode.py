"""Bytes to models: Go's rules of reading, the limits, and every reason to refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asyncqueue import rfc3339, wire
from asyncqueue.arguments import NegativeZero
from asyncqueue.errors import BadMessage
from asyncqueue.signature import Arg, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState
from asyncqueue.wire import Limits

FULL = Signature(
    uuid="u",
    name="n",
    routing_key="q",
    eta=rfc3339.parse("2025-01-02T03:04:05.123456789Z"),
    group_uuid="g",
    group_task_count=3,
    args=(Arg(name="a", type="int64", value=1),),
    headers={"Key": {"Name": "kept as it stands"}},
    priority=9,
    immutable=True,
    retry_count=1,
    retry_timeout=2,
    on_success=(Signature(name="inner", args=(Arg(type="string", value="v"),)),),
    on_error=(Signature(name="error"),),
    chord_callback=Signature(name="callback", on_success=(Signature(name="deep"),)),
    broker_message_group_id="m",
    sqs_receipt_handle="r",
    stop_task_deletion_on_error=True,
    ignore_when_task_not_registered=True,
)


def _with_keys(value: Any, change: Any) -> Any:
    """The JSON with every key of a signature or argument changed; headers and values stay as they are."""
    match value:
        case dict():
            return {
                change(key): inner if key in ("Headers", "Value") else _with_keys(inner, change)
                for key, inner in value.items()
            }
        case list():
            return [_with_keys(element, change) for element in value]
        case _:
            return value


def _refused(body: bytes, limits: Limits = wire.DEFAULT_LIMITS) -> tuple[str, str]:
    with pytest.raises(BadMessage) as caught:
        wire.decode_signature(body, limits)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        str.lower,
        str.upper,
        str.swapcase,
        lambda key: key.replace("s", "\u017f"),  # the long s
        lambda key: key.replace("K", "\u212a").replace("k", "\u212a"),  # the Kelvin sign
    ],
)
def test_keys_match_in_any_case_at_every_level(change: Any) -> None:
    body = json.dumps(_with_keys(json.loads(wire.encode_signature(FULL)), change)).encode()
    assert wire.decode_signature(body) == FULL


@pytest.mark.parametrize("path", ["top", "Args", "OnSuccess", "OnError", "ChordCallback"])
@pytest.mark.parametrize("key", ["unknown", "routing_key", "Na me", "ß", ""])
def test_unknown_keys_are_ignored_at_every_level(path: str, key: str) -> None:
    message = json.loads(wire.encode_signature(FULL))
    target = message if path == "top" else message[path]
    (target[0] if isinstance(target, list) else target)[key] = {"Name": ["anything"]}
    assert wire.decode_signature(json.dumps(message).encode()) == FULL


def test_one_key_in_another_case_beside_known_ones_is_not_lost() -> None:
    for field in ("Immutable", "immutable", "IMMUTABLE"):
        assert wire.decode_signature(f'{{"Name":"n","{field}":true}}'.encode()).immutable
    (arg,) = wire.decode_signature(b'{"Name":"n","Args":[{"Type":"int64","value":5}]}').args or ()
    assert arg.value == 5


def test_python_names_are_no_keys() -> None:
    signature = wire.decode_signature(b'{"Name":"n","routing_key":"q","retry_count":3}')
    assert signature == Signature(name="n")


@pytest.mark.parametrize("keys", [("UUID", "UUID"), ("UUID", "uuid"), ("uuid", "UUID"), ("uuid", "uUID")])
def test_the_last_of_repeated_keys_wins(keys: tuple[str, str]) -> None:
    first, second = keys
    assert wire.decode_signature(f'{{"Name":"n","{first}":"a","{second}":"b"}}'.encode()).uuid == "b"


@pytest.mark.parametrize("rest", [b" ", b"\n\n", b"x", b"}", b'{"Name":"other"}', b"\xff\xfe"])
def test_bytes_after_the_first_value_are_ignored(rest: bytes) -> None:
    assert wire.decode_signature(b' \t\r\n{"Name":"n"}' + rest) == Signature(name="n")


def test_null_leaves_the_zero_value() -> None:
    body = json.dumps(dict.fromkeys(json.loads(wire.encode_signature(Signature())))).replace(
        '"Name": null', '"Name":"n"'
    )
    assert wire.decode_signature(body.encode()) == Signature(name="n")
    (arg,) = wire.decode_signature(b'{"Name":"n","Args":[{"Name":null,"Type":null,"Value":null}]}').args or ()
    assert arg == Arg()
    assert wire.decode_signature(b'{"Name":"n","Args":[null]}').args == (Arg(),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("UUID", "1"),
        ("Name", "[]"),
        ("ETA", "5"),
        ("ETA", '""'),
        ("ETA", '"2025-01-02T03:04:05"'),
        ("ETA", '"2025-01-02 03:04:05Z"'),
        ("ETA", '"2025-02-30T03:04:05Z"'),
        ("GroupTaskCount", "-1"),
        ("GroupTaskCount", "1.0"),
        ("GroupTaskCount", '"1"'),
        ("RetryCount", "1e2"),
        ("RetryCount", "true"),
        ("RetryCount", "9223372036854775808"),
        ("RetryTimeout", "-9223372036854775809"),
        ("Priority", "256"),
        ("Priority", "-1"),
        ("Priority", "-0"),
        ("Immutable", "1"),
        ("Immutable", '"true"'),
        ("Args", "{}"),
        ("Args", '"text"'),
        ("Headers", "[]"),
        ("OnSuccess", "{}"),
        ("ChordCallback", "[]"),
    ],
)
def test_a_value_that_go_refuses_is_refused_and_the_field_named(field: str, value: str) -> None:
    for spelled in (field, field.lower()):
        reason, text = _refused(f'{{"Name":"n","{spelled}":{value}}}'.encode())
        assert reason == "invalid_signature"
        assert text.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"Name":"n","OnSuccess":[{"Name":"a"},{"Name":"b","Priority":300}]}', "OnSuccess[1].Priority: "),
        ('{"Name":"n","OnSuccess":[null]}', "OnSuccess[0]: "),
        ('{"Name":"n","OnError":[{"Name":"a","OnError":[null]}]}', "OnError[0].OnError[0]: "),
        ('{"Name":"n","ChordCallback":{"Name":"c","Args":[{},{"Type":1}]}}', "ChordCallback.Args[1].Type: "),
        ('{"Name":"n","ChordCallback":{}}', "ChordCallback.Name: "),
        ('{"Name":"n","OnSuccess":[{"Name":"a","OnError":[{"Name":""}]}]}', "OnSuccess[0].OnError[0].Name: "),
        ('{"UUID":"u"}', "Name: "),
    ],
)
def test_the_path_to_a_bad_field_is_named(body: str, path: str) -> None:
    reason, text = _refused(body.encode())
    assert reason == "invalid_signature"
    assert text.startswith(path)


@pytest.mark.parametrize("body", [b"null", b"[]", b"[{}]", b"1", b"true", b'"text"', b"1.5e3"])
def test_json_that_is_no_object_is_no_signature(body: bytes) -> None:
    assert _refused(body)[0] == "invalid_signature"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b'{"Name":"n"',
        b"{'Name':'n'}",
        b'{"Name":"n",}',
        b'{"Name":"\t"}',
        b'{"Name":"\\x"}',
        b'{"Name":"\xff"}',
        b'{"Name":"n","x":"\xff"}',
        b'{"Name":"\xed\xa0\x80"}',
        b'{"Name":"\\ud800"}',
        b'{"Name":"n","Headers":{"\\udc00":1}}',
        b'{"Name":"n","Args":[{"Value":NaN}]}',
        b'{"Name":"n","Args":[{"Value":-Infinity}]}',
        b'{"Name":"n","Headers":{"a":Infinity,"a":1}}',
        b'{"Name":"n","Headers":{"a":[{"b":1e400}]}}',
        b'{"Name":"n","Args":[{"Value":01}]}',
        b'{"Name":"n","Args":[{"Value":' + b"1" * 41 + b"}]}",
        b'{"Name":"n","Args":[{"Value":' + b"1" * 10_000 + b"}]}",
        b'{"Name":"n","Args":[{"Value":' + b"[" * 300 + b"]" * 300 + b"}]}",
        b'{"Name":"n","Args":[{"Value":' + b"[" * 100_000,
        b'{"Name":"n","x":' + b'{"a":' * 50_000,
        b"\xef\xbb\xbf" + b'{"Name":"n"}',
        '{"Name":"n"}'.encode("utf-16"),
        b"\x80\x04N.",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_json_or_no_one_should_take_is_undecodable(body: bytes) -> None:
    assert _refused(body)[0] == "undecodable"


def test_a_message_over_the_size_limit_is_refused_before_it_is_read() -> None:
    body = wire.encode_signature(Signature(name="n"))
    assert wire.decode_signature(body, Limits(max_bytes=len(body))).name == "n"
    assert _refused(body, Limits(max_bytes=len(body) - 1))[0] == "too_large"
    assert _refused(b"\xff" * 11, Limits(max_bytes=10))[0] == "too_large"


@pytest.mark.parametrize("limit", [5, 100, 256])
def test_nesting_of_the_json_is_limited(limit: int) -> None:
    def body(depth: int) -> bytes:
        return b'{"Name":"n","Args":[{"Value":' + b"[" * (depth - 3) + b"]" * (depth - 3) + b"}]}"

    wire.decode_signature(body(limit), Limits(max_depth=limit))
    assert _refused(body(limit + 1), Limits(max_depth=limit))[0] == "undecodable"


@pytest.mark.parametrize("limit", [3, 100])
def test_nesting_of_callbacks_is_limited(limit: int) -> None:
    def nested(depth: int) -> bytes:
        signature = Signature(name="n")
        for _ in range(depth):
            signature = Signature(name="n", on_success=(signature,))
        return wire.encode_signature(signature)

    wire.decode_signature(nested(limit), Limits(max_callback_depth=limit))
    reason, text = _refused(nested(limit + 1), Limits(max_callback_depth=limit))
    assert (reason, text) == ("invalid_signature", f"callbacks nest deeper than {limit}")


def test_the_number_of_signatures_in_one_message_is_limited() -> None:
    pair = Signature(name="n", on_success=(Signature(name="a"), Signature(name="b", on_error=(Signature(name="c"),))))
    body = wire.encode_signature(pair)
    wire.decode_signature(body, Limits(max_signatures=4))
    assert _refused(body, Limits(max_signatures=3)) == ("invalid_signature", "more than 3 signatures in one message")


def test_the_number_of_arguments_is_limited_at_every_level() -> None:
    many = Signature(name="n", args=(Arg(),) * 4)
    wire.decode_signature(wire.encode_signature(many), Limits(max_args=4))
    assert _refused(wire.encode_signature(many), Limits(max_args=3))[1].startswith("Args: 4 arguments")
    outer = wire.encode_signature(Signature(name="n", chord_callback=many))
    assert _refused(outer, Limits(max_args=3))[1].startswith("ChordCallback.Args: 4 arguments")


def test_digits_of_an_integer_are_limited() -> None:
    def body(digits: int) -> bytes:
        return b'{"Name":"n","Headers":{"a":-' + b"9" * digits + b"}}"

    for limit in (5, 40):
        wire.decode_signature(body(limit), Limits(max_integer_digits=limit))
        assert _refused(body(limit + 1), Limits(max_integer_digits=limit))[0] == "undecodable"


@pytest.mark.parametrize("spelled", ["Value", "value"])
@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("1", int),
        ("1.0", float),
        ("1e2", float),
        ("-0", NegativeZero),
        ("-0.0", float),
        ("18446744073709551615", int),
        ("123456789012345678901234567890", int),
    ],
)
def test_number_literals_keep_their_meaning(spelled: str, literal: str, expected: type) -> None:
    for around in (f"{literal}", f"[{literal}]", f"[ {literal} ]", f'{{"a":{literal}}}', f"[0,{literal}]"):
        (arg,) = wire.decode_signature(f'{{"Name":"n","Args":[{{"{spelled}":{around}}}]}}'.encode()).args or ()
        value = arg.value["a"] if isinstance(arg.value, dict) else arg.value
        value = value[-1] if isinstance(value, list) else value
        assert isinstance(value, int | float)
        assert type(value) is expected
        assert float(value) == float(literal)


def test_a_task_id_is_readable_where_it_stands_first() -> None:
    assert wire.readable_task_id(b'{"UUID":"task_1","Name":') == "task_1"
    assert wire.readable_task_id(b' { "UUID" : "task_1"') == "task_1"
    for body in (b"", b"\xff", b'{"Name":"n","UUID":"x"}', b'{"UUID":"a b"}', b'{"UUID":5}', b'{"UUID":""}'):
        assert wire.readable_task_id(body) is None


# — states and groups —


def test_a_state_is_read_by_the_same_rules() -> None:
    body = b'{"taskuuid":"u","STATE":"SUCCESS","Results":[{"type":"float64","Value":-0}],"Unknown":1,"TTL":null} rest'
    assert wire.decode_state(body) == TaskState(
        task_uuid="u", state=State.SUCCESS, results=(TaskResult(type="float64", value=0),)
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"null", "invalid_state"),
        (b'{"State":"DONE"}', "invalid_state"),
        (b'{"State":1}', "invalid_state"),
        (b'{"Results":[null]}', "invalid_state"),
        (b'{"CreatedAt":5}', "invalid_state"),
        (b'{"TTL":1.0}', "invalid_state"),
        (b"{", "undecodable"),
        (b'{"Results":[{"Value":NaN}]}', "undecodable"),
    ],
)
def test_what_is_no_state_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadMessage) as caught:
        wire.decode_state(body)
    assert caught.value.reason == reason


def test_a_group_is_read_by_the_same_rules() -> None:
    body = b'{"groupuuid":"g","TASKUUIDS":["a","b"],"chordTriggered":true,"CreatedAt":null,"x":1}'
    assert wire.decode_group(body) == GroupMeta(group_uuid="g", task_uuids=("a", "b"), chord_triggered=True)
    for bad, reason in ((b"[]", "invalid_group"), (b'{"TaskUUIDs":[1]}', "invalid_group"), (b"", "undecodable")):
        with pytest.raises(BadMessage) as caught:
            wire.decode_group(bad)
        assert caught.value.reason == reason
