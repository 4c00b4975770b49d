"""A handle that is given no time to wait still looks."""

from __future__ import annotations

from uuid import uuid4

import pytest

from asyncqueue import ResultTimeout, Server, TaskFailed, Worker


@pytest.fixture
def server() -> Server:
    return Server(f"memory://{uuid4()}")


async def test_with_no_time_a_result_that_is_there_is_got(server: Server) -> None:
    @server.task
    async def add(a: int, b: int) -> int:
        return a + b

    @server.task
    async def fail() -> None:
        raise ValueError("no")

    async with server, Worker(server):
        results = [await add.send(1, 2), await fail.send()]
        for result in results:
            await result.wait(30)
        assert await server.result(results[0].task_id).get(timeout=0) == 3
        with pytest.raises(TaskFailed):
            await server.result(results[1].task_id).get(timeout=0)


async def test_with_no_time_a_result_that_is_not_there_is_late(server: Server) -> None:
    async with server:
        result = await server.send_task("unknown")
        with pytest.raises(ResultTimeout):
            await result.get(timeout=0)
