"""How often messages were shown, where their broker does not count: noted in the states of their tasks.

A broker that tells a first showing from a later one costs nothing for the first. With one that tells nothing, every
run is noted before it begins.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from asyncqueue import wire
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Delivery
from asyncqueue.engine.batching import Batcher
from asyncqueue.engine.events import Events, StoreRefused
from asyncqueue.engine.patience import Patience
from asyncqueue.errors import BadMessage, Refused
from asyncqueue.models import made
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskState

_MAX_ITEMS = 500


class Showings:
    """Fills in ``Delivery.attempt`` from the backend, and notes there what begins to run.

    What the backend refuses is not counted, and told as an event: counting guards against messages that kill their
    workers, and holds up no others.
    """

    def __init__(self, backend: Backend, *, events: Events, patience: Patience) -> None:
        self._backend = backend
        self._events = events
        self._patience = patience
        self._noted: dict[Hashable, TaskState | None] = {}
        self._notes = Batcher(self._put, _MAX_ITEMS)

    async def counted(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """The same, each with the number of its showing, as far as it is known."""
        unsure = {
            place: task_id
            for place, delivery in enumerate(deliveries)
            if delivery.attempt != 1 and (task_id := wire.readable_task_id(delivery.body))
        }
        if not unsure:
            return deliveries
        states = await self._states(list(unsure.values()))
        counted = list(deliveries)
        for place, state in zip(unsure, states, strict=True):
            counted[place] = replace(counted[place], attempt=max(counted[place].attempt, _seen(state) + 1))
            self._noted[counted[place].receipt] = None
        return counted

    async def note(self, delivery: Delivery, signature: Signature, attempt: int) -> None:
        """A run begins; its showing counts from now on, where the broker is not sure that it is the first."""
        if delivery.receipt in self._noted:
            state = started_state(signature, attempt, delivery.attempt)
            self._noted[delivery.receipt] = state
            await self._notes.add([state])

    def taken_back(self, delivery: Delivery) -> TaskState | None:
        """What to record when a run is given back, so that its showing does not count; None: nothing was noted."""
        state = self._noted.get(delivery.receipt)
        if state is None:
            return None
        return state.model_copy(update={"state": State.RETRY, "deliveries": max(0, state.deliveries - 1)})

    def ended(self, delivery: Delivery) -> None:
        """Nothing need be remembered of this one."""
        self._noted.pop(delivery.receipt, None)

    async def _states(self, task_ids: Sequence[str]) -> Sequence[TaskState | None]:
        try:
            return await self._patience.insist("look up states", lambda: self._backend.get(task_ids))
        except (Refused, BadMessage) as exc:
            self._events.emit(StoreRefused("count deliveries", str(exc)))
            return [None] * len(task_ids)

    async def _put(self, states: Sequence[TaskState]) -> None:
        try:
            await self._patience.insist("count deliveries", lambda: self._backend.put(states))
        except Refused as exc:
            self._events.emit(StoreRefused("count deliveries", str(exc)))


def started_state(signature: Signature, attempt: int, deliveries: int) -> TaskState:
    """The STARTED state of a run: of which attempt of the task, at which showing of its message."""
    return made(
        TaskState,
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.STARTED,
        attempt=attempt if attempt > 1 else 0,
        deliveries=deliveries if deliveries > 1 else 0,
    )


def _seen(state: TaskState | None) -> int:
    """How many showings a state knows of. A run that was not noted, or has ended, is one."""
    if state is None or state.state is State.PENDING:
        return 0
    return state.deliveries or (0 if state.state is State.RETRY else 1)
