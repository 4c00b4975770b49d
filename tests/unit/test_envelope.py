"""Facts about a dead message survive as named texts, and bytes survive as text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncqueue.connections.envelope import NAMES, Envelope, body_of, text_of

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn")), max_size=50)
ENVELOPES = st.builds(
    Envelope,
    queue=TEXTS.filter(bool),
    reason=TEXTS,
    error=TEXTS,
    attempt=st.integers(0, 999_999_999),
    buried_at=st.integers(0, 10**15).map(lambda micros: micros / 1e6),
)


@given(ENVELOPES)
def test_what_was_written_is_read(envelope: Envelope) -> None:
    written = envelope.attributes()
    assert written.keys() <= set(NAMES)
    assert all(written.values())
    assert Envelope.read(written, "another") == envelope


@given(ENVELOPES, st.integers(32, 60))
def test_where_texts_are_short_long_ones_are_written_in_pieces(envelope: Envelope, longest: int) -> None:
    long = replace(envelope, error=envelope.error * 3)
    written = long.attributes(longest=longest)
    assert all(0 < len(piece.encode()) <= longest for piece in written.values())
    assert Envelope.read(written, "another") == long


@pytest.mark.parametrize(
    "attributes", [{}, {"aq-attempt": "many", "aq-buried-at": "once"}, {"aq-attempt": "-1", "aq-buried-at": "inf"}]
)
def test_an_entry_that_somebody_else_put_there_is_read_too(attributes: dict[str, str]) -> None:
    assert Envelope.read(attributes, "queue") == Envelope("queue", "", "", 0, 0.0)


def test_what_no_service_takes_is_replaced() -> None:
    written = Envelope("queue", "reason", "a\x00b\ud800c\td", 1, 0.0).attributes()
    assert written["aq-error"] == "a\ufffdb\ufffdc\td"


@given(st.binary() | st.text().map(str.encode))
def test_bytes_come_back_from_their_text(body: bytes) -> None:
    text, is_plain = text_of(body)
    assert text
    assert body_of(text, is_base64=not is_plain) == body


def test_a_text_that_only_claims_to_be_base64_is_taken_as_it_is() -> None:
    assert body_of("not base64!", is_base64=True) == b"not base64!"
