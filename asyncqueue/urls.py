"""URLs to drivers. A driver is named by a string and imported when a URL asks for it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from asyncqueue.backends.base import Backend
from asyncqueue.brokers.base import Broker, Reconnecting
from asyncqueue.config.settings import Settings
from asyncqueue.config.sources import pubsub_emulator
from asyncqueue.errors import ConfigError
from asyncqueue.locks.base import Lock
from asyncqueue.redact import redact_url

log = logging.getLogger(__name__)

Kind = Literal["broker", "result backend", "lock"]
"""What a URL can be meant to be."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A service that URLs of ``schemes`` lead to: its classes, and the extra that brings their client library.

    ``service`` is its name, for people, and ``example`` a URL as the documentation has it.
    """

    service: str
    schemes: tuple[str, ...]
    example: str
    broker: str | None = None
    backend: str | None = None
    lock: str | None = None
    extra: str | None = None

    def target(self, kind: Kind) -> str | None:
        """The class of that kind, as ``module:name``; None where the service has no such part."""
        match kind:
            case "broker":
                return self.broker
            case "result backend":
                return self.backend
            case "lock":
                return self.lock


_SQLITE = Driver(
    "SQLite",
    ("sqlite",),
    "sqlite:///tasks.db",
    "asyncqueue.brokers.sqlite:SqliteBroker",
    "asyncqueue.backends.sqlite:SqliteBackend",
    "asyncqueue.locks.sqlite:SqliteLock",
)
_REDIS = Driver(
    "Redis",
    ("redis", "rediss", "redis+socket"),
    "redis://localhost:6379/0",
    "asyncqueue.brokers.redis:RedisBroker",
    "asyncqueue.backends.redis:RedisBackend",
    "asyncqueue.locks.redis:RedisLock",
)
_MEMORY = Driver(
    "memory",
    ("memory", "eager"),
    "memory://",
    "asyncqueue.brokers.memory:MemoryBroker",
    "asyncqueue.backends.memory:MemoryBackend",
    "asyncqueue.locks.memory:MemoryLock",
)
_AMQP = Driver(
    "RabbitMQ",
    ("amqp", "amqps"),
    "amqp://localhost/",
    "asyncqueue.brokers.amqp:AmqpBroker",
    "asyncqueue.backends.amqp:AmqpBackend",
    extra="amqp",
)
_SQS = Driver(
    "Amazon SQS",
    ("https", "http"),
    "https://sqs.eu-west-1.amazonaws.com/123456789012",
    "asyncqueue.brokers.sqs:SqsBroker",
    extra="aws",
)
_PUBSUB = Driver(
    "Google Pub/Sub",
    ("gcppubsub",),
    "gcppubsub://my-project/my-subscription",
    "asyncqueue.brokers.pubsub:PubSubBroker",
    extra="gcp",
)
_MONGO = Driver(
    "MongoDB",
    ("mongodb", "mongodb+srv"),
    "mongodb://localhost:27017/machinery",
    backend="asyncqueue.backends.mongo:MongoBackend",
    lock="asyncqueue.locks.mongo:MongoLock",
    extra="mongo",
)
_DYNAMODB = Driver(
    "Amazon DynamoDB",
    ("https", "http"),
    "https://dynamodb.eu-west-1.amazonaws.com",
    backend="asyncqueue.backends.dynamodb:DynamoBackend",
    lock="asyncqueue.locks.dynamodb:DynamoLock",
    extra="aws",
)
_MEMCACHE = Driver(
    "Memcached",
    ("memcache",),
    "memcache://localhost:11211",
    backend="asyncqueue.backends.memcache:MemcacheBackend",
    extra="memcache",
)

DRIVERS: Sequence[Driver] = (_SQLITE, _REDIS, _MEMORY, _AMQP, _SQS, _PUBSUB, _MONGO, _DYNAMODB, _MEMCACHE)
"""Every service that this version knows."""

_LONG = 86_400.0
"""Seconds that stand for "no limit" where a driver wants a number."""

_LONG_ENOUGH = 5.0
"""Seconds in which a Redis that is there answers, however short the lease."""

_REDIS_SCHEMES = ("redis", "rediss", "redis+socket")
_AMQP_SCHEMES = ("amqp", "amqps")

EAGER = "eager"
"""The scheme of a server that runs tasks as they are sent."""

NULL = "null"
"""The result backend that keeps nothing: sending works, asking for a result is an error."""


def scheme_of(url: str) -> str:
    """The scheme of a URL; a bare ``eager`` or ``memory`` is one too."""
    return url.partition(":")[0].lower() if ":" in url else url.lower()


def check(broker: str, backend: str, lock: str) -> None:
    """Raise ``ConfigError`` for a URL whose scheme is not known or cannot be what it is meant to be."""
    _target("broker", broker)
    if scheme_of(backend) != NULL:
        _target("result backend", backend)
    if lock:
        _target("lock", lock)


def lock_beside(broker: str, backend: str) -> str:
    """The URL of the locks where none is named: the broker's, or the results' where the broker's service has no locks;
    empty where neither has."""
    driver = _find("broker", broker)
    if driver is None or driver.lock is not None:
        return broker
    beside = _find("result backend", backend)
    return backend if beside is not None and beside.lock is not None else ""


def is_of_one_process(broker: str) -> bool:
    """Whether what the broker's URL leads to is seen by this process alone."""
    return _find("broker", broker) is _MEMORY


def is_sqs(broker: str) -> bool:
    """Whether the broker's URL leads to SQS."""
    return _find("broker", broker) is _SQS


def is_dynamodb(backend: str) -> bool:
    """Whether the result backend's URL leads to DynamoDB."""
    return _find("result backend", backend) is _DYNAMODB


def eager_stores(settings: Settings) -> tuple[Broker, Backend]:
    """Broker and backend of an eager server: a memory store of its own."""
    store = importlib.import_module("asyncqueue.connections.memory").MemoryStore()
    broker = _load("broker", EAGER)(store)
    backend = _load("result backend", EAGER)(store, results_expire_in=settings.results_expire_in)
    return broker, backend


def broker_for(url: str, settings: Settings) -> Broker:
    """The broker that a URL names, not yet open. Raises ``ConfigError``."""
    scheme = scheme_of(url)
    made = _load("broker", url)
    match scheme:
        case "redis" | "rediss" | "redis+socket":
            redis = settings.redis
            return cast(
                Broker,
                made(
                    url,
                    lease=settings.worker.lease,
                    delayed_tasks_key=redis.delayed_tasks_key or "delayed_tasks",
                    normal_poll=redis.normal_tasks_poll_period / 1_000,
                    delayed_poll=redis.delayed_tasks_poll_period / 1_000,
                    **_redis_access(url, settings, lease=settings.worker.lease),
                    **_redis_pool(settings),
                ),
            )
        case "sqlite":
            return cast(Broker, made(url, lease=settings.worker.lease))
        case "amqp" | "amqps":
            separator = settings.multiple_broker_separator
            return cast(Broker, made(url, separator=separator, **_amqp_access(url, settings)))
        case "https" | "http":
            sqs = settings.sqs
            return cast(
                Broker,
                made(
                    url,
                    lease=sqs.receive_visibility_timeout or settings.worker.lease,
                    least_wait=sqs.receive_wait_time_seconds,
                    create_queues=sqs.create_queues,
                ),
            )
        case "gcppubsub":
            pubsub = settings.gcppubsub
            if settings.go_compat and not settings.go_queues:
                log.warning(
                    "Pub/Sub delays nothing: what is delayed for a queue on which are only workers in Go is delivered "
                    "by workers of ours, where go_queues names the queue; go_compat is on, and go_queues names none"
                )
            return cast(
                Broker,
                made(
                    url,
                    default_queue=settings.default_queue,
                    emulator=pubsub_emulator(),
                    lease=settings.worker.lease,
                    max_extension=pubsub.max_extension,
                    create_topics=pubsub.create_topics,
                ),
            )
        case _:
            return cast(Broker, made(_memory_store(url)))


def backend_for(url: str, settings: Settings) -> Backend:
    """The backend that a URL names, not yet open. Raises ``ConfigError``."""
    made = _load("result backend", url)
    keep = settings.results_expire_in
    match scheme_of(url):
        case "redis" | "rediss" | "redis+socket":
            access = _redis_access(url, settings)
            return cast(Backend, made(url, results_expire_in=keep, **access, **_redis_pool(settings)))
        case "sqlite" | "memcache":
            return cast(Backend, made(url, results_expire_in=keep))
        case "amqp" | "amqps":
            access = _amqp_access(url, settings)
            return cast(
                Backend,
                made(
                    url,
                    results_expire_in=keep,
                    topology=access["topology"],
                    tls=access["tls"],
                    go_groups=settings.go_compat,
                ),
            )
        case "mongodb" | "mongodb+srv":
            mongo = settings.mongodb
            backend = made(
                url,
                results_expire_in=keep,
                database=mongo.database,
                tasks_collection=mongo.tasks_collection,
                group_metas_collection=mongo.group_metas_collection,
            )
            if settings.go_compat:
                _warn_where_go_does_not_look("database", backend.database, "machinery")
                _warn_where_go_does_not_look("collection of tasks", mongo.tasks_collection, "tasks")
                _warn_where_go_does_not_look("collection of groups", mongo.group_metas_collection, "group_metas")
            return cast(Backend, backend)
        case "https" | "http":
            dynamodb = settings.dynamodb
            return cast(
                Backend,
                made(
                    url,
                    results_expire_in=keep,
                    task_states_table=dynamodb.task_states_table,
                    group_metas_table=dynamodb.group_metas_table,
                ),
            )
        case _:
            return cast(Backend, made(_memory_store(url), results_expire_in=keep))


def _warn_where_go_does_not_look(what: str, name: str, known_to_go: str) -> None:
    """Go's workers keep their results in MongoDB by these names, whatever their URL says."""
    if name != known_to_go:
        log.warning("MongoDB's %s is %r, and Go's workers look at %r: go_compat is on", what, name, known_to_go)


def lock_for(url: str, settings: Settings) -> Lock:
    """The lock that a URL names, not yet open. Raises ``ConfigError``."""
    made = _load("lock", url)
    match scheme_of(url):
        case "redis" | "rediss" | "redis+socket":
            return cast(Lock, made(url, **_redis_access(url, settings)))
        case "sqlite":
            return cast(Lock, made(url))
        case "mongodb" | "mongodb+srv":
            mongo = settings.mongodb
            return cast(Lock, made(url, database=mongo.database, collection=mongo.locks_collection))
        case "https" | "http":
            return cast(Lock, made(url, table=settings.dynamodb.locks_table))
        case _:
            return cast(Lock, made(_memory_store(url)))


def reconnect(driver: object, url: str, settings: Settings, *, lease: float | None = None) -> None:
    """Tell an open driver how to make its connections from now on; ``lease`` is that of a broker. Raises
    ``ConfigError``."""
    if isinstance(driver, Reconnecting) and scheme_of(url) in _REDIS_SCHEMES:
        driver.connect_with(url, **_redis_access(url, settings, lease=lease))
    if isinstance(driver, Reconnecting) and scheme_of(url) in _AMQP_SCHEMES:
        driver.connect_with(url, **_amqp_access(url, settings))


def _redis_access(url: str, settings: Settings, *, lease: float | None = None) -> dict[str, Any]:
    """How connections to Redis are made. A broker that waited for one reply as long as the ``lease`` is would lose
    what it holds, so there it is a third of it, or what the driver deems long enough."""
    redis = settings.redis
    longest = _LONG if lease is None else max(_LONG_ENOUGH, lease / 3)
    said = settings.tls.model_dump(exclude_defaults=True)
    if said.pop("server_name", ""):
        raise ConfigError("tls.server_name: Redis connections verify the URL's host; name the server in the URL")
    return {
        "connect_timeout": min(redis.connect_timeout or _LONG, longest),
        "reply_timeout": min(redis.read_timeout or _LONG, longest),
        "client_name": redis.client_name,
        "cluster": redis.cluster_mode or redis.cluster_enabled,
        "master_name": redis.master_name,
        "sentinel_password": redis.sentinel_password.get_secret_value(),
        "replicas": redis.wait_for_replicas,
        # TLS is for the scheme to turn on; the settings only say how
        "tls": _tls_context(**said) if said and scheme_of(url) == "rediss" else None,
    }


def _redis_pool(settings: Settings) -> dict[str, Any]:
    return {"max_connections": settings.redis.max_active} if settings.redis.max_active else {}


def _amqp_access(url: str, settings: Settings) -> dict[str, Any]:
    """What stands on RabbitMQ, and how connections to it are made."""
    amqp = settings.amqp
    said = settings.tls.model_dump(exclude_defaults=True)
    if said.pop("server_name", ""):
        raise ConfigError("tls.server_name: RabbitMQ connections verify the URL's host; name the server in the URL")
    topology = importlib.import_module("asyncqueue.connections.amqp_topology").Topology(
        exchange=amqp.exchange,
        exchange_type=amqp.exchange_type,
        default_queue=settings.default_queue,
        binding_key=amqp.binding_key,
        queue_arguments=amqp.queue_declare_args,
        binding_arguments=amqp.queue_binding_args,
        auto_delete=amqp.auto_delete,
        delayed_queue=amqp.delayed_queue,
    )
    return {
        "topology": topology,
        # Machinery's own default is 3, which would be a bound on the concurrency that nobody has asked for
        "prefetch": amqp.prefetch_count if "prefetch_count" in amqp.model_fields_set else 0,
        "tls": _tls_context(**said) if said and "amqps" in url else None,
    }


def _tls_context(**said: Any) -> Any:
    return importlib.import_module("asyncqueue.connections.tls").tls_context(**said)


def _memory_store(url: str) -> Any:
    """The store of that name in this process: every ``memory://`` URL of one name is one store."""
    name = url.partition("://")[2].strip("/")
    return importlib.import_module("asyncqueue.connections.memory").named(name)


def _target(kind: Kind, url: str) -> tuple[Driver, str]:
    """The service that a URL leads to, and its class of that kind, as ``module:name``. Raises ``ConfigError``."""
    driver = _find(kind, url)
    or_none = f", or {NULL!r} to keep no results" if kind == "result backend" else ""
    if driver is None:
        scheme = scheme_of(url)
        schemes = dict.fromkeys(each for driver in DRIVERS if driver.target(kind) for each in driver.schemes)
        near = get_close_matches(scheme, schemes, n=1)
        hint = f"; did you mean {near[0]}://?" if near else "."
        known = ", ".join(f"{each}://" for each in schemes)
        raise ConfigError(
            f"{kind} URL {redact_url(url)!r}: unknown scheme {scheme!r}{hint} Known schemes: {known}{or_none}"
        )
    target = driver.target(kind)
    if target is None:
        raise ConfigError(
            f"{kind} URL {redact_url(url)!r}: {driver.service} has no {kind}; name another store{or_none}"
        )
    if driver is _SQS and not urlsplit(url).path.strip("/"):
        raise ConfigError(
            f"{kind} URL {redact_url(url)!r} names no account: expected https://sqs.<region>.amazonaws.com/<account>"
        )
    return driver, target


def _find(kind: Kind, url: str) -> Driver | None:
    """The service that a URL leads to, whether it has such a part or not; None where nobody knows the scheme."""
    scheme = scheme_of(url)
    of_scheme = [driver for driver in DRIVERS if scheme in driver.schemes]
    if _SQS not in of_scheme:
        return next(iter(of_scheme), None)
    # AWS's own hosts say which service they are; elsewhere an account follows SQS's
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ConfigError(f"{kind} URL {redact_url(url)!r}: {exc}") from None
    host = f".{parts.hostname or ''}"
    if ".dynamodb" in host or (kind != "broker" and ".sqs." not in host and not parts.path.strip("/")):
        return _DYNAMODB
    return _SQS


def _load(kind: Kind, url: str) -> Any:
    """The class that a URL names. Raises ``ConfigError``."""
    driver, target = _target(kind, url)
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if driver.extra is None or (exc.name or "").startswith("asyncqueue"):
            raise
        raise ConfigError(
            f"{kind} URL {redact_url(url)!r} needs {exc.name}: install asyncqueue[{driver.extra}]"
        ) from exc
