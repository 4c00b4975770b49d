"""SecantusDB, which speaks MongoDB's protocol: a program beside the tests, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.services.certificates import make_certificates
from tests.services.server import SERVICES, Server, ServiceMissing, free_port, refuse_port_in_use


@dataclass(frozen=True, slots=True)
class PythonProgram:
    """A program in Python, in an environment of its own, where pip puts it from wherever it is set up to."""

    package: str
    version: str
    serves: str

    @property
    def folder(self) -> Path:
        """Where it is kept: one for each version of Python. ``make clean`` removes it."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return SERVICES / f"{self.package}-{self.version}-python{python}"

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.package} {self.version}"

    @property
    def is_here(self) -> bool:
        """Whether it was installed before."""
        return self.folder.is_dir()

    def require(self) -> str:
        """The interpreter that has it; raises ``ServiceMissing``."""
        if self.is_here:
            return str(_interpreter(self.folder))
        raise ServiceMissing(f"{self.serves} needs {self.title}: python -m tests.services install")

    def fetch(self) -> None:
        """Install it; raises ``ServiceMissing``."""
        print(f"installing {self.title} with pip", flush=True)
        SERVICES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVICES) as folder:
            made = Path(folder, "made")
            self._run([sys.executable, "-m", "venv", str(made)])  # with a pip of its own: ours may have none
            pip = [str(_interpreter(made)), "-m", "pip", "--disable-pip-version-check"]
            self._run([*pip, "install", "--quiet", f"{self.package}=={self.version}"])
            made.rename(self.folder)  # its interpreter finds its way by where it stands; nothing else of it is run

    def _run(self, command: Sequence[str]) -> None:
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            raise ServiceMissing(f"{self.serves}: {self.title} could not be installed")


SECANTUS = PythonProgram("secantusdb", "0.7.0b3", "MongoDB")


class MongoServer(Server):
    """A SecantusDB of our own: a replica set of one, or ``lone``: no replica set, and without change streams.

    ``tls``: it speaks TLS alone, with a certificate of the authority in ``ca_file``.
    ``durable``: what it has confirmed is on disk, and there again after ``kill`` and ``restart``. ``auth``: it lets
    nobody in without a login; users are made while it is off, then it is restarted.
    """

    name = "SecantusDB"
    ready_line = "secantus listening on"

    def __init__(self, *, lone: bool = False, tls: bool = False, durable: bool = False) -> None:
        super().__init__()
        self.port = 0
        self.auth = False
        self._lone = lone
        self._tls = tls
        self._durable = durable

    @property
    def url(self) -> str:
        """``mongodb://host:port/``, and with TLS how to trust it."""
        options = f"?tls=true&tlsCAFile={self.ca_file}" if self._tls else ""
        return f"mongodb://127.0.0.1:{self.port}/{options}"

    @property
    def ca_file(self) -> Path:
        """The authority of its certificate."""
        return self.folder / "ca.crt"

    def prepare(self) -> None:
        SECANTUS.require()
        if self._tls:
            make_certificates(self.folder)
        self.port = free_port()

    def command(self) -> Sequence[str]:
        refuse_port_in_use(self.port)
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--storage-path", str(self.folder / "data")]
        options += ["--cache-size", "128M"]
        options += ["--standalone"] if self._lone else []
        options += ["--sync-on-commit"] if self._durable else []
        options += ["--tls-cert-file", "server.crt", "--tls-key-file", "server.key"] if self._tls else []
        options += ["--auth"] if self.auth else []
        return [SECANTUS.require(), "-m", "secantus", *options]

    def variables(self) -> Mapping[str, str]:
        return {"MONGODB_URL": self.url}


def _interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"
