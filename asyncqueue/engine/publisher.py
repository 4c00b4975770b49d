"""Signatures on their way out: checked, filled, recorded as PENDING, published; what comes together leaves together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Message
from asyncqueue.clock import NANOSECONDS, Clock
from asyncqueue.engine.batching import Batcher
from asyncqueue.engine.events import Events, RiskForGo
from asyncqueue.engine.messages import Rules, callback_id, later, message, pending, timed
from asyncqueue.engine.middleware import PublishHook, finished
from asyncqueue.engine.naming import name_problem
from asyncqueue.engine.patience import Patience
from asyncqueue.engine.registry import Registry
from asyncqueue.engine.settlement import Outgoing, Settlement, parts
from asyncqueue.errors import ArgumentError, MessageTooLarge, PublishUnknown, Refused, Unavailable
from asyncqueue.go_compat import problem_with_delay, risk_for_go
from asyncqueue.models import changed
from asyncqueue.signature import Signature, new_task_id, with_headers
from asyncqueue.state import TaskState
from asyncqueue.workflow import CHECK_HEADER, Compiled, groups_in, members_in, tasks_in

MOST_WARNED = 1_000
"""Of so many tasks it is remembered that they were warned of."""


@dataclass(slots=True)
class _Prepared:
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
        longest_delay: float = math.inf,
        hooks: Sequence[PublishHook] = (),
        events: Events | None = None,
    ) -> None:
        self._registry = registry
        self._settlement = settlement
        self._clock = clock
        self._patience = patience
        self._rules = rules
        self._timeout = timeout
        self._address = address
        self._longest_delay = longest_delay
        self._hooks = hooks
        self._events = Events() if events is None else events
        self._warned: set[str] = set()
        self._batcher: Batcher[_Prepared] = Batcher(self._flush, max_batch)

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
            raise self._unknown([each.signature.uuid for each in outgoing if not each.is_sent], exc) from exc
        return [each.signature for each in outgoing]

    async def send_workflow(self, workflow: Compiled, concurrency: int = 0) -> None:
        """Send a workflow: its groups, its plans and the PENDING states of all its tasks are written before the first
        message is published.

        ``concurrency`` is how many messages are handed to the broker at once; 0: all of them, and where broker and
        backend are one store, everything in one step. Raises as ``send`` does.
        """
        work = await self._outgoing(workflow)
        at_once = concurrency or max(1, len(work.messages))
        sent = 0
        try:
            if len(work.messages) > at_once:
                await self._insist(replace(work, messages=()))
                for some in parts(work.messages, at_once):
                    await self._insist(Outgoing(messages=some))
                    sent += len(some)
            else:
                await self._insist(work)
        except Unavailable as exc:
            raise self._unknown([each.uuid for each in workflow.entries[sent:]], exc) from exc

    async def offer_workflow(self, workflow: Compiled, token: str, concurrency: int = 0) -> bool:
        """Send a workflow unless it was sent before, by whomever; whether it was sent now.

        All its senders give the same ``token`` and the same UUIDs; ``concurrency`` is as in ``send_workflow``. Does not
        wait for a broker that is away. Raises as ``send`` does, but ``Unavailable`` for ``PublishUnknown``: offering
        again is safe.
        """
        work = await self._outgoing(workflow)
        named = [replace(each, token=f"{token}/{place}") for place, each in enumerate(work.messages)]
        at_once = concurrency or max(1, len(named))
        is_new = await self._settlement.offer(replace(work, messages=named[:at_once]))
        for some in parts(named[at_once:], at_once):
            # whoever sent the first ones may have died here; the stores, or their receivers, know a second copy
            await self._settlement.submission(Outgoing(messages=some))()
        return is_new

    async def add_members(self, backend: Backend, group_id: str, workflow: Compiled) -> bool:
        """Send more members of a group, which its entry counts from then on; False where the group is over. Safe to
        repeat where their UUIDs are the same."""
        # of two copies of an entry, the second one looks whether the first one has run
        checked = replace(workflow, entries=tuple(with_headers(each, {CHECK_HEADER: "1"}) for each in workflow.entries))
        whole = await self._outgoing(checked)
        added = members_in(group_id, workflow.entries, workflow.plans)
        (group,) = await self._patience.insist("look up a group", lambda: backend.get_groups([group_id]))
        if group is None or group.chord_triggered:
            return False
        groups = [group for group in whole.groups if group.group_uuid != group_id]
        states = {state.task_uuid: state for state in whole.states}
        for entry, ready in zip(workflow.entries, whole.messages, strict=True):
            own = [states[task.uuid] for task in tasks_in([entry], workflow.plans)]
            await self._offer(Outgoing(own, [ready], groups, whole.plans))
        # last, so that nobody finds a member that has no state; one that has ended by now counts all the same
        return await self._patience.insist("add members", lambda: backend.add_members(group_id, added))

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._batcher.close()

    async def _hooked(self, signature: Signature) -> Signature:
        for hook in self._hooks:
            signature = await finished(hook(signature)) or signature
        return signature

    def _prepared(self, signature: Signature) -> _Prepared:
        rules = self._rules()
        now = self._clock.now_ns()
        filled = _filled(signature, rules.default_queue)
        if rules.go_compat:
            filled = _with_queues(filled, rules.default_queue)
        problem = name_problem(filled)
        if problem:
            raise Refused(f"task {filled.name!r} cannot be sent: {problem}")
        registered = self._registry.find(filled.name)
        if registered is not None:
            registered.bind(filled)
        if rules.go_compat:
            self._check_for_go(filled, rules, now)
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
        return _Prepared(filled, pending(filled, now), ready)

    def _check_for_go(self, signature: Signature, rules: Rules, now_ns: int) -> None:
        delay = ((signature.eta or now_ns) - now_ns) / NANOSECONDS
        problem = self._registry.problem_for_go(signature, rules.go, rules.default_queue) or problem_with_delay(
            signature, delay, self._longest_delay, rules.go, default_queue=rules.default_queue
        )
        if problem is not None:
            raise ArgumentError(problem)
        risk = risk_for_go(signature, rules.go, rules.default_queue)
        if risk is not None and signature.name not in self._warned and len(self._warned) < MOST_WARNED:
            self._warned.add(signature.name)
            self._events.emit(RiskForGo(signature.name, risk))

    async def _outgoing(self, workflow: Compiled) -> Outgoing:
        now = self._clock.now_ns()
        prepared: list[_Prepared] = []
        for entry in workflow.entries:
            hooked = await self._hooked(timed(entry, now))
            prepared.append(self._prepared(hooked.with_changes(uuid=entry.uuid)))
        tasks = tasks_in(workflow.entries, workflow.plans)
        groups = groups_in(workflow.entries, workflow.plans)
        moments = (*(each.state.not_before for each in prepared), *(later(each.eta, now) for each in tasks))
        due = max((each for each in moments if each is not None), default=None)
        return Outgoing(
            # the entries first: whoever offers looks at the first one
            states=[changed(pending(each, now), {"not_before": due}) for each in tasks],
            messages=[each.message for each in prepared],
            groups=[changed(each, {"created_at": now, "not_before": due}) for each in groups],
            plans=[replace(each, not_before=due) for each in workflow.kept],
        )

    async def _insist(self, work: Outgoing) -> None:
        submission = self._settlement.submission(work)
        await self._patience.insist(f"publish to {self._address}", submission, budget=self._timeout())

    async def _offer(self, work: Outgoing) -> None:
        settlement, doing = self._settlement, f"publish to {self._address}"
        await self._patience.insist(doing, lambda: settlement.offer(work), budget=self._timeout())

    async def _flush(self, outgoing: Sequence[_Prepared]) -> None:
        work = Outgoing([each.state for each in outgoing], [each.message for each in outgoing])
        await self._insist(work)
        for each in outgoing:
            each.is_sent = True

    def _unknown(self, task_ids: Sequence[str], error: Unavailable) -> PublishUnknown:
        """The error for a caller whose messages left together with those of others: it speaks of the caller's own."""
        ids = tuple(task_ids)
        shown = ids[0] if len(ids) == 1 else f"{len(ids)} tasks ({ids[0]}, …)"
        return PublishUnknown(f"cannot say whether {shown} reached {self._address}: {error}", ids)


def _with_queues(signature: Signature, default_queue: str) -> Signature:
    """With a queue for each signature inside of it that names none: Go's worker would send it to its own default queue,
    where nobody may know it."""
    changes: dict[str, object] = {}
    for field in ("on_success", "on_error"):
        callbacks: tuple[Signature, ...] | None = getattr(signature, field)
        if callbacks:
            changes[field] = tuple(_with_queues(each, default_queue) for each in callbacks)
    if signature.chord_callback is not None:
        changes["chord_callback"] = _with_queues(signature.chord_callback, default_queue)
    if not signature.routing_key:
        changes["routing_key"] = default_queue
    return signature.with_changes(**changes) if changes else signature


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
