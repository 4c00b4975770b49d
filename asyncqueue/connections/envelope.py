"""What goes with a message into a dead letter: why, when, from where; and bytes as text, for services without bytes.

For services whose messages carry named texts beside their body. The names and their meaning are the same on all of
them, and what somebody else put into a dead letter, without any of it, can be read too.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from asyncqueue.brokers.base import Dead

ATTEMPT = "aq-attempt"
"""How often it was shown."""

BASE64 = "aq-base64"
"""Is there where the body was no text."""

QUEUE, REASON, ERROR, BURIED_AT = "aq-queue", "aq-reason", "aq-error", "aq-buried-at"

NAMES = (ATTEMPT, BASE64, QUEUE, REASON, ERROR, BURIED_AT)
"""All of them, for services that want to be asked by name. A long error goes on in ``aq-error-2``, and so on, where a
text may not be as long as it likes."""

_MOMENT = re.compile(r"[0-9]{1,11}(\.[0-9]{1,6})?")
_NO_TEXT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The facts about an entry of a dead letter; ``buried_at`` is unix seconds."""

    queue: str
    reason: str
    error: str
    attempt: int
    buried_at: float

    def attributes(self, *, longest: int | None = None) -> dict[str, str]:
        """As named texts, none of them empty or longer than ``longest`` bytes in UTF-8 (at least 32)."""
        texts = {
            QUEUE: self.queue,
            REASON: self.reason,
            ATTEMPT: str(self.attempt),
            BURIED_AT: f"{self.buried_at:.6f}",
            ERROR: self.error,
        }
        safe = {name: as_text(text) for name, text in texts.items() if text}
        if longest is None:
            return safe
        return {
            name if number == 1 else f"{name}-{number}": piece
            for name, text in safe.items()
            for number, piece in enumerate(_pieces(text, longest), 1)
        }

    @classmethod
    def read(cls, attributes: Mapping[str, str], queue: str) -> Envelope:
        """The facts in what ``attributes`` wrote; ``queue`` is the one whose dead letter it is."""
        moment = attributes.get(BURIED_AT, "")
        return cls(
            queue=_joined(attributes, QUEUE) or queue,
            reason=_joined(attributes, REASON),
            error=_joined(attributes, ERROR),
            attempt=count(attributes.get(ATTEMPT, "")),
            buried_at=float(moment) if _MOMENT.fullmatch(moment) else 0.0,  # that of somebody else may be anything
        )

    def entry(self, id: str, body: bytes) -> Dead:
        """The entry with this body."""
        return Dead(id, self.queue, body, self.reason, self.error, self.attempt, self.buried_at)


def count(text: str) -> int:
    """The number in an attribute; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def as_text(text: str) -> str:
    """The text without what no service takes: control characters and halves of characters."""
    return _NO_TEXT.sub("\ufffd", text)


def text_of(body: bytes) -> tuple[str, bool]:
    """A body as text that is never empty, and whether that is the body itself: else it is base64."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and not _NO_TEXT.search(text):
        return text, True
    return base64.b64encode(body).decode() or "=", False


def body_of(text: str, *, is_base64: bool) -> bytes:
    """The body that ``text_of`` made this text of."""
    if is_base64:
        with suppress(binascii.Error, ValueError):  # somebody else's attribute, then
            return b"" if text == "=" else base64.b64decode(text, validate=True)
    return text.encode()


def _pieces(text: str, longest: int) -> Iterator[str]:
    """The text in parts of at most so many bytes, none of which ends within a character."""
    data = text.encode()
    while data:
        piece = data[:longest].decode(errors="ignore")
        yield piece
        data = data[len(piece.encode()) :]


def _joined(attributes: Mapping[str, str], name: str) -> str:
    text, number = attributes.get(name, ""), 2
    while more := attributes.get(f"{name}-{number}"):
        text, number = text + more, number + 1
    return text
