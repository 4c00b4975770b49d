"""Models to bytes and back: the only module that knows Machinery's JSON.

Out: byte for byte what Go's ``encoding/json`` writes. Every field stands in Go's order, zero values too; ``null``,
``[]`` and ``{}`` are told apart; ``<``, ``>``, ``&``, U+2028 and U+2029 are escaped; floats have Go's form. In type
``json``, which Go never reads, a float keeps its point, so that ``1.0`` comes back as a float.

In: what Go accepts, by pydantic's compiled validator where that cannot differ, else the slow way, which knows every
rule of Go's. Of repeated keys the last one wins. What Go would repair is refused: bad UTF-8 and lone surrogates. So is
what nobody could run or write again: no task name, a number without bounds, a moment outside the years 1 to 9999. An
ETA keeps its moment and not its zone: it is written in UTC.
"""

from __future__ import annotations

import json
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Context, Decimal
from functools import lru_cache
from json.encoder import encode_basestring as _quoted
from math import frexp, isfinite
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from asyncqueue import rfc3339
from asyncqueue.arguments import JSON, TYPE_NAMES, NegativeZero
from asyncqueue.errors import ArgumentError, BadMessage
from asyncqueue.signature import INT64_MAX, INT64_MIN, MAX_PRIORITY, Arg, Plan, Signature
from asyncqueue.state import GroupMeta, State, TaskResult, TaskState

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a message may be: bytes, nesting of the JSON, nesting of callbacks, signatures in one message (itself
    counted), arguments of one signature, digits of one integer."""

    max_bytes: int = 1_000_000
    max_depth: int = 256
    max_callback_depth: int = 100
    max_signatures: int = 1_000
    max_args: int = 20_000
    max_integer_digits: int = 40


DEFAULT_LIMITS = Limits()


def encode_signature(signature: Signature) -> bytes:
    """The bytes of a message. Raises ``ArgumentError`` for what JSON cannot say (NaN, a lone surrogate, an object),
    naming the argument or header."""
    try:
        return _finished(_signature(signature))
    except UnicodeEncodeError:
        raise ArgumentError(
            f"task {ascii(signature.name)[1:-1]}: {_surrogate_in('argument', signature.args or ())}"
        ) from None
    except RecursionError:
        raise ArgumentError(f"task {signature.name}: values or callbacks are nested too deep") from None
    except ArgumentError:
        raise
    except ValueError as exc:
        raise ArgumentError(f"task {signature.name}, ETA: {exc}") from None


def encode_state(state: TaskState) -> bytes:
    """The bytes of a task's state. A lone surrogate in the error text becomes U+FFFD, as Go does with bad UTF-8: a
    failure can always be recorded. Raises ``ArgumentError`` for a result that JSON cannot say, naming it."""
    head, tail = _state(state)
    text = f"{head}{rfc3339.render(state.created_at)}{tail}"
    try:
        return _finished(text)
    except UnicodeEncodeError:
        return _finished(text.replace(head, _without_surrogates(state), 1))


def encode_state_around_created_at(state: TaskState) -> tuple[bytes, bytes]:
    """``encode_state`` without the text of ``CreatedAt``: what stands before it and what stands after it, for a store
    that puts in the text which it has already."""
    head, tail = _state(state)
    try:
        return _finished(head), tail.encode()
    except UnicodeEncodeError:
        return _finished(_without_surrogates(state)), tail.encode()


def encode_result(result: TaskResult) -> bytes:
    """The bytes of one result, for a store whose own types do not hold every value. Raises ``ArgumentError`` for what
    JSON cannot say."""
    try:
        return _finished(_result(result))
    except (ValueError, TypeError, RecursionError) as exc:
        raise ArgumentError(f"a result of type {result.type}: {exc}") from None


def encode_group(group: GroupMeta, note: str = "") -> bytes:
    """The bytes of a group's entry. ``note`` is a store's own word on it, which Go passes over; none is not written."""
    members = "null" if group.task_uuids is None else f"[{','.join(map(_quoted, group.task_uuids))}]"
    text = (
        f'{{"GroupUUID":{_quoted(group.group_uuid)},"TaskUUIDs":{members}'
        f',"ChordTriggered":{_BOOLEANS[group.chord_triggered]},"Lock":{_BOOLEANS[group.lock]}'
        f',"CreatedAt":"{rfc3339.render(group.created_at)}","TTL":{group.ttl}'
        f"{f',{_NOTE}{_quoted(note)}' if note else ''}}}"
    )
    try:
        return _finished(text)
    except UnicodeEncodeError:
        raise ArgumentError(f"group {group.group_uuid!r} contains a lone surrogate") from None


def encode_plan(plan: Plan) -> bytes:
    """The bytes of a plan: one line that begins with ``{"AqIds":[``, its UUIDs, then a line for each signature. Raises
    ``ArgumentError`` as ``encode_signature`` does."""
    try:
        head = f'{{"AqIds":[{",".join(map(_quoted, plan.ids))}]}}'.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"plan {plan.plan_id!r} contains a lone surrogate") from None
    return b"\n".join((head, *map(encode_signature, plan.signatures)))


def decode_plan(plan_id: str, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Plan:
    """The plan in these bytes. Raises ``BadMessage`` and nothing else; ``limits`` hold for each signature."""
    head, *bodies = data.split(b"\n")
    return Plan(plan_id, tuple(decode_signature(body, limits) for body in bodies), _ids_of_plan(plan_id, head))


def decode_signature(body: bytes, limits: Limits = DEFAULT_LIMITS) -> Signature:
    """The signature in a message.

    Raises ``BadMessage`` and nothing else. Its reason is ``too_large`` (found before anything is decoded),
    ``undecodable`` (not JSON, or JSON that no one should take) or ``invalid_signature`` (JSON, but no signature; the
    text names the field).
    """
    if len(body) > limits.max_bytes:
        raise BadMessage("too_large", f"a message of {len(body)} bytes is over the limit of {limits.max_bytes}")
    try:
        signature = _fast(Signature, body, limits)
        if signature is None or _odd_signature(signature) or _may_hold_negative_zero(body):
            signature = _slow(_signature_in, body, limits, "invalid_signature")
    except RecursionError:
        raise BadMessage("undecodable", "nested too deep") from None
    if not signature.name:
        raise BadMessage("invalid_signature", "Name: the name of a task is missing")
    if signature.args and len(signature.args) > limits.max_args:
        raise BadMessage("invalid_signature", _too_many_args(signature, limits))
    if signature.on_success or signature.on_error or signature.chord_callback is not None:
        _check_nested(signature, limits)
    return signature


def decode_state(data: bytes) -> TaskState:
    """The state of a task. Raises ``BadMessage`` and nothing else, with reason ``undecodable`` or ``invalid_state``."""
    try:
        state = _fast(TaskState, data, DEFAULT_LIMITS)
        if state is None or any(_odd(each.value) for each in state.results or ()) or _may_hold_negative_zero(data):
            return _slow(_state_in, data, DEFAULT_LIMITS, "invalid_state")
    except RecursionError:
        raise BadMessage("undecodable", "nested too deep") from None
    return state


def decode_result(data: bytes) -> TaskResult:
    """One result. Raises ``BadMessage`` and nothing else, with reason ``undecodable`` or ``invalid_result``."""
    try:
        result = _fast(TaskResult, data, DEFAULT_LIMITS)
        if result is None or _odd(result.value) or _may_hold_negative_zero(data):
            return _slow(_result_in, data, DEFAULT_LIMITS, "invalid_result")
    except RecursionError:
        raise BadMessage("undecodable", "nested too deep") from None
    return result


def decode_group(data: bytes) -> GroupMeta:
    """A group's entry. Raises ``BadMessage`` and nothing else, with reason ``undecodable`` or ``invalid_group``."""
    try:
        group = _fast(GroupMeta, data, DEFAULT_LIMITS)
        return _slow(_group_in, data, DEFAULT_LIMITS, "invalid_group") if group is None else group
    except RecursionError:
        raise BadMessage("undecodable", "nested too deep") from None


def decode_noted_group(data: bytes) -> tuple[GroupMeta, str]:
    """A group and the note that was written with it, empty where there is none. Raises as ``decode_group`` does."""
    noted = _NOTED.search(data)
    if noted is None:
        return decode_group(data), ""
    try:
        note = json.loads(noted[1])
    except ValueError as exc:
        raise BadMessage("undecodable", f"the note of a group: {exc}") from None
    return decode_group(data[: noted.start()] + b"}"), note


def is_group(data: bytes) -> bool:
    """Whether these are the bytes of a group, where they may as well be a task's state or a plan."""
    return data.startswith(b'{"GroupUUID":')


def ids_of_plan(data: bytes) -> tuple[str, ...]:
    """UUIDs of all that is in a plan; none where the bytes are a task's state or a group. Raises ``BadMessage``."""
    return _ids_of_plan("an entry", data.partition(b"\n")[0]) if data.startswith(b'{"AqIds":[') else ()


def readable_task_id(body: bytes) -> str | None:
    """The task UUID at the very start of a message, where Go and this package write it; None where there is none.

    For messages that ``decode_signature`` refused: whoever waits for such a task can still be told.
    """
    match = _LEADING_UUID.match(body)
    return match[1].decode("ascii") if match else None


_LEADING_UUID = re.compile(rb'\s*\{\s*"UUID"\s*:\s*"([A-Za-z0-9_.:{}/-]{1,200})"')


# — out —

_NOTE = '"AqNote":'
_NOTED = re.compile(rb',"AqNote":("(?:[^"\\]|\\.)*")}$')  # at the end, where only ours can be
_BOOLEANS = {False: "false", True: "true"}
_RARE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SINGLES = frozenset({"float32", "[]float32"})
_ARG_HEADS = {name: f'{{"Name":"","Type":"{name}","Value":' for name in {*TYPE_NAMES, JSON}}
_RESULT_HEADS = {name: f'{{"Type":"{name}","Value":' for name in {*TYPE_NAMES, JSON}}


def _finished(text: str) -> bytes:
    # JSON has these characters inside of strings only, so the text as a whole can be searched
    if "<" in text or ">" in text or "&" in text or "\u2028" in text or "\u2029" in text:
        text = text.translate(_RARE)
    return text.encode()


def _signature(signature: Signature) -> str:
    s = signature
    return (
        f'{{"UUID":{_quoted(s.uuid)},"Name":{_quoted(s.name)},"RoutingKey":{_quoted(s.routing_key)}'
        f',"ETA":{_eta(s.eta)},"GroupUUID":{_quoted(s.group_uuid)},"GroupTaskCount":{s.group_task_count}'
        f',"Args":{_args(s)},"Headers":{_headers(s)},"Priority":{s.priority}'
        f',"Immutable":{_BOOLEANS[s.immutable]},"RetryCount":{s.retry_count},"RetryTimeout":{s.retry_timeout}'
        f',"OnSuccess":{_signatures(s.on_success)},"OnError":{_signatures(s.on_error)}'
        f',"ChordCallback":{"null" if s.chord_callback is None else _signature(s.chord_callback)}'
        f',"BrokerMessageGroupId":{_quoted(s.broker_message_group_id)}'
        f',"SQSReceiptHandle":{_quoted(s.sqs_receipt_handle)}'
        f',"StopTaskDeletionOnError":{_BOOLEANS[s.stop_task_deletion_on_error]}'
        f',"IgnoreWhenTaskNotRegistered":{_BOOLEANS[s.ignore_when_task_not_registered]}}}'
    )


def _signatures(signatures: Sequence[Signature] | None) -> str:
    if signatures is None:
        return "null"
    return f"[{','.join(map(_signature, signatures))}]"


def _eta(eta: int | None) -> str:
    return "null" if eta is None else f'"{rfc3339.render(eta)}"'


def _args(signature: Signature) -> str:
    if signature.args is None:
        return "null"
    written: list[str] = []
    try:
        for arg in signature.args:
            written.append(_arg(arg))  # its length says which one, should one fail
    except (ValueError, TypeError, RecursionError) as exc:
        raise ArgumentError(f"task {signature.name}, argument {len(written) + 1}: {exc}") from None
    return f"[{','.join(written)}]"


def _arg(arg: Arg) -> str:
    head = _ARG_HEADS.get(arg.type) if not arg.name else None
    if head is None:
        head = f'{{"Name":{_quoted(arg.name)},"Type":{_quoted(arg.type)},"Value":'
    return f"{head}{_typed(arg.type, arg.value)}}}"


def _headers(signature: Signature) -> str:
    headers = signature.headers
    if not headers:
        return "null" if headers is None else "{}"
    try:
        return _sorted(headers)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ArgumentError(f"task {signature.name}, headers: {exc}") from None


def _state(state: TaskState) -> tuple[str, str]:
    """What stands before and after the text of ``CreatedAt``."""
    head = (
        f'{{"TaskUUID":{_quoted(state.task_uuid)},"TaskName":{_quoted(state.task_name)},"State":"{state.state}"'
        f',"Results":{_results(state)},"Error":{_quoted(state.error)},"CreatedAt":"'
    )
    attempt = f',"AqAttempt":{state.attempt}' if state.attempt > 0 else ""
    deliveries = f',"AqDeliveries":{state.deliveries}' if state.deliveries > 0 else ""
    return head, f'","TTL":{state.ttl}{attempt}{deliveries}}}'


def _without_surrogates(state: TaskState) -> str:
    """The text before ``CreatedAt``, mended where that changes no value."""
    mended = state.model_copy(
        update={
            "task_name": _SURROGATE.sub("\ufffd", state.task_name),
            "error": _SURROGATE.sub("\ufffd", state.error),
        }
    )
    head, _ = _state(mended)
    if _SURROGATE.search(head):
        raise ArgumentError(f"task {mended.task_name}: {_surrogate_in('result', state.results or ())}")
    return head


def _results(state: TaskState) -> str:
    if state.results is None:
        return "null"
    written: list[str] = []
    try:
        for result in state.results:
            written.append(_result(result))
    except (ValueError, TypeError, RecursionError) as exc:
        raise ArgumentError(f"task {state.task_name or state.task_uuid}, result {len(written) + 1}: {exc}") from None
    return f"[{','.join(written)}]"


def _result(result: TaskResult) -> str:
    head = _RESULT_HEADS.get(result.type) or f'{{"Type":{_quoted(result.type)},"Value":'
    return f"{head}{_typed(result.type, result.value)}}}"


def _typed(name: str, value: Any) -> str:
    kind = type(value)
    if kind is int:
        return _integer(value)
    if kind is str:
        return _quoted(value)
    if name == JSON:
        return _PYTHON.encode(value)
    if name in _SINGLES:
        return _single(value)
    return _plain(value)


def _plain(value: Any) -> str:
    """A value as Go writes it; keys of objects stay as they stand."""
    match value:
        case None:
            return "null"
        case bool():
            return _BOOLEANS[value]
        case str():
            return _quoted(value)
        case NegativeZero():
            return "-0"
        case int():
            return _integer(value)
        case float():
            return _float(value)
        case bytes():
            return f'"{b64encode(value).decode("ascii")}"'
        case list() | tuple():
            return f"[{','.join(map(_plain, value))}]"
        case dict():
            return f"{{{','.join(f'{_quoted(key)}:{_plain(inner)}' for key, inner in value.items())}}}"
        case _:
            raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _sorted(value: Any) -> str:
    """A value as Go writes it from a map: keys sorted at every level."""
    match value:
        case dict():
            return f"{{{','.join(f'{_quoted(key)}:{_sorted(value[key])}' for key in sorted(value))}}}"
        case list() | tuple():
            return f"[{','.join(map(_sorted, value))}]"
        case _:
            return _plain(value)


def _integer(value: int) -> str:
    if not -_LONGEST < value < _LONGEST:
        raise ValueError(f"an integer of {value.bit_length()} bits is too long")
    return int.__repr__(value)


def _float(value: float) -> str:
    """Shortest digits; no point where there is no fraction; an exponent below 1e-6 and from 1e21 on."""
    if not isfinite(value):
        raise ValueError(f"{value} has no form in JSON")
    shortest = float.__repr__(value)
    if "e" not in shortest:
        return shortest.removesuffix(".0")
    return _go_form(shortest, plain=1e-6 <= abs(value) < 1e21)


def _go_form(shortest: str, *, plain: bool) -> str:
    if plain:
        text = format(Decimal(shortest), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = shortest.partition("e")
    sign = "-" if exponent.startswith("-") else "+"
    return f"{mantissa.removesuffix('.0')}e{sign}{exponent.lstrip('+-0')}"


_LONGEST = 10**DEFAULT_LIMITS.max_integer_digits
_FLOAT32 = struct.Struct("<f")
_FLOAT32_LEAST_PLAIN = _FLOAT32.unpack(_FLOAT32.pack(1e-6))[0]  # Go compares as float32


def _single(value: Any) -> str:
    """Floats among a value as Go writes a float32: the fewest digits that give the same float32 again."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_single, value))}]"
    if not isinstance(value, float):
        return _plain(value)
    if not isfinite(value):
        raise ValueError(f"{value} has no form in JSON")
    try:
        packed = _FLOAT32.pack(value)
    except OverflowError:
        raise ValueError(f"{value} is no float32") from None
    exact = _FLOAT32.unpack(packed)[0]
    return _go_form(_shortest_single(exact, packed), plain=exact == 0 or _FLOAT32_LEAST_PLAIN <= abs(exact) < 1e21)


def _shortest_single(exact: float, packed: bytes) -> str:
    # below a power of two the floats lie closer than above it, and Go rounds up there
    roundings = (ROUND_HALF_UP, ROUND_UP) if abs(frexp(exact)[0]) == 0.5 else (ROUND_HALF_EVEN,)
    for digits in range(1, 9):
        for rounding in roundings:
            text = f"{Context(prec=digits, rounding=rounding).create_decimal_from_float(exact):e}"
            if _same_single(text, packed):
                return text
    return f"{exact:.8e}"


def _same_single(text: str, packed: bytes) -> bool:
    try:
        return _FLOAT32.pack(float(text)) == packed
    except OverflowError:
        return False


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


_PYTHON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_foreign)


def _surrogate_in(kind: str, values: Iterable[Arg | TaskResult]) -> str:
    for number, each in enumerate(values, 1):
        try:
            f"{each.type}{_typed(each.type, each.value)}".encode()
        except UnicodeEncodeError:
            return f"a lone surrogate in {kind} {number}"
    return "a lone surrogate in a name, UUID, queue or header"


# — in —

_FAST_DEPTH = 200
_FAST_DIGITS = 20
_NEGATIVE_ZERO = re.compile(rb"-0[\s,\]}]")  # within a string too, which does no harm


def _fast(model: type[M], data: bytes, limits: Limits) -> M | None:
    """The model by pydantic's compiled validator, where it reads as Go does; None where it might not.

    It refuses unknown keys (which may be known ones in another case), null for a plain value, trailing bytes, a depth
    over ``_FAST_DEPTH``; what of this Go takes, the slow way decides. NaN and Infinity are no JSON, but taken.
    """
    if limits.max_depth < _FAST_DEPTH or limits.max_integer_digits < _FAST_DIGITS:
        return None
    if b"NaN" in data or b"Infinity" in data:
        return None
    try:
        return model.__pydantic_validator__.validate_json(  # type: ignore[no-any-return]  # pydantic says Any here
            data, strict=True, by_alias=True, by_name=False, extra="forbid"
        )
    except ValidationError:
        return None


def _odd(value: Any) -> bool:
    """Whether a value off the fast way could be another one to Go: NaN, a number without bounds, a long integer."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return False
    if kind is int:
        return not INT64_MIN <= value <= _UINT64_MAX
    if kind is float:
        return not isfinite(value)
    return any(map(_odd, value if kind is list else value.values()))


_UINT64_MAX = 2**64 - 1


def _odd_signature(signature: Signature) -> bool:
    for arg in signature.args or ():
        if type(arg.value) is not str and _odd(arg.value):
            return True
    if signature.headers and any(map(_odd, signature.headers.values())):
        return True
    if signature.chord_callback is not None and _odd_signature(signature.chord_callback):
        return True
    if signature.on_success and any(map(_odd_signature, signature.on_success)):
        return True
    return bool(signature.on_error) and any(map(_odd_signature, signature.on_error or ()))


def _ids_of_plan(name: str, head: bytes) -> tuple[str, ...]:
    try:
        ids = json.loads(head)["AqIds"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BadMessage("undecodable", f"{name} is no plan: {exc}") from None
    if not isinstance(ids, list) or not all(isinstance(one, str) and not _SURROGATE.search(one) for one in ids):
        raise BadMessage("undecodable", f"{name} is no plan: AqIds is no list of UUIDs")
    return tuple(ids)


def _may_hold_negative_zero(data: bytes) -> bool:
    return b"-0" in data and _NEGATIVE_ZERO.search(data) is not None


def _check_nested(signature: Signature, limits: Limits) -> None:
    count = 1
    waiting = [(signature, "", 0)]
    while waiting:
        outer, path, depth = waiting.pop()
        for field, inner in _callbacks(outer):
            where = f"{path}.{field}" if path else field
            count += 1
            if depth == limits.max_callback_depth:
                raise BadMessage("invalid_signature", f"callbacks nest deeper than {limits.max_callback_depth}")
            if count > limits.max_signatures:
                raise BadMessage("invalid_signature", f"more than {limits.max_signatures} signatures in one message")
            if not inner.name:
                raise BadMessage("invalid_signature", f"{where}.Name: the name of a task is missing")
            if inner.args and len(inner.args) > limits.max_args:
                raise BadMessage("invalid_signature", f"{where}.{_too_many_args(inner, limits)}")
            waiting.append((inner, where, depth + 1))


def _callbacks(signature: Signature) -> Iterator[tuple[str, Signature]]:
    for index, each in enumerate(signature.on_success or ()):
        yield f"OnSuccess[{index}]", each
    for index, each in enumerate(signature.on_error or ()):
        yield f"OnError[{index}]", each
    if signature.chord_callback is not None:
        yield "ChordCallback", signature.chord_callback


def _too_many_args(signature: Signature, limits: Limits) -> str:
    return f"Args: {len(signature.args or ())} arguments, over the limit of {limits.max_args}"


# — in, the slow way: every rule of Go's decoder —


class _Pairs(list[tuple[str, Any]]):
    """An object of the JSON as it stands: order and repeated keys are kept."""


class _Misfit(Exception):
    """A value that a field does not take; the path to it grows on the way up."""

    def __init__(self, value: Any, expected: str) -> None:
        shown = "an object" if isinstance(value, _Pairs) else "a list" if isinstance(value, list) else repr(value)
        super().__init__(f"{shown if len(shown) <= 80 else shown[:79] + '…'} is not {expected}")
        self.path = ""

    def under(self, step: str) -> _Misfit:
        self.path = f"{step}{'.' if self.path and not self.path.startswith('[') else ''}{self.path}"
        return self


def _slow(read: Callable[[Any], M], data: bytes, limits: Limits, reason: str) -> M:
    try:
        return read(_parsed(data, limits))
    except _Misfit as misfit:
        raise BadMessage(reason, f"{misfit.path}: {misfit}" if misfit.path else str(misfit)) from None


def _parsed(data: bytes, limits: Limits) -> Any:
    """The first JSON value in ``data``; what follows it is ignored, as Go does."""
    text = data.decode("utf-8", "surrogateescape")  # bad bytes after the value are no harm: they become surrogates
    try:
        value, _ = _decoder(limits.max_integer_digits).raw_decode(text, _SPACE.match(text).end())  # type: ignore[union-attr]  # it matches nothing, too
    except ValueError as exc:
        raise BadMessage("undecodable", f"not JSON: {exc}") from None
    _check_json(value, limits)
    return value


_SPACE = re.compile(r"[ \t\r\n]*")


@lru_cache(maxsize=8)
def _decoder(max_integer_digits: int) -> json.JSONDecoder:
    def integer(literal: str) -> int:
        if literal == "-0":
            return NegativeZero()
        if len(literal) > max_integer_digits + literal.startswith("-"):
            raise ValueError(f"an integer of {len(literal)} digits")
        return int(literal)

    def number(literal: str) -> float:
        value = float(literal)
        if not isfinite(value):
            raise ValueError(f"{literal[:40]} is out of the range of numbers")
        return value

    def constant(literal: str) -> float:
        raise ValueError(f"{literal} is no JSON")

    return json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=integer, parse_float=number, parse_constant=constant)


def _check_json(value: Any, limits: Limits) -> None:
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, str):
            if _SURROGATE.search(each):
                raise BadMessage("undecodable", "not UTF-8, or a lone surrogate")
        elif isinstance(each, list):
            if depth > limits.max_depth:
                raise BadMessage("undecodable", f"nested deeper than {limits.max_depth}")
            if isinstance(each, _Pairs):
                waiting.extend((part, depth + 1) for pair in each for part in pair)
            else:
                waiting.extend((element, depth + 1) for element in each)


def _text_in(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _Misfit(value, "text")


def _flag_in(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Misfit(value, "true or false")


def _integer_in(low: int, high: int) -> Callable[[Any], int]:
    def integer(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _Misfit(value, f"an integer from {low} to {high}")
        return int(value)

    return integer


def _priority_in(value: Any) -> int:
    if isinstance(value, NegativeZero):  # an unsigned number has no sign, says Go
        raise _Misfit(value, f"an integer from 0 to {MAX_PRIORITY}")
    return _integer_in(0, MAX_PRIORITY)(value)


def _moment_in(value: Any) -> int:
    try:
        return rfc3339.parse(_text_in(value))
    except ValueError:
        raise _Misfit(value, "a time of the years 1 to 9999 in RFC 3339 with a zone") from None


def _state_name_in(value: Any) -> State:
    try:
        return State(value)
    except (ValueError, TypeError):
        raise _Misfit(value, f"one of {', '.join(State)}") from None


def _headers_in(value: Any) -> dict[str, Any]:
    if isinstance(value, _Pairs):
        return {key: _value_in(inner) for key, inner in value}
    raise _Misfit(value, "an object")


def _value_in(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _value_in(inner) for key, inner in value}
    if isinstance(value, list):
        return [_value_in(element) for element in value]
    return value


def _list_in(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def elements(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or isinstance(value, _Pairs):
            raise _Misfit(value, "a list")
        taken: list[Any] = []
        try:
            for element in value:
                taken.append(read(element))  # its length is the index, should one fail
        except _Misfit as misfit:
            raise misfit.under(f"[{len(taken)}]") from None
        return tuple(taken)

    return elements


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: its name in the model, how it is read, and whether null means None. To Go, null for a plain value
    means "leave it as it is"."""

    name: str
    read: Callable[[Any], Any]
    nullable: bool = False


def _fields_in(value: Any, fields: Mapping[str, _Field], folded: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(value, _Pairs):
        raise _Misfit(value, "an object")
    taken: dict[str, Any] = {}
    for key, inner in value:
        known = key if key in fields else folded.get(_folded(key))
        if known is None:
            continue
        field = fields[known]
        if inner is not None:
            try:
                taken[field.name] = field.read(inner)
            except _Misfit as misfit:
                raise misfit.under(known) from None
        elif field.nullable:
            taken[field.name] = None
    return taken


def _folded(key: str) -> str:
    # Go's folding: the long s and the Kelvin sign count as letters
    return key.lower().replace("\u017f", "s")


def _reader(model: type[M], fields: Mapping[str, _Field]) -> Callable[[Any], M]:
    folded = {_folded(key): key for key in fields}
    return lambda value: model.model_construct(**_fields_in(value, fields, folded))


def _arg_in(value: Any) -> Arg:
    return Arg.model_construct() if value is None else _arg_object_in(value)


def _text_or_empty_in(value: Any) -> str:
    return "" if value is None else _text_in(value)


def _result_in(value: Any) -> TaskResult:
    if value is None:
        raise _Misfit(value, "an object")
    return _result_object_in(value)


_count_in = _integer_in(0, INT64_MAX)
_int64_in = _integer_in(INT64_MIN, INT64_MAX)

_arg_object_in = _reader(
    Arg,
    {
        "Name": _Field("name", _text_in),
        "Type": _Field("type", _text_in),
        "Value": _Field("value", _value_in, nullable=True),
    },
)
_result_object_in = _reader(
    TaskResult, {"Type": _Field("type", _text_in), "Value": _Field("value", _value_in, nullable=True)}
)


def _signature_in(value: Any) -> Signature:
    return _signature_object_in(value)


_signature_object_in = _reader(
    Signature,
    {
        "UUID": _Field("uuid", _text_in),
        "Name": _Field("name", _text_in),
        "RoutingKey": _Field("routing_key", _text_in),
        "ETA": _Field("eta", _moment_in, nullable=True),
        "GroupUUID": _Field("group_uuid", _text_in),
        "GroupTaskCount": _Field("group_task_count", _count_in),
        "Args": _Field("args", _list_in(_arg_in), nullable=True),
        "Headers": _Field("headers", _headers_in, nullable=True),
        "Priority": _Field("priority", _priority_in),
        "Immutable": _Field("immutable", _flag_in),
        "RetryCount": _Field("retry_count", _int64_in),
        "RetryTimeout": _Field("retry_timeout", _int64_in),
        "OnSuccess": _Field("on_success", _list_in(_signature_in), nullable=True),
        "OnError": _Field("on_error", _list_in(_signature_in), nullable=True),
        "ChordCallback": _Field("chord_callback", _signature_in, nullable=True),
        "BrokerMessageGroupId": _Field("broker_message_group_id", _text_in),
        "SQSReceiptHandle": _Field("sqs_receipt_handle", _text_in),
        "StopTaskDeletionOnError": _Field("stop_task_deletion_on_error", _flag_in),
        "IgnoreWhenTaskNotRegistered": _Field("ignore_when_task_not_registered", _flag_in),
    },
)
_state_in = _reader(
    TaskState,
    {
        "TaskUUID": _Field("task_uuid", _text_in),
        "TaskName": _Field("task_name", _text_in),
        "State": _Field("state", _state_name_in),
        "Results": _Field("results", _list_in(_result_in), nullable=True),
        "Error": _Field("error", _text_in),
        "CreatedAt": _Field("created_at", _moment_in),
        "TTL": _Field("ttl", _int64_in),
        "AqAttempt": _Field("attempt", _count_in),
        "AqDeliveries": _Field("deliveries", _count_in),
    },
)
_group_in = _reader(
    GroupMeta,
    {
        "GroupUUID": _Field("group_uuid", _text_in),
        "TaskUUIDs": _Field("task_uuids", _list_in(_text_or_empty_in), nullable=True),
        "ChordTriggered": _Field("chord_triggered", _flag_in),
        "Lock": _Field("lock", _flag_in),
        "CreatedAt": _Field("created_at", _moment_in),
        "TTL": _Field("ttl", _int64_in),
    },
)
