"""Measure the standard library with two worker processes and a SQLite file: `make demo`, or run this file.

Every `.py` file of the running Python's standard library (or of a folder named on the command line) becomes one task:
parse it, count its lines and definitions, find its longest function. Nothing is needed but the core dependencies; no
server is involved. The SQLite file lies in a folder of its own, which is removed at the end.
"""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from asyncqueue import AsyncQueueError, AsyncResult, Server, TaskFailed

WORKERS = 2
STOPS_WITHIN = 30  # seconds
ALL_WITHIN = 300  # seconds, on a very slow machine
Measured = tuple[int, int, int, str, int]
"""Lines, definitions, lines of the longest function, its name, and who measured (a process id)."""

server = Server("sqlite:///demo.db")


# — what the workers do —


@server.task
def measure(path: str) -> Measured:
    """A plain function: it runs in a thread of the worker, which goes on fetching and settling meanwhile."""
    source = Path(path).read_bytes()
    definitions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and _defines(node)]
    functions = [node for node in definitions if not isinstance(node, ast.ClassDef)]
    longest = max(functions, key=_length, default=None)
    name = str(getattr(longest, "name", "—"))
    return len(source.splitlines()), len(definitions), _length(longest), name, os.getpid()


def _defines(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _length(node: ast.stmt | None) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1 if node is not None else 0


# — what the program does —


@dataclass(frozen=True, slots=True)
class Module:
    """What was found out about one file; ``error`` where it could not be parsed."""

    name: str
    lines: int = 0
    definitions: int = 0
    longest: int = 0
    longest_name: str = ""
    measured_by: int = 0
    error: str = ""


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


async def main(root: Path) -> None:
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that no worker is left behind
    files = python_files(root)
    if not files:
        raise DemoFailed(f"no .py files in {root}")
    print(f"{len(files)} files of {root}, {WORKERS} worker processes, one SQLite file in {Path.cwd()}", flush=True)
    async with server, worker_processes(WORKERS):
        began = time.monotonic()
        results = await server.send_many([measure.s(str(path)) for path in files])
        try:
            async with asyncio.timeout(ALL_WITHIN):
                modules = await collect(root, files, results)
        except TimeoutError:
            raise DemoFailed(f"the work was not done within {ALL_WITHIN} s") from None
        seconds = time.monotonic() - began
    report(modules, seconds)


def python_files(root: Path) -> list[Path]:
    """The files below a folder, without what was installed there; large ones first, so that none is late."""
    files = [path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts}]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


async def collect(root: Path, files: Sequence[Path], results: Sequence[AsyncResult[Measured]]) -> list[Module]:
    """Wait for all results at once, and show how many have come."""
    bar = ProgressBar(len(files))
    modules: list[Module] = []
    waiting = [found_out(module_name(root, path), result) for path, result in zip(files, results, strict=True)]
    for ended in asyncio.as_completed(waiting):
        modules.append(await ended)
        bar.show(len(modules))
    return modules


def module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


async def found_out(name: str, result: AsyncResult[Measured]) -> Module:
    try:
        lines, definitions, longest, longest_name, measured_by = await result.get()
    except TaskFailed as exc:
        return Module(name, error=exc.error)
    return Module(name, lines, definitions, longest, longest_name, measured_by)


class WorkerProcess:
    """A worker by command line, and the last lines of its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.is_ready = asyncio.Event()
        self._said: deque[str] = deque(maxlen=20)
        self._is_told_to_stop = False

    @classmethod
    async def start(cls) -> Self:
        command = (sys.executable, "-m", "asyncqueue", "worker", "demo:server", "--concurrency", "4")
        places = (str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", ""))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        return cls(await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=environment))

    async def run(self) -> None:
        """Returns when it has stopped, well, because it was told to. Raises ``DemoFailed`` for any other end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self._said.append(line.decode(errors="replace"))
            if b"worker started" in line:
                self.is_ready.set()
        code = await self.process.wait()
        if code or not self._is_told_to_stop:
            how = "stopped" if self._is_told_to_stop else "ended by itself"
            raise DemoFailed(f"a worker process {how} with exit code {code}; its last words:\n{''.join(self._said)}")

    def stop(self) -> None:
        self._is_told_to_stop = True
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def worker_processes(count: int) -> AsyncIterator[None]:
    """Worker processes, ready from here to the end of the block; each must stop well when it is told to."""
    workers = [await WorkerProcess.start() for _ in range(count)]
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(worker.run()) for worker in workers]
            for worker in workers:
                await worker.is_ready.wait()
            yield
            for worker in workers:
                worker.stop()
            _, late = await asyncio.wait(running, timeout=STOPS_WITHIN)
            if late:
                raise DemoFailed(f"{len(late)} worker processes did not stop within {STOPS_WITHIN} s of SIGTERM")
    finally:
        for worker in workers:
            await worker.kill()  # where something else went wrong before


class ProgressBar:
    """Redrawn in place on a terminal; elsewhere one line for each tenth."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = 0
        self._steps = 200 if sys.stdout.isatty() else 10

    def show(self, done: int) -> None:
        step = done * self._steps // self._total
        if step == self._shown:
            return
        self._shown = step
        if not sys.stdout.isatty():
            print(f"{done:5} of {self._total} results", flush=True)
            return
        width = 40 * done // self._total
        bar = "█" * width + "░" * (40 - width)
        print(f"\r{bar} {done} of {self._total} results", end="\n" if done == self._total else "", flush=True)


def report(modules: Sequence[Module], seconds: float) -> None:
    good = [module for module in modules if not module.error]
    bad = sorted(module.name for module in modules if module.error)
    print(f"\n{'module':<34}{'lines':>8}{'definitions':>13}   longest function")
    for each in sorted(good, key=lambda module: module.lines, reverse=True)[:10]:
        print(f"{each.name:<34}{each.lines:>8}{each.definitions:>13}   {each.longest_name} ({each.longest} lines)")
    lines, definitions = sum(each.lines for each in good), sum(each.definitions for each in good)
    print(f"{'all ' + str(len(good)) + ' modules':<34}{lines:>8}{definitions:>13}")
    if bad:
        rest = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        print(f"\n{len(bad)} files could not be parsed: {', '.join(bad[:3])}{rest}")
    shares = " and ".join(str(count) for _, count in Counter(each.measured_by for each in good).most_common())
    print(f"\n{len(modules)} tasks in {seconds:.1f} s: {len(modules) / seconds:.0f} tasks/s; the workers took {shares}")


def run() -> int | str:
    """The exit code, or what to say on standard error before exiting with 1."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib")).resolve()
    with TemporaryDirectory(prefix="asyncqueue-demo-") as folder, chdir(folder):
        outcome: int | str = 0
        try:
            asyncio.run(main(root))
        except* (DemoFailed, AsyncQueueError, OSError) as group:
            outcome = "\n".join(f"demo: {exc}" for exc in group.exceptions)
        except* (KeyboardInterrupt, asyncio.CancelledError):
            outcome = 130
        return outcome


if __name__ == "__main__":
    sys.exit(run())
