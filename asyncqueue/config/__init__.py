"""Settings: read once, at the edge, into typed models; passed down as values."""

from asyncqueue.config.reload import EFFECT, Reloader, changed, effect, taken_up
from asyncqueue.config.settings import (
    SETTINGS,
    AMQPSettings,
    DynamoDBSettings,
    GCPPubSubSettings,
    LimitSettings,
    MongoDBSettings,
    RedisSettings,
    Setting,
    Settings,
    SQSSettings,
    TLSSettings,
    WorkerSettings,
)
from asyncqueue.config.sources import from_env, from_overrides, from_yaml, layered, load

__all__ = [
    "EFFECT",
    "SETTINGS",
    "AMQPSettings",
    "DynamoDBSettings",
    "GCPPubSubSettings",
    "LimitSettings",
    "MongoDBSettings",
    "RedisSettings",
    "Reloader",
    "SQSSettings",
    "Setting",
    "Settings",
    "TLSSettings",
    "WorkerSettings",
    "changed",
    "effect",
    "from_env",
    "from_overrides",
    "from_yaml",
    "layered",
    "load",
    "taken_up",
]
