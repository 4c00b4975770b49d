"""The examples do what they say: each is run as its reader would run it, and its output is what its page shows."""

from __future__ import annotations

import ast
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from urllib.request import Request, urlopen

import httpx
import pytest

from tests.services import free_port

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NUMBERED = sorted(EXAMPLES.glob("[0-9]*.py"))
DEADLINE = 120


class Program:
    """A process of an example: waited for by what it says, and stopped at the end of the test."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self.said: list[str] = []
        self._lines: Queue[str | None] = Queue()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listening = Thread(target=self._listen)
        self._listening.start()

    def wait_until_it_says(self, text: str) -> str:
        """The first line from here on that has ``text`` in it."""
        while True:
            try:
                line = self._lines.get(timeout=DEADLINE)
            except Empty:
                line = None
            if line is None:
                pytest.fail(f"it never said {text!r}:\n{''.join(self.said)}")
            if text in line:
                return line

    def stop(self) -> int:
        """Tell it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE)
        self._listening.join(DEADLINE)
        return code

    def end(self) -> None:
        self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            self._lines.put(line)
        self._lines.put(None)


class Programs:
    """Starts programs beside each other in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Program] = []

    def python(self, *words: str, **environment: str) -> Program:
        self.started.append(Program([sys.executable, *words], self.folder, **environment))
        return self.started[-1]

    def worker(self, *words: str) -> Program:
        worker = self.python("-m", "asyncqueue", "worker", *words)
        worker.wait_until_it_says("worker started")
        return worker


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    for each in programs.started:
        each.end()


@pytest.mark.parametrize("example", NUMBERED, ids=lambda path: path.stem)
def test_a_numbered_example_prints_what_its_page_says(
    example: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wants_redis = "REDIS_URL" in example.read_text()
    environment = {"REDIS_URL": str(request.getfixturevalue("redis_url"))} if wants_redis else {}
    ran = run([str(example)], tmp_path, **environment)
    assert (ran.returncode, ran.stdout.splitlines()) == (0, promised(example)), ran.stderr


def test_the_example_that_wants_redis_says_so_where_there_is_none(tmp_path: Path) -> None:
    ran = run([str(EXAMPLES / "08_message_from_elsewhere.py")], tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("set REDIS_URL to a Redis")


def test_workers_by_command_line_run_the_tasks_of_a_module(programs: Programs) -> None:
    shutil.copy(EXAMPLES / "shop.py", programs.folder)
    workers = [programs.worker("shop:server", "--queue", "orders", "--queue", "letters") for _ in range(2)]
    ran = run(["shop.py", "apple", "3"], programs.folder)
    assert ran.stdout.splitlines() == ["3 apples: 1.50", "Dear Ada, your order is on its way."], ran.stderr
    sent = run(
        ["-m", "asyncqueue", "send", "shop:server", "price_of", "--args", '["melon", 4]', "--wait", "30"],
        programs.folder,
    )
    assert sent.returncode == 0
    assert "9" in sent.stdout.splitlines()[1]
    assert [worker.stop() for worker in workers] == [0, 0]


def test_a_fastapi_service_sends_and_lets_its_client_wait(programs: Programs) -> None:
    shutil.copy(EXAMPLES / "fastapi_service" / "app.py", programs.folder)
    port = free_port()
    service = programs.python("-m", "uvicorn", "app:app", "--port", str(port))
    service.wait_until_it_says("Uvicorn running on")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client:
        task_id = client.post("/counts", json={"text": "to be or not to be"}).json()["id"]
        assert client.get(f"/result/{task_id}").json() == {"state": "PENDING", "result": None, "error": None}

        worker = programs.worker("app:server")
        counted = client.get(f"/result/{task_id}", params={"wait": 30}).json()
        assert counted == {"state": "SUCCESS", "result": {"to": 2, "be": 2, "or": 1, "not": 1}, "error": None}
        assert client.get(f"/result/{task_id}").json() == counted

        task_id = client.post("/counts", json={"text": " "}).json()["id"]
        failed = client.get(f"/result/{task_id}", params={"wait": 30}).json()
        assert failed == {"state": "FAILURE", "result": None, "error": "ValueError: there are no words in it"}

        assert client.get("/result/task_unknown").status_code == 404
        assert client.get(f"/result/{task_id}", params={"wait": 3600}).status_code == 422
    assert worker.stop() == 0
    service.stop()


def test_an_aiohttp_app_has_its_worker_inside_and_stops_it(programs: Programs) -> None:
    port = free_port()
    app = programs.python(str(EXAMPLES / "aiohttp_embedded.py"), str(port), PYTHONUNBUFFERED="1")
    app.wait_until_it_says("Running on")
    with urlopen(Request(f"http://127.0.0.1:{port}/shout", data=b"hello"), timeout=DEADLINE) as answer:
        assert answer.read() == b"HELLO"
    assert app.stop() == 0


@pytest.mark.parametrize("part", ["*.py", pytest.param("**/*.py", marks=pytest.mark.long)])
def test_the_demo_measures_the_standard_library_with_two_processes(
    part: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [] if part == "**/*.py" else [str(_copied(part, tmp_path_factory.mktemp("library")))]
    ran = run([str(EXAMPLES / "demo.py"), *words], tmp_path, TMPDIR=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    first = re.match(r"(\d+) files of .+, 2 worker processes", lines[0])
    assert first is not None
    total = int(first[1])
    assert total > (100 if words else 500)
    assert f"{total:5} of {total} results" in lines
    table = lines.index(next(line for line in lines if line.startswith("module")))
    sizes = [int(line.split()[1]) for line in lines[table + 1 : table + 11]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[9] > 100
    shares = re.match(r"the workers measured (\d+) and (\d+)$", lines[-2])
    assert shares is not None
    assert min(int(shares[1]), int(shares[2])) > 0
    last = re.match(r"(\d+) tasks in .+ tasks/s$", lines[-1])
    assert last is not None
    assert int(last[1]) == total + 1  # and the callback
    assert list(tmp_path.iterdir()) == []


def test_the_demo_draws_a_bar_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "good.py").write_text("def one():\n    return 1\n")
    (tmp_path / "small" / "bad.py").write_text("def one(:\n")
    demo = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py"), "small"], cwd=tmp_path, env=_environment(tmp_path), stdout=theirs
    )
    os.close(theirs)
    shown = _all_of(ours)
    assert demo.wait(DEADLINE) == 0
    assert f"\r{'█' * 40} 2 of 2 results" in shown
    assert "one (2 lines)" in shown
    assert "1 files could not be parsed: bad" in shown


def test_the_demo_fails_clearly_where_there_is_nothing_to_measure(tmp_path: Path) -> None:
    ran = run([str(EXAMPLES / "demo.py"), str(tmp_path)], tmp_path)
    assert (ran.returncode, ran.stderr) == (1, f"demo: no .py files in {tmp_path}\n")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_the_demo_fails_clearly_when_a_worker_dies(programs: Programs) -> None:
    folder = tempfile.mkdtemp(dir=programs.folder)
    demo = programs.python(str(EXAMPLES / "demo.py"), TMPDIR=folder)
    demo.wait_until_it_says(" results")
    pid = demo.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert demo.wait() == 1
    assert "demo: a worker process ended by itself with exit code -9" in "".join(demo.said)
    assert list(Path(folder).iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(children[1]), 0)


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=_environment(folder, **environment),
        capture_output=True,
        text=True,
        timeout=280,
    )


def _environment(folder: Path, **more: str) -> dict[str, str]:
    unset = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return unset | {"PYTHONPATH": str(ROOT)} | more


def _copied(part: str, folder: Path) -> Path:
    """A folder with a part of the standard library."""
    for path in Path(sysconfig.get_path("stdlib")).glob(part):
        shutil.copy(path, folder)
    return folder


def promised(example: Path) -> list[str]:
    """The indented lines under ``Prints:`` in its docstring."""
    text = ast.get_docstring(ast.parse(example.read_text())) or ""
    _, found, promised = text.partition("Prints:\n\n")
    assert found, f"{example.name} does not say what it prints"
    return [line.removeprefix("    ") for line in promised.splitlines()]


def _all_of(terminal: int) -> str:
    shown = b""
    with suppress(OSError):  # the other end was closed
        while part := os.read(terminal, 65_536):
            shown += part
    os.close(terminal)
    return shown.decode()
