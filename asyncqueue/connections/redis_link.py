"""The link of what is on Redis, to whichever kind of place; and how to make its connections anew."""

from __future__ import annotations

from typing import Any, assert_never, cast

from asyncqueue.connections.redis import MAX_CONNECTIONS, Access, Link, Options, RedisLink
from asyncqueue.connections.redis_cluster import ClusterLink
from asyncqueue.connections.redis_place import Alone, Clustered, Watched
from asyncqueue.connections.redis_sentinel import SentinelLink


class OnRedis:
    """A broker, backend or lock on Redis: ``Reconnecting``, and somewhere."""

    def __init__(
        self, url: str, options: Options, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")
    ) -> None:
        self._link = _link_to(Access.to(url, options), max_connections, slow)

    @property
    def address(self) -> str:
        return self._link.address

    def connect_with(self, url: str, **options: Any) -> None:
        new = Access.to(url, cast(Options, options))
        old = self._link.access  # which the links of a cluster share
        old.place, old.connect_timeout, old.reply_timeout = new.place, new.connect_timeout, new.reply_timeout
        old.client_name, old.replicas = new.client_name, new.replicas


def _link_to(access: Access, max_connections: int, slow: float) -> Link:
    match access.place:
        case Alone():
            return RedisLink(access, max_connections=max_connections, slow=slow)
        case Watched():
            return SentinelLink(access, max_connections=max_connections, slow=slow)
        case Clustered():
            return ClusterLink(access, max_connections=max_connections, slow=slow)
        case never:
            assert_never(never)
