"""What follows the end of a task: its successors, its error handlers, the end of its group. Pure.

A task that will never run because of a failure is FAILURE at once. Where that has consequences beyond its state, the
task is sent all the same, to the companion queue and with word of its failure: whoever receives it settles it as a
task that failed, and so takes the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from asyncqueue.backends.base import Member
from asyncqueue.brokers.base import GroupEnd, Message, Settled
from asyncqueue.engine.messages import (
    MAX_ERROR_TEXT,
    Rules,
    callback_id,
    failure_state,
    later,
    message,
    pending,
    timed,
)
from asyncqueue.errors import ArgumentError
from asyncqueue.go_compat import problem_with_arguments
from asyncqueue.models import changed
from asyncqueue.signature import Arg, Plan, Signature, header, with_headers
from asyncqueue.state import GroupMeta, TaskResult, TaskState
from asyncqueue.workflow import (
    ATTEMPT_HEADER,
    CHECK_HEADER,
    FAILED_HEADER,
    ON_FAILURE_HEADER,
    PLAN_HEADER,
    WORKFLOW_HEADER,
    MemberFailure,
    cut_off,
    doomed,
    groups_in,
    is_broken,
)


def after_success(
    base: Settled, signature: Signature, results: Sequence[TaskResult], rules: Rules, now_ns: int
) -> Settled:
    """``base`` with what follows a task that returned these results."""
    member = member_of(signature)
    if signature.on_success:
        passed = () if signature.immutable else tuple(Arg(type=each.type, value=each.value) for each in results)
        ready = _ready(signature, "success", [_appended(each, passed) for each in signature.on_success], now_ns)
        base = _sending(base, ready, rules, now_ns)
    elif member is None and header(signature, WORKFLOW_HEADER) is None:
        return base
    return replace(base, member=member, alive=family(signature))


def after_failure(base: Settled, signature: Signature, error: str, rules: Rules, now_ns: int) -> Settled:
    """``base`` with what follows a task that failed for good."""
    if signature.on_error:
        first = Arg(type="string", value=error)
        handlers = [each.with_changes(args=(first, *(each.args or ()))) for each in signature.on_error]
        base = _sending(base, _ready(signature, "error", handlers, now_ns), rules, now_ns)
    if signature.on_success:
        never, told = _consequences(signature, error, rules, now_ns)
        base = replace(base, ended=never, publish=(*base.publish, *told))
    if header(signature, WORKFLOW_HEADER) is not None:
        base = replace(base, alive=family(signature))
    member, callback = member_of(signature), signature.chord_callback
    if member is None or callback is None:
        return base
    if policy_of(callback) == "fail" or is_broken(signature):
        text = f"member {signature.name!r} ({signature.uuid}) of group {member.group_id} failed: {error}"
        return replace(base, end=group_failed(member.group_id, cut_off(callback, signature), text, rules, now_ns))
    return replace(base, member=member, alive=family(signature))


def after_replacement(
    base: Settled,
    signature: Signature,
    entries: Sequence[Signature],
    plans: Sequence[Plan],
    rules: Rules,
    now_ns: int,
) -> Settled:
    """``base`` with the workflow that a task goes on as. Groups with members in its ``plans`` are opened with it, as
    when it is sent."""
    ready = [with_headers(timed(each, now_ns), {CHECK_HEADER: "1"}) for each in entries]
    return replace(_sending(base, ready, rules, now_ns, plans), alive=(signature.uuid, *family(signature)))


def group_completed(
    group: GroupMeta, callback: Signature, states: Sequence[TaskState | None], rules: Rules, now_ns: int
) -> GroupEnd:
    """What follows a group all of whose members have ended; ``states`` are theirs, in its order."""
    policy = policy_of(callback)
    args: list[Arg] = []
    for task_id, state in zip(group.task_uuids or (), states, strict=True):
        if state is not None and state.is_success:
            args += [Arg(type=each.type, value=each.value) for each in state.results or ()]
            continue
        name = state.task_name if state is not None else ""
        error = state.error if state is not None else "its result has expired"
        if policy == "pass":
            args.append(MemberFailure(task_id=task_id, task_name=name, error=error).as_arg())
        elif policy != "skip":
            text = f"member {name!r} ({task_id}) of group {group.group_uuid} failed: {error}"
            return group_failed(group.group_uuid, callback, text, rules, now_ns)
    ready = _appended(callback, () if callback.immutable else tuple(args))
    problem = problem_with_arguments(ready, rules.go, default_queue=rules.default_queue)
    if problem is not None:
        return group_failed(group.group_uuid, callback, problem, rules, now_ns)
    if len(ready.args or ()) > rules.limits.max_args:
        text = f"the results of its group make {len(ready.args or ())} arguments, the limit is {rules.limits.max_args}"
        return group_failed(group.group_uuid, callback, text, rules, now_ns)
    try:
        sent = message(with_headers(ready, {CHECK_HEADER: "1"}), rules.default_queue, now_ns)
    except ArgumentError as exc:
        return group_failed(group.group_uuid, callback, f"its arguments cannot be sent: {exc}", rules, now_ns)
    if len(sent.body) > rules.limits.max_bytes:
        text = (
            f"the results of its group make a message of {len(sent.body)} bytes, the limit is {rules.limits.max_bytes}"
        )
        return group_failed(group.group_uuid, callback, text, rules, now_ns)
    # the same for all who have one member's message, and with it the claim
    sent = replace(sent, token=f"{group.created_at:x}/{ready.uuid}/end")
    return GroupEnd(group.group_uuid, pending=(pending(ready, now_ns),), publish=(sent,))


def group_failed(group_id: str, callback: Signature, error: str, rules: Rules, now_ns: int) -> GroupEnd:
    """What follows a group whose callback will never run."""
    callback = cut_off(callback)
    never, told = _consequences(callback, error, rules, now_ns)
    state = failure_state(callback.uuid, callback.name, error)
    if callback.on_error or never or told or member_of(callback) or header(callback, PLAN_HEADER):
        told = (_told(callback, error, rules, now_ns),)  # and it takes it from there
    return GroupEnd(group_id, ended=(state, *never), publish=told)


def member_of(signature: Signature) -> Member | None:
    """The task as a member of a group that is waited for; None where nobody waits for one."""
    if signature.group_uuid and signature.chord_callback is not None:
        return Member(signature.group_uuid, signature.uuid, signature.group_task_count)
    return None


def policy_of(callback: Signature) -> str:
    """What a failed member means to the callback of its group: fail, skip or pass."""
    return header(callback, ON_FAILURE_HEADER) or "fail"


def family(signature: Signature) -> tuple[str, ...]:
    """The UUIDs of all that is to live as long as a task's workflow goes on: the plan that names it all; or, of one
    without steps, what waits for the task. The one whose time is looked at comes first."""
    wholes = header(signature, WORKFLOW_HEADER)
    if wholes is not None:
        return (*wholes.split(), signature.group_uuid) if signature.group_uuid else tuple(wholes.split())
    found = dict.fromkeys(_ids_around(signature))
    found.pop(signature.uuid, None)
    return tuple(found)


def _ids_around(signature: Signature) -> Iterable[str]:
    if signature.group_uuid:
        yield signature.group_uuid
    yield signature.uuid
    plan_id = header(signature, PLAN_HEADER)
    if plan_id:
        yield plan_id
    if signature.chord_callback is not None:
        yield from _ids_around(signature.chord_callback)
    for each in signature.on_success or ():
        yield from _ids_around(each)


def _consequences(
    failed: Signature, error: str, rules: Rules, now_ns: int
) -> tuple[tuple[TaskState, ...], tuple[Message, ...]]:
    """The states of the tasks that will never run because one failed, and the word that is sent of some of them."""
    doom = doomed(failed)
    text = f"task {failed.name!r} ({failed.uuid}) before it failed: {error}"[:MAX_ERROR_TEXT]
    return (
        tuple(failure_state(each.uuid, each.name, text) for each in doom.never),
        tuple(_told(_without_handlers(each), text, rules, now_ns) for each in doom.told),
    )


def _without_handlers(never: Signature) -> Signature:
    """A link that never ran is not what failed, so its handlers are not called; those of the end of a task that went on
    as a workflow are that task's."""
    return never if header(never, ATTEMPT_HEADER) else never.with_changes(on_error=None)


def _told(signature: Signature, error: str, rules: Rules, now_ns: int) -> Message:
    """A task that will never run, on its way to a worker that takes the consequences."""
    queue = rules.companion(signature.routing_key or rules.default_queue)
    word = with_headers(
        signature.with_changes(routing_key=queue, eta=None, args=()),
        {FAILED_HEADER: error[:MAX_ERROR_TEXT], CHECK_HEADER: "1"},
    )
    return message(word, queue, now_ns)


def _ready(parent: Signature, kind: str, callbacks: Sequence[Signature], now_ns: int) -> list[Signature]:
    """Callbacks as they are sent: with the UUIDs that they always get, and word that they may be a second copy."""
    return [
        with_headers(
            timed(each, now_ns).with_changes(uuid=each.uuid or callback_id(parent, kind, index)), {CHECK_HEADER: "1"}
        )
        for index, each in enumerate(callbacks)
    ]


def _sending(
    base: Settled, ready: Sequence[Signature], rules: Rules, now_ns: int, plans: Sequence[Plan] = ()
) -> Settled:
    groups = groups_in(ready, plans) if plans or any(each.on_success or each.group_uuid for each in ready) else ()
    due = later(max((each.eta for each in ready if each.eta is not None), default=None), now_ns)
    state = base.state
    if due is not None and state is not None:  # what is behind one that is due later is kept until then
        state = changed(state, {"not_before": due})
    return replace(
        base,
        state=state,
        pending=(*base.pending, *(pending(each, now_ns) for each in ready)),
        publish=(*base.publish, *(message(each, rules.default_queue, now_ns) for each in ready)),
        opens=(*base.opens, *(changed(each, {"created_at": now_ns, "not_before": due}) for each in groups)),
    )


def _appended(signature: Signature, passed: tuple[Arg, ...]) -> Signature:
    return signature.with_changes(args=(*(signature.args or ()), *passed)) if passed else signature
