"""Values as Go's ``%v`` prints them, for a store in which Machinery keeps results as text."""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode, b64encode
from decimal import Decimal
from typing import Any

_FLOAT32 = struct.Struct("<f")
_BYTES = ("[]byte", "[]uint8")
_LEAST_PLAIN, _MOST_PLAIN = -4, 5
"""The powers of ten of the numbers that Go prints without an exponent."""


def printed(name: str, value: Any) -> str:
    """What Go prints of a value, in its JSON form, of that type name."""
    match value:
        case None:
            return "[]" if name.startswith("[]") else "<nil>"
        case bool():
            return "true" if value else "false"
        case int() | float() if name.startswith("float"):
            return _float_text(_shortest(name, float(value)))
        case int():
            return str(int(value))
        case float():
            return _float_text(repr(value))
        case str() if name in _BYTES:
            return _bytes_text(value)
        case str():
            return value
        case list() | tuple():
            return f"[{' '.join(printed(name.removeprefix('[]'), each) for each in value)}]"
        case dict():
            pairs = [f"{key}:{printed('', value[key])}" for key in sorted(value)]
            return f"map[{' '.join(pairs)}]"
        case _:
            return str(value)


def parsed(name: str, text: str) -> Any:
    """The value, in its JSON form, of a type name and the text that Go printed. Raises ``ValueError`` where it does not
    say; of ``[]string`` it does not say where one ends that has a space in it."""
    match name:
        case "string":
            return text
        case "bool":
            return _one_of({"true": True, "false": False}, text)
        case _ if name in _BYTES:
            return b64encode(bytes(int(each) for each in _elements(text))).decode("ascii")
        case _ if name.startswith("[]"):
            return [parsed(name[2:], each) for each in _elements(text)]
        case _ if name.startswith(("int", "uint")):
            return int(text)
        case "float32" | "float64":
            return float(text)
        case _:
            raise ValueError(f"{name}: the text does not say the value")


def _one_of(values: dict[str, Any], text: str) -> Any:
    if text not in values:
        raise ValueError(f"{text[:40]!r} is none of {', '.join(values)}")
    return values[text]


def _elements(text: str) -> list[str]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(f"{text[:40]!r} is no list")
    return text[1:-1].split(" ") if len(text) > 2 else []


def _bytes_text(base64: str) -> str:
    try:
        return f"[{' '.join(map(str, b64decode(base64, validate=True)))}]"
    except binascii.Error:
        return base64


def _shortest(name: str, value: float) -> str:
    """The fewest digits that give the same number again."""
    if name == "float64":
        return repr(value)
    try:
        packed = _FLOAT32.pack(value)
        return next(text for digits in range(9) if _FLOAT32.pack(float(text := f"{value:.{digits}e}")) == packed)
    except (OverflowError, StopIteration):
        return repr(value)


def _float_text(shortest: str) -> str:
    number = Decimal(shortest).normalize()
    sign, digits, exponent = number.as_tuple()
    power = len(digits) + int(exponent) - 1
    if _LEAST_PLAIN <= power <= _MOST_PLAIN or not number:
        return f"{number:f}"
    first, *rest = map(str, digits)
    fraction = f".{''.join(rest)}" if rest else ""
    return f"{'-' if sign else ''}{first}{fraction}e{'-' if power < 0 else '+'}{abs(power):02}"
