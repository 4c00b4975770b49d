"""Processes that send one workflow and die while they do, and what is sent by them and by tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncqueue import Server
from asyncqueue.builders import chain, chord, group
from asyncqueue.compiling import NewId, compiled, ids_from
from asyncqueue.config import Settings
from asyncqueue.signature import Signature
from asyncqueue.workflow import Compiled, Node
from tests.path.ledger import Ledger
from tests.path.workers import crash_before_write, server_with_tasks

GROUP_TIMEOUT = 5.0

Tasks = Callable[..., Signature]
"""``tasks("member", 1)``: a signature of one of the workers' tasks."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A workflow, and what becomes of it: its result, or else a part of its error."""

    build: Callable[[Tasks], Node]
    result: str = ""
    error: str = ""


def _three(tasks: Tasks, name: str = "member") -> list[Signature]:
    return [tasks("member", 1), tasks(name, 2), tasks("member", 3)]


def _with_handler(tasks: Tasks) -> Signature:
    return tasks("collect", "all").with_changes(on_error=(tasks("note"),))


SHAPES = {
    "chord": Shape(lambda tasks: chord(_three(tasks), tasks("collect", "all")), "all(1,2,3)"),
    "fail": Shape(
        lambda tasks: chord(_three(tasks, "oops"), _with_handler(tasks)), error="member 'oops' ({oops}) of group"
    ),
    "skip": Shape(lambda tasks: chord(_three(tasks, "oops"), tasks("collect", "all"), on_failure="skip"), "all(1,3)"),
    "chord, task": Shape(
        lambda tasks: chain(chord(_three(tasks), tasks("collect", "all")), tasks("collect", "after")),
        "after(all(1,2,3))",
    ),
    "group, group": Shape(
        lambda tasks: chain(
            group(*_three(tasks)),
            group(tasks("collect", "a"), tasks("collect", "b")),
            tasks("collect", "both"),
        ),
        "both(a(1,2,3),b(1,2,3))",
    ),
    "replace": Shape(
        lambda tasks: chain(tasks("becoming", 1, 2, 3), tasks("collect", "after")), "after(became(1,2,3))"
    ),
    "add": Shape(
        lambda tasks: chord([tasks("adding", 1, 11, 12), tasks("member", 2)], tasks("collect", "all")),
        "all(1,2,11,12)",
    ),
    "timeout": Shape(
        lambda tasks: chord(_three(tasks), tasks("collect", "all"), group_timeout=GROUP_TIMEOUT), "all(1,2,3)"
    ),
}


def compiled_shape(server: Server, name: str, seed: str | None = None) -> Compiled:
    """A workflow of ``SHAPES``, with UUIDs that come from the seed."""

    def tasks(task: str, *args: Any) -> Signature:
        return server.signature(task, *args)

    return compile_for(server, SHAPES[name].build(tasks), ids_from(seed) if seed else None)


def compile_for(server: Server, node: Node, new_id: NewId | None = None) -> Compiled:
    """A workflow as this server sends it."""
    return compiled(node, default_queue=server.settings.default_queue, new_id=new_id)


async def send(server: Server, node: Node | Compiled, concurrency: int = 0) -> Compiled:
    """Send a workflow; returns it as it was sent, with its UUIDs."""
    work = node if isinstance(node, Compiled) else compile_for(server, node)
    await (await server.connected()).publisher.send_workflow(work, concurrency)
    return work


def run(asked: dict[str, Any]) -> int:
    """Be the process that sends what was asked for."""
    ledger = Ledger(Path(asked["ledger"]))
    server = Server(broker=asked["broker"], backend=asked["backend"], settings=Settings.parse(asked["settings"]))
    server_with_tasks(server, ledger)
    crash_before_write(server, asked["crash_before_write"], ledger)

    async def work() -> int:
        async with server:
            await send(server, compiled_shape(server, asked["shape"], asked["seed"]), asked["concurrency"])
        return 0

    return asyncio.run(work())
