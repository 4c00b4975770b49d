"""Looking into the queues of a server: what waits there, what is dead, and what is to become of that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncqueue import wire
from asyncqueue.brokers.base import Dead, Inspector, QueueDepth
from asyncqueue.engine.messages import callback_ids, pending
from asyncqueue.errors import BadMessage, Refused
from asyncqueue.foundation import Foundation
from asyncqueue.signature import Signature
from asyncqueue.workflow import companion, is_companion


class Inspectable(Foundation):
    """A server, as whoever looks after its queues sees it."""

    async def get_pending_tasks(self, queue: str | None = None, limit: int = 1_000) -> list[Signature]:
        """Signatures that wait in a queue (the default queue unless said otherwise), next first.

        What is no signature is left out. Raises ``Refused`` where the broker cannot be looked into.
        """
        inspector = await self.inspector()
        return _readable(await inspector.peek(queue or self.settings.default_queue, limit))

    async def get_delayed_tasks(self, limit: int = 1_000) -> list[Signature]:
        """Signatures that are not due yet, of all queues, soonest first. Raises as ``get_pending_tasks`` does."""
        inspector = await self.inspector()
        return _readable([body for _, body in await inspector.delayed(limit)])

    async def queues(self) -> list[QueueDepth]:
        """How much is in each queue the broker can see; of companion queues, in those that have anything in them.

        Where the service does not list its queues, these are the queues that this server knows: its default queue, and
        those of its tasks. Raises ``Refused`` where the broker cannot be looked into at all.
        """
        inspector = await self.inspector()
        names = {self.settings.default_queue}
        try:
            names.update(await inspector.queues())
        except Refused:
            own = (self.registry.get(task).options.queue for task in self.registry.names())
            names.update(queue for queue in own if queue)
            names.update([companion(name) for name in names])
        found = [await inspector.depth(name) for name in sorted(names)]
        return [
            depth
            for depth in found
            if depth.ready or depth.held or depth.delayed or depth.dead or not is_companion(depth.queue)
        ]

    async def purge(self, queue: str | None = None) -> int:
        """Drop what waits in a queue; returns how many. What workers hold, and what is delayed, stays."""
        inspector = await self.inspector()
        return await inspector.purge(queue or self.settings.default_queue)

    async def dead(self, queue: str | None = None, limit: int = 100, offset: int = 0) -> Sequence[Dead]:
        """Entries of a queue's dead letter, oldest first."""
        inspector = await self.inspector()
        return await inspector.dead(queue or self.settings.default_queue, limit, offset)

    async def requeue_dead(self, ids: Sequence[str] | None = None, queue: str | None = None) -> int:
        """Put dead entries (all of them, unless ``ids`` are given) back into their queue; returns how many.

        They run again, as new messages, although their state was FAILURE: it becomes PENDING first.
        """
        queue = queue or self.settings.default_queue
        connected = await self.connected()
        inspector = await self.inspector()
        count = 0
        for entry in await _all_dead(inspector, queue):
            if ids is not None and entry.id not in ids:
                continue
            signatures = _readable([entry.body])
            if connected.backend is not None and signatures:
                # its callbacks are sent anew too, and look their own states up before they run
                await connected.backend.forget(callback_ids(signatures[0]))
                await connected.backend.begin([pending(signatures[0], self.clock.now_ns())])
            count += await inspector.requeue(queue, [entry.id])
        return count

    async def drop_dead(self, ids: Sequence[str] | None = None, queue: str | None = None) -> int:
        """Drop dead entries (all of them, unless ``ids`` are given) for good; returns how many."""
        queue = queue or self.settings.default_queue
        inspector = await self.inspector()
        known = [entry.id for entry in await _all_dead(inspector, queue)]
        chosen = [each for each in known if ids is None or each in ids]
        return await inspector.drop(queue, chosen) if chosen else 0


def _readable(bodies: Iterable[bytes]) -> list[Signature]:
    signatures: list[Signature] = []
    for body in bodies:
        try:
            signatures.append(wire.decode_signature(body))
        except BadMessage:
            continue  # a worker will bury it, and say so
    return signatures


async def _all_dead(inspector: Inspector, queue: str) -> list[Dead]:
    found: list[Dead] = []
    while page := await inspector.dead(queue, _PAGE, len(found)):
        found.extend(page)
    return found


_PAGE = 500
