"""What the contract suites stand on: drivers on one fresh namespace, opened and closed, and ways to wait for things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import pytest
import pytest_asyncio

from asyncqueue import rfc3339
from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Delivery, Inspector, Message, Tended
from asyncqueue.clock import NANOSECONDS, SYSTEM_CLOCK, Clock
from asyncqueue.errors import EntryTooLarge, Unavailable
from asyncqueue.signature import Signature, new_task_id
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.wire import decode_signature, encode_signature


class _Opened(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...


T = TypeVar("T")
Thing = TypeVar("Thing", bound=_Opened)

KEPT = 3600.0
"""How long (seconds) entries are kept in all tests but those of expiry."""

GRAIN = 0.01
"""How much earlier (seconds) than asked is still on time: a service rounds moments to its own grain."""


class Suite:
    """Things to test, made for each test and closed after it.

    A suite object is made for every test, so that ``self`` is the place to keep a namespace: fresh for each test, and
    the same for everything made within it. Override the fixture ``service`` to get what making them takes::

        @pytest.fixture
        def service(self, redis_url: str) -> None:
            self.url = redis_url
    """

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.asyncio]

    clock: Clock = SYSTEM_CLOCK
    """The clock that the driver is given."""

    patience: float = 30.0
    """The longest (seconds) that a test waits for what must come."""

    @pytest.fixture
    def service(self) -> None:
        """What the driver needs; asked for before anything is made."""

    @pytest_asyncio.fixture(autouse=True)
    async def _prepared(self, service: None) -> AsyncIterator[None]:
        await self.prepare()
        try:
            yield
        finally:
            await self.clean_up()

    async def prepare(self) -> None:
        """Before each test: make and open what all tests of the suite use."""
        self._opened: list[_Opened] = []

    async def clean_up(self) -> None:
        """After each test: close what the suite opened."""
        for thing in reversed(self._opened):
            await thing.close()

    async def advance(self, seconds: float) -> None:
        """Let time pass. With a real service it really has to; where the clock is manual, move that."""
        await asyncio.sleep(seconds)

    async def opened(self, thing: Thing) -> Thing:
        """Open it now; it is closed at the end of the test."""
        self._opened.append(thing)
        await thing.open()
        return thing

    def now(self) -> float:
        """Unix seconds."""
        return self.clock.now_ns() / NANOSECONDS

    async def in_time(self, awaited: Awaitable[T]) -> T:
        """What must come, within the patience of the suite."""
        try:
            async with asyncio.timeout(self.patience):
                return await awaited
        except TimeoutError:
            raise AssertionError(f"nothing came within {self.patience} s") from None

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again, with patience, until it holds: for what a service tells nobody."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while not await holds():
            assert loop.time() < deadline, f"it did not hold within {self.patience} s"
            await asyncio.sleep(0.01)

    async def in_another_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it to its end in a thread and event loop of its own."""
        return await asyncio.to_thread(lambda: asyncio.run(work()))

    def unsaid(self, method: str, returns: str) -> NotImplementedError:
        """The error for a page that does not say how to make what it is about."""
        # not abstract methods: pytest cannot make a class that has some, and would say nothing of what is missing
        return NotImplementedError(f"{type(self).__name__} must override {method}: it returns {returns}")

    async def raises_unavailable(self, verbs: Iterable[Callable[[], Awaitable[object]]]) -> None:
        """Each of these ends with ``Unavailable``."""
        for verb in verbs:
            with pytest.raises(Unavailable):
                await self.in_time(verb())


class BrokerSuite(Suite):
    """Brokers on one namespace."""

    queue: str = "contract"
    other_queue: str = "contract-2"

    async def make_broker(self) -> Broker:
        """A broker, not yet open, on the namespace of this test. Each call returns an instance of its own, as another
        worker would have it. Where its lease is real time, two seconds are a good one: the tests wait for its end,
        and have to be back before it within less than half of it."""
        raise self.unsaid("make_broker", "a broker, not yet open, on the namespace of this test")

    async def prepare(self) -> None:
        await super().prepare()
        self.broker = await self.another_broker()

    async def another_broker(self) -> Broker:
        """One more open broker on the namespace: another worker."""
        return await self.opened(await self.make_broker())

    @property
    def lease(self) -> float:
        """How long a delivery stays its taker's; skips the test where it has no end."""
        lease = self.broker.capabilities.lease
        return pytest.skip("a delivery stays with its taker until that lets go") if lease is None else lease

    def inspector(self) -> Inspector:
        """The broker as an inspector; skips the test where it is none."""
        return self.broker if isinstance(self.broker, Inspector) else pytest.skip("the broker cannot be looked into")

    def message(
        self,
        name: str,
        *,
        queue: str | None = None,
        not_before: float | None = None,
        priority: int = 0,
        ordering_key: str | None = None,
        token: str = "",
    ) -> Message:
        """A call of the task ``name``, as the engine makes it. Every call makes another message."""
        queue = self.queue if queue is None else queue
        signature = Signature(
            uuid=new_task_id(),
            name=name,
            routing_key=queue,
            priority=priority,
            eta=None if not_before is None else round(not_before * NANOSECONDS),
        )
        return Message(
            encode_signature(signature),
            queue,
            signature.uuid,
            not_before=not_before,
            priority=priority,
            ordering_key=ordering_key,
            token=token,
        )

    def raw_message(self, body: bytes) -> Message:
        """A message with any bytes for a body."""
        return Message(body, self.queue, new_task_id())

    async def publish(self, *names: str) -> None:
        """Publish calls of these tasks in one batch."""
        await self.broker.publish([self.message(name) for name in names])

    async def fetch_now(self, limit: int = 100, *, broker: Broker | None = None) -> list[Delivery]:
        """What there is at this moment."""
        broker = broker or self.broker
        await tend(broker, self.queue)
        return list(await broker.fetch(self.queue, limit, 0))

    async def fetch_until(
        self, count: int = 1, *, broker: Broker | None = None, queue: str | None = None, limit: int = 500
    ) -> list[Delivery]:
        """``count`` deliveries, waiting for them with patience."""
        broker, queue = broker or self.broker, self.queue if queue is None else queue
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        taken: list[Delivery] = []
        while len(taken) < count:
            assert loop.time() < deadline, f"of {count} deliveries of {queue} came only {names(taken)}"
            await tend(broker, queue)
            taken += await broker.fetch(queue, min(count - len(taken), limit), 0.1)
        assert len(taken) == count, f"more than the {count} deliveries that were asked for"
        return taken

    async def fetch_one(self, *, broker: Broker | None = None) -> Delivery:
        """The next delivery."""
        (delivery,) = await self.fetch_until(1, broker=broker)
        return delivery

    async def assert_done(self, *deliveries: Delivery) -> None:
        """These are nobody's any more and nothing of them comes back, not even when their worker leaves."""
        assert list(await self.broker.extend(deliveries)) == list(deliveries), "still held"
        await self.assert_nothing_comes_back()

    async def assert_nothing_comes_back(self) -> None:
        """The queue is empty, and the worker holds nothing that it gives back when it leaves."""
        other = await self.another_broker()
        await self.broker.close()
        assert names(await self.fetch_now(broker=other)) == []


class BackendSuite(Suite):
    """Backends on one namespace."""

    expiry: float = 1.0
    """``results_expire_in`` (seconds) in the tests of expiry. A real service really waits that long."""

    entry_limit: int | None = None
    """The most bytes that an entry may have, where the store has a limit that an entry could meet."""

    async def make_backend(self, results_expire_in: float = KEPT) -> Backend:
        """A backend, not yet open, on the namespace of this test: fresh and empty at first. Each call returns an
        instance of its own, as another process would have it."""
        raise self.unsaid("make_backend", "a backend, not yet open, on the namespace of this test")

    async def make_unreachable(self) -> Backend:
        """A backend, not yet open, whose service does not answer."""
        pytest.skip("there is no service that could be away")

    async def prepare(self) -> None:
        await super().prepare()
        self.backend = await self.another_backend()

    async def another_backend(self, results_expire_in: float = KEPT) -> Backend:
        """One more open backend on the namespace: another process."""
        return await self.opened(await self.make_backend(results_expire_in))

    def over_the_limit(self) -> str:
        """A text too big for an entry of the store; skips the test where none is."""
        if self.entry_limit is None:
            pytest.skip("the store has no limit that an entry could meet")
        return "x" * (self.entry_limit + 1)

    def assert_names(self, error: EntryTooLarge, entry_id: str) -> None:
        """It says which entry is too big, and the limit."""
        assert entry_id in str(error)
        assert f"{self.entry_limit} bytes" in str(error)

    async def states(self, *task_ids: str, backend: Backend | None = None) -> list[State | None]:
        """The states of these tasks, None where there is no entry."""
        found = await (backend or self.backend).get(task_ids)
        return [state_of(one) for one in found]

    async def until_states(self, task_ids: Sequence[str], expected: Sequence[State | None]) -> None:
        """Wait until they are these."""

        async def are_there() -> bool:
            return await self.states(*task_ids) == list(expected)

        await self.until(are_there)


def state(
    task_id: str,
    new: State = State.PENDING,
    *,
    name: str = "",
    error: str = "",
    results: tuple[TaskResult, ...] | None = None,
    created_at: int = rfc3339.ZERO,
    attempt: int = 0,
    not_before: float | None = None,
) -> TaskState:
    """A state, as short as can be."""
    return TaskState(
        task_uuid=task_id,
        task_name=name,
        state=new,
        error=error,
        results=results,
        created_at=created_at,
        attempt=attempt,
        not_before=not_before,
    )


def state_of(found: TaskState | None) -> State | None:
    """Its state, or None where there is no entry."""
    return None if found is None else found.state


async def tend(broker: Broker, *queues: str) -> None:
    """Look after queues, where a broker needs that."""
    if isinstance(broker, Tended):
        await broker.tend(queues)


def names(deliveries: Sequence[Delivery]) -> list[str]:
    """The names of the tasks that were called."""
    return [decode_signature(delivery.body).name for delivery in deliveries]
