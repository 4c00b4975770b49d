"""A workflow, compiled to signatures that a worker of Machinery could run part by part.

A workflow is compiled from its end to its beginning: what a task is followed by is inside of its signature. A chain is
nested ``OnSuccess``; where a step fans out, its ``OnSuccess`` are the first tasks of the members, whose last tasks
share ``GroupUUID``, ``GroupTaskCount`` and ``ChordCallback``. What this cannot say is said by a built-in task; what
gets too big inside of a message becomes a plan, which the task before it names. Pure: nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import assert_never
from uuid import NAMESPACE_OID, uuid4, uuid5

from asyncqueue import names, wire
from asyncqueue.errors import ArgumentError, MessageTooLarge
from asyncqueue.go_compat import OFF, GoCompat
from asyncqueue.models import made
from asyncqueue.signature import Arg, Call, Plan, Signature, header, nested, with_headers
from asyncqueue.wire import DEFAULT_LIMITS, Limits
from asyncqueue.workflow import (
    ATTEMPT_HEADER,
    CHECK_HEADER,
    COUNTDOWN_HEADER,
    DEADLINE,
    ENTERS_HEADER,
    FIRST_LOOK,
    NONE,
    ON_FAILURE_HEADER,
    PASS,
    PLAN_HEADER,
    WATCH,
    WORKFLOW_HEADER,
    Compiled,
    Join,
    Node,
    OnFailure,
    Outline,
    Parallel,
    Series,
    Workflow,
    attempt_of,
    group_id_of,
    nodes_in,
    tasks_in,
    watch_id_of,
)

NewId = Callable[[str], str]
"""A UUID for a place in a workflow, which is named by a path such as ``1/0/callback``. Each place is asked for once."""

MAX_TASKS = 100_000
MAX_NESTING = 100
MAX_PLANNED = 2_000_000
"""How many UUIDs all plans together may hold: each one holds those of all that follows."""

_INLINE = Limits(max_bytes=16_384, max_signatures=200, max_callback_depth=50)
"""What may follow one step inside of a message; beyond it, it becomes a plan."""


def compiled(
    node: Node,
    *,
    default_queue: str,
    limits: Limits = DEFAULT_LIMITS,
    new_id: NewId | None = None,
    go: GoCompat = OFF,
    max_tasks: int = MAX_TASKS,
) -> Compiled:
    """The workflow as it is sent. UUIDs that signatures have are kept, all others come from ``new_id`` (by default they
    are random), and a queue that is not said is ``default_queue``. ``go`` is where Go's workers are.

    Raises ``ArgumentError`` for what cannot be a workflow, or is none that Go could be part of where a task of it is on
    a queue of Go's workers, and ``MessageTooLarge`` for a task that no message holds.
    """
    compiler = _Compiler(
        default_queue, limits, new_id or _random_id, go, _is_shared([node], go, default_queue), max_tasks
    )
    compiler.name_whole(node)
    return compiler.finished(*compiler.node(node, "", _After()))


def continued(
    original: Signature,
    node: Node,
    *,
    default_queue: str,
    limits: Limits = DEFAULT_LIMITS,
    attempt: int | None = None,
    go: GoCompat = OFF,
    home: str = "",
) -> Compiled:
    """The workflow as which a running task goes on: its last task takes over the UUID of the original and all that
    waits for it. ``attempt`` is the number of the run which goes on so, by default as its message says; a run that is
    repeated goes on as the same tasks. ``home`` is the default queue of the server, where ``default_queue`` is that of
    the original: what is built in beside queues of Go's is there. Raises as ``compiled`` does."""
    attempt = attempt_of(original) if attempt is None else attempt
    ids = ids_from(f"{original.uuid}/{attempt}")
    is_shared = _is_shared([node, *nested(original)], go, default_queue)
    compiler = _Compiler(default_queue, limits, ids, go, is_shared, MAX_TASKS, _wholes_of(original), home)
    compiler.name_whole(node)
    successors = [_Entry(each, not original.immutable) for each in original.on_success or ()]
    plan_id = header(original, PLAN_HEADER)
    if plan_id is not None:
        follows = compiler.built_in(PASS, "follows", original.routing_key or default_queue)
        successors.append(_Entry(with_headers(follows, {PLAN_HEADER: plan_id}), not original.immutable))
    after = _After(tuple(successors), _membership_of(original), _Original(original, attempt + 1))
    return compiler.finished(*compiler.node(node, "", after))


def added(
    original: Signature,
    nodes: Sequence[Node],
    first: int,
    *,
    default_queue: str,
    limits: Limits = DEFAULT_LIMITS,
) -> Compiled:
    """More members of the group that ``original`` is a member of; ``first`` is the number of the first one among all
    that ``original`` adds. The same number gets the same UUIDs. Raises as ``compiled`` does."""
    compiler = _Compiler(
        default_queue, limits, ids_from(f"{original.uuid}/added"), OFF, False, MAX_TASKS, _wholes_of(original)
    )
    after = _After(membership=_membership_of(original))
    parts = [compiler.node(node, str(number), after) for number, node in enumerate(nodes, first)]
    entries = tuple(entry for some, _ in parts for entry in some)
    group_id = original.group_uuid
    return compiler.finished(entries, Outline("group", group_id, "", tuple(part for _, part in parts), group_id))


def ids_from(seed: str) -> NewId:
    """UUIDs that are the same whenever they are made from this seed."""
    return lambda path: str(uuid5(NAMESPACE_OID, f"{seed}/{path}"))


def _random_id(path: str) -> str:
    return str(uuid4())


@dataclass(frozen=True, slots=True)
class _Entry:
    """A task with which something begins. ``takes``: it is given the results of what is before it; None: it does not
    care. ``sealed``: it is to hand on nothing, whatever follows it."""

    signature: Signature
    takes: bool | None = True
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class _Membership:
    group_id: str
    count: int
    callback: Signature | None


@dataclass(frozen=True, slots=True)
class _Original:
    """The task whose place the last task of a workflow takes."""

    signature: Signature
    attempt: int


@dataclass(frozen=True, slots=True)
class _After:
    """What the end of a node leads to."""

    successors: tuple[_Entry, ...] = ()
    membership: _Membership | None = None
    original: _Original | None = None

    @property
    def is_nothing(self) -> bool:
        return not self.successors and self.membership is None and self.original is None


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a signature with all that is inside of it."""

    bytes: int
    signatures: int
    depth: int


_Part = tuple[tuple[_Entry, ...], Outline]


@dataclass(slots=True)
class _Compiler:
    default_queue: str
    limits: Limits
    new_id: NewId
    go: GoCompat
    is_shared: bool  # Go's workers may be part of it
    max_tasks: int
    wholes: tuple[str, ...] = ()  # the plans that name all tasks of the workflows that these are part of
    home: str = ""  # the default queue of the server, where ``default_queue`` is another one
    plans: dict[str, Plan] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # of the tasks that have a UUID already
    _open: list[Node] = field(default_factory=list)
    _sizes: dict[int, tuple[Signature, _Size]] = field(default_factory=dict)  # a signature that is kept keeps its id
    _planned: int = 0
    _whole: str = ""

    def finished(self, entries: Sequence[_Entry], outline: Outline) -> Compiled:
        signatures = tuple(entry.signature for entry in entries)
        for each in signatures:
            self._check_size(each)
        plans = tuple(self.plans.values())
        whole = Plan(self._whole, (), tuple(_ids_in(signatures, plans))) if self._whole else None
        return Compiled(signatures, plans, outline, whole)

    def name_whole(self, node: Node) -> None:
        """Give a workflow that has steps a name, by which the entries of its first ones are kept to its end. The entry
        of a group does that for what has none."""
        if _has_steps(node):
            self._whole = f"plan_{self.new_id('whole')}"
            self.wholes = (*self.wholes, self._whole)

    # — nodes —

    def node(self, node: Node, path: str, after: _After, *, is_first: bool = True) -> _Part:
        with self._opened(node):
            match node:
                case Signature():
                    return self._task(node, path, after)
                case Series(links):
                    return self._chain(links, path, after, is_first)
                case Parallel():
                    return self._group(node, path, after, is_first)
                case Join():
                    return self._chord(node, path, after, is_first)
                case Workflow():
                    raise ArgumentError(f"a workflow is a chain, a group or a chord, not a {type(node).__name__}")
                case never:
                    assert_never(never)

    def _task(self, given: Signature, path: str, after: _After) -> _Part:
        if given.group_uuid or given.chord_callback is not None:
            raise ArgumentError(
                f"task {given.name}: it is a member of group {given.group_uuid!r} already; a workflow makes up its own"
            )
        original = after.original
        filled = self._filled(given, path, uuid=original.signature.uuid if original is not None else "")
        sealed = _is_sealed(given)
        own = [_Entry(each, not filled.immutable) for each in filled.on_success or ()]
        signature = self._ended(filled, own, path, after, sealed=sealed)
        takes = not (isinstance(given, Call) and given.takes_nothing)
        return (_Entry(signature, takes, sealed),), Outline("task", signature.uuid, signature.name)

    def _chain(self, links: Sequence[Node], path: str, after: _After, is_first: bool) -> _Part:
        if not links:
            raise ArgumentError("a chain needs at least one link")
        parts: list[Outline] = []
        entries: tuple[_Entry, ...] = ()
        for place in range(len(links) - 1, -1, -1):
            here = _step(path, str(place))
            entries, part = self.node(links[place], here, after, is_first=is_first and place == 0)
            parts.append(part)
            after = _After(entries)
        parts.reverse()
        return entries, Outline("chain", parts[-1].id, parts[-1].name, tuple(parts))

    def _group(self, group: Parallel, path: str, after: _After, is_first: bool) -> _Part:
        if not group.members:
            return self._nothing(path, after, is_first)
        if after.is_nothing:
            group_id = f"group_{self.new_id(_step(path, 'group'))}"
            return self._members(group, path, _Membership(group_id, len(group.members), None), is_first)
        if after.membership is None and after.original is None:
            return self._joined(group, path, after.successors, is_first)
        collecting = self._ending(PASS, path, _queue_of(group, self.default_queue), after)
        entries, outline = self._joined(group, path, (collecting,), is_first)
        collected = Outline("group", collecting.signature.uuid, PASS, outline.parts, outline.group_id)
        return entries, collected

    def _chord(self, chord: Join, path: str, after: _After, is_first: bool) -> _Part:
        callback, called = self.node(chord.callback, _step(path, "callback"), after, is_first=False)
        group = chord.members
        if group.members:
            with self._opened(group):
                entries, joined = self._joined(group, path, callback, is_first, chord.on_failure, chord.group_timeout)
        else:
            entries, joined = tuple(_taking_nothing(each) for each in callback), Outline("group", "", "")
        return entries, Outline("chord", called.id, called.name, (joined, called), joined.group_id)

    def _nothing(self, path: str, after: _After, is_first: bool) -> _Part:
        """An empty group: what comes after it comes at once, and is given nothing."""
        if after.membership is None and after.original is None and (after.successors or is_first):
            return tuple(_taking_nothing(each) for each in after.successors), Outline("group", "", "")
        entry = self._ending(NONE, path, self.default_queue, after)
        return (entry,), Outline("group", entry.signature.uuid, NONE)

    def _joined(
        self,
        group: Parallel,
        path: str,
        follows: Sequence[_Entry],
        is_first: bool,
        on_failure: OnFailure = "fail",
        group_timeout: float | None = None,
    ) -> _Part:
        callback = self._callback(follows, path)
        if on_failure != "fail":
            if self.is_shared:
                raise ArgumentError(
                    f"the group before task {callback.name}: on_failure={on_failure!r} is known to Python workers "
                    "only, and tasks of this workflow are on queues of Go's workers too (go_compat); expected 'fail'"
                )
            callback = with_headers(callback, {ON_FAILURE_HEADER: on_failure})
        if self.is_shared:  # workers in Go may send it twice
            callback = with_headers(callback, {CHECK_HEADER: "go"})
        group_id = group_id_of(callback.uuid, attempt_of(callback))
        if len(group.members) > self.limits.max_args and not callback.immutable:
            raise ArgumentError(
                f"a group of {len(group.members)} members before task {callback.name}: it would be given more results "
                f"than the {self.limits.max_args} arguments that a task may have; make it with si() if it needs none"
            )
        membership = _Membership(group_id, len(group.members), callback)
        entries, outline = self._members(group, path, membership, is_first)
        if on_failure != "fail" and not is_first:
            entries = tuple(_entering(each, group_id) for each in entries)
        beside: list[_Entry] = []
        if group_timeout is not None:
            beside.append(self._beside(DEADLINE, path, group, membership, float(group_timeout)))
        if self.is_shared:
            leading = _leading_to(group_id, [entry.signature for entry in entries])
            of_go = [each for each in leading if self.go.shares(each.routing_key)]
            ahead = [each.uuid for each in of_go if each.group_uuid != group_id]
            if of_go:
                beside.append(self._beside(WATCH, path, group, membership, FIRST_LOOK, ahead))
        return (*beside, *entries), outline

    def _beside(
        self,
        name: str,
        path: str,
        group: Parallel,
        membership: _Membership,
        seconds: float,
        ahead: Sequence[str] | None = None,
    ) -> _Entry:
        """A built-in task that ends a group from outside, after so many seconds."""
        place = name.removeprefix(names.BUILT_IN_PREFIX)
        uuid = watch_id_of(membership.group_id) if name == WATCH else ""
        task = self.built_in(name, _step(path, place), _queue_of(group, self.default_queue), uuid=uuid)
        args = [Arg(type="string", value=membership.group_id)]
        if ahead is not None:  # no header: those have to fit in one frame of RabbitMQ's, and these may be thousands
            args.append(Arg(type="[]string", value=list(ahead)))
        headers = {COUNTDOWN_HEADER: repr(seconds)}
        return _Entry(task.with_changes(args=args, headers=headers, chord_callback=membership.callback), None)

    def _members(self, group: Parallel, path: str, membership: _Membership, is_first: bool) -> _Part:
        after = _After(membership=membership)
        parts = [
            self.node(member, _step(path, str(place)), after, is_first=is_first)
            for place, member in enumerate(group.members)
        ]
        entries = tuple(entry for some, _ in parts for entry in some)
        group_id = membership.group_id
        return entries, Outline("group", group_id, "", tuple(part for _, part in parts), group_id)

    def _callback(self, follows: Sequence[_Entry], path: str) -> Signature:
        """The one task that follows a group. Its ``Immutable`` says two things: whether it is given the results, and
        whether it hands on its own; where these differ, a task that returns nothing stands between."""
        path = _step(path, "join")
        queue = follows[0].signature.routing_key
        if len(follows) == 1 and follows[0].sealed:  # so Machinery reads it, on a callback
            follows = [_taking_nothing(follows[0])]
        if len(follows) > 1 or not self._fits([follows[0].signature]) or self._would_be_given_text(follows[0]):
            return self._leading(self.built_in(PASS, path, queue), follows, path)
        entry = follows[0]
        signature = entry.signature
        if signature.name == PASS:
            return signature
        if not signature.on_success:
            return signature.with_changes(immutable=signature.immutable or not entry.takes)
        if entry.takes and signature.immutable and not entry.sealed:
            after = [_Entry(each) for each in signature.on_success]
            none = self._leading(self.built_in(NONE, path, queue), after, path)
            return signature.with_changes(immutable=False, on_success=(none,))
        if not entry.takes and not signature.immutable:
            none = self.built_in(NONE, path, queue)
            return none.with_changes(immutable=True, on_success=(signature,))
        return signature

    def _would_be_given_text(self, entry: _Entry) -> bool:
        """Whether Go would be given by Go what it cannot read. We can, and say it again."""
        is_given = entry.takes and not entry.signature.immutable and entry.signature.name != PASS
        return (
            bool(is_given) and self.is_shared and self.go.prints_results and self.go.shares(entry.signature.routing_key)
        )

    # — tasks —

    def built_in(self, name: str, path: str, queue: str, *, uuid: str = "") -> Signature:
        queue = self.go.companion(queue, self.home or self.default_queue)
        problem = names.queue_problem(queue)
        if problem is not None:
            raise ArgumentError(f"{name} needs a queue beside that of its neighbours: {problem}")
        signature = made(Signature, uuid=uuid or f"task_{self.new_id(path)}", name=name, routing_key=queue)
        signature = self._of_whole(signature)
        self._claim(signature)
        return signature

    def _ending(self, name: str, path: str, queue: str, after: _After) -> _Entry:
        """A built-in task that ends a node."""
        path = _step(path, "end")
        uuid = after.original.signature.uuid if after.original is not None else ""
        return _Entry(self._ended(self.built_in(name, path, queue, uuid=uuid), [], path, after))

    def _ended(
        self, signature: Signature, own: list[_Entry], path: str, after: _After, *, sealed: bool = False
    ) -> Signature:
        """The last task of a node, with what comes after that."""
        changes: dict[str, object] = {}
        if after.membership is not None:
            changes["group_uuid"] = after.membership.group_id
            changes["group_task_count"] = after.membership.count
            changes["chord_callback"] = after.membership.callback
        if after.original is not None:
            inherited = after.original.signature.on_error
            changes["on_error"] = (*(signature.on_error or ()), *(inherited or ())) if inherited else signature.on_error
            changes["headers"] = {
                **(signature.headers or {}),
                ATTEMPT_HEADER: str(after.original.attempt),
                CHECK_HEADER: "1",
            }
        if changes:
            signature = signature.with_changes(**changes)
        return self._leading(signature, [*own, *after.successors], path, sealed=sealed)

    def _leading(
        self, signature: Signature, entries: Sequence[_Entry], path: str, *, sealed: bool = False
    ) -> Signature:
        """A task with these as its successors: each is given its results or not, as it wants."""
        if not entries:
            return signature
        wants = {entry.takes for entry in entries} - {None}
        if len(wants) == 2 and not sealed:
            successors = self._apart(signature, entries, path)
        else:
            successors = [entry.signature for entry in entries]
        immutable = sealed or wants == {False}
        if self._fits(successors):
            return signature.with_changes(on_success=tuple(successors), immutable=immutable)
        plan_id = self._plan(successors, path)
        if signature.name == PASS:
            return with_headers(signature, {PLAN_HEADER: plan_id}).with_changes(immutable=immutable)
        named = self.built_in(PASS, _step(path, "plan"), signature.routing_key)
        named = with_headers(named, {PLAN_HEADER: plan_id})
        return signature.with_changes(on_success=(named,), immutable=immutable)

    def _apart(self, signature: Signature, entries: Sequence[_Entry], path: str) -> list[Signature]:
        """Successors of both kinds behind one task: those that take nothing stand behind one that returns nothing."""
        successors: list[Signature] = []
        for number, (nothing, some) in enumerate(groupby(entries, lambda entry: entry.takes is False)):
            if nothing:
                here = _step(path, f"none{number}")
                none = self.built_in(NONE, here, signature.routing_key)
                successors.append(self._leading(none, [_Entry(entry.signature) for entry in some], here))
            else:
                successors += (entry.signature for entry in some)
        return successors

    def _filled(self, given: Signature, path: str, *, uuid: str = "", depth: int = 0, counts: bool = True) -> Signature:
        """A plain signature with UUID and queue, and those of its callbacks. ``counts``: it is sent unless something
        fails."""
        if depth > self.limits.max_callback_depth:
            raise ArgumentError(f"task {given.name}: its callbacks nest deeper than {self.limits.max_callback_depth}")
        changes: dict[str, object] = {
            "uuid": uuid or given.uuid or f"task_{self.new_id(path)}",
            "routing_key": given.routing_key or self.default_queue,
        }
        if given.on_success:
            changes["on_success"] = tuple(
                self._filled(each, _step(path, f"success{index}"), depth=depth + 1, counts=counts)
                for index, each in enumerate(given.on_success)
            )
        if given.on_error:
            changes["on_error"] = tuple(
                self._filled(each, _step(path, f"error{index}"), depth=depth + 1, counts=False)
                for index, each in enumerate(given.on_error)
            )
        filled = made(Signature, **{**{name: getattr(given, name) for name in Signature.model_fields}, **changes})
        if counts:
            filled = self._of_whole(filled)
            self._claim(filled)
        return filled

    def _of_whole(self, signature: Signature) -> Signature:
        return with_headers(signature, {WORKFLOW_HEADER: " ".join(self.wholes)}) if self.wholes else signature

    # — checks —

    @contextmanager
    def _opened(self, node: Node) -> Iterator[None]:
        if isinstance(node, Workflow) and any(each is node for each in self._open):
            raise ArgumentError(f"a {_kind(node)} is a part of itself")
        if len(self._open) == MAX_NESTING:
            raise ArgumentError(f"workflows nest deeper than {MAX_NESTING}")
        self._open.append(node)
        yield
        self._open.pop()

    def _claim(self, signature: Signature) -> None:
        uuid, name = signature.uuid, signature.name
        problem = names.task_id_problem(uuid)
        if problem is not None:
            raise ArgumentError(f"task {name}: {problem}")
        if uuid in self._names:
            raise ArgumentError(f"the task UUID {uuid} is given twice: to {self._names[uuid]} and to {name}")
        if len(self._names) == self.max_tasks:
            raise ArgumentError(f"a workflow of more than {self.max_tasks} tasks")
        self._names[uuid] = name

    def _fits(self, successors: Sequence[Signature]) -> bool:
        """Whether these may follow a step inside of its message. Where Go is to run it, they have to."""
        if self.is_shared:
            return True
        sizes = [self._size(each) for each in successors]
        return (
            sum(size.bytes for size in sizes) <= min(_INLINE.max_bytes, self.limits.max_bytes // 4)
            and sum(size.signatures for size in sizes) <= min(_INLINE.max_signatures, self.limits.max_signatures // 2)
            and max(size.depth for size in sizes)
            <= min(_INLINE.max_callback_depth, self.limits.max_callback_depth // 2)
        )

    def _plan(self, signatures: Sequence[Signature], path: str) -> str:
        for each in signatures:
            self._check_size(each)
        ids: dict[str, None] = {}
        for each in tasks_in(signatures):
            ids[each.uuid] = None
            if each.group_uuid:
                ids[each.group_uuid] = None
            inner = header(each, PLAN_HEADER) if each.headers else None
            if inner is not None:
                ids[inner] = None
                ids.update(dict.fromkeys(self.plans[inner].ids) if inner in self.plans else {})
        self._planned += len(ids)
        if self._planned > MAX_PLANNED:
            raise ArgumentError("too many steps follow one another in this workflow: split it up")
        plan = Plan(f"plan_{self.new_id(_step(path, 'plan_id'))}", tuple(signatures), tuple(ids))
        self.plans[plan.plan_id] = plan
        return plan.plan_id

    def _check_size(self, signature: Signature) -> None:
        size, limits = self._size(signature), self.limits
        hint = "; as a plan it could be sent, which go_compat forbids" if self.is_shared else ""
        if size.bytes > limits.max_bytes:
            raise MessageTooLarge(
                f"task {signature.name} for queue {signature.routing_key!r}: with what follows it, its message is "
                f"{size.bytes} bytes, the limit is {limits.max_bytes}{hint}"
            )
        if size.signatures > limits.max_signatures:
            raise ArgumentError(
                f"task {signature.name}: with what follows it, {size.signatures} signatures would be in its message, "
                f"the limit is {limits.max_signatures}{hint}"
            )
        if size.depth - 1 > limits.max_callback_depth:
            raise ArgumentError(
                f"task {signature.name}: what follows it nests deeper than {limits.max_callback_depth}{hint}"
            )

    def _size(self, signature: Signature) -> _Size:
        known = self._sizes.get(id(signature))
        if known is not None:
            return known[1]
        inside = [*(signature.on_success or ()), *(signature.on_error or ())]
        bare = signature
        if inside or signature.chord_callback is not None:
            bare = signature.with_changes(on_success=None, on_error=None, chord_callback=None)
            inside += [signature.chord_callback] if signature.chord_callback is not None else []
        sizes = [self._size(each) for each in inside]
        size = _Size(
            len(wire.encode_signature(bare)) + sum(each.bytes + 1 for each in sizes),
            1 + sum(each.signatures for each in sizes),
            1 + max((each.depth for each in sizes), default=0),
        )
        self._sizes[id(signature)] = signature, size
        return size


def _step(path: str, step: str) -> str:
    return f"{path}/{step}" if path else step


def _is_sealed(signature: Signature) -> bool:
    """Whether a signature was made to hand on nothing; not, if it says so because of the successors that it has."""
    own = signature.on_success or ()
    implied = own and all(isinstance(each, Call) and each.takes_nothing for each in own)
    return signature.immutable and not implied


def _is_shared(nodes: Iterable[Node], go: GoCompat, default_queue: str) -> bool:
    """Whether Go's workers may run a task in there."""
    tasks = (each for each in nodes_in(nodes, with_nested=True) if isinstance(each, Signature))
    return go.is_on and any(go.shares(each.routing_key or default_queue) for each in tasks)


def _leading_to(group_id: str, entries: Iterable[Signature]) -> list[Signature]:
    """The members of a group, and the tasks without whose success one of them never runs."""
    tasks: dict[str, Signature] = {}
    before: dict[str, list[str]] = {}
    waiting = [*entries]
    while waiting:
        each = waiting.pop()
        if each.uuid in tasks:
            continue
        tasks[each.uuid] = each
        after = [*(each.on_success or ())]
        if each.group_uuid and each.group_uuid != group_id and each.chord_callback is not None:
            after.append(each.chord_callback)
        for one in after:
            before.setdefault(one.uuid, []).append(each.uuid)
        waiting += after
    leading = {uuid for uuid, each in tasks.items() if each.group_uuid == group_id}
    waiting_ids = [*leading]
    while waiting_ids:
        new = {one for one in before.get(waiting_ids.pop(), ()) if one not in leading}
        leading |= new
        waiting_ids += new
    return [each for uuid, each in tasks.items() if uuid in leading]


def _taking_nothing(entry: _Entry) -> _Entry:
    return _Entry(entry.signature, None if entry.takes is None else False, entry.sealed)


def _entering(entry: _Entry, group_id: str) -> _Entry:
    """A first task of a member of this group, which may begin with members of other groups."""
    others = header(entry.signature, ENTERS_HEADER)
    entered = with_headers(entry.signature, {ENTERS_HEADER: f"{group_id} {others}" if others else group_id})
    return _Entry(entered, entry.takes, entry.sealed)


def _wholes_of(signature: Signature) -> tuple[str, ...]:
    return tuple((header(signature, WORKFLOW_HEADER) or "").split())


def _has_steps(workflow: Node) -> bool:
    """Whether a chain is in it."""
    return any(isinstance(each, Series) and len(each.links) > 1 for each in nodes_in([workflow]))


def _ids_in(signatures: Sequence[Signature], plans: Sequence[Plan]) -> dict[str, None]:
    """The UUIDs of all tasks and groups, and of the plans."""
    ids = dict.fromkeys(plan.plan_id for plan in plans)
    for each in tasks_in(signatures, plans):
        ids[each.uuid] = None
        if each.group_uuid:
            ids[each.group_uuid] = None
    return ids


def _membership_of(signature: Signature) -> _Membership | None:
    if not signature.group_uuid:
        return None
    return _Membership(signature.group_uuid, signature.group_task_count, signature.chord_callback)


def _queue_of(node: Node, default: str) -> str:
    """The queue of the first task of a node."""
    for _ in range(MAX_NESTING):
        match node:
            case Signature():
                return node.routing_key or default
            case Series(links) if links:
                node = links[0]
            case Parallel(members) if members:
                node = members[0]
            case Join(Parallel(members), callback):
                node = members[0] if members else callback
            case _:
                break
    return default


def _kind(workflow: Workflow) -> str:
    match workflow:
        case Series():
            return "chain"
        case Parallel():
            return "group"
        case _:
            return "chord"
