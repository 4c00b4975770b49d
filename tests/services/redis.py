"""Redis: one server."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tests.services.certificates import make_certificates
from tests.services.server import Program, Server, free_port, refuse_port_in_use

REDIS = Program("redis-server", "redis-server", "Redis")


class RedisServer(Server):
    """A redis-server of our own.

    ``fsync`` is ``appendfsync`` of its append-only file ("always", "everysec", "no"), or None for no file at all.
    ``password`` is that of the default user; ``users`` are further ACL users, name to password, who may do
    everything; ``acl`` are rules for users of your own, e.g. ``{"worker": "on >secret ~q* +@read"}``. ``tls`` adds a
    TLS port with certificates made for it. ``options`` are further lines of its configuration.
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
        databases: int = 16,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.fsync = fsync
        self.password = password
        self.acl = {name: f"on {_quoted(f'>{secret}')} ~* &* +@all" for name, secret in (users or {}).items()}
        self.acl |= acl or {}
        self.tls = tls
        self.databases = databases
        self.options = dict(options or {})
        self.port = 0
        self.tls_port = 0

    @property
    def url(self) -> str:
        """``redis://…/0``, as the default user."""
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """``rediss://localhost:…/0`` with the authority to trust in ``ssl_ca_certs``, as the default user."""
        return f"rediss://{self._credentials}localhost:{self.tls_port}/0?ssl_ca_certs={self.ca_file}"

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
        return self.folder / "ca.crt"

    def prepare(self) -> None:
        REDIS.require()
        if self.tls:
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
                "tls-cert-file": str(self.folder / "server.crt"),
                "tls-key-file": str(self.folder / "server.key"),
                "tls-ca-cert-file": str(self.ca_file),
                "tls-auth-clients": "optional",
            }
        lines = [f"{key} {value}" for key, value in (settings | self.options).items()]
        lines += [f"user {name} {rules}" for name, rules in self.acl.items()]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        return [REDIS.require(), str(config)]

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
    def _credentials(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""


def _quoted(text: str) -> str:
    """A value with blanks or quotes in it, as redis.conf wants it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _request(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)
