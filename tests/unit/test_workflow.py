"""What workflows compile to: run by workers that know signatures and no workflows, it comes to the same as the
expression does in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, get_args
from uuid import NAMESPACE_OID, uuid5

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncqueue import ArgumentError, MessageTooLarge, Server, compiling, wire
from asyncqueue.builders import Chain, chain, chord, group, owner_of, server_of
from asyncqueue.compiling import added, compiled, continued, ids_from
from asyncqueue.go_compat import GoCompat
from asyncqueue.signature import Arg, Call, Plan, Signature, header, with_headers
from asyncqueue.state import GroupMeta
from asyncqueue.workflow import (
    ATTEMPT_HEADER,
    BROKEN_HEADER,
    BUILT_IN,
    CHECK_HEADER,
    COUNTDOWN_HEADER,
    DEADLINE,
    ENTERS_HEADER,
    FAILED_HEADER,
    NONE,
    ON_FAILURE_HEADER,
    PASS,
    PLAN_HEADER,
    WORKFLOW_HEADER,
    Compiled,
    Join,
    MemberFailure,
    Node,
    OnFailure,
    Outline,
    Parallel,
    Series,
    Workflow,
    attempt_of,
    companion,
    cut_off,
    doomed,
    group_id_of,
    groups_in,
    is_broken,
    members_in,
    tasks_in,
)
from tests.wire import goldens

QUEUE = "q"
FAILED = "FAILED"
"""Stands for a ``MemberFailure`` among texts."""


# — an expression in plain Python —


class Broken(Exception):
    """A part of an expression has failed."""


@dataclass
class Plainly:
    """Evaluates expressions. ``calls`` are what each task, by its label, was given. A task called ``grow`` goes on as
    the node that ``growths`` has under its label."""

    growths: dict[str, Node]
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def results(self, node: Node, given: Sequence[str] = ()) -> list[str]:
        match node:
            case Signature():
                return self._called(node, given)
            case Series(links):
                for link in links:
                    given = self.results(link, given)
                return list(given)
            case Parallel(members):
                ends = [self.attempted(member, given) for member in members]
                return joined(ends, "fail")
            case Join(Parallel(members), callback, on_failure):
                ends = [self.attempted(member, given) for member in members]
                return self.results(callback, joined(ends, on_failure))
        raise AssertionError(node)

    def attempted(self, node: Node, given: Sequence[str] = ()) -> list[str] | None:
        try:
            return self.results(node, given)
        except Broken:
            return None

    def _called(self, signature: Signature, given: Sequence[str]) -> list[str]:
        label = label_of(signature)
        given = () if isinstance(signature, Call) and signature.takes_nothing else tuple(given)
        self.calls[label] = given
        if signature.name == "grow":
            return self.results(self.growths[label])
        return returned(signature.name, label, given)


def joined(ends: Sequence[list[str] | None], on_failure: str) -> list[str]:
    """What the members of a group hand on."""
    if on_failure == "fail" and None in ends:
        raise Broken
    failed = [FAILED] if on_failure == "pass" else []
    return [each for end in ends for each in (failed if end is None else end)]


def returned(name: str, label: str, given: Sequence[str]) -> list[str]:
    """What a task returns: it tells what it was given."""
    text = f"{label}({uuid5(NAMESPACE_OID, repr(given)).hex[:8] if given else ''})"
    match name:
        case "one":
            return [text]
        case "none":
            return []
        case "two":
            return [f"{text}.1", f"{text}.2"]
    raise Broken


def label_of(signature: Signature) -> str:
    assert signature.args
    return str(signature.args[0].value)


# — workers —


@dataclass
class Workers:
    """Runs compiled signatures as workers do: one message after the other, in any order, each one off the wire.

    ``ends`` are the results of tasks by UUID, None of those that failed.
    """

    growths: dict[str, Node]
    choose: random.Random
    ends: dict[str, list[str] | None] = field(default_factory=dict)
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    groups: dict[str, GroupMeta] = field(default_factory=dict)
    tasks: dict[str, Signature] = field(default_factory=dict)
    triggered: set[str] = field(default_factory=set)
    waiting: list[bytes] = field(default_factory=list)

    def send(self, work: Compiled) -> None:
        for plan in work.plans:
            assert set(plan.ids) == ids_in(plan.signatures, work.plans)
            self.plans[plan.plan_id] = wire.decode_plan(plan.plan_id, wire.encode_plan(plan))
        self.tasks |= {each.uuid: each for each in tasks_in(work.entries, work.plans)}
        for meta in groups_in(work.entries, work.plans):
            assert self.groups.setdefault(meta.group_uuid, meta) == meta
        self._publish(work.entries)

    def run(self) -> None:
        while self.waiting:
            self._receive(wire.decode_signature(self.waiting.pop(self.choose.randrange(len(self.waiting)))))

    def _receive(self, signature: Signature) -> None:
        plan_id = header(signature, PLAN_HEADER)
        if plan_id is not None:
            assert not signature.on_success
            signature = signature.with_changes(on_success=self.plans[plan_id].signatures)
        if header(signature, FAILED_HEADER) is not None:
            self._failed(signature)
            return
        assert signature.uuid not in self.ends
        given = [FAILED if arg.type == "json" else str(arg.value) for arg in signature.args or ()]
        match signature.name:
            case "aq.pass":
                self._succeeded(signature, given)
            case "aq.none" | "aq.deadline":
                self._succeeded(signature, [])
            case name:
                label, *rest = given
                assert label not in self.calls
                self.calls[label] = tuple(rest)
                if name == "grow":
                    self.send(continued(signature, self.growths[label], default_queue=QUEUE))
                    return
                try:
                    results = returned(name, label, tuple(rest))
                except Broken:
                    self._failed(signature)
                else:
                    self._succeeded(signature, results)

    def _succeeded(self, signature: Signature, results: list[str]) -> None:
        self.ends[signature.uuid] = results
        passed = () if signature.immutable else args_of(results)
        self._publish([given_more(each, passed) for each in signature.on_success or ()])
        self._count(signature)

    def _failed(self, signature: Signature) -> None:
        assert self.ends.get(signature.uuid) is None
        self.ends[signature.uuid] = None
        doom = doomed(signature)
        for each in doom.never:
            assert self.ends.setdefault(each.uuid, None) is None
        self._publish([with_headers(each, {FAILED_HEADER: "it failed"}) for each in doom.told])
        callback = signature.chord_callback
        if callback is not None and is_broken(signature):
            self._end(signature.group_uuid, callback, None, signature)
        else:
            self._count(signature)

    def _count(self, signature: Signature) -> None:
        callback, group_id = signature.chord_callback, signature.group_uuid
        if callback is None or not group_id:
            return
        members = self.groups[group_id].task_uuids or ()
        policy = header(callback, ON_FAILURE_HEADER) or "fail"
        if policy == "fail" and self.ends[signature.uuid] is None:
            self._end(group_id, callback, None, signature)
        elif all(member in self.ends for member in members):
            try:
                results: list[str] | None = joined([self.ends[member] for member in members], policy)
            except Broken:
                results = None
            self._end(group_id, callback, results, signature)

    def _end(self, group_id: str, callback: Signature, results: list[str] | None, last: Signature) -> None:
        if group_id in self.triggered:
            return
        self.triggered.add(group_id)
        if results is not None:
            self._publish([given_more(callback, () if callback.immutable else args_of(results))])
            return
        self._publish([with_headers(cut_off(callback, last), {FAILED_HEADER: "a member failed"})])

    def _publish(self, signatures: Sequence[Signature]) -> None:
        for meta in groups_in(signatures):
            assert self.groups.setdefault(meta.group_uuid, meta) == meta
        for each in signatures:
            built_in = each.name in BUILT_IN
            assert each.routing_key == (companion(QUEUE) if built_in else QUEUE)
            self.waiting.append(wire.encode_signature(each))


def args_of(results: Sequence[str]) -> tuple[Arg, ...]:
    failure = MemberFailure(task_id="task_1", task_name="boom", error="it failed").as_arg()
    return tuple(failure if each == FAILED else Arg(type="string", value=each) for each in results)


def given_more(signature: Signature, args: tuple[Arg, ...]) -> Signature:
    return signature.with_changes(args=(*(signature.args or ()), *args))


def ids_in(signatures: Sequence[Signature], plans: Sequence[Plan]) -> set[str]:
    tasks = tasks_in(signatures, plans)
    found = {each.uuid for each in tasks} | {each.group_uuid for each in tasks}
    return (found | {header(each, PLAN_HEADER) or "" for each in tasks}) - {""}


def results_of(outline: Outline, ends: dict[str, list[str] | None]) -> list[str] | None:
    """The results of the whole, as a handle finds them."""
    if outline.id in ends:
        return ends[outline.id]
    if outline.kind == "chain":
        return results_of(outline.parts[-1], ends)
    if outline.kind == "chord":
        return results_of(outline.parts[1], ends)
    parts = [results_of(part, ends) for part in outline.parts]
    return None if None in parts else [each for part in parts for each in part or ()]


def comes_to_the_same(node: Node, growths: dict[str, Node], seed: int = 0) -> None:
    """Asserts that a compiled node is run as it is written, and that no task of it is left without an end."""
    plainly = Plainly(growths)
    expected = plainly.attempted(node)
    work = compiled(node, default_queue=QUEUE)
    workers = Workers(growths, random.Random(seed))
    workers.send(work)
    workers.run()
    assert results_of(work.outline, workers.ends) == expected
    assert workers.calls == plainly.calls
    assert workers.ends.keys() == workers.tasks.keys()
    assert workers.triggered <= workers.groups.keys()


# — expressions —


def task(name: str, label: str, *, takes_nothing: bool = False) -> Call:
    return Call(name=name, args=(Arg(type="string", value=label),), takes_nothing=takes_nothing)


@dataclass
class Written:
    """Builds nodes from what hypothesis draws: each task gets a label of its own."""

    labels: Iterator[int] = field(default_factory=count)
    growths: dict[str, Node] = field(default_factory=dict)

    def node(self, drawn: Any) -> Any:
        match drawn:
            case ("task", name, takes_nothing):
                return task(name, str(next(self.labels)), takes_nothing=takes_nothing)
            case ("grow", inner):
                label = str(next(self.labels))
                self.growths[label] = self.node(inner)
                return task("grow", label)
            case ("chain", links):
                return chain(*map(self.node, links))
            case ("group", members):
                return group(*map(self.node, members))
            case ("chord", members, callback, on_failure, timeout):
                built = [self.node(member) for member in members]
                return chord(built, self.node(callback), on_failure=on_failure, group_timeout=timeout)
        raise AssertionError(drawn)


def drawn(*names: str, policies: Sequence[OnFailure] = ("fail",)) -> st.SearchStrategy[Any]:
    """Expressions over tasks of these names."""
    leaves = st.tuples(st.just("task"), st.sampled_from(names), st.sampled_from((False, False, False, True)))

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        some = st.lists(inner, max_size=3)
        return st.one_of(
            st.tuples(st.just("chain"), st.lists(inner, min_size=1, max_size=3)),
            st.tuples(st.just("group"), some),
            st.tuples(st.just("chord"), some, inner, st.sampled_from(policies), st.sampled_from((None, None, 60.0))),
            st.tuples(st.just("grow"), inner),
        )

    return st.recursive(leaves, nested, max_leaves=14)


def nestings() -> dict[str, Node]:
    """Every nesting of depth 3 over chain, group and chord."""
    found: dict[str, Node] = {}
    for kinds in product(("chain", "group", "chord"), repeat=3):
        labels = count()
        found[" of ".join(kinds)] = nesting(kinds, lambda labels=labels: task("one", str(next(labels))))  # type: ignore[misc]  # mypy cannot see its type
    return found


def nesting(kinds: Sequence[str], leaf: Callable[[], Call]) -> Any:
    if not kinds:
        return leaf()
    first, second = nesting(kinds[1:], leaf), nesting(kinds[1:], leaf)
    match kinds[0]:
        case "chain":
            return chain(first, leaf(), second)
        case "group":
            return group(first, leaf(), second)
        case _:
            return chord([first, leaf()], second)


NESTINGS = nestings()

without_waiting = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["inside of messages", "by plans"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Much room inside of messages, and next to none."""
    if request.param == "by plans":
        monkeypatch.setattr(compiling, "_INLINE", wire.Limits(max_bytes=1_200, max_signatures=2, max_callback_depth=2))


@pytest.mark.parametrize("name", NESTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_every_nesting_of_three_comes_to_what_it_says(name: str, seed: int, room: None) -> None:
    comes_to_the_same(NESTINGS[name], {}, seed)


@given(shape=drawn("one", "one", "none", "two"), seed=st.integers(0, 99))
@without_waiting
def test_any_expression_comes_to_what_it_says(room: None, shape: Any, seed: int) -> None:
    written = Written()
    comes_to_the_same(written.node(shape), written.growths, seed)


@given(shape=drawn("one", "one", "one", "two", "boom", policies=get_args(OnFailure)), seed=st.integers(0, 99))
@without_waiting
def test_whatever_fails_every_task_ends_and_policies_hold(room: None, shape: Any, seed: int) -> None:
    written = Written()
    comes_to_the_same(written.node(shape), written.growths, seed)


# — the wire form —


def published(path: Path) -> list[Signature]:
    """The messages that Machinery sent in a recording."""
    pushed = [command[2] for command in goldens.commands(path) if command[0] == "RPUSH"]
    return [wire.decode_signature(body.encode()) for body in pushed]


def as_sent_by_go(signature: Signature) -> Signature:
    """With what is of no meaning made equal: Machinery leaves queues of callbacks open until they are sent, and makes
    empty headers here and there; the name of the whole is a header of ours."""
    callback = signature.chord_callback
    return signature.with_changes(
        routing_key="",
        headers={name: each for name, each in (signature.headers or {}).items() if name != WORKFLOW_HEADER} or None,
        on_success=tuple(map(as_sent_by_go, signature.on_success)) if signature.on_success else None,
        chord_callback=as_sent_by_go(callback) if callback is not None else None,
    )


def bare(signature: Signature) -> Signature:
    """A signature as one writes it, before it is part of a workflow."""
    nothing = {"on_success": None, "chord_callback": None, "group_uuid": "", "group_task_count": 0}
    return signature.with_changes(headers=None, routing_key="", **nothing)


@pytest.mark.parametrize("version", goldens.VERSIONS)
def test_a_chain_is_what_machinery_makes_of_it(version: str) -> None:
    (sent,) = published(goldens.GOLDEN / version / "redis/publish/chain.json")
    links, each = [bare(sent)], sent
    while each.on_success:
        (each,) = each.on_success
        links.append(bare(each))
    assert len(links) == 3
    (entry,) = compiled(chain(*links), default_queue=QUEUE).entries
    assert as_sent_by_go(entry) == as_sent_by_go(sent)


@pytest.mark.parametrize("version", goldens.VERSIONS)
@pytest.mark.parametrize("name", ["group", "chord"])
def test_groups_and_chords_are_what_machinery_makes_of_them(version: str, name: str) -> None:
    sent = published(goldens.GOLDEN / version / f"redis/publish/{name}.json")
    callback = sent[0].chord_callback
    members = [bare(each) for each in sent]
    work = compiled(
        group(*members) if callback is None else chord(members, bare(callback)),
        default_queue=QUEUE,
        new_id=lambda _: "7",
    )
    ours = "group_7" if callback is None else group_id_of(callback.uuid)
    theirs = [each.with_changes(group_uuid=ours) for each in sent]
    assert [as_sent_by_go(each) for each in work.entries] == [as_sent_by_go(each) for each in theirs]
    (meta,) = groups_in(work.entries)
    assert (meta.group_uuid, meta.task_uuids) == (ours, tuple(each.uuid for each in sent))


def one(label: str, **options: Any) -> Call:
    """A task with this label, which is also its UUID."""
    return task("one", label).with_changes(**{"uuid": f"task_{label}", **options})


def si(label: str) -> Call:
    return one(label, takes_nothing=True)


def drawing(signature: Signature) -> str:
    """A compiled signature in a line: its name, ``!`` where it is immutable, its group, what is inside of it."""
    name = label_of(signature) if signature.name not in BUILT_IN else signature.name.removeprefix("aq.")
    text = name + "!" * signature.immutable
    if signature.chord_callback is not None:
        text += f" then {drawing(signature.chord_callback)}"
    if signature.on_success:
        text += f" -> [{', '.join(map(drawing, signature.on_success))}]"
    return text


@pytest.mark.parametrize(
    ("node", "drawn"),
    [
        (chain(one("a"), one("b"), one("c")), ["a -> [b -> [c]]"]),
        (chain(one("a"), si("b"), one("c")), ["a! -> [b -> [c]]"]),
        (chain(one("a"), group(one("b"), one("c"))), ["a -> [b, c]"]),
        (chain(one("a"), group(one("b"), one("c")), one("d")), ["a -> [b then d, c then d]"]),
        (chain(one("a"), group(si("b"), si("c"))), ["a! -> [b, c]"]),
        (chain(one("a"), group(one("b"), si("c"), si("d"), one("e"))), ["a -> [b, none -> [c, d], e]"]),
        (chord([one("a"), one("b")], one("c")), ["a then c", "b then c"]),
        (chord([one("a")], si("c")), ["a then c!"]),
        (chord([one("a")], chain(one("b"), one("c"))), ["a then b -> [c]"]),
        (chord([one("a")], chain(si("b"), si("c"))), ["a then b! -> [c]"]),
        (chord([one("a")], chain(one("b"), si("c"))), ["a then b -> [none -> [c]]"]),
        (chord([one("a")], chain(si("b"), one("c"))), ["a then none! -> [b -> [c]]"]),
        (chord([one("a")], group(one("b"), one("c"))), ["a then pass -> [b, c]"]),
        (chord([one("a")], group(si("b"), si("c"))), ["a then pass! -> [b, c]"]),
        (chord([one("a")], one("b"), group_timeout=9), ["deadline then b", "a then b"]),
        (group(group(one("a"), one("b")), one("c")), ["a then pass", "b then pass", "c"]),
        (group(chain(one("a"), one("b")), one("c")) | one("d"), ["a -> [b then d]", "c then d"]),
        (chain(one("a"), chain(one("b"), one("c")), one("d")), ["a -> [b -> [c -> [d]]]"]),
        (chord([], one("a")), ["a"]),
        (chain(one("a"), group(), one("b")), ["a! -> [b]"]),
        (chain(one("a"), group()), ["a -> [none]"]),
        (group(group(), one("a")), ["none", "a"]),
        (group(), []),
    ],
)
def test_a_workflow_is_compiled_to_few_signatures(node: Node, drawn: list[str]) -> None:
    assert [drawing(each) for each in compiled(node, default_queue=QUEUE).entries] == drawn


def test_the_end_of_a_member_is_what_its_group_counts() -> None:
    work = compiled(group(chain(one("a"), one("b")), one("c")) | one("d"), default_queue=QUEUE)
    a, c = work.entries
    (b,) = a.on_success or ()
    group_id = group_id_of("task_d")
    assert (a.group_uuid, b.group_uuid, c.group_uuid) == ("", group_id, group_id)
    assert (b.group_task_count, c.group_task_count) == (2, 2)
    (meta,) = groups_in(work.entries)
    assert meta.task_uuids == ("task_b", "task_c")
    assert members_in(group_id, [a]) == ["task_b"]


def test_a_group_whose_members_are_not_all_there_is_left_out() -> None:
    first, _ = compiled(group(one("a"), one("b")) | one("c"), default_queue=QUEUE).entries
    assert groups_in([first]) == []


def test_only_built_in_tasks_go_to_the_companion_queue() -> None:
    a = one("a", routing_key="east")
    work = compiled(chain(a, group(one("b"), si("c")), group(one("d"), one("e"))), default_queue=QUEUE)
    queues = {
        each.name if each.name in BUILT_IN else label_of(each): each.routing_key for each in tasks_in(work.entries)
    }
    assert queues == {"a": "east", "b": "q", "c": "q", "d": "q", "e": "q", NONE: "east.aq", PASS: "q.aq"}
    assert companion("q.aq") == "q.aq"


def test_a_deadline_names_the_group_its_time_and_the_callback() -> None:
    work = compiled(chord([one("a")], one("b"), group_timeout=2.5), default_queue=QUEUE)
    deadline, member = work.entries
    assert deadline.name == DEADLINE
    assert [arg.value for arg in deadline.args or ()] == [member.group_uuid]
    assert header(deadline, COUNTDOWN_HEADER) == "2.5"
    assert deadline.chord_callback == member.chord_callback
    assert (deadline.group_uuid, deadline.eta) == ("", None)


def test_policies_stand_on_the_callback_and_what_they_need_on_first_tasks() -> None:
    work = compiled(
        chain(one("a"), chord([chord([one("b")], one("c"), on_failure="skip"), one("d")], one("e"), on_failure="pass")),
        default_queue=QUEUE,
    )
    (a,) = work.entries
    b, d = a.on_success or ()
    inner, outer = group_id_of("task_c"), group_id_of("task_e")
    assert header(b, ENTERS_HEADER) == f"{outer} {inner}"
    assert header(d, ENTERS_HEADER) == outer
    assert b.chord_callback is not None
    assert d.chord_callback is not None
    assert header(b.chord_callback, ON_FAILURE_HEADER) == "skip"
    assert header(d.chord_callback, ON_FAILURE_HEADER) == "pass"
    first, _ = compiled(chord([one("b"), one("d")], one("e"), on_failure="skip"), default_queue=QUEUE).entries
    assert header(first, ENTERS_HEADER) is None  # nothing is before it that could fail


def test_a_signature_keeps_what_it_is_followed_by_anyway() -> None:
    a = one("a", on_success=(task("one", "log"),), on_error=(task("one", "mourn"),))
    (entry,) = compiled(chain(a, one("b")), default_queue=QUEUE).entries
    assert drawing(entry) == "a -> [log, b]"
    inside = [*(entry.on_success or ()), *(entry.on_error or ())]
    assert all(each.uuid and each.routing_key == QUEUE for each in inside)
    assert [label_of(each) for each in tasks_in([entry])] == ["a", "log", "b"]  # error handlers have a state when sent


def test_successors_of_both_kinds_stand_apart() -> None:
    quiet = one("a", on_success=(si("log"),), immutable=True)  # as the option on_success makes it
    assert [drawing(each) for each in compiled(chain(quiet, one("b")), default_queue=QUEUE).entries] == [
        "a -> [none -> [log], b]"
    ]


def test_what_is_immutable_by_hand_hands_on_nothing_and_as_a_callback_takes_nothing() -> None:
    sealed = one("a", immutable=True)
    assert [drawing(each) for each in compiled(chain(sealed, one("b"), one("c")), default_queue=QUEUE).entries] == [
        "a! -> [b -> [c]]"
    ]
    assert [drawing(each) for each in compiled(chord([one("b")], sealed), default_queue=QUEUE).entries] == ["b then a!"]
    both = chord([one("b")], chain(sealed, one("c")))
    assert [drawing(each) for each in compiled(both, default_queue=QUEUE).entries] == ["b then a! -> [c]"]


def test_what_is_never_written_is_gone_from_compiled_signatures() -> None:
    server = Server("memory://")
    (entry,) = compiled(one("a", sender=server), default_queue=QUEUE).entries
    assert type(entry) is Signature
    assert wire.decode_signature(wire.encode_signature(entry)) == entry


# — UUIDs and outlines —


def test_uuids_that_are_given_are_kept_and_all_others_are_made_by_place() -> None:
    def node() -> Node:
        return chain(one("a"), group(task("one", "b"), task("one", "c")), task("one", "d"))

    seeded = [compiled(node(), default_queue=QUEUE, new_id=ids_from(seed)) for seed in ("x", "x", "y")]
    uuids = [[each.uuid for each in tasks_in(work.entries)] for work in seeded]
    assert uuids[0] == uuids[1]
    assert set(uuids[0]) & set(uuids[2]) == {"task_a"}
    anew = [each.uuid for each in tasks_in(compiled(node(), default_queue=QUEUE).entries)]
    assert set(uuids[0]) & set(anew) == {"task_a"}
    assert len(set(uuids[0])) == 4


def test_a_signature_can_stand_in_two_places() -> None:
    same = task("one", "a")
    inner = group(same, same)
    work = compiled(chain(inner, same, inner), default_queue=QUEUE)
    assert len(tasks_in(work.entries)) == 5


def test_an_outline_is_the_expression_with_uuids() -> None:
    work = compiled(chain(one("a"), group(one("b"), group(one("c"))), chord([one("d")], one("e"))), default_queue=QUEUE)
    outline = work.outline
    assert (outline.kind, outline.id, outline.name) == ("chain", "task_e", "one")
    a, fan, end = outline.parts
    assert a == Outline("task", "task_a", "one")
    assert fan.id == fan.group_id == groups_in(work.entries)[0].group_uuid
    inner = fan.parts[1]
    assert (inner.kind, inner.name, [part.id for part in inner.parts]) == ("group", PASS, ["task_c"])
    collecting = {each.uuid for each in tasks_in(work.entries) if each.name == PASS}
    assert inner.id in collecting
    assert inner.group_id == group_id_of(inner.id)
    assert end.group_id == end.parts[0].group_id == group_id_of("task_e")
    assert (end.kind, end.id, end.parts[1].id) == ("chord", "task_e", "task_e")


# — what grows —


def fits(work: Compiled) -> None:
    """Asserts that all messages and lines of plans are within the limits, and that few are near."""
    for each in [*work.entries, *(each for plan in work.plans for each in plan.signatures)]:
        body = wire.encode_signature(each)
        assert len(body) < 20_000
        wire.decode_signature(body)


@pytest.mark.parametrize("count", [10, 100])
def test_a_chain_of_five_groups_stays_small(count: int) -> None:
    work = compiled(chain(*(group(*[task("one", "a")] * count) for _ in range(5))), default_queue=QUEUE)
    fits(work)
    assert len(tasks_in(work.entries, work.plans)) == 5 * count + 4
    assert [len(meta.task_uuids or ()) for meta in groups_in(work.entries, work.plans)] == [count] * 5


def test_a_chain_of_a_thousand_links_stays_small() -> None:
    work = compiled(chain(*[task("one", "a")] * 1_000), default_queue=QUEUE)
    fits(work)
    tasks = tasks_in(work.entries, work.plans)
    assert sum(each.name == "one" for each in tasks) == 1_000
    assert set(work.plans[-1].ids) >= {each.uuid for each in tasks[-900:]}  # the first plan names all that follows


def test_a_callback_that_is_too_big_to_be_repeated_becomes_a_plan() -> None:
    big = Call(name="one", args=(Arg(type="string", value="x" * 20_000),))
    work = compiled(chord([one("a"), one("b")], big), default_queue=QUEUE)
    fits(Compiled(work.entries, (), work.outline))
    (plan,) = work.plans
    assert [each.name for each in plan.signatures] == ["one"]
    callback = work.entries[0].chord_callback
    assert callback is not None
    assert (callback.name, header(callback, PLAN_HEADER)) == (PASS, plan.plan_id)
    assert work.entries[0].group_uuid == group_id_of(callback.uuid)


def test_a_plan_that_is_not_given_is_not_looked_into() -> None:
    work = compiled(chain(*[task("one", "a")] * 100), default_queue=QUEUE)
    assert len(work.plans) > 1
    inside = tasks_in(work.entries)
    assert inside[-1].name == PASS
    assert len(inside) < 60


def test_a_task_that_no_message_holds_is_refused() -> None:
    limits = wire.Limits(max_bytes=2_000)
    with pytest.raises(MessageTooLarge, match=r"task one for queue 'q': .* the limit is 2000"):
        compiled(task("one", "x" * 2_000), default_queue=QUEUE, limits=limits)
    with pytest.raises(MessageTooLarge, match="task one"):
        compiled(chain(one("a"), task("one", "x" * 2_000)), default_queue=QUEUE, limits=limits)


def test_a_value_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(ArgumentError, match="task one, argument 1"):
        compiled(
            chain(one("a"), Call(name="one", args=(Arg(type="float64", value=float("nan")),))), default_queue=QUEUE
        )


EVERYWHERE = GoCompat(is_on=True)


def test_go_is_given_no_plans_and_no_policies() -> None:
    many = chain(*[task("one", "a")] * 60)
    assert compiled(many, default_queue=QUEUE, go=EVERYWHERE).plans == ()
    with pytest.raises(
        ArgumentError, match="nests deeper than 100; as a plan it could be sent, which go_compat forbids"
    ):
        compiled(chain(*[task("one", "a")] * 200), default_queue=QUEUE, go=EVERYWHERE)
    with pytest.raises(ArgumentError, match="signatures would be in its message, the limit is 1000; as a plan"):
        compiled(chain(*(group(*[task("one", "a")] * 40) for _ in range(3))), default_queue=QUEUE, go=EVERYWHERE)
    with pytest.raises(ArgumentError, match=r"on_failure='skip' is known to Python workers only, .* \(go_compat\)"):
        compiled(chord([one("a")], one("b"), on_failure="skip"), default_queue=QUEUE, go=EVERYWHERE)


# — tasks that go on, groups that grow —


def running() -> Signature:
    """A member of a group, which has a successor and an error handler, as a worker sees it."""
    first = chain(task("one", "a").with_changes(uuid="task_a", on_error=(one("mourn"),)), one("b"))
    return compiled(group(first, one("c")) | one("d"), default_queue=QUEUE).entries[0]


def test_what_a_task_goes_on_as_ends_as_that_task() -> None:
    original = running()
    work = continued(original, chain(task("one", "x"), task("one", "y")), default_queue=QUEUE, attempt=3)
    (x,) = work.entries
    (y,) = x.on_success or ()
    assert (y.uuid, work.outline.id) == ("task_a", "task_a")
    assert y.on_success == original.on_success
    assert y.on_error == original.on_error
    assert (header(y, ATTEMPT_HEADER), header(y, CHECK_HEADER)) == ("4", "1")
    assert x.uuid not in ("task_a", "")
    assert continued(original, chain(task("one", "x"), task("one", "y")), default_queue=QUEUE, attempt=3) == work


def test_a_member_goes_on_as_that_member() -> None:
    member = compiled(group(one("a"), one("c")) | one("d"), default_queue=QUEUE).entries[0]
    (x,) = continued(member, task("one", "x"), default_queue=QUEUE).entries
    assert (x.uuid, x.group_uuid, x.group_task_count) == ("task_a", member.group_uuid, 2)
    assert x.chord_callback == member.chord_callback
    ends = tasks_in(continued(member, group(task("one", "x"), task("one", "y")), default_queue=QUEUE).entries)
    (collecting,) = [each for each in ends if each.uuid == "task_a"]
    assert (collecting.name, collecting.group_uuid) == (PASS, member.group_uuid)


def test_a_callback_that_goes_on_as_a_chord_has_another_group() -> None:
    member = compiled(chord([one("a")], one("b")), default_queue=QUEUE).entries[0]
    callback = member.chord_callback
    assert callback is not None
    (x,) = continued(callback, chord([task("one", "x")], task("one", "y")), default_queue=QUEUE).entries
    assert x.chord_callback is not None
    assert x.chord_callback.uuid == "task_b"
    assert x.group_uuid == group_id_of("task_b", 2) != member.group_uuid


def test_the_end_of_what_a_task_went_on_as_is_told_of_a_failure_before_it() -> None:
    original = compiled(one("a", on_error=(one("mourn"),)), default_queue=QUEUE).entries[0]
    (x,) = continued(original, chain(task("one", "x"), task("one", "y")), default_queue=QUEUE).entries
    assert [each.uuid for each in doomed(x).told] == ["task_a"]  # since it has error handlers to send


def test_members_that_are_added_are_known_by_their_number() -> None:
    member = compiled(group(one("a"), one("c")) | one("d"), default_queue=QUEUE).entries[0]
    nodes: list[Node] = [chain(task("one", "x"), task("one", "y")), task("one", "z")]
    work = added(member, nodes, 0, default_queue=QUEUE)
    assert len(members_in(member.group_uuid, work.entries)) == 2
    assert added(member, nodes, 0, default_queue=QUEUE) == work
    (later,) = added(member, nodes[1:], 1, default_queue=QUEUE).entries
    assert later == work.entries[1]
    assert later.chord_callback == member.chord_callback


def test_what_will_never_run_is_found_up_to_where_word_is_sent() -> None:
    failed = compiled(
        chain(one("a"), one("b"), group(one("c"), chain(one("d"), one("e"))), one("f"), one("g")), default_queue=QUEUE
    ).entries[0]
    doom = doomed(failed)
    assert [label_of(each) for each in doom.never] == ["b", "c", "d", "e"]
    assert [label_of(each) for each in doom.told] == ["c", "e"]  # f and g are theirs to end
    assert all(header(each, BROKEN_HEADER) is None for each in doom.told)


def test_a_failure_before_a_group_is_not_a_failed_member_that_is_skipped() -> None:
    failed = compiled(chain(one("a"), chord([one("b")], one("c"), on_failure="skip")), default_queue=QUEUE).entries[0]
    (told,) = doomed(failed).told
    assert is_broken(told)
    member = compiled(chord([one("b")], one("c"), on_failure="skip"), default_queue=QUEUE).entries[0]
    assert not is_broken(member)


# — what cannot be —


def test_workflows_are_made_of_tasks_signatures_and_workflows() -> None:
    server = Server("memory://")

    @server.task
    async def double(number: int) -> int:
        return 2 * number

    def plain() -> None: ...

    for wrong, text in (
        (plain, "chain: plain is a function and no task: register it with @server.task"),
        ("double", r"chain: 'double' is a name: use server.signature\('double', …\)"),
        (7, "chain: expected a task, a signature or a workflow, not int 7"),
        (None, "not NoneType None"),
        (double(1), r"double\(…\) was called, not sent: use double.s\(…\)"),
    ):
        with pytest.raises(ArgumentError, match=text):
            chain(double.s(1), wrong)  # type: ignore[call-overload]  # that is the mistake
    parts = [double.s(1), double.s()]
    for several in (parts, tuple(parts), iter(parts), (each for each in parts)):
        with pytest.raises(ArgumentError, match=r"parts one by one, .*: use group\(\*parts\)"):
            group(several)  # type: ignore[call-overload]  # that is the mistake
    with pytest.raises(ArgumentError, match="at least one link"):
        chain()  # type: ignore[call-overload]  # that is the mistake
    with pytest.raises(ArgumentError, match="chord: expected a group, or a list of its members, not "):
        chord(double, double)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(ArgumentError, match="chord: expected a group"):
        chord(double.s(1), double)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(ArgumentError, match="chord: expected a group"):
        chord(double.s(1) | double, double)  # type: ignore[arg-type]  # that is the mistake


def test_policies_and_timeouts_are_checked() -> None:
    with pytest.raises(ArgumentError, match="on_failure='ignore'; expected one of fail, skip, pass"):
        chord([one("a")], one("b"), on_failure="ignore")  # type: ignore[arg-type]  # that is the mistake
    for timeout in (0, -1, float("nan"), float("inf"), "5", True):
        with pytest.raises(ArgumentError, match="expected a number of seconds over 0"):
            chord([one("a")], one("b"), group_timeout=timeout)  # type: ignore[arg-type]  # that is the mistake


def test_a_task_uuid_stands_once_in_a_workflow() -> None:
    for node in (
        chain(one("a"), one("a")),
        group(one("a"), chain(one("b"), one("a"))),
        chord([one("a")], one("a")),
        chain(one("b"), one("a", on_success=(one("b"),))),
    ):
        with pytest.raises(ArgumentError, match=r"the task UUID task_. is given twice: to one and to one"):
            compiled(node, default_queue=QUEUE)


def test_a_workflow_is_no_part_of_itself() -> None:
    inner = group(one("a"))
    loop = chain(one("b"), inner)
    object.__setattr__(inner, "members", (loop,))
    with pytest.raises(ArgumentError, match=r"a (chain|group) is a part of itself"):
        compiled(loop, default_queue=QUEUE)
    with pytest.raises(ArgumentError, match=r"a (chain|group) is a part of itself"):
        compiled(inner | one("c"), default_queue=QUEUE)
    with pytest.raises(ArgumentError, match="knows a server"):
        server_of(loop)


def test_workflows_nest_to_a_limit() -> None:
    node: Any = one("a")
    for _ in range(99):
        node = group(node)
    compiled(node, default_queue=QUEUE)
    with pytest.raises(ArgumentError, match="nest deeper than 100"):
        compiled(group(node), default_queue=QUEUE)


def test_a_workflow_has_so_many_tasks_and_no_more() -> None:
    node = chain(*[task("one", "a")] * 5)
    compiled(node, default_queue=QUEUE, max_tasks=5)
    with pytest.raises(ArgumentError, match="a workflow of more than 4 tasks"):
        compiled(node, default_queue=QUEUE, max_tasks=4)
    doubled: Any = one("a").with_changes(uuid="")
    for _ in range(40):
        doubled = group(doubled, doubled)
    with pytest.raises(ArgumentError, match="a workflow of more than 1000 tasks"):
        compiled(doubled, default_queue=QUEUE, max_tasks=1_000)


def test_so_many_steps_follow_one_another_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_PLANNED", 2_000)
    with pytest.raises(ArgumentError, match="too many steps follow one another"):
        compiled(chain(*[task("one", "a")] * 1_000), default_queue=QUEUE)


def test_a_name_that_cannot_be_a_key_is_refused() -> None:
    with pytest.raises(ArgumentError, match="task one: task UUID 'a b'"):
        compiled(one("a", uuid="a b"), default_queue=QUEUE)
    queue = "q" * 199
    compiled(chain(one("a"), one("b")), default_queue=queue)
    with pytest.raises(ArgumentError, match=r"aq\.pass needs a queue beside that of its neighbours: queue 'qqq"):
        compiled(group(group(one("a"))), default_queue=queue)


def test_a_member_of_another_group_is_no_part() -> None:
    with pytest.raises(ArgumentError, match="it is a member of group 'group_7' already"):
        compiled(one("a", group_uuid="group_7"), default_queue=QUEUE)


def test_a_workflow_is_one_of_three() -> None:
    with pytest.raises(ArgumentError, match="a workflow is a chain, a group or a chord, not a Workflow"):
        compiled(Workflow(), default_queue=QUEUE)
    with pytest.raises(ArgumentError, match="a chain needs at least one link"):
        compiled(Series(()), default_queue=QUEUE)


def test_callbacks_of_a_signature_nest_to_a_limit() -> None:
    deep = one("a")
    for number in range(102):
        deep = one(f"a{number}", on_success=(deep,))
    with pytest.raises(ArgumentError, match="its callbacks nest deeper than 100"):
        compiled(deep, default_queue=QUEUE)


def test_a_workflow_has_one_server() -> None:
    first, second = Server("memory://"), Server("memory://")

    @first.task(name="here")
    async def here(number: int) -> int:
        return number

    @second.task(name="there")
    async def there(number: int) -> int:
        return number

    assert owner_of(chain(one("a"), here.s(1))) is first
    assert owner_of(chord([one("a"), one("b")], here)) is first
    assert owner_of(chain(one("a"))) is None
    with pytest.raises(ArgumentError, match="tasks here and there belong to different servers"):
        server_of(group(here.s(1), chain(one("a"), there.s(1))))


async def test_a_workflow_that_knows_no_server_says_who_could_send_it() -> None:
    for workflow, verb in (
        (chain(one("a")), "send_chain"),
        (group(one("a")), "send_group"),
        (chord([one("a")], one("b")), "send_chord"),
    ):
        with pytest.raises(ArgumentError, match=rf"send the workflow with server.{verb}\(…\)"):
            await workflow.send()


# — builders —


def test_chains_in_chains_are_joined_and_a_group_before_something_is_a_chord() -> None:
    a, b, c, d = one("a"), one("b"), one("c"), one("d")
    assert chain(chain(a, b), chain(c), d).links == (a, b, c, d)
    assert (chain(a) | b | chain(c, d)).links == (a, b, c, d)
    assert chord(group(a, b), c) == group(a, b) | c == chord([a, b], c)
    assert (group(a, b) | c | d).links == (chord([a, b], c), d)
    assert isinstance(chain(group(a), b), Chain)


def test_tasks_stand_for_their_signatures() -> None:
    server = Server("memory://")

    @server.task
    async def double(number: int) -> int:
        return 2 * number

    assert (double.s(1) | double).links == (double.s(1), double.s())
    assert (double | double).links == (double.s(), double.s())
    assert group(double, double).members == (double.s(), double.s())
    assert chord([double.s(1)], double).callback == double.s()
    assert (double.s(1) | Signature(name="elsewhere")).links[1].name == "elsewhere"  # type: ignore[union-attr]  # it is one


def test_a_callback_can_take_failures_as_values() -> None:
    server = Server("memory://")

    @server.task
    async def table(*rows: int | MemberFailure) -> int:
        return len(rows)

    failure = MemberFailure(task_id="task_1", task_name="boom", error="oops")
    given = Signature(name="table", args=(Arg(type="int64", value=7), failure.as_arg()))
    bound = table.registered.bind(wire.decode_signature(wire.encode_signature(given)))
    assert bound.args == [7, failure]


def test_the_attempt_of_a_message_is_1_unless_it_says_so() -> None:
    assert attempt_of(one("a")) == 1
    assert attempt_of(with_headers(one("a"), {ATTEMPT_HEADER: "3"})) == 3
    assert attempt_of(with_headers(one("a"), {ATTEMPT_HEADER: "many"})) == 1
