"""Machinery's type names and Python values, both ways.

An argument on the wire is a type name and a value in its JSON form. Machinery knows 29 names: 14 scalars, a slice of
each, and ``[]byte``. What Go has no name for travels as type ``json``, which only Python workers accept, and is
validated by pydantic at both ends.

``encode`` and ``decode`` are strict where Go is: ``1.0`` is no integer, ``True`` is no number. They are stricter in
one thing: a value outside a narrow type's range is refused, where Go would silently wrap it around.
"""

from __future__ import annotations

import binascii
import struct
import typing
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from math import isfinite
from typing import Annotated, Any, NewType, TypeAlias

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from asyncqueue.errors import ArgumentError, shown

JSON = "json"
"""The type name of what Go has no name for."""

BYTES = "[]byte"

# of one json value; both well below what a message may have
_MAX_DEPTH = 200
_LONGEST = 10**40


@dataclass(frozen=True, slots=True)
class TypeName:
    """A marker for annotations: this ``int``, ``float``, … has that type name on the wire."""

    name: str


Int: TypeAlias = Annotated[int, TypeName("int")]
Int8: TypeAlias = Annotated[int, TypeName("int8")]
Int16: TypeAlias = Annotated[int, TypeName("int16")]
Int32: TypeAlias = Annotated[int, TypeName("int32")]
Int64: TypeAlias = Annotated[int, TypeName("int64")]
Uint: TypeAlias = Annotated[int, TypeName("uint")]
Uint8: TypeAlias = Annotated[int, TypeName("uint8")]
Uint16: TypeAlias = Annotated[int, TypeName("uint16")]
Uint32: TypeAlias = Annotated[int, TypeName("uint32")]
Uint64: TypeAlias = Annotated[int, TypeName("uint64")]
Float32: TypeAlias = Annotated[float, TypeName("float32")]
Float64: TypeAlias = Annotated[float, TypeName("float64")]

_INTEGERS = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "int": (-(2**63), 2**63 - 1),
    "uint": (0, 2**64 - 1),
}
_FLOATS = ("float32", "float64")
_SCALARS = ("bool", *_INTEGERS, *_FLOATS, "string")

TYPE_NAMES: frozenset[str] = frozenset({*_SCALARS, *(f"[]{name}" for name in _SCALARS), BYTES})
"""Machinery's 29 type names."""


class NegativeZero(int):
    """The number literal ``-0``: zero to an integer type, negative zero to a float, refused by unsigned types."""

    def __new__(cls) -> NegativeZero:
        return super().__new__(cls, 0)

    def __float__(self) -> float:
        return -0.0

    def __repr__(self) -> str:
        return "-0"


def type_name(annotation: Any) -> str:
    """The type name of what is annotated so: ``int`` → ``int64``, ``list[Int8]`` → ``[]int8``, else ``json``."""
    annotation = _plain(annotation)
    if typing.get_origin(annotation) is Annotated:
        base, *metadata = typing.get_args(annotation)
        for mark in metadata:
            if isinstance(mark, TypeName):
                return mark.name
        return type_name(base)
    if annotation in _NAMES:
        return _NAMES[annotation]
    element = _element(annotation)
    if element is None:
        return JSON
    name = type_name(element)
    return f"[]{name}" if name in _SCALARS else JSON


def infer(value: Any) -> str:
    """The type name for a value of which nothing is known: ``5`` → ``int64``, ``["a"]`` → ``[]string``, else ``json``.

    Raises ``ArgumentError`` for an integer that neither int64 nor uint64 holds.
    """
    if isinstance(value, (list, tuple)) and value:
        return _infer_slice(value)
    return _infer_scalar(value)


def encode(name: str, value: Any) -> Any:
    """The JSON form of a Python value as that type; for ``json`` the value must be made of JSON's own types.

    Bytes become standard base64. Raises ``ArgumentError`` for a value that the type does not hold.
    """
    encoder = _ENCODERS.get(name)
    if encoder is None:
        raise ArgumentError(f"{name} is not one of supported types")
    return encoder(value)


def decode(name: str, wire: Any) -> Any:
    """The Python value of a JSON form of that type: what Go accepts, without its wrapping around of narrow integers.

    ``null`` is an empty list to a slice; ``[]byte`` and ``[]uint8`` give ``bytes``; floats take integers too. Raises
    ``ArgumentError`` for what the type does not hold.
    """
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise ArgumentError(f"{name} is not one of supported types")
    return decoder(wire)


@dataclass(frozen=True, slots=True)
class Codec:
    """How one parameter or result travels. ``type_name`` is what is written; "" where the value decides."""

    type_name: str
    encode: Callable[[Any], tuple[str, Any]] = field(repr=False)
    """Python value → (type name, wire form). Raises ``ArgumentError`` where it does not fit."""
    decode: Callable[[str, Any], Any] = field(repr=False)
    """(type name on the wire, wire form) → Python value. Raises ``ArgumentError`` where it does not fit."""


def codec(annotation: Any) -> Codec:
    """The codec of a parameter or result annotated so; ``inspect.Parameter.empty`` takes anything."""
    if annotation is Parameter.empty:
        return _UNANNOTATED
    annotation = _plain(annotation)
    name = type_name(annotation)
    if name not in TYPE_NAMES and name != JSON:
        raise ArgumentError(f"{name} is not one of supported types")
    if name == JSON:
        return _json_codec(annotation)
    plain = _native_codec(name, _container(annotation))
    return _checked(plain, annotation) if _has_constraints(annotation) else plain


# — scalars —


def _unfit(name: str, value: Any, expected: str) -> ArgumentError:
    return ArgumentError(f"{shown(value)} is not {name}: expected {expected}")


def _boolean(value: Any) -> bool:
    if value is True or value is False:
        return value
    raise _unfit("bool", value, "True or False")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _unfit("string", value, "text")


def _integer(name: str, low: int, high: int) -> Callable[[Any], int]:
    expected = f"an integer from {low} to {high}"

    def integer(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            if type(value) is not NegativeZero:
                return int(value)
            if low < 0:
                return 0
        raise _unfit(name, value, expected)

    return integer


def _float64(value: Any) -> float:
    if type(value) is float and isfinite(value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise _unfit("float64", value, "a number that a float holds") from None
        if isfinite(number):
            return number
    raise _unfit("float64", value, "a finite number")


_SINGLE = struct.Struct("<f")


def _float32(value: Any) -> float:
    try:
        return float(_SINGLE.unpack(_SINGLE.pack(_float64(value)))[0])
    except (OverflowError, ArgumentError):
        raise _unfit("float32", value, "a finite number of at most 3.4e38") from None


# — slices —


def _slice(name: str, scalar: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def elements(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise _unfit(name, value, "a list")
        try:
            return [scalar(element) for element in value]
        except ArgumentError as exc:
            raise ArgumentError(f"{shown(value)} is not {name}: {exc}") from None

    return elements


def _from_wire(elements: Callable[[Any], list[Any]], *, takes_base64: bool) -> Callable[[Any], list[Any]]:
    def decoded(wire: Any) -> list[Any]:
        if wire is None:
            return []
        if takes_base64 and isinstance(wire, (str, bytes)):
            return list(_bytes(wire))
        return elements(wire)

    return decoded


_EXPECTED_BYTES = "bytes, standard base64 with padding, or a list of integers from 0 to 255"


def _base64(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(value).decode("ascii")
    if isinstance(value, (list, tuple)):
        return b64encode(_bytes(value)).decode("ascii")
    raise _unfit(BYTES, value, "bytes")


def _bytes(wire: Any) -> bytes:
    match wire:
        case bytes():
            return wire
        case None:
            return b""
        case str():
            try:
                # Go's decoder skips line breaks too
                return binascii.a2b_base64(wire.replace("\n", "").replace("\r", ""), strict_mode=True)
            except ValueError:
                raise _unfit(BYTES, wire, _EXPECTED_BYTES) from None
        case list() | tuple():
            return bytes(_BYTE_LIST(wire))
        case _:
            raise _unfit(BYTES, wire, _EXPECTED_BYTES)


# — json —


def _as_json(value: Any, depth: int = 0) -> Any:
    """Refuses what JSON cannot say; whoever has an annotation lets pydantic turn it into that first."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if depth > _MAX_DEPTH:
        raise ArgumentError(f"a json value nests deeper than {_MAX_DEPTH}")
    match value:
        case int() if -_LONGEST < value < _LONGEST:
            return value
        case float() if isfinite(value):
            return value
        case list() | tuple():
            return [_as_json(element, depth + 1) for element in value]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise _unfit("a json key", key, "text")
            return {key: _as_json(element, depth + 1) for key, element in value.items()}
    raise _unfit("json", value, "None, bool, an int of up to 40 digits, a finite float, str, list or dict")


def _same(value: Any) -> Any:
    return value


# — the tables —

_SCALAR_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "bool": _boolean,
    "string": _text,
    "float32": _float32,
    "float64": _float64,
    **{name: _integer(name, low, high) for name, (low, high) in _INTEGERS.items()},
}
_BYTE_LIST = _slice(BYTES, _SCALAR_ENCODERS["uint8"])
_SLICE_ENCODERS = {f"[]{name}": _slice(f"[]{name}", scalar) for name, scalar in _SCALAR_ENCODERS.items()}
_ENCODERS: dict[str, Callable[[Any], Any]] = {
    **_SCALAR_ENCODERS,
    **_SLICE_ENCODERS,
    "[]uint8": _base64,
    BYTES: _base64,
    JSON: _as_json,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    **_SCALAR_ENCODERS,
    **{
        name: _from_wire(elements, takes_base64=name.startswith("[]uint")) for name, elements in _SLICE_ENCODERS.items()
    },
    "[]uint8": _bytes,
    BYTES: _bytes,
    JSON: _same,
}
_NAMES: dict[Any, str] = {bool: "bool", int: "int64", float: "float64", str: "string", bytes: BYTES}


# — annotations —


def _plain(annotation: Any) -> Any:
    """What a ``type`` alias or a ``NewType`` stands for."""
    while True:
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType" and not typing.get_args(annotation):
            annotation = annotation.__value__
        else:
            return annotation


def _element(annotation: Any) -> Any:
    """X of ``list[X]``, ``Sequence[X]``, ``tuple[X, ...]``; None of anything else."""
    match typing.get_origin(annotation), typing.get_args(annotation):
        case (origin, (element,)) if origin in (list, Sequence):
            return element
        case (origin, (element, last)) if origin is tuple and last is Ellipsis:
            return element
        case _:
            return None


def _container(annotation: Any) -> Callable[[Any], Any] | None:
    """What a slice becomes in Python; None for scalars and bytes."""
    annotation = _plain(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _container(typing.get_args(annotation)[0])
    if _element(annotation) is None:
        return None
    return tuple if typing.get_origin(annotation) is tuple else list


def _has_constraints(annotation: Any) -> bool:
    """Whether something in there is for pydantic: ``Annotated[int, Field(gt=0)]``."""
    annotation = _plain(annotation)
    if typing.get_origin(annotation) is Annotated:
        base, *metadata = typing.get_args(annotation)
        return any(not isinstance(mark, TypeName) for mark in metadata) or _has_constraints(base)
    element = _element(annotation)
    return element is not None and _has_constraints(element)


# — values of which nothing is known —


def _infer_scalar(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return _infer_integer((value,))
        case float():
            return "float64"
        case str():
            return "string"
        case bytes():
            return BYTES
        case _:
            return JSON


def _infer_slice(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return f"[]{_infer_integer(values)}"
    if len(kinds) == 1 and (name := _NAMES.get(kinds.pop())) in _SCALARS:
        return f"[]{name}"
    return JSON


def _infer_integer(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    for name in ("int64", "uint64"):
        least, most = _INTEGERS[name]
        if least <= low and high <= most:
            return name
    odd = high if high > _INTEGERS["int64"][1] else low
    raise _unfit("int64 or uint64", odd, "an integer of at most 64 bits")


# — codecs —


def _native_codec(name: str, container: Callable[[Any], Any] | None) -> Codec:
    to_wire = _ENCODERS[name]
    own = _DECODERS[name]
    kind = "[]int" if container is not None and name == "[]uint8" else _kind(name)

    def encode_as(value: Any) -> tuple[str, Any]:
        return name, to_wire(value)

    def decode_as(wire_name: str, wire: Any) -> Any:
        if wire_name in (name, JSON):
            return own(wire)
        if (_kind(wire_name), kind) in _WIDENINGS or _kind(wire_name) == kind:
            # the value as its sender meant it, and then once more: what fits an int64 may not fit an int8
            value = decode(wire_name, wire)
            return own(list(value) if isinstance(value, bytes) and kind != "bytes" else value)
        if wire_name not in TYPE_NAMES:
            raise ArgumentError(f"{wire_name} is not one of supported types")
        raise ArgumentError(f"{shown(wire)} of type {wire_name} does not fit a parameter of type {name}")

    if container is None:
        return Codec(name, encode_as, decode_as)
    return Codec(name, encode_as, lambda wire_name, wire: container(decode_as(wire_name, wire)))


def _kind(name: str) -> str:
    """What widths have in common: ``int`` for every integer, ``[]float`` for slices of both floats."""
    if name in (BYTES, "[]uint8"):
        return "bytes"
    scalar = name.removeprefix("[]")
    common = "int" if scalar in _INTEGERS else "float" if scalar in _FLOATS else scalar
    return f"[]{common}" if name.startswith("[]") else common


_WIDENINGS = frozenset(
    {
        ("int", "float"),
        ("[]int", "[]float"),
        ("bytes", "[]int"),
        ("bytes", "[]float"),
    }
)


def _lazily(annotation: Any) -> Callable[[], TypeAdapter[Any]]:
    """The adapter of an annotation, built when it is first asked for: building takes milliseconds."""
    built: list[TypeAdapter[Any]] = []

    def adapter() -> TypeAdapter[Any]:
        if not built:
            try:
                made = _adapter(annotation)
            except PydanticUserError as exc:
                raise ArgumentError(f"a {_described(annotation)} cannot travel: {exc}") from None
            built.append(made)
        return built[0]

    return adapter


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_JSON_CONFIG)
    except PydanticUserError:  # models and dataclasses bring their own configuration
        return TypeAdapter(annotation)


_JSON_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")


def _described(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation)


def _complaint(exc: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, error['loc'])) + ': ' if error['loc'] else ''}{error['msg']}"
        for error in exc.errors(include_url=False, include_input=False, include_context=False)
    )


def _json_codec(annotation: Any) -> Codec:
    adapter = _lazily(annotation)
    expected = _described(annotation)

    def encode_json(value: Any) -> tuple[str, Any]:
        try:
            valid = adapter().validate_python(value)
            return JSON, _as_json(adapter().dump_python(valid, mode="json", by_alias=True))
        except ValidationError as exc:
            raise ArgumentError(f"{shown(value)} is not {expected}: {_complaint(exc)}") from None
        except (ValueError, RecursionError) as exc:
            raise ArgumentError(f"{shown(value)} cannot be written as json: {exc}") from None

    def decode_json(wire_name: str, wire: Any) -> Any:
        try:
            if wire_name == JSON:
                # as json, not as Python values: that is what tells "2025-01-02" from a date to a strict model
                return adapter().validate_json(to_json(_as_json(wire)))
            return adapter().validate_python(decode(wire_name, wire))
        except ValidationError as exc:
            raise ArgumentError(f"{shown(wire)} is not {expected}: {_complaint(exc)}") from None

    return Codec(JSON, encode_json, decode_json)


def _checked(plain: Codec, annotation: Any) -> Codec:
    """A native type on the wire with pydantic's constraints on top, at both ends."""
    adapter = _lazily(annotation)

    def check(value: Any) -> Any:
        try:
            return adapter().validate_python(value)
        except ValidationError as exc:
            raise ArgumentError(f"{_complaint(exc)}, not {shown(value)}") from None

    return Codec(
        plain.type_name,
        lambda value: plain.encode(check(value)),
        lambda wire_name, wire: check(plain.decode(wire_name, wire)),
    )


def _encode_anything(value: Any) -> tuple[str, Any]:
    name = infer(value)
    return name, encode(name, value)


_UNANNOTATED = Codec("", _encode_anything, decode)
