"""Redis keeps the contracts of broker, backend, lock and joint store; and what is its own."""

from __future__ import annotations

import pytest

from asyncqueue.backends.redis import RedisBackend
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.locks.redis import RedisLock
from asyncqueue.testing.backend_contract import KEPT, BackendContract
from asyncqueue.testing.broker_contract import BrokerContract
from asyncqueue.testing.inspector_contract import InspectorContract
from asyncqueue.testing.lock_contract import LockContract
from asyncqueue.testing.suite import Suite
from tests.services import free_port

LEASE = 2.0


class OnRedis(Suite):
    """An empty database for each test."""

    @pytest.fixture
    def service(self, redis_url: str) -> None:
        self.url = redis_url

    def nobody(self) -> str:
        """A URL where no server is."""
        return f"redis://127.0.0.1:{free_port()}/0"


class TestRedisBroker(OnRedis, BrokerContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)

    async def make_unreachable(self) -> RedisBroker:
        return RedisBroker(self.nobody(), lease=LEASE)


class TestRedisInspector(OnRedis, InspectorContract):
    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1)


class TestRedisBackend(OnRedis, BackendContract):
    async def make_backend(self, results_expire_in: float = KEPT) -> RedisBackend:
        return RedisBackend(self.url, results_expire_in=results_expire_in)

    async def make_unreachable(self) -> RedisBackend:
        return RedisBackend(self.nobody())


class TestRedisLock(OnRedis, LockContract):
    async def make_lock(self) -> RedisLock:
        return RedisLock(self.url)

    async def make_unreachable(self) -> RedisLock:
        return RedisLock(self.nobody())
