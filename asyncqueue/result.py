"""A handle on one task: its state, its result, waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Generic, Protocol, cast

from typing_extensions import TypeVar

from asyncqueue.backends.base import Backend
from asyncqueue.engine.settlement import parts
from asyncqueue.errors import NoBackend, ResultExpired, ResultTimeout, ResultUnknown, TaskFailed, Unavailable
from asyncqueue.retry import delays
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskResult, TaskState

R_co = TypeVar("R_co", default=Any, covariant=True)

LOOK_AT_ONCE = 1_000
"""The most states that are read in one call."""


class Handle(Protocol[R_co]):
    """What became, or becomes, of a task or a workflow."""

    @property
    def id(self) -> str:
        """The UUID of the task whose result it is, or of the group."""

    def __await__(self) -> Generator[Any, None, R_co]:
        """The result, as ``get`` returns it."""

    async def get(self, timeout: float | None = None) -> R_co:
        """The result, waited for. ``timeout`` is in seconds; None waits for ever."""


class Results:
    """A server's backend, as handles ask it: with patience, and for values of Python.

    ``value_of`` reads the results of a task of that name. ``patience`` says for how long (seconds) a backend that does
    not answer is asked again by those who wait.
    """

    def __init__(
        self,
        backend: Callable[[], Awaitable[Backend | None]],
        value_of: Callable[[str, Sequence[TaskResult]], Any],
        *,
        patience: Callable[[Backend], float],
    ) -> None:
        self.value_of = value_of
        self._backend = backend
        self._patience = patience

    async def backend(self, about: str) -> Backend:
        """The backend, open. Raises ``NoBackend`` that says what was asked about."""
        backend = await self._backend()
        if backend is None:
            raise NoBackend(f"{about}: this server has no result backend, so no result can be asked for")
        return backend

    async def get(self, task_ids: Sequence[str], about: str) -> list[TaskState | None]:
        """States in the order asked; None where there is no entry."""
        backend = await self.backend(about)
        found: list[TaskState | None] = []
        for some in parts(task_ids, LOOK_AT_ONCE):
            found += await backend.get(some)
        return found

    async def endings(self, task_ids: Iterable[str], about: str) -> AsyncGenerator[tuple[str, TaskState | None], None]:
        """Each UUID once, as ``Backend.watch`` has it. Raises ``Unavailable`` when the backend has been away for as
        long as patience lasts."""
        backend = await self.backend(about)
        left = dict.fromkeys(task_ids)
        while left:
            try:
                async for task_id, state in backend.watch(list(left)):
                    del left[task_id]
                    yield task_id, state
            except Unavailable as exc:
                await self._until_it_answers(backend, next(iter(left)), exc)

    async def _until_it_answers(self, backend: Backend, task_id: str, error: Unavailable) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        for pause in delays():
            if loop.time() + pause - since >= self._patience(backend):
                raise error
            await asyncio.sleep(pause)
            try:
                await backend.get([task_id])
            except Unavailable as exc:
                error = exc
            else:
                return


class AsyncResult(Generic[R_co]):
    """What became, or becomes, of one task.

    Made by a send, or reopened by UUID with ``server.result(uuid)``. ``await result`` is ``await result.get()``.
    """

    def __init__(
        self,
        task_id: str,
        results: Results,
        *,
        signature: Signature | None = None,
        name: str = "",
        is_sent: bool = False,
    ) -> None:
        self.task_id = task_id
        self.signature = signature
        self._name = signature.name if signature is not None else name
        self._results = results
        self._final: TaskState | None = None
        self._was_there = is_sent

    @property
    def id(self) -> str:
        """The task's UUID: ``task_id``."""
        return self.task_id

    def __repr__(self) -> str:
        return f"<AsyncResult {self.task_id} {self._final.state.value if self._final else '…'}>"

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.get().__await__()

    async def get(self, timeout: float | None = None) -> R_co:
        """The task's result: None, one value, or a tuple of several; waits until there is one.

        ``timeout`` is in seconds; None waits for ever, 0 only looks. Raises ``TaskFailed``, ``ResultTimeout``,
        ``NoBackend``, ``ResultExpired`` (this handle knows that there was an entry) or ``ResultUnknown`` (it does not),
        and ``Unavailable`` when the backend has been away for as long as a send would have tried.
        """
        state = await self.wait(timeout)
        if state.state is State.FAILURE:
            raise TaskFailed(state.error, task_id=self.task_id, task_name=state.task_name)
        return cast(R_co, self._results.value_of(self._name or state.task_name, state.results or ()))

    async def wait(self, timeout: float | None = None) -> TaskState:
        """The final state, waited for; a failure is returned, not raised. Raises as ``get`` does otherwise."""
        if self._final is not None:
            return self._final
        if timeout is not None and timeout <= 0:  # no time to wait is still time to look
            known = await self.state()
            if not known.is_completed:
                raise self._late(timeout)
            return known
        await self._results.backend(self._about)  # connecting has time limits of its own
        try:
            async with asyncio.timeout(timeout):
                return await self._ending()
        except TimeoutError:
            raise self._late(timeout) from None

    async def state(self) -> TaskState:
        """What is known of the task now. Raises ``NoBackend``, ``ResultExpired`` or ``ResultUnknown``."""
        if self._final is not None:
            return self._final
        (state,) = await self._results.get([self.task_id], self._about)
        return self._seen(state)

    async def is_completed(self) -> bool:
        """Whether the task has ended. Raises as ``state`` does."""
        return (await self.state()).is_completed

    async def is_success(self) -> bool:
        """Whether the task has ended well. Raises as ``state`` does."""
        return (await self.state()).is_success

    async def is_failure(self) -> bool:
        """Whether the task has ended in failure. Raises as ``state`` does."""
        return (await self.state()).is_failure

    async def forget(self) -> None:
        """Drop the entry from the backend. Raises ``NoBackend``."""
        backend = await self._results.backend(self._about)
        await backend.forget([self.task_id])

    def note(self, task_id: str, state: TaskState) -> None:
        """Take this for the final state of the task."""
        self._final = state

    def _seen(self, state: TaskState | None) -> TaskState:
        if state is None:
            raise self._gone()
        self._was_there = True
        if state.is_completed:
            self._final = state
        return state

    async def _ending(self) -> TaskState:
        async with aclosing(self._results.endings([self.task_id], self._about)) as endings:
            async for _, state in endings:
                return self._seen(state)
        raise self._gone()

    @property
    def _about(self) -> str:
        return f"task {self.task_id}"

    def _late(self, timeout: float | None) -> ResultTimeout:
        return ResultTimeout(f"task {self.task_id} did not end within {timeout:g} s")

    def _gone(self) -> ResultExpired | ResultUnknown:
        if self._was_there:
            return ResultExpired(f"the entry of task {self.task_id} was there, and has expired or was dropped")
        return ResultUnknown(f"there is no entry of task {self.task_id}: it was never sent, or it expired")
