"""What stands on a RabbitMQ server, by name: Machinery's exchange and queues, and queues that delay.

Pure: which declarations a queue or a delay needs, and where a message is published. Machinery declares the same, so
that its publishers and workers share all of it; what is ours alone has names of its own.

A delay of ten seconds to a minute waits in a queue of Machinery's form, ``delay.<ms>.<exchange>.<key>``, for whole
seconds: at most 51 for each key, and they delete themselves. Any other is written in digits to the base of 16, one
for each level, and passes a queue for each digit that is not 0: ``<exchange>.delay.<seconds>``. These few serve all
keys, and stay: the digits and the name of the queue travel in the routing key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHORT = range(10, 61)
"""The delays (seconds) that wait in a queue of Machinery's form. It is gone after twice its delay without use: that of
a shorter one might be gone before a slow server, or a slow sender, has put the message into it."""

BASE = 16
LEVELS = 6
MAX_DELAY = 5 * BASE ** (LEVELS - 1) - 1
"""The longest delay (whole seconds), about 60 days: a server lets no message wait longer than 49 days in one queue."""

_NO_LIMIT = 2**31 - 1
_BACK_AFTER = 2
_UNUSED = 60

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str

    @property
    def key(self) -> tuple[str, ...]:
        """What it is known by."""
        return ("exchange", self.name)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue. ``expires_in`` is after how long without use (seconds) it deletes itself."""

    name: str
    arguments: Arguments = field(default_factory=dict)
    auto_delete: bool = False
    expires_in: float = math.inf

    @property
    def key(self) -> tuple[str, ...]:
        """What it is known by."""
        return ("queue", self.name)


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue, or to another exchange."""

    source: str
    target: str
    routing_key: str
    arguments: Arguments = field(default_factory=dict)
    to_exchange: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """What it is known by."""
        return ("binding", self.source, self.target, self.routing_key)


Declaration = Exchange | Queue | Binding


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message is published, and what has to stand there before. ``expiration`` is the message's own (ms)."""

    exchange: str
    routing_key: str
    needs: tuple[Declaration, ...]
    expiration: int | None = None

    @property
    def expires_in(self) -> float:
        """After how long without use (seconds) a queue on the way deletes itself."""
        return min((each.expires_in for each in self.needs if isinstance(each, Queue)), default=math.inf)


@dataclass(frozen=True, slots=True)
class Topology:
    """Machinery's settings for AMQP, and what follows from them.

    The default queue is bound by ``binding_key``, and both names mean it. Every other queue is bound by its own name,
    for whatever type the exchange is of. With an empty ``exchange`` the server's own is used, which knows each queue
    by its name.
    """

    exchange: str = "machinery_exchange"
    exchange_type: str = "direct"
    default_queue: str = "machinery_tasks"
    binding_key: str = "machinery_task"
    queue_arguments: Arguments = field(default_factory=dict)
    binding_arguments: Arguments = field(default_factory=dict)
    auto_delete: bool = False
    delayed_queue: str = ""

    @property
    def is_quorum(self) -> bool:
        """Whether queues are quorum queues, which count deliveries."""
        return self.queue_arguments.get("x-queue-type") == "quorum"

    def name(self, queue: str) -> str:
        """What the queue is called on the server."""
        is_default = bool(self.exchange) and queue in (self.default_queue, self.binding_key)
        return self.default_queue if is_default else queue

    def route(self, queue: str) -> Route:
        """To a queue, at once."""
        name = self.name(queue)
        needs: tuple[Declaration, ...] = (Queue(name, self.queue_arguments),)
        if not self.exchange:
            return Route("", name, needs)
        is_default = name == self.default_queue
        bound_by = self.binding_key if is_default else name
        # Machinery's publisher: with a direct exchange by the binding key, with any other by the queue's name
        routing_key = self.binding_key if is_default and self.exchange_type == "direct" else name
        exchange = Exchange(self.exchange, self.exchange_type)
        needs = (exchange, *needs, Binding(self.exchange, name, bound_by, self.binding_arguments))
        return Route(self.exchange, routing_key, needs)

    def delayed(self, queue: str, delay: float) -> Route:
        """To a queue, after ``delay`` seconds, rounded up to whole ones. Raises ``ValueError`` for one too long."""
        seconds = math.ceil(delay)
        if seconds > MAX_DELAY:
            raise ValueError(f"{seconds} s is longer than {MAX_DELAY} s")
        direct = self.route(queue)
        if seconds <= 0:
            return direct
        if self.delayed_queue and self.name(queue) == self.default_queue:
            return self._through(self.delayed_queue, direct, {}, expiration=math.ceil(delay * 1000))
        if seconds in SHORT:
            milliseconds = seconds * 1000
            name = f"delay.{milliseconds}.{self.exchange}.{direct.routing_key}"
            times = {"x-message-ttl": milliseconds, "x-expires": 2 * milliseconds}
            return self._through(name, direct, times, expires_in=2.0 * seconds)
        return self._along_levels(self.name(queue), direct, digits(seconds))

    def dead_letter(self, queue: str) -> Route:
        """To the dead letter of a queue, which is as safe as the queue itself."""
        name = f"{queue}.dead"
        # to look at a message of a quorum queue counts as a delivery, of which servers allow 20 by default
        kept = {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}
        return Route("", name, (Queue(name, kept if self.is_quorum else {}),))

    def held_anew(self, queue: str, owner: str) -> Route:
        """To a queue of one channel, for a message that is held for long and is to be kept. When the channel is gone,
        what it has not settled goes back to where it came from, and then the queue goes."""
        name, direct = self.name(queue), self.route(queue)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-message-ttl": _BACK_AFTER * 1000}
        # a classic queue knows no better way to hand on than once
        surely = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        kind = {"x-queue-type": "quorum", **surely} if self.is_quorum else {}
        mine = Queue(f"{name}.held.{owner}", kind | back | {"x-expires": _UNUSED * 1000}, expires_in=_UNUSED)
        return Route("", mine.name, (*direct.needs, mine))

    def _through(
        self, name: str, direct: Route, times: Arguments, *, expires_in: float = math.inf, expiration: int | None = None
    ) -> Route:
        """By way of one queue that hands on to where the message is to go."""
        to = {"x-dead-letter-exchange": direct.exchange, "x-dead-letter-routing-key": direct.routing_key}
        waiting = Queue(name, to | dict(times), self.auto_delete, expires_in)
        if not self.exchange:
            return Route("", name, (*direct.needs, waiting), expiration)
        binding = Binding(self.exchange, name, name, self.binding_arguments)
        return Route(self.exchange, name, (*direct.needs, waiting, binding), expiration)

    def _along_levels(self, name: str, direct: Route, values: tuple[int, ...]) -> Route:
        """By way of a queue for each digit, from the highest level to the lowest."""
        arrived = self._level(-1)
        needs: list[Declaration] = [*direct.needs, Exchange(arrived, "topic")]
        needs.append(Binding(arrived, name, ".".join(["*"] * LEVELS + [name])))
        for level in range(LEVELS):
            source, below = self._level(level), self._level(level - 1)
            place = ["*"] * (LEVELS - 1 - level)
            needs.append(Exchange(source, "topic"))
            needs.append(Binding(source, below, ".".join([*place, "0", "#"]), to_exchange=True))
            if digit := values[level]:
                seconds = digit * BASE**level
                waiting = f"{self._prefix}.delay.{seconds}"
                needs.append(Queue(waiting, {"x-dead-letter-exchange": below, "x-message-ttl": seconds * 1000}))
                needs.append(Binding(source, waiting, ".".join([*place, str(digit), "#"])))
        words = [str(digit) for digit in reversed(values)]
        return Route(self._level(LEVELS - 1), ".".join([*words, name]), tuple(needs))

    def _level(self, level: int) -> str:
        return f"{self._prefix}.delays.{level}" if level >= 0 else f"{self._prefix}.delays.over"

    @property
    def _prefix(self) -> str:
        return self.exchange or "asyncqueue"


def digits(seconds: int) -> tuple[int, ...]:
    """``seconds`` to the base of 16, the lowest digit first, one for each level; the highest may not pass 4."""
    return tuple(seconds // BASE**level % BASE for level in range(LEVELS))
