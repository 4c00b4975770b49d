"""Real servers for the tests: found, started on loopback, waited for, and never left behind.

    python tests/services.py install            install what is missing (root on Debian), else say what and how
    python tests/services.py status             what is here and what would be skipped
    python tests/services.py run -- COMMAND …   start every server and run COMMAND with their URLs in its environment
    python tests/services.py certificates DIR   make the certificates of the TLS server there

Runs before there is an environment, so it needs nothing but the standard library. A server that somebody else runs
(``docker compose up``) is used instead where its variable is set: see ``VARIABLES``.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from urllib.request import Request, urlopen

VARIABLES = {
    "REDIS_URL": "a Redis whose empty databases the tests may use, e.g. redis://127.0.0.1:6379/0",
    "REDIS_TLS_URL": "the same over TLS, e.g. rediss://localhost:6380/0?ssl_ca_certs=.services/tls/ca.crt",
    "SQS_URL": "an SQS in which the tests may make queues, e.g. http://test:test@127.0.0.1:9324/000000000000?region=x",
}
START_DEADLINE = 90.0
STOP_DEADLINE = 15.0
# below the range that outgoing connections take their ports from, so that nobody is given ours by chance
PORTS = range(20_000, 32_000)


class ServiceMissing(Exception):
    """A server cannot run here; the text says what to install."""


class StartFailed(Exception):
    """A server is here and did not come up; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command that the tests need, and the Debian package that has it."""

    command: str
    package: str
    serves: str

    @property
    def path(self) -> str | None:
        """Where it is, or None."""
        return shutil.which(self.command)

    def require(self) -> str:
        """Where it is; raises ``ServiceMissing``."""
        if path := self.path:
            return path
        raise ServiceMissing(f"{self.serves} needs the program {self.command}: apt-get install {self.package}")


REDIS = Program("redis-server", "redis-server", "Redis")
OPENSSL = Program("openssl", "openssl", "TLS")
RABBITMQ = Program("rabbitmq-server", "rabbitmq-server", "RabbitMQ")
EPMD = Program("epmd", "erlang-base", "RabbitMQ")
JAVA = Program("java", "default-jre-headless", "SQS")
MAVEN = Program("mvn", "maven", "SQS")
PROGRAMS = (REDIS, OPENSSL, RABBITMQ, JAVA, MAVEN)
SERVICES = Path(__file__).resolve().parent.parent / ".services"


@dataclass(frozen=True, slots=True)
class Jars:
    """A Java program and all that it needs: a folder of jars, which Maven fetches from wherever it is set up to.

    ``sha256`` is that of the lines ``<name> <sha256 of the file>`` of all of them, sorted.
    """

    group: str
    artifact: str
    version: str
    main: str
    sha256: str
    serves: str

    @property
    def folder(self) -> Path:
        """Where they are kept; ``make clean`` removes them."""
        return SERVICES / f"{self.artifact}-{self.version}"

    @property
    def are_here(self) -> bool:
        """Whether they were fetched before."""
        return self.folder.is_dir()

    def require(self) -> str:
        """Their class path; raises ``ServiceMissing``."""
        if self.are_here:
            return f"{self.folder}/*"
        raise ServiceMissing(f"{self.serves} needs {self.artifact} {self.version}: python tests/services.py install")

    def fetch(self) -> None:
        """Fetch and check them; raises ``ServiceMissing``. They are all there afterwards, or none is."""
        maven = MAVEN.require()
        print(f"fetching {self.artifact} {self.version} with Maven", flush=True)
        SERVICES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVICES) as folder:
            pom, jars = Path(folder, "pom.xml"), Path(folder, "jars")
            pom.write_text(_POM.format(jars=self))
            command = [maven, "-q", "-B", "--strict-checksums", "-f", str(pom), _COPY_DEPENDENCIES]
            command.append(f"-DoutputDirectory={jars}")
            if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
                raise ServiceMissing(f"{self.serves}: Maven could not fetch {self.artifact} {self.version}")
            if (found := _sha256_of(jars)) != self.sha256:
                raise ServiceMissing(f"{self.artifact} {self.version}: the sha256 is {found}, expected {self.sha256}")
            jars.rename(self.folder)


ELASTICMQ = Jars(
    group="org.elasticmq",
    artifact="elasticmq-server_2.13",
    version="1.7.1",
    main="org.elasticmq.server.Main",
    sha256="6b57a0a18f71ed651ad89306f5d01d15120fb78ec74e31299e484f8e3985bc24",
    serves="SQS",
)
_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>asyncqueue.tests</groupId>
  <artifactId>jars</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>{jars.group}</groupId>
      <artifactId>{jars.artifact}</artifactId>
      <version>{jars.version}</version>
    </dependency>
  </dependencies>
</project>
"""


def _sha256_of(folder: Path) -> str:
    """One checksum for the names and contents of all files in a folder."""
    lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Server(ABC):
    """One server process on loopback, in a folder of its own that goes with it.

    ``launch`` starts the process and ``wait_ready`` waits until it answers; several servers are launched first and
    waited for afterwards, which is how they start in parallel (``started``). ``start`` is both. All of it blocks: in
    a coroutine, call it through ``asyncio.to_thread``.
    """

    name: str

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    # what each kind of server says about itself

    @abstractmethod
    def prepare(self) -> None:
        """Choose ports and write files, once, before the first launch."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command line; it must stay in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it is this very process that answers, and is ready."""

    def environment(self) -> Mapping[str, str] | None:
        """The environment of the process; None: ours."""
        return None

    # what all of them do

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        if self._folder is None:
            # short, because the path of a unix socket ends at 107 bytes
            self._folder = Path(tempfile.mkdtemp(prefix="aq-", dir="/tmp" if os.path.isdir("/tmp") else None))
        return self._folder

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.folder / "log"

    @property
    def is_launched(self) -> bool:
        """Whether its process was started and not ended by us."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id; raises ``RuntimeError`` when it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start and wait until it is ready. Leaves nothing behind when that fails."""
        try:
            self.launch()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def launch(self) -> None:
        """Start the process, on the ports and files it had before, if it had any."""
        if self._folder is None:
            self.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Wait until it answers; raises ``StartFailed`` when it ends or takes too long."""
        deadline = time.monotonic() + START_DEADLINE
        while not self.answers():
            code = self._process.poll() if self._process else None
            if code is not None:
                raise StartFailed(f"{self.name} ended with code {code}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} did not answer within {START_DEADLINE:g} s: {self._last_words()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Its files stay, and ``restart`` brings it back with them."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """SIGSTOP: it keeps its connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on after ``suspend``."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start again after ``kill`` (or end it first), on the same ports and files, and wait until it is ready."""
        self._end(signal.SIGTERM)
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """End it and remove its folder. Twice is no harm."""
        self._end(signal.SIGTERM)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "(no log)"


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


class RabbitServer(Server):
    """A RabbitMQ node of our own, with its own cookie, port mapper and ports.

    ``tls`` adds a TLS port with certificates made for it. ``options`` are further lines of its configuration. Its
    management API answers on ``management_port``, as guest.
    """

    name = "rabbitmq-server"
    scripts = Path("/usr/lib/rabbitmq/bin")

    def __init__(self, *, tls: bool = False, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.tls = tls
        self.options = dict(options or {})
        self.port = 0
        self.tls_port = 0
        self.management_port = 0
        self._epmd_port = 0
        self._distribution_port = 0
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``amqp://guest:guest@127.0.0.1:…/``."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """``amqps://guest:guest@localhost:…/`` with the authority to trust in ``cafile``."""
        return f"amqps://guest:guest@localhost:{self.tls_port}/?cafile={self.folder / 'ca.crt'}"

    def prepare(self) -> None:
        RABBITMQ.require()
        EPMD.require()
        if self.tls:
            make_certificates(self.folder)
        self.port, self.management_port = free_port(), free_port()
        self._epmd_port, self._distribution_port = free_port(), free_port()
        self.tls_port = free_port() if self.tls else 0

    def launch(self) -> None:
        if self._folder is None:
            self.prepare()
        if self._epmd is None:
            # of our own: the one that the node would start itself is shared by all and outlives it
            with self.log.with_name("epmd.log").open("ab") as log:
                self._epmd = subprocess.Popen(
                    [EPMD.require(), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self._await_epmd()
        self.log.write_bytes(b"")  # what an earlier start said would be taken for this one's
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
        lines = [f"{key} = {value}" for key, value in (settings | self.options).items()]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(f"{random.getrandbits(128):032x}")
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
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
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

    def answers(self) -> bool:
        return "Server startup complete" in self.log.read_text(errors="replace")

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """One call of the management API, e.g. ``manage("GET", "queues/%2F")``; None where it answers nothing."""
        login = base64.b64encode(b"guest:guest").decode()
        request = Request(
            f"http://127.0.0.1:{self.management_port}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
            method=method,
        )
        with urlopen(request, timeout=30) as reply:
            text = reply.read()
        return json.loads(text) if text else None

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
        self._end(signal.SIGTERM)
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait()
        super().stop()

    def _await_epmd(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._epmd_port), timeout=1):
                return
            time.sleep(0.02)
        raise StartFailed(f"epmd did not answer within {START_DEADLINE:g} s")


class ElasticServer(Server):
    """An ElasticMQ of our own: SQS with the limits of AWS, in memory."""

    name = "ElasticMQ"

    def __init__(self) -> None:
        super().__init__()
        self.port = 0

    @property
    def endpoint(self) -> str:
        """``http://host:port``, as an SQS client wants it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """``http://key:secret@host:port/account?region=…``, as a broker wants it. It takes any key."""
        return f"http://test:test@127.0.0.1:{self.port}/000000000000?region=elasticmq"

    def prepare(self) -> None:
        JAVA.require()
        ELASTICMQ.require()
        self.port = free_port()

    def command(self) -> Sequence[str]:
        refuse_port_in_use(self.port)
        config = self.folder / "elasticmq.conf"
        config.write_text(_ELASTICMQ_CONFIG.format(port=self.port))
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [JAVA.require(), *small, f"-Dconfig.file={config}", "-cp", ELASTICMQ.require(), ELASTICMQ.main]

    def launch(self) -> None:
        if self._folder is None:
            self.prepare()
        self.log.write_bytes(b"")  # what an earlier start said would be taken for this one's
        super().launch()

    def answers(self) -> bool:
        # said last, and only where the port was free
        return "=== ElasticMQ server" in self.log.read_text(errors="replace")


_ELASTICMQ_CONFIG = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "127.0.0.1", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
"""


@contextmanager
def started(*servers: Server) -> Iterator[None]:
    """Start servers in parallel and stop them at the end; leaves none behind when one of them fails."""
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield
    finally:
        for server in servers:
            server.stop()


def free_port() -> int:
    """A port on loopback that nobody listens on, below those of outgoing connections."""
    for port in random.sample(PORTS, 200):
        with suppress(StartFailed):
            refuse_port_in_use(port)
            return port
    raise StartFailed(f"no free port found in {PORTS.start}-{PORTS.stop - 1}")


def refuse_port_in_use(port: int) -> None:
    """Raise ``StartFailed`` when somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StartFailed(f"port {port} is in use") from exc


def make_certificates(folder: Path) -> None:
    """Write ``ca.crt``, ``server.crt`` and ``server.key``, for localhost and 127.0.0.1, for two days."""
    openssl = OPENSSL.require()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openssl.cnf").write_text(_OPENSSL_CONFIG)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.cnf"]
    authority = ["-x509", "-days", "2", "-subj", "/CN=asyncqueue tests", "-extensions", "authority"]
    signing = ["-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extensions", "server"]
    for arguments in (
        ["req", *new_key, *authority, "-keyout", "ca.key", "-out", "ca.crt"],
        ["req", *new_key, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-extfile", "openssl.cnf", *signing, "-out", "server.crt"],
    ):
        done = subprocess.run([openssl, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartFailed(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
    # in compose it is another user who reads it
    (folder / "server.key").chmod(0o644)


_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = asyncqueue tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def _quoted(text: str) -> str:
    """A value with blanks or quotes in it, as redis.conf wants it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _request(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)


def install() -> int:
    """Install what is missing; 0 when the tests can go on (at home they skip what is missing)."""
    if _missing_programs() and os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install([program.package for program in _missing_programs()])
    if not ELASTICMQ.are_here:
        try:
            ELASTICMQ.fetch()
        except ServiceMissing as exc:
            print(exc, file=sys.stderr)
    is_missing = bool(_missing_programs()) or not ELASTICMQ.are_here
    if is_missing:
        status()
    return 1 if is_missing and os.environ.get("CI") == "true" else 0


def _missing_programs() -> list[Program]:
    return [program for program in PROGRAMS if program.path is None]


def _apt_install(packages: Sequence[str]) -> None:
    print(f"installing {' '.join(packages)} with apt-get", flush=True)
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        if subprocess.run([*apt, *command], env=environment, check=False).returncode:
            print(f"apt-get {command[0]} failed", file=sys.stderr)


def status() -> int:
    """Print what is here; 0 when nothing is missing."""
    missing = _missing_programs()
    for program in PROGRAMS:
        print(f"{program.serves:8} {program.path or f'MISSING: {program.command} (package {program.package})'}")
    print(f"{ELASTICMQ.serves:8} {ELASTICMQ.folder if ELASTICMQ.are_here else f'MISSING: {ELASTICMQ.artifact}'}")
    for variable, meaning in VARIABLES.items():
        print(f"{variable:14} {'is set' if os.environ.get(variable) else f'is not set ({meaning})'}")
    if missing:
        packages = " ".join(program.package for program in missing)
        print(f"\nTests of {', '.join(program.serves for program in missing)} are skipped. As root on Debian:")
        print(f"    apt-get install {packages}")
        print("or start the servers with `docker compose up` and set the variables above; tests that kill a server")
        print("need the programs themselves.")
    if not ELASTICMQ.are_here:
        print("\nTests of SQS are skipped. Where there is Maven:\n    python tests/services.py install")
    return 1 if missing or not ELASTICMQ.are_here else 0


def run(command: Sequence[str]) -> int:
    """Run a command beside every server, with the URLs in its environment; returns its exit code."""
    # SIGTERM must not leave the servers behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    redis = RedisServer(tls=True, databases=64)
    sqs = ElasticServer()
    with started(sqs, redis):
        urls = {"REDIS_URL": redis.url, "REDIS_TLS_URL": redis.tls_url, "SQS_URL": sqs.url}
        print(*(f"{variable}={url}" for variable, url in urls.items()), sep="\n", flush=True)
        return subprocess.run(command, env=os.environ | urls, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Real servers for the tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install", help="install what is missing, or say how")
    verbs.add_parser("status", help="what is here and what is missing")
    verbs.add_parser("run", help="run a command beside every server").add_argument("command", nargs="+")
    verbs.add_parser("certificates", help="make certificates").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        match arguments.verb:
            case "install":
                return install()
            case "status":
                return status()
            case "run":
                return run(arguments.command)
            case _:
                make_certificates(arguments.folder)
                return 0
    except (ServiceMissing, StartFailed) as exc:
        print(exc, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
