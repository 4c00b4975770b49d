"""The one in-process store behind the memory broker, backend and lock.

Everything here is plain data changed under ``MemoryStore.mutex``: several loops in several threads of one process may
share a store. Moments are unix seconds and are handed in, so that the clock is the driver's business.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from secrets import token_hex

from asyncqueue.brokers.base import Dead, Delivery, Message, QueueDepth
from asyncqueue.connections.keeping import LEAST_GAIN, kept_until
from asyncqueue.connections.memory_entries import Groups, Plans, States
from asyncqueue.locks.base import LastTurn

TOKENS_KEPT = 600.0
"""How long (seconds) a publish is known, so that its repetition adds no second copy."""

_named: dict[str, MemoryStore] = {}
_naming = threading.Lock()


class MemoryStore:
    """Queues, dead letters, states, groups, plans and locks of one process. Use the parts with ``mutex`` held."""

    def __init__(self, name: str = "") -> None:
        self.name = name or token_hex(8)
        self.mutex = threading.Lock()
        self.messages = Messages(self.name)
        self.states = States()
        self.groups = Groups(self.states.has_ended)
        self.plans = Plans()
        self.locks: dict[str, Locked] = {}
        self.turns: dict[str, Turns] = {}
        self._arrivals: dict[str, dict[object, Callable[[], None]]] = {}
        self._watchers: dict[object, Callable[[Sequence[str]], None]] = {}

    def touch(self, family: Sequence[str], keep: float, now: float, not_before: float | None) -> None:
        """Keep these, and what they stand for, ``keep`` seconds from now or from when they are due; nothing is done
        where that is not worth it for the first of them. To be called with ``mutex`` held."""
        shelves = (self.states, self.groups, self.plans)
        until = kept_until(keep, now, not_before)
        if not family or until - max(shelf.expires_at(family[0]) for shelf in shelves) < LEAST_GAIN * keep:
            return
        ids = {*family, *(one for plan_id in family for one in self.plans.ids(plan_id, now))}
        ids.update([member for group_id in ids for member in self.groups.members(group_id, now)])
        for shelf in shelves:
            shelf.prolong(ids, until, now)

    def forget(self, ids: Sequence[str]) -> None:
        """Drop entries of tasks, groups and plans. To be called with ``mutex`` held."""
        for shelf in (self.states, self.groups, self.plans):
            shelf.forget(ids)
        self.announce(task_ids=ids)

    @contextmanager
    def arrivals(self, queue: str, wake: Callable[[], None]) -> Iterator[None]:
        """While inside, ``wake`` is called on this loop whenever something of ``queue`` may have become ready."""
        loop, key = asyncio.get_running_loop(), object()
        with self.mutex:
            self._arrivals.setdefault(queue, {})[key] = lambda: _call_on(loop, wake)
        try:
            yield
        finally:
            with self.mutex:
                waiting = self._arrivals[queue]
                del waiting[key]
                if not waiting:
                    del self._arrivals[queue]

    def subscribe(self, changed: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """Have ``changed(task_ids)`` called on this loop after states changed; returns what ends that."""
        loop, key = asyncio.get_running_loop(), object()
        with self.mutex:
            self._watchers[key] = lambda ids: _call_on(loop, changed, ids)

        def unsubscribe() -> None:
            with self.mutex:
                self._watchers.pop(key, None)

        return unsubscribe

    def announce(self, *, queues: Iterable[str] = (), task_ids: Sequence[str] = ()) -> None:
        """Wake who waits for these. To be called with ``mutex`` held, after the change."""
        for queue in queues:
            for wake in self._arrivals.get(queue, {}).values():
                wake()
        if task_ids:
            for changed in self._watchers.values():
                changed(task_ids)


def named(name: str) -> MemoryStore:
    """The store of that name: the same one wherever in this process it is asked for."""
    with _naming:
        return _named.setdefault(name, MemoryStore(name))


@dataclass(frozen=True, slots=True)
class Locked:
    """Who holds a lock, and until when."""

    token: str
    until: float


@dataclass(slots=True)
class Turns:
    """Who claimed which turn of one schedule (by its due time) and did not finish it, and how far it has come."""

    claims: dict[int, Locked] = field(default_factory=dict)
    last: LastTurn | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in the store; ``attempt`` is that of its next (or present) showing."""

    message: Message
    attempt: int = 1


@dataclass(slots=True)
class Held:
    """An entry that somebody has; ``until`` is None where it stays theirs until they let go."""

    entry: Entry
    holder: str
    until: float | None


@dataclass(slots=True)
class _Queue:
    ready: list[tuple[int, int, Entry]] = field(default_factory=list)  # a heap by (-priority, place)
    delayed: list[tuple[float, int, Entry]] = field(default_factory=list)  # a heap by (due, number)
    dead: dict[str, tuple[Dead, Message]] = field(default_factory=dict)  # by Dead.id, oldest first


class Messages:
    """All queues: what is ready, held, delayed and dead."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queues: dict[str, _Queue] = {}
        self._held: dict[str, Held] = {}
        self._leases: dict[str, str] = {}  # receipt → queue, of those whose lease can end
        self._tokens: dict[str, float] = {}  # token → until when it is known; oldest first
        self._numbers = itertools.count(1)
        self._heads = itertools.count(-1, -1)  # places before everything that was appended

    def add(self, messages: Iterable[Message], now: float) -> list[Message]:
        """Append messages, or put them among the delayed; returns those that were not known by their token."""
        self._forget_tokens(now)
        added = [message for message in messages if self._is_new(message, now)]
        for message in added:
            self._place(Entry(message), message.not_before, now)
        return added

    def knows(self, message: Message, now: float) -> bool:
        """Whether this publication is here already, by its token."""
        return self._tokens.get(message.token, now) > now

    def take(self, queue: str, limit: int, *, holder: str, lease: float | None, now: float) -> list[Delivery]:
        """Show up to ``limit`` ready messages to ``holder``, after moving what is due or whose lease ended."""
        self._tidy(queue, now)
        ready = self._queues[queue].ready if queue in self._queues else []
        taken = [heapq.heappop(ready)[2] for _ in range(min(limit, len(ready)))]
        return [self._show(entry, holder, None if lease is None else now + lease) for entry in taken]

    def next_change(self, queue: str) -> float | None:
        """When (unix seconds) something of ``queue`` becomes ready by time alone; None: never."""
        moments = [self._held[receipt].until for receipt, name in self._leases.items() if name == queue]
        ends = [moment for moment in moments if moment is not None]
        delayed = self._queues[queue].delayed if queue in self._queues else []
        return min((*ends, *(due for due, _, _ in delayed[:1])), default=None)

    def holds(self, delivery: Delivery, now: float) -> bool:
        """Whether that showing is still its holder's."""
        held = self._held.get(_receipt(delivery))
        return held is not None and (held.until is None or held.until > now)

    def ack(self, delivery: Delivery, now: float) -> None:
        """Done, if it is still its holder's."""
        if self.holds(delivery, now):
            self._release(_receipt(delivery))

    def nack(self, deliveries: Sequence[Delivery], delay: float, now: float) -> None:
        """Back to their queues, those that are still their holder's: in front in the order given, or delayed."""
        ours = [delivery for delivery in dict.fromkeys(deliveries) if self.holds(delivery, now)]
        entries = [self._release(_receipt(delivery)) for delivery in ours]
        if delay > 0:
            for entry in entries:
                self._place(entry, now + delay, now)
        else:
            self._put_in_front(entries)

    def give_back(self, holder: str) -> set[str]:
        """Everything of ``holder`` back to the front, as it was taken; returns the queues concerned."""
        receipts = [receipt for receipt, held in self._held.items() if held.holder == holder]
        entries = [self._release(receipt) for receipt in receipts]
        self._put_in_front(entries)
        return {entry.message.queue for entry in entries}

    def extend(self, delivery: Delivery, lease: float | None, now: float) -> bool:
        """Start the lease anew; False where that showing is over."""
        if not self.holds(delivery, now):
            return False
        if lease is not None:
            self._held[_receipt(delivery)].until = now + lease
            self._leases[_receipt(delivery)] = delivery.queue
        return True

    def bury(self, delivery: Delivery, reason: str, error: str, now: float) -> None:
        """To the dead letter, if it is still its holder's."""
        if not self.holds(delivery, now):
            return
        entry = self._release(_receipt(delivery))
        message, number = entry.message, str(next(self._numbers))
        dead = Dead(number, message.queue, message.body, reason, error, entry.attempt, now)
        self._queue(message.queue).dead[number] = (dead, message)

    def names(self) -> list[str]:
        """Queues that have anything in them, sorted."""
        held = {entry.entry.message.queue for entry in self._held.values()}
        return sorted(
            held | {name for name, queue in self._queues.items() if queue.ready or queue.delayed or queue.dead}
        )

    def depth(self, name: str, now: float) -> QueueDepth:
        """How much is in a queue."""
        self._tidy(name, now)
        queue = self._queues.get(name, _Queue())
        held = sum(entry.entry.message.queue == name for entry in self._held.values())
        return QueueDepth(name, ready=len(queue.ready), held=held, delayed=len(queue.delayed), dead=len(queue.dead))

    def peek(self, name: str, limit: int, offset: int, now: float) -> list[bytes]:
        """Bodies of ready messages, next first."""
        self._tidy(name, now)
        ready = self._queues.get(name, _Queue()).ready
        return [entry.message.body for _, _, entry in heapq.nsmallest(offset + limit, ready)[offset:]]

    def delayed(self, limit: int, offset: int, now: float) -> list[tuple[float, bytes]]:
        """Due time and body of what is not due yet, of all queues, soonest first."""
        waiting = (item for queue in self._queues.values() for item in queue.delayed if item[0] > now)
        return [(due, entry.message.body) for due, _, entry in heapq.nsmallest(offset + limit, waiting)[offset:]]

    def purge(self, name: str, now: float) -> int:
        """Drop what is ready; returns how many."""
        self._tidy(name, now)
        if name not in self._queues:
            return 0
        count = len(self._queues[name].ready)
        self._queues[name].ready = []
        return count

    def dead(self, name: str) -> list[Dead]:
        """A queue's dead letter, oldest first."""
        return [dead for dead, _ in self._queues[name].dead.values()] if name in self._queues else []

    def requeue(self, name: str, ids: Sequence[str], now: float) -> int:
        """Dead entries back to the end of their queue, as new messages; returns how many."""
        messages = self._exhume(name, ids)
        for message in messages:
            self._place(Entry(message), None, now)
        return len(messages)

    def drop(self, name: str, ids: Sequence[str]) -> int:
        """Dead entries away for good; returns how many."""
        return len(self._exhume(name, ids))

    def _exhume(self, name: str, ids: Sequence[str]) -> list[Message]:
        dead = self._queues[name].dead if name in self._queues else {}
        return [dead.pop(entry_id)[1] for entry_id in dict.fromkeys(ids) if entry_id in dead]

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())

    def _place(self, entry: Entry, due: float | None, now: float) -> None:
        queue = self._queue(entry.message.queue)
        if due is not None and due > now:
            heapq.heappush(queue.delayed, (due, next(self._numbers), entry))
        else:
            heapq.heappush(queue.ready, (-entry.message.priority, next(self._numbers), entry))

    def _put_in_front(self, entries: Sequence[Entry]) -> None:
        for entry in reversed(entries):
            place = next(self._heads)
            heapq.heappush(self._queue(entry.message.queue).ready, (-entry.message.priority, place, entry))

    def _show(self, entry: Entry, holder: str, until: float | None) -> Delivery:
        queue, receipt = entry.message.queue, f"{next(self._numbers)}@{self._name}"
        self._held[receipt] = Held(entry, holder, until)
        if until is not None:
            self._leases[receipt] = queue
        return Delivery(entry.message.body, queue, receipt, entry.attempt)

    def _release(self, receipt: str) -> Entry:
        self._leases.pop(receipt, None)
        return self._held.pop(receipt).entry

    def _tidy(self, name: str, now: float) -> None:
        """Move to ready what is due, and what was held by somebody whose lease ended."""
        ended = [receipt for receipt, queue in self._leases.items() if queue == name and self._has_ended(receipt, now)]
        entries = [self._release(receipt) for receipt in ended]
        self._put_in_front([replace(entry, attempt=entry.attempt + 1) for entry in entries])
        delayed = self._queues[name].delayed if name in self._queues else []
        while delayed and delayed[0][0] <= now:
            self._place(heapq.heappop(delayed)[2], None, now)

    def _has_ended(self, receipt: str, now: float) -> bool:
        until = self._held[receipt].until
        return until is not None and until <= now

    def _is_new(self, message: Message, now: float) -> bool:
        if not message.token:
            return True
        if self.knows(message, now):
            return False
        self._tokens[message.token] = now + TOKENS_KEPT
        return True

    def _forget_tokens(self, now: float) -> None:
        old = list(itertools.takewhile(lambda token: self._tokens[token] <= now, self._tokens))
        for token in old:
            del self._tokens[token]


def _receipt(delivery: Delivery) -> str:
    return str(delivery.receipt)


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    with suppress(RuntimeError):  # that loop has been closed: nobody waits there any more
        loop.call_soon_threadsafe(callback, *args)
