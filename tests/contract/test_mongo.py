"""MongoDB keeps the contracts of backend and lock, through PyMongo and through Motor; and what is its own."""

from __future__ import annotations

import pytest

from asyncqueue.backends.mongo import MongoBackend
from asyncqueue.connections.mongo_documents import MAX_ENTRY
from asyncqueue.locks.mongo import MongoLock
from asyncqueue.testing import (
    BackendContract,
    GroupContract,
    LockContract,
    ManualClock,
    MigratingContract,
    TurnLockContract,
    group_contract,
)
from asyncqueue.testing.suite import Suite
from tests.services import free_port

# a client that is closed while it still connects forgets to close that socket, which is closed when it is collected
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

FAR = 4_000_000_000
"""Unix seconds, decades from now: what ends by the tests' own clock the server keeps for as long as they run."""


class OnMongo(Suite):
    """A database of each test's own."""

    driver = "mongo"

    @pytest.fixture
    def service(self, mongo_url: str) -> None:
        self.url = mongo_url

    @property
    def nowhere(self) -> str:
        return f"mongodb://127.0.0.1:{free_port()}/machinery?serverSelectionTimeoutMS=50"


class BackendOnMongo(OnMongo):
    entry_limit = MAX_ENTRY

    @pytest.fixture(autouse=True)
    def batches_are_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SecantusDB takes a millisecond for each document that it reads or writes."""
        monkeypatch.setattr(group_contract, "BATCH", 100)
        monkeypatch.setattr(group_contract, "MANY", 400)

    @pytest.fixture
    def service(self, mongo_url: str) -> None:
        self.url = mongo_url
        self.clock = self.manual_clock = ManualClock(FAR)

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)

    async def make_backend(self, results_expire_in: float = 3600.0) -> MongoBackend:
        return MongoBackend(self.url, results_expire_in=results_expire_in, clock=self.clock)

    async def make_unreachable(self) -> MongoBackend:
        return MongoBackend(self.nowhere)


class TestBackend(BackendOnMongo, BackendContract):
    pass


class TestGroups(BackendOnMongo, GroupContract):
    pass


class TestMigrating(BackendOnMongo, MigratingContract):
    async def make_driver(self) -> MongoBackend:
        return await self.make_backend()


class LockOnMongo(OnMongo):
    async def make_lock(self) -> MongoLock:
        return MongoLock(self.url)

    async def make_unreachable(self) -> MongoLock:
        return MongoLock(self.nowhere)


class TestLock(LockOnMongo, LockContract):
    pass


class TestTurnLock(LockOnMongo, TurnLockContract):
    pass


class TestLockMigrating(LockOnMongo, MigratingContract):
    async def make_driver(self) -> MongoLock:
        return await self.make_lock()
