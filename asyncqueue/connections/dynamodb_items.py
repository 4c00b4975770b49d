"""Items of DynamoDB in the service's own form: every value says its type. And how big they are, and until when kept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from asyncqueue.connections.keeping import kept_until
from asyncqueue.errors import BadMessage, EntryTooLarge

Value: TypeAlias = Mapping[str, Any]
"""``{"S": "text"}``, ``{"N": "1.5"}``, ``{"L": [{"S": "text"}]}``, …"""

Item: TypeAlias = Mapping[str, Value]
"""Values by the names of their attributes."""

EXPIRY = "TTL"
"""The attribute that says when an item is gone (unix seconds; 0, or none: never), to DynamoDB too, which deletes it at
leisure, some days later at most."""

MAX_ITEM = 409_600
"""The largest item (bytes), as DynamoDB counts them."""

ROOM = 1_024
"""How many bytes of an item are left free, for what is added when it is there: a name, who has claimed it."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def text(value: str) -> Value:
    """Text. Lone surrogates, which the service does not take, become U+FFFD."""
    return {"S": _SURROGATE.sub("\ufffd", value)}


def number(value: float) -> Value:
    """A number."""
    return {"N": str(value)}


def flag(value: bool) -> Value:
    """True or false."""
    return {"BOOL": value}


def texts(values: Iterable[str]) -> Value:
    """A set of texts, which must not be empty."""
    return {"SS": list(values)}


def text_in(item: Item, name: str) -> str:
    """The text of an attribute; empty where there is none. Raises ``BadMessage`` for what is no text."""
    return str(_in(item, name, "S", ""))


def number_in(item: Item, name: str) -> float:
    """The number of an attribute; 0 where there is none. Raises ``BadMessage`` for what is no number."""
    said = str(_in(item, name, "N", "0"))
    return float(said) if "." in said or "E" in said else int(said)


def flag_in(item: Item, name: str) -> bool:
    """The flag of an attribute; false where there is none. Raises ``BadMessage`` for what is no flag."""
    return bool(_in(item, name, "BOOL", False))


def texts_in(item: Item, name: str) -> frozenset[str]:
    """The set of an attribute; empty where there is none. Raises ``BadMessage`` for what is no set."""
    return frozenset(_in(item, name, "SS", ()))


def list_in(item: Item, name: str) -> list[Value] | None:
    """The list of an attribute; None where there is none. Raises ``BadMessage`` for what is no list."""
    found: list[Value] | None = _in(item, name, "L", None)
    return found


def _in(item: Item, name: str, kind: str, absent: Any) -> Any:
    value = item.get(name)
    if value is None or "NULL" in value:  # Go writes what is empty as NULL
        return absent
    if kind not in value:
        raise BadMessage("invalid_entry", f"attribute {name} is of type {next(iter(value), '?')}, expected {kind}")
    return value[kind]


# ------------------------------------------------------------------------------------------------- expiry


def expires_at(keep: float, now: float, not_before: float | None = None) -> int:
    """When an entry is gone that is written now: whole seconds, never early."""
    return math.ceil(kept_until(keep, now, not_before))


def is_live(item: Item | None, now: float) -> bool:
    """Whether an item is there, and has not expired: what has is there for a while."""
    return item is not None and not 0 < number_in(item, EXPIRY) <= now


# --------------------------------------------------------------------------------------------------- size


def require_room(what: str, item: Item) -> None:
    """Raise ``EntryTooLarge`` for an item that is over the limit, or could be with what is added to it later."""
    if (size := size_of(item)) > MAX_ITEM - ROOM:
        raise EntryTooLarge(
            f"{what} is an item of {size} bytes; DynamoDB has a limit of {MAX_ITEM} bytes, and {ROOM} of them are kept"
            " free for what is added later"
        )


def size_of(item: Item) -> int:
    """How many bytes DynamoDB counts for an item."""
    return sum(_bytes_of(name) + _size_of_value(value) for name, value in item.items())


def _size_of_value(value: Value) -> int:
    ((kind, inside),) = value.items()
    match kind:
        case "S":
            return _bytes_of(inside)
        case "B":
            return len(inside)
        case "N":
            return len(inside.strip("-0").replace(".", "")) // 2 + 3  # at most: two digits to a byte
        case "SS":
            return sum(map(_bytes_of, inside))
        case "L":
            return 3 + sum(1 + _size_of_value(each) for each in inside)
        case "M":
            return 3 + sum(1 + _bytes_of(name) + _size_of_value(each) for name, each in inside.items())
        case _:
            return 1


def _bytes_of(value: str) -> int:
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
