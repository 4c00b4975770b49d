"""ElasticMQ, which speaks SQS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.services.maven import JAVA, Jars
from tests.services.server import Server, free_port, refuse_port_in_use

ELASTICMQ = Jars(
    group="org.elasticmq",
    artifact="elasticmq-server_2.13",
    version="1.7.1",
    main="org.elasticmq.server.Main",
    sha256="6b57a0a18f71ed651ad89306f5d01d15120fb78ec74e31299e484f8e3985bc24",
    serves="SQS",
)


class ElasticServer(Server):
    """An ElasticMQ of our own: SQS with the limits of AWS, in memory, or ``durable``: what it has confirmed is on disk,
    and there again after ``kill`` and ``restart``."""

    name = "ElasticMQ"
    ready_line = "=== ElasticMQ server"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self.port = 0
        self._durable = durable

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
        storage = _STORAGE.format(path=self.folder / "messages") if self._durable else ""
        config.write_text(_ELASTICMQ_CONFIG.format(port=self.port) + storage)
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [JAVA.require(), *small, f"-Dconfig.file={config}", "-cp", ELASTICMQ.require(), ELASTICMQ.main]

    def variables(self) -> Mapping[str, str]:
        return {"SQS_URL": self.url}


_ELASTICMQ_CONFIG = """\
include classpath("application.conf")
node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-hostname = "127.0.0.1", bind-port = {port}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
"""
# without WRITE_DELAY=0, H2 writes half a second after it said that it had
_STORAGE = """\
messages-storage {{ enabled = true, uri = "jdbc:h2:{path};WRITE_DELAY=0", prune-data-on-init = false }}
"""
