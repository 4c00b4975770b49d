"""The limit: one script call per batch that stores states, acks and claims; decode, run as a task, encode."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskResult, TaskState
from asyncqueue.wire import encode_state
from benchmarks.measure import Meter
from benchmarks.tasks import QUEUE

_SCRIPT = (Path(__file__).parent / "raw_loop.lua").read_text()


async def work(url: str, count: int, concurrency: int) -> dict[str, float]:
    """Run ``count`` queued no-ops; CPU µs per task and tasks per second."""
    redis = Redis.from_url(url, protocol=2)
    sha = await redis.script_load(_SCRIPT)
    meter = Meter()
    number, done = 1, 0
    ended: tuple[int | str | bytes, ...] = ()
    while done < count:
        bodies: Sequence[bytes] = await redis.evalsha(sha, 2, QUEUE, f"{{{QUEUE}}}:raw", concurrency, number, *ended)
        tasks = [asyncio.create_task(_run(body)) for body in bodies]
        ends = [await task for task in tasks]
        ended = tuple(word for at, (task_id, state) in enumerate(ends) for word in (number + at, task_id, state))
        number += len(bodies)
        done += len(bodies)
    await redis.evalsha(sha, 2, QUEUE, f"{{{QUEUE}}}:raw", 0, number, *ended)
    spent = meter.spent()
    await redis.aclose()
    return spent.per(count)


async def _run(body: bytes) -> tuple[str, bytes]:
    signature = Signature.model_validate_json(body)
    arg = (signature.args or ())[0]
    result = await _noop(arg.value)
    state = TaskState.model_construct(
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.SUCCESS,
        results=(TaskResult.model_construct(type="int64", value=result),),
    )
    return signature.uuid, encode_state(state)


async def _noop(number: int) -> int:
    return number
