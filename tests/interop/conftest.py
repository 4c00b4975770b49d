"""Fleets for the tests between Python and Go."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio

from tests.conftest import turn, unavailable, without_queues_after
from tests.interop import table
from tests.interop.fleet import DIRECTIONS, PY, QUEUES, Fleet, Pair, Stores, fleet_on
from tests.services import Rabbit, RedisCluster, RedisSentinel, RedisServer, ServiceMissing, started
from tests.services.machinery import MACHINERY

pytest.register_assert_rewrite("tests.interop.rows")
_DATABASES = itertools.count(1)
"""Locks are in database 0."""


@pytest.fixture(scope="session")
def peers() -> None:
    """The programs in Go are there."""
    try:
        for build in MACHINERY.values():
            build.require()
    except ServiceMissing as exc:
        unavailable(str(exc))


@pytest.fixture(scope="session")
def fleets_redis() -> Iterator[RedisServer]:
    """A Redis for fleets alone, each with a database of its own."""
    server = RedisServer(databases=64)
    try:
        with started(server):
            yield server
    except ServiceMissing as exc:
        unavailable(str(exc))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(
    request: pytest.FixtureRequest,
    peers: None,
    fleets_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Fleet]:
    """A worker and a client of each language, on the pair that the test names as its parameter."""
    with ExitStack() as stack:
        stores = _stores(request, request.param, fleets_redis, stack)
        async with fleet_on(stores, tmp_path_factory.mktemp("fleet")) as fleet:
            yield fleet


def pytest_itemcollected(item: pytest.Item) -> None:
    """The table says of each behaviour on each pair what became of it."""
    params: Any = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    match params:
        case {"fleet": Pair() as pair, "row": row}:
            directions = [f"{sender}→{runner}" for sender, runner in DIRECTIONS]
            table.tell(item, pair.name, row.name, row.place, directions)


def _stores(request: pytest.FixtureRequest, pair: Pair, redis: RedisServer, stack: ExitStack) -> Stores:
    """Places of a pair that are a fleet's alone. They are the session's own servers, but where somebody runs one."""

    def where(kind: str) -> str:
        return stack.enter_context(_WHERE[kind](request))

    environment = None
    if pair.broker == "pubsub":
        host, project = request.getfixturevalue("shared_pubsub"), where("pubsub")
        brokers = {language: f"gcppubsub://{project}/{queue}" for language, queue in QUEUES.items()}
        brokers[PY] += f"?emulator={host}"
        environment = os.environ | {"PUBSUB_EMULATOR_HOST": host}
    else:
        brokers = dict.fromkeys(QUEUES, where(pair.broker))
    backend = brokers[PY] if pair.backend == pair.broker else where(pair.backend)
    # to version 1, locks are in database 0; to both, what is behind sentinels or a cluster has its locks there too
    lock = brokers[PY] if pair.broker in ("cluster", "sentinel") else f"redis://127.0.0.1:{redis.port}/0"
    return Stores(pair, brokers, backend, lock, environment)


@contextmanager
def _redis(request: pytest.FixtureRequest) -> Iterator[str]:
    redis: RedisServer = request.getfixturevalue("fleets_redis")
    yield f"redis://127.0.0.1:{redis.port}/{next(_DATABASES)}"


@contextmanager
def _memcached(request: pytest.FixtureRequest) -> Iterator[str]:
    with turn("memcached") if os.environ.get("MEMCACHE_URL") else nullcontext():  # others empty it
        yield request.getfixturevalue("shared_memcache")


@contextmanager
def _mongo(request: pytest.FixtureRequest) -> Iterator[str]:
    parts = urlsplit(request.getfixturevalue("shared_mongo"))
    yield urlunsplit(parts._replace(path="/machinery"))  # Go looks into this database, whatever its URL says


@contextmanager
def _dynamodb(request: pytest.FixtureRequest) -> Iterator[str]:
    url, _ = request.getfixturevalue("dynamodb_tables")
    yield url


@contextmanager
def _sqs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its queues have the same names in each fleet."""
    with without_queues_after(request.getfixturevalue("sqs_client")):
        yield request.getfixturevalue("shared_sqs")


@contextmanager
def _cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    cluster: RedisCluster = request.getfixturevalue("shared_redis_cluster")
    yield cluster.url
    cluster.flush()


@contextmanager
def _sentinel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Behind sentinels, version 1 looks into database 0, whatever its URL says."""
    sentinel: RedisSentinel = request.getfixturevalue("shared_redis_sentinel")
    yield sentinel.url
    sentinel.master.call("FLUSHDB")


@contextmanager
def _project(request: pytest.FixtureRequest) -> Iterator[str]:
    client, name = request.getfixturevalue("pubsub_client"), f"fleet-{secrets.token_hex(6)}"
    yield name
    for each in client.list_subscriptions(project=f"projects/{name}"):  # pstest looks after those that are left
        client.delete_subscription(subscription=each.name)


@contextmanager
def _vhost(request: pytest.FixtureRequest) -> Iterator[str]:
    rabbit: Rabbit = request.getfixturevalue("shared_rabbitmq")
    name = f"fleet-{secrets.token_hex(4)}"
    rabbit.manage("PUT", f"vhosts/{name}")
    try:
        yield f"{rabbit.url}{name}"
    finally:
        rabbit.manage("DELETE", f"vhosts/{name}")


_WHERE: Mapping[str, Callable[[pytest.FixtureRequest], AbstractContextManager[str]]] = {
    "redis": _redis,
    "rabbitmq": _vhost,
    "pubsub": _project,
    "memcached": _memcached,
    "mongodb": _mongo,
    "dynamodb": _dynamodb,
    "sqs": _sqs,
    "cluster": _cluster,
    "sentinel": _sentinel,
}
