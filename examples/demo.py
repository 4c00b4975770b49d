"""Measure the standard library with two worker processes and a SQLite file: `make demo`, or run this file.

The job is a chord. Every `.py` file of the running Python's standard library (or of a folder named on the command line)
is a member: parse it, count its lines and definitions, find its longest function. The callback gets all that, in the
order of the files, and makes the table; a file that cannot be parsed is a failed member, and the callback is told so.
Nothing is needed but the core dependencies; no server is involved. The SQLite file lies in a folder of its own, which
is removed at the end.
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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, TypeGuard

from pydantic import BaseModel

from asyncqueue import AsyncQueueError, GroupResult, MemberFailure, Server, chord

WORKERS = 2
STOPS_WITHIN = 30  # seconds
ALL_WITHIN = 300  # seconds, on a very slow machine

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

server = Server("sqlite:///demo.db")


# — what the workers do —


class Measured(BaseModel):
    """What was found out about one file, and who (a process id) measured it."""

    lines: int
    definitions: int
    longest: int
    longest_name: str
    by: int


@server.task
def measure(path: str) -> Measured:
    """A plain function: it runs in a thread of the worker, which goes on fetching and settling meanwhile."""
    source = Path(path).read_bytes()
    definitions = [node for node in _statements(ast.parse(source)) if _defines(node)]
    functions = [node for node in definitions if not isinstance(node, ast.ClassDef)]
    longest = max(functions, key=_length, default=None)
    return Measured(
        lines=len(source.splitlines()),
        definitions=len(definitions),
        longest=_length(longest),
        longest_name=str(getattr(longest, "name", "—")),
        by=os.getpid(),
    )


@server.task
def table(names: list[str], *measured: Measured | MemberFailure) -> str:
    """The callback: once, when all files are measured, with one argument for each of them."""
    good = [(name, each) for name, each in zip(names, measured, strict=True) if isinstance(each, Measured)]
    bad = sorted(name for name, each in zip(names, measured, strict=True) if isinstance(each, MemberFailure))
    rows = [f"{'module':<34}{'lines':>8}{'definitions':>13}   longest function"]
    for name, each in sorted(good, key=lambda one: one[1].lines, reverse=True)[:10]:
        rows.append(f"{name:<34}{each.lines:>8}{each.definitions:>13}   {each.longest_name} ({each.longest} lines)")
    lines, definitions = sum(each.lines for _, each in good), sum(each.definitions for _, each in good)
    rows.append(f"{'all ' + str(len(good)) + ' modules':<34}{lines:>8}{definitions:>13}")
    if bad:
        rest = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        rows += ["", f"{len(bad)} files could not be parsed: {', '.join(bad[:3])}{rest}"]
    shares = " and ".join(str(count) for _, count in Counter(each.by for _, each in good).most_common())
    return "\n".join([*rows, "", f"the workers measured {shares}"])


def _statements(module: ast.Module) -> Iterator[ast.AST]:
    """All statements, at any depth; not what is inside of one, which would be ten times as much."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting.extend(getattr(node, field, ()))


def _defines(node: ast.AST) -> TypeGuard[Definition]:
    return isinstance(node, Definition)


def _length(node: Definition | None) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1 if node is not None else 0


# — what the program does —


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
    names = [module_name(root, path) for path in files]
    job = chord([measure.s(str(path)) for path in files], table.s(names), on_failure="pass")
    async with server, worker_processes(WORKERS):
        began = time.monotonic()
        result = await job.send()
        try:
            async with asyncio.timeout(ALL_WITHIN):
                await show_progress(result.group)
                shown = await result.get()
        except TimeoutError:
            raise DemoFailed(f"the work was not done within {ALL_WITHIN} s") from None
        seconds = time.monotonic() - began
    tasks = len(files) + 1
    print(f"\n{shown}\n{tasks} tasks in {seconds:.1f} s: {tasks / seconds:.0f} tasks/s")


def python_files(root: Path) -> list[Path]:
    """The files below a folder, without what was installed there; large ones first, so that none is late."""
    files = [path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts}]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


async def show_progress(group: GroupResult[Measured]) -> None:
    """Until all members have ended, well or not."""
    bar = ProgressBar(len(group.members))
    done = 0
    async for _ in group.as_completed():
        done += 1
        bar.show(done)


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
