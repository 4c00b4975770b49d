"""Chains, groups and chords: what one builds workflows with.

A link or a member is a signature (``add.s(1, 2)``), a task that needs no arguments of its own (``double``), or another
workflow. Nothing is sent, and little is checked, before the whole is: what a workflow cannot be is an ``ArgumentError``
when it is sent.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, get_args, overload

from typing_extensions import TypeVar as DefaultTypeVar

from asyncqueue.errors import ArgumentError, shown
from asyncqueue.signature import Call, Signature, Typed
from asyncqueue.workflow import Join, Node, OnFailure, Parallel, Series, Workflow, nodes_in

if TYPE_CHECKING:
    from asyncqueue.server import Server
    from asyncqueue.workflow_results import ChainResult, ChordResult, GroupResult

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
H = TypeVar("H")
R = DefaultTypeVar("R", default=Any)
R_co = DefaultTypeVar("R_co", default=Any, covariant=True)
T_contra = DefaultTypeVar("T_contra", default=None, contravariant=True)
U_contra = DefaultTypeVar("U_contra", default=object, contravariant=True)
H_co = DefaultTypeVar("H_co", default=Any, covariant=True)


class Link(Protocol[R, H_co, T_contra]):
    """What can be a part of a workflow, as a type checker sees it: its result is an ``R``, it hands on an ``H_co``, and
    it takes a ``T_contra``. Signatures, tasks and workflows are such."""

    if TYPE_CHECKING:

        def _typed(self) -> Typed[R, H_co, T_contra]: ...


class TaskSignature(Call, Generic[R, U_contra]):
    """A signature of a task whose result type is known: what ``Task.s()`` makes.

    ``U_contra`` is what it still takes from the task before it, as far as that is known. ``a | b`` is a chain of two.
    """

    def __or__(self, after: Link[B, H, R]) -> Chain[B, U_contra, H]:
        return Chain(_flat(self, after))

    if TYPE_CHECKING:

        def _typed(self) -> Typed[R, R, U_contra]: ...


@dataclass(frozen=True)
class Chain(Series, Generic[R_co, T_contra, H_co]):
    """One after the other; each one is given the results of the one before it. Its result is that of its last link."""

    def __or__(self, after: Link[B, H, H_co]) -> Chain[B, T_contra, H]:
        return Chain(_flat(self, after))

    async def send(self: Chain[R, None, Any]) -> ChainResult[R]:
        """Send it by the server of its tasks. Raises as ``Server.send_chain`` does."""
        return await server_of(self, "send_chain").send_chain(self)

    if TYPE_CHECKING:

        def _typed(self: Chain[R, T_contra, H_co]) -> Typed[R, H_co, T_contra]: ...


@dataclass(frozen=True)
class Group(Parallel, Generic[R_co, T_contra]):
    """All at once. Its result is a list of theirs, in their order; what it hands on are the results of all, as that
    many arguments. ``group | callback`` is a chord."""

    def __or__(self, callback: Link[B, H, Any]) -> Chord[B, T_contra, H]:
        return Chord(self, part_of(callback, "chord"))

    async def send(self: Group[R, None], concurrency: int = 0) -> GroupResult[R]:
        """Send it by the server of its tasks. Raises as ``Server.send_group`` does."""
        return await server_of(self, "send_group").send_group(self, concurrency)

    if TYPE_CHECKING:

        def _typed(self: Group[R, T_contra]) -> Typed[list[R], Any, T_contra]: ...


@dataclass(frozen=True)
class Chord(Join, Generic[R_co, T_contra, H_co]):
    """A group, and a callback that is given the results of all its members, in their order. Its result is that of the
    callback."""

    def __or__(self, after: Link[B, H, H_co]) -> Chain[B, T_contra, H]:
        return Chain(_flat(self, after))

    async def send(self: Chord[R, None, Any], concurrency: int = 0) -> ChordResult[R]:
        """Send it by the server of its tasks. Raises as ``Server.send_chord`` does."""
        return await server_of(self, "send_chord").send_chord(self, concurrency)

    if TYPE_CHECKING:

        def _typed(self: Chord[R, T_contra, H_co]) -> Typed[R, H_co, T_contra]: ...


@overload
def chain(a: Link[R, A, T_contra], /) -> Chain[R, T_contra, A]: ...
@overload
def chain(a: Link[Any, A, T_contra], b: Link[R, B, A], /) -> Chain[R, T_contra, B]: ...
@overload
def chain(a: Link[Any, A, T_contra], b: Link[Any, B, A], c: Link[R, C, B], /) -> Chain[R, T_contra, C]: ...
@overload
def chain(
    a: Link[Any, A, T_contra], b: Link[Any, B, A], c: Link[Any, C, B], d: Link[R, D, C], /
) -> Chain[R, T_contra, D]: ...
@overload
def chain(
    a: Link[Any, A, T_contra], b: Link[Any, B, A], c: Link[Any, C, B], d: Link[Any, D, C], e: Link[R, E, D], /
) -> Chain[R, T_contra, E]: ...
@overload
def chain(
    a: Link[Any, A, T_contra],
    b: Link[Any, B, A],
    c: Link[Any, C, B],
    d: Link[Any, D, C],
    e: Link[Any, E, D],
    f: Link[Any, F, E],
    /,
    *more: Link[Any, Any, Any],
) -> Chain[Any, T_contra, Any]: ...
def chain(*links: Any) -> Chain[Any, Any, Any]:
    """One after the other. Chains among the links are joined into one. Raises ``ArgumentError`` for what is no link."""
    if not links:
        raise ArgumentError("chain() needs at least one link")
    return Chain(_flat(*links))


@overload
def group(*members: Link[R, Any, T_contra]) -> Group[R, T_contra]: ...
@overload
def group(*members: Link[Any, Any, T_contra]) -> Group[Any, T_contra]: ...
def group(*members: Any) -> Group[Any, Any]:
    """All at once. ``group()`` of nothing is allowed, and has the result ``[]``. Raises ``ArgumentError`` for what is
    no member."""
    return Group(tuple(part_of(member, "group", len(members)) for member in members))


def chord(
    group_or_members: Group[Any, T_contra] | Iterable[Link[Any, Any, T_contra]],
    callback: Link[B, H, Any],
    *,
    on_failure: OnFailure = "fail",
    group_timeout: float | None = None,
) -> Chord[B, T_contra, H]:
    """A group, and what is run once when all its members have ended.

    ``on_failure`` says what a failed member means: the callback never runs (``"fail"``), it is given the results of the
    others (``"skip"``), or a ``MemberFailure`` in place of the result (``"pass"``). ``group_timeout`` is how long
    (seconds, from when the members are sent) the group may take before it has failed. Raises ``ArgumentError``.
    """
    if on_failure not in get_args(OnFailure):
        raise ArgumentError(f"chord: on_failure={on_failure!r}; expected one of {', '.join(get_args(OnFailure))}")
    if group_timeout is not None and not (_is_number(group_timeout) and 0 < group_timeout < math.inf):
        raise ArgumentError(f"chord: group_timeout={group_timeout!r}; expected a number of seconds over 0")
    return Chord(_members(group_or_members), part_of(callback, "chord"), on_failure, group_timeout)


def server_of(workflow: Node, verb: str = "send_chain") -> Server:
    """The server whose tasks these are. Raises ``ArgumentError`` where there is none, naming the ``verb`` of a server
    that could send them, or where they belong to several."""
    server = owner_of(workflow)
    if server is None:
        raise ArgumentError(f"no task here knows a server: send the workflow with server.{verb}(…)")
    return server


def owner_of(workflow: Node) -> Server | None:
    """The server whose tasks these are, or None where they know none. Raises ``ArgumentError`` where they belong to
    several."""
    servers: dict[int, tuple[Any, str]] = {}
    for each in nodes_in([workflow]):
        if isinstance(each, Call) and each.sender is not None:
            servers.setdefault(id(each.sender), (each.sender, each.name))
    found = list(servers.values())
    if len(found) > 1:
        raise ArgumentError(f"tasks {found[0][1]} and {found[1][1]} belong to different servers: a workflow has one")
    return cast("Server", found[0][0]) if found else None


def part_of(given: Any, builder: str, count: int = 0) -> Node:
    """What was given to a builder, as a part of its workflow. Raises ``ArgumentError`` that says what was expected."""
    if isinstance(given, Signature | Workflow):
        return given
    if inspect.iscoroutine(given):
        given.close()
        if given.__qualname__.startswith(("Task.", "Server.")):
            raise ArgumentError(f"{builder}: expected a signature: use s(…) in place of {given.__name__}(…)")
        raise ArgumentError(f"{builder}: {given.__name__}(…) was called, not sent: use {given.__name__}.s(…)")
    if not isinstance(given, type) and callable(getattr(given, "s", None)):
        return cast(Signature, given.s())
    if isinstance(given, str):
        raise ArgumentError(f"{builder}: {given!r} is a name: use server.signature({given!r}, …)")
    if count == 1 and isinstance(given, Iterable):
        raise ArgumentError(f"{builder}: expected parts one by one, not {_shown(given)}: use {builder}(*parts)")
    if callable(given):
        name = getattr(given, "__name__", repr(given))
        raise ArgumentError(f"{builder}: {name} is a function and no task: register it with @server.task")
    raise ArgumentError(f"{builder}: expected a task, a signature or a workflow, not {_shown(given)}")


def _members(given: Any) -> Parallel:
    if isinstance(given, Parallel):
        return given
    if isinstance(given, Workflow | Signature) or not isinstance(given, Iterable) or isinstance(given, str):
        raise ArgumentError(f"chord: expected a group, or a list of its members, not {_shown(given)}")
    return group(*given)


def _flat(*links: Any) -> tuple[Node, ...]:
    nodes = [part_of(link, "chain", len(links)) for link in links]
    return tuple(part for node in nodes for part in (node.links if isinstance(node, Series) else (node,)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {shown(value)}"
