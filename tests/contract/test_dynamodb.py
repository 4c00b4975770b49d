"""DynamoDB keeps the contracts of backend, lock and what makes its tables, on DynamoDB Local; and what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from asyncqueue.backends.base import Backend
from asyncqueue.backends.dynamodb import DynamoBackend
from asyncqueue.clock import Clock
from asyncqueue.connections.dynamodb_items import MAX_ITEM, ROOM
from asyncqueue.locks.base import TurnLock
from asyncqueue.locks.dynamodb import DynamoLock
from asyncqueue.testing import (
    BackendContract,
    GroupContract,
    LockContract,
    ManualClock,
    MigratingContract,
    TurnLockContract,
    group_contract,
)
from asyncqueue.testing.suite import KEPT, Suite
from tests.services import free_port

NEVER_SWEPT = 4_000_000_000
"""Unix seconds at which the tests' clock starts: DynamoDB Local deletes what has expired by its own."""


def nobody() -> str:
    """A URL at which nobody answers."""
    return f"http://test:test@127.0.0.1:{free_port()}?region=local"


class OnDynamo(Suite):
    """Empty tables, and a clock of each test's own: expiry, claims and locks are by the clock of those who ask."""

    driver = "dynamodb"
    clock: Clock
    expiry = 20.0  # in whole seconds, and so are the parts of it that the tests let pass
    entry_limit = MAX_ITEM - ROOM
    password = "test"

    @pytest.fixture
    def service(self, dynamodb_url: str) -> None:
        self.url = dynamodb_url
        self.clock = self.manual_clock = ManualClock(NEVER_SWEPT)

    async def advance(self, seconds: float) -> None:
        self.manual_clock.advance(seconds)

    async def make_backend(self, results_expire_in: float = KEPT) -> DynamoBackend:
        return DynamoBackend(self.url, results_expire_in=results_expire_in, clock=self.clock)


class OnDynamoBackend(OnDynamo):
    async def make_unreachable(self) -> Backend:
        return DynamoBackend(nobody(), clock=self.clock)


class OnDynamoLock(OnDynamo):
    async def make_lock(self) -> TurnLock:
        return DynamoLock(self.url, clock=self.clock)

    async def make_unreachable(self) -> TurnLock:
        return DynamoLock(nobody(), clock=self.clock)


class TestBackend(OnDynamoBackend, BackendContract):
    pass


class TestGroups(OnDynamoBackend, GroupContract):
    @pytest.fixture(autouse=True)
    def batches_are_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """DynamoDB Local makes 500 changes of single items per second, and no more."""
        monkeypatch.setattr(group_contract, "BATCH", 100)

    async def test_a_plan_over_the_size_limit_is_named_and_nothing_is_written(self) -> None:
        pytest.skip("a plan that is too big for an item lies in parts: it has no limit")


class TestTables(OnDynamo, MigratingContract):
    @pytest.fixture
    def service(self, bare_dynamodb_url: str) -> None:
        self.url = bare_dynamodb_url

    async def make_driver(self) -> Any:
        return DynamoBackend(self.url)

    async def make_unreachable(self) -> Any:
        return DynamoBackend(nobody())


class TestTableOfLocks(TestTables):
    async def make_driver(self) -> Any:
        return DynamoLock(self.url)

    async def make_unreachable(self) -> Any:
        return DynamoLock(nobody())


class TestLock(OnDynamoLock, LockContract):
    pass


class TestTurns(OnDynamoLock, TurnLockContract):
    pass
