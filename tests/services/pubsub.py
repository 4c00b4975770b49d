"""Google Pub/Sub in memory: Google's own test server, built from tests/services/pstest, or Google's emulator."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.services.go import GoBuild
from tests.services.maven import JAVA
from tests.services.server import Server, ServiceMissing, free_port, refuse_port_in_use

PSTEST = GoBuild("pstest", Path(__file__).parent / "pstest", "cloud.google.com/go/pubsub", "Pub/Sub")


class PubSubServer(Server):
    """Google's Go test server for Pub/Sub, of our own: gRPC only, in memory."""

    name = "pstest"
    ready_line = "ready on"

    def __init__(self) -> None:
        super().__init__()
        self.port = 0

    @property
    def host(self) -> str:
        """``host:port``, as ``PUBSUB_EMULATOR_HOST`` has it."""
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        PSTEST.require()
        self.port = free_port()

    def command(self) -> Sequence[str]:
        refuse_port_in_use(self.port)
        return [PSTEST.require(), "-port", str(self.port)]

    def variables(self) -> Mapping[str, str]:
        return {"PUBSUB_EMULATOR_HOST": self.host}


class EmulatorServer(PubSubServer):
    """Google's own emulator, where the machine has it: no package registry does."""

    name = "Pub/Sub emulator"
    ready_line = "Server started, listening on"

    def prepare(self) -> None:
        JAVA.require()
        _emulator()
        self.port = free_port()

    def command(self) -> Sequence[str]:
        refuse_port_in_use(self.port)
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [JAVA.require(), *small, "-jar", str(_emulator()), "--host=127.0.0.1", f"--port={self.port}"]


def _emulator() -> Path:
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        folder = Path(gcloud).resolve().parents[1] / "platform" / "pubsub-emulator" / "lib"
        for jar in folder.glob("cloud-pubsub-emulator-*-all.jar"):
            return jar
    raise ServiceMissing("Google's Pub/Sub emulator is not beside gcloud: gcloud components install pubsub-emulator")
