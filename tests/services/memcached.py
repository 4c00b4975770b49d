"""Memcached, one server or several."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.services.server import Program, Server, ServerGroup, free_port, refuse_port_in_use

MEMCACHED = Program("memcached", "memcached", "Memcached")


class MemcachedServer(Server):
    """A memcached of our own. ``item_size_max`` is the size limit (bytes) of an entry, ``memory`` all that it keeps
    (megabytes), ``on_socket`` whether it listens on a unix socket and not on a port."""

    name = "memcached"

    def __init__(self, *, item_size_max: int = 1024 * 1024, memory: int = 64, on_socket: bool = False) -> None:
        super().__init__()
        self.item_size_max = item_size_max
        self.port = 0
        self._memory = memory
        self._on_socket = on_socket

    @property
    def place(self) -> str:
        """What a URL says of it: ``host:port``, or the path of its socket."""
        return str(self.socket_path) if self._on_socket else f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """``memcache://…``, of this one alone."""
        return f"memcache://{self.place}"

    @property
    def socket_path(self) -> Path:
        """Its unix socket."""
        return self.folder / "memcached.sock"

    def prepare(self) -> None:
        MEMCACHED.require()
        self.port = 0 if self._on_socket else free_port()

    def command(self) -> Sequence[str]:
        limits = ["-m", str(self._memory), "-I", str(self.item_size_max), "-t", "2", "-u", "root"]
        if self._on_socket:
            return [MEMCACHED.require(), *limits, "-s", str(self.socket_path)]
        refuse_port_in_use(self.port)
        return [MEMCACHED.require(), *limits, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0"]

    def answers(self) -> bool:
        try:
            return f"STAT pid {self.pid}\r\n" in self.call("stats", ends_with="END\r\n")
        except (OSError, RuntimeError):
            return False

    def call(self, command: str, *, ends_with: str = "\r\n") -> str:
        """One command; the raw reply. For the life of a server, not for tests of data."""
        return call(self.place, command, ends_with=ends_with)


class Memcacheds(ServerGroup):
    """Two memcached of our own, used as one store, with room for entries of 4 MiB."""

    name = "memcached"
    servers: Sequence[MemcachedServer]

    def __init__(self) -> None:
        self.servers = [MemcachedServer(item_size_max=4 * 1024 * 1024) for _ in range(2)]

    @property
    def url(self) -> str:
        """``memcache://host:port,host:port``."""
        return f"memcache://{','.join(server.place for server in self.servers)}"

    def variables(self) -> Mapping[str, str]:
        """Its URL, by its name in ``VARIABLES``."""
        return {"MEMCACHE_URL": self.url}


def call(place: str, command: str, *, ends_with: str = "\r\n") -> str:
    """One command to ``host:port``, or to the socket with that path; the raw reply."""
    parts = urlsplit(f"//{place}")
    with socket.socket(socket.AF_UNIX if place.startswith("/") else socket.AF_INET) as connection:
        connection.settimeout(5)
        connection.connect(place if place.startswith("/") else (parts.hostname, parts.port))
        connection.sendall(f"{command}\r\n".encode())
        reply = b""
        while not reply.endswith(ends_with.encode()):
            more = connection.recv(65_536)
            if not more:
                raise ConnectionResetError(f"memcached at {place} closed the connection")
            reply += more
        return reply.decode()


def item_size_max(url: str) -> int:
    """The size limit (bytes) of an entry on the first server of a ``memcache://`` URL."""
    settings = call(url.partition("://")[2].split(",")[0], "stats settings", ends_with="END\r\n")
    return int(settings.partition("STAT item_size_max ")[2].partition("\r\n")[0])


GRAIN = 5
"""How much longer (seconds) than asked an entry may be there: driver, server and ``age`` round to whole ones."""


def age(url: str, seconds: float) -> None:
    """Let the entries on the servers of a ``memcache://`` URL be older by so much: there is no other way to have a
    server's time pass. What is at its end then, or within the grain of it, is gone."""
    for place in url.partition("://")[2].split(","):
        for name in _keys(place):
            word, *flags = call(place, f"mg {name} t").split()
            left = int(flags[0][1:]) if word == "HD" else -1
            if left == -1:
                continue  # it is gone, or has no end
            older = left - int(seconds)
            call(place, f"mg {name} T{older}" if older > GRAIN else f"md {name}")


def _keys(place: str) -> list[str]:
    """All keys on a server. By its hash table: what it moves between its lists meanwhile would be missed in those."""
    deadline = time.monotonic() + 10
    while not (dump := call(place, "lru_crawler metadump hash")).endswith("END\r\n"):
        if time.monotonic() > deadline:  # it is busy with a dump, or a sweep, of its own now and then
            raise RuntimeError(f"memcached at {place}: {dump[-200:]!r}")
        time.sleep(0.05)
    return [unquote(line.partition(" ")[0].removeprefix("key=")) for line in dump.splitlines()[:-1]]


def empty(url: str) -> None:
    """Drop all that is on the servers of a ``memcache://`` URL."""
    for place in url.partition("://")[2].split(","):
        reply = call(place, "flush_all")
        if reply != "OK\r\n":
            raise RuntimeError(f"memcached at {place}: {reply!r}")
