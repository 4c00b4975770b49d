"""Type names and Python values, both ways; and how a parameter's annotation decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from inspect import Parameter
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from asyncqueue import arguments
from asyncqueue.arguments import (
    JSON,
    TYPE_NAMES,
    Float32,
    Float64,
    Int,
    Int8,
    Int16,
    Int32,
    Int64,
    NegativeZero,
    Uint,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    codec,
    decode,
    encode,
    infer,
    type_name,
)
from asyncqueue.errors import ArgumentError

UserId = NewType("UserId", int)
RANGES = {
    "int8": (-128, 127),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "int": (-(2**63), 2**63 - 1),
    "uint8": (0, 255),
    "uint16": (0, 65535),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "uint": (0, 2**64 - 1),
}


class Point(BaseModel):
    x: int
    y: int = Field(default=0, alias="why")


class Exact(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    ids: tuple[UUID, ...]


class Colour(Enum):
    RED = "red"


@dataclass
class Box:
    price: Decimal


# — names —


def test_machinery_has_29_type_names() -> None:
    assert len(TYPE_NAMES) == 29
    assert JSON not in TYPE_NAMES


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, "int64"),
        (float, "float64"),
        (str, "string"),
        (bool, "bool"),
        (bytes, "[]byte"),
        (Int, "int"),
        (Int8, "int8"),
        (Int16, "int16"),
        (Int32, "int32"),
        (Int64, "int64"),
        (Uint, "uint"),
        (Uint8, "uint8"),
        (Uint16, "uint16"),
        (Uint32, "uint32"),
        (Uint64, "uint64"),
        (Float32, "float32"),
        (Float64, "float64"),
        (list[int], "[]int64"),
        (list[Int8], "[]int8"),
        (Sequence[str], "[]string"),
        (tuple[bool, ...], "[]bool"),
        (list[Float32], "[]float32"),
        (UserId, "int64"),
        (list[UserId], "[]int64"),
        (Annotated[int, Field(gt=0)], "int64"),
        (Annotated[list[int], Field(max_length=3)], "[]int64"),
        (list[Annotated[Int8, Field(gt=0)]], "[]int8"),
        (list[bytes], JSON),
        (list[list[int]], JSON),
        (list[Any], JSON),
        (list, JSON),
        (tuple[int, str], JSON),
        (set[int], JSON),
        (dict[str, int], JSON),
        (None, JSON),
        (Any, JSON),
        (Optional[int], JSON),  # noqa: UP045 - the old spelling too
        (int | None, JSON),
        (Point, JSON),
        (Literal["a"], JSON),
        (Colour, JSON),
        (datetime, JSON),
    ],
)
def test_an_annotation_decides_the_type_name(annotation: Any, expected: str) -> None:
    assert type_name(annotation) == expected
    assert codec(annotation).type_name == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "bool"),
        (5, "int64"),
        (-(2**63), "int64"),
        (2**63, "uint64"),
        (2**64 - 1, "uint64"),
        (1.0, "float64"),
        ("a", "string"),
        (b"a", "[]byte"),
        ([1, 2], "[]int64"),
        ([1, 2**63], "[]uint64"),
        ((1.5,), "[]float64"),
        ([True], "[]bool"),
        (["a"], "[]string"),
        ([], JSON),
        ([1, "a"], JSON),
        ([1, True], JSON),
        ([1, 1.5], JSON),
        ([b"a"], JSON),
        ([[1]], JSON),
        ({}, JSON),
        (None, JSON),
    ],
)
def test_a_value_alone_decides_the_type_name_where_nothing_else_does(value: Any, expected: str) -> None:
    assert infer(value) == expected


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [1, 2**64], [-1, 2**63], [10**5000]])
def test_an_integer_of_more_than_64_bits_has_no_type_name(value: Any) -> None:
    with pytest.raises(ArgumentError, match="64 bits"):
        infer(value)


# — values —


@pytest.mark.parametrize("way", [encode, decode])
@pytest.mark.parametrize("name", RANGES)
def test_narrow_integers_are_range_checked(way: Any, name: str) -> None:
    low, high = RANGES[name]
    for good in (low, 0, high):
        assert way(name, good) == good
        if name != "uint8":
            assert way(f"[]{name}", [good]) == [good]
    for bad in (low - 1, high + 1):
        with pytest.raises(ArgumentError, match=f"is not {name}: expected an integer from {low} to {high}"):
            way(name, bad)
        with pytest.raises(ArgumentError):
            way(f"[]{name}", [good, bad])


@pytest.mark.parametrize("way", [encode, decode])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bool", 1),
        ("bool", "true"),
        ("bool", None),
        ("int64", True),
        ("int64", 1.0),
        ("int64", "1"),
        ("int64", None),
        ("uint8", -1),
        ("float64", True),
        ("float64", "1.5"),
        ("float64", None),
        ("float64", float("nan")),
        ("float64", float("inf")),
        ("float64", 10**400),
        ("float32", 1e39),
        ("float32", float("nan")),
        ("string", 1),
        ("string", None),
        ("string", b"a"),
        ("[]int64", 5),
        ("[]int64", "text"),
        ("[]int64", [1, None]),
        ("[]int64", {"a": 1}),
        ("[]bool", [1]),
        ("[]string", ["a", 1]),
        ("[]float64", [float("inf")]),
        ("[]byte", 5),
        ("[]byte", [256]),
        ("[]byte", [-1]),
        ("[]byte", {}),
        ("[]uint8", ["a"]),
    ],
)
def test_what_a_type_does_not_hold_is_refused(way: Any, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=r" is not |64 bits"):
        way(name, value)


@pytest.mark.parametrize("way", [encode, decode])
@pytest.mark.parametrize("name", ["", "byte", "rune", "interface {}", "map[string]int", "[][]int", "[]json", "Int64"])
def test_unknown_type_names_are_refused_in_gos_words(way: Any, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        way(name, 1)
    assert str(caught.value) == f"{name} is not one of supported types"
    with pytest.raises(ArgumentError, match="is not one of supported types"):
        codec(int).decode(name, 1)


def test_an_error_shows_a_long_value_short() -> None:
    with pytest.raises(ArgumentError) as caught:
        encode("int64", "x" * 100_000)
    assert len(str(caught.value)) < 250
    with pytest.raises(ArgumentError, match="a number of 16610 bits"):
        encode("int64", 10**5000)


@pytest.mark.parametrize("name", sorted(name for name in TYPE_NAMES if name.startswith("[]")))
def test_null_is_an_empty_slice(name: str) -> None:
    assert not decode(name, None)
    assert type(decode(name, None)) is (bytes if name in ("[]byte", "[]uint8") else list)


def test_bytes_travel_as_base64() -> None:
    assert encode("[]byte", b"\x00\x7f\xff") == "AH//"
    assert encode("[]uint8", [0, 127, 255]) == "AH//"
    assert encode("[]byte", bytearray(b"hi")) == "aGk="
    for name in ("[]byte", "[]uint8"):
        for wire in ("AH//", "AH\r\n//", [0, 127, 255], b"\x00\x7f\xff"):
            assert decode(name, wire) == b"\x00\x7f\xff"


@pytest.mark.parametrize("wire", ["AH__", "aGk", "aGk==", "a Gk=", "é", "=", "aGk=aGk="])
def test_base64_of_another_kind_is_refused(wire: str) -> None:
    with pytest.raises(ArgumentError, match="standard base64"):
        decode("[]byte", wire)


def test_base64_is_one_element_per_byte_to_wider_unsigned_slices() -> None:
    for name in ("[]uint", "[]uint16", "[]uint32", "[]uint64"):
        assert decode(name, "AQID") == [1, 2, 3]
    with pytest.raises(ArgumentError):
        decode("[]int64", "AQID")


def test_integers_are_taken_for_floats() -> None:
    assert (decode("float64", 2), type(decode("float64", 2))) == (2.0, float)
    assert decode("[]float32", [1, 2.5]) == [1.0, 2.5]


def test_a_float32_is_rounded_to_one() -> None:
    assert encode("float32", 0.1) == decode("float32", 0.1) == 0.10000000149011612


def test_negative_zero_keeps_its_sign_where_there_is_one() -> None:
    zero = NegativeZero()
    assert decode("int64", zero) == 0
    assert type(decode("int64", zero)) is int
    assert str(decode("float64", zero)) == "-0.0"
    for name in ("uint", "uint8", "uint64"):
        with pytest.raises(ArgumentError):
            decode(name, zero)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1: 2}, {"a": object()}, b"a", {1}, 10**41])
def test_json_refuses_what_json_cannot_say(value: Any) -> None:
    with pytest.raises(ArgumentError):
        encode(JSON, value)


def test_json_refuses_what_nests_without_end() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ArgumentError, match="nests deeper"):
        encode(JSON, value)
    with pytest.raises(ArgumentError):
        codec(Any).encode(value)


# — codecs —


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, -5),
        (Uint64, 2**64 - 1),
        (float, 1.5),
        (str, "é"),
        (bool, False),
        (bytes, b"\x00\xff"),
        (list[int], [1, 2]),
        (tuple[int, ...], (1, 2)),
        (Sequence[str], ["a"]),
        (list[Uint8], [1, 255]),
        (tuple[Uint8, ...], (1, 255)),
        (list[float], []),
        (UserId, 7),
        (int | None, None),
        (int | None, 5),
        (dict[str, list[int]], {"a": [1]}),
        (list[bytes], [b"\x00\xff\xfe", b""]),
        (dict[str, bytes], {"a": b"\xff"}),
        (Point, Point(x=1, why=2)),
        (list[Point], [Point(x=1)]),
        (Exact, Exact(at=datetime(2025, 1, 2, tzinfo=UTC), ids=(UUID(int=5),))),
        (Box, Box(Decimal("1.10"))),
        (Colour, Colour.RED),
        (Literal["a", "b"], "b"),
        (datetime, datetime(2025, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (Any, {"a": [1, None, "x", 1.5]}),
        (None, None),
        (Parameter.empty, [1, 2]),
        (Parameter.empty, b"\x00\xff"),
        (Parameter.empty, None),
        (Parameter.empty, {"a": 1}),
        (Annotated[int, Field(gt=0)], 3),
    ],
)
def test_a_value_of_the_annotated_type_survives_there_and_back(annotation: Any, value: Any) -> None:
    each = codec(annotation)
    back = each.decode(*each.encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "5"),
        (int, 5.0),
        (int, True),
        (Int8, 128),
        (float, float("nan")),
        (str, 5),
        (bytes, "text"),
        (list[int], [1, "a"]),
        (list[int], None),
        (int | None, "x"),
        (dict[str, int], {"a": "x"}),
        (Point, {"x": "far"}),
        (Literal["a"], "b"),
        (Any, object()),
        (Any, float("inf")),
        (None, 5),
        (Annotated[int, Field(gt=0)], 0),
        (list[Annotated[int, Field(gt=0)]], [1, 0]),
    ],
)
def test_a_value_of_another_type_is_refused_when_it_is_sent(annotation: Any, value: Any) -> None:
    with pytest.raises(ArgumentError):
        codec(annotation).encode(value)


@pytest.mark.parametrize(
    ("annotation", "name", "wire", "expected"),
    [
        (int, "int32", 5, 5),
        (int, "uint64", 2**64 - 1, None),
        (Int8, "int64", 5, 5),
        (Int8, "int64", 300, None),
        (Uint64, "int64", -1, None),
        (float, "int64", 5, 5.0),
        (Float32, "float64", 0.5, 0.5),
        (int, "float64", 5.0, None),
        (int, "string", "5", None),
        (int, "bool", True, None),
        (str, "int64", 5, None),
        (bytes, "[]uint8", "aGk=", b"hi"),
        (bytes, "string", "aGk=", None),
        (list[int], "[]uint8", "AQI=", [1, 2]),
        (tuple[int, ...], "[]byte", "AQI=", (1, 2)),
        (list[float], "[]int32", [1], [1.0]),
        (list[int], "[]float64", [1.0], None),
        (list[int], "int64", 1, None),
        (list[int], JSON, [], []),
        (list[int], JSON, [1, "a"], None),
        (int, JSON, 5, 5),
        (int, JSON, None, None),
        (int | None, "int64", 5, 5),
        (list[bytes], "[]string", ["a"], None),
        (Any, "[]byte", "aGk=", b"hi"),
        (Point, JSON, {"x": 1, "why": 2}, Point(x=1, why=2)),
        (Point, JSON, {"x": None}, None),
        (Point, "int64", 5, None),
        (Parameter.empty, "int64", "5", None),
        (Annotated[int, Field(gt=0)], "int32", -1, None),
    ],
)
def test_a_parameter_takes_what_fits_and_refuses_the_rest(annotation: Any, name: str, wire: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(ArgumentError):
            codec(annotation).decode(name, wire)
    else:
        value = codec(annotation).decode(name, wire)
        assert (value, type(value)) == (expected, type(expected))


def test_a_misfit_names_both_types() -> None:
    with pytest.raises(ArgumentError, match="'5' of type string does not fit a parameter of type int64"):
        codec(int).decode("string", "5")


def test_an_unknown_marker_is_refused_where_the_codec_is_made() -> None:
    with pytest.raises(ArgumentError, match="complex64 is not one of supported types"):
        codec(Annotated[complex, arguments.TypeName("complex64")])


@given(st.sampled_from(sorted(RANGES)), st.data())
def test_every_integer_in_range_survives_there_and_back(name: str, data: st.DataObject) -> None:
    value = data.draw(st.integers(*RANGES[name]))
    assert decode(name, encode(name, value)) == value


@given(st.binary())
def test_all_bytes_survive_there_and_back(value: bytes) -> None:
    assert decode("[]byte", encode("[]byte", value)) == value


def test_a_class_that_pydantic_does_not_know_is_refused_with_a_reason() -> None:
    class Handle:
        pass

    each = codec(Handle)
    with pytest.raises(ArgumentError, match="a Handle cannot travel"):
        each.encode(Handle())
    with pytest.raises(ArgumentError, match="a Handle cannot travel"):
        each.decode(JSON, {})
