"""What every test may ask for: real servers, files, and a reason when there is none.

A server that is missing skips its tests at home, with the reason in the table at the end; under ``CI=true`` it fails
them, since a suite that ran nothing has shown nothing.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import pymongo
import pytest
import redis
from botocore.session import get_session
from redis.backoff import NoBackoff
from redis.retry import Retry

from asyncqueue.connections import memory
from tests import blocking, forgotten, matrix
from tests.interop import table as interop
from tests.services import (
    DynamoServer,
    ElasticServer,
    Memcacheds,
    MongoServer,
    PubSubServer,
    Rabbit,
    RabbitServer,
    RedisCluster,
    RedisSentinel,
    RedisServer,
    ServiceMissing,
    ValkeyServer,
    memcached,
    share,
    wait_until_reachable,
)


class Startable(Protocol):
    """A server, or several that are one service."""

    def start(self) -> object: ...
    def stop(self) -> None: ...


class Named(Startable, Protocol):
    """A server of which a variable of the environment may say that somebody else runs it, and where."""

    def variables(self) -> Mapping[str, str]: ...


AnyServer = TypeVar("AnyServer", bound=Startable)
DATABASES = 64
DYNAMODB_KEYS = {"task_states": "TaskUUID", "group_metas": "GroupUUID", "aq_locks": "Name"}
"""The tables of DynamoDB, and their keys."""


class StartServer(Protocol):
    """Starts a server that is stopped at the end of the test."""

    def __call__(self, server: AnyServer) -> AnyServer: ...


blocking.watch()
forgotten.close_them()
_SHARED = {"RABBITMQ_URL": RabbitServer(tls=True), "DYNAMODB_URL": DynamoServer(), "MONGODB_URL": MongoServer()}
"""They take seconds to start: where tests run in several processes, these share one. By the variables that say where
somebody else runs one."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Launch what the processes of this run share; it comes up while they collect their tests."""
    is_one_of_them = "PYTEST_XDIST_WORKER" in os.environ
    if not session.config.getoption("numprocesses", None) or is_one_of_them:
        return
    for variable, server in _SHARED.items():
        if not os.environ.get(variable):
            with suppress(ServiceMissing):  # the tests that want it say so
                server.launch()
                os.environ.update(server.variables())


def pytest_sessionfinish() -> None:
    """Whatever became of the tests, nothing is left behind."""
    for server in _SHARED.values():
        server.stop()


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """Fails a test in which the package waited for something on the loop's own thread."""
    blocking.take()
    yield
    assert blocking.take() == [], "the event loop was blocked"


@pytest.fixture(autouse=True)
def memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test finds in ``memory://`` nothing that another one left there."""
    monkeypatch.setattr(memory, "_named", {})


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    """The URL of one Redis for the whole session: that of ``REDIS_URL``, or one of our own. Most tests want
    ``redis_url`` instead, which is an empty database of it."""
    yield from _theirs_or_own("REDIS_URL", RedisServer(databases=DATABASES))


@pytest.fixture
def redis_url(shared_redis: str) -> Iterator[str]:
    """``redis://…/N``: an empty database for this test alone, emptied at its end."""
    yield from _empty_database(shared_redis)


@pytest.fixture(scope="session")
def shared_redis_tls() -> Iterator[str]:
    """The URL of one Redis with TLS for the whole session: that of ``REDIS_TLS_URL``, or one of our own."""
    yield from _theirs_or_own("REDIS_TLS_URL", RedisServer(tls=True, databases=DATABASES))


@pytest.fixture
def redis_tls_url(shared_redis_tls: str) -> Iterator[str]:
    """``rediss://…/N?ssl_ca_certs=…``: an empty database behind TLS; its certificate is for localhost."""
    yield from _empty_database(shared_redis_tls)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[str]:
    """The URL of one Valkey for the whole session: a server version more."""
    with _running(ValkeyServer(databases=DATABASES)) as server:
        yield server.url


@pytest.fixture
def valkey_url(shared_valkey: str) -> Iterator[str]:
    """``redis://…/N``: an empty database of a Valkey."""
    yield from _empty_database(shared_valkey)


@pytest.fixture(scope="session")
def shared_redis_sentinel() -> Iterator[RedisSentinel]:
    """One master with its replica and sentinels for the whole session: not to be killed."""
    with _running(RedisSentinel(databases=DATABASES)) as group:
        yield group


@pytest.fixture
def redis_sentinel_url(shared_redis_sentinel: RedisSentinel) -> Iterator[str]:
    """``redis://sentinel,sentinel,sentinel/N?master_name=…``: an empty database of the master that they watch."""
    for url in _empty_database(shared_redis_sentinel.master.url):
        yield urlunsplit(urlsplit(shared_redis_sentinel.url)._replace(path=urlsplit(url).path))


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[RedisCluster]:
    """One cluster of three masters for the whole session: not to be killed."""
    with _running(RedisCluster()) as cluster:
        yield cluster


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
    with _running(RabbitServer(tls=True)) as server:
        yield Rabbit(server.url, server.management_url, server.tls_url)


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
    yield from _theirs_or_own("SQS_URL", ElasticServer())


@pytest.fixture(scope="session")
def sqs_client(shared_sqs: str) -> Iterator[Any]:
    """A client of the session's SQS that blocks, to look after its queues."""
    client = _aws_client("sqs", shared_sqs)
    yield client
    client.close()


@pytest.fixture
def sqs_url(shared_sqs: str, sqs_client: Any) -> Iterator[str]:
    """The URL of an SQS; the queues that the test makes are gone at its end."""
    with without_queues_after(sqs_client):
        yield shared_sqs


@contextmanager
def without_queues_after(sqs_client: Any) -> Iterator[None]:
    """Whatever queues are made meanwhile are gone at the end; on an SQS of somebody else's others wait for that long,
    since whose they are nobody could tell."""

    def queues() -> set[str]:
        return set(sqs_client.list_queues().get("QueueUrls", ()))

    with turn("sqs") if os.environ.get("SQS_URL") else nullcontext():
        before = queues()
        yield
        for url in queues() - before:
            sqs_client.delete_queue(QueueUrl=url)


@pytest.fixture(scope="session")
def shared_dynamodb() -> Iterator[str]:
    """The URL of one DynamoDB for the whole session: that of ``DYNAMODB_URL``, or a DynamoDB Local of our own.
    Most tests want ``dynamodb_url`` instead, which has the tables."""
    yield from _theirs_or_own("DYNAMODB_URL", DynamoServer())


@pytest.fixture
def bare_dynamodb_url(shared_dynamodb: str) -> str:
    """``http://key:secret@host:port?region=…``: a key of this test alone, for which there are no tables."""
    return _with_fresh_key(shared_dynamodb)


@pytest.fixture(scope="session")
def dynamodb_tables(shared_dynamodb: str) -> Iterator[tuple[str, Any]]:
    """A URL for which the tables are there, and a client that blocks, to look after them."""
    url = _with_fresh_key(shared_dynamodb)
    client = _aws_client("dynamodb", url)
    for table, key in DYNAMODB_KEYS.items():
        client.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
    yield url, client
    for table in DYNAMODB_KEYS:
        client.delete_table(TableName=table)
    client.close()


@pytest.fixture
def dynamodb_url(dynamodb_tables: tuple[str, Any]) -> Iterator[str]:
    """``http://key:secret@host:port?region=…``: empty tables, emptied again at the end of the test."""
    url, client = dynamodb_tables
    yield url
    for table, key in DYNAMODB_KEYS.items():
        found = client.get_paginator("scan").paginate(
            TableName=table, ProjectionExpression="#key", ExpressionAttributeNames={"#key": key}
        )
        items = [item for page in found for item in page["Items"]]
        for start in range(0, len(items), 25):
            deletions = [{"DeleteRequest": {"Key": item}} for item in items[start : start + 25]]
            client.batch_write_item(RequestItems={table: deletions})


@pytest.fixture(scope="session")
def shared_pubsub() -> Iterator[str]:
    """``host:port`` of one Pub/Sub for the whole session: that of ``PUBSUB_EMULATOR_HOST``, or a pstest of our own."""
    yield from _theirs_or_own("PUBSUB_EMULATOR_HOST", PubSubServer())


@pytest.fixture(scope="session")
def pubsub_client(shared_pubsub: str) -> Iterator[Any]:
    """A client of the session's Pub/Sub that blocks, to look after its subscriptions."""
    # half a second to load, which only those who use it are to wait for
    import grpc
    from google.pubsub_v1.services.subscriber.client import SubscriberClient
    from google.pubsub_v1.services.subscriber.transports.grpc import SubscriberGrpcTransport

    with SubscriberClient(transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(shared_pubsub))) as client:
        yield client


@pytest.fixture
def pubsub_url(shared_pubsub: str, pubsub_client: Any) -> Iterator[str]:
    """``gcppubsub://project/subscription?emulator=…``: a project for this test alone, without subscriptions at its end:
    each that is left costs pstest a hundred looks a second."""
    project = f"test-{secrets.token_hex(6)}"
    yield f"gcppubsub://{project}/workers?emulator={shared_pubsub}"
    for subscription in pubsub_client.list_subscriptions(project=f"projects/{project}"):
        pubsub_client.delete_subscription(subscription=subscription.name)


@pytest.fixture(scope="session")
def shared_mongo() -> Iterator[str]:
    """The URL of one MongoDB for the whole session: that of ``MONGODB_URL``, or a SecantusDB of our own. Most tests
    want ``mongo_url`` instead, which is a database of it."""
    yield from _theirs_or_own("MONGODB_URL", MongoServer())


@pytest.fixture(scope="session")
def mongo_client(shared_mongo: str) -> Iterator[Any]:
    """A client of the session's MongoDB that blocks, to look after its databases."""
    with pymongo.MongoClient[dict[str, Any]](shared_mongo) as client:
        yield client


@pytest.fixture
def mongo_url(shared_mongo: str, mongo_client: Any) -> Iterator[str]:
    """``mongodb://…/database``: a database for this test alone, gone at its end."""
    name = f"test-{secrets.token_hex(6)}"
    yield urlunsplit(urlsplit(shared_mongo)._replace(path=f"/{name}"))
    mongo_client.drop_database(name)


@pytest.fixture(scope="session")
def shared_memcache() -> Iterator[str]:
    """The URL of some memcached for the whole session: those of ``MEMCACHE_URL``, or two of our own. Tests want
    ``memcache_url`` instead."""
    yield from _theirs_or_own("MEMCACHE_URL", Memcacheds())


@pytest.fixture
def memcache_url(shared_memcache: str) -> Iterator[str]:
    """``memcache://…,…``: memcached that are empty, and this test's alone for as long as it runs."""
    with turn("memcached") if os.environ.get("MEMCACHE_URL") else nullcontext():
        memcached.empty(shared_memcache)
        yield shared_memcache


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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a test printed may hold half a character, which one process cannot hand on to another."""
    return _in_whole_characters((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What passed on which driver, and what did not run, and why."""
    matrix.print_table(terminalreporter)
    interop.print_table(terminalreporter)
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("not run here")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")


def _in_whole_characters(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _in_whole_characters(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(_in_whole_characters(each) for each in value)
        case _:
            return value


def _theirs_or_own(variable: str, own: Named) -> Iterator[str]:
    """What a variable of the environment says, once somebody answers there; else where a server of our own is."""
    if url := os.environ.get(variable):
        for place in url.rpartition("://")[2].split(","):
            wait_until_reachable(f"//{place}")
        yield url
        return
    with _running(own):
        yield own.variables()[variable]


@contextmanager
def _running(server: AnyServer) -> Iterator[AnyServer]:
    _start(server)
    try:
        yield server
    finally:
        server.stop()


def _start(server: AnyServer) -> AnyServer:
    reason = ""
    try:
        server.start()
        return server
    except ServiceMissing as exc:
        reason = str(exc)
    unavailable(reason)


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until no other process has this turn: for a service in which tests cannot keep out of each other's way."""
    with Path(gettempdir(), f"asyncqueue-tests-{name}.turn").open("w") as file:
        flock(file, LOCK_EX)
        yield


def _aws_client(service: str, url: str) -> Any:
    """A client that blocks."""
    parts = urlsplit(url)
    return get_session().create_client(
        service,
        region_name=dict(parse_qsl(parts.query)).get("region"),
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    )


def _with_fresh_key(url: str) -> str:
    """The same DynamoDB Local, seen with an access key that nobody else has."""
    parts = urlsplit(url)
    place = f"test{secrets.token_hex(8)}:test@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=place))


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
