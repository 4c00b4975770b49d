"""Redis keeps the contracts in all its forms: a cluster, a master that sentinels watch, TLS, a unix socket, a Valkey."""

from __future__ import annotations

import pytest

from asyncqueue.backends.redis import RedisBackend
from asyncqueue.brokers.redis import RedisBroker
from asyncqueue.connections.redis import Options
from asyncqueue.locks.redis import RedisLock
from asyncqueue.testing import (
    BackendContract,
    BrokerContract,
    GroupContract,
    InspectorContract,
    JointContract,
    JointGroupContract,
    LockContract,
    TurnLockContract,
)
from asyncqueue.testing.suite import Suite
from tests.services import RedisSentinel, free_port

LEASE = 2.0
KEPT = 3600.0


class OfRedis(Suite):
    """The drivers at ``url``, reached with ``options``, and where nobody is."""

    url: str
    options: Options = {}

    def nobody(self) -> str:
        """A URL where no server is."""
        return f"redis://127.0.0.1:{free_port()}/0"

    async def make_broker(self) -> RedisBroker:
        return RedisBroker(self.url, lease=LEASE, delayed_poll=0.1, **self.options)

    async def make_backend(self, results_expire_in: float = KEPT) -> RedisBackend:
        return RedisBackend(self.url, results_expire_in=results_expire_in, **self.options)

    async def make_lock(self) -> RedisLock:
        return RedisLock(self.url, **self.options)


class OfBroker(OfRedis):
    async def make_unreachable(self) -> RedisBroker:
        return RedisBroker(self.nobody(), lease=LEASE, **self.options)


class OfBackend(OfRedis):
    async def make_unreachable(self) -> RedisBackend:
        return RedisBackend(self.nobody(), **self.options)


class OfLock(OfRedis):
    async def make_unreachable(self) -> RedisLock:
        return RedisLock(self.nobody(), **self.options)


# ------------------------------------------------------------------------------------------------- a cluster


class OnCluster(Suite):
    """An empty cluster of three masters for each test."""

    options: Options = {"cluster": True}

    @pytest.fixture
    def service(self, redis_cluster_url: str) -> None:
        self.url = redis_cluster_url


class TestClusterBroker(OnCluster, OfBroker, BrokerContract):
    pass


class TestClusterInspector(OnCluster, OfRedis, InspectorContract):
    pass


class TestClusterBackend(OnCluster, OfBackend, BackendContract):
    pass


class TestClusterGroups(OnCluster, OfBackend, GroupContract):
    pass


class TestClusterLock(OnCluster, OfLock, LockContract):
    pass


class TestClusterTurnLock(OnCluster, OfLock, TurnLockContract):
    pass
