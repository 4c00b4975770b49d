"""What Go prints of a value, and the value that such a text says."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue.go_text import parsed, printed

# printed by Go's fmt.Sprintf("%v")
SAID: list[tuple[str, Any, str]] = [
    ("int64", 2, "2"),
    ("int8", -3, "-3"),
    ("uint64", 2**64 - 1, "18446744073709551615"),
    ("bool", True, "true"),
    ("string", "x y", "x y"),
    ("string", "", ""),
    ("float64", 1.5, "1.5"),
    ("float64", 2, "2"),
    ("float64", 100000, "100000"),
    ("float64", 1e6, "1e+06"),
    ("float64", 123456789.0, "1.23456789e+08"),
    ("float64", 1e21, "1e+21"),
    ("float64", 0.0001, "0.0001"),
    ("float64", 0.00001, "1e-05"),
    ("float64", 1.7976931348623157e308, "1.7976931348623157e+308"),
    ("float64", 5e-324, "5e-324"),
    ("float32", 0.1, "0.1"),
    ("float32", 16777216, "1.6777216e+07"),
    ("[]float64", [1, 2.5, 1e-7], "[1 2.5 1e-07]"),
    ("[]float32", [0.1, 3], "[0.1 3]"),
    ("[]int64", [1, -2], "[1 -2]"),
    ("[]bool", [True, False], "[true false]"),
    ("[]string", ["a", "b"], "[a b]"),
    ("[]string", [], "[]"),
    ("[]uint8", "aGk=", "[104 105]"),
]


@pytest.mark.parametrize(("name", "value", "text"), SAID)
def test_a_value_is_printed_as_go_prints_it_and_read_again(name: str, value: Any, text: str) -> None:
    assert printed(name, value) == text
    assert parsed(name, text) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("[]string", ["a", ""], "[a ]"),
        ("[]string", None, "[]"),
        ("json", {"b": [None, 1.5], "a": {"x": True}}, "map[a:map[x:true] b:[<nil> 1.5]]"),
        ("json", None, "<nil>"),
    ],
)
def test_what_go_prints_need_not_say_the_value(name: str, value: Any, text: str) -> None:
    assert printed(name, value) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("int64", "two"),
        ("int64", ""),
        ("bool", "yes"),
        ("float64", "?"),
        ("[]int64", "1 2"),
        ("[]int64", "[1 x]"),
        ("[]uint8", "[300]"),
        ("map[string]int", "map[a:1]"),
        ("json", "1"),
    ],
)
def test_a_text_that_does_not_say_a_value_is_no_value(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parsed(name, text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_again(value: float) -> None:
    assert parsed("float64", printed("float64", value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_every_single_float_is_read_again(value: float) -> None:
    assert parsed("float32", printed("float32", value)) == pytest.approx(value, rel=1e-7)


@given(st.binary())
def test_all_bytes_are_read_again(value: bytes) -> None:
    text = b64encode(value).decode()
    assert parsed("[]byte", printed("[]byte", text)) == text
