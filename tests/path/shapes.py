"""Workflows as expressions: what each one comes to in plain Python, and how it is built with our builders.

Every task here tells by its result what it was given, so one wrong, missing or misplaced argument anywhere shows in the
end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from typing import Any, Literal, assert_never

from hypothesis import strategies

from asyncqueue import MemberFailure, Server, TaskContext, chain, chord, group
from asyncqueue.task import Task
from asyncqueue.workflow import OnFailure

Kind = Literal["one", "none", "two", "fails"]
"""How many results a task has, or that it always fails."""


@dataclass(frozen=True, slots=True)
class Step:
    """One task. ``takes``: it is given the results of what is before it."""

    label: str
    kind: Kind = "one"
    takes: bool = True


@dataclass(frozen=True, slots=True)
class Growing:
    """One task that goes on as a workflow when it runs. ``by_return``: it returns it, instead of ``ctx.replace``."""

    label: str
    shape: Shape
    by_return: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One after the other."""

    links: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Fan:
    """All at once."""

    members: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Funnel:
    """All at once, then one more with the results of all."""

    members: tuple[Shape, ...]
    callback: Shape
    on_failure: OnFailure = "fail"


Shape = Step | Growing | Line | Fan | Funnel

FAILURE = "!"
"""How a step writes down a failed member that it is given."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The value of what failed, or never ran because something before it did."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What a shape comes to: the value of its handle, what its parts come to, and the labels of all that runs."""

    shape: Shape
    value: Any
    parts: tuple[Computed, ...] = ()
    runs: tuple[str, ...] = ()


class Steps:
    """The tasks of shapes on one server, and how often each one ran: on this server or on one ``like`` it."""

    def __init__(self, server: Server, like: Steps | None = None) -> None:
        self.runs: Counter[str] = Counter() if like is None else like.runs
        self._grow: dict[str, Growing] = {} if like is None else like._grow
        runs, grow = self.runs, self._grow

        @server.task
        async def one(label: str, *given: str | MemberFailure) -> str:
            runs[label] += 1
            return told(label, given)

        @server.task
        async def none(label: str, *given: str | MemberFailure) -> None:
            runs[label] += 1

        @server.task
        async def two(label: str, *given: str | MemberFailure) -> tuple[str, str]:
            runs[label] += 1
            text = told(label, given)
            return f"{text}.1", f"{text}.2"

        @server.task
        async def fails(label: str, *given: str | MemberFailure) -> str:
            runs[label] += 1
            raise ValueError(f"{label} always fails")

        @server.task
        async def growing(ctx: TaskContext, label: str, *given: str | MemberFailure) -> Any:
            runs[label] += 1
            workflow = self.built(grow[label].shape)
            return workflow if grow[label].by_return else ctx.replace(workflow)

        self._tasks: dict[Kind, Task[..., Any]] = {"one": one, "none": none, "two": two, "fails": fails}
        self._growing = growing

    def built(self, shape: Shape) -> Any:
        """The shape as one writes it with ``chain``, ``group`` and ``chord``."""
        match shape:
            case Step(label, kind, takes):
                task = self._tasks[kind]
                return task.s(label) if takes else task.si(label)
            case Growing(label):
                self._grow[label] = shape
                return self._growing.s(label)
            case Line(links):
                return chain(*map(self.built, links))
            case Fan(members):
                return group(*map(self.built, members))
            case Funnel(members, callback, on_failure):
                return chord(group(*map(self.built, members)), self.built(callback), on_failure=on_failure)
            case never:
                assert_never(never)


def told(label: str, given: Sequence[str | MemberFailure]) -> str:
    """What a step makes of its arguments: another text for other ones, or for another order."""
    text = f"{label}({','.join(each if isinstance(each, str) else FAILURE for each in given)})"
    return text if len(text) <= 60 else f"{label}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def computed(shape: Shape, given: Sequence[str] | None = (), *, is_member: bool = False) -> Computed:
    """What a shape comes to that is given these results, by plain Python; None: it never runs, since something before
    it failed. The value of a group is a list with one value for each member; that of a group that is a member itself is
    a list of its results."""
    match shape:
        case Step(label, kind, takes):
            if given is None:
                return Computed(shape, Failed())
            return Computed(shape, _returned(kind, told(label, given if takes else ())), runs=(label,))
        case Growing(label, inner):
            if given is None:
                return Computed(shape, Failed())
            end = computed(inner)
            results = handed_on(end.value)
            several = results if results is None else tuple(results) if len(results) > 1 else next(iter(results), None)
            return Computed(shape, Failed() if results is None else several, runs=(label, *end.runs))
        case Line(links):
            parts: list[Computed] = []
            for place, link in enumerate(links, 1):
                parts.append(computed(link, given, is_member=is_member and place == len(links)))
                given = handed_on(parts[-1].value)
            return _of_parts(shape, parts[-1].value, parts)
        case Fan(members):
            parts = [computed(member, given, is_member=True) for member in members]
            values = [part.value for part in parts]
            if given is None or Failed() in values:
                return _of_parts(shape, Failed(), parts)
            return _of_parts(shape, handed_on(values) if is_member else values, parts)
        case Funnel(members, callback, on_failure):
            joined = computed(Fan(members), given)
            passed = None if given is None else _passed([part.value for part in joined.parts], on_failure)
            called = computed(callback, passed, is_member=is_member)
            return _of_parts(shape, called.value, [joined, called])
        case never:
            assert_never(never)


def handed_on(value: Any) -> list[str] | None:
    """The flat list of results that the next one is given; None where there is no next one, after a failure."""
    match value:
        case Failed():
            return None
        case None:
            return []
        case str():
            return [value]
        case _:
            return [each for part in value for each in handed_on(part) or ()]


def labelled(shape: Shape, prefix: str = "t") -> Shape:
    """The shape with a label of its own for every task, and chains in chains joined into one, as the builders do."""
    return _labelled(shape, (f"{prefix}{number}" for number in count()))


def nestings() -> dict[str, Shape]:
    """Every nesting of depth 3 over chain, group and chord, by name: ``chain of group of chord`` and the like."""
    every = enumerate(product(("chain", "group", "chord"), repeat=3))
    return {" of ".join(kinds): labelled(_nested(kinds), f"{number}.") for number, kinds in every}


def shapes(max_leaves: int, *, failing: bool = False) -> strategies.SearchStrategy[Shape]:
    """Any shape, without labels: with tasks that take nothing, return nothing or two, or go on as a workflow, and with
    empty groups. ``failing``: with tasks that fail, too, and callbacks that run all the same."""
    kinds: Sequence[Kind] = ("one", "one", "one", "none", "two")
    policies: Sequence[OnFailure] = ("fail", "skip", "pass") if failing else ("fail",)
    steps = strategies.builds(
        Step,
        strategies.just(""),
        strategies.sampled_from((*kinds, "fails") if failing else kinds),
        strategies.sampled_from((True, True, True, False)),
    )

    def nested(inner: strategies.SearchStrategy[Shape]) -> strategies.SearchStrategy[Shape]:
        parts = strategies.lists(inner, max_size=3).map(tuple)
        links = strategies.lists(inner, min_size=1, max_size=3).map(tuple)
        return strategies.one_of(
            strategies.builds(Line, links),
            strategies.builds(Fan, parts),
            strategies.builds(Funnel, parts, inner, strategies.sampled_from(policies)),
            strategies.builds(Growing, strategies.just(""), inner, strategies.booleans()),
        )

    return strategies.recursive(steps, nested, max_leaves=max_leaves)


def _returned(kind: Kind, text: str) -> Any:
    match kind:
        case "one":
            return text
        case "none":
            return None
        case "two":
            return f"{text}.1", f"{text}.2"
        case "fails":
            return Failed()
        case never:
            assert_never(never)


def _passed(values: Sequence[Any], on_failure: OnFailure) -> list[str] | None:
    """What the callback of a group is given whose members came to these values; None: it never runs."""
    given: list[str] = []
    for value in values:
        results = handed_on(value)
        if results is None and on_failure == "fail":
            return None
        given += results if results is not None else [FAILURE] if on_failure == "pass" else []
    return given


def _of_parts(shape: Shape, value: Any, parts: Sequence[Computed]) -> Computed:
    return Computed(shape, value, tuple(parts), tuple(label for part in parts for label in part.runs))


def _labelled(shape: Shape, labels: Iterator[str]) -> Shape:
    match shape:
        case Step():
            return replace(shape, label=next(labels))
        case Growing(_, inner, by_return):
            return Growing(next(labels), _labelled(inner, labels), by_return)
        case Line(links):
            parts = [_labelled(link, labels) for link in links]
            return Line(tuple(each for part in parts for each in (part.links if isinstance(part, Line) else (part,))))
        case Fan(members):
            return Fan(tuple(_labelled(member, labels) for member in members))
        case Funnel(members, callback, on_failure):
            again = tuple(_labelled(member, labels) for member in members)
            return Funnel(again, _labelled(callback, labels), on_failure)
        case never:
            assert_never(never)


def _nested(kinds: Sequence[str]) -> Shape:
    """Shapes in shapes, the outermost first, each one inside of the one before at every place but one."""
    if not kinds:
        return Step("")
    inner = _nested(kinds[1:])
    match kinds[0]:
        case "chain":
            return Line((inner, Step(""), inner))
        case "group":
            return Fan((inner, Step(""), inner))
        case _:
            return Funnel((inner, Step("")), inner)
