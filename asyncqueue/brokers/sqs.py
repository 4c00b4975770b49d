"""Amazon SQS as a broker: batches of ten, long polls, the visibility timeout as the lease.

A message is Machinery's JSON, so Go workers and ours share queues. What SQS has no place for travels in message
attributes, which Go does not look at. SQS counts every showing; one that was given back shall not count, so a message
that is given back is sent anew with its count, and then deleted. Priorities are not heeded.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Self

from asyncqueue.brokers.base import Capabilities, Dead, Delivery, Message, QueueDepth
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.connections.aws import (
    CONNECT_TIMEOUT,
    REPLY_TIMEOUT,
    AwsLink,
    Reply,
    is_passing,
    parse_url,
)
from asyncqueue.connections.envelope import ATTEMPT, BASE64, BURIED_AT, ERROR, NAMES, Envelope, body_of, count, text_of
from asyncqueue.connections.refusals import Missing, SaidNo
from asyncqueue.connections.sending import Sent, all_of
from asyncqueue.errors import AsyncQueueError, MessageTooLarge, Refused, Unavailable
from asyncqueue.workflow import COMPANION_SUFFIX

MAX_BATCH = 10
"""The most messages in one request."""

MAX_DELAY = 900.0
"""The longest delay (seconds) of a message."""

MAX_HIDDEN = 43_000.0
"""The longest (seconds) that a message of a FIFO queue is given back for: SQS hides one for twelve hours in all."""

MAX_WAIT = 20
"""The longest (seconds) that one receive waits."""

MAX_BYTES = 1_048_576
"""The largest message, and the largest batch, with attributes (bytes)."""

MAX_NAME = 80
"""The most letters in the name of a queue."""

RETENTION = 14 * 86_400
"""How long (seconds) the queues that we make keep a message: the longest there is."""

LOOK = 10
"""How long (seconds) an entry of a dead letter is hidden from others while one looks at it."""

LAST_LOOK = 1
"""How long (seconds) one waits for more before a dead letter, or what was ready, is taken to be at its end: SQS asks
all of its servers only in a receive that waits."""

SKEW = 5.0
"""How far (seconds) the clock of SQS may be ahead of ours."""

MOST_DEAD = 1_000
"""The most entries of a dead letter that one look goes through."""

_SENT_AT, _MOVED_FROM = "SentTimestamp", "DeadLetterQueueSourceArn"
_REDRIVE_TARGET = re.compile(r'"deadLetterTargetArn"\s*:\s*"[^"]*:([^":]+)"')
_DENIED = ("AccessDenied", "AccessDeniedException")
_FIFO, _DEAD, _COMPANION = ".fifo", ".dead", COMPANION_SUFFIX
_REMEMBERED = 10_000
_NOTHING_SAID = {"Code": "NoAnswer", "Message": "the reply does not say what became of it"}


@dataclass(frozen=True, slots=True)
class _Sending:
    """One message on its way to a queue. ``token`` is by what we know that SQS has it already."""

    queue: str
    token: str
    body: bytes
    delay: int = 0
    group: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    may_lose_attributes: bool = False


class SqsBroker:
    """A broker on Amazon SQS, or on what speaks like it; see ``asyncqueue.brokers.base`` for what each verb promises.

    ``url`` is ``https://sqs.<region>.amazonaws.com/<account>``, to which the name of a queue is added; see
    ``connections.aws.parse_url`` for other endpoints. ``lease`` is how long (seconds, rounded up) a silent worker keeps
    what it holds: the visibility timeout. ``least_wait`` is how long (seconds) a receive that may wait waits at least:
    more makes idling cheaper and stopping slower. ``create_queues``: a queue that is not there is made when it is first
    used. ``client`` is an ``aiobotocore`` client that the caller made, and will close.

    A queue whose name ends in ``.fifo`` is one. What else SQS has no letters for in a name becomes ``-``.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 30.0,
        least_wait: float = 0.0,
        create_queues: bool = True,
        connect_timeout: float = CONNECT_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        client: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._link = AwsLink(
            "sqs", parse_url(url), connect_timeout=connect_timeout, reply_timeout=reply_timeout, client=client
        )
        self._url = url
        self._lease = math.ceil(lease)
        self._least_wait = least_wait
        self._create_queues = create_queues
        self._clock = clock
        self._is_open = False
        self._held: dict[Hashable, Delivery] = {}
        self._sent = Sent()
        self._dead_letters: dict[str, str] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            lease=float(self._lease),
            max_delay=MAX_DELAY,
            max_batch=MAX_BATCH,
            ordered=False,
            counts_deliveries=True,
            refused=frozenset({"peek", "delayed"}),
        )

    @property
    def address(self) -> str:
        return str(self._link.address)

    async def open(self) -> None:
        if self._is_open:
            return
        try:
            await self._link.call("list_queues", MaxResults=1)
        except AsyncQueueError as exc:
            # who may not list queues is known to the service, and may be allowed what a worker needs
            if not (isinstance(exc, SaidNo) and exc.code in _DENIED):
                await self._link.close()
                raise
        self._is_open = True

    async def close(self) -> None:
        held, self._held = list(self._held.values()), {}
        try:
            with suppress(Unavailable, Refused):  # the lease gives back what we now cannot
                await all_of(self.nack(held[start : start + MAX_BATCH]) for start in range(0, len(held), MAX_BATCH))
        finally:
            self._is_open = False
            await self._link.close()

    def twin(self) -> Self:
        twin = type(self)(
            self._url,
            lease=self._lease,
            least_wait=self._least_wait,
            create_queues=self._create_queues,
            clock=self._clock,
        )
        twin._link = self._link.twin()
        return twin

    async def identity(self) -> Hashable:
        return ("sqs", self.address)

    # ------------------------------------------------------------------------------------------------ publish

    async def publish(self, messages: Sequence[Message]) -> None:
        now = self._clock.now_ns() / NANOSECONDS
        sendings = [
            _Sending(
                message.queue,
                message.token or secrets.token_hex(16),
                message.body,
                0 if message.not_before is None else _delay(message.not_before - now),
                message.ordering_key or message.id,
            )
            for message in messages
        ]
        await self._send(sendings)
        self._sent.forget(each.token for each in sendings)

    async def _send(self, sendings: Sequence[_Sending]) -> None:
        """Send those that SQS does not have. What it has is remembered until the verb ends."""
        queues: dict[str, list[tuple[_Sending, Mapping[str, Any], int]]] = {}
        for each in sendings:
            entry, size = _entry(each)
            if each.token not in self._sent:
                queues.setdefault(each.queue, []).append((each, entry, size))
        await all_of(self._send_to(queue, waiting) for queue, waiting in queues.items())

    async def _send_to(self, queue: str, waiting: Sequence[tuple[_Sending, Mapping[str, Any], int]]) -> None:
        # one request after the other: in a FIFO queue their order counts
        for batch in _batches(waiting):
            failed = await self._batch(queue, "send_message_batch", [entry for _, entry, _ in batch], create=True)
            self._sent.add(sending.token for index, (sending, _, _) in enumerate(batch) if index not in failed)
            if failed:
                raise _not_all(f"{self.address}: of {len(batch)} messages for queue {queue!r}", failed)

    # ------------------------------------------------------------------------------------------------ fetch

    async def fetch(self, queue: str, limit: int, wait: float) -> Sequence[Delivery]:
        if limit <= 0:
            return ()
        seconds = min(MAX_WAIT, math.ceil(max(wait, self._least_wait))) if wait > 0 else 0
        found = await self._receive(queue, limit, seconds, self._lease, create=True)
        deliveries = [_delivery(queue, message) for message in found]
        self._held.update((delivery.receipt, delivery) for delivery in deliveries)
        while len(self._held) > _REMEMBERED:  # nobody tells us what was lost: its time ends by itself
            del self._held[next(iter(self._held))]
        return deliveries

    async def _receive(
        self, queue: str, limit: int, wait: int, hidden: int, *, create: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        reply = await self._call(
            queue,
            "receive_message",
            create=create,
            wait=wait,
            MaxNumberOfMessages=min(limit, MAX_BATCH),
            WaitTimeSeconds=wait,
            VisibilityTimeout=hidden,
            MessageSystemAttributeNames=["ApproximateReceiveCount", _SENT_AT, _MOVED_FROM],
            MessageAttributeNames=list(NAMES),
        )
        found: Sequence[Mapping[str, Any]] = reply.get("Messages") or ()
        return found

    # ------------------------------------------------------------------------------------------------ settle

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        async def delete(queue: str, some: Sequence[Delivery]) -> None:
            failed = await self._batch_if_there(queue, "delete_message_batch", [_receipt(each) for each in some])
            if any(not _is_gone(each) for each in failed.values()):
                raise _not_all(f"{self.address}: of {len(some)} messages to delete from queue {queue!r}", failed)

        await self._by_queue(deliveries, delete)
        self._let_go(deliveries)

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        lost = await self._hide(deliveries, self._lease)
        return [delivery for delivery in deliveries if delivery.receipt in lost]

    async def nack(self, deliveries: Sequence[Delivery], *, delay: float = 0.0) -> None:
        in_order = [delivery for delivery in deliveries if delivery.queue.endswith(_FIFO)]
        if in_order:  # sent anew, it would come after what it was before
            await self._hide(in_order, math.ceil(min(max(0.0, delay), MAX_HIDDEN)))
            self._let_go(in_order)
        counted = [delivery for delivery in deliveries if not delivery.queue.endswith(_FIFO)]
        await self._move(counted, lambda delivery: _again(delivery, _delay(delay)))

    async def bury(self, deliveries: Sequence[Delivery], reason: str, error: str) -> None:
        now = self._clock.now_ns() / NANOSECONDS
        letters = {queue: await self._dead_letter(queue) for queue in {each.queue for each in deliveries}}
        await self._move(
            deliveries,
            lambda delivery: _buried(
                letters[delivery.queue], delivery, Envelope(delivery.queue, reason, error, delivery.attempt, now)
            ),
        )

    async def _move(self, deliveries: Sequence[Delivery], sending: Callable[[Delivery], _Sending]) -> None:
        """Send what these become, then delete them. A kill in between leaves both; a repetition does not."""
        if not deliveries:
            return
        lost = await self._hide(deliveries, self._lease)
        ours = {each.receipt: each for each in deliveries if each.receipt not in lost}
        sendings = [sending(delivery) for delivery in ours.values()]
        await self._send(sendings)
        await self.ack(list(ours.values()))
        self._sent.forget(each.token for each in sendings)
        self._let_go(deliveries)

    async def _hide(self, deliveries: Sequence[Delivery], seconds: int) -> set[Hashable]:
        """Hide these from now on for so long; returns the receipts of those that are not ours any more."""
        lost: set[Hashable] = set()

        async def hide(queue: str, some: Sequence[Delivery]) -> None:
            entries = [_receipt(each) | {"VisibilityTimeout": seconds} for each in some]
            failed = await self._batch_if_there(queue, "change_message_visibility_batch", entries)
            if any(not _is_gone(each) for each in failed.values()):
                raise _not_all(f"{self.address}: of {len(some)} messages to keep of queue {queue!r}", failed)
            lost.update(some[index].receipt for index in failed)

        await self._by_queue(deliveries, hide)
        return lost

    async def _by_queue(
        self, deliveries: Sequence[Delivery], call: Callable[[str, Sequence[Delivery]], Awaitable[None]]
    ) -> None:
        queues: dict[str, dict[Hashable, Delivery]] = {}
        for delivery in deliveries:
            queues.setdefault(delivery.queue, {})[delivery.receipt] = delivery
        await all_of(call(queue, list(some.values())) for queue, some in queues.items())

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(delivery.receipt, None)

    # ------------------------------------------------------------------------------------------------ inspect

    async def queues(self) -> Sequence[str]:
        """By their names in SQS, but companion queues by ours."""
        names: list[str] = []
        more: dict[str, Any] = {}
        while True:
            reply = await self._link.call("list_queues", MaxResults=1_000, **more)
            names += [url.rpartition("/")[2] for url in reply.get("QueueUrls") or ()]
            if not reply.get("NextToken"):
                return sorted(_shown(name) for name in names if not name.endswith(_name(_DEAD)))
            more = {"NextToken": reply["NextToken"]}

    async def depth(self, queue: str) -> QueueDepth:
        """As far as SQS says: its numbers lag behind by up to a minute."""
        (ready, held, delayed), (dead, looked_at, _) = await asyncio.gather(
            self._counts(queue), self._counts(await self._dead_letter(queue))
        )
        return QueueDepth(queue, ready, held, delayed, dead + looked_at)

    async def _counts(self, queue: str) -> tuple[int, int, int]:
        names = [f"ApproximateNumberOfMessages{what}" for what in ("", "NotVisible", "Delayed")]
        try:
            reply = await self._call(queue, "get_queue_attributes", AttributeNames=names)
        except Missing:
            return 0, 0, 0
        ready, held, delayed = (int(reply.get("Attributes", {}).get(name, 0)) for name in names)
        return ready, held, delayed

    async def peek(self, queue: str, limit: int, offset: int = 0) -> Sequence[bytes]:
        """Raises ``Refused``: SQS shows a message only to who takes it."""
        raise Refused(f"SQS shows a message of queue {queue!r} only to a worker that takes it")

    async def delayed(self, limit: int, offset: int = 0) -> Sequence[tuple[float, bytes]]:
        """Raises ``Refused``: SQS shows no message before its time."""
        raise Refused("SQS shows no message before it is due; `queues` says how many there are")

    async def purge(self, queue: str) -> int:
        """Takes and deletes what is ready, so that nothing is taken from workers; ends at what was sent after it
        began."""
        last = self._clock.now_ns() / NANOSECONDS + SKEW
        count, is_done = 0, False
        with suppress(Missing):
            while not is_done and (found := await self._receive(queue, MAX_BATCH, LAST_LOOK, self._lease)):
                is_done = all(_sent_at(message) > last for message in found)
                await self.ack([_delivery(queue, message) for message in found])
                count += len(found)
        return count

    async def dead(self, queue: str, limit: int, offset: int = 0) -> Sequence[Dead]:
        found = await self._look_at_dead(queue)
        await self._hide([delivery for delivery, _ in found], 0)
        return [entry for _, entry in found][offset : offset + max(0, limit)]

    async def requeue(self, queue: str, ids: Sequence[str]) -> int:
        async def send(some: Sequence[tuple[Delivery, Dead]]) -> None:
            sendings = [_Sending(queue, entry.id, entry.body, group=entry.id) for _, entry in some]
            await self._send(sendings)
            await self.ack([delivery for delivery, _ in some])
            self._sent.forget(each.token for each in sendings)

        return await self._take_dead(queue, ids, send)

    async def drop(self, queue: str, ids: Sequence[str]) -> int:
        async def delete(some: Sequence[tuple[Delivery, Dead]]) -> None:
            await self.ack([delivery for delivery, _ in some])

        return await self._take_dead(queue, ids, delete)

    async def _take_dead(
        self, queue: str, ids: Sequence[str], take: Callable[[Sequence[tuple[Delivery, Dead]]], Awaitable[None]]
    ) -> int:
        """Do something with these entries, and show the others again; returns how many were still to be had."""
        wanted = set(ids)
        count = 0

        async def take_ours(some: Sequence[tuple[Delivery, Dead]]) -> None:
            nonlocal count
            # since we looked, somebody else may have taken some: another copy would be one too many
            lost = await self._hide([delivery for delivery, _ in some], LOOK)
            ours = [each for each in some if each[0].receipt not in lost]
            await take(ours)
            count += len(ours)

        found = await self._look_at_dead(queue, wanted)
        chosen = [each for each in found if each[1].id in wanted]
        try:
            await all_of(take_ours(chosen[start : start + MAX_BATCH]) for start in range(0, len(chosen), MAX_BATCH))
        finally:
            await self._hide([delivery for delivery, entry in found if entry.id not in wanted], 0)
        return count

    async def _look_at_dead(self, queue: str, wanted: set[str] | None = None) -> list[tuple[Delivery, Dead]]:
        """Entries, oldest first, hidden from others meanwhile: all of them, or until all that are wanted are there."""
        letter = await self._dead_letter(queue)
        found: dict[str, tuple[Delivery, Dead]] = {}
        of_others: dict[str, Delivery] = {}
        with suppress(Missing):
            while len(found) + len(of_others) < MOST_DEAD and (wanted is None or wanted - found.keys()):
                seen = len(found) + len(of_others)
                for message in await self._receive(letter, MAX_BATCH, LAST_LOOK, LOOK):
                    delivery, entry = _delivery(letter, message), _entry_of_dead(queue, message)
                    if _name(entry.queue) == _name(queue):
                        found[entry.id] = delivery, entry
                    else:  # a redrive policy may lead from several queues to one
                        of_others[entry.id] = delivery
                if len(found) + len(of_others) == seen:  # none, or a look that took long begins anew
                    break
        await self._hide(list(of_others.values()), 0)
        return sorted(found.values(), key=lambda each: (each[1].buried_at, each[1].id))

    async def _dead_letter(self, queue: str) -> str:
        """Where the redrive policy of a queue leads to; a queue of our own where it has none, or we may not know."""
        if queue in self._dead_letters:
            return self._dead_letters[queue]
        own = f"{queue}{_DEAD}"
        try:
            reply = await self._call(queue, "get_queue_attributes", AttributeNames=["RedrivePolicy"])
        except Missing:  # it may be made yet, with one
            return own
        except SaidNo as exc:
            if exc.code not in _DENIED:
                raise
            reply = {}
        target = _REDRIVE_TARGET.search(reply.get("Attributes", {}).get("RedrivePolicy", ""))
        return self._dead_letters.setdefault(queue, target[1] if target else own)

    # ------------------------------------------------------------------------------------------------ calls

    async def _batch(
        self, queue: str, operation: str, entries: Iterable[Mapping[str, Any]], *, create: bool = False
    ) -> Mapping[int, Mapping[str, Any]]:
        """What failed, by its place in the batch. What the reply says nothing of has failed too: 200 may be the answer
        of somebody who is no SQS."""
        numbered = [{"Id": str(index), **entry} for index, entry in enumerate(entries)]
        reply = await self._call(queue, operation, create=create, Entries=numbered)
        done = {each["Id"] for each in reply.get("Successful") or ()}
        said = {failure["Id"]: failure for failure in reply.get("Failed") or ()}
        return {
            index: said.get(entry["Id"], _NOTHING_SAID)
            for index, entry in enumerate(numbered)
            if entry["Id"] not in done
        }

    async def _batch_if_there(
        self, queue: str, operation: str, entries: Sequence[Mapping[str, Any]]
    ) -> Mapping[int, Mapping[str, Any]]:
        """The same, of a queue that may be gone, and all that was in it."""
        failed: dict[int, Mapping[str, Any]] = {}
        for start in range(0, len(entries), MAX_BATCH):
            some = entries[start : start + MAX_BATCH]
            try:
                of_some = await self._batch(queue, operation, some)
            except Missing:
                of_some = {index: {"SenderFault": True} for index in range(len(some))}
            failed |= {start + index: failure for index, failure in of_some.items()}
        return failed

    async def _call(
        self, queue: str, operation: str, *, create: bool = False, wait: float = 0.0, **parameters: Any
    ) -> Reply:
        url = f"{self._link.address.endpoint}/{self._link.address.path}/{_name(queue)}"
        try:
            return await self._link.call(operation, wait=wait, QueueUrl=url, **parameters)
        except Missing as exc:
            if not (create and self._create_queues):
                raise Missing(f"queue {_name(queue)!r} does not exist at {self.address}", exc.code) from exc
        await self._create(queue)
        try:
            return await self._link.call(operation, wait=wait, QueueUrl=url, **parameters)
        except Missing as exc:
            raise Unavailable(f"queue {_name(queue)!r} was made at {self.address}, and is not there yet") from exc

    async def _create(self, queue: str) -> None:
        name = _name(queue)
        attributes = {"MessageRetentionPeriod": str(RETENTION)}
        if name.endswith(_FIFO):
            attributes["FifoQueue"] = "true"
        try:
            reply = await self._link.call("create_queue", QueueName=name, Attributes=attributes)
        except SaidNo as exc:
            if exc.code in ("QueueNameExists", "QueueAlreadyExists"):  # somebody made it meanwhile
                return
            raise Refused(f"queue {name!r} does not exist at {self.address}, and could not be made: {exc}") from exc
        account, made_in = self._link.address.path, _account(reply.get("QueueUrl", ""))
        if made_in and _account(f"/{account}/{name}") not in ("", made_in):
            raise Refused(
                f"queue {name!r} does not exist at {self.address}, or we may not use it; queues that we make are of"
                f" account {made_in}: make it in {account}, and allow us to use it"
            )


def _account(url: str) -> str:
    """The account in the URL of a queue; empty for what is no account of AWS."""
    found = re.search(r"/(\d{12})/[^/]*$", url)
    return found[1] if found else ""


@lru_cache(1024)
def _name(queue: str) -> str:
    """The name of a queue in SQS. Raises ``Refused`` for one that is too long."""
    base, ending = (queue[: -len(_FIFO)], _FIFO) if queue.endswith(_FIFO) else (queue, "")
    name = _mangled(base) + ending
    if len(name) > MAX_NAME:
        for own in (_DEAD, _COMPANION):
            if queue.endswith(own):
                return _shortened(queue.removesuffix(own), _mangled(own))
    if not 1 <= len(name) <= MAX_NAME:
        raise Refused(f"queue {queue!r}: in SQS a name has 1 to {MAX_NAME} letters, this one {len(name)}")
    return name


def _mangled(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _shortened(queue: str, ending: str) -> str:
    """The name of a queue of ours beside one whose name leaves no room for the ending."""
    ending = f"-{sha256(_name(queue).encode()).hexdigest()[:8]}{ending}"
    return _mangled(_name(queue))[: MAX_NAME - len(ending)] + ending


def _shown(name: str) -> str:
    base = name.removesuffix(_name(_COMPANION))
    return name if base == name else base + _COMPANION


def _delay(seconds: float) -> int:
    """Whole seconds, never early; what is due later than SQS can wait is shown early, and given back."""
    return math.ceil(min(max(0.0, seconds), MAX_DELAY))


def _again(delivery: Delivery, delay: int) -> _Sending:
    attributes = {ATTEMPT: str(delivery.attempt - 1)} if delivery.attempt > 1 else {}
    token = f"again/{delivery.receipt}"
    return _Sending(delivery.queue, token, delivery.body, delay, "", attributes, may_lose_attributes=True)


def _buried(letter: str, delivery: Delivery, envelope: Envelope) -> _Sending:
    token = f"buried/{delivery.receipt}"
    return _Sending(letter, token, delivery.body, attributes=envelope.attributes(), may_lose_attributes=True)


def _entry(sending: _Sending) -> tuple[Mapping[str, Any], int]:
    """The entry of a batch that sends this, and its size (bytes). Raises ``MessageTooLarge``."""
    text, is_plain = text_of(sending.body)
    size = len(sending.body if is_plain else text)
    attributes: dict[str, str] = {} if is_plain else {BASE64: "1"}
    size += sum(_size(name, value) for name, value in attributes.items())
    for name, value in sending.attributes.items():
        if sending.may_lose_attributes:
            value = _fitting(name, value, MAX_BYTES - size)
        if value:
            attributes[name] = value
            size += _size(name, value)
    if size > MAX_BYTES:
        raise MessageTooLarge(
            f"a message for queue {sending.queue!r} takes {size} bytes in SQS, the limit is {MAX_BYTES}"
        )
    entry: dict[str, Any] = {"MessageBody": text}
    if attributes:
        entry["MessageAttributes"] = {
            name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
        }
    if sending.queue.endswith(_FIFO):
        # what has no group is one of its own: who takes from a group holds up the rest of it
        entry["MessageGroupId"] = _fifo_id(sending.group or sending.token)
        entry["MessageDeduplicationId"] = _fifo_id(sending.token)
    elif sending.delay:
        entry["DelaySeconds"] = sending.delay
    return entry, size


def _size(name: str, value: str) -> int:
    return len(name) + len("String") + len(value.encode())


def _fitting(name: str, value: str, room: int) -> str:
    """As much of an attribute as there is room for; of what means nothing in part, all or nothing."""
    room -= _size(name, "")
    data = value.encode()
    if len(data) <= room:
        return value
    return data[: max(0, room)].decode(errors="ignore") if name == ERROR else ""


def _fifo_id(text: str) -> str:
    """The text itself wherever SQS takes it, so that it means the same to those who are not us."""
    return text if re.fullmatch("[!-~]{1,128}", text) else sha256(text.encode()).hexdigest()


def _attributes(message: Mapping[str, Any]) -> dict[str, str]:
    found = message.get("MessageAttributes") or {}
    return {name: str(value.get("StringValue", "")) for name, value in found.items()}


def _delivery(queue: str, message: Mapping[str, Any]) -> Delivery:
    shown = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
    attributes = _attributes(message)
    body = body_of(message["Body"], is_base64=BASE64 in attributes)
    if BURIED_AT not in attributes:  # else SQS itself moved it back from a dead letter, and it begins anew
        shown += count(attributes.get(ATTEMPT, ""))
    return Delivery(body, queue, message["ReceiptHandle"], shown)


def _entry_of_dead(queue: str, message: Mapping[str, Any]) -> Dead:
    attributes = _attributes(message)
    body = body_of(message["Body"], is_base64=BASE64 in attributes)
    moved_from = message.get("Attributes", {}).get(_MOVED_FROM, "").rpartition(":")[2]
    envelope = Envelope.read(attributes, moved_from or queue)
    if not envelope.buried_at:  # we did not put it there
        envelope = replace(envelope, buried_at=_sent_at(message))
    if moved_from and not envelope.reason:
        error = f"the redrive policy of {moved_from} says so: it was shown as often as that allows"
        envelope = replace(envelope, reason="redrive", error=error)
    return envelope.entry(message["MessageId"], body)


def _sent_at(message: Mapping[str, Any]) -> float:
    milliseconds = message.get("Attributes", {}).get(_SENT_AT, "")
    return int(milliseconds) / 1_000 if milliseconds.isdigit() else 0.0


def _receipt(delivery: Delivery) -> dict[str, Any]:
    return {"ReceiptHandle": delivery.receipt}


def _is_gone(failure: Mapping[str, Any]) -> bool:
    """Whether it failed because the message is not ours any more: SQS has a word for each way that comes about."""
    return bool(failure.get("SenderFault")) and not is_passing(str(failure.get("Code", "")))


def _not_all(what: str, failed: Mapping[int, Mapping[str, Any]]) -> AsyncQueueError:
    """Why some of a batch failed. Where trying again may help some of them, it is tried again."""
    said = sorted({f"{failure.get('Code', '')}: {failure.get('Message', '')}" for failure in failed.values()})
    text = f"{what}, {len(failed)} failed: {'; '.join(said)}"
    return Refused(text) if all(_is_gone(failure) for failure in failed.values()) else Unavailable(text)


def _batches(
    waiting: Sequence[tuple[_Sending, Mapping[str, Any], int]],
) -> Iterator[Sequence[tuple[_Sending, Mapping[str, Any], int]]]:
    """Parts that one request can carry."""
    batch: list[tuple[_Sending, Mapping[str, Any], int]] = []
    size = 0
    for each in waiting:
        if batch and (len(batch) == MAX_BATCH or size + each[2] > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each[2]
    if batch:
        yield batch
