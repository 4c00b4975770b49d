"""Every pair of broker and backend, for the tests that take a task the whole way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from asyncqueue.engine import consumer
from tests.path.bench import Bench, Place, Stores
from tests.path.forks import Forks

KINDS = ("memory", "sqlite", "redis", "redis+sqlite", pytest.param("sqlite+redis", marks=pytest.mark.long))
ATOMIC = ("memory", "sqlite", "redis")
FAR = ("rabbit+redis", "sqs+redis", "pubsub+redis", "cluster")
"""Brokers that are services of their own kind. They are slower, so that not every test runs on them."""
ONE_FAR = ("rabbit+redis", *(pytest.param(kind, marks=pytest.mark.long) for kind in FAR if kind != "rabbit+redis"))
"""The same, for what depends on a broker in nothing but what the contract of brokers says."""
FORMS = tuple(pytest.param(kind, marks=pytest.mark.long) for kind in ("socket", "tls", "sentinel"))
"""Other ways to one Redis."""
SENTINEL = pytest.param("sentinel", marks=pytest.mark.long)
BACKENDS = ("memory", "sqlite", "redis", SENTINEL, "cluster", "rabbit", "mongo", "dynamodb", "memcache")
"""Services that keep results."""
DURABLE = KINDS[1:]


@pytest.fixture(autouse=True)
def stopping_takes_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stops lets its fetches run out: here they are short."""
    monkeypatch.setattr(consumer, "WAIT", 0.1)


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a fresh pair of stores, of every kind."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=ATOMIC)
def one_store(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a fresh store that is broker and backend, of every kind."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a fresh pair of stores that other processes can reach, of every kind."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=("sqlite", "redis"))
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a fresh SQLite file, and of a Redis database."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=(*KINDS, *ONE_FAR, *FORMS, "eager"))
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """As ``stores``, on another broker, and eager too."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=(*KINDS, *FAR, *FORMS))
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """As ``stores``, and on every other broker."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=(*FAR, *FORMS))
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of a broker that is a service of its own kind, and of a backend."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=("memory", "sqlite", "redis", *FAR))
def each_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The URLs of each broker, and of one backend with it."""
    return stores_of(request.param, request, tmp_path)


@pytest.fixture(params=BACKENDS)
def each_backend(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh place of each service that keeps results."""
    return Place(request.param, url_of(request.param, request, tmp_path))


@pytest.fixture
def each_lock(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh place of a service that has locks, which the test names as its parameter."""
    return Place(request.param, url_of(request.param, request, tmp_path))


@pytest_asyncio.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Makes servers on the pair that the test asks for; closes them at its end."""
    names = ("stores", "one_store", "durable", "shared_store", "anywhere", "everywhere", "far", "each_broker")
    asked = next(name for name in names if name in request.fixturenames)
    bench = Bench(request.getfixturevalue(asked))
    yield bench
    await bench.close()


@pytest.fixture
def forks() -> Iterator[Forks]:
    """Starts processes; none is left at the end of the test."""
    with Forks() as forks:
        yield forks


def stores_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """Fresh URLs of a kind: one service, or ``broker+backend``."""
    broker, _, backend = kind.partition("+")
    url = url_of(broker, request, tmp_path)
    return Stores(kind, url, url_of(backend, request, tmp_path) if backend else url)


def url_of(service: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh URL of a service. A server is asked for only where it is used."""
    match service:
        case "memory":
            return f"memory://{tmp_path.name}-{os.getpid()}"
        case "sqlite":
            return f"sqlite:///{tmp_path / 'tasks.db'}"
        case "eager":
            return "eager"
        case _:
            return str(request.getfixturevalue(_FIXTURES[service]))


_FIXTURES = {
    "redis": "redis_url",
    "cluster": "redis_cluster_url",
    "sentinel": "redis_sentinel_url",
    "tls": "redis_tls_url",
    "socket": "redis_socket_url",
    "rabbit": "amqp_url",
    "sqs": "sqs_url",
    "pubsub": "pubsub_url",
    "mongo": "mongo_url",
    "dynamodb": "dynamodb_url",
    "memcache": "memcache_url",
}
"""The fixture that gives a fresh URL of a service."""


@pytest.fixture
def seed() -> Callable[[int], int]:
    """Prints a seed, so that a failed run can be repeated."""

    def told(default: int) -> int:
        chosen = int(os.environ.get("SEED", default))
        print(f"SEED={chosen}")
        return chosen

    return told
