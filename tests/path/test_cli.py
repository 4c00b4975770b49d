"""Workers as the command line starts them: real processes, a SQLite file between them, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

DEADLINE = 60.0
APP = """
import asyncio
import os
import time
from pathlib import Path

from asyncqueue import Server

server = Server("sqlite:///tasks.db")


@server.task
async def add(a: int, b: int) -> int:
    return a + b


@server.task
async def process() -> int:
    return os.getpid()


@server.task
async def hold(name: str) -> None:
    Path(name).touch()
    await asyncio.sleep(3600)


@server.task
async def block(name: str) -> None:
    Path(name).touch()
    time.sleep(3600)  # the loop with it


@server.task
def sit(name: str) -> None:
    Path(name).touch()
    time.sleep(3600)


@server.task
async def sit_aside(name: str) -> None:
    Path(name).touch()
    await asyncio.to_thread(time.sleep, 3600)


@server.task
async def fail() -> None:
    raise ValueError("no \\x1b[31m good\\nINFO all is well")
"""


class Program:
    """A running ``asyncqueue`` and its log."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log_path = folder / f"log-{time.monotonic_ns()}"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asyncqueue", *words], cwd=folder, stderr=log, stdout=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The whole lines of a JSON log."""
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def workers(self) -> list[int]:
        """The ids of the processes that said, in JSON, that they started to work; oldest first."""
        return [each["process"] for each in self.records if each.get("event") == "WorkerStarted"]

    def says(self, text: str) -> None:
        """Wait until the log has this text."""
        until(lambda: text in self.log, lambda: f"no {text!r} in the log:\n{self.log}")

    def send(self, *signals: signal.Signals) -> None:
        for each in signals:
            self.process.send_signal(each)

    def code(self) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end:\n{self.log}")


Start = Callable[..., Program]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts ``asyncqueue worker`` with these words after it; what is left at the end of the test is killed."""
    programs: list[Program] = []

    def start(*words: str) -> Program:
        programs.append(Program(folder, "worker", *words))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()  # its children notice
            program.process.wait()


@pytest.fixture
def verb(folder: Path) -> Callable[..., str]:
    """Runs another verb to its end; what it printed."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "asyncqueue", *words], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def until(true: Callable[[], T], complaint: Callable[[], str]) -> T:
    """Wait until something is true; what it was."""
    deadline = time.monotonic() + DEADLINE
    while not (value := true()):
        if time.monotonic() > deadline:
            pytest.fail(complaint())
        time.sleep(0.05)
    return value


def is_there(path: Path) -> None:
    until(path.exists, lambda: f"{path} is not there")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # an orphan that has ended, and that nobody has asked for
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes() if Path(f"/proc/{pid}/stat").exists() else True


def test_a_worker_runs_what_was_sent_and_leaves_with_0_at_sigterm(start: Start, verb: Callable[..., str]) -> None:
    task_id = verb("send", "app:server", "add", "--args", "[2, 3]").strip()
    worker = start("app:server", "--queue", "machinery_tasks", "-q", "mails", "-c", "3")
    worker.says("worker started on machinery_tasks, mails (concurrency 3)")
    assert verb("result", "app:server", task_id, "--wait", "30") == "SUCCESS 5\n"
    assert verb("send", "app:server", "add", "--args", "[1, 1]", "-q", "mails", "--wait", "30").endswith("SUCCESS 2\n")
    worker.send(signal.SIGTERM)
    assert worker.code() == 0
    assert "worker stopped" in worker.log


def test_a_burst_ends_when_the_queue_is_empty(start: Start, verb: Callable[..., str]) -> None:
    ids = [verb("send", "app:server", "add", "--args", f"[{number}, 0]").strip() for number in range(3)]
    assert start("app:server", "--burst").code() == 0
    assert [verb("result", "app:server", task_id) for task_id in ids] == [f"SUCCESS {n}\n" for n in range(3)]


def test_a_second_signal_ends_the_grace_time(start: Start, verb: Callable[..., str], folder: Path) -> None:
    task_id = verb("send", "app:server", "hold", "--args", '["held"]').strip()
    (folder / "long.yaml").write_text("worker: {grace: 3600}\n")
    worker = start("app:server", "--config", "long.yaml")
    is_there(folder / "held")
    worker.send(signal.SIGINT)
    worker.says("1 running tasks have 3600 s")
    worker.send(signal.SIGINT)
    assert worker.code() == 0
    (waiting,) = json.loads(verb("tasks", "pending", "app:server", "--json"))
    assert waiting["task_id"] == task_id, "what was cancelled was not given back"


@pytest.mark.parametrize(("task", "said"), [("sit", "still stuck"), ("sit_aside", "leaving without them")])
def test_a_worker_leaves_without_a_thread_that_is_stuck(
    task: str, said: str, start: Start, verb: Callable[..., str], folder: Path
) -> None:
    verb("send", "app:server", task, "--args", '["sitting"]')
    (folder / "short.yaml").write_text("worker: {grace: 0.1}\n")
    worker = start("app:server", "--config", "short.yaml")
    is_there(folder / "sitting")
    worker.send(signal.SIGTERM)
    assert worker.code() == 1
    assert said in worker.log


def test_a_file_wins_over_the_code_and_is_reloaded(start: Start, verb: Callable[..., str], folder: Path) -> None:
    (folder / "settings.yaml").write_text("broker: sqlite:///other.db\nworker: {concurrency: 2}\n")
    worker = start("app:server", "--config", "settings.yaml")
    worker.says("(concurrency 2)")
    sent = verb("send", "--broker", "sqlite:///other.db", "add", "--args", "[2, 3]", "--wait", "30")
    assert sent.endswith("SUCCESS 5\n")
    (folder / "settings.yaml").write_text("broker: sqlite:///other.db\nworker: {concurrency: 4}\n")
    worker.says("settings reloaded: worker.concurrency")
    worker.send(signal.SIGTERM)
    assert worker.code() == 0


def test_a_json_log_is_one_object_per_line_with_the_facts(start: Start, verb: Callable[..., str]) -> None:
    task_id = verb("send", "app:server", "fail").strip()
    worker = start("app:server", "--burst", "--log-format", "json", "--log-level", "debug")
    assert worker.code() == 0
    records = worker.records
    assert {"time", "level", "logger", "message", "process"} <= set.intersection(*(set(each) for each in records))
    (failed,) = [each for each in records if each.get("event") == "TaskFailed"]
    assert (failed["task_id"], failed["task_name"], failed["queue"]) == (task_id, "fail", "machinery_tasks")
    assert failed["error"].endswith("no \x1b[31m good\nINFO all is well")
    assert [each for each in records if each.get("event") == "TaskStarted"]


def test_a_text_log_cannot_be_faked_by_a_task(start: Start, verb: Callable[..., str]) -> None:
    task_id = verb("send", "app:server", "fail").strip()
    worker = start("app:server", "--burst")
    assert worker.code() == 0
    assert "\x1b" not in worker.log
    assert f"task_id={task_id}" in worker.log
    assert "\nINFO all is well" not in worker.log


def test_a_server_that_is_not_there_is_one_line(start: Start) -> None:
    worker = start("app:sever")
    assert worker.code() == 1
    assert worker.log == "Error: module 'app' has no 'sever'; the servers in it are app:server\n"


# — several processes —


def test_a_killed_process_is_replaced_and_all_leave_with_their_parent(start: Start, verb: Callable[..., str]) -> None:
    parent = start("app:server", "--processes", "2", "--log-format", "json")
    first, second = until(lambda: parent.workers()[1:] and parent.workers(), lambda: parent.log)
    os.kill(first, signal.SIGKILL)
    third = until(lambda: parent.workers()[2:], lambda: parent.log)[0]
    assert "was ended by SIGKILL; another one starts in 0.5 s" in parent.log
    value = verb("send", "app:server", "process", "--wait", "30").split()[-1]
    assert int(value) in (second, third)
    parent.send(signal.SIGTERM)
    assert parent.code() == 0
    assert not any(map(is_alive, (first, second, third)))


def test_a_second_signal_reaches_all_and_kills_what_is_blocked(
    start: Start, verb: Callable[..., str], folder: Path
) -> None:
    parent = start("app:server", "--processes", "1", "--log-format", "json")
    verb("send", "app:server", "block", "--args", '["blocked"]')
    is_there(folder / "blocked")
    (worker,) = parent.workers()
    parent.send(signal.SIGTERM)
    # signals that wait to be handled at the same time become one
    until(lambda: not _is_pending(parent.process.pid, signal.SIGTERM), lambda: "the first signal is still pending")
    parent.send(signal.SIGINT)
    assert parent.code() == 1
    assert not is_alive(worker)
    assert "it is killed" in parent.log


def test_workers_end_when_their_parent_was_killed(start: Start) -> None:
    parent = start("app:server", "--processes", "2", "--log-format", "json")
    workers = until(lambda: parent.workers()[1:] and parent.workers(), lambda: parent.log)
    parent.process.kill()
    parent.process.wait()
    until(lambda: not any(map(is_alive, workers)), lambda: f"{workers} outlive their parent:\n{parent.log}")


def test_the_parent_of_a_burst_ends_when_all_its_workers_have(start: Start, verb: Callable[..., str]) -> None:
    task_id = verb("send", "app:server", "add", "--args", "[2, 3]").strip()
    assert start("app:server", "--processes", "2", "--burst").code() == 0
    assert verb("result", "app:server", task_id) == "SUCCESS 5\n"


def test_a_parent_gives_up_loudly_when_its_workers_die_at_once_again_and_again(start: Start) -> None:
    parent = start("nowhere:server", "--processes", "1")
    assert parent.code() == 1
    assert parent.log.count("there is no module 'nowhere'") == 5
    assert "CRITICAL" in parent.log
    assert "5 times in a row; giving up" in parent.log


def test_workers_start_again_when_the_source_changes(start: Start, verb: Callable[..., str], folder: Path) -> None:
    parent = start("app:server", "--reload", "--log-format", "json")
    until(parent.workers, lambda: parent.log)
    (folder / "app.py").write_text("this is no Python\n")
    parent.says("it starts again when a file changes")
    (folder / "app.py").write_text(APP.replace("return a + b", "return a * b"))
    until(lambda: parent.workers()[1:], lambda: parent.log)
    assert verb("send", "app:server", "add", "--args", "[2, 3]", "--wait", "30").endswith("SUCCESS 6\n")
    parent.send(signal.SIGTERM)
    assert parent.code() == 0


def _is_pending(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return False
    pending = next(line for line in status.read_text().splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending.split()[1], 16) >> (number - 1) & 1)
