"""The contract of a broker: at-least-once delivery of bytes.

A driver is one round trip per verb: it does not retry, batch, log, sleep or decide. Every sentence of these
docstrings has a test in ``asyncqueue.testing``: ``broker_contract``, ``inspector_contract``, ``joint_contract`` and
``joint_group_contract``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from asyncqueue.backends.base import Member, Progress
from asyncqueue.signature import Plan
from asyncqueue.state import GroupMeta, TaskState


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes on their way to a queue.

    ``id`` is the task's UUID. ``not_before`` is unix seconds, or None for now. ``priority`` is 0 to 255, higher
    first where the service knows priorities. ``ordering_key`` asks for order among equal keys where the service has
    it. ``token`` names this publication: a publish that is repeated because its reply was lost carries the same one.
    """

    body: bytes
    queue: str
    id: str
    not_before: float | None = None
    priority: int = 0
    ordering_key: str | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One showing of one message.

    ``receipt`` is the driver's own word for this showing: no two showings have the same one, and it works through
    another instance of the driver too. ``attempt`` is 1 at the first showing and grows by one each time a lease ends
    without ack or nack, as far as the service counts: where it does not, it is 1 at the first showing and more than 1
    at any later one, or 0 where the service does not tell these apart either.
    """

    body: bytes
    queue: str
    receipt: Hashable
    attempt: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a broker, never behaviour.

    ``lease`` is how long (seconds) a delivery stays ours without ``extend``; None: until this process ends.
    ``max_delay`` is the longest ``not_before`` ahead of now (seconds) that one publish or nack can ask for.
    ``max_batch`` is the most messages or deliveries that one verb takes. ``ordered``: messages of a queue come in the
    order they were published while nothing fails. ``counts_deliveries``: ``Delivery.attempt`` can be relied on.
    ``priorities``: of what is ready, a higher ``Message.priority`` comes first. ``refused`` are those verbs of
    ``Inspector`` that are always ``Refused``, since the service cannot show that.
    """

    lease: float | None
    max_delay: float
    max_batch: int
    ordered: bool
    counts_deliveries: bool
    priorities: bool = False
    refused: frozenset[str] = frozenset()


class Broker(Protocol):
    """At-least-once delivery of bytes; every verb is a batch and one round trip.

    Every verb raises ``Unavailable`` when the service did not answer (trying again may help) and ``Refused`` when it
    said no. An instance belongs to one event loop.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Facts about this broker; known before ``open``."""

    @property
    def address(self) -> str:
        """Where it is, for people: host, port or file. Never a password."""

    async def open(self) -> None:
        """Reach the service. Twice is no harm."""

    async def close(self) -> None:
        """Give back what is held, unrun, and let go of the service. Twice is no harm."""

    def twin(self) -> Self:
        """A second instance, not yet open, for another thread and loop; receipts of the one work with the other.

        Closing a twin gives nothing back that it did not fetch itself.
        """

    async def identity(self) -> Hashable:
        """Which store this is: equal for a broker and a backend exactly when both live in one store that can change
        both in one atomic step."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Hand messages over; returns when the service has them all.

        They are shown in the order given, none before its ``not_before``. Repeating a publish with the same tokens
        adds no second copy, where the service can know that.
        """

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        """Take up to ``limit`` messages, waiting up to ``wait`` seconds for the first; empty when there was none.

        What was taken is ours alone until its lease ends. A fetch whose reply was lost loses nothing: a later fetch
        of this instance returns those messages, or their lease ends. The engine never cancels a fetch; a driver that
        is cancelled all the same may keep what it took until the lease ends.
        """

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are done: they are never shown again. Twice, or after the lease ended, is no error and no harm; a late
        ack never takes away another's delivery of the same message."""

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        """Give these back, not before ``delay`` seconds from now; without a delay they are next, in the order given, or
        in that of the queue where the service keeps their places.

        A showing that was given back does not count in ``attempt``, where the service lets us. What is no longer
        ours is left alone.
        """

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Start the lease of these anew; returns those that are no longer ours."""

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        """Move these to the dead letter ``<queue>.dead`` with reason, error text, attempt and raw bytes, and ack them,
        in one step. What is no longer ours is left alone."""


@runtime_checkable
class Tended(Protocol):
    """A broker that needs somebody to look after it: move due messages, take over from the dead."""

    async def tend(self, queues: Sequence[str]) -> float:
        """Do what is due for these queues (any process may, any number at once); returns in how many seconds to come
        back, at most a few."""


@runtime_checkable
class Polling(Protocol):
    """A broker that polls, in periods (seconds) that may be changed while it is open."""

    normal_poll: float
    delayed_poll: float


@runtime_checkable
class Reconnecting(Protocol):
    """A broker, backend or lock that can be told, while it is open, how to connect from now on."""

    def connect_with(self, url: str, **options: Any) -> None:
        """Make the connections from now on with this URL, which leads to the same place with other credentials, and
        with these options of the constructor, those of the twins too. What is open stays as it is. Raises
        ``ConfigError``."""


@dataclass(frozen=True, slots=True)
class Dead:
    """One entry of a dead letter. ``buried_at`` is unix seconds."""

    id: str
    queue: str
    body: bytes
    reason: str
    error: str
    attempt: int
    buried_at: float


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages of a queue are ready, held by workers, delayed, and in its dead letter.

    None is what the service does not tell.
    """

    queue: str
    ready: int | None
    held: int | None
    delayed: int | None
    dead: int | None

    @property
    def pending(self) -> int:
        """How many are not done with: ready, held or delayed, as far as the service tells."""
        return (self.ready or 0) + (self.held or 0) + (self.delayed or 0)


@runtime_checkable
class Inspector(Protocol):
    """Looking at a broker, for the CLI and dashboards. Nothing here takes a message from a worker.

    What a service cannot show is ``Refused``, in words; ``Capabilities.refused`` says which verbs those are.
    """

    async def queues(self) -> Sequence[str]:
        """The queues that this broker can see, sorted; a dead letter is not one of them."""

    async def depth(self, queue: str) -> QueueDepth:
        """How much is in a queue."""

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        """Bodies of ready messages, next first."""

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        """Bodies of messages that are not due yet, of all queues, with their due time (unix seconds), soonest first."""

    async def purge(self, queue: str) -> int:
        """Drop what is ready in a queue; returns how many. What workers hold or what is delayed stays."""

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        """Entries of a queue's dead letter, oldest first."""

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        """Put dead entries back at the end of their queue as new messages (``attempt`` 1 again); returns how many.
        An entry is moved in one step."""

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        """Drop dead entries for good; returns how many."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is done."""


@dataclass(frozen=True, slots=True)
class Nack:
    """The message goes back, to be shown again after ``delay`` seconds."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Bury:
    """The message goes to the dead letter."""

    reason: str
    error: str


Verdict = Ack | Nack | Bury


@dataclass(frozen=True, slots=True)
class GroupEnd:
    """What follows when a group is over: done once, by whoever comes first, if it is not triggered yet.

    ``ended`` are the final states of tasks that will never run. ``pending`` are the PENDING states of what is
    published, taken only where no entry is. ``publish`` is what is sent: the callback, or word of its failure.
    """

    group_id: str
    ended: tuple[TaskState, ...] = ()
    pending: tuple[TaskState, ...] = ()
    publish: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Settled:
    """All that must change because one delivery came to its end.

    ``state`` is the state to record, ``ended`` are the final states of tasks that will never run because of it.
    ``pending`` are the PENDING states of what is published, taken only where no entry is, and ``opens`` the groups that
    it makes up, likewise. ``publish`` are messages to send: callbacks, retries. ``member`` is the task as one of a
    group that is waited for; ``end`` ends a group. ``alive`` is a family for ``Backend.touch``. ``verdict`` is what
    becomes of the delivery.
    """

    delivery: Delivery
    verdict: Verdict
    state: TaskState | None = None
    pending: tuple[TaskState, ...] = ()
    publish: tuple[Message, ...] = ()
    ended: tuple[TaskState, ...] = ()
    opens: tuple[GroupMeta, ...] = ()
    member: Member | None = None
    end: GroupEnd | None = None
    alive: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An item that could not be brought to its end, and why: its member was the last one of a group (COMPLETE), its
    group has no entry (LOST), or is BUSY. It is to be settled again, with the ``end`` that this calls for."""

    item: Settled
    progress: Progress


@runtime_checkable
class JointStore(Protocol):
    """A broker whose store also holds the states of tasks, and can change both in one step.

    The engine uses it where broker and backend have the same ``identity()``. ``keep`` is how long (seconds) an entry
    is kept after this write, or after its ``not_before``.
    """

    async def submit(
        self,
        states: Sequence[TaskState],
        messages: Sequence[Message],
        keep: float,
        *,
        groups: Sequence[GroupMeta] = (),
        plans: Sequence[Plan] = (),
    ) -> None:
        """Record PENDING states as ``Backend.begin`` does, groups and plans as ``open_groups`` and ``put_plans`` do,
        and publish, in one step. Repeating it after a lost reply adds no second copy of a message and takes back no
        state."""

    async def settle(self, batch: Sequence[Settled], keep: float) -> Sequence[Unsettled]:
        """Apply a batch in one step, in order, each item only if its own delivery was still ours; returns those of ours
        that are not at their end. Repeating it after a lost reply changes nothing that is at its end.

        Of an item, in this order: its states are recorded, by the rules of ``Backend.put`` (an item that is a state and
        a verdict alone may keep it from now on, whatever it was); pending states and groups only where no entry is. Its
        family is kept alive, from when its state is due. Its member is counted as ``finish_members`` does: if that
        leaves the group COMPLETE or LOST and the item has no ``end``, nothing more is done, the delivery stays ours,
        and the item is returned. Its ``end`` is applied if the group is not triggered, which it then is: states, then
        messages. A claim alone does not keep it from that; of a group without an entry, one is made that has no
        members. If the group is BUSY, nothing more is done, the delivery stays ours, and the item is returned. Then its
        messages are published, and its verdict is carried out.
        """
