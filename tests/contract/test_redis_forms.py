"""Redis keeps the contracts in all its forms: a cluster, a master behind sentinels, TLS, a unix socket, a Valkey."""

from __future__ import annotations

from typing import ClassVar

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
from tests.services import free_port

LEASE = 2.0
KEPT = 3600.0


class OfRedis(Suite):
    """The drivers at ``url``, reached with ``options``, and where nobody is."""

    url: str
    options: ClassVar[Options] = {}

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

    driver = "cluster"

    options: ClassVar[Options] = {"cluster": True}

    @pytest.fixture
    def service(self, redis_cluster_url: str) -> None:
        self.url = redis_cluster_url


@pytest.mark.long
class TestClusterBroker(OnCluster, OfBroker, BrokerContract):
    pass


@pytest.mark.long
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


# ------------------------------------------------------------------------------- a master that sentinels watch


class OnSentinel(Suite):
    """An empty database of the master for each test."""

    driver = "sentinel"

    @pytest.fixture
    def service(self, redis_sentinel_url: str) -> None:
        self.url = redis_sentinel_url

    def nobody(self) -> str:
        return f"redis://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/0?master_name=m"


@pytest.mark.long
class TestSentinelBroker(OnSentinel, OfBroker, BrokerContract):
    pass


@pytest.mark.long
class TestSentinelInspector(OnSentinel, OfRedis, InspectorContract):
    pass


class TestSentinelBackend(OnSentinel, OfBackend, BackendContract):
    pass


class TestSentinelGroups(OnSentinel, OfBackend, GroupContract):
    pass


class TestSentinelJoint(OnSentinel, OfRedis, JointContract):
    pass


@pytest.mark.long
class TestSentinelJointGroups(OnSentinel, OfRedis, JointGroupContract):
    pass


class TestSentinelLock(OnSentinel, OfLock, LockContract):
    pass


class TestSentinelTurnLock(OnSentinel, OfLock, TurnLockContract):
    pass


# ------------------------------------------------------------------------------------- another server version


class OnValkey(Suite):
    """An empty database of a Valkey for each test."""

    driver = "valkey"

    @pytest.fixture
    def service(self, valkey_url: str) -> None:
        self.url = valkey_url


@pytest.mark.long
class TestValkeyBroker(OnValkey, OfBroker, BrokerContract):
    pass


@pytest.mark.long
class TestValkeyInspector(OnValkey, OfRedis, InspectorContract):
    pass


@pytest.mark.long
class TestValkeyBackend(OnValkey, OfBackend, BackendContract):
    pass


@pytest.mark.long
class TestValkeyGroups(OnValkey, OfBackend, GroupContract):
    pass


class TestValkeyJoint(OnValkey, OfRedis, JointContract):
    pass


@pytest.mark.long
class TestValkeyJointGroups(OnValkey, OfRedis, JointGroupContract):
    pass


@pytest.mark.long
class TestValkeyLock(OnValkey, OfLock, LockContract):
    pass


@pytest.mark.long
class TestValkeyTurnLock(OnValkey, OfLock, TurnLockContract):
    pass


# ----------------------------------------------------------------------------------------- TLS, a unix socket


class OnTls(Suite):
    """An empty database behind TLS for each test."""

    driver = "tls"

    @pytest.fixture
    def service(self, redis_tls_url: str) -> None:
        self.url = redis_tls_url


@pytest.mark.long
class TestTlsBroker(OnTls, OfBroker, BrokerContract):
    pass


@pytest.mark.long
class TestTlsInspector(OnTls, OfRedis, InspectorContract):
    pass


@pytest.mark.long
class TestTlsBackend(OnTls, OfBackend, BackendContract):
    pass


@pytest.mark.long
class TestTlsGroups(OnTls, OfBackend, GroupContract):
    pass


class TestTlsJoint(OnTls, OfRedis, JointContract):
    pass


@pytest.mark.long
class TestTlsJointGroups(OnTls, OfRedis, JointGroupContract):
    pass


@pytest.mark.long
class TestTlsLock(OnTls, OfLock, LockContract):
    pass


class OnSocket(Suite):
    """An empty database behind a unix socket for each test."""

    driver = "socket"

    @pytest.fixture
    def service(self, redis_socket_url: str) -> None:
        self.url = redis_socket_url


@pytest.mark.long
class TestSocketBroker(OnSocket, OfBroker, BrokerContract):
    pass


@pytest.mark.long
class TestSocketInspector(OnSocket, OfRedis, InspectorContract):
    pass


@pytest.mark.long
class TestSocketBackend(OnSocket, OfBackend, BackendContract):
    pass


@pytest.mark.long
class TestSocketGroups(OnSocket, OfBackend, GroupContract):
    pass


class TestSocketJoint(OnSocket, OfRedis, JointContract):
    pass


@pytest.mark.long
class TestSocketJointGroups(OnSocket, OfRedis, JointGroupContract):
    pass


@pytest.mark.long
class TestSocketLock(OnSocket, OfLock, LockContract):
    pass
