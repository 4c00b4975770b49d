"""DynamoDB Local, which is AWS's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.services.maven import JAVA, Jars
from tests.services.server import Server, free_port, refuse_port_in_use

DYNAMODB_LOCAL = Jars(
    group="com.amazonaws",
    artifact="DynamoDBLocal",
    version="2.6.1",
    main="com.amazonaws.services.dynamodbv2.local.main.ServerRunner",
    sha256="fc65f12e5db3d214e4f0dcf0466fe38e11f8b91224a71af28be76c00387e616e",
    serves="DynamoDB",
)


class DynamoServer(Server):
    """A DynamoDB Local of our own, in memory. Every access key has tables of its own there.

    It listens on all addresses, having no option for another: there is nothing in it but the data of tests.
    """

    name = "DynamoDB Local"

    def __init__(self) -> None:
        super().__init__()
        self.port = 0

    @property
    def url(self) -> str:
        """``http://key:secret@host:port?region=…``, as a backend wants it. It takes any key of letters and digits."""
        return f"http://test:test@127.0.0.1:{self.port}?region=local"

    def prepare(self) -> None:
        JAVA.require()
        DYNAMODB_LOCAL.require()
        self.port = free_port()

    def command(self) -> Sequence[str]:
        refuse_port_in_use(self.port)
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        native = f"-Dsqlite4java.library.path={DYNAMODB_LOCAL.folder}"
        local = ["-inMemory", "-disableTelemetry", "-port", str(self.port)]
        return [JAVA.require(), *small, native, "-cp", DYNAMODB_LOCAL.require(), DYNAMODB_LOCAL.main, *local]

    def answers(self) -> bool:
        # the port was free when this process was launched; where it was taken since then, the process ends
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/", timeout=5):
                return True
        except HTTPError as exc:
            return exc.code == HTTPStatus.BAD_REQUEST  # so it answers who names no key
        except (URLError, OSError):
            return False

    def variables(self) -> Mapping[str, str]:
        return {"DYNAMODB_URL": self.url}
