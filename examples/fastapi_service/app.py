"""A web service that lets workers do the work: it hands out an id at once, and the result to who waits for it.

In this folder, two processes:

    uvicorn app:app
    asyncqueue worker app:server

and a client:

    curl --json '{"text": "to be or not to be"}' localhost:8000/counts     {"id": "task_…"}
    curl 'localhost:8000/result/task_…?wait=5'                             {"state": "SUCCESS", "result": {"to": 2, …}}
"""

from collections import Counter
from contextlib import suppress
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel

from asyncqueue import ResultTimeout, ResultUnknown, Server
from asyncqueue.contrib.fastapi import lifespan

server = Server("sqlite:///service.db")
app = FastAPI(lifespan=lifespan(server))


@server.task(timeout=60)
def count_words(text: str) -> dict[str, int]:
    if not text.strip():
        raise ValueError("there are no words in it")
    return dict(Counter(text.lower().split()))


class Text(BaseModel):
    """What is to be counted."""

    text: str


class Sent(BaseModel):
    """Where to ask for the result."""

    id: str


class Outcome(BaseModel):
    """How far the task is, and what came of it."""

    state: str
    result: dict[str, int] | None = None
    error: str | None = None


@app.post("/counts", status_code=202)
async def count(body: Text) -> Sent:
    result = await server.send_task(count_words, body.text)
    return Sent(id=result.task_id)


@app.get("/result/{task_id}")
async def result(task_id: str, wait: Annotated[float, Query(ge=0, le=60)] = 0) -> Outcome:
    """Answers as soon as there is a result, and after ``wait`` seconds at the latest."""
    handle = server.result(task_id)
    try:
        with suppress(ResultTimeout):
            await handle.wait(wait)
        state = await handle.state()
    except ResultUnknown:
        raise HTTPException(404, f"there is no task {task_id}, or its result has expired") from None
    found = await handle.get() if state.is_success else None
    return Outcome(state=state.state, result=found, error=state.error or None)
