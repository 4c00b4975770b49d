"""Signatures on their way out: checked, filled, recorded as PENDING, published; what comes together leaves together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from asyncqueue.brokers.base import Message
from asyncqueue.clock import Clock
from asyncqueue.engine.batching import Batcher
from asyncqueue.engine.middleware import PublishHook, finished
from asyncqueue.engine.naming import name_problem
from asyncqueue.engine.outcome import Rules, callback_id, message, pending
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.registry import Registry
from asyncqueue.engine.settlement import Settlement
from asyncqueue.errors import ArgumentError, MessageTooLarge, PublishUnknown, Refused, Unavailable
from asyncqueue.signature import Signature, new_task_id
from asyncqueue.state import TaskState


@dataclass(slots=True)
class Outgoing:
    """One checked signature with the state and the message that go out for it. ``is_sent``: the broker has it."""

    signature: Signature
    state: TaskState
    message: Message
    is_sent: bool = False


class Publisher:
    """Sends signatures. ``timeout`` is for how long (seconds) a broker that is away is tried again."""

    def __init__(
        self,
        registry: Registry,
        settlement: Settlement,
        *,
        clock: Clock,
        patience: Patience,
        rules: Callable[[], Rules],
        timeout: Callable[[], float],
        address: str,
        max_batch: int,
        hooks: Sequence[PublishHook] = (),
    ) -> None:
        self._registry = registry
        self._settlement = settlement
        self._clock = clock
        self._patience = patience
        self._rules = rules
        self._timeout = timeout
        self._address = address
        self._hooks = hooks
        self._batcher: Batcher[Outgoing] = Batcher(self._flush, max_batch)

    async def send(self, signatures: Sequence[Signature]) -> Sequence[Signature]:
        """Send these; returns them as they were sent, with their UUIDs and queues.

        All are checked before any is sent. Raises ``ArgumentError`` (a task that is known here and cannot take its
        arguments, or a value that JSON cannot hold), ``MessageTooLarge``, ``Refused`` (names), ``Unavailable``, and
        ``PublishUnknown`` when the broker went away and may have the messages.
        """
        outgoing = [self._prepared(await self._hooked(signature)) for signature in signatures]
        try:
            if outgoing:
                await self._batcher.add(outgoing)
        except Unavailable as exc:
            raise self._unknown([each for each in outgoing if not each.is_sent], exc) from exc
        return [each.signature for each in outgoing]

    async def offer(self, signature: Signature, token: str) -> bool:
        """Send a task that has its UUID unless it was sent before, by whomever; whether it was sent now.

        All its senders give the same ``token``. Does not wait for a broker that is away. Raises as ``send`` does, but
        ``Unavailable`` for ``PublishUnknown``: offering again is safe.
        """
        hooked = await self._hooked(signature)
        outgoing = self._prepared(hooked.with_changes(uuid=signature.uuid))
        return await self._settlement.offer(outgoing.state, replace(outgoing.message, token=token))

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._batcher.close()

    async def _hooked(self, signature: Signature) -> Signature:
        for hook in self._hooks:
            signature = await finished(hook(signature)) or signature
        return signature

    def _prepared(self, signature: Signature) -> Outgoing:
        rules = self._rules()
        now = self._clock.now_ns()
        filled = _filled(signature, rules.default_queue)
        problem = name_problem(filled)
        if problem:
            raise Refused(f"task {filled.name!r} cannot be sent: {problem}")
        registered = self._registry.find(filled.name)
        if registered is not None:
            registered.bind(filled)
        try:
            ready = message(filled, rules.default_queue, now)
        except ArgumentError as exc:
            if str(exc).startswith(f"task {filled.name}"):
                raise
            raise ArgumentError(f"task {filled.name}: {exc}") from exc  # it is about a callback
        if len(ready.body) > rules.limits.max_bytes:
            raise MessageTooLarge(
                f"task {filled.name} for queue {ready.queue!r}: its message is {len(ready.body)} bytes, "
                f"the limit is {rules.limits.max_bytes}"
            )
        return Outgoing(filled, pending(filled, now), ready)

    async def _flush(self, outgoing: Sequence[Outgoing]) -> None:
        submission = self._settlement.submission([each.state for each in outgoing], [each.message for each in outgoing])
        await self._patience.insist(f"publish to {self._address}", submission, budget=self._timeout())
        for each in outgoing:
            each.is_sent = True

    def _unknown(self, outgoing: Sequence[Outgoing], error: Unavailable) -> PublishUnknown:
        """The error for a caller whose messages left together with those of others: it speaks of the caller's own."""
        ids = tuple(each.signature.uuid for each in outgoing)
        shown = ids[0] if len(ids) == 1 else f"{len(ids)} tasks ({ids[0]}, …)"
        return PublishUnknown(f"cannot say whether {shown} reached {self._address}: {error}", ids)


def _filled(signature: Signature, default_queue: str) -> Signature:
    """With a UUID, a queue, headers, and a UUID for each callback: whoever settles the parent twice sends the same
    callback twice, not two callbacks."""
    changes: dict[str, object] = {}
    if not signature.uuid:
        changes["uuid"] = new_task_id()
    if not signature.routing_key:
        changes["routing_key"] = default_queue
    if signature.headers is None:
        changes["headers"] = {}
    filled = signature.with_changes(**changes) if changes else signature
    for field, kind in (("on_success", "success"), ("on_error", "error")):
        callbacks: tuple[Signature, ...] | None = getattr(filled, field)
        if callbacks and any(not each.uuid for each in callbacks):
            named = tuple(
                each if each.uuid else each.with_changes(uuid=callback_id(filled, kind, index))
                for index, each in enumerate(callbacks)
            )
            filled = filled.with_changes(**{field: named})
    return filled
