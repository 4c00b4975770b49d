"""The link to a place, of whichever kind it is; and how to make its connections anew."""

from __future__ import annotations

from typing import assert_never

from asyncqueue.connections.redis import MAX_CONNECTIONS, Access, Link, Options, RedisLink
from asyncqueue.connections.redis_cluster import ClusterLink
from asyncqueue.connections.redis_place import Alone, Clustered, Watched
from asyncqueue.connections.redis_sentinel import SentinelLink


def link_to(url: str, options: Options, *, max_connections: int = MAX_CONNECTIONS, slow: float = float("inf")) -> Link:
    """A link, not yet open, to where the URL leads. Raises ``ConfigError``."""
    access = Access.to(url, options)
    match access.place:
        case Alone():
            return RedisLink(access, max_connections=max_connections, slow=slow)
        case Watched():
            return SentinelLink(access, max_connections=max_connections, slow=slow)
        case Clustered():
            return ClusterLink(access, max_connections=max_connections, slow=slow)
        case never:
            assert_never(never)


def reconnect(link: Link, url: str, options: Options) -> None:
    """Make the connections from now on so, and those of links that share its access; what is open stays as it is.
    The URL leads to the same place, with other credentials. Raises ``ConfigError``."""
    new = Access.to(url, options)
    old = link.access
    old.place, old.connect_timeout, old.reply_timeout = new.place, new.connect_timeout, new.reply_timeout
    old.client_name, old.replicas = new.client_name, new.replicas
