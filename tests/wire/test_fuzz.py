"""Whatever bytes come in: a model or ``BadMessage``, and the fast way never differs from the exact one."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncqueue import wire
from asyncqueue.errors import BadMessage
from asyncqueue.signature import Arg, Signature
from asyncqueue.wire import Limits

KEYS = (*json.loads(wire.encode_signature(Signature())), "Type", "Value", "uuid", "nAME", "x", "TaskUUID")
GENEROUS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=8).map(lambda fields: {"Name": "n", **fields})
int64s = st.integers(-(2**63), 2**63 - 1)


def signatures(callbacks: Any) -> Any:
    return st.builds(
        Signature,
        uuid=texts,
        name=texts.filter(bool),
        routing_key=texts,
        eta=st.none() | st.integers(0, 2**62),
        group_task_count=st.integers(0, 2**63 - 1),
        args=st.none() | st.lists(st.builds(Arg, name=texts, type=texts, value=values), max_size=3),
        headers=st.none() | st.dictionaries(texts, values, max_size=3),
        priority=st.integers(0, 255),
        immutable=st.booleans(),
        retry_count=int64s,
        retry_timeout=int64s,
        on_success=callbacks,
        chord_callback=st.none(),
    )


some_signatures = signatures(st.none() | st.lists(signatures(st.none()), max_size=2))


def _all_decoders(body: bytes) -> None:
    for decode in (wire.decode_signature, wire.decode_state, wire.decode_group):
        with suppress(BadMessage):
            decode(body)
    wire.readable_task_id(body)


@GENEROUS
@given(st.binary())
def test_any_bytes_are_a_model_or_a_bad_message(body: bytes) -> None:
    _all_decoders(body)


@GENEROUS
@given(objects, st.integers(0, 400), st.binary(max_size=2))
def test_any_damaged_message_is_a_model_or_a_bad_message(message: Any, place: int, damage: bytes) -> None:
    body = json.dumps(message).encode()
    _all_decoders(body)
    _all_decoders(body[:place] + damage + body[place + 1 :])


@GENEROUS
@given(objects)
def test_the_fast_way_reads_what_the_exact_way_reads(message: Any) -> None:
    body = json.dumps(message, ensure_ascii=False).encode()
    assert _outcome(body, wire.DEFAULT_LIMITS) == _outcome(body, Limits(max_depth=199))  # too shallow for the fast way


def _outcome(body: bytes, limits: Limits) -> Signature | tuple[str, str]:
    try:
        return wire.decode_signature(body, limits)
    except BadMessage as exc:
        return exc.reason, str(exc)


@GENEROUS
@given(some_signatures)
def test_what_was_read_is_written_again_as_it_stood(signature: Signature) -> None:
    body = wire.encode_signature(signature)
    assert wire.encode_signature(wire.decode_signature(body)) == body
