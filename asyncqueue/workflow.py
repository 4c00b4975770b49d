"""What a workflow is, before and after it is compiled to signatures, and what can be read off these.

Before: tasks and the three shapes that hold them (``Series``, ``Parallel``, ``Join``). After: signatures that carry
what follows them, as Machinery writes it, and beside that the headers and the built-in tasks named here. Whatever
walks compiled signatures looks at each task once: nested, they repeat what follows a group in every member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import NAMESPACE_OID, uuid5

from pydantic import BaseModel

from asyncqueue.signature import MODEL, Arg, Plan, Signature, header, nested, with_headers
from asyncqueue.state import GroupMeta

ON_FAILURE_HEADER = "aq-on-failure"
"""On the callback of a group: what a failed member means to it, ``skip`` or ``pass``. Without it: ``fail``."""

PLAN_HEADER = "aq-plan"
"""On ``aq.pass``: what follows it is not in its ``OnSuccess`` but in the plan of this name."""

ENTERS_HEADER = "aq-enters"
"""On a task with which members of groups begin: those groups whose policy is not ``fail`` and that come after
something, outermost first, with spaces between."""

BROKEN_HEADER = "aq-broken"
"""On a task that will never run because one before the named groups failed: to these it is no failed member, which
could be skipped, but the end of what leads to them."""

WORKFLOW_HEADER = "aq-workflow"
"""On the tasks of a workflow that has steps: the plans, with spaces between, that name all that is in it. They have no
signatures; whatever a worker does for one of its tasks keeps the entries of all of them."""

COUNTDOWN_HEADER = "aq-countdown"
"""On ``aq.deadline`` and ``aq.watch``: seconds from when it is sent until it runs."""

FAILED_HEADER = "aq-failed"
"""On a task in a companion queue: it is not to be run, but to be settled as failed with this error."""

SEEN_HEADER = "aq-seen"
"""On ``aq.watch``: at so many looks in a row its group had ended, and somebody may have been about to send what
follows."""

ATTEMPT_HEADER = "aq-attempt"
"""The number of the run that this message asks for, from 2; without it, 1."""

CHECK_HEADER = "aq-check"
"""Says: look up the state before you run me, I may be a second copy. ``go`` where a worker in Go may send copies, else
``1``: who sends one of ours says so."""

PASS = "aq.pass"
"""Returns what it is given."""

NONE = "aq.none"
"""Takes anything and returns nothing."""

DEADLINE = "aq.deadline"
"""Fails the group that is its first argument, and whose callback it carries, if that is not complete when it runs."""

OVER = "aq.over"
"""Sends what follows its group, whose callback it carries: all members have ended, or one failed, as its argument
says."""

WATCH = "aq.watch"
"""Ends the group that is its first argument, and whose callback it carries, once it has ended where no worker of ours
saw it. Its second argument is a list of the tasks that Go's workers may run before members of the group."""

FIRST_LOOK = 2.0
"""How long (seconds) after a group is sent, or seen first where Go sent it, it is looked at; then again after twice as
long, and so on."""

BUILT_IN = frozenset({PASS, NONE, DEADLINE, OVER, WATCH})
"""The tasks that every Python worker knows, and no Go worker is given."""

COMPANION_SUFFIX = ".aq"

OnFailure = Literal["fail", "skip", "pass"]
"""What a failed member means to the callback of its group: it never runs, it gets the results of the others, or it gets
a ``MemberFailure`` in its place."""


class Workflow:
    """Several tasks that are sent as one: a ``Series``, a ``Parallel`` or a ``Join``."""

    __slots__ = ()


Node = Signature | Workflow
"""A part of a workflow: a task, or a workflow."""


@dataclass(frozen=True)
class Series(Workflow):
    """One after the other; each one is given the results of the one before it."""

    links: tuple[Node, ...]


@dataclass(frozen=True)
class Parallel(Workflow):
    """All at once; their results, one after the other, are its own."""

    members: tuple[Node, ...]


@dataclass(frozen=True)
class Join(Workflow):
    """A group, and what is run once when all its members have ended. ``group_timeout`` is seconds from when the members
    are sent until the group has failed."""

    members: Parallel
    callback: Node
    on_failure: OnFailure = "fail"
    group_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """A workflow as its handles see it: the expression, with the UUIDs that it got.

    ``id`` is the UUID of the task whose result is that of the whole: of a chain that of its last link, of a chord that
    of its callback. A group has one only where its results are collected in a task (``aq.pass``), since it is a member
    or ends a continuation; any other group has its own UUID there. ``name`` is the name of that task, "" where there is
    none. ``parts`` are links, members, or group and callback. ``group_id`` is a group's own UUID, "" of an empty one.
    """

    kind: Literal["task", "chain", "group", "chord"]
    id: str
    name: str
    parts: tuple[Outline, ...] = ()
    group_id: str = ""

    @property
    def is_collected(self) -> bool:
        """Whether it is a group with a task that returns the results of its members."""
        return self.kind == "group" and bool(self.id) and self.id != self.group_id

    def deciding(self) -> list[str]:
        """The UUIDs of the tasks whose results make up that of the whole, in order."""
        if self.kind == "task" or self.is_collected:
            return [self.id]
        parts = self.parts if self.kind == "group" else self.parts[-1:]
        return [task_id for part in parts for task_id in part.deciding()]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A workflow as it is sent: ``entries`` are sent first and in this order, everything else is inside of them or in
    ``plans``. ``whole`` is a plan without signatures that names all of it, where it has steps.
    """

    entries: tuple[Signature, ...]
    plans: tuple[Plan, ...]
    outline: Outline
    whole: Plan | None = None

    @property
    def kept(self) -> tuple[Plan, ...]:
        """All that the backend keeps of it beside states and groups."""
        return self.plans if self.whole is None else (*self.plans, self.whole)

    @property
    def needs_backend(self) -> str:
        """What of it needs a backend, and for what; "" where nothing does."""
        kind = _grouping(self.outline)
        if kind:
            return f"a {kind} needs a result backend, which counts its members"
        return "a workflow this long needs a result backend, which keeps what no message holds" if self.plans else ""


@dataclass(frozen=True, slots=True)
class Doomed:
    """What a failure means to the tasks after it: ``never`` are all that will never run. ``told`` are those of them
    that have consequences of their own, and are to be sent with word of their failure."""

    never: tuple[Signature, ...]
    told: tuple[Signature, ...]


class MemberFailure(BaseModel):
    """A failed member, as a callback with ``on_failure="pass"`` gets it in place of a result.

    Annotate such a callback with it: ``async def table(*rows: int | MemberFailure)``.
    """

    model_config = MODEL

    task_id: str
    task_name: str
    error: str

    def as_arg(self) -> Arg:
        """The argument that it is on the wire."""
        return Arg(type="json", value=self.model_dump())


def attempt_of(signature: Signature) -> int:
    """The number of the run that a message asks for, from 1."""
    text = header(signature, ATTEMPT_HEADER) if signature.headers else None
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 1


def companion(queue: str) -> str:
    """The queue for built-in tasks beside ``queue``, which its Python workers consume and no Go worker does."""
    return queue if is_companion(queue) else queue + COMPANION_SUFFIX


def is_companion(queue: str) -> bool:
    """Whether this is a queue for built-in tasks."""
    return queue.endswith(COMPANION_SUFFIX)


def group_id_of(callback_id: str, attempt: int = 1) -> str:
    """The UUID of the group whose callback has this UUID. ``attempt`` is that of the callback, which is over 1 where a
    task goes on as a chord."""
    return f"group_{uuid5(NAMESPACE_OID, callback_id if attempt == 1 else f'{callback_id}/{attempt}')}"


def is_of_go(group_id: str, callback: Signature) -> bool:
    """Whether a client in Go made up the group before this callback: ours are named after what follows them."""
    return group_id != group_id_of(callback.uuid, attempt_of(callback))


def watch_id_of(group_id: str) -> str:
    """The UUID of the ``aq.watch`` of a group: there is one, whoever begins it."""
    return f"task_{uuid5(NAMESPACE_OID, f'{group_id}/watch')}"


def nodes_in(nodes: Iterable[Node], *, with_nested: bool = False) -> Iterator[Node]:
    """Workflows and all that is in them, in their order, each object once; ``with_nested``: what is in signatures too.

    Parts may be shared; one that is a part of itself is found out elsewhere.
    """
    waiting: list[Node] = _reversed(nodes)
    seen = set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        match node:
            case Signature():
                waiting += _reversed(nested(node)) if with_nested else ()
            case Series(links):
                waiting += _reversed(links)
            case Parallel(members):
                waiting += _reversed(members)
            case Join(group, callback):
                waiting += (callback, group)


def tasks_in(signatures: Iterable[Signature], plans: Iterable[Plan] = ()) -> list[Signature]:
    """Every task that gets a state, each once: these, and at any depth what follows them and the callbacks of their
    groups. Error handlers get theirs only if they are sent. A plan that is not among ``plans`` is not looked into."""
    return list(_tasks(signatures, {plan.plan_id: plan for plan in plans}))


def groups_in(signatures: Iterable[Signature], plans: Iterable[Plan] = ()) -> list[GroupMeta]:
    """The groups that these tasks and what follows them are members of, members in order; ``signatures`` are the
    entries of the groups, in their order. A group that is not there as a whole, since some of its members are in a plan
    that is not among ``plans``, is left out."""
    members: dict[str, list[str]] = {}
    expected: dict[str, int] = {}
    for each in _tasks(signatures, {plan.plan_id: plan for plan in plans}):
        if each.group_uuid:
            members.setdefault(each.group_uuid, []).append(each.uuid)
            expected[each.group_uuid] = each.group_task_count
    return [
        GroupMeta(group_uuid=group_id, task_uuids=tuple(task_ids))
        for group_id, task_ids in members.items()
        if len(task_ids) == expected[group_id]
    ]


def members_in(group_id: str, signatures: Iterable[Signature], plans: Iterable[Plan] = ()) -> list[str]:
    """The UUIDs of those that are members of this group among these tasks and what follows them, in order."""
    return [each.uuid for each in tasks_in(signatures, plans) if each.group_uuid == group_id]


def doomed(failed: Signature) -> Doomed:
    """What will never run because ``failed`` did not succeed: what its ``OnSuccess`` leads to, up to where word has to
    be sent. What follows it by a plan is to be put into its ``OnSuccess`` first. Word of what is before a group with a
    policy of its own carries ``BROKEN_HEADER``."""
    never: list[Signature] = []
    told: list[Signature] = []
    seen: set[str] = set()
    waiting = [(each, _named(failed, BROKEN_HEADER)) for each in reversed(failed.on_success or ())]
    while waiting:
        each, passed = waiting.pop()
        if each.uuid in seen:
            continue
        seen.add(each.uuid)
        never.append(each)
        passed |= _named(each, ENTERS_HEADER)
        if _has_consequences(each):
            told.append(_broken_for(each, passed))
        else:
            waiting.extend((after, passed) for after in reversed(each.on_success or ()))
    return Doomed(tuple(never), tuple(told))


def is_broken(failed: Signature) -> bool:
    """Whether a task that failed is, to the group that it is a member of, no failed member but the end of what led to
    the group: that fails, whatever its policy."""
    return bool(failed.group_uuid) and failed.group_uuid in _named(failed, BROKEN_HEADER)


def cut_off(callback: Signature, failed: Signature | None = None) -> Signature:
    """The callback of a group that has failed, through ``failed`` if through a member: with the header that says to
    which groups after it this is no failed member."""
    broken = _named(callback, ENTERS_HEADER) | _named(callback, BROKEN_HEADER)
    return _broken_for(callback, broken if failed is None else broken | _named(failed, BROKEN_HEADER))


def _grouping(outline: Outline) -> str:
    """The kind of the first part that has members; "" where there is none."""
    if outline.kind in ("group", "chord"):
        return outline.kind
    return next(filter(None, map(_grouping, outline.parts)), "")


def _has_consequences(signature: Signature) -> bool:
    """Whether others wait for this task than those that its ``OnSuccess`` names. The end of a task that goes on as a
    workflow is one of them, since it has that task's error handlers."""
    if signature.group_uuid and signature.chord_callback is not None:
        return True
    if not signature.headers:
        return False
    return PLAN_HEADER in signature.headers or (ATTEMPT_HEADER in signature.headers and bool(signature.on_error))


def _broken_for(signature: Signature, groups: frozenset[str]) -> Signature:
    return with_headers(signature, {BROKEN_HEADER: " ".join(sorted(groups))}) if groups else signature


def _named(signature: Signature, name: str) -> frozenset[str]:
    """The groups that a header names."""
    return frozenset((header(signature, name) or "").split()) if signature.headers else frozenset()


def _tasks(signatures: Iterable[Signature], plans: Mapping[str, Plan]) -> Iterator[Signature]:
    seen: set[str] = set()
    waiting: list[Signature] = _reversed(signatures)
    while waiting:
        each = waiting.pop()
        if each.uuid in seen or not each.uuid:  # one that has no UUID yet has no state yet either
            continue
        seen.add(each.uuid)
        yield each
        if each.chord_callback is not None:
            waiting.append(each.chord_callback)
        plan = plans.get(header(each, PLAN_HEADER) or "") if each.headers else None
        if plan is not None:
            waiting += _reversed(plan.signatures)
        if each.on_success:
            waiting += _reversed(each.on_success)


def _reversed(signatures: Iterable[Any]) -> list[Any]:
    found: list[Any] = list(signatures) if not isinstance(signatures, Sequence) else [*signatures]
    found.reverse()
    return found
