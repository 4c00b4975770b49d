"""Things that fail when the test says so: before a call, after it (the lost reply), or by not answering at all."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from asyncqueue.errors import Unavailable

T = TypeVar("T")
ALWAYS = -1

_Waiting = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Faults:
    """What goes wrong with the calls of one or more things made by ``with_faults``.

    A plan concerns one verb, skips the first ``skip`` calls of it from now on, and then meets ``times`` calls
    (``ALWAYS`` for all of them). Plans for the same verb are met one after the other. ``calls`` counts the calls of
    each verb, those that failed too.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._plans: list[_Plan] = []

    def before(self, verb: str, *, error: Exception | None = None, times: int = 1, skip: int = 0) -> None:
        """The call fails and nothing is done: the service was not reached."""
        self._plans.append(_Plan(verb, "before", times, skip, error=error))

    def after(self, verb: str, *, error: Exception | None = None, times: int = 1, skip: int = 0) -> None:
        """The call is done and then fails: the reply was lost."""
        self._plans.append(_Plan(verb, "after", times, skip, error=error))

    def hang(self, verb: str, *, times: int = 1, skip: int = 0) -> Hang:
        """The call does not begin until ``release`` of what is returned here."""
        hang = Hang()
        self._plans.append(_Plan(verb, "hang", times, skip, hang=hang))
        return hang

    def clear(self) -> None:
        """From now on nothing fails; what hangs goes on."""
        plans, self._plans = self._plans, []
        for plan in plans:
            if plan.hang is not None:
                plan.hang.release()

    async def around(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call as the plans have it. For wrappers of things that ``with_faults`` does not know."""
        self.calls[verb] += 1
        plan = self._met_by(verb)
        if plan is None:
            return await call()
        if plan.hang is not None:
            await plan.hang.passed()
            return await call()
        if plan.kind == "after":
            await call()
        raise plan.error or Unavailable(f"a fault was planned: {verb} fails {plan.kind} it is done")

    def _met_by(self, verb: str) -> _Plan | None:
        for plan in self._plans:
            if plan.verb == verb and plan.times != 0:
                if plan.skip > 0:
                    plan.skip -= 1
                    return None
                plan.times -= 1 if plan.times > 0 else 0
                return plan
        return None


@dataclass
class Hang:
    """Calls that do not begin. ``reached`` waits for the first of them, ``release`` lets them and later ones go."""

    _waiting: list[_Waiting] = field(default_factory=list)
    _arrivals: list[_Waiting] = field(default_factory=list)
    _count: int = 0
    _is_released: bool = False

    async def reached(self) -> None:
        """Until a call hangs here."""
        if self._count == 0:
            await _waits_in(self._arrivals)

    def release(self) -> None:
        """Let go, from any thread."""
        self._is_released = True
        _wake(self._waiting)

    async def passed(self) -> None:
        """Until it is released."""
        self._count += 1
        _wake(self._arrivals)
        if not self._is_released:
            await _waits_in(self._waiting)


@dataclass
class _Plan:
    verb: str
    kind: Literal["before", "after", "hang"]
    times: int
    skip: int
    error: Exception | None = None
    hang: Hang | None = None


def with_faults(thing: T, faults: Faults) -> T:
    """The same broker, backend or lock, whose coroutine methods fail as ``faults`` says.

    It is as much a ``Tended``, ``Inspector`` or ``JointStore`` as ``thing`` is. Its twins have the same faults.
    ``watch`` does not fail by itself. Calls that the thing makes of itself are not met.
    """
    kind = type(thing)
    names = {name for name in dir(thing) if not name.startswith("_")} - {"twin"}
    parts = {name: _forwarding(name) if _is_verb(kind, name) else _standing_for(name) for name in names}
    return cast(T, type(f"Faulty{kind.__name__}", (_Faulty,), parts)(thing, faults))


class _Faulty:
    def __init__(self, thing: Any, faults: Faults) -> None:
        self._thing = thing
        self._faults = faults

    def twin(self) -> Any:
        return with_faults(self._thing.twin(), self._faults)


def _is_verb(kind: type, name: str) -> bool:
    return inspect.iscoroutinefunction(getattr(kind, name, None))


def _forwarding(verb: str) -> Callable[..., Awaitable[Any]]:
    async def forward(self: _Faulty, *args: Any, **kwargs: Any) -> Any:
        return await self._faults.around(verb, lambda: getattr(self._thing, verb)(*args, **kwargs))

    forward.__name__ = verb
    return forward


def _standing_for(name: str) -> property:
    # no __getattr__ for all of them: what has its methods by that is no protocol's from Python 3.12 on
    return property(lambda self: getattr(self._thing, name), lambda self, value: setattr(self._thing, name, value))


async def _waits_in(waiting: list[_Waiting]) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    waiting.append((loop, future))
    await future


def _wake(waiting: list[_Waiting]) -> None:
    while waiting:
        loop, future = waiting.pop()
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
