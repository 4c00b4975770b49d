"""A service reached through proxies of the test's own: to count what it is asked, and to take it away for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from tests.proxy import FaultProxy


@dataclass(frozen=True, slots=True)
class Proxied:
    """A way to a service: ``url`` leads through ``proxies``, one for each of its servers."""

    url: str
    proxies: Sequence[FaultProxy]

    @property
    def writes(self) -> int:
        """How often anybody wrote something to the service."""
        return sum(proxy.writes for proxy in self.proxies)

    async def go_away(self) -> None:
        """Cut every connection, and let nobody connect."""
        for proxy in self.proxies:
            await proxy.refuse()

    async def come_back(self) -> None:
        """Let clients connect again."""
        for proxy in self.proxies:
            await proxy.accept()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxied]:
    """A way to the service at ``url``, all of whose addresses are of the form ``host:port``."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    async with AsyncExitStack() as stack:
        proxies: list[FaultProxy] = []
        for place in hosts.split(","):
            host, _, port = place.rpartition(":")
            proxies.append(await stack.enter_async_context(FaultProxy(host, int(port), reads=False)))
        there = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        query = parts.query
        if parts.scheme == "mongodb":  # its members would name themselves, and be reached without us
            query = "&".join(filter(None, [query, "directConnection=true"]))
        yield Proxied(urlunsplit(parts._replace(netloc=f"{login}{at}{there}", query=query)), proxies)
