"""Servers and workers that live as long as a web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI

from asyncqueue import ConfigError, Server, Unavailable, Worker
from asyncqueue.contrib.aiohttp import attach
from asyncqueue.contrib.fastapi import lifespan
from asyncqueue.engine.events import Event, WorkerStarted, WorkerStopped


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(f"sqlite:///{tmp_path}/tasks.db")

    @server.task
    async def double(number: int) -> int:
        return 2 * number

    return server


@pytest.fixture
def told(server: Server) -> list[Event]:
    events: list[Event] = []
    server.events.listen(events.append)
    return events


def _fastapi_app(server: Server, worker: Worker | None) -> FastAPI:
    app = FastAPI(lifespan=lifespan(server, worker))

    @app.get("/double/{number}")
    async def double(number: int) -> int:
        doubled: int = await (await server.send_task("double", number)).get(timeout=30)
        return doubled

    return app


def _aiohttp_app(server: Server, worker: Worker | None) -> web.Application:
    async def double(request: web.Request) -> web.Response:
        result = await server.send_task("double", int(request.match_info["number"]))
        return web.json_response(await result.get(timeout=30))

    app = web.Application()
    app.add_routes([web.get("/double/{number}", double)])
    attach(app, server, worker)
    return app


def _kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events if isinstance(event, WorkerStarted | WorkerStopped)]


async def test_a_fastapi_app_has_its_worker_from_start_to_end(server: Server, told: list[Event]) -> None:
    app = _fastapi_app(server, Worker(server))
    async with app.router.lifespan_context(app):
        assert _kinds(told) == [WorkerStarted]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            assert (await client.get("/double/21")).json() == 42
    assert _kinds(told) == [WorkerStarted, WorkerStopped]


async def test_a_fastapi_app_with_its_own_lifespan_enters_ours_in_it(server: Server) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(server, Worker(server))(app):
            yield

    app = FastAPI(lifespan=own)
    async with app.router.lifespan_context(app):
        assert await (await server.send_task("double", 4)).get(timeout=30) == 8


async def test_an_aiohttp_app_has_its_worker_from_start_to_end(server: Server, told: list[Event]) -> None:
    async with TestClient(TestServer(_aiohttp_app(server, Worker(server)))) as client:
        assert _kinds(told) == [WorkerStarted]
        assert await (await client.get("/double/21")).json() == 42
    assert _kinds(told) == [WorkerStarted, WorkerStopped]


async def test_an_app_without_a_worker_only_sends(server: Server, told: list[Event]) -> None:
    app = _fastapi_app(server, None)
    async with app.router.lifespan_context(app):
        await server.send_task("double", 1)
        assert len(await server.get_pending_tasks()) == 1
    assert _kinds(told) == []


async def test_an_app_that_starts_again_makes_a_worker_each_time(server: Server, told: list[Event]) -> None:
    app = FastAPI(lifespan=lifespan(server, lambda: Worker(server, concurrency=2)))
    for _ in range(2):
        async with app.router.lifespan_context(app):
            assert await (await server.send_task("double", 3)).get(timeout=30) == 6
    assert _kinds(told) == [WorkerStarted, WorkerStopped] * 2


async def test_one_worker_does_not_run_twice(server: Server) -> None:
    app = FastAPI(lifespan=lifespan(server, Worker(server)))
    async with app.router.lifespan_context(app):
        pass
    with pytest.raises(ConfigError, match="make another one"):
        async with app.router.lifespan_context(app):
            pass


async def test_an_app_whose_queue_is_away_does_not_start() -> None:
    server = Server("redis://127.0.0.1:1/0")
    app = FastAPI(lifespan=lifespan(server))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        async with app.router.lifespan_context(app):
            pass
