"""What every test may ask for: real servers, files, and a reason when there is none.

A server that is missing skips its tests at home, with the reason in the table at the end; under ``CI=true`` it fails
them, since a suite that ran nothing has shown nothing.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import pytest
import redis
from botocore.session import get_session
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import blocking, matrix
from tests.services import (
    ElasticServer,
    PubSubServer,
    Rabbit,
    RabbitServer,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ServiceMissing,
    ValkeyServer,
    share,
    wait_until_reachable,
)


class Startable(Protocol):
    """A server, or several that are one service."""

    def start(self) -> object: ...
    def stop(self) -> None: ...


AnyServer = TypeVar("AnyServer", bound=Startable)
DATABASES = 64


class StartServer(Protocol):
    """Starts a server that is stopped at the end of the test."""

    def __call__(self, server: AnyServer) -> AnyServer: ...


blocking.watch()
_SHARED_RABBIT = RabbitServer(tls=True)
"""It takes seconds to start: where tests run in several processes, these share one."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Launch what the processes of this run share; it comes up while they collect their tests."""
    is_one_of_them = "PYTEST_XDIST_WORKER" in os.environ
    if session.config.getoption("numprocesses", None) and not is_one_of_them and not os.environ.get("RABBITMQ_URL"):
        with suppress(ServiceMissing):  # the tests that want it say so
            _SHARED_RABBIT.launch()
            os.environ.update(_SHARED_RABBIT.variables())


def pytest_sessionfinish() -> None:
    """Whatever became of the tests, nothing is left behind."""
    _SHARED_RABBIT.stop()


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """Fails a test in which the package waited for something on the loop's own thread."""
    blocking.take()
    yield
    assert blocking.take() == [], "the event loop was blocked"


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    """The URL of one Redis for the whole session: that of ``REDIS_URL``, or one of our own. Most tests want
    ``redis_url`` instead, which is an empty database of it."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    server = _start(RedisServer(databases=DATABASES))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(shared_redis: str) -> Iterator[str]:
    """``redis://…/N``: an empty database for this test alone, emptied at its end."""
    yield from _empty_database(shared_redis)


@pytest.fixture(scope="session")
def shared_redis_tls() -> Iterator[str]:
    """The URL of one Redis with TLS for the whole session: that of ``REDIS_TLS_URL``, or one of our own."""
    if url := os.environ.get("REDIS_TLS_URL"):
        yield url
        return
    server = _start(RedisServer(tls=True, databases=DATABASES))
    yield server.tls_url
    server.stop()


@pytest.fixture
def redis_tls_url(shared_redis_tls: str) -> Iterator[str]:
    """``rediss://…/N?ssl_ca_certs=…``: an empty database behind TLS; its certificate is for localhost."""
    yield from _empty_database(shared_redis_tls)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[str]:
    """The URL of one Valkey for the whole session: a server version more."""
    server = _start(ValkeyServer(databases=DATABASES))
    yield server.url
    server.stop()


@pytest.fixture
def valkey_url(shared_valkey: str) -> Iterator[str]:
    """``redis://…/N``: an empty database of a Valkey."""
    yield from _empty_database(shared_valkey)


@pytest.fixture(scope="session")
def shared_redis_sentinel() -> Iterator[RedisSentinel]:
    """One master with its replica and sentinels for the whole session: not to be killed."""
    group = _start(RedisSentinel(databases=DATABASES))
    yield group
    group.stop()


@pytest.fixture
def redis_sentinel_url(shared_redis_sentinel: RedisSentinel) -> Iterator[str]:
    """``redis://sentinel,sentinel,sentinel/N?master_name=…``: an empty database of the master that they watch."""
    for url in _empty_database(shared_redis_sentinel.master.url):
        yield urlunsplit(urlsplit(shared_redis_sentinel.url)._replace(path=urlsplit(url).path))


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[RedisCluster]:
    """One cluster of three masters for the whole session: not to be killed."""
    cluster = _start(RedisCluster())
    yield cluster
    cluster.stop()


@pytest.fixture
def redis_cluster_url(shared_redis_cluster: RedisCluster) -> Iterator[str]:
    """``redis://node,node,node``: an empty cluster."""
    yield shared_redis_cluster.url
    shared_redis_cluster.flush()


@pytest.fixture(scope="session")
def shared_rabbitmq() -> Iterator[Rabbit]:
    """One RabbitMQ for the whole session: that of ``RABBITMQ_URL``, or one of our own. Most tests want ``amqp_url``
    instead, which is a virtual host of it."""
    if url := os.environ.get("RABBITMQ_URL"):
        management_url = os.environ.get("RABBITMQ_MANAGEMENT_URL", "")
        if not management_url:
            unavailable("RABBITMQ_URL is set, and RABBITMQ_MANAGEMENT_URL is not")
        wait_until_reachable(management_url)
        wait_until_reachable(url)
        yield Rabbit(url, management_url, os.environ.get("RABBITMQ_TLS_URL", ""))
        return
    server = _start(RabbitServer(tls=True))
    yield Rabbit(server.url, server.management_url, server.tls_url)
    server.stop()


@pytest.fixture
def amqp_url(shared_rabbitmq: Rabbit) -> Iterator[str]:
    """``amqp://…/vhost``: a virtual host for this test alone, gone at its end."""
    name = f"test-{secrets.token_hex(4)}"
    shared_rabbitmq.manage("PUT", f"vhosts/{name}")
    yield f"{shared_rabbitmq.url}{name}"
    shared_rabbitmq.manage("DELETE", f"vhosts/{name}")


@pytest.fixture(scope="session")
def shared_sqs() -> Iterator[str]:
    """The URL of one SQS for the whole session: that of ``SQS_URL``, or an ElasticMQ of our own. Whoever uses it makes
    up names for its queues."""
    if url := os.environ.get("SQS_URL"):
        wait_until_reachable(url)
        yield url
        return
    server = _start(ElasticServer())
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def sqs_client(shared_sqs: str) -> Iterator[Any]:
    """A client of the session's SQS that blocks, to look after its queues."""
    parts = urlsplit(shared_sqs)
    client = get_session().create_client(
        "sqs",
        region_name=dict(parse_qsl(parts.query)).get("region"),
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    )
    yield client
    client.close()


@pytest.fixture
def sqs_url(shared_sqs: str, sqs_client: Any) -> Iterator[str]:
    """The URL of an SQS; the queues that the test makes are gone at its end."""
    before = set(sqs_client.list_queues().get("QueueUrls", ()))
    yield shared_sqs
    for url in sqs_client.list_queues().get("QueueUrls", ()):
        if url not in before:
            sqs_client.delete_queue(QueueUrl=url)


@pytest.fixture(scope="session")
def shared_pubsub() -> Iterator[str]:
    """``host:port`` of one Pub/Sub for the whole session: that of ``PUBSUB_EMULATOR_HOST``, or a pstest of our own."""
    if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
        wait_until_reachable(f"//{host}")
        yield host
        return
    server = _start(PubSubServer())
    yield server.host
    server.stop()


@pytest.fixture
def pubsub_url(shared_pubsub: str) -> str:
    """``gcppubsub://project/subscription?emulator=…``: a project for this test alone."""
    return f"gcppubsub://test-{secrets.token_hex(6)}/workers?emulator={shared_pubsub}"


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """``start_server(RedisServer(password="…"))`` starts a server of this test's own, stopped at its end."""
    servers: list[Startable] = []

    def start(server: AnyServer) -> AnyServer:
        servers.append(server)
        return _start(server)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def lone_redis_url(start_server: StartServer) -> str:
    """A Redis of this test's own, for what concerns a whole server: its scripts, its clients, its counters."""
    return start_server(RedisServer()).url


@pytest.fixture
def redis_socket_url(start_server: StartServer) -> str:
    """``redis+socket://…``: an empty Redis of this test's own."""
    return start_server(RedisServer()).socket_url


@pytest.fixture
def redis_server(start_server: StartServer) -> RedisServer:
    """A Redis of this test's own, to kill and restart: what it confirmed is on disk (``appendfsync always``)."""
    return start_server(RedisServer(fsync="always"))


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """A path for a SQLite file that is not there yet."""
    return tmp_path / "tasks.db"


def unavailable(reason: str) -> NoReturn:
    """This test cannot run here: skipped at home, failed under ``CI=true``."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_itemcollected(item: pytest.Item) -> None:
    matrix.tell(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What passed on which driver, and what did not run, and why."""
    matrix.print_table(terminalreporter)
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("not run here")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")


def _start(server: AnyServer) -> AnyServer:
    reason = ""
    try:
        server.start()
        return server
    except ServiceMissing as exc:
        reason = str(exc)
    unavailable(reason)


def _empty_database(url: str) -> Iterator[str]:
    """A database that was empty before, so that data that is not ours is never touched."""
    reason = f"no empty database on the Redis at {urlsplit(url).hostname}:{urlsplit(url).port}"
    numbers = share(range(DATABASES))
    # another test run on the same server starts its search elsewhere
    first = os.getpid() * 7 % len(numbers)
    for number in [*numbers[first:], *numbers[:first]]:
        database = urlunsplit(urlsplit(url)._replace(path=f"/{number}"))
        with redis.Redis.from_url(database, socket_timeout=10, retry=Retry(NoBackoff(), 0)) as client:
            try:
                if client.dbsize():
                    continue
            except redis.ResponseError:  # the server has fewer databases
                continue
            except redis.ConnectionError as exc:
                reason = f"no Redis at {urlsplit(url).hostname}:{urlsplit(url).port}: {exc}"
                break
            yield database
            client.flushdb()
            return
    unavailable(reason)
