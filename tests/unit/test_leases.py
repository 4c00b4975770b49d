"""The heartbeat goes on whatever its store does, and ends when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from asyncqueue.brokers.base import Delivery
from asyncqueue.brokers.memory import MemoryBroker
from asyncqueue.clock import SYSTEM_CLOCK
from asyncqueue.connections.memory import MemoryStore
from asyncqueue.engine.leases import LeaseKeeper
from asyncqueue.errors import Unavailable

HELD = Delivery(b"", "q", "1@here", 1)
PATIENCE = 30.0


class Beats(MemoryBroker):
    """What is extended comes to ``extends``: first what it raises there, then nothing."""

    errors: ClassVar[list[Exception]] = []
    beats: ClassVar[list[int]] = []
    hangs: ClassVar[bool] = False
    reached: ClassVar[threading.Event] = threading.Event()

    async def extend(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        type(self).beats.append(len(deliveries))
        if self.hangs:
            self.reached.set()
            await asyncio.Event().wait()
        if self.errors:
            raise self.errors.pop(0)
        return ()


@pytest.fixture
def beats() -> type[Beats]:
    class Own(Beats):
        errors: ClassVar[list[Exception]] = []
        beats: ClassVar[list[int]] = []
        reached: ClassVar[threading.Event] = threading.Event()

    return Own


@asynccontextmanager
async def keeping(broker: MemoryBroker) -> AsyncIterator[LeaseKeeper]:
    keeper = LeaseKeeper(broker, clock=SYSTEM_CLOCK, lost=lambda lost: None, blocked=lambda seconds, stack: None)
    keeper.hold([HELD])
    keeper.start()
    try:
        yield keeper
    finally:
        async with asyncio.timeout(PATIENCE):
            await keeper.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("no driver should")])
async def test_a_heartbeat_that_fails_is_tried_again(beats: type[Beats], error: Exception) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    beats.errors.append(error)
    async with keeping(beats(MemoryStore(), lease=0.2)):
        await until(lambda: len(beats.beats) >= 3)
    assert [one["exception"] for one in told] == ([] if isinstance(error, Unavailable) else [error])


async def test_a_store_that_does_not_answer_holds_up_no_stop(beats: type[Beats]) -> None:
    beats.hangs = True
    async with keeping(beats(MemoryStore(), lease=0.2)):
        await asyncio.to_thread(beats.reached.wait, PATIENCE)


async def test_a_broker_that_has_no_twin_fails_where_it_is_started() -> None:
    class Alone(MemoryBroker):
        def twin(self) -> Any:
            raise RuntimeError("only one of me")

    keeper = LeaseKeeper(
        Alone(MemoryStore(), lease=1.0), clock=SYSTEM_CLOCK, lost=lambda lost: None, blocked=lambda seconds, stack: None
    )
    with pytest.raises(RuntimeError, match="only one"):
        keeper.start()
    await keeper.stop()
