"""RabbitMQ: a node with its own cookie, port mapper and ports."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tests.services.certificates import make_certificates
from tests.services.server import Program, Server, free_port, refuse_port_in_use, wait_until_reachable

RABBITMQ = Program("rabbitmq-server", "rabbitmq-server", "RabbitMQ")
EPMD = Program("epmd", "erlang-base", "RabbitMQ")


@dataclass(frozen=True, slots=True)
class Rabbit:
    """A RabbitMQ that runs: its URL, that of its management API, and that of its TLS port if it has one."""

    url: str
    management_url: str
    tls_url: str = ""

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """One call of the management API, e.g. ``manage("GET", "queues/%2F")``; None where it answers nothing."""
        place = urlsplit(self.management_url)
        login = base64.b64encode(f"{place.username}:{place.password}".encode()).decode()
        request = Request(
            f"http://{place.hostname}:{place.port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
            method=method,
        )
        with urlopen(request, timeout=30) as reply:
            text = reply.read()
        return json.loads(text) if text else None


class RabbitServer(Server):
    """A RabbitMQ node of our own, with its own cookie, port mapper and ports.

    ``tls`` adds a TLS port with certificates made for it. ``options`` are further lines of its configuration.
    ``joins`` is a node that runs and whose cluster this one is to be in. Its management API answers on
    ``management_port``, as guest.
    """

    name = "rabbitmq-server"
    ready_line = "Server startup complete"
    scripts = Path("/usr/lib/rabbitmq/bin")

    def __init__(
        self, *, tls: bool = False, options: Mapping[str, str] | None = None, joins: RabbitServer | None = None
    ) -> None:
        super().__init__()
        self.tls = tls
        self.joins = joins
        self.options = dict(options or {})
        self.port = 0
        self.tls_port = 0
        self.management_port = 0
        self._epmd_port = 0
        self._distribution_port = 0
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> str:
        """What the node is called in its cluster."""
        return f"t{self.port}@localhost"

    @property
    def url(self) -> str:
        """``amqp://guest:guest@127.0.0.1:…/``."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """``amqps://guest:guest@localhost:…/`` with the authority to trust in ``cafile``."""
        return f"amqps://guest:guest@localhost:{self.tls_port}/?cafile={self.folder / 'ca.crt'}"

    @property
    def management_url(self) -> str:
        """``http://guest:guest@127.0.0.1:…``."""
        return f"http://guest:guest@127.0.0.1:{self.management_port}"

    def prepare(self) -> None:
        RABBITMQ.require()
        EPMD.require()
        if self.tls:
            make_certificates(self.folder)
        self.port, self.management_port = free_port(), free_port()
        self._epmd_port = self.joins._epmd_port if self.joins else free_port()
        self._distribution_port = free_port()
        self.tls_port = free_port() if self.tls else 0

    def launch(self) -> None:
        if self._folder is None:
            self.prepare()
        if self._epmd is None and self.joins is None:
            # of our own: the one that the node would start itself is shared by all and outlives it
            with self.log.with_name("epmd.log").open("ab") as log:
                self._epmd = subprocess.Popen(
                    [EPMD.require(), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            wait_until_reachable(f"//127.0.0.1:{self._epmd_port}")
        super().launch()

    def command(self) -> Sequence[str]:
        for port in filter(None, (self.port, self.tls_port, self.management_port, self._distribution_port)):
            refuse_port_in_use(port)
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self.management_port),
            "log.console": "true",
            "log.console.level": "info",
        }
        if self.tls:
            settings |= {
                "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
                "ssl_options.cacertfile": str(self.folder / "ca.crt"),
                "ssl_options.certfile": str(self.folder / "server.crt"),
                "ssl_options.keyfile": str(self.folder / "server.key"),
            }
        if self.joins:
            settings |= {
                "cluster_formation.peer_discovery_backend": "classic_config",
                "cluster_formation.classic_config.nodes.1": self.joins.node,
                "cluster_formation.classic_config.nodes.2": self.node,
            }
        lines = [f"{key} = {value}" for key, value in (settings | self.options).items()]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            theirs = self.joins and self.joins.folder / cookie.name
            cookie.write_text(theirs.read_text() if theirs else f"{random.getrandbits(128):032x}")
            cookie.chmod(0o400)
        # not the wrapper in PATH, which becomes another user and other folders
        return [str(self.scripts / "rabbitmq-server")]

    def environment(self) -> Mapping[str, str] | None:
        folder = self.folder
        return {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # the start script becomes the node, so that a signal to our process is one to the node
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def variables(self) -> Mapping[str, str]:
        urls = {"RABBITMQ_URL": self.url, "RABBITMQ_MANAGEMENT_URL": self.management_url}
        return urls | ({"RABBITMQ_TLS_URL": self.tls_url} if self.tls else {})

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """One call of the management API, as ``Rabbit.manage``."""
        return Rabbit(self.url, self.management_url).manage(method, path, body)

    def control(self, *words: str) -> str:
        """One call of ``rabbitmqctl``, which takes a second or two; what it printed."""
        done = subprocess.run(
            [str(self.scripts / "rabbitmqctl"), *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(words)} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def stop(self) -> None:
        self._end(signal.SIGKILL)
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait()
        super().stop()
