"""Real servers for the tests, each with the lines that find it, start it on loopback and end it.

``python -m tests.services`` installs what they need, tells what is missing, and runs a command beside them; see
``__main__``. A server that somebody else runs is used instead where its variable is set: see ``VARIABLES``.
"""

from __future__ import annotations

from tests.services.dynamodb import DynamoServer
from tests.services.memcached import Memcacheds, MemcachedServer
from tests.services.mongo import MongoServer
from tests.services.pubsub import EmulatorServer, PubSubServer
from tests.services.rabbit import Rabbit, RabbitServer
from tests.services.redis import RedisCluster, RedisSentinel, RedisServer, ValkeyServer
from tests.services.server import (
    Server,
    ServiceMissing,
    StartFailed,
    free_port,
    share,
    started,
    wait_until_reachable,
)
from tests.services.sqs import ElasticServer

__all__ = [
    "VARIABLES",
    "DynamoServer",
    "ElasticServer",
    "EmulatorServer",
    "MemcachedServer",
    "Memcacheds",
    "MongoServer",
    "PubSubServer",
    "Rabbit",
    "RabbitServer",
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "Server",
    "ServiceMissing",
    "StartFailed",
    "ValkeyServer",
    "free_port",
    "share",
    "started",
    "wait_until_reachable",
]

VARIABLES = {
    "REDIS_URL": "a Redis whose empty databases the tests may use, e.g. redis://127.0.0.1:6379/0",
    "REDIS_TLS_URL": "the same over TLS, e.g. rediss://localhost:6380/0?ssl_ca_certs=.services/tls/ca.crt",
    "RABBITMQ_URL": "a RabbitMQ in which the tests may make virtual hosts, e.g. amqp://guest:guest@127.0.0.1:5672/",
    "RABBITMQ_MANAGEMENT_URL": "its management API, e.g. http://guest:guest@127.0.0.1:15672",
    "RABBITMQ_TLS_URL": "the same over TLS, e.g. amqps://guest:guest@localhost:5671/?cafile=.services/tls/ca.crt",
    "PUBSUB_EMULATOR_HOST": "a Pub/Sub emulator, or pstest, in which the tests may make projects, e.g. 127.0.0.1:8085",
    "MONGODB_URL": "a MongoDB in which the tests may make databases, e.g. mongodb://127.0.0.1:27017/?replicaSet=rs0",
    "MEMCACHE_URL": "two memcached -I 4m that the tests may empty, e.g. memcache://127.0.0.1:11211,127.0.0.1:11212",
    "DYNAMODB_URL": "a DynamoDB Local without -sharedDb, so that each access key has tables of its own, e.g."
    " http://test:test@127.0.0.1:8000?region=local",
    "SQS_URL": "an SQS in which the tests may make queues, e.g. http://test:test@127.0.0.1:9324/000000000000?region=x",
}
