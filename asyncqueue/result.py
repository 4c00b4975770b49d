"""A handle on one task: its state, its result, waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from asyncqueue.backends.base import Backend
from asyncqueue.errors import NoBackend, ResultExpired, ResultTimeout, ResultUnknown, TaskFailed, Unavailable
from asyncqueue.retry import delays
from asyncqueue.signature import Signature
from asyncqueue.state import State, TaskResult, TaskState

R_co = TypeVar("R_co", default=Any, covariant=True)


class AsyncResult(Generic[R_co]):
    """What became, or becomes, of one task.

    Made by a send, or reopened by UUID with ``server.result(uuid)``. ``await result`` is ``await result.get()``.
    ``patience`` says for how long (seconds) a backend that does not answer is asked again by those who wait.
    """

    def __init__(
        self,
        task_id: str,
        backend: Callable[[], Awaitable[Backend | None]],
        value_of: Callable[[Sequence[TaskResult]], Any],
        *,
        patience: Callable[[Backend], float],
        signature: Signature | None = None,
    ) -> None:
        self.task_id = task_id
        self.signature = signature
        self._backend = backend
        self._value_of = value_of
        self._patience = patience
        self._final: TaskState | None = None
        self._was_there = signature is not None

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
        return cast(R_co, self._value_of(state.results or ()))

    async def wait(self, timeout: float | None = None) -> TaskState:
        """The final state, waited for; a failure is returned, not raised. Raises as ``get`` does otherwise."""
        if self._final is not None:
            return self._final
        if timeout is not None and timeout <= 0:  # no time to wait is still time to look
            known = await self.state()
            if not known.is_completed:
                raise self._late(timeout)
            return known
        backend = await self._open_backend()
        try:
            async with asyncio.timeout(timeout):
                return await self._ending(backend)
        except TimeoutError:
            raise self._late(timeout) from None

    async def state(self) -> TaskState:
        """What is known of the task now. Raises ``NoBackend``, ``ResultExpired`` or ``ResultUnknown``."""
        if self._final is not None:
            return self._final
        backend = await self._open_backend()
        (state,) = await backend.get([self.task_id])
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
        backend = await self._open_backend()
        await backend.forget([self.task_id])

    async def _ending(self, backend: Backend) -> TaskState:
        while True:
            try:
                async for _, state in backend.watch([self.task_id]):
                    return self._seen(state)
            except Unavailable as exc:
                await self._until_it_answers(backend, exc)
            else:
                raise self._gone()

    async def _until_it_answers(self, backend: Backend, error: Unavailable) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        for pause in delays():
            if loop.time() + pause - since >= self._patience(backend):
                raise error
            await asyncio.sleep(pause)
            try:
                await backend.get([self.task_id])
            except Unavailable as exc:
                error = exc
            else:
                return

    async def _open_backend(self) -> Backend:
        backend = await self._backend()
        if backend is None:
            raise NoBackend(f"task {self.task_id}: this server has no result backend, so no result can be asked for")
        return backend

    def _seen(self, state: TaskState | None) -> TaskState:
        if state is None:
            raise self._gone()
        self._was_there = True
        if state.is_completed:
            self._final = state
        return state

    def _late(self, timeout: float | None) -> ResultTimeout:
        return ResultTimeout(f"task {self.task_id} did not end within {timeout:g} s")

    def _gone(self) -> ResultExpired | ResultUnknown:
        if self._was_there:
            return ResultExpired(f"the entry of task {self.task_id} was there, and has expired or was dropped")
        return ResultUnknown(f"there is no entry of task {self.task_id}: it was never sent, or it expired")
