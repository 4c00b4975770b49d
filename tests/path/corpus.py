"""Messages that no worker should take, each with the reason that its dead letter must show; and arguments that fit no
parameter. All of them come from one good message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asyncqueue.signature import Arg, Signature
from asyncqueue.wire import encode_signature

QUEUE = "machinery_tasks"


@dataclass(frozen=True, slots=True)
class Bad:
    """One bad message: what it is, its bytes, and why it must be refused."""

    what: str
    body: bytes
    reason: str


def good(uuid: str = "task_good") -> bytes:
    """The message that the bad ones are made of."""
    args = (Arg(type="int64", value=1), Arg(type="int64", value=2))
    return encode_signature(Signature(uuid=uuid, name="add", routing_key=QUEUE, args=args, headers={}))


def bad_messages() -> list[Bad]:
    """All of them, more than two hundred."""
    return [
        *_truncated(),
        *_of_wrong_type(),
        *_encoded(),
        *_numbers(),
        *_deep(),
        *_misnamed(),
        *_bombs(),
        *_no_object(),
    ]


def bad_arguments() -> list[tuple[str, tuple[Arg, ...] | None]]:
    """Arguments that ``add(a: int, b: int)`` cannot take."""
    fine = Arg(type="int64", value=1)
    wrong: list[tuple[str, tuple[Arg, ...] | None]] = [
        ("none at all", None),
        ("empty", ()),
        ("too few", (fine,)),
        ("too many", (fine, fine, fine)),
    ]
    for type_name, value in (
        ("string", "x"),
        ("int64", "1"),
        ("int64", 1.5),
        ("int64", None),
        ("int64", [1]),
        ("int64", {"a": 1}),
        ("int64", True),
        ("int64", 2**63),
        ("int64", -(2**63) - 1),
        ("int64", 10**30),
        ("int8", 128),
        ("int16", 2**15),
        ("int32", -(2**31) - 1),
        ("uint8", -1),
        ("uint8", 256),
        ("uint64", 2**64),
        ("bool", True),
        ("bool", "true"),
        ("float64", "1.0"),
        ("[]int64", [1]),
        ("[]string", ["a"]),
        ("[]byte", "AAAA"),
        ("complex128", 1),
        ("", 1),
        ("no such type", 1),
        ("string", 1),
    ):
        wrong.append((f"{type_name or 'no type'} {value!r}"[:40], (fine, Arg(type=type_name, value=value))))
    return wrong


def _truncated() -> Iterator[Bad]:
    whole = good("task_truncated")
    for cut in range(1, len(whole), max(1, len(whole) // 45)):
        yield Bad(f"cut at {cut}", whole[:cut], "undecodable")


def _of_wrong_type() -> Iterator[Bad]:
    text, number, flag, many, thing = "text", 7, True, [1], {"a": 1}
    wrong: dict[str, tuple[Any, ...]] = {
        "UUID": (number, flag, many, thing),
        "Name": (number, flag, many, thing),
        "RoutingKey": (number, flag, many, thing),
        "ETA": (text, number, flag, many, thing, "2001-13-01T00:00:00Z"),
        "GroupUUID": (number, flag, many, thing),
        "GroupTaskCount": (text, flag, many, thing, 1.5, 2**63, -1),
        "Args": (text, number, flag, thing, ["text"], [7], [[]]),
        "Headers": (text, number, flag, many),
        "Priority": (text, flag, many, thing, 256, -1, 1.5),
        "Immutable": (text, number, many, thing),
        "RetryCount": (text, flag, many, thing, 1.5, 2**63, -(2**63) - 1),
        "RetryTimeout": (text, flag, many, thing, 1.5, 2**63),
        "OnSuccess": (text, number, flag, thing, ["text"], [[]]),
        "OnError": (text, number, flag, thing, ["text"], [[]]),
        "ChordCallback": (text, number, flag, many),
        "BrokerMessageGroupId": (number, flag, many, thing),
        "SQSReceiptHandle": (number, flag, many, thing),
        "StopTaskDeletionOnError": (text, number, many, thing),
        "IgnoreWhenTaskNotRegistered": (text, number, many, thing),
    }
    for field, values in wrong.items():
        for value in values:
            yield Bad(f"{field}: {value!r}", _with(field, value), "invalid_signature")
    for part in ("Name", "Type"):
        yield Bad(
            f"Args.{part}", _with("Args", [{"Name": "", "Type": "int64", "Value": 1} | {part: 7}]), "invalid_signature"
        )
    yield Bad("no name", _with("Name", ""), "invalid_signature")
    yield Bad("nothing in it", b"{}", "invalid_signature")
    yield Bad("a callback without a type", _with("OnSuccess", [{"Name": 7}]), "invalid_signature")


def _encoded() -> Iterator[Bad]:
    whole = good("task_encoded")
    text = whole.decode()
    yield Bad("a byte order mark", b"\xef\xbb\xbf" + whole, "undecodable")
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        yield Bad(name, text.encode(name), "undecodable")
    yield Bad("latin-1", text.replace("add", "hé").encode("latin-1"), "undecodable")
    for tail in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\xe2\x82"):
        yield Bad(f"bytes {tail!r} in a string", whole.replace(b'"add"', b'"' + tail + b'"'), "undecodable")
    for char in (b"\x00", b"\n", b"\x1f", b"\t"):
        yield Bad(f"a bare {char!r} in a string", whole.replace(b'"add"', b'"a' + char + b'"'), "undecodable")
    for escape in (b"\\x41", b"\\u12", b"\\"):
        yield Bad(f"the escape {escape!r}", whole.replace(b'"add"', b'"' + escape + b'"'), "undecodable")
    for lone in (b"\\ud800", b"\\udfff", b"\\ud800\\ud800"):
        yield Bad(f"a lone surrogate {lone!r}", whole.replace(b'"add"', b'"' + lone + b'"'), "undecodable")
    yield Bad("a NUL before it", b"\x00" + whole, "undecodable")
    yield Bad("single quotes", whole.replace(b'"', b"'"), "undecodable")
    yield Bad("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "undecodable")
    yield Bad("compressed", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "undecodable")


def _numbers() -> Iterator[Bad]:
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "01", "+1", ".5", "1.", "0x10", "9" * 5000, "-" + "9" * 5000):
        yield Bad(f"the number {text[:10]}", _with_raw_value(text), "undecodable")


def _deep() -> Iterator[Bad]:
    for depth in (300, 1_000, 10_000, 100_000):
        yield Bad(f"{depth} lists", _with_raw_value("[" * depth + "]" * depth), "undecodable")
        yield Bad(f"{depth} objects", _with_raw_value('{"a":' * depth + "1" + "}" * depth), "undecodable")
        yield Bad(f"{depth} opened lists", b"[" * depth, "undecodable")


def _misnamed() -> Iterator[Bad]:
    for uuid in (
        QUEUE,
        "",
        "delayed_tasks",
        "TriggerChordMutex",
        "machinery_lock_x",
        "{machinery_tasks}:aq:dead",
        "a b",
        "a\nb",
        "ü",
        "x" * 201,
        "a\x00b",
        "*",
        "a?b",
    ):
        yield Bad(f"the UUID {uuid[:30]!r}", _with("UUID", uuid), "invalid_name")
    for name in ("a\nb", "\x1b[2J", "x" * 201, "\u202eabc", "a\x00"):
        yield Bad(f"the name {name[:30]!r}", _with("Name", name), "invalid_name")
    for queue in ("delayed_tasks", "TriggerChordMutex", "a b", "x" * 201, "{q}:aq:workers", "machinery_lock_y", "ü"):
        yield Bad(f"the routing key {queue[:30]!r}", _with("RoutingKey", queue), "invalid_name")
        callback = {"UUID": "task_c", "Name": "add", "RoutingKey": queue}
        yield Bad(f"a callback for {queue[:30]!r}", _with("OnSuccess", [callback]), "invalid_name")
    yield Bad("a group of an odd name", _with("GroupUUID", "delayed_tasks"), "invalid_name")
    for field in ("OnSuccess", "OnError"):
        callback = {"UUID": QUEUE, "Name": "add"}
        yield Bad(f"{field} that is a queue", _with(field, [callback]), "invalid_name")
        yield Bad(f"{field} that is its parent", _with(field, [{"UUID": "task_bad", "Name": "add"}]), "invalid_name")
        yield Bad(
            f"{field} inside {field} that is a queue",
            _with(field, [{"Name": "add", field: [callback]}]),
            "invalid_name",
        )
        yield Bad(f"{field} without a name", _with(field, [{"UUID": "task_c"}]), "invalid_signature")


def _bombs() -> Iterator[Bad]:
    chained: dict[str, Any] = {"Name": "add"}
    for _ in range(110):
        chained = {"Name": "add", "OnSuccess": [chained]}
    yield Bad("callbacks one inside the other", _with("OnSuccess", [chained]), "invalid_signature")
    yield Bad("a thousand callbacks", _with("OnError", [{"Name": "add"}] * 1_001), "invalid_signature")
    argument = {"Name": "", "Type": "int64", "Value": 1}
    yield Bad("too many arguments", _with("Args", [argument] * 20_001), "invalid_signature")
    yield Bad("over a megabyte", _with("SQSReceiptHandle", "x" * 1_000_001), "too_large")
    yield Bad("over a megabyte of nothing", b" " * 1_000_001, "too_large")


def _no_object() -> Iterator[Bad]:
    for body in (b"null", b"[]", b'"text"', b"1", b"true", b"[{}]"):
        yield Bad(f"{body!r}", body, "invalid_signature")
    for body in (b" ", b"\n\n", b"\x00", b"text", b"<xml/>", b"---\na: 1\n", b"{", b"}", b'{"UUID"}', b"{,}"):
        yield Bad(f"{body!r}", body, "undecodable")


def _with(field: str, value: Any) -> bytes:
    return json.dumps({**json.loads(good("task_bad")), field: value}).encode()


def _with_raw_value(text: str) -> bytes:
    return good("task_bad").replace(b'"Value":2', b'"Value":' + text.encode())
