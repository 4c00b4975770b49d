"""Google Pub/Sub in memory: Google's own test server, built from tests/services/pstest, or Google's emulator."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.services.maven import JAVA
from tests.services.server import SERVICES, Program, Server, ServiceMissing, free_port, refuse_port_in_use

GO = Program("go", "golang-go", "Pub/Sub")


@dataclass(frozen=True, slots=True)
class GoBuild:
    """A program in Go, whose modules Go fetches from wherever it is set up to, and checks by their ``go.sum``."""

    source: Path
    module: str
    serves: str

    @property
    def title(self) -> str:
        """Its name, and the module that it is about."""
        required = next(line for line in self._text("go.mod").splitlines() if f"{self.module} v" in line)
        return f"{self.source.name} ({required.strip()})"

    @property
    def folder(self) -> Path:
        """Where the program is kept: one for each version of its source. ``make clean`` removes it."""
        text = "".join(map(self._text, ("go.mod", "go.sum", "main.go")))
        return SERVICES / f"{self.source.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def is_here(self) -> bool:
        """Whether it was built before."""
        return self.folder.is_dir()

    def require(self) -> str:
        """Its path; raises ``ServiceMissing``."""
        if self.is_here:
            return str(self.folder / self.source.name)
        raise ServiceMissing(f"{self.serves} needs {self.title}: python -m tests.services install")

    def fetch(self) -> None:
        """Build it; raises ``ServiceMissing``."""
        go = GO.require()
        print(f"building {self.title} with Go, which takes a minute", flush=True)
        SERVICES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVICES) as folder:
            built = Path(folder, "built")
            options = ["-mod=readonly", "-trimpath", "-buildvcs=false"]
            command = [go, "build", *options, "-o", str(built / self.source.name), "."]
            environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GO111MODULE": "on", "GOWORK": "off"}
            if subprocess.run(
                command, cwd=self.source, env=environment, stdin=subprocess.DEVNULL, check=False
            ).returncode:
                raise ServiceMissing(f"{self.serves}: Go could not build {self.title}")
            built.rename(self.folder)

    def _text(self, name: str) -> str:
        return (self.source / name).read_text()


PSTEST = GoBuild(Path(__file__).parent / "pstest", "cloud.google.com/go/pubsub", "Pub/Sub")


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
