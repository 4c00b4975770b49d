"""What a worker does for the tasks that it runs, beside running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from asyncqueue.backends.base import Backend
from asyncqueue.compiling import added
from asyncqueue.engine.messages import Rules
from asyncqueue.engine.observing import Observers
from asyncqueue.engine.publisher import Publisher
from asyncqueue.errors import ArgumentError, NoBackend
from asyncqueue.signature import Signature
from asyncqueue.workflow import Node, Parallel


class WorkerFacilities:
    """See ``Facilities``. ``yield_slot`` is the consumer's."""

    def __init__(
        self,
        yield_slot: Callable[[], AbstractAsyncContextManager[None]],
        publisher: Publisher,
        backend: Backend | None,
        rules: Callable[[], Rules],
        observers: Observers,
    ) -> None:
        self.yield_slot = yield_slot
        self._publisher = publisher
        self._backend = backend
        self._rules = rules
        self._observers = observers

    async def add_members(self, signature: Signature, members: Sequence[Node], first: int) -> None:
        if self._backend is None:
            raise NoBackend(f"task {signature.name}: a group needs a result backend, and this worker has none")
        rules = self._rules()
        if rules.go_compat:
            raise ArgumentError(
                f"task {signature.name}: a Go worker would take a group to which members are added for complete too "
                "early, and go_compat is on: send them as a group of their own"
            )
        with self._observers.sending(Parallel(tuple(members))) as send:
            more = added(
                signature, send.work.members, first=first, default_queue=rules.default_queue, limits=rules.limits
            )
            if not await self._publisher.add_members(self._backend, signature.group_uuid, more):
                raise ArgumentError(
                    f"task {signature.name}: group {signature.group_uuid} is over, so none can be added to it"
                )
            send.sent = more
