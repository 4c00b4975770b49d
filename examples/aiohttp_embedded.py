"""An aiohttp app with its worker inside: one process, which starts and stops both.

    python aiohttp_embedded.py 8080
    curl --data 'hello' localhost:8080/shout       HELLO

The worker is fetching when the app begins to answer, and stops, within its grace time, when the app does. The tasks are
on disk: what was not done then is done after the next start.
"""

import sys

from aiohttp import web

from asyncqueue import Server, Worker
from asyncqueue.contrib.aiohttp import attach

server = Server("sqlite:///embedded.db")


@server.task(retries=3)
async def shout(text: str) -> str:
    return text.upper()


async def answer(request: web.Request) -> web.Response:
    result = await shout.send(await request.text())
    return web.Response(text=await result.get(timeout=30))


def make_app() -> web.Application:
    app = web.Application()
    app.add_routes([web.post("/shout", answer)])
    attach(app, server, Worker(server, concurrency=10))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]))
