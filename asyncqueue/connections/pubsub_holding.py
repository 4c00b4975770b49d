"""What is held of Pub/Sub, and until when: the service itself says nothing of a lease that ended.

It takes an acknowledgement or a longer deadline for what others have by now, and answers that all is well; only an
exactly-once subscription tells. So whoever takes a message remembers when its time is over. An instance and its twins
share what they remember, each in a thread of its own.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from asyncqueue.clock import Clock
from asyncqueue.connections.pubsub import Received


@dataclass(frozen=True, slots=True)
class Receipt:
    """One showing to one holder. The service may give the same ack id again: hence the number."""

    subscription: str
    ack_id: str
    holder: str
    number: int


@dataclass(frozen=True, slots=True)
class Held:
    """A message that is ours until ``ends_at``, and is not to be kept beyond ``longest_at`` (monotonic seconds)."""

    attributes: Mapping[str, str]
    ordering_key: str
    ends_at: float
    longest_at: float


class Holding:
    """What an instance and its twins hold. ``longest`` is for how long (seconds) in all; 0: without end."""

    def __init__(self, clock: Clock, longest: float) -> None:
        self._clock = clock
        self._longest = longest or math.inf
        self._name = secrets.token_hex(8)
        self._held: dict[Receipt, Held] = {}
        self._number = 0
        self._lock = threading.Lock()

    def take(self, subscription: str, message: Received, ends_at: float) -> Receipt:
        """This was shown to us."""
        longest_at = self._clock.monotonic() + self._longest
        held = Held(message.attributes, message.ordering_key, ends_at, longest_at)
        with self._lock:
            self._number += 1
            receipt = Receipt(subscription, message.ack_id, self._name, self._number)
            self._held[receipt] = held
        return receipt

    def of(self, receipt: Hashable, *, left: float = 0.0) -> Held | None:
        """What is still ours by this receipt, for more than ``left`` seconds; None: nothing. What another took, who
        shares nothing with us, may be ours as far as we know."""
        if not isinstance(receipt, Receipt):
            return None
        if receipt.holder != self._name:
            return _ANOTHERS
        with self._lock:
            held = self._held.get(receipt)
        return held if held is not None and held.ends_at - left > self._clock.monotonic() else None

    def extend(self, receipt: Hashable, ends_at: float) -> None:
        """It is ours for longer now, unless it was let go meanwhile."""
        with self._lock:
            if isinstance(receipt, Receipt) and (held := self._held.get(receipt)) is not None:
                self._held[receipt] = replace(held, ends_at=ends_at)

    def let_go(self, receipt: Hashable) -> None:
        """It is not ours any more."""
        with self._lock:
            if isinstance(receipt, Receipt):
                self._held.pop(receipt, None)


_ANOTHERS = Held({}, "", math.inf, math.inf)
