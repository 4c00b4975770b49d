"""Handles on workflows: their parts, how far they are, their results, and which task a failure began with.

A handle holds an outline, the expression that was sent with the UUIDs that it got. What a workflow returns is decided
by few of its tasks: of a chain its last link, of a chord its callback, of a group its members. Those are watched, all
in one watch; what is behind a failure is looked up when there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, assert_never, cast

from typing_extensions import TypeVar

from asyncqueue.errors import MemberFailed, ResultExpired, ResultTimeout, ResultUnknown, TaskFailed
from asyncqueue.result import AsyncResult, Handle, Results
from asyncqueue.state import TaskState
from asyncqueue.workflow import PASS, Outline, group_id_of

R = TypeVar("R", default=Any)
R_co = TypeVar("R_co", default=Any, covariant=True)

States = Mapping[str, TaskState]


@dataclass(frozen=True, slots=True)
class Progress:
    """How many parts of a workflow there are, how many of them have ended, and how many of those in failure."""

    done: int
    failed: int
    total: int


class WorkflowResult(Generic[R_co]):
    """What became, or becomes, of a workflow. ``await result`` is ``await result.get()``.

    ``id`` opens it again in another process.
    """

    def __init__(self, outline: Outline, results: Results) -> None:
        self.id = outline.id
        self._outline = outline
        self._results = results
        self._finals: dict[str, TaskState] = {}
        self._left = dict.fromkeys(outline.deciding())  # whose ends are not known, and decide
        # who fails a link of a chain may be a program that tells nothing to the links after it
        self._links = frozenset(_links(outline))
        self._has_failure = self._is_broken = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.get().__await__()

    async def get(self, timeout: float | None = None) -> R_co:
        """The result, waited for.

        ``timeout`` is in seconds; None waits for ever, 0 only looks. Raises ``TaskFailed`` as soon as a task has failed
        whose failure is that of the whole, naming that task; ``MemberFailed`` where it is in a group. Raises
        ``ResultTimeout``, ``NoBackend``, ``ResultExpired`` where an entry is gone, and ``Unavailable`` when the backend
        has been away for as long as a send would have tried.
        """
        await self._end(timeout, at_first_failure=True)
        if self._has_failure:
            raise await self._failure()
        return cast(R_co, _value(self._outline, self._finals, self._results))

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the whole has ended, well or not: a group when all its members have. Raises as ``get`` does, but
        for failures."""
        await self._end(timeout, at_first_failure=False)

    async def progress(self) -> Progress:
        """How many of its parts have ended, asked in one look. Raises ``NoBackend``."""
        parts = [part.deciding() for part in self._counted()]
        ids = [task_id for part in parts for task_id in part]
        found = await self._results.get(ids, self._about) if ids else []
        states = {task_id: state for task_id, state in zip(ids, found, strict=True) if state and state.is_completed}
        failed = [any(each in states and states[each].is_failure for each in part) for part in parts]
        done = [
            is_failed or all(each in states for each in part) for is_failed, part in zip(failed, parts, strict=True)
        ]
        if self._outline.kind == "chain":  # what is before a link that has ended has, although its entry may be gone
            ended = max((place for place, part in enumerate(parts, 1) if part and done[place - 1]), default=0)
            done[:ended] = [True] * ended
        return Progress(sum(done), sum(failed), len(parts))

    def note(self, task_id: str, state: TaskState) -> None:
        """Take this for the final state of one of its tasks."""
        self._finals[task_id] = state
        self._left.pop(task_id, None)
        if state.is_failure:
            self._has_failure = True
            self._is_broken |= task_id in self._links

    @cached_property
    def _parts(self) -> tuple[Any, ...]:
        return tuple(_part(part, self._results) for part in self._outline.parts)

    def _counted(self) -> Sequence[Outline]:
        """The parts whose progress is that of the whole."""
        return self._outline.parts

    async def _end(self, timeout: float | None, *, at_first_failure: bool) -> None:
        """Know the ends of all that decides, or of a task whose failure decides it."""

        def is_over() -> bool:
            return not self._left or self._is_broken or (at_first_failure and self._has_failure)

        if is_over():
            return
        await self._results.backend(self._about)  # connecting has time limits of its own
        unknown = [*self._left, *(each for each in self._links if each not in self._finals)]
        if timeout is not None and timeout <= 0:  # no time to wait is still time to look
            for task_id, state in zip(unknown, await self._results.get(unknown, self._about), strict=True):
                if state is None or state.is_completed:
                    self._hear(task_id, state)
            if not is_over():
                raise self._late(timeout)
            return
        try:
            async with asyncio.timeout(timeout), aclosing(self._results.endings(unknown, self._about)) as endings:
                async for task_id, state in endings:
                    self._hear(task_id, state)
                    if is_over():
                        return
        except TimeoutError:
            raise self._late(timeout) from None

    def _hear(self, task_id: str, state: TaskState | None) -> None:
        if state is not None:
            self.note(task_id, state)
        elif task_id in self._left:  # that of a link that has ended is kept by nobody
            raise self._gone(task_id)

    async def _failure(self) -> TaskFailed:
        """The failure that is behind those that are known."""
        unknown = [each for each in _suspects(self._outline, self._finals) if each not in self._finals]
        found = await self._results.get(unknown, self._about) if unknown else []
        looked_up = {task_id: state for task_id, state in zip(unknown, found, strict=True) if state is not None}
        cause = _cause(self._outline, {**looked_up, **self._finals})
        return cause or next(_failed(task_id, state) for task_id, state in self._finals.items() if state.is_failure)

    def _gone(self, task_id: str) -> ResultExpired:
        return ResultExpired(f"{self._about}: the entry of task {task_id} has expired or was dropped")

    def _late(self, timeout: float | None) -> ResultTimeout:
        return ResultTimeout(f"{self._about} did not end within {timeout:g} s")

    @property
    def _about(self) -> str:
        return f"{self._outline.kind} {self.id}".rstrip()


class ChainResult(WorkflowResult[R_co]):
    """What becomes of a chain: its result is that of its last link."""

    @property
    def links(self) -> tuple[Handle[Any], ...]:
        """Handles on its links, in order; of a chain that was opened by id, on the last one alone."""
        return self._parts


class GroupResult(WorkflowResult[list[R]], Generic[R]):
    """What becomes of a group: its result is a list of its members' results, in the order of the group."""

    @property
    def members(self) -> tuple[Handle[R], ...]:
        """Handles on its members, in order."""
        return self._parts

    async def as_completed(self) -> AsyncGenerator[Handle[R], None]:
        """The members as they end, well or not, each once: ``await`` of one returns or raises at once.

        Raises as ``wait`` does.
        """
        left = {part.id: member for part, member in zip(self._outline.parts, self._parts, strict=True)}
        for task_id in [each for each in self._finals if each in left]:
            yield self._ended(left.pop(task_id), task_id)
        async with aclosing(self._results.endings(left, self._about)) as endings:
            async for task_id, state in endings:
                if state is None:
                    raise self._gone(task_id)
                self.note(task_id, state)
                yield self._ended(left[task_id], task_id)

    def _ended(self, member: Any, task_id: str) -> Handle[R]:
        member.note(task_id, self._finals[task_id])
        return cast("Handle[R]", member)


class ChordResult(WorkflowResult[R_co]):
    """What becomes of a chord: its result is that of its callback. ``progress`` is that of its group."""

    @property
    def group(self) -> GroupResult[Any]:
        """A handle on the group."""
        group: GroupResult[Any] = self._parts[0]
        return group

    @property
    def callback(self) -> Handle[R_co]:
        """A handle on the callback."""
        callback: Handle[R_co] = self._parts[-1]
        return callback

    def _counted(self) -> Sequence[Outline]:
        return self._outline.parts[0].parts


def workflow_result(outline: Outline, results: Results) -> WorkflowResult[Any]:
    """The handle on a workflow."""
    match outline.kind:
        case "chain":
            return ChainResult(outline, results)
        case "group":
            return GroupResult(outline, results)
        case "chord":
            return ChordResult(outline, results)
        case "task":
            raise AssertionError("a task is no workflow")
        case never:
            assert_never(never)


async def reopened_chain(chain_id: str, results: Results) -> ChainResult[Any]:
    """The handle on a chain with this id. Raises ``NoBackend``, and ``ResultUnknown`` where there is no entry."""
    last = await _known_group(chain_id, results) or await _known_task(chain_id, results)
    if last is None:
        raise _unknown("chain", chain_id)
    return ChainResult(Outline("chain", chain_id, last.name, (last,)), results)


async def reopened_group(group_id: str, results: Results) -> GroupResult[Any]:
    """The handle on a group with this id. Raises as ``reopened_chain`` does."""
    group = await _known_group(group_id, results)
    if group is None:
        raise _unknown("group", group_id)
    return GroupResult(group, results)


async def reopened_chord(callback_id: str, results: Results) -> ChordResult[Any]:
    """The handle on a chord with this id. Raises as ``reopened_chain`` does."""
    callback = await _known_group(callback_id, results) or await _known_task(callback_id, results)
    if callback is None:
        raise _unknown("chord", callback_id)
    group = await _known_group(group_id_of(callback_id), results) or Outline("group", "", "")
    return ChordResult(Outline("chord", callback_id, callback.name, (group, callback), group.group_id), results)


async def _known_group(group_id: str, results: Results) -> Outline | None:
    """A group as its entry tells: each member by the task whose result is its own."""
    backend = await results.backend(f"group {group_id}")
    (group,) = await backend.get_groups([group_id])
    if group is None or group.group_uuid != group_id:  # to some stores, an entry of a task looks like a group
        return None
    members = tuple(Outline("task", task_id, "") for task_id in group.task_uuids or ())
    return Outline("group", group_id, "", members, group_id)


async def _known_task(task_id: str, results: Results) -> Outline | None:
    (state,) = await results.get([task_id], f"task {task_id}")
    return Outline("task", task_id, state.task_name) if state is not None else None


def _unknown(kind: str, workflow_id: str) -> ResultUnknown:
    return ResultUnknown(f"there is no entry of {kind} {workflow_id}: it was never sent, or it expired")


def _part(outline: Outline, results: Results) -> Any:
    """The handle on a part of a workflow."""
    if outline.kind == "task":
        return AsyncResult(outline.id, results, name=outline.name, is_sent=True)
    return workflow_result(outline, results)


def _links(outline: Outline) -> Iterable[str]:
    """The UUIDs of the tasks before the last link of a chain."""
    if outline.kind == "chain":
        yield from (part.id for part in outline.parts[:-1] if part.kind == "task")


def _value(outline: Outline, states: States, results: Results) -> Any:
    match outline.kind:
        case "task":
            state = states[outline.id]
            return results.value_of(outline.name or state.task_name, state.results or ())
        case "chain" | "chord":
            return _value(outline.parts[-1], states, results)
        case "group":
            if outline.is_collected:
                return results.value_of(PASS, states[outline.id].results or ())
            return [_value(part, states, results) for part in outline.parts]
        case never:
            assert_never(never)


def _suspects(outline: Outline, known: States) -> list[str]:
    """The UUIDs of the tasks that a failure can have begun with; of a group, where it is known, only those of the
    members that failed."""
    own = [outline.id] if outline.kind == "task" or outline.is_collected else []
    parts = outline.parts
    if outline.kind == "group":
        parts = tuple(part for part in parts if part.id in known and known[part.id].is_failure) or parts
    return [*own, *(task_id for part in parts for task_id in _suspects(part, known))]


def _cause(outline: Outline, states: States) -> TaskFailed | None:
    """The failure that this one began with, as far as the states tell."""
    match outline.kind:
        case "task":
            state = states.get(outline.id)
            return _failed(outline.id, state) if state is not None and state.is_failure else None
        case "chain":
            return next(filter(None, (_cause(part, states) for part in outline.parts)), None)
        case "group":
            for index, part in enumerate(outline.parts):
                cause = _cause(part, states)
                if cause is not None:
                    return MemberFailed(index, cause)
            return None
        case "chord":
            group, callback = outline.parts
            failure = _cause(callback, states)
            return None if failure is None else _member_named(failure, group, states) or failure
        case never:
            assert_never(never)


def _member_named(failure: TaskFailed, group: Outline, states: States) -> TaskFailed | None:
    """The failed member that a callback's failure speaks of; a member that is skipped does not matter."""
    for index, part in enumerate(group.parts):
        if f"({part.id})" in failure.error:
            return MemberFailed(index, _cause(part, states) or failure)
    return None


def _failed(task_id: str, state: TaskState) -> TaskFailed:
    return TaskFailed(state.error, task_id=task_id, task_name=state.task_name)
